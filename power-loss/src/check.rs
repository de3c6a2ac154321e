//! Runs the real recovery on a crash image, and holds what it finds against what clients were told.
//!
//! Of every image: recovery succeeds; recovery that is itself cut short, at any of its writes, succeeds the next time; a
//! second recovery changes nothing; recovery writes nothing below the log's end; where the log goes round, nothing
//! of what was dropped is in a place that was taken again. Of what it recovers: every acknowledged
//! operation is there with what was acknowledged, every row that was shown is there, nothing is there that no client sent
//! or that was refused, nothing twice. Positions, sequences, ids and hashes are checked by recovery itself, which is the code that the daemon runs.

use crate::history::History;
use crate::image::{Image, run};
use crate::load::metadata;
use crate::retained::{self, first_position};
use crate::trace::{Event, Mark, Op, Sent, SentItem, Trace};
use claim_engine::engine::{Engine, OpenOptions};
use claim_engine::entropy::Entropy;
use claim_engine::log::batch::{self, Found};
use claim_engine::log::entry::{ClaimEntry, Entry, Record};
use claim_engine::log::layout::{BLOCK_BYTES, SEGMENT_HEADER_BYTES, SUPERBLOCK_AREA_BYTES};
use claim_engine::log::recovery::{RecoveryOptions, Visit, walk};
use claim_engine::log::superblock::{Superblock, is_segment_header};
use claim_engine::mutant::Mutation;
use std::collections::{HashMap, HashSet};
use xxhash_rust::xxh3::xxh3_64;

/// The most writes and flushes of a recovery between which it is cut.
const RECOVERY_OPERATIONS_MAX: u64 = 8;
/// The key of what a daemon does by itself.
const NO_KEY: u128 = 0;
/// One of so many images of a ring is searched for what was dropped.
const SEARCHED_OF: u64 = 4;

struct Acknowledged {
    instant: usize,
    key: u128,
    item: u16,
    event_id: u128,
    sequence: u64,
}

/// What a trace's clients did, by instant.
pub struct Expectations<'a> {
    sent: HashMap<u128, (usize, &'a Sent)>,
    metadata: HashMap<(u128, u16), u64>,
    acknowledged: Vec<Acknowledged>,
    seen: Vec<(usize, u128)>,
    /// What the segment archive had, by shard and position.
    archived: Vec<(usize, u16, u64)>,
    /// Keys that were sent once, and refused for certain.
    refused: Vec<(usize, u128)>,
    /// What lay where in the log.
    pub history: History,
    /// By shard: the incarnations of batches that are no recovery batches, with the instant of the first submission.
    incarnations: Vec<Vec<(usize, u64)>>,
}

impl<'a> Expectations<'a> {
    /// Reads a trace's marks, and the incarnations that its batches show.
    pub fn of(trace: &'a Trace, superblocks: &[(usize, Superblock)], mutation: Mutation) -> Expectations<'a> {
        let mut all = Expectations {
            sent: HashMap::new(),
            metadata: HashMap::new(),
            acknowledged: Vec::new(),
            seen: Vec::new(),
            archived: Vec::new(),
            refused: Vec::new(),
            history: History::of(trace, superblocks, mutation),
            incarnations: vec![Vec::new(); superblocks.len()],
        };
        let mut seen = HashSet::new();
        let mut sent_again = HashSet::new();
        for (instant, event) in trace.events.iter().enumerate() {
            match event {
                Event::Client(Mark::Sent { key, operation }) => {
                    if all.sent.contains_key(key) {
                        sent_again.insert(*key);
                    }
                    all.sent.entry(*key).or_insert((instant, operation));
                    if let Sent::Claim { items, .. } = operation {
                        for (n, item) in (0..).zip(items) {
                            let expected = || xxh3_64(&metadata(&item.event_key, item.metadata_bytes));
                            all.metadata.entry((*key, n)).or_insert_with(expected);
                        }
                    }
                }
                Event::Client(Mark::Acknowledged { key, item, event_id, sequence }) => {
                    let (key, item, event_id, sequence) = (*key, *item, *event_id, *sequence);
                    all.acknowledged.push(Acknowledged { instant, key, item, event_id, sequence });
                }
                Event::Client(Mark::Archived { shard, position }) => all.archived.push((instant, *shard, *position)),
                // Of a repetition an error may be decided before the daemon looks for the key.
                Event::Client(Mark::Refused { key }) if !sent_again.contains(key) => all.refused.push((instant, *key)),
                Event::Client(Mark::Seen { event_id }) if seen.insert(*event_id) => all.seen.push((instant, *event_id)),
                Event::Submitted(Op::Write { file, data, .. }) => {
                    let of_file = superblocks.iter().enumerate().filter(|(_, (index, _))| *index == *file as usize);
                    for (shard, (_, superblock)) in of_file {
                        let largest = superblock.geometry.batch_bytes_max;
                        let found = batch::find(data, &superblock.key, superblock.shard, largest, mutation);
                        if let Found::Batch { header, .. } = found
                            && !header.is_recovery
                            && all.incarnations[shard].last().is_none_or(|(_, last)| *last < header.incarnation)
                        {
                            all.incarnations[shard].push((instant, header.incarnation));
                        }
                    }
                }
                _ => {}
            }
        }
        all
    }

    /// By shard, the last position of which something was acknowledged before an instant.
    fn durable_positions(&self, shards: usize, instant: usize) -> Vec<u64> {
        let mut durable = vec![0; shards];
        for acked in self.acknowledged.iter().take_while(|acked| acked.instant < instant) {
            for (shard, position) in self.history.places(acked.key, acked.item, acked.instant) {
                durable[shard] = position.max(durable[shard]);
            }
        }
        durable
    }

    /// Operations that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }
}

/// The shards' files of a trace and their superblocks, in the shards' order.
pub fn superblocks(trace: &Trace) -> Result<Vec<(usize, Superblock)>, String> {
    let mut found = Vec::new();
    for (index, file) in trace.files.iter().enumerate().filter(|(_, file)| file.name.ends_with(".ledger")) {
        let superblock = run(Superblock::read(&Image::of(&file.content))).map_err(|e| format!("{}: {e}", file.name))?;
        found.push((index, superblock));
    }
    found.sort_by_key(|(_, superblock)| superblock.shard);
    if found.is_empty() { Err("the trace has no ledger file".into()) } else { Ok(found) }
}

/// What a record of a recovered log amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FoundRecord {
    shard: u16,
    event_id: u128,
    sequence: u64,
}

/// What a recovered shard holds.
#[derive(Debug, PartialEq, Eq)]
struct Recovered {
    rows: u64,
    corpora: usize,
    keys: u64,
    last_position: u64,
    globals: u64,
    incarnation: u64,
}

fn recovered(engine: &Engine) -> Recovered {
    let shard = engine.shard();
    Recovered {
        rows: shard.rows().count(),
        corpora: shard.registry().corpora().len(),
        keys: shard.key_count(),
        last_position: shard.last_position(),
        globals: shard.globals_applied(),
        incarnation: engine.status().incarnation,
    }
}

/// Checks the images of all shards at an instant. The error is a sentence: what is violated.
pub fn check(
    images: &[&Image<'_>],
    superblocks: &[(usize, Superblock)],
    expectations: &Expectations<'_>,
    instant: usize,
    mutation: Mutation,
    entropy: &mut Entropy,
) -> Result<(), String> {
    let mut records = HashMap::new();
    let mut ids = HashSet::new();
    let mut onboarded: Vec<HashSet<String>> = Vec::new();
    let mut globals = Vec::new();
    let mut governed: HashMap<u128, HashSet<u16>> = HashMap::new();
    let durable_positions = expectations.durable_positions(superblocks.len(), instant);
    let mut beginnings = Vec::new();
    for (number, (image, (_, expected))) in images.iter().zip(superblocks).enumerate() {
        let fail = |what: &str, error: String| format!("shard {number}: {what}: {error}");
        let superblock = run(Superblock::read(*image)).map_err(|e| fail("superblock", e.to_string()))?;
        if superblock.as_formatted() != expected.as_formatted() {
            return Err(fail("superblock", "it is another one".into()));
        }
        let options = OpenOptions { mutation, ..OpenOptions::default() };
        // A recovery that is cut short…
        let open = || run(Engine::open(*image, &superblock, options));
        let is_cut = entropy.below(3) == 0;
        if is_cut {
            image.cut_after(entropy.below(RECOVERY_OPERATIONS_MAX));
            let _ = open();
            image.after_cut(entropy);
        }
        // …one that is not…
        let (engine, opened) = open().map_err(|e| fail("recovery", e.to_string()))?;
        let first = recovered(&engine);
        globals.push(first.globals);
        let below = image.written().into_iter().find(|at| !is_cut && is_of_log(&superblock, opened.cut_at, *at));
        if let Some(below) = below {
            return Err(fail("recovery", format!("it wrote at {below}, below the log's end")));
        }
        let earlier = expectations.incarnations[number].iter().filter(|(at, _)| *at < instant);
        if let Some((_, earlier)) = earlier.max_by_key(|(_, incarnation)| incarnation)
            && first.incarnation <= *earlier
        {
            let text = format!("it goes on as incarnation {}, which batches on the disk have", first.incarnation);
            return Err(fail("recovery", text));
        }
        // …what it found…
        let mut names = HashSet::new();
        let mut reactivated = Vec::new();
        let end = run(walk(*image, &superblock, RecoveryOptions { mutation }, |visit| match visit {
            Visit::Record(raw, _) => {
                let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
                if matches_governing(&record, number as u16, expectations, instant, &mut governed)? {
                    return Ok(());
                }
                if let Entry::Reactivate { event_id } = record.entry {
                    reactivated.push((event_id.as_u128(), record.meta.timestamp_us));
                }
                match_record(&record, number as u16, expectations, instant, &mut records, &mut ids, &mut names)
            }
            Visit::Batch(_) => Ok(()),
        }))
        .map_err(|e| fail("content", e.to_string()))?;
        let mut archived = expectations.archived.iter().take_while(|(at, ..)| *at < instant);
        let is_ahead = |shard: u16, position: u64| usize::from(shard) == number && position >= first.last_position;
        if let Some((.., position)) = archived.find(|(_, shard, position)| is_ahead(*shard, *position)) {
            let end = first.last_position - 1;
            return Err(fail("archive", format!("it has the log up to {position}, and the log ends at {end}")));
        }
        // …what is gone of it…
        let retained = retained::Shard {
            number,
            image,
            superblock: &superblock,
            engine: &engine,
            reactivated: &reactivated,
            durable_position: durable_positions[number],
        };
        retained.check(&expectations.history, instant).map_err(|e| fail("retention", e))?;
        beginnings.push(first_position(&superblock));
        if superblock.origin.is_some() {
            names.extend(engine.shard().registry().corpora().iter().map(|corpus| corpus.name.clone()));
        }
        onboarded.push(names);
        drop(engine);
        // …and a second one.
        let (engine, again) = open().map_err(|e| fail("second recovery", e.to_string()))?;
        let second = recovered(&engine);
        // It has added its own record, and nothing else.
        let expected = Recovered { last_position: first.last_position + 1, incarnation: second.incarnation, ..first };
        if second != expected || again.cut_at != end.next_batch_at {
            return Err(fail("second recovery", format!("it found {second:?}, the first one {expected:?}")));
        }
        if superblock.geometry.is_ring() && entropy.below(SEARCHED_OF) == 0 {
            is_without_dropped(image, &superblock, mutation).map_err(|e| fail("ring", e))?;
        }
    }
    if let Some(ahead) = globals.iter().position(|applied| *applied > globals[0]) {
        return Err(format!("shard {ahead} is ahead of shard 0 in the global order: {globals:?}"));
    }
    for acked in expectations.acknowledged.iter().take_while(|acked| acked.instant < instant) {
        let Acknowledged { key, item, event_id, sequence, .. } = *acked;
        let (_, sent) = expectations.sent[&key];
        if let Sent::Onboard { name } = sent {
            if let Some(shard) = onboarded.iter().position(|names| !names.contains(name)) {
                return Err(format!("shard {shard}: the acknowledged corpus {name} is lost"));
            }
            continue;
        }
        if let Sent::Governing(operation) = sent {
            let shards = if operation.is_everywhere() { superblocks.len() } else { 1 };
            let has = |shard: usize| governed.get(&key).is_some_and(|shards| shards.contains(&(shard as u16)));
            if let Some(shard) = (0..shards).find(|shard| !has(*shard)) {
                return Err(format!("shard {shard}: the acknowledged {operation:?} is lost"));
            }
            continue;
        }
        // What was before the log's beginning was looked at there.
        let is_gone = || expectations.history.places(key, item, instant).any(|(shard, at)| at < beginnings[shard]);
        match records.get(&(key, item)) {
            None if is_gone() => {}
            None => return Err(format!("{sent:?} item {item} was acknowledged as {event_id:032x} and is lost")),
            Some(found) if event_id != 0 && (found.event_id, found.sequence) != (event_id, sequence) => {
                return Err(format!(
                    "{sent:?} item {item} was acknowledged as {event_id:032x} {sequence}, and is {found:?}"
                ));
            }
            Some(_) => {}
        }
    }
    for (_, event_id) in expectations.seen.iter().take_while(|(at, _)| *at < instant) {
        let is_gone =
            || expectations.history.places_of_row(*event_id, instant).any(|(shard, at)| at < beginnings[shard]);
        if !ids.contains(event_id) && !is_gone() {
            return Err(format!("row {event_id:032x} was shown to a client and is lost"));
        }
    }
    for (_, key) in expectations.refused.iter().take_while(|(at, _)| *at < instant) {
        if records.contains_key(&(*key, 0)) || governed.contains_key(key) {
            return Err(format!("{:?} was refused and has had its effect", expectations.sent[key].1));
        }
    }
    Ok(())
}

/// Whether a place in the file belongs to a log that ends at a log offset.
fn is_of_log(superblock: &Superblock, end: u64, file_offset: u64) -> bool {
    let geometry = superblock.geometry;
    let first = geometry.segment_start(superblock.first_segment());
    let Some(at) = file_offset.checked_sub(SUPERBLOCK_AREA_BYTES) else { return false };
    match geometry.is_ring() {
        true => {
            let ring_bytes = geometry.ring_segments * geometry.segment_bytes;
            (at + ring_bytes - first % ring_bytes) % ring_bytes < end - first
        }
        false => at < end,
    }
}

/// A place of a ring that has the header of its segment has no batch of what was dropped, whatever segment that was in.
fn is_without_dropped(image: &Image<'_>, superblock: &Superblock, mutation: Mutation) -> Result<(), String> {
    let (geometry, first) = (superblock.geometry, superblock.first_segment());
    let begins_with = superblock.origin.map_or(0, |origin| origin.start.next_number);
    for segment in first..geometry.segments_end(first) {
        let file_offset = geometry.file_offset(geometry.segment_start(segment));
        let header = image.bytes(file_offset, SEGMENT_HEADER_BYTES as usize);
        if !is_segment_header(&header, superblock, segment) {
            continue;
        }
        let bytes = image.bytes(file_offset, geometry.segment_bytes as usize);
        for at in (SEGMENT_HEADER_BYTES as usize..bytes.len()).step_by(BLOCK_BYTES as usize) {
            let largest = geometry.batch_bytes_max;
            if batch::claimed_bytes(&bytes[at..], largest).is_none() {
                continue;
            }
            let found = batch::find(&bytes[at..], &superblock.key, superblock.shard, largest, mutation);
            if let Found::Batch { header, .. } = found
                && header.number < begins_with
            {
                let number = header.number;
                return Err(format!("segment {segment} has batch {number}, and the log begins with {begins_with}"));
            }
        }
    }
    Ok(())
}

/// Whether a record is of what concerns the whole ledger; every shard has it once.
fn matches_governing(
    record: &Record<'_>,
    shard: u16,
    expectations: &Expectations<'_>,
    instant: usize,
    governed: &mut HashMap<u128, HashSet<u16>>,
) -> Result<bool, String> {
    let key = record.meta.idempotency_key;
    let sent = expectations.sent.get(&key).filter(|(at, _)| *at < instant).map(|(_, sent)| *sent);
    let Some(Sent::Governing(operation)) = sent else { return Ok(false) };
    if operation.operation() != record.entry.operation() {
        return Err(format!("key {key:032x}: {:?} was never sent, but {operation:?}", record.entry));
    }
    if !governed.entry(key).or_default().insert(shard) {
        return Err(format!("shard {shard}: {operation:?} has had its effect twice"));
    }
    Ok(true)
}

/// Holds a record against what clients sent.
fn match_record(
    record: &Record<'_>,
    shard: u16,
    expectations: &Expectations<'_>,
    instant: usize,
    records: &mut HashMap<(u128, u16), FoundRecord>,
    ids: &mut HashSet<u128>,
    names: &mut HashSet<String>,
) -> Result<(), String> {
    let (mut key, mut item) = (record.meta.idempotency_key, record.meta.item);
    if let Entry::Carry { claim, .. } = &record.entry {
        let of = expectations.history.claim_of(claim.event_id.as_u128());
        (key, item) = of.ok_or_else(|| format!("{:?} is of no claim", record.entry))?;
    }
    // What a daemon does by itself; the minting of prefixes carries the key of the onboarding that needed them, and a
    // configuration one of the daemon's.
    let is_own = matches!(record.entry, Entry::PrefixAllocation { .. } | Entry::Configuration { .. });
    if key == NO_KEY || is_own {
        return Ok(());
    }
    let sent = expectations.sent.get(&key).filter(|(at, _)| *at < instant).map(|(_, sent)| *sent);
    let unsent = || format!("key {key:032x} item {item}: {:?} was never sent", record.entry);
    let Some(sent) = sent else { return Err(unsent()) };
    let mut found = FoundRecord { shard, event_id: 0, sequence: 0 };
    let is_right = match (&record.entry, sent) {
        (Entry::Claim(claim), Sent::Claim { items, .. }) => {
            found.event_id = claim.event_id.as_u128();
            found.sequence = claim.claim_sequence;
            if !ids.insert(found.event_id) {
                return Err(format!("{:032x} stands for two rows", found.event_id));
            }
            is_as_sent(claim, items, (key, item), expectations)
        }
        // It is there once more, as it was.
        (Entry::Carry { claim, .. }, Sent::Claim { items, .. }) => {
            let is_right = is_as_sent(claim, items, (key, item), expectations);
            return if is_right { Ok(()) } else { Err(format!("{} For that key {sent:?} was sent.", unsent())) };
        }
        (Entry::Reference { event_id, .. }, Sent::Reference { event_id: sent, .. })
        | (Entry::Tombstone { event_id, .. }, Sent::Retract { event_id: sent })
        | (Entry::Reactivate { event_id }, Sent::Reactivate { event_id: sent }) => event_id.as_u128() == *sent,
        (Entry::Onboard { name, .. }, Sent::Onboard { name: sent }) => {
            names.insert((*name).to_owned());
            // Every shard logs it.
            return if name == sent { Ok(()) } else { Err(unsent()) };
        }
        _ => false,
    };
    if !is_right {
        return Err(format!("{} For that key {sent:?} was sent.", unsent()));
    }
    match records.insert((key, item), found) {
        None => Ok(()),
        Some(first) => {
            Err(format!("key {key:032x} item {item} has had its effect twice: {first:?}, {found:?}, {sent:?}"))
        }
    }
}

fn is_as_sent(claim: &ClaimEntry<'_>, items: &[SentItem], (key, item): (u128, u16), all: &Expectations<'_>) -> bool {
    items.get(usize::from(item)).is_some_and(|sent| sent.event_key == claim.event_key)
        && all.metadata.get(&(key, item)) == Some(&xxh3_64(claim.metadata))
}
