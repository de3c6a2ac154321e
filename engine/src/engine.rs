//! One shard with its log: takes requests and messages, says what to write, and lets out replies and messages once what
//! they depend on is durable. Plain code without I/O: the daemon's driver and the simulator run the same.

use crate::command::{Operation, Outcome, PassReport, Reply, Request, Token};
use crate::corpus::Prefix;
use crate::debt::{Debt, DebtBounds, Level};
use crate::dispute::{DisputeId, DisputeState, DisputeStep};
use crate::entropy::Entropy;
use crate::error::{Certainty, Code, Refusal};
use crate::log::entry::{Entry, MERGES_MAX, Merge, Meta, PassCounts, PassPhase, Principal, Record, encode_merges};
use crate::log::recovery::{self, RecoveryError, RecoveryOptions, Visit};
use crate::log::superblock::{ClockMode, Superblock};
use crate::log::writer::{BATCH_START_EVERY_BYTES, Durable, Head, Io, IoDone, LogWriter, perform};
use crate::mutant::{Mutant, Mutation};
use crate::parked::{OwnedRequest, Parked};
use crate::peer::{Answer, Ask, PeerMessage, Sought};
use crate::propagation::{Propagation, Visibility};
use crate::reconcile::{Pass, Todo};
use crate::shard::{Decision, Needs, Shard, Stepped};
use crate::storage::Storage;
use crate::time::Now;
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};

/// Requests that wait for what other shards say, at most.
pub const PARKED_MAX: usize = 4_096;
/// Conditional claims that wait for the same event key, at most.
const RESERVATIONS_MAX: usize = 64;
/// How often a request is asked again, as it learns where aliases lead.
const ROUNDS_MAX: u32 = 64;
/// Passes that wait for the one under way, at most.
const PASSES_WAITING_MAX: usize = 16;
/// Bytes that an entry takes in the log beyond its strings, rounded up: for admission.
const ENTRY_BYTES: u64 = 256;
/// Advice on when to try again when the log is behind.
const OVERLOADED_RETRY_MS: u32 = 5;
/// Advice on when to ask for a pass again.
const PASS_RETRY_MS: u32 = 5_000;
/// Advice on when to try again when the ledger is full.
const NO_SPACE_RETRY_MS: u32 = 1_000;

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

/// Counters and states for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the status report")]
pub struct EngineStatus {
    pub shard: u16,
    pub position: u64,
    pub durable_position: u64,
    pub rows: u64,
    pub corpora: u32,
    pub idempotency_keys: u64,
    pub requests_held: u64,
    pub batches_written: u64,
    pub bytes_written: u64,
    pub segments_used: u32,
    pub segments_prepared: u32,
    pub segment_bytes: u64,
    pub incarnation: u64,
    pub clock_held_us: u64,
    pub clock_suspect: bool,
    pub no_space: bool,
    pub failed: Option<String>,
    pub level: Level,
    pub debt_requests: u64,
    pub debt_bytes: u64,
    pub refused_overload: u64,
    pub open_disputes: u32,
    pub incident_active: bool,
    pub frozen_reason: Option<String>,
    pub last_pass_at_us: Option<i64>,
    pub policy_at_us: i64,
}

/// What opening a shard found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Batches replayed.
    pub batches: u64,
    /// Records replayed.
    pub records: u64,
    /// Log offset at which the log ended.
    pub cut_at: u64,
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
    /// Requests that wait for what other shards say.
    parked: BTreeMap<u64, Parked>,
    next_parked: u64,
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
    refused: Vec<DisputeId>,
}

/// Settings of [`Engine::open`].
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// A batch that waits is written beside others in flight once it has this many bytes; by default the largest batch.
    pub fill_bytes: Option<u64>,
    /// What is accepted before it has been answered.
    pub debt: DebtBounds,
    /// A deliberate bug.
    pub mutation: Mutation,
}

impl Engine {
    /// Recovers a shard and starts a new incarnation. Nothing is served from it before this returns: what was read is
    /// flushed, because it may live only in the device's cache, and the recovery batch is durable, so that left-overs of
    /// the last run never chain again.
    pub async fn open(
        storage: &impl Storage,
        superblock: &Superblock,
        options: OpenOptions,
    ) -> Result<(Engine, Opened), RecoveryError> {
        let OpenOptions { fill_bytes, debt, mutation } = options;
        let mut shard = Shard::new(superblock);
        let (mut batches, mut records) = (0, 0);
        let mut starts = Vec::new();
        let mut last_start = None;
        let end = recovery::walk(storage, superblock, RecoveryOptions { mutation }, |visit| {
            match visit {
                Visit::Batch(place) => {
                    batches += 1;
                    let is_far = last_start.is_none_or(|at| place.log_offset >= at + BATCH_START_EVERY_BYTES);
                    if is_far {
                        last_start = Some(place.log_offset);
                        starts.push((place.header.number, place.header.first_position, place.log_offset));
                    }
                }
                Visit::Record(raw, log_offset) => {
                    records += 1;
                    shard.apply_raw(raw, log_offset)?;
                }
            }
            Ok(())
        })
        .await?;
        if !mutation.is(Mutant::NoFlushBeforeServing) {
            storage.flush().await.map_err(|e| RecoveryError::Write(format!("the flush before serving: {e}")))?;
        }
        let opened = Opened { batches, records, cut_at: end.next_batch_at };
        let mut engine = Engine {
            superblock: superblock.clone(),
            log: LogWriter::new(superblock, end, fill_bytes, mutation),
            held: VecDeque::new(),
            waiting_for_peers: Vec::new(),
            peers: vec![Peer::default(); usize::from(superblock.shard_count)],
            out: Vec::new(),
            debt: Debt::new(debt),
            refused_overload: 0,
            was_overloaded: false,
            parked: BTreeMap::new(),
            next_parked: 0,
            questions: HashMap::new(),
            next_question: 0,
            answers: VecDeque::new(),
            reservations: HashMap::new(),
            pass: None,
            passes_waiting: VecDeque::new(),
            resumption_waiting: Vec::new(),
            last_report: None,
            propagation: Propagation::default(),
            shard,
            mutation,
        };
        engine.shard.mutate(mutation);
        for (number, first_position, log_offset) in starts {
            engine.log.remember_start(number, first_position, log_offset);
        }
        engine.write_recovery_batch(storage, end.next_batch_at).await?;
        Ok((engine, opened))
    }

    async fn write_recovery_batch(&mut self, storage: &impl Storage, cut_at: u64) -> Result<(), RecoveryError> {
        let meta = Meta {
            timestamp_us: self.shard.last_us(),
            idempotency_key: 0,
            correlation_id: 0,
            fingerprint: 0,
            principal: Principal::default(),
            item: 0,
            corpus: None,
            rationale: "",
        };
        let entry = Entry::Recovery { incarnation: self.log.incarnation(), cut_at };
        let record = Record { meta, entry };
        let (position, log_offset) = self.log.append_recovery(&record);
        self.shard.apply(position, log_offset, &record).map_err(RecoveryError::Write)?;
        while self.log.durable().position < position {
            let Some(io) = self.log.next_io() else {
                let reason = self.log.failed().unwrap_or("the ledger cannot grow: make room on its file system");
                return Err(RecoveryError::Write(reason.to_owned()));
            };
            let done = perform(storage, io).await;
            self.log.complete(done, 0);
        }
        Ok(())
    }

    /// Starts the clock and tells shard 0 how far this one is; `ledger_last_us` is the greatest over all shards.
    pub fn start(&mut self, now: Now, ledger_last_us: i64) {
        self.shard.start(now, ledger_last_us);
        let sequence = self.shard.globals_applied();
        if self.shard.number() != 0 {
            let message = self.globals_applied();
            self.out.push(Output::Message { to: 0, message });
        } else {
            self.peers[0] = Peer { applied: sequence, sent: sequence, is_known: true, ..Peer::default() };
        }
    }

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
        self.log.start_for(position)
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
        if let Some(refusal) = self.admit(now, request, debt_bytes) {
            self.refused_overload += u64::from(refusal.code == Code::Overloaded);
            self.out.push(reply(request.token, 0, Outcome::Refused(refusal)));
            return;
        }
        self.debt.accept(debt_bytes);
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

    /// Asks another shard, or this one.
    fn ask(&mut self, to: u16, ask: Ask, asker: Asker) -> u64 {
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
    fn asked(&mut self, from: u16, question: u64, ask: Ask) {
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
        self.shard.tidy();
        let answer = if self.log.failed().is_some() { Answer::Failed } else { self.shard.answer(&ask) };
        self.send_answer(from, question, answer);
    }

    fn send_answer(&mut self, to: u16, question: u64, answer: Answer) {
        let from = self.shard.number();
        if to == from {
            self.answers.push_back((question, from, answer));
            return;
        }
        let says_nothing = matches!(answer, Answer::Reserved | Answer::Busy | Answer::Failed);
        let message = PeerMessage::Answer { from, question, answer };
        self.hold_message(if says_nothing { 0 } else { self.shard.last_position() }, to, message);
    }

    fn hold_message(&mut self, release_at: u64, to: u16, message: PeerMessage) {
        self.hold(Held {
            release_at,
            global_sequence: 0,
            deadline_boot_us: None,
            is_mutation: false,
            debt_bytes: None,
            output: Some(Output::Message { to, message }),
        });
    }

    /// Gives a reservation back, and has the next one begin.
    fn release_key(&mut self, from: u16, question: u64, key_hash: u64) {
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

    fn refuse(&mut self, token: Token, refusal: Refusal) {
        self.out.push(reply(token, 0, Outcome::Refused(refusal)));
    }

    fn shard_of(&self, prefix: Prefix) -> u16 {
        self.shard.registry().of_prefix(prefix).map_or(self.shard.number(), |corpus| corpus.shard)
    }

    /// Has a request wait for what it needs to know.
    fn park(&mut self, request: &Request<'_>, needs: Needs, debt_bytes: u64) {
        let owned = OwnedRequest::new(request).filter(|_| self.parked.len() < PARKED_MAX);
        let Some(owned) = owned else {
            self.debt.answer(debt_bytes);
            let message = "too many requests wait for what other shards say; try again a little later";
            return self.refuse(request.token, Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message));
        };
        self.next_parked += 1;
        let id = self.next_parked;
        let parked = Parked {
            request: owned,
            debt_bytes,
            facts: Vec::new(),
            missing: 0,
            reservation: None,
            sought: None,
            rounds: 0,
        };
        self.parked.insert(id, parked);
        self.find_out(id, needs);
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

    /// Looks at answers until there are none, and goes on with what waited for them.
    fn work(&mut self, now: Now, entropy: &mut Entropy) {
        let has_work = !self.answers.is_empty() || self.pass.is_some() || self.shard.disputes().open_count() > 0;
        if !has_work {
            return;
        }
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
        if self.shard.number() == 0 && self.log.failed().is_none() {
            self.run_pass(now, entropy);
            self.advance_disputes(now);
        }
        // What was done may have answered this shard's own questions.
        if !self.answers.is_empty() {
            self.work(now, entropy);
        }
    }

    fn parked_answered(&mut self, now: Now, entropy: &mut Entropy, id: u64, answer: Answer) {
        let Some(parked) = self.parked.get_mut(&id) else { return };
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
    fn unpark(&mut self, id: u64, refusal: Option<Refusal>) {
        let Some(parked) = self.parked.remove(&id) else { return };
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

    /// Everything that was asked has been answered: decides, or asks on.
    fn decide_parked(&mut self, now: Now, entropy: &mut Entropy, id: u64) {
        let Some(parked) = self.parked.get(&id) else { return };
        let (request, facts, rounds) = (parked.request.clone(), parked.facts.clone(), parked.rounds);
        let debt_bytes = parked.debt_bytes;
        if let Some(refusal) = request.with(|request| self.admit_to_log(&request.operation, debt_bytes)) {
            return self.unpark(id, Some(refusal));
        }
        let stepped = request.with(|request| self.shard.step(now, entropy, request, Some(&facts), &mut self.log));
        match stepped {
            Stepped::Decided(decision) => {
                request.with(|request| self.decided(request, decision, debt_bytes));
                self.unpark(id, None);
            }
            Stepped::Needs(needs) if rounds < ROUNDS_MAX => self.find_out(id, needs),
            Stepped::Needs(_) | Stepped::Pass { .. } => {
                let message = "what this depends on changes faster than it can be found out; try again";
                self.unpark(id, Some(Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message)));
            }
        }
    }

    /// Whether all shards have the global order up to here.
    fn all_have(&self, sequence: u64) -> bool {
        self.peers.iter().skip(1).all(|peer| peer.is_known && peer.applied >= sequence)
    }

    fn is_anyone_overloaded(&self) -> bool {
        self.debt.level() >= Level::Yellow || self.peers.iter().any(|peer| peer.is_overloaded)
    }

    /// Whether the daemon may add entries of its own.
    fn takes_own_entries(&self) -> bool {
        self.log.takes_small_entries() && !self.peers.iter().any(|peer| peer.has_failed)
    }

    /// At shard 0: moves disputes on, as far as every shard has followed.
    fn advance_disputes(&mut self, now: Now) {
        if self.shard.disputes().open_count() == 0 || !self.takes_own_entries() {
            return;
        }
        let is_frozen = self.shard.registry().frozen().is_some();
        let own_refused = self.shard.refused_disputes();
        let time_us = self.shard.time_us(now);
        let is_deferring = self.shard.registry().incident_active() || self.is_anyone_overloaded();
        let interval_us = self.shard.policy().dispute_interval_us();
        let mut may_move = !is_deferring || time_us - self.shard.disputes().moved_at_us() >= interval_us;
        let mut steps = Vec::new();
        for dispute in self.shard.disputes().open_ones() {
            let is_everywhere = self.all_have(dispute.global_sequence);
            let is_refused =
                own_refused.contains(&dispute.id) || self.peers.iter().any(|p| p.refused.contains(&dispute.id));
            let step = match dispute.state {
                DisputeState::Detect if may_move && !is_frozen => {
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
            self.shard.decide_alone(now, time_us, entry, &mut self.log);
        }
    }

    /// A pass is asked for: it begins, or waits, or has been.
    fn want_pass(&mut self, request: &Request<'_>, dry_run: bool, done: Option<u64>, at_us: i64, position: u64) {
        if let Some(number) = done {
            if let Some(running) = self.pass.as_mut().filter(|running| running.pass.report.pass == number) {
                running.waiting.push(request.token);
                return;
            }
            let passes = self.shard.passes();
            if passes.is_under_way() && passes.begun().is_some_and(|mark| mark.pass == number) {
                if self.resumption_waiting.len() < PASSES_WAITING_MAX {
                    return self.resumption_waiting.push(request.token);
                }
                let message = "many wait for the pass of reconciliation that is under way; try again later";
                return self.refuse(request.token, Refusal::retry_after(Code::Overloaded, PASS_RETRY_MS, message));
            }
            let known = self.last_report.as_ref().filter(|report| report.pass == number).cloned();
            let report = known.unwrap_or_else(|| {
                let (at_us, counts) = passes.ended(number).unwrap_or((at_us, PassCounts::default()));
                PassReport { pass: number, at_us, counts, ..PassReport::default() }
            });
            return self.hold(Held {
                release_at: position,
                global_sequence: 0,
                deadline_boot_us: request.deadline_boot_us,
                is_mutation: true,
                debt_bytes: None,
                output: Some(reply(request.token, position, Outcome::Reconciled(Box::new(report)))),
            });
        }
        let owned = OwnedRequest::new(request);
        match (owned, &self.pass) {
            (Some(owned), None) => self.start_pass(Some(owned), dry_run, true, at_us),
            (Some(owned), Some(_)) if self.passes_waiting.len() < PASSES_WAITING_MAX => {
                self.passes_waiting.push_back(owned);
            }
            _ => {
                let message = "a pass of reconciliation is under way, and others wait for it; try again later";
                self.refuse(request.token, Refusal::retry_after(Code::Overloaded, PASS_RETRY_MS, message));
            }
        }
    }

    fn start_pass(&mut self, request: Option<OwnedRequest>, dry_run: bool, is_full: bool, at_us: i64) {
        let tolerance_us = self.shard.policy().tolerance_us();
        let waiting = request.iter().map(|request| request.token).collect();
        self.pass = Some(Running {
            pass: Pass::new(self.superblock.shard_count, dry_run, is_full, tolerance_us, at_us),
            request,
            waiting,
            missing: 0,
            applied: 0,
            has_failed: false,
        });
    }

    /// At shard 0: starts what is due, and takes the pass under way as far as it goes.
    fn run_pass(&mut self, now: Now, entropy: &mut Entropy) {
        while let Some(running) = &self.pass {
            if running.missing > 0 || !self.all_have(running.applied) || !self.takes_own_entries() {
                if running.has_failed || self.peers.iter().any(|peer| peer.has_failed) {
                    self.abandon_pass("a shard has stopped");
                }
                return;
            }
            if running.has_failed {
                return self.abandon_pass("a shard has stopped");
            }
            let Some(mut running) = self.pass.take() else { return };
            let todo = {
                let shard_of = |prefix| self.shard_of(prefix);
                let is_dismissed = |a, b| self.shard.disputes().is_dismissed_pair(a, b);
                running.pass.next(&shard_of, &is_dismissed)
            };
            match todo {
                Todo::Ask(asks) => {
                    running.missing = asks.len();
                    self.pass = Some(running);
                    for (shard, ask) in asks {
                        self.ask(shard, ask, Asker::Pass);
                    }
                    self.take_own_answers();
                }
                Todo::Begin(at_us) => {
                    self.begin_pass(now, entropy, &mut running, at_us);
                    self.pass = Some(running);
                }
                Todo::Merge(merges) => {
                    for chunk in merges.chunks(MERGES_MAX) {
                        self.log_pass(now, &running.pass.report, PassPhase::Merge, chunk);
                    }
                    running.applied = self.shard.globals_applied();
                    self.pass = Some(running);
                }
                Todo::Done => {
                    self.log_pass(now, &running.pass.report, PassPhase::Done, &[]);
                    running.applied = self.shard.globals_applied();
                    self.pass = Some(running);
                }
                Todo::Report => self.report_pass(running),
            }
        }
    }

    /// This shard's own answers to a pass, which are there at once.
    fn take_own_answers(&mut self) {
        let own = self.shard.number();
        let mut others = VecDeque::new();
        while let Some((question, from, answer)) = self.answers.pop_front() {
            if from == own && self.questions.get(&question) == Some(&Asker::Pass) {
                self.questions.remove(&question);
                if let Some(running) = &mut self.pass {
                    running.missing -= 1;
                    running.pass.answered(from, answer);
                }
            } else {
                others.push_back((question, from, answer));
            }
        }
        self.answers = others;
    }

    fn begin_due_pass(&mut self, now: Now) {
        if self.peers.iter().any(|peer| peer.has_failed) {
            self.refuse_resumption("a shard has stopped");
        }
        let everybody_is_there = self.peers.iter().skip(1).all(|peer| peer.is_known && !peer.has_failed);
        if !everybody_is_there || self.shard.registry().frozen().is_some() {
            return;
        }
        if self.shard.passes().is_under_way()
            && let Some(mark) = self.shard.passes().begun()
        {
            // A crash ended it before it was done.
            let tolerance_us = self.shard.policy().tolerance_us();
            let pass = Pass::resumed(self.superblock.shard_count, mark.pass, mark.at_us, tolerance_us);
            let (request, waiting) = (None, std::mem::take(&mut self.resumption_waiting));
            let applied = self.shard.globals_applied();
            self.pass = Some(Running { pass, request, waiting, missing: 0, applied, has_failed: false });
            return;
        }
        let time_us = self.shard.time_us(now);
        if let Some(request) = self.passes_waiting.pop_front() {
            let dry_run = request.with(|r| matches!(r.operation, Operation::Reconcile { dry_run: true }));
            return self.start_pass(Some(request), dry_run, true, time_us);
        }
        let is_by_itself = self.shard.clock().mode() == ClockMode::Wall && self.shard.in_force().at_us > 0;
        let last_us = self.shard.passes().begun().map_or(self.superblock.formatted_at_us, |mark| mark.at_us);
        let is_due = time_us - last_us >= self.shard.policy().reconcile_interval_us();
        if is_by_itself && is_due && !self.is_anyone_overloaded() && self.shard.clock().suspect().is_none() {
            self.start_pass(None, false, false, time_us);
        }
    }

    fn begin_pass(&mut self, now: Now, entropy: &mut Entropy, running: &mut Running, at_us: i64) {
        match running.request.take() {
            Some(request) => {
                request.with(|request| self.shard.begin_pass(now, entropy, request, at_us, &mut self.log));
                running.pass.report.pass = self.shard.passes().begun().map_or(0, |mark| mark.pass);
            }
            None => {
                running.pass.report.pass = self.shard.passes().begun().map_or(0, |mark| mark.pass) + 1;
                self.log_pass(now, &running.pass.report, PassPhase::Begin, &[]);
            }
        }
        running.applied = self.shard.globals_applied();
    }

    fn log_pass(&mut self, now: Now, report: &PassReport, phase: PassPhase, merges: &[Merge]) {
        let counts = if phase == PassPhase::Done { report.counts } else { PassCounts::default() };
        let merges = encode_merges(merges);
        let (global_sequence, pass, at_us) = (self.shard.globals_applied() + 1, report.pass, report.at_us);
        let entry = Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges: &merges };
        self.shard.decide_alone(now, at_us, entry, &mut self.log);
    }

    fn report_pass(&mut self, running: Running) {
        let report = running.pass.report;
        let position = self.shard.last_position();
        for token in running.waiting {
            self.hold(Held {
                release_at: position,
                global_sequence: 0,
                deadline_boot_us: None,
                is_mutation: true,
                debt_bytes: None,
                output: Some(reply(token, position, Outcome::Reconciled(Box::new(report.clone())))),
            });
        }
        if !report.dry_run {
            self.last_report = Some(report);
        }
    }

    fn refuse_resumption(&mut self, reason: &str) {
        for token in std::mem::take(&mut self.resumption_waiting) {
            let message = format!("{reason} before the pass could go on: ask again with the same key");
            self.refuse(token, Refusal::unknown(Code::ShardFailed, message));
        }
    }

    fn abandon_pass(&mut self, reason: &str) {
        self.refuse_resumption(reason);
        let Some(running) = self.pass.take() else { return };
        self.questions.retain(|_, asker| *asker != Asker::Pass);
        for token in running.waiting {
            let message =
                format!("{reason} before the pass was over; what it has merged stays: ask again with the same key");
            self.refuse(token, Refusal::unknown(Code::ShardFailed, message));
        }
    }

    /// Why a request is not even decided.
    fn admit(&self, now: Now, request: &Request<'_>, log_bytes: u64) -> Option<Refusal> {
        if let Some(reason) = self.log.failed() {
            let number = self.shard.number();
            let message = format!("shard {number} has stopped: {reason}; restart the daemon once its storage is sound");
            // An earlier request with the same key may have had its effect.
            let certainty = if request.operation.is_mutation() { Certainty::Unknown } else { Certainty::Definite };
            return Some(Refusal { certainty, ..Refusal::new(Code::ShardFailed, message) });
        }
        if request.deadline_boot_us.is_some_and(|deadline| now.boot_us >= deadline) {
            return Some(Refusal::new(Code::Deadline, "the deadline had passed before the request was looked at"));
        }
        if let Some(refusal) = self.shed(&request.operation) {
            return Some(refusal);
        }
        let refusal = self.admit_to_log(&request.operation, log_bytes);
        if refusal.is_some() {
            return refusal;
        }
        let failed = self.peers.iter().position(|peer| peer.has_failed).filter(|_| request.operation.is_global());
        if let Some(failed) = failed {
            let message =
                format!("shard {failed} has stopped, and this concerns every shard: mend its storage and restart");
            return Some(Refusal::unknown(Code::ShardFailed, message));
        }
        None
    }

    /// What is refused because there is too much to do: claims are served before references, these before reads.
    fn shed(&self, operation: &Operation<'_>) -> Option<Refusal> {
        let level = self.debt.level();
        let refused_from = match operation {
            Operation::Scan { .. }
            | Operation::Reference { .. }
            | Operation::Find { .. }
            | Operation::Correlated { .. }
            | Operation::Totals { .. } => Level::Orange,
            Operation::Claim { .. } | Operation::Lookup { .. } | Operation::History { .. } => Level::Red,
            _ => return self.debt.is_full().then(|| self.overloaded(level)),
        };
        (level >= refused_from || self.debt.is_full()).then(|| self.overloaded(level))
    }

    fn overloaded(&self, level: Level) -> Refusal {
        let message = format!(
            "shard {} is overloaded ({level:?}): {} requests wait for its log; try again a little later",
            self.shard.number(),
            self.debt.requests()
        );
        Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message)
    }

    /// Whether the log has room for what a request adds.
    fn admit_to_log(&self, operation: &Operation<'_>, bytes: u64) -> Option<Refusal> {
        if !operation.is_mutation() {
            return None;
        }
        let has_place = self.log.prepared_bytes() >= bytes;
        if !has_place && self.log.cannot_grow() {
            let message = "the ledger cannot grow: make room on its file system; reads go on, and writes as soon as there is room";
            return Some(Refusal::retry_after(Code::NoSpace, NO_SPACE_RETRY_MS, message));
        }
        if !has_place || self.log.room_bytes() < bytes {
            let message = "the log is behind: its buffers or its zeroed segments are used up; try again a little later";
            return Some(Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message));
        }
        None
    }

    fn globals_applied(&self) -> PeerMessage {
        PeerMessage::GlobalsApplied {
            shard: self.shard.number(),
            sequence: self.shard.globals_applied(),
            refused: self.shard.refused_disputes(),
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
            PeerMessage::Visible { corpus, claim_timestamp_us } => {
                self.propagation.seen(*corpus, now.wall_us - claim_timestamp_us);
            }
            PeerMessage::Global(global) => {
                if self.log.failed().is_some() {
                    return self.tell_failure();
                }
                // A gap, or a repetition, is answered with how far this shard is.
                self.shard.follow(now, global, &mut self.log).expect("shard 0 sends entries that apply");
                let message = self.globals_applied();
                self.hold_message(self.shard.last_position(), 0, message);
            }
            PeerMessage::Failed { shard } => {
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    peer.has_failed = true;
                }
                let reason = format!("shard {shard} has stopped before it had this");
                let waiting = std::mem::take(&mut self.waiting_for_peers);
                self.fail(waiting, &reason);
            }
            PeerMessage::GlobalsApplied { shard, sequence, refused } => {
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    if !peer.is_known {
                        (peer.applied, peer.sent, peer.is_known) = (*sequence, *sequence, true);
                    }
                    peer.applied = peer.applied.max(*sequence);
                    peer.refused.clone_from(refused);
                }
                self.release_globals();
            }
        }
    }

    fn hold(&mut self, held: Held) {
        let is_free = held.release_at <= self.log.durable().position && held.global_sequence == 0;
        let is_free = is_free || self.mutation.is(Mutant::AckBeforeDurable);
        if is_free {
            self.let_out(held);
        } else {
            let is_durable = held.release_at <= self.log.durable().position;
            self.held.push_back(held);
            if is_durable {
                // It waits for other shards alone, and an idle log may complete nothing more that would let it out.
                self.release();
            }
        }
    }

    /// Lets an output go. It is no debt any more.
    fn let_out(&mut self, held: Held) {
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

    /// The next piece of I/O to do, if any.
    pub fn next_io(&mut self) -> Option<Io> {
        self.log.next_io()
    }

    /// Takes the result of a piece of I/O, and lets out what has become durable.
    pub fn complete(&mut self, now: Now, entropy: &mut Entropy, done: IoDone) {
        self.log.complete(done, now.boot_us);
        self.release();
        self.work(now, entropy);
        if let Some(reason) = self.log.failed() {
            let reason = reason.to_owned();
            let held = self.held.drain(..).chain(self.waiting_for_peers.drain(..)).collect();
            self.fail(held, &reason);
            self.abandon_pass("shard 0 has stopped");
            let waiting: Vec<_> = self.parked.keys().copied().collect();
            for id in waiting {
                let message = format!("{reason}; restart the daemon once its storage is sound, and ask again");
                self.unpark(id, Some(Refusal::new(Code::ShardFailed, message)));
            }
            while let Some(request) = self.passes_waiting.pop_front() {
                self.refuse(request.token, Refusal::new(Code::ShardFailed, reason.clone()));
            }
            self.tell_failure();
        }
    }

    /// Tells shard 0 that this one follows no more.
    fn tell_failure(&mut self) {
        let shard = self.shard.number();
        if shard != 0 {
            self.out.push(Output::Message { to: 0, message: PeerMessage::Failed { shard } });
        }
    }

    fn release(&mut self) {
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

    /// At shard 0: sends the others what is durable and new to them, and lets out what all of them have.
    fn release_globals(&mut self) {
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

    fn fail(&mut self, held: Vec<Held>, reason: &str) {
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

    /// Looks at the time: marks an idle log, tries again to grow, answers what nobody waits for any more.
    pub fn tick(&mut self, now: Now, entropy: &mut Entropy) {
        self.log.tick(now.boot_us);
        self.shard.tidy();
        self.propagation.tick(now.wall_us);
        let is_overloaded = self.debt.level() >= Level::Yellow;
        if is_overloaded != self.was_overloaded && self.shard.number() != 0 {
            self.was_overloaded = is_overloaded;
            let shard = self.shard.number();
            self.out.push(Output::Message { to: 0, message: PeerMessage::Overloaded { shard, is_overloaded } });
        }
        let is_late = |parked: &Parked| parked.request.deadline_boot_us.is_some_and(|deadline| now.boot_us >= deadline);
        let late: Vec<_> = self.parked.iter().filter(|(_, parked)| is_late(parked)).map(|(id, _)| *id).collect();
        for id in late {
            let message = "the deadline passed before other shards had answered";
            self.unpark(id, Some(Refusal::new(Code::Deadline, message)));
        }
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

    /// For `status`.
    pub fn status(&self) -> EngineStatus {
        let (segments_used, segments_prepared) = self.log.segments();
        let counts = self.log.counts();
        EngineStatus {
            shard: self.shard.number(),
            position: self.shard.last_position(),
            durable_position: self.log.durable().position,
            rows: self.shard.rows().count(),
            corpora: self.shard.registry().on_shard(self.shard.number()),
            idempotency_keys: self.shard.key_count(),
            requests_held: self.held() as u64,
            batches_written: counts.batches,
            bytes_written: counts.bytes,
            segments_used: segments_used as u32,
            segments_prepared: segments_prepared as u32,
            segment_bytes: self.superblock.geometry.segment_bytes,
            incarnation: self.log.incarnation(),
            clock_held_us: self.shard.clock().held_us() as u64,
            clock_suspect: self.shard.clock().suspect().is_some(),
            no_space: self.log.cannot_grow(),
            failed: self.log.failed().map(str::to_owned),
            level: self.debt.level(),
            debt_requests: self.debt.requests(),
            debt_bytes: self.debt.bytes(),
            refused_overload: self.refused_overload,
            open_disputes: self.shard.disputes().open_count() as u32,
            incident_active: self.shard.registry().incident_active(),
            frozen_reason: self.shard.registry().frozen().map(|stop| stop.reason.clone()),
            last_pass_at_us: self.shard.passes().done().map(|mark| mark.at_us),
            policy_at_us: self.shard.in_force().at_us,
        }
    }
}

fn reply(token: Token, position: u64, outcome: Outcome) -> Output {
    Output::Reply(Reply { token, position, outcome })
}

/// An upper bound of what a request adds to the log.
fn log_bytes(request: &Request<'_>) -> u64 {
    use crate::command::Operation::{Claim, Configure, Onboard, Reference};
    let rationale = request.rationale.len() as u64;
    // Behind a claim there may be alarms, before anything the name of a user.
    let beside = 4 * ENTRY_BYTES + request.user.len() as u64;
    let strings: u64 = match request.operation {
        Claim { items, .. } => items
            .iter()
            .map(|c| {
                let texts = c.event_key.len() + c.owning_corpus.len() + c.hosting_corpus.len() + c.category.len();
                (texts + c.metadata.len()) as u64 + rationale + ENTRY_BYTES
            })
            .sum(),
        Reference { items, .. } => items.len() as u64 * (rationale + ENTRY_BYTES),
        Onboard { name, notes } => 2 * (rationale + ENTRY_BYTES) + (name.len() + notes.len()) as u64,
        Configure { toml } => rationale + ENTRY_BYTES + toml.len() as u64,
        _ => rationale + ENTRY_BYTES,
    };
    strings + beside
}
