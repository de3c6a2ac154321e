//! What memory keeps of a sealed segment, and how its index is made: from the segment's rows, keys and changes to pages and a
//! summary of them.

use super::run::{self, HashEntry, KeyEntry, RunEntry};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::time::Quarter;
use serde::{Deserialize, Serialize};

/// Rows of a corpus are named in the index once in so many bytes of log: what lies between is read.
pub const ROWS_EVERY_BYTES: u64 = 4 << 10;
/// Batches' starts are named once in so many bytes of log.
pub const STARTS_EVERY_BYTES: u64 = 256 << 10;
/// Bits of a filter for each row that changed: one in a hundred looks for a row in vain.
const FILTER_BITS_PER_KEY: usize = 10;
const FILTER_PROBES: u64 = 6;
/// Longest filter; a segment in which more changed answers more often in vain.
const FILTER_BYTES_MAX: usize = 64 << 10;
/// Spans of idempotency keys' own time that a summary tells apart.
const KEY_SPANS_MAX: usize = 64;
/// Keys whose times lie within this of each other are one span.
const KEY_SPAN_GAP_MS: u64 = 1_000;

/// Pages of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunPlace {
    /// The first page.
    pub first: u32,
    /// How many.
    pub pages: u32,
    /// Entries, or bytes.
    pub entries: u64,
}

/// A run by key, with the first key of each of its pages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FencedRun {
    /// Where it is.
    pub place: RunPlace,
    /// The first key of each page.
    pub fences: Vec<u128>,
}

/// A corpus's rows in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusSpan {
    /// Its prefix.
    pub prefix: u16,
    /// The first row.
    pub first: EventId,
    /// The last row.
    pub last: EventId,
    /// How many.
    pub rows: u64,
    /// When the first and the last were claimed.
    pub claimed_us: (i64, i64),
}

/// Rows of a corpus and quarter in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarterRows {
    /// The corpus's prefix.
    pub prefix: u16,
    /// The quarter of the claims.
    pub quarter: Quarter,
    /// How many.
    pub rows: u64,
}

/// Where a batch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchStart {
    /// Its number.
    pub number: u64,
    /// Position of its first record.
    pub first_position: u64,
    /// Its log offset.
    pub log_offset: u64,
}

/// Which rows may be in a run: a Bloom filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter(Vec<u8>);

impl Filter {
    fn of(keys: impl ExactSizeIterator<Item = u128>) -> Filter {
        if keys.len() == 0 {
            return Filter::default();
        }
        let bytes = (keys.len() * FILTER_BITS_PER_KEY / 8).next_power_of_two().clamp(8, FILTER_BYTES_MAX);
        let mut filter = Filter(vec![0; bytes]);
        for key in keys {
            for bit in filter.bits(key) {
                filter.0[bit / 8] |= 1 << (bit % 8);
            }
        }
        filter
    }

    fn bits(&self, key: u128) -> impl Iterator<Item = usize> + use<> {
        let bits = self.0.len() as u64 * 8;
        let mixed = ((key >> 64) as u64 ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ key as u64;
        let first = mixed.wrapping_mul(0x94d0_49bb_1331_11eb);
        let (first, step) = (first ^ (first >> 31), first.rotate_left(32) | 1);
        (0..FILTER_PROBES).map(move |probe| (first.wrapping_add(probe.wrapping_mul(step)) % bits) as usize)
    }

    /// Whether a key may be there; false is certain.
    pub fn may_have(&self, key: u128) -> bool {
        !self.0.is_empty() && self.bits(key).all(|bit| self.0[bit / 8] & 1 << (bit % 8) != 0)
    }
}

/// What memory keeps of a sealed segment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Which segment.
    pub segment: u64,
    /// Positions of its first and its last record; the first is greater where it has none.
    pub positions: (u64, u64),
    /// Times of its first and its last record.
    pub times_us: (i64, i64),
    /// Bytes of it that batches take, from its start.
    pub bytes: u64,
    /// Its corpora, by prefix.
    pub corpora: Vec<CorpusSpan>,
    /// Its rows by corpus and quarter.
    pub quarters: Vec<QuarterRows>,
    /// Spans of the own times of its idempotency keys, in milliseconds, in order; they don't touch.
    pub key_spans: Vec<(u64, u64)>,
    /// Batches' starts.
    pub starts: Vec<BatchStart>,
    /// Rows, once in [`ROWS_EVERY_BYTES`] for each corpus.
    pub rows: FencedRun,
    /// What changed: rows and what else is named by a row's id.
    pub changes: FencedRun,
    /// Which rows those are.
    pub filter: Filter,
    /// What `changes` leads to.
    pub heap: RunPlace,
    /// Records by the hash of their idempotency key.
    pub keys: RunPlace,
    /// Claims by the hash of their event key.
    pub event_keys: RunPlace,
    /// Records by the hash of their correlation id.
    pub correlations: RunPlace,
}

/// A key that rows of one corpus sort by as their ids do, and all rows of a corpus stand together.
pub fn row_key(id: EventId) -> u128 {
    u128::from(id.prefix().get()) << 112 | u128::from(id.ms()) << 64 | u128::from(id.tail())
}

/// The row that such a key is of.
pub fn row_of_key(key: u128) -> Option<EventId> {
    Some(EventId::pack((key >> 64) as u64, Prefix::new((key >> 112) as u16)?, key as u64))
}

/// What an index is made of.
#[derive(Debug, Default)]
pub struct IndexInput {
    /// The summary as far as it is known without the index.
    pub summary: Summary,
    /// All rows with their offsets in the segment, in any order.
    pub rows: Vec<(EventId, u32)>,
    /// What changed, encoded; in any order.
    pub changes: Vec<(EventId, Vec<u8>)>,
    /// Hashes of idempotency keys, with the offsets of their records.
    pub keys: Vec<HashEntry>,
    /// The same of event keys.
    pub event_keys: Vec<HashEntry>,
    /// The same of correlation ids.
    pub correlations: Vec<HashEntry>,
    /// Own times of idempotency keys, in milliseconds, in any order; repeated ones may be left out.
    pub key_times_ms: Vec<u64>,
}

/// The index of a segment.
#[derive(Debug)]
pub struct Index {
    /// Its pages.
    pub pages: Vec<u8>,
    /// What memory keeps of it.
    pub summary: Summary,
}

impl IndexInput {
    /// Makes the index: a few milliseconds for a hundred thousand rows.
    pub fn build(mut self) -> Index {
        let mut pages = Vec::new();
        let mut summary = std::mem::take(&mut self.summary);
        let segment = summary.segment;
        let mut rows: Vec<_> =
            self.rows.iter().map(|(id, offset)| KeyEntry { key: row_key(*id), offset: *offset, length: 0 }).collect();
        rows.sort_unstable();
        let mut last = None;
        rows.retain(|row| {
            let is_near = |(prefix, offset): (u128, u32)| {
                prefix == row.key >> 112 && u64::from(row.offset - offset) < ROWS_EVERY_BYTES
            };
            let is_named = !last.is_some_and(is_near);
            if is_named {
                last = Some((row.key >> 112, row.offset));
            }
            is_named
        });
        summary.rows = fenced(&mut pages, segment, &rows);
        self.changes.sort_unstable_by_key(|(id, _)| row_key(*id));
        let mut heap = Vec::new();
        let mut changes = Vec::with_capacity(self.changes.len());
        for (id, encoded) in &self.changes {
            changes.push(KeyEntry { key: row_key(*id), offset: heap.len() as u32, length: encoded.len() as u32 });
            heap.extend_from_slice(encoded);
        }
        summary.filter = Filter::of(changes.iter().map(|change| change.key));
        summary.changes = fenced(&mut pages, segment, &changes);
        let first = page_count(&pages);
        let count = run::append_bytes(&mut pages, segment, &heap);
        summary.heap = RunPlace { first, pages: count, entries: heap.len() as u64 };
        summary.keys = by_hash(&mut pages, segment, &mut self.keys);
        summary.event_keys = by_hash(&mut pages, segment, &mut self.event_keys);
        summary.correlations = by_hash(&mut pages, segment, &mut self.correlations);
        summary.key_spans = spans(self.key_times_ms);
        Index { pages, summary }
    }
}

fn page_count(pages: &[u8]) -> u32 {
    (pages.len() as u64 / crate::log::layout::BLOCK_BYTES) as u32
}

fn fenced(pages: &mut Vec<u8>, segment: u64, entries: &[KeyEntry]) -> FencedRun {
    let first = page_count(pages);
    let count = run::append(pages, segment, entries);
    let fences = entries.chunks(run::per_page::<KeyEntry>()).map(|chunk| chunk[0].key).collect();
    FencedRun { place: RunPlace { first, pages: count, entries: entries.len() as u64 }, fences }
}

fn by_hash(pages: &mut Vec<u8>, segment: u64, entries: &mut [HashEntry]) -> RunPlace {
    entries.sort_unstable();
    let first = page_count(pages);
    let count = run::append(pages, segment, entries);
    RunPlace { first, pages: count, entries: entries.len() as u64 }
}

/// The spans that moments cover; the widest gaps part them.
fn spans(mut times_ms: Vec<u64>) -> Vec<(u64, u64)> {
    times_ms.sort_unstable();
    times_ms.dedup();
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for at in times_ms {
        match spans.last_mut() {
            Some((_, end)) if at - *end <= KEY_SPAN_GAP_MS => *end = at,
            _ => spans.push((at, at)),
        }
    }
    while spans.len() > KEY_SPANS_MAX {
        let narrowest = (1..spans.len()).min_by_key(|i| spans[*i].0 - spans[*i - 1].1);
        let Some(next) = narrowest else { break };
        spans[next - 1].1 = spans[next].1;
        spans.remove(next);
    }
    spans
}

impl Summary {
    /// Whether a key of this own time may be among those of the segment.
    pub fn may_have_key_of(&self, ms: u64) -> bool {
        let after = self.key_spans.partition_point(|(first, _)| *first <= ms);
        after.checked_sub(1).is_some_and(|at| ms <= self.key_spans[at].1)
    }

    /// Bytes that the index takes on disk.
    pub fn index_bytes(&self) -> u64 {
        let runs = [self.rows.place, self.changes.place, self.heap, self.keys, self.event_keys, self.correlations];
        runs.iter().map(|run| u64::from(run.pages)).sum::<u64>() * crate::log::layout::BLOCK_BYTES
    }

    /// The page on which a run by key has the greatest key that is not greater than this one.
    pub(super) fn page_of(run: &FencedRun, key: u128) -> Option<u32> {
        let after = run.fences.partition_point(|fence| *fence <= key);
        after.checked_sub(1).map(|page| run.place.first + page as u32)
    }
}

/// Entries of a run by hash on one page.
pub(super) const HASHES_PER_PAGE: u64 = run::per_page::<HashEntry>() as u64;
const _: () = assert!(HASHES_PER_PAGE == 339 && <KeyEntry as RunEntry>::BYTES == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_bounded_and_cover_every_moment() {
        let mut times: Vec<u64> = (0..100).map(|n| n * 10_000 + n * n).collect();
        times.extend(500_000..500_900);
        let spans = spans(times.clone());
        assert_eq!(spans.len(), KEY_SPANS_MAX);
        let summary = Summary { key_spans: spans, ..Summary::default() };
        assert!(times.iter().all(|at| summary.may_have_key_of(*at)));
        assert!(!summary.may_have_key_of(2_000_000) && !summary.may_have_key_of(995_000));
    }

    #[test]
    fn a_filter_has_what_was_put_in_and_little_else() {
        let key = |n: u128| n << 64 | n.wrapping_mul(0x1234_5678_9abc_def1) >> 6;
        let filter = Filter::of((0..10_000u32).map(|n| key(n.into())));
        assert!((0..10_000).all(|n| filter.may_have(key(n))));
        let false_ones = (10_000..110_000).filter(|n| filter.may_have(key(*n))).count();
        assert!(false_ones < 3_000, "{false_ones} of 100,000");
        assert!(!Filter::default().may_have(7));
    }
}
