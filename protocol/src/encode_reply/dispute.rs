//! Disputes.

use super::Encoded;
use crate::generated::claimd as wire;
use crate::reply::DisputeInfo;
use crate::wire_values::{optional_string, wire_uuid};
use crate::{Builder, Uuid};
use flatbuffers::WIPOffset;

pub(super) fn disputed(builder: &mut Builder, info: &DisputeInfo) -> Encoded {
    let dispute = Some(encode_info(builder, info));
    let table = wire::Disputed::create(builder, &wire::DisputedArgs { dispute });
    (wire::ReplyResult::Disputed, table.as_union_value())
}

pub(super) fn list(builder: &mut Builder, disputes: &[DisputeInfo], next: Option<Uuid>) -> Encoded {
    let disputes: Vec<_> = disputes.iter().map(|info| encode_info(builder, info)).collect();
    let disputes = Some(builder.create_vector(&disputes));
    let next = next.map(wire_uuid);
    let table = wire::DisputeList::create(builder, &wire::DisputeListArgs { disputes, next: next.as_ref() });
    (wire::ReplyResult::DisputeList, table.as_union_value())
}

fn encode_info<'b>(builder: &mut Builder, info: &DisputeInfo) -> WIPOffset<wire::DisputeInfo<'b>> {
    let sides: Vec<_> = info
        .sides
        .iter()
        .map(|side| {
            let corpus = Some(builder.create_string(&side.corpus));
            let event_id = wire_uuid(side.event_id);
            let verdict = wire::DisputeVerdict(side.verdict as u8);
            let args = wire::DisputeSideArgs { event_id: Some(&event_id), corpus, verdict };
            wire::DisputeSide::create(builder, &args)
        })
        .collect();
    let sides = Some(builder.create_vector(&sides));
    let opened_by = Some(builder.create_string(&info.opened_by));
    let rationale = optional_string(builder, &info.rationale);
    let table = wire::DisputeInfo::create(
        builder,
        &wire::DisputeInfoArgs {
            dispute_id: Some(&wire_uuid(info.dispute_id)),
            state: wire::DisputeState(info.state as u8),
            opened_by,
            opened_at_us: info.opened_at_us,
            updated_at_us: info.updated_at_us,
            rationale,
            sides,
            canonical_id: info.canonical_id.map(wire_uuid).as_ref(),
            responses: info.responses,
            dismissed: info.dismissed,
        },
    );
    WIPOffset::new(table.value())
}
