//! What is known of an idempotency key: from memory, or from the index of a sealed segment and the record that it leads to.

use super::keys::{self, Kept, KeyId};
use super::{Effect, Shard};
use crate::command::Claimed;
use crate::corpus::Prefix;
use crate::dispute::DisputeState;
use crate::error::Refusal;
use crate::log::entry::{Entry, Record};
use crate::sealed::{Fetch, Unread};

/// A request that has had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Of the entry that it made.
    pub position: u64,
    /// What it did.
    pub effect: Effect,
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It has not been used.
    New,
    /// The same request has had its effect.
    Done(Known),
}

/// Why a key can't be used.
pub enum KeyStop {
    /// It is refused; the refusal depends on this position.
    Refused(Refusal, u64),
    /// It takes more to know.
    Unread(Unread),
}

impl Shard {
    /// What is known of a key at the shard's time.
    pub(super) fn key_state(&self, id: KeyId, fingerprint: u64, time_us: i64) -> Result<KeyState, KeyStop> {
        self.key_in_window(id, time_us)?;
        match self.kept(id).map_err(KeyStop::Unread)? {
            None => Ok(KeyState::New),
            Some((kept, effect)) if kept.fingerprint == fingerprint => {
                Ok(KeyState::Done(Known { position: kept.position, effect }))
            }
            Some((kept, _)) => Err(KeyStop::Refused(keys::reused(id), kept.position)),
        }
    }

    pub(super) fn key_in_window(&self, id: KeyId, time_us: i64) -> Result<(), KeyStop> {
        keys::out_of_window(id, time_us).map_or(Ok(()), |refusal| Err(KeyStop::Refused(refusal, 0)))
    }

    /// What is kept of a key.
    pub(super) fn kept(&self, id: KeyId) -> Fetch<Option<(Kept, Effect)>> {
        if let Some(done) = self.rows.done(id) {
            return Ok(Some(done));
        }
        if !self.rows.catalog().may_have_key_of(id.ms()) {
            return Ok(None);
        }
        for found in self.rows.catalog().keyed(id.hash(self.secret), id.ms())? {
            let damaged =
                |why: String| Unread::Damaged(format!("the record at log offset {}: {why}", found.log_offset));
            let record = Record::decode(found.kind, &found.body).map_err(|e| damaged(e.to_string()))?;
            if KeyId::of(&record.meta) == id {
                let effect = self.effect_of(&record).map_err(damaged)?;
                let kept = Kept { fingerprint: record.meta.fingerprint, position: found.position, effect: 0 };
                return Ok(Some((kept, effect)));
            }
        }
        Ok(None)
    }

    /// What an entry did, to answer again.
    fn effect_of(&self, record: &Record<'_>) -> Result<Effect, String> {
        let at_us = record.meta.timestamp_us;
        Ok(match record.entry {
            Entry::Claim(claim) => Effect::Claimed(Claimed {
                event_id: claim.event_id,
                claim_timestamp_us: at_us,
                claim_sequence: claim.claim_sequence,
            }),
            Entry::Reference { canonical_id, .. } => Effect::Referenced(canonical_id),
            Entry::Tombstone { event_id, .. } => Effect::Retracted(event_id, at_us),
            Entry::Reactivate { event_id } => Effect::Reactivated(event_id, at_us),
            Entry::Onboard { prefix, global_sequence, .. } => Effect::Onboarded(prefix, global_sequence),
            Entry::ConfirmClock { global_sequence } => Effect::ClockConfirmed(at_us, global_sequence),
            Entry::Decommission { prefix, global_sequence, .. } => Effect::Decommissioned(prefix, global_sequence),
            Entry::Freeze { prefix, frozen, at_us, global_sequence } => {
                Effect::Frozen(prefix, frozen, at_us, global_sequence)
            }
            Entry::Cap { prefix, claims_per_minute, global_sequence } => {
                Effect::Capped(prefix, claims_per_minute, at_us, global_sequence)
            }
            Entry::SlotIncrease { global_sequence, .. } => Effect::Proposal(global_sequence, 0, global_sequence),
            Entry::SignOff { proposal, global_sequence, .. } => {
                let uid = record.meta.principal.uid;
                let signatures = self.registry.proposal(proposal).map_or(&[][..], |found| &found.signatures);
                let signed = signatures.iter().position(|signature| signature.uid == uid);
                let signed = signed.ok_or_else(|| format!("proposal {proposal} has no signature of uid {uid}"))?;
                Effect::Proposal(proposal, signed + 1, global_sequence)
            }
            Entry::Incident { active, global_sequence } => Effect::Incident(active, at_us, global_sequence),
            Entry::Barrier { at_us, global_sequence } => Effect::Barrier(at_us, global_sequence),
            Entry::Hold { quarter, held, at_us, global_sequence } => {
                Effect::Held(quarter, held, at_us, global_sequence)
            }
            Entry::Configuration { at_us, global_sequence, .. } => Effect::Configured(at_us, global_sequence),
            Entry::Dispute { dispute, global_sequence, .. } => {
                Effect::Dispute(dispute, DisputeState::Detect, 0, global_sequence)
            }
            Entry::DisputeStep { dispute, global_sequence, .. } => {
                let steps = self.disputes.get(dispute).map_or(&[][..], |found| &found.steps);
                let moved = steps.iter().find(|moved| moved.global_sequence == global_sequence);
                let moved = moved.ok_or_else(|| format!("dispute {dispute} has no step {global_sequence}"))?;
                Effect::Dispute(dispute, moved.state, moved.responses, global_sequence)
            }
            Entry::Reconcile { pass, .. } => Effect::Reconciled(pass),
            ref other => return Err(format!("a {} has no key", other.operation())),
        })
    }
}

impl KeyId {
    /// The key of an entry.
    #[inline(always)]
    pub fn of(meta: &crate::log::entry::Meta<'_>) -> KeyId {
        KeyId::new(meta.corpus.map_or(0, Prefix::get), meta.idempotency_key, meta.item)
    }
}
