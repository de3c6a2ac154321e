//! Who may do what.

use super::Model;
use crate::corpus::Prefix;
use crate::dispute::DisputeState;
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::policy::Role;
use crate::policy::settings::Corpora;
use crate::simulation::model::words::{Asked, Op};
use crate::time::HOUR_US;

impl Model {
    /// Whether somebody has one of some roles on a corpus; with `None`, on all of them.
    pub(super) fn has(&self, who: Principal, roles: &[Role], corpus: Option<&str>) -> bool {
        self.settings.grants.iter().any(|grant| {
            let is_his = grant.uids.contains(&who.uid) || grant.gids.contains(&who.gid);
            let is_there = match &grant.corpora {
                Corpora::All => true,
                Corpora::Named(names) => corpus.is_some_and(|corpus| names.contains(corpus)),
            };
            is_his && is_there && roles.contains(&grant.role)
        })
    }

    pub(super) fn may_read(&self, who: Principal, prefix: Prefix) -> bool {
        self.has(who, &Role::ALL, self.of_prefix(prefix).map(|corpus| corpus.name.as_str()))
    }

    pub(super) fn is_allowed(&self, asked: &Asked) -> bool {
        use Role::{Arbitrator, Auditor, Client, Facilitator, Leadership, Manager, Platform};
        let has = |roles: &[Role], corpus: Option<&str>| self.has(asked.who, roles, corpus);
        let corpus_of = |id: &EventId| self.of_prefix(id.prefix()).map(|corpus| corpus.name.as_str());
        match &asked.op {
            Op::Claim { corpus, .. }
            | Op::Reference { corpus, .. }
            | Op::Retract { corpus, .. }
            | Op::Respond { corpus, .. } => has(&[Client, Facilitator], Some(corpus)),
            Op::Dispute { corpus, ids } => match self.was_dismissed(ids) {
                true => has(&[Arbitrator], None),
                false => has(&[Client, Facilitator], Some(corpus)),
            },
            Op::Reactivate { id } => has(&[Facilitator], corpus_of(id)),
            Op::Arbitrate { dispute, .. } => match self.disputes.get(dispute).map(|dispute| dispute.state) {
                Some(DisputeState::Arbitrate) => has(&[Arbitrator], None),
                Some(DisputeState::Escalate) => has(&[Leadership], None),
                _ => has(&[Arbitrator, Leadership], None),
            },
            Op::Escalate { .. } => has(&[Arbitrator], None),
            Op::Freeze { corpus, .. } if !corpus.is_empty() => has(&[Facilitator, Platform], Some(corpus)),
            Op::Cap { corpus, .. } => has(&[Facilitator, Platform], Some(corpus)),
            Op::Propose { corpus, .. } => has(&[Facilitator, Platform, Manager], Some(corpus)),
            Op::SignOff { proposal, role } => {
                let proposal = self.proposals.iter().find(|known| known.number == *proposal);
                let corpus = proposal.and_then(|proposal| self.of_prefix(proposal.prefix));
                let signs = matches!(role, Platform | Facilitator | Manager);
                // Who asks to sign in a role that signs nothing is told so, if he may sign at all.
                let roles = if signs { vec![*role] } else { vec![Facilitator, Platform, Manager] };
                has(&roles, corpus.map(|corpus| corpus.name.as_str()))
            }
            Op::Onboard { .. }
            | Op::ConfirmClock
            | Op::Decommission { .. }
            | Op::Usage { .. }
            | Op::Freeze { .. }
            | Op::Incident(_)
            | Op::Barrier
            | Op::Reconcile { .. } => has(&[Platform], None),
            Op::Configure { .. } => true,
            Op::Lookup { id } | Op::History { id, .. } => has(&Role::ALL, corpus_of(id)),
            Op::Scan { corpus, .. } => has(&Role::ALL, Some(corpus)),
            Op::Totals { corpus, .. } | Op::Disputes { corpus, .. } if !corpus.is_empty() => {
                has(&Role::ALL, Some(corpus))
            }
            Op::Correlated { .. } | Op::ReadAll | Op::Configuration => {
                has(&[Platform, Arbitrator, Leadership, Auditor], None)
            }
            Op::DisputeLookup { .. }
            | Op::Disputes { .. }
            | Op::Proposals
            | Op::Find { .. }
            | Op::Totals { .. }
            | Op::Status
            | Op::Corpora { .. } => {
                let who = asked.who;
                self.settings.grants.iter().any(|g| g.uids.contains(&who.uid) || g.gids.contains(&who.gid))
            }
        }
    }

    /// A refusal for lack of a role is an entry, ten times an hour for each user.
    pub(super) fn forbid(&mut self, asked: &Asked) {
        let hour = self.now_us / HOUR_US;
        let (known_hour, logged) = self.refusals.entry((asked.shard, asked.who.uid)).or_default();
        if *known_hour != hour {
            (*known_hour, *logged) = (hour, 0);
        }
        if *logged < 10 {
            *logged += 1;
            self.logged(asked, &[asked.shard]);
        }
    }

    pub(super) fn logged(&mut self, asked: &Asked, shards: &[u16]) {
        for shard in shards {
            if asked.correlation != 0 {
                *self.correlated.entry((*shard, asked.correlation)).or_default() += 1;
            }
        }
    }

    pub(super) fn logged_everywhere(&mut self, asked: &Asked) {
        self.logged(asked, &(0..self.shard_count).collect::<Vec<_>>());
    }
}
