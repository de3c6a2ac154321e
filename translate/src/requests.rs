//! The wire's operations as the engine's.

use super::{reason_code_in, role_in};
use crate::pages;
use claim_engine::command;
use claim_engine::dispute::{DisputeId, Verdict};
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::time::Quarter;
use claim_protocol as wire;
use uuid::Uuid;

/// An id of the wire; a UUID that no claim ever hands out is refused.
pub fn event_id(uuid: Uuid) -> Result<EventId, Refusal> {
    EventId::from_uuid(uuid).ok_or_else(|| {
        Refusal::new(Code::BadRequest, format!("{uuid} is no event-id: one is a UUIDv7 that carries a shard prefix"))
    })
}

fn dispute_id(uuid: Uuid) -> Result<DisputeId, Refusal> {
    DisputeId::from_u128(uuid.as_u128()).ok_or_else(|| {
        Refusal::new(Code::BadRequest, "the dispute's id is all zeroes: give the one that opening it returned")
    })
}

fn claim_item<'a>(item: &wire::ClaimItem<'a>) -> command::Claim<'a> {
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

fn verdict(verdict: &wire::Verdict) -> Result<(EventId, Verdict), Refusal> {
    let decided = match verdict.verdict {
        wire::DisputeVerdict::Canonical => Verdict::Canonical,
        wire::DisputeVerdict::References => Verdict::References,
        wire::DisputeVerdict::Tombstone => Verdict::Tombstone,
        wire::DisputeVerdict::Dismissed | wire::DisputeVerdict::None => {
            let message = "a row's verdict is canonical, references or tombstone; a dismissal is of the whole dispute";
            return Err(Refusal::new(Code::BadRequest, message));
        }
    };
    Ok((event_id(verdict.event_id)?, decided))
}

/// The engine's form of the wire's operation for one shard. `is_here` says which references are the shard's own; `sides_of`
/// gives the rows of a dispute, which a dismissal does not name.
pub fn with_operation(
    request: &wire::Request<'_>,
    shard: u16,
    is_here: impl Fn(Uuid) -> bool,
    sides_of: impl Fn(DisputeId) -> Vec<EventId>,
    submit: impl FnOnce(command::Operation<'_>),
) -> Result<(), Refusal> {
    use command::Operation as Engine;
    use wire::Operation;
    match &request.operation {
        Operation::Claim { corpus, item, unless_registered_within_ms } => {
            let within_us = (*unless_registered_within_ms > 0).then(|| i64::from(*unless_registered_within_ms) * 1_000);
            submit(Engine::Claim { corpus, items: &[claim_item(item)], unless_within_us: within_us });
        }
        Operation::ClaimBatch { corpus, items } => {
            let items: Vec<_> = items.iter().map(claim_item).collect();
            submit(Engine::Claim { corpus, items: &items, unless_within_us: None });
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
            submit(Engine::Retract { corpus, event_id: event_id(*uuid)?, reason_code: reason_code_in(*reason_code) });
        }
        Operation::Reactivate { event_id: uuid } => submit(Engine::Reactivate { event_id: event_id(*uuid)? }),
        Operation::Onboard { name, notes } => submit(Engine::Onboard { name, notes }),
        Operation::ConfirmClock => submit(Engine::ConfirmClock),
        // Every shard says what the corpus is to it; shard 0 decides.
        Operation::Decommission { name, .. } if shard != 0 => submit(Engine::Usage { name }),
        Operation::Decommission { name, dry_run } => submit(Engine::Decommission { name, dry_run: *dry_run }),
        Operation::Freeze { corpus, frozen } => submit(Engine::Freeze { corpus, frozen: *frozen }),
        Operation::Cap { corpus, claims_per_minute } => {
            submit(Engine::Cap { corpus, claims_per_minute: *claims_per_minute });
        }
        Operation::ProposeSlots { corpus, slots } => submit(Engine::ProposeSlots { corpus, slots: *slots }),
        Operation::SignOff { proposal, role } => {
            submit(Engine::SignOff { proposal: *proposal, role: role_in(*role) });
        }
        Operation::Incident { active } => submit(Engine::Incident { active: *active }),
        Operation::Barrier => submit(Engine::Barrier),
        Operation::Hold { year, quarter, held } => {
            let quarter = Quarter::new(*year, *quarter).ok_or_else(|| {
                Refusal::new(Code::BadRequest, format!("there is no quarter {quarter} of {year}: use 1 to 4"))
            })?;
            submit(Engine::Hold { quarter, held: *held });
        }
        Operation::Dispute { corpus, event_ids } => {
            let event_ids: Result<Vec<_>, _> = event_ids.iter().map(|uuid| event_id(*uuid)).collect();
            submit(Engine::Dispute { corpus, event_ids: &event_ids? });
        }
        Operation::Respond { corpus, dispute_id: id } => submit(Engine::Respond { corpus, dispute: dispute_id(*id)? }),
        Operation::Arbitrate { dispute_id: id, dismissed, verdicts } => {
            let dispute = dispute_id(*id)?;
            let verdicts: Vec<_> = match dismissed {
                true => sides_of(dispute).into_iter().map(|id| (id, Verdict::Dismissed)).collect(),
                false => verdicts.iter().map(verdict).collect::<Result<_, _>>()?,
            };
            submit(Engine::Arbitrate { dispute, verdicts: &verdicts });
        }
        Operation::Escalate { dispute_id: id } => submit(Engine::Escalate { dispute: dispute_id(*id)? }),
        Operation::Reconcile { dry_run } => submit(Engine::Reconcile { dry_run: *dry_run }),
        Operation::DisputeLookup { dispute_id: id } => submit(Engine::DisputeLookup { dispute: dispute_id(*id)? }),
        Operation::Disputes { corpus, include_closed, before } => {
            let before = before.map(dispute_id).transpose()?;
            submit(Engine::Disputes { corpus, include_closed: *include_closed, before });
        }
        Operation::Proposals => submit(Engine::Proposals),
        Operation::Configuration => submit(Engine::Configuration),
        Operation::Find { event_key, from } => {
            let from = Some(pages::place_of(*from)).filter(|place| *place > 0);
            submit(Engine::Find { event_key, from })
        }
        Operation::Totals { corpus } => submit(Engine::Totals { corpus }),
        Operation::Corpora => submit(Engine::Corpora),
        Operation::Lookup { event_id: uuid } => submit(Engine::Lookup { event_id: event_id(*uuid)? }),
        Operation::History { event_id: Some(uuid), from, .. } => {
            submit(Engine::History { event_id: event_id(*uuid)?, skip: *from as usize });
        }
        Operation::History { correlation_id, from, .. } => {
            let correlation_id = correlation_id.map_or(0, |id| id.as_u128());
            submit(Engine::Correlated { correlation_id, skip: pages::place_of(*from) as usize });
        }
        Operation::Scan { corpus, since_us, until_us, after, limit } => submit(Engine::Scan {
            corpus,
            since_us: *since_us,
            until_us: *until_us,
            after: after.map(event_id).transpose()?,
            limit: *limit as usize,
        }),
        // These are answered beside the state machine; it says whether one may.
        Operation::Tail { .. } | Operation::AuditHead | Operation::AuditCheck { .. } | Operation::Propagation => {
            submit(Engine::ReadAll);
        }
        Operation::Status => submit(Engine::Status),
        Operation::Hello { .. } => {
            return Err(Refusal::new(Code::BadRequest, "not an operation of a shard"));
        }
    }
    Ok(())
}
