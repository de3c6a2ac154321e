//! Rows that outlive their quarter, and what is left of quarters that were dropped.

use super::{Change, Claimed, Found, Rows};
use crate::id::EventId;
use crate::log::layout::Geometry;
use crate::retention::{Due, Kept};
use crate::row::RowState;
use crate::sealed::{Fetch, Unread};
use crate::shard::apply::ID_AHEAD_MAX_US;
use crate::time::Quarter;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A row that was logged again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// As it was claimed, with the place of the carry; its position is 0.
    pub claimed: Claimed,
    /// Log offset of the claim.
    pub first_at: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outliving {
    /// Rows that were logged again.
    pub carried: BTreeMap<EventId, Carried>,
    /// Rows that came back in a later quarter than their own.
    pub reactivated: BTreeSet<EventId>,
    /// What was claimed before this is gone.
    pub gone_before_us: i64,
}

impl Default for Outliving {
    fn default() -> Outliving {
        Outliving { carried: BTreeMap::new(), reactivated: BTreeSet::new(), gone_before_us: i64::MIN }
    }
}

impl Rows {
    /// Sizes of the log.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Rows that were logged again, by their ids.
    pub fn carried(&self) -> &BTreeMap<EventId, Carried> {
        &self.outliving.carried
    }

    /// Rows that came back in a later quarter than their own.
    pub fn reactivated(&self) -> impl Iterator<Item = EventId> + '_ {
        self.outliving.reactivated.iter().copied()
    }

    pub(in super::super) fn reactivated_set(&self) -> &BTreeSet<EventId> {
        &self.outliving.reactivated
    }

    /// What was claimed before this is gone, but for rows that were logged again.
    pub fn gone_before_us(&self) -> i64 {
        self.outliving.gone_before_us
    }

    pub(in super::super) fn restore_carried(
        &mut self,
        mut carried: BTreeMap<EventId, Carried>,
        reactivated: BTreeSet<EventId>,
        gone_before_us: i64,
    ) {
        // The log may begin behind where they were logged again: then they were once more, and are gone until then.
        carried.retain(|_, row| self.geometry.segment_of(row.claimed.claim_at) >= self.catalog.first());
        self.outliving = Outliving { carried, reactivated, gone_before_us };
    }

    /// Whether an entry may be about a row that is gone: then it changes nothing any more.
    pub(super) fn may_be_gone(&self, event_id: EventId) -> bool {
        (event_id.ms() as i64).saturating_mul(1_000) < self.outliving.gone_before_us.saturating_add(ID_AHEAD_MAX_US)
    }

    /// Whether the row's claim is gone, and only what was logged again is left.
    pub(super) fn is_only_carried(&self, carried: &Carried) -> bool {
        self.geometry.segment_of(carried.first_at) < self.catalog.first()
    }

    /// Rows that are only there because they were logged again.
    pub fn only_carried(&self) -> impl Iterator<Item = &Carried> {
        self.outliving.carried.values().filter(|row| self.is_only_carried(row))
    }

    /// Whether the segment of the last record has any.
    pub fn is_begun(&self) -> bool {
        self.open.positions.0 != 0
    }

    /// Segments that have records, the oldest first: the times of their first and last record, and whether they are sealed.
    pub fn times_of_segments(&self) -> impl Iterator<Item = (u64, (i64, i64), bool)> + '_ {
        let sealed = self.catalog.segments().iter().map(|sealed| &sealed.summary);
        let sealed = sealed.filter(|s| s.positions.0 <= s.positions.1).map(|s| (s.segment, s.times_us, true));
        let near = self.memory().rev().filter(|rows| rows.positions.0 != 0);
        sealed.chain(near.map(|rows| (rows.number, rows.times_us(), false)))
    }

    /// What became of a row, as a carry holds it.
    pub(in super::super) fn carried_change(&self, row: &Found) -> Fetch<Vec<u8>> {
        let change = match self.newest_change(row.event_id, row.claim_at)? {
            // What is in the open segment is the newest, and stays.
            Some((segment, change)) if segment == self.open.number => change.into_owned(),
            Some((segment, change)) => change.into_owned().gone_on_from(segment),
            None => Change::default(),
        };
        Ok(postcard::to_stdvec(&change).expect("what became of a row is encoded in memory"))
    }

    /// Takes a row in that is logged again.
    pub(in super::super) fn carry(&mut self, claimed: Claimed, first_at: u64, change: &[u8]) -> Result<(), String> {
        let event_id = claimed.event_id;
        let change: Change =
            postcard::from_bytes(change).map_err(|e| format!("a carry of {event_id} that no build writes: {e}"))?;
        if first_at >= claimed.claim_at {
            return Err(format!("a carry of {event_id} from behind itself"));
        }
        self.outliving.carried.insert(event_id, Carried { claimed: Claimed { position: 0, ..claimed }, first_at });
        self.outliving.reactivated.insert(event_id);
        if self.open.change(event_id).is_none() {
            self.open.noted_mut(event_id).change = Some(change);
        }
        Ok(())
    }

    /// What stays in the control totals of what is dropped: the rows that were logged again.
    pub(in super::super) fn kept_of(&self, due: Due) -> Fetch<Vec<Kept>> {
        let mut kept: BTreeMap<(u16, Quarter), Kept> = BTreeMap::new();
        for (event_id, carried) in &self.outliving.carried {
            let quarter = Quarter::of(carried.claimed.claim_timestamp_us);
            let stays = self.geometry.segment_of(carried.claimed.claim_at) >= due.end_segment;
            if quarter > due.quarters.1 || !stays {
                continue;
            }
            let missing = || Unread::Damaged(format!("{event_id} was logged again, and is not there"));
            let row = self.get(*event_id)?.ok_or_else(missing)?;
            let prefix = event_id.prefix().get();
            let empty = || Kept { prefix, quarter, rows: [0; 4], over_budget: 0, aliases: Vec::new() };
            let of_quarter = kept.entry((prefix, quarter)).or_insert_with(empty);
            of_quarter.rows[row.state.lifecycle() as usize] += 1;
            of_quarter.over_budget += u64::from(row.over_budget);
            if let Some(canonical) = row.canonical_id.filter(|_| row.state == RowState::Referenced) {
                of_quarter.aliases.push((canonical.prefix().get(), 1));
            }
        }
        Ok(kept.into_values().collect())
    }

    /// Segments before one are dropped, and with them the quarters up to one. Says how many of them were not sealed: those that a
    /// replay has read.
    pub(in super::super) fn drop_before(
        &mut self,
        end: u64,
        last: Quarter,
        gone_before_us: i64,
        kept: &[Kept],
    ) -> usize {
        self.catalog.drop_before(end);
        let full = self.frozen.len();
        self.frozen.retain(|rows| rows.number >= end);
        let Outliving { carried, reactivated, gone_before_us: before_us } = &mut self.outliving;
        carried.retain(|_, row| self.geometry.segment_of(row.claimed.claim_at) >= end);
        *before_us = gone_before_us.max(*before_us);
        reactivated.retain(|id| id.ms() as i64 * 1_000 >= *before_us || carried.contains_key(id));
        self.tallies.drop_through(last, kept);
        full - self.frozen.len()
    }
}
