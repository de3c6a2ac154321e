//! What the systems gave, side by side.

use super::{BATCHES, CONNECTIONS};
use crate::floor::{self, FloorRow};
use crate::outcome::{Latencies, Row, hundredths, number_table, thousands};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// One system's rows so far: for each setting one of each round.
#[derive(Debug)]
pub struct Measured {
    system: &'static str,
    facts: BTreeMap<String, String>,
    rounds: Vec<Vec<Row>>,
}

impl Measured {
    /// No rounds yet.
    pub fn new(system: &'static str, facts: BTreeMap<String, String>) -> Self {
        Measured { system, facts, rounds: Vec::new() }
    }

    /// Adds a round, whose settings are those of every round.
    pub fn add(&mut self, rows: Vec<Row>) {
        self.rounds.push(rows);
    }

    /// Each setting's median over the rounds.
    fn medians(&self) -> Vec<Row> {
        let settings = self.rounds.first().map_or(0, Vec::len);
        let of = |setting: usize| self.rounds.iter().map(|rows| rows[setting].clone()).collect::<Vec<_>>();
        (0..settings).map(|setting| Row::median(&of(setting))).collect()
    }
}

/// What is compared: each system's row of a kind, and the best where it has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// One request outstanding in all.
    One,
    /// So many connections with one request outstanding each.
    Connections(usize),
    /// The most that single claims reach, with whatever is outstanding.
    MostSingle,
    /// The most that batches of this size reach.
    MostBatches(usize),
}

impl Point {
    fn all() -> Vec<Point> {
        let mut points = vec![Point::One, Point::Connections(CONNECTIONS), Point::MostSingle];
        points.extend(BATCHES.map(Point::MostBatches));
        points
    }

    fn name(self) -> String {
        match self {
            Point::One => "one by one".to_owned(),
            Point::Connections(connections) => format!("{connections} connections"),
            Point::MostSingle => "most single claims".to_owned(),
            Point::MostBatches(batch) => format!("batches of {}", thousands(batch as f64)),
        }
    }

    fn has(self, row: &Row) -> bool {
        let outstanding = (row.connections, row.outstanding);
        match self {
            Point::One => row.batch == 1 && outstanding == (1, 1),
            Point::Connections(connections) => row.batch == 1 && outstanding == (connections, connections),
            Point::MostSingle => row.batch == 1,
            Point::MostBatches(batch) => row.batch == batch,
        }
    }

    fn best(self, rows: &[Row]) -> Option<usize> {
        let at_point = rows.iter().enumerate().filter(|(_, row)| self.has(row) && row.claims > 0);
        at_point
            .max_by(|(_, one), (_, other)| one.claims_per_second.total_cmp(&other.claims_per_second))
            .map(|(at, _)| at)
    }
}

/// The first system's row of a point, beside another system's.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Beside {
    point: String,
    peer: &'static str,
    claims_per_second_to_peer: f64,
    p50_to_peer_p50: f64,
    /// How the worst of a hundred claims stands to the peer's usual one.
    p99_to_peer_p50: f64,
    #[serde(skip)]
    row: usize,
    #[serde(skip)]
    peer_row: usize,
}

/// All that was measured.
#[derive(Debug)]
pub struct Comparison {
    floor: Vec<FloorRow>,
    systems: Vec<System>,
    core: usize,
    seconds: Duration,
    rounds: usize,
}

#[derive(Debug)]
struct System {
    name: &'static str,
    facts: BTreeMap<String, String>,
    medians: Vec<Row>,
}

/// A row of the floor in the words of the others: a claim for each write.
#[derive(Serialize)]
struct FloorLine<'a> {
    connections: usize,
    outstanding: u32,
    batch: usize,
    claims_per_second: f64,
    #[serde(flatten)]
    row: &'a FloorRow,
}

/// A system's row, with what has to be known of it.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    row: &'a Row,
    median_of: usize,
    facts: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    beside: Vec<&'a Beside>,
}

impl Comparison {
    /// Of the first system with the others.
    pub fn new(floor: Vec<FloorRow>, measured: Vec<Measured>, core: usize, seconds: Duration) -> Self {
        let rounds = measured.first().map_or(0, |measured| measured.rounds.len());
        let system =
            |measured: Measured| System { medians: measured.medians(), name: measured.system, facts: measured.facts };
        Comparison { floor, systems: measured.into_iter().map(system).collect(), core, seconds, rounds }
    }

    /// Refusals of all rows.
    pub fn errors(&self) -> u64 {
        self.systems.iter().flat_map(|system| &system.medians).map(|row| row.figures.errors).sum()
    }

    /// For people, or one JSON object per row.
    pub fn print(&self, json: bool) {
        if json {
            self.json_lines().iter().for_each(|line| println!("{line}"));
            return;
        }
        for System { name, facts, .. } in &self.systems {
            let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name} {value}")).collect();
            println!("{name}: {}", facts.join(", "));
        }
        let (rounds, seconds, core) = (self.rounds, self.seconds, self.core);
        println!("The load comes from core {core}. Medians of {rounds} rounds of {seconds:?}.\n");
        println!("The floor, in each round:\n{}\n", floor::table(&self.floor));
        println!("All rows:\n{}\n", self.rows_table());
        println!("The best at each point, side by side:\n{}", self.beside_table());
    }

    fn json_lines(&self) -> Vec<String> {
        let floor = self.floor.iter().map(|row| {
            let (outstanding, claims_per_second) = (row.in_flight, row.writes_per_second);
            to_json(&FloorLine { connections: 0, outstanding, batch: 1, claims_per_second, row })
        });
        let beside = self.beside();
        let systems = self.systems.iter().enumerate().flat_map(|(number, System { medians, facts, .. })| {
            let beside = if number == 0 { beside.as_slice() } else { &[] };
            medians.iter().enumerate().map(move |(at, row)| {
                let beside = beside.iter().filter(|beside| beside.row == at).collect();
                to_json(&Line { row, median_of: self.rounds, facts, beside })
            })
        });
        floor.chain(systems).collect()
    }

    /// The first system's rows beside those of each other one, wherever both have a point.
    fn beside(&self) -> Vec<Beside> {
        let Some((first, others)) = self.systems.split_first() else { return Vec::new() };
        let pair = |point: Point, other: &System| {
            let (row, peer_row) = (point.best(&first.medians)?, point.best(&other.medians)?);
            let (ours, theirs) = (&first.medians[row], &other.medians[peer_row]);
            let peer_p50_us = theirs.figures.latencies.p50_us;
            Some(Beside {
                point: point.name(),
                peer: other.name,
                claims_per_second_to_peer: hundredths(ours.claims_per_second / theirs.claims_per_second),
                p50_to_peer_p50: hundredths(ours.figures.latencies.p50_us / peer_p50_us),
                p99_to_peer_p50: hundredths(ours.figures.latencies.p99_us / peer_p50_us),
                row,
                peer_row,
            })
        };
        others.iter().flat_map(|other| Point::all().into_iter().filter_map(move |point| pair(point, other))).collect()
    }

    fn rows_table(&self) -> Table {
        let mut header = vec!["system", "connections", "outstanding", "batch", "claims/s"];
        header.extend(Latencies::HEADER);
        header.push("errors");
        let mut table = named_table(&header);
        for row in self.systems.iter().flat_map(|system| &system.medians) {
            let numbers = [row.connections, row.outstanding, row.batch].map(|number| number.to_string());
            let mut cells = vec![row.system.to_owned()];
            cells.extend(numbers);
            cells.push(thousands(row.claims_per_second));
            cells.extend(row.figures.latencies.cells());
            cells.push(row.figures.errors.to_string());
            table.add_row(cells);
        }
        table
    }

    fn beside_table(&self) -> Table {
        let header = [
            "point",
            "system",
            "connections",
            "outstanding",
            "claims/s",
            "p50 µs",
            "p99 µs",
            "claims/s ÷ peer's",
            "p50 ÷ peer's p50",
            "p99 ÷ peer's p50",
        ];
        let mut table = named_table(&header);
        for beside in self.beside() {
            let ratios = [beside.claims_per_second_to_peer, beside.p50_to_peer_p50, beside.p99_to_peer_p50];
            let ratios = ratios.map(|ratio| format!("{ratio:.2}"));
            for (point, row, ratios) in [
                (beside.point.as_str(), self.row(self.systems[0].name, beside.row), ratios),
                ("", self.row(beside.peer, beside.peer_row), Default::default()),
            ] {
                let mut cells = vec![point.to_owned(), row.system.to_owned()];
                cells.extend([row.connections, row.outstanding].map(|number| number.to_string()));
                let Latencies { p50_us, p99_us, .. } = row.figures.latencies;
                cells.extend([row.claims_per_second, p50_us, p99_us].map(thousands));
                cells.extend(ratios);
                table.add_row(cells);
            }
        }
        table
    }

    fn row(&self, system: &str, number: usize) -> &Row {
        let system = self.systems.iter().find(|one| one.name == system).expect("it was measured");
        &system.medians[number]
    }
}

/// A table whose first columns are names.
fn named_table(header: &[&str]) -> Table {
    let mut table = number_table(header);
    for (number, name) in header.iter().enumerate() {
        if ["point", "system"].contains(name) {
            let column = table.column_mut(number).expect("every name of the header has a column");
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table
}

fn to_json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("numbers and names serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Setting, Tally};

    /// A row of a second with this many claims, each answered after so long.
    fn row(
        system: &'static str,
        (connections, outstanding, batch): (usize, usize, usize),
        claims: u64,
        us: u64,
    ) -> Row {
        let mut tally = Tally::new(Duration::from_secs(1));
        (0..claims).for_each(|_| {
            tally.answered(Duration::ZERO, Duration::from_micros(us));
            tally.confirmed(1, 0);
        });
        let setting = Setting { connections, outstanding, batch, rate: None };
        Row { system, ..Row::new(setting, tally, Duration::from_secs(1)) }
    }

    fn comparison(refusals: u64) -> Comparison {
        let mut ours = Measured::new("claimd", BTreeMap::from([("cores".to_owned(), "0".to_owned())]));
        let mut theirs = Measured::new("other", BTreeMap::from([("fsync".to_owned(), "on".to_owned())]));
        for claims in [10, 30, 20] {
            let mut refused = Tally::new(Duration::from_secs(1));
            (0..refusals).for_each(|_| refused.refused("OVERLOADED"));
            let setting = Setting { connections: 4, outstanding: 4, batch: 1000, rate: None };
            ours.add(vec![
                row("claimd", (1, 1, 1), claims, 100),
                row("claimd", (64, 64, 1), 10 * claims, 200),
                row("claimd", (4, 256, 1), 50 * claims, 300),
                Row::new(setting, refused, Duration::from_secs(1)),
            ]);
            theirs.add(vec![
                row("other", (1, 1, 1), claims / 10, 1000),
                row("other", (64, 64, 1), claims, 2000),
                row("other", (128, 128, 1), claims / 2, 4000),
            ]);
        }
        let floor = FloorRow {
            system: "floor",
            mode: "RWF_DSYNC",
            extents: "written",
            block_bytes: 4096,
            in_flight: 1,
            writes_per_second: 5000.0,
            p50_us: 50.0,
            p90_us: 60.0,
            p99_us: 70.0,
            p999_us: 80.0,
            max_us: 90.0,
            writes: 5000,
            seconds: 1.0,
        };
        Comparison::new(vec![floor], vec![ours, theirs], 1, Duration::from_secs(1))
    }

    #[test]
    fn the_best_rows_of_a_point_stand_side_by_side() {
        let comparison = comparison(0);
        let found: Vec<_> = comparison
            .beside()
            .into_iter()
            .map(|beside| {
                let Beside { point, claims_per_second_to_peer, p99_to_peer_p50, row, peer_row, .. } = beside;
                (point, claims_per_second_to_peer, p99_to_peer_p50, row, peer_row)
            })
            .collect();
        // Nothing where only one system has the point.
        let expected = [
            ("one by one".to_owned(), 10.0, 0.1, 0, 0),
            ("64 connections".to_owned(), 10.0, 0.1, 1, 1),
            ("most single claims".to_owned(), 50.0, 0.15, 2, 1),
        ];
        assert_eq!(found, expected);
        let table = comparison.beside_table().to_string();
        assert!(["most single claims", "1,000", "50.00", "0.15"].iter().all(|text| table.contains(text)), "{table}");
    }

    #[test]
    fn every_line_has_what_a_reader_expects() {
        let lines = comparison(0).json_lines();
        assert_eq!(lines.len(), 1 + 4 + 3);
        for line in &lines {
            let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(json["system"].is_string(), "{line}");
            for field in ["connections", "outstanding", "batch", "claims_per_second", "p50_us", "p99_us"] {
                assert!(json[field].is_number(), "{field} is missing from {line}");
            }
        }
        let json = |line: usize| serde_json::from_str::<serde_json::Value>(&lines[line]).expect("JSON");
        assert_eq!((&json(0)["system"], &json(0)["claims_per_second"]), (&"floor".into(), &5000.0.into()));
        assert_eq!((&json(1)["median_of"], &json(1)["facts"]["cores"]), (&3.into(), &"0".into()));
        assert_eq!(json(1)["beside"][0]["peer"], "other");
        assert_eq!(json(3)["beside"][0]["point"], "most single claims");
        assert_eq!((&json(5)["facts"]["fsync"], json(5).get("beside")), (&"on".into(), None));
    }

    #[test]
    fn refusals_of_all_rounds_count() {
        assert_eq!((comparison(0).errors(), comparison(2).errors()), (0, 6));
    }
}
