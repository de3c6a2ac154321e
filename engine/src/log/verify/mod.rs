//! Verification: reads every byte of a ledger file once, from front to back, and says what in it is not as it must be.
//!
//! Two parts that may run in two threads. [`walk`] goes over the file: superblock copies, segment headers, batches with
//! their hashes and chain, and the space that no batch takes. What it meets it hands out as [`Step`]s; [`Content`] takes
//! them and looks into the records: checksums, and whether they apply to the state machine, which is what every index is
//! made of. Unlike recovery neither stops at the first damage: after a hole the walk goes on at the next batch that
//! verifies.
//!
//! Memory does not grow with the rows: those of a segment leave it once the segment's index in the log is what its records make.

mod content;
mod copies;
mod globals;
mod indexes;
mod keys;
mod salvage;
mod start;
mod walker;

pub use content::{Content, EachRecord, Standing};
pub use copies::superblocks;
pub use globals::{GlobalCopy, compare_globals};
pub use indexes::ReadAt;
pub use start::state_at_start;
pub use walker::{WalkOptions, Walked, walk};

use super::end::LogEnd;
use super::entry::Entry;
use super::recovery::{BatchPlace, Here};
use crate::id::EventId;
use bytes::Bytes;
use std::io;

/// Rows that a finding names, at most; it counts the others.
pub const ROWS_NAMED_MAX: usize = 1_000;

/// Where the bytes come from: a file, read ahead, or a slice.
pub trait Source {
    /// Length of the file in bytes, when it was opened.
    fn file_bytes(&self) -> u64;

    /// Up to `bytes` bytes from `offset`, which is a multiple of 4,096; fewer only where the file ends.
    fn read(&mut self, offset: u64, bytes: usize) -> io::Result<Bytes>;

    /// Forgets what was read ahead: it may have changed.
    fn forget(&mut self);
}

/// A file in memory.
impl Source for Bytes {
    fn file_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let start = (offset as usize).min(self.len());
        Ok(self.slice(start..(start + bytes).min(self.len())))
    }

    fn forget(&mut self) {}
}

/// Which part of a ledger a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Structure {
    /// One of the four copies.
    Superblock,
    /// The space between the copies.
    SuperblockArea,
    /// The file as a whole.
    File,
    /// The first block of a segment.
    SegmentHeader,
    /// A batch: header, records or padding.
    Batch,
    /// A record in a batch that verifies.
    Record,
    /// What the records add up to.
    Index,
    /// Space in which no batch lies.
    UnusedSpace,
    /// What stands where the log ends.
    Tail,
    /// The order that all shards share.
    GlobalOrder,
    /// What is left of dropped quarters.
    Seal,
}

impl Structure {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Structure::Superblock => "superblock",
            Structure::SuperblockArea => "superblock-area",
            Structure::File => "file",
            Structure::SegmentHeader => "segment-header",
            Structure::Batch => "batch",
            Structure::Record => "record",
            Structure::Index => "index",
            Structure::UnusedSpace => "unused-space",
            Structure::Tail => "tail",
            Structure::GlobalOrder => "global-order",
            Structure::Seal => "seal",
        }
    }
}

/// A row that a finding concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowConcerned {
    /// Position of the entry.
    pub position: u64,
    /// The audit's name of the operation.
    pub operation: &'static str,
    /// The row, if the entry is about one.
    pub event_id: Option<EventId>,
    /// The record's own checksum matches: only its place in the chain can't be proven. Else this is how the bytes read.
    pub is_intact: bool,
}

/// Something that is not as it must be, or, if it is no damage, worth knowing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is damage; else a power cut explains it, and nothing acknowledged is concerned.
    pub is_damage: bool,
    /// What it is about.
    pub structure: Structure,
    /// The shard whose file it is.
    pub shard: u16,
    /// Where, as a segment.
    pub segment: Option<u64>,
    /// Where, in the file.
    pub file_offset: u64,
    /// How long, if that is known.
    pub bytes: u64,
    /// First and last batch concerned.
    pub batches: Option<(u64, u64)>,
    /// First and last position concerned.
    pub positions: Option<(u64, u64)>,
    /// Rows concerned, as far as they can be read: the first [`ROWS_NAMED_MAX`].
    pub rows: Vec<RowConcerned>,
    /// How many there are beyond those.
    pub rows_more: u64,
    /// A sentence.
    pub what: String,
}

impl Finding {
    /// A finding of damage with nothing but a place.
    pub fn damage(structure: Structure, shard: u16, file_offset: u64, bytes: u64, what: impl Into<String>) -> Finding {
        Finding {
            is_damage: true,
            structure,
            shard,
            segment: None,
            file_offset,
            bytes,
            batches: None,
            positions: None,
            rows: Vec::new(),
            rows_more: 0,
            what: what.into(),
        }
    }
}

/// Damage between two batches that verify, or before the first.
#[derive(Debug, Clone)]
pub struct Hole {
    /// The end of what stands before it.
    pub before: LogEnd,
    /// Where the log goes on.
    pub resume: BatchPlace,
    /// What stands at its start.
    pub here: Here,
    /// What lies in it: log offsets and bytes. Pieces overlap by the longest record.
    pub pieces: Vec<(u64, Bytes)>,
}

/// What [`walk`] meets, in the order of the file.
#[derive(Debug, Clone)]
pub enum Step {
    /// A batch that verifies and continues the chain. After a hole, the chain that starts behind it.
    Batch(BatchPlace, Bytes),
    /// Damage before the next batch.
    Hole(Box<Hole>),
    /// Anything else.
    Finding(Finding),
}

/// The row that an entry is about.
pub fn event_id(entry: &Entry<'_>) -> Option<EventId> {
    match entry {
        Entry::Claim(claim) => Some(claim.event_id),
        Entry::Reference { event_id, .. } | Entry::Tombstone { event_id, .. } | Entry::Reactivate { event_id } => {
            Some(*event_id)
        }
        _ => None,
    }
}
