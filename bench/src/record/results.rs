//! The JSON file of a run: what it takes to repeat, to compare and to plot it.

use super::{RESULTS_FILE, curve};
use crate::environment::Environment;
use crate::error::BenchError;
use crate::outcome::{Figures, MeasuredRow, thousands};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::SystemTime;

/// The version of the file's form.
const FORMAT: u32 = 1;

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// 1.
    pub format: u32,
    /// The arguments behind `claim-bench`.
    pub arguments: Vec<String>,
    /// What repeats what the run drew at random; none where it drew nothing.
    pub seed: Option<u64>,
    /// The workload's file; of runs with one only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// UTC, as RFC 3339 has it.
    pub started_at: String,
    pub environment: Environment,
    /// In the order measured.
    pub rows: Vec<RowRecord>,
    /// The highest rate that held, requests a second; of a sweep only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knee: Option<f64>,
    /// The device below the daemon, where it was measured.
    pub floor: Vec<FloorRecord>,
}

/// What makes two rows comparable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowSetting {
    /// `claims`, `lookups`, `scans`, or the name of a workload.
    pub operation: String,
    /// What went on at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
    pub connections: usize,
    pub outstanding: usize,
    /// Claims per request.
    pub batch: usize,
    /// Requests a second that were to be sent; none in a closed loop.
    pub rate: Option<f64>,
}

impl RowSetting {
    /// Requests with one item each, a new one for every reply.
    pub fn closed(operation: &str, connections: usize, outstanding: usize) -> Self {
        RowSetting { operation: operation.to_owned(), beside: None, connections, outstanding, batch: 1, rate: None }
    }

    /// What is asked for, whatever the load.
    pub fn kind(&self) -> String {
        let batch = if self.batch > 1 { format!(" by {}", thousands(self.batch as f64)) } else { String::new() };
        let beside = self.beside.as_ref().map_or_else(String::new, |beside| format!(" beside {beside}"));
        format!("{}{batch}{beside}", self.operation)
    }

    /// For people, in a legend.
    pub fn label(&self) -> String {
        match self.rate {
            Some(rate) => format!("{}, {}/s", self.kind(), thousands(rate)),
            None => format!("{}, {} outstanding", self.kind(), thousands(self.outstanding as f64)),
        }
    }

    /// The same with all that goes into it.
    pub fn description(&self) -> String {
        let rate = if self.rate.is_some() {
            format!(", up to {} outstanding", thousands(self.outstanding as f64))
        } else {
            String::new()
        };
        let plural = if self.connections == 1 { "" } else { "s" };
        format!("{}{rate}, {} connection{plural}", self.label(), self.connections)
    }
}

/// One row of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowRecord {
    /// Of its files.
    pub name: String,
    pub setting: RowSetting,
    /// UTC, as RFC 3339 has it: when the measured time began.
    pub started_at: String,
    /// Claims confirmed or rows read.
    pub units_per_second: f64,
    #[serde(flatten)]
    pub figures: Figures,
    pub interval_seconds: f64,
    pub intervals: Vec<Interval>,
    /// Percentiles, 0 to 100, and their latencies in microseconds.
    pub curve: Vec<(f64, f64)>,
}

/// A second of a row, or several in a long one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub count: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

/// A row of the floor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FloorRecord {
    /// What was done, with its size: `RWF_DSYNC 4 KiB`, say. Rows of one name differ in what is in flight.
    pub name: String,
    pub in_flight: u32,
    /// Operations a second that were to be begun; none in a closed loop.
    pub rate: Option<f64>,
    pub per_second: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// As a row's.
    pub curve: Vec<(f64, f64)>,
}

impl Results {
    /// A run of which no row was measured yet.
    pub fn new(arguments: Vec<String>, seed: Option<u64>, environment: Environment, started_at: SystemTime) -> Self {
        let (rows, floor) = (Vec::new(), Vec::new());
        Results {
            format: FORMAT,
            arguments,
            seed,
            workload: None,
            started_at: rfc_3339(started_at),
            environment,
            rows,
            knee: None,
            floor,
        }
    }

    /// Reads the run in a directory, or in the JSON file itself.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let file = if path.is_dir() { path.join(RESULTS_FILE) } else { path.to_owned() };
        let refuse = |found: String| BenchError::NoRun { path: file.clone(), found };
        let text = std::fs::read_to_string(&file).map_err(|error| refuse(error.to_string()))?;
        let results: Results = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        match results.format {
            FORMAT => Ok(results),
            other => Err(refuse(format!("its format is {other}, and this claim-bench knows {FORMAT}"))),
        }
    }

    /// The command that repeats it, for a shell.
    pub fn command(&self) -> String {
        let mut words = vec!["claim-bench".to_owned()];
        words.extend(self.arguments.iter().map(|argument| quoted(argument)));
        match self.seed {
            Some(seed) if !self.arguments.iter().any(|argument| argument.starts_with("--seed")) => {
                words.push(format!("--seed {seed}"));
            }
            _ => {}
        }
        words.join(" ")
    }

    /// A name for the files of a row of this setting that no row before it has.
    pub fn free_name(&self, setting: &RowSetting) -> String {
        let label = setting.label().replace("/s", " a second").replace(',', "");
        let name: String = label.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        let is_free = |name: &String| self.rows.iter().all(|row| row.name != *name);
        let more = (2..).map(|number| format!("{name}-{number}"));
        std::iter::once(name.clone()).chain(more).find(is_free).expect("there is always another number")
    }
}

impl RowRecord {
    /// Of a row whose files have this name.
    pub fn new(name: String, row: &MeasuredRow) -> Self {
        let MeasuredRow { setting, units_per_second, figures } = row.clone();
        let series = &row.figures.series;
        let total = series.total();
        let us = |ns: u64| ns as f64 / 1e3;
        let interval = |histogram: &hdrhistogram::Histogram<u64>| Interval {
            count: histogram.len(),
            p50_us: us(histogram.value_at_quantile(0.5)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            max_us: us(histogram.max()),
        };
        RowRecord {
            name,
            setting,
            started_at: rfc_3339(series.started_at()),
            units_per_second,
            figures,
            interval_seconds: series.interval().as_secs_f64(),
            intervals: series.histograms().iter().map(interval).collect(),
            curve: curve(total.len(), |share| total.value_at_quantile(share)),
        }
    }
}

fn rfc_3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|error| error.to_string(), |timestamp| timestamp.to_string())
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_that_a_shell_takes() {
        let environment = Environment::of(Path::new("."), None);
        let arguments = ["run", "--record", "it's here", "--json"].map(str::to_owned).to_vec();
        let mut results = Results::new(arguments, Some(17), environment, SystemTime::UNIX_EPOCH);
        assert_eq!(results.command(), r"claim-bench run --record 'it'\''s here' --json --seed 17");
        results.arguments.push("--seed=17".to_owned());
        assert!(!results.command().contains("--seed 17"), "{}", results.command());
        assert_eq!(results.started_at, "1970-01-01T00:00:00Z");
    }

    #[test]
    fn settings_have_labels() {
        let claims = RowSetting { batch: 1000, ..RowSetting::closed("claims", 4, 1024) };
        assert_eq!(claims.label(), "claims by 1,000, 1,024 outstanding");
        let beside = Some("claims".to_owned());
        let lookups = RowSetting { beside, rate: Some(2000.0), ..RowSetting::closed("lookups", 4, 64) };
        assert_eq!(lookups.label(), "lookups beside claims, 2,000/s");
        assert_eq!(lookups.description(), "lookups beside claims, 2,000/s, up to 64 outstanding, 4 connections");
    }
}
