//! The fault matrix: each I/O call of the engine fails in each way while the real daemon runs on the flaky disk. Clients must
//! be told what is true, and after a restart nothing that was acknowledged may be missing.
//!
//! Nothing here goes by time: a call that hangs does so until the harness has seen what it wants to see.

use crate::check::{Expectations, check, superblocks};
use crate::cuts;
use crate::daemon::{Binary, Daemon, NotServing};
use crate::disk::{Call, Content, Disk, Failure, Fault, Pace, Shared};
use crate::image::Image;
use crate::load::{self, Memory, Weight};
use crate::model::Model;
use crate::session::FORMAT;
use crate::trace::{Event, Mark, Op, Recorder, Sent, SentItem, Trace};
use claim_client::{
    ClaimItem, Claimed, Client, ClientError, ClientOptions, ErrorCode, RequestOptions, Row, ShardStatus, UnknownCause,
    Uuid, new_key,
};
use claim_engine::entropy::Entropy;
use claim_engine::log::superblock::Superblock;
use claim_engine::log::writer::SEGMENTS_AHEAD;
use claim_engine::mutant::Mutation;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Crash images that are drawn from the trace of each cell.
pub const IMAGES: u64 = 40;
/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(3);
/// How long something that must not happen is given to happen.
const WATCHED: Duration = Duration::from_millis(100);
/// The deadline of a request that is not expected to be answered otherwise.
const DEADLINE: Duration = Duration::from_millis(200);
/// A load where nothing is awaited.
const LOAD: Duration = Duration::from_millis(40);
/// Requests to the disk take up to this.
const DELAY_US_MAX: u64 = 200;
/// Calls of one kind of one start or format, at most.
const CALLS_MAX: u64 = 400;
/// The batch that fails, counted from the fault's order.
const NTH_BATCH: u64 = 5;
/// Metadata of a claim, and of one that fills a log quickly.
const SMALL_BYTES: u32 = 100;
const LARGE_BYTES: u32 = 40_000;
/// What a daemon logs when it gives up waiting for what is under way.
const GIVES_UP: &str = "stopping with requests under way";
const SHARD_FILES: [&str; 2] = ["shard-0000.ledger", "shard-0001.ledger"];
/// Failures of calls that move no bytes.
const OF_CALLS: [Failure; 3] = [Failure::Io, Failure::NoSpace, Failure::Hang];
const OF_WRITES: [Failure; 4] = [Failure::Io, Failure::NoSpace, Failure::Short, Failure::Hang];
const OF_READS: [Failure; 3] = [Failure::Io, Failure::Short, Failure::Hang];

/// Where in a daemon's life the call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// A batch of a shard under load.
    Batch(usize),
    /// The mark of an idle log.
    Mark,
    /// A batch, and SIGTERM while it hangs.
    BatchAtStop,
    /// Preparing a segment: fails once.
    Prepare(Call, Option<Content>),
    /// Preparing segments fails until there is room.
    NoRoom,
    /// Reading a row from the log.
    Lookup,
    /// Starting; so many calls of this kind belong to it, or all.
    Start(Call, Option<Content>, Option<u64>),
    /// Formatting.
    Format(Call, Option<Content>),
}

struct Line {
    name: &'static str,
    scene: Scene,
    failures: &'static [Failure],
}

const fn line(name: &'static str, scene: Scene, failures: &'static [Failure]) -> Line {
    Line { name, scene, failures }
}

const LINES: [Line; 19] = {
    use Content::{Batch, SegmentHeader, Superblock as SuperblockCopy, Zeroes};
    [
        line("write of a batch, shard 0", Scene::Batch(0), &OF_WRITES),
        line("write of a batch, shard 1", Scene::Batch(1), &OF_WRITES),
        line("write of a mark", Scene::Mark, &[Failure::Io, Failure::NoSpace, Failure::Short]),
        line("write of a batch, and SIGTERM", Scene::BatchAtStop, &[Failure::Hang]),
        line("growing the file", Scene::Prepare(Call::Grow, None), &OF_CALLS),
        line("growing the file, for long", Scene::NoRoom, &[Failure::Io, Failure::NoSpace]),
        line("zeroing a segment", Scene::Prepare(Call::Write, Some(Zeroes)), &OF_WRITES),
        line("flush after zeroing", Scene::Prepare(Call::Flush, Some(Zeroes)), &OF_CALLS),
        line("write of a segment's header", Scene::Prepare(Call::Write, Some(SegmentHeader)), &OF_WRITES),
        line("flush after the header", Scene::Prepare(Call::Flush, Some(SegmentHeader)), &OF_CALLS),
        line("read of a row", Scene::Lookup, &OF_READS),
        line("opens at start, each", Scene::Start(Call::Open, None, None), &OF_CALLS),
        line("reads at start, each", Scene::Start(Call::Read, None, None), &OF_READS),
        line("flush of recovery", Scene::Start(Call::Flush, None, Some(2)), &OF_CALLS),
        line("write of the recovery batch", Scene::Start(Call::Write, Some(Batch), Some(2)), &OF_WRITES),
        line("format: opens, each", Scene::Format(Call::Open, None), &OF_CALLS),
        line("format: growing, each", Scene::Format(Call::Grow, None), &OF_CALLS),
        line("format: flushes, each", Scene::Format(Call::Flush, None), &OF_CALLS),
        line("format: superblock copies, each", Scene::Format(Call::Write, Some(SuperblockCopy)), &OF_WRITES),
    ]
};

/// What one cell of the matrix showed.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// The call that failed.
    pub call: &'static str,
    /// How.
    pub fault: &'static str,
    /// What the daemon did.
    pub happened: String,
    /// How often clients got which error; those with a question mark leave the outcome open.
    pub errors: BTreeMap<String, u64>,
    /// Operations acknowledged before, meanwhile and after.
    pub acknowledged: u64,
    /// Crash images checked, besides the disk as it was left.
    pub images: u64,
    /// What differs from what is expected; `None`: nothing is lost and no answer is wrong.
    pub wrong: Option<String>,
}

fn fault_name(failure: Failure) -> &'static str {
    match failure {
        Failure::Io => "EIO",
        Failure::NoSpace => "ENOSPC",
        Failure::Short => "short",
        Failure::Hang => "hangs",
    }
}

/// Cells of the matrix.
pub fn cells() -> u64 {
    LINES.iter().map(|line| line.failures.len() as u64).sum()
}

/// Runs the whole matrix, several cells at a time, and returns it in order. `done` hears of each cell.
pub fn matrix(
    binary: &Binary,
    scratch: &Path,
    only: Option<&str>,
    at_once: usize,
    done: impl Fn(&Cell) + Sync,
) -> Vec<Cell> {
    let wanted = |line: &&Line| only.is_none_or(|only| line.name.contains(only));
    let jobs: Vec<_> =
        LINES.iter().filter(wanted).flat_map(|line| line.failures.iter().map(move |f| (line, *f))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((line, failure)) = jobs.get(at) else { break };
                    let cell = cell(binary, scratch, at as u64, line, *failure);
                    done(&cell);
                    found.lock().expect("no cell panics").push((at, cell));
                }
            });
        }
    });
    let mut found = found.into_inner().expect("no cell panics");
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, cell)| cell).collect()
}

fn cell(binary: &Binary, scratch: &Path, seed: u64, line: &Line, failure: Failure) -> Cell {
    let mut cell = Cell {
        call: line.name,
        fault: fault_name(failure),
        happened: String::new(),
        errors: BTreeMap::new(),
        acknowledged: 0,
        images: 0,
        wrong: None,
    };
    let stage = match Stage::new(binary, &scratch.join(format!("fault-{}-{seed}", std::process::id())), seed) {
        Ok(stage) => stage,
        Err(error) => return Cell { wrong: Some(error), ..cell },
    };
    let result = match line.scene {
        Scene::Batch(shard) => stage.batch(shard, failure),
        Scene::Mark => stage.mark(failure),
        Scene::BatchAtStop => stage.batch_at_stop(),
        Scene::Prepare(call, content) => stage.prepare(call, content, failure),
        Scene::NoRoom => stage.no_room(failure),
        Scene::Lookup => stage.lookup(failure),
        Scene::Start(call, content, count) => stage.start_up(call, content, count, failure),
        Scene::Format(call, content) => stage.format(call, content, failure),
    };
    let result = result.and_then(|happened| Ok((happened, stage.afterwards()?)));
    stage.disk.set_fault(None);
    stage.disk.release();
    let trace = stage.disk.end_trace();
    let result = result.and_then(|(happened, ())| Ok((happened, stage.prove(&trace)?)));
    for ((code, is_open), count) in stage.memory.errors() {
        cell.errors.insert(format!("{code}{}", if is_open { "?" } else { "" }), count);
    }
    let is_acknowledgement = |event: &&Event| matches!(event, Event::Client(Mark::Acknowledged { .. }));
    cell.acknowledged = trace.events.iter().filter(is_acknowledgement).count() as u64;
    match result {
        Ok((happened, images)) => {
            (cell.happened, cell.images) = (happened, images);
            let _ = std::fs::remove_dir_all(&stage.scratch);
        }
        Err(error) => {
            let path = stage.scratch.join("failed.trace.gz");
            let kept = trace.save(&path).map_or_else(|e| format!("not kept: {e}"), |()| path.display().to_string());
            cell.wrong = Some(format!("{error} (log: {}; trace: {kept})", stage.log.display()));
        }
    }
    cell
}

/// One ledger on one flaky disk.
struct Stage<'a> {
    binary: &'a Binary,
    disk: Disk,
    shared: Arc<Shared>,
    scratch: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    memory: Memory,
    seed: u64,
    /// Instants at which what is durable for certain must hold everything acknowledged.
    instants: std::sync::Mutex<Vec<usize>>,
}

impl<'a> Stage<'a> {
    fn new(binary: &'a Binary, scratch: &Path, seed: u64) -> Result<Stage<'a>, String> {
        let _ = std::fs::remove_dir_all(scratch);
        let mount = scratch.join("disk");
        std::fs::create_dir_all(&mount).map_err(|e| format!("{}: {e}", mount.display()))?;
        let disk = Disk::mount(&mount, seed).map_err(|e| format!("mounting the flaky disk: {e}"))?;
        let stage = Stage {
            binary,
            shared: disk.shared(),
            disk,
            scratch: scratch.to_owned(),
            socket: scratch.join("claimd.sock"),
            log: scratch.join("claimd.log"),
            memory: Memory::default(),
            seed,
            instants: std::sync::Mutex::default(),
        };
        stage.format_now()?;
        stage.disk.begin_trace();
        stage.disk.set_pace(Pace { delay_max: Duration::from_micros(DELAY_US_MAX), ..Pace::AT_ONCE });
        Ok(stage)
    }

    fn format_now(&self) -> Result<(), String> {
        self.binary.format(self.disk.path(), &FORMAT)
    }

    fn start(&self) -> Result<Daemon, String> {
        self.binary.start(self.disk.path(), &self.socket, &self.log)
    }

    fn try_start(&self) -> Result<Daemon, NotServing> {
        self.binary.try_start(self.disk.path(), &self.socket, &self.log)
    }

    /// Orders a fault.
    fn order(&self, shard: Option<usize>, call: Call, content: Option<Content>, nth: u64, failure: Failure) {
        let file = shard.map(|shard| SHARD_FILES[shard]);
        self.disk.set_fault(Some(Fault { call, file, content, nth, failure, lasts: false }));
    }

    /// A daemon that serves, with the load's corpora.
    fn serving(&self) -> Result<Daemon, String> {
        let daemon = self.start()?;
        load::onboard(&self.socket, &self.shared, Weight::LIGHT.connections)?;
        Ok(daemon)
    }

    /// Runs the load for as long as `meanwhile` takes.
    fn under_load<T>(
        &self,
        weight: Weight,
        run: u64,
        meanwhile: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let clients = load::connect_all(&self.socket, weight.connections)?;
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let load =
                scope.spawn(|| load::run(clients, &self.shared, &self.memory, weight, run, self.seed ^ run, &over));
            let result = meanwhile();
            over.store(true, Ordering::Relaxed);
            // Whatever hangs would keep the load's clients.
            self.disk.release();
            load.join().expect("the load does not panic")?;
            result
        })
    }

    /// From here on all that is acknowledged must survive a cut.
    fn remember(&self) {
        self.instants.lock().expect("no panic").push(self.disk.instant());
    }

    /// Nothing failed in this life of the daemon, or everything that did has been seen: it ends well, starts again, serves
    /// what it had, settles what was left open, and ends well.
    fn afterwards(&self) -> Result<(), String> {
        self.disk.set_fault(None);
        self.remember();
        let mut daemon = self.start().map_err(|e| format!("the next start: {e}"))?;
        load::read_back(&self.socket, &self.shared, Weight::LIGHT.connections)?;
        self.under_load(Weight::LIGHT, 9, || {
            thread::sleep(LOAD);
            Ok(())
        })?;
        ends_well(&mut daemon)
    }

    /// The disk as it was left, what was durable for certain at the instants remembered, and crash images.
    fn prove(&self, trace: &Trace) -> Result<u64, String> {
        let superblocks = superblocks(trace)?;
        let expectations = Expectations::of(trace, &superblocks, Mutation::NONE);
        prepared_before_used(trace, &superblocks)?;
        let mut entropy = Entropy::from_seed_u64(self.seed);
        let mut hold = |contents: &[Vec<u8>], instant: usize, what: &str| {
            let images: Vec<_> = contents.iter().map(|content| Image::of(content)).collect();
            let images: Vec<_> = images.iter().collect();
            check(&images, &superblocks, &expectations, instant, Mutation::NONE, &mut entropy)
                .map_err(|e| format!("{what}: {e}"))
        };
        let left: Vec<_> = SHARD_FILES
            .iter()
            .map(|name| self.disk.content(name).ok_or_else(|| format!("{name} is gone")))
            .collect::<Result<_, _>>()?;
        hold(&left, trace.events.len(), "the disk as it was left")?;
        let mut model = Model::new(trace);
        for instant in self.instants.lock().expect("no panic").iter() {
            while model.instant() < *instant && model.advance() {}
            let durable: Vec<_> = superblocks.iter().map(|(file, _)| model.durable(*file).to_vec()).collect();
            hold(&durable, *instant, &format!("what was durable at instant {instant}"))?;
        }
        let (counts, violation) = cuts::cut(trace, IMAGES, Mutation::NONE, |_| {})?;
        match violation {
            Some(violation) => {
                Err(format!("{}; --instant {} --draw {}", violation.what, violation.instant, violation.draw))
            }
            None => Ok(counts.images),
        }
    }

    fn batch(&self, shard: usize, failure: Failure) -> Result<String, String> {
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let (row, other_row) = (probe.claim_on(shard)?, probe.claim_on(1 - shard)?);
        if failure == Failure::Hang {
            let answered = self.under_load(Weight::LIGHT, 1, || {
                self.order(Some(shard), Call::Write, Some(Content::Batch), NTH_BATCH, failure);
                self.until_it_happens()?;
                probe.expect_open(probe.try_claim(shard, Some(DEADLINE), SMALL_BYTES), ErrorCode::Deadline)?;
                probe.claim_on(1 - shard)?;
                let status = probe.status(shard)?;
                if status.failed.is_some() || status.requests_held == 0 {
                    return Err(format!("while a write hangs, its shard's status is {status:?}"));
                }
                self.remember();
                Ok(status.requests_held)
            })?;
            probe.claim_on(shard)?;
            probe.is_row(row)?;
            self.nothing_left_open()?;
            ends_well(&mut daemon)?;
            return Ok(format!(
                "waits, {answered} held; a deadline is answered; shard {} goes on; all is answered at the end",
                1 - shard
            ));
        }
        self.under_load(Weight::LIGHT, 1, || {
            self.order(Some(shard), Call::Write, Some(Content::Batch), NTH_BATCH, failure);
            self.until_it_happens()?;
            self.until("the shard stops", || Ok(probe.status(shard)?.failed.is_some()))
        })?;
        self.stopped(&probe, shard, row, other_row)?;
        ends_well(&mut daemon)?;
        Ok(format!("shard {shard} stops; shard {} goes on", 1 - shard))
    }

    /// A shard that has stopped says so, and the other one serves.
    fn stopped(&self, probe: &Probe<'_>, shard: usize, row: Uuid, other_row: Uuid) -> Result<(), String> {
        self.remember();
        probe.expect_open(probe.try_claim(shard, None, SMALL_BYTES), ErrorCode::ShardFailed)?;
        match probe.row(row, None) {
            Err(ClientError::Refused(error)) if error.code == ErrorCode::ShardFailed => {}
            other => return Err(format!("a lookup on the stopped shard gives {other:?}")),
        }
        probe.claim_on(1 - shard)?;
        probe.is_row(other_row)?;
        match probe.status(1 - shard)?.failed {
            Some(reason) => Err(format!("shard {} has stopped, too: {reason}", 1 - shard)),
            None => Ok(()),
        }
    }

    fn mark(&self, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let other_row = probe.claim_on(1 - SHARD)?;
        // The log is marked; the next claim makes one batch, and the mark after it is the second.
        self.until("the log is marked", || {
            let before = probe.status(SHARD)?.batches_written;
            thread::sleep(WATCHED);
            Ok(before == probe.status(SHARD)?.batches_written)
        })?;
        self.order(Some(SHARD), Call::Write, Some(Content::Batch), 2, failure);
        let row = probe.claim_on(SHARD)?;
        self.until_it_happens()?;
        self.until("the shard stops", || Ok(probe.status(SHARD)?.failed.is_some()))?;
        self.stopped(&probe, SHARD, row, other_row)?;
        ends_well(&mut daemon)?;
        Ok(format!("shard {SHARD} stops; shard {} goes on", 1 - SHARD))
    }

    fn batch_at_stop(&self) -> Result<String, String> {
        const SHARD: usize = 1;
        let mut daemon = self.serving()?;
        self.under_load(Weight::LIGHT, 1, || {
            self.order(Some(SHARD), Call::Write, Some(Content::Batch), NTH_BATCH, Failure::Hang);
            self.until_it_happens()?;
            daemon.terminate()?;
            self.until("the daemon gives up waiting", || {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                Ok(log.lines().any(|line| line.contains(GIVES_UP)))
            })?;
            self.remember();
            Ok(())
        })?;
        let status = daemon.wait()?;
        if !status.success() {
            return Err(format!("after SIGTERM claimd ended with {status}"));
        }
        Ok("finishes what it can, says that outcomes are open, and ends".into())
    }

    fn prepare(&self, call: Call, content: Option<Content>, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        if failure != Failure::Hang {
            // The first segment that a daemon prepares.
            self.order(Some(SHARD), call, content, 1, failure);
        }
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let row = probe.claim_on(SHARD)?;
        let mut happened = "not used; prepared again; writes go on".to_owned();
        if failure == Failure::Hang {
            // A later one: FUSE makes who writes to a file wait, even for the submission, while another call grows or flushes
            // it, so that nothing is heard of the shard meanwhile.
            self.until("the first segments are prepared", || {
                let status = probe.status(SHARD)?;
                Ok(u64::from(status.segments_prepared) == 1 + SEGMENTS_AHEAD)
            })?;
            self.order(Some(SHARD), call, content, 1, failure);
            let refused = self.until_refused(&probe, SHARD)?;
            probe.claim_on(1 - SHARD)?;
            if call == Call::Write {
                probe.is_row(row)?;
                let status = probe.status(SHARD)?;
                if status.no_space || status.failed.is_some() {
                    return Err(format!("while preparing hangs, the shard's status is {status:?}"));
                }
            }
            self.remember();
            self.disk.release();
            happened = format!("waits; {refused} meanwhile, shard {} goes on; then all goes on", 1 - SHARD);
        }
        self.until_it_happens()?;
        self.until("the segment is prepared after all, and used", || {
            match probe.try_claim(SHARD, None, LARGE_BYTES) {
                Err(ClientError::Refused(error)) if is_full(error.code) => {}
                answer => answer.map(drop).map_err(|e| format!("a claim while a segment is prepared: {e}"))?,
            }
            probe.is_row(row)?;
            let status = probe.status(SHARD)?;
            Ok(status.segments_used >= 2 && status.segments_prepared > status.segments_used && !status.no_space)
        })?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            Ok(())
        })?;
        probe.claim_on(SHARD)?;
        self.nothing_left_open()?;
        ends_well(&mut daemon)?;
        Ok(happened)
    }

    /// Claims until what hangs is felt: either the segments that are ready are used up, or the deadline passes. Says which.
    fn until_refused(&self, probe: &Probe<'_>, shard: usize) -> Result<&'static str, String> {
        let mut refused = None;
        self.until("a claim is refused", || {
            let hangs = self.disk.fault_happened();
            let code = match probe.try_claim(shard, Some(DEADLINE), LARGE_BYTES) {
                Ok(_) => return Ok(false),
                Err(ClientError::Refused(error)) if error.code == ErrorCode::Overloaded => error.code,
                Err(ClientError::UnknownOutcome { code: UnknownCause::Server(ErrorCode::Deadline), .. }) => {
                    ErrorCode::Deadline
                }
                Err(error) => return Err(format!("a claim while preparing hangs: {error}")),
            };
            refused = Some(code.name());
            Ok(hangs)
        })?;
        Ok(refused.unwrap_or_default())
    }

    fn no_room(&self, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        let file = Some(SHARD_FILES[SHARD]);
        self.disk.set_fault(Some(Fault { call: Call::Grow, file, content: None, nth: 1, failure, lasts: true }));
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let row = probe.claim_on(SHARD)?;
        self.until_it_happens()?;
        self.fill(&probe, SHARD, ErrorCode::NoSpace)?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            probe.is_row(row)?;
            probe.claim_on(1 - SHARD)?;
            let status = probe.status(SHARD)?;
            if !status.no_space || status.failed.is_some() {
                return Err(format!("while there is no room, the shard's status is {status:?}"));
            }
            self.remember();
            Ok(())
        })?;
        self.disk.set_fault(None);
        self.until("it ends by itself", || {
            Ok(!probe.status(SHARD)?.no_space && probe.try_claim(SHARD, None, LARGE_BYTES).is_ok())
        })?;
        self.under_load(Weight::LIGHT, 2, || {
            thread::sleep(LOAD);
            Ok(())
        })?;
        self.nothing_left_open()?;
        ends_well(&mut daemon)?;
        Ok("read-only with NO_SPACE; ends by itself".into())
    }

    /// Claims until the shard refuses with a code, for certain, a large row and a small one.
    fn fill(&self, probe: &Probe<'_>, shard: usize, code: ErrorCode) -> Result<(), String> {
        for bytes in [LARGE_BYTES, SMALL_BYTES] {
            self.until("the shard refuses", || match probe.try_claim(shard, None, bytes) {
                Ok(_) => Ok(false),
                Err(ClientError::Refused(error)) if error.code == code => Ok(true),
                Err(ClientError::Refused(error)) if is_full(error.code) => Ok(false),
                Err(error) => Err(format!("where {} is due: {error}", code.name())),
            })?;
        }
        Ok(())
    }

    fn lookup(&self, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            Ok(())
        })?;
        // What was looked up before may be in memory.
        let row = probe.claim_on(SHARD)?;
        self.order(Some(SHARD), Call::Read, None, 1, failure);
        let deadline = (failure == Failure::Hang).then_some(DEADLINE);
        let answer = probe.row(row, deadline);
        self.until_it_happens()?;
        let happened = match (failure, answer) {
            (Failure::Short, Ok(found)) if probe.row(row, None).as_ref() == Ok(&found) => {
                "read on to the end: the right row"
            }
            (Failure::Hang, Err(ClientError::Refused(error))) if error.code == ErrorCode::Deadline => {
                probe.is_row(row)?;
                probe.claim_on(SHARD)?;
                self.disk.release();
                "waits; its deadline is answered, others go on"
            }
            (Failure::Io, Err(ClientError::Refused(error))) if error.code == ErrorCode::ShardFailed => {
                "this lookup is refused with SHARD_FAILED, others go on"
            }
            (_, answer) => return Err(format!("the lookup gives {answer:?}")),
        };
        probe.is_row(row)?;
        probe.claim_on(SHARD)?;
        ends_well(&mut daemon)?;
        Ok(happened.into())
    }

    fn start_up(
        &self,
        call: Call,
        content: Option<Content>,
        count: Option<u64>,
        failure: Failure,
    ) -> Result<String, String> {
        let mut daemon = self.serving()?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            self.shared.event(Event::Killed);
            daemon.kill();
            Ok(())
        })?;
        drop(daemon);
        if failure == Failure::Hang {
            self.order(None, call, content, 1, failure);
            let started = self.while_it_hangs(|| self.try_start())?;
            ends_well(
                &mut started.map_err(|not| format!("after the call that hung, claimd does not serve: {}", not.said))?,
            )?;
            return Ok("waits; serves nothing before it ends, then serves".into());
        }
        let (mut refused, mut served, mut said) = (0, 0, String::new());
        for nth in 1..=count.unwrap_or(CALLS_MAX) {
            self.order(None, call, content, nth, failure);
            match self.try_start() {
                Ok(mut daemon) => {
                    let happened = self.disk.fault_happened();
                    self.disk.set_fault(None);
                    ends_well(&mut daemon)?;
                    if !happened {
                        break;
                    }
                    served += 1;
                }
                Err(not) if self.disk.fault_happened() && not.code == Some(1) => {
                    refused += 1;
                    said = not.said;
                }
                Err(not) => return Err(format!("call {nth} at start: exit {:?}, {}", not.code, not.said)),
            }
            self.remember();
        }
        // A short read is read on; everything else that fails at start is told.
        match (failure, call, refused, served) {
            (Failure::Short, Call::Read, 0, 1..) => Ok(format!("{served} calls: read on to the end, serves")),
            (Failure::Short, Call::Read, ..) | (_, _, 0, _) => {
                Err(format!("{refused} starts were refused and {served} served, at last with: {said}"))
            }
            (_, Call::Read | Call::Open, ..) | (_, _, _, 0) => {
                let well = if served > 0 { format!(", {served} calls it can do without") } else { String::new() };
                // What glommio adds to an error, the path and the descriptor, is of no use here.
                let said = said.split(", op: ").next().unwrap_or_default();
                let said = said.split(".ledger: ").last().unwrap_or_default().trim_start_matches("claimd: ");
                Ok(format!("{refused} calls: exit 1, \"{said}\"{well}; the next start serves"))
            }
            _ => Err(format!("{served} starts served though the call had failed; refused with: {said}")),
        }
    }

    fn format(&self, call: Call, content: Option<Content>, failure: Failure) -> Result<String, String> {
        let empty = || {
            for name in SHARD_FILES {
                let _ = std::fs::remove_file(self.disk.path().join(name));
            }
        };
        empty();
        // What the trace began with is gone: the next ledger's begins when it is there.
        let _ = self.disk.end_trace();
        let happened = if failure == Failure::Hang {
            self.order(None, call, content, 1, failure);
            self.while_it_hangs(|| self.format_now())??;
            "waits, then the ledger is there".to_owned()
        } else {
            let (mut refused, mut is_made) = (0, false);
            for nth in 1..=CALLS_MAX {
                self.order(None, call, content, nth, failure);
                let output = Command::new(&self.binary.claimd)
                    .args(["format", "--data"])
                    .arg(self.disk.path())
                    .args(FORMAT)
                    .output()
                    .map_err(|e| format!("cannot run {}: {e}", self.binary.claimd.display()))?;
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                if !self.disk.fault_happened() {
                    if !output.status.success() {
                        return Err(format!("a format without a fault, after {refused} that failed: {said}"));
                    }
                    is_made = true;
                    break;
                }
                if output.status.code() != Some(1) || said.is_empty() {
                    return Err(format!("call {nth} of format: {}, {said}", output.status));
                }
                refused += 1;
                let left = std::fs::read_dir(self.disk.path()).map_err(|e| e.to_string())?.flatten().count();
                if left > 0 {
                    return Err(format!("call {nth} of format failed, and {left} files are left over"));
                }
            }
            if !is_made || refused == 0 {
                return Err(format!("{refused} formats failed, and none succeeded"));
            }
            format!("{refused} calls: exit 1, nothing left over; the next format succeeds")
        };
        self.disk.set_fault(None);
        self.disk.set_pace(Pace::AT_ONCE);
        self.disk.begin_trace();
        let mut daemon = self.serving()?;
        Probe::new(self)?.claim_on(0)?;
        ends_well(&mut daemon)?;
        Ok(happened)
    }

    /// Does something that meets a call which hangs; it must not get to its end before the call does.
    fn while_it_hangs<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, String> {
        thread::scope(|scope| {
            let acting = scope.spawn(act);
            let seen = self.until_it_happens().and_then(|()| {
                thread::sleep(WATCHED);
                if acting.is_finished() { Err("it did not wait for the call that hangs".to_owned()) } else { Ok(()) }
            });
            self.remember();
            self.disk.release();
            let result = acting.join().expect("no panic");
            seen.map(|()| result)
        })
    }

    /// Every request had an answer that left nothing open.
    fn nothing_left_open(&self) -> Result<(), String> {
        match self
            .memory
            .errors()
            .into_iter()
            .find(|((code, is_open), _)| *is_open && *code != ErrorCode::Deadline.name())
        {
            Some(((code, _), count)) => Err(format!("{count} requests were left open with {code}")),
            None => Ok(()),
        }
    }

    fn until_it_happens(&self) -> Result<(), String> {
        self.until("the fault happens", || Ok(self.disk.fault_happened()))
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
        let began = Instant::now();
        while !is_so()? {
            if began.elapsed() > PATIENCE {
                return Err(format!("{} s have passed, and it is not so: {what}", PATIENCE.as_secs()));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }
}

/// A client beside the load, which says exactly what it got.
struct Probe<'a> {
    client: Client,
    stage: &'a Stage<'a>,
    /// By shard: a corpus there.
    corpora: Vec<String>,
}

impl<'a> Probe<'a> {
    fn new(stage: &'a Stage<'a>) -> Result<Probe<'a>, String> {
        let options = ClientOptions { attempts_max: 1, deadline: PATIENCE, ..ClientOptions::default() };
        let client = Client::connect_with(&stage.socket, options).map_err(|e| e.to_string())?;
        let all = client.corpora(&RequestOptions::default()).wait().map_err(|e| format!("corpora: {e}"))?.value;
        let on = |shard: usize| {
            let corpus = all.iter().find(|corpus| usize::from(corpus.shard) == shard);
            corpus.map(|corpus| corpus.name.clone()).ok_or_else(|| format!("no corpus is on shard {shard}"))
        };
        Ok(Probe { corpora: vec![on(0)?, on(1)?], client, stage })
    }

    fn try_claim(&self, shard: usize, deadline: Option<Duration>, bytes: u32) -> Result<Claimed, ClientError> {
        let key = new_key(None);
        let event_key = format!("probe-{key}");
        let item = SentItem { event_key: event_key.clone(), metadata_bytes: bytes };
        let operation = Sent::Claim { corpus: self.corpora[shard].clone(), items: vec![item] };
        self.stage.shared.mark(Mark::Sent { key: key.as_u128(), operation });
        let metadata = load::metadata(&event_key, bytes);
        let item = ClaimItem {
            event_key: &event_key,
            occurred_at_us: 1,
            owning_corpus: "",
            hosting_corpus: "",
            category: "probe",
            taxonomy_version: 1,
            metadata: &metadata,
        };
        let options =
            RequestOptions { deadline, idempotency_key: Some(key), retry_overload: false, ..RequestOptions::default() };
        let answer = self.client.claim(&self.corpora[shard], &item, &options).wait();
        let mark = match &answer {
            Ok(claimed) => Some(Mark::Acknowledged {
                key: key.as_u128(),
                item: 0,
                event_id: claimed.event_id.as_u128(),
                sequence: claimed.claim_sequence,
            }),
            Err(error) => {
                self.stage.memory.count(error);
                matches!(error, ClientError::Refused(_)).then_some(Mark::Refused { key: key.as_u128() })
            }
        };
        mark.into_iter().for_each(|mark| self.stage.shared.mark(mark));
        answer.map(|claimed| claimed.value)
    }

    /// A claim that has to succeed, once the log takes it.
    fn claim_on(&self, shard: usize) -> Result<Uuid, String> {
        let mut event_id = None;
        self.stage.until("a claim is taken", || match self.try_claim(shard, None, SMALL_BYTES) {
            Ok(claimed) => {
                event_id = Some(claimed.event_id);
                Ok(true)
            }
            Err(ClientError::Refused(error)) if error.code == ErrorCode::Overloaded => Ok(false),
            Err(error) => Err(format!("a claim on shard {shard}: {error}")),
        })?;
        Ok(event_id.expect("a claim was taken"))
    }

    /// The answer has to leave the outcome open, with this code.
    fn expect_open(&self, answer: Result<Claimed, ClientError>, code: ErrorCode) -> Result<(), String> {
        match answer {
            Err(ClientError::UnknownOutcome { code: UnknownCause::Server(found), .. }) if found == code => Ok(()),
            other => Err(format!("where {} with an open outcome is due: {other:?}", code.name())),
        }
    }

    fn row(&self, event_id: Uuid, deadline: Option<Duration>) -> Result<Row, ClientError> {
        let answer = self.client.lookup(event_id, &RequestOptions { deadline, ..RequestOptions::default() }).wait();
        answer.inspect_err(|error| self.stage.memory.count(error)).map(|row| row.value)
    }

    /// A lookup has to find the row.
    fn is_row(&self, event_id: Uuid) -> Result<(), String> {
        match self.row(event_id, None) {
            Ok(row) if row.event_id == event_id => Ok(()),
            other => Err(format!("the lookup of {event_id} gives {other:?}")),
        }
    }

    fn status(&self, shard: usize) -> Result<ShardStatus, String> {
        let report = self.client.status(&RequestOptions::default()).wait().map_err(|e| format!("status: {e}"))?.value;
        let found = report.shards.into_iter().find(|status| usize::from(status.shard) == shard);
        found.ok_or_else(|| format!("the status has no shard {shard}"))
    }
}

/// Whether the log takes nothing now, and will later.
fn is_full(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NoSpace | ErrorCode::Overloaded)
}

fn ends_well(daemon: &mut Daemon) -> Result<(), String> {
    let status = daemon.stop()?;
    if status.success() { Ok(()) } else { Err(format!("claimd ended with {status}")) }
}

/// A batch goes only to a segment whose header has been flushed.
fn prepared_before_used(trace: &Trace, superblocks: &[(usize, Superblock)]) -> Result<(), String> {
    for (shard, (file, superblock)) in superblocks.iter().enumerate() {
        let geometry = superblock.geometry;
        let segment_of = |offset: u64| offset.checked_sub(geometry.file_offset(0)).map(|at| geometry.segment_of(at));
        let mut prepared = vec![0];
        let (mut written, mut ops): (Vec<u64>, Vec<&Op>) = (Vec::new(), Vec::new());
        // By flush: the headers that were written before it.
        let mut covers: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for event in &trace.events {
            match event {
                Event::Submitted(op) => {
                    match op {
                        Op::Flush { file: of } if *of as usize == *file => {
                            covers.insert(ops.len() as u32, written.clone());
                        }
                        Op::Write { file: of, offset, data, .. }
                            if *of as usize == *file && Content::of(data) == Content::Batch =>
                        {
                            let segment = segment_of(*offset).ok_or("a batch lies among the superblocks")?;
                            if !prepared.contains(&segment) {
                                return Err(format!(
                                    "shard {shard}: a batch goes to segment {segment}, which is not prepared"
                                ));
                            }
                        }
                        _ => {}
                    }
                    ops.push(op);
                }
                Event::Completed(number) => match ops[*number as usize] {
                    Op::Write { file: of, offset, data, .. }
                        if *of as usize == *file && Content::of(data) == Content::SegmentHeader =>
                    {
                        written.extend(segment_of(*offset));
                    }
                    _ => prepared.extend(covers.remove(number).into_iter().flatten()),
                },
                _ => {}
            }
        }
    }
    Ok(())
}
