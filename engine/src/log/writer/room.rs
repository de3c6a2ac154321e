//! The room that a log has: in buffers, and in segments that are prepared.

use super::LogWriter;
use crate::log::batch::BATCH_HEADER_BYTES;
use crate::log::layout::{Geometry, RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES};

/// Batches' worth of prepared log that requests leave alone: room for marks, for the recovery batches of many restarts,
/// and for what shard 0 makes every shard log.
pub(super) const RESERVED_BATCHES: u64 = 1;
/// Room that there must be before the daemon adds entries of its own.
pub(super) const OWN_ENTRIES_BYTES: u64 = 32 << 10;

impl LogWriter {
    /// How many bytes of records are sure to find a buffer.
    pub fn room_bytes(&self) -> u64 {
        // One buffer stays back for the recovery batch and for marks.
        (self.pool.len() as u64).saturating_sub(1) * usable_bytes(self.geometry())
    }

    /// The same when nothing is being written.
    pub fn room_bytes_max(&self) -> u64 {
        (self.buffers as u64).saturating_sub(1) * usable_bytes(self.geometry())
    }

    /// Whether another segment is being prepared, or will be.
    pub fn prepares_more(&self) -> bool {
        self.zeroing.prepares_more(self.geometry().segment_of(self.next_batch_at))
    }

    /// How many bytes of records are sure to find a place in the segments that are prepared. Nothing is taken in that has
    /// no place yet: if the ledger then could not grow, it would wait for ever.
    pub fn prepared_bytes(&self) -> u64 {
        self.bytes_in(self.zeroing.segments_prepared())
    }

    /// The same for what requests add: a ring keeps some segments for what is logged to make room in it.
    pub fn prepared_bytes_for_requests(&self) -> u64 {
        self.bytes_in(self.zeroing.segments_prepared().min(self.zeroing.requests_end()))
    }

    /// How many bytes of records are sure to find a place before a segment.
    fn bytes_in(&self, segments_end: u64) -> u64 {
        let geometry = self.geometry();
        let batch_bytes_max = geometry.batch_bytes_max;
        // The open batch is taken as full. Every batch may leave a record's worth empty, every segment a batch's worth.
        let next = geometry.next_batch(self.next_batch_at, batch_bytes_max);
        let segment = geometry.segment_of(next);
        if segment >= segments_end {
            return 0;
        }
        let here = geometry.segment_start(segment + 1) - next;
        let batches = here / batch_bytes_max + self.batches_in(segments_end - segment - 1);
        batches.saturating_sub(RESERVED_BATCHES) * usable_bytes(geometry)
    }

    /// Batches that whole segments are sure to take.
    pub(super) fn batches_in(&self, segments: u64) -> u64 {
        let geometry = self.geometry();
        segments * ((geometry.segment_bytes - SEGMENT_HEADER_BYTES) / geometry.batch_bytes_max)
    }

    /// Whether there is room for a few entries that no request asked for.
    pub fn takes_small_entries(&self) -> bool {
        self.takes_entry(OWN_ENTRIES_BYTES)
    }

    /// Whether there is room for an entry of so many bytes that no request asked for.
    pub fn takes_entry(&self, bytes: u64) -> bool {
        self.failed.is_none() && self.prepared_bytes() >= bytes && self.room_bytes() >= bytes
    }

    /// Whether a batch of a segment's index may be written now: none is on its way, and the log has room for it and for what
    /// requests add.
    pub fn takes_sealing(&self) -> bool {
        let room_bytes = 2 * self.geometry().batch_bytes_max;
        self.failed.is_none() && self.sealing.is_none() && self.prepared_bytes() >= room_bytes
    }

    /// Whether requests have filled a ring: what is left is for what makes room in it.
    pub fn is_full(&self) -> bool {
        let is_used_up = self.prepared_bytes_for_requests() < OWN_ENTRIES_BYTES;
        self.geometry().is_ring() && self.cannot_grow() && is_used_up
    }

    /// Segments of a ring that requests may fill behind the one that is written, before it has to be made room. 0 for a file.
    pub fn ring_free_segments(&self) -> u64 {
        match self.geometry().is_ring() {
            true => self.zeroing.requests_end().saturating_sub(self.segments().0),
            false => 0,
        }
    }

    /// Segments before this one are no part of the log any more, every copy of the superblock says so, and nobody reads them: a ring
    /// takes their places again.
    pub fn freed(&mut self, first: u64) {
        self.zeroing.freed(first, self.superblock.geometry);
    }
}

/// Bytes of records that a batch is sure to take: it is closed when one does not fit, so that one may stay empty.
pub(super) fn usable_bytes(geometry: Geometry) -> u64 {
    let batch_bytes_max = geometry.batch_bytes_max;
    batch_bytes_max.saturating_sub(RECORD_BYTES_MAX + BATCH_HEADER_BYTES as u64).max(batch_bytes_max / 4)
}
