//! All disputes of the ledger, as every shard keeps them.

use crate::corpus::Prefix;
use crate::dispute::{Dispute, DisputeId, DisputeState, DisputeStep, Moved, Sides, Verdicts, dispute_transition};
use crate::id::EventId;
use hashbrown::{HashMap, HashSet};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// See the module.
#[derive(Debug, Default)]
pub struct Disputes {
    all: BTreeMap<DisputeId, Dispute>,
    open: BTreeSet<DisputeId>,
    /// The rows of open disputes that are not settled yet.
    rows: HashMap<EventId, DisputeId>,
    /// Every dispute that a row was ever in, in the order of their opening.
    by_row: HashMap<EventId, Vec<DisputeId>>,
    /// Sets that were dismissed.
    dismissed: HashSet<Vec<EventId>>,
    /// Pairs of a dismissed set: they are not merged again.
    dismissed_pairs: HashSet<(EventId, EventId)>,
    /// Those in quarantine of which a row of this shard is not flagged, and never will be.
    unflagged: BTreeSet<DisputeId>,
    /// When one last went from detect to quarantine.
    moved_at_us: i64,
}

impl Disputes {
    /// What a snapshot holds.
    pub(super) fn restored(
        disputes: impl Iterator<Item = Dispute>,
        moved_at_us: i64,
        unflagged: Vec<DisputeId>,
    ) -> Disputes {
        let mut restored = Disputes { moved_at_us, unflagged: unflagged.into_iter().collect(), ..Disputes::default() };
        let mut in_order: Vec<_> = disputes.collect();
        in_order.sort_by_key(|dispute| (dispute.opened_at_us, dispute.id));
        for dispute in in_order {
            let is_settled = !dispute.state.is_open() || dispute.state == DisputeState::Canonicalise;
            for event_id in dispute.sides.ids() {
                restored.by_row.entry(*event_id).or_default().push(dispute.id);
                if !is_settled {
                    restored.rows.insert(*event_id, dispute.id);
                }
            }
            if dispute.state.is_open() {
                restored.open.insert(dispute.id);
            }
            if dispute.is_dismissed() {
                restored.dismiss(&dispute.sides);
            }
            restored.all.insert(dispute.id, dispute);
        }
        restored
    }

    /// The same where rows of other disputes are not flagged.
    pub(super) fn inherited(&self, unflagged: Vec<DisputeId>) -> Disputes {
        Disputes::restored(self.all.values().cloned(), self.moved_at_us, unflagged)
    }

    fn dismiss(&mut self, sides: &Sides) {
        let set = sides.as_set();
        for (i, a) in set.iter().enumerate() {
            self.dismissed_pairs.extend(set[i + 1..].iter().map(|b| (*a, *b)));
        }
        self.dismissed.insert(set);
    }

    /// Those in quarantine of which a row of this shard is not flagged, and never will be.
    pub fn unflagged(&self) -> impl Iterator<Item = DisputeId> + '_ {
        self.unflagged.iter().copied()
    }

    pub(super) fn not_flagged(&mut self, id: DisputeId) {
        self.unflagged.insert(id);
    }

    /// A dispute.
    pub fn get(&self, id: DisputeId) -> Option<&Dispute> {
        self.all.get(&id)
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Dispute> {
        self.all.values()
    }

    /// Those that were opened before one, or all of them, the newest first.
    pub fn opened_before(&self, before: Option<DisputeId>) -> impl Iterator<Item = &Dispute> {
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        self.all.range((Bound::Unbounded, end)).rev().map(|(_, dispute)| dispute)
    }

    /// Those that are not at their end, the oldest first.
    pub fn open_ones(&self) -> impl Iterator<Item = &Dispute> {
        self.open.iter().filter_map(|id| self.all.get(id))
    }

    /// How many are not at their end.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// How many a corpus has opened that are not at their end.
    pub fn open_of(&self, prefix: Prefix) -> usize {
        self.open_ones().filter(|dispute| dispute.opened_by == prefix).count()
    }

    /// The open dispute that names a row.
    pub fn of_row(&self, event_id: EventId) -> Option<DisputeId> {
        self.rows.get(&event_id).copied()
    }

    /// Every dispute that names a row, or named it, in the order of their opening.
    pub fn ever_of_row(&self, event_id: EventId) -> impl Iterator<Item = &Dispute> {
        self.by_row.get(&event_id).into_iter().flatten().filter_map(|id| self.all.get(id))
    }

    /// Whether a dispute of just these rows was dismissed before.
    pub fn was_dismissed(&self, set: &[EventId]) -> bool {
        self.dismissed.contains(set)
    }

    /// Whether two rows were in a dispute that was dismissed.
    pub fn is_dismissed_pair(&self, a: EventId, b: EventId) -> bool {
        self.dismissed_pairs.contains(&(a.min(b), a.max(b)))
    }

    /// When one last went from detect to quarantine.
    pub fn moved_at_us(&self) -> i64 {
        self.moved_at_us
    }

    pub(super) fn open(&mut self, dispute: Dispute) -> Result<(), String> {
        if self.all.contains_key(&dispute.id) {
            return Err(format!("dispute {} is opened twice", dispute.id));
        }
        for event_id in dispute.sides.ids() {
            self.rows.insert(*event_id, dispute.id);
            self.by_row.entry(*event_id).or_default().push(dispute.id);
        }
        self.open.insert(dispute.id);
        self.all.insert(dispute.id, dispute);
        Ok(())
    }

    /// Moves a dispute; returns it as it is then.
    pub(super) fn step(
        &mut self,
        id: DisputeId,
        step: DisputeStep,
        at_us: i64,
        verdicts: Verdicts,
        global_sequence: u64,
    ) -> Result<Dispute, String> {
        let Some(dispute) = self.all.get_mut(&id) else { return Err(format!("there is no dispute {id}")) };
        let Some(to) = dispute_transition(dispute.state, step) else {
            return Err(format!("{} of dispute {id}, which is in {}", step.operation(), dispute.state.name()));
        };
        dispute.state = to;
        dispute.updated_at_us = at_us;
        dispute.global_sequence = global_sequence;
        match step {
            DisputeStep::Quarantine => self.moved_at_us = at_us,
            DisputeStep::Respond => dispute.responses += 1,
            DisputeStep::Arbitrate => {
                if verdicts.iter().take(dispute.sides.ids().len()).any(Option::is_none) {
                    return Err(format!("the verdict on dispute {id} leaves rows out"));
                }
                dispute.verdicts = verdicts;
            }
            _ => {}
        }
        dispute.steps.push(Moved { state: to, responses: dispute.responses, at_us, global_sequence });
        let dispute = dispute.clone();
        if step == DisputeStep::Arbitrate && dispute.is_dismissed() {
            self.dismiss(&dispute.sides);
        }
        if to != DisputeState::Quarantine {
            self.unflagged.remove(&id);
        }
        let is_settled = matches!(to, DisputeState::Canonicalise | DisputeState::Void);
        if is_settled {
            for event_id in dispute.sides.ids() {
                if self.rows.get(event_id) == Some(&id) {
                    self.rows.remove(event_id);
                }
            }
        }
        if !to.is_open() {
            self.open.remove(&id);
        }
        Ok(dispute)
    }
}
