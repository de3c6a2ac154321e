//! When the requests of an open loop are due: at even distances, whatever became of those before.

use std::time::{Duration, Instant};

/// A rate, and how much of it was used up.
#[derive(Debug, Clone)]
pub struct Pace {
    per_second: f64,
    begun: Instant,
    taken: u64,
}

impl Pace {
    /// From `begun` on, `per_second` (more than 0) requests a second; the first is due at once.
    pub fn new(per_second: f64, begun: Instant) -> Self {
        assert!(per_second > 0.0, "{per_second} requests a second");
        Pace { per_second, begun, taken: 0 }
    }

    /// When the next request is due.
    pub fn next_due(&self) -> Instant {
        self.begun + offset(self.per_second, self.taken)
    }

    /// Takes the next request, if it is due by `now`: the moment at which it was to be sent.
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due();
        (due <= now).then(|| {
            self.taken += 1;
            due
        })
    }

    /// Requests due before `moment` that nobody has taken.
    pub fn untaken_before(&self, moment: Instant) -> u64 {
        let due = (moment.saturating_duration_since(self.begun).as_secs_f64() * self.per_second).ceil() as u64;
        due.saturating_sub(self.taken)
    }
}

/// The last moment of a time that ends with `end`: what is due at its end is no part of it.
pub fn last_before(end: Instant) -> Instant {
    end - Duration::from_nanos(1)
}

/// When the request of this number is due. Reckoned from the start, so that nothing adds up.
fn offset(per_second: f64, number: u64) -> Duration {
    Duration::from_secs_f64(number as f64 / per_second)
}

/// A rate from the command line.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=10_000_000.0).contains(&rate) => Ok(rate),
        _ => Err(format!("{text:?} is no rate from 0.1 to 10000000 a second")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_even_distances_from_the_start() {
        let begun = Instant::now();
        let mut pace = Pace::new(4.0, begun);
        assert_eq!(pace.take(begun), Some(begun));
        assert_eq!(pace.take(begun), None);
        assert_eq!(pace.next_due(), begun + Duration::from_millis(250));
        // A generator that was away finds all that became due meanwhile, each with its own moment.
        let later = begun + Duration::from_secs(1);
        let caught_up: Vec<Instant> = std::iter::from_fn(|| pace.take(later)).collect();
        let expected = [250, 500, 750, 1000].map(|ms| begun + Duration::from_millis(ms));
        assert_eq!(caught_up, expected);
    }

    #[test]
    fn a_rate_does_not_drift() {
        assert_eq!(offset(3.0, 3 * 3600), Duration::from_secs(3600));
        assert_eq!(offset(0.5, 4), Duration::from_secs(8));
    }

    #[test]
    fn what_was_not_taken_is_counted() {
        let begun = Instant::now();
        let mut pace = Pace::new(10.0, begun);
        let moment = begun + Duration::from_secs(1);
        assert_eq!(pace.untaken_before(moment), 10);
        while pace.take(begun + Duration::from_millis(350)).is_some() {}
        assert_eq!(pace.untaken_before(moment), 6);
        while pace.take(last_before(moment)).is_some() {}
        assert_eq!((pace.untaken_before(moment), pace.next_due()), (0, moment));
        assert_eq!(pace.untaken_before(begun), 0);
    }

    #[test]
    fn rates_are_read_strictly() {
        assert_eq!(rate("2000"), Ok(2000.0));
        assert_eq!(rate("0.5"), Ok(0.5));
        assert!(["0", "-1", "NaN", "inf", "fast"].iter().all(|text| rate(text).is_err()));
    }
}
