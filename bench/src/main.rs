//! `claim-bench`: what the device can do, and what a running daemon makes of it.
//!
//! `floor` measures durable writes on the bare file system, `run` loads a daemon over its socket in a closed loop, and
//! `ladder` does both around a daemon of its own, from one request outstanding to many. Nothing here reaches into the
//! daemon: what is measured is what a client gets.

mod affinity;
mod closed_loop;
mod connection;
mod daemon_process;
mod error;
#[cfg(test)]
mod fake_daemon;
mod floor;
mod keys;
mod ladder;
mod outcome;
mod run;
mod session;
mod workload;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measures a device's durable writes and a claimd daemon under load.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The device's own durable writes, below any daemon.
    #[command(after_help = "Example: claim-bench floor --dir ./claimd-data --seconds 2")]
    Floor(floor::FloorArguments),
    /// A closed loop of claims against a running daemon.
    #[command(after_help = "Example: claim-bench run --socket ./claimd-data/claimd.sock --outstanding 1,64,1024")]
    Run(run::RunArguments),
    /// Formats a scratch ledger, starts a daemon on it, and climbs from 1 to 1,024 requests outstanding beside the floor.
    #[command(after_help = "Example: claim-bench ladder --claimd target/release/claimd --dir /srv --seconds 10")]
    Ladder(ladder::LadderArguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Floor(arguments) => floor::floor(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Ladder(arguments) => ladder::ladder(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("claim-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
