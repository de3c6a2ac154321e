//! `power-loss`: the commands of the harness.

mod commands;

use claim_engine::mutant::Mutant;
use clap::{Args, Parser, Subcommand};
use comfy_table::Table;
use indicatif::ProgressBar;
use power_loss::cuts::{self, Counts, Violation};
use power_loss::daemon::Binary;
use power_loss::deep;
use power_loss::ext4;
use power_loss::load::Weight;
use power_loss::mutants;
use power_loss::needs;
use power_loss::session::{self, Clock, LeftOvers, Plan};
use power_loss::trace::Trace;
use power_loss::years;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[derive(Debug, Parser)]
#[command(name = "power-loss", version, about = "Cuts the power under claimd at every instant", long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The real daemon on a flaky disk: record traces, and check crash images of them.
    #[command(after_help = "Example:\n  power-loss cuts --images 50000")]
    Cuts(SessionArgs),
    /// The same on ext4 over a loop device over the flaky disk: each image is mounted before it is recovered.
    #[command(after_help = "Example:\n  power-loss ext4 --images 300 --sessions 3")]
    Ext4(SessionArgs),
    /// The same under real kernels with a real NVMe driver, in QEMU.
    #[command(after_help = "Example:\n  power-loss deep --images 1000 --kills 20 --kernel 6.12")]
    Deep(deep::Arguments),
    /// Find every deliberate bug in its kept trace, and none in the sound one.
    #[command(after_help = "Example:\n  power-loss mutants")]
    Mutants(MutantsArgs),
    /// Record the traces of the deliberate bugs anew, after a change of the log's format.
    #[command(after_help = "Example:\n  power-loss record --mutant no-dsync")]
    Record(RecordArgs),
    /// Every I/O call of the daemon fails in every way, and nothing is lost.
    #[command(after_help = "Example:\n  power-loss faults --call batch")]
    Faults(commands::FaultsArgs),
    /// More load than a shard can take, on a disk with slow flushes: nothing acknowledged is lost, and refusals are quick.
    #[command(
        after_help = "Examples:\n  power-loss overload --seconds 10\n  power-loss overload --judge\n\nWhat is lost, given twice or never answered, and memory out of bounds always make it fail; times only with --judge,\nwhich belongs on a machine that has two cores free for it."
    )]
    Overload(commands::OverloadArgs),
    /// fio verifies what cuts of the flaky disk leave: clean with O_DSYNC, damaged without. It needs fio.
    #[command(after_help = "Example:\n  power-loss fio --cuts 10")]
    Fio(commands::FioArgs),
    /// Check one image of a kept trace again, as a violation names it.
    #[command(after_help = "Example:\n  power-loss replay target/power-loss/failed.trace.gz --instant 412 --draw 3")]
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
struct SessionArgs {
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    claimd: Option<PathBuf>,
    /// Distinct crash images to check.
    #[arg(long, default_value_t = 50_000)]
    images: u64,
    /// Traces to record, each of a ledger of its own.
    #[arg(long, default_value_t = 24)]
    sessions: u64,
    /// Repeats the load's choices; the operating system makes its own.
    #[arg(long)]
    seed: Option<u64>,
    /// Where sessions run and failed traces are kept.
    #[arg(long, default_value = "target/power-loss")]
    scratch: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct MutantsArgs {
    /// The kept traces.
    #[arg(long, default_value = "power-loss/traces")]
    traces: PathBuf,
    /// Print one JSON object per trace.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RecordArgs {
    /// A daemon built with `cargo build --release -p claimd --features mutants --target-dir target/mutants`.
    #[arg(long, default_value = "target/mutants/release/claimd")]
    claimd: PathBuf,
    /// Only this one; `sound` is the daemon without a bug.
    #[arg(long)]
    mutant: Option<String>,
    /// Where traces are kept.
    #[arg(long, default_value = "power-loss/traces")]
    traces: PathBuf,
    /// Where sessions run.
    #[arg(long, default_value = "target/power-loss")]
    scratch: PathBuf,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// The trace.
    trace: PathBuf,
    /// The instant of the cut.
    #[arg(long)]
    instant: usize,
    /// Which image of that instant.
    #[arg(long)]
    draw: u64,
}

/// Recoveries allocate and free megabytes all the time: the heap keeps them.
fn keep_memory() {
    const KEPT_BYTES: i32 = 256 << 20;
    // SAFETY: mallopt is called before any other thread exists, with parameters that it knows.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
    }
}

fn main() -> ExitCode {
    keep_memory();
    let result = match Cli::parse().command {
        Command::Cuts(args) => cuts(&args),
        Command::Ext4(args) => ext4(&args),
        Command::Deep(args) => deep::run(&args),
        Command::Mutants(args) => judge_mutants(&args),
        Command::Record(args) => record_mutants(&args),
        Command::Faults(args) => commands::faults(&args),
        Command::Overload(args) => commands::overload(&args),
        Command::Fio(args) => commands::fio(&args),
        Command::Replay(args) => replay(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("power-loss: {message}");
            ExitCode::FAILURE
        }
    }
}

fn claimd_of(given: Option<&PathBuf>) -> Result<PathBuf, String> {
    let beside = || std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("claimd")));
    let claimd = given.cloned().or_else(beside).filter(|path| path.exists());
    claimd.ok_or_else(|| "claimd is not there: build it with `cargo build --release`, or name it with --claimd".into())
}

/// What all sessions came to.
#[derive(Debug, Default, Serialize)]
struct Totals {
    sessions: u64,
    #[serde(flatten)]
    counts: Counts,
    acknowledged: u64,
    durable_writes: u64,
    plain_writes: u64,
    flushes: u64,
    most_durable_writes_in_flight: usize,
    freed: u64,
    archives_restored: u64,
    violations: u64,
    seconds: f64,
}

/// Runs `sessions` sessions on all cores, and prints what they came to.
fn sessions(
    args: &SessionArgs,
    one: impl Fn(u64, &Path, &ProgressBar) -> Result<(Trace, Counts), String> + Sync,
) -> Result<(), String> {
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("--seed {seed} repeats the load's choices; how threads interleave is written down in the traces");
    let began = Instant::now();
    let bar = commands::bar(args.images, "images");
    let next = AtomicU64::new(0);
    let totals: Mutex<Totals> = Mutex::default();
    let failure: Mutex<Option<String>> = Mutex::default();
    let work = || {
        loop {
            let session = next.fetch_add(1, Ordering::Relaxed);
            if session >= args.sessions || failure.lock().expect("no panic").is_some() {
                break;
            }
            let scratch = args.scratch.join(format!("session-{}", seed + session));
            let made = std::fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()));
            match made.and_then(|()| one(seed + session, &scratch, &bar)) {
                Ok((trace, counts)) => {
                    let _ = std::fs::remove_dir_all(&scratch);
                    let mut totals = totals.lock().expect("no panic");
                    totals.sessions += 1;
                    totals.counts.add(&counts);
                    totals.acknowledged += trace.acknowledged();
                    let (durable, plain, flushes) = trace.counts();
                    totals.durable_writes += durable;
                    totals.plain_writes += plain;
                    totals.flushes += flushes;
                    let (freed, restored) = trace.freed_and_restored();
                    totals.freed += freed;
                    totals.archives_restored += restored;
                    totals.most_durable_writes_in_flight =
                        totals.most_durable_writes_in_flight.max(trace.most_in_flight());
                }
                Err(message) => {
                    failure.lock().expect("no panic").get_or_insert(message);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    if let Some(message) = failure.into_inner().expect("no panic") {
        return Err(message);
    }
    let mut totals = totals.into_inner().expect("no panic");
    totals.seconds = began.elapsed().as_secs_f64();
    if args.json {
        println!("{}", serde_json::json!(totals));
        return Ok(());
    }
    let Counts { images, with_two_in_flight, after_kill, .. } = totals.counts;
    println!("{images} distinct crash images of {} ledgers: 0 violations", totals.sessions);
    println!(
        "  with a write that the cut may lose: {}; with two or more under way: {with_two_in_flight}",
        totals.counts.with_volatile
    );
    println!("  after the daemon was killed and started again: {after_kill}");
    println!(
        "  from the drop of a quarter until its segments are free: {}; segments were freed {} times",
        totals.counts.around_drop, totals.freed
    );
    println!("  places of rings that were taken again: {}", totals.counts.taken_again);
    println!("  ledgers restored from a segment archive: {}", totals.archives_restored);
    println!(
        "  {} operations acknowledged; {} durable writes, {} plain ones, {} flushes",
        totals.acknowledged, totals.durable_writes, totals.plain_writes, totals.flushes
    );
    println!("  durable writes under way at once: {} at most", totals.most_durable_writes_in_flight);
    println!("  {:.1} s", totals.seconds);
    Ok(())
}

/// Writes a trace down that shows something, and adds where to the message.
fn keep(trace: &Trace, scratch: &Path, message: &str) -> String {
    let path = scratch.join("failed.trace.gz");
    match trace.save(&path) {
        Ok(()) => format!("{message}; the trace is kept in {}", path.display()),
        Err(error) => format!("{message}; the trace could not be kept: {error}"),
    }
}

fn binary(given: Option<&PathBuf>) -> Result<Binary, String> {
    Ok(Binary { claimd: claimd_of(given)?, arguments: session::arguments(Clock::Wall), mutant: None })
}

fn cuts(args: &SessionArgs) -> Result<(), String> {
    needs::check(&[needs::ROOT, needs::FUSE])?;
    let binary = binary(args.claimd.as_ref())?;
    let images = args.images.div_ceil(args.sessions);
    sessions(args, |seed, scratch, bar| {
        // Some ledgers fill segments, some lie where an earlier one lay.
        let weight = if seed.is_multiple_of(6) { Weight::HEAVY } else { Weight::LIGHT };
        let left_overs = if seed % 4 == 1 { LeftOvers::EarlierLedger } else { LeftOvers::None };
        let mut plan = Plan {
            seed,
            runs: 4,
            run_ms_max: 30,
            delay_us_max: 1_500,
            weight,
            left_overs,
            clock: Clock::Wall,
            ring_segments: 0,
        };
        let mut binary = binary.clone();
        // In some years go by, and quarters are dropped; of these some go round in a ring.
        if seed % 4 == 3 || seed % 8 == 6 {
            let clock = Clock::Years { archives: seed % 8 == 7 };
            let ring_segments = if seed % 8 == 6 { years::RING_SEGMENTS } else { 0 };
            plan = Plan { runs: 5, run_ms_max: 60, weight: Weight::SLOW, clock, ring_segments, ..plan };
            binary.arguments = session::arguments(clock);
        }
        let trace =
            session::record(&binary, &plan, scratch).map_err(|(message, trace)| keep(&trace, scratch, &message))?;
        match cuts::cut(&trace, images, cuts::mutation_of(&trace), |images| bar.inc(images))? {
            (counts, None) => Ok((trace, counts)),
            (_, Some(violation)) => {
                let Violation { what, instant, draw, .. } = violation;
                let message = format!("{what}; see it again with power-loss replay --instant {instant} --draw {draw}");
                Err(keep(&trace, scratch, &message))
            }
        }
    })
}

fn ext4(args: &SessionArgs) -> Result<(), String> {
    needs::check(&[needs::ROOT, needs::FUSE, needs::LOOP, needs::MKFS])?;
    let binary = binary(args.claimd.as_ref())?;
    let images = args.images.div_ceil(args.sessions);
    sessions(args, |seed, scratch, bar| {
        // Large rows, so that files grow.
        let plan = Plan {
            seed,
            runs: 3,
            run_ms_max: 80,
            delay_us_max: 800,
            weight: Weight::HEAVY,
            left_overs: LeftOvers::None,
            clock: Clock::Wall,
            ring_segments: 0,
        };
        let trace =
            ext4::record(&binary, &plan, scratch).map_err(|(message, trace)| keep(&trace, scratch, &message))?;
        let counts = ext4::cut(&trace, images, scratch, || bar.inc(1)).map_err(|what| keep(&trace, scratch, &what))?;
        Ok((trace, counts))
    })
}

fn judge_mutants(args: &MutantsArgs) -> Result<(), String> {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(["trace", "images", "found"]);
    let result = mutants::judge_all(&args.traces, |verdict| {
        if args.json {
            println!("{}", serde_json::json!(verdict));
        }
        let what = if verdict.is_caught { &verdict.what } else { "nothing" };
        table.add_row([&verdict.name, &verdict.images.to_string(), what]);
    });
    if !args.json {
        println!("{table}");
    }
    result
}

fn record_mutants(args: &RecordArgs) -> Result<(), String> {
    let all = mutants::MUTANTS.into_iter().map(Some).chain([None]);
    let name_of = |mutant: &Option<(Mutant, Plan)>| mutant.map_or(mutants::SOUND, |(mutant, _)| mutant.name());
    let chosen: Vec<_> = all.filter(|m| args.mutant.as_deref().is_none_or(|name| name == name_of(m))).collect();
    if chosen.is_empty() {
        return Err(format!("there is no mutant {}", args.mutant.as_deref().unwrap_or_default()));
    }
    std::fs::create_dir_all(&args.traces).map_err(|e| format!("{}: {e}", args.traces.display()))?;
    for mutant in chosen {
        let verdict = mutants::record(&args.claimd, mutant, &args.traces, &args.scratch)?;
        println!("{}: {} images; {}", verdict.name, verdict.images, verdict.what);
    }
    Ok(())
}

fn replay(args: &ReplayArgs) -> Result<(), String> {
    let trace = load(&args.trace)?;
    cuts::replay(&trace, args.instant, args.draw, cuts::mutation_of(&trace))?;
    println!("this image breaks nothing");
    Ok(())
}

fn load(path: &Path) -> Result<Trace, String> {
    Trace::load(path).map_err(|e| format!("{}: {e}", path.display()))
}
