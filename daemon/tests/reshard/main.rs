//! `claimd reshard` with the real binary: whatever the number of shards, the ledger says the same through the client library,
//! and goes on where it was.

mod dropped;
#[path = "../harness/mod.rs"]
mod harness;
mod told;

use claim_client::{
    Claimed, Client, ClientError, DisputeState, DisputeVerdict, ErrorCode, ReasonCode, RequestOptions, Role, Row, Uuid,
    Verdict, new_key,
};
use harness::replay::{all_rows, at, claim, dispute, onboard, until};
use harness::{Daemon, claimd, flip, format, item, options, run, run_json, scratch};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use told::{Told, assert_each, assert_same, assert_same_rows, told};

/// 2026-03-03 09:14:02 UTC.
const START_US: i64 = 1_772_529_242_000_000;
const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;
/// Small, so that alarms are raised.
const SLOTS: u64 = 20;
const CORPORA: [&str; 5] = ["customer", "compliance", "tools", "billing", "search"];
/// Every role but that of leadership.
const ROLES: [&str; 6] = ["client", "facilitator", "platform", "manager", "arbitrator", "auditor"];

fn config(dir: &Path) -> PathBuf {
    let uid = nix::unistd::geteuid().as_raw();
    let role = |name: &&str| {
        let corpora = if matches!(*name, "client" | "facilitator") { "corpora = [\"*\"]\n" } else { "" };
        format!("[[role]]\nrole = \"{name}\"\n{corpora}uids = [{uid}]\n")
    };
    let roles: String = ROLES.iter().map(role).collect();
    let path = dir.join("claimd.toml");
    fs::write(&path, format!("[slots]\nper_quarter = {SLOTS}\n{roles}")).expect("our directory");
    path
}

fn served(data: &Path, config: &Path) -> Daemon {
    Daemon::start_more(data, &["--config", config.to_str().expect("a path of ours")])
}

fn reshard(data: &Path, to: &Path, shards: u16) -> (i32, Vec<Value>) {
    run_json("reshard", data, &["--to", to.to_str().expect("a path of ours"), "--shards", &shards.to_string()])
}

fn resharded(data: &Path, to: &Path, shards: u16) -> Value {
    let before = files(data);
    let (code, mut lines) = reshard(data, to, shards);
    assert_eq!((code, lines.len()), (0, 1), "{lines:?}");
    let done = lines.remove(0);
    assert_eq!((&done["what"], &done["keys_dropped"]), (&Value::from("resharded"), &Value::from(0)), "{done}");
    assert!(files(data) == before, "the old ledger is as it was");
    let (code, lines) = run_json("verify", to, &[]);
    assert_eq!(code, 0, "{lines:?}");
    for shard in 0..shards {
        let (_, lines) = run_json("inspect", to, &["--depth", "records", "--shard", &shard.to_string()]);
        let last = lines.iter().rfind(|line| line["what"] == "record").expect("a record");
        assert_eq!(last["operation"], "reshard", "the last entry says where the others come from");
    }
    done
}

/// The files of a ledger with what is in them.
fn files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(data).expect("a ledger").map(|entry| entry.expect("an entry").path());
    let ledger = paths.filter(|path| path.extension().is_some_and(|extension| extension == "ledger"));
    ledger.map(|path| (path.clone(), fs::read(path).expect("a file"))).collect()
}

/// Requests that are sent once more later.
struct Retried {
    claim: (RequestOptions, Claimed),
    reference: (RequestOptions, Uuid, Uuid),
    onboarding: RequestOptions,
}

impl Retried {
    /// An old key is answered as it was, and has no effect.
    fn again(&self, client: &Client) {
        let claimed = client.claim("search", &item("once"), &self.claim.0).wait().expect("the old answer").value;
        assert_eq!(claimed, self.claim.1);
        let (options, named, canonical) = &self.reference;
        let referred = client.reference("customer", *named, options).wait().expect("the old answer").value;
        assert_eq!(referred, *canonical);
        client.onboard("late", "a test", &self.onboarding).wait().expect("the old answer");
        let other = client.claim("search", &item("another"), &self.claim.0).wait();
        match other {
            Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::KeyReused),
            other => panic!("a key of another request is refused, and not {other:?}"),
        }
    }
}

/// Something of everything that a log can hold.
fn fill(client: &Client) -> Retried {
    onboard(client, &CORPORA[..4], START_US);
    let time = |seconds: i64| at(START_US + seconds * SECOND_US);
    let keyed = |seconds: i64| {
        let at_us = START_US + seconds * SECOND_US;
        RequestOptions { idempotency_key: Some(new_key(Some(at_us))), ..at(at_us) }
    };
    onboard(client, &CORPORA[4..], START_US);
    let claimed = |corpus: &str, key: &str, seconds: i64| {
        let at_us = START_US + seconds * SECOND_US;
        claim(client, corpus, key, at_us - SECOND_US, at_us).event_id
    };
    let ids = [
        claimed("customer", "embedder-cache-reset", 1),
        claimed("compliance", "embedder-cache-reset", 30),
        claimed("customer", "index-rebuilt", 31),
        claimed("tools", "quota-raised", 32),
        claimed("compliance", "quota-raised-again", 33),
        claimed("customer", "left-alone", 34),
        claimed("billing", "ledger-closed", 35),
        claimed("search", "ledger-closed", 36),
        claimed("tools", "embedder-cache-reset", 37),
    ];
    let mut large = item("with much to say");
    let metadata: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    large.metadata = &metadata;
    large.owning_corpus = "tools";
    let correlated = RequestOptions { correlation_id: Some(new_key(Some(START_US))), ..time(40) };
    for corpus in ["tools", "billing", "search"] {
        for result in client.claim_batch(corpus, &[large, item("small")], &correlated).wait().expect("a batch").value {
            result.expect("a claim");
        }
    }
    client.reference("compliance", ids[2], &time(41)).wait().expect("a reference");
    client.retract("customer", ids[5], ReasonCode::FalseAlarm, &time(42)).wait().expect("a retraction");
    client.retract("tools", ids[3], ReasonCode::Duplicate, &time(43)).wait().expect("a retraction");
    client.reactivate(ids[3], &time(44)).wait().expect("a reactivation");
    client.incident(true, &time(45)).wait().expect("an incident");
    claimed("billing", "while an incident is on", 45);
    client.incident(false, &time(46)).wait().expect("its end");
    client.freeze("tools", &time(47)).wait().expect("a freeze");
    client.unfreeze("tools", &time(48)).wait().expect("its end");
    client.cap("tools", 600, &time(49)).wait().expect("a cap");
    let proposal = client.propose_slots("customer", 60_000, &time(50)).wait().expect("a proposal").value.proposal;
    client.sign_off(proposal, Role::Platform, &time(51)).wait().expect("a signature");
    client.barrier(&time(52)).wait().expect("a barrier");
    // More than there are slots.
    for n in 0..SLOTS as i64 {
        claimed("search", &format!("search-{n}"), 60 + n);
    }
    let report = client.reconcile(false, &time(3_600)).wait().expect("a pass").value;
    assert!(report.merged >= 3, "{report:?}");
    client.reference("tools", ids[1], &time(3_601)).wait().expect("a reference to an alias");
    // Decided with a tombstone, dismissed, a wrong merge, escalated, and left open.
    let decided = dispute(client, "customer", &[ids[2], ids[3]], START_US + 3_602 * SECOND_US);
    client.respond("tools", decided, &time(3_603)).wait().expect("a response");
    let verdicts = [(ids[2], DisputeVerdict::Canonical), (ids[3], DisputeVerdict::Tombstone)];
    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
    client.arbitrate(decided, &verdicts, &time(3_604)).wait().expect("a verdict");
    until(client, decided, DisputeState::Closed);
    let dismissed = dispute(client, "compliance", &[ids[0], ids[1]], START_US + 3_605 * SECOND_US);
    client.dismiss(dismissed, &time(3_606)).wait().expect("a dismissal");
    until(client, dismissed, DisputeState::Closed);
    let wrong = dispute(client, "search", &[ids[6], ids[7]], START_US + 3_607 * SECOND_US);
    let verdicts = [(ids[7], DisputeVerdict::Canonical), (ids[6], DisputeVerdict::References)];
    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
    client.arbitrate(wrong, &verdicts, &time(3_608)).wait().expect("a verdict");
    until(client, wrong, DisputeState::Closed);
    let escalated = dispute(client, "compliance", &[ids[0], ids[4]], START_US + 3_609 * SECOND_US);
    client.escalate(escalated, &time(3_610)).wait().expect("an escalation");
    let verdicts = [ids[0], ids[4]].map(|event_id| Verdict { event_id, verdict: DisputeVerdict::Canonical });
    match client.arbitrate(escalated, &verdicts, &time(3_611)).wait() {
        Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::Forbidden),
        other => panic!("nobody has leadership: {other:?}"),
    }
    claimed("customer", "after the disputes", 3_612);
    // In the next quarter.
    let quarter = |seconds: i64| at(START_US + 60 * DAY_US + seconds * SECOND_US);
    claim(client, "customer", "a quarter later", START_US, START_US + 60 * DAY_US);
    client.reactivate(ids[5], &quarter(1)).wait().expect("a reactivation");
    client.reconcile(false, &quarter(3_600)).wait().expect("a pass");
    client.decommission("tools", false, &quarter(3_601)).wait().expect("a decommissioning");
    // What is sent again later is of the last day.
    let now = 60 * 86_400 + 3_700;
    let (claiming, referring, onboarding) = (keyed(now), keyed(now + 1), keyed(now + 2));
    let once = client.claim("search", &item("once"), &claiming).wait().expect("a claim").value;
    let canonical = client.reference("customer", ids[6], &referring).wait().expect("a reference").value;
    client.onboard("late", "a test", &onboarding).wait().expect("an onboarding");
    Retried { claim: (claiming, once), reference: (referring, ids[6], canonical), onboarding }
}

/// The next claims of all corpora that are open: their slots follow, and their ids.
fn goes_on(client: &Client, before: &Told, at_us: i64, quarter: &str) {
    let corpora = client.corpora(&options()).wait().expect("the corpora").value;
    for corpus in corpora.iter().filter(|corpus| corpus.decommissioned_at_us.is_none()) {
        let own = || before.rows.values().filter(|row| row.corpus == corpus.name);
        let last = own().map(|row| row.event_id).max();
        let in_quarter = own().filter(|row| quarter_of(row) == quarter).map(|row| row.claim_sequence).max();
        let claimed = claim(client, &corpus.name, "goes on", at_us, at_us);
        assert_eq!(claimed.claim_sequence, in_quarter.unwrap_or(0) + 1, "{}", corpus.name);
        assert!(last.is_none_or(|last| claimed.event_id > last), "{}", corpus.name);
        assert!(!before.rows.contains_key(&claimed.event_id));
    }
}

fn quarter_of(row: &Row) -> String {
    harness::plain::quarter_name(harness::plain::quarter_of(row.claim_timestamp_us))
}

#[test]
fn one_shard_becomes_four_and_one_again() {
    let scratch = scratch();
    let config = config(scratch.path());
    let path = |name: &str| scratch.path().join(name);
    format(&path("one"), 1, "replay");
    let daemon = served(&path("one"), &config);
    let retried = fill(&daemon.client());
    let due = told(&daemon.client());
    let is_logged = |operation: &str| due.entries.iter().any(|entry| entry.starts_with(operation));
    assert!(is_logged("alarm") && is_logged("forbidden") && is_logged("tombstone"), "{:?}", due.entries);
    // A daemon has it.
    let (code, _) = reshard(&path("one"), &path("four"), 4);
    assert_eq!(code, 3);
    daemon.stop();

    let done = resharded(&path("one"), &path("four"), 4);
    assert_eq!(done["rows"], due.rows.len());
    assert_eq!(done["pending_again"], 0);
    let places: Vec<_> = done["corpora"].as_array().expect("corpora").iter().map(|c| c["to"].clone()).collect();
    assert_eq!(places, [0, 1, 2, 3, 0, 1].map(Value::from), "the shard with the fewest, then the lowest");
    let daemon = served(&path("four"), &config);
    let client = daemon.client();
    assert_same(&told(&client), &due);
    retried.again(&client);
    assert_same(&told(&client), &due);
    let at_us = START_US + 60 * DAY_US + 4_000 * SECOND_US;
    goes_on(&client, &due, at_us, "2026-Q2");
    client.reconcile(false, &at(at_us + SECOND_US)).wait().expect("a pass");
    let row = due.rows.values().find(|row| row.corpus == "search").expect("a row").event_id;
    client.reference("late", row, &at(at_us + 2 * SECOND_US)).wait().expect("a reference");
    let due = told(&client);
    daemon.kill();

    resharded(&path("four"), &path("again"), 1);
    let daemon = served(&path("again"), &config);
    let client = daemon.client();
    assert_same(&told(&client), &due);
    retried.again(&client);
    let mut due = told(&client);
    goes_on(&client, &due, at_us + 10 * SECOND_US, "2026-Q2");
    // And as a ledger of its own it is recovered.
    daemon.kill();
    let daemon = served(&path("again"), &config);
    due.rows = all_rows(&daemon.client());
    goes_on(&daemon.client(), &due, at_us + 20 * SECOND_US, "2026-Q2");
    daemon.stop();
    assert_eq!(run_json("verify", &path("again"), &[]).0, 0);
}

#[test]
fn a_reshard_that_is_killed_starts_over() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("new"));
    format(&data, 2, "wall");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    for corpus in CORPORA {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
    }
    let items = vec![item("one of many"); 500];
    for _ in 0..10 {
        for corpus in CORPORA {
            client.claim_batch(corpus, &items, &options()).wait().expect("a batch");
        }
    }
    let due = client.totals("", &options()).wait().expect("totals").value;
    daemon.kill();
    let unfinished = scratch.path().join("new.resharding");
    // It may be done before it is killed: then once more.
    while !unfinished.exists() {
        let _ = fs::remove_dir_all(&to);
        let mut child = claimd()
            .args(["reshard", "--shards", "5", "--data"])
            .args([&data, &PathBuf::from("--to"), &to])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("claimd runs");
        let is_under_way = || fs::read_dir(&unfinished).is_ok_and(|entries| entries.count() > 2);
        while !is_under_way() && child.try_wait().expect("a child of ours").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
    }
    assert!(!to.exists());
    let done = resharded(&data, &to, 5);
    assert_eq!((&done["started_over"], &done["rows"]), (&Value::from(true), &Value::from(25_000)), "{done}");
    assert!(!unfinished.exists());
    let daemon = Daemon::start(&to);
    let client = daemon.client();
    assert_eq!(client.totals("", &options()).wait().expect("totals").value, due);
    let claimed = client.claim("tools", &item("next"), &options()).wait().expect("a claim").value;
    assert_eq!(claimed.claim_sequence, 5_001);
    daemon.stop();
}

/// Claims, references and retractions on all corpora while something global happens all the time, and a daemon that is
/// killed in the midst of it.
fn under_load(data: &Path) {
    let daemon = Daemon::start(data);
    let client = daemon.client();
    for corpus in CORPORA {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
    }
    let is_over = AtomicBool::new(false);
    let counter = AtomicU64::new(0);
    let why = RequestOptions { rationale: "a test".to_owned(), ..options() };
    std::thread::scope(|scope| {
        for (n, corpus) in CORPORA.iter().enumerate() {
            let other = CORPORA[(n + 1) % CORPORA.len()];
            let (is_over, counter, why, daemon) = (&is_over, &counter, &why, &daemon);
            scope.spawn(move || {
                let client = daemon.client();
                while !is_over.load(Ordering::Relaxed) {
                    let key = format!("{n}-{}", counter.fetch_add(1, Ordering::Relaxed));
                    let claimed = client.claim(corpus, &item(&key), why).wait().expect("a claim").value.event_id;
                    client.reference(other, claimed, why).wait().expect("a reference");
                    if key.ends_with('7') {
                        client.retract(corpus, claimed, ReasonCode::Other, why).wait().expect("a retraction");
                        client.reactivate(claimed, why).wait().expect("a reactivation");
                    }
                }
            });
        }
        for n in 0..40 {
            let sides = [CORPORA[n % 5], CORPORA[(n + 2) % 5]];
            let ids = sides.map(|corpus| client.claim(corpus, &item("disputed"), &why).wait().expect("a claim").value);
            let [a, b] = ids.map(|claimed| claimed.event_id);
            let opened = client.dispute(sides[0], &[a, b], &why).wait().expect("a dispute").value.dispute_id;
            client.cap(CORPORA[n % 5], 1_000_000 + n as u32, &why).wait().expect("a cap");
            until(&client, opened, DisputeState::Arbitrate);
            match n % 3 {
                0 => {
                    let verdicts = [(a, DisputeVerdict::Canonical), (b, DisputeVerdict::Tombstone)];
                    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
                    client.arbitrate(opened, &verdicts, &why).wait().expect("a verdict");
                }
                1 => drop(client.dismiss(opened, &why).wait().expect("a dismissal")),
                _ => {}
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    // Shard 1 may not have all of these when the daemon is gone.
    let pending: Vec<_> = (0..200).map(|n| client.cap("tools", 2_000_000 + n, &why)).collect();
    pending.into_iter().next().expect("one of them").wait().expect("a cap");
    daemon.kill();
}

#[test]
fn two_shards_become_one_and_three() {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    format(&path("two"), 2, "wall");
    under_load(&path("two"));
    let to_one = resharded(&path("two"), &path("one"), 1);
    let to_three = resharded(&path("one"), &path("three"), 3);
    assert_eq!((&to_one["rows"], &to_one["entries"]), (&to_three["rows"], &to_three["entries"]));
    let daemon = Daemon::start(&path("two"));
    let due = told(&daemon.client());
    daemon.stop();
    for name in ["one", "three"] {
        let daemon = Daemon::start(&path(name));
        let found = told(&daemon.client());
        assert_same_rows(&found, &due);
        let claimed = claim_now(&daemon.client(), "customer");
        assert!(found.rows.keys().all(|id| *id < claimed), "ids increase");
        daemon.stop();
        assert_eq!(run_json("verify", &path(name), &[]).0, 0);
    }
    // To what was made of it a ledger of the same number of shards is a third one.
    let superblock = |name: &str| {
        let (_, lines) = run_json("inspect", &path(name), &["--depth", "superblock", "--shard", "0"]);
        lines[0]["ledger"].clone()
    };
    assert_eq!(superblock("three"), to_three["to"]["ledger"]);
    assert_ne!(superblock("three"), superblock("two"));
}

fn claim_now(client: &Client, corpus: &str) -> Uuid {
    client.claim(corpus, &item("now"), &options()).wait().expect("a claim").value.event_id
}

/// Shard 1 lost what it had not made durable: it has less of the global order than shard 0, which sends it the rest at the next
/// start. A reshard has it follow before.
#[test]
fn a_shard_that_is_behind_follows_first() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("new"));
    format(&data, 2, "wall");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    for corpus in CORPORA {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
    }
    let why = RequestOptions { rationale: "a test".to_owned(), ..options() };
    let claimed = |corpus: &str| client.claim(corpus, &item("disputed"), &why).wait().expect("a claim").value.event_id;
    let (a, b, c) = (claimed("customer"), claimed("compliance"), claimed("billing"));
    client.retract("billing", c, ReasonCode::Other, &why).wait().expect("a retraction");
    daemon.stop();
    let file = claimd::ledger::shard_path(&data, 1);
    let behind = fs::read(&file).expect("a shard");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    let opened = client.dispute("customer", &[a, b], &why).wait().expect("a dispute").value.dispute_id;
    until(&client, opened, DisputeState::Arbitrate);
    let verdicts = [(a, DisputeVerdict::References), (b, DisputeVerdict::Canonical)];
    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
    client.arbitrate(opened, &verdicts, &why).wait().expect("a verdict");
    until(&client, opened, DisputeState::Closed);
    client.onboard("late", "", &options()).wait().expect("an onboarding");
    daemon.stop();
    fs::write(&file, behind).expect("our directory");
    let done = resharded(&data, &to, 3);
    assert!(done["followed"].as_u64().expect("a count") >= 6, "{done}");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    client.onboard("later", "", &options()).wait().expect("an answer once every shard has everything");
    let due = all_rows(&client);
    daemon.stop();
    let daemon = Daemon::start(&to);
    assert_each(all_rows(&daemon.client()).values(), due.values());
    daemon.stop();
}

/// In a ledger of replayed time one shard may be far ahead of another. What is said of a row stays behind its claim.
#[test]
fn shards_whose_times_are_far_apart_become_one() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("new"));
    format(&data, 2, "replay");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    onboard(&client, &CORPORA, START_US);
    let claimed = |corpus: &str, key: &str, seconds: i64| {
        let at_us = START_US + seconds * SECOND_US;
        claim(&client, corpus, key, at_us - SECOND_US, at_us).event_id
    };
    let time = |seconds: i64| at(START_US + seconds * SECOND_US);
    let near = claimed("customer", "near", 1);
    // Shard 1 is ahead.
    let far = claimed("compliance", "far", 10_000);
    let opened = dispute(&client, "customer", &[near, far], START_US + 2 * SECOND_US);
    claimed("customer", "between", 3);
    client.dismiss(opened, &time(4)).wait().expect("a dismissal");
    until(&client, opened, DisputeState::Closed);
    client.cap("tools", 60, &time(5)).wait().expect("a cap");
    claimed("tools", "later", 6);
    client.retract("compliance", far, ReasonCode::Other, &time(10_001)).wait().expect("a retraction");
    let due = told(&client);
    daemon.stop();
    resharded(&data, &to, 1);
    let daemon = Daemon::start(&to);
    assert_same(&told(&daemon.client()), &due);
    daemon.stop();
    // What is onboarded between the two can't have claims before the dispute.
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    onboard(&client, &["late", "later"], START_US + 7 * SECOND_US);
    let early = claim(&client, "later", "too early", START_US, START_US + 8 * SECOND_US);
    assert_eq!(early.claim_timestamp_us, START_US + 8 * SECOND_US, "it lives on shard 0");
    daemon.stop();
    fs::remove_dir_all(&to).expect("our directory");
    let output = run(&[
        "reshard",
        "--data",
        data.to_str().expect("a path"),
        "--to",
        to.to_str().expect("a path"),
        "--shards",
        "1",
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("the times of the old shards say another order") && !to.exists(), "{said}");
}

#[test]
fn what_a_repair_gave_up_is_not_given_again() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("new"));
    format(&data, 2, "wall");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    for corpus in CORPORA {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
    }
    for n in 0..100 {
        for corpus in CORPORA {
            client.claim(corpus, &item(&n.to_string()), &options()).wait().expect("a claim");
        }
    }
    daemon.stop();
    let (_, lines) = run_json("inspect", &data, &["--depth", "records", "--shard", "0"]);
    let claims: Vec<_> = lines.iter().filter(|line| line["operation"] == "claim").collect();
    flip(&data, 0, claims[claims.len() / 2]["file_offset"].as_u64().expect("an offset") + 40, 1);
    let (code, lines) = run_json("repair", &data, &["--accept-loss"]);
    assert_eq!(code, 0, "{lines:?}");
    resharded(&data, &to, 3);
    let claim_all = |data: &Path| {
        let daemon = Daemon::start(data);
        let client = daemon.client();
        let claimed =
            CORPORA.map(|corpus| client.claim(corpus, &item("next"), &options()).wait().expect("a claim").value);
        daemon.stop();
        claimed.map(|claimed| claimed.claim_sequence)
    };
    let (due, found) = (claim_all(&data), claim_all(&to));
    assert_eq!(found, due);
    assert!(due.iter().all(|slot| *slot > 100), "{due:?}");
}

/// On two shards one key can stand for two requests. On one it can't: of what came later a retry is refused.
#[test]
fn two_entries_with_one_key_keep_it_once() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("new"));
    format(&data, 2, "wall");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    for corpus in &CORPORA[..2] {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
    }
    let keyed = RequestOptions { idempotency_key: Some(new_key(None)), ..options() };
    let of_other = client.claim("compliance", &item("theirs"), &options()).wait().expect("a claim").value.event_id;
    let claimed = client.claim("customer", &item("ours"), &keyed).wait().expect("a claim").value;
    client.reference("customer", of_other, &keyed).wait().expect("a reference on another shard");
    let rows = all_rows(&client);
    daemon.stop();
    let (code, lines) = reshard(&data, &to, 1);
    assert_eq!((code, &lines[0]["keys_dropped"]), (0, &Value::from(1)), "{lines:?}");
    let daemon = Daemon::start(&to);
    let client = daemon.client();
    assert_each(all_rows(&client).values(), rows.values());
    assert_eq!(client.claim("customer", &item("ours"), &keyed).wait().expect("the old answer").value, claimed);
    match client.reference("customer", of_other, &keyed).wait() {
        Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::KeyReused),
        other => panic!("its key is another request's, and not {other:?}"),
    }
    daemon.stop();
}

#[test]
fn what_is_no_sound_ledger_or_no_new_directory_is_refused() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("new"));
    let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
    let said = |shards: &str| {
        let output = run(&["reshard", "--data", &text(&data), "--to", &text(&to), "--shards", shards]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, message) = said("2");
    assert!(code == Some(3) && message.contains("holds no ledger"), "{message}");
    format(&data, 2, "wall");
    let daemon = Daemon::start(&data);
    daemon.client().onboard("customer", "", &options()).wait().expect("an onboarding");
    for n in 0..50 {
        daemon.client().claim("customer", &item(&n.to_string()), &options()).wait().expect("a claim");
    }
    let (code, message) = said("2");
    assert!(code == Some(3) && message.contains("stop it first"), "{message}");
    daemon.stop();
    assert_eq!(said("0").0, Some(2));
    fs::create_dir(&to).expect("our directory");
    fs::write(to.join("something"), "else").expect("our directory");
    let (code, message) = said("2");
    assert!(code == Some(3) && message.contains("is not empty"), "{message}");
    fs::remove_file(to.join("something")).expect("our file");
    // What no reshard made is left alone.
    let making = scratch.path().join("new.resharding");
    fs::create_dir(&making).expect("our directory");
    fs::write(making.join("notes.txt"), "mine").expect("our directory");
    let (code, message) = said("2");
    assert!(code == Some(3) && message.contains("which no reshard made"), "{message}");
    fs::remove_dir_all(&making).expect("our directory");
    // An empty directory is taken.
    assert_eq!(said("3").0, Some(0));
    fs::remove_dir_all(&to).expect("our directory");
    let (_, lines) = run_json("inspect", &data, &["--depth", "records", "--shard", "0"]);
    let record = lines.iter().find(|line| line["operation"] == "claim").expect("a claim");
    flip(&data, 0, record["file_offset"].as_u64().expect("an offset") + 40, 1);
    let (code, message) = said("2");
    assert!(code == Some(1) && message.contains("claimd verify") && !to.exists(), "{message}");
}
