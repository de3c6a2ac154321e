//! Scans of a ledger whose rows lie in sealed segments: close together, far apart, damaged.

use super::faults::{Bench, GEOMETRY, claim_of};
use crate::command::{Claim, Operation, Outcome};
use crate::error::{Code, Refusal};
use crate::id::EventId;
use crate::log::batch;
use crate::log::layout::BLOCK_BYTES;
use crate::row::RowView;
use crate::sealed::Stretch;
use std::collections::BTreeMap;

const LIMIT: usize = 10;
/// No page of a scan reads so often.
const READS_OF_A_PAGE_MAX: usize = 16;

/// A ledger, and which rows of it were claimed, by corpus: their ids and times.
struct Scanning {
    bench: Bench,
    token: u64,
    rows: BTreeMap<&'static str, Vec<(EventId, i64)>>,
}

impl Scanning {
    /// A ledger with a second corpus, `rare`.
    fn new() -> Scanning {
        let mut scanning = Scanning { bench: Bench::new(), token: 1_000, rows: BTreeMap::new() };
        scanning.ask(Operation::Onboard { name: "rare", notes: "" });
        scanning
    }

    fn ask(&mut self, operation: Operation<'_>) -> Outcome {
        self.token += 1;
        self.bench.submit(self.token, operation, None);
        self.bench.settle();
        self.bench.tick();
        self.bench.settle();
        let mut replies = self.bench.replies();
        assert_eq!(replies.len(), 1);
        replies.remove(0).outcome
    }

    fn claim(&mut self, corpus: &'static str, bytes: usize) {
        self.bench.now.wall_us += 1_000;
        let metadata = vec![9; bytes];
        let items = [claim_of(&metadata)];
        match self.ask(Operation::Claim { corpus, items: &items, unless_within_us: None }) {
            Outcome::Claimed(claim) => {
                let row = (claim.event_id, claim.claim_timestamp_us);
                self.rows.entry(corpus).or_default().push(row);
            }
            other => panic!("a claim is answered {other:?}"),
        }
    }

    /// The rows of a scan, page by page, and what refused the rest. No page reads much.
    fn scan(&mut self, corpus: &str, until_us: Option<i64>) -> (Vec<EventId>, Option<Refusal>) {
        let mut found: Vec<EventId> = Vec::new();
        loop {
            self.bench.reads.clear();
            let after = found.last().copied();
            match self.ask(Operation::Scan { corpus, since_us: None, until_us, after, limit: LIMIT }) {
                Outcome::Rows { rows, more, log } => {
                    assert!(rows.len() <= LIMIT && !(more && rows.is_empty()));
                    assert!(rows.iter().all(|row| is_at_hand_if_verified(row, log.as_ref())));
                    found.extend(rows.iter().map(|row| row.event_id));
                    assert!(self.bench.reads.len() <= READS_OF_A_PAGE_MAX, "{:?}", self.bench.reads);
                    if !more {
                        return (found, None);
                    }
                }
                Outcome::Refused(refusal) => return (found, Some(refusal)),
                other => panic!("a scan is answered {other:?}"),
            }
        }
    }

    fn sealed_segments(&self) -> usize {
        self.bench.engine.shard().rows().catalog().segments().len()
    }
}

/// Whether what was read for a page has the record of a row, if it is said to be verified there.
fn is_at_hand_if_verified(row: &RowView, log: Option<&Stretch>) -> bool {
    log.is_none_or(|log| log.has_verified(row.claim_at) == log.record(row.claim_at).is_some())
}

#[test]
fn a_record_that_the_end_of_a_piece_cuts_is_not_said_to_be_verified() {
    let mut ledger = Scanning::new();
    let mut rare: Vec<EventId> = Vec::new();
    for bytes in (300..2_400).step_by(70) {
        let metadata = vec![9; bytes];
        let keys: Vec<_> = (0..12_000 / bytes).map(|n| format!("{bytes}-{n}")).collect();
        let items: Vec<_> = keys.iter().map(|key| Claim { event_key: key, ..claim_of(&metadata) }).collect();
        let claim = Operation::Claim { corpus: "rare", items: &items, unless_within_us: None };
        let Outcome::ClaimedItems(claimed) = ledger.ask(claim) else { panic!("a batch is claimed") };
        rare.extend(claimed.into_iter().map(|claimed| claimed.expect("a claim").event_id));
    }
    (0..40).for_each(|_| ledger.claim("customer", 4_000));
    let mut from_pieces = 0;
    for limit in [1, 2] {
        for after in &rare[..rare.len() - limit] {
            let scan = Operation::Scan { corpus: "rare", since_us: None, until_us: None, after: Some(*after), limit };
            let Outcome::Rows { rows, log, .. } = ledger.ask(scan) else { panic!("a scan has rows") };
            assert!(rows.iter().all(|row| is_at_hand_if_verified(row, log.as_ref())), "after {after}");
            from_pieces += usize::from(log.is_some_and(|log| rows.iter().all(|row| log.has_verified(row.claim_at))));
        }
    }
    assert!(from_pieces > rare.len() / 2, "{from_pieces}");
}

#[test]
fn rows_that_lie_far_apart_are_read_one_by_one() {
    let mut ledger = Scanning::new();
    // Some in segments of their own, two in one, and a dense part amid them.
    for gap in [0, 30, 7, 3, 60, 9, 2, 0, 0, 0, 0, 0, 0, 25, 4] {
        (0..gap).for_each(|_| ledger.claim("customer", 4_000));
        ledger.claim("rare", 10);
    }
    (0..40).for_each(|_| ledger.claim("customer", 4_000));
    assert!(ledger.sealed_segments() >= 7, "{}", ledger.sealed_segments());
    let rare: Vec<_> = ledger.rows["rare"].iter().map(|(id, _)| *id).collect();
    assert_eq!(ledger.scan("rare", None), (rare.clone(), None));
    let (_, until) = ledger.rows["rare"][4];
    assert_eq!(ledger.scan("rare", Some(until)), (rare[..4].to_vec(), None));
    let customers: Vec<_> = ledger.rows["customer"].iter().map(|(id, _)| *id).collect();
    assert_eq!(ledger.scan("customer", None), (customers, None));
    // One that is alone in a segment takes a page of the index and its own blocks, not the segment's log.
    ledger.bench.reads.clear();
    let after = Some(rare[3]);
    ledger.bench.engine.shard().rows().catalog().forget();
    ledger.ask(Operation::Scan { corpus: "rare", since_us: None, until_us: None, after, limit: 1 });
    let bytes: u64 = ledger.bench.reads.iter().map(|(_, bytes)| bytes).sum();
    assert!((BLOCK_BYTES..=8 * BLOCK_BYTES).contains(&bytes), "{:?}", ledger.bench.reads);
}

#[test]
fn a_segment_that_lacks_rows_is_never_scanned_as_if_it_had_none() {
    for corpus in ["customer", "rare"] {
        let mut ledger = Scanning::new();
        for _ in 0..24 {
            ledger.claim("customer", 4_000);
            ledger.claim("rare", 10);
        }
        assert!(ledger.sealed_segments() >= 2);
        let of_corpus: Vec<_> = ledger.rows[corpus].iter().map(|(id, _)| *id).collect();
        assert_eq!(ledger.scan(corpus, None), (of_corpus.clone(), None));
        // From its middle on the first segment is as if nothing had been written there, up to its index.
        let rows = ledger.bench.engine.shard().rows();
        let sealed = &rows.catalog().segments()[0].summary;
        let (middle, end) = (sealed.bytes / 2 / BLOCK_BYTES * BLOCK_BYTES, sealed.bytes / BLOCK_BYTES * BLOCK_BYTES);
        let at = GEOMETRY.file_offset(middle);
        ledger.bench.disk.overwrite(at, &vec![0; (end - middle) as usize]);
        rows.catalog().forget();
        let (found, refusal) = ledger.scan(corpus, None);
        let refusal = refusal.expect("rows are missing");
        assert_eq!(refusal.code, Code::ShardFailed);
        assert_eq!(found, of_corpus[..found.len()]);
        assert!(!found.is_empty() && found.len() < of_corpus.len(), "{corpus}: {} rows, {refusal:?}", found.len());
    }
}

#[test]
fn a_scan_reads_nothing_behind_its_end() {
    let mut ledger = Scanning::new();
    (0..200).for_each(|_| ledger.claim("customer", 4_000));
    let until = ledger.rows["customer"][30].1;
    let first: Vec<_> = ledger.rows["customer"][..30].iter().map(|(id, _)| *id).collect();
    assert_eq!(ledger.scan("customer", Some(until)), (first, None));
    let summary = |at: usize| &ledger.bench.engine.shard().rows().catalog().segments()[at].summary;
    let next = (0..).find(|at| summary(*at).times_us.0 >= until).expect("many are sealed");
    let start = GEOMETRY.segment_start(summary(next).segment);
    assert!(ledger.bench.reads.iter().all(|(at, _)| *at < start), "{:?}", ledger.bench.reads);
}

#[test]
fn a_row_whose_record_is_damaged_is_never_said_not_to_be_there() {
    let mut ledger = Scanning::new();
    let keys: Vec<_> = (0..60).map(|n| format!("key-{n}")).collect();
    let items: Vec<_> = keys.iter().map(|key| Claim { event_key: key, ..claim_of(&[]) }).collect();
    // Two batches; the first has a row that the index names on its second block.
    for items in [&items[..40], &items[40..]] {
        let claim = Operation::Claim { corpus: "rare", items, unless_within_us: None };
        let Outcome::ClaimedItems(claimed) = ledger.ask(claim) else { panic!("a batch is claimed") };
        assert!(claimed.iter().all(Result::is_ok));
    }
    (0..40).for_each(|_| ledger.claim("customer", 4_000));
    let scan = Operation::Scan { corpus: "rare", since_us: None, until_us: None, after: None, limit: 60 };
    let Outcome::Rows { rows, .. } = ledger.ask(scan) else { panic!("a scan has rows") };
    assert_eq!(rows.len(), 60);
    let mut damaged = 0;
    for row in rows.iter().step_by(3) {
        for byte in 0..48 {
            let at = GEOMETRY.file_offset(row.claim_at) + byte;
            ledger.bench.disk.flip_bit(at, 3);
            ledger.bench.engine.shard().rows().catalog().forget();
            for sought in [rows[0].event_id, row.event_id, rows[59].event_id] {
                match ledger.ask(Operation::Lookup { event_id: sought }) {
                    Outcome::Row(found) => assert_eq!(found.view.event_id, sought),
                    Outcome::Refused(refusal) => {
                        assert_eq!(refusal.code, Code::ShardFailed, "byte {byte}: {refusal:?}");
                        damaged += u64::from(sought == row.event_id);
                    }
                    other => panic!("a lookup is answered {other:?}"),
                }
            }
            ledger.bench.disk.flip_bit(at, 3);
        }
    }
    assert!(damaged >= 20 * 48, "{damaged}");
    // Nor is a whole batch passed over for what its header says.
    let batch_at = GEOMETRY.file_offset(rows[40].claim_at) / BLOCK_BYTES * BLOCK_BYTES;
    for bit in 0..8 * batch::BATCH_HEADER_BYTES as u64 {
        ledger.bench.disk.flip_bit(batch_at + bit / 8, (bit % 8) as u32);
        ledger.bench.engine.shard().rows().catalog().forget();
        for sought in [&rows[40], &rows[50], &rows[59]].map(|row| row.event_id) {
            match ledger.ask(Operation::Lookup { event_id: sought }) {
                Outcome::Row(found) => assert_eq!(found.view.event_id, sought),
                Outcome::Refused(refusal) => assert_eq!(refusal.code, Code::ShardFailed, "bit {bit}: {refusal:?}"),
                other => panic!("a lookup is answered {other:?}"),
            }
        }
        let (found, refusal) = ledger.scan("rare", None);
        let is_right = refusal.is_some() || found.iter().copied().eq(rows.iter().map(|row| row.event_id));
        assert!(is_right, "bit {bit}: {} rows", found.len());
        ledger.bench.disk.flip_bit(batch_at + bit / 8, (bit % 8) as u32);
    }
}
