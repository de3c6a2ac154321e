//! Frames to replies.

mod audit;
mod dispute;
mod reconcile;
mod registry;
mod row;
mod rows;
mod status;

use crate::bounds::{APPARENT_BYTES_MAX, REPLY_TABLES_MAX, TABLES_DEEP_MAX};
use crate::decode_error::DecodeError;
use crate::generated::claimd as wire;
use crate::reply::{Reply, ReplyResult, ServerError};
use crate::values::{ErrorCode, ErrorOutcome, Lifecycle, ReasonCode};
use crate::wire_values::{typed_position, typed_uuid, typed_uuids};
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
    match rows::decode(content) {
        Some(reply) => Ok(reply),
        None => decode_any_reply(content),
    }
}

/// The same in the general way, which takes every reply, and says what is wrong with one.
///
/// # Errors
/// As [`decode_reply`].
#[doc(hidden)]
pub fn decode_any_reply(content: &[u8]) -> Result<Reply, DecodeError> {
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
            ReplyResult::Welcome(status::decode_welcome(&root.result_as_welcome().ok_or_else(missing)?)?)
        }
        wire::ReplyResult::Onboarded => {
            ReplyResult::Onboarded(registry::decode_corpus(&root.result_as_onboarded().ok_or_else(missing)?.corpus())?)
        }
        wire::ReplyResult::CorporaList => {
            let table = root.result_as_corpora_list().ok_or_else(missing)?;
            let corpora = table.corpora().iter().map(|corpus| registry::decode_corpus(&corpus));
            ReplyResult::Corpora(corpora.collect::<Result<_, String>>()?)
        }
        wire::ReplyResult::Claimed => {
            ReplyResult::Claimed(row::decode_claimed(&root.result_as_claimed().ok_or_else(missing)?))
        }
        wire::ReplyResult::ClaimedBatch => {
            let table = root.result_as_claimed_batch().ok_or_else(missing)?;
            let decode = |item: wire::ClaimResult<'_>| match (item.claimed(), item.error()) {
                (Some(claimed), None) => Ok(Ok(row::decode_claimed(&claimed))),
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
            ReplyResult::Row(Box::new(row::decode_row(&table.row())?))
        }
        wire::ReplyResult::HistoryFound => {
            let table = root.result_as_history_found().ok_or_else(missing)?;
            let entries = table.entries().iter().map(|entry| audit::decode_entry(&entry));
            ReplyResult::History {
                entries: entries.collect::<Result<_, String>>()?,
                next: Some(table.next()).filter(|next| *next > 0),
                related: typed_uuids(table.related()),
            }
        }
        wire::ReplyResult::ScanPage => {
            let table = root.result_as_scan_page().ok_or_else(missing)?;
            let rows = table.rows().iter().map(|row| row::decode_row(&row)).collect::<Result<_, String>>()?;
            ReplyResult::ScanPage { rows, next: table.next().map(typed_uuid) }
        }
        wire::ReplyResult::StatusReport => {
            let table = root.result_as_status_report().ok_or_else(missing)?;
            ReplyResult::Status(Box::new(status::decode_status(&table)?))
        }
        wire::ReplyResult::Error => ReplyResult::Error(decode_error(&root.result_as_error().ok_or_else(missing)?)?),
        wire::ReplyResult::Disputed => {
            let table = root.result_as_disputed().ok_or_else(missing)?;
            ReplyResult::Disputed(dispute::decode_info(&table.dispute())?)
        }
        wire::ReplyResult::DisputeList => {
            let table = root.result_as_dispute_list().ok_or_else(missing)?;
            let disputes = table.disputes().iter().map(|info| dispute::decode_info(&info));
            ReplyResult::DisputeList {
                disputes: disputes.collect::<Result<_, String>>()?,
                next: table.next().map(typed_uuid),
            }
        }
        wire::ReplyResult::Decommissioned => {
            let table = root.result_as_decommissioned().ok_or_else(missing)?;
            ReplyResult::Decommissioned {
                corpus: registry::decode_corpus(&table.corpus())?,
                applied: table.applied(),
                rows: table.rows(),
                aliases_elsewhere: table.aliases_elsewhere(),
            }
        }
        wire::ReplyResult::Frozen => {
            let table = root.result_as_frozen().ok_or_else(missing)?;
            let corpus = table.corpus().unwrap_or_default().to_owned();
            ReplyResult::Frozen { corpus, frozen: table.frozen(), at_us: table.at_us() }
        }
        wire::ReplyResult::Capped => {
            let table = root.result_as_capped().ok_or_else(missing)?;
            let corpus = table.corpus().to_owned();
            ReplyResult::Capped { corpus, claims_per_minute: table.claims_per_minute(), at_us: table.at_us() }
        }
        wire::ReplyResult::Proposal => {
            let table = root.result_as_proposal().ok_or_else(missing)?;
            ReplyResult::Proposal(registry::decode_proposal(&table)?)
        }
        wire::ReplyResult::ProposalList => {
            let table = root.result_as_proposal_list().ok_or_else(missing)?;
            let proposals = table.proposals().iter().map(|proposal| registry::decode_proposal(&proposal));
            ReplyResult::ProposalList(proposals.collect::<Result<_, String>>()?)
        }
        wire::ReplyResult::TotalsFound => {
            let table = root.result_as_totals_found().ok_or_else(missing)?;
            ReplyResult::TotalsFound(table.totals().iter().map(|total| registry::decode_total(&total)).collect())
        }
        wire::ReplyResult::IncidentSet => {
            let table = root.result_as_incident_set().ok_or_else(missing)?;
            ReplyResult::IncidentSet { active: table.active(), at_us: table.at_us() }
        }
        wire::ReplyResult::BarrierRaised => {
            ReplyResult::BarrierRaised { at_us: root.result_as_barrier_raised().ok_or_else(missing)?.at_us() }
        }
        wire::ReplyResult::Reconciled => {
            let table = root.result_as_reconciled().ok_or_else(missing)?;
            ReplyResult::Reconciled(Box::new(reconcile::decode_report(&table.report())?))
        }
        wire::ReplyResult::Found => {
            let table = root.result_as_found().ok_or_else(missing)?;
            let rows = table.rows().iter().map(|row| row::decode_row(&row));
            let next = Some(table.next()).filter(|next| *next > 0);
            ReplyResult::Found { rows: rows.collect::<Result<_, String>>()?, next }
        }
        wire::ReplyResult::TailPage => {
            let table = root.result_as_tail_page().ok_or_else(missing)?;
            let entries = table.entries().iter().map(|entry| audit::decode_entry(&entry));
            ReplyResult::TailPage {
                entries: entries.collect::<Result<_, String>>()?,
                next_position: table.next_position(),
                durable_position: table.durable_position(),
            }
        }
        wire::ReplyResult::AuditHeads => {
            let table = root.result_as_audit_heads().ok_or_else(missing)?;
            let heads = table.heads().iter().map(|head| audit::decode_head(&head));
            ReplyResult::AuditHeads(heads.collect::<Result<_, String>>()?)
        }
        wire::ReplyResult::AuditChecked => {
            let table = root.result_as_audit_checked().ok_or_else(missing)?;
            ReplyResult::AuditChecked {
                shard: table.shard(),
                ok: table.ok(),
                message: table.message().unwrap_or_default().to_owned(),
                batches_verified: table.batches_verified(),
            }
        }
        wire::ReplyResult::ConfigurationFound => {
            let table = root.result_as_configuration_found().ok_or_else(missing)?;
            ReplyResult::ConfigurationFound {
                toml: table.toml().to_owned(),
                at_us: table.at_us(),
                uid: table.uid(),
                position: typed_position(table.position()),
            }
        }
        wire::ReplyResult::PropagationFound => {
            let table = root.result_as_propagation_found().ok_or_else(missing)?;
            ReplyResult::PropagationFound(table.pairs().iter().map(|pair| audit::decode_pair(&pair)).collect())
        }
        wire::ReplyResult::Held => {
            let table = root.result_as_held().ok_or_else(missing)?;
            let (year, quarter) = (table.year(), table.quarter());
            ReplyResult::Held { year, quarter, held: table.held(), at_us: table.at_us() }
        }
        wire::ReplyResult(other) => {
            let last = wire::ReplyResult::ENUM_MAX;
            return Err(format!("result type {other} is unknown; version 1 has 1 to {last}"));
        }
    })
}

fn decode_error(table: &wire::Error<'_>) -> Result<ServerError, String> {
    Ok(ServerError {
        code: ErrorCode::try_from(table.code().0).map_err(|error| format!("code: {error}"))?,
        outcome: ErrorOutcome::try_from(table.outcome().0).map_err(|error| format!("outcome: {error}"))?,
        message: table.message().to_owned(),
        retry_after_ms: table.retry_after_ms(),
        registered_id: table.registered_id().map(typed_uuid),
    })
}

fn decode_reason(reason: wire::ReasonCode) -> Result<Option<ReasonCode>, String> {
    if reason == wire::ReasonCode::none {
        return Ok(None);
    }
    ReasonCode::try_from(reason.0).map(Some).map_err(|error| format!("reason_code: {error}"))
}

fn decode_lifecycle(lifecycle: wire::Lifecycle) -> Result<Lifecycle, String> {
    Lifecycle::try_from(lifecycle.0).map_err(|error| format!("lifecycle: {error}"))
}
