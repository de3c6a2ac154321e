//! Rows: the states that they can be in, the operations that lead from one to another, and what is kept of each in memory.

use crate::dispute::DisputeId;
use crate::id::EventId;
use crate::time::Quarter;
use serde::{Deserialize, Serialize};

/// The state of a row that its entries add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lifecycle {
    /// It stands for its event.
    Registered,
    /// Its corpora disagree about it, and it waits for a verdict.
    Disputed,
    /// It is an alias: another row stands for its event.
    Referenced,
    /// It was taken back, by its corpus or by a verdict.
    Tombstoned,
    /// Its retention is over. Derived from time, never logged.
    Expired,
}

impl Lifecycle {
    /// Those that entries lead to.
    pub const LOGGED: [Lifecycle; 4] =
        [Lifecycle::Registered, Lifecycle::Disputed, Lifecycle::Referenced, Lifecycle::Tombstoned];

    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Lifecycle::Registered => "registered",
            Lifecycle::Disputed => "disputed",
            Lifecycle::Referenced => "referenced",
            Lifecycle::Tombstoned => "tombstoned",
            Lifecycle::Expired => "expired",
        }
    }
}

/// A lifecycle, with what it takes to know which operations it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RowState {
    /// It stands for its event.
    Registered,
    /// A dispute has it.
    Disputed,
    /// It is an alias.
    Referenced,
    /// Its corpus took it back; it may come back.
    Retracted,
    /// A verdict took it back, for ever.
    TombstonedByArbitration,
}

impl RowState {
    /// All of them.
    pub const ALL: [RowState; 5] = [
        RowState::Registered,
        RowState::Disputed,
        RowState::Referenced,
        RowState::Retracted,
        RowState::TombstonedByArbitration,
    ];

    /// The lifecycle that shows.
    pub fn lifecycle(self) -> Lifecycle {
        match self {
            RowState::Registered => Lifecycle::Registered,
            RowState::Disputed => Lifecycle::Disputed,
            RowState::Referenced => Lifecycle::Referenced,
            RowState::Retracted | RowState::TombstonedByArbitration => Lifecycle::Tombstoned,
        }
    }

    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            RowState::Retracted => "tombstoned (by retraction)",
            RowState::TombstonedByArbitration => "tombstoned (by arbitration)",
            other => other.lifecycle().name(),
        }
    }
}

/// What can be done to a row that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowOperation {
    /// Its corpus takes it back.
    Retract,
    /// A retraction is taken back.
    Reactivate,
    /// A corpus refers to it. It stays what it is.
    Reference,
    /// A dispute takes it.
    Dispute,
    /// Reconciliation finds an earlier claim of the same event.
    Merge,
    /// The verdict: it stands for the event.
    ArbitrateCanonical,
    /// The verdict: another row stands for the event.
    ArbitrateReferences,
    /// The verdict: it goes for ever.
    ArbitrateTombstone,
    /// The verdict: there is nothing to disagree about.
    Dismiss,
    /// Its dispute came to nothing.
    Void,
}

impl RowOperation {
    /// All of them.
    pub const ALL: [RowOperation; 10] = [
        RowOperation::Retract,
        RowOperation::Reactivate,
        RowOperation::Reference,
        RowOperation::Dispute,
        RowOperation::Merge,
        RowOperation::ArbitrateCanonical,
        RowOperation::ArbitrateReferences,
        RowOperation::ArbitrateTombstone,
        RowOperation::Dismiss,
        RowOperation::Void,
    ];

    /// As documents name it.
    pub fn name(self) -> &'static str {
        match self {
            RowOperation::Retract => "retract",
            RowOperation::Reactivate => "reactivate",
            RowOperation::Reference => "reference",
            RowOperation::Dispute => "dispute",
            RowOperation::Merge => "reconciliation merges it",
            RowOperation::ArbitrateCanonical => "arbitrate: canonical",
            RowOperation::ArbitrateReferences => "arbitrate: references the canonical id",
            RowOperation::ArbitrateTombstone => "arbitrate: tombstone",
            RowOperation::Dismiss => "arbitrate: dismissed",
            RowOperation::Void => "the dispute becomes void",
        }
    }

    /// The participle that a refusal is worded with.
    pub fn participle(self) -> &'static str {
        match self {
            RowOperation::Retract => "retracted",
            RowOperation::Reactivate => "reactivated",
            RowOperation::Reference => "referred to",
            RowOperation::Dispute => "disputed",
            RowOperation::Merge => "merged",
            RowOperation::ArbitrateCanonical
            | RowOperation::ArbitrateReferences
            | RowOperation::ArbitrateTombstone
            | RowOperation::Dismiss
            | RowOperation::Void => "settled",
        }
    }
}

/// What a row becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// This.
    State(RowState),
    /// What it was before the dispute.
    WhatItWas,
}

/// Which operation leads from where to where. Everything that is not here is refused with `BAD_TRANSITION` and changes nothing.
/// The check, the documentation page and the model test are made from this.
pub const TRANSITIONS: &[(RowState, RowOperation, Becomes)] = &[
    (RowState::Registered, RowOperation::Retract, Becomes::State(RowState::Retracted)),
    (RowState::Registered, RowOperation::Dispute, Becomes::State(RowState::Disputed)),
    (RowState::Registered, RowOperation::Merge, Becomes::State(RowState::Referenced)),
    (RowState::Registered, RowOperation::Reference, Becomes::State(RowState::Registered)),
    // Aliases are followed to the end: the row that is referred to is the canonical one.
    (RowState::Referenced, RowOperation::Reference, Becomes::State(RowState::Referenced)),
    (RowState::Referenced, RowOperation::Dispute, Becomes::State(RowState::Disputed)),
    (RowState::Disputed, RowOperation::ArbitrateCanonical, Becomes::State(RowState::Registered)),
    (RowState::Disputed, RowOperation::Dismiss, Becomes::State(RowState::Registered)),
    (RowState::Disputed, RowOperation::ArbitrateReferences, Becomes::State(RowState::Referenced)),
    (RowState::Disputed, RowOperation::ArbitrateTombstone, Becomes::State(RowState::TombstonedByArbitration)),
    (RowState::Disputed, RowOperation::Void, Becomes::WhatItWas),
    (RowState::Retracted, RowOperation::Reactivate, Becomes::State(RowState::Registered)),
];

/// What a row becomes by an operation; `None` where it is refused.
pub fn transition(from: RowState, operation: RowOperation) -> Option<Becomes> {
    TRANSITIONS.iter().find(|(f, o, _)| (*f, *o) == (from, operation)).map(|(_, _, to)| *to)
}

/// Whether a row's last word is in: see the states of reconciliation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconciliationState {
    /// Its window is open, or no pass has covered it since.
    Pending,
    /// A pass has covered it, or it is an alias.
    Clean,
    /// While disputed, and for ever after a tombstone by arbitration.
    Disputed,
    /// Its corpus took it back.
    Tombstoned,
}

/// Why a row was retracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the meaning")]
pub enum ReasonCode {
    Misclassified,
    WrongCorpus,
    FalseAlarm,
    Duplicate,
    Other,
}

impl ReasonCode {
    /// All of them.
    pub const ALL: [ReasonCode; 5] = [
        ReasonCode::Misclassified,
        ReasonCode::WrongCorpus,
        ReasonCode::FalseAlarm,
        ReasonCode::Duplicate,
        ReasonCode::Other,
    ];

    /// The number in the log, from 1.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Reads the number in the log.
    pub fn from_number(n: u8) -> Option<ReasonCode> {
        ReasonCode::ALL.get(usize::from(n).checked_sub(1)?).copied()
    }
}

/// A row as the index knows it: its state, and where its claim lies in the log. What else it holds is read from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowView {
    /// The row.
    pub event_id: EventId,
    /// Log offset of the claim's record.
    pub claim_at: u64,
    /// Its state.
    pub state: RowState,
    /// `state`'s lifecycle, or expired.
    pub lifecycle: Lifecycle,
    /// Set on aliases: the row that this one refers to, which may be an alias by now.
    pub canonical_id: Option<EventId>,
    /// The dispute that has it.
    pub dispute: Option<DisputeId>,
    /// Set while tombstoned: when, why, and the log offset of the entry that holds the reason.
    pub tombstone: Option<Tombstone>,
    /// When it last came back.
    pub reactivated_at_us: Option<i64>,
    /// The quarter that it counts in.
    pub effective_quarter: Quarter,
    /// The quarter in which it came back, when that is not its own.
    pub reactivation_quarter: Option<Quarter>,
    /// When its retention is over.
    pub retention_expires_at_us: i64,
    /// Its corpus had used up its slots.
    pub over_budget: bool,
    /// An incident was on when it was claimed.
    pub incident_active: bool,
    /// Whether its last word is in.
    pub reconciliation: ReconciliationState,
    /// How many references name it.
    pub references: u32,
}

/// What is known of a tombstone without reading its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// When.
    pub at_us: i64,
    /// Why, as a code; `None` by arbitration.
    pub reason_code: Option<ReasonCode>,
    /// Log offset of the entry.
    pub entry_at: u64,
}
