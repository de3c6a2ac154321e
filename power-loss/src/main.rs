//! `power-loss`: the commands of the harness.

mod commands;

use clap::{Args, Parser, Subcommand};
use power_loss::cuts::{self, Counts};
use power_loss::daemon::Binary;
use power_loss::load::Weight;
use power_loss::session::{self, Plan};
use power_loss::trace::Trace;
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
    Cuts(CutsArgs),
    /// Every I/O call of the daemon fails in every way, and nothing is lost.
    #[command(after_help = "Example:\n  power-loss faults --call batch")]
    Faults(commands::FaultsArgs),
    /// fio verifies what cuts of the flaky disk leave: clean with O_DSYNC, damaged without. It needs fio.
    #[command(after_help = "Example:\n  power-loss fio --cuts 10")]
    Fio(commands::FioArgs),
    /// Check one image of a kept trace again, as a violation names it.
    #[command(after_help = "Example:\n  power-loss replay target/power-loss/failed.trace.gz --instant 412 --draw 3")]
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
struct CutsArgs {
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
        Command::Faults(args) => commands::faults(&args),
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

fn cuts(args: &CutsArgs) -> Result<(), String> {
    let binary = Binary {
        claimd: claimd_of(args.claimd.as_ref())?,
        arguments: vec!["--batch-fill-bytes".into(), "2K".into()],
        mutant: None,
    };
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("--seed {seed} repeats the load's choices");
    let began = Instant::now();
    let images_of_session = args.images.div_ceil(args.sessions);
    let traces: Mutex<Vec<(u64, Trace)>> = Mutex::default();
    let next = AtomicU64::new(0);
    let totals = Mutex::new((Counts::default(), 0u64, 0usize, 0usize));
    let failure: Mutex<Option<String>> = Mutex::default();
    let recorded = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| loop {
                let session = next.fetch_add(1, Ordering::Relaxed);
                if session >= args.sessions || failure.lock().expect("no panic").is_some() {
                    break;
                }
                let _ = &traces;
                let result = one_session(&binary, args, seed + session, images_of_session);
                recorded.fetch_add(1, Ordering::Relaxed);
                match result {
                    Ok((counts, acknowledged, in_flight)) => {
                        let mut totals = totals.lock().expect("no panic");
                        totals.0.add(&counts);
                        totals.1 += acknowledged as u64;
                        totals.2 = totals.2.max(in_flight);
                        eprintln!("session {session}: {} images, {acknowledged} acknowledged, {in_flight} in flight, {:.1} s", counts.images, began.elapsed().as_secs_f64());
                    }
                    Err(message) => *failure.lock().expect("no panic") = Some(message),
                }
            });
        }
    });
    if let Some(message) = failure.into_inner().expect("no panic") {
        return Err(message);
    }
    let (counts, acknowledged, in_flight, _) = totals.into_inner().expect("no panic");
    println!(
        "{counts:?} acknowledged {acknowledged}, most durable writes in flight {in_flight}, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn one_session(binary: &Binary, args: &CutsArgs, seed: u64, images: u64) -> Result<(Counts, usize, usize), String> {
    let scratch = args.scratch.join(format!("session-{seed}"));
    std::fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let weight = if seed.is_multiple_of(6) { Weight::HEAVY } else { Weight::LIGHT };
    let plan = Plan { seed, runs: 4, run_ms_max: 30, delay_us_max: 1_500, weight };
    let keep = |trace: &Trace, message: String| {
        let path = scratch.join("failed.trace.gz");
        match trace.save(&path) {
            Ok(()) => format!("{message}; the trace is kept in {}", path.display()),
            Err(error) => format!("{message}; the trace could not be kept: {error}"),
        }
    };
    let trace = session::record(binary, &plan, &scratch).map_err(|(message, trace)| keep(&trace, message))?;
    let (counts, violation) = cuts::cut(&trace, images, cuts::mutation_of(&trace), |_| {})?;
    if let Some(violation) = violation {
        let message = format!("{}; --instant {} --draw {}", violation.what, violation.instant, violation.draw);
        return Err(keep(&trace, message));
    }
    let _ = std::fs::remove_dir_all(&scratch);
    let acknowledged = trace.events.iter().filter(|event| {
        matches!(event, power_loss::trace::Event::Client(power_loss::trace::Mark::Acknowledged { .. }))
    });
    Ok((counts, acknowledged.count(), trace.most_in_flight()))
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
