//! A histogram as the percentile distribution that HdrHistogram prints and its plotters read.
//!
//! ```text
//!        Value     Percentile TotalCount 1/(1-Percentile)
//!
//!       12.345 0.000000000000          1           1.00
//!       ...
//!     9876.543 1.000000000000    1000000
//! #[Mean    =       45.678, StdDeviation   =       12.345]
//! #[Max     =     9876.543, Total count    =      1000000]
//! #[Buckets =           14, SubBuckets     =         2048]
//! ```

use hdrhistogram::Histogram;
use std::io::{self, Write};

/// Values are kept in nanoseconds and shown in microseconds.
const SCALE: f64 = 1e3;

/// Points for each halving of what is left up to the maximum.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// Sub-buckets of a histogram with three digits.
const SUB_BUCKETS: u32 = 2048;

/// Writes the distribution of a histogram of nanoseconds.
pub fn write(histogram_ns: &Histogram<u64>, out: &mut Vec<u8>) -> io::Result<()> {
    assert_eq!(histogram_ns.sigfig(), 3, "the sub-buckets are those of three digits");
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut count = 0;
    for step in histogram_ns.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64 / SCALE, step.quantile_iterated_to());
        if quantile < 1.0 {
            writeln!(out, "{value:12.3} {quantile:2.12} {count:10} {:14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, "{value:12.3} {quantile:2.12} {count:10}")?;
        }
    }
    let (mean, deviation) = (histogram_ns.mean() / SCALE, histogram_ns.stdev() / SCALE);
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]")?;
    let (max, total) = (histogram_ns.max() as f64 / SCALE, histogram_ns.len());
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {total:12}]")?;
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {SUB_BUCKETS:12}]", histogram_ns.buckets())
}

/// Points of a percentile curve over `count` values, denser towards the maximum: percentiles with their values in
/// microseconds. `quantile_ns` gives the value of a share of 0 to 1.
pub fn curve(count: u64, quantile_ns: impl Fn(f64) -> u64) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let mut rest = 1.0;
    while count > 0 && rest * count as f64 >= 1.0 {
        for tick in 0..TICKS_PER_HALF_DISTANCE {
            let share = 1.0 - rest + rest / 2.0 * f64::from(tick) / f64::from(TICKS_PER_HALF_DISTANCE);
            points.push(share);
        }
        rest /= 2.0;
    }
    if count > 0 {
        points.push(1.0);
    }
    points.into_iter().map(|share| (share * 100.0, quantile_ns(share) as f64 / SCALE)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::empty_histogram;

    fn histogram() -> Histogram<u64> {
        let mut histogram = empty_histogram();
        (1..=10_000).for_each(|us| histogram.record(us * 1000).expect("it grows"));
        histogram
    }

    #[test]
    fn lines_rise_to_the_maximum_and_the_footer_sums_up() {
        let mut out = Vec::new();
        write(&histogram(), &mut out).expect("memory");
        let text = String::from_utf8(out).expect("digits are ASCII");
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().expect("a header").split_whitespace().collect();
        assert_eq!(header, ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        assert_eq!(lines.next(), Some(""));
        let (footer, rows): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with('#'));
        let rows: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| row.split_whitespace().map(|cell| cell.parse().expect("a number")).collect())
            .collect();
        for pair in rows.windows(2) {
            assert!(pair[0].iter().zip(&pair[1]).all(|(before, after)| before <= after), "{pair:?}");
        }
        for row in &rows[..rows.len() - 1] {
            // Values are the percentiles of 1 to 10,000 µs, but for the histogram's three digits, and the counts are exact.
            assert!((row[0] - row[2]).abs() <= row[0] / 500.0, "{row:?}");
            assert!(row[2] >= row[1] * 10_000.0 && (row[3] * (1.0 - row[1]) - 1.0).abs() < 0.01, "{row:?}");
        }
        let last = rows.last().expect("some rows");
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 10_000.0));
        assert!(footer[0].starts_with("#[Mean    =     5000."), "{footer:?}");
        assert!(footer[1].starts_with("#[Max     =    1000") && footer[1].ends_with("Total count    =        10000]"));
        assert!(footer[2].ends_with("SubBuckets     =         2048]"), "{footer:?}");
    }

    #[test]
    fn nothing_counted_is_a_distribution_too() {
        let mut out = Vec::new();
        write(&empty_histogram(), &mut out).expect("memory");
        let text = String::from_utf8(out).expect("digits are ASCII");
        assert!(text.contains("Total count    =            0") && !text.contains("NaN"), "{text}");
        assert_eq!(curve(0, |_| 1), []);
    }

    #[test]
    fn a_curve_goes_as_far_as_the_values() {
        let histogram = histogram();
        let points = curve(histogram.len(), |share| histogram.value_at_quantile(share));
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{points:?}");
        let beyond = points[points.len() - 2].0;
        assert!((99.98..100.0).contains(&beyond), "{beyond}");
        assert_eq!(points.last().map(|point| point.0), Some(100.0));
    }
}
