//! Sealing: a segment that is full gets an index, in batches of the log beside the next segment's. Once all of them are durable
//! the superblock names the seal, and then the segment's rows leave memory.

use super::Engine;
use crate::log::end::LogEnd;
use crate::log::io::Io;
use crate::log::layout::BLOCK_BYTES;
use crate::log::superblock::{Origin, Superblock, format_version};
use crate::mutant::Mutant;
use crate::sealed::{Checkpoint, Index, Seal, Sealed, append_bytes, page_batch, pages_per_part, seal_batch};
use crate::shard::rows::IndexJob;
use std::sync::Arc;

/// Segments that are full and not sealed, at most: with so many mutations wait until one is sealed.
pub const FULL_SEGMENTS_MAX: usize = 8;
/// Naming a seal in the superblock is tried again this long after it failed.
const CHECKPOINT_RETRY_US: i64 = 1_000_000;

/// How far the sealing of the oldest full segment is.
#[derive(Debug, Default)]
pub(super) enum Sealing {
    /// Nothing is under way.
    #[default]
    Nothing,
    /// The index is being made.
    Building,
    /// Its parts are written, one after the other.
    Writing(Box<Job>),
    /// The seal is written.
    Seal(Box<Job>),
    /// The seal is durable, and the superblock is to name it; not before this moment.
    Naming(Box<Job>, Checkpoint, i64),
    /// The superblock is being written.
    Named(Box<Job>, Checkpoint),
    /// It can't be sealed: a bug, since its size is bounded.
    Stuck,
}

impl Sealing {
    /// Whether it never goes on.
    pub fn is_stuck(&self) -> bool {
        matches!(self, Sealing::Stuck)
    }
}

#[derive(Debug)]
pub(super) struct Job {
    index: Index,
    seal: Seal,
    /// Where the log begins by the snapshot.
    origin: Option<Origin>,
    /// Pages that are in parts already.
    written: u32,
}

impl Engine {
    /// Takes the sealing as far as it goes now.
    pub(super) fn seal_on(&mut self) {
        if self.log.failed().is_some() {
            self.sealing = Sealing::Nothing;
            return;
        }
        loop {
            match std::mem::take(&mut self.sealing) {
                Sealing::Writing(mut job) if self.log.takes_sealing() => {
                    let pages = job.index.pages.len() as u64 / BLOCK_BYTES;
                    let count = u64::from(job.seal.pages_per_part).min(pages - u64::from(job.written));
                    if count > 0 {
                        let from = (u64::from(job.written) * BLOCK_BYTES) as usize;
                        let part = page_batch(&job.index.pages[from..from + (count * BLOCK_BYTES) as usize]);
                        job.seal.parts.push(self.log.append_sealing(part));
                        job.written += count as u32;
                        self.sealing = Sealing::Writing(job);
                        return;
                    }
                    job.index.pages = Vec::new();
                    match seal_batch(&job.seal) {
                        Ok(batch) if batch.len() as u64 <= self.superblock.geometry.batch_bytes_max => {
                            self.log.append_sealing(batch);
                            self.sealing = Sealing::Seal(job);
                        }
                        Ok(_) | Err(_) => {
                            tracing::error!(segment = job.seal.segment, "the seal does not fit a batch");
                            self.sealing = Sealing::Stuck;
                        }
                    }
                    return;
                }
                Sealing::Writing(job) if self.log.take_sealing().is_some() => self.sealing = Sealing::Writing(job),
                Sealing::Seal(job) => match self.log.take_sealing() {
                    Some(checkpoint) => self.sealing = Sealing::Naming(job, checkpoint, i64::MIN),
                    None => {
                        self.sealing = Sealing::Seal(job);
                        return;
                    }
                },
                other => {
                    self.sealing = other;
                    return;
                }
            }
        }
    }

    /// The next piece of work for sealing.
    pub(super) fn next_sealing_io(&mut self) -> Option<Io> {
        if let Some(unused) = self.unused.take() {
            return Some(Io::Clear(unused));
        }
        match std::mem::take(&mut self.sealing) {
            Sealing::Nothing => {
                let (rows, ..) = self.shard.full_segment()?;
                let segment = rows.number;
                let is_durable = rows.positions.1 <= self.log.durable().position;
                if !is_durable || self.log.unsealed.head_of(segment + 1).is_none() || self.log.failed().is_some() {
                    return None;
                }
                let starts = self.log.unsealed.starts_of(segment);
                let (rows, geometry, secret) = (Arc::clone(rows), self.superblock.geometry, self.shard.secret());
                self.sealing = Sealing::Building;
                Some(Io::Build(Box::new(IndexJob { rows, geometry, secret, starts })))
            }
            Sealing::Naming(job, checkpoint, at_us) if at_us <= self.boot_us => {
                // What is before the log's beginning may be free: it never moves back.
                let origins = [job.origin, self.superblock.origin].into_iter().flatten();
                let origin = origins.max_by_key(|origin| origin.start.next_batch_at);
                let superblock = Superblock {
                    generation: self.superblock.generation.saturating_add(1),
                    checkpoint: Some(checkpoint),
                    origin,
                    version: format_version(self.superblock.geometry),
                    ..self.superblock.clone()
                };
                if self.mutation.is(Mutant::FreeBeforeNamed) {
                    self.retaining.moved(superblock.first_segment());
                }
                self.sealing = Sealing::Named(job, checkpoint);
                Some(Io::Checkpoint(Box::new(superblock)))
            }
            other => {
                self.sealing = other;
                None
            }
        }
    }

    /// The index of the oldest full segment is made.
    pub(super) fn built(&mut self, mut index: Index) {
        let Some((rows, snapshot, origin)) = self.shard.full_segment() else { return };
        let segment = rows.number;
        if index.summary.segment != segment {
            return;
        }
        let Some(resume) = self.log.unsealed.head_of(segment + 1) else { return };
        let Ok(summary) = postcard::to_stdvec(&index.summary) else { return };
        let summary = append_bytes(&mut index.pages, segment, &summary);
        let snapshot = append_bytes(&mut index.pages, segment, snapshot);
        let last = self.shard.rows().catalog().segments().back().map(|sealed| sealed.checkpoint);
        let seal = Seal {
            segment,
            parts: Vec::new(),
            pages_per_part: pages_per_part(self.superblock.geometry),
            summary,
            snapshot,
            resume: LogEnd::into(resume),
            // Of what was dropped the log has everything until the drop is sealed; the superblock names its last seal.
            previous: last.or(self.superblock.checkpoint),
        };
        self.sealing = Sealing::Writing(Box::new(Job { index, seal, origin, written: 0 }));
    }

    /// The superblock was written, or not.
    pub(super) fn checkpointed(&mut self, superblock: Superblock, result: std::io::Result<()>) {
        let Sealing::Named(job, checkpoint) = std::mem::take(&mut self.sealing) else { return };
        match result {
            Ok(()) => {
                self.retaining.moved(superblock.first_segment());
                self.superblock = superblock;
                let Job { index, seal, .. } = *job;
                self.log.unsealed.forget(seal.segment);
                let (parts, pages_per_part) = (seal.parts, seal.pages_per_part);
                let sealed = Sealed { summary: index.summary, parts, pages_per_part, checkpoint, resume: seal.resume };
                self.unused = self.shard.sealed(sealed).map(Box::new);
            }
            Err(error) => {
                // What is acknowledged does not depend on it. The generation is used up: some copies may have it.
                tracing::error!(%error, "writing the superblock failed; it is tried again every second");
                self.superblock.generation = superblock.generation;
                self.sealing = Sealing::Naming(job, checkpoint, self.boot_us + CHECKPOINT_RETRY_US);
            }
        }
    }
}
