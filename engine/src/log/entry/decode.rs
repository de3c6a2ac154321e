//! Bytes to entries. What no build writes is refused.

use super::raw::{
    FLAG_INCIDENT_ACTIVE, FLAG_OVER_BUDGET, RawClaim, RawFloor, RawMeta, RawOnboard, RawPrefixAllocation, RawRecovery,
    RawReference, RawRepair, RawReshard, RawReshardSource, RawTombstone,
};
use super::{
    AlarmKind, ClaimEntry, Entry, EntryError, MERGE_BYTES, Merge, Meta, PassCounts, PassPhase, Principal, Record,
    ReshardSource,
};
use crate::corpus::Prefix;
use crate::dispute::{DisputeId, DisputeStep, SIDES_MAX, Sides, Verdict};
use crate::id::EventId;
use crate::policy::{Action, Role};
use crate::row::ReasonCode;
use crate::time::{Quarter, TIME_US_MAX};
use uuid::Uuid;
use zerocopy::FromBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

/// Bytes of a body that [`claimed_id`] looks at.
pub const CLAIMED_ID_BYTES: usize = size_of::<RawMeta>() + 16;

/// The id of a claim, without a look at the rest; `None` for other kinds.
pub fn claimed_id(kind: u16, body: &[u8]) -> Option<EventId> {
    let at = size_of::<RawMeta>();
    let bytes = body.get(at..at + 16).filter(|_| kind == 1)?;
    EventId::from_u128(u128::from_be_bytes(bytes.try_into().ok()?))
}

/// What an index takes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimFacts<'a> {
    /// When it was claimed.
    pub timestamp_us: i64,
    /// The id.
    pub event_id: EventId,
    /// Its slot in the quarter.
    pub claim_sequence: u64,
    /// When the event happened.
    pub occurred_at_us: i64,
    /// Its event key's bytes.
    pub event_key: &'a [u8],
    /// Its corpus had used up its slots.
    pub over_budget: bool,
    /// An incident was on.
    pub incident_active: bool,
}

/// The same of a claim as [`Record::decode`] reads it, without a look at its texts; `None` for other kinds.
pub fn claim_facts(kind: u16, body: &[u8]) -> Option<ClaimFacts<'_>> {
    let mut fields = Fields { rest: body };
    let meta: RawMeta = fields.fixed("meta").ok().filter(|_| kind == 1)?;
    let claim: RawClaim = fields.fixed("claim").ok()?;
    Some(ClaimFacts {
        timestamp_us: meta.timestamp_us.get(),
        event_id: event_id(claim.event_id).ok()?,
        claim_sequence: claim.claim_sequence.get(),
        occurred_at_us: claim.occurred_at_us.get(),
        event_key: fields.bytes(claim.event_key_bytes.get().into(), "event_key").ok()?,
        over_budget: claim.flags & FLAG_OVER_BUDGET != 0,
        incident_active: claim.flags & FLAG_INCIDENT_ACTIVE != 0,
    })
}

/// A claim, logged again or not, and when it was claimed, as [`Record::decode`] reads them; `None` for other kinds.
// Pages are made of these by the million a second: to hand one on costs as much as to make it.
#[inline(always)]
pub fn claim_of(kind: u16, body: &[u8]) -> Result<Option<(ClaimEntry<'_>, i64)>, EntryError> {
    if kind != 1 {
        return Ok(match Record::decode(kind, body)?.entry {
            Entry::Carry { claim, claimed_at_us, .. } => Some((claim, claimed_at_us)),
            _ => None,
        });
    }
    let mut fields = Fields { rest: body };
    let meta: RawMeta = fields.fixed("meta")?;
    let claim = fields.claim()?;
    fields.text(meta.rationale_bytes.get().into(), "rationale")?;
    if fields.rest.is_empty() { Ok(Some((claim, meta.timestamp_us.get()))) } else { Err(EntryError::Field("end")) }
}

impl Record<'_> {
    /// Reads a body of the given kind. The result borrows from it.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Record<'_>, EntryError> {
        let mut fields = Fields { rest: body };
        let raw: RawMeta = fields.fixed("meta")?;
        let entry = match kind {
            1 => Entry::Claim(fields.claim()?),
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
            8 => {
                let claim = fields.claim()?;
                let claimed_at_us = fields.time("claimed at")?;
                let claim_at = fields.u64("claim's log offset")?;
                let bytes = fields.u32("change")? as usize;
                Entry::Carry { claim, claimed_at_us, claim_at, change: fields.bytes(bytes, "change")? }
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
            30 => {
                let global_sequence = fields.u64("global")?;
                let (year, number) = (fields.u16("year")?, fields.u8("quarter")?);
                let quarter = Quarter::new(year, number).ok_or(EntryError::Field("quarter"))?;
                Entry::Hold { global_sequence, quarter, held: fields.flag("held")?, at_us: fields.time("at")? }
            }
            32 => {
                let r: RawRecovery = fields.fixed("recovery")?;
                Entry::Recovery { incarnation: r.incarnation.get(), cut_at: r.cut_at.get() }
            }
            33 | 34 => {
                let r: RawRepair = fields.fixed("repair")?;
                let floors = fields.bytes(r.floors.get() as usize * size_of::<RawFloor>(), "floors")?;
                let (cut_at, given_up_to) = (r.cut_at.get(), r.given_up_to.get());
                match kind {
                    33 => Entry::Repair { cut_at, given_up_to, floors },
                    _ => Entry::Restore { cut_at, given_up_to, floors },
                }
            }
            35 => {
                let r: RawReshard = fields.fixed("reshard")?;
                let count = usize::from(r.sources.get());
                let sources = fields.bytes(count * size_of::<RawReshardSource>(), "sources")?;
                let (ledger, shards, at_us) = (Uuid::from_bytes(r.ledger), r.shards.get(), r.at_us.get());
                if !(0..=TIME_US_MAX).contains(&at_us) {
                    return Err(EntryError::Field("at"));
                }
                Entry::Reshard { ledger, shards, at_us, sources }
            }
            36 => {
                let bytes = fields.u32("dropped")? as usize;
                Entry::RetentionDrop { dropped: fields.bytes(bytes, "dropped")? }
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

/// Reads what [`encode_merges`](super::encode_merges) wrote; what is no merge is left out.
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

/// Reads what [`encode_floors`](super::encode_floors) wrote.
pub fn floors(bytes: &[u8]) -> impl Iterator<Item = (Prefix, u64)> + '_ {
    bytes.chunks_exact(size_of::<RawFloor>()).filter_map(|bytes| {
        let raw = RawFloor::read_from_bytes(bytes).ok()?;
        Some((Prefix::new(raw.prefix.get())?, raw.claim_sequence.get()))
    })
}

/// Reads what [`encode_sources`](super::encode_sources) wrote.
pub fn sources(bytes: &[u8]) -> impl Iterator<Item = ReshardSource> + '_ {
    bytes.chunks_exact(size_of::<RawReshardSource>()).filter_map(|bytes| {
        let raw = RawReshardSource::read_from_bytes(bytes).ok()?;
        let (shard, last_position, entries) = (raw.shard.get(), raw.last_position.get(), raw.entries.get());
        Some(ReshardSource { shard, last_position, entries })
    })
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

    #[inline(always)]
    fn claim(&mut self) -> Result<ClaimEntry<'a>, EntryError> {
        let c: RawClaim = self.fixed("claim")?;
        let lengths = [c.event_key_bytes.get().into(), c.owning_bytes.into(), c.hosting_bytes.into()];
        // Looked at together: most are some bytes long, if that.
        let bytes = lengths.iter().sum::<usize>() + usize::from(c.category_bytes);
        let mut texts = self.text(bytes, "event_key, owning_corpus, hosting_corpus or category")?;
        let mut part = |bytes: usize, name| {
            let (part, rest) = texts.split_at_checked(bytes).ok_or(EntryError::Field(name))?;
            texts = rest;
            Ok(part)
        };
        let event_key = part(lengths[0], "event_key")?;
        let owning_corpus = part(lengths[1], "owning_corpus")?;
        let hosting_corpus = part(lengths[2], "hosting_corpus")?;
        Ok(ClaimEntry {
            event_id: event_id(c.event_id)?,
            claim_sequence: c.claim_sequence.get(),
            occurred_at_us: c.occurred_at_us.get(),
            taxonomy_version: c.taxonomy_version.get(),
            event_key,
            owning_corpus,
            hosting_corpus,
            category: texts,
            over_budget: c.flags & FLAG_OVER_BUDGET != 0,
            incident_active: c.flags & FLAG_INCIDENT_ACTIVE != 0,
            metadata: self.bytes(c.metadata_bytes.get() as usize, "metadata")?,
        })
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
