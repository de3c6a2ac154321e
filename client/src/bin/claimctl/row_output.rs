//! How rows are printed.

use crate::failure::Failure;
use crate::output::Output;
use crate::time::rfc3339;
use claim_client::{ClaimContent, Claimed, Row, Uuid};
use serde::Serialize;

/// A claim in JSON.
#[derive(Debug, Serialize)]
struct ClaimJson<'a> {
    event_id: String,
    claim_timestamp: String,
    claim_sequence: u64,
    corpus: &'a str,
    /// Only where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    already_registered: Option<bool>,
}

/// In JSON, a row that a claim found registered.
#[derive(Debug, Serialize)]
struct AlreadyJson {
    event_id: String,
    already_registered: bool,
}

/// Opaque bytes in JSON: as text where they are text, otherwise in hexadecimal digits.
#[derive(Debug, Serialize)]
struct MetadataJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_hex: Option<String>,
}

impl<'a> MetadataJson<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let text = std::str::from_utf8(bytes).ok();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        MetadataJson {
            metadata: text.filter(|text| !text.is_empty()),
            metadata_hex: text.is_none().then(|| hex(bytes)),
        }
    }
}

/// What was claimed, in JSON.
#[derive(Debug, Serialize)]
pub struct ContentJson<'a> {
    event_key: &'a str,
    occurred_at: String,
    owning_corpus: &'a str,
    hosting_corpus: &'a str,
    category: &'a str,
    taxonomy_version: u32,
    #[serde(flatten)]
    metadata: MetadataJson<'a>,
}

impl<'a> ContentJson<'a> {
    /// What an entry says was claimed by a corpus.
    pub fn of_claim(claim: &'a ClaimContent, corpus: &'a str) -> Self {
        let or_own = |name: &'a str| if name.is_empty() { corpus } else { name };
        ContentJson {
            event_key: &claim.event_key,
            occurred_at: rfc3339(claim.occurred_at_us),
            owning_corpus: or_own(&claim.owning_corpus),
            hosting_corpus: or_own(&claim.hosting_corpus),
            category: &claim.category,
            taxonomy_version: claim.taxonomy_version,
            metadata: MetadataJson::new(&claim.metadata),
        }
    }

    fn of_row(row: &'a Row) -> Self {
        ContentJson {
            event_key: &row.event_key,
            occurred_at: rfc3339(row.occurred_at_us),
            owning_corpus: &row.owning_corpus,
            hosting_corpus: &row.hosting_corpus,
            category: &row.category,
            taxonomy_version: row.taxonomy_version,
            metadata: MetadataJson::new(&row.metadata),
        }
    }
}

/// A row in JSON.
#[derive(Debug, Serialize)]
pub struct RowJson<'a> {
    event_id: String,
    corpus: &'a str,
    lifecycle: &'a str,
    claim_timestamp: String,
    claim_sequence: u64,
    #[serde(flatten)]
    content: ContentJson<'a>,
    canonical_id: Option<String>,
    tombstoned_at: Option<String>,
    tombstone_reason_code: Option<&'a str>,
    tombstone_reason: Option<&'a str>,
    reactivated_at: Option<String>,
    dispute_id: Option<String>,
    reconciliation_state: &'a str,
    over_budget: bool,
    incident_active: bool,
    effective_quarter: &'a str,
    reactivation_quarter: Option<&'a str>,
    retention_expires_at: String,
    references: u32,
}

impl<'a> RowJson<'a> {
    pub fn new(row: &'a Row) -> Self {
        RowJson {
            event_id: row.event_id.to_string(),
            corpus: &row.corpus,
            lifecycle: row.lifecycle.as_str(),
            claim_timestamp: rfc3339(row.claim_timestamp_us),
            claim_sequence: row.claim_sequence,
            content: ContentJson::of_row(row),
            canonical_id: row.canonical_id.map(|id| id.to_string()),
            tombstoned_at: row.tombstoned_at_us.map(rfc3339),
            tombstone_reason_code: row.tombstone_reason_code.map(|code| code.as_str()),
            tombstone_reason: row.tombstone_reason.as_deref(),
            reactivated_at: row.reactivated_at_us.map(rfc3339),
            dispute_id: row.dispute_id.map(|id| id.to_string()),
            reconciliation_state: row.reconciliation_state.as_str(),
            over_budget: row.over_budget,
            incident_active: row.incident_active,
            effective_quarter: &row.effective_quarter,
            reactivation_quarter: row.reactivation_quarter.as_deref(),
            retention_expires_at: rfc3339(row.retention_expires_at_us),
            references: row.references,
        }
    }
}

/// A claim that was made; `is_conditional` says whether it might not have been.
pub fn print_claimed(
    corpus: &str,
    claimed: &Claimed,
    is_conditional: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let event_id = claimed.event_id.to_string();
    let claim_timestamp = rfc3339(claimed.claim_timestamp_us);
    let claim_sequence = claimed.claim_sequence;
    if output.is_json() {
        let already_registered = is_conditional.then_some(false);
        return output.object(&ClaimJson { event_id, claim_timestamp, claim_sequence, corpus, already_registered });
    }
    output.pairs(&[
        ("event id", event_id),
        ("corpus", corpus.to_owned()),
        ("claimed at", claim_timestamp),
        ("sequence", claim_sequence.to_string()),
    ])
}

/// A row that a claim found registered.
pub fn print_already(event_id: Uuid, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.object(&AlreadyJson { event_id: event_id.to_string(), already_registered: true });
    }
    output.line(format_args!("already registered as {event_id}; nothing was claimed"))
}

pub fn print_row(row: &Row, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.object(&RowJson::new(row));
    }
    let mut pairs = vec![
        ("event id", row.event_id.to_string()),
        ("corpus", row.corpus.clone()),
        ("lifecycle", row.lifecycle.to_string()),
        ("claimed at", rfc3339(row.claim_timestamp_us)),
        ("sequence", row.claim_sequence.to_string()),
        ("event key", row.event_key.clone()),
        ("occurred at", rfc3339(row.occurred_at_us)),
        ("owned by", row.owning_corpus.clone()),
        ("hosted by", row.hosting_corpus.clone()),
        ("category", format!("{} (taxonomy {})", row.category, row.taxonomy_version)),
        ("metadata", format!("{} bytes", row.metadata.len())),
    ];
    pairs.push(("reconciliation", row.reconciliation_state.to_string()));
    pairs.push(("effective quarter", row.effective_quarter.clone()));
    pairs.push(("kept until", rfc3339(row.retention_expires_at_us)));
    pairs.push(("references", row.references.to_string()));
    pairs.extend(row.over_budget.then(|| ("over budget", "yes".to_owned())));
    pairs.extend(row.incident_active.then(|| ("incident", "claimed while one was on".to_owned())));
    pairs.extend(row.dispute_id.map(|id| ("dispute", id.to_string())));
    pairs.extend(row.canonical_id.map(|id| ("canonical id", id.to_string())));
    pairs.extend(row.tombstoned_at_us.map(|at| ("tombstoned at", rfc3339(at))));
    pairs.extend(row.tombstone_reason_code.map(|code| ("reason code", code.to_string())));
    pairs.extend(row.tombstone_reason.as_ref().map(|reason| ("reason", reason.clone())));
    pairs.extend(row.reactivated_at_us.map(|at| ("reactivated at", rfc3339(at))));
    pairs.extend(row.reactivation_quarter.as_ref().map(|quarter| ("reactivation quarter", quarter.clone())));
    output.pairs(&pairs)
}

/// A row on one line.
pub fn print_row_line(row: &Row, output: &mut Output) -> Result<(), Failure> {
    let (lifecycle, at) = (row.lifecycle, rfc3339(row.claim_timestamp_us));
    let (id, sequence, category, key) = (row.event_id, row.claim_sequence, &row.category, &row.event_key);
    output.line(format_args!("{id}  {lifecycle:<10}  {at}  {sequence:>6}  {category}  {key}"))
}
