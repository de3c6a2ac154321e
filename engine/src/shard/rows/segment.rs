//! What memory holds of a segment that is not sealed yet: its rows, what its records changed, its keys.

use super::event_keys::{EventKeys, RowRef};
use super::{Change, Claimed, Noted};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::log::layout::Geometry;
use crate::sealed::run::HashEntry;
use crate::sealed::summary::{BatchStart, CorpusSpan, QuarterRows};
use crate::sealed::{Index, IndexInput, Summary};
use crate::shard::Effect;
use crate::shard::keys::{Kept, KeyId, Keys};
use crate::time::Quarter;
use hashbrown::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A row, 64 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    event_id: EventId,
    pub claim_timestamp_us: i64,
    occurred_at_us: i64,
    claim_at: u64,
    /// The two top bits: over budget, incident active.
    position_and_flags: u64,
    pub key_hash: u64,
    /// The row before it with the same event key, in this segment.
    before: RowRef,
}

/// Rows that may wait to be among the event keys: enough to fetch ahead, few enough to delay nothing.
const UNINDEXED_MAX: usize = 512;
/// How many rows ahead their places are fetched.
const PREFETCH_AHEAD: usize = 16;
const FLAG_OVER_BUDGET: u64 = 1 << 63;
const FLAG_INCIDENT: u64 = 1 << 62;

impl Slot {
    pub fn event_id(&self) -> EventId {
        self.event_id
    }

    fn position(&self) -> u64 {
        self.position_and_flags & !(FLAG_OVER_BUDGET | FLAG_INCIDENT)
    }

    pub fn incident_active(&self) -> bool {
        self.position_and_flags & FLAG_INCIDENT != 0
    }
}

/// The rows of one corpus. Ids, times and positions all increase, so the vector is its own index.
#[derive(Debug, Default)]
pub(super) struct CorpusRows {
    pub slots: Vec<Slot>,
    /// Rows whose slots follow one another without a gap: those of a quarter, and what a repair left of one.
    runs: Vec<Run>,
}

impl CorpusRows {
    fn run_of(&self, index: usize) -> &Run {
        &self.runs[self.runs.partition_point(|run| run.first <= index) - 1]
    }

    /// A row as it was claimed, with its quarter.
    pub fn claimed(&self, index: usize) -> (Claimed, Quarter) {
        let slot = &self.slots[index];
        let run = self.run_of(index);
        let claimed = Claimed {
            event_id: slot.event_id(),
            claim_timestamp_us: slot.claim_timestamp_us,
            claim_sequence: run.slot_before + (index - run.first) as u64 + 1,
            occurred_at_us: slot.occurred_at_us,
            key_hash: slot.key_hash,
            over_budget: slot.position_and_flags & FLAG_OVER_BUDGET != 0,
            incident_active: slot.incident_active(),
            claim_at: slot.claim_at,
            position: slot.position(),
        };
        (claimed, run.quarter)
    }

    /// Rows by quarter.
    pub fn quarters(&self) -> impl Iterator<Item = (Quarter, u64)> + '_ {
        self.runs.iter().enumerate().map(|(i, run)| {
            let end = self.runs.get(i + 1).map_or(self.slots.len(), |next| next.first);
            (run.quarter, (end - run.first) as u64)
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Run {
    quarter: Quarter,
    /// The index of its first row.
    first: usize,
    /// The slot before its first.
    slot_before: u64,
}

/// See the module.
#[derive(Debug)]
pub struct SegmentRows {
    /// Which segment.
    pub number: u64,
    /// Positions of its first record, and of the last one so far; 0 before there is one.
    pub positions: (u64, u64),
    times_us: (i64, i64),
    /// By prefix.
    corpora: Vec<CorpusRows>,
    noted: HashMap<EventId, Noted>,
    event_keys: EventKeys,
    /// Rows that are not among the event keys yet, in the order of their claims. Each goes to a random place of what is larger
    /// than any cache; for many at once the places are fetched while others are filled, which takes a third of the time.
    unindexed: Vec<(u64, RowRef)>,
    /// Log offsets of the entries that carry a correlation id.
    correlated: HashMap<u128, Vec<u64>>,
    effects: Vec<Effect>,
    keys: Keys,
    /// What the index of the segment is to have of the keys.
    key_places: Vec<HashEntry>,
    key_times_ms: Vec<u64>,
}

impl SegmentRows {
    /// A segment of which nothing is known yet.
    pub fn new(number: u64, secret: u64) -> SegmentRows {
        SegmentRows {
            number,
            positions: (0, 0),
            times_us: (0, 0),
            corpora: Vec::new(),
            noted: HashMap::new(),
            event_keys: EventKeys::default(),
            unindexed: Vec::new(),
            correlated: HashMap::new(),
            effects: Vec::new(),
            keys: Keys::new(secret),
            key_places: Vec::new(),
            key_times_ms: Vec::new(),
        }
    }

    /// Forgets everything, and keeps the memory for the next segment.
    pub fn clear(&mut self) {
        self.positions = (0, 0);
        self.times_us = (0, 0);
        for corpus in &mut self.corpora {
            corpus.slots.clear();
            corpus.runs.clear();
        }
        self.noted.clear();
        self.event_keys.clear();
        self.unindexed.clear();
        self.correlated.clear();
        self.effects.clear();
        self.keys.clear();
        self.key_places.clear();
        self.key_times_ms.clear();
    }

    /// A record is applied.
    pub fn record(&mut self, position: u64, at_us: i64) {
        if self.positions.0 == 0 {
            self.positions.0 = position;
            self.times_us.0 = at_us;
        }
        self.positions.1 = position;
        self.times_us.1 = at_us;
    }

    /// Times of its first and its last record.
    pub fn times_us(&self) -> (i64, i64) {
        self.times_us
    }

    pub(super) fn of_prefix(&self, prefix: u16) -> Option<&CorpusRows> {
        self.corpora.get(usize::from(prefix)).filter(|corpus| !corpus.slots.is_empty())
    }

    fn of_prefix_mut(&mut self, prefix: Prefix) -> &mut CorpusRows {
        let index = usize::from(prefix.get());
        if self.corpora.len() <= index {
            self.corpora.resize_with(index + 1, CorpusRows::default);
        }
        &mut self.corpora[index]
    }

    /// Takes a claim in, which follows the corpus's last one; among the event keys only where those are asked for.
    #[inline(always)]
    pub(super) fn add(&mut self, claim: Claimed, quarter: Quarter, by_event_key: bool) -> u64 {
        let prefix = claim.event_id.prefix();
        let rows = self.of_prefix_mut(prefix);
        let index = rows.slots.len();
        let follows = rows.runs.last().is_some_and(|run| {
            run.quarter == quarter && run.slot_before + (index - run.first) as u64 + 1 == claim.claim_sequence
        });
        if !follows {
            rows.runs.push(Run { quarter, first: index, slot_before: claim.claim_sequence - 1 });
        }
        let flags =
            (u64::from(claim.over_budget) * FLAG_OVER_BUDGET) | (u64::from(claim.incident_active) * FLAG_INCIDENT);
        rows.slots.push(Slot {
            event_id: claim.event_id,
            claim_timestamp_us: claim.claim_timestamp_us,
            occurred_at_us: claim.occurred_at_us,
            claim_at: claim.claim_at,
            position_and_flags: claim.position | flags,
            key_hash: claim.key_hash,
            before: RowRef::NONE,
        });
        if by_event_key {
            self.unindexed.push((claim.key_hash, RowRef::new(prefix.get(), index)));
            if self.unindexed.len() >= UNINDEXED_MAX {
                self.index_event_keys();
            }
        }
        index as u64
    }

    /// A row that was claimed in this segment.
    pub(super) fn claimed(&self, event_id: EventId) -> Option<(Claimed, Quarter)> {
        let rows = self.of_prefix(event_id.prefix().get())?;
        let index = rows.slots.binary_search_by(|slot| slot.event_id().cmp(&event_id)).ok()?;
        Some(rows.claimed(index))
    }

    /// Takes the last rows in among the event keys. It changes nothing that can be seen, but how long it takes to see it.
    pub fn index_event_keys(&mut self) {
        for (n, (key_hash, row)) in self.unindexed.iter().enumerate() {
            if let Some((ahead, _)) = self.unindexed.get(n + PREFETCH_AHEAD) {
                self.event_keys.prefetch(*ahead);
            }
            let before = self.event_keys.insert(*key_hash, *row);
            if let Some((prefix, index)) = row.get() {
                self.corpora[usize::from(prefix)].slots[index].before = before;
            }
        }
        self.unindexed.clear();
    }

    /// The rows with an event key, the last claimed first.
    pub(super) fn with_event_key(&self, key_hash: u64) -> impl Iterator<Item = (Claimed, Quarter)> + '_ {
        let recent = self.unindexed.iter().rev().filter(move |(hash, _)| *hash == key_hash);
        let recent = recent.filter_map(|(_, row)| row.get());
        let indexed = self.before(self.event_keys.last(key_hash));
        recent.chain(indexed).map(|(prefix, index)| self.corpora[usize::from(prefix)].claimed(index))
    }

    /// A row and those before it with the same event key.
    fn before(&self, mut next: RowRef) -> impl Iterator<Item = (u16, usize)> + '_ {
        std::iter::from_fn(move || {
            let (prefix, index) = next.get()?;
            next = self.corpora[usize::from(prefix)].slots[index].before;
            Some((prefix, index))
        })
    }

    /// The event keys whose hash is in a range, in no order, with their rows. All rows are among the event keys.
    pub(super) fn event_keys_between(
        &self,
        range: RangeInclusive<u64>,
    ) -> impl Iterator<Item = (u64, impl Iterator<Item = &Slot> + '_)> + '_ {
        debug_assert!(self.unindexed.is_empty());
        let keys = self.event_keys.between(range);
        keys.map(|(hash, last)| {
            (hash, self.before(last).map(|(prefix, index)| &self.corpora[usize::from(prefix)].slots[index]))
        })
    }

    /// Counts the rows with each of these hashes of event keys, which are sorted; none further than to `most`.
    pub(super) fn count_event_keys(&self, hashes: &[u64], most: usize, counts: &mut [u32]) {
        debug_assert!(self.unindexed.is_empty());
        let (Some(first), Some(last)) = (hashes.first(), hashes.last()) else { return };
        let mut count = |index: usize, row: RowRef| {
            counts[index] = counts[index].saturating_add(self.before(row).take(most).count() as u32);
        };
        // What is less is gone over.
        if self.event_keys.count_between(*first..=*last) < hashes.len() {
            for (hash, row) in self.event_keys.between(*first..=*last) {
                if let Ok(index) = hashes.binary_search(&hash) {
                    count(index, row);
                }
            }
        } else {
            hashes.iter().enumerate().for_each(|(index, hash)| count(index, self.event_keys.last(*hash)));
        }
    }

    /// All rows, corpus by corpus.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.corpora.iter().flat_map(|corpus| &corpus.slots)
    }

    /// What the segment's records say about a row.
    pub(super) fn noted(&self, event_id: EventId) -> Option<&Noted> {
        self.noted.get(&event_id)
    }

    pub(super) fn noted_mut(&mut self, event_id: EventId) -> &mut Noted {
        self.noted.entry(event_id).or_default()
    }

    pub(super) fn change(&self, event_id: EventId) -> Option<&Change> {
        self.noted.get(&event_id)?.change.as_ref()
    }

    /// Rows that changed.
    pub(super) fn changed(&self) -> impl Iterator<Item = EventId> + '_ {
        self.noted.iter().filter(|(_, noted)| noted.change.is_some()).map(|(id, _)| *id)
    }

    /// Log offsets of the entries that carry a correlation id.
    pub(super) fn correlated(&self, correlation_id: u128) -> &[u64] {
        self.correlated.get(&correlation_id).map_or(&[], Vec::as_slice)
    }

    /// Records that an entry carries a correlation id.
    pub fn correlate(&mut self, correlation_id: u128, log_offset: u64) {
        self.correlated.entry(correlation_id).or_default().push(log_offset);
    }

    /// Keeps an effect other than a claim's; returns its number.
    pub fn keep_effect(&mut self, effect: Effect) -> u64 {
        self.effects.push(effect);
        self.effects.len() as u64 - 1
    }

    /// Keeps what a key's operation did; `effect` is the row's index for a claim.
    #[inline(always)]
    pub fn keep_key(&mut self, id: KeyId, kept: Kept, offset: u32, secret: u64) {
        self.keys.keep(id, kept);
        self.key_places.push(HashEntry { hash: id.hash(secret), offset });
        if self.key_times_ms.last() != Some(&id.ms()) {
            self.key_times_ms.push(id.ms());
        }
    }

    /// Begins to fetch what is looked at for a key that is about to be used.
    pub fn prefetch_key(&self, key: u128) {
        self.keys.prefetch(key);
    }

    /// How many keys are kept.
    pub fn key_count(&self) -> u64 {
        self.keys.count()
    }

    /// Forgets some of the keys that have left the window.
    pub fn forget_keys_before(&mut self, at_us: i64) {
        self.keys.forget_before(at_us);
    }

    /// Whether a key was used, whatever the item.
    pub(super) fn has_key(&self, id: KeyId) -> bool {
        self.keys.has(id)
    }

    /// What a key's operation did.
    pub(super) fn done(&self, id: KeyId) -> Option<(Kept, Effect)> {
        let kept = self.keys.get(id)?;
        let effect = if kept.is_claim() {
            let rows = self.of_prefix(id.scope())?;
            let (claimed, _) = rows.claimed(kept.effect as usize);
            Effect::Claimed(crate::command::Claimed {
                event_id: claimed.event_id,
                claim_timestamp_us: claimed.claim_timestamp_us,
                claim_sequence: claimed.claim_sequence,
            })
        } else {
            *self.effects.get(kept.effect as usize)?
        };
        Some((kept, effect))
    }

    /// What the index of the segment is made of.
    pub fn index_input(&self, geometry: Geometry, secret: u64, starts: Vec<BatchStart>) -> IndexInput {
        let start = geometry.segment_start(self.number);
        let offset = |log_offset: u64| (log_offset - start) as u32;
        let mut summary = Summary {
            segment: self.number,
            positions: if self.positions.0 == 0 { (1, 0) } else { self.positions },
            times_us: self.times_us,
            bytes: geometry.segment_bytes,
            starts,
            ..Summary::default()
        };
        for (prefix, rows) in self.corpora.iter().enumerate() {
            let (Some(first), Some(last)) = (rows.slots.first(), rows.slots.last()) else { continue };
            let prefix = prefix as u16;
            summary.corpora.push(CorpusSpan {
                prefix,
                first: first.event_id(),
                last: last.event_id(),
                rows: rows.slots.len() as u64,
                claimed_us: (first.claim_timestamp_us, last.claim_timestamp_us),
            });
            let quarters = rows.quarters().filter(|(_, rows)| *rows > 0);
            summary.quarters.extend(quarters.map(|(quarter, rows)| QuarterRows { prefix, quarter, rows }));
        }
        let encoded = |noted: &Noted| postcard::to_stdvec(noted).expect("what is noted of a row is encoded in memory");
        let correlations = self.correlated.iter().flat_map(|(id, places)| {
            let hash = correlation_hash(*id, secret);
            places.iter().map(move |at| HashEntry { hash, offset: offset(*at) })
        });
        IndexInput {
            summary,
            rows: self.slots().map(|slot| (slot.event_id(), offset(slot.claim_at))).collect(),
            changes: self.noted.iter().map(|(id, noted)| (*id, encoded(noted))).collect(),
            keys: self.key_places.clone(),
            event_keys: self
                .slots()
                .map(|slot| HashEntry { hash: slot.key_hash, offset: offset(slot.claim_at) })
                .collect(),
            correlations: correlations.collect(),
            key_times_ms: self.key_times_ms.clone(),
        }
    }
}

/// Making the index of a segment, in whatever thread.
#[derive(Debug)]
pub struct IndexJob {
    /// The segment, which is full.
    pub rows: Arc<SegmentRows>,
    /// Of the log.
    pub geometry: Geometry,
    /// Of the ledger.
    pub secret: u64,
    /// Its batches' starts.
    pub starts: Vec<BatchStart>,
}

impl IndexJob {
    /// Makes it.
    pub fn run(&self) -> Index {
        self.rows.index_input(self.geometry, self.secret, self.starts.clone()).build()
    }
}

/// A hash of a correlation id that nobody outside of this ledger can foresee.
pub fn correlation_hash(correlation_id: u128, secret: u64) -> u64 {
    xxh3_64_with_seed(&correlation_id.to_be_bytes(), secret)
}
