//! Makes a trace: one ledger on a flaky disk, several runs of the daemon under load, each but the last ended by SIGKILL.

use crate::archived::Archive;
use crate::daemon::Binary;
use crate::disk::{Disk, Pace};
use crate::image::{Image, run};
use crate::load::{self, Memory, Weight};
use crate::trace::{Event, Trace};
use crate::years;
use claim_engine::entropy::Entropy;
use claim_engine::log::superblock::{Superblock, format_version};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Segments as small as they can be, so that logs roll and images stay small.
pub const FORMAT: [&str; 6] = ["--segment-bytes", "1M", "--batch-bytes-max", "128K", "--shards", "2"];

/// The files of the ledger.
pub(crate) const SHARD_FILES: [&str; 2] = ["shard-0000.ledger", "shard-0001.ledger"];

/// What a session does.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Repeats its random choices, though not the operating system's.
    pub seed: u64,
    /// Runs of the daemon.
    pub runs: u64,
    /// How long a run is under load, at most.
    pub run_ms_max: u64,
    /// Requests to the disk take up to this.
    pub delay_us_max: u64,
    /// What the clients do.
    pub weight: Weight,
    /// What lies on the disk beforehand.
    pub left_overs: LeftOvers,
    /// By whose clock it runs.
    pub clock: Clock,
    /// Places of the ring that each log goes round in, as on a device; 0 for files, which grow.
    pub ring_segments: u64,
}

/// By whose clock a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The wall's.
    Wall,
    /// The requests': years go by, and quarters are dropped.
    Years {
        /// The daemon keeps a segment archive.
        archives: bool,
    },
}

/// What lies on the disk where the ledger will grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOvers {
    /// Nothing.
    None,
    /// The batches of an earlier ledger, at the very places where this one's will be.
    EarlierLedger,
}

/// How the daemon is started: batches go beside others in flight as soon as they have two kilobytes, and windows of
/// reconciliation close while the load runs, or the retention of quarters does.
pub fn arguments(clock: Clock) -> Vec<String> {
    let config = match clock {
        Clock::Wall => concat!(env!("CARGO_MANIFEST_DIR"), "/load.toml"),
        Clock::Years { .. } => concat!(env!("CARGO_MANIFEST_DIR"), "/years.toml"),
    };
    ["--batch-fill-bytes", "2K", "--config", config].map(str::to_owned).to_vec()
}

/// Runs a session in `scratch`. The error is a sentence; the trace up to there comes with it.
pub fn record(binary: &Binary, plan: &Plan, scratch: &Path) -> Result<Trace, (String, Trace)> {
    let early = |e: String| (e, Trace::default());
    let mount = scratch.join("disk");
    let disk = Disk::mount(&mount, plan.seed).map_err(|e| early(format!("mounting the flaky disk: {e}")))?;
    let format = match plan.clock {
        Clock::Wall => FORMAT.to_vec(),
        Clock::Years { .. } => [&FORMAT[..], &["--clock", "replay"]].concat(),
    };
    binary.format(&mount, &format).map_err(early)?;
    if plan.left_overs == LeftOvers::EarlierLedger {
        leave_over(binary, plan, scratch, &disk).map_err(early)?;
    }
    if plan.ring_segments > 0 {
        SHARD_FILES.iter().try_for_each(|name| make_ring(&disk, name, plan.ring_segments)).map_err(early)?;
    }
    disk.begin_trace();
    disk.set_pace(Pace { delay_max: Duration::from_micros(plan.delay_us_max), ..Pace::AT_ONCE });
    let mut archive = matches!(plan.clock, Clock::Years { archives: true }).then(|| Archive::new(scratch));
    let result = match plan.clock {
        Clock::Wall => runs(binary, plan, scratch, &disk, &mount, Some(Event::Killed)),
        Clock::Years { .. } => years::runs(binary, plan, scratch, &disk, archive.as_mut()),
    };
    let mut trace = disk.end_trace();
    trace.mutant = binary.mutant.map(str::to_owned);
    let compared = result.and_then(|()| archive.map_or(Ok(()), |archive| archive.compare(&trace)));
    match compared {
        Ok(()) => Ok(trace),
        Err(message) => Err((message, trace)),
    }
}

/// Makes a file what `claimd format --device` makes of a device: it has its size from the start, and its superblock says how many
/// segments its log goes round in. Nothing else is different.
fn make_ring(disk: &Disk, name: &str, ring_segments: u64) -> Result<(), String> {
    let mut content = disk.content(name).ok_or("the ledger was just formatted")?;
    let mut superblock = run(Superblock::read(&Image::of(&content))).map_err(|e| format!("{name}: {e}"))?;
    superblock.geometry.ring_segments = ring_segments;
    superblock.version = format_version(superblock.geometry);
    content.resize(superblock.geometry.file_bytes(ring_segments) as usize, 0);
    let image = Image::of(&content);
    run(superblock.write(&image)).map_err(|e| format!("{name}: {e}"))?;
    disk.put(name, image.to_vec());
    Ok(())
}

/// Fills the ledger, and formats another over it.
fn leave_over(binary: &Binary, plan: &Plan, scratch: &Path, disk: &Disk) -> Result<(), String> {
    let earlier = Plan { runs: 1, run_ms_max: 600, weight: Weight::FILLING, ..*plan };
    runs(binary, &earlier, scratch, disk, disk.path(), None)?;
    let names = SHARD_FILES;
    let old = names.map(|name| disk.content(name).unwrap_or_default());
    names.iter().try_for_each(|name| std::fs::remove_file(disk.path().join(name))).map_err(|e| e.to_string())?;
    binary.format(disk.path(), &FORMAT)?;
    for (name, old) in names.iter().zip(old) {
        let mut new = disk.content(name).ok_or("the ledger was just formatted")?;
        new.extend_from_slice(old.get(new.len()..).unwrap_or_default());
        disk.put(name, new);
    }
    Ok(())
}

/// Runs the daemon on `data` again and again; `on_kill` is written down before each SIGKILL.
pub(crate) fn runs(
    binary: &Binary,
    plan: &Plan,
    scratch: &Path,
    disk: &Disk,
    data: &Path,
    on_kill: Option<Event>,
) -> Result<(), String> {
    let shared = disk.shared();
    let memory = Memory::default();
    let mut entropy = Entropy::from_seed_u64(plan.seed);
    let (socket, log) = (scratch.join("claimd.sock"), scratch.join("claimd.log"));
    for run in 0..plan.runs {
        let mut daemon = binary.start(data, &socket, &log)?;
        load::begin(&socket, &shared, &memory, plan.weight.connections, run)?;
        let clients = load::connect_all(&socket, plan.weight.connections)?;
        let over = AtomicBool::new(false);
        let time = Duration::from_millis(plan.run_ms_max / 4 + entropy.below(plan.run_ms_max * 3 / 4));
        let is_last = run + 1 == plan.runs;
        std::thread::scope(|scope| {
            let load = scope.spawn(|| load::run(clients, &shared, &memory, plan.weight, run, plan.seed, &over));
            std::thread::sleep(time);
            if !is_last {
                on_kill.clone().into_iter().for_each(|event| shared.event(event));
                daemon.kill();
            }
            over.store(true, Ordering::Relaxed);
            load.join().expect("the load does not panic")
        })?;
        if is_last {
            let status = daemon.stop()?;
            if !status.success() {
                return Err(format!("claimd ended with {status}"));
            }
        }
    }
    Ok(())
}
