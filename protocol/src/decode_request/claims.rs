//! Claims, read from frames as builders lay them out: one pass that looks at each field once, where the general verifier
//! goes over the frame and decoding over it again.
//!
//! Whatever is not as expected (a field that claims seldom have, a bound exceeded, an offset that leads astray) is left to the
//! general way, which says what is wrong with it. So what is read here is what it would read.

use super::{check_item, name};
use crate::Uuid;
use crate::bounds::{BATCH_ITEMS_MAX, UNLESS_REGISTERED_MS_MAX};
use crate::generated::claimd as wire;
use crate::reader::{Reader, Table};
use crate::request::{ClaimItem, Operation, Request};

/// A request that claims, if it is as builders lay it out.
pub(super) fn decode(content: &[u8]) -> Option<Request<'_>> {
    let mut reader = Reader::new(content);
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
        let item = read_item(&mut reader, &item)?;
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
            items.push(read_item(&mut reader, &item)?);
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
    (reader.visited() <= content.len()).then_some(request)
}

/// The idempotency key of a request, as it stands in a frame that nobody has looked at yet: for what may be wrong.
pub fn key_at_sight(content: &[u8]) -> Option<Uuid> {
    let reader = Reader::new(content);
    let root = reader.table(reader.indirect(0)?)?;
    reader.uuid(&root, wire::Request::VT_IDEMPOTENCY_KEY)?
}

#[inline(always)]
fn read_item<'a>(reader: &mut Reader<'a>, table: &Table<'_>) -> Option<ClaimItem<'a>> {
    let item = ClaimItem {
        event_key: reader.text(table, wire::ClaimItem::VT_EVENT_KEY)??,
        occurred_at_us: reader.u64(table, wire::ClaimItem::VT_OCCURRED_AT_US)?.unwrap_or(0) as i64,
        owning_corpus: reader.text(table, wire::ClaimItem::VT_OWNING_CORPUS)?.unwrap_or_default(),
        hosting_corpus: reader.text(table, wire::ClaimItem::VT_HOSTING_CORPUS)?.unwrap_or_default(),
        category: reader.text(table, wire::ClaimItem::VT_CATEGORY)??,
        taxonomy_version: reader.u32(table, wire::ClaimItem::VT_TAXONOMY_VERSION)?.unwrap_or(0),
        metadata: reader.vector(table, wire::ClaimItem::VT_METADATA)?.map_or(&[], |(bytes, _)| bytes),
    };
    check_item(&item).ok()?;
    Some(item)
}
