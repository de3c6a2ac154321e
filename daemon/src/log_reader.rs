//! Reads the durable part of a shard's log in order: for `tail`, for exports, and to check that a chain head that was given out
//! earlier is still part of the chain.

use crate::driver::{Driver, StoredRecord};
use crate::read_shares::Reader;
use claim_engine::log::batch::{self, BATCH_HEADER_BYTES, Found, Hash};
use claim_engine::log::end::{Head, LogEnd};
use claim_engine::log::record;
use claim_engine::log::recovery::BatchPlace;
use claim_engine::log::superblock::Superblock;
use claim_engine::mutant::Mutation;
use claim_engine::retention::{QuarterSeal, verify_seals};
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
        let read = driver.read_device(file_offset, bytes, Reader::Request).await;
        read.map_err(|e| format!("reading {bytes} bytes at file offset {file_offset} failed: {e}"))
    };
    let mut bytes = read(first).await?;
    if let Some(claimed) = batch::claimed_bytes(&bytes, geometry.batch_bytes_max).filter(|claimed| *claimed > first) {
        bytes = read(claimed.min(wanted)).await?;
    }
    if driver.is_dropped(log_offset) {
        return Err(format!("what stood at file offset {file_offset} was dropped while it was read"));
    }
    match batch::find(&bytes, &superblock.key, superblock.shard, geometry.batch_bytes_max, Mutation::NONE) {
        Found::Batch { header, hash } => {
            Ok(Batch { place: BatchPlace { header, hash, log_offset }, bytes: bytes.to_vec() })
        }
        _ => Err(format!("no batch verifies at file offset {file_offset}")),
    }
}

/// The durable records from a position on, at most `limit` of them. What was dropped is left out.
pub async fn page(driver: &Driver, from_position: u64, limit: usize) -> Result<Page, String> {
    let (superblock, durable, (start, _)) = {
        let engine = driver.engine.borrow();
        (engine.superblock().clone(), engine.durable(), engine.start_for(from_position))
    };
    let begin = LogEnd::at_start(&superblock, 0, Mutation::NONE);
    let mut log_offset = start.max(begin.next_batch_at);
    let mut page = Page { records: Vec::new(), next_position: from_position.max(begin.next_position) };
    let mut bytes_taken = 0;
    while page.next_position <= durable.position && page.records.len() < limit && bytes_taken < PAGE_BYTES_MAX {
        let batch = match read_batch(driver, &superblock, log_offset).await {
            Ok(batch) => batch,
            Err(error) => {
                let Some(begin) = dropped_meanwhile(driver, log_offset) else { return Err(error) };
                if !page.records.is_empty() {
                    break;
                }
                log_offset = begin.next_batch_at;
                page.next_position = page.next_position.max(begin.next_position);
                continue;
            }
        };
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
                page.records.push(StoredRecord { position, kind: raw.kind, body: raw.body.to_vec().into() });
            }
        }
        log_offset = batch.place.next(superblock.geometry);
    }
    Ok(page)
}

/// Where the log begins now, if what stood at an offset was dropped while it was read.
fn dropped_meanwhile(driver: &Driver, log_offset: u64) -> Option<LogEnd> {
    let is_dropped = driver.is_dropped(log_offset);
    is_dropped.then(|| LogEnd::at_start(driver.engine.borrow().superblock(), 0, Mutation::NONE))
}

/// What can still be said of a head in what was dropped: the seals of dropped quarters name the ends of their chains.
fn check_dropped(seals: &[QuarterSeal], key: &Hash, wanted: &Head) -> Result<(), String> {
    verify_seals(seals, key)?;
    let seal = seals.iter().find(|seal| seal.batch >= wanted.batch);
    match seal {
        Some(seal) if seal.chain_head() == *wanted => Ok(()),
        Some(seal) if seal.batch == wanted.batch => Err(format!(
            "the seal of {} has another position or hash for batch {} than the head says: an entry at or before that position was \
             changed, dropped or put elsewhere since the head was given out",
            seal.quarters.1, wanted.batch
        )),
        Some(seal) => Err(format!(
            "batch {} was dropped with {}, whose retention is over: whether the chain passed through the head can't be told any \
             more; a backup from before may have it",
            wanted.batch, seal.quarters.1
        )),
        None => Err(format!("batch {} stands before the log's beginning, and no seal tells of it", wanted.batch)),
    }
}

/// What came of a check.
#[derive(Debug)]
pub struct Checked {
    /// The chain verifies from where the log begins to the present, and passes through the head.
    pub is_well: bool,
    /// What was found, as a sentence.
    pub message: String,
    /// Batches that verify.
    pub batches: u64,
}

/// Goes over the chain from where the log begins to what is durable, and looks whether it passes through a head.
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
    let mut end = LogEnd::at_start(&superblock, 0, Mutation::NONE);
    let mut passes = wanted.batch < end.next_number;
    if wanted.batch == 0 {
        let genesis = LogEnd::at_start(&Superblock { origin: None, ..superblock.clone() }, 0, Mutation::NONE);
        if wanted.position != 0 || wanted.hash != genesis.previous_hash {
            let message =
                "the head says that nothing was logged yet, and has another hash than this ledger's chain begins with";
            return failed(0, message.to_owned());
        }
    } else if passes {
        let checked = check_dropped(&driver.engine.borrow().shard().retention().seals, &superblock.key, &wanted);
        if let Err(message) = checked {
            return failed(0, message);
        }
    }
    let before = end.next_number - 1;
    while end.next_number <= head.batch {
        let batches = end.next_number - 1 - before;
        let batch = match read_batch(driver, &superblock, end.next_batch_at).await {
            Ok(batch) => batch,
            Err(_) if dropped_meanwhile(driver, end.next_batch_at).is_some() => {
                let message = "a quarter was dropped while its chain was gone over; check once more";
                return failed(batches, message.to_owned());
            }
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
    Checked { is_well: passes, message, batches: head.batch - before }
}
