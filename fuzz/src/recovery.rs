//! A ledger file that something happened to. A small load is run through the real engine onto a disk in memory, so that
//! hashes and chains are right; then blocks are flipped, swapped, copied, zeroed and cut, and batches and superblocks are
//! sealed again with the right key around content that no engine writes. Recovery runs on the result.

use crate::disk::{Disk, run as now_or_never};
use crate::{Input, START_US, WHO, pick};
use claim_engine::command::{Claim, Operation, Request};
use claim_engine::corpus::Prefix;
use claim_engine::engine::{Engine, OpenOptions, Opened};
use claim_engine::entropy::Entropy;
use claim_engine::id::EventId;
use claim_engine::log::batch::{self, BATCH_HEADER_BYTES, BatchHeader, Found, Hash};
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::io::{Io, perform};
use claim_engine::log::layout::{BLOCK_BYTES, Geometry, SEGMENT_BYTES_RANGE, SUPERBLOCK_AREA_BYTES};
use claim_engine::log::record::{self, RawRecord};
use claim_engine::log::recovery::{RecoveryError, RecoveryOptions, Visit, walk};
use claim_engine::log::superblock::{ClockMode, Origin, Superblock, encode_segment_header};
use claim_engine::log::writer;
use claim_engine::mutant::Mutation;
use claim_engine::policy::Policy;
use claim_engine::row::ReasonCode;
use claim_engine::sealed::Checkpoint;
use claim_engine::time::Now;
use std::collections::HashSet;
use uuid::Uuid;

/// Small, so that a short load fills segments.
const GEOMETRY: Geometry = Geometry { segment_bytes: 96 << 10, batch_bytes_max: 16 << 10, ring_segments: 0 };
const SLOW_SEGMENT_BYTES: u64 = 4 << 20;
const STEPS_MAX: usize = 48;
const RUNS_MAX: usize = 3;
const DAMAGES_MAX: usize = 12;
const METADATA_BYTES_MAX: usize = 9_000;
/// Rounds of I/O after which a shard is at rest.
const ROUNDS_MAX: usize = 10_000;
/// Rows, records and corpora that the load after recovery looks at.
const LOOKED_AT_MAX: usize = 8;
/// The last moment that a Linux clock can show, in 2262.
const WALL_US_MAX: i64 = i64::MAX / 1_000;

/// See the module.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut ledger = Ledger::filled(&mut input);
    let mut damages = 0;
    while !input.is_empty() && damages < DAMAGES_MAX {
        ledger.damage(&mut input);
        damages += 1;
    }
    ledger.check(damages == 0);
}

/// A ledger file, and what is known of it.
struct Ledger {
    disk: Disk,
    superblock: Superblock,
    /// The hashes of all batches that were ever written.
    written: HashSet<Hash>,
    durable_position: u64,
    /// Something was sealed with the ledger's key.
    is_forged: bool,
}

impl Ledger {
    fn filled(input: &mut Input<'_>) -> Ledger {
        let choices = input.byte();
        let superblock = Superblock {
            clock: if choices & 1 == 0 { ClockMode::Wall } else { ClockMode::Replay },
            formatted_at_us: START_US,
            ..Superblock::of_new_ledger(Uuid::from_u128(5), [3; 32], GEOMETRY)
        };
        let disk = Disk::default();
        now_or_never(writer::format(&disk, &superblock)).expect("the disk takes everything");
        let mut ledger = Ledger { disk, superblock, written: HashSet::new(), durable_position: 0, is_forged: false };
        let runs = 1 + usize::from(choices >> 1) % RUNS_MAX;
        let fill_bytes = (choices & 0x80 != 0).then_some(BLOCK_BYTES);
        for number in 0..runs {
            ledger.load(input, number as i64, fill_bytes);
        }
        ledger
    }

    /// One run of a daemon, which ends with its death.
    fn load(&mut self, input: &mut Input<'_>, number: i64, fill_bytes: Option<u64>) {
        let options = OpenOptions { fill_bytes, ..OpenOptions::default() };
        let superblock = now_or_never(Superblock::read(&self.disk)).expect("it was closed whole");
        let (engine, _) = now_or_never(Engine::open(&self.disk, &superblock, options)).expect("it was closed whole");
        let (places, _) = chain(&self.disk, &self.superblock);
        self.written.extend(places.iter().map(|(_, header)| header.1));
        let mut load = Load::new(engine, START_US + number * 10_000_000);
        let steps = input.below(STEPS_MAX + 1);
        for _ in 0..steps {
            load.step(input);
            while let Some(io) = load.engine.next_io() {
                if let Io::Write { batch, .. } = &io {
                    let largest = GEOMETRY.batch_bytes_max;
                    match batch::find(batch, &self.superblock.key, 0, largest, Mutation::NONE) {
                        Found::Batch { hash, .. } => self.written.insert(hash),
                        other => panic!("a batch is submitted that reads as {other:?}"),
                    };
                }
                load.ios.push(io);
            }
            for _ in 0..input.below(4).min(load.ios.len()) {
                let io = load.ios.swap_remove(input.below(load.ios.len()));
                let done = now_or_never(perform(&self.disk, io));
                load.engine.complete(load.now, &mut load.entropy, done);
            }
            load.engine.drain().for_each(drop);
        }
        self.durable_position = load.engine.status().durable_position;
        // What is in flight lands, or does not.
        for io in load.ios {
            if input.one_in(2) {
                now_or_never(perform(&self.disk, io));
            }
        }
    }

    fn damage(&mut self, input: &mut Input<'_>) {
        let used = self.disk.used_blocks();
        match input.below(16) {
            0 => {
                let (offset, bit) = (self.offset(input, &used), input.below(8));
                let mut block = self.disk.block(offset / BLOCK_BYTES);
                block[(offset % BLOCK_BYTES) as usize] ^= 1 << bit;
                self.disk.put_block(offset / BLOCK_BYTES, &block);
            }
            1 => {
                let (Some(a), Some(b)) = (pick(input, &used), pick(input, &used)) else { return };
                let (first, second) = (self.disk.block(*a), self.disk.block(*b));
                self.disk.put_block(*a, &second);
                self.disk.put_block(*b, &first);
            }
            2 => {
                // A run of blocks is there twice.
                let (Some(from), Some(to)) = (pick(input, &used), pick(input, &used)) else { return };
                let (to, count) = (to + input.below(3) as u64, 1 + input.below(8) as u64);
                let blocks: Vec<_> = (0..count).map(|i| self.disk.block(from + i)).collect();
                blocks.iter().zip(to..).for_each(|(block, number)| self.disk.put_block(number, block));
            }
            3 => {
                let (Some(from), count) = (pick(input, &used), 1 + input.below(64) as u64) else { return };
                let end = (from + count).min(self.disk.bytes() / BLOCK_BYTES);
                (*from..end).for_each(|number| self.disk.put_block(number, &[0; BLOCK_BYTES as usize]));
            }
            4 => self.disk.truncate(input.number() % (self.disk.bytes() + 1)),
            5 => {
                let offset = self.offset(input, &used);
                let bytes = input.bytes(255);
                self.disk.put(offset, bytes);
            }
            6 => {
                let segment = input.below(8) as u64;
                let at = GEOMETRY.file_offset(GEOMETRY.segment_start(segment));
                self.disk.put(at, &encode_segment_header(&self.superblock, segment));
            }
            7 => {
                let bytes = input.bytes(255);
                let offset = input.u64() % SUPERBLOCK_AREA_BYTES;
                self.disk.put(offset, bytes);
            }
            8 => self.forge_superblock(input),
            _ => self.forge_batch(input),
        }
    }

    /// An offset in a block that holds something.
    fn offset(&self, input: &mut Input<'_>, used: &[u64]) -> u64 {
        let block = pick(input, used).copied().unwrap_or(0);
        let within = if input.one_in(2) { input.u64() % BLOCK_BYTES } else { input.below(256) as u64 };
        block * BLOCK_BYTES + within
    }

    /// A superblock with a field that may hold anything.
    fn forge_superblock(&mut self, input: &mut Input<'_>) {
        self.is_forged = true;
        let Ok(mut forged) = now_or_never(Superblock::read(&self.disk)) else { return };
        forged.generation = forged.generation.wrapping_add(1);
        for _ in 0..1 + input.below(3) {
            match input.below(8) {
                0 => forged.generation = input.number(),
                1 => forged.shard = input.number() as u16,
                2 => forged.shard_count = input.number() as u16,
                3 => forged.clock = if input.one_in(2) { ClockMode::Wall } else { ClockMode::Replay },
                4 => {
                    // Zeroing larger ones takes its time and shows nothing new.
                    let (bytes, factor) = (input.number(), 1 + input.below(32) as u64);
                    // What divides the log at some of the places where it is divided.
                    let bytes = if bytes == 0 { GEOMETRY.segment_bytes * factor } else { bytes };
                    let is_slow = bytes > SLOW_SEGMENT_BYTES && bytes <= *SEGMENT_BYTES_RANGE.end();
                    forged.geometry.segment_bytes = if is_slow { bytes % SLOW_SEGMENT_BYTES } else { bytes };
                }
                5 => forged.geometry.batch_bytes_max = input.number(),
                6 => forged.formatted_at_us = input.number() as i64,
                _ => forged.origin = forge_origin(input, forged.geometry, forged.checkpoint),
            }
        }
        if forged.geometry.segment_bytes == 0 {
            // No offset lies in a segment of nothing.
            forged.origin = None;
        }
        now_or_never(forged.write(&self.disk)).expect("the disk takes everything");
    }

    /// A batch with its hash right and its content not; the batches after it may be chained to it again.
    fn forge_batch(&mut self, input: &mut Input<'_>) {
        let (mut batches, _) = chain(&self.disk, &self.superblock);
        if batches.is_empty() {
            return;
        }
        self.is_forged = true;
        let at = input.below(batches.len());
        let ((mut place, (mut header, _)), later) = (batches[at], batches.split_off(at + 1));
        let mut content = Content::of(&self.disk, place, &header);
        for _ in 0..1 + input.below(3) {
            content.change(input, &mut header);
        }
        if input.one_in(4) {
            place = input.u64() % (self.disk.bytes() / BLOCK_BYTES + 2) * BLOCK_BYTES;
        }
        let mut previous = content.seal(&self.disk, &self.superblock, place, &header);
        if input.one_in(4) {
            return;
        }
        let mut position = header.first_position.wrapping_add(header.record_count.into());
        for (place, (mut header, _)) in later {
            let mut content = Content::of(&self.disk, place, &header);
            header.previous_hash = previous;
            header.first_position = position;
            for record in &mut content.records {
                record.position = position;
                position = position.wrapping_add(1);
            }
            previous = content.seal(&self.disk, &self.superblock, place, &header);
        }
    }

    fn check(&self, is_whole: bool) {
        // What `inspect` reads must not fall over either.
        let _ = now_or_never(Superblock::read_copies(&self.disk));
        let superblock = match now_or_never(Superblock::read(&self.disk)) {
            Ok(superblock) => superblock,
            Err(error) => return assert!(!is_whole, "a whole ledger is refused: {error}"),
        };
        let walked = Walked::new(&self.disk, &superblock);
        let (engine, opened) = match open(&self.disk, &superblock) {
            Ok(opened) => opened,
            Err(error) => return assert!(!is_whole, "a whole ledger is refused: {error}"),
        };
        // What is sealed is not gone over again.
        let is_sealed = superblock.checkpoint.is_some();
        assert!(walked.end.is_some() || is_sealed && !is_whole, "what opens can be walked");
        if let Some(end) = walked.end {
            let records = walked.records.len() as u64;
            let agrees = if is_sealed { opened.records <= records } else { opened.records == records };
            assert!(opened.cut_at == end.next_batch_at && agrees, "{opened:?}, {end:?}, {records}");
        }
        if !self.is_forged {
            let stranger = walked.batches.iter().find(|hash| !self.written.contains(*hash));
            assert_eq!(stranger, None, "a batch is recovered that nobody wrote");
        }
        if is_whole {
            let last = walked.end.map_or(0, |end| end.next_position - 1);
            assert!(last >= self.durable_position, "{last} is recovered, {} was durable", self.durable_position);
        }
        let first = State::of(&engine);
        drop(engine);

        let superblock = now_or_never(Superblock::read(&self.disk)).expect("what was opened once is read again");
        let again = Walked::new(&self.disk, &superblock);
        assert!(again.records.starts_with(&walked.records), "recovery changed what it had read");
        let (engine, _) = match open(&self.disk, &superblock) {
            // A forged batch may lie behind where the first recovery had to look for witnesses; the log has gone on towards it.
            Err(RecoveryError::Corrupt(_)) if self.is_forged => return,
            opened => opened.expect("what was opened once opens again"),
        };
        let expected = State { last_position: first.last_position + 1, incarnation: first.incarnation + 1, ..first };
        assert_eq!(State::of(&engine), expected, "a second recovery finds another state");
        self.serve(engine, &again);
    }

    /// What a daemon then does with it.
    fn serve(&self, engine: Engine, walked: &Walked) {
        let wall_us = engine.shard().last_us().clamp(START_US, WALL_US_MAX - 1_000_000);
        let mut load = Load::new(engine, wall_us);
        let corpora = load.engine.shard().registry().corpora();
        let names: Vec<_> = corpora.iter().take(LOOKED_AT_MAX).map(|corpus| corpus.name.clone()).collect();
        let prefixes: Vec<_> = corpora.iter().take(LOOKED_AT_MAX).map(|corpus| corpus.prefix).collect();
        // Elsewhere than at shard 0 a daemon never asks for these.
        if load.engine.shard().number() == 0 {
            load.submit(None, Operation::ConfirmClock);
            load.submit(None, Operation::Onboard { name: "another", notes: "" });
        }
        for name in &names {
            load.claim(None, name, 10);
            load.submit(
                None,
                Operation::Scan { corpus: name, since_us: None, until_us: Some(0), after: None, limit: 0 },
            );
            for key in walked.keys.iter().take(LOOKED_AT_MAX) {
                load.claim(Some(*key), name, 10);
            }
        }
        for prefix in prefixes {
            let Some(event_id) = load.engine.shard().rows().last_id(prefix) else { continue };
            load.submit(None, Operation::History { event_id, skip: 0 });
            let corpus = names.first().map_or("", String::as_str);
            load.submit(None, Operation::Reference { corpus, items: &[(0, event_id)] });
            load.submit(None, Operation::Retract { corpus, event_id, reason_code: ReasonCode::Other });
            load.submit(None, Operation::Reactivate { event_id });
        }
        load.settle(&self.disk);
        assert!(load.engine.failed().is_none(), "a disk that takes everything fails a shard");
    }
}

fn open(disk: &Disk, superblock: &Superblock) -> Result<(Engine, Opened), RecoveryError> {
    now_or_never(Engine::open(disk, superblock, OpenOptions::default()))
}

/// What is compared between two recoveries.
#[derive(Debug, PartialEq, Eq)]
struct State {
    rows: u64,
    corpora: usize,
    keys: u64,
    globals: u64,
    last_us: i64,
    last_position: u64,
    incarnation: u64,
}

impl State {
    fn of(engine: &Engine) -> State {
        let shard = engine.shard();
        State {
            rows: shard.rows().count(),
            corpora: shard.registry().corpora().len(),
            keys: shard.key_count(),
            globals: shard.globals_applied(),
            last_us: shard.last_us(),
            last_position: shard.last_position(),
            incarnation: engine.status().incarnation,
        }
    }
}

/// What a walk over the log meets.
struct Walked {
    batches: Vec<Hash>,
    records: Vec<(u64, u16, Vec<u8>)>,
    keys: Vec<u128>,
    end: Option<LogEnd>,
}

impl Walked {
    fn new(disk: &Disk, superblock: &Superblock) -> Walked {
        let mut walked = Walked { batches: Vec::new(), records: Vec::new(), keys: Vec::new(), end: None };
        let end = walk(disk, superblock, RecoveryOptions::default(), |visit| {
            match visit {
                Visit::Batch(place) => walked.batches.push(place.hash),
                Visit::Record(RawRecord { position, kind, body }, _) => {
                    if let Ok(record) = Record::decode(kind, body) {
                        let mut again = Vec::new();
                        record.encode(&mut again);
                        assert_eq!(Record::decode(kind, &again), Ok(record), "a record is not what it encodes to");
                        walked.keys.push(record.meta.idempotency_key);
                    }
                    walked.records.push((position, kind, body.to_vec()));
                }
            }
            Ok(())
        });
        walked.end = now_or_never(end).ok();
        walked
    }
}

type Place = (u64, (BatchHeader, Hash));

/// File offset, header and hash of the batches, in the order of the log.
fn chain(disk: &Disk, superblock: &Superblock) -> (Vec<Place>, Result<LogEnd, RecoveryError>) {
    let mut places = Vec::new();
    let end = now_or_never(walk(disk, superblock, RecoveryOptions::default(), |visit| {
        if let Visit::Batch(place) = visit {
            places.push((superblock.geometry.file_offset(place.log_offset), (place.header, place.hash)));
        }
        Ok(())
    }));
    (places, end)
}

/// A record taken out of a batch.
#[derive(Clone)]
struct Loose {
    position: u64,
    kind: u16,
    body: Vec<u8>,
}

/// What a batch holds, taken apart.
struct Content {
    records: Vec<Loose>,
    left_over: Vec<u8>,
}

impl Content {
    fn of(disk: &Disk, place: u64, header: &BatchHeader) -> Content {
        let bytes = disk.read(place, header.total_bytes as usize);
        let mut content = Content { records: Vec::new(), left_over: Vec::new() };
        let Some(mut rest) = bytes.get(batch::records(&bytes, header)) else { return content };
        while let Ok((raw, length)) = record::read(rest) {
            content.records.push(Loose { position: raw.position, kind: raw.kind, body: raw.body.to_vec() });
            rest = &rest[length..];
        }
        content
    }

    fn change(&mut self, input: &mut Input<'_>, header: &mut BatchHeader) {
        if input.one_in(4) {
            return change_header(input, header);
        }
        if self.records.is_empty() {
            let body = input.bytes(255).to_vec();
            self.records.push(Loose { position: header.first_position, kind: 1, body });
            header.record_count = header.record_count.wrapping_add(1);
        }
        let at = input.below(self.records.len());
        match input.below(10) {
            0 => {
                self.records.remove(at);
                header.record_count = header.record_count.wrapping_sub(1);
            }
            1 => {
                let again = self.records[at].clone();
                self.records.insert(at, again);
                header.record_count = header.record_count.wrapping_add(1);
                for (n, record) in (0..).zip(&mut self.records) {
                    record.position = header.first_position.wrapping_add(n);
                }
            }
            2 => self.records[at].position = input.number(),
            3 => self.records[at].kind = input.number() as u16,
            4 => self.records[at].body = input.bytes(255).to_vec(),
            5 => {
                let body = &mut self.records[at].body;
                let start = input.below(body.len() + 1);
                let bytes = input.bytes(32);
                let end = (start + bytes.len()).min(body.len());
                body[start..end].copy_from_slice(&bytes[..end - start]);
            }
            6 => self.left_over = input.bytes(64).to_vec(),
            _ => self.records[at].change(input),
        }
    }

    fn seal(&self, disk: &Disk, superblock: &Superblock, place: u64, header: &BatchHeader) -> Hash {
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        for Loose { position, kind, body } in &self.records {
            record::append(&mut bytes, *position, *kind, |out| out.extend_from_slice(body));
        }
        record::put_checksums(&mut bytes[BATCH_HEADER_BYTES..]);
        // What is wrong with a record is not its checksum: recovery would look no further.
        assert!(self.records.is_empty() || record::read(&bytes[BATCH_HEADER_BYTES..]).is_ok());
        bytes.extend_from_slice(&self.left_over);
        let hash = batch::seal(&mut bytes, &superblock.key, header, Mutation::NONE);
        disk.put(place, &bytes);
        hash
    }
}

fn change_header(input: &mut Input<'_>, header: &mut BatchHeader) {
    match input.below(8) {
        0 => header.shard = input.number() as u16,
        1 => header.is_recovery = !header.is_recovery,
        2 => header.record_count = input.number() as u32,
        3 => header.number = input.number(),
        4 => header.incarnation = input.number(),
        5 => header.first_position = input.number(),
        6 => (header.durable_batch, header.durable_position) = (input.number(), input.number()),
        _ => header.previous_hash[0] ^= 1,
    }
}

impl Loose {
    /// Another value for a field of the entry.
    fn change(&mut self, input: &mut Input<'_>) {
        let body = self.body.clone();
        let Ok(mut record) = Record::decode(self.kind, &body) else { return };
        let meta = &mut record.meta;
        match input.below(8) {
            0 => meta.timestamp_us = input.number() as i64,
            1 => meta.timestamp_us = meta.timestamp_us.wrapping_add(input.number() as i64),
            2 => meta.idempotency_key = u128::from(input.number()) << 80 | 7 << 76 | 0b10 << 62,
            3 => meta.corpus = Prefix::new(input.number() as u16),
            4 => meta.item = input.number() as u16,
            _ => change_entry(input, &mut record.entry),
        }
        self.kind = record.entry.kind();
        self.body.clear();
        record.encode(&mut self.body);
    }
}

/// A log that says it begins later than it does, perhaps with what a seal says.
fn forge_origin(input: &mut Input<'_>, geometry: Geometry, seal: Option<Checkpoint>) -> Option<Origin> {
    let segment = if input.one_in(2) { input.below(8) as u64 } else { input.number() };
    let next_batch_at = segment.checked_mul(geometry.segment_bytes)?.checked_add(geometry.first_batch())?;
    let start = LogEnd {
        next_batch_at,
        next_number: input.number(),
        next_position: input.number(),
        previous_hash: seal.unwrap_or_default().hash,
        incarnation: input.number(),
        segments_prepared: 0,
    };
    let seal = seal.filter(|_| input.one_in(2));
    let seal = seal.unwrap_or_else(|| Checkpoint { log_offset: input.number(), number: input.number(), hash: [0; 32] });
    Some(Origin { start, seal, gone_before_us: input.number() as i64 })
}

fn change_entry(input: &mut Input<'_>, entry: &mut Entry<'_>) {
    match entry {
        Entry::Claim(claim) => match input.below(3) {
            0 => claim.claim_sequence = input.number(),
            1 => claim.occurred_at_us = input.number() as i64,
            _ => claim.event_id = change_id(input, claim.event_id),
        },
        Entry::Reference { event_id, canonical_id } => {
            let id = if input.one_in(2) { event_id } else { canonical_id };
            *id = change_id(input, *id);
        }
        Entry::Tombstone { event_id, .. } | Entry::Reactivate { event_id } => *event_id = change_id(input, *event_id),
        Entry::Onboard { global_sequence, prefix, shard, onboarded_at_us, .. } => match input.below(4) {
            0 => *global_sequence = input.number(),
            1 => *prefix = Prefix::new(input.number() as u16).unwrap_or(*prefix),
            2 => *shard = input.number() as u16,
            _ => *onboarded_at_us = input.number() as i64,
        },
        Entry::PrefixAllocation { global_sequence, minted_to } => match input.below(2) {
            0 => *global_sequence = input.number(),
            _ => *minted_to = input.number() as u16,
        },
        Entry::ConfirmClock { global_sequence } => *global_sequence = input.number(),
        Entry::Repair { cut_at, given_up_to, .. } | Entry::Restore { cut_at, given_up_to, .. } => {
            (*cut_at, *given_up_to) = (input.number(), input.number());
        }
        Entry::Recovery { incarnation, cut_at } => (*incarnation, *cut_at) = (input.number(), input.number()),
        Entry::Reshard { shards, .. } => *shards = input.number() as u16,
        Entry::Configuration { global_sequence, .. }
        | Entry::Dispute { global_sequence, .. }
        | Entry::DisputeStep { global_sequence, .. }
        | Entry::Reconcile { global_sequence, .. }
        | Entry::Decommission { global_sequence, .. }
        | Entry::Freeze { global_sequence, .. }
        | Entry::Cap { global_sequence, .. }
        | Entry::SlotIncrease { global_sequence, .. }
        | Entry::SignOff { global_sequence, .. }
        | Entry::Incident { global_sequence, .. }
        | Entry::Barrier { global_sequence, .. }
        | Entry::Hold { global_sequence, .. } => *global_sequence = input.number(),
        Entry::Carry { claim, claimed_at_us, claim_at, .. } => match input.below(3) {
            0 => claim.event_id = change_id(input, claim.event_id),
            1 => *claimed_at_us = input.number() as i64,
            _ => *claim_at = input.number(),
        },
        Entry::RetentionDrop { dropped } => *dropped = &dropped[..input.below(dropped.len() + 1)],
        Entry::Alarm { claims, slots, .. } => (*claims, *slots) = (input.number(), input.number()),
        Entry::Forbidden { counted, .. } => *counted = input.number(),
        Entry::User { uid, .. } => *uid = input.number() as u32,
    }
}

fn change_id(input: &mut Input<'_>, id: EventId) -> EventId {
    match input.below(3) {
        0 => EventId::pack(input.number(), id.prefix(), id.tail()),
        1 => EventId::pack(id.ms(), Prefix::new(input.number() as u16).unwrap_or(id.prefix()), id.tail()),
        _ => EventId::pack(id.ms(), id.prefix(), input.number()),
    }
}

/// One shard under load.
struct Load {
    engine: Engine,
    entropy: Entropy,
    now: Now,
    ios: Vec<Io>,
    tokens: u64,
}

impl Load {
    fn new(mut engine: Engine, wall_us: i64) -> Load {
        let now = Now { wall_us, boot_us: 0 };
        engine.start(now, engine.shard().last_us());
        let mut load = Load { engine, entropy: Entropy::from_seed_u64(1), now, ios: Vec::new(), tokens: 0 };
        let toml = Policy::of_owner(WHO.uid).to_toml();
        load.submit(None, Operation::Configure { toml: &toml });
        load
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let names = ["a", "b", "c"];
        let name = names[input.below(names.len())];
        match input.below(8) {
            0 => self.submit(None, Operation::Onboard { name, notes: "notes" }),
            1 | 2 => self.claim(None, name, input.below(100)),
            3 => self.claim(None, name, input.below(METADATA_BYTES_MAX)),
            4 => {
                let of = names[input.below(names.len())];
                if let Some(event_id) = self.last_id(of) {
                    self.submit(None, Operation::Reference { corpus: name, items: &[(0, event_id)] });
                }
            }
            5 => {
                let Some(event_id) = self.last_id(name) else { return };
                if input.one_in(2) {
                    let reason_code = ReasonCode::FalseAlarm;
                    self.submit(None, Operation::Retract { corpus: name, event_id, reason_code });
                } else {
                    self.submit(None, Operation::Reactivate { event_id });
                }
            }
            6 => {
                self.now.boot_us += 60_000;
                self.now.wall_us += 60_000;
                self.engine.tick(self.now, &mut self.entropy);
            }
            _ => {}
        }
        self.now.wall_us += 100;
        self.engine.drain().for_each(drop);
    }

    fn last_id(&self, name: &str) -> Option<EventId> {
        let shard = self.engine.shard();
        shard.rows().last_id(shard.registry().of_name(name)?.prefix)
    }

    fn claim(&mut self, key: Option<u128>, corpus: &str, bytes: usize) {
        let metadata = vec![bytes as u8; bytes];
        let claim = Claim {
            event_key: "event",
            occurred_at_us: 1,
            owning_corpus: "",
            hosting_corpus: "",
            category: "fuzzed",
            taxonomy_version: 1,
            metadata: &metadata,
        };
        self.submit(key, Operation::Claim { corpus, items: &[claim], unless_within_us: None });
    }

    fn submit(&mut self, key: Option<u128>, operation: Operation<'_>) {
        self.tokens += 1;
        let at_us = self.now.wall_us.max(self.engine.shard().last_us());
        let own = u128::from(at_us as u64 / 1_000) << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.tokens);
        let is_replay = self.engine.shard().clock().mode() == ClockMode::Replay;
        let request = Request {
            token: self.tokens,
            stream: 0,
            principal: WHO,
            user: "fuzz",
            idempotency_key: key.unwrap_or(own),
            correlation_id: 0,
            rationale: "because",
            at_us: (is_replay && operation.is_mutation()).then_some(at_us),
            deadline_boot_us: None,
            at_least: &[],
            operation,
        };
        self.engine.submit(self.now, &mut self.entropy, &request);
    }

    /// Does all I/O.
    fn settle(&mut self, disk: &Disk) {
        for _ in 0..ROUNDS_MAX {
            let Some(io) = self.engine.next_io() else { break };
            let done = now_or_never(perform(disk, io));
            self.engine.complete(self.now, &mut self.entropy, done);
        }
        self.engine.drain().for_each(drop);
    }
}
