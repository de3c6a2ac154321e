//! The daemon and its shards.

use crate::generated::claimd as wire;
use crate::reply::{ShardEndpoint, ShardStatus, StageTimes, StatusReport, Welcome};
use crate::values::{ClockMode, OverloadLevel};
use crate::wire_values::typed_uuid;

pub(super) fn decode_welcome(table: &wire::Welcome<'_>) -> Result<Welcome, String> {
    let endpoint = |endpoint: wire::ShardEndpoint<'_>| ShardEndpoint {
        shard: endpoint.shard(),
        socket: endpoint.socket().to_owned(),
    };
    Ok(Welcome {
        version: table.version(),
        daemon: table.daemon().to_owned(),
        ledger: typed_uuid(table.ledger()),
        clock: decode_clock(table.clock())?,
        shards: table.shards().iter().map(endpoint).collect(),
        frame_bytes_max: table.frame_bytes_max(),
        batch_items_max: table.batch_items_max(),
    })
}

fn decode_clock(clock: wire::ClockMode) -> Result<ClockMode, String> {
    ClockMode::try_from(clock.0).map_err(|error| format!("clock: {error}"))
}

pub(super) fn decode_status(table: &wire::StatusReport<'_>) -> Result<StatusReport, String> {
    Ok(StatusReport {
        daemon: table.daemon().to_owned(),
        ledger: typed_uuid(table.ledger()),
        clock: decode_clock(table.clock())?,
        clock_synchronised: table.clock_synchronised(),
        uptime_ms: table.uptime_ms(),
        cores: table.cores(),
        connections: table.connections(),
        stall_wakes: table.stall_wakes(),
        shards: table.shards().iter().map(|shard| decode_shard_status(&shard)).collect::<Result<_, String>>()?,
        incident_active: table.incident_active(),
        frozen_reason: table.frozen_reason().map(str::to_owned),
        last_pass_at_us: table.last_pass_at_us(),
        policy_at_us: table.policy_at_us(),
        archive_at_us: table.archive_at_us(),
        archive_error: table.archive_error().map(str::to_owned),
        drill_at_us: table.drill_at_us(),
        drill_rto_ms: table.drill_rto_ms(),
        drill_rpo_ms: table.drill_rpo_ms(),
    })
}

fn decode_shard_status(table: &wire::ShardStatus<'_>) -> Result<ShardStatus, String> {
    Ok(ShardStatus {
        shard: table.shard(),
        core: table.core(),
        position: table.position(),
        durable_position: table.durable_position(),
        rows: table.rows(),
        corpora: table.corpora(),
        idempotency_keys: table.idempotency_keys(),
        requests_held: table.requests_held(),
        batches_written: table.batches_written(),
        bytes_written: table.bytes_written(),
        segments_used: table.segments_used(),
        segments_prepared: table.segments_prepared(),
        segment_bytes: table.segment_bytes(),
        incarnation: table.incarnation(),
        clock_held_us: table.clock_held_us(),
        clock_suspect: table.clock_suspect(),
        no_space: table.no_space(),
        failed: table.failed().map(str::to_owned),
        scrubbed_bytes: table.scrubbed_bytes(),
        scrub_rounds: table.scrub_rounds(),
        scrub_damaged: table.scrub_damaged(),
        scrub_first: table.scrub_first().map(str::to_owned),
        level: OverloadLevel::try_from(table.level().0).map_err(|error| format!("level: {error}"))?,
        debt_requests: table.debt_requests(),
        debt_bytes: table.debt_bytes(),
        open_disputes: table.open_disputes(),
        refused_overload: table.refused_overload(),
        rows_in_memory: table.rows_in_memory(),
        segments_sealed: table.segments_sealed(),
        segments_full: table.segments_full(),
        index_bytes: table.index_bytes(),
        cache_bytes: table.cache_bytes(),
        cache_bytes_max: table.cache_bytes_max(),
        cache_hits: table.cache_hits(),
        cache_misses: table.cache_misses(),
        log_bytes: table.log_bytes(),
        free_bytes: table.free_bytes(),
        first_segment: table.first_segment(),
        dropped_to: table.dropped_to().map(str::to_owned),
        quarter_seals: table.quarter_seals(),
        holds: table.holds().map(|holds| holds.iter().map(str::to_owned).collect()).unwrap_or_default(),
        retention_due: table.retention_due().map(str::to_owned),
        retention_segments: table.retention_segments(),
        retention_bytes: table.retention_bytes(),
        retention_rows: table.retention_rows(),
        retention_carried: table.retention_carried(),
        retention_waits_for: table.retention_waits_for().map(str::to_owned),
        stages: table.stages().map(|stages| stages.iter().map(|t| decode_stage(&t)).collect()).unwrap_or_default(),
        ring_segments: table.ring_segments(),
        ring_free_segments: table.ring_free_segments(),
    })
}

fn decode_stage(table: &wire::StageTimes<'_>) -> StageTimes {
    StageTimes {
        name: table.name().to_owned(),
        count: table.count(),
        mean_ns: table.mean_ns(),
        p50_ns: table.p50_ns(),
        p90_ns: table.p90_ns(),
        p99_ns: table.p99_ns(),
        p999_ns: table.p999_ns(),
        max_ns: table.max_ns(),
    }
}
