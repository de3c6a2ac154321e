//! Blocks of the log that a decision needs and that are not at hand: read beside everything else, and whoever waits for them is
//! looked at again.

use super::Engine;
use crate::entropy::Entropy;
use crate::error::{Code, Refusal};
use crate::log::io::Io;
use crate::log::layout::BLOCK_BYTES;
use crate::peer::{Answer, Ask};
use crate::sealed::{Stretch, Unread};
use crate::shard::gather::Gathered;
use crate::time::Now;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::ops::Range;

/// Reads under way, at most.
const READS_IN_FLIGHT_MAX: usize = 64;
/// Blocks of one read, at most: 1 MiB.
const READ_BLOCKS_MAX: u64 = 256;
/// After a read that failed, what the shard does by itself waits for so long.
const WORK_RETRY_US: i64 = 1_000_000;
/// Those of passes among them, at most.
const BACKGROUND_READS_IN_FLIGHT_MAX: usize = 16;

/// Who waits for blocks.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A request.
    Parked(u64),
    /// A question of another shard, or of this one.
    Asked(Box<Asking>),
    /// What this shard does by itself.
    Work,
}

/// A question that is being answered.
#[derive(Debug)]
pub(super) struct Asking {
    pub from: u16,
    pub question: u64,
    pub ask: Ask,
    /// What there is of the answer so far.
    pub gathered: Gathered,
}

#[derive(Debug)]
struct Group {
    left: usize,
    waiter: Waiter,
    failed: Option<String>,
    /// What is read is wanted in one piece.
    is_stretch: bool,
}

/// A read that is under way.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    group: u64,
    bytes: u64,
    /// Requests wait for it.
    is_urgent: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reads {
    groups: HashMap<u64, Group>,
    /// Reads that requests may wait for: their group, the first block, how many.
    queue: VecDeque<(u64, u64, u64)>,
    /// Those of passes. They come after.
    background: VecDeque<(u64, u64, u64)>,
    in_flight: HashMap<u64, InFlight>,
    background_in_flight: usize,
    /// What is to be gone on with after a pause: those that are to begin, and those that are under way.
    pauses: VecDeque<u64>,
    paused: HashMap<u64, Asking>,
    next: u64,
    /// Reads for what this shard does by itself.
    works: usize,
    /// After one that failed none is begun before this moment.
    works_again_at_us: i64,
}

impl Engine {
    /// Has blocks read for somebody.
    pub(super) fn read_blocks(&mut self, mut blocks: Vec<u64>, waiter: Waiter) {
        blocks.sort_unstable();
        blocks.dedup();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        // A segment need not lie behind the one before it.
        let segment_blocks = self.superblock.geometry.segment_bytes / BLOCK_BYTES;
        for block in blocks {
            let is_inner = !block.is_multiple_of(segment_blocks);
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == block && is_inner && *count < READ_BLOCKS_MAX => *count += 1,
                _ => ranges.push((block, 1)),
            }
        }
        self.read_ranges(ranges, false, waiter);
    }

    /// Has a stretch of the log read in one piece for somebody.
    pub(super) fn read_stretch(&mut self, range: Range<u64>, waiter: Waiter) {
        let blocks = (range.start / BLOCK_BYTES, (range.end - range.start) / BLOCK_BYTES);
        self.read_ranges(vec![blocks], true, waiter);
    }

    fn read_ranges(&mut self, ranges: Vec<(u64, u64)>, is_stretch: bool, waiter: Waiter) {
        self.reads.next += 1;
        let group = self.reads.next;
        self.reads.works += usize::from(matches!(waiter, Waiter::Work));
        let is_urgent = match &waiter {
            Waiter::Parked(_) => true,
            Waiter::Asked(asking) => !asking.ask.is_of_pass(),
            // Requests may wait for what this shard does by itself, and it does one thing at a time.
            Waiter::Work => true,
        };
        self.reads.groups.insert(group, Group { left: ranges.len(), waiter, failed: None, is_stretch });
        let queue = if is_urgent { &mut self.reads.queue } else { &mut self.reads.background };
        queue.extend(ranges.into_iter().map(|(first, count)| (group, first, count)));
    }

    /// Has what was unread read for what this shard does by itself, one thing at a time. What fails is told, and tried again
    /// after a while.
    pub(super) fn read_for_work(&mut self, unread: Unread) {
        if self.reads.works > 0 || self.boot_us < self.reads.works_again_at_us {
            return;
        }
        match unread {
            Unread::Missing(blocks) => self.read_blocks(blocks, Waiter::Work),
            Unread::Stretch(range) => self.read_stretch(range, Waiter::Work),
            Unread::Damaged(what) => self.work_failed(&what),
        }
    }

    fn work_failed(&mut self, what: &str) {
        self.reads.works_again_at_us = self.boot_us + WORK_RETRY_US;
        tracing::error!(
            what,
            "what the shard does by itself waits: its storage is damaged or failing; see `claimd verify`"
        );
    }

    pub(super) fn next_read(&mut self) -> Option<Io> {
        if let Some(id) = self.reads.pauses.pop_front() {
            return Some(Io::Pause { id });
        }
        let Reads { queue, background, in_flight, background_in_flight, .. } = &mut self.reads;
        if in_flight.len() >= READS_IN_FLIGHT_MAX {
            return None;
        }
        let urgent = queue.pop_front();
        let is_urgent = urgent.is_some();
        let may_begin = *background_in_flight < BACKGROUND_READS_IN_FLIGHT_MAX;
        let (group, first, count) = urgent.or_else(|| background.pop_front_if(|_| may_begin))?;
        *background_in_flight += usize::from(!is_urgent);
        self.reads.next += 1;
        let id = self.reads.next;
        let bytes = count * BLOCK_BYTES;
        self.reads.in_flight.insert(id, InFlight { group, bytes, is_urgent });
        let log_offset = first * BLOCK_BYTES;
        let file_offset = self.superblock.geometry.file_offset(log_offset);
        Some(Io::Read { id, log_offset, file_offset, bytes, is_urgent })
    }

    pub(super) fn read_done(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        id: u64,
        log_offset: u64,
        result: std::io::Result<Vec<u8>>,
    ) {
        let Some(InFlight { group: number, bytes: wanted, is_urgent }) = self.reads.in_flight.remove(&id) else {
            return;
        };
        self.reads.background_in_flight -= usize::from(!is_urgent);
        let Some(group) = self.reads.groups.get_mut(&number) else { return };
        group.left -= 1;
        let catalog = self.shard.rows().catalog();
        match result {
            Ok(bytes) if (bytes.len() as u64) < wanted => {
                group.failed = Some(format!("the file ends within {wanted} bytes of log offset {log_offset}"));
            }
            Ok(bytes) if group.is_stretch => catalog.put_stretch(Stretch::new(log_offset, bytes)),
            Ok(bytes) => catalog.put(log_offset, &bytes),
            Err(error) => group.failed = Some(format!("reading at log offset {log_offset} failed: {error}")),
        }
        if group.left > 0 {
            return;
        }
        let Some(Group { waiter, failed, .. }) = self.reads.groups.remove(&number) else { return };
        match (waiter, failed) {
            (Waiter::Parked(id), None) => self.decide_parked(now, entropy, id),
            (Waiter::Parked(id), Some(what)) => {
                let message = format!("{what}: the ledger's storage is damaged or failing; see the daemon's log");
                tracing::error!(what, "a read of the ledger failed");
                self.unpark(id, Some(Refusal::new(Code::ShardFailed, message)));
            }
            (Waiter::Asked(asking), None) => self.answer_on(*asking),
            (Waiter::Asked(asking), Some(what)) => {
                tracing::error!(what, "a read of the ledger failed");
                self.send_answer(asking.from, asking.question, Answer::Failed);
            }
            (Waiter::Work, failed) => {
                self.reads.works -= 1;
                if let Some(what) = failed {
                    self.work_failed(&what);
                }
            }
        }
    }

    /// Answers a question of a pass a little later: what comes in meanwhile goes before.
    pub(super) fn answer_later(&mut self, asking: Asking) {
        self.reads.next += 1;
        let id = self.reads.next;
        self.reads.paused.insert(id, asking);
        self.reads.pauses.push_back(id);
    }

    pub(super) fn resume_asking(&mut self, id: u64) {
        if let Some(asking) = self.reads.paused.remove(&id) {
            self.answer_on(asking);
        }
    }

    /// Answers a question, as far as what it takes is at hand; else has that read.
    pub(super) fn answer_on(&mut self, mut asking: Asking) {
        if self.log.failed().is_some() {
            return self.send_answer(asking.from, asking.question, Answer::Failed);
        }
        self.shard.tidy();
        match self.shard.gather(&asking.ask, &mut asking.gathered) {
            Ok(answer) => self.send_answer(asking.from, asking.question, answer),
            Err(Unread::Missing(blocks)) => self.read_blocks(blocks, Waiter::Asked(Box::new(asking))),
            Err(Unread::Stretch(range)) => self.read_stretch(range, Waiter::Asked(Box::new(asking))),
            Err(Unread::Damaged(what)) => {
                tracing::error!(what, "a read of the ledger failed");
                self.send_answer(asking.from, asking.question, Answer::Failed);
            }
        }
    }
}
