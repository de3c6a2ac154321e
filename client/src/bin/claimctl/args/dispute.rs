//! Arguments of the verbs about disputes.

use super::Mutation;
use claim_client::Uuid;
use clap::{Args as Arguments, Subcommand};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  claimctl dispute open --corpus billing --rationale 'one invoice, two rows' \\
      0198c9a5-6d40-7000-8400-3a1f5c2d7e90 0198c9a5-7111-7000-8800-6b2f00c1d2e3")]
pub enum Dispute {
    /// Open a dispute about 2 to 8 rows of at least two corpora.
    Open(Open),
    /// Add what one side has to say.
    Respond(Respond),
    /// Decide which row stands for the event, and what becomes of the others.
    Arbitrate(Arbitrate),
    /// Pass a dispute on to the leadership.
    Escalate(Escalate),
    /// Print one dispute.
    Show(DisputeId),
    /// List disputes.
    List(DisputeList),
}

/// The argument of a dispute.
#[derive(Debug, Arguments)]
pub struct Argument {
    /// Why, at most 4,096 bytes.
    #[arg(long, value_name = "TEXT", visible_alias = "reason")]
    pub rationale: String,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl dispute open --corpus billing --rationale 'one invoice, two rows' \\
      0198c9a5-6d40-7000-8400-3a1f5c2d7e90 0198c9a5-7111-7000-8800-6b2f00c1d2e3")]
pub struct Open {
    /// The corpus that opens it.
    #[arg(long)]
    pub corpus: String,
    /// The rows.
    #[arg(value_name = "ID", required = true, num_args = 2..=8)]
    pub event_ids: Vec<Uuid>,
    #[command(flatten)]
    pub argument: Argument,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl dispute respond 0198c9b1-0000-7000-8000-00000000a001 \\
      --corpus audit --rationale 'ours came first'")]
pub struct Respond {
    /// The dispute.
    #[arg(value_name = "DISPUTE")]
    pub dispute_id: Uuid,
    /// The corpus that responds.
    #[arg(long)]
    pub corpus: String,
    #[command(flatten)]
    pub argument: Argument,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl dispute arbitrate 0198c9b1-0000-7000-8000-00000000a001 \\
      --canonical 0198c9a5-6d40-7000-8400-3a1f5c2d7e90 \\
      --references 0198c9a5-7111-7000-8800-6b2f00c1d2e3 --rationale 'billing saw it first'
  claimctl dispute arbitrate 0198c9b1-0000-7000-8000-00000000a001 \\
      --dismissed --rationale 'two events'")]
pub struct Arbitrate {
    /// The dispute.
    #[arg(value_name = "DISPUTE")]
    pub dispute_id: Uuid,
    /// The row that stands for the event.
    #[arg(long, value_name = "ID", required_unless_present = "dismissed")]
    pub canonical: Option<Uuid>,
    /// A row that becomes an alias of it; repeat for several.
    #[arg(long, value_name = "ID")]
    pub references: Vec<Uuid>,
    /// A row that is withdrawn for good; repeat for several.
    #[arg(long, value_name = "ID")]
    pub tombstone: Vec<Uuid>,
    /// Each row stands for an event of its own.
    #[arg(long, conflicts_with_all = ["canonical", "references", "tombstone"])]
    pub dismissed: bool,
    #[command(flatten)]
    pub argument: Argument,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl dispute escalate 0198c9b1-0000-7000-8000-00000000a001 \\
      --rationale 'concerns a contract'")]
pub struct Escalate {
    /// The dispute.
    #[arg(value_name = "DISPUTE")]
    pub dispute_id: Uuid,
    #[command(flatten)]
    pub argument: Argument,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl dispute show 0198c9b1-0000-7000-8000-00000000a001")]
pub struct DisputeId {
    /// The dispute.
    #[arg(value_name = "DISPUTE")]
    pub dispute_id: Uuid,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl dispute list --corpus billing --closed")]
pub struct DisputeList {
    /// Only those that concern this corpus [default: all that may be read].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub corpus: String,
    /// Those that are over, too.
    #[arg(long)]
    pub closed: bool,
}
