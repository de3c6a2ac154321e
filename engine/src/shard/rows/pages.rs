//! Rows and entries by what they have in common, page by page.

use super::change::Change;
use super::{Claimed, Found, Rows, correlation_hash};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::row::RowState;
use crate::sealed::summary::{row_key, row_of_key};
use crate::sealed::{self, Fetch};
use crate::time::Quarter;
use hashbrown::HashSet;
use std::collections::BTreeMap;

impl Rows {
    /// Claims with an event key, the last first, from a log offset back and since a moment, at most `limit` of them. Rows that
    /// were logged again stand where they were claimed.
    fn claims_with_key(&self, key_hash: u64, from: u64, since_us: i64, limit: usize) -> Fetch<Vec<(Claimed, Quarter)>> {
        let takes = |claim: &(Claimed, Quarter)| claim.0.claim_at <= from && claim.0.claim_timestamp_us >= since_us;
        let near = self.memory().flat_map(|segment| segment.with_event_key(key_hash));
        let mut claims: Vec<_> = near.filter(takes).take(limit).collect();
        if claims.len() == limit {
            return Ok(claims);
        }
        let is_before = |sealed: &&sealed::Sealed| self.geometry.segment_start(sealed.summary.segment) <= from;
        let sealed = self.catalog.segments().iter().rev().filter(is_before).take_while(|sealed| {
            // A segment without records has no time of its own.
            sealed.summary.times_us.1 >= since_us || sealed.summary.positions.0 > sealed.summary.positions.1
        });
        let places = sealed::all(sealed.map(|sealed| self.catalog.with_event_key(sealed.summary.segment, key_hash)))?;
        let places = places.into_iter().flat_map(|places| places.into_iter().rev()).filter(|at| *at <= from);
        let far = sealed::all(places.take(limit - claims.len()).map(|at| {
            let record = self.catalog.record_at(at)?;
            self.claimed(at, record.raw())
        }))?;
        claims.extend(far.into_iter().filter(takes));
        let carried = self.carried().values().rev().filter(|row| row.claimed.key_hash == key_hash);
        let carried = carried.filter(|row| self.is_only_carried(row) && row.first_at <= from);
        let carried = carried.filter(|row| row.claimed.claim_timestamp_us >= since_us).take(limit - claims.len());
        claims.extend(carried.map(|row| {
            let claim = Claimed { claim_at: row.first_at, ..row.claimed };
            (claim, Quarter::of(claim.claim_timestamp_us))
        }));
        Ok(claims)
    }

    /// Rows with an event key, the last claimed first, from a log offset back, at most `limit` of them; and the log offset of
    /// the next one.
    pub fn find(&self, key_hash: u64, from: Option<u64>, limit: usize) -> Fetch<(Vec<Found>, Option<u64>)> {
        let mut claims = self.claims_with_key(key_hash, from.unwrap_or(u64::MAX), i64::MIN, limit + 1)?;
        let next = claims.get(limit).map(|(claim, _)| claim.claim_at);
        claims.truncate(limit);
        Ok((self.all_found(claims)?, next))
    }

    /// Rows with an event key that were claimed since a moment, the last claimed first, at most `limit` of them.
    pub fn with_key(&self, key_hash: u64, since_us: i64, limit: usize) -> Fetch<Vec<Found>> {
        self.all_found(self.claims_with_key(key_hash, u64::MAX, since_us, limit)?)
    }

    fn all_found(&self, claims: Vec<(Claimed, Quarter)>) -> Fetch<Vec<Found>> {
        sealed::all(claims.into_iter().map(|(claim, quarter)| {
            // Of a row that was logged again the place of the claim is gone.
            let carried = self.carried().get(&claim.event_id).filter(|row| self.is_only_carried(row));
            self.found((carried.map_or(claim, |row| row.claimed), quarter))
        }))
    }

    /// Log offsets of a row's entries, oldest first, from the `skip`th on, and whether there are more than `limit`.
    pub fn history(&self, found: &Found, skip: usize, limit: usize) -> Fetch<(Vec<u64>, bool)> {
        // From the newest change back to the one that has the first entry of the page. The claim is entry 0.
        let mut parts: Vec<Vec<u64>> = Vec::new();
        let mut first = 1;
        let mut next = self.newest_change(found.event_id, found.claim_at)?.map(|(_, change)| change.into_owned());
        // Of a row that was logged again entries may be gone: which one is the first on the page shows at the first that is left.
        let is_carried = self.carried().contains_key(&found.event_id);
        let is_there = |at: &u64| self.segment_of(*at) >= self.catalog.first();
        while let Some(Change { mut entries_at, entries_before, segment_before, .. }) = next.take() {
            entries_at.retain(is_there);
            parts.push(entries_at);
            first = 1 + entries_before as usize;
            if first <= skip && !is_carried {
                break;
            }
            if let Some(segment) = segment_before {
                next = self.change_in(segment, found.event_id)?;
            }
        }
        first = if is_carried { 1 } else { first };
        let claim_at = (skip == 0).then_some(found.claim_at);
        let later = parts.into_iter().rev().flatten().skip(skip.saturating_sub(first));
        let mut rest = claim_at.into_iter().chain(later);
        let page = rest.by_ref().take(limit).collect();
        Ok((page, rest.next().is_some()))
    }

    /// Log offsets of the entries that carry a correlation id, oldest first, from the `skip`th on, at most `limit`; and
    /// whether there are more. Of an id that only has the same hash there may be entries among them.
    pub fn correlated(&self, correlation_id: u128, skip: usize, limit: usize) -> Fetch<(Vec<u64>, bool)> {
        let hash = correlation_hash(correlation_id, self.secret);
        let sealed = self.catalog.segments().iter();
        let parts = sealed::all(sealed.map(|sealed| self.catalog.correlated(sealed.summary.segment, hash)))?;
        let near = self.memory().rev().flat_map(|segment| segment.correlated(correlation_id).iter().copied());
        let mut rest = parts.into_iter().flatten().chain(near).skip(skip);
        let page = rest.by_ref().take(limit).collect();
        Ok((page, rest.next().is_some()))
    }

    /// Rows that refer to others or are referred to, in the order of [`row_key`], after one.
    pub fn linked_after(&self, after: Option<EventId>, limit: usize) -> Fetch<(Vec<Found>, Option<EventId>)> {
        let after_key = after.map(row_key);
        let mut ids: BTreeMap<u128, EventId> = BTreeMap::new();
        for segment in self.memory() {
            let changed = segment.changed().map(|id| (row_key(id), id));
            ids.extend(changed.filter(|(key, _)| after_key.is_none_or(|after| *key > after)));
        }
        let segments = self.catalog.changed_segments();
        for keys in sealed::all(segments.map(|segment| self.catalog.changed_after(segment, after, limit + 1)))? {
            ids.extend(keys.into_iter().filter_map(|key| Some((key, row_of_key(key)?))));
        }
        let more = ids.len() > limit;
        let looked_at: Vec<EventId> = ids.into_values().take(limit).collect();
        let last = looked_at.last().copied().filter(|_| more);
        let found = sealed::all(looked_at.into_iter().map(|id| self.get(id)))?;
        let is_linked = |row: &Found| row.references > 0 || row.state == RowState::Referenced;
        Ok((found.into_iter().flatten().filter(is_linked).collect(), last))
    }

    /// The same, counted anew from the segments.
    pub fn count_totals(&self, prefix: Prefix) -> Fetch<Vec<(Quarter, [u64; 4])>> {
        let mut totals: BTreeMap<Quarter, [u64; 4]> = BTreeMap::new();
        for of_quarter in self.catalog.segments().iter().flat_map(|sealed| &sealed.summary.quarters) {
            if of_quarter.prefix == prefix.get() {
                totals.entry(of_quarter.quarter).or_default()[0] += of_quarter.rows;
            }
        }
        for row in self.only_carried() {
            if row.claimed.event_id.prefix() == prefix {
                totals.entry(Quarter::of(row.claimed.claim_timestamp_us)).or_default()[0] += 1;
            }
        }
        let mut changed: HashSet<EventId> = HashSet::new();
        for segment in self.memory() {
            for (quarter, rows) in segment.of_prefix(prefix.get()).into_iter().flat_map(|rows| rows.quarters()) {
                totals.entry(quarter).or_default()[0] += rows;
            }
            changed.extend(segment.changed().filter(|id| id.prefix() == prefix));
        }
        for segment in self.catalog.changed_segments() {
            let keys = self.catalog.changed_after(segment, None, usize::MAX)?;
            let of_prefix = keys.into_iter().filter(|key| key >> 112 == u128::from(prefix.get()));
            changed.extend(of_prefix.map(|key| EventId::pack((key >> 64) as u64, prefix, key as u64)));
        }
        for row in sealed::all(changed.into_iter().map(|id| self.get(id)))?.into_iter().flatten() {
            let total = totals.entry(row.quarter).or_default();
            total[0] -= 1;
            total[row.state.lifecycle() as usize] += 1;
        }
        Ok(totals.into_iter().filter(|(_, total)| total.iter().sum::<u64>() > 0).collect())
    }
}
