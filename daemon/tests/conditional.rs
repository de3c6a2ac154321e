//! Claims that are made unless the event is registered: over several connections, corpora and shards at once.

mod harness;

use claim_client::{ClaimItem, Client, ReasonCode, Registration, RequestOptions, Uuid};
use harness::replay::{Ledger, at, claim, onboard, reconcile};
use harness::{Daemon, format, item, options, scratch};
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::Duration;

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3_600 * SECOND_US;
const START_US: i64 = 1_770_091_506_000_000;
const HOUR: Duration = Duration::from_secs(3_600);
/// In the order of their prefixes; their shards are 0, 1, 0, 1.
const CORPORA: [&str; 4] = ["customer", "compliance", "tools", "research"];

#[test]
fn of_claims_at_once_exactly_one_registers_an_event() {
    const KEYS: usize = 150;
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    for corpus in CORPORA {
        daemon.client().onboard(corpus, "a test", &options()).wait().expect("an onboarding");
    }
    let keys: Vec<_> = (0..KEYS).map(|n| format!("event {n}")).collect();
    let begin = Barrier::new(2 * CORPORA.len());
    // Two connections for each corpus, each with all its claims under way at once.
    let found: Vec<(usize, Registration)> = std::thread::scope(|scope| {
        let claimers: Vec<_> = (0..2 * CORPORA.len())
            .map(|claimer| {
                let (client, keys, begin) = (daemon.client(), &keys, &begin);
                scope.spawn(move || {
                    begin.wait();
                    let corpus = CORPORA[claimer % CORPORA.len()];
                    let asked: Vec<_> = keys
                        .iter()
                        .map(|key| client.claim_unless_registered(corpus, &item(key), HOUR, &options()))
                        .collect();
                    let answers = asked.into_iter().map(|pending| pending.wait().expect("an answer").value);
                    answers.enumerate().collect::<Vec<_>>()
                })
            })
            .collect();
        claimers.into_iter().flat_map(|claimer| claimer.join().expect("no panic")).collect()
    });
    let mut registered: BTreeMap<usize, Vec<Uuid>> = BTreeMap::new();
    for (key, registration) in &found {
        if let Registration::Registered(claimed) = registration {
            registered.entry(*key).or_default().push(claimed.event_id);
        }
    }
    assert_eq!(registered.len(), KEYS);
    let mut by_corpus: BTreeMap<String, usize> = BTreeMap::new();
    let client = daemon.client();
    for (key, ids) in &registered {
        assert_eq!(ids.len(), 1, "{} is registered as {ids:?}", keys[*key]);
        let rows: Vec<_> = client.find(&keys[*key], &options()).rows().map(|row| row.expect("a row")).collect();
        assert_eq!(rows.iter().map(|row| row.event_id).collect::<Vec<_>>(), *ids);
        *by_corpus.entry(rows[0].corpus.clone()).or_default() += 1;
    }
    let told = found.iter().filter(|(key, registration)| match registration {
        Registration::Already { event_id } => {
            assert_eq!(*event_id, registered[key][0], "the row that is there");
            true
        }
        Registration::Registered(_) => false,
    });
    assert_eq!(told.count(), (2 * CORPORA.len() - 1) * KEYS);
    println!("{KEYS} events, registered by {by_corpus:?}");
}

fn conditional(
    client: &Client,
    corpus: &str,
    key: &str,
    occurred_at_us: i64,
    options: &RequestOptions,
) -> Registration {
    let item = ClaimItem { occurred_at_us, ..item(key) };
    client.claim_unless_registered(corpus, &item, HOUR, options).wait().expect("an answer").value
}

#[test]
fn what_counts_as_registered() {
    let ledger = Ledger::new(2, None);
    let client = ledger.client();
    onboard(&client, &CORPORA, START_US);
    let already = |registration: Registration| match registration {
        Registration::Already { event_id } => Some(event_id),
        Registration::Registered(_) => None,
    };
    for (corpus, other) in [(CORPORA[0], CORPORA[1]), (CORPORA[1], CORPORA[0]), (CORPORA[2], CORPORA[0])] {
        let key = &format!("{corpus} and {other}");
        let ask = |occurred_us, at_us| already(conditional(&client, other, key, occurred_us, &at(at_us)));
        let id = claim(&client, corpus, key, START_US, START_US).event_id;
        assert_eq!(ask(START_US + HOUR_US, START_US), Some(id), "as far apart as asked for");
        assert_eq!(ask(START_US - HOUR_US, START_US), Some(id), "and the other way");
        let further = ask(START_US + HOUR_US + 1, START_US);
        assert_eq!(further, None, "a microsecond further");
    }
    // A key that keeps its answer.
    let key = claim_client::new_key(Some(START_US));
    let asked = RequestOptions { idempotency_key: Some(key), ..at(START_US) };
    let first = conditional(&client, "tools", "asked twice", START_US, &asked);
    assert_eq!(already(first), None);
    assert_eq!(conditional(&client, "tools", "asked twice", START_US, &asked), first);

    // Neither a retracted row counts nor an alias, and nothing that was claimed more than a day before.
    let gone = claim(&client, "customer", "retracted", START_US, START_US).event_id;
    client.retract("customer", gone, ReasonCode::FalseAlarm, &at(START_US)).wait().expect("a retraction");
    assert_eq!(already(conditional(&client, "compliance", "retracted", START_US, &at(START_US))), None);
    let old = claim(&client, "customer", "old", START_US, START_US + 1).event_id;
    let pair =
        ["compliance", "customer"].map(|corpus| claim(&client, corpus, "merged", START_US, START_US + 1).event_id);
    reconcile(&client, false, START_US + HOUR_US);
    let merged = pair.map(|id| client.lookup(id, &options()).wait().expect("a row").value.canonical_id);
    let canonical = merged.iter().flatten().next().copied().expect("one is an alias");
    let after_us = START_US + 1 + 24 * HOUR_US;
    assert_eq!(already(conditional(&client, "tools", "merged", START_US, &at(after_us))), Some(canonical));
    assert_eq!(already(conditional(&client, "tools", "old", START_US, &at(after_us))), Some(old));
    assert_eq!(already(conditional(&client, "tools", "old", START_US, &at(after_us + 1))), None);
}

/// Many rows of one key of which one counts.
#[test]
fn one_of_many_rows_counts() {
    const ROWS: i64 = 200;
    let ledger = Ledger::new(2, None);
    let client = ledger.client();
    onboard(&client, &CORPORA, START_US);
    let occurred_us = |n: i64| START_US - 2 * n * HOUR_US - 1;
    let ids: Vec<_> =
        (0..ROWS).map(|n| claim(&client, "customer", "often", occurred_us(n), START_US + n).event_id).collect();
    for corpus in ["tools", "compliance"] {
        for n in [0, ROWS / 2, ROWS - 1] {
            let found = conditional(&client, corpus, "often", occurred_us(n), &at(START_US + ROWS));
            assert_eq!(found, Registration::Already { event_id: ids[n as usize] }, "{corpus}, row {n}");
        }
    }
}
