//! What a command needs to know that starts a daemon of its own, on a scratch ledger, and claims there.

use crate::claims::Shape;
use crate::environment::Environment;
use crate::error::BenchError;
use crate::load::Timing;
use crate::load_arguments::seconds;
use crate::record::Recorder;
use crate::session::Session;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The daemon, its place, and that of the load beside it.
#[derive(Debug, Args)]
pub struct OwnDaemonArguments {
    /// The daemon's binary; a release build, for figures that mean something.
    #[arg(long)]
    pub claimd: PathBuf,
    /// A directory on the device. A scratch ledger is made in it and removed again; a fast daemon fills some GiB a minute.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// Opaque bytes in each claim.
    #[arg(long, default_value = "128")]
    pub metadata_bytes: usize,
    /// The core that serves, and that the floor is measured from.
    #[arg(long, default_value = "0")]
    pub daemon_core: usize,
    /// Microseconds for which what serves looks for work before it sleeps; see `claimd start --help`.
    #[arg(long, default_value = "0")]
    pub poll_us: u64,
    /// The core that the load comes from.
    #[arg(long, default_value = "1")]
    pub core: usize,
    /// Poll the sockets without sleeping: waking the generator up then costs no latency, but a whole core, which others have use for.
    #[arg(long)]
    pub spin: bool,
    /// Load before each measured time, in seconds.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub warmup: Duration,
}

impl OwnDaemonArguments {
    /// A closed loop, measured for so long.
    pub fn timing(&self, measured: Duration) -> Timing {
        Timing { warm_up: self.warmup, measured, spin: self.spin, rate: None }
    }

    /// What keeps the run of the daemon at `socket` in `directory`, if it is to be kept.
    pub fn recorder(&self, directory: Option<&Path>, socket: &Path) -> Result<Option<Recorder>, BenchError> {
        let Some(directory) = directory else { return Ok(None) };
        let (_, welcome) = Session::open(socket)?;
        Recorder::start(directory, Environment::of(&self.dir, Some(&welcome)), None).map(Some)
    }

    /// Of claims.
    pub fn shape(&self, batch: usize) -> Shape {
        Shape { batch, metadata_bytes: self.metadata_bytes }
    }
}
