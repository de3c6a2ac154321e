//! `claim-bench`: what the device can do, and what a running daemon makes of it.
//!
//! `floor` measures durable writes on the bare file system, or reads of a file, `run` loads a daemon over its socket with
//! claims or reads, in a closed loop or at a rate, and `ladder` does both around a daemon of its own, from one claim
//! outstanding to many. `peers` has other systems do the same job beside claimd. Recorded runs are what `report` draws and
//! `compare` sets side by side. Nothing here reaches into the daemon: what is measured is what a client gets.

mod affinity;
mod beside;
mod claims;
mod compare;
mod connection;
mod daemon_process;
mod device_reads;
mod environment;
mod error;
#[cfg(test)]
mod fake_daemon;
mod floor;
mod interrupt;
mod keys;
mod ladder;
mod latency;
mod load;
mod load_arguments;
mod lookups;
mod outcome;
mod own_daemon;
mod pace;
mod peers;
mod random;
mod read_floor;
mod reads;
mod record;
mod report;
mod run;
mod sample;
mod scans;
mod scratch_directory;
mod series;
mod server_process;
mod session;
mod steady;
mod subject;
mod svg;
mod sweep;
mod target;
mod verdict;
mod work;
mod workload;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measures a device's durable writes and reads, and a claimd daemon under load.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const FLOOR_EXAMPLES: &str = "\
Examples:
  Durable writes:
    claim-bench floor --dir ./claimd-data --seconds 2
  Reads of a shard's file, as many as 1 and 64 in flight give, and random ones at a rate:
    claim-bench floor --file ./claimd-data/shard-0000.ledger --in-flight 1,64
    claim-bench floor --file ./claimd-data/shard-0000.ledger --in-flight 256 --rate 2000";

const RUN_EXAMPLES: &str = "\
Examples:
  Claims:
    claim-bench run --outstanding 1,64,1024
  Lookups that nobody has asked for lately, at a rate, beside the device's random reads at that rate:
    claim-bench run --operation lookups --rate 2000 --floor ./claimd-data/shard-0000.ledger
  Lookups of few rows again and again, as many as 256 outstanding give:
    claim-bench run --operation lookups --ids 10000 --outstanding 256
  Whole corpora, page after page, beside the device's sequential reads:
    claim-bench run --operation scans --outstanding 4 --floor ./claimd-data/shard-0000.ledger
  What reads do to claims: claims alone and beside lookups, in turn:
    claim-bench run --operation lookups --beside-claims 64 --rounds 5
  Sixteen corpora that claim, refer to each other and look up:
    claim-bench run --workload mixed --outstanding 256
  A rate that has to be held, kept with its histograms and the machine's facts:
    claim-bench run --rate 20000 --outstanding 4096 --record before";

const SWEEP_EXAMPLES: &str = "\
Examples:
  Claims, from 1,000 a second on:
    claim-bench sweep --seconds 5 --record sweep
  Lookups, until the 99th percentile is 3 times that of the first row:
    claim-bench sweep --operation lookups --start 500 --p99-times 3";

const LATENCY_EXAMPLES: &str = "\
Examples:
  One claim at a time, five rounds:
    claim-bench latency --claimd target/release/claimd --dir /srv --rounds 5
  One on each of 64 connections, and how many the echo has, and the device alone leaves time for:
    claim-bench latency --claimd target/release/claimd --dir /srv --connections 64";

const REPORT_EXAMPLES: &str = "\
Examples:
  A climb beside the floor:
    claim-bench ladder --claimd target/release/claimd --dir /srv --record climb
    claim-bench report climb --output climb.html
  Two runs on one page, each under its directory's name:
    claim-bench report before after --output both.html";

const PEERS_EXAMPLES: &str = "\
PostgreSQL comes from its packages (`apt-get install postgresql`); this command makes a cluster, starts and stops it, and \
removes it. Only one system runs at a time. claimd has one core for itself; PostgreSQL may use every core. Both write a row and \
its audit for each claim, and answer when they are durable.

Examples:
  Both on the device of /srv:
    claim-bench peers --claimd target/release/claimd --dir /srv
  PostgreSQL on one core too, and with group commits that wait 50 µs for others:
    claim-bench peers --claimd target/release/claimd --dir /srv --postgres-one-core --postgres-set commit_delay=50
  For a program, in a minute:
    claim-bench peers --claimd target/release/claimd --seconds 2 --rounds 1 --json";

#[derive(Debug, Subcommand)]
enum Command {
    /// The device's own durable writes or reads, below any daemon.
    #[command(after_help = FLOOR_EXAMPLES)]
    Floor(floor::FloorArguments),
    /// Claims, lookups or scans against a running daemon, in a closed loop or at a rate.
    #[command(after_help = RUN_EXAMPLES)]
    Run(run::RunArguments),
    /// Two recorded runs, row by row: what of rates and latencies changed.
    #[command(after_help = "Example: claim-bench compare before/results.json after/results.json")]
    Compare(compare::CompareArguments),
    /// One HTML page of recorded runs: latencies by percentile, over time and against the rate, throughput, and the machine.
    #[command(after_help = REPORT_EXAMPLES)]
    Report(report::ReportArguments),
    /// Raises the rate until a row does not hold, and narrows down the highest rate that does: the knee.
    #[command(after_help = SWEEP_EXAMPLES)]
    Sweep(sweep::SweepArguments),
    /// Formats a scratch ledger, starts a daemon on it, and climbs from 1 to 1,024 requests outstanding beside the floor.
    #[command(after_help = "Example: claim-bench ladder --claimd target/release/claimd --dir /srv --seconds 10")]
    Ladder(ladder::LadderArguments),
    /// One claim at a time on each connection, beside the bare durable write and an echo over the same sockets, in rounds.
    #[command(after_help = LATENCY_EXAMPLES)]
    Latency(latency::LatencyArguments),
    /// A rate of claims over minutes, in turn with the bare device at the rate of the daemon's writes.
    #[command(after_help = "Example: claim-bench steady --claimd target/release/claimd --dir /srv --rate 50000")]
    Steady(steady::SteadyArguments),
    /// The same durable claims by PostgreSQL and by claimd, in turn with the floor, from one connection to many and in batches.
    #[command(after_help = PEERS_EXAMPLES)]
    Peers(peers::PeersArguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Floor(arguments) => floor::floor(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Compare(arguments) => compare::compare(&arguments),
        Command::Report(arguments) => report::report(&arguments),
        Command::Sweep(arguments) => sweep::sweep(&arguments),
        Command::Ladder(arguments) => ladder::ladder(&arguments),
        Command::Latency(arguments) => latency::latency(&arguments),
        Command::Steady(arguments) => steady::steady(&arguments),
        Command::Peers(arguments) => peers::peers(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("claim-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
