//! What the batches of a trace say lay where in the log, and when: of a ledger that drops quarters an image alone no longer shows
//! what was in them.

use crate::disk::Content;
use crate::trace::{Event, Op, Trace};
use claim_engine::log::batch::{self, BatchHeader, Found};
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::record;
use claim_engine::log::superblock::{ClockMode, Superblock, is_segment_header};
use claim_engine::mutant::Mutation;
use std::collections::HashMap;
use std::ops::Range;

/// Events behind the freeing of segments in which a cut is still worth more.
const EVENTS_AFTER_FREEING: usize = 40;

/// What a record of the log is, as far as retention cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A row, by its id.
    Claim(u128),
    /// It came back.
    Reactivate(u128),
    /// A quarter is dropped.
    Drop,
    /// Anything else.
    Other,
}

/// A record of a batch that was submitted.
#[derive(Debug, Clone, Copy)]
pub struct Logged {
    /// The instant of the submission.
    pub from: usize,
    /// The instant from which another run's record has its position; the record was cut off then.
    pub until: usize,
    /// Its place in the shard's log.
    pub position: u64,
    /// Its time.
    pub at_us: i64,
    /// What it is.
    pub what: What,
}

impl Logged {
    /// Whether the log may have it at an instant.
    pub fn is_there(&self, instant: usize) -> bool {
        self.from < instant && instant <= self.until
    }
}

/// See the module. Of a ledger by the wall clock there is nothing: it drops nothing.
#[derive(Debug, Default)]
pub struct History {
    /// By shard, in the order of their submission.
    shards: Vec<Vec<Logged>>,
    /// By idempotency key and item: shards and indexes.
    places: HashMap<(u128, u16), Vec<(usize, usize)>>,
    /// By id: the idempotency key and item of the claim.
    claims: HashMap<u128, (u128, u16)>,
}

impl History {
    /// Reads the batches of a trace.
    pub fn of(trace: &Trace, superblocks: &[(usize, Superblock)], mutation: Mutation) -> History {
        let mut history = History { shards: vec![Vec::new(); superblocks.len()], ..History::default() };
        if superblocks.iter().all(|(_, superblock)| superblock.clock == ClockMode::Wall) {
            return history;
        }
        for (instant, event) in trace.events.iter().enumerate() {
            let Event::Submitted(Op::Write { file, data, .. }) = event else { continue };
            for (shard, (_, superblock)) in superblocks.iter().enumerate().filter(|(_, (f, _))| *f == *file as usize) {
                let largest = superblock.geometry.batch_bytes_max;
                let found = batch::find(data, &superblock.key, superblock.shard, largest, mutation);
                if let Found::Batch { header, .. } = found
                    && !header.is_sealing
                {
                    history.add(shard, instant, &header, data);
                }
            }
        }
        history
    }

    fn add(&mut self, shard: usize, instant: usize, header: &BatchHeader, data: &[u8]) {
        if header.is_recovery {
            // What the last run had behind this is not part of the log.
            let cut = self.shards[shard].iter_mut().rev().take_while(|logged| logged.position >= header.first_position);
            cut.for_each(|logged| logged.until = logged.until.min(instant));
        }
        let mut rest = &data[batch::records(data, header)];
        while let Ok((raw, bytes)) = record::read(rest) {
            rest = &rest[bytes..];
            let Ok(record) = Record::decode(raw.kind, raw.body) else { continue };
            let (key, item) = (record.meta.idempotency_key, record.meta.item);
            let place = (shard, self.shards[shard].len());
            let what = match record.entry {
                Entry::Claim(claim) => {
                    self.claims.insert(claim.event_id.as_u128(), (key, item));
                    What::Claim(claim.event_id.as_u128())
                }
                Entry::Reactivate { event_id } => What::Reactivate(event_id.as_u128()),
                Entry::RetentionDrop { .. } => What::Drop,
                _ => What::Other,
            };
            self.places.entry((key, item)).or_default().push(place);
            let (position, at_us) = (raw.position, record.meta.timestamp_us);
            self.shards[shard].push(Logged { from: instant, until: usize::MAX, position, at_us, what });
        }
    }

    /// The records that a shard's log may have at an instant.
    pub fn of_shard(&self, shard: usize, instant: usize) -> impl Iterator<Item = &Logged> {
        self.shards[shard].iter().take_while(move |logged| logged.from < instant).filter(move |l| l.is_there(instant))
    }

    /// Where an item of an operation is in the log at an instant: shards and positions.
    pub fn places(&self, key: u128, item: u16, instant: usize) -> impl Iterator<Item = (usize, u64)> {
        let places = self.places.get(&(key, item)).into_iter().flatten();
        let logged = places.map(|(shard, index)| (*shard, &self.shards[*shard][*index]));
        logged.filter(move |(_, logged)| logged.is_there(instant)).map(|(shard, logged)| (shard, logged.position))
    }

    /// The same of a row's claim.
    pub fn places_of_row(&self, event_id: u128, instant: usize) -> impl Iterator<Item = (usize, u64)> {
        let claim = self.claims.get(&event_id);
        claim.into_iter().flat_map(move |(key, item)| self.places(*key, *item, instant))
    }

    /// Of which item of which operation a row is.
    pub fn claim_of(&self, event_id: u128) -> Option<(u128, u16)> {
        self.claims.get(&event_id).copied()
    }

    /// The instants from the submission of a drop to somewhat after the freeing that follows, by file; in a ring that is when a place
    /// is taken again.
    pub fn drops(&self, trace: &Trace, superblocks: &[(usize, Superblock)]) -> Vec<Range<usize>> {
        let mut spans = Vec::new();
        for (shard, (index, superblock)) in superblocks.iter().enumerate().take(self.shards.len()) {
            for drop in self.shards[shard].iter().filter(|logged| logged.what == What::Drop) {
                let is_freeing = |event: &Event| match event {
                    Event::Freed { file, .. } => *file as usize == *index,
                    event => takes_again(event, *index, superblock),
                };
                let freed = trace.events[drop.from..].iter().position(is_freeing);
                let end = freed.map_or(trace.events.len(), |after| drop.from + after + EVENTS_AFTER_FREEING);
                spans.push(drop.from..end);
            }
        }
        spans
    }
}

/// Whether a place of a ring gets the header of a segment with which the log goes round to it again.
pub fn takes_again(event: &Event, index: usize, superblock: &Superblock) -> bool {
    let Event::Submitted(Op::Write { file, data, .. }) = event else { return false };
    if *file as usize != index || !superblock.geometry.is_ring() || Content::of(data) != Content::SegmentHeader {
        return false;
    }
    let segment = data.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    segment >= superblock.geometry.ring_segments && is_segment_header(data, superblock, segment)
}
