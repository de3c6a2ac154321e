//! The row index: for every row its id, time and place in the log; and, for the few rows that changed since their claim,
//! what their entries add up to. What a row holds besides is read from the log.

use crate::corpus::Prefix;
use crate::id::EventId;
use crate::row::{Lifecycle, ReasonCode, RowView, Tombstone};
use crate::time::Quarter;
use hashbrown::HashMap;

/// A row, 40 bytes.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id_high: u64,
    id_low: u64,
    claim_timestamp_us: i64,
    claim_at: u64,
    position: u64,
}

impl Slot {
    fn event_id(&self) -> EventId {
        let bits = u128::from(self.id_high) << 64 | u128::from(self.id_low);
        EventId::from_u128(bits).expect("only event-ids are put into the index")
    }
}

/// A claim as the index takes it.
#[derive(Debug, Clone, Copy)]
pub struct Claimed {
    /// The id.
    pub event_id: EventId,
    /// When.
    pub claim_timestamp_us: i64,
    /// Its slot in the quarter.
    pub claim_sequence: u64,
    /// Log offset of its record.
    pub claim_at: u64,
    /// Position of its record.
    pub position: u64,
}

/// The rows of one corpus. Ids, times and positions all increase, so the vector is its own index.
#[derive(Debug, Default)]
struct CorpusRows {
    slots: Vec<Slot>,
    /// Rows whose slots follow one another without a gap: those of a quarter, and what a repair left of one.
    runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    quarter: Quarter,
    /// The index of its first row.
    first: usize,
    /// The slot before its first.
    slot_before: u64,
}

/// What the entries after its claim made of a row.
#[derive(Debug, Clone, Default)]
struct Change {
    tombstone: Option<Tombstone>,
    reactivated_at_us: Option<i64>,
    /// Position of the last transition.
    position: u64,
    /// Log offsets of every entry after the claim.
    entries_at: Vec<u64>,
}

/// A row with what its present state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The row.
    pub view: RowView,
    /// Position of the entry that made it what it is.
    pub position: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Rows {
    /// By prefix.
    corpora: HashMap<u16, CorpusRows>,
    changes: HashMap<EventId, Change>,
    count: u64,
}

impl Rows {
    /// How many rows there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many a corpus has.
    pub fn count_of(&self, prefix: Prefix) -> u64 {
        self.corpora.get(&prefix.get()).map_or(0, |c| c.slots.len() as u64)
    }

    /// The last id that a corpus was given.
    pub fn last_id(&self, prefix: Prefix) -> Option<EventId> {
        self.corpora.get(&prefix.get())?.slots.last().map(Slot::event_id)
    }

    /// The slot number of a corpus's next claim in `quarter`.
    pub fn next_sequence(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        let Some(rows) = self.corpora.get(&prefix.get()) else { return 1 };
        match rows.runs.last() {
            Some(run) if run.quarter == quarter => run.slot_before + (rows.slots.len() - run.first) as u64 + 1,
            _ => 1,
        }
    }

    /// Takes slots up to `sequence` out of what is to be given: a repair gave up the rows that had them.
    pub(super) fn raise(&mut self, prefix: Prefix, quarter: Quarter, sequence: u64) -> Result<(), String> {
        if sequence + 1 < self.next_sequence(prefix, quarter) {
            return Err(format!("slot {sequence} of prefix {prefix} is below what was given"));
        }
        let rows = self.corpora.entry(prefix.get()).or_default();
        rows.runs.push(Run { quarter, first: rows.slots.len(), slot_before: sequence });
        Ok(())
    }

    /// Takes a claim in. The error says which rule it breaks.
    pub(super) fn add(&mut self, claim: Claimed, quarter: Quarter) -> Result<u64, String> {
        let prefix = claim.event_id.prefix();
        if self.last_id(prefix).is_some_and(|last| last >= claim.event_id) {
            return Err(format!("event-id {} does not follow the corpus's last one", claim.event_id));
        }
        if self.next_sequence(prefix, quarter) != claim.claim_sequence {
            return Err(format!("claim_sequence {} of {} is out of turn", claim.claim_sequence, claim.event_id));
        }
        let rows = self.corpora.entry(prefix.get()).or_default();
        if claim.claim_sequence == 1 {
            rows.runs.push(Run { quarter, first: rows.slots.len(), slot_before: 0 });
        }
        rows.slots.push(Slot {
            id_high: (claim.event_id.as_u128() >> 64) as u64,
            id_low: claim.event_id.as_u128() as u64,
            claim_timestamp_us: claim.claim_timestamp_us,
            claim_at: claim.claim_at,
            position: claim.position,
        });
        self.count += 1;
        Ok(rows.slots.len() as u64 - 1)
    }

    /// The claim at an index that adding it returned.
    pub fn claim(&self, prefix: Prefix, index: u64) -> Option<Claimed> {
        let rows = self.corpora.get(&prefix.get())?;
        let slot = rows.slots.get(index as usize)?;
        let run = rows.runs[rows.runs.partition_point(|run| run.first <= index as usize) - 1];
        Some(Claimed {
            event_id: slot.event_id(),
            claim_timestamp_us: slot.claim_timestamp_us,
            claim_sequence: run.slot_before + (index as usize - run.first) as u64 + 1,
            claim_at: slot.claim_at,
            position: slot.position,
        })
    }

    /// A row by its id.
    pub fn get(&self, event_id: EventId) -> Option<Found> {
        let rows = self.corpora.get(&event_id.prefix().get())?;
        let index = rows.slots.binary_search_by(|slot| slot.event_id().cmp(&event_id)).ok()?;
        Some(self.found(&rows.slots[index]))
    }

    fn found(&self, slot: &Slot) -> Found {
        let event_id = slot.event_id();
        let change = self.changes.get(&event_id);
        let tombstone = change.and_then(|c| c.tombstone);
        let view = RowView {
            event_id,
            claim_at: slot.claim_at,
            lifecycle: if tombstone.is_some() { Lifecycle::Tombstoned } else { Lifecycle::Registered },
            tombstone,
            reactivated_at_us: change.and_then(|c| c.reactivated_at_us),
        };
        Found { view, position: change.map_or(slot.position, |c| c.position.max(slot.position)) }
    }

    /// Log offsets of a row's entries, oldest first, from the `skip`th on, and whether there are more than `limit`.
    pub fn history(&self, event_id: EventId, skip: usize, limit: usize) -> Option<(Vec<u64>, bool)> {
        let claim_at = self.get(event_id)?.view.claim_at;
        let later = self.changes.get(&event_id).map_or(&[][..], |c| &c.entries_at);
        let mut entries = std::iter::once(claim_at).chain(later.iter().copied()).skip(skip);
        let page = entries.by_ref().take(limit).collect();
        Some((page, entries.next().is_some()))
    }

    /// Rows of a corpus in id order with claim_timestamp in `[since, until)`, after an id; and whether there are more.
    pub fn scan(
        &self,
        prefix: Prefix,
        since_us: Option<i64>,
        until_us: Option<i64>,
        after: Option<EventId>,
        limit: usize,
    ) -> (Vec<Found>, bool) {
        let Some(rows) = self.corpora.get(&prefix.get()) else { return (Vec::new(), false) };
        let first = rows.slots.partition_point(|slot| {
            since_us.is_some_and(|since| slot.claim_timestamp_us < since)
                || after.is_some_and(|after| slot.event_id() <= after)
        });
        let end = rows.slots.partition_point(|slot| until_us.is_none_or(|until| slot.claim_timestamp_us < until));
        let selected = &rows.slots[first.min(end)..end];
        let page = &selected[..limit.min(selected.len())];
        (page.iter().map(|slot| self.found(slot)).collect(), page.len() < selected.len())
    }

    fn change(&mut self, event_id: EventId, entry_at: u64) -> &mut Change {
        let change = self.changes.entry(event_id).or_default();
        change.entries_at.push(entry_at);
        change
    }

    /// Records that a corpus refers to the row.
    pub(super) fn refer(&mut self, event_id: EventId, entry_at: u64) -> Result<(), String> {
        match self.get(event_id) {
            Some(found) if found.view.lifecycle == Lifecycle::Registered => {
                self.change(event_id, entry_at);
                Ok(())
            }
            other => Err(format!("a reference to {event_id}, which is {}", state_name(other))),
        }
    }

    /// registered → tombstoned.
    pub(super) fn tombstone(
        &mut self,
        event_id: EventId,
        reason_code: ReasonCode,
        at_us: i64,
        entry_at: u64,
        position: u64,
    ) -> Result<(), String> {
        match self.get(event_id) {
            Some(found) if found.view.lifecycle == Lifecycle::Registered => {
                let change = self.change(event_id, entry_at);
                change.tombstone = Some(Tombstone { at_us, reason_code, entry_at });
                change.position = position;
                Ok(())
            }
            other => Err(format!("a tombstone on {event_id}, which is {}", state_name(other))),
        }
    }

    /// tombstoned → registered.
    pub(super) fn reactivate(
        &mut self,
        event_id: EventId,
        at_us: i64,
        entry_at: u64,
        position: u64,
    ) -> Result<(), String> {
        match self.get(event_id) {
            Some(found) if found.view.lifecycle == Lifecycle::Tombstoned => {
                let change = self.change(event_id, entry_at);
                change.tombstone = None;
                change.reactivated_at_us = Some(at_us);
                change.position = position;
                Ok(())
            }
            other => Err(format!("a reactivation of {event_id}, which is {}", state_name(other))),
        }
    }
}

fn state_name(found: Option<Found>) -> &'static str {
    found.map_or("not there", |found| found.view.lifecycle.name())
}
