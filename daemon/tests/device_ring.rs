//! A ledger whose logs go round on block devices, which are loop devices here: quarters leave, and what comes takes their places.

mod harness;

use claim_client::{ClaimItem, Client, ShardStatus, Uuid};
use harness::loops::Loop;
use harness::plain::quarter_of;
use harness::replay::{all_rows, at, onboard};
use harness::{Daemon, claimd, item, options, run_json, scratch};
use nix::fcntl::{Flock, FlockArg};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const YEAR_US: i64 = 366 * 86_400_000_000;
/// 2005-02-01.
const FIRST_US: i64 = 1_107_216_000_000_000;
const SEGMENT_BYTES: u64 = 1 << 20;
/// Segments that the devices hold, each its own number.
const RINGS: [u64; 2] = [11, 13];
/// Years in which a log goes round twice and more, and those of them in which the daemon is killed.
const YEARS: i64 = 24;
const KILLED_EVERY: i64 = 5;
/// Rows of a corpus are kept for so many years after the end of their quarter.
const RETENTION_YEARS: i64 = 4;
const CORPORA: [&str; 2] = ["alpha", "beta"];
/// Claims of a corpus in a year, of so many bytes: somewhat less than a segment of them.
const CLAIMS: usize = 10;
const METADATA_BYTES: usize = 60_000;

fn shards(client: &Client) -> Vec<ShardStatus> {
    client.status(&options()).wait().expect("a status").value.shards
}

/// Waits until something is so of every shard.
fn until(client: &Client, what: &str, is_so: impl Fn(&ShardStatus) -> bool) -> Vec<ShardStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        let shards = shards(client);
        if shards.iter().all(&is_so) {
            return shards;
        }
        assert!(Instant::now() < until, "{what}: {shards:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn large(metadata: &[u8], at_us: i64) -> ClaimItem<'_> {
    ClaimItem { metadata, occurred_at_us: at_us, ..item("of weight") }
}

/// A year's claims of every corpus, with when they were claimed.
fn claim_some(client: &Client, at_us: i64, rows: &mut BTreeMap<Uuid, i64>) {
    let metadata = vec![7; METADATA_BYTES];
    for corpus in CORPORA {
        let items = vec![large(&metadata, at_us); CLAIMS];
        for claimed in client.claim_batch(corpus, &items, &at(at_us)).wait().expect("a batch").value {
            rows.insert(claimed.expect("a claim").event_id, at_us);
        }
    }
}

/// What is kept at a moment.
fn kept(rows: &BTreeMap<Uuid, i64>, now_us: i64) -> BTreeSet<Uuid> {
    let is_kept = |claimed_us: i64| {
        let (year, quarter) = quarter_of(claimed_us);
        quarter_of(now_us) <= (year + RETENTION_YEARS, quarter)
    };
    rows.iter().filter(|(_, claimed_us)| is_kept(**claimed_us)).map(|(id, _)| *id).collect()
}

fn ids(client: &Client) -> BTreeSet<Uuid> {
    all_rows(client).into_keys().collect()
}

fn verify(data: &Path) {
    let (code, found) = run_json("verify", data, &[]);
    assert_eq!(code, 0, "{found:?}");
}

/// Claims until there is no room; how many were taken.
fn fill(client: &Client, corpus: &str, at_us: i64, rows: &mut BTreeMap<Uuid, i64>) -> usize {
    let metadata = vec![7; METADATA_BYTES];
    let until = Instant::now() + PATIENCE;
    let mut taken = 0;
    loop {
        match client.claim(corpus, &large(&metadata, at_us), &at(at_us)).wait() {
            Ok(claimed) => {
                rows.insert(claimed.event_id, at_us);
                taken += 1;
            }
            Err(error) if error.to_string().contains("NO_SPACE") => return taken,
            // Segments are zeroed and sealed more slowly than they fill here.
            Err(error) => assert!(error.to_string().contains("OVERLOADED"), "{error}"),
        }
        assert!(Instant::now() < until, "it is never full");
    }
}

#[test]
fn logs_go_round_on_their_devices() {
    let scratch = scratch();
    let data = scratch.path().join("ledger");
    // What is left over behind the last place is less than a segment.
    let devices = RINGS.map(|ring| {
        let bytes = (64 << 10) + ring * SEGMENT_BYTES + SEGMENT_BYTES / 2;
        Loop::new(scratch.path(), &ring.to_string(), bytes)
    });
    let mut format = claimd();
    format.args(["format", "--segment-bytes", "1M", "--batch-bytes-max", "128K", "--clock", "replay", "--data"]);
    format.arg(&data);
    for device in &devices {
        format.arg("--device").arg(&device.path);
    }
    assert!(format.status().expect("claimd runs").success());

    let mut daemon = Daemon::start(&data);
    let mut client = daemon.client();
    onboard(&client, &CORPORA, FIRST_US);
    let mut rows = BTreeMap::new();
    let mut now_us = FIRST_US;
    for year in 0..YEARS {
        // A drop is logged some time before the places of what it dropped are free.
        until(&client, "there is room", |shard| {
            shard.segments_prepared >= shard.segments_used + 2 && shard.ring_free_segments >= 2
        });
        claim_some(&client, now_us, &mut rows);
        if year % KILLED_EVERY == 0 {
            daemon.kill();
            daemon = Daemon::start(&data);
            client = daemon.client();
            verify(&data);
        }
        until(&client, "what is due is dropped", |shard| shard.retention_due.is_none());
        assert_eq!(ids(&client), kept(&rows, now_us), "year {year}");
        now_us += YEAR_US;
    }
    now_us -= YEAR_US;
    let status = shards(&client);
    let laps = |(shard, ring): (&ShardStatus, u64)| u64::from(shard.segments_prepared - 1) / ring;
    let laps: Vec<_> = status.iter().zip(RINGS).map(laps).collect();
    println!("laps {laps:?}");
    assert!(laps.iter().all(|laps| *laps >= 2), "{status:?}");
    for (shard, ring) in status.iter().zip(RINGS) {
        assert_eq!((shard.ring_segments, shard.free_bytes), (ring, shard.ring_free_segments * SEGMENT_BYTES));
        assert!((1..ring).contains(&shard.ring_free_segments), "{shard:?}");
    }

    // While somebody reads the ledger, what is dropped keeps its place.
    until(&client, "there is room", |shard| shard.ring_free_segments >= 2);
    let reading = Flock::lock(File::open(&data).expect("our directory"), FlockArg::LockShared).expect("a lock");
    let before = shards(&client);
    now_us += 2 * YEAR_US;
    claim_some(&client, now_us, &mut rows);
    until(&client, "the logs begin later", |shard| {
        shard.retention_due.is_none() && shard.first_segment > before[usize::from(shard.shard)].first_segment
    });
    let impatient = daemon.client_without_retry();
    let shard = client.corpora(&options()).wait().expect("the corpora").value[0].shard;
    assert!(fill(&impatient, CORPORA[0], now_us, &mut rows) > 10);
    let (found, before, ring) =
        (&shards(&client)[usize::from(shard)], &before[usize::from(shard)], RINGS[usize::from(shard)]);
    assert!(found.no_space && u64::from(found.segments_prepared) <= before.first_segment + ring, "{found:?}");
    assert_eq!(ids(&client), kept(&rows, now_us));
    // After that it goes on by itself.
    drop(reading);
    until(&client, "there is room", |shard| !shard.no_space);
    assert!(fill(&impatient, CORPORA[0], now_us, &mut rows) > 10);
    assert_eq!(ids(&client), kept(&rows, now_us));

    // A backup is of files, and makes a ledger of files, in which nothing goes round.
    let (backup, again) = (scratch.path().join("backup"), scratch.path().join("again"));
    let made = |verb: &str, from: (&str, &Path), to: (&str, &Path)| {
        let output = claimd().args([verb, from.0]).arg(from.1).arg(to.0).arg(to.1).output().expect("claimd runs");
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    };
    made("backup", ("--data", &data), ("--to", &backup));
    let before_stop = ids(&client);
    daemon.kill();
    verify(&data);
    verify(&backup);
    made("restore", ("--from", &backup), ("--data", &again));
    verify(&again);
    let restored = Daemon::start(&again);
    assert_eq!(ids(&restored.client()), before_stop);
    assert!(shards(&restored.client()).iter().all(|shard| shard.ring_segments == 0));
    restored.stop();
    let said = |data: &Path| {
        let (code, lines) = run_json("inspect", data, &[]);
        assert_eq!(code, 0, "{lines:?}");
        let of = |line: &serde_json::Value| line["what"] == "shard";
        let of_shard = |line: &serde_json::Value| (line["format_version"].clone(), line["ring_segments"].clone());
        lines.iter().filter(|line| of(line)).map(of_shard).collect::<Vec<_>>()
    };
    assert_eq!(said(&data), RINGS.map(|ring| (4.into(), ring.into())));
    assert_eq!(said(&again), RINGS.map(|_| (3.into(), 0.into())));

    // The ring is what the superblock says, however large the device has become.
    for (device, ring) in devices.iter().zip(RINGS) {
        File::options()
            .write(true)
            .open(scratch.path().join(ring.to_string()))
            .expect("the device's file")
            .set_len(64 << 20)
            .expect("room");
        let grown = std::process::Command::new("losetup").arg("--set-capacity").arg(&device.path).status();
        assert!(grown.expect("losetup runs").success());
    }
    let daemon = Daemon::start(&data);
    assert_eq!(ids(&daemon.client()), before_stop);
    assert_eq!(shards(&daemon.client()).iter().map(|shard| shard.ring_segments).collect::<Vec<_>>(), RINGS);
    daemon.stop();
    verify(&data);
}
