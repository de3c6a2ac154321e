//! The Rust client of claimd, a daemon that hands out event-ids and keeps their ledger.
//!
//! ```no_run
//! use claim_client::{ClaimItem, Client, RequestOptions};
//!
//! # fn main() -> Result<(), claim_client::ClientError> {
//! let client = Client::connect("./claimd-data/claimd.sock")?;
//! let options = RequestOptions::default();
//! client.onboard("billing", "invoices and what follows from them", &options).wait()?;
//!
//! let item = ClaimItem {
//!     event_key: "invoice-4711-overdue",
//!     occurred_at_us: 1_767_225_600_000_000,
//!     owning_corpus: "",
//!     hosting_corpus: "",
//!     category: "dunning",
//!     taxonomy_version: 1,
//!     metadata: b"",
//! };
//! let claimed = client.claim("billing", &item, &options).wait()?;
//! println!("{} is number {} of its quarter", claimed.event_id, claimed.claim_sequence);
//! # Ok(())
//! # }
//! ```
//!
//! # Blocking and async
//!
//! Every operation returns a [`Pending`]. [`Pending::wait`] blocks on it; `.await` works on any executor, because the
//! client brings its own thread per socket and needs no runtime. Requests are sent when they are made, so that making
//! several before waiting for the first pipelines them:
//!
//! ```no_run
//! # use claim_client::{ClaimItem, Client, ClientError, RequestOptions};
//! # async fn pipelined(client: &Client, items: &[ClaimItem<'_>]) -> Result<(), ClientError> {
//! let options = RequestOptions::default();
//! let pending: Vec<_> = items.iter().map(|item| client.claim("billing", item, &options)).collect();
//! for claim in pending {
//!     println!("{}", claim.await?.event_id);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What happens when something breaks
//!
//! A mutating request carries an idempotency key: the same request with the same key takes effect at most once, however
//! often it is sent. So when a connection breaks, the client restores it and sends what was not answered again, with the
//! same keys, until the deadline. A [`ClientError`] tells what remains: refused, for certain; unknown, with the key to
//! ask again with; or no daemon there at all.
//!
//! # When the daemon has too much to do
//!
//! Where a shard's log has no room for the moment, a mutation waits there: until its deadline, or until nothing has found room for 10 s.
//!
//! `OVERLOADED` and `THROTTLED` mean: not now, and nothing was applied. Unless [`RequestOptions::retry_overload`] says
//! otherwise, the client sends such a request again, with the same key, after a pause: at least the daemon's
//! `retry_after_ms`, and beyond it a random time of up to half of that or up to 10 ms, 20 ms, 40 ms and so on to 2 s,
//! whichever is more. A pause that would end after the deadline is not begun.
//!
//! Retries are load as well, so that they have a budget: once a [`Client`] was given [`RETRY_REQUESTS_MIN`] requests in
//! the last [`RETRY_WINDOW`], its retries are at most [`RETRY_PERCENT_MAX`] % of them, clones and all sockets together.
//! When it is used up, the caller gets the refusal at once, with [`ClientError::retry_after_ms`]: it is for the caller to
//! ask for less. What is sent again because a connection broke or a daemon went down does not count.
//!
//! # Where requests go
//!
//! The client connects to the daemon's main socket, learns there which shard serves which corpus, and opens a connection
//! to a shard's own socket when it first has a request for it. What it does not know goes through the main socket, which
//! serves everything; so goes what is for a shard whose own socket can't be opened, until nothing of that is outstanding.
//! Requests of one client for one corpus take effect in the order in which they were made, those aside that are refused, or
//! sent again by [`RequestOptions::retry_overload`].

#![deny(missing_docs)]

mod client;
mod connection;
mod driver;
mod endpoint;
mod error;
pub mod import;
mod job;
mod key;
mod options;
mod pending;
mod retry;
mod routes;
mod scan;
mod slot;

pub use claim_protocol::{
    AlarmKind, AuditOperation, CHAIN_HASH_BYTES, ClaimContent, ClaimItem, Claimed, ClockMode, CorpusInfo, DisputeInfo,
    DisputeSide, DisputeState, DisputeVerdict, Entry, ErrorCode, ErrorOutcome, Head, Lifecycle, LogPosition, Merge,
    Orphan, OverloadLevel, Pair, Proposal, ReasonCode, ReconcileReport, ReconciliationState, Role, Row, ServerError,
    ShardEndpoint, ShardStatus, Signature, StageTimes, StatusReport, Suspect, Total, UnknownValue, Uuid, Verdict,
    Welcome,
};
pub use client::{AuditChecked, Client, Configuration, Decommissioned, Registration, TailOptions, TailPage, TailPages};
pub use error::{Classification, ClientError, UnknownCause};
pub use key::new_key;
pub use options::{
    ATTEMPTS_MAX, CONNECT_TIMEOUT, ClientOptions, DEADLINE_DEFAULT, DEADLINE_MAX, OUTSTANDING_MAX, RequestOptions,
};
pub use pending::{Answer, Pending};
pub use retry::{RETRY_PERCENT_MAX, RETRY_REQUESTS_MIN, RETRY_WINDOW};
pub use routes::shard_prefix;
pub use scan::{
    DisputePage, FoundPage, HistoryPage, HistoryQuery, HistorySubject, RowPages, Rows, ScanPage, ScanRange,
};
