//! Reconciliation, and what bears on it.

use crate::args::{Barrier, Incident, OnOff, Reconcile};
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::{Pair, ReconcileReport, RequestOptions};
use serde::Serialize;

/// Shares of violations that call for attention, and for somebody at once, in thousandths.
const ALERT_PERMILLE: u64 = 10;
const PAGE_PERMILLE: u64 = 30;

/// An incident's beginning or end, in JSON.
#[derive(Debug, Serialize)]
struct IncidentJson {
    active: bool,
    at: String,
}

/// A barrier in JSON.
#[derive(Debug, Serialize)]
struct BarrierJson {
    at: String,
}

/// A pass in JSON. The lists hold at most a thousand each; the counts are of all.
#[derive(Debug, Serialize)]
struct ReportJson<'a> {
    dry_run: bool,
    pass: u64,
    at: String,
    rows_examined: u64,
    groups: u64,
    merged: u64,
    already_merged: u64,
    skipped_disputed: u64,
    refused: u64,
    suspects: u64,
    orphans: u64,
    merges_listed: Vec<MergeJson>,
    suspects_listed: Vec<SuspectJson<'a>>,
    orphans_listed: Vec<OrphanJson<'a>>,
}

#[derive(Debug, Serialize)]
struct MergeJson {
    event_id: String,
    canonical_id: String,
}

#[derive(Debug, Serialize)]
struct SuspectJson<'a> {
    corpus: &'a str,
    event_ids: Vec<String>,
}

#[derive(Debug, Serialize)]
struct OrphanJson<'a> {
    event_id: String,
    canonical_id: String,
    lifecycle: &'a str,
    references: u32,
    is_alias: bool,
}

/// What was measured between two corpora, in JSON.
#[derive(Debug, Serialize)]
struct PairJson<'a> {
    from: &'a str,
    to: &'a str,
    samples: u64,
    p50_us: u64,
    p95_us: u64,
    budget_us: u64,
    violations: u64,
    /// `none`, `alert` from 1 % of violations on, `page` from 3 %.
    alarm: &'static str,
}

impl<'a> ReportJson<'a> {
    fn new(report: &'a ReconcileReport) -> Self {
        let merges = report.merges_listed.iter().map(|merge| MergeJson {
            event_id: merge.event_id.to_string(),
            canonical_id: merge.canonical_id.to_string(),
        });
        let suspects = report.suspects_listed.iter().map(|suspect| SuspectJson {
            corpus: &suspect.corpus,
            event_ids: suspect.event_ids.iter().map(ToString::to_string).collect(),
        });
        let orphans = report.orphans_listed.iter().map(|orphan| OrphanJson {
            event_id: orphan.event_id.to_string(),
            canonical_id: orphan.canonical_id.to_string(),
            lifecycle: orphan.lifecycle.as_str(),
            references: orphan.references,
            is_alias: orphan.is_alias,
        });
        ReportJson {
            dry_run: report.dry_run,
            pass: report.pass,
            at: rfc3339(report.at_us),
            rows_examined: report.rows_examined,
            groups: report.groups,
            merged: report.merged,
            already_merged: report.already_merged,
            skipped_disputed: report.skipped_disputed,
            refused: report.refused,
            suspects: report.suspects,
            orphans: report.orphans,
            merges_listed: merges.collect(),
            suspects_listed: suspects.collect(),
            orphans_listed: orphans.collect(),
        }
    }
}

pub fn incident(session: &Session, verb: Incident, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let active = verb.state == OnOff::On;
    let at = rfc3339(session.client.incident(active, &options).wait()?.value);
    if output.is_json() {
        return output.object(&IncidentJson { active, at });
    }
    output.line(format_args!("the incident is {} since {at}", if active { "on" } else { "over" }))
}

pub fn barrier(session: &Session, verb: Barrier, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let at = rfc3339(session.client.barrier(&options).wait()?.value);
    if output.is_json() {
        return output.object(&BarrierJson { at });
    }
    output.line(format_args!("a barrier stands at {at}"))
}

pub fn reconcile(session: &Session, verb: Reconcile, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let report = session.client.reconcile(verb.dry_run, &options).wait()?.value;
    if output.is_json() { output.object(&ReportJson::new(&report)) } else { print_report(&report, output) }
}

fn print_report(report: &ReconcileReport, output: &mut Output) -> Result<(), Failure> {
    let (merged, pass) = match report.dry_run {
        true => ("would be merged", format!("{} (a dry run: nothing was changed)", report.pass)),
        false => ("merged", report.pass.to_string()),
    };
    output.pairs(&[
        ("pass", pass),
        ("at", rfc3339(report.at_us)),
        ("rows examined", report.rows_examined.to_string()),
        ("groups", format!("{} (event keys of two corpora or more)", report.groups)),
        (merged, report.merged.to_string()),
        ("merged before", report.already_merged.to_string()),
        ("left alone", format!("{} (disputed)", report.skipped_disputed)),
        ("refused", format!("{} (changed meanwhile)", report.refused)),
        ("suspects", format!("{} (equal event keys within one corpus)", report.suspects)),
        ("orphans", format!("{} (their canonical row is no longer registered)", report.orphans)),
    ])?;
    let json = ReportJson::new(report);
    let merges = json.merges_listed.into_iter().map(|merge| vec![merge.event_id, merge.canonical_id]);
    section(merged, &["event id", "canonical id"], merges.collect(), report.merged, output)?;
    let suspects = json.suspects_listed.into_iter();
    let suspects = suspects.map(|suspect| vec![suspect.corpus.to_owned(), suspect.event_ids.join(" ")]);
    section("suspects", &["corpus", "event ids"], suspects.collect(), report.suspects, output)?;
    let orphans = json.orphans_listed.into_iter().map(|orphan| {
        let kind = if orphan.is_alias { "alias" } else { "reference" };
        let references = orphan.references.to_string();
        vec![orphan.event_id, kind.to_owned(), orphan.canonical_id, orphan.lifecycle.to_owned(), references]
    });
    let head = ["event id", "kind", "canonical id", "lifecycle", "references"];
    section("orphans", &head, orphans.collect(), report.orphans, output)
}

/// A table under a heading, unless it is empty; what it does not list is counted.
fn section(
    heading: &str,
    head: &[&str],
    rows: Vec<Vec<String>>,
    count: u64,
    output: &mut Output,
) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let more = count.saturating_sub(rows.len() as u64);
    output.line("")?;
    output.line(format_args!("{heading}:"))?;
    output.table(head, rows)?;
    if more > 0 { output.line(format_args!("and {more} more")) } else { Ok(()) }
}

pub fn propagation(session: &Session, output: &mut Output) -> Result<(), Failure> {
    let pairs = session.client.propagation(&RequestOptions::default()).wait()?.value;
    if output.is_json() {
        return pairs.iter().try_for_each(|pair| {
            output.object(&PairJson {
                from: &pair.from,
                to: &pair.to,
                samples: pair.samples,
                p50_us: pair.p50_us,
                p95_us: pair.p95_us,
                budget_us: pair.budget_us,
                violations: pair.violations,
                alarm: alarm(pair),
            })
        });
    }
    let ms = |us: u64| format!("{:.3} ms", us as f64 / 1e3);
    let row = |pair: &Pair| {
        vec![
            pair.from.clone(),
            pair.to.clone(),
            pair.samples.to_string(),
            ms(pair.p50_us),
            ms(pair.p95_us),
            ms(pair.budget_us),
            violations(pair),
            alarm(pair).to_owned(),
        ]
    };
    let head = ["from", "to", "samples", "p50", "p95", "budget", "violations", "alarm"];
    output.table(&head, pairs.iter().map(row).collect())
}

/// The violations and their share.
fn violations(pair: &Pair) -> String {
    let permille = permille(pair);
    format!("{} ({}.{} %)", pair.violations, permille / 10, permille % 10)
}

fn permille(pair: &Pair) -> u64 {
    pair.violations.saturating_mul(1000).checked_div(pair.samples).unwrap_or(0)
}

fn alarm(pair: &Pair) -> &'static str {
    match permille(pair) {
        PAGE_PERMILLE.. => "page",
        ALERT_PERMILLE.. => "alert",
        _ => "none",
    }
}
