//! Retention on the real daemon: the sixteen corpora's thirteen years leave quarter by quarter, what stays is what the file says, and
//! backups, restores, holds and starts go on with what is left.

mod harness;

use claim_client::import::{self, Event, EventKind, ImportOptions, Source};
use claim_client::{Client, ClientError, ErrorCode, ReasonCode, ScanRange, ShardStatus, Uuid};
use harness::plain::{Rules, quarter_of};
use harness::replay::{Ledger, all_rows, at, claim, hold_everything, onboard, sixteen_corpora};
use harness::{claimd, options, run_json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// A day, and a year of such.
const DAY_US: i64 = 86_400_000_000;
const YEAR_US: i64 = 366 * DAY_US;
/// 2015-02-01.
const FIRST_US: i64 = 1_422_748_800_000_000;

/// Ids of the claims, by corpus and `ref`.
#[derive(Default)]
struct Ids(BTreeMap<(String, String), Uuid>);

impl import::ImportObserver for Ids {
    fn acknowledged(&mut self, corpus: &str, event_id: Uuid, reference: &str) {
        self.0.insert((corpus.to_owned(), reference.to_owned()), event_id);
    }
}

/// What the file says of a row's age.
struct Age {
    claimed_us: i64,
    is_retracted: bool,
    reactivated_us: Option<i64>,
}

/// Ages of all rows, by id, and the file's last moment. Of what is done to a row whose retention is over the file knows nothing.
fn ages(ids: &Ids, rules: &Rules) -> (BTreeMap<Uuid, Age>, i64) {
    let mut ages: BTreeMap<Uuid, Age> = BTreeMap::new();
    let mut source = Source::open(&sixteen_corpora()).expect("the file is there");
    let mut last_us = 0;
    while let Some(Event { corpus, kind, at }) = source.next_event().expect("an event") {
        last_us = at * 1_000_000;
        let id = |reference: &String| ids.0.get(&(corpus.clone(), reference.clone())).copied();
        match &kind {
            EventKind::Claim { reference, .. } => {
                let age = Age { claimed_us: last_us, is_retracted: false, reactivated_us: None };
                ages.insert(id(reference).expect("every claim is acknowledged"), age);
            }
            EventKind::Retract { reference, .. } | EventKind::Reactivate { reference, .. } => {
                let Some(age) = id(reference).and_then(|id| ages.get_mut(&id)) else { continue };
                let is_back = matches!(kind, EventKind::Reactivate { .. });
                if is_back == age.is_retracted && !is_over(age, last_us, rules) {
                    age.is_retracted = !is_back;
                    age.reactivated_us = if is_back { Some(last_us) } else { age.reactivated_us };
                }
            }
            EventKind::Reference { .. } => {}
        }
    }
    (ages, last_us)
}

/// Whether so many years have gone by since the end of the quarter that a row counts in.
fn is_over(age: &Age, at_us: i64, rules: &Rules) -> bool {
    let own = quarter_of(age.claimed_us);
    let back = age.reactivated_us.map(quarter_of).filter(|quarter| *quarter != own);
    let (year, quarter) = back.map_or(own, harness::plain::next_quarter);
    quarter_of(at_us) > (year + rules.retention_years, quarter)
}

fn shards(client: &Client) -> Vec<ShardStatus> {
    client.status(&options()).wait().expect("a status").value.shards
}

/// Waits until nothing is due any more, and what was dropped is no part of the files.
fn wait_until_dropped(client: &Client, dropped_to: &str) -> Vec<ShardStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        let shards = shards(client);
        let is_done = |shard: &ShardStatus| {
            shard.retention_due.is_none() && shard.dropped_to.as_deref() == Some(dropped_to) && shard.first_segment > 0
        };
        if shards.iter().all(is_done) {
            return shards;
        }
        assert!(Instant::now() < until, "nothing more is dropped: {shards:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes that the shards' files take, and their lengths.
fn disk_usage(data: &Path, shards: u16) -> (u64, u64) {
    let files = (0..shards).map(|shard| std::fs::metadata(data.join(format!("shard-{shard:04}.ledger"))));
    let files: Vec<_> = files.map(|file| file.expect("a shard's file")).collect();
    (files.iter().map(|file| file.blocks() * 512).sum(), files.iter().map(|file| file.len()).sum())
}

/// Waits until a quarter can end with its segment: there is one ahead.
fn wait_until_prepared(client: &Client) {
    let until = Instant::now() + PATIENCE;
    while shards(client).iter().any(|shard| shard.segments_prepared < shard.segments_used + 2) {
        assert!(Instant::now() < until, "no segment is prepared");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn refused(error: &ClientError) -> Option<ErrorCode> {
    error.code()
}

#[test]
fn thirteen_years_leave_quarter_by_quarter() {
    let rules = Rules::default();
    let mut ledger = Ledger::new(2, None);
    let client = ledger.client();
    let mut ids = Ids::default();
    import::import(&client, &sixteen_corpora(), &ImportOptions::default(), &mut ids).expect("an import");
    let (ages, last_us) = ages(&ids, &rules);
    // A year later, in a new quarter: the clock is moved by a claim on each shard.
    let corpora = client.corpora(&options()).wait().expect("the corpora").value;
    let later_us = last_us + YEAR_US;
    for shard in 0..2 {
        let corpus = corpora.iter().find(|corpus| corpus.shard == shard).expect("a corpus on every shard");
        claim(&client, &corpus.name, "much later", later_us, later_us);
    }
    let (year, quarter) = quarter_of(later_us);
    // The last quarter that ended four years before this one began.
    let last = if quarter == 0 { (year - 5, 3) } else { (year - 4, quarter - 1) };
    let last = format!("{}-Q{}", last.0, last.1 + 1);
    let status = wait_until_dropped(&client, &last);
    println!("dropped to {last}: {:?}", status.iter().map(|s| (s.first_segment, s.quarter_seals)).collect::<Vec<_>>());

    // Exactly the rows within four years after the end of their quarter remain.
    let expected: BTreeSet<Uuid> =
        ages.iter().filter(|(_, age)| !is_over(age, later_us, &rules)).map(|(id, _)| *id).collect();
    let rows = all_rows(&client);
    let found: BTreeSet<Uuid> =
        rows.values().filter(|row| row.claim_timestamp_us < later_us).map(|r| r.event_id).collect();
    assert_eq!(found, expected);
    let carried = expected.iter().filter(|id| ages[*id].reactivated_us.is_some()).count();
    println!("{} of {} rows remain, {carried} of them came back once", expected.len(), ages.len());
    let gone: Vec<_> = ages.iter().filter(|(id, _)| !expected.contains(*id)).step_by(97).collect();
    assert!(gone.len() > 100);
    for (id, age) in gone {
        let error = client.lookup(*id, &options()).wait().expect_err("it was dropped");
        assert_eq!(refused(&error), Some(ErrorCode::Expired));
        let (year, quarter) = quarter_of(age.claimed_us);
        assert!(error.to_string().contains(&format!("{year}-Q{}", quarter + 1)), "{error}");
    }

    // The space has gone back to the file system.
    let until = Instant::now() + PATIENCE;
    let segment_bytes = 4 << 20;
    loop {
        let (used, length) = disk_usage(&ledger.data(), 2);
        let dropped: u64 = status.iter().map(|shard| shard.first_segment * segment_bytes).sum();
        if used <= length - dropped + (1 << 20) {
            println!("the files have {length} bytes and take {used}");
            break;
        }
        assert!(Instant::now() < until, "{used} of {length} bytes are taken, {dropped} were dropped");
        std::thread::sleep(Duration::from_millis(50));
    }

    // What is left verifies, with the seals of what is not; and a start knows as much as before.
    ledger.crash();
    let client = ledger.client();
    assert_eq!(all_rows(&client), rows);
    ledger.stop();
    let (code, found) = run_json("verify", &ledger.data(), &[]);
    assert_eq!(code, 0, "{found:?}");
    let summary = found.last().expect("a summary");
    for (shard, status) in summary["shards"].as_array().expect("shards").iter().zip(&status) {
        let seals = shard["seals"].as_array().expect("seals");
        assert_eq!(seals.len() as u32, status.quarter_seals, "{shard}");
        assert_eq!(seals.last().expect("a seal")["last_quarter"], last.as_str());
    }

    let (code, lines) = run_json("inspect", &ledger.data(), &["--depth", "segments", "--shard", "0"]);
    // The last seal may have been named since the status was asked for.
    assert!(code == 0 && lines[0]["first_segment"].as_u64() >= Some(status[0].first_segment), "{}", lines[0]);
    let seals = lines.iter().filter(|line| line["what"] == "quarter-seal").count();
    assert_eq!(seals as u32, status[0].quarter_seals);
    let sealed: Vec<_> = lines.iter().filter(|line| line["sealed"] == true).collect();
    assert!(
        !sealed.is_empty() && sealed.iter().all(|line| line["index_bytes"].as_u64().is_some_and(|bytes| bytes > 0))
    );

    // So it is with another number of shards.
    harness::settle(&ledger.data(), &|data| harness::Daemon::start(data));
    let daemon = harness::Daemon::start(&ledger.data());
    let totals = daemon.client().totals("", &options()).wait().expect("totals").value;
    daemon.stop();
    let three = ledger.dir.path().join("three");
    let (code, said) = run_json("reshard", &ledger.data(), &["--shards", "3", "--to", three.to_str().expect("a path")]);
    assert_eq!((code, &said[0]["rows"]), (0, &rows.len().into()), "{said:?}");
    assert_eq!(run_json("verify", &three, &[]).0, 0);
    let resharded = harness::Daemon::start(&three);
    let client = resharded.client();
    assert_eq!(all_rows(&client), rows);
    assert_eq!(client.totals("", &options()).wait().expect("totals").value, totals);
    let (gone, _) = ages.iter().find(|(id, _)| !expected.contains(*id)).expect("one that is gone");
    let error = client.lookup(*gone, &options()).wait().expect_err("it was dropped");
    assert_eq!(refused(&error), Some(ErrorCode::Expired));
    drop(client);
    resharded.stop();

    // A backup of what is left makes the same ledger again.
    let backup = ledger.dir.path().join("backup");
    let made =
        claimd().args(["backup", "--data"]).arg(ledger.data()).arg("--to").arg(&backup).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (code, found) = run_json("verify", &backup, &[]);
    assert_eq!(code, 0, "{found:?}");
    let again = ledger.dir.path().join("again");
    let made = claimd().arg("restore").arg("--from").arg(&backup).arg("--data").arg(&again).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let restored = harness::Daemon::start(&again);
    let of_restored = all_rows(&restored.client());
    assert_eq!(of_restored.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
    restored.stop();
}

#[test]
fn a_hold_keeps_everything_until_it_ends() {
    let ledger = Ledger::new(1, None);
    let client = ledger.client();
    onboard(&client, &["alpha"], FIRST_US);
    let first = claim(&client, "alpha", "first", FIRST_US, FIRST_US);
    client.hold(2015, 1, &at(FIRST_US)).wait().expect("a hold");
    let twice = client.hold(2015, 1, &at(FIRST_US)).wait().expect_err("it is held");
    assert_eq!(refused(&twice), Some(ErrorCode::BadTransition));
    let later_us = FIRST_US + 5 * YEAR_US;
    wait_until_prepared(&client);
    claim(&client, "alpha", "second", later_us, later_us);
    let until = Instant::now() + PATIENCE;
    loop {
        let shard = &shards(&client)[0];
        // A replay ledger's own first entries are of 1970.
        if shard.retention_due.as_ref().is_some_and(|due| due.ends_with("2015-Q1")) {
            let waits_for = shard.retention_waits_for.clone().expect("it waits");
            assert!(waits_for.contains("hold") && shard.holds == ["2015-Q1"], "{shard:?}");
            assert_eq!((shard.retention_rows, shard.first_segment), (1, 0));
            break;
        }
        assert!(Instant::now() < until, "it is never due: {shard:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // It is there, and its retention is over.
    let row = client.lookup(first.event_id, &options()).wait().expect("it is held").value;
    assert_eq!(row.lifecycle, claim_client::Lifecycle::Expired);
    client.release(2015, 1, &at(later_us)).wait().expect("the end of the hold");
    wait_until_dropped(&client, "2015-Q1");
    let error = client.lookup(first.event_id, &options()).wait().expect_err("it was dropped");
    assert_eq!(refused(&error), Some(ErrorCode::Expired));
    let error = client.hold(2015, 1, &at(later_us)).wait().expect_err("it is gone");
    assert_eq!(refused(&error), Some(ErrorCode::Expired));
    let rows: Vec<_> = client.scan("alpha", ScanRange::default(), &options()).rows().collect();
    assert_eq!(rows.len(), 1);
}

/// The tombstone's own entry goes before the row does.
#[test]
fn a_row_that_outlives_its_quarter_says_why_it_is_tombstoned() {
    const FEBRUARY_2020_US: i64 = 1_580_515_200_000_000;
    let mut ledger = Ledger::new(1, None);
    let client = ledger.client();
    onboard(&client, &["alpha"], FEBRUARY_2020_US);
    let row = claim(&client, "alpha", "back and gone", FEBRUARY_2020_US, FEBRUARY_2020_US).event_id;
    let later = |days: i64| at(FEBRUARY_2020_US + days * DAY_US);
    client.retract("alpha", row, ReasonCode::Other, &later(1)).wait().expect("a retraction");
    wait_until_prepared(&client);
    client.reactivate(row, &later(180)).wait().expect("a reactivation");
    client.retract("alpha", row, ReasonCode::FalseAlarm, &later(181)).wait().expect("a retraction");
    let mut first_segment = 0;
    // Its claim goes, and then what became of it.
    for (days, dropped_to) in [(1_522, "2020-Q1"), (1_705, "2020-Q3")] {
        let at_us = FEBRUARY_2020_US + days * DAY_US;
        wait_until_prepared(&client);
        claim(&client, "alpha", dropped_to, at_us, at_us);
        wait_until_dropped(&client, dropped_to);
        let until = Instant::now() + PATIENCE;
        while shards(&client)[0].first_segment == first_segment {
            assert!(Instant::now() < until, "the log does not begin later");
            std::thread::sleep(Duration::from_millis(20));
        }
        first_segment = shards(&client)[0].first_segment;
    }
    drop(client);
    ledger.crash();
    let client = ledger.client();
    let found = client.lookup(row, &options()).wait().expect("it outlives its quarter").value;
    assert_eq!(found.tombstone_reason_code, Some(ReasonCode::FalseAlarm));
    assert_eq!(found.tombstone_reason.as_deref(), Some("a test"));
    let rows: Vec<_> = client.scan("alpha", ScanRange::default(), &options()).rows().collect();
    assert!(rows.len() == 3 && rows.iter().all(Result::is_ok), "{rows:?}");
}

/// The archive has what the ledger drops, and nothing is dropped before it has it. It makes the ledger as it is and as it was.
#[test]
fn the_archive_has_what_is_dropped() {
    let mut ledger = Ledger::new(1, None);
    let client = ledger.client();
    hold_everything(&client);
    onboard(&client, &["alpha"], FIRST_US);
    let first = claim(&client, "alpha", "first", FIRST_US, FIRST_US);
    let later_us = FIRST_US + 5 * YEAR_US;
    wait_until_prepared(&client);
    claim(&client, "alpha", "second", later_us, later_us);
    drop(client);
    ledger.stop();
    let archive = ledger.dir.path().join("archive");
    let archive_path = archive.to_str().expect("a path of ours").to_owned();
    let more = ["--segment-archive", &archive_path, "--segment-archive-every", "1"];
    ledger.daemon = Some(harness::Daemon::start_more(&ledger.data(), &more));
    let client = ledger.client();
    client.release(1970, 1, &at(later_us)).wait().expect("the end of the hold");
    wait_until_dropped(&client, "2015-Q1");
    let rows = all_rows(&client);
    drop(client);
    ledger.stop();
    let (code, found) = run_json("verify", &archive, &[]);
    assert_eq!(code, 0, "{found:?}");
    // With the drop itself, which the last round may have been too early for.
    let made = claimd().args(["backup", "--data"]).arg(ledger.data()).arg("--to").arg(&archive).output();
    let made = made.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (code, found) = run_json("verify", &archive, &[]);
    assert_eq!(code, 0, "{found:?}");
    let latest = ledger.dir.path().join("latest");
    let made = claimd().arg("restore").arg("--from").arg(&archive).arg("--data").arg(&latest).output();
    let made = made.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut restored = harness::Daemon::start(&latest);
    wait_until_dropped(&restored.client(), "2015-Q1");
    restored.kill();
    restored = harness::Daemon::start(&latest);
    let of_restored = all_rows(&restored.client());
    assert_eq!(of_restored.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
    let error = restored.client().lookup(first.event_id, &options()).wait().expect_err("it was dropped");
    assert_eq!(refused(&error), Some(ErrorCode::Expired));
    restored.stop();
    let (code, found) = run_json("verify", &latest, &[]);
    assert_eq!(code, 0, "{found:?}");
    // As it was before the drop.
    let again = ledger.dir.path().join("again");
    let to = "2015-06-01T00:00:00Z";
    let made = claimd().args(["restore", "--to", to, "--from"]).arg(&archive).arg("--data").arg(&again).output();
    let made = made.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let restored = harness::Daemon::start(&again);
    let row = restored.client().lookup(first.event_id, &options()).wait().expect("the archive has it").value;
    assert_eq!(row.event_id, first.event_id);
    restored.stop();
}

/// With the first quarter shard 0 has dropped all that it ever decided, and goes on counting from there.
#[test]
fn what_dropped_its_last_global_entry_is_backed_up_and_restored() {
    for shards in [1, 2] {
        let mut ledger = Ledger::new(shards, None);
        let client = ledger.client();
        onboard(&client, &["alpha"], FIRST_US);
        claim(&client, "alpha", "first", FIRST_US, FIRST_US);
        let later_us = FIRST_US + 5 * YEAR_US;
        wait_until_prepared(&client);
        let second = claim(&client, "alpha", "second", later_us, later_us);
        let until = Instant::now() + PATIENCE;
        // Time goes by where somebody asks for something, and that is the shard of alpha.
        while !self::shards(&client).iter().any(|shard| shard.first_segment > 0) {
            assert!(Instant::now() < until, "nothing is dropped");
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(client);
        ledger.stop();
        let (code, found) = run_json("verify", &ledger.data(), &[]);
        assert_eq!(code, 0, "{found:?}");
        let run = |command: &str, from: &str, from_path: &Path, to: &str, to_path: &Path| {
            let made = claimd().arg(command).arg(from).arg(from_path).arg(to).arg(to_path).output().expect("it runs");
            assert!(made.status.success(), "{command}: {}", String::from_utf8_lossy(&made.stderr));
        };
        let (backup, again) = (ledger.dir.path().join("backup"), ledger.dir.path().join("again"));
        run("backup", "--data", &ledger.data(), "--to", &backup);
        let mut to_before = claimd();
        to_before.args(["restore", "--to", "2015-06-01T00:00:00Z", "--from"]).arg(&backup).arg("--data").arg(&again);
        let made = to_before.output().expect("it runs");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(!made.status.success() && said.contains("was dropped before it was made"), "{said}");
        run("restore", "--from", &backup, "--data", &again);
        let (code, found) = run_json("verify", &again, &[]);
        assert_eq!(code, 0, "{found:?}");
        let restored = harness::Daemon::start(&again);
        let client = restored.client();
        let row = client.lookup(second.event_id, &options()).wait().expect("it is there").value;
        assert_eq!(row.event_id, second.event_id);
        onboard(&client, &["beta"], later_us);
        claim(&client, "beta", "third", later_us, later_us);
        drop(client);
        restored.stop();
    }
}
