//! Rows leave memory while a log is verified, as they do in the daemon: once a segment is full, and its index in the log is the one
//! that the segment's records make. What a later record needs of them is read from there.

use super::start::{Reading, at_once};
use crate::engine::FULL_SEGMENTS_MAX;
use crate::id::EventId;
use crate::log::batch::{self, Found};
use crate::log::layout::{BLOCK_BYTES, SEGMENT_HEADER_BYTES};
use crate::log::recovery::BatchPlace;
use crate::log::superblock::Superblock;
use crate::mutant::Mutation;
use crate::sealed::run::{HashEntry, KeyEntry, Page, page_bytes};
use crate::sealed::summary::{BatchStart, STARTS_EVERY_BYTES, Summary, row_key, row_of_key};
use crate::sealed::{
    Checkpoint, Fetch, Index, IndexInput, Resume, SealError, Sealed, ask_until_read, read_index, read_seals, sealed_by,
};
use crate::shard::Shard;
use crate::shard::rows::{SegmentRows, with_change_of};
use hashbrown::HashMap;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

/// Bytes of batches without records that are kept until their seal comes.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// Log offsets that no log has: indexes that were made here lie there.
const MADE_AT: u64 = 1 << 62;

/// Reads so many bytes from a file offset, both whole blocks; fewer only where the file ends.
pub type ReadAt<'a> = Box<dyn Fn(u64, usize) -> io::Result<Vec<u8>> + Send + 'a>;

/// What the index of a segment is made of, and the rows have not.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Hashes of idempotency keys.
    pub keys: Vec<HashEntry>,
    /// Their own times, in milliseconds; of neighbours with one time only the first.
    pub key_times_ms: Vec<u64>,
    /// All batches but those of indexes.
    pub starts: Vec<BatchStart>,
}

/// What an index in the log is beside the records of its segment.
pub(super) enum Compared {
    /// What they make.
    Same(Box<Sealed>),
    /// It can't be read. Either the batches that it is in are damaged, or they verify and what is in them does not.
    Unreadable(SealError),
    /// Something else.
    Different,
}

/// See the module.
pub(super) struct Indexes<'a> {
    superblock: &'a Superblock,
    read: ReadAt<'a>,
    /// The first read that failed.
    failed: RefCell<Option<io::Error>>,
    /// The last batches without records that were gone over, by their file offsets: the index that is compared next.
    recent: BTreeMap<u64, Vec<u8>>,
    recent_bytes: usize,
    /// Pages of indexes that stand in for those in the log.
    made: Vec<u8>,
    /// Seals that were met, by the segment.
    met: BTreeMap<u64, Checkpoint>,
    /// Seals that the superblock leads to, or else those that were found ahead.
    named: BTreeMap<u64, Checkpoint>,
    has_looked_ahead: bool,
}

impl<'a> Indexes<'a> {
    /// Of a log: the seals that the superblock leads to are known at once.
    pub fn new(superblock: &'a Superblock, read: ReadAt<'a>) -> Indexes<'a> {
        let mut indexes = Indexes {
            superblock,
            read,
            failed: RefCell::new(None),
            recent: BTreeMap::new(),
            recent_bytes: 0,
            made: Vec::new(),
            met: BTreeMap::new(),
            named: BTreeMap::new(),
            has_looked_ahead: false,
        };
        indexes.named = at_once(read_seals(&Reading(|at, bytes| indexes.read(at, bytes)), superblock));
        indexes
    }

    /// Reads; what fails is kept.
    pub fn read(&self, file_offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        if let Some((start, batch)) = self.recent.range(..=file_offset).next_back()
            && let Some(found) = batch.get((file_offset - start) as usize..).and_then(|rest| rest.get(..bytes))
        {
            return Ok(found.to_vec());
        }
        (self.read)(file_offset, bytes).inspect_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            self.failed.borrow_mut().get_or_insert(told);
        })
    }

    /// Why the first of the reads that failed did.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.failed.borrow_mut().take()
    }

    /// The log has a batch without records here; whether it is a seal.
    pub fn met(&mut self, place: &BatchPlace, bytes: &[u8]) -> bool {
        let BatchPlace { header, hash, log_offset } = *place;
        self.recent.insert(self.superblock.geometry.file_offset(log_offset), bytes.to_vec());
        self.recent_bytes += bytes.len();
        while self.recent_bytes > RECENT_BYTES_MAX
            && let Some((_, oldest)) = self.recent.pop_first()
        {
            self.recent_bytes -= oldest.len();
        }
        let Some(segment) = bytes.get(batch::records(bytes, &header)).and_then(sealed_by) else { return false };
        self.met.insert(segment, Checkpoint { log_offset, number: header.number, hash });
        true
    }

    /// The seals of the oldest of so many full segments, once: the one that was met, and the one that the superblock leads to, which
    /// is another one where the log was sealed anew. A daemon seals a segment before there are many; where none was met by then,
    /// its seal is somewhere else: if nothing leads there, it is looked for.
    pub fn take_seals(&mut self, segment: u64, full_segments: usize) -> Vec<Checkpoint> {
        let met = self.met.remove(&segment);
        if met.is_none() {
            if full_segments <= FULL_SEGMENTS_MAX {
                return Vec::new();
            }
            if !self.named.contains_key(&segment) {
                self.look_ahead(segment + full_segments as u64);
            }
        }
        let named = self.named.remove(&segment).filter(|named| Some(*named) != met);
        met.into_iter().chain(named).collect()
    }

    /// Goes from batch to batch, once, and remembers where seals are, which are compared like all others. Of the other batches nothing
    /// is believed but how long they are. A log that goes round has a superblock that leads to them.
    fn look_ahead(&mut self, from_segment: u64) {
        let Superblock { key, shard, geometry, .. } = self.superblock;
        if std::mem::replace(&mut self.has_looked_ahead, true) || geometry.is_ring() {
            return;
        }
        let mut at = geometry.segment_start(from_segment) + SEGMENT_HEADER_BYTES;
        while let Ok(block) = self.read(geometry.file_offset(at), BLOCK_BYTES as usize)
            && let (Some(total), Some(peeked)) =
                (batch::claimed_bytes(&block, geometry.batch_bytes_max), batch::peek(&block))
        {
            if peeked.is_sealing
                && let Ok(bytes) = self.read(geometry.file_offset(at), total as usize)
                && let Found::Batch { header, hash } =
                    batch::find(&bytes, key, *shard, geometry.batch_bytes_max, Mutation::NONE)
                && let Some(segment) = sealed_by(&bytes[batch::records(&bytes, &header)])
            {
                self.named.insert(segment, Checkpoint { log_offset: at, number: header.number, hash });
            }
            at = if peeked.is_last { geometry.next_segment(at) } else { geometry.next_batch(at, total) };
        }
    }

    /// The segment is done with.
    pub fn forget_recent(&mut self) {
        self.recent.clear();
        self.recent_bytes = 0;
    }

    /// Asks until everything that the answer takes is at hand.
    pub fn ask<T>(&self, shard: &Shard, ask: impl Fn() -> Fetch<T>) -> Result<T, String> {
        let geometry = self.superblock.geometry;
        ask_until_read(shard.rows().catalog(), ask, |at| {
            if let Some(at) = at.checked_sub(MADE_AT) {
                let page = self.made.get(at as usize..(at + BLOCK_BYTES) as usize);
                return page.map(<[u8]>::to_vec).ok_or_else(|| format!("no index was made at {at}"));
            }
            let block = self.read(geometry.file_offset(at), BLOCK_BYTES as usize).map_err(|e| e.to_string())?;
            match block.len() as u64 {
                BLOCK_BYTES => Ok(block),
                _ => Err(format!("the file ends before log offset {at}")),
            }
        })
    }

    /// Makes the index of a segment that is full from its records, to stand in for the one in the log. Nobody asks it for keys.
    pub fn make(&mut self, shard: &Shard, rows: &SegmentRows, gathered: &Gathered) -> Sealed {
        let starts = starts_named(&gathered.starts, &[], None);
        let Index { pages, summary } = rows.index_input(self.superblock.geometry, shard.secret(), starts).build();
        // A part begins with its batch's header.
        let part = MADE_AT + self.made.len() as u64 - BLOCK_BYTES;
        let pages_per_part = ((pages.len() as u64 / BLOCK_BYTES) as u32).max(1);
        self.made.extend_from_slice(&pages);
        let (checkpoint, resume) = (Checkpoint::default(), Resume::default());
        Sealed { summary, parts: vec![part], pages_per_part, checkpoint, resume }
    }

    /// Makes the index of a segment that is full from its records, and compares it with the one that a seal says lies in the log.
    pub fn compare(&self, shard: &Shard, rows: &SegmentRows, gathered: &Gathered, seal: Checkpoint) -> Compared {
        let reading = Reading(|at, bytes| self.read(at, bytes));
        let (sealed, pages) = match at_once(read_index(&reading, self.superblock, seal)) {
            Ok(found) => found,
            Err(error) => return Compared::Unreadable(error),
        };
        if sealed.summary.segment != rows.number {
            return Compared::Different;
        }
        let before = shard.rows().catalog().start_for(u64::MAX);
        let starts = starts_named(&gathered.starts, &sealed.summary.starts, before);
        let mut input = rows.index_input(self.superblock.geometry, shard.secret(), starts);
        input.keys.clone_from(&gathered.keys);
        input.key_times_ms.clone_from(&gathered.key_times_ms);
        if self.superblock.origin.is_some() && self.take_gone(shard, &sealed.summary, &pages, &mut input).is_none() {
            return Compared::Different;
        }
        let made = input.build();
        match made.pages == pages && made.summary == sealed.summary {
            true => Compared::Same(Box::new(sealed)),
            false => Compared::Different,
        }
    }

    /// What a segment says of rows that were dropped before the log's beginning can't be known here, and changes nothing: it is
    /// taken as it stands. `None` if it does not read as an index.
    fn take_gone(&self, shard: &Shard, summary: &Summary, pages: &[u8], input: &mut IndexInput) -> Option<()> {
        let page = |number: u32| pages.chunks(BLOCK_BYTES as usize).nth(number as usize);
        let mut heap = Vec::new();
        for number in summary.heap.first..summary.heap.first.checked_add(summary.heap.pages)? {
            heap.extend_from_slice(page_bytes(page(number)?, summary.segment, number)?);
        }
        let mut known: HashMap<u128, usize> = HashMap::new();
        known.extend(input.changes.iter().enumerate().map(|(index, (id, _))| (row_key(*id), index)));
        let place = summary.changes.place;
        for number in place.first..place.first.checked_add(place.pages)? {
            let entries = Page::<KeyEntry>::read(page(number)?, summary.segment, number)?;
            for entry in (0..entries.count()).map(|index| entries.get(index)) {
                let event_id = row_of_key(entry.key)?;
                let says = heap.get(entry.offset as usize..)?.get(..entry.length as usize)?;
                if !self.is_gone(shard, summary.segment, event_id) {
                    continue;
                }
                match known.get(&entry.key) {
                    None => input.changes.push((event_id, says.to_vec())),
                    Some(index) => {
                        let known = &mut input.changes[*index].1;
                        *known = with_change_of(known, says)?;
                    }
                }
            }
        }
        Some(())
    }

    /// Whether a row's claim was dropped before the log's beginning, as far as a segment goes: it may be logged again behind it.
    fn is_gone(&self, shard: &Shard, segment: u64, event_id: EventId) -> bool {
        let rows = shard.rows();
        rows.may_be_gone(event_id)
            && self
                .ask(shard, || rows.get(event_id))
                .is_ok_and(|row| row.is_none_or(|row| rows.segment_of(row.claim_at) > segment))
    }
}

/// Which of a segment's batches its summary must name: the first, and then one in [`STARTS_EVERY_BYTES`]. Earlier builds counted those
/// bytes from what the segment `before` names last.
fn starts_named(batches: &[BatchStart], named: &[BatchStart], before: Option<BatchStart>) -> Vec<BatchStart> {
    let mut last = before.filter(|_| named.first() != batches.first());
    let is_named = |start: &&BatchStart| {
        let is_named = last.is_none_or(|last| start.log_offset >= last.log_offset + STARTS_EVERY_BYTES);
        if is_named {
            last = Some(**start);
        }
        is_named
    };
    batches.iter().filter(is_named).copied().collect()
}
