//! Rows.

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
