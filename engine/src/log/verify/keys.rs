//! That no idempotency key has had two effects: the keys of all records, by hash. Those of a segment whose index was compared
//! with its records are read from there.

use crate::log::layout::{BLOCK_BYTES, Geometry};
use crate::log::record;
use crate::sealed::Sealed;
use crate::sealed::run::{HashEntry, Page};
use crate::sealed::summary::{RunPlace, Summary};
use std::io;

/// Keys that are compared at once, about.
const KEYS_AT_ONCE: u64 = 1 << 20;
/// Pages of keys in memory, of all segments together; of each there is at least one.
const PAGES_MAX: usize = 4_096;

/// The keys of a segment, in the order of their hashes.
#[derive(Debug)]
struct Run {
    /// Where its index lies; without one all keys are in `at_hand`.
    index: Option<Sealed>,
    place: RunPlace,
    segment_start: u64,
    /// The next page.
    page: u32,
    /// What was read and not compared yet is from `next` on.
    at_hand: Vec<HashEntry>,
    next: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keys {
    geometry: Geometry,
    runs: Vec<Run>,
    count: u64,
}

impl Keys {
    /// None yet.
    pub fn new(geometry: Geometry) -> Keys {
        Keys { geometry, runs: Vec::new(), count: 0 }
    }

    /// Takes the keys of a segment whose index is what its records make.
    pub fn sealed(&mut self, sealed: &Sealed) {
        let place = sealed.summary.keys;
        // Of the summary nothing is needed but the segment.
        let summary = Summary { segment: sealed.summary.segment, ..Summary::default() };
        let Sealed { parts, pages_per_part, checkpoint, resume, .. } = sealed;
        let (parts, pages_per_part, checkpoint, resume) = (parts.clone(), *pages_per_part, *checkpoint, *resume);
        let segment_start = self.geometry.segment_start(summary.segment);
        let index = Some(Sealed { summary, parts, pages_per_part, checkpoint, resume });
        self.count += place.entries;
        self.runs.push(Run { index, place, segment_start, page: 0, at_hand: Vec::new(), next: 0 });
    }

    /// Takes the keys of another segment.
    pub fn in_memory(&mut self, segment: u64, mut keys: Vec<HashEntry>) {
        keys.sort_unstable();
        self.count += keys.len() as u64;
        let (place, segment_start) = (RunPlace::default(), self.geometry.segment_start(segment));
        self.runs.push(Run { index: None, place, segment_start, page: 0, at_hand: keys, next: 0 });
    }

    /// Says of each key that two records have, one after the other, which positions those have.
    pub fn repeated(
        &mut self,
        read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>,
        mut each: impl FnMut(u64, u64),
    ) -> io::Result<()> {
        // Hashes are spread evenly.
        let ranges = self.count / KEYS_AT_ONCE + 1;
        let width = u64::MAX / ranges;
        let pages_at_once = (PAGES_MAX / self.runs.len().max(1)).max(1) as u32;
        let mut keys: Vec<(u64, u64)> = Vec::new();
        for range in 1..=ranges {
            let through = if range == ranges { u64::MAX } else { range * width };
            keys.clear();
            for run in &mut self.runs {
                run.take_through(through, self.geometry, pages_at_once, read, &mut keys)?;
            }
            keys.sort_unstable();
            for pair in keys.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                each(self.position_at(pair[0].1, read)?, self.position_at(pair[1].1, read)?);
            }
        }
        Ok(())
    }

    /// The position of the record that starts at a log offset.
    fn position_at(&self, log_offset: u64, read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>) -> io::Result<u64> {
        let block = log_offset / BLOCK_BYTES * BLOCK_BYTES;
        let bytes = read(self.geometry.file_offset(block), 2 * BLOCK_BYTES as usize)?;
        let header = bytes.get((log_offset - block) as usize..).and_then(record::peek);
        header.map(|(position, ..)| position).ok_or_else(|| changed(self.geometry, log_offset))
    }
}

impl Run {
    /// Takes the keys up to a hash, with the log offsets of their records.
    fn take_through(
        &mut self,
        through: u64,
        geometry: Geometry,
        pages_at_once: u32,
        read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>,
        keys: &mut Vec<(u64, u64)>,
    ) -> io::Result<()> {
        loop {
            let left = &self.at_hand[self.next..];
            let count = left.partition_point(|key| key.hash <= through);
            keys.extend(left[..count].iter().map(|key| (key.hash, self.segment_start + u64::from(key.offset))));
            self.next += count;
            if self.next < self.at_hand.len() || self.page == self.place.pages {
                return Ok(());
            }
            self.read_on(geometry, pages_at_once, read)?;
        }
    }

    /// Reads the next pages, as many as lie together.
    fn read_on(
        &mut self,
        geometry: Geometry,
        pages_at_once: u32,
        read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        self.at_hand.clear();
        self.next = 0;
        let Some(index) = &self.index else { return Ok(()) };
        let first = self.place.first + self.page;
        let in_part = index.pages_per_part - first % index.pages_per_part;
        let count = pages_at_once.min(in_part).min(self.place.pages - self.page);
        let at = index.page_at(first);
        let bytes = read(geometry.file_offset(at), count as usize * BLOCK_BYTES as usize)?;
        for number in 0..count {
            let page = bytes.get(number as usize * BLOCK_BYTES as usize..).unwrap_or_default();
            let page = page.get(..BLOCK_BYTES as usize).unwrap_or_default();
            let entries = Page::<HashEntry>::read(page, index.summary.segment, first + number);
            let entries = entries.ok_or_else(|| changed(geometry, at + u64::from(number) * BLOCK_BYTES))?;
            self.at_hand.extend((0..entries.count()).map(|index| entries.get(index)));
        }
        self.page += count;
        Ok(())
    }
}

fn changed(geometry: Geometry, log_offset: u64) -> io::Error {
    let file_offset = geometry.file_offset(log_offset);
    let what =
        format!("what stands at file offset {file_offset} verified before and does not any more: read the file again");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::{Checkpoint, Index, IndexInput, Resume};

    const GEOMETRY: Geometry = Geometry::DEFAULT;
    /// Log offsets of the parts of the index of segment 1: two pages each, one after the other.
    const PARTS: [u64; 3] = [1 << 20, (1 << 20) + 3 * BLOCK_BYTES, (1 << 20) + 6 * BLOCK_BYTES];

    /// Keys of two segments: one with an index, one without. A record stands at each 32 bytes.
    #[test]
    fn repeated_keys_are_found_within_an_index_and_across() {
        let own: Vec<_> = (0..1_500u32).map(|n| (u64::from(n) << 50, 32 * n)).collect();
        let extra = [(own[700].0, 48_000), (own[1_499].0, 48_032)];
        let keys = own.iter().chain(&extra[..1]).map(|(hash, offset)| HashEntry { hash: *hash, offset: *offset });
        let summary = Summary { segment: 1, ..Summary::default() };
        let Index { pages, summary } = IndexInput { summary, keys: keys.collect(), ..IndexInput::default() }.build();
        let (log_offset, number, hash) = (0, 0, [0; 32]);
        let sealed = Sealed {
            summary,
            parts: PARTS.to_vec(),
            pages_per_part: 2,
            checkpoint: Checkpoint { log_offset, number, hash },
            resume: Resume::default(),
        };
        let read = |at: u64, bytes: usize| {
            let log_offset = at - GEOMETRY.file_offset(0);
            for (part, pages) in PARTS.iter().zip(pages.chunks(2 * BLOCK_BYTES as usize)) {
                if let Some(within) = log_offset.checked_sub(part + BLOCK_BYTES)
                    && let Some(found) = pages.get(within as usize..)
                    && !found.is_empty()
                {
                    return Ok(found[..bytes].to_vec());
                }
            }
            // The position of a record is its place.
            let records = (0..bytes as u64).step_by(32).flat_map(|within| {
                let mut record = Vec::new();
                record::append(&mut record, (log_offset + within) / 32, 1, |_| {});
                record::put_checksums(&mut record);
                record.resize(32, 0);
                record
            });
            Ok(records.collect())
        };
        let mut keys = Keys::new(GEOMETRY);
        keys.sealed(&sealed);
        keys.in_memory(2, vec![HashEntry { hash: extra[1].0, offset: extra[1].1 }, HashEntry { hash: 1, offset: 0 }]);
        let mut found = Vec::new();
        keys.repeated(&read, |first, second| found.push((first, second))).unwrap();
        let position = |segment: u64, offset: u32| (GEOMETRY.segment_start(segment) + u64::from(offset)) / 32;
        let expected =
            [(position(1, own[700].1), position(1, extra[0].1)), (position(1, own[1_499].1), position(2, extra[1].1))];
        assert_eq!(found, expected);
    }
}
