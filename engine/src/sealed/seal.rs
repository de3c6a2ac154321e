//! The seal of a segment: the batch that says where the parts of its index and of the snapshot behind it lie, from where the log
//! goes on, and which seal is before it. The superblock names the last one.
//!
//! ```text
//!  part:  batch header │ zeroes to 4 KiB │ pages …          no records
//!  seal:  batch header │ this, encoded                      no records
//!
//!  pages: the index │ the summary │ the snapshot
//! ```

use super::run::{PAGE_ROOM, is_page, page_bytes};
use super::summary::{RunPlace, Summary};
use super::{Sealed, run};
use crate::log::batch::{self, BATCH_HEADER_BYTES, Found, Hash};
use crate::log::end::LogEnd;
use crate::log::layout::{BLOCK_BYTES, Geometry};
use crate::log::superblock::{Origin, Superblock};
use crate::mutant::Mutation;
use crate::storage::Storage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Pages of a part, at most: a part in the log delays the batches behind it by the time that it takes to write.
const PAGES_PER_PART_MAX: u64 = 63;

/// Where a seal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its log offset.
    pub log_offset: u64,
    /// Its batch's number.
    pub number: u64,
    /// Its batch's hash.
    pub hash: Hash,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The segment that it seals.
    pub segment: u64,
    /// Log offsets of the parts.
    pub parts: Vec<u64>,
    /// Pages of each part but the last.
    pub pages_per_part: u32,
    /// Pages of the summary, and its bytes.
    pub summary: RunPlace,
    /// Pages of the snapshot, and its bytes.
    pub snapshot: RunPlace,
    /// Where the log goes on behind the segment.
    pub resume: Resume,
    /// The seal of the segment before.
    pub previous: Option<Checkpoint>,
}

/// A [`LogEnd`] on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the log's end")]
pub struct Resume {
    pub next_batch_at: u64,
    pub next_number: u64,
    pub next_position: u64,
    pub previous_hash: Hash,
    pub incarnation: u64,
}

impl From<LogEnd> for Resume {
    fn from(end: LogEnd) -> Resume {
        let LogEnd { next_batch_at, next_number, next_position, previous_hash, incarnation, .. } = end;
        Resume { next_batch_at, next_number, next_position, previous_hash, incarnation }
    }
}

impl From<Resume> for LogEnd {
    fn from(resume: Resume) -> LogEnd {
        let Resume { next_batch_at, next_number, next_position, previous_hash, incarnation } = resume;
        LogEnd { next_batch_at, next_number, next_position, previous_hash, incarnation, segments_prepared: 0 }
    }
}

/// Why a seal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A read failed.
    #[error("reading at file offset {file_offset} failed: {source}")]
    Read {
        /// Where.
        file_offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// It verifies, and the log goes on behind it elsewhere than with a segment's first batch.
    #[error(
        "the superblock says that segments have {segment_bytes} bytes, and the seal at file offset {file_offset} is of segments of \
         another size: the superblock is not the log's"
    )]
    Segments {
        /// As the superblock has it.
        segment_bytes: u64,
        /// Of the seal.
        file_offset: u64,
    },
    /// It does not verify.
    #[error("{what} at file offset {file_offset} does not verify")]
    Damaged {
        /// What it is.
        what: &'static str,
        /// Where.
        file_offset: u64,
    },
}

/// Pages of a part in a log with these sizes.
pub fn pages_per_part(geometry: Geometry) -> u32 {
    (geometry.batch_bytes_max / BLOCK_BYTES - 1).clamp(1, PAGES_PER_PART_MAX) as u32
}

/// The log offset of a page, by its number in its part.
pub(super) fn page_of_part(part: u64, page: u32) -> u64 {
    part + BLOCK_BYTES * (1 + u64::from(page))
}

/// The content of a batch that holds these pages.
pub fn page_batch(pages: &[u8]) -> Vec<u8> {
    let mut content = vec![0; BLOCK_BYTES as usize];
    content.extend_from_slice(pages);
    content
}

/// The content of the batch that is the seal.
pub fn seal_batch(seal: &Seal) -> Result<Vec<u8>, String> {
    let content = vec![0; BATCH_HEADER_BYTES];
    postcard::to_extend(seal, content).map_err(|e| format!("encoding the seal of segment {}: {e}", seal.segment))
}

/// Everything that is sealed, as the superblock leads to it.
#[derive(Debug)]
pub struct Chain {
    /// The last seal.
    pub last: Seal,
    /// The snapshot behind it.
    pub snapshot: Vec<u8>,
    /// The sealed segments, the oldest first.
    pub segments: Vec<Sealed>,
}

/// Reads the last seal, its snapshot, and the summaries of all sealed segments.
pub async fn read_chain(
    storage: &impl Storage,
    superblock: &Superblock,
    checkpoint: Checkpoint,
) -> Result<Chain, SealError> {
    let reader = Reader { storage, superblock };
    let last = reader.seal(checkpoint).await?;
    let snapshot = reader.pages(&last, last.snapshot).await?;
    let mut segments = Vec::new();
    let mut next = Some((checkpoint, last.clone()));
    while let Some((at, seal)) = next.take() {
        next = reader.before(&seal).await?;
        segments.push(reader.sealed(at, seal).await?);
    }
    segments.reverse();
    Ok(Chain { last, snapshot, segments })
}

/// The seals of all sealed segments by the segment, as far as the superblock leads to them.
pub async fn read_seals(storage: &impl Storage, superblock: &Superblock) -> BTreeMap<u64, Checkpoint> {
    let reader = Reader { storage, superblock };
    let mut seals = BTreeMap::new();
    let Some(last) = superblock.checkpoint else { return seals };
    let mut next = reader.seal(last).await.ok().map(|seal| (last, seal));
    while let Some((at, seal)) = next.take() {
        seals.insert(seal.segment, at);
        next = reader.before(&seal).await.ok().flatten();
    }
    seals
}

/// A segment as its seal says it is, and the pages of its index. Fails where a page does not verify, also of the snapshot.
pub async fn read_index(
    storage: &impl Storage,
    superblock: &Superblock,
    seal: Checkpoint,
) -> Result<(Sealed, Vec<u8>), SealError> {
    let reader = Reader { storage, superblock };
    let found = reader.seal(seal).await?;
    let pages = reader.index_pages(&found).await?;
    let sealed = reader.sealed(seal, found).await?;
    Ok((sealed, pages))
}

/// The segment that a batch without records is the seal of; `None` of a part of an index.
pub fn sealed_by(content: &[u8]) -> Option<u64> {
    let seal: Seal = postcard::from_bytes(content).ok()?;
    (seal.pages_per_part > 0).then_some(seal.segment)
}

/// The small state that a log goes on from whose first segments were dropped.
pub async fn read_origin(
    storage: &impl Storage,
    superblock: &Superblock,
    origin: &Origin,
) -> Result<Vec<u8>, SealError> {
    let reader = Reader { storage, superblock };
    let seal = reader.seal(origin.seal).await?;
    let end = LogEnd::from(seal.resume);
    if end != origin.start {
        return Err(reader.damaged("the seal before the log's first segment", origin.seal.log_offset));
    }
    reader.pages(&seal, seal.snapshot).await
}

struct Reader<'a, S> {
    storage: &'a S,
    superblock: &'a Superblock,
}

impl<S: Storage> Reader<'_, S> {
    fn damaged(&self, what: &'static str, log_offset: u64) -> SealError {
        SealError::Damaged { what, file_offset: self.superblock.geometry.file_offset(log_offset) }
    }

    async fn read(&self, log_offset: u64, bytes: u64) -> Result<Vec<u8>, SealError> {
        let file_offset = self.superblock.geometry.file_offset(log_offset);
        let read = self.storage.read_at(file_offset, bytes as usize).await;
        read.map_err(|source| SealError::Read { file_offset, source })
    }

    async fn seal(&self, checkpoint: Checkpoint) -> Result<Seal, SealError> {
        let Superblock { key, shard, geometry, .. } = self.superblock;
        let damaged = || self.damaged("the seal", checkpoint.log_offset);
        let block = self.read(checkpoint.log_offset, BLOCK_BYTES).await?;
        let total = batch::claimed_bytes(&block, geometry.batch_bytes_max).ok_or_else(damaged)?;
        let bytes = self.read(checkpoint.log_offset, total).await?;
        let Found::Batch { header, hash } = batch::find(&bytes, key, *shard, geometry.batch_bytes_max, Mutation::NONE)
        else {
            return Err(damaged());
        };
        if header.number != checkpoint.number || hash != checkpoint.hash || !header.is_sealing {
            return Err(damaged());
        }
        let content = bytes.get(batch::records(&bytes, &header)).ok_or_else(damaged)?;
        let seal: Seal = postcard::from_bytes(content).map_err(|_| damaged())?;
        let goes_on = seal.resume.next_batch_at;
        if !geometry.is_first(goes_on) || Some(geometry.segment_of(goes_on)) != seal.segment.checked_add(1) {
            let file_offset = geometry.file_offset(checkpoint.log_offset);
            return Err(SealError::Segments { segment_bytes: geometry.segment_bytes, file_offset });
        }
        if seal.pages_per_part == 0 { Err(damaged()) } else { Ok(seal) }
    }

    /// The seal before one, if the log still has it.
    async fn before(&self, seal: &Seal) -> Result<Option<(Checkpoint, Seal)>, SealError> {
        let previous = seal.previous.filter(|_| seal.segment > self.superblock.first_segment());
        let Some(before) = previous else { return Ok(None) };
        let found = self.seal(before).await?;
        match found.segment + 1 == seal.segment {
            true => Ok(Some((before, found))),
            false => Err(self.damaged("a seal", before.log_offset)),
        }
    }

    /// A segment with its summary.
    async fn sealed(&self, checkpoint: Checkpoint, seal: Seal) -> Result<Sealed, SealError> {
        let damaged = || self.damaged("a segment's summary", checkpoint.log_offset);
        let summary: Summary = postcard::from_bytes(&self.pages(&seal, seal.summary).await?).map_err(|_| damaged())?;
        if summary.segment != seal.segment {
            return Err(damaged());
        }
        let Seal { parts, pages_per_part, resume, .. } = seal;
        Ok(Sealed { summary, parts, pages_per_part, checkpoint, resume })
    }

    /// Looks at the checksums of all pages, a part at a time; those of the index are kept. The summary follows them.
    async fn index_pages(&self, seal: &Seal) -> Result<Vec<u8>, SealError> {
        // The snapshot is the last of them.
        let mut left = seal.snapshot.first.saturating_add(seal.snapshot.pages);
        let most = (self.superblock.geometry.batch_bytes_max / BLOCK_BYTES) as u32;
        let (mut number, mut pages) = (0, Vec::new());
        for part in &seal.parts {
            let count = left.min(seal.pages_per_part).min(most);
            let read = self.read(page_of_part(*part, 0), u64::from(count) * BLOCK_BYTES).await?;
            for page in 0..count {
                let block = read.get(page as usize * BLOCK_BYTES as usize..).unwrap_or_default();
                let block = block.get(..BLOCK_BYTES as usize).unwrap_or_default();
                if !is_page(block, seal.segment, number) {
                    return Err(self.damaged("a page of an index", page_of_part(*part, page)));
                }
                if number < seal.summary.first {
                    pages.extend_from_slice(block);
                }
                number += 1;
            }
            left -= count;
        }
        Ok(pages)
    }

    /// The bytes of some pages of plain bytes.
    async fn pages(&self, seal: &Seal, place: RunPlace) -> Result<Vec<u8>, SealError> {
        let mut bytes = Vec::with_capacity((place.pages as usize).saturating_mul(PAGE_ROOM).min(64 << 20));
        let end = place.first.saturating_add(place.pages);
        let mut page = place.first;
        while page < end {
            let part = seal.parts.get((page / seal.pages_per_part) as usize);
            let part = *part.ok_or_else(|| self.damaged("a seal", seal.resume.next_batch_at))?;
            // Neighbours within a part are read at once.
            let within = page % seal.pages_per_part;
            let count = (seal.pages_per_part - within).min(end - page);
            let at = page_of_part(part, within);
            let read = self.read(at, u64::from(count) * BLOCK_BYTES).await?;
            for n in 0..count {
                let block = read.get(n as usize * BLOCK_BYTES as usize..).unwrap_or_default();
                let block = block.get(..BLOCK_BYTES as usize).unwrap_or_default();
                let content = page_bytes(block, seal.segment, page + n);
                bytes.extend_from_slice(
                    content.ok_or_else(|| self.damaged("a page of a seal", at + u64::from(n) * BLOCK_BYTES))?,
                );
            }
            page += count;
        }
        bytes.truncate(place.entries as usize);
        Ok(bytes)
    }
}

/// Appends bytes to the pages of an index, and says where they are.
pub fn append_bytes(pages: &mut Vec<u8>, segment: u64, bytes: &[u8]) -> RunPlace {
    let first = (pages.len() as u64 / BLOCK_BYTES) as u32;
    let count = run::append_bytes(pages, segment, bytes);
    RunPlace { first, pages: count, entries: bytes.len() as u64 }
}

/// The pages of a segment in which nothing was, with where its summary and the snapshot behind it are.
pub fn pages_of_none(segment: u64, snapshot: &[u8]) -> (Vec<u8>, RunPlace, RunPlace) {
    let mut pages = Vec::new();
    let summary = postcard::to_stdvec(&Summary { segment, ..Summary::default() }).expect("it is encoded in memory");
    let summary = append_bytes(&mut pages, segment, &summary);
    let snapshot = append_bytes(&mut pages, segment, snapshot);
    (pages, summary, snapshot)
}
