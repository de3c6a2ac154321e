//! Disputes. They concern several shards, so they go through the main socket.

use super::{Client, Target};
use crate::options::RequestOptions;
use crate::pending::Pending;
use crate::scan::DisputePage;
use claim_protocol::{DisputeInfo, Operation, ReplyResult, Verdict};
use uuid::Uuid;

impl Client {
    /// Opens a dispute on behalf of `corpus` about 2 to 8 rows of at least two corpora. The options' rationale says why.
    pub fn dispute(&self, corpus: &str, event_ids: &[Uuid], options: &RequestOptions) -> Pending<DisputeInfo> {
        let convert = |result| match result {
            ReplyResult::Disputed(dispute) => Some(dispute),
            _ => None,
        };
        let operation = Operation::Dispute { corpus, event_ids: event_ids.to_vec() };
        self.call(Target::Main, operation, options, convert)
    }

    /// Adds what one side of a dispute has to say: the options' rationale.
    pub fn respond(&self, corpus: &str, dispute_id: Uuid, options: &RequestOptions) -> Pending<DisputeInfo> {
        let convert = |result| match result {
            ReplyResult::Disputed(dispute) => Some(dispute),
            _ => None,
        };
        self.call(Target::Main, Operation::Respond { corpus, dispute_id }, options, convert)
    }

    /// Decides a dispute: one verdict for each of its ids, exactly one of them canonical. The options' rationale says why.
    pub fn arbitrate(&self, dispute_id: Uuid, verdicts: &[Verdict], options: &RequestOptions) -> Pending<DisputeInfo> {
        let convert = |result| match result {
            ReplyResult::Disputed(dispute) => Some(dispute),
            _ => None,
        };
        let operation = Operation::Arbitrate { dispute_id, dismissed: false, verdicts: verdicts.to_vec() };
        self.call(Target::Main, operation, options, convert)
    }

    /// Decides that the rows of a dispute are events of their own. The options' rationale says why.
    pub fn dismiss(&self, dispute_id: Uuid, options: &RequestOptions) -> Pending<DisputeInfo> {
        let convert = |result| match result {
            ReplyResult::Disputed(dispute) => Some(dispute),
            _ => None,
        };
        let operation = Operation::Arbitrate { dispute_id, dismissed: true, verdicts: Vec::new() };
        self.call(Target::Main, operation, options, convert)
    }

    /// Passes a dispute on to the leadership. The options' rationale says why.
    pub fn escalate(&self, dispute_id: Uuid, options: &RequestOptions) -> Pending<DisputeInfo> {
        let convert = |result| match result {
            ReplyResult::Disputed(dispute) => Some(dispute),
            _ => None,
        };
        self.call(Target::Main, Operation::Escalate { dispute_id }, options, convert)
    }

    /// One dispute.
    pub fn dispute_lookup(&self, dispute_id: Uuid, options: &RequestOptions) -> Pending<DisputeInfo> {
        let convert = |result| match result {
            ReplyResult::Disputed(dispute) => Some(dispute),
            _ => None,
        };
        self.call(Target::Main, Operation::DisputeLookup { dispute_id }, options, convert)
    }

    /// A page of the disputes that concern a corpus, or of all that may be read where `corpus` is empty: the newest first,
    /// opened before the one that the page before names as its `next`.
    pub fn disputes_page(
        &self,
        corpus: &str,
        include_closed: bool,
        before: Option<Uuid>,
        options: &RequestOptions,
    ) -> Pending<DisputePage> {
        let convert = |result| match result {
            ReplyResult::DisputeList { disputes, next } => Some(DisputePage { disputes, next }),
            _ => None,
        };
        self.call(Target::Main, Operation::Disputes { corpus, include_closed, before }, options, convert)
    }
}
