//! The rows of a shard: what their entries add up to, wherever it is kept. Rows of segments that are not sealed yet are in
//! memory, and so is what changed in those; all others are in sealed segments on disk. What a row holds besides is read from
//! the log.
//!
//! What a segment says of a row that changed in it is complete: the newest one counts, and leads back to the one before.

mod carried;
mod change;
pub mod event_keys;
mod pages;
mod recount;
mod scan;
mod segment;
mod tallies;

use carried::Outliving;
pub use carried::{Carried, Standing, carried_elsewhere};
pub use change::with_change_of;
use change::{Change, Noted};
pub(super) use change::{Happened, With};
pub use recount::Recount;
pub use scan::{Scan, Scanned, all_pages};
pub use segment::{IndexJob, SegmentRows, correlation_hash};
pub use tallies::Tallies;

use super::Effect;
use super::keys::{Kept, KeyId};
use crate::corpus::Prefix;
use crate::dispute::DisputeId;
use crate::id::EventId;
use crate::log::entry::claim_facts;
use crate::log::layout::Geometry;
use crate::log::record::RawRecord;
use crate::log::superblock::COUNT_MAX;
use crate::row::{RowState, Tombstone};
use crate::sealed::{self, Catalog, Fetch, Unread};
use crate::time::Quarter;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A claim as the index takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The id.
    pub event_id: EventId,
    /// When.
    pub claim_timestamp_us: i64,
    /// Its slot in the quarter.
    pub claim_sequence: u64,
    /// When the event happened.
    pub occurred_at_us: i64,
    /// A hash of its event key.
    pub key_hash: u64,
    /// Its corpus had used up its slots.
    pub over_budget: bool,
    /// An incident was on.
    pub incident_active: bool,
    /// Log offset of its record.
    pub claim_at: u64,
    /// Position of its record.
    pub position: u64,
}

/// A row with what its present state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The row.
    pub event_id: EventId,
    /// When it was claimed.
    pub claim_timestamp_us: i64,
    /// Its slot in its quarter.
    pub claim_sequence: u64,
    /// The quarter of its claim.
    pub quarter: Quarter,
    /// When the event happened.
    pub occurred_at_us: i64,
    /// A hash of its event key.
    pub key_hash: u64,
    /// Its corpus had used up its slots.
    pub over_budget: bool,
    /// An incident was on when it was claimed.
    pub incident_active: bool,
    /// Log offset of the claim's record.
    pub claim_at: u64,
    /// What its entries add up to.
    pub state: RowState,
    /// Set on aliases.
    pub canonical_id: Option<EventId>,
    /// The dispute that has it.
    pub dispute: Option<DisputeId>,
    /// Set while tombstoned.
    pub tombstone: Option<Tombstone>,
    /// When it last came back.
    pub reactivated_at_us: Option<i64>,
    /// How many references name it.
    pub references: u32,
    /// Position of the entry that made it what it is.
    pub position: u64,
}

impl Found {
    /// The quarter that it counts in: after it came back in a later quarter, the one after that.
    pub fn effective_quarter(&self) -> Quarter {
        match self.reactivation_quarter() {
            Some(reactivation) => reactivation.next(),
            None => self.quarter,
        }
    }

    /// The quarter in which it came back, when that is not its own.
    pub fn reactivation_quarter(&self) -> Option<Quarter> {
        self.reactivated_at_us.map(Quarter::of).filter(|quarter| *quarter != self.quarter)
    }

    /// When its retention of so many years is over.
    pub fn expires_at_us(&self, years: u16) -> i64 {
        self.effective_quarter().end_us_after_years(years)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Rows {
    geometry: Geometry,
    secret: u64,
    open: SegmentRows,
    /// Segments that are full and not sealed yet, the oldest first.
    frozen: VecDeque<Arc<SegmentRows>>,
    /// Memory for the next segment: making it anew costs more than what a segment's end may delay.
    spare: Option<SegmentRows>,
    tallies: Tallies,
    outliving: Outliving,
    /// The first row that came back in a later quarter since this was asked for.
    came_back: Option<EventId>,
    catalog: Catalog,
    /// Whether idempotency keys and event keys are kept.
    keeps_keys: bool,
}

impl Rows {
    /// No rows yet.
    pub(super) fn new(geometry: Geometry, secret: u64) -> Rows {
        Rows {
            geometry,
            secret,
            open: SegmentRows::new(0, secret),
            frozen: VecDeque::new(),
            spare: None,
            tallies: Tallies::default(),
            outliving: Outliving::default(),
            came_back: None,
            catalog: Catalog::new(geometry, 0),
            keeps_keys: true,
        }
    }

    /// The rows of a ledger whose first segments are sealed.
    pub(super) fn restored(geometry: Geometry, secret: u64, tallies: Tallies, catalog: Catalog) -> Rows {
        let open = SegmentRows::new(catalog.end(), secret);
        let outliving = Outliving::default();
        Rows {
            geometry,
            secret,
            open,
            frozen: VecDeque::new(),
            spare: None,
            tallies,
            outliving,
            came_back: None,
            catalog,
            keeps_keys: true,
        }
    }

    /// What is sealed.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// From now on no keys are kept.
    pub(super) fn forget_keys(&mut self) {
        self.keeps_keys = false;
    }

    pub(super) fn set_cache_bytes(&mut self, bytes: u64) {
        self.catalog.set_cache_bytes(bytes);
    }

    pub(super) fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Goes on from what is left of rows that are all gone.
    pub(super) fn inherit(&mut self, tallies: Tallies) {
        self.tallies = tallies;
    }

    /// The segment of the last record.
    pub fn segment(&self) -> u64 {
        self.open.number
    }

    /// Ends the segment: what comes next is another one's.
    pub(super) fn freeze(&mut self) {
        self.open.index_event_keys();
        let number = self.open.number + 1;
        let next = match self.spare.take() {
            Some(mut spare) => {
                spare.number = number;
                spare
            }
            None => SegmentRows::new(number, self.secret),
        };
        self.frozen.push_back(Arc::new(std::mem::replace(&mut self.open, next)));
    }

    /// Segments that are full and not sealed yet, the oldest first.
    pub fn frozen(&self) -> &VecDeque<Arc<SegmentRows>> {
        &self.frozen
    }

    /// The oldest segment that was full is sealed: memory keeps its summary. Returns what memory had.
    pub fn sealed(&mut self, sealed: sealed::Sealed) -> Option<Arc<SegmentRows>> {
        let first = self.frozen.pop_front();
        debug_assert_eq!(first.as_ref().map(|rows| rows.number), Some(sealed.summary.segment));
        self.catalog.add(sealed);
        first
    }

    /// Takes the memory of a segment for the next one.
    pub fn reuse(&mut self, cleared: SegmentRows) {
        self.spare = Some(cleared);
    }

    /// Segments in memory, the newest first.
    fn memory(&self) -> impl DoubleEndedIterator<Item = &SegmentRows> {
        self.frozen.iter().map(Arc::as_ref).chain(std::iter::once(&self.open)).rev()
    }

    /// The segment that a log offset lies in.
    pub fn segment_of(&self, log_offset: u64) -> u64 {
        self.geometry.segment_of(log_offset)
    }

    /// Keeps what a key's operation did; `effect` is the row's index for a claim.
    #[inline(always)]
    pub(super) fn keep_key(&mut self, id: KeyId, kept: Kept, log_offset: u64) {
        if !self.keeps_keys {
            return;
        }
        let offset = (log_offset - self.geometry.segment_start(self.open.number)) as u32;
        self.open.keep_key(id, kept, offset, self.secret);
    }

    /// Begins to fetch what is looked at for an idempotency key that is about to be used.
    pub fn prefetch_key(&self, key: u128) {
        self.open.prefetch_key(key);
    }

    pub(super) fn open_mut(&mut self) -> &mut SegmentRows {
        &mut self.open
    }

    /// How many idempotency keys are in memory.
    pub(super) fn key_count(&self) -> u64 {
        self.memory().map(SegmentRows::key_count).sum()
    }

    /// How many rows there are.
    pub fn count(&self) -> u64 {
        self.tallies.count()
    }

    /// How many of them are in memory.
    pub fn count_in_memory(&self) -> u64 {
        self.memory().map(|segment| segment.slots().count() as u64).sum()
    }

    /// How many a corpus has.
    pub fn count_of(&self, prefix: Prefix) -> u64 {
        self.tallies.count_of(prefix)
    }

    /// The last id that a corpus was given.
    pub fn last_id(&self, prefix: Prefix) -> Option<EventId> {
        self.tallies.last_id(prefix)
    }

    /// The slot number of a corpus's next claim in `quarter`.
    pub fn next_sequence(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        self.tallies.next_sequence(prefix, quarter)
    }

    /// Rows of a corpus and quarter beyond its slots.
    pub fn over_budget(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        self.tallies.over_budget(prefix, quarter)
    }

    /// Takes slots up to `sequence` out of what is to be given: a repair gave up the rows that had them.
    pub(super) fn raise(&mut self, prefix: Prefix, quarter: Quarter, sequence: u64) -> Result<(), String> {
        if sequence > COUNT_MAX {
            return Err(format!("slot {sequence} of prefix {prefix} is beyond what any log can give"));
        }
        if sequence + 1 < self.next_sequence(prefix, quarter) {
            return Err(format!("slot {sequence} of prefix {prefix} is below what was given"));
        }
        self.tallies.raise(prefix, quarter, sequence);
        Ok(())
    }

    /// Takes a claim in. The error says which rule it breaks.
    #[inline(always)]
    pub(super) fn add(&mut self, claim: Claimed, quarter: Quarter) -> Result<u64, String> {
        let prefix = claim.event_id.prefix();
        if self.next_sequence(prefix, quarter) != claim.claim_sequence {
            return Err(format!("claim_sequence {} of {} is out of turn", claim.claim_sequence, claim.event_id));
        }
        if self.last_id(prefix).is_some_and(|last| last >= claim.event_id) {
            return Err(format!("event-id {} does not follow the corpus's last one", claim.event_id));
        }
        self.tallies.claimed(claim.event_id, quarter, claim.claim_sequence, claim.over_budget);
        Ok(self.open.add(claim, quarter, self.keeps_keys))
    }

    /// Whether memory has anything of a key, whatever the item.
    pub(super) fn has_key(&self, id: KeyId) -> bool {
        self.memory().any(|segment| segment.has_key(id))
    }

    /// What a key's operation did, as far as memory has it.
    pub(super) fn done(&self, id: KeyId) -> Option<(Kept, Effect)> {
        self.memory().find_map(|segment| segment.done(id))
    }

    /// A row by its id.
    pub fn get(&self, event_id: EventId) -> Fetch<Option<Found>> {
        Ok(self.get_with_claim(event_id)?.map(|(found, _)| found))
    }

    /// The same, with its claim's record if that was read for it.
    pub fn get_with_claim(&self, event_id: EventId) -> Fetch<Option<(Found, Option<sealed::Record>)>> {
        let near = self.memory().find_map(|segment| segment.claimed(event_id));
        let carried = self.outliving.carried.get(&event_id).map(|carried| carried.claimed);
        match near.or_else(|| carried.map(|claimed| (claimed, Quarter::of(claimed.claim_timestamp_us)))) {
            Some(claimed) => Ok(Some((self.found(claimed)?, None))),
            None => match self.catalog.claim(event_id)? {
                Some(record) => {
                    let found = self.found(self.claimed(record.log_offset, record.raw())?)?;
                    Ok(Some((found, Some(record))))
                }
                None => Ok(None),
            },
        }
    }

    /// A claim and its quarter, from its record.
    fn claimed(&self, log_offset: u64, raw: RawRecord<'_>) -> Fetch<(Claimed, Quarter)> {
        let damaged = || Unread::Damaged(format!("the record at log offset {log_offset} is no claim"));
        let claim = claim_facts(raw.kind, raw.body).ok_or_else(damaged)?;
        let claim_timestamp_us = claim.timestamp_us;
        let claimed = Claimed {
            event_id: claim.event_id,
            claim_timestamp_us,
            claim_sequence: claim.claim_sequence,
            occurred_at_us: claim.occurred_at_us,
            key_hash: xxh3_64_with_seed(claim.event_key, self.secret),
            over_budget: claim.over_budget,
            incident_active: claim.incident_active,
            claim_at: log_offset,
            position: raw.position,
        };
        Ok((claimed, Quarter::of(claim_timestamp_us)))
    }

    fn found(&self, (claim, quarter): (Claimed, Quarter)) -> Fetch<Found> {
        let change = self.newest_change(claim.event_id, claim.claim_at)?;
        let change = change.as_ref().map(|(_, change)| change.as_ref());
        Ok(Found {
            event_id: claim.event_id,
            claim_timestamp_us: claim.claim_timestamp_us,
            claim_sequence: claim.claim_sequence,
            quarter,
            occurred_at_us: claim.occurred_at_us,
            key_hash: claim.key_hash,
            over_budget: claim.over_budget,
            incident_active: claim.incident_active,
            claim_at: claim.claim_at,
            state: change.map_or(RowState::Registered, |c| c.state),
            canonical_id: change.and_then(|c| c.canonical_id),
            dispute: change.and_then(|c| c.dispute).map(|(dispute, _)| dispute),
            tombstone: change.and_then(|c| c.tombstone).map(|tombstone| self.told_at(tombstone, claim.claim_at)),
            reactivated_at_us: change.and_then(|c| c.reactivated_at_us),
            references: change.map_or(0, |c| c.references),
            position: change.map_or(0, |c| c.position).max(claim.position),
        })
    }

    /// Takes the last rows in among the event keys. It changes nothing that can be seen, but how long it takes to see it.
    pub fn index_event_keys(&mut self) {
        self.open.index_event_keys();
    }

    /// Rows of other corpora here that are aliases of a corpus's rows.
    pub fn aliases_of_corpus(&self, prefix: Prefix) -> u64 {
        self.tallies.aliases_of_corpus(prefix)
    }

    /// Names the event keys in memory whose hash is in a range, once for each segment, with the corpora of their rows, the times
    /// of the claims and whether an incident was on. All rows were taken in among the event keys.
    pub fn keys_in_memory(
        &self,
        range: RangeInclusive<u64>,
        mut each: impl FnMut(u64, &mut dyn Iterator<Item = (Prefix, i64, bool)>),
    ) {
        for segment in self.memory() {
            for (hash, slots) in segment.event_keys_between(range.clone()) {
                let row =
                    |slot: &segment::Slot| (slot.event_id().prefix(), slot.claim_timestamp_us, slot.incident_active());
                each(hash, &mut slots.map(row));
            }
        }
    }

    /// Counts the rows in memory with each of these hashes of event keys, which are sorted, and those that are only there because
    /// they were logged again. None is counted much further than to `most`.
    pub fn count_in_memory_by_key(&self, hashes: &[u64], most: usize, counts: &mut [u32]) {
        self.memory().for_each(|segment| segment.count_event_keys(hashes, most, counts));
        for hash in self.only_carried().map(|row| row.claimed.key_hash) {
            if let Ok(index) = hashes.binary_search(&hash) {
                counts[index] = counts[index].saturating_add(1);
            }
        }
    }

    /// The rows in memory with an event key, and those that are only there because they were logged again.
    pub fn in_memory_with_key(&self, key_hash: u64, limit: usize) -> Fetch<Vec<Found>> {
        let near = self.memory().flat_map(|segment| segment.with_event_key(key_hash));
        let carried = self.only_carried().filter(|row| row.claimed.key_hash == key_hash);
        let carried = carried.map(|row| (row.claimed, Quarter::of(row.claimed.claim_timestamp_us)));
        sealed::all(near.chain(carried).take(limit).map(|claim| self.found(claim)))
    }

    /// The row that was claimed at a log offset in a sealed segment; none where that is dropped.
    pub fn claimed_at(&self, log_offset: u64) -> Fetch<Option<Found>> {
        if self.segment_of(log_offset) < self.catalog.first() {
            return Ok(None);
        }
        let record = self.catalog.record_at(log_offset)?;
        self.found(self.claimed(log_offset, record.raw())?).map(Some)
    }

    /// Rows of a corpus by quarter and lifecycle, in the order of [`Lifecycle::LOGGED`](crate::row::Lifecycle::LOGGED).
    pub fn totals(&self, prefix: Prefix) -> Vec<(Quarter, [u64; 4])> {
        self.tallies.totals(prefix)
    }
}
