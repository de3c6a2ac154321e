//! Applying a record, which is the only mutation of a shard: in the daemon, in recovery, and for whoever follows the log.

use super::budget::Budget;
use super::keys::{Kept, KeyId};
use super::passes::PassMark;
use super::rows::{self, Happened, With};
use super::{Effect, GlobalEntry, InForce, Refusals, Shard, quarter_of};
use crate::command::{Corpus, Proposal, Signature, Stop};
use crate::corpus::Prefix;
use crate::dispute::{Dispute, DisputeState, DisputeStep, Verdict};
use crate::id::EventId;
use crate::log::entry::{self, ClaimEntry, Entry, Meta, PassPhase, Record};
use crate::log::record::RawRecord;
use crate::policy::Policy;
use crate::retention::Hold;
use crate::row::RowOperation;
use crate::sealed::{self, Fetch};
use crate::time::{DAY_US, HOUR_US, TIME_US_MAX};

/// How far an id may be ahead of its claim's time: tens of millions of ids use up one millisecond.
pub(super) const ID_AHEAD_MAX_US: i64 = DAY_US;

impl Shard {
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
        self.enter_segment(log_offset);
        self.last_position = position;
        self.advance_time(meta.timestamp_us);
        self.rows.open_mut().record(position, meta.timestamp_us);
        if meta.correlation_id != 0 {
            self.rows.open_mut().correlate(meta.correlation_id, log_offset);
        }
        let happened = Happened { at_us: meta.timestamp_us, log_offset, position };
        let effect = match record.entry {
            Entry::Claim(claim) => {
                self.check_claim(meta, claim.event_id)?;
                let index = self.rows.add(self.row_of(&claim, meta.timestamp_us, happened), self.quarter.0)?;
                self.budget_mut(claim.event_id.prefix()).claimed(meta.timestamp_us);
                self.keep(record, position, log_offset, index);
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
                self.changed(event_id, position)?;
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
            Entry::Recovery { .. } | Entry::Reshard { .. } => None,
            Entry::Carry { claim, claimed_at_us, claim_at, change } => {
                self.rows.carry(self.row_of(&claim, claimed_at_us, happened), claim_at, change)?;
                None
            }
            Entry::RetentionDrop { dropped } => {
                self.apply_drop(dropped)?;
                None
            }
            Entry::Repair { floors, .. } | Entry::Restore { floors, .. } => {
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
            let effect = self.rows.open_mut().keep_effect(effect);
            self.keep(record, position, log_offset, effect);
        }
        Ok(())
    }

    /// The row that an entry with a claim makes.
    fn row_of(&self, claim: &ClaimEntry<'_>, claim_timestamp_us: i64, happened: Happened) -> rows::Claimed {
        rows::Claimed {
            event_id: claim.event_id,
            claim_timestamp_us,
            claim_sequence: claim.claim_sequence,
            occurred_at_us: claim.occurred_at_us,
            key_hash: self.key_hash(claim.event_key),
            over_budget: claim.over_budget,
            incident_active: claim.incident_active,
            claim_at: happened.log_offset,
            position: happened.position,
        }
    }

    /// A record in another segment than the one before it ends that one.
    pub fn enter_segment(&mut self, log_offset: u64) {
        let segment = self.rows.segment_of(log_offset);
        while self.rows.segment() < segment {
            if self.seals {
                let (snapshot, origin) = (self.snapshot(), self.origin());
                self.snapshots.push_back((snapshot, origin));
            }
            self.rows.freeze();
        }
    }

    /// Whether everything that changing these rows takes is at hand.
    pub fn rows_at_hand(&self, event_ids: impl Iterator<Item = EventId>) -> Fetch<()> {
        sealed::all(event_ids.map(|id| self.rows.is_at_hand(id))).map(|_| ())
    }

    /// Whether everything that applying an entry takes is at hand.
    pub fn at_hand(&self, entry: &Entry<'_>) -> Fetch<()> {
        let rows = |ids: &[EventId]| self.rows_at_hand(ids.iter().copied());
        match entry {
            Entry::Reference { event_id, .. } | Entry::Tombstone { event_id, .. } | Entry::Reactivate { event_id } => {
                rows(&[*event_id])
            }
            Entry::Dispute { sides, .. } => rows(sides.ids()),
            Entry::DisputeStep { dispute, .. } => match self.disputes.get(*dispute) {
                Some(dispute) => rows(dispute.sides.ids()),
                None => Ok(()),
            },
            Entry::Reconcile { merges, .. } => {
                rows(&entry::merges(merges).map(|merge| merge.alias).collect::<Vec<_>>())
            }
            _ => Ok(()),
        }
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
            Entry::Hold { quarter, held, at_us, .. } => {
                let hold = held.then(|| Hold { at_us, reason: meta.rationale.to_owned() });
                self.retention.hold(quarter, hold);
                Some(Effect::Held(quarter, held, at_us, sequence))
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
                    steps: Vec::new(),
                })?;
                sides.ids().iter().try_for_each(|id| self.rows.concern(*id, happened.log_offset))?;
                Some(Effect::Dispute(dispute, DisputeState::Detect, 0, sequence))
            }
            Entry::DisputeStep { dispute, step, at_us, rows, verdicts, .. } => {
                let moved = self.disputes.step(dispute, step, at_us, verdicts, sequence)?;
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
                let corpus = self.registry.of_prefix(event_id.prefix());
                if step == DisputeStep::Quarantine && corpus.is_some_and(|corpus| corpus.shard == self.number) {
                    self.disputes.not_flagged(dispute.id);
                }
                self.rows.concern(*event_id, happened.log_offset)?;
                continue;
            }
            match step {
                DisputeStep::Quarantine => {
                    self.rows.transit(*event_id, RowOperation::Dispute, With::Dispute(dispute.id), happened)?;
                }
                DisputeStep::Void => {
                    self.rows.transit(*event_id, RowOperation::Void, With::Nothing, happened)?;
                    self.changed(*event_id, happened.position)?;
                }
                DisputeStep::Arbitrate => {
                    let verdict = verdict.ok_or_else(|| format!("no verdict on {event_id}"))?;
                    self.rows.settle(*event_id, verdict, dispute.canonical(), happened)?;
                    self.changed(*event_id, happened.position)?;
                }
                _ => return Err(format!("{} changes no row", step.operation())),
            }
        }
        Ok(())
    }

    fn changed(&mut self, event_id: EventId, position: u64) -> Result<(), String> {
        if let Some(found) = self.rows.get(event_id).map_err(|unread| unread.to_string())? {
            self.passes.changed(&found, position);
        }
        Ok(())
    }

    pub(super) fn budget_mut(&mut self, prefix: Prefix) -> &mut Budget {
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
            self.globals.push_back(GlobalEntry { sequence, position, kind: record.entry.kind(), body });
        }
        Ok(())
    }

    fn keep(&mut self, record: &Record<'_>, position: u64, log_offset: u64, effect: u64) {
        let meta = &record.meta;
        // The key of a global entry counts at shard 0, where the request was decided.
        let is_copy = record.entry.global_sequence().is_some() && self.number != 0;
        if meta.idempotency_key != 0 && !is_copy {
            let kept = Kept { fingerprint: meta.fingerprint, position, effect };
            self.rows.keep_key(KeyId::of(meta), kept, log_offset);
        }
    }

    fn advance_time(&mut self, to_us: i64) {
        self.last_us = to_us;
        if !self.quarter.1.contains(&to_us) {
            self.quarter = quarter_of(to_us);
        }
        self.rows.open_mut().forget_keys_before(to_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::entry::Principal;
    use crate::log::layout::Geometry;
    use crate::log::superblock::Superblock;
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
            shard_count: 2,
            formatted_at_us: AT_US,
            ..Superblock::of_new_ledger(Uuid::from_u128(1), [1; 32], Geometry::DEFAULT)
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
        // Slots beyond any that a claim can count up to.
        for (is_right, sequence) in [(true, 1_000), (true, 1 << 62), (false, (1 << 62) + 1), (false, u64::MAX)] {
            let floors = entry::encode_floors(&[(prefix(), sequence)]);
            let entry = Entry::Repair { cut_at: 0, given_up_to: 0, floors: &floors };
            let applied = onboarded(0).apply(3, 0, &Record { meta: meta(AT_US, 0, 0), entry });
            assert_eq!(applied.is_ok(), is_right, "slots up to {sequence}: {applied:?}");
        }
        let applied = shard().apply(2, 0, &Record { meta: meta(AT_US, 0, 0), entry: onboard(2) });
        assert!(applied.is_err(), "a corpus on a shard that is not there: {applied:?}");
    }
}
