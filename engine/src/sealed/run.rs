//! Sorted runs of fixed-size entries in pages of 4 KiB, each page with its own checksum: the parts of a segment's index.
//!
//! ```text
//!  page: segment 8 │ page of the index 4 │ entries 2 │ entry bytes 2 │ entries … │ zeroes │ XXH3-64 of everything before
//! ```
//!
//! A run by hash is searched by interpolation, which needs no further index because hashes are spread evenly: one or two
//! pages. A run by key has the first key of each of its pages in the segment's summary: one page.

use crate::log::layout::BLOCK_BYTES;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const PAGE_BYTES: usize = BLOCK_BYTES as usize;
const HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 8;
/// Bytes of a page for entries.
pub const PAGE_ROOM: usize = PAGE_BYTES - HEADER_BYTES - CHECKSUM_BYTES;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    segment: U64,
    page: U32,
    entries: U16,
    entry_bytes: U16,
}

/// An entry of a run by hash: where in the segment a record with that hash starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashEntry {
    /// The hash.
    pub hash: u64,
    /// From the segment's start, in bytes.
    pub offset: u32,
}

/// An entry of a run by key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyEntry {
    /// The key.
    pub key: u128,
    /// What it leads to.
    pub offset: u32,
    /// How long that is, where the run says so.
    pub length: u32,
}

/// What a run is made of.
pub trait RunEntry: Copy + Ord {
    /// Bytes on a page.
    const BYTES: usize;
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it.
    fn take(bytes: &[u8]) -> Self;
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice is as long as the array")
}

impl RunEntry for HashEntry {
    const BYTES: usize = 12;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
    }

    fn take(bytes: &[u8]) -> HashEntry {
        HashEntry { hash: u64::from_le_bytes(number(bytes, 0)), offset: u32::from_le_bytes(number(bytes, 8)) }
    }
}

impl RunEntry for KeyEntry {
    const BYTES: usize = 24;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
    }

    fn take(bytes: &[u8]) -> KeyEntry {
        KeyEntry {
            key: u128::from_le_bytes(number(bytes, 0)),
            offset: u32::from_le_bytes(number(bytes, 16)),
            length: u32::from_le_bytes(number(bytes, 20)),
        }
    }
}

/// Entries of a page.
pub const fn per_page<E: RunEntry>() -> usize {
    PAGE_ROOM / E::BYTES
}

/// Appends pages for these entries, which are sorted; returns how many.
pub fn append<E: RunEntry>(pages: &mut Vec<u8>, segment: u64, entries: &[E]) -> u32 {
    debug_assert!(entries.is_sorted());
    let chunks = entries.chunks(per_page::<E>());
    let count = chunks.len() as u32;
    for chunk in chunks {
        let start = begin_page(pages, segment, chunk.len() as u16, E::BYTES as u16);
        chunk.iter().for_each(|entry| entry.put(pages));
        end_page(pages, start);
    }
    count
}

/// Appends pages of plain bytes; returns how many.
pub fn append_bytes(pages: &mut Vec<u8>, segment: u64, bytes: &[u8]) -> u32 {
    let chunks = bytes.chunks(PAGE_ROOM);
    let count = chunks.len() as u32;
    for chunk in chunks {
        let start = begin_page(pages, segment, chunk.len() as u16, 1);
        pages.extend_from_slice(chunk);
        end_page(pages, start);
    }
    count
}

fn begin_page(pages: &mut Vec<u8>, segment: u64, entries: u16, entry_bytes: u16) -> usize {
    let start = pages.len();
    let page = (start / PAGE_BYTES) as u32;
    let header = RawHeader {
        segment: segment.into(),
        page: page.into(),
        entries: entries.into(),
        entry_bytes: entry_bytes.into(),
    };
    pages.extend_from_slice(header.as_bytes());
    start
}

fn end_page(pages: &mut Vec<u8>, start: usize) {
    pages.resize(start + PAGE_BYTES - CHECKSUM_BYTES, 0);
    let checksum = xxh3_64(&pages[start..]);
    pages.extend_from_slice(&checksum.to_le_bytes());
}

/// The content of a page, if it is the one that is looked for and its checksum matches, or was seen to match.
fn content(page: &[u8], segment: u64, number: u32, entry_bytes: usize, is_verified: bool) -> Option<(&[u8], usize)> {
    let (body, checksum) = page.split_at_checked(PAGE_BYTES - CHECKSUM_BYTES)?;
    let (raw, content) = RawHeader::read_from_prefix(body).ok().map(|(raw, _)| raw).zip(body.get(HEADER_BYTES..))?;
    let entries = usize::from(raw.entries.get());
    let is_it = raw.segment.get() == segment
        && raw.page.get() == number
        && usize::from(raw.entry_bytes.get()) == entry_bytes
        && entries * entry_bytes <= PAGE_ROOM
        && (is_verified || xxh3_64(body).to_le_bytes() == checksum);
    is_it.then_some((content, entries))
}

/// A page of a run.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a, E> {
    content: &'a [u8],
    entries: usize,
    of: std::marker::PhantomData<E>,
}

impl<'a, E: RunEntry> Page<'a, E> {
    /// Reads a page; `None` when it does not verify.
    pub fn read(page: &'a [u8], segment: u64, number: u32) -> Option<Page<'a, E>> {
        Page::read_again(page, segment, number, false)
    }

    /// The same of a page that may have been verified before, and has not changed since.
    pub fn read_again(page: &'a [u8], segment: u64, number: u32, is_verified: bool) -> Option<Page<'a, E>> {
        let (content, entries) = content(page, segment, number, E::BYTES, is_verified)?;
        (entries > 0).then_some(Page { content, entries, of: std::marker::PhantomData })
    }

    /// How many entries it has, at least one.
    pub fn count(&self) -> usize {
        self.entries
    }

    /// An entry.
    pub fn get(&self, index: usize) -> E {
        E::take(&self.content[index * E::BYTES..])
    }

    /// The first.
    pub fn first(&self) -> E {
        self.get(0)
    }

    /// The last.
    pub fn last(&self) -> E {
        self.get(self.entries - 1)
    }

    /// How many entries stand before the first that is not `is_before`.
    pub fn partition_point(&self, is_before: impl Fn(&E) -> bool) -> usize {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = (low + high) / 2;
            if is_before(&self.get(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Whether a page is the one that is looked for, whatever its entries are, and its checksum matches.
pub fn is_page(page: &[u8], segment: u64, number: u32) -> bool {
    let header = RawHeader::read_from_prefix(page).map(|(raw, _)| usize::from(raw.entry_bytes.get()));
    header.is_ok_and(|entry_bytes| content(page, segment, number, entry_bytes, false).is_some())
}

/// The bytes of a page of plain bytes; `None` when it does not verify.
pub fn page_bytes(page: &[u8], segment: u64, number: u32) -> Option<&[u8]> {
    let (content, bytes) = content(page, segment, number, 1, false)?;
    content.get(..bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_read_and_a_flipped_bit_is_noticed() {
        let entries: Vec<_> = (0..1_000u32).map(|n| HashEntry { hash: u64::from(n) << 40, offset: n }).collect();
        let mut pages = vec![0; PAGE_BYTES];
        let count = append(&mut pages, 7, &entries) as usize;
        assert_eq!(count, 1_000usize.div_ceil(per_page::<HashEntry>()));
        let mut found = Vec::new();
        for number in 1..=count {
            let page = Page::<HashEntry>::read(&pages[number * PAGE_BYTES..][..PAGE_BYTES], 7, number as u32).unwrap();
            found.extend((0..page.count()).map(|index| page.get(index)));
            assert_eq!(page.partition_point(|entry| *entry < page.last()), page.count() - 1);
        }
        assert_eq!(found, entries);
        let page = &pages[PAGE_BYTES..2 * PAGE_BYTES];
        assert!(Page::<HashEntry>::read(page, 8, 1).is_none() && Page::<HashEntry>::read(page, 7, 2).is_none());
        assert!(Page::<KeyEntry>::read(page, 7, 1).is_none() && page_bytes(page, 7, 1).is_none());
        for bit in 0..PAGE_BYTES * 8 {
            let mut broken = page.to_vec();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Page::<HashEntry>::read(&broken, 7, 1).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn plain_bytes_come_back() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let mut pages = Vec::new();
        let count = append_bytes(&mut pages, 3, &bytes);
        let read = (0..count).flat_map(|n| page_bytes(&pages[n as usize * PAGE_BYTES..][..PAGE_BYTES], 3, n).unwrap());
        assert_eq!(read.copied().collect::<Vec<_>>(), bytes);
    }
}
