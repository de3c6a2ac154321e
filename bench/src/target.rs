//! Where a load goes: sockets, and the corpora that each takes.

use crate::claims::{Claims, Shape};
use crate::connection::OUTSTANDING_MAX;
use crate::error::BenchError;
use crate::load::{Link, Timing, load};
use crate::outcome::{Figures, MeasuredRow, Row, Setting, per_second};
use crate::random::Random;
use crate::record::RowSetting;
use crate::session::{Session, bench_corpus, check_clock};
use crate::work::Work;
use crate::workload::{Part, Workload};
use claim_protocol::{CorpusInfo, Welcome};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A socket, and the corpora to ask for there.
#[derive(Debug)]
pub struct Endpoint {
    pub socket: PathBuf,
    /// Not empty.
    pub corpora: Vec<CorpusInfo>,
}

/// One endpoint for all of `corpora` (not empty), or each shard's own socket.
pub fn endpoints(
    socket: &Path,
    welcome: &Welcome,
    corpora: Vec<CorpusInfo>,
    shard_sockets: bool,
) -> Result<Vec<Endpoint>, BenchError> {
    if !shard_sockets {
        return Ok(vec![Endpoint { socket: socket.to_owned(), corpora }]);
    }
    let mut shards: BTreeMap<u16, Vec<CorpusInfo>> = BTreeMap::new();
    for corpus in corpora {
        shards.entry(corpus.shard).or_default().push(corpus);
    }
    shards
        .into_iter()
        .map(|(shard, corpora)| match welcome.shards.iter().find(|endpoint| endpoint.shard == shard) {
            Some(endpoint) => Ok(Endpoint { socket: PathBuf::from(&endpoint.socket), corpora }),
            None => Err(BenchError::Protocol { found: format!("the welcome names no socket for shard {shard}") }),
        })
        .collect()
}

/// How many requests go over each connection, which are `connections`, or as many as there are endpoints or requests.
pub fn spread(outstanding: usize, connections: usize, endpoints: usize) -> Result<Vec<usize>, BenchError> {
    let connections = connections.min(outstanding).max(endpoints);
    if outstanding < connections || outstanding.div_ceil(connections) > OUTSTANDING_MAX {
        let sentence = format!(
            "{outstanding} outstanding do not spread over {connections} connections: each takes 1 to {OUTSTANDING_MAX}"
        );
        return Err(BenchError::Usage(sentence));
    }
    Ok(shares(outstanding, connections).collect())
}

/// A greeted connection for each of `shares`, endpoint after endpoint, with the work that `work` makes of an endpoint's
/// number and a share.
pub fn links<'a>(
    endpoints: impl Iterator<Item = &'a Path> + Clone,
    shares: &[usize],
    mut work: impl FnMut(usize, usize) -> Result<Work, BenchError>,
) -> Result<Vec<Link>, BenchError> {
    shares
        .iter()
        .zip(endpoints.enumerate().cycle())
        .map(|(outstanding, (number, socket))| {
            let (session, _) = Session::open(socket)?;
            Ok(Link { stream: session.into_stream(), outstanding: *outstanding, work: work(number, *outstanding)? })
        })
        .collect()
}

/// Where claims go.
#[derive(Debug)]
pub struct Target {
    endpoints: Vec<Endpoint>,
}

impl Target {
    /// Greets the daemon at `socket` and makes sure of the corpora `bench-0` to `bench-(corpora - 1)`. With `shard_sockets` each
    /// shard's corpora are reached at the shard's own socket.
    pub fn find(socket: &Path, corpora: usize, shard_sockets: bool) -> Result<Self, BenchError> {
        Target::find_named(socket, &(0..corpora).map(bench_corpus).collect::<Vec<_>>(), shard_sockets)
    }

    /// The same with the corpora of these names.
    pub fn find_named(socket: &Path, corpora: &[String], shard_sockets: bool) -> Result<Self, BenchError> {
        let (mut session, welcome) = Session::open(socket)?;
        check_clock(&welcome)?;
        let corpora = session.corpora(corpora)?;
        Ok(Target { endpoints: endpoints(socket, &welcome, corpora, shard_sockets)? })
    }

    /// The connections of one row.
    pub fn links(&self, outstanding: usize, connections: usize, shape: Shape) -> Result<Vec<Link>, BenchError> {
        shape.check()?;
        let shares = spread(outstanding, connections, self.endpoints.len())?;
        links(self.endpoints.iter().map(|endpoint| endpoint.socket.as_path()), &shares, |endpoint, _| {
            let corpora = self.endpoints[endpoint].corpora.iter().map(|corpus| corpus.name.clone()).collect();
            Ok(Work::Claims(Claims::new(shape, corpora)))
        })
    }

    /// One row of a workload, whose corpora are those that were found; `random` gives each connection its numbers.
    pub fn measure_workload(
        &self,
        workload: &Workload,
        outstanding: usize,
        connections: usize,
        timing: Timing,
        random: &mut Random,
    ) -> Result<MeasuredRow, BenchError> {
        let shares = spread(outstanding, connections, self.endpoints.len())?;
        let names = workload.corpora();
        let sockets = self.endpoints.iter().map(|endpoint| endpoint.socket.as_path());
        let mut begun = vec![0; self.endpoints.len()];
        let links = links(sockets, &shares, |endpoint, outstanding| {
            let is_here = |name: &String| self.endpoints[endpoint].corpora.iter().any(|corpus| corpus.name == *name);
            let here = (0..names.len()).filter(|number| is_here(&names[*number])).collect();
            let of = (endpoint..shares.len()).step_by(self.endpoints.len()).count();
            let part = Part { outstanding, number: begun[endpoint], of };
            begun[endpoint] += 1;
            workload.work(here, part, Random::new(random.next()))
        })?;
        let connections = links.len();
        let tally = load(links, timing)?;
        let units_per_second = per_second(tally.units, timing.measured);
        let setting = RowSetting {
            batch: workload.batch(),
            rate: timing.rate,
            ..RowSetting::closed(&workload.name, connections, outstanding)
        };
        let figures = Figures::new(outstanding, timing.rate, tally, timing.measured);
        Ok(MeasuredRow { setting, units_per_second, figures })
    }

    /// One row: `outstanding` requests over `connections`, or over as many as there are endpoints or requests.
    pub fn measure(
        &self,
        outstanding: usize,
        connections: usize,
        shape: Shape,
        timing: Timing,
    ) -> Result<Row, BenchError> {
        let links = self.links(outstanding, connections, shape)?;
        let setting = Setting { connections: links.len(), outstanding, batch: shape.batch, rate: timing.rate };
        Ok(Row::new(setting, load(links, timing)?, timing.measured))
    }
}

/// `total` in `parts` numbers that differ by at most one.
fn shares(total: usize, parts: usize) -> impl Iterator<Item = usize> {
    (0..parts).map(move |part| total / parts + usize::from(part < total % parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_daemon::{FakeDaemon, Manner};
    use std::time::Duration;

    fn timing() -> Timing {
        Timing { warm_up: Duration::from_millis(20), measured: Duration::from_millis(200), spin: false, rate: None }
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
            assert_eq!(row.figures.errors, 0);
            let latencies = row.figures.latencies;
            assert!(latencies.p50_us <= latencies.p99_us && latencies.p99_us <= latencies.max_us, "{row:?}");
        }
    }

    #[test]
    fn an_open_loop_sends_what_is_due_and_says_what_it_could_not_send() {
        for spin in [false, true] {
            let daemon = FakeDaemon::start(Manner::Willing);
            let target = Target::find(daemon.socket(), 1, false).expect("the daemon answers");
            let shape = Shape { batch: 1, metadata_bytes: 16 };
            let timing = Timing { rate: Some(1000.0), spin, ..timing() };
            let row = target.measure(64, 2, shape, timing).expect("a row");
            // Those of 200 ms, none twice and none left out, except what the machine was too busy for at the end.
            let figures = &row.figures;
            assert!(figures.requests + figures.unsent >= 200 && figures.requests <= 201, "{row:?}");
            assert_eq!((row.figures.rate, row.figures.errors), (Some(1000.0), 0));
        }
    }

    #[test]
    fn a_workload_goes_to_all_sockets_without_a_refusal() {
        for (name, shard_sockets) in
            [("mixed", false), ("mixed", true), ("sixteen-corpora", false), ("sixteen-corpora", true)]
        {
            let daemon = FakeDaemon::start(Manner::Willing);
            let workload = Workload::find(name).expect("it is embedded");
            let target = Target::find_named(daemon.socket(), &workload.corpora(), shard_sockets);
            let target = target.expect("the daemon answers");
            let row = target.measure_workload(&workload, 16, 2, timing(), &mut Random::new(1)).expect("a row");
            assert!(row.units_per_second > 0.0 && row.figures.errors == 0, "{row:?}");
            assert_eq!((row.setting.operation.as_str(), row.setting.connections), (name, 2));
            let seen = daemon.stop();
            // References are few among the events.
            assert!(
                (seen.references > 0 || name != "mixed") && seen.claims > seen.references && seen.corpora == 16,
                "{seen:?}"
            );
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
        assert_eq!(row.figures.errors_by_code.keys().collect::<Vec<_>>(), ["OVERLOADED"]);
        assert!(row.claims > 0 && row.figures.errors > 0);
        let row = check(Manner::RefusesEverySeventh, 1, false, 2, 1, 50);
        assert_eq!(row.figures.errors_by_code.keys().collect::<Vec<_>>(), ["OVERLOADED"]);
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
}
