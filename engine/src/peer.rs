//! What shards say to each other. Everything that a message says is durable at its sender.

use crate::command::Fact;
use crate::corpus::Prefix;
use crate::dispute::DisputeId;
use crate::id::EventId;
use crate::row::RowState;
use crate::shard::GlobalEntry;
use crate::time::Quarter;

/// A message from one shard to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerMessage {
    /// From shard 0: an entry that every shard keeps.
    Global(GlobalEntry),
    /// To shard 0: how far the sender is in the global order.
    GlobalsApplied {
        /// The sender.
        shard: u16,
        /// The last one it has, durably.
        sequence: u64,
        /// Disputes in quarantine of which it could not flag every row of its own.
        refused: Vec<DisputeId>,
        /// The last quarter that it has dropped.
        dropped_to: Option<Quarter>,
    },
    /// To shard 0: the sender would drop what it has up to a quarter. It says so again until it may.
    WouldDrop {
        /// The sender.
        shard: u16,
        /// The last quarter that would go.
        quarter: Quarter,
    },
    /// From shard 0: no hold stands against that, and none is taken any more.
    MayDrop {
        /// As it was asked.
        quarter: Quarter,
    },
    /// To shard 0: the sender has stopped, and follows no more.
    Failed {
        /// The sender.
        shard: u16,
    },
    /// To shard 0: whether the sender has more to do than it takes.
    Overloaded {
        /// The sender.
        shard: u16,
        /// Whether it is so.
        is_overloaded: bool,
    },
    /// To shard 0: whether requests have filled the sender's ring.
    Full {
        /// The sender.
        shard: u16,
        /// Whether it is so.
        is_full: bool,
    },
    /// A question; it is answered once.
    Ask {
        /// The sender.
        from: u16,
        /// Names the question at the sender.
        question: u64,
        /// It.
        ask: Ask,
    },
    /// The answer to a question.
    Answer {
        /// The sender.
        from: u16,
        /// As in the question.
        question: u64,
        /// It.
        answer: Answer,
    },
    /// A reservation that is needed no more.
    Release {
        /// The sender.
        from: u16,
        /// The question that it was the answer to.
        question: u64,
        /// Of what.
        key_hash: u64,
    },
    /// A claim has become durable at the sender: for telemetry.
    Visible {
        /// The corpus that claimed.
        corpus: Prefix,
        /// When.
        claim_timestamp_us: i64,
    },
}

/// What a conditional claim looks for: a registered row of the same event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sought {
    /// The event key's hash.
    pub key_hash: u64,
    /// Claimed at this moment, or after it.
    pub since_us: i64,
    /// Occurred at this moment, or after it.
    pub occurred_from_us: i64,
    /// Occurred at this moment, or before it.
    pub occurred_to_us: i64,
}

/// A question from one shard to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// What these rows are.
    Rows(Vec<EventId>),
    /// The registered row that a conditional claim looks for.
    Key(Sought),
    /// To be the only one that claims an event key under the condition that nobody has. Answered when it is so.
    Reserve {
        /// The key's hash.
        key_hash: u64,
    },
    /// The shard's time.
    Time,
    /// The event keys with something new, in a range of their hashes.
    Due {
        /// The moment that the pass goes by.
        at_us: i64,
        /// The first hash.
        from: u64,
        /// The last hash, at most.
        to: u64,
        /// All keys, not only those with something new.
        is_full: bool,
    },
    /// How many rows these event keys have.
    Counts {
        /// Hashes of the keys, sorted.
        hashes: Vec<u64>,
    },
    /// The rows of these event keys.
    Keys {
        /// The moment that the pass goes by.
        at_us: i64,
        /// Hashes of the keys, sorted.
        hashes: Vec<u64>,
    },
    /// A page of the rows that refer to others, or are referred to.
    Linked {
        /// Where the page before ended.
        after: Option<EventId>,
    },
}

impl Ask {
    /// Nobody waits for the answer but a pass of reconciliation.
    pub fn is_of_pass(&self) -> bool {
        matches!(self, Ask::Due { .. } | Ask::Counts { .. } | Ask::Keys { .. } | Ask::Linked { .. })
    }
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What rows are, in the order asked; or rows with an event key.
    Facts(Vec<Fact>),
    /// It is reserved.
    Reserved,
    /// Too many wait for the same.
    Busy,
    /// The shard's time.
    Time(i64),
    /// Event keys to look at.
    Due {
        /// Their hashes, sorted, each with the rows that were looked at for it.
        keys: Vec<(u64, u32)>,
        /// The last hash that was looked at.
        through: u64,
    },
    /// How many rows event keys have, in the order asked.
    Counts(Vec<u32>),
    /// Rows of event keys.
    Candidates(Vec<Candidate>),
    /// Rows that refer or are referred to.
    Linked {
        /// The rows.
        rows: Vec<Link>,
        /// Where the page ended; `None`: there are no more.
        after: Option<EventId>,
    },
    /// The shard has stopped.
    Failed,
}

/// A row as a pass of reconciliation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The row.
    pub event_id: EventId,
    /// Of its event key.
    pub key_hash: u64,
    /// When it was claimed.
    pub claim_timestamp_us: i64,
    /// Its slot.
    pub claim_sequence: u64,
    /// When the event happened.
    pub occurred_at_us: i64,
    /// What it is: registered, disputed, or an alias.
    pub state: RowState,
    /// Its window has closed, and it has not expired.
    pub is_closed: bool,
    /// Its corpus is stopped.
    pub is_frozen: bool,
    /// Position of the entry that made it what it is.
    pub position: u64,
}

/// A row that refers to another or is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The row.
    pub event_id: EventId,
    /// What it is.
    pub fact: Fact,
    /// How many references name it.
    pub references: u32,
}
