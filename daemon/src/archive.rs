//! The segment archive: while a daemon serves, a thread of its own brings a backup of the ledger up to date again and again,
//! at a bounded rate. It is a backup like any other: `claimd verify` and `claimd restore` take it.

use crate::backup::{self, Failure, Pace};
use claim_engine::time::rfc3339;
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pauses of the bounded rate are not longer than this, so that a stop is soon heard of.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What `claimd start` is told of the archive.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// Where it is.
    pub to: PathBuf,
    /// From the end of one round to the begin of the next.
    pub every: Duration,
    /// Bytes of the ledger that are read in a second, at most.
    pub bytes_per_s: u64,
}

/// What has become of the archive since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveState {
    /// When the last round that came to its end began, microseconds since the epoch: what was durable then is archived.
    pub last_success_us: Option<i64>,
    /// Why the last round failed, if it did.
    pub last_error: Option<String>,
    /// Rounds that came to their end.
    pub rounds: u64,
    /// Bytes that were copied.
    pub bytes_copied: u64,
    /// By shard, the first segment that is not there as a whole.
    pub segments: Vec<u64>,
}

/// The thread.
#[derive(Debug)]
pub struct Archive {
    is_stopping: Arc<AtomicBool>,
    wake: Sender<()>,
    thread: JoinHandle<()>,
}

impl Archive {
    /// Starts the first round at once. What becomes of it goes to `state`.
    pub fn start(data: &Path, options: &ArchiveOptions, state: Arc<Mutex<ArchiveState>>) -> std::io::Result<Archive> {
        let is_stopping = Arc::new(AtomicBool::new(false));
        let (wake, woken) = channel();
        let (data, options) = (data.to_owned(), options.clone());
        let stops = Arc::clone(&is_stopping);
        let thread = std::thread::Builder::new().name("claimd-archive".to_owned()).spawn(move || {
            while !stops.load(Ordering::Relaxed) {
                round(&data, &options, &stops, &state);
                if woken.recv_timeout(options.every) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Archive { is_stopping, wake, thread })
    }

    /// Ends the thread. A round under way is given up: what the archive had before is whole.
    pub fn stop(self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        drop(self.wake);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the segment archive ended badly");
        }
    }
}

fn round(data: &Path, options: &ArchiveOptions, is_stopping: &AtomicBool, state: &Mutex<ArchiveState>) {
    let (began_us, started) = (crate::clock::now().wall_us, Instant::now());
    let mut read = 0u64;
    let mut each = |bytes: u64| {
        read += bytes;
        let due = Duration::from_secs_f64(read as f64 / options.bytes_per_s.max(1) as f64);
        loop {
            if is_stopping.load(Ordering::Relaxed) {
                return Err(Failure::unreadable("the daemon stops".to_owned()));
            }
            let pause = due.saturating_sub(started.elapsed()).min(PAUSE_MAX);
            if pause.is_zero() {
                return Ok(());
            }
            std::thread::sleep(pause);
        }
    };
    let made = backup::backup(data, &options.to, &mut Pace::new(&ProgressBar::hidden(), &mut each));
    if is_stopping.load(Ordering::Relaxed) && made.is_err() {
        return;
    }
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    match made {
        Ok(made) => {
            state.last_success_us = Some(began_us);
            state.segments = made.manifest.shards.iter().map(|part| part.full_to()).collect();
            let had_failed = state.last_error.take().is_some();
            state.rounds += 1;
            state.bytes_copied += made.bytes_copied;
            let to = made.manifest.consistent_to_us.map(rfc3339);
            let took_ms = started.elapsed().as_millis() as u64;
            let age_ms = (crate::clock::now().wall_us - began_us) / 1_000;
            if state.rounds == 1 || had_failed {
                tracing::info!(to, bytes = made.bytes_copied, took_ms, age_ms, "the segment archive is up to date");
            } else {
                tracing::debug!(to, bytes = made.bytes_copied, took_ms, age_ms, "the segment archive is up to date");
            }
        }
        Err(Failure { message, .. }) => {
            let age_s = state.last_success_us.map(|at_us| (crate::clock::now().wall_us - at_us) / 1_000_000);
            tracing::error!(error = message, age_s, "the segment archive is not up to date; it is tried again");
            state.last_error = Some(message);
        }
    }
}
