//! Decisions about disputes. Shard 0 takes them; what rows of other shards are, it asks before.

use super::decide::{Decided, Keyed, Step, Stop, number, refuse};
use super::idempotency::KeyState;
use super::{Decision, Effect, Needs};
use crate::command::{Fact, Outcome, Request};
use crate::corpus::Prefix;
use crate::dispute::{
    DisputeId, DisputeState, DisputeStep, OPEN_DISPUTES_MAX, SIDES_MAX, SIDES_MIN, Sides, Verdict, dispute_transition,
};
use crate::error::{Code, Refusal};
use crate::id::EventId;
use crate::log::entry::Entry;
use crate::policy::Action;
use crate::row::{RowOperation, transition};
use crate::sealed;

/// Advice on when to try again for a corpus that has as many open disputes as it may.
const BAD_FAITH_RETRY_MS: u32 = 60_000;

impl Step<'_, '_, '_> {
    /// A set that was dismissed before is the arbitrator's to open again.
    pub(super) fn authorise_dispute(&mut self, request: &Request<'_>, corpus: &str) -> Decided<()> {
        let crate::command::Operation::Dispute { event_ids, .. } = request.operation else { return Ok(()) };
        let policy = &self.shard.policy;
        let may_open = policy.allows(request.principal, Action::Dispute, Some(corpus));
        let may_reopen = policy.allows(request.principal, Action::DisputeDismissed, None);
        let mut set = event_ids.to_vec();
        set.sort_unstable();
        // Who may do neither learns nothing about the set.
        let was_dismissed = (may_open || may_reopen) && self.shard.disputes.was_dismissed(&set);
        let prefix = self.shard.registry.of_name(corpus).map(|corpus| corpus.prefix);
        match was_dismissed {
            true if may_reopen => Ok(()),
            true => self.forbid(request, Action::DisputeDismissed, prefix),
            false if may_open => Ok(()),
            false => self.forbid(request, Action::Dispute, prefix),
        }
    }

    pub(super) fn open_dispute(
        &mut self,
        request: &Request<'_>,
        corpus: &str,
        event_ids: &[EventId],
        time_us: i64,
    ) -> Decided<Decision> {
        let prefix = self.corpus(corpus)?;
        let fingerprint = self.fingerprint(request, Keyed::Dispute, |out| {
            number(out, event_ids.len() as u64);
            event_ids.iter().for_each(|id| out.extend_from_slice(&id.as_u128().to_be_bytes()));
        });
        if let KeyState::Done(kept) = self.global_key(request, Some(prefix), fingerprint, time_us)? {
            return self.dispute_again(self.effect(kept), kept.position);
        }
        let Some(sides) = Sides::new(event_ids) else {
            let message = format!(
                "a dispute is about {SIDES_MIN} to {SIDES_MAX} different rows of at least two corpora; this names {}",
                event_ids.len()
            );
            return refuse(Refusal::new(Code::BadRequest, message));
        };
        if !sides.concern(prefix) {
            let message = format!("none of these rows is of corpus '{corpus}': a corpus concerned opens a dispute");
            return refuse(Refusal::new(Code::BadRequest, message));
        }
        self.sides_not_stopped(&sides)?;
        self.expect_disputable(&sides, time_us)?;
        let open = self.shard.disputes.open_of(prefix);
        if open >= OPEN_DISPUTES_MAX {
            let message =
                format!("corpus '{corpus}' has {open} open disputes, as many as one may: wait until one is closed");
            let refusal = Refusal::retry_after(Code::Throttled, BAD_FAITH_RETRY_MS, message);
            return Err(Stop::refused(refusal, self.shard.last_position));
        }
        let dispute = self.new_dispute_id(time_us);
        let entry = Entry::Dispute { global_sequence: self.next_global(), dispute, opened_at_us: time_us, sides };
        let position = self.global(request, Some(prefix), fingerprint, time_us, entry)?;
        self.dispute_now(dispute, position, 0)
    }

    /// A stop of any of the corpora stops what would change their rows.
    fn sides_not_stopped(&self, sides: &Sides) -> Decided<()> {
        sides.ids().iter().try_for_each(|id| self.not_stopped(id.prefix()))
    }

    fn new_dispute_id(&mut self, time_us: i64) -> DisputeId {
        loop {
            let random = [self.entropy.next_u64(), self.entropy.next_u64()];
            let id = DisputeId::pack((time_us / 1_000) as u64, random);
            if self.shard.disputes.get(id).is_none() {
                return id;
            }
        }
    }

    /// Every row is there, and its state allows a dispute.
    fn expect_disputable(&self, sides: &Sides, time_us: i64) -> Decided<()> {
        let lives_here = |id: &EventId| {
            self.shard.registry.of_prefix(id.prefix()).is_none_or(|corpus| corpus.shard == self.shard.number)
        };
        let elsewhere: Vec<_> = sides.ids().iter().copied().filter(|id| !lives_here(id)).collect();
        if self.facts.is_none() && !elsewhere.is_empty() {
            return Err(Stop::needs(Needs::Rows(elsewhere)));
        }
        let last_position = self.shard.last_position;
        let own = sides.ids().iter().filter(|id| lives_here(id));
        let own: Vec<Fact> = sealed::all(own.map(|id| self.shard.fact(*id)))?;
        for event_id in sides.ids() {
            let fact = match lives_here(event_id) {
                true => own.iter().find(|fact| fact.event_id == *event_id).copied(),
                false => self.facts.unwrap_or_default().iter().find(|fact| fact.event_id == *event_id).copied(),
            };
            let Some(Fact { row: Some(row), .. }) = fact else {
                if self.shard.quarter_of_gone(*event_id).is_some() {
                    return Err(Stop::refused(self.gone(*event_id), last_position));
                }
                let refusal =
                    Refusal::retry_after(Code::NotVisible, 100, format!("there is no row {event_id} here yet"));
                return Err(Stop::refused(refusal, last_position));
            };
            if row.expires_at_us <= time_us {
                let message = format!("the row {event_id} is past its retention");
                return Err(Stop::refused(Refusal::new(Code::Expired, message), last_position));
            }
            if let Some(other) = self.shard.disputes.of_row(*event_id) {
                let message = format!("the row {event_id} is in dispute {other}: respond there");
                return Err(Stop::refused(Refusal::new(Code::BadTransition, message), last_position));
            }
            if transition(row.state, RowOperation::Dispute).is_none() {
                let message =
                    format!("the row {event_id} is {}; a row in that state can't be disputed", row.state.name());
                return Err(Stop::refused(Refusal::new(Code::BadTransition, message), last_position));
            }
        }
        Ok(())
    }

    fn dispute_now(&self, dispute: DisputeId, position: u64, global_sequence: u64) -> Decided<Decision> {
        let Some(found) = self.shard.disputes.get(dispute) else {
            return refuse(Refusal::retry_after(
                Code::NotVisible,
                100,
                format!("there is no dispute {dispute} here yet"),
            ));
        };
        Ok(Decision { outcome: Outcome::Dispute(Box::new(found.clone())), position, global_sequence })
    }

    /// What was answered to a request that is asked again.
    fn dispute_again(&self, effect: Effect, position: u64) -> Decided<Decision> {
        let Effect::Dispute(dispute, state, responses, sequence) = effect else {
            return refuse(Refusal::new(Code::KeyReused, "the key was used for another operation"));
        };
        // An opening is answered when it is durable; a verdict when every shard has it.
        let global_sequence = if state == DisputeState::Canonicalise { sequence } else { 0 };
        let mut decision = self.dispute_now(dispute, position, global_sequence)?;
        if let Outcome::Dispute(found) = &mut decision.outcome {
            if state != DisputeState::Canonicalise {
                found.verdicts = Default::default();
            }
            (found.state, found.responses) = (state, responses);
            let step = found.steps.iter().position(|moved| (moved.state, moved.responses) == (state, responses));
            found.steps.truncate(step.map_or(0, |index| index + 1));
            found.updated_at_us = found.steps.last().map_or(found.opened_at_us, |moved| moved.at_us);
        }
        Ok(decision)
    }

    /// The dispute, if a step is allowed from where it is.
    fn expect_step(&self, dispute: DisputeId, step: DisputeStep) -> Decided<Sides> {
        let Some(found) = self.shard.disputes.get(dispute) else {
            let message = format!("there is no dispute {dispute} here yet");
            return Err(Stop::refused(Refusal::retry_after(Code::NotVisible, 100, message), self.shard.last_position));
        };
        if dispute_transition(found.state, step).is_none() {
            let message =
                format!("dispute {dispute} is in {}; there it can't be {}", found.state.name(), step.participle());
            return Err(Stop::refused(Refusal::new(Code::BadTransition, message), self.shard.last_position));
        }
        Ok(found.sides)
    }

    fn take_step(
        &mut self,
        request: &Request<'_>,
        scope: Option<Prefix>,
        fingerprint: u64,
        time_us: i64,
        (dispute, step): (DisputeId, DisputeStep),
        verdicts: crate::dispute::Verdicts,
    ) -> Decided<Decision> {
        let global_sequence = self.next_global();
        let entry = Entry::DisputeStep { global_sequence, dispute, step, at_us: time_us, rows: 0, verdicts };
        let position = self.global(request, scope, fingerprint, time_us, entry)?;
        self.dispute_now(dispute, position, if step == DisputeStep::Arbitrate { global_sequence } else { 0 })
    }

    pub(super) fn respond(
        &mut self,
        request: &Request<'_>,
        corpus: &str,
        dispute: DisputeId,
        time_us: i64,
    ) -> Decided<Decision> {
        let prefix = self.corpus(corpus)?;
        let fingerprint = self.fingerprint(request, Keyed::DisputeStep, |out| {
            out.push(DisputeStep::Respond.number());
            out.extend_from_slice(&dispute.as_u128().to_be_bytes());
        });
        if let KeyState::Done(kept) = self.global_key(request, Some(prefix), fingerprint, time_us)? {
            return self.dispute_again(self.effect(kept), kept.position);
        }
        let is_concerned = self.shard.disputes.get(dispute).is_some_and(|d| d.sides.concern(prefix));
        if self.shard.disputes.get(dispute).is_some() && !is_concerned {
            let message = format!("none of the rows of dispute {dispute} is of corpus '{corpus}'");
            return Err(Stop::refused(Refusal::new(Code::BadRequest, message), self.shard.last_position));
        }
        self.expect_step(dispute, DisputeStep::Respond)?;
        self.not_stopped(prefix)?;
        let what = (dispute, DisputeStep::Respond);
        self.take_step(request, Some(prefix), fingerprint, time_us, what, Default::default())
    }

    pub(super) fn escalate(&mut self, request: &Request<'_>, dispute: DisputeId, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::DisputeStep, |out| {
            out.push(DisputeStep::Escalate.number());
            out.extend_from_slice(&dispute.as_u128().to_be_bytes());
        });
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)? {
            return self.dispute_again(self.effect(kept), kept.position);
        }
        self.expect_step(dispute, DisputeStep::Escalate)?;
        let what = (dispute, DisputeStep::Escalate);
        self.take_step(request, None, fingerprint, time_us, what, Default::default())
    }

    pub(super) fn arbitrate(
        &mut self,
        request: &Request<'_>,
        dispute: DisputeId,
        given: &[(EventId, Verdict)],
        time_us: i64,
    ) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::DisputeStep, |out| {
            out.push(DisputeStep::Arbitrate.number());
            out.extend_from_slice(&dispute.as_u128().to_be_bytes());
            for (event_id, verdict) in given {
                out.extend_from_slice(&event_id.as_u128().to_be_bytes());
                out.push(verdict.number());
            }
        });
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)? {
            return self.dispute_again(self.effect(kept), kept.position);
        }
        let sides = self.expect_step(dispute, DisputeStep::Arbitrate)?;
        let mut verdicts = [None; SIDES_MAX];
        let ids = sides.ids();
        let is_dismissal = given.len() == ids.len() && given.iter().all(|(_, v)| *v == Verdict::Dismissed);
        for (event_id, verdict) in given {
            let Some(index) = ids.iter().position(|id| id == event_id).filter(|i| verdicts[*i].is_none()) else {
                let message = format!("{event_id} is no row of dispute {dispute}, or is named twice");
                return Err(Stop::refused(Refusal::new(Code::BadRequest, message), self.shard.last_position));
            };
            verdicts[index] = Some(*verdict);
        }
        let canonical = given.iter().filter(|(_, verdict)| *verdict == Verdict::Canonical).count();
        let is_mixed = !is_dismissal && given.iter().any(|(_, verdict)| *verdict == Verdict::Dismissed);
        if given.len() != ids.len() || is_mixed || (!is_dismissal && canonical != 1) {
            let message = format!(
                "a verdict on dispute {dispute} names each of its {} rows, one of them canonical; or dismisses it as a whole",
                ids.len()
            );
            return Err(Stop::refused(Refusal::new(Code::BadRequest, message), self.shard.last_position));
        }
        self.sides_not_stopped(&sides)?;
        let what = (dispute, DisputeStep::Arbitrate);
        self.take_step(request, None, fingerprint, time_us, what, verdicts)
    }
}
