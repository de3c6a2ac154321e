//! What a shard remembers of the passes of reconciliation: how far they have covered its rows, and what changed since.

use super::Shard;
use super::keys;
use super::rows::Found;
use crate::command::{Fact, RowFact};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::log::entry::{PassCounts, PassPhase};
use crate::peer::{Answer, Ask, Candidate, DueAfter, Link, Sought};
use crate::policy::settings;
use crate::row::{Lifecycle, ReconciliationState, RowState, RowView};
use crate::sealed::{self, Fetch};
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Rows looked at for one page of event keys.
const DUE_ROWS_MAX: usize = 4_096;
/// Rows of one event key that a shard names; a key with more is left alone.
pub const KEY_ROWS_MAX: usize = 4_096;
/// Rows of a page of links.
const LINKED_ROWS_MAX: usize = 1_024;
/// Barriers that are remembered until a pass has covered what they hold back.
const BARRIERS_MAX: usize = 4_096;

/// A pass that has begun, or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassMark {
    /// Its number.
    pub pass: u64,
    /// The moment that it goes by.
    pub at_us: i64,
    /// Position of its first entry.
    pub position: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Passes {
    begun: Option<PassMark>,
    done: Option<PassMark>,
    /// By number: when the passes that ended were, and what they counted, for as long as a key may ask for it.
    ended: BTreeMap<u64, (i64, PassCounts)>,
    /// Positions of changes of rows after their claim, with the row's event key, since the last pass that ended. One entry
    /// may change several rows.
    changed: BTreeSet<(u64, u64)>,
    /// Position of an entry after which every row is to be looked at again.
    everything_since: Option<u64>,
    /// Barriers that may still hold rows back.
    barriers: Vec<i64>,
}

impl Passes {
    /// The last pass that began.
    pub fn begun(&self) -> Option<PassMark> {
        self.begun
    }

    /// The last pass that ended.
    pub fn done(&self) -> Option<PassMark> {
        self.done
    }

    /// Whether a pass has begun that has not ended.
    pub fn is_under_way(&self) -> bool {
        self.begun.map(|mark| mark.pass) != self.done.map(|mark| mark.pass)
    }

    /// The moment that an ended pass went by, and what it counted.
    pub fn ended(&self, pass: u64) -> Option<(i64, PassCounts)> {
        self.ended.get(&pass).copied()
    }

    pub(super) fn changed(&mut self, found: &Found, position: u64) {
        self.changed.insert((position, found.key_hash));
    }

    pub(super) fn everything_again(&mut self, position: u64) {
        self.everything_since = Some(position);
    }

    pub(super) fn barrier(&mut self, at_us: i64) {
        // What a pass has covered since, whatever windows a policy gives, is held back no more.
        let covered_us = self.done.map_or(i64::MIN, |done| done.at_us);
        self.barriers.retain(|barrier| barrier + settings::WINDOW_US.end() > covered_us);
        if self.barriers.len() == BARRIERS_MAX {
            self.barriers.remove(0);
        }
        self.barriers.push(at_us);
    }

    pub(super) fn apply(&mut self, phase: PassPhase, mark: PassMark, counts: PassCounts) -> Result<(), String> {
        match phase {
            PassPhase::Begin => {
                self.begun = Some(mark);
            }
            PassPhase::Merge => {}
            PassPhase::Done => {
                let begun = self.begun.filter(|begun| begun.pass == mark.pass);
                let begun = begun.ok_or_else(|| format!("pass {} ends and never began", mark.pass))?;
                self.changed = self.changed.split_off(&(begun.position, 0));
                if self.everything_since.is_some_and(|since| since < begun.position) {
                    self.everything_since = None;
                }
                self.done = Some(begun);
                self.ended.insert(begun.pass, (begun.at_us, counts));
                self.ended.retain(|_, (at_us, _)| *at_us + keys::WINDOW_US + keys::KEY_AHEAD_MAX_US >= begun.at_us);
            }
        }
        Ok(())
    }
}

impl Shard {
    /// The largest budget over the pairs that start at a corpus: how long its rows wait.
    pub(super) fn window_us(&self, prefix: Prefix, incident: bool) -> i64 {
        let Some(corpus) = self.registry.of_prefix(prefix) else { return self.policy.window_max_us() };
        let others = self.registry.corpora().iter().filter(|c| c.prefix != prefix).map(|c| c.name.as_str());
        self.policy.window_us(&corpus.name, others, incident)
    }

    /// When a row's window closes: a barrier holds back what was claimed around it.
    fn closes_at_us(&self, claimed_us: i64, window_us: i64) -> i64 {
        let held = self.passes.barriers.iter().filter(|barrier| (claimed_us - **barrier).abs() <= window_us);
        held.fold(claimed_us + window_us, |closes, barrier| closes.max(barrier + window_us))
    }

    fn is_closed(&self, row: &Found, at_us: i64) -> bool {
        self.closes_at_us(row.claim_timestamp_us, self.window_us(row.event_id.prefix(), row.incident_active)) <= at_us
    }

    /// Whether a row's retention is over at a moment.
    pub(super) fn is_expired(&self, row: &Found, at_us: i64) -> bool {
        // The years are looked up only for rows that may be that old.
        let years = self.policy.retention_years();
        at_us - row.claim_timestamp_us > i64::from(years) * 365 * crate::time::DAY_US
            && row.expires_at_us(years) <= at_us
    }

    /// A row as everybody sees it at the time of the last entry.
    pub fn view(&self, row: &Found) -> RowView {
        self.view_at(row, self.last_us)
    }

    /// A row as everybody sees it at a moment.
    pub fn view_at(&self, row: &Found, at_us: i64) -> RowView {
        let is_expired = self.is_expired(row, at_us);
        let reconciliation = match row.state {
            RowState::Disputed | RowState::TombstonedByArbitration => ReconciliationState::Disputed,
            RowState::Retracted => ReconciliationState::Tombstoned,
            RowState::Referenced => ReconciliationState::Clean,
            RowState::Registered => match self.passes.done {
                Some(done) if row.position < done.position && self.is_closed(row, done.at_us) => {
                    ReconciliationState::Clean
                }
                _ => ReconciliationState::Pending,
            },
        };
        RowView {
            event_id: row.event_id,
            claim_at: row.claim_at,
            state: row.state,
            lifecycle: if is_expired { Lifecycle::Expired } else { row.state.lifecycle() },
            canonical_id: row.canonical_id.filter(|_| row.state == RowState::Referenced),
            dispute: row.dispute,
            tombstone: row.tombstone,
            reactivated_at_us: row.reactivated_at_us,
            effective_quarter: row.effective_quarter(),
            reactivation_quarter: row.reactivation_quarter(),
            retention_expires_at_us: row.expires_at_us(self.policy.retention_years()),
            over_budget: row.over_budget,
            incident_active: row.incident_active,
            reconciliation,
            references: row.references,
        }
    }

    /// What is known of a row, for another shard.
    pub fn fact(&self, event_id: EventId) -> Fetch<Fact> {
        Ok(Fact { event_id, row: self.rows.get(event_id)?.map(|row| self.row_fact(&row)) })
    }

    fn row_fact(&self, row: &Found) -> RowFact {
        RowFact {
            state: row.state,
            expires_at_us: row.expires_at_us(self.policy.retention_years()),
            canonical_id: row.canonical_id.filter(|_| row.state == RowState::Referenced),
            claim_timestamp_us: row.claim_timestamp_us,
            occurred_at_us: row.occurred_at_us,
        }
    }

    /// The row of this shard that a conditional claim looks for: the first of them, if there are several.
    pub(super) fn registered(&self, sought: &Sought) -> Fetch<Option<Fact>> {
        let occurred = sought.occurred_from_us..=sought.occurred_to_us;
        let rows = self.rows.with_key(sought.key_hash, sought.since_us, KEY_ROWS_MAX)?;
        let rows =
            rows.iter().filter(|row| row.state == RowState::Registered && row.claim_timestamp_us >= sought.since_us);
        let first = rows.filter(|row| occurred.contains(&row.occurred_at_us)).min_by_key(|row| row.event_id);
        Ok(first.map(|row| Fact { event_id: row.event_id, row: Some(self.row_fact(row)) }))
    }

    /// Answers another shard, but for reservations, which are the engine's, and for rows of event keys, which are asked for in
    /// parts.
    pub fn answer(&self, ask: &Ask) -> Fetch<Answer> {
        Ok(match ask {
            Ask::Rows(ids) => Answer::Facts(sealed::all(ids.iter().map(|id| self.fact(*id)))?),
            Ask::Key(sought) => Answer::Facts(self.registered(sought)?.into_iter().collect()),
            Ask::Time => Answer::Time(self.last_us),
            Ask::Due { at_us, after, is_full } => self.due(*at_us, *after, *is_full)?,
            Ask::Keys { at_us, hashes } => Answer::Candidates(self.candidates(*at_us, hashes)?),
            Ask::Linked { after } => {
                let (rows, after) = self.rows.linked_after(*after, LINKED_ROWS_MAX)?;
                let link = |row: Found| Link {
                    event_id: row.event_id,
                    fact: Fact { event_id: row.event_id, row: Some(self.row_fact(&row)) },
                    references: row.references,
                };
                Answer::Linked { rows: rows.into_iter().map(link).collect(), after }
            }
            Ask::Reserve { .. } => Answer::Failed,
        })
    }

    fn due(&self, at_us: i64, after: Option<DueAfter>, is_full: bool) -> Fetch<Answer> {
        let is_full = is_full || self.passes.everything_since.is_some();
        let (mut segment, mut from) = match after {
            Some(DueAfter::Rows { segment, from }) => (segment, from),
            changed => {
                let after = match changed {
                    Some(DueAfter::Changed { position, key_hash }) => Bound::Excluded((position, key_hash)),
                    _ => Bound::Unbounded,
                };
                let mut hashes = HashSet::new();
                let mut rest = self.passes.changed.range((after, Bound::Unbounded));
                let mut last = None;
                for (position, key_hash) in rest.by_ref().take(DUE_ROWS_MAX) {
                    hashes.insert(*key_hash);
                    last = Some(DueAfter::Changed { position: *position, key_hash: *key_hash });
                }
                if rest.next().is_some() {
                    let rows = hashes.len() as u64;
                    return Ok(Answer::Due { hashes: ordered(hashes), rows, after: last });
                }
                if !hashes.is_empty() {
                    let after = Some(DueAfter::Rows { segment: 0, from: 0 });
                    return Ok(Answer::Due { hashes: ordered(hashes), rows: 0, after });
                }
                (0, 0)
            }
        };
        let done_us = self.passes.done.map_or(i64::MIN, |done| done.at_us);
        let barrier_us = if self.passes.barriers.is_empty() { 0 } else { 2 * self.policy.window_max_us() };
        let since_us = match is_full || done_us == i64::MIN {
            true => i64::MIN,
            false => done_us - self.policy.window_max_us() - barrier_us,
        };
        // In a segment that is not in memory any more the whole of its event keys is gone over: those that are not due
        // come to nothing.
        while segment < self.rows.catalog().end() {
            let times_us = self.rows.catalog().segment(segment).map(|sealed| sealed.summary.times_us);
            if times_us.is_some_and(|(first, last)| first <= at_us && last >= since_us) {
                let hashes = self.rows.catalog().event_key_hashes(segment, from, DUE_ROWS_MAX)?;
                if let Some(last) = hashes.last().filter(|last| **last < u64::MAX) {
                    let (after, rows) = (DueAfter::Rows { segment, from: last + 1 }, hashes.len() as u64);
                    return Ok(Answer::Due { hashes: ordered(hashes.into_iter().collect()), rows, after: Some(after) });
                }
            }
            (segment, from) = (segment + 1, 0);
        }
        let mut hashes = HashSet::new();
        let mut looked_at = 0;
        let mut windows = Windows::default();
        for (number, first, slots) in self.rows.keys_in_memory(segment, from as usize) {
            for (index, (prefix, claimed_us, hash, incident)) in slots.enumerate() {
                if looked_at == DUE_ROWS_MAX {
                    let after = Some(DueAfter::Rows { segment: number, from: (first + index) as u64 });
                    return Ok(Answer::Due { hashes: ordered(hashes), rows: looked_at as u64, after });
                }
                if claimed_us < since_us || claimed_us > at_us {
                    continue;
                }
                looked_at += 1;
                let window_us = windows.of(prefix, incident, |prefix| self.window_us(prefix, incident));
                let closes_us = self.closes_at_us(claimed_us, window_us);
                if closes_us <= at_us && (is_full || closes_us > done_us) {
                    hashes.insert(hash);
                }
            }
        }
        Ok(Answer::Due { hashes: ordered(hashes), rows: looked_at as u64, after: None })
    }

    /// The rows of some event keys, as a pass sees them.
    pub fn candidates(&self, at_us: i64, hashes: &[u64]) -> Fetch<Vec<Candidate>> {
        let rows = sealed::all(hashes.iter().map(|hash| self.rows.with_key(*hash, i64::MIN, KEY_ROWS_MAX + 1)))?;
        let is_frozen = |row: &Found| self.registry.stop_of(row.event_id.prefix()).is_some();
        // Expired rows take no part. What keeps a group from being merged does so until an entry ends it: a pass that looks
        // only at what is new would not notice that it has expired.
        let rows = rows.into_iter().flatten().filter(|row: &Found| match row.state {
            RowState::Disputed => true,
            RowState::Registered => is_frozen(row) || !self.is_expired(row, at_us),
            RowState::Referenced => !self.is_expired(row, at_us),
            RowState::Retracted | RowState::TombstonedByArbitration => false,
        });
        let candidates = rows.map(|row| Candidate {
            event_id: row.event_id,
            key_hash: row.key_hash,
            claim_timestamp_us: row.claim_timestamp_us,
            claim_sequence: row.claim_sequence,
            occurred_at_us: row.occurred_at_us,
            state: row.state,
            is_closed: self.is_closed(&row, at_us) && !self.is_expired(&row, at_us),
            is_frozen: is_frozen(&row),
            position: row.position,
        });
        Ok(candidates.collect())
    }
}

/// Windows of corpora, each looked up once.
#[derive(Default)]
struct Windows(HashMap<(Prefix, bool), i64>);

impl Windows {
    fn of(&mut self, prefix: Prefix, incident: bool, look_up: impl FnOnce(Prefix) -> i64) -> i64 {
        *self.0.entry((prefix, incident)).or_insert_with(|| look_up(prefix))
    }
}

fn ordered(hashes: HashSet<u64>) -> Vec<u64> {
    let mut hashes: Vec<_> = hashes.into_iter().collect();
    hashes.sort_unstable();
    hashes
}
