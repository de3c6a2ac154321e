//! `claim-bench run`: a closed loop against a daemon that is already there.

use crate::affinity;
use crate::closed_loop::{Link, Timing, closed_loop};
use crate::connection::OUTSTANDING_MAX;
use crate::error::BenchError;
use crate::outcome::{Row, Setting, table};
use crate::session::{Session, check_clock};
use crate::workload::Shape;
use claim_protocol::{CorpusInfo, Welcome};
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to load, and how.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The daemon's socket.
    #[arg(long, env = "CLAIMD_SOCKET", default_value = "./claimd-data/claimd.sock")]
    socket: PathBuf,
    /// Connect to the corpora's own shards instead of letting the daemon forward.
    #[arg(long)]
    shard_socket: bool,
    /// Requests outstanding in total, over all connections; one row for each number.
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = positive)]
    outstanding: Vec<usize>,
    /// Connections; never more than there are requests outstanding.
    #[arg(long, default_value = "4", value_parser = positive)]
    connections: usize,
    /// Claims per request; 1 sends single claims.
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
    /// Corpora to claim in, in turn; they are called bench-0, bench-1, … and onboarded when missing.
    #[arg(long, default_value = "1", value_parser = positive)]
    corpora: usize,
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
    if let Some(core) = arguments.core {
        affinity::pin_to(core)?;
    }
    let timing = Timing { warm_up: arguments.warmup, measured: arguments.seconds, spin: arguments.spin };
    let shape = Shape { batch: arguments.batch, metadata_bytes: arguments.metadata_bytes };
    let target = Target::find(&arguments.socket, arguments.corpora, arguments.shard_socket)?;
    let mut rows = Vec::new();
    for outstanding in &arguments.outstanding {
        let row = target.measure(*outstanding, arguments.connections, shape, timing)?;
        if arguments.json {
            println!("{}", serde_json::to_string(&row).expect("numbers and names serialise"));
        }
        for line in row.error_lines() {
            eprintln!("{} outstanding: {line}", row.outstanding);
        }
        rows.push(row);
    }
    if !arguments.json {
        println!("{}", table(&rows));
    }
    match rows.iter().map(|row| row.errors).sum() {
        0 => Ok(()),
        errors => Err(BenchError::Errors { errors }),
    }
}

/// Where claims go: sockets, and the corpora that each takes.
#[derive(Debug)]
pub struct Target {
    endpoints: Vec<(PathBuf, Vec<String>)>,
}

impl Target {
    /// Greets the daemon at `socket` and makes sure of `corpora` corpora. With `shard_sockets` each shard's corpora are
    /// reached at the shard's own socket.
    pub fn find(socket: &Path, corpora: usize, shard_sockets: bool) -> Result<Self, BenchError> {
        let (mut session, welcome) = Session::open(socket)?;
        check_clock(&welcome)?;
        let corpora = session.corpora(corpora)?;
        let endpoints = if shard_sockets {
            by_shard(&welcome, corpora)?
        } else {
            vec![(socket.to_owned(), corpora.into_iter().map(|corpus| corpus.name).collect())]
        };
        Ok(Target { endpoints })
    }

    /// One row: `outstanding` requests over `connections`, or over as many as there are endpoints or requests.
    pub fn measure(
        &self,
        outstanding: usize,
        connections: usize,
        shape: Shape,
        timing: Timing,
    ) -> Result<Row, BenchError> {
        shape.check()?;
        let connections = connections.min(outstanding).max(self.endpoints.len());
        if outstanding < connections || outstanding.div_ceil(connections) > OUTSTANDING_MAX {
            let sentence = format!(
                "{outstanding} outstanding do not spread over {connections} connections: each takes 1 to {OUTSTANDING_MAX}"
            );
            return Err(BenchError::Usage(sentence));
        }
        let links = shares(outstanding, connections)
            .zip(self.endpoints.iter().cycle())
            .map(|(outstanding, (socket, corpora))| {
                let (session, _) = Session::open(socket)?;
                Ok(Link { stream: session.into_stream(), outstanding, corpora: corpora.clone() })
            })
            .collect::<Result<Vec<_>, BenchError>>()?;
        let tally = closed_loop(links, shape, timing)?;
        Ok(Row::new(Setting { connections, outstanding, batch: shape.batch }, tally, timing.measured))
    }
}

/// `total` in `parts` numbers that differ by at most one.
fn shares(total: usize, parts: usize) -> impl Iterator<Item = usize> {
    (0..parts).map(move |part| total / parts + usize::from(part < total % parts))
}

/// Each shard's socket with the names of its corpora.
fn by_shard(welcome: &Welcome, corpora: Vec<CorpusInfo>) -> Result<Vec<(PathBuf, Vec<String>)>, BenchError> {
    let mut shards: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for corpus in corpora {
        shards.entry(corpus.shard).or_default().push(corpus.name);
    }
    shards
        .into_iter()
        .map(|(shard, names)| match welcome.shards.iter().find(|endpoint| endpoint.shard == shard) {
            Some(endpoint) => Ok((PathBuf::from(&endpoint.socket), names)),
            None => Err(BenchError::Protocol { found: format!("the welcome names no socket for shard {shard}") }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_daemon::{FakeDaemon, Manner};

    fn timing() -> Timing {
        Timing { warm_up: Duration::from_millis(20), measured: Duration::from_millis(200), spin: false }
    }

    fn check(
        manner: Manner,
        corpora: usize,
        shard_sockets: bool,
        outstanding: usize,
        connections: usize,
        batch: usize,
    ) -> Row {
        let daemon = FakeDaemon::start(manner);
        let target = Target::find(daemon.socket(), corpora, shard_sockets).expect("the daemon answers");
        let shape = Shape { batch, metadata_bytes: 16 };
        let row = target.measure(outstanding, connections, shape, timing()).expect("a row");
        let seen = daemon.stop();
        assert!(row.claims <= seen.claims, "{} of {}", row.claims, seen.claims);
        assert_eq!(seen.repeated_keys, 0);
        assert_eq!(seen.corpora, corpora);
        row
    }

    #[test]
    fn every_reply_of_the_measured_time_is_counted() {
        for (outstanding, connections, batch) in [(1, 4, 1), (64, 4, 1), (1024, 3, 1), (4, 2, 100)] {
            let row = check(Manner::Willing, 2, false, outstanding, connections, batch);
            assert_eq!(
                (row.outstanding, row.connections, row.batch),
                (outstanding, connections.min(outstanding), batch)
            );
            assert!(row.claims > 0, "{row:?}");
            assert_eq!(row.errors, 0);
            assert!(row.p50_us <= row.p99_us && row.p99_us <= row.max_us, "{row:?}");
        }
    }

    #[test]
    fn shards_are_reached_at_their_own_sockets() {
        let row = check(Manner::Willing, 2, true, 8, 1, 1);
        assert_eq!(row.connections, 2, "one connection per shard at least");
        assert!(row.claims > 0);
    }

    #[test]
    fn refusals_are_counted_by_code_one_by_one_and_in_batches() {
        let row = check(Manner::RefusesEverySeventh, 1, false, 8, 2, 1);
        assert_eq!(row.errors_by_code.keys().collect::<Vec<_>>(), ["OVERLOADED"]);
        assert!(row.claims > 0 && row.errors > 0);
        let row = check(Manner::RefusesEverySeventh, 1, false, 2, 1, 50);
        assert_eq!(row.errors_by_code.keys().collect::<Vec<_>>(), ["OVERLOADED"]);
    }

    #[test]
    fn a_daemon_that_hangs_up_or_lies_ends_the_run() {
        for (manner, expected) in
            [(Manner::HangsUp, "connection to the daemon failed"), (Manner::AnswersTwice, "not outstanding")]
        {
            let daemon = FakeDaemon::start(manner);
            let target = Target::find(daemon.socket(), 1, false).expect("the daemon answers at first");
            let shape = Shape { batch: 1, metadata_bytes: 16 };
            let error = target.measure(4, 1, shape, timing()).expect_err("the daemon misbehaves").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_replay_ledger_is_not_loaded() {
        let daemon = FakeDaemon::start(Manner::Replays);
        let error = Target::find(daemon.socket(), 1, false).expect_err("it takes its time from requests").to_string();
        assert!(error.contains("--clock wall"), "{error}");
    }

    #[test]
    fn no_daemon_is_named_by_its_socket() {
        let error = Target::find(Path::new("/nonexistent/claimd.sock"), 1, false).expect_err("nobody is there");
        assert!(error.to_string().starts_with("cannot connect to /nonexistent/claimd.sock"), "{error}");
    }

    #[test]
    fn shares_add_up() {
        assert_eq!(shares(10, 4).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(shares(2, 2).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn times_and_counts_are_read_strictly() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("soon").is_err());
        assert_eq!(positive("3"), Ok(3));
        assert!(positive("0").is_err() && positive("-3").is_err());
    }
}
