//! What a shard is asked, and what it answers. These are the engine's own words: the daemon translates the wire's.

use crate::corpus::Prefix;
use crate::dispute::{Dispute, DisputeId, Verdict};
use crate::error::Refusal;
use crate::id::EventId;
use crate::log::entry::{AlarmKind, Merge, PassCounts, Principal};
use crate::policy::Role;
use crate::row::{Lifecycle, ReasonCode, RowState, RowView};
use crate::time::Quarter;
use serde::{Deserialize, Serialize};

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
/// Merges, suspects and orphans that a report of reconciliation lists, at most, of each.
pub const REPORT_LINES_MAX: usize = 1_000;
/// Rows that a suspect lists, at most.
pub const SUSPECT_ROWS_MAX: usize = 16;
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

/// An audited stop of mutations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Since when.
    pub at_us: i64,
    /// Why.
    pub reason: String,
}

/// A corpus of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// When it was closed.
    pub decommissioned_at_us: Option<i64>,
    /// Why its mutations are stopped.
    pub frozen: Option<Stop>,
    /// Claims in a minute; 0: no cap.
    pub cap_per_minute: u32,
    /// Slots that were signed for: from which moment on, and how many.
    pub slots: Vec<(i64, u64)>,
}

impl Default for Corpus {
    fn default() -> Corpus {
        Corpus {
            name: String::new(),
            prefix: Prefix::FIRST,
            shard: 0,
            onboarded_at_us: 0,
            notes: String::new(),
            decommissioned_at_us: None,
            frozen: None,
            cap_per_minute: 0,
            slots: Vec::new(),
        }
    }
}

/// What a corpus is to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CorpusUsage {
    /// Its rows here.
    pub rows: u64,
    /// Rows of other corpora here that are aliases of its rows.
    pub aliases_elsewhere: u64,
}

/// A corpus with what its shard knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusDetails {
    /// The corpus.
    pub corpus: Corpus,
    /// Rows claimed since it came in.
    pub claims: u64,
    /// Rows claimed in the present quarter.
    pub claims_this_quarter: u64,
    /// Slots of the present quarter.
    pub slots: u64,
    /// Alarms of the present quarter.
    pub alarms: Vec<AlarmKind>,
}

/// A signature on a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// In which role.
    pub role: Role,
    /// Whose.
    pub uid: u32,
    /// When.
    pub at_us: i64,
}

/// A proposal of more slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Its place in the global order.
    pub number: u64,
    /// The corpus.
    pub prefix: Prefix,
    /// Slots of a quarter.
    pub slots: u64,
    /// When.
    pub proposed_at_us: i64,
    /// Who has signed.
    pub signatures: Vec<Signature>,
    /// From when on it counts; `None` while signatures are missing.
    pub effective_from_us: Option<i64>,
}

/// Control totals of one corpus and quarter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// The corpus.
    pub prefix: Prefix,
    /// The quarter.
    pub quarter: Quarter,
    /// Rows by lifecycle, in the order of [`Lifecycle::LOGGED`].
    pub rows: [u64; 4],
    /// Slots of that quarter.
    pub slots: u64,
    /// Rows beyond the slots.
    pub over_budget: u64,
    /// Claims of the quarter before; `None` where there were none.
    pub claims_before: Option<u64>,
}

/// Rows of one corpus that claim the same event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The corpus.
    pub prefix: Prefix,
    /// The rows, at most [`SUSPECT_ROWS_MAX`] of them.
    pub event_ids: Vec<EventId>,
}

/// A row whose references, or whose canonical id, lead to a row that is not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    /// The row.
    pub event_id: EventId,
    /// Where it leads.
    pub canonical_id: EventId,
    /// What that is.
    pub state: Lifecycle,
    /// How many references name the row.
    pub references: u32,
    /// Whether the row is an alias.
    pub is_alias: bool,
}

/// What a pass of reconciliation did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PassReport {
    /// It only planned.
    pub dry_run: bool,
    /// Its number; 0 for a dry run.
    pub pass: u64,
    /// The moment that it goes by.
    pub at_us: i64,
    /// What it counted.
    pub counts: PassCounts,
    /// Merges, at most [`REPORT_LINES_MAX`].
    pub merges: Vec<Merge>,
    /// Suspects, at most [`REPORT_LINES_MAX`].
    pub suspects: Vec<Suspect>,
    /// Orphans, at most [`REPORT_LINES_MAX`].
    pub orphans: Vec<Orphan>,
}

/// What one shard tells another of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    /// The row.
    pub event_id: EventId,
    /// What is known of it; `None`: it is not there.
    pub row: Option<RowFact>,
}

/// See [`Fact`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowFact {
    /// Its state.
    pub state: RowState,
    /// When its retention is over.
    pub expires_at_us: i64,
    /// Set on aliases.
    pub canonical_id: Option<EventId>,
    /// When it was claimed.
    pub claim_timestamp_us: i64,
    /// When the event happened.
    pub occurred_at_us: i64,
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
    /// A corpus is closed, or would be.
    Decommissioned {
        /// The corpus.
        corpus: Box<Corpus>,
        /// Whether it is done.
        applied: bool,
        /// What it is to this shard.
        usage: CorpusUsage,
    },
    /// What a corpus is to this shard.
    Usage(CorpusUsage),
    /// Mutations are stopped, or go on.
    Frozen {
        /// The corpus; empty: the ledger.
        corpus: String,
        /// Whether they are stopped.
        frozen: bool,
        /// Since when.
        at_us: i64,
    },
    /// A corpus is throttled, or no more.
    Capped {
        /// The corpus.
        corpus: String,
        /// 0: no throttle.
        claims_per_minute: u32,
        /// Since when.
        at_us: i64,
    },
    /// A proposal as it stands.
    Proposal(Box<Proposal>),
    /// Proposals, the oldest first.
    Proposals(Vec<Proposal>),
    /// Whether an incident is on.
    IncidentSet {
        /// It.
        active: bool,
        /// Since when.
        at_us: i64,
    },
    /// Rows around this moment are looked at once more.
    BarrierRaised {
        /// The moment.
        at_us: i64,
    },
    /// A quarter is kept, or not any more.
    Held {
        /// Which.
        quarter: Quarter,
        /// Whether it is kept.
        held: bool,
        /// Since when.
        at_us: i64,
    },
    /// The configuration is in force.
    Configured {
        /// Since when.
        at_us: i64,
    },
    /// The configuration in force.
    Configuration {
        /// Its text.
        toml: String,
        /// Since when.
        at_us: i64,
        /// Who put it in force.
        uid: u32,
    },
    /// A dispute.
    Dispute(Box<Dispute>),
    /// Disputes, the newest first.
    Disputes {
        /// They.
        disputes: Vec<Dispute>,
        /// Whether there are more before these.
        more: bool,
    },
    /// What a pass did.
    Reconciled(Box<PassReport>),
    /// Control totals.
    Totals(Vec<Total>),
    /// One may.
    Allowed,
    /// Log offsets of entries, oldest first.
    Correlated {
        /// The entries.
        entries_at: Vec<u64>,
        /// Whether there are more after these.
        more: bool,
    },
    /// The shard's corpora.
    Corpora(Vec<CorpusDetails>),
    /// The row; what it holds is to be read from the log.
    Row(Box<RowView>),
    /// Log offsets of the entries, oldest first.
    History {
        /// The entries.
        entries_at: Vec<u64>,
        /// Whether there are more after these.
        more: bool,
        /// Rows whose entries belong to the same story.
        related: Vec<EventId>,
    },
    /// Rows in id order; what they hold is to be read from the log.
    Rows {
        /// The rows.
        rows: Vec<RowView>,
        /// Whether there are more after these.
        more: bool,
    },
    /// Rows of one hash of an event key; what they hold is to be read from the log, the key itself included.
    Found {
        /// The rows, each with its place.
        rows: Vec<RowView>,
        /// Where there may be more.
        next: Option<u64>,
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
