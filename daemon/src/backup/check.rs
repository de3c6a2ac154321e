//! `claimd verify` on a backup: every file's hash, and in the files what is verified in a ledger: every batch's hash, the
//! chain, the records, what they add up to, and what the shards share.

use super::manifest::{self, FilePart, Manifest, SegmentPart, ShardPart, path_of};
use super::source::BackupSource;
use super::{Failure, lock};
use crate::verify::{self, EXIT_DAMAGED, Report, ShardReport, VerifyOptions};
use claim_engine::log::layout::{Geometry, SUPERBLOCK_AREA_BYTES};
use claim_engine::log::superblock::Superblock;
use claim_engine::log::verify::{EachRecord, Finding, ReadAt, Structure, WalkOptions};
use claim_engine::time::rfc3339;
use indicatif::ProgressBar;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Files are hashed in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// A backup, open for reading: nothing brings it up to date meanwhile.
#[derive(Debug)]
pub struct Backup {
    /// Its directory.
    pub dir: PathBuf,
    /// What it has.
    pub manifest: Manifest,
    /// By shard; absent where the file does not verify.
    pub superblocks: Vec<Option<Superblock>>,
    _lock: Flock<File>,
}

impl Backup {
    /// Opens a backup. Waits for one that is under way.
    pub fn open(dir: &Path) -> Result<Backup, Failure> {
        let none = || Failure::unreadable(format!("{} holds no backup; name its directory", dir.display()));
        if !manifest::is_backup(dir) {
            return Err(none());
        }
        let lock = lock(dir, FlockArg::LockShared)?;
        let manifest = Manifest::read(dir)?.ok_or_else(none)?;
        let superblocks = manifest.shards.iter().map(|part| superblock(dir, &manifest, part)).collect();
        Ok(Backup { dir: dir.to_owned(), manifest, superblocks, _lock: lock })
    }

    fn geometry(&self) -> Geometry {
        let Manifest { segment_bytes, batch_bytes_max, .. } = self.manifest;
        Geometry { segment_bytes, batch_bytes_max, ring_segments: 0 }
    }

    /// Bytes that verifying one shard goes over.
    pub fn bytes_of(&self, part: &ShardPart) -> u64 {
        let files: u64 = part.segments.iter().map(|segment| segment.file.bytes).sum();
        files + self.geometry().file_bytes(self.geometry().segment_of(part.end.next_batch_at) + 1)
    }

    /// The place of a finding: a file of the backup, and the offset in it.
    pub fn place(&self, finding: &Finding) -> (String, u64) {
        let part = &self.manifest.shards[usize::from(finding.shard)];
        let log_offset = finding.file_offset.checked_sub(SUPERBLOCK_AREA_BYTES);
        let segment = log_offset.map(|at| self.geometry().segment_of(at));
        match (log_offset, segment.and_then(|segment| part.segment(segment))) {
            (Some(at), Some(found)) => (found.file.file.clone(), at - self.geometry().segment_start(found.segment)),
            (Some(_), None) => (part.segments.last().map_or(String::new(), |last| last.file.file.clone()), 0),
            (None, _) => (part.superblock.file.clone(), 0),
        }
    }

    /// Verifies one shard.
    pub fn verify_shard(
        &self,
        shard: u16,
        bar: &ProgressBar,
        each_record: Option<EachRecord<'_>>,
    ) -> Result<ShardReport, Failure> {
        let part = &self.manifest.shards[usize::from(shard)];
        let path = path_of(&self.dir, &part.superblock);
        let mut report = ShardReport::new(&path, shard, false);
        let mut differing = Vec::new();
        if let Some(what) = differs(&self.dir, &part.superblock, bar)? {
            report.findings.push(Finding::damage(Structure::Superblock, shard, 0, part.superblock.bytes, what));
        }
        for segment in &part.segments {
            if let Some(what) = differs(&self.dir, &segment.file, bar)? {
                differing.push((segment, what));
            }
        }
        let Some(superblock) = &self.superblocks[usize::from(shard)] else {
            let what = "without a superblock nothing else of the shard can be read";
            report.findings.push(Finding::damage(Structure::Superblock, shard, 0, 0, what));
            return Ok(report);
        };
        let mut source = BackupSource::new(&self.dir, superblock, part);
        let found = std::mem::take(&mut report.findings);
        let beside = RefCell::new(BackupSource::new(&self.dir, superblock, part));
        let read: ReadAt<'_> = Box::new(move |at, bytes| beside.borrow_mut().read_at(at, bytes));
        let walked = verify::verify_source(&mut source, read, None, WalkOptions::default(), bar, each_record, report);
        let mut report = walked.map_err(|e| Failure::io(&path, &e))?;
        report.findings.splice(0..0, found);
        self.check_end(part, &mut report);
        for (segment, what) in differing {
            self.name_file(segment, what, &mut report);
        }
        Ok(report)
    }

    /// The log ends where the manifest says.
    fn check_end(&self, part: &ShardPart, report: &mut ShardReport) {
        let Some(walked) = &report.walked else { return };
        let (end, geometry) = (walked.end, self.geometry());
        let is_so = part.end.log_end().is_ok_and(|expected| {
            (expected.next_number, expected.next_position, expected.next_batch_at, expected.previous_hash)
                == (end.next_number, end.next_position, end.next_batch_at, end.previous_hash)
        });
        if !is_so {
            let at = geometry.file_offset(end.next_batch_at);
            let what = format!(
                "batch {} (positions from {}) does not verify, and the manifest has batches to {}",
                end.next_number, end.next_position, part.end.batch
            );
            let mut finding = Finding::damage(Structure::Batch, part.shard, at, 0, what);
            finding.segment = Some(geometry.segment_of(end.next_batch_at));
            finding.batches = Some((end.next_number, part.end.batch.max(end.next_number)));
            finding.positions = Some((end.next_position, part.end.position.max(end.next_position)));
            report.findings.push(finding);
        }
    }

    /// A file whose hash differs is damaged, whether or not a batch in it shows where.
    fn name_file(&self, segment: &SegmentPart, what: String, report: &mut ShardReport) {
        let is_named =
            report.findings.iter().any(|finding| finding.is_damage && finding.segment == Some(segment.segment));
        if !is_named {
            let at = self.geometry().file_offset(self.geometry().segment_start(segment.segment));
            let mut finding = Finding::damage(Structure::File, report.shard, at, segment.file.bytes, what);
            finding.segment = Some(segment.segment);
            report.findings.push(finding);
        }
    }
}

/// A shard's superblock, if it verifies and is of the manifest's ledger.
pub fn superblock(dir: &Path, manifest: &Manifest, part: &ShardPart) -> Option<Superblock> {
    let block = fs::read(path_of(dir, &part.superblock)).ok()?;
    let found = Superblock::decode(&block).ok()??;
    let is_its = found.shard == part.shard
        && usize::from(found.shard_count) == manifest.shards.len()
        && found.geometry.check().is_ok()
        && manifest.is_of(&found).is_ok();
    is_its.then_some(found)
}

/// What of a file is not as the manifest says.
fn differs(dir: &Path, part: &FilePart, bar: &ProgressBar) -> Result<Option<String>, Failure> {
    let path = path_of(dir, part);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some("the file is missing: bring it back, or take another backup".to_owned()));
        }
        Err(error) => return Err(Failure::io(&path, &error)),
    };
    let (mut hasher, mut bytes, mut piece) = (blake3::Hasher::new(), 0, vec![0; PIECE_BYTES]);
    loop {
        let read = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::io(&path, &error)),
        };
        hasher.update(&piece[..read]);
        bytes += read as u64;
        bar.inc(read as u64);
    }
    if bytes != part.bytes {
        return Ok(Some(format!("the file has {bytes} bytes, and the manifest says {}", part.bytes)));
    }
    let is_same = hasher.finalize().to_hex().as_str() == part.blake3;
    Ok((!is_same).then(|| "the file's hash is not the one that the manifest has".to_owned()))
}

/// Runs `claimd verify` on a backup.
pub fn run(options: &VerifyOptions) -> ExitCode {
    super::exit(verify(options).and_then(|is_sound| {
        let damaged = Failure { code: EXIT_DAMAGED, message: "the backup is damaged: take another one".to_owned() };
        if is_sound { Ok(()) } else { Err(damaged) }
    }))
}

fn verify(options: &VerifyOptions) -> Result<bool, Failure> {
    let started = Instant::now();
    let backup = Backup::open(&options.data)?;
    let count = backup.manifest.shards.len();
    if let Some(shard) = options.shard.filter(|shard| usize::from(*shard) >= count) {
        return Err(Failure::unreadable(format!("there is no shard {shard}: the backup has {count}, from 0")));
    }
    let bar = verify::bar();
    let chosen = || backup.manifest.shards.iter().filter(|part| options.shard.is_none_or(|only| only == part.shard));
    bar.set_length(chosen().map(|part| backup.bytes_of(part)).sum());
    let mut shards = Vec::new();
    for part in chosen() {
        shards.push(backup.verify_shard(part.shard, &bar, None)?);
    }
    bar.finish_and_clear();
    if options.shard.is_none() {
        verify::compare(&mut shards);
    }
    let report = Report { shards };
    match print(&backup, &report, options, started.elapsed().as_secs_f64()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::unreadable(error.to_string())),
        _ => Ok(report.damaged() == 0),
    }
}

/// A finding with its file, as a line for people.
pub fn line(backup: &Backup, finding: &Finding) -> String {
    let (file, offset) = backup.place(finding);
    let kind = if finding.is_damage { "damage" } else { "note" };
    let segment = finding.segment.map_or(String::new(), |segment| format!(", segment {segment}"));
    let batch = finding.batches.map_or(String::new(), |(first, _)| format!(", batch {first}"));
    let (shard, what, structure) = (finding.shard, &finding.what, finding.structure.name());
    format!("{kind}: {file}, offset {offset} (shard {shard}{segment}{batch}), {structure}: {what}")
}

fn print(backup: &Backup, report: &Report, options: &VerifyOptions, seconds: f64) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    let manifest = &backup.manifest;
    for finding in report.findings() {
        if options.json {
            let (file, offset) = backup.place(finding);
            let mut object = verify::object(finding);
            object["file"] = file.into();
            object["offset"] = offset.into();
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "{}", line(backup, finding))?;
        }
    }
    let damaged = report.damaged();
    let files = manifest.files().count();
    let bytes: u64 = manifest.files().map(|file| file.bytes).sum();
    if options.json {
        let shards: Vec<_> = manifest
            .shards
            .iter()
            .map(|part| {
                let verified = report.shards.iter().find(|shard| shard.shard == part.shard);
                json!({
                    "shard": part.shard, "segments": part.segments.len(), "last_position": part.end.position,
                    "last_batch": part.end.batch, "at": rfc3339(part.end.at_us),
                    "rows_in_memory_max": verified.map(|shard| shard.rows_in_memory_max),
                })
            })
            .collect();
        let whole = json!({
            "what": "summary", "sound": damaged == 0, "mode": "backup", "damaged_places": damaged, "ledger": manifest.ledger,
            "notes": report.findings().count() - damaged, "files": files, "bytes": bytes, "seconds": seconds,
            "made_at": rfc3339(manifest.made_at_us), "consistent_to": manifest.consistent_to_us.map(rfc3339),
            "shards": shards,
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
    let verdict = if damaged == 0 { "sound".to_owned() } else { format!("damaged in {damaged} places") };
    let made = rfc3339(manifest.made_at_us);
    writeln!(out, "backup of {made}, {files} files, {bytes} bytes in {seconds:.2} s: {verdict}")
}
