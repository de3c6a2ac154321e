//! Reconciliation of the sixteen corpora, whose figures are known: what it decides, against a plain reimplementation that
//! is fed from the file; twice; and with crashes in between.

mod harness;

use claim_client::import::{self, Event, EventKind, ImportObserver, ImportOptions, Source};
use claim_client::{AuditOperation, Client, Lifecycle, TailOptions, Uuid, new_key};
use harness::plain::{self, PlainRow, Rules, quarter_of};
use harness::replay::{Ledger, all_rows, at, check_totals, hold_everything, pass_as_said, sixteen_corpora};
use harness::{options, run_json};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Every window has closed so long after the last claim.
const LATER_US: i64 = 30 * 60_000_000;
/// Slots of a corpus in a quarter, unless configured.
const SLOTS: u64 = 50_000;
/// Claims of the file.
const CLAIMS: u64 = 41_853;

/// The ids that claims of the file were given, by corpus and `ref`.
#[derive(Default)]
struct Ids(HashMap<(String, String), Uuid>);

impl ImportObserver for Ids {
    fn acknowledged(&mut self, corpus: &str, event_id: Uuid, reference: &str) {
        let before = self.0.insert((corpus.to_owned(), reference.to_owned()), event_id);
        assert_eq!(before, None, "{reference} of {corpus} is claimed once");
    }
}

/// The rows that the file makes, by what the operations mean.
#[derive(Default)]
struct Played {
    corpora: Vec<String>,
    rows: Vec<PlainRow>,
    by_reference: HashMap<(String, String), usize>,
    sequences: HashMap<(String, (i64, i64)), u64>,
    last_us: i64,
    refused: u64,
}

impl Played {
    fn file(ids: &Ids, rules: &Rules) -> Played {
        let mut played = Played::default();
        let mut source = Source::open(&sixteen_corpora()).expect("the file is there");
        while let Some(event) = source.next_event().expect("an event") {
            played.play(&event, ids, rules);
        }
        played
    }

    fn play(&mut self, event: &Event, ids: &Ids, rules: &Rules) {
        let (corpus, at_us) = (&event.corpus, event.at_us());
        assert!(at_us >= self.last_us, "the file is in the order of time");
        self.last_us = at_us;
        if !self.corpora.contains(corpus) {
            self.corpora.push(corpus.clone());
        }
        let named = |reference: &String| (corpus.clone(), reference.clone());
        let is_done = match &event.kind {
            EventKind::Claim { reference, occurred_at, event_key, .. } => {
                let quarter = quarter_of(at_us);
                let sequence = self.sequences.entry((corpus.clone(), quarter)).or_default();
                *sequence += 1;
                self.by_reference.insert(named(reference), self.rows.len());
                self.rows.push(PlainRow {
                    event_id: ids.0[&named(reference)],
                    corpus: corpus.clone(),
                    prefix: 1 + self.corpora.iter().position(|name| name == corpus).expect("known above") as u16,
                    event_key: event_key.clone(),
                    claim_timestamp_us: at_us,
                    claim_sequence: *sequence,
                    occurred_at_us: occurred_at * 1_000_000,
                    state: Lifecycle::Registered,
                    canonical_id: None,
                    incident_active: false,
                    quarter,
                    references: 0,
                });
                true
            }
            EventKind::Retract { reference, .. } => {
                self.change(named(reference), Lifecycle::Registered, Lifecycle::Tombstoned, at_us, rules)
            }
            EventKind::Reactivate { reference, .. } => {
                self.change(named(reference), Lifecycle::Tombstoned, Lifecycle::Registered, at_us, rules)
            }
            EventKind::Reference { to_latest_of } => {
                let is_latest = |row: &&mut PlainRow| row.corpus == *to_latest_of && row.state == Lifecycle::Registered;
                let latest = self.rows.iter_mut().rev().find(is_latest);
                let allowed = latest.filter(|row| row.corpus != *corpus && !rules.is_expired(row, at_us));
                allowed.map(|row| row.references += 1).is_some()
            }
        };
        self.refused += u64::from(!is_done);
    }

    fn change(&mut self, named: (String, String), from: Lifecycle, to: Lifecycle, at_us: i64, rules: &Rules) -> bool {
        let Some(row) = self.by_reference.get(&named).map(|index| &mut self.rows[*index]) else { return false };
        let is_allowed = row.state == from && !rules.is_expired(row, at_us);
        if is_allowed {
            row.state = to;
            if to == Lifecycle::Registered && quarter_of(at_us) != row.quarter {
                row.quarter = plain::next_quarter(quarter_of(at_us));
            }
        }
        is_allowed
    }
}

/// Imports the file into a ledger of two shards; what it makes of it by the file alone, and by the daemon.
fn import(ledger: &Ledger, rules: &mut Rules) -> Played {
    let client = ledger.client();
    let mut ids = Ids::default();
    let report = import::import(&client, &sixteen_corpora(), &ImportOptions::default(), &mut ids).expect("an import");
    assert_eq!(
        report.claimed, CLAIMS,
        "every claim of the file is acknowledged, but refused were {:?}, {:?}; {} sent again",
        report.refused, report.first_refused, report.sent_again
    );
    let played = Played::file(&ids, rules);
    rules.corpora = played.corpora.clone();
    println!(
        "{} claims, {} references, {} retractions, {} reactivations, refused {:?}, {:.1} s",
        report.claimed, report.referenced, report.retracted, report.reactivated, report.refused, report.seconds
    );
    assert_eq!(report.refused.values().sum::<u64>(), played.refused);
    let rows = all_rows(&client);
    assert_eq!((rows.len(), report.claimed), (played.rows.len(), rows.len() as u64));
    for row in &played.rows {
        assert_eq!(&PlainRow::of(&rows[&row.event_id], row.prefix), row, "the file against the ledger");
    }
    played
}

/// A dry run, a pass, and a second one: figures, and all rows.
fn reconcile_twice(ledger: &Ledger, played: &mut Played, rules: &Rules) {
    let client = ledger.client();
    let at_us = played.last_us + LATER_US;
    let (real, after) = pass_as_said(&client, &mut played.rows, rules, at_us);
    println!(
        "{} years: {} rows looked at, {} groups, {} merged, {} suspects, {} orphans, {:?}",
        rules.retention_years,
        real.report.rows_examined,
        real.report.groups,
        real.report.merged,
        real.report.suspects,
        real.report.orphans,
        real.took
    );
    check_totals(&client, &after, SLOTS);
    let (second, again) = pass_as_said(&client, &mut played.rows, rules, at_us);
    let second = second.report;
    println!(
        "again: {} groups, {} merged, {} merged already, {} suspects, {} orphans",
        second.groups, second.merged, second.already_merged, second.suspects, second.orphans
    );
    assert_eq!((second.merged, second.orphans), (0, real.report.orphans));
    assert_eq!(again, after, "a second pass changes nothing");
}

/// Entries of a shard by its operation, from a position on, in the order of the log.
fn reconcile_entries(client: &Client, shard: u16) -> Vec<(AuditOperation, usize)> {
    let tail = TailOptions { shard, from_position: 1, page_entries: 0, wait: Duration::ZERO };
    let pages = client.tail(tail, &options()).map(|page| page.expect("a page"));
    let entries = pages.flat_map(|page| page.entries);
    let is_of_passes = |op| matches!(op, AuditOperation::Reconcile | AuditOperation::Recovery);
    entries.filter(|e| is_of_passes(e.operation)).map(|e| (e.operation, e.event_ids.len())).collect()
}

/// Waits until a shard has so many entries of a pass behind a position.
fn wait_for_entries(client: &Client, shard: u16, from_position: u64, count: usize) {
    let tail = TailOptions { shard, from_position, page_entries: 0, wait: Duration::from_secs(5) };
    let mut seen = 0;
    for page in client.tail(tail, &options()) {
        let page = page.expect("a page");
        seen += page.entries.iter().filter(|entry| entry.operation == AuditOperation::Reconcile).count();
        if seen >= count {
            return;
        }
    }
}

#[test]
fn kept_for_a_hundred_years() {
    let mut rules = Rules { retention_years: 100, ..Rules::default() };
    let mut ledger = Ledger::new(2, Some("[retention]\nyears = 100"));
    let mut played = import(&ledger, &mut rules);
    let keys: BTreeMap<&str, Vec<&str>> = played.rows.iter().fold(BTreeMap::new(), |mut keys, row| {
        let corpora: &mut Vec<_> = keys.entry(&row.event_key).or_default();
        if !corpora.contains(&row.corpus.as_str()) {
            corpora.push(&row.corpus);
        }
        keys
    });
    assert_eq!(keys.values().filter(|corpora| corpora.len() == 2).count(), 1_090);
    assert_eq!(keys.values().filter(|corpora| corpora.len() > 2).count(), 0);

    // The same ledger three times more, of which each loses its daemon elsewhere in the pass.
    ledger.stop();
    let mut copies: Vec<_> = (0..3).map(|_| Ledger::copy_of(&ledger)).collect();
    ledger.start();
    reconcile_twice(&ledger, &mut played, &rules);
    let after = all_rows(&ledger.client());
    let merges = after.values().filter(|row| row.canonical_id.is_some()).count() as u64;
    for (copy, (shard, entries)) in copies.iter_mut().zip([(0, 1), (0, 2), (1, 6)]) {
        crash_in_a_pass(copy, shard, entries, played.last_us + LATER_US, merges);
        assert_eq!(all_rows(&copy.client()), after, "after a crash at entry {entries} of shard {shard}");
        check_totals(&copy.client(), &after, SLOTS);
        copy.stop();
        let (code, found) = run_json("verify", &copy.data(), &[]);
        assert_eq!(code, 0, "{found:?}");
    }
}

/// Begins a pass, kills the daemon once a shard has so many of its entries, and sees the pass to its end.
fn crash_in_a_pass(ledger: &mut Ledger, shard: u16, entries: usize, at_us: i64, merges: u64) {
    let client = ledger.client();
    let from_position = client.audit_heads(&options()).wait().expect("heads").value[usize::from(shard)].position + 1;
    let asked = claim_client::RequestOptions { idempotency_key: Some(new_key(Some(at_us))), ..at(at_us) };
    let pending = client.reconcile(false, &asked);
    wait_for_entries(&client, shard, from_position, entries);
    ledger.crash();
    drop(pending);
    let client = ledger.client();
    let report = client.reconcile(false, &asked).wait().expect("the pass goes on").value;
    for shard in 0..2 {
        println!("killed at entry {entries}: shard {shard} has {:?}", reconcile_entries(&client, shard));
    }
    println!("after the crash: {} merged, {} were already", report.merged, report.already_merged);
    client.reconcile(false, &at(at_us)).wait().expect("another pass");
    let again = client.reconcile(false, &asked).wait().expect("the same answer").value;
    assert_eq!((again.merged, again.already_merged), (report.merged, report.already_merged));
    assert_eq!(report.merged + report.already_merged, merges);
}

#[test]
fn kept_for_four_years() {
    let mut rules = Rules::default();
    let mut ledger = Ledger::new(2, None);
    // What is expired is looked at, too.
    hold_everything(&ledger.client());
    let mut played = import(&ledger, &mut rules);
    reconcile_twice(&ledger, &mut played, &rules);
    ledger.stop();
    let (code, found) = run_json("verify", &ledger.data(), &[]);
    assert_eq!(code, 0, "{found:?}");
}
