//! The verbs of arbitrators, managers and whoever runs the ledger: what they ask for, and the exact shapes of their JSON.

mod fake;
#[path = "../../protocol/tests/samples/mod.rs"]
mod samples;
mod shell;

use claim_client::{Entry, ErrorCode};
use claim_protocol::{Operation, ReplyResult};
use fake::{Action, Fake, refusal};
use serde_json::{Value, json};
use shell::{AT, AT_MICROS, KEY, object, objects, run, start};
use std::sync::{Arc, Mutex};

const ID: &str = "01900000-0000-7abc-8def-0123456789ab";
const SAMPLE_KEY: &str = "01900000-0001-7000-8000-000000000001";
const OTHER: &str = "019c1348-c5c0-7000-8000-000000000002";

/// From now on the daemon answers with the first sample of the kind that `is` picks, and notes what it was asked.
fn answers(fake: &Fake, is: fn(&ReplyResult) -> bool) -> Arc<Mutex<Vec<String>>> {
    let result = samples::results().into_iter().find(is).expect("a sample");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    fake.script(move |_, request| {
        notes.lock().expect("notes").push(format!("{:?} because {:?}", request.operation, request.rationale));
        Action::Reply(result.clone())
    });
    asked
}

/// One verb against a sample: what it asks, its JSON, and something of its text.
fn check(fake: &Fake, is: fn(&ReplyResult) -> bool, arguments: &[&str], asks: &str, json: &[Value], text: &str) {
    let asked = answers(fake, is);
    assert_eq!(objects(&fake.socket(), arguments), json, "{arguments:?}");
    assert_eq!(asked.lock().expect("notes").as_slice(), [asks], "{arguments:?}");
    let (status, stdout, stderr) = run(&fake.socket(), arguments);
    assert_eq!((status, stderr.as_str()), (0, ""), "{arguments:?}");
    assert!(stdout.contains(text), "{arguments:?}: {stdout}");
    assert!(stdout.lines().all(|line| line.trim_end() == line), "{stdout}");
}

#[test]
fn disputes() {
    let (_directory, fake) = start();
    let disputed = |result: &ReplyResult| matches!(result, ReplyResult::Disputed(_));
    let dispute = json!({
        "dispute_id": SAMPLE_KEY, "state": "escalate", "opened_by": "pd", "opened_at": "1969-12-31T23:59:59.999999Z",
        "updated_at": "1970-01-01T00:00:00.000002Z", "rationale": "two rows, one event",
        "sides": [
            {"event_id": ID, "corpus": "pd", "verdict": "canonical"},
            {"event_id": SAMPLE_KEY, "corpus": "bbolt", "verdict": "none"},
        ],
        "canonical_id": ID, "responses": 3, "dismissed": true
    });
    for (arguments, asks) in [
        (
            &["dispute", "open", "--corpus", "pd", "--rationale", "why", KEY, OTHER][..],
            format!("Dispute {{ corpus: \"pd\", event_ids: [{KEY}, {OTHER}] }} because \"why\""),
        ),
        (
            &["dispute", "respond", KEY, "--corpus", "pd", "--rationale", "why"],
            format!("Respond {{ corpus: \"pd\", dispute_id: {KEY} }} because \"why\""),
        ),
        (&["dispute", "escalate", KEY, "--reason", "why"], format!("Escalate {{ dispute_id: {KEY} }} because \"why\"")),
        (
            &["dispute", "arbitrate", KEY, "--dismissed", "--rationale", "why"],
            format!("Arbitrate {{ dispute_id: {KEY}, dismissed: true, verdicts: [] }} because \"why\""),
        ),
        (
            &[
                "dispute",
                "arbitrate",
                KEY,
                "--canonical",
                ID,
                "--references",
                OTHER,
                "--tombstone",
                SAMPLE_KEY,
                "--rationale",
                "why",
            ],
            format!(
                "Arbitrate {{ dispute_id: {KEY}, dismissed: false, verdicts: [\
                 Verdict {{ event_id: {ID}, verdict: Canonical }}, \
                 Verdict {{ event_id: {OTHER}, verdict: References }}, \
                 Verdict {{ event_id: {SAMPLE_KEY}, verdict: Tombstone }}] }} because \"why\""
            ),
        ),
    ] {
        check(&fake, disputed, arguments, &asks, std::slice::from_ref(&dispute), "state         escalate (dismissed)");
    }
    // Shown with what was said in it, which the history of its first row tells.
    fake.script(|_, request| match &request.operation {
        Operation::DisputeLookup { .. } => {
            let is_dispute = |result: &ReplyResult| matches!(result, ReplyResult::Disputed(_));
            Action::Reply(samples::results().into_iter().find(is_dispute).expect("a sample"))
        }
        Operation::History { event_id: Some(_), .. } => {
            let entries = vec![samples::entry(), Entry { dispute_id: None, ..samples::entry() }];
            Action::Reply(ReplyResult::History { entries, next: None, related: vec![] })
        }
        _ => Action::Answer,
    });
    let shown = object(&fake.socket(), &["dispute", "show", KEY]);
    assert_eq!((&shown["rationale"], shown["entries"].as_array().map(Vec::len)), (&dispute["rationale"], Some(1)));
    assert_eq!(shown["entries"][0]["rationale"], json!("because"));
    let (status, stdout, stderr) = run(&fake.socket(), &["dispute", "show", KEY]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(stdout.contains("because"), "{stdout}");
    let listed =
        |result: &ReplyResult| matches!(result, ReplyResult::DisputeList { disputes, .. } if !disputes.is_empty());
    let bare = json!({
        "dispute_id": SAMPLE_KEY, "state": "escalate", "opened_by": "pd", "opened_at": "1969-12-31T23:59:59.999999Z",
        "updated_at": "1970-01-01T00:00:00.000002Z", "rationale": "", "sides": [], "canonical_id": null,
        "responses": 3, "dismissed": false
    });
    let asks = "Disputes { corpus: \"\", include_closed: true, before: None } because \"\"";
    check(&fake, listed, &["dispute", "list", "--closed"], asks, &[dispute, bare], "opened by");
}

#[test]
fn corpora_are_closed_frozen_and_capped() {
    let (_directory, fake) = start();
    let corpus = json!({
        "name": "bbolt", "shard_prefix": 7, "shard": 1, "onboarded_at": "1970-01-01T00:00:00.000005Z",
        "decommissioned_at": "1970-01-01T00:00:00.000006Z", "notes": "n", "claims": 3, "frozen_reason": "audit",
        "frozen_at": "1970-01-01T00:00:00.000000Z", "slots": 50000, "claims_this_quarter": 2, "cap_per_minute": 60,
        "alarms": ["half", "eighty", "early"]
    });
    check(
        &fake,
        |result| matches!(result, ReplyResult::Decommissioned { .. }),
        &["decommission", "bbolt", "--dry-run"],
        "Decommission { name: \"bbolt\", dry_run: true } because \"\"",
        &[json!({"corpus": corpus, "applied": true, "rows": 1, "aliases_elsewhere": 2})],
        "aliases elsewhere  2",
    );
    let at = "1969-12-31T23:59:59.999999Z";
    let frozen = |result: &ReplyResult| matches!(result, ReplyResult::Frozen { .. });
    check(
        &fake,
        frozen,
        &["freeze", "pd", "--reason", "why"],
        "Freeze { corpus: \"pd\", frozen: true } because \"why\"",
        &[json!({"corpus": "pd", "frozen": true, "at": at})],
        "pd is frozen since 1969",
    );
    check(
        &fake,
        frozen,
        &["unfreeze", "--ledger"],
        "Freeze { corpus: \"\", frozen: false } because \"\"",
        &[json!({"corpus": null, "frozen": false, "at": at})],
        "the whole ledger is no longer frozen since 1969",
    );
    let at = "1970-01-01T00:00:00.000001Z";
    let capped = |result: &ReplyResult| matches!(result, ReplyResult::Capped { .. });
    check(
        &fake,
        capped,
        &["cap", "pd", "--claims-per-minute", "60"],
        "Cap { corpus: \"pd\", claims_per_minute: 60 } because \"\"",
        &[json!({"corpus": "pd", "claims_per_minute": 60, "at": at})],
        "pd may claim 60 a minute since 1970",
    );
    check(
        &fake,
        capped,
        &["cap", "pd", "--lift"],
        "Cap { corpus: \"pd\", claims_per_minute: 0 } because \"\"",
        &[json!({"corpus": "pd", "claims_per_minute": null, "at": at})],
        "pd has no cap since 1970",
    );
}

#[test]
fn slots_and_totals() {
    let (_directory, fake) = start();
    let proposal = json!({
        "proposal": 1, "corpus": "pd", "slots": 60000, "proposed_at": "1970-01-01T00:00:00.000002Z",
        "signatures": [
            {"role": "platform", "uid": 3, "at": "1970-01-01T00:00:00.000004Z"},
            {"role": "client", "uid": 0, "at": "1970-01-01T00:00:00.000000Z"},
        ],
        "effective_from": "1970-01-01T00:00:00.000000Z"
    });
    let one = |result: &ReplyResult| matches!(result, ReplyResult::Proposal(_));
    for (arguments, asks) in [
        (
            &["slots", "propose", "pd", "60000", "--rationale", "why"][..],
            "ProposeSlots { corpus: \"pd\", slots: 60000 } because \"why\"",
        ),
        (&["slots", "sign-off", "1", "--role", "manager"], "SignOff { proposal: 1, role: Manager } because \"\""),
    ] {
        check(&fake, one, arguments, asks, std::slice::from_ref(&proposal), "platform (uid 3), client (uid 0)");
    }
    let mut bare = proposal.clone();
    bare["signatures"] = json!([]);
    bare["effective_from"] = Value::Null;
    let all = |result: &ReplyResult| matches!(result, ReplyResult::ProposalList(_));
    check(&fake, all, &["slots", "list"], "Proposals because \"\"", &[proposal, bare], "nobody");

    let total = json!({
        "corpus": "pd", "quarter": "2026-Q1", "registered": 1, "disputed": 2, "referenced": 3, "tombstoned": 4,
        "slots": 5, "over_budget": 6, "growth_permille": 0, "tombstone_permille": 7
    });
    let mut bare = total.clone();
    bare["growth_permille"] = Value::Null;
    bare["tombstone_permille"] = Value::Null;
    let totals = |result: &ReplyResult| matches!(result, ReplyResult::TotalsFound(_));
    let asks = "Totals { corpus: \"pd\" } because \"\"";
    check(&fake, totals, &["totals", "--corpus", "pd"], asks, &[total, bare], "0.007");
}

#[test]
fn reconciliation_and_what_bears_on_it() {
    let (_directory, fake) = start();
    let at = "1970-01-01T00:00:00.000001Z";
    check(
        &fake,
        |result| matches!(result, ReplyResult::IncidentSet { .. }),
        &["incident", "on", "--rationale", "why"],
        "Incident { active: true } because \"why\"",
        &[json!({"active": true, "at": at})],
        "the incident is on since 1970",
    );
    check(
        &fake,
        |result| matches!(result, ReplyResult::BarrierRaised { .. }),
        &["barrier"],
        "Barrier because \"\"",
        &[json!({"at": at})],
        "a barrier stands at 1970",
    );
    check(
        &fake,
        |result| matches!(result, ReplyResult::Reconciled(_)),
        &["reconcile", "--dry-run"],
        "Reconcile { dry_run: true } because \"\"",
        &[json!({
            "dry_run": true, "pass": 1, "at": "1970-01-01T00:00:00.000002Z", "rows_examined": 3, "groups": 4,
            "merged": 5, "already_merged": 6, "skipped_disputed": 7, "refused": 8, "suspects": 9, "orphans": 10,
            "merges_listed": [{"event_id": ID, "canonical_id": SAMPLE_KEY}],
            "suspects_listed": [{"corpus": "pd", "event_ids": [ID, SAMPLE_KEY]}],
            "orphans_listed": [{
                "event_id": ID, "canonical_id": SAMPLE_KEY, "lifecycle": "tombstoned", "references": 1, "is_alias": true
            }]
        })],
        "and 4 more",
    );
    check(
        &fake,
        |result| matches!(result, ReplyResult::PropagationFound(_)),
        &["propagation"],
        "Propagation because \"\"",
        &[json!({
            "from": "a", "to": "b", "samples": 1, "p50_us": 2, "p95_us": 3, "budget_us": 4, "violations": 5, "alarm": "page"
        })],
        "page",
    );
}

#[test]
fn retention_is_held_released_and_shown() {
    let (_directory, fake) = start();
    let held = |result: &ReplyResult| matches!(result, ReplyResult::Held { held: true, .. });
    let at = "1970-01-01T00:00:00.000001Z";
    check(
        &fake,
        held,
        &["hold", "2021-Q2", "--rationale", "why"],
        "Hold { year: 2021, quarter: 2, held: true } because \"why\"",
        &[json!({"quarter": "2021-Q2", "held": true, "at": at})],
        "2021-Q2 is held since 1970",
    );
    check(
        &fake,
        held,
        &["release", "2021-Q2"],
        "Hold { year: 2021, quarter: 2, held: false } because \"\"",
        &[json!({"quarter": "2021-Q2", "held": false, "at": at})],
        "2021-Q2 is no longer held since 1970",
    );
    let status = |result: &ReplyResult| matches!(result, ReplyResult::Status(_));
    let shards = [
        json!({
            "shard": 1, "dry_run": true, "due": "2021-Q1 to 2021-Q3", "segments": 9, "bytes": 10, "rows": 11,
            "carried_at_most": 12, "waits_for": "a hold on 2021-Q2: an audit", "holds": ["2021-Q2", "2022-Q1"],
            "dropped_to": "2020-Q4", "first_segment": 7, "quarter_seals": 8
        }),
        json!({
            "shard": 0, "dry_run": true, "due": null, "segments": 0, "bytes": 0, "rows": 0, "carried_at_most": 0,
            "waits_for": null, "holds": [], "dropped_to": null, "first_segment": 0, "quarter_seals": 0
        }),
    ];
    for text in [
        "this is a dry run and changes nothing",
        "2021-Q1 to 2021-Q3  9         0.0  11    12               a hold on 2021-Q2: an audit",
        "2020-Q4     8              7",
        "held quarters: 2021-Q2, 2022-Q1",
    ] {
        check(&fake, status, &["retention"], "Status because \"\"", &shards, text);
    }
}

#[test]
fn the_status_has_the_archive_and_the_last_drill() {
    let (_directory, fake) = start();
    answers(&fake, |result| matches!(result, ReplyResult::Status(_)));
    let mut status = object(&fake.socket(), &["status"]);
    for age in ["archive_age_seconds", "drill_age_seconds"] {
        assert!(status[age].take().as_u64().is_some_and(|seconds| seconds > 1_000_000_000), "{age}: {status}");
    }
    for (field, expected) in [
        ("archive_at", json!("1970-01-01T00:00:00.000002Z")),
        ("archive_error", json!("the backup's device is full")),
        ("drill_at", json!("1970-01-01T00:00:00.000000Z")),
        ("drill_rto_ms", json!(u64::MAX)),
        ("drill_rpo_ms", json!(-1)),
    ] {
        assert_eq!(status[field], expected, "{field}");
    }
    for (field, expected) in [
        ("first_segment", json!(7)),
        ("dropped_to", json!("2020-Q4")),
        ("quarter_seals", json!(8)),
        ("holds", json!(["2021-Q2", "2022-Q1"])),
        ("retention_due", json!("2021-Q1 to 2021-Q3")),
        ("retention_segments", json!(9)),
        ("retention_bytes", json!(10)),
        ("retention_rows", json!(11)),
        ("retention_carried", json!(12)),
        ("retention_waits_for", json!("a hold on 2021-Q2: an audit")),
    ] {
        assert_eq!(status["shards"][0][field], expected, "{field}");
    }
    let (code, stdout, _) = run(&fake.socket(), &["status"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("days ago; the last round failed: the backup's device is full"), "{stdout}");
    assert!(stdout.contains("last drill       1970-01-01T00:00:00.000000Z, "), "{stdout}");
    assert!(stdout.contains("dropped to") && stdout.contains("2020-Q4"), "{stdout}");
    // Without an archive and a drill.
    let (_directory, fake) = start();
    let status = object(&fake.socket(), &["status"]);
    for field in ["archive_at", "archive_age_seconds", "drill_at", "drill_age_seconds", "drill_rto_ms", "drill_rpo_ms"]
    {
        assert_eq!(status[field], Value::Null, "{field}");
    }
    let (code, stdout, _) = run(&fake.socket(), &["status"]);
    assert_eq!(code, 0);
    assert!(
        stdout.contains("archived         not since the daemon's start\n")
            && stdout.contains("last drill       never\n"),
        "{stdout}"
    );
}

#[test]
fn a_claim_that_finds_its_event_names_the_row() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    fake.onboard("billing", 0);
    let claim = |more: &[&'static str]| {
        let always = ["claim", "--corpus", "billing", "--event-key", "k", "--category", "c", "--at", AT];
        [&always[..], &["--unless-registered-within", "5m"], more].concat()
    };
    let claimed = object(&socket, &claim(&[]));
    let id = claimed["event_id"].clone();
    assert_eq!(
        claimed,
        json!({
            "event_id": id, "claim_timestamp": AT_MICROS, "claim_sequence": 1, "corpus": "billing",
            "already_registered": false
        })
    );
    fake.script(|_, request| {
        let operation = format!("{:?}", request.operation);
        assert!(operation.contains("unless_registered_within_ms: 300000"), "{operation}");
        let mut error = refusal(ErrorCode::AlreadyRegistered, 0);
        error.registered_id = Some(samples::ID);
        Action::Refuse(error)
    });
    assert_eq!(object(&socket, &claim(&[])), json!({"event_id": ID, "already_registered": true}));
    let (status, stdout, _) = run(&socket, &claim(&[]));
    assert_eq!((status, stdout), (0, format!("already registered as {ID}; nothing was claimed\n")));
}

#[test]
fn a_refusal_for_lack_of_a_role_is_1() {
    let (_directory, fake) = start();
    fake.script(|_, _| Action::Refuse(refusal(ErrorCode::Forbidden, 0)));
    for arguments in [
        &["reconcile"][..],
        &["dispute", "show", KEY],
        &["dispute", "list"],
        &["freeze", "--ledger", "--reason", "x"],
        &["tail"],
        &["audit", "head"],
        &["config", "show"],
    ] {
        let (status, stdout, stderr) = run(&fake.socket(), arguments);
        assert_eq!((status, stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(stderr.contains("FORBIDDEN"), "{stderr}");
    }
}
