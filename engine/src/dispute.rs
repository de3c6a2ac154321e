//! Disputes: two to eight rows of at least two corpora that are said to be the same event, or wrongly said to be. Shard 0
//! decides every step, and every shard follows; each flags and settles its own rows.

use crate::corpus::Prefix;
use crate::id::EventId;
use crate::policy::Role;
use crate::row::RowOperation;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Fewest rows of a dispute.
pub const SIDES_MIN: usize = 2;
/// Most rows of a dispute.
pub const SIDES_MAX: usize = 8;
/// Most disputes that one corpus has opened and that are not at their end.
pub const OPEN_DISPUTES_MAX: usize = 16;
/// Longest rationale of what is said in a dispute, in bytes.
pub const DISPUTE_RATIONALE_BYTES_MAX: usize = 4_096;

/// A dispute's id, a UUIDv7 that shard 0 makes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DisputeId(u128);

impl DisputeId {
    /// From its number; 0 is none.
    pub fn from_u128(n: u128) -> Option<DisputeId> {
        (n != 0).then_some(DisputeId(n))
    }

    /// Made of a time and random bits.
    pub fn pack(ms: u64, random: [u64; 2]) -> DisputeId {
        DisputeId(
            u128::from(ms & ((1 << 48) - 1)) << 80
                | 0x7 << 76
                | u128::from(random[0] & 0xfff) << 64
                | 0b10 << 62
                | u128::from(random[1] >> 2),
        )
    }

    /// As a number.
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// For printing and for the wire.
    pub fn as_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }
}

impl fmt::Display for DisputeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_uuid().fmt(f)
    }
}

impl fmt::Debug for DisputeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a dispute is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DisputeState {
    /// It is open; its rows are not flagged yet.
    Detect,
    /// Every shard flags its rows.
    Quarantine,
    /// It waits for the arbitrator's verdict.
    Arbitrate,
    /// It waits for leadership's verdict.
    Escalate,
    /// Every shard applies the verdict.
    Canonicalise,
    /// It is at its end.
    Closed,
    /// It came to nothing: a row was no longer disputable.
    Void,
}

impl DisputeState {
    /// All of them.
    pub const ALL: [DisputeState; 7] = [
        DisputeState::Detect,
        DisputeState::Quarantine,
        DisputeState::Arbitrate,
        DisputeState::Escalate,
        DisputeState::Canonicalise,
        DisputeState::Closed,
        DisputeState::Void,
    ];

    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            DisputeState::Detect => "detect",
            DisputeState::Quarantine => "quarantine",
            DisputeState::Arbitrate => "arbitrate",
            DisputeState::Escalate => "escalate",
            DisputeState::Canonicalise => "canonicalise",
            DisputeState::Closed => "closed",
            DisputeState::Void => "void",
        }
    }

    /// Whether something is still to come.
    pub fn is_open(self) -> bool {
        !matches!(self, DisputeState::Closed | DisputeState::Void)
    }
}

/// What moves a dispute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DisputeStep {
    /// The daemon: its rows are to be flagged.
    Quarantine,
    /// The daemon: every row is flagged.
    Flagged,
    /// The daemon: a row is no longer disputable.
    Void,
    /// A side says something.
    Respond,
    /// The arbitrator hands it up.
    Escalate,
    /// A verdict.
    Arbitrate,
    /// The daemon: every shard has applied the verdict.
    Close,
}

impl DisputeStep {
    /// All of them.
    pub const ALL: [DisputeStep; 7] = [
        DisputeStep::Quarantine,
        DisputeStep::Flagged,
        DisputeStep::Void,
        DisputeStep::Respond,
        DisputeStep::Escalate,
        DisputeStep::Arbitrate,
        DisputeStep::Close,
    ];

    /// The number in the log, from 1.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Reads the number in the log.
    pub fn from_number(n: u8) -> Option<DisputeStep> {
        DisputeStep::ALL.get(usize::from(n).checked_sub(1)?).copied()
    }

    /// As documents name it.
    pub fn name(self) -> &'static str {
        match self {
            DisputeStep::Quarantine => "(the daemon: at once, or at the deferred rate)",
            DisputeStep::Flagged => "(the daemon: every row is flagged)",
            DisputeStep::Void => "(the daemon: a row is no longer disputable)",
            DisputeStep::Respond => "respond",
            DisputeStep::Escalate => "escalate",
            DisputeStep::Arbitrate => "arbitrate",
            DisputeStep::Close => "(the daemon: every shard has applied it)",
        }
    }

    /// The participle that a refusal is worded with.
    pub fn participle(self) -> &'static str {
        match self {
            DisputeStep::Respond => "responded to",
            DisputeStep::Escalate => "escalated",
            DisputeStep::Arbitrate => "arbitrated",
            _ => "moved",
        }
    }

    /// The audit's name of the operation.
    pub fn operation(self) -> &'static str {
        match self {
            DisputeStep::Quarantine | DisputeStep::Flagged => "quarantine",
            DisputeStep::Void => "void",
            DisputeStep::Respond => "respond",
            DisputeStep::Escalate => "escalate",
            DisputeStep::Arbitrate => "arbitrate",
            DisputeStep::Close => "canonicalise",
        }
    }
}

/// Which step leads from where to where, and which roles take it; none: the daemon itself. Everything that is not here is
/// refused with `BAD_TRANSITION`.
pub const DISPUTE_TRANSITIONS: &[(DisputeState, DisputeStep, DisputeState, &[Role])] = &[
    (DisputeState::Detect, DisputeStep::Quarantine, DisputeState::Quarantine, &[]),
    (DisputeState::Quarantine, DisputeStep::Flagged, DisputeState::Arbitrate, &[]),
    (DisputeState::Detect, DisputeStep::Void, DisputeState::Void, &[]),
    (DisputeState::Quarantine, DisputeStep::Void, DisputeState::Void, &[]),
    (DisputeState::Detect, DisputeStep::Respond, DisputeState::Detect, &[Role::Client, Role::Facilitator]),
    (DisputeState::Quarantine, DisputeStep::Respond, DisputeState::Quarantine, &[Role::Client, Role::Facilitator]),
    (DisputeState::Arbitrate, DisputeStep::Respond, DisputeState::Arbitrate, &[Role::Client, Role::Facilitator]),
    (DisputeState::Escalate, DisputeStep::Respond, DisputeState::Escalate, &[Role::Client, Role::Facilitator]),
    (DisputeState::Arbitrate, DisputeStep::Escalate, DisputeState::Escalate, &[Role::Arbitrator]),
    (DisputeState::Arbitrate, DisputeStep::Arbitrate, DisputeState::Canonicalise, &[Role::Arbitrator]),
    (DisputeState::Escalate, DisputeStep::Arbitrate, DisputeState::Canonicalise, &[Role::Leadership]),
    (DisputeState::Canonicalise, DisputeStep::Close, DisputeState::Closed, &[]),
];

/// Where a step leads; `None` where it is refused.
pub fn dispute_transition(from: DisputeState, step: DisputeStep) -> Option<DisputeState> {
    DISPUTE_TRANSITIONS.iter().find(|(f, s, _, _)| (*f, *s) == (from, step)).map(|(_, _, to, _)| *to)
}

/// What is decided about one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It stands for the event.
    Canonical,
    /// The canonical row stands for it.
    References,
    /// It goes for ever.
    Tombstone,
    /// There is nothing to disagree about; so for all rows of the dispute.
    Dismissed,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Verdict; 4] = [Verdict::Canonical, Verdict::References, Verdict::Tombstone, Verdict::Dismissed];

    /// The number in the log, from 1; 0: none yet.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Reads the number in the log.
    pub fn from_number(n: u8) -> Option<Verdict> {
        Verdict::ALL.get(usize::from(n).checked_sub(1)?).copied()
    }

    /// What it does to the row.
    pub fn row_operation(self) -> RowOperation {
        match self {
            Verdict::Canonical => RowOperation::ArbitrateCanonical,
            Verdict::References => RowOperation::ArbitrateReferences,
            Verdict::Tombstone => RowOperation::ArbitrateTombstone,
            Verdict::Dismissed => RowOperation::Dismiss,
        }
    }
}

/// The rows of a dispute, in the order in which they were named.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<EventId>", try_from = "Vec<EventId>")]
pub struct Sides {
    count: u8,
    ids: [EventId; SIDES_MAX],
}

impl Sides {
    /// `None` unless there are 2 to 8, all different, of at least two corpora.
    pub fn new(ids: &[EventId]) -> Option<Sides> {
        let first = *ids.first()?;
        let differ = ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id));
        let corpora_differ = ids.iter().any(|id| id.prefix() != first.prefix());
        if !(SIDES_MIN..=SIDES_MAX).contains(&ids.len()) || !differ || !corpora_differ {
            return None;
        }
        let mut sides = Sides { count: ids.len() as u8, ids: [first; SIDES_MAX] };
        sides.ids[..ids.len()].copy_from_slice(ids);
        Some(sides)
    }

    /// The rows.
    pub fn ids(&self) -> &[EventId] {
        &self.ids[..usize::from(self.count)]
    }

    /// Whether a corpus has a row here.
    pub fn concern(&self, prefix: Prefix) -> bool {
        self.ids().iter().any(|id| id.prefix() == prefix)
    }

    /// The same for every order.
    pub fn as_set(&self) -> Vec<EventId> {
        let mut set = self.ids().to_vec();
        set.sort_unstable();
        set
    }
}

impl From<Sides> for Vec<EventId> {
    fn from(sides: Sides) -> Vec<EventId> {
        sides.ids().to_vec()
    }
}

impl TryFrom<Vec<EventId>> for Sides {
    type Error = &'static str;

    fn try_from(ids: Vec<EventId>) -> Result<Sides, &'static str> {
        Sides::new(&ids).ok_or("not the rows of a dispute")
    }
}

impl fmt::Debug for Sides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ids().fmt(f)
    }
}

/// One verdict a side; `None` where none was given yet.
pub type Verdicts = [Option<Verdict>; SIDES_MAX];

/// What a step made of a dispute. No two steps of a dispute make the same of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Where it was then.
    pub state: DisputeState,
    /// How often sides had said something.
    pub responses: u32,
    /// When.
    pub at_us: i64,
    /// Its place in the global order.
    pub global_sequence: u64,
}

/// A dispute as its entries add up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// Its id.
    pub id: DisputeId,
    /// Where it is.
    pub state: DisputeState,
    /// Its rows.
    pub sides: Sides,
    /// The corpus that opened it.
    pub opened_by: Prefix,
    /// When shard 0 logged it.
    pub opened_at_us: i64,
    /// When it last moved.
    pub updated_at_us: i64,
    /// Why it was opened.
    pub rationale: String,
    /// One a side, once there is a verdict.
    pub verdicts: Verdicts,
    /// How often sides have said something.
    pub responses: u32,
    /// Place of its last step in the global order.
    pub global_sequence: u64,
    /// Its steps after the opening, in their order.
    pub steps: Vec<Moved>,
}

impl Dispute {
    /// The row that stands for the event, by the verdict.
    pub fn canonical(&self) -> Option<EventId> {
        let index = self.verdicts.iter().position(|v| *v == Some(Verdict::Canonical))?;
        self.sides.ids().get(index).copied()
    }

    /// Whether the verdict was that there is nothing to disagree about.
    pub fn is_dismissed(&self) -> bool {
        self.verdicts[0] == Some(Verdict::Dismissed)
    }
}
