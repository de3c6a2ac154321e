//! Rows.

use super::piece::FromEnd;
use super::plain_row::{self, is_plain};
use super::{Encoded, FIXED_BYTES, append_reply, wire_reason};
use crate::generated::claimd as wire;
use crate::reply::{Row, RowRef};
use crate::values::LogPosition;
use crate::wire_values::wire_uuid;
use crate::{Builder, PAGE_BYTES_MAX, Uuid};
use flatbuffers::{ForwardsUOffset, Vector, WIPOffset};

/// At least the bytes that `row` takes in a page. A daemon adds these up to keep a page below
/// [`PAGE_BYTES_MAX`]; the rest of a page takes at most 256 bytes.
pub fn row_frame_bytes(row: &RowRef<'_>) -> usize {
    FIXED_BYTES
        + row.corpus.len()
        + row.event_key.len()
        + row.owning_corpus.len()
        + row.hosting_corpus.len()
        + row.category.len()
        + row.metadata.len()
        + row.tombstone_reason.map_or(0, str::len)
        + row.effective_quarter.len()
        + row.reactivation_quarter.as_ref().map_or(0, |quarter| quarter.len())
}

pub(super) fn encode_referenced<'b>(builder: &mut Builder, canonical_id: Uuid) -> WIPOffset<wire::Referenced<'b>> {
    let args = wire::ReferencedArgs { canonical_id: Some(&wire_uuid(canonical_id)) };
    WIPOffset::new(wire::Referenced::create(builder, &args).value())
}

/// A text that was written to a page, and where: the next row that has the same one refers to it.
#[derive(Debug, Default)]
struct Repeated {
    text: String,
    at: Option<WIPOffset<&'static str>>,
}

impl Repeated {
    fn encode(&mut self, builder: &mut Builder, text: &str) -> WIPOffset<&'static str> {
        match self.at {
            Some(at) if self.text == text => at,
            _ => {
                self.text.clear();
                self.text.push_str(text);
                *self.at.insert(builder.create_string(text))
            }
        }
    }
}

/// What the rows of a page mostly share: texts, and the vtable of plain rows.
#[derive(Debug, Default)]
pub(super) struct Shared {
    plain: Option<FromEnd>,
    corpus: Repeated,
    owning_corpus: Repeated,
    hosting_corpus: Repeated,
    category: Repeated,
    effective_quarter: Repeated,
}

impl Shared {
    /// Nothing is written any more.
    fn forget(&mut self) {
        let Shared { plain, corpus, owning_corpus, hosting_corpus, category, effective_quarter } = self;
        *plain = None;
        for text in [corpus, owning_corpus, hosting_corpus, category, effective_quarter] {
            text.at = None;
        }
    }
}

/// A text that may be that of the row before.
fn encode_text(builder: &mut Builder, before: Option<&mut Repeated>, text: &str) -> WIPOffset<&'static str> {
    match before {
        Some(before) => before.encode(builder, text),
        None => builder.create_string(text),
    }
}

/// A row of a page: texts that are those of the row before are not written again.
fn encode_on_page<'b>(builder: &mut Builder, shared: &mut Shared, row: &RowRef<'_>) -> WIPOffset<wire::Row<'b>> {
    if !is_plain(row) {
        return encode_row(builder, Some(shared), row);
    }
    let vtable = *shared.plain.get_or_insert_with(|| plain_row::put_vtable(builder));
    let texts = plain_row::Texts {
        corpus: shared.corpus.encode(builder, row.corpus).value(),
        owning_corpus: shared.owning_corpus.encode(builder, row.owning_corpus).value(),
        hosting_corpus: shared.hosting_corpus.encode(builder, row.hosting_corpus).value(),
        category: shared.category.encode(builder, row.category).value(),
        effective_quarter: shared.effective_quarter.encode(builder, row.effective_quarter).value(),
        event_key: builder.create_string(row.event_key).value(),
        // A vector of bytes with a zero behind: they are copied at once, those of a vector one by one.
        metadata: builder.create_byte_string(row.metadata).value(),
    };
    WIPOffset::new(plain_row::put_table(builder, vtable, row, &texts))
}

/// A row, field by field.
pub(super) fn encode_row<'b>(
    builder: &mut Builder,
    mut shared: Option<&mut Shared>,
    row: &RowRef<'_>,
) -> WIPOffset<wire::Row<'b>> {
    let mut encode = |of: fn(&mut Shared) -> &mut Repeated, text: &str| {
        Some(encode_text(builder, shared.as_deref_mut().map(of), text))
    };
    let corpus = encode(|shared| &mut shared.corpus, row.corpus);
    let owning_corpus = encode(|shared| &mut shared.owning_corpus, row.owning_corpus);
    let hosting_corpus = encode(|shared| &mut shared.hosting_corpus, row.hosting_corpus);
    let category = encode(|shared| &mut shared.category, row.category);
    let effective_quarter = match row.effective_quarter {
        "" => None,
        quarter => encode(|shared| &mut shared.effective_quarter, quarter),
    };
    let event_key = Some(builder.create_string(row.event_key));
    let metadata = (!row.metadata.is_empty()).then(|| builder.create_vector(row.metadata));
    let tombstone_reason = row.tombstone_reason.map(|reason| builder.create_string(reason));
    let reactivation_quarter = row.reactivation_quarter.as_deref().map(|quarter| builder.create_string(quarter));
    let event_id = wire_uuid(row.event_id);
    let canonical_id = row.canonical_id.map(wire_uuid);
    let table = wire::Row::create(
        builder,
        &wire::RowArgs {
            event_id: Some(&event_id),
            corpus,
            lifecycle: wire::Lifecycle(row.lifecycle as u8),
            claim_timestamp_us: row.claim_timestamp_us,
            claim_sequence: row.claim_sequence,
            event_key,
            occurred_at_us: row.occurred_at_us,
            owning_corpus,
            hosting_corpus,
            category,
            taxonomy_version: row.taxonomy_version,
            metadata,
            canonical_id: canonical_id.as_ref(),
            tombstoned_at_us: row.tombstoned_at_us,
            tombstone_reason_code: wire_reason(row.tombstone_reason_code),
            tombstone_reason,
            reactivated_at_us: row.reactivated_at_us,
            dispute_id: row.dispute_id.map(wire_uuid).as_ref(),
            reconciliation_state: wire::ReconciliationState(row.reconciliation_state as u8),
            over_budget: row.over_budget,
            incident_active: row.incident_active,
            effective_quarter,
            reactivation_quarter,
            retention_expires_at_us: row.retention_expires_at_us,
            references: row.references,
        },
    );
    WIPOffset::new(table.value())
}

/// Some rows, in a vector.
pub(super) fn encode_rows<'b>(builder: &mut Builder, rows: &[Row]) -> WIPOffset<RowVector<'b>> {
    let mut shared = Shared::default();
    let rows: Vec<_> = rows.iter().map(|row| encode_on_page(builder, &mut shared, &row.by_ref())).collect();
    builder.create_vector(&rows)
}

/// Rows in a reply.
pub(super) type RowVector<'b> = Vector<'b, ForwardsUOffset<wire::Row<'b>>>;

/// A page of rows as it grows. Whatever its rows are, it fits a frame.
#[derive(Default)]
pub struct RowPage {
    builder: Builder,
    shared: Shared,
    rows: Vec<WIPOffset<wire::Row<'static>>>,
    last: Option<Uuid>,
    bytes: usize,
}

impl RowPage {
    /// Puts a row at its end. False if the page is full: it ends before that row.
    pub fn push(&mut self, row: &RowRef<'_>) -> bool {
        self.bytes += row_frame_bytes(row);
        if self.bytes > PAGE_BYTES_MAX && !self.rows.is_empty() {
            return false;
        }
        self.rows.push(encode_on_page(&mut self.builder, &mut self.shared, row));
        self.last = Some(row.event_id);
        true
    }

    /// The id of its last row.
    pub fn last(&self) -> Option<Uuid> {
        self.last
    }

    /// Appends it to `out` as the reply to a scan, as [`encode_reply`](super::encode_reply) does, and is empty then.
    pub fn scan_page(&mut self, request_id: u64, at: Option<LogPosition>, next: Option<Uuid>, out: &mut Vec<u8>) {
        let rows = Some(self.builder.create_vector(&self.rows));
        let next = next.map(wire_uuid);
        let table = wire::ScanPage::create(&mut self.builder, &wire::ScanPageArgs { rows, next: next.as_ref() });
        self.finish(request_id, at, (wire::ReplyResult::ScanPage, table.as_union_value()), out);
    }

    /// Appends it to `out` as the reply to a search, as [`encode_reply`](super::encode_reply) does, and is empty then.
    pub fn found(&mut self, request_id: u64, at: Option<LogPosition>, next: Option<u64>, out: &mut Vec<u8>) {
        let rows = Some(self.builder.create_vector(&self.rows));
        let table = wire::Found::create(&mut self.builder, &wire::FoundArgs { rows, next: next.unwrap_or(0) });
        self.finish(request_id, at, (wire::ReplyResult::Found, table.as_union_value()), out);
    }

    fn finish(&mut self, request_id: u64, at: Option<LogPosition>, result: Encoded, out: &mut Vec<u8>) {
        append_reply(&mut self.builder, request_id, at.as_slice(), result, out).expect("a page fits a frame");
        self.clear();
    }

    /// Makes it empty, whether it was a reply or not, and keeps its memory.
    pub fn clear(&mut self) {
        self.builder.reset();
        self.shared.forget();
        self.rows.clear();
        (self.last, self.bytes) = (None, 0);
    }
}

/// Appends the reply to a lookup as [`encode_reply`](super::encode_reply) does.
pub fn encode_row_found(
    builder: &mut Builder,
    request_id: u64,
    at: Option<LogPosition>,
    row: &RowRef<'_>,
    out: &mut Vec<u8>,
) {
    builder.reset();
    let row = Some(encode_row(builder, None, row));
    let table = wire::RowFound::create(builder, &wire::RowFoundArgs { row });
    let result = (wire::ReplyResult::RowFound, table.as_union_value());
    append_reply(builder, request_id, at.as_slice(), result, out).expect("a row fits a frame");
}
