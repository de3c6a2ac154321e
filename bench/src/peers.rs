//! `claim-bench peers`: the same durable job done by claimd and by another system, in turn with the floor below both.
//!
//! Only one system runs at a time. Each keeps its data from round to round, so that none is measured on an empty table only.

mod claimd;
mod comparison;
mod postgresql;

use crate::affinity;
use crate::claims::Shape;
use crate::error::BenchError;
use crate::floor::{self, Floor, LEDGER_MODE};
use crate::interrupt::Interrupt;
use crate::load::Timing;
use crate::load_arguments::{positive, seconds};
use crate::outcome::{Row, Setting};
use crate::scratch_directory::ScratchDirectory;
use claim_engine::device::scratch::{Caching, Extents};
use clap::Args;
use comparison::{Comparison, Measured};
use nix::sched::CpuSet;
use postgresql::PostgreSqlArguments;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Connections of the point where each has one request outstanding, and where the climb to the most begins.
const CONNECTIONS: usize = 64;

/// Claims of a batch, for every system.
const BATCHES: [usize; 2] = [1000, 8190];

/// Which daemon, where, and for how long.
#[derive(Debug, Args)]
pub struct PeersArguments {
    /// The daemon's binary; a release build, for figures that mean something.
    #[arg(long)]
    claimd: PathBuf,
    /// A directory on the device, for the ledger and for the peer's data alike; both are removed again.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Rounds whose medians are shown; in each every system is measured at every point.
    #[arg(long, default_value = "3", value_parser = positive)]
    rounds: usize,
    /// Measured time of each row in each round, in seconds.
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Load before the measured time of each row, in seconds.
    #[arg(long, default_value = "1", value_parser = seconds)]
    warmup: Duration,
    /// Measured time of each row of the floor in each round, in seconds.
    #[arg(long, default_value = "1", value_parser = seconds)]
    floor_seconds: Duration,
    /// Opaque bytes in each claim.
    #[arg(long, default_value = "128")]
    metadata_bytes: usize,
    /// The core that claimd has for itself, and that the floor is measured from.
    #[arg(long, default_value = "0")]
    daemon_core: usize,
    /// The core that the load comes from.
    #[arg(long, default_value = "1")]
    core: usize,
    #[command(flatten)]
    postgresql: PostgreSqlArguments,
    /// Leave the data and the logs where they are.
    #[arg(long)]
    keep: bool,
    /// One JSON object per row: the floor's first, then claimd's, then the peer's.
    #[arg(long)]
    json: bool,
}

/// A system that can do the job: durable claims with their audit, one by one and in batches.
trait Peer {
    /// As in the rows.
    fn name(&self) -> &'static str;

    /// What has to be known of how it runs.
    fn facts(&self) -> BTreeMap<String, String>;

    /// What it is measured at in each round, in this order. Connections and outstanding requests are what suits it best.
    fn settings(&self) -> Vec<Setting>;

    /// Serves what it has so far.
    fn start(&mut self) -> Result<(), BenchError>;

    /// One row.
    fn measure(&mut self, setting: Setting) -> Result<Row, BenchError>;

    /// Checks that it did the job, and ends it; nothing of it stays behind that would burden the next one.
    fn stop(&mut self) -> Result<(), BenchError>;
}

/// Measures and prints; an error when anything was refused.
pub fn peers(arguments: &PeersArguments) -> Result<(), BenchError> {
    let interrupt = Interrupt::watch()?;
    let result = measure(arguments, &interrupt);
    // What a signal breaks off fails in some way of its own.
    interrupt.check()?;
    let comparison = result?;
    comparison.print(arguments.json);
    match comparison.errors() {
        0 => Ok(()),
        errors => Err(BenchError::Errors { errors }),
    }
}

fn measure(arguments: &PeersArguments, interrupt: &Interrupt) -> Result<Comparison, BenchError> {
    let load = Load {
        timing: Timing { warm_up: arguments.warmup, measured: arguments.seconds, spin: false, rate: None },
        metadata_bytes: arguments.metadata_bytes,
    };
    BATCHES.iter().try_for_each(|batch| load.shape(*batch).check())?;
    let all_cores = affinity::current()?;
    let server_core = affinity::one(arguments.daemon_core)?;
    let scratch = ScratchDirectory::make(&arguments.dir, arguments.keep)?;
    let mut peers = make_peers(arguments, load, &scratch, (all_cores, server_core), interrupt)?;
    affinity::pin_to(arguments.core)?;
    let mut measured: Vec<Measured> = peers.iter().map(|peer| Measured::new(peer.name(), peer.facts())).collect();
    let mut floor = None;
    for round in 1..=arguments.rounds {
        for (peer, measured) in peers.iter_mut().zip(&mut measured) {
            eprintln!("round {round} of {}: {}", arguments.rounds, peer.name());
            measured.add(turn(peer.as_mut(), interrupt)?);
        }
        interrupt.check()?;
        let again = affinity::on(&server_core, || measure_floor(arguments))?;
        match &mut floor {
            None => floor = Some(again),
            Some(floor) => floor.merge(again),
        }
    }
    let floor = floor.expect("there is a round at least");
    Ok(Comparison::new(floor.rows(), measured, arguments.core, arguments.seconds))
}

fn make_peers(
    arguments: &PeersArguments,
    load: Load,
    scratch: &ScratchDirectory,
    (all_cores, server_core): (CpuSet, CpuSet),
    interrupt: &Interrupt,
) -> Result<Vec<Box<dyn Peer>>, BenchError> {
    // First what may be missing.
    let postgresql =
        postgresql::PostgreSql::make(&arguments.postgresql, load, scratch.path(), (all_cores, server_core), interrupt)?;
    let daemon = claimd::Claimd::make(
        &arguments.claimd,
        &scratch.path().join("ledger"),
        load,
        (arguments.daemon_core, server_core),
        interrupt,
    )?;
    Ok(vec![Box::new(daemon), Box::new(postgresql)])
}

/// What all of a system's rows have in common.
#[derive(Debug, Clone, Copy)]
struct Load {
    timing: Timing,
    metadata_bytes: usize,
}

impl Load {
    fn shape(self, batch: usize) -> Shape {
        Shape { batch, metadata_bytes: self.metadata_bytes }
    }
}

/// Every row of one system in one round.
fn turn(peer: &mut dyn Peer, interrupt: &Interrupt) -> Result<Vec<Row>, BenchError> {
    interrupt.check()?;
    peer.start()?;
    let mut rows = Vec::new();
    for setting in peer.settings() {
        let row = peer.measure(setting)?;
        for line in row.figures.warnings() {
            eprintln!("{}, {} outstanding in batches of {}: {line}", row.system, row.outstanding, row.batch);
        }
        rows.push(row);
        interrupt.check()?;
    }
    peer.stop()?;
    Ok(rows)
}

fn measure_floor(arguments: &PeersArguments) -> Result<Floor, BenchError> {
    let trials = floor::trials(&[LEDGER_MODE], &floor::BLOCKS_KIB, &floor::IN_FLIGHT);
    Floor::measure(&arguments.dir, &trials, Extents::Written, Caching::Direct, arguments.floor_seconds)
}

/// A closed loop's setting.
fn closed(connections: usize, outstanding: usize, batch: usize) -> Setting {
    Setting { connections, outstanding, batch, rate: None }
}
