//! Rows that were logged again, and what a carry says of other entries, by their new places.

use super::read::{Copy, Local};
use claim_engine::corpus::Prefix;
use claim_engine::dispute::DisputeStep;
use claim_engine::id::EventId;
use claim_engine::log::entry::{Entry, Meta, Record};
use claim_engine::log::layout::{Geometry, RECORD_BYTES_MAX};
use claim_engine::log::record;
use claim_engine::shard::Shard;
use claim_engine::shard::rows::carried_elsewhere;
use std::collections::{BTreeSet, HashMap};

/// What a carry says on another shard.
#[derive(Debug)]
pub struct Carry {
    /// Log offset of the claim.
    pub claim_at: u64,
    /// What became of the row, encoded.
    pub change: Vec<u8>,
    /// Why it is tombstoned.
    pub rationale: String,
}

/// See the module; of one new shard.
#[derive(Debug, Default)]
pub struct Carrying {
    /// Rows whose claims may be gone, in their order: where a claim lay is told by its number among them.
    claims: HashMap<EventId, u64>,
    /// By old shard and log offset: the new one.
    places: HashMap<(usize, u64), u64>,
    /// By old shard and position: the new one.
    positions: HashMap<(usize, u64), u64>,
    /// By row: where the entry of its last tombstone is, and what that said.
    reasons: HashMap<EventId, (u64, String)>,
}

impl Carrying {
    /// For the rows that were logged again and live here.
    pub fn new<'a>(carried: impl Iterator<Item = &'a EventId>, is_here: impl Fn(Prefix) -> bool) -> Carrying {
        let here: BTreeSet<EventId> = carried.copied().filter(|id| is_here(id.prefix())).collect();
        Carrying { claims: here.into_iter().zip(0..).collect(), ..Carrying::default() }
    }

    /// Whether a segment has room for the places of all claims.
    pub fn fits(&self, geometry: Geometry) -> bool {
        (self.claims.len() as u64) < geometry.segment_bytes
    }

    /// An entry of one old shard alone has its place.
    pub fn moved(&mut self, old: usize, local: &Local, record: &Record<'_>, position: u64, log_offset: u64) {
        let (Entry::Tombstone { event_id, .. } | Entry::Reactivate { event_id } | Entry::Reference { event_id, .. }) =
            record.entry
        else {
            return;
        };
        if !self.claims.contains_key(&event_id) {
            return;
        }
        self.places.insert((old, local.log_offset), log_offset);
        self.positions.insert((old, local.position), position);
        match record.entry {
            Entry::Tombstone { .. } => {
                drop(self.reasons.insert(event_id, (log_offset, record.meta.rationale.to_owned())))
            }
            Entry::Reactivate { .. } => drop(self.reasons.remove(&event_id)),
            _ => {}
        }
    }

    /// An entry of the global order has its place.
    pub fn moved_global<'a>(
        &mut self,
        copies: impl Iterator<Item = &'a Copy>,
        shard: &Shard,
        record: &Record<'_>,
        position: u64,
        log_offset: u64,
    ) {
        let is_of_rows =
            matches!(record.entry, Entry::Dispute { .. } | Entry::DisputeStep { .. } | Entry::Reconcile { .. });
        if self.claims.is_empty() || !is_of_rows {
            return;
        }
        // One that a shard has yet to follow has no place.
        for (old, copy) in copies.enumerate().filter(|(_, copy)| copy.log_offset > 0) {
            self.places.insert((old, copy.log_offset), log_offset);
            self.positions.insert((old, copy.position), position);
        }
        if let Entry::DisputeStep { dispute, step: DisputeStep::Arbitrate, rows, .. } = record.entry {
            let sides = shard.disputes().get(dispute).map(|dispute| dispute.sides);
            let sides = sides.iter().flat_map(|sides| sides.ids().iter().enumerate());
            let changed = sides.filter(|(bit, _)| rows & (1 << bit) != 0).map(|(_, event_id)| *event_id);
            for event_id in changed.filter(|id| self.claims.contains_key(id)) {
                self.reasons.insert(event_id, (log_offset, record.meta.rationale.to_owned()));
            }
        }
    }

    /// What a carry of an old shard says here. A row whose claim is here, or which was carried here, is what it is; of any other row
    /// the carry says all that is left.
    pub fn carry(&self, old: usize, record: &Record<'_>, shard: &Shard) -> Result<Option<Carry>, String> {
        let Entry::Carry { claim, claimed_at_us, change, .. } = record.entry else { return Ok(None) };
        let event_id = claim.event_id;
        let rows = shard.rows();
        let (claim_at, change, is_tombstoned) = match rows.get(event_id).map_err(|unread| unread.to_string())? {
            Some(row) => {
                let claim_at = rows.carried().get(&event_id).map_or(row.claim_at, |carried| carried.first_at);
                let change = rows.carried_change(&row).map_err(|unread| unread.to_string())?;
                (claim_at, change, row.tombstone.is_some())
            }
            None => {
                let claim_at = *self.claims.get(&event_id).ok_or("a carry of a row that is not known to be carried")?;
                let moved = |at: u64| self.places.get(&(old, at)).copied();
                let is_in_open = |at: u64| rows.segment_of(at) == rows.segment();
                let position = |position: u64| self.positions.get(&(old, position)).copied().unwrap_or(0);
                let (change, is_tombstoned) = carried_elsewhere(change, moved, is_in_open, position)?;
                (claim_at, change, is_tombstoned)
            }
        };
        // The entry of a tombstone in the carry's own segment goes with it.
        let reason =
            self.reasons.get(&event_id).filter(|(at, _)| is_tombstoned && rows.segment_of(*at) != rows.segment());
        let reason = reason.map(|(_, reason)| reason.as_str()).filter(|_| record.meta.rationale.is_empty());
        let rationale = reason.unwrap_or(record.meta.rationale).to_owned();
        let meta = Meta { rationale: &rationale, ..record.meta };
        let mut body = Vec::new();
        Record { meta, entry: Entry::Carry { claim, claimed_at_us, claim_at, change: &change } }.encode(&mut body);
        match record::padded(body.len()) as u64 > RECORD_BYTES_MAX {
            true => Err(format!("{event_id} takes more to be logged again than a record holds")),
            false => Ok(Some(Carry { claim_at, change, rationale })),
        }
    }
}
