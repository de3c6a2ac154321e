//! What every executor and the thread that started them know together.

use crate::archive::ArchiveState;
use crate::drill::Drills;
use crate::stall_guard::GuardCounters;
use claim_engine::log::superblock::ClockMode;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What every executor knows of the daemon.
#[derive(Debug)]
pub struct Shared {
    /// The ledger's id.
    pub ledger: Uuid,
    /// Where time comes from.
    pub clock: ClockMode,
    /// Which executor runs a shard.
    pub executor_of_shard: Vec<usize>,
    /// Which core an executor is pinned to.
    pub cores: Vec<usize>,
    /// Socket path of each shard.
    pub shard_sockets: Vec<String>,
    /// When the daemon started.
    pub started: Instant,
    /// Connections that have said hello.
    pub connections: AtomicUsize,
    /// Executors that have finished what they had, on the way down. The mesh stays open until all of them have.
    pub drained: AtomicUsize,
    /// A configuration has come in force, or was refused.
    pub configured: Notice,
    /// What the stall guard did.
    pub guard: OnceLock<Arc<GuardCounters>>,
    /// How the segment archive is doing, if there is one.
    pub archive: Option<Arc<Mutex<ArchiveState>>>,
    /// What is remembered of restores of this ledger's backup.
    pub drills: Drills,
}

/// Tells a thread that something has happened.
#[derive(Debug, Default)]
pub struct Notice {
    happened: Mutex<Option<Tried>>,
    changed: Condvar,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It is over, well or not.
    Over,
    /// It is to be tried again a little later.
    Again,
}

impl Notice {
    /// It has happened.
    pub fn notify(&self, tried: Tried) {
        *self.happened.lock().unwrap_or_else(PoisonError::into_inner) = Some(tried);
        self.changed.notify_all();
    }

    /// Waits until it happens, and forgets it; nothing when it takes longer than this.
    pub fn wait(&self, patience: Duration) -> Option<Tried> {
        let happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut happened, _) = self
            .changed
            .wait_timeout_while(happened, patience, |happened| happened.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        happened.take()
    }
}
