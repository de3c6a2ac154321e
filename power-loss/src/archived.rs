//! The segment archive of a session: after each run it verifies, a ledger is restored from it, and what that has is held against what
//! the daemon's batches said, record by record.

use crate::daemon::Binary;
use crate::disk::Disk;
use crate::image::{Image, run};
use crate::retained::first_position;
use crate::session::SHARD_FILES;
use crate::trace::{Event, Mark, Op, Trace};
use claim_engine::log::batch::{self, Found};
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::record;
use claim_engine::log::recovery::{RecoveryOptions, Visit, walk};
use claim_engine::log::superblock::Superblock;
use claim_engine::mutant::Mutation;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use xxhash_rust::xxh3::xxh3_64;

/// What says that an archive is one: a round came to its end.
const MANIFEST: &str = "manifest.json";
/// Entries that a restore adds behind what it restores, at most.
const ENTRIES_OF_RESTORE: usize = 3;

/// The archive of a session.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
    restored: Vec<Restored>,
    /// The manifest when it was looked at last.
    manifest: Vec<u8>,
}

/// What a ledger has that was restored from it at an instant: by shard, each position with a hash of the record.
#[derive(Debug)]
struct Restored {
    instant: usize,
    shards: Vec<Vec<(u64, u64)>>,
}

impl Archive {
    /// One in `scratch`, with nothing in it.
    pub fn new(scratch: &Path) -> Archive {
        let dir = scratch.join("archive");
        // A session that failed leaves one of another ledger.
        let _ = std::fs::remove_dir_all(&dir);
        Archive { dir, restored: Vec::new(), manifest: Vec::new() }
    }

    /// Whether a round came to its end since it was looked at.
    pub fn is_newer(&self) -> bool {
        std::fs::read(self.dir.join(MANIFEST)).is_ok_and(|manifest| manifest != self.manifest)
    }

    /// How a daemon is told to keep it.
    pub fn arguments(&self) -> Vec<String> {
        let dir = self.dir.to_string_lossy().into_owned();
        let fixed = ["--segment-archive-every", "1", "--segment-archive-mib-per-s", "1000"].map(str::to_owned);
        [vec!["--segment-archive".to_owned(), dir], fixed.to_vec()].concat()
    }

    /// Looks at it while no daemon runs: it verifies, and makes a ledger that has all that was dropped. How far it goes is marked in the
    /// trace, because no power cut may take that from the ledger. Before the first round there is nothing to look at.
    pub fn look(&mut self, binary: &Binary, scratch: &Path, disk: &Disk) -> Result<(), String> {
        let manifest = self.dir.join(MANIFEST);
        let begins = SHARD_FILES.map(|name| {
            let superblock = disk.look(name, |content| run(Superblock::read(&Image::of(content))).ok()).flatten();
            superblock.map_or(0, |superblock| first_position(&superblock))
        });
        self.manifest = match (std::fs::read(&manifest), begins) {
            (Ok(manifest), _) => manifest,
            (Err(_), [0, 0]) => return Ok(()),
            (Err(error), _) => return Err(format!("segments were dropped, and {}: {error}", manifest.display())),
        };
        claimd(binary, &[OsStr::new("verify"), self.dir.as_os_str()])?;
        let data = scratch.join("restored");
        let _ = std::fs::remove_dir_all(&data);
        let [from, to, trial] = ["--from", "--data", "--unsafe-no-direct"].map(OsStr::new);
        claimd(binary, &[OsStr::new("restore"), from, self.dir.as_os_str(), to, data.as_os_str(), trial])?;
        let mut shards = Vec::new();
        for (shard, name) in SHARD_FILES.iter().enumerate() {
            let path = data.join(name);
            let content = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let records = records(&content).map_err(|e| format!("restored from the archive, shard {shard}: {e}"))?;
            let end = records.last().map_or(0, |(position, _)| *position);
            if end + 1 < begins[shard] {
                return Err(format!("the archive of shard {shard} ends at {end}, the log begins at {}", begins[shard]));
            }
            disk.shared().event(Event::Client(Mark::Archived { shard: shard as u16, position: end }));
            shards.push(records);
        }
        self.restored.push(Restored { instant: disk.instant(), shards });
        Ok(())
    }

    /// Holds what was restored against what the daemon wrote: the same record at each position, from the log's first one on.
    pub fn compare(&self, trace: &Trace) -> Result<(), String> {
        let superblocks = crate::check::superblocks(trace)?;
        for Restored { instant, shards } in &self.restored {
            for ((index, superblock), restored) in superblocks.iter().zip(shards) {
                let written = written(trace, *index, superblock, *instant);
                for (n, (position, hash)) in (1..).zip(restored) {
                    if *position != n || written.get(position) != Some(hash) {
                        let shard = superblock.shard;
                        return Err(format!(
                            "shard {shard}: what the archive has at position {position} is not the ledger's"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Runs `claimd` to its end; it succeeds.
fn claimd(binary: &Binary, arguments: &[&OsStr]) -> Result<(), String> {
    let output = Command::new(&binary.claimd).args(arguments).output();
    let output = output.map_err(|e| format!("cannot run {}: {e}", binary.claimd.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let [said, failed] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    Err(format!("the archive: claimd {} ended with {}: {said} {failed}", arguments[0].display(), output.status))
}

/// The records of a restored ledger without those that the restore added.
fn records(content: &[u8]) -> Result<Vec<(u64, u64)>, String> {
    let image = Image::of(content);
    let superblock = run(Superblock::read(&image)).map_err(|e| e.to_string())?;
    let (mut records, mut restored_at) = (Vec::new(), None);
    let options = RecoveryOptions { mutation: Mutation::NONE };
    run(walk(&image, &superblock, options, |visit| {
        if let Visit::Record(raw, _) = visit {
            let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
            if matches!(record.entry, Entry::Restore { .. }) {
                restored_at = Some(records.len());
            }
            records.push((raw.position, xxh3_64(raw.body)));
        }
        Ok(())
    }))
    .map_err(|e| e.to_string())?;
    let restored_at = restored_at.ok_or("it does not say that it was restored")?;
    if records.len() - restored_at >= ENTRIES_OF_RESTORE {
        return Err(format!("{} entries are behind the one of the restore", records.len() - restored_at - 1));
    }
    // A recovery comes before it.
    records.truncate(restored_at.saturating_sub(1));
    Ok(records)
}

/// The records of a shard's log at an instant, as they were submitted.
fn written(trace: &Trace, index: usize, superblock: &Superblock, instant: usize) -> BTreeMap<u64, u64> {
    let mut written = BTreeMap::new();
    for event in &trace.events[..instant] {
        let Event::Submitted(Op::Write { file, data, .. }) = event else { continue };
        if *file as usize != index {
            continue;
        }
        let largest = superblock.geometry.batch_bytes_max;
        let found = batch::find(data, &superblock.key, superblock.shard, largest, Mutation::NONE);
        let Found::Batch { header, .. } = found else { continue };
        if header.is_sealing {
            continue;
        }
        if header.is_recovery {
            written.split_off(&header.first_position);
        }
        let mut rest = &data[batch::records(data, &header)];
        while let Ok((raw, bytes)) = record::read(rest) {
            rest = &rest[bytes..];
            written.insert(raw.position, xxh3_64(raw.body));
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuts;

    fn sound() -> Trace {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/sound.trace.gz");
        Trace::load(&path).expect("a kept trace")
    }

    #[test]
    fn an_archive_has_a_beginning_of_the_log_and_nothing_else() {
        let trace = sound();
        let superblocks = crate::check::superblocks(&trace).expect("superblocks");
        let instant = trace.events.len();
        let log = |(index, superblock): &(usize, Superblock)| {
            written(&trace, *index, superblock, instant).into_iter().take(20).collect::<Vec<_>>()
        };
        let shards: Vec<_> = superblocks.iter().map(log).collect();
        assert!(shards.iter().all(|records| records.len() == 20));
        let compare = |spoil: fn(&mut Vec<(u64, u64)>)| {
            let mut shards = shards.clone();
            spoil(&mut shards[1]);
            let archive =
                Archive { dir: PathBuf::new(), restored: vec![Restored { instant, shards }], manifest: Vec::new() };
            archive.compare(&trace)
        };
        assert_eq!(compare(|_| {}), Ok(()));
        assert_eq!(compare(|records| records.truncate(3)), Ok(()));
        compare(|records| records[7].1 ^= 1).expect_err("another record");
        compare(|records| _ = records.remove(0)).expect_err("it lacks the first");
        compare(|records| _ = records.remove(9)).expect_err("it lacks one in between");
        compare(|records| records.push((u64::MAX, 0))).expect_err("it has one that was never written");
    }

    #[test]
    fn an_archive_that_is_ahead_of_what_a_cut_leaves_is_found() {
        let with_mark = |position| {
            let mut trace = sound();
            let at = trace.events.len() / 2;
            trace.events.insert(at, Event::Client(Mark::Archived { shard: 0, position }));
            cuts::cut(&trace, 60, Mutation::NONE, |_| {}).expect("a ledger").1
        };
        assert!(with_mark(1).is_none());
        let violation = with_mark(1 << 40).expect("no log is so long");
        assert!(violation.what.contains("archive"), "{}", violation.what);
    }
}
