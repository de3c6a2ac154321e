//! `claimd backup`, `claimd restore` and the segment archive with the real binary: beside a daemon under load, what was there
//! at a moment comes back row for row, nothing that was given out is given out again, and a flipped bit is refused with its
//! place.

mod harness;

use claim_client::{
    AuditOperation, Client, DisputeState, DisputeVerdict, ReasonCode, ReconciliationState, RequestOptions, Row,
    ScanRange, TailOptions, Uuid, Verdict,
};
use harness::replay::until;
use harness::{Daemon, claimd, format, item, options, run_json, scratch};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Two shards: the first and the third live on shard 0, the others on shard 1.
const CORPORA: [&str; 4] = ["alpha", "beta", "load-0", "load-1"];
/// What is compared row for row; the others are load.
const QUIET: [&str; 2] = ["alpha", "beta"];
const CLAIMS: usize = 60;
const BATCH: usize = 100;
/// How often something is looked for, and how long in all.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 1_200;

/// What needs a reason has one.
fn because() -> RequestOptions {
    RequestOptions { rationale: "a test".to_owned(), ..options() }
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock behind 1970");
    claim_engine::time::rfc3339(since.as_micros() as i64)
}

fn corpora(client: &Client) {
    for corpus in CORPORA {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
    }
}

fn claim(client: &Client, corpus: &str, key: &str) -> (Uuid, u64) {
    let claimed = client.claim(corpus, &item(key), &options()).wait().expect("a claim").value;
    (claimed.event_id, claimed.claim_sequence)
}

/// Claims, references, retractions, and two disputes over both shards: one is decided, one waits to be.
fn work(client: &Client, name: &str) -> Uuid {
    let mut ids = Vec::new();
    for n in 0..CLAIMS {
        for corpus in QUIET {
            ids.push(claim(client, corpus, &format!("{name}-{corpus}-{n}")).0);
        }
    }
    for id in ids.iter().skip(10).step_by(7) {
        client.reference("load-0", *id, &options()).wait().expect("a reference");
    }
    for id in ids.iter().skip(11).step_by(9) {
        client.retract(&corpus_of(client, *id), *id, ReasonCode::Other, &because()).wait().expect("a retraction");
    }
    let open = |pair: &[Uuid]| client.dispute("alpha", pair, &because()).wait().expect("a dispute").value.dispute_id;
    let (decided, waiting) = (open(&ids[..2]), open(&ids[2..4]));
    until(client, decided, DisputeState::Arbitrate);
    let verdicts = [(ids[0], DisputeVerdict::Canonical), (ids[1], DisputeVerdict::References)];
    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
    client.arbitrate(decided, &verdicts, &because()).wait().expect("a decision");
    until(client, decided, DisputeState::Closed);
    until(client, waiting, DisputeState::Arbitrate);
    waiting
}

fn corpus_of(client: &Client, id: Uuid) -> String {
    client.lookup(id, &options()).wait().expect("a row").value.corpus
}

/// Rows of the quiet corpora. Whether a pass has covered them is the time's doing.
fn rows(client: &Client) -> BTreeMap<Uuid, Row> {
    let scanned = QUIET.iter().flat_map(|corpus| client.scan(corpus, ScanRange::default(), &options()).rows());
    let scanned = scanned.map(|row| row.expect("a row"));
    scanned.map(|row| (row.event_id, Row { reconciliation_state: ReconciliationState::Pending, ..row })).collect()
}

/// What each row's history says; the entries of disputes without the places at which shards logged their copies.
fn histories<'a>(client: &Client, ids: impl Iterator<Item = &'a Uuid>) -> BTreeMap<Uuid, BTreeSet<String>> {
    let of = |id: &Uuid| {
        let page = client.history(*id, 0, &options()).wait().expect("a history").value;
        assert!(page.next.is_none(), "a short history");
        let told = page.entries.iter().map(|entry| match entry.global_sequence {
            0 => format!("{entry:?}"),
            sequence => format!("{sequence} {} {:?} {}", entry.operation.as_str(), entry.dispute_id, entry.rationale),
        });
        (*id, told.collect())
    };
    ids.map(of).collect()
}

/// What a ledger had at a moment.
struct Moment {
    at: String,
    rows: BTreeMap<Uuid, Row>,
    histories: BTreeMap<Uuid, BTreeSet<String>>,
    waiting: Uuid,
}

impl Moment {
    fn of(client: &Client, waiting: Uuid) -> Moment {
        let rows = rows(client);
        let histories = histories(client, rows.keys());
        Moment { at: now(), rows, histories, waiting }
    }

    fn is_in(&self, client: &Client) {
        let found = rows(client);
        let (expected, found_ids): (BTreeSet<_>, BTreeSet<_>) = (self.rows.keys().collect(), found.keys().collect());
        assert_eq!(found_ids, expected, "the rows at {}", self.at);
        assert_eq!(found, self.rows, "the rows at {}", self.at);
        assert_eq!(histories(client, found.keys()), self.histories, "the histories at {}", self.at);
        let dispute = client.dispute_lookup(self.waiting, &options()).wait().expect("a dispute").value;
        assert_eq!(dispute.state, DisputeState::Arbitrate, "the dispute that waited at {}", self.at);
        // It goes on where it was.
        client.dismiss(self.waiting, &because()).wait().expect("a dismissal");
        until(client, self.waiting, DisputeState::Closed);
    }
}

type Loads = Vec<JoinHandle<BTreeSet<Uuid>>>;

/// Claims without an end; gives the ids that were acknowledged.
fn load(daemon: &Daemon, over: &Arc<AtomicBool>) -> Loads {
    let start = |corpus: &'static str| {
        let (client, over) = (daemon.client(), Arc::clone(over));
        std::thread::spawn(move || {
            let metadata = vec![7; 400];
            let items = vec![claim_client::ClaimItem { metadata: &metadata, ..item("load") }; BATCH];
            let mut ids = BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                let claimed = client.claim_batch(corpus, &items, &options()).wait().expect("a batch").value;
                ids.extend(claimed.into_iter().map(|claimed| claimed.expect("a claim").event_id));
            }
            ids
        })
    };
    vec![start("load-0"), start("load-1")]
}

fn backup(data: &Path, to: &Path) -> Value {
    let (code, mut lines) = run_json("backup", data, &["--to", to.to_str().expect("a path of text")]);
    assert_eq!(code, 0, "{lines:?}");
    lines.remove(0)
}

fn restore(from: &Path, data: &Path, more: &[&str]) -> (i32, Vec<Value>) {
    let from = from.to_str().expect("a path of text");
    run_json("restore", data, &[&["--from", from], more].concat())
}

fn restored(from: &Path, data: &Path, more: &[&str]) -> Value {
    let (code, mut lines) = restore(from, data, more);
    assert_eq!(code, 0, "{lines:?}");
    let (code, findings) = run_json("verify", data, &[]);
    assert_eq!(code, 0, "{findings:?}");
    lines.remove(0)
}

/// Files of a backup, by name, with what tells whether they were written anew.
fn files(backup: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    for shard in fs::read_dir(backup).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        if shard.is_dir() {
            for file in fs::read_dir(shard).expect("a directory").map(|entry| entry.expect("an entry")) {
                let metadata = file.metadata().expect("a file");
                found.insert(file.path(), (metadata.ino(), metadata.len()));
            }
        }
    }
    found
}

/// Waits for something that comes by itself.
fn look<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS_MAX {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    panic!("{what} does not come");
}

/// Waits until both shards have used some more segments.
fn roll(data: &Path) {
    let lengths = || [0, 1].map(|shard| fs::metadata(claimd::ledger::shard_path(data, shard)).expect("a file").len());
    let before = lengths();
    look("a segment", || lengths().iter().zip(before).all(|(now, before)| *now >= before + (8 << 20)).then_some(()));
}

/// Entries of a kind in a shard's log.
fn entries(client: &Client, shard: u16, operation: AuditOperation) -> usize {
    let (mut from_position, mut found) = (1, 0);
    loop {
        let tail = TailOptions { shard, from_position, page_entries: 1_000, wait: Duration::ZERO };
        let page = client.tail_page(tail, &options()).wait().expect("a page").value;
        if page.entries.is_empty() {
            return found;
        }
        found += page.entries.iter().filter(|entry| entry.operation == operation).count();
        from_position = page.next_position;
    }
}

#[test]
fn beside_a_daemon_under_load_every_moment_comes_back_and_no_id_comes_twice() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("backup"));
    format(&data, 2, "wall");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    corpora(&client);
    let over = Arc::new(AtomicBool::new(false));
    let loads = load(&daemon, &over);
    let first = Moment::of(&client, work(&client, "first"));
    roll(&data);
    let made = backup(&data, &to);
    assert_eq!(made["mode"], "online");
    let before = files(&to);
    let full = |files: &BTreeMap<PathBuf, (u64, u64)>| {
        let is_full = |path: &Path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            name.starts_with("segment-") && !name.contains(".to-")
        };
        files.iter().filter(|(path, _)| is_full(path)).map(|(path, file)| (path.clone(), *file)).collect::<Vec<_>>()
    };
    assert!(full(&before).len() >= 2, "{before:?}");

    let second = Moment::of(&client, work(&client, "second"));
    // A place between the moments: the last row of each quiet corpus, as its shard logged it.
    let positions = ["alpha", "beta"].map(|corpus| {
        let claimed = client.claim(corpus, &item("between"), &options()).wait().expect("a claim");
        (claimed.positions[0].shard, claimed.positions[0].position, claimed.value.event_id)
    });
    let third = Moment::of(&client, work(&client, "third"));
    roll(&data);
    let made = backup(&data, &to);
    let after = files(&to);
    for (path, file) in full(&before) {
        assert_eq!(after.get(&path), Some(&file), "{} is written anew", path.display());
    }
    let kept: u64 = full(&before).iter().map(|(_, (_, bytes))| bytes).sum();
    assert!(full(&after).len() > full(&before).len());
    assert!(made["bytes_copied"].as_u64().unwrap() + kept <= made["bytes"].as_u64().unwrap(), "{made}");

    // More that the backup does not know of.
    work(&client, "late");
    over.store(true, Ordering::Relaxed);
    let mut given: BTreeSet<_> = loads.into_iter().flat_map(|load| load.join().expect("a load")).collect();
    given.extend(rows(&client).into_keys());
    daemon.stop();
    let (code, lines) = run_json("verify", &to, &[]);
    assert_eq!(code, 0, "{lines:?}");
    let shards = lines.last().and_then(|summary| summary["shards"].as_array()).expect("a summary");
    assert!(shards.iter().all(|shard| shard["rows_in_memory_max"].as_u64() > Some(0)), "{lines:?}");
    // The same in words, without the option.
    let output = claimd().arg("verify").arg(&to).output().expect("claimd runs");
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(": sound"), "{output:?}");

    let slots: HashSet<_> = third.rows.values().map(|row| (row.corpus.clone(), row.claim_sequence)).collect();
    let check = |name: &str, more: &[&str], moment: Option<&Moment>| {
        let data = scratch.path().join(name);
        let said = restored(&to, &data, more);
        assert!(said["rto_seconds"].is_f64() && said["backup_age_seconds"].is_f64(), "{said}");
        let daemon = Daemon::start(&data);
        let client = daemon.client();
        if let Some(moment) = moment {
            moment.is_in(&client);
        }
        for corpus in CORPORA {
            let (id, slot) = claim(&client, corpus, "after");
            assert!(id > *given.last().expect("some"), "{id} is not above all that were given");
            assert!(!slots.contains(&(corpus.to_owned(), slot)), "slot {slot} of {corpus} is given twice");
        }
        for shard in [0, 1] {
            assert_eq!(entries(&client, shard, AuditOperation::Restore), 1, "shard {shard}");
        }
        look("the barrier", || (entries(&client, 1, AuditOperation::Barrier) == 1).then_some(()));
        assert_eq!(entries(&client, 0, AuditOperation::Barrier), 1);
        let found = rows(&client);
        daemon.stop();
        found
    };
    check("first", &["--to", &first.at], Some(&first));
    check("second", &["--to", &second.at], Some(&second));
    check("all", &[], Some(&third));
    let text: Vec<_> = positions.iter().map(|(shard, position, _)| format!("{shard}:{position}")).collect();
    let found = check("positions", &["--to", &text.join(",")], None);
    for (_, _, id) in positions {
        assert!(found.contains_key(&id), "the row at the position itself");
    }
    let expected: BTreeSet<_> = second.rows.keys().copied().chain(positions.map(|(_, _, id)| id)).collect();
    let found: BTreeSet<_> = found.into_iter().filter(|(_, row)| row.event_key != "after").map(|(id, _)| id).collect();
    assert_eq!(found, expected);

    // What the backup does not have can't be asked for.
    let nowhere = scratch.path().join("nowhere");
    for wrong in ["0:999999999", "7:1", "12", &now(), "1971-01-01T00:00:00Z"] {
        let (code, lines) = restore(&to, &nowhere, &["--to", wrong]);
        assert_eq!(code, 2, "{wrong}: {lines:?}");
        assert!(!nowhere.exists(), "{wrong}");
    }
    assert_eq!(restore(&to, &data, &[]).0, 3, "a ledger is not restored over");
}

/// A stopped ledger with some segments, and its backup.
fn stopped(scratch: &Path) -> (PathBuf, PathBuf) {
    let (data, to) = (scratch.join("ledger"), scratch.join("backup"));
    format(&data, 2, "wall");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    corpora(&client);
    work(&client, "first");
    let over = Arc::new(AtomicBool::new(false));
    let loads = load(&daemon, &over);
    roll(&data);
    over.store(true, Ordering::Relaxed);
    loads.into_iter().for_each(|load| drop(load.join().expect("a load")));
    daemon.stop();
    backup(&data, &to);
    (data, to)
}

fn flip(path: &Path, byte: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut buffer = [0];
    file.read_exact_at(&mut buffer, byte).expect("a byte");
    buffer[0] ^= 1 << (byte % 8);
    file.write_all_at(&buffer, byte).expect("a byte");
}

#[test]
fn one_flipped_bit_is_refused_with_its_place_before_anything_is_written() {
    let scratch = scratch();
    let (_, to) = stopped(scratch.path());
    let nowhere = scratch.path().join("nowhere");
    let mut places = 0;
    for (path, (_, bytes)) in files(&to) {
        let name = path.strip_prefix(&to).expect("a file of the backup").to_string_lossy().into_owned();
        for byte in [0, 40, bytes / 3, bytes / 2, bytes - 200, bytes - 1] {
            flip(&path, byte);
            let (code, lines) = run_json("verify", &to, &[]);
            assert_eq!(code, 1, "{name}, byte {byte}: {lines:?}");
            let damage: Vec<_> = lines.iter().filter(|line| line["what"] == "damage").collect();
            let named = damage.iter().any(|line| line["file"] == *name && line["offset"].as_u64().unwrap() <= byte);
            assert!(named, "{name}, byte {byte}: {damage:?}");
            if name.contains("segment") && byte >= 4096 {
                let has_batch = |line: &&&Value| line["batches"][0].is_u64() && line["segment"].is_u64();
                assert!(damage.iter().any(|line| has_batch(&line)), "{name}, byte {byte}: {damage:?}");
            }
            let from = to.to_str().expect("a path of text");
            let output = claimd().args(["restore", "--from", from, "--data"]).arg(&nowhere).output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name}, byte {byte}: {said}");
            assert!(said.contains("nothing was written") && said.contains(&name), "{name}, byte {byte}: {said}");
            assert!(!nowhere.exists(), "{name}, byte {byte}");
            flip(&path, byte);
            places += 1;
        }
    }
    assert!(places >= 24, "{places}");
    let manifest = to.join("manifest.json");
    for byte in [3, 20, 90, fs::metadata(&manifest).expect("a file").len() - 2] {
        flip(&manifest, byte);
        assert_eq!(run_json("verify", &to, &[]).0, 1, "byte {byte}");
        assert_eq!(restore(&to, &nowhere, &[]).0, 1, "byte {byte}");
        flip(&manifest, byte);
    }
    // A file that is gone, or was cut.
    let (path, (_, bytes)) = files(&to).into_iter().next_back().expect("a file");
    fs::File::options().write(true).open(&path).expect("a file").set_len(bytes - 4096).expect("a shorter file");
    assert_eq!(run_json("verify", &to, &[]).0, 1);
    fs::remove_file(&path).expect("a file");
    let (code, lines) = run_json("verify", &to, &[]);
    assert!(code == 1 && lines[0]["message"].as_str().is_some_and(|what| what.contains("missing")), "{lines:?}");
}

/// Of a shard, the batches in order: where each is in the file, and whether it ends its segment.
fn batches(data: &Path, shard: &str) -> Vec<(u64, bool)> {
    let (code, lines) = run_json("inspect", data, &["--depth", "batches", "--shard", shard]);
    assert_eq!(code, 0);
    let is_batch = |line: &&Value| line["what"] == "batch";
    let place = |line: &Value| (line["file_offset"].as_u64().unwrap(), line["ends_segment"] == true);
    lines.iter().filter(is_batch).map(place).collect()
}

#[test]
fn a_damaged_ledger_is_not_copied_and_its_backup_stays() {
    let scratch = scratch();
    let (data, to) = stopped(scratch.path());
    let before = files(&to);
    let known = batches(&data, "1");
    let daemon = Daemon::start(&data);
    for event in ["one more", "another", "the last"] {
        claim(&daemon.client(), "beta", event);
    }
    daemon.stop();
    let there = batches(&data, "1");
    assert!(there.len() >= known.len() + 3, "{} {}", known.len(), there.len());
    // Damage in the first batch that the backup lacks, and in one that it reads again with the open segment, if it has one.
    let mut open = known.iter().rev().take_while(|(_, ends_segment)| !ends_segment);
    // Of the last one the backup knows more, and says so in other words.
    let read_again = open.nth(1);
    for (at, _) in [Some(&there[known.len()]), read_again].into_iter().flatten() {
        harness::flip(&data, 1, at + 60, 2);
        let output = claimd().args(["backup", "--to"]).arg(&to).arg("--data").arg(&data).output().expect("claimd runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("file offset {at}")), "{said}");
        let is_named = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "log");
        let after = files(&to);
        assert!(before.keys().filter(is_named).all(|path| after.contains_key(path)), "{before:?} {after:?}");
        assert_eq!(run_json("verify", &to, &[]).0, 0);
        harness::flip(&data, 1, at + 60, 2);
    }
    backup(&data, &to);
}

/// Runs a backup and kills it once the backup's files have so many bytes, or lets it end if they never do.
fn killed(data: &Path, to: &Path, at_bytes: u64) {
    let mut command = claimd();
    command.arg("backup").arg("--data").arg(data).arg("--to").arg(to).arg("--json");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    while child.try_wait().expect("a child of ours").is_none() {
        if backup_bytes(to) >= at_bytes {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
        }
    }
}

/// Bytes of whatever is in a backup now, half of it or not.
fn backup_bytes(to: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(to) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => backup_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        // It had a name for a moment only.
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

#[test]
fn a_backup_that_is_killed_leaves_the_one_before_or_is_whole() {
    let scratch = scratch();
    let (data, first) = stopped(scratch.path());
    let rows_of = |data: &Path| {
        let daemon = Daemon::start(data);
        let rows: BTreeSet<Uuid> = rows(&daemon.client()).into_keys().collect();
        daemon.stop();
        rows
    };
    let (before, to) = (rows_of(&data), scratch.path().join("killed"));
    // Into an empty directory: what is not whole is no backup, and the next one goes on from there.
    let whole_bytes = backup_bytes(&first);
    for eighth in 0..8 {
        killed(&data, &to, whole_bytes * eighth / 8);
        let (code, lines) = run_json("verify", &to, &[]);
        let restored_to = scratch.path().join(format!("first-{eighth}"));
        if code == 0 {
            restored(&to, &restored_to, &[]);
            assert_eq!(rows_of(&restored_to), before);
        } else {
            assert_ne!(restore(&to, &restored_to, &[]).0, 0, "{lines:?}");
        }
    }
    backup(&data, &to);
    // Beside a daemon that has gone on: there is a whole one at every moment.
    let daemon = Daemon::start(&data);
    work(&daemon.client(), "second");
    let restored_to = scratch.path().join("restored");
    for kilobytes in [0, 1, 16, 256, 1024, 4096, 16384] {
        let over = Arc::new(AtomicBool::new(false));
        let loads = load(&daemon, &over);
        killed(&data, &to, backup_bytes(&to) + kilobytes * 1024);
        over.store(true, Ordering::Relaxed);
        loads.into_iter().for_each(|load| drop(load.join().expect("a load")));
        let (code, lines) = run_json("verify", &to, &[]);
        assert_eq!(code, 0, "{kilobytes} KiB: {lines:?}");
        restored(&to, &restored_to, &[]);
        assert!(rows_of(&restored_to).is_superset(&before), "{kilobytes} KiB");
        fs::remove_dir_all(&restored_to).expect("our directory");
    }
    daemon.stop();
    let after = rows_of(&data);
    assert!(after.len() > before.len());
    backup(&data, &to);
    restored(&to, &restored_to, &[]);
    assert_eq!(rows_of(&restored_to), after);
}

#[test]
fn a_restored_ledger_is_backed_up_and_restored_again() {
    let scratch = scratch();
    for clock in ["wall", "replay"] {
        let dir = scratch.path().join(clock);
        let (data, to) = (dir.join("ledger"), dir.join("backup"));
        fs::create_dir(&dir).expect("our directory");
        format(&data, 1, clock);
        let mut given = HashSet::new();
        let mut greatest = Uuid::nil();
        let mut at_us = 1_700_000_000_000_000;
        let mut claims = |daemon: &Daemon, name: &str| {
            let client = daemon.client();
            let mut options = options();
            for n in 0..50 {
                if clock == "replay" {
                    at_us += 1_000_000;
                    options.at_us = Some(at_us);
                }
                let claimed = client.claim("alpha", &item(&format!("{name}-{n}")), &options).wait().expect("a claim");
                assert!(claimed.value.event_id > greatest, "{name}: {} comes again", claimed.value.event_id);
                greatest = claimed.value.event_id;
                assert!(
                    given.insert(claimed.value.claim_sequence),
                    "{name}: slot {} twice",
                    claimed.value.claim_sequence
                );
            }
        };
        let daemon = Daemon::start(&data);
        let mut at_first = options();
        at_first.at_us = (clock == "replay").then_some(1_700_000_000_000_000);
        daemon.client().onboard("alpha", "", &at_first).wait().expect("an onboarding");
        claims(&daemon, "first");
        daemon.stop();
        let made = backup(&data, &to);
        assert_eq!((&made["mode"], &made["consistent_to"]), (&Value::from("offline"), &Value::Null));
        let again = backup(&data, &to);
        assert_eq!(again["bytes_copied"], 0, "nothing is new");
        // The same cut twice, each time with claims behind it that the next restore leaves out.
        let (mut from, mut served) = (to.clone(), data.clone());
        for round in 0..3 {
            served = dir.join(format!("restored-{round}"));
            let cut = run_json("inspect", &data, &["--depth", "records"]).1;
            let records: Vec<_> = cut.iter().filter(|line| line["what"] == "record").collect();
            let position = records[records.len() / 2]["position"].as_u64().unwrap().to_string();
            // The last time with the restore entry of the time before.
            if round < 2 {
                let said = restored(&from, &served, &["--to", &position]);
                assert_eq!(said["shards"][0]["position"].to_string(), position);
            } else {
                restored(&from, &served, &[]);
            }
            let daemon = Daemon::start(&served);
            claims(&daemon, &format!("round {round}"));
            daemon.stop();
            // It is another history now.
            let other =
                claimd().args(["backup", "--to"]).arg(&to).arg("--data").arg(&served).output().expect("it runs");
            let said = String::from_utf8_lossy(&other.stderr);
            assert!(other.status.code() == Some(3) && said.contains("repaired or restored since"), "{said}");
            from = dir.join(format!("backup-{round}"));
            backup(&served, &from);
        }
        let (code, lines) = run_json("verify", &served, &[]);
        assert_eq!(code, 0, "{lines:?}");
    }
}

#[test]
fn a_drill_is_remembered_with_the_ledger_that_it_is_of() {
    let scratch = scratch();
    let [data, to, other, nothing] = ["ledger", "backup", "other", "nothing"].map(|name| scratch.path().join(name));
    format(&data, 2, "wall");
    format(&other, 2, "wall");
    fs::create_dir(&nothing).expect("our directory");
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    corpora(&client);
    backup(&data, &to);
    let status = || client.status(&options()).wait().expect("a status").value;
    assert_eq!((status().drill_at_us, status().drill_rto_ms, status().drill_rpo_ms), (None, 0, None));
    let restored_to = scratch.path().join("restored");
    for wrong in [&other, &nothing, &restored_to] {
        let (code, _) = restore(&to, &restored_to, &["--remember", wrong.to_str().expect("a path of text")]);
        assert_eq!(code, 2, "{wrong:?}");
        assert!(!restored_to.exists() && !wrong.join("restore-drill.json").exists(), "{wrong:?}");
    }
    let remember = ["--remember", data.to_str().expect("a path of text")];
    let said = restored(&to, &restored_to, &remember);
    let shown = status();
    let near = |ms: f64, seconds: &Value| (ms / 1e3 - seconds.as_f64().expect("a number")).abs() <= 0.002;
    assert!(near(shown.drill_rto_ms as f64, &said["rto_seconds"]), "{said} {shown:?}");
    assert!(near(shown.drill_rpo_ms.expect("an age") as f64, &said["backup_age_seconds"]), "{said} {shown:?}");
    let first_us = shown.drill_at_us.expect("a drill");
    assert_eq!(said["remembered_in"], Value::from(data.to_str()), "{said}");
    // What is damaged is not shown, and the next one takes its place.
    let file = data.join("restore-drill.json");
    fs::write(&file, "{").expect("written");
    assert_eq!((status().drill_at_us, status().drill_rto_ms, status().drill_rpo_ms), (None, 0, None));
    fs::remove_dir_all(&restored_to).expect("our directory");
    restored(&to, &restored_to, &remember);
    assert!(status().drill_at_us.expect("a drill") > first_us);
    daemon.stop();
}

#[test]
fn the_status_says_how_the_segment_archive_is_doing() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("archive"));
    format(&data, 1, "wall");
    fs::write(&to, "in the way").expect("written");
    let archive = ["--segment-archive", to.to_str().expect("a path of text"), "--segment-archive-every", "1"];
    let daemon = Daemon::start_more(&data, &archive);
    let client = daemon.client();
    let status = || client.status(&options()).wait().expect("a status").value;
    let error = look("an error", || status().archive_error);
    assert!(error.contains("archive"), "{error}");
    assert_eq!(status().archive_at_us, None);
    fs::remove_file(&to).expect("our file");
    let at_us = look("a round", || status().archive_at_us);
    assert_eq!(status().archive_error, None);
    look("another round", || status().archive_at_us.filter(|later_us| *later_us > at_us));
    daemon.stop();
}

#[test]
fn the_segment_archive_follows_a_daemon_and_a_ledger_comes_back_from_it() {
    let scratch = scratch();
    let (data, to) = (scratch.path().join("ledger"), scratch.path().join("archive"));
    format(&data, 2, "wall");
    let archive = ["--segment-archive", to.to_str().expect("a path of text"), "--segment-archive-every", "1"];
    let daemon = Daemon::start_more(&data, &archive);
    let client = daemon.client();
    corpora(&client);
    let moment = Moment::of(&client, work(&client, "archived"));
    let at = moment.at.clone();
    look("the archive", || {
        let text = fs::read_to_string(to.join("manifest.json")).ok()?;
        let said: Value = serde_json::from_str(&text).expect("JSON");
        let consistent_to_us = said["manifest"]["consistent_to_us"].as_i64()?;
        (claim_engine::time::rfc3339(consistent_to_us) > at).then_some(())
    });
    // Where nothing has happened nothing is copied.
    let twice = scratch.path().join("twice");
    assert_eq!(backup(&data, &twice)["mode"], "online");
    assert_eq!(backup(&data, &twice)["bytes_copied"], 0);
    daemon.kill();
    assert_eq!(run_json("verify", &to, &[]).0, 0);
    let served = scratch.path().join("restored");
    restored(&to, &served, &[]);
    let daemon = Daemon::start(&served);
    moment.is_in(&daemon.client());
    daemon.stop();
    // Two at once have one of them wait for the other, or say so; a foreign directory is refused.
    let output = claimd().args(["backup", "--to"]).arg(&served).arg("--data").arg(&data).output().expect("claimd runs");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}
