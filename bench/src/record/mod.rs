//! What is kept of a run: for each row the histogram and its seconds in the formats that viewers open, and for all of it one
//! JSON file with what it takes to repeat, to compare and to plot it.
//!
//! The warm-up is in none of them. The JSON file is written anew after each row, so that a run that is broken off leaves the
//! rows that it finished.

mod interval_log;
mod percentile_text;
mod results;

pub use percentile_text::curve;
pub use results::{FloorRecord, Interval, Results, RowRecord, RowSetting};

use crate::environment::Environment;
use crate::error::BenchError;
use crate::outcome::MeasuredRow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The name of the JSON file.
pub const RESULTS_FILE: &str = "results.json";

/// A run's directory, and what was written there so far.
#[derive(Debug)]
pub struct Recorder {
    directory: PathBuf,
    results: Results,
}

impl Recorder {
    /// Makes the directory, which must not have a run in it yet. `seed` is what repeats what the run draws at random.
    pub fn start(directory: &Path, environment: Environment, seed: Option<u64>) -> Result<Self, BenchError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| BenchError::Write { path: directory.to_owned(), source })?;
        let file = directory.join(RESULTS_FILE);
        if file.exists() {
            let sentence = format!("{} has a run already: name another directory", file.display());
            return Err(BenchError::Usage(sentence));
        }
        let results = Results::new(std::env::args().skip(1).collect(), seed, environment, SystemTime::now());
        let recorder = Recorder { directory: directory.to_owned(), results };
        recorder.write_results()?;
        Ok(recorder)
    }

    /// Keeps a row: its histogram, its seconds, and its figures.
    pub fn row(&mut self, row: &MeasuredRow) -> Result<(), BenchError> {
        let name = self.results.free_name(&row.setting);
        let series = &row.figures.series;
        let total = series.total();
        self.write(&format!("{name}.hgrm"), |out| percentile_text::write(&total, out))?;
        self.write(&format!("{name}.hlog"), |out| interval_log::write(series, out))?;
        self.results.rows.push(RowRecord::new(name, row));
        self.write_results()
    }

    /// Keeps a row of the floor.
    pub fn floor(&mut self, floor: FloorRecord) -> Result<(), BenchError> {
        self.results.floor.push(floor);
        self.write_results()
    }

    /// Keeps the text of the workload that all rows have.
    pub fn workload(&mut self, text: &str) -> Result<(), BenchError> {
        self.results.workload = Some(text.to_owned());
        self.write_results()
    }

    /// Keeps the highest rate that a sweep found to hold.
    pub fn knee(&mut self, rate: f64) -> Result<(), BenchError> {
        self.results.knee = Some(rate);
        self.write_results()
    }

    fn write_results(&self) -> Result<(), BenchError> {
        self.write(RESULTS_FILE, |out| {
            serde_json::to_writer_pretty(&mut *out, &self.results)?;
            out.push(b'\n');
            Ok(())
        })
    }

    fn write(&self, name: &str, make: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Result<(), BenchError> {
        let path = self.directory.join(name);
        let mut out = Vec::new();
        make(&mut out).and_then(|()| std::fs::write(&path, &out)).map_err(|source| BenchError::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Figures, Tally};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn figures() -> Figures {
        let mut tally = Tally::new(3 * SECOND);
        for number in 0..300 {
            tally.answered(number * SECOND / 100, Duration::from_micros(u64::from(number) + 1));
            tally.confirmed(1, 10);
        }
        Figures::new(4, None, tally, 3 * SECOND)
    }

    #[test]
    fn a_run_is_kept_and_read_again() {
        let parent = tempfile::tempdir().expect("a scratch directory");
        let directory = parent.path().join("a/run");
        let environment = Environment::of(parent.path(), None);
        let mut recorder = Recorder::start(&directory, environment.clone(), Some(7)).expect("it is new");
        let setting = RowSetting::closed("claims", 2, 4);
        let row = MeasuredRow { setting: setting.clone(), units_per_second: 100.0, figures: figures() };
        recorder.row(&row).expect("there is room");
        recorder.row(&row).expect("there is room");
        recorder.knee(50.0).expect("there is room");
        recorder.workload("[mix]").expect("there is room");
        for name in ["claims-4-outstanding", "claims-4-outstanding-2"] {
            for ending in ["hgrm", "hlog"] {
                assert!(directory.join(format!("{name}.{ending}")).exists(), "{name}.{ending}");
            }
        }
        let results = Results::read(&directory).expect("it was just written");
        assert_eq!((results.seed, &results.environment, results.rows.len()), (Some(7), &environment, 2));
        assert_eq!((results.knee, results.workload.as_deref()), (Some(50.0), Some("[mix]")));
        let row = &results.rows[0];
        assert_eq!((&row.setting, row.units_per_second, row.figures.requests), (&setting, 100.0, 300));
        assert_eq!(row.intervals.iter().map(|interval| interval.count).collect::<Vec<_>>(), [100, 100, 100]);
        assert!(row.intervals[2].p50_us > row.intervals[0].max_us, "{:?}", row.intervals);
        assert_eq!(row.curve.last().map(|point| point.0), Some(100.0));
        let again = Recorder::start(&directory, environment, None).expect_err("there is a run");
        assert!(again.to_string().contains("name another directory"), "{again}");
    }

    #[test]
    fn what_is_no_run_is_named() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let check = |expected: &str| {
            let error = Results::read(directory.path()).expect_err("it is none").to_string();
            assert!(error.contains("results.json") && error.contains(expected), "{error}");
        };
        check("--record");
        std::fs::write(directory.path().join(RESULTS_FILE), "{}").expect("our own directory");
        check("missing field");
    }
}
