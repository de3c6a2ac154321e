//! What the daemon answers, as plain types.

mod audit;
mod dispute;
mod reconcile;
mod registry;
mod row;
mod status;

pub use audit::{ClaimContent, Entry, Head, Pair};
pub use dispute::{DisputeInfo, DisputeSide};
pub use reconcile::{Merge, Orphan, ReconcileReport, Suspect};
pub use registry::{CorpusInfo, Proposal, Signature, Total};
pub use row::{Claimed, Row, RowRef};
pub use status::{ShardEndpoint, ShardStatus, StageTimes, StatusReport, Welcome};

use crate::{ErrorCode, ErrorOutcome, LogPosition};
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
    /// `next`: where there may be more; a page may be empty and not the last. `related`: aliases, canonical ids and the other rows of disputes, whose
    /// entries are not among these.
    History {
        entries: Vec<Entry>,
        next: Option<u64>,
        related: Vec<Uuid>,
    },
    ScanPage {
        rows: Vec<Row>,
        next: Option<Uuid>,
    },
    Status(Box<StatusReport>),
    Error(ServerError),
    /// The dispute as it stands after the operation.
    Disputed(DisputeInfo),
    DisputeList {
        disputes: Vec<DisputeInfo>,
        next: Option<Uuid>,
    },
    /// `applied` is false on a dry run. `aliases_elsewhere`: rows of other corpora that refer to rows of this one.
    Decommissioned {
        corpus: CorpusInfo,
        applied: bool,
        rows: u64,
        aliases_elsewhere: u64,
    },
    /// An empty corpus stands for the whole ledger.
    Frozen {
        corpus: String,
        frozen: bool,
        at_us: i64,
    },
    Capped {
        corpus: String,
        claims_per_minute: u32,
        at_us: i64,
    },
    /// The proposal as it stands after it was made or signed.
    Proposal(Proposal),
    ProposalList(Vec<Proposal>),
    TotalsFound(Vec<Total>),
    IncidentSet {
        active: bool,
        at_us: i64,
    },
    BarrierRaised {
        at_us: i64,
    },
    Reconciled(Box<ReconcileReport>),
    /// In id order.
    Found {
        rows: Vec<Row>,
        next: Option<u64>,
    },
    /// `next_position` is what to ask for next.
    TailPage {
        entries: Vec<Entry>,
        next_position: u64,
        durable_position: u64,
    },
    AuditHeads(Vec<Head>),
    AuditChecked {
        shard: u16,
        ok: bool,
        message: String,
        batches_verified: u64,
    },
    /// Who set the configuration, when, and where it stands in the log.
    ConfigurationFound {
        toml: String,
        at_us: i64,
        uid: u32,
        position: LogPosition,
    },
    PropagationFound(Vec<Pair>),
    /// Whether a quarter is held, and since when that is so.
    Held {
        year: u16,
        quarter: u8,
        held: bool,
        at_us: i64,
    },
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
    /// The row that a conditional claim found; set with `ALREADY_REGISTERED`.
    pub registered_id: Option<Uuid>,
}
