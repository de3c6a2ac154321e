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
//! | 32 | recovery | incarnation 8, log offset of the cut 8 |
//! | 33 | repair | log offset of the cut 8, last position given up 8, floors 4, reserved 4; each floor: corpus prefix 2, claim sequence 8 |
//!
//! Kinds are never renumbered; a new one is added, so that old ledgers stay readable.

use crate::corpus::Prefix;
use crate::dispute::{DisputeId, DisputeStep, SIDES_MAX, Sides, Verdict, Verdicts};
use crate::id::EventId;
use crate::policy::{Action, Role};
use crate::row::ReasonCode;
use crate::time::TIME_US_MAX;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

/// Most merges of one entry: what every shard logs beside its own load stays small.
pub const MERGES_MAX: usize = 256;
const MERGE_BYTES: usize = 16 + 16 + 8 + 1;

/// Merges as an entry holds them.
pub fn encode_merges(merges: &[Merge]) -> Vec<u8> {
    let mut out = Vec::with_capacity(merges.len() * MERGE_BYTES);
    for merge in merges {
        out.extend_from_slice(&merge.alias.as_u128().to_be_bytes());
        out.extend_from_slice(&merge.canonical.as_u128().to_be_bytes());
        out.extend_from_slice(&merge.position.to_le_bytes());
        out.push(u8::from(merge.applied));
    }
    out
}

/// Reads what [`encode_merges`] wrote; what is no merge is left out.
pub fn merges(bytes: &[u8]) -> impl Iterator<Item = Merge> + '_ {
    bytes.chunks_exact(MERGE_BYTES).filter_map(|bytes| {
        let mut fields = Fields { rest: bytes };
        Some(Merge {
            alias: event_id(fields.fixed("alias").ok()?).ok()?,
            canonical: event_id(fields.fixed("canonical").ok()?).ok()?,
            position: fields.u64("position").ok()?,
            applied: fields.u8("applied").ok()? != 0,
        })
    })
}

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
}

/// Corpora whose slots go on above a claim sequence, in the quarter of the repair.
pub fn encode_floors(floors: &[(Prefix, u64)]) -> Vec<u8> {
    let raw = floors
        .iter()
        .map(|(prefix, sequence)| RawFloor { prefix: prefix.get().into(), claim_sequence: (*sequence).into() });
    raw.flat_map(|raw| raw.as_bytes().to_vec()).collect()
}

/// Reads what [`encode_floors`] wrote.
pub fn floors(bytes: &[u8]) -> impl Iterator<Item = (Prefix, u64)> + '_ {
    bytes.chunks_exact(size_of::<RawFloor>()).filter_map(|bytes| {
        let raw = RawFloor::read_from_bytes(bytes).ok()?;
        Some((Prefix::new(raw.prefix.get())?, raw.claim_sequence.get()))
    })
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

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMeta {
    timestamp_us: I64,
    idempotency_key: [u8; 16],
    correlation_id: [u8; 16],
    fingerprint: U64,
    uid: U32,
    gid: U32,
    pid: U32,
    item: U16,
    corpus: U16,
    rationale_bytes: U16,
    reserved: [u8; 6],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawClaim {
    event_id: [u8; 16],
    claim_sequence: U64,
    occurred_at_us: I64,
    metadata_bytes: U32,
    taxonomy_version: U32,
    event_key_bytes: U16,
    owning_bytes: u8,
    hosting_bytes: u8,
    category_bytes: u8,
    flags: u8,
    reserved: [u8; 2],
}

const FLAG_OVER_BUDGET: u8 = 1;
const FLAG_INCIDENT_ACTIVE: u8 = 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawReference {
    event_id: [u8; 16],
    canonical_id: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTombstone {
    event_id: [u8; 16],
    reason_code: u8,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOnboard {
    global_sequence: U64,
    onboarded_at_us: I64,
    prefix: U16,
    shard: U16,
    name_bytes: u8,
    reserved: u8,
    notes_bytes: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPrefixAllocation {
    global_sequence: U64,
    minted_to: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecovery {
    incarnation: U64,
    cut_at: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRepair {
    cut_at: U64,
    given_up_to: U64,
    floors: U32,
    reserved: [u8; 4],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFloor {
    prefix: U16,
    claim_sequence: U64,
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
            Entry::Recovery { .. } => 32,
            Entry::Repair { .. } => 33,
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
            | Entry::Reconcile { global_sequence, .. } => Some(global_sequence),
            _ => None,
        }
    }
}

impl Record<'_> {
    /// Appends the body to `out`. Lengths are within their bounds: commands are checked before they are decided.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let m = &self.meta;
        let meta = RawMeta {
            timestamp_us: m.timestamp_us.into(),
            idempotency_key: m.idempotency_key.to_be_bytes(),
            correlation_id: m.correlation_id.to_be_bytes(),
            fingerprint: m.fingerprint.into(),
            uid: m.principal.uid.into(),
            gid: m.principal.gid.into(),
            pid: m.principal.pid.into(),
            item: m.item.into(),
            corpus: m.corpus.map_or(0, Prefix::get).into(),
            rationale_bytes: (m.rationale.len() as u16).into(),
            reserved: [0; 6],
        };
        out.extend_from_slice(meta.as_bytes());
        match &self.entry {
            Entry::Claim(c) => {
                let raw = RawClaim {
                    event_id: c.event_id.as_u128().to_be_bytes(),
                    claim_sequence: c.claim_sequence.into(),
                    occurred_at_us: c.occurred_at_us.into(),
                    metadata_bytes: (c.metadata.len() as u32).into(),
                    taxonomy_version: c.taxonomy_version.into(),
                    event_key_bytes: (c.event_key.len() as u16).into(),
                    owning_bytes: c.owning_corpus.len() as u8,
                    hosting_bytes: c.hosting_corpus.len() as u8,
                    category_bytes: c.category.len() as u8,
                    flags: (u8::from(c.over_budget) * FLAG_OVER_BUDGET)
                        | (u8::from(c.incident_active) * FLAG_INCIDENT_ACTIVE),
                    reserved: [0; 2],
                };
                out.extend_from_slice(raw.as_bytes());
                for text in [c.event_key, c.owning_corpus, c.hosting_corpus, c.category] {
                    out.extend_from_slice(text.as_bytes());
                }
                out.extend_from_slice(c.metadata);
            }
            Entry::Reference { event_id, canonical_id } => {
                let raw = RawReference {
                    event_id: event_id.as_u128().to_be_bytes(),
                    canonical_id: canonical_id.as_u128().to_be_bytes(),
                };
                out.extend_from_slice(raw.as_bytes());
            }
            Entry::Tombstone { event_id, reason_code } => {
                let raw =
                    RawTombstone { event_id: event_id.as_u128().to_be_bytes(), reason_code: reason_code.number() };
                out.extend_from_slice(raw.as_bytes());
            }
            Entry::Reactivate { event_id } => out.extend_from_slice(&event_id.as_u128().to_be_bytes()),
            Entry::Onboard { global_sequence, prefix, shard, name, notes, onboarded_at_us } => {
                let raw = RawOnboard {
                    global_sequence: (*global_sequence).into(),
                    onboarded_at_us: (*onboarded_at_us).into(),
                    prefix: prefix.get().into(),
                    shard: (*shard).into(),
                    name_bytes: name.len() as u8,
                    reserved: 0,
                    notes_bytes: (notes.len() as u16).into(),
                };
                out.extend_from_slice(raw.as_bytes());
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(notes.as_bytes());
            }
            Entry::PrefixAllocation { global_sequence, minted_to } => {
                let raw =
                    RawPrefixAllocation { global_sequence: (*global_sequence).into(), minted_to: (*minted_to).into() };
                out.extend_from_slice(raw.as_bytes());
            }
            Entry::ConfirmClock { global_sequence } => out.extend_from_slice(&global_sequence.to_le_bytes()),
            Entry::Alarm { kind, claims, slots } => {
                out.push(kind.number());
                number(out, *claims);
                number(out, *slots);
            }
            Entry::Forbidden { action, counted } => {
                out.push(action.number());
                number(out, *counted);
            }
            Entry::User { uid, name } => {
                out.extend_from_slice(&uid.to_le_bytes());
                out.extend_from_slice(&(name.len() as u16).to_le_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Entry::Decommission { global_sequence, prefix, at_us } => {
                number(out, *global_sequence);
                out.extend_from_slice(&prefix.get().to_le_bytes());
                number(out, *at_us as u64);
            }
            Entry::Freeze { global_sequence, prefix, frozen, at_us } => {
                number(out, *global_sequence);
                out.extend_from_slice(&prefix.map_or(0, Prefix::get).to_le_bytes());
                out.push(u8::from(*frozen));
                number(out, *at_us as u64);
            }
            Entry::Cap { global_sequence, prefix, claims_per_minute } => {
                number(out, *global_sequence);
                out.extend_from_slice(&prefix.get().to_le_bytes());
                out.extend_from_slice(&claims_per_minute.to_le_bytes());
            }
            Entry::SlotIncrease { global_sequence, prefix, slots, at_us } => {
                number(out, *global_sequence);
                out.extend_from_slice(&prefix.get().to_le_bytes());
                number(out, *slots);
                number(out, *at_us as u64);
            }
            Entry::SignOff { global_sequence, proposal, role, effective_from_us, at_us } => {
                number(out, *global_sequence);
                number(out, *proposal);
                out.push(role.number());
                number(out, *effective_from_us as u64);
                number(out, *at_us as u64);
            }
            Entry::Incident { global_sequence, active } => {
                number(out, *global_sequence);
                out.push(u8::from(*active));
            }
            Entry::Barrier { global_sequence, at_us } => {
                number(out, *global_sequence);
                number(out, *at_us as u64);
            }
            Entry::Configuration { global_sequence, at_us, toml } => {
                number(out, *global_sequence);
                number(out, *at_us as u64);
                out.extend_from_slice(&(toml.len() as u32).to_le_bytes());
                out.extend_from_slice(toml.as_bytes());
            }
            Entry::Dispute { global_sequence, dispute, opened_at_us, sides } => {
                number(out, *global_sequence);
                out.extend_from_slice(&dispute.as_u128().to_be_bytes());
                out.push(sides.ids().len() as u8);
                number(out, *opened_at_us as u64);
                sides.ids().iter().for_each(|id| out.extend_from_slice(&id.as_u128().to_be_bytes()));
            }
            Entry::DisputeStep { global_sequence, dispute, step, at_us, rows, verdicts } => {
                number(out, *global_sequence);
                out.extend_from_slice(&dispute.as_u128().to_be_bytes());
                out.extend_from_slice(&[step.number(), *rows]);
                number(out, *at_us as u64);
                out.extend(verdicts.iter().map(|verdict| verdict.map_or(0, Verdict::number)));
            }
            Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges } => {
                number(out, *global_sequence);
                number(out, *pass);
                out.push(*phase as u8);
                number(out, *at_us as u64);
                counts.numbers().iter().for_each(|n| number(out, *n));
                let count = merges.len() / MERGE_BYTES;
                out.extend_from_slice(&(count as u32).to_le_bytes());
                out.extend_from_slice(&merges[..count * MERGE_BYTES]);
            }
            Entry::Recovery { incarnation, cut_at } => {
                let raw = RawRecovery { incarnation: (*incarnation).into(), cut_at: (*cut_at).into() };
                out.extend_from_slice(raw.as_bytes());
            }
            Entry::Repair { cut_at, given_up_to, floors } => {
                let count = floors.len() / size_of::<RawFloor>();
                let raw = RawRepair {
                    cut_at: (*cut_at).into(),
                    given_up_to: (*given_up_to).into(),
                    floors: (count as u32).into(),
                    reserved: [0; 4],
                };
                out.extend_from_slice(raw.as_bytes());
                out.extend_from_slice(&floors[..count * size_of::<RawFloor>()]);
            }
        }
        out.extend_from_slice(m.rationale.as_bytes());
    }

    /// Reads a body of the given kind. The result borrows from it.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Record<'_>, EntryError> {
        let mut fields = Fields { rest: body };
        let raw: RawMeta = fields.fixed("meta")?;
        let entry = match kind {
            1 => {
                let c: RawClaim = fields.fixed("claim")?;
                Entry::Claim(ClaimEntry {
                    event_id: event_id(c.event_id)?,
                    claim_sequence: c.claim_sequence.get(),
                    occurred_at_us: c.occurred_at_us.get(),
                    taxonomy_version: c.taxonomy_version.get(),
                    event_key: fields.text(c.event_key_bytes.get().into(), "event_key")?,
                    owning_corpus: fields.text(c.owning_bytes.into(), "owning_corpus")?,
                    hosting_corpus: fields.text(c.hosting_bytes.into(), "hosting_corpus")?,
                    category: fields.text(c.category_bytes.into(), "category")?,
                    over_budget: c.flags & FLAG_OVER_BUDGET != 0,
                    incident_active: c.flags & FLAG_INCIDENT_ACTIVE != 0,
                    metadata: fields.bytes(c.metadata_bytes.get() as usize, "metadata")?,
                })
            }
            2 => {
                let r: RawReference = fields.fixed("reference")?;
                Entry::Reference { event_id: event_id(r.event_id)?, canonical_id: event_id(r.canonical_id)? }
            }
            3 => {
                let t: RawTombstone = fields.fixed("tombstone")?;
                let reason_code = ReasonCode::from_number(t.reason_code).ok_or(EntryError::Field("reason_code"))?;
                Entry::Tombstone { event_id: event_id(t.event_id)?, reason_code }
            }
            4 => Entry::Reactivate { event_id: event_id(fields.fixed("reactivate")?)? },
            16 => {
                let o: RawOnboard = fields.fixed("onboard")?;
                Entry::Onboard {
                    global_sequence: o.global_sequence.get(),
                    prefix: Prefix::new(o.prefix.get()).ok_or(EntryError::Field("prefix"))?,
                    shard: o.shard.get(),
                    name: fields.text(o.name_bytes.into(), "name")?,
                    notes: fields.text(o.notes_bytes.get().into(), "notes")?,
                    onboarded_at_us: o.onboarded_at_us.get(),
                }
            }
            17 => {
                let p: RawPrefixAllocation = fields.fixed("shard-prefix-allocation")?;
                Entry::PrefixAllocation { global_sequence: p.global_sequence.get(), minted_to: p.minted_to.get() }
            }
            18 => {
                let raw: U64 = fields.fixed("confirm-clock")?;
                Entry::ConfirmClock { global_sequence: raw.get() }
            }
            5 => Entry::Alarm {
                kind: AlarmKind::from_number(fields.u8("kind")?).ok_or(EntryError::Field("kind"))?,
                claims: fields.u64("claims")?,
                slots: fields.u64("slots")?,
            },
            6 => Entry::Forbidden {
                action: Action::from_number(fields.u8("action")?).ok_or(EntryError::Field("action"))?,
                counted: fields.u64("counted")?,
            },
            7 => {
                let uid = fields.u32("uid")?;
                let bytes = fields.u16("name")?.into();
                Entry::User { uid, name: fields.text(bytes, "name")? }
            }
            19 => Entry::Decommission {
                global_sequence: fields.u64("global")?,
                prefix: fields.prefix()?,
                at_us: fields.time("at")?,
            },
            20 => Entry::Freeze {
                global_sequence: fields.u64("global")?,
                prefix: Prefix::new(fields.u16("prefix")?),
                frozen: fields.flag("frozen")?,
                at_us: fields.time("at")?,
            },
            21 => Entry::Cap {
                global_sequence: fields.u64("global")?,
                prefix: fields.prefix()?,
                claims_per_minute: fields.u32("claims per minute")?,
            },
            22 => Entry::SlotIncrease {
                global_sequence: fields.u64("global")?,
                prefix: fields.prefix()?,
                slots: fields.u64("slots")?,
                at_us: fields.time("at")?,
            },
            23 => Entry::SignOff {
                global_sequence: fields.u64("global")?,
                proposal: fields.u64("proposal")?,
                role: Role::from_number(fields.u8("role")?).ok_or(EntryError::Field("role"))?,
                effective_from_us: fields.time("effective from")?,
                at_us: fields.time("at")?,
            },
            24 => Entry::Incident { global_sequence: fields.u64("global")?, active: fields.flag("active")? },
            25 => Entry::Barrier { global_sequence: fields.u64("global")?, at_us: fields.time("at")? },
            26 => {
                let global_sequence = fields.u64("global")?;
                let at_us = fields.time("at")?;
                let bytes = fields.u32("toml")? as usize;
                Entry::Configuration { global_sequence, at_us, toml: fields.text(bytes, "toml")? }
            }
            27 => {
                let global_sequence = fields.u64("global")?;
                let dispute = fields.dispute()?;
                let count = fields.u8("rows")?;
                let opened_at_us = fields.time("opened at")?;
                let ids: Result<Vec<_>, _> = (0..count).map(|_| event_id(fields.fixed("row")?)).collect();
                let sides = Sides::new(&ids?).ok_or(EntryError::Field("rows"))?;
                Entry::Dispute { global_sequence, dispute, opened_at_us, sides }
            }
            28 => {
                let global_sequence = fields.u64("global")?;
                let dispute = fields.dispute()?;
                let step = DisputeStep::from_number(fields.u8("step")?).ok_or(EntryError::Field("step"))?;
                let rows = fields.u8("rows")?;
                let at_us = fields.time("at")?;
                let mut verdicts = [None; SIDES_MAX];
                for verdict in &mut verdicts {
                    let n = fields.u8("verdict")?;
                    *verdict = Verdict::from_number(n);
                    if n != 0 && verdict.is_none() {
                        return Err(EntryError::Field("verdict"));
                    }
                }
                Entry::DisputeStep { global_sequence, dispute, step, at_us, rows, verdicts }
            }
            29 => {
                let global_sequence = fields.u64("global")?;
                let pass = fields.u64("pass")?;
                let phase = match fields.u8("phase")? {
                    0 => PassPhase::Begin,
                    1 => PassPhase::Merge,
                    2 => PassPhase::Done,
                    _ => return Err(EntryError::Field("phase")),
                };
                let at_us = fields.time("at")?;
                let mut counts = [0; 8];
                for count in &mut counts {
                    *count = fields.u64("count")?;
                }
                let count = fields.u32("merges")? as usize;
                let bytes = fields.bytes(count.saturating_mul(MERGE_BYTES), "merges")?;
                if merges(bytes).count() != count {
                    return Err(EntryError::Field("merge"));
                }
                let counts = PassCounts::of_numbers(counts);
                Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges: bytes }
            }
            32 => {
                let r: RawRecovery = fields.fixed("recovery")?;
                Entry::Recovery { incarnation: r.incarnation.get(), cut_at: r.cut_at.get() }
            }
            33 => {
                let r: RawRepair = fields.fixed("repair")?;
                let floors = fields.bytes(r.floors.get() as usize * size_of::<RawFloor>(), "floors")?;
                Entry::Repair { cut_at: r.cut_at.get(), given_up_to: r.given_up_to.get(), floors }
            }
            other => return Err(EntryError::Kind(other)),
        };
        let meta = Meta {
            timestamp_us: raw.timestamp_us.get(),
            idempotency_key: u128::from_be_bytes(raw.idempotency_key),
            correlation_id: u128::from_be_bytes(raw.correlation_id),
            fingerprint: raw.fingerprint.get(),
            principal: Principal { uid: raw.uid.get(), gid: raw.gid.get(), pid: raw.pid.get() },
            item: raw.item.get(),
            corpus: Prefix::new(raw.corpus.get()),
            rationale: fields.text(raw.rationale_bytes.get().into(), "rationale")?,
        };
        if fields.rest.is_empty() { Ok(Record { meta, entry }) } else { Err(EntryError::Field("end")) }
    }
}

fn number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

fn event_id(bytes: [u8; 16]) -> Result<EventId, EntryError> {
    EventId::from_u128(u128::from_be_bytes(bytes)).ok_or(EntryError::Field("event_id"))
}

/// Takes a body apart from front to back.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn fixed<T: FromBytes>(&mut self, name: &'static str) -> Result<T, EntryError> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| EntryError::Field(name))?;
        self.rest = rest;
        Ok(value)
    }

    fn u8(&mut self, name: &'static str) -> Result<u8, EntryError> {
        self.fixed(name)
    }

    fn u16(&mut self, name: &'static str) -> Result<u16, EntryError> {
        self.fixed::<U16>(name).map(U16::get)
    }

    fn u32(&mut self, name: &'static str) -> Result<u32, EntryError> {
        self.fixed::<U32>(name).map(U32::get)
    }

    fn u64(&mut self, name: &'static str) -> Result<u64, EntryError> {
        self.fixed::<U64>(name).map(U64::get)
    }

    fn time(&mut self, name: &'static str) -> Result<i64, EntryError> {
        let at_us = self.fixed::<I64>(name)?.get();
        if (0..=TIME_US_MAX).contains(&at_us) { Ok(at_us) } else { Err(EntryError::Field(name)) }
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, EntryError> {
        match self.u8(name)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EntryError::Field(name)),
        }
    }

    fn prefix(&mut self) -> Result<Prefix, EntryError> {
        Prefix::new(self.u16("prefix")?).ok_or(EntryError::Field("prefix"))
    }

    fn dispute(&mut self) -> Result<DisputeId, EntryError> {
        DisputeId::from_u128(u128::from_be_bytes(self.fixed("dispute")?)).ok_or(EntryError::Field("dispute"))
    }

    fn bytes(&mut self, count: usize, name: &'static str) -> Result<&'a [u8], EntryError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(EntryError::Field(name))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn text(&mut self, count: usize, name: &'static str) -> Result<&'a str, EntryError> {
        std::str::from_utf8(self.bytes(count, name)?).map_err(|_| EntryError::Field(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(tail: u64) -> EventId {
        EventId::pack(1_700_000_000_000, Prefix::new(3).unwrap(), tail)
    }

    fn entries() -> Vec<Entry<'static>> {
        vec![
            Entry::Claim(ClaimEntry {
                event_id: id(1),
                claim_sequence: 12,
                occurred_at_us: 99,
                taxonomy_version: 4,
                event_key: "reset-2025",
                owning_corpus: "customer",
                hosting_corpus: "",
                category: "embedder",
                over_budget: true,
                incident_active: false,
                metadata: &[1, 2, 3],
            }),
            Entry::Alarm { kind: AlarmKind::Early, claims: 7, slots: 9 },
            Entry::Forbidden { action: Action::Claim, counted: 3 },
            Entry::User { uid: 7, name: "alice" },
            Entry::Decommission { global_sequence: 1, prefix: Prefix::new(7).unwrap(), at_us: 5 },
            Entry::Freeze { global_sequence: 1, prefix: None, frozen: true, at_us: 5 },
            Entry::Cap { global_sequence: 1, prefix: Prefix::new(7).unwrap(), claims_per_minute: 5 },
            Entry::SlotIncrease { global_sequence: 1, prefix: Prefix::new(7).unwrap(), slots: 80_000, at_us: 5 },
            Entry::SignOff { global_sequence: 1, proposal: 2, role: Role::Manager, effective_from_us: 3, at_us: 2 },
            Entry::Incident { global_sequence: 1, active: true },
            Entry::Barrier { global_sequence: 1, at_us: 5 },
            Entry::Configuration { global_sequence: 1, at_us: 5, toml: "[slots]\n" },
            Entry::Dispute {
                global_sequence: 1,
                dispute: DisputeId::pack(5, [6, 7]),
                opened_at_us: 8,
                sides: Sides::new(&[id(1), EventId::pack(5, Prefix::new(4).unwrap(), 6)]).unwrap(),
            },
            Entry::DisputeStep {
                global_sequence: 1,
                dispute: DisputeId::pack(5, [6, 7]),
                step: DisputeStep::Arbitrate,
                at_us: 9,
                rows: 3,
                verdicts: [Some(Verdict::Canonical), Some(Verdict::References), None, None, None, None, None, None],
            },
            Entry::Reconcile {
                global_sequence: 1,
                pass: 4,
                phase: PassPhase::Done,
                at_us: 9,
                counts: PassCounts {
                    rows: 1,
                    groups: 2,
                    merged: 3,
                    left_alone: 4,
                    refused: 5,
                    suspects: 6,
                    orphans: 7,
                    aliases: 8,
                },
                merges: Box::leak(
                    encode_merges(&[Merge { alias: id(1), canonical: id(2), position: 3, applied: true }])
                        .into_boxed_slice(),
                ),
            },
            Entry::Reference { event_id: id(2), canonical_id: id(3) },
            Entry::Tombstone { event_id: id(4), reason_code: ReasonCode::FalseAlarm },
            Entry::Reactivate { event_id: id(5) },
            Entry::Onboard {
                global_sequence: 6,
                prefix: Prefix::new(7).unwrap(),
                shard: 1,
                name: "compliance",
                notes: "slow",
                onboarded_at_us: 55,
            },
            Entry::PrefixAllocation { global_sequence: 8, minted_to: 100 },
            Entry::ConfirmClock { global_sequence: 9 },
            Entry::Recovery { incarnation: 2, cut_at: 4096 },
            Entry::Repair { cut_at: 4096, given_up_to: 7, floors: &[1, 0, 9, 0, 0, 0, 0, 0, 0, 0] },
        ]
    }

    #[test]
    fn every_entry_decodes_to_itself_and_no_cut_of_it_decodes() {
        for entry in entries() {
            let meta = Meta {
                timestamp_us: 1_700_000_000_000_001,
                idempotency_key: 1 << 100,
                correlation_id: 5,
                fingerprint: 6,
                principal: Principal { uid: 1, gid: 2, pid: 3 },
                item: 8189,
                corpus: Prefix::new(3),
                rationale: "because",
            };
            let record = Record { meta, entry };
            let mut body = vec![];
            record.encode(&mut body);
            assert_eq!(Record::decode(entry.kind(), &body), Ok(record));
            for cut in 0..body.len() {
                assert!(Record::decode(entry.kind(), &body[..cut]).is_err(), "{entry:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_named() {
        assert_eq!(Record::decode(999, &[0; 200]), Err(EntryError::Kind(999)));
    }
}
