//! How a corpus uses its slots: the claims of the present minute, for its cap, and of the last hours, for its alarms.

use crate::log::entry::AlarmKind;
use crate::time::{DAY_US, HOUR_US, Quarter, SECOND_US};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A minute, which caps count by.
pub const MINUTE_US: i64 = 60 * SECOND_US;
/// Hours that a corpus's rate is compared with.
const HISTORY_HOURS: i64 = 28 * 24;
/// Hours for which the rate stays high before the early alarm.
const HIGH_HOURS: i64 = 3;
/// A corpus whose past is shorter has no usual rate yet.
const HISTORY_HOURS_MIN: i64 = 7 * 24;

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Budget {
    minute: i64,
    minute_claims: u32,
    /// Hours with claims, and how many; the oldest first.
    hours: VecDeque<(i64, u32)>,
    first_hour: Option<i64>,
    /// The last hour at whose beginning the rate was looked at.
    looked_at: i64,
    alarms: Option<(Quarter, u8)>,
}

impl Budget {
    /// Counts a claim.
    pub fn claimed(&mut self, at_us: i64) {
        let minute = at_us / MINUTE_US;
        if minute != self.minute {
            (self.minute, self.minute_claims) = (minute, 0);
        }
        self.minute_claims = self.minute_claims.saturating_add(1);
        let hour = at_us / HOUR_US;
        match self.hours.back_mut() {
            Some((last, count)) if *last == hour => *count = count.saturating_add(1),
            _ => {
                self.hours.push_back((hour, 1));
                self.first_hour.get_or_insert(hour);
                while self.hours.front().is_some_and(|(first, _)| *first < hour - HISTORY_HOURS - HIGH_HOURS) {
                    self.hours.pop_front();
                }
            }
        }
    }

    /// Claims in the minute of a moment.
    pub fn in_minute(&self, at_us: i64) -> u32 {
        if at_us / MINUTE_US == self.minute { self.minute_claims } else { 0 }
    }

    /// Records an alarm.
    pub fn raised(&mut self, kind: AlarmKind, quarter: Quarter) {
        let raised = self.alarms.filter(|(q, _)| *q == quarter).map_or(0, |(_, raised)| raised);
        self.alarms = Some((quarter, raised | 1 << kind as u8));
    }

    /// Whether an alarm was raised in a quarter.
    pub fn is_raised(&self, kind: AlarmKind, quarter: Quarter) -> bool {
        self.alarms.is_some_and(|(q, raised)| q == quarter && raised & (1 << kind as u8) != 0)
    }

    /// Whether the hour of a moment is one at whose beginning the rate has not been looked at.
    pub fn is_new_hour(&self, at_us: i64) -> bool {
        at_us / HOUR_US > self.looked_at
    }

    /// Whether the last three full hours were each above the 75th percentile of the 28 days before them, and the quarter at
    /// that rate ends above half of its slots. Looks once an hour.
    pub fn is_early(&mut self, at_us: i64, claims: u64, slots: u64, quarter_end_us: i64) -> bool {
        let hour = at_us / HOUR_US;
        self.looked_at = hour;
        let Some(first_hour) = self.first_hour else { return false };
        let past_end = hour - HIGH_HOURS;
        let past_start = first_hour.max(past_end - HISTORY_HOURS);
        if past_end - past_start < HISTORY_HOURS_MIN {
            return false;
        }
        let mut past: Vec<u32> =
            self.hours.iter().filter(|(h, _)| (past_start..past_end).contains(h)).map(|(_, count)| *count).collect();
        // Hours without claims count, too.
        past.resize((past_end - past_start) as usize, 0);
        let rank = past.len() * 3 / 4;
        let (_, percentile, _) = past.select_nth_unstable(rank);
        let percentile = *percentile;
        let mut lowest = u32::MAX;
        for high in past_end..hour {
            let count = self.hours.iter().rev().find(|(h, _)| *h == high).map_or(0, |(_, count)| *count);
            lowest = lowest.min(count);
        }
        let hours_left = (quarter_end_us - at_us).clamp(0, 93 * DAY_US) as u64 / HOUR_US as u64;
        lowest > percentile && (claims + u64::from(lowest) * hours_left).saturating_mul(2) > slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_US: i64 = 1_767_225_600_000_000; // 2026-01-01

    fn fill(budget: &mut Budget, hours: std::ops::Range<i64>, claims: u32) {
        for hour in hours {
            for n in 0..claims {
                budget.claimed(START_US + hour * HOUR_US + i64::from(n));
            }
        }
    }

    #[test]
    fn three_unusual_hours_that_lead_above_half_are_early() {
        let end_us = Quarter::of(START_US).end_us();
        let early = |usual: u32, high: u32, slots: u64, high_hours: i64| {
            let mut budget = Budget::default();
            fill(&mut budget, 0..240, usual);
            fill(&mut budget, 240..240 + high_hours, high);
            let at_us = START_US + (240 + high_hours) * HOUR_US;
            budget.is_early(at_us, 240 * u64::from(usual), slots, end_us)
        };
        assert!(early(2, 20, 50_000, 3));
        assert!(!early(2, 20, 50_000, 2), "two hours are not three");
        assert!(!early(20, 20, 50_000, 3), "the usual rate is not unusual");
        assert!(!early(2, 3, 500_000, 3), "the quarter ends far below half");
    }

    #[test]
    fn a_young_corpus_has_no_usual_rate() {
        let mut budget = Budget::default();
        fill(&mut budget, 0..3, 1_000);
        assert!(!budget.is_early(START_US + 3 * HOUR_US, 3_000, 5_000, Quarter::of(START_US).end_us()));
    }

    #[test]
    fn a_minute_ends() {
        let mut budget = Budget::default();
        budget.claimed(START_US);
        budget.claimed(START_US + MINUTE_US - 1);
        assert_eq!(budget.in_minute(START_US + 5), 2);
        assert_eq!(budget.in_minute(START_US + MINUTE_US), 0);
    }
}
