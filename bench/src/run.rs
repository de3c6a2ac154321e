//! `claim-bench run`: a load on a daemon that is already there.

use crate::affinity;
use crate::beside::{Beside, MedianRow};
use crate::claims::Shape;
use crate::environment::Environment;
use crate::error::BenchError;
use crate::load::Timing;
use crate::outcome::{Figures, table};
use crate::pace;
use crate::random::Random;
use crate::read_floor::{self, ReadFile, ReadMeasured};
use crate::reads::{self, Kind, Reads};
use crate::record::{Recorder, RowSetting};
use crate::session::Session;
use crate::target::Target;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};
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
    /// A directory to keep the run in, for `claim-bench report` and `compare`: results.json, and for each row its percentiles
    /// (.hgrm) and its seconds (.hlog), as HdrHistogram's viewers read them.
    #[arg(long)]
    record: Option<PathBuf>,
    /// The ledger's directory, whose file system and device are recorded; unless told otherwise, the socket's.
    #[arg(long, requires = "record")]
    dir: Option<PathBuf>,
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

/// Runs every row and prints it; an error when any request was refused, or a rate was missed.
pub fn run(arguments: &RunArguments) -> Result<(), BenchError> {
    arguments.check()?;
    if let Some(core) = arguments.core {
        affinity::pin_to(core)?;
    }
    let verdict = match (arguments.operation.reads(), arguments.beside_claims) {
        (None, _) => run_claims(arguments)?,
        (Some(kind), None) => run_reads(arguments, kind)?,
        (Some(kind), Some(claims)) => run_beside_claims(arguments, kind, claims)?,
    };
    verdict.result()
}

/// What is wrong with the rows so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    errors: u64,
    failed_rows: usize,
}

impl Verdict {
    /// Counts a row in, and says what makes it doubtful.
    pub fn add(&mut self, setting: &RowSetting, figures: &Figures) {
        self.errors += figures.errors;
        self.failed_rows += usize::from(figures.failed);
        for line in figures.warnings() {
            eprintln!("{}: {line}", setting.label());
        }
    }

    /// An error when any request was refused or any row failed.
    pub fn result(&self) -> Result<(), BenchError> {
        match *self {
            Verdict { errors: 0, failed_rows: 0 } => Ok(()),
            Verdict { errors: 0, failed_rows } => Err(BenchError::RateMissed { rows: failed_rows }),
            Verdict { errors, .. } => Err(BenchError::Errors { errors }),
        }
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
    fn reads(&self, kind: Kind, seed: u64) -> Result<(Reads, Random), BenchError> {
        let mut random = Random::new(seed);
        let reads = Reads::find(&self.socket, self.shard_socket, kind, self.ids, &mut random)?;
        eprintln!("{} rows found with --seed {seed}", reads.rows_found());
        Ok((reads, random))
    }

    /// What keeps the run, if it is to be kept.
    fn recorder(&self, seed: Option<u64>) -> Result<Option<Recorder>, BenchError> {
        let Some(directory) = &self.record else { return Ok(None) };
        let (_, welcome) = Session::open(&self.socket)?;
        let ledger = self.dir.as_deref().or(self.socket.parent()).filter(|path| !path.as_os_str().is_empty());
        let environment = Environment::of(ledger.unwrap_or(Path::new(".")), Some(&welcome));
        Recorder::start(directory, environment, seed).map(Some)
    }
}

fn run_claims(arguments: &RunArguments) -> Result<Verdict, BenchError> {
    let target = Target::find(&arguments.socket, arguments.corpora, arguments.shard_socket)?;
    let mut recorder = arguments.recorder(None)?;
    let (mut rows, mut verdict) = (Vec::new(), Verdict::default());
    for outstanding in &arguments.outstanding {
        let row = target.measure(*outstanding, arguments.connections, arguments.shape(), arguments.timing())?;
        if arguments.json {
            print_json(&row);
        }
        verdict.add(&row.setting(), &row.figures);
        if let Some(recorder) = &mut recorder {
            recorder.row(row.setting(), row.claims_per_second, &row.figures)?;
        }
        rows.push(row);
    }
    if !arguments.json {
        println!("{}", table(&rows));
    }
    Ok(verdict)
}

fn run_reads(arguments: &RunArguments, kind: Kind) -> Result<Verdict, BenchError> {
    let seed = arguments.seed.unwrap_or_else(Random::fresh_seed);
    let (reads, mut random) = arguments.reads(kind, seed)?;
    let file = arguments.floor.as_deref().map(ReadFile::open).transpose()?;
    let mut recorder = arguments.recorder(Some(seed))?;
    let (mut rows, mut floor_rows, mut verdict) = (Vec::new(), Vec::new(), Verdict::default());
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
            if let Some(recorder) = &mut recorder {
                recorder.floor(measured.record())?;
            }
        }
        if arguments.json {
            print_json(&row);
        }
        verdict.add(&row.setting(), &row.figures);
        if let Some(recorder) = &mut recorder {
            recorder.row(row.setting(), row.rows_per_second, &row.figures)?;
        }
        rows.push(row);
    }
    if !arguments.json {
        if !floor_rows.is_empty() {
            println!("The floor, before and after each row:\n{}\n", read_floor::table(&floor_rows));
            println!("The daemon; ratios are to the floor's row:");
        }
        println!("{}", reads::table(&rows));
    }
    Ok(verdict)
}

fn run_beside_claims(arguments: &RunArguments, kind: Kind, claims: usize) -> Result<Verdict, BenchError> {
    let target = Target::find(&arguments.socket, arguments.corpora, arguments.shard_socket)?;
    let seed = arguments.seed.unwrap_or_else(Random::fresh_seed);
    let (reads, _) = arguments.reads(kind, seed)?;
    let mut recorder = arguments.recorder(Some(seed))?;
    let mut verdict = Verdict::default();
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
        beside.print(arguments.json);
        for MedianRow { setting, units_per_second, figures } in beside.medians() {
            verdict.add(&setting, &figures);
            if let Some(recorder) = &mut recorder {
                recorder.row(setting, units_per_second, &figures)?;
            }
        }
    }
    Ok(verdict)
}

fn print_json(row: &impl Serialize) {
    println!("{}", serde_json::to_string(row).expect("numbers and names serialise"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Tally;

    #[test]
    fn a_run_fails_by_its_refusals_and_by_its_rate() {
        let second = Duration::from_secs(1);
        let setting = RowSetting::closed("claims", 1, 8);
        let verdict = |rate, refused: u64| {
            let mut tally = Tally::new(second);
            (0..refused).for_each(|_| tally.refused("OVERLOADED"));
            let mut verdict = Verdict::default();
            verdict.add(&setting, &Figures::new(8, rate, tally, second));
            verdict.result().err().map(|error| error.to_string())
        };
        assert_eq!(verdict(None, 0), None);
        assert!(verdict(Some(5.0), 0).is_some_and(|error| error.starts_with("1 of the rows FAILED")));
        assert!(verdict(Some(5.0), 3).is_some_and(|error| error.starts_with("3 requests or items were refused")));
    }

    #[test]
    fn times_and_counts_are_read_strictly() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("soon").is_err());
        assert_eq!(positive("3"), Ok(3));
        assert!(positive("0").is_err() && positive("-3").is_err());
    }
}
