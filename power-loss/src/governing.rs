//! What concerns the whole ledger, as the load asks for it: disputes, reconciliation, stops, caps, slots. Each is answered before
//! the next is asked for, because what one may ask depends on what was answered.

use claim_client::{Client, ClientError, DisputeState, DisputeVerdict, RequestOptions, Role, Uuid, Verdict};
use serde::{Deserialize, Serialize};

/// An operation that shard 0 decides and every shard logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Governing {
    /// A dispute is opened.
    Dispute {
        /// By which corpus.
        corpus: String,
        /// About which rows.
        event_ids: Vec<u128>,
    },
    /// Something is said in it.
    Respond {
        /// By which corpus.
        corpus: String,
        /// In which.
        dispute: u128,
    },
    /// It is handed up.
    Escalate {
        /// Which.
        dispute: u128,
    },
    /// It is decided: its first row stands for the event, and the others refer to it.
    Arbitrate {
        /// Which.
        dispute: u128,
        /// Its rows.
        event_ids: Vec<u128>,
    },
    /// It is dismissed.
    Dismiss {
        /// Which.
        dispute: u128,
    },
    /// A pass is run.
    Reconcile,
    /// Mutations of a corpus stop.
    Freeze {
        /// Which.
        corpus: String,
    },
    /// They go on.
    Unfreeze {
        /// Which.
        corpus: String,
    },
    /// A corpus is throttled.
    Cap {
        /// Which.
        corpus: String,
        /// To how many claims a minute.
        claims_per_minute: u32,
    },
    /// More slots are proposed.
    ProposeSlots {
        /// For which corpus.
        corpus: String,
        /// How many.
        slots: u64,
    },
    /// A proposal is signed.
    SignOff {
        /// Which.
        proposal: u64,
    },
    /// An incident begins or ends.
    Incident {
        /// Whether one is on.
        active: bool,
    },
    /// A barrier is raised.
    Barrier,
    /// A corpus is closed.
    Decommission {
        /// Which.
        name: String,
    },
}

/// What the answer to one makes possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Possible {
    /// Nothing more.
    Nothing,
    /// A dispute is open.
    Dispute(u128, Vec<u128>),
    /// A proposal can be signed.
    Proposal(u64),
}

impl Governing {
    /// The audit's name of the entry that it makes.
    pub fn operation(&self) -> &'static str {
        match self {
            Governing::Dispute { .. } => "dispute",
            Governing::Respond { .. } => "respond",
            Governing::Escalate { .. } => "escalate",
            Governing::Arbitrate { .. } | Governing::Dismiss { .. } => "arbitrate",
            Governing::Reconcile => "reconcile",
            Governing::Freeze { .. } => "freeze",
            Governing::Unfreeze { .. } => "unfreeze",
            Governing::Cap { .. } => "cap",
            Governing::ProposeSlots { .. } => "slot-increase",
            Governing::SignOff { .. } => "sign-off",
            Governing::Incident { .. } => "incident",
            Governing::Barrier => "barrier",
            Governing::Decommission { .. } => "decommission",
        }
    }

    /// Whether its answer waits until every shard has it; the others are answered when shard 0 has them.
    pub fn is_everywhere(&self) -> bool {
        !matches!(self, Governing::Dispute { .. } | Governing::Respond { .. } | Governing::Escalate { .. })
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, client: &Client, key: Uuid) -> Result<Possible, ClientError> {
        let options = RequestOptions {
            idempotency_key: Some(key),
            rationale: "a cut may come".to_owned(),
            retry_overload: false,
            ..RequestOptions::default()
        };
        let uuid = Uuid::from_u128;
        match self {
            Governing::Dispute { corpus, event_ids } => {
                let ids: Vec<_> = event_ids.iter().map(|id| uuid(*id)).collect();
                let dispute = client.dispute(corpus, &ids, &options).wait()?;
                return Ok(Possible::Dispute(dispute.dispute_id.as_u128(), event_ids.clone()));
            }
            Governing::Respond { corpus, dispute } => {
                client.respond(corpus, uuid(*dispute), &options).wait()?;
            }
            Governing::Escalate { dispute } => {
                client.escalate(uuid(*dispute), &options).wait()?;
            }
            Governing::Arbitrate { dispute, event_ids } => {
                let verdict = |(n, id): (usize, &u128)| {
                    let verdict = if n == 0 { DisputeVerdict::Canonical } else { DisputeVerdict::References };
                    Verdict { event_id: uuid(*id), verdict }
                };
                let verdicts: Vec<_> = event_ids.iter().enumerate().map(verdict).collect();
                client.arbitrate(uuid(*dispute), &verdicts, &options).wait()?;
            }
            Governing::Dismiss { dispute } => {
                client.dismiss(uuid(*dispute), &options).wait()?;
            }
            Governing::Reconcile => {
                client.reconcile(false, &options).wait()?;
            }
            Governing::Freeze { corpus } => {
                client.freeze(corpus, &options).wait()?;
            }
            Governing::Unfreeze { corpus } => {
                client.unfreeze(corpus, &options).wait()?;
            }
            Governing::Cap { corpus, claims_per_minute } => {
                client.cap(corpus, *claims_per_minute, &options).wait()?;
            }
            Governing::ProposeSlots { corpus, slots } => {
                let proposal = client.propose_slots(corpus, *slots, &options).wait()?;
                return Ok(Possible::Proposal(proposal.proposal));
            }
            Governing::SignOff { proposal } => {
                client.sign_off(*proposal, Role::Platform, &options).wait()?;
            }
            Governing::Incident { active } => {
                client.incident(*active, &options).wait()?;
            }
            Governing::Barrier => {
                client.barrier(&options).wait()?;
            }
            Governing::Decommission { name } => {
                client.decommission(name, false, &options).wait()?;
            }
        }
        Ok(Possible::Nothing)
    }
}

/// Whether a dispute waits for its verdict.
pub fn waits_for_verdict(client: &Client, dispute: u128) -> bool {
    let found = client.dispute_lookup(Uuid::from_u128(dispute), &RequestOptions::default()).wait();
    found.is_ok_and(|dispute| matches!(dispute.state, DisputeState::Arbitrate | DisputeState::Escalate))
}
