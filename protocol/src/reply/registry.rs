//! Corpora, their slots and what they hold.

use crate::{AlarmKind, Role};

/// A corpus of the registry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CorpusInfo {
    pub name: String,
    pub shard_prefix: u16,
    pub shard: u16,
    pub onboarded_at_us: i64,
    pub decommissioned_at_us: Option<i64>,
    pub notes: String,
    /// Rows claimed since onboarding.
    pub claims: u64,
    /// Why its mutations are stopped.
    pub frozen_reason: Option<String>,
    pub frozen_at_us: Option<i64>,
    /// Slots of this quarter.
    pub slots: u64,
    pub claims_this_quarter: u64,
    /// Claims a minute; 0: no cap.
    pub cap_per_minute: u32,
    /// Of this quarter.
    pub alarms: Vec<AlarmKind>,
}

/// A slot increase, with whoever signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Its number.
    pub proposal: u64,
    pub corpus: String,
    /// Slots a quarter.
    pub slots: u64,
    pub proposed_at_us: i64,
    pub signatures: Vec<Signature>,
    /// Set once it has the signatures that it needs.
    pub effective_from_us: Option<i64>,
}

/// One signature of a [`Proposal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    pub role: Role,
    pub uid: u32,
    pub at_us: i64,
}

/// The control totals of one corpus and quarter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    pub corpus: String,
    /// Such as `2026-Q1`.
    pub quarter: String,
    pub registered: u64,
    pub disputed: u64,
    pub referenced: u64,
    pub tombstoned: u64,
    pub slots: u64,
    /// Rows claimed beyond the slots.
    pub over_budget: u64,
    /// Claims against those of the quarter before.
    pub growth_permille: Option<u32>,
    /// Tombstoned against registered.
    pub tombstone_permille: Option<u32>,
}
