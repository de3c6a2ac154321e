//! Writes a shard's new file: what stays, and what a repair has to say behind it.

use super::plan::{Plan, floor_us, floors};
use crate::rewriting::{self, floor_parts, meta, own_principal, work_off};
use crate::verify;
use crate::verify::open;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{Entry, Record, encode_floors};
use claim_engine::log::superblock::Superblock;
use claim_engine::log::verify::{Step, WalkOptions, state_at_start, walk};
use claim_engine::log::writer::LogWriter;
use claim_engine::log::{batch, record};
use claim_engine::mutant::Mutation;
use claim_engine::shard::Shard;
use claim_engine::storage::{DirectIo, RealStorage};
use glommio::LocalExecutor;
use indicatif::ProgressBar;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

/// The state machine at the end of what is kept, and the batches up to there as they stand.
pub fn state_at(plan: &Plan) -> Result<(Shard, Vec<Kept>), String> {
    let superblock = plan.report.superblock.as_ref().ok_or("a plan without a superblock")?;
    let mut shard = state_at_start(&mut open(&plan.report.path)?, superblock)?;
    let mut kept = Vec::new();
    let mut failed = None;
    let until = plan.keep.next_batch_at;
    let mut each = |step: Step| {
        let Step::Batch(place, bytes) = step else { return };
        if place.log_offset >= until || failed.is_some() {
            return;
        }
        let range = if place.header.is_sealing { 0..0 } else { batch::records(&bytes, &place.header) };
        let mut at = range.start;
        while at < range.end {
            let Ok((raw, length)) = record::read(&bytes[at..range.end]) else { break };
            if let Err(reason) = shard.apply_raw(raw, place.log_offset + at as u64) {
                failed = Some(reason);
                return;
            }
            at += length;
        }
        kept.push(Kept { log_offset: place.log_offset, bytes: place.header.total_bytes.into() });
    };
    let mut source = open(&plan.report.path)?;
    walk(&mut source, superblock, WalkOptions::default(), &mut each, &mut |_| {})
        .map_err(|e| verify::place(&plan.report.path, &e))?;
    match failed {
        Some(reason) => Err(format!("{}: what was proven does not apply: {reason}", plan.report.path.display())),
        None => Ok((shard, kept)),
    }
}

/// A batch that stays.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    log_offset: u64,
    bytes: u64,
}

/// Writes a shard's new file beside the old one, and verifies it.
pub fn rebuild(plan: &Plan, now_us: i64, direct: DirectIo) -> Result<PathBuf, String> {
    let path = &plan.report.path;
    let new = path.with_extension("repairing");
    let (mut shard, kept) = state_at(plan)?;
    let found = plan.report.superblock.as_ref().ok_or("a plan without a superblock")?;
    // What is sealed is sealed anew: the seals may be among what is given up. The new file is one, whatever the old one lies on.
    let superblock = Superblock { generation: found.generation + 1, checkpoint: None, ..found.of_file() };
    let geometry = superblock.geometry;
    let error = |e: io::Error| format!("{}: {e}", new.display());
    let old = File::open(path).map_err(|e| verify::place(path, &e))?;
    let mode = old.metadata().map_err(|e| verify::place(path, &e))?.permissions().mode();
    let file = rewriting::begin(&new, mode, geometry).map_err(error)?;
    let mut buffer = Vec::new();
    for batch in &kept {
        buffer.resize(batch.bytes as usize, 0);
        let from = found.geometry.file_offset(batch.log_offset);
        old.read_exact_at(&mut buffer, from).map_err(|e| verify::place(path, &e))?;
        file.write_all_at(&buffer, geometry.file_offset(batch.log_offset)).map_err(error)?;
    }
    let segments = rewriting::finish(&file, &superblock, plan.keep.next_batch_at).map_err(error)?;
    drop(file);
    LocalExecutor::default().run(async {
        let storage = RealStorage::open(&new, direct).await.map_err(|e| e.to_string())?;
        superblock.write(&storage).await.map_err(error)?;
        if plan.gives_up || !plan.globals.is_empty() {
            append(plan, &superblock, &mut shard, &storage, now_us, segments).await?;
        }
        storage.close().await.map_err(error)
    })?;
    let hidden = ProgressBar::hidden();
    let verified = verify::verify_shard(&new, superblock.shard, Some(&superblock), false, &hidden, None);
    let verified = verified.map_err(|e| verify::place(&new, &e))?;
    if let Some(finding) = verified.findings.iter().find(|finding| finding.is_damage) {
        return Err(format!(
            "{} does not verify: {}; nothing was changed, and the damaged file is still in its place",
            new.display(),
            finding.what
        ));
    }
    Ok(new)
}

/// Appends what a repair has to say to the end of what is kept.
async fn append(
    plan: &Plan,
    superblock: &Superblock,
    shard: &mut Shard,
    storage: &RealStorage,
    now_us: i64,
    segments_prepared: u64,
) -> Result<(), String> {
    let walked = plan.report.walked.as_ref().ok_or("a plan without a walk")?;
    let end = LogEnd { incarnation: walked.incarnation_max, segments_prepared, ..plan.keep };
    let mut writer = LogWriter::new(superblock, end, None, Mutation::NONE);
    let floor_us = if plan.gives_up { floor_us(plan, superblock.clock, now_us) } else { shard.last_us() };
    let meta = |timestamp_us| meta(timestamp_us, own_principal());
    let entry = Entry::Recovery { incarnation: writer.incarnation(), cut_at: end.next_batch_at };
    let recovery = Record { meta: meta(shard.last_us()), entry };
    let (position, log_offset) = writer.append_recovery(&recovery);
    shard.apply(position, log_offset, &recovery)?;
    let mut add = |record: &Record<'_>, writer: &mut LogWriter| {
        let (position, log_offset) = writer.append(record);
        shard.apply(position, log_offset, record)
    };
    if plan.gives_up {
        let floors = floors(plan, floor_us);
        for part in floor_parts(&floors) {
            let floors = encode_floors(part);
            let entry = Entry::Repair { cut_at: end.next_batch_at, given_up_to: plan.given_up_to, floors: &floors };
            add(&Record { meta: meta(floor_us), entry }, &mut writer)?;
        }
    }
    for copy in &plan.globals {
        let mut record = Record::decode(copy.kind, &copy.body).map_err(|e| e.to_string())?;
        record.meta.timestamp_us = floor_us;
        // What it means for the rows of this shard is decided anew, from what this shard has.
        shard.append_global(record, &mut writer)?;
    }
    work_off(&mut writer, storage).await?;
    writer.mark();
    work_off(&mut writer, storage).await
}
