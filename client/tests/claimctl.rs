//! claimctl as a shell sees it: arguments, exit status, and the exact shapes of its JSON.

mod fake;
mod shell;

use claim_client::{ClockMode, ErrorCode};
use fake::{Action, Fake, refusal};
use serde_json::{Value, json};
use shell::{AT, AT_MICROS, KEY, claim, claimctl, object, objects, run, start};
use std::path::Path;
use std::process::Stdio;

#[test]
fn every_verb_explains_itself_with_an_example() {
    let nowhere = Path::new("/nonexistent/claimd.sock");
    let (status, stdout, _) = run(nowhere, &["--help"]);
    assert_eq!(status, 0);
    assert!(stdout.contains("Exit status: 0 done, 1 refused"), "{stdout}");
    for verb in [
        "onboard",
        "corpora",
        "claim",
        "reference",
        "retract",
        "reactivate",
        "confirm-clock",
        "lookup",
        "find",
        "history",
        "scan",
        "dispute open",
        "dispute respond",
        "dispute arbitrate",
        "dispute escalate",
        "dispute show",
        "dispute list",
        "decommission",
        "freeze",
        "unfreeze",
        "cap",
        "slots propose",
        "slots sign-off",
        "slots list",
        "totals",
        "incident",
        "barrier",
        "hold",
        "release",
        "retention",
        "reconcile",
        "propagation",
        "tail",
        "audit head",
        "audit verify",
        "audit export",
        "config show",
        "import",
        "status",
    ] {
        let words: Vec<_> = verb.split(' ').chain(["--help"]).collect();
        let (status, stdout, _) = run(nowhere, &words);
        assert_eq!(status, 0);
        assert!(stdout.contains("Example:\n"), "{verb}: {stdout}");
        assert!(stdout.contains(&format!("claimctl {verb}")) || verb == "import", "{verb}: {stdout}");
        assert!(stdout.contains("CLAIMD_SOCKET") && stdout.contains("--json"), "{verb}: {stdout}");
    }
}

#[test]
fn wrong_usage_is_2_before_anything_is_connected_to() {
    let nowhere = Path::new("/nonexistent/claimd.sock");
    for (arguments, expected) in [
        (&["fly"][..], "unrecognized subcommand"),
        (&[], "Usage:"),
        (&["claim", "--corpus", "a"], "--event-key"),
        (&["lookup", "xyz"], "invalid value 'xyz'"),
        (&["retract", KEY], "--reason"),
        (&["retract", KEY, "--reason", "x", "--reason-code", "late"], "known are misclassified"),
        (&["scan", "--corpus", "a", "--quarter", "2026"], "a quarter looks like 2026-Q1"),
        (&["confirm-clock", "--at", "noon"], "a time looks like"),
        (&["status", "--deadline", "soon"], "a duration looks like"),
        (&["import", "/nonexistent/file"], "/nonexistent/file is no file"),
        (&["audit", "verify", "--against", "/nonexistent/file"], "name one that `claimctl audit head` wrote"),
        (&["claim", "--corpus", "a", "--unless-registered-within", "0s"], "it is no time at all"),
        (&["dispute", "open", "--corpus", "a", "--rationale", "x", KEY], "2 values required"),
        (&["dispute", "open", "--corpus", "a", KEY, KEY], "--rationale"),
        (&["dispute", "arbitrate", KEY, "--rationale", "x"], "--canonical"),
        (&["dispute", "arbitrate", KEY, "--rationale", "x", "--dismissed", "--tombstone", KEY], "cannot be used with"),
        (&["freeze", "--reason", "x"], "<CORPUS|--ledger>"),
        (&["freeze", "a", "--ledger", "--reason", "x"], "cannot be used with"),
        (&["freeze", "a"], "--reason"),
        (&["hold", "2021-Q2"], "--reason"),
        (&["hold", "2021-Q5", "--rationale", "x"], "a quarter looks like 2026-Q1"),
        (&["release", "9999-Q1"], "a quarter looks like 2026-Q1"),
        (&["cap", "a"], "--claims-per-minute"),
        (&["cap", "a", "--claims-per-minute", "0"], "0 is not in 1.."),
        (&["slots", "sign-off", "1", "--role", "king"], "known are client, facilitator"),
        (&["incident", "perhaps"], "[possible values: on, off]"),
        (&["history"], "--correlation-id"),
        (&["history", KEY, "--event-key", "k"], "cannot be used with"),
        (&["history", "--correlation-id", KEY, "--alone"], "cannot be used with"),
    ] {
        let (status, stdout, stderr) = run(nowhere, arguments);
        assert_eq!((status, stdout.as_str()), (2, ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    let (status, _, stderr) = run(nowhere, &["import", "/nonexistent/file", "--json"]);
    let error: Value = serde_json::from_str(&stderr).expect("an object");
    assert_eq!((status, &error["error"], &error["outcome"]), (2, &json!("USAGE"), &json!("definite")));
}

#[test]
fn no_daemon_is_4_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("claimd.sock");
    let (status, stdout, stderr) = run(&socket, &["status"]);
    assert_eq!((status, stdout.as_str(), stderr.lines().count()), (4, "", 1));
    assert!(stderr.starts_with("claimctl: cannot connect to /"), "{stderr}");
    assert!(stderr.contains("start the daemon with `claimd start` or name its socket"), "{stderr}");
    let (status, _, stderr) = run(&socket, &["status", "--json"]);
    let error: Value = serde_json::from_str(&stderr).expect("an object");
    let message = error["message"].clone();
    assert_eq!(status, 4);
    assert_eq!(
        error,
        json!({"error": "CANNOT_CONNECT", "outcome": "definite", "message": message, "retry_after_ms": 0})
    );
}

#[test]
fn refusals_are_1_and_unknown_outcomes_3() {
    let (_directory, fake) = start();
    fake.onboard("billing", 0);
    let claim = ["claim", "--corpus", "billing", "--event-key", "k", "--category", "c", "--json"];
    fake.script(|_, _| Action::Refuse(refusal(ErrorCode::NoSpace, 50)));
    let (status, stdout, stderr) = run(&fake.socket(), &claim);
    assert_eq!((status, stdout.as_str()), (1, ""));
    let error: Value = serde_json::from_str(&stderr).expect("an object");
    assert_eq!(
        error,
        json!({
            "error": "NO_SPACE", "outcome": "definite", "message": "as the test wants it",
            "retry_after_ms": 50
        })
    );
    let keyed = [&claim[..], &["--idempotency-key", KEY, "--deadline", "100ms"]].concat();
    for (action, code) in [(None, "DEADLINE"), (Some(ErrorCode::ShardFailed), "SHARD_FAILED")] {
        fake.script(move |_, _| action.map_or(Action::Ignore, |code| Action::Refuse(refusal(code, 0))));
        let (status, stdout, stderr) = run(&fake.socket(), &keyed);
        assert_eq!((status, stdout.as_str()), (3, ""), "{stderr}");
        let error: Value = serde_json::from_str(&stderr).expect("an object");
        assert_eq!(
            (&error["error"], &error["outcome"], &error["idempotency_key"]),
            (&json!(code), &json!("unknown"), &json!(KEY))
        );
    }
    let (status, _, stderr) = run(&fake.socket(), &keyed[..keyed.len() - 5]);
    assert_eq!(status, 3);
    assert!(stderr.contains("retry with idempotency key"), "{stderr}");
}

#[test]
fn the_json_of_corpora_and_rows() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    let corpus = json!({
        "name": "billing", "shard_prefix": 1, "shard": 0, "onboarded_at": AT_MICROS, "decommissioned_at": null,
        "notes": "invoices", "claims": 0, "frozen_reason": null, "frozen_at": null, "slots": 50000,
        "claims_this_quarter": 0, "cap_per_minute": null, "alarms": []
    });
    assert_eq!(object(&socket, &["onboard", "billing", "--notes", "invoices", "--at", AT]), corpus);
    assert_eq!(objects(&socket, &["corpora"]), [corpus]);

    let claimed = object(
        &socket,
        &[
            "claim",
            "--corpus",
            "billing",
            "--event-key",
            "invoice-1",
            "--category",
            "dunning",
            "--at",
            AT,
            "--owning-corpus",
            "billing",
            "--hosting-corpus",
            "audit",
            "--metadata",
            "{}",
            "--idempotency-key",
            KEY,
        ],
    );
    let id = claimed["event_id"].as_str().expect("an id");
    assert_eq!(
        claimed,
        json!({"event_id": id, "claim_timestamp": AT_MICROS, "claim_sequence": 1, "corpus": "billing"})
    );
    let row = json!({
        "event_id": id, "corpus": "billing", "lifecycle": "registered", "claim_timestamp": AT_MICROS,
        "claim_sequence": 1, "event_key": "invoice-1", "occurred_at": AT_MICROS, "owning_corpus": "billing",
        "hosting_corpus": "audit", "category": "dunning", "taxonomy_version": 1, "metadata": "{}", "canonical_id": null, "tombstoned_at": null,
        "tombstone_reason_code": null, "tombstone_reason": null, "reactivated_at": null, "dispute_id": null,
        "reconciliation_state": "pending", "over_budget": false, "incident_active": false,
        "effective_quarter": "2026-Q1", "reactivation_quarter": null,
        "retention_expires_at": "1970-01-01T00:00:00.000000Z", "references": 0
    });
    assert_eq!(object(&socket, &["lookup", id]), row);
    let later = "2026-02-01T00:00:00.250000Z";
    let mut retracted = row.clone();
    retracted["lifecycle"] = json!("tombstoned");
    retracted["tombstoned_at"] = json!(later);
    retracted["tombstone_reason_code"] = json!("false_alarm");
    retracted["tombstone_reason"] = json!("paid");
    let arguments = ["retract", id, "--reason", "paid", "--reason-code", "false_alarm", "--at", later];
    assert_eq!(object(&socket, &arguments), retracted);
    let mut reactivated = row;
    reactivated["reactivated_at"] = json!(later);
    let incident = "00000000-0000-4000-8000-000000000009";
    let arguments = ["reactivate", id, "--reason", "bounced", "--at", later, "--correlation-id", incident];
    assert_eq!(object(&socket, &arguments), reactivated);
    let referenced = object(&socket, &["reference", "--corpus", "audit", id, "--at", later]);
    assert_eq!(referenced, json!({"corpus": "audit", "event_id": id, "canonical_id": id}));

    let history = objects(&socket, &["history", id]);
    let key = history[1]["idempotency_key"].clone();
    assert_eq!(
        history[1],
        json!({
            "shard": 0, "position": 2, "operation": "reactivate", "corpus": "", "event_id": id, "timestamp": later,
            "uid": 1, "gid": 2, "pid": 3, "rationale": "bounced", "correlation_id": incident, "idempotency_key": key,
            "reason_code": null, "user_name": "", "dispute_id": null, "canonical_id": null, "detail": "", "event_ids": []
        })
    );
    let (status, _, stderr) = run(&socket, &["retract", KEY, "--reason", "x", "--json"]);
    assert!(status == 1 && stderr.contains("NOT_VISIBLE"), "{stderr}");
    let confirmed = object(&socket, &["confirm-clock", "--at", AT, "--rationale", "checked"]);
    assert_eq!(confirmed, json!({"confirmed_at": AT_MICROS}));
    assert_eq!(object(&socket, &["status"])["shards"][0]["rows"], 1);
}

#[test]
fn a_claim_that_is_repeated_asks_for_the_same() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    fake.onboard("billing", 0);
    let arguments = ["claim", "--corpus", "billing", "--event-key", "k", "--category", "c", "--idempotency-key", KEY];
    let first = object(&socket, &arguments);
    assert_eq!(object(&socket, &arguments), first);
    let ledger = fake.ledger.lock().expect("ledger");
    // The time of the event is that of the key, where none is given.
    assert_eq!((ledger.rows.len(), ledger.rows[0].occurred_at_us), (1, 0x019c_1348_c5c0_i64 * 1000));
}

#[test]
fn scans_page_and_stop() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    object(&socket, &["onboard", "billing", "--at", AT]);
    let ids: Vec<String> = (0..7).map(|index| claim(&socket, &format!("key-{index}"))).collect();
    let scan = |arguments: &[&str]| -> Vec<String> {
        let rows = objects(&socket, &[&["scan", "--corpus", "billing"], arguments].concat());
        rows.iter().map(|row| row["event_id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(scan(&[]), ids);
    assert_eq!(scan(&["--quarter", "2026-Q1"]), ids);
    assert_eq!(scan(&["--quarter", "2026-Q2"]), [""; 0]);
    assert_eq!(scan(&["--limit", "5"]), ids[..5]);
    assert_eq!(scan(&["--limit", "2"]), ids[..2]);
}

#[test]
fn imports_report_what_they_did() {
    let (directory, fake) = start();
    let file = directory.path().join("events.ndjson");
    let lines = [
        r#"{"op":"claim","corpus":"a","at":5,"ref":"r","occurred_at":4,"event_key":"k","category":"c","owning_corpus":"a","hosting_corpus":"a","size":1}"#,
        r#"{"op":"retract","corpus":"a","at":6,"ref":"gone","reason":"because"}"#,
    ];
    std::fs::write(&file, lines.join("\n")).expect("written");
    let file = file.to_str().expect("UTF-8");
    let mut report = object(&fake.socket(), &["import", file]);
    assert!(report["seconds"].take().as_f64().is_some_and(|seconds| seconds > 0.0));
    assert_eq!(
        report,
        json!({
            "claimed": 1, "referenced": 0, "retracted": 0, "reactivated": 0, "refused": {"NOT_VISIBLE": 1},
            "first_refused": {"NOT_VISIBLE": "retract gone of a (at 6): no such claim before it was acknowledged"},
            "sent_again": 0, "seconds": null
        })
    );
    let (status, stdout, _) = run(&fake.socket(), &["import", file]);
    assert_eq!(status, 0);
    assert!(stdout.contains("refused: NOT_VISIBLE") && stdout.contains("latency p50"), "{stdout}");
    // Trying it needs no daemon.
    let nowhere = Path::new("/nonexistent/claimd.sock");
    let plan = object(nowhere, &["import", file, "--dry-run"]);
    assert_eq!(
        plan,
        json!({
            "corpora": 1, "claims": 1, "references": 0, "retractions": 0, "reactivations": 0,
            "refused": {"NOT_VISIBLE": 1}, "first_refused": "event 2: corpus \"a\" has no earlier claim of ref \"gone\""
        })
    );
    let (status, stdout, _) = run(nowhere, &["import", file, "--dry-run"]);
    assert!(status == 0 && stdout.contains("would be sent") && stdout.contains("first refused: event 2"), "{stdout}");
    std::fs::write(file, "{").expect("written");
    let (status, _, stderr) = run(nowhere, &["import", file, "--dry-run"]);
    assert!(status == 2 && stderr.contains("event 1: the line is no event"), "{stderr}");
    let (status, _, stderr) = run(&fake.socket(), &["import", file]);
    assert!(status == 2 && stderr.contains("event 1: the line is no event"), "{stderr}");

    let wall = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(wall.path(), 1, ClockMode::Wall);
    let (status, _, stderr) = run(&fake.socket(), &["import", file]);
    assert!(status == 1 && stderr.contains("--clock replay"), "{stderr}");
}

#[test]
fn text_is_for_people() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    run(&socket, &["onboard", "billing", "--at", AT]);
    let id = claim(&socket, "invoice-1");
    for (arguments, expected) in [
        (&["corpora"][..], "billing"),
        (&["lookup", &id], "category           dunning (taxonomy 1)"),
        (&["history", &id], "shard:position"),
        (&["scan", "--corpus", "billing"], "registered"),
        (&["status"], "serving"),
    ] {
        let (status, stdout, stderr) = run(&socket, arguments);
        assert_eq!((status, stderr.as_str()), (0, ""));
        assert!(stdout.contains(expected), "{arguments:?}: {stdout}");
        assert!(stdout.lines().all(|line| line.trim_end() == line), "{stdout}");
    }
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    run(&socket, &["onboard", "billing", "--at", AT]);
    for index in 0..40 {
        claim(&socket, &format!("{index}"));
    }
    let mut command = claimctl(&socket);
    let mut child = command
        .args(["scan", "--corpus", "billing", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("claimctl runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("claimctl ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
