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

use crate::backup::check::{self, Backup};
use crate::backup::manifest::{DIRECTORY_MODE, FILE_MODE, sync_directory};
use crate::backup::source::BackupSource;
use crate::backup::{Failure, exit};
use crate::doctor;
use crate::drill::Drill;
use crate::ledger;
use crate::verify;
use claim_engine::corpus::Prefix;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{self, Entry, Meta, Principal, Record, encode_floors};
use claim_engine::log::io::perform;
use claim_engine::log::layout::Geometry;
use claim_engine::log::record::{self, RawRecord};
use claim_engine::log::recovery::BatchPlace;
use claim_engine::log::superblock::{ClockMode, Origin, Superblock, encode_segment_header};
use claim_engine::log::verify::{Standing, Step, WalkOptions, walk};
use claim_engine::log::writer::LogWriter;
use claim_engine::log::{batch, batch::Found};
use claim_engine::mutant::Mutation;
use claim_engine::retention::Dropped;
use claim_engine::storage::{DirectIo, RealStorage, Storage};
use claim_engine::time::{Quarter, rfc3339};
use glommio::LocalExecutor;
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Exit code of what can't be done as it was asked for.
const EXIT_USAGE: u8 = 2;
/// Zeroes are written in pieces of this size.
const ZEROES_BYTES: usize = 1 << 20;
/// Floors of one restore entry; a ledger with more corpora gets several.
const FLOORS_MAX: usize = 5_000;
const MS_US: i64 = 1_000;
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

/// Up to where a ledger is restored, inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A moment, microseconds since the epoch.
    Time(i64),
    /// The position of a ledger with one shard.
    Position(u64),
    /// Positions of shards. The others are cut at the latest time of those.
    Positions(BTreeMap<u16, u64>),
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<To, String> {
        if let Ok(position) = text.parse() {
            return Ok(To::Position(position));
        }
        let mut positions = BTreeMap::new();
        for part in text.split(',') {
            let pair = part.split_once(':').and_then(|(shard, at)| Some((shard.parse().ok()?, at.parse().ok()?)));
            match pair {
                Some((shard, position)) if positions.insert(shard, position).is_some() => {
                    return Err(format!("shard {shard} is named twice"));
                }
                Some(_) => {}
                None if !positions.is_empty() => return Err(format!("'{part}' is no position; write it like 1:4711")),
                None => break,
            }
        }
        if !positions.is_empty() {
            return Ok(To::Positions(positions));
        }
        let at = text.parse::<jiff::Timestamp>();
        at.map(|at| To::Time(at.as_microsecond())).map_err(|error| {
            format!("{error}; write a time like 2026-01-31T09:30:00Z, or positions like 0:4711,1:815, or one like 4711")
        })
    }
}

/// Where a shard's log is to end.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Time(i64),
    Position(u64),
}

/// What a shard's part of the backup says.
#[derive(Debug, Default)]
struct Seen {
    /// The greatest timestamp, and the greatest time of an id: whether restored or not.
    last_us: i64,
    /// By corpus: quarter and number of the last slot.
    slots: HashMap<Prefix, (Quarter, u64)>,
    /// Positions of the entries of the global order.
    globals: BTreeMap<u64, u64>,
    /// The last position that is restored, and its time.
    cut: u64,
    cut_us: i64,
    incarnation_max: u64,
    /// Entries of the global order before the log's beginning.
    globals_before: u64,
    /// Where the log begins, if its first segments were dropped.
    origin: Option<Origin>,
    /// The entry that dropped them, and its time: what it says of them is a part of what is left.
    earliest: Option<(u64, i64)>,
}

impl Seen {
    fn record(&mut self, raw: &RawRecord<'_>, limit: Limit) {
        let Ok(record) = Record::decode(raw.kind, raw.body) else { return };
        let at_us = record.meta.timestamp_us;
        self.last_us = self.last_us.max(at_us);
        let is_in = match limit {
            Limit::Time(limit_us) => at_us <= limit_us,
            Limit::Position(limit) => raw.position <= limit,
        };
        if is_in {
            (self.cut, self.cut_us) = (raw.position, at_us);
        }
        if let Some(sequence) = record.entry.global_sequence() {
            self.globals.insert(sequence, raw.position);
        }
        match record.entry {
            Entry::Claim(claim) => {
                self.last_us = self.last_us.max(claim.event_id.ms() as i64 * MS_US);
                self.slots.insert(claim.event_id.prefix(), (Quarter::of(at_us), claim.claim_sequence));
            }
            // Slots go on above these.
            Entry::Repair { floors, .. } | Entry::Restore { floors, .. } => {
                let quarter = Quarter::of(at_us);
                self.slots.extend(entry::floors(floors).map(|(prefix, sequence)| (prefix, (quarter, sequence))));
            }
            Entry::RetentionDrop { dropped } => {
                let begins_with = Dropped::decode(dropped).map(|dropped| LogEnd::from(dropped.start));
                if self.origin.is_some_and(|origin| Ok(origin.start) == begins_with) {
                    self.earliest = Some((raw.position, at_us));
                }
            }
            _ => {}
        }
    }

    /// For each corpus the last slot that it was given in a quarter.
    fn floors(&self, quarter: Quarter) -> Vec<(Prefix, u64)> {
        let given = self.slots.iter().filter(|(_, (last, _))| *last == quarter);
        let mut floors: Vec<_> = given.map(|(prefix, (_, sequence))| (*prefix, *sequence)).collect();
        floors.sort_unstable_by_key(|(prefix, _)| prefix.get());
        floors
    }
}

/// What was made of one shard.
#[derive(Debug)]
struct Restored {
    shard: u16,
    /// The file, under the name that it has until all are there.
    new: PathBuf,
    /// The last position from the backup, and its time.
    position: u64,
    at_us: i64,
    /// The last position that the backup has.
    known: u64,
    /// Records of a batch that was cut.
    rewritten: usize,
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

/// Verifies the backup, and finds where each shard is cut.
fn plan(backup: &Backup, to: Option<&To>, bar: &ProgressBar) -> Result<Vec<Seen>, Failure> {
    let manifest = &backup.manifest;
    let named = named(backup, to)?;
    let mut limit = match to {
        Some(To::Time(at_us)) => {
            if let Some(last_us) = manifest.consistent_to_us.filter(|last_us| at_us > last_us) {
                return Err(usage(format!(
                    "the backup has the ledger up to {}; name an earlier time, or leave --to out for all of it",
                    rfc3339(last_us)
                )));
            }
            Limit::Time(*at_us)
        }
        _ => Limit::Time(manifest.consistent_to_us.unwrap_or(i64::MAX)),
    };
    bar.set_length(manifest.shards.iter().map(|part| backup.bytes_of(part)).sum());
    // Those with a position come first: their times are where the others are cut.
    let mut order: Vec<_> = manifest.shards.iter().map(|part| part.shard).collect();
    order.sort_by_key(|shard| !named.contains_key(shard));
    let mut all = BTreeMap::new();
    let mut named_us = None;
    for shard in order {
        let own = named.get(&shard).map(|position| Limit::Position(*position));
        if let (None, Some(at_us)) = (own, named_us) {
            limit = Limit::Time(at_us);
        }
        let limit = own.unwrap_or(limit);
        let origin = backup.superblocks[usize::from(shard)].as_ref().and_then(|superblock| superblock.origin);
        let mut seen = Seen { origin, ..Seen::default() };
        let each = Box::new(|raw: &RawRecord<'_>, _: u64, _: Standing| seen.record(raw, limit));
        let report = backup.verify_shard(shard, bar, Some(each))?;
        seen.globals_before = report.globals_before;
        seen.incarnation_max = report.walked.as_ref().map_or(0, |walked| walked.incarnation_max);
        if own.is_some() {
            named_us = named_us.max(Some(seen.cut_us));
        }
        all.insert(shard, (seen, report));
    }
    let (mut seen, mut reports): (Vec<_>, Vec<_>) = all.into_values().unzip();
    verify::compare(&mut reports);
    let damage: Vec<_> =
        reports.iter().flat_map(|report| &report.findings).filter(|finding| finding.is_damage).collect();
    if let Some(first) = damage.first() {
        let more = if damage.len() > 1 { format!(", and {} more", damage.len() - 1) } else { String::new() };
        return Err(Failure::damaged(format!(
            "the backup is damaged, and nothing was written: {}{more}; `claimd verify {}` names all of it, and another \
             backup may be whole",
            check::line(backup, first),
            backup.dir.display()
        )));
    }
    close(&mut seen);
    for (shard, seen) in seen.iter().enumerate() {
        if let Some((position, at_us)) = seen.earliest.filter(|(position, _)| seen.cut < *position) {
            return Err(usage(format!(
                "the backup has shard {shard} from position {position} on, of {}: what stood before was dropped before it was \
                 made. Name a later time or position with --to, or an older backup with --from",
                rfc3339(at_us)
            )));
        }
    }
    if seen.first().is_none_or(|first| first.cut == 0) {
        return Err(usage("nothing of shard 0 is as old as that; name a later time or position with --to".to_owned()));
    }
    Ok(seen)
}

/// The positions that were asked for, by shard.
fn named(backup: &Backup, to: Option<&To>) -> Result<BTreeMap<u16, u64>, Failure> {
    let shards = &backup.manifest.shards;
    let named = match to {
        Some(To::Position(position)) if shards.len() == 1 => BTreeMap::from([(0, *position)]),
        Some(To::Position(position)) => {
            let count = shards.len();
            return Err(usage(format!(
                "{position} is a position of which shard? The ledger has {count}: write it like 0:{position}"
            )));
        }
        Some(To::Positions(positions)) => positions.clone(),
        _ => BTreeMap::new(),
    };
    for (shard, position) in &named {
        let Some(part) = shards.get(usize::from(*shard)) else {
            return Err(usage(format!("there is no shard {shard}: the backup has {}, from 0", shards.len())));
        };
        if *position > part.end.position {
            return Err(usage(format!(
                "the backup has shard {shard} up to position {}, not {position}",
                part.end.position
            )));
        }
    }
    Ok(named)
}

/// No shard keeps an entry of the global order that shard 0 does not keep.
fn close(seen: &mut [Seen]) {
    let Some((first, others)) = seen.split_first_mut() else { return };
    let kept =
        first.globals.iter().filter(|(_, position)| **position <= first.cut).map(|(sequence, _)| *sequence).max();
    for other in others {
        let ahead =
            other.globals.range(kept.unwrap_or(first.globals_before) + 1..).next().map(|(_, position)| *position);
        if let Some(position) = ahead.filter(|position| *position <= other.cut) {
            other.cut = position - 1;
        }
    }
}

/// A time above the present, and above every time and id that the backup knows of; ids of later milliseconds are greater than
/// any id before. In a replay ledger the present is what requests say.
fn floor_us(seen: &[Seen], clock: ClockMode) -> i64 {
    let last_us = seen.iter().map(|seen| seen.last_us).max().unwrap_or(0);
    let last_us = if clock == ClockMode::Replay { last_us } else { last_us.max(crate::clock::now().wall_us) };
    (last_us / MS_US + 1) * MS_US
}

/// What is kept of a shard's log.
#[derive(Debug)]
struct Kept {
    /// Behind the last batch that is kept as it is.
    end: LogEnd,
    /// The batch behind it, of which some records are kept.
    cut: Option<(BatchPlace, bytes::Bytes)>,
    /// The last entry of the global order, and the last time.
    global_sequence: u64,
    last_us: i64,
}

/// Writes a shard's file under the name that it has until all are there.
fn write_shard(
    backup: &Backup,
    options: &RestoreOptions,
    shard: u16,
    seen: &Seen,
    floor_us: i64,
    bar: &ProgressBar,
) -> Result<Restored, Failure> {
    let part = &backup.manifest.shards[usize::from(shard)];
    let found = backup.superblocks[usize::from(shard)].as_ref();
    let found = found.ok_or_else(|| Failure::damaged(format!("shard {shard} has no superblock")))?;
    let superblock = Superblock { generation: found.generation + 1, checkpoint: None, ..found.clone() };
    let geometry = superblock.geometry;
    let new = ledger::shard_path(&options.data, shard).with_extension(RESTORING);
    let io = |e: io::Error| Failure::io(&new, &e);
    let file = File::options().write(true).create(true).truncate(true).mode(FILE_MODE).open(&new).map_err(io)?;
    // The superblock comes last, the first block before all others: it must not be a hole.
    let zeroes = vec![0; ZEROES_BYTES];
    file.write_all_at(&zeroes[..geometry.file_offset(0) as usize], 0).map_err(io)?;
    let mut source = BackupSource::new(&backup.dir, &superblock, part);
    let kept = copy(&mut source, &superblock, seen, &file, bar).map_err(io)?;
    let last_segment = geometry.segment_of(kept.end.next_batch_at);
    for segment in superblock.first_segment()..=last_segment {
        let header = encode_segment_header(&superblock, segment);
        file.write_all_at(&header, geometry.file_offset(geometry.segment_start(segment))).map_err(io)?;
    }
    let end = geometry.file_bytes(last_segment + 1);
    let mut at = geometry.file_offset(kept.end.next_batch_at);
    while at < end {
        let bytes = (end - at).min(ZEROES_BYTES as u64);
        file.write_all_at(&zeroes[..bytes as usize], at).map_err(io)?;
        at += bytes;
    }
    file.sync_all().map_err(io)?;
    drop(file);
    let rationale =
        format!("restored from the backup of {}, to {}", rfc3339(backup.manifest.made_at_us), rfc3339(kept.last_us));
    let mut ending =
        Ending { superblock: &superblock, seen, kept: &kept, known: part.end.position, floor_us, rationale };
    let rewritten = LocalExecutor::default()
        .run(async {
            let storage = RealStorage::open(&new, options.direct).await.map_err(|e| e.to_string())?;
            superblock.write(&storage).await.map_err(|e| e.to_string())?;
            let rewritten = ending.append(&storage).await?;
            storage.close().await.map_err(|e| e.to_string())?;
            Ok(rewritten)
        })
        .map_err(|message: String| Failure::unreadable(format!("{}: {message}", new.display())))?;
    Ok(Restored { shard, new, position: seen.cut, at_us: kept.last_us, known: part.end.position, rewritten })
}

/// Copies batch by batch up to the cut.
fn copy(
    source: &mut BackupSource,
    superblock: &Superblock,
    seen: &Seen,
    file: &File,
    bar: &ProgressBar,
) -> io::Result<Kept> {
    let geometry: Geometry = superblock.geometry;
    let (end, cut) = (LogEnd::at_start(superblock, 0, Mutation::NONE), seen.cut);
    let mut kept = Kept { end, cut: None, global_sequence: seen.globals_before, last_us: 0 };
    let (mut is_over, mut failed) = (false, None);
    let mut each = |step: Step| {
        let Step::Batch(place, bytes) = step else { return };
        if is_over || failed.is_some() {
            return;
        }
        let header = place.header;
        for (raw, _) in records(&bytes, &place).filter(|(raw, _)| raw.position <= cut) {
            if let Ok(record) = Record::decode(raw.kind, raw.body) {
                kept.last_us = record.meta.timestamp_us;
                kept.global_sequence = record.entry.global_sequence().unwrap_or(kept.global_sequence);
            }
        }
        if header.next_position() <= cut + 1 {
            failed = file.write_all_at(&bytes, geometry.file_offset(place.log_offset)).err();
            kept.end = kept.end.after(geometry, &place);
            return;
        }
        is_over = true;
        if header.first_position <= cut {
            kept.cut = Some((place, bytes));
        }
    };
    walk(source, superblock, WalkOptions::default(), &mut each, &mut |bytes| bar.inc(bytes))?;
    failed.map_or(Ok(kept), Err)
}

/// The records of a batch, with their lengths.
fn records<'a>(bytes: &'a [u8], place: &BatchPlace) -> impl Iterator<Item = (RawRecord<'a>, usize)> {
    let range = if place.header.is_sealing { 0..0 } else { batch::records(bytes, &place.header) };
    let mut rest = &bytes[range];
    std::iter::from_fn(move || {
        let (raw, length) = record::read(rest).ok()?;
        rest = &rest[length..];
        Some((raw, length))
    })
}

/// What is written behind what is kept.
struct Ending<'a> {
    superblock: &'a Superblock,
    seen: &'a Seen,
    kept: &'a Kept,
    /// The last position that the backup has.
    known: u64,
    floor_us: i64,
    rationale: String,
}

impl Ending<'_> {
    /// Writes the records of the batch that is cut, and what a restore has to say. Returns how many those records are.
    async fn append(&mut self, storage: &RealStorage) -> Result<usize, String> {
        let geometry = self.superblock.geometry;
        let mut end = self.kept.end;
        end.segments_prepared = geometry.segment_of(end.next_batch_at) + 1;
        let mut rewritten = 0;
        if let Some((place, bytes)) = &self.kept.cut {
            // They stay in their run of the daemon, at their positions.
            let before = place.header.incarnation.checked_sub(1).filter(|_| !place.header.is_recovery);
            let incarnation = before.ok_or("the batch that a run begins with can't be cut")?;
            let mut writer = LogWriter::new(self.superblock, LogEnd { incarnation, ..end }, None, Mutation::NONE);
            for (raw, _) in records(bytes, place).filter(|(raw, _)| raw.position <= self.seen.cut) {
                writer.append(&Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?);
                rewritten += 1;
            }
            work_off(&mut writer, storage).await?;
            end = behind(self.superblock, storage, end).await?;
            end.segments_prepared = writer.segments().1;
        }
        let end = LogEnd { incarnation: self.seen.incarnation_max, ..end };
        let mut writer = LogWriter::new(self.superblock, end, None, Mutation::NONE);
        let entry = Entry::Recovery { incarnation: writer.incarnation(), cut_at: end.next_batch_at };
        writer.append_recovery(&Record { meta: self.meta(self.kept.last_us, ""), entry });
        let floors = self.seen.floors(Quarter::of(self.floor_us));
        let mut parts: Vec<_> = floors.chunks(FLOORS_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for part in parts {
            let floors = encode_floors(part);
            let entry = Entry::Restore { cut_at: end.next_batch_at, given_up_to: self.known, floors: &floors };
            writer.append(&Record { meta: self.meta(self.floor_us, &self.rationale), entry });
        }
        if self.superblock.shard == 0 {
            let global_sequence = self.kept.global_sequence + 1;
            let entry = Entry::Barrier { global_sequence, at_us: self.floor_us };
            writer.append(&Record { meta: self.meta(self.floor_us, &self.rationale), entry });
        }
        work_off(&mut writer, storage).await?;
        writer.mark();
        work_off(&mut writer, storage).await?;
        Ok(rewritten)
    }

    fn meta<'a>(&self, timestamp_us: i64, rationale: &'a str) -> Meta<'a> {
        Meta {
            timestamp_us,
            idempotency_key: 0,
            correlation_id: 0,
            fingerprint: 0,
            principal: Principal {
                uid: nix::unistd::getuid().as_raw(),
                gid: nix::unistd::getgid().as_raw(),
                pid: std::process::id(),
            },
            item: 0,
            corpus: None,
            rationale,
        }
    }
}

/// The end of the log behind the batch that was written at `end`.
async fn behind(superblock: &Superblock, storage: &RealStorage, end: LogEnd) -> Result<LogEnd, String> {
    let Superblock { key, shard, geometry, .. } = superblock;
    let log_offset = end.next_batch_at;
    let bytes = storage.read_at(geometry.file_offset(log_offset), geometry.batch_bytes_max as usize).await;
    let bytes = bytes.map_err(|e| e.to_string())?;
    match batch::find(&bytes, key, *shard, geometry.batch_bytes_max, Mutation::NONE) {
        Found::Batch { header, hash } => Ok(end.after(*geometry, &BatchPlace { header, hash, log_offset })),
        _ => Err("the batch that was cut can't be read again".to_owned()),
    }
}

async fn work_off(writer: &mut LogWriter, storage: &RealStorage) -> Result<(), String> {
    while let Some(io) = writer.next_io() {
        let done = perform(storage, io).await;
        writer.complete(done, 0);
    }
    match (writer.failed(), writer.is_idle() && !writer.cannot_grow()) {
        (Some(reason), _) => Err(reason.to_owned()),
        (None, false) => {
            Err("the new file can't grow: make room on its file system, and run the restore again".to_owned())
        }
        (None, true) => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_is_a_time_or_positions() {
        let positions = |pairs: &[(u16, u64)]| Ok(To::Positions(pairs.iter().copied().collect()));
        assert_eq!("4711".parse(), Ok(To::Position(4711)));
        assert_eq!("1:815".parse(), positions(&[(1, 815)]));
        assert_eq!("0:4711,1:815".parse(), positions(&[(0, 4711), (1, 815)]));
        assert_eq!("1970-01-01T00:00:01.5Z".parse(), Ok(To::Time(1_500_000)));
        for wrong in ["", "yesterday", "0:1,0:2", "0:1,x", "70000:1", "2026-01-31"] {
            assert!(wrong.parse::<To>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_shard_keeps_what_shard_0_does_not_keep() {
        let seen =
            |cut, globals: &[(u64, u64)]| Seen { cut, globals: globals.iter().copied().collect(), ..Seen::default() };
        let mut shards =
            [seen(10, &[(1, 3), (2, 9), (3, 11)]), seen(20, &[(1, 4), (2, 6), (3, 15)]), seen(5, &[(1, 4), (2, 6)])];
        close(&mut shards);
        assert_eq!(shards.map(|shard| shard.cut), [10, 14, 5]);
    }
}
