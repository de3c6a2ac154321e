//! One disk image per row of the recovery table, and what recovery makes of it.

use crate::corpus::Prefix;
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::log::batch::{BatchHeader, Found, find, seal};
use crate::log::end::LogEnd;
use crate::log::entry::{ClaimEntry, Entry, Meta, Principal, Record};
use crate::log::io::{Io, IoDone, perform};
use crate::log::layout::{BLOCK_BYTES, Geometry, INCARNATIONS_MAX};
use crate::log::recovery::{Beyond, Here, RecoveryError, RecoveryOptions, VERDICTS, Verdict, walk};
use crate::log::superblock::Superblock;
use crate::log::writer::{self, LogWriter};
use crate::mutant::Mutation;
use crate::storage::sim::SimDisk;
use std::collections::BTreeSet;
use uuid::Uuid;

const GEOMETRY: Geometry = Geometry { segment_bytes: 96 << 10, batch_bytes_max: 16 << 10, ring_segments: 0 };
const SEGMENTS: u64 = 3;

fn superblock() -> Superblock {
    Superblock::of_new_ledger(Uuid::from_u128(5), [3; 32], GEOMETRY)
}

fn record(entry: Entry<'_>) -> Record<'_> {
    let meta = Meta {
        timestamp_us: 1,
        idempotency_key: 0,
        correlation_id: 0,
        fingerprint: 0,
        principal: Principal::default(),
        item: 0,
        corpus: Prefix::new(1),
        rationale: "",
    };
    Record { meta, entry }
}

/// A log on a disk, written batch by batch.
struct Log {
    disk: SimDisk,
    entropy: Entropy,
    writer: LogWriter,
    /// Number, file offset and bytes of each batch.
    batches: Vec<(u64, u64, Vec<u8>)>,
}

impl Log {
    fn new() -> Log {
        let (disk, mut entropy) = (SimDisk::default(), Entropy::from_seed_u64(1));
        let superblock = superblock();
        disk.run(&mut entropy, u64::MAX, writer::format(&disk, &superblock)).unwrap().unwrap();
        let writer =
            LogWriter::new(&superblock, LogEnd::at_start(&superblock, 1, Mutation::NONE), None, Mutation::NONE);
        let mut log = Log { disk, entropy, writer, batches: Vec::new() };
        log.writer.append_recovery(&record(Entry::Recovery { incarnation: 1, cut_at: 4096 }));
        log.write(1);
        log.land_all();
        while log.writer.segments().1 < SEGMENTS {
            log.writer.tick(0);
            let Some(io @ Io::Prepare { .. }) = log.writer.next_io() else { panic!("a segment is due") };
            let work = perform(&log.disk, io);
            let done = log.disk.run(&mut log.entropy, u64::MAX, work).unwrap();
            log.writer.complete(done, 0);
        }
        log
    }

    /// Appends a record that fills most of a batch.
    fn append(&mut self) {
        let claim = ClaimEntry {
            event_id: EventId::pack(1, Prefix::new(1).unwrap(), 7),
            claim_sequence: 1,
            occurred_at_us: 1,
            taxonomy_version: 1,
            event_key: "key",
            owning_corpus: "",
            hosting_corpus: "",
            category: "c",
            over_budget: false,
            incident_active: false,
            metadata: &[7; 9_000],
        };
        self.writer.append(&record(Entry::Claim(claim)));
    }

    /// Submits up to `count` batches; they are on disk, and the writer does not know it yet.
    fn write(&mut self, count: usize) {
        for _ in 0..count {
            let Some(Io::Write { number, file_offset, batch, .. }) = self.writer.next_io() else {
                panic!("a batch is due")
            };
            self.disk.overwrite(file_offset, &batch);
            self.batches.push((number, file_offset, batch));
        }
    }

    fn land_all(&mut self) {
        for (number, ..) in self.batches.clone() {
            self.writer.complete(IoDone::Write { number, batch: Vec::new(), result: Ok(()) }, 0);
        }
    }

    /// One batch, durable before the next is submitted.
    fn write_durably(&mut self) {
        self.append();
        self.write(1);
        self.land_all();
    }

    fn zero(&self, from: u64, bytes: u64) {
        self.disk.overwrite(from, &vec![0; bytes as usize]);
    }
}

/// What stands before the batch in question, which is the first of segment 1, and where that one is.
fn prefix() -> Log {
    let mut log = Log::new();
    while log.batches.last().unwrap().1 < GEOMETRY.file_offset(GEOMETRY.segment_start(1)) {
        log.write_durably();
    }
    log
}

fn image(here: Here, beyond: Beyond) -> (Log, u64) {
    let mut log = prefix();
    // The batch in question is the last one written so far: it is submitted, and on disk.
    let (number, at, batch) = log.batches.last().cloned().unwrap();
    let after = at + batch.len() as u64;
    match beyond {
        Beyond::Nothing => {}
        Beyond::RecordsIt => log.write_durably(),
        Beyond::Siblings => {
            // Made as if in flight together: the same log again, but for what it says is durable.
            let header = BatchHeader {
                shard: 0,
                is_recovery: false,
                is_sealing: false,
                is_last: false,
                record_count: 0,
                number: number + 1,
                incarnation: 1,
                first_position: number + 1,
                content_bytes: 0,
                total_bytes: 0,
                durable_position: number - 1,
                durable_batch: number - 1,
                previous_hash: [1; 32],
            };
            let mut sibling = vec![0; crate::log::batch::BATCH_HEADER_BYTES];
            seal(&mut sibling, &superblock().key, &header, Mutation::NONE);
            log.disk.overwrite(after + BLOCK_BYTES, &sibling);
        }
    }
    let segment_header = GEOMETRY.file_offset(GEOMETRY.segment_start(1));
    match here {
        Here::Chained => {}
        Here::ChainedWithoutSegment => log.zero(segment_header, BLOCK_BYTES),
        Here::Invalid => log.disk.flip_bit(at + 200, 3),
        Here::Zeroes => log.zero(at, batch.len() as u64),
        Here::NoSegment => {
            log.zero(segment_header, BLOCK_BYTES);
            log.zero(at, batch.len() as u64);
        }
        Here::Unchained => {
            let header = BatchHeader {
                shard: 0,
                is_recovery: false,
                is_sealing: false,
                is_last: false,
                record_count: 0,
                number,
                incarnation: 1,
                first_position: number,
                content_bytes: 0,
                total_bytes: 0,
                durable_position: number - 1,
                durable_batch: number - 1,
                previous_hash: [2; 32],
            };
            let mut other = vec![0; crate::log::batch::BATCH_HEADER_BYTES];
            seal(&mut other, &superblock().key, &header, Mutation::NONE);
            log.zero(at, batch.len() as u64);
            log.disk.overwrite(at, &other);
        }
    }
    (log, number)
}

#[test]
fn every_row_of_the_table_happens_and_is_judged() {
    let distinct: BTreeSet<_> = VERDICTS.iter().map(|(h, b, _)| format!("{h:?}{b:?}")).collect();
    assert_eq!(distinct.len(), 6 * 3, "the table is exhaustive");
    for (here, beyond, expected) in VERDICTS {
        let (log, number) = image(here, beyond);
        let mut entropy = Entropy::from_seed_u64(2);
        let superblock = superblock();
        let walked = walk(&log.disk, &superblock, RecoveryOptions::default(), |_| Ok(()));
        let result = log.disk.run(&mut entropy, u64::MAX, walked).unwrap();
        match (expected, result) {
            (Verdict::Replay, Ok(end)) => assert!(end.next_number > number, "{here:?} {beyond:?}: {end:?}"),
            (Verdict::Cut, Ok(end)) => assert_eq!(end.next_number, number, "{here:?} {beyond:?}"),
            (Verdict::Corrupt, Err(RecoveryError::Corrupt(damage))) => {
                assert_eq!((damage.here, damage.batch, damage.segment), (here, number, 1), "{here:?} {beyond:?}");
            }
            (expected, result) => panic!("{here:?} {beyond:?}: expected {expected:?}, got {result:?}"),
        }
    }
}

#[test]
fn a_file_that_was_cut_short_is_refused() {
    let log = prefix();
    let superblock = superblock();
    let mut entropy = Entropy::from_seed_u64(2);
    for bytes in
        [GEOMETRY.file_bytes(SEGMENTS) - BLOCK_BYTES, GEOMETRY.file_bytes(1) + BLOCK_BYTES, GEOMETRY.file_offset(0)]
    {
        log.disk.truncate(bytes);
        let walked = walk(&log.disk, &superblock, RecoveryOptions::default(), |_| Ok(()));
        let result = log.disk.run(&mut entropy, u64::MAX, walked).unwrap();
        assert!(
            matches!(result, Err(RecoveryError::CutShort { found_bytes, .. }) if found_bytes == bytes),
            "{result:?}"
        );
    }
}

#[test]
fn damage_far_before_the_end_is_found_wherever_it_is() {
    let mut log = prefix();
    for _ in 0..12 {
        log.write_durably();
    }
    let superblock = superblock();
    let last = log.batches.len() - 1;
    for (i, (number, at, batch)) in log.batches.iter().enumerate() {
        log.zero(*at, batch.len() as u64);
        let mut entropy = Entropy::from_seed_u64(2);
        let walked = walk(&log.disk, &superblock, RecoveryOptions::default(), |_| Ok(()));
        let result = log.disk.run(&mut entropy, u64::MAX, walked).unwrap();
        // Only the last batch, which none records as durable, can be taken for a torn tail.
        match result {
            Ok(end) => assert_eq!((end.next_number, i), (*number, last)),
            Err(RecoveryError::Corrupt(damage)) => assert_eq!((damage.batch, damage.file_offset), (*number, *at)),
            Err(other) => panic!("batch {number}: {other}"),
        }
        log.disk.overwrite(*at, batch);
    }
}

#[test]
fn an_incarnation_that_leaves_none_to_follow_does_not_chain() {
    let mut log = prefix();
    let (number, at, batch) = log.batches.last().cloned().unwrap();
    let superblock = superblock();
    let Found::Batch { header, .. } = find(&batch, &superblock.key, 0, GEOMETRY.batch_bytes_max, Mutation::NONE) else {
        panic!("the batch is whole")
    };
    for (incarnation, chains) in [(2, true), (INCARNATIONS_MAX, false), (u64::MAX, false)] {
        let mut last = batch[..header.content_bytes as usize].to_vec();
        seal(&mut last, &superblock.key, &BatchHeader { is_recovery: true, incarnation, ..header }, Mutation::NONE);
        log.disk.overwrite(at, &last);
        let walked = walk(&log.disk, &superblock, RecoveryOptions::default(), |_| Ok(()));
        let end = log.disk.run(&mut log.entropy, u64::MAX, walked).unwrap().unwrap();
        assert_eq!(end.next_number == number + 1, chains, "incarnation {incarnation}: {end:?}");
    }
}

#[test]
fn a_ledger_whose_first_segment_has_no_header_is_refused_and_not_begun_anew() {
    let log = Log::new();
    let mut entropy = Entropy::from_seed_u64(3);
    // Not even its only batch is there to be a witness.
    log.zero(GEOMETRY.file_offset(0), 2 * BLOCK_BYTES);
    let superblock = superblock();
    let walked = walk(&log.disk, &superblock, RecoveryOptions::default(), |_| Ok(()));
    let walked = log.disk.run(&mut entropy, u64::MAX, walked).unwrap();
    assert!(matches!(walked, Err(RecoveryError::NoFirstSegment { .. })), "{walked:?}");
}

#[test]
fn a_file_that_is_cut_behind_a_damaged_header_is_refused() {
    let log = Log::new();
    let mut entropy = Entropy::from_seed_u64(3);
    log.zero(GEOMETRY.file_offset(GEOMETRY.segment_start(1)), BLOCK_BYTES);
    log.disk.truncate(GEOMETRY.file_offset(GEOMETRY.segment_start(2)) + BLOCK_BYTES);
    let superblock = superblock();
    let walked = walk(&log.disk, &superblock, RecoveryOptions::default(), |_| Ok(()));
    let walked = log.disk.run(&mut entropy, u64::MAX, walked).unwrap();
    assert!(matches!(walked, Err(RecoveryError::CutShort { .. })), "{walked:?}");
}
