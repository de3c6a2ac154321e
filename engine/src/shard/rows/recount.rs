//! The control totals of a log that is read from its beginning, counted anew without its rows: claims by what segments say they
//! have, and what became of them segment by segment, while a segment's changes are in memory.

use super::{Rows, SegmentRows};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::row::RowState;
use crate::sealed::Fetch;
use crate::time::Quarter;
use std::collections::BTreeMap;

/// By how much more rows of a corpus and quarter have each lifecycle than when all were registered.
#[derive(Debug, Default)]
pub struct Recount {
    changed: BTreeMap<(u16, Quarter), [i64; 4]>,
}

impl Recount {
    /// A row of a quarter is another thing than it was.
    pub fn changed(&mut self, prefix: Prefix, quarter: Quarter, was: RowState, is: RowState) {
        let counts = self.changed.entry((prefix.get(), quarter)).or_default();
        counts[was.lifecycle() as usize] -= 1;
        counts[is.lifecycle() as usize] += 1;
    }
}

impl Rows {
    /// The quarter in which a row was claimed, what it was before a segment in memory, and what it was behind it; `None` of rows that
    /// did not change there, or are gone.
    pub fn change_of(&self, segment: &SegmentRows, event_id: EventId) -> Fetch<Option<(Quarter, RowState, RowState)>> {
        let Some(change) = segment.change(event_id) else { return Ok(None) };
        let was = match change.segment_before {
            Some(before) => self.change_in(before, event_id)?.map_or(RowState::Registered, |change| change.state),
            None => RowState::Registered,
        };
        Ok(self.quarter_of(event_id)?.map(|quarter| (quarter, was, change.state)))
    }

    /// The quarter in which a row was claimed. It is read only where its segment has several.
    fn quarter_of(&self, event_id: EventId) -> Fetch<Option<Quarter>> {
        if let Some((_, quarter)) = self.memory().find_map(|segment| segment.claimed(event_id)) {
            return Ok(Some(quarter));
        }
        let prefix = event_id.prefix().get();
        if let Some(sealed) = self.catalog.segment_of_row(event_id).and_then(|segment| self.catalog.segment(segment)) {
            let mut quarters = sealed.summary.quarters.iter().filter(|rows| rows.prefix == prefix);
            if let (Some(only), None) = (quarters.next(), quarters.next()) {
                return Ok(Some(only.quarter));
            }
        }
        Ok(self.get(event_id)?.map(|row| row.quarter))
    }

    /// Rows of a corpus by quarter and lifecycle, in the order of [`Lifecycle::LOGGED`](crate::row::Lifecycle::LOGGED), by what the
    /// segments have, what was counted of the changes in each of them, and what rows are that were logged again.
    pub fn counted_anew(
        &self,
        recount: &Recount,
        prefix: Prefix,
        carried: &[(Quarter, RowState)],
    ) -> Vec<(Quarter, [u64; 4])> {
        let mut totals: BTreeMap<Quarter, [i64; 4]> = BTreeMap::new();
        let sealed = self.catalog.segments().iter().flat_map(|sealed| &sealed.summary.quarters);
        for of_quarter in sealed.filter(|of_quarter| of_quarter.prefix == prefix.get()) {
            totals.entry(of_quarter.quarter).or_default()[0] += of_quarter.rows as i64;
        }
        for rows in self.memory().filter_map(|segment| segment.of_prefix(prefix.get())) {
            rows.quarters().for_each(|(quarter, rows)| totals.entry(quarter).or_default()[0] += rows as i64);
        }
        // Of dropped quarters nothing is left but what was logged again.
        let of_prefix = (prefix.get(), Quarter::MIN)..=(prefix.get(), Quarter::MAX);
        let changed = recount.changed.range(of_prefix);
        for ((_, quarter), counts) in changed.filter(|((_, quarter), _)| quarter.end_us() > self.gone_before_us()) {
            let total = totals.entry(*quarter).or_default();
            total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        }
        for (quarter, state) in carried {
            totals.entry(*quarter).or_default()[state.lifecycle() as usize] += 1;
        }
        let counted = totals.into_iter().filter(|(_, total)| *total != [0; 4]);
        counted.map(|(quarter, total)| (quarter, total.map(|rows| rows.max(0) as u64))).collect()
    }

    /// Rows that changed in a segment in memory.
    pub fn changed_in(&self, segment: &SegmentRows) -> Vec<EventId> {
        segment.changed().collect()
    }

    /// Segments in memory, the oldest first.
    pub fn segments_in_memory(&self) -> impl Iterator<Item = &SegmentRows> {
        self.memory().rev()
    }
}
