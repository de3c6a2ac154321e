//! What the model test asks, owned; and answers without what nobody can foresee.

use crate::command::{Claim, CorpusUsage, FoundRow, Operation, Outcome, PassReport, Request, Token};
use crate::dispute::{DisputeId, Verdict};
use crate::error::{Certainty, Refusal};
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::policy::Role;
use crate::row::{ReasonCode, RowView};

/// One item of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub event_key: String,
    pub occurred_us: i64,
    pub category: String,
    pub hosting: String,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Onboard { name: String, notes: String },
    Claim { corpus: String, items: Vec<Item>, unless_us: Option<i64> },
    Reference { corpus: String, items: Vec<(u16, EventId)> },
    Retract { corpus: String, id: EventId, reason: ReasonCode },
    Reactivate { id: EventId },
    ConfirmClock,
    Decommission { name: String, dry_run: bool },
    Freeze { corpus: String, frozen: bool },
    Cap { corpus: String, per_minute: u32 },
    Propose { corpus: String, slots: u64 },
    SignOff { proposal: u64, role: Role },
    Incident(bool),
    Barrier,
    Configure { toml: String },
    Dispute { corpus: String, ids: Vec<EventId> },
    Respond { corpus: String, dispute: DisputeId },
    Arbitrate { dispute: DisputeId, verdicts: Vec<(EventId, Verdict)> },
    Escalate { dispute: DisputeId },
    Reconcile { dry_run: bool },
    DisputeLookup { dispute: DisputeId },
    Disputes { corpus: String, closed_too: bool },
    Proposals,
    Configuration,
    Find { shard: u16, event_key: String },
    Correlated { shard: u16, correlation: u128 },
    Totals { shard: u16, corpus: String },
    Usage { shard: u16, name: String },
    ReadAll,
    Status,
    Corpora { shard: u16 },
    Lookup { id: EventId },
    History { id: EventId, skip: usize },
    Scan { corpus: String, since_us: Option<i64>, until_us: Option<i64>, after: Option<EventId>, limit: usize },
}

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub struct Asked {
    pub op: Op,
    pub shard: u16,
    pub who: Principal,
    pub user: &'static str,
    pub key: u128,
    pub correlation: u128,
    pub rationale: String,
}

impl Op {
    /// For counting what has happened.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Onboard { .. } => "onboard",
            Op::Claim { unless_us: Some(_), .. } => "claim-unless",
            Op::Claim { items, .. } if items.len() == 1 => "claim",
            Op::Claim { .. } => "claim-batch",
            Op::Reference { items, .. } if items.len() == 1 => "reference",
            Op::Reference { .. } => "reference-batch",
            Op::Retract { .. } => "retract",
            Op::Reactivate { .. } => "reactivate",
            Op::ConfirmClock => "confirm-clock",
            Op::Decommission { dry_run: false, .. } => "decommission",
            Op::Decommission { .. } => "decommission-dry-run",
            Op::Freeze { frozen: true, .. } => "freeze",
            Op::Freeze { .. } => "unfreeze",
            Op::Cap { .. } => "cap",
            Op::Propose { .. } => "propose",
            Op::SignOff { .. } => "sign-off",
            Op::Incident(_) => "incident",
            Op::Barrier => "barrier",
            Op::Configure { .. } => "configure",
            Op::Dispute { .. } => "dispute",
            Op::Respond { .. } => "respond",
            Op::Arbitrate { .. } => "arbitrate",
            Op::Escalate { .. } => "escalate",
            Op::Reconcile { dry_run: false } => "reconcile",
            Op::Reconcile { .. } => "reconcile-dry-run",
            Op::DisputeLookup { .. } => "dispute-lookup",
            Op::Disputes { .. } => "disputes",
            Op::Proposals => "proposals",
            Op::Configuration => "configuration",
            Op::Find { .. } => "find",
            Op::Correlated { .. } => "correlated",
            Op::Totals { .. } => "totals",
            Op::Usage { .. } => "usage",
            Op::ReadAll => "read-all",
            Op::Status => "status",
            Op::Corpora { .. } => "corpora",
            Op::Lookup { .. } => "lookup",
            Op::History { .. } => "history",
            Op::Scan { .. } => "scan",
        }
    }

    pub fn is_mutation(&self) -> bool {
        self.lend(|operation| operation.is_mutation())
    }

    fn lend<T>(&self, use_it: impl FnOnce(Operation<'_>) -> T) -> T {
        let claims: Vec<Claim<'_>> = match self {
            Op::Claim { items, .. } => items.iter().map(Item::lend).collect(),
            _ => Vec::new(),
        };
        use_it(match self {
            Op::Onboard { name, notes } => Operation::Onboard { name, notes },
            Op::Claim { corpus, unless_us, .. } => {
                Operation::Claim { corpus, items: &claims, unless_within_us: *unless_us }
            }
            Op::Reference { corpus, items } => Operation::Reference { corpus, items },
            Op::Retract { corpus, id, reason } => Operation::Retract { corpus, event_id: *id, reason_code: *reason },
            Op::Reactivate { id } => Operation::Reactivate { event_id: *id },
            Op::ConfirmClock => Operation::ConfirmClock,
            Op::Decommission { name, dry_run } => Operation::Decommission { name, dry_run: *dry_run },
            Op::Freeze { corpus, frozen } => Operation::Freeze { corpus, frozen: *frozen },
            Op::Cap { corpus, per_minute } => Operation::Cap { corpus, claims_per_minute: *per_minute },
            Op::Propose { corpus, slots } => Operation::ProposeSlots { corpus, slots: *slots },
            Op::SignOff { proposal, role } => Operation::SignOff { proposal: *proposal, role: *role },
            Op::Incident(active) => Operation::Incident { active: *active },
            Op::Barrier => Operation::Barrier,
            Op::Configure { toml } => Operation::Configure { toml },
            Op::Dispute { corpus, ids } => Operation::Dispute { corpus, event_ids: ids },
            Op::Respond { corpus, dispute } => Operation::Respond { corpus, dispute: *dispute },
            Op::Arbitrate { dispute, verdicts } => Operation::Arbitrate { dispute: *dispute, verdicts },
            Op::Escalate { dispute } => Operation::Escalate { dispute: *dispute },
            Op::Reconcile { dry_run } => Operation::Reconcile { dry_run: *dry_run },
            Op::DisputeLookup { dispute } => Operation::DisputeLookup { dispute: *dispute },
            Op::Disputes { corpus, closed_too } => {
                Operation::Disputes { corpus, include_closed: *closed_too, before: None }
            }
            Op::Proposals => Operation::Proposals,
            Op::Configuration => Operation::Configuration,
            Op::Find { event_key, .. } => Operation::Find { event_key, from: None },
            Op::Correlated { correlation, .. } => Operation::Correlated { correlation_id: *correlation, skip: 0 },
            Op::Totals { corpus, .. } => Operation::Totals { corpus },
            Op::Usage { name, .. } => Operation::Usage { name },
            Op::ReadAll => Operation::ReadAll,
            Op::Status => Operation::Status,
            Op::Corpora { .. } => Operation::Corpora,
            Op::Lookup { id } => Operation::Lookup { event_id: *id },
            Op::History { id, skip } => Operation::History { event_id: *id, skip: *skip },
            Op::Scan { corpus, since_us, until_us, after, limit } => {
                let (since_us, until_us, after, limit) = (*since_us, *until_us, *after, *limit);
                Operation::Scan { corpus, since_us, until_us, after, limit }
            }
        })
    }
}

impl Item {
    fn lend(&self) -> Claim<'_> {
        Claim {
            event_key: &self.event_key,
            occurred_at_us: self.occurred_us,
            owning_corpus: "",
            hosting_corpus: &self.hosting,
            category: &self.category,
            taxonomy_version: 1,
            metadata: &[],
        }
    }
}

impl Asked {
    /// Lends it as the engine takes it.
    pub fn lend<T>(&self, token: Token, use_it: impl FnOnce(&Request<'_>) -> T) -> T {
        self.op.lend(|operation| {
            use_it(&Request {
                token,
                stream: 0,
                principal: self.who,
                user: self.user,
                idempotency_key: self.key,
                correlation_id: self.correlation,
                rationale: &self.rationale,
                at_us: None,
                deadline_boot_us: None,
                at_least: &[],
                operation,
            })
        })
    }
}

fn plain_refusal(refusal: Refusal) -> Refusal {
    Refusal { message: String::new(), retry_after_ms: 0, certainty: Certainty::Definite, ..refusal }
}

/// A view without the places of entries in the log.
pub fn plain_view(mut view: RowView) -> RowView {
    view.claim_at = 0;
    if let Some(tombstone) = &mut view.tombstone {
        tombstone.entry_at = 0;
    }
    view
}

/// A report in one order, without positions.
fn plain_report(mut report: PassReport) -> PassReport {
    report.merges.iter_mut().for_each(|merge| (merge.position, merge.applied) = (0, false));
    report.merges.sort_by_key(|merge| merge.alias);
    report.suspects.sort_by(|a, b| a.event_ids.cmp(&b.event_ids));
    report.orphans.sort_by_key(|orphan| orphan.event_id);
    report
}

/// A dispute without its places in the log.
pub fn plain_dispute(mut dispute: crate::dispute::Dispute) -> crate::dispute::Dispute {
    dispute.global_sequence = 0;
    dispute.steps.iter_mut().for_each(|moved| moved.global_sequence = 0);
    dispute
}

/// An answer without wordings, advice and places in the log.
pub fn plain(outcome: Outcome) -> Outcome {
    let zeroes = |at: Vec<u64>| vec![0; at.len()];
    match outcome {
        Outcome::Refused(refusal) => Outcome::Refused(plain_refusal(refusal)),
        Outcome::ClaimedItems(items) => {
            Outcome::ClaimedItems(items.into_iter().map(|item| item.map_err(plain_refusal)).collect())
        }
        Outcome::ReferencedItems(items) => {
            Outcome::ReferencedItems(items.into_iter().map(|(i, item)| (i, item.map_err(plain_refusal))).collect())
        }
        Outcome::Row(row) => Outcome::Row(Box::new(FoundRow { view: plain_view(row.view), claim: None })),
        Outcome::Rows { rows, more, .. } => {
            Outcome::Rows { rows: rows.into_iter().map(plain_view).collect(), more, log: None }
        }
        Outcome::Dispute(dispute) => Outcome::Dispute(Box::new(plain_dispute(*dispute))),
        Outcome::Disputes { disputes, more } => {
            Outcome::Disputes { disputes: disputes.into_iter().map(plain_dispute).collect(), more }
        }
        Outcome::Reconciled(report) => Outcome::Reconciled(Box::new(plain_report(*report))),
        Outcome::History { entries_at, more, related } => {
            Outcome::History { entries_at: zeroes(entries_at), more, related }
        }
        Outcome::Found { rows, next } => {
            let mut rows: Vec<_> = rows.into_iter().map(plain_view).collect();
            rows.sort_by_key(|view| view.event_id);
            Outcome::Found { rows, next }
        }
        Outcome::Correlated { entries_at, more } => Outcome::Correlated { entries_at: zeroes(entries_at), more },
        other => other,
    }
}

/// The part of an answer that a retry repeats: a corpus is told as it is by then.
pub fn repeated(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Decommissioned { mut corpus, applied, .. } => {
            (corpus.frozen, corpus.cap_per_minute) = (None, 0);
            corpus.slots.clear();
            Outcome::Decommissioned { corpus, applied, usage: CorpusUsage::default() }
        }
        // What a pass found is told in full by the run that ran it.
        Outcome::Reconciled(report) => {
            Outcome::Reconciled(Box::new(PassReport { pass: report.pass, ..PassReport::default() }))
        }
        other => other,
    }
}
