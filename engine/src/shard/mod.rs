//! The shard: a synchronous state machine. [`Shard::step`] decides and appends; [`Shard::apply`] is the only mutation, used
//! by the daemon, by recovery and by whoever follows the log.
//!
//! Absent here, and tested by lint: clocks, randomness, I/O, await, glommio, flatbuffers. Time and entropy come in with
//! each event.

mod apply;
mod authorise;
pub mod budget;
mod check;
pub mod clock;
mod decide;
mod decide_dispute;
mod decide_global;
mod decide_read;
pub mod disputes;
mod follow;
pub mod gather;
mod idempotency;
mod inherited;
pub mod keys;
pub mod passes;
pub mod registry;
mod retention;
pub mod rows;
mod seeded_hash;
mod snapshot;

pub use decide::ALIASES_FOLLOWED_MAX;
pub use inherited::Inherited;
pub use retention::{LookedTo, ToCarry};

use crate::command::{Claimed, Fact, Outcome, Request};
use crate::corpus::Prefix;
use crate::dispute::{DisputeId, DisputeState};
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::log::batch::Hash;
use crate::log::entry::{Entry, Meta, Record};
use crate::log::superblock::{ClockMode, Origin, Superblock};
use crate::log::writer::LogWriter;
use crate::mutant::Mutation;
use crate::peer::Sought;
use crate::policy::Policy;
use crate::retention::Retention;
use crate::time::{Now, Quarter};
use budget::Budget;
use clock::ShardClock;
use disputes::Disputes;
use passes::Passes;
use registry::Registry;
use rows::Rows;
use seeded_hash::SeededHash;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// What a keyed operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A claim.
    Claimed(Claimed),
    /// The canonical id referred to.
    Referenced(EventId),
    /// The row and when it was tombstoned.
    Retracted(EventId, i64),
    /// The row and when it came back.
    Reactivated(EventId, i64),
    /// The corpus, and its place in the global order.
    Onboarded(Prefix, u64),
    /// When the clock was confirmed, and its place in the global order.
    ClockConfirmed(i64, u64),
    /// When a corpus was closed, and its place in the global order.
    Decommissioned(Prefix, u64),
    /// What was stopped or let go on, when, and its place in the global order.
    Frozen(Option<Prefix>, bool, i64, u64),
    /// A corpus's cap, when, and its place in the global order.
    Capped(Prefix, u32, i64, u64),
    /// A proposal, made or signed: how many signatures it had then, and its place in the global order.
    Proposal(u64, usize, u64),
    /// Whether an incident is on, when, and its place in the global order.
    Incident(bool, i64, u64),
    /// A barrier's moment, and its place in the global order.
    Barrier(i64, u64),
    /// Whether a quarter is held, when, and its place in the global order.
    Held(Quarter, bool, i64, u64),
    /// When a configuration came in force, and its place in the global order.
    Configured(i64, u64),
    /// A dispute, where it was then, how many responses it had, and its place in the global order.
    Dispute(DisputeId, DisputeState, u32, u64),
    /// A pass of reconciliation.
    Reconciled(u64),
}

/// The configuration in force.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InForce {
    /// Its text.
    pub toml: String,
    /// Since when; 0: there was none yet.
    pub at_us: i64,
    /// Who put it in force.
    pub uid: u32,
}

/// Refusals for lack of a role, of one uid in one hour.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Refusals {
    hour: i64,
    logged: u32,
    /// Not logged, and named by the next one that is.
    counted: u64,
}

/// What a request needs to know of other shards before it can be decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// What these rows are.
    Rows(Vec<EventId>),
    /// Whether this row is registered; and that no other conditional claim of it is under way.
    Key(Sought),
    /// Blocks of this shard's log that are not at hand.
    Blocks(Vec<u64>),
    /// Bytes of this shard's log that are not at hand in one piece.
    Stretch(Range<u64>),
}

/// What came of a step.
#[derive(Debug)]
pub enum Stepped {
    /// It is decided.
    Decided(Decision),
    /// Nothing has happened: it needs to know more.
    Needs(Needs),
    /// A pass of reconciliation is wanted, with this number's key kept: the engine runs it.
    Pass {
        /// Only plan it.
        dry_run: bool,
        /// The pass that the same request began before.
        pass: Option<u64>,
        /// The shard's time.
        at_us: i64,
        /// Position that the answer depends on.
        position: u64,
    },
}

/// An entry that every shard keeps, as shard 0 logged it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalEntry {
    /// 1, 2, 3 …
    pub sequence: u64,
    /// Its position at shard 0.
    pub position: u64,
    /// The record's kind.
    pub kind: u16,
    /// The record's body.
    pub body: Vec<u8>,
}

/// What a step decided.
#[derive(Debug)]
pub struct Decision {
    /// The answer.
    pub outcome: Outcome,
    /// Position of this shard that the answer depends on; 0: none.
    pub position: u64,
    /// The answer waits until every shard has applied the global order up to here; 0: for none.
    pub global_sequence: u64,
}

impl From<Decision> for Stepped {
    fn from(decision: Decision) -> Stepped {
        Stepped::Decided(decision)
    }
}

impl Decision {
    fn now(outcome: Outcome, position: u64) -> Decision {
        Decision { outcome, position, global_sequence: 0 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Shard {
    number: u16,
    shard_count: u16,
    clock: ShardClock,
    registry: Registry,
    rows: Rows,
    /// By prefix, of the corpora of this shard.
    budgets: Vec<Budget>,
    policy: Policy,
    in_force: InForce,
    disputes: Disputes,
    passes: Passes,
    retention: Retention,
    /// At shard 0: other shards have dropped, or may drop, what is up to this quarter.
    no_hold_through: Option<Quarter>,
    /// At shard 0: every shard has said what it has dropped.
    knows_drops: bool,
    /// Names of uids, as they were when they last did something.
    users: BTreeMap<u32, String>,
    refusals: BTreeMap<u32, Refusals>,
    mutation: Mutation,
    /// Whether segments are to be sealed: then the small state behind each is kept with it.
    seals: bool,
    /// The small state behind each segment that is full and not sealed yet, the oldest first.
    snapshots: VecDeque<(Vec<u8>, Option<Origin>)>,
    /// Shard 0 keeps them for shards that missed some: those that not all are known to have.
    globals: VecDeque<GlobalEntry>,
    /// How many were there before those.
    globals_before: u64,
    globals_applied: u64,
    /// Time of the last entry.
    last_us: i64,
    last_position: u64,
    /// The quarter of `last_us`, and its bounds: looked up once a quarter.
    quarter: (Quarter, std::ops::Range<i64>),
    /// Of the ledger: what clients can't foresee depends on it.
    secret: u64,
    /// With that secret.
    hash: SeededHash,
    /// The ledger's.
    key: Hash,
    scratch: Vec<u8>,
}

impl Shard {
    /// A shard of a ledger in which nothing has happened.
    pub fn new(superblock: &Superblock) -> Shard {
        let last_us = match superblock.clock {
            ClockMode::Wall => superblock.formatted_at_us,
            ClockMode::Replay => 0,
        };
        let secret = Shard::secret_of(superblock);
        Shard {
            number: superblock.shard,
            shard_count: superblock.shard_count,
            clock: ShardClock::new(superblock.clock),
            registry: Registry::default(),
            rows: Rows::new(superblock.geometry, secret),
            budgets: Vec::new(),
            policy: Policy::none(),
            in_force: InForce::default(),
            disputes: Disputes::default(),
            passes: Passes::default(),
            retention: Retention::default(),
            no_hold_through: None,
            knows_drops: superblock.shard_count == 1,
            users: BTreeMap::new(),
            refusals: BTreeMap::new(),
            mutation: Mutation::default(),
            seals: false,
            snapshots: VecDeque::new(),
            globals: VecDeque::new(),
            globals_before: 0,
            globals_applied: 0,
            last_us,
            last_position: 0,
            quarter: quarter_of(last_us),
            secret,
            hash: SeededHash::new(secret),
            key: superblock.key,
            scratch: Vec::new(),
        }
    }

    /// The same without its memory of idempotency keys and event keys, which are most of its work: where nobody asks for a row
    /// or a request by its key, and only what applies is of interest.
    pub fn without_keys(mut self) -> Shard {
        self.rows.forget_keys();
        self
    }

    /// Has segments sealed as they fill up, with so many bytes for blocks of those that are.
    pub fn seal_segments(&mut self, cache_bytes: u64) {
        self.seals = true;
        self.rows.set_cache_bytes(cache_bytes);
    }

    /// The oldest segment that is full and not sealed, with the small state behind it, and where the log begins by that.
    pub fn full_segment(&self) -> Option<(&std::sync::Arc<rows::SegmentRows>, &[u8], Option<Origin>)> {
        let (snapshot, origin) = self.snapshots.front()?;
        Some((self.rows.frozen().front()?, snapshot, *origin))
    }

    /// That segment is sealed: its rows leave memory. Returns that memory, to be cleared somewhere else.
    pub fn sealed(&mut self, sealed: crate::sealed::Sealed) -> Option<rows::SegmentRows> {
        self.snapshots.pop_front();
        std::sync::Arc::try_unwrap(self.rows.sealed(sealed)?).ok()
    }

    /// Takes the memory of a segment for the next one.
    pub fn reuse(&mut self, cleared: rows::SegmentRows) {
        self.rows.reuse(cleared);
    }

    /// Every shard has the global order up to here, durably: nobody will ask for it again.
    pub fn forget_globals(&mut self, applied: u64) {
        while self.globals.front().is_some_and(|global| global.sequence <= applied) {
            self.globals.pop_front();
            self.globals_before += 1;
        }
    }

    /// Gives the shard a deliberate bug.
    pub fn mutate(&mut self, mutation: Mutation) {
        self.mutation = mutation;
    }

    /// Starts the clock; `ledger_last_us` is the greatest last entry's time over all shards.
    pub fn start(&mut self, now: Now, ledger_last_us: i64) {
        self.clock.start(now, ledger_last_us.max(self.last_us));
    }

    /// Which shard this is.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// All corpora of the ledger.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The rows of this shard.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Who may do what, and what takes how long.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The configuration in force.
    pub fn in_force(&self) -> &InForce {
        &self.in_force
    }

    /// All disputes of the ledger.
    pub fn disputes(&self) -> &Disputes {
        &self.disputes
    }

    /// How far reconciliation has come.
    pub fn passes(&self) -> &Passes {
        &self.passes
    }

    /// The name of a uid when it last did something here.
    pub fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }

    /// How a corpus of this shard uses its slots.
    pub fn budget(&self, prefix: Prefix) -> Option<&Budget> {
        self.budgets.get(usize::from(prefix.get()))
    }

    /// Slots of a corpus in the quarter of a moment.
    pub fn slots_at(&self, prefix: Prefix, at_us: i64) -> u64 {
        self.registry.slots_at(prefix, at_us, self.policy.slots_per_quarter())
    }

    /// A hash of an event key that nobody outside of this ledger can foresee.
    pub fn key_hash(&self, event_key: &str) -> u64 {
        self.hash.of(event_key.as_bytes())
    }

    pub(crate) fn secret_of(superblock: &Superblock) -> u64 {
        u64::from_le_bytes(superblock.key[..8].try_into().expect("a key has 32 bytes"))
    }

    /// What clients can't foresee depends on it.
    pub(crate) fn secret(&self) -> u64 {
        self.secret
    }

    /// How many idempotency keys are in memory.
    pub fn key_count(&self) -> u64 {
        self.rows.key_count()
    }

    /// See [`ShardClock::take_regression`].
    pub fn take_regression(&mut self) -> Option<i64> {
        self.clock.take_regression()
    }

    /// The clock.
    pub fn clock(&self) -> &ShardClock {
        &self.clock
    }

    /// Time of the last entry.
    pub fn last_us(&self) -> i64 {
        self.last_us
    }

    /// The last position applied.
    pub fn last_position(&self) -> u64 {
        self.last_position
    }

    /// How far in the global order this shard is.
    pub fn globals_applied(&self) -> u64 {
        self.globals_applied
    }

    /// The global entries after `sequence`, as far as shard 0 still keeps them.
    pub fn globals_after(&self, sequence: u64) -> impl Iterator<Item = &GlobalEntry> {
        self.globals.iter().skip(sequence.saturating_sub(self.globals_before) as usize)
    }

    /// Whether a shard that has the global order up to here can be sent the rest of it.
    pub fn has_globals_after(&self, sequence: u64) -> bool {
        sequence >= self.globals_before
    }

    /// Decides a request, and appends and applies what follows from it. The caller has seen that the log has room.
    /// `facts` is what other shards said, once it was asked for.
    pub fn step(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        request: &Request<'_>,
        facts: Option<&[Fact]>,
        log: &mut LogWriter,
    ) -> Stepped {
        decide::Step { shard: self, now, entropy, facts, log, has_new_key: false }.request(request)
    }

    fn try_append(&mut self, record: &Record<'_>, log: &mut LogWriter) -> Result<u64, String> {
        // A quarter is dropped by whole segments. Before a replay ledger's first request no time has gone by.
        if self.last_us > 0 && self.rows.is_begun() && !self.quarter.1.contains(&record.meta.timestamp_us) {
            log.end_segment();
        }
        let (position, log_offset) = log.append(record);
        self.apply(position, log_offset, record)?;
        Ok(position)
    }

    fn append(&mut self, record: &Record<'_>, log: &mut LogWriter) -> u64 {
        // What this shard has just decided can't be refused by its own rules: anything else is a bug, and the
        // process must not go on with a log that says one thing and a state that says another.
        self.try_append(record, log).expect("a decided record applies")
    }

    /// Appends what the daemon decides by itself.
    pub fn decide_alone(&mut self, now: Now, at_least_us: i64, entry: Entry<'_>, log: &mut LogWriter) -> u64 {
        let time_us = self.clock.time_us(now, self.last_us).max(at_least_us);
        let meta = Meta { timestamp_us: time_us, ..Meta::of_daemon() };
        self.append_here(Record { meta, entry }, log)
    }

    /// The beginning of a pass that a request asks for.
    pub fn begin_pass(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        request: &Request<'_>,
        at_us: i64,
        log: &mut LogWriter,
    ) -> u64 {
        decide::Step { shard: self, now, entropy, facts: None, log, has_new_key: false }.begin_pass(request, at_us)
    }

    /// Does what was put off while claims came in.
    pub fn tidy(&mut self) {
        self.rows.index_event_keys();
    }

    /// The time that an entry would get now.
    pub fn time_us(&mut self, now: Now) -> i64 {
        self.clock.time_us(now, self.last_us)
    }
}

fn quarter_of(at_us: i64) -> (Quarter, std::ops::Range<i64>) {
    let quarter = Quarter::of(at_us);
    (quarter, quarter.start_us()..quarter.end_us())
}
