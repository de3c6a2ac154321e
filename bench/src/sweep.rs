//! `claim-bench sweep`: the highest rate that a daemon holds.

use crate::error::BenchError;
use crate::load_arguments::{LoadArguments, positive};
use crate::outcome::{Figures, MeasuredRow, thousands};
use crate::pace;
use crate::subject::{RowLine, Subject, table};
use clap::Args;
use serde::Serialize;

/// Rates beyond this are not tried: no generator on one core sends them.
const RATE_MAX: f64 = 10_000_000.0;

/// Where to begin, and when a rate counts as held.
#[derive(Debug, Args)]
pub struct SweepArguments {
    #[command(flatten)]
    load: LoadArguments,
    /// The first rate, in requests a second; its latencies are what the others are held against.
    #[arg(long, default_value = "1000", value_parser = pace::rate)]
    start: f64,
    /// Each rate is so many times the one before, until one does not hold.
    #[arg(long, default_value = "2", value_parser = factor)]
    factor: f64,
    /// Then rates between are tried until the lowest that does not hold is at most so many times the highest that does.
    #[arg(long, default_value = "1.1", value_parser = factor)]
    precision: f64,
    /// A rate does not hold when its 99th percentile is more than so many times that of the first row.
    #[arg(long, default_value = "10", value_parser = factor)]
    p99_times: f64,
    /// Requests that may be outstanding in total, over all connections.
    #[arg(long, default_value = "16384", value_parser = positive)]
    outstanding: usize,
}

/// A number of times, more than one.
fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(times) if times > 1.0 && times <= 1000.0 => Ok(times),
        _ => Err(format!("{text:?} is no number above 1 and up to 1000")),
    }
}

/// Tries rates, prints every row and the knee; an error when not even the first rate holds.
pub fn sweep(arguments: &SweepArguments) -> Result<(), BenchError> {
    let load = &arguments.load;
    load.pin()?;
    let mut subject = Subject::find(load)?;
    let mut recorder = subject.recorder(load)?;
    let mut sweep = Sweep { p99_times: arguments.p99_times, rows: Vec::new(), missed: None };
    let search = Search { start: arguments.start, factor: arguments.factor, precision: arguments.precision };
    let knee = search.knee(|rate| {
        let row = subject.measure(load, arguments.outstanding, Some(rate))?;
        if load.json {
            println!("{}", to_json(&RowLine::new(&row)));
        }
        if let Some(recorder) = &mut recorder {
            recorder.row(&row)?;
        }
        Ok(sweep.add(row))
    })?;
    if !load.json {
        sweep.rows.sort_by(|a, b| a.setting.rate.unwrap_or_default().total_cmp(&b.setting.rate.unwrap_or_default()));
        println!("{}", table(&sweep.rows));
    }
    let Some(knee) = knee else {
        let because = sweep.missed.map_or_else(String::new, |missed| missed.because);
        return Err(BenchError::NoKnee { rate: arguments.start, because });
    };
    if let Some(recorder) = &mut recorder {
        recorder.knee(knee)?;
    }
    let found = Knee { system: "claimd", knee_rate: knee, missed: sweep.missed };
    if load.json {
        println!("{}", to_json(&found))
    } else {
        println!("{}", found.sentence())
    }
    Ok(())
}

fn to_json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("numbers and names serialise")
}

/// Which rates are tried.
#[derive(Debug, Clone, Copy)]
struct Search {
    start: f64,
    factor: f64,
    precision: f64,
}

impl Search {
    /// The highest rate tried that `holds`; `None` where the first one does not. Rates are whole numbers from 10 on.
    fn knee(self, mut holds: impl FnMut(f64) -> Result<bool, BenchError>) -> Result<Option<f64>, BenchError> {
        let (mut held, mut missed) = (None, None);
        let mut rate = self.start;
        while missed.is_none() && rate <= RATE_MAX {
            match holds(rate)? {
                true => held = Some(rate),
                false => missed = Some(rate),
            }
            if held.is_none() {
                return Ok(None);
            }
            rate = whole(rate * self.factor);
        }
        while let (Some(low), Some(high)) = (held, missed) {
            let between = whole((low * high).sqrt());
            if high <= low * self.precision || between <= low || between >= high {
                break;
            }
            match holds(between)? {
                true => held = Some(between),
                false => missed = Some(between),
            }
        }
        Ok(held)
    }
}

fn whole(rate: f64) -> f64 {
    if rate < 10.0 { rate } else { rate.round() }
}

/// The rows so far.
#[derive(Debug)]
struct Sweep {
    p99_times: f64,
    rows: Vec<MeasuredRow>,
    /// The lowest rate that did not hold.
    missed: Option<Missed>,
}

/// A rate that did not hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Missed {
    rate: f64,
    because: String,
}

impl Sweep {
    /// Adds a row; whether its rate holds.
    fn add(&mut self, row: MeasuredRow) -> bool {
        let first_p99_us = self.rows.first().unwrap_or(&row).figures.latencies.p99_us;
        let because = self.objection(&row.figures, first_p99_us);
        let rate = row.setting.rate.unwrap_or_default();
        self.rows.push(row);
        let Some(because) = because else { return true };
        if self.missed.as_ref().is_none_or(|missed| rate < missed.rate) {
            self.missed = Some(Missed { rate, because });
        }
        false
    }

    fn objection(&self, figures: &Figures, first_p99_us: f64) -> Option<String> {
        let p99_us = figures.latencies.p99_us;
        if figures.errors > 0 {
            return Some(format!("{} requests or items were refused", thousands(figures.errors as f64)));
        }
        if figures.failed {
            let (achieved, unsent) = (figures.achieved_rate.unwrap_or_default(), figures.unsent as f64);
            return Some(format!(
                "only {} a second were confirmed in time, and {} were due and not sent",
                thousands(achieved),
                thousands(unsent)
            ));
        }
        (p99_us > first_p99_us * self.p99_times).then(|| {
            format!(
                "its p99 of {} µs is more than {} times the first row's {} µs",
                thousands(p99_us),
                self.p99_times,
                thousands(first_p99_us)
            )
        })
    }
}

/// What the sweep found.
#[derive(Debug, PartialEq, Serialize)]
struct Knee {
    system: &'static str,
    /// The highest rate that held, in requests a second.
    knee_rate: f64,
    /// The lowest that did not; none where all held.
    missed: Option<Missed>,
}

impl Knee {
    fn sentence(&self) -> String {
        let knee = thousands(self.knee_rate);
        match &self.missed {
            Some(Missed { rate, because }) => {
                format!("The knee: {knee} requests a second held; {} did not, because {because}.", thousands(*rate))
            }
            None => format!("{knee} requests a second held, and nothing higher was tried."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::Shape;
    use crate::fake_daemon::{FakeDaemon, Manner};
    use crate::load::Timing;
    use crate::outcome::Tally;
    use crate::record::RowSetting;
    use crate::target::Target;
    use std::time::Duration;

    /// The rates tried, and what was found, of a daemon that holds up to `capacity`.
    fn search(start: f64, precision: f64, capacity: f64) -> (Vec<f64>, Option<f64>) {
        let mut tried = Vec::new();
        let knee = Search { start, factor: 2.0, precision }.knee(|rate| {
            tried.push(rate);
            Ok(rate <= capacity)
        });
        (tried, knee.expect("nothing fails"))
    }

    #[test]
    fn rates_rise_until_one_is_missed_and_then_close_in() {
        let (tried, knee) = search(1000.0, 1.1, 5300.0);
        assert_eq!(tried, [1000.0, 2000.0, 4000.0, 8000.0, 5657.0, 4757.0, 5188.0]);
        assert_eq!(knee, Some(5188.0));
        for (start, precision, capacity) in [(1.0, 1.01, 777.0), (3.0, 1.5, 12345.0), (100.0, 1.001, 100.0)] {
            let (_, knee) = search(start, precision, capacity);
            let knee = knee.expect("the first rate holds");
            assert!(knee <= capacity && (knee + 1.0) * precision >= capacity, "{knee} of {capacity}");
        }
    }

    #[test]
    fn a_search_ends_where_nothing_or_everything_holds() {
        assert_eq!(search(1000.0, 1.1, 999.0), (vec![1000.0], None));
        let (tried, knee) = search(1000.0, 1.1, f64::INFINITY);
        assert_eq!((tried.len(), knee), (14, Some(8_192_000.0)));
    }

    fn row(rate: f64, latency_us: u64, in_time: u64, refused: bool) -> MeasuredRow {
        let second = Duration::from_secs(1);
        let mut tally = Tally::new(second);
        tally.answered(Duration::ZERO, Duration::from_micros(latency_us));
        tally.confirmed(1, 1);
        tally.in_time = in_time;
        if refused {
            tally.refused("OVERLOADED");
        }
        let setting = RowSetting { rate: Some(rate), ..RowSetting::closed("claims", 1, 8) };
        MeasuredRow { setting, units_per_second: rate, figures: Figures::new(8, Some(rate), tally, second) }
    }

    #[test]
    fn a_rate_does_not_hold_for_its_count_its_refusals_or_its_latency() {
        let mut sweep = Sweep { p99_times: 10.0, rows: Vec::new(), missed: None };
        assert!(sweep.add(row(100.0, 50, 100, false)));
        for (row, expected) in [
            (row(800.0, 50, 700, false), "700 a second were confirmed"),
            (row(700.0, 50, 700, true), "1 requests or items were refused"),
            (row(600.0, 600, 600, false), "p99 of 600 µs is more than 10 times the first row's 50 µs"),
        ] {
            assert!(!sweep.add(row));
            let because = &sweep.missed.as_ref().expect("it was missed").because;
            assert!(because.contains(expected), "{because}");
        }
        assert!(!sweep.add(row(650.0, 5000, 650, false)));
        assert_eq!(sweep.missed.as_ref().map(|missed| missed.rate), Some(600.0), "the lowest stands");
        assert!(sweep.add(row(500.0, 400, 500, false)));
        assert!(table(&sweep.rows).to_string().contains("FAILED"));
        let knee = Knee { system: "claimd", knee_rate: 500.0, missed: sweep.missed };
        assert!(knee.sentence().starts_with("The knee: 500 requests a second held; 600 did not, because its p99"));
    }

    #[test]
    fn no_knee_is_found_above_what_a_daemon_takes() {
        let capacity = 2000.0;
        let daemon = FakeDaemon::start(Manner::Takes { per_second: 2000 });
        let target = Target::find(daemon.socket(), 1, false).expect("it answers");
        let mut sweep = Sweep { p99_times: 1000.0, rows: Vec::new(), missed: None };
        let shape = Shape { batch: 1, metadata_bytes: 16 };
        let measured = Duration::from_millis(400);
        let search = Search { start: 50.0, factor: 4.0, precision: 1.5 };
        let knee = search.knee(|rate| {
            let timing = Timing { warm_up: Duration::from_millis(50), measured, spin: false, rate: Some(rate) };
            Ok(sweep.add(target.measure(16, 2, shape, timing)?.measured()))
        });
        let missed = sweep.missed.expect("no daemon takes everything").rate;
        // A busy machine may find less, but nobody gets more confirmed than the daemon takes, beyond what it was behind.
        let knee = knee.expect("a daemon that answers").unwrap_or_default();
        assert!(knee < capacity * 1.2 && knee < missed, "{knee} held, {missed} did not");
        assert!(sweep.rows.iter().any(|row| row.figures.failed), "{:?}", sweep.rows);
    }

    #[test]
    fn times_are_read_strictly() {
        assert_eq!(factor("1.5"), Ok(1.5));
        assert!(["1", "0", "-2", "NaN", "2000"].iter().all(|text| factor(text).is_err()));
    }
}
