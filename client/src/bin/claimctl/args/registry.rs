//! Arguments of the verbs about corpora and their slots.

use super::{Mutation, Rationale, Reason};
use claim_client::Role;
use clap::{Args as Arguments, Subcommand};

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl onboard billing --notes 'invoices and what follows from them'")]
pub struct Onboard {
    /// Lower-case letters, digits and hyphens, at most 63.
    pub name: String,
    /// What the corpus is for, at most 512 bytes.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub notes: String,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl decommission billing --dry-run
  claimctl decommission billing --rationale 'its product is gone'")]
pub struct Decommission {
    /// The corpus.
    pub name: String,
    /// Say what it would mean, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

/// A corpus, or all of them.
#[derive(Debug, Arguments)]
#[group(required = true, multiple = false)]
pub struct Scope {
    /// The corpus.
    pub corpus: Option<String>,
    /// The whole ledger.
    #[arg(long)]
    pub ledger: bool,
}

impl Scope {
    /// The corpus as the protocol names it: nothing stands for the whole ledger.
    pub fn name(&self) -> &str {
        self.corpus.as_deref().unwrap_or_default()
    }
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl freeze billing --reason 'the importer runs wild'")]
pub struct Freeze {
    #[command(flatten)]
    pub scope: Scope,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl unfreeze --ledger --rationale 'the importer is mended'")]
pub struct Unfreeze {
    #[command(flatten)]
    pub scope: Scope,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl cap billing --claims-per-minute 600")]
pub struct Cap {
    /// The corpus.
    pub corpus: String,
    /// Claims a minute, at least 1.
    #[arg(long, value_name = "CLAIMS", value_parser = clap::value_parser!(u32).range(1..), required_unless_present = "lift")]
    pub claims_per_minute: Option<u32>,
    /// Lift the cap.
    #[arg(long, conflicts_with = "claims_per_minute")]
    pub lift: bool,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

/// A slot increase takes effect at the next quarter boundary, once three different users have signed it.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  claimctl slots propose billing 80000")]
pub enum Slots {
    /// Propose how many slots a corpus gets a quarter.
    Propose(Propose),
    /// Sign a proposal.
    SignOff(SignOff),
    /// List the proposals.
    #[command(after_help = "Example:\n  claimctl slots list")]
    List,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl slots propose billing 80000 --rationale 'two more products'")]
pub struct Propose {
    /// The corpus.
    pub corpus: String,
    /// Slots a quarter.
    pub slots: u64,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl slots sign-off 3 --role manager")]
pub struct SignOff {
    /// The proposal's number.
    pub proposal: u64,
    /// The role to sign in: platform, facilitator or manager.
    #[arg(long)]
    pub role: Role,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl totals --corpus billing")]
pub struct Totals {
    /// The corpus [default: all that may be read].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub corpus: String,
}
