//! Requests that wait for what other shards say. They own what they were made of.

use crate::command::{Claim, Fact, Operation, Request, Token};
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::peer::Sought;

/// A request that owns its parts; only those that may need to wait can be made into one.
#[derive(Debug, Clone)]
pub struct OwnedRequest {
    /// See [`Request`].
    pub token: Token,
    /// CLOCK_BOOTTIME in microseconds after which nobody waits.
    pub deadline_boot_us: Option<i64>,
    principal: Principal,
    user: String,
    idempotency_key: u128,
    correlation_id: u128,
    rationale: String,
    at_us: Option<i64>,
    operation: OwnedOperation,
}

#[derive(Debug, Clone)]
enum OwnedOperation {
    Claim { corpus: String, claim: Box<OwnedClaim>, unless_within_us: i64 },
    Reference { corpus: String, items: Vec<(u16, EventId)> },
    Dispute { corpus: String, event_ids: Vec<EventId> },
    Reconcile { dry_run: bool },
}

#[derive(Debug, Clone)]
struct OwnedClaim {
    event_key: String,
    occurred_at_us: i64,
    owning_corpus: String,
    hosting_corpus: String,
    category: String,
    taxonomy_version: u32,
    metadata: Vec<u8>,
}

impl OwnedRequest {
    /// `None` for operations that never wait.
    pub fn new(request: &Request<'_>) -> Option<OwnedRequest> {
        let operation = match request.operation {
            Operation::Claim { corpus, items: [item], unless_within_us: Some(unless_within_us) } => {
                let claim = Box::new(OwnedClaim {
                    event_key: item.event_key.to_owned(),
                    occurred_at_us: item.occurred_at_us,
                    owning_corpus: item.owning_corpus.to_owned(),
                    hosting_corpus: item.hosting_corpus.to_owned(),
                    category: item.category.to_owned(),
                    taxonomy_version: item.taxonomy_version,
                    metadata: item.metadata.to_vec(),
                });
                OwnedOperation::Claim { corpus: corpus.to_owned(), claim, unless_within_us }
            }
            Operation::Reference { corpus, items } => {
                OwnedOperation::Reference { corpus: corpus.to_owned(), items: items.to_vec() }
            }
            Operation::Dispute { corpus, event_ids } => {
                OwnedOperation::Dispute { corpus: corpus.to_owned(), event_ids: event_ids.to_vec() }
            }
            Operation::Reconcile { dry_run } => OwnedOperation::Reconcile { dry_run },
            _ => return None,
        };
        Some(OwnedRequest {
            token: request.token,
            deadline_boot_us: request.deadline_boot_us,
            principal: request.principal,
            user: request.user.to_owned(),
            idempotency_key: request.idempotency_key,
            correlation_id: request.correlation_id,
            rationale: request.rationale.to_owned(),
            at_us: request.at_us,
            operation,
        })
    }

    /// Lends it as the request that it was. What it asked to be answered from, it was.
    pub fn with<T>(&self, use_it: impl FnOnce(&Request<'_>) -> T) -> T {
        let items;
        let operation = match &self.operation {
            OwnedOperation::Claim { corpus, claim, unless_within_us } => {
                items = [Claim {
                    event_key: &claim.event_key,
                    occurred_at_us: claim.occurred_at_us,
                    owning_corpus: &claim.owning_corpus,
                    hosting_corpus: &claim.hosting_corpus,
                    category: &claim.category,
                    taxonomy_version: claim.taxonomy_version,
                    metadata: &claim.metadata,
                }];
                Operation::Claim { corpus, items: &items, unless_within_us: Some(*unless_within_us) }
            }
            OwnedOperation::Reference { corpus, items } => Operation::Reference { corpus, items },
            OwnedOperation::Dispute { corpus, event_ids } => Operation::Dispute { corpus, event_ids },
            OwnedOperation::Reconcile { dry_run } => Operation::Reconcile { dry_run: *dry_run },
        };
        use_it(&Request {
            token: self.token,
            principal: self.principal,
            user: &self.user,
            idempotency_key: self.idempotency_key,
            correlation_id: self.correlation_id,
            rationale: &self.rationale,
            at_us: self.at_us,
            deadline_boot_us: self.deadline_boot_us,
            at_least: &[],
            operation,
        })
    }
}

/// A request that waits.
#[derive(Debug)]
pub struct Parked {
    /// It.
    pub request: OwnedRequest,
    /// What it counts for in the debt.
    pub debt_bytes: u64,
    /// What was said so far.
    pub facts: Vec<Fact>,
    /// Answers that are missing.
    pub missing: usize,
    /// The event key that is reserved for it, or will be: its home shard, the question, the hash.
    pub reservation: Option<(u16, u64, u64)>,
    /// What to ask for once the key is reserved.
    pub sought: Option<Sought>,
    /// How often it was asked what rows are.
    pub rounds: u32,
}
