//! Requests that wait for what other shards say, for what lies on disk, or for room in the log. They own what they were made of.

use super::admission::Takes;
use crate::command::{Claim, Fact, Operation, Request, Token};
use crate::dispute::{DisputeId, Verdict};
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::peer::Sought;
use crate::policy::Role;
use crate::row::ReasonCode;
use crate::time::Quarter;
use std::rc::Rc;

/// A request that owns its parts; only those that may need to wait can be made into one.
#[derive(Debug)]
pub struct OwnedRequest {
    /// See [`Request`].
    pub token: Token,
    /// See [`Request`].
    pub stream: u64,
    /// CLOCK_BOOTTIME in microseconds after which nobody waits.
    pub deadline_boot_us: Option<i64>,
    principal: Principal,
    user: String,
    idempotency_key: u128,
    correlation_id: u128,
    rationale: String,
    at_us: Option<i64>,
    at_least: Vec<(u16, u64)>,
    operation: OwnedOperation,
}

#[derive(Debug)]
enum OwnedOperation {
    Onboard { name: String, notes: String },
    Claim { corpus: String, items: OwnedClaims, unless_within_us: Option<i64> },
    Reference { corpus: String, items: Vec<(u16, EventId)> },
    Retract { corpus: String, event_id: EventId, reason_code: ReasonCode },
    Reactivate { event_id: EventId },
    ConfirmClock,
    Decommission { name: String, dry_run: bool },
    Freeze { corpus: String, frozen: bool },
    Cap { corpus: String, claims_per_minute: u32 },
    ProposeSlots { corpus: String, slots: u64 },
    SignOff { proposal: u64, role: Role },
    Incident { active: bool },
    Barrier,
    Configure { toml: String },
    Dispute { corpus: String, event_ids: Vec<EventId> },
    Respond { corpus: String, dispute: DisputeId },
    Arbitrate { dispute: DisputeId, verdicts: Vec<(EventId, Verdict)> },
    Escalate { dispute: DisputeId },
    Hold { quarter: Quarter, held: bool },
    Reconcile { dry_run: bool },
    Find { event_key: String, from: Option<u64> },
    Correlated { correlation_id: u128, skip: usize },
    Lookup { event_id: EventId },
    History { event_id: EventId, skip: usize },
    Scan { corpus: String, since_us: Option<i64>, until_us: Option<i64>, after: Option<EventId>, limit: usize },
}

/// The items of a claim; what they say lies one behind the other, so that a batch is three pieces of memory.
#[derive(Debug)]
struct OwnedClaims {
    items: Vec<OwnedClaim>,
    texts: String,
    metadata: Vec<u8>,
}

#[derive(Debug)]
struct OwnedClaim {
    occurred_at_us: i64,
    taxonomy_version: u32,
    /// Bytes of event key, owning corpus, hosting corpus, category.
    text_bytes: [usize; 4],
    metadata_bytes: usize,
}

impl OwnedClaims {
    fn new(claims: &[Claim<'_>]) -> OwnedClaims {
        let texts_of = |claim: &Claim<'_>| texts_of(claim).map(str::len).iter().sum::<usize>();
        let mut owned = OwnedClaims {
            items: Vec::with_capacity(claims.len()),
            texts: String::with_capacity(claims.iter().map(texts_of).sum()),
            metadata: Vec::with_capacity(claims.iter().map(|claim| claim.metadata.len()).sum()),
        };
        claims.iter().for_each(|claim| owned.add(claim));
        owned
    }

    fn add(&mut self, claim: &Claim<'_>) {
        let texts = texts_of(claim);
        texts.iter().for_each(|text| self.texts.push_str(text));
        self.metadata.extend_from_slice(claim.metadata);
        self.items.push(OwnedClaim {
            occurred_at_us: claim.occurred_at_us,
            taxonomy_version: claim.taxonomy_version,
            text_bytes: texts.map(str::len),
            metadata_bytes: claim.metadata.len(),
        });
    }

    fn lend(&self) -> Vec<Claim<'_>> {
        let (mut texts, mut metadata) = (self.texts.as_str(), self.metadata.as_slice());
        let lend = |item: &OwnedClaim| {
            let [event_key, owning_corpus, hosting_corpus, category] = item.text_bytes.map(|bytes| {
                let (text, rest) = texts.split_at(bytes);
                texts = rest;
                text
            });
            let (of_item, rest) = metadata.split_at(item.metadata_bytes);
            metadata = rest;
            let OwnedClaim { occurred_at_us, taxonomy_version, .. } = *item;
            Claim {
                event_key,
                occurred_at_us,
                owning_corpus,
                hosting_corpus,
                category,
                taxonomy_version,
                metadata: of_item,
            }
        };
        self.items.iter().map(lend).collect()
    }
}

fn texts_of<'a>(claim: &Claim<'a>) -> [&'a str; 4] {
    [claim.event_key, claim.owning_corpus, claim.hosting_corpus, claim.category]
}

impl OwnedOperation {
    fn new(operation: &Operation<'_>) -> Option<OwnedOperation> {
        Some(match *operation {
            Operation::Onboard { name, notes } => {
                OwnedOperation::Onboard { name: name.to_owned(), notes: notes.to_owned() }
            }
            Operation::Claim { corpus, items, unless_within_us } => {
                OwnedOperation::Claim { corpus: corpus.to_owned(), items: OwnedClaims::new(items), unless_within_us }
            }
            Operation::Reference { corpus, items } => {
                OwnedOperation::Reference { corpus: corpus.to_owned(), items: items.to_vec() }
            }
            Operation::Retract { corpus, event_id, reason_code } => {
                OwnedOperation::Retract { corpus: corpus.to_owned(), event_id, reason_code }
            }
            Operation::Reactivate { event_id } => OwnedOperation::Reactivate { event_id },
            Operation::ConfirmClock => OwnedOperation::ConfirmClock,
            Operation::Decommission { name, dry_run } => {
                OwnedOperation::Decommission { name: name.to_owned(), dry_run }
            }
            Operation::Freeze { corpus, frozen } => OwnedOperation::Freeze { corpus: corpus.to_owned(), frozen },
            Operation::Cap { corpus, claims_per_minute } => {
                OwnedOperation::Cap { corpus: corpus.to_owned(), claims_per_minute }
            }
            Operation::ProposeSlots { corpus, slots } => {
                OwnedOperation::ProposeSlots { corpus: corpus.to_owned(), slots }
            }
            Operation::SignOff { proposal, role } => OwnedOperation::SignOff { proposal, role },
            Operation::Incident { active } => OwnedOperation::Incident { active },
            Operation::Barrier => OwnedOperation::Barrier,
            Operation::Configure { toml } => OwnedOperation::Configure { toml: toml.to_owned() },
            Operation::Dispute { corpus, event_ids } => {
                OwnedOperation::Dispute { corpus: corpus.to_owned(), event_ids: event_ids.to_vec() }
            }
            Operation::Respond { corpus, dispute } => OwnedOperation::Respond { corpus: corpus.to_owned(), dispute },
            Operation::Arbitrate { dispute, verdicts } => {
                OwnedOperation::Arbitrate { dispute, verdicts: verdicts.to_vec() }
            }
            Operation::Escalate { dispute } => OwnedOperation::Escalate { dispute },
            Operation::Hold { quarter, held } => OwnedOperation::Hold { quarter, held },
            Operation::Reconcile { dry_run } => OwnedOperation::Reconcile { dry_run },
            Operation::Find { event_key, from } => OwnedOperation::Find { event_key: event_key.to_owned(), from },
            Operation::Correlated { correlation_id, skip } => OwnedOperation::Correlated { correlation_id, skip },
            Operation::Lookup { event_id } => OwnedOperation::Lookup { event_id },
            Operation::History { event_id, skip } => OwnedOperation::History { event_id, skip },
            Operation::Scan { corpus, since_us, until_us, after, limit } => {
                OwnedOperation::Scan { corpus: corpus.to_owned(), since_us, until_us, after, limit }
            }
            // These are answered from what every shard has in memory.
            Operation::DisputeLookup { .. }
            | Operation::Disputes { .. }
            | Operation::Proposals
            | Operation::Configuration
            | Operation::Totals { .. }
            | Operation::Usage { .. }
            | Operation::ReadAll
            | Operation::Status
            | Operation::Corpora => return None,
        })
    }

    fn with<T>(&self, use_it: impl FnOnce(Operation<'_>) -> T) -> T {
        let items: Vec<_>;
        use_it(match self {
            OwnedOperation::Onboard { name, notes } => Operation::Onboard { name, notes },
            OwnedOperation::Claim { corpus, items: owned, unless_within_us } => {
                items = owned.lend();
                Operation::Claim { corpus, items: &items, unless_within_us: *unless_within_us }
            }
            OwnedOperation::Reference { corpus, items } => Operation::Reference { corpus, items },
            OwnedOperation::Retract { corpus, event_id, reason_code } => {
                Operation::Retract { corpus, event_id: *event_id, reason_code: *reason_code }
            }
            OwnedOperation::Reactivate { event_id } => Operation::Reactivate { event_id: *event_id },
            OwnedOperation::ConfirmClock => Operation::ConfirmClock,
            OwnedOperation::Decommission { name, dry_run } => Operation::Decommission { name, dry_run: *dry_run },
            OwnedOperation::Freeze { corpus, frozen } => Operation::Freeze { corpus, frozen: *frozen },
            OwnedOperation::Cap { corpus, claims_per_minute } => {
                Operation::Cap { corpus, claims_per_minute: *claims_per_minute }
            }
            OwnedOperation::ProposeSlots { corpus, slots } => Operation::ProposeSlots { corpus, slots: *slots },
            OwnedOperation::SignOff { proposal, role } => Operation::SignOff { proposal: *proposal, role: *role },
            OwnedOperation::Incident { active } => Operation::Incident { active: *active },
            OwnedOperation::Barrier => Operation::Barrier,
            OwnedOperation::Configure { toml } => Operation::Configure { toml },
            OwnedOperation::Dispute { corpus, event_ids } => Operation::Dispute { corpus, event_ids },
            OwnedOperation::Respond { corpus, dispute } => Operation::Respond { corpus, dispute: *dispute },
            OwnedOperation::Arbitrate { dispute, verdicts } => Operation::Arbitrate { dispute: *dispute, verdicts },
            OwnedOperation::Escalate { dispute } => Operation::Escalate { dispute: *dispute },
            OwnedOperation::Hold { quarter, held } => Operation::Hold { quarter: *quarter, held: *held },
            OwnedOperation::Reconcile { dry_run } => Operation::Reconcile { dry_run: *dry_run },
            OwnedOperation::Find { event_key, from } => Operation::Find { event_key, from: *from },
            OwnedOperation::Correlated { correlation_id, skip } => {
                Operation::Correlated { correlation_id: *correlation_id, skip: *skip }
            }
            OwnedOperation::Lookup { event_id } => Operation::Lookup { event_id: *event_id },
            OwnedOperation::History { event_id, skip } => Operation::History { event_id: *event_id, skip: *skip },
            OwnedOperation::Scan { corpus, since_us, until_us, after, limit } => {
                Operation::Scan { corpus, since_us: *since_us, until_us: *until_us, after: *after, limit: *limit }
            }
        })
    }
}

impl OwnedRequest {
    /// `None` for operations that never wait.
    pub fn new(request: &Request<'_>) -> Option<OwnedRequest> {
        Some(OwnedRequest {
            token: request.token,
            stream: request.stream,
            deadline_boot_us: request.deadline_boot_us,
            principal: request.principal,
            user: request.user.to_owned(),
            idempotency_key: request.idempotency_key,
            correlation_id: request.correlation_id,
            rationale: request.rationale.to_owned(),
            at_us: request.at_us,
            at_least: request.at_least.to_vec(),
            operation: OwnedOperation::new(&request.operation)?,
        })
    }

    /// Lends it as the request that it was.
    pub fn with<T>(&self, use_it: impl FnOnce(&Request<'_>) -> T) -> T {
        self.operation.with(|operation| {
            use_it(&Request {
                token: self.token,
                stream: self.stream,
                principal: self.principal,
                user: &self.user,
                idempotency_key: self.idempotency_key,
                correlation_id: self.correlation_id,
                rationale: &self.rationale,
                at_us: self.at_us,
                deadline_boot_us: self.deadline_boot_us,
                at_least: &self.at_least,
                operation,
            })
        })
    }
}

/// A request that waits.
#[derive(Debug)]
pub struct Parked {
    /// It; shared with what decides it.
    pub request: Rc<OwnedRequest>,
    /// What it takes of the log.
    pub takes: Takes,
    /// What it counts for in the debt.
    pub debt_bytes: u64,
    /// What was said so far.
    pub facts: Vec<Fact>,
    /// Something was asked, and answered.
    pub was_told: bool,
    /// Answers that are missing.
    pub missing: usize,
    /// The event key that is reserved for it, or will be: its home shard, the question, the hash.
    pub reservation: Option<(u16, u64, u64)>,
    /// What to ask for once the key is reserved.
    pub sought: Option<Sought>,
    /// How often it was asked what rows are.
    pub rounds: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_lent_as_they_were() {
        let claim = |event_key, category, taxonomy_version, metadata| Claim {
            event_key,
            occurred_at_us: i64::from(taxonomy_version) - 2,
            owning_corpus: "customer",
            hosting_corpus: "",
            category,
            taxonomy_version,
            metadata,
        };
        let claims = [
            claim("a", "", 1, &[7, 8][..]),
            claim("", "größer", 2, &[]),
            claim("ключ", "c", 3, &[0xff; 300]),
            claim("", "", 4, &[]),
        ];
        for count in 0..=claims.len() {
            assert_eq!(OwnedClaims::new(&claims[..count]).lend(), claims[..count]);
        }
    }
}
