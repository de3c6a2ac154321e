//! Entries to bytes.

use super::raw::{
    FLAG_INCIDENT_ACTIVE, FLAG_OVER_BUDGET, RawClaim, RawFloor, RawMeta, RawOnboard, RawPrefixAllocation, RawRecovery,
    RawReference, RawRepair, RawReshard, RawReshardSource, RawTombstone,
};
use super::{ClaimEntry, Entry, MERGE_BYTES, Merge, Record, ReshardSource};
use crate::corpus::Prefix;
use crate::dispute::Verdict;
use zerocopy::IntoBytes;

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
            Entry::Claim(entry) => claim(out, entry),
            Entry::Carry { claim: entry, claimed_at_us, claim_at, change } => {
                claim(out, entry);
                number(out, *claimed_at_us as u64);
                number(out, *claim_at);
                out.extend_from_slice(&(change.len() as u32).to_le_bytes());
                out.extend_from_slice(change);
            }
            Entry::Hold { global_sequence, quarter, held, at_us } => {
                number(out, *global_sequence);
                out.extend_from_slice(&quarter.year().to_le_bytes());
                out.extend_from_slice(&[quarter.number(), u8::from(*held)]);
                number(out, *at_us as u64);
            }
            Entry::RetentionDrop { dropped } => {
                out.extend_from_slice(&(dropped.len() as u32).to_le_bytes());
                out.extend_from_slice(dropped);
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
            Entry::Repair { cut_at, given_up_to, floors } | Entry::Restore { cut_at, given_up_to, floors } => {
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
            Entry::Reshard { ledger, shards, at_us, sources } => {
                let count = sources.len() / size_of::<RawReshardSource>();
                let raw = RawReshard {
                    ledger: *ledger.as_bytes(),
                    at_us: (*at_us).into(),
                    shards: (*shards).into(),
                    sources: (count as u16).into(),
                    reserved: [0; 4],
                };
                out.extend_from_slice(raw.as_bytes());
                out.extend_from_slice(&sources[..count * size_of::<RawReshardSource>()]);
            }
        }
        out.extend_from_slice(m.rationale.as_bytes());
    }
}

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

/// Corpora whose slots go on above a claim sequence, in the quarter of the repair or the restore.
pub fn encode_floors(floors: &[(Prefix, u64)]) -> Vec<u8> {
    let raw = floors
        .iter()
        .map(|(prefix, sequence)| RawFloor { prefix: prefix.get().into(), claim_sequence: (*sequence).into() });
    raw.flat_map(|raw| raw.as_bytes().to_vec()).collect()
}

/// Where the entries of a shard come from.
pub fn encode_sources(sources: &[ReshardSource]) -> Vec<u8> {
    let raw = sources.iter().map(|source| RawReshardSource {
        shard: source.shard.into(),
        last_position: source.last_position.into(),
        entries: source.entries.into(),
    });
    raw.flat_map(|raw| raw.as_bytes().to_vec()).collect()
}

fn claim(out: &mut Vec<u8>, c: &ClaimEntry<'_>) {
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
        flags: (u8::from(c.over_budget) * FLAG_OVER_BUDGET) | (u8::from(c.incident_active) * FLAG_INCIDENT_ACTIVE),
        reserved: [0; 2],
    };
    out.extend_from_slice(raw.as_bytes());
    for text in [c.event_key, c.owning_corpus, c.hosting_corpus, c.category] {
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(c.metadata);
}

fn number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}
