//! The page around the charts.

use super::{Run, charts};
use crate::outcome::thousands;
use crate::svg::escaped;
use std::fmt::Write;

/// All of the page's style: nothing is loaded.
const STYLE: &str = "\
body { font: 15px/1.5 system-ui, 'DejaVu Sans', sans-serif; color: #1c1c1c; background: #fcfcfa; max-width: 1300px;
       margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 4px; border-bottom: 1px solid #d8d8d4; padding-bottom: 4px; }
h3 { font-size: 16px; margin: 24px 0 4px; }
p { margin: 4px 0 12px; max-width: 860px; color: #404040; }
figure { margin: 0; }
figcaption { font-weight: 600; margin: 10px 0 2px; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: #303030; }
svg text.axis { font-size: 13px; }
svg .grid { stroke: #e4e4e0; stroke-width: 1; }
svg .frame { fill: none; stroke: #909090; stroke-width: 1; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(560px, 1fr)); gap: 12px 24px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; background: #fff; }
th, td { border: 1px solid #d8d8d4; padding: 4px 6px; text-align: right; white-space: nowrap; }
th { background: #f0f0ec; font-weight: 600; }
td.name, th.name { text-align: left; }
td.failed { color: #c00000; font-weight: 700; }
pre { background: #f0f0ec; padding: 10px 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 8px 0; }
dt { color: #606060; }
dd { margin: 0; overflow-wrap: anywhere; }";

/// The whole page.
pub fn page(runs: &[Run]) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>claim-bench report</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n\
         <h1>claim-bench report</h1>\n"
    );
    for run in runs {
        let rows = run.results.rows.len();
        let name = if run.name.is_empty() { String::new() } else { format!("<b>{}</b>: ", escaped(&run.name)) };
        let daemon = run.results.environment.daemon.as_deref().unwrap_or("unknown daemon");
        let knee = run
            .results
            .knee
            .map(|rate| format!("The highest rate that held is {} requests a second. ", thousands(rate)));
        let knee = knee.unwrap_or_default();
        let (daemon, started_at) = (escaped(daemon), escaped(&run.results.started_at));
        let _ = writeln!(
            html,
            "<p>{name}{daemon}, {rows} rows, started {started_at}. {knee}The warm-up is in no figure.</p>"
        );
    }
    for section in charts::sections(runs) {
        let _ = writeln!(html, "<h2>{}</h2>\n<p>{}</p>", escaped(section.heading), escaped(section.text));
        let class = if section.charts.len() > 1 { "pair" } else { "wide" };
        let _ = writeln!(html, "<div class=\"{class}\">");
        for (title, chart) in &section.charts {
            let caption = if section.charts.len() > 1 { escaped(title) } else { String::new() };
            let _ = writeln!(html, "<figure><figcaption>{caption}</figcaption>\n{}</figure>", chart.draw(title));
        }
        html.push_str("</div>\n");
    }
    html.push_str(&rows_table(runs));
    html.push_str(&floor_table(runs));
    runs.iter().for_each(|run| html.push_str(&provenance(run)));
    html.push_str("</body>\n</html>\n");
    html
}

/// Where a cell stands, and how.
struct Cell {
    class: &'static str,
    text: String,
}

fn name(text: &str) -> Cell {
    Cell { class: "name", text: text.to_owned() }
}

fn number(text: String) -> Cell {
    Cell { class: "", text }
}

fn rows_table(runs: &[Run]) -> String {
    let header = [
        "row",
        "per second",
        "asked",
        "achieved",
        "rate is",
        "mean µs",
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "p99.9 µs",
        "p99.99 µs",
        "max µs",
        "Little's law",
        "unsent",
        "errors",
    ];
    let mut rows = Vec::new();
    for (run, row) in runs.iter().flat_map(|run| run.results.rows.iter().map(move |row| (run, row))) {
        let (figures, latencies) = (&row.figures, row.figures.latencies);
        let [law, errors, verdict] = figures.cells();
        let rate = |rate: Option<f64>| number(rate.map_or_else(|| "-".to_owned(), thousands));
        let mut cells = vec![
            name(&of_run(run, &row.setting.description())),
            number(thousands(row.units_per_second)),
            rate(figures.rate),
            rate(figures.achieved_rate),
            Cell { class: if figures.failed { "failed" } else { "" }, text: verdict },
            number(thousands(latencies.mean_us)),
        ];
        cells.extend(latencies.cells().map(number));
        cells.extend([number(law), number(thousands(figures.unsent as f64)), number(errors)]);
        rows.push(cells);
    }
    let text = "Per second are claims confirmed or rows read. Little's law is requests outstanding ÷ (rate × mean latency): 1 \
                where the generator counts right.";
    table("All rows", text, &header, &rows)
}

fn floor_table(runs: &[Run]) -> String {
    let header = ["floor", "in flight", "asked", "per second", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "max µs"];
    let mut rows = Vec::new();
    for (run, floor) in runs.iter().flat_map(|run| run.results.floor.iter().map(move |floor| (run, floor))) {
        let mut cells = vec![
            name(&of_run(run, &floor.name)),
            number(floor.in_flight.to_string()),
            number(floor.rate.map_or_else(|| "-".to_owned(), thousands)),
            number(thousands(floor.per_second)),
        ];
        let latencies = [floor.p50_us, floor.p90_us, floor.p99_us, floor.p999_us, floor.max_us];
        cells.extend(latencies.map(|latency| number(thousands(latency))));
        rows.push(cells);
    }
    if rows.is_empty() {
        return String::new();
    }
    table("The floor", "What the device gives below any daemon, measured in the same run.", &header, &rows)
}

fn table(heading: &str, text: &str, header: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut html = format!("<h2>{heading}</h2>\n<p>{text}</p>\n<div class=\"wide\"><table>\n<tr>");
    for (number, column) in header.iter().enumerate() {
        let class = if number == 0 { " class=\"name\"" } else { "" };
        let _ = write!(html, "<th{class}>{}</th>", escaped(column));
    }
    html.push_str("</tr>\n");
    for row in rows {
        html.push_str("<tr>");
        for Cell { class, text } in row {
            let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
            let _ = write!(html, "<td{class}>{}</td>", escaped(text));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
    html
}

/// The machine, and the command that repeats a run.
fn provenance(run: &Run) -> String {
    let mut html = format!("<h2>{}</h2>\n<dl>\n", escaped(&of_run(run, "Environment and command")));
    for (name, value) in run.results.environment.lines() {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(&value));
    }
    if let Some(seed) = run.results.seed {
        let _ = writeln!(html, "<dt>seed</dt><dd>{seed}</dd>");
    }
    let _ = writeln!(html, "</dl>\n<pre>{}</pre>", escaped(&run.results.command()));
    if let Some(workload) = &run.results.workload {
        let _ = writeln!(html, "<p>The workload:</p>\n<pre>{}</pre>", escaped(workload.trim_end()));
    }
    html
}

fn of_run(run: &Run, text: &str) -> String {
    if run.name.is_empty() { text.to_owned() } else { format!("{}: {text}", run.name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use crate::outcome::{Figures, MeasuredRow, Tally};
    use crate::record::{FloorRecord, Results, RowRecord, RowSetting};
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    fn row(outstanding: usize, rate: Option<f64>, requests: u64) -> RowRecord {
        let measured = Duration::from_secs(3);
        let mut tally = Tally::new(measured);
        for number in 0..requests {
            tally.answered(Duration::from_millis(number), Duration::from_micros(100 + number));
            tally.confirmed(1, 1);
        }
        let figures = Figures::new(outstanding, rate, tally, measured);
        let setting = RowSetting { rate, ..RowSetting::closed("claims", 4, outstanding) };
        RowRecord::new("row".to_owned(), &MeasuredRow { setting, units_per_second: 1000.0, figures })
    }

    fn floor(in_flight: u32) -> FloorRecord {
        FloorRecord {
            name: "RWF_DSYNC, writes of 4 KiB".to_owned(),
            in_flight,
            rate: None,
            per_second: 4000.0 * f64::from(in_flight),
            p50_us: 220.0,
            p90_us: 290.0,
            p99_us: 700.0,
            p999_us: 2000.0,
            max_us: 9000.0,
            curve: vec![(0.0, 150.0), (50.0, 220.0), (90.0, 290.0), (99.0, 700.0), (100.0, 9000.0)],
        }
    }

    fn run(name: &str, rows: Vec<RowRecord>, floor: Vec<FloorRecord>) -> Run {
        let arguments = vec!["run".to_owned(), "--socket".to_owned(), "a <b> & c".to_owned()];
        let environment = Environment::of(Path::new("."), None);
        let mut results = Results::new(arguments, Some(7), environment, SystemTime::UNIX_EPOCH);
        results.workload = Some("[mix] # a <comment>".to_owned());
        Run { name: name.to_owned(), results: Results { rows, floor, ..results } }
    }

    /// The page of these runs, which loads nothing, has only numbers, and closes what it opens.
    fn check(runs: &[Run]) -> String {
        let html = page(runs);
        for forbidden in ["NaN", ">inf<", "<script", "http:", "https:", "url(", "@import", "src=", "href="] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        for element in ["svg", "figure", "table", "tr", "div", "dl", "h2", "p", "text", "title"] {
            let opened = html.matches(&format!("<{element}>")).count() + html.matches(&format!("<{element} ")).count();
            assert_eq!(opened, html.matches(&format!("</{element}>")).count(), "{element}");
        }
        html
    }

    #[test]
    fn a_page_has_all_charts_and_tables() {
        let rows = vec![row(1, None, 500), row(64, None, 2000), row(64, Some(1000.0), 3000), row(64, Some(9000.0), 9)];
        let html = check(&[run("", rows, vec![floor(1), floor(4)])]);
        // Percentiles, throughput, rates, and one over time for each row.
        assert_eq!(html.matches("<svg").count(), 3 + 4);
        for expected in [
            "Latency by percentile",
            "Throughput against outstanding",
            "Latency against rate",
            "floor: RWF_DSYNC, writes of 4 KiB, 1 in flight",
            "FAILED",
            "# a &lt;comment&gt;</pre>",
            "claim-bench run --socket &#39;a &lt;b&gt; &amp; c&#39; --seed 7",
        ] {
            assert!(html.contains(&expected.replace("&#39;", "'")), "{expected} is missing");
        }
    }

    #[test]
    fn runs_of_one_page_are_told_apart_by_their_names() {
        let html =
            check(&[run("a", vec![row(1, None, 5)], vec![floor(1)]), run("b", vec![row(1, None, 5)], Vec::new())]);
        assert!(html.contains(">a: claims, 1 outstanding<") && html.contains(">b: claims, 1 outstanding<"), "{html}");
        assert!(html.contains(">a: floor: RWF_DSYNC"), "{html}");
    }

    #[test]
    fn rows_without_a_reply_and_runs_without_a_row_make_a_page() {
        check(&[run("", vec![row(1, None, 0), row(8, Some(10.0), 0)], Vec::new())]);
        assert_eq!(check(&[run("", Vec::new(), vec![floor(1)])]).matches("<svg").count(), 0);
    }
}
