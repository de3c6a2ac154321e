//! `claim-bench run`: a load on a daemon that is already there.

use crate::beside::{self, Beside};
use crate::error::BenchError;
use crate::floor::{self, Floor, LEDGER_MODE};
use crate::load::Timing;
use crate::load_arguments::{LoadArguments, Operation, positive};
use crate::outcome::table;
use crate::pace;
use crate::read_floor::{self, ReadFile, ReadMeasured};
use crate::reads::{self, Kind};
use crate::subject::{self, RowLine, Subject};
use crate::verdict::Verdict;
use claim_engine::device::scratch::{Caching, Extents};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Measured time of each row of the floor of claims, before and again after them.
const FLOOR_TIME: Duration = Duration::from_secs(1);

/// What to load, and how.
#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    load: LoadArguments,
    /// Requests outstanding in total, over all connections; one row for each number. At a rate, those that may be.
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = positive)]
    outstanding: Vec<usize>,
    /// Requests a second, sent when they are due whatever became of those before, and timed from then; without it a new one
    /// for every reply. A row that does not hold it has failed. With --beside-claims, of the reads.
    #[arg(long, value_parser = pace::rate)]
    rate: Option<f64>,
    /// Claims outstanding beside the reads: in each of some rounds claims alone are measured, and claims and reads together.
    #[arg(long, value_parser = positive)]
    beside_claims: Option<usize>,
    /// Rounds whose medians are shown.
    #[arg(long, default_value = "3", requires = "beside_claims", value_parser = positive)]
    rounds: usize,
    /// A file on the daemon's device, its shard's say: reads of it are measured before and after each row, random ones of
    /// 4 KiB for lookups (at the same rate) and sequential ones of 1 MiB for scans, and the row has its ratios to them. For claims
    /// a directory there: durable writes are measured before and after the rows. Not with --beside-claims.
    #[arg(long, conflicts_with = "beside_claims")]
    floor: Option<PathBuf>,
}

/// Runs every row and prints it; an error when any request was refused, or a rate was missed.
pub fn run(arguments: &RunArguments) -> Result<(), BenchError> {
    arguments.check()?;
    arguments.load.pin()?;
    let verdict = match (arguments.load.operation.reads(), arguments.beside_claims) {
        _ if arguments.load.workload.is_some() => run_workload(arguments)?,
        (None, _) => run_claims(arguments)?,
        (Some(kind), None) => run_reads(arguments, kind)?,
        (Some(kind), Some(claims)) => run_beside_claims(arguments, kind, claims)?,
    };
    verdict.result()
}

impl RunArguments {
    /// Whether the options go together, as far as clap does not know.
    fn check(&self) -> Result<(), BenchError> {
        let is_claims = self.load.operation == Operation::Claims;
        let is_workload = self.load.workload.is_some();
        let sentence = if is_workload && (self.beside_claims.is_some() || self.floor.is_some()) {
            "--workload goes neither with --beside-claims nor with --floor: leave one out"
        } else if is_claims && self.beside_claims.is_some() {
            "--beside-claims is for reads: add `--operation lookups` or `--operation scans`"
        } else if self.beside_claims.is_some() && self.load.spin {
            "--spin goes not with --beside-claims: two loads that poll take the core from each other"
        } else if self.floor.as_ref().is_some_and(|floor| floor.is_dir() != is_claims) {
            "--floor takes a directory for claims, and a file or a device for reads"
        } else if !is_claims && self.load.batch > 1 && self.beside_claims.is_none() {
            "--batch is for claims: leave it out, or add `--beside-claims N`"
        } else {
            return Ok(());
        };
        Err(BenchError::Usage(sentence.to_owned()))
    }

    fn timing(&self) -> Timing {
        self.load.timing(self.rate)
    }
}

fn run_workload(arguments: &RunArguments) -> Result<Verdict, BenchError> {
    let mut subject = Subject::find(&arguments.load)?;
    let mut recorder = subject.recorder(&arguments.load)?;
    let (mut rows, mut verdict) = (Vec::new(), Verdict::default());
    for outstanding in &arguments.outstanding {
        let row = subject.measure(&arguments.load, *outstanding, arguments.rate)?;
        if arguments.load.json {
            print_json(&RowLine::new(&row));
        }
        verdict.add(&row.setting, &row.figures);
        if let Some(recorder) = &mut recorder {
            recorder.row(&row)?;
        }
        rows.push(row);
    }
    if !arguments.load.json {
        println!("{}", subject::table(&rows));
    }
    Ok(verdict)
}

fn run_claims(arguments: &RunArguments) -> Result<Verdict, BenchError> {
    let target = arguments.load.target()?;
    let mut recorder = arguments.load.recorder(None)?;
    let (mut rows, mut verdict) = (Vec::new(), Verdict::default());
    let measure_floor = |directory: &PathBuf| {
        let trials = floor::trials(&[LEDGER_MODE], &floor::BLOCKS_KIB, &floor::IN_FLIGHT);
        Floor::measure(directory, &trials, Extents::Written, Caching::Direct, FLOOR_TIME)
    };
    let mut floor = arguments.floor.as_ref().map(measure_floor).transpose()?;
    for outstanding in &arguments.outstanding {
        let row =
            target.measure(*outstanding, arguments.load.connections, arguments.load.shape(), arguments.timing())?;
        if arguments.load.json {
            print_json(&row);
        }
        verdict.add(&row.setting(), &row.figures);
        if let Some(recorder) = &mut recorder {
            recorder.row(&row.measured())?;
        }
        rows.push(row);
    }
    if let (Some(floor), Some(directory)) = (&mut floor, &arguments.floor) {
        floor.merge(measure_floor(directory)?);
        if let Some(recorder) = &mut recorder {
            floor.records().into_iter().try_for_each(|record| recorder.floor(record))?;
        }
        if arguments.load.json {
            floor.rows().iter().for_each(print_json);
        } else {
            println!("The floor, before and after the rows:\n{}\n\nThe daemon:", floor::table(&floor.rows()));
        }
    }
    if !arguments.load.json {
        println!("{}", table(&rows));
    }
    Ok(verdict)
}

fn run_reads(arguments: &RunArguments, kind: Kind) -> Result<Verdict, BenchError> {
    let seed = arguments.load.seed();
    let (reads, mut random) = arguments.load.reads(kind, seed)?;
    let file = arguments.floor.as_deref().map(ReadFile::open).transpose()?;
    let mut recorder = arguments.load.recorder(Some(seed))?;
    let (mut rows, mut floor_rows, mut verdict) = (Vec::new(), Vec::new(), Verdict::default());
    for outstanding in &arguments.outstanding {
        let mut floor = |file: &ReadFile| -> Result<ReadMeasured, BenchError> {
            let trial = kind.floor(*outstanding, arguments.rate);
            read_floor::measure(file, trial, arguments.load.seconds / 2, &mut random)
        };
        let before = file.as_ref().map(&mut floor).transpose()?;
        let mut row = reads.measure(*outstanding, arguments.load.connections, arguments.timing())?;
        if let (Some(mut measured), Some(file)) = (before, &file) {
            measured.merge(floor(file)?);
            let floor_row = measured.row();
            row.compare(&floor_row);
            if arguments.load.json {
                print_json(&floor_row);
            }
            floor_rows.push(floor_row);
            if let Some(recorder) = &mut recorder {
                recorder.floor(measured.record())?;
            }
        }
        if arguments.load.json {
            print_json(&row);
        }
        verdict.add(&row.setting(), &row.figures);
        if let Some(recorder) = &mut recorder {
            recorder.row(&row.measured())?;
        }
        rows.push(row);
    }
    if !arguments.load.json {
        if !floor_rows.is_empty() {
            println!("The floor, before and after each row:\n{}\n", read_floor::table(&floor_rows));
            println!("The daemon; ratios are to the floor's row:");
        }
        println!("{}", reads::table(&rows));
    }
    Ok(verdict)
}

fn run_beside_claims(arguments: &RunArguments, kind: Kind, claims: usize) -> Result<Verdict, BenchError> {
    let target = arguments.load.target()?;
    let seed = arguments.load.seed();
    let (reads, _) = arguments.load.reads(kind, seed)?;
    let mut recorder = arguments.load.recorder(Some(seed))?;
    let mut verdict = Verdict::default();
    for outstanding in &arguments.outstanding {
        let mut beside = Beside::new(kind);
        for _ in 0..arguments.rounds {
            let connections = arguments.load.connections;
            let alone = Timing { rate: None, ..arguments.timing() };
            beside::load_of_claims();
            let claims_alone = target.measure(claims, connections, arguments.load.shape(), alone)?;
            let claim_links = target.links(claims, connections, arguments.load.shape())?;
            let read_links = reads.links(*outstanding, connections)?;
            beside.round(claims_alone, claim_links, read_links, arguments.load.shape(), arguments.timing())?;
            if arguments.load.json {
                beside.print_last_round();
            }
        }
        beside.print(arguments.load.json);
        for row in beside.medians() {
            verdict.add(&row.setting, &row.figures);
            if let Some(recorder) = &mut recorder {
                recorder.row(&row)?;
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
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        run: RunArguments,
    }

    #[test]
    fn options_that_do_not_go_together_are_refused_with_what_to_do() {
        let refused = |arguments: &str| {
            let arguments = ["run", "--socket", "s"].into_iter().chain(arguments.split_whitespace());
            Command::try_parse_from(arguments)
                .expect("clap takes them")
                .run
                .check()
                .err()
                .map(|error| error.to_string())
        };
        let lookups = "--operation lookups --beside-claims 64";
        for allowed in
            ["", "--spin", lookups, "--operation scans --beside-claims 1 --batch 10", "--operation scans --spin"]
        {
            assert_eq!(refused(allowed), None, "{allowed}");
        }
        for (arguments, named) in [
            (format!("{lookups} --spin"), "--spin"),
            ("--beside-claims 64".to_owned(), "--operation"),
            ("--operation scans --batch 10".to_owned(), "--batch"),
            ("--operation scans --floor .".to_owned(), "--floor"),
        ] {
            let sentence = refused(&arguments).unwrap_or_else(|| panic!("{arguments} is refused"));
            assert!(sentence.contains(named), "{arguments}: {sentence}");
        }
    }
}
