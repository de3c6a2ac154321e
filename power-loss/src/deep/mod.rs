//! Layer 3: the real daemon under a real kernel with a real NVMe driver, in QEMU.
//!
//! | module | holds |
//! |---|---|
//! | [`packages`], [`cpio`] | QEMU, kernels, the guest's initial file system |
//! | [`machine`] | one run of the guest |
//! | [`guest`], [`dm`] | what runs in it: modules, devices, the daemon, the load |
//! | [`note`] | what it tells |
//! | [`write_log`] | what the kernel logged of the device, as a trace |
//!
//! Crash images: the daemon's ledger lies on a device whose writes the kernel's target `log-writes` logs with their FUA bits,
//! flushes and the marks of acknowledgements; from the log come the images that a power cut may leave, and each is recovered
//! and checked as those of the other layers are. (QEMU's own log of writes loses the FUA bits.)
//!
//! Kills: the guest is ended by SIGKILL of QEMU under load, again and again on the same disks. The disks are checked after
//! each kill, and the next guest recovers from them.

pub mod cpio;
pub mod dm;
pub mod guest;
pub mod machine;
pub mod note;
pub mod packages;
pub mod write_log;

use crate::check::{Expectations, check, superblocks};
use crate::cuts;
use crate::image::Image;
use crate::trace::{BaseFile, Event, Mark, Trace};
use claim_engine::entropy::Entropy;
use claim_engine::mutant::{Mutant, Mutation};
use comfy_table::Table;
use guest::{Orders, SERIAL_LEDGER, SERIAL_LOG, SHARDS};
use indicatif::{ProgressBar, ProgressStyle};
use machine::Machine;
use note::Note;
use packages::{Kernel, Qemu};
use serde::Serialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The logged device: both shards.
const LEDGER_BYTES: u64 = 64 << 20;
/// The device that the log goes to; sparse.
const LOG_BYTES: u64 = 4 << 30;
/// The device of one shard where QEMU is killed; sparse.
const SHARD_BYTES: u64 = 256 << 20;
/// Runs of the daemon in one guest, of which each but the last is killed.
const DAEMON_RUNS: u64 = 3;
/// The load of one run in a guest that is logged, at most.
const RUN_MS_MAX: u64 = 2_500;
/// Images that are drawn from one log, about; more come from more guests.
const IMAGES_PER_LOG: u64 = 500;
/// Images that are drawn beyond those wanted: some turn out to have been drawn before.
const IMAGES_SPARE: u64 = 20;
/// The load that a kill of QEMU ends, in any case: the kill comes first.
const LIVE_MS_MAX: u64 = 60_000;
/// How long after the daemon serves QEMU is killed, at most.
const KILL_AFTER_MS_MAX: u64 = 2_500;
/// What a write-back device says of itself.
const WRITE_BACK: &str = "write back";

/// What `--deep` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Crash images to check, for each kernel.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub images: u64,
    /// Kills of QEMU under load, each followed by a restart on the same disks.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub kills: u64,
    /// Only this kernel: 6.1 or 6.12; by default both, one after the other, and by turns where QEMU is killed.
    #[arg(long, value_parser = ["6.1", "6.12"])]
    pub kernel: Option<String>,
    /// Repeats the load's choices; the operating systems make their own.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Give the daemon a deliberate bug, which must be found: `no-dsync`, `ack-before-durable` and others.
    #[arg(long)]
    pub mutant: Option<String>,
    /// Where packages are unpacked, guests run, and what failed is kept.
    #[arg(long, default_value = "target/power-loss/deep")]
    pub scratch: PathBuf,
    /// Print one JSON object per line, of each kernel and of the kills.
    #[arg(long)]
    pub json: bool,
}

/// What one kernel's logs gave.
#[derive(Debug, Clone, Serialize)]
struct KernelRow {
    kernel: String,
    runs: u64,
    log: write_log::Counts,
    acknowledged: u64,
    images: u64,
    with_volatile: u64,
    with_two_in_flight: u64,
    violations: u64,
    seconds: f64,
}

/// What the kills gave.
#[derive(Debug, Clone, Default, Serialize)]
struct KillsRow {
    kills: u64,
    restarts: u64,
    acknowledged: u64,
    lost: u64,
    seconds: f64,
}

/// What every run needs.
struct Bench<'a> {
    arguments: &'a Arguments,
    seed: u64,
    qemu: Qemu,
    claimd: Vec<u8>,
    guest: Vec<u8>,
    mutation: Mutation,
}

/// Does all of it and prints what came out. The error is a sentence.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let say = |text: &str| {
        if !arguments.json {
            eprintln!("power-loss: {text}");
        }
    };
    let mutant = match arguments.mutant.as_deref() {
        Some(name) => Some(Mutant::from_name(name).ok_or_else(|| unknown_mutant(name))?),
        None => None,
    };
    let scratch = &arguments.scratch;
    fs::create_dir_all(scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let (qemu, kernels) = packages::bring(scratch, &say)?;
    say("building claimd for the guest, with the C library in it");
    let features: &[&str] = if mutant.is_some() { &["--features", "claimd/mutants"] } else { &[] };
    let claimd = build(scratch, "claimd", features)?;
    let guest = build(scratch, "power-loss-guest", &["--package", "power-loss"])?;
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()));
    say(&format!("--seed {seed} repeats the load's choices"));
    let bench = Bench { arguments, seed, qemu, claimd, guest, mutation: Mutation::new(mutant) };
    let is_wanted = |kernel: &Kernel| arguments.kernel.as_deref().is_none_or(|wanted| wanted == kernel.name);
    let kernels: Vec<_> = kernels.into_iter().filter(is_wanted).collect();

    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for kernel in &kernels {
        let (row, failure) = bench.logged(kernel)?;
        print_json(arguments, "kernel", &row)?;
        failures.extend(failure.map(|failure| format!("kernel {}: {failure}", row.kernel)));
        rows.push(row);
    }
    let (kills, failure) = bench.kills(&kernels)?;
    print_json(arguments, "kills", &kills)?;
    failures.extend(failure);
    if !arguments.json {
        print_tables(&rows, &kills);
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn unknown_mutant(name: &str) -> String {
    let known: Vec<_> = Mutant::ALL.iter().map(|(_, name)| *name).collect();
    format!("there is no mutant {name}; there are {}", known.join(", "))
}

/// Builds a program that needs no libraries, beside the usual builds and not in their place.
fn build(scratch: &Path, program: &str, more: &[&str]) -> Result<Vec<u8>, String> {
    let target = scratch.join("build");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "--release", "--target", TARGET, "--bin", program]);
    command.args(more).arg("--target-dir").arg(&target);
    if !more.contains(&"--package") {
        command.args(["--package", program]);
    }
    // The whole of a release build's optimization takes minutes and gains nothing in an emulator.
    let profile = [("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "0")];
    command.envs(profile.map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)));
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    packages::output(&mut command)?;
    let path = target.join(TARGET).join("release").join(program);
    fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
}

fn print_json(arguments: &Arguments, what: &str, row: &impl Serialize) -> Result<(), String> {
    if arguments.json {
        let mut value = serde_json::to_value(row).map_err(|e| e.to_string())?;
        value["what"] = what.into();
        println!("{value}");
    }
    Ok(())
}

fn print_tables(rows: &[KernelRow], kills: &KillsRow) {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "kernel",
        "runs",
        "log entries",
        "FUA writes",
        "plain",
        "flushes",
        "acknowledged",
        "images",
        "with volatile writes",
        "two in flight",
        "violations",
        "s",
    ]);
    for row in rows {
        table.add_row([
            row.kernel.clone(),
            row.runs.to_string(),
            row.log.entries.to_string(),
            row.log.fua.to_string(),
            row.log.plain.to_string(),
            row.log.flushes.to_string(),
            row.acknowledged.to_string(),
            row.images.to_string(),
            row.with_volatile.to_string(),
            row.with_two_in_flight.to_string(),
            row.violations.to_string(),
            format!("{:.0}", row.seconds),
        ]);
    }
    println!("{table}");
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["QEMU kills", "restarts", "acknowledged", "lost", "s"]);
    let KillsRow { kills, restarts, acknowledged, lost, seconds } = kills;
    let seconds = format!("{seconds:.0}");
    table.add_row([&kills.to_string(), &restarts.to_string(), &acknowledged.to_string(), &lost.to_string(), &seconds]);
    println!("{table}");
}

fn bar(length: u64, what: &str, is_hidden: bool) -> ProgressBar {
    let bar = if is_hidden { ProgressBar::hidden() } else { ProgressBar::new(length) };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("the template is fixed");
    bar.with_style(style).with_message(what.to_owned())
}

fn acknowledged(events: &[Event]) -> u64 {
    events.iter().filter(|event| matches!(event, Event::Client(Mark::Acknowledged { .. }))).count() as u64
}

impl Bench<'_> {
    fn initramfs(&self, kernel: &Kernel, folder: &Path) -> Result<PathBuf, String> {
        let mut archive = cpio::Archive::default();
        let modules = guest::MODULES.trim_start_matches('/');
        for dir in ["dev", "proc", "sys", modules] {
            archive.directory(dir);
        }
        archive.device("dev/console", 5, 1);
        for (number, (name, content)) in kernel.modules.iter().enumerate() {
            archive.program(&format!("{modules}/{number}-{name}.ko"), content);
        }
        archive.program("claimd", &self.claimd);
        archive.program("init", &self.guest);
        let path = folder.join(format!("initramfs-{}", kernel.name));
        fs::write(&path, archive.finish()).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    fn orders(&self, is_logged: bool, run: u64, run_ms_max: u64) -> Orders {
        Orders { is_logged, seed: self.seed + run, run, run_ms_max, mutant: self.arguments.mutant.clone() }
    }

    /// Guests whose device is logged, until there are enough images.
    fn logged(&self, kernel: &Kernel) -> Result<(KernelRow, Option<String>), String> {
        let began = Instant::now();
        let mut row = KernelRow {
            kernel: kernel.name.to_owned(),
            runs: 0,
            log: write_log::Counts::default(),
            acknowledged: 0,
            images: 0,
            with_volatile: 0,
            with_two_in_flight: 0,
            violations: 0,
            seconds: 0.0,
        };
        let folder = self.fresh(&format!("logged-{}", kernel.name))?;
        let initramfs = self.initramfs(kernel, &folder)?;
        let bar = bar(self.arguments.images, &format!("images, kernel {}", kernel.name), self.arguments.json);
        let mut failure = None;
        while row.images < self.arguments.images && failure.is_none() {
            let disks = [(SERIAL_LEDGER, LEDGER_BYTES), (SERIAL_LOG, LOG_BYTES)];
            let disks = disks.map(|(serial, bytes)| (serial.to_owned(), folder.join(serial), bytes));
            let disks = new_disks(disks)?;
            let orders = Orders { seed: self.seed + row.runs, ..self.orders(true, DAEMON_RUNS, RUN_MS_MAX) };
            let machine = Machine::start(&self.qemu, kernel, &initramfs, &disks, &orders, &folder)?;
            let notes = machine.wait()?;
            row.kernel = release(&notes)?;
            let entries = write_log::read(&disks[1].1)?;
            let mut trace = write_log::trace(&entries, &notes, LEDGER_BYTES, SHARDS)?;
            trace.mutant.clone_from(&self.arguments.mutant);
            let counts = write_log::Counts::of(&entries);
            if counts.fua == 0 && trace.mutant.is_none() {
                return Err(format!("the log of kernel {} has no write with FUA: the device lost it", row.kernel));
            }
            let wanted = IMAGES_PER_LOG.min(self.arguments.images - row.images) + IMAGES_SPARE;
            let (checked, violation) = cuts::cut(&trace, wanted, self.mutation, |done| bar.inc(done))?;
            row.runs += 1;
            row.log.add(counts);
            row.acknowledged += acknowledged(&trace.events);
            row.images += checked.images;
            row.with_volatile += checked.with_volatile;
            row.with_two_in_flight += checked.with_two_in_flight;
            if let Some(violation) = violation {
                row.violations += 1;
                let path = folder.join("failed.trace.gz");
                trace.save(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                failure = Some(format!(
                    "{}; see it again with `cargo run -p power-loss -- replay {} --instant {} --draw {}`; the log is {}",
                    violation.what,
                    path.display(),
                    violation.instant,
                    violation.draw,
                    disks[1].1.display()
                ));
            } else if checked.images == 0 {
                return Err(format!("the log in {} gives no image at all", folder.display()));
            }
        }
        bar.finish_and_clear();
        row.seconds = began.elapsed().as_secs_f64();
        if failure.is_none() {
            let _ = fs::remove_dir_all(&folder);
        }
        Ok((row, failure))
    }

    /// Guests that are killed, by turns under each kernel.
    fn kills(&self, kernels: &[Kernel]) -> Result<(KillsRow, Option<String>), String> {
        let began = Instant::now();
        let mut row = KillsRow::default();
        if self.arguments.kills == 0 {
            return Ok((row, None));
        }
        let folder = self.fresh("kills")?;
        let disks: Vec<_> = (0..SHARDS)
            .map(|shard| format!("{SERIAL_LEDGER}{shard}"))
            .map(|serial| (serial.clone(), folder.join(serial), SHARD_BYTES))
            .collect();
        let disks = new_disks(disks)?;
        let mut initramfs = Vec::new();
        for kernel in kernels {
            initramfs.push(self.initramfs(kernel, &folder)?);
        }
        let mut entropy = Entropy::from_seed_u64(self.seed);
        let mut events = Vec::new();
        let bar = bar(self.arguments.kills, "kills of QEMU", self.arguments.json);
        let mut failure = None;
        for run in 0..=self.arguments.kills {
            let turn = run as usize % kernels.len();
            let is_last = run == self.arguments.kills;
            let orders = self.orders(false, run, if is_last { 0 } else { LIVE_MS_MAX });
            let start = || Machine::start(&self.qemu, &kernels[turn], &initramfs[turn], &disks, &orders, &folder);
            let mut machine = start()?;
            let notes = if is_last {
                machine.wait()
            } else {
                machine.wait_for(|note| matches!(note, Note::Client(Mark::Acknowledged { .. } | Mark::Seen { .. })))?;
                std::thread::sleep(Duration::from_millis(entropy.below(KILL_AFTER_MS_MAX)));
                row.kills += 1;
                machine.kill()
            };
            let serves = |notes: &[Note]| notes.iter().any(|note| matches!(note, Note::Serving));
            match notes {
                Ok(notes) => {
                    row.restarts += u64::from(run > 0 && serves(&notes));
                    events.extend(notes.into_iter().filter_map(|note| match note {
                        Note::Client(mark) => Some(Event::Client(mark)),
                        _ => None,
                    }));
                }
                Err(message) => failure = Some(format!("run {run}: {message}")),
            }
            row.acknowledged = acknowledged(&events);
            if let Err(message) = self.check_disks(&disks, &mut events, &mut entropy) {
                row.lost += 1;
                failure = Some(format!("after kill {}: {message}; the disks are in {}", row.kills, folder.display()));
            }
            if failure.is_some() {
                break;
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        row.seconds = began.elapsed().as_secs_f64();
        if failure.is_none() {
            let _ = fs::remove_dir_all(&folder);
        }
        Ok((row, failure))
    }

    /// Holds what is on the disks against everything that clients were told so far. The disks stay as they are.
    fn check_disks(
        &self,
        disks: &[(String, PathBuf)],
        events: &mut Vec<Event>,
        entropy: &mut Entropy,
    ) -> Result<(), String> {
        let mut files = Vec::new();
        for (shard, (_, path)) in disks.iter().enumerate() {
            let content = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
            files.push(BaseFile { name: format!("shard-{shard:04}.ledger"), content });
        }
        let trace = Trace { files, events: std::mem::take(events), ..Trace::default() };
        let result = superblocks(&trace).and_then(|superblocks| {
            let expectations = Expectations::of(&trace, &superblocks, self.mutation);
            let images: Vec<_> = superblocks.iter().map(|(index, _)| Image::of(&trace.files[*index].content)).collect();
            let images: Vec<_> = images.iter().collect();
            check(&images, &superblocks, &expectations, trace.events.len(), self.mutation, entropy)
        });
        *events = trace.events;
        result
    }

    fn fresh(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.arguments.scratch.join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(folder)
    }
}

/// Makes disks of zeroes, which take no space until they are written to.
fn new_disks(disks: impl IntoIterator<Item = (String, PathBuf, u64)>) -> Result<Vec<(String, PathBuf)>, String> {
    let make = |(serial, path, bytes): (String, PathBuf, u64)| {
        let made = File::create(&path).and_then(|file| file.set_len(bytes));
        made.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok((serial, path))
    };
    disks.into_iter().map(make).collect()
}

/// The kernel of a guest, if its devices are what they should be.
fn release(notes: &[Note]) -> Result<String, String> {
    let machine = notes.iter().find_map(|note| match note {
        Note::Machine { kernel, devices } => Some((kernel, devices)),
        _ => None,
    });
    let (kernel, devices) = machine.ok_or("the guest did not say what it is")?;
    match devices.iter().find(|(_, cache, fua)| cache != WRITE_BACK || !fua) {
        None => Ok(kernel.clone()),
        Some((serial, cache, fua)) => {
            Err(format!("the NVMe device {serial} says write_cache={cache}, fua={fua}, not {WRITE_BACK} and true"))
        }
    }
}
