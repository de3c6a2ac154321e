//! Latencies of a row, interval after interval.

use hdrhistogram::Histogram;
use std::time::{Duration, SystemTime};

/// Intervals that are kept apart at most: the histogram of each takes some 100 KiB.
const INTERVALS_MAX: u32 = 600;

/// Nanoseconds, by the interval in which they were counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// When the measured time begins, by the wall clock.
    started_at: SystemTime,
    /// A whole number of seconds: one, unless the row is a long one.
    interval: Duration,
    histograms: Vec<Histogram<u64>>,
}

impl Series {
    /// For a row whose measured time begins then and is so long.
    pub fn new(started_at: SystemTime, measured: Duration) -> Self {
        let seconds = measured.as_secs_f64().ceil() as u64;
        let interval = Duration::from_secs(seconds.div_ceil(INTERVALS_MAX.into()).max(1));
        Series { started_at, interval, histograms: Vec::new() }
    }

    /// Counts a latency, so long after the start of the measured time.
    pub fn record(&mut self, at: Duration, latency: Duration) {
        let number = (at.as_nanos() / self.interval.as_nanos()) as usize;
        while self.histograms.len() <= number {
            self.histograms.push(empty_histogram());
        }
        self.histograms[number].record(latency.as_nanos() as u64).expect("the histogram grows with its values");
    }

    /// When the measured time began, of several rounds that of the first.
    pub fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// How long each interval is; the last one may have ended before.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// One histogram for each interval.
    pub fn histograms(&self) -> &[Histogram<u64>] {
        &self.histograms
    }

    /// All intervals as one.
    pub fn total(&self) -> Histogram<u64> {
        let mut total = empty_histogram();
        self.histograms.iter().for_each(|histogram| total.add(histogram).expect("the histogram grows with its values"));
        total
    }

    /// Latencies counted.
    pub fn count(&self) -> u64 {
        self.histograms.iter().map(Histogram::len).sum()
    }

    /// Puts another round of the same measured time behind this one.
    pub fn append(&mut self, other: &Series) {
        assert_eq!(self.interval, other.interval, "rounds of different lengths");
        self.histograms.extend_from_slice(&other.histograms);
    }
}

impl Default for Series {
    fn default() -> Self {
        Series::new(SystemTime::UNIX_EPOCH, Duration::ZERO)
    }
}

/// For nanoseconds.
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are within what a histogram can have")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept_by_their_second() {
        let mut series = Series::new(SystemTime::UNIX_EPOCH, Duration::from_secs(10));
        for (at_ms, latency_us) in [(0, 1), (999, 2), (1000, 3), (3500, 4)] {
            series.record(Duration::from_millis(at_ms), Duration::from_micros(latency_us));
        }
        let counts: Vec<u64> = series.histograms().iter().map(Histogram::len).collect();
        assert_eq!(counts, [2, 1, 0, 1]);
        assert_eq!((series.count(), series.total().len()), (4, 4));
        assert!(series.total().max().abs_diff(4000) < 8);
        series.append(&series.clone());
        assert_eq!((series.count(), series.histograms().len()), (8, 8));
    }

    #[test]
    fn long_rows_have_longer_intervals() {
        let series = |seconds| Series::new(SystemTime::UNIX_EPOCH, Duration::from_secs(seconds));
        let interval = |seconds| series(seconds).interval().as_secs();
        assert_eq!([0, 1, 600, 601, 3600].map(interval), [1, 1, 1, 2, 6]);
    }
}
