//! One request on its way: its frame, how far it got, and who waits for it.

use crate::error::{ClientError, UnknownCause};
use crate::routes::Lane;
use crate::slot::Slot;
use claim_protocol::{
    BATCH_ITEMS_MAX, Builder, ErrorCode, ErrorOutcome, FRAME_PREFIX_BYTES, Operation, Reply, Request, ServerError,
    decode_request, encode_request,
};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

/// Looks at a reply in the connection's thread, before the caller does.
pub(crate) type Observer = Box<dyn FnOnce(&Reply) + Send>;

/// One request on its way. It owns its bytes, so that it can be sent again.
pub(crate) struct Job {
    /// The whole frame, prefix included. Its request id is set when it is taken in.
    frame: Vec<u8>,
    pub mutating: bool,
    pub key: Option<Uuid>,
    pub deadline: Instant,
    pub retry_overload: bool,
    pub slot: Arc<Slot>,
    pub observer: Option<Observer>,
    /// Held until the job ends, so that its corpus keeps to one connection.
    pub lane: Option<Lane>,
    /// How often it was sent, or waited through a failed reconnection.
    pub attempts: u32,
    /// How often it was refused for a while.
    pub refusals: u32,
    /// It stands in the present connection's outgoing bytes or beyond.
    pub sent: bool,
    /// It waits until then to be sent again.
    pub due: Option<Instant>,
    /// It was sent on a connection that broke, or to a daemon that went down: it may have been applied.
    pub ambiguous: bool,
}

impl fmt::Debug for Job {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Job")
            .field("key", &self.key)
            .field("attempts", &self.attempts)
            .field("sent", &self.sent)
            .field("ambiguous", &self.ambiguous)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// A job of `request`, whose id does not matter yet.
    ///
    /// # Errors
    /// One sentence about the bound that the request exceeds. The daemon would refuse it, too.
    pub fn new(
        builder: &mut Builder,
        request: &Request<'_>,
        deadline: Instant,
        retry_overload: bool,
    ) -> Result<Self, String> {
        if let Operation::ClaimBatch { items, .. } = &request.operation
            && items.len() > BATCH_ITEMS_MAX
        {
            return Err(format!("items has {} items; at most {BATCH_ITEMS_MAX} are allowed", items.len()));
        }
        let mut frame = Vec::new();
        encode_request(builder, request, &mut frame)
            .map_err(|error| format!("{error}; split the request or shorten its metadata"))?;
        decode_request(&frame[FRAME_PREFIX_BYTES..]).map_err(|error| error.message)?;
        Ok(Job {
            frame,
            mutating: request.operation.is_mutating(),
            key: request.idempotency_key,
            deadline,
            retry_overload,
            slot: Arc::new(Slot::new()),
            observer: None,
            lane: None,
            attempts: 0,
            refusals: 0,
            sent: false,
            due: None,
            ambiguous: false,
        })
    }

    /// With what looks at the reply first.
    pub fn observed(self, observer: Option<Observer>) -> Self {
        Job { observer, ..self }
    }

    /// With what it holds its corpus to the connection by.
    pub fn in_lane(self, lane: Option<Lane>) -> Self {
        Job { lane, ..self }
    }

    /// Appends the frame to `out` under `request_id`, with the time that is left as its deadline.
    pub fn append(&self, builder: &mut Builder, request_id: u64, now: Instant, out: &mut Vec<u8>) {
        let mut request =
            decode_request(&self.frame[FRAME_PREFIX_BYTES..]).expect("the frame was checked when it was made");
        request.request_id = request_id;
        let left_ms = self.deadline.saturating_duration_since(now).as_millis();
        // 0 would mean that there is no deadline.
        request.deadline_ms = u32::try_from(left_ms).unwrap_or(u32::MAX).max(1);
        encode_request(builder, &request, out).expect("only numbers have changed");
    }

    /// The error that the caller gets when the daemon's is final.
    pub fn refusal(&self, error: ServerError) -> ClientError {
        // Codes that are judged before the daemon looks for the key say nothing about an earlier attempt.
        let says_nothing_of_earlier = matches!(
            error.code,
            ErrorCode::Overloaded
                | ErrorCode::Throttled
                | ErrorCode::NoSpace
                | ErrorCode::ClockSuspect
                | ErrorCode::Forbidden
                | ErrorCode::Frozen
                | ErrorCode::Decommissioned
                | ErrorCode::KeyExpired
                | ErrorCode::Deadline
                | ErrorCode::ShardFailed
                | ErrorCode::ShuttingDown
        );
        let unknown = error.outcome == ErrorOutcome::Unknown || self.ambiguous && says_nothing_of_earlier;
        if self.mutating && unknown {
            self.unknown_outcome(UnknownCause::Server(error.code), error.message, error.retry_after_ms)
        } else {
            ClientError::Refused(error)
        }
    }

    /// The error that the caller gets at the deadline.
    pub fn deadline_passed(&self) -> ClientError {
        if self.mutating && (self.sent || self.ambiguous) {
            let message = "no answer came before the deadline".to_owned();
            self.unknown_outcome(UnknownCause::Server(ErrorCode::Deadline), message, 0)
        } else {
            let message = "no answer came before the deadline, and nothing was applied; allow more time";
            ClientError::refused(ErrorCode::Deadline, message.to_owned())
        }
    }

    pub fn unknown_outcome(&self, code: UnknownCause, message: String, retry_after_ms: u32) -> ClientError {
        ClientError::UnknownOutcome { code, message, idempotency_key: self.key, retry_after_ms }
    }
}

/// A mutating request whose answer is not understood may have been applied; a reading one has done no harm.
pub(crate) fn not_understood(mutating: bool, key: Option<Uuid>, message: String) -> ClientError {
    if mutating {
        let code = UnknownCause::Protocol;
        ClientError::UnknownOutcome { code, message, idempotency_key: key, retry_after_ms: 0 }
    } else {
        ClientError::Protocol(message)
    }
}
