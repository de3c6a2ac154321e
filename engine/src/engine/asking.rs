//! Questions between shards: asked and answered here, with the requests that wait for what is said.

use super::admission::{Room, Takes, log_is_behind};
use super::parked::{OwnedRequest, Parked};
use super::reading::{Asking, Waiter};
use super::{Asker, Engine, OVERLOADED_RETRY_MS, Output};
use crate::command::{Request, Token};
use crate::corpus::Prefix;
use crate::entropy::Entropy;
use crate::error::{Code, Refusal};
use crate::mutant::Mutant;
use crate::peer::{Answer, Ask, PeerMessage, Sought};
use crate::shard::gather::Gathered;
use crate::shard::{ALIASES_FOLLOWED_MAX, Needs, Stepped};
use crate::time::Now;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Requests that wait for what other shards say, for the disk, or for room in the log, at most.
pub const PARKED_MAX: usize = 4_096;
/// Conditional claims that wait for the same event key, at most.
const RESERVATIONS_MAX: usize = 64;
/// How often a request is asked again, as it learns where aliases lead: each round finds one more at least.
const ROUNDS_MAX: u32 = ALIASES_FOLLOWED_MAX as u32;

impl Engine {
    /// Asks another shard, or this one.
    pub(super) fn ask(&mut self, to: u16, ask: Ask, asker: Asker) -> u64 {
        self.next_question += 1;
        let question = self.next_question;
        self.questions.insert(question, asker);
        let from = self.shard.number();
        if to == from {
            self.asked(from, question, ask);
        } else {
            self.out.push(Output::Message { to, message: PeerMessage::Ask { from, question, ask } });
        }
        question
    }

    /// Answers a question, now or when it may be.
    pub(super) fn asked(&mut self, from: u16, question: u64, ask: Ask) {
        if let Ask::Reserve { key_hash } = ask {
            let waiting = self.reservations.entry(key_hash).or_default();
            if waiting.len() >= RESERVATIONS_MAX {
                return self.send_answer(from, question, Answer::Busy);
            }
            waiting.push_back((from, question));
            if waiting.len() == 1 {
                self.send_answer(from, question, Answer::Reserved);
            }
            return;
        }
        let is_of_pass = ask.is_of_pass();
        let asking = Asking { from, question, ask, gathered: Gathered::default() };
        if is_of_pass { self.answer_later(asking) } else { self.answer_on(asking) }
    }

    pub(super) fn send_answer(&mut self, to: u16, question: u64, answer: Answer) {
        let from = self.shard.number();
        if to == from {
            self.answers.push_back((question, from, answer));
            return;
        }
        let says_nothing = matches!(answer, Answer::Reserved | Answer::Busy | Answer::Failed);
        let message = PeerMessage::Answer { from, question, answer };
        self.hold_message(if says_nothing { 0 } else { self.shard.last_position() }, to, message);
    }

    /// Gives a reservation back, and has the next one begin.
    pub(super) fn release_key(&mut self, from: u16, question: u64, key_hash: u64) {
        let Some(waiting) = self.reservations.get_mut(&key_hash) else { return };
        let was_first = waiting.front() == Some(&(from, question));
        waiting.retain(|asked| *asked != (from, question));
        match waiting.front().copied() {
            None => {
                self.reservations.remove(&key_hash);
            }
            Some((to, next)) if was_first => self.send_answer(to, next, Answer::Reserved),
            Some(_) => {}
        }
    }

    pub(super) fn shard_of(&self, prefix: Prefix) -> u16 {
        self.shard.registry().of_prefix(prefix).map_or(self.shard.number(), |corpus| corpus.shard)
    }

    /// Has a request wait for what it needs to know.
    pub(super) fn park(&mut self, request: &Request<'_>, needs: Needs, debt_bytes: u64) {
        if let Some(id) = self.keep(request.token, OwnedRequest::new(request), debt_bytes) {
            self.hold_line(request, id);
            self.find_out(id, needs);
        }
    }

    /// Keeps a request that can't be decided yet, or refuses it.
    pub(super) fn keep(&mut self, token: Token, request: Option<OwnedRequest>, debt_bytes: u64) -> Option<u64> {
        let Some(request) = request.filter(|_| self.parked.len() < PARKED_MAX) else {
            self.debt.answer(debt_bytes);
            let message =
                "too many requests wait for other shards, the disk, or room in the log; try again a little later";
            self.refuse(token, Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message));
            return None;
        };
        self.next_parked += 1;
        let id = self.next_parked;
        let parked = Parked {
            takes: request.with(|request| Takes::of(&request.operation)),
            request: Rc::new(request),
            debt_bytes,
            facts: Vec::new(),
            was_told: false,
            missing: 0,
            reservation: None,
            sought: None,
            rounds: 0,
        };
        self.parked.insert(id, parked);
        Some(id)
    }

    fn find_out(&mut self, id: u64, needs: Needs) {
        match needs {
            Needs::Rows(rows) => {
                let mut by_shard: BTreeMap<u16, Vec<_>> = BTreeMap::new();
                for row in rows {
                    by_shard.entry(self.shard_of(row.prefix())).or_default().push(row);
                }
                if let Some(parked) = self.parked.get_mut(&id) {
                    parked.missing = by_shard.len();
                    parked.rounds += 1;
                }
                for (shard, rows) in by_shard {
                    self.ask(shard, Ask::Rows(rows), Asker::Parked(id));
                }
            }
            Needs::Blocks(blocks) => {
                if let Some(parked) = self.parked.get_mut(&id) {
                    parked.rounds += 1;
                }
                self.read_blocks(blocks, Waiter::Parked(id));
            }
            Needs::Stretch(range) => {
                if let Some(parked) = self.parked.get_mut(&id) {
                    parked.rounds += 1;
                }
                self.read_stretch(range, Waiter::Parked(id));
            }
            Needs::Key(sought) if self.mutation.is(Mutant::ClaimWithoutReservation) => {
                self.ask_about_key(id, sought);
            }
            Needs::Key(sought) => {
                let key_hash = sought.key_hash;
                let home = (key_hash % u64::from(self.superblock.shard_count)) as u16;
                if let Some(parked) = self.parked.get_mut(&id) {
                    parked.missing = 1;
                    parked.sought = Some(sought);
                    // The question is the next one.
                    parked.reservation = Some((home, self.next_question + 1, key_hash));
                }
                self.ask(home, Ask::Reserve { key_hash }, Asker::Parked(id));
            }
        }
    }

    fn ask_about_key(&mut self, id: u64, sought: Sought) {
        let own = self.shard.number();
        let others: Vec<_> = (0..self.superblock.shard_count).filter(|shard| *shard != own).collect();
        if let Some(parked) = self.parked.get_mut(&id) {
            parked.missing = others.len();
            parked.rounds += 1;
        }
        for shard in others {
            self.ask(shard, Ask::Key(sought), Asker::Parked(id));
        }
    }

    pub(super) fn parked_answered(&mut self, now: Now, entropy: &mut Entropy, id: u64, answer: Answer) {
        let Some(parked) = self.parked.get_mut(&id) else { return };
        parked.was_told = true;
        match answer {
            Answer::Facts(facts) => parked.facts.extend(facts),
            Answer::Reserved => {
                if let Some(sought) = parked.sought.take() {
                    self.ask_about_key(id, sought);
                    let missing = self.parked.get(&id).map_or(1, |parked| parked.missing);
                    if missing == 0 {
                        self.decide_parked(now, entropy, id);
                    }
                }
                return;
            }
            Answer::Busy => {
                let message = "too many claims of this event key are under way; try again a little later";
                let refusal = Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message);
                return self.unpark(id, Some(refusal));
            }
            _ => {
                let message = "a shard that this concerns has stopped; restart the daemon once its storage is sound";
                return self.unpark(id, Some(Refusal::new(Code::ShardFailed, message)));
            }
        }
        parked.missing -= 1;
        if parked.missing == 0 {
            self.decide_parked(now, entropy, id);
        }
    }

    /// Takes a request out; with a refusal, answers it.
    pub(super) fn unpark(&mut self, id: u64, refusal: Option<Refusal>) {
        let Some(parked) = self.parked.remove(&id) else { return };
        self.in_order.leave(parked.request.stream, id);
        self.questions.retain(|_, asker| *asker != Asker::Parked(id));
        if let Some((home, question, key_hash)) = parked.reservation {
            let from = self.shard.number();
            if home == from {
                self.release_key(from, question, key_hash);
            } else {
                let message = PeerMessage::Release { from, question, key_hash };
                self.out.push(Output::Message { to: home, message });
            }
        }
        if let Some(refusal) = refusal {
            self.debt.answer(parked.debt_bytes);
            self.refuse(parked.request.token, refusal);
        }
    }

    /// Everything that was asked has been answered: decides, or asks on, or waits for room.
    pub(super) fn decide_parked(&mut self, now: Now, entropy: &mut Entropy, id: u64) {
        let Some(parked) = self.parked.get(&id) else { return };
        // What other shards said is not kept until it is old, nor a reservation.
        let may_wait = parked.takes == Takes::Room && !parked.was_told;
        let has_no_room = || matches!(self.room_for(parked.takes, parked.debt_bytes), Room::Soon);
        if may_wait && (!self.without_room.is_empty() || has_no_room()) {
            return self.wait_for_room(id);
        }
        self.decide_with_room(now, entropy, id);
    }

    /// As [`Engine::decide_parked`], for a request that does not wait for room.
    pub(super) fn decide_with_room(&mut self, now: Now, entropy: &mut Entropy, id: u64) {
        let Some(parked) = self.parked.get(&id) else { return };
        let request = Rc::clone(&parked.request);
        request.with(|request| self.decide_lent(now, entropy, id, request));
    }

    fn decide_lent(&mut self, now: Now, entropy: &mut Entropy, id: u64, request: &Request<'_>) {
        let Some(parked) = self.parked.get(&id) else { return };
        let (rounds, was_told) = (parked.rounds, parked.was_told);
        let facts = was_told.then(|| parked.facts.clone());
        let (debt_bytes, takes) = (parked.debt_bytes, parked.takes);
        let against = match self.room_for(takes, debt_bytes) {
            Room::Here => self.peers_against(&request.operation, takes),
            Room::Soon => Some(log_is_behind()),
            Room::None(refusal) => Some(refusal),
        };
        if against.is_some() {
            return self.unpark(id, against);
        }
        self.log.expect(debt_bytes);
        match self.shard.step(now, entropy, request, facts.as_deref(), &mut self.log) {
            Stepped::Decided(decision) => {
                self.decided(request, decision, debt_bytes);
                self.unpark(id, None);
            }
            Stepped::Needs(needs) if rounds < ROUNDS_MAX => self.find_out(id, needs),
            Stepped::Pass { dry_run, pass, at_us, position } if !was_told => {
                self.unpark(id, None);
                self.debt.answer(debt_bytes);
                self.want_pass(request, dry_run, pass, at_us, position);
            }
            Stepped::Needs(_) | Stepped::Pass { .. } => {
                let message = "what this depends on changes faster than it can be found out; try again";
                self.unpark(id, Some(Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message)));
            }
        }
    }
}
