//! `claim-bench floor`: durable writes on the bare file system, or reads of a file on it, which no daemon can beat.

use crate::error::BenchError;
use crate::load_arguments::seconds;
use crate::outcome::{Latencies, number_table, rounded, thousands};
use crate::pace;
use crate::random::Random;
use crate::read_floor::{self, Pattern, ReadFile, ReadFloorRow, ReadMeasured, ReadTrial};
use crate::record::{FloorRecord, curve};
use claim_engine::device::probe::{self, Bounds, FlushMode, IN_FLIGHT_MAX, Measured, Trial};
use claim_engine::device::scratch::{Caching, Extents, Scratch};
use claim_engine::log::layout::Geometry;
use clap::{Args, ValueEnum};
use comfy_table::Table;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a ledger's batches are made durable.
pub const LEDGER_MODE: FlushMode = FlushMode::FileDsync;

/// Rows are measured in this many rounds, all of them in turn, so that a drift of the machine meets all alike.
const ROUNDS: u32 = 4;

/// Length of the scratch file: a segment's.
pub const FILE_BYTES: u64 = Geometry::DEFAULT.segment_bytes;

/// Writes that a round counts at most; no device comes near in the time it has.
const OPS_MAX: u64 = 10_000_000;

/// Batch sizes of the log: the smallest one, and one of a busy log.
pub const BLOCKS_KIB: [u32; 2] = [4, 64];

/// Depths of the log: one batch alone, and as many as it keeps in flight.
pub const IN_FLIGHT: [u32; 2] = [1, 4];

/// What to measure, and where.
#[derive(Debug, Args)]
pub struct FloorArguments {
    /// A directory on the device; the scratch file in it has no name and leaves nothing behind.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Measure reads of this file or device instead, random ones of 4 KiB and sequential ones of 1 MiB, past the page cache:
    /// a shard of a large ledger, say. Nothing is written.
    #[arg(long, conflicts_with_all = ["dir", "modes", "blocks_kib", "extents", "no_direct"])]
    file: Option<PathBuf>,
    /// Random reads a second, each timed from when it was due; without it as many as the reads in flight give.
    #[arg(long, requires = "file", value_parser = pace::rate)]
    rate: Option<f64>,
    /// Measured time of each row, in seconds.
    #[arg(long, default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// How durability is asked for; several may be given.
    #[arg(long = "mode", value_delimiter = ',', default_values = ["rwf-dsync", "fdatasync"])]
    modes: Vec<ModeArgument>,
    /// Sizes of a write, in KiB: multiples of 4, at most 1024.
    #[arg(long = "kib", value_delimiter = ',', default_values_t = BLOCKS_KIB, value_parser = block_kib)]
    blocks_kib: Vec<u32>,
    /// Writes or reads kept in flight, at most 256; at a rate, those that may be in flight.
    #[arg(long, value_delimiter = ',', default_values_t = IN_FLIGHT, value_parser = in_flight)]
    in_flight: Vec<u32>,
    /// What lies under the file before it is written: zeros, as in a prepared segment, or reserved space only.
    #[arg(long, default_value = "written")]
    extents: ExtentsArgument,
    /// Go through the page cache, where O_DIRECT is not to be had.
    #[arg(long)]
    no_direct: bool,
    /// One JSON object per row.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    /// A flag on each write.
    RwfDsync,
    /// A flag on the file, as claimd opens its ledger.
    ODsync,
    /// A write with an fdatasync linked behind it.
    Fdatasync,
}

impl ModeArgument {
    fn mode(self) -> FlushMode {
        match self {
            ModeArgument::RwfDsync => FlushMode::WriteDsync,
            ModeArgument::ODsync => FlushMode::FileDsync,
            ModeArgument::Fdatasync => FlushMode::LinkedFdatasync,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExtentsArgument {
    /// Zero-written and flushed.
    Written,
    /// Allocated with fallocate and never written; a row ends with the file, whatever its time.
    Unwritten,
}

/// Measures and prints.
pub fn floor(arguments: &FloorArguments) -> Result<(), BenchError> {
    if let Some(file) = &arguments.file {
        return floor_of_reads(arguments, file);
    }
    let extents = match arguments.extents {
        ExtentsArgument::Written => Extents::Written,
        ExtentsArgument::Unwritten => Extents::Unwritten,
    };
    let caching = if arguments.no_direct { Caching::PageCache } else { Caching::Direct };
    let modes: Vec<FlushMode> = arguments.modes.iter().map(|mode| mode.mode()).collect();
    let trials = trials(&modes, &arguments.blocks_kib, &arguments.in_flight);
    let floor = Floor::measure(&arguments.dir, &trials, extents, caching, arguments.seconds)?;
    if arguments.json {
        for row in floor.rows() {
            println!("{}", serde_json::to_string(&row).expect("numbers and names serialise"));
        }
    } else {
        println!("{}", table(&floor.rows()));
    }
    Ok(())
}

/// Random reads at every depth, and then sequential ones, in rounds as the writes are.
fn floor_of_reads(arguments: &FloorArguments, file: &Path) -> Result<(), BenchError> {
    let file = ReadFile::open(file)?;
    let mut random = Random::new(Random::fresh_seed());
    let depths = || arguments.in_flight.iter().copied();
    let random_reads = depths().map(|in_flight| (Pattern::Random, in_flight, arguments.rate));
    let sequential = depths().map(|in_flight| (Pattern::Sequential, in_flight, None));
    let mut measured: Vec<ReadMeasured> = Vec::new();
    for round in 0..ROUNDS {
        for (number, (pattern, in_flight, rate)) in random_reads.clone().chain(sequential.clone()).enumerate() {
            let trial = ReadTrial { pattern, in_flight, rate };
            let found = read_floor::measure(&file, trial, arguments.seconds / ROUNDS, &mut random)?;
            if round == 0 {
                measured.push(found);
            } else {
                measured[number].merge(found);
            }
        }
    }
    let rows: Vec<ReadFloorRow> = measured.iter().map(ReadMeasured::row).collect();
    if arguments.json {
        for row in &rows {
            println!("{}", serde_json::to_string(row).expect("numbers and names serialise"));
        }
    } else {
        println!("{}", read_floor::table(&rows));
    }
    for row in rows.iter().filter(|row| row.unsent > 0) {
        eprintln!("{} in flight: {} reads were due and not begun: take a lower --rate", row.in_flight, row.unsent);
    }
    Ok(())
}

/// The floor of one directory: one measurement per mode and shape.
#[derive(Debug, Clone)]
pub struct Floor {
    extents: Extents,
    measured: Vec<Measured>,
}

impl Floor {
    /// Measures each of `trials` for about `time`.
    pub fn measure(
        directory: &Path,
        trials: &[Trial],
        extents: Extents,
        caching: Caching,
        time: Duration,
    ) -> Result<Self, BenchError> {
        let bounds = Bounds { ops_max: OPS_MAX, time_max: time / ROUNDS };
        let make = || Scratch::create(directory, FILE_BYTES, extents, caching);
        let mut scratch = make()?;
        let mut floor = Floor { extents, measured: Vec::new() };
        for _ in 0..ROUNDS {
            for trial in trials {
                floor.add(probe::measure(&scratch, *trial, bounds)?);
                if extents == Extents::Unwritten {
                    // It is written now, so the next trial needs another.
                    scratch = make()?;
                }
            }
        }
        Ok(floor)
    }

    fn add(&mut self, measured: Measured) {
        match self.measured.iter_mut().find(|other| other.trial == measured.trial) {
            Some(other) => other.merge(measured),
            None => self.measured.push(measured),
        }
    }

    /// Counts another floor of the same directory, measured at another time, into this one.
    pub fn merge(&mut self, other: Floor) {
        other.measured.into_iter().for_each(|measured| self.add(measured));
    }

    /// The row of this mode and shape, if it was measured.
    pub fn row(&self, mode: FlushMode, block_bytes: u32, in_flight: u32) -> Option<FloorRow> {
        let trial = Trial { mode, block_bytes, in_flight, every: None };
        self.measured.iter().find(|measured| measured.trial == trial).map(|measured| self.describe(measured))
    }

    /// The latencies of this mode and shape, if it was measured.
    pub fn latencies(&self, mode: FlushMode, block_bytes: u32, in_flight: u32) -> Option<Latencies> {
        let trial = Trial { mode, block_bytes, in_flight, every: None };
        self.measured.iter().find(|measured| measured.trial == trial).map(latencies)
    }

    /// All rows, in the order measured.
    pub fn rows(&self) -> Vec<FloorRow> {
        self.measured.iter().map(|measured| self.describe(measured)).collect()
    }

    /// All rows, to be kept.
    pub fn records(&self) -> Vec<FloorRecord> {
        self.measured.iter().map(record).collect()
    }

    fn describe(&self, measured: &Measured) -> FloorRow {
        let latencies = latencies(measured);
        FloorRow {
            system: "floor",
            mode: measured.trial.mode.name(),
            extents: match self.extents {
                Extents::Written => "written",
                Extents::Unwritten => "unwritten",
            },
            block_bytes: measured.trial.block_bytes,
            in_flight: measured.trial.in_flight,
            writes_per_second: rounded(measured.ops_per_second()),
            p50_us: latencies.p50_us,
            p90_us: latencies.p90_us,
            p99_us: latencies.p99_us,
            p999_us: latencies.p999_us,
            max_us: latencies.max_us,
            writes: measured.ops(),
            seconds: rounded(measured.elapsed.as_secs_f64()),
        }
    }
}

/// What a trial gave, as rows have it.
pub fn latencies(measured: &Measured) -> Latencies {
    let us = |quantile| rounded(measured.quantile_ns(quantile) as f64 / 1e3);
    Latencies {
        mean_us: rounded(measured.mean_ns() as f64 / 1e3),
        p50_us: us(0.5),
        p90_us: us(0.9),
        p99_us: us(0.99),
        p999_us: us(0.999),
        p9999_us: us(0.9999),
        max_us: us(1.0),
    }
}

/// What a trial gave, to be kept.
pub fn record(measured: &Measured) -> FloorRecord {
    let (Trial { mode, block_bytes, in_flight, every }, latencies) = (measured.trial, latencies(measured));
    FloorRecord {
        name: format!("{mode}, writes of {} KiB", block_bytes / 1024),
        in_flight,
        rate: every.map(|every| rounded(1.0 / every.as_secs_f64())),
        per_second: rounded(measured.ops_per_second()),
        p50_us: latencies.p50_us,
        p90_us: latencies.p90_us,
        p99_us: latencies.p99_us,
        p999_us: latencies.p999_us,
        max_us: latencies.max_us,
        curve: curve(measured.ops(), |share| measured.quantile_ns(share)),
    }
}

/// Every size at every depth in every mode; modes innermost, since they are what is compared.
pub fn trials(modes: &[FlushMode], blocks_kib: &[u32], in_flight: &[u32]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for block_bytes in blocks_kib.iter().map(|kib| kib * 1024) {
        for in_flight in in_flight {
            trials.extend(modes.iter().map(|mode| Trial {
                mode: *mode,
                block_bytes,
                in_flight: *in_flight,
                every: None,
            }));
        }
    }
    trials
}

/// A size of a write that direct I/O and the scratch file take.
fn block_kib(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(kib) if (4..=1024).contains(&kib) && kib % 4 == 0 => Ok(kib),
        _ => Err(format!("{text:?} is no multiple of 4 from 4 to 1024")),
    }
}

/// A number of writes that a ring takes.
fn in_flight(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (1..=IN_FLIGHT_MAX).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is no number from 1 to {IN_FLIGHT_MAX}")),
    }
}

/// One line of the floor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FloorRow {
    pub system: &'static str,
    pub mode: &'static str,
    pub extents: &'static str,
    pub block_bytes: u32,
    pub in_flight: u32,
    pub writes_per_second: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub writes: u64,
    pub seconds: f64,
}

/// The rows as a table.
pub fn table(rows: &[FloorRow]) -> Table {
    let mut table = number_table(&[
        "mode",
        "extents",
        "KiB",
        "in flight",
        "writes/s",
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
    ]);
    for row in rows {
        let mut cells = vec![
            row.mode.to_owned(),
            row.extents.to_owned(),
            (row.block_bytes / 1024).to_string(),
            row.in_flight.to_string(),
            thousands(row.writes_per_second),
        ];
        let latencies = [row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us];
        cells.extend(latencies.iter().map(|latency| thousands(*latency)));
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extents: Extents) {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let trials = trials(&[FlushMode::WriteDsync, FlushMode::LinkedFdatasync], &BLOCKS_KIB, &IN_FLIGHT);
        // Through the page cache, so that it runs on every file system.
        let time = Duration::from_millis(40);
        let mut floor = Floor::measure(directory.path(), &trials, extents, Caching::PageCache, time).expect("a floor");
        let rows = floor.rows();
        assert_eq!(rows.len(), 8);
        for row in &rows {
            assert!(row.writes > 0 && row.writes_per_second > 0.0, "{row:?}");
            assert!(row.p50_us <= row.p99_us && row.p99_us <= row.max_us, "{row:?}");
        }
        let before = floor.row(FlushMode::WriteDsync, 4096, 1).expect("it was measured");
        floor.merge(floor.clone());
        let after = floor.row(FlushMode::WriteDsync, 4096, 1).expect("it was measured");
        assert_eq!((after.writes, after.p50_us), (2 * before.writes, before.p50_us));
        assert_eq!(floor.row(FlushMode::FileDsync, 4096, 1), None);
        assert!(table(&rows).to_string().contains("RWF_DSYNC"));
    }

    #[test]
    fn sizes_and_depths_are_read_strictly() {
        assert_eq!((block_kib("64"), in_flight("8")), (Ok(64), Ok(8)));
        assert!(["0", "6", "2048", "x"].iter().all(|text| block_kib(text).is_err()));
        assert!(["0", "257", "-1"].iter().all(|text| in_flight(text).is_err()));
    }

    #[test]
    fn every_shape_is_measured_in_every_mode() {
        check(Extents::Written);
        check(Extents::Unwritten);
    }
}
