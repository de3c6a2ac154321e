//! Disputes.

use super::{at_most, name};
use crate::bounds::{DISPUTE_IDS_MAX, DISPUTE_IDS_MIN};
use crate::generated::claimd as wire;
use crate::request::{Operation, Verdict};
use crate::values::DisputeVerdict;
use crate::wire_values::{typed_uuid, typed_uuids};

pub(super) fn open<'a>(table: &wire::Dispute<'a>) -> Result<Operation<'a>, String> {
    let event_ids = table.event_ids();
    count("event_ids", event_ids.len())?;
    Ok(Operation::Dispute { corpus: name("corpus", table.corpus())?, event_ids: typed_uuids(Some(event_ids)) })
}

pub(super) fn respond<'a>(table: &wire::Respond<'a>) -> Result<Operation<'a>, String> {
    Ok(Operation::Respond { corpus: name("corpus", table.corpus())?, dispute_id: typed_uuid(table.dispute_id()) })
}

pub(super) fn arbitrate<'a>(table: &wire::Arbitrate<'a>) -> Result<Operation<'a>, String> {
    let (dispute_id, dismissed) = (typed_uuid(table.dispute_id()), table.dismissed());
    let verdicts = match table.verdicts() {
        Some(verdicts) if dismissed && !verdicts.is_empty() => {
            return Err(format!("a dismissal has {} verdicts; it has none", verdicts.len()));
        }
        _ if dismissed => Vec::new(),
        None => return Err("verdicts is missing; each id of the dispute has one, unless it is dismissed".to_owned()),
        Some(verdicts) => {
            count("verdicts", verdicts.len())?;
            verdicts.iter().map(|verdict| decode_verdict(&verdict)).collect::<Result<_, String>>()?
        }
    };
    Ok(Operation::Arbitrate { dispute_id, dismissed, verdicts })
}

fn decode_verdict(table: &wire::Verdict<'_>) -> Result<Verdict, String> {
    let verdict = DisputeVerdict::try_from(table.verdict().0).map_err(|error| format!("verdict: {error}"))?;
    if matches!(verdict, DisputeVerdict::None | DisputeVerdict::Dismissed) {
        return Err(format!("verdict {verdict} is no decision about one id; use canonical, references or tombstone"));
    }
    Ok(Verdict { event_id: typed_uuid(table.event_id()), verdict })
}

fn count(field: &str, found: usize) -> Result<(), String> {
    if found < DISPUTE_IDS_MIN {
        return Err(format!("{field} has {found} items; at least {DISPUTE_IDS_MIN} are required"));
    }
    at_most(field, found, DISPUTE_IDS_MAX, "items")
}
