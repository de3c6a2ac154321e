//! Whether a run's figures count: the rows are printed all the same, and the exit code says it.

use crate::error::BenchError;
use crate::outcome::Figures;
use crate::record::RowSetting;

/// What is wrong with the rows so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    errors: u64,
    failed_rows: usize,
}

impl Verdict {
    /// Counts a row in, and says what makes it doubtful.
    pub fn add(&mut self, setting: &RowSetting, figures: &Figures) {
        self.errors += figures.errors;
        self.failed_rows += usize::from(figures.failed);
        for line in figures.warnings() {
            eprintln!("{}: {line}", setting.label());
        }
    }

    /// An error when any request was refused or any row failed.
    pub fn result(&self) -> Result<(), BenchError> {
        match *self {
            Verdict { errors: 0, failed_rows: 0 } => Ok(()),
            Verdict { errors: 0, failed_rows } => Err(BenchError::RateMissed { rows: failed_rows }),
            Verdict { errors, .. } => Err(BenchError::Errors { errors }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Tally;
    use std::time::Duration;

    #[test]
    fn a_run_fails_by_its_refusals_and_by_its_rate() {
        let second = Duration::from_secs(1);
        let setting = RowSetting::closed("claims", 1, 8);
        let verdict = |rate, refused: u64| {
            let mut tally = Tally::new(second);
            (0..refused).for_each(|_| tally.refused("OVERLOADED"));
            let mut verdict = Verdict::default();
            verdict.add(&setting, &Figures::new(8, rate, tally, second));
            verdict.result().err().map(|error| error.to_string())
        };
        assert_eq!(verdict(None, 0), None);
        assert!(verdict(Some(5.0), 0).is_some_and(|error| error.starts_with("1 of the rows FAILED")));
        assert!(verdict(Some(5.0), 3).is_some_and(|error| error.starts_with("3 requests or items were refused")));
    }
}
