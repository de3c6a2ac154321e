//! The end of a log: where it goes on, and how far it is durable.

use super::batch::{BatchHeader, Hash};
use super::layout::{Geometry, INCARNATIONS_MAX};
use super::recovery::BatchPlace;
use super::superblock::Superblock;
use crate::mutant::{Mutant, Mutation};

/// Where a log ends: what recovery found, and a writer goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// Log offset of the next batch.
    pub next_batch_at: u64,
    /// Its number.
    pub next_number: u64,
    /// Position of its first record.
    pub next_position: u64,
    /// Hash of the last batch.
    pub previous_hash: Hash,
    /// Of the last batch.
    pub incarnation: u64,
    /// Segments that have a header.
    pub segments_prepared: u64,
}

impl LogEnd {
    /// The place where a log begins: in its first segment, or behind those that were dropped.
    pub fn at_start(superblock: &Superblock, segments_prepared: u64, mutation: Mutation) -> LogEnd {
        if let Some(origin) = superblock.origin {
            return LogEnd { segments_prepared, ..origin.start };
        }
        let mut genesis = *blake3::keyed_hash(&superblock.key, superblock.ledger.as_bytes()).as_bytes();
        if mutation.is(Mutant::NoKey) {
            genesis = [0; 32];
        }
        LogEnd {
            next_batch_at: superblock.geometry.first_batch(),
            next_number: 1,
            next_position: 1,
            previous_hash: genesis,
            incarnation: 0,
            segments_prepared,
        }
    }

    /// Whether a batch with this header goes on from here.
    pub fn is_continued_by(&self, header: &BatchHeader, mutation: Mutation) -> bool {
        let incarnation_allowed = if header.is_recovery {
            let is_same = header.incarnation == self.incarnation;
            let is_new = header.incarnation > self.incarnation && header.incarnation < INCARNATIONS_MAX;
            is_new || (is_same && mutation.is(Mutant::NoIncarnation))
        } else {
            header.incarnation == self.incarnation
        };
        header.number == self.next_number
            && header.first_position == self.next_position
            && header.previous_hash == self.previous_hash
            && incarnation_allowed
    }

    /// The end once `place` is part of the log.
    pub fn after(self, geometry: Geometry, place: &BatchPlace) -> LogEnd {
        LogEnd {
            next_batch_at: place.next(geometry),
            next_number: place.header.number + 1,
            next_position: place.header.next_position(),
            previous_hash: place.hash,
            incarnation: place.header.incarnation,
            segments_prepared: self.segments_prepared,
        }
    }
}

/// What is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durable {
    /// Last durable position; 0: none.
    pub position: u64,
    /// Last durable batch; 0: none.
    pub batch: u64,
}

/// The end of the chain as far as it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last batch.
    pub batch: u64,
    /// The last position up to its end.
    pub position: u64,
    /// Its hash.
    pub hash: Hash,
}
