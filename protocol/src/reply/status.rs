//! The daemon and its shards.

use crate::{ClockMode, OverloadLevel};
use uuid::Uuid;

/// The daemon's half of the first exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct Welcome {
    pub version: u16,
    pub daemon: String,
    pub ledger: Uuid,
    pub clock: ClockMode,
    /// Socket path of each shard; index is the shard number.
    pub shards: Vec<ShardEndpoint>,
    pub frame_bytes_max: u32,
    pub batch_items_max: u32,
}

/// Where a shard can be reached directly.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardEndpoint {
    pub shard: u16,
    pub socket: String,
}

/// One shard of a [`StatusReport`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShardStatus {
    pub shard: u16,
    pub core: u16,
    /// Last applied position.
    pub position: u64,
    pub durable_position: u64,
    pub rows: u64,
    /// Corpora placed on this shard.
    pub corpora: u32,
    pub idempotency_keys: u64,
    /// Requests accepted and not answered.
    pub requests_held: u64,
    pub batches_written: u64,
    pub bytes_written: u64,
    pub segments_used: u32,
    pub segments_prepared: u32,
    pub segment_bytes: u64,
    pub incarnation: u64,
    /// By how much the clock stands behind the last timestamp.
    pub clock_held_us: u64,
    pub clock_suspect: bool,
    pub no_space: bool,
    /// Why the shard stopped.
    pub failed: Option<String>,
    /// Read again and verified in the background since start.
    pub scrubbed_bytes: u64,
    /// Times that the whole log was gone over since start.
    pub scrub_rounds: u64,
    /// Places that did not verify since start.
    pub scrub_damaged: u64,
    /// The first of them.
    pub scrub_first: Option<String>,
    pub level: OverloadLevel,
    /// Requests accepted and not answered, as the level counts them.
    pub debt_requests: u64,
    pub debt_bytes: u64,
    pub open_disputes: u32,
    /// Requests refused for the load since start.
    pub refused_overload: u64,
    /// Of segments that are not sealed yet.
    pub rows_in_memory: u64,
    /// Full segments whose rows have left memory.
    pub segments_sealed: u32,
    /// Full segments that wait to be sealed.
    pub segments_full: u32,
    /// Of sealed segments, on disk.
    pub index_bytes: u64,
    /// Blocks of sealed segments in memory.
    pub cache_bytes: u64,
    /// Bound of the same.
    pub cache_bytes_max: u64,
    /// Blocks that were in memory when they were asked for, since start.
    pub cache_hits: u64,
    /// Blocks that were not.
    pub cache_misses: u64,
    /// Of the log since the ledger began: everything that is written but zeroes.
    pub log_bytes: u64,
    /// Left for this shard's file: of its file system, or of its device; in a ring, of its free segments.
    pub free_bytes: u64,
    /// That the log begins with: those before it are dropped.
    pub first_segment: u64,
    /// The last quarter that is dropped.
    pub dropped_to: Option<String>,
    /// Seals that stand for what is dropped.
    pub quarter_seals: u32,
    /// Quarters that are kept whatever their age.
    pub holds: Vec<String>,
    /// What goes next: `2021-Q1`, or `2021-Q1 to 2021-Q3`.
    pub retention_due: Option<String>,
    /// That go with it.
    pub retention_segments: u32,
    /// Of those segments.
    pub retention_bytes: u64,
    /// In those segments.
    pub retention_rows: u64,
    /// Of these rows, those that outlive their quarter, at most: they are logged again before.
    pub retention_carried: u64,
    /// What stands against it.
    pub retention_waits_for: Option<String>,
    /// Of the core, since start; told with its first shard.
    pub stages: Vec<StageTimes>,
    /// Places on its device that its log goes round in; 0: it lies in a file, or does not go round.
    pub ring_segments: u64,
    /// Of these, behind the segment that is written: requests may fill them before a quarter is dropped.
    pub ring_free_segments: u64,
}

/// Where the time goes: one stage of a request's way.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StageTimes {
    pub name: String,
    pub count: u64,
    pub mean_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

/// The state of the daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusReport {
    pub daemon: String,
    pub ledger: Uuid,
    pub clock: ClockMode,
    pub clock_synchronised: bool,
    pub uptime_ms: u64,
    pub cores: u32,
    pub connections: u32,
    /// How often the stall guard woke an executor.
    pub stall_wakes: u64,
    pub shards: Vec<ShardStatus>,
    pub incident_active: bool,
    /// Why the whole ledger is frozen.
    pub frozen_reason: Option<String>,
    /// When reconciliation last ended a pass.
    pub last_pass_at_us: Option<i64>,
    /// When the configuration took effect.
    pub policy_at_us: Option<i64>,
    /// What was durable then is in the segment archive.
    pub archive_at_us: Option<i64>,
    /// Why the archive's last round failed.
    pub archive_error: Option<String>,
    /// When the last restore that was remembered with this ledger ended.
    pub drill_at_us: Option<i64>,
    /// How long that took.
    pub drill_rto_ms: u64,
    /// How old the backup was that it was made from.
    pub drill_rpo_ms: Option<i64>,
}
