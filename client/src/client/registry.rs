//! Corpora, their slots and what they hold.

use super::{Client, Target};
use crate::options::RequestOptions;
use crate::pending::Pending;
use claim_protocol::{CorpusInfo, Operation, Proposal, ReplyResult, Role, Total};

/// A corpus that was closed, or what that would mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Decommissioned {
    /// The corpus.
    pub corpus: CorpusInfo,
    /// False for a dry run.
    pub applied: bool,
    /// Its rows; they stay.
    pub rows: u64,
    /// Rows of other corpora that refer to rows of this one.
    pub aliases_elsewhere: u64,
}

impl Client {
    /// Closes a corpus to claims and references; a dry run says what it would mean.
    pub fn decommission(&self, name: &str, dry_run: bool, options: &RequestOptions) -> Pending<Decommissioned> {
        let convert = |result| match result {
            ReplyResult::Decommissioned { corpus, applied, rows, aliases_elsewhere } => {
                Some(Decommissioned { corpus, applied, rows, aliases_elsewhere })
            }
            _ => None,
        };
        self.call(Target::Main, Operation::Decommission { name, dry_run }, options, convert)
    }

    /// Stops the mutations of a corpus, or of the whole ledger where `corpus` is empty. The options' rationale is the reason.
    /// Answers with the time, in microseconds.
    pub fn freeze(&self, corpus: &str, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Frozen { at_us, .. } => Some(at_us),
            _ => None,
        };
        self.call(Target::Main, Operation::Freeze { corpus, frozen: true }, options, convert)
    }

    /// Keeps a quarter, 1 to 4 of a year, whatever its age; the request's rationale says why. Answers with the time, in microseconds.
    pub fn hold(&self, year: u16, quarter: u8, options: &RequestOptions) -> Pending<i64> {
        self.set_held(year, quarter, true, options)
    }

    /// Ends a hold that [`Client::hold`] began. Answers with the time, in microseconds.
    pub fn release(&self, year: u16, quarter: u8, options: &RequestOptions) -> Pending<i64> {
        self.set_held(year, quarter, false, options)
    }

    fn set_held(&self, year: u16, quarter: u8, held: bool, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Held { at_us, .. } => Some(at_us),
            _ => None,
        };
        self.call(Target::Main, Operation::Hold { year, quarter, held }, options, convert)
    }

    /// Lets mutations go on after [`Client::freeze`]. Answers with the time, in microseconds.
    pub fn unfreeze(&self, corpus: &str, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Frozen { at_us, .. } => Some(at_us),
            _ => None,
        };
        self.call(Target::Main, Operation::Freeze { corpus, frozen: false }, options, convert)
    }

    /// Limits the claims a minute of a corpus; 0 lifts the limit. Answers with the time, in microseconds.
    pub fn cap(&self, corpus: &str, claims_per_minute: u32, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Capped { at_us, .. } => Some(at_us),
            _ => None,
        };
        self.call(Target::Main, Operation::Cap { corpus, claims_per_minute }, options, convert)
    }

    /// Proposes the number of slots that a corpus gets a quarter.
    pub fn propose_slots(&self, corpus: &str, slots: u64, options: &RequestOptions) -> Pending<Proposal> {
        let convert = |result| match result {
            ReplyResult::Proposal(proposal) => Some(proposal),
            _ => None,
        };
        self.call(Target::Main, Operation::ProposeSlots { corpus, slots }, options, convert)
    }

    /// Signs a proposal in one of the signer's roles.
    pub fn sign_off(&self, proposal: u64, role: Role, options: &RequestOptions) -> Pending<Proposal> {
        let convert = |result| match result {
            ReplyResult::Proposal(proposal) => Some(proposal),
            _ => None,
        };
        self.call(Target::Main, Operation::SignOff { proposal, role }, options, convert)
    }

    /// The proposals, with whoever signed them.
    pub fn proposals(&self, options: &RequestOptions) -> Pending<Vec<Proposal>> {
        let convert = |result| match result {
            ReplyResult::ProposalList(proposals) => Some(proposals),
            _ => None,
        };
        self.call(Target::Main, Operation::Proposals, options, convert)
    }

    /// The control totals of a corpus, or of all that may be read where `corpus` is empty.
    pub fn totals(&self, corpus: &str, options: &RequestOptions) -> Pending<Vec<Total>> {
        let convert = |result| match result {
            ReplyResult::TotalsFound(totals) => Some(totals),
            _ => None,
        };
        self.call(Target::Main, Operation::Totals { corpus }, options, convert)
    }
}
