//! What a shard answers.

use super::Token;
use crate::corpus::Prefix;
use crate::dispute::Dispute;
use crate::error::Refusal;
use crate::id::EventId;
use crate::log::entry::{AlarmKind, Merge, PassCounts};
use crate::policy::Role;
use crate::row::{Lifecycle, RowState, RowView};
use crate::sealed::{Record, Stretch};
use crate::time::Quarter;
use serde::{Deserialize, Serialize};

/// Merges, suspects and orphans that a report of reconciliation lists, at most, of each.
pub const REPORT_LINES_MAX: usize = 1_000;
/// Rows that a suspect lists, at most.
pub const SUSPECT_ROWS_MAX: usize = 16;

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

/// A row; what it holds is its claim's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRow {
    /// The row.
    pub view: RowView,
    /// The record, if it was read to find the row.
    pub claim: Option<Record>,
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
    /// The row; what it holds is to be read from the log, if it is not there.
    Row(Box<FoundRow>),
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
        /// The log that most of them were found in, if it was read for them.
        log: Option<Stretch>,
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
