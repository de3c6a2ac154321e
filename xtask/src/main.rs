//! Chores of this project, written in Rust so that they run wherever the project builds: `cargo xtask --help`.
//!
//! - [`fuzz_inputs`]: makes inputs for the fuzz targets that are the same each time.
//! - [`power_loss`]: cuts the power under claimd.
//! - [`schema`]: regenerates the wire format's code, or checks that it is what the schema says.

mod fuzz_inputs;
mod power_loss;
mod schema;

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
    /// Make inputs for a fuzz target from its seeds, the same each time
    FuzzInputs(fuzz_inputs::Arguments),
    /// Cut the power under claimd, and look whether anything acknowledged is lost
    PowerLoss(power_loss::Arguments),
    /// Generate protocol/src/generated from protocol/schema/claimd.fbs
    Schema(schema::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::FuzzInputs(arguments) => fuzz_inputs::run(&arguments),
        Chore::PowerLoss(arguments) => power_loss::run(&arguments),
        Chore::Schema(arguments) => schema::run(&arguments),
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
