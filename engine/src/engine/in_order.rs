//! Requests of one stream take effect in the order they came in, when one of them has to wait for the disk or for other shards,
//! too: those behind it wait in line, and find out what they need when it is their turn.
//!
//! Two kinds hold nobody up: reads, which have no effect, and conditional claims, which wait for each other's event keys and could
//! wait in a circle.

use super::Engine;
use super::parked::{OwnedRequest, Parked};
use crate::command::{Operation, Request};
use crate::mutant::Mutant;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct InOrder {
    /// By stream: parked requests, the first of which is being decided. No line is empty.
    lines: HashMap<u64, VecDeque<u64>>,
    /// Parked requests whose turn has come.
    turns: VecDeque<u64>,
}

impl InOrder {
    /// Whether a request has to get in line.
    pub fn is_behind(&self, request: &Request<'_>) -> bool {
        self.lines.contains_key(&request.stream)
    }

    /// Whether there is a turn to take.
    pub fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    pub fn next_turn(&mut self) -> Option<u64> {
        self.turns.pop_front()
    }

    fn enter(&mut self, stream: u64, id: u64) {
        self.lines.entry(stream).or_default().push_back(id);
    }

    /// Takes a request out of its line, if it is in one; if it was the first, it is the next one's turn.
    pub fn leave(&mut self, stream: u64, id: u64) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        let Some(place) = line.iter().position(|other| *other == id) else { return };
        line.remove(place);
        match line.front() {
            None => {
                self.lines.remove(&stream);
            }
            Some(next) if place == 0 => self.turns.push_back(*next),
            Some(_) => {}
        }
    }
}

/// Whether what comes behind an operation waits while it waits.
pub(super) fn holds_up(operation: &Operation<'_>) -> bool {
    operation.is_mutation() && !matches!(operation, Operation::Claim { unless_within_us: Some(_), .. })
}

impl Engine {
    /// A request has to wait: has those behind it wait, too, if it holds them up.
    pub(super) fn hold_line(&mut self, request: &Request<'_>, id: u64) {
        let is_kept = request.stream != 0 && holds_up(&request.operation);
        if is_kept && !self.mutation.is(Mutant::OvertakenWhileWaiting) {
            self.in_order.enter(request.stream, id);
        }
    }

    /// Puts a request behind those of its stream.
    pub(super) fn get_in_line(&mut self, request: OwnedRequest, debt_bytes: u64) {
        let stream = request.stream;
        if let Some(id) = self.keep(request.token, Some(request), debt_bytes) {
            self.in_order.enter(stream, id);
        }
    }

    /// It is a parked request's turn. Those that hold nobody up leave the line.
    pub(super) fn take_turn(&mut self, id: u64) {
        let Some(Parked { request, .. }) = self.parked.get(&id) else { return };
        if !request.with(|request| holds_up(&request.operation)) {
            self.in_order.leave(request.stream, id);
        }
    }
}
