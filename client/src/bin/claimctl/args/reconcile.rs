//! Arguments of the verbs about reconciliation.

use super::{Mutation, Rationale};
use clap::{Args as Arguments, ValueEnum};

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl incident on --rationale 'the network is split'")]
pub struct Incident {
    /// Whether it is on.
    pub state: OnOff,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Rows claimed from now on have the long window.
    On,
    /// It is over.
    Off,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl barrier --rationale 'restored from a copy'")]
pub struct Barrier {
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl reconcile --dry-run --deadline 10m")]
pub struct Reconcile {
    /// Say what a pass would do, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}
