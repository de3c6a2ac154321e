//! What the daemon answers, as plain types.

use crate::{AuditOperation, ClockMode, ErrorCode, ErrorOutcome, Lifecycle, LogPosition, ReasonCode};
use uuid::Uuid;

/// One reply, as it stands in a frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The request's id; 0 when it could not be read.
    pub request_id: u64,
    /// The positions that the answer depends on; all of them are durable.
    pub positions: Vec<LogPosition>,
    /// The answer.
    pub result: ReplyResult,
}

/// An answer: one variant per operation, or an error.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyResult {
    Welcome(Welcome),
    Onboarded(CorpusInfo),
    Corpora(Vec<CorpusInfo>),
    Claimed(Claimed),
    /// One result per item, in the items' order.
    ClaimedBatch(Vec<Result<Claimed, ServerError>>),
    /// The canonical id that the reference was recorded against.
    Referenced(Uuid),
    ReferencedBatch(Vec<Result<Uuid, ServerError>>),
    Retracted {
        event_id: Uuid,
        tombstoned_at_us: i64,
    },
    Reactivated {
        event_id: Uuid,
        reactivated_at_us: i64,
    },
    ClockConfirmed {
        confirmed_at_us: i64,
    },
    Row(Box<Row>),
    /// `more`: there are entries after these.
    History {
        entries: Vec<Entry>,
        more: bool,
    },
    ScanPage {
        rows: Vec<Row>,
        next: Option<Uuid>,
    },
    Status(Box<StatusReport>),
    Error(ServerError),
}

/// The daemon's half of the first exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct Welcome {
    pub version: u16,
    pub daemon: String,
    pub ledger: Uuid,
    pub clock: ClockMode,
    /// Socket path of each shard; index is the shard number.
    pub shards: Vec<ShardEndpoint>,
    pub frame_bytes_max: u32,
    pub batch_items_max: u32,
}

/// Where a shard can be reached directly.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardEndpoint {
    pub shard: u16,
    pub socket: String,
}

/// A corpus of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusInfo {
    pub name: String,
    pub shard_prefix: u16,
    pub shard: u16,
    pub onboarded_at_us: i64,
    pub decommissioned_at_us: Option<i64>,
    pub notes: String,
    /// Rows claimed since onboarding.
    pub claims: u64,
}

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
}

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
}

/// One shard of a [`StatusReport`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShardStatus {
    pub shard: u16,
    pub core: u16,
    /// Last applied position.
    pub position: u64,
    pub durable_position: u64,
    pub rows: u64,
    /// Corpora placed on this shard.
    pub corpora: u32,
    pub idempotency_keys: u64,
    /// Requests accepted and not answered.
    pub requests_held: u64,
    pub batches_written: u64,
    pub bytes_written: u64,
    pub segments_used: u32,
    pub segments_prepared: u32,
    pub segment_bytes: u64,
    pub incarnation: u64,
    /// By how much the clock stands behind the last timestamp.
    pub clock_held_us: u64,
    pub clock_suspect: bool,
    pub no_space: bool,
    /// Why the shard stopped.
    pub failed: Option<String>,
    /// Read again and verified in the background since start.
    pub scrubbed_bytes: u64,
    /// Times that the whole log was gone over since start.
    pub scrub_rounds: u64,
    /// Places that did not verify since start.
    pub scrub_damaged: u64,
    /// The first of them.
    pub scrub_first: Option<String>,
}

/// The state of the daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusReport {
    pub daemon: String,
    pub ledger: Uuid,
    pub clock: ClockMode,
    pub clock_synchronised: bool,
    pub uptime_ms: u64,
    pub cores: u32,
    pub connections: u32,
    /// How often the stall guard woke an executor.
    pub stall_wakes: u64,
    pub shards: Vec<ShardStatus>,
}

/// A refusal or failure, as the daemon states it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct ServerError {
    pub code: ErrorCode,
    pub outcome: ErrorOutcome,
    /// One sentence: what was wrong and what would be right.
    pub message: String,
    /// Advice on when to try again; 0: none.
    pub retry_after_ms: u32,
}
