//! Writes a shard's new file: the log up to the cut, and what is to be said behind it.

use super::plan::Seen;
use super::{RESTORING, RestoreOptions};
use crate::backup::Failure;
use crate::backup::check::Backup;
use crate::backup::manifest::FILE_MODE;
use crate::backup::source::BackupSource;
use crate::ledger;
use crate::rewriting::{self, floor_parts, meta, own_principal, work_off};
use claim_engine::log::batch::{self, Found};
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{Entry, Meta, Record, encode_floors};
use claim_engine::log::record::{self, RawRecord};
use claim_engine::log::recovery::BatchPlace;
use claim_engine::log::superblock::Superblock;
use claim_engine::log::verify::{Step, WalkOptions, walk};
use claim_engine::log::writer::LogWriter;
use claim_engine::mutant::Mutation;
use claim_engine::retention::Dropped;
use claim_engine::sealed::{Checkpoint, sealed_by};
use claim_engine::storage::{DirectIo, RealStorage, Storage};
use claim_engine::time::{Quarter, rfc3339};
use glommio::LocalExecutor;
use indicatif::ProgressBar;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What was made of one shard.
#[derive(Debug)]
pub struct Restored {
    /// Its number.
    pub shard: u16,
    /// The file, under the name that it has until all are there.
    pub new: PathBuf,
    /// The last position from the backup.
    pub position: u64,
    /// Its time, microseconds since the epoch.
    pub at_us: i64,
    /// The last position that the backup has.
    pub known: u64,
    /// Records of a batch that was cut.
    pub rewritten: usize,
    /// The last entry of the global order, and the last one that is not replayed by a start.
    pub globals: (u64, u64),
}

/// What is kept of a shard's log.
#[derive(Debug)]
struct Kept {
    /// Behind the last batch that is kept as it is.
    end: LogEnd,
    /// The batch behind it, of which some records are kept.
    cut: Option<(BatchPlace, bytes::Bytes)>,
    /// The last seal among it, none behind a drop: what it covers isn't replayed when the ledger is served.
    seal: Option<Checkpoint>,
    /// The last entry of the global order before that.
    sealed_globals: u64,
    /// The log has a drop that its beginning has not followed.
    has_drop: bool,
    /// The last entry of the global order, and the last time.
    global_sequence: u64,
    last_us: i64,
}

/// Writes a shard's file under the name that it has until all are there.
pub fn write_shard(
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
    let mut superblock = Superblock { generation: found.generation + 1, checkpoint: None, ..found.clone() };
    let geometry = superblock.geometry;
    let new = ledger::shard_path(&options.data, shard).with_extension(RESTORING);
    let io = |e: io::Error| Failure::io(&new, &e);
    let file = rewriting::begin(&new, FILE_MODE, geometry).map_err(io)?;
    let mut source = BackupSource::new(&backup.dir, &superblock, part);
    let kept = copy(&mut source, &superblock, seen, &file, bar).map_err(io)?;
    superblock.checkpoint = kept.seal;
    rewriting::finish(&file, &superblock, kept.end.next_batch_at).map_err(io)?;
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
    let globals = (kept.global_sequence, kept.sealed_globals);
    Ok(Restored { shard, new, position: seen.cut, at_us: kept.last_us, known: part.end.position, rewritten, globals })
}

/// Has the superblock of a new file lead to no seal: its log is replayed and sealed anew.
pub fn forget_seals(new: &Path, direct: DirectIo) -> Result<(), String> {
    let written: Result<(), String> = LocalExecutor::default().run(async {
        let storage = RealStorage::open(new, direct).await.map_err(|e| e.to_string())?;
        let found = Superblock::read(&storage).await.map_err(|e| e.to_string())?;
        let superblock = Superblock { generation: found.generation + 1, checkpoint: None, ..found };
        superblock.write(&storage).await.map_err(|e| e.to_string())?;
        storage.close().await.map_err(|e| e.to_string())
    });
    written.map_err(|message| format!("{}: {message}", new.display()))
}

/// Copies batch by batch up to the cut.
fn copy(
    source: &mut BackupSource,
    superblock: &Superblock,
    seen: &Seen,
    file: &File,
    bar: &ProgressBar,
) -> io::Result<Kept> {
    let geometry = superblock.geometry;
    let (end, cut) = (LogEnd::at_start(superblock, 0, Mutation::NONE), seen.cut);
    let mut kept = Kept {
        end,
        cut: None,
        seal: None,
        sealed_globals: 0,
        has_drop: false,
        global_sequence: seen.globals_before,
        last_us: 0,
    };
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
                kept.has_drop |= is_ahead(superblock, &record.entry);
            }
        }
        if header.next_position() <= cut + 1 {
            failed = file.write_all_at(&bytes, geometry.file_offset(place.log_offset)).err();
            kept.end = kept.end.after(geometry, &place);
            // A seal behind a drop knows nothing of what the log still begins with.
            if let Some(seal) = seal_of(superblock, &place, &bytes).filter(|_| !kept.has_drop) {
                (kept.seal, kept.sealed_globals) = (Some(seal), kept.global_sequence);
            }
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

/// Whether an entry is a drop that the log's beginning has not followed.
fn is_ahead(superblock: &Superblock, entry: &Entry<'_>) -> bool {
    let Entry::RetentionDrop { dropped } = entry else { return false };
    let begins_in = |dropped: Dropped| superblock.geometry.segment_of(dropped.start.next_batch_at);
    Dropped::decode(dropped).map_or(true, |dropped| begins_in(dropped) > superblock.first_segment())
}

/// The seal that a batch is, if it is one of a segment that the log still has.
fn seal_of(superblock: &Superblock, place: &BatchPlace, bytes: &[u8]) -> Option<Checkpoint> {
    let content = bytes.get(batch::records(bytes, &place.header)).filter(|_| place.header.is_sealing)?;
    let is_of_log = |segment: &u64| *segment >= superblock.first_segment();
    let seal = Checkpoint { log_offset: place.log_offset, number: place.header.number, hash: place.hash };
    sealed_by(content).filter(is_of_log).map(|_| seal)
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
        for part in floor_parts(&floors) {
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
        Meta { rationale, ..meta(timestamp_us, own_principal()) }
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
