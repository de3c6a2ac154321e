//! The deliberate bugs: a kept trace of a daemon with each, in which the checker must find it.
//!
//! Traces are kept because a verdict in CI must not depend on how threads interleave: the trace of a run that showed the bug
//! shows it for ever. A trace is recorded anew when the log's format changes.

use crate::cuts::{cut, mutation_of};
use crate::daemon::Binary;
use crate::load::Weight;
use crate::session::{self, Clock, LeftOvers, Plan};
use crate::trace::Trace;
use crate::years;
use claim_engine::mutant::Mutant;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The name of the trace of a daemon without a bug.
pub const SOUND: &str = "sound";
/// Images of a kept trace that are drawn, at most, until the bug shows.
pub const IMAGES_MAX: u64 = 3_000;
/// The same where years go by: the trace is long, and many of its images are around drops.
const IMAGES_OF_YEARS_MAX: u64 = 1_000;
/// Images of the sound trace.
const SOUND_IMAGES: u64 = 1_500;
/// Recordings that are tried until one shows the bug.
const ATTEMPTS: u64 = 40;

/// The bugs that a power cut must bring out, each with a session in which it can.
pub const MUTANTS: [(Mutant, Plan); 16] = [
    (Mutant::AckBeforeDurable, PLAN),
    (Mutant::AckOutOfOrder, PLAN),
    (Mutant::NoDsync, PLAN),
    (Mutant::OneDsyncCoversEarlier, PLAN),
    (Mutant::HashOfHeaderOnly, PLAN),
    (Mutant::ReuseOfAckedBlock, Plan { weight: FEW, ..PLAN }),
    (Mutant::ReplayPastHole, PLAN),
    (Mutant::NoIncarnation, PLAN),
    (Mutant::NoFlushBeforeServing, Plan { runs: 8, run_ms_max: 6, ..PLAN }),
    (Mutant::SegmentBeforeZeroed, Plan { weight: LARGE, run_ms_max: 60, ..PLAN }),
    (Mutant::NoKey, Plan { left_overs: LeftOvers::EarlierLedger, ..PLAN }),
    (Mutant::FreeBeforeSealed, YEARS),
    (Mutant::FreeBeforeNamed, YEARS),
    (Mutant::DropWithoutCarry, YEARS),
    (Mutant::PlaceTakenEarly, FULL_RING),
    (Mutant::PlaceUnzeroed, RING),
];

const FEW: Weight = Weight { connections: 1, large_percent: 0, metadata_bytes_max: 200, pause_us: 0 };
const LARGE: Weight = Weight { connections: 2, large_percent: 30, metadata_bytes_max: 60_000, pause_us: 0 };
const PLAN: Plan = Plan {
    seed: 0,
    runs: 2,
    run_ms_max: 12,
    delay_us_max: 1_500,
    weight: Weight { connections: 2, large_percent: 0, metadata_bytes_max: 200, pause_us: 0 },
    left_overs: LeftOvers::None,
    clock: Clock::Wall,
    ring_segments: 0,
};
const YEARS: Plan = Plan { runs: 4, weight: Weight::SLOW, clock: Clock::Years { archives: false }, ..PLAN };
const RING: Plan = Plan { ring_segments: years::RING_SEGMENTS, ..YEARS };
/// Its places are used up before anything is dropped.
const FULL_RING: Plan = Plan { ring_segments: 10, ..YEARS };

/// How a trace fared.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The bug, or `sound`.
    pub name: String,
    /// Whether something was found.
    pub is_caught: bool,
    /// Images until then, or in all.
    pub images: u64,
    /// What was found.
    pub what: String,
}

/// Judges a trace.
pub fn judge(name: &str, trace: &Trace) -> Verdict {
    let verdict = |is_caught, images, what| Verdict { name: name.to_owned(), is_caught, images, what };
    let has_years = MUTANTS.iter().any(|(mutant, plan)| mutant.name() == name && plan.clock != Clock::Wall);
    let images = match name {
        SOUND => SOUND_IMAGES,
        _ if has_years => IMAGES_OF_YEARS_MAX,
        _ => IMAGES_MAX,
    };
    match cut(trace, images, mutation_of(trace), |_| {}) {
        Ok((_, Some(violation))) => verdict(true, violation.images, violation.what),
        Ok((counts, None)) => verdict(false, counts.images, String::new()),
        Err(error) => verdict(false, 0, error),
    }
}

/// Judges every kept trace of a folder, on all cores. The error says which is missing, or judged wrongly.
pub fn judge_all(traces: &Path, told: impl FnMut(&Verdict) + Send) -> Result<(), String> {
    let names: Vec<_> = MUTANTS.iter().map(|(mutant, _)| mutant.name()).chain([SOUND]).collect();
    let next = AtomicUsize::new(0);
    let (told, wrong) = (Mutex::new(told), Mutex::new(Vec::new()));
    let judge_next = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let judged = judge_kept(traces, name).and_then(|verdict| {
                (told.lock().expect("no panic"))(&verdict);
                let is_right = verdict.is_caught != (*name == SOUND);
                if is_right { Ok(()) } else { Err(format!("{name}: caught {}: {}", verdict.is_caught, verdict.what)) }
            });
            wrong.lock().expect("no panic").extend(judged.err());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(judge_next);
        }
    });
    let wrong = wrong.into_inner().expect("no panic");
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn judge_kept(traces: &Path, name: &str) -> Result<Verdict, String> {
    let path = path_of(traces, name);
    let trace = Trace::load(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    if trace.mutant.as_deref().unwrap_or(SOUND) != name {
        return Err(format!("{} is a trace of {:?}", path.display(), trace.mutant));
    }
    Ok(judge(name, &trace))
}

/// Records a trace that shows a bug, or one that shows none, with a `claimd` that was built with the feature `mutants`.
pub fn record(claimd: &Path, mutant: Option<(Mutant, Plan)>, traces: &Path, scratch: &Path) -> Result<Verdict, String> {
    let (name, plan) = mutant.map_or((SOUND, PLAN), |(mutant, plan)| (mutant.name(), plan));
    let mut why = String::new();
    for seed in 1..=ATTEMPTS {
        let binary = Binary {
            claimd: claimd.to_owned(),
            arguments: session::arguments(plan.clock),
            mutant: mutant.map(|(mutant, _)| mutant.name()),
        };
        // A daemon with a bug may fail by itself: the next seed may not.
        let trace = match session::record(&binary, &Plan { seed, ..plan }, scratch) {
            Ok(trace) => trace,
            Err((message, trace)) if !trace.files.is_empty() && mutant.is_some() => {
                why = message;
                trace
            }
            Err((message, _)) => {
                why = message;
                continue;
            }
        };
        let verdict = judge(name, &trace);
        if verdict.is_caught == mutant.is_some() {
            let path = path_of(traces, name);
            trace.save(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            return Ok(verdict);
        }
    }
    Err(format!("{name}: no session of {ATTEMPTS} shows it {why}"))
}

fn path_of(traces: &Path, name: &str) -> PathBuf {
    traces.join(format!("{name}.trace.gz"))
}
