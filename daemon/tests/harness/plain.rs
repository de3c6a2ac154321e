//! Reconciliation once more, as plainly as it can be said: what a pass is to come to. It knows rows and rules, and
//! compares every row of a key with every other.

use claim_client::{Lifecycle, Row, Uuid};
use std::collections::{BTreeMap, BTreeSet};

const MINUTE_US: i64 = 60_000_000;

/// A row, as far as reconciliation goes by it.
#[derive(Debug, Clone, PartialEq)]
pub struct PlainRow {
    pub event_id: Uuid,
    pub corpus: String,
    pub prefix: u16,
    pub event_key: String,
    pub claim_timestamp_us: i64,
    pub claim_sequence: u64,
    pub occurred_at_us: i64,
    /// What its entries add up to: never expired.
    pub state: Lifecycle,
    pub canonical_id: Option<Uuid>,
    pub incident_active: bool,
    /// The quarter that it counts in.
    pub quarter: (i64, i64),
    pub references: u32,
}

impl PlainRow {
    /// From a row as the daemon shows it.
    pub fn of(row: &Row, prefix: u16) -> PlainRow {
        PlainRow {
            event_id: row.event_id,
            corpus: row.corpus.clone(),
            prefix,
            event_key: row.event_key.clone(),
            claim_timestamp_us: row.claim_timestamp_us,
            claim_sequence: row.claim_sequence,
            occurred_at_us: row.occurred_at_us,
            state: logged_state(row),
            canonical_id: row.canonical_id,
            incident_active: row.incident_active,
            quarter: effective_quarter(row.claim_timestamp_us, row.reactivated_at_us),
            references: row.references,
        }
    }
}

/// What a row is but for its age.
pub fn logged_state(row: &Row) -> Lifecycle {
    match row.lifecycle {
        Lifecycle::Expired if row.tombstoned_at_us.is_some() => Lifecycle::Tombstoned,
        Lifecycle::Expired if row.dispute_id.is_some() => Lifecycle::Disputed,
        Lifecycle::Expired if row.canonical_id.is_some() => Lifecycle::Referenced,
        Lifecycle::Expired => Lifecycle::Registered,
        state => state,
    }
}

/// Year and quarter, the latter from 0.
pub fn quarter_of(at_us: i64) -> (i64, i64) {
    let time = jiff::Timestamp::from_microsecond(at_us).expect("a time of the tests").to_zoned(jiff::tz::TimeZone::UTC);
    (i64::from(time.year()), i64::from(time.month() - 1) / 3)
}

/// Such as `2026-Q1`.
pub fn quarter_name((year, quarter): (i64, i64)) -> String {
    format!("{year:04}-Q{}", quarter + 1)
}

/// The one after.
pub fn next_quarter((year, quarter): (i64, i64)) -> (i64, i64) {
    if quarter == 3 { (year + 1, 0) } else { (year, quarter + 1) }
}

fn start_us((year, quarter): (i64, i64)) -> i64 {
    let date = jiff::civil::date(year as i16, quarter as i8 * 3 + 1, 1);
    date.to_zoned(jiff::tz::TimeZone::UTC).expect("a date of the tests").timestamp().as_microsecond()
}

fn effective_quarter(claim_timestamp_us: i64, reactivated_at_us: Option<i64>) -> (i64, i64) {
    let own = quarter_of(claim_timestamp_us);
    match reactivated_at_us.map(quarter_of) {
        Some(reactivation) if reactivation != own => next_quarter(reactivation),
        _ => own,
    }
}

/// What is configured, and what happened to the ledger.
#[derive(Debug, Clone)]
pub struct Rules {
    pub tolerance_us: i64,
    pub window_us: i64,
    pub incident_window_us: i64,
    /// From, to, window.
    pub budgets: Vec<(String, String, i64)>,
    pub retention_years: i64,
    pub barriers: Vec<i64>,
    /// Pairs that a dispute said are events of their own.
    pub dismissed: Vec<(Uuid, Uuid)>,
    pub corpora: Vec<String>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            tolerance_us: 5 * MINUTE_US,
            window_us: 5 * MINUTE_US,
            incident_window_us: 15 * MINUTE_US,
            budgets: Vec::new(),
            retention_years: 4,
            barriers: Vec::new(),
            dismissed: Vec::new(),
            corpora: Vec::new(),
        }
    }
}

impl Rules {
    fn window_us(&self, row: &PlainRow) -> i64 {
        let default_us = if row.incident_active { self.incident_window_us } else { self.window_us };
        let mut window_us = None;
        for to in self.corpora.iter().filter(|name| **name != row.corpus) {
            let budget = self.budgets.iter().find(|(from, t, _)| *from == row.corpus && t == to);
            let budget_us = budget.map_or(default_us, |(.., us)| *us);
            window_us = Some(window_us.map_or(budget_us, |us: i64| us.max(budget_us)));
        }
        window_us.unwrap_or(default_us)
    }

    /// Whether a row waits no more.
    pub fn is_closed(&self, row: &PlainRow, at_us: i64) -> bool {
        let window_us = self.window_us(row);
        let is_held =
            |barrier: &i64| (row.claim_timestamp_us - barrier).abs() <= window_us && barrier + window_us > at_us;
        row.claim_timestamp_us + window_us <= at_us && !self.barriers.iter().any(is_held)
    }

    /// Whether its retention is over.
    pub fn is_expired(&self, row: &PlainRow, at_us: i64) -> bool {
        let (year, quarter) = next_quarter(row.quarter);
        start_us((year + self.retention_years, quarter)) <= at_us
    }

    fn is_dismissed(&self, a: Uuid, b: Uuid) -> bool {
        self.dismissed.iter().any(|pair| *pair == (a, b) || *pair == (b, a))
    }
}

/// What a pass comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Alias to canonical row.
    pub merges: BTreeMap<Uuid, Uuid>,
    /// Event keys of which rows of two corpora take part.
    pub groups: u64,
    /// Those of them with a disputed row.
    pub left_alone: u64,
    /// Aliases of the keys that were looked at and that more than one row has.
    pub aliases: u64,
    pub suspects: BTreeSet<Vec<Uuid>>,
    /// What refers, and the row that it ends at.
    pub orphans: BTreeMap<Uuid, Uuid>,
}

/// A pass at a moment. It changes the rows as the pass does.
pub fn pass(rows: &mut [PlainRow], rules: &Rules, at_us: i64) -> Outcome {
    let mut outcome = Outcome::default();
    let mut by_key: BTreeMap<&str, Vec<&PlainRow>> = BTreeMap::new();
    for row in rows.iter() {
        by_key.entry(&row.event_key).or_default().push(row);
    }
    for group in by_key.values() {
        pass_key(group, rules, at_us, &mut outcome);
    }
    for row in rows.iter_mut() {
        if let Some(canonical_id) = outcome.merges.get(&row.event_id) {
            (row.state, row.canonical_id) = (Lifecycle::Referenced, Some(*canonical_id));
        }
    }
    outcome.orphans = orphans(rows, rules, at_us);
    outcome
}

fn pass_key(group: &[&PlainRow], rules: &Rules, at_us: i64, outcome: &mut Outcome) {
    let present: Vec<_> = group.iter().copied().filter(|row| !rules.is_expired(row, at_us)).collect();
    let disputed: Vec<_> = present.iter().copied().filter(|row| row.state == Lifecycle::Disputed).collect();
    let is_canonical = |row: &&PlainRow| row.state == Lifecycle::Registered && rules.is_closed(row, at_us);
    let mut rest: Vec<_> = present.iter().copied().filter(is_canonical).collect();
    rest.sort_by_key(|row| (row.claim_timestamp_us, row.claim_sequence, row.prefix));
    for corpus in &rules.corpora {
        let equal: Vec<_> = rest.iter().filter(|row| row.corpus == *corpus).map(|row| row.event_id).collect();
        if equal.len() > 1 {
            outcome.suspects.insert(equal);
        }
    }
    // A key of which every row waits, or is gone, counts nowhere.
    let waits_no_more = |row: &&PlainRow| row.state != Lifecycle::Tombstoned && rules.is_closed(row, at_us);
    if !present.iter().any(waits_no_more) {
        return;
    }
    if present.len() > 1 {
        outcome.aliases += present.iter().filter(|row| row.state == Lifecycle::Referenced).count() as u64;
    }
    let corpora: BTreeSet<_> = rest.iter().chain(&disputed).map(|row| &row.corpus).collect();
    if corpora.len() < 2 {
        return;
    }
    outcome.groups += 1;
    if !disputed.is_empty() {
        outcome.left_alone += 1;
        return;
    }
    while !rest.is_empty() {
        let first = rest.remove(0);
        let mut index = 0;
        while index < rest.len() {
            let row = rest[index];
            let is_other_corpus = row.corpus != first.corpus;
            let is_within = (row.occurred_at_us - first.occurred_at_us).abs() <= rules.tolerance_us;
            if is_other_corpus && is_within && !rules.is_dismissed(first.event_id, row.event_id) {
                outcome.merges.insert(row.event_id, first.event_id);
                rest.remove(index);
            } else {
                index += 1;
            }
        }
    }
}

fn orphans(rows: &[PlainRow], rules: &Rules, at_us: i64) -> BTreeMap<Uuid, Uuid> {
    let by_id: BTreeMap<_, _> = rows.iter().map(|row| (row.event_id, row)).collect();
    let mut orphans = BTreeMap::new();
    for row in rows.iter().filter(|row| row.references > 0 || row.state == Lifecycle::Referenced) {
        let mut end = row;
        while end.state == Lifecycle::Referenced {
            end = by_id[&end.canonical_id.expect("an alias names its canonical row")];
        }
        if end.state == Lifecycle::Tombstoned || rules.is_expired(end, at_us) {
            orphans.insert(row.event_id, end.event_id);
        }
    }
    orphans
}
