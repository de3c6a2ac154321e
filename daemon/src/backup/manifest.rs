//! The manifest of a backup: which files it has, and how far it goes. It is written last, so that what it names is there.
//!
//! ```text
//!  manifest.json                          {"blake3": hash of the object that follows, as its bytes stand, "manifest": {…}}
//!  shard-0000/superblock-v3               one block, without a checkpoint: what is restored is sealed anew
//!  shard-0000/segment-00000000.log        a full segment: its header, and its batches without the unused end
//!  shard-0000/segment-00000001.to-77.log  the open one, up to batch 77; its name is another one as it grows
//! ```
//!
//! A file that a manifest names is never changed, so that the backup before stays whole until the next manifest is in its
//! place; then what only the old one named is removed.

use super::Failure;
use claim_engine::log::end::LogEnd;
use claim_engine::log::superblock::{ClockMode, Superblock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The manifest's file.
pub const MANIFEST: &str = "manifest.json";
/// What a manifest says that it is.
const FORMAT: &str = "claimd-backup";
/// The version that this build writes, and the only one that it reads.
const VERSION: u32 = 1;
/// A manifest has a kilobyte for each segment; nothing longer is read.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
const HEAD: &str = "{\"blake3\":\"";
const MIDDLE: &str = "\",\"manifest\":";
const TAIL: &str = "}\n";
const HEX_BYTES: usize = 64;
/// Backups hold everybody's rows and the ledger's key, as the ledger does.
pub const FILE_MODE: u32 = 0o640;
/// Of the directories.
pub const DIRECTORY_MODE: u32 = 0o750;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `claimd-backup`.
    pub format: String,
    /// Of this format.
    pub version: u32,
    /// The ledger's id.
    pub ledger: String,
    /// `wall` or `replay`.
    pub clock: String,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of the largest batch.
    pub batch_bytes_max: u64,
    /// When the backup was finished, microseconds since the epoch.
    pub made_at_us: i64,
    /// Beside a daemon: every shard has all entries up to this time, and what follows it may be there in one shard and not in
    /// another. Absent where all of a stopped ledger is there.
    pub consistent_to_us: Option<i64>,
    /// By number.
    pub shards: Vec<ShardPart>,
}

/// What there is of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPart {
    /// Which.
    pub shard: u16,
    /// Its superblock.
    pub superblock: FilePart,
    /// In order, without gaps, from where the log began when the backup was made for the first time.
    pub segments: Vec<SegmentPart>,
    /// How far they go.
    pub end: End,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePart {
    /// Its name, from the backup's directory on.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its bytes, in hexadecimal digits.
    pub blake3: String,
}

/// A segment's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentPart {
    /// Which.
    pub segment: u64,
    /// The file.
    #[serde(flatten)]
    pub file: FilePart,
    /// Nothing more is written to the segment.
    pub is_full: bool,
    /// How far the shard's log goes with it.
    pub end: End,
}

/// How far a log goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The last batch; 0: there is none.
    pub batch: u64,
    /// The last position; 0: there is none.
    pub position: u64,
    /// The last batch's hash, which stands for all before it.
    pub hash: String,
    /// The last batch's incarnation.
    pub incarnation: u64,
    /// The log offset at which the next batch goes.
    pub next_batch_at: u64,
    /// The log offset of the last batch.
    pub last_batch_at: u64,
    /// Time of the last entry, microseconds since the epoch; 0: there is none.
    pub at_us: i64,
    /// The last entry of the global order.
    pub global_sequence: u64,
}

impl ShardPart {
    /// The first segment that is not there as a whole.
    pub fn full_to(&self) -> u64 {
        let first = self.segments.first().map_or(0, |segment| segment.segment);
        first + self.segments.iter().take_while(|segment| segment.is_full).count() as u64
    }

    /// A segment's part.
    pub fn segment(&self, number: u64) -> Option<&SegmentPart> {
        let first = self.segments.first()?.segment;
        self.segments.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }
}

impl End {
    /// The end of a log, with what its records say of it.
    pub fn of(end: &LogEnd, last_batch_at: u64, at_us: i64, global_sequence: u64) -> End {
        End {
            batch: end.next_number - 1,
            position: end.next_position - 1,
            hash: blake3::Hash::from_bytes(end.previous_hash).to_hex().to_string(),
            incarnation: end.incarnation,
            next_batch_at: end.next_batch_at,
            last_batch_at,
            at_us,
            global_sequence,
        }
    }

    /// From where a walk goes on. The error names the field that no build writes.
    pub fn log_end(&self) -> Result<LogEnd, &'static str> {
        Ok(LogEnd {
            next_batch_at: self.next_batch_at,
            next_number: self.batch.checked_add(1).ok_or("batch")?,
            next_position: self.position.checked_add(1).ok_or("position")?,
            previous_hash: *blake3::Hash::from_hex(&self.hash).map_err(|_| "hash")?.as_bytes(),
            incarnation: self.incarnation,
            segments_prepared: 0,
        })
    }
}

impl Manifest {
    /// For a ledger of which nothing has been copied.
    pub fn new(superblock: &Superblock) -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            ledger: superblock.ledger.to_string(),
            clock: clock(superblock).to_owned(),
            segment_bytes: superblock.geometry.segment_bytes,
            batch_bytes_max: superblock.geometry.batch_bytes_max,
            made_at_us: 0,
            consistent_to_us: None,
            shards: Vec::new(),
        }
    }

    /// Whether it is of the ledger that a superblock is of; the error says what is not.
    pub fn is_of(&self, superblock: &Superblock) -> Result<(), String> {
        let geometry = superblock.geometry;
        if self.ledger != superblock.ledger.to_string() {
            return Err(format!("is of ledger {}, not of {}", self.ledger, superblock.ledger));
        }
        let sizes = (self.segment_bytes, self.batch_bytes_max, self.clock.as_str());
        if sizes != (geometry.segment_bytes, geometry.batch_bytes_max, clock(superblock)) {
            return Err("is of the same ledger with other sizes or another clock".to_owned());
        }
        Ok(())
    }

    /// All files that it names.
    pub fn files(&self) -> impl Iterator<Item = &FilePart> {
        self.shards
            .iter()
            .flat_map(|part| std::iter::once(&part.superblock).chain(part.segments.iter().map(|segment| &segment.file)))
    }

    /// Reads the manifest of a backup; `None` where there is none.
    pub fn read(dir: &Path) -> Result<Option<Manifest>, Failure> {
        let path = dir.join(MANIFEST);
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io(&path, &error)),
            Ok(found) if found.len() > MANIFEST_BYTES_MAX => {
                return Err(Failure::damaged(format!(
                    "{} has {} bytes, more than any manifest",
                    path.display(),
                    found.len()
                )));
            }
            Ok(_) => fs::read(&path).map_err(|e| Failure::io(&path, &e))?,
        };
        let damaged = |what: String| {
            let place = path.display();
            Failure::damaged(format!("{place}: {what}; bring the file back, or take another backup"))
        };
        let body = split(&text).map_err(|what| damaged(what.to_owned()))?;
        let said: serde_json::Value = serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?;
        let found = (said["format"].as_str(), said["version"].as_u64());
        if found.0 != Some(FORMAT) || found.1 != Some(VERSION.into()) {
            return Err(Failure::unreadable(format!(
                "{} says that it is {} version {}, and this build reads {FORMAT} version {VERSION}; use a build that reads it",
                path.display(),
                said["format"],
                said["version"]
            )));
        }
        let manifest: Manifest = serde_json::from_value(said).map_err(|e| damaged(e.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(Some(manifest))
    }

    /// Its hash has no key: whoever writes to the file can make one that matches.
    fn check(&self) -> Result<(), String> {
        for (part, expected) in self.shards.iter().zip(0..) {
            let is_own = |file: &FilePart| {
                let rest = file.file.strip_prefix(&format!("{}/", shard_dir(expected)));
                rest.is_some_and(|name| !name.is_empty() && !name.contains(['/', '\0']) && name != "..")
            };
            if part.shard != expected || !is_own(&part.superblock) {
                return Err(format!("shard {expected} is not where it must be"));
            }
            let first = part.segments.first().map_or(0, |segment| segment.segment);
            for (segment, number) in part.segments.iter().zip(first..) {
                if segment.segment != number || !is_own(&segment.file) || segment.file.bytes > self.segment_bytes {
                    return Err(format!("segment {number} of shard {expected} is not what any build writes"));
                }
                segment.end.log_end().map_err(|field| format!("segment {number} of shard {expected}: its {field}"))?;
            }
            let end = part.end.log_end().map_err(|field| format!("the end of shard {expected}: its {field}"))?;
            let segments = first.saturating_add(part.segments.len() as u64);
            if self.segment_bytes == 0
                || !(segments..=segments.saturating_add(1)).contains(&(end.next_batch_at / self.segment_bytes + 1))
            {
                return Err(format!("the end of shard {expected} is not in its last segment"));
            }
        }
        if self.shards.is_empty() { Err("it names no shard".to_owned()) } else { Ok(()) }
    }

    /// Makes it the manifest of a backup: durable, all at once.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        let body = serde_json::to_string_pretty(self).map_err(|e| Failure::unreadable(e.to_string()))?;
        let text = format!("{HEAD}{}{MIDDLE}{body}{TAIL}", blake3::hash(body.as_bytes()).to_hex());
        let path = dir.join(MANIFEST);
        let new = dir.join(format!("{MANIFEST}.tmp"));
        let written = make_file(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| sync_directory(dir));
        written.map_err(|e| Failure::io(&path, &e))
    }
}

/// The manifest's own bytes, if their hash is what stands before them.
fn split(text: &[u8]) -> Result<&[u8], &'static str> {
    let rest = text.strip_prefix(HEAD.as_bytes()).ok_or("it does not begin as a manifest does (offset 0)")?;
    let (hex, rest) = rest.split_at_checked(HEX_BYTES).ok_or("it is cut short")?;
    let rest = rest.strip_prefix(MIDDLE.as_bytes()).ok_or("what follows its hash is damaged (offset 75)")?;
    let body = rest.strip_suffix(TAIL.as_bytes()).ok_or("its end is damaged, or missing")?;
    // As text: a digit that is another case of the same digit is a flipped bit, too.
    if blake3::hash(body).to_hex().as_bytes() == hex {
        Ok(body)
    } else {
        Err("its hash does not match its bytes (from offset 88)")
    }
}

fn clock(superblock: &Superblock) -> &'static str {
    match superblock.clock {
        ClockMode::Wall => "wall",
        ClockMode::Replay => "replay",
    }
}

/// Where a shard's files are in a backup.
pub fn shard_dir(shard: u16) -> String {
    format!("shard-{shard:04}")
}

/// Whether a directory holds a backup.
pub fn is_backup(dir: &Path) -> bool {
    dir.join(MANIFEST).is_file()
}

/// A new file of a backup.
pub fn make_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

/// Makes the names in a directory durable.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The path of a file that a manifest names.
pub fn path_of(dir: &Path, file: &FilePart) -> PathBuf {
    dir.join(&file.file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_engine::log::layout::Geometry;
    use claim_engine::mutant::Mutation;
    use uuid::Uuid;

    fn manifest() -> Manifest {
        let superblock = Superblock {
            formatted_at_us: 5,
            ..Superblock::of_new_ledger(Uuid::from_u128(7), [3; 32], Geometry::DEFAULT)
        };
        let end = End::of(&LogEnd::at_start(&superblock, 0, Mutation::NONE), 0, 0, 0);
        let file = |name: &str| FilePart { file: format!("shard-0000/{name}"), bytes: 4096, blake3: "00".repeat(32) };
        let segment =
            SegmentPart { segment: 0, file: file("segment-00000000.to-0.log"), is_full: false, end: end.clone() };
        let shard = ShardPart { shard: 0, superblock: file("superblock-v2"), segments: vec![segment], end };
        Manifest { shards: vec![shard], ..Manifest::new(&superblock) }
    }

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a scratch directory")
    }

    #[test]
    fn reads_what_it_writes_and_refuses_every_flipped_bit() {
        let scratch = scratch();
        let dir = scratch.path();
        assert!(Manifest::read(dir).expect("a directory").is_none());
        manifest().write(dir).expect("a manifest");
        assert_eq!(Manifest::read(dir).expect("a manifest"), Some(manifest()));
        let whole = fs::read(dir.join(MANIFEST)).expect("a file");
        for bit in 0..whole.len() * 8 {
            let mut broken = whole.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.join(MANIFEST), &broken).expect("a file");
            assert!(Manifest::read(dir).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let scratch = scratch();
        for name in ["../../etc/passwd", "shard-0000/../../x", "shard-0001/segment", "/etc/passwd", "shard-0000/"] {
            let mut forged = manifest();
            forged.shards[0].segments[0].file.file = name.to_owned();
            forged.write(scratch.path()).expect("a manifest");
            assert!(Manifest::read(scratch.path()).is_err(), "{name}");
        }
    }
}
