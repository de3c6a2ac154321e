//! Frames read as builders lay them out, in one pass that looks at each field once. What is not as expected is `None`, and left to
//! the general verifier, which says what is wrong with it.

use crate::Uuid;
use crate::bounds::FRAME_BYTES_MAX;

/// A table: where it starts and how long it says it is, and where its fields are.
pub(crate) struct Table<'a> {
    at: usize,
    bytes: usize,
    fields: &'a [u8],
}

impl Table<'_> {
    /// Where a field of so many bytes stands; the inner `None` when it is left out, the outer when it is not in its table.
    #[inline(always)]
    pub(crate) fn field(&self, field: u16, bytes: usize) -> Option<Option<usize>> {
        let slot = usize::from(field);
        let Some(offset) = self.fields.get(slot..slot + 2) else { return Some(None) };
        match usize::from(u16::from_le_bytes([offset[0], offset[1]])) {
            0 => Some(None),
            offset => (offset >= 4 && offset + bytes <= self.bytes).then_some(Some(self.at + offset)),
        }
    }
}

pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    visited: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, visited: 0 }
    }

    /// Bytes of strings and vectors, each counted as often as it was read.
    pub(crate) fn visited(&self) -> usize {
        self.visited
    }

    #[inline(always)]
    pub(crate) fn number<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..)?.first_chunk().copied().filter(|_| at.is_multiple_of(N))
    }

    /// Where an offset leads to.
    pub(crate) fn indirect(&self, at: usize) -> Option<usize> {
        at.checked_add(u32::from_le_bytes(self.number(at)?) as usize)
    }

    #[inline(always)]
    pub(crate) fn table(&self, at: usize) -> Option<Table<'a>> {
        let back = i64::from(i32::from_le_bytes(self.number(at)?));
        let fields_at = usize::try_from(i64::try_from(at).ok()?.checked_sub(back)?).ok()?;
        let length = usize::from(u16::from_le_bytes(self.number(fields_at)?));
        let bytes = usize::from(u16::from_le_bytes(self.number(fields_at + 2)?));
        let fields = self.bytes.get(fields_at..fields_at + length)?;
        let is_whole = length >= 4 && length.is_multiple_of(2) && bytes >= 4 && at + bytes <= self.bytes.len();
        is_whole.then_some(Table { at, bytes, fields })
    }

    pub(crate) fn u8(&self, table: &Table<'_>, field: u16) -> Option<Option<u8>> {
        table.field(field, 1)?.map_or(Some(None), |at| self.bytes.get(at).map(|byte| Some(*byte)))
    }

    pub(crate) fn u32(&self, table: &Table<'_>, field: u16) -> Option<Option<u32>> {
        table.field(field, 4)?.map_or(Some(None), |at| Some(Some(u32::from_le_bytes(self.number(at)?))))
    }

    pub(crate) fn u64(&self, table: &Table<'_>, field: u16) -> Option<Option<u64>> {
        table.field(field, 8)?.map_or(Some(None), |at| Some(Some(u64::from_le_bytes(self.number(at)?))))
    }

    #[inline(always)]
    pub(crate) fn uuid(&self, table: &Table<'_>, field: u16) -> Option<Option<Uuid>> {
        let uuid = |at: usize| Some(Uuid::from_bytes(*self.bytes.get(at..)?.first_chunk()?));
        table.field(field, 16)?.map_or(Some(None), |at| uuid(at).map(Some))
    }

    #[inline(always)]
    pub(crate) fn vector(&mut self, table: &Table<'_>, field: u16) -> Option<Option<(&'a [u8], usize)>> {
        let Some(at) = table.field(field, 4)? else { return Some(None) };
        let at = self.indirect(at)?;
        let length = u32::from_le_bytes(self.number(at)?) as usize;
        let end = (at + 4).checked_add(length)?;
        // Sharing makes little bytes look like many: no more is copied than a frame holds.
        self.visited += length;
        if self.visited > FRAME_BYTES_MAX {
            return None;
        }
        Some(Some((self.bytes.get(at + 4..end)?, end)))
    }

    #[inline(always)]
    pub(crate) fn text(&mut self, table: &Table<'_>, field: u16) -> Option<Option<&'a str>> {
        let Some((bytes, end)) = self.vector(table, field)? else { return Some(None) };
        let is_ended = self.bytes.get(end) == Some(&0);
        std::str::from_utf8(bytes).ok().filter(|_| is_ended).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::{FRAME_PREFIX_BYTES, METADATA_BYTES_MAX};
    use crate::generated::claimd as wire;
    use crate::{Builder, ClaimItem, Operation, Request, encode_request};

    #[test]
    fn what_is_read_again_and_again_ends_with_the_bytes_of_a_frame() {
        let metadata = vec![7; METADATA_BYTES_MAX];
        let item = ClaimItem {
            event_key: "key",
            occurred_at_us: 1,
            owning_corpus: "",
            hosting_corpus: "",
            category: "x",
            taxonomy_version: 1,
            metadata: &metadata,
        };
        let claim = Operation::Claim { corpus: "a", item, unless_registered_within_ms: 0 };
        let mut frame = Vec::new();
        encode_request(&mut Builder::new(), &Request::new(7, claim), &mut frame).expect("it fits");
        let mut reader = Reader::new(&frame[FRAME_PREFIX_BYTES..]);
        let table =
            |at: Option<usize>| reader.table(reader.indirect(at.unwrap_or(0)).expect("in it")).expect("a table");
        let root = table(None);
        let claim = table(root.field(wire::Request::VT_OPERATION, 4).expect("in it"));
        let item = table(claim.field(wire::Claim::VT_ITEM, 4).expect("in it"));
        let read = (0..).take_while(|_| reader.vector(&item, wire::ClaimItem::VT_METADATA).is_some()).count();
        assert_eq!(read, FRAME_BYTES_MAX / METADATA_BYTES_MAX);
    }
}
