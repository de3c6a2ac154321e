//! claimctl run as a shell runs it.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::missing_panics_doc, missing_docs, reason = "a test helper")]

use crate::fake::Fake;
use claim_client::ClockMode;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

pub const AT: &str = "2026-01-31T09:30:00Z";
pub const AT_MICROS: &str = "2026-01-31T09:30:00.000000Z";
pub const KEY: &str = "019c1348-c5c0-7000-8000-000000000001";

pub fn claimctl(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claimctl"));
    command.env("CLAIMD_SOCKET", socket).env_remove("COLUMNS");
    command
}

/// Exit status, standard output, standard error.
pub fn run(socket: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = claimctl(socket).args(arguments).output().expect("claimctl runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("an exit status"), text(stdout), text(stderr))
}

/// The objects that a verb prints with `--json`.
pub fn objects(socket: &Path, arguments: &[&str]) -> Vec<Value> {
    let (status, stdout, stderr) = run(socket, &[arguments, &["--json"]].concat());
    assert_eq!((status, stderr.as_str()), (0, ""), "{arguments:?}");
    stdout.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect()
}

pub fn object(socket: &Path, arguments: &[&str]) -> Value {
    let mut objects = objects(socket, arguments);
    assert_eq!(objects.len(), 1, "{objects:?}");
    objects.remove(0)
}

pub fn start() -> (TempDir, Fake) {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 1, ClockMode::Replay);
    (directory, fake)
}

pub fn claim(socket: &Path, event_key: &str) -> String {
    let arguments = ["claim", "--corpus", "billing", "--event-key", event_key, "--category", "dunning", "--at", AT];
    object(socket, &arguments)["event_id"].as_str().expect("an id").to_owned()
}
