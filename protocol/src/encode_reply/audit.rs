//! The log, what is in effect, and what was measured.

use super::{Encoded, FIXED_BYTES, wire_reason};
use crate::Builder;
use crate::encode_request::{encode_item, item_bytes};
use crate::generated::claimd as wire;
use crate::reply::{ClaimContent, Entry, Head, Pair};
use crate::request::ClaimItem;
use crate::values::LogPosition;
use crate::wire_values::{optional_string, optional_uuids, wire_uuid};
use flatbuffers::WIPOffset;

/// At least the bytes that `entry` takes in a history or a page of the tail. See [`row_frame_bytes`](super::row_frame_bytes).
pub fn entry_frame_bytes(entry: &Entry) -> usize {
    FIXED_BYTES
        + entry.corpus.len()
        + entry.rationale.len()
        + entry.user_name.len()
        + entry.detail.len()
        + entry.configuration.len()
        + size_of_val(entry.event_ids.as_slice())
        + entry.claim.as_deref().map_or(0, |claim| FIXED_BYTES + item_bytes(&as_item(claim)))
}

fn as_item(claim: &ClaimContent) -> ClaimItem<'_> {
    ClaimItem {
        event_key: &claim.event_key,
        occurred_at_us: claim.occurred_at_us,
        owning_corpus: &claim.owning_corpus,
        hosting_corpus: &claim.hosting_corpus,
        category: &claim.category,
        taxonomy_version: claim.taxonomy_version,
        metadata: &claim.metadata,
    }
}

pub(super) fn encode_entry<'b>(builder: &mut Builder, entry: &Entry) -> WIPOffset<wire::Entry<'b>> {
    let corpus = optional_string(builder, &entry.corpus);
    let rationale = optional_string(builder, &entry.rationale);
    let user_name = optional_string(builder, &entry.user_name);
    let detail = optional_string(builder, &entry.detail);
    let event_ids = optional_uuids(builder, &entry.event_ids);
    let claim = entry.claim.as_deref().map(|claim| encode_item(builder, &as_item(claim)));
    let configuration = optional_string(builder, &entry.configuration);
    let position = wire::LogPosition::new(entry.position.shard, entry.position.position);
    let table = wire::Entry::create(
        builder,
        &wire::EntryArgs {
            position: Some(&position),
            operation: wire::AuditOperation(entry.operation as u8),
            corpus,
            event_id: entry.event_id.map(wire_uuid).as_ref(),
            timestamp_us: entry.timestamp_us,
            uid: entry.uid,
            gid: entry.gid,
            pid: entry.pid,
            rationale,
            correlation_id: entry.correlation_id.map(wire_uuid).as_ref(),
            idempotency_key: entry.idempotency_key.map(wire_uuid).as_ref(),
            reason_code: wire_reason(entry.reason_code),
            user_name,
            dispute_id: entry.dispute_id.map(wire_uuid).as_ref(),
            canonical_id: entry.canonical_id.map(wire_uuid).as_ref(),
            detail,
            event_ids,
            claim,
            configuration,
            global_sequence: entry.global_sequence,
        },
    );
    WIPOffset::new(table.value())
}

pub(super) fn tail_page(
    builder: &mut Builder,
    entries: &[Entry],
    next_position: u64,
    durable_position: u64,
) -> Encoded {
    let entries: Vec<_> = entries.iter().map(|entry| encode_entry(builder, entry)).collect();
    let entries = Some(builder.create_vector(&entries));
    let table = wire::TailPage::create(builder, &wire::TailPageArgs { entries, next_position, durable_position });
    (wire::ReplyResult::TailPage, table.as_union_value())
}

pub(super) fn heads(builder: &mut Builder, heads: &[Head]) -> Encoded {
    let heads: Vec<_> = heads
        .iter()
        .map(|head| {
            let hash = Some(builder.create_vector(&head.hash));
            let args = wire::HeadArgs {
                shard: head.shard,
                batch: head.batch,
                position: head.position,
                hash,
                timestamp_us: head.timestamp_us,
            };
            wire::Head::create(builder, &args)
        })
        .collect();
    let heads = Some(builder.create_vector(&heads));
    let table = wire::AuditHeads::create(builder, &wire::AuditHeadsArgs { heads });
    (wire::ReplyResult::AuditHeads, table.as_union_value())
}

pub(super) fn checked(builder: &mut Builder, shard: u16, ok: bool, message: &str, batches_verified: u64) -> Encoded {
    let message = optional_string(builder, message);
    let table = wire::AuditChecked::create(builder, &wire::AuditCheckedArgs { shard, ok, message, batches_verified });
    (wire::ReplyResult::AuditChecked, table.as_union_value())
}

pub(super) fn configuration(builder: &mut Builder, toml: &str, at_us: i64, uid: u32, position: LogPosition) -> Encoded {
    let toml = Some(builder.create_string(toml));
    let position = wire::LogPosition::new(position.shard, position.position);
    let args = wire::ConfigurationFoundArgs { toml, at_us, uid, position: Some(&position) };
    (wire::ReplyResult::ConfigurationFound, wire::ConfigurationFound::create(builder, &args).as_union_value())
}

pub(super) fn propagation(builder: &mut Builder, pairs: &[Pair]) -> Encoded {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|pair| {
            let from = Some(builder.create_string(&pair.from));
            let to = Some(builder.create_string(&pair.to));
            let args = wire::PairArgs {
                from,
                to,
                samples: pair.samples,
                p50_us: pair.p50_us,
                p95_us: pair.p95_us,
                budget_us: pair.budget_us,
                violations: pair.violations,
            };
            wire::Pair::create(builder, &args)
        })
        .collect();
    let pairs = Some(builder.create_vector(&pairs));
    let table = wire::PropagationFound::create(builder, &wire::PropagationFoundArgs { pairs });
    (wire::ReplyResult::PropagationFound, table.as_union_value())
}
