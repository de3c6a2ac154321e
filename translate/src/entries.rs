//! Rows and audit entries, from the records of the log.

use super::{lifecycle, reason_code_out, reconciliation_state};
use claim_engine::corpus::Prefix;
use claim_engine::dispute::DisputeId;
use claim_engine::id::EventId;
use claim_engine::log::entry::{ClaimEntry, Entry, PassPhase, Record, merges, sources};
use claim_engine::retention::Dropped;
use claim_engine::row::RowView;
use claim_engine::time::{Quarter, rfc3339};
use claim_protocol as wire;
use claim_protocol::LogPosition;
use std::borrow::Cow;
use uuid::Uuid;

/// What numbers are called.
pub trait Names {
    /// A corpus's name.
    fn corpus(&self, prefix: Option<Prefix>) -> String;
    /// A user's name.
    fn user(&self, uid: u32) -> String;
    /// The rows of a dispute.
    fn sides(&self, dispute: DisputeId) -> Vec<EventId>;
}

/// What rows that come one after the other mostly have in common, as text.
#[derive(Debug, Default)]
pub struct RowTexts {
    corpus: Option<(Prefix, String)>,
    quarter: Option<(Quarter, String)>,
}

impl RowTexts {
    /// The name of a row's corpus, and its effective quarter.
    fn of(&mut self, view: &RowView, names: &impl Names) -> (&str, &str) {
        let prefix = view.event_id.prefix();
        let (_, corpus) = match self.corpus.take() {
            Some(known) if known.0 == prefix => self.corpus.insert(known),
            _ => self.corpus.insert((prefix, names.corpus(Some(prefix)))),
        };
        let (_, quarter) = match self.quarter.take() {
            Some(known) if known.0 == view.effective_quarter => self.quarter.insert(known),
            _ => self.quarter.insert((view.effective_quarter, view.effective_quarter.to_string())),
        };
        (corpus, quarter)
    }
}

/// A row, from what the index knows, its claim and when that was, and the reason of its tombstone.
///
/// Returns `None` when it is another row's claim.
#[inline(always)]
pub fn row<'a>(
    view: &RowView,
    (claim, claimed_at_us): &(ClaimEntry<'a>, i64),
    reason: Option<&'a str>,
    texts: &'a mut RowTexts,
    names: &impl Names,
) -> Option<wire::RowRef<'a>> {
    if claim.event_id != view.event_id {
        return None;
    }
    let (corpus, effective_quarter) = texts.of(view, names);
    let or_own = |name: &'a str| if name.is_empty() { corpus } else { name };
    Some(wire::RowRef {
        event_id: claim.event_id.as_uuid(),
        corpus,
        lifecycle: lifecycle(view.lifecycle),
        claim_timestamp_us: *claimed_at_us,
        claim_sequence: claim.claim_sequence,
        event_key: claim.event_key,
        occurred_at_us: claim.occurred_at_us,
        owning_corpus: or_own(claim.owning_corpus),
        hosting_corpus: or_own(claim.hosting_corpus),
        category: claim.category,
        taxonomy_version: claim.taxonomy_version,
        metadata: claim.metadata,
        canonical_id: view.canonical_id.map(EventId::as_uuid),
        tombstoned_at_us: view.tombstone.map(|t| t.at_us),
        tombstone_reason_code: view.tombstone.and_then(|t| t.reason_code).map(reason_code_out),
        tombstone_reason: reason,
        reactivated_at_us: view.reactivated_at_us,
        dispute_id: view.dispute.map(|id| id.as_uuid()),
        reconciliation_state: reconciliation_state(view.reconciliation),
        over_budget: view.over_budget,
        incident_active: view.incident_active,
        effective_quarter,
        reactivation_quarter: view.reactivation_quarter.map(|quarter| Cow::Owned(quarter.to_string())),
        retention_expires_at_us: view.retention_expires_at_us,
        references: view.references,
    })
}

/// What an entry's own fields say.
#[derive(Default)]
struct Says {
    event_id: Option<EventId>,
    event_ids: Vec<EventId>,
    canonical_id: Option<EventId>,
    dispute_id: Option<Uuid>,
    /// Of entries that concern a corpus without being its own.
    corpus: Option<Prefix>,
    detail: String,
}

/// An audit entry.
pub fn entry(record: &Record<'_>, position: LogPosition, names: &impl Names) -> wire::reply::Entry {
    let meta = &record.meta;
    let says = says(&record.entry, names);
    let reason_code = match &record.entry {
        Entry::Tombstone { reason_code, .. } => Some(reason_code_out(*reason_code)),
        _ => None,
    };
    let uuid = |n: u128| (n != 0).then(|| Uuid::from_u128(n));
    let has_principal =
        meta.idempotency_key != 0 || matches!(record.entry, Entry::Forbidden { .. } | Entry::User { .. });
    wire::reply::Entry {
        position,
        operation: operation(&record.entry),
        corpus: meta.corpus.or(says.corpus).map_or_else(String::new, |prefix| names.corpus(Some(prefix))),
        event_id: says.event_id.map(EventId::as_uuid),
        timestamp_us: meta.timestamp_us,
        uid: meta.principal.uid,
        gid: meta.principal.gid,
        pid: meta.principal.pid,
        rationale: meta.rationale.to_owned(),
        correlation_id: uuid(meta.correlation_id),
        idempotency_key: uuid(meta.idempotency_key),
        reason_code,
        user_name: if has_principal { names.user(meta.principal.uid) } else { "claimd".to_owned() },
        dispute_id: says.dispute_id,
        canonical_id: says.canonical_id.map(EventId::as_uuid),
        detail: says.detail,
        event_ids: says.event_ids.into_iter().map(EventId::as_uuid).collect(),
        claim: match &record.entry {
            Entry::Claim(claim) | Entry::Carry { claim, .. } => Some(Box::new(wire::ClaimContent {
                event_key: claim.event_key.to_owned(),
                occurred_at_us: claim.occurred_at_us,
                owning_corpus: claim.owning_corpus.to_owned(),
                hosting_corpus: claim.hosting_corpus.to_owned(),
                category: claim.category.to_owned(),
                taxonomy_version: claim.taxonomy_version,
                metadata: claim.metadata.to_vec(),
            })),
            _ => None,
        },
        configuration: match &record.entry {
            Entry::Configuration { toml, .. } => (*toml).to_owned(),
            _ => String::new(),
        },
        global_sequence: record.entry.global_sequence().unwrap_or(0),
    }
}

/// What an entry is about, in one line.
pub fn subject(entry: &Entry<'_>, names: &impl Names) -> String {
    let says = says(entry, names);
    let ids = says.event_id.iter().chain(&says.event_ids).map(EventId::to_string);
    let words = says.dispute_id.map(|id| format!("dispute {id}")).into_iter().chain(ids).chain([says.detail]);
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn operation(entry: &Entry<'_>) -> wire::AuditOperation {
    use wire::AuditOperation as Audit;
    match entry {
        Entry::Claim(_) => Audit::Claim,
        Entry::Reference { .. } => Audit::Reference,
        Entry::Tombstone { .. } => Audit::Tombstone,
        Entry::Reactivate { .. } => Audit::Reactivate,
        Entry::Alarm { .. } => Audit::Alarm,
        Entry::Forbidden { .. } => Audit::Forbidden,
        Entry::User { .. } => Audit::User,
        Entry::Onboard { .. } => Audit::Onboard,
        Entry::PrefixAllocation { .. } => Audit::ShardPrefixAllocation,
        Entry::ConfirmClock { .. } => Audit::ConfirmClock,
        Entry::Decommission { .. } => Audit::Decommission,
        Entry::Freeze { frozen: true, .. } => Audit::Freeze,
        Entry::Freeze { frozen: false, .. } => Audit::Unfreeze,
        Entry::Cap { .. } => Audit::Cap,
        Entry::SlotIncrease { .. } => Audit::SlotIncrease,
        Entry::SignOff { .. } => Audit::SignOff,
        Entry::Incident { .. } => Audit::Incident,
        Entry::Barrier { .. } => Audit::Barrier,
        Entry::Configuration { .. } => Audit::Configuration,
        Entry::Dispute { .. } => Audit::Dispute,
        Entry::DisputeStep { step, .. } => {
            use claim_engine::dispute::DisputeStep;
            match step {
                DisputeStep::Quarantine | DisputeStep::Flagged => Audit::Quarantine,
                DisputeStep::Void => Audit::Void,
                DisputeStep::Respond => Audit::Respond,
                DisputeStep::Escalate => Audit::Escalate,
                DisputeStep::Arbitrate => Audit::Arbitrate,
                DisputeStep::Close => Audit::Canonicalise,
            }
        }
        Entry::Reconcile { .. } => Audit::Reconcile,
        Entry::Recovery { .. } => Audit::Recovery,
        Entry::Repair { .. } => Audit::Repair,
        Entry::Restore { .. } => Audit::Restore,
        Entry::Reshard { .. } => Audit::Reshard,
        Entry::Hold { held: true, .. } => Audit::Hold,
        Entry::Hold { held: false, .. } => Audit::Release,
        Entry::Carry { .. } => Audit::Carry,
        Entry::RetentionDrop { .. } => Audit::RetentionDrop,
    }
}

/// What was claimed, in one line.
fn claimed(claim: &ClaimEntry<'_>) -> String {
    let over = if claim.over_budget { ", over budget" } else { "" };
    format!("{} in {}, slot {}{over}", claim.event_key, claim.category, claim.claim_sequence)
}

/// The first and the last of some quarters, in words.
pub fn quarters((first, last): (Quarter, Quarter)) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

fn says(entry: &Entry<'_>, names: &impl Names) -> Says {
    let corpus = |prefix: Prefix| names.corpus(Some(prefix));
    let detail = |detail: String| Says { detail, ..Says::default() };
    let about = |prefix: Prefix, detail: String| Says { corpus: Some(prefix), detail, ..Says::default() };
    match entry {
        Entry::Claim(claim) => Says { event_id: Some(claim.event_id), detail: claimed(claim), ..Says::default() },
        Entry::Reference { event_id, canonical_id } => {
            Says { event_id: Some(*event_id), canonical_id: Some(*canonical_id), ..Says::default() }
        }
        Entry::Tombstone { event_id, .. } | Entry::Reactivate { event_id } => {
            Says { event_id: Some(*event_id), ..Says::default() }
        }
        Entry::Alarm { kind, claims, slots } => detail(format!("{}: {claims} of {slots} slots used", kind.name())),
        Entry::Forbidden { action, counted } => {
            detail(format!("{action:?} refused; {counted} refusals before it were only counted"))
        }
        Entry::User { uid, name } => detail(format!("uid {uid} is {name}")),
        Entry::Onboard { prefix, shard, name, notes, .. } => about(
            *prefix,
            format!("{name}, prefix {prefix}, shard {shard}{}{notes}", if notes.is_empty() { "" } else { ": " }),
        ),
        Entry::PrefixAllocation { minted_to, .. } => detail(format!("prefixes are minted to {minted_to}")),
        Entry::ConfirmClock { .. } => Says::default(),
        Entry::Decommission { prefix, .. } => about(*prefix, corpus(*prefix)),
        Entry::Freeze { prefix, .. } => {
            let what = prefix.map_or_else(|| "the ledger".to_owned(), corpus);
            Says { corpus: *prefix, ..detail(what) }
        }
        Entry::Cap { prefix, claims_per_minute, .. } => match claims_per_minute {
            0 => about(*prefix, format!("{}: no cap", corpus(*prefix))),
            claims => about(*prefix, format!("{}: {claims} claims a minute", corpus(*prefix))),
        },
        Entry::SlotIncrease { global_sequence, prefix, slots, .. } => {
            about(*prefix, format!("proposal {global_sequence}: {slots} slots for {}", corpus(*prefix)))
        }
        Entry::SignOff { proposal, role, effective_from_us, .. } => {
            let from = match effective_from_us {
                0 => String::new(),
                from_us => format!("; in effect from {}", rfc3339(*from_us)),
            };
            detail(format!("proposal {proposal} as {}{from}", role.name()))
        }
        Entry::Incident { active, .. } => detail(if *active { "begins" } else { "ends" }.to_owned()),
        Entry::Barrier { at_us, .. } => detail(rfc3339(*at_us)),
        Entry::Configuration { toml, .. } => detail(toml.replace('\n', " ⏎ ")),
        Entry::Dispute { dispute, sides, .. } => {
            Says { dispute_id: Some(dispute.as_uuid()), event_ids: sides.ids().to_vec(), ..Says::default() }
        }
        Entry::DisputeStep { dispute, step, rows, verdicts, .. } => {
            let given: Vec<_> = verdicts.iter().flatten().map(|v| format!("{v:?}").to_lowercase()).collect();
            let verdict = if given.is_empty() { String::new() } else { format!(": {}", given.join(", ")) };
            let here = rows.count_ones();
            let detail = format!("{}{verdict}; {here} rows of this shard", step.operation());
            Says { dispute_id: Some(dispute.as_uuid()), event_ids: names.sides(*dispute), detail, ..Says::default() }
        }
        Entry::Reconcile { pass, phase, counts, merges: planned, .. } => {
            let applied: Vec<_> = merges(planned).filter(|merge| merge.applied).collect();
            let detail = match phase {
                PassPhase::Begin => format!("pass {pass} begins"),
                PassPhase::Merge => {
                    let pairs: Vec<_> = applied.iter().map(|m| format!("{} → {}", m.alias, m.canonical)).collect();
                    format!("pass {pass}: {} merged on this shard: {}", applied.len(), pairs.join(", "))
                }
                PassPhase::Done => format!("pass {pass} is done: {} merged, {} groups", counts.merged, counts.groups),
            };
            let event_ids = applied.iter().map(|merge| merge.alias).collect();
            Says { event_ids, detail, ..Says::default() }
        }
        Entry::Recovery { incarnation, cut_at } => {
            detail(format!("incarnation {incarnation}, behind log offset {cut_at}"))
        }
        Entry::Repair { cut_at, given_up_to, .. } => {
            detail(format!("what stood behind log offset {cut_at} is given up, to position {given_up_to}"))
        }
        Entry::Restore { cut_at, given_up_to, .. } => detail(format!(
            "what stands up to log offset {cut_at} is from a backup, which knew positions to {given_up_to}"
        )),
        Entry::Reshard { ledger, shards, at_us, sources: from } => {
            let from: Vec<_> = sources(from)
                .map(|source| {
                    format!("shard {} to position {} ({})", source.shard, source.last_position, source.entries)
                })
                .collect();
            let from = if from.is_empty() { "none".to_owned() } else { from.join(", ") };
            detail(format!("made at {} from ledger {ledger} of {shards} shards; entries of: {from}", rfc3339(*at_us)))
        }
        Entry::Hold { quarter, .. } => detail(quarter.to_string()),
        Entry::Carry { claim, claimed_at_us, .. } => {
            let detail = format!("{}; claimed at {}", claimed(claim), rfc3339(*claimed_at_us));
            Says { event_id: Some(claim.event_id), detail, ..Says::default() }
        }
        Entry::RetentionDrop { dropped } => match Dropped::decode(dropped) {
            Ok(Dropped { seal, .. }) => {
                let (first, end) = seal.segments;
                let segments = match end.saturating_sub(1) {
                    // Told again by a reshard: another drop has the segment.
                    _ if end == first => "no segment".to_owned(),
                    last if last <= first => format!("segment {first}"),
                    last => format!("segments {first} to {last}"),
                };
                detail(format!("{}: {segments}; {} rows were carried", quarters(seal.quarters), seal.carried))
            }
            Err(reason) => detail(reason),
        },
    }
}
