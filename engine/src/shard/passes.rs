//! What a shard remembers of the passes of reconciliation: how far they have covered its rows, and what changed since.

use super::Shard;
use super::keys;
use super::rows::Found;
use crate::command::{Fact, RowFact};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::log::entry::{PassCounts, PassPhase};
use crate::peer::{Answer, Ask, Link, Sought};
use crate::policy::settings;
use crate::row::{Lifecycle, ReconciliationState, RowState, RowView};
use crate::sealed::Fetch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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
    /// Event keys of rows that changed after their claim since the last pass that ended, with the position of the last change.
    #[serde(with = "by_position")]
    changed: BTreeMap<u64, u64>,
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

    /// The same before the first position of another log, with what shards remember of their own rows.
    pub(super) fn inherited<'a>(&self, of_shards: impl Iterator<Item = &'a Passes>) -> Passes {
        let before = |mark: PassMark| PassMark { position: 0, ..mark };
        Passes {
            begun: self.begun.map(before),
            done: self.done.map(before),
            ended: self.ended.clone(),
            changed: of_shards.flat_map(|passes| passes.changed.keys()).map(|key_hash| (*key_hash, 0)).collect(),
            everything_since: self.everything_since.map(|_| 0),
            barriers: self.barriers.clone(),
        }
    }

    pub(super) fn changed(&mut self, found: &Found, position: u64) {
        self.changed.insert(found.key_hash, position);
    }

    /// Event keys with a hash in a range whose rows changed since the last pass that ended.
    pub(super) fn changed_keys(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = u64> + '_ {
        self.changed.range(range).map(|(key_hash, _)| *key_hash)
    }

    pub(super) fn everything_since(&self) -> Option<u64> {
        self.everything_since
    }

    pub(super) fn has_barriers(&self) -> bool {
        !self.barriers.is_empty()
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
                self.changed.retain(|_, position| *position >= begun.position);
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

/// Changed keys stand in a snapshot in the order of their positions.
mod by_position {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::{BTreeMap, BTreeSet};

    pub fn serialize<S: Serializer>(changed: &BTreeMap<u64, u64>, serializer: S) -> Result<S::Ok, S::Error> {
        changed.iter().map(|(hash, position)| (*position, *hash)).collect::<BTreeSet<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u64, u64>, D::Error> {
        let by_position = BTreeSet::<(u64, u64)>::deserialize(deserializer)?;
        Ok(by_position.into_iter().map(|(position, hash)| (hash, position)).collect())
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
    pub(super) fn closes_at_us(&self, claimed_us: i64, window_us: i64) -> i64 {
        let held = self.passes.barriers.iter().filter(|barrier| (claimed_us - **barrier).abs() <= window_us);
        held.fold(claimed_us + window_us, |closes, barrier| closes.max(barrier + window_us))
    }

    pub(super) fn is_closed(&self, row: &Found, at_us: i64) -> bool {
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

    /// Answers what is not [gathered](Shard::gather), but for reservations, which are the engine's.
    pub(super) fn answer(&self, ask: &Ask) -> Fetch<Answer> {
        Ok(match ask {
            Ask::Key(sought) => Answer::Facts(self.registered(sought)?.into_iter().collect()),
            Ask::Time => Answer::Time(self.last_us),
            Ask::Linked { after } => {
                let (rows, after) = self.rows.linked_after(*after, LINKED_ROWS_MAX)?;
                let link = |row: Found| Link {
                    event_id: row.event_id,
                    fact: Fact { event_id: row.event_id, row: Some(self.row_fact(&row)) },
                    references: row.references,
                };
                Answer::Linked { rows: rows.into_iter().map(link).collect(), after }
            }
            Ask::Reserve { .. } | Ask::Rows(_) | Ask::Due { .. } | Ask::Counts { .. } | Ask::Keys { .. } => {
                Answer::Failed
            }
        })
    }
}
