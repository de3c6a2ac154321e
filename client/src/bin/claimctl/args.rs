//! The command line.

use crate::failure::Failure;
use crate::time::{parse_duration, parse_quarter, parse_timestamp_us};
use claim_client::{ReasonCode, Uuid};
use clap::{Args as Arguments, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Heading of the options that every verb takes.
const COMMON: &str = "Common options";

/// The claimd ledger from a shell.
#[derive(Debug, Parser)]
#[command(name = "claimctl", version, max_term_width = 100)]
#[command(after_help = "\
Exit status: 0 done, 1 refused and not applied, 2 wrong usage, 3 unknown outcome, 4 cannot connect.

Example:
  claimctl onboard billing
  claimctl claim --corpus billing --event-key invoice-4711 --category dunning")]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, global = true, help_heading = COMMON, env = "CLAIMD_SOCKET", default_value = "./claimd-data/claimd.sock")]
    pub socket: PathBuf,
    /// Print JSON, one object per line.
    #[arg(long, global = true, help_heading = COMMON)]
    pub json: bool,
    /// How long the request may take, retries included: 500ms, 30s, 2m.
    #[arg(long, global = true, help_heading = COMMON, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub deadline: Duration,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Register a corpus.
    Onboard(Onboard),
    /// List the corpora.
    #[command(after_help = "Example:\n  claimctl corpora --json")]
    Corpora,
    /// Register one event and print its id.
    Claim(Claim),
    /// Record that a corpus refers to another corpus's row.
    Reference(Reference),
    /// Take a registered row back, and print it as it is then.
    Retract(Retract),
    /// Bring a retracted row back, and print it as it is then.
    Reactivate(Reactivate),
    /// Accept the daemon's present clock after CLOCK_SUSPECT.
    ConfirmClock(ConfirmClock),
    /// Print one row.
    Lookup(Lookup),
    /// Print the audit entries of one row.
    History(History),
    /// Print the rows of a corpus in the order of their ids.
    Scan(Scan),
    /// Play a file of events into a replay ledger.
    Import(Import),
    /// Print the state of the daemon.
    #[command(after_help = "Example:\n  claimctl status")]
    Status,
}

impl Verb {
    /// What the parser alone cannot tell.
    pub fn check(&self) -> Result<(), Failure> {
        match self {
            Verb::Import(Import { file }) if !file.is_file() => {
                Err(Failure::Usage(format!("{} is no file; name an ndjson file, gzipped or not", file.display())))
            }
            _ => Ok(()),
        }
    }
}

/// What every verb takes that changes the ledger.
#[derive(Debug, Arguments)]
pub struct Mutation {
    /// The request's own time, RFC 3339; replay ledgers require it.
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_us)]
    pub at: Option<i64>,
    /// The request's key, a UUIDv7; give that of a request whose outcome is unknown to repeat it safely.
    #[arg(long, value_name = "UUID")]
    pub idempotency_key: Option<Uuid>,
    /// Ties the entries of one incident together.
    #[arg(long, value_name = "UUID")]
    pub correlation_id: Option<Uuid>,
}

/// One line saying why, for verbs that can do without.
#[derive(Debug, Arguments)]
pub struct Rationale {
    /// One line saying why, at most 512 bytes.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub rationale: String,
}

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
#[command(after_help = "Example:\n  claimctl confirm-clock --rationale 'time server mended, clock checked by hand'")]
pub struct ConfirmClock {
    #[command(flatten)]
    pub rationale: Rationale,
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
#[command(after_help = "Example:\n  claimctl history 0198c9a5-6d40-7000-8400-3a1f5c2d7e90 --json")]
pub struct History {
    /// The row.
    #[arg(value_name = "ID")]
    pub event_id: Uuid,
}

#[derive(Debug, Arguments)]
#[command(after_help = "Example:\n  claimctl scan --corpus billing --quarter 2026-Q1 --limit 20")]
pub struct Scan {
    /// The corpus.
    #[arg(long)]
    pub corpus: String,
    /// Only rows claimed in this quarter (UTC).
    #[arg(long, value_parser = parse_quarter)]
    pub quarter: Option<(i64, i64)>,
    /// At most this many rows [default: all].
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<u64>,
}

#[derive(Debug, Arguments)]
#[command(after_help = "\
Example:
  claimd format --data ./replay --clock replay && claimd start --data ./replay &
  claimctl --socket ./replay/claimd.sock import data/sixteen-corpora.ndjson.gz")]
pub struct Import {
    /// ndjson, gzipped or not, in time order.
    pub file: PathBuf,
}
