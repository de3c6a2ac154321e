//! Rows that outlive their quarter, and what is left of quarters that were dropped.

use super::{Change, Claimed, Found, Rows};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::log::layout::Geometry;
use crate::retention::{Due, Kept};
use crate::row::{RowState, Tombstone};
use crate::sealed::Fetch;
use crate::shard::apply::ID_AHEAD_MAX_US;
use crate::time::Quarter;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// A row that was logged again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// As it was claimed, with the place of the carry; its position is 0.
    pub claimed: Claimed,
    /// Log offset of the claim.
    pub first_at: u64,
    /// What a drop goes by. Snapshots of version 2 lack it: then it is `None` until the ledger is open.
    #[serde(skip)]
    pub standing: Option<Standing>,
}

/// What a drop goes by, of a row that was logged again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What its entries add up to.
    pub state: RowState,
    /// The corpus of the row that it refers to.
    pub refers_to: Option<Prefix>,
    /// The quarter that it counts in.
    pub effective: Quarter,
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

/// What became of a row, from a carry of another log, as one of this log holds it; and whether it is tombstoned. `moved` says where
/// an entry of the other log is in this one, `position` which position it has.
pub fn carried_elsewhere(
    change: &[u8],
    moved: impl Fn(u64) -> Option<u64>,
    is_in_open: impl Fn(u64) -> bool,
    position: impl Fn(u64) -> u64,
) -> Result<(Vec<u8>, bool), String> {
    let change: Change = postcard::from_bytes(change).map_err(|e| format!("a carry that no build writes: {e}"))?;
    let entries = change.entries_at.iter().filter_map(|at| moved(*at)).filter(|at| is_in_open(*at));
    let change = Change {
        entries_at: entries.collect(),
        entries_before: 0,
        segment_before: None,
        position: position(change.position),
        // What is not in this log is before its beginning.
        tombstone: change.tombstone.map(|stone| Tombstone { entry_at: moved(stone.entry_at).unwrap_or(0), ..stone }),
        ..change
    };
    let encoded = postcard::to_stdvec(&change).expect("what became of a row is encoded in memory");
    Ok((encoded, change.tombstone.is_some()))
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

    /// Rows that came back in a later quarter than their own, after one, whose claims may be of a quarter or of one before it.
    pub fn reactivated_through(&self, quarter: Quarter, after: Option<EventId>) -> impl Iterator<Item = EventId> + '_ {
        let end_us = quarter.end_us() + ID_AHEAD_MAX_US;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.outliving.reactivated.range((start, Bound::Unbounded)).copied();
        rows.take_while(move |id| (id.ms() as i64).saturating_mul(1_000) < end_us)
    }

    /// The first row that came back since this was asked for.
    pub(in super::super) fn take_came_back(&mut self) -> Option<EventId> {
        self.came_back.take()
    }

    pub(super) fn came_back(&mut self, event_id: EventId) {
        if self.outliving.reactivated.insert(event_id) {
            self.came_back = Some(self.came_back.map_or(event_id, |first| first.min(event_id)));
        }
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
    pub fn may_be_gone(&self, event_id: EventId) -> bool {
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

    /// How many entries of the open segment are about a row, if it changed there.
    pub(in super::super) fn entries_in_open(&self, event_id: EventId) -> Option<usize> {
        self.open.change(event_id).map(|change| change.entries_at.len())
    }

    /// What became of a row, as a carry holds it.
    pub fn carried_change(&self, row: &Found) -> Fetch<Vec<u8>> {
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
        let is_behind = change.entries_at.iter().any(|at| *at >= claimed.claim_at)
            || change.segment_before.is_some_and(|segment| segment >= self.open.number)
            || change.position >= claimed.position
            || change.entries_before > claimed.position;
        if is_behind {
            return Err(format!("a carry of {event_id} that names entries from behind itself, or more than there are"));
        }
        let claimed = Claimed { position: 0, ..claimed };
        self.outliving.carried.insert(event_id, Carried { claimed, first_at, standing: None });
        self.outliving.reactivated.insert(event_id);
        if self.open.change(event_id).is_none() {
            // Earlier builds name entries of the segment that the carry has ended.
            let before = change.entries_at.first().map(|at| self.segment_of(*at));
            let change = match before.filter(|before| *before != self.open.number) {
                Some(before) => change.gone_on_from(before),
                None => change,
            };
            self.open.noted_mut(event_id).change = Some(change);
        }
        self.restand(event_id).map_err(|unread| format!("{event_id}: {unread}"))
    }

    /// Keeps what a drop goes by of a row, if it was logged again. Of a row that has just changed everything is at hand.
    pub(in super::super) fn restand(&mut self, event_id: EventId) -> Fetch<()> {
        let Some(Carried { claimed, .. }) = self.outliving.carried.get(&event_id).copied() else { return Ok(()) };
        let found = self.found((claimed, Quarter::of(claimed.claim_timestamp_us)))?;
        let refers_to = found.canonical_id.filter(|_| found.state == RowState::Referenced).map(EventId::prefix);
        let standing = Standing { state: found.state, refers_to, effective: found.effective_quarter() };
        if let Some(carried) = self.outliving.carried.get_mut(&event_id) {
            carried.standing = Some(standing);
        }
        Ok(())
    }

    /// A row of which a snapshot of an earlier build does not say what a drop goes by.
    pub(in super::super) fn without_standing(&self) -> Option<EventId> {
        self.outliving.carried.iter().find(|(_, row)| row.standing.is_none()).map(|(id, _)| *id)
    }

    /// A tombstone of a row, where it is told why: when its own entry is gone, the carry has what that said.
    pub(super) fn told_at(&self, tombstone: Tombstone, claim_at: u64) -> Tombstone {
        let is_there = self.segment_of(tombstone.entry_at) >= self.catalog.first();
        Tombstone { entry_at: if is_there { tombstone.entry_at } else { claim_at }, ..tombstone }
    }

    /// Rows that were logged again and outlive the quarters up to one, when what is before a segment goes.
    fn staying(&self, end: u64, last: Quarter) -> impl Iterator<Item = (Quarter, &Carried, Standing)> {
        self.outliving.carried.values().filter_map(move |row| {
            let quarter = Quarter::of(row.claimed.claim_timestamp_us);
            let standing = row.standing.filter(|standing| standing.effective > last)?;
            (quarter <= last && self.segment_of(row.claimed.claim_at) >= end).then_some((quarter, row, standing))
        })
    }

    /// How many rows of quarters that go were logged again.
    pub(in super::super) fn carried_of(&self, due: Due) -> u64 {
        let rows = self.staying(due.end_segment, due.quarters.1);
        rows.filter(|(quarter, ..)| *quarter >= due.quarters.0).count() as u64
    }

    /// What stays in the control totals when what is before a segment goes: the rows that were logged again.
    pub(in super::super) fn kept_of(&self, end: u64, last: Quarter) -> Vec<Kept> {
        let mut kept: BTreeMap<(u16, Quarter), Kept> = BTreeMap::new();
        for (quarter, row, standing) in self.staying(end, last) {
            let prefix = row.claimed.event_id.prefix().get();
            let empty = || Kept { prefix, quarter, rows: [0; 4], over_budget: 0, aliases: Vec::new() };
            let of_quarter = kept.entry((prefix, quarter)).or_insert_with(empty);
            of_quarter.rows[standing.state.lifecycle() as usize] += 1;
            of_quarter.over_budget += u64::from(row.claimed.over_budget);
            if let Some(canonical) = standing.refers_to.map(Prefix::get) {
                match of_quarter.aliases.iter_mut().find(|(prefix, _)| *prefix == canonical) {
                    Some((_, count)) => *count += 1,
                    None => of_quarter.aliases.push((canonical, 1)),
                }
            }
        }
        kept.into_values().collect()
    }

    /// Rows that were logged again go with the quarter that they count in.
    pub(in super::super) fn expire_carried(&mut self, last: Quarter) {
        self.outliving.carried.retain(|_, row| row.standing.is_none_or(|standing| standing.effective > last));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carry_that_names_what_is_behind_it_is_refused() {
        let prefix = Prefix::new(1).unwrap();
        let claimed = Claimed {
            event_id: EventId::pack(1_767_225_600_000, prefix, 1),
            claim_timestamp_us: 1_767_225_600_000_000,
            claim_sequence: 1,
            occurred_at_us: 1,
            key_hash: 2,
            over_budget: false,
            incident_active: false,
            claim_at: 8_192,
            position: 7,
        };
        let right = Change {
            entries_at: vec![4_096],
            entries_before: 7,
            references: u32::MAX,
            position: 6,
            ..Change::default()
        };
        let cases = [
            (true, right.clone()),
            (true, Change { entries_before: 0, entries_at: Vec::new(), position: 0, ..right.clone() }),
            (false, Change { entries_before: 8, ..right.clone() }),
            (false, Change { entries_before: u64::MAX, ..right.clone() }),
            (false, Change { entries_at: vec![4_096, 8_192], ..right.clone() }),
            (false, Change { position: 7, ..right.clone() }),
            (false, Change { position: u64::MAX, ..right.clone() }),
            (false, Change { segment_before: Some(0), ..right.clone() }),
            (false, Change { segment_before: Some(9), ..right }),
        ];
        for (is_right, change) in cases {
            let bytes = postcard::to_stdvec(&change).unwrap();
            let mut rows = Rows::new(Geometry::DEFAULT, 1);
            let carried = rows.carry(claimed, 4_096, &bytes);
            assert_eq!(carried.is_ok(), is_right, "{change:?}: {carried:?}");
            if is_right {
                rows.refer(claimed.event_id, 12_288).expect("one more reference than can be counted");
                assert_eq!(rows.get(claimed.event_id).unwrap().map(|found| found.references), Some(u32::MAX));
            }
        }
    }
}
