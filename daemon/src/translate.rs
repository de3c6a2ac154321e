//! Between the wire's words and the engine's: codes, enums, ids, rows. No decision is taken here.

use crate::scrub::Scrubbed;
use claim_engine::command::{self, Claimed, Corpus};
use claim_engine::engine::EngineStatus;
use claim_engine::error::{Certainty, Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::superblock::ClockMode;
use claim_engine::row::{Lifecycle, ReasonCode, RowView};
use claim_protocol as wire;
use claim_protocol::LogPosition;
use uuid::Uuid;

/// The wire's code of an engine's.
pub fn code(code: Code) -> wire::ErrorCode {
    match code {
        Code::BadRequest => wire::ErrorCode::BadRequest,
        Code::UnknownCorpus => wire::ErrorCode::UnknownCorpus,
        Code::NotVisible => wire::ErrorCode::NotVisible,
        Code::BadTransition => wire::ErrorCode::BadTransition,
        Code::AlreadyRegistered => wire::ErrorCode::AlreadyRegistered,
        Code::KeyReused => wire::ErrorCode::KeyReused,
        Code::KeyExpired => wire::ErrorCode::KeyExpired,
        Code::KeyInFuture => wire::ErrorCode::KeyInFuture,
        Code::Overloaded => wire::ErrorCode::Overloaded,
        Code::NoSpace => wire::ErrorCode::NoSpace,
        Code::ClockSuspect => wire::ErrorCode::ClockSuspect,
        Code::Deadline => wire::ErrorCode::Deadline,
        Code::ShardFailed => wire::ErrorCode::ShardFailed,
        Code::ShuttingDown => wire::ErrorCode::ShuttingDown,
    }
}

/// A refusal on the wire.
pub fn error(refusal: Refusal) -> wire::ServerError {
    wire::ServerError {
        code: code(refusal.code),
        outcome: match refusal.certainty {
            Certainty::Definite => wire::ErrorOutcome::Definite,
            Certainty::Unknown => wire::ErrorOutcome::Unknown,
        },
        message: refusal.message,
        retry_after_ms: refusal.retry_after_ms,
    }
}

/// The wire's reason code of the engine's.
pub fn reason_code_out(code: ReasonCode) -> wire::ReasonCode {
    match code {
        ReasonCode::Misclassified => wire::ReasonCode::Misclassified,
        ReasonCode::WrongCorpus => wire::ReasonCode::WrongCorpus,
        ReasonCode::FalseAlarm => wire::ReasonCode::FalseAlarm,
        ReasonCode::Duplicate => wire::ReasonCode::Duplicate,
        ReasonCode::Other => wire::ReasonCode::Other,
    }
}

/// The engine's reason code of the wire's.
pub fn reason_code_in(code: wire::ReasonCode) -> ReasonCode {
    match code {
        wire::ReasonCode::Misclassified => ReasonCode::Misclassified,
        wire::ReasonCode::WrongCorpus => ReasonCode::WrongCorpus,
        wire::ReasonCode::FalseAlarm => ReasonCode::FalseAlarm,
        wire::ReasonCode::Duplicate => ReasonCode::Duplicate,
        wire::ReasonCode::Other => ReasonCode::Other,
    }
}

/// Where time comes from.
pub fn clock_mode(mode: ClockMode) -> wire::ClockMode {
    match mode {
        ClockMode::Wall => wire::ClockMode::Wall,
        ClockMode::Replay => wire::ClockMode::Replay,
    }
}

/// A claim's result.
pub fn claimed(claimed: &Claimed) -> wire::reply::Claimed {
    wire::reply::Claimed {
        event_id: claimed.event_id.as_uuid(),
        claim_timestamp_us: claimed.claim_timestamp_us,
        claim_sequence: claimed.claim_sequence,
    }
}

/// A claim's input.
pub fn claim_item<'a>(item: &wire::ClaimItem<'a>) -> command::Claim<'a> {
    command::Claim {
        event_key: item.event_key,
        occurred_at_us: item.occurred_at_us,
        owning_corpus: item.owning_corpus,
        hosting_corpus: item.hosting_corpus,
        category: item.category,
        taxonomy_version: item.taxonomy_version,
        metadata: item.metadata,
    }
}

/// A corpus; `claims` is known only to the shard that it lives on.
pub fn corpus(corpus: &Corpus, claims: u64) -> wire::reply::CorpusInfo {
    wire::reply::CorpusInfo {
        name: corpus.name.clone(),
        shard_prefix: corpus.prefix.get(),
        shard: corpus.shard,
        onboarded_at_us: corpus.onboarded_at_us,
        decommissioned_at_us: None,
        notes: corpus.notes.clone(),
        claims,
    }
}

/// One shard's part of a status report.
pub fn status(status: EngineStatus, scrubbed: Scrubbed, core: u16) -> wire::reply::ShardStatus {
    wire::reply::ShardStatus {
        shard: status.shard,
        core,
        position: status.position,
        durable_position: status.durable_position,
        rows: status.rows,
        corpora: status.corpora,
        idempotency_keys: status.idempotency_keys,
        requests_held: status.requests_held,
        batches_written: status.batches_written,
        bytes_written: status.bytes_written,
        segments_used: status.segments_used,
        segments_prepared: status.segments_prepared,
        segment_bytes: status.segment_bytes,
        incarnation: status.incarnation,
        clock_held_us: status.clock_held_us,
        clock_suspect: status.clock_suspect,
        no_space: status.no_space,
        failed: status.failed,
        scrubbed_bytes: scrubbed.bytes,
        scrub_rounds: scrubbed.rounds,
        scrub_damaged: scrubbed.damaged,
        scrub_first: scrubbed.first,
    }
}

/// A row, from what the index knows, its claim's record, and the reason of its tombstone.
///
/// Returns `None` when the record is not that row's claim.
pub fn row(view: &RowView, corpus: &str, record: &Record<'_>, reason: Option<String>) -> Option<wire::reply::Row> {
    let Entry::Claim(claim) = &record.entry else { return None };
    if claim.event_id != view.event_id {
        return None;
    }
    let or_own = |name: &str| if name.is_empty() { corpus.to_owned() } else { name.to_owned() };
    Some(wire::reply::Row {
        event_id: claim.event_id.as_uuid(),
        corpus: corpus.to_owned(),
        lifecycle: match view.lifecycle {
            Lifecycle::Registered => wire::Lifecycle::Registered,
            Lifecycle::Tombstoned => wire::Lifecycle::Tombstoned,
        },
        claim_timestamp_us: record.meta.timestamp_us,
        claim_sequence: claim.claim_sequence,
        event_key: claim.event_key.to_owned(),
        occurred_at_us: claim.occurred_at_us,
        owning_corpus: or_own(claim.owning_corpus),
        hosting_corpus: or_own(claim.hosting_corpus),
        category: claim.category.to_owned(),
        taxonomy_version: claim.taxonomy_version,
        metadata: claim.metadata.to_vec(),
        canonical_id: None,
        tombstoned_at_us: view.tombstone.map(|t| t.at_us),
        tombstone_reason_code: view.tombstone.map(|t| reason_code_out(t.reason_code)),
        tombstone_reason: reason,
        reactivated_at_us: view.reactivated_at_us,
    })
}

/// An audit entry.
pub fn entry(record: &Record<'_>, position: LogPosition, corpus: &str) -> wire::reply::Entry {
    let (operation, event_id, reason_code) = match &record.entry {
        Entry::Claim(claim) => (wire::AuditOperation::Claim, Some(claim.event_id), None),
        Entry::Reference { event_id, .. } => (wire::AuditOperation::Reference, Some(*event_id), None),
        Entry::Tombstone { event_id, reason_code } => {
            (wire::AuditOperation::Tombstone, Some(*event_id), Some(reason_code_out(*reason_code)))
        }
        Entry::Reactivate { event_id } => (wire::AuditOperation::Reactivate, Some(*event_id), None),
        Entry::Onboard { .. } => (wire::AuditOperation::Onboard, None, None),
        Entry::PrefixAllocation { .. } => (wire::AuditOperation::ShardPrefixAllocation, None, None),
        Entry::ConfirmClock { .. } => (wire::AuditOperation::ConfirmClock, None, None),
        Entry::Recovery { .. } => (wire::AuditOperation::Recovery, None, None),
        Entry::Repair { .. } => (wire::AuditOperation::Repair, None, None),
    };
    let meta = &record.meta;
    let uuid = |n: u128| (n != 0).then(|| Uuid::from_u128(n));
    wire::reply::Entry {
        position,
        operation,
        corpus: corpus.to_owned(),
        event_id: event_id.map(EventId::as_uuid),
        timestamp_us: meta.timestamp_us,
        uid: meta.principal.uid,
        gid: meta.principal.gid,
        pid: meta.principal.pid,
        rationale: meta.rationale.to_owned(),
        correlation_id: uuid(meta.correlation_id),
        idempotency_key: uuid(meta.idempotency_key),
        reason_code,
    }
}

/// An id of the wire; a UUID that no claim ever hands out is refused.
pub fn event_id(uuid: Uuid) -> Result<EventId, Refusal> {
    EventId::from_uuid(uuid).ok_or_else(|| {
        Refusal::new(Code::BadRequest, format!("{uuid} is no event-id: one is a UUIDv7 that carries a shard prefix"))
    })
}

/// The engine's form of the wire's operation. `is_here` says which references are the shard's own.
pub fn with_operation(
    request: &wire::Request<'_>,
    is_here: impl Fn(Uuid) -> bool,
    submit: impl FnOnce(command::Operation<'_>),
) -> Result<(), Refusal> {
    use command::Operation as Engine;
    use wire::Operation;
    match &request.operation {
        Operation::Claim { corpus, item } => {
            submit(Engine::Claim { corpus, items: &[claim_item(item)] });
        }
        Operation::ClaimBatch { corpus, items } => {
            let items: Vec<_> = items.iter().map(claim_item).collect();
            submit(Engine::Claim { corpus, items: &items });
        }
        Operation::Reference { corpus, event_id: uuid } => {
            submit(Engine::Reference { corpus, items: &[(0, event_id(*uuid)?)] });
        }
        Operation::ReferenceBatch { corpus, event_ids } => {
            let here = event_ids.iter().enumerate().filter(|(_, uuid)| is_here(**uuid));
            let items: Result<Vec<_>, _> = here.map(|(i, uuid)| Ok((i as u16, event_id(*uuid)?))).collect();
            submit(Engine::Reference { corpus, items: &items? });
        }
        Operation::Retract { corpus, event_id: uuid, reason_code } => {
            submit(Engine::Retract { corpus, event_id: event_id(*uuid)?, reason_code: reason_code_in(*reason_code) })
        }
        Operation::Reactivate { event_id: uuid } => submit(Engine::Reactivate { event_id: event_id(*uuid)? }),
        Operation::Onboard { name, notes } => submit(Engine::Onboard { name, notes }),
        Operation::ConfirmClock => submit(Engine::ConfirmClock),
        Operation::Corpora => submit(Engine::Corpora),
        Operation::Lookup { event_id: uuid } => submit(Engine::Lookup { event_id: event_id(*uuid)? }),
        Operation::History { event_id: uuid, skip } => {
            submit(Engine::History { event_id: event_id(*uuid)?, skip: *skip as usize });
        }
        Operation::Scan { corpus, since_us, until_us, after, limit } => submit(Engine::Scan {
            corpus,
            since_us: *since_us,
            until_us: *until_us,
            after: after.map(event_id).transpose()?,
            limit: *limit as usize,
        }),
        Operation::Hello { .. } | Operation::Status => {
            return Err(Refusal::new(Code::BadRequest, "not an operation of a shard"));
        }
    }
    Ok(())
}
