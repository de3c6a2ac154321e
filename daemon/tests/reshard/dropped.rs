//! What has dropped quarters is resharded: what is gone stays gone, what is left is the same, and quarters go on being dropped.

use crate::harness::replay::{Ledger, all_rows, at, claim, dispute, onboard, until};
use crate::harness::{Daemon, claimd, options, run, run_json, scratch, settle};
use crate::told::{assert_same_left, told};
use crate::{CORPORA, DAY_US, files, reshard};
use claim_client::{
    Client, ClientError, DisputeState, DisputeVerdict, ErrorCode, ReasonCode, RequestOptions, Role, ShardStatus, Uuid,
    Verdict,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// 2015-02-01.
const FIRST_US: i64 = 1_422_748_800_000_000;
/// A quarter, about.
const QUARTER_US: i64 = 91 * DAY_US;

fn shards(client: &Client) -> Vec<ShardStatus> {
    client.status(&options()).wait().expect("a status").value.shards
}

fn wait_until(client: &Client, what: &str, is_so: impl Fn(&ShardStatus) -> bool) {
    let until = Instant::now() + PATIENCE;
    while !shards(client).iter().all(&is_so) {
        assert!(Instant::now() < until, "{what}: {:?}", shards(client));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a quarter can end with its segment: there is one ahead.
fn wait_until_prepared(client: &Client) {
    wait_until(client, "no segment is prepared", |shard| shard.segments_prepared >= shard.segments_used + 2);
}

/// Waits until all shards have dropped so much, and their logs begin behind it.
fn wait_until_dropped(client: &Client, dropped_to: &str) {
    wait_until(client, "it is not dropped", |shard| {
        shard.retention_due.is_none() && shard.dropped_to.as_deref() == Some(dropped_to)
    });
}

/// Some years: every quarter claims of all corpora, and what keeps rows alive longer. Gives all ids.
fn years(client: &Client, quarters: i64) -> Vec<Uuid> {
    onboard(client, &CORPORA[..4], FIRST_US);
    let mut ids: Vec<Uuid> = Vec::new();
    let mut claimed_of: BTreeMap<(i64, usize), Uuid> = BTreeMap::new();
    for quarter in 0..quarters {
        wait_until_prepared(client);
        let from_us = FIRST_US + quarter * QUARTER_US;
        let time = |seconds: i64| at(from_us + seconds * 1_000_000);
        if quarter == 3 {
            onboard(client, &CORPORA[4..], from_us);
        }
        let corpora = if quarter < 3 { 4 } else { CORPORA.len() };
        for (n, corpus) in CORPORA[..corpora].iter().enumerate() {
            for row in 0..3 {
                let at_us = from_us + (n as i64 * 10 + row) * 1_000_000;
                let id = claim(client, corpus, &format!("{corpus}-{quarter}-{row}"), at_us, at_us).event_id;
                ids.push(id);
                if row == 0 {
                    claimed_of.insert((quarter, n), id);
                }
            }
        }
        let row = |quarter: i64, corpus: usize| claimed_of[&(quarter, corpus)];
        client.reference(CORPORA[1], row(quarter, 0), &time(100)).wait().expect("a reference");
        // A row of each corpus is retracted, and comes back a year later; some of these go again.
        for (n, corpus) in CORPORA[..4].iter().enumerate() {
            client.retract(corpus, row(quarter, n), ReasonCode::Other, &time(110)).wait().expect("a retraction");
            if quarter >= 4 && (quarter + n as i64) % 2 == 0 {
                client.reactivate(row(quarter - 4, n), &time(120)).wait().expect("a reactivation");
                if n == 2 {
                    let why = time(121);
                    client.retract(corpus, row(quarter - 4, n), ReasonCode::FalseAlarm, &why).wait().expect("again");
                }
            }
        }
        // One that came back is disputed, and becomes an alias.
        if quarter % 6 == 5 {
            let back = row(quarter - 4, 1);
            let other = claim(client, CORPORA[3], "another", from_us, from_us + 131_000_000).event_id;
            let opened = dispute(client, CORPORA[1], &[back, other], from_us + 132_000_000);
            let verdicts = [(other, DisputeVerdict::Canonical), (back, DisputeVerdict::References)];
            let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
            client.arbitrate(opened, &verdicts, &time(133)).wait().expect("a verdict");
            until(client, opened, DisputeState::Closed);
        }
        client.cap(CORPORA[0], 1_000 + quarter as u32, &time(140)).wait().expect("a cap");
        if quarter % 5 == 2 {
            client.reconcile(false, &time(7_200)).wait().expect("a pass");
        }
        if quarter == 1 {
            let proposal = client.propose_slots(CORPORA[0], 70_000, &time(7_300)).wait().expect("a proposal").value;
            client.sign_off(proposal.proposal, Role::Platform, &time(7_301)).wait().expect("a signature");
            client.hold(2018, 3, &time(7_302)).wait().expect("a hold");
            // Stays open for ever.
            let at_us = from_us + 7_302_000_000;
            let ids = [0, 1].map(|n| claim(client, CORPORA[n], "for ever", at_us, at_us).event_id);
            dispute(client, CORPORA[0], &ids, from_us + 7_303_000_000);
        }
        // The last thing of each quarter, on each shard.
        client.barrier(&time(7_400)).wait().expect("a barrier");
    }
    ids
}

/// What the seals of all shards count, by corpus and quarter.
fn sealed(data: &Path) -> BTreeMap<(u64, String), Vec<u64>> {
    let (code, found) = run_json("verify", data, &[]);
    assert_eq!(code, 0, "{found:?}");
    let mut sums: BTreeMap<(u64, String), Vec<u64>> = BTreeMap::new();
    let shards = found.last().expect("a summary")["shards"].as_array().expect("shards").clone();
    for shard in &shards {
        let mut quarters = BTreeSet::new();
        for seal in shard["seals"].as_array().expect("seals") {
            assert!(quarters.insert(seal["last_quarter"].as_str().expect("a quarter").to_owned()), "{seal}");
            for total in seal["totals"].as_array().expect("totals") {
                let key =
                    (total["prefix"].as_u64().expect("a prefix"), total["quarter"].as_str().expect("one").to_owned());
                let rows = total["rows"].as_array().expect("rows").iter().map(|n| n.as_u64().expect("a count"));
                let sum = sums.entry(key).or_insert_with(|| vec![0; 4]);
                sum.iter_mut().zip(rows).for_each(|(sum, n)| *sum += n);
            }
        }
    }
    sums
}

fn resharded(data: &Path, to: &Path, shards: u16) {
    let before = files(data);
    let (code, lines) = reshard(data, to, shards);
    assert_eq!(code, 0, "{lines:?}");
    assert!(files(data) == before, "the old ledger is as it was");
    assert_eq!(sealed(to), sealed(data), "the seals count the same");
    for shard in 0..shards {
        let shard = shard.to_string();
        let (code, lines) = run_json("inspect", to, &["--depth", "records", "--shard", &shard]);
        let last = lines.iter().rfind(|line| line["what"] == "record").expect("a record");
        assert_eq!((code, &last["operation"]), (0, &Value::from("reshard")), "{last}");
        let (code, lines) = run_json("inspect", to, &["--depth", "segments", "--shard", &shard]);
        assert_eq!((code, &lines[0]["first_segment"]), (0, &Value::from(1)), "{}", lines[0]);
    }
}

fn expired(client: &Client, id: Uuid) -> bool {
    match client.lookup(id, &options()).wait() {
        Ok(_) => false,
        Err(ClientError::Refused(error)) if error.code == ErrorCode::Expired => true,
        Err(error) => panic!("{id}: {error}"),
    }
}

/// Ids and slots go on: those of the rows that are gone are never given again.
fn goes_on(client: &Client, ids: &mut Vec<Uuid>, at_us: i64, slots: &mut BTreeMap<String, u64>) {
    for corpus in CORPORA {
        let claimed = claim(client, corpus, "goes on", at_us, at_us);
        assert!(ids.iter().all(|id| *id < claimed.event_id), "{corpus}");
        let slot = slots.entry(corpus.to_owned()).or_default();
        *slot += 1;
        assert_eq!(claimed.claim_sequence, *slot, "{corpus}");
    }
    let new = all_rows(client).into_keys().filter(|id| !ids.contains(id)).collect::<Vec<_>>();
    ids.extend(new);
}

#[test]
fn what_has_dropped_quarters_becomes_one_and_three_and_two() {
    let mut ledger = Ledger::new(2, Some("[slots]\nper_quarter = 1000\n"));
    let client = ledger.client();
    // The last quarter is 2021-Q1.
    let quarters = 25;
    let mut ids = years(&client, quarters);
    let mut last_us = FIRST_US + (quarters - 1) * QUARTER_US + 8_000_000_000;
    wait_until_dropped(&client, "2016-Q4");
    drop(client);
    ledger.stop();
    let path = |name: &str| ledger.dir.path().join(name);
    let config = ledger.config.clone().expect("one");
    let start = |data: &Path| Daemon::start_more(data, &["--config", config.to_str().expect("a path of ours")]);
    settle(&ledger.data(), &start);
    let daemon = start(&ledger.data());
    let due = told(&daemon.client());
    daemon.stop();
    let carried = due.rows.values().filter(|row| row.reactivated_at_us.is_some()).count();
    let gone: Vec<Uuid> = ids.iter().copied().filter(|id| !due.rows.contains_key(id)).collect();
    println!("{} rows, {carried} came back, {} are gone", due.rows.len(), gone.len());
    assert!(carried > 5 && gone.len() > 50);
    let mut slots: BTreeMap<String, u64> = CORPORA.iter().map(|corpus| ((*corpus).to_owned(), 3)).collect();
    let mut due = due;
    let mut from = ledger.data();
    for (name, shards) in [("one", 1), ("three", 3), ("two", 2)] {
        resharded(&from, &path(name), shards);
        let daemon = start(&path(name));
        let client = daemon.client();
        assert_same_left(&told(&client), &due);
        assert!(gone.iter().all(|id| expired(&client, *id)), "what is gone stays gone");
        drop(client);
        daemon.kill();
        let daemon = start(&path(name));
        let client = daemon.client();
        assert_same_left(&told(&client), &due);
        let held = client.hold(2016, 4, &at(last_us)).wait().expect_err("it is gone");
        assert_eq!(held.code(), Some(ErrorCode::Expired));
        last_us += 1_000_000;
        goes_on(&client, &mut ids, last_us, &mut slots);
        client.reconcile(false, &at(last_us + 1)).wait().expect("a pass");
        due = told(&client);
        drop(client);
        daemon.stop();
        from = path(name);
    }

    // The next quarters go, but for what outlives them.
    let daemon = start(&from);
    let client = daemon.client();
    let before = all_rows(&client);
    wait_until_prepared(&client);
    let later_us = FIRST_US + (quarters + 1) * QUARTER_US;
    client.barrier(&at(later_us)).wait().expect("a barrier");
    for corpus in CORPORA {
        claim(&client, corpus, "later", later_us, later_us);
    }
    wait_until_dropped(&client, "2017-Q2");
    let rows = all_rows(&client);
    let is_over = |row: &claim_client::Row| row.retention_expires_at_us <= later_us;
    let left: BTreeSet<Uuid> = before.values().filter(|row| !is_over(row)).map(|row| row.event_id).collect();
    assert!(left.len() < before.len() && left.iter().all(|id| rows.contains_key(id)), "{} rows", left.len());
    assert_eq!(rows.len(), left.len() + CORPORA.len());
    drop(client);
    daemon.kill();
    let daemon = start(&from);
    let client = daemon.client();
    assert_eq!(all_rows(&client), rows);
    drop(client);
    daemon.stop();
    settle(&from, &start);
    assert!(sealed(&from).keys().any(|(_, quarter)| quarter == "2017-Q2"));

    // And once more, and of a backup.
    resharded(&from, &path("again"), 3);
    let (backup, restored) = (path("backup"), path("restored"));
    let made = claimd().args(["backup", "--data"]).arg(path("again")).arg("--to").arg(&backup).output();
    let made = made.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made = claimd().arg("restore").arg("--from").arg(&backup).arg("--data").arg(&restored).output();
    let made = made.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(run_json("verify", &restored, &[]).0, 0);
    for data in [path("again"), restored] {
        let daemon = start(&data);
        let client = daemon.client();
        let found = all_rows(&client);
        assert_eq!(found.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
        // Quarter by quarter, up to the one that is held.
        wait_until_prepared(&client);
        let later_us = FIRST_US + (quarters + 8) * QUARTER_US;
        client.barrier(&at(later_us)).wait().expect("a barrier");
        wait_until(&client, "it is not dropped", |shard| {
            let waits_for = shard.retention_waits_for.as_deref().unwrap_or_default();
            assert!(shard.dropped_to.as_deref() <= Some("2018-Q2"), "{shard:?}");
            shard.dropped_to.as_deref() == Some("2018-Q2") && waits_for.contains("a hold on 2018-Q3")
        });
        drop(client);
        daemon.stop();
        assert_eq!(run_json("verify", &data, &[]).0, 0);
    }
}

/// Rows of a quarter that another shard has dropped are not given up by a reshard: the ledger drops them itself.
#[test]
fn shards_that_have_dropped_unequally_are_refused_until_they_are_level() {
    let scratch = scratch();
    let to = scratch.path().join("new");
    let mut ledger = Ledger::new(2, None);
    let client = ledger.client();
    onboard(&client, &["alpha"], FIRST_US);
    let first = claim(&client, "alpha", "first", FIRST_US, FIRST_US);
    let later_us = FIRST_US + 24 * QUARTER_US;
    wait_until_prepared(&client);
    let second = claim(&client, "alpha", "second", later_us, later_us);
    let until = Instant::now() + PATIENCE;
    // Nobody asks anything of the other shard.
    while !shards(&client).iter().any(|shard| shard.first_segment > 0) {
        assert!(Instant::now() < until, "nothing is dropped");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(client);
    ledger.stop();
    let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
    let output = run(&["reshard", "--data", &text(&ledger.data()), "--to", &text(&to), "--shards", "1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("shard 1 still has entries of") && said.contains("claimctl barrier") && !said.contains("  "),
        "{said}"
    );
    assert!(!to.exists() && fs::read_dir(scratch.path()).expect("ours").count() == 0, "nothing is made");

    ledger.start();
    let client = ledger.client();
    client.barrier(&at(later_us + 1)).wait().expect("a barrier");
    wait_until(&client, "it is not dropped", |shard| shard.dropped_to.is_some() && shard.retention_due.is_none());
    drop(client);
    ledger.stop();
    settle(&ledger.data(), &|data| Daemon::start(data));
    let (code, lines) = reshard(&ledger.data(), &to, 1);
    assert_eq!((code, &lines[0]["rows"]), (0, &Value::from(1)), "{lines:?}");
    let daemon = Daemon::start(&to);
    let client = daemon.client();
    assert!(expired(&client, first.event_id) && !expired(&client, second.event_id));
    onboard(&client, &["beta"], later_us + 2);
    claim(&client, "beta", "third", later_us + 3, later_us + 3);
    drop(client);
    daemon.stop();
    assert_eq!(run_json("verify", &to, &[]).0, 0);
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }
}

/// A quarter of whatever comes; what is refused is. Every shard hears of its end.
fn any_quarter(client: &Client, random: &mut Random, ids: &mut Vec<(usize, Uuid)>, quarter: i64, corpora: usize) {
    let mut at_us = FIRST_US + quarter * QUARTER_US;
    for n in 0..60 {
        at_us += 1 + random.below(DAY_US as usize / 2) as i64;
        let time = RequestOptions { rationale: format!("at {at_us}"), ..at(at_us) };
        let corpus = random.below(corpora);
        // Young rows and old ones.
        let reach = if random.below(2) == 0 { 40 } else { 400 };
        let first = ids.len().saturating_sub(reach);
        let (owner, id) = ids.get(first + random.below(ids.len() - first)).copied().unwrap_or_default();
        let reason = [ReasonCode::Other, ReasonCode::FalseAlarm, ReasonCode::Duplicate][random.below(3)];
        match random.below(20) {
            0..=6 => {
                let key = format!("key-{}", random.below(40));
                ids.push((corpus, claim(client, CORPORA[corpus], &key, at_us, at_us).event_id));
            }
            7..=10 => drop(client.retract(CORPORA[owner], id, reason, &time).wait()),
            11..=15 => drop(client.reactivate(id, &time).wait()),
            16 | 17 => drop(client.reference(CORPORA[corpus], id, &time).wait()),
            18 => {
                let other = claim(client, CORPORA[(owner + 1) % corpora], "of a dispute", at_us, at_us).event_id;
                let Ok(opened) = client.dispute(CORPORA[owner], &[id, other], &time).wait() else { continue };
                let opened = opened.value.dispute_id;
                if random.below(4) > 0 {
                    let verdict = [DisputeVerdict::References, DisputeVerdict::Tombstone, DisputeVerdict::Canonical];
                    let verdicts = [(other, DisputeVerdict::Canonical), (id, verdict[random.below(3)])];
                    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
                    let until = Instant::now() + PATIENCE;
                    loop {
                        let found = client.dispute_lookup(opened, &options()).wait().expect("the dispute").value.state;
                        let is_refused = found == DisputeState::Arbitrate
                            && client.arbitrate(opened, &verdicts, &time).wait().is_err();
                        if is_refused || matches!(found, DisputeState::Closed | DisputeState::Void) {
                            break;
                        }
                        assert!(Instant::now() < until, "dispute {opened} stays in {found}");
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            }
            _ if n % 2 == 0 => drop(client.reconcile(false, &time).wait()),
            _ => drop(client.cap(CORPORA[corpus], 1_000 + n, &time).wait()),
        }
    }
    client.barrier(&at(at_us + 1)).wait().expect("a barrier");
}

/// Rows are kept for a year, so that some are logged again and again.
#[test]
fn whatever_was_dropped_is_told_the_same_after_every_reshard() {
    let given = std::env::var("CLAIMD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()) + 1);
    println!("CLAIMD_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mut ledger = Ledger::new(1 + random.below(3) as u16, Some("[retention]\nyears = 1\n"));
    let config = ledger.config.clone().expect("one");
    let start = |data: &Path| Daemon::start_more(data, &["--config", config.to_str().expect("a path of ours")]);
    let client = ledger.client();
    onboard(&client, &CORPORA, FIRST_US);
    drop(client);
    ledger.stop();
    let (mut ids, mut quarter, mut data) = (Vec::new(), 0, ledger.data());
    for round in 0..3 {
        let daemon = start(&data);
        let client = daemon.client();
        for _ in 0..8 {
            wait_until_prepared(&client);
            any_quarter(&client, &mut random, &mut ids, quarter, CORPORA.len());
            // Some quarters nothing happens.
            quarter += 1 + i64::from(random.below(5) == 0);
        }
        wait_until(&client, "something is due", |shard| shard.retention_due.is_none());
        drop(client);
        daemon.kill();
        settle(&data, &start);
        let daemon = start(&data);
        let due = told(&daemon.client());
        daemon.stop();
        let shards = 1 + random.below(4) as u16;
        let to = ledger.dir.path().join(format!("round-{round}"));
        resharded(&data, &to, shards);
        let daemon = start(&to);
        let client = daemon.client();
        assert_same_left(&told(&client), &due);
        let gone = ids.iter().filter(|(_, id)| !due.rows.contains_key(id));
        assert!(gone.filter(|(_, id)| id.as_u128() % 5 == 0).all(|(_, id)| expired(&client, *id)));
        drop(client);
        daemon.stop();
        let carried = due.rows.values().filter(|row| row.reactivated_at_us.is_some()).count();
        println!("round {round}: {} of {} rows, {carried} came back, {shards} shards", due.rows.len(), ids.len());
        data = to;
    }
}
