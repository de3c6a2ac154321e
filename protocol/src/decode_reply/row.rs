//! Rows.

use super::{decode_lifecycle, decode_reason};
use crate::generated::claimd as wire;
use crate::reply::{Claimed, Row};
use crate::values::ReconciliationState;
use crate::wire_values::typed_uuid;

pub(super) fn decode_claimed(table: &wire::Claimed<'_>) -> Claimed {
    Claimed {
        event_id: typed_uuid(table.event_id()),
        claim_timestamp_us: table.claim_timestamp_us(),
        claim_sequence: table.claim_sequence(),
    }
}

pub(super) fn decode_row(table: &wire::Row<'_>) -> Result<Row, String> {
    Ok(Row {
        event_id: typed_uuid(table.event_id()),
        corpus: table.corpus().to_owned(),
        lifecycle: decode_lifecycle(table.lifecycle())?,
        claim_timestamp_us: table.claim_timestamp_us(),
        claim_sequence: table.claim_sequence(),
        event_key: table.event_key().to_owned(),
        occurred_at_us: table.occurred_at_us(),
        owning_corpus: table.owning_corpus().to_owned(),
        hosting_corpus: table.hosting_corpus().to_owned(),
        category: table.category().to_owned(),
        taxonomy_version: table.taxonomy_version(),
        metadata: table.metadata().map(|metadata| metadata.bytes().to_vec()).unwrap_or_default(),
        canonical_id: table.canonical_id().map(typed_uuid),
        tombstoned_at_us: table.tombstoned_at_us(),
        tombstone_reason_code: decode_reason(table.tombstone_reason_code())?,
        tombstone_reason: table.tombstone_reason().map(str::to_owned),
        reactivated_at_us: table.reactivated_at_us(),
        dispute_id: table.dispute_id().map(typed_uuid),
        reconciliation_state: ReconciliationState::try_from(table.reconciliation_state().0)
            .map_err(|error| format!("reconciliation_state: {error}"))?,
        over_budget: table.over_budget(),
        incident_active: table.incident_active(),
        effective_quarter: table.effective_quarter().unwrap_or_default().to_owned(),
        reactivation_quarter: table.reactivation_quarter().map(str::to_owned),
        retention_expires_at_us: table.retention_expires_at_us(),
        references: table.references(),
    })
}
