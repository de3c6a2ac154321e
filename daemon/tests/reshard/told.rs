//! What a ledger says through the client library, and whether two of them say the same.

use crate::harness::options;
use crate::harness::replay::all_rows;
use claim_client::{AuditOperation, Client, Entry, HistoryQuery, HistorySubject, Row, TailOptions, Uuid};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

/// What tells about the log, not about the ledger.
const OF_THE_LOG: [AuditOperation; 3] = [AuditOperation::Recovery, AuditOperation::Reshard, AuditOperation::User];

/// What a ledger says, but for positions and for where corpora live.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub rows: BTreeMap<Uuid, Row>,
    /// By row: its history.
    histories: BTreeMap<Uuid, Vec<String>>,
    /// By correlation id.
    correlated: BTreeMap<Uuid, Vec<String>>,
    /// All entries that are on one shard alone.
    pub entries: Vec<String>,
    /// The global order.
    globals: BTreeMap<u64, String>,
    rest: Vec<String>,
}

/// An entry without its position. Of one that every shard keeps each has a copy, with a time and a part of its own.
fn of_entry(entry: &Entry) -> String {
    let Entry { operation, corpus, event_id, uid, gid, pid, rationale, correlation_id, idempotency_key, .. } = entry;
    let own = match entry.global_sequence {
        0 => format!("{} {:?} {:?}", entry.timestamp_us, entry.detail, entry.event_ids),
        sequence => format!("global {sequence}"),
    };
    format!(
        "{operation} {corpus:?} {event_id:?} {uid}:{gid}:{pid} {rationale:?} {correlation_id:?} {idempotency_key:?} {:?} \
         {:?} {:?} {:?} {:?} {own}",
        entry.reason_code, entry.dispute_id, entry.canonical_id, entry.claim, entry.configuration
    )
}

/// Each entry once, in order: of the copies of one entry the first counts.
fn once(entries: &[Entry]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let is_first = |entry: &&Entry| entry.global_sequence == 0 || seen.insert(entry.global_sequence);
    entries.iter().filter(is_first).map(of_entry).collect()
}

fn history(client: &Client, subject: HistorySubject) -> Vec<Entry> {
    let query = HistoryQuery { subject, since_us: None, until_us: None };
    let (mut from, mut entries) = (0, Vec::new());
    loop {
        let page = client.history_page(query, from, &options()).wait().expect("a history").value;
        entries.extend(page.entries);
        match page.next {
            Some(next) => from = next,
            None => return entries,
        }
    }
}

fn tail(client: &Client) -> Vec<Entry> {
    let status = client.status(&options()).wait().expect("a status").value;
    let mut entries = Vec::new();
    for shard in status.shards {
        let tail = TailOptions { shard: shard.shard, from_position: 1, page_entries: 0, wait: Duration::ZERO };
        let pages = client.tail(tail, &options()).map(|page| page.expect("a page"));
        for page in pages {
            let is_over = page.next_position > shard.durable_position;
            entries.extend(page.entries);
            if is_over {
                break;
            }
        }
    }
    entries
}

pub fn told(client: &Client) -> Told {
    let rows = all_rows(client);
    let row_history = |id: &Uuid| {
        let entries = history(client, HistorySubject::Event(*id));
        (*id, once(&entries))
    };
    let histories = rows.keys().map(row_history).collect();
    let all = tail(client);
    let correlations: BTreeSet<Uuid> = all.iter().filter_map(|entry| entry.correlation_id).collect();
    let of_correlation = |id: &Uuid| {
        let mut entries = once(&history(client, HistorySubject::Correlation(*id)));
        // Shard by shard.
        entries.sort();
        (*id, entries)
    };
    let correlated = correlations.iter().map(of_correlation).collect();
    let (globals, locals): (Vec<_>, Vec<_>) = all.iter().partition(|entry| entry.global_sequence > 0);
    let mut entries: Vec<_> =
        locals.into_iter().filter(|entry| !OF_THE_LOG.contains(&entry.operation)).map(of_entry).collect();
    entries.sort();
    let mut rest = Vec::new();
    for corpus in client.corpora(&options()).wait().expect("the corpora").value {
        rest.push(format!("{:?}", claim_client::CorpusInfo { shard: 0, ..corpus }));
    }
    for dispute in client.disputes_page("", true, None, &options()).wait().expect("the disputes").value.disputes {
        rest.push(format!("{dispute:?}"));
    }
    for proposal in client.proposals(&options()).wait().expect("the proposals").value {
        rest.push(format!("{proposal:?}"));
    }
    for total in client.totals("", &options()).wait().expect("the totals").value {
        rest.push(format!("{total:?}"));
    }
    let configuration = client.configuration(&options()).wait().expect("the configuration").value;
    rest.push(format!("{} {} {}", configuration.toml, configuration.at_us, configuration.uid));
    let globals = globals.into_iter().map(|entry| (entry.global_sequence, of_entry(entry))).collect();
    Told { rows, histories, correlated, entries, globals, rest }
}

pub fn assert_same(found: &Told, due: &Told) {
    assert_each(found.rows.values(), due.rows.values());
    assert_each(found.histories.iter(), due.histories.iter());
    assert_same_entries(found, due);
}

/// The same of a ledger that has dropped quarters: the history of a row that was logged again begins with that, entries of the global
/// order that shard 0 has dropped are nobody's, and drops are told for all shards at once.
pub fn assert_same_left(found: &Told, due: &Told) {
    assert_each(found.rows.values(), due.rows.values());
    for (id, history) in &due.histories {
        let found = &found.histories[id];
        let is_carried = found.first().is_some_and(|entry| entry.starts_with("carry"));
        match is_carried {
            true => assert!(found.iter().all(|entry| history.contains(entry)), "{id}: {found:?} of {history:?}"),
            false => assert_eq!(found, history, "{id}"),
        }
    }
    let without_drops = |told: &Told| -> Vec<String> {
        told.entries.iter().filter(|entry| !entry.starts_with("retention_drop")).cloned().collect()
    };
    assert_each(without_drops(found).into_iter(), without_drops(due).into_iter());
    let first = found.globals.keys().next().copied().unwrap_or(u64::MAX);
    assert_each(found.globals.iter(), due.globals.range(first..).collect::<Vec<_>>().into_iter());
    assert_each(found.rest.iter(), due.rest.iter());
}

fn assert_same_entries(found: &Told, due: &Told) {
    assert_each(found.correlated.iter(), due.correlated.iter());
    assert_each(found.entries.iter(), due.entries.iter());
    assert_each(found.globals.iter(), due.globals.iter());
    assert_each(found.rest.iter(), due.rest.iter());
}

/// One by one, so that what differs is seen.
pub fn assert_each<T: PartialEq + Debug>(
    found: impl ExactSizeIterator<Item = T>,
    due: impl ExactSizeIterator<Item = T>,
) {
    let (found_count, due_count) = (found.len(), due.len());
    found.zip(due).for_each(|(found, due)| assert_eq!(found, due));
    assert_eq!(found_count, due_count);
}

/// The same, but for what the times of copies say: when a verdict tombstoned a row, and in what order a row's entries and
/// those of its dispute stand where they were logged in the same moment.
pub fn assert_same_rows(found: &Told, due: &Told) {
    let without_times = |rows: &BTreeMap<Uuid, Row>| -> Vec<Row> {
        let by_verdict = |row: &Row| row.tombstoned_at_us.is_some() && row.tombstone_reason_code.is_none();
        let row =
            |row: &Row| Row { tombstoned_at_us: row.tombstoned_at_us.filter(|_| !by_verdict(row)), ..row.clone() };
        rows.values().map(row).collect()
    };
    assert_each(without_times(&found.rows).into_iter(), without_times(&due.rows).into_iter());
    for (id, history) in &due.histories {
        let sorted = |history: &[String]| history.iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(sorted(&found.histories[id]), sorted(history), "the history of {id}");
    }
    assert_same_entries(found, due);
}
