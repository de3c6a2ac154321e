//! `claimd restore`: makes a ledger from a backup, as it was at a moment or at a position, and says how long that took.
//!
//! The whole backup is verified before anything is written. Then each shard's log is cut behind the last record that is
//! not after the moment; a batch that is cut is written anew with what is left of it. No shard keeps an entry of the global
//! order that shard 0 does not keep: shard 0 sends the others what they lack once the ledger is served.
//!
//! The first records behind the cut see to it that nothing that was ever given out is given out again, as a repair does: a
//! recovery entry with a new incarnation, and a restore entry with a timestamp above the present and above all that the
//! backup knows, also of what was cut off, and with each corpus's last slot. Shard 0 raises a barrier behind them.
//!
//! New files are made beside their names, verified, and named when all of them are there, shard 0 last: without its file
//! there is no ledger.

mod plan;
mod write;

pub use plan::To;

use crate::backup::check::Backup;
use crate::backup::manifest::{DIRECTORY_MODE, sync_directory};
use crate::backup::{Failure, exit};
use crate::doctor;
use crate::drill::Drill;
use crate::ledger;
use crate::verify;
use claim_engine::log::superblock::ClockMode;
use claim_engine::log::verify::Structure;
use claim_engine::storage::DirectIo;
use claim_engine::time::rfc3339;
use plan::{floor_us, plan};
use serde_json::json;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use write::{Restored, forget_seals, write_shard};

/// Exit code of what can't be done as it was asked for.
const EXIT_USAGE: u8 = 2;
/// What a file is called until it is whole.
const RESTORING: &str = "restoring";

/// What `claimd restore` is told.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Where the backup is.
    pub from: PathBuf,
    /// Where the ledger is to be.
    pub data: PathBuf,
    /// Up to where; without it, all that hangs together.
    pub to: Option<To>,
    /// The directory of the same ledger, to keep there how the restore went.
    pub remember: Option<PathBuf>,
    /// Print one JSON object.
    pub json: bool,
    /// Whether O_DIRECT is insisted on.
    pub direct: DirectIo,
}

/// Runs the command.
pub fn run(options: &RestoreOptions) -> ExitCode {
    exit(restore(options))
}

fn usage(message: String) -> Failure {
    Failure { code: EXIT_USAGE, message }
}

fn restore(options: &RestoreOptions) -> Result<(), Failure> {
    let started = Instant::now();
    check_empty(&options.data)?;
    let backup = Backup::open(&options.from)?;
    if let Some(data) = &options.remember {
        check_same(data, &backup)?;
    }
    let bar = verify::bar();
    let seen = plan(&backup, options.to.as_ref(), &bar)?;
    let clock = backup.superblocks[0].as_ref().map_or(ClockMode::Wall, |superblock| superblock.clock);
    let floor_us = floor_us(&seen, clock);
    // Nothing has been written yet.
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(&options.data)
        .map_err(|e| Failure::io(&options.data, &e))?;
    doctor::preflight(&options.data, 1, options.direct == DirectIo::NotRequired).map_err(Failure::unreadable)?;
    let mut restored = Vec::new();
    for (seen, shard) in seen.iter().zip(0..) {
        restored.push(write_shard(&backup, options, shard, seen, floor_us, &bar)?);
    }
    let mut reports = Vec::new();
    for made in &restored {
        let superblock = backup.superblocks[usize::from(made.shard)].as_ref();
        let bytes = fs::metadata(&made.new).map_or(0, |metadata| metadata.len());
        bar.inc_length(bytes);
        let report = verify::verify_shard(&made.new, made.shard, superblock, false, &bar, None);
        reports.push(report.map_err(|e| Failure::io(&made.new, &e))?);
    }
    verify::compare(&mut reports);
    bar.finish_and_clear();
    for report in &reports {
        if let Some(finding) = report.findings.iter().find(|finding| finding.is_damage) {
            let place = report.path.display();
            return Err(Failure::unreadable(format!(
                "{place} does not verify: {}; there is no ledger in {} yet, and the backup is as it was",
                finding.what,
                options.data.display()
            )));
        }
    }
    for (made, report) in restored.iter().zip(&reports) {
        // An index that is not what its records make is made anew as the ledger is served. And shard 0 has to know what another
        // one lacks of the global order.
        let is_wrong = report.findings.iter().any(|finding| finding.structure == Structure::Index);
        let is_lacked = made.shard == 0 && restored.iter().any(|other| other.globals.0 < made.globals.1);
        if is_wrong || is_lacked {
            forget_seals(&made.new, options.direct).map_err(Failure::unreadable)?;
        }
    }
    for made in restored.iter().rev() {
        let path = ledger::shard_path(&options.data, made.shard);
        let named = fs::rename(&made.new, &path).and_then(|()| sync_directory(&options.data));
        named.map_err(|e| Failure::io(&path, &e))?;
    }
    let mut took = Took { rto: started.elapsed(), rpo: rpo(&backup), remembered_in: None };
    let remembered = options.remember.as_ref().map_or(Ok(()), |data| remember(data, &backup, &took));
    took.remembered_in = options.remember.clone().filter(|_| remembered.is_ok());
    let said = say(options, &backup, &restored, floor_us, &took);
    remembered?;
    said.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
        .map_err(|error| Failure::unreadable(error.to_string()))
}

/// The directory may hold what an interrupted restore left, and nothing else.
fn check_empty(data: &Path) -> Result<(), Failure> {
    let entries = match fs::read_dir(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| Failure::io(data, &e))?,
    };
    for entry in entries {
        let path = entry.map_err(|e| Failure::io(data, &e))?.path();
        if path.extension().is_none_or(|extension| extension != RESTORING) {
            return Err(Failure::unreadable(format!(
                "{} is there already: a ledger is restored into an empty directory; name another one with --data",
                path.display()
            )));
        }
    }
    Ok(())
}

/// How a restore went is kept with the ledger that the backup is of.
fn check_same(data: &Path, backup: &Backup) -> Result<(), Failure> {
    let refused = |what: String| {
        let from = backup.dir.display();
        usage(format!(
            "{what}; name with --remember the directory of the ledger that {from} is a backup of, or leave it out; \
             nothing was written"
        ))
    };
    let found = ledger::superblocks(data).map_err(|error| refused(error.to_string()))?;
    match found.first().map(|superblock| superblock.ledger.to_string()) {
        Some(ledger) if ledger == backup.manifest.ledger => Ok(()),
        ledger => Err(refused(format!(
            "{} holds ledger {}, and the backup is of {}",
            data.display(),
            ledger.unwrap_or_default(),
            backup.manifest.ledger
        ))),
    }
}

/// How a restore went.
struct Took {
    /// How long it took.
    rto: Duration,
    /// How old the backup was.
    rpo: Duration,
    /// Where that is kept.
    remembered_in: Option<PathBuf>,
}

fn rpo(backup: &Backup) -> Duration {
    let to_us = backup.manifest.consistent_to_us.unwrap_or(backup.manifest.made_at_us);
    Duration::from_micros(u64::try_from(crate::clock::now().wall_us.saturating_sub(to_us)).unwrap_or(0))
}

fn remember(data: &Path, backup: &Backup, took: &Took) -> Result<(), Failure> {
    let (rto_ms, rpo_ms) = (took.rto.as_millis() as u64, took.rpo.as_millis() as i64);
    let drill = Drill::new(backup.manifest.ledger.clone(), crate::clock::now().wall_us, rto_ms, rpo_ms);
    drill.write(data).map_err(|error| {
        Failure::unreadable(format!(
            "{}: {error}; the ledger is restored and whole, and how that went is not kept there",
            data.display()
        ))
    })
}

fn say(options: &RestoreOptions, backup: &Backup, restored: &[Restored], floor_us: i64, took: &Took) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    let manifest = &backup.manifest;
    let (seconds, age) = (took.rto.as_secs_f64(), took.rpo.as_secs_f64());
    if options.json {
        let shards: Vec<_> = restored
            .iter()
            .map(|made| {
                json!({
                    "shard": made.shard, "position": made.position, "at": rfc3339(made.at_us),
                    "known_to_position": made.known, "records_rewritten": made.rewritten,
                })
            })
            .collect();
        let whole = json!({
            "what": "restored", "ledger": manifest.ledger, "from": options.from, "data": options.data,
            "backup_made_at": rfc3339(manifest.made_at_us), "backup_age_seconds": age, "rto_seconds": seconds,
            "times_above": rfc3339(floor_us), "shards": shards, "remembered_in": took.remembered_in,
        });
        return writeln!(out, "{whole}");
    }
    for made in restored {
        let left = match made.known - made.position {
            0 => String::new(),
            left => format!("; {left} entries behind it are left out"),
        };
        writeln!(out, "shard {}: to position {}, {}{left}", made.shard, made.position, rfc3339(made.at_us))?;
    }
    writeln!(
        out,
        "restored in {seconds:.2} s (RTO) from a backup that is {age:.0} s old (RPO); new ids are above {}",
        rfc3339(floor_us)
    )?;
    if let Some(data) = &took.remembered_in {
        writeln!(out, "remembered in {}: `claimctl status` shows it", data.display())?;
    }
    writeln!(out, "serve it with: claimd start --data {}", options.data.display())
}
