//! Plays a file of events into a replay ledger.
//!
//! The file is ndjson, gzipped or not, in time order; `data/README.md` describes its fields. A corpus is onboarded when
//! it first appears. Each shard gets its events in the order of the file, pipelined; a reference, which concerns two
//! corpora, waits until everything before it is answered.
//!
//! An event that is refused for overload is sent again, in order with the others of its shard that were. What the daemon
//! took between the first refusal and the last stays ahead of them; the window is small so that this does not happen, and
//! the report says how often an event was sent again.
//!
//! Times, keys and metadata all follow from the file, so that playing it again asks for the same things with the same
//! keys: within the daemon's window for keys it is answered with the same ids, and outside of it refused.

mod event;
mod plan;
mod player;
mod report;
mod source;

pub use event::{Event, EventKind};
pub use plan::{ImportPlan, PlanError, plan};
pub use report::{ImportError, ImportFailure, ImportReport};
pub use source::{LINE_BYTES_MAX, Source, SourceError};

use crate::client::Client;
use player::Player;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Requests of one shard that are sent and not answered, unless told otherwise. It lies far below what a daemon holds, so
/// that an import alone is not refused for overload.
pub const WINDOW_DEFAULT: usize = 512;
/// How long an import waits for a ledger that takes nothing, unless told otherwise.
pub const PATIENCE_DEFAULT: Duration = Duration::from_secs(120);
/// Events between two calls of [`ImportObserver::progress`].
const PROGRESS_EVENTS: u64 = 256;

/// How an import behaves.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Requests of one shard that are sent and not answered.
    pub window: usize,
    /// Deadline of each request; `None`: the client's.
    pub deadline: Option<Duration>,
    /// How long events are sent again while the ledger takes nothing, being overloaded or full; then the import ends.
    pub patience: Duration,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions { window: WINDOW_DEFAULT, deadline: None, patience: PATIENCE_DEFAULT }
    }
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Events read.
    pub events: u64,
    /// Bytes of the file read, as they lie there.
    pub bytes: u64,
    /// Bytes of the whole file, where it is known.
    pub bytes_total: Option<u64>,
}

/// Watches an import. All methods do nothing by themselves; `()` watches nothing.
pub trait ImportObserver {
    /// A claim was acknowledged: it is durable. `reference` is its `ref` in the file.
    fn acknowledged(&mut self, corpus: &str, event_id: Uuid, reference: &str) {
        let _ = (corpus, event_id, reference);
    }

    /// Some events more were read.
    fn progress(&mut self, progress: Progress) {
        let _ = progress;
    }
}

impl ImportObserver for () {}

/// Plays the file at `path` through `client` into its ledger.
///
/// # Errors
/// The file cannot be read or is not in the format; no daemon is there any more; a request's outcome stays unknown; or the
/// daemon takes nothing for longer than [`ImportOptions::patience`], misses a deadline, stops, or lacks a shard or a clock. Refusals of an event
/// for what it asks are no errors: the report counts them by code. The error holds the report so far, and the same file
/// played again asks with the same idempotency keys.
pub fn import(
    client: &Client,
    path: &Path,
    options: &ImportOptions,
    observer: &mut dyn ImportObserver,
) -> Result<ImportReport, ImportError> {
    match Source::open(path) {
        Ok(source) => play(client, source, options, observer),
        Err(error) => Err(ImportError::new(0, error.into(), ImportReport::new())),
    }
}

/// Plays an open source, as [`import`].
///
/// # Errors
/// As [`import`].
pub fn play(
    client: &Client,
    mut source: Source,
    options: &ImportOptions,
    observer: &mut dyn ImportObserver,
) -> Result<ImportReport, ImportError> {
    let started = Instant::now();
    let mut player = Player::new(client, options, observer);
    let outcome = play_all(&mut player, &mut source);
    let mut report = player.into_report();
    report.seconds = started.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => Ok(report),
        Err(failure) => Err(ImportError::new(source.events(), failure, report)),
    }
}

fn play_all(player: &mut Player<'_>, source: &mut Source) -> Result<(), ImportFailure> {
    player.learn_registry()?;
    while let Some(event) = source.next_event()? {
        player.play(event)?;
        if source.events().is_multiple_of(PROGRESS_EVENTS) {
            player.progress(source.progress());
        }
    }
    player.settle_all()?;
    player.progress(source.progress());
    Ok(())
}
