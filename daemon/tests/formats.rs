//! A ledger of every format version that was ever written opens, verifies, and says what it said then.
//!
//! `daemon/tests/formats/VERSION` has the files of a small ledger, compressed, and `told.txt`, what it told about itself to
//! the build that wrote it. A version's ledger is made once, by a build that writes it, if it is not there:
//! `CLAIMD_WRITE_LEDGER=1 cargo test -p claimd --test formats`. The one of a device has been copied to files.

mod harness;

use claim_client::{
    ClaimItem, Client, DisputeState, DisputeVerdict, Entry, ReasonCode, RequestOptions, Role, Row, ShardStatus,
    TailOptions, Uuid, Verdict, new_key,
};
use claim_engine::log::superblock::{FORMAT_VERSION, FORMAT_VERSION_OF_RING};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use harness::loops::Loop;
use harness::replay::{all_rows, at, claim, dispute, onboard, until};
use harness::{Daemon, claimd, item, options, run, scratch};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The versions that this build writes, to files and to devices; the second is the newest.
const VERSIONS_WRITTEN: [u32; 2] = [FORMAT_VERSION, FORMAT_VERSION_OF_RING];
/// Segments of a device of the second.
const RING_SEGMENTS: u64 = 8;
const SHARDS: u16 = 2;
/// 2026-03-03 09:14:02 UTC.
const START_US: i64 = 1_772_529_242_000_000;
const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(version.to_string())
}

fn shard_file(shard: u16) -> String {
    format!("shard-{shard:04}.ledger")
}

/// Something of everything that a log can hold.
fn fill(client: &Client) {
    onboard(client, &["customer", "compliance", "tools"], START_US);
    let time = |seconds: i64| at(START_US + seconds * SECOND_US);
    let claimed = |corpus, key, seconds: i64| {
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
    ];
    let mut large = item("with much to say");
    let metadata: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    large.metadata = &metadata;
    large.owning_corpus = "tools";
    let correlated = RequestOptions { correlation_id: Some(new_key(Some(START_US))), ..time(40) };
    for result in client.claim_batch("tools", &[large, item("small")], &correlated).wait().expect("a batch").value {
        result.expect("a claim");
    }
    client.reference("compliance", ids[2], &time(41)).wait().expect("a reference");
    client.retract("customer", ids[5], ReasonCode::FalseAlarm, &time(42)).wait().expect("a retraction");
    client.retract("tools", ids[3], ReasonCode::Duplicate, &time(43)).wait().expect("a retraction");
    client.reactivate(ids[3], &time(44)).wait().expect("a reactivation");
    client.incident(true, &time(45)).wait().expect("an incident");
    client.incident(false, &time(46)).wait().expect("its end");
    client.freeze("tools", &time(47)).wait().expect("a freeze");
    client.unfreeze("tools", &time(48)).wait().expect("its end");
    client.cap("tools", 600, &time(49)).wait().expect("a cap");
    let proposal = client.propose_slots("customer", 60_000, &time(50)).wait().expect("a proposal").value.proposal;
    client.sign_off(proposal, Role::Platform, &time(51)).wait().expect("a signature");
    client.barrier(&time(52)).wait().expect("a barrier");
    client.hold(2026, 1, &time(53)).wait().expect("a hold");
    client.release(2026, 1, &time(54)).wait().expect("its end");
    client.reconcile(false, &time(3_600)).wait().expect("a pass");
    // Decided, dismissed, and left open.
    let decided = dispute(client, "customer", &[ids[2], ids[3]], START_US + 3_601 * SECOND_US);
    client.respond("tools", decided, &time(3_602)).wait().expect("a response");
    client.escalate(decided, &time(3_603)).wait().expect("an escalation");
    let verdicts = [(ids[2], DisputeVerdict::Canonical), (ids[3], DisputeVerdict::Tombstone)];
    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
    client.arbitrate(decided, &verdicts, &time(3_604)).wait().expect("a verdict");
    until(client, decided, DisputeState::Closed);
    let dismissed = dispute(client, "compliance", &[ids[0], ids[1]], START_US + 3_605 * SECOND_US);
    client.dismiss(dismissed, &time(3_606)).wait().expect("a dismissal");
    until(client, dismissed, DisputeState::Closed);
    dispute(client, "compliance", &[ids[0], ids[4]], START_US + 3_607 * SECOND_US);
    // In the next quarter.
    claim(client, "customer", "a quarter later", START_US, START_US + 60 * DAY_US);
    client.decommission("tools", false, &at(START_US + 61 * DAY_US)).wait().expect("a decommissioning");
    // So much that segments of every shard are full, and sealed; and a change of a row in one that is.
    let metadata = vec![7; 60_000];
    for (corpus, hours) in (0..10).map(|n| (["customer", "compliance"][n % 2], n as i64)) {
        let at_us = START_US + 61 * DAY_US + (hours + 1) * 60 * SECOND_US;
        let items: Vec<_> = (0..6).map(|_| ClaimItem { metadata: &metadata, ..item("of weight") }).collect();
        for result in client.claim_batch(corpus, &items, &at(at_us)).wait().expect("a batch").value {
            result.expect("a claim");
        }
    }
    let all_sealed = || {
        let status = client.status(&options()).wait().expect("a status").value;
        status.shards.iter().all(|shard| shard.segments_sealed > 0)
    };
    while !all_sealed() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let late = at(START_US + 61 * DAY_US + 4 * 3_600 * SECOND_US);
    client.retract("customer", ids[2], ReasonCode::WrongCorpus, &late).wait().expect("a retraction");
}

fn of_row(row: &Row) -> String {
    let Row { event_id, corpus, lifecycle, claim_timestamp_us, claim_sequence, event_key, occurred_at_us, .. } = row;
    let metadata = (row.metadata.len(), row.metadata.iter().copied().map(u64::from).sum::<u64>());
    format!(
        "row {event_id} {corpus} {lifecycle} {claim_timestamp_us} {claim_sequence} {event_key:?} {occurred_at_us} {} {} {} {} \
         {metadata:?} {:?} {:?} {:?} {:?} {:?} {} {} {}",
        row.owning_corpus,
        row.hosting_corpus,
        row.category,
        row.taxonomy_version,
        row.canonical_id,
        row.dispute_id,
        row.tombstoned_at_us,
        row.tombstone_reason,
        row.reactivated_at_us,
        row.reconciliation_state,
        row.effective_quarter,
        row.references
    )
}

fn of_entry(entry: &Entry) -> String {
    let Entry { position, operation, corpus, timestamp_us, uid, rationale, detail, .. } = entry;
    let ids: Vec<Uuid> = entry.event_id.into_iter().chain(entry.event_ids.iter().copied()).collect();
    format!(
        "entry {position} {operation} {corpus:?} {timestamp_us} {uid} {rationale:?} {detail:?} {ids:?} {:?} {:?} {:?} {:?}",
        entry.canonical_id, entry.dispute_id, entry.correlation_id, entry.idempotency_key
    )
}

/// What a ledger tells about itself, with its entries up to these positions.
fn told(client: &Client, positions: &[u64]) -> String {
    let mut told = String::new();
    let mut line = |line: String| writeln!(told, "{line}").expect("a string takes it");
    line(format!("positions {}", positions.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")));
    all_rows(client).values().for_each(|row| line(of_row(row)));
    for corpus in client.corpora(&options()).wait().expect("the corpora").value {
        let closed = corpus.decommissioned_at_us;
        line(format!(
            "corpus {} {} {} {closed:?} {}",
            corpus.name, corpus.shard_prefix, corpus.shard, corpus.cap_per_minute
        ));
    }
    for dispute in client.disputes_page("", true, None, &options()).wait().expect("the disputes").value.disputes {
        let sides: Vec<_> = dispute.sides.iter().map(|side| (side.event_id, side.verdict)).collect();
        line(format!("dispute {} {} {} {sides:?}", dispute.dispute_id, dispute.state, dispute.updated_at_us));
    }
    for proposal in client.proposals(&options()).wait().expect("the proposals").value {
        line(format!("proposal {} {} {:?}", proposal.corpus, proposal.slots, proposal.signatures));
    }
    for total in client.totals("", &options()).wait().expect("the totals").value {
        let rows = [total.registered, total.disputed, total.referenced, total.tombstoned];
        line(format!("total {} {} {rows:?} {}", total.corpus, total.quarter, total.slots));
    }
    for (shard, last) in positions.iter().enumerate() {
        let tail = TailOptions { shard: shard as u16, from_position: 1, page_entries: 0, wait: Duration::ZERO };
        let entries = client.tail(tail, &options()).flat_map(|page| page.expect("a page").entries);
        entries.take_while(|entry| entry.position.position <= *last).for_each(|entry| line(of_entry(&entry)));
    }
    told
}

/// Years before, which are dropped since: so the logs have gone round when what is kept comes.
fn go_round(client: &Client) {
    const YEAR_US: i64 = 366 * DAY_US;
    let corpora = ["early", "earlier"];
    let metadata = vec![7; 60_000];
    for (n, years) in [21, 16, 11, 6].into_iter().enumerate() {
        let at_us = START_US - years * YEAR_US;
        if n == 0 {
            onboard(client, &corpora, at_us);
        }
        for corpus in corpora {
            let items: Vec<_> =
                (0..14).map(|_| ClaimItem { metadata: &metadata, occurred_at_us: at_us, ..item("gone") }).collect();
            for result in client.claim_batch(corpus, &items, &at(at_us)).wait().expect("a batch").value {
                result.expect("a claim");
            }
        }
        let is_settled = || {
            let status = client.status(&options()).wait().expect("a status").value;
            let is_ready = |shard: &ShardStatus| shard.segments_prepared >= shard.segments_used + 2;
            let is_behind = |shard: &ShardStatus| shard.quarter_seals as usize >= n;
            status.shards.iter().all(|shard| shard.retention_due.is_none() && is_ready(shard) && is_behind(shard))
        };
        while !is_settled() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn write_ledger(version: u32) {
    let scratch = scratch();
    let data = scratch.path().join("ledger");
    let is_ring = version == FORMAT_VERSION_OF_RING;
    let mut format = claimd();
    format.args(["format", "--segment-bytes", "1M", "--batch-bytes-max", "128K", "--clock", "replay", "--data"]);
    format.arg(&data);
    let names = (0..SHARDS).filter(|_| is_ring).map(|shard| shard.to_string());
    let devices = names.map(|name| Loop::new(scratch.path(), &name, (64 << 10) + (RING_SEGMENTS << 20)));
    let devices: Vec<_> = devices.collect();
    devices.iter().for_each(|device| {
        format.arg("--device").arg(&device.path);
    });
    if !is_ring {
        format.args(["--shards", "2"]);
    }
    assert!(format.status().expect("claimd runs").success());
    let daemon = Daemon::start(&data);
    if is_ring {
        go_round(&daemon.client());
    }
    fill(&daemon.client());
    let is_due = |shard: &ShardStatus| shard.retention_due.is_some();
    while daemon.client().status(&options()).wait().expect("a status").value.shards.iter().any(is_due) {
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.kill();
    if is_ring {
        harness::settle(&data, &|data| Daemon::start(data));
    }
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    let status = client.status(&options()).wait().expect("a status").value;
    let positions: Vec<u64> = status.shards.iter().map(|shard| shard.durable_position).collect();
    let has_gone_round = |shard: &ShardStatus| u64::from(shard.segments_prepared) > RING_SEGMENTS;
    assert!(!is_ring || status.shards.iter().all(has_gone_round), "{:?}", status.shards);
    let told = told(&client, &positions);
    daemon.kill();
    let folder = folder(version);
    fs::create_dir_all(&folder).expect("a folder of ours");
    fs::write(folder.join("told.txt"), told).expect("it can be written");
    for shard in 0..SHARDS {
        let mut from = File::open(data.join(shard_file(shard))).expect("a shard");
        let to = File::create(folder.join(shard_file(shard) + ".gz")).expect("a file of ours");
        let mut to = GzEncoder::new(to, Compression::best());
        io::copy(&mut from, &mut to).expect("it can be read and written");
        to.finish().expect("it can be written");
    }
}

/// Sends the last of what [`fill`] asks for again, as a client does that the build before left without an answer: it is told what took
/// effect then, and nothing does now. Whether the ledger has it.
fn ask_again(client: &Client, positions: &[u64]) -> bool {
    let tails = positions.iter().zip(0..).map(|(last, shard)| {
        let tail = TailOptions { shard, from_position: 1, page_entries: 0, wait: Duration::ZERO };
        let entries = client.tail(tail, &options()).flat_map(|page| page.expect("a page").entries);
        entries.take_while(move |entry| entry.position.position <= *last).collect::<Vec<_>>()
    });
    let entries: Vec<Entry> = tails.flatten().collect();
    let durable = || {
        let shards = client.status(&options()).wait().expect("a status").value.shards;
        shards.iter().map(|shard| shard.durable_position).collect::<Vec<_>>()
    };
    let before = durable();
    let of_weight = |entry: &&Entry| entry.detail.starts_with("of weight");
    let Some(last) = entries.iter().rfind(of_weight) else { return false };
    let as_then = |entry: &Entry| RequestOptions { idempotency_key: entry.idempotency_key, ..at(entry.timestamp_us) };
    let claimed = entries.iter().filter(|entry| of_weight(entry) && entry.idempotency_key == last.idempotency_key);
    let claimed: Vec<_> = claimed.map(|entry| entry.event_id).collect();
    let metadata = vec![7; 60_000];
    let items = vec![ClaimItem { metadata: &metadata, ..item("of weight") }; claimed.len()];
    let again = client.claim_batch(&last.corpus, &items, &as_then(last)).wait().expect("a batch").value;
    let again: Vec<_> = again.into_iter().map(|result| Some(result.expect("as it was").event_id)).collect();
    assert_eq!((again.len(), again), (6, claimed));
    let retraction =
        entries.iter().rfind(|entry| entry.reason_code == Some(ReasonCode::WrongCorpus)).expect("the last");
    let event_id = retraction.event_id.expect("a row's");
    let again = client.retract("customer", event_id, ReasonCode::WrongCorpus, &as_then(retraction)).wait();
    assert_eq!(again.expect("as it was").value, retraction.timestamp_us);
    assert_eq!(durable(), before, "nothing was appended");
    true
}

#[test]
fn ledgers_of_every_version_say_what_they_said() {
    if std::env::var_os("CLAIMD_WRITE_LEDGER").is_some() {
        VERSIONS_WRITTEN.into_iter().filter(|version| !folder(*version).exists()).for_each(write_ledger);
    }
    for version in 1..=FORMAT_VERSION_OF_RING {
        let folder = folder(version);
        let scratch = scratch();
        let data = scratch.path().join("ledger");
        fs::create_dir(&data).expect("our directory");
        for shard in 0..SHARDS {
            let packed = File::open(folder.join(shard_file(shard) + ".gz"));
            let mut from = GzDecoder::new(packed.unwrap_or_else(|e| panic!("a ledger of version {version}: {e}")));
            let mut to = File::create(data.join(shard_file(shard))).expect("our directory");
            io::copy(&mut from, &mut to).expect("it can be unpacked");
        }
        let due = fs::read_to_string(folder.join("told.txt")).expect("what it told");
        let positions = due.lines().next().and_then(|line| line.strip_prefix("positions "));
        let positions: Vec<u64> =
            positions.expect("positions first").split(' ').map(|n| n.parse().expect("a position")).collect();
        let verify = || {
            let output = run(&["verify", "--data", data.to_str().expect("a path of ours")]);
            assert!(output.status.success(), "version {version}: {}", String::from_utf8_lossy(&output.stdout));
        };
        verify();
        let daemon = Daemon::start(&data);
        let client = daemon.client();
        let found = told(&client, &positions);
        for (found, due) in found.lines().zip(due.lines()) {
            assert_eq!(found, due, "version {version}");
        }
        assert_eq!(found.lines().count(), due.lines().count(), "version {version}");
        let asked_again = ask_again(&client, &positions);
        assert!(
            asked_again || version == 1,
            "the ledger of version {version} ends with requests whose keys are in the window"
        );
        // It goes on.
        let ids = all_rows(&client);
        let claimed = claim(&client, "customer", "by a later build", START_US, START_US + 62 * DAY_US);
        assert!(!ids.contains_key(&claimed.event_id), "a new id is new");
        daemon.stop();
        verify();
    }
}
