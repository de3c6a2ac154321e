//! Scrubbing: reads the durable part of the log again and again at a bounded rate, and checks every batch's hash and its
//! place in the chain, so that damage is found while a backup is still there. It changes nothing and stops nothing: it logs
//! an error, and `status` says where.

use crate::driver::Driver;
use crate::read_shares::Reader;
use claim_engine::log::batch::{self, Found};
use claim_engine::log::end::LogEnd;
use claim_engine::log::layout::{BLOCK_BYTES, SEGMENT_HEADER_BYTES};
use claim_engine::log::recovery::BatchPlace;
use claim_engine::log::superblock::Superblock;
use claim_engine::mutant::Mutation;
use std::rc::Rc;
use std::time::Duration;

/// While requests wait, scrubbing waits too, but not for longer than this at a time: it is never put off for good.
const YIELD_MAX_MS: u64 = 1_000;
const YIELD_STEP_MS: u64 = 10;
/// Between two rounds over a log, at least.
const ROUND_PAUSE_MS: u64 = 1_000;

/// What scrubbing has seen of one shard since start.
#[derive(Debug, Clone, Default)]
pub struct Scrubbed {
    /// Bytes read and found well.
    pub bytes: u64,
    /// Times that the whole log was gone over.
    pub rounds: u64,
    /// Places that did not verify; each is counted once a start.
    pub damaged: u64,
    /// The first of them, as a sentence.
    pub first: Option<String>,
    /// Where the places are, in the file.
    places: Vec<u64>,
}

/// Places that are remembered so that the next round does not count them again.
const PLACES_MAX: usize = 1_000;

impl Scrubbed {
    fn damage(&mut self, shard: u16, file_offset: u64, what: &str) {
        if self.places.contains(&file_offset) || self.places.len() >= PLACES_MAX {
            return;
        }
        self.places.push(file_offset);
        self.damaged += 1;
        tracing::error!(
            shard,
            file_offset,
            what,
            "the ledger is damaged: run `claimd verify` to see what is concerned"
        );
        self.first.get_or_insert_with(|| format!("file offset {file_offset}: {what}"));
    }
}

/// Where a round over one shard's log is.
#[derive(Debug)]
struct Round {
    end: LogEnd,
    /// After damage: looking for the next batch, from this log offset on.
    searching_at: Option<u64>,
}

impl Round {
    fn new(superblock: &Superblock) -> Round {
        Round { end: LogEnd::at_start(superblock, 0, Mutation::NONE), searching_at: None }
    }
}

/// Goes over the logs of an executor's shards in turn, for ever.
pub async fn run(drivers: Vec<Rc<Driver>>, bytes_per_s: u64) {
    if bytes_per_s == 0 {
        return;
    }
    let mut rounds: Vec<_> = drivers.iter().map(|driver| Round::new(driver.engine.borrow().superblock())).collect();
    loop {
        let mut is_round_over = true;
        for (driver, round) in drivers.iter().zip(&mut rounds) {
            give_way(driver).await;
            let read = piece(driver, round).await;
            is_round_over &= read == 0;
            if read > 0 {
                glommio::timer::sleep(Duration::from_micros(read * 1_000_000 / bytes_per_s)).await;
            }
        }
        if is_round_over {
            glommio::timer::sleep(Duration::from_millis(ROUND_PAUSE_MS)).await;
        }
    }
}

async fn give_way(driver: &Driver) {
    for _ in 0..YIELD_MAX_MS / YIELD_STEP_MS {
        if driver.engine.borrow().held() == 0 {
            return;
        }
        glommio::timer::sleep(Duration::from_millis(YIELD_STEP_MS)).await;
    }
}

/// Looks at the next piece of a log; returns the bytes read, 0 at the end of a round.
async fn piece(driver: &Driver, round: &mut Round) -> u64 {
    // Its first segments may be dropped meanwhile: then a round begins anew where the log does.
    let superblock = &driver.engine.borrow().superblock().clone();
    let is_dropped = |at: u64| driver.is_dropped(at);
    if is_dropped(round.end.next_batch_at) {
        *round = Round::new(superblock);
    }
    let geometry = superblock.geometry;
    // What is durable now was written before it is read below.
    let durable = driver.engine.borrow().durable();
    let at = round.searching_at.unwrap_or(round.end.next_batch_at);
    if round.end.next_number > durable.batch {
        if round.end.next_number > 1 {
            driver.scrubbed().borrow_mut().rounds += 1;
        }
        *round = Round::new(superblock);
        return 0;
    }
    let segment_end = geometry.segment_start(geometry.segment_of(at) + 1);
    let wanted = geometry.batch_bytes_max.min(segment_end - at);
    let file_offset = geometry.file_offset(at);
    let read = driver.read_device(file_offset, wanted, Reader::Background).await;
    if is_dropped(at) {
        return wanted;
    }
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => {
            let what = format!("reading {wanted} bytes failed: {error}");
            driver.scrubbed().borrow_mut().damage(superblock.shard, file_offset, &what);
            round.searching_at = Some(skip_header(superblock, at + wanted));
            return wanted;
        }
    };
    let mut scrubbed = driver.scrubbed().borrow_mut();
    if bytes.is_empty() {
        if round.searching_at.is_none() {
            scrubbed.damage(superblock.shard, file_offset, "the file ends before what is durable does");
        }
        scrubbed.rounds += 1;
        *round = Round::new(superblock);
        return 0;
    }
    let mut offset = 0;
    while offset < bytes.len() && round.end.next_number <= durable.batch {
        let rest = &bytes[offset..];
        let log_offset = at + offset as u64;
        let found = batch::find(rest, &superblock.key, superblock.shard, geometry.batch_bytes_max, Mutation::NONE);
        let place = match found {
            Found::Batch { header, hash } => Some(BatchPlace { header, hash, log_offset }),
            _ => None,
        };
        if round.searching_at.is_some() {
            if let Some(place) = place.filter(|place| place.header.number > round.end.next_number) {
                scrubbed.bytes += u64::from(place.header.total_bytes);
                round.end = round.end.after(geometry, &place);
                round.searching_at = None;
                return log_offset + u64::from(place.header.total_bytes) - at;
            }
            // A batch that this piece ends in is found again at the start of the next one.
            if offset > 0 && batch::claimed_bytes(rest, geometry.batch_bytes_max).is_some_and(|b| b > rest.len() as u64)
            {
                break;
            }
            offset += BLOCK_BYTES as usize;
            round.searching_at = Some(skip_header(superblock, at + offset as u64));
            continue;
        }
        match place {
            Some(place) if round.end.is_continued_by(&place.header, Mutation::NONE) => {
                scrubbed.bytes += u64::from(place.header.total_bytes);
                offset += place.header.total_bytes as usize;
                round.end = round.end.after(geometry, &place);
                if round.end.next_batch_at != at + offset as u64 {
                    break;
                }
            }
            // It may only be longer than what is left of this piece.
            None if offset > 0 && batch::claimed_bytes(rest, geometry.batch_bytes_max).is_some() => break,
            _ => {
                let number = round.end.next_number;
                let what = format!("batch {number} (positions from {}) does not verify", round.end.next_position);
                scrubbed.damage(superblock.shard, geometry.file_offset(log_offset), &what);
                offset += BLOCK_BYTES as usize;
                round.searching_at = Some(skip_header(superblock, log_offset + BLOCK_BYTES));
            }
        }
    }
    (offset as u64).max(BLOCK_BYTES)
}

/// No batch lies in a segment's header.
fn skip_header(superblock: &Superblock, log_offset: u64) -> u64 {
    if log_offset.is_multiple_of(superblock.geometry.segment_bytes) {
        log_offset + SEGMENT_HEADER_BYTES
    } else {
        log_offset
    }
}
