//! What the log and its sealing want of the storage, and how it is done: the engine hands out [`Io`] and takes [`IoDone`], in the
//! daemon and in the simulator.

use super::superblock::Superblock;
use crate::sealed::Index;
use crate::shard::rows::{IndexJob, SegmentRows};
use crate::storage::{Durability, Storage};
use std::io;
use std::ops::Range;

/// Zeroing goes in writes of this size, one at a time: an executor under load comes round to it once in a millisecond or
/// two, and must be able to zero faster than batches fill.
pub(super) const ZEROING_BYTES: usize = 1024 * 1024;

/// Work for the storage. [`perform`] does it, [`LogWriter::complete`](super::writer::LogWriter::complete) takes the result.
#[derive(Debug)]
pub enum Io {
    /// Write a batch.
    Write {
        /// Its number.
        number: u64,
        /// Where in the file.
        file_offset: u64,
        /// The sealed batch.
        batch: Vec<u8>,
        /// Durable, in every build without a deliberate bug.
        durability: Durability,
    },
    /// Zero a piece of a segment, and with the last one give the segment its header.
    Prepare {
        /// Which.
        segment: u64,
        /// Where it starts in the file.
        file_offset: u64,
        /// Its length.
        bytes: u64,
        /// From where in the segment to where.
        piece: Range<u64>,
        /// Its header block, with the last piece.
        header: Option<Vec<u8>>,
    },
    /// Read blocks that a decision needs.
    Read {
        /// Names the read.
        id: u64,
        /// Where in the log.
        log_offset: u64,
        /// Where in the file.
        file_offset: u64,
        /// How many.
        bytes: u64,
        /// A request may wait for them, or what the shard does by itself; no question of a pass about event keys or links does.
        is_urgent: bool,
    },
    /// Let others have the processor for a while.
    Pause {
        /// Names the pause.
        id: u64,
    },
    /// Make a segment's index: work for a processor, in whatever thread.
    Build(Box<IndexJob>),
    /// Clear the memory of a segment that is sealed: work for a processor, in whatever thread.
    Clear(Box<SegmentRows>),
    /// Write the superblock, which names the last seal.
    Checkpoint(Box<Superblock>),
    /// Give the space of dropped segments back.
    Free {
        /// The first of them, and the first that stays.
        segments: (u64, u64),
        /// Where they lie in the file; nowhere by themselves in a ring, which takes their places again.
        stretch: Option<Range<u64>>,
    },
}

/// How an [`Io`] ended.
#[derive(Debug)]
pub enum IoDone {
    /// A batch was written, or not.
    Write {
        /// Its number.
        number: u64,
        /// Its buffer, for reuse.
        batch: Vec<u8>,
        /// How it ended.
        result: io::Result<()>,
    },
    /// A piece of a segment was prepared, or not.
    Prepare {
        /// Which.
        segment: u64,
        /// The end of the piece.
        to: u64,
        /// How it ended.
        result: io::Result<()>,
    },
    /// Blocks were read, or not.
    Read {
        /// As it was named.
        id: u64,
        /// Where in the log.
        log_offset: u64,
        /// The blocks.
        result: io::Result<Vec<u8>>,
    },
    /// Others had the processor.
    Paused {
        /// As it was named.
        id: u64,
    },
    /// An index is made.
    Built(Box<Index>),
    /// The memory is clear.
    Cleared(Box<SegmentRows>),
    /// The superblock was written, or not.
    Checkpoint {
        /// It.
        superblock: Box<Superblock>,
        /// How it ended.
        result: io::Result<()>,
    },
    /// Space was given back, or not.
    Freed {
        /// Of which segments.
        segments: (u64, u64),
        /// How it ended.
        result: io::Result<()>,
    },
}

/// Does one piece of work.
pub async fn perform(storage: &impl Storage, io: Io) -> IoDone {
    match io {
        Io::Write { number, file_offset, batch, durability } => {
            let result = storage.write_at(file_offset, &batch, durability).await;
            IoDone::Write { number, batch, result }
        }
        Io::Prepare { segment, file_offset, bytes, piece, header } => {
            let to = piece.end;
            let result = prepare(storage, file_offset, bytes, piece, header.as_deref()).await;
            IoDone::Prepare { segment, to, result }
        }
        Io::Read { id, log_offset, file_offset, bytes, .. } => {
            let result = storage.read_at(file_offset, bytes as usize).await;
            IoDone::Read { id, log_offset, result }
        }
        Io::Pause { id } => IoDone::Paused { id },
        Io::Build(job) => IoDone::Built(Box::new(job.run())),
        Io::Clear(mut rows) => {
            rows.clear();
            IoDone::Cleared(rows)
        }
        Io::Free { segments, stretch } => {
            let result = match stretch {
                Some(stretch) => storage.free(stretch.start, stretch.end - stretch.start).await,
                None => Ok(()),
            };
            IoDone::Freed { segments, result }
        }
        Io::Checkpoint(superblock) => {
            let result = superblock.write(storage).await;
            IoDone::Checkpoint { superblock, result }
        }
    }
}

/// The header goes last, after a flush: a segment with a header is zeroed for certain.
pub(super) async fn prepare(
    storage: &impl Storage,
    file_offset: u64,
    bytes: u64,
    piece: Range<u64>,
    header: Option<&[u8]>,
) -> io::Result<()> {
    if piece.start == 0 {
        storage.grow(file_offset + bytes).await?;
    }
    let mut at = piece.start;
    while at < piece.end {
        let length = ZEROING_BYTES.min((piece.end - at) as usize);
        storage.write_zeroes(file_offset + at, length).await?;
        at += length as u64;
    }
    let Some(header) = header else { return Ok(()) };
    storage.flush().await?;
    storage.write_at(file_offset, header, Durability::Cached).await?;
    storage.flush().await
}
