//! How fast writes become durable here, and by which way of asking for it.

use super::check::Check;
use claim_engine::device::DeviceError;
use claim_engine::device::probe::{self, Bounds, FlushMode, Measured, Trial};
use claim_engine::device::scratch::{Caching, Extents, Scratch};
use std::path::Path;
use std::time::Duration;

/// A segment's size, so that the device sees the range of addresses that it will see from a ledger.
const SCRATCH_BYTES: u64 = 64 << 20;

/// Each trial is measured in this many rounds, all trials in turn, so that a passing disturbance does not hit one alone.
const ROUNDS: u32 = 2;

/// Bounds of one round of one trial.
const BOUNDS: Bounds = Bounds { ops_max: 20_000, time_max: Duration::from_millis(150) };

/// The mode that a ledger is written with.
const LEDGER_MODE: FlushMode = FlushMode::FileDsync;

/// A median within this share of the best one is no difference on any machine that does something else, too.
const NOTABLE_SHARE: f64 = 0.10;

/// One line per trial, and one that says which mode is best.
pub(super) fn writes(directory: &Path, direct: bool) -> Vec<Check> {
    let name = "durable writes";
    match measure(directory, if direct { Caching::Direct } else { Caching::PageCache }) {
        Ok(measured) => {
            let mut checks: Vec<Check> = measured.iter().map(|one| Check::ok(name, row(one))).collect();
            checks.push(verdict(&measured));
            checks
        }
        Err(error) => {
            let mend = "give claimd a directory that it may write to, with 64 MiB free, on a device that works";
            vec![Check::fail(name, error.to_string(), mend.to_owned())]
        }
    }
}

fn measure(directory: &Path, caching: Caching) -> Result<Vec<Measured>, DeviceError> {
    let scratch = Scratch::create(directory, SCRATCH_BYTES, Extents::Written, caching)?;
    let mut all: Vec<Measured> = Vec::new();
    for round in 0..ROUNDS {
        for (index, trial) in trials().into_iter().enumerate() {
            let measured = probe::measure(&scratch, trial, BOUNDS)?;
            if round == 0 {
                all.push(measured);
            } else {
                all[index].merge(measured);
            }
        }
    }
    Ok(all)
}

/// Small and large batches, alone and as many at once as the log keeps in flight, in every mode.
fn trials() -> Vec<Trial> {
    let shapes = [(4096, 1), (4096, 4), (65536, 1), (65536, 4)];
    let trial =
        |(block_bytes, in_flight)| FlushMode::ALL.map(|mode| Trial { mode, block_bytes, in_flight, every: None });
    shapes.into_iter().flat_map(trial).collect()
}

fn row(measured: &Measured) -> String {
    let Trial { mode, block_bytes, in_flight, .. } = measured.trial;
    format!(
        "{mode:<15} {:>2} KiB, {in_flight} in flight: {:>6.0}/s, p50 {:.0} µs, p99 {:.0} µs, max {:.0} µs",
        block_bytes / 1024,
        measured.ops_per_second(),
        measured.p50_us(),
        measured.p99_us(),
        measured.max_us()
    )
}

/// Compares the modes where it matters most: one small batch at a time.
fn verdict(measured: &[Measured]) -> Check {
    let name = "flush mode";
    let mut small: Vec<&Measured> =
        measured.iter().filter(|one| one.trial.block_bytes == 4096 && one.trial.in_flight == 1).collect();
    small.sort_by_key(|one| one.quantile_ns(0.5));
    let (Some(best), Some(ledger)) = (small.first(), small.iter().find(|one| one.trial.mode == LEDGER_MODE)) else {
        return Check::warn(name, "nothing was measured".to_owned());
    };
    let figures =
        |one: &Measured| format!("{} at p50 {:.0} µs, p99 {:.0} µs", one.trial.mode, one.p50_us(), one.p99_us());
    if ledger.trial.mode == best.trial.mode {
        let other = small.iter().find(|one| one.trial.mode == FlushMode::LinkedFdatasync);
        let other = other.map_or(String::new(), |other| format!("; {}", figures(other)));
        return Check::ok(name, format!("best is {}, which claimd uses{other}", figures(ledger)));
    }
    if best.trial.mode == FlushMode::WriteDsync {
        let found = format!("best is {}, the kernel's same path as claimd's {}", figures(best), figures(ledger));
        return Check::ok(name, found);
    }
    if ledger.p50_us() <= best.p50_us() * (1.0 + NOTABLE_SHARE) {
        let found = format!("claimd uses {}; the best is no better than noise, {}", figures(ledger), figures(best));
        return Check::ok(name, found);
    }
    let found = format!("best is {}; claimd uses {}", figures(best), figures(ledger));
    Check::warn(name, found).with_mend("run it again on a quiet machine: the mode is fixed, and such a lead is rare")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_meets_every_shape() {
        let trials = trials();
        assert_eq!(trials.len(), 12);
        for mode in FlushMode::ALL {
            assert_eq!(trials.iter().filter(|trial| trial.mode == mode).count(), 4);
        }
    }

    #[test]
    fn without_measurements_nothing_is_claimed() {
        assert!(!verdict(&[]).is_failure());
    }

    #[test]
    fn a_directory_that_cannot_be_written_fails_with_a_cure() {
        let checks = writes(Path::new("/proc"), true);
        assert!(checks.iter().any(Check::is_failure), "{checks:?}");
    }
}
