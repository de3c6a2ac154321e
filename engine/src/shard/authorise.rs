//! Who may do what: whoever has no role for what he asks is refused, and the audit says so.

use super::decide::{Decided, Step, Stop, refuse};
use crate::command::{Operation, Request};
use crate::corpus::Prefix;
use crate::dispute::DisputeState;
use crate::error::{Code, Refusal};
use crate::id::EventId;
use crate::log::entry::{Entry, Meta, Record};
use crate::policy::Action;
use crate::shard::registry::SIGNING_ROLES;
use crate::time::HOUR_US;

/// Refusals for lack of a role that one uid has logged in an hour; the others are counted.
pub const FORBIDDEN_LOGGED_MAX: u32 = 10;
/// Uids of which refusals are counted.
const FORBIDDEN_UIDS_MAX: usize = 4_096;
/// Users whose names are kept.
const USERS_MAX: usize = 65_536;
/// Longest name of a user that is kept.
const USER_NAME_BYTES_MAX: usize = 256;

impl Step<'_, '_, '_> {
    /// Refuses who has no role for what he asks; what is asked about he does not learn.
    pub(super) fn authorise(&mut self, request: &Request<'_>) -> Decided<()> {
        let shard = &*self.shard;
        let of_row = |event_id: EventId| shard.registry.of_prefix(event_id.prefix()).map(|c| c.name.as_str());
        let (action, corpus) = match request.operation {
            Operation::Claim { corpus, .. } => (Action::Claim, Some(corpus)),
            Operation::Reference { corpus, .. } => (Action::Reference, Some(corpus)),
            Operation::Retract { corpus: "", event_id, .. } => (Action::Retract, of_row(event_id)),
            Operation::Retract { corpus, .. } => (Action::Retract, Some(corpus)),
            Operation::Reactivate { event_id } => (Action::Reactivate, of_row(event_id)),
            Operation::Lookup { event_id } | Operation::History { event_id, .. } => {
                (Action::ReadCorpus, of_row(event_id))
            }
            Operation::Scan { corpus, .. } => (Action::ReadCorpus, Some(corpus)),
            Operation::Totals { corpus } | Operation::Disputes { corpus, .. } if !corpus.is_empty() => {
                (Action::ReadCorpus, Some(corpus))
            }
            Operation::Correlated { .. } | Operation::ReadAll | Operation::Configuration => (Action::ReadAll, None),
            Operation::Onboard { .. } => (Action::Onboard, None),
            Operation::ConfirmClock => (Action::ConfirmClock, None),
            Operation::Decommission { .. } | Operation::Usage { .. } => (Action::Decommission, None),
            Operation::Freeze { corpus: "", .. } => (Action::FreezeLedger, None),
            Operation::Freeze { corpus, .. } => (Action::Freeze, Some(corpus)),
            Operation::Cap { corpus, .. } => (Action::Cap, Some(corpus)),
            Operation::ProposeSlots { corpus, .. } => (Action::ProposeSlots, Some(corpus)),
            Operation::SignOff { proposal, role } => {
                let prefix = shard.registry.proposal(proposal).map(|p| p.prefix);
                let corpus = prefix.and_then(|prefix| shard.registry.of_prefix(prefix)).map(|c| c.name.as_str());
                let (who, policy) = (request.principal, &shard.policy);
                // A role that signs nothing is told so to those who sign.
                let may_sign = match SIGNING_ROLES.contains(&role) {
                    true => policy.acts_as(who, role, corpus),
                    false => policy.allows(who, Action::SignOff, corpus),
                };
                return if may_sign { Ok(()) } else { self.forbid(request, Action::SignOff, prefix) };
            }
            Operation::Incident { .. } => (Action::Incident, None),
            Operation::Barrier => (Action::Barrier, None),
            Operation::Hold { .. } => (Action::Hold, None),
            Operation::Reconcile { .. } => (Action::Reconcile, None),
            // Only the daemon itself can ask for it.
            Operation::Configure { .. } => return Ok(()),
            Operation::Dispute { corpus, .. } => return self.authorise_dispute(request, corpus),
            Operation::Respond { corpus, .. } => (Action::Respond, Some(corpus)),
            Operation::Arbitrate { dispute, .. } => {
                let policy = &shard.policy;
                let may = |action| policy.allows(request.principal, action, None);
                // Behind the verdict either asks again for what was answered, or learns where the dispute is.
                let action = match shard.disputes.get(dispute).map(|dispute| dispute.state) {
                    Some(DisputeState::Escalate) => Action::ArbitrateEscalated,
                    Some(DisputeState::Arbitrate) => Action::Arbitrate,
                    _ if may(Action::ArbitrateEscalated) => Action::ArbitrateEscalated,
                    _ => Action::Arbitrate,
                };
                (action, None)
            }
            Operation::Escalate { .. } => (Action::Arbitrate, None),
            // What one may not read is left out of the answer.
            Operation::Corpora
            | Operation::Find { .. }
            | Operation::Totals { .. }
            | Operation::Disputes { .. }
            | Operation::DisputeLookup { .. }
            | Operation::Proposals
            | Operation::Status => (Action::Status, None),
        };
        if self.shard.policy.allows(request.principal, action, corpus) {
            return Ok(());
        }
        let prefix = corpus.and_then(|name| self.shard.registry.of_name(name)).map(|corpus| corpus.prefix);
        self.forbid(request, action, prefix)
    }

    /// Refuses for lack of a role, and has it in the audit: so many times an hour for each uid, then it counts.
    pub(super) fn forbid<T>(&mut self, request: &Request<'_>, action: Action, corpus: Option<Prefix>) -> Decided<T> {
        // Whoever has no role does not move a replay ledger's time.
        let time_us = self.shard.time_us(self.now);
        let uid = request.principal.uid;
        let refusal = Refusal::new(
            Code::Forbidden,
            format!(
                "uid {uid} has no role that allows this; `claimctl config show` lists the roles for who may see them"
            ),
        );
        let hour = time_us / HOUR_US;
        let known = self.shard.refusals.get(&uid).copied().unwrap_or_default();
        let is_logged = (known.hour != hour || known.logged < FORBIDDEN_LOGGED_MAX)
            && self.log.takes_small_entries()
            && !self.log.is_full();
        if !is_logged {
            if known.hour != 0 || self.shard.refusals.len() < FORBIDDEN_UIDS_MAX {
                self.shard.refusals.entry(uid).or_default().counted += 1;
            }
            return refuse(refusal);
        }
        self.know_user(request, time_us);
        let entry = Entry::Forbidden { action, counted: known.counted };
        let meta = Meta {
            timestamp_us: time_us,
            idempotency_key: 0,
            correlation_id: request.correlation_id,
            fingerprint: 0,
            principal: request.principal,
            item: 0,
            corpus,
            rationale: "",
        };
        let position = self.shard.append(&Record { meta, entry }, self.log);
        Err(Stop::refused(refusal, position))
    }

    /// Has the name of whoever does something in the log before what he does.
    pub(super) fn know_user(&mut self, request: &Request<'_>, time_us: i64) {
        let (uid, name) = (request.principal.uid, request.user);
        let is_known = match self.shard.users.get(&uid) {
            Some(known) => known == name,
            None => self.shard.users.len() >= USERS_MAX,
        };
        if is_known || name.is_empty() || name.len() > USER_NAME_BYTES_MAX {
            return;
        }
        let meta = Meta {
            timestamp_us: time_us,
            idempotency_key: 0,
            correlation_id: 0,
            fingerprint: 0,
            principal: request.principal,
            item: 0,
            corpus: None,
            rationale: "",
        };
        self.shard.append(&Record { meta, entry: Entry::User { uid, name } }, self.log);
    }
}
