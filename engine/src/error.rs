//! Refusals: what the state machine answers instead of an effect.

use crate::id::EventId;

/// The stable codes. The outcome of each is definite unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// Malformed, or a bound exceeded.
    BadRequest,
    /// No such corpus.
    UnknownCorpus,
    /// No such id here yet; retryable.
    NotVisible,
    /// The row's state does not allow it.
    BadTransition,
    /// The name is taken; or another row stands for the event.
    AlreadyRegistered,
    /// Retention is over.
    Expired,
    /// The corpus is closed.
    Decommissioned,
    /// An audited stop.
    Frozen,
    /// No role allows it.
    Forbidden,
    /// A cap, or a bound against bad faith.
    Throttled,
    /// The key was used for another request.
    KeyReused,
    /// The key is older than the window.
    KeyExpired,
    /// The key's time is ahead of the shard's.
    KeyInFuture,
    /// More is waiting than the shard takes.
    Overloaded,
    /// The ledger can't grow.
    NoSpace,
    /// The clock leapt ahead and nobody confirmed it.
    ClockSuspect,
    /// The request's deadline passed. Unknown, unless it never reached the log.
    Deadline,
    /// A write failed. Unknown.
    ShardFailed,
    /// The daemon stops. Unknown for what is under way, definite for what is not accepted any more.
    ShuttingDown,
}

/// Whether a refused operation may have had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// It was not applied.
    Definite,
    /// It may have been applied: retry with the same key.
    Unknown,
}

/// A refusal with its sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// Whether it may have been applied.
    pub certainty: Certainty,
    /// What was wrong and what would be right.
    pub message: String,
    /// When to try again; 0: no advice.
    pub retry_after_ms: u32,
    /// The row that stands for the event already.
    pub registered_id: Option<Box<EventId>>,
}

impl Refusal {
    /// A definite refusal without advice on when to retry.
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            certainty: Certainty::Definite,
            message: message.into(),
            retry_after_ms: 0,
            registered_id: None,
        }
    }

    /// The same, to be retried after a while.
    pub fn retry_after(code: Code, retry_after_ms: u32, message: impl Into<String>) -> Refusal {
        Refusal { retry_after_ms, ..Refusal::new(code, message) }
    }

    /// A refusal of something that may have been applied.
    pub fn unknown(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { certainty: Certainty::Unknown, ..Refusal::new(code, message) }
    }
}
