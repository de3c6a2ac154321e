//! `claimd backup`: copies a ledger, of a running daemon or a stopped one, and copies only what is new where there is a
//! backup already. Reads the ledger's files without the lock, as `claimd verify` does.
//!
//! **The cut over the shards.** Full segments come first, however long that takes. Then a time is taken, and after it each
//! shard is copied as far as it is durable, shard 0 last. Whatever an entry depends on was durable before it was decided, so
//! what every shard has up to that time hangs together: `claimd restore` cuts there unless told otherwise. Shard 0 decides
//! the global order, and has whatever another shard has of it.

pub mod check;
pub mod copy;
pub mod manifest;
pub mod source;

use crate::clock;
use crate::ledger;
use crate::verify::{self, EXIT_DAMAGED, EXIT_UNREADABLE};
use claim_engine::log::superblock::{ClockMode, Origin, Superblock};
use claim_engine::time::rfc3339;
use copy::{Goal, ShardCopy};
use indicatif::ProgressBar;
use manifest::{DIRECTORY_MODE, FilePart, MANIFEST, Manifest, ShardPart, make_file, shard_dir, sync_directory};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Times that shard 0 is copied on when another shard is ahead of what it was copied to.
const CLOSURE_TRIES_MAX: usize = 10;

/// What `claimd backup` is told.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Where the ledger is.
    pub data: PathBuf,
    /// Where the backup is, or is to be.
    pub to: PathBuf,
    /// Print one JSON object.
    pub json: bool,
}

/// Why a backup was not made, or not used: a sentence, and the exit code that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// [`EXIT_DAMAGED`] or [`EXIT_UNREADABLE`], or another one.
    pub code: u8,
    /// For people.
    pub message: String,
}

impl Failure {
    /// Something does not verify.
    pub fn damaged(message: String) -> Failure {
        Failure { code: EXIT_DAMAGED, message }
    }

    /// Something can't be read or written, or is not what was meant.
    pub fn unreadable(message: String) -> Failure {
        Failure { code: EXIT_UNREADABLE, message }
    }

    /// A system call failed.
    pub fn io(path: &Path, error: &io::Error) -> Failure {
        let advice = match error.kind() {
            io::ErrorKind::StorageFull => "; make room, and run it again: what was there before is whole",
            _ => "",
        };
        Failure::unreadable(format!("{}: {error}{advice}", path.display()))
    }
}

/// Hears of bytes as they are read: moves the bar, and may hold the copy up, or end it.
pub struct Pace<'a> {
    bar: &'a ProgressBar,
    each: &'a mut dyn FnMut(u64) -> Result<(), Failure>,
}

impl<'a> Pace<'a> {
    /// A pace with a bar, and with something that is called for every piece.
    pub fn new(bar: &'a ProgressBar, each: &'a mut dyn FnMut(u64) -> Result<(), Failure>) -> Pace<'a> {
        Pace { bar, each }
    }

    fn read(&mut self, bytes: u64) -> Result<(), Failure> {
        self.bar.inc(bytes);
        (self.each)(bytes)
    }
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// All of it.
    pub manifest: Manifest,
    /// Bytes that were copied now; the others were there.
    pub bytes_copied: u64,
    /// A daemon served the ledger.
    pub is_online: bool,
}

/// Runs the command.
pub fn run(options: &BackupOptions) -> ExitCode {
    let started = Instant::now();
    let bar = verify::bar();
    let made = backup(&options.data, &options.to, &mut Pace::new(&bar, &mut |_| Ok(())));
    bar.finish_and_clear();
    let said = made.and_then(|made| {
        say(options, &made, started.elapsed().as_secs_f64())
            .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
            .map_err(|error| Failure::unreadable(error.to_string()))
    });
    exit(said)
}

/// Says what went wrong, if anything did.
pub fn exit(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            eprintln!("claimd: {message}");
            ExitCode::from(code)
        }
    }
}

fn say(options: &BackupOptions, made: &Made, seconds: f64) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    let Made { manifest, bytes_copied, is_online } = made;
    let bytes: u64 = manifest.files().map(|file| file.bytes).sum();
    let mode = if *is_online { "online" } else { "offline" };
    if options.json {
        let shards: Vec<_> = manifest
            .shards
            .iter()
            .map(|part| {
                json!({
                    "shard": part.shard, "segments": part.segments.len(), "last_position": part.end.position,
                    "last_batch": part.end.batch, "at": rfc3339(part.end.at_us),
                })
            })
            .collect();
        let whole = json!({
            "what": "backup", "ledger": manifest.ledger, "to": options.to, "mode": mode, "bytes": bytes,
            "bytes_copied": bytes_copied, "seconds": seconds, "made_at": rfc3339(manifest.made_at_us),
            "consistent_to": manifest.consistent_to_us.map(rfc3339), "shards": shards,
        });
        return writeln!(out, "{whole}");
    }
    for part in &manifest.shards {
        let (segments, end) = (part.segments.len(), &part.end);
        writeln!(
            out,
            "shard {}: {segments} segments, to batch {} and position {}",
            part.shard, end.batch, end.position
        )?;
    }
    let to = manifest.consistent_to_us.map_or("all of it".to_owned(), |at_us| format!("to {}", rfc3339(at_us)));
    writeln!(
        out,
        "{mode}, {bytes_copied} of {bytes} bytes copied in {seconds:.2} s: {} has the ledger, {to}",
        options.to.display()
    )
}

/// A backup's directory, locked for as long as this is kept.
pub fn lock(dir: &Path, how: FlockArg) -> Result<Flock<File>, Failure> {
    let file = File::open(dir).map_err(|e| Failure::io(dir, &e))?;
    Flock::lock(file, how).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => Failure::unreadable(format!(
            "{} is in use by another claimd; try again when it has finished",
            dir.display()
        )),
        error => Failure::unreadable(format!("{}: locking it failed: {error}", dir.display())),
    })
}

/// Makes a backup, or brings the one that is there up to date.
pub fn backup(data: &Path, to: &Path, pace: &mut Pace<'_>) -> Result<Made, Failure> {
    let first = ledger::shard_path(data, 0);
    if !first.exists() {
        return Err(Failure::unreadable(format!("{} holds no ledger; name its directory with --data", data.display())));
    }
    // As long as somebody has this lock the daemon frees nothing that was dropped.
    let _reading = ledger::keep_dropped(data).map_err(|e| Failure::io(data, &e))?;
    let (superblock, _) = copy::superblock(&first, 0)?;
    let paths: Vec<_> = (0..superblock.shard_count).map(|shard| ledger::shard_path(data, shard)).collect();
    let mut superblocks = Vec::new();
    for (path, shard) in paths.iter().zip(0..) {
        let (found, is_online) = copy::superblock(path, shard)?;
        if found.ledger != superblock.ledger || found.key != superblock.key {
            return Err(Failure::damaged(format!(
                "{} is not of the ledger of shard 0; bring its file back",
                path.display()
            )));
        }
        superblocks.push((found, is_online));
    }
    // A daemon that starts or stops meanwhile: with one that serves any shard, all are taken as served.
    let is_online = superblocks.iter().any(|(_, is_online)| *is_online);
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(to).map_err(|e| Failure::io(to, &e))?;
    let _lock = lock(to, FlockArg::LockExclusiveNonblock)?;
    let before = Manifest::read(to)?;
    match &before {
        Some(before) => before.is_of(&superblock).map_err(|what| {
            Failure::unreadable(format!("the backup in {} {what}; name another directory with --to", to.display()))
        })?,
        None => check_unused(to)?,
    }
    let mut copies = Vec::new();
    for ((superblock, _), path) in superblocks.iter().zip(&paths) {
        let dir = to.join(shard_dir(superblock.shard));
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&dir).map_err(|e| Failure::io(&dir, &e))?;
        let part = before.as_ref().and_then(|before| before.shards.get(usize::from(superblock.shard)));
        let is_there = |file: &FilePart| fs::metadata(manifest::path_of(to, file)).is_ok_and(|m| m.len() == file.bytes);
        let there = part.map_or(&[][..], |part| &part.segments);
        let there: Vec<_> = there.iter().take_while(|segment| is_there(&segment.file)).cloned().collect();
        pace.bar.inc_length(still_to_read(path, superblock, &there));
        copies.push(ShardCopy::new(superblock, path, to, there, is_online)?);
    }
    if is_online {
        for copy in &mut copies {
            copy.run(Goal::Full, pace)?;
        }
    }
    // In a replay ledger time is what the requests say.
    let until_us = (is_online && superblock.clock == ClockMode::Wall).then(|| clock::now().wall_us);
    for copy in copies.iter_mut().rev() {
        copy.run(Goal::All { until_us }, pace)?;
    }
    close(&mut copies, pace)?;
    // Where the ledger's time is held, ahead of a clock that stepped back, entries of before have it as well.
    let ends = copies.iter().map(ShardCopy::end).collect::<Result<Vec<_>, _>>()?;
    let ledger_us = ends.iter().map(|end| end.at_us).max().unwrap_or(0);
    let is_held = ledger_us > clock::now().wall_us;
    let consistent_to_us = until_us.map(|until_us| if is_held { ledger_us } else { until_us });
    let bytes_copied = copies.iter().map(|copy| copy.bytes_copied).sum();
    let mut manifest = Manifest { consistent_to_us, ..Manifest::new(&superblock) };
    for ((copy, end), (superblock, _)) in copies.into_iter().zip(ends).zip(&superblocks) {
        let base = before.as_ref().map(|before| base_of(to, before, superblock.shard)).transpose()?;
        let part = write_superblock(to, superblock, base.unwrap_or(superblock.origin))?;
        manifest.shards.push(ShardPart {
            shard: superblock.shard,
            superblock: part,
            segments: copy.into_segments(),
            end,
        });
    }
    sync_directory(to).map_err(|e| Failure::io(to, &e))?;
    manifest.made_at_us = clock::now().wall_us;
    manifest.write(to)?;
    remove_others(to, &manifest)?;
    Ok(Made { manifest, bytes_copied, is_online })
}

/// About so many bytes are read for what is not there yet.
fn still_to_read(path: &Path, superblock: &Superblock, there: &[manifest::SegmentPart]) -> u64 {
    let full = there.iter().filter(|segment| segment.is_full).count() as u64;
    let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
    bytes.saturating_sub(superblock.geometry.file_bytes(full))
}

/// No shard has an entry of the global order that shard 0 lacks: it was durable there before it was sent.
fn close(copies: &mut [ShardCopy<'_>], pace: &mut Pace<'_>) -> Result<(), Failure> {
    for _ in 0..CLOSURE_TRIES_MAX {
        let known = copies.iter().map(|copy| Ok(copy.end()?.global_sequence)).collect::<Result<Vec<_>, Failure>>()?;
        let Some(first) = copies.first_mut().filter(|_| known.iter().any(|sequence| *sequence > known[0])) else {
            return Ok(());
        };
        first.run(Goal::All { until_us: None }, pace)?;
    }
    Err(Failure::damaged(
        "a shard has entries of the global order that shard 0 lacks: its file is older than the others, or has lost its \
         end; see `claimd verify`"
            .to_owned(),
    ))
}

/// A directory without a manifest may hold what an interrupted backup left, and nothing else.
fn check_unused(to: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(to).map_err(|e| Failure::io(to, &e))? {
        let name = entry.map_err(|e| Failure::io(to, &e))?.file_name();
        let name = name.to_string_lossy();
        let is_shard =
            name.strip_prefix("shard-").is_some_and(|n| n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit()));
        if !is_shard && name != format!("{MANIFEST}.tmp") {
            return Err(Failure::unreadable(format!(
                "{} holds {name}, and no backup; name an empty directory, or a backup, with --to",
                to.display()
            )));
        }
    }
    Ok(())
}

/// Where the log begins that a backup has: it keeps what the ledger drops later.
fn base_of(to: &Path, before: &Manifest, shard: u16) -> Result<Option<Origin>, Failure> {
    let part = before.shards.get(usize::from(shard));
    let part = part.ok_or_else(|| Failure::damaged(format!("{}: it has no shard {shard}", to.display())))?;
    match check::superblock(to, before, part) {
        Some(found) => Ok(found.origin),
        None => Err(Failure::damaged(format!(
            "{}: {} does not verify; bring it back, or name another directory with --to",
            to.display(),
            part.superblock.file
        ))),
    }
}

/// Writes a shard's superblock, unless it is there.
fn write_superblock(to: &Path, found: &Superblock, origin: Option<Origin>) -> Result<FilePart, Failure> {
    // What changes while a ledger is served is left out, so that the file stays what it is.
    let found = found.of_file();
    let block = Superblock { generation: 1, checkpoint: None, origin, ..found.clone() }.encode();
    let name = format!("{}/superblock-v{}", shard_dir(found.shard), found.version);
    let path = to.join(&name);
    let part = FilePart { file: name, bytes: block.len() as u64, blake3: blake3::hash(&block).to_hex().to_string() };
    if fs::read(&path).is_ok_and(|there| there == block) {
        return Ok(part);
    }
    let new = path.with_extension("tmp");
    let dir = to.join(shard_dir(found.shard));
    let written = make_file(&new)
        .and_then(|mut file| file.write_all(&block).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, &path))
        .and_then(|()| sync_directory(&dir));
    written.map_err(|e| Failure::io(&path, &e))?;
    Ok(part)
}

/// Removes what an older manifest named, and what interrupted backups left.
fn remove_others(to: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let named: BTreeSet<_> = manifest.files().map(|file| manifest::path_of(to, file)).collect();
    for part in &manifest.shards {
        let dir = to.join(shard_dir(part.shard));
        for entry in fs::read_dir(&dir).map_err(|e| Failure::io(&dir, &e))? {
            let entry = entry.map_err(|e| Failure::io(&dir, &e))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_ours = name.starts_with("segment-") || name.starts_with("superblock-");
            if is_ours && !named.contains(&entry.path()) {
                fs::remove_file(entry.path()).map_err(|e| Failure::io(&entry.path(), &e))?;
            }
        }
    }
    Ok(())
}
