//! The same years in a log that goes round on a device: what a place holds of the lap before is never taken for the log, and a place
//! is taken again only once nothing needs what it held. An archive of it is a file, in which nothing goes round.

use super::checks::TICKS_MIN;
use super::{CORPORA, Counts, FULL, START_US, YEARS, Years, is_caught_by, over_seeds};
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

/// A reply names places in the log, and is read from them a little later: a drop in between takes none of them.
#[test]
fn what_a_reply_names_keeps_its_place_until_it_is_read() {
    for seed in 0..8 {
        let mut years = calm_ring(seed);
        let quarter = Quarter::of(START_US);
        years.at_us = START_US + DAY_US;
        for _ in 0..FIRST_CLAIMS {
            years.claim_of(0).unwrap();
        }
        let shard = years.shard_of(0);
        let event_id = *years.rows.keys().next().unwrap();
        let Ok(Outcome::Row(row)) = years.ask(shard, "", &Operation::Lookup { event_id }) else {
            panic!("seed {seed}")
        };
        let record = years.machine.read_record(shard, row.view.claim_at).unwrap();
        let began_with = years.machine.begin_read(shard);

        let drop_quarter = |years: &mut Years| {
            for _ in 0..TICKS_MIN {
                years.claim_of(0).unwrap();
                years.tick();
                years.machine.settle().unwrap();
            }
        };
        years.at_us = quarter.end_us_after_years(YEARS) + DAY_US;
        drop_quarter(&mut years);
        let first_segment = |years: &Years| years.machine.engine(shard).unwrap().superblock().first_segment();
        assert!(first_segment(&years) > 0, "seed {seed}");
        // A later read needs nothing of what is dropped.
        let began_later_with = years.machine.begin_read(shard);
        assert_eq!(fill(&mut years), FULL, "seed {seed}");
        assert_eq!(years.machine.read_record(shard, row.view.claim_at).unwrap(), record, "seed {seed}");
        years.machine.end_read(shard, began_with);
        years.tick();
        years.machine.settle().unwrap();
        assert!(!years.machine.engine(shard).unwrap().status().no_space, "seed {seed}");
        assert_eq!(fill(&mut years), FULL, "seed {seed}");
        assert_ne!(years.machine.read_record(shard, row.view.claim_at).ok(), Some(record), "seed {seed}: it is gone");
        years.machine.end_read(shard, began_later_with);
        years.check_shard(shard).unwrap();
        years.check_verifies(shard).unwrap();
    }
}

/// While somebody reads the files a ring keeps what was dropped. It starts as long as there is room for a recovery batch; then it says
/// who is in the way, and starts once that has gone.
#[test]
fn a_ring_that_is_full_to_its_end_starts_once_nobody_reads_it() {
    for seed in 0..8 {
        let mut years = calm_ring(seed);
        years.at_us = START_US + DAY_US;
        for _ in 0..FIRST_CLAIMS {
            years.claim_of(0).unwrap();
        }
        let shard = years.shard_of(0);
        years.machine.is_being_read = true;
        years.at_us = Quarter::of(START_US).end_us_after_years(YEARS) + DAY_US;
        for _ in 0..TICKS_MIN {
            years.claim_of(0).unwrap();
            years.tick();
            years.machine.settle().unwrap();
        }
        assert!(years.machine.engine(shard).unwrap().superblock().first_segment() > 0, "seed {seed}");
        assert_eq!(fill(&mut years), FULL, "seed {seed}");
        // Each start takes a block and more.
        let refused = (0..1_000).find_map(|_| {
            years.machine.crash(false, 0, 1_000_000);
            years.machine.recover(None).err()
        });
        let refused = refused.expect("there is no more room some time");
        assert!(refused.contains("while somebody reads the ledger"), "seed {seed}: {refused}");
        years.machine.is_being_read = false;
        years.machine.crash(true, 0, 1_000_000);
        years.machine.recover(None).unwrap();
        years.tick();
        years.machine.settle().unwrap();
        years.claim_of(0).unwrap();
        years.check_shard(shard).unwrap();
        years.check_verifies(shard).unwrap();
    }
}

/// What every shard must log comes out of what a ring keeps for a drop: of a full one nothing is asked but what makes room.
#[test]
fn a_full_ring_keeps_its_reserve_from_requests_to_shard_0() {
    let mut tried = 0;
    for seed in 0..16 {
        let mut years = calm_ring(seed);
        let Some(corpus) = (0..CORPORA.len()).find(|corpus| years.shard_of(*corpus) == 1) else { continue };
        tried += 1;
        let quarter = Quarter::of(START_US);
        years.at_us = START_US + DAY_US;
        for _ in 0..FIRST_CLAIMS {
            years.claim_of(corpus).unwrap();
        }
        hold(&mut years, quarter, true);
        years.at_us = quarter.end_us_after_years(YEARS) + DAY_US;
        let full = (0..10_000).find_map(|_| years.claim_of(corpus).err()).expect("it is full some time");
        assert_eq!(full, FULL, "seed {seed}");
        let is_full = |years: &Years, shard| years.machine.engine(shard).unwrap().status().no_space;
        assert!(is_full(&years, 1) && !is_full(&years, 0), "seed {seed}");
        years.tick();
        years.machine.settle().unwrap();
        for _ in 0..1_000 {
            assert_eq!(years.ask(0, "simulated", &Operation::Barrier), Err(FULL.into()), "seed {seed}");
        }
        hold(&mut years, quarter, false);
        for _ in 0..TICKS_MIN {
            years.tick();
            years.machine.settle().unwrap();
        }
        assert!(!is_full(&years, 1), "seed {seed}");
        years.claim_of(corpus).unwrap();
        years.ask(0, "simulated", &Operation::Barrier).unwrap();
        years.check_shard(1).unwrap();
    }
    assert!(tried > 0, "no seed has a corpus on shard 1");
}

fn calm_ring(seed: u64) -> Years {
    let geometry = Geometry { ring_segments: RING_SEGMENTS_MIN + 2, ..GEOMETRY };
    let mut years = Years::with_geometry(geometry, seed, None);
    years.is_calm = true;
    years
}

/// Claims until there is no room; how the last claim was answered.
fn fill(years: &mut Years) -> String {
    (0..10_000).find_map(|_| years.claim_of(0).err()).expect("it is full some time")
}

fn hold(years: &mut Years, quarter: Quarter, held: bool) {
    let outcome = years.ask(0, "simulated", &Operation::Hold { quarter, held });
    assert!(matches!(outcome, Ok(Outcome::Held { .. })), "{outcome:?}");
    years.held = held.then_some(quarter);
}

/// A hold keeps a quarter that is due, and the ring fills. What is kept of it takes the end of the hold, and then the drop.
#[test]
fn a_full_ring_goes_on_once_a_quarter_is_dropped() {
    for seed in 0..8 {
        let mut years = calm_ring(seed);
        let quarter = Quarter::of(START_US);
        years.at_us = START_US + DAY_US;
        // Of several segments: the one that the drop is in ends with it.
        for _ in 0..FIRST_CLAIMS {
            years.claim_of(0).unwrap();
        }
        hold(&mut years, quarter, true);
        years.at_us = quarter.end_us_after_years(YEARS) + DAY_US;
        let shard = years.shard_of(0);
        assert_eq!(fill(&mut years), FULL, "seed {seed}");
        let rows = years.rows.len();
        for is_cut in [true, false] {
            years.machine.crash(is_cut, 0, 1_000_000);
            years.machine.recover(None).unwrap();
            assert_eq!(years.claim_of(0).unwrap_err(), FULL, "seed {seed}");
            assert_eq!(years.machine.engine(shard).unwrap().status().ring_free_segments, 0, "seed {seed}");
        }
        hold(&mut years, quarter, false);
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
