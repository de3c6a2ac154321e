//! Disputes.

use crate::{DisputeState, DisputeVerdict};
use uuid::Uuid;

/// A dispute as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputeInfo {
    pub dispute_id: Uuid,
    pub state: DisputeState,
    /// The corpus that opened it.
    pub opened_by: String,
    pub opened_at_us: i64,
    pub updated_at_us: i64,
    pub rationale: String,
    pub sides: Vec<DisputeSide>,
    /// The row that stands for the event, once that is decided.
    pub canonical_id: Option<Uuid>,
    /// How many responses there are.
    pub responses: u32,
    pub dismissed: bool,
}

/// One id of a [`DisputeInfo`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputeSide {
    pub event_id: Uuid,
    pub corpus: String,
    pub verdict: DisputeVerdict,
}
