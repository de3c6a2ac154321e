//! Reads the durable part of a shard's log in order: for `tail`, for exports, and to check that a chain head that was given out
//! earlier is still part of the chain.

use crate::driver::{Driver, StoredRecord};
use claim_engine::log::batch::{self, BATCH_HEADER_BYTES, Found};
use claim_engine::log::record;
use claim_engine::log::recovery::BatchPlace;
use claim_engine::log::superblock::Superblock;
use claim_engine::log::writer::{Head, LogEnd};
use claim_engine::mutant::Mutation;
use claim_engine::storage::Storage;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of records that one page of entries holds, at most, beside its last record.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Batches after which a long check lets others go first.
const BATCHES_BETWEEN_PAUSES: u64 = 64;

/// A page of entries.
#[derive(Debug, Default)]
pub struct Page {
    /// The records.
    pub records: Vec<StoredRecord>,
    /// The position after the last one looked at.
    pub next_position: u64,
}

/// One batch as it lies on disk.
struct Batch {
    place: BatchPlace,
    bytes: Vec<u8>,
}

async fn read_batch(driver: &Driver, superblock: &Superblock, log_offset: u64) -> Result<Batch, String> {
    let geometry = superblock.geometry;
    let segment_end = geometry.segment_start(geometry.segment_of(log_offset) + 1);
    let wanted = geometry.batch_bytes_max.min(segment_end - log_offset);
    let file_offset = geometry.file_offset(log_offset);
    // Most batches are small: the first block says how long this one is.
    let first = claim_engine::log::layout::BLOCK_BYTES.min(wanted);
    let read = |bytes: u64| async move {
        let read = driver.storage().read_at(file_offset, bytes as usize).await;
        read.map_err(|e| format!("reading {bytes} bytes at file offset {file_offset} failed: {e}"))
    };
    let mut bytes = read(first).await?;
    if let Some(claimed) = batch::claimed_bytes(&bytes, geometry.batch_bytes_max).filter(|claimed| *claimed > first) {
        bytes = read(claimed.min(wanted)).await?;
    }
    match batch::find(&bytes, &superblock.key, superblock.shard, geometry.batch_bytes_max, Mutation::NONE) {
        Found::Batch { header, hash } => {
            Ok(Batch { place: BatchPlace { header, hash, log_offset }, bytes: bytes.to_vec() })
        }
        _ => Err(format!("no batch verifies at file offset {file_offset}")),
    }
}

/// The durable records from a position on, at most `limit` of them.
pub async fn page(driver: &Driver, from_position: u64, limit: usize) -> Result<Page, String> {
    let (superblock, durable, (mut log_offset, _)) = {
        let engine = driver.engine.borrow();
        (engine.superblock().clone(), engine.durable(), engine.start_for(from_position))
    };
    let mut page = Page { records: Vec::new(), next_position: from_position };
    let mut bytes_taken = 0;
    while page.next_position <= durable.position && page.records.len() < limit && bytes_taken < PAGE_BYTES_MAX {
        let batch = read_batch(driver, &superblock, log_offset).await?;
        let header = &batch.place.header;
        let mut at = BATCH_HEADER_BYTES;
        for position in header.first_position..header.next_position() {
            let rest = batch.bytes.get(at..).unwrap_or_default();
            let (raw, length) = record::read(rest).map_err(|e| format!("position {position} does not verify: {e}"))?;
            at += length;
            let is_wanted = position == page.next_position && position <= durable.position;
            if is_wanted && page.records.len() < limit && bytes_taken < PAGE_BYTES_MAX {
                bytes_taken += raw.body.len();
                page.next_position += 1;
                page.records.push(StoredRecord { position, kind: raw.kind, body: raw.body.to_vec() });
            }
        }
        log_offset = superblock.geometry.next_batch(log_offset, header.total_bytes.into());
    }
    Ok(page)
}

/// What came of a check.
#[derive(Debug)]
pub struct Checked {
    /// The chain verifies from its beginning to the present, and passes through the head.
    pub is_well: bool,
    /// What was found, as a sentence.
    pub message: String,
    /// Batches that verify.
    pub batches: u64,
}

/// Goes over the chain from its beginning to what is durable, and looks whether it passes through a head.
pub async fn check(driver: &Rc<Driver>, wanted: Head) -> Checked {
    let (superblock, head) = {
        let engine = driver.engine.borrow();
        (engine.superblock().clone(), engine.head())
    };
    let failed = |batches: u64, message: String| Checked { is_well: false, message, batches };
    if wanted.batch > head.batch {
        let message = format!(
            "the head is batch {} and position {}, and the log ends at batch {} and position {}: what came after it is gone, or \
             the head is of another ledger",
            wanted.batch, wanted.position, head.batch, head.position
        );
        return failed(0, message);
    }
    let mut end = LogEnd::of_empty(&superblock, 0, Mutation::NONE);
    let mut passes = wanted.batch == 0;
    if passes && (wanted.position != 0 || wanted.hash != end.previous_hash) {
        let message =
            "the head says that nothing was logged yet, and has another hash than this ledger's chain begins with";
        return failed(0, message.to_owned());
    }
    while end.next_number <= head.batch {
        let batches = end.next_number - 1;
        let batch = match read_batch(driver, &superblock, end.next_batch_at).await {
            Ok(batch) => batch,
            Err(error) => {
                let message = format!("batch {} (positions from {}): {error}", end.next_number, end.next_position);
                return failed(batches, message);
            }
        };
        if !end.is_continued_by(&batch.place.header, Mutation::NONE) {
            let message = format!(
                "batch {} (positions from {}) does not go on from the one before it",
                end.next_number, end.next_position
            );
            return failed(batches, message);
        }
        end = end.after(superblock.geometry, &batch.place);
        if batch.place.header.number == wanted.batch {
            let position = batch.place.header.next_position() - 1;
            if batch.place.hash != wanted.hash || position != wanted.position {
                let message = format!(
                    "batch {} ends at position {position} and has another hash than the head says: an entry at or before that \
                     position was changed, dropped or put elsewhere since the head was given out",
                    wanted.batch
                );
                return failed(batches, message);
            }
            passes = true;
        }
        if end.next_number.is_multiple_of(BATCHES_BETWEEN_PAUSES) {
            glommio::timer::sleep(Duration::from_micros(1)).await;
        }
    }
    let message = format!("the chain verifies to batch {}, position {}", head.batch, head.position);
    Checked { is_well: passes, message, batches: head.batch }
}
