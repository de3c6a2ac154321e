//! Runs the power-loss harness, which is a program of its own: `cargo run -p power-loss -- --help`.

use std::ffi::OsString;
use std::process::Command;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask power-loss --deep\n  cargo xtask power-loss --deep --images 5000 --kills 50 --kernel 6.12 --json\n  cargo xtask power-loss --deep --help"
)]
pub struct Arguments {
    /// Real kernels with a real NVMe driver, in QEMU: some minutes, on Debian, and more the first time
    #[arg(long, required = true)]
    deep: bool,
    /// What `power-loss deep` understands
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds the harness and lets it do the work; its tables and its exit status are ours.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace()).args(["run", "--quiet", "--package", "power-loss", "--bin", "power-loss"]);
    command.arg("--");
    if arguments.deep {
        command.arg("deep");
    }
    let status = command.args(&arguments.rest).status().map_err(|e| format!("cargo can't be run: {e}"))?;
    if status.success() { Ok(()) } else { Err("the harness has not passed".to_owned()) }
}
