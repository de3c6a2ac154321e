//! Rows in replies, read in one pass, where the general verifier goes over the frame and decoding over it again.
//!
//! Whatever is not as a daemon lays it out is left to the general way. So what is read here is what it would read.

use crate::bounds::SCAN_ROWS_MAX;
use crate::generated::claimd as wire;
use crate::reader::{Reader, Table};
use crate::reply::{Reply, ReplyResult, Row};
use crate::values::{Lifecycle, LogPosition, ReasonCode, ReconciliationState};

/// Positions that a reply with rows has: the one of its shard.
const POSITIONS: usize = 1;

/// A reply with rows, if it is as a daemon lays it out.
pub(super) fn decode(content: &[u8]) -> Option<Reply> {
    let mut reader = Reader::new(content);
    let root = reader.table(reader.indirect(0)?)?;
    let result_type = wire::ReplyResult(reader.u8(&root, wire::Reply::VT_RESULT_TYPE)??);
    if !matches!(result_type, wire::ReplyResult::RowFound | wire::ReplyResult::ScanPage | wire::ReplyResult::Found) {
        return None;
    }
    let positions = positions(&reader, &root)?;
    let table = reader.table(reader.indirect(root.field(wire::Reply::VT_RESULT, 4)??)?)?;
    let result = match result_type {
        wire::ReplyResult::RowFound => {
            let row = reader.table(reader.indirect(table.field(wire::RowFound::VT_ROW, 4)??)?)?;
            ReplyResult::Row(Box::new(row_of(&mut reader, &row)?))
        }
        wire::ReplyResult::ScanPage => {
            let rows = rows(&mut reader, &table, wire::ScanPage::VT_ROWS)?;
            ReplyResult::ScanPage { rows, next: reader.uuid(&table, wire::ScanPage::VT_NEXT)? }
        }
        _ => {
            let rows = rows(&mut reader, &table, wire::Found::VT_ROWS)?;
            let next = reader.u64(&table, wire::Found::VT_NEXT)?;
            ReplyResult::Found { rows, next: next.filter(|next| *next > 0) }
        }
    };
    let request_id = reader.u64(&root, wire::Reply::VT_REQUEST_ID)?.unwrap_or(0);
    Some(Reply { request_id, positions, result })
}

fn positions(reader: &Reader<'_>, root: &Table<'_>) -> Option<Vec<LogPosition>> {
    let Some(at) = root.field(wire::Reply::VT_POSITIONS, 4)? else { return Some(Vec::new()) };
    let at = reader.indirect(at)?;
    let count = reader.number::<4>(at).map(u32::from_le_bytes)? as usize;
    if count != POSITIONS {
        return None;
    }
    let position = |index: usize| {
        let at = at + 4 + 16 * index;
        let position = u64::from_le_bytes(reader.number(at + 8)?);
        Some(LogPosition { shard: u16::from_le_bytes(reader.number(at)?), position })
    };
    (0..count).map(position).collect()
}

fn rows(reader: &mut Reader<'_>, table: &Table<'_>, field: u16) -> Option<Vec<Row>> {
    let at = reader.indirect(table.field(field, 4)??)?;
    let count = reader.number::<4>(at).map(u32::from_le_bytes)? as usize;
    if count > SCAN_ROWS_MAX {
        return None;
    }
    let mut rows = Vec::with_capacity(count);
    for index in 0..count {
        let row = reader.table(reader.indirect(at + 4 + 4 * index)?)?;
        rows.push(row_of(reader, &row)?);
    }
    Some(rows)
}

fn row_of(reader: &mut Reader<'_>, row: &Table<'_>) -> Option<Row> {
    use wire::Row as R;
    let mut text = |field| Some(reader.text(row, field)?.map(str::to_owned));
    let (corpus, event_key) = (text(R::VT_CORPUS)??, text(R::VT_EVENT_KEY)??);
    let (owning_corpus, hosting_corpus) = (text(R::VT_OWNING_CORPUS)??, text(R::VT_HOSTING_CORPUS)??);
    let category = text(R::VT_CATEGORY)??;
    let tombstone_reason = text(R::VT_TOMBSTONE_REASON)?;
    let effective_quarter = text(R::VT_EFFECTIVE_QUARTER)?.unwrap_or_default();
    let reactivation_quarter = text(R::VT_REACTIVATION_QUARTER)?;
    let metadata = reader.vector(row, R::VT_METADATA)?.map_or_else(Vec::new, |(bytes, _)| bytes.to_vec());
    let reader = &*reader;
    let byte = |field| Some(reader.u8(row, field)?.unwrap_or(0));
    let i64 = |field| Some(reader.u64(row, field)?.map(|n| n as i64));
    let tombstone_reason_code = match byte(R::VT_TOMBSTONE_REASON_CODE)? {
        0 => None,
        code => Some(ReasonCode::try_from(code).ok()?),
    };
    Some(Row {
        event_id: reader.uuid(row, R::VT_EVENT_ID)??,
        corpus,
        lifecycle: Lifecycle::try_from(byte(R::VT_LIFECYCLE)?).ok()?,
        claim_timestamp_us: i64(R::VT_CLAIM_TIMESTAMP_US)?.unwrap_or(0),
        claim_sequence: reader.u64(row, R::VT_CLAIM_SEQUENCE)?.unwrap_or(0),
        event_key,
        occurred_at_us: i64(R::VT_OCCURRED_AT_US)?.unwrap_or(0),
        owning_corpus,
        hosting_corpus,
        category,
        taxonomy_version: reader.u32(row, R::VT_TAXONOMY_VERSION)?.unwrap_or(0),
        metadata,
        canonical_id: reader.uuid(row, R::VT_CANONICAL_ID)?,
        tombstoned_at_us: i64(R::VT_TOMBSTONED_AT_US)?,
        tombstone_reason_code,
        tombstone_reason,
        reactivated_at_us: i64(R::VT_REACTIVATED_AT_US)?,
        dispute_id: reader.uuid(row, R::VT_DISPUTE_ID)?,
        reconciliation_state: ReconciliationState::try_from(byte(R::VT_RECONCILIATION_STATE)?).ok()?,
        over_budget: byte(R::VT_OVER_BUDGET)? != 0,
        incident_active: byte(R::VT_INCIDENT_ACTIVE)? != 0,
        effective_quarter,
        reactivation_quarter,
        retention_expires_at_us: i64(R::VT_RETENTION_EXPIRES_AT_US)?.unwrap_or(0),
        references: reader.u32(row, R::VT_REFERENCES)?.unwrap_or(0),
    })
}
