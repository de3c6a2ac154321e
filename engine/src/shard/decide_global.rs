//! Decisions about what belongs to the whole ledger: the registry, stops, caps, slots, incidents, configuration. Shard 0
//! takes them, and every shard follows.

use super::decide::{Decided, FROZEN_RETRY_MS, Keyed, Step, Stop, number, refuse, text};
use super::idempotency::{KeyState, KeyStop};
use super::keys::KeyId;
use super::registry::{OPEN_PROPOSALS_MAX, SIGNING_ROLES, SLOTS_MAX};
use super::{Decision, Effect, Stepped};
use crate::command::{Corpus, DISPUTES_LISTED_MAX, Operation, Outcome, Request};
use crate::corpus::Prefix;
use crate::error::{Code, Refusal};
use crate::log::entry::{Entry, Meta, PassCounts, PassPhase, Record};
use crate::policy::{Action, Policy, Role};
use crate::retention::HOLDS_MAX;
use crate::time::Quarter;

/// A hold that comes before all shards have said what they have dropped may be asked for again after this.
const HOLD_RETRY_MS: u32 = 100;

impl Step<'_, '_, '_> {
    pub(super) fn decide_global(&mut self, request: &Request<'_>, time_us: i64) -> Decided<Stepped> {
        let decision = match request.operation {
            Operation::Onboard { name, notes } => self.onboard(request, name, notes, time_us)?,
            Operation::ConfirmClock => self.confirm_clock(request)?,
            Operation::Decommission { name, dry_run } => self.decommission(request, name, dry_run, time_us)?,
            Operation::Freeze { corpus, frozen } => self.freeze(request, corpus, frozen, time_us)?,
            Operation::Cap { corpus, claims_per_minute } => self.cap(request, corpus, claims_per_minute, time_us)?,
            Operation::ProposeSlots { corpus, slots } => self.propose(request, corpus, slots, time_us)?,
            Operation::SignOff { proposal, role } => self.sign_off(request, proposal, role, time_us)?,
            Operation::Incident { active } => self.incident(request, active, time_us)?,
            Operation::Barrier => self.barrier(request, time_us)?,
            Operation::Configure { toml } => self.configure(request, toml, time_us)?,
            Operation::Hold { quarter, held } => self.hold(request, quarter, held, time_us)?,
            Operation::Dispute { corpus, event_ids } => self.open_dispute(request, corpus, event_ids, time_us)?,
            Operation::Respond { corpus, dispute } => self.respond(request, corpus, dispute, time_us)?,
            Operation::Arbitrate { dispute, verdicts } => self.arbitrate(request, dispute, verdicts, time_us)?,
            Operation::Escalate { dispute } => self.escalate(request, dispute, time_us)?,
            Operation::Reconcile { dry_run } => return self.reconcile(request, dry_run, time_us),
            _ => return refuse(Refusal::new(Code::BadRequest, "no operation of the whole ledger")),
        };
        Ok(decision.into())
    }

    pub(super) fn read_global(&mut self, request: &Request<'_>) -> Decided<Decision> {
        let shard = &*self.shard;
        let may_read = |prefix: Prefix| {
            let name = shard.registry.of_prefix(prefix).map(|corpus| corpus.name.as_str());
            shard.policy.allows(request.principal, Action::ReadCorpus, name)
        };
        let outcome = match request.operation {
            Operation::DisputeLookup { dispute } => {
                let found = shard.disputes.get(dispute);
                // Whoever may read none of its rows is told the same as if it were not there.
                let found = found.filter(|d| d.sides.ids().iter().any(|id| may_read(id.prefix())));
                match found {
                    Some(dispute) => Outcome::Dispute(Box::new(dispute.clone())),
                    None => {
                        let message = format!("there is no dispute {dispute} here yet");
                        return refuse(Refusal::retry_after(Code::NotVisible, 100, message));
                    }
                }
            }
            Operation::Disputes { corpus, include_closed, before } => {
                let of = match corpus {
                    "" => None,
                    name => Some(self.corpus(name)?),
                };
                let all = shard.disputes.opened_before(before).filter(|d| include_closed || d.state.is_open());
                let all = all.filter(|d| of.is_none_or(|prefix| d.sides.concern(prefix)));
                let mut all = all.filter(|d| d.sides.ids().iter().any(|id| may_read(id.prefix())));
                let disputes = all.by_ref().take(DISPUTES_LISTED_MAX).cloned().collect();
                Outcome::Disputes { disputes, more: all.next().is_some() }
            }
            Operation::Proposals => {
                let all = shard.registry.proposals().iter().filter(|p| may_read(p.prefix));
                Outcome::Proposals(all.cloned().collect())
            }
            Operation::Configuration => {
                let in_force = &shard.in_force;
                Outcome::Configuration { toml: in_force.toml.clone(), at_us: in_force.at_us, uid: in_force.uid }
            }
            _ => return refuse(Refusal::new(Code::BadRequest, "no question to the whole ledger")),
        };
        Ok(Decision::now(outcome, shard.last_position))
    }

    /// Appends an entry of the global order; it is answered when every shard has it.
    pub(super) fn global(
        &mut self,
        request: &Request<'_>,
        scope: Option<Prefix>,
        fingerprint: u64,
        time_us: i64,
        entry: Entry<'_>,
    ) -> Decided<u64> {
        self.shard.at_hand(&entry)?;
        Ok(self.append_global(request, scope, fingerprint, time_us, entry))
    }

    fn append_global(
        &mut self,
        request: &Request<'_>,
        scope: Option<Prefix>,
        fingerprint: u64,
        time_us: i64,
        entry: Entry<'_>,
    ) -> u64 {
        let meta = Meta {
            timestamp_us: time_us,
            idempotency_key: request.idempotency_key,
            correlation_id: request.correlation_id,
            fingerprint,
            principal: request.principal,
            item: 0,
            corpus: scope,
            rationale: request.rationale,
        };
        self.shard.append_here(Record { meta, entry }, self.log)
    }

    /// What is known of the request's key, and for a new operation whether the ledger is stopped: what was done before the
    /// stop is answered again.
    pub(super) fn global_key(
        &self,
        request: &Request<'_>,
        scope: Option<Prefix>,
        fingerprint: u64,
        time_us: i64,
    ) -> Decided<KeyState> {
        let state = self.key(request, scope, 0, fingerprint, time_us)?;
        if state == KeyState::New {
            self.ledger_not_stopped(request)?;
        }
        Ok(state)
    }

    fn ledger_not_stopped(&self, request: &Request<'_>) -> Decided<()> {
        // Unfreezing is what one does about a stop, and confirming about a clock.
        let ends_a_stop = matches!(
            request.operation,
            Operation::Freeze { frozen: false, .. } | Operation::ConfirmClock | Operation::Configure { .. }
        );
        match self.shard.registry.frozen() {
            Some(stop) if !ends_a_stop => {
                let message = format!("the ledger is frozen: {}; `claimctl unfreeze` ends it", stop.reason);
                refuse(Refusal::retry_after(Code::Frozen, FROZEN_RETRY_MS, message))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn next_global(&self) -> u64 {
        self.shard.globals_applied + 1
    }

    fn onboard(&mut self, request: &Request<'_>, name: &str, notes: &str, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Onboard, |out| {
            text(out, name);
            text(out, notes);
        });
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Onboarded(prefix, global_sequence) = self.effect(kept)
            && let Some(corpus) = self.shard.registry.of_prefix(prefix)
        {
            // As it was then.
            let Corpus { name, prefix, shard, onboarded_at_us, notes, .. } = corpus.clone();
            let corpus = Corpus { name, prefix, shard, onboarded_at_us, notes, ..Corpus::default() };
            let outcome = Outcome::Onboarded(Box::new(corpus));
            return Ok(Decision { outcome, position: kept.position, global_sequence });
        }
        if let Some(corpus) = self.shard.registry.of_name(name) {
            let message = format!("corpus '{name}' is onboarded: prefix {}, shard {}", corpus.prefix, corpus.shard);
            return Err(Stop::refused(Refusal::new(Code::AlreadyRegistered, message), self.shard.last_position));
        }
        let Some(prefix) = self.shard.registry.next_prefix() else {
            return refuse(Refusal::new(
                Code::BadRequest,
                "all 65,535 shard prefixes are given out; none is ever reused",
            ));
        };
        if let Some(minted_to) = self.shard.registry.mint_to(Quarter::of(time_us)) {
            let global_sequence = self.next_global();
            self.append(request, None, 0, fingerprint, time_us, Entry::PrefixAllocation { global_sequence, minted_to });
        }
        let shard = self.shard.registry.place(self.shard.shard_count);
        let global_sequence = self.next_global();
        let entry = Entry::Onboard { global_sequence, prefix, shard, name, notes, onboarded_at_us: time_us };
        let position = self.append(request, None, 0, fingerprint, time_us, entry);
        let (name, notes) = (name.to_owned(), notes.to_owned());
        let corpus = Corpus { name, prefix, shard, onboarded_at_us: time_us, notes, ..Corpus::default() };
        Ok(Decision { outcome: Outcome::Onboarded(Box::new(corpus)), position, global_sequence })
    }

    fn confirm_clock(&mut self, request: &Request<'_>) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::ConfirmClock, |_| {});
        let time_us = match request.at_us {
            Some(at_us) => at_us.max(self.shard.last_us),
            None => self.now.wall_us.max(self.shard.last_us),
        };
        // Not through `key`: this is what one does about a clock that is not believed.
        let id = KeyId::new(0, request.idempotency_key, 0);
        let state = self.shard.key_state(id, fingerprint, time_us).map_err(Stop::from)?;
        if let KeyState::Done(kept) = state
            && let Effect::ClockConfirmed(confirmed_at_us, global_sequence) = self.effect(kept)
        {
            let outcome = Outcome::ClockConfirmed { confirmed_at_us };
            return Ok(Decision { outcome, position: kept.position, global_sequence });
        }
        let global_sequence = self.next_global();
        let position = self.append(request, None, 0, fingerprint, time_us, Entry::ConfirmClock { global_sequence });
        self.shard.clock.confirm(self.now);
        let outcome = Outcome::ClockConfirmed { confirmed_at_us: time_us };
        Ok(Decision { outcome, position, global_sequence })
    }

    fn decommission(&mut self, request: &Request<'_>, name: &str, dry_run: bool, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Decommission, |out| text(out, name));
        let (mut position, mut global_sequence) = (self.shard.last_position, 0);
        let mut prefix = None;
        if dry_run {
            self.ledger_not_stopped(request)?;
        }
        if !dry_run
            && let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Decommissioned(done, sequence) = self.effect(kept)
        {
            (prefix, position, global_sequence) = (Some(done), kept.position, sequence);
        }
        let prefix = match prefix {
            Some(prefix) => prefix,
            None => {
                let prefix = self.corpus(name)?;
                if self.shard.registry.of_prefix(prefix).is_some_and(|c| c.decommissioned_at_us.is_some()) {
                    let message = format!("corpus '{name}' is decommissioned already");
                    return Err(Stop::refused(Refusal::new(Code::Decommissioned, message), position));
                }
                if !dry_run {
                    global_sequence = self.next_global();
                    let entry = Entry::Decommission { global_sequence, prefix, at_us: time_us };
                    position = self.global(request, None, fingerprint, time_us, entry)?;
                }
                prefix
            }
        };
        let corpus = Box::new(self.shard.registry.of_prefix(prefix).cloned().unwrap_or_default());
        let usage = self.shard.usage(prefix);
        let outcome = Outcome::Decommissioned { corpus, applied: !dry_run, usage };
        Ok(Decision { outcome, position, global_sequence })
    }

    fn freeze(&mut self, request: &Request<'_>, corpus: &str, frozen: bool, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Freeze, |out| {
            text(out, corpus);
            out.push(u8::from(frozen));
        });
        let outcome = |frozen, at_us| Outcome::Frozen { corpus: corpus.to_owned(), frozen, at_us };
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Frozen(_, frozen, at_us, global_sequence) = self.effect(kept)
        {
            return Ok(Decision { outcome: outcome(frozen, at_us), position: kept.position, global_sequence });
        }
        let prefix = match corpus {
            "" => None,
            name => Some(self.corpus(name)?),
        };
        let stop = match prefix {
            Some(prefix) => self.shard.registry.of_prefix(prefix).and_then(|c| c.frozen.as_ref()),
            None => self.shard.registry.frozen(),
        };
        if stop.is_some() == frozen {
            let what = if corpus.is_empty() { "the ledger".to_owned() } else { format!("corpus '{corpus}'") };
            let message = format!("{what} is {}", if frozen { "frozen already" } else { "not frozen" });
            return Err(Stop::refused(Refusal::new(Code::BadTransition, message), self.shard.last_position));
        }
        let global_sequence = self.next_global();
        let entry = Entry::Freeze { global_sequence, prefix, frozen, at_us: time_us };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        Ok(Decision { outcome: outcome(frozen, time_us), position, global_sequence })
    }

    fn hold(&mut self, request: &Request<'_>, quarter: Quarter, held: bool, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Hold, |out| {
            out.extend_from_slice(&quarter.year().to_le_bytes());
            out.extend_from_slice(&[quarter.number(), u8::from(held)]);
        });
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Held(quarter, held, at_us, global_sequence) = self.effect(kept)
        {
            let outcome = Outcome::Held { quarter, held, at_us };
            return Ok(Decision { outcome, position: kept.position, global_sequence });
        }
        let last_position = self.shard.last_position;
        let refused = |code, message| Err(Stop::refused(Refusal::new(code, message), last_position));
        let retention = self.shard.retention();
        if held && Some(quarter) <= retention.dropped_to() {
            return refused(Code::Expired, format!("{quarter} is dropped already; a backup may have it"));
        }
        if held && !self.shard.knows_drops {
            let message = "the shards have not said yet what they have dropped: ask again";
            return refuse(Refusal::retry_after(Code::Overloaded, HOLD_RETRY_MS, message));
        }
        if held && Some(quarter) <= self.shard.no_hold_through {
            let message = format!(
                "another shard has dropped {quarter}, or may do so at any moment; where `claimctl retention` says that it has not, a \
                 restart of the daemon takes that back"
            );
            return refused(Code::Expired, message);
        }
        if held && retention.holds.len() >= HOLDS_MAX {
            return refused(
                Code::BadTransition,
                format!("{HOLDS_MAX} quarters are held; end one of those holds first"),
            );
        }
        if retention.holds.contains_key(&quarter) == held {
            let what = if held { "held already" } else { "not held" };
            return refused(Code::BadTransition, format!("{quarter} is {what}"));
        }
        let global_sequence = self.next_global();
        let entry = Entry::Hold { global_sequence, quarter, held, at_us: time_us };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        Ok(Decision { outcome: Outcome::Held { quarter, held, at_us: time_us }, position, global_sequence })
    }

    fn cap(&mut self, request: &Request<'_>, corpus: &str, claims_per_minute: u32, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Cap, |out| {
            text(out, corpus);
            number(out, claims_per_minute.into());
        });
        let outcome = |at_us| Outcome::Capped { corpus: corpus.to_owned(), claims_per_minute, at_us };
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Capped(_, _, at_us, global_sequence) = self.effect(kept)
        {
            return Ok(Decision { outcome: outcome(at_us), position: kept.position, global_sequence });
        }
        let prefix = self.corpus(corpus)?;
        self.not_closed(prefix)?;
        let global_sequence = self.next_global();
        let entry = Entry::Cap { global_sequence, prefix, claims_per_minute };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        Ok(Decision { outcome: outcome(time_us), position, global_sequence })
    }

    /// A proposal as it was after so many signatures.
    fn proposal(&self, number: u64, signatures: usize, position: u64, global_sequence: u64) -> Decided<Decision> {
        let Some(proposal) = self.shard.registry.proposal(number) else {
            let message = format!("there is no proposal {number}; `claimctl slots list` lists them");
            return Err(Stop::refused(Refusal::new(Code::NotVisible, message), self.shard.last_position));
        };
        let mut proposal = proposal.clone();
        proposal.signatures.truncate(signatures);
        if proposal.signatures.len() < SIGNING_ROLES.len() {
            proposal.effective_from_us = None;
        }
        Ok(Decision { outcome: Outcome::Proposal(Box::new(proposal)), position, global_sequence })
    }

    fn propose(&mut self, request: &Request<'_>, corpus: &str, slots: u64, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::ProposeSlots, |out| {
            text(out, corpus);
            number(out, slots);
        });
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Proposal(number, signatures, sequence) = self.effect(kept)
        {
            return self.proposal(number, signatures, kept.position, sequence);
        }
        let prefix = self.corpus(corpus)?;
        self.not_closed(prefix)?;
        let present = self.shard.slots_at(prefix, Quarter::of(time_us).end_us());
        if slots > SLOTS_MAX {
            let message = format!("{slots} slots are more than a quarter can have: {SLOTS_MAX} at most");
            return refuse(Refusal::new(Code::BadRequest, message));
        }
        if slots <= present {
            let message =
                format!("corpus '{corpus}' has {present} slots from the next quarter on: propose more than that");
            return Err(Stop::refused(Refusal::new(Code::BadRequest, message), self.shard.last_position));
        }
        let open = self.shard.registry.proposals().iter();
        let open = open.filter(|p| p.prefix == prefix && p.effective_from_us.is_none()).count();
        if open >= OPEN_PROPOSALS_MAX {
            let message = format!("{open} proposals for corpus '{corpus}' wait for signatures: sign one of them");
            return Err(Stop::refused(Refusal::new(Code::BadTransition, message), self.shard.last_position));
        }
        let global_sequence = self.next_global();
        let entry = Entry::SlotIncrease { global_sequence, prefix, slots, at_us: time_us };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        self.proposal(global_sequence, 0, position, global_sequence)
    }

    fn sign_off(&mut self, request: &Request<'_>, number_: u64, role: Role, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::SignOff, |out| {
            number(out, number_);
            out.push(role.number());
        });
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Proposal(number, signatures, sequence) = self.effect(kept)
        {
            return self.proposal(number, signatures, kept.position, sequence);
        }
        let last_position = self.shard.last_position;
        let refused = |code, message| Err(Stop::refused(Refusal::new(code, message), last_position));
        let Some(proposal) = self.shard.registry.proposal(number_) else {
            return refused(
                Code::NotVisible,
                format!("there is no proposal {number_}; `claimctl slots list` lists them"),
            );
        };
        if !SIGNING_ROLES.contains(&role) {
            let roles = SIGNING_ROLES.map(Role::name).join(", ");
            return refused(Code::BadRequest, format!("a {} does not sign slot increases: {roles} do", role.name()));
        }
        if let Some(from_us) = proposal.effective_from_us {
            return refused(
                Code::BadTransition,
                format!("proposal {number_} is signed and counts from {}", crate::time::rfc3339(from_us)),
            );
        }
        if proposal.signatures.iter().any(|s| s.role == role) {
            return refused(Code::BadTransition, format!("proposal {number_} is signed as {} already", role.name()));
        }
        if let Some(other) = proposal.signatures.iter().find(|s| s.uid == request.principal.uid) {
            return refused(
                Code::Forbidden,
                format!(
                    "uid {} has signed proposal {number_} as {}: the three signatures are of three different uids",
                    other.uid,
                    other.role.name()
                ),
            );
        }
        let (prefix, slots) = (proposal.prefix, proposal.slots);
        self.not_closed(prefix)?;
        let present = self.shard.slots_at(prefix, Quarter::of(time_us).end_us());
        if slots <= present {
            let message = format!(
                "proposal {number_} is of {slots} slots, and its corpus has {present} from the next quarter on by now: \
                 propose more than that"
            );
            return refused(Code::BadTransition, message);
        }
        let is_last = proposal.signatures.len() + 1 == SIGNING_ROLES.len();
        let effective_from_us = if is_last { Quarter::of(time_us).end_us() } else { 0 };
        let global_sequence = self.next_global();
        let entry = Entry::SignOff { global_sequence, proposal: number_, role, effective_from_us, at_us: time_us };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        self.proposal(number_, usize::MAX, position, global_sequence)
    }

    fn incident(&mut self, request: &Request<'_>, active: bool, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Incident, |out| out.push(u8::from(active)));
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Incident(active, at_us, global_sequence) = self.effect(kept)
        {
            let outcome = Outcome::IncidentSet { active, at_us };
            return Ok(Decision { outcome, position: kept.position, global_sequence });
        }
        let global_sequence = self.next_global();
        let entry = Entry::Incident { global_sequence, active };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        Ok(Decision { outcome: Outcome::IncidentSet { active, at_us: time_us }, position, global_sequence })
    }

    fn barrier(&mut self, request: &Request<'_>, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Barrier, |_| {});
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Barrier(at_us, global_sequence) = self.effect(kept)
        {
            return Ok(Decision {
                outcome: Outcome::BarrierRaised { at_us },
                position: kept.position,
                global_sequence,
            });
        }
        let global_sequence = self.next_global();
        let entry = Entry::Barrier { global_sequence, at_us: time_us };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        Ok(Decision { outcome: Outcome::BarrierRaised { at_us: time_us }, position, global_sequence })
    }

    fn configure(&mut self, request: &Request<'_>, toml: &str, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Configure, |out| text(out, toml));
        if let Err(message) = Policy::parse(toml) {
            return refuse(Refusal::new(Code::BadRequest, message));
        }
        let id = KeyId::new(0, request.idempotency_key, 0);
        // Whatever the clocks say: the daemon makes the key as it asks.
        match self.shard.key_state(id, fingerprint, time_us) {
            Ok(KeyState::Done(kept)) => {
                if let Effect::Configured(at_us, global_sequence) = self.effect(kept) {
                    let outcome = Outcome::Configured { at_us };
                    return Ok(Decision { outcome, position: kept.position, global_sequence });
                }
            }
            Err(KeyStop::Refused(refusal, position)) if refusal.code == Code::KeyReused => {
                return Err(Stop::refused(refusal, position));
            }
            Err(KeyStop::Unread(unread)) => return Err(unread.into()),
            _ => {}
        }
        let global_sequence = self.next_global();
        let entry = Entry::Configuration { global_sequence, at_us: time_us, toml };
        let position = self.global(request, None, fingerprint, time_us, entry)?;
        Ok(Decision { outcome: Outcome::Configured { at_us: time_us }, position, global_sequence })
    }

    /// Keeps the key with the beginning of the pass; the engine runs it.
    fn reconcile(&mut self, request: &Request<'_>, dry_run: bool, time_us: i64) -> Decided<Stepped> {
        let position = self.shard.last_position;
        if dry_run {
            self.ledger_not_stopped(request)?;
            return Ok(Stepped::Pass { dry_run, pass: None, at_us: time_us, position });
        }
        let fingerprint = self.fingerprint(request, Keyed::Reconcile, |_| {});
        if let KeyState::Done(kept) = self.global_key(request, None, fingerprint, time_us)?
            && let Effect::Reconciled(pass) = self.effect(kept)
        {
            return Ok(Stepped::Pass { dry_run, pass: Some(pass), at_us: time_us, position: kept.position });
        }
        Ok(Stepped::Pass { dry_run, pass: None, at_us: time_us, position })
    }

    /// The beginning of a pass that was asked for.
    pub(super) fn begin_pass(&mut self, request: &Request<'_>, at_us: i64) -> u64 {
        let fingerprint = self.fingerprint(request, Keyed::Reconcile, |_| {});
        let pass = self.shard.passes.begun().map_or(0, |mark| mark.pass) + 1;
        let entry = Entry::Reconcile {
            global_sequence: self.next_global(),
            pass,
            phase: PassPhase::Begin,
            at_us,
            counts: PassCounts::default(),
            merges: &[],
        };
        // This shard may have gone on since it was asked for its time.
        let time_us = self.shard.clock.time_us(self.now, self.shard.last_us).max(at_us);
        self.append_global(request, None, fingerprint, time_us, entry)
    }
}
