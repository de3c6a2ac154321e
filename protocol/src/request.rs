//! What a client may ask, as plain types. They borrow, so that neither side copies a request to look at it.

use crate::bounds::{CHAIN_HASH_BYTES, DISPUTE_RATIONALE_BYTES_MAX, RATIONALE_BYTES_MAX};
use crate::{DisputeVerdict, LogPosition, ReasonCode, Role};
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
    /// One line saying why, at most [`Operation::rationale_bytes_max`]; may be empty except where the operation
    /// requires it.
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
    /// Registers one event. `unless_registered_within_ms` other than 0: only if no corpus registered the same key in the
    /// last 24 hours with a time of occurrence at most this far away.
    Claim { corpus: &'a str, item: ClaimItem<'a>, unless_registered_within_ms: u32 },
    /// Registers many events of one corpus; items are independent of each other.
    ClaimBatch { corpus: &'a str, items: Vec<ClaimItem<'a>> },
    /// Records that `corpus` refers to a row of another corpus.
    Reference { corpus: &'a str, event_id: Uuid },
    /// Many references of one corpus; items are independent of each other.
    ReferenceBatch { corpus: &'a str, event_ids: Vec<Uuid> },
    /// registered → tombstoned. The request's rationale is the reason. An empty corpus stands for the one that the id says.
    Retract { corpus: &'a str, event_id: Uuid, reason_code: ReasonCode },
    /// tombstoned (by retraction) → registered.
    Reactivate { event_id: Uuid },
    /// Accepts the daemon's present clock after `CLOCK_SUSPECT`.
    ConfirmClock,
    /// One row.
    Lookup { event_id: Uuid },
    /// The audit entries of one row or of one correlation id, oldest first, by timestamp in [since, until), from where the
    /// page before ended; 0: the first page. Exactly one of `event_id` and `correlation_id` is set.
    History {
        event_id: Option<Uuid>,
        correlation_id: Option<Uuid>,
        from: u64,
        since_us: Option<i64>,
        until_us: Option<i64>,
    },
    /// Rows of a corpus in id order, by claim_timestamp in [since, until).
    Scan { corpus: &'a str, since_us: Option<i64>, until_us: Option<i64>, after: Option<Uuid>, limit: u32 },
    /// The state of the daemon.
    Status,
    /// Opens a dispute on behalf of `corpus` about 2 to 8 rows.
    Dispute { corpus: &'a str, event_ids: Vec<Uuid> },
    /// Adds the rationale of one side of a dispute.
    Respond { corpus: &'a str, dispute_id: Uuid },
    /// Decides a dispute: one verdict for each of its ids, or none and `dismissed`.
    Arbitrate { dispute_id: Uuid, dismissed: bool, verdicts: Vec<Verdict> },
    /// Passes a dispute on to the leadership.
    Escalate { dispute_id: Uuid },
    /// One dispute.
    DisputeLookup { dispute_id: Uuid },
    /// The disputes of a corpus, or of all that may be read where `corpus` is empty: the newest first, opened before one.
    Disputes { corpus: &'a str, include_closed: bool, before: Option<Uuid> },
    /// Closes a corpus; a dry run says what it would mean.
    Decommission { name: &'a str, dry_run: bool },
    /// Stops mutations of a corpus, or of the ledger where `corpus` is empty; `frozen` false lets them go on.
    Freeze { corpus: &'a str, frozen: bool },
    /// Limits the claims a minute of a corpus; 0 lifts the limit.
    Cap { corpus: &'a str, claims_per_minute: u32 },
    /// Proposes the number of slots that a corpus gets from the next quarter on.
    ProposeSlots { corpus: &'a str, slots: u64 },
    /// Signs a proposal in one of the signer's roles.
    SignOff { proposal: u64, role: Role },
    /// The proposals.
    Proposals,
    /// Says that an incident is on, or over.
    Incident { active: bool },
    /// Makes the rows claimed around the present pending again.
    Barrier,
    /// Runs a pass of reconciliation; a dry run carries a key, too, and logs nothing.
    Reconcile { dry_run: bool },
    /// The rows of all corpora that may be read, with one event key, from where the page before ended; 0: the first page.
    Find { event_key: &'a str, from: u64 },
    /// The control totals of a corpus, or of all that may be read where `corpus` is empty.
    Totals { corpus: &'a str },
    /// Durable entries of a shard, at or after a position. Answered as soon as there is one, or after `wait_ms`.
    Tail { shard: u16, from_position: u64, limit: u32, wait_ms: u32 },
    /// The head of each shard's chain.
    AuditHead,
    /// Whether a shard's chain passes through a head that was given out earlier.
    AuditCheck { shard: u16, batch: u64, position: u64, hash: [u8; CHAIN_HASH_BYTES] },
    /// The configuration in effect.
    Configuration,
    /// How long claims take until other corpora see them.
    Propagation,
    /// Keeps a quarter, 1 to 4 of a year, whatever its age; `held` false ends that.
    Hold { year: u16, quarter: u8, held: bool },
}

/// What an arbitration decides about one id: canonical, references or tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub event_id: Uuid,
    pub verdict: DisputeVerdict,
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
            | Operation::ConfirmClock
            | Operation::Dispute { .. }
            | Operation::Respond { .. }
            | Operation::Arbitrate { .. }
            | Operation::Escalate { .. }
            | Operation::Decommission { .. }
            | Operation::Freeze { .. }
            | Operation::Cap { .. }
            | Operation::ProposeSlots { .. }
            | Operation::SignOff { .. }
            | Operation::Incident { .. }
            | Operation::Barrier
            | Operation::Reconcile { .. }
            | Operation::Hold { .. } => true,
            Operation::Hello { .. }
            | Operation::Corpora
            | Operation::Lookup { .. }
            | Operation::History { .. }
            | Operation::Scan { .. }
            | Operation::Status
            | Operation::DisputeLookup { .. }
            | Operation::Disputes { .. }
            | Operation::Proposals
            | Operation::Find { .. }
            | Operation::Totals { .. }
            | Operation::Tail { .. }
            | Operation::AuditHead
            | Operation::AuditCheck { .. }
            | Operation::Configuration
            | Operation::Propagation => false,
        }
    }

    /// Bytes that the request's rationale may have: disputes are argued at length.
    pub const fn rationale_bytes_max(&self) -> usize {
        match self {
            Operation::Dispute { .. }
            | Operation::Respond { .. }
            | Operation::Arbitrate { .. }
            | Operation::Escalate { .. } => DISPUTE_RATIONALE_BYTES_MAX,
            _ => RATIONALE_BYTES_MAX,
        }
    }
}
