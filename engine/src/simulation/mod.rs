//! The simulator: a whole ledger of several shards on simulated disks, under load, with crashes. One seed is one run, and
//! repeats it exactly: `CLAIMD_SIM_SEED=17 cargo test -p claim-engine one_seed -- --nocapture`.

mod asking;
mod carrying;
mod client;
mod cluster;
mod faults;
mod flow_cuts;
mod machine;
mod model;
mod recovery_table;
mod retaining;
mod retries;
mod scanning;
mod transitions;
mod verifying;

use crate::mutant::Mutant;
use cluster::Cluster;

/// Runs of the ordinary test: what the project promises.
const RUNS: u64 = 3_000;
/// Crashes of a run, at least.
const CRASHES_MIN: u64 = 2;
/// Operations of a run, at least.
const OPERATIONS_MIN: u64 = 200;

/// One run. The error says what was violated.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<cluster::Counts, String> {
    let mut cluster = Cluster::new(seed, mutant);
    while cluster.counts.operations < OPERATIONS_MIN || cluster.counts.crashes < CRASHES_MIN {
        cluster.live()?;
        cluster.crash_and_recover()?;
    }
    Ok(cluster.counts)
}

fn threads() -> u64 {
    std::thread::available_parallelism().map_or(2, |n| n.get() as u64)
}

#[test]
fn three_thousand_runs_lose_and_double_nothing() {
    let threads = threads();
    let totals = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let mut total = cluster::Counts::default();
                    for seed in (worker..RUNS).step_by(threads as usize) {
                        match run(seed, None) {
                            Ok(counts) => total.add(&counts),
                            Err(violation) => panic!("seed {seed}: {violation}"),
                        }
                    }
                    total
                })
            })
            .collect();
        workers.into_iter().fold(cluster::Counts::default(), |mut sum, worker| {
            sum.add(&worker.join().expect("a run panicked; its seed is above"));
            sum
        })
    });
    println!("{RUNS} runs: {totals:?}");
    assert!(totals.operations >= RUNS * OPERATIONS_MIN && totals.crashes >= RUNS * CRASHES_MIN);
    // A simulation in which nothing dangerous happens would prove nothing.
    assert!(totals.cuts_with_volatile_writes > RUNS / 2, "{totals:?}");
    assert!(totals.crashes_in_recovery > RUNS / 10, "{totals:?}");
    assert!(totals.kills_before_cut > RUNS / 10, "{totals:?}");
    assert!(totals.lost_unacknowledged > RUNS / 10, "{totals:?}");
    assert!(totals.sealed > RUNS && totals.crashes_amid_sealing > RUNS / 10, "{totals:?}");
}

#[test]
fn one_seed() {
    let seed = std::env::var("CLAIMD_SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    println!("seed {seed}: {:?}", run(seed, None).unwrap());
}

fn is_caught(mutant: Mutant) {
    for seed in 0..2_000 {
        // A panic is a catch, too: the state machine refuses what can't be.
        let result = std::panic::catch_unwind(|| run(seed, Some(mutant)));
        if let Ok(Ok(_)) = result {
            continue;
        }
        println!("{mutant:?} is caught by seed {seed}: {:?}", result.map_err(|_| "a panic"));
        return;
    }
    panic!("{mutant:?} is not caught in 2,000 runs");
}

#[test]
fn acknowledging_before_durable_is_caught() {
    is_caught(Mutant::AckBeforeDurable);
}

#[test]
fn acknowledging_out_of_order_is_caught() {
    is_caught(Mutant::AckOutOfOrder);
}

#[test]
fn requests_that_overtake_are_caught() {
    is_caught(Mutant::OvertakenWhileWaiting);
}

#[test]
fn recovery_without_hash_check_is_caught() {
    is_caught(Mutant::NoHashCheck);
}

#[test]
fn serving_without_the_flush_is_caught() {
    is_caught(Mutant::NoFlushBeforeServing);
}
