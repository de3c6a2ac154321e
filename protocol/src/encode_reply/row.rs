//! Rows.

use super::{FIXED_BYTES, wire_reason};
use crate::generated::claimd as wire;
use crate::reply::{Claimed, Row};
use crate::wire_values::{optional_string, wire_uuid};
use crate::{Builder, Uuid};
use flatbuffers::WIPOffset;

/// At least the bytes that `row` takes in a page. A daemon adds these up to keep a page below
/// [`FRAME_BYTES_MAX`](crate::FRAME_BYTES_MAX); the rest of a page takes at most 256 bytes.
pub fn row_frame_bytes(row: &Row) -> usize {
    FIXED_BYTES
        + row.corpus.len()
        + row.event_key.len()
        + row.owning_corpus.len()
        + row.hosting_corpus.len()
        + row.category.len()
        + row.metadata.len()
        + row.tombstone_reason.as_ref().map_or(0, String::len)
        + row.effective_quarter.len()
        + row.reactivation_quarter.as_ref().map_or(0, String::len)
}

pub(super) fn encode_claimed<'b>(builder: &mut Builder, claimed: &Claimed) -> WIPOffset<wire::Claimed<'b>> {
    let event_id = wire_uuid(claimed.event_id);
    let table = wire::Claimed::create(
        builder,
        &wire::ClaimedArgs {
            event_id: Some(&event_id),
            claim_timestamp_us: claimed.claim_timestamp_us,
            claim_sequence: claimed.claim_sequence,
        },
    );
    WIPOffset::new(table.value())
}

pub(super) fn encode_referenced<'b>(builder: &mut Builder, canonical_id: Uuid) -> WIPOffset<wire::Referenced<'b>> {
    let args = wire::ReferencedArgs { canonical_id: Some(&wire_uuid(canonical_id)) };
    WIPOffset::new(wire::Referenced::create(builder, &args).value())
}

pub(super) fn encode_row<'b>(builder: &mut Builder, row: &Row) -> WIPOffset<wire::Row<'b>> {
    let corpus = Some(builder.create_string(&row.corpus));
    let event_key = Some(builder.create_string(&row.event_key));
    let owning_corpus = Some(builder.create_string(&row.owning_corpus));
    let hosting_corpus = Some(builder.create_string(&row.hosting_corpus));
    let category = Some(builder.create_string(&row.category));
    let metadata = (!row.metadata.is_empty()).then(|| builder.create_vector(&row.metadata));
    let tombstone_reason = row.tombstone_reason.as_ref().map(|reason| builder.create_string(reason));
    let effective_quarter = optional_string(builder, &row.effective_quarter);
    let reactivation_quarter = row.reactivation_quarter.as_ref().map(|quarter| builder.create_string(quarter));
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
