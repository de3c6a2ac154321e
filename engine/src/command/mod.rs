//! What a shard is asked. These are the engine's own words: the daemon translates the wire's.

mod outcome;

pub use outcome::{
    Claimed, Corpus, CorpusDetails, CorpusUsage, Fact, FoundRow, Orphan, Outcome, PassReport, Proposal,
    REPORT_LINES_MAX, Reply, RowFact, SUSPECT_ROWS_MAX, Signature, Stop, Suspect, Total,
};

use crate::dispute::{DisputeId, Verdict};
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::policy::Role;
use crate::row::ReasonCode;
use crate::time::Quarter;

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
/// Longest `unless_registered_within`.
pub const UNLESS_WITHIN_MAX_US: i64 = crate::time::DAY_US;
/// Rows of an event key that a page looks at, at most.
pub const FIND_ROWS_MAX: usize = 1_000;
/// Disputes of a page, at most: with the longest of rationales they fit a frame.
pub const DISPUTES_LISTED_MAX: usize = 500;

/// Names a request between the engine and whoever asked; the engine gives it back and reads nothing into it.
pub type Token = u64;

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// See [`Token`].
    pub token: Token,
    /// Requests of one stream, a connection, take effect in the order they come in; 0: of none.
    pub stream: u64,
    /// Who asks.
    pub principal: Principal,
    /// The name that the system gives the principal's uid; empty: none.
    pub user: &'a str,
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
        /// Only where no corpus has registered the same event within so long of it; single claims only.
        unless_within_us: Option<i64>,
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
    /// Stop a corpus's claims and references for good; shard 0 decides.
    Decommission {
        /// The corpus.
        name: &'a str,
        /// Say what would happen, and do nothing.
        dry_run: bool,
    },
    /// Stop mutations, or let them go on; shard 0 decides. The rationale is the reason.
    Freeze {
        /// The corpus; empty: the whole ledger.
        corpus: &'a str,
        /// Whether to stop.
        frozen: bool,
    },
    /// Throttle a corpus; shard 0 decides.
    Cap {
        /// The corpus.
        corpus: &'a str,
        /// 0: no throttle.
        claims_per_minute: u32,
    },
    /// Propose more slots for a corpus; shard 0 decides.
    ProposeSlots {
        /// The corpus.
        corpus: &'a str,
        /// Slots of a quarter.
        slots: u64,
    },
    /// Sign a proposal; shard 0 decides.
    SignOff {
        /// Which.
        proposal: u64,
        /// In which role.
        role: Role,
    },
    /// Say that an incident begins or ends; shard 0 decides.
    Incident {
        /// Whether one is on.
        active: bool,
    },
    /// Have rows claimed around now looked at once more; shard 0 decides.
    Barrier,
    /// Put a configuration in force; shard 0 decides. The daemon alone asks for it.
    Configure {
        /// The policy's text.
        toml: &'a str,
    },
    /// Open a dispute; shard 0 decides.
    Dispute {
        /// The corpus that opens it.
        corpus: &'a str,
        /// Its rows.
        event_ids: &'a [EventId],
    },
    /// Say something in a dispute; shard 0 decides.
    Respond {
        /// The corpus that says it.
        corpus: &'a str,
        /// Where.
        dispute: DisputeId,
    },
    /// Give a verdict; shard 0 decides.
    Arbitrate {
        /// On what.
        dispute: DisputeId,
        /// One a row.
        verdicts: &'a [(EventId, Verdict)],
    },
    /// Hand a dispute up; shard 0 decides.
    Escalate {
        /// Which.
        dispute: DisputeId,
    },
    /// Keep a quarter whatever its age, or not any more; shard 0 decides.
    Hold {
        /// Which.
        quarter: Quarter,
        /// False ends the hold.
        held: bool,
    },
    /// Run a pass of reconciliation; shard 0 does.
    Reconcile {
        /// Plan, and do nothing.
        dry_run: bool,
    },
    /// A dispute; shard 0 answers.
    DisputeLookup {
        /// Which.
        dispute: DisputeId,
    },
    /// Disputes that one may read, the newest first; shard 0 answers.
    Disputes {
        /// Of one corpus; empty: of all.
        corpus: &'a str,
        /// Also those at their end.
        include_closed: bool,
        /// Opened before this one.
        before: Option<DisputeId>,
    },
    /// Proposals of slot increases; shard 0 answers.
    Proposals,
    /// The configuration in force; shard 0 answers.
    Configuration,
    /// Rows of this shard with an event key, the last claimed first, in pages.
    Find {
        /// The key.
        event_key: &'a str,
        /// Where the page before ended.
        from: Option<u64>,
    },
    /// Entries of this shard that carry a correlation id, oldest first.
    Correlated {
        /// The id.
        correlation_id: u128,
        /// How many of the first entries to leave out.
        skip: usize,
    },
    /// Control totals of the corpora of this shard.
    Totals {
        /// Of one corpus; empty: of all.
        corpus: &'a str,
    },
    /// What a corpus is to this shard.
    Usage {
        /// The corpus.
        name: &'a str,
    },
    /// Leave to read all entries: `tail`, export, audit.
    ReadAll,
    /// Leave to see the daemon's state.
    Status,
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
            Operation::Corpora
                | Operation::Lookup { .. }
                | Operation::History { .. }
                | Operation::Scan { .. }
                | Operation::DisputeLookup { .. }
                | Operation::Disputes { .. }
                | Operation::Proposals
                | Operation::Configuration
                | Operation::Find { .. }
                | Operation::Correlated { .. }
                | Operation::Totals { .. }
                | Operation::Usage { .. }
                | Operation::ReadAll
                | Operation::Status
        )
    }

    /// Whether shard 0 decides it and every shard follows.
    pub fn is_global(&self) -> bool {
        matches!(
            self,
            Operation::Onboard { .. }
                | Operation::ConfirmClock
                | Operation::Decommission { .. }
                | Operation::Freeze { .. }
                | Operation::Cap { .. }
                | Operation::ProposeSlots { .. }
                | Operation::SignOff { .. }
                | Operation::Incident { .. }
                | Operation::Barrier
                | Operation::Configure { .. }
                | Operation::Dispute { .. }
                | Operation::Respond { .. }
                | Operation::Arbitrate { .. }
                | Operation::Escalate { .. }
                | Operation::Hold { .. }
                | Operation::Reconcile { .. }
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
