//! What the old ledger has dropped, and how the new one begins with that.
//!
//! A new log begins with its segment 1, as if segment 0 had been dropped. The seal before it has the small state of a shard whose
//! rows are all gone: what is left of the old shards' states where their logs begin. What happened before is in nobody's log. The
//! drops that the old logs tell are told anew, each once every old shard had come to it, with a seal of what lives here.

use super::placement::Placement;
use super::read::Stream;
use claim_engine::dispute::DisputeId;
use claim_engine::log::batch::Hash;
use claim_engine::log::end::LogEnd;
use claim_engine::log::superblock::{Origin, Superblock};
use claim_engine::retention::{QuarterSeal, QuarterTotal, bounded_totals};
use claim_engine::sealed::Checkpoint;
use claim_engine::shard::{Inherited, Shard};
use claim_engine::time::Quarter;
use std::collections::BTreeSet;

/// The segment with which the new logs begin.
pub const FIRST_SEGMENT: u64 = 1;

/// See the module.
#[derive(Debug)]
pub struct Beginning {
    /// The old shards, each as its log begins.
    states: Vec<Shard>,
    /// Every quarter up to this one is gone on all old shards.
    dropped_to: Quarter,
    /// The time of the first entry that is left.
    first_us: i64,
    /// What was dropped together, the oldest first.
    gone: Vec<Gone>,
    /// By old shard: disputes in quarantine of which a row there is not flagged.
    unflagged: Vec<Vec<DisputeId>>,
}

/// Quarters that are in one seal of each new shard.
#[derive(Debug)]
struct Gone {
    quarters: (Quarter, Quarter),
    /// When the last of the old shards dropped them.
    at_us: i64,
    /// By old shard: the last quarter that it had dropped when these were gone.
    dropped_to: Vec<Option<Quarter>>,
    /// The control totals, with the old shard.
    totals: Vec<(u16, QuarterTotal)>,
    /// Rows that were logged again, by old shard.
    carried: Vec<(u16, u64)>,
    /// Of the old seals.
    hashes: Vec<Hash>,
}

impl Beginning {
    /// Of a ledger as it was read; `None` where nothing was dropped. The error says why it can't be told.
    pub fn new(old: &[Superblock], streams: &mut [Stream]) -> Result<Option<Beginning>, String> {
        let dropped_to = streams.iter().filter_map(|stream| stream.shard.retention().dropped_to()).max();
        let Some(dropped_to) = dropped_to else { return Ok(None) };
        for (superblock, stream) in old.iter().zip(&*streams) {
            check(superblock, stream, dropped_to)?;
        }
        let gone = gone(streams);
        let first_us = streams.iter().filter_map(|stream| stream.first_us).min().unwrap_or(dropped_to.end_us());
        let unflagged = streams.iter_mut().map(|stream| std::mem::take(&mut stream.unflagged)).collect();
        let states = streams.iter_mut().filter_map(|stream| stream.start.take()).collect();
        Ok(Some(Beginning { states, dropped_to, first_us, gone, unflagged }))
    }

    /// The time of the first entry that is left.
    pub fn first_us(&self) -> i64 {
        self.first_us
    }

    /// The old shard 0 as its log begins.
    pub fn first(&self) -> Option<&Shard> {
        self.states.first()
    }

    /// How far each old shard has dropped where its log begins.
    pub fn dropped_before(&self) -> Vec<Option<Quarter>> {
        self.states.iter().map(|state| state.retention().dropped_to()).collect()
    }

    /// How many seals stand before the first one that the old shards have not come to.
    pub fn seals_to(&self, dropped_to: &[Option<Quarter>]) -> usize {
        let is_there = |gone: &&Gone| gone.dropped_to.iter().zip(dropped_to).all(|(due, is)| is >= due);
        self.gone.iter().take_while(is_there).count()
    }

    /// How many seals there are.
    pub fn seals(&self) -> usize {
        self.gone.len()
    }

    /// Where a new log begins, but for the seal before it. Its chain follows from the old ledger's seals.
    pub fn origin(&self, superblock: &Superblock) -> Origin {
        let geometry = superblock.geometry;
        let start = LogEnd {
            next_batch_at: geometry.segment_start(FIRST_SEGMENT) + geometry.first_batch(),
            next_number: 1,
            next_position: 1,
            previous_hash: self.head_of(superblock, self.gone.len().saturating_sub(1)),
            incarnation: 0,
            segments_prepared: 0,
        };
        Origin { start, seal: Checkpoint::default(), gone_before_us: self.dropped_to.end_us() }
    }

    fn head_of(&self, superblock: &Superblock, index: usize) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(&superblock.key);
        hasher.update(superblock.ledger.as_bytes()).update(&superblock.shard.to_le_bytes());
        for hash in self.gone[..=index].iter().flat_map(|gone| &gone.hashes) {
            hasher.update(hash);
        }
        *hasher.finalize().as_bytes()
    }

    /// The seal of a new shard that follows another one; `at_us` is when it is told, if that is later than it was.
    pub fn seal(
        &self,
        index: usize,
        superblock: &Superblock,
        placement: &Placement,
        previous: Hash,
        at_us: i64,
    ) -> QuarterSeal {
        let gone = &self.gone[index];
        let is_here = |prefix: u16, old: u16| placement.home_of(prefix, old) == superblock.shard;
        let totals = gone.totals.iter().filter(|(old, total)| is_here(total.prefix, *old));
        let totals = totals.map(|(_, total)| total.clone());
        let carried = gone.carried.iter().filter(|(old, _)| is_here(0, *old)).map(|(_, rows)| rows);
        let mut seal = QuarterSeal {
            quarters: gone.quarters,
            segments: (if index == 0 { 0 } else { FIRST_SEGMENT }, FIRST_SEGMENT),
            at_us: gone.at_us.max(at_us),
            batch: 0,
            position: 0,
            head: self.head_of(superblock, index),
            totals: bounded_totals(totals, gone.quarters.1),
            carried: carried.sum(),
            previous,
            hash: [0; 32],
        };
        seal.hash = seal.hash_of(&superblock.key);
        seal
    }

    /// The small state before the log of a new shard.
    pub fn small_state(&self, superblock: &Superblock, placement: &Placement) -> Result<Vec<u8>, String> {
        let mut seals: Vec<QuarterSeal> = Vec::new();
        for index in 0..self.seals_to(&self.dropped_before()) {
            let previous = seals.last().map_or([0; 32], |seal| seal.hash);
            seals.push(self.seal(index, superblock, placement, previous, i64::MIN));
        }
        let inherited =
            Inherited { from: &self.states, seals, unflagged: self.unflagged_at(superblock.shard, placement) };
        Shard::inherit(superblock, inherited, |prefix| placement.new_of(prefix))
    }

    fn unflagged_at(&self, number: u16, placement: &Placement) -> Vec<DisputeId> {
        let Some(first) = self.first() else { return Vec::new() };
        let mut here = BTreeSet::new();
        for (old, id) in (0..).zip(&self.unflagged).flat_map(|(old, ids)| ids.iter().map(move |id| (old, *id))) {
            let sides = first.disputes().get(id).map(|dispute| dispute.sides);
            let mut prefixes = sides.iter().flat_map(|sides| sides.ids()).map(|event_id| event_id.prefix());
            if prefixes.any(|p| placement.old_of(p) == Some(old) && placement.new_of(p) == Some(number)) {
                here.insert(id);
            }
        }
        here.into_iter().collect()
    }
}

/// Whether a shard has nothing of what is gone.
fn check(superblock: &Superblock, stream: &Stream, dropped_to: Quarter) -> Result<(), String> {
    let shard = superblock.shard;
    let ends_at = stream.shard.retention().seals.last().map_or(0, |seal| seal.segments.1);
    if superblock.first_segment() != ends_at {
        return Err(format!(
            "shard {shard} has dropped what is before segment {ends_at}, and its log still begins with segment {}: serve the \
             ledger until it does not, stop it, and run the same command again",
            superblock.first_segment()
        ));
    }
    if let Some(first) = stream.first_us.map(Quarter::of).filter(|first| *first <= dropped_to) {
        return Err(format!(
            "shard {shard} still has entries of {first}, and another shard has dropped what is up to {dropped_to}: serve the ledger \
             until every shard has dropped that, which `claimctl retention` shows, stop it, and run the same command again. Where \
             nobody asks anything of a shard its time goes on with what every shard is told, such as `claimctl barrier`"
        ));
    }
    let own = stream.shard.retention().dropped_to();
    let mut carried = stream.shard.rows().carried().values().filter_map(|row| row.standing);
    if own < Some(dropped_to) && carried.any(|standing| standing.effective <= dropped_to) {
        return Err(format!(
            "shard {shard} still has rows that were logged again and count in quarters up to {dropped_to}, which another shard has \
             dropped: serve the ledger until every shard has dropped that, which `claimctl retention` shows, stop it, and run the \
             same command again"
        ));
    }
    let begins_behind = stream.start.as_ref().map_or(0, Shard::globals_applied);
    let ahead = Some(begins_behind).filter(|behind| *behind > stream.globals_before);
    match ahead.or(stream.without_global) {
        None => Ok(()),
        Some(entry) => Err(format!(
            "shards 0 and {shard} dropped entry {entry} of the global order with different quarters, so far apart are their times, \
             and one of them still goes by it: serve the ledger until that quarter is dropped, too, stop it, and run the same \
             command again"
        )),
    }
}

/// What the old shards dropped, by the quarters that one of them ended with.
fn gone(streams: &[Stream]) -> Vec<Gone> {
    let seals_of = |stream: &Stream| stream.shard.retention().seals.clone();
    let seals: Vec<Vec<QuarterSeal>> = streams.iter().map(seals_of).collect();
    let ends: BTreeSet<Quarter> = seals.iter().flatten().map(|seal| seal.quarters.1).collect();
    let mut gone: Vec<Gone> = Vec::new();
    for end in ends {
        let begins_with = gone.last().map(|before| before.quarters.1.next());
        let first = seals.iter().flatten().filter(|seal| seal.quarters.1 >= end).map(|seal| seal.quarters.0).min();
        let quarters = (first.unwrap_or(end).max(begins_with.unwrap_or(Quarter::MIN)), end);
        let ending = |seal: &&QuarterSeal| seal.quarters.1 == end;
        let by_shard = || (0u16..).zip(&seals).flat_map(|(old, seals)| seals.iter().map(move |seal| (old, seal)));
        let totals = by_shard().flat_map(|(old, seal)| seal.totals.iter().map(move |total| (old, total.clone())));
        let last =
            |seals: &Vec<QuarterSeal>| seals.iter().map(|seal| seal.quarters.1).filter(|last| *last <= end).max();
        gone.push(Gone {
            quarters,
            at_us: seals.iter().flatten().filter(ending).map(|seal| seal.at_us).max().unwrap_or(0),
            dropped_to: seals.iter().map(last).collect(),
            totals: totals.filter(|(_, total)| (quarters.0..=end).contains(&total.quarter)).collect(),
            carried: by_shard().filter(|(_, seal)| ending(seal)).map(|(old, seal)| (old, seal.carried)).collect(),
            hashes: seals.iter().flatten().filter(ending).map(|seal| seal.hash).collect(),
        });
    }
    gone
}
