//! Arguments of the verbs about retention.

use super::{Mutation, Rationale, Reason};
use crate::time::parse_quarter_number;
use clap::Args as Arguments;

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl hold 2021-Q2 --rationale 'an audit of that year'")]
pub struct Hold {
    /// The quarter, like 2021-Q2. Later quarters wait for it.
    #[arg(value_parser = parse_quarter_number)]
    pub quarter: (u16, u8),
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl release 2021-Q2 --rationale 'the audit is over'")]
pub struct Release {
    /// The quarter, like 2021-Q2.
    #[arg(value_parser = parse_quarter_number)]
    pub quarter: (u16, u8),
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}
