//! `claimd check-config`: what it prints, and its exit status.

use std::path::Path;
use std::process::{Command, Output};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/claimd.toml");

fn check_config(file: &Path, json: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claimd"));
    command.arg("check-config").arg(file);
    if json {
        command.arg("--json");
    }
    command.output().expect("claimd runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn the_example_is_shown_as_tables() {
    let output = check_config(Path::new(EXAMPLE), false);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}{}", text(&output.stderr));
    for part in
        ["client", "compliance, customer", "0 (root)", "2001, 2002", "budget of customer → compliance", "20m", "all"]
    {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn the_example_is_shown_as_json_and_resolves_to_what_is_logged() {
    let output = check_config(Path::new(EXAMPLE), true);
    assert_eq!(output.status.code(), Some(0));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(shown["ok"], true);
    assert_eq!(shown["roles"].as_array().expect("a list").len(), 8);
    assert_eq!(shown["settings"]["reconcile"]["incident_window_us"], 900_000_000);
    let resolved = shown["resolved"].as_str().expect("a text");
    let policy = claim_engine::policy::Policy::parse(resolved).expect("the resolved form");
    assert_eq!(policy.to_toml(), resolved);
}

#[test]
fn what_is_wrong_is_said_with_status_1() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let file = directory.path().join("wrong.toml");
    std::fs::write(&file, "[reconcile]\ninterval = 5\n").expect("writable");
    let says = "wrong.toml: line 2 (`interval = 5`)";

    let output = check_config(&file, false);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());

    let output = check_config(&file, true);
    assert_eq!(output.status.code(), Some(1));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(shown["ok"], false);
    assert!(shown["error"].as_str().expect("a text").contains(says));

    let output = check_config(&directory.path().join("absent.toml"), false);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("absent.toml: the configuration can't be opened"));
}
