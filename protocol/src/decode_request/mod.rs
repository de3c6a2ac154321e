//! Frames to requests.

mod audit;
mod claims;
mod dispute;

pub use claims::key_at_sight;

use crate::bounds::{
    APPARENT_BYTES_MAX, AT_LEAST_MAX, BATCH_ITEMS_MAX, CLIENT_NAME_BYTES_MAX, EVENT_KEY_BYTES_MAX, METADATA_BYTES_MAX,
    NAME_BYTES_MAX, NOTES_BYTES_MAX, QUARTER_YEAR_MAX, QUARTER_YEAR_MIN, REQUEST_TABLES_MAX, TABLES_DEEP_MAX,
    UNLESS_REGISTERED_MS_MAX,
};
use crate::decode_error::DecodeError;
use crate::generated::claimd as wire;
use crate::request::{ClaimItem, Operation, Request};
use crate::values::{ReasonCode, Role};
use crate::wire_values::{typed_position, typed_uuid};
use flatbuffers::VerifierOptions;

const VERIFIER: VerifierOptions = VerifierOptions {
    max_depth: TABLES_DEEP_MAX,
    max_tables: REQUEST_TABLES_MAX,
    max_apparent_size: APPARENT_BYTES_MAX,
    ignore_missing_null_terminator: false,
};

/// Verifies `content`, a frame without its prefix, and reads the request in it. Strings and metadata are borrowed.
///
/// # Errors
/// Fatal when the bytes do not verify; otherwise a bound is exceeded, a value is unknown, or a mutating operation
/// lacks its key. See [`DecodeError::fatal`].
pub fn decode_request(content: &[u8]) -> Result<Request<'_>, DecodeError> {
    match claims::decode(content) {
        Some(request) => Ok(request),
        None => decode_any(content),
    }
}

/// The same in the general way, which takes every request, and says what is wrong with one.
///
/// # Errors
/// As [`decode_request`].
#[doc(hidden)]
pub fn decode_any(content: &[u8]) -> Result<Request<'_>, DecodeError> {
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
    let operation = decode_operation(root)?;
    let rationale = root.rationale().unwrap_or_default();
    at_most("rationale", rationale.len(), operation.rationale_bytes_max(), "bytes")?;
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
            let unless_registered_within_ms = table.unless_registered_within_ms();
            let bound = UNLESS_REGISTERED_MS_MAX as usize;
            at_most("unless_registered_within_ms", unless_registered_within_ms as usize, bound, "ms")?;
            let item = decode_item(&table.item())?;
            Operation::Claim { corpus: name("corpus", table.corpus())?, item, unless_registered_within_ms }
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
                corpus: name_or_empty("corpus", Some(table.corpus()))?,
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
            decode_history(&table)?
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
        wire::Operation::Dispute => dispute::open(&root.operation_as_dispute().ok_or_else(missing)?)?,
        wire::Operation::Respond => dispute::respond(&root.operation_as_respond().ok_or_else(missing)?)?,
        wire::Operation::Arbitrate => dispute::arbitrate(&root.operation_as_arbitrate().ok_or_else(missing)?)?,
        wire::Operation::Escalate => {
            let table = root.operation_as_escalate().ok_or_else(missing)?;
            Operation::Escalate { dispute_id: typed_uuid(table.dispute_id()) }
        }
        wire::Operation::DisputeLookup => {
            let table = root.operation_as_dispute_lookup().ok_or_else(missing)?;
            Operation::DisputeLookup { dispute_id: typed_uuid(table.dispute_id()) }
        }
        wire::Operation::Disputes => {
            let table = root.operation_as_disputes().ok_or_else(missing)?;
            Operation::Disputes {
                corpus: name_or_empty("corpus", table.corpus())?,
                include_closed: table.include_closed(),
                before: table.before().map(typed_uuid),
            }
        }
        wire::Operation::Decommission => {
            let table = root.operation_as_decommission().ok_or_else(missing)?;
            Operation::Decommission { name: name("name", table.name())?, dry_run: table.dry_run() }
        }
        wire::Operation::Freeze => {
            let table = root.operation_as_freeze().ok_or_else(missing)?;
            Operation::Freeze { corpus: name_or_empty("corpus", table.corpus())?, frozen: table.frozen() }
        }
        wire::Operation::Cap => {
            let table = root.operation_as_cap().ok_or_else(missing)?;
            Operation::Cap { corpus: name("corpus", table.corpus())?, claims_per_minute: table.claims_per_minute() }
        }
        wire::Operation::ProposeSlots => {
            let table = root.operation_as_propose_slots().ok_or_else(missing)?;
            Operation::ProposeSlots { corpus: name("corpus", table.corpus())?, slots: table.slots() }
        }
        wire::Operation::SignOff => {
            let table = root.operation_as_sign_off().ok_or_else(missing)?;
            let role = Role::try_from(table.role().0).map_err(|error| format!("role: {error}"))?;
            Operation::SignOff { proposal: table.proposal(), role }
        }
        wire::Operation::Proposals => Operation::Proposals,
        wire::Operation::Incident => {
            Operation::Incident { active: root.operation_as_incident().ok_or_else(missing)?.active() }
        }
        wire::Operation::Barrier => Operation::Barrier,
        wire::Operation::Reconcile => {
            Operation::Reconcile { dry_run: root.operation_as_reconcile().ok_or_else(missing)?.dry_run() }
        }
        wire::Operation::Find => {
            let table = root.operation_as_find().ok_or_else(missing)?;
            Operation::Find { event_key: event_key(table.event_key())?, from: table.from() }
        }
        wire::Operation::Totals => {
            let table = root.operation_as_totals().ok_or_else(missing)?;
            Operation::Totals { corpus: name_or_empty("corpus", table.corpus())? }
        }
        wire::Operation::Tail => audit::tail(&root.operation_as_tail().ok_or_else(missing)?)?,
        wire::Operation::AuditHead => Operation::AuditHead,
        wire::Operation::AuditCheck => audit::check(&root.operation_as_audit_check().ok_or_else(missing)?)?,
        wire::Operation::Configuration => Operation::Configuration,
        wire::Operation::Propagation => Operation::Propagation,
        wire::Operation::Hold => {
            let table = root.operation_as_hold().ok_or_else(missing)?;
            let (year, quarter) = (table.year(), table.quarter());
            if !(QUARTER_YEAR_MIN..=QUARTER_YEAR_MAX).contains(&year) || !(1..=4).contains(&quarter) {
                return Err(format!(
                    "quarter {quarter} of {year} is unknown; use 1 to 4 of a year from {QUARTER_YEAR_MIN} to {QUARTER_YEAR_MAX}"
                ));
            }
            Operation::Hold { year, quarter, held: table.held() }
        }
        wire::Operation(other) => {
            let last = wire::Operation::ENUM_MAX;
            return Err(format!("operation type {other} is unknown; version 1 has 1 to {last}"));
        }
    })
}

fn decode_item<'a>(item: &wire::ClaimItem<'a>) -> Result<ClaimItem<'a>, String> {
    let item = ClaimItem {
        event_key: item.event_key(),
        occurred_at_us: item.occurred_at_us(),
        owning_corpus: item.owning_corpus().unwrap_or_default(),
        hosting_corpus: item.hosting_corpus().unwrap_or_default(),
        category: item.category(),
        taxonomy_version: item.taxonomy_version(),
        metadata: item.metadata().map(|metadata| metadata.bytes()).unwrap_or_default(),
    };
    check_item(&item)?;
    Ok(item)
}

#[inline(always)]
fn check_item(item: &ClaimItem<'_>) -> Result<(), String> {
    event_key(item.event_key)?;
    name_or_empty("owning_corpus", Some(item.owning_corpus))?;
    name_or_empty("hosting_corpus", Some(item.hosting_corpus))?;
    at_most("metadata", item.metadata.len(), METADATA_BYTES_MAX, "bytes")?;
    name("category", item.category)?;
    Ok(())
}

fn decode_history<'a>(table: &wire::History<'a>) -> Result<Operation<'a>, String> {
    let event_id = table.event_id().map(typed_uuid);
    let correlation_id = table.correlation_id().map(typed_uuid);
    if event_id.is_some() == correlation_id.is_some() {
        let found = if event_id.is_some() { "both" } else { "neither" };
        return Err(format!("a history names {found} of event_id and correlation_id; exactly one is required"));
    }
    let (since_us, until_us) = (table.since_us(), table.until_us());
    Ok(Operation::History { event_id, correlation_id, from: table.from(), since_us, until_us })
}

#[inline(always)]
fn event_key(text: &str) -> Result<&str, String> {
    at_least_one("event_key", text)?;
    at_most("event_key", text.len(), EVENT_KEY_BYTES_MAX, "bytes")?;
    Ok(text)
}

#[inline(always)]
fn name_or_empty<'a>(field: &str, text: Option<&'a str>) -> Result<&'a str, String> {
    let text = text.unwrap_or_default();
    at_most(field, text.len(), NAME_BYTES_MAX, "bytes")?;
    Ok(text)
}

#[inline(always)]
fn name<'a>(field: &str, text: &'a str) -> Result<&'a str, String> {
    at_least_one(field, text)?;
    at_most(field, text.len(), NAME_BYTES_MAX, "bytes")?;
    Ok(text)
}

#[inline(always)]
fn at_least_one(field: &str, text: &str) -> Result<(), String> {
    if text.is_empty() { Err(format!("{field} is empty; at least one byte is required")) } else { Ok(()) }
}

#[inline(always)]
fn at_most(field: &str, found: usize, bound: usize, unit: &str) -> Result<(), String> {
    if found > bound { Err(format!("{field} has {found} {unit}; at most {bound} are allowed")) } else { Ok(()) }
}
