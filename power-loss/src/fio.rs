//! fio as a witness that the flaky disk is honest: it loses what a disk may lose, and nothing that it promised.
//!
//! fio writes blocks that it can verify, and at a sign saves which of them it saw completed; that instant is the cut. An image
//! of it is put on another disk, and fio reads there what it had seen completed.

use crate::disk::{Disk, Pace};
use crate::model::Model;
use crate::trace::{Event, Op, Trace};
use claim_engine::entropy::Entropy;
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The file that the job writes, and its size there.
const DATA: &str = "claimd-fio-witness";
const DATA_BYTES: usize = 64 << 20;
/// Its size changes at the cut, which marks the instant in the trace.
const CUT: &str = "cut";
/// Writes that have completed when the sign is given.
const WRITES: std::ops::Range<u64> = 300..3_000;
/// Requests to the disk take up to this: slow enough that the job does not end before the sign.
const DELAY_US_MAX: u64 = 600;
const SECTOR_BYTES: u64 = 512;
/// Images drawn of one instant, besides those that have a name.
const DRAWS: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(2);

/// A job file, and what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Every write is durable when it completes.
    Dsync,
    /// Writes are durable when a flush says so, and there is none.
    Plain,
}

impl Job {
    /// Both.
    pub const ALL: [Job; 2] = [Job::Dsync, Job::Plain];

    /// The name of its file.
    pub fn file_name(self) -> &'static str {
        match self {
            Job::Dsync => "witness-dsync.fio",
            Job::Plain => "witness-plain.fio",
        }
    }
}

/// What fio says about one image.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The job file.
    pub job: &'static str,
    /// What the cut left.
    pub image: String,
    /// Writes that had completed.
    pub completed: usize,
    /// Blocks that fio verified, the bad one included.
    pub verified: u64,
    /// Whether fio is to find it damaged.
    pub is_damage_due: bool,
    /// Whether it did.
    pub is_damage_found: bool,
    /// Its first words about it.
    pub said: String,
}

impl Verdict {
    /// Whether fio found what was due.
    pub fn is_right(&self) -> bool {
        self.is_damage_due == self.is_damage_found
    }
}

/// Whether fio is there, and if not, what to do.
pub fn look_for_fio() -> Result<(), String> {
    match Command::new("fio").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => {
            Err("fio is not there: install it with `apt-get install fio`, or what the distribution has for that".into())
        }
    }
}

/// Lets a job write, cuts it at one instant, and has several images of that instant verified.
pub fn witness(configs: &Path, scratch: &Path, job: Job, seed: u64, done: impl Fn()) -> Result<Vec<Verdict>, String> {
    let _ = std::fs::remove_dir_all(scratch);
    let path = |e: std::io::Error| format!("{}: {e}", scratch.display());
    let state = std::path::absolute(scratch).map_err(path)?.join("state");
    std::fs::create_dir_all(&state).map_err(path)?;
    let config = std::path::absolute(configs.join(job.file_name())).map_err(path)?;
    if !config.exists() {
        return Err(format!("{} is not there: name the folder of the job files with --configs", config.display()));
    }
    let mut entropy = Entropy::from_seed_u64(seed);
    let trace = write(&config, scratch, &state, &mut entropy)?;
    let cut = u32::from(trace.files[0].name != CUT);
    let instant = trace
        .events
        .iter()
        .position(|event| matches!(event, Event::Resized { file, .. } if *file == cut))
        .ok_or("fio ended before the sign was given: its job is too short for this machine")?;
    let data = 1 - cut as usize;
    let kept = completed_writes(&trace, instant, data);
    let mut model = Model::new(&trace);
    while model.instant() < instant && model.advance() {}

    let mut images: Vec<(String, Vec<u8>, bool)> = Vec::new();
    let is_durable = job == Job::Dsync;
    images.push(("nothing but what is durable".into(), model.durable(data).to_vec(), !is_durable));
    let mut everything = model.durable(data).to_vec();
    kept.iter().for_each(|(offset, bytes)| put(&mut everything, *offset, bytes));
    // One of the first half: of the last ones fio itself knows that they may be under way.
    let (offset, bytes) = kept[entropy.below(kept.len() as u64 / 2) as usize];
    let mut without = everything.clone();
    put(&mut without, offset, &vec![0; bytes.len()]);
    images.push(("everything that has completed".into(), everything, false));
    images.push((format!("the same without the write at {offset}"), without, true));
    for draw in 0..if is_durable { DRAWS } else { 0 } {
        let (drawn, _) = model.image(&mut entropy, SECTOR_BYTES);
        images.push((format!("what may be left, draw {draw}"), drawn[data].to_vec(), false));
    }
    let mut verdicts = Vec::new();
    for (number, (image, content, is_damage_due)) in images.into_iter().enumerate() {
        let found = verify(&config, &scratch.join(format!("image-{number}")), &state, seed, content)?;
        verdicts.push(Verdict {
            job: job.file_name(),
            image,
            completed: kept.len(),
            verified: found.blocks,
            is_damage_due,
            is_damage_found: found.damage.is_some(),
            said: found.damage.unwrap_or_default(),
        });
        done();
    }
    let _ = std::fs::remove_dir_all(scratch);
    Ok(verdicts)
}

/// Images of one instant of a job.
pub fn images_of(job: Job) -> u64 {
    3 + if job == Job::Dsync { DRAWS } else { 0 }
}

/// Runs the writing part on a flaky disk until the sign, and returns what happened there.
fn write(config: &Path, scratch: &Path, state: &Path, entropy: &mut Entropy) -> Result<Trace, String> {
    let disk = mount(&scratch.join("disk"), entropy.next_u64(), vec![0; DATA_BYTES])?;
    disk.put(CUT, Vec::new());
    disk.begin_trace();
    // fio takes as completed all but the last few writes that it submitted, so they have to complete in their order.
    disk.set_in_order();
    disk.set_pace(Pace { delay_max: Duration::from_micros(DELAY_US_MAX), ..Pace::AT_ONCE });
    let sign = state.join("sign");
    let cut = disk.path().join(CUT);
    let mut fio = fio(config, disk.path(), state, "write");
    fio.arg(format!("--trigger-file={}", sign.display()));
    fio.arg(format!("--trigger=truncate -s 1 {}", cut.display()));
    let child = fio.spawn().map_err(|e| format!("cannot run fio: {e}"))?;
    let wanted = WRITES.start + entropy.below(WRITES.end - WRITES.start);
    let mut child = Some(child);
    let began = Instant::now();
    while (disk.completed() as u64) < wanted && began.elapsed() < PATIENCE && is_running(&mut child)? {
        thread::sleep(GLANCE);
    }
    File::create(&sign).map_err(|e| format!("{}: {e}", sign.display()))?;
    while is_running(&mut child)? {
        if began.elapsed() > 2 * PATIENCE {
            let _ = child.take().map(|mut child| child.kill().and_then(|()| child.wait()));
            return Err(format!("fio does not end within {} s of the sign", PATIENCE.as_secs()));
        }
        thread::sleep(GLANCE);
    }
    Ok(disk.end_trace())
}

fn is_running(child: &mut Option<Child>) -> Result<bool, String> {
    let Some(running) = child else { return Ok(false) };
    if running.try_wait().map_err(|e| format!("waiting for fio: {e}"))?.is_some() {
        *child = None;
    }
    Ok(child.is_some())
}

struct Found {
    blocks: u64,
    damage: Option<String>,
}

/// Puts an image on a fresh disk, and has it verified up to where the writing part had come.
fn verify(config: &Path, scratch: &Path, state: &Path, seed: u64, content: Vec<u8>) -> Result<Found, String> {
    let disk = mount(scratch, seed, content)?;
    let report = state.join("report.json");
    let mut fio = fio(config, disk.path(), state, "verify");
    fio.arg("--output-format=json").arg(format!("--output={}", report.display()));
    let output = fio.stderr(Stdio::piped()).output().map_err(|e| format!("cannot run fio: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let text = std::fs::read_to_string(&report).map_err(|e| format!("fio's report: {e}"))?;
    // Words may stand before the object.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let json: serde_json::Value = serde_json::from_str(json).map_err(|e| format!("fio's report: {e}: {text}"))?;
    let blocks = json["jobs"][0]["read"]["total_ios"].as_u64().unwrap_or_default();
    let bad = said.lines().chain(text.lines()).find(|line| line.contains("verify:")).map(str::to_owned);
    match (output.status.success(), bad) {
        (true, None) if blocks > 0 => Ok(Found { blocks, damage: None }),
        (true, None) => Err("fio verified nothing".into()),
        (_, Some(bad)) => Ok(Found { blocks, damage: Some(bad) }),
        (false, None) => Err(format!("fio ended with {}, and not because of the data: {said}", output.status)),
    }
}

fn fio(config: &Path, directory: &Path, state: &Path, section: &str) -> Command {
    let mut fio = Command::new("fio");
    fio.arg(format!("--directory={}", directory.display()))
        .arg(format!("--aux-path={}", state.display()))
        .arg(format!("--section={section}"))
        .arg(config)
        .current_dir(state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    fio
}

fn mount(folder: &Path, seed: u64, content: Vec<u8>) -> Result<Disk, String> {
    let folder: PathBuf = std::path::absolute(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let disk = Disk::mount(&folder, seed).map_err(|e| format!("mounting the flaky disk: {e}"))?;
    disk.put(DATA, content);
    Ok(disk)
}

/// The writes to a file that had completed, in the order of their completion.
fn completed_writes(trace: &Trace, instant: usize, file: usize) -> Vec<(u64, &[u8])> {
    let (mut ops, mut completed) = (Vec::new(), Vec::new());
    for event in &trace.events[..instant] {
        match event {
            Event::Submitted(op) => ops.push(op),
            Event::Completed(number) => {
                if let Op::Write { file: of, offset, data, .. } = ops[*number as usize]
                    && *of as usize == file
                {
                    completed.push((*offset, data.as_slice()));
                }
            }
            _ => {}
        }
    }
    completed
}

fn put(content: &mut [u8], offset: u64, data: &[u8]) {
    content[offset as usize..offset as usize + data.len()].copy_from_slice(data);
}
