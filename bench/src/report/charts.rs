//! Which figures of the runs go into which chart.

use super::Run;
use crate::record::{FloorRecord, Interval, RowRecord};
use crate::svg::{Axis, Chart, Line, Mark, Stroke};

/// Plots of one size each, and those that stand side by side.
const WIDE_PX: (f64, f64) = (640.0, 360.0);
const NARROW_PX: (f64, f64) = (330.0, 190.0);

/// Floors that a chart shows at most.
const FLOORS_SHOWN: usize = 4;

/// A row of the floor to be drawn, and its run's name.
struct Floor<'a> {
    run: &'a str,
    record: &'a FloorRecord,
}

impl Floor<'_> {
    fn name(&self) -> String {
        labelled(self.run, &format!("floor: {}", self.record.name))
    }
}

/// A figure of a row.
type OfRow = fn(&RowRecord) -> f64;

/// A heading, what it says, and the charts below it.
pub struct Section {
    pub heading: &'static str,
    pub text: &'static str,
    /// Titles and charts.
    pub charts: Vec<(String, Chart)>,
}

/// All charts that there are figures for.
pub fn sections(runs: &[Run]) -> Vec<Section> {
    let sections = [
        Section {
            heading: "Latency by percentile",
            text: "How long requests took at most, by the share of them. Further right are rarer, slower ones: each nine \
                   leaves a tenth of the requests before it.",
            charts: percentiles(runs).into_iter().collect(),
        },
        Section {
            heading: "Throughput against outstanding",
            text: "What a closed loop gives, by the requests outstanding, beside what the device gives, by the operations in \
                   flight.",
            charts: throughput(runs).into_iter().collect(),
        },
        Section {
            heading: "Latency against rate",
            text: "Requests at a rate. A row that missed its rate has failed and is crossed: its latencies are those of fewer \
                   requests than were asked for, or of a queue that grows.",
            charts: against_rate(runs).into_iter().collect(),
        },
        Section {
            heading: "Latency over time",
            text: "One plot for each row, all with the same axis of latencies. A line goes from second to second, or over \
                   longer intervals where a row is long.",
            charts: over_time(runs),
        },
    ];
    sections.into_iter().filter(|section| !section.charts.is_empty()).collect()
}

fn rows(runs: &[Run]) -> impl Iterator<Item = (&str, &RowRecord)> + Clone {
    runs.iter().flat_map(|run| run.results.rows.iter().map(move |row| (run.name.as_str(), row)))
}

/// The floors to be drawn: of each run those that have the name of its first one, which rows are held against.
fn floors(runs: &[Run]) -> Vec<Floor<'_>> {
    let of_run = |run: &'_ Run| -> Vec<usize> {
        let floor = &run.results.floor;
        (0..floor.len()).filter(|number| floor[*number].name == floor[0].name).collect()
    };
    runs.iter()
        .flat_map(|run| {
            let numbers = of_run(run).into_iter();
            numbers.map(|number| Floor { run: &run.name, record: &run.results.floor[number] })
        })
        .take(FLOORS_SHOWN)
        .collect()
}

fn percentiles(runs: &[Run]) -> Option<(String, Chart)> {
    let mut lines: Vec<Line> = (0..)
        .zip(rows(runs))
        .map(|(number, (run, row))| Line {
            name: labelled(run, &row.setting.label()),
            stroke: Stroke::Numbered(number),
            mark: Mark::Line,
            points: row.curve.clone(),
        })
        .collect();
    if lines.is_empty() {
        return None;
    }
    lines.extend((0..).zip(floors(runs)).map(|(number, floor)| Line {
        name: format!("{}, {} in flight", floor.name(), floor.record.in_flight),
        stroke: Stroke::Floor(number),
        mark: Mark::Line,
        points: floor.record.curve.clone(),
    }));
    let x = Axis::percentiles();
    let shown = |line: &Line| -> Vec<f64> {
        line.points.iter().filter(|point| x.share(point.0).is_some()).map(|point| point.1).collect()
    };
    let y = Axis::logarithmic("latency, µs", lines.iter().flat_map(shown));
    Some(("Latency by percentile".to_owned(), chart(x, y, lines, WIDE_PX)))
}

fn over_time(runs: &[Run]) -> Vec<(String, Chart)> {
    let floors = floors(runs);
    let intervals = rows(runs).flat_map(|(_, row)| &row.intervals);
    let latencies = intervals.flat_map(|interval| [interval.p50_us, interval.max_us]);
    let y = Axis::logarithmic("latency, µs", latencies.chain(floors.iter().map(|floor| floor.record.p50_us)));
    rows(runs)
        .map(|(run, row)| {
            let line = |name: &str, number, of: fn(&Interval) -> f64| Line {
                name: name.to_owned(),
                stroke: Stroke::Numbered(number),
                mark: Mark::Line,
                // Each interval stands at its middle.
                points: (0..)
                    .zip(&row.intervals)
                    .map(|(number, interval)| ((f64::from(number) + 0.5) * row.interval_seconds, of(interval)))
                    .collect(),
            };
            let end = row.interval_seconds * row.intervals.len() as f64;
            let mut lines = vec![
                line("max", 1, |interval| interval.max_us),
                line("p99", 2, |interval| interval.p99_us),
                line("p50", 0, |interval| interval.p50_us),
            ];
            if let Some(floor) = nearest(&floors, run, row.setting.outstanding) {
                lines.push(Line {
                    name: format!("floor p50, {} in flight", floor.in_flight),
                    stroke: Stroke::Floor(0),
                    mark: Mark::Line,
                    points: vec![(0.0, floor.p50_us), (end, floor.p50_us)],
                });
            }
            let x = Axis::linear("time, s", end);
            (labelled(run, &row.setting.label()), chart(x, y.clone(), lines, NARROW_PX))
        })
        .collect()
}

fn throughput(runs: &[Run]) -> Option<(String, Chart)> {
    let mut lines: Vec<Line> = Vec::new();
    for (run, row) in rows(runs).filter(|(_, row)| row.setting.rate.is_none()) {
        let name = labelled(run, &row.setting.kind());
        let point = (row.setting.outstanding as f64, row.units_per_second);
        add_point(&mut lines, name, point, Stroke::Numbered);
    }
    if lines.is_empty() {
        return None;
    }
    let mut floor_lines = Vec::new();
    for floor in floors(runs).iter().filter(|floor| floor.record.rate.is_none()) {
        let point = (f64::from(floor.record.in_flight), floor.record.per_second);
        add_point(&mut floor_lines, floor.name(), point, Stroke::Floor);
    }
    lines.extend(floor_lines);
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let points = lines.iter().flat_map(|line| &line.points);
    let x = Axis::logarithmic_at("requests outstanding, or operations in flight", points.clone().map(|point| point.0));
    let y = Axis::logarithmic("claims, rows or operations a second", points.map(|point| point.1));
    Some(("Throughput against outstanding".to_owned(), chart(x, y, lines, WIDE_PX)))
}

fn against_rate(runs: &[Run]) -> Option<(String, Chart)> {
    let figures: [(&str, OfRow); 3] = [
        ("p50", |row| row.figures.latencies.p50_us),
        ("p99", |row| row.figures.latencies.p99_us),
        ("p99.9", |row| row.figures.latencies.p999_us),
    ];
    let (mut lines, mut crosses): (Vec<Line>, Vec<(f64, f64)>) = (Vec::new(), Vec::new());
    for (run, row) in rows(runs) {
        let Some(rate) = row.setting.rate else { continue };
        for (name, of) in figures {
            let name = labelled(run, &format!("{} {name}", row.setting.kind()));
            add_point(&mut lines, name, (rate, of(row)), Stroke::Numbered);
            if row.figures.failed {
                crosses.push((rate, of(row)));
            }
        }
    }
    if lines.is_empty() {
        return None;
    }
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let points: Vec<(f64, f64)> = lines.iter().flat_map(|line| line.points.clone()).collect();
    if !crosses.is_empty() {
        let name = "FAILED: missed its rate".to_owned();
        lines.push(Line { name, stroke: Stroke::Warning, mark: Mark::Crosses, points: crosses });
    }
    let rates = || points.iter().map(|point| point.0);
    let floors = floors(runs);
    if let (Some(floor), true) = (floors.first(), rates().any(|rate| rate > 0.0)) {
        let (low, high) = rates().fold((f64::MAX, 0.0_f64), |(low, high), rate| (low.min(rate), high.max(rate)));
        lines.push(Line {
            name: format!("{}, {} in flight, p50", floor.name(), floor.record.in_flight),
            stroke: Stroke::Floor(0),
            mark: Mark::Line,
            points: vec![(low, floor.record.p50_us), (high, floor.record.p50_us)],
        });
    }
    let x = Axis::logarithmic_at("requests a second that were asked for", rates());
    let y = Axis::logarithmic("latency, µs", lines.iter().flat_map(|line| &line.points).map(|point| point.1));
    Some(("Latency against rate".to_owned(), chart(x, y, lines, WIDE_PX)))
}

fn chart(x: Axis, y: Axis, lines: Vec<Line>, (width_px, height_px): (f64, f64)) -> Chart {
    Chart { x, y, lines, width_px, height_px }
}

/// A name with its run's, where there are several.
fn labelled(run: &str, name: &str) -> String {
    if run.is_empty() { name.to_owned() } else { format!("{run}: {name}") }
}

/// Adds a point to the line of this name, which is made where it is missing.
fn add_point(lines: &mut Vec<Line>, name: String, point: (f64, f64), stroke: fn(usize) -> Stroke) {
    match lines.iter_mut().find(|line| line.name == name) {
        Some(line) => line.points.push(point),
        None => {
            let stroke = stroke(lines.len());
            lines.push(Line { name, stroke, mark: Mark::Dots, points: vec![point] });
        }
    }
}

/// The floor of a run with as much in flight as a row has outstanding, or its first one.
fn nearest<'a>(floors: &'a [Floor<'_>], run: &str, outstanding: usize) -> Option<&'a FloorRecord> {
    let of_run = floors.iter().filter(|floor| floor.run == run).map(|floor| floor.record);
    of_run.clone().find(|floor| floor.in_flight as usize == outstanding).or_else(|| of_run.clone().next())
}
