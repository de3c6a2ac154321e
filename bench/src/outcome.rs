//! What a run gave, as a row for people and for programs.

use crate::record::RowSetting;
use crate::series::Series;
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Counts of one row while it is measured.
#[derive(Debug)]
pub struct Tally {
    /// From when a request could be sent, or was due, to when its reply was read.
    series: Series,
    /// Requests confirmed by replies that came in the measured time, whenever they were due.
    pub in_time: u64,
    /// Claims confirmed by them, or rows that they brought.
    pub units: u64,
    /// Of these replies.
    pub bytes: u64,
    /// Requests of an open loop that were due and not sent.
    pub unsent: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Nothing counted, of a row whose measured time begins now.
    #[cfg(test)]
    pub fn new(measured: Duration) -> Self {
        Tally::starting_at(SystemTime::now(), measured)
    }

    /// Nothing counted, of a row whose measured time begins then and is so long.
    pub fn starting_at(started_at: SystemTime, measured: Duration) -> Self {
        Tally {
            series: Series::new(started_at, measured),
            units: 0,
            bytes: 0,
            in_time: 0,
            unsent: 0,
            errors: BTreeMap::new(),
        }
    }

    /// A request of the measured time was answered: when in that time it is counted, and how long it took.
    pub fn answered(&mut self, at: Duration, latency: Duration) {
        self.series.record(at, latency);
    }

    /// A reply came in the measured time: how many claims it confirmed or rows it has, and its bytes.
    pub fn confirmed(&mut self, units: u64, bytes: usize) {
        self.in_time += 1;
        self.units += units;
        self.bytes += bytes as u64;
    }

    /// One refused request or item.
    pub fn refused(&mut self, code: &str) {
        *self.errors.entry(code.to_owned()).or_default() += 1;
    }

    /// Replies counted.
    pub fn requests(&self) -> u64 {
        self.series.count()
    }

    /// Their latencies so far.
    pub fn latencies(&self) -> Latencies {
        Latencies::of(&self.series.total())
    }
}

/// A row's latencies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub p9999_us: f64,
    pub max_us: f64,
}

impl Latencies {
    /// Those of a histogram of nanoseconds.
    pub fn of(latencies_ns: &Histogram<u64>) -> Self {
        let quantile_us = |quantile| rounded(latencies_ns.value_at_quantile(quantile) as f64 / 1e3);
        Latencies {
            mean_us: rounded(latencies_ns.mean() / 1e3),
            p50_us: quantile_us(0.5),
            p90_us: quantile_us(0.9),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
            p9999_us: quantile_us(0.9999),
            max_us: rounded(latencies_ns.max() as f64 / 1e3),
        }
    }

    /// The median of each figure over several rows.
    pub fn median(rows: &[Latencies]) -> Self {
        let of = |figure: fn(&Latencies) -> f64| median(rows.iter().map(figure));
        Latencies {
            mean_us: of(|row| row.mean_us),
            p50_us: of(|row| row.p50_us),
            p90_us: of(|row| row.p90_us),
            p99_us: of(|row| row.p99_us),
            p999_us: of(|row| row.p999_us),
            p9999_us: of(|row| row.p9999_us),
            max_us: of(|row| row.max_us),
        }
    }

    /// The columns of [`Latencies::cells`].
    pub const HEADER: [&str; 6] = ["p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "p99.99 µs", "max µs"];

    /// All but the mean, for a table.
    pub fn cells(&self) -> [String; 6] {
        [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.p9999_us, self.max_us].map(thousands)
    }
}

/// The middle one, or the mean of the two in the middle; 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => rounded((values[even / 2 - 1] + values[even / 2]) / 2.0),
    }
}

/// How a row was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    pub connections: usize,
    pub outstanding: usize,
    pub batch: usize,
    pub rate: Option<f64>,
}

/// Share of a rate that has to be confirmed in the measured time, or the row has failed.
const RATE_SHARE_MIN: f64 = 0.99;

/// What a row of any operation came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests a second that were to be sent; absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Requests a second that were confirmed in the measured time, whenever they were due; absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub achieved_rate: Option<f64>,
    /// The daemon did not keep up with the rate that was asked for.
    pub failed: bool,
    /// Confirmed in the measured time.
    pub requests_per_second: f64,
    #[serde(flatten)]
    pub latencies: Latencies,
    /// Requests outstanding for each that rate × mean latency accounts for: 1 where the generator counts right, for in a closed
    /// loop every place always has a request. Absent in an open loop, and where nothing was counted or something was refused:
    /// refusals have no latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub littles_law: Option<f64>,
    /// Whose latencies these are: in a closed loop those answered in the measured time, in an open one those due in it.
    pub requests: u64,
    pub seconds: f64,
    /// Requests that were due and not sent, because as many were outstanding as may be.
    pub unsent: u64,
    /// Requests and items refused, the warm-up's included.
    pub errors: u64,
    pub errors_by_code: BTreeMap<String, u64>,
    /// The latencies by their seconds.
    #[serde(skip)]
    pub series: Series,
}

impl Figures {
    /// Of what was counted in `elapsed`, with so many requests outstanding.
    pub fn new(outstanding: usize, rate: Option<f64>, tally: Tally, elapsed: Duration) -> Self {
        let (latencies, requests, unsent) = (tally.latencies(), tally.requests(), tally.unsent);
        let requests_per_second = per_second(tally.in_time, elapsed);
        let achieved_rate = rate.map(|_| requests_per_second);
        let errors = tally.errors.values().sum();
        let law = littles_law(outstanding, rate, requests_per_second, latencies);
        Figures {
            rate,
            achieved_rate,
            failed: unsent > 0 || misses(rate, achieved_rate),
            requests_per_second,
            latencies,
            littles_law: law.filter(|_| errors == 0),
            requests,
            seconds: rounded(elapsed.as_secs_f64()),
            unsent,
            errors,
            errors_by_code: tally.errors,
            series: tally.series,
        }
    }

    /// The medians over rounds (not none) of one setting; what was counted is added up.
    pub fn median(outstanding: usize, rounds: &[&Figures]) -> Self {
        let latencies: Vec<Latencies> = rounds.iter().map(|round| round.latencies).collect();
        let latencies = Latencies::median(&latencies);
        let requests_per_second = median(rounds.iter().map(|round| round.requests_per_second));
        let rate = rounds[0].rate;
        let errors = rounds.iter().map(|round| round.errors).sum();
        let mut series = rounds[0].series.clone();
        rounds[1..].iter().for_each(|round| series.append(&round.series));
        Figures {
            rate,
            achieved_rate: rate.map(|_| median(rounds.iter().filter_map(|round| round.achieved_rate))),
            failed: rounds.iter().any(|round| round.failed),
            requests_per_second,
            latencies,
            littles_law: littles_law(outstanding, rate, requests_per_second, latencies).filter(|_| errors == 0),
            requests: rounds.iter().map(|round| round.requests).sum(),
            seconds: rounds.iter().map(|round| round.seconds).sum(),
            unsent: rounds.iter().map(|round| round.unsent).sum(),
            errors,
            errors_by_code: sum_of_errors(rounds.iter().map(|round| &round.errors_by_code)),
            series,
        }
    }

    /// One line per error code, and one for a rate that was missed; empty when all is well.
    pub fn warnings(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.errors_by_code.iter().map(|(code, count)| format!("{count} × {code}")).collect();
        if let (true, Some(rate), Some(achieved)) = (self.failed, self.rate, self.achieved_rate) {
            lines.push(format!(
                "FAILED: {} of {} requests a second were confirmed in time, and {} were due and not sent; take a lower --rate \
                 or more --outstanding",
                thousands(achieved),
                thousands(rate),
                self.unsent
            ));
        }
        lines
    }

    /// The columns of [`Figures::cells`].
    pub const HEADER: [&str; 3] = ["Little's law", "errors", "rate is"];

    /// What a table shows behind the latencies.
    pub fn cells(&self) -> [String; 3] {
        let verdict = match (self.failed, self.rate) {
            (true, _) => "FAILED",
            (false, Some(_)) => "held",
            (false, None) => "-",
        };
        let law = self.littles_law.map_or_else(|| "-".to_owned(), |law| format!("{law:.3}"));
        [law, self.errors.to_string(), verdict.to_owned()]
    }
}

fn misses(rate: Option<f64>, achieved: Option<f64>) -> bool {
    rate.zip(achieved).is_some_and(|(rate, achieved)| achieved < rate * RATE_SHARE_MIN)
}

fn littles_law(outstanding: usize, rate: Option<f64>, requests_per_second: f64, latencies: Latencies) -> Option<f64> {
    let accounted_for = requests_per_second * latencies.mean_us / 1e6;
    let is_known = rate.is_none() && accounted_for > 0.0;
    is_known.then(|| (outstanding as f64 / accounted_for * 1e4).round() / 1e4)
}

/// A finished row of any operation.
#[derive(Debug, Clone)]
pub struct MeasuredRow {
    pub setting: RowSetting,
    /// Claims confirmed or rows read.
    pub units_per_second: f64,
    pub figures: Figures,
}

/// One finished row of claims.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub system: &'static str,
    pub connections: usize,
    /// Requests, in total.
    pub outstanding: usize,
    /// Items per request.
    pub batch: usize,
    pub claims_per_second: f64,
    pub claims: u64,
    #[serde(flatten)]
    pub figures: Figures,
}

impl Row {
    /// The row of what was counted in `elapsed`.
    pub fn new(setting: Setting, tally: Tally, elapsed: Duration) -> Self {
        let Setting { connections, outstanding, batch, rate } = setting;
        let claims = tally.units;
        Row {
            system: "claimd",
            connections,
            outstanding,
            batch,
            claims_per_second: per_second(claims, elapsed),
            claims,
            figures: Figures::new(outstanding, rate, tally, elapsed),
        }
    }

    /// The medians over rounds (not none) of one setting; what was counted is added up.
    pub fn median(rounds: &[Row]) -> Self {
        let figures: Vec<&Figures> = rounds.iter().map(|row| &row.figures).collect();
        Row {
            claims_per_second: median(rounds.iter().map(|row| row.claims_per_second)),
            claims: rounds.iter().map(|row| row.claims).sum(),
            figures: Figures::median(rounds[0].outstanding, &figures),
            ..rounds[0].clone()
        }
    }

    /// What makes it comparable.
    pub fn setting(&self) -> RowSetting {
        let rate = self.figures.rate;
        RowSetting { batch: self.batch, rate, ..RowSetting::closed("claims", self.connections, self.outstanding) }
    }

    /// To be kept.
    pub fn measured(&self) -> MeasuredRow {
        let figures = self.figures.clone();
        MeasuredRow { setting: self.setting(), units_per_second: self.claims_per_second, figures }
    }
}

/// Refusals of several rows, by code.
fn sum_of_errors<'a>(rows: impl Iterator<Item = &'a BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    rows.flatten().for_each(|(code, count)| *sum.entry(code.clone()).or_default() += count);
    sum
}

/// A count as a rate; 0 where no time went by.
pub fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { rounded(count as f64 / seconds) } else { 0.0 }
}

/// Tenths are finer than anything measured here, ratios aside.
pub fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Tenths are finer than anything measured here.
pub fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A table whose cells are numbers.
pub fn number_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A count with a mark between thousands.
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Latencies of several systems, one a line.
pub fn latencies_table(first: &str, rows: &[(&str, &Latencies)]) -> Table {
    let mut header = vec![first];
    header.extend(Latencies::HEADER);
    let mut table = number_table(&header);
    if let Some(column) = table.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    for (name, latencies) in rows {
        table.add_row([(*name).to_owned()].into_iter().chain(latencies.cells()));
    }
    table
}

/// The table of some rows.
pub fn table(rows: &[Row]) -> Table {
    let mut header = vec!["connections", "outstanding", "batch", "rate", "claims/s"];
    header.extend(Latencies::HEADER);
    header.extend(Figures::HEADER);
    let mut table = number_table(&header);
    for row in rows {
        let mut cells = vec![
            row.connections.to_string(),
            row.outstanding.to_string(),
            row.batch.to_string(),
            rate_cell(row.figures.rate),
            thousands(row.claims_per_second),
        ];
        cells.extend(row.figures.latencies.cells());
        cells.extend(row.figures.cells());
        table.add_row(cells);
    }
    table
}

/// A rate that was asked for, or that none was.
pub fn rate_cell(rate: Option<f64>) -> String {
    match rate {
        Some(rate) => thousands(rate),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_row_has_the_rate_and_the_percentiles_of_its_tally() {
        let mut tally = Tally::new(2 * SECOND);
        for latency_us in 1..=1000 {
            tally.answered(Duration::from_millis(2 * latency_us - 1), Duration::from_micros(latency_us));
            tally.confirmed(2, 100);
        }
        tally.refused("OVERLOADED");
        tally.refused("OVERLOADED");
        let setting = Setting { connections: 1, outstanding: 4, batch: 2, rate: None };
        let row = Row::new(setting, tally, 2 * SECOND);
        assert_eq!((row.claims, row.claims_per_second, row.figures.errors), (2000, 1000.0, 2));
        let Latencies { p50_us, p99_us, max_us, mean_us, .. } = row.figures.latencies;
        for (found, expected) in [(p50_us, 500.0), (p99_us, 990.0), (max_us, 1000.0), (mean_us, 500.5)] {
            assert!((found - expected).abs() <= expected / 500.0, "{found} for {expected}");
        }
        assert_eq!(row.figures.warnings(), ["2 × OVERLOADED"]);
        assert_eq!(row.figures.series.histograms().len(), 2);
        let json = serde_json::to_value(&row).expect("numbers serialise");
        for field in [
            "system",
            "connections",
            "outstanding",
            "batch",
            "claims_per_second",
            "mean_us",
            "p50_us",
            "p90_us",
            "p99_us",
            "p999_us",
            "max_us",
            "failed",
            "seconds",
            "errors",
        ] {
            assert!(json.get(field).is_some(), "{field} is missing from {json}");
        }
        assert!(json.get("littles_law").is_none(), "refusals have no latency, so that it can't be told: {json}");
        assert!(table(&[row]).to_string().contains("1,000"));
    }

    #[test]
    fn rounds_have_medians_and_sums() {
        let round = |latency_us, claims| {
            let mut tally = Tally::new(SECOND);
            (0..claims).for_each(|_| {
                tally.answered(Duration::ZERO, Duration::from_micros(latency_us));
                tally.confirmed(1, 1);
            });
            tally.refused("OVERLOADED");
            let setting = Setting { connections: 1, outstanding: 1, batch: 1, rate: Some(5.0) };
            Row::new(setting, tally, SECOND)
        };
        let row = Row::median(&[round(100, 10), round(900, 2), round(200, 30)]);
        let figures = &row.figures;
        assert_eq!((row.claims, row.claims_per_second, figures.seconds, figures.rate), (42, 10.0, 3.0, Some(5.0)));
        assert!((figures.latencies.p50_us - 200.0).abs() < 1.0, "{row:?}");
        assert_eq!((figures.errors, figures.errors_by_code["OVERLOADED"], figures.series.count()), (3, 3, 42));
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }

    #[test]
    fn a_closed_loop_has_its_requests_by_the_law_of_little() {
        let law = |rate| {
            let mut tally = Tally::new(SECOND);
            (0..4000).for_each(|_| {
                tally.answered(Duration::ZERO, Duration::from_micros(2000));
                tally.confirmed(1, 1);
            });
            Figures::new(8, rate, tally, SECOND).littles_law
        };
        assert!((law(None).expect("a closed loop") - 1.0).abs() < 0.001);
        assert_eq!(law(Some(4000.0)), None);
        assert_eq!(Figures::new(8, None, Tally::new(SECOND), SECOND).littles_law, None, "nothing was counted");
    }

    #[test]
    fn a_rate_that_is_missed_has_failed() {
        let figures = |rate, in_time, unsent| {
            let tally = Tally { in_time, unsent, ..Tally::new(SECOND) };
            Figures::new(8, rate, tally, SECOND)
        };
        for (rate, in_time, unsent, expected) in [
            (Some(1000.0), 1000, 0, "held"),
            (Some(1000.0), 990, 0, "held"),
            (Some(1000.0), 989, 0, "FAILED"),
            (Some(1000.0), 1000, 1, "FAILED"),
            (None, 10, 0, "-"),
        ] {
            let figures = figures(rate, in_time, unsent);
            assert_eq!(figures.cells()[2], expected, "{in_time} of {rate:?}, {unsent} unsent");
            assert_eq!(figures.warnings().len(), usize::from(figures.failed));
        }
        let line = figures(Some(1000.0), 500, 7).warnings().remove(0);
        assert!(line.contains("500 of 1,000") && line.contains("7 were due") && line.contains("--rate"), "{line}");
    }

    #[test]
    fn thousands_are_marked() {
        for (value, expected) in [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(thousands(value), expected);
        }
    }
}
