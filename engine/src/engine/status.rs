//! A shard as `status` shows it.

use super::Engine;
use crate::debt::Level;
use crate::log::layout::BLOCK_BYTES;

/// Counters and states for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the status report")]
pub struct EngineStatus {
    pub shard: u16,
    pub position: u64,
    pub durable_position: u64,
    pub rows: u64,
    pub corpora: u32,
    pub idempotency_keys: u64,
    pub requests_held: u64,
    pub batches_written: u64,
    pub bytes_written: u64,
    pub segments_used: u32,
    pub segments_prepared: u32,
    pub segment_bytes: u64,
    pub ring_segments: u64,
    pub ring_free_segments: u64,
    pub incarnation: u64,
    pub clock_held_us: u64,
    pub clock_suspect: bool,
    pub no_space: bool,
    pub failed: Option<String>,
    pub level: Level,
    pub debt_requests: u64,
    pub debt_bytes: u64,
    pub refused_overload: u64,
    pub rows_in_memory: u64,
    pub segments_sealed: u32,
    pub segments_full: u32,
    pub index_bytes: u64,
    pub cache_bytes: u64,
    pub cache_bytes_max: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub log_bytes: u64,
    pub open_disputes: u32,
    pub incident_active: bool,
    pub frozen_reason: Option<String>,
    pub last_pass_at_us: Option<i64>,
    pub policy_at_us: i64,
}

impl Engine {
    /// For `status`.
    pub fn status(&self) -> EngineStatus {
        let (segments_used, segments_prepared) = self.log.segments();
        let counts = self.log.counts();
        let rows = self.shard.rows();
        let catalog = rows.catalog();
        let (blocks, blocks_max) = catalog.cache_blocks();
        let (cache_hits, cache_misses) = catalog.cache_hits();
        EngineStatus {
            shard: self.shard.number(),
            position: self.shard.last_position(),
            durable_position: self.log.durable().position,
            rows: self.shard.rows().count(),
            corpora: self.shard.registry().on_shard(self.shard.number()),
            idempotency_keys: self.shard.key_count(),
            requests_held: self.held() as u64,
            batches_written: counts.batches,
            bytes_written: counts.bytes,
            segments_used: segments_used as u32,
            segments_prepared: segments_prepared as u32,
            segment_bytes: self.superblock.geometry.segment_bytes,
            ring_segments: self.superblock.geometry.ring_segments,
            ring_free_segments: self.log.ring_free_segments(),
            incarnation: self.log.incarnation(),
            clock_held_us: self.shard.clock().held_us() as u64,
            clock_suspect: self.shard.clock().suspect().is_some(),
            no_space: self.log.cannot_grow(),
            failed: self.log.failed().map(str::to_owned),
            level: self.debt.level(),
            debt_requests: self.debt.requests(),
            debt_bytes: self.debt.bytes(),
            refused_overload: self.refused_overload,
            rows_in_memory: rows.count_in_memory(),
            segments_sealed: catalog.segments().len() as u32,
            segments_full: rows.frozen().len() as u32,
            index_bytes: catalog.segments().iter().map(|sealed| sealed.summary.index_bytes()).sum(),
            cache_bytes: blocks * BLOCK_BYTES,
            cache_bytes_max: blocks_max * BLOCK_BYTES,
            cache_hits,
            cache_misses,
            log_bytes: self.log.written_bytes(),
            open_disputes: self.shard.disputes().open_count() as u32,
            incident_active: self.shard.registry().incident_active(),
            frozen_reason: self.shard.registry().frozen().map(|stop| stop.reason.clone()),
            last_pass_at_us: self.shard.passes().done().map(|mark| mark.at_us),
            policy_at_us: self.shard.in_force().at_us,
        }
    }
}
