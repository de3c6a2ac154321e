//! Requests to a simulated ledger, one at a time or in a race, by whoever has every role.

use super::machine::Machine;
use crate::command::{Claim, Operation, Outcome, Request, Token};
use crate::error::Code;
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::policy::Policy;
use std::collections::BTreeMap;

/// Has every role.
pub const OWNER: Principal = Principal { uid: 1000, gid: 100, pid: 42 };

/// See the module.
pub struct Asking {
    pub machine: Machine,
    next_token: Token,
    next_key: u64,
    /// What was answered, by token.
    pub answers: BTreeMap<Token, Outcome>,
}

impl Asking {
    /// A ledger whose owner may do everything.
    pub fn new(machine: Machine) -> Asking {
        let mut asking = Asking { machine, next_token: 0, next_key: 0, answers: BTreeMap::new() };
        let toml = Policy::of_owner(OWNER.uid).to_toml();
        asking.ask(0, "", Operation::Configure { toml: &toml });
        asking
    }

    /// Sends a request; its answer comes when it may.
    pub fn send(&mut self, shard: u16, rationale: &str, operation: Operation<'_>) -> Token {
        self.next_token += 1;
        self.next_key += 1;
        let ms = (self.machine.now.wall_us / 1_000) as u128;
        let key = ms << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.next_key);
        let request = Request {
            token: self.next_token,
            stream: 0,
            principal: OWNER,
            user: "owner",
            idempotency_key: key,
            correlation_id: 0,
            rationale,
            at_us: None,
            deadline_boot_us: None,
            at_least: &[],
            operation,
        };
        self.machine.submit(shard, &request);
        self.next_token
    }

    /// Takes in what was answered.
    pub fn listen(&mut self) {
        for (_, reply) in self.machine.take_replies() {
            self.answers.insert(reply.token, reply.outcome);
        }
    }

    /// Lets everything come to its end, the daemon's own steps, too.
    pub fn settle(&mut self) {
        for _ in 0..4 {
            self.machine.settle().expect("shards come to rest");
            self.machine.now.boot_us += 1_000;
            self.machine.now.wall_us += 1_000;
            self.machine.tick();
        }
        self.machine.settle().expect("shards come to rest");
        self.listen();
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, shard: u16, rationale: &str, operation: Operation<'_>) -> Outcome {
        let token = self.send(shard, rationale, operation);
        self.settle();
        self.answers.remove(&token).expect("what has settled is answered")
    }

    pub fn onboard(&mut self, name: &str) {
        let outcome = self.ask(0, "", Operation::Onboard { name, notes: "" });
        assert!(matches!(outcome, Outcome::Onboarded(_)), "{outcome:?}");
    }

    /// Claims an event that happened at a moment.
    pub fn claim(&mut self, shard: u16, corpus: &str, event_key: &str, occurred_at_us: i64) -> EventId {
        let items = [Claim {
            event_key,
            occurred_at_us,
            owning_corpus: "",
            hosting_corpus: "",
            category: "c",
            taxonomy_version: 1,
            metadata: &[],
        }];
        match self.ask(shard, "", Operation::Claim { corpus, items: &items, unless_within_us: None }) {
            Outcome::Claimed(claimed) => claimed.event_id,
            other => panic!("a claim is answered {other:?}"),
        }
    }

    /// The code that an answer refuses with.
    pub fn code(outcome: &Outcome) -> Option<Code> {
        match outcome {
            Outcome::Refused(refusal) => Some(refusal.code),
            Outcome::ReferencedItems(items) => match &items[..] {
                [(_, Err(refusal))] => Some(refusal.code),
                _ => None,
            },
            _ => None,
        }
    }
}
