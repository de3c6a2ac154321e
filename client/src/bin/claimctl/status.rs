//! The state of the daemon.

use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::{age_seconds, ago, now_us, rfc3339};
use claim_client::{RequestOptions, ShardStatus, StageTimes, StatusReport};
use serde::Serialize;
use std::time::Duration;

const MS_PER_DAY: u128 = 86_400_000;
/// A daemon that has run for less than this has no rate yet.
const RATE_MS_MIN: u64 = 60_000;

/// A daemon's state in JSON.
#[derive(Debug, Serialize)]
struct StatusJson<'a> {
    daemon: &'a str,
    ledger: String,
    clock: &'a str,
    clock_synchronised: bool,
    uptime_ms: u64,
    cores: u32,
    connections: u32,
    stall_wakes: u64,
    incident_active: bool,
    frozen_reason: Option<&'a str>,
    last_pass_at: Option<String>,
    policy_at: Option<String>,
    /// What was durable then is in the segment archive.
    archive_at: Option<String>,
    archive_age_seconds: Option<u64>,
    archive_error: Option<&'a str>,
    /// The last restore that was remembered with the ledger.
    drill_at: Option<String>,
    drill_age_seconds: Option<u64>,
    drill_rto_ms: Option<u64>,
    drill_rpo_ms: Option<i64>,
    shards: Vec<ShardJson<'a>>,
}

/// A shard's state in JSON.
#[derive(Debug, Serialize)]
struct ShardJson<'a> {
    shard: u16,
    core: u16,
    position: u64,
    durable_position: u64,
    rows: u64,
    corpora: u32,
    idempotency_keys: u64,
    requests_held: u64,
    batches_written: u64,
    bytes_written: u64,
    segments_used: u32,
    segments_prepared: u32,
    segment_bytes: u64,
    incarnation: u64,
    clock_held_us: u64,
    clock_suspect: bool,
    no_space: bool,
    failed: Option<&'a str>,
    scrubbed_bytes: u64,
    scrub_rounds: u64,
    scrub_damaged: u64,
    scrub_first: Option<&'a str>,
    level: &'a str,
    debt_requests: u64,
    debt_bytes: u64,
    open_disputes: u32,
    refused_overload: u64,
    rows_in_memory: u64,
    segments_sealed: u32,
    segments_full: u32,
    index_bytes: u64,
    cache_bytes: u64,
    cache_bytes_max: u64,
    cache_hits: u64,
    cache_misses: u64,
    log_bytes: u64,
    free_bytes: u64,
    ring_segments: u64,
    ring_free_segments: u64,
    first_segment: u64,
    dropped_to: Option<&'a str>,
    quarter_seals: u32,
    holds: &'a [String],
    retention_due: Option<&'a str>,
    retention_segments: u32,
    retention_bytes: u64,
    retention_rows: u64,
    retention_carried: u64,
    retention_waits_for: Option<&'a str>,
    full_in_days: Option<u64>,
    /// Of the core; with its first shard.
    stages: Vec<StageJson<'a>>,
}

/// Where the time goes, in JSON.
#[derive(Debug, Serialize)]
struct StageJson<'a> {
    stage: &'a str,
    count: u64,
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl<'a> StageJson<'a> {
    fn new(times: &'a StageTimes) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        StageJson {
            stage: &times.name,
            count: times.count,
            mean_us: us(times.mean_ns),
            p50_us: us(times.p50_ns),
            p90_us: us(times.p90_ns),
            p99_us: us(times.p99_ns),
            p999_us: us(times.p999_ns),
            max_us: us(times.max_ns),
        }
    }
}

impl<'a> ShardJson<'a> {
    fn new(shard: &'a ShardStatus, uptime_ms: u64) -> Self {
        ShardJson {
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
            failed: shard.failed.as_deref(),
            scrubbed_bytes: shard.scrubbed_bytes,
            scrub_rounds: shard.scrub_rounds,
            scrub_damaged: shard.scrub_damaged,
            scrub_first: shard.scrub_first.as_deref(),
            level: shard.level.as_str(),
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
            ring_segments: shard.ring_segments,
            ring_free_segments: shard.ring_free_segments,
            first_segment: shard.first_segment,
            dropped_to: shard.dropped_to.as_deref(),
            quarter_seals: shard.quarter_seals,
            holds: &shard.holds,
            retention_due: shard.retention_due.as_deref(),
            retention_segments: shard.retention_segments,
            retention_bytes: shard.retention_bytes,
            retention_rows: shard.retention_rows,
            retention_carried: shard.retention_carried,
            retention_waits_for: shard.retention_waits_for.as_deref(),
            full_in_days: full_in_days(shard, uptime_ms),
            stages: shard.stages.iter().map(StageJson::new).collect(),
        }
    }
}

pub fn status(session: &Session, with_stages: bool, output: &mut Output) -> Result<(), Failure> {
    let report = session.client.status(&RequestOptions::default()).wait()?.value;
    let now_us = now_us();
    let age = |at_us| age_seconds(at_us, now_us);
    if output.is_json() {
        return output.object(&StatusJson {
            daemon: &report.daemon,
            ledger: report.ledger.to_string(),
            clock: report.clock.as_str(),
            clock_synchronised: report.clock_synchronised,
            uptime_ms: report.uptime_ms,
            cores: report.cores,
            connections: report.connections,
            stall_wakes: report.stall_wakes,
            incident_active: report.incident_active,
            frozen_reason: report.frozen_reason.as_deref(),
            last_pass_at: report.last_pass_at_us.map(rfc3339),
            policy_at: report.policy_at_us.map(rfc3339),
            archive_at: report.archive_at_us.map(rfc3339),
            archive_age_seconds: report.archive_at_us.map(age),
            archive_error: report.archive_error.as_deref(),
            drill_at: report.drill_at_us.map(rfc3339),
            drill_age_seconds: report.drill_at_us.map(age),
            drill_rto_ms: report.drill_at_us.map(|_| report.drill_rto_ms),
            drill_rpo_ms: report.drill_rpo_ms,
            shards: report.shards.iter().map(|shard| ShardJson::new(shard, report.uptime_ms)).collect(),
        });
    }
    output.pairs(&[
        ("daemon", report.daemon.clone()),
        ("ledger", report.ledger.to_string()),
        ("clock", clock(&report)),
        ("uptime", format!("{:?}", Duration::from_millis(report.uptime_ms))),
        ("cores", report.cores.to_string()),
        ("connections", report.connections.to_string()),
        ("stall wakes", report.stall_wakes.to_string()),
        ("incident", if report.incident_active { "on" } else { "none" }.to_owned()),
        ("frozen", report.frozen_reason.clone().unwrap_or_else(|| "no".to_owned())),
        ("last reconciled", report.last_pass_at_us.map_or_else(|| "never".to_owned(), rfc3339)),
        ("configured", report.policy_at_us.map_or_else(|| "never".to_owned(), rfc3339)),
        ("archived", archived(&report, now_us)),
        ("last drill", drill(&report, now_us)),
    ])?;
    output.line("")?;
    let head = [
        "shard",
        "core",
        "state",
        "level",
        "rows",
        "corpora",
        "durable/applied",
        "debt",
        "refused",
        "disputes",
        "keys",
        "batches",
        "MiB",
        "segments",
        "scrubbed",
    ];
    output.table(&head, report.shards.iter().map(shard_row).collect())?;
    output.line("")?;
    let head = [
        "shard",
        "segments",
        "from segment",
        "dropped to",
        "index",
        "rows in memory",
        "blocks in memory",
        "log",
        "free",
        "full in",
    ];
    output.table(&head, report.shards.iter().map(|shard| storage_row(shard, report.uptime_ms)).collect())?;
    if !with_stages {
        return Ok(());
    }
    output.line("")?;
    let head = ["core", "stage", "count", "mean us", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us"];
    let rows = report.shards.iter().flat_map(|shard| shard.stages.iter().map(|times| stage_row(shard.core, times)));
    output.table(&head, rows.collect())
}

fn stage_row(core: u16, times: &StageTimes) -> Vec<String> {
    let StageJson { stage, count, mean_us, p50_us, p90_us, p99_us, p999_us, max_us } = StageJson::new(times);
    let us = [mean_us, p50_us, p90_us, p99_us, p999_us, max_us].map(|us| format!("{us:.1}"));
    [core.to_string(), stage.to_owned(), count.to_string()].into_iter().chain(us).collect()
}

/// Days until the shard's file can't grow any more, or its ring is full with nothing dropped, at the rate since the daemon started;
/// `None` while that can't be told.
fn full_in_days(shard: &ShardStatus, uptime_ms: u64) -> Option<u64> {
    let bytes_per_day = (u128::from(shard.bytes_written) * MS_PER_DAY).checked_div(u128::from(uptime_ms))?;
    let days = u128::from(shard.free_bytes).checked_div(bytes_per_day)?;
    (uptime_ms >= RATE_MS_MIN).then(|| u64::try_from(days).unwrap_or(u64::MAX))
}

fn storage_row(shard: &ShardStatus, uptime_ms: u64) -> Vec<String> {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let asked = shard.cache_hits + shard.cache_misses;
    let hits = (shard.cache_hits * 100).checked_div(asked).map_or_else(String::new, |hits| format!(", {hits} % hits"));
    let open = shard.segments_used.saturating_sub(shard.segments_sealed + shard.segments_full);
    let ahead = shard.segments_prepared.saturating_sub(shard.segments_used);
    let free = match shard.ring_segments {
        0 => mib(shard.free_bytes),
        ring => format!("{}, {} of {ring} segments", mib(shard.free_bytes), shard.ring_free_segments),
    };
    vec![
        shard.shard.to_string(),
        format!("{} sealed, {} full, {open} open, {ahead} zeroed ahead", shard.segments_sealed, shard.segments_full),
        shard.first_segment.to_string(),
        shard.dropped_to.clone().unwrap_or_else(|| "-".to_owned()),
        mib(shard.index_bytes),
        shard.rows_in_memory.to_string(),
        format!("{} of {}{hits}", mib(shard.cache_bytes), mib(shard.cache_bytes_max)),
        mib(shard.log_bytes),
        free,
        full_in_days(shard, uptime_ms).map_or_else(|| "-".to_owned(), |days| format!("{days} days")),
    ]
}

/// What was durable so long ago is in the segment archive.
fn archived(report: &StatusReport, now_us: i64) -> String {
    let failed = |error: &String| format!("; the last round failed: {error}");
    let failed = report.archive_error.as_ref().map(failed).unwrap_or_default();
    match report.archive_at_us {
        Some(at_us) => format!("{}, {}{failed}", rfc3339(at_us), ago(at_us, now_us)),
        None if failed.is_empty() => "not since the daemon's start".to_owned(),
        None => format!("not yet{failed}"),
    }
}

/// The last restore that was remembered with the ledger.
fn drill(report: &StatusReport, now_us: i64) -> String {
    let Some(at_us) = report.drill_at_us else { return "never".to_owned() };
    let rto = report.drill_rto_ms as f64 / 1e3;
    let rpo = report.drill_rpo_ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.0} s", ms as f64 / 1e3));
    format!("{}, {}: RTO {rto:.2} s, RPO {rpo}", rfc3339(at_us), ago(at_us, now_us))
}

fn clock(report: &StatusReport) -> String {
    let kernel = if report.clock_synchronised { "synchronised" } else { "not synchronised" };
    format!("{} (the kernel's is {kernel})", report.clock)
}

fn shard_row(shard: &ShardStatus) -> Vec<String> {
    let state = match (&shard.failed, shard.clock_suspect, shard.no_space) {
        (Some(reason), ..) => format!("failed: {reason}"),
        _ if shard.scrub_damaged > 0 => {
            let first = shard.scrub_first.as_deref().unwrap_or_default();
            format!("damaged in {} places: {first}; see `claimd verify`", shard.scrub_damaged)
        }
        (None, true, _) => "clock suspect: see confirm-clock".to_owned(),
        (None, false, true) => "no space: reads only".to_owned(),
        (None, false, false) => "serving".to_owned(),
    };
    vec![
        shard.shard.to_string(),
        shard.core.to_string(),
        state,
        shard.level.to_string(),
        shard.rows.to_string(),
        shard.corpora.to_string(),
        format!("{}/{}", shard.durable_position, shard.position),
        format!("{}, {:.1} MiB", shard.debt_requests, shard.debt_bytes as f64 / f64::from(1 << 20)),
        shard.refused_overload.to_string(),
        shard.open_disputes.to_string(),
        shard.idempotency_keys.to_string(),
        shard.batches_written.to_string(),
        format!("{:.1}", shard.bytes_written as f64 / f64::from(1 << 20)),
        format!("{} + {}", shard.segments_used, shard.segments_prepared),
        format!("{:.0} MiB, {} rounds", shard.scrubbed_bytes as f64 / f64::from(1 << 20), shard.scrub_rounds),
    ]
}
