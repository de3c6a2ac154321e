//! Retention in a replay ledger over years: quarters leave with whole segments, rows that came back stay, and whatever instant a crash
//! comes at, what is there afterwards is what a plain list of rows says. So it is in the ledger that an archive makes, which has the
//! dropped segments still and is sealed anew.

mod checks;
mod ring;

use super::machine::{GEOMETRY, Machine};
use crate::command::{Claim, Claimed, Operation, Outcome, Request, Token};
use crate::entropy::Entropy;
use crate::error::Code;
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::log::layout::Geometry;
use crate::log::superblock::{ClockMode, Superblock};
use crate::mutant::Mutant;
use crate::policy::Policy;
use crate::row::ReasonCode;
use crate::time::{DAY_US, HOUR_US, Now, Quarter};
use checks::TICKS_MIN;
use std::collections::BTreeMap;

const OWNER: Principal = Principal { uid: 1000, gid: 100, pid: 42 };
/// When it begins: 2020-01-01.
const START_US: i64 = 1_577_836_800_000_000;
const QUARTERS: u64 = 12;
/// Claims of a corpus in a quarter, at most.
const CLAIMS_MAX: u64 = 60;
const METADATA_BYTES_MAX: u64 = 1_500;
/// Its rows are kept for so many years.
const YEARS: u16 = 1;
const CORPORA: [&str; 3] = ["alpha", "beta", "gamma"];
/// How a run ends whose ring is full.
const FULL: &str = "the ring is full";
/// Seeds of the ordinary test.
const RUNS: u64 = 20;

/// A row as a plain list has it.
#[derive(Debug, Clone)]
struct Plain {
    corpus: usize,
    claimed_us: i64,
    is_retracted: bool,
    reactivated_us: Option<i64>,
}

impl Plain {
    /// The quarter that it counts in.
    fn effective(&self) -> Quarter {
        let own = Quarter::of(self.claimed_us);
        let back = self.reactivated_us.map(Quarter::of).filter(|quarter| *quarter != own);
        back.map_or(own, Quarter::next)
    }

    fn expires_us(&self) -> i64 {
        self.effective().end_us_after_years(YEARS)
    }
}

/// What happened.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    crashes: u64,
    dropped: u64,
    carried: u64,
    freed: u64,
    replays: u64,
    restored: u64,
    holds: u64,
    /// How often a log went round in its ring.
    laps: u64,
    /// Rings that were full at last: then the time of a replay ledger stands still, and nothing is dropped any more.
    full: u64,
}

impl Counts {
    fn and(self, other: Counts) -> Counts {
        Counts {
            crashes: self.crashes + other.crashes,
            dropped: self.dropped + other.dropped,
            carried: self.carried + other.carried,
            freed: self.freed + other.freed,
            replays: self.replays + other.replays,
            restored: self.restored + other.restored,
            holds: self.holds + other.holds,
            laps: self.laps + other.laps,
            full: self.full + other.full,
        }
    }
}

/// What an archive has of a shard: its log since the archive was begun, whatever was dropped of it, as a file has it.
struct Archive {
    superblock: Superblock,
    image: Vec<u8>,
}

impl Archive {
    /// Takes what a shard's log has now.
    fn bring_up_to_date(&mut self, machine: &Machine, shard: usize) {
        let engine = machine.engine(shard).expect("it runs");
        let (from, to) = (engine.superblock().geometry, self.superblock.geometry);
        let image = machine.image(shard);
        let prepared = u64::from(engine.status().segments_prepared);
        self.image.resize(to.file_bytes(prepared) as usize, 0);
        let area = to.file_offset(0) as usize;
        self.image[..area].copy_from_slice(&image[..area]);
        for segment in engine.superblock().first_segment()..prepared {
            let place = |geometry: Geometry| {
                let start = geometry.file_offset(geometry.segment_start(segment)) as usize;
                start..start + geometry.segment_bytes as usize
            };
            self.image[place(to)].copy_from_slice(&image[place(from)]);
        }
    }
}

struct Years {
    machine: Machine,
    rows: BTreeMap<EventId, Plain>,
    at_us: i64,
    next: u64,
    counts: Counts,
    /// The quarter whose hold is acknowledged.
    held: Option<Quarter>,
    /// By shard; what was restored has none.
    archives: Vec<Archive>,
    /// Nothing crashes, and time does not go on by itself.
    is_calm: bool,
}

impl Years {
    fn new(seed: u64, mutant: Option<Mutant>) -> Years {
        Years::with_geometry(GEOMETRY, seed, mutant)
    }

    fn with_geometry(geometry: Geometry, seed: u64, mutant: Option<Mutant>) -> Years {
        let mut entropy = Entropy::from_seed_u64(seed);
        let shards = 1 + entropy.below(2) as u16;
        let machine = Machine::with_geometry(geometry, ClockMode::Replay, seed, entropy, shards, mutant, START_US);
        let counts = Counts::default();
        let rows = BTreeMap::new();
        let (held, archives) = (None, Vec::new());
        let mut years = Years { machine, rows, at_us: START_US, next: 0, counts, held, archives, is_calm: true };
        let toml = Policy::of_owner(OWNER.uid).to_toml().replace("years = 4", &format!("years = {YEARS}"));
        years.ask(0, "", &Operation::Configure { toml: &toml }).expect("nothing crashes yet");
        for name in CORPORA {
            years.ask(0, "", &Operation::Onboard { name, notes: "" }).expect("nothing crashes yet");
        }
        years.is_calm = false;
        years.archives = (0..usize::from(shards)).map(|shard| years.archive_of(shard)).collect();
        years
    }

    /// What an archive has that is begun now.
    fn archive_of(&self, shard: usize) -> Archive {
        let superblock = self.machine.engine(shard).expect("it runs").superblock().of_file();
        let mut archive = Archive { superblock: Superblock { checkpoint: None, ..superblock }, image: Vec::new() };
        archive.bring_up_to_date(&self.machine, shard);
        archive
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.machine.entropy.below(bound)
    }

    fn shard_of(&self, corpus: usize) -> usize {
        let registry = self.machine.engine(0).expect("it runs").shard().registry();
        usize::from(registry.of_name(CORPORA[corpus]).expect("it was onboarded").shard)
    }

    /// Time goes on a little; retention looks at what is due once a second.
    fn tick(&mut self) {
        self.machine.now.boot_us += 1_100_000;
        self.machine.tick();
    }

    /// Asks until it is answered, through crashes; a retry has the same key.
    fn ask(&mut self, shard: usize, rationale: &str, operation: &Operation<'_>) -> Result<Outcome, String> {
        self.next += 1;
        let key = ((self.at_us / 1_000) as u128) << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.next);
        for attempt in 0..100 {
            let token: Token = self.next << 8 | attempt;
            let request = Request {
                token,
                stream: 0,
                principal: OWNER,
                user: "owner",
                idempotency_key: if operation.is_mutation() { key } else { 0 },
                correlation_id: 0,
                rationale,
                at_us: Some(self.at_us),
                deadline_boot_us: None,
                at_least: &[],
                operation: *operation,
            };
            self.machine.submit(shard as u16, &request);
            if !self.is_calm && self.below(40) == 0 {
                for _ in 0..self.machine.entropy.below(30) {
                    self.machine.complete_one();
                    self.machine.pump();
                }
                self.crash()?;
                continue;
            }
            self.machine.settle()?;
            if !self.is_calm && self.below(8) == 0 {
                self.tick();
                self.machine.settle()?;
            }
            let answer = self.machine.take_replies().into_iter().find(|(_, reply)| reply.token == token);
            match answer.map(|(_, reply)| reply.outcome) {
                Some(Outcome::Refused(refusal)) if refusal.code == Code::Overloaded => self.tick(),
                Some(Outcome::Refused(refusal)) if refusal.code == Code::NoSpace => return Err(FULL.into()),
                Some(outcome) => return Ok(outcome),
                None => return Err(format!("{operation:?} is not answered")),
            }
        }
        Err(format!("{operation:?} is never taken"))
    }

    fn crash(&mut self) -> Result<(), String> {
        self.counts.crashes += 1;
        let is_cut = self.below(4) != 0;
        self.machine.crash(is_cut, 0, 1_000_000);
        while self.below(4) == 0 {
            let ops = self.below(14);
            self.machine.recover(Some(ops))?;
            self.machine.crash(is_cut, 0, 1_000_000);
        }
        self.machine.recover(None)?;
        (0..self.machine.shard_count()).try_for_each(|shard| {
            self.check_copies(shard)?;
            self.check_verifies(shard)
        })
    }

    fn claim(&mut self) -> Result<(), String> {
        let corpus = self.below(CORPORA.len() as u64) as usize;
        self.claim_of(corpus)
    }

    fn claim_of(&mut self, corpus: usize) -> Result<(), String> {
        let metadata = vec![7; self.machine.entropy.below(METADATA_BYTES_MAX) as usize];
        let event_key = format!("event-{}", self.next);
        let items = [Claim {
            event_key: &event_key,
            occurred_at_us: self.at_us,
            owning_corpus: "",
            hosting_corpus: "",
            category: "c",
            taxonomy_version: 1,
            metadata: &metadata,
        }];
        let operation = Operation::Claim { corpus: CORPORA[corpus], items: &items, unless_within_us: None };
        match self.ask(self.shard_of(corpus), "", &operation)? {
            Outcome::Claimed(Claimed { event_id, claim_timestamp_us, .. }) => {
                let row = Plain { corpus, claimed_us: claim_timestamp_us, is_retracted: false, reactivated_us: None };
                match self.rows.insert(event_id, row) {
                    None => Ok(()),
                    Some(_) => Err(format!("{event_id} was handed out twice")),
                }
            }
            other => Err(format!("a claim is answered {other:?}")),
        }
    }

    /// Retracts a row, or has one come back, whatever its age.
    fn change(&mut self) -> Result<(), String> {
        let index = self.machine.entropy.below(self.rows.len().max(1) as u64) as usize;
        let retracted: Vec<_> = self.rows.iter().filter(|(_, row)| row.is_retracted).map(|(id, _)| *id).collect();
        let event_id = match self.below(2) {
            0 => self.rows.keys().nth(index).copied(),
            _ => retracted.get(index % retracted.len().max(1)).copied(),
        };
        let Some(event_id) = event_id else { return Ok(()) };
        let row = self.rows[&event_id].clone();
        let operation = match row.is_retracted {
            true => Operation::Reactivate { event_id },
            false => {
                let corpus = CORPORA[row.corpus];
                Operation::Retract { corpus, event_id, reason_code: ReasonCode::FalseAlarm }
            }
        };
        let outcome = self.ask(self.shard_of(row.corpus), "simulated", &operation)?;
        let is_expired = row.expires_us() <= self.at_us;
        let known = self.rows.get_mut(&event_id).expect("it is there");
        match outcome {
            Outcome::Retracted { .. } if !is_expired && !row.is_retracted => known.is_retracted = true,
            Outcome::Reactivated { reactivated_at_us, .. } if !is_expired && row.is_retracted => {
                (known.is_retracted, known.reactivated_us) = (false, Some(reactivated_at_us));
            }
            Outcome::Refused(refusal) if is_expired && refusal.code == Code::Expired => {}
            other => return Err(format!("{event_id}, {row:?} at {}: answered {other:?}", self.at_us)),
        }
        Ok(())
    }

    /// Holds a quarter that is about to leave or has just left, or ends the hold that there is.
    fn hold(&mut self) -> Result<(), String> {
        let back = self.below(3) as i64 - 1;
        let expiring = Quarter::of(self.at_us - i64::from(YEARS) * 366 * DAY_US - back * 91 * DAY_US);
        let quarter = self.held.unwrap_or(expiring);
        let held = self.held.is_none();
        match self.ask(0, "simulated", &Operation::Hold { quarter, held })? {
            Outcome::Held { .. } => self.held = held.then_some(quarter),
            Outcome::Refused(refusal) if held && refusal.code == Code::Expired => {}
            other => return Err(format!("a hold on {quarter}: answered {other:?}")),
        }
        self.counts.holds += u64::from(self.held.is_some());
        Ok(())
    }
}

fn run(seed: u64, mutant: Option<Mutant>) -> Result<Counts, String> {
    let mut years = Years::new(seed, mutant);
    years.live(QUARTERS).map(|()| years.counts)
}

impl Years {
    /// Goes through so many quarters.
    fn live(&mut self, quarters: u64) -> Result<(), String> {
        let mut quarter = Quarter::of(START_US);
        for _ in 0..quarters {
            let claims = 5 + self.below(CLAIMS_MAX);
            let step_us = (quarter.end_us() - quarter.start_us()) / (claims as i64 + 2);
            self.at_us = quarter.start_us() + HOUR_US;
            for _ in 0..claims {
                self.at_us += step_us;
                self.machine.now = Now { wall_us: self.at_us, ..self.machine.now };
                self.claim()?;
                if self.below(4) == 0 {
                    self.change()?;
                }
                if self.below(50) == 0 {
                    self.hold()?;
                }
            }
            self.check()?;
            self.check_histories()?;
            quarter = quarter.next();
            // Some quarters nothing happens in.
            if self.below(6) == 0 {
                quarter = quarter.next();
            }
        }
        self.at_us += 40 * DAY_US;
        self.check()?;
        self.check_histories()
    }
}

/// What became of the runs with the seeds below `runs`.
fn over_seeds(runs: u64, run: impl Fn(u64) -> Result<Counts, String> + Sync) -> Counts {
    let threads = super::threads();
    std::thread::scope(|scope| {
        let work = |worker| {
            let seeds = (worker..runs).step_by(threads as usize);
            let counts = seeds.map(|seed| run(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}")));
            counts.fold(Counts::default(), Counts::and)
        };
        let workers: Vec<_> = (0..threads).map(|worker| scope.spawn(move || work(worker))).collect();
        let counts = workers.into_iter().map(|worker| worker.join().expect("a run panicked; its seed is above"));
        counts.fold(Counts::default(), Counts::and)
    })
}

#[test]
fn quarters_are_dropped_and_nothing_else_is_whatever_crashes() {
    let totals = over_seeds(RUNS, |seed| run(seed, None));
    println!("{RUNS} runs: {totals:?}");
    assert!(
        totals.crashes > RUNS && totals.dropped > RUNS && totals.freed > RUNS && totals.carried > RUNS / 2,
        "{totals:?}"
    );
    assert!(totals.restored > RUNS && totals.holds > RUNS, "{totals:?}");
}

/// The segment behind those that are dropped may be sealed after the drop, and before the segment with the drop: a start from there
/// finds what was dropped, because entries before the drop are about it.
#[test]
fn what_is_dropped_is_known_until_the_drop_is_sealed() {
    let mut years = Years::new(0, None);
    let shard = years.shard_of(0);
    years.is_calm = true;
    let at = |years: &mut Years, at_us: i64| {
        years.at_us = at_us;
        years.machine.now.wall_us = at_us;
    };
    let first = Quarter::of(START_US);
    at(&mut years, START_US + DAY_US);
    while !years.rows.values().any(|row| row.corpus == 0) {
        years.claim().unwrap();
    }
    let event_id = *years.rows.iter().find(|(_, row)| row.corpus == 0).expect("one was claimed").0;
    let back_us = first.next().end_us() + DAY_US;
    let retract = Operation::Retract { corpus: CORPORA[0], event_id, reason_code: ReasonCode::FalseAlarm };
    years.ask(shard, "simulated", &retract).unwrap();
    at(&mut years, back_us);
    years.ask(shard, "simulated", &Operation::Reactivate { event_id }).unwrap();
    let first_seal = years.machine.engine(shard).unwrap().superblock().checkpoint;
    assert!(first_seal.is_some(), "the first quarter's segment is sealed");
    years.machine.builds_wait = true;
    at(&mut years, first.end_us_after_years(YEARS) + DAY_US);
    years.ask(shard, "simulated", &retract).unwrap();
    for _ in 0..8 {
        years.tick();
        years.machine.settle().unwrap();
    }
    let engine = years.machine.engine(shard).unwrap();
    assert_eq!(engine.shard().retention().dropped_to(), Some(first));
    assert!(engine.shard().rows().catalog().segments().is_empty() && engine.superblock().checkpoint == first_seal);
    years.machine.builds_wait = false;
    while years.machine.engine(shard).unwrap().superblock().checkpoint == first_seal {
        years.machine.complete_one();
        years.machine.pump();
    }
    assert_eq!(years.machine.engine(shard).unwrap().superblock().first_segment(), 0);
    years.machine.crash(true, 0, 1_000_000);
    years.machine.recover(None).unwrap();
    let known = years.rows.get_mut(&event_id).expect("it was claimed");
    (known.is_retracted, known.reactivated_us) = (true, Some(back_us));
    years.check_shard(shard).unwrap_or_else(|what| panic!("{what}"));
}

#[test]
fn one_retention_seed() {
    let seed = std::env::var("CLAIMD_SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    println!("seed {seed}: {:?}", run(seed, None).unwrap());
}

fn is_caught(mutant: Mutant) {
    is_caught_by(mutant, |seed| run(seed, Some(mutant)));
}

fn is_caught_by(mutant: Mutant, run: impl Fn(u64) -> Result<Counts, String> + std::panic::RefUnwindSafe) {
    for seed in 0..RUNS {
        let result = std::panic::catch_unwind(|| run(seed));
        if !matches!(result, Ok(Ok(_))) {
            println!("{mutant:?} is caught by seed {seed}: {:?}", result.map_err(|_| "a panic"));
            return;
        }
    }
    panic!("{mutant:?} is not caught in {RUNS} runs");
}

#[test]
fn rows_that_are_dropped_too_soon_are_missed() {
    is_caught(Mutant::DropWithoutCarry);
}

#[test]
fn segments_that_are_freed_too_soon_are_missed() {
    is_caught(Mutant::FreeBeforeSealed);
}

/// Shard 1 is due to drop the first quarter, of which shard 0 has nothing and knows nothing, when shard 0 is asked to hold it.
fn holds_beside_a_drop(mutant: Option<Mutant>) -> Result<(), String> {
    let mut years = (0..).map(|seed| Years::new(seed, mutant)).find(|years| years.shard_of(1) == 1).expect("one");
    years.is_calm = true;
    let first = Quarter::of(START_US);
    years.at_us = START_US + DAY_US;
    years.claim_of(1)?;
    let hold = |quarter, held| Operation::Hold { quarter, held };
    let second = hold(first.next(), true);
    for held_first in [true, false] {
        if held_first {
            let outcome = years.ask(0, "simulated", &hold(first, true))?;
            assert!(matches!(outcome, Outcome::Held { .. }), "{outcome:?}");
            years.held = Some(first);
        } else {
            // The time of shard 0 stays before the end of the retention.
            years.at_us = START_US + 2 * DAY_US;
            years.ask(0, "simulated", &hold(first, false))?;
            years.held = None;
        }
        years.at_us = first.end_us_after_years(YEARS) + DAY_US;
        years.claim_of(1)?;
        for _ in 0..TICKS_MIN {
            years.tick();
            years.machine.settle()?;
        }
        let dropped_to = years.machine.engine(1).expect("it runs").shard().retention().dropped_to();
        assert_eq!(dropped_to, (!held_first).then_some(first));
    }
    years.at_us = START_US + 3 * DAY_US;
    match years.ask(0, "simulated", &hold(first, true))? {
        Outcome::Refused(refusal) if refusal.code == Code::Expired => {}
        other => return Err(format!("a hold on what shard 1 has dropped: {other:?}")),
    }
    // Another is as good as before.
    assert!(matches!(years.ask(0, "simulated", &second)?, Outcome::Held { .. }));
    // After a start shard 0 learns it anew, and no copy of a superblock has the log begin with what was freed.
    assert!(years.machine.engine(1).expect("it runs").superblock().first_segment() > 0);
    years.machine.crash(true, 0, 1_000_000);
    years.machine.leave_copy_behind(1, 3);
    years.machine.open(None)?;
    years.check_copies(1)?;
    years.machine.settle()?;
    match years.ask(0, "simulated", &hold(first, true))? {
        Outcome::Refused(refusal) if refusal.code == Code::Expired => Ok(()),
        other => Err(format!("a hold on what shard 1 had dropped before a crash: {other:?}")),
    }
}

#[test]
fn what_another_shard_drops_is_not_held_and_what_is_held_no_shard_drops() {
    holds_beside_a_drop(None).unwrap();
    let missed = std::panic::catch_unwind(|| holds_beside_a_drop(Some(Mutant::DropUnasked)));
    assert!(!matches!(missed, Ok(Ok(()))), "a drop that nobody was asked for is not missed");
}
