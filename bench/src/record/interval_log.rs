//! A row's seconds as an interval log of HdrHistogram, version 1.3: a line for each, with its compressed histogram.
//!
//! ```text
//! #[Histogram log format version 1.3]
//! #[StartTime: 1795299000.123 (seconds since epoch)]
//! "StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"
//! #[MaxValueDivisor: 1000.000]
//! 0.000,1.000,4712.447,HISTFAAAA...
//! ```
//!
//! Timestamps are seconds since the start, histograms are of nanoseconds, and the maximum beside them, which is for people, is
//! in microseconds.

use crate::series::Series;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError};
use std::io::{self, Write};

/// The names of the columns.
const LEGEND: &str = r#""StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram""#;

/// Writes one interval after the other, those in which nothing was counted too.
pub fn write(series: &Series, out: &mut Vec<u8>) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    // The log's header has to end before the legend, and the builder knows no legend: so it makes two beginnings.
    IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .with_start_time(series.started_at())
        .begin_log_with(out, &mut serializer)?;
    writeln!(out, "{LEGEND}")?;
    let mut builder = IntervalLogWriterBuilder::new();
    let mut log = builder.with_max_value_divisor(1e3).begin_log_with(out, &mut serializer)?;
    for (number, histogram) in (0..).zip(series.histograms()) {
        let written = log.write_histogram(histogram, series.interval() * number, series.interval(), None);
        written.map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::time::{Duration, SystemTime};

    #[test]
    fn every_second_is_read_again_as_it_was() {
        let started_at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_299_000_123);
        let mut series = Series::new(started_at, Duration::from_secs(4));
        for number in 0..5000_u64 {
            // None in the second after the first.
            let at = Duration::from_millis(if number < 1000 { 0 } else { 2000 + number / 5 });
            series.record(at, Duration::from_nanos(number * number));
        }
        let mut out = Vec::new();
        write(&series, &mut out).expect("memory");
        let text = std::str::from_utf8(&out).expect("it is text");
        assert!(text.starts_with("#[Histogram log format version 1.3]\n#[StartTime: 1795299000.123 "), "{text}");
        assert_eq!(text.lines().nth(2), Some(LEGEND));
        let mut found = Vec::new();
        for entry in IntervalLogIterator::new(&out) {
            match entry.expect("it parses") {
                LogEntry::StartTime(time) => assert_eq!(time, Duration::from_millis(1_795_299_000_123)),
                LogEntry::BaseTime(time) => panic!("no base time was written: {time:?}"),
                LogEntry::Interval(interval) => {
                    assert_eq!(interval.start_timestamp().as_secs(), found.len() as u64);
                    assert_eq!(interval.duration(), Duration::from_secs(1));
                    let bytes = STANDARD.decode(interval.encoded_histogram()).expect("it is base64");
                    let histogram: Histogram<u64> =
                        Deserializer::new().deserialize(&mut bytes.as_slice()).expect("it is a histogram");
                    assert!((interval.max() - histogram.max() as f64 / 1e3).abs() < 0.001);
                    found.push(histogram);
                }
            }
        }
        assert_eq!(found, series.histograms());
    }
}
