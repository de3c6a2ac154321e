//! The same on ext4: the ledger's files lie in a file system, whose device is a loop device over a file of the flaky disk. A cut
//! then loses what the file system had under way, too: sizes, extents, journal. Each image is mounted, so that the journal is
//! replayed by the kernel, before the ledger's own recovery runs.
//!
//! A loop device has no FUA: a durable write becomes a write and a flush. Its sectors have 4,096 bytes, which is the unit
//! between which a write is torn here.

use crate::check::{Expectations, check};
use crate::cuts::{Counts, instants};
use crate::daemon::Binary;
use crate::disk::{Disk, Pace};
use crate::image::{Image, run};
use crate::model::Model;
use crate::session::{self, Plan};
use crate::trace::Trace;
use claim_engine::entropy::Entropy;
use claim_engine::log::superblock::Superblock;
use claim_engine::mutant::Mutation;
use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Bytes of the file system's device.
const DEVICE_BYTES: usize = 48 << 20;
/// How often an unmount is tried, and how long between two tries.
const UNMOUNTS_MAX: u32 = 50;
const UNMOUNT_AGAIN: Duration = Duration::from_millis(100);
/// The unit between which a write is torn.
pub const SECTOR_BYTES: u64 = 4096;
/// Draws until one differs from those before.
const TRIES: u64 = 8;
/// The file of the flaky disk that the loop device lies on.
const DEVICE: &str = "device.img";
/// The ledger's directory in the file system.
const LEDGER: &str = "ledger";

/// Runs a program to its end. The error is what it said.
fn command(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|e| format!("cannot run {program}: {e}; it is needed for the ext4 layer"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{program} {}: {}", arguments.join(" "), text(&output.stderr)))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the harness are text")
}

/// A loop device over a file; it is detached when this goes.
struct Loop(String);

impl Loop {
    /// Over a file that lies in memory.
    fn over(file: &Path) -> Result<Loop, String> {
        command("losetup", &["--find", "--show", text(file)]).map(Loop)
    }

    /// Over a file of the flaky disk: its writes and flushes arrive there.
    fn attach(file: &Path) -> Result<Loop, String> {
        let arguments = ["--find", "--show", "--direct-io=on", "--sector-size=4096", text(file)];
        let device = command("losetup", &arguments).map(Loop)?;
        // The kernel remembers of a loop device that somebody switched its cache off, and then sends no flushes.
        let cache = format!("/sys/block/{}/queue/write_cache", device.0.trim_start_matches("/dev/"));
        let set = fs::write(&cache, "write back").and_then(|()| fs::read_to_string(&cache));
        match set {
            Ok(found) if found.trim() == "write back" => Ok(device),
            other => {
                Err(format!("{cache} can't be set to `write back`, so the kernel would send no flushes: {other:?}"))
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = command("losetup", &["--detach", &self.0]);
    }
}

/// A mounted file system; it is unmounted when this goes.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn mount(device: &str, options: &str, path: &'a Path) -> Result<Mounted<'a>, String> {
        fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))?;
        command("mount", &["-t", "ext4", "-o", options, device, text(path)])?;
        Ok(Mounted(path))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Others look into file systems as they come, which keeps them busy for a moment.
        for _ in 0..UNMOUNTS_MAX {
            match command("umount", &[text(self.0)]) {
                Ok(_) => return,
                Err(_) => std::thread::sleep(UNMOUNT_AGAIN),
            }
        }
        eprintln!("{} stays mounted: `umount` says why", self.0.display());
    }
}

/// Records a session on ext4.
pub fn record(binary: &Binary, plan: &Plan, scratch: &Path) -> Result<Trace, (String, Trace)> {
    let early = |e: String| (e, Trace::default());
    let disk = Disk::mount(&scratch.join("disk"), plan.seed).map_err(|e| early(format!("the flaky disk: {e}")))?;
    disk.put(DEVICE, vec![0; DEVICE_BYTES]);
    let device = Loop::attach(&disk.path().join(DEVICE)).map_err(early)?;
    let options = ["-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", &device.0];
    command("mkfs.ext4", &options).map_err(early)?;
    let path = scratch.join("ext4");
    let mounted = Mounted::mount(&device.0, "noatime", &path).map_err(early)?;
    let data = path.join(LEDGER);
    binary.format(&data, &session::FORMAT).map_err(early)?;
    command("sync", &["-f", text(&path)]).map_err(early)?;
    disk.wait_until_idle();
    disk.begin_trace();
    disk.set_pace(Pace { delay_max: Duration::from_micros(plan.delay_us_max), ..Pace::AT_ONCE });
    // What the kernel has under way for a killed process goes on: the file system relies on it.
    let result = session::runs(binary, plan, scratch, &disk, &data, None);
    let trace = disk.end_trace();
    disk.set_pace(Pace::AT_ONCE);
    drop(mounted);
    drop(device);
    match result {
        Ok(()) => Ok(trace),
        Err(message) => Err((message, trace)),
    }
}

/// Puts an image into a file, mounts it, and reads the ledger's files.
fn shards_of(image: &[u8], count: Option<usize>, scratch: &Path) -> Result<Vec<Vec<u8>>, String> {
    // A file and a device for each image: the kernel lets go of a device some time after its file system is unmounted.
    let mut file = tempfile::NamedTempFile::new_in(scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    file.write_all(image).map_err(|e| format!("{}: {e}", file.path().display()))?;
    let device = Loop::over(file.path())?;
    let path: PathBuf = scratch.join("mounted");
    let mounted = Mounted::mount(&device.0, "noatime", &path)?;
    let data = path.join(LEDGER);
    let mut shards = Vec::new();
    for shard in 0..count.unwrap_or(usize::MAX) {
        let file = data.join(format!("shard-{shard:04}.ledger"));
        match fs::read(&file) {
            Ok(bytes) => shards.push(bytes),
            Err(_) if count.is_none() && shard > 0 => break,
            Err(error) => return Err(format!("{}: {error}", file.display())),
        }
    }
    drop(mounted);
    Ok(shards)
}

/// Mounts and checks `images` images of a trace. The error names the instant and the draw.
pub fn cut(trace: &Trace, images: u64, scratch: &Path, mut progress: impl FnMut()) -> Result<Counts, String> {
    let device = trace.files.iter().position(|file| file.name == DEVICE).ok_or("the trace has no device")?;
    // Images are put where memory is: thousands of megabytes in all.
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir_in(scratch));
    let memory = memory.map_err(|e| format!("a directory for images: {e}"))?;
    let mut superblocks = Vec::new();
    for bytes in shards_of(&trace.files[device].content, None, memory.path())? {
        let superblock = run(Superblock::read(&Image::of(&bytes))).map_err(|e| e.to_string())?;
        superblocks.push((device, superblock));
    }
    let expectations = Expectations::of(trace, &superblocks, Mutation::NONE);
    let instants = instants(trace);
    let mut counts = Counts::default();
    let mut drawn = HashSet::new();
    let mut model = Model::new(trace);
    for n in 0..images {
        // Spread over the whole trace; twice at an instant only where there are more images than instants.
        let (instant, in_flight) = instants[(n as usize * instants.len() / images as usize).min(instants.len() - 1)];
        while model.instant() < instant && model.advance() {}
        let entropy_of = |draw: u64| Entropy::from_seed_u64((instant as u64) << 20 ^ draw);
        let fingerprint_of = |draw: &u64| model.image(&mut entropy_of(*draw), SECTOR_BYTES).1;
        let mut draws = (0..TRIES).map(|again| n + again * images);
        let Some(draw) = draws.find(|draw| drawn.insert(fingerprint_of(draw))) else { continue };
        let mut entropy = entropy_of(draw);
        let (files, _) = model.image(&mut entropy, SECTOR_BYTES);
        let fail = |what: String| format!("instant {instant}, draw {draw}: {what}");
        let shards = shards_of(&files[device].to_vec(), Some(superblocks.len()), memory.path()).map_err(fail)?;
        let shards: Vec<_> = shards.iter().map(|bytes| Image::of(bytes)).collect();
        let shards: Vec<_> = shards.iter().collect();
        check(&shards, &superblocks, &expectations, instant, Mutation::NONE, &mut entropy).map_err(fail)?;
        counts.images += 1;
        counts.with_volatile += 1;
        counts.with_two_in_flight += u64::from(in_flight >= 2);
        progress();
    }
    Ok(counts)
}
