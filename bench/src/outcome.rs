//! What a run gave, as a row for people and for programs.

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Counts of one row while it is measured.
#[derive(Debug)]
pub struct Tally {
    /// Nanoseconds from when a request could be sent, or was due, to when its reply was read.
    latencies_ns: Histogram<u64>,
    /// Claims confirmed, or rows read.
    pub units: u64,
    /// Of the replies.
    pub bytes: u64,
    /// Requests of an open loop that were due and not sent.
    pub unsent: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Nothing counted.
    pub fn new() -> Self {
        Tally { latencies_ns: empty_histogram(), units: 0, bytes: 0, unsent: 0, errors: BTreeMap::new() }
    }

    /// One reply: how long it took, how many claims it confirmed or rows it has, and its bytes.
    pub fn answered(&mut self, latency: Duration, units: u64, bytes: usize) {
        self.latencies_ns.record(latency.as_nanos() as u64).expect("the histogram grows with its values");
        self.units += units;
        self.bytes += bytes as u64;
    }

    /// One refused request or item.
    pub fn refused(&mut self, code: &str) {
        *self.errors.entry(code.to_owned()).or_default() += 1;
    }

    /// Replies counted.
    pub fn requests(&self) -> u64 {
        self.latencies_ns.len()
    }

    /// Their latencies so far.
    pub fn latencies(&self) -> Latencies {
        Latencies::of(&self.latencies_ns)
    }

    /// Refusals by code.
    pub fn into_errors(self) -> BTreeMap<String, u64> {
        self.errors
    }
}

/// For nanoseconds.
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are within what a histogram can have")
}

/// A row's latencies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
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

/// One finished row of claims.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub system: &'static str,
    pub connections: usize,
    /// Requests, in total.
    pub outstanding: usize,
    /// Items per request.
    pub batch: usize,
    /// Requests a second that were to be sent; absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    pub claims_per_second: f64,
    #[serde(flatten)]
    pub latencies: Latencies,
    pub claims: u64,
    pub seconds: f64,
    /// Requests that were due and not sent, because as many were outstanding as may be.
    pub unsent: u64,
    /// Requests and items refused, the warm-up's included.
    pub errors: u64,
    pub errors_by_code: BTreeMap<String, u64>,
}

impl Row {
    /// The row of what was counted in `elapsed`.
    pub fn new(setting: Setting, tally: Tally, elapsed: Duration) -> Self {
        let Setting { connections, outstanding, batch, rate } = setting;
        let (latencies, claims, unsent, errors_by_code) =
            (tally.latencies(), tally.units, tally.unsent, tally.into_errors());
        Row {
            system: "claimd",
            connections,
            outstanding,
            batch,
            rate,
            claims_per_second: per_second(claims, elapsed),
            latencies,
            claims,
            seconds: rounded(elapsed.as_secs_f64()),
            unsent,
            errors: errors_by_code.values().sum(),
            errors_by_code,
        }
    }

    /// The medians over rounds (not none) of one setting; what was counted is added up.
    pub fn median(rounds: &[Row]) -> Self {
        let latencies: Vec<Latencies> = rounds.iter().map(|row| row.latencies).collect();
        Row {
            claims_per_second: median(rounds.iter().map(|row| row.claims_per_second)),
            latencies: Latencies::median(&latencies),
            claims: rounds.iter().map(|row| row.claims).sum(),
            seconds: rounds.iter().map(|row| row.seconds).sum(),
            unsent: rounds.iter().map(|row| row.unsent).sum(),
            errors: rounds.iter().map(|row| row.errors).sum(),
            errors_by_code: sum_of_errors(rounds.iter().map(|row| &row.errors_by_code)),
            ..rounds[0].clone()
        }
    }

    /// One line per error code; empty when there was none.
    pub fn error_lines(&self) -> Vec<String> {
        error_lines(&self.errors_by_code)
    }
}

/// One line per error code; empty when there was none.
pub fn error_lines(errors_by_code: &BTreeMap<String, u64>) -> Vec<String> {
    errors_by_code.iter().map(|(code, count)| format!("{count} × {code}")).collect()
}

/// Refusals of several rows, by code.
pub fn sum_of_errors<'a>(rows: impl Iterator<Item = &'a BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
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

/// The table of some rows.
pub fn table(rows: &[Row]) -> Table {
    let mut header = vec!["connections", "outstanding", "batch", "rate", "claims/s"];
    header.extend(Latencies::HEADER);
    header.push("errors");
    let mut table = number_table(&header);
    for row in rows {
        let mut cells = vec![
            row.connections.to_string(),
            row.outstanding.to_string(),
            row.batch.to_string(),
            rate_cell(row.rate),
            thousands(row.claims_per_second),
        ];
        cells.extend(row.latencies.cells());
        cells.push(row.errors.to_string());
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

    #[test]
    fn a_row_has_the_rate_and_the_percentiles_of_its_tally() {
        let mut tally = Tally::new();
        for latency_us in 1..=1000 {
            tally.answered(Duration::from_micros(latency_us), 2, 100);
        }
        tally.refused("OVERLOADED");
        tally.refused("OVERLOADED");
        let setting = Setting { connections: 1, outstanding: 4, batch: 2, rate: None };
        let row = Row::new(setting, tally, Duration::from_secs(2));
        assert_eq!((row.claims, row.claims_per_second, row.errors), (2000, 1000.0, 2));
        let Latencies { p50_us, p99_us, max_us, mean_us, .. } = row.latencies;
        for (found, expected) in [(p50_us, 500.0), (p99_us, 990.0), (max_us, 1000.0), (mean_us, 500.5)] {
            assert!((found - expected).abs() <= expected / 500.0, "{found} for {expected}");
        }
        assert_eq!(row.error_lines(), ["2 × OVERLOADED"]);
        let json = serde_json::to_value(&row).expect("numbers serialise");
        for field in [
            "system",
            "connections",
            "outstanding",
            "batch",
            "claims_per_second",
            "p50_us",
            "p90_us",
            "p99_us",
            "p999_us",
            "max_us",
            "seconds",
            "errors",
        ] {
            assert!(json.get(field).is_some(), "{field} is missing from {json}");
        }
        assert!(table(&[row]).to_string().contains("1,000"));
    }

    #[test]
    fn rounds_have_medians_and_sums() {
        let round = |latency_us, claims| {
            let mut tally = Tally::new();
            (0..claims).for_each(|_| tally.answered(Duration::from_micros(latency_us), 1, 1));
            tally.refused("OVERLOADED");
            let setting = Setting { connections: 1, outstanding: 1, batch: 1, rate: Some(5.0) };
            Row::new(setting, tally, Duration::from_secs(1))
        };
        let row = Row::median(&[round(100, 10), round(900, 2), round(200, 30)]);
        assert_eq!((row.claims, row.claims_per_second, row.seconds, row.rate), (42, 10.0, 3.0, Some(5.0)));
        assert!((row.latencies.p50_us - 200.0).abs() < 1.0, "{row:?}");
        assert_eq!((row.errors, row.errors_by_code["OVERLOADED"]), (3, 3));
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }

    #[test]
    fn thousands_are_marked() {
        for (value, expected) in [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(thousands(value), expected);
        }
    }
}
