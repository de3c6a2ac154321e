//! The model test: random sequences of all operations, with crashes in between and amid them, against a model that says as
//! plainly as it can what must come of each. After every step the answer and the whole visible state of every shard are
//! compared with it.
//!
//! `MODEL_SEED=17 cargo test -p claim-engine one_model_seed -- --nocapture` repeats a run; `MODEL_STEPS` is how many steps
//! all runs of the test take together.

mod compare;
mod load;
mod racing;
mod reference;
mod run;
mod words;

use crate::mutant::Mutant;
use racing::Tally as Races;
use run::{Run, Tally};

/// Steps of the ordinary test, in all.
const STEPS: u64 = 70_000;
/// Steps of a run.
const STEPS_OF_A_RUN: u64 = 400;

/// What must have happened: an operation, or what follows from one, with what came of it.
const WANTED: &[&str] = &[
    "50 %",
    "80 %",
    "a crash amid what began by itself",
    "a crash before that",
    "a crash behind the answer",
    "a deferred dispute moves on",
    "a dispute is decided",
    "a dispute is dismissed",
    "a pass runs by itself",
    "a retry is answered",
    "a slot increase is signed",
    "an alias of an alias is followed",
    "an effect is lost in a crash before its answer",
    "an effect outlives a crash before its answer",
    "arbitrate: BadTransition",
    "arbitrate: Forbidden",
    "arbitrate: KeyExpired",
    "arbitrate: NotVisible",
    "arbitrate: done",
    "barrier: Forbidden",
    "barrier: KeyExpired",
    "barrier: done",
    "cap: Forbidden",
    "cap: KeyExpired",
    "cap: done",
    "claim-batch: Decommissioned",
    "claim-batch: Forbidden",
    "claim-batch: Frozen",
    "claim-batch: KeyExpired",
    "claim-batch: KeyReused",
    "claim-batch: Throttled",
    "claim-batch: done",
    "claim-unless: AlreadyRegistered",
    "claim-unless: Decommissioned",
    "claim-unless: Forbidden",
    "claim-unless: Frozen",
    "claim-unless: KeyExpired",
    "claim-unless: KeyReused",
    "claim-unless: Throttled",
    "claim-unless: done",
    "claim: ClockSuspect",
    "claim: Decommissioned",
    "claim: Forbidden",
    "claim: Frozen",
    "claim: KeyExpired",
    "claim: KeyReused",
    "claim: Throttled",
    "claim: done",
    "configuration: Forbidden",
    "configuration: done",
    "configure: done",
    "confirm-clock: Forbidden",
    "confirm-clock: KeyExpired",
    "confirm-clock: done",
    "corpora: Forbidden",
    "corpora: done",
    "correlated: Forbidden",
    "correlated: done",
    "decommission-dry-run: Decommissioned",
    "decommission-dry-run: Forbidden",
    "decommission-dry-run: done",
    "decommission: Forbidden",
    "decommission: done",
    "dispute-lookup: Forbidden",
    "dispute-lookup: NotVisible",
    "dispute-lookup: done",
    "dispute: BadTransition",
    "dispute: Expired",
    "dispute: Forbidden",
    "dispute: Frozen",
    "dispute: KeyExpired",
    "dispute: NotVisible",
    "dispute: done",
    "disputes: Forbidden",
    "disputes: done",
    "escalate: BadTransition",
    "escalate: Forbidden",
    "escalate: KeyExpired",
    "escalate: NotVisible",
    "escalate: done",
    "find: Forbidden",
    "find: done",
    "freeze: Forbidden",
    "freeze: KeyExpired",
    "freeze: done",
    "history: Forbidden",
    "history: NotVisible",
    "history: done",
    "incident: Forbidden",
    "incident: KeyExpired",
    "incident: done",
    "lookup: Forbidden",
    "lookup: NotVisible",
    "lookup: done",
    "onboard: AlreadyRegistered",
    "onboard: Forbidden",
    "onboard: KeyExpired",
    "onboard: KeyReused",
    "onboard: done",
    "proposals: Forbidden",
    "proposals: done",
    "propose: Forbidden",
    "propose: KeyExpired",
    "propose: done",
    "reactivate: BadTransition",
    "reactivate: Expired",
    "reactivate: Forbidden",
    "reactivate: Frozen",
    "reactivate: KeyExpired",
    "reactivate: NotVisible",
    "reactivate: done",
    "read-all: Forbidden",
    "read-all: done",
    "reconcile-dry-run: Forbidden",
    "reconcile-dry-run: done",
    "reconcile: Forbidden",
    "reconcile: KeyExpired",
    "reconcile: done",
    "reference-batch: BadTransition",
    "reference-batch: Decommissioned",
    "reference-batch: Expired",
    "reference-batch: Forbidden",
    "reference-batch: Frozen",
    "reference-batch: KeyExpired",
    "reference-batch: NotVisible",
    "reference-batch: done",
    "reference: BadTransition",
    "reference: Decommissioned",
    "reference: Expired",
    "reference: Forbidden",
    "reference: Frozen",
    "reference: KeyExpired",
    "reference: NotVisible",
    "reference: done",
    "respond: BadTransition",
    "respond: Forbidden",
    "respond: Frozen",
    "respond: KeyExpired",
    "respond: NotVisible",
    "respond: done",
    "retract: BadTransition",
    "retract: Expired",
    "retract: Forbidden",
    "retract: Frozen",
    "retract: KeyExpired",
    "retract: KeyReused",
    "retract: NotVisible",
    "retract: done",
    "rows are merged",
    "scan: Forbidden",
    "scan: done",
    "sign-off: BadTransition",
    "sign-off: Forbidden",
    "sign-off: KeyExpired",
    "sign-off: NotVisible",
    "sign-off: done",
    "status: Forbidden",
    "status: done",
    "totals: Forbidden",
    "totals: done",
    "unfreeze: BadTransition",
    "unfreeze: Forbidden",
    "unfreeze: KeyExpired",
    "unfreeze: done",
    "usage: Forbidden",
    "usage: done",
];

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// One run. The error says what differs.
fn run(seed: u64, mutant: Option<Mutant>, tally: &mut Tally) -> Result<(), String> {
    let mut run = Run::new(seed, mutant)?;
    let result = (0..STEPS_OF_A_RUN).try_for_each(|_| run.step());
    tally.add(&run.tally);
    result
        .map_err(|difference| format!("after {} steps, the last being\n{}\n{difference}", run.tally.steps, run.story()))
}

#[test]
fn the_engine_does_what_the_model_says() {
    let runs = number_of("MODEL_STEPS").unwrap_or(STEPS).div_ceil(STEPS_OF_A_RUN);
    let first = number_of("MODEL_SEED").unwrap_or(0);
    let threads = super::threads();
    let tally = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    for seed in (first + worker..first + runs).step_by(threads as usize) {
                        if let Err(difference) = run(seed, None, &mut tally) {
                            panic!("MODEL_SEED={seed} {difference}");
                        }
                    }
                    tally
                })
            })
            .collect();
        workers.into_iter().fold(Tally::default(), |mut sum, worker| {
            sum.add(&worker.join().expect("a run failed; its seed is above"));
            sum
        })
    });
    println!("{} steps in {runs} runs, {} crashes", tally.steps, tally.crashes);
    for (what, count) in &tally.happened {
        println!("{count:9} {what}");
    }
    let missing: Vec<_> = WANTED.iter().filter(|what| !tally.happened.contains_key(**what)).collect();
    assert!(missing.is_empty(), "a test in which these never happen proves little: {missing:?}");
}

#[test]
fn one_model_seed() {
    let seed = number_of("MODEL_SEED").unwrap_or(0);
    let mut tally = Tally::default();
    if let Err(difference) = run(seed, None, &mut tally) {
        panic!("MODEL_SEED={seed} {difference}");
    }
    println!("{tally:?}");
}

/// Runs of races.
const RACES: u64 = 2_000;

#[test]
fn what_races_ends_in_a_legal_outcome() {
    let first = number_of("MODEL_SEED").unwrap_or(0);
    let mut races = Races::default();
    for seed in first..first + RACES {
        if let Err(violation) = racing::run(seed, None, &mut races) {
            panic!("MODEL_SEED={seed} {violation}");
        }
    }
    println!("{races:#?}");
}

/// Runs in which a deliberate bug must be caught.
const RUNS_OF_A_MUTANT: u64 = 3_000;

/// Says where a deliberate bug is caught: by an answer or a state that differs, by an illegal outcome, or by a panic.
fn is_caught(mutant: Mutant, run: impl Fn(u64) -> Result<u64, (u64, String)> + std::panic::RefUnwindSafe) {
    let mut steps = 0;
    for seed in 0..RUNS_OF_A_MUTANT {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(Ok(took)) => steps += took,
            Ok(Err((took, how))) => {
                let how: String = how.lines().rev().take(3).collect::<Vec<_>>().join(" / ");
                println!("{mutant:?} is caught by seed {seed} after {} steps: {how}", steps + took);
                return;
            }
            Err(_) => {
                println!("{mutant:?} is caught by seed {seed} after {steps} steps: a panic");
                return;
            }
        }
    }
    panic!("{mutant:?} is not caught in {steps} steps");
}

fn is_caught_by_the_model(mutant: Mutant) {
    is_caught(mutant, |seed| {
        let mut tally = Tally::default();
        let result = run(seed, Some(mutant), &mut tally);
        result.map(|()| tally.steps).map_err(|how| (tally.steps, how))
    });
}

fn is_caught_by_races(mutant: Mutant) {
    is_caught(mutant, |seed| {
        let mut races = Races::default();
        let result = racing::run(seed, Some(mutant), &mut races);
        result.map(|()| races.rounds).map_err(|how| (races.rounds, how))
    });
}

#[test]
fn void_disputes_that_leave_rows_flagged_are_caught() {
    is_caught_by_the_model(Mutant::VoidLeavesRowsFlagged);
}

#[test]
fn aliases_followed_once_are_caught() {
    is_caught_by_the_model(Mutant::AliasFollowedOnce);
}

#[test]
fn merges_without_a_check_are_caught() {
    is_caught_by_races(Mutant::MergeWithoutCheck);
}

#[test]
fn conditional_claims_without_a_reservation_are_caught() {
    is_caught_by_races(Mutant::ClaimWithoutReservation);
}
