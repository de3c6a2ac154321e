//! Too much load: the real daemon with one shard on a disk where every flush takes its time, claims at a multiple of the
//! rate that it can take, and what must hold then. Nothing acknowledged is lost, nothing is given twice, every request is
//! answered, and memory stays within bounds, on any machine. How fast answers come is compared with the daemon's own pace
//! at half load, and judged only where that is asked for.

use crate::daemon::{Binary, Daemon};
use crate::disk::{Disk, Pace};
use crate::generator::{Fate, Generator, Tally, Told};
use claim_client::{Client, ClientOptions, OverloadLevel, RequestOptions, ScanRange, ShardStatus, Uuid};
use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Small segments: preparing one is little work at a time.
const FORMAT: [&str; 6] = ["--segment-bytes", "4M", "--batch-bytes-max", "128K", "--shards", "1"];
const SHARD_FILE: &str = "shard-0000.ledger";
/// Room that the disk keeps for the shard's file; memory is taken only as the file grows.
const FILE_BYTES: usize = 3 << 30;
/// Requests at a time with which the search for the capacity begins; they double.
const OUTSTANDING_FIRST: usize = 16;
/// How long each number of requests at a time is tried.
const CAPACITY_STEP: Duration = Duration::from_secs(2);
/// The search ends when doubling brings less than this.
const CAPACITY_GAIN: f64 = 1.05;
/// Status is looked at this often.
const GLANCE: Duration = Duration::from_millis(20);
/// How long green is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Memory of a row: its place in the index and its idempotency key, with tables that have just doubled.
const ROW_BYTES_MAX: u64 = 256;

/// The most that accepted claims may take, as a multiple of half load's time: both at p99.
pub const ACCEPTED_RATIO_MAX: f64 = 3.0;
/// The most that refusals may take at p99, in flushes.
pub const REFUSED_FLUSHES_MAX: f64 = 1.0;
/// The longest time until green.
pub const GREEN_MAX: Duration = Duration::from_secs(5);
/// The least of the wanted rate that the generator must have brought about.
pub const OFFERED_MIN: f64 = 0.95;

/// What is done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long half load lasts, and overload.
    pub time: Duration,
    /// Overload, as a multiple of the capacity.
    pub times: f64,
    /// What each flush and each durable write takes.
    pub flush: Duration,
    /// Connections, each with a corpus of its own.
    pub connections: u64,
    /// Metadata of each claim.
    pub metadata_bytes: usize,
    /// The most requests at a time with which the capacity is looked for.
    pub outstanding_max: usize,
    /// What overload may add to the daemon's memory beyond that of its rows.
    pub memory_bytes_max: u64,
}

/// One stretch of load.
#[derive(Debug, Clone, Serialize)]
pub struct Stretch {
    /// Its name.
    pub load: &'static str,
    /// Requests a second that were meant to come.
    pub wanted_per_s: f64,
    /// Requests a second that were sent.
    pub offered_per_s: f64,
    /// Claims a second that were acknowledged.
    pub accepted_per_s: f64,
    /// Refusals for overload a second.
    pub refused_per_s: f64,
    /// The generator could not send these, because as many as it may have were without an answer.
    pub unsent: u64,
    /// Never answered.
    pub unanswered: u64,
    /// From due to acknowledged.
    pub accepted: Latency,
    /// From due to refused.
    pub refused: Latency,
    /// By how much the generator itself was late.
    pub late: Latency,
    /// Refusals that do not say when to try again.
    pub without_advice: u64,
    /// Errors other than overload.
    pub errors: BTreeMap<&'static str, u64>,
}

/// Quantiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "the names are those of the quantiles")]
pub struct Latency {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Latency {
    fn of(histogram_ns: &Histogram<u64>) -> Latency {
        let ms = |ns: u64| (ns as f64 / 1e3).round() / 1e3;
        let quantile_ms = |quantile| ms(histogram_ns.value_at_quantile(quantile));
        Latency {
            count: histogram_ns.len(),
            p50_ms: quantile_ms(0.5),
            p99_ms: quantile_ms(0.99),
            p999_ms: quantile_ms(0.999),
            max_ms: ms(histogram_ns.max()),
        }
    }
}

impl Stretch {
    fn new(load: &'static str, wanted_per_s: f64, tally: &Tally) -> Stretch {
        let rounded = |rate: f64| (rate * 10.0).round() / 10.0;
        Stretch {
            load,
            wanted_per_s: rounded(wanted_per_s),
            offered_per_s: rounded(tally.per_second(tally.sent)),
            accepted_per_s: rounded(tally.per_second(tally.accepted_ns.len())),
            refused_per_s: rounded(tally.per_second(tally.refused_ns.len())),
            unsent: tally.unsent,
            unanswered: tally.unanswered,
            accepted: Latency::of(&tally.accepted_ns),
            refused: Latency::of(&tally.refused_ns),
            late: Latency::of(&tally.late_ns),
            without_advice: tally.without_advice,
            errors: tally.errors.clone(),
        }
    }
}

/// The daemon's memory, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Memory {
    /// Resident before any load.
    pub at_start: u64,
    pub before_overload: u64,
    pub after_overload: u64,
    /// The most that was ever resident.
    pub peak: u64,
    /// What overload added at its peak.
    pub grown: u64,
    /// What it may have added: the rows accepted meanwhile, and a fixed amount.
    pub grown_max: u64,
}

/// What the ledger holds after a restart, against what clients were told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Claims that were acknowledged.
    pub acknowledged: u64,
    /// Rows that are there.
    pub rows: u64,
    /// Acknowledged claims that are not there.
    pub lost: u64,
    /// Ids or claims that are there twice, or under another id than was acknowledged.
    pub twice: u64,
    /// Claims that were refused for certain and are there all the same, and rows that nobody claimed.
    pub uncalled_for: u64,
}

/// One thing that must hold.
#[derive(Debug, Clone, Serialize)]
pub struct Criterion {
    /// What is looked at.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// What is due.
    pub due: String,
    /// Whether they agree.
    pub holds: bool,
    /// Whether it is about time, and so about the machine as well.
    pub is_timing: bool,
}

/// What a run showed.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields' types say it")]
pub struct Report {
    pub flush_ms: f64,
    /// Claims a second that the closed loop brought at best.
    pub capacity_per_s: f64,
    /// Requests at a time with which it did.
    pub capacity_outstanding: usize,
    pub stretches: Vec<Stretch>,
    /// The most requests that the shard held during overload, as its status says.
    pub debt_requests_most: u64,
    /// The slowest answer to `status` during overload.
    pub status_ms_max: f64,
    /// `None`: it did not become green.
    pub green_after_ms: Option<f64>,
    pub memory: Memory,
    pub kept: Kept,
    pub criteria: Vec<Criterion>,
}

/// What status said while the load went on.
#[derive(Debug, Default)]
struct Watched {
    debt_requests_most: u64,
    slowest: Duration,
}

/// Runs all of it in `scratch`; `progress` is told what comes next.
pub fn run(binary: &Binary, plan: &Plan, scratch: &Path, progress: impl Fn(&str) + Sync) -> Result<Report, String> {
    let (mount, socket, log) = (scratch.join("disk"), scratch.join("claimd.sock"), scratch.join("claimd.log"));
    let disk = Disk::mount(&mount, 0).map_err(|e| format!("mounting the disk: {e}"))?;
    binary.format(&mount, &FORMAT)?;
    disk.reserve(SHARD_FILE, FILE_BYTES);
    disk.set_pace(Pace { durable: plan.flush, ..Pace::AT_ONCE });
    let cores = Cores::divide()?;
    let mut binary = binary.clone();
    binary.arguments.extend(["--cores".to_owned(), cores.daemon.to_string()]);
    let mut daemon = binary.start(&mount, &socket, &log)?;
    let corpora: Vec<String> = (0..plan.connections).map(|number| format!("overload-{number}")).collect();
    let client = connect(&socket)?;
    for corpus in &corpora {
        client.onboard(corpus, "", &RequestOptions::default()).wait().map_err(|e| format!("onboarding: {e}"))?;
    }
    let mut generator = Generator::connect(&socket, corpora.clone(), plan.metadata_bytes)?;
    let loaded = std::thread::scope(|scope| {
        let load = || {
            cores.leave_to_daemon()?;
            Load { plan, daemon: &daemon, client: &client }.run(&mut generator, &progress)
        };
        scope.spawn(load).join().expect("the load does not panic")
    })?;
    progress("killing the daemon, and reading every row after its restart");
    daemon.kill();
    disk.wait_until_idle();
    disk.set_pace(Pace::AT_ONCE);
    let mut daemon = binary.start(&mount, &socket, &log)?;
    let kept = read_back(&socket, &corpora, generator.into_told())?;
    daemon.stop()?;
    Ok(loaded.report(plan, kept))
}

fn connect(socket: &Path) -> Result<Client, String> {
    let options = ClientOptions { deadline: PATIENCE, ..ClientOptions::default() };
    Client::connect_with(socket, options).map_err(|e| e.to_string())
}

/// The daemon has a core of its own, where there is one.
struct Cores {
    daemon: usize,
    others: CpuSet,
}

impl Cores {
    fn divide() -> Result<Cores, String> {
        let mut others = sched_getaffinity(Pid::from_raw(0)).map_err(|e| format!("the cores of this process: {e}"))?;
        let allowed = |set: &CpuSet| (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).count();
        let first = (0..CpuSet::count()).find(|core| others.is_set(*core).unwrap_or(false));
        let daemon = first.ok_or("this process may use no core")?;
        if allowed(&others) > 1 {
            others.unset(daemon).map_err(|e| format!("core {daemon}: {e}"))?;
        }
        Ok(Cores { daemon, others })
    }

    /// Keeps the calling thread off the daemon's core.
    fn leave_to_daemon(&self) -> Result<(), String> {
        sched_setaffinity(Pid::from_raw(0), &self.others).map_err(|e| format!("leaving core {}: {e}", self.daemon))
    }
}

struct Load<'a> {
    plan: &'a Plan,
    daemon: &'a Daemon,
    client: &'a Client,
}

/// What the load came to, before the ledger is looked at.
struct Loaded {
    capacity_per_s: f64,
    capacity_outstanding: usize,
    half: Stretch,
    overload: Stretch,
    watched: Watched,
    green_after: Option<Duration>,
    at_start: u64,
    before_overload: u64,
    after_overload: u64,
    peak: u64,
}

impl Load<'_> {
    fn run(&self, generator: &mut Generator, progress: &(impl Fn(&str) + Sync)) -> Result<Loaded, String> {
        let (at_start, _) = self.daemon.memory()?;
        progress("looking for the capacity");
        let (capacity_per_s, capacity_outstanding) = self.capacity(generator)?;
        let (half_per_s, over_per_s) = (capacity_per_s / 2.0, capacity_per_s * self.plan.times);
        progress(&format!("half load: {half_per_s:.0}/s for {} s", self.plan.time.as_secs()));
        let half = Stretch::new("half", half_per_s, &generator.open_loop(half_per_s, self.plan.time)?);
        let (before_overload, _) = self.daemon.memory()?;
        progress(&format!("overload: {over_per_s:.0}/s for {} s", self.plan.time.as_secs()));
        let is_over = AtomicBool::new(false);
        let (tally, watched) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| self.watch(&is_over));
            let tally = generator.open_loop(over_per_s, self.plan.time);
            is_over.store(true, Ordering::Relaxed);
            (tally, watch.join().expect("watching does not panic"))
        });
        let tally = tally?;
        let green_after = self.green(tally.ended_at)?;
        let (after_overload, peak) = self.daemon.memory()?;
        let overload = Stretch::new("overload", over_per_s, &tally);
        let watched = watched?;
        Ok(Loaded {
            capacity_per_s,
            capacity_outstanding,
            half,
            overload,
            watched,
            green_after,
            at_start,
            before_overload,
            after_overload,
            peak,
        })
    }

    /// The best rate of acknowledged claims, and with how many requests at a time.
    fn capacity(&self, generator: &mut Generator) -> Result<(f64, usize), String> {
        let mut best = (0.0, OUTSTANDING_FIRST);
        let mut outstanding = OUTSTANDING_FIRST.min(self.plan.outstanding_max);
        loop {
            let tally = generator.closed_loop(outstanding, CAPACITY_STEP)?;
            let rate = tally.per_second(tally.accepted_ns.len());
            if rate <= 0.0 {
                return Err(format!("no claim was acknowledged; other errors: {:?}", tally.errors));
            }
            let is_worth_it = rate > best.0 * CAPACITY_GAIN;
            if rate > best.0 {
                best = (rate, outstanding);
            }
            if !is_worth_it || outstanding >= self.plan.outstanding_max {
                return Ok(best);
            }
            outstanding = (2 * outstanding).min(self.plan.outstanding_max);
        }
    }

    fn status(&self) -> Result<ShardStatus, String> {
        let report = self.client.status(&RequestOptions::default()).wait().map_err(|e| format!("status: {e}"))?;
        report.value.shards.into_iter().next().ok_or_else(|| "status says nothing of shard 0".to_owned())
    }

    fn watch(&self, is_over: &AtomicBool) -> Result<Watched, String> {
        let mut watched = Watched::default();
        while !is_over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let status = self.status()?;
            watched.slowest = watched.slowest.max(asked.elapsed());
            watched.debt_requests_most = watched.debt_requests_most.max(debt_requests(&status));
            std::thread::sleep(GLANCE);
        }
        Ok(watched)
    }

    /// How long after `ended_at` the shard is green.
    fn green(&self, ended_at: Instant) -> Result<Option<Duration>, String> {
        while ended_at.elapsed() < PATIENCE {
            if is_green(&self.status()?) {
                return Ok(Some(ended_at.elapsed()));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(None)
    }
}

/// Requests that the shard has accepted and not answered.
fn debt_requests(status: &ShardStatus) -> u64 {
    status.debt_requests
}

/// Whether the shard takes everything again.
fn is_green(status: &ShardStatus) -> bool {
    status.level == OverloadLevel::Green
}

/// Reads every row, and compares it with what clients were told.
fn read_back(socket: &Path, corpora: &[String], told: Told) -> Result<Kept, String> {
    let client = connect(socket)?;
    let mut comparison = Comparison::new(told);
    for corpus in corpora {
        for row in client.scan(corpus, ScanRange::default(), &RequestOptions::default()).rows() {
            let row = row.map_err(|e| format!("reading {corpus}: {e}"))?;
            comparison.row(row.event_id, &row.event_key);
        }
    }
    Ok(comparison.end())
}

/// Rows against what was told of them.
struct Comparison {
    kept: Kept,
    fates: Vec<Fate>,
    /// By the acknowledged id: the request's number, and whether its row has been met.
    due: HashMap<Uuid, (u64, bool)>,
    /// By the request's number: a row of it has been met.
    met: Vec<bool>,
}

impl Comparison {
    fn new(told: Told) -> Comparison {
        let Told { fates, acknowledged } = told;
        let mut kept = Kept { acknowledged: acknowledged.len() as u64, ..Kept::default() };
        let met = vec![false; fates.len()];
        let due: HashMap<_, _> = acknowledged.into_iter().map(|(id, number)| (id, (number, false))).collect();
        kept.twice += kept.acknowledged - due.len() as u64;
        Comparison { kept, fates, due, met }
    }

    fn row(&mut self, event_id: Uuid, event_key: &str) {
        self.kept.rows += 1;
        let number = Told::number_of(event_key);
        // An id that is met again is as wrong as a claim that is.
        let due = self.due.get_mut(&event_id).map(|(number, is_met)| (*number, std::mem::replace(is_met, true)));
        let Some((number, fate)) = number.and_then(|number| Some((number, *self.fates.get(number as usize)?))) else {
            self.kept.uncalled_for += 1;
            return;
        };
        let is_again = std::mem::replace(&mut self.met[number as usize], true);
        let is_due = due == (fate == Fate::Acknowledged).then_some((number, false));
        self.kept.twice += u64::from(is_again || !is_due);
        self.kept.uncalled_for += u64::from(fate == Fate::Refused);
    }

    fn end(self) -> Kept {
        let lost = self.due.values().filter(|(_, is_met)| !is_met).count() as u64;
        Kept { lost, ..self.kept }
    }
}

impl Loaded {
    fn report(self, plan: &Plan, kept: Kept) -> Report {
        let rows = self.overload.accepted.count;
        let memory = Memory {
            at_start: self.at_start,
            before_overload: self.before_overload,
            after_overload: self.after_overload,
            peak: self.peak,
            grown: self.peak.saturating_sub(self.before_overload),
            grown_max: rows * ROW_BYTES_MAX + plan.memory_bytes_max,
        };
        Report {
            flush_ms: plan.flush.as_secs_f64() * 1e3,
            capacity_per_s: self.capacity_per_s.round(),
            capacity_outstanding: self.capacity_outstanding,
            debt_requests_most: self.watched.debt_requests_most,
            status_ms_max: (self.watched.slowest.as_secs_f64() * 1e3).round(),
            green_after_ms: self.green_after.map(|after| (after.as_secs_f64() * 1e3).round()),
            memory,
            kept,
            criteria: self.criteria(plan, memory, kept),
            stretches: vec![self.half, self.overload],
        }
    }

    fn criteria(&self, plan: &Plan, memory: Memory, kept: Kept) -> Vec<Criterion> {
        let (half, over) = (&self.half, &self.overload);
        let criterion =
            |what, found: String, due: String, holds, is_timing| Criterion { what, found, due, holds, is_timing };
        let none = |what, found: u64| criterion(what, found.to_string(), "0".into(), found == 0, false);
        let at_most = |what, found: f64, most: f64, unit: &str| {
            criterion(what, format!("{found:.2}{unit}"), format!("at most {most}{unit}"), found <= most, true)
        };
        let others: u64 = half.errors.values().chain(over.errors.values()).sum();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let accepted_ratio = over.accepted.p99_ms / half.accepted.p99_ms.max(f64::MIN_POSITIVE);
        let flushes = over.refused.p99_ms / (plan.flush.as_secs_f64() * 1e3).max(f64::MIN_POSITIVE);
        let offered = over.offered_per_s / over.wanted_per_s.max(f64::MIN_POSITIVE);
        let green_s = self.green_after.unwrap_or(PATIENCE).as_secs_f64();
        vec![
            none("acknowledged claims lost", kept.lost),
            none("ids or claims twice", kept.twice),
            none("rows that were refused, or that nobody claimed", kept.uncalled_for),
            none("requests never answered", half.unanswered + over.unanswered),
            none("errors other than overload", others),
            none("refusals without advice", half.without_advice + over.without_advice),
            criterion(
                "memory that overload added",
                format!("{:.1} MiB", mib(memory.grown)),
                format!("at most {:.1} MiB: {ROW_BYTES_MAX} B a row, and a fixed amount", mib(memory.grown_max)),
                memory.grown <= memory.grown_max,
                false,
            ),
            criterion(
                "the load that was offered, of the one wanted",
                format!("{offered:.2}"),
                format!("at least {OFFERED_MIN}"),
                offered >= OFFERED_MIN,
                true,
            ),
            criterion(
                "refusals",
                over.refused.count.to_string(),
                "some: otherwise this was no overload".into(),
                over.refused.count > 0,
                true,
            ),
            at_most("accepted, p99, against half load", accepted_ratio, ACCEPTED_RATIO_MAX, " x"),
            at_most("refused, p99, in flushes", flushes, REFUSED_FLUSHES_MAX, ""),
            at_most("green again after", green_s, GREEN_MAX.as_secs_f64(), " s"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four requests: acknowledged as 10 and 11, refused, and open.
    fn compare(rows: &[(u128, &str)]) -> Kept {
        let fates = vec![Fate::Acknowledged, Fate::Acknowledged, Fate::Refused, Fate::Open];
        let acknowledged = vec![(Uuid::from_u128(10), 0), (Uuid::from_u128(11), 1)];
        let mut comparison = Comparison::new(Told { fates, acknowledged });
        rows.iter().for_each(|(id, key)| comparison.row(Uuid::from_u128(*id), key));
        comparison.end()
    }

    #[test]
    fn rows_are_what_was_told() {
        let right = Kept { acknowledged: 2, rows: 2, ..Kept::default() };
        let (zero, one) = ((10, "overload-0"), (11, "overload-1"));
        assert_eq!(compare(&[zero, one]), right);
        assert_eq!(compare(&[zero, one, (12, "overload-3")]), Kept { rows: 3, ..right }, "it may have been applied");
        assert_eq!(compare(&[zero]), Kept { rows: 1, lost: 1, ..right });
        assert_eq!(compare(&[zero, one, (12, "overload-2")]), Kept { rows: 3, uncalled_for: 1, ..right });
        for stranger in ["overload-4", "overload-", "stranger"] {
            assert_eq!(compare(&[zero, one, (12, stranger)]), Kept { rows: 3, uncalled_for: 1, ..right }, "{stranger}");
        }
        for again in [(12, "overload-1"), (11, "overload-1"), (10, "overload-3")] {
            assert_eq!(compare(&[zero, one, again]).twice, 1, "{again:?}");
        }
        assert_eq!(compare(&[zero, (12, "overload-1")]), Kept { lost: 1, twice: 1, ..right });
        assert_eq!(compare(&[(10, "overload-1"), (11, "overload-0")]), Kept { twice: 2, ..right });
    }

    #[test]
    fn an_id_that_is_acknowledged_twice_is_seen() {
        let acknowledged = vec![(Uuid::from_u128(10), 0), (Uuid::from_u128(10), 1)];
        let told = Told { fates: vec![Fate::Acknowledged; 2], acknowledged };
        assert_eq!(Comparison::new(told).end().twice, 1);
    }
}
