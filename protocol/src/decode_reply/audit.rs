//! The log, and what was measured.

use super::decode_reason;
use crate::generated::claimd as wire;
use crate::reply::{ClaimContent, Entry, Head, Pair};
use crate::values::AuditOperation;
use crate::wire_values::{typed_hash, typed_position, typed_uuid, typed_uuids};

pub(super) fn decode_entry(table: &wire::Entry<'_>) -> Result<Entry, String> {
    Ok(Entry {
        position: typed_position(table.position()),
        operation: AuditOperation::try_from(table.operation().0).map_err(|error| format!("operation: {error}"))?,
        corpus: table.corpus().unwrap_or_default().to_owned(),
        event_id: table.event_id().map(typed_uuid),
        timestamp_us: table.timestamp_us(),
        uid: table.uid(),
        gid: table.gid(),
        pid: table.pid(),
        rationale: table.rationale().unwrap_or_default().to_owned(),
        correlation_id: table.correlation_id().map(typed_uuid),
        idempotency_key: table.idempotency_key().map(typed_uuid),
        reason_code: decode_reason(table.reason_code())?,
        user_name: table.user_name().unwrap_or_default().to_owned(),
        dispute_id: table.dispute_id().map(typed_uuid),
        canonical_id: table.canonical_id().map(typed_uuid),
        detail: table.detail().unwrap_or_default().to_owned(),
        event_ids: typed_uuids(table.event_ids()),
        claim: table.claim().map(|item| Box::new(claim_content(&item))),
        configuration: table.configuration().unwrap_or_default().to_owned(),
        global_sequence: table.global_sequence(),
    })
}

fn claim_content(item: &wire::ClaimItem<'_>) -> ClaimContent {
    ClaimContent {
        event_key: item.event_key().to_owned(),
        occurred_at_us: item.occurred_at_us(),
        owning_corpus: item.owning_corpus().unwrap_or_default().to_owned(),
        hosting_corpus: item.hosting_corpus().unwrap_or_default().to_owned(),
        category: item.category().to_owned(),
        taxonomy_version: item.taxonomy_version(),
        metadata: item.metadata().map_or_else(Vec::new, |bytes| bytes.bytes().to_vec()),
    }
}

pub(super) fn decode_head(table: &wire::Head<'_>) -> Result<Head, String> {
    Ok(Head {
        shard: table.shard(),
        batch: table.batch(),
        position: table.position(),
        hash: typed_hash(table.hash())?,
        timestamp_us: table.timestamp_us(),
    })
}

pub(super) fn decode_pair(table: &wire::Pair<'_>) -> Pair {
    Pair {
        from: table.from().to_owned(),
        to: table.to().to_owned(),
        samples: table.samples(),
        p50_us: table.p50_us(),
        p95_us: table.p95_us(),
        budget_us: table.budget_us(),
        violations: table.violations(),
    }
}
