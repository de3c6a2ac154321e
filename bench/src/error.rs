//! What ends a measurement.

use claim_engine::device::DeviceError;
use nix::sys::signal::Signal;
use std::io;
use std::path::PathBuf;

/// Why there is no result, or none to trust.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The device or the kernel below it failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file that is to be read does not open.
    #[error(
        "cannot open {} for direct reads: {source}; it has to be readable, and lie on a device or a file system with O_DIRECT",
        path.display()
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A read of it failed.
    #[error("cannot read {} at byte {offset}: {source}", path.display())]
    Read {
        /// Of what.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// What was to be kept cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file has no run, or none that can be read.
    #[error("{} has no run: {found}; name a directory that `--record` made, or its results.json", path.display())]
    NoRun {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// No daemon answers at the socket.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A connection broke off.
    #[error("the connection to the daemon failed while {doing}: {source}")]
    Connection {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon's bytes make no sense.
    #[error("the daemon broke the protocol: {found}")]
    Protocol {
        /// What came, and what would have been right.
        found: String,
    },
    /// The daemon refused something without which nothing can be measured.
    #[error("the daemon refused to {operation}: {message}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Its code and sentence.
        message: String,
    },
    /// Requests were still unanswered long after the end.
    #[error("{requests} requests were still unanswered {seconds} s after the end of the run")]
    Unanswered {
        /// How many.
        requests: usize,
        /// How long they were waited for.
        seconds: u64,
    },
    /// Some requests of a run were refused, so that its figures do not stand for what was asked.
    #[error("{errors} requests or items were refused; the figures stand for something else than what was asked")]
    Errors {
        /// How many.
        errors: u64,
    },
    /// Rows did not hold the rate that was asked for.
    #[error(
        "{rows} of the rows FAILED: the daemon did not keep up with the rate that was asked for, so they show no latency at it"
    )]
    RateMissed {
        /// How many.
        rows: usize,
    },
    /// A sweep began above what the daemon holds.
    #[error("not even {rate} requests a second held, because {because}; begin lower with --start")]
    NoKnee {
        /// The first rate.
        rate: f64,
        /// Why it did not hold.
        because: String,
    },
    /// A server under test did not do what it was started for.
    #[error("{what}{log}")]
    Server {
        /// What it did.
        what: String,
        /// What it wrote to its standard error, under a heading; may be empty.
        log: String,
    },
    /// A peer did something else than the job.
    #[error("{system} does not do the job: {what}")]
    NotTheJob {
        /// Which.
        system: &'static str,
        /// What was found, and what would be right.
        what: String,
    },
    /// A peer's client failed.
    #[error("{system} failed to {doing}: {message}")]
    Peer {
        /// Which.
        system: &'static str,
        /// What was asked.
        doing: &'static str,
        /// What it said.
        message: String,
    },
    /// A signal came.
    #[error("ended by {signal}; the servers are ended and the scratch directory is removed")]
    Interrupted {
        /// Which.
        signal: Signal,
    },
    /// The arguments contradict each other or the daemon.
    #[error("{0}")]
    Usage(String),
    /// A system call of our own failed.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BenchError {
    /// For `map_err` on nix's calls.
    pub fn system(operation: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |errno| BenchError::System { operation, source: errno.into() }
    }
}
