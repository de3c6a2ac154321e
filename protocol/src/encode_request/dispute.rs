//! Disputes.

use super::Encoded;
use crate::generated::claimd as wire;
use crate::request::Verdict;
use crate::wire_values::{optional_string, uuid_vector, wire_uuid};
use crate::{Builder, Uuid};

pub(super) fn open(builder: &mut Builder, corpus: &str, event_ids: &[Uuid]) -> Encoded {
    let event_ids = Some(uuid_vector(builder, event_ids));
    let corpus = Some(builder.create_string(corpus));
    let table = wire::Dispute::create(builder, &wire::DisputeArgs { corpus, event_ids });
    (wire::Operation::Dispute, table.as_union_value())
}

pub(super) fn respond(builder: &mut Builder, corpus: &str, dispute_id: Uuid) -> Encoded {
    let corpus = Some(builder.create_string(corpus));
    let args = wire::RespondArgs { corpus, dispute_id: Some(&wire_uuid(dispute_id)) };
    (wire::Operation::Respond, wire::Respond::create(builder, &args).as_union_value())
}

pub(super) fn arbitrate(builder: &mut Builder, dispute_id: Uuid, dismissed: bool, verdicts: &[Verdict]) -> Encoded {
    let verdicts = (!verdicts.is_empty()).then(|| {
        let verdicts: Vec<_> = verdicts
            .iter()
            .map(|verdict| {
                let event_id = wire_uuid(verdict.event_id);
                let verdict = wire::DisputeVerdict(verdict.verdict as u8);
                wire::Verdict::create(builder, &wire::VerdictArgs { event_id: Some(&event_id), verdict })
            })
            .collect();
        builder.create_vector(&verdicts)
    });
    let args = wire::ArbitrateArgs { dispute_id: Some(&wire_uuid(dispute_id)), dismissed, verdicts };
    (wire::Operation::Arbitrate, wire::Arbitrate::create(builder, &args).as_union_value())
}

pub(super) fn escalate(builder: &mut Builder, dispute_id: Uuid) -> Encoded {
    let args = wire::EscalateArgs { dispute_id: Some(&wire_uuid(dispute_id)) };
    (wire::Operation::Escalate, wire::Escalate::create(builder, &args).as_union_value())
}

pub(super) fn lookup(builder: &mut Builder, dispute_id: Uuid) -> Encoded {
    let args = wire::DisputeLookupArgs { dispute_id: Some(&wire_uuid(dispute_id)) };
    (wire::Operation::DisputeLookup, wire::DisputeLookup::create(builder, &args).as_union_value())
}

pub(super) fn list(builder: &mut Builder, corpus: &str, include_closed: bool, before: Option<Uuid>) -> Encoded {
    let corpus = optional_string(builder, corpus);
    let before = before.map(wire_uuid);
    let table =
        wire::Disputes::create(builder, &wire::DisputesArgs { corpus, include_closed, before: before.as_ref() });
    (wire::Operation::Disputes, table.as_union_value())
}
