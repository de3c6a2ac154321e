//! Disputes.

use crate::generated::claimd as wire;
use crate::reply::{DisputeInfo, DisputeSide};
use crate::values::{DisputeState, DisputeVerdict};
use crate::wire_values::typed_uuid;

pub(super) fn decode_info(table: &wire::DisputeInfo<'_>) -> Result<DisputeInfo, String> {
    let side = |side: wire::DisputeSide<'_>| {
        let verdict = DisputeVerdict::try_from(side.verdict().0).map_err(|error| format!("verdict: {error}"))?;
        Ok(DisputeSide { event_id: typed_uuid(side.event_id()), corpus: side.corpus().to_owned(), verdict })
    };
    Ok(DisputeInfo {
        dispute_id: typed_uuid(table.dispute_id()),
        state: DisputeState::try_from(table.state().0).map_err(|error| format!("state: {error}"))?,
        opened_by: table.opened_by().to_owned(),
        opened_at_us: table.opened_at_us(),
        updated_at_us: table.updated_at_us(),
        rationale: table.rationale().unwrap_or_default().to_owned(),
        sides: table.sides().iter().map(side).collect::<Result<_, String>>()?,
        canonical_id: table.canonical_id().map(typed_uuid),
        responses: table.responses(),
        dismissed: table.dismissed(),
    })
}
