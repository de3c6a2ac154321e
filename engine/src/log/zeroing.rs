//! Segments are zeroed ahead of need, so that a batch overwrites blocks that are written already: its flush then changes no
//! extents. Plain code, as the [writer](super::writer) is, which it works for: it says which piece to zero next, and when.

use super::io::{Io, ZEROING_BYTES};
use super::layout::{Geometry, RING_RESERVED_SEGMENTS};
use super::superblock::{Superblock, encode_segment_header};
use super::writer::REQUEST_LOG_BYTES_MAX;
use crate::mutant::{Mutant, Mutation};
use std::io;

/// Segments zeroed ahead of the one that is written.
pub const SEGMENTS_AHEAD: u64 = 3;
/// The last of them is zeroed piece by piece, so many bytes for each that the log fills: every piece delays the writes beside
/// it a little, and a whole segment at once would delay them for as long as it takes.
const ZEROED_PER_WRITTEN: u64 = 2;
/// Growing is tried again this long after it failed.
pub const GROW_RETRY_US: i64 = 1_000_000;

/// How far the ledger is prepared, and when that goes on.
#[derive(Debug)]
pub(super) struct Zeroing {
    segments_prepared: u64,
    /// The first segment that has no place yet: in a ring, where the log begins lies in its way.
    segments_end: u64,
    /// A piece is on its way.
    is_under_way: bool,
    /// Which segment was begun.
    segment: Option<u64>,
    /// Bytes of it that are zeroed.
    zeroed: u64,
    /// The log offset that the next piece waits for, …
    due_at: u64,
    /// … unless the log is idle.
    is_due: bool,
    cannot_grow: bool,
    again_at_us: Option<i64>,
}

impl Zeroing {
    /// Goes on after so many segments. Which places of a ring are free besides, [`Zeroing::freed`] says.
    pub(super) fn new(segments_prepared: u64, geometry: Geometry) -> Zeroing {
        Zeroing {
            segments_prepared,
            segments_end: geometry.segments_end(0).max(segments_prepared),
            is_under_way: false,
            segment: None,
            zeroed: 0,
            due_at: 0,
            is_due: false,
            cannot_grow: false,
            again_at_us: None,
        }
    }

    /// Segments that batches may go to.
    pub(super) fn segments_prepared(&self) -> u64 {
        self.segments_prepared
    }

    /// The first segment that requests may not fill: a ring keeps some, by which a quarter can be dropped when it is full.
    pub(super) fn requests_end(&self) -> u64 {
        self.segments_end.saturating_sub(RING_RESERVED_SEGMENTS)
    }

    /// Places of segments before this one may be taken again.
    pub(super) fn freed(&mut self, first: u64, geometry: Geometry) {
        self.segments_end = self.segments_end.max(geometry.segments_end(first));
    }

    /// Whether the last attempt to grow failed, and none has succeeded since.
    pub(super) fn cannot_grow(&self) -> bool {
        self.cannot_grow
    }

    /// Whether segments are wanted beyond those that are prepared, while batches go to this one, and there are places for them.
    pub(super) fn prepares_more(&self, segment: u64) -> bool {
        self.segments_prepared < (segment + 1 + SEGMENTS_AHEAD).min(self.segments_end)
    }

    /// Looks at the time: tries again to grow a ledger that could not, and has an idle log go on.
    pub(super) fn tick(&mut self, boot_us: i64, is_idle: bool) {
        if self.again_at_us.is_some_and(|at| boot_us >= at) {
            self.again_at_us = None;
        }
        self.is_due |= is_idle;
    }

    /// The next piece, if one is due: `next_batch_at` is how far the log is filled, and `prepared_bytes` what it still takes.
    pub(super) fn next(
        &mut self,
        superblock: &Superblock,
        next_batch_at: u64,
        prepared_bytes: u64,
        mutation: Mutation,
    ) -> Option<Io> {
        let geometry = superblock.geometry;
        let wanted = geometry.segment_of(next_batch_at) + 1 + SEGMENTS_AHEAD;
        let is_late = mutation.is(Mutant::SegmentBeforeZeroed);
        let has_begun = self.segment.is_some();
        let is_wanted = self.segments_prepared < wanted || (is_late && has_begun);
        if self.is_under_way || self.again_at_us.is_some() || !is_wanted {
            return None;
        }
        // Small segments may not hold what a request takes, however many are ahead.
        let is_small = prepared_bytes < REQUEST_LOG_BYTES_MAX;
        // What was refused for want of space is to be told soon that there is some.
        let is_urgent = self.segments_prepared + 1 < wanted || is_small || self.cannot_grow;
        if !is_urgent && !self.is_due && next_batch_at < self.due_at {
            return None;
        }
        if is_late && !has_begun && prepared_bytes > 2 * geometry.batch_bytes_max {
            return None;
        }
        if self.segments_prepared >= self.segments_end && !mutation.is(Mutant::PlaceTakenEarly) {
            if !self.cannot_grow {
                tracing::error!(
                    segment = self.segments_prepared,
                    "the log has gone round to its beginning; it goes on once retention has dropped a quarter, and nobody reads \
                     what was dropped"
                );
            }
            self.cannot_grow = true;
            return None;
        }
        let segment = *self.segment.get_or_insert(self.segments_prepared);
        self.segments_prepared = self.segments_prepared.max(segment + u64::from(is_late));
        if mutation.is(Mutant::PlaceUnzeroed) && segment >= geometry.segments_end(0) {
            self.zeroed = geometry.segment_bytes;
        }
        Some(self.piece(superblock, segment, next_batch_at))
    }

    fn piece(&mut self, superblock: &Superblock, segment: u64, next_batch_at: u64) -> Io {
        let geometry = superblock.geometry;
        let bytes = geometry.segment_bytes;
        let piece_bytes = bytes.min(ZEROING_BYTES as u64);
        let from = self.zeroed;
        let to = bytes.min(from + piece_bytes);
        // A batch that is larger than a step makes several pieces due.
        let was_due = std::mem::take(&mut self.is_due);
        let last_due_at = if from == 0 || was_due { next_batch_at } else { self.due_at };
        self.due_at = last_due_at + piece_bytes / ZEROED_PER_WRITTEN;
        self.is_under_way = true;
        Io::Prepare {
            segment,
            file_offset: geometry.file_offset(geometry.segment_start(segment)),
            bytes,
            piece: from..to,
            header: (to == bytes).then(|| encode_segment_header(superblock, segment)),
        }
    }

    /// Takes the result of a piece that ends at `to` of the segment.
    pub(super) fn complete(
        &mut self,
        (segment, to): (u64, u64),
        result: io::Result<()>,
        geometry: Geometry,
        next_batch_at: u64,
        boot_us: i64,
    ) {
        self.is_under_way = false;
        match result {
            Ok(()) if to < geometry.segment_bytes => self.zeroed = to,
            Ok(()) => {
                *self = Zeroing {
                    segments_end: self.segments_end,
                    due_at: next_batch_at + ZEROING_BYTES as u64 / ZEROED_PER_WRITTEN,
                    again_at_us: self.again_at_us,
                    ..Zeroing::new(self.segments_prepared.max(segment + 1), geometry)
                };
            }
            Err(error) => {
                (self.segment, self.zeroed) = (None, 0);
                tracing::error!(segment, %error, "the ledger cannot grow; it is tried again every second");
                self.cannot_grow = true;
                self.again_at_us = Some(boot_us + GROW_RETRY_US);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::end::LogEnd;
    use crate::log::entry::{Entry, Meta, Principal, Record};
    use crate::log::io::IoDone;
    use crate::log::layout::RING_SEGMENTS_MIN;
    use crate::log::writer::LogWriter;
    use uuid::Uuid;

    const PIECE_BYTES: u64 = ZEROING_BYTES as u64;

    /// A log of the default geometry, which nothing is written to.
    fn writer() -> LogWriter {
        let superblock = Superblock::of_new_ledger(Uuid::from_u128(1), [1; 32], Geometry::DEFAULT);
        LogWriter::new(&superblock, LogEnd::at_start(&superblock, 1, Mutation::NONE), None, Mutation::NONE)
    }

    /// Does what there is to do, and says how many bytes were zeroed.
    fn settle(log: &mut LogWriter) -> u64 {
        let mut zeroed = 0;
        while let Some(io) = log.next_io() {
            let done = match io {
                Io::Write { number, batch, .. } => IoDone::Write { number, batch, result: Ok(()) },
                Io::Prepare { segment, piece, bytes, header, .. } => {
                    assert_eq!((piece.end - piece.start, header.is_some()), (PIECE_BYTES, piece.end == bytes));
                    zeroed += PIECE_BYTES;
                    IoDone::Prepare { segment, to: piece.end, result: Ok(()) }
                }
                other => panic!("{other:?}"),
            };
            log.complete(done, 0);
        }
        zeroed
    }

    fn append(log: &mut LogWriter) {
        let rationale = "x".repeat(4_000);
        let principal = Principal::default();
        let (timestamp_us, idempotency_key, correlation_id, fingerprint, item, corpus) = (1, 0, 0, 0, 0, None);
        let rationale = rationale.as_str();
        let meta =
            Meta { timestamp_us, idempotency_key, correlation_id, fingerprint, principal, item, corpus, rationale };
        log.append(&Record { meta, entry: Entry::Recovery { incarnation: 1, cut_at: 4096 } });
    }

    #[test]
    fn the_last_segment_ahead_is_zeroed_as_the_log_fills() {
        let mut log = writer();
        let segment_bytes = Geometry::DEFAULT.segment_bytes;
        // Two segments at once.
        assert_eq!(settle(&mut log), 2 * segment_bytes);
        assert_eq!(log.segments(), (1, 3));
        let (mut written, mut zeroed) = (0, 0);
        while log.segments().1 < 4 {
            append(&mut log);
            let before = log.written_bytes();
            zeroed += settle(&mut log);
            written += log.written_bytes() - before;
            assert!(zeroed <= ZEROED_PER_WRITTEN * written + 2 * PIECE_BYTES, "{zeroed} for {written}");
            assert!(zeroed + PIECE_BYTES >= ZEROED_PER_WRITTEN * written, "{zeroed} for {written}");
        }
        assert_eq!(settle(&mut log), 0, "there are as many as there should be");
    }

    #[test]
    fn an_idle_log_is_prepared_a_piece_a_tick() {
        let mut log = writer();
        settle(&mut log);
        let pieces = Geometry::DEFAULT.segment_bytes / PIECE_BYTES;
        for _ in 0..pieces {
            assert_eq!(log.segments().1, 3);
            log.tick(0);
            assert_eq!(settle(&mut log), PIECE_BYTES);
        }
        assert_eq!(log.segments().1, 4);
    }

    #[test]
    fn a_ring_is_prepared_up_to_where_the_log_begins() {
        let geometry = Geometry { ring_segments: RING_SEGMENTS_MIN, ..Geometry::DEFAULT };
        let superblock = Superblock::of_new_ledger(Uuid::from_u128(1), [1; 32], geometry);
        // Requests may fill a segment and a bit more.
        let at_segment = |segment, segments_prepared| LogEnd {
            next_batch_at: geometry.segment_start(segment) + geometry.first_batch(),
            ..LogEnd::at_start(&superblock, segments_prepared, Mutation::NONE)
        };
        let end = at_segment(RING_SEGMENTS_MIN - 2, RING_SEGMENTS_MIN);
        let mut log = LogWriter::new(&superblock, end, None, Mutation::NONE);
        assert!(log.next_io().is_none() && log.cannot_grow());
        assert_eq!((log.prepared_bytes_for_requests(), log.ring_free_segments()), (0, 0));
        assert!(log.takes_small_entries(), "what is kept is for a drop");
        log.tick(GROW_RETRY_US);
        assert!(log.next_io().is_none(), "time alone makes no room");
        log.freed(2);
        let Some(Io::Prepare { segment, file_offset, piece, .. }) = log.next_io() else { panic!("there is room") };
        assert_eq!((segment, piece.start), (RING_SEGMENTS_MIN, 0));
        assert_eq!(file_offset, geometry.file_offset(0), "the place of segment 0");
        assert_eq!(log.ring_free_segments(), 1);
        log.complete(IoDone::Prepare { segment, to: piece.end, result: Ok(()) }, 0);
        assert_eq!(settle(&mut log), geometry.segment_bytes - PIECE_BYTES, "the other free place has time");
        assert_eq!(log.segments().1, RING_SEGMENTS_MIN + 1);
        assert!(log.prepared_bytes_for_requests() > 0 && !log.cannot_grow());
    }

    #[test]
    fn a_segment_whose_zeroing_failed_is_begun_again() {
        let mut log = writer();
        let Some(Io::Prepare { segment, piece, .. }) = log.next_io() else { panic!("nothing is prepared yet") };
        log.complete(IoDone::Prepare { segment, to: piece.end, result: Ok(()) }, 0);
        let Some(Io::Prepare { segment, piece, .. }) = log.next_io() else { panic!("the next piece") };
        assert_eq!(piece.start, PIECE_BYTES);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        log.complete(IoDone::Prepare { segment, to: piece.end, result: Err(full) }, 0);
        assert!(log.cannot_grow() && log.next_io().is_none());
        log.tick(GROW_RETRY_US);
        let Some(Io::Prepare { piece, .. }) = log.next_io() else { panic!("it is tried again") };
        assert_eq!(piece.start, 0);
    }
}
