//! One ledger of two shards served by one core, by two, and by one again: what was claimed is there, and ids go on.

mod harness;

use claim_client::{Claimed, Client, Row, ScanRange, Uuid};
use harness::{Daemon, format, item, options, scratch};
use std::collections::BTreeMap;

const CORPORA: [&str; 3] = ["alpha", "beta", "gamma"];
/// Claims of each corpus by each daemon.
const CLAIMS: usize = 300;

fn rows(client: &Client) -> BTreeMap<Uuid, Row> {
    let pages = CORPORA.iter().flat_map(|corpus| client.scan(corpus, ScanRange::default(), &options()).rows());
    pages.map(|row| row.expect("a row")).map(|row| (row.event_id, row)).collect()
}

#[test]
fn any_number_of_cores_serves_the_same_ledger() {
    let dir = scratch();
    let data = dir.path().join("ledger");
    format(&data, 2, "wall");
    let cores: Vec<usize> = (0..std::thread::available_parallelism().map_or(1, |n| n.get())).collect();
    let last = cores[cores.len() - 1].to_string();
    let both = format!("0,{last}");
    let mut before: BTreeMap<Uuid, Row> = BTreeMap::new();
    let mut sequences: BTreeMap<&str, u64> = BTreeMap::new();
    let mut greatest: BTreeMap<&str, Uuid> = BTreeMap::new();
    for (round, cores) in ["0", if last == "0" { "0" } else { &both }, &last].into_iter().enumerate() {
        let daemon = Daemon::start_more(&data, &["--cores", cores]);
        let client = daemon.client();
        if round == 0 {
            CORPORA.iter().for_each(|corpus| drop(client.onboard(corpus, "", &options()).wait().expect("a corpus")));
        }
        assert_eq!(rows(&client), before, "served by the cores {cores}");
        for number in 0..CLAIMS {
            for corpus in CORPORA {
                let key = format!("{corpus}-{round}-{number}");
                let claimed: Claimed = client.claim(corpus, &item(&key), &options()).wait().expect("a claim").value;
                let sequence = sequences.entry(corpus).or_default();
                *sequence += 1;
                assert_eq!(claimed.claim_sequence, *sequence, "{corpus} goes on");
                let last = greatest.insert(corpus, claimed.event_id);
                assert!(last.is_none_or(|last| last < claimed.event_id), "ids of {corpus} increase");
            }
        }
        before = rows(&client);
        assert_eq!(before.len(), (round + 1) * CLAIMS * CORPORA.len());
        // A clean stop, and a killed process.
        if round == 0 { daemon.stop() } else { daemon.kill() }
    }
}
