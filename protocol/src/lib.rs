//! The wire contract of claimd: the flatbuffers schema (`schema/claimd.fbs`), the code generated from it, frames, and
//! requests and replies as plain typed values.
//!
//! Both sides use the same few functions. [`encode_request()`] and [`encode_reply()`] append one whole frame to a buffer;
//! [`frame::split_frame`] or [`frame::FrameBuffer`] finds frames in a stream; [`decode_request()`] and [`decode_reply()`]
//! verify every byte of one before they look at it. Flatbuffers types do not leave this crate.
//!
//! ```
//! use claim_protocol::{Operation, Request, decode_request, encode_request, frame::split_frame};
//!
//! let mut builder = claim_protocol::Builder::new();
//! let mut stream = Vec::new();
//! encode_request(&mut builder, &Request::new(7, Operation::Status), &mut stream)?;
//!
//! let (content, _) = split_frame(&stream)?.expect("one whole frame");
//! assert_eq!(decode_request(content)?.request_id, 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is absent: sockets, clocks, and what the operations mean. The decoder checks shapes and bounds; whether a corpus
//! exists or a transition is allowed is the engine's business.
#![allow(missing_docs, reason = "field names carry their meaning; units stand in the schema")]

pub mod bounds;
mod decode_error;
mod decode_reply;
mod decode_request;
mod encode_reply;
mod encode_request;
pub mod frame;
#[rustfmt::skip]
#[path = "generated/claimd_generated.rs"]
#[allow(clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, unused, mismatched_lifetime_syntaxes)]
mod generated;
mod reader;
pub mod reply;
pub mod request;
mod values;
mod wire_values;

pub use bounds::{
    AT_LEAST_MAX, BATCH_ITEMS_MAX, CHAIN_HASH_BYTES, CLIENT_NAME_BYTES_MAX, DISPUTE_IDS_MAX, DISPUTE_IDS_MIN,
    DISPUTE_RATIONALE_BYTES_MAX, EVENT_KEY_BYTES_MAX, FRAME_BYTES_MAX, FRAME_PREFIX_BYTES, METADATA_BYTES_MAX,
    NAME_BYTES_MAX, NOTES_BYTES_MAX, PAGE_BYTES_MAX, PROTOCOL_VERSION, QUARTER_YEAR_MAX, QUARTER_YEAR_MIN,
    RATIONALE_BYTES_MAX, REPORT_LIST_MAX, SCAN_ROWS_MAX, TAIL_ENTRIES_MAX, TAIL_WAIT_MS_MAX, UNLESS_REGISTERED_MS_MAX,
};
pub use decode_error::DecodeError;
#[doc(hidden)]
pub use decode_reply::decode_any_reply;
pub use decode_reply::decode_reply;
#[doc(hidden)]
pub use decode_request::decode_any;
pub use decode_request::{decode_request, key_at_sight};
pub use encode_reply::{
    RowPage, encode_claim_reply, encode_reply, encode_row_found, entry_frame_bytes, row_frame_bytes,
};
pub use encode_request::encode_request;
pub use frame::{FrameBuffer, FrameTooLarge};
pub use reply::{
    ClaimContent, Claimed, CorpusInfo, DisputeInfo, DisputeSide, Entry, Head, Merge, Orphan, Pair, Proposal,
    ReconcileReport, Reply, ReplyResult, Row, RowRef, ServerError, ShardEndpoint, ShardStatus, Signature, StageTimes,
    StatusReport, Suspect, Total, Welcome,
};

pub use request::{ClaimItem, Operation, Request, Verdict};
pub use uuid::Uuid;
pub use values::{
    AlarmKind, AuditOperation, ClockMode, DisputeState, DisputeVerdict, ErrorCode, ErrorOutcome, Lifecycle,
    LogPosition, OverloadLevel, ReasonCode, ReconciliationState, Role, UnknownValue,
};

/// The scratch space of the encoders. One per thread is enough: each call resets it and keeps its memory.
pub type Builder = flatbuffers::FlatBufferBuilder<'static>;
