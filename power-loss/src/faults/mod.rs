//! The fault matrix: each I/O call of the engine fails in each way while the real daemon runs on the flaky disk. Clients must
//! be told what is true, and after a restart nothing that was acknowledged may be missing.
//!
//! Nothing here goes by time: a call that hangs does so until the harness has seen what it wants to see.

mod probe;
mod scenes;
mod stage;

use self::stage::Stage;
use crate::daemon::Binary;
use crate::disk::{Call, Content, Failure};
use crate::trace::{Event, Mark};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;

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
