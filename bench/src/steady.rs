//! `claim-bench steady`: a rate of claims that a daemon has to hold, in turn with the bare device at the rate of the daemon's writes.
//!
//! A device that is written at leisure answers otherwise than one that is written as fast as it can be, and not alike at all
//! times. So each round loads the daemon at the rate, asks it how many batches it has written and how large they were, and then
//! has the device write as many of that size by themselves, each of them timed from when it was due.

use crate::affinity;
use crate::daemon_process::DaemonProcess;
use crate::error::BenchError;
use crate::floor::{self, LEDGER_MODE};
use crate::load::Timing;
use crate::load_arguments::{positive, seconds};
use crate::outcome::{Latencies, Row, hundredths, latencies_table, rounded, thousands};
use crate::own_daemon::OwnDaemonArguments;
use crate::pace;
use crate::scratch_directory::ScratchDirectory;
use crate::session::Session;
use crate::target::Target;
use crate::verdict::Verdict;
use claim_engine::device::probe::{self, Bounds, Measured, Trial};
use claim_engine::device::scratch::{Caching, Extents, Scratch};
use claim_engine::log::layout::{BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES, Geometry};
use clap::Args;
use comfy_table::Table;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Requests that may be outstanding; those that find no place are counted.
const OUTSTANDING: usize = 4096;
/// What is a stall.
const STALL_US: f64 = 50_000.0;

/// Which daemon, where, at what rate, and for how long.
#[derive(Debug, Args)]
pub struct SteadyArguments {
    #[command(flatten)]
    own: OwnDaemonArguments,
    /// Claims a second, each sent when it is due and timed from then; half of what `claim-bench sweep` finds, say.
    #[arg(long, value_parser = pace::rate)]
    rate: f64,
    /// Rounds whose medians are shown.
    #[arg(long, default_value = "10", value_parser = positive)]
    rounds: usize,
    /// Measured time of each of the two in each round, in seconds.
    #[arg(long, default_value = "30", value_parser = seconds)]
    seconds: Duration,
    /// Connections of the load.
    #[arg(long, default_value = "4", value_parser = positive)]
    connections: usize,
    /// A directory to keep the run in, as `claim-bench run --record` does; not one below --dir that goes with the ledger.
    #[arg(long)]
    record: Option<PathBuf>,
    /// One JSON object per round, and one for the medians.
    #[arg(long)]
    json: bool,
}

/// Measures and prints; an error when anything was refused or the rate was missed.
pub fn steady(arguments: &SteadyArguments) -> Result<(), BenchError> {
    let OwnDaemonArguments { claimd, dir, daemon_core, poll_us, core, .. } = &arguments.own;
    let scratch = ScratchDirectory::make(dir, false)?;
    let mut daemon = DaemonProcess::start(claimd, &scratch.path().join("ledger"), *daemon_core, *poll_us)?;
    let file = Scratch::create(dir, floor::FILE_BYTES, Extents::Written, Caching::Direct)?;
    let mut recorder = arguments.own.recorder(arguments.record.as_deref(), daemon.socket())?;
    let (mut rounds, mut verdict) = (Vec::new(), Verdict::default());
    for number in 1..=arguments.rounds {
        affinity::pin_to(*core)?;
        let (row, writes) = measure(arguments, daemon.socket()).map_err(|error| daemon.explain(error))?;
        // The daemon is idle then, and the floor is measured from its core: a device does not answer every core alike.
        affinity::pin_to(*daemon_core)?;
        let floor = writes.floor(&file, arguments.seconds)?;
        verdict.add(&row.setting(), &row.figures);
        if let Some(recorder) = &mut recorder {
            recorder.row(&row.measured())?;
            recorder.floor(floor::record(&floor))?;
        }
        let round = Round::new(number, &row, writes, &floor);
        if arguments.json {
            println!("{}", serde_json::to_string(&round).expect("numbers and names serialise"));
        } else {
            eprintln!("round {number} of {}: {}", arguments.rounds, round.line());
        }
        rounds.push(round);
    }
    daemon.stop()?;
    Steady::of(&rounds).print(arguments.json);
    verdict.result()
}

/// One row, and what the daemon wrote for it and for its warm-up.
fn measure(arguments: &SteadyArguments, socket: &Path) -> Result<(Row, Writes), BenchError> {
    let target = Target::find(socket, 1, false)?;
    let (mut session, _) = Session::open(socket)?;
    let before = session.written()?;
    let timing = Timing { rate: Some(arguments.rate), ..arguments.own.timing(arguments.seconds) };
    let row = target.measure(OUTSTANDING, arguments.connections, arguments.own.shape(1), timing)?;
    let (batches, bytes) = session.written()?;
    let seconds = (arguments.seconds + arguments.own.warmup).as_secs_f64();
    Ok((row, Writes::of(batches - before.0, bytes - before.1, seconds)))
}

/// The writes of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Writes {
    writes_per_second: f64,
    /// Of a write on average, in whole blocks.
    write_bytes: u64,
}

impl Writes {
    fn of(batches: u64, bytes: u64, seconds: f64) -> Writes {
        let write_bytes = (bytes / batches.max(1))
            .next_multiple_of(BLOCK_BYTES)
            .clamp(BLOCK_BYTES, Geometry::DEFAULT.batch_bytes_max);
        Writes { writes_per_second: rounded(batches as f64 / seconds), write_bytes }
    }

    /// The same from the device alone.
    fn floor(self, file: &Scratch, time: Duration) -> Result<Measured, BenchError> {
        let trial = Trial {
            mode: LEDGER_MODE,
            block_bytes: self.write_bytes as u32,
            in_flight: BATCHES_IN_FLIGHT_MAX as u32,
            every: Some(Duration::from_secs_f64(1.0 / self.writes_per_second.max(1.0))),
        };
        Ok(probe::measure(file, trial, Bounds { ops_max: u64::MAX, time_max: time })?)
    }
}

/// What a round gave.
#[derive(Debug, Clone, Serialize)]
struct Round {
    round: usize,
    rate: Option<f64>,
    #[serde(flatten)]
    writes: Writes,
    claimd: Latencies,
    floor: Latencies,
    /// The daemon's slowest answer took longer than a stall, and the device's slowest write did not.
    stalled_alone: bool,
}

impl Round {
    fn new(round: usize, row: &Row, writes: Writes, floor: &Measured) -> Round {
        let (claimd, floor) = (row.figures.latencies, floor::latencies(floor));
        let stalled_alone = claimd.max_us > STALL_US && floor.max_us <= STALL_US;
        Round { round, rate: row.figures.rate, writes, claimd, floor, stalled_alone }
    }

    fn line(&self) -> String {
        format!(
            "p99.9 {} µs, max {} µs; {} writes/s of {} KiB, the device alone: p99.9 {} µs, max {} µs",
            thousands(self.claimd.p999_us),
            thousands(self.claimd.max_us),
            thousands(self.writes.writes_per_second),
            self.writes.write_bytes / 1024,
            thousands(self.floor.p999_us),
            thousands(self.floor.max_us)
        )
    }
}

/// The medians of all rounds.
#[derive(Debug, Clone, Serialize)]
struct Steady {
    median_of: usize,
    claimd: Latencies,
    floor: Latencies,
    /// The median of the rounds' ratios.
    p999_to_floor: f64,
    rounds_stalled_alone: usize,
}

impl Steady {
    fn of(rounds: &[Round]) -> Steady {
        let of = |which: fn(&Round) -> Latencies| Latencies::median(&rounds.iter().map(which).collect::<Vec<_>>());
        let ratios = rounds.iter().map(|round| round.claimd.p999_us / round.floor.p999_us);
        Steady {
            median_of: rounds.len(),
            claimd: of(|round| round.claimd),
            floor: of(|round| round.floor),
            p999_to_floor: hundredths(crate::outcome::median(ratios)),
            rounds_stalled_alone: rounds.iter().filter(|round| round.stalled_alone).count(),
        }
    }

    fn print(&self, json: bool) {
        if json {
            return println!("{}", serde_json::to_string(self).expect("numbers and names serialise"));
        }
        println!("{}", self.table());
        println!(
            "claimd ÷ floor, the median of {} rounds: p99.9 {:.2}; rounds with an answer that took over {} ms where no write of the \
             device did: {}",
            self.median_of,
            self.p999_to_floor,
            STALL_US / 1e3,
            self.rounds_stalled_alone
        );
    }

    fn table(&self) -> Table {
        latencies_table("medians", &[("floor", &self.floor), ("claimd", &self.claimd)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(p999_us: f64, max_us: f64) -> Latencies {
        Latencies { mean_us: 1.0, p50_us: 1.0, p90_us: 2.0, p99_us: 3.0, p999_us, p9999_us: 5.0, max_us }
    }

    #[test]
    fn writes_are_whole_blocks_at_the_daemons_rate() {
        let writes = Writes::of(1_000, 5_000_000, 10.0);
        assert_eq!((writes.writes_per_second, writes.write_bytes), (100.0, 8_192));
        assert_eq!(Writes::of(0, 0, 1.0).write_bytes, 4_096);
        let directory = tempfile::tempdir().expect("a scratch directory");
        let file = Scratch::create(directory.path(), 1 << 20, Extents::Written, Caching::PageCache).expect("space");
        let measured = writes.floor(&file, Duration::from_millis(300)).expect("a floor");
        assert!(measured.ops() >= 10, "{}", measured.ops());
        let record = floor::record(&measured);
        assert_eq!((record.rate, record.name.as_str()), (Some(100.0), "O_DSYNC, writes of 8 KiB"));
    }

    #[test]
    fn rounds_are_compared_one_by_one() {
        let round = |claimd: (f64, f64), floor: (f64, f64)| {
            let (claimd, floor) = (latencies(claimd.0, claimd.1), latencies(floor.0, floor.1));
            let stalled_alone = claimd.max_us > STALL_US && floor.max_us <= STALL_US;
            Round { round: 1, rate: Some(1.0), writes: Writes::of(1, 4096, 1.0), claimd, floor, stalled_alone }
        };
        let rounds = [
            round((300.0, 60_000.0), (100.0, 900.0)),
            round((200.0, 60_000.0), (200.0, 70_000.0)),
            round((800.0, 900.0), (400.0, 500.0)),
        ];
        let steady = Steady::of(&rounds);
        assert_eq!((steady.p999_to_floor, steady.rounds_stalled_alone, steady.median_of), (2.0, 1, 3));
        assert!(steady.table().to_string().contains("300"), "{}", steady.table());
    }
}
