//! Why a frame was not taken.

use flatbuffers::InvalidFlatbuffer;

/// Why a frame was not taken, and what its receiver does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// The request that the frame belongs to; 0 when it could not be read.
    pub request_id: u64,
    /// One sentence: what was wrong and what would be right.
    pub message: String,
    /// The bytes do not verify, so nothing after them can be trusted: one error frame, then the connection is closed.
    /// Otherwise the frame is well formed and its content wrong: it is answered with `BAD_REQUEST`, and the connection
    /// goes on.
    pub fatal: bool,
}

impl DecodeError {
    /// The bytes are no flatbuffer of this schema. The verifier's trace is cut to its first line: it can be as long as
    /// the peer likes.
    pub(crate) fn unverified(root: &str, error: &InvalidFlatbuffer) -> Self {
        let text = error.to_string();
        let first_line = text.lines().next().unwrap_or_default();
        DecodeError {
            request_id: 0,
            message: format!("the frame is no {root} of this protocol ({first_line}); check the client's schema"),
            fatal: true,
        }
    }

    /// The frame verifies, and its content is wrong.
    pub(crate) fn content(request_id: u64, message: String) -> Self {
        DecodeError { request_id, message, fatal: false }
    }
}
