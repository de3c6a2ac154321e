//! One shard with its log: takes requests and messages, says what to write, and lets out replies and messages once what
//! they depend on is durable. Plain code without I/O: the daemon's driver and the simulator run the same.

mod admission;
mod asking;
mod disputes;
mod globals;
mod holding;
mod in_order;
mod opening;
mod parked;
mod passes;
mod reading;
mod retention;
mod sealing;
mod status;

pub use admission::{ROOM_PATIENCE_US, WITHOUT_ROOM_MAX};
pub use asking::PARKED_MAX;
pub use opening::{OpenOptions, Opened};
pub use sealing::FULL_SEGMENTS_MAX;
pub use status::EngineStatus;

use crate::command::{Outcome, PassReport, Reply, Request, Token};
use crate::debt::{Debt, Level};
use crate::dispute::DisputeId;
use crate::entropy::Entropy;
use crate::error::{Certainty, Code, Refusal};
use crate::log::end::{Durable, Head, LogEnd};
use crate::log::entry::Merge;
use crate::log::io::{Io, IoDone};
use crate::log::superblock::Superblock;
use crate::log::writer::LogWriter;
use crate::mutant::Mutation;
use crate::peer::{Answer, PeerMessage};
use crate::propagation::Propagation;
use crate::reconcile::Pass;
use crate::shard::rows::SegmentRows;
use crate::shard::{Decision, GlobalEntry, Shard, Stepped};
use crate::time::Now;
use admission::{Takes, log_bytes};
use hashbrown::HashMap;
use in_order::InOrder;
use parked::{OwnedRequest, Parked};
use reading::Reads;
use retention::Retaining;
use sealing::Sealing;
use std::collections::{BTreeMap, VecDeque};

/// Advice on when to try again when the log is behind.
const OVERLOADED_RETRY_MS: u32 = 5;

/// What leaves the engine.
#[derive(Debug)]
pub enum Output {
    /// To whoever asked.
    Reply(Reply),
    /// To another shard.
    Message {
        /// Which.
        to: u16,
        /// What.
        message: PeerMessage,
    },
}

#[derive(Debug)]
struct Held {
    release_at: u64,
    global_sequence: u64,
    deadline_boot_us: Option<i64>,
    is_mutation: bool,
    /// What it counts for in the debt; messages count for nothing.
    debt_bytes: Option<u64>,
    output: Option<Output>,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    superblock: Superblock,
    shard: Shard,
    log: LogWriter,
    /// In log order.
    held: VecDeque<Held>,
    /// At shard 0: replies that are durable here and wait for the other shards.
    waiting_for_peers: Vec<Held>,
    /// At shard 0: how far each shard is in the global order, and up to where it has been sent.
    peers: Vec<Peer>,
    out: Vec<Output>,
    debt: Debt,
    refused_overload: u64,
    was_overloaded: bool,
    was_full: bool,
    /// Requests that wait for what other shards say, for the disk, or for room in the log.
    parked: BTreeMap<u64, Parked>,
    next_parked: u64,
    in_order: InOrder,
    /// Parked requests that wait for room in the log, and perhaps some that are gone.
    without_room: VecDeque<u64>,
    /// When one of them found room last, or the first of them began to wait.
    without_room_since_us: i64,
    questions: HashMap<u64, Asker>,
    next_question: u64,
    /// Answers of this shard to itself, and of others, that are to be looked at.
    answers: VecDeque<(u64, u16, Answer)>,
    /// By event key: who may claim it under a condition, first, and who waits.
    reservations: HashMap<u64, VecDeque<(u16, u64)>>,
    /// At shard 0: the pass under way, and what waits for one.
    pass: Option<Running>,
    passes_waiting: VecDeque<OwnedRequest>,
    /// Who asks again for the pass that a crash ended, before it goes on.
    resumption_waiting: Vec<Token>,
    last_report: Option<PassReport>,
    propagation: Propagation,
    reads: Reads,
    sealing: Sealing,
    retaining: Retaining,
    /// Memory of a segment that is sealed, to be cleared.
    unused: Option<Box<SegmentRows>>,
    /// Entries of the global order that wait for what applying them takes.
    following: VecDeque<GlobalEntry>,
    /// When it last looked.
    boot_us: i64,
    mutation: Mutation,
}

/// Who asked another shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Parked(u64),
    Pass,
}

/// A pass under way, and who waits for it.
#[derive(Debug)]
struct Running {
    pass: Pass,
    /// Whoever asked for it, until it has begun.
    request: Option<OwnedRequest>,
    waiting: Vec<Token>,
    missing: usize,
    /// Merges that wait for what applying them takes.
    merges: Option<Vec<Merge>>,
    /// It goes on when every shard has this much of the global order.
    applied: u64,
    has_failed: bool,
}

#[derive(Debug, Clone, Default)]
struct Peer {
    applied: u64,
    sent: u64,
    is_known: bool,
    has_failed: bool,
    is_overloaded: bool,
    is_full: bool,
    refused: Vec<DisputeId>,
}

impl Engine {
    /// The state machine, for reading.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// What is durable.
    pub fn durable(&self) -> Durable {
        self.log.durable()
    }

    /// The end of the chain as far as it is durable.
    pub fn head(&self) -> Head {
        self.log.head()
    }

    /// The log offset and the number of a batch from which on reading finds a position.
    pub fn start_for(&self, position: u64) -> (u64, u64) {
        let start = self.log.unsealed.start_for(position).or_else(|| self.shard.rows().catalog().start_for(position));
        let start = start.map(|start| (start.log_offset, start.number));
        start.unwrap_or_else(|| {
            let first = LogEnd::at_start(&self.superblock, 0, Mutation::NONE);
            (first.next_batch_at, first.next_number)
        })
    }

    /// The first position that the log still has.
    pub fn first_position(&self) -> u64 {
        LogEnd::at_start(&self.superblock, 0, Mutation::NONE).next_position
    }

    /// What the ledger file is.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Why the shard has stopped.
    pub fn failed(&self) -> Option<&str> {
        self.log.failed()
    }

    /// Whether nothing is held and nothing is being written.
    pub fn is_idle(&self) -> bool {
        let nobody_waits = self.held.is_empty() && self.waiting_for_peers.is_empty() && self.parked.is_empty();
        nobody_waits && self.log.is_idle()
    }

    /// Replies and messages that wait.
    pub fn held(&self) -> usize {
        self.held.len() + self.waiting_for_peers.len() + self.parked.len()
    }

    /// How long claims of each corpus took until this shard could see them.
    pub fn propagation(&self) -> &Propagation {
        &self.propagation
    }

    /// How near the debt is to its bound.
    pub fn level(&self) -> Level {
        self.debt.level()
    }

    /// Decides a request. Its reply comes out of [`Engine::drain`], now or later.
    pub fn submit(&mut self, now: Now, entropy: &mut Entropy, request: &Request<'_>) {
        let debt_bytes = log_bytes(request);
        self.boot_us = now.boot_us;
        if !self.without_room.is_empty() {
            self.let_in(now, entropy);
            self.work(now, entropy);
        }
        let has_room = match self.admit(now, request, debt_bytes) {
            Ok(has_room) => has_room,
            Err(refusal) => return self.refuse(request.token, refusal),
        };
        self.debt.accept(debt_bytes);
        // What never waits is answered from memory, and changes nothing.
        let behind = self.in_order.is_behind(request).then(|| OwnedRequest::new(request)).flatten();
        if let Some(owned) = behind {
            return self.get_in_line(owned, debt_bytes);
        }
        if !has_room || (!self.without_room.is_empty() && Takes::of(&request.operation) == Takes::Room) {
            return self.park_for_room(request, debt_bytes);
        }
        self.log.expect(debt_bytes);
        match self.shard.step(now, entropy, request, None, &mut self.log) {
            Stepped::Decided(decision) => self.decided(request, decision, debt_bytes),
            Stepped::Needs(needs) => self.park(request, needs, debt_bytes),
            Stepped::Pass { dry_run, pass, at_us, position } => {
                self.debt.answer(debt_bytes);
                self.want_pass(request, dry_run, pass, at_us, position);
            }
        }
        self.work(now, entropy);
    }

    fn decided(&mut self, request: &Request<'_>, decision: Decision, debt_bytes: u64) {
        let Decision { outcome, position, global_sequence } = decision;
        self.hold(Held {
            release_at: position,
            global_sequence,
            deadline_boot_us: request.deadline_boot_us,
            is_mutation: request.operation.is_mutation(),
            debt_bytes: Some(debt_bytes),
            output: Some(reply(request.token, position, outcome)),
        });
    }

    fn refuse(&mut self, token: Token, refusal: Refusal) {
        self.refused_overload += u64::from(refusal.code == Code::Overloaded);
        self.out.push(reply(token, 0, Outcome::Refused(refusal)));
    }

    /// Looks at answers until there are none, and goes on with what waited for them.
    fn work(&mut self, now: Now, entropy: &mut Entropy) {
        let has_work = !self.answers.is_empty()
            || self.in_order.has_turns()
            || !self.following.is_empty()
            || self.pass.is_some()
            || self.shard.disputes().open_count() > 0;
        if !has_work {
            return;
        }
        self.follow_on(now);
        while let Some((question, from, answer)) = self.answers.pop_front() {
            match self.questions.remove(&question) {
                Some(Asker::Parked(id)) => self.parked_answered(now, entropy, id, answer),
                Some(Asker::Pass) => {
                    if let Some(running) = &mut self.pass {
                        running.has_failed |= matches!(answer, Answer::Failed);
                        running.missing -= 1;
                        running.pass.answered(from, answer);
                    }
                }
                None => {}
            }
        }
        while let Some(id) = self.in_order.next_turn() {
            self.take_turn(id);
            self.decide_parked(now, entropy, id);
        }
        if self.shard.number() == 0 && self.log.failed().is_none() {
            self.run_pass(now, entropy);
            self.advance_disputes(now);
        }
        // What was done may have answered this shard's own questions.
        if !self.answers.is_empty() || self.in_order.has_turns() {
            self.work(now, entropy);
        }
    }

    /// Takes a message from another shard.
    pub fn deliver(&mut self, now: Now, entropy: &mut Entropy, message: &PeerMessage) {
        self.take(now, message);
        self.work(now, entropy);
    }

    fn take(&mut self, now: Now, message: &PeerMessage) {
        match message {
            PeerMessage::Ask { from, question, ask } => self.asked(*from, *question, ask.clone()),
            PeerMessage::Answer { from, question, answer } => {
                self.answers.push_back((*question, *from, answer.clone()));
            }
            PeerMessage::Release { from, question, key_hash } => self.release_key(*from, *question, *key_hash),
            PeerMessage::Overloaded { shard, is_overloaded } => {
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    peer.is_overloaded = *is_overloaded;
                }
            }
            PeerMessage::Full { shard, is_full } => {
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    peer.is_full = *is_full;
                }
            }
            PeerMessage::Visible { corpus, claim_timestamp_us } => {
                self.propagation.seen(*corpus, now.wall_us - claim_timestamp_us);
            }
            PeerMessage::Global(global) => {
                if self.log.failed().is_some() {
                    return self.tell_failure();
                }
                self.following.push_back(global.clone());
            }
            PeerMessage::Failed { shard } => {
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    peer.has_failed = true;
                }
                let reason = format!("shard {shard} has stopped before it had this");
                let waiting = std::mem::take(&mut self.waiting_for_peers);
                self.fail(waiting, &reason);
            }
            PeerMessage::WouldDrop { shard, quarter } => self.asked_to_drop(*shard, *quarter),
            PeerMessage::MayDrop { quarter } => self.retaining.allowed(*quarter),
            PeerMessage::GlobalsApplied { shard, sequence, refused, dropped_to } => {
                self.shard.takes_no_hold_through(*dropped_to);
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    if !peer.is_known {
                        (peer.applied, peer.sent, peer.is_known) = (*sequence, *sequence, true);
                        if !self.shard.has_globals_after(*sequence) {
                            tracing::error!(shard, sequence, "the shard's file is older than the others: restore it");
                            peer.has_failed = true;
                        }
                    }
                    peer.applied = peer.applied.max(*sequence);
                    peer.refused.clone_from(refused);
                }
                if self.all_have(0) {
                    self.shard.has_heard_of_all_drops();
                }
                self.release_globals();
            }
        }
    }

    /// The next piece of I/O to do, if any.
    pub fn next_io(&mut self) -> Option<Io> {
        let io = self.log.next_io();
        io.or_else(|| self.next_sealing_io()).or_else(|| self.next_read()).or_else(|| self.next_free())
    }

    /// Takes the result of a piece of I/O, and lets out what has become durable.
    pub fn complete(&mut self, now: Now, entropy: &mut Entropy, done: IoDone) {
        self.boot_us = now.boot_us;
        match done {
            IoDone::Read { id, log_offset, result } => self.read_done(now, entropy, id, log_offset, result),
            IoDone::Paused { id } => self.resume_asking(id),
            IoDone::Built(index) => self.built(*index),
            IoDone::Cleared(rows) => self.shard.reuse(*rows),
            IoDone::Checkpoint { superblock, result } => self.checkpointed(*superblock, result),
            IoDone::Freed { segments, result } => self.freed(segments, result),
            done => {
                self.log.complete(done, now.boot_us);
                self.release();
            }
        }
        self.seal_on();
        self.let_in(now, entropy);
        self.work(now, entropy);
        if let Some(reason) = self.log.failed() {
            let reason = reason.to_owned();
            let held = self.held.drain(..).chain(self.waiting_for_peers.drain(..)).collect();
            self.fail(held, &reason);
            self.abandon_pass("shard 0 has stopped");
            let waiting: Vec<_> = self.parked.keys().copied().collect();
            for id in waiting {
                let message = format!("{reason}; restart the daemon once its storage is sound, and ask again");
                // An earlier request with the same key may have had its effect.
                let is_mutation = self.parked.get(&id).is_some_and(|parked| parked.takes != Takes::Nothing);
                let certainty = if is_mutation { Certainty::Unknown } else { Certainty::Definite };
                self.unpark(id, Some(Refusal { certainty, ..Refusal::new(Code::ShardFailed, message) }));
            }
            while let Some(request) = self.passes_waiting.pop_front() {
                self.refuse(request.token, Refusal::new(Code::ShardFailed, reason.clone()));
            }
            self.tell_failure();
        }
    }

    /// Looks at the time: marks an idle log, tries again to grow, answers what nobody waits for any more.
    pub fn tick(&mut self, now: Now, entropy: &mut Entropy) {
        self.boot_us = now.boot_us;
        self.log.tick(now.boot_us);
        self.seal_on();
        self.retain_on(now);
        self.forget_globals();
        self.shard.tidy();
        self.propagation.tick(now.wall_us);
        let is_overloaded = self.debt.level() >= Level::Yellow;
        if is_overloaded != self.was_overloaded && self.shard.number() != 0 {
            self.was_overloaded = is_overloaded;
            let shard = self.shard.number();
            self.out.push(Output::Message { to: 0, message: PeerMessage::Overloaded { shard, is_overloaded } });
        }
        let is_full = self.log.is_full();
        if is_full != self.was_full && self.shard.number() != 0 {
            self.was_full = is_full;
            let shard = self.shard.number();
            self.out.push(Output::Message { to: 0, message: PeerMessage::Full { shard, is_full } });
        }
        let is_late = |parked: &Parked| parked.request.deadline_boot_us.is_some_and(|deadline| now.boot_us >= deadline);
        let late: Vec<_> = self.parked.iter().filter(|(_, parked)| is_late(parked)).map(|(id, _)| *id).collect();
        for id in late {
            let message = "the deadline passed before other shards or the disk had answered, or the log had room";
            self.unpark(id, Some(Refusal::new(Code::Deadline, message)));
        }
        self.let_in(now, entropy);
        self.lose_patience(now);
        self.raise_due_barrier(now);
        if self.shard.number() == 0 && self.pass.is_none() && self.log.failed().is_none() {
            self.begin_due_pass(now);
        }
        self.work(now, entropy);
        for held in self.held.iter_mut().chain(self.waiting_for_peers.iter_mut()) {
            let is_late = held.deadline_boot_us.is_some_and(|deadline| now.boot_us >= deadline);
            if let (true, Some(Output::Reply(Reply { token, .. }))) = (is_late, &held.output) {
                let refusal = Refusal {
                    certainty: if held.is_mutation { Certainty::Unknown } else { Certainty::Definite },
                    ..Refusal::new(Code::Deadline, "the deadline passed before the log made it durable")
                };
                self.out.push(reply(*token, 0, Outcome::Refused(refusal)));
                held.output = None;
                // Nobody waits for it any more, but the log still has it: it is debt until it is durable.
            }
        }
        let late = self.waiting_for_peers.extract_if(.., |held| held.output.is_none());
        let paid: Vec<_> = late.filter_map(|held| held.debt_bytes).collect();
        paid.into_iter().for_each(|bytes| self.debt.answer(bytes));
    }

    /// Writes a mark without waiting for the log to have been idle for long: before a shutdown.
    pub fn mark(&mut self) {
        self.log.mark();
    }

    /// Takes out what may leave.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Output> {
        self.out.drain(..)
    }

    /// Whether [`Engine::drain`] has anything.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }
}

fn reply(token: Token, position: u64, outcome: Outcome) -> Output {
    Output::Reply(Reply { token, position, outcome })
}
