//! SIGKILL at random instants, again and again, on one ledger: nothing acknowledged is lost or doubled.

mod harness;

use claim_client::{Client, ClientError, ScanRange, Uuid};
use harness::{Daemon, format, item, options, scratch};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const KILLS: u64 = 50;
const CONNECTIONS: usize = 4;
const OUTSTANDING: usize = 16;
const CORPORA: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

/// An acknowledged claim: its key, and what was handed out.
type Acknowledged = HashMap<Uuid, (String, String, u64)>;

/// Claims until the connection breaks; returns what was acknowledged.
fn load(client: &Client, corpus: &str, prefix: &str, over: &AtomicBool) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    let mut outstanding = std::collections::VecDeque::new();
    for n in 0u64.. {
        let key = format!("{prefix}-{n}");
        outstanding.push_back((client.claim(corpus, &item(&key), &options()), key));
        if outstanding.len() >= OUTSTANDING || over.load(Ordering::Relaxed) {
            let Some((pending, key)) = outstanding.pop_front() else { break };
            match pending.wait() {
                Ok(claimed) => {
                    acknowledged.insert(claimed.event_id, (corpus.to_owned(), key, claimed.claim_sequence));
                }
                Err(ClientError::Refused(error)) => panic!("a claim is refused: {error}"),
                Err(_) => break,
            }
        }
    }
    for (pending, key) in outstanding {
        if let Ok(claimed) = pending.wait() {
            acknowledged.insert(claimed.event_id, (corpus.to_owned(), key, claimed.claim_sequence));
        }
    }
    acknowledged
}

#[test]
fn fifty_kills_lose_and_double_nothing() {
    let seed: u64 = std::env::var("CLAIMD_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("CLAIMD_TEST_SEED={seed} repeats the instants of the kills");
    let mut random = seed;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    let scratch = scratch();
    let data = scratch.path().join("ledger");
    format(&data, 2, "wall");
    let mut acknowledged = Acknowledged::new();
    for round in 0..KILLS {
        let daemon = Daemon::start(&data);
        if round == 0 {
            let client = daemon.client();
            for corpus in CORPORA {
                client.onboard(corpus, "", &options()).wait().expect("an onboarding");
            }
        }
        let over = AtomicBool::new(false);
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| daemon.client_without_retry()).collect();
        std::thread::scope(|scope| {
            let workers: Vec<_> = clients
                .iter()
                .enumerate()
                .map(|(i, client)| {
                    let over = &over;
                    scope.spawn(move || load(client, CORPORA[i % CORPORA.len()], &format!("{round}-{i}"), over))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(5 + next() % 120));
            daemon.kill();
            over.store(true, Ordering::Relaxed);
            for worker in workers {
                for (id, claim) in worker.join().expect("a load thread") {
                    assert!(acknowledged.insert(id, claim).is_none(), "{id} was handed out twice");
                }
            }
        });
    }
    assert!(acknowledged.len() > 1_000, "only {} claims were acknowledged", acknowledged.len());
    let daemon = Daemon::start(&data);
    check(&daemon.client(), acknowledged);
    daemon.stop();
}

fn check(client: &Client, mut acknowledged: Acknowledged) {
    let total = acknowledged.len();
    let mut keys = HashSet::new();
    let mut rows = 0;
    for corpus in CORPORA {
        let mut last_id = None;
        let mut sequences: BTreeMap<String, u64> = BTreeMap::new();
        for row in client.scan(corpus, ScanRange::default(), &options()).rows() {
            let row = row.expect("a row");
            rows += 1;
            assert!(Some(row.event_id) > last_id, "ids of {corpus} increase");
            last_id = Some(row.event_id);
            assert!(keys.insert(row.event_key.clone()), "{} has two rows", row.event_key);
            let quarter = claim_engine::time::Quarter::of(row.claim_timestamp_us).to_string();
            let sequence = sequences.entry(quarter).or_default();
            *sequence += 1;
            assert_eq!(row.claim_sequence, *sequence, "sequences of {corpus} have no gap and no repeat");
            assert_eq!(row.metadata, b"metadata of a test");
            if let Some((known_corpus, key, sequence)) = acknowledged.remove(&row.event_id) {
                assert_eq!((known_corpus, key, sequence), (corpus.to_owned(), row.event_key, row.claim_sequence));
            }
        }
    }
    assert!(acknowledged.is_empty(), "{} of {total} acknowledged rows are lost", acknowledged.len());
    println!("{KILLS} kills: {total} acknowledged, {rows} rows");
}
