//! What a run gave, as a row for people and for programs.

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Counts of one row while it is measured.
#[derive(Debug)]
pub struct Tally {
    /// Nanoseconds from when a request could be sent to when its reply was read.
    latencies_ns: Histogram<u64>,
    claims: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Nothing counted.
    pub fn new() -> Self {
        let latencies_ns = Histogram::new(3).expect("three digits are within what a histogram can have");
        Tally { latencies_ns, claims: 0, errors: BTreeMap::new() }
    }

    /// One reply: how long it took and how many claims it confirmed.
    pub fn answered(&mut self, latency: Duration, claims: u64) {
        self.latencies_ns.record(latency.as_nanos() as u64).expect("the histogram grows with its values");
        self.claims += claims;
    }

    /// One refused request or item.
    pub fn refused(&mut self, code: &str) {
        *self.errors.entry(code.to_owned()).or_default() += 1;
    }
}

/// How a row was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    pub connections: usize,
    pub outstanding: usize,
    pub batch: usize,
}

/// One finished row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub system: &'static str,
    pub connections: usize,
    /// Requests, in total.
    pub outstanding: usize,
    /// Items per request.
    pub batch: usize,
    pub claims_per_second: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub p9999_us: f64,
    pub max_us: f64,
    pub claims: u64,
    pub seconds: f64,
    /// Requests and items refused, the warm-up's included.
    pub errors: u64,
    pub errors_by_code: BTreeMap<String, u64>,
}

impl Row {
    /// The row of what was counted in `elapsed`.
    pub fn new(setting: Setting, tally: Tally, elapsed: Duration) -> Self {
        let Setting { connections, outstanding, batch } = setting;
        let Tally { latencies_ns, claims, errors } = tally;
        let quantile_us = |quantile| rounded(latencies_ns.value_at_quantile(quantile) as f64 / 1e3);
        let seconds = elapsed.as_secs_f64();
        Row {
            system: "claimd",
            connections,
            outstanding,
            batch,
            claims_per_second: if seconds > 0.0 { rounded(claims as f64 / seconds) } else { 0.0 },
            mean_us: rounded(latencies_ns.mean() / 1e3),
            p50_us: quantile_us(0.5),
            p90_us: quantile_us(0.9),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
            p9999_us: quantile_us(0.9999),
            max_us: rounded(latencies_ns.max() as f64 / 1e3),
            claims,
            seconds: rounded(seconds),
            errors: errors.values().sum(),
            errors_by_code: errors,
        }
    }

    /// One line per error code; empty when there was none.
    pub fn error_lines(&self) -> Vec<String> {
        self.errors_by_code.iter().map(|(code, count)| format!("{count} × {code}")).collect()
    }
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
    let mut table = number_table(&[
        "connections",
        "outstanding",
        "batch",
        "claims/s",
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "p99.9 µs",
        "p99.99 µs",
        "max µs",
        "errors",
    ]);
    for row in rows {
        let latencies = [row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.p9999_us, row.max_us];
        let mut cells = vec![
            row.connections.to_string(),
            row.outstanding.to_string(),
            row.batch.to_string(),
            thousands(row.claims_per_second),
        ];
        cells.extend(latencies.iter().map(|latency| thousands(*latency)));
        cells.push(row.errors.to_string());
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_rate_and_the_percentiles_of_its_tally() {
        let mut tally = Tally::new();
        for latency_us in 1..=1000 {
            tally.answered(Duration::from_micros(latency_us), 2);
        }
        tally.refused("OVERLOADED");
        tally.refused("OVERLOADED");
        let row = Row::new(Setting { connections: 1, outstanding: 4, batch: 2 }, tally, Duration::from_secs(2));
        assert_eq!((row.claims, row.claims_per_second, row.errors), (2000, 1000.0, 2));
        for (found, expected) in [(row.p50_us, 500.0), (row.p99_us, 990.0), (row.max_us, 1000.0), (row.mean_us, 500.5)]
        {
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
    fn thousands_are_marked() {
        for (value, expected) in [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(thousands(value), expected);
        }
    }
}
