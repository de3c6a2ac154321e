//! Retention: what is kept whatever its age, what was dropped, and what goes next.

use crate::args::{Hold, Release};
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::{RequestOptions, ShardStatus};
use serde::Serialize;
use std::collections::BTreeSet;

/// A hold's beginning or end, in JSON.
#[derive(Debug, Serialize)]
struct HeldJson {
    quarter: String,
    held: bool,
    at: String,
}

/// What goes next on a shard and what has gone, in JSON.
#[derive(Debug, Serialize)]
struct RetentionJson<'a> {
    shard: u16,
    /// Always: the daemon does it by itself.
    dry_run: bool,
    due: Option<&'a str>,
    segments: u32,
    bytes: u64,
    rows: u64,
    carried_at_most: u64,
    waits_for: Option<&'a str>,
    holds: &'a [String],
    dropped_to: Option<&'a str>,
    first_segment: u64,
    quarter_seals: u32,
}

pub fn hold(session: &Session, verb: Hold, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.reason.reason);
    let (year, quarter) = verb.quarter;
    let at_us = session.client.hold(year, quarter, &options).wait()?.value;
    print_held(verb.quarter, true, at_us, output)
}

pub fn release(session: &Session, verb: Release, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let (year, quarter) = verb.quarter;
    let at_us = session.client.release(year, quarter, &options).wait()?.value;
    print_held(verb.quarter, false, at_us, output)
}

fn print_held((year, quarter): (u16, u8), held: bool, at_us: i64, output: &mut Output) -> Result<(), Failure> {
    let (quarter, at) = (format!("{year:04}-Q{quarter}"), rfc3339(at_us));
    if output.is_json() {
        return output.object(&HeldJson { quarter, held, at });
    }
    output.line(format_args!("{quarter} is {} since {at}", if held { "held" } else { "no longer held" }))
}

pub fn retention(session: &Session, output: &mut Output) -> Result<(), Failure> {
    let report = session.client.status(&RequestOptions::default()).wait()?.value;
    if output.is_json() {
        return report.shards.iter().try_for_each(|shard| {
            output.object(&RetentionJson {
                shard: shard.shard,
                dry_run: true,
                due: shard.retention_due.as_deref(),
                segments: shard.retention_segments,
                bytes: shard.retention_bytes,
                rows: shard.retention_rows,
                carried_at_most: shard.retention_carried,
                waits_for: shard.retention_waits_for.as_deref(),
                holds: &shard.holds,
                dropped_to: shard.dropped_to.as_deref(),
                first_segment: shard.first_segment,
                quarter_seals: shard.quarter_seals,
            })
        });
    }
    output.line("what the daemon drops next, by itself; this is a dry run and changes nothing:")?;
    let head = ["shard", "due", "segments", "MiB", "rows", "carried at most", "waits for"];
    output.table(&head, report.shards.iter().map(due).collect())?;
    output.line("")?;
    output.line("what is dropped already:")?;
    let head = ["shard", "dropped to", "quarter seals", "first segment"];
    output.table(&head, report.shards.iter().map(gone).collect())?;
    output.line("")?;
    let holds: BTreeSet<_> = report.shards.iter().flat_map(|shard| &shard.holds).map(String::as_str).collect();
    let holds = if holds.is_empty() { "none".to_owned() } else { holds.into_iter().collect::<Vec<_>>().join(", ") };
    output.line(format_args!("held quarters: {holds}"))
}

fn due(shard: &ShardStatus) -> Vec<String> {
    let Some(quarters) = &shard.retention_due else {
        let mut row = vec![shard.shard.to_string(), "nothing".to_owned()];
        row.resize(7, "-".to_owned());
        return row;
    };
    vec![
        shard.shard.to_string(),
        quarters.clone(),
        shard.retention_segments.to_string(),
        format!("{:.1}", shard.retention_bytes as f64 / f64::from(1 << 20)),
        shard.retention_rows.to_string(),
        shard.retention_carried.to_string(),
        shard.retention_waits_for.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn gone(shard: &ShardStatus) -> Vec<String> {
    vec![
        shard.shard.to_string(),
        shard.dropped_to.clone().unwrap_or_else(|| "nothing".to_owned()),
        shard.quarter_seals.to_string(),
        shard.first_segment.to_string(),
    ]
}
