//! What the log says about itself.

use crate::bounds::CHAIN_HASH_BYTES;
use crate::{AuditOperation, LogPosition, ReasonCode};
use uuid::Uuid;

/// An audit entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub position: LogPosition,
    pub operation: AuditOperation,
    /// The corpus that did it.
    pub corpus: String,
    pub event_id: Option<Uuid>,
    pub timestamp_us: i64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub rationale: String,
    pub correlation_id: Option<Uuid>,
    pub idempotency_key: Option<Uuid>,
    pub reason_code: Option<ReasonCode>,
    pub user_name: String,
    pub dispute_id: Option<Uuid>,
    pub canonical_id: Option<Uuid>,
    /// One line in words: what the operation's own fields say.
    pub detail: String,
    /// Of entries that concern several rows.
    pub event_ids: Vec<Uuid>,
    /// Of a claim: what was claimed.
    pub claim: Option<Box<ClaimContent>>,
    /// Of a configuration: its text.
    pub configuration: String,
    /// Its place in the global order, the same in the log of every shard; 0: it has none.
    pub global_sequence: u64,
}

/// What a claim says of its event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClaimContent {
    pub event_key: String,
    pub occurred_at_us: i64,
    /// Empty: the claiming corpus.
    pub owning_corpus: String,
    /// Empty: the claiming corpus.
    pub hosting_corpus: String,
    pub category: String,
    pub taxonomy_version: u32,
    pub metadata: Vec<u8>,
}

/// The head of a shard's chain: its last durable batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub shard: u16,
    pub batch: u64,
    /// The last position up to the batch's end.
    pub position: u64,
    pub hash: [u8; CHAIN_HASH_BYTES],
    pub timestamp_us: i64,
}

/// How long claims of one corpus take until another sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub from: String,
    pub to: String,
    pub samples: u64,
    pub p50_us: u64,
    pub p95_us: u64,
    pub budget_us: u64,
    /// Samples beyond the budget.
    pub violations: u64,
}
