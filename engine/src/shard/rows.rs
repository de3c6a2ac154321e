//! The row index: for every row its id, times, event key and place in the log; and, for the few rows that changed since their
//! claim, what their entries add up to. What a row holds besides is read from the log.

use super::event_keys::{EventKeys, RowRef};
use crate::corpus::Prefix;
use crate::dispute::{DisputeId, Verdict};
use crate::id::EventId;
use crate::row::{Becomes, Lifecycle, ReasonCode, RowOperation, RowState, Tombstone, transition};
use crate::time::Quarter;
use hashbrown::HashMap;

/// A row, 64 bytes.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id_high: u64,
    id_low: u64,
    claim_timestamp_us: i64,
    occurred_at_us: i64,
    claim_at: u64,
    /// The two top bits: over budget, incident active.
    position_and_flags: u64,
    key_hash: u64,
    /// The row before it with the same event key.
    before: RowRef,
}

/// Rows that may wait to be among the event keys: enough to fetch ahead, few enough to delay nothing.
const UNINDEXED_MAX: usize = 512;
/// How many rows ahead their places are fetched.
const PREFETCH_AHEAD: usize = 16;
const FLAG_OVER_BUDGET: u64 = 1 << 63;
const FLAG_INCIDENT: u64 = 1 << 62;

impl Slot {
    fn event_id(&self) -> EventId {
        let bits = u128::from(self.id_high) << 64 | u128::from(self.id_low);
        EventId::from_u128(bits).expect("only event-ids are put into the index")
    }

    fn position(&self) -> u64 {
        self.position_and_flags & !(FLAG_OVER_BUDGET | FLAG_INCIDENT)
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
    /// When the event happened.
    pub occurred_at_us: i64,
    /// A hash of its event key.
    pub key_hash: u64,
    /// Its corpus had used up its slots.
    pub over_budget: bool,
    /// An incident was on.
    pub incident_active: bool,
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

impl CorpusRows {
    fn run_of(&self, index: usize) -> &Run {
        &self.runs[self.runs.partition_point(|run| run.first <= index) - 1]
    }
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
#[derive(Debug, Clone)]
struct Change {
    state: RowState,
    canonical_id: Option<EventId>,
    /// The dispute that has it, and what it was before.
    dispute: Option<(DisputeId, RowState)>,
    tombstone: Option<Tombstone>,
    reactivated_at_us: Option<i64>,
    /// Position of the last transition.
    position: u64,
    references: u32,
    /// Log offsets of every entry after the claim.
    entries_at: Vec<u64>,
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
        }
    }
}

/// A row with what its present state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The row.
    pub event_id: EventId,
    /// When it was claimed.
    pub claim_timestamp_us: i64,
    /// Its slot in its quarter.
    pub claim_sequence: u64,
    /// The quarter of its claim.
    pub quarter: Quarter,
    /// When the event happened.
    pub occurred_at_us: i64,
    /// A hash of its event key.
    pub key_hash: u64,
    /// Its corpus had used up its slots.
    pub over_budget: bool,
    /// An incident was on when it was claimed.
    pub incident_active: bool,
    /// Log offset of the claim's record.
    pub claim_at: u64,
    /// What its entries add up to.
    pub state: RowState,
    /// Set on aliases.
    pub canonical_id: Option<EventId>,
    /// The dispute that has it.
    pub dispute: Option<DisputeId>,
    /// Set while tombstoned.
    pub tombstone: Option<Tombstone>,
    /// When it last came back.
    pub reactivated_at_us: Option<i64>,
    /// How many references name it.
    pub references: u32,
    /// Position of the entry that made it what it is.
    pub position: u64,
}

impl Found {
    /// The quarter that it counts in: after it came back in a later quarter, the one after that.
    pub fn effective_quarter(&self) -> Quarter {
        match self.reactivation_quarter() {
            Some(reactivation) => reactivation.next(),
            None => self.quarter,
        }
    }

    /// The quarter in which it came back, when that is not its own.
    pub fn reactivation_quarter(&self) -> Option<Quarter> {
        self.reactivated_at_us.map(Quarter::of).filter(|quarter| *quarter != self.quarter)
    }

    /// When its retention of so many years is over.
    pub fn expires_at_us(&self, years: u16) -> i64 {
        self.effective_quarter().end_us_after_years(years)
    }
}

/// What else an entry does to a row, beside its transition.
#[derive(Debug, Clone, Copy)]
pub(super) enum With {
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
pub(super) struct Happened {
    pub at_us: i64,
    pub log_offset: u64,
    pub position: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Rows {
    /// By prefix.
    corpora: Vec<CorpusRows>,
    changes: HashMap<EventId, Change>,
    event_keys: EventKeys,
    /// Rows that are not among the event keys yet, in the order of their claims. Each goes to a random place of what is larger
    /// than any cache; for many at once the places are fetched while others are filled, which takes a third of the time.
    unindexed: Vec<(u64, RowRef)>,
    /// By canonical row: rows that were said to refer to it, wherever they live. Some may have been settled otherwise since.
    aliases_of: HashMap<EventId, Vec<EventId>>,
    /// Per corpus and quarter: rows that are disputed, referenced, tombstoned. The others are registered.
    changed: HashMap<(u16, Quarter), [u64; 3]>,
    /// Per corpus and quarter: rows beyond the slots.
    over_budget: HashMap<(u16, Quarter), u64>,
    count: u64,
}

impl Rows {
    fn of_prefix(&self, prefix: Prefix) -> Option<&CorpusRows> {
        self.corpora.get(usize::from(prefix.get()))
    }

    fn of_prefix_mut(&mut self, prefix: Prefix) -> &mut CorpusRows {
        let index = usize::from(prefix.get());
        if self.corpora.len() <= index {
            self.corpora.resize_with(index + 1, CorpusRows::default);
        }
        &mut self.corpora[index]
    }

    /// How many rows there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many a corpus has.
    pub fn count_of(&self, prefix: Prefix) -> u64 {
        self.of_prefix(prefix).map_or(0, |c| c.slots.len() as u64)
    }

    /// The last id that a corpus was given.
    pub fn last_id(&self, prefix: Prefix) -> Option<EventId> {
        self.of_prefix(prefix)?.slots.last().map(Slot::event_id)
    }

    /// The slot number of a corpus's next claim in `quarter`.
    pub fn next_sequence(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        let Some(rows) = self.of_prefix(prefix) else { return 1 };
        match rows.runs.last() {
            Some(run) if run.quarter == quarter => run.slot_before + (rows.slots.len() - run.first) as u64 + 1,
            _ => 1,
        }
    }

    /// Rows of a corpus and quarter beyond its slots.
    pub fn over_budget(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        self.over_budget.get(&(prefix.get(), quarter)).copied().unwrap_or(0)
    }

    /// Takes slots up to `sequence` out of what is to be given: a repair gave up the rows that had them.
    pub(super) fn raise(&mut self, prefix: Prefix, quarter: Quarter, sequence: u64) -> Result<(), String> {
        if sequence + 1 < self.next_sequence(prefix, quarter) {
            return Err(format!("slot {sequence} of prefix {prefix} is below what was given"));
        }
        let rows = self.of_prefix_mut(prefix);
        rows.runs.push(Run { quarter, first: rows.slots.len(), slot_before: sequence });
        Ok(())
    }

    /// Takes a claim in. The error says which rule it breaks.
    pub(super) fn add(&mut self, claim: Claimed, quarter: Quarter) -> Result<u64, String> {
        let prefix = claim.event_id.prefix();
        if self.next_sequence(prefix, quarter) != claim.claim_sequence {
            return Err(format!("claim_sequence {} of {} is out of turn", claim.claim_sequence, claim.event_id));
        }
        let rows = self.of_prefix_mut(prefix);
        if rows.slots.last().is_some_and(|last| last.event_id() >= claim.event_id) {
            return Err(format!("event-id {} does not follow the corpus's last one", claim.event_id));
        }
        let index = rows.slots.len();
        if claim.claim_sequence == 1 {
            rows.runs.push(Run { quarter, first: index, slot_before: 0 });
        }
        self.unindexed.push((claim.key_hash, RowRef::new(prefix.get(), index)));
        let flags =
            (u64::from(claim.over_budget) * FLAG_OVER_BUDGET) | (u64::from(claim.incident_active) * FLAG_INCIDENT);
        self.of_prefix_mut(prefix).slots.push(Slot {
            id_high: (claim.event_id.as_u128() >> 64) as u64,
            id_low: claim.event_id.as_u128() as u64,
            claim_timestamp_us: claim.claim_timestamp_us,
            occurred_at_us: claim.occurred_at_us,
            claim_at: claim.claim_at,
            position_and_flags: claim.position | flags,
            key_hash: claim.key_hash,
            before: RowRef::NONE,
        });
        if claim.over_budget {
            *self.over_budget.entry((prefix.get(), quarter)).or_default() += 1;
        }
        self.count += 1;
        if self.unindexed.len() >= UNINDEXED_MAX {
            self.index_event_keys();
        }
        Ok(index as u64)
    }

    /// The row at an index that adding it returned.
    pub fn at(&self, prefix: Prefix, index: u64) -> Option<Found> {
        let rows = self.of_prefix(prefix)?;
        (index < rows.slots.len() as u64).then(|| self.found(rows, index as usize))
    }

    /// A row by its id.
    pub fn get(&self, event_id: EventId) -> Option<Found> {
        let rows = self.of_prefix(event_id.prefix())?;
        let index = rows.slots.binary_search_by(|slot| slot.event_id().cmp(&event_id)).ok()?;
        Some(self.found(rows, index))
    }

    fn found(&self, rows: &CorpusRows, index: usize) -> Found {
        let slot = &rows.slots[index];
        let run = rows.run_of(index);
        let event_id = slot.event_id();
        let change = self.changes.get(&event_id);
        Found {
            event_id,
            claim_timestamp_us: slot.claim_timestamp_us,
            claim_sequence: run.slot_before + (index - run.first) as u64 + 1,
            quarter: run.quarter,
            occurred_at_us: slot.occurred_at_us,
            key_hash: slot.key_hash,
            over_budget: slot.position_and_flags & FLAG_OVER_BUDGET != 0,
            incident_active: slot.position_and_flags & FLAG_INCIDENT != 0,
            claim_at: slot.claim_at,
            state: change.map_or(RowState::Registered, |c| c.state),
            canonical_id: change.and_then(|c| c.canonical_id),
            dispute: change.and_then(|c| c.dispute).map(|(dispute, _)| dispute),
            tombstone: change.and_then(|c| c.tombstone),
            reactivated_at_us: change.and_then(|c| c.reactivated_at_us),
            references: change.map_or(0, |c| c.references),
            position: change.map_or(0, |c| c.position).max(slot.position()),
        }
    }

    /// Rows with an event key, the last claimed first, at most `limit` of them.
    pub fn with_key(&self, key_hash: u64, limit: usize) -> impl Iterator<Item = Found> + '_ {
        let recent = self.unindexed.iter().rev().filter(move |(hash, _)| *hash == key_hash);
        let recent = recent.filter_map(|(_, row)| row.get());
        let mut next = self.event_keys.last(key_hash);
        let indexed = std::iter::from_fn(move || {
            let (prefix, index) = next.get()?;
            next = self.corpora[usize::from(prefix)].slots[index].before;
            Some((prefix, index))
        });
        recent.chain(indexed).map(|(prefix, index)| self.found(&self.corpora[usize::from(prefix)], index)).take(limit)
    }

    /// The rows from one on that have its event key, the last claimed first. All rows are among the event keys.
    pub fn with_key_from(&self, from: RowRef) -> impl Iterator<Item = (RowRef, Found)> + '_ {
        debug_assert!(self.unindexed.is_empty(), "the last rows are not linked yet");
        let mut next = from;
        std::iter::from_fn(move || {
            let (prefix, index) = next.get()?;
            let rows = self.corpora.get(usize::from(prefix))?;
            let before = rows.slots.get(index)?.before;
            let here = std::mem::replace(&mut next, before);
            Some((here, self.found(rows, index)))
        })
    }

    /// The last row with an event key. All rows are among the event keys.
    pub fn last_with_key(&self, key_hash: u64) -> RowRef {
        self.event_keys.last(key_hash)
    }

    /// Takes the last rows in among the event keys. It changes nothing that can be seen, but how long it takes to see it.
    pub fn index_event_keys(&mut self) {
        for (n, (key_hash, row)) in self.unindexed.iter().enumerate() {
            if let Some((ahead, _)) = self.unindexed.get(n + PREFETCH_AHEAD) {
                self.event_keys.prefetch(*ahead);
            }
            let before = self.event_keys.insert(*key_hash, *row);
            if let Some((prefix, index)) = row.get() {
                self.corpora[usize::from(prefix)].slots[index].before = before;
            }
        }
        self.unindexed.clear();
    }

    /// The event key's hash of rows of a corpus from an index on, with the time of each claim and whether an incident was on.
    pub fn keys_from(&self, prefix: Prefix, index: usize) -> impl Iterator<Item = (i64, u64, bool)> + '_ {
        let slots = self.of_prefix(prefix).map_or(&[][..], |c| &c.slots);
        slots
            .iter()
            .skip(index)
            .map(|slot| (slot.claim_timestamp_us, slot.key_hash, slot.position_and_flags & FLAG_INCIDENT != 0))
    }

    /// The index of a corpus's first row claimed at or after a moment.
    pub fn first_since(&self, prefix: Prefix, at_us: i64) -> usize {
        self.of_prefix(prefix).map_or(0, |c| c.slots.partition_point(|slot| slot.claim_timestamp_us < at_us))
    }

    /// Log offsets of a row's entries, oldest first, from the `skip`th on, and whether there are more than `limit`.
    pub fn history(&self, event_id: EventId, skip: usize, limit: usize) -> Option<(Vec<u64>, bool)> {
        let claim_at = self.get(event_id)?.claim_at;
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
        let Some(rows) = self.of_prefix(prefix) else { return (Vec::new(), false) };
        let first = rows.slots.partition_point(|slot| {
            since_us.is_some_and(|since| slot.claim_timestamp_us < since)
                || after.is_some_and(|after| slot.event_id() <= after)
        });
        let end = rows.slots.partition_point(|slot| until_us.is_none_or(|until| slot.claim_timestamp_us < until));
        let (first, end) = (first.min(end), end);
        let page_end = end.min(first.saturating_add(limit));
        ((first..page_end).map(|index| self.found(rows, index)).collect(), page_end < end)
    }

    /// Rows that refer to others or are referred to, in id order, after one.
    pub fn linked_after(&self, after: Option<EventId>, limit: usize) -> (Vec<Found>, bool) {
        let is_linked = |c: &Change| c.references > 0 || c.state == RowState::Referenced;
        let mut ids: Vec<_> = self
            .changes
            .iter()
            .filter(|(id, c)| is_linked(c) && after.is_none_or(|after| **id > after))
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        let more = ids.len() > limit;
        ids.truncate(limit);
        (ids.into_iter().filter_map(|id| self.get(id)).collect(), more)
    }

    /// Rows of other corpora here that are aliases of a corpus's rows.
    pub fn aliases_of_corpus(&self, prefix: Prefix) -> u64 {
        let aliases = self.changes.values().filter(|c| c.state == RowState::Referenced);
        aliases.filter(|c| c.canonical_id.is_some_and(|id| id.prefix() == prefix)).count() as u64
    }

    /// Rows that were said to refer to this one.
    pub fn aliases_of(&self, canonical: EventId) -> &[EventId] {
        self.aliases_of.get(&canonical).map_or(&[], Vec::as_slice)
    }

    /// Records that a row was said to refer to one that may live here.
    pub(super) fn alias_named(&mut self, canonical: EventId, alias: EventId) {
        let aliases = self.aliases_of.entry(canonical).or_default();
        if !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }

    /// Rows of a corpus by quarter and lifecycle, in the order of [`Lifecycle::LOGGED`].
    pub fn totals(&self, prefix: Prefix) -> Vec<(Quarter, [u64; 4])> {
        let Some(rows) = self.of_prefix(prefix) else { return Vec::new() };
        let mut totals: Vec<(Quarter, [u64; 4])> = Vec::new();
        for (i, run) in rows.runs.iter().enumerate() {
            let end = rows.runs.get(i + 1).map_or(rows.slots.len(), |next| next.first);
            let count = (end - run.first) as u64;
            // A repair leaves runs without rows.
            if count == 0 {
                continue;
            }
            match totals.last_mut() {
                Some((quarter, total)) if *quarter == run.quarter => total[0] += count,
                _ => totals.push((run.quarter, [count, 0, 0, 0])),
            }
        }
        for (quarter, total) in &mut totals {
            if let Some(changed) = self.changed.get(&(prefix.get(), *quarter)) {
                total[0] -= changed.iter().sum::<u64>();
                total[1..].copy_from_slice(changed);
            }
        }
        totals
    }

    /// The same, counted anew from every row.
    pub fn count_totals(&self, prefix: Prefix) -> Vec<(Quarter, [u64; 4])> {
        let Some(rows) = self.of_prefix(prefix) else { return Vec::new() };
        let mut totals: Vec<(Quarter, [u64; 4])> = Vec::new();
        for index in 0..rows.slots.len() {
            let found = self.found(rows, index);
            if totals.last().is_none_or(|(quarter, _)| *quarter != found.quarter) {
                totals.push((found.quarter, [0; 4]));
            }
            if let Some((_, total)) = totals.last_mut() {
                total[found.state.lifecycle() as usize] += 1;
            }
        }
        totals
    }

    /// Records that a corpus refers to the row.
    pub(super) fn refer(&mut self, event_id: EventId, log_offset: u64) -> Result<(), String> {
        let found = self.get(event_id);
        if found.and_then(|found| transition(found.state, RowOperation::Reference)).is_none() {
            return Err(format!("a reference to {event_id}, which is {}", state_name(found)));
        }
        let change = self.changes.entry(event_id).or_default();
        change.references += 1;
        change.entries_at.push(log_offset);
        Ok(())
    }

    /// Records an entry that concerns a row and leaves it what it is. A row of another shard has none here.
    pub(super) fn concern(&mut self, event_id: EventId, log_offset: u64) {
        if self.get(event_id).is_some() {
            self.changes.entry(event_id).or_default().entries_at.push(log_offset);
        }
    }

    /// Does to a row what an operation does. The error says why it does not apply.
    pub(super) fn transit(
        &mut self,
        event_id: EventId,
        operation: RowOperation,
        with: With,
        happened: Happened,
    ) -> Result<(), String> {
        let Some(found) = self.get(event_id) else {
            return Err(format!("{} of {event_id}, which is not there", operation.name()));
        };
        let Some(becomes) = transition(found.state, operation) else {
            return Err(format!("{} of {event_id}, which is {}", operation.name(), found.state.name()));
        };
        let change = self.changes.entry(event_id).or_default();
        let was = change.state;
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
        let now = change.state;
        let counts = self.changed.entry((event_id.prefix().get(), found.quarter)).or_default();
        if was != RowState::Registered {
            counts[was.lifecycle() as usize - 1] -= 1;
        }
        if now != RowState::Registered {
            counts[now.lifecycle() as usize - 1] += 1;
        }
        Ok(())
    }

    /// Does to a row of a dispute what the verdict says.
    pub(super) fn settle(
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
}

fn state_name(found: Option<Found>) -> &'static str {
    found.map_or("not there", |found| found.state.name())
}
