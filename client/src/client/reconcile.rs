//! Reconciliation, and what bears on it.

use super::{Client, Target};
use crate::options::RequestOptions;
use crate::pending::Pending;
use claim_protocol::{Operation, Pair, ReconcileReport, ReplyResult};

impl Client {
    /// Says that an incident is on, or over: it widens the windows of the rows claimed meanwhile. Answers with the time, in
    /// microseconds.
    pub fn incident(&self, active: bool, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::IncidentSet { at_us, .. } => Some(at_us),
            _ => None,
        };
        self.call(Target::Main, Operation::Incident { active }, options, convert)
    }

    /// Makes the rows claimed around the present pending again. Answers with the time, in microseconds.
    pub fn barrier(&self, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::BarrierRaised { at_us } => Some(at_us),
            _ => None,
        };
        self.call(Target::Main, Operation::Barrier, options, convert)
    }

    /// Runs a pass of reconciliation; a dry run says what one would do.
    pub fn reconcile(&self, dry_run: bool, options: &RequestOptions) -> Pending<ReconcileReport> {
        let convert = |result| match result {
            ReplyResult::Reconciled(report) => Some(*report),
            _ => None,
        };
        self.call(Target::Main, Operation::Reconcile { dry_run }, options, convert)
    }

    /// How long claims take until other corpora see them.
    pub fn propagation(&self, options: &RequestOptions) -> Pending<Vec<Pair>> {
        let convert = |result| match result {
            ReplyResult::PropagationFound(pairs) => Some(pairs),
            _ => None,
        };
        self.call(Target::Main, Operation::Propagation, options, convert)
    }
}
