//! Sealed segments: what the ledger knows of records that are no longer in memory. Each sealed segment has an index on disk, in
//! batches of the log, and a summary in memory.
//!
//! Reading is synchronous and does no I/O: what it needs it takes from the blocks at hand, and where one is missing it says
//! which ([`Unread::Missing`]). Whoever asked has them read, puts them in, and asks again. Sealed segments never change, so
//! that a block at hand is right whenever it was read; what changed since is in memory, and is looked at in the same moment.

mod cache;
mod read;
pub mod run;
mod seal;
mod stretch;
pub mod summary;
mod walk;

pub use cache::{Block, BlockCache, CACHE_BLOCKS_MIN};
pub use read::{Record, records_in};
pub use seal::{
    Chain, Checkpoint, Resume, Seal, SealError, append_bytes, page_batch, pages_of_none, pages_per_part, read_chain,
    read_index, read_origin, read_seals, seal_batch, sealed_by,
};
pub use stretch::{STRETCH_BYTES_MAX, STRETCHES_MAX, Stretch};
pub use summary::{Index, IndexInput, Summary};
pub use walk::{Cursor, Walk};

use crate::id::EventId;
use crate::log::layout::{BLOCK_BYTES, Geometry};
use crate::log::superblock::Superblock;
use hashbrown::HashMap;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use stretch::Stretches;

/// Why something was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// These blocks of the log are not at hand.
    Missing(Vec<u64>),
    /// These bytes of the log are not at hand in one piece: log offsets of whole blocks.
    Stretch(Range<u64>),
    /// What is there does not verify.
    Damaged(String),
}

/// What was read, or why not.
pub type Fetch<T> = Result<T, Unread>;

impl Unread {
    /// Both: everything that is missing, or else the damage.
    pub fn and(self, other: Unread) -> Unread {
        match (self, other) {
            (Unread::Missing(mut blocks), Unread::Missing(more)) => {
                blocks.extend(more);
                Unread::Missing(blocks)
            }
            (Unread::Damaged(what), _) | (_, Unread::Damaged(what)) => Unread::Damaged(what),
            // What else is missing is said the next time.
            (stretch @ Unread::Stretch(_), _) | (_, stretch @ Unread::Stretch(_)) => stretch,
        }
    }
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unread::Missing(blocks) => write!(f, "{} blocks of the log are not at hand", blocks.len()),
            Unread::Stretch(range) => write!(f, "bytes {} to {} of the log are not at hand", range.start, range.end),
            Unread::Damaged(what) => f.write_str(what),
        }
    }
}

/// Makes one result of many; everything that is missing is named at once.
pub fn all<T>(parts: impl IntoIterator<Item = Fetch<T>>) -> Fetch<Vec<T>> {
    let parts = parts.into_iter();
    let mut read = Vec::with_capacity(parts.size_hint().0);
    let mut unread: Option<Unread> = None;
    for part in parts {
        match part {
            Ok(part) => read.push(part),
            Err(error) => {
                unread = Some(match unread {
                    Some(before) => before.and(error),
                    None => error,
                })
            }
        }
    }
    unread.map_or(Ok(read), Err)
}

/// Blocks that are read for one answer, at most. What it takes at once may be in the least cache; where that is full of other blocks,
/// some are read again.
pub const ANSWER_BLOCKS_MAX: usize = 4 * CACHE_BLOCKS_MIN;

/// Asks until everything that the answer takes is at hand; `read` reads a block at a log offset. An answer that takes more at once
/// than the cache holds would never be there: after [`ANSWER_BLOCKS_MAX`] blocks that is an error.
pub fn ask_until_read<T>(
    catalog: &Catalog,
    ask: impl Fn() -> Fetch<T>,
    read: impl Fn(u64) -> Result<Vec<u8>, String>,
) -> Result<T, String> {
    let mut blocks_read = 0;
    let mut read = |at: u64| {
        blocks_read += 1;
        if blocks_read > ANSWER_BLOCKS_MAX {
            return Err(format!(
                "an answer takes more than {CACHE_BLOCKS_MIN} blocks of the log at once: {ANSWER_BLOCKS_MAX} were read for it, and \
                 log offset {at} is missing. No record of any build leads to so many: restore the ledger from a backup"
            ));
        }
        read(at)
    };
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(Unread::Damaged(what)) => return Err(what),
            Err(Unread::Missing(blocks)) => {
                for at in blocks.into_iter().map(|block| block * BLOCK_BYTES) {
                    catalog.put(at, &read(at)?);
                }
            }
            Err(Unread::Stretch(range)) => {
                let mut bytes = Vec::new();
                for at in range.clone().step_by(BLOCK_BYTES as usize) {
                    bytes.extend(read(at)?);
                }
                catalog.put_stretch(Stretch::new(range.start, bytes));
            }
        }
    }
}

/// A sealed segment: its summary, and where its index lies.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// What memory keeps of it.
    pub summary: Summary,
    /// Log offsets of the parts of the index.
    pub parts: Vec<u64>,
    /// Pages of a part.
    pub pages_per_part: u32,
    /// The seal itself.
    pub checkpoint: Checkpoint,
    /// Where the log goes on behind the segment.
    pub resume: Resume,
}

/// A corpus's rows in a sealed segment.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: EventId,
    last: EventId,
    segment: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Catalog {
    geometry: Geometry,
    /// The first segment of the log.
    first: u64,
    /// By segment, without gaps.
    segments: VecDeque<Sealed>,
    /// By corpus: which segment has which of its rows.
    spans: HashMap<u16, VecDeque<Span>>,
    /// Segments in which anything changed, in order.
    changed: VecDeque<u64>,
    /// Spans of the own times of all sealed idempotency keys, by their beginning, in milliseconds; they don't touch.
    key_spans: BTreeMap<u64, u64>,
    cache: RefCell<BlockCache>,
    stretches: RefCell<Stretches>,
}

impl Catalog {
    /// Of a ledger in which nothing is sealed yet.
    pub fn new(geometry: Geometry, cache_bytes: u64) -> Catalog {
        Catalog {
            geometry,
            first: 0,
            segments: VecDeque::new(),
            spans: HashMap::new(),
            changed: VecDeque::new(),
            key_spans: BTreeMap::new(),
            cache: RefCell::new(BlockCache::new(cache_bytes)),
            stretches: RefCell::default(),
        }
    }

    /// The first segment of the log.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Segments before one are no part of the log any more.
    pub fn drop_before(&mut self, segment: u64) {
        self.first = self.first.max(segment);
        while self.segments.pop_front_if(|sealed| sealed.summary.segment < segment).is_some() {}
        while self.changed.pop_front_if(|changed| *changed < segment).is_some() {}
        self.spans.retain(|_, spans| {
            while spans.pop_front_if(|span| span.segment < segment).is_some() {}
            !spans.is_empty()
        });
    }

    /// Of a ledger as a replay from its log's first segment finds it: nothing is known to be sealed.
    pub fn at_start(superblock: &Superblock) -> Catalog {
        let mut catalog = Catalog::new(superblock.geometry, 0);
        catalog.drop_before(superblock.first_segment());
        catalog
    }

    /// Sealed segments, the oldest first.
    pub fn segments(&self) -> &VecDeque<Sealed> {
        &self.segments
    }

    /// The first segment that is not sealed.
    pub fn end(&self) -> u64 {
        self.segments.back().map_or(self.first, |last| last.summary.segment + 1)
    }

    /// A sealed segment.
    pub fn segment(&self, number: u64) -> Option<&Sealed> {
        let first = self.segments.front()?.summary.segment;
        self.segments.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// Makes the block cache anew, with so many bytes.
    pub fn set_cache_bytes(&mut self, bytes: u64) {
        *self.cache.borrow_mut() = BlockCache::new(bytes);
    }

    /// Nothing is at hand any more.
    #[cfg(test)]
    pub fn forget(&self) {
        *self.cache.borrow_mut() = BlockCache::new(1 << 20);
        *self.stretches.borrow_mut() = Stretches::default();
    }

    /// The block cache's fill, for `status`.
    pub fn cache_blocks(&self) -> (u64, u64) {
        self.cache.borrow().blocks()
    }

    /// The block cache's use, for `status`.
    pub fn cache_hits(&self) -> (u64, u64) {
        self.cache.borrow().hits_and_misses()
    }

    /// Takes a sealed segment in; it follows the last one.
    pub fn add(&mut self, sealed: Sealed) {
        let Summary { segment, corpora, changes, .. } = &sealed.summary;
        debug_assert!(self.segments.is_empty() || self.end() == *segment);
        for span in corpora {
            let (first, last) = (span.first, span.last);
            self.spans.entry(span.prefix).or_default().push_back(Span { first, last, segment: *segment });
        }
        if changes.place.entries > 0 {
            self.changed.push_back(*segment);
        }
        for (first, last) in &sealed.summary.key_spans {
            let (mut from, mut to) = (*first, *last);
            while let Some((start, end)) =
                self.key_spans.range(..=to + 1).next_back().map(|(start, end)| (*start, *end))
                && end + 1 >= from
            {
                self.key_spans.remove(&start);
                (from, to) = (from.min(start), to.max(end));
            }
            self.key_spans.insert(from, to);
        }
        self.segments.push_back(sealed);
    }

    /// The last batch whose start is known from which on reading finds a position.
    pub fn start_for(&self, position: u64) -> Option<summary::BatchStart> {
        let is_before = |start: &&summary::BatchStart| start.first_position <= position;
        let mut segments = self.segments.iter().rev();
        segments.find_map(|sealed| sealed.summary.starts.iter().rev().find(is_before)).copied()
    }

    /// A block, if it is at hand.
    pub fn block(&self, number: u64) -> Option<Block> {
        self.cache.borrow_mut().get(number)
    }

    /// A stretch of the log, if it is at hand in one piece.
    pub fn in_one_piece(&self, range: Range<u64>) -> Fetch<Stretch> {
        self.stretches.borrow().with(&range).ok_or(Unread::Stretch(range))
    }

    /// Takes in a stretch that was read.
    pub fn put_stretch(&self, stretch: Stretch) {
        self.stretches.borrow_mut().put(stretch);
    }

    /// Puts bytes that were read into the cache: whole blocks, from a log offset on.
    pub fn put(&self, log_offset: u64, bytes: &[u8]) {
        let mut cache = self.cache.borrow_mut();
        for (number, block) in (log_offset / BLOCK_BYTES..).zip(bytes.chunks_exact(BLOCK_BYTES as usize)) {
            cache.put(number, Block::from(block));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Blocks that are asked for at once, with others in the cache.
    #[test]
    fn what_fits_the_cache_is_answered_and_more_is_an_error() {
        let block = |at: u64| Ok((at / BLOCK_BYTES).to_le_bytes().repeat(BLOCK_BYTES as usize / 8));
        let most = CACHE_BLOCKS_MIN as u64;
        for (count, is_answered) in [(1, true), (most / 2, true), (most, true), (2 * most, false), (3 * most, false)] {
            for used in [0, most / 3, most] {
                let catalog = Catalog::new(Geometry::DEFAULT, 0);
                // Some of them are those that are asked for.
                for number in (count / 2..).take(used as usize) {
                    catalog.put(number * BLOCK_BYTES, &block(number * BLOCK_BYTES).unwrap());
                    catalog.block(number);
                }
                let together = ask_until_read(&catalog, || catalog.stretch(0, count * BLOCK_BYTES), block);
                assert_eq!(together.is_ok(), is_answered, "{count}, {used}");
                let Ok(bytes) = together else {
                    assert!(together.unwrap_err().contains("restore the ledger"));
                    continue;
                };
                assert!((0..count).all(|n| bytes[(n * BLOCK_BYTES) as usize..].starts_with(&n.to_le_bytes())));
            }
        }
    }

    #[test]
    fn more_stretches_than_are_kept_are_an_error() {
        let catalog = Catalog::new(Geometry::DEFAULT, 0);
        let stretch = |n: u64| n * STRETCH_BYTES_MAX..(n + 1) * STRETCH_BYTES_MAX;
        for (count, is_answered) in [(STRETCHES_MAX as u64, true), (STRETCHES_MAX as u64 + 1, false)] {
            let reads = Cell::new(0);
            let ask = || (0..count).try_for_each(|n| catalog.in_one_piece(stretch(n)).map(|_| ()));
            let answer = ask_until_read(&catalog, ask, |_| {
                reads.set(reads.get() + 1);
                Ok(vec![0; BLOCK_BYTES as usize])
            });
            assert_eq!(answer.is_ok(), is_answered);
            assert!(reads.get() <= ANSWER_BLOCKS_MAX);
        }
    }

    #[test]
    fn the_spans_of_all_keys_are_those_of_each_segment() {
        let mut catalog = Catalog::new(Geometry::DEFAULT, 0);
        let spans = [vec![(10, 20), (40, 50)], vec![(15, 30), (60, 60)], vec![(51, 59)], vec![(5, 9), (100, 200)]];
        for (segment, key_spans) in (0..).zip(&spans) {
            let summary = Summary { segment, key_spans: key_spans.clone(), ..Summary::default() };
            let checkpoint = Checkpoint { log_offset: 4_096, number: 1, hash: [0; 32] };
            let resume = Resume::default();
            catalog.add(Sealed { summary, parts: Vec::new(), pages_per_part: 1, checkpoint, resume });
        }
        for ms in 0..250 {
            let is_there = spans.iter().flatten().any(|(first, last)| (*first..=*last).contains(&ms));
            assert_eq!(catalog.may_have_key_of(ms), is_there, "{ms}");
        }
        assert_eq!(catalog.key_spans.len(), 3, "{:?}", catalog.key_spans);
    }
}
