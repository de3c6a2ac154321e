//! Time as the ledger keeps it: microseconds since 1970-01-01T00:00:00Z, and UTC calendar quarters.

use jiff::Timestamp as JiffTimestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Microseconds in a second.
pub const SECOND_US: i64 = 1_000_000;
/// Microseconds in an hour.
pub const HOUR_US: i64 = 3_600 * SECOND_US;
/// Microseconds in a day.
pub const DAY_US: i64 = 24 * HOUR_US;
/// The last microsecond that the ledger accepts: 9998-12-31T00:00:00Z. Everything later overflows civil time.
pub const TIME_US_MAX: i64 = 253_370_678_400 * SECOND_US;

/// What the clocks show when an event arrives. Read at the edge, handed to the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_REALTIME, microseconds since the epoch.
    pub wall_us: i64,
    /// CLOCK_BOOTTIME, microseconds: steady, and it counts time asleep.
    pub boot_us: i64,
}

/// A UTC calendar quarter, printed `2026-Q1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "(i16, i8)", try_from = "(i16, i8)")]
pub struct Quarter {
    year: i16,
    /// 1 to 4.
    quarter: i8,
}

impl From<Quarter> for (i16, i8) {
    fn from(quarter: Quarter) -> (i16, i8) {
        (quarter.year, quarter.quarter)
    }
}

impl TryFrom<(i16, i8)> for Quarter {
    type Error = &'static str;

    fn try_from((year, quarter): (i16, i8)) -> Result<Quarter, &'static str> {
        let is_one = (1969..=9999).contains(&year) && (1..=4).contains(&quarter);
        is_one.then_some(Quarter { year, quarter }).ok_or("not a quarter")
    }
}

impl Quarter {
    /// Before every one that the ledger knows.
    pub const MIN: Quarter = Quarter { year: i16::MIN, quarter: 1 };
    /// After every one that the ledger knows.
    pub const MAX: Quarter = Quarter { year: i16::MAX, quarter: 4 };

    /// A quarter by its year and number, 1 to 4; `None` outside of what the ledger knows.
    pub fn new(year: u16, quarter: u8) -> Option<Quarter> {
        let is_known = (1970..=9998).contains(&year) && (1..=4).contains(&quarter);
        is_known.then_some(Quarter { year: year as i16, quarter: quarter as i8 })
    }

    /// Its year.
    pub fn year(self) -> u16 {
        self.year as u16
    }

    /// Its number in the year, from 1.
    pub fn number(self) -> u8 {
        self.quarter as u8
    }

    /// The quarter that a moment lies in; moments outside of 1970…9998 are taken as the nearest one inside.
    pub fn of(at_us: i64) -> Quarter {
        let at = JiffTimestamp::from_microsecond(at_us.clamp(0, TIME_US_MAX)).expect("clamped to what jiff represents");
        let date = Offset::UTC.to_datetime(at).date();
        Quarter { year: date.year(), quarter: (date.month() - 1) / 3 + 1 }
    }

    /// The first microsecond of the quarter.
    pub fn start_us(self) -> i64 {
        let first = Date::new(self.year, (self.quarter - 1) * 3 + 1, 1).expect("a quarter starts on a real day");
        first.duration_since(Date::constant(1970, 1, 1)).as_micros() as i64
    }

    /// The first microsecond after the quarter.
    pub fn end_us(self) -> i64 {
        self.next().start_us()
    }

    /// The first microsecond so many years after the quarter's end; none is later than the ledger's last.
    pub fn end_us_after_years(self, years: u16) -> i64 {
        let next = self.next();
        match next.year.checked_add_unsigned(years).filter(|year| *year <= 9998) {
            Some(year) => Quarter { year, quarter: next.quarter }.start_us(),
            None => TIME_US_MAX,
        }
    }

    /// The quarter before this one.
    pub fn previous(self) -> Quarter {
        match self.quarter {
            1 => Quarter { year: self.year - 1, quarter: 4 },
            n => Quarter { year: self.year, quarter: n - 1 },
        }
    }

    /// The quarter after this one.
    pub fn next(self) -> Quarter {
        match self.quarter {
            4 => Quarter { year: self.year + 1, quarter: 1 },
            n => Quarter { year: self.year, quarter: n + 1 },
        }
    }
}

impl fmt::Display for Quarter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-Q{}", self.year, self.quarter)
    }
}

/// A text that is not a quarter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a quarter; write it like 2026-Q1")]
pub struct BadQuarter(String);

impl FromStr for Quarter {
    type Err = BadQuarter;

    fn from_str(text: &str) -> Result<Quarter, BadQuarter> {
        let parse = || {
            let (year, quarter) = text.split_once("-Q")?;
            let year = (year.len() == 4).then(|| year.parse().ok()).flatten().filter(|y| (1970..=9998).contains(y))?;
            let quarter = quarter.parse().ok().filter(|q| (1..=4).contains(q))?;
            Some(Quarter { year, quarter })
        };
        parse().ok_or_else(|| BadQuarter(text.to_owned()))
    }
}

/// A moment for people and JSON: RFC 3339 in UTC with microseconds.
pub fn rfc3339(at_us: i64) -> String {
    match JiffTimestamp::from_microsecond(at_us) {
        Ok(at) => format!("{at:.6}"),
        Err(_) => format!("{at_us} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_start_and_end_where_the_calendar_does() {
        let check = |text: &str, start: &str, end: &str| {
            let q: Quarter = text.parse().unwrap();
            assert_eq!(q.to_string(), text);
            assert_eq!(rfc3339(q.start_us()), start);
            assert_eq!(rfc3339(q.end_us()), end);
            assert_eq!(Quarter::of(q.start_us()), q);
            assert_eq!(Quarter::of(q.end_us() - 1), q);
            assert_eq!(Quarter::of(q.end_us()), q.next());
        };
        check("2026-Q1", "2026-01-01T00:00:00.000000Z", "2026-04-01T00:00:00.000000Z");
        check("2024-Q4", "2024-10-01T00:00:00.000000Z", "2025-01-01T00:00:00.000000Z");
        check("1970-Q1", "1970-01-01T00:00:00.000000Z", "1970-04-01T00:00:00.000000Z");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "2026", "2026-Q0", "2026-Q5", "26-Q1", "2026-q1", "9999-Q1", "+026-Q1"] {
            assert!(text.parse::<Quarter>().is_err(), "{text}");
        }
    }
}
