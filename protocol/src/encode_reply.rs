//! Replies to frames.

use crate::frame::{FrameTooLarge, append_frame};
use crate::generated::claimd as wire;
use crate::reply::{
    Claimed, CorpusInfo, Entry, Reply, ReplyResult, Row, ServerError, ShardStatus, StatusReport, Welcome,
};
use crate::request_codec::{optional_string, wire_uuid};
use crate::values::{LogPosition, ReasonCode};
use crate::{Builder, Uuid};
use flatbuffers::{UnionWIPOffset, WIPOffset};

/// Bytes that a row or entry takes beside its strings and metadata: its table (at most 140), its vtable (at most 42),
/// its place in the page's vector (4), and for each of at most nine strings a length, a terminator and padding (9).
const FIXED_BYTES: usize = 272;

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
}

/// At least the bytes that `entry` takes in a history. See [`row_frame_bytes`].
pub fn entry_frame_bytes(entry: &Entry) -> usize {
    FIXED_BYTES + entry.corpus.len() + entry.rationale.len()
}

/// Appends `reply` as one whole frame, length prefix included, to `out`. `builder` is scratch space: it is reset first
/// and keeps its memory.
///
/// # Errors
/// The reply does not fit in a frame; `out` is as it was.
pub fn encode_reply(builder: &mut Builder, reply: &Reply, out: &mut Vec<u8>) -> Result<(), FrameTooLarge> {
    builder.reset();
    let positions = (!reply.positions.is_empty()).then(|| {
        let positions = reply.positions.iter().map(|at| wire::LogPosition::new(at.shard, at.position));
        builder.create_vector_from_iter(positions)
    });
    let (result_type, result) = encode_result(builder, &reply.result);
    let root = wire::Reply::create(
        builder,
        &wire::ReplyArgs { request_id: reply.request_id, positions, result_type, result: Some(result) },
    );
    builder.finish_minimal(root);
    append_frame(builder.finished_data(), out)
}

/// Appends the reply to a claim as [`encode_reply`] does, without making a [`Reply`] first.
pub fn encode_claimed(
    builder: &mut Builder,
    request_id: u64,
    position: LogPosition,
    claimed: &Claimed,
    out: &mut Vec<u8>,
) {
    builder.reset();
    let positions = builder.create_vector(&[wire::LogPosition::new(position.shard, position.position)]);
    let result = encode_claimed_table(builder, claimed).as_union_value();
    let root = wire::Reply::create(
        builder,
        &wire::ReplyArgs {
            request_id,
            positions: Some(positions),
            result_type: wire::ReplyResult::Claimed,
            result: Some(result),
        },
    );
    builder.finish_minimal(root);
    append_frame(builder.finished_data(), out).expect("a claim's reply has a fixed size of some hundred bytes");
}

fn encode_result(builder: &mut Builder, result: &ReplyResult) -> (wire::ReplyResult, WIPOffset<UnionWIPOffset>) {
    match result {
        ReplyResult::Welcome(welcome) => {
            (wire::ReplyResult::Welcome, encode_welcome(builder, welcome).as_union_value())
        }
        ReplyResult::Onboarded(corpus) => {
            let corpus = Some(encode_corpus(builder, corpus));
            let table = wire::Onboarded::create(builder, &wire::OnboardedArgs { corpus });
            (wire::ReplyResult::Onboarded, table.as_union_value())
        }
        ReplyResult::Corpora(corpora) => {
            let corpora: Vec<_> = corpora.iter().map(|corpus| encode_corpus(builder, corpus)).collect();
            let corpora = Some(builder.create_vector(&corpora));
            let table = wire::CorporaList::create(builder, &wire::CorporaListArgs { corpora });
            (wire::ReplyResult::CorporaList, table.as_union_value())
        }
        ReplyResult::Claimed(claimed) => {
            (wire::ReplyResult::Claimed, encode_claimed_table(builder, claimed).as_union_value())
        }
        ReplyResult::ClaimedBatch(results) => {
            let results: Vec<_> = results
                .iter()
                .map(|result| {
                    let args = match result {
                        Ok(claimed) => {
                            wire::ClaimResultArgs { claimed: Some(encode_claimed_table(builder, claimed)), error: None }
                        }
                        Err(error) => {
                            wire::ClaimResultArgs { claimed: None, error: Some(encode_error(builder, error)) }
                        }
                    };
                    wire::ClaimResult::create(builder, &args)
                })
                .collect();
            let results = Some(builder.create_vector(&results));
            let table = wire::ClaimedBatch::create(builder, &wire::ClaimedBatchArgs { results });
            (wire::ReplyResult::ClaimedBatch, table.as_union_value())
        }
        ReplyResult::Referenced(canonical_id) => {
            (wire::ReplyResult::Referenced, encode_referenced(builder, *canonical_id).as_union_value())
        }
        ReplyResult::ReferencedBatch(results) => {
            let results: Vec<_> = results
                .iter()
                .map(|result| {
                    let args = match result {
                        Ok(canonical_id) => wire::ReferenceResultArgs {
                            referenced: Some(encode_referenced(builder, *canonical_id)),
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
            let row = Some(encode_row(builder, row));
            (wire::ReplyResult::RowFound, wire::RowFound::create(builder, &wire::RowFoundArgs { row }).as_union_value())
        }
        ReplyResult::History { entries, more } => {
            let entries: Vec<_> = entries.iter().map(|entry| encode_entry(builder, entry)).collect();
            let entries = Some(builder.create_vector(&entries));
            let table = wire::HistoryFound::create(builder, &wire::HistoryFoundArgs { entries, more: *more });
            (wire::ReplyResult::HistoryFound, table.as_union_value())
        }
        ReplyResult::ScanPage { rows, next } => {
            let rows: Vec<_> = rows.iter().map(|row| encode_row(builder, row)).collect();
            let rows = Some(builder.create_vector(&rows));
            let next = next.map(wire_uuid);
            let table = wire::ScanPage::create(builder, &wire::ScanPageArgs { rows, next: next.as_ref() });
            (wire::ReplyResult::ScanPage, table.as_union_value())
        }
        ReplyResult::Status(report) => {
            (wire::ReplyResult::StatusReport, encode_status(builder, report).as_union_value())
        }
        ReplyResult::Error(error) => (wire::ReplyResult::Error, encode_error(builder, error).as_union_value()),
    }
}

fn encode_claimed_table<'b>(builder: &mut Builder, claimed: &Claimed) -> WIPOffset<wire::Claimed<'b>> {
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

fn encode_referenced<'b>(builder: &mut Builder, canonical_id: Uuid) -> WIPOffset<wire::Referenced<'b>> {
    let args = wire::ReferencedArgs { canonical_id: Some(&wire_uuid(canonical_id)) };
    WIPOffset::new(wire::Referenced::create(builder, &args).value())
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
        },
    );
    WIPOffset::new(table.value())
}

fn encode_welcome<'b>(builder: &mut Builder, welcome: &Welcome) -> WIPOffset<wire::Welcome<'b>> {
    let shards: Vec<_> = welcome
        .shards
        .iter()
        .map(|endpoint| {
            let socket = Some(builder.create_string(&endpoint.socket));
            wire::ShardEndpoint::create(builder, &wire::ShardEndpointArgs { shard: endpoint.shard, socket })
        })
        .collect();
    let shards = Some(builder.create_vector(&shards));
    let daemon = Some(builder.create_string(&welcome.daemon));
    let ledger = wire_uuid(welcome.ledger);
    let table = wire::Welcome::create(
        builder,
        &wire::WelcomeArgs {
            version: welcome.version,
            daemon,
            ledger: Some(&ledger),
            clock: wire::ClockMode(welcome.clock as u8),
            shards,
            frame_bytes_max: welcome.frame_bytes_max,
            batch_items_max: welcome.batch_items_max,
        },
    );
    WIPOffset::new(table.value())
}

fn encode_corpus<'b>(builder: &mut Builder, corpus: &CorpusInfo) -> WIPOffset<wire::CorpusInfo<'b>> {
    let name = Some(builder.create_string(&corpus.name));
    let notes = optional_string(builder, &corpus.notes);
    let table = wire::CorpusInfo::create(
        builder,
        &wire::CorpusInfoArgs {
            name,
            shard_prefix: corpus.shard_prefix,
            shard: corpus.shard,
            onboarded_at_us: corpus.onboarded_at_us,
            decommissioned_at_us: corpus.decommissioned_at_us,
            notes,
            claims: corpus.claims,
        },
    );
    WIPOffset::new(table.value())
}

fn encode_row<'b>(builder: &mut Builder, row: &Row) -> WIPOffset<wire::Row<'b>> {
    let corpus = Some(builder.create_string(&row.corpus));
    let event_key = Some(builder.create_string(&row.event_key));
    let owning_corpus = Some(builder.create_string(&row.owning_corpus));
    let hosting_corpus = Some(builder.create_string(&row.hosting_corpus));
    let category = Some(builder.create_string(&row.category));
    let metadata = (!row.metadata.is_empty()).then(|| builder.create_vector(&row.metadata));
    let tombstone_reason = row.tombstone_reason.as_ref().map(|reason| builder.create_string(reason));
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
        },
    );
    WIPOffset::new(table.value())
}

fn encode_entry<'b>(builder: &mut Builder, entry: &Entry) -> WIPOffset<wire::Entry<'b>> {
    let corpus = optional_string(builder, &entry.corpus);
    let rationale = optional_string(builder, &entry.rationale);
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
        },
    );
    WIPOffset::new(table.value())
}

fn encode_status<'b>(builder: &mut Builder, report: &StatusReport) -> WIPOffset<wire::StatusReport<'b>> {
    let shards: Vec<_> = report.shards.iter().map(|shard| encode_shard_status(builder, shard)).collect();
    let shards = Some(builder.create_vector(&shards));
    let daemon = Some(builder.create_string(&report.daemon));
    let ledger = wire_uuid(report.ledger);
    let table = wire::StatusReport::create(
        builder,
        &wire::StatusReportArgs {
            daemon,
            ledger: Some(&ledger),
            clock: wire::ClockMode(report.clock as u8),
            clock_synchronised: report.clock_synchronised,
            uptime_ms: report.uptime_ms,
            cores: report.cores,
            connections: report.connections,
            stall_wakes: report.stall_wakes,
            shards,
        },
    );
    WIPOffset::new(table.value())
}

fn encode_shard_status<'b>(builder: &mut Builder, shard: &ShardStatus) -> WIPOffset<wire::ShardStatus<'b>> {
    let failed = shard.failed.as_ref().map(|failed| builder.create_string(failed));
    let scrub_first = shard.scrub_first.as_ref().map(|first| builder.create_string(first));
    let table = wire::ShardStatus::create(
        builder,
        &wire::ShardStatusArgs {
            shard: shard.shard,
            core: shard.core,
            position: shard.position,
            durable_position: shard.durable_position,
            rows: shard.rows,
            corpora: shard.corpora,
            idempotency_keys: shard.idempotency_keys,
            requests_held: shard.requests_held,
            batches_written: shard.batches_written,
            bytes_written: shard.bytes_written,
            segments_used: shard.segments_used,
            segments_prepared: shard.segments_prepared,
            segment_bytes: shard.segment_bytes,
            incarnation: shard.incarnation,
            clock_held_us: shard.clock_held_us,
            clock_suspect: shard.clock_suspect,
            no_space: shard.no_space,
            failed,
            scrubbed_bytes: shard.scrubbed_bytes,
            scrub_rounds: shard.scrub_rounds,
            scrub_damaged: shard.scrub_damaged,
            scrub_first,
        },
    );
    WIPOffset::new(table.value())
}

/// `none` stands for the absence of a reason; no typed value does.
fn wire_reason(reason: Option<ReasonCode>) -> wire::ReasonCode {
    reason.map_or(wire::ReasonCode::none, |reason| wire::ReasonCode(reason as u8))
}
