//! `claimd verify`: reads a whole ledger and names what in it is not as it must be. Reads without the lock, so that it
//! works beside a daemon; it then stops where the log ended when it got there.

use crate::backup;
use crate::ledger;
use claim_engine::log::layout::{BATCH_BYTES_RANGE, SUPERBLOCK_AREA_BYTES};
use claim_engine::log::superblock::Superblock;
use claim_engine::log::verify::{
    self, Content, EachRecord, Finding, GlobalCopy, ReadAt, RowConcerned, Source, Structure, WalkOptions, Walked,
};
use claim_engine::retention::{QuarterSeal, QuarterTotal};
use claim_engine::storage::ReadAhead;
use claim_engine::time::rfc3339;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Batches that wait for their records to be looked at.
const BATCHES_AHEAD_MAX: usize = 64;
/// Rows that a line for people names.
const ROWS_SHOWN_MAX: usize = 8;
/// Beside a daemon, before a place is read again.
const REREAD_AFTER_MS: u64 = 20;
/// Exit code when damage was found.
pub const EXIT_DAMAGED: u8 = 1;
/// Exit code when the ledger could not be read.
pub const EXIT_UNREADABLE: u8 = 3;

/// What `claimd verify` is told.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Where the ledger is, or a backup of one.
    pub data: PathBuf,
    /// Only this shard: what the shards share is then not compared.
    pub shard: Option<u16>,
    /// One JSON object per finding, and one for the whole.
    pub json: bool,
}

/// What was found in one shard's file.
#[derive(Debug)]
pub struct ShardReport {
    /// Which.
    pub shard: u16,
    /// Its file.
    pub path: PathBuf,
    /// What its file is, if that can be known.
    pub superblock: Option<Superblock>,
    /// A daemon had the file open for writing.
    pub is_online: bool,
    /// What was gone over; absent without a superblock.
    pub walked: Option<Walked>,
    /// Log offset of the first batch with a record that breaks a rule.
    pub stopped_at: Option<u64>,
    /// The most rows that were in memory at once: those of segments that are not sealed yet.
    pub rows_in_memory_max: u64,
    /// Seals of dropped quarters, as the state at the end has them.
    pub seals: Vec<QuarterSeal>,
    /// Entries of the global order before the log's beginning.
    pub globals_before: u64,
    /// The entries that every shard keeps.
    pub globals: BTreeMap<u64, GlobalCopy>,
    /// What is not as it must be.
    pub findings: Vec<Finding>,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl ShardReport {
    /// Before anything has been looked at.
    pub fn new(path: &Path, shard: u16, is_online: bool) -> ShardReport {
        ShardReport {
            shard,
            path: path.to_owned(),
            superblock: None,
            is_online,
            walked: None,
            stopped_at: None,
            rows_in_memory_max: 0,
            seals: Vec::new(),
            globals_before: 0,
            globals: BTreeMap::new(),
            findings: Vec::new(),
            file_bytes: 0,
        }
    }

    /// Whether the log was read without a hole.
    pub fn is_whole(&self) -> bool {
        self.stopped_at.is_none() && self.walked.as_ref().is_some_and(|walked| walked.holes == 0)
    }
}

/// What was found in a ledger.
#[derive(Debug)]
pub struct Report {
    /// By shard.
    pub shards: Vec<ShardReport>,
}

impl Report {
    /// Findings of all shards.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.shards.iter().flat_map(|shard| &shard.findings)
    }

    /// Places that are damaged.
    pub fn damaged(&self) -> usize {
        self.findings().filter(|finding| finding.is_damage).count()
    }
}

/// Runs the command.
pub fn run(options: &VerifyOptions) -> ExitCode {
    if backup::manifest::is_backup(&options.data) {
        return backup::check::run(options);
    }
    let started = Instant::now();
    match verify(&options.data, options.shard, &bar()) {
        Ok(report) => {
            let printed = print(&report, options, started.elapsed().as_secs_f64());
            match printed {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    eprintln!("claimd: {error}");
                    ExitCode::from(EXIT_UNREADABLE)
                }
                _ if report.damaged() > 0 => ExitCode::from(EXIT_DAMAGED),
                _ => ExitCode::SUCCESS,
            }
        }
        Err(message) => {
            eprintln!("claimd: {message}");
            ExitCode::from(EXIT_UNREADABLE)
        }
    }
}

/// A bar over all bytes, on a terminal.
pub fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The files of a ledger, with what each must be: a sibling's superblock says it.
pub fn expected(data: &Path) -> Result<Vec<(PathBuf, Option<Superblock>)>, String> {
    let mut readable = Vec::new();
    for shard in 0..ledger::SHARDS_MAX {
        let path = ledger::shard_path(data, shard);
        if !path.exists() {
            continue;
        }
        let mut source = open(&path)?;
        let (found, _) = verify::superblocks(&mut source, shard, None).map_err(|e| place(&path, &e))?;
        readable.push((shard, found));
    }
    let Some((last, _)) = readable.last() else {
        return Err(format!("{} holds no ledger; name its directory with --data", data.display()));
    };
    // A superblock that lies in its own place is believed before one that was moved.
    let known = readable.iter().filter_map(|(shard, found)| Some((shard, found.as_ref()?)));
    let model = known.clone().find(|(shard, found)| found.shard == **shard).or_else(|| known.clone().next());
    let count = model.map_or(last + 1, |(_, found)| found.shard_count.max(1));
    Ok((0..count)
        .map(|shard| {
            let expected = model.map(|(_, found)| Superblock { shard, ..found.clone() });
            (ledger::shard_path(data, shard), expected)
        })
        .collect())
}

/// Verifies a ledger, or one shard of it. The error is a sentence: something could not be read at all.
pub fn verify(data: &Path, only: Option<u16>, bar: &ProgressBar) -> Result<Report, String> {
    let files = expected(data)?;
    let _reading = ledger::keep_dropped(data).map_err(|e| place(data, &e))?;
    if let Some(shard) = only.filter(|shard| usize::from(*shard) >= files.len()) {
        return Err(format!("there is no shard {shard}: the ledger has {}, from 0", files.len()));
    }
    let chosen: Vec<_> = (0u16..).zip(files).filter(|(shard, _)| only.is_none_or(|only| only == *shard)).collect();
    let bytes = |path: &PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    bar.set_length(chosen.iter().map(|(_, (path, _))| bytes(path)).sum());
    let mut shards = Vec::new();
    // Shard 0 decides the order that all share, so that it is ahead of what was read of the others before.
    for (shard, (path, expected)) in chosen.into_iter().rev() {
        let is_online = path.exists() && is_locked(&path).map_err(|e| place(&path, &e))?;
        let report = verify_shard(&path, shard, expected.as_ref(), is_online, bar, None);
        shards.push(report.map_err(|e| place(&path, &e))?);
    }
    bar.finish_and_clear();
    shards.reverse();
    if only.is_none() {
        compare(&mut shards);
    }
    Ok(Report { shards })
}

/// Compares what the shards share.
pub fn compare(shards: &mut [ShardReport]) {
    let globals: Vec<_> = shards.iter().map(|shard| &shard.globals).collect();
    let whole: Vec<_> = shards.iter().map(ShardReport::is_whole).collect();
    let dropped = shards.first().map_or(0, |first| first.globals_before);
    let mut findings = verify::compare_globals(&globals, dropped, &whole);
    // Before shard 0 decides anything, every shard has written the recovery batch of its first start.
    let has_decided = shards.first().is_some_and(|first| !first.globals.is_empty());
    for shard in shards.iter().filter(|shard| has_decided && shard.walked.as_ref().is_some_and(|w| w.batches == 0)) {
        let what = "its log is empty, and shard 0 has decided entries of the global order since: the log is lost";
        findings.push(Finding::damage(Structure::File, shard.shard, 0, shard.file_bytes, what));
    }
    // So it is with shard 0, if another shard has what only shard 0 decides.
    let first_is_empty = shards.first().is_some_and(|first| first.walked.as_ref().is_some_and(|w| w.batches == 0));
    if first_is_empty && shards.iter().any(|shard| !shard.globals.is_empty()) {
        let what = "its log is empty, and other shards have entries of the global order: the log is lost";
        findings.push(Finding::damage(Structure::File, 0, 0, shards[0].file_bytes, what));
    }
    for finding in findings {
        shards[usize::from(finding.shard)].findings.push(finding);
    }
}

/// A read or write error with its file.
pub fn place(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// A file, to be read.
pub fn open(path: &Path) -> Result<ReadAhead, String> {
    ReadAhead::open(path, *BATCH_BYTES_RANGE.end() as usize).map_err(|e| place(path, &e))
}

/// Verifies one file: the walk and its hashes in this thread, the records in another.
pub fn verify_shard(
    path: &Path,
    shard: u16,
    expected: Option<&Superblock>,
    is_online: bool,
    bar: &ProgressBar,
    each_record: Option<EachRecord<'_>>,
) -> io::Result<ShardReport> {
    let mut report = ShardReport::new(path, shard, is_online);
    if !path.exists() {
        let what = "the file is missing: bring it back";
        report.findings.push(Finding::damage(Structure::File, shard, 0, 0, what));
        return Ok(report);
    }
    let mut source = ReadAhead::open(path, *BATCH_BYTES_RANGE.end() as usize)?;
    let online = is_online.then_some(wait_for_daemon as fn());
    let options = WalkOptions { online, is_device: ledger::is_device(path) };
    let file = File::open(path)?;
    let read: ReadAt<'_> = Box::new(move |at, bytes| read_at(&file, at, bytes));
    verify_source(&mut source, read, expected, options, bar, each_record, report)
}

/// Bytes of a file from an offset, fewer where it ends.
fn read_at(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut read = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match file.read_at(&mut read[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    read.truncate(filled);
    Ok(read)
}

/// Verifies what a source gives, into a report that names the shard. `read` reads the same here and there.
pub fn verify_source(
    source: &mut impl Source,
    read: ReadAt<'_>,
    expected: Option<&Superblock>,
    options: WalkOptions,
    bar: &ProgressBar,
    each_record: Option<EachRecord<'_>>,
    mut report: ShardReport,
) -> io::Result<ShardReport> {
    let shard = report.shard;
    report.file_bytes = source.file_bytes();
    let (superblock, findings) = verify::superblocks(source, shard, expected)?;
    report.findings = findings;
    bar.inc(SUPERBLOCK_AREA_BYTES);
    let Some(superblock) = superblock else {
        let what = "without a superblock nothing else of the file can be read; its rows are not verified";
        report.findings.push(Finding::damage(Structure::File, shard, 0, report.file_bytes, what));
        return Ok(report);
    };
    let start = match verify::state_at_start(source, &superblock) {
        Ok(shard) => shard,
        Err(what) => {
            let what = format!("{what}; the log begins behind what was dropped, and can't be judged without it");
            report.findings.push(Finding::damage(Structure::Seal, shard, 0, 0, what));
            return Ok(report);
        }
    };
    report.globals_before = start.globals_applied();
    let mut content = Content::new(&superblock, start, read);
    if let Some(each) = each_record {
        content = content.on_record(each);
    }
    let (give, take) = sync_channel(BATCHES_AHEAD_MAX);
    let (walked, mut content) = std::thread::scope(|scope| {
        let looking = scope.spawn(move || {
            for step in take {
                content.step(step);
            }
            content.finish().map(|()| content)
        });
        let mut each = |step| {
            // The other end only goes away with a panic, which the join below passes on.
            let _ = give.send(step);
        };
        let walked = verify::walk(source, &superblock, options, &mut each, &mut |bytes| bar.inc(bytes));
        drop(give);
        let content = looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, io::Error>((walked?, content?))
    })?;
    report.findings.extend(content.take_findings());
    report.stopped_at = content.stopped_at();
    report.rows_in_memory_max = content.rows_in_memory_max();
    report.seals = content.shard().map(|shard| shard.retention().seals.clone()).unwrap_or_default();
    report.globals = content.take_globals();
    report.walked = Some(walked);
    drop(content);
    report.superblock = Some(superblock);
    Ok(report)
}

fn wait_for_daemon() {
    std::thread::sleep(Duration::from_millis(REREAD_AFTER_MS));
}

/// Whether a daemon has the file: it holds the lock for as long as it serves.
pub fn is_locked(path: &Path) -> io::Result<bool> {
    match Flock::lock(File::open(path)?, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error.into()),
    }
}

fn print(report: &Report, options: &VerifyOptions, seconds: f64) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    for finding in report.findings() {
        if options.json { writeln!(out, "{}", object(finding))? } else { line(out, finding)? }
    }
    let damaged = report.damaged();
    let (mut batches, mut records, mut bytes) = (0, 0, 0);
    for shard in &report.shards {
        batches += shard.walked.as_ref().map_or(0, |walked| walked.batches);
        records += shard.walked.as_ref().map_or(0, |walked| walked.records);
        bytes += shard.file_bytes;
    }
    let is_online = report.shards.iter().any(|shard| shard.is_online);
    let mode = if is_online { "online" } else { "offline" };
    if options.json {
        let shards: Vec<_> = report.shards.iter().map(summary).collect();
        let whole = json!({
            "what": "summary", "sound": damaged == 0, "mode": mode, "damaged_places": damaged,
            "notes": report.findings().count() - damaged, "batches": batches, "records": records,
            "bytes": bytes, "seconds": seconds, "shards": shards,
        });
        return writeln!(out, "{whole}");
    }
    for shard in &report.shards {
        if let Some(walked) = &shard.walked {
            writeln!(
                out,
                "shard {}: {} batches, {} records, to position {}{}",
                shard.shard,
                walked.batches,
                walked.records,
                walked.end.next_position - 1,
                if shard.is_online { ", where the log ended while a daemon serves it" } else { "" }
            )?;
            if let Some(seal) = shard.seals.last() {
                let (count, first) = (shard.seals.len(), seal.segments.1);
                writeln!(
                    out,
                    "    dropped to {}, with {count} seals that verify; the log begins with segment {first}",
                    seal.quarters.1
                )?;
            }
        }
    }
    let verdict = match damaged {
        0 => "sound".to_owned(),
        1 => "damaged in 1 place; see `claimd repair --help`, or restore the file".to_owned(),
        _ => format!("damaged in {damaged} places; see `claimd repair --help`, or restore the files"),
    };
    let rate = bytes as f64 / seconds.max(f64::EPSILON) / 1e6;
    writeln!(out, "{mode}, {bytes} bytes in {seconds:.2} s ({rate:.0} MB/s): {verdict}")
}

fn summary(shard: &ShardReport) -> Value {
    let mut object = json!({
        "shard": shard.shard, "file": shard.path.display().to_string(), "bytes": shard.file_bytes,
        "mode": if shard.is_online { "online" } else { "offline" },
        "sound": !shard.findings.iter().any(|finding| finding.is_damage),
    });
    if let Some(walked) = &shard.walked {
        object["batches"] = walked.batches.into();
        object["records"] = walked.records.into();
        object["last_position"] = (walked.end.next_position - 1).into();
        object["proven_position"] = (walked.proven.next_position - 1).into();
        object["holes"] = walked.holes.into();
        object["rows_in_memory_max"] = shard.rows_in_memory_max.into();
    }
    object["first_segment"] = shard.superblock.as_ref().map_or(0, Superblock::first_segment).into();
    object["seals"] = shard.seals.iter().map(seal).collect();
    object
}

/// A seal for programs.
pub fn seal(seal: &QuarterSeal) -> Value {
    let total = |total: &QuarterTotal| json!({ "prefix": total.prefix, "quarter": total.quarter.to_string(), "rows": total.rows });
    let (first, last) = seal.quarters;
    json!({
        "first_quarter": first.to_string(), "last_quarter": last.to_string(), "segments": [seal.segments.0, seal.segments.1],
        "dropped_at": rfc3339(seal.at_us), "batch": seal.batch, "position": seal.position,
        "head": blake3::Hash::from_bytes(seal.head).to_hex().to_string(), "carried": seal.carried,
        "totals": seal.totals.iter().map(total).collect::<Vec<_>>(),
        "hash": blake3::Hash::from_bytes(seal.hash).to_hex().to_string(),
    })
}

/// A finding for programs.
pub fn object(finding: &Finding) -> Value {
    let range = |range: Option<(u64, u64)>| range.map(|(first, last)| json!([first, last]));
    let row = |row: &RowConcerned| {
        json!({
            "position": row.position, "operation": row.operation,
            "event_id": row.event_id.map(|id| id.to_string()), "intact": row.is_intact,
        })
    };
    json!({
        "what": if finding.is_damage { "damage" } else { "note" },
        "structure": finding.structure.name(), "shard": finding.shard, "segment": finding.segment,
        "file_offset": finding.file_offset, "bytes": finding.bytes, "batches": range(finding.batches),
        "positions": range(finding.positions), "rows": finding.rows.iter().map(row).collect::<Vec<_>>(),
        "rows_more": finding.rows_more, "message": finding.what,
    })
}

/// A finding for people.
pub fn line(out: &mut impl Write, finding: &Finding) -> io::Result<()> {
    let kind = if finding.is_damage { "damage" } else { "note" };
    let segment = finding.segment.map_or(String::new(), |segment| format!(", segment {segment}"));
    writeln!(
        out,
        "{kind}: shard {}{segment}, file offset {}, {}: {}",
        finding.shard,
        finding.file_offset,
        finding.structure.name(),
        finding.what
    )?;
    for row in finding.rows.iter().take(ROWS_SHOWN_MAX) {
        let id = row.event_id.map_or(String::new(), |id| format!(" {id}"));
        let state = if row.is_intact { "reads well" } else { "damaged; it reads so" };
        writeln!(out, "    position {}: {}{id} ({state})", row.position, row.operation)?;
    }
    let more = finding.rows.len().saturating_sub(ROWS_SHOWN_MAX) as u64 + finding.rows_more;
    if more > 0 {
        writeln!(out, "    and {more} more; --json names {}", verify::ROWS_NAMED_MAX)?;
    }
    Ok(())
}
