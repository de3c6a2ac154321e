//! Where things lie in a ledger file, and where the next batch goes.
//!
//! ```text
//!  ledger file: superblock copies (64 KiB) │ segment 0 │ segment 1 │ …       each `segment_bytes` long
//!  segment:     header block (4 KiB) │ batch │ batch │ …                     a batch never crosses a segment's end
//!
//!  on a device: superblock copies (64 KiB) │ place 0 │ place 1 │ … │ place R-1 │ what is left over
//!               a ring of R places: segment n lies at place n modulo R, here with R = 4, of a log that begins with segment 6:
//!               superblock copies │ segment 8 │ segment 9 │ segment 6 │ segment 7
//! ```
//!
//! A *log offset* counts from the start of segment 0, headers included, as if segments were never moved: it is what an
//! index keeps, and it never comes again. [`Geometry::file_offset`] turns it into a place in the file. In a ring a place
//! belongs to one segment at a time: the log goes to it again when the segment that was there is dropped.

use super::zeroing::SEGMENTS_AHEAD;

/// Everything is written in blocks of this size: the largest that every device in use writes untorn is not assumed,
/// only that a block is what O_DIRECT and the file system's page cache agree on.
pub const BLOCK_BYTES: u64 = 4096;
/// The start of the file that holds the superblock's four copies.
pub const SUPERBLOCK_AREA_BYTES: u64 = 64 * 1024;
/// The first block of a segment is its header.
pub const SEGMENT_HEADER_BYTES: u64 = BLOCK_BYTES;
/// Longest body of a record: 64 KiB of metadata and every other field at its bound, rounded up.
pub const RECORD_BYTES_MAX: u64 = 72 * 1024;
/// Batches submitted and not yet durable.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Runs of the daemon that a log counts: the bits above are left for an epoch.
pub const INCARNATIONS_MAX: u64 = (1 << 48) - 1;
/// Bounds of `segment_bytes` and `batch_bytes_max` at format.
pub const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u64> = 1 << 20..=4 << 30;
/// Segments that a ring keeps for what is not asked for: what retention logs when it drops a quarter, and the indexes of segments
/// that are full. Without them a ring that is full would stay so.
pub const RING_RESERVED_SEGMENTS: u64 = 2;
/// The least segments of a ring: the one that is written, those that are zeroed ahead of it, and those that are kept.
pub const RING_SEGMENTS_MIN: u64 = 1 + SEGMENTS_AHEAD + RING_RESERVED_SEGMENTS;
/// More bytes than any log has.
pub const LOG_BYTES_MAX: u64 = u64::MAX >> 2;
/// See [`SEGMENT_BYTES_RANGE`].
pub const BATCH_BYTES_RANGE: std::ops::RangeInclusive<u64> = 128 << 10..=4 << 20;

/// The sizes that a ledger is formatted with; they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a segment, header included.
    pub segment_bytes: u64,
    /// Bytes of a batch, header and padding included.
    pub batch_bytes_max: u64,
    /// Places for segments on a device, which the log goes round in; 0 for a file, which grows, and gets the space of dropped
    /// segments back.
    pub ring_segments: u64,
}

impl Geometry {
    /// What `claimd format` takes unless told otherwise: 64 MiB and 1 MiB.
    pub const DEFAULT: Geometry = Geometry { segment_bytes: 64 << 20, batch_bytes_max: 1 << 20, ring_segments: 0 };

    /// Whether a log with these sizes can be walked and written at all, smaller ones than [`Geometry::check`] takes included.
    pub fn is_sound(self) -> bool {
        let Geometry { segment_bytes, batch_bytes_max, ring_segments } = self;
        let is_whole = |bytes: u64, most: u64| bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && bytes <= most;
        is_whole(segment_bytes, *SEGMENT_BYTES_RANGE.end())
            && is_whole(batch_bytes_max, *BATCH_BYTES_RANGE.end())
            && segment_bytes >= SEGMENT_HEADER_BYTES + 2 * batch_bytes_max
            && (ring_segments == 0 || (RING_SEGMENTS_MIN..=LOG_BYTES_MAX / segment_bytes).contains(&ring_segments))
    }

    /// The same sizes in a file.
    pub const fn of_file(self) -> Geometry {
        Geometry { ring_segments: 0, ..self }
    }

    /// The same sizes on a device of so many bytes, whose log goes round in it; with too few for that, the error is how many
    /// it takes.
    pub const fn of_device(self, device_bytes: u64) -> Result<Geometry, u64> {
        let ring_segments = device_bytes.saturating_sub(SUPERBLOCK_AREA_BYTES) / self.segment_bytes;
        match ring_segments >= RING_SEGMENTS_MIN {
            true => Ok(Geometry { ring_segments, ..self }),
            false => Err(self.of_file().file_bytes(RING_SEGMENTS_MIN)),
        }
    }

    /// Whether the log goes round.
    pub const fn is_ring(self) -> bool {
        self.ring_segments > 0
    }

    /// The first segment that has no place of its own yet in a log that begins with segment `first`; `u64::MAX` for a file.
    pub const fn segments_end(self, first: u64) -> u64 {
        match self.is_ring() {
            true => first.saturating_add(self.ring_segments),
            false => u64::MAX,
        }
    }

    /// Whether the sizes can hold a log at all, and if not, why.
    pub fn check(self) -> Result<Geometry, String> {
        let Geometry { segment_bytes, batch_bytes_max, .. } = self;
        if !SEGMENT_BYTES_RANGE.contains(&segment_bytes) || segment_bytes % BLOCK_BYTES != 0 {
            return Err(format!("segment size {segment_bytes} is not a multiple of 4096 between 1 MiB and 4 GiB"));
        }
        if !BATCH_BYTES_RANGE.contains(&batch_bytes_max) || batch_bytes_max % BLOCK_BYTES != 0 {
            return Err(format!("batch size {batch_bytes_max} is not a multiple of 4096 between 128 KiB and 4 MiB"));
        }
        if segment_bytes < SEGMENT_HEADER_BYTES + 2 * batch_bytes_max {
            return Err(format!("a segment of {segment_bytes} bytes has no room for two batches of {batch_bytes_max}"));
        }
        Ok(self)
    }

    /// The log offset of the very first batch.
    pub const fn first_batch(self) -> u64 {
        SEGMENT_HEADER_BYTES
    }

    /// The segment that a log offset lies in.
    pub const fn segment_of(self, log_offset: u64) -> u64 {
        log_offset / self.segment_bytes
    }

    /// The log offset at which a segment starts (its header).
    pub const fn segment_start(self, segment: u64) -> u64 {
        segment * self.segment_bytes
    }

    /// Whether a batch at this log offset is the first of its segment.
    pub const fn is_first(self, log_offset: u64) -> bool {
        log_offset % self.segment_bytes == SEGMENT_HEADER_BYTES
    }

    /// Where the batch after one of `bytes` (padded) at `log_offset` goes. A segment is left as soon as it might not
    /// take the largest batch, so that this depends on nothing but offsets, and recovery walks the same way.
    pub const fn next_batch(self, log_offset: u64, bytes: u64) -> u64 {
        let next = log_offset + bytes;
        let segment = self.segment_of(log_offset);
        if self.segment_start(segment + 1) - next < self.batch_bytes_max {
            self.segment_start(segment + 1) + SEGMENT_HEADER_BYTES
        } else {
            next
        }
    }

    /// Where the log goes on behind a batch that ends its segment early.
    pub const fn next_segment(self, log_offset: u64) -> u64 {
        self.segment_start(self.segment_of(log_offset) + 1) + SEGMENT_HEADER_BYTES
    }

    /// The place in the ledger file of a log offset.
    pub const fn file_offset(self, log_offset: u64) -> u64 {
        let within_ring = match self.is_ring() {
            true => log_offset % (self.ring_segments * self.segment_bytes),
            false => log_offset,
        };
        SUPERBLOCK_AREA_BYTES + within_ring
    }

    /// How many of `bytes` from a log offset on lie together in the file: behind its last place a ring goes on with its first.
    pub const fn together(self, log_offset: u64, bytes: u64) -> u64 {
        if !self.is_ring() {
            return bytes;
        }
        let ring_bytes = self.ring_segments * self.segment_bytes;
        let to_end = ring_bytes - log_offset % ring_bytes;
        if bytes < to_end { bytes } else { to_end }
    }

    /// The length of a file that holds the segments before this one. A ring has its length, whatever it holds.
    pub const fn file_bytes(self, segments: u64) -> u64 {
        let places = if self.is_ring() { self.ring_segments } else { segments };
        SUPERBLOCK_AREA_BYTES + places * self.segment_bytes
    }
}

/// `bytes` rounded up to whole blocks.
pub const fn pad_to_block(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_never_cross_a_segment() {
        let g = Geometry { segment_bytes: 1 << 20, batch_bytes_max: 128 << 10, ring_segments: 0 };
        let mut at = g.first_batch();
        for i in 0..10_000u64 {
            let bytes = pad_to_block(1 + (i * 7919) % (128 << 10));
            assert_eq!(g.segment_of(at), g.segment_of(at + bytes - 1), "batch {i}");
            let next = g.next_batch(at, bytes);
            assert!(next >= at + bytes);
            assert!(next.is_multiple_of(BLOCK_BYTES) && next % g.segment_bytes >= SEGMENT_HEADER_BYTES);
            at = next;
        }
        assert!(g.segment_of(at) > 300);
    }

    #[test]
    fn senseless_sizes_are_refused() {
        assert!(Geometry::DEFAULT.check().is_ok() && Geometry::DEFAULT.is_sound());
        for (segment_bytes, batch_bytes_max) in
            [(1 << 20, 1 << 20), (0, 1 << 20), (64 << 20, 0), ((64 << 20) + 1, 1 << 20), (64 << 20, 8 << 20)]
        {
            let geometry = Geometry { segment_bytes, batch_bytes_max, ring_segments: 0 };
            assert!(geometry.check().is_err() && !geometry.is_sound(), "{segment_bytes} {batch_bytes_max}");
        }
        for ring_segments in [1, RING_SEGMENTS_MIN - 1, (LOG_BYTES_MAX >> 26) + 1, u64::MAX] {
            assert!(!Geometry { ring_segments, ..Geometry::DEFAULT }.is_sound(), "{ring_segments}");
        }
        assert!(Geometry { ring_segments: RING_SEGMENTS_MIN, ..Geometry::DEFAULT }.is_sound());
    }

    #[test]
    fn a_ring_has_each_place_once_a_lap_and_within_the_device() {
        let g = Geometry { segment_bytes: 1 << 20, batch_bytes_max: 128 << 10, ring_segments: 0 };
        assert_eq!(g.of_device(g.file_bytes(RING_SEGMENTS_MIN) - 1), Err(g.file_bytes(RING_SEGMENTS_MIN)));
        for ring_segments in RING_SEGMENTS_MIN..12 {
            let device_bytes = g.file_bytes(ring_segments) + 77;
            let ring = g.of_device(device_bytes).expect("it is large enough");
            assert_eq!(ring, Geometry { ring_segments, ..g });
            assert_eq!((ring.of_file(), ring.segments_end(5)), (g, 5 + ring_segments));
            for segment in 0..5 * ring_segments {
                let start = ring.segment_start(segment);
                // The first lap lies as in a file, and every later one where the one before did.
                let place = segment % ring_segments;
                assert_eq!(ring.file_offset(start), g.file_offset(g.segment_start(place)));
                let last = ring.file_offset(start + ring.segment_bytes - 1);
                assert_eq!(last, ring.file_offset(start) + ring.segment_bytes - 1, "a segment lies together");
                assert!(last < device_bytes && ring.file_bytes(segment) <= device_bytes);
                // What goes on behind the segment lies behind it, but for the last place's.
                let together = ring.together(start + BLOCK_BYTES, 2 * ring.segment_bytes);
                let to_end = (ring_segments - place) * ring.segment_bytes - BLOCK_BYTES;
                assert_eq!(together, to_end.min(2 * ring.segment_bytes), "segment {segment} of {ring_segments}");
                assert_eq!(ring.together(start, BLOCK_BYTES), BLOCK_BYTES);
            }
        }
        assert_eq!(g.together(7 << 20, 9 << 20), 9 << 20);
    }
}
