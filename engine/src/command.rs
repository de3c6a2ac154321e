//! What a shard is asked, and what it answers. These are the engine's own words: the daemon translates the wire's.

use crate::corpus::Prefix;
use crate::error::Refusal;
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::row::{ReasonCode, RowView};

/// Longest event key, in bytes.
pub const EVENT_KEY_BYTES_MAX: usize = 256;
/// Longest rationale, in bytes.
pub const RATIONALE_BYTES_MAX: usize = 512;
/// Longest notes of a corpus, in bytes.
pub const NOTES_BYTES_MAX: usize = 512;
/// Most metadata of a claim, in bytes.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Most items of a batch.
pub const BATCH_ITEMS_MAX: usize = 8_190;
/// Most rows of a scan's page.
pub const SCAN_ROWS_MAX: usize = 1_000;
/// Most entries of a history's page.
pub const HISTORY_ENTRIES_MAX: usize = 1_000;
/// Most positions of `at_least`.
pub const AT_LEAST_MAX: usize = 64;

/// Names a request between the engine and whoever asked; the engine gives it back and reads nothing into it.
pub type Token = u64;

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// See [`Token`].
    pub token: Token,
    /// Who asks.
    pub principal: Principal,
    /// A UUIDv7 as a number; 0 when the request has none.
    pub idempotency_key: u128,
    /// 0: none.
    pub correlation_id: u128,
    /// Why.
    pub rationale: &'a str,
    /// The request's own time; replay ledgers only.
    pub at_us: Option<i64>,
    /// CLOCK_BOOTTIME in microseconds after which nobody waits for the answer.
    pub deadline_boot_us: Option<i64>,
    /// Answer from a state that includes these (shard, position).
    pub at_least: &'a [(u16, u64)],
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// Register a corpus; shard 0 decides.
    Onboard {
        /// Its name.
        name: &'a str,
        /// For people.
        notes: &'a str,
    },
    /// Claims of one corpus; one reply for each.
    Claim {
        /// Who claims.
        corpus: &'a str,
        /// What; 1 to [`BATCH_ITEMS_MAX`].
        items: &'a [Claim<'a>],
    },
    /// References of one corpus to rows of this shard.
    Reference {
        /// Who refers.
        corpus: &'a str,
        /// To what, each with its index in the request.
        items: &'a [(u16, EventId)],
    },
    /// registered → tombstoned.
    Retract {
        /// Whose row it is.
        corpus: &'a str,
        /// The row.
        event_id: EventId,
        /// Why; the rationale is the reason in words.
        reason_code: ReasonCode,
    },
    /// tombstoned → registered.
    Reactivate {
        /// The row.
        event_id: EventId,
    },
    /// Accept the clock as it stands; shard 0 decides.
    ConfirmClock,
    /// The corpora that live on this shard.
    Corpora,
    /// One row.
    Lookup {
        /// The row.
        event_id: EventId,
    },
    /// A row's entries, oldest first.
    History {
        /// The row.
        event_id: EventId,
        /// How many of the first entries to leave out.
        skip: usize,
    },
    /// Rows of one corpus in id order.
    Scan {
        /// Whose.
        corpus: &'a str,
        /// From this claim_timestamp on.
        since_us: Option<i64>,
        /// Before this claim_timestamp.
        until_us: Option<i64>,
        /// After this id.
        after: Option<EventId>,
        /// At most this many; 0: as many as a page takes.
        limit: usize,
    },
}

impl Operation<'_> {
    /// Whether it changes anything.
    pub fn is_mutation(&self) -> bool {
        !matches!(
            self,
            Operation::Corpora | Operation::Lookup { .. } | Operation::History { .. } | Operation::Scan { .. }
        )
    }
}

/// What is claimed. Empty owning and hosting corpora mean the claiming one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the claim entry")]
pub struct Claim<'a> {
    pub event_key: &'a str,
    pub occurred_at_us: i64,
    pub owning_corpus: &'a str,
    pub hosting_corpus: &'a str,
    pub category: &'a str,
    pub taxonomy_version: u32,
    pub metadata: &'a [u8],
}

/// What a claim hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The id.
    pub event_id: EventId,
    /// When, microseconds since the epoch.
    pub claim_timestamp_us: i64,
    /// Its slot in the corpus's quarter, from 1.
    pub claim_sequence: u64,
}

/// A corpus of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// Its name.
    pub name: String,
    /// Its prefix.
    pub prefix: Prefix,
    /// Where it lives.
    pub shard: u16,
    /// When it came in.
    pub onboarded_at_us: i64,
    /// For people.
    pub notes: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The corpus as registered.
    Onboarded(Box<Corpus>),
    /// One item's claim.
    Claimed(Claimed),
    /// One result per item, in order.
    ClaimedItems(Vec<Result<Claimed, Refusal>>),
    /// One result per item, each with its index in the request.
    ReferencedItems(Vec<(u16, Result<EventId, Refusal>)>),
    /// The row is tombstoned.
    Retracted {
        /// The row.
        event_id: EventId,
        /// Since when.
        tombstoned_at_us: i64,
    },
    /// The row is back.
    Reactivated {
        /// The row.
        event_id: EventId,
        /// Since when.
        reactivated_at_us: i64,
    },
    /// The clock is accepted.
    ClockConfirmed {
        /// When.
        confirmed_at_us: i64,
    },
    /// The shard's corpora, each with the number of its rows.
    Corpora(Vec<(Corpus, u64)>),
    /// The row; what it holds is to be read from the log.
    Row(RowView),
    /// Log offsets of the entries, oldest first.
    History {
        /// The entries.
        entries_at: Vec<u64>,
        /// Whether there are more after these.
        more: bool,
    },
    /// Rows in id order; what they hold is to be read from the log.
    Rows {
        /// The rows.
        rows: Vec<RowView>,
        /// Whether there are more after these.
        more: bool,
    },
    /// Nothing happened.
    Refused(Refusal),
}

/// An answer with what it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The request's.
    pub token: Token,
    /// Position of this shard's log that the answer depends on; 0: none.
    pub position: u64,
    /// The answer.
    pub outcome: Outcome,
}
