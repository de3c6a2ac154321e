//! Requests to frames.

mod audit;
mod dispute;
mod reconcile;
mod registry;

use crate::Builder;
use crate::bounds::FRAME_BYTES_MAX;
use crate::frame::{FrameTooLarge, append_frame};
use crate::generated::claimd as wire;
use crate::request::{ClaimItem, Operation, Request};
use crate::wire_values::{optional_string, uuid_vector, wire_uuid};
use flatbuffers::{UnionWIPOffset, WIPOffset};

/// Appends `request` as one whole frame, length prefix included, to `out`. `builder` is scratch space: it is reset first
/// and keeps its memory.
///
/// # Errors
/// The request does not fit in a frame; `out` is as it was.
pub fn encode_request(builder: &mut Builder, request: &Request<'_>, out: &mut Vec<u8>) -> Result<(), FrameTooLarge> {
    // A request that cannot fit is refused before the builder grows by it.
    let bytes = content_bytes(&request.operation) + request.rationale.len();
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameTooLarge { bytes });
    }
    builder.reset();
    let at_least = (!request.at_least.is_empty()).then(|| {
        let positions = request.at_least.iter().map(|at| wire::LogPosition::new(at.shard, at.position));
        builder.create_vector_from_iter(positions)
    });
    let rationale = optional_string(builder, request.rationale);
    let (operation_type, operation) = encode_operation(builder, &request.operation);
    let root = wire::Request::create(
        builder,
        &wire::RequestArgs {
            request_id: request.request_id,
            deadline_ms: request.deadline_ms,
            at_least,
            idempotency_key: request.idempotency_key.map(wire_uuid).as_ref(),
            rationale,
            correlation_id: request.correlation_id.map(wire_uuid).as_ref(),
            at_us: request.at_us,
            operation_type,
            operation: Some(operation),
        },
    );
    builder.finish_minimal(root);
    append_frame(builder.finished_data(), out)
}

/// Bytes of the operation's variable parts: less than what its frame takes.
fn content_bytes(operation: &Operation<'_>) -> usize {
    match operation {
        Operation::Claim { item, .. } => item_bytes(item),
        Operation::Dispute { event_ids, .. } => size_of_val(event_ids.as_slice()),
        Operation::Arbitrate { verdicts, .. } => size_of_val(verdicts.as_slice()),
        Operation::ClaimBatch { items, .. } => items.iter().map(item_bytes).sum(),
        Operation::ReferenceBatch { event_ids, .. } => size_of_val(event_ids.as_slice()),
        Operation::Onboard { notes, .. } => notes.len(),
        _ => 0,
    }
}

pub(crate) fn item_bytes(item: &ClaimItem<'_>) -> usize {
    item.event_key.len()
        + item.owning_corpus.len()
        + item.hosting_corpus.len()
        + item.category.len()
        + item.metadata.len()
}

/// An operation's type and its table.
type Encoded = (wire::Operation, WIPOffset<UnionWIPOffset>);

fn encode_operation(builder: &mut Builder, operation: &Operation<'_>) -> Encoded {
    match operation {
        Operation::Hello { min_version, max_version, client } => {
            let client = optional_string(builder, client);
            let (min_version, max_version) = (*min_version, *max_version);
            let table = wire::Hello::create(builder, &wire::HelloArgs { min_version, max_version, client });
            (wire::Operation::Hello, table.as_union_value())
        }
        Operation::Onboard { name, notes } => {
            let name = Some(builder.create_string(name));
            let notes = optional_string(builder, notes);
            let table = wire::Onboard::create(builder, &wire::OnboardArgs { name, notes });
            (wire::Operation::Onboard, table.as_union_value())
        }
        Operation::Corpora => {
            (wire::Operation::Corpora, wire::Corpora::create(builder, &wire::CorporaArgs {}).as_union_value())
        }
        Operation::Claim { corpus, item, unless_registered_within_ms } => {
            let item = Some(encode_item(builder, item));
            let corpus = Some(builder.create_string(corpus));
            let unless_registered_within_ms = *unless_registered_within_ms;
            let table = wire::Claim::create(builder, &wire::ClaimArgs { corpus, item, unless_registered_within_ms });
            (wire::Operation::Claim, table.as_union_value())
        }
        Operation::ClaimBatch { corpus, items } => {
            let items: Vec<_> = items.iter().map(|item| encode_item(builder, item)).collect();
            let items = Some(builder.create_vector(&items));
            let corpus = Some(builder.create_string(corpus));
            let table = wire::ClaimBatch::create(builder, &wire::ClaimBatchArgs { corpus, items });
            (wire::Operation::ClaimBatch, table.as_union_value())
        }
        Operation::Reference { corpus, event_id } => {
            let corpus = Some(builder.create_string(corpus));
            let event_id = wire_uuid(*event_id);
            let table = wire::Reference::create(builder, &wire::ReferenceArgs { corpus, event_id: Some(&event_id) });
            (wire::Operation::Reference, table.as_union_value())
        }
        Operation::ReferenceBatch { corpus, event_ids } => {
            let event_ids = Some(uuid_vector(builder, event_ids));
            let corpus = Some(builder.create_string(corpus));
            let table = wire::ReferenceBatch::create(builder, &wire::ReferenceBatchArgs { corpus, event_ids });
            (wire::Operation::ReferenceBatch, table.as_union_value())
        }
        Operation::Retract { corpus, event_id, reason_code } => {
            let corpus = Some(builder.create_string(corpus));
            let event_id = wire_uuid(*event_id);
            let reason_code = wire::ReasonCode(*reason_code as u8);
            let args = wire::RetractArgs { corpus, event_id: Some(&event_id), reason_code };
            (wire::Operation::Retract, wire::Retract::create(builder, &args).as_union_value())
        }
        Operation::Reactivate { event_id } => {
            let args = wire::ReactivateArgs { event_id: Some(&wire_uuid(*event_id)) };
            (wire::Operation::Reactivate, wire::Reactivate::create(builder, &args).as_union_value())
        }
        Operation::ConfirmClock => {
            let table = wire::ConfirmClock::create(builder, &wire::ConfirmClockArgs {});
            (wire::Operation::ConfirmClock, table.as_union_value())
        }
        Operation::Lookup { event_id } => {
            let args = wire::LookupArgs { event_id: Some(&wire_uuid(*event_id)) };
            (wire::Operation::Lookup, wire::Lookup::create(builder, &args).as_union_value())
        }
        Operation::History { event_id, correlation_id, from, since_us, until_us } => {
            let (event_id, correlation_id) = (event_id.map(wire_uuid), correlation_id.map(wire_uuid));
            let args = wire::HistoryArgs {
                event_id: event_id.as_ref(),
                from: *from,
                correlation_id: correlation_id.as_ref(),
                since_us: *since_us,
                until_us: *until_us,
            };
            (wire::Operation::History, wire::History::create(builder, &args).as_union_value())
        }
        Operation::Scan { corpus, since_us, until_us, after, limit } => {
            let corpus = Some(builder.create_string(corpus));
            let after = after.map(wire_uuid);
            let args = wire::ScanArgs {
                corpus,
                since_us: *since_us,
                until_us: *until_us,
                after: after.as_ref(),
                limit: *limit,
            };
            (wire::Operation::Scan, wire::Scan::create(builder, &args).as_union_value())
        }
        Operation::Status => {
            (wire::Operation::Status, wire::Status::create(builder, &wire::StatusArgs {}).as_union_value())
        }
        Operation::Dispute { corpus, event_ids } => dispute::open(builder, corpus, event_ids),
        Operation::Respond { corpus, dispute_id } => dispute::respond(builder, corpus, *dispute_id),
        Operation::Arbitrate { dispute_id, dismissed, verdicts } => {
            dispute::arbitrate(builder, *dispute_id, *dismissed, verdicts)
        }
        Operation::Escalate { dispute_id } => dispute::escalate(builder, *dispute_id),
        Operation::DisputeLookup { dispute_id } => dispute::lookup(builder, *dispute_id),
        Operation::Disputes { corpus, include_closed, before } => {
            dispute::list(builder, corpus, *include_closed, *before)
        }
        Operation::Decommission { name, dry_run } => registry::decommission(builder, name, *dry_run),
        Operation::Freeze { corpus, frozen } => registry::freeze(builder, corpus, *frozen),
        Operation::Cap { corpus, claims_per_minute } => registry::cap(builder, corpus, *claims_per_minute),
        Operation::ProposeSlots { corpus, slots } => registry::propose_slots(builder, corpus, *slots),
        Operation::SignOff { proposal, role } => registry::sign_off(builder, *proposal, *role),
        Operation::Proposals => registry::proposals(builder),
        Operation::Totals { corpus } => registry::totals(builder, corpus),
        Operation::Incident { active } => reconcile::incident(builder, *active),
        Operation::Barrier => reconcile::barrier(builder),
        Operation::Hold { year, quarter, held } => registry::hold(builder, *year, *quarter, *held),
        Operation::Reconcile { dry_run } => reconcile::pass(builder, *dry_run),
        Operation::Find { event_key, from } => reconcile::find(builder, event_key, *from),
        Operation::Tail { shard, from_position, limit, wait_ms } => {
            audit::tail(builder, *shard, *from_position, *limit, *wait_ms)
        }
        Operation::AuditHead => audit::head(builder),
        Operation::AuditCheck { shard, batch, position, hash } => {
            audit::check(builder, *shard, *batch, *position, hash)
        }
        Operation::Configuration => audit::configuration(builder),
        Operation::Propagation => audit::propagation(builder),
    }
}

pub(crate) fn encode_item<'b>(builder: &mut Builder, item: &ClaimItem<'_>) -> WIPOffset<wire::ClaimItem<'b>> {
    let event_key = Some(builder.create_string(item.event_key));
    let owning_corpus = optional_string(builder, item.owning_corpus);
    let hosting_corpus = optional_string(builder, item.hosting_corpus);
    let category = Some(builder.create_string(item.category));
    let metadata = (!item.metadata.is_empty()).then(|| builder.create_vector(item.metadata));
    let table = wire::ClaimItem::create(
        builder,
        &wire::ClaimItemArgs {
            event_key,
            occurred_at_us: item.occurred_at_us,
            owning_corpus,
            hosting_corpus,
            category,
            taxonomy_version: item.taxonomy_version,
            metadata,
        },
    );
    WIPOffset::new(table.value())
}
