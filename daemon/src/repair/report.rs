//! Says what a repair does, or did, and what it gives up.

use super::RepairOptions;
use super::plan::{Plan, floor_us, floors};
use crate::verify;
use claim_engine::corpus::Prefix;
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::record::RawRecord;
use claim_engine::log::superblock::ClockMode;
use claim_engine::log::verify::{Standing, event_id};
use claim_engine::time::rfc3339;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes what is given up, one JSON object a line, and makes it durable.
pub fn write_report(path: &Path, plans: &[Plan], now_us: i64) -> Result<(), String> {
    let error = |e: io::Error| verify::place(path, &e);
    let file = File::options().write(true).create_new(true).mode(0o640).open(path).map_err(error)?;
    let mut out = BufWriter::new(&file);
    let ledger = plans.iter().find_map(|plan| plan.report.superblock.as_ref()).map(|s| s.ledger.to_string());
    let head = json!({
        "what": "repair", "ledger": ledger, "at": rfc3339(now_us),
        "shards": plans.iter().map(|plan| object(plan, now_us)).collect::<Vec<_>>(),
    });
    writeln!(out, "{head}").map_err(error)?;
    let names = names(plans);
    for plan in plans.iter().filter(|plan| plan.is_due()) {
        for finding in plan.report.findings.iter().filter(|finding| finding.is_damage) {
            writeln!(out, "{}", verify::object(finding)).map_err(error)?;
        }
        if plan.gives_up {
            given_up(plan, &names, &mut out).map_err(error)?;
        }
    }
    out.flush().map_err(error)?;
    drop(out);
    file.sync_all().map_err(error)
}

/// Corpora by prefix, of all shards.
fn names(plans: &[Plan]) -> HashMap<u16, String> {
    let mut names = HashMap::new();
    for copy in plans.iter().flat_map(|plan| plan.report.globals.values()) {
        if let Ok(Record { entry: Entry::Onboard { prefix, name, .. }, .. }) = Record::decode(copy.kind, &copy.body) {
            names.insert(prefix.get(), name.to_owned());
        }
    }
    names
}

/// Every entry behind what is kept, as far as it can be read, and the positions that can't.
fn given_up(plan: &Plan, names: &HashMap<u16, String>, out: &mut (impl Write + Send)) -> io::Result<()> {
    let report = &plan.report;
    let Some(superblock) = &report.superblock else { return Ok(()) };
    let geometry = superblock.geometry;
    let cut_at = plan.keep.next_batch_at;
    let mut result = Ok(());
    let mut next = plan.keep.next_position;
    let mut in_hole = BTreeSet::new();
    let unreadable = |from: u64, to: u64, in_hole: &BTreeSet<u64>, out: &mut dyn Write| -> io::Result<()> {
        let mut first = from;
        while first < to {
            let last = (first..to).take_while(|position| !in_hole.contains(position)).last();
            if let Some(last) = last {
                let line = json!({"what": "unreadable", "shard": report.shard, "positions": [first, last]});
                writeln!(out, "{line}")?;
            }
            first = last.unwrap_or(first) + 1;
        }
        Ok(())
    };
    let each = Box::new(|raw: &RawRecord<'_>, log_offset: u64, standing: Standing| {
        if log_offset < cut_at || result.is_err() {
            return;
        }
        if standing == Standing::InHole {
            in_hole.insert(raw.position);
        } else {
            result = unreadable(next, raw.position, &in_hole, out);
            in_hole.clear();
            next = raw.position + 1;
        }
        if result.is_ok() {
            let line = entry_object(report.shard, raw, geometry.file_offset(log_offset), standing, names);
            result = writeln!(out, "{line}");
        }
    });
    let hidden = ProgressBar::hidden();
    verify::verify_shard(&report.path, report.shard, Some(superblock), false, &hidden, Some(each))?;
    result?;
    unreadable(next, plan.given_up_to + 1, &in_hole, out)?;
    if plan.is_end_unknown {
        writeln!(out, "{}", json!({"what": "unknown-end", "shard": report.shard, "positions": [next, null]}))?;
    }
    Ok(())
}

fn entry_object(
    shard: u16,
    raw: &RawRecord<'_>,
    file_offset: u64,
    standing: Standing,
    names: &HashMap<u16, String>,
) -> Value {
    let mut object = json!({
        "what": "given-up", "shard": shard, "position": raw.position, "file_offset": file_offset,
        "verified_by": if standing == Standing::InHole { "the record's checksum" } else { "its batch's hash" },
    });
    let Ok(record) = Record::decode(raw.kind, raw.body) else {
        object["operation"] = format!("kind {}", raw.kind).into();
        return object;
    };
    object["operation"] = record.entry.operation().into();
    object["timestamp"] = rfc3339(record.meta.timestamp_us).into();
    let prefix = record.meta.corpus.map_or(0, Prefix::get);
    object["corpus_prefix"] = prefix.into();
    object["corpus"] = names.get(&prefix).cloned().into();
    object["event_id"] = event_id(&record.entry).map(|id| id.to_string()).into();
    match record.entry {
        Entry::Claim(claim) => {
            object["event_key"] = claim.event_key.into();
            object["claim_sequence"] = claim.claim_sequence.into();
        }
        Entry::Onboard { name, prefix, .. } => {
            object["corpus"] = name.into();
            object["corpus_prefix"] = prefix.get().into();
        }
        _ => {}
    }
    object
}

/// What becomes of a shard, for programs.
fn object(plan: &Plan, now_us: i64) -> Value {
    let mut object = json!({
        "shard": plan.report.shard, "file": plan.report.path.display().to_string(), "changes": plan.is_due(),
        "kept_to_position": plan.keep.next_position - 1,
        "damaged_places": plan.report.findings.iter().filter(|finding| finding.is_damage).count(),
        "global_entries_restored": plan.globals.len(),
    });
    if plan.gives_up {
        let clock = plan.report.superblock.as_ref().map_or(ClockMode::Wall, |superblock| superblock.clock);
        let floor_us = floor_us(plan, clock, now_us);
        let lost = [plan.keep.next_position, plan.given_up_to.max(plan.keep.next_position - 1)];
        object["given_up_positions"] = if plan.is_end_unknown { json!([lost[0], null]) } else { json!(lost) };
        object["unreadable"] = plan.seen.unreadable.into();
        object["times_above"] = rfc3339(floor_us).into();
        let floors = floors(plan, floor_us);
        object["slots_above"] = floors.iter().map(|(prefix, slot)| json!([prefix.get(), slot])).collect();
        object["slots_certain"] = (!plan.is_end_unknown).into();
    }
    object
}

pub fn say(options: &RepairOptions, what: &str, plans: &[Plan], message: &str) -> Result<(), String> {
    let out = &mut io::stdout().lock();
    let now_us = crate::clock::now().wall_us;
    let result = (|| {
        if options.json {
            let shards: Vec<_> = plans.iter().map(|plan| object(plan, now_us)).collect();
            return writeln!(out, "{}", json!({"what": what, "shards": shards, "message": message}));
        }
        for plan in plans {
            for finding in plan.report.findings.iter().filter(|finding| finding.is_damage) {
                verify::line(out, finding)?;
            }
        }
        for plan in plans {
            writeln!(out, "shard {}: {}", plan.report.shard, sentence(plan))?;
        }
        writeln!(out, "{message}")
    })();
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn sentence(plan: &Plan) -> String {
    let (first, last) = (plan.keep.next_position, plan.given_up_to);
    let mut text = if plan.is_end_unknown {
        format!(
            "what followed position {} is given up, and how far it went is not known: slots of its claims may be given again",
            first - 1
        )
    } else if plan.gives_up && last >= first {
        let count = last + 1 - first;
        format!(
            "positions {first} to {last} are given up ({count} entries, {} of them unreadable)",
            plan.seen.unreadable
        )
    } else if plan.gives_up {
        "batches without entries are given up; no entry is lost".to_owned()
    } else if plan.is_due() {
        "written anew; no entry is lost".to_owned()
    } else {
        "sound, and left as it is".to_owned()
    };
    if !plan.globals.is_empty() {
        text += &format!("; {} entries of the global order are taken over from other copies", plan.globals.len());
    }
    text
}
