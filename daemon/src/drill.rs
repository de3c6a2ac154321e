//! The last drill: a restore of the ledger's backup, which says how long it took and how old the backup was. `claimd restore
//! --remember` keeps that beside the ledger, and `status` shows it.
//!
//! ```text
//!  restore-drill.json   {"ledger": id, "at": time, "at_us": time, "rto_ms": how long it took, "rpo_ms": the backup's age}
//! ```

use crate::backup::manifest::{make_file, sync_directory};
use claim_engine::time::{TIME_US_MAX, rfc3339};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// The file, in the ledger's directory.
pub const FILE: &str = "restore-drill.json";
/// Nothing longer is read.
const FILE_BYTES_MAX: u64 = 4_096;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// The id of the ledger that was restored.
    pub ledger: String,
    /// When it ended, for people.
    pub at: String,
    /// When it ended, microseconds since the epoch.
    pub at_us: i64,
    /// How long it took.
    pub rto_ms: u64,
    /// How old the backup was.
    pub rpo_ms: i64,
}

impl Drill {
    /// One that has just ended.
    pub fn new(ledger: String, at_us: i64, rto_ms: u64, rpo_ms: i64) -> Drill {
        Drill { ledger, at: rfc3339(at_us), at_us, rto_ms, rpo_ms }
    }

    /// Keeps it in a ledger's directory in place of the one before: durable, all at once.
    pub fn write(&self, data: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        let path = data.join(FILE);
        let new = data.join(format!("{FILE}.tmp"));
        let mut file = make_file(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_directory(data)
    }

    /// The last one of a ledger, if there was one. The error says why the file is not one that a restore writes.
    pub fn read(data: &Path, ledger: Uuid) -> Result<Option<Drill>, String> {
        let path = data.join(FILE);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(found) if !found.is_file() => return Err("it is no file".to_owned()),
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(format!("it has {} bytes, more than any drill", found.len()));
            }
            Ok(_) => {}
        }
        let text = fs::read(&path).map_err(|e| e.to_string())?;
        let drill: Drill = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        if drill.ledger != ledger.to_string() {
            return Err(format!("it is of ledger {}, not of {ledger}", drill.ledger));
        }
        if !(0..=TIME_US_MAX).contains(&drill.at_us) {
            return Err(format!("{} us is no time of the ledger", drill.at_us));
        }
        Ok(Some(drill))
    }
}

/// What a daemon shows of drills: the file is read anew each time.
#[derive(Debug)]
pub struct Drills {
    data: PathBuf,
    is_told: AtomicBool,
}

impl Drills {
    /// Of the ledger in a directory.
    pub fn new(data: PathBuf) -> Drills {
        Drills { data, is_told: AtomicBool::new(false) }
    }

    /// The last one. What is damaged is not shown; the log says so once, until a sound one is there.
    pub fn last(&self, ledger: Uuid) -> Option<Drill> {
        match Drill::read(&self.data, ledger) {
            Ok(last) => {
                self.is_told.store(false, Ordering::Relaxed);
                last
            }
            Err(error) => {
                if !self.is_told.swap(true, Ordering::Relaxed) {
                    let file = self.data.join(FILE);
                    let file = file.display();
                    tracing::warn!(%file, error, "the record of the last drill can't be read; the next `claimd restore --remember` writes it anew");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_last_one_is_read_and_nothing_damaged_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let (data, ledger) = (directory.path(), Uuid::from_u128(7));
        assert_eq!(Drill::read(data, ledger), Ok(None));
        let before = Drill::new(ledger.to_string(), 1, 2, -3);
        let last = Drill::new(ledger.to_string(), 1_700_000_000_000_000, 4_000, 60_000);
        before.write(data).expect("written");
        last.write(data).expect("written");
        assert_eq!(Drill::read(data, ledger), Ok(Some(last.clone())));
        let path = data.join(FILE);
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o137, 0, "others can't read it: {mode:o}");
        assert_eq!(fs::read_dir(data).expect("a directory").count(), 1, "nothing else is left there");
        assert!(Drill::read(data, Uuid::from_u128(8)).is_err_and(|error| error.contains("it is of ledger")));
        let text = fs::read(&path).expect("it is there");
        let drills = Drills::new(data.to_owned());
        for damaged in [&b""[..], &text[..text.len() / 2], &[b'{'; FILE_BYTES_MAX as usize + 1]] {
            fs::write(&path, damaged).expect("written");
            assert!(Drill::read(data, ledger).is_err());
            assert_eq!(drills.last(ledger), None);
        }
        Drill { at_us: -1, ..last.clone() }.write(data).expect("written");
        assert!(Drill::read(data, ledger).is_err_and(|error| error.contains("no time")));
        last.write(data).expect("written");
        assert_eq!(drills.last(ledger), Some(last));
    }
}
