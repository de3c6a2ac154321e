//! Times as people and scripts read and write them.

use claim_client::Uuid;
use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// RFC 3339 in UTC, always with microseconds.
pub fn rfc3339(at_us: i64) -> String {
    match Timestamp::from_microsecond(at_us) {
        Ok(timestamp) => format!("{timestamp:.6}"),
        // Nothing that the daemon takes lies there; a number is more use than nothing.
        Err(_) => format!("{at_us} us"),
    }
}

/// The time in a UUIDv7, in microseconds since the epoch.
pub fn key_time_us(key: Uuid) -> i64 {
    (key.as_u128() >> 80) as i64 * 1000
}

pub fn parse_timestamp_us(text: &str) -> Result<i64, String> {
    let timestamp: Timestamp =
        text.parse().map_err(|error| format!("{error}; a time looks like 2026-01-31T09:30:00Z"))?;
    Ok(timestamp.as_microsecond())
}

/// A duration with its unit; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = |error: jiff::Error| format!("{error}; a duration looks like 500ms, 30s or 2m");
    let duration = match text.parse::<u32>() {
        Ok(seconds) => SignedDuration::from_secs(seconds.into()),
        Err(_) => text.parse::<SignedDuration>().map_err(wrong)?,
    };
    let duration = Duration::try_from(duration).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        Err("it is no time at all; a duration looks like 500ms, 30s or 2m".to_owned())
    } else {
        Ok(duration)
    }
}

/// The first microsecond of a quarter, and that of the next.
pub fn parse_quarter(text: &str) -> Result<(i64, i64), String> {
    let (year, quarter) = parse_quarter_number(text)?;
    let (year, quarter) = (year as i16, quarter as i8);
    let next = if quarter == 4 { (year + 1, 1) } else { (year, quarter * 3 + 1) };
    let bounds = || Some((first_of_month(year, quarter * 3 - 2)?, first_of_month(next.0, next.1)?));
    bounds().ok_or_else(no_quarter)
}

/// A quarter's year and its number in it.
pub fn parse_quarter_number(text: &str) -> Result<(u16, u8), String> {
    let parse = || {
        let (year, quarter) = text.split_once("-Q")?;
        let year = year.parse().ok().filter(|year| (1970..=9998).contains(year))?;
        let quarter = quarter.parse().ok().filter(|quarter| (1..=4).contains(quarter))?;
        Some((year, quarter))
    };
    parse().ok_or_else(no_quarter)
}

fn no_quarter() -> String {
    "a quarter looks like 2026-Q1".to_owned()
}

/// How long ago something was, as roughly as people say it. Clocks may disagree; nothing is in the future.
pub fn ago(at_us: i64, now_us: i64) -> String {
    let seconds = age_seconds(at_us, now_us);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (2.., ..) => format!("{days} days ago"),
        (_, 2.., _) => format!("{hours} h ago"),
        (_, _, 2..) => format!("{minutes} min ago"),
        _ => format!("{seconds} s ago"),
    }
}

/// The same in whole seconds.
pub fn age_seconds(at_us: i64, now_us: i64) -> u64 {
    u64::try_from(now_us.saturating_sub(at_us) / 1_000_000).unwrap_or(0)
}

/// This machine's present, in microseconds since the epoch.
pub fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

fn first_of_month(year: i16, month: i8) -> Option<i64> {
    let start = date(year, month, 1).to_zoned(TimeZone::UTC).ok()?;
    Some(start.timestamp().as_microsecond())
}

/// A UUID as text, or a hyphen where there is none.
pub fn or_hyphen(id: Option<Uuid>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::{age_seconds, ago, parse_duration, parse_quarter, parse_timestamp_us, rfc3339};
    use std::time::Duration;

    #[test]
    fn times_always_have_microseconds() {
        for (text, at_us) in [
            ("1970-01-01T00:00:00.000000Z", 0),
            ("2026-01-31T09:30:00.000001Z", 1_769_851_800_000_001),
            ("1969-12-31T23:59:59.999999Z", -1),
        ] {
            assert_eq!(rfc3339(at_us), text);
            assert_eq!(parse_timestamp_us(text), Ok(at_us));
        }
        assert_eq!(parse_timestamp_us("2026-01-31T10:30:00+01:00"), Ok(1_769_851_800_000_000));
        assert!(parse_timestamp_us("yesterday").is_err_and(|error| error.contains("looks like")));
    }

    #[test]
    fn quarters_begin_and_end() {
        let check = |text: &str| parse_quarter(text).map(|(since, until)| (rfc3339(since), rfc3339(until)));
        for (text, since, until) in [
            ("2026-Q1", "2026-01-01T00:00:00.000000Z", "2026-04-01T00:00:00.000000Z"),
            ("2025-Q4", "2025-10-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(check(text), Ok((since.to_owned(), until.to_owned())));
        }
        for text in ["2026-Q0", "2026-Q5", "2026", "Q1", "x-Q1", "1969-Q4"] {
            assert_eq!(check(text), Err("a quarter looks like 2026-Q1".to_owned()), "{text}");
        }
    }

    #[test]
    fn ages_are_rough_and_never_negative() {
        for (seconds, text) in [
            (-5, "0 s ago"),
            (119, "119 s ago"),
            (120, "2 min ago"),
            (7_199, "119 min ago"),
            (7_200, "2 h ago"),
            (172_800, "2 days ago"),
        ] {
            assert_eq!(ago(7, 7 + seconds * 1_000_000), text);
        }
        assert_eq!((age_seconds(7, 1_999_999), age_seconds(7, 0)), (1, 0));
    }

    #[test]
    fn durations_have_units() {
        for (text, expected) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("7", 7_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(expected)));
        }
        for text in ["0s", "-1s", "soon"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
