//! What became of rows: what a segment's records say of each, and what an entry does to one.
//!
//! What a segment says of a row that changed in it is complete: the newest one counts, and leads back to the one before.

use super::{Found, Rows};
use crate::dispute::{DisputeId, Verdict};
use crate::id::EventId;
use crate::log::superblock::COUNT_MAX;
use crate::row::{Becomes, Lifecycle, ReasonCode, RowOperation, RowState, Tombstone, transition};
use crate::sealed::{Fetch, Unread};
use crate::time::Quarter;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What the entries after its claim made of a row, up to the end of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    pub state: RowState,
    pub canonical_id: Option<EventId>,
    /// The dispute that has it, and what it was before.
    pub dispute: Option<(DisputeId, RowState)>,
    pub tombstone: Option<Tombstone>,
    pub reactivated_at_us: Option<i64>,
    /// Position of the last transition.
    pub position: u64,
    pub references: u32,
    /// Log offsets of the entries after the claim, in this segment.
    pub entries_at: Vec<u64>,
    /// Entries after the claim in segments before this one, and the last of those segments that has any.
    pub entries_before: u64,
    pub segment_before: Option<u64>,
}

impl Default for Change {
    fn default() -> Change {
        Change {
            state: RowState::Registered,
            canonical_id: None,
            dispute: None,
            tombstone: None,
            reactivated_at_us: None,
            position: 0,
            references: 0,
            entries_at: Vec::new(),
            entries_before: 0,
            segment_before: None,
        }
    }
}

/// What a segment's records say about a row, beside its claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Noted {
    /// What became of it.
    pub change: Option<Change>,
    /// Rows that were said to refer to it, wherever they live. Some may have been settled otherwise since.
    pub aliases: Vec<EventId>,
}

/// What else an entry does to a row, beside its transition.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum With {
    /// Nothing.
    Nothing,
    /// Retraction.
    Reason(ReasonCode),
    /// The row that stands for the event.
    Canonical(EventId),
    /// The dispute that takes it.
    Dispute(DisputeId),
}

/// An entry as it concerns a row.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Happened {
    pub at_us: i64,
    pub log_offset: u64,
    pub position: u64,
}

impl Change {
    /// The same for a later segment than the one that has it.
    pub fn gone_on_from(self, segment: u64) -> Change {
        let entries_before = self.entries_before + self.entries_at.len() as u64;
        Change { entries_at: Vec::new(), entries_before, segment_before: Some(segment), ..self }
    }

    /// The row that an alias refers to.
    pub fn alias_of(&self) -> Option<EventId> {
        self.canonical_id.filter(|_| self.state == RowState::Referenced)
    }
}

impl Rows {
    /// The newest change of a row that was claimed at a log offset, with the segment that has it; nothing before the row's own
    /// segment is looked at.
    pub(super) fn newest_change(&self, event_id: EventId, claim_at: u64) -> Fetch<Option<(u64, Cow<'_, Change>)>> {
        for segment in self.memory() {
            if let Some(change) = segment.change(event_id) {
                return Ok(Some((segment.number, Cow::Borrowed(change))));
            }
        }
        for found in self.catalog.changes_of(event_id, self.segment_of(claim_at)) {
            let (segment, bytes) = found?;
            if let Some(change) = decode_noted(segment, &bytes)?.change {
                return Ok(Some((segment, Cow::Owned(change))));
            }
        }
        Ok(None)
    }

    pub(super) fn change_in(&self, segment: u64, event_id: EventId) -> Fetch<Option<Change>> {
        if let Some(rows) = self.memory().find(|rows| rows.number == segment) {
            return Ok(rows.change(event_id).cloned());
        }
        match self.catalog.change_in(segment, event_id)? {
            Some(bytes) => Ok(decode_noted(segment, &bytes)?.change),
            None => Ok(None),
        }
    }

    /// Whether everything that applying to a row takes is at hand.
    pub(in super::super) fn is_at_hand(&self, event_id: EventId) -> Fetch<()> {
        self.get(event_id).map(|_| ())
    }

    /// A row that an entry which is being applied concerns: it was made sure before that it is at hand.
    pub(super) fn near(&self, event_id: EventId) -> Result<Option<Found>, String> {
        self.get(event_id).map_err(|unread| format!("{event_id}: {unread}"))
    }

    /// What became of a row, to go on from in the open segment.
    pub(super) fn change_mut(&mut self, row: &Found) -> Result<&mut Change, String> {
        let event_id = row.event_id;
        if self.open.change(event_id).is_none() {
            let before =
                self.newest_change(event_id, row.claim_at).map_err(|unread| format!("{event_id}: {unread}"))?;
            let change = match before {
                None => Change::default(),
                Some((segment, before)) => before.into_owned().gone_on_from(segment),
            };
            self.open.noted_mut(event_id).change = Some(change);
        }
        Ok(self.open.noted_mut(event_id).change.get_or_insert_default())
    }

    /// Records that a corpus refers to the row.
    pub(in super::super) fn refer(&mut self, event_id: EventId, log_offset: u64) -> Result<(), String> {
        let found = self.near(event_id)?;
        if found.is_none() && self.may_be_gone(event_id) {
            return Ok(());
        }
        let Some(row) = found.filter(|row| transition(row.state, RowOperation::Reference).is_some()) else {
            return Err(format!("a reference to {event_id}, which is {}", state_name(found)));
        };
        let change = self.change_mut(&row)?;
        change.references = change.references.saturating_add(1);
        change.entries_at.push(log_offset);
        Ok(())
    }

    /// Records an entry that concerns a row and leaves it what it is. A row of another shard has none here.
    pub(in super::super) fn concern(&mut self, event_id: EventId, log_offset: u64) -> Result<(), String> {
        if let Some(row) = self.near(event_id)? {
            self.change_mut(&row)?.entries_at.push(log_offset);
        }
        Ok(())
    }

    /// Does to a row what an operation does. The error says why it does not apply.
    pub(in super::super) fn transit(
        &mut self,
        event_id: EventId,
        operation: RowOperation,
        with: With,
        happened: Happened,
    ) -> Result<(), String> {
        let Some(found) = self.near(event_id)? else {
            if self.may_be_gone(event_id) {
                return Ok(());
            }
            return Err(format!("{} of {event_id}, which is not there", operation.name()));
        };
        let Some(becomes) = transition(found.state, operation) else {
            return Err(format!("{} of {event_id}, which is {}", operation.name(), found.state.name()));
        };
        let change = self.change_mut(&found)?;
        let (was, referred_to) = (change.state, change.alias_of());
        change.state = match (becomes, change.dispute) {
            (Becomes::State(state), _) => state,
            (Becomes::WhatItWas, Some((_, before))) => before,
            (Becomes::WhatItWas, None) => return Err(format!("{event_id} was nothing before its dispute")),
        };
        change.position = happened.position;
        change.entries_at.push(happened.log_offset);
        match operation {
            RowOperation::Reactivate => change.reactivated_at_us = Some(happened.at_us),
            RowOperation::Dispute => {}
            // What it refers to is known again when the dispute comes to nothing.
            RowOperation::Void => {}
            _ => change.canonical_id = None,
        }
        let mut reason_code = None;
        match with {
            With::Nothing => {}
            With::Reason(code) => reason_code = Some(code),
            With::Canonical(canonical) => change.canonical_id = Some(canonical),
            With::Dispute(dispute) => change.dispute = Some((dispute, was)),
        }
        if operation != RowOperation::Dispute {
            change.dispute = None;
        }
        change.tombstone = (change.state.lifecycle() == Lifecycle::Tombstoned).then_some(Tombstone {
            at_us: happened.at_us,
            reason_code,
            entry_at: happened.log_offset,
        });
        let (now, refers_to) = (change.state, change.alias_of());
        self.restand(event_id).map_err(|unread| format!("{event_id}: {unread}"))?;
        self.tallies.changed(event_id.prefix(), found.quarter, was, now);
        self.tallies.aliased(found.quarter, referred_to, refers_to);
        if operation == RowOperation::Reactivate && Quarter::of(happened.at_us) != found.quarter {
            self.came_back(event_id);
        }
        Ok(())
    }

    /// Does to a row of a dispute what the verdict says.
    pub(in super::super) fn settle(
        &mut self,
        event_id: EventId,
        verdict: Verdict,
        canonical: Option<EventId>,
        happened: Happened,
    ) -> Result<(), String> {
        let with = match (verdict, canonical) {
            (Verdict::References, Some(canonical)) => With::Canonical(canonical),
            (Verdict::References, None) => return Err(format!("the verdict on {event_id} names no canonical row")),
            _ => With::Nothing,
        };
        self.transit(event_id, verdict.row_operation(), with, happened)
    }

    /// Rows that were said to refer to this one.
    pub fn aliases_of(&self, canonical: EventId) -> Fetch<Vec<EventId>> {
        let mut aliases = Vec::new();
        for found in self.catalog.changes_of(canonical, 0) {
            let (segment, bytes) = found?;
            aliases.extend(decode_noted(segment, &bytes)?.aliases);
        }
        for segment in self.memory() {
            aliases.extend(segment.noted(canonical).into_iter().flat_map(|noted| &noted.aliases));
        }
        Ok(aliases)
    }

    /// Records that a row was said to refer to one that may live here.
    pub(in super::super) fn alias_named(&mut self, canonical: EventId, alias: EventId) {
        let aliases = &mut self.open.noted_mut(canonical).aliases;
        if !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }
}

/// What a segment says of a row, of which here only its aliases are known: the rest is taken from what an index has. `None` if
/// that is not what a build writes.
pub fn with_change_of(known: &[u8], index: &[u8]) -> Option<Vec<u8>> {
    let (mut known, index): (Noted, Noted) = (postcard::from_bytes(known).ok()?, postcard::from_bytes(index).ok()?);
    known.change = known.change.or(index.change);
    postcard::to_stdvec(&known).ok()
}

pub(super) fn decode_noted(segment: u64, bytes: &[u8]) -> Fetch<Noted> {
    let noted = postcard::from_bytes(bytes).ok().filter(|noted: &Noted| {
        let change = noted.change.as_ref();
        // What was before it is in segments before it, so that going back ends.
        change.is_none_or(|change| {
            change.segment_before.is_none_or(|before| before < segment) && change.entries_before <= COUNT_MAX
        })
    });
    noted.ok_or_else(|| Unread::Damaged(format!("the index of segment {segment} holds a change that no build writes")))
}

fn state_name(found: Option<Found>) -> &'static str {
    found.map_or("not there", |found| found.state.name())
}
