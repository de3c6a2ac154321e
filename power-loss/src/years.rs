//! A session in which years go by: a replay ledger takes its time from the requests, quarters end with their segments, and the
//! daemon drops them while the load goes on.
//!
//! Retention looks at what is due as soon as a daemon has started, and then once a second. So runs come in pairs: in one more
//! than a year goes by, and the next one begins with drops and is killed soon; with a segment archive, in a round of that. The last run goes on until the log of
//! every shard begins later, and what is before that is free; in a ring, until it lies where its beginning was.

use crate::archived::Archive;
use crate::daemon::{Binary, Daemon};
use crate::disk::{Content, Disk};
use crate::image::{Image, run};
use crate::load::{self, Memory};
use crate::session::{Plan, SHARD_FILES};
use crate::trace::Event;
use claim_engine::entropy::Entropy;
use claim_engine::log::layout::{BLOCK_BYTES, SEGMENT_HEADER_BYTES};
use claim_engine::log::superblock::{Superblock, is_segment_header};
use claim_engine::time::DAY_US;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// 2024-01-01, when it begins.
const START_US: i64 = 1_704_067_200_000_000;
/// Quarters of a run in which years go by: each has time for a segment to be prepared and another to be sealed.
const QUARTERS: u64 = 6;
const QUARTER: Duration = Duration::from_millis(24);
const QUARTER_US: i64 = 92 * DAY_US;
/// Then everything is due; this is how long the load goes on after it.
const LEAP_US: i64 = 460 * DAY_US;
const AFTER_LEAP: Duration = Duration::from_millis(30);
/// While something is waited for, a step of time goes by so often.
const STEP: Duration = Duration::from_millis(20);
const STEP_US: i64 = 12 * DAY_US;
/// Places of a ring in which that finds room, and the drops, each of which ends its segment: one that is full with nothing due would stay
/// so, because its time stands still.
pub const RING_SEGMENTS: u64 = 18;
/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the daemon on the disk again and again; each run but the last ends with SIGKILL. After each the archive is looked at.
pub(crate) fn runs(
    binary: &Binary,
    plan: &Plan,
    scratch: &Path,
    disk: &Disk,
    mut archive: Option<&mut Archive>,
) -> Result<(), String> {
    let mut binary = binary.clone();
    binary.arguments.extend(archive.iter().flat_map(|archive| archive.arguments()));
    let shared = disk.shared();
    let memory = Memory::replayed(START_US);
    let mut entropy = Entropy::from_seed_u64(plan.seed);
    let (socket, log) = (scratch.join("claimd.sock"), scratch.join("claimd.log"));
    for run in 0..plan.runs {
        let began_with = SHARD_FILES.map(|name| first_segment(disk, name));
        let mut daemon = binary.start(disk.path(), &socket, &log)?;
        load::begin(&socket, &shared, &memory, plan.weight.connections, run)?;
        let clients = load::connect_all(&socket, plan.weight.connections)?;
        let over = AtomicBool::new(false);
        let is_last = run + 1 == plan.runs;
        let went = std::thread::scope(|scope| {
            let load = scope.spawn(|| load::run(clients, &shared, &memory, plan.weight, run, plan.seed, &over));
            let went = match run {
                _ if is_last => {
                    until(&memory, "a drop on every shard", || is_dropped(disk, began_with), || load.is_finished())
                }
                _ if run % 2 == 0 => {
                    go_by(&memory, &mut entropy);
                    let is_archived = || archive.as_ref().is_none_or(|archive| archive.is_newer());
                    until(&memory, "a round of the archive", is_archived, || load.is_finished())
                }
                _ => {
                    std::thread::sleep(Duration::from_millis(entropy.below(plan.run_ms_max)));
                    Ok(())
                }
            };
            if !is_last {
                shared.event(Event::Killed);
                daemon.kill();
            }
            over.store(true, Ordering::Relaxed);
            load.join().expect("the load does not panic").and(went)
        });
        went?;
        if is_last {
            stop(&mut daemon)?;
        }
        if let Some(archive) = &mut archive {
            archive.look(&binary, scratch, disk)?;
        }
    }
    Ok(())
}

fn stop(daemon: &mut Daemon) -> Result<(), String> {
    let status = daemon.stop()?;
    if status.success() { Ok(()) } else { Err(format!("claimd ended with {status}")) }
}

/// Several quarters, and then everything is due.
fn go_by(memory: &Memory, entropy: &mut Entropy) {
    for _ in 0..QUARTERS {
        std::thread::sleep(QUARTER);
        memory.pass(QUARTER_US);
    }
    std::thread::sleep(QUARTER);
    memory.pass(LEAP_US);
    std::thread::sleep(AFTER_LEAP + Duration::from_millis(entropy.below(20)));
}

/// Lets time go by until something has come about.
fn until(
    memory: &Memory,
    what: &str,
    has_come: impl Fn() -> bool,
    is_load_over: impl Fn() -> bool,
) -> Result<(), String> {
    let began = Instant::now();
    while !has_come() {
        if is_load_over() {
            return Err(format!("the load ended before {what} had come"));
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{what} has not come within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(STEP);
        memory.pass(STEP_US);
    }
    Ok(())
}

/// Whether the log of every shard begins later than it did, and all before it is free.
fn is_dropped(disk: &Disk, began_with: [u64; 2]) -> bool {
    let is_dropped = |(name, began_with)| first_segment(disk, name) > began_with && is_free(disk, name);
    SHARD_FILES.into_iter().zip(began_with).all(is_dropped)
}

fn superblock(content: &[u8]) -> Option<Superblock> {
    run(Superblock::read(&Image::of(content))).ok()
}

/// With which segment a log begins, as the disk has it now.
fn first_segment(disk: &Disk, name: &str) -> u64 {
    disk.look(name, |content| superblock(content).map_or(0, |superblock| superblock.first_segment())).unwrap_or(0)
}

/// Whether a file has nothing but zeroes where its log no longer is, or where the beginning of a ring's log was, a later part of it.
fn is_free(disk: &Disk, name: &str) -> bool {
    let is_free = |content: &[u8]| {
        superblock(content).is_some_and(|superblock| {
            let geometry = superblock.geometry;
            let file_offset = |segment| geometry.file_offset(geometry.segment_start(segment)) as usize;
            if geometry.is_ring() {
                return (0..superblock.first_segment()).any(|gone| {
                    let segment = gone + geometry.ring_segments;
                    let place = &content[file_offset(segment)..];
                    is_segment_header(&place[..BLOCK_BYTES as usize], &superblock, segment)
                        && Content::of(&place[SEGMENT_HEADER_BYTES as usize..]) == Content::Batch
                });
            }
            let gone = content.get(file_offset(0)..file_offset(superblock.first_segment()));
            gone.is_some_and(|gone| gone.iter().all(|byte| *byte == 0))
        })
    };
    disk.look(name, is_free).unwrap_or(false)
}
