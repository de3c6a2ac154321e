//! Rows that outlive their quarter: however many there are, whatever became of them, they can be looked up with all that is kept of
//! them once the segments that they came from are freed.

use super::machine::Machine;
use crate::command::{Claim, Claimed, Operation, Outcome, Request};
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::log::entry::{Entry, Meta, Principal, Record};
use crate::log::layout::{BLOCK_BYTES, Geometry};
use crate::log::superblock::ClockMode;
use crate::policy::Policy;
use crate::retention::{Dropped, Kept, QuarterSeal};
use crate::row::{ReasonCode, RowState};
use crate::sealed::{Catalog, Unread};
use crate::shard::Shard;
use crate::shard::rows::Found;
use crate::time::{DAY_US, Quarter};

const OWNER: Principal = Principal { uid: 1000, gid: 100, pid: 42 };
/// 2020-01-01.
const START_US: i64 = 1_577_836_800_000_000;
/// Requests that are under way at once.
const AT_ONCE: usize = 16;

/// A ledger of one shard, whose rows are kept for a year.
pub(super) struct Ledger {
    pub machine: Machine,
    next: u64,
}

impl Ledger {
    pub fn new(clock: ClockMode) -> Ledger {
        let geometry = Geometry { segment_bytes: 1 << 20, batch_bytes_max: 128 << 10, ring_segments: 0 };
        let entropy = Entropy::from_seed_u64(1);
        let machine = Machine::with_geometry(geometry, clock, 1, entropy, 1, None, START_US);
        let mut ledger = Ledger { machine, next: 0 };
        ledger.machine.archive_is_complete();
        let toml = Policy::of_owner(OWNER.uid).to_toml().replace("years = 4", "years = 1");
        ledger.ask(&Operation::Configure { toml: &toml });
        for name in ["alpha", "beta"] {
            ledger.ask(&Operation::Onboard { name, notes: "" });
        }
        ledger
    }

    /// Days go by since it began.
    pub fn go_to(&mut self, day: i64) {
        let to_us = START_US + day * DAY_US;
        self.machine.now.boot_us += to_us - self.machine.now.wall_us;
        self.machine.now.wall_us = to_us;
    }

    fn submit(&mut self, operation: &Operation<'_>) {
        self.next += 1;
        let at_us = self.machine.now.wall_us;
        let is_replay = self.machine.engine(0).expect("it runs").superblock().clock == ClockMode::Replay;
        let key = ((at_us / 1_000) as u128) << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.next);
        let request = Request {
            token: self.next,
            stream: 0,
            principal: OWNER,
            user: "owner",
            idempotency_key: key,
            correlation_id: 0,
            rationale: "because",
            at_us: is_replay.then_some(at_us),
            deadline_boot_us: None,
            at_least: &[],
            operation: *operation,
        };
        self.machine.submit(0, &request);
    }

    fn settle(&mut self) -> Vec<Outcome> {
        self.machine.settle().expect("it comes to rest");
        self.machine.take_replies().into_iter().map(|(_, reply)| reply.outcome).collect()
    }

    fn ask(&mut self, operation: &Operation<'_>) -> Outcome {
        self.submit(operation);
        let outcome = self.settle().pop().expect("an answer");
        assert!(!matches!(outcome, Outcome::Refused(_)), "{operation:?}: {outcome:?}");
        outcome
    }

    pub fn claim(&mut self, count: usize, metadata: &[u8]) -> Vec<EventId> {
        let keys: Vec<_> = (0..count).map(|n| format!("event-{}-{n}", self.next)).collect();
        let mut ids = Vec::new();
        for event_key in &keys {
            let items = [Claim {
                event_key,
                occurred_at_us: START_US,
                owning_corpus: "",
                hosting_corpus: "",
                category: "c",
                taxonomy_version: 1,
                metadata,
            }];
            self.submit(&Operation::Claim { corpus: "alpha", items: &items, unless_within_us: None });
            if self.next.is_multiple_of(AT_ONCE as u64) {
                ids.extend(self.settle());
                self.machine.tick();
            }
        }
        ids.extend(self.settle());
        let id = |outcome| match outcome {
            Outcome::Claimed(Claimed { event_id, .. }) => event_id,
            other => panic!("a claim is answered {other:?}"),
        };
        ids.into_iter().map(id).collect()
    }

    fn each(&mut self, ids: &[EventId], operation: impl Fn(EventId) -> Operation<'static>) {
        for ids in ids.chunks(AT_ONCE) {
            ids.iter().for_each(|id| self.submit(&operation(*id)));
            self.machine.tick();
            for outcome in self.settle() {
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            }
        }
    }

    pub fn retract(&mut self, ids: &[EventId]) {
        let reason_code = ReasonCode::FalseAlarm;
        self.each(ids, |event_id| Operation::Retract { corpus: "alpha", event_id, reason_code });
    }

    /// Claims rows of 2020-Q1 that are gone in it, and back in 2020-Q3.
    fn claim_and_bring_back(&mut self, count: usize) -> Vec<EventId> {
        self.go_to(31);
        let ids = self.claim(count, &[]);
        self.retract(&ids);
        self.go_to(213);
        self.reactivate(&ids);
        ids
    }

    pub fn reactivate(&mut self, ids: &[EventId]) {
        self.each(ids, |event_id| Operation::Reactivate { event_id });
    }

    /// Looks at what is due, until a quarter is dropped.
    fn drop_through(&mut self, last: &str, ticks_max: u32) {
        for _ in 0..ticks_max {
            if self.seals().last().is_some_and(|seal| seal.quarters.1.to_string() == last) {
                return;
            }
            self.tick();
        }
        panic!("{last} is not dropped: {:?}", self.seals().last().map(|seal| seal.quarters));
    }

    fn tick(&mut self) {
        // The wall clock goes on, too, so that it has not leapt.
        self.machine.now.boot_us += 1_100_000;
        self.machine.now.wall_us += 1_100_000;
        self.machine.tick();
        self.settle();
    }

    fn seals(&self) -> &[QuarterSeal] {
        &self.machine.engine(0).expect("it runs").shard().retention().seals
    }

    fn found(&self, event_id: EventId) -> Found {
        self.machine.fetch(0, |engine| engine.shard().rows().get(event_id)).expect("it is read").expect("it is there")
    }

    /// Log offsets of a row's entries, each of which can be read.
    fn history(&self, row: &Found) -> Vec<u64> {
        let history = self.machine.fetch(0, |engine| engine.shard().rows().history(row, 0, 10_000));
        let (entries, more) = history.expect("it is read");
        assert!(!more);
        for at in &entries {
            self.machine.read_record(0, *at).unwrap_or_else(|e| panic!("an entry of {}: {e}", row.event_id));
        }
        entries
    }

    /// Why a tombstoned row is that.
    fn reason(&self, row: &Found) -> String {
        let at = row.tombstone.expect("a tombstone").entry_at;
        let (_, kind, body) = self.machine.read_record(0, at).expect("the tombstone's entry is there");
        Record::decode(kind, &body).expect("a record").meta.rationale.to_owned()
    }
}

/// More rows come back than the blocks at hand have room for.
#[test]
fn any_number_of_rows_is_carried() {
    const ROWS: usize = 4_500;
    let mut ledger = Ledger::new(ClockMode::Replay);
    ledger.go_to(31);
    let ids = ledger.claim(ROWS, &[7; 3_900]);
    ledger.go_to(100);
    ledger.retract(&ids);
    ledger.go_to(200);
    ledger.reactivate(&ids);
    ledger.go_to(480);
    ledger.claim(1, &[]);
    ledger.drop_through("2020-Q1", 3_000);
    let engine = ledger.machine.engine(0).unwrap();
    let seal = ledger.seals().last().unwrap();
    assert_eq!((seal.carried, seal.totals.iter().map(|total| total.rows[0]).sum::<u64>()), (4_500, 4_500));
    let blocks = engine.shard().rows().catalog().cache_blocks();
    assert!(blocks.0 >= 4_096, "all of them fit into the cache: {blocks:?}");
}

/// The first entry of a quarter carries a row that was tombstoned in the segment which that entry ends.
#[test]
fn a_carried_row_is_read_without_the_segments_that_it_came_from() {
    let mut ledger = Ledger::new(ClockMode::Wall);
    let ids = ledger.claim_and_bring_back(2);
    ledger.go_to(214);
    ledger.retract(&ids[..1]);
    // 2021-04-02; nothing has happened since.
    ledger.go_to(457);
    ledger.drop_through("2020-Q1", 20);
    // 2021-10-02.
    ledger.go_to(640);
    ledger.drop_through("2020-Q3", 20);
    for _ in 0..10 {
        ledger.tick();
    }
    let freed = ledger.machine.engine(0).unwrap().superblock().first_segment();
    assert!(freed >= 2, "only what is before segment {freed} is freed");
    for event_id in ids {
        let row = ledger.found(event_id);
        let history = ledger.history(&row);
        assert_eq!(history, [row.claim_at]);
        if row.tombstone.is_some() {
            assert_eq!(ledger.reason(&row), "because");
        }
    }
    assert_eq!(ledger.seals().iter().map(|seal| seal.carried).collect::<Vec<_>>(), [2, 0]);
}

/// However often a row was referred to in the segment that it is carried into.
#[test]
fn a_carry_is_short_whatever_was_referred_to_the_row() {
    const REFERENCES: usize = 2_000;
    let mut ledger = Ledger::new(ClockMode::Replay);
    let ids = ledger.claim_and_bring_back(1);
    ledger.go_to(480);
    let referred: Vec<_> = (0..REFERENCES).map(|n| (n as u16, ids[0])).collect();
    for items in referred.chunks(50) {
        ledger.ask(&Operation::Reference { corpus: "beta", items });
    }
    let before = ledger.history(&ledger.found(ids[0]));
    assert!(before.len() > REFERENCES);
    ledger.drop_through("2020-Q1", 20);
    let row = ledger.found(ids[0]);
    let after = ledger.history(&row);
    assert_eq!(row.references as usize, REFERENCES);
    assert_eq!(after[after.len() - REFERENCES..], before[before.len() - REFERENCES..]);
    let (_, kind, body) = ledger.machine.read_record(0, row.claim_at).unwrap();
    let Entry::Carry { change, .. } = Record::decode(kind, &body).unwrap().entry else { panic!("no carry") };
    assert!(change.len() < 1_000, "what became of the row takes {} bytes", change.len());
}

/// A row that came back stays until its own retention is over, wherever it was logged again.
#[test]
fn a_carried_row_goes_with_the_quarter_that_it_counts_in() {
    let mut ledger = Ledger::new(ClockMode::Replay);
    let ids = ledger.claim_and_bring_back(1);
    // It counts in 2020-Q4.
    ledger.go_to(300);
    let others = ledger.claim(1, &[]);
    ledger.go_to(480);
    ledger.claim(1, &[]);
    ledger.drop_through("2020-Q1", 20);
    assert_eq!(Quarter::of(ledger.found(ids[0]).claim_timestamp_us).to_string(), "2020-Q1");
    // 2022-01-20: the quarter of the others, and the row's, is over.
    ledger.go_to(750);
    ledger.claim(1, &[]);
    ledger.drop_through("2020-Q4", 20);
    let rows = ledger.machine.engine(0).unwrap().shard().rows();
    assert!(rows.carried().is_empty() && rows.count() == 2, "{:?}, {} rows", rows.carried(), rows.count());
    for event_id in [ids[0], others[0]] {
        assert_eq!(ledger.machine.fetch(0, |engine| engine.shard().rows().get(event_id)), Ok(None));
    }
}

/// A row that came back, carried into a segment that is sealed.
fn carried() -> (Ledger, EventId) {
    let mut ledger = Ledger::new(ClockMode::Replay);
    let ids = ledger.claim_and_bring_back(1);
    ledger.go_to(480);
    ledger.ask(&Operation::Reference { corpus: "beta", items: &[(0, ids[0])] });
    ledger.drop_through("2020-Q1", 20);
    (0..5).for_each(|_| ledger.tick());
    (ledger, ids[0])
}

/// The shard as an earlier build's snapshot has it.
fn restored(ledger: &Ledger) -> Shard {
    let engine = ledger.machine.engine(0).unwrap();
    let superblock = engine.superblock();
    let mut catalog = Catalog::at_start(superblock);
    engine.shard().rows().catalog().segments().iter().for_each(|sealed| catalog.add(sealed.clone()));
    let mut snapshot = engine.shard().snapshot();
    assert_eq!(std::mem::replace(&mut snapshot[0], 2), 3);
    let mut shard = Shard::restore(superblock, &snapshot, catalog).expect("a snapshot of version 2");
    assert!(shard.rows().carried().values().all(|row| row.standing.is_none()));
    let image = ledger.machine.log_image(0);
    while let Err(unread) = shard.complete() {
        let Unread::Missing(blocks) = unread else { panic!("{unread}") };
        for at in blocks.into_iter().map(|block| block * BLOCK_BYTES) {
            shard.rows().catalog().put(at, &image[at as usize..(at + BLOCK_BYTES) as usize]);
        }
    }
    shard
}

#[test]
fn what_an_earlier_snapshot_lacks_is_read() {
    let (ledger, event_id) = carried();
    let shard = restored(&ledger);
    let expected = ledger.machine.engine(0).unwrap().shard().rows().carried();
    assert_eq!(shard.rows().carried(), expected);
    let standing = expected[&event_id].standing.expect("it is known");
    assert_eq!((standing.state, standing.effective.to_string().as_str()), (RowState::Registered, "2020-Q4"));
}

/// A drop that says what stays of earlier quarters is an earlier build's, by which a row stayed as long as its carry.
#[test]
fn a_drop_is_applied_as_it_was_decided() {
    let (ledger, event_id) = carried();
    let prefix = event_id.prefix();
    for is_kept in [true, false] {
        let mut shard = restored(&ledger);
        let quarter = Quarter::of(START_US);
        let last = quarter.next().next().next();
        let end = shard.rows().catalog().first() + 1;
        let (before, geometry) = (shard.rows().count_of(prefix), shard.rows().geometry());
        let mut seal = shard.retention().seals.last().unwrap().clone();
        (seal.quarters, seal.segments) = ((quarter.next(), last), (end - 1, end));
        let sealed = shard.rows().catalog().segment(end - 1).unwrap();
        let (start, checkpoint) = (sealed.resume, sealed.checkpoint);
        let kept = Kept { prefix: prefix.get(), quarter, rows: [1, 0, 0, 0], over_budget: 0, aliases: Vec::new() };
        let kept = if is_kept { vec![kept] } else { Vec::new() };
        let dropped = Dropped { seal, start, checkpoint, gone_before_us: last.end_us(), kept }.encode();
        let meta = Meta { timestamp_us: shard.last_us(), ..Meta::of_daemon() };
        let record = Record { meta, entry: Entry::RetentionDrop { dropped: &dropped } };
        let log_offset = geometry.segment_start(shard.rows().catalog().end()) + geometry.first_batch();
        shard.apply(shard.last_position() + 1, log_offset, &record).expect("a drop");
        assert_eq!(shard.rows().carried().contains_key(&event_id), is_kept);
        assert_eq!(shard.rows().count_of(prefix), before - u64::from(!is_kept));
        let totals = shard.rows().totals(prefix);
        assert_eq!(totals, if is_kept { vec![(quarter, [1, 0, 0, 0])] } else { Vec::new() });
    }
}
