//! `claimd reshard`: rewrites a ledger into another number of shards, whole corpora at a time. The old ledger is read, and
//! stays as it is.
//!
//! | file | job |
//! |---|---|
//! | `read` | the old shards' entries, verified and applied |
//! | `placement` | which corpus goes where |
//! | `dropped` | what the old ledger has dropped, and how the new one begins with that |
//! | `carry` | rows that were logged again |
//! | `write` | the new shards' logs |
//! | `compare` | the new ledger, read again, beside the old one |
//!
//! The new ledger is made under another name, and gets its own only once it verifies and is the same as the old one. A run
//! that is killed leaves that other directory behind, and the next one starts over.

mod carry;
mod compare;
mod dropped;
mod placement;
mod read;
mod write;

use crate::ledger::{self, io_error};
use crate::rewriting;
use crate::verify::{self, EXIT_DAMAGED, EXIT_UNREADABLE};
use claim_engine::log::end::LogEnd;
use claim_engine::log::superblock::{FORMAT_VERSION, Superblock};
use claim_engine::mutant::Mutation;
use claim_engine::storage::{DirectIo, RealStorage};
use compare::Compared;
use dropped::Beginning;
use glommio::LocalExecutor;
use indicatif::ProgressBar;
use nix::fcntl::{Flock, FlockArg};
use placement::Placement;
use read::Stream;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uuid::Uuid;
use write::{Plan, Written};

/// The part of a ledger's key that tells requests and event keys apart, and that a reshard leaves as it is: a retry is
/// answered as before. The rest is new, and with it every hash of a batch.
const SECRET_BYTES: usize = 8;
/// Shards whose files are under way have their own folder.
const UNFINISHED: &str = "resharding";

/// What `claimd reshard` is told.
#[derive(Debug, Clone)]
pub struct ReshardOptions {
    /// Where the ledger is.
    pub data: PathBuf,
    /// Where the new one is to be.
    pub to: PathBuf,
    /// How many shards that gets.
    pub shards: u16,
    /// Print JSON.
    pub json: bool,
    /// Whether O_DIRECT is insisted on.
    pub direct: DirectIo,
}

/// Why there is no new ledger.
enum Failure {
    /// The old ledger is damaged, or the new one is not the same.
    Damaged(String),
    /// Something could not be read or written, or is not as it has to be.
    Other(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Other(message)
    }
}

/// What was done.
struct Done {
    from: Uuid,
    ledger: Uuid,
    from_shards: usize,
    globals: usize,
    compared: Compared,
    keys_dropped: usize,
    followed: u64,
    started_over: bool,
}

/// Runs the command.
pub fn run(options: &ReshardOptions) -> ExitCode {
    let failed = |code, message: String| {
        eprintln!("claimd: {message}");
        ExitCode::from(code)
    };
    match reshard(options).map(|done| say(options, &done)) {
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => failed(EXIT_UNREADABLE, error.to_string()),
        Ok(_) => ExitCode::SUCCESS,
        Err(Failure::Damaged(message)) => failed(EXIT_DAMAGED, message),
        Err(Failure::Other(message)) => failed(EXIT_UNREADABLE, message),
    }
}

fn reshard(options: &ReshardOptions) -> Result<Done, Failure> {
    let ReshardOptions { data, to, shards, direct, .. } = options;
    let old = ledger::superblocks(data).map_err(|e| e.to_string())?;
    let _locks = lock(data, &old)?;
    let making = unfinished(to)?;
    let started_over = fs::symlink_metadata(&making).is_ok();
    let bar = verify::bar();
    let bytes = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let old_bytes: u64 = old.iter().map(|superblock| bytes(ledger::shard_path(data, superblock.shard))).sum();
    bar.set_length(2 * old_bytes);
    let plan = read_old(data, &old, *shards, &bar)?;
    let _making_lock = start_over(&making, started_over)?;
    let mut new = new_superblocks(&old[0], *shards)?;
    let mut written = Vec::new();
    for superblock in &mut new {
        let done = write_new(&plan, superblock, data, &making, *direct, &bar)?;
        superblock.origin = done.origin;
        written.push(done);
    }
    sync(&making)?;
    bar.set_length(bar.position() + new.iter().map(|s| bytes(ledger::shard_path(&making, s.shard))).sum::<u64>());
    let due = write::due_digests(&plan, &written);
    let compared = read_ledger(&making, &new, &bar)
        .and_then(|streams| compare::compare(&plan, &streams, &due).map_err(Failure::Damaged))
        .map_err(|failure| match failure {
            Failure::Damaged(difference) => Failure::Damaged(format!(
                "the new ledger is not the same as the old one, and is not used: {difference}. This is a bug: please keep {} \
                 and report it; the old ledger is as it was",
                making.display()
            )),
            other => other,
        })?;
    bar.finish_and_clear();
    fs::rename(&making, to).map_err(|e| verify::place(to, &e))?;
    sync(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    Ok(Done {
        from: old[0].ledger,
        ledger: new[0].ledger,
        from_shards: old.len(),
        globals: plan.globals.len(),
        keys_dropped: written.iter().map(|written| written.without_keys.len()).sum(),
        followed: plan.followed,
        compared,
        started_over,
    })
}

/// Holds the old ledger, as a daemon would.
fn lock(data: &Path, old: &[Superblock]) -> Result<Vec<Flock<File>>, String> {
    let mut locks = Vec::new();
    for superblock in old {
        let path = ledger::shard_path(data, superblock.shard);
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            return Err(format!(
                "{} is no regular file: a ledger on raw block devices is copied into files of those names first, for instance \
                 with dd, and resharded from there",
                path.display()
            ));
        }
        let file = File::open(&path).map_err(|e| verify::place(&path, &e))?;
        locks.push(Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => {
                format!("{} is locked: a claimd serves this ledger; stop it first", path.display())
            }
            error => format!("{}: locking it failed: {error}", path.display()),
        })?);
    }
    Ok(locks)
}

/// Where the new ledger is made; what has its name must be empty.
fn unfinished(to: &Path) -> Result<PathBuf, String> {
    let Some(name) = to.file_name() else {
        return Err(format!("{} is no name for a new directory; name one with --to", to.display()));
    };
    let is_there = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(verify::place(to, &error)),
    };
    if is_there {
        return Err(format!("{} is not empty; name a new directory with --to", to.display()));
    }
    let mut making = name.to_owned();
    making.push(".");
    making.push(UNFINISHED);
    Ok(to.with_file_name(making))
}

/// Makes the directory, and holds it. What an unfinished run left in it goes.
fn start_over(making: &Path, is_there: bool) -> Result<Flock<File>, String> {
    let error = |e: io::Error| verify::place(making, &e);
    fs::DirBuilder::new().recursive(true).mode(ledger::DIRECTORY_MODE).create(making).map_err(error)?;
    let lock = Flock::lock(File::open(making).map_err(error)?, FlockArg::LockExclusiveNonblock);
    let lock = lock.map_err(|_| format!("{} is being made by another reshard; let it finish", making.display()))?;
    if is_there {
        eprintln!("claimd: an unfinished reshard is in {}: starting over", making.display());
    }
    for entry in fs::read_dir(making).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_none_or(|extension| extension != "ledger" && extension != "formatting") {
            return Err(format!(
                "{} holds {}, which no reshard made; move it away, or name another directory with --to",
                making.display(),
                path.display()
            ));
        }
        fs::remove_file(&path).map_err(|e| verify::place(&path, &e))?;
    }
    Ok(lock)
}

/// Reads a ledger, and finds it sound.
fn read_ledger(data: &Path, superblocks: &[Superblock], bar: &ProgressBar) -> Result<Vec<Stream>, Failure> {
    let mut streams = Vec::new();
    for superblock in superblocks {
        let path = ledger::shard_path(data, superblock.shard);
        let globals_before = streams.first().map(|first: &Stream| first.globals_before);
        streams.push(read::read_shard(&path, superblock, globals_before, bar)?);
    }
    let mut reports: Vec<_> = streams.iter_mut().map(|stream| stream.take_report()).collect();
    verify::compare(&mut reports);
    let damaged = reports.iter().flat_map(|report| &report.findings).find(|finding| finding.is_damage);
    if let Some(finding) = damaged {
        return Err(Failure::Damaged(format!("shard {}: {}", finding.shard, finding.what)));
    }
    for (stream, report) in streams.iter_mut().zip(reports) {
        stream.report = report;
    }
    Ok(streams)
}

fn read_old(data: &Path, old: &[Superblock], shards: u16, bar: &ProgressBar) -> Result<Plan, Failure> {
    let mut streams = read_ledger(data, old, bar).map_err(|failure| match failure {
        Failure::Damaged(what) => Failure::Damaged(format!(
            "the ledger is damaged, and nothing was made of it: {what}. `claimd verify` says all of it; restore it, or repair \
             it, first"
        )),
        other => other,
    })?;
    let globals = std::mem::take(&mut streams[0].globals);
    let mut followed = 0;
    for (stream, superblock) in streams.iter_mut().zip(old) {
        followed += stream.catch_up(superblock, &globals)?;
    }
    let last_us = streams.iter().map(|stream| stream.shard.last_us()).max().unwrap_or(0);
    let beginning = Beginning::new(old, &mut streams)?;
    let before = beginning.as_ref().and_then(Beginning::first).map_or(&[][..], |first| first.registry().corpora());
    let placement = Placement::new(before, &globals, shards)?;
    let now_us = crate::clock::now().wall_us;
    Ok(Plan { old: old.to_vec(), streams, globals, placement, beginning, now_us, followed, last_us })
}

/// A ledger of its own, that is: no batch of the old one verifies in it.
fn new_superblocks(old: &Superblock, shards: u16) -> Result<Vec<Superblock>, String> {
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(|e| format!("no entropy from the kernel: {e}"))?;
    let mut key: [u8; 32] = random[16..].try_into().expect("32 of 48 bytes");
    key[..SECRET_BYTES].copy_from_slice(&old.key[..SECRET_BYTES]);
    let ledger = uuid::Builder::from_random_bytes(random[..16].try_into().expect("16 of 48 bytes")).into_uuid();
    let superblock = |shard| Superblock {
        generation: 1,
        ledger,
        key,
        shard,
        shard_count: shards,
        origin: None,
        checkpoint: None,
        version: FORMAT_VERSION,
        ..old.of_file()
    };
    Ok((0..shards).map(superblock).collect())
}

/// Makes the file of a shard whose first segment is dropped. It has no superblock until it is known where the seal before its log is.
fn make_file_behind(path: &Path, superblock: &Superblock) -> io::Result<()> {
    let file = rewriting::begin(path, ledger::FILE_MODE, superblock.geometry)?;
    let begins_at = LogEnd::at_start(superblock, 0, Mutation::NONE).next_batch_at;
    rewriting::finish(&file, superblock, begins_at).map(|_| ())
}

fn write_new(
    plan: &Plan,
    superblock: &Superblock,
    data: &Path,
    making: &Path,
    direct: DirectIo,
    bar: &ProgressBar,
) -> Result<Written, Failure> {
    let path = ledger::shard_path(making, superblock.shard);
    match &plan.beginning {
        Some(beginning) => {
            let began = Superblock { origin: Some(beginning.origin(superblock)), ..superblock.clone() };
            make_file_behind(&path, &began).map_err(|e| verify::place(&path, &e))?;
        }
        None => ledger::make_file(&path, superblock, direct).map_err(|e| e.to_string())?,
    }
    let mut files = Vec::new();
    for old in &plan.old {
        let path = ledger::shard_path(data, old.shard);
        files.push(File::open(&path).map_err(io_error(&path)).map_err(|e| e.to_string())?);
    }
    let written = LocalExecutor::default().run(async {
        let storage = RealStorage::open(&path, direct).await.map_err(|e| e.to_string())?;
        let written = write::write_shard(plan, superblock, &storage, files, bar).await;
        storage.close().await.map_err(|e| verify::place(&path, &e))?;
        written
    })?;
    Ok(written)
}

fn sync(directory: &Path) -> Result<(), String> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(|e| verify::place(directory, &e))
}

fn say(options: &ReshardOptions, done: &Done) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    let Compared { corpora, entries, pending_again, carried } = &done.compared;
    let rows: u64 = corpora.iter().map(|corpus| corpus.rows).sum();
    if options.json {
        let corpora: Vec<_> = corpora
            .iter()
            .map(|c| json!({"name": c.name, "prefix": c.prefix, "from": c.from, "to": c.to, "rows": c.rows}))
            .collect();
        let object = json!({
            "what": "resharded", "from": {"ledger": done.from.to_string(), "data": options.data, "shards": done.from_shards},
            "to": {"ledger": done.ledger.to_string(), "data": options.to, "shards": options.shards},
            "rows": rows, "entries": entries, "global_entries": done.globals, "followed": done.followed, "keys_dropped": done.keys_dropped,
            "pending_again": pending_again, "carried": carried, "started_over": done.started_over, "corpora": corpora,
        });
        return writeln!(out, "{object}");
    }
    for corpus in corpora {
        let (name, from, to) = (&corpus.name, corpus.from, corpus.to);
        writeln!(out, "corpus {name}: {} rows, from shard {from} to shard {to}", corpus.rows)?;
    }
    if done.keys_dropped > 0 {
        writeln!(
            out,
            "{} entries are without their idempotency key, which another entry of the same shard has now: a retry of such a \
             request is refused with KEY_REUSED",
            done.keys_dropped
        )?;
    }
    if *pending_again > 0 {
        writeln!(out, "{pending_again} rows are pending again, until the next pass of reconciliation")?;
    }
    if *carried > 0 {
        writeln!(
            out,
            "{carried} rows were logged again when their quarters were dropped: their histories begin with that, and entries before \
             are in the log alone"
        )?;
    }
    writeln!(
        out,
        "resharded: ledger {} of {} shards is ledger {} of {} shards in {}; {rows} rows and {entries} entries are the same, \
         and {} entries of the global order",
        done.from,
        done.from_shards,
        done.ledger,
        options.shards,
        options.to.display(),
        done.globals
    )?;
    writeln!(out, "serve it with: claimd start --data {}", options.to.display())
}
