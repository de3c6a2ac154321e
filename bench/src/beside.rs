//! Claims alone and claims beside reads, in turn, so that a drift of the machine meets both alike.

use crate::claims::Shape;
use crate::error::BenchError;
use crate::load::{Link, Timing, load};
use crate::outcome::{MeasuredRow, Row, Setting, hundredths, table};
use crate::reads::{self, Kind, ReadRow, ReadSetting};
use claim_engine::scheduling;
use serde::Serialize;
use std::thread;

/// The rounds so far.
#[derive(Debug)]
pub struct Beside {
    kind: Kind,
    claims_alone: Vec<Row>,
    claims_beside: Vec<Row>,
    reads: Vec<ReadRow>,
}

/// A row, with the round that it is of or the number of rounds whose medians it has.
#[derive(Serialize)]
struct Line<'a, R> {
    #[serde(skip_serializing_if = "Option::is_none")]
    round: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_of: Option<usize>,
    /// What went on at the same time.
    beside: &'static str,
    #[serde(flatten)]
    row: &'a R,
}

/// What the reads did to the claims.
#[derive(Debug, PartialEq, Serialize)]
struct Ratios {
    system: &'static str,
    beside: &'static str,
    median_of: usize,
    claims_per_second_to_alone: f64,
    p50_to_alone: f64,
    p99_to_alone: f64,
    p999_to_alone: f64,
}

/// The calling thread's load is claims: it goes before a load of reads on its core, and after the kernel's threads.
pub fn load_of_claims() {
    gives_way(scheduling::give_way_to_the_usual());
}

fn gives_way(set: nix::Result<()>) {
    if let Err(error) = set {
        eprintln!("claim-bench: claims and the kernel's threads wait for the loads where they share a core: {error}");
    }
}

impl Beside {
    /// No rounds yet.
    pub fn new(kind: Kind) -> Self {
        Beside { kind, claims_alone: Vec::new(), claims_beside: Vec::new(), reads: Vec::new() }
    }

    /// Adds the row of claims alone, and measures the same claims beside reads; each load has a thread of its own. Where they share a
    /// core, an answer to a claim is taken before what the reads brought, and a write of the kernel's is finished before both.
    pub fn round(
        &mut self,
        claims_alone: Row,
        claim_links: Vec<Link>,
        read_links: Vec<Link>,
        shape: Shape,
        timing: Timing,
    ) -> Result<(), BenchError> {
        let outstanding = |links: &[Link]| links.iter().map(|link| link.outstanding).sum();
        let setting = Setting {
            connections: claim_links.len(),
            outstanding: outstanding(&claim_links),
            batch: shape.batch,
            rate: None,
        };
        let read_setting = ReadSetting {
            kind: self.kind,
            connections: read_links.len(),
            outstanding: outstanding(&read_links),
            rate: timing.rate,
        };
        let (claims, reads) = thread::scope(|scope| {
            let claims = scope.spawn(|| {
                load_of_claims();
                load(claim_links, Timing { rate: None, ..timing })
            });
            gives_way(scheduling::give_way(0));
            let reads = load(read_links, timing);
            (claims.join().expect("a load does not panic"), reads)
        });
        self.claims_alone.push(claims_alone);
        self.claims_beside.push(Row::new(setting, claims?, timing.measured));
        self.reads.push(ReadRow::new(read_setting, reads?, timing.measured));
        Ok(())
    }

    /// The claims' medians beside reads.
    fn claims_beside(&self) -> Row {
        Row::median(&self.claims_beside)
    }

    /// The reads' medians.
    fn reads(&self) -> ReadRow {
        ReadRow::median(&self.reads)
    }

    /// The medians of all three loads.
    pub fn medians(&self) -> [MeasuredRow; 3] {
        let mut rows =
            [Row::median(&self.claims_alone).measured(), self.claims_beside().measured(), self.reads().measured()];
        rows[1].setting.beside = Some(self.kind.name().to_owned());
        rows[2].setting.beside = Some("claims".to_owned());
        rows
    }

    fn ratios(&self) -> Ratios {
        let (alone, beside) = (Row::median(&self.claims_alone), self.claims_beside());
        Ratios {
            system: "claimd",
            beside: self.kind.name(),
            median_of: self.reads.len(),
            claims_per_second_to_alone: hundredths(beside.claims_per_second / alone.claims_per_second),
            p50_to_alone: hundredths(beside.figures.latencies.p50_us / alone.figures.latencies.p50_us),
            p99_to_alone: hundredths(beside.figures.latencies.p99_us / alone.figures.latencies.p99_us),
            p999_to_alone: hundredths(beside.figures.latencies.p999_us / alone.figures.latencies.p999_us),
        }
    }

    /// The rows of the last round, as JSON.
    pub fn print_last_round(&self) {
        let round = Some(self.reads.len());
        let last = self.reads.len() - 1;
        self.print_lines(round, None, &self.claims_alone[last], &self.claims_beside[last], &self.reads[last]);
    }

    /// The medians, as JSON or for people.
    pub fn print(&self, json: bool) {
        let (alone, beside, reads) = (Row::median(&self.claims_alone), self.claims_beside(), self.reads());
        let Ratios { claims_per_second_to_alone, p50_to_alone, p99_to_alone, p999_to_alone, .. } = self.ratios();
        if json {
            self.print_lines(None, Some(self.reads.len()), &alone, &beside, &reads);
            println!("{}", serde_json::to_string(&self.ratios()).expect("numbers and names serialise"));
            return;
        }
        let name = self.kind.name();
        println!("Claims alone, and beside {name}; medians of {} rounds:", self.reads.len());
        println!("{}", table(&[alone, beside]));
        println!(
            "Beside ÷ alone: claims/s {claims_per_second_to_alone:.2}, p50 {p50_to_alone:.2}, p99 {p99_to_alone:.2}, p99.9 \
             {p999_to_alone:.2}\n"
        );
        println!("The {name} beside claims:\n{}", reads::table(&[reads]));
    }

    fn print_lines(&self, round: Option<usize>, median_of: Option<usize>, alone: &Row, beside: &Row, reads: &ReadRow) {
        let print = |line: Result<String, serde_json::Error>| {
            println!("{}", line.expect("numbers and names serialise"));
        };
        print(serde_json::to_string(&Line { round, median_of, beside: "nothing", row: alone }));
        print(serde_json::to_string(&Line { round, median_of, beside: self.kind.name(), row: beside }));
        print(serde_json::to_string(&Line { round, median_of, beside: "claims", row: reads }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_daemon::{FakeDaemon, Manner};
    use crate::random::Random;
    use crate::reads::Reads;
    use crate::target::Target;
    use std::time::Duration;

    #[test]
    fn claims_and_reads_are_counted_apart() {
        let daemon = FakeDaemon::start(Manner::HasRows);
        let target = Target::find(daemon.socket(), 1, false).expect("it answers");
        let reads = Reads::find(daemon.socket(), false, Kind::Lookups, 50, &mut Random::new(5)).expect("it has rows");
        let shape = Shape { batch: 1, metadata_bytes: 16 };
        let measured = Duration::from_millis(100);
        let timing = Timing { warm_up: Duration::from_millis(10), measured, spin: false, rate: Some(500.0) };
        let mut beside = Beside::new(Kind::Lookups);
        for round in 1..=2 {
            let alone = target.measure(4, 2, shape, Timing { rate: None, ..timing }).expect("a row");
            let links = target.links(4, 2, shape).expect("it answers");
            beside.round(alone, links, reads.links(8, 2).expect("it answers"), shape, timing).expect("a round");
            assert_eq!(beside.reads.len(), round);
        }
        let (claims, reads) = (beside.claims_beside(), beside.reads());
        assert!(claims.claims > 0 && claims.figures.rate.is_none() && claims.outstanding == 4, "{claims:?}");
        assert!(reads.figures.requests > 0 && reads.figures.rate == Some(500.0) && reads.outstanding == 8, "{reads:?}");
        let medians = beside.medians();
        let labels = medians.iter().map(|row| row.setting.label()).collect::<Vec<_>>();
        assert_eq!(
            labels,
            ["claims, 4 outstanding", "claims beside lookups, 4 outstanding", "lookups beside claims, 500/s"]
        );
        assert!(medians.iter().all(|row| row.figures.errors == 0 && row.units_per_second > 0.0), "{medians:?}");
        let ratios = beside.ratios();
        assert!(ratios.p50_to_alone > 0.0 && ratios.median_of == 2, "{ratios:?}");
        let line = Line { round: Some(1), median_of: None, beside: "claims", row: &reads };
        let json = serde_json::to_value(&line).expect("it serialises");
        assert_eq!(
            (&json["beside"], &json["operation"], json.get("median_of")),
            (&"claims".into(), &"lookups".into(), None)
        );
    }
}
