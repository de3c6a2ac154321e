//! `claim-bench run`: a load on a daemon that is already there.

use crate::affinity;
use crate::beside::Beside;
use crate::claims::Shape;
use crate::error::BenchError;
use crate::load::Timing;
use crate::outcome::table;
use crate::pace;
use crate::random::Random;
use crate::read_floor::{self, ReadFile, ReadMeasured};
use crate::reads::{self, Kind, Reads};
use crate::target::Target;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    /// Claims with fresh keys.
    Claims,
    /// Lookups of rows that the ledger has.
    Lookups,
    /// Page after page of whole corpora; each request outstanding is a walk of its own.
    Scans,
}

/// What to load, and how.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The daemon's socket.
    #[arg(long, env = "CLAIMD_SOCKET", default_value = "./claimd-data/claimd.sock")]
    socket: PathBuf,
    /// Connect to the corpora's own shards instead of letting the daemon forward.
    #[arg(long)]
    shard_socket: bool,
    /// What is asked for.
    #[arg(long, default_value = "claims")]
    operation: Operation,
    /// Requests outstanding in total, over all connections; one row for each number. At a rate, those that may be.
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = positive)]
    outstanding: Vec<usize>,
    /// Requests a second, sent when they are due whatever became of those before, and timed from then; without it a new one
    /// for every reply. With --beside-claims, of the reads.
    #[arg(long, value_parser = pace::rate)]
    rate: Option<f64>,
    /// Connections; never more than there are requests outstanding.
    #[arg(long, default_value = "4", value_parser = positive)]
    connections: usize,
    /// Claims per request; 1 sends single claims. Lookups are single ones, and a scan's page has 1,000 rows.
    #[arg(long, default_value = "1", value_parser = positive)]
    batch: usize,
    /// Measured time of each row, in seconds.
    #[arg(long, default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Load before the measured time of each row, in seconds.
    #[arg(long, default_value = "1", value_parser = seconds)]
    warmup: Duration,
    /// Opaque bytes in each claim.
    #[arg(long, default_value = "128")]
    metadata_bytes: usize,
    /// Corpora to claim in, in turn; they are called bench-0, bench-1, … and onboarded when missing. Reads are of every corpus.
    #[arg(long, default_value = "1", value_parser = positive)]
    corpora: usize,
    /// Different rows to look up, each before any again, in random order over all corpora; few of them stay in the daemon's
    /// memory. They are found by short scans before the measured time.
    #[arg(long, default_value = "50000", value_parser = positive)]
    ids: usize,
    /// Which rows are looked up, or where scans begin: printed, and repeated with this.
    #[arg(long)]
    seed: Option<u64>,
    /// Claims outstanding beside the reads: in each of some rounds claims alone are measured, and claims and reads together.
    #[arg(long, value_parser = positive)]
    beside_claims: Option<usize>,
    /// Rounds whose medians are shown.
    #[arg(long, default_value = "3", requires = "beside_claims", value_parser = positive)]
    rounds: usize,
    /// A file on the daemon's device, its shard's say: reads of it are measured before and after each row, random ones of
    /// 4 KiB for lookups (at the same rate) and sequential ones of 1 MiB for scans, and the row has its ratios to them.
    #[arg(long, conflicts_with = "beside_claims")]
    floor: Option<PathBuf>,
    /// Poll the sockets without sleeping: waking the generator up then costs no latency, but a whole core.
    #[arg(long)]
    spin: bool,
    /// Stay on this core; the daemon's should be others.
    #[arg(long)]
    core: Option<usize>,
    /// One JSON object per row.
    #[arg(long)]
    json: bool,
}

/// A number of seconds, which may have a fraction.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// A number of at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1 is needed".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("{text:?} is no whole number")),
    }
}

/// Runs every row and prints it; an error when any request was refused.
pub fn run(arguments: &RunArguments) -> Result<(), BenchError> {
    arguments.check()?;
    if let Some(core) = arguments.core {
        affinity::pin_to(core)?;
    }
    let errors = match (arguments.operation.reads(), arguments.beside_claims) {
        (None, _) => run_claims(arguments)?,
        (Some(kind), None) => run_reads(arguments, kind)?,
        (Some(kind), Some(claims)) => run_beside_claims(arguments, kind, claims)?,
    };
    match errors {
        0 => Ok(()),
        errors => Err(BenchError::Errors { errors }),
    }
}

impl Operation {
    fn reads(self) -> Option<Kind> {
        match self {
            Operation::Claims => None,
            Operation::Lookups => Some(Kind::Lookups),
            Operation::Scans => Some(Kind::Scans),
        }
    }
}

impl RunArguments {
    /// Whether the options go together, as far as clap does not know.
    fn check(&self) -> Result<(), BenchError> {
        let is_claims = self.operation == Operation::Claims;
        let sentence = if is_claims && self.beside_claims.is_some() {
            "--beside-claims is for reads: add `--operation lookups` or `--operation scans`"
        } else if is_claims && self.floor.is_some() {
            "--floor is for reads; `claim-bench ladder` shows claims beside the device's writes"
        } else if !is_claims && self.batch > 1 && self.beside_claims.is_none() {
            "--batch is for claims: leave it out, or add `--beside-claims N`"
        } else {
            return Ok(());
        };
        Err(BenchError::Usage(sentence.to_owned()))
    }

    fn timing(&self) -> Timing {
        Timing { warm_up: self.warmup, measured: self.seconds, spin: self.spin, rate: self.rate }
    }

    fn shape(&self) -> Shape {
        Shape { batch: self.batch, metadata_bytes: self.metadata_bytes }
    }

    /// Where reads go, once ids are known, and the random numbers that go on from there.
    fn reads(&self, kind: Kind) -> Result<(Reads, Random), BenchError> {
        let seed = self.seed.unwrap_or_else(Random::fresh_seed);
        let mut random = Random::new(seed);
        let reads = Reads::find(&self.socket, self.shard_socket, kind, self.ids, &mut random)?;
        eprintln!("{} rows found with --seed {seed}", reads.rows_found());
        Ok((reads, random))
    }
}

fn run_claims(arguments: &RunArguments) -> Result<u64, BenchError> {
    let target = Target::find(&arguments.socket, arguments.corpora, arguments.shard_socket)?;
    let mut rows = Vec::new();
    for outstanding in &arguments.outstanding {
        let row = target.measure(*outstanding, arguments.connections, arguments.shape(), arguments.timing())?;
        if arguments.json {
            print_json(&row);
        }
        warn(row.outstanding, &row.error_lines(), row.unsent);
        rows.push(row);
    }
    if !arguments.json {
        println!("{}", table(&rows));
    }
    Ok(rows.iter().map(|row| row.errors).sum())
}

fn run_reads(arguments: &RunArguments, kind: Kind) -> Result<u64, BenchError> {
    let (reads, mut random) = arguments.reads(kind)?;
    let file = arguments.floor.as_deref().map(ReadFile::open).transpose()?;
    let (mut rows, mut floor_rows) = (Vec::new(), Vec::new());
    for outstanding in &arguments.outstanding {
        let mut floor = |file: &ReadFile| -> Result<ReadMeasured, BenchError> {
            let trial = kind.floor(*outstanding, arguments.rate);
            read_floor::measure(file, trial, arguments.seconds / 2, &mut random)
        };
        let before = file.as_ref().map(&mut floor).transpose()?;
        let mut row = reads.measure(*outstanding, arguments.connections, arguments.timing())?;
        if let (Some(mut measured), Some(file)) = (before, &file) {
            measured.merge(floor(file)?);
            let floor_row = measured.row();
            row.compare(&floor_row);
            if arguments.json {
                print_json(&floor_row);
            }
            floor_rows.push(floor_row);
        }
        if arguments.json {
            print_json(&row);
        }
        warn(row.outstanding, &row.error_lines(), row.unsent);
        rows.push(row);
    }
    if !arguments.json {
        if !floor_rows.is_empty() {
            println!("The floor, before and after each row:\n{}\n", read_floor::table(&floor_rows));
            println!("The daemon; ratios are to the floor's row:");
        }
        println!("{}", reads::table(&rows));
    }
    Ok(rows.iter().map(|row| row.errors).sum())
}

fn run_beside_claims(arguments: &RunArguments, kind: Kind, claims: usize) -> Result<u64, BenchError> {
    let target = Target::find(&arguments.socket, arguments.corpora, arguments.shard_socket)?;
    let (reads, _) = arguments.reads(kind)?;
    let mut errors = 0;
    for outstanding in &arguments.outstanding {
        let mut beside = Beside::new(kind);
        for _ in 0..arguments.rounds {
            let connections = arguments.connections;
            let alone = Timing { rate: None, ..arguments.timing() };
            let claims_alone = target.measure(claims, connections, arguments.shape(), alone)?;
            let claim_links = target.links(claims, connections, arguments.shape())?;
            let read_links = reads.links(*outstanding, connections)?;
            beside.round(claims_alone, claim_links, read_links, arguments.shape(), arguments.timing())?;
            if arguments.json {
                beside.print_last_round();
            }
        }
        let (claims_row, reads_row) = (beside.claims_beside(), beside.reads());
        warn(claims_row.outstanding, &claims_row.error_lines(), claims_row.unsent);
        warn(reads_row.outstanding, &reads_row.error_lines(), reads_row.unsent);
        beside.print(arguments.json);
        errors += beside.errors();
    }
    Ok(errors)
}

fn print_json(row: &impl Serialize) {
    println!("{}", serde_json::to_string(row).expect("numbers and names serialise"));
}

/// Says what makes a row doubtful.
fn warn(outstanding: usize, error_lines: &[String], unsent: u64) {
    for line in error_lines {
        eprintln!("{outstanding} outstanding: {line}");
    }
    if unsent > 0 {
        eprintln!(
            "{outstanding} outstanding: {unsent} requests were due and not sent: the daemon does not keep up with --rate"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts_are_read_strictly() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("soon").is_err());
        assert_eq!(positive("3"), Ok(3));
        assert!(positive("0").is_err() && positive("-3").is_err());
    }
}
