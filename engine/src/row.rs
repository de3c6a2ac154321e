//! Rows: the states that they can be in, and what is kept of each in memory.

use crate::id::EventId;

/// The state of a row that its entries add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// It stands for its event.
    Registered,
    /// It was taken back.
    Tombstoned,
}

impl Lifecycle {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Lifecycle::Registered => "registered",
            Lifecycle::Tombstoned => "tombstoned",
        }
    }
}

/// Why a row was retracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the meaning")]
pub enum ReasonCode {
    Misclassified,
    WrongCorpus,
    FalseAlarm,
    Duplicate,
    Other,
}

impl ReasonCode {
    const ALL: [ReasonCode; 5] = [
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
    pub lifecycle: Lifecycle,
    /// Set while tombstoned: when, why, and the log offset of the entry that holds the reason.
    pub tombstone: Option<Tombstone>,
    /// When it last came back.
    pub reactivated_at_us: Option<i64>,
}

/// What is known of a tombstone without reading its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// When.
    pub at_us: i64,
    /// Why, as a code.
    pub reason_code: ReasonCode,
    /// Log offset of the entry.
    pub entry_at: u64,
}
