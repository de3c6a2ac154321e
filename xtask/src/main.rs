//! Chores of this project, written in Rust so that they run wherever the project builds: `cargo xtask --help`.
//!
//! - [`power_loss`]: cuts the power under claimd.
//! - [`schema`]: regenerates the wire format's code, or checks that it is what the schema says.
//! - [`stall`]: provokes glommio's endless sleep and shows that the stall guard ends it.

mod power_loss;
mod schema;
mod stall;

use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this project")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Cut the power under claimd, and look whether anything acknowledged is lost
    PowerLoss(power_loss::Arguments),
    /// Generate protocol/src/generated from protocol/schema/claimd.fbs
    Schema(schema::Arguments),
    /// Show how an executor sleeps over its work, and that the stall guard wakes it
    Stall(stall::Arguments),
    /// One executor that always has something to do; a part of `stall`
    #[command(hide = true)]
    StallRun(stall::RunArguments),
    /// A loop that keeps a core busy; a part of `stall`
    #[command(hide = true)]
    StallBurn(stall::BurnArguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::PowerLoss(arguments) => power_loss::run(&arguments),
        Chore::Schema(arguments) => schema::run(&arguments),
        Chore::Stall(arguments) => stall::run(&arguments),
        Chore::StallRun(arguments) => stall::run_executor(&arguments),
        Chore::StallBurn(arguments) => stall::burn(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("xtask: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// The top folder of the workspace.
fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("this crate is a folder of the workspace").to_owned()
}
