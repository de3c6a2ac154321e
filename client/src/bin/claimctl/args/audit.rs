//! Arguments of the verbs about the log.

use crate::time::parse_timestamp_us;
use claim_client::Uuid;
use clap::{Args as Arguments, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl history 0198c9a5-6d40-7000-8400-3a1f5c2d7e90 --json
  claimctl history --event-key invoice-4711 --since 2026-01-01T00:00:00Z")]
pub struct History {
    #[command(flatten)]
    pub subject: Subject,
    /// Only the entries of the row itself, without those of its aliases, its canonical row and its disputes' other rows.
    #[arg(long, conflicts_with = "correlation_id")]
    pub alone: bool,
    /// Only entries at or after this time, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_us)]
    pub since: Option<i64>,
    /// Only entries before this time, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_us)]
    pub until: Option<i64>,
}

/// Whose history it is.
#[derive(Debug, Arguments)]
#[group(required = true, multiple = false)]
pub struct Subject {
    /// The row.
    #[arg(value_name = "ID")]
    pub event_id: Option<Uuid>,
    /// All entries of one incident.
    #[arg(long, value_name = "UUID")]
    pub correlation_id: Option<Uuid>,
    /// All rows of one event key, of whichever corpus.
    #[arg(long, value_name = "KEY")]
    pub event_key: Option<String>,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl tail --shard 0 --follow --json")]
pub struct Tail {
    /// The shard.
    #[arg(long, default_value_t = 0)]
    pub shard: u16,
    /// The first position [default: the first of all, or with --follow the next to come].
    #[arg(long, value_name = "POSITION")]
    pub from: Option<u64>,
    /// Wait for more at the end.
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  claimctl audit head >> heads.ndjson")]
pub enum Audit {
    /// Print the head of each shard's chain, one JSON object a line, to be kept elsewhere.
    #[command(after_help = "Example:\n  claimctl audit head >> heads.ndjson")]
    Head,
    /// Check that the chains still pass through the heads that they once had.
    Verify(Verify),
    /// Print all entries of all shards, one JSON object a line.
    Export(Export),
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Exit status 1 says that entries were changed, dropped or reordered; where is said, too.

Example:
  claimctl audit verify --against heads.ndjson --deadline 10m")]
pub struct Verify {
    /// What `claimctl audit head` wrote, once or several times.
    #[arg(long, value_name = "FILE")]
    pub against: PathBuf,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl audit export > entries.ndjson")]
pub struct Export {
    /// Only this shard [default: all].
    #[arg(long)]
    pub shard: Option<u16>,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  claimctl config show")]
pub enum Config {
    /// Print it, and who set it when.
    #[command(after_help = "Example:\n  claimctl config show")]
    Show,
}
