//! `claimd verify` with the real binary: sound, damaged, beside a daemon; and what a damaged daemon answers.

mod harness;

use claim_client::{Client, ClientError};
use harness::{Daemon, flip, format, item, options, run_json, scratch};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const CORPORA: [&str; 2] = ["alpha", "beta"];
const CLAIMS: usize = 400;

/// Claims one after the other, so that many batches are made; returns what was acknowledged.
fn claims(client: &Client, corpus: &str, prefix: &str, count: usize) -> Vec<(claim_client::Uuid, String)> {
    (0..count)
        .map(|n| {
            let key = format!("{prefix}-{n}");
            (client.claim(corpus, &item(&key), &options()).wait().expect("a claim").value.event_id, key)
        })
        .collect()
}

/// A ledger of two shards with some rows in each; returns its acknowledged claims.
fn filled(data: &Path) -> Vec<(claim_client::Uuid, String)> {
    format(data, 2, "wall");
    let daemon = Daemon::start(data);
    let client = daemon.client();
    let mut all = Vec::new();
    for corpus in CORPORA {
        client.onboard(corpus, "", &options()).wait().expect("an onboarding");
        all.extend(claims(&client, corpus, corpus, CLAIMS));
    }
    daemon.stop();
    all
}

fn records(data: &Path, shard: u16) -> Vec<Value> {
    let (code, lines) = run_json("inspect", data, &["--depth", "records", "--shard", &shard.to_string()]);
    assert_eq!(code, 0);
    lines.into_iter().filter(|line| line["what"] == "record").collect()
}

/// Whether a record's subject begins with a row's id.
fn names(record: &Value, event_id: &str) -> bool {
    record["subject"].as_str().is_some_and(|subject| subject.starts_with(event_id))
}

#[test]
fn a_sound_ledger_is_sound_and_every_damage_is_named() {
    let scratch = scratch();
    let data = scratch.path();
    filled(data);
    let (code, lines) = run_json("verify", data, &[]);
    let summary = lines.last().unwrap();
    assert_eq!((code, lines.len()), (0, 1), "{lines:?}");
    assert_eq!((&summary["sound"], &summary["mode"]), (&Value::Bool(true), &Value::from("offline")));
    assert!(summary["records"].as_u64().unwrap() > 2 * CLAIMS as u64);

    let records = records(data, 1);
    let victim = &records[records.len() / 2];
    let at = victim["file_offset"].as_u64().unwrap();
    flip(data, 1, at + 30, 3);
    flip(data, 0, 16 * 1024 + 40, 0);
    let (code, lines) = run_json("verify", data, &[]);
    assert_eq!(code, 1);
    let damage: Vec<_> = lines.iter().filter(|line| line["what"] == "damage").collect();
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert_eq!((&damage[0]["structure"], damage[0]["shard"].as_u64()), (&Value::from("superblock"), Some(0)));
    assert_eq!((&damage[1]["structure"], damage[1]["shard"].as_u64()), (&Value::from("batch"), Some(1)));
    let position = victim["position"].as_u64().unwrap();
    let positions = damage[1]["positions"].as_array().unwrap();
    assert!((positions[0].as_u64().unwrap()..=positions[1].as_u64().unwrap()).contains(&position));
    let rows = damage[1]["rows"].as_array().unwrap();
    let is_victim = |row: &Value| names(victim, row["event_id"].as_str().unwrap()) && row["intact"] == false;
    assert!(rows.iter().any(is_victim), "{rows:?}");
    // What lies behind the damage was gone over as well.
    assert_eq!(lines.last().unwrap()["shards"][1]["last_position"].as_u64().unwrap(), records.len() as u64);

    flip(data, 1, at + 30, 3);
    flip(data, 0, 16 * 1024 + 40, 0);
    assert_eq!(run_json("verify", data, &[]).0, 0);
    assert_eq!(run_json("verify", &data.join("nothing"), &[]).0, 3);
}

#[test]
fn beside_a_daemon_under_load_a_sound_ledger_is_sound() {
    let scratch = scratch();
    let data = scratch.path();
    filled(data);
    let daemon = Daemon::start(data);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (i, corpus) in CORPORA.iter().cycle().take(4).enumerate() {
            let (client, over) = (daemon.client(), &over);
            scope.spawn(move || {
                for round in 0.. {
                    let items: Vec<_> = (0..50).map(|n| format!("{i}-{round}-{n}")).collect();
                    let pending: Vec<_> =
                        items.iter().map(|key| client.claim(corpus, &item(key), &options())).collect();
                    pending.into_iter().for_each(|pending| drop(pending.wait()));
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for _ in 0..6 {
            let (code, lines) = run_json("verify", data, &[]);
            let summary = lines.last().unwrap();
            assert_eq!((code, &summary["mode"]), (0, &Value::from("online")), "{lines:?}");
        }
        over.store(true, Ordering::Relaxed);
    });
    daemon.stop();
    assert_eq!(run_json("verify", data, &[]).0, 0);
}

#[test]
fn a_running_daemon_answers_right_or_with_an_error_and_scrubbing_says_where() {
    let scratch = scratch();
    let data = scratch.path();
    let rows = filled(data);
    let places: Vec<_> = (0..2).map(|shard| records(data, shard)).collect();
    let daemon = Daemon::start_more(data, &["--scrub-mib-per-s", "1000"]);
    let client = daemon.client();
    let seed: u64 = std::env::var("CLAIMD_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("CLAIMD_TEST_SEED={seed} repeats the flips");
    let mut entropy = claim_engine::entropy::Entropy::from_seed_u64(seed);
    let mut refused = 0;
    for _ in 0..200 {
        let shard = entropy.below(2) as u16;
        let record = &places[usize::from(shard)][entropy.below(places[usize::from(shard)].len() as u64) as usize];
        let (at, bytes) = (record["file_offset"].as_u64().unwrap(), record["bytes"].as_u64().unwrap());
        let (byte, bit) = (at + entropy.below(24 + bytes), entropy.below(8) as u32);
        flip(data, shard, byte, bit);
        if let Some((id, key)) = rows.iter().find(|(id, _)| names(record, &id.to_string())) {
            match client.lookup(*id, &options()).wait() {
                Ok(row) => {
                    assert_eq!((&row.value.event_key, &row.value.metadata[..]), (key, &b"metadata of a test"[..]))
                }
                Err(ClientError::Refused(error)) => {
                    assert!(
                        error.message.contains("does not verify") || error.message.contains("says it has"),
                        "{error}"
                    );
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        flip(data, shard, byte, bit);
    }
    assert!(refused > 100, "{refused}");
    let at = places[0][places[0].len() / 2]["file_offset"].as_u64().unwrap();
    flip(data, 0, at + 40, 1);
    // Scrubbing goes round and round: it comes by.
    let found = loop {
        let status = client.status(&options()).wait().expect("a status").value;
        let shard = status.shards.into_iter().find(|shard| shard.shard == 0).expect("shard 0");
        if shard.scrub_first.as_ref().is_some_and(|first| !first.is_empty()) && shard.scrub_rounds > 0 {
            break shard;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(found.scrub_damaged > 0 && found.scrubbed_bytes > 0 && found.failed.is_none(), "{found:?}");
    assert!(client.claim("alpha", &item("still served"), &options()).wait().is_ok());
    flip(data, 0, at + 40, 1);
    daemon.stop();
}
