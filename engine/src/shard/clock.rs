//! The shard's clock: what `claim_timestamp` is taken from, and when it is not believed.
//!
//! A clock that steps back is held at the last entry's time. One that leaps ahead by more than [`MAX_ADVANCE_US`] against
//! CLOCK_BOOTTIME, or at start stands more than [`MAX_DOWNTIME_US`] past the last entry, is suspect: nothing is written
//! until an operator confirms it, because a timestamp once written can never be taken back.
//!
//! Quarters are dropped by more careful rules, because a drop can't be taken back either: not while the last entry's time is held, and
//! not in the first [`PROVEN_AFTER_US`] after a start, in which somebody may see that the clock is wrong. After any start: where a wrong
//! clock has made the last entry, it does not show.

use crate::log::superblock::ClockMode;
use crate::time::{DAY_US, HOUR_US, Now, SECOND_US, rfc3339};

/// `clock.max_advance`.
pub const MAX_ADVANCE_US: i64 = HOUR_US;
/// `clock.max_downtime`.
pub const MAX_DOWNTIME_US: i64 = 90 * DAY_US;
/// `clock.max_regression`.
pub const MAX_REGRESSION_US: i64 = 5 * SECOND_US;
/// So long has a clock to run after a start before anything is dropped by it.
pub const PROVEN_AFTER_US: i64 = DAY_US;

/// See the module.
#[derive(Debug, Clone)]
pub struct ShardClock {
    mode: ClockMode,
    /// Wall minus boot time when the clock was last believed.
    believed_offset_us: i64,
    suspect: Option<String>,
    held_us: i64,
    /// The ledger's last time, when the clock stood far behind it at start.
    regressed_from_us: Option<i64>,
    /// Until this boot time nothing is dropped.
    proven_at_us: i64,
}

impl ShardClock {
    /// A clock that has not been looked at.
    pub fn new(mode: ClockMode) -> ShardClock {
        ShardClock {
            mode,
            believed_offset_us: 0,
            suspect: None,
            held_us: 0,
            regressed_from_us: None,
            proven_at_us: i64::MIN,
        }
    }

    /// Where time comes from.
    pub fn mode(&self) -> ClockMode {
        self.mode
    }

    /// Looks at the clock for the first time; `last_us` is the time of the ledger's last entry.
    pub fn start(&mut self, now: Now, last_us: i64) {
        self.believed_offset_us = now.wall_us - now.boot_us;
        if self.mode == ClockMode::Replay {
            return;
        }
        self.held_us = (last_us - now.wall_us).max(0);
        if self.held_us > MAX_REGRESSION_US {
            tracing::warn!(
                held_us = self.held_us,
                "the clock stands behind the ledger's last entry; timestamps are held, and a barrier is raised"
            );
            self.regressed_from_us = Some(last_us);
        }
        self.proven_at_us = now.boot_us + PROVEN_AFTER_US;
        if now.wall_us - last_us > MAX_DOWNTIME_US {
            self.suspect = Some(format!(
                "the clock says {}, more than 90 days after the ledger's last entry at {}",
                rfc3339(now.wall_us),
                rfc3339(last_us)
            ));
        }
    }

    /// The shard's time: never before `last_us`.
    pub fn time_us(&mut self, now: Now, last_us: i64) -> i64 {
        if self.mode == ClockMode::Replay {
            return last_us;
        }
        let ahead_us = now.wall_us - now.boot_us - self.believed_offset_us;
        if self.suspect.is_none() && ahead_us > MAX_ADVANCE_US {
            self.suspect = Some(format!(
                "the clock leapt ahead by {} s and says {} now",
                ahead_us / SECOND_US,
                rfc3339(now.wall_us)
            ));
        }
        if self.suspect.is_some() {
            return last_us;
        }
        self.held_us = (last_us - now.wall_us).max(0);
        now.wall_us.max(last_us)
    }

    /// The ledger's last time, if the clock stood more than [`MAX_REGRESSION_US`] behind it at start; told once.
    pub fn take_regression(&mut self) -> Option<i64> {
        self.regressed_from_us.take()
    }

    /// Why the clock is not believed.
    pub fn suspect(&self) -> Option<&str> {
        self.suspect.as_deref()
    }

    /// Why nothing is dropped by this clock yet.
    pub fn stands_against_drops(&self, now: Now) -> Option<String> {
        let confirm = "set the clock right, or accept it with `claimctl confirm-clock`";
        if let Some(reason) = &self.suspect {
            return Some(format!("the clock: {reason}; {confirm}"));
        }
        if self.held_us > MAX_REGRESSION_US {
            let ahead_s = self.held_us / SECOND_US;
            return Some(format!("the clock, which is {ahead_s} s behind the ledger's last entry"));
        }
        let left_us = self.proven_at_us.saturating_sub(now.boot_us);
        (left_us > 0).then(|| {
            let from = rfc3339(now.wall_us + left_us);
            format!("the clock, which has to be right for a day after a start, until {from}; {confirm}")
        })
    }

    /// By how much the clock stands behind the last entry.
    pub fn held_us(&self) -> i64 {
        self.held_us
    }

    /// An operator says that the clock is right as it stands.
    pub fn confirm(&mut self, now: Now) {
        self.believed_offset_us = now.wall_us - now.boot_us;
        self.suspect = None;
        self.proven_at_us = i64::MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_700_000_000 * SECOND_US;

    fn now(wall_us: i64, boot_us: i64) -> Now {
        Now { wall_us, boot_us }
    }

    fn started(last_us: i64) -> ShardClock {
        let mut clock = ShardClock::new(ClockMode::Wall);
        clock.start(now(START, 0), last_us);
        clock
    }

    #[test]
    fn a_clock_that_steps_back_is_held() {
        let mut clock = started(START);
        assert_eq!(clock.time_us(now(START + 10, 10), START), START + 10);
        assert_eq!(clock.time_us(now(START - 500, 20), START + 10), START + 10);
        assert_eq!((clock.held_us(), clock.suspect()), (510, None));
    }

    #[test]
    fn a_leap_is_suspect_beyond_an_hour_and_until_it_is_confirmed() {
        for (leap_us, suspect) in [(HOUR_US, false), (HOUR_US + 1, true), (3_650 * DAY_US, true)] {
            let mut clock = started(START);
            let time = clock.time_us(now(START + leap_us + 7, 7), START);
            assert_eq!(clock.suspect().is_some(), suspect, "{leap_us}");
            assert_eq!(time, if suspect { START } else { START + leap_us + 7 });
            clock.confirm(now(START + leap_us + 8, 8));
            assert_eq!(clock.time_us(now(START + leap_us + 9, 9), START), START + leap_us + 9);
        }
    }

    #[test]
    fn leaps_add_up() {
        let mut clock = started(START);
        clock.time_us(now(START + HOUR_US / 2, 0), START);
        assert_eq!(clock.suspect(), None);
        clock.time_us(now(START + HOUR_US + 1, 0), START);
        assert!(clock.suspect().is_some());
    }

    #[test]
    fn time_asleep_is_not_a_leap() {
        let mut clock = started(START);
        clock.time_us(now(START + 100 * DAY_US, 100 * DAY_US), START);
        assert_eq!(clock.suspect(), None);
    }

    #[test]
    fn at_start_ninety_days_of_silence_are_plausible_and_more_are_not() {
        assert_eq!(started(START - MAX_DOWNTIME_US).suspect(), None);
        assert!(started(START - MAX_DOWNTIME_US - 1).suspect().is_some());
        assert_eq!(started(START + 10 * DAY_US).suspect(), None);
        assert_eq!(started(START + 10 * DAY_US).held_us(), 10 * DAY_US);
    }

    #[test]
    fn nothing_is_dropped_by_a_clock_that_is_held_or_has_yet_to_run() {
        let at = |boot_us: i64| now(START + boot_us, boot_us);
        let mut clock = started(START);
        assert!(clock.stands_against_drops(at(PROVEN_AFTER_US - 1)).is_some_and(|why| why.contains("for a day")));
        assert_eq!(clock.stands_against_drops(at(PROVEN_AFTER_US)), None);
        clock.confirm(at(0));
        assert_eq!(clock.stands_against_drops(at(0)), None);
        // Somebody has set a clock right that was ahead.
        clock.time_us(at(0), START + 80 * DAY_US);
        assert!(clock.stands_against_drops(at(0)).is_some_and(|why| why.contains("behind")));
        let suspect = started(START - MAX_DOWNTIME_US - 1);
        assert!(suspect.stands_against_drops(at(2 * DAY_US)).is_some_and(|why| why.contains("confirm-clock")));
    }

    #[test]
    fn at_start_more_than_five_seconds_behind_is_a_regression() {
        assert_eq!(started(START + MAX_REGRESSION_US).take_regression(), None);
        let mut clock = started(START + MAX_REGRESSION_US + 1);
        assert_eq!(clock.take_regression(), Some(START + MAX_REGRESSION_US + 1));
        assert_eq!(clock.take_regression(), None);
    }
}
