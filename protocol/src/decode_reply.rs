//! Frames to replies.

use crate::bounds::{APPARENT_BYTES_MAX, REPLY_TABLES_MAX, TABLES_DEEP_MAX};
use crate::decode_error::DecodeError;
use crate::generated::claimd as wire;
use crate::reply::{
    Claimed, CorpusInfo, Entry, Reply, ReplyResult, Row, ServerError, ShardEndpoint, ShardStatus, StatusReport, Welcome,
};
use crate::request_codec::{typed_position, typed_uuid};
use crate::values::{AuditOperation, ClockMode, ErrorCode, ErrorOutcome, Lifecycle, ReasonCode};
use flatbuffers::VerifierOptions;

const VERIFIER: VerifierOptions = VerifierOptions {
    max_depth: TABLES_DEEP_MAX,
    max_tables: REPLY_TABLES_MAX,
    // Tens of thousands of small tables share their vtables, each counted anew: more slack than a request has.
    max_apparent_size: 2 * APPARENT_BYTES_MAX,
    ignore_missing_null_terminator: false,
};

/// Verifies `content`, a frame without its prefix, and reads the reply in it.
///
/// # Errors
/// Fatal when the bytes do not verify; otherwise a value is unknown. See [`DecodeError::fatal`].
pub fn decode_reply(content: &[u8]) -> Result<Reply, DecodeError> {
    let root = flatbuffers::root_with_opts::<wire::Reply>(&VERIFIER, content)
        .map_err(|error| DecodeError::unverified("reply", &error))?;
    let result = decode_result(&root).map_err(|message| DecodeError::content(root.request_id(), message))?;
    let positions = root.positions().map(|positions| positions.iter().map(typed_position).collect());
    Ok(Reply { request_id: root.request_id(), positions: positions.unwrap_or_default(), result })
}

/// The verifier has checked the table behind the union only if it knows the type, so the type decides here, too.
fn decode_result(root: &wire::Reply<'_>) -> Result<ReplyResult, String> {
    let result_type = root.result_type();
    let missing = || format!("result does not match its type {}", result_type.0);
    Ok(match result_type {
        wire::ReplyResult::Welcome => {
            ReplyResult::Welcome(decode_welcome(&root.result_as_welcome().ok_or_else(missing)?)?)
        }
        wire::ReplyResult::Onboarded => {
            ReplyResult::Onboarded(decode_corpus(&root.result_as_onboarded().ok_or_else(missing)?.corpus()))
        }
        wire::ReplyResult::CorporaList => {
            let table = root.result_as_corpora_list().ok_or_else(missing)?;
            ReplyResult::Corpora(table.corpora().iter().map(|corpus| decode_corpus(&corpus)).collect())
        }
        wire::ReplyResult::Claimed => {
            ReplyResult::Claimed(decode_claimed(&root.result_as_claimed().ok_or_else(missing)?))
        }
        wire::ReplyResult::ClaimedBatch => {
            let table = root.result_as_claimed_batch().ok_or_else(missing)?;
            let decode = |item: wire::ClaimResult<'_>| match (item.claimed(), item.error()) {
                (Some(claimed), None) => Ok(Ok(decode_claimed(&claimed))),
                (None, Some(error)) => Ok(Err(decode_error(&error)?)),
                _ => Err("an item's result is not exactly one of claimed and error".to_owned()),
            };
            ReplyResult::ClaimedBatch(table.results().iter().map(decode).collect::<Result<_, String>>()?)
        }
        wire::ReplyResult::Referenced => {
            let table = root.result_as_referenced().ok_or_else(missing)?;
            ReplyResult::Referenced(typed_uuid(table.canonical_id()))
        }
        wire::ReplyResult::ReferencedBatch => {
            let table = root.result_as_referenced_batch().ok_or_else(missing)?;
            let decode = |item: wire::ReferenceResult<'_>| match (item.referenced(), item.error()) {
                (Some(referenced), None) => Ok(Ok(typed_uuid(referenced.canonical_id()))),
                (None, Some(error)) => Ok(Err(decode_error(&error)?)),
                _ => Err("an item's result is not exactly one of referenced and error".to_owned()),
            };
            ReplyResult::ReferencedBatch(table.results().iter().map(decode).collect::<Result<_, String>>()?)
        }
        wire::ReplyResult::Retracted => {
            let table = root.result_as_retracted().ok_or_else(missing)?;
            ReplyResult::Retracted {
                event_id: typed_uuid(table.event_id()),
                tombstoned_at_us: table.tombstoned_at_us(),
            }
        }
        wire::ReplyResult::Reactivated => {
            let table = root.result_as_reactivated().ok_or_else(missing)?;
            ReplyResult::Reactivated {
                event_id: typed_uuid(table.event_id()),
                reactivated_at_us: table.reactivated_at_us(),
            }
        }
        wire::ReplyResult::ClockConfirmed => ReplyResult::ClockConfirmed {
            confirmed_at_us: root.result_as_clock_confirmed().ok_or_else(missing)?.confirmed_at_us(),
        },
        wire::ReplyResult::RowFound => {
            let table = root.result_as_row_found().ok_or_else(missing)?;
            ReplyResult::Row(Box::new(decode_row(&table.row())?))
        }
        wire::ReplyResult::HistoryFound => {
            let table = root.result_as_history_found().ok_or_else(missing)?;
            let entries = table.entries().iter().map(|entry| decode_entry(&entry));
            ReplyResult::History { entries: entries.collect::<Result<_, String>>()?, more: table.more() }
        }
        wire::ReplyResult::ScanPage => {
            let table = root.result_as_scan_page().ok_or_else(missing)?;
            let rows = table.rows().iter().map(|row| decode_row(&row)).collect::<Result<_, String>>()?;
            ReplyResult::ScanPage { rows, next: table.next().map(typed_uuid) }
        }
        wire::ReplyResult::StatusReport => {
            let table = root.result_as_status_report().ok_or_else(missing)?;
            ReplyResult::Status(Box::new(decode_status(&table)?))
        }
        wire::ReplyResult::Error => ReplyResult::Error(decode_error(&root.result_as_error().ok_or_else(missing)?)?),
        wire::ReplyResult(other) => {
            return Err(format!("result type {other} is unknown; version 1 has 1 to 15"));
        }
    })
}

fn decode_claimed(table: &wire::Claimed<'_>) -> Claimed {
    Claimed {
        event_id: typed_uuid(table.event_id()),
        claim_timestamp_us: table.claim_timestamp_us(),
        claim_sequence: table.claim_sequence(),
    }
}

fn decode_error(table: &wire::Error<'_>) -> Result<ServerError, String> {
    Ok(ServerError {
        code: ErrorCode::try_from(table.code().0).map_err(|error| format!("code: {error}"))?,
        outcome: ErrorOutcome::try_from(table.outcome().0).map_err(|error| format!("outcome: {error}"))?,
        message: table.message().to_owned(),
        retry_after_ms: table.retry_after_ms(),
    })
}

fn decode_welcome(table: &wire::Welcome<'_>) -> Result<Welcome, String> {
    let endpoint = |endpoint: wire::ShardEndpoint<'_>| ShardEndpoint {
        shard: endpoint.shard(),
        socket: endpoint.socket().to_owned(),
    };
    Ok(Welcome {
        version: table.version(),
        daemon: table.daemon().to_owned(),
        ledger: typed_uuid(table.ledger()),
        clock: decode_clock(table.clock())?,
        shards: table.shards().iter().map(endpoint).collect(),
        frame_bytes_max: table.frame_bytes_max(),
        batch_items_max: table.batch_items_max(),
    })
}

fn decode_clock(clock: wire::ClockMode) -> Result<ClockMode, String> {
    ClockMode::try_from(clock.0).map_err(|error| format!("clock: {error}"))
}

fn decode_corpus(table: &wire::CorpusInfo<'_>) -> CorpusInfo {
    CorpusInfo {
        name: table.name().to_owned(),
        shard_prefix: table.shard_prefix(),
        shard: table.shard(),
        onboarded_at_us: table.onboarded_at_us(),
        decommissioned_at_us: table.decommissioned_at_us(),
        notes: table.notes().unwrap_or_default().to_owned(),
        claims: table.claims(),
    }
}

fn decode_row(table: &wire::Row<'_>) -> Result<Row, String> {
    Ok(Row {
        event_id: typed_uuid(table.event_id()),
        corpus: table.corpus().to_owned(),
        lifecycle: Lifecycle::try_from(table.lifecycle().0).map_err(|error| format!("lifecycle: {error}"))?,
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
    })
}

fn decode_entry(table: &wire::Entry<'_>) -> Result<Entry, String> {
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
    })
}

fn decode_reason(reason: wire::ReasonCode) -> Result<Option<ReasonCode>, String> {
    if reason == wire::ReasonCode::none {
        return Ok(None);
    }
    ReasonCode::try_from(reason.0).map(Some).map_err(|error| format!("reason_code: {error}"))
}

fn decode_status(table: &wire::StatusReport<'_>) -> Result<StatusReport, String> {
    Ok(StatusReport {
        daemon: table.daemon().to_owned(),
        ledger: typed_uuid(table.ledger()),
        clock: decode_clock(table.clock())?,
        clock_synchronised: table.clock_synchronised(),
        uptime_ms: table.uptime_ms(),
        cores: table.cores(),
        connections: table.connections(),
        stall_wakes: table.stall_wakes(),
        shards: table.shards().iter().map(|shard| decode_shard_status(&shard)).collect(),
    })
}

fn decode_shard_status(table: &wire::ShardStatus<'_>) -> ShardStatus {
    ShardStatus {
        shard: table.shard(),
        core: table.core(),
        position: table.position(),
        durable_position: table.durable_position(),
        rows: table.rows(),
        corpora: table.corpora(),
        idempotency_keys: table.idempotency_keys(),
        requests_held: table.requests_held(),
        batches_written: table.batches_written(),
        bytes_written: table.bytes_written(),
        segments_used: table.segments_used(),
        segments_prepared: table.segments_prepared(),
        segment_bytes: table.segment_bytes(),
        incarnation: table.incarnation(),
        clock_held_us: table.clock_held_us(),
        clock_suspect: table.clock_suspect(),
        no_space: table.no_space(),
        failed: table.failed().map(str::to_owned),
        scrubbed_bytes: table.scrubbed_bytes(),
        scrub_rounds: table.scrub_rounds(),
        scrub_damaged: table.scrub_damaged(),
        scrub_first: table.scrub_first().map(str::to_owned),
    }
}
