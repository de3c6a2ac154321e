//! The superblock: what a ledger file is. The only thing that is ever written in place.
//!
//! Four copies, 16 KiB apart. An update writes copies 0 and 1, flushes, then 2 and 3, flushes: at every instant at least
//! two copies of one generation are whole. The reader takes the valid copy with the greatest generation.
//!
//! ```text
//!  0    magic 8 │ format version 4 │ reserved 4 │ generation 8
//!  24   ledger UUID 16 │ ledger key 32
//!  72   shard 2 │ shard count 2 │ clock mode 1 │ reserved 3
//!  80   segment bytes 8 │ batch bytes max 8 │ formatted at (us) 8 │ first segment 8
//!  112  the last seal: log offset 8 │ batch 8 │ hash 32
//!  160  where the log begins, if not with segment 0: batch 8 │ position 8 │ incarnation 8 │ hash before it 32 │ the seal before it
//!       48 │ what was claimed before is gone (us) 8
//!  272  places of the ring, 0 in a file 8
//!  280  zeroes … 4064 BLAKE3 of bytes 0..4064
//! ```

use super::batch::Hash;
use super::end::LogEnd;
use super::layout::{BLOCK_BYTES, Geometry, LOG_BYTES_MAX};
use crate::sealed::Checkpoint;
use crate::storage::{Durability, Storage};
use crate::time::TIME_US_MAX;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u64 = u64::from_le_bytes(*b"claimdSB");
/// The format that this build writes to files, and to devices that were formatted without a ring.
pub const FORMAT_VERSION: u32 = 3;
/// The format of a log that goes round, and the newest that this build reads. An older build would take it for one that does not.
pub const FORMAT_VERSION_OF_RING: u32 = 4;
/// The oldest format that this build reads: version 1 is without sealed segments, 2 without dropped ones. Opening such a ledger makes it one of the present format.
pub const FORMAT_VERSION_MIN: u32 = 1;
/// Number of copies.
pub const COPIES: u64 = 4;
/// From one copy to the next.
pub const COPY_STRIDE_BYTES: u64 = 16 * 1024;
/// More batches, records or slots than any log has: counting on from it does not overflow.
pub(crate) const COUNT_MAX: u64 = 1 << 62;
const CHECKSUM_AT: usize = BLOCK_BYTES as usize - 32;

/// Where a copy lies in the file.
pub const fn copy_offset(copy: u64) -> u64 {
    copy * COPY_STRIDE_BYTES
}

/// Where a ledger's time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockMode {
    /// The daemon's wall clock.
    Wall,
    /// The requests' own `at`.
    Replay,
}

/// The content of a superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Counts its updates.
    pub generation: u64,
    /// The ledger that this file is a shard of.
    pub ledger: Uuid,
    /// Keys every batch's hash.
    pub key: Hash,
    /// Which shard this file is.
    pub shard: u16,
    /// How many the ledger has.
    pub shard_count: u16,
    /// Where time comes from.
    pub clock: ClockMode,
    /// Sizes.
    pub geometry: Geometry,
    /// When it was formatted, microseconds since the epoch.
    pub formatted_at_us: i64,
    /// Where the log begins, once segments were dropped.
    pub origin: Option<Origin>,
    /// The last seal: everything before its segment's end is known from there.
    pub checkpoint: Option<Checkpoint>,
    /// Of the format that it was written in.
    pub version: u32,
}

impl Superblock {
    /// Of shard 0, the only one, of a ledger by the wall clock in which nothing is yet.
    pub fn of_new_ledger(ledger: Uuid, key: Hash, geometry: Geometry) -> Superblock {
        Superblock {
            generation: 1,
            ledger,
            key,
            shard: 0,
            shard_count: 1,
            clock: ClockMode::Wall,
            geometry,
            formatted_at_us: 0,
            origin: None,
            checkpoint: None,
            version: format_version(geometry),
        }
    }
}

/// The version of the format that a log with this geometry is written in.
pub const fn format_version(geometry: Geometry) -> u32 {
    if geometry.is_ring() { FORMAT_VERSION_OF_RING } else { FORMAT_VERSION }
}

/// Where a log begins whose first segments were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The log's end before its first segment.
    pub start: LogEnd,
    /// The seal of the segment before: the small state behind it is the one that the log goes on from.
    pub seal: Checkpoint,
    /// What was claimed before this is gone, microseconds since the epoch.
    pub gone_before_us: i64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawCheckpoint {
    log_offset: U64,
    number: U64,
    hash: Hash,
}

impl RawCheckpoint {
    fn of(checkpoint: Option<Checkpoint>) -> RawCheckpoint {
        let Checkpoint { log_offset, number, hash } = checkpoint.unwrap_or_default();
        RawCheckpoint { log_offset: log_offset.into(), number: number.into(), hash }
    }

    fn get(&self) -> Checkpoint {
        Checkpoint { log_offset: self.log_offset.get(), number: self.number.get(), hash: self.hash }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOrigin {
    next_number: U64,
    next_position: U64,
    incarnation: U64,
    previous_hash: Hash,
    seal: RawCheckpoint,
    gone_before_us: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U64,
    version: U32,
    reserved_1: U32,
    generation: U64,
    ledger: [u8; 16],
    key: Hash,
    shard: U16,
    shard_count: U16,
    clock: u8,
    reserved_2: [u8; 3],
    segment_bytes: U64,
    batch_bytes_max: U64,
    formatted_at_us: U64,
    first_segment: U64,
    checkpoint: RawCheckpoint,
    origin: RawOrigin,
    ring_segments: U64,
}

/// Why a file is not a ledger that can be opened.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// The read failed.
    #[error("reading the superblock failed: {0}")]
    Io(#[from] std::io::Error),
    /// No copy is whole.
    #[error("none of the four superblock copies verifies: this is not a ledger file, or all copies are damaged")]
    NoCopy,
    /// Another build's format.
    #[error(
        "the ledger has format version {found}, this build reads versions {FORMAT_VERSION_MIN} to {FORMAT_VERSION_OF_RING}; \
         use a build that reads it"
    )]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// Whole, and not from any build.
    #[error("the superblock's {field} is {found}, which no build writes: restore the file from a backup")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
    },
}

/// One copy as found on disk, for `inspect`.
#[derive(Debug)]
pub struct CopyFound {
    /// 0 to 3.
    pub copy: u64,
    /// Its content, if it verifies.
    pub superblock: Option<Superblock>,
}

impl Superblock {
    /// The same without what changes while a ledger is written to.
    pub fn as_formatted(&self) -> Superblock {
        let (generation, origin, checkpoint, version) = (1, None, None, format_version(self.geometry));
        Superblock { generation, origin, checkpoint, version, ..self.clone() }
    }

    /// The same for a copy of the log in a file, which has all that is part of it at its log offset.
    pub fn of_file(&self) -> Superblock {
        Superblock { geometry: self.geometry.of_file(), version: self.version.min(FORMAT_VERSION), ..self.clone() }
    }

    /// The first segment that is still part of the log.
    pub fn first_segment(&self) -> u64 {
        self.origin.map_or(0, |origin| self.geometry.segment_of(origin.start.next_batch_at))
    }

    /// One copy, as it stands in the file.
    pub fn encode(&self) -> Vec<u8> {
        let raw = Raw {
            magic: MAGIC.into(),
            version: self.version.into(),
            reserved_1: 0.into(),
            generation: self.generation.into(),
            ledger: *self.ledger.as_bytes(),
            key: self.key,
            shard: self.shard.into(),
            shard_count: self.shard_count.into(),
            clock: match self.clock {
                ClockMode::Wall => 0,
                ClockMode::Replay => 1,
            },
            reserved_2: [0; 3],
            segment_bytes: self.geometry.segment_bytes.into(),
            batch_bytes_max: self.geometry.batch_bytes_max.into(),
            formatted_at_us: (self.formatted_at_us as u64).into(),
            first_segment: self.first_segment().into(),
            checkpoint: RawCheckpoint::of(self.checkpoint),
            origin: RawOrigin {
                next_number: self.origin.map_or(0, |origin| origin.start.next_number).into(),
                next_position: self.origin.map_or(0, |origin| origin.start.next_position).into(),
                incarnation: self.origin.map_or(0, |origin| origin.start.incarnation).into(),
                previous_hash: self.origin.map_or([0; 32], |origin| origin.start.previous_hash),
                seal: RawCheckpoint::of(self.origin.map(|origin| origin.seal)),
                gone_before_us: self.origin.map_or(0, |origin| origin.gone_before_us as u64).into(),
            },
            ring_segments: self.geometry.ring_segments.into(),
        };
        let mut block = vec![0; BLOCK_BYTES as usize];
        block[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        let checksum = blake3::hash(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(checksum.as_bytes());
        block
    }

    /// Decodes one copy; `Ok(None)` when it does not verify.
    pub fn decode(block: &[u8]) -> Result<Option<Superblock>, SuperblockError> {
        let Some(block) = block.get(..BLOCK_BYTES as usize) else { return Ok(None) };
        let Ok((raw, _)) = Raw::read_from_prefix(block) else { return Ok(None) };
        if raw.magic.get() != MAGIC || blake3::hash(&block[..CHECKSUM_AT]).as_bytes()[..] != block[CHECKSUM_AT..] {
            return Ok(None);
        }
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION_OF_RING).contains(&raw.version.get()) {
            return Err(SuperblockError::Version { found: raw.version.get() });
        }
        let clock = match raw.clock {
            0 => ClockMode::Wall,
            1 => ClockMode::Replay,
            _ => return Ok(None),
        };
        let geometry = Geometry {
            segment_bytes: raw.segment_bytes.get(),
            batch_bytes_max: raw.batch_bytes_max.get(),
            ring_segments: raw.ring_segments.get(),
        };
        let first_segment = raw.first_segment.get();
        let is_of_ring = raw.version.get() == FORMAT_VERSION_OF_RING;
        if !geometry.is_sound() || geometry.is_ring() != is_of_ring {
            return Err(SuperblockError::Field { field: "geometry", found: format!("{geometry:?}") });
        }
        if first_segment > LOG_BYTES_MAX / geometry.segment_bytes {
            return Err(SuperblockError::Field { field: "first segment", found: first_segment.to_string() });
        }
        let superblock = Superblock {
            generation: raw.generation.get(),
            ledger: Uuid::from_bytes(raw.ledger),
            key: raw.key,
            shard: raw.shard.get(),
            shard_count: raw.shard_count.get(),
            clock,
            geometry,
            formatted_at_us: raw.formatted_at_us.get() as i64,
            origin: (first_segment != 0).then(|| Origin {
                start: LogEnd {
                    next_batch_at: geometry.segment_start(first_segment) + geometry.first_batch(),
                    next_number: raw.origin.next_number.get(),
                    next_position: raw.origin.next_position.get(),
                    previous_hash: raw.origin.previous_hash,
                    incarnation: raw.origin.incarnation.get(),
                    segments_prepared: 0,
                },
                seal: raw.origin.seal.get(),
                gone_before_us: raw.origin.gone_before_us.get() as i64,
            }),
            // No batch lies at the log's very start, which is a segment's header.
            checkpoint: Some(raw.checkpoint.get()).filter(|checkpoint| checkpoint.log_offset != 0),
            version: raw.version.get(),
        };
        superblock.check().map(Some)
    }

    /// Its hash has no key: whoever writes to the file can make one that verifies.
    fn check(self) -> Result<Superblock, SuperblockError> {
        let refuse = |field, found: String| Err(SuperblockError::Field { field, found });
        if self.shard >= self.shard_count {
            return refuse("shard", format!("{} of {}", self.shard, self.shard_count));
        }
        let log_bytes_max = LOG_BYTES_MAX;
        if self.checkpoint.is_some_and(|at| at.log_offset % BLOCK_BYTES != 0 || at.log_offset > log_bytes_max) {
            return refuse("checkpoint", format!("{:?}", self.checkpoint));
        }
        let is_origin_sound = |origin: Origin| {
            let Origin { start, seal, gone_before_us } = origin;
            let counts = [start.next_number, start.next_position, start.incarnation, seal.number];
            let is_place = seal.log_offset.is_multiple_of(BLOCK_BYTES) && seal.log_offset <= log_bytes_max;
            is_place && counts.iter().all(|n| *n <= COUNT_MAX) && (0..=TIME_US_MAX).contains(&gone_before_us)
        };
        if !self.origin.is_none_or(is_origin_sound) {
            return refuse("origin", format!("{:?}", self.origin));
        }
        if !(0..=TIME_US_MAX).contains(&self.formatted_at_us) {
            return refuse("time of formatting", format!("{} us", self.formatted_at_us));
        }
        Ok(self)
    }

    /// Writes all four copies, two at a time.
    pub async fn write(&self, storage: &impl Storage) -> std::io::Result<()> {
        let block = self.encode();
        for pair in [[0, 1], [2, 3]] {
            for copy in pair {
                storage.write_at(copy_offset(copy), &block, Durability::Cached).await?;
            }
            storage.flush().await?;
        }
        Ok(())
    }

    /// Reads the newest valid copy.
    pub async fn read(storage: &impl Storage) -> Result<Superblock, SuperblockError> {
        let mut newest: Option<Superblock> = None;
        let mut refused = None;
        for copy in 0..COPIES {
            let block = storage.read_at(copy_offset(copy), BLOCK_BYTES as usize).await?;
            match Superblock::decode(&block) {
                Ok(Some(found)) if newest.as_ref().is_none_or(|n| found.generation > n.generation) => {
                    newest = Some(found);
                }
                Ok(_) => {}
                Err(error) => refused = Some(error),
            }
        }
        newest.ok_or_else(|| refused.unwrap_or(SuperblockError::NoCopy))
    }

    /// Every copy, valid or not, for `inspect`.
    pub async fn read_copies(storage: &impl Storage) -> Result<Vec<CopyFound>, SuperblockError> {
        let mut copies = Vec::new();
        for copy in 0..COPIES {
            let block = storage.read_at(copy_offset(copy), BLOCK_BYTES as usize).await?;
            copies.push(CopyFound { copy, superblock: Superblock::decode(&block)? });
        }
        Ok(copies)
    }
}

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"claimSEG");

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSegmentHeader {
    magic: U64,
    segment: U64,
    ledger: [u8; 16],
    shard: U16,
    reserved: [u8; 6],
    checksum: Hash,
}

/// The header block of a prepared segment. It is written once the segment is zeroed, and a segment without one is not
/// part of the log yet.
pub fn encode_segment_header(superblock: &Superblock, segment: u64) -> Vec<u8> {
    let mut raw = RawSegmentHeader {
        magic: SEGMENT_MAGIC.into(),
        segment: segment.into(),
        ledger: *superblock.ledger.as_bytes(),
        shard: superblock.shard.into(),
        reserved: [0; 6],
        checksum: [0; 32],
    };
    raw.checksum = *blake3::keyed_hash(&superblock.key, raw.as_bytes()).as_bytes();
    let mut block = vec![0; BLOCK_BYTES as usize];
    block[..size_of::<RawSegmentHeader>()].copy_from_slice(raw.as_bytes());
    block
}

/// Whether `block` is the header of this very segment.
pub fn is_segment_header(block: &[u8], superblock: &Superblock, segment: u64) -> bool {
    block == encode_segment_header(superblock, segment).as_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            generation: 1,
            ledger: Uuid::from_u128(77),
            key: [5; 32],
            shard: 2,
            shard_count: 4,
            clock: ClockMode::Replay,
            geometry: Geometry::DEFAULT,
            formatted_at_us: 1_700_000_000_000_000,
            origin: None,
            checkpoint: Some(Checkpoint { log_offset: 81_920, number: 7, hash: [3; 32] }),
            version: FORMAT_VERSION,
        }
    }

    /// The same on a device.
    fn of_ring() -> Superblock {
        let geometry = Geometry { ring_segments: 12, ..Geometry::DEFAULT };
        Superblock { geometry, version: FORMAT_VERSION_OF_RING, ..superblock() }
    }

    #[test]
    fn decodes_what_it_encodes_and_nothing_else() {
        for whole in [superblock(), of_ring()] {
            assert_eq!(Superblock::decode(&whole.encode()).unwrap(), Some(whole));
        }
        let block = of_ring().encode();
        for bit in 0..block.len() * 8 {
            let mut broken = block.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&broken).unwrap(), None, "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut block = superblock().encode();
        block[8] = 9;
        let checksum = blake3::hash(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(checksum.as_bytes());
        assert!(matches!(Superblock::decode(&block), Err(SuperblockError::Version { found: 9 })));
    }

    #[test]
    fn what_no_build_writes_is_refused_though_it_verifies() {
        let geometry = |segment_bytes, batch_bytes_max| Geometry { segment_bytes, batch_bytes_max, ring_segments: 0 };
        let ring = |ring_segments| Geometry { ring_segments, ..Geometry::DEFAULT };
        let forged = [
            Superblock { geometry: ring(1), ..of_ring() },
            Superblock { geometry: ring(u64::MAX), ..of_ring() },
            // Only a log that goes round has its version, and an older build would not know that it does.
            Superblock { geometry: ring(0), ..of_ring() },
            Superblock { version: FORMAT_VERSION, ..of_ring() },
            Superblock { geometry: geometry(0, 1 << 20), ..superblock() },
            Superblock { geometry: geometry(64 << 20, 0), ..superblock() },
            Superblock { geometry: geometry(64 << 20, u64::MAX), ..superblock() },
            Superblock { geometry: geometry(u64::MAX - 4095, 1 << 20), ..superblock() },
            Superblock { geometry: geometry(1 << 20, 1 << 20), ..superblock() },
            Superblock { shard: 4, ..superblock() },
            Superblock { shard: 0, shard_count: 0, ..superblock() },
            Superblock { formatted_at_us: -1, ..superblock() },
            Superblock { formatted_at_us: i64::MAX, ..superblock() },
        ];
        for forged in forged {
            let decoded = Superblock::decode(&forged.encode());
            assert!(matches!(decoded, Err(SuperblockError::Field { .. })), "{forged:?}: {decoded:?}");
        }
    }

    #[test]
    fn a_copy_in_a_file_has_no_ring() {
        assert_eq!(of_ring().of_file(), superblock());
        assert_eq!(superblock().of_file(), superblock());
        assert_eq!((superblock().as_formatted().version, of_ring().as_formatted().version), (3, 4));
    }

    #[test]
    fn a_segment_header_names_its_segment() {
        let block = encode_segment_header(&superblock(), 8);
        assert!(is_segment_header(&block, &superblock(), 8));
        assert!(!is_segment_header(&block, &superblock(), 9));
        assert!(!is_segment_header(&vec![0; 4096], &superblock(), 8));
    }
}
