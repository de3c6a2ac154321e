//! The shard: a synchronous state machine. [`Shard::step`] decides and appends; [`Shard::apply`] is the only mutation, used
//! by the daemon, by recovery and by whoever follows the log.
//!
//! Absent here, and tested by lint: clocks, randomness, I/O, await, glommio, flatbuffers. Time and entropy come in with
//! each event.

mod authorise;
pub mod budget;
mod check;
pub mod clock;
mod decide;
mod decide_dispute;
mod decide_global;
mod decide_read;
pub mod disputes;
pub mod event_keys;
mod follow;
pub mod keys;
pub mod passes;
pub mod registry;
pub mod rows;

use crate::command::{Corpus, Fact, Outcome, Proposal, Request, Signature, Stop};
use crate::corpus::Prefix;
use crate::dispute::{Dispute, DisputeId, DisputeState, DisputeStep, Verdict};
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::log::entry::{self, Entry, Meta, PassPhase, Record};
use crate::log::record::RawRecord;
use crate::log::superblock::{ClockMode, Superblock};
use crate::log::writer::LogWriter;
use crate::mutant::Mutation;
use crate::peer::Sought;
use crate::policy::Policy;
use crate::row::RowOperation;
use crate::time::{DAY_US, HOUR_US, Now, Quarter, TIME_US_MAX};
use budget::Budget;
use clock::ShardClock;
use disputes::Disputes;
use hashbrown::HashMap;
use keys::{Kept, KeyId, Keys};
use passes::{PassMark, Passes};
use registry::Registry;
use rows::{Happened, Rows, With};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How far an id may be ahead of its claim's time: tens of millions of ids use up one millisecond.
const ID_AHEAD_MAX_US: i64 = DAY_US;

/// What a keyed operation other than a claim did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
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
    /// When a configuration came in force, and its place in the global order.
    Configured(i64, u64),
    /// A dispute, where it was then, how many responses it had, and its place in the global order.
    Dispute(DisputeId, DisputeState, u32, u64),
    /// A pass of reconciliation.
    Reconciled(u64),
}

/// The configuration in force.
#[derive(Debug, Clone, Default)]
pub struct InForce {
    /// Its text.
    pub toml: String,
    /// Since when; 0: there was none yet.
    pub at_us: i64,
    /// Who put it in force.
    pub uid: u32,
}

/// Refusals for lack of a role, of one uid in one hour.
#[derive(Debug, Clone, Copy, Default)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Names of uids, as they were when they last did something.
    users: HashMap<u32, String>,
    /// Log offsets of the entries that carry a correlation id.
    correlated: HashMap<u128, Vec<u64>>,
    refusals: HashMap<u32, Refusals>,
    mutation: Mutation,
    keys: Keys,
    /// False where nobody will ask for them again, and only what applies is of interest.
    keeps_keys: bool,
    effects: Vec<Effect>,
    /// Shard 0 keeps them all, for shards that missed some.
    globals: Vec<GlobalEntry>,
    globals_applied: u64,
    /// Time of the last entry.
    last_us: i64,
    last_position: u64,
    /// The quarter of `last_us`, and its bounds: looked up once a quarter.
    quarter: (Quarter, std::ops::Range<i64>),
    /// Of the ledger: what clients can't foresee depends on it.
    secret: u64,
    scratch: Vec<u8>,
}

impl Shard {
    /// A shard of a ledger in which nothing has happened.
    pub fn new(superblock: &Superblock) -> Shard {
        let last_us = match superblock.clock {
            ClockMode::Wall => superblock.formatted_at_us,
            ClockMode::Replay => 0,
        };
        let secret = u64::from_le_bytes(superblock.key[..8].try_into().expect("a key has 32 bytes"));
        Shard {
            number: superblock.shard,
            shard_count: superblock.shard_count,
            clock: ShardClock::new(superblock.clock),
            registry: Registry::default(),
            rows: Rows::default(),
            budgets: Vec::new(),
            policy: Policy::none(),
            in_force: InForce::default(),
            disputes: Disputes::default(),
            passes: Passes::default(),
            users: HashMap::new(),
            correlated: HashMap::new(),
            refusals: HashMap::new(),
            mutation: Mutation::default(),
            keys: Keys::new(secret),
            keeps_keys: true,
            effects: Vec::new(),
            globals: Vec::new(),
            globals_applied: 0,
            last_us,
            last_position: 0,
            quarter: quarter_of(last_us),
            secret,
            scratch: Vec::new(),
        }
    }

    /// The same without its memory of idempotency keys, which are most of its work: for verification.
    pub fn without_keys(superblock: &Superblock) -> Shard {
        Shard { keeps_keys: false, ..Shard::new(superblock) }
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
        xxh3_64_with_seed(event_key.as_bytes(), self.secret)
    }

    /// How many idempotency keys are kept.
    pub fn key_count(&self) -> u64 {
        self.keys.count()
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

    /// The global entries after `sequence`; shard 0 has them all.
    pub fn globals_after(&self, sequence: u64) -> &[GlobalEntry] {
        self.globals.get(sequence as usize..).unwrap_or_default()
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
        decide::Step { shard: self, now, entropy, facts, log }.request(request)
    }

    fn try_append(&mut self, record: &Record<'_>, log: &mut LogWriter) -> Result<u64, String> {
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
        let meta = Meta {
            timestamp_us: time_us,
            idempotency_key: 0,
            correlation_id: 0,
            fingerprint: 0,
            principal: Default::default(),
            item: 0,
            corpus: None,
            rationale: "",
        };
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
        decide::Step { shard: self, now, entropy, facts: None, log }.begin_pass(request, at_us)
    }

    /// Does what was put off while claims came in.
    pub fn tidy(&mut self) {
        self.rows.index_event_keys();
    }

    /// The time that an entry would get now.
    pub fn time_us(&mut self, now: Now) -> i64 {
        self.clock.time_us(now, self.last_us)
    }

    /// Applies a record of the log, in order. The error says which rule the record breaks; it then did not come from
    /// this state machine.
    pub fn apply_raw(&mut self, raw: RawRecord<'_>, log_offset: u64) -> Result<(), String> {
        let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
        self.apply(raw.position, log_offset, &record)
    }

    /// See [`Shard::apply_raw`].
    pub fn apply(&mut self, position: u64, log_offset: u64, record: &Record<'_>) -> Result<(), String> {
        let meta = &record.meta;
        if position != self.last_position + 1 {
            return Err(format!("position {position} follows {}", self.last_position));
        }
        if meta.timestamp_us < self.last_us {
            return Err(format!("time goes back from {} to {}", self.last_us, meta.timestamp_us));
        }
        if meta.timestamp_us > TIME_US_MAX {
            return Err(format!("the time {} us is beyond the year 9998", meta.timestamp_us));
        }
        if meta.idempotency_key != 0 && meta.fingerprint as u8 != record.entry.keyed_as() {
            return Err(format!("the fingerprint of a {} is another operation's", record.entry.operation()));
        }
        self.last_position = position;
        self.advance_time(meta.timestamp_us);
        if meta.correlation_id != 0 {
            self.correlated.entry(meta.correlation_id).or_default().push(log_offset);
        }
        let happened = Happened { at_us: meta.timestamp_us, log_offset, position };
        let effect = match record.entry {
            Entry::Claim(claim) => {
                self.check_claim(meta, claim.event_id)?;
                let row = rows::Claimed {
                    event_id: claim.event_id,
                    claim_timestamp_us: meta.timestamp_us,
                    claim_sequence: claim.claim_sequence,
                    occurred_at_us: claim.occurred_at_us,
                    key_hash: self.key_hash(claim.event_key),
                    over_budget: claim.over_budget,
                    incident_active: claim.incident_active,
                    claim_at: log_offset,
                    position,
                };
                let index = self.rows.add(row, self.quarter.0)?;
                self.budget_mut(claim.event_id.prefix()).claimed(meta.timestamp_us);
                self.keep(record, position, index);
                return Ok(());
            }
            Entry::Reference { event_id, canonical_id } => {
                self.rows.refer(event_id, log_offset)?;
                Some(Effect::Referenced(canonical_id))
            }
            Entry::Tombstone { event_id, reason_code } => {
                self.rows.transit(event_id, RowOperation::Retract, With::Reason(reason_code), happened)?;
                Some(Effect::Retracted(event_id, meta.timestamp_us))
            }
            Entry::Reactivate { event_id } => {
                self.rows.transit(event_id, RowOperation::Reactivate, With::Nothing, happened)?;
                self.changed(event_id, position);
                Some(Effect::Reactivated(event_id, meta.timestamp_us))
            }
            Entry::Alarm { kind, .. } => {
                let quarter = self.quarter.0;
                let prefix = meta.corpus.ok_or("an alarm of no corpus")?;
                self.budget_mut(prefix).raised(kind, quarter);
                None
            }
            Entry::Forbidden { .. } => {
                let hour = meta.timestamp_us / HOUR_US;
                let refusals = self.refusals.entry(meta.principal.uid).or_default();
                if refusals.hour != hour {
                    *refusals = Refusals { hour, ..Refusals::default() };
                }
                refusals.logged += 1;
                refusals.counted = 0;
                None
            }
            Entry::User { uid, name } => {
                self.users.insert(uid, name.to_owned());
                None
            }
            Entry::Recovery { .. } => None,
            Entry::Repair { floors, .. } => {
                for (prefix, sequence) in entry::floors(floors) {
                    self.rows.raise(prefix, self.quarter.0, sequence)?;
                }
                None
            }
            ref global => {
                let sequence = global.global_sequence().ok_or("an entry that no shard applies")?;
                let effect = self.apply_global(sequence, record, happened)?;
                self.applied_global(sequence, position, record)?;
                effect
            }
        };
        if let Some(effect) = effect {
            self.effects.push(effect);
            self.keep(record, position, self.effects.len() as u64 - 1);
        }
        Ok(())
    }

    /// An entry that every shard keeps.
    fn apply_global(
        &mut self,
        sequence: u64,
        record: &Record<'_>,
        happened: Happened,
    ) -> Result<Option<Effect>, String> {
        let meta = &record.meta;
        let at_us = meta.timestamp_us;
        Ok(match record.entry {
            Entry::Onboard { prefix, shard, name, notes, onboarded_at_us, .. } => {
                if shard >= self.shard_count {
                    return Err(format!("corpus {name} is placed on shard {shard} of {}", self.shard_count));
                }
                let (name, notes) = (name.to_owned(), notes.to_owned());
                self.registry.add(Corpus { name, prefix, shard, onboarded_at_us, notes, ..Corpus::default() })?;
                Some(Effect::Onboarded(prefix, sequence))
            }
            Entry::PrefixAllocation { minted_to, .. } => {
                self.registry.mint(minted_to, self.quarter.0)?;
                None
            }
            Entry::ConfirmClock { .. } => Some(Effect::ClockConfirmed(at_us, sequence)),
            Entry::Decommission { prefix, at_us, .. } => {
                self.registry.decommission(prefix, at_us)?;
                Some(Effect::Decommissioned(prefix, sequence))
            }
            Entry::Freeze { prefix, frozen, at_us, .. } => {
                let stop = frozen.then(|| Stop { at_us, reason: meta.rationale.to_owned() });
                self.registry.freeze(prefix, stop)?;
                if !frozen {
                    // What a stop kept passes from doing is to be done.
                    self.passes.everything_again(happened.position);
                }
                Some(Effect::Frozen(prefix, frozen, at_us, sequence))
            }
            Entry::Cap { prefix, claims_per_minute, .. } => {
                self.registry.cap(prefix, claims_per_minute)?;
                Some(Effect::Capped(prefix, claims_per_minute, at_us, sequence))
            }
            Entry::SlotIncrease { prefix, slots, at_us, .. } => {
                self.registry.propose(Proposal {
                    number: sequence,
                    prefix,
                    slots,
                    proposed_at_us: at_us,
                    signatures: Vec::new(),
                    effective_from_us: None,
                })?;
                Some(Effect::Proposal(sequence, 0, sequence))
            }
            Entry::SignOff { proposal, role, effective_from_us, at_us, .. } => {
                let signature = Signature { role, uid: meta.principal.uid, at_us };
                self.registry.sign(proposal, signature, effective_from_us)?;
                let signatures = self.registry.proposal(proposal).map_or(0, |p| p.signatures.len());
                Some(Effect::Proposal(proposal, signatures, sequence))
            }
            Entry::Incident { active, .. } => {
                self.registry.incident(active);
                Some(Effect::Incident(active, at_us, sequence))
            }
            Entry::Barrier { at_us, .. } => {
                self.passes.barrier(at_us);
                Some(Effect::Barrier(at_us, sequence))
            }
            Entry::Configuration { toml, at_us, .. } => {
                self.policy = Policy::parse(toml)?;
                self.in_force = InForce { toml: toml.to_owned(), at_us, uid: meta.principal.uid };
                self.passes.everything_again(happened.position);
                Some(Effect::Configured(at_us, sequence))
            }
            Entry::Dispute { dispute, opened_at_us, sides, .. } => {
                self.disputes.open(Dispute {
                    id: dispute,
                    state: DisputeState::Detect,
                    sides,
                    opened_by: meta.corpus.ok_or("a dispute that no corpus opened")?,
                    opened_at_us,
                    updated_at_us: opened_at_us,
                    rationale: meta.rationale.to_owned(),
                    verdicts: Default::default(),
                    responses: 0,
                    global_sequence: sequence,
                    entries_at: vec![happened.log_offset],
                })?;
                Some(Effect::Dispute(dispute, DisputeState::Detect, 0, sequence))
            }
            Entry::DisputeStep { dispute, step, at_us, rows, verdicts, .. } => {
                let moved = self.disputes.step(dispute, step, at_us, verdicts, sequence, happened.log_offset)?;
                self.settle(&moved, step, rows, happened)?;
                (meta.idempotency_key != 0).then_some(Effect::Dispute(dispute, moved.state, moved.responses, sequence))
            }
            Entry::Reconcile { pass, phase, at_us, counts, merges, .. } => {
                for merge in entry::merges(merges) {
                    self.rows.alias_named(merge.canonical, merge.alias);
                    if merge.applied {
                        let with = With::Canonical(merge.canonical);
                        self.rows.transit(merge.alias, RowOperation::Merge, with, happened)?;
                    }
                }
                self.passes.apply(phase, PassMark { pass, at_us, position: happened.position }, counts)?;
                (phase == PassPhase::Begin).then_some(Effect::Reconciled(pass))
            }
            ref other => return Err(format!("{} is no entry of the global order", other.operation())),
        })
    }

    /// Does to this shard's rows what a step of their dispute does.
    fn settle(&mut self, dispute: &Dispute, step: DisputeStep, rows: u8, happened: Happened) -> Result<(), String> {
        for (index, event_id) in dispute.sides.ids().iter().enumerate() {
            let verdict = dispute.verdicts[index];
            if step == DisputeStep::Arbitrate
                && verdict == Some(Verdict::References)
                && let Some(canonical) = dispute.canonical()
            {
                self.rows.alias_named(canonical, *event_id);
            }
            if rows & (1 << index) == 0 {
                continue;
            }
            match step {
                DisputeStep::Quarantine => {
                    self.rows.transit(*event_id, RowOperation::Dispute, With::Dispute(dispute.id), happened)?;
                }
                DisputeStep::Void => {
                    self.rows.transit(*event_id, RowOperation::Void, With::Nothing, happened)?;
                    self.changed(*event_id, happened.position);
                }
                DisputeStep::Arbitrate => {
                    let verdict = verdict.ok_or_else(|| format!("no verdict on {event_id}"))?;
                    self.rows.settle(*event_id, verdict, dispute.canonical(), happened)?;
                    self.changed(*event_id, happened.position);
                }
                _ => return Err(format!("{} changes no row", step.operation())),
            }
        }
        Ok(())
    }

    fn changed(&mut self, event_id: EventId, position: u64) {
        if let Some(found) = self.rows.get(event_id) {
            self.passes.changed(&found, position);
        }
    }

    fn budget_mut(&mut self, prefix: Prefix) -> &mut Budget {
        let index = usize::from(prefix.get());
        if self.budgets.len() <= index {
            self.budgets.resize_with(index + 1, Budget::default);
        }
        &mut self.budgets[index]
    }

    /// An id is of the corpus that claimed it, which lives here, and of its time: it runs ahead of the clock by the
    /// milliseconds that were used up, no more.
    fn check_claim(&self, meta: &Meta<'_>, event_id: EventId) -> Result<(), String> {
        let prefix = event_id.prefix();
        let lives_here = self.registry.of_prefix(prefix).is_some_and(|corpus| corpus.shard == self.number);
        if meta.corpus != Some(prefix) || !lives_here {
            return Err(format!("event-id {event_id} is not of a corpus of this shard that claims it"));
        }
        let ahead_us = (event_id.ms() as i64 + 1) * 1_000 - meta.timestamp_us;
        if !(1..=ID_AHEAD_MAX_US).contains(&ahead_us) {
            return Err(format!("event-id {event_id} is not of the time {} us", meta.timestamp_us));
        }
        Ok(())
    }

    fn applied_global(&mut self, sequence: u64, position: u64, record: &Record<'_>) -> Result<(), String> {
        if sequence != self.globals_applied + 1 {
            return Err(format!("global entry {sequence} follows {}", self.globals_applied));
        }
        self.globals_applied = sequence;
        if self.number == 0 {
            let mut body = Vec::new();
            record.encode(&mut body);
            self.globals.push(GlobalEntry { sequence, position, kind: record.entry.kind(), body });
        }
        Ok(())
    }

    fn keep(&mut self, record: &Record<'_>, position: u64, effect: u64) {
        let meta = &record.meta;
        // The key of a global entry counts at shard 0, where the request was decided.
        let is_copy = record.entry.global_sequence().is_some() && self.number != 0;
        if self.keeps_keys && meta.idempotency_key != 0 && !is_copy {
            let id = KeyId::new(meta.corpus.map_or(0, Prefix::get), meta.idempotency_key, meta.item);
            self.keys.keep(id, Kept { fingerprint: meta.fingerprint, position, effect });
        }
    }

    fn advance_time(&mut self, to_us: i64) {
        self.last_us = to_us;
        if !self.quarter.1.contains(&to_us) {
            self.quarter = quarter_of(to_us);
        }
        self.keys.forget_before(to_us);
    }
}

fn quarter_of(at_us: i64) -> (Quarter, std::ops::Range<i64>) {
    let quarter = Quarter::of(at_us);
    (quarter, quarter.start_us()..quarter.end_us())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::entry::{ClaimEntry, Principal};
    use crate::log::layout::Geometry;
    use uuid::Uuid;

    const AT_US: i64 = 1_767_225_600_000_000;

    fn prefix() -> Prefix {
        Prefix::new(1).unwrap()
    }

    fn meta(timestamp_us: i64, idempotency_key: u128, fingerprint: u64) -> Meta<'static> {
        let principal = Principal::default();
        let (correlation_id, item, corpus, rationale) = (0, 0, Some(prefix()), "");
        Meta { timestamp_us, idempotency_key, correlation_id, fingerprint, principal, item, corpus, rationale }
    }

    fn onboard(shard: u16) -> Entry<'static> {
        let (name, notes, onboarded_at_us) = ("customer", "", AT_US);
        Entry::Onboard { global_sequence: 2, prefix: prefix(), shard, name, notes, onboarded_at_us }
    }

    fn claim(event_id: EventId) -> Entry<'static> {
        Entry::Claim(ClaimEntry {
            event_id,
            claim_sequence: 1,
            occurred_at_us: 1,
            taxonomy_version: 1,
            event_key: "key",
            owning_corpus: "",
            hosting_corpus: "",
            category: "c",
            over_budget: false,
            incident_active: false,
            metadata: &[],
        })
    }

    /// A shard in which prefixes are minted.
    fn shard() -> Shard {
        let mut shard = Shard::new(&Superblock {
            generation: 1,
            ledger: Uuid::from_u128(1),
            key: [1; 32],
            shard: 0,
            shard_count: 2,
            clock: ClockMode::Wall,
            geometry: Geometry::DEFAULT,
            formatted_at_us: AT_US,
            first_segment: 0,
        });
        let entry = Entry::PrefixAllocation { global_sequence: 1, minted_to: 100 };
        shard.apply(1, 0, &Record { meta: meta(AT_US, 0, 0), entry }).unwrap();
        shard
    }

    #[test]
    fn records_that_no_shard_decides_are_refused() {
        let ms = AT_US as u64 / 1_000;
        let own = EventId::pack(ms, prefix(), 1);
        let onboarded = |at: u16| {
            let mut shard = shard();
            shard.apply(2, 0, &Record { meta: meta(AT_US, 0, 0), entry: onboard(at) }).unwrap();
            shard
        };
        let cases = [
            (true, onboarded(0), meta(AT_US, 0, 0), claim(own)),
            (true, onboarded(0), meta(AT_US, 7 << 76, 0xab01), claim(own)),
            // A time that no clock shows.
            (false, onboarded(0), meta(i64::MAX, 0, 0), claim(own)),
            (false, onboarded(0), meta(AT_US - 1, 0, 0), claim(own)),
            // The key of another operation.
            (false, onboarded(0), meta(AT_US, 7 << 76, 0xab03), claim(own)),
            // An id of another time, of another corpus, of a corpus that lives elsewhere or nowhere.
            (false, onboarded(0), meta(AT_US, 0, 0), claim(EventId::pack(u64::MAX, prefix(), 1))),
            (false, onboarded(0), meta(AT_US, 0, 0), claim(EventId::pack(ms - 1, prefix(), 1))),
            (false, onboarded(0), meta(AT_US, 0, 0), claim(EventId::pack(ms, Prefix::new(2).unwrap(), 1))),
            (false, onboarded(1), meta(AT_US, 0, 0), claim(own)),
        ];
        for (is_right, mut shard, meta, entry) in cases {
            let applied = shard.apply(3, 0, &Record { meta, entry });
            assert_eq!(applied.is_ok(), is_right, "{meta:?} {entry:?}: {applied:?}");
        }
        let applied = shard().apply(2, 0, &Record { meta: meta(AT_US, 0, 0), entry: onboard(2) });
        assert!(applied.is_err(), "a corpus on a shard that is not there: {applied:?}");
    }
}
