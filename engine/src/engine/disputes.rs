//! Open disputes, which shard 0 moves on.

use super::Engine;
use crate::dispute::{DisputeState, DisputeStep};
use crate::id::EventId;
use crate::log::entry::Entry;
use crate::time::Now;

impl Engine {
    /// At shard 0: moves disputes on, as far as every shard has followed.
    pub(super) fn advance_disputes(&mut self, now: Now) {
        if self.shard.disputes().open_count() == 0 || !self.takes_own_entries() {
            return;
        }
        let own_refused = self.shard.refused_disputes();
        let time_us = self.shard.time_us(now);
        let is_deferring = self.shard.registry().incident_active() || self.is_anyone_overloaded();
        let interval_us = self.shard.policy().dispute_interval_us();
        let mut may_move = !is_deferring || time_us - self.shard.disputes().moved_at_us() >= interval_us;
        let is_stopped = |id: &EventId| self.shard.registry().stop_of(id.prefix()).is_some();
        let mut steps = Vec::new();
        for dispute in self.shard.disputes().open_ones() {
            let is_everywhere = self.all_have(dispute.global_sequence);
            let is_refused =
                own_refused.contains(&dispute.id) || self.peers.iter().any(|p| p.refused.contains(&dispute.id));
            let step = match dispute.state {
                DisputeState::Detect if may_move && !dispute.sides.ids().iter().any(is_stopped) => {
                    may_move = !is_deferring;
                    DisputeStep::Quarantine
                }
                DisputeState::Quarantine if is_everywhere && is_refused => DisputeStep::Void,
                DisputeState::Quarantine if is_everywhere => DisputeStep::Flagged,
                DisputeState::Canonicalise if is_everywhere => DisputeStep::Close,
                _ => continue,
            };
            steps.push((dispute.id, step));
        }
        for (dispute, step) in steps {
            let global_sequence = self.shard.globals_applied() + 1;
            let verdicts = Default::default();
            let entry = Entry::DisputeStep { global_sequence, dispute, step, at_us: time_us, rows: 0, verdicts };
            if let Err(unread) = self.shard.at_hand(&entry) {
                self.read_for_work(unread);
                // The order of the others stays.
                return;
            }
            self.shard.decide_alone(now, time_us, entry, &mut self.log);
        }
    }
}
