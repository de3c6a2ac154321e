//! The command line.

mod audit;
mod dispute;
mod reconcile;
mod registry;
mod retention;
mod rows;

pub use audit::{Audit, Config, Export, History, Subject, Tail, Verify};
pub use dispute::{Arbitrate, Dispute, Escalate, Open, Respond};
pub use reconcile::{Barrier, Incident, OnOff, Reconcile};
pub use registry::{Cap, Decommission, Freeze, Onboard, Propose, SignOff, Slots, Totals, Unfreeze};
pub use retention::{Hold, Release};
pub use rows::{Claim, Find, Lookup, Reactivate, Reference, Retract, Scan};

use crate::failure::Failure;
use crate::time::{parse_duration, parse_timestamp_us};
use claim_client::Uuid;
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
    /// Print the rows of all corpora that have one event key.
    Find(Find),
    /// Print the audit entries of a row, of an event key or of a correlation id.
    History(History),
    /// Print the rows of a corpus in the order of their ids.
    Scan(Scan),
    /// Dispute which of several rows stands for an event.
    #[command(subcommand)]
    Dispute(Dispute),
    /// Close a corpus to claims and references; its rows stay.
    Decommission(Decommission),
    /// Stop the mutations of a corpus or of the whole ledger.
    Freeze(Freeze),
    /// Let mutations go on after a freeze.
    Unfreeze(Unfreeze),
    /// Limit the claims a minute of a corpus.
    Cap(Cap),
    /// Propose, sign and list slot increases.
    #[command(subcommand)]
    Slots(Slots),
    /// Print the control totals by corpus and quarter.
    Totals(Totals),
    /// Say that an incident is on, or over.
    Incident(Incident),
    /// Make the rows claimed around the present pending again.
    Barrier(Barrier),
    /// Keep a quarter whatever its age: neither it nor later ones are dropped meanwhile.
    Hold(Hold),
    /// End a hold.
    Release(Release),
    /// Print what retention would drop next and what it waits for, what is held, and what is dropped already. Changes nothing.
    #[command(after_help = "Example:\n  claimctl retention --json")]
    Retention,
    /// Run a pass of reconciliation and print what it did.
    Reconcile(Reconcile),
    /// Print how long claims take until other corpora see them.
    #[command(after_help = "Example:\n  claimctl propagation")]
    Propagation,
    /// Print the entries of a shard's log as they become durable.
    Tail(Tail),
    /// Export and check the chains of the log.
    #[command(subcommand)]
    Audit(Audit),
    /// The configuration that is in effect.
    #[command(subcommand)]
    Config(Config),
    /// Play a file of events into a replay ledger.
    Import(Import),
    /// Print the state of the daemon.
    #[command(after_help = "Example:\n  claimctl status\n  claimctl status --stages    where the time goes")]
    Status {
        /// Where the time goes, too: from the read of a socket to the write of the reply.
        #[arg(long)]
        stages: bool,
    },
}

impl Verb {
    /// What the parser alone cannot tell.
    pub fn check(&self) -> Result<(), Failure> {
        match self {
            Verb::Import(Import { file, .. }) if !file.is_file() => {
                Err(Failure::Usage(format!("{} is no file; name an ndjson file, gzipped or not", file.display())))
            }
            Verb::Audit(Audit::Verify(Verify { against })) if !against.is_file() => {
                let against = against.display();
                Err(Failure::Usage(format!("{against} is no file; name one that `claimctl audit head` wrote")))
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

/// Says why, for verbs that cannot do without.
#[derive(Debug, Arguments)]
pub struct Reason {
    /// One line saying why, at most 512 bytes.
    #[arg(long, value_name = "TEXT", visible_alias = "rationale")]
    pub reason: String,
}

/// One line saying why, for verbs that can do without.
#[derive(Debug, Arguments)]
pub struct Rationale {
    /// One line saying why, at most 512 bytes.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub rationale: String,
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
#[command(after_help = "\
Example:
  claimd format --data ./replay --clock replay && claimd start --data ./replay &
  claimctl --socket ./replay/claimd.sock import data/sixteen-corpora.ndjson.gz")]
pub struct Import {
    /// ndjson, gzipped or not, in time order.
    pub file: PathBuf,
    /// Read and check the file and count what would be sent, without a daemon.
    #[arg(long)]
    pub dry_run: bool,
}
