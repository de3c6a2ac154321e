//! Dropping quarters whose retention is over, step by step: rows that outlive one are logged again, then the drop is logged and its
//! rows are gone. A seal behind that entry moves the log's beginning, and then the segments' bytes are freed.

use super::{Engine, Output};
use crate::debt::Level;
use crate::log::io::Io;
use crate::mutant::Mutant;
use crate::peer::PeerMessage;
use crate::retention::{Due, RetentionPlan};
use crate::sealed::Unread;
use crate::shard::{LookedTo, ToCarry};
use crate::time::{Now, Quarter};
use std::collections::BTreeMap;

/// Rows that are logged again in one go.
const CARRIED_AT_ONCE: usize = 16;
/// When nothing is due, or something stands against it, it is looked at again after this.
const LOOK_AGAIN_US: i64 = 1_000_000;
/// Freeing that failed, or that has to wait, is tried again after this.
const FREE_AGAIN_US: i64 = 1_000_000;

/// What retention is about to do.
#[derive(Debug)]
pub(super) struct Retaining {
    /// It is not looked at before this.
    again_at_us: i64,
    /// Of what is due, how far the rows that outlive it were looked for, and what it waits for.
    looked_to: LookedTo,
    waits_for: Option<String>,
    /// Shard 0 takes no holds on quarters up to this one any more.
    allowed_to: Option<Quarter>,
    /// Segments from here on are kept: they are not archived yet.
    limit_segment: u64,
    /// Segments that are no part of the log any more, and may still take space.
    free: (u64, u64),
    is_freeing: bool,
    free_again_at_us: i64,
    /// Reads of what replies name, by the first segment that the log had when they began.
    reads: BTreeMap<u64, usize>,
}

impl Retaining {
    /// Of a log that begins with a segment.
    pub fn new(first_segment: u64) -> Retaining {
        Retaining {
            again_at_us: i64::MIN,
            looked_to: LookedTo::default(),
            waits_for: None,
            allowed_to: None,
            limit_segment: u64::MAX,
            // What a run before did not come to is done once more; freeing what is free takes nothing.
            free: (0, first_segment),
            is_freeing: false,
            free_again_at_us: i64::MIN,
            reads: BTreeMap::new(),
        }
    }

    /// Shard 0 has nothing against a drop.
    pub fn allowed(&mut self, quarter: Quarter) {
        self.allowed_to = self.allowed_to.max(Some(quarter));
        self.again_at_us = i64::MIN;
    }

    /// The log begins later than it did.
    pub fn moved(&mut self, first_segment: u64) {
        self.free.1 = self.free.1.max(first_segment);
    }
}

impl Engine {
    /// Segments from this one on are kept, however old: the segment archive lacks them.
    pub fn keep_segments_from(&mut self, segment: u64) {
        self.retaining.limit_segment = segment;
    }

    /// What the next drop would do, or what it waits for.
    pub fn retention_plan(&mut self, now: Now) -> RetentionPlan {
        let time_us = self.shard.time_us(now);
        let mut plan = self.shard.retention_plan(time_us);
        if plan.waits_for.is_none() && plan.quarters.is_some() {
            let end = self.shard.rows().catalog().first() + plan.segments;
            let clock = self.shard.clock().stands_against_drops(now);
            let outside = clock.or_else(|| self.archive_stands_against(end));
            plan.waits_for = outside.or_else(|| self.retaining.waits_for.clone());
        }
        plan
    }

    fn archive_stands_against(&self, end_segment: u64) -> Option<String> {
        let lacks = self.retaining.limit_segment < end_segment;
        lacks.then(|| format!("the segment archive, which has what is before segment {}", self.retaining.limit_segment))
    }

    /// At shard 0: holds are known here first. Once another shard may drop a quarter none is taken on it, so that what is held and
    /// acknowledged is kept by every shard; a shard that asked before a crash asks again.
    pub(super) fn asked_to_drop(&mut self, shard: u16, quarter: Quarter) {
        // While a shard has failed nobody can hold anything.
        if self.takes_own_entries() && self.shard.retention().holds.range(..=quarter).next().is_none() {
            self.shard.takes_no_hold_through(Some(quarter));
            self.out.push(Output::Message { to: shard, message: PeerMessage::MayDrop { quarter } });
        }
    }

    /// What is against this shard's dropping a quarter as far as shard 0 knows. If it has not said that nothing is, it is asked. Shard 0
    /// drops nothing while another shard has failed, because nobody can hold anything then.
    fn shard_0_stands_against(&mut self, due: Due) -> Option<String> {
        let (shard, quarter) = (self.shard.number(), due.quarters.1);
        if shard == 0 {
            return (!self.takes_own_entries()).then(|| "another shard, which has failed".to_owned());
        }
        if self.retaining.allowed_to >= Some(quarter) || self.mutation.is(Mutant::DropUnasked) {
            return None;
        }
        self.out.push(Output::Message { to: 0, message: PeerMessage::WouldDrop { shard, quarter } });
        Some("shard 0, which holds are taken by first".to_owned())
    }

    /// Takes retention a step further.
    pub(super) fn retain_on(&mut self, now: Now) {
        let is_calm = self.debt.level() < Level::Yellow && self.log.takes_small_entries();
        if now.boot_us < self.retaining.again_at_us || !is_calm {
            return;
        }
        let time_us = self.shard.time_us(now);
        let due = self.shard.due_quarter(time_us);
        let due = due.filter(|due| {
            self.shard.stands_against(*due).is_none()
                && self.shard.clock().stands_against_drops(now).is_none()
                && self.archive_stands_against(due.end_segment).is_none()
        });
        let waits_for = due.and_then(|due| self.shard_0_stands_against(due));
        let Some(due) = due.filter(|_| waits_for.is_none()) else {
            self.retaining.again_at_us = now.boot_us + LOOK_AGAIN_US;
            self.retaining.waits_for = waits_for;
            // The segment with a drop is ended early, so that it is sealed; where the log has no room for that, it is tried again.
            if self.shard.is_drop_open(&self.superblock) {
                self.log.end_segment();
                self.shard.enter_segment(self.log.written_bytes());
            }
            return;
        };
        if self.mutation.is(Mutant::DropWithoutCarry) {
            return self.drop_quarter(now, due);
        }
        for _ in 0..CARRIED_AT_ONCE {
            let carried = match self.shard.to_carry(due, time_us, &mut self.retaining.looked_to) {
                Ok(ToCarry::None) => return self.drop_quarter(now, due),
                Ok(ToCarry::More) => return,
                Ok(ToCarry::Row(row)) => self.shard.carry(now, &row, &mut self.log),
                Err(unread) => Err(unread),
            };
            self.retaining.waits_for = match &carried {
                Ok(Err(reason)) | Err(Unread::Damaged(reason)) => Some(reason.clone()),
                Ok(Ok(())) | Err(Unread::Missing(_) | Unread::Stretch(_)) => None,
            };
            match carried {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(unread) => return self.read_for_work(unread),
            }
        }
    }

    fn drop_quarter(&mut self, now: Now, due: Due) {
        match self.shard.drop_quarter(now, due, &mut self.log) {
            Ok(()) => {
                let (first, last) = due.quarters;
                tracing::info!(shard = self.shard.number(), %first, %last, before_segment = due.end_segment, "dropped");
                self.retaining.waits_for = None;
                if self.mutation.is(Mutant::FreeBeforeSealed) {
                    self.retaining.moved(due.end_segment);
                }
            }
            Err(reason) => {
                tracing::warn!(shard = self.shard.number(), reason, "a quarter that is due waits");
                self.retaining.waits_for = Some(reason);
                self.retaining.again_at_us = now.boot_us + LOOK_AGAIN_US;
            }
        }
    }

    /// What a reply names is about to be read from the log: what is part of that now stays where it is, whatever is dropped
    /// meanwhile, until [`Engine::end_read`] is told what this returns.
    pub fn begin_read(&mut self) -> u64 {
        let first_segment = self.superblock.first_segment();
        *self.retaining.reads.entry(first_segment).or_default() += 1;
        first_segment
    }

    /// Such a read has ended.
    pub fn end_read(&mut self, began_with: u64) {
        if let Some(reads) = self.retaining.reads.get_mut(&began_with) {
            *reads -= 1;
            if *reads == 0 {
                self.retaining.reads.remove(&began_with);
            }
        }
    }

    /// The next segments' bytes to free.
    pub(super) fn next_free(&mut self) -> Option<Io> {
        let Retaining { free: (from, to), is_freeing, free_again_at_us, ref reads, .. } = self.retaining;
        let is_being_read = reads.first_key_value().is_some_and(|(began_with, _)| *began_with < to);
        if is_freeing || from >= to || is_being_read || self.boot_us < free_again_at_us {
            return None;
        }
        self.retaining.is_freeing = true;
        let geometry = self.superblock.geometry;
        let place_of = |segment| geometry.file_offset(geometry.segment_start(segment));
        let stretch = (!geometry.is_ring()).then(|| place_of(from)..place_of(to));
        Some(Io::Free { segments: (from, to), stretch })
    }

    /// They were freed, or not.
    pub(super) fn freed(&mut self, segments: (u64, u64), result: std::io::Result<()>) {
        self.retaining.is_freeing = false;
        match result {
            Ok(()) => {
                self.retaining.free.0 = segments.1;
                self.log.freed(segments.1);
            }
            Err(error) => {
                if error.kind() != std::io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "dropped segments still take space; freeing them is tried again");
                }
                self.retaining.free_again_at_us = self.boot_us + FREE_AGAIN_US;
            }
        }
    }
}
