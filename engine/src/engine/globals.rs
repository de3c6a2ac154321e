//! The global order: how far each shard is in it, what shard 0 sends on, and what waits for every shard.

use super::{Engine, Output};
use crate::debt::Level;
use crate::log::entry::Entry;
use crate::peer::PeerMessage;
use crate::time::Now;

impl Engine {
    /// Whether all shards have the global order up to here.
    pub(super) fn all_have(&self, sequence: u64) -> bool {
        self.peers.iter().skip(1).all(|peer| peer.is_known && peer.applied >= sequence)
    }

    /// Whether what can wait has to, because a shard has too much to do or no room for it.
    pub(super) fn is_anyone_overloaded(&self) -> bool {
        let is_overloaded = self.debt.level() >= Level::Yellow || self.log.is_full();
        is_overloaded || self.peers.iter().any(|peer| peer.is_overloaded || peer.is_full)
    }

    /// Whether the daemon may add entries of its own.
    pub(super) fn takes_own_entries(&self) -> bool {
        self.log.takes_small_entries() && !self.peers.iter().any(|peer| peer.has_failed)
    }

    /// At shard 0: after a start with a clock that stood far behind the ledger, the rows around its last time are looked at
    /// again.
    pub(super) fn raise_due_barrier(&mut self, now: Now) {
        if self.shard.number() != 0 || !self.takes_own_entries() {
            return;
        }
        let Some(last_us) = self.shard.take_regression() else { return };
        let at_us = self.shard.time_us(now).max(last_us);
        let entry = Entry::Barrier { global_sequence: self.shard.globals_applied() + 1, at_us };
        self.shard.decide_alone(now, at_us, entry, &mut self.log);
    }

    /// Follows shard 0 as far as what that takes is at hand.
    pub(super) fn follow_on(&mut self, now: Now) {
        while let Some(global) = self.following.front() {
            if self.log.failed().is_some() {
                return self.following.clear();
            }
            if let Err(unread) = self.shard.can_follow(global) {
                self.read_for_work(unread);
                return;
            }
            let Some(global) = self.following.pop_front() else { return };
            // A gap, or a repetition, is answered with how far this shard is.
            self.shard.follow(now, &global, &mut self.log).expect("shard 0 sends entries that apply");
            let message = self.globals_applied();
            self.hold_message(self.shard.last_position(), 0, message);
        }
    }

    /// At shard 0: forgets the global entries that every shard has.
    pub(super) fn forget_globals(&mut self) {
        if self.shard.number() != 0 || self.peers.iter().skip(1).any(|peer| !peer.is_known || peer.has_failed) {
            return;
        }
        let sent_on = self.peers.iter().skip(1).map(|peer| peer.applied).min();
        let applied = sent_on.unwrap_or_else(|| self.shard.globals_applied());
        self.shard.forget_globals(applied);
    }

    pub(super) fn globals_applied(&self) -> PeerMessage {
        PeerMessage::GlobalsApplied {
            shard: self.shard.number(),
            sequence: self.shard.globals_applied(),
            refused: self.shard.refused_disputes(),
            dropped_to: self.shard.retention().dropped_to(),
        }
    }

    /// At shard 0: sends the others what is durable and new to them, and lets out what all of them have.
    pub(super) fn release_globals(&mut self) {
        let durable = self.log.durable().position;
        for (number, peer) in self.peers.iter_mut().enumerate().skip(1).filter(|(_, peer)| peer.is_known) {
            for global in self.shard.globals_after(peer.sent) {
                if global.position > durable {
                    break;
                }
                peer.sent = global.sequence;
                self.out.push(Output::Message { to: number as u16, message: PeerMessage::Global(global.clone()) });
            }
        }
        let applied = self.peers.iter().skip(1).map(|peer| peer.applied).min().unwrap_or(u64::MAX);
        let mut i = 0;
        while i < self.waiting_for_peers.len() {
            if self.waiting_for_peers[i].global_sequence <= applied {
                let held = self.waiting_for_peers.remove(i);
                self.let_out(held);
            } else {
                i += 1;
            }
        }
    }
}
