//! The daemon and its shards.

use crate::Builder;
use crate::generated::claimd as wire;
use crate::reply::{ShardStatus, StageTimes, StatusReport, Welcome};
use crate::wire_values::wire_uuid;
use flatbuffers::WIPOffset;

pub(super) fn encode_welcome<'b>(builder: &mut Builder, welcome: &Welcome) -> WIPOffset<wire::Welcome<'b>> {
    let shards: Vec<_> = welcome
        .shards
        .iter()
        .map(|endpoint| {
            let socket = Some(builder.create_string(&endpoint.socket));
            wire::ShardEndpoint::create(builder, &wire::ShardEndpointArgs { shard: endpoint.shard, socket })
        })
        .collect();
    let shards = Some(builder.create_vector(&shards));
    let daemon = Some(builder.create_string(&welcome.daemon));
    let ledger = wire_uuid(welcome.ledger);
    let table = wire::Welcome::create(
        builder,
        &wire::WelcomeArgs {
            version: welcome.version,
            daemon,
            ledger: Some(&ledger),
            clock: wire::ClockMode(welcome.clock as u8),
            shards,
            frame_bytes_max: welcome.frame_bytes_max,
            batch_items_max: welcome.batch_items_max,
        },
    );
    WIPOffset::new(table.value())
}

pub(super) fn encode_status<'b>(builder: &mut Builder, report: &StatusReport) -> WIPOffset<wire::StatusReport<'b>> {
    let shards: Vec<_> = report.shards.iter().map(|shard| encode_shard_status(builder, shard)).collect();
    let shards = Some(builder.create_vector(&shards));
    let daemon = Some(builder.create_string(&report.daemon));
    let frozen_reason = report.frozen_reason.as_ref().map(|reason| builder.create_string(reason));
    let archive_error = report.archive_error.as_ref().map(|error| builder.create_string(error));
    let ledger = wire_uuid(report.ledger);
    let table = wire::StatusReport::create(
        builder,
        &wire::StatusReportArgs {
            daemon,
            ledger: Some(&ledger),
            clock: wire::ClockMode(report.clock as u8),
            clock_synchronised: report.clock_synchronised,
            uptime_ms: report.uptime_ms,
            cores: report.cores,
            connections: report.connections,
            stall_wakes: report.stall_wakes,
            shards,
            incident_active: report.incident_active,
            frozen_reason,
            last_pass_at_us: report.last_pass_at_us,
            policy_at_us: report.policy_at_us,
            archive_at_us: report.archive_at_us,
            archive_error,
            drill_at_us: report.drill_at_us,
            drill_rto_ms: report.drill_rto_ms,
            drill_rpo_ms: report.drill_rpo_ms,
        },
    );
    WIPOffset::new(table.value())
}

fn encode_shard_status<'b>(builder: &mut Builder, shard: &ShardStatus) -> WIPOffset<wire::ShardStatus<'b>> {
    let failed = shard.failed.as_ref().map(|failed| builder.create_string(failed));
    let scrub_first = shard.scrub_first.as_ref().map(|first| builder.create_string(first));
    let dropped_to = shard.dropped_to.as_ref().map(|quarter| builder.create_string(quarter));
    let holds: Vec<_> = shard.holds.iter().map(|quarter| builder.create_string(quarter)).collect();
    let holds = (!holds.is_empty()).then(|| builder.create_vector(&holds));
    let retention_due = shard.retention_due.as_ref().map(|due| builder.create_string(due));
    let retention_waits_for = shard.retention_waits_for.as_ref().map(|what| builder.create_string(what));
    let stages: Vec<_> = shard.stages.iter().map(|times| encode_stage(builder, times)).collect();
    let stages = (!stages.is_empty()).then(|| builder.create_vector(&stages));
    let table = wire::ShardStatus::create(
        builder,
        &wire::ShardStatusArgs {
            shard: shard.shard,
            core: shard.core,
            position: shard.position,
            durable_position: shard.durable_position,
            rows: shard.rows,
            corpora: shard.corpora,
            idempotency_keys: shard.idempotency_keys,
            requests_held: shard.requests_held,
            batches_written: shard.batches_written,
            bytes_written: shard.bytes_written,
            segments_used: shard.segments_used,
            segments_prepared: shard.segments_prepared,
            segment_bytes: shard.segment_bytes,
            incarnation: shard.incarnation,
            clock_held_us: shard.clock_held_us,
            clock_suspect: shard.clock_suspect,
            no_space: shard.no_space,
            failed,
            scrubbed_bytes: shard.scrubbed_bytes,
            scrub_rounds: shard.scrub_rounds,
            scrub_damaged: shard.scrub_damaged,
            scrub_first,
            level: wire::OverloadLevel(shard.level as u8),
            debt_requests: shard.debt_requests,
            debt_bytes: shard.debt_bytes,
            open_disputes: shard.open_disputes,
            refused_overload: shard.refused_overload,
            rows_in_memory: shard.rows_in_memory,
            segments_sealed: shard.segments_sealed,
            segments_full: shard.segments_full,
            index_bytes: shard.index_bytes,
            cache_bytes: shard.cache_bytes,
            cache_bytes_max: shard.cache_bytes_max,
            cache_hits: shard.cache_hits,
            cache_misses: shard.cache_misses,
            log_bytes: shard.log_bytes,
            free_bytes: shard.free_bytes,
            first_segment: shard.first_segment,
            dropped_to,
            quarter_seals: shard.quarter_seals,
            holds,
            retention_due,
            retention_segments: shard.retention_segments,
            retention_bytes: shard.retention_bytes,
            retention_rows: shard.retention_rows,
            retention_carried: shard.retention_carried,
            retention_waits_for,
            stages,
            ring_segments: shard.ring_segments,
            ring_free_segments: shard.ring_free_segments,
        },
    );
    WIPOffset::new(table.value())
}

fn encode_stage<'b>(builder: &mut Builder, times: &StageTimes) -> WIPOffset<wire::StageTimes<'b>> {
    let StageTimes { name, count, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns } = times;
    let name = Some(builder.create_string(name));
    let (count, mean_ns, max_ns) = (*count, *mean_ns, *max_ns);
    let (p50_ns, p90_ns, p99_ns, p999_ns) = (*p50_ns, *p90_ns, *p99_ns, *p999_ns);
    let args = wire::StageTimesArgs { name, count, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns };
    WIPOffset::new(wire::StageTimes::create(builder, &args).value())
}
