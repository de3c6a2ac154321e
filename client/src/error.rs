//! What a caller learns when a request does not succeed.

use claim_protocol::{ErrorCode, ErrorOutcome, ServerError};
use std::path::PathBuf;
use uuid::Uuid;

/// Why a request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No daemon could be reached, and the request never left this process.
    #[error("cannot connect to {}: {reason}", socket.display())]
    Connect {
        /// The socket that was tried.
        socket: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The request was refused, by the daemon or before it was sent: it was not applied.
    #[error(transparent)]
    Refused(ServerError),
    /// The request may have been applied. The same request with the same key tells, and applies it at most once.
    #[error("{}: {message}; the outcome is unknown{}", code.name(), retry_with(idempotency_key))]
    UnknownOutcome {
        /// What ended the wait for the answer.
        code: UnknownCause,
        /// One sentence about it.
        message: String,
        /// The key to retry with.
        idempotency_key: Option<Uuid>,
        /// Milliseconds to wait before that; 0: no advice.
        retry_after_ms: u32,
    },
    /// The daemon answered a reading request with something that this version does not understand.
    #[error("the daemon's answer is not understood: {0}; use a client of the daemon's version")]
    Protocol(String),
}

/// What left the outcome of a mutating request open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownCause {
    /// The daemon said so.
    Server(ErrorCode),
    /// The connection broke and could not be restored in time.
    ConnectionLost,
    /// The answer was not understood.
    Protocol,
}

impl UnknownCause {
    /// A stable name in the style of [`ErrorCode::name`].
    pub fn name(self) -> &'static str {
        match self {
            UnknownCause::Server(code) => code.name(),
            UnknownCause::ConnectionLost => "CONNECTION_LOST",
            UnknownCause::Protocol => "PROTOCOL",
        }
    }
}

/// What an error means for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classification {
    /// Nothing was applied.
    Definite,
    /// It may have been applied.
    Unknown,
    /// No daemon was reached, and nothing was applied.
    CannotConnect,
}

impl ClientError {
    /// Whether the request was applied, as far as the client can tell.
    pub fn classification(&self) -> Classification {
        match self {
            ClientError::Connect { .. } => Classification::CannotConnect,
            ClientError::Refused(_) | ClientError::Protocol(_) => Classification::Definite,
            ClientError::UnknownOutcome { .. } => Classification::Unknown,
        }
    }

    /// A stable name: the daemon's error code, or one of `CANNOT_CONNECT`, `CONNECTION_LOST` and `PROTOCOL`.
    pub fn code_name(&self) -> &'static str {
        match self {
            ClientError::Connect { .. } => "CANNOT_CONNECT",
            ClientError::Refused(error) => error.code.name(),
            ClientError::UnknownOutcome { code, .. } => code.name(),
            ClientError::Protocol(_) => "PROTOCOL",
        }
    }

    /// The daemon's advice on when to try again, in milliseconds; 0: none.
    pub fn retry_after_ms(&self) -> u32 {
        match self {
            ClientError::Refused(error) => error.retry_after_ms,
            ClientError::UnknownOutcome { retry_after_ms, .. } => *retry_after_ms,
            ClientError::Connect { .. } | ClientError::Protocol(_) => 0,
        }
    }

    /// The daemon's code, where the daemon or its protocol has one for this.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused(error) => Some(error.code),
            ClientError::UnknownOutcome { code: UnknownCause::Server(code), .. } => Some(*code),
            _ => None,
        }
    }

    /// A refusal that the client states by itself, before anything was sent.
    pub(crate) fn refused(code: ErrorCode, message: String) -> Self {
        let outcome = ErrorOutcome::Definite;
        ClientError::Refused(ServerError { code, outcome, message, retry_after_ms: 0, registered_id: None })
    }
}

fn retry_with(key: &Option<Uuid>) -> String {
    key.map(|key| format!(": retry with idempotency key {key}")).unwrap_or_default()
}
