//! The commands that tell what calls do, what too much load does and what fio sees.

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use power_loss::daemon::Binary;
use power_loss::faults::{self, Cell};
use power_loss::fio::{self, Job};
use power_loss::needs;
use power_loss::overload::{self, Criterion, Latency, Plan, Report};
use std::path::PathBuf;
use std::time::Duration;

/// Width of a table where there is no terminal.
const TABLE_COLUMNS: u16 = 150;

#[derive(Debug, Args)]
pub struct FaultsArgs {
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    claimd: Option<PathBuf>,
    /// Only the calls whose name has this in it.
    #[arg(long)]
    call: Option<String>,
    /// Cells at once: most of their time they wait.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    at_once: u16,
    /// Where ledgers lie, and what a failed cell leaves is kept.
    #[arg(long, default_value = "target/power-loss")]
    scratch: PathBuf,
    /// Print one JSON object per cell.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct OverloadArgs {
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    claimd: Option<PathBuf>,
    /// How long half load lasts, and overload.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Overload, as a multiple of the capacity that is measured first.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    times: u32,
    /// What each flush and each durable write takes.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    flush_us: u64,
    /// Passed to `claimd start`: what the shard holds without an answer, at most. With flushes this slow it decides about the
    /// capacity, and a small one makes it so small that one core can send ten times as much. 0: the daemon's own.
    #[arg(long, default_value_t = 64)]
    debt_requests: u64,
    /// The same in MiB. 0: the daemon's own.
    #[arg(long, default_value_t = 0)]
    debt_mib: u64,
    /// Connections, each with a corpus of its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    connections: u64,
    /// Metadata of each claim.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(..=65_536))]
    metadata_bytes: u64,
    /// The most requests at a time with which the capacity is looked for.
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    outstanding_max: u64,
    /// What overload may add to the daemon's memory in MiB, beyond that of the rows it accepts.
    #[arg(long, default_value_t = 64)]
    memory_mib_max: u64,
    /// Where the disk is mounted; the daemon's log is kept there if something does not hold.
    #[arg(long, default_value = "target/power-loss")]
    scratch: PathBuf,
    /// Fail when times are out of bounds, too.
    #[arg(long)]
    judge: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct FioArgs {
    /// The folder of the job files.
    #[arg(long, default_value = "fio-configs")]
    configs: PathBuf,
    /// Instants at which each job is cut.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    cuts: u64,
    /// Repeats the choices of instants and images.
    #[arg(long)]
    seed: Option<u64>,
    /// Where disks are mounted.
    #[arg(long, default_value = "target/power-loss")]
    scratch: PathBuf,
    /// Print one JSON object per image.
    #[arg(long)]
    json: bool,
}

pub fn bar(length: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what}  {{elapsed}}"));
    ProgressBar::new(length).with_style(style.expect("the template is valid"))
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(TABLE_COLUMNS).set_header(header);
    table
}

pub fn faults(args: &FaultsArgs) -> Result<(), String> {
    let binary = Binary { claimd: crate::claimd_of(args.claimd.as_ref())?, arguments: Vec::new(), mutant: None };
    let bar = bar(faults::cells(), "cells");
    let done = |cell: &Cell| {
        bar.inc(1);
        if let Some(wrong) = &cell.wrong {
            bar.suspend(|| eprintln!("{}, {}: {wrong}", cell.call, cell.fault));
        }
    };
    let cells = faults::matrix(&binary, &args.scratch, args.call.as_deref(), usize::from(args.at_once), done);
    bar.finish_and_clear();
    if cells.is_empty() {
        return Err(format!("no call has {:?} in its name", args.call.as_deref().unwrap_or_default()));
    }
    let wrong = cells.iter().filter(|cell| cell.wrong.is_some()).count();
    if args.json {
        cells.iter().for_each(|cell| println!("{}", serde_json::json!(cell)));
    } else {
        let mut table = table(["call", "fault", "what happened", "errors of clients", "acknowledged", "images"]);
        for cell in &cells {
            let errors: Vec<_> = cell.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
            let happened = cell.wrong.as_ref().map_or_else(|| cell.happened.clone(), |wrong| format!("WRONG: {wrong}"));
            let (acknowledged, images) = (cell.acknowledged.to_string(), cell.images.to_string());
            table.add_row([cell.call, cell.fault, &happened, &errors.join(", "), &acknowledged, &images]);
        }
        println!("{table}");
        let (acknowledged, images) = cells.iter().fold((0, 0), |(a, i), cell| (a + cell.acknowledged, i + cell.images));
        println!(
            "{} cells, {wrong} not as expected; {acknowledged} operations acknowledged, {images} crash images checked",
            cells.len()
        );
    }
    if wrong > 0 { Err(format!("{wrong} of {} cells are not as expected", cells.len())) } else { Ok(()) }
}

pub fn overload(args: &OverloadArgs) -> Result<(), String> {
    needs::check(&[needs::ROOT, needs::FUSE])?;
    let option = |name: &str, value: u64| (value > 0).then(|| [name.to_owned(), value.to_string()]);
    let debt = [option("--debt-requests", args.debt_requests), option("--debt-mib", args.debt_mib)];
    let arguments = debt.into_iter().flatten().flatten().collect();
    let binary = Binary { claimd: crate::claimd_of(args.claimd.as_ref())?, arguments, mutant: None };
    let plan = Plan {
        time: Duration::from_secs(args.seconds),
        times: f64::from(args.times),
        flush: Duration::from_micros(args.flush_us),
        connections: args.connections,
        metadata_bytes: args.metadata_bytes as usize,
        outstanding_max: args.outstanding_max as usize,
        memory_bytes_max: args.memory_mib_max << 20,
    };
    let scratch = args.scratch.join(format!("overload-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let report = overload::run(&binary, &plan, &scratch, |what| eprintln!("{what}"))?;
    if args.json {
        println!("{}", serde_json::json!(report));
    } else {
        print_overload(&report);
    }
    let counts = |criterion: &&Criterion| !criterion.holds && (args.judge || !criterion.is_timing);
    let broken: Vec<_> = report.criteria.iter().filter(counts).map(|criterion| criterion.what).collect();
    if broken.is_empty() {
        let _ = std::fs::remove_dir_all(&scratch);
        return Ok(());
    }
    Err(format!(
        "not as it must be: {}; the daemon's log is {}",
        broken.join("; "),
        scratch.join("claimd.log").display()
    ))
}

fn print_overload(report: &Report) {
    let Report { capacity_per_s, capacity_outstanding, flush_ms, .. } = report;
    println!("capacity: {capacity_per_s:.0} claims/s, with {capacity_outstanding} at a time and {flush_ms} ms a flush");
    let mut rates =
        table(["load", "wanted/s", "offered/s", "accepted/s", "refused/s", "unsent", "unanswered", "errors"]);
    let mut times = table(["load", "what", "count", "p50 ms", "p99 ms", "p99.9 ms", "max ms"]);
    for stretch in &report.stretches {
        let whole = |rate: f64| format!("{rate:.0}");
        let errors: Vec<_> = stretch.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
        rates.add_row([
            stretch.load.to_owned(),
            whole(stretch.wanted_per_s),
            whole(stretch.offered_per_s),
            whole(stretch.accepted_per_s),
            whole(stretch.refused_per_s),
            stretch.unsent.to_string(),
            stretch.unanswered.to_string(),
            errors.join(", "),
        ]);
        for (what, latency) in
            [("accepted", stretch.accepted), ("refused", stretch.refused), ("generator late", stretch.late)]
        {
            let Latency { count, p50_ms, p99_ms, p999_ms, max_ms } = latency;
            let quantiles = [p50_ms, p99_ms, p999_ms, max_ms].map(|ms| format!("{ms:.2}"));
            times.add_row([stretch.load.to_owned(), what.to_owned(), count.to_string()].into_iter().chain(quantiles));
        }
    }
    println!("{rates}\n{times}");
    let mib = |bytes: u64| bytes >> 20;
    let memory = report.memory;
    println!(
        "memory of the daemon: {} MiB at start, {} before overload, {} after it, {} at most",
        mib(memory.at_start),
        mib(memory.before_overload),
        mib(memory.after_overload),
        mib(memory.peak)
    );
    println!(
        "during overload: at most {} requests held by the shard, status answered within {} ms",
        report.debt_requests_most, report.status_ms_max
    );
    println!("after a kill and a restart: {} rows, {} claims acknowledged", report.kept.rows, report.kept.acknowledged);
    let mut criteria = table(["what must hold", "found", "due", ""]);
    for Criterion { what, found, due, holds, is_timing } in &report.criteria {
        let verdict = match (holds, is_timing) {
            (true, _) => "holds",
            (false, true) => "does not hold (judged with --judge)",
            (false, false) => "DOES NOT HOLD",
        };
        criteria.add_row([*what, found, due, verdict]);
    }
    println!("{criteria}");
}

pub fn fio(args: &FioArgs) -> Result<(), String> {
    fio::look_for_fio()?;
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()));
    if !args.json {
        println!("--seed {seed} repeats the choices");
    }
    let bar = bar(Job::ALL.iter().map(|job| args.cuts * fio::images_of(*job)).sum(), "images");
    let mut verdicts = Vec::new();
    for job in Job::ALL {
        for cut in 0..args.cuts {
            let scratch = args.scratch.join(format!("fio-{}-{cut}", std::process::id()));
            verdicts.extend(fio::witness(&args.configs, &scratch, job, seed + cut, || bar.inc(1))?);
        }
    }
    bar.finish_and_clear();
    let wrong = verdicts.iter().filter(|verdict| !verdict.is_right()).count();
    if args.json {
        verdicts.iter().for_each(|verdict| println!("{}", serde_json::json!(verdict)));
    } else {
        let mut table = table(["job", "image of the cut", "completed", "verified", "due", "fio finds"]);
        for verdict in &verdicts {
            let due = if verdict.is_damage_due { "damage" } else { "clean" };
            let found = if verdict.is_damage_found { verdict.said.as_str() } else { "clean" };
            let found = if verdict.is_right() { found.to_owned() } else { format!("WRONG: {found}") };
            let (completed, verified) = (verdict.completed.to_string(), verdict.verified.to_string());
            table.add_row([verdict.job, &verdict.image, &completed, &verified, due, &found]);
        }
        println!("{table}");
    }
    if wrong > 0 { Err(format!("fio finds something else than is due in {wrong} images")) } else { Ok(()) }
}
