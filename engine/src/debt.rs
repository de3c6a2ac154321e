//! Overload: what a shard has accepted and not answered, and what it refuses when that is too much.

/// Bounds of what a shard accepts before it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebtBounds {
    /// Requests.
    pub requests: u64,
    /// Bytes that they add to the log.
    pub bytes: u64,
}

impl Default for DebtBounds {
    fn default() -> DebtBounds {
        DebtBounds { requests: 16_384, bytes: 64 << 20 }
    }
}

/// How near the debt is to its bound. Entered at a quarter, a half, three quarters; left at half of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Everything is served.
    #[default]
    Green,
    /// Disputes are deferred, background work pauses.
    Yellow,
    /// Scans and references are refused, too.
    Orange,
    /// Lookups and new claims are refused, too.
    Red,
}

impl Level {
    const RISING: [Level; 3] = [Level::Yellow, Level::Orange, Level::Red];
}

/// See the module.
#[derive(Debug, Default)]
pub struct Debt {
    bounds: DebtBounds,
    requests: u64,
    bytes: u64,
    level: Level,
}

impl Debt {
    /// No debt yet.
    pub fn new(bounds: DebtBounds) -> Debt {
        Debt { bounds, ..Debt::default() }
    }

    /// Requests accepted and not answered.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Bytes that they add to the log.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether nothing more is accepted, whatever it is.
    pub fn is_full(&self) -> bool {
        self.requests >= self.bounds.requests || self.bytes >= self.bounds.bytes
    }

    /// A request is accepted.
    pub fn accept(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
        for (n, level) in Level::RISING.into_iter().enumerate() {
            if self.level < level && self.reaches(2 * (n as u64 + 1)) {
                self.level = level;
            }
        }
    }

    /// A request is answered.
    pub fn answer(&mut self, bytes: u64) {
        self.requests -= 1;
        self.bytes -= bytes;
        if self.level == Level::Green {
            return;
        }
        for (n, level) in Level::RISING.into_iter().enumerate().rev() {
            if self.level == level && !self.reaches(n as u64 + 1) {
                self.level = if n == 0 { Level::Green } else { Level::RISING[n - 1] };
            }
        }
    }

    /// Whether there are so many eighths of what is accepted. The nearest to its bound counts.
    fn reaches(&self, eighths: u64) -> bool {
        self.requests * 8 >= self.bounds.requests * eighths || self.bytes * 8 >= self.bounds.bytes * eighths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_entered_at_quarters_and_left_at_half_of_that() {
        let mut debt = Debt::new(DebtBounds { requests: 80, bytes: 1_000_000 });
        let mut seen = Vec::new();
        let mut note = |debt: &Debt| {
            if seen.last().is_none_or(|(_, level)| *level != debt.level()) {
                seen.push((debt.requests(), debt.level()));
            }
        };
        for _ in 0..70 {
            debt.accept(1);
            note(&debt);
        }
        for _ in 0..70 {
            debt.answer(1);
            note(&debt);
        }
        use Level::{Green, Orange, Red, Yellow};
        assert_eq!(seen, [(1, Green), (20, Yellow), (40, Orange), (60, Red), (29, Orange), (19, Yellow), (9, Green)]);
    }

    #[test]
    fn bytes_count_as_requests_do() {
        let mut debt = Debt::new(DebtBounds { requests: 80, bytes: 1_000 });
        debt.accept(760);
        assert_eq!((debt.level(), debt.is_full()), (Level::Red, false));
        debt.accept(300);
        assert!(debt.is_full());
        debt.answer(760);
        debt.answer(300);
        assert_eq!((debt.level(), debt.bytes()), (Level::Green, 0));
    }
}
