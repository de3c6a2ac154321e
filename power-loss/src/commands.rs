//! The commands that tell what calls do and what fio sees.

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use power_loss::daemon::Binary;
use power_loss::faults::{self, Cell};
use power_loss::fio::{self, Job};
use std::path::PathBuf;

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
