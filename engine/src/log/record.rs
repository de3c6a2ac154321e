//! A record: one entry of the log with its position and checksum.
//!
//! ```text
//!  0   checksum 8     XXH3-64 of everything after it
//!  8   position 8
//!  16  body bytes 4 │ kind 2 │ reserved 2
//!  24  body, then zeroes to a multiple of 8
//! ```
//!
//! The checksum lets a single record be read from disk and trusted without its batch; against forgery and reordering it
//! is the batch's hash that counts.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const RECORD_HEADER_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 8;
const ALIGN: usize = 8;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    checksum: U64,
    position: U64,
    body_bytes: U32,
    kind: U16,
    reserved: U16,
}

/// A record as it lies in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// Its place in the shard's log.
    pub position: u64,
    /// What the body is.
    pub kind: u16,
    /// The body, without padding.
    pub body: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the record says it has.
    #[error("the record is cut short")]
    Short,
    /// The checksum does not match.
    #[error("the record's checksum does not match its bytes")]
    Checksum,
}

/// Appends a record to `out`, without its checksum; `body` writes the body. Returns the record's bytes, padding included.
pub fn append(out: &mut Vec<u8>, position: u64, kind: u16, body: impl FnOnce(&mut Vec<u8>)) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    body(out);
    let body_bytes = out.len() - start - RECORD_HEADER_BYTES;
    out.resize(start + padded(body_bytes), 0);
    let header = RawHeader {
        checksum: 0.into(),
        position: position.into(),
        body_bytes: (body_bytes as u32).into(),
        kind: kind.into(),
        reserved: 0.into(),
    };
    out[start..start + RECORD_HEADER_BYTES].copy_from_slice(header.as_bytes());
    out.len() - start
}

/// Puts the checksums into records that were appended to one another; anything else behind them is a panic. It is done when nothing
/// more is appended: what was just written in small pieces is read in large ones, for which the processor would wait until its
/// writes are done.
pub fn put_checksums(mut records: &mut [u8]) {
    while let Some(bytes) = record_bytes(records) {
        let (record, rest) = records.split_at_mut(bytes);
        let checksum = xxh3_64(&record[CHECKSUM_BYTES..]);
        record[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        records = rest;
    }
}

/// A record's bytes on disk for a body of `body_bytes`.
pub const fn padded(body_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(ALIGN)
}

/// How many bytes the record whose header starts `bytes` has, padding included.
pub fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let (raw, _) = RawHeader::read_from_prefix(bytes).ok()?;
    Some(padded(raw.body_bytes.get() as usize))
}

/// Position, kind and body bytes as the header at the start of `bytes` says them, unverified.
pub fn peek(bytes: &[u8]) -> Option<(u64, u16, usize)> {
    let (raw, _) = RawHeader::read_from_prefix(bytes).ok()?;
    Some((raw.position.get(), raw.kind.get(), raw.body_bytes.get() as usize))
}

/// Reads the record at the start of `bytes` and returns it with its length on disk.
pub fn read(bytes: &[u8]) -> Result<(RawRecord<'_>, usize), RecordError> {
    let (raw, _) = RawHeader::read_from_prefix(bytes).map_err(|_| RecordError::Short)?;
    let body_bytes = raw.body_bytes.get() as usize;
    let total = padded(body_bytes);
    let record = bytes.get(..total).ok_or(RecordError::Short)?;
    if xxh3_64(&record[CHECKSUM_BYTES..]) != raw.checksum.get() {
        return Err(RecordError::Checksum);
    }
    let body = &record[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + body_bytes];
    Ok((RawRecord { position: raw.position.get(), kind: raw.kind.get(), body }, total))
}

/// Reads the record at the start of `bytes` where it was [`read`] before: its checksum is not looked at again.
pub fn verified_before(bytes: &[u8]) -> Option<RawRecord<'_>> {
    let (raw, rest) = RawHeader::read_from_prefix(bytes).ok()?;
    let body = rest.get(..raw.body_bytes.get() as usize)?;
    Some(RawRecord { position: raw.position.get(), kind: raw.kind.get(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_appends() {
        let mut out = vec![];
        for (position, body) in [(1u64, &b""[..]), (2, b"x"), (3, b"12345678"), (4, &[7; 1000])] {
            append(&mut out, position, 9, |o| o.extend_from_slice(body));
        }
        assert_eq!(read(&out), Err(RecordError::Checksum));
        put_checksums(&mut out);
        let mut at = 0;
        for position in 1..=4 {
            assert_eq!(record_bytes(&out[at..]), Some(read(&out[at..]).unwrap().1));
            let (record, bytes) = read(&out[at..]).unwrap();
            assert_eq!((record.position, record.kind), (position, 9));
            at += bytes;
        }
        assert_eq!(at, out.len());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mut out = vec![];
        append(&mut out, 5, 1, |o| o.extend_from_slice(b"some body"));
        put_checksums(&mut out);
        for bit in 0..out.len() * 8 {
            let mut broken = out.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&broken).is_err(), "bit {bit}");
        }
        for cut in 0..out.len() {
            assert_eq!(read(&out[..cut]), Err(RecordError::Short));
        }
    }
}
