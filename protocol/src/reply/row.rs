//! Rows.

use std::borrow::Cow;

use crate::{Lifecycle, ReasonCode, ReconciliationState};
use uuid::Uuid;

/// What a claim hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    pub event_id: Uuid,
    pub claim_timestamp_us: i64,
    pub claim_sequence: u64,
}

/// A row as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub event_id: Uuid,
    pub corpus: String,
    pub lifecycle: Lifecycle,
    pub claim_timestamp_us: i64,
    pub claim_sequence: u64,
    pub event_key: String,
    pub occurred_at_us: i64,
    pub owning_corpus: String,
    pub hosting_corpus: String,
    pub category: String,
    pub taxonomy_version: u32,
    pub metadata: Vec<u8>,
    /// Set on aliases: the row that stands for the event.
    pub canonical_id: Option<Uuid>,
    pub tombstoned_at_us: Option<i64>,
    pub tombstone_reason_code: Option<ReasonCode>,
    pub tombstone_reason: Option<String>,
    pub reactivated_at_us: Option<i64>,
    /// The dispute that it is in.
    pub dispute_id: Option<Uuid>,
    pub reconciliation_state: ReconciliationState,
    /// Claimed beyond its corpus's slots.
    pub over_budget: bool,
    /// Claimed while an incident was on.
    pub incident_active: bool,
    /// Such as `2026-Q1`.
    pub effective_quarter: String,
    pub reactivation_quarter: Option<String>,
    pub retention_expires_at_us: i64,
    /// How often it is referred to.
    pub references: u32,
}

/// A row whose texts lie elsewhere: what a daemon encodes without copying it first. See [`Row`].
#[derive(Debug, Clone, PartialEq)]
pub struct RowRef<'a> {
    pub event_id: Uuid,
    pub corpus: &'a str,
    pub lifecycle: Lifecycle,
    pub claim_timestamp_us: i64,
    pub claim_sequence: u64,
    pub event_key: &'a str,
    pub occurred_at_us: i64,
    pub owning_corpus: &'a str,
    pub hosting_corpus: &'a str,
    pub category: &'a str,
    pub taxonomy_version: u32,
    pub metadata: &'a [u8],
    pub canonical_id: Option<Uuid>,
    pub tombstoned_at_us: Option<i64>,
    pub tombstone_reason_code: Option<ReasonCode>,
    pub tombstone_reason: Option<&'a str>,
    pub reactivated_at_us: Option<i64>,
    pub dispute_id: Option<Uuid>,
    pub reconciliation_state: ReconciliationState,
    pub over_budget: bool,
    pub incident_active: bool,
    pub effective_quarter: &'a str,
    pub reactivation_quarter: Option<Cow<'a, str>>,
    pub retention_expires_at_us: i64,
    pub references: u32,
}

impl Row {
    /// The same, with the texts where they are.
    pub fn by_ref(&self) -> RowRef<'_> {
        RowRef {
            event_id: self.event_id,
            corpus: &self.corpus,
            lifecycle: self.lifecycle,
            claim_timestamp_us: self.claim_timestamp_us,
            claim_sequence: self.claim_sequence,
            event_key: &self.event_key,
            occurred_at_us: self.occurred_at_us,
            owning_corpus: &self.owning_corpus,
            hosting_corpus: &self.hosting_corpus,
            category: &self.category,
            taxonomy_version: self.taxonomy_version,
            metadata: &self.metadata,
            canonical_id: self.canonical_id,
            tombstoned_at_us: self.tombstoned_at_us,
            tombstone_reason_code: self.tombstone_reason_code,
            tombstone_reason: self.tombstone_reason.as_deref(),
            reactivated_at_us: self.reactivated_at_us,
            dispute_id: self.dispute_id,
            reconciliation_state: self.reconciliation_state,
            over_budget: self.over_budget,
            incident_active: self.incident_active,
            effective_quarter: &self.effective_quarter,
            reactivation_quarter: self.reactivation_quarter.as_deref().map(Cow::Borrowed),
            retention_expires_at_us: self.retention_expires_at_us,
            references: self.references,
        }
    }
}
