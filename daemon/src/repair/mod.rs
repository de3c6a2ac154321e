//! `claimd repair`: makes a damaged ledger openable again, and says what that cost.
//!
//! What is proven stays: everything up to the first damage, in a new file, block for block. What lies behind it is given
//! up, even where it reads well, because the chain to it is broken; the report names every entry of it that can be read.
//! The first records of the new end see to it that nothing that was given up is given out again: a repair entry with a
//! timestamp above all that was seen, and for each corpus the last slot that may have been given.
//!
//! The new files are made beside the old ones, verified, and moved into their places, shard 0 first; the old ones stay
//! under another name. So a repair that is interrupted can simply be run again.

mod plan;
mod rebuild;
mod report;

use crate::backup::manifest::sync_directory;
use crate::ledger;
use crate::verify::{self, EXIT_DAMAGED, EXIT_UNREADABLE};
use claim_engine::log::end::LogEnd;
use claim_engine::log::record::RawRecord;
use claim_engine::log::verify::Standing;
use claim_engine::mutant::Mutation;
use claim_engine::storage::DirectIo;
use claim_engine::time::rfc3339;
use nix::fcntl::{Flock, FlockArg};
use plan::{Seen, plan};
use rebuild::rebuild;
use report::{say, write_report};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What `claimd repair` is told.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Where the ledger is.
    pub data: PathBuf,
    /// Do it; else it is only said what would be done.
    pub accept_loss: bool,
    /// Print JSON.
    pub json: bool,
    /// Whether O_DIRECT is insisted on.
    pub direct: DirectIo,
}

/// Runs the command.
pub fn run(options: &RepairOptions) -> ExitCode {
    match repair(options) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("claimd: {message}");
            ExitCode::from(EXIT_UNREADABLE)
        }
    }
}

fn repair(options: &RepairOptions) -> Result<ExitCode, String> {
    let data = &options.data;
    let files = verify::expected(data)?;
    let mut locks = Vec::new();
    for (path, expected) in &files {
        locks.push(lock(path)?);
        if let Some(newer) = ledger::version_error(path) {
            return Err(format!("{}: {newer}; it is not for this build to repair", path.display()));
        }
        if expected.is_none() {
            return Err(format!(
                "{}: no copy of the superblock verifies, and no other shard of the ledger is there to say what it was: \
                 without the ledger's key nothing can be proven; restore the file",
                path.display()
            ));
        }
    }
    let bar = verify::bar();
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    bar.set_length(files.iter().map(|(path, _)| bytes(path)).sum());
    let mut shards = Vec::new();
    let mut seen = Vec::new();
    for ((path, expected), shard) in files.iter().zip(0..) {
        let begin = expected.as_ref().map(|superblock| LogEnd::at_start(superblock, 0, Mutation::NONE));
        let mut found = Seen::from(begin.map_or(1, |begin| begin.next_position));
        let each = Box::new(|raw: &RawRecord<'_>, _: u64, standing: Standing| found.record(raw, standing));
        let report = verify::verify_shard(path, shard, expected.as_ref(), false, &bar, Some(each));
        shards.push(report.map_err(|e| verify::place(path, &e))?);
        seen.push(found);
    }
    bar.finish_and_clear();
    verify::compare(&mut shards);
    let now_us = crate::clock::now().wall_us;
    let plans = plan(shards, seen)?;
    if plans.iter().all(|plan| !plan.is_due()) {
        say(options, "sound", &plans, "the ledger is sound: nothing was changed")?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.accept_loss {
        let message = "nothing was changed; `claimd repair --accept-loss` does this, and keeps the damaged files beside the \
                       new ones. Restoring the files from a backup loses less if the backup is newer than the damage";
        say(options, "planned", &plans, message)?;
        return Ok(ExitCode::from(EXIT_DAMAGED));
    }
    // To the microsecond: an interrupted repair is run again at once.
    let stamp: String = rfc3339(now_us).chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
    let mut made = Vec::new();
    for plan in plans.iter().filter(|plan| plan.is_due()) {
        made.push((plan.report.path.clone(), rebuild(plan, now_us, options.direct)?));
    }
    let report_path = data.join(format!("repair-{stamp}.ndjson"));
    write_report(&report_path, &plans, now_us)?;
    // Shard 0 is the first: the others are never ahead of it.
    for (path, new) in made {
        let aside = PathBuf::from(format!("{}.damaged-{stamp}", path.display()));
        let moved =
            fs::hard_link(&path, &aside).and_then(|()| sync_directory(data)).and_then(|()| fs::rename(&new, &path));
        moved.and_then(|()| sync_directory(data)).map_err(|e| verify::place(&path, &e))?;
    }
    drop(locks);
    let message = format!(
        "repaired; what was given up stands in {}, and the damaged files are kept as *.damaged-{stamp}",
        report_path.display()
    );
    say(options, "repaired", &plans, &message)?;
    Ok(ExitCode::SUCCESS)
}

/// The file, locked as a daemon would.
fn lock(path: &Path) -> Result<Flock<File>, String> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|e| format!("{}: {e}; a file that is gone can't be repaired: bring it back", path.display()))?;
    if !metadata.is_file() {
        return Err(format!(
            "{} is no regular file, and a repair replaces files: copy it to a regular file of that name in another \
             directory, and repair it there",
            path.display()
        ));
    }
    let file = File::options().read(true).write(true).open(path).map_err(|e| verify::place(path, &e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => {
            format!("{} is locked: a claimd serves this ledger; stop it first", path.display())
        }
        error => format!("{}: locking it failed: {error}", path.display()),
    })
}
