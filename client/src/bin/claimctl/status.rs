//! The state of the daemon.

use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::{RequestOptions, ShardStatus, StatusReport};
use serde::Serialize;
use std::time::Duration;

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
}

impl<'a> ShardJson<'a> {
    fn new(shard: &'a ShardStatus) -> Self {
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
        }
    }
}

pub fn status(session: &Session, output: &mut Output) -> Result<(), Failure> {
    let report = session.client.status(&RequestOptions::default()).wait()?.value;
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
            shards: report.shards.iter().map(ShardJson::new).collect(),
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
    output.table(&head, report.shards.iter().map(shard_row).collect())
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
