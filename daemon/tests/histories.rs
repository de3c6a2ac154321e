//! What is told of rows, however much of it there is: pages of finds and histories, disputes, long chains of aliases.

mod harness;

use claim_client::{
    AuditOperation, Client, ClientError, DisputeState, DisputeVerdict, Entry, ErrorCode, HistoryQuery, HistorySubject,
    RequestOptions, Uuid, Verdict, new_key,
};
use harness::replay::until;
use harness::{Daemon, format, item, options, scratch};
use std::collections::BTreeSet;

const CORPORA: [&str; 3] = ["customer", "internal-tools", "compliance"];
/// Rows of one event key and entries of one correlation id, of each of two corpora: some pages.
const ROWS: usize = 2_300;
/// Aliases that lead one to the next.
const ALIASES: usize = 80;

fn because(reason: &str) -> RequestOptions {
    RequestOptions { rationale: reason.to_owned(), ..options() }
}

fn start(data: &std::path::Path) -> (Daemon, Client) {
    format(data, 2, "wall");
    let daemon = Daemon::start(data);
    let client = daemon.client();
    for corpus in CORPORA {
        client.onboard(corpus, "a test", &options()).wait().expect("an onboarding");
    }
    (daemon, client)
}

fn history(client: &Client, query: HistoryQuery) -> Vec<Entry> {
    let (mut entries, mut from) = (Vec::new(), 0);
    loop {
        let page = client.history_page(query, from, &options()).wait().expect("a page").value;
        entries.extend(page.entries);
        match page.next {
            Some(next) => from = next,
            None => return entries,
        }
    }
}

fn of_row(event_id: Uuid) -> HistoryQuery {
    HistoryQuery { subject: HistorySubject::Event(event_id), since_us: None, until_us: None }
}

#[test]
fn finds_and_histories_are_whole_however_long() {
    let scratch = scratch();
    let (daemon, client) = start(scratch.path());
    let correlation_id = new_key(None);
    let correlated = RequestOptions { correlation_id: Some(correlation_id), ..options() };
    let mut claimed = BTreeSet::new();
    let metadata = vec![7; 4_000];
    for corpus in &CORPORA[..2] {
        let mut same = item("one key for all");
        same.metadata = &metadata;
        let items = vec![same; ROWS / 10];
        for _ in 0..10 {
            let results = client.claim_batch(corpus, &items, &correlated).wait().expect("a batch").value;
            claimed.extend(results.into_iter().map(|result| result.expect("a claim").event_id));
        }
    }
    client.claim("customer", &item("another key"), &options()).wait().expect("a claim");
    let pages: Vec<_> = client.find("one key for all", &options()).map(|page| page.expect("a page")).collect();
    assert!(pages.len() > 4, "{} pages: a page takes neither 1,000 rows nor 4 MiB", pages.len());
    let found: Vec<_> = pages.into_iter().flatten().map(|row| row.event_id).collect();
    assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (2 * ROWS, claimed.clone()));

    let subject = HistorySubject::Correlation(correlation_id);
    let entries = history(&client, HistoryQuery { subject, since_us: None, until_us: None });
    let told: BTreeSet<_> = entries.iter().filter_map(|entry| entry.event_id).collect();
    assert_eq!((entries.len(), told), (2 * ROWS, claimed.clone()));
    let content = entries[0].claim.as_ref().expect("what was claimed");
    assert_eq!((content.event_key.as_str(), &content.metadata), ("one key for all", &metadata));

    // Narrowed to what comes at the end, after pages that have nothing of it.
    let id = *claimed.first().expect("some");
    for _ in 0..ROWS {
        client.reference("compliance", id, &options()).wait().expect("a reference");
    }
    let all = history(&client, of_row(id));
    assert_eq!(all.len(), 1 + ROWS);
    let since_us = Some(all[ROWS - 5].timestamp_us);
    let late = history(&client, HistoryQuery { since_us, ..of_row(id) });
    let due: Vec<_> = all.iter().filter(|entry| Some(entry.timestamp_us) >= since_us).cloned().collect();
    assert_eq!(late, due);

    // Places that no page ended at.
    for from in [7 << 48, u64::MAX, 2, 1 << 48 | 9_999_999] {
        match client.find_page("another key", from, &options()).wait() {
            Ok(page) => assert_eq!(page.value.rows, [], "from {from:x}"),
            Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::BadRequest, "from {from:x}"),
            Err(error) => panic!("from {from:x}: {error}"),
        }
    }
    daemon.stop();
}

#[test]
fn a_dispute_is_told_with_all_that_was_said_and_stops_with_any_of_its_corpora() {
    let scratch = scratch();
    let (daemon, client) = start(scratch.path());
    let claim =
        |corpus: &str, key: &str| client.claim(corpus, &item(key), &options()).wait().expect("a claim").value.event_id;
    let code = |result: Result<_, ClientError>| match result {
        Err(ClientError::Refused(error)) => error.code,
        other => panic!("expected a refusal, got {:?}", other.map(|_: ()| ())),
    };
    let ids = [claim("customer", "a"), claim("internal-tools", "b")];
    let verdicts = [(ids[0], DisputeVerdict::Canonical), (ids[1], DisputeVerdict::References)]
        .map(|(event_id, verdict)| Verdict { event_id, verdict });

    // A stop of the other corpus stops what would change its rows.
    client.freeze("internal-tools", &because("an audit")).wait().expect("a freeze");
    assert_eq!(code(client.dispute("customer", &ids, &because("one event")).wait().map(drop)), ErrorCode::Frozen);
    client.unfreeze("internal-tools", &options()).wait().expect("an end of it");
    let key = new_key(None);
    let opening = RequestOptions { idempotency_key: Some(key), ..because("one event") };
    let opened = client.dispute("customer", &ids, &opening).wait().expect("a dispute").value;
    until(&client, opened.dispute_id, DisputeState::Arbitrate);
    let respond = |corpus, what| client.respond(corpus, opened.dispute_id, &because(what)).wait().expect("a response");
    respond("customer", "it is ours");
    respond("internal-tools", "it is not");
    client.escalate(opened.dispute_id, &because("they don't agree")).wait().expect("an escalation");
    client.freeze("customer", &because("an audit")).wait().expect("a freeze");
    let arbitrate = || client.arbitrate(opened.dispute_id, &verdicts, &because("the first")).wait();
    assert_eq!(code(arbitrate().map(drop)), ErrorCode::Frozen);
    client.unfreeze("customer", &options()).wait().expect("an end of it");
    arbitrate().expect("a verdict");
    until(&client, opened.dispute_id, DisputeState::Closed);

    // A retry gets what the opening was answered with.
    assert_eq!(client.dispute("customer", &ids, &opening).wait().expect("the same").value, opened);
    let mut places = Vec::new();
    for id in ids {
        let entries = history(&client, of_row(id));
        assert_eq!(entries[0].global_sequence, 0, "a claim is of its shard alone");
        places.push(entries[1..].iter().map(|entry| entry.global_sequence).collect::<Vec<_>>());
        let said: Vec<_> = entries.iter().map(|e| (e.operation, e.rationale.as_str())).collect();
        use AuditOperation as Audit;
        assert_eq!(
            said,
            [
                (Audit::Claim, ""),
                (Audit::Dispute, "one event"),
                (Audit::Quarantine, ""),
                (Audit::Quarantine, ""),
                (Audit::Respond, "it is ours"),
                (Audit::Respond, "it is not"),
                (Audit::Escalate, "they don't agree"),
                (Audit::Arbitrate, "the first"),
                (Audit::Canonicalise, ""),
            ]
        );
        assert!(entries[1..].iter().all(|entry| entry.event_ids == ids), "every step names its rows");
    }
    assert!(places[0].is_sorted_by(|a, b| a < b) && places[0][0] > 0, "each step has a place of its own: {places:?}");
    assert_eq!(places[0], places[1], "and the same on both shards");
    daemon.stop();
}

#[test]
fn long_chains_of_aliases_are_followed() {
    let scratch = scratch();
    let (daemon, client) = start(scratch.path());
    let claim = |n: usize| {
        let corpus = CORPORA[n % 2];
        client.claim(corpus, &item(&format!("event-{n}")), &options()).wait().expect("a claim").value.event_id
    };
    let first = claim(0);
    let mut last = first;
    for n in 1..=ALIASES {
        let next = claim(n);
        let dispute = client.dispute(CORPORA[n % 2], &[last, next], &because("one event")).wait();
        let dispute = dispute.expect("a dispute").value.dispute_id;
        until(&client, dispute, DisputeState::Arbitrate);
        let verdicts = [(last, DisputeVerdict::References), (next, DisputeVerdict::Canonical)];
        let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
        client.arbitrate(dispute, &verdicts, &because("the later one")).wait().expect("a verdict");
        until(&client, dispute, DisputeState::Closed);
        last = next;
    }
    assert_eq!(client.reference("compliance", first, &options()).wait().expect("a reference").value, last);
    daemon.stop();
}
