//! A daemon with a replay ledger, and how the tests of passes talk to it: every request says its time.

use super::config::config;
use super::plain::{self, Outcome, PlainRow, Rules, logged_state, quarter_name, quarter_of};
use super::{Daemon, format, item, options, scratch};
use claim_client::{
    ClaimItem, Claimed, Client, DisputeState, Lifecycle, ReconcileReport, ReconciliationState, RequestOptions, Row,
    ScanRange, Total, Uuid,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a dispute's steps are waited for between two looks.
const STEP_PAUSE: Duration = Duration::from_millis(2);

/// Rows of a suspect that are named.
const SUSPECT_ROWS_MAX: usize = 16;
/// Lines of each list of a report.
const LISTED_MAX: u64 = 1_000;

/// A ledger of its own directory; the daemon may stop and start.
pub struct Ledger {
    pub dir: TempDir,
    pub config: Option<PathBuf>,
    pub daemon: Option<Daemon>,
}

impl Ledger {
    /// Formats one, and serves it with a configuration that says this, or with none.
    pub fn new(shards: u16, says: Option<&str>) -> Ledger {
        let dir = scratch();
        format(&dir.path().join("ledger"), shards, "replay");
        let config = says.map(|says| config(dir.path(), says));
        let mut ledger = Ledger { dir, config, daemon: None };
        ledger.start();
        ledger
    }

    /// A copy of a ledger that nobody serves, which is then served.
    pub fn copy_of(other: &Ledger) -> Ledger {
        assert!(other.daemon.is_none(), "a copy of what is being written is none");
        let dir = scratch();
        let data = dir.path().join("ledger");
        std::fs::create_dir(&data).expect("our directory");
        for file in std::fs::read_dir(other.data()).expect("a ledger") {
            let path = file.expect("a file").path();
            if path.metadata().expect("a file").is_file() {
                std::fs::copy(&path, data.join(path.file_name().expect("a name"))).expect("room for a copy");
            }
        }
        let mut ledger = Ledger { dir, config: other.config.clone(), daemon: None };
        ledger.start();
        ledger
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    pub fn start(&mut self) {
        let config = self.config.as_ref().map(|path| path.to_str().expect("a path of ours").to_owned());
        let more: Vec<&str> = config.iter().flat_map(|path| ["--config", path]).collect();
        self.daemon = Some(Daemon::start_more(&self.data(), &more));
    }

    pub fn stop(&mut self) {
        self.daemon.take().expect("it runs").stop();
    }

    /// SIGKILL, and another daemon.
    pub fn crash(&mut self) {
        self.daemon.take().expect("it runs").kill();
        self.start();
    }

    pub fn client(&self) -> Client {
        self.daemon.as_ref().expect("it runs").client()
    }
}

/// Keeps every quarter, whatever its age: what comes first is not dropped, and so nothing is.
pub fn hold_everything(client: &Client) {
    client.hold(1970, 1, &at(0)).wait().expect("a hold");
}

/// A request of a moment.
pub fn at(at_us: i64) -> RequestOptions {
    RequestOptions { at_us: Some(at_us), rationale: "a test".to_owned(), ..options() }
}

pub fn onboard(client: &Client, corpora: &[&str], at_us: i64) {
    for corpus in corpora {
        client.onboard(corpus, "a test", &at(at_us)).wait().expect("an onboarding");
    }
}

pub fn claim(client: &Client, corpus: &str, event_key: &str, occurred_at_us: i64, at_us: i64) -> Claimed {
    let item = ClaimItem { occurred_at_us, ..item(event_key) };
    client.claim(corpus, &item, &at(at_us)).wait().expect("a claim").value
}

pub fn reconcile(client: &Client, dry_run: bool, at_us: i64) -> ReconcileReport {
    let report = client.reconcile(dry_run, &at(at_us)).wait().expect("a pass").value;
    assert_eq!((report.dry_run, report.refused), (dry_run, 0), "{report:?}");
    report
}

/// Every row of every corpus.
pub fn all_rows(client: &Client) -> BTreeMap<Uuid, Row> {
    let corpora = client.corpora(&options()).wait().expect("the corpora").value;
    let mut rows = BTreeMap::new();
    for corpus in corpora {
        for row in client.scan(&corpus.name, ScanRange::default(), &options()).rows() {
            let row = row.expect("a row");
            rows.insert(row.event_id, row);
        }
    }
    rows
}

/// Opens a dispute and waits until it can be decided.
pub fn dispute(client: &Client, corpus: &str, ids: &[Uuid], at_us: i64) -> Uuid {
    let dispute = client.dispute(corpus, ids, &at(at_us)).wait().expect("a dispute").value.dispute_id;
    until(client, dispute, DisputeState::Arbitrate);
    dispute
}

/// Dismisses a dispute and waits until its rows are what they were meant to be.
pub fn dismiss(client: &Client, dispute: Uuid, at_us: i64) {
    client.dismiss(dispute, &at(at_us)).wait().expect("a decision");
    until(client, dispute, DisputeState::Closed);
}

/// Waits until a dispute has come so far.
pub fn until(client: &Client, dispute: Uuid, state: DisputeState) {
    loop {
        let found = client.dispute_lookup(dispute, &options()).wait().expect("the dispute").value.state;
        if found == state {
            return;
        }
        assert!(found < state, "the dispute is to be {state}, and is {found}");
        std::thread::sleep(STEP_PAUSE);
    }
}

/// A pass as the daemon ran it.
pub struct Ran {
    pub report: ReconcileReport,
    pub took: Duration,
}

/// A dry run, which changes nothing, and a pass: both report what the reimplementation says, and then every row is what it
/// says. Gives the rows, too.
pub fn pass_as_said(
    client: &Client,
    plain_rows: &mut [PlainRow],
    rules: &Rules,
    at_us: i64,
) -> (Ran, BTreeMap<Uuid, Row>) {
    let before = all_rows(client);
    let outcome = plain::pass(plain_rows, rules, at_us);
    let dry = reconcile(client, true, at_us);
    check_report(&dry, &outcome);
    assert_eq!(all_rows(client), before, "a dry run changes nothing");
    let started = Instant::now();
    let report = reconcile(client, false, at_us);
    let took = started.elapsed();
    check_report(&report, &outcome);
    assert_eq!(ReconcileReport { dry_run: true, pass: dry.pass, ..report.clone() }, dry, "the dry run said the same");
    let after = all_rows(client);
    check_rows(plain_rows, rules, at_us, &before, &after);
    (Ran { report, took }, after)
}

/// The rows are what the reimplementation says.
fn check_rows(
    plain_rows: &[PlainRow],
    rules: &Rules,
    at_us: i64,
    before: &BTreeMap<Uuid, Row>,
    after: &BTreeMap<Uuid, Row>,
) {
    assert_eq!((before.len(), after.len()), (plain_rows.len(), plain_rows.len()));
    for row in plain_rows {
        let was = &before[&row.event_id];
        let state = match row.state {
            Lifecycle::Disputed => ReconciliationState::Disputed,
            Lifecycle::Tombstoned if was.tombstone_reason_code.is_none() => ReconciliationState::Disputed,
            Lifecycle::Tombstoned => ReconciliationState::Tombstoned,
            Lifecycle::Registered if !rules.is_closed(row, at_us) => ReconciliationState::Pending,
            _ => ReconciliationState::Clean,
        };
        let expected = Row {
            lifecycle: if rules.is_expired(row, at_us) { Lifecycle::Expired } else { row.state },
            canonical_id: row.canonical_id,
            reconciliation_state: state,
            ..was.clone()
        };
        assert_eq!(after[&row.event_id], expected, "after the pass at {at_us}");
    }
}

/// The report says what the reimplementation says.
fn check_report(report: &ReconcileReport, outcome: &Outcome) {
    let (merged, suspects) = (outcome.merges.len() as u64, outcome.suspects.len() as u64);
    let counts = (report.groups, report.merged, report.already_merged, report.skipped_disputed, report.suspects);
    let said = (outcome.groups, merged, outcome.aliases, outcome.left_alone, suspects);
    assert_eq!(counts, said, "groups, merged, merged already, left alone, suspects: {report:?}");
    assert_eq!(report.orphans, outcome.orphans.len() as u64);
    let listed = (report.merges_listed.len(), report.suspects_listed.len(), report.orphans_listed.len());
    let most = |count: u64| count.min(LISTED_MAX) as usize;
    assert_eq!(listed, (most(merged), most(suspects), most(report.orphans)));
    assert!(report.merges_listed.iter().all(|merge| outcome.merges.get(&merge.event_id) == Some(&merge.canonical_id)));
    let is_listed = |ids: &[Uuid]| outcome.suspects.iter().any(|all| all.iter().take(SUSPECT_ROWS_MAX).eq(ids));
    assert!(report.suspects_listed.iter().all(|suspect| is_listed(&suspect.event_ids)));
    assert!(report.orphans_listed.iter().all(|o| outcome.orphans.get(&o.event_id) == Some(&o.canonical_id)));
}

/// The control totals of all corpora are what the rows add up to.
pub fn check_totals(client: &Client, rows: &BTreeMap<Uuid, Row>, slots: u64) {
    let mut counted: BTreeMap<(String, String), Total> = BTreeMap::new();
    for row in rows.values() {
        let quarter = quarter_name(quarter_of(row.claim_timestamp_us));
        let total = counted.entry((row.corpus.clone(), quarter.clone())).or_insert_with(|| Total {
            corpus: row.corpus.clone(),
            quarter,
            registered: 0,
            disputed: 0,
            referenced: 0,
            tombstoned: 0,
            slots,
            over_budget: 0,
            growth_permille: None,
            tombstone_permille: None,
        });
        total.over_budget += u64::from(row.over_budget);
        match logged_state(row) {
            Lifecycle::Registered => total.registered += 1,
            Lifecycle::Disputed => total.disputed += 1,
            Lifecycle::Referenced => total.referenced += 1,
            Lifecycle::Tombstoned => total.tombstoned += 1,
            Lifecycle::Expired => unreachable!("no entry says so"),
        }
    }
    let told = client.totals("", &options()).wait().expect("totals").value;
    let told: BTreeMap<_, _> = told.into_iter().map(|t| ((t.corpus.clone(), t.quarter.clone()), t)).collect();
    assert_eq!(told.keys().collect::<Vec<_>>(), counted.keys().collect::<Vec<_>>());
    for (key, told) in told {
        let signals = Total { growth_permille: None, tombstone_permille: None, ..told };
        assert_eq!(signals, counted[&key], "{key:?}");
    }
}

/// Where the file with the sixteen corpora is.
pub fn sixteen_corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/sixteen-corpora.ndjson.gz")
}
