//! The same years in a log that goes round on a device: what a place holds of the lap before is never taken for the log, and a place
//! is taken again only once nothing needs what it held. An archive of it is a file, in which nothing goes round.

use super::checks::TICKS_MIN;
use super::{Counts, FULL, START_US, YEARS, Years, is_caught_by, over_seeds};
use crate::command::{Operation, Outcome};
use crate::log::layout::{Geometry, RING_SEGMENTS_MIN};
use crate::mutant::Mutant;
use crate::time::{DAY_US, Quarter};

/// A request leaves a few segments of this size for what drops a quarter.
const GEOMETRY: Geometry = Geometry { segment_bytes: 256 << 10, batch_bytes_max: 16 << 10, ring_segments: 0 };
const QUARTERS: u64 = 24;
const RUNS: u64 = 12;
/// Claims that fill some segments.
const FIRST_CLAIMS: u64 = 150;

/// Every seed has a ring of another size, some of which are full at times.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<Counts, String> {
    let ring_segments = RING_SEGMENTS_MIN + 9 + seed % 6;
    let mut years = Years::with_geometry(Geometry { ring_segments, ..GEOMETRY }, seed, mutant);
    match years.live(QUARTERS) {
        Err(what) if what == FULL => years.counts.full += 1,
        lived => lived?,
    }
    Ok(years.counts)
}

#[test]
fn a_log_goes_round_and_round_whatever_crashes() {
    let totals = over_seeds(RUNS, |seed| run(seed, None));
    println!("{RUNS} runs: {totals:?}");
    assert!(totals.laps > RUNS && totals.crashes > RUNS && totals.restored > RUNS, "{totals:?}");
}

#[test]
fn one_ring_seed() {
    let seed = std::env::var("CLAIMD_SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    println!("seed {seed}: {:?}", run(seed, None).unwrap());
}

#[test]
fn places_that_are_taken_too_soon_are_missed() {
    is_caught_by(Mutant::PlaceTakenEarly, |seed| run(seed, Some(Mutant::PlaceTakenEarly)));
}

#[test]
fn places_that_are_taken_as_they_were_are_noticed() {
    is_caught_by(Mutant::PlaceUnzeroed, |seed| run(seed, Some(Mutant::PlaceUnzeroed)));
}

/// A hold keeps a quarter that is due, and the ring fills. What is kept of it takes the end of the hold, and then the drop.
#[test]
fn a_full_ring_goes_on_once_a_quarter_is_dropped() {
    for seed in 0..8 {
        let geometry = Geometry { ring_segments: RING_SEGMENTS_MIN + 2, ..GEOMETRY };
        let mut years = Years::with_geometry(geometry, seed, None);
        years.is_calm = true;
        let quarter = Quarter::of(START_US);
        let hold = |years: &mut Years, held| {
            let outcome = years.ask(0, "simulated", &Operation::Hold { quarter, held });
            assert!(matches!(outcome, Ok(Outcome::Held { .. })), "seed {seed}: {outcome:?}");
            years.held = held.then_some(quarter);
        };
        years.at_us = START_US + DAY_US;
        // Of several segments: the one that the drop is in ends with it.
        for _ in 0..FIRST_CLAIMS {
            years.claim_of(0).unwrap();
        }
        hold(&mut years, true);
        years.at_us = quarter.end_us_after_years(YEARS) + DAY_US;
        let shard = years.shard_of(0);
        let fill = |years: &mut Years| (0..10_000).find_map(|_| years.claim_of(0).err()).expect("it is full some time");
        assert_eq!(fill(&mut years), FULL, "seed {seed}");
        let rows = years.rows.len();
        for is_cut in [true, false] {
            years.machine.crash(is_cut, 0, 1_000_000);
            years.machine.recover(None).unwrap();
            assert_eq!(years.claim_of(0).unwrap_err(), FULL, "seed {seed}");
            assert_eq!(years.machine.engine(shard).unwrap().status().ring_free_segments, 0, "seed {seed}");
        }
        hold(&mut years, false);
        for _ in 0..TICKS_MIN {
            years.tick();
            years.machine.settle().unwrap();
        }
        let status = years.machine.engine(shard).unwrap().status();
        assert!(status.ring_free_segments > 0 && !status.no_space, "seed {seed}: {status:?}");
        years.claim_of(0).unwrap();
        assert_eq!(fill(&mut years), FULL, "seed {seed}");
        assert!(years.rows.len() > rows + 10, "seed {seed}");
        years.check_shard(shard).unwrap();
        years.check_verifies(shard).unwrap();
    }
}
