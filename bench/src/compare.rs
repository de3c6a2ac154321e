//! `claim-bench compare`: two recorded runs, row by row.

use crate::error::BenchError;
use crate::outcome::{hundredths, number_table, thousands};
use crate::record::{Results, RowRecord};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use std::path::PathBuf;

/// Which runs.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// The run before: its results.json, or the directory that has it.
    before: PathBuf,
    /// The run after.
    after: PathBuf,
    /// One JSON object per row that both runs have.
    #[arg(long)]
    json: bool,
}

/// One figure of a row in both runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Change {
    before: f64,
    after: f64,
    /// After ÷ before; absent where before is 0.
    ratio: Option<f64>,
}

/// A row that both runs have.
#[derive(Debug, PartialEq, Serialize)]
struct Pair {
    row: String,
    /// Claims confirmed or rows read a second.
    per_second: Change,
    p50_us: Change,
    p99_us: Change,
    p999_us: Change,
    /// Whether the rate that was asked for was missed, before and after.
    failed: [bool; 2],
}

/// Reads both, pairs their rows and prints them; an error when they have none in common.
pub fn compare(arguments: &CompareArguments) -> Result<(), BenchError> {
    let (before, after) = (Results::read(&arguments.before)?, Results::read(&arguments.after)?);
    let (pairs, lone) = pair(&before.rows, &after.rows);
    if pairs.is_empty() {
        let sentence =
            "the runs have no row in common: rows match by operation, connections, outstanding, batch and rate";
        return Err(BenchError::Usage(sentence.to_owned()));
    }
    if arguments.json {
        pairs.iter().for_each(|pair| println!("{}", serde_json::to_string(pair).expect("numbers and names serialise")));
        return Ok(());
    }
    println!("before: {}, {}", before.started_at, before.command());
    println!("after:  {}, {}", after.started_at, after.command());
    for line in differences(&before, &after) {
        println!("{line}");
    }
    println!("{}", table(&pairs));
    for row in lone {
        println!("in one run only: {row}");
    }
    Ok(())
}

impl Change {
    fn new(before: f64, after: f64) -> Self {
        Change { before, after, ratio: (before > 0.0).then(|| hundredths(after / before)) }
    }
}

impl Pair {
    fn new(before: &RowRecord, after: &RowRecord) -> Self {
        let (a, b) = (&before.figures, &after.figures);
        Pair {
            row: before.setting.description(),
            per_second: Change::new(before.units_per_second, after.units_per_second),
            p50_us: Change::new(a.latencies.p50_us, b.latencies.p50_us),
            p99_us: Change::new(a.latencies.p99_us, b.latencies.p99_us),
            p999_us: Change::new(a.latencies.p999_us, b.latencies.p999_us),
            failed: [a.failed, b.failed],
        }
    }
}

/// Rows of one setting in both runs, the first with the first and so on; and descriptions of the others.
fn pair(before: &[RowRecord], after: &[RowRecord]) -> (Vec<Pair>, Vec<String>) {
    let mut rest: Vec<&RowRecord> = after.iter().collect();
    let (mut pairs, mut lone) = (Vec::new(), Vec::new());
    for row in before {
        match rest.iter().position(|other| other.setting == row.setting) {
            Some(at) => pairs.push(Pair::new(row, rest.remove(at))),
            None => lone.push(format!("before, {}", row.setting.description())),
        }
    }
    lone.extend(rest.iter().map(|row| format!("after, {}", row.setting.description())));
    (pairs, lone)
}

/// What of the machines and programs differs.
fn differences(before: &Results, after: &Results) -> Vec<String> {
    let (before, after) = (before.environment.lines(), after.environment.lines());
    let lost =
        before.iter().filter(|line| !after.contains(line)).map(|(name, value)| format!("before: {name} {value}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|(name, value)| format!("after:  {name} {value}"));
    lost.chain(new).collect()
}

fn table(pairs: &[Pair]) -> Table {
    let mut table = number_table(&["row", "", "before", "after", "after ÷ before"]);
    for column in table.column_iter_mut().take(2) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    for pair in pairs {
        let figures = [
            ("per second", pair.per_second),
            ("p50 µs", pair.p50_us),
            ("p99 µs", pair.p99_us),
            ("p99.9 µs", pair.p999_us),
        ];
        for (number, (name, Change { before, after, ratio })) in figures.into_iter().enumerate() {
            let row = if number == 0 { pair.row.as_str() } else { "" };
            let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            table.add_row([row, name, &thousands(before), &thousands(after), &ratio]);
        }
        if pair.failed != [false; 2] {
            let [before, after] = pair.failed.map(|failed| if failed { "FAILED" } else { "held" });
            table.add_row(["", "rate is", before, after, ""]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use crate::outcome::{Figures, MeasuredRow, Tally};
    use crate::record::RowSetting;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    fn row(outstanding: usize, latency_us: u64, per_second: f64) -> RowRecord {
        let second = Duration::from_secs(1);
        let mut tally = Tally::new(second);
        (0..100).for_each(|_| {
            tally.answered(Duration::ZERO, Duration::from_micros(latency_us));
            tally.confirmed(1, 1);
        });
        let figures = Figures::new(outstanding, None, tally, second);
        let setting = RowSetting::closed("claims", 4, outstanding);
        RowRecord::new("row".to_owned(), &MeasuredRow { setting, units_per_second: per_second, figures })
    }

    #[test]
    fn rows_are_paired_by_their_setting() {
        let before = [row(1, 100, 1000.0), row(64, 200, 8000.0), row(16, 1, 1.0)];
        let after = [row(64, 100, 16_000.0), row(1, 150, 0.0), row(64, 1, 1.0)];
        let (pairs, lone) = pair(&before, &after);
        let ratios: Vec<_> = pairs.iter().map(|pair| (pair.per_second.ratio, pair.p99_us.ratio)).collect();
        assert_eq!(ratios, [(Some(0.0), Some(1.5)), (Some(2.0), Some(0.5))]);
        assert_eq!(
            lone,
            ["before, claims, 16 outstanding, 4 connections", "after, claims, 64 outstanding, 4 connections"]
        );
        let text = table(&pairs).to_string();
        assert!(text.contains("16,000") && text.contains("2.00") && !text.contains("FAILED"), "{text}");
        assert_eq!(Change::new(0.0, 5.0).ratio, None);
    }

    #[test]
    fn what_differs_of_the_machines_is_named() {
        let run = |daemon: &str| {
            let environment = Environment { daemon: Some(daemon.to_owned()), ..Environment::of(Path::new("."), None) };
            Results::new(Vec::new(), None, environment, SystemTime::UNIX_EPOCH)
        };
        assert_eq!(differences(&run("claimd 1"), &run("claimd 1")), Vec::<String>::new());
        let lines = differences(&run("claimd 1"), &run("claimd 2"));
        assert_eq!(lines, ["before: daemon claimd 1", "after:  daemon claimd 2"]);
    }

    #[test]
    fn files_are_read_and_runs_without_common_rows_refused() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let write = |name: &str, rows: &[RowRecord]| {
            let environment = Environment::of(Path::new("."), None);
            let results =
                Results { rows: rows.to_vec(), ..Results::new(Vec::new(), None, environment, SystemTime::UNIX_EPOCH) };
            let path = directory.path().join(name);
            std::fs::write(&path, serde_json::to_string(&results).expect("it serialises")).expect("our own directory");
            path
        };
        let (before, after) = (write("a.json", &[row(1, 5, 5.0)]), write("b.json", &[row(2, 5, 5.0)]));
        let arguments = CompareArguments { before: before.clone(), after, json: false };
        let error = compare(&arguments).expect_err("nothing in common").to_string();
        assert!(error.contains("no row in common"), "{error}");
        compare(&CompareArguments { after: before.clone(), before, json: true }).expect("a run and itself");
    }
}
