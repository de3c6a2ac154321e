//! Reads of rows that a ledger has: lookups and scans.

use crate::device_reads::DeviceReads;
use crate::error::BenchError;
use crate::load::{Link, Timing, load};
use crate::lookups::{Ids, Lookups};
use crate::outcome::{
    Figures, Latencies, MeasuredRow, Tally, hundredths, median, number_table, per_second, rate_cell, thousands,
};
use crate::random::Random;
use crate::read_floor::{Pattern, ReadFloorRow, ReadTrial};
use crate::record::RowSetting;
use crate::sample::{Place, sample};
use crate::scans::{Scans, starts};
use crate::session::Session;
use crate::target::{endpoints, links, spread};
use crate::work::Work;
use claim_engine::device::probe::IN_FLIGHT_MAX;
use claim_protocol::CorpusInfo;
use comfy_table::Table;
use serde::Serialize;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Rows that the places at which scans begin are taken from.
const SCAN_STARTS: usize = 1000;

/// By how many of them the scans of each row of a run begin further on than those of the row before; prime to their number.
const SCAN_STEP: u64 = 377;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Lookups,
    Scans,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lookups => "lookups",
            Kind::Scans => "scans",
        }
    }

    /// The reads of the bare device that such a row is compared with.
    pub fn floor(self, outstanding: usize, rate: Option<f64>) -> ReadTrial {
        let in_flight = outstanding.min(IN_FLIGHT_MAX as usize) as u32;
        match self {
            Kind::Lookups => ReadTrial { pattern: Pattern::Random, in_flight, rate },
            Kind::Scans => ReadTrial { pattern: Pattern::Sequential, in_flight, rate: None },
        }
    }
}

/// A socket and what is read there.
#[derive(Debug)]
struct Source {
    socket: PathBuf,
    corpora: Arc<Vec<String>>,
    ids: Arc<Ids>,
    /// In the order of scans; not empty.
    places: Vec<Place>,
}

impl Source {
    fn find(socket: PathBuf, corpora: &[CorpusInfo], wanted: usize, random: &mut Random) -> Result<Self, BenchError> {
        let (mut session, _) = Session::open(&socket)?;
        let mut places = sample(&mut session, corpora, wanted, random)?;
        if places.is_empty() {
            return Err(no_rows());
        }
        random.shuffle(&mut places);
        let ids = Arc::new(Ids::new(places.iter().map(|place| place.event_id).collect()));
        places.sort_unstable();
        let corpora = Arc::new(corpora.iter().map(|corpus| corpus.name.clone()).collect());
        Ok(Source { socket, corpora, ids, places })
    }
}

fn no_rows() -> BenchError {
    BenchError::Usage("the ledger has no rows that may be read: make some with `claim-bench run`".to_owned())
}

/// Where reads go.
#[derive(Debug)]
pub struct Reads {
    kind: Kind,
    sources: Vec<Source>,
    /// Rows measured so far.
    measured: Cell<u64>,
}

impl Reads {
    /// Greets the daemon at `socket` and finds `ids` rows to look up, or places at which scans begin. With `shard_sockets`
    /// each shard's corpora are read at the shard's own socket.
    pub fn find(
        socket: &Path,
        shard_sockets: bool,
        kind: Kind,
        ids: usize,
        random: &mut Random,
    ) -> Result<Self, BenchError> {
        let (mut session, welcome) = Session::open(socket)?;
        let corpora = session.corpora_with_rows()?;
        if corpora.is_empty() {
            return Err(no_rows());
        }
        let claims_of = |corpora: &[CorpusInfo]| corpora.iter().map(|corpus| corpus.claims).sum::<u64>();
        let claims = claims_of(&corpora);
        let sources = endpoints(socket, &welcome, corpora, shard_sockets)?
            .into_iter()
            .map(|endpoint| {
                let wanted = match kind {
                    Kind::Lookups => (ids as f64 * claims_of(&endpoint.corpora) as f64 / claims as f64).ceil() as usize,
                    Kind::Scans => SCAN_STARTS,
                };
                Source::find(endpoint.socket, &endpoint.corpora, wanted, random)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Reads { kind, sources, measured: Cell::new(0) })
    }

    /// Rows to look up, or at which scans may begin.
    pub fn rows_found(&self) -> usize {
        self.sources.iter().map(|source| source.places.len()).sum()
    }

    /// The connections of one row.
    pub fn links(&self, outstanding: usize, connections: usize) -> Result<Vec<Link>, BenchError> {
        let shares = spread(outstanding, connections, self.sources.len())?;
        let turn = self.measured.replace(self.measured.get() + 1) * SCAN_STEP;
        // The walks of a source are spread over all of it, and dealt out to its connections.
        let places = |number| shares.iter().skip(number).step_by(self.sources.len()).sum();
        let walks = |(number, source): (usize, &Source)| starts(&source.places, places(number), turn).into_iter();
        let mut walks: Vec<_> = self.sources.iter().enumerate().map(walks).collect();
        links(self.sources.iter().map(|source| source.socket.as_path()), &shares, |number, outstanding| {
            let source = &self.sources[number];
            Ok(match self.kind {
                Kind::Lookups => Work::Lookups(Lookups::new(source.ids.clone(), outstanding)),
                Kind::Scans => {
                    let walks: Vec<Place> = walks[number].by_ref().take(outstanding).collect();
                    Work::Scans(Scans::new(source.corpora.clone(), &walks))
                }
            })
        })
    }

    /// One row: `outstanding` requests over `connections`, or over as many as there are sources or requests.
    pub fn measure(&self, outstanding: usize, connections: usize, timing: Timing) -> Result<ReadRow, BenchError> {
        let links = self.links(outstanding, connections)?;
        let setting = ReadSetting { kind: self.kind, connections: links.len(), outstanding, rate: timing.rate };
        let device = DeviceReads::begin(&self.sources[0].socket);
        let mut row = ReadRow::new(setting, load(links, timing)?, timing.measured);
        row.device_bytes_per_second = device.and_then(|device| device.per_second());
        Ok(row)
    }
}

/// How a row was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadSetting {
    pub kind: Kind,
    pub connections: usize,
    pub outstanding: usize,
    pub rate: Option<f64>,
}

/// One finished row of reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReadRow {
    pub system: &'static str,
    pub operation: Kind,
    pub connections: usize,
    /// Requests, in total.
    pub outstanding: usize,
    pub rows_per_second: f64,
    /// Of the replies' frames.
    pub bytes_per_second: f64,
    /// What the daemon had its devices read, warm-up included; absent where the kernel does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes_per_second: Option<f64>,
    pub rows: u64,
    #[serde(flatten)]
    pub figures: Figures,
    /// Absent where no floor was measured.
    #[serde(flatten)]
    pub to_floor: Option<ToFloor>,
}

/// A row in relation to the bare device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ToFloor {
    pub p50_to_floor: f64,
    pub p99_to_floor: f64,
    /// Lookups for each random read, or bytes of scans' replies for each byte read in sequence.
    pub throughput_to_floor: f64,
    /// Bytes that the daemon had its devices read, for each that the floor read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_to_floor: Option<f64>,
}

impl ReadRow {
    /// The row of what was counted in `elapsed`.
    pub fn new(setting: ReadSetting, tally: Tally, elapsed: Duration) -> Self {
        let ReadSetting { kind, connections, outstanding, rate } = setting;
        let rows = tally.units;
        ReadRow {
            system: "claimd",
            operation: kind,
            connections,
            outstanding,
            rows_per_second: per_second(rows, elapsed),
            bytes_per_second: per_second(tally.bytes, elapsed),
            device_bytes_per_second: None,
            rows,
            figures: Figures::new(outstanding, rate, tally, elapsed),
            to_floor: None,
        }
    }

    /// Puts it in relation to a floor.
    pub fn compare(&mut self, floor: &ReadFloorRow) {
        let throughput = match self.operation {
            Kind::Lookups => self.figures.requests_per_second / floor.reads_per_second,
            Kind::Scans => self.bytes_per_second / floor.bytes_per_second,
        };
        self.to_floor = Some(ToFloor {
            p50_to_floor: hundredths(self.figures.latencies.p50_us / floor.latencies.p50_us),
            p99_to_floor: hundredths(self.figures.latencies.p99_us / floor.latencies.p99_us),
            throughput_to_floor: hundredths(throughput),
            device_to_floor: self.device_bytes_per_second.map(|bytes| hundredths(bytes / floor.bytes_per_second)),
        });
    }

    /// The medians over rounds (not none) of one setting; what was counted is added up.
    pub fn median(rounds: &[ReadRow]) -> Self {
        let figures: Vec<&Figures> = rounds.iter().map(|row| &row.figures).collect();
        ReadRow {
            rows_per_second: median(rounds.iter().map(|row| row.rows_per_second)),
            bytes_per_second: median(rounds.iter().map(|row| row.bytes_per_second)),
            device_bytes_per_second: rounds[0]
                .device_bytes_per_second
                .map(|_| median(rounds.iter().filter_map(|row| row.device_bytes_per_second))),
            rows: rounds.iter().map(|row| row.rows).sum(),
            figures: Figures::median(rounds[0].outstanding, &figures),
            ..rounds[0].clone()
        }
    }

    /// What makes it comparable.
    pub fn setting(&self) -> RowSetting {
        let rate = self.figures.rate;
        RowSetting { rate, ..RowSetting::closed(self.operation.name(), self.connections, self.outstanding) }
    }

    /// To be kept.
    pub fn measured(&self) -> MeasuredRow {
        let figures = self.figures.clone();
        MeasuredRow { setting: self.setting(), units_per_second: self.rows_per_second, figures }
    }
}

/// The table of some rows.
pub fn table(rows: &[ReadRow]) -> Table {
    let mut header = vec!["reads", "connections", "outstanding", "rate", "requests/s", "rows/s", "MB/s", "device MB/s"];
    header.extend(Latencies::HEADER);
    let has_floor = rows.iter().any(|row| row.to_floor.is_some());
    if has_floor {
        header.extend(["p50 ÷ floor", "p99 ÷ floor", "throughput ÷ floor", "device ÷ floor"]);
    }
    header.extend(Figures::HEADER);
    let mut table = number_table(&header);
    for row in rows {
        let mut cells = vec![
            row.operation.name().to_owned(),
            row.connections.to_string(),
            row.outstanding.to_string(),
            rate_cell(row.figures.rate),
            thousands(row.figures.requests_per_second),
            thousands(row.rows_per_second),
            format!("{:.1}", row.bytes_per_second / 1e6),
            row.device_bytes_per_second.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes / 1e6)),
        ];
        cells.extend(row.figures.latencies.cells());
        if has_floor {
            let ratios = row.to_floor.map(|ratios| {
                let ToFloor { p50_to_floor, p99_to_floor, throughput_to_floor, device_to_floor } = ratios;
                [Some(p50_to_floor), Some(p99_to_floor), Some(throughput_to_floor), device_to_floor]
                    .map(|ratio| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")))
            });
            cells.extend(ratios.unwrap_or_default());
        }
        cells.extend(row.figures.cells());
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_daemon::{FakeDaemon, Manner};

    fn timing(rate: Option<f64>) -> Timing {
        Timing { warm_up: Duration::from_millis(20), measured: Duration::from_millis(200), spin: false, rate }
    }

    fn check(kind: Kind, shard_sockets: bool, outstanding: usize, rate: Option<f64>) -> ReadRow {
        let daemon = FakeDaemon::start(Manner::HasRows);
        let reads = Reads::find(daemon.socket(), shard_sockets, kind, 50, &mut Random::new(5)).expect("it has rows");
        let row = reads.measure(outstanding, 2, timing(rate)).expect("a row");
        assert!(row.figures.requests > 0 && row.rows > 0 && row.bytes_per_second > 0.0, "{row:?}");
        assert!(row.figures.latencies.p50_us <= row.figures.latencies.p99_us, "{row:?}");
        assert_eq!((row.operation, row.figures.errors), (kind, 0));
        row
    }

    #[test]
    fn lookups_and_scans_are_counted_in_both_loops() {
        let row = check(Kind::Lookups, false, 8, None);
        assert_eq!(row.figures.requests, row.rows);
        let row = check(Kind::Lookups, false, 8, Some(500.0));
        let figures = &row.figures;
        assert!(figures.requests + figures.unsent >= 100 && figures.requests <= 101, "{row:?}");
        check(Kind::Scans, false, 4, None);
        check(Kind::Scans, false, 4, Some(100.0));
    }

    #[test]
    fn shards_are_read_at_their_own_sockets() {
        for kind in [Kind::Lookups, Kind::Scans] {
            assert_eq!(check(kind, true, 8, None).connections, 2);
        }
    }

    #[test]
    fn a_ledger_without_rows_is_not_read() {
        let daemon = FakeDaemon::start(Manner::Willing);
        let error = Reads::find(daemon.socket(), false, Kind::Scans, 50, &mut Random::new(5)).expect_err("no rows");
        assert!(error.to_string().contains("claim-bench run"), "{error}");
    }

    #[test]
    fn refused_reads_are_counted_by_code() {
        let daemon = FakeDaemon::start(Manner::RefusesLookups);
        let mut random = Random::new(5);
        let reads = Reads::find(daemon.socket(), false, Kind::Lookups, 50, &mut random).expect("it has rows");
        let row = reads.measure(2, 1, timing(Some(100.0))).expect("a row");
        assert_eq!(
            (row.figures.requests, row.figures.errors_by_code.keys().next().map(String::as_str)),
            (0, Some("OVERLOADED"))
        );
        assert!(row.figures.errors > 0);
    }

    #[test]
    fn a_row_stands_in_relation_to_the_floor() {
        let latencies = |us: f64| Latencies {
            mean_us: us,
            p50_us: us,
            p90_us: us,
            p99_us: 2.0 * us,
            p999_us: us,
            p9999_us: us,
            max_us: us,
        };
        let floor = ReadFloorRow {
            system: "floor",
            reads_of: Pattern::Random,
            block_bytes: 4096,
            in_flight: 1,
            rate: None,
            reads_per_second: 10.0,
            bytes_per_second: 40960.0,
            latencies: latencies(100.0),
            reads: 10,
            unsent: 0,
            seconds: 1.0,
        };
        let mut tally = Tally::new(Duration::from_secs(1));
        (0..5).for_each(|_| {
            tally.answered(Duration::ZERO, Duration::from_micros(250));
            tally.confirmed(1, 512);
        });
        let setting = ReadSetting { kind: Kind::Lookups, connections: 1, outstanding: 1, rate: None };
        let mut row = ReadRow::new(setting, tally, Duration::from_secs(1));
        assert!(serde_json::to_value(&row).expect("it serialises").get("p99_to_floor").is_none());
        row.compare(&floor);
        let json = serde_json::to_value(&row).expect("it serialises");
        assert_eq!([&json["p50_to_floor"], &json["throughput_to_floor"]], [2.5, 0.5]);
        assert!((json["p99_to_floor"].as_f64().expect("a number") - 1.25).abs() < 0.01, "{json}");
        assert_eq!(json["operation"], "lookups");
        row.operation = Kind::Scans;
        row.device_bytes_per_second = Some(20480.0);
        row.compare(&floor);
        let ratios = row.to_floor.expect("it was compared");
        assert_eq!((ratios.throughput_to_floor, ratios.device_to_floor), (0.06, Some(0.5)));
        assert!(table(&[row]).to_string().contains("throughput ÷ floor"));
    }
}
