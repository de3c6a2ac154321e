//! Imports into a daemon in memory: what is counted, in which order it arrives, and what happens when it fails.

mod fake;

use claim_client::import::{
    ImportError, ImportFailure, ImportObserver, ImportOptions, ImportReport, Progress, Source, import, play,
};
use claim_client::{Classification, Client, ClientOptions, ClockMode, ErrorCode, Lifecycle, Uuid};
use fake::{Action, Fake, refusal};
use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

/// Remembers what it was told.
#[derive(Default)]
struct Witness {
    acknowledged: Vec<(String, Uuid, String)>,
    progress: Option<Progress>,
}

impl ImportObserver for Witness {
    fn acknowledged(&mut self, corpus: &str, event_id: Uuid, reference: &str) {
        self.acknowledged.push((corpus.to_owned(), event_id, reference.to_owned()));
    }

    fn progress(&mut self, progress: Progress) {
        assert!(self.progress.is_none_or(|before| before.events <= progress.events));
        self.progress = Some(progress);
    }
}

fn claim(corpus: &str, at: i64, reference: &str) -> String {
    format!(
        r#"{{"op":"claim","corpus":"{corpus}","at":{at},"ref":"{reference}","occurred_at":{at},"event_key":"k{reference}","category":"root","owning_corpus":"{corpus}","hosting_corpus":"{corpus}","size":3}}"#
    )
}

fn change(operation: &str, corpus: &str, at: i64, reference: &str) -> String {
    format!(r#"{{"op":"{operation}","corpus":"{corpus}","at":{at},"ref":"{reference}","reason":"because"}}"#)
}

fn refer(corpus: &str, at: i64, to: &str) -> String {
    format!(r#"{{"op":"reference","corpus":"{corpus}","at":{at},"to_latest_of":"{to}"}}"#)
}

fn source(lines: &[String]) -> Source {
    Source::new(Cursor::new(lines.join("\n"))).expect("in memory")
}

#[test]
fn a_small_file_is_played_line_by_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 2, ClockMode::Replay);
    let client = Client::connect(fake.socket()).expect("connected");
    let lines = [
        claim("a", 1, "a1"),
        claim("b", 2, "b1"),
        claim("b", 3, "b2"),
        refer("a", 4, "b"),
        change("retract", "b", 5, "b2"),
        refer("a", 6, "b"),
        refer("a", 6, "b"),
        change("retract", "b", 7, "b2"),
        change("reactivate", "b", 8, "b2"),
        change("retract", "a", 9, "b2"),
        refer("a", 10, "c"),
        refer("a", 11, "b"),
    ];
    let mut witness = Witness::default();
    let report = play(&client, source(&lines), &ImportOptions::default(), &mut witness).expect("played");
    let json = serde_json::to_value(&report).expect("a report");
    let seconds = json["seconds"].as_f64().expect("seconds");
    assert_eq!(
        json,
        serde_json::json!({
            "claimed": 3, "referenced": 4, "retracted": 1, "reactivated": 1,
            "refused": {"BAD_TRANSITION": 1, "NOT_VISIBLE": 2}, "first_refused": json["first_refused"], "sent_again": 0,
            "seconds": seconds
        })
    );
    let why = "retract b2 of a (at 9): no such claim before it was acknowledged";
    assert_eq!((report.first_refused.len(), report.first_refused["NOT_VISIBLE"].as_str()), (2, why));
    assert_eq!((report.acknowledged(), report.latency_us.len()), (9, 9));
    assert_eq!(witness.progress.map(|progress| progress.events), Some(12));

    let seen = fake.seen();
    let order: Vec<_> =
        seen.iter().map(|seen| (seen.operation.as_str(), seen.at_us.expect("replayed") / 1_000_000)).collect();
    assert_eq!(
        order,
        [
            ("onboard", 1),
            ("claim", 1),
            ("onboard", 2),
            ("claim", 2),
            ("claim", 3),
            ("reference", 4),
            ("retract", 5),
            ("reference", 6),
            ("reference", 6),
            ("retract", 7),
            ("reactivate", 8),
            ("reference", 11),
        ]
    );
    for (index, request) in seen.iter().enumerate() {
        let key = request.key.expect("every one changes something");
        assert!(seen[..index].iter().all(|earlier| earlier.key != Some(key)), "{request:?}");
        assert_eq!((key.as_u128() >> 80) as i64, request.at_us.expect("replayed") / 1000);
    }
    let ledger = fake.ledger.lock().expect("ledger");
    assert_eq!(ledger.rows.iter().map(|row| row.metadata.len()).collect::<Vec<_>>(), [3, 3, 3]);
    let acknowledged: Vec<_> = ledger.rows.iter().map(|row| row.event_id).collect();
    assert_eq!(witness.acknowledged.iter().map(|(_, id, _)| *id).collect::<Vec<_>>(), acknowledged);
}

/// Plays the sixteen corpora and checks that what arrived is what the file says, in its order.
fn check_sixteen_corpora(fake: &Fake, options: &ImportOptions) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/sixteen-corpora.ndjson.gz");
    let client = Client::connect(fake.socket()).expect("connected");
    let mut witness = Witness::default();
    let report = import(&client, &path, options, &mut witness).expect("played");
    eprintln!(
        "{} acknowledged in {:.2} s, p50 {} us, refused {:?}",
        report.acknowledged(),
        report.seconds,
        report.latency_us.value_at_quantile(0.5),
        report.refused
    );
    assert_eq!(report.claimed, 41_853);
    let others = report.referenced + report.retracted + report.reactivated + report.refused.values().sum::<u64>();
    assert_eq!(others, 162 + 86 + 4);
    let progress = witness.progress.expect("told");
    assert_eq!((progress.events, Some(progress.bytes)), (42_105, progress.bytes_total));

    let mut file = Source::open(&path).expect("open");
    let mut expected: HashMap<String, Vec<String>> = HashMap::new();
    while let Some(event) = file.next_event().expect("an event") {
        if let claim_client::import::EventKind::Claim { event_key, .. } = event.kind {
            expected.entry(event.corpus).or_default().push(event_key);
        }
    }
    let ledger = fake.ledger.lock().expect("ledger");
    assert_eq!((ledger.rows.len(), ledger.corpora.len()), (41_853, 16));
    let tombstoned = ledger.rows.iter().filter(|row| row.lifecycle == Lifecycle::Tombstoned).count() as u64;
    assert_eq!(tombstoned, report.retracted - report.reactivated);
    let mut arrived: HashMap<String, Vec<String>> = HashMap::new();
    for row in &ledger.rows {
        arrived.entry(row.corpus.clone()).or_default().push(row.event_key.clone());
    }
    assert!(arrived == expected, "each corpus's claims arrive in the file's order");
    drop(ledger);

    // The same file asks for the same things with the same keys.
    let first: HashMap<(String, String), Uuid> =
        witness.acknowledged.into_iter().map(|(corpus, id, reference)| ((corpus, reference), id)).collect();
    let mut again = Witness::default();
    import(&client, &path, options, &mut again).expect("played again");
    assert_eq!(again.acknowledged.len(), 41_853);
    assert!(again.acknowledged.into_iter().all(|(corpus, id, reference)| first[&(corpus, reference)] == id));
    assert_eq!(fake.ledger.lock().expect("ledger").rows.len(), 41_853);
}

#[test]
fn the_sixteen_corpora_arrive_whole_and_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 3, ClockMode::Replay);
    check_sixteen_corpora(&fake, &ImportOptions::default());
}

#[test]
fn broken_connections_change_nothing_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 2, ClockMode::Replay);
    let mut requests = 0;
    fake.script(move |_, _| {
        requests += 1;
        match requests % 4000 {
            1999 => Action::DropBefore,
            3999 => Action::DropAfter,
            _ => Action::Answer,
        }
    });
    check_sixteen_corpora(&fake, &ImportOptions { window: 100, ..ImportOptions::default() });
}

#[test]
fn what_was_refused_for_overload_is_sent_again_in_its_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 1, ClockMode::Replay);
    let client = Client::connect(fake.socket()).expect("connected");
    // The corpus and nine claims are taken; from then on the daemon takes nothing until it has refused all that are left.
    let mut requests = 0;
    fake.script(move |_, _| {
        requests += 1;
        let refuse = (11..=31).contains(&requests);
        if refuse { Action::Refuse(refusal(ErrorCode::Overloaded, 1)) } else { Action::Answer }
    });
    let lines: Vec<String> = (1..=30).map(|at| claim("a", at, &format!("{at:02}"))).collect();
    let report = play(&client, source(&lines), &ImportOptions::default(), &mut ()).expect("played");
    assert_eq!((report.claimed, report.refused.len(), report.sent_again), (30, 0, 21));
    let ledger = fake.ledger.lock().expect("ledger");
    let order: Vec<_> = ledger.rows.iter().map(|row| row.occurred_at_us / 1_000_000).collect();
    assert_eq!(order, (1..=30).collect::<Vec<_>>());
}

/// An import of thirty claims against a daemon that takes the corpus and nine claims, and then refuses all with `code`.
fn import_refused_with(code: ErrorCode) -> Result<ImportReport, ImportError> {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 1, ClockMode::Replay);
    let client = Client::connect(fake.socket()).expect("connected");
    let mut requests = 0;
    fake.script(move |_, _| {
        requests += 1;
        if requests > 10 { Action::Refuse(refusal(code, 1)) } else { Action::Answer }
    });
    let lines: Vec<String> = (1..=30).map(|at| claim("a", at, &format!("{at:02}"))).collect();
    let options = ImportOptions { window: 4, patience: Duration::from_millis(50), ..ImportOptions::default() };
    play(&client, source(&lines), &options, &mut ())
}

#[test]
fn a_daemon_that_takes_nothing_ends_an_import_and_drops_no_event() {
    for code in [ErrorCode::Overloaded, ErrorCode::NoSpace, ErrorCode::Deadline, ErrorCode::ShardFailed] {
        let error = import_refused_with(code).expect_err("it takes nothing");
        assert_eq!((error.report.claimed, error.report.refused.len()), (9, 0), "{code:?}");
        let ImportFailure::Client(failure) = error.failure else { panic!("{}", error.failure) };
        assert_eq!(failure.code(), Some(code));
    }
    let report = import_refused_with(ErrorCode::Throttled).expect("what a cap holds back is counted");
    assert_eq!((report.claimed, report.refused.get("THROTTLED")), (9, Some(&21)));
    let report = import_refused_with(ErrorCode::KeyExpired).expect("what an event asks is counted");
    assert_eq!((report.claimed, report.refused.get("KEY_EXPIRED"), report.sent_again), (9, Some(&21), 0));
    assert_eq!(report.first_refused["KEY_EXPIRED"], "claim 10 of a (at 10): KEY_EXPIRED: as the test wants it");
}

#[test]
fn an_import_whose_daemon_dies_says_how_far_it_came() {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 1, ClockMode::Replay);
    let options = ClientOptions { attempts_max: 2, ..ClientOptions::default() };
    let client = Client::connect_with(fake.socket(), options).expect("connected");
    let mut requests = 0;
    fake.script(move |_, _| {
        requests += 1;
        if requests > 10 { Action::DropBefore } else { Action::Answer }
    });
    let lines: Vec<String> = (1..=30).map(|at| claim("a", at, &format!("{at:02}"))).collect();
    let options = ImportOptions { window: 4, deadline: Some(Duration::from_secs(5)), ..ImportOptions::default() };
    let error = play(&client, source(&lines), &options, &mut ()).expect_err("it dies");
    assert_eq!(error.report.claimed, 9);
    match error.failure {
        ImportFailure::Client(error) => assert_eq!(error.classification(), Classification::Unknown),
        ImportFailure::Source(error) => panic!("{error}"),
    }
    let mut lines = lines;
    lines[20] = "{".to_owned();
    fake.script(|_, _| Action::Answer);
    let error = play(&client, source(&lines), &options, &mut ()).expect_err("no event");
    assert!(error.to_string().starts_with("event 21: the line is no event"), "{error}");
}
