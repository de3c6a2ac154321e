//! Single flipped bits, anywhere in a ledger: recovery serves what was there, or refuses and says where; `verify` names
//! every flip that matters. The one exception, counted: damage to the last batches, which no later one records as durable.

use bytes::Bytes;
use claim_engine::command::{Claim, Operation, Outcome, Request};
use claim_engine::engine::{Engine, OpenOptions, Output};
use claim_engine::entropy::Entropy;
use claim_engine::id::EventId;
use claim_engine::log::entry::Principal;
use claim_engine::log::io::{Io, perform};
use claim_engine::log::layout::{BLOCK_BYTES, Geometry};
use claim_engine::log::recovery::{self, RecoveryError, RecoveryOptions, Visit};
use claim_engine::log::superblock::{COPIES, Superblock, SuperblockError, copy_offset};
use claim_engine::log::verify::{self, Content, Finding, GlobalCopy, ReadAt, Source, Step, Structure, WalkOptions};
use claim_engine::log::writer;
use claim_engine::peer::PeerMessage;
use claim_engine::policy::Policy;
use claim_engine::row::ReasonCode;
use claim_engine::storage::{Durability, Storage};
use claim_engine::time::Now;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

const FLIPS: u64 = 10_500;
const THREADS: u64 = 2;
const SHARDS: u16 = 2;
const RUNS: u64 = 6;
const STEPS: u64 = 36;
const GEOMETRY: Geometry = Geometry { segment_bytes: 1 << 20, batch_bytes_max: 400 << 10, ring_segments: 0 };
const CORPORA: [&str; 3] = ["alpha", "beta", "gamma"];
const WHO: Principal = Principal { uid: 1, gid: 2, pid: 3 };
const START_US: i64 = 1_700_000_000_000_000;

/// Runs what never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("storage in memory does not wait"),
    }
}

/// A file in memory that is written.
#[derive(Default)]
struct Memory(RefCell<Vec<u8>>);

impl Storage for Memory {
    async fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let file = self.0.borrow();
        let start = (offset as usize).min(file.len());
        Ok(file[start..(start + bytes).min(file.len())].to_vec())
    }

    async fn write_at(&self, offset: u64, data: &[u8], _: Durability) -> io::Result<()> {
        self.0.borrow_mut()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn free(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; bytes as usize], Durability::Cached).await
    }

    async fn grow(&self, bytes: u64) -> io::Result<()> {
        let mut file = self.0.borrow_mut();
        if file.len() < bytes as usize {
            file.resize(bytes as usize, 0);
        }
        Ok(())
    }
}

/// A file in memory that is read.
struct Image(Bytes);

impl Storage for Image {
    async fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let start = (offset as usize).min(self.0.len());
        Ok(self.0[start..(start + bytes).min(self.0.len())].to_vec())
    }

    async fn write_at(&self, _: u64, _: &[u8], _: Durability) -> io::Result<()> {
        Err(io::Error::other("this file is only read"))
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn free(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::other("this file is only read"))
    }

    async fn grow(&self, _: u64) -> io::Result<()> {
        Err(io::Error::other("this file is only read"))
    }
}

/// A ledger of several shards, run in memory.
struct Ledger {
    files: Vec<Memory>,
    engines: Vec<Engine>,
    entropy: Entropy,
    clock_us: i64,
    tokens: u64,
    rows: Vec<(usize, EventId)>,
}

impl Ledger {
    fn new(seed: u64) -> Ledger {
        let files: Vec<_> = (0..SHARDS).map(|_| Memory::default()).collect();
        for (file, shard) in files.iter().zip(0..) {
            let superblock = Superblock {
                shard,
                shard_count: SHARDS,
                formatted_at_us: START_US,
                ..Superblock::of_new_ledger(Uuid::from_u128(5), [3; 32], GEOMETRY)
            };
            now(writer::format(file, &superblock)).unwrap();
        }
        let entropy = Entropy::from_seed_u64(seed);
        Ledger { files, engines: Vec::new(), entropy, clock_us: START_US, tokens: 0, rows: Vec::new() }
    }

    fn now(&mut self) -> Now {
        self.clock_us += 1 + self.entropy.below(2_000) as i64;
        Now { wall_us: self.clock_us, boot_us: self.clock_us }
    }

    fn open(&mut self) {
        self.engines.clear();
        for file in &self.files {
            let superblock = now(Superblock::read(file)).unwrap();
            let (engine, _) = now(Engine::open(file, &superblock, OpenOptions::default())).unwrap();
            self.engines.push(engine);
        }
        let at = self.now();
        for engine in &mut self.engines {
            engine.start(at, START_US);
        }
        self.pump();
    }

    fn submit(&mut self, shard: usize, operation: Operation<'_>) {
        self.tokens += 1;
        let at = self.now();
        let key = ((at.wall_us / 1_000) as u128) << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.tokens);
        let request = Request {
            token: self.tokens,
            stream: 0,
            principal: WHO,
            user: "",
            idempotency_key: key,
            correlation_id: 0,
            rationale: "a test",
            at_us: None,
            deadline_boot_us: None,
            at_least: &[],
            operation,
        };
        self.engines[shard].submit(at, &mut self.entropy, &request);
    }

    fn pump(&mut self) {
        loop {
            let at = self.now();
            let mut is_quiet = true;
            for (engine, file) in self.engines.iter_mut().zip(&self.files) {
                // All that may be out at once is taken out before any of it is done.
                let mut under_way = Vec::new();
                while let Some(io) = engine.next_io() {
                    under_way.push(io);
                }
                for io in under_way {
                    is_quiet = false;
                    engine.complete(at, &mut self.entropy, now(perform(file, io)));
                }
            }
            is_quiet &= !self.deliver(at);
            if is_quiet {
                return;
            }
        }
    }

    fn deliver(&mut self, at: Now) -> bool {
        let mut messages: Vec<(u16, PeerMessage)> = Vec::new();
        for (shard, engine) in self.engines.iter_mut().enumerate() {
            for output in engine.drain() {
                match output {
                    Output::Message { to, message } => messages.push((to, message)),
                    Output::Reply(reply) => match reply.outcome {
                        Outcome::Claimed(claimed) => self.rows.push((shard, claimed.event_id)),
                        Outcome::ClaimedItems(items) => {
                            self.rows.extend(items.into_iter().flatten().map(|claimed| (shard, claimed.event_id)));
                        }
                        _ => {}
                    },
                }
            }
        }
        let any = !messages.is_empty();
        for (to, message) in messages {
            self.engines[usize::from(to)].deliver(at, &mut self.entropy, &message);
        }
        any
    }

    /// One to some requests, and what follows from them.
    fn step(&mut self) {
        for _ in 0..=self.entropy.below(6) {
            let shard = self.entropy.below(SHARDS.into()) as usize;
            let corpora = self.engines[shard].shard().registry().corpora();
            let Some(own) = corpora.iter().find(|corpus| usize::from(corpus.shard) == shard) else { continue };
            let (own, other) = (own.name.clone(), corpora[corpora.len() - 1].name.clone());
            let row = match self.rows.len() as u64 {
                0 => None,
                count => Some(self.rows[self.entropy.below(count) as usize]),
            };
            match (self.entropy.below(10), row) {
                (0, Some((shard, event_id))) => {
                    self.submit(shard, Operation::Reference { corpus: &other, items: &[(0, event_id)] });
                }
                (1, Some((shard, event_id))) => {
                    let corpora = self.engines[shard].shard().registry();
                    let corpus = corpora.of_prefix(event_id.prefix()).unwrap().name.clone();
                    self.submit(
                        shard,
                        Operation::Retract { corpus: &corpus, event_id, reason_code: ReasonCode::Other },
                    );
                }
                (2, Some((shard, event_id))) => self.submit(shard, Operation::Reactivate { event_id }),
                (3, _) => self.claims(shard, &own, 20, 400),
                _ => self.claims(shard, &own, 1, 1_000),
            }
        }
        self.pump();
    }

    fn claims(&mut self, shard: usize, corpus: &str, count: usize, metadata_bytes_max: u64) {
        let bytes: Vec<u8> = (0..metadata_bytes_max).map(|_| self.entropy.next_u64() as u8).collect();
        let lengths: Vec<_> = (0..count).map(|_| self.entropy.below(metadata_bytes_max) as usize).collect();
        let items: Vec<_> = lengths
            .iter()
            .map(|length| Claim {
                event_key: "an event",
                occurred_at_us: START_US,
                owning_corpus: "",
                hosting_corpus: "",
                category: "test",
                taxonomy_version: 1,
                metadata: &bytes[..*length],
            })
            .collect();
        self.submit(shard, Operation::Claim { corpus, items: &items, unless_within_us: None });
    }

    /// The process dies with several batches under way; the first of them is lost or not, the others land.
    fn die(&mut self, loses_first: bool) {
        for shard in 0..usize::from(SHARDS) {
            let Some(own) = self.engines[shard]
                .shard()
                .registry()
                .corpora()
                .iter()
                .find(|corpus| usize::from(corpus.shard) == shard)
                .map(|corpus| corpus.name.clone())
            else {
                continue;
            };
            for _ in 0..3 {
                self.claims(shard, &own, 40, 9_000);
            }
            let mut written = 0;
            while let Some(io) = self.engines[shard].next_io() {
                if matches!(io, Io::Write { .. }) {
                    written += 1;
                    if written > 1 || !loses_first {
                        now(perform(&self.files[shard], io));
                    }
                }
            }
        }
    }

    fn mark(&mut self) {
        for engine in &mut self.engines {
            engine.mark();
        }
        self.pump();
    }
}

fn ledger(seed: u64) -> Vec<Vec<u8>> {
    let mut ledger = Ledger::new(seed);
    for run in 0..RUNS {
        ledger.open();
        if run == 0 {
            ledger.submit(0, Operation::Configure { toml: &Policy::of_owner(WHO.uid).to_toml() });
            ledger.pump();
            for name in CORPORA {
                ledger.submit(0, Operation::Onboard { name, notes: "a corpus" });
                ledger.pump();
            }
        }
        for _ in 0..STEPS {
            ledger.step();
            if ledger.entropy.below(8) == 0 {
                ledger.mark();
            }
        }
        // At the very end several batches are what nothing records.
        if run == RUNS / 2 || run == RUNS - 1 {
            ledger.die(run == RUNS / 2);
        } else if run % 3 == 0 {
            ledger.mark();
        }
    }
    ledger.files.into_iter().map(|file| file.0.into_inner()).collect()
}

/// What a shard answers from, and from nothing else: every record in order, with its place.
type Records = Vec<(u64, u64, u16, u64)>;

fn recover(image: &Bytes) -> Result<Records, String> {
    let storage = Image(image.clone());
    let superblock = match now(Superblock::read(&storage)) {
        Ok(superblock) => superblock,
        Err(SuperblockError::Io(error)) => panic!("{error}"),
        Err(error) => return Err(error.to_string()),
    };
    let mut records = Records::new();
    let walked = now(recovery::walk(&storage, &superblock, RecoveryOptions::default(), |visit| {
        if let Visit::Record(raw, log_offset) = visit {
            records.push((raw.position, log_offset, raw.kind, xxh3_64(raw.body)));
        }
        Ok(())
    }));
    match walked {
        Ok(_) => Ok(records),
        Err(error @ (RecoveryError::Corrupt(_) | RecoveryError::NoFirstSegment { .. })) => Err(error.to_string()),
        Err(error) => panic!("recovery should have named the place, not said: {error}"),
    }
}

struct Verified {
    findings: Vec<Finding>,
    globals: BTreeMap<u64, GlobalCopy>,
    is_whole: bool,
}

fn read_from(image: Bytes) -> ReadAt<'static> {
    Box::new(move |at, bytes| Ok(image.clone().read(at, bytes)?.to_vec()))
}

fn verify_image(image: &Bytes, shard: u16) -> Verified {
    let mut source = image.clone();
    let (superblock, mut findings) = verify::superblocks(&mut source, shard, None).unwrap();
    let superblock = superblock.expect("three copies are left");
    let start = verify::state_at_start(&mut source, &superblock).unwrap();
    let mut content = Content::new(&superblock, start, read_from(image.clone()));
    let mut each = |step: Step| content.step(step);
    let walked = verify::walk(&mut source, &superblock, WalkOptions::default(), &mut each, &mut |_| {}).unwrap();
    content.finish().unwrap();
    findings.extend(content.take_findings());
    let is_whole = walked.holes == 0 && content.stopped_at().is_none();
    Verified { findings, globals: content.take_globals(), is_whole }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Class {
    SuperblockCopy,
    SuperblockSpace,
    UsedSegmentHeader,
    UnusedSegmentHeader,
    BatchHeader,
    RecoveryBatch,
    Mark,
    RecordHeader,
    RecordBody,
    Padding,
    SegmentEnd,
    BeyondTheEnd,
    /// All of the batches that no later one records as durable.
    LastWindow,
}

/// The parts of a file, and from where on no batch is recorded as durable by a later one.
struct Parts {
    extents: Vec<(Class, Range<u64>)>,
    unrecorded_from: u64,
    batches: usize,
    segments: u64,
}

fn parts(image: &Bytes) -> Parts {
    let storage = Image(image.clone());
    let superblock = now(Superblock::read(&storage)).unwrap();
    let mut extents = Vec::new();
    for copy in 0..COPIES {
        let at = copy_offset(copy);
        extents.push((Class::SuperblockCopy, at..at + BLOCK_BYTES));
        extents.push((Class::SuperblockSpace, at + BLOCK_BYTES..copy_offset(copy + 1)));
    }
    let mut batches = Vec::new();
    let mut records = Vec::new();
    let end = now(recovery::walk(&storage, &superblock, RecoveryOptions::default(), |visit| {
        match visit {
            Visit::Batch(place) => batches.push(*place),
            Visit::Record(raw, log_offset) => records.push((log_offset, raw.body.len() as u64)),
        }
        Ok(())
    }))
    .unwrap();
    let file = |log_offset| GEOMETRY.file_offset(log_offset);
    for (at, body) in records {
        extents.push((Class::RecordHeader, file(at)..file(at) + 24));
        extents.push((Class::RecordBody, file(at) + 24..file(at) + 24 + body));
    }
    let used = GEOMETRY.segment_of(end.next_batch_at);
    for segment in 0..end.segments_prepared {
        let at = file(GEOMETRY.segment_start(segment));
        let class = if segment <= used { Class::UsedSegmentHeader } else { Class::UnusedSegmentHeader };
        extents.push((class, at..at + BLOCK_BYTES));
    }
    let recorded = batches.iter().map(|place| place.header.durable_batch).max().unwrap();
    let mut unrecorded_from = u64::MAX;
    for place in &batches {
        let at = file(place.log_offset);
        let (content, total) = (u64::from(place.header.content_bytes), u64::from(place.header.total_bytes));
        if place.header.number > recorded {
            unrecorded_from = unrecorded_from.min(at);
        }
        match (place.header.is_recovery, place.header.record_count) {
            (true, _) => extents.push((Class::RecoveryBatch, at..at + content)),
            (_, 0) => extents.push((Class::Mark, at..at + content)),
            _ => extents.push((Class::BatchHeader, at..at + 128)),
        }
        if total > content {
            extents.push((Class::Padding, at + content..at + total));
        }
        let next = GEOMETRY.next_batch(place.log_offset, total);
        if next != place.log_offset + total {
            extents.push((Class::SegmentEnd, at + total..file(GEOMETRY.segment_start(GEOMETRY.segment_of(next)))));
        }
    }
    if unrecorded_from < file(end.next_batch_at) {
        extents.push((Class::LastWindow, unrecorded_from..file(end.next_batch_at)));
    }
    extents.push((Class::BeyondTheEnd, file(end.next_batch_at)..file(GEOMETRY.segment_start(used + 1))));
    // A last batch may fill its segment to the end.
    extents.retain(|(_, extent)| !extent.is_empty());
    Parts { extents, unrecorded_from, batches: batches.len(), segments: used + 1 }
}

#[derive(Debug, Default)]
struct Tally {
    flips: u64,
    same_answers: u64,
    refused: u64,
    cut_in_last_window: u64,
    named_as_damage: u64,
    named_as_note: u64,
    unnamed: u64,
    by_class: BTreeMap<Class, u64>,
}

/// What is known of the file that is flipped, unflipped.
struct Known {
    image: Vec<u8>,
    parts: Parts,
    records: Records,
    findings: Vec<Finding>,
}

fn flip_all(known: &[Known], globals: &[BTreeMap<u64, GlobalCopy>], seed: u64, flips: u64) -> Tally {
    let mut entropy = Entropy::from_seed_u64(seed);
    let mut tally = Tally::default();
    let mut images: Vec<_> = known.iter().map(|known| Bytes::from(known.image.clone())).collect();
    for _ in 0..flips {
        let shard = entropy.below(SHARDS.into()) as usize;
        let Known { parts, records, findings, .. } = &known[shard];
        let mut classes: Vec<_> = parts.extents.iter().map(|(class, _)| *class).collect();
        classes.sort_unstable();
        classes.dedup();
        let class = classes[entropy.below(classes.len() as u64) as usize];
        let extents: Vec<_> = parts.extents.iter().filter(|(c, _)| *c == class).collect();
        let (_, extent) = extents[entropy.below(extents.len() as u64) as usize];
        let byte = extent.start + entropy.below(extent.end - extent.start);
        let bit = entropy.below(8);
        let flip = |image: Bytes| {
            let mut bytes = image.try_into_mut().expect("nobody else holds the image");
            bytes[byte as usize] ^= 1 << bit;
            bytes.freeze()
        };
        images[shard] = flip(std::mem::take(&mut images[shard]));
        let what = format!("shard {shard}, {class:?}, byte {byte}, bit {bit}");

        let verified = verify_image(&images[shard], shard as u16);
        let mut named: Vec<_> = verified.findings.iter().filter(|finding| !findings.contains(finding)).collect();
        let mut all: Vec<_> = globals.iter().collect();
        all[shard] = &verified.globals;
        let mut whole = vec![true; all.len()];
        whole[shard] = verified.is_whole;
        let differing = verify::compare_globals(&all, 0, &whole);
        named.extend(&differing);
        let is_named = named.iter().any(|finding| finding.is_damage);
        tally.flips += 1;
        *tally.by_class.entry(class).or_default() += 1;
        match (is_named, named.is_empty()) {
            (true, _) => tally.named_as_damage += 1,
            (false, false) => tally.named_as_note += 1,
            (false, true) => tally.unnamed += 1,
        }
        match recover(&images[shard]) {
            Ok(found) if found == *records => tally.same_answers += 1,
            Ok(found) => {
                assert!(records.starts_with(&found), "{what}: recovery serves what was never there");
                assert!(byte >= parts.unrecorded_from, "{what}: recovery cuts what a later batch records as durable");
                assert!(
                    named.iter().any(|finding| finding.structure == Structure::Tail),
                    "{what}: verify does not say that the tail does not verify"
                );
                tally.cut_in_last_window += 1;
            }
            Err(error) => {
                assert!(error.contains("file offset"), "{what}: {error}");
                assert!(is_named, "{what}: recovery refuses ({error}), verify names nothing");
                tally.refused += 1;
            }
        }
        // Whatever was damaged and used is named, and the finding holds the place.
        let is_used = !matches!(class, Class::BeyondTheEnd | Class::SegmentEnd) && byte < parts.unrecorded_from;
        if is_used {
            let is_there = |finding: &&Finding| {
                finding.is_damage
                    && finding.file_offset <= byte
                    && (finding.bytes == 0 || byte < finding.file_offset + finding.bytes)
            };
            assert!(named.iter().any(is_there), "{what}: named are {named:?}");
        }
        images[shard] = flip(std::mem::take(&mut images[shard]));
    }
    for (image, known) in images.iter().zip(known) {
        assert!(image == &known.image, "every flip was undone");
    }
    tally
}

#[test]
fn every_flip_is_harmless_or_named() {
    let seed = std::env::var("CLAIMD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("CLAIMD_TEST_SEED={seed} repeats the ledger and the flips");
    let images = ledger(seed);
    let mut known = Vec::new();
    let mut globals = Vec::new();
    for (image, shard) in images.into_iter().zip(0..) {
        let bytes = Bytes::from(image.clone());
        let verified = verify_image(&bytes, shard);
        assert!(verified.is_whole && !verified.findings.iter().any(|f| f.is_damage), "{:?}", verified.findings);
        let records = recover(&bytes).unwrap();
        let parts = parts(&bytes);
        println!(
            "shard {shard}: {} batches, {} records, {} segments used, {} bytes",
            parts.batches,
            records.len(),
            parts.segments,
            bytes.len()
        );
        assert!(parts.batches > 100 && parts.segments > 1 && records.len() > 200);
        globals.push(verified.globals);
        known.push(Known { image, parts, records, findings: verified.findings });
    }
    let tallies: Vec<_> = std::thread::scope(|scope| {
        let (known, globals) = (&known, &globals);
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || flip_all(known, globals, seed ^ (thread + 1) << 32, FLIPS / THREADS)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread of flips")).collect()
    });
    let mut classes: BTreeMap<Class, u64> = BTreeMap::new();
    for tally in &tallies {
        println!("{tally:?}");
        for (class, count) in &tally.by_class {
            *classes.entry(*class).or_default() += count;
        }
    }
    for class in [
        Class::SuperblockCopy,
        Class::SuperblockSpace,
        Class::UsedSegmentHeader,
        Class::UnusedSegmentHeader,
        Class::BatchHeader,
        Class::RecoveryBatch,
        Class::Mark,
        Class::RecordHeader,
        Class::RecordBody,
        Class::Padding,
        Class::SegmentEnd,
        Class::BeyondTheEnd,
        Class::LastWindow,
    ] {
        assert!(classes.get(&class).is_some_and(|count| *count > 100), "{class:?} was hardly hit: {classes:?}");
    }
    let sum = |count: fn(&Tally) -> u64| tallies.iter().map(count).sum::<u64>();
    assert_eq!(sum(|tally| tally.flips), FLIPS);
    println!(
        "{FLIPS} flips: {} harmless to every answer, {} refused by recovery, {} cut in the last window; {} named as damage, {} \
         as a note; 0 wrong rows",
        sum(|tally| tally.same_answers),
        sum(|tally| tally.refused),
        sum(|tally| tally.cut_in_last_window),
        sum(|tally| tally.named_as_damage),
        sum(|tally| tally.named_as_note)
    );
}
