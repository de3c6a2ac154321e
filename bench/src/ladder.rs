//! `claim-bench ladder`: one daemon from idle to crowded, between two measurements of the floor below it.

use crate::affinity;
use crate::daemon_process::DaemonProcess;
use crate::error::BenchError;
use crate::floor::{self, Floor, FloorRow, LEDGER_MODE};
use crate::load_arguments::{positive, seconds};
use crate::outcome::{Figures, Latencies, Row, hundredths, number_table, thousands};
use crate::own_daemon::OwnDaemonArguments;
use crate::record::Recorder;
use crate::scratch_directory::ScratchDirectory;
use crate::target::Target;
use claim_engine::device::probe::FlushMode;
use claim_engine::device::scratch::{Caching, Extents};
use clap::Args;
use comfy_table::Table;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Requests outstanding on the rungs of single claims.
const OUTSTANDING: [usize; 5] = [1, 16, 64, 256, 1024];

/// The last rung: batches of this many claims, …
const BATCH: usize = 1000;

/// … and this many of them outstanding, so that one is always on its way while another is written.
const BATCH_OUTSTANDING: usize = 4;

/// Which daemon, where, and for how long.
#[derive(Debug, Args)]
pub struct LadderArguments {
    #[command(flatten)]
    own: OwnDaemonArguments,
    /// Measured time of each rung, in seconds.
    #[arg(long, default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Measured time of each row of the floor, in seconds, once before and once after the rungs.
    #[arg(long, default_value = "1", value_parser = seconds)]
    floor_seconds: Duration,
    /// Connections of each rung; never more than there are requests outstanding.
    #[arg(long, default_value = "4", value_parser = positive)]
    connections: usize,
    /// Corpora to claim in, in turn.
    #[arg(long, default_value = "1", value_parser = positive)]
    corpora: usize,
    /// Leave the ledger and the daemon's log where they are.
    #[arg(long)]
    keep: bool,
    /// A directory to keep the run in, as `claim-bench run --record` does; not one below --dir that goes with the ledger.
    #[arg(long)]
    record: Option<PathBuf>,
    /// One JSON object per row: the floor's first, then the rungs'.
    #[arg(long)]
    json: bool,
}

/// Climbs and prints; an error when anything was refused.
pub fn ladder(arguments: &LadderArguments) -> Result<(), BenchError> {
    let OwnDaemonArguments { claimd, dir, daemon_core, poll_us, core, .. } = &arguments.own;
    let scratch = ScratchDirectory::make(dir, arguments.keep)?;
    let mut daemon = DaemonProcess::start(claimd, &scratch.path().join("ledger"), *daemon_core, *poll_us)?;
    // Pinned only now, for a child inherits the cores of its parent.
    let mut floor = measure_floor(arguments)?;
    affinity::pin_to(*core)?;
    let mut recorder = arguments.own.recorder(arguments.record.as_deref(), daemon.socket())?;
    let rows = climb(arguments, daemon.socket(), &mut recorder).map_err(|error| daemon.explain(error))?;
    floor.merge(measure_floor(arguments)?);
    daemon.stop()?;
    if let Some(recorder) = &mut recorder {
        floor.records().into_iter().try_for_each(|record| recorder.floor(record))?;
    }
    let rungs: Vec<Rung> = rows.into_iter().map(|row| Rung::new(row, &floor)).collect();
    print(arguments.json, &floor, &rungs);
    match rungs.iter().map(|rung| rung.row.figures.errors).sum() {
        0 => Ok(()),
        errors => Err(BenchError::Errors { errors }),
    }
}

/// Measures from the daemon's core while the daemon is idle: a device does not answer every core alike.
fn measure_floor(arguments: &LadderArguments) -> Result<Floor, BenchError> {
    affinity::pin_to(arguments.own.daemon_core)?;
    let modes = [LEDGER_MODE, FlushMode::LinkedFdatasync];
    let trials = floor::trials(&modes, &floor::BLOCKS_KIB, &floor::IN_FLIGHT);
    Floor::measure(&arguments.own.dir, &trials, Extents::Written, Caching::Direct, arguments.floor_seconds)
}

fn climb(arguments: &LadderArguments, socket: &Path, recorder: &mut Option<Recorder>) -> Result<Vec<Row>, BenchError> {
    let target = Target::find(socket, arguments.corpora, false)?;
    let timing = arguments.own.timing(arguments.seconds);
    let singles = OUTSTANDING.iter().map(|outstanding| (*outstanding, 1));
    singles
        .chain([(BATCH_OUTSTANDING, BATCH)])
        .map(|(outstanding, batch)| {
            let row = target.measure(outstanding, arguments.connections, arguments.own.shape(batch), timing)?;
            row.figures.warnings().iter().for_each(|line| eprintln!("{outstanding} outstanding: {line}"));
            if let Some(recorder) = recorder {
                recorder.row(&row.measured())?;
            }
            Ok(row)
        })
        .collect()
}

fn print(json: bool, floor: &Floor, rungs: &[Rung]) {
    let floor_rows = floor.rows();
    if json {
        floor_rows.iter().for_each(|row| println!("{}", to_json(row)));
        rungs.iter().for_each(|rung| println!("{}", to_json(rung)));
    } else {
        println!("The floor, before and after the rungs:\n{}\n", floor::table(&floor_rows));
        println!("The daemon; ratios are to {LEDGER_MODE}, 4 KiB, 1 in flight:\n{}", table(rungs));
    }
}

fn to_json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("numbers and names serialise")
}

/// A row with its ratios to the floor.
#[derive(Debug, Clone, Serialize)]
struct Rung {
    #[serde(flatten)]
    row: Row,
    p50_to_floor: f64,
    p99_to_floor: f64,
    /// Durable claims for each durable write that the device makes alone.
    claims_per_floor_write: f64,
}

impl Rung {
    fn new(row: Row, floor: &Floor) -> Self {
        let FloorRow { p50_us, p99_us, writes_per_second, .. } =
            floor.row(LEDGER_MODE, 4096, 1).expect("the ladder measures it");
        Rung {
            p50_to_floor: hundredths(row.figures.latencies.p50_us / p50_us),
            p99_to_floor: hundredths(row.figures.latencies.p99_us / p99_us),
            claims_per_floor_write: hundredths(row.claims_per_second / writes_per_second),
            row,
        }
    }
}

fn table(rungs: &[Rung]) -> Table {
    let mut header = vec!["outstanding", "batch", "claims/s"];
    header.extend(Latencies::HEADER);
    header.extend(["p50 ÷ floor", "p99 ÷ floor", "claims ÷ writes"]);
    header.extend(&Figures::HEADER[..2]);
    let mut table = number_table(&header);
    for Rung { row, p50_to_floor, p99_to_floor, claims_per_floor_write } in rungs {
        let mut cells = vec![row.outstanding.to_string(), row.batch.to_string(), thousands(row.claims_per_second)];
        cells.extend(row.figures.latencies.cells());
        cells.extend([p50_to_floor, p99_to_floor, claims_per_floor_write].map(|ratio| format!("{ratio:.2}")));
        // Nothing here has a rate to hold.
        cells.extend(row.figures.cells().into_iter().take(2));
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Setting, Tally};

    #[test]
    fn a_rung_stands_in_relation_to_the_floor() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let time = Duration::from_millis(40);
        let trials = floor::trials(&[LEDGER_MODE], &[4], &[1]);
        let floor = Floor::measure(directory.path(), &trials, Extents::Written, Caching::PageCache, time);
        let floor = floor.expect("a floor");
        let base = floor.row(LEDGER_MODE, 4096, 1).expect("it was measured");
        let mut tally = Tally::new(Duration::from_secs(1));
        tally.answered(Duration::ZERO, Duration::from_nanos((base.p50_us * 2e3) as u64));
        tally.confirmed(1, 100);
        let setting = Setting { connections: 1, outstanding: 1, batch: 1, rate: None };
        let rung = Rung::new(Row::new(setting, tally, Duration::from_secs(1)), &floor);
        assert!((rung.p50_to_floor - 2.0).abs() < 0.02, "{rung:?}");
        let json = serde_json::to_value(&rung).expect("it serialises");
        assert!(json["p50_us"].is_number() && json["p50_to_floor"].is_number(), "{json}");
        assert!(table(&[rung]).to_string().contains("2.0"), "the ratio is shown");
    }
}
