//! Playing a file into a replay ledger.

use crate::args::Import;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use claim_client::import::{ImportObserver, ImportOptions, ImportPlan, ImportReport, Progress, import as play, plan};
use claim_client::{ClientError, ClockMode, ErrorCode, ErrorOutcome, ServerError};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::time::Duration;

/// Shows how far the file has been read, on standard error, if that is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style =
            ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}  {elapsed}").expect("the template is valid");
        Bar(ProgressBar::new(0).with_style(style))
    }
}

impl ImportObserver for Bar {
    fn progress(&mut self, progress: Progress) {
        self.0.set_length(progress.bytes_total.unwrap_or(progress.bytes));
        self.0.set_position(progress.bytes);
        self.0.set_message(format!("{} events", progress.events));
    }
}

pub fn import(session: &Session, verb: Import, output: &mut Output) -> Result<(), Failure> {
    if session.client.welcome().clock != ClockMode::Replay {
        return Err(ClientError::Refused(ServerError {
            code: ErrorCode::BadRequest,
            outcome: ErrorOutcome::Definite,
            message: "the ledger takes its time from the wall clock; import into one formatted with --clock replay"
                .to_owned(),
            retry_after_ms: 0,
            registered_id: None,
        })
        .into());
    }
    let mut bar = Bar::new();
    let outcome = play(&session.client, &verb.file, &ImportOptions::default(), &mut bar);
    bar.0.finish_and_clear();
    let report = outcome.map_err(|error| Failure::Import { error: Box::new(error) })?;
    if output.is_json() {
        output.object(&report)?;
    } else {
        print(&report, output)?;
    }
    match report.refused.iter().max_by_key(|(_, count)| **count) {
        Some((code, _)) if report.acknowledged() == 0 => {
            output.finish()?;
            Err(Failure::Refused(format!("every event was refused, most with {code}: nothing was imported")))
        }
        _ => Ok(()),
    }
}

/// Reads the file and says what an import would send.
pub fn dry_run(file: &Path, output: &mut Output) -> Result<(), Failure> {
    let mut bar = Bar::new();
    let outcome = plan(file, &mut bar);
    bar.0.finish_and_clear();
    let plan = outcome.map_err(|error| Failure::Usage(error.to_string()))?;
    if output.is_json() { output.object(&plan) } else { print_plan(&plan, output) }
}

fn print_plan(plan: &ImportPlan, output: &mut Output) -> Result<(), Failure> {
    let mut rows = vec![
        vec!["corpora to onboard, unless they are there".to_owned(), plan.corpora.to_string()],
        vec!["claims".to_owned(), plan.claims.to_string()],
        vec!["references".to_owned(), plan.references.to_string()],
        vec!["retractions".to_owned(), plan.retractions.to_string()],
        vec!["reactivations".to_owned(), plan.reactivations.to_string()],
    ];
    rows.extend(plan.refused.iter().map(|(code, count)| vec![format!("refused: {code}"), count.to_string()]));
    output.table(&["a dry run: would be sent", "count"], rows)?;
    if let Some(first) = &plan.first_refused {
        output.line("")?;
        output.line(format_args!("first refused: {first}"))?;
    }
    Ok(())
}

fn print(report: &ImportReport, output: &mut Output) -> Result<(), Failure> {
    let mut rows = vec![
        vec!["claimed".to_owned(), report.claimed.to_string()],
        vec!["referenced".to_owned(), report.referenced.to_string()],
        vec!["retracted".to_owned(), report.retracted.to_string()],
        vec!["reactivated".to_owned(), report.reactivated.to_string()],
    ];
    rows.extend(report.refused.iter().map(|(code, count)| vec![format!("refused: {code}"), count.to_string()]));
    output.table(&["events", "count"], rows)?;
    let per_second = report.acknowledged() as f64 / report.seconds.max(f64::MIN_POSITIVE);
    output.line("")?;
    output.line(format_args!(
        "{} acknowledged in {:.2} s, {per_second:.0} per second; latency p50 {:?}, p99 {:?}, p99.9 {:?}",
        report.acknowledged(),
        report.seconds,
        latency(report, 0.5),
        latency(report, 0.99),
        latency(report, 0.999),
    ))?;
    for (code, why) in &report.first_refused {
        output.line(format_args!("first {code}: {why}"))?;
    }
    if report.sent_again > 0 {
        output.line(format_args!(
            "the ledger was overloaded or full: events were sent again {} times",
            report.sent_again
        ))?;
    }
    Ok(())
}

fn latency(report: &ImportReport, quantile: f64) -> Duration {
    Duration::from_micros(report.latency_us.value_at_quantile(quantile))
}
