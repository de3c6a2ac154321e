//! One ledger on one flaky disk: what scenes are played on, and the proof afterwards.

use crate::check::{Expectations, check, superblocks};
use crate::cuts;
use crate::daemon::{Binary, Daemon, NotServing};
use crate::disk::{Call, Content, Disk, Failure, Fault, Pace, Shared};
use crate::image::Image;
use crate::load::{self, Memory, Weight};
use crate::model::Model;
use crate::session::FORMAT;
use crate::trace::{Event, Op, Trace};
use claim_client::ErrorCode;
use claim_engine::entropy::Entropy;
use claim_engine::log::superblock::Superblock;
use claim_engine::mutant::Mutation;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Crash images that are drawn from the trace of each cell.
const IMAGES: u64 = 40;
/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(3);
/// How long something that must not happen is given to happen.
pub const WATCHED: Duration = Duration::from_millis(100);
/// A load where nothing is awaited.
pub const LOAD: Duration = Duration::from_millis(40);
/// Requests to the disk take up to this.
const DELAY_US_MAX: u64 = 200;
/// The disk's files, by shard.
pub const SHARD_FILES: [&str; 2] = ["shard-0000.ledger", "shard-0001.ledger"];

/// One ledger on one flaky disk.
pub struct Stage<'a> {
    pub binary: &'a Binary,
    pub disk: Disk,
    pub shared: Arc<Shared>,
    pub scratch: PathBuf,
    pub socket: PathBuf,
    pub log: PathBuf,
    pub memory: Memory,
    pub seed: u64,
    /// Instants at which what is durable for certain must hold everything acknowledged.
    instants: std::sync::Mutex<Vec<usize>>,
}

impl<'a> Stage<'a> {
    pub fn new(binary: &'a Binary, scratch: &Path, seed: u64) -> Result<Stage<'a>, String> {
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

    pub fn format_now(&self) -> Result<(), String> {
        self.binary.format(self.disk.path(), &FORMAT)
    }

    pub fn start(&self) -> Result<Daemon, String> {
        self.binary.start(self.disk.path(), &self.socket, &self.log)
    }

    pub fn try_start(&self) -> Result<Daemon, NotServing> {
        self.binary.try_start(self.disk.path(), &self.socket, &self.log)
    }

    /// Orders a fault.
    pub fn order(&self, shard: Option<usize>, call: Call, content: Option<Content>, nth: u64, failure: Failure) {
        let file = shard.map(|shard| SHARD_FILES[shard]);
        self.disk.set_fault(Some(Fault { call, file, content, nth, failure, lasts: false }));
    }

    /// A daemon that serves, with the load's corpora.
    pub fn serving(&self) -> Result<Daemon, String> {
        let daemon = self.start()?;
        load::onboard(&self.socket, &self.shared, &self.memory, Weight::LIGHT.connections)?;
        Ok(daemon)
    }

    /// Runs the load for as long as `meanwhile` takes.
    pub fn under_load<T>(
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
    pub fn remember(&self) {
        self.instants.lock().expect("no panic").push(self.disk.instant());
    }

    /// Nothing failed in this life of the daemon, or everything that did has been seen: it ends well, starts again, serves
    /// what it had, settles what was left open, and ends well.
    pub fn afterwards(&self) -> Result<(), String> {
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
    pub fn prove(&self, trace: &Trace) -> Result<u64, String> {
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

    /// Does something that meets a call which hangs; it must not get to its end before the call does.
    pub fn while_it_hangs<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, String> {
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
    pub fn nothing_left_open(&self) -> Result<(), String> {
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

    pub fn until_it_happens(&self) -> Result<(), String> {
        self.until("the fault happens", || Ok(self.disk.fault_happened()))
    }

    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
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

pub fn ends_well(daemon: &mut Daemon) -> Result<(), String> {
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
