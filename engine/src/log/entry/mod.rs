//! What a record's body says: the decided effect of one operation, with who did it, when and why.
//!
//! Every body starts with the same 72 bytes, then the kind's own fixed part, then the strings in the order in which
//! their lengths stand:
//!
//! ```text
//!  0   timestamp us 8 │ idempotency key 16 │ correlation id 16 │ fingerprint 8
//!  48  uid 4 │ gid 4 │ pid 4 │ item 2 │ corpus prefix 2 │ rationale bytes 2 │ reserved 6
//!  72  kind's fixed part │ kind's strings │ rationale
//! ```
//!
//! | kind | entry | fixed part |
//! |---|---|---|
//! | 1 | claim | event-id 16, sequence 8, occurred_at us 8, metadata bytes 4, taxonomy version 4, bytes of event key 2, owning 1, hosting 1, category 1, flags 1 (1: over budget, 2: incident active), reserved 2 |
//! | 2 | reference | event-id 16, canonical id 16 |
//! | 3 | tombstone | event-id 16, reason code 1 |
//! | 4 | reactivate | event-id 16 |
//! | 5 | alarm | kind 1, claims 8, slots 8 |
//! | 6 | forbidden | action 1, refusals before this one that were only counted 8 |
//! | 7 | user | uid 4, name bytes 2 |
//! | 8 | carry | as a claim, its strings too; then claimed at us 8, log offset of the claim 8, bytes of what became of the row 4, these bytes |
//! | 16 | onboard | global sequence 8, onboarded at us 8, prefix 2, shard 2, name bytes 1, reserved 1, notes bytes 2 |
//! | 17 | shard-prefix-allocation | global sequence 8, last prefix minted 2 |
//! | 18 | confirm-clock | global sequence 8 |
//! | 19 | decommission | global sequence 8, prefix 2, at us 8 |
//! | 20 | freeze | global sequence 8, prefix 2 (0: the ledger), frozen 1, at us 8 |
//! | 21 | cap | global sequence 8, prefix 2, claims per minute 4 (0: none) |
//! | 22 | slot-increase | global sequence 8, prefix 2, slots 8, at us 8 |
//! | 23 | sign-off | global sequence 8, proposal 8, role 1, effective from us 8 (0: signatures are missing), at us 8 |
//! | 24 | incident | global sequence 8, active 1 |
//! | 25 | barrier | global sequence 8, at us 8 |
//! | 26 | configuration | global sequence 8, at us 8, TOML bytes 4 |
//! | 27 | dispute | global sequence 8, dispute id 16, rows 1, opened at us 8; each row: event-id 16 |
//! | 28 | dispute step | global sequence 8, dispute id 16, step 1, rows of this shard that it concerns 1 (a bit each), at us 8, verdicts 8 |
//! | 29 | reconcile | global sequence 8, pass 8, phase 1, at us 8, counts 8 x 8, merges 4; each merge: alias 16, canonical 16, position of the alias's state 8, applied on this shard 1 |
//! | 30 | hold | global sequence 8, year 2, quarter of the year 1, held 1, at us 8 |
//! | 32 | recovery | incarnation 8, log offset of the cut 8 |
//! | 33 | repair | log offset of the cut 8, last position given up 8, floors 4, reserved 4; each floor: corpus prefix 2, claim sequence 8 |
//! | 34 | restore | as a repair |
//! | 35 | reshard | ledger before 16, at us 8, its shards 2, sources 2, reserved 4; each source: shard 2, its last position 8, entries taken from it 8 |
//! | 36 | retention-drop | bytes 4; [`Dropped`](crate::retention::Dropped), encoded |
//!
//! Kinds are never renumbered; a new one is added, so that old ledgers stay readable.

mod decode;
mod encode;
mod raw;

#[cfg(test)]
mod tests;

pub use decode::{CLAIMED_ID_BYTES, ClaimFacts, claim_facts, claim_of, claimed_id, floors, merges, sources};
pub use encode::{encode_floors, encode_merges, encode_sources};

use crate::corpus::Prefix;
use crate::dispute::{DisputeId, DisputeStep, Sides, Verdicts};
use crate::id::EventId;
use crate::policy::{Action, Role};
use crate::row::ReasonCode;
use crate::time::Quarter;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Who a connection is, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Principal {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id.
    pub pid: u32,
}

/// What every entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta<'a> {
    /// When the shard decided it, microseconds since the epoch; never decreases within a shard.
    pub timestamp_us: i64,
    /// The request's key as a number; 0 for what the daemon does by itself.
    pub idempotency_key: u128,
    /// Ties the entries of one incident together; 0: none.
    pub correlation_id: u128,
    /// Of the request, to tell a retry from another request with the same key.
    pub fingerprint: u64,
    /// Who asked.
    pub principal: Principal,
    /// Index in the request's batch; 0 for single requests.
    pub item: u16,
    /// The corpus that did it; `None` for what belongs to no corpus.
    pub corpus: Option<Prefix>,
    /// Why.
    pub rationale: &'a str,
}

impl Meta<'_> {
    /// Of what the daemon does by itself.
    pub fn of_daemon() -> Meta<'static> {
        Meta {
            timestamp_us: 0,
            idempotency_key: 0,
            correlation_id: 0,
            fingerprint: 0,
            principal: Principal::default(),
            item: 0,
            corpus: None,
            rationale: "",
        }
    }
}

/// A claim's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimEntry<'a> {
    /// The id handed out.
    pub event_id: EventId,
    /// Its slot in its corpus's quarter.
    pub claim_sequence: u64,
    /// When the event happened, microseconds since the epoch.
    pub occurred_at_us: i64,
    /// Version of the taxonomy of `category`.
    pub taxonomy_version: u32,
    /// Says which event it is.
    pub event_key: &'a str,
    /// Empty: the claiming corpus.
    pub owning_corpus: &'a str,
    /// Empty: the claiming corpus.
    pub hosting_corpus: &'a str,
    /// Of the taxonomy.
    pub category: &'a str,
    /// The corpus had used up its slots.
    pub over_budget: bool,
    /// An incident was on.
    pub incident_active: bool,
    /// Opaque.
    pub metadata: &'a [u8],
}

/// What an alarm says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// Half of the quarter's slots are used.
    Half,
    /// Eighty percent of them are.
    Eighty,
    /// The present rate is unusual, and leads above half of them.
    Early,
}

impl AlarmKind {
    /// All of them.
    pub const ALL: [AlarmKind; 3] = [AlarmKind::Half, AlarmKind::Eighty, AlarmKind::Early];

    /// The number in the log, from 1.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Reads the number in the log.
    pub fn from_number(n: u8) -> Option<AlarmKind> {
        AlarmKind::ALL.get(usize::from(n).checked_sub(1)?).copied()
    }

    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            AlarmKind::Half => "50 %",
            AlarmKind::Eighty => "80 %",
            AlarmKind::Early => "early",
        }
    }
}

/// Where a pass of reconciliation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassPhase {
    /// It begins: what is pending now, it covers.
    Begin,
    /// Some merges.
    Merge,
    /// It has covered every shard.
    Done,
}

/// What a pass of reconciliation counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PassCounts {
    /// Rows looked at.
    pub rows: u64,
    /// Event keys with canonical rows of two corpora.
    pub groups: u64,
    /// Rows that became aliases.
    pub merged: u64,
    /// Event keys left alone because of a dispute or a frozen corpus.
    pub left_alone: u64,
    /// Merges that a shard refused, because the row had changed.
    pub refused: u64,
    /// Event keys that one corpus has claimed more than once.
    pub suspects: u64,
    /// Rows whose references or canonical id lead to a row that is not registered.
    pub orphans: u64,
    /// Aliases among the rows of the same event keys.
    pub aliases: u64,
}

impl PassCounts {
    fn numbers(&self) -> [u64; 8] {
        let c = self;
        [c.rows, c.groups, c.merged, c.left_alone, c.refused, c.suspects, c.orphans, c.aliases]
    }

    fn of_numbers(n: [u64; 8]) -> PassCounts {
        let [rows, groups, merged, left_alone, refused, suspects, orphans, aliases] = n;
        PassCounts { rows, groups, merged, left_alone, refused, suspects, orphans, aliases }
    }
}

/// One merge of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// The row that becomes an alias.
    pub alias: EventId,
    /// The row that stands for the event.
    pub canonical: EventId,
    /// Position of the entry that made the alias what it was when the merge was planned: if it has changed, nothing happens.
    pub position: u64,
    /// Whether this shard applied it.
    pub applied: bool,
}

/// A shard of another ledger that entries of a shard were taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReshardSource {
    /// Which.
    pub shard: u16,
    /// Its last position then.
    pub last_position: u64,
    /// Entries that were taken from it, but for those that every shard keeps.
    pub entries: u64,
}

/// Most merges of one entry: what every shard logs beside its own load stays small.
pub const MERGES_MAX: usize = 256;
const MERGE_BYTES: usize = 16 + 16 + 8 + 1;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A new canonical row.
    Claim(ClaimEntry<'a>),
    /// The corpus refers to a row of another one.
    Reference {
        /// The id named in the request.
        event_id: EventId,
        /// What it stands for, aliases followed.
        canonical_id: EventId,
    },
    /// registered → tombstoned.
    Tombstone {
        /// The row.
        event_id: EventId,
        /// Why, as a code.
        reason_code: ReasonCode,
    },
    /// tombstoned → registered.
    Reactivate {
        /// The row.
        event_id: EventId,
    },
    /// A corpus's use of its slots is worth looking at.
    Alarm {
        /// What it says.
        kind: AlarmKind,
        /// Claims of the quarter so far.
        claims: u64,
        /// The quarter's slots.
        slots: u64,
    },
    /// Somebody asked for what his roles don't allow.
    Forbidden {
        /// What he asked for.
        action: Action,
        /// Refusals to the same uid before this one that were only counted.
        counted: u64,
    },
    /// The name of a uid, from here on.
    User {
        /// The uid.
        uid: u32,
        /// The name that the system gives it.
        name: &'a str,
    },
    /// A corpus claims and refers no more.
    Decommission {
        /// Its place in the global order.
        global_sequence: u64,
        /// The corpus.
        prefix: Prefix,
        /// When shard 0 decided it: the same on every shard.
        at_us: i64,
    },
    /// An audited stop of mutations, or its end.
    Freeze {
        /// Its place in the global order.
        global_sequence: u64,
        /// The corpus; `None`: the whole ledger.
        prefix: Option<Prefix>,
        /// Whether it is stopped from here on.
        frozen: bool,
        /// When shard 0 decided it: the same on every shard.
        at_us: i64,
    },
    /// How many claims a corpus may make in a minute.
    Cap {
        /// Its place in the global order.
        global_sequence: u64,
        /// The corpus.
        prefix: Prefix,
        /// 0: as many as it likes.
        claims_per_minute: u32,
    },
    /// More slots are proposed; its place in the global order names the proposal.
    SlotIncrease {
        /// Its place in the global order.
        global_sequence: u64,
        /// The corpus.
        prefix: Prefix,
        /// Slots of a quarter.
        slots: u64,
        /// When shard 0 decided it: the same on every shard.
        at_us: i64,
    },
    /// A signature on a proposal.
    SignOff {
        /// Its place in the global order.
        global_sequence: u64,
        /// The proposal.
        proposal: u64,
        /// The role in which it is given.
        role: Role,
        /// With the last signature: the quarter boundary from which on it counts; else 0.
        effective_from_us: i64,
        /// When shard 0 decided it: the same on every shard.
        at_us: i64,
    },
    /// An incident begins or ends.
    Incident {
        /// Its place in the global order.
        global_sequence: u64,
        /// Whether one is on from here on.
        active: bool,
    },
    /// Rows claimed around this moment are looked at once more.
    Barrier {
        /// Its place in the global order.
        global_sequence: u64,
        /// The moment: the same on every shard.
        at_us: i64,
    },
    /// Roles, budgets and tolerances from here on.
    Configuration {
        /// Its place in the global order.
        global_sequence: u64,
        /// When shard 0 decided it: the same on every shard.
        at_us: i64,
        /// All of them.
        toml: &'a str,
    },
    /// A dispute is open. The rationale is the entry's.
    Dispute {
        /// Its place in the global order.
        global_sequence: u64,
        /// Its id.
        dispute: DisputeId,
        /// When shard 0 decided it: the same on every shard.
        opened_at_us: i64,
        /// Its rows.
        sides: Sides,
    },
    /// A dispute moves.
    DisputeStep {
        /// Its place in the global order.
        global_sequence: u64,
        /// Which.
        dispute: DisputeId,
        /// How.
        step: DisputeStep,
        /// When shard 0 decided it: the same on every shard.
        at_us: i64,
        /// The rows of this shard that it changes, a bit each, from the lowest: decided by this shard.
        rows: u8,
        /// With a verdict: one a row.
        verdicts: Verdicts,
    },
    /// A pass of reconciliation goes on.
    Reconcile {
        /// Its place in the global order.
        global_sequence: u64,
        /// Which pass.
        pass: u64,
        /// How far it is.
        phase: PassPhase,
        /// The moment that the pass goes by: the greatest time of all shards when it began.
        at_us: i64,
        /// With the end of the pass: what it counted.
        counts: PassCounts,
        /// See [`encode_merges`].
        merges: &'a [u8],
    },
    /// A row that outlives its quarter, logged again before that is dropped: everything that is known of it. The rationale is
    /// that of its tombstone, whose own entry goes before the row.
    Carry {
        /// As it was claimed.
        claim: ClaimEntry<'a>,
        /// When it was claimed.
        claimed_at_us: i64,
        /// Log offset of the claim's own record.
        claim_at: u64,
        /// What became of it since, encoded.
        change: &'a [u8],
    },
    /// A quarter is kept, whatever its age, or not any more.
    Hold {
        /// Its place in the global order.
        global_sequence: u64,
        /// Which.
        quarter: Quarter,
        /// False ends the hold.
        held: bool,
        /// When shard 0 decided it: the same on every shard.
        at_us: i64,
    },
    /// What was claimed up to the end of a quarter is gone from here on: its segments are dropped.
    RetentionDrop {
        /// [`Dropped`](crate::retention::Dropped), encoded.
        dropped: &'a [u8],
    },
    /// A corpus enters the registry.
    Onboard {
        /// Its place in the global order.
        global_sequence: u64,
        /// The prefix that it got.
        prefix: Prefix,
        /// The shard that it lives on.
        shard: u16,
        /// Its name.
        name: &'a str,
        /// For people.
        notes: &'a str,
        /// When shard 0 decided it: the same on every shard.
        onboarded_at_us: i64,
    },
    /// More prefixes are minted.
    PrefixAllocation {
        /// Its place in the global order.
        global_sequence: u64,
        /// The last prefix minted.
        minted_to: u16,
    },
    /// An operator accepted the clock as it stands.
    ConfirmClock {
        /// Its place in the global order.
        global_sequence: u64,
    },
    /// A new incarnation starts here.
    Recovery {
        /// Its number.
        incarnation: u64,
        /// The log offset at which the log before it ends.
        cut_at: u64,
    },
    /// `claimd repair` gave up what stood behind here. Its timestamp is above every one that was given up.
    Repair {
        /// The log offset from which on batches were given up.
        cut_at: u64,
        /// The last position given up; positions from here on are used again.
        given_up_to: u64,
        /// What corpora may not be given again; see [`encode_floors`].
        floors: &'a [u8],
    },
    /// `claimd restore` made the log up to here from a backup. Its timestamp is above every one that the backup knows of, and
    /// above the moment of the restore.
    Restore {
        /// The log offset at which what was restored ends.
        cut_at: u64,
        /// The last position that the backup has and that was not restored, or the last restored; positions from here on are
        /// used again.
        given_up_to: u64,
        /// What corpora may not be given again; see [`encode_floors`].
        floors: &'a [u8],
    },
    /// `claimd reshard` made the log up to here from the logs of a ledger with another number of shards.
    Reshard {
        /// That ledger.
        ledger: Uuid,
        /// Its number of shards.
        shards: u16,
        /// When it was done, by the wall clock: the entry's timestamp is the ledger's last one.
        at_us: i64,
        /// See [`encode_sources`].
        sources: &'a [u8],
    },
}

/// A whole record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// What every entry says.
    pub meta: Meta<'a>,
    /// What happened.
    pub entry: Entry<'a>,
}

/// Why a body is not an entry of this format. Its checksum and hash are right, so it was written by another build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A kind that this build does not know.
    #[error("record kind {0} is not known to this build")]
    Kind(u16),
    /// A field that can't be.
    #[error("the record's field '{0}' holds what no build writes")]
    Field(&'static str),
}

impl Entry<'_> {
    /// The number under which the entry stands in the log.
    pub fn kind(&self) -> u16 {
        match self {
            Entry::Claim(_) => 1,
            Entry::Reference { .. } => 2,
            Entry::Tombstone { .. } => 3,
            Entry::Reactivate { .. } => 4,
            Entry::Alarm { .. } => 5,
            Entry::Forbidden { .. } => 6,
            Entry::User { .. } => 7,
            Entry::Carry { .. } => 8,
            Entry::Onboard { .. } => 16,
            Entry::PrefixAllocation { .. } => 17,
            Entry::ConfirmClock { .. } => 18,
            Entry::Decommission { .. } => 19,
            Entry::Freeze { .. } => 20,
            Entry::Cap { .. } => 21,
            Entry::SlotIncrease { .. } => 22,
            Entry::SignOff { .. } => 23,
            Entry::Incident { .. } => 24,
            Entry::Barrier { .. } => 25,
            Entry::Configuration { .. } => 26,
            Entry::Dispute { .. } => 27,
            Entry::DisputeStep { .. } => 28,
            Entry::Reconcile { .. } => 29,
            Entry::Hold { .. } => 30,
            Entry::Recovery { .. } => 32,
            Entry::Repair { .. } => 33,
            Entry::Restore { .. } => 34,
            Entry::Reshard { .. } => 35,
            Entry::RetentionDrop { .. } => 36,
        }
    }

    /// The low byte of the fingerprint of the request that made it. Prefixes are minted for an onboarding.
    pub fn keyed_as(&self) -> u8 {
        match self {
            Entry::PrefixAllocation { .. } => 16,
            other => other.kind() as u8,
        }
    }

    /// The audit's name of the operation.
    pub fn operation(&self) -> &'static str {
        match self {
            Entry::Claim(_) => "claim",
            Entry::Reference { .. } => "reference",
            Entry::Tombstone { .. } => "tombstone",
            Entry::Reactivate { .. } => "reactivate",
            Entry::Alarm { .. } => "alarm",
            Entry::Forbidden { .. } => "forbidden",
            Entry::User { .. } => "user",
            Entry::Carry { .. } => "carry",
            Entry::Hold { held: true, .. } => "hold",
            Entry::Hold { held: false, .. } => "release",
            Entry::RetentionDrop { .. } => "retention-drop",
            Entry::Decommission { .. } => "decommission",
            Entry::Freeze { frozen: true, .. } => "freeze",
            Entry::Freeze { frozen: false, .. } => "unfreeze",
            Entry::Cap { .. } => "cap",
            Entry::SlotIncrease { .. } => "slot-increase",
            Entry::SignOff { .. } => "sign-off",
            Entry::Incident { .. } => "incident",
            Entry::Barrier { .. } => "barrier",
            Entry::Configuration { .. } => "configuration",
            Entry::Dispute { .. } => "dispute",
            Entry::DisputeStep { step, .. } => step.operation(),
            Entry::Reconcile { .. } => "reconcile",
            Entry::Onboard { .. } => "onboard",
            Entry::PrefixAllocation { .. } => "shard-prefix-allocation",
            Entry::ConfirmClock { .. } => "confirm-clock",
            Entry::Recovery { .. } => "recovery",
            Entry::Repair { .. } => "repair",
            Entry::Restore { .. } => "restore",
            Entry::Reshard { .. } => "reshard",
        }
    }

    /// The place in the global order of an entry that every shard keeps.
    pub fn global_sequence(&self) -> Option<u64> {
        match *self {
            Entry::Onboard { global_sequence, .. }
            | Entry::PrefixAllocation { global_sequence, .. }
            | Entry::ConfirmClock { global_sequence }
            | Entry::Decommission { global_sequence, .. }
            | Entry::Freeze { global_sequence, .. }
            | Entry::Cap { global_sequence, .. }
            | Entry::SlotIncrease { global_sequence, .. }
            | Entry::SignOff { global_sequence, .. }
            | Entry::Incident { global_sequence, .. }
            | Entry::Barrier { global_sequence, .. }
            | Entry::Configuration { global_sequence, .. }
            | Entry::Dispute { global_sequence, .. }
            | Entry::DisputeStep { global_sequence, .. }
            | Entry::Hold { global_sequence, .. }
            | Entry::Reconcile { global_sequence, .. } => Some(global_sequence),
            _ => None,
        }
    }
}
