//! Claims, read from frames as builders lay them out: one pass that looks at each field once, where the general verifier
//! goes over the frame and decoding over it again.
//!
//! Whatever is not as expected (a field that claims seldom have, a bound exceeded, an offset that leads astray) is left to the
//! general way, which says what is wrong with it. So what is read here is what it would read.

use super::{check_item, name};
use crate::Uuid;
use crate::bounds::{BATCH_ITEMS_MAX, UNLESS_REGISTERED_MS_MAX};
use crate::generated::claimd as wire;
use crate::request::{ClaimItem, Operation, Request};

/// A request that claims, if it is as builders lay it out.
pub(super) fn decode(content: &[u8]) -> Option<Request<'_>> {
    let mut reader = Reader { bytes: content, visited: 0 };
    let root = reader.table(reader.indirect(0)?)?;
    let operation_type = wire::Operation(*content.get(root.field(wire::Request::VT_OPERATION_TYPE, 1)??)?);
    if !matches!(operation_type, wire::Operation::Claim | wire::Operation::ClaimBatch) {
        return None;
    }
    if root.field(wire::Request::VT_AT_LEAST, 4)?.is_some() {
        return None;
    }
    let rationale = reader.text(&root, wire::Request::VT_RATIONALE)?.unwrap_or_default();
    let idempotency_key =
        reader.uuid(&root, wire::Request::VT_IDEMPOTENCY_KEY)?.filter(|key| key.get_version_num() == 7)?;
    let table = reader.table(reader.indirect(root.field(wire::Request::VT_OPERATION, 4)??)?)?;
    let operation = if operation_type == wire::Operation::Claim {
        let unless = reader.u32(&table, wire::Claim::VT_UNLESS_REGISTERED_WITHIN_MS)?.unwrap_or(0);
        let corpus = reader.text(&table, wire::Claim::VT_CORPUS)??;
        let item = reader.table(reader.indirect(table.field(wire::Claim::VT_ITEM, 4)??)?)?;
        if unless > UNLESS_REGISTERED_MS_MAX {
            return None;
        }
        let item = reader.item(&item)?;
        Operation::Claim { corpus: name("corpus", corpus).ok()?, item, unless_registered_within_ms: unless }
    } else {
        let corpus = reader.text(&table, wire::ClaimBatch::VT_CORPUS)??;
        let at = reader.indirect(table.field(wire::ClaimBatch::VT_ITEMS, 4)??)?;
        let count = reader.number::<4>(at).map(u32::from_le_bytes)? as usize;
        if count > BATCH_ITEMS_MAX {
            return None;
        }
        let mut items = Vec::with_capacity(count);
        for index in 0..count {
            let item = reader.table(reader.indirect(at + 4 + 4 * index)?)?;
            items.push(reader.item(&item)?);
        }
        Operation::ClaimBatch { corpus: name("corpus", corpus).ok()?, items }
    };
    if rationale.len() > operation.rationale_bytes_max() {
        return None;
    }
    let request = Request {
        request_id: reader.u64(&root, wire::Request::VT_REQUEST_ID)?.unwrap_or(0),
        deadline_ms: reader.u32(&root, wire::Request::VT_DEADLINE_MS)?.unwrap_or(0),
        at_least: Vec::new(),
        idempotency_key: Some(idempotency_key),
        rationale,
        correlation_id: reader.uuid(&root, wire::Request::VT_CORRELATION_ID)?,
        at_us: reader.u64(&root, wire::Request::VT_AT_US)?.map(|at_us| at_us as i64),
        operation,
    };
    // Sharing makes little bytes look like many; the general way has a bound for that.
    (reader.visited <= content.len()).then_some(request)
}

/// A table: where it starts and how long it says it is, and where its fields are.
struct Table<'a> {
    at: usize,
    bytes: usize,
    fields: &'a [u8],
}

impl Table<'_> {
    /// Where a field of so many bytes stands; the inner `None` when it is left out, the outer when it is not in its table.
    fn field(&self, field: u16, bytes: usize) -> Option<Option<usize>> {
        let slot = usize::from(field);
        let Some(offset) = self.fields.get(slot..slot + 2) else { return Some(None) };
        match usize::from(u16::from_le_bytes([offset[0], offset[1]])) {
            0 => Some(None),
            offset => (offset >= 4 && offset + bytes <= self.bytes).then_some(Some(self.at + offset)),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// Bytes of strings and metadata.
    visited: usize,
}

impl<'a> Reader<'a> {
    fn number<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..)?.first_chunk().copied().filter(|_| at.is_multiple_of(N))
    }

    /// Where an offset leads to.
    fn indirect(&self, at: usize) -> Option<usize> {
        at.checked_add(u32::from_le_bytes(self.number(at)?) as usize)
    }

    fn table(&self, at: usize) -> Option<Table<'a>> {
        let back = i64::from(i32::from_le_bytes(self.number(at)?));
        let fields_at = usize::try_from(i64::try_from(at).ok()?.checked_sub(back)?).ok()?;
        let length = usize::from(u16::from_le_bytes(self.number(fields_at)?));
        let bytes = usize::from(u16::from_le_bytes(self.number(fields_at + 2)?));
        let fields = self.bytes.get(fields_at..fields_at + length)?;
        let is_whole = length >= 4 && length.is_multiple_of(2) && bytes >= 4 && at + bytes <= self.bytes.len();
        is_whole.then_some(Table { at, bytes, fields })
    }

    fn u32(&self, table: &Table<'_>, field: u16) -> Option<Option<u32>> {
        table.field(field, 4)?.map_or(Some(None), |at| Some(Some(u32::from_le_bytes(self.number(at)?))))
    }

    fn u64(&self, table: &Table<'_>, field: u16) -> Option<Option<u64>> {
        table.field(field, 8)?.map_or(Some(None), |at| Some(Some(u64::from_le_bytes(self.number(at)?))))
    }

    fn uuid(&self, table: &Table<'_>, field: u16) -> Option<Option<Uuid>> {
        let uuid = |at: usize| Some(Uuid::from_bytes(*self.bytes.get(at..)?.first_chunk()?));
        table.field(field, 16)?.map_or(Some(None), |at| uuid(at).map(Some))
    }

    fn vector(&mut self, table: &Table<'_>, field: u16) -> Option<Option<(&'a [u8], usize)>> {
        let Some(at) = table.field(field, 4)? else { return Some(None) };
        let at = self.indirect(at)?;
        let length = u32::from_le_bytes(self.number(at)?) as usize;
        let end = (at + 4).checked_add(length)?;
        self.visited += length;
        Some(Some((self.bytes.get(at + 4..end)?, end)))
    }

    fn text(&mut self, table: &Table<'_>, field: u16) -> Option<Option<&'a str>> {
        let Some((bytes, end)) = self.vector(table, field)? else { return Some(None) };
        let is_ended = self.bytes.get(end) == Some(&0);
        std::str::from_utf8(bytes).ok().filter(|_| is_ended).map(Some)
    }

    fn item(&mut self, table: &Table<'_>) -> Option<ClaimItem<'a>> {
        let item = ClaimItem {
            event_key: self.text(table, wire::ClaimItem::VT_EVENT_KEY)??,
            occurred_at_us: self.u64(table, wire::ClaimItem::VT_OCCURRED_AT_US)?.unwrap_or(0) as i64,
            owning_corpus: self.text(table, wire::ClaimItem::VT_OWNING_CORPUS)?.unwrap_or_default(),
            hosting_corpus: self.text(table, wire::ClaimItem::VT_HOSTING_CORPUS)?.unwrap_or_default(),
            category: self.text(table, wire::ClaimItem::VT_CATEGORY)??,
            taxonomy_version: self.u32(table, wire::ClaimItem::VT_TAXONOMY_VERSION)?.unwrap_or(0),
            metadata: self.vector(table, wire::ClaimItem::VT_METADATA)?.map_or(&[], |(bytes, _)| bytes),
        };
        check_item(item).ok()
    }
}
