//! What the machine below a ledger can do: its kernel, its rings, its memory lock, its file system, its block device,
//! its clock, and how fast a write becomes durable.
//!
//! Everything here looks and measures; nothing here writes a ledger. `claimd doctor` prints these facts, `claimd start`
//! refuses to serve on some of them, and `claim-bench floor` compares the daemon with them. The measurements use a ring of
//! the `io-uring` crate rather than the daemon's runtime, so that they show the device and not us.

pub mod block;
pub mod clock;
pub mod directory;
pub mod kernel;
pub mod memlock;
pub mod probe;
pub mod ring;
pub mod scratch;

use std::io;
use std::path::{Path, PathBuf};

/// What failed while the machine was being looked at, and on what.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A file of /proc or /sys, or the directory itself, could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of /proc or /sys holds something else than the kernel's documents promise.
    #[error("{} holds {found:?}, where {expected} was expected", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// The scratch file could not be made, or not be written.
    #[error("cannot {operation} the scratch file {}: {source}", path.display())]
    Scratch {
        /// The step that failed.
        operation: &'static str,
        /// Where the file is, or was to be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The ring itself failed, as opposed to an operation in it.
    #[error("the ring failed to {operation}: {source}")]
    Ring {
        /// The step that failed.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A write or flush of the probe came back with an error.
    #[error("a probe's {operation} at byte {offset} failed: {source}")]
    Operation {
        /// `write` or `fdatasync`.
        operation: &'static str,
        /// Where in the scratch file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A write of the probe was cut short.
    #[error("a probe's write at byte {offset} wrote {written_bytes} of {asked_bytes} bytes")]
    ShortWrite {
        /// Where in the scratch file.
        offset: u64,
        /// What was written.
        written_bytes: u32,
        /// What was asked.
        asked_bytes: u32,
    },
    /// A system call that takes no path failed.
    #[error("{call} failed: {source}")]
    Call {
        /// The call's name.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads one small text file of /proc or /sys without its last newline.
fn read_text(path: &Path) -> Result<String, DeviceError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(DeviceError::Read { path: path.to_owned(), source }),
    }
}

/// Reads one number from a file of /proc or /sys.
fn read_number(path: &Path) -> Result<u64, DeviceError> {
    let text = read_text(path)?;
    text.parse().map_err(|_| DeviceError::Malformed { path: path.to_owned(), found: text, expected: "a number" })
}
