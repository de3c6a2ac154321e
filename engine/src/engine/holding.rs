//! What waits until the log has made durable what it depends on, and how it is let out or fails.

use super::{Engine, Held, Output, reply};
use crate::command::{Outcome, Reply};
use crate::error::{Code, Refusal};
use crate::mutant::Mutant;
use crate::peer::{Answer, PeerMessage};
use crate::propagation::Visibility;
use crate::sealed::Stretch;

/// Pages of scans that wait and have the log they were found in, at most; others are read again when they are let out.
const STRETCHES_HELD_MAX: usize = 64;

fn log_of(held: &mut Held) -> Option<&mut Option<Stretch>> {
    match &mut held.output {
        Some(Output::Reply(Reply { outcome: Outcome::Rows { log, .. }, .. })) if log.is_some() => Some(log),
        _ => None,
    }
}

impl Engine {
    pub(super) fn hold(&mut self, mut held: Held) {
        let is_free = held.release_at <= self.log.durable().position && held.global_sequence == 0;
        let is_free = is_free || self.mutation.is(Mutant::AckBeforeDurable);
        if is_free {
            self.let_out(held);
        } else {
            let is_durable = held.release_at <= self.log.durable().position;
            if let Some(log) = log_of(&mut held)
                && self.held.iter_mut().filter_map(log_of).count() >= STRETCHES_HELD_MAX
            {
                *log = None;
            }
            self.held.push_back(held);
            if is_durable {
                // It waits for other shards alone, and an idle log may complete nothing more that would let it out.
                self.release();
            }
        }
    }

    pub(super) fn hold_message(&mut self, release_at: u64, to: u16, message: PeerMessage) {
        self.hold(Held {
            release_at,
            global_sequence: 0,
            deadline_boot_us: None,
            is_mutation: false,
            debt_bytes: None,
            output: Some(Output::Message { to, message }),
        });
    }

    /// Lets an output go. It is no debt any more.
    pub(super) fn let_out(&mut self, held: Held) {
        if let Some(bytes) = held.debt_bytes {
            self.debt.answer(bytes);
        }
        if let Some(Output::Reply(Reply { outcome: Outcome::Claimed(claimed), .. })) = &held.output
            && let Some(visible) = self.propagation.sample(claimed.event_id.prefix(), claimed.claim_timestamp_us)
        {
            let own = self.shard.number();
            let Visibility { corpus, claim_timestamp_us } = visible;
            let message = PeerMessage::Visible { corpus, claim_timestamp_us };
            let others = (0..self.superblock.shard_count).filter(|shard| *shard != own);
            self.out.extend(others.map(|to| Output::Message { to, message: message.clone() }));
        }
        self.out.extend(held.output);
    }

    pub(super) fn release(&mut self) {
        let durable = self.log.durable().position;
        while self.held.front().is_some_and(|held| held.release_at <= durable) {
            let Some(held) = self.held.pop_front() else { break };
            if held.global_sequence > 0 && self.peers.iter().any(|peer| peer.has_failed) {
                self.fail(vec![held], "a shard has stopped before it had this");
            } else if held.global_sequence > 0 {
                self.waiting_for_peers.push(held);
            } else {
                self.let_out(held);
            }
        }
        if self.shard.number() == 0 {
            self.release_globals();
        }
    }

    pub(super) fn fail(&mut self, held: Vec<Held>, reason: &str) {
        for held in held {
            if let Some(bytes) = held.debt_bytes {
                self.debt.answer(bytes);
            }
            if let Some(Output::Message { to, message: PeerMessage::Answer { from, question, .. } }) = held.output {
                let message = PeerMessage::Answer { from, question, answer: Answer::Failed };
                self.out.push(Output::Message { to, message });
            } else if let Some(Output::Reply(Reply { token, .. })) = held.output {
                let message = format!("{reason}; restart the daemon once its storage is sound, and ask again");
                let refusal = if held.is_mutation {
                    Refusal::unknown(Code::ShardFailed, message + " with the same key")
                } else {
                    Refusal::new(Code::ShardFailed, message)
                };
                self.out.push(reply(token, 0, Outcome::Refused(refusal)));
            }
        }
    }

    /// Tells shard 0 that this one follows no more.
    pub(super) fn tell_failure(&mut self) {
        let shard = self.shard.number();
        if shard != 0 {
            self.out.push(Output::Message { to: 0, message: PeerMessage::Failed { shard } });
        }
    }
}
