//! What frames mean: decodes, routes, submits, and answers. One per executor; other executors are reached by the mesh.

use crate::clock;
use crate::driver::Driver;
use crate::gather::{Gather, Part};
use crate::mesh::Mesh;
use crate::message::Message;
use crate::reading;
use crate::socket::connection::{CloseReason, Connection, FrameHandler, Peer, Verdict};
use crate::stall_guard::{GuardCounters, Pulse};
use crate::translate;
use claim_engine::command::{Outcome, Request};
use claim_engine::corpus::Prefix;
use claim_engine::engine::{Output, PeerMessage};
use claim_engine::entropy::Entropy;
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::log::entry::Principal;
use claim_engine::log::superblock::ClockMode;
use claim_engine::time::Now;
use claim_protocol::reply::{ReplyResult, ShardEndpoint, StatusReport, Welcome};
use claim_protocol::{self as wire, LogPosition, Operation, Reply};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use uuid::Uuid;

/// Replies that wait for reads of the ledger, per executor.
pub const READS_MAX: usize = 1_024;
/// Bytes of requests that other executors have, per executor.
pub const ASKED_BYTES_MAX: usize = 64 << 20;
/// What a scan or a history counts for against [`READS_MAX`].
pub const PAGE_READ_WEIGHT: usize = 16;
/// Advice on when to try again when an executor has too much to do.
const OVERLOADED_RETRY_MS: u32 = 5;

/// What every executor knows of the daemon.
#[derive(Debug)]
pub struct Shared {
    /// The ledger's id.
    pub ledger: Uuid,
    /// Where time comes from.
    pub clock: ClockMode,
    /// Which executor runs a shard.
    pub executor_of_shard: Vec<usize>,
    /// Which core an executor is pinned to.
    pub cores: Vec<usize>,
    /// Socket path of each shard.
    pub shard_sockets: Vec<String>,
    /// When the daemon started.
    pub started: Instant,
    /// Connections that have said hello.
    pub connections: AtomicUsize,
    /// Executors that have finished what they had, on the way down. The mesh stays open until all of them have.
    pub drained: AtomicUsize,
    /// What the stall guard did.
    pub guard: std::sync::OnceLock<Arc<GuardCounters>>,
}

/// Who waits for an engine's answer.
#[derive(Clone)]
enum ReplyTo {
    Connection(Rc<Connection>),
    Executor { executor: usize, ticket: usize },
    Gather(usize),
}

struct Pending {
    reply_to: ReplyTo,
    request_id: u64,
    shard: u16,
    is_part: bool,
}

enum Asker {
    Connection(Rc<Connection>),
    Gather(usize),
}

/// A request that another executor has.
struct Ticket {
    asker: Asker,
    frame_bytes: usize,
}

struct Gathering {
    conn: Rc<Connection>,
    gather: Gather,
}

/// See the module.
pub struct Service {
    /// What every executor knows.
    pub shared: Arc<Shared>,
    executor: usize,
    /// By shard number; `None` for those of other executors.
    drivers: Vec<Option<Rc<Driver>>>,
    mesh: Mesh<Message>,
    pulse: Arc<Pulse>,
    entropy: RefCell<Entropy>,
    pending: RefCell<Slab<Pending>>,
    tickets: RefCell<Slab<Ticket>>,
    gathers: RefCell<Slab<Gathering>>,
    greeted: RefCell<HashSet<u64>>,
    builder: RefCell<wire::Builder>,
    /// The clocks are read once for all frames of one read.
    now: Cell<Option<Now>>,
    reads: Cell<usize>,
    /// Bytes of the frames that other executors have.
    asked_bytes: Cell<usize>,
    is_stopping: Cell<bool>,
}

impl Service {
    /// The service of one executor. `drivers` has an entry per shard of the ledger.
    pub fn new(
        shared: Arc<Shared>,
        executor: usize,
        drivers: Vec<Option<Rc<Driver>>>,
        mesh: Mesh<Message>,
        pulse: Arc<Pulse>,
        entropy: Entropy,
    ) -> Rc<Service> {
        let service = Rc::new(Service {
            shared,
            executor,
            drivers,
            mesh,
            pulse,
            entropy: RefCell::new(entropy),
            pending: RefCell::default(),
            tickets: RefCell::default(),
            gathers: RefCell::default(),
            greeted: RefCell::default(),
            builder: RefCell::new(wire::Builder::new()),
            now: Cell::new(None),
            reads: Cell::new(0),
            asked_bytes: Cell::new(0),
            is_stopping: Cell::new(false),
        });
        for (shard, driver) in service.drivers.iter().enumerate() {
            if let Some(driver) = driver {
                let weak = Rc::downgrade(&service);
                driver.set_outlet(Box::new(move |output| {
                    if let Some(service) = weak.upgrade() {
                        service.output(shard as u16, output);
                    }
                }));
            }
        }
        service
    }

    /// The shards of this executor.
    pub fn local_drivers(&self) -> impl Iterator<Item = &Rc<Driver>> {
        self.drivers.iter().flatten()
    }

    /// Refuses new requests from now on.
    pub fn stop(&self) {
        self.is_stopping.set(true);
    }

    /// Whether nothing is under way on this executor.
    pub fn is_idle(&self) -> bool {
        self.pending.borrow().is_empty()
            && self.tickets.borrow().is_empty()
            && self.reads.get() == 0
            && self.local_drivers().all(|driver| driver.engine.borrow().is_idle())
    }

    /// Receives from the other executors until all of them have closed the mesh.
    pub async fn receive(self: Rc<Self>) {
        while self.mesh.receive(|from, message| self.received(from, message)).await {
            self.submitted();
        }
    }

    /// This executor sends nothing more.
    pub fn close_mesh(&self) {
        self.mesh.close();
    }

    fn now(&self) -> Now {
        match self.now.get() {
            Some(now) => now,
            None => {
                let now = clock::now();
                self.now.set(Some(now));
                now
            }
        }
    }

    /// Everything of one read has been submitted: write it.
    fn submitted(&self) {
        self.now.set(None);
        self.local_drivers().for_each(Driver::pump);
    }

    fn received(self: &Rc<Self>, from: usize, message: Message) {
        match message {
            Message::Ask { ticket, shard, frame, peer, deadline_boot_us, is_part } => {
                let reply_to = ReplyTo::Executor { executor: from, ticket };
                match wire::decode_request(&frame) {
                    Ok(request) => self.submit(shard, &request, peer, deadline_boot_us, reply_to, is_part),
                    // The sender has verified it; this is not reached, and harms nobody if it is.
                    Err(error) => {
                        let refusal = Refusal::new(Code::BadRequest, error.message);
                        self.finish(&reply_to, is_part, error.request_id, shard, 0, Err(refusal));
                    }
                }
            }
            Message::Answer { ticket, frame } => {
                if let Some(Asker::Connection(conn)) = self.answered(ticket) {
                    conn.send(|out| out.extend_from_slice(&frame));
                    conn.finish();
                }
            }
            Message::AnswerPart { ticket, part } => {
                if let Some(Asker::Gather(gather)) = self.answered(ticket) {
                    self.gathered(gather, part);
                }
            }
            Message::Peer { shard, message } => self.deliver(shard, &message),
        }
    }

    fn deliver(&self, shard: u16, message: &PeerMessage) {
        if let Some(driver) = &self.drivers[usize::from(shard)] {
            driver.engine.borrow_mut().deliver(self.now(), message);
            driver.pump();
        }
    }

    /// The registry as any local shard has it. An onboarding is acknowledged only once every shard has it.
    fn shard_of_corpus(&self, name: &str) -> Result<u16, Refusal> {
        let found = self.local_drivers().next().and_then(|driver| {
            let engine = driver.engine.borrow();
            engine.shard().registry().of_name(name).map(|corpus| corpus.shard)
        });
        found.ok_or_else(|| {
            let name: String = name.chars().take(80).collect();
            Refusal::new(
                Code::UnknownCorpus,
                format!("there is no corpus '{name}'; `claimctl onboard {name}` makes it one"),
            )
        })
    }

    fn shard_of_id(&self, uuid: Uuid) -> Result<u16, Refusal> {
        let id = translate::event_id(uuid)?;
        let found = self.local_drivers().next().and_then(|driver| {
            let engine = driver.engine.borrow();
            engine.shard().registry().of_prefix(id.prefix()).map(|corpus| corpus.shard)
        });
        found.ok_or_else(|| Refusal::retry_after(Code::NotVisible, 100, format!("there is no row {id} here yet")))
    }

    fn corpus_name(&self, prefix: Option<Prefix>) -> String {
        let found = self.local_drivers().next().and_then(|driver| {
            let engine = driver.engine.borrow();
            engine.shard().registry().of_prefix(prefix?).map(|corpus| corpus.name.clone())
        });
        found.unwrap_or_default()
    }

    fn refuse(&self, conn: &Connection, request_id: u64, refusal: Refusal) {
        self.send(
            conn,
            &Reply { request_id, positions: Vec::new(), result: ReplyResult::Error(translate::error(refusal)) },
        );
    }

    fn send(&self, conn: &Connection, reply: &Reply) {
        conn.send(|out| self.encode(reply, out));
    }

    fn encode(&self, reply: &Reply, out: &mut Vec<u8>) {
        let builder = &mut *self.builder.borrow_mut();
        if wire::encode_reply(builder, reply, out).is_ok() {
            return;
        }
        // Pages are cut to fit; a reply that does not fit all the same is our bug, and the client learns of it.
        let refusal = Refusal::unknown(Code::BadRequest, "the reply does not fit a frame; ask for less at once");
        let result = ReplyResult::Error(translate::error(refusal));
        let short = Reply { request_id: reply.request_id, positions: Vec::new(), result };
        wire::encode_reply(builder, &short, out).expect("a short error fits a frame");
    }

    fn hello(&self, conn: &Rc<Connection>, request_id: u64, min_version: u16, max_version: u16) -> Verdict {
        if !(min_version..=max_version).contains(&wire::PROTOCOL_VERSION) {
            let message = format!(
                "this daemon speaks protocol version {}, the client {min_version} to {max_version}; use a client that \
                 speaks it",
                wire::PROTOCOL_VERSION
            );
            self.refuse(conn, request_id, Refusal::new(Code::BadRequest, message));
            return Verdict::CloseAfterReply;
        }
        if self.greeted.borrow_mut().insert(conn.id()) {
            self.shared.connections.fetch_add(1, Ordering::Relaxed);
        }
        let shards = self.shared.shard_sockets.iter().zip(0..);
        let welcome = Welcome {
            version: wire::PROTOCOL_VERSION,
            daemon: DAEMON.to_owned(),
            ledger: self.shared.ledger,
            clock: translate::clock_mode(self.shared.clock),
            shards: shards.map(|(socket, shard)| ShardEndpoint { shard, socket: socket.clone() }).collect(),
            frame_bytes_max: wire::FRAME_BYTES_MAX as u32,
            batch_items_max: wire::BATCH_ITEMS_MAX as u32,
        };
        self.send(conn, &Reply { request_id, positions: Vec::new(), result: ReplyResult::Welcome(welcome) });
        Verdict::Continue
    }

    fn request(self: &Rc<Self>, conn: &Rc<Connection>, request: &wire::Request<'_>, frame: &[u8]) {
        if self.is_stopping.get() {
            let message = "the daemon is stopping and takes no more requests; try again when it is back";
            // An earlier request with the same key may have had its effect.
            let refusal = match request.operation.is_mutating() {
                true => Refusal::unknown(Code::ShuttingDown, message),
                false => Refusal::new(Code::ShuttingDown, message),
            };
            self.refuse(conn, request.request_id, refusal);
            return;
        }
        let deadline_boot_us =
            (request.deadline_ms > 0).then(|| self.now().boot_us + i64::from(request.deadline_ms) * 1_000);
        let shard = match &request.operation {
            Operation::Corpora => {
                return self.gather(
                    conn,
                    request,
                    frame,
                    deadline_boot_us,
                    Gather::corpora(request.request_id),
                    self.all_shards(),
                );
            }
            Operation::Status => {
                let gather = Gather::status(request.request_id, self.status_frame());
                return self.gather(conn, request, frame, deadline_boot_us, gather, self.all_shards());
            }
            Operation::ReferenceBatch { event_ids, .. } => {
                let mut gather = Gather::references(request.request_id, event_ids.len());
                let mut shards = Vec::new();
                for (index, uuid) in event_ids.iter().enumerate() {
                    match self.shard_of_id(*uuid) {
                        Ok(shard) if shards.contains(&shard) => {}
                        Ok(shard) => shards.push(shard),
                        Err(refusal) => gather.refuse(index, translate::error(refusal)),
                    }
                }
                return self.gather(conn, request, frame, deadline_boot_us, gather, shards);
            }
            Operation::Hello { .. } | Operation::Onboard { .. } | Operation::ConfirmClock => Ok(0),
            Operation::Claim { corpus, .. }
            | Operation::ClaimBatch { corpus, .. }
            | Operation::Retract { corpus, .. }
            | Operation::Scan { corpus, .. } => self.shard_of_corpus(corpus),
            Operation::Reference { event_id, .. }
            | Operation::Reactivate { event_id }
            | Operation::Lookup { event_id }
            | Operation::History { event_id, .. } => self.shard_of_id(*event_id),
        };
        let shard = match shard {
            Ok(shard) => shard,
            Err(refusal) => return self.refuse(conn, request.request_id, refusal),
        };
        conn.begin();
        if self.drivers[usize::from(shard)].is_some() {
            self.submit(shard, request, conn.peer(), deadline_boot_us, ReplyTo::Connection(Rc::clone(conn)), false);
            return;
        }
        let asker = Asker::Connection(Rc::clone(conn));
        if !self.ask(asker, shard, frame, conn.peer(), deadline_boot_us, false) {
            let message = "too many requests wait for that shard's core; try again a little later";
            self.refuse(conn, request.request_id, Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message));
            conn.finish();
        }
    }

    /// Gives a ticket back.
    fn answered(&self, ticket: usize) -> Option<Asker> {
        let Ticket { asker, frame_bytes } = self.tickets.borrow_mut().try_remove(ticket)?;
        self.asked_bytes.set(self.asked_bytes.get() - frame_bytes);
        Some(asker)
    }

    /// Sends a request to the executor of a shard. False when too many wait there.
    fn ask(
        &self,
        asker: Asker,
        shard: u16,
        frame: &[u8],
        peer: Peer,
        deadline_boot_us: Option<i64>,
        is_part: bool,
    ) -> bool {
        let frame_bytes = frame.len();
        if self.asked_bytes.get() + frame_bytes > ASKED_BYTES_MAX {
            return false;
        }
        self.asked_bytes.set(self.asked_bytes.get() + frame_bytes);
        let ticket = self.tickets.borrow_mut().insert(Ticket { asker, frame_bytes });
        let executor = self.shared.executor_of_shard[usize::from(shard)];
        let message = Message::Ask { ticket, shard, frame: frame.to_vec(), peer, deadline_boot_us, is_part };
        let sent = self.mesh.try_send(executor, message).is_ok();
        if !sent {
            self.answered(ticket);
        }
        sent
    }

    fn all_shards(&self) -> Vec<u16> {
        (0..self.drivers.len() as u16).collect()
    }

    fn status_frame(&self) -> StatusReport {
        StatusReport {
            daemon: DAEMON.to_owned(),
            ledger: self.shared.ledger,
            clock: translate::clock_mode(self.shared.clock),
            clock_synchronised: claim_engine::device::clock::state().is_ok_and(|state| state.synchronised),
            uptime_ms: self.shared.started.elapsed().as_millis() as u64,
            cores: self.shared.cores.len() as u32,
            connections: self.shared.connections.load(Ordering::Relaxed) as u32,
            stall_wakes: self.shared.guard.get().map_or(0, |guard| guard.wakes.load(Ordering::Relaxed)),
            shards: Vec::new(),
        }
    }

    /// Asks several shards for their part of one answer.
    fn gather(
        self: &Rc<Self>,
        conn: &Rc<Connection>,
        request: &wire::Request<'_>,
        frame: &[u8],
        deadline_boot_us: Option<i64>,
        mut gather: Gather,
        shards: Vec<u16>,
    ) {
        conn.begin();
        // One more than there are, so that it is not complete before all have been asked.
        gather.expect(shards.len() + 1);
        let key = self.gathers.borrow_mut().insert(Gathering { conn: Rc::clone(conn), gather });
        for shard in shards {
            if self.drivers[usize::from(shard)].is_some() {
                self.submit(shard, request, conn.peer(), deadline_boot_us, ReplyTo::Gather(key), true);
            } else if !self.ask(Asker::Gather(key), shard, frame, conn.peer(), deadline_boot_us, true) {
                let message = "too many requests wait for that shard's core; try again a little later";
                let refusal = Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message);
                self.gathered(key, Part::Refused { error: translate::error(refusal) });
            }
        }
        self.gathered(key, Part::Nothing);
    }

    fn gathered(&self, key: usize, part: Part) {
        let mut gathers = self.gathers.borrow_mut();
        let Some(gathering) = gathers.get_mut(key) else { return };
        if gathering.gather.add(part) {
            let Gathering { conn, gather } = gathers.remove(key);
            drop(gathers);
            self.send(&conn, &gather.reply());
            conn.finish();
        }
    }

    /// Gives a request to a shard of this executor.
    fn submit(
        self: &Rc<Self>,
        shard: u16,
        request: &wire::Request<'_>,
        peer: Peer,
        deadline_boot_us: Option<i64>,
        reply_to: ReplyTo,
        is_part: bool,
    ) {
        let Some(driver) = &self.drivers[usize::from(shard)] else { return };
        if matches!(request.operation, Operation::Status) {
            let status = driver.engine.borrow().status();
            let core = self.shared.cores[self.executor] as u16;
            self.finish_part(
                &reply_to,
                Part::Status { shard: translate::status(status, driver.scrubbed().borrow().clone(), core) },
            );
            return;
        }
        let pending = Pending { reply_to: reply_to.clone(), request_id: request.request_id, shard, is_part };
        let token = self.pending.borrow_mut().insert(pending);
        self.pulse.work_add(1);
        let refused = translate::with_operation(
            request,
            |id| self.shard_of_id(id) == Ok(shard),
            |operation| {
                let at_least: Vec<_> = request.at_least.iter().map(|at| (at.shard, at.position)).collect();
                let request = Request {
                    token: token as u64,
                    principal: Principal { uid: peer.uid, gid: peer.gid, pid: peer.pid },
                    idempotency_key: request.idempotency_key.map_or(0, |key| key.as_u128()),
                    correlation_id: request.correlation_id.map_or(0, |id| id.as_u128()),
                    rationale: request.rationale,
                    at_us: request.at_us,
                    deadline_boot_us,
                    at_least: &at_least,
                    operation,
                };
                driver.engine.borrow_mut().submit(self.now(), &mut self.entropy.borrow_mut(), &request);
            },
        );
        if let Err(refusal) = refused {
            self.pending.borrow_mut().remove(token);
            self.pulse.work_sub(1);
            self.finish(&reply_to, is_part, request.request_id, shard, 0, Err(refusal));
        }
    }

    fn output(self: &Rc<Self>, from: u16, output: Output) {
        match output {
            Output::Message { to, message } => {
                let executor = self.shared.executor_of_shard[usize::from(to)];
                if executor == self.executor {
                    self.deliver(to, &message);
                } else {
                    // Shards' messages answer each other, one for one; the mesh is closed only when all is over.
                    let _ = self.mesh.answer(executor, Message::Peer { shard: to, message });
                }
            }
            Output::Reply(reply) => {
                let Some(pending) = self.pending.borrow_mut().try_remove(reply.token as usize) else { return };
                self.pulse.work_sub(1);
                let Pending { reply_to, request_id, shard, is_part } = pending;
                debug_assert_eq!(shard, from);
                match (reply.outcome, &reply_to) {
                    (Outcome::Claimed(claimed), ReplyTo::Connection(conn)) => {
                        let at = LogPosition { shard, position: reply.position };
                        let claimed = translate::claimed(&claimed);
                        let builder = &mut *self.builder.borrow_mut();
                        conn.send(|out| wire::encode_claimed(builder, request_id, at, &claimed, out));
                        conn.finish();
                    }
                    (outcome, _) => self.answer(&reply_to, is_part, request_id, shard, reply.position, outcome),
                }
            }
        }
    }

    fn answer(
        self: &Rc<Self>,
        reply_to: &ReplyTo,
        is_part: bool,
        request_id: u64,
        shard: u16,
        position: u64,
        outcome: Outcome,
    ) {
        let at = LogPosition { shard, position };
        let result = match outcome {
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Claimed(claimed) => Ok(ReplyResult::Claimed(translate::claimed(&claimed))),
            Outcome::ClaimedItems(results) => {
                let results =
                    results.iter().map(|r| r.as_ref().map(translate::claimed).map_err(|e| translate::error(e.clone())));
                Ok(ReplyResult::ClaimedBatch(results.collect()))
            }
            Outcome::ReferencedItems(results) => {
                let mut results =
                    results.into_iter().map(|(index, r)| (index, r.map(EventId::as_uuid).map_err(translate::error)));
                if is_part {
                    return self.finish_part(reply_to, Part::References { at, results: results.collect() });
                }
                let (_, single) = results.next().expect("a reference that is no part has one item");
                Ok(single.map_or_else(ReplyResult::Error, ReplyResult::Referenced))
            }
            Outcome::Retracted { event_id, tombstoned_at_us } => {
                Ok(ReplyResult::Retracted { event_id: event_id.as_uuid(), tombstoned_at_us })
            }
            Outcome::Reactivated { event_id, reactivated_at_us } => {
                Ok(ReplyResult::Reactivated { event_id: event_id.as_uuid(), reactivated_at_us })
            }
            Outcome::Onboarded(corpus) => Ok(ReplyResult::Onboarded(translate::corpus(&corpus, 0))),
            Outcome::ClockConfirmed { confirmed_at_us } => Ok(ReplyResult::ClockConfirmed { confirmed_at_us }),
            Outcome::Corpora(corpora) => {
                let corpora = corpora.iter().map(|(corpus, claims)| translate::corpus(corpus, *claims)).collect();
                return self.finish_part(reply_to, Part::Corpora { at, corpora });
            }
            outcome @ (Outcome::Row(_) | Outcome::Rows { .. } | Outcome::History { .. }) => {
                return self.read(reply_to.clone(), request_id, shard, position, outcome);
            }
        };
        self.finish(reply_to, is_part, request_id, shard, position, result);
    }

    /// Reads from the ledger what an answer needs, and then answers.
    fn read(self: &Rc<Self>, reply_to: ReplyTo, request_id: u64, shard: u16, position: u64, outcome: Outcome) {
        let weight = if matches!(outcome, Outcome::Row(_)) { 1 } else { PAGE_READ_WEIGHT };
        if self.reads.get() + weight > READS_MAX {
            let message = "too many reads are under way; try again a little later";
            let refusal = Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message);
            return self.finish(&reply_to, false, request_id, shard, 0, Err(refusal));
        }
        let Some(driver) = self.drivers[usize::from(shard)].clone() else { return };
        self.reads.set(self.reads.get() + weight);
        self.pulse.work_add(1);
        let this = Rc::clone(self);
        glommio::spawn_local(async move {
            let names = |prefix| this.corpus_name(prefix);
            let result = reading::read(&driver, shard, outcome, names).await;
            this.pulse.work_sub(1);
            this.pulse.beat();
            this.reads.set(this.reads.get() - weight);
            if let Err(refusal) = &result {
                tracing::error!(shard, message = refusal.message, "a read of the ledger failed");
            }
            this.finish(&reply_to, false, request_id, shard, position, result);
        })
        .detach();
    }

    fn finish(
        &self,
        reply_to: &ReplyTo,
        is_part: bool,
        request_id: u64,
        shard: u16,
        position: u64,
        result: Result<ReplyResult, Refusal>,
    ) {
        let result = result.map_err(translate::error);
        if is_part {
            let part = Part::Refused {
                error: result.err().unwrap_or_else(|| translate::error(Refusal::new(Code::BadRequest, "no part"))),
            };
            return self.finish_part(reply_to, part);
        }
        let positions = if position > 0 { vec![LogPosition { shard, position }] } else { Vec::new() };
        let reply = Reply { request_id, positions, result: result.unwrap_or_else(ReplyResult::Error) };
        match reply_to {
            ReplyTo::Connection(conn) => {
                self.send(conn, &reply);
                conn.finish();
            }
            ReplyTo::Executor { executor, ticket } => {
                let mut frame = Vec::new();
                self.encode(&reply, &mut frame);
                // The mesh is closed only when nobody waits any more.
                let _ = self.mesh.answer(*executor, Message::Answer { ticket: *ticket, frame });
            }
            ReplyTo::Gather(_) => unreachable!("a gathering takes parts"),
        }
    }

    fn finish_part(&self, reply_to: &ReplyTo, part: Part) {
        match reply_to {
            ReplyTo::Gather(key) => self.gathered(*key, part),
            ReplyTo::Executor { executor, ticket } => {
                // As in `finish`.
                let _ = self.mesh.answer(*executor, Message::AnswerPart { ticket: *ticket, part });
            }
            ReplyTo::Connection(_) => unreachable!("a connection takes whole replies"),
        }
    }
}

/// The daemon's name and version.
pub const DAEMON: &str = concat!("claimd ", env!("CARGO_PKG_VERSION"));

/// The bytes that a connection gets when there are too many.
pub fn busy_frame() -> Vec<u8> {
    let message = "the daemon has as many connections as it takes; close some, or try again later";
    let refusal = Refusal::retry_after(Code::Overloaded, 1_000, message);
    let reply = Reply { request_id: 0, positions: Vec::new(), result: ReplyResult::Error(translate::error(refusal)) };
    let mut frame = Vec::new();
    wire::encode_reply(&mut wire::Builder::new(), &reply, &mut frame).expect("a short error fits a frame");
    frame
}

impl FrameHandler for Rc<Service> {
    fn frame(&self, conn: &Rc<Connection>, frame: &[u8]) -> Verdict {
        let request = match wire::decode_request(frame) {
            Ok(request) => request,
            Err(error) => {
                self.refuse(conn, error.request_id, Refusal::new(Code::BadRequest, error.message));
                return if error.fatal { Verdict::CloseAfterReply } else { Verdict::Continue };
            }
        };
        if let Operation::Hello { min_version, max_version, .. } = request.operation {
            return self.hello(conn, request.request_id, min_version, max_version);
        }
        if !self.greeted.borrow().contains(&conn.id()) {
            let message =
                "the first request of a connection is Hello, with the protocol versions that the client speaks";
            self.refuse(conn, request.request_id, Refusal::new(Code::BadRequest, message));
            return Verdict::CloseAfterReply;
        }
        self.request(conn, &request, frame);
        Verdict::Continue
    }

    fn end_of_read(&self, _conn: &Rc<Connection>) {
        self.submitted();
    }

    fn bad_length(&self, conn: &Rc<Connection>, length: u32) {
        let message =
            format!("a frame of {length} bytes is announced; a frame has 1 to {} bytes", wire::FRAME_BYTES_MAX);
        self.refuse(conn, 0, Refusal::new(Code::BadRequest, message));
    }

    fn closed(&self, conn: &Rc<Connection>, reason: &CloseReason) {
        if self.greeted.borrow_mut().remove(&conn.id()) {
            self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        }
        tracing::debug!(connection = conn.id(), ?reason, "connection closed");
    }
}
