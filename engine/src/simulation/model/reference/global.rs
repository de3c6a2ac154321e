//! What concerns the whole ledger: the registry, stops, slots, incidents.

use super::{Answer, Hint, Model, no};
use crate::command::{Corpus, Outcome, Proposal, Signature, Stop};
use crate::corpus::Prefix;
use crate::error::{Code, Refusal};
use crate::policy::{Policy, Role};
use crate::simulation::model::words::{Asked, Op};
use crate::time::Quarter;

impl Model {
    pub(super) fn decide_global(&mut self, asked: &Asked, hint: &Hint) -> Answer {
        let ends_a_stop =
            matches!(asked.op, Op::Freeze { frozen: false, .. } | Op::ConfirmClock | Op::Configure { .. });
        if !ends_a_stop {
            self.not_frozen(None)?;
        }
        let now_us = self.now_us;
        let known = |model: &Model, name: &str| match model.corpus(name) {
            Some(corpus) => Ok(corpus.prefix),
            None => no(Code::UnknownCorpus),
        };
        let outcome = match &asked.op {
            Op::Onboard { name, notes } => return self.onboard(asked, name, notes),
            Op::ConfirmClock => Outcome::ClockConfirmed { confirmed_at_us: now_us },
            Op::Decommission { name, dry_run } => {
                let prefix = known(self, name)?;
                if self.corpus_mut(prefix).decommissioned_at_us.is_some() {
                    return no(Code::Decommissioned);
                }
                if !dry_run {
                    self.corpus_mut(prefix).decommissioned_at_us = Some(now_us);
                }
                let corpus = Box::new(self.corpus_mut(prefix).clone());
                let outcome = Outcome::Decommissioned { corpus, applied: !dry_run, usage: self.usage(prefix, 0) };
                if *dry_run {
                    return Ok(outcome);
                }
                outcome
            }
            Op::Freeze { corpus, frozen } => {
                let prefix = if corpus.is_empty() { None } else { Some(known(self, corpus)?) };
                let stop = Stop { at_us: now_us, reason: asked.rationale.clone() };
                let place = match prefix {
                    None => &mut self.frozen,
                    Some(prefix) => &mut self.corpus_mut(prefix).frozen,
                };
                if place.is_some() == *frozen {
                    return no(Code::BadTransition);
                }
                *place = frozen.then_some(stop);
                Outcome::Frozen { corpus: corpus.clone(), frozen: *frozen, at_us: now_us }
            }
            Op::Cap { corpus, per_minute } => {
                let prefix = known(self, corpus)?;
                self.not_closed(prefix)?;
                self.corpus_mut(prefix).cap_per_minute = *per_minute;
                Outcome::Capped { corpus: corpus.clone(), claims_per_minute: *per_minute, at_us: now_us }
            }
            Op::Propose { corpus, slots } => self.propose(corpus, *slots, hint)?,
            Op::SignOff { proposal, role } => self.sign_off(asked, *proposal, *role)?,
            Op::Incident(active) => {
                self.incident = *active;
                Outcome::IncidentSet { active: *active, at_us: now_us }
            }
            Op::Barrier => {
                self.barriers.push(now_us);
                Outcome::BarrierRaised { at_us: now_us }
            }
            Op::Configure { toml } => {
                let Ok(policy) = Policy::parse(toml) else { return no(Code::BadRequest) };
                self.settings = policy.settings().clone();
                self.configured = Some((toml.clone(), now_us, asked.who.uid));
                Outcome::Configured { at_us: now_us }
            }
            Op::Dispute { corpus, ids } => self.open_dispute(asked, corpus, ids, hint)?,
            Op::Respond { corpus, dispute } => self.respond(corpus, *dispute)?,
            Op::Escalate { dispute } => self.escalate(*dispute)?,
            Op::Arbitrate { dispute, verdicts } => self.arbitrate(*dispute, verdicts)?,
            Op::Reconcile { dry_run } => {
                if !dry_run {
                    self.logged(asked, &(0..self.shard_count).collect::<Vec<_>>());
                }
                return Ok(Outcome::Reconciled(Box::new(self.pass(*dry_run))));
            }
            _ => return no(Code::BadRequest),
        };
        self.logged_everywhere(asked);
        Ok(outcome)
    }

    pub(super) fn onboard(&mut self, asked: &Asked, name: &str, notes: &str) -> Answer {
        if self.corpus(name).is_some() {
            return no(Code::AlreadyRegistered);
        }
        let given_out = self.corpora.len() as u16;
        let quarter = Quarter::of(self.now_us);
        let is_due = self.minted_to - given_out < 20 || self.minted_in != Some(quarter);
        if is_due && given_out + 100 > self.minted_to {
            (self.minted_to, self.minted_in) = (given_out + 100, Some(quarter));
            self.logged_everywhere(asked);
        }
        let on_shard = |shard: u16| self.corpora.iter().filter(|corpus| corpus.shard == shard).count();
        let shard = (0..self.shard_count).min_by_key(|shard| (on_shard(*shard), *shard)).unwrap_or(0);
        let corpus = Corpus {
            name: name.to_owned(),
            prefix: Prefix::new(given_out + 1).expect("few corpora"),
            shard,
            onboarded_at_us: self.now_us,
            notes: notes.to_owned(),
            ..Corpus::default()
        };
        self.corpora.push(corpus.clone());
        self.logged_everywhere(asked);
        Ok(Outcome::Onboarded(Box::new(corpus)))
    }

    fn not_closed(&self, prefix: Prefix) -> Result<(), Refusal> {
        let is_closed = self.of_prefix(prefix).is_some_and(|corpus| corpus.decommissioned_at_us.is_some());
        if is_closed { no(Code::Decommissioned) } else { Ok(()) }
    }

    pub(super) fn propose(&mut self, corpus: &str, slots: u64, hint: &Hint) -> Answer {
        let Some(prefix) = self.corpus(corpus).map(|corpus| corpus.prefix) else { return no(Code::UnknownCorpus) };
        self.not_closed(prefix)?;
        if slots <= self.slots_at(prefix, Quarter::of(self.now_us).end_us()) || slots > 1_000_000_000_000 {
            return no(Code::BadRequest);
        }
        let is_open = |proposal: &&Proposal| proposal.prefix == prefix && proposal.effective_from_us.is_none();
        if self.proposals.iter().filter(is_open).count() >= 16 {
            return no(Code::BadTransition);
        }
        let last = self.proposals.last().map_or(0, |proposal| proposal.number);
        let proposal = Proposal {
            number: hint.proposal.filter(|number| *number > last).unwrap_or(last),
            prefix,
            slots,
            proposed_at_us: self.now_us,
            signatures: Vec::new(),
            effective_from_us: None,
        };
        self.proposals.push(proposal.clone());
        Ok(Outcome::Proposal(Box::new(proposal)))
    }

    pub(super) fn sign_off(&mut self, asked: &Asked, number: u64, role: Role) -> Answer {
        let (uid, at_us) = (asked.who.uid, self.now_us);
        let Some(proposal) = self.proposals.iter().find(|proposal| proposal.number == number) else {
            return no(Code::NotVisible);
        };
        if !matches!(role, Role::Platform | Role::Facilitator | Role::Manager) {
            return no(Code::BadRequest);
        }
        if proposal.effective_from_us.is_some() || proposal.signatures.iter().any(|s| s.role == role) {
            return no(Code::BadTransition);
        }
        if proposal.signatures.iter().any(|signature| signature.uid == uid) {
            return no(Code::Forbidden);
        }
        let (prefix, slots) = (proposal.prefix, proposal.slots);
        self.not_closed(prefix)?;
        if slots <= self.slots_at(prefix, Quarter::of(at_us).end_us()) {
            return no(Code::BadTransition);
        }
        let proposal = self.proposals.iter_mut().find(|proposal| proposal.number == number).expect("looked up above");
        proposal.signatures.push(Signature { role, uid, at_us });
        if proposal.signatures.len() == 3 {
            let from_us = Quarter::of(at_us).end_us();
            proposal.effective_from_us = Some(from_us);
            let outcome = Outcome::Proposal(Box::new(proposal.clone()));
            self.corpus_mut(prefix).slots.push((from_us, slots));
            self.events.push("a slot increase is signed");
            return Ok(outcome);
        }
        Ok(Outcome::Proposal(Box::new(proposal.clone())))
    }
}
