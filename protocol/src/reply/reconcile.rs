//! What a pass of reconciliation did.

use crate::Lifecycle;
use uuid::Uuid;

/// What a pass did, or would do. The counts are of all; the lists hold at most
/// [`REPORT_LIST_MAX`](crate::REPORT_LIST_MAX) each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReconcileReport {
    pub dry_run: bool,
    /// Its number.
    pub pass: u64,
    pub at_us: i64,
    pub rows_examined: u64,
    /// Event keys with rows of two corpora.
    pub groups: u64,
    pub merged: u64,
    /// Aliases among the rows looked at.
    pub already_merged: u64,
    pub skipped_disputed: u64,
    /// Changed meanwhile.
    pub refused: u64,
    pub suspects: u64,
    pub orphans: u64,
    pub merges_listed: Vec<Merge>,
    pub suspects_listed: Vec<Suspect>,
    pub orphans_listed: Vec<Orphan>,
}

/// A row that became an alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    pub event_id: Uuid,
    pub canonical_id: Uuid,
}

/// Rows of one corpus with equal event keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    pub corpus: String,
    pub event_ids: Vec<Uuid>,
}

/// What refers to a row that is no longer registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    /// The alias, or the row that is referred to.
    pub event_id: Uuid,
    pub canonical_id: Uuid,
    /// Of the canonical row.
    pub lifecycle: Lifecycle,
    pub references: u32,
    pub is_alias: bool,
}
