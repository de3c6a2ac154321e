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
//! | 1 | claim | event-id 16, sequence 8, occurred_at us 8, metadata bytes 4, taxonomy version 4, bytes of event key 2, owning 1, hosting 1, category 1, reserved 3 |
//! | 2 | reference | event-id 16, canonical id 16 |
//! | 3 | tombstone | event-id 16, reason code 1 |
//! | 4 | reactivate | event-id 16 |
//! | 16 | onboard | global sequence 8, onboarded at us 8, prefix 2, shard 2, name bytes 1, reserved 1, notes bytes 2 |
//! | 17 | shard-prefix-allocation | global sequence 8, last prefix minted 2 |
//! | 18 | confirm-clock | global sequence 8 |
//! | 32 | recovery | incarnation 8, log offset of the cut 8 |
//! | 33 | repair | log offset of the cut 8, last position given up 8, floors 4, reserved 4; each floor: corpus prefix 2, claim sequence 8 |
//!
//! Kinds are never renumbered; a new one is added, so that old ledgers stay readable.

use crate::corpus::Prefix;
use crate::id::EventId;
use crate::row::ReasonCode;
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
    /// Opaque.
    pub metadata: &'a [u8],
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
    reserved: [u8; 3],
}

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
            Entry::Onboard { .. } => 16,
            Entry::PrefixAllocation { .. } => 17,
            Entry::ConfirmClock { .. } => 18,
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
            | Entry::ConfirmClock { global_sequence } => Some(global_sequence),
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
                    reserved: [0; 3],
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
                metadata: &[1, 2, 3],
            }),
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
