//! A batch: what one write makes durable.
//!
//! ```text
//!  0        magic                 8
//!  8        shard                 2   flags 2 (0: recovery batch, 1: of an index, 2: the segment's last)   record count 4
//!  16       batch number          8   consecutive from 1
//!  24       incarnation           8   of the daemon's run that wrote it; the high 16 bits are left for an epoch
//!  32       first position        8   of its records; a batch without records has the next one's
//!  40       content bytes         4   header and records, without padding
//!  44       total bytes           4   a multiple of 4096
//!  48       durable position      8   known durable when this batch was submitted
//!  56       durable batch         8   likewise
//!  64       hash of the previous batch   32
//!  96       hash of this batch           32   keyed BLAKE3 of header and records, without this field
//!  128      records, then zeroes, which are checked to be zeroes instead of being hashed
//! ```
//!
//! The hash is keyed with the ledger's random key, so that neither left-overs of another ledger nor bytes forged inside
//! a client's metadata verify, and chained, so that it is checksum and audit chain in one.

use super::layout::{BLOCK_BYTES, pad_to_block};
use crate::mutant::{Mutant, Mutation};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u64 = u64::from_le_bytes(*b"claimBAT");
const FLAG_RECOVERY: u16 = 1;
const FLAG_SEALING: u16 = 2;
const FLAG_LAST: u16 = 4;
/// Bytes of the header.
pub const BATCH_HEADER_BYTES: usize = 128;
const HASH_AT: usize = 96;

/// BLAKE3 output.
pub type Hash = [u8; 32];

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    shard: U16,
    flags: U16,
    record_count: U32,
    number: U64,
    incarnation: U64,
    first_position: U64,
    content_bytes: U32,
    total_bytes: U32,
    durable_position: U64,
    durable_batch: U64,
    previous_hash: Hash,
    hash: Hash,
}

/// What a batch says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// The shard whose log this is.
    pub shard: u16,
    /// First batch of a new incarnation.
    pub is_recovery: bool,
    /// A part of a segment's index or its seal: it has no records.
    pub is_sealing: bool,
    /// The log goes on in the next segment, wherever this one ends.
    pub is_last: bool,
    /// Number of records.
    pub record_count: u32,
    /// Consecutive from 1.
    pub number: u64,
    /// Run of the daemon that wrote it.
    pub incarnation: u64,
    /// Position of the first record, or the next position if there is none.
    pub first_position: u64,
    /// Header and records, without padding.
    pub content_bytes: u32,
    /// With padding.
    pub total_bytes: u32,
    /// Last position known durable at submission.
    pub durable_position: u64,
    /// Last batch known durable at submission.
    pub durable_batch: u64,
    /// Hash of the batch before.
    pub previous_hash: Hash,
}

impl BatchHeader {
    /// The position after the last record.
    pub fn next_position(&self) -> u64 {
        self.first_position + u64::from(self.record_count)
    }
}

/// Pads `batch` (header space and records) with zeroes, writes the header, and returns the batch's hash.
pub fn seal(batch: &mut Vec<u8>, key: &Hash, header: &BatchHeader, mutation: Mutation) -> Hash {
    debug_assert!(batch.len() >= BATCH_HEADER_BYTES);
    let content_bytes = batch.len();
    batch.resize(pad_to_block(content_bytes as u64) as usize, 0);
    let raw = RawHeader {
        magic: MAGIC.into(),
        shard: header.shard.into(),
        flags: ((u16::from(header.is_recovery) * FLAG_RECOVERY)
            | (u16::from(header.is_sealing) * FLAG_SEALING)
            | (u16::from(header.is_last) * FLAG_LAST))
            .into(),
        record_count: header.record_count.into(),
        number: header.number.into(),
        incarnation: header.incarnation.into(),
        first_position: header.first_position.into(),
        content_bytes: (content_bytes as u32).into(),
        total_bytes: (batch.len() as u32).into(),
        durable_position: header.durable_position.into(),
        durable_batch: header.durable_batch.into(),
        previous_hash: header.previous_hash,
        hash: [0; 32],
    };
    batch[..BATCH_HEADER_BYTES].copy_from_slice(raw.as_bytes());
    let hash = hash_of(&batch[..content_bytes], key, mutation);
    batch[HASH_AT..BATCH_HEADER_BYTES].copy_from_slice(&hash);
    hash
}

/// `content` is header and records, without padding: a batch of one claim is mostly padding.
fn hash_of(content: &[u8], key: &Hash, mutation: Mutation) -> Hash {
    let key = if mutation.is(Mutant::NoKey) { &[0; 32] } else { key };
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&content[..HASH_AT]);
    if !mutation.is(Mutant::HashOfHeaderOnly) {
        hasher.update(&content[BATCH_HEADER_BYTES..]);
    }
    *hasher.finalize().as_bytes()
}

/// What stands at a place where a batch may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A whole batch whose hash verifies under the ledger's key.
    Batch {
        /// Its header.
        header: BatchHeader,
        /// Its hash.
        hash: Hash,
    },
    /// Nothing but zeroes in the first block.
    Zeroes,
    /// Anything else.
    Invalid,
}

/// How many bytes a batch at the start of `block` says it has, if it looks like one: what to read before [`find`].
pub fn claimed_bytes(block: &[u8], batch_bytes_max: u64) -> Option<u64> {
    let (raw, _) = RawHeader::read_from_prefix(block).ok()?;
    let total = u64::from(raw.total_bytes.get());
    let content = u64::from(raw.content_bytes.get());
    let plausible = raw.magic.get() == MAGIC
        && total % BLOCK_BYTES == 0
        && total <= batch_bytes_max
        && content >= BATCH_HEADER_BYTES as u64
        && content <= total
        && pad_to_block(content) == total;
    plausible.then_some(total)
}

/// What a batch at the start of `bytes` says about itself, unverified.
#[derive(Debug, Clone, Copy)]
pub struct Peeked {
    /// With padding.
    pub total_bytes: u64,
    /// It has no records.
    pub is_sealing: bool,
    /// The log goes on in the next segment.
    pub is_last: bool,
}

/// Looks at what may be a batch; `None` where it does not begin as one.
pub fn peek(bytes: &[u8]) -> Option<Peeked> {
    let (raw, _) = RawHeader::read_from_prefix(bytes).ok()?;
    let (total_bytes, content) = (u64::from(raw.total_bytes.get()), u64::from(raw.content_bytes.get()));
    let is_batch = raw.magic.get() == MAGIC && total_bytes >= BLOCK_BYTES;
    let has = |flag| raw.flags.get() & flag != 0;
    // It is passed over: a header with a flipped bit must not have records passed over.
    let is_sealing = has(FLAG_SEALING) && raw.record_count.get() == 0 && pad_to_block(content) == total_bytes;
    is_batch.then_some(Peeked { total_bytes, is_sealing, is_last: has(FLAG_LAST) })
}

/// Verifies the batch at the start of `bytes`. The slice may be longer than the batch, or cut short.
pub fn find(bytes: &[u8], key: &Hash, shard: u16, batch_bytes_max: u64, mutation: Mutation) -> Found {
    if is_zero(&bytes[..bytes.len().min(BLOCK_BYTES as usize)]) {
        return Found::Zeroes;
    }
    let Some(total) = claimed_bytes(bytes, batch_bytes_max) else { return Found::Invalid };
    let (Some(batch), Ok((raw, _))) = (bytes.get(..total as usize), RawHeader::read_from_prefix(bytes)) else {
        return Found::Invalid;
    };
    let (content, padding) = batch.split_at(raw.content_bytes.get() as usize);
    if raw.shard.get() != shard {
        return Found::Invalid;
    }
    let verifies = || hash_of(content, key, mutation) == raw.hash && is_zero(padding);
    if !mutation.is(Mutant::NoHashCheck) && !verifies() {
        return Found::Invalid;
    }
    let header = BatchHeader {
        shard: raw.shard.get(),
        is_recovery: raw.flags.get() & FLAG_RECOVERY != 0,
        is_sealing: raw.flags.get() & FLAG_SEALING != 0,
        is_last: raw.flags.get() & FLAG_LAST != 0,
        record_count: raw.record_count.get(),
        number: raw.number.get(),
        incarnation: raw.incarnation.get(),
        first_position: raw.first_position.get(),
        content_bytes: raw.content_bytes.get(),
        total_bytes: raw.total_bytes.get(),
        durable_position: raw.durable_position.get(),
        durable_batch: raw.durable_batch.get(),
        previous_hash: raw.previous_hash,
    };
    Found::Batch { header, hash: raw.hash }
}

/// Whether all of it is zero; fast on long stretches.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(128);
    chunks.all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && bytes.chunks_exact(128).remainder().iter().all(|byte| *byte == 0)
}

/// The records of a verified batch: the bytes between header and padding.
pub fn records(batch: &[u8], header: &BatchHeader) -> std::ops::Range<usize> {
    debug_assert!(batch.len() >= header.content_bytes as usize);
    BATCH_HEADER_BYTES..header.content_bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            shard: 3,
            is_recovery: false,
            is_sealing: false,
            is_last: false,
            record_count: 2,
            number: 7,
            incarnation: 1,
            first_position: 40,
            content_bytes: 0,
            total_bytes: 0,
            durable_position: 39,
            durable_batch: 6,
            previous_hash: [9; 32],
        }
    }

    fn sealed(key: &Hash) -> Vec<u8> {
        let mut batch = vec![0; BATCH_HEADER_BYTES];
        batch.extend_from_slice(b"two records, as far as a batch knows");
        seal(&mut batch, key, &header(), Mutation::NONE);
        batch
    }

    #[test]
    fn a_sealed_batch_is_found_again() {
        let batch = sealed(&[1; 32]);
        assert_eq!(batch.len(), 4096);
        let Found::Batch { header: found, .. } = find(&batch, &[1; 32], 3, 1 << 20, Mutation::NONE) else {
            panic!("not found")
        };
        assert_eq!((found.number, found.first_position, found.next_position()), (7, 40, 42));
        assert_eq!(&batch[records(&batch, &found)], b"two records, as far as a batch knows");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let batch = sealed(&[1; 32]);
        for bit in 0..batch.len() * 8 {
            let mut broken = batch.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(find(&broken, &[1; 32], 3, 1 << 20, Mutation::NONE), Found::Invalid, "bit {bit}");
        }
    }

    #[test]
    fn other_ledgers_other_shards_and_cut_batches_are_not_ours() {
        let batch = sealed(&[1; 32]);
        assert_eq!(find(&batch, &[2; 32], 3, 1 << 20, Mutation::NONE), Found::Invalid);
        assert_eq!(find(&batch, &[1; 32], 4, 1 << 20, Mutation::NONE), Found::Invalid);
        assert_eq!(find(&batch[..4095], &[1; 32], 3, 1 << 20, Mutation::NONE), Found::Invalid);
        assert_eq!(find(&[0; 4096], &[1; 32], 3, 1 << 20, Mutation::NONE), Found::Zeroes);
    }
}
