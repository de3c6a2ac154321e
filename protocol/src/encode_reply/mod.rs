//! Replies to frames.

mod audit;
mod claimed;
mod dispute;
mod piece;
mod plain_row;
mod reconcile;
mod registry;
mod row;
mod status;

pub use audit::entry_frame_bytes;
pub use claimed::encode_claim_reply;
pub use row::{RowPage, encode_row_found, row_frame_bytes};

use crate::Builder;
use crate::frame::{FrameTooLarge, append_frame};
use crate::generated::claimd as wire;
use crate::reply::{Reply, ReplyResult, ServerError};
use crate::values::{LogPosition, ReasonCode};
use crate::wire_values::{optional_uuids, wire_uuid};
use flatbuffers::{UnionWIPOffset, WIPOffset};

/// Bytes that a row or entry takes beside its strings, lists and metadata: its table (at most 192), its vtable (at most
/// 54), its place in the page's vector (4), and for each of at most nine strings a length, a terminator and padding (9).
const FIXED_BYTES: usize = 336;

/// Appends `reply` as one whole frame, length prefix included, to `out`. `builder` is scratch space: it is reset first
/// and keeps its memory.
///
/// # Errors
/// The reply does not fit in a frame; `out` is as it was.
pub fn encode_reply(builder: &mut Builder, reply: &Reply, out: &mut Vec<u8>) -> Result<(), FrameTooLarge> {
    builder.reset();
    let result = encode_result(builder, &reply.result);
    append_reply(builder, reply.request_id, &reply.positions, result, out)
}

/// Ends a reply, and appends it as one whole frame.
fn append_reply(
    builder: &mut Builder,
    request_id: u64,
    positions: &[LogPosition],
    (result_type, result): Encoded,
    out: &mut Vec<u8>,
) -> Result<(), FrameTooLarge> {
    let positions = (!positions.is_empty()).then(|| {
        builder.create_vector_from_iter(positions.iter().map(|at| wire::LogPosition::new(at.shard, at.position)))
    });
    let reply = wire::ReplyArgs { request_id, positions, result_type, result: Some(result) };
    let root = wire::Reply::create(builder, &reply);
    builder.finish_minimal(root);
    append_frame(builder.finished_data(), out)
}

/// A result's type and its table.
type Encoded = (wire::ReplyResult, WIPOffset<UnionWIPOffset>);

fn encode_result(builder: &mut Builder, result: &ReplyResult) -> Encoded {
    match result {
        ReplyResult::Welcome(welcome) => {
            (wire::ReplyResult::Welcome, status::encode_welcome(builder, welcome).as_union_value())
        }
        ReplyResult::Onboarded(corpus) => {
            let corpus = Some(registry::encode_corpus(builder, corpus));
            let table = wire::Onboarded::create(builder, &wire::OnboardedArgs { corpus });
            (wire::ReplyResult::Onboarded, table.as_union_value())
        }
        ReplyResult::Corpora(corpora) => {
            let corpora: Vec<_> = corpora.iter().map(|corpus| registry::encode_corpus(builder, corpus)).collect();
            let corpora = Some(builder.create_vector(&corpora));
            let table = wire::CorporaList::create(builder, &wire::CorporaListArgs { corpora });
            (wire::ReplyResult::CorporaList, table.as_union_value())
        }
        ReplyResult::Claimed(claimed) => {
            (wire::ReplyResult::Claimed, claimed::encode_claimed(builder, claimed).as_union_value())
        }
        ReplyResult::ClaimedBatch(results) => {
            let results = claimed::encode_results(builder, results);
            let results = Some(builder.create_vector(&results));
            let table = wire::ClaimedBatch::create(builder, &wire::ClaimedBatchArgs { results });
            (wire::ReplyResult::ClaimedBatch, table.as_union_value())
        }
        ReplyResult::Referenced(canonical_id) => {
            (wire::ReplyResult::Referenced, row::encode_referenced(builder, *canonical_id).as_union_value())
        }
        ReplyResult::ReferencedBatch(results) => {
            let results: Vec<_> = results
                .iter()
                .map(|result| {
                    let args = match result {
                        Ok(canonical_id) => wire::ReferenceResultArgs {
                            referenced: Some(row::encode_referenced(builder, *canonical_id)),
                            error: None,
                        },
                        Err(error) => {
                            wire::ReferenceResultArgs { referenced: None, error: Some(encode_error(builder, error)) }
                        }
                    };
                    wire::ReferenceResult::create(builder, &args)
                })
                .collect();
            let results = Some(builder.create_vector(&results));
            let table = wire::ReferencedBatch::create(builder, &wire::ReferencedBatchArgs { results });
            (wire::ReplyResult::ReferencedBatch, table.as_union_value())
        }
        ReplyResult::Retracted { event_id, tombstoned_at_us } => {
            let event_id = wire_uuid(*event_id);
            let args = wire::RetractedArgs { event_id: Some(&event_id), tombstoned_at_us: *tombstoned_at_us };
            (wire::ReplyResult::Retracted, wire::Retracted::create(builder, &args).as_union_value())
        }
        ReplyResult::Reactivated { event_id, reactivated_at_us } => {
            let event_id = wire_uuid(*event_id);
            let args = wire::ReactivatedArgs { event_id: Some(&event_id), reactivated_at_us: *reactivated_at_us };
            (wire::ReplyResult::Reactivated, wire::Reactivated::create(builder, &args).as_union_value())
        }
        ReplyResult::ClockConfirmed { confirmed_at_us } => {
            let args = wire::ClockConfirmedArgs { confirmed_at_us: *confirmed_at_us };
            (wire::ReplyResult::ClockConfirmed, wire::ClockConfirmed::create(builder, &args).as_union_value())
        }
        ReplyResult::Row(row) => {
            let row = Some(row::encode_row(builder, None, &row.by_ref()));
            (wire::ReplyResult::RowFound, wire::RowFound::create(builder, &wire::RowFoundArgs { row }).as_union_value())
        }
        ReplyResult::History { entries, next, related } => {
            let entries: Vec<_> = entries.iter().map(|entry| audit::encode_entry(builder, entry)).collect();
            let entries = Some(builder.create_vector(&entries));
            let related = optional_uuids(builder, related);
            let next = next.unwrap_or(0);
            let table = wire::HistoryFound::create(builder, &wire::HistoryFoundArgs { entries, next, related });
            (wire::ReplyResult::HistoryFound, table.as_union_value())
        }
        ReplyResult::ScanPage { rows, next } => {
            let rows = Some(row::encode_rows(builder, rows));
            let next = next.map(wire_uuid);
            let table = wire::ScanPage::create(builder, &wire::ScanPageArgs { rows, next: next.as_ref() });
            (wire::ReplyResult::ScanPage, table.as_union_value())
        }
        ReplyResult::Status(report) => {
            (wire::ReplyResult::StatusReport, status::encode_status(builder, report).as_union_value())
        }
        ReplyResult::Error(error) => (wire::ReplyResult::Error, encode_error(builder, error).as_union_value()),
        ReplyResult::Disputed(info) => dispute::disputed(builder, info),
        ReplyResult::DisputeList { disputes, next } => dispute::list(builder, disputes, *next),
        ReplyResult::Decommissioned { corpus, applied, rows, aliases_elsewhere } => {
            registry::decommissioned(builder, corpus, *applied, *rows, *aliases_elsewhere)
        }
        ReplyResult::Frozen { corpus, frozen, at_us } => registry::frozen(builder, corpus, *frozen, *at_us),
        ReplyResult::Capped { corpus, claims_per_minute, at_us } => {
            registry::capped(builder, corpus, *claims_per_minute, *at_us)
        }
        ReplyResult::Proposal(proposal) => registry::proposal(builder, proposal),
        ReplyResult::ProposalList(proposals) => registry::proposals(builder, proposals),
        ReplyResult::TotalsFound(totals) => registry::totals(builder, totals),
        ReplyResult::IncidentSet { active, at_us } => {
            let table = wire::IncidentSet::create(builder, &wire::IncidentSetArgs { active: *active, at_us: *at_us });
            (wire::ReplyResult::IncidentSet, table.as_union_value())
        }
        ReplyResult::BarrierRaised { at_us } => {
            let table = wire::BarrierRaised::create(builder, &wire::BarrierRaisedArgs { at_us: *at_us });
            (wire::ReplyResult::BarrierRaised, table.as_union_value())
        }
        ReplyResult::Reconciled(report) => reconcile::reconciled(builder, report),
        ReplyResult::Found { rows, next } => {
            let rows = Some(row::encode_rows(builder, rows));
            (
                wire::ReplyResult::Found,
                wire::Found::create(builder, &wire::FoundArgs { rows, next: next.unwrap_or(0) }).as_union_value(),
            )
        }
        ReplyResult::TailPage { entries, next_position, durable_position } => {
            audit::tail_page(builder, entries, *next_position, *durable_position)
        }
        ReplyResult::AuditHeads(heads) => audit::heads(builder, heads),
        ReplyResult::AuditChecked { shard, ok, message, batches_verified } => {
            audit::checked(builder, *shard, *ok, message, *batches_verified)
        }
        ReplyResult::ConfigurationFound { toml, at_us, uid, position } => {
            audit::configuration(builder, toml, *at_us, *uid, *position)
        }
        ReplyResult::PropagationFound(pairs) => audit::propagation(builder, pairs),
        ReplyResult::Held { year, quarter, held, at_us } => {
            let args = wire::HeldArgs { year: *year, quarter: *quarter, held: *held, at_us: *at_us };
            (wire::ReplyResult::Held, wire::Held::create(builder, &args).as_union_value())
        }
    }
}

fn encode_error<'b>(builder: &mut Builder, error: &ServerError) -> WIPOffset<wire::Error<'b>> {
    let message = Some(builder.create_string(&error.message));
    let table = wire::Error::create(
        builder,
        &wire::ErrorArgs {
            code: wire::ErrorCode(error.code as u8),
            outcome: wire::ErrorOutcome(error.outcome as u8),
            message,
            retry_after_ms: error.retry_after_ms,
            registered_id: error.registered_id.map(wire_uuid).as_ref(),
        },
    );
    WIPOffset::new(table.value())
}

/// `none` stands for the absence of a reason; no typed value does.
fn wire_reason(reason: Option<ReasonCode>) -> wire::ReasonCode {
    reason.map_or(wire::ReasonCode::none, |reason| wire::ReasonCode(reason as u8))
}
