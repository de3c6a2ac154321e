//! Arguments of the verbs about rows.

use super::{Mutation, Rationale};
use crate::time::{parse_duration, parse_quarter, parse_timestamp_us};
use claim_client::{ReasonCode, Uuid};
use clap::Args as Arguments;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl claim --corpus billing --event-key invoice-4711 --category dunning \\
      --occurred-at 2026-01-31T09:30:00Z --metadata '{\"amount\": 12}'")]
pub struct Claim {
    /// The claiming corpus.
    #[arg(long)]
    pub corpus: String,
    /// Says which event it is, at most 256 bytes.
    #[arg(long)]
    pub event_key: String,
    /// What kind of event it is, at most 63 bytes.
    #[arg(long)]
    pub category: String,
    /// When it happened, RFC 3339 [default: --at, or the time of the key].
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_us)]
    pub occurred_at: Option<i64>,
    /// The corpus that owns the decision [default: the claiming corpus].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub owning_corpus: String,
    /// The corpus that hosts the artefact [default: the claiming corpus].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub hosting_corpus: String,
    /// Version of the taxonomy that the category is taken from.
    #[arg(long, default_value_t = 1)]
    pub taxonomy_version: u32,
    /// Opaque text to keep with the row, at most 64 KiB.
    #[arg(long, value_name = "TEXT", conflicts_with = "metadata_file")]
    pub metadata: Option<String>,
    /// A file of opaque bytes to keep with the row, at most 64 KiB.
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Claim nothing if some corpus registered this event key in the last 24 hours with a time of occurrence at most this
    /// far away, and print that row's id.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub unless_registered_within: Option<Duration>,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl reference --corpus audit 0198c9a5-6d40-7000-8400-3a1f5c2d7e90")]
pub struct Reference {
    /// The corpus that refers.
    #[arg(long)]
    pub corpus: String,
    /// The row that it refers to.
    #[arg(value_name = "ID")]
    pub event_id: Uuid,
    #[command(flatten)]
    pub rationale: Rationale,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl retract 0198c9a5-6d40-7000-8400-3a1f5c2d7e90 --reason 'paid in time' --reason-code false_alarm")]
pub struct Retract {
    /// The row.
    #[arg(value_name = "ID")]
    pub event_id: Uuid,
    /// One line saying why, at most 512 bytes.
    #[arg(long, value_name = "TEXT", visible_alias = "rationale")]
    pub reason: String,
    /// misclassified, wrong_corpus, false_alarm, duplicate or other.
    #[arg(long, value_name = "CODE", default_value = "other")]
    pub reason_code: ReasonCode,
    /// The corpus that claimed the row [default: what the id says].
    #[arg(long)]
    pub corpus: Option<String>,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl reactivate 0198c9a5-6d40-7000-8400-3a1f5c2d7e90 --reason 'the payment bounced'")]
pub struct Reactivate {
    /// The row.
    #[arg(value_name = "ID")]
    pub event_id: Uuid,
    /// One line saying why, at most 512 bytes.
    #[arg(long, value_name = "TEXT", visible_alias = "rationale")]
    pub reason: String,
    #[command(flatten)]
    pub mutation: Mutation,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl lookup 0198c9a5-6d40-7000-8400-3a1f5c2d7e90")]
pub struct Lookup {
    /// The row.
    #[arg(value_name = "ID")]
    pub event_id: Uuid,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimctl scan --corpus billing --quarter 2026-Q1 --limit 20
  claimctl scan --corpus billing --since 2026-01-31T09:00:00Z --until 2026-01-31T10:00:00Z --json")]
pub struct Scan {
    /// The corpus.
    #[arg(long)]
    pub corpus: String,
    /// Only rows claimed in this quarter (UTC).
    #[arg(long, value_parser = parse_quarter)]
    pub quarter: Option<(i64, i64)>,
    /// Only rows claimed at or after this time, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_us, conflicts_with = "quarter")]
    pub since: Option<i64>,
    /// Only rows claimed before this time, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_us, conflicts_with = "quarter")]
    pub until: Option<i64>,
    /// At most this many rows [default: all].
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<u64>,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl find invoice-4711")]
pub struct Find {
    /// The event key.
    pub event_key: String,
}
