//! The log writer: gathers records into batches and says what to write when. Plain code: it does no I/O itself, but hands
//! out [`Io`] and is told how each ended, so that the daemon and the simulator run the same decisions.
//!
//! Group commit has no timer. While no write is out, what is there goes at once; while one is out, records gather, and go
//! when it completes, or as soon as a whole batch is full and fewer than [`BATCHES_IN_FLIGHT_MAX`] are out.

mod room;

use super::batch::{self, BATCH_HEADER_BYTES, BatchHeader, Hash};
use super::end::{Durable, Head, LogEnd};
use super::entry::Record;
use super::io::{Io, IoDone, prepare};
use super::layout::{BATCHES_IN_FLIGHT_MAX, Geometry, RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES, pad_to_block};
use super::record;
use super::superblock::{Superblock, encode_segment_header};
use super::unsealed::Unsealed;
use super::zeroing::Zeroing;
use crate::mutant::{Mutant, Mutation};
use crate::sealed::Checkpoint;
use crate::sealed::summary::BatchStart;
use crate::storage::{Durability, Storage};
use room::{OWN_ENTRIES_BYTES, RESERVED_BATCHES, usable_bytes};
use std::collections::VecDeque;
use std::io;

/// What the largest legal request adds to the log: a frame of 4 MiB, and for each of 8,190 items an entry's fixed part and
/// the request's rationale. The batch buffers, taken at the start, hold it; when they are in use, requests wait.
pub const REQUEST_LOG_BYTES_MAX: u64 = 12 << 20;
/// Bounds of the number of batch buffers.
pub const BATCH_BUFFERS_RANGE: std::ops::RangeInclusive<u64> = 16..=256;
/// An idle log writes a mark after this long, so that what is durable is also known to be.
pub const MARK_IDLE_US: i64 = 50_000;

/// Counts of what the writer has done in this run.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriterCounts {
    /// Batches written.
    pub batches: u64,
    /// Bytes of them, padding included.
    pub bytes: u64,
}

#[derive(Debug)]
struct Batch {
    buffer: Vec<u8>,
    log_offset: u64,
    first_position: u64,
    record_count: u32,
    is_recovery: bool,
    is_sealing: bool,
    is_mark: bool,
    /// The log goes on in the next segment.
    is_last: bool,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    last_position: u64,
    is_mark: bool,
    is_sealing: bool,
    done: bool,
    durability: Durability,
    hash: Hash,
}

/// A batch that belongs to a segment's index, on its way.
#[derive(Debug, Clone, Copy)]
struct Sealing {
    place: Checkpoint,
    is_durable: bool,
}

/// See the module.
#[derive(Debug)]
pub struct LogWriter {
    superblock: Superblock,
    incarnation: u64,
    next_batch_at: u64,
    next_number: u64,
    next_position: u64,
    previous_hash: Hash,
    open: Option<Batch>,
    full: VecDeque<Batch>,
    in_flight: VecDeque<InFlight>,
    pool: Vec<Vec<u8>>,
    buffers: usize,
    durable: Durable,
    durable_hash: Hash,
    /// What is remembered of segments that are not sealed.
    pub unsealed: Unsealed,
    /// Of the last batch.
    last_incarnation: u64,
    sealing: Option<Sealing>,
    /// The last batch is a mark, or nothing has been written: the log need not be marked.
    is_marked: bool,
    last_activity_us: i64,
    zeroing: Zeroing,
    failed: Option<String>,
    counts: WriterCounts,
    /// A batch that waits is written beside others in flight once it has this many bytes.
    fill_bytes: u64,
    /// Bytes of the request that is being decided, at most.
    expected_bytes: u64,
    mutation: Mutation,
    /// The last batch as it was written, for [`Mutant::ReuseOfAckedBlock`].
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    content: Vec<u8>,
    header: BatchHeader,
    log_offset: u64,
}

impl LogWriter {
    /// A writer that goes on after `end` as a new incarnation.
    pub fn new(superblock: &Superblock, end: LogEnd, fill_bytes: Option<u64>, mutation: Mutation) -> LogWriter {
        let geometry = superblock.geometry;
        let buffers = REQUEST_LOG_BYTES_MAX / usable_bytes(geometry) + 2;
        let buffers = buffers.clamp(*BATCH_BUFFERS_RANGE.start(), *BATCH_BUFFERS_RANGE.end());
        let buffer_bytes = (geometry.batch_bytes_max + RECORD_BYTES_MAX) as usize;
        LogWriter {
            superblock: superblock.clone(),
            incarnation: end.incarnation + u64::from(!mutation.is(Mutant::NoIncarnation)),
            next_batch_at: end.next_batch_at,
            next_number: end.next_number,
            next_position: end.next_position,
            previous_hash: end.previous_hash,
            open: None,
            full: VecDeque::new(),
            in_flight: VecDeque::new(),
            pool: (0..buffers).map(|_| Vec::with_capacity(buffer_bytes)).collect(),
            buffers: buffers as usize,
            durable: Durable { position: end.next_position - 1, batch: end.next_number - 1 },
            durable_hash: end.previous_hash,
            unsealed: Unsealed::new(geometry),
            last_incarnation: end.incarnation,
            sealing: None,
            is_marked: true,
            last_activity_us: 0,
            zeroing: Zeroing::new(end.segments_prepared, geometry),
            failed: None,
            counts: WriterCounts::default(),
            fill_bytes: fill_bytes.unwrap_or(geometry.batch_bytes_max),
            expected_bytes: OWN_ENTRIES_BYTES,
            mutation,
            last: None,
        }
    }

    fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    /// Why the writer has stopped.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Whether the last attempt to grow failed, and none has succeeded since.
    pub fn cannot_grow(&self) -> bool {
        self.zeroing.cannot_grow()
    }

    /// What is durable.
    pub fn durable(&self) -> Durable {
        self.durable
    }

    /// The end of the chain as far as it is durable.
    pub fn head(&self) -> Head {
        Head { batch: self.durable.batch, position: self.durable.position, hash: self.durable_hash }
    }

    /// Takes a batch of a segment's index: header space and content. Returns its log offset.
    pub fn append_sealing(&mut self, content: Vec<u8>) -> u64 {
        debug_assert!(self.sealing.is_none() && content.len() as u64 <= self.geometry().batch_bytes_max);
        self.close_batch();
        let log_offset = self.next_batch_at;
        self.next_batch_at = self.geometry().next_batch(log_offset, pad_to_block(content.len() as u64));
        self.full.push_back(Batch {
            buffer: content,
            log_offset,
            first_position: self.next_position,
            record_count: 0,
            is_recovery: false,
            is_sealing: true,
            is_mark: false,
            is_last: false,
        });
        self.sealing = Some(Sealing { place: Checkpoint { log_offset, number: 0, hash: [0; 32] }, is_durable: false });
        log_offset
    }

    /// The batch of a segment's index that has become durable.
    pub fn take_sealing(&mut self) -> Option<Checkpoint> {
        let place = self.sealing.filter(|sealing| sealing.is_durable)?.place;
        self.sealing = None;
        Some(place)
    }

    /// Whether what is appended next is sure to go to a segment, if it has so many bytes at most.
    pub fn goes_to(&self, segment: u64, bytes: u64) -> bool {
        let geometry = self.geometry();
        let goes_at = match &self.open {
            Some(batch) if batch.buffer.len() as u64 + bytes <= geometry.batch_bytes_max => batch.log_offset,
            Some(batch) => geometry.next_batch(batch.log_offset, pad_to_block(batch.buffer.len() as u64)),
            None => self.next_batch_at,
        };
        // Fewer bytes may still fit the batch before.
        let is_at = |log_offset| geometry.segment_of(log_offset) == segment;
        is_at(goes_at) && self.open.as_ref().is_none_or(|batch| is_at(batch.log_offset))
    }

    /// The last position handed out.
    pub fn last_position(&self) -> u64 {
        self.next_position - 1
    }

    /// Which run of the daemon this is.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Counts of this run.
    pub fn counts(&self) -> WriterCounts {
        self.counts
    }

    /// Bytes of log from its beginning to where the next batch goes.
    pub fn written_bytes(&self) -> u64 {
        self.next_batch_at
    }

    /// Segments used so far, and prepared.
    pub fn segments(&self) -> (u64, u64) {
        (self.geometry().segment_of(self.next_batch_at) + 1, self.zeroing.segments_prepared())
    }

    /// Whether nothing waits and nothing is out but zeroing.
    pub fn is_idle(&self) -> bool {
        self.open.is_none() && self.full.is_empty() && self.in_flight.is_empty()
    }

    fn open_batch(&mut self) -> &mut Batch {
        if self.mutation.is(Mutant::ReuseOfAckedBlock) && self.open.is_none() {
            self.take_back();
        }
        if self.open.is_none() {
            let mut buffer = self.pool.pop().unwrap_or_default();
            buffer.clear();
            buffer.resize(BATCH_HEADER_BYTES, 0);
            self.open = Some(Batch {
                buffer,
                log_offset: self.next_batch_at,
                first_position: self.next_position,
                record_count: 0,
                is_recovery: false,
                is_sealing: false,
                is_mark: false,
                is_last: false,
            });
        }
        self.open.as_mut().expect("opened above")
    }

    /// Closes the open batch, and with it fixes where the next one starts.
    fn close_batch(&mut self) {
        if let Some(batch) = self.open.take() {
            let bytes = pad_to_block(batch.buffer.len() as u64);
            self.next_batch_at = match batch.is_last {
                true => self.geometry().next_segment(batch.log_offset),
                false => self.geometry().next_batch(batch.log_offset, bytes),
            };
            self.full.push_back(batch);
        }
    }

    /// Appends a record and returns its position and log offset. The caller has seen that there is room.
    pub fn append(&mut self, entry: &Record<'_>) -> (u64, u64) {
        let position = self.next_position;
        let batch_bytes_max = self.geometry().batch_bytes_max;
        let batch = self.open_batch();
        let mut start = batch.buffer.len();
        record::append(&mut batch.buffer, position, entry.entry.kind(), |out| entry.encode(out));
        if batch.buffer.len() as u64 > batch_bytes_max {
            let moved = batch.buffer.split_off(start);
            assert!(batch.record_count > 0, "a record always fits an empty batch: bounds are checked at the edge");
            self.close_batch();
            let batch = self.open_batch();
            start = batch.buffer.len();
            batch.buffer.extend_from_slice(&moved);
        }
        self.next_position += 1;
        let batch = self.open.as_mut().expect("there is an open batch after an append");
        batch.record_count += 1;
        (position, batch.log_offset + start as u64)
    }

    /// Opens the recovery batch: the first of this incarnation, with the recovery entry alone.
    pub fn append_recovery(&mut self, entry: &Record<'_>) -> (u64, u64) {
        let place = self.append(entry);
        self.open_batch().is_recovery = true;
        self.close_batch();
        place
    }

    /// Says how much is going to be appended, so that a segment that ends early leaves room for it.
    pub fn expect(&mut self, bytes: u64) {
        self.expected_bytes = bytes.max(OWN_ENTRIES_BYTES);
    }

    /// Has what is appended next begin a segment, if the segments ahead have room for what is expected.
    pub fn end_segment(&mut self) {
        let geometry = self.geometry();
        let is_fresh = self.open.is_none() && geometry.is_first(self.next_batch_at);
        let segment = geometry.segment_of(self.open.as_ref().map_or(self.next_batch_at, |batch| batch.log_offset));
        let ahead = self.zeroing.segments_prepared().saturating_sub(segment + 1);
        let room_bytes = self.batches_in(ahead).saturating_sub(RESERVED_BATCHES) * usable_bytes(geometry);
        if is_fresh {
            // A segment is sealed once the next one has begun: an idle log begins it with a mark.
            self.is_marked = false;
            return;
        }
        if self.failed.is_some() || room_bytes < self.expected_bytes {
            return;
        }
        let batch = self.open_batch();
        // What is durable is told by a mark behind it, with which the next segment begins.
        (batch.is_last, batch.is_mark) = (true, false);
        self.close_batch();
    }

    /// Looks at the time: marks a log that has been idle, and tries again to grow one that could not.
    pub fn tick(&mut self, boot_us: i64) {
        self.zeroing.tick(boot_us, self.is_idle());
        if !self.is_idle() {
            self.last_activity_us = boot_us;
        } else if !self.is_marked && boot_us - self.last_activity_us >= MARK_IDLE_US {
            self.mark();
        }
    }

    /// Writes an empty batch that records what is durable.
    pub fn mark(&mut self) {
        if self.is_idle() && !self.is_marked && self.failed.is_none() {
            self.open_batch().is_mark = true;
        }
    }

    /// The next piece of work, if there is any now.
    pub fn next_io(&mut self) -> Option<Io> {
        if self.failed.is_some() {
            return None;
        }
        self.next_write().or_else(|| self.next_prepare())
    }

    fn next_write(&mut self) -> Option<Io> {
        if self.in_flight.len() >= BATCHES_IN_FLIGHT_MAX {
            return None;
        }
        let covers = self.mutation.is(Mutant::OneDsyncCoversEarlier);
        let all_done = self.in_flight.iter().all(|batch| batch.done);
        if covers && all_done && !self.in_flight.is_empty() && self.full.is_empty() {
            self.open_batch().is_mark = true;
        }
        let alone = if covers { all_done } else { self.in_flight.is_empty() };
        let is_filled = self.open.as_ref().is_some_and(|batch| batch.buffer.len() as u64 >= self.fill_bytes);
        if self.full.is_empty() && (alone || is_filled) {
            self.close_batch();
        }
        let segment = self.geometry().segment_of(self.full.front()?.log_offset);
        if segment >= self.zeroing.segments_prepared() {
            return None;
        }
        let mut batch = self.full.pop_front()?;
        let number = self.next_number;
        self.next_number += 1;
        let header = BatchHeader {
            shard: self.superblock.shard,
            is_recovery: batch.is_recovery,
            is_sealing: batch.is_sealing,
            is_last: batch.is_last,
            record_count: batch.record_count,
            number,
            incarnation: self.incarnation,
            first_position: batch.first_position,
            content_bytes: 0,
            total_bytes: 0,
            durable_position: self.durable.position,
            durable_batch: self.durable.batch,
            previous_hash: self.previous_hash,
        };
        if self.mutation.is(Mutant::ReuseOfAckedBlock) {
            self.last = Some(Last { content: batch.buffer.clone(), header, log_offset: batch.log_offset });
        }
        let before = LogEnd {
            next_batch_at: batch.log_offset,
            next_number: number,
            next_position: header.first_position,
            previous_hash: self.previous_hash,
            incarnation: self.last_incarnation,
            segments_prepared: 0,
        };
        self.last_incarnation = self.incarnation;
        if !batch.is_sealing {
            record::put_checksums(&mut batch.buffer[BATCH_HEADER_BYTES..]);
        }
        self.previous_hash = batch::seal(&mut batch.buffer, &self.superblock.key, &header, self.mutation);
        if segment > 0 && self.geometry().is_first(batch.log_offset) {
            self.unsealed.remember_head(segment, before);
        }
        if !batch.is_sealing {
            let (first_position, log_offset) = (header.first_position, batch.log_offset);
            self.unsealed.remember_start(BatchStart { number, first_position, log_offset });
        } else if let Some(sealing) = &mut self.sealing {
            (sealing.place.number, sealing.place.hash) = (number, self.previous_hash);
        }
        let durability = self.durability_of_next(header.is_recovery);
        self.in_flight.push_back(InFlight {
            number,
            last_position: header.next_position() - 1,
            is_mark: batch.is_mark,
            is_sealing: batch.is_sealing,
            done: false,
            durability,
            hash: self.previous_hash,
        });
        self.is_marked = false;
        self.counts.batches += 1;
        self.counts.bytes += batch.buffer.len() as u64;
        Some(Io::Write {
            number,
            file_offset: self.geometry().file_offset(batch.log_offset),
            batch: batch.buffer,
            durability,
        })
    }

    /// Durable, but for deliberate bugs.
    fn durability_of_next(&self, is_recovery: bool) -> Durability {
        let last_is_durable = self.in_flight.back().is_none_or(|batch| batch.durability == Durability::Durable);
        let is_covered = self.mutation.is(Mutant::OneDsyncCoversEarlier) && last_is_durable;
        let is_plain = (self.mutation.is(Mutant::NoDsync) || is_covered) && !is_recovery;
        if is_plain { Durability::Cached } else { Durability::Durable }
    }

    /// A deliberate bug: takes the last batch, which is acknowledged, back to put more records into its block.
    fn take_back(&mut self) {
        let is_small = |last: &Last| last.content.len() < 3 * 1024 && !last.header.is_recovery;
        if !self.in_flight.is_empty() || !self.full.is_empty() {
            self.last = None;
        }
        if let Some(last) = self.last.take().filter(is_small) {
            self.next_number = last.header.number;
            self.previous_hash = last.header.previous_hash;
            self.next_batch_at = last.log_offset;
            self.open = Some(Batch {
                buffer: last.content,
                log_offset: last.log_offset,
                first_position: last.header.first_position,
                record_count: last.header.record_count,
                is_recovery: false,
                is_sealing: false,
                is_mark: false,
                is_last: false,
            });
        }
    }

    fn next_prepare(&mut self) -> Option<Io> {
        let prepared_bytes = self.prepared_bytes();
        self.zeroing.next(&self.superblock, self.next_batch_at, prepared_bytes, self.mutation)
    }

    /// Takes the result of a piece of work. Durability advances in log order, whatever the order of completion.
    pub fn complete(&mut self, done: IoDone, boot_us: i64) {
        match done {
            IoDone::Write { number, batch, result } => {
                self.last_activity_us = boot_us;
                self.recycle(batch);
                match result {
                    Ok(()) => self.written(number),
                    Err(error) => {
                        let place =
                            format!("writing batch {number} of shard {} failed: {error}", self.superblock.shard);
                        self.failed.get_or_insert(place);
                        // Nothing of it is ever written again.
                        self.open = None;
                        self.full.clear();
                        self.in_flight.clear();
                    }
                }
            }
            IoDone::Prepare { segment, to, result } => {
                self.zeroing.complete((segment, to), result, self.geometry(), self.next_batch_at, boot_us);
            }
            // Not the log's.
            IoDone::Read { .. }
            | IoDone::Built(_)
            | IoDone::Cleared(_)
            | IoDone::Checkpoint { .. }
            | IoDone::Freed { .. }
            | IoDone::Paused { .. } => {}
        }
    }

    fn recycle(&mut self, batch: Vec<u8>) {
        if batch.capacity() as u64 >= self.geometry().batch_bytes_max && self.pool.len() < self.buffers {
            self.pool.push(batch);
        }
    }

    fn written(&mut self, number: u64) {
        for batch in &mut self.in_flight {
            batch.done |= batch.number == number;
        }
        if self.mutation.is(Mutant::AckOutOfOrder)
            && let Some(batch) = self.in_flight.iter().rfind(|batch| batch.done)
        {
            self.durable.position = self.durable.position.max(batch.last_position);
        }
        // Only with a deliberate bug is there a batch that is written and waits for a later one to cover it.
        let is_durable = |batch: &InFlight| batch.done && batch.durability == Durability::Durable;
        let waits = self.mutation.is(Mutant::OneDsyncCoversEarlier) && !self.in_flight.iter().any(is_durable);
        while !waits && self.in_flight.front().is_some_and(|batch| batch.done) {
            if let Some(batch) = self.in_flight.pop_front() {
                self.durable = Durable { position: batch.last_position, batch: batch.number };
                self.durable_hash = batch.hash;
                self.is_marked = batch.is_mark;
                if let Some(sealing) = self.sealing.as_mut().filter(|_| batch.is_sealing) {
                    sealing.is_durable = true;
                }
            }
        }
    }
}

/// Writes an empty ledger: superblock, and the first segment.
pub async fn format(storage: &impl Storage, superblock: &Superblock) -> io::Result<()> {
    let geometry = superblock.geometry;
    // A ring's device is there as a whole.
    storage.grow(geometry.file_bytes(1)).await?;
    let zeroes = vec![0; geometry.file_offset(0) as usize];
    storage.write_at(0, &zeroes, Durability::Cached).await?;
    let header = encode_segment_header(superblock, 0);
    let bytes = geometry.segment_bytes;
    prepare(storage, geometry.file_offset(0), bytes, 0..bytes, Some(&header)).await?;
    debug_assert_eq!(header.len() as u64, SEGMENT_HEADER_BYTES);
    superblock.write(storage).await
}
