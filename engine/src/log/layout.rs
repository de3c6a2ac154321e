//! Where things lie in a ledger file, and where the next batch goes.
//!
//! ```text
//!  ledger file: superblock copies (64 KiB) │ segment 0 │ segment 1 │ …       each `segment_bytes` long
//!  segment:     header block (4 KiB) │ batch │ batch │ …                     a batch never crosses a segment's end
//! ```
//!
//! A *log offset* counts from the start of segment 0, headers included, as if segments were never moved: it is what an
//! index keeps. [`Geometry::file_offset`] turns it into a place in the file.

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
/// See [`SEGMENT_BYTES_RANGE`].
pub const BATCH_BYTES_RANGE: std::ops::RangeInclusive<u64> = 128 << 10..=4 << 20;

/// The sizes that a ledger is formatted with; they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a segment, header included.
    pub segment_bytes: u64,
    /// Bytes of a batch, header and padding included.
    pub batch_bytes_max: u64,
}

impl Geometry {
    /// What `claimd format` takes unless told otherwise: 64 MiB and 1 MiB.
    pub const DEFAULT: Geometry = Geometry { segment_bytes: 64 << 20, batch_bytes_max: 1 << 20 };

    /// Whether a log with these sizes can be walked and written at all, smaller ones than [`Geometry::check`] takes included.
    pub fn is_sound(self) -> bool {
        let Geometry { segment_bytes, batch_bytes_max } = self;
        let is_whole = |bytes: u64, most: u64| bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && bytes <= most;
        is_whole(segment_bytes, *SEGMENT_BYTES_RANGE.end())
            && is_whole(batch_bytes_max, *BATCH_BYTES_RANGE.end())
            && segment_bytes >= SEGMENT_HEADER_BYTES + 2 * batch_bytes_max
    }

    /// Whether the sizes can hold a log at all, and if not, why.
    pub fn check(self) -> Result<Geometry, String> {
        let Geometry { segment_bytes, batch_bytes_max } = self;
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
        SUPERBLOCK_AREA_BYTES + log_offset
    }

    /// The length of a file that holds `segments` segments.
    pub const fn file_bytes(self, segments: u64) -> u64 {
        SUPERBLOCK_AREA_BYTES + segments * self.segment_bytes
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
        let g = Geometry { segment_bytes: 1 << 20, batch_bytes_max: 128 << 10 };
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
            let geometry = Geometry { segment_bytes, batch_bytes_max };
            assert!(geometry.check().is_err() && !geometry.is_sound(), "{segment_bytes} {batch_bytes_max}");
        }
    }
}
