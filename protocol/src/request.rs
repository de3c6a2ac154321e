//! What a client may ask, as plain types. They borrow, so that neither side copies a request to look at it.

use crate::{LogPosition, ReasonCode};
use uuid::Uuid;

/// One request, as it stands in a frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// Chosen by the client, returned in the reply; unique among its connection's outstanding requests.
    pub request_id: u64,
    /// Milliseconds from the frame's arrival after which the answer is no longer wanted; 0: none.
    pub deadline_ms: u32,
    /// The request is answered from a state that includes these positions.
    pub at_least: Vec<LogPosition>,
    /// A UUIDv7 made when the client first meant the operation; every mutating operation carries one.
    pub idempotency_key: Option<Uuid>,
    /// One line saying why, at most 512 bytes; may be empty except where the operation requires it.
    pub rationale: &'a str,
    /// Ties the entries of one incident together.
    pub correlation_id: Option<Uuid>,
    /// The request's own time in microseconds since the epoch; required and honoured in replay ledgers only.
    pub at_us: Option<i64>,
    /// What is asked.
    pub operation: Operation<'a>,
}

impl<'a> Request<'a> {
    /// A request with nothing set but its id and operation.
    pub fn new(request_id: u64, operation: Operation<'a>) -> Self {
        Request {
            request_id,
            deadline_ms: 0,
            at_least: Vec::new(),
            idempotency_key: None,
            rationale: "",
            correlation_id: None,
            at_us: None,
            operation,
        }
    }
}

/// The operations of this protocol version.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation<'a> {
    /// First request of a connection: the protocol versions that the client speaks.
    Hello { min_version: u16, max_version: u16, client: &'a str },
    /// Registers a corpus.
    Onboard { name: &'a str, notes: &'a str },
    /// Lists the corpora.
    Corpora,
    /// Registers one event.
    Claim { corpus: &'a str, item: ClaimItem<'a> },
    /// Registers many events of one corpus; items are independent of each other.
    ClaimBatch { corpus: &'a str, items: Vec<ClaimItem<'a>> },
    /// Records that `corpus` refers to a row of another corpus.
    Reference { corpus: &'a str, event_id: Uuid },
    /// Many references of one corpus; items are independent of each other.
    ReferenceBatch { corpus: &'a str, event_ids: Vec<Uuid> },
    /// registered → tombstoned. The request's rationale is the reason.
    Retract { corpus: &'a str, event_id: Uuid, reason_code: ReasonCode },
    /// tombstoned (by retraction) → registered.
    Reactivate { event_id: Uuid },
    /// Accepts the daemon's present clock after `CLOCK_SUSPECT`.
    ConfirmClock,
    /// One row.
    Lookup { event_id: Uuid },
    /// The audit entries of one row, oldest first, without the first `skip`.
    History { event_id: Uuid, skip: u32 },
    /// Rows of a corpus in id order, by claim_timestamp in [since, until).
    Scan { corpus: &'a str, since_us: Option<i64>, until_us: Option<i64>, after: Option<Uuid>, limit: u32 },
    /// The state of the daemon.
    Status,
}

/// What is claimed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClaimItem<'a> {
    /// Says which event it is, 1 to 256 bytes; equal keys in different corpora are the same event.
    pub event_key: &'a str,
    /// When it happened, microseconds since the epoch.
    pub occurred_at_us: i64,
    /// The corpus that owns the decision; empty: the claiming corpus.
    pub owning_corpus: &'a str,
    /// The corpus that hosts the artefact; empty: the claiming corpus.
    pub hosting_corpus: &'a str,
    /// 1 to 63 bytes.
    pub category: &'a str,
    /// Version of the taxonomy that `category` is taken from.
    pub taxonomy_version: u32,
    /// Opaque, at most 64 KiB.
    pub metadata: &'a [u8],
}

impl Operation<'_> {
    /// Whether the operation changes the ledger, and so carries an idempotency key.
    pub const fn is_mutating(&self) -> bool {
        match self {
            Operation::Onboard { .. }
            | Operation::Claim { .. }
            | Operation::ClaimBatch { .. }
            | Operation::Reference { .. }
            | Operation::ReferenceBatch { .. }
            | Operation::Retract { .. }
            | Operation::Reactivate { .. }
            | Operation::ConfirmClock => true,
            Operation::Hello { .. }
            | Operation::Corpora
            | Operation::Lookup { .. }
            | Operation::History { .. }
            | Operation::Scan { .. }
            | Operation::Status => false,
        }
    }
}
