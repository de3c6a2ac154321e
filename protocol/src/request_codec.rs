//! Requests to frames and back.

use crate::bounds::{
    APPARENT_BYTES_MAX, AT_LEAST_MAX, BATCH_ITEMS_MAX, CLIENT_NAME_BYTES_MAX, EVENT_KEY_BYTES_MAX, FRAME_BYTES_MAX,
    METADATA_BYTES_MAX, NAME_BYTES_MAX, NOTES_BYTES_MAX, RATIONALE_BYTES_MAX, REQUEST_TABLES_MAX, TABLES_DEEP_MAX,
};
use crate::decode_error::DecodeError;
use crate::frame::{FrameTooLarge, append_frame};
use crate::generated::claimd as wire;
use crate::request::{ClaimItem, Operation, Request};
use crate::values::{LogPosition, ReasonCode};
use crate::{Builder, Uuid};
use flatbuffers::{UnionWIPOffset, VerifierOptions, WIPOffset};

const VERIFIER: VerifierOptions = VerifierOptions {
    max_depth: TABLES_DEEP_MAX,
    max_tables: REQUEST_TABLES_MAX,
    max_apparent_size: APPARENT_BYTES_MAX,
    ignore_missing_null_terminator: false,
};

// ---- encoding ----

/// Appends `request` as one whole frame, length prefix included, to `out`. `builder` is scratch space: it is reset first
/// and keeps its memory.
///
/// # Errors
/// The request does not fit in a frame; `out` is as it was.
pub fn encode_request(builder: &mut Builder, request: &Request<'_>, out: &mut Vec<u8>) -> Result<(), FrameTooLarge> {
    // A request that cannot fit is refused before the builder grows by it.
    let bytes = content_bytes(&request.operation);
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
        Operation::ClaimBatch { items, .. } => items.iter().map(item_bytes).sum(),
        Operation::ReferenceBatch { event_ids, .. } => size_of_val(event_ids.as_slice()),
        Operation::Onboard { notes, .. } => notes.len(),
        _ => 0,
    }
}

fn item_bytes(item: &ClaimItem<'_>) -> usize {
    item.event_key.len()
        + item.owning_corpus.len()
        + item.hosting_corpus.len()
        + item.category.len()
        + item.metadata.len()
}

fn encode_operation(builder: &mut Builder, operation: &Operation<'_>) -> (wire::Operation, WIPOffset<UnionWIPOffset>) {
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
        Operation::Claim { corpus, item } => {
            let item = Some(encode_item(builder, item));
            let corpus = Some(builder.create_string(corpus));
            let table = wire::Claim::create(builder, &wire::ClaimArgs { corpus, item });
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
            let event_ids = Some(builder.create_vector_from_iter(event_ids.iter().copied().map(wire_uuid)));
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
        Operation::History { event_id, skip } => {
            let args = wire::HistoryArgs { event_id: Some(&wire_uuid(*event_id)), skip: *skip };
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
    }
}

fn encode_item<'b>(builder: &mut Builder, item: &ClaimItem<'_>) -> WIPOffset<wire::ClaimItem<'b>> {
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

/// An empty string is left out: it costs nothing and reads as empty.
pub(crate) fn optional_string(builder: &mut Builder, text: &str) -> Option<WIPOffset<&'static str>> {
    (!text.is_empty()).then(|| builder.create_string(text))
}

pub(crate) fn wire_uuid(uuid: Uuid) -> wire::Uuid {
    wire::Uuid(uuid.into_bytes())
}

pub(crate) fn typed_uuid(uuid: &wire::Uuid) -> Uuid {
    Uuid::from_bytes(uuid.0)
}

pub(crate) fn typed_position(at: &wire::LogPosition) -> LogPosition {
    LogPosition { shard: at.shard(), position: at.position() }
}

// ---- decoding ----

/// Verifies `content`, a frame without its prefix, and reads the request in it. Strings and metadata are borrowed.
///
/// # Errors
/// Fatal when the bytes do not verify; otherwise a bound is exceeded, a value is unknown, or a mutating operation
/// lacks its key. See [`DecodeError::fatal`].
pub fn decode_request(content: &[u8]) -> Result<Request<'_>, DecodeError> {
    let root = flatbuffers::root_with_opts::<wire::Request>(&VERIFIER, content)
        .map_err(|error| DecodeError::unverified("request", &error))?;
    decode_verified(&root).map_err(|message| DecodeError::content(root.request_id(), message))
}

fn decode_verified<'a>(root: &wire::Request<'a>) -> Result<Request<'a>, String> {
    let at_least = match root.at_least() {
        None => Vec::new(),
        Some(positions) => {
            at_most("at_least", positions.len(), AT_LEAST_MAX, "positions")?;
            positions.iter().map(typed_position).collect()
        }
    };
    let rationale = root.rationale().unwrap_or_default();
    at_most("rationale", rationale.len(), RATIONALE_BYTES_MAX, "bytes")?;
    let operation = decode_operation(root)?;
    let idempotency_key = root.idempotency_key().map(typed_uuid);
    if operation.is_mutating() {
        match idempotency_key {
            None => {
                return Err("idempotency_key is missing; every mutating operation carries a UUIDv7".to_owned());
            }
            Some(key) if key.get_version_num() != 7 => {
                return Err(format!("idempotency_key {key} is of version {}; use 7", key.get_version_num()));
            }
            Some(_) => {}
        }
    }
    Ok(Request {
        request_id: root.request_id(),
        deadline_ms: root.deadline_ms(),
        at_least,
        idempotency_key,
        rationale,
        correlation_id: root.correlation_id().map(typed_uuid),
        at_us: root.at_us(),
        operation,
    })
}

/// The verifier has checked the table behind the union only if it knows the type, so the type decides here, too.
fn decode_operation<'a>(root: &wire::Request<'a>) -> Result<Operation<'a>, String> {
    let operation_type = root.operation_type();
    let missing = || format!("operation does not match its type {}", operation_type.0);
    Ok(match operation_type {
        wire::Operation::Hello => {
            let table = root.operation_as_hello().ok_or_else(missing)?;
            let client = table.client().unwrap_or_default();
            at_most("client", client.len(), CLIENT_NAME_BYTES_MAX, "bytes")?;
            Operation::Hello { min_version: table.min_version(), max_version: table.max_version(), client }
        }
        wire::Operation::Onboard => {
            let table = root.operation_as_onboard().ok_or_else(missing)?;
            let notes = table.notes().unwrap_or_default();
            at_most("notes", notes.len(), NOTES_BYTES_MAX, "bytes")?;
            Operation::Onboard { name: name("name", table.name())?, notes }
        }
        wire::Operation::Corpora => Operation::Corpora,
        wire::Operation::Claim => {
            let table = root.operation_as_claim().ok_or_else(missing)?;
            Operation::Claim { corpus: name("corpus", table.corpus())?, item: decode_item(&table.item())? }
        }
        wire::Operation::ClaimBatch => {
            let table = root.operation_as_claim_batch().ok_or_else(missing)?;
            let items = table.items();
            at_most("items", items.len(), BATCH_ITEMS_MAX, "items")?;
            let decode = |(index, item)| decode_item(&item).map_err(|error| format!("item {index}: {error}"));
            let items = items.iter().enumerate().map(decode).collect::<Result<_, String>>()?;
            Operation::ClaimBatch { corpus: name("corpus", table.corpus())?, items }
        }
        wire::Operation::Reference => {
            let table = root.operation_as_reference().ok_or_else(missing)?;
            Operation::Reference { corpus: name("corpus", table.corpus())?, event_id: typed_uuid(table.event_id()) }
        }
        wire::Operation::ReferenceBatch => {
            let table = root.operation_as_reference_batch().ok_or_else(missing)?;
            let event_ids = table.event_ids();
            at_most("event_ids", event_ids.len(), BATCH_ITEMS_MAX, "items")?;
            let event_ids = event_ids.iter().map(typed_uuid).collect();
            Operation::ReferenceBatch { corpus: name("corpus", table.corpus())?, event_ids }
        }
        wire::Operation::Retract => {
            let table = root.operation_as_retract().ok_or_else(missing)?;
            let reason_code =
                ReasonCode::try_from(table.reason_code().0).map_err(|error| format!("reason_code: {error}"))?;
            Operation::Retract {
                corpus: name("corpus", table.corpus())?,
                event_id: typed_uuid(table.event_id()),
                reason_code,
            }
        }
        wire::Operation::Reactivate => {
            let table = root.operation_as_reactivate().ok_or_else(missing)?;
            Operation::Reactivate { event_id: typed_uuid(table.event_id()) }
        }
        wire::Operation::ConfirmClock => Operation::ConfirmClock,
        wire::Operation::Lookup => {
            let table = root.operation_as_lookup().ok_or_else(missing)?;
            Operation::Lookup { event_id: typed_uuid(table.event_id()) }
        }
        wire::Operation::History => {
            let table = root.operation_as_history().ok_or_else(missing)?;
            Operation::History { event_id: typed_uuid(table.event_id()), skip: table.skip() }
        }
        wire::Operation::Scan => {
            let table = root.operation_as_scan().ok_or_else(missing)?;
            Operation::Scan {
                corpus: name("corpus", table.corpus())?,
                since_us: table.since_us(),
                until_us: table.until_us(),
                after: table.after().map(typed_uuid),
                limit: table.limit(),
            }
        }
        wire::Operation::Status => Operation::Status,
        wire::Operation(other) => {
            return Err(format!("operation type {other} is unknown; version 1 has 1 to 14"));
        }
    })
}

fn decode_item<'a>(item: &wire::ClaimItem<'a>) -> Result<ClaimItem<'a>, String> {
    let event_key = item.event_key();
    at_least_one("event_key", event_key)?;
    at_most("event_key", event_key.len(), EVENT_KEY_BYTES_MAX, "bytes")?;
    let owning_corpus = item.owning_corpus().unwrap_or_default();
    at_most("owning_corpus", owning_corpus.len(), NAME_BYTES_MAX, "bytes")?;
    let hosting_corpus = item.hosting_corpus().unwrap_or_default();
    at_most("hosting_corpus", hosting_corpus.len(), NAME_BYTES_MAX, "bytes")?;
    let metadata = item.metadata().map(|metadata| metadata.bytes()).unwrap_or_default();
    at_most("metadata", metadata.len(), METADATA_BYTES_MAX, "bytes")?;
    Ok(ClaimItem {
        event_key,
        occurred_at_us: item.occurred_at_us(),
        owning_corpus,
        hosting_corpus,
        category: name("category", item.category())?,
        taxonomy_version: item.taxonomy_version(),
        metadata,
    })
}

fn name<'a>(field: &str, text: &'a str) -> Result<&'a str, String> {
    at_least_one(field, text)?;
    at_most(field, text.len(), NAME_BYTES_MAX, "bytes")?;
    Ok(text)
}

fn at_least_one(field: &str, text: &str) -> Result<(), String> {
    if text.is_empty() { Err(format!("{field} is empty; at least one byte is required")) } else { Ok(()) }
}

fn at_most(field: &str, found: usize, bound: usize, unit: &str) -> Result<(), String> {
    if found > bound { Err(format!("{field} has {found} {unit}; at most {bound} are allowed")) } else { Ok(()) }
}
