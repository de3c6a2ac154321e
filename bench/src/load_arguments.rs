//! What every load needs to know, whatever sets its pace.

use crate::affinity;
use crate::claims::Shape;
use crate::environment::Environment;
use crate::error::BenchError;
use crate::load::Timing;
use crate::random::Random;
use crate::reads::{Kind, Reads};
use crate::record::Recorder;
use crate::session::Session;
use crate::target::Target;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Claims with fresh keys.
    Claims,
    /// Lookups of rows that the ledger has.
    Lookups,
    /// Page after page of whole corpora; each request outstanding is a walk of its own.
    Scans,
}

impl Operation {
    /// What is read; `None` for claims.
    pub fn reads(self) -> Option<Kind> {
        match self {
            Operation::Claims => None,
            Operation::Lookups => Some(Kind::Lookups),
            Operation::Scans => Some(Kind::Scans),
        }
    }
}

/// The daemon, the requests, and where they come from.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// The daemon's socket.
    #[arg(long, env = "CLAIMD_SOCKET", default_value = "./claimd-data/claimd.sock")]
    pub socket: PathBuf,
    /// Connect to the corpora's own shards instead of letting the daemon forward.
    #[arg(long)]
    pub shard_socket: bool,
    /// What is asked for.
    #[arg(long, default_value = "claims")]
    pub operation: Operation,
    /// A workload instead: `mixed`, `skewed`, `metadata`, or a file such as those in bench/workloads. Or events that are played in
    /// their order, as fast as they are answered: `sixteen-corpora`, or a file that `claimctl import` takes.
    #[arg(long, conflicts_with_all = ["operation", "batch", "metadata_bytes", "corpora", "ids"])]
    pub workload: Option<String>,
    /// Connections; never more than there are requests outstanding.
    #[arg(long, default_value = "4", value_parser = positive)]
    pub connections: usize,
    /// Claims per request; 1 sends single claims. Lookups are single ones, and a scan's page has 1,000 rows.
    #[arg(long, default_value = "1", value_parser = positive)]
    pub batch: usize,
    /// Measured time of each row, in seconds.
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub seconds: Duration,
    /// Load before the measured time of each row, in seconds.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub warmup: Duration,
    /// Opaque bytes in each claim.
    #[arg(long, default_value = "128")]
    pub metadata_bytes: usize,
    /// Corpora to claim in, in turn; they are called bench-0, bench-1, … and onboarded when missing. Reads are of every corpus.
    #[arg(long, default_value = "1", value_parser = positive)]
    pub corpora: usize,
    /// Different rows to look up, each before any again, in random order over all corpora; few of them stay in the daemon's
    /// memory. They are found by short scans before the measured time.
    #[arg(long, default_value = "50000", value_parser = positive)]
    pub ids: usize,
    /// Which rows are looked up, where scans begin, or what a workload draws: printed, and repeated with this.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Poll the sockets without sleeping: waking the generator up then costs no latency, but a whole core, which the daemon's building of
    /// indexes and the kernel's workers have use for: the most that many outstanding requests reach is less with it. Not with
    /// --beside-claims.
    #[arg(long)]
    pub spin: bool,
    /// Stay on this core; the daemon's should be others.
    #[arg(long)]
    pub core: Option<usize>,
    /// A directory to keep the run in, for `claim-bench report` and `compare`: results.json, and for each row its percentiles
    /// (.hgrm) and its seconds (.hlog), as HdrHistogram's viewers read them.
    #[arg(long)]
    pub record: Option<PathBuf>,
    /// The ledger's directory, whose file system and device are recorded; unless told otherwise, the socket's.
    #[arg(long, requires = "record")]
    pub dir: Option<PathBuf>,
    /// One JSON object per row.
    #[arg(long)]
    pub json: bool,
}

impl LoadArguments {
    /// Moves to the core that the load is to come from.
    pub fn pin(&self) -> Result<(), BenchError> {
        self.core.map_or(Ok(()), affinity::pin_to)
    }

    /// The seed to draw from.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(Random::fresh_seed)
    }

    /// The time of a row at this rate, or of a closed loop.
    pub fn timing(&self, rate: Option<f64>) -> Timing {
        Timing { warm_up: self.warmup, measured: self.seconds, spin: self.spin, rate }
    }

    /// Of claims.
    pub fn shape(&self) -> Shape {
        Shape { batch: self.batch, metadata_bytes: self.metadata_bytes }
    }

    /// Where claims go.
    pub fn target(&self) -> Result<Target, BenchError> {
        Target::find(&self.socket, self.corpora, self.shard_socket)
    }

    /// Where reads go, once ids are known, and the random numbers that go on from there.
    pub fn reads(&self, kind: Kind, seed: u64) -> Result<(Reads, Random), BenchError> {
        let mut random = Random::new(seed);
        let reads = Reads::find(&self.socket, self.shard_socket, kind, self.ids, &mut random)?;
        eprintln!("{} rows found with --seed {seed}", reads.rows_found());
        Ok((reads, random))
    }

    /// What keeps the run, if it is to be kept.
    pub fn recorder(&self, seed: Option<u64>) -> Result<Option<Recorder>, BenchError> {
        let Some(directory) = &self.record else { return Ok(None) };
        let (_, welcome) = Session::open(&self.socket)?;
        let ledger = self.dir.as_deref().or(self.socket.parent()).filter(|path| !path.as_os_str().is_empty());
        let environment = Environment::of(ledger.unwrap_or(Path::new(".")), Some(&welcome));
        Recorder::start(directory, environment, seed).map(Some)
    }
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
