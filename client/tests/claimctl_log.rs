//! The verbs that read the log: histories, the tail, exports, and chains checked against heads of theirs.

mod fake;
#[path = "../../protocol/tests/samples/mod.rs"]
mod samples;
mod shell;

use claim_client::{AuditOperation, Entry, ErrorCode, Head, LogPosition, ShardStatus, Uuid};
use claim_protocol::{Operation, ReplyResult};
use fake::{Action, Fake, refusal};
use serde_json::{Value, json};
use shell::{claimctl, objects, run, start};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Entries of a page, fewer than there are.
const PAGE: usize = 2;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | number)
}

fn entry(position: u64, timestamp_us: i64, event_id: Uuid) -> Entry {
    Entry {
        position: LogPosition { shard: 0, position },
        operation: AuditOperation::Claim,
        timestamp_us,
        event_id: Some(event_id),
        dispute_id: None,
        global_sequence: 0,
        ..samples::entry()
    }
}

fn positions(objects: &[Value]) -> Vec<u64> {
    objects.iter().map(|entry| entry["position"].as_u64().expect("a position")).collect()
}

/// Four rows: 2 is an alias of 1, and 3 was in a dispute with 2; 4 may not be read.
fn with_histories(fake: &Fake) {
    fake.script(|_, request| {
        let Operation::History { event_id, correlation_id, from, since_us, until_us } = &request.operation else {
            return match &request.operation {
                // In two pages, and one between them that has nothing.
                Operation::Find { event_key: "both", from } => {
                    let row = |event_id| claim_client::Row { event_id, ..samples::row() };
                    let (rows, next) = match from {
                        0 => (vec![row(id(1))], Some(1)),
                        1 => (vec![], Some(2)),
                        _ => (vec![row(id(3))], None),
                    };
                    Action::Reply(ReplyResult::Found { rows, next })
                }
                _ => Action::Answer,
            };
        };
        let shared = entry(3, 30, id(1));
        let (entries, related) = match (event_id, correlation_id) {
            (None, Some(_)) => (vec![entry(7, 70, id(9)), entry(8, 80, id(8))], vec![]),
            (Some(row), _) if *row == id(1) => (vec![entry(1, 10, id(1)), shared], vec![id(2)]),
            (Some(row), _) if *row == id(2) => (vec![entry(2, 20, id(2)), shared], vec![id(1), id(3), id(4)]),
            (Some(row), _) if *row == id(3) => (vec![entry(4, 5, id(3))], vec![id(2)]),
            _ => return Action::Refuse(refusal(ErrorCode::Forbidden, 0)),
        };
        let is_wanted = |entry: &Entry| {
            since_us.is_none_or(|since| entry.timestamp_us >= since)
                && until_us.is_none_or(|until| entry.timestamp_us < until)
        };
        // One entry a page; a page whose entry is not wanted has nothing.
        let next = (*from + 1 < entries.len() as u64).then_some(*from + 1);
        let entries = entries.into_iter().skip(*from as usize).take(1).filter(is_wanted).collect();
        Action::Reply(ReplyResult::History { entries, next, related })
    });
}

#[test]
fn a_history_follows_what_is_related() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    with_histories(&fake);
    let (first, forbidden) = (id(1).to_string(), id(4).to_string());
    let read = |arguments: &[&str]| {
        let (status, stdout, stderr) = run(&socket, &[&["history", "--json"], arguments].concat());
        assert_eq!(status, 0, "{stderr}");
        let objects: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        (positions(&objects), stderr)
    };
    // In the order of time, an entry that concerns two rows once, and what may not be read left out aloud.
    let (found, stderr) = read(&[&first]);
    assert_eq!(found, [4, 1, 2, 3]);
    assert!(stderr.contains(&format!("the history of {forbidden}, which is related, is left out")), "{stderr}");
    assert_eq!(read(&[&first, "--alone"]), (vec![1, 3], String::new()));
    assert_eq!(read(&["--event-key", "both", "--alone"]), (vec![4, 1, 3], String::new()));
    assert_eq!(read(&["--event-key", "both"]).0, [4, 1, 2, 3]);
    assert_eq!(read(&["--correlation-id", &first]), (vec![7, 8], String::new()));
    let range = ["--since", "1970-01-01T00:00:00.000010Z", "--until", "1970-01-01T00:00:00.000030Z"];
    assert_eq!(read(&[&[first.as_str()], &range[..]].concat()).0, [1, 2]);
    let (status, _, stderr) = run(&socket, &["history", &forbidden]);
    assert!(status == 1 && stderr.contains("FORBIDDEN"), "{stderr}");
    let (_, stdout, _) = run(&socket, &["history", &first, "--alone"]);
    assert!(stdout.contains("ada 2/3/4") && stdout.contains("shard:position"), "{stdout}");
}

#[test]
fn a_history_tells_each_step_of_a_dispute_once_and_every_shards_part_of_a_pass() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    // Two rows, each on a shard of its own, which both log the dispute and the pass.
    fake.script(|_, request| {
        let Operation::History { event_id: Some(row), .. } = &request.operation else { return Action::Answer };
        let shard = u16::from(*row == id(2));
        let step = |position, operation, global_sequence| Entry {
            position: LogPosition { shard, position },
            operation,
            event_id: None,
            dispute_id: (operation != AuditOperation::Reconcile).then_some(id(7)),
            // Both steps of a quarantine are called the same and are the daemon's own.
            detail: format!("{operation}; {shard} rows of this shard"),
            idempotency_key: None,
            global_sequence,
            ..entry(position, global_sequence as i64, *row)
        };
        let entries = vec![
            Entry { position: LogPosition { shard, position: 1 }, ..entry(1, 1 + i64::from(shard), *row) },
            step(4, AuditOperation::Reconcile, 5),
            step(5, AuditOperation::Dispute, 6),
            step(6, AuditOperation::Quarantine, 7),
            step(7, AuditOperation::Quarantine, 8),
            step(8, AuditOperation::Arbitrate, 9),
        ];
        Action::Reply(ReplyResult::History { entries, next: None, related: vec![id(1), id(2)] })
    });
    let told = objects(&socket, &["history", &id(2).to_string()]);
    let told = told.iter().map(|e| (e["operation"].as_str(), e["shard"].as_u64(), e["global_sequence"].as_u64()));
    let told: Vec<_> = told.collect();
    let expected = [
        ("claim", 0, None),
        ("claim", 1, None),
        ("reconcile", 0, Some(5)),
        ("reconcile", 1, Some(5)),
        ("dispute", 0, Some(6)),
        ("quarantine", 0, Some(7)),
        ("quarantine", 0, Some(8)),
        ("arbitrate", 0, Some(9)),
    ];
    assert_eq!(told, expected.map(|(operation, shard, place)| (Some(operation), Some(shard), place)));
}

/// A log of five entries in which each position is one, served in pages.
fn with_log(fake: &Fake) {
    fake.script(|_, request| match request.operation {
        Operation::Tail { shard: 0, from_position, .. } => {
            let first = from_position.max(1);
            let entries: Vec<_> = (first..=5).take(PAGE).map(|at| entry(at, at as i64, id(at.into()))).collect();
            let next_position = entries.last().map_or(from_position.max(6), |entry| entry.position.position + 1);
            Action::Reply(ReplyResult::TailPage { entries, next_position, durable_position: 5 })
        }
        Operation::Status => {
            let mut results = samples::results().into_iter();
            let Some(ReplyResult::Status(mut report)) = results.find(|it| matches!(it, ReplyResult::Status(_))) else {
                unreachable!("there is a sample of each kind")
            };
            report.shards = vec![ShardStatus { durable_position: 5, ..ShardStatus::default() }];
            Action::Reply(ReplyResult::Status(report))
        }
        _ => Action::Answer,
    });
}

#[test]
fn a_tail_ends_and_says_how_to_go_on() {
    let (_directory, fake) = start();
    let socket = fake.socket();
    with_log(&fake);
    for (arguments, expected) in
        [(&[][..], vec![1, 2, 3, 4, 5]), (&["--from", "4"], vec![4, 5]), (&["--from", "9"], vec![])]
    {
        let (status, stdout, stderr) = run(&socket, &[&["tail", "--json"], arguments].concat());
        let objects: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((status, positions(&objects)), (0, expected));
        assert!(stderr.contains("--follow waits for it"), "{stderr}");
    }
    let (status, stdout, _) = run(&socket, &["tail", "--from", "5"]);
    assert!(status == 0 && stdout.starts_with("0:5") && stdout.contains("because"), "{stdout}");
    let (status, _, stderr) = run(&socket, &["tail", "--shard", "7", "--follow"]);
    assert!(status == 1 && stderr.contains("there is no shard 7"), "{stderr}");
}

#[test]
fn a_tail_that_follows_prints_what_comes_and_says_where_it_broke_off() {
    let (_directory, fake) = start();
    let mut pages = 0;
    fake.script(move |_, request| {
        let Operation::Tail { from_position, wait_ms, .. } = request.operation else { return Action::Answer };
        // Long, and shorter than the deadline of ten seconds.
        assert_eq!(wait_ms, 5_000);
        pages += 1;
        match pages {
            1..=3 => Action::Reply(ReplyResult::TailPage {
                entries: vec![entry(from_position, 1, id(1))],
                next_position: from_position + 1,
                durable_position: from_position,
            }),
            4 => Action::Reply(ReplyResult::TailPage {
                entries: vec![],
                next_position: from_position,
                durable_position: from_position - 1,
            }),
            _ => Action::Refuse(refusal(ErrorCode::ShardFailed, 0)),
        }
    });
    let mut command = claimctl(&fake.socket());
    let mut child = command
        .args(["tail", "--follow", "--from", "5", "--json", "--deadline", "10s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("claimctl runs");
    let lines: Vec<Value> = BufReader::new(child.stdout.take().expect("piped"))
        .lines()
        .map(|line| serde_json::from_str(&line.expect("UTF-8")).expect("JSON"))
        .collect();
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(positions(&lines), [5, 6, 7]);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the tail of shard 0 broke off before position 8; go on with --from 8"), "{stderr}");
}

#[test]
fn an_export_has_every_entry() {
    let (_directory, fake) = start();
    with_log(&fake);
    let (status, stdout, stderr) = run(&fake.socket(), &["audit", "export"]);
    assert_eq!(status, 0, "{stderr}");
    let entries: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(positions(&entries), [1, 2, 3, 4, 5]);
    assert!(stderr.contains("5 entries of 1 shards were exported"), "{stderr}");
}

/// A daemon whose chains are what they were up to and including these batches.
fn with_chains(fake: &Fake, good_up_to: [u64; 2]) {
    fake.script(move |_, request| match request.operation {
        Operation::AuditHead => {
            let head = |shard, batch: u64| Head {
                shard,
                batch,
                position: 10 * batch,
                hash: [batch as u8; 32],
                timestamp_us: batch as i64,
            };
            Action::Reply(ReplyResult::AuditHeads((1..=4).flat_map(|batch| [head(0, batch), head(1, batch)]).collect()))
        }
        Operation::AuditCheck { shard, batch, position, hash } => {
            assert_eq!((position, hash), (10 * batch, [batch as u8; 32]));
            let ok = batch <= good_up_to[usize::from(shard)];
            let message = if ok { String::new() } else { format!("batch {batch} has another hash") };
            Action::Reply(ReplyResult::AuditChecked { shard, ok, message, batches_verified: batch })
        }
        _ => Action::Answer,
    });
}

#[test]
fn heads_are_written_and_checked_later() {
    let (directory, fake) = start();
    let socket = fake.socket();
    with_chains(&fake, [4, 4]);
    let (status, heads, _) = run(&socket, &["audit", "head"]);
    assert_eq!((status, heads.lines().count()), (0, 8));
    let head: Value = serde_json::from_str(heads.lines().next().expect("a line")).expect("JSON");
    let ledger = "01900000-0000-7000-8000-000000000001";
    assert_eq!(
        head,
        json!({
            "ledger": ledger, "shard": 0, "batch": 1, "position": 10, "hash": "01".repeat(32),
            "timestamp": "1970-01-01T00:00:00.000001Z"
        })
    );
    let file = directory.path().join("heads.ndjson");
    fs::write(&file, &heads).expect("written");
    let verify = ["audit", "verify", "--against", file.to_str().expect("UTF-8")];
    let checked = objects(&socket, &verify);
    assert_eq!(
        checked[0],
        json!({
            "shard": 0, "batch": 1, "position": 10, "timestamp": "1970-01-01T00:00:00.000001Z", "ok": true,
            "message": "", "batches_verified": 1
        })
    );
    assert_eq!(checked.len(), 8);
    let (status, stdout, _) = run(&socket, &verify);
    assert!(status == 0 && stdout.contains("as it was"), "{stdout}");

    with_chains(&fake, [2, 0]);
    let (status, stdout, stderr) = run(&socket, &verify);
    assert_eq!(status, 1);
    assert!(stdout.contains("MISMATCH: batch 3 has another hash"), "{stdout}");
    assert!(
        stderr.contains(
            "shard 0 was changed after batch 2 (position 20, 1970-01-01T00:00:00.000002Z) and not after batch 3"
        ),
        "{stderr}"
    );
    assert!(stderr.contains("shard 1 was changed after the beginning of the log and not after batch 1"), "{stderr}");
    let (status, _, stderr) = run(&socket, &[&verify[..], &["--json"]].concat());
    let error: Value = serde_json::from_str(&stderr).expect("an object");
    assert_eq!((status, &error["error"], &error["outcome"]), (1, &json!("MISMATCH"), &json!("definite")));

    for (content, expected) in [
        (heads.replace(ledger, "01900000-0000-7000-8000-000000000002"), "and this is ledger 01900000"),
        (heads.replace(&"01".repeat(32), "01"), "line 1 of"),
        (heads.replace(&"02".repeat(32), &"0x".repeat(32)), "its hash is not 64 hexadecimal digits"),
        ("{}\n".to_owned(), "missing field"),
        ("\n".to_owned(), "has no heads"),
    ] {
        fs::write(&file, content).expect("written");
        let (status, _, stderr) = run(&socket, &verify);
        assert_eq!(status, 2, "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn the_configuration_is_one_again() {
    let (_directory, fake) = start();
    fake.script(|_, _| {
        let mut results = samples::results().into_iter();
        Action::Reply(results.find(|it| matches!(it, ReplyResult::ConfigurationFound { .. })).expect("a sample"))
    });
    let at = "1970-01-01T00:00:00.000001Z";
    assert_eq!(
        objects(&fake.socket(), &["config", "show"]),
        [json!({"toml": "[dispute]", "at": at, "uid": 2, "shard": 0, "position": 3})]
    );
    let (status, stdout, _) = run(&fake.socket(), &["config", "show"]);
    let expected = format!("# in effect since {at}, set by uid 2, logged at 0:3\n[dispute]\n");
    assert_eq!((status, stdout), (0, expected));
}

#[test]
fn a_shard_that_is_not_there_is_named() {
    let (_directory, fake) = start();
    for verb in [&["audit", "export"][..], &["tail", "--follow"]] {
        let (status, _, stderr) = run(&fake.socket(), &[verb, &["--shard", "3"]].concat());
        assert!(status == 1 && stderr.contains("there is no shard 3; the ledger has shards 0 to 0"), "{stderr}");
    }
}
