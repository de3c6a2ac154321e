//! The rows of a shard: what their entries add up to, wherever it is kept. Rows of segments that are not sealed yet are in
//! memory, and so is what changed in those; all others are in sealed segments on disk. What a row holds besides is read from
//! the log.
//!
//! What a segment says of a row that changed in it is complete: the newest one counts, and leads back to the one before.

pub mod event_keys;
mod segment;
mod tallies;

pub use segment::{IndexJob, SegmentRows, correlation_hash};
pub use tallies::Tallies;

use super::Effect;
use super::keys::{Kept, KeyId};
use crate::corpus::Prefix;
use crate::dispute::{DisputeId, Verdict};
use crate::id::EventId;
use crate::log::entry::{Entry, Record};
use crate::log::layout::Geometry;
use crate::log::record::RawRecord;
use crate::row::{Becomes, Lifecycle, ReasonCode, RowOperation, RowState, Tombstone, transition};
use crate::sealed::summary::row_key;
use crate::sealed::{self, Catalog, Fetch, Unread};
use crate::time::Quarter;
use hashbrown::HashSet;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a sealed segment's log that a page of a scan looks at, about.
const SCAN_BYTES: u64 = 1 << 20;

/// A claim as the index takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// What the entries after its claim made of a row, up to the end of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    state: RowState,
    canonical_id: Option<EventId>,
    /// The dispute that has it, and what it was before.
    dispute: Option<(DisputeId, RowState)>,
    tombstone: Option<Tombstone>,
    reactivated_at_us: Option<i64>,
    /// Position of the last transition.
    position: u64,
    references: u32,
    /// Log offsets of the entries after the claim, in this segment.
    entries_at: Vec<u64>,
    /// Entries after the claim in segments before this one, and the last of those segments that has any.
    entries_before: u64,
    segment_before: Option<u64>,
}

impl Default for Change {
    fn default() -> Change {
        Change {
            state: RowState::Registered,
            canonical_id: None,
            dispute: None,
            tombstone: None,
            reactivated_at_us: None,
            position: 0,
            references: 0,
            entries_at: Vec::new(),
            entries_before: 0,
            segment_before: None,
        }
    }
}

/// What a segment's records say about a row, beside its claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Noted {
    /// What became of it.
    change: Option<Change>,
    /// Rows that were said to refer to it, wherever they live. Some may have been settled otherwise since.
    aliases: Vec<EventId>,
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

/// What else an entry does to a row, beside its transition.
#[derive(Debug, Clone, Copy)]
pub(super) enum With {
    /// Nothing.
    Nothing,
    /// Retraction.
    Reason(ReasonCode),
    /// The row that stands for the event.
    Canonical(EventId),
    /// The dispute that takes it.
    Dispute(DisputeId),
}

/// An entry as it concerns a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Happened {
    pub at_us: i64,
    pub log_offset: u64,
    pub position: u64,
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
    catalog: Catalog,
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
            catalog: Catalog::new(geometry, 0),
        }
    }

    /// The rows of a ledger whose first segments are sealed.
    pub(super) fn restored(geometry: Geometry, secret: u64, tallies: Tallies, catalog: Catalog) -> Rows {
        let open = SegmentRows::new(catalog.end(), secret);
        Rows { geometry, secret, open, frozen: VecDeque::new(), spare: None, tallies, catalog }
    }

    /// What is sealed.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(super) fn set_cache_bytes(&mut self, bytes: u64) {
        self.catalog.set_cache_bytes(bytes);
    }

    pub(super) fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// The segment of the last record.
    pub(super) fn segment(&self) -> u64 {
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
    pub(super) fn segment_of(&self, log_offset: u64) -> u64 {
        self.geometry.segment_of(log_offset)
    }

    /// Keeps what a key's operation did; `effect` is the row's index for a claim.
    pub(super) fn keep_key(&mut self, id: KeyId, kept: Kept, log_offset: u64) {
        let offset = (log_offset - self.geometry.segment_start(self.open.number)) as u32;
        self.open.keep_key(id, kept, offset, self.secret);
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
        if sequence + 1 < self.next_sequence(prefix, quarter) {
            return Err(format!("slot {sequence} of prefix {prefix} is below what was given"));
        }
        self.tallies.raise(prefix, quarter, sequence);
        Ok(())
    }

    /// Takes a claim in. The error says which rule it breaks.
    pub(super) fn add(&mut self, claim: Claimed, quarter: Quarter) -> Result<u64, String> {
        let prefix = claim.event_id.prefix();
        if self.next_sequence(prefix, quarter) != claim.claim_sequence {
            return Err(format!("claim_sequence {} of {} is out of turn", claim.claim_sequence, claim.event_id));
        }
        if self.last_id(prefix).is_some_and(|last| last >= claim.event_id) {
            return Err(format!("event-id {} does not follow the corpus's last one", claim.event_id));
        }
        self.tallies.claimed(claim.event_id, quarter, claim.claim_sequence, claim.over_budget);
        Ok(self.open.add(claim, quarter))
    }

    /// What a key's operation did, as far as memory has it.
    pub(super) fn done(&self, id: KeyId) -> Option<(Kept, Effect)> {
        self.memory().find_map(|segment| segment.done(id))
    }

    /// A row by its id.
    pub fn get(&self, event_id: EventId) -> Fetch<Option<Found>> {
        let near = self.memory().find_map(|segment| segment.claimed(event_id));
        match near {
            Some(claimed) => self.found(claimed).map(Some),
            None => match self.catalog.claim(event_id)? {
                Some(record) => self.found(self.claimed(record.log_offset, record.raw())?).map(Some),
                None => Ok(None),
            },
        }
    }

    /// A claim and its quarter, from its record.
    fn claimed(&self, log_offset: u64, raw: RawRecord<'_>) -> Fetch<(Claimed, Quarter)> {
        let damaged = || Unread::Damaged(format!("the record at log offset {log_offset} is no claim"));
        let decoded = Record::decode(raw.kind, raw.body).map_err(|_| damaged())?;
        let Entry::Claim(claim) = decoded.entry else { return Err(damaged()) };
        let claim_timestamp_us = decoded.meta.timestamp_us;
        let claimed = Claimed {
            event_id: claim.event_id,
            claim_timestamp_us,
            claim_sequence: claim.claim_sequence,
            occurred_at_us: claim.occurred_at_us,
            key_hash: xxh3_64_with_seed(claim.event_key.as_bytes(), self.secret),
            over_budget: claim.over_budget,
            incident_active: claim.incident_active,
            claim_at: log_offset,
            position: raw.position,
        };
        Ok((claimed, Quarter::of(claim_timestamp_us)))
    }

    /// The newest change of a row that was claimed at a log offset, with the segment that has it; nothing before the row's own
    /// segment is looked at.
    fn newest_change(&self, event_id: EventId, claim_at: u64) -> Fetch<Option<(u64, Cow<'_, Change>)>> {
        for segment in self.memory() {
            if let Some(change) = segment.change(event_id) {
                return Ok(Some((segment.number, Cow::Borrowed(change))));
            }
        }
        for found in self.catalog.changes_of(event_id, self.segment_of(claim_at)) {
            let (segment, bytes) = found?;
            if let Some(change) = decode_noted(segment, &bytes)?.change {
                return Ok(Some((segment, Cow::Owned(change))));
            }
        }
        Ok(None)
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
            tombstone: change.and_then(|c| c.tombstone),
            reactivated_at_us: change.and_then(|c| c.reactivated_at_us),
            references: change.map_or(0, |c| c.references),
            position: change.map_or(0, |c| c.position).max(claim.position),
        })
    }

    /// Claims with an event key, the last first, from a log offset back and since a moment, at most `limit` of them.
    fn claims_with_key(&self, key_hash: u64, from: u64, since_us: i64, limit: usize) -> Fetch<Vec<(Claimed, Quarter)>> {
        let takes = |claim: &(Claimed, Quarter)| claim.0.claim_at <= from && claim.0.claim_timestamp_us >= since_us;
        let near = self.memory().flat_map(|segment| segment.with_event_key(key_hash));
        let mut claims: Vec<_> = near.filter(takes).take(limit).collect();
        if claims.len() == limit {
            return Ok(claims);
        }
        let is_before = |sealed: &&sealed::Sealed| self.geometry.segment_start(sealed.summary.segment) <= from;
        let sealed = self.catalog.segments().iter().rev().filter(is_before).take_while(|sealed| {
            // A segment without records has no time of its own.
            sealed.summary.times_us.1 >= since_us || sealed.summary.positions.0 > sealed.summary.positions.1
        });
        let places = sealed::all(sealed.map(|sealed| self.catalog.with_event_key(sealed.summary.segment, key_hash)))?;
        let places = places.into_iter().flat_map(|places| places.into_iter().rev()).filter(|at| *at <= from);
        let far = sealed::all(places.take(limit - claims.len()).map(|at| {
            let record = self.catalog.record_at(at)?;
            self.claimed(at, record.raw())
        }))?;
        claims.extend(far.into_iter().filter(takes));
        Ok(claims)
    }

    /// Rows with an event key, the last claimed first, from a log offset back, at most `limit` of them; and the log offset of
    /// the next one.
    pub fn find(&self, key_hash: u64, from: Option<u64>, limit: usize) -> Fetch<(Vec<Found>, Option<u64>)> {
        let mut claims = self.claims_with_key(key_hash, from.unwrap_or(u64::MAX), i64::MIN, limit + 1)?;
        let next = claims.get(limit).map(|(claim, _)| claim.claim_at);
        claims.truncate(limit);
        Ok((self.all_found(claims)?, next))
    }

    /// Rows with an event key that were claimed since a moment, the last claimed first, at most `limit` of them.
    pub fn with_key(&self, key_hash: u64, since_us: i64, limit: usize) -> Fetch<Vec<Found>> {
        self.all_found(self.claims_with_key(key_hash, u64::MAX, since_us, limit)?)
    }

    fn all_found(&self, claims: Vec<(Claimed, Quarter)>) -> Fetch<Vec<Found>> {
        sealed::all(claims.into_iter().map(|claim| self.found(claim)))
    }

    /// Takes the last rows in among the event keys. It changes nothing that can be seen, but how long it takes to see it.
    pub fn index_event_keys(&mut self) {
        self.open.index_event_keys();
    }

    /// Log offsets of a row's entries, oldest first, from the `skip`th on, and whether there are more than `limit`.
    pub fn history(&self, found: &Found, skip: usize, limit: usize) -> Fetch<(Vec<u64>, bool)> {
        // From the newest change back to the one that has the first entry of the page. The claim is entry 0.
        let mut parts: Vec<Vec<u64>> = Vec::new();
        let mut first = 1;
        let mut next = self.newest_change(found.event_id, found.claim_at)?.map(|(_, change)| change.into_owned());
        while let Some(Change { entries_at, entries_before, segment_before, .. }) = next.take() {
            parts.push(entries_at);
            first = 1 + entries_before as usize;
            if first <= skip {
                break;
            }
            if let Some(segment) = segment_before {
                next = self.change_in(segment, found.event_id)?;
            }
        }
        let claim_at = (skip == 0).then_some(found.claim_at);
        let later = parts.into_iter().rev().flatten().skip(skip.saturating_sub(first));
        let mut rest = claim_at.into_iter().chain(later);
        let page = rest.by_ref().take(limit).collect();
        Ok((page, rest.next().is_some()))
    }

    fn change_in(&self, segment: u64, event_id: EventId) -> Fetch<Option<Change>> {
        if let Some(rows) = self.memory().find(|rows| rows.number == segment) {
            return Ok(rows.change(event_id).cloned());
        }
        match self.catalog.change_in(segment, event_id)? {
            Some(bytes) => Ok(decode_noted(segment, &bytes)?.change),
            None => Ok(None),
        }
    }

    /// Log offsets of the entries that carry a correlation id, oldest first, from the `skip`th on, at most `limit`; and
    /// whether there are more. Of an id that only has the same hash there may be entries among them.
    pub fn correlated(&self, correlation_id: u128, skip: usize, limit: usize) -> Fetch<(Vec<u64>, bool)> {
        let hash = correlation_hash(correlation_id, self.secret);
        let sealed = self.catalog.segments().iter();
        let parts = sealed::all(sealed.map(|sealed| self.catalog.correlated(sealed.summary.segment, hash)))?;
        let near = self.memory().rev().flat_map(|segment| segment.correlated(correlation_id).iter().copied());
        let mut rest = parts.into_iter().flatten().chain(near).skip(skip);
        let page = rest.by_ref().take(limit).collect();
        Ok((page, rest.next().is_some()))
    }

    /// Rows of a corpus in id order with claim_timestamp in `[since, until)`, after an id; and whether there are more. A page
    /// may have fewer than `limit` and not be the last, but not none.
    pub fn scan(
        &self,
        prefix: Prefix,
        since_us: Option<i64>,
        until_us: Option<i64>,
        after: Option<EventId>,
        limit: usize,
    ) -> Fetch<(Vec<Found>, bool)> {
        // No id is before its claim's millisecond.
        let first_ms = since_us.map_or(0, |since| (since.max(0) / 1_000) as u64);
        let lowest = EventId::pack(first_ms, prefix, 0);
        let is_after = |id: EventId| after.is_none_or(|after| id > after) && id >= lowest;
        let takes =
            |at_us: i64| since_us.is_none_or(|since| at_us >= since) && until_us.is_none_or(|until| at_us < until);
        let is_over = |at_us: i64| until_us.is_some_and(|until| at_us >= until);
        let mut claims: Vec<(Claimed, Quarter)> = Vec::new();
        for sealed in self.catalog.segments() {
            let Some(span) = sealed.summary.corpora.iter().find(|span| span.prefix == prefix.get()) else { continue };
            if !is_after(span.last) {
                continue;
            }
            if is_over(span.claimed_us.0) {
                return self.page(claims, false);
            }
            // Of an id of another corpus the time alone says where to begin.
            let own = |id: EventId| if id.prefix() == prefix { id } else { EventId::pack(id.ms(), prefix, 0) };
            let from = after.map(own).max(Some(lowest));
            let Some(mut stretch) = self.catalog.rows_after(sealed.summary.segment, prefix.get(), from)? else {
                continue;
            };
            // The rows of the corpus end with this one, whatever is behind.
            let mut is_at_end = false;
            while !is_at_end && stretch.start < stretch.end {
                let end = stretch.end.min(stretch.start + SCAN_BYTES);
                let block = crate::log::layout::BLOCK_BYTES;
                let start = stretch.start / block * block;
                let bytes = self.catalog.stretch(start, end)?;
                let mut error = None;
                let mut is_full = false;
                let next = sealed::claims_between(&bytes, start, stretch.start, |at, raw| {
                    if crate::log::entry::claimed_id(raw.kind, raw.body).is_none_or(|id| id.prefix() != prefix) {
                        return true;
                    }
                    match self.claimed(at, raw) {
                        Ok((claim, quarter)) => {
                            is_at_end |= claim.event_id >= span.last;
                            if is_after(claim.event_id) && takes(claim.claim_timestamp_us) {
                                claims.push((claim, quarter));
                                is_full = claims.len() > limit;
                            }
                            !is_full && !is_at_end
                        }
                        Err(damage) => {
                            error = Some(damage);
                            false
                        }
                    }
                })
                .map_err(Unread::Damaged)?;
                if let Some(error) = error {
                    return Err(error);
                }
                if claims.len() > limit {
                    return self.page(claims.into_iter().take(limit).collect(), true);
                }
                // Every record is shorter than what was looked at.
                stretch.start = if next > stretch.start { next } else { stretch.end };
                if limit < usize::MAX && !claims.is_empty() && !is_at_end {
                    return self.page(claims, true);
                }
            }
        }
        for segment in self.memory().rev() {
            let Some(rows) = segment.of_prefix(prefix.get()) else { continue };
            let first = rows.slots.partition_point(|slot| !is_after(slot.event_id()));
            for index in first..rows.slots.len() {
                let at_us = rows.slots[index].claim_timestamp_us;
                if is_over(at_us) {
                    return self.page(claims, false);
                }
                if takes(at_us) {
                    if claims.len() == limit {
                        return self.page(claims, true);
                    }
                    claims.push(rows.claimed(index));
                }
            }
        }
        self.page(claims, false)
    }

    fn page(&self, claims: Vec<(Claimed, Quarter)>, more: bool) -> Fetch<(Vec<Found>, bool)> {
        Ok((self.all_found(claims)?, more))
    }

    /// Rows that refer to others or are referred to, in the order of [`row_key`], after one.
    pub fn linked_after(&self, after: Option<EventId>, limit: usize) -> Fetch<(Vec<Found>, Option<EventId>)> {
        let after_key = after.map(row_key);
        let mut ids: BTreeMap<u128, EventId> = BTreeMap::new();
        for segment in self.memory() {
            let changed = segment.changed().map(|id| (row_key(id), id));
            ids.extend(changed.filter(|(key, _)| after_key.is_none_or(|after| *key > after)));
        }
        let segments = self.catalog.changed_segments();
        for keys in sealed::all(segments.map(|segment| self.catalog.changed_after(segment, after, limit + 1)))? {
            let id = |key: u128| {
                Some((key, EventId::pack((key >> 64) as u64, Prefix::new((key >> 112) as u16)?, key as u64)))
            };
            ids.extend(keys.into_iter().filter_map(id));
        }
        let more = ids.len() > limit;
        let looked_at: Vec<EventId> = ids.into_values().take(limit).collect();
        let last = looked_at.last().copied().filter(|_| more);
        let found = sealed::all(looked_at.into_iter().map(|id| self.get(id)))?;
        let is_linked = |row: &Found| row.references > 0 || row.state == RowState::Referenced;
        Ok((found.into_iter().flatten().filter(is_linked).collect(), last))
    }

    /// Rows of other corpora here that are aliases of a corpus's rows.
    pub fn aliases_of_corpus(&self, prefix: Prefix) -> u64 {
        self.tallies.aliases_of_corpus(prefix)
    }

    /// Rows that were said to refer to this one.
    pub fn aliases_of(&self, canonical: EventId) -> Fetch<Vec<EventId>> {
        let mut aliases = Vec::new();
        for found in self.catalog.changes_of(canonical, 0) {
            let (segment, bytes) = found?;
            aliases.extend(decode_noted(segment, &bytes)?.aliases);
        }
        for segment in self.memory() {
            aliases.extend(segment.noted(canonical).into_iter().flat_map(|noted| &noted.aliases));
        }
        Ok(aliases)
    }

    /// Records that a row was said to refer to one that may live here.
    pub(super) fn alias_named(&mut self, canonical: EventId, alias: EventId) {
        let aliases = &mut self.open.noted_mut(canonical).aliases;
        if !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }

    /// The segments in memory from one on, each with the number of its first row that is named, and for each row from there on
    /// the corpus, the time of its claim, the hash of its event key, and whether an incident was on. `index` is of the first
    /// segment, if that is in memory.
    #[allow(clippy::type_complexity, reason = "an iterator of iterators over the index as it lies in memory")]
    pub fn keys_in_memory(
        &self,
        segment: u64,
        index: usize,
    ) -> impl Iterator<Item = (u64, usize, impl Iterator<Item = (Prefix, i64, u64, bool)> + '_)> + '_ {
        let segments = self.memory().rev().filter(move |rows| rows.number >= segment);
        segments.map(move |rows| {
            let first = if rows.number == segment { index } else { 0 };
            let slots = rows.slots_from(first);
            let key = |slot: &segment::Slot| {
                (slot.event_id().prefix(), slot.claim_timestamp_us, slot.key_hash, slot.incident_active())
            };
            (rows.number, first, slots.map(key))
        })
    }

    /// Rows of a corpus by quarter and lifecycle, in the order of [`Lifecycle::LOGGED`].
    pub fn totals(&self, prefix: Prefix) -> Vec<(Quarter, [u64; 4])> {
        self.tallies.totals(prefix)
    }

    /// The same, counted anew from the segments.
    pub fn count_totals(&self, prefix: Prefix) -> Fetch<Vec<(Quarter, [u64; 4])>> {
        let mut totals: BTreeMap<Quarter, [u64; 4]> = BTreeMap::new();
        for of_quarter in self.catalog.segments().iter().flat_map(|sealed| &sealed.summary.quarters) {
            if of_quarter.prefix == prefix.get() {
                totals.entry(of_quarter.quarter).or_default()[0] += of_quarter.rows;
            }
        }
        let mut changed: HashSet<EventId> = HashSet::new();
        for segment in self.memory() {
            for (quarter, rows) in segment.of_prefix(prefix.get()).into_iter().flat_map(|rows| rows.quarters()) {
                totals.entry(quarter).or_default()[0] += rows;
            }
            changed.extend(segment.changed().filter(|id| id.prefix() == prefix));
        }
        for segment in self.catalog.changed_segments() {
            let keys = self.catalog.changed_after(segment, None, usize::MAX)?;
            let of_prefix = keys.into_iter().filter(|key| key >> 112 == u128::from(prefix.get()));
            changed.extend(of_prefix.map(|key| EventId::pack((key >> 64) as u64, prefix, key as u64)));
        }
        for row in sealed::all(changed.into_iter().map(|id| self.get(id)))?.into_iter().flatten() {
            let total = totals.entry(row.quarter).or_default();
            total[0] -= 1;
            total[row.state.lifecycle() as usize] += 1;
        }
        Ok(totals.into_iter().filter(|(_, total)| total.iter().sum::<u64>() > 0).collect())
    }

    /// Whether everything that applying to a row takes is at hand.
    pub(super) fn is_at_hand(&self, event_id: EventId) -> Fetch<()> {
        self.get(event_id).map(|_| ())
    }

    /// A row that an entry which is being applied concerns: it was made sure before that it is at hand.
    fn near(&self, event_id: EventId) -> Result<Option<Found>, String> {
        self.get(event_id).map_err(|unread| format!("{event_id}: {unread}"))
    }

    /// What became of a row, to go on from in the open segment.
    fn change_mut(&mut self, row: &Found) -> Result<&mut Change, String> {
        let event_id = row.event_id;
        if self.open.change(event_id).is_none() {
            let before =
                self.newest_change(event_id, row.claim_at).map_err(|unread| format!("{event_id}: {unread}"))?;
            let change = match before {
                None => Change::default(),
                Some((segment, before)) => {
                    let before = before.into_owned();
                    let entries_before = before.entries_before + before.entries_at.len() as u64;
                    Change { entries_at: Vec::new(), entries_before, segment_before: Some(segment), ..before }
                }
            };
            self.open.noted_mut(event_id).change = Some(change);
        }
        Ok(self.open.noted_mut(event_id).change.get_or_insert_default())
    }

    /// Records that a corpus refers to the row.
    pub(super) fn refer(&mut self, event_id: EventId, log_offset: u64) -> Result<(), String> {
        let found = self.near(event_id)?;
        let Some(row) = found.filter(|row| transition(row.state, RowOperation::Reference).is_some()) else {
            return Err(format!("a reference to {event_id}, which is {}", state_name(found)));
        };
        let change = self.change_mut(&row)?;
        change.references += 1;
        change.entries_at.push(log_offset);
        Ok(())
    }

    /// Records an entry that concerns a row and leaves it what it is. A row of another shard has none here.
    pub(super) fn concern(&mut self, event_id: EventId, log_offset: u64) -> Result<(), String> {
        if let Some(row) = self.near(event_id)? {
            self.change_mut(&row)?.entries_at.push(log_offset);
        }
        Ok(())
    }

    /// Does to a row what an operation does. The error says why it does not apply.
    pub(super) fn transit(
        &mut self,
        event_id: EventId,
        operation: RowOperation,
        with: With,
        happened: Happened,
    ) -> Result<(), String> {
        let Some(found) = self.near(event_id)? else {
            return Err(format!("{} of {event_id}, which is not there", operation.name()));
        };
        let Some(becomes) = transition(found.state, operation) else {
            return Err(format!("{} of {event_id}, which is {}", operation.name(), found.state.name()));
        };
        let change = self.change_mut(&found)?;
        let (was, referred_to) = (change.state, change.alias_of());
        change.state = match (becomes, change.dispute) {
            (Becomes::State(state), _) => state,
            (Becomes::WhatItWas, Some((_, before))) => before,
            (Becomes::WhatItWas, None) => return Err(format!("{event_id} was nothing before its dispute")),
        };
        change.position = happened.position;
        change.entries_at.push(happened.log_offset);
        match operation {
            RowOperation::Reactivate => change.reactivated_at_us = Some(happened.at_us),
            RowOperation::Dispute => {}
            // What it refers to is known again when the dispute comes to nothing.
            RowOperation::Void => {}
            _ => change.canonical_id = None,
        }
        let mut reason_code = None;
        match with {
            With::Nothing => {}
            With::Reason(code) => reason_code = Some(code),
            With::Canonical(canonical) => change.canonical_id = Some(canonical),
            With::Dispute(dispute) => change.dispute = Some((dispute, was)),
        }
        if operation != RowOperation::Dispute {
            change.dispute = None;
        }
        change.tombstone = (change.state.lifecycle() == Lifecycle::Tombstoned).then_some(Tombstone {
            at_us: happened.at_us,
            reason_code,
            entry_at: happened.log_offset,
        });
        let (now, refers_to) = (change.state, change.alias_of());
        self.tallies.changed(event_id.prefix(), found.quarter, was, now);
        self.tallies.aliased(referred_to, refers_to);
        Ok(())
    }

    /// Does to a row of a dispute what the verdict says.
    pub(super) fn settle(
        &mut self,
        event_id: EventId,
        verdict: Verdict,
        canonical: Option<EventId>,
        happened: Happened,
    ) -> Result<(), String> {
        let with = match (verdict, canonical) {
            (Verdict::References, Some(canonical)) => With::Canonical(canonical),
            (Verdict::References, None) => return Err(format!("the verdict on {event_id} names no canonical row")),
            _ => With::Nothing,
        };
        self.transit(event_id, verdict.row_operation(), with, happened)
    }
}

impl Change {
    /// The row that an alias refers to.
    fn alias_of(&self) -> Option<EventId> {
        self.canonical_id.filter(|_| self.state == RowState::Referenced)
    }
}

fn decode_noted(segment: u64, bytes: &[u8]) -> Fetch<Noted> {
    postcard::from_bytes(bytes)
        .map_err(|_| Unread::Damaged(format!("the index of segment {segment} holds a change that no build writes")))
}

fn state_name(found: Option<Found>) -> &'static str {
    found.map_or("not there", |found| found.state.name())
}
