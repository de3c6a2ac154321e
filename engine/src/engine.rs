//! One shard with its log: takes requests and messages, says what to write, and lets out replies and messages once what
//! they depend on is durable. Plain code without I/O: the daemon's driver and the simulator run the same.

use crate::command::{Operation, Outcome, Reply, Request, Token};
use crate::entropy::Entropy;
use crate::error::{Certainty, Code, Refusal};
use crate::log::entry::{Entry, Meta, Principal, Record};
use crate::log::recovery::{self, RecoveryError, RecoveryOptions, Visit};
use crate::log::superblock::Superblock;
use crate::log::writer::{Durable, Io, IoDone, LogWriter, perform};
use crate::mutant::{Mutant, Mutation};
use crate::shard::{Decision, GlobalEntry, Shard};
use crate::storage::Storage;
use crate::time::Now;
use std::collections::VecDeque;

/// Replies and messages that wait for durability, at most. Beyond it requests are refused.
pub const HELD_MAX: usize = 65_536;
/// Bytes that an entry takes in the log beyond its strings, rounded up: for admission.
const ENTRY_BYTES: u64 = 256;
/// Advice on when to try again when the log is behind.
const OVERLOADED_RETRY_MS: u32 = 5;
/// Advice on when to try again when the ledger is full.
const NO_SPACE_RETRY_MS: u32 = 1_000;

/// A message from one shard to another. Everything it says is durable at its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerMessage {
    /// From shard 0: an entry that every shard keeps.
    Global(GlobalEntry),
    /// To shard 0: how far the sender is in the global order.
    GlobalsApplied {
        /// The sender.
        shard: u16,
        /// The last one it has, durably.
        sequence: u64,
    },
    /// To shard 0: the sender has stopped, and follows no more.
    Failed {
        /// The sender.
        shard: u16,
    },
}

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
    mutation: Mutation,
}

#[derive(Debug, Clone, Copy, Default)]
struct Peer {
    applied: u64,
    sent: u64,
    is_known: bool,
    has_failed: bool,
}

/// Settings of [`Engine::open`].
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// A batch that waits is written beside others in flight once it has this many bytes; by default the largest batch.
    pub fill_bytes: Option<u64>,
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
        let OpenOptions { fill_bytes, mutation } = options;
        let mut shard = Shard::new(superblock);
        let (mut batches, mut records) = (0, 0);
        let end = recovery::walk(storage, superblock, RecoveryOptions { mutation }, |visit| {
            match visit {
                Visit::Batch(_) => batches += 1,
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
            shard,
            mutation,
        };
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
            let shard = self.shard.number();
            self.out.push(Output::Message { to: 0, message: PeerMessage::GlobalsApplied { shard, sequence } });
        } else {
            self.peers[0] = Peer { applied: sequence, sent: sequence, is_known: true, has_failed: false };
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
        self.held.is_empty() && self.waiting_for_peers.is_empty() && self.log.is_idle()
    }

    /// Replies and messages that wait.
    pub fn held(&self) -> usize {
        self.held.len() + self.waiting_for_peers.len()
    }

    /// Decides a request. Its reply comes out of [`Engine::drain`], now or later.
    pub fn submit(&mut self, now: Now, entropy: &mut Entropy, request: &Request<'_>) {
        if let Some(refusal) = self.admit(now, request) {
            self.out.push(reply(request.token, 0, Outcome::Refused(refusal)));
            return;
        }
        let Decision { outcome, position, global_sequence } = self.shard.step(now, entropy, request, &mut self.log);
        let held = Held {
            release_at: position,
            global_sequence,
            deadline_boot_us: request.deadline_boot_us,
            is_mutation: request.operation.is_mutation(),
            output: Some(reply(request.token, position, outcome)),
        };
        self.hold(held);
    }

    /// Why a request is not even decided.
    fn admit(&self, now: Now, request: &Request<'_>) -> Option<Refusal> {
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
        if self.held.len() >= HELD_MAX {
            let message = "more requests wait for the log than the shard takes; try again a little later";
            return Some(Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message));
        }
        if !request.operation.is_mutation() {
            return None;
        }
        let bytes = log_bytes(request);
        let has_place = self.log.prepared_bytes() >= bytes;
        if !has_place && self.log.cannot_grow() {
            let message = "the ledger cannot grow: make room on its file system; reads go on, and writes as soon as there is room";
            return Some(Refusal::retry_after(Code::NoSpace, NO_SPACE_RETRY_MS, message));
        }
        if !has_place || self.log.room_bytes() < bytes {
            let message = "the log is behind: its buffers or its zeroed segments are used up; try again a little later";
            return Some(Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message));
        }
        let spans_shards = matches!(request.operation, Operation::Onboard { .. } | Operation::ConfirmClock);
        if let Some(failed) = self.peers.iter().position(|peer| peer.has_failed).filter(|_| spans_shards) {
            let message =
                format!("shard {failed} has stopped, and this concerns every shard: mend its storage and restart");
            return Some(Refusal::unknown(Code::ShardFailed, message));
        }
        None
    }

    /// Takes a message from another shard.
    pub fn deliver(&mut self, now: Now, message: &PeerMessage) {
        match message {
            PeerMessage::Global(global) => {
                if self.log.failed().is_some() {
                    return self.tell_failure();
                }
                // A gap, or a repetition, is answered with how far this shard is.
                self.shard.follow(now, global, &mut self.log).expect("shard 0 sends entries that apply");
                let (shard, sequence) = (self.shard.number(), self.shard.globals_applied());
                let message = PeerMessage::GlobalsApplied { shard, sequence };
                self.hold(Held {
                    release_at: self.shard.last_position(),
                    global_sequence: 0,
                    deadline_boot_us: None,
                    is_mutation: false,
                    output: Some(Output::Message { to: 0, message }),
                });
            }
            PeerMessage::Failed { shard } => {
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    peer.has_failed = true;
                }
                let reason = format!("shard {shard} has stopped before it had this");
                let waiting = std::mem::take(&mut self.waiting_for_peers);
                self.fail(waiting, &reason);
            }
            PeerMessage::GlobalsApplied { shard, sequence } => {
                if let Some(peer) = self.peers.get_mut(usize::from(*shard)) {
                    if !peer.is_known {
                        *peer = Peer { applied: *sequence, sent: *sequence, is_known: true, ..*peer };
                    }
                    peer.applied = peer.applied.max(*sequence);
                }
                self.release_globals();
            }
        }
    }

    fn hold(&mut self, held: Held) {
        let is_free = held.release_at <= self.log.durable().position && held.global_sequence == 0;
        let is_free = is_free || self.mutation.is(Mutant::AckBeforeDurable);
        if is_free {
            self.out.extend(held.output);
        } else {
            let is_durable = held.release_at <= self.log.durable().position;
            self.held.push_back(held);
            if is_durable {
                // It waits for other shards alone, and an idle log may complete nothing more that would let it out.
                self.release();
            }
        }
    }

    /// The next piece of I/O to do, if any.
    pub fn next_io(&mut self) -> Option<Io> {
        self.log.next_io()
    }

    /// Takes the result of a piece of I/O, and lets out what has become durable.
    pub fn complete(&mut self, now: Now, done: IoDone) {
        self.log.complete(done, now.boot_us);
        self.release();
        if let Some(reason) = self.log.failed() {
            let reason = reason.to_owned();
            let held = self.held.drain(..).chain(self.waiting_for_peers.drain(..)).collect();
            self.fail(held, &reason);
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
                self.out.extend(held.output);
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
                self.out.extend(held.output);
            } else {
                i += 1;
            }
        }
    }

    fn fail(&mut self, held: Vec<Held>, reason: &str) {
        for held in held {
            if let Some(Output::Reply(Reply { token, .. })) = held.output {
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
    pub fn tick(&mut self, now: Now) {
        self.log.tick(now.boot_us);
        for held in self.held.iter_mut().chain(self.waiting_for_peers.iter_mut()) {
            let is_late = held.deadline_boot_us.is_some_and(|deadline| now.boot_us >= deadline);
            if let (true, Some(Output::Reply(Reply { token, .. }))) = (is_late, &held.output) {
                let refusal = Refusal {
                    certainty: if held.is_mutation { Certainty::Unknown } else { Certainty::Definite },
                    ..Refusal::new(Code::Deadline, "the deadline passed before the log made it durable")
                };
                self.out.push(reply(*token, 0, Outcome::Refused(refusal)));
                held.output = None;
            }
        }
        self.waiting_for_peers.retain(|held| held.output.is_some());
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
        }
    }
}

fn reply(token: Token, position: u64, outcome: Outcome) -> Output {
    Output::Reply(Reply { token, position, outcome })
}

/// An upper bound of what a request adds to the log.
fn log_bytes(request: &Request<'_>) -> u64 {
    use crate::command::Operation::{Claim, Onboard, Reference};
    let rationale = request.rationale.len() as u64;
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
        _ => rationale + ENTRY_BYTES,
    };
    strings
}
