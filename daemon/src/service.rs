//! What frames mean: decodes, routes, submits, and answers. One per executor; other executors are reached by the mesh.

mod routing;

use crate::clock;
use crate::driver::Driver;
use crate::gather::Part;
use crate::mesh::Mesh;
use crate::message::Message;
use crate::reading;
use crate::rounds::Rounds;
use crate::shared::{Shared, Tried};
use crate::socket::connection::{CloseReason, Connection, Door, FrameHandler, Peer, Verdict};
use crate::space;
use crate::stages::Stages;
use crate::stall_guard::Pulse;
use crate::users::Users;
use claim_engine::command::Request;
use claim_engine::corpus::Prefix;
use claim_engine::dispute::DisputeId;
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::log::end::Head;
use claim_engine::log::entry::Principal;
use claim_engine::log::superblock::ClockMode;
use claim_engine::peer::PeerMessage;
use claim_engine::policy::Action;
use claim_engine::time::Now;
use claim_protocol::reply::{ReplyResult, ShardEndpoint, StatusReport, Welcome};
use claim_protocol::{self as wire, Operation, Reply};
use claim_translate as translate;
use routing::{Asker, Gathering, Ticket};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Replies that wait for reads of the ledger, per executor.
pub const READS_MAX: usize = 1_024;
/// What a scan or a history counts for against [`READS_MAX`].
pub const PAGE_READ_WEIGHT: usize = 16;
/// Advice on when to try again when an executor has too much to do.
pub(crate) const OVERLOADED_RETRY_MS: u32 = 5;

/// Who waits for an engine's answer.
#[derive(Clone)]
pub(crate) enum ReplyTo {
    Connection(Rc<Connection>),
    Executor {
        executor: usize,
        ticket: usize,
    },
    Gather(usize),
    /// The daemon itself: it is told of refusals in the log.
    Daemon,
}

pub(crate) struct Pending {
    pub reply_to: ReplyTo,
    pub request_id: u64,
    pub shard: u16,
    pub is_part: bool,
    pub then: Then,
    /// When its step ended, of a request that is timed.
    pub timed: Option<Instant>,
}

/// What is done with an engine's answer.
#[derive(Debug, Clone)]
pub(crate) enum Then {
    /// It is the answer.
    Answer,
    /// It is the answer to a batch, which a shard takes for a single claim.
    BatchOfOne,
    /// It is narrowed to what was asked for.
    Narrow(Box<reading::Within>),
    /// One may read on, and that is done beside the state machine.
    Tail { from_position: u64, limit: usize, wait_ms: u32 },
    /// One may know the end of the chain.
    Head,
    /// One may have the chain checked.
    Check(Box<Head>),
    /// One may know how long things take.
    Pairs,
    /// One may know how the shard is.
    Status,
}

/// See the module.
pub struct Service {
    /// What every executor knows.
    pub shared: Arc<Shared>,
    pub(crate) executor: usize,
    /// By shard number; `None` for those of other executors.
    pub(crate) drivers: Vec<Option<Rc<Driver>>>,
    pub(crate) mesh: Mesh<Message>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) stages: Rc<Stages>,
    pub(crate) rounds: Rc<Rounds>,
    pub(crate) users: Users,
    pub(crate) pending: RefCell<Slab<Pending>>,
    tickets: RefCell<Slab<Ticket>>,
    gathers: RefCell<Slab<Gathering>>,
    greeted: RefCell<HashSet<u64>>,
    pub(crate) builder: RefCell<wire::Builder>,
    /// Empty pages, for the next rows that are read.
    pub(crate) pages: RefCell<Vec<wire::RowPage>>,
    /// The clocks are read once for all frames of one read.
    now: Cell<Option<Now>>,
    pub(crate) reads: Cell<usize>,
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
        (pulse, stages): (Arc<Pulse>, Rc<Stages>),
        rounds: Rc<Rounds>,
    ) -> Rc<Service> {
        let service = Rc::new(Service {
            shared,
            executor,
            drivers,
            mesh,
            pulse,
            stages,
            rounds,
            users: Users::default(),
            pending: RefCell::default(),
            tickets: RefCell::default(),
            gathers: RefCell::default(),
            greeted: RefCell::default(),
            builder: RefCell::new(wire::Builder::new()),
            pages: RefCell::default(),
            now: Cell::new(None),
            reads: Cell::new(0),
            asked_bytes: Cell::new(0),
            is_stopping: Cell::new(false),
        });
        for driver in service.local_drivers() {
            let weak = Rc::downgrade(&service);
            driver.set_outlet(Box::new(move |output| {
                if let Some(service) = weak.upgrade() {
                    service.output(output);
                }
            }));
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

    /// Whether new requests are refused.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.get()
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

    /// Lets every shard look at the time, and hear of what is archived.
    pub fn tick(&self) {
        if let Some(archive) = &self.shared.archive {
            let archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
            for (shard, driver) in self.drivers.iter().enumerate() {
                // Before its first round it has nothing.
                let archived_to = archive.segments.get(shard).copied().unwrap_or(0);
                driver.iter().for_each(|driver| driver.archived_to(archived_to));
            }
        }
        // All of them share the device.
        if let Some(driver) = self.local_drivers().next() {
            driver.reads().tick();
        }
        self.local_drivers().for_each(Driver::tick);
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

    pub(crate) fn deliver(&self, shard: u16, message: &PeerMessage) {
        if let Some(driver) = &self.drivers[usize::from(shard)] {
            driver.take(self.now(), message);
        }
    }

    /// Something of the state that every shard has, as a local shard has it.
    pub(crate) fn shared_state<T>(&self, look: impl FnOnce(&claim_engine::shard::Shard) -> T) -> Option<T> {
        let driver = self.local_drivers().next()?;
        Some(look(driver.engine.borrow().shard()))
    }

    fn sides_of(&self, dispute: DisputeId) -> Vec<EventId> {
        let sides = self.shared_state(|shard| shard.disputes().get(dispute).map(|d| d.sides.ids().to_vec()));
        sides.flatten().unwrap_or_default()
    }

    /// Puts a configuration in force; a shard 0 that is not of this executor gets it from its own.
    pub fn configure(self: &Rc<Self>, toml: &str) {
        let Some(driver) = self.drivers.first().and_then(Option::as_ref) else { return };
        let is_in_force = claim_engine::policy::Policy::parse(toml)
            .is_ok_and(|policy| driver.engine.borrow().shard().policy() == &policy);
        if is_in_force {
            return self.shared.configured.notify(Tried::Over);
        }
        let pending = Pending {
            reply_to: ReplyTo::Daemon,
            request_id: 0,
            shard: 0,
            is_part: false,
            then: Then::Answer,
            timed: None,
        };
        let token = self.pending.borrow_mut().insert(pending);
        self.pulse.own_add(1);
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let now = self.now();
        let is_replay = self.shared.clock == ClockMode::Replay;
        let last_us = driver.engine.borrow().shard().last_us();
        // A replay ledger's keys are of its own time.
        let key_us = if is_replay { last_us } else { now.wall_us.max(last_us) };
        let mut random = [0; 10];
        if let Err(error) = getrandom::fill(&mut random) {
            tracing::error!(%error, "no entropy from the kernel: the configuration is not put in force");
            return self.shared.configured.notify(Tried::Over);
        }
        let key = uuid::Builder::from_unix_timestamp_millis((key_us / 1_000) as u64, &random).into_uuid();
        driver.submit(
            now,
            &Request {
                token: token as u64,
                stream: 0,
                principal: Principal { uid, gid, pid: std::process::id() },
                user: &self.users.name(uid),
                idempotency_key: key.as_u128(),
                correlation_id: 0,
                rationale: "configuration",
                at_us: is_replay.then_some(last_us),
                deadline_boot_us: None,
                at_least: &[],
                operation: claim_engine::command::Operation::Configure { toml },
            },
        );
        self.submitted();
    }

    fn refuse(&self, conn: &Connection, request_id: u64, refusal: Refusal) {
        self.send(
            conn,
            &Reply { request_id, positions: Vec::new(), result: ReplyResult::Error(translate::error(refusal)) },
        );
    }

    pub(crate) fn send(&self, conn: &Connection, reply: &Reply) {
        conn.send(|out| self.encode(reply, out));
    }

    pub(crate) fn encode(&self, reply: &Reply, out: &mut Vec<u8>) {
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
        let principal = Principal { uid: peer.uid, gid: peer.gid, pid: peer.pid };
        let then = match &request.operation {
            Operation::Status => Then::Status,
            Operation::ClaimBatch { items, .. } if items.len() == 1 => Then::BatchOfOne,
            Operation::Tail { from_position, limit, wait_ms, .. } => {
                let limit =
                    if *limit == 0 { wire::TAIL_ENTRIES_MAX } else { (*limit as usize).min(wire::TAIL_ENTRIES_MAX) };
                Then::Tail { from_position: (*from_position).max(1), limit, wait_ms: *wait_ms }
            }
            Operation::AuditHead => Then::Head,
            Operation::AuditCheck { batch, position, hash, .. } => {
                Then::Check(Box::new(Head { batch: *batch, position: *position, hash: *hash }))
            }
            Operation::Propagation => Then::Pairs,
            Operation::History { event_id, from, since_us, until_us, .. } => {
                let about = event_id.and_then(EventId::from_uuid);
                let (since_us, until_us, from) = (*since_us, *until_us, *from);
                Then::Narrow(Box::new(reading::Within { since_us, until_us, about, from, event_key: None }))
            }
            Operation::Find { event_key, .. } => {
                let event_key = Some((*event_key).to_owned());
                Then::Narrow(Box::new(reading::Within { event_key, ..reading::Within::default() }))
            }
            _ => Then::Answer,
        };
        // How a shard is can be seen when it has stopped, too.
        if matches!(then, Then::Status)
            && driver.engine.borrow().shard().policy().allows(principal, Action::Status, None)
        {
            return self.finish_part(&reply_to, self.status_part(driver));
        }
        let request_id = request.request_id;
        let pending = Pending { reply_to: reply_to.clone(), request_id, shard, is_part, then, timed: None };
        let token = self.pending.borrow_mut().insert(pending);
        self.pulse.own_add(1);
        let user = self.users.name(peer.uid);
        let step_began = self.stages.step_begins();
        let refused = translate::with_operation(
            request,
            shard,
            |id| self.shard_of_id(id) == Ok(shard),
            |dispute| self.sides_of(dispute),
            |operation| {
                let at_least: Vec<_> = request.at_least.iter().map(|at| (at.shard, at.position)).collect();
                let request = Request {
                    token: token as u64,
                    stream: peer.connection,
                    principal,
                    user: &user,
                    idempotency_key: request.idempotency_key.map_or(0, |key| key.as_u128()),
                    correlation_id: request.correlation_id.map_or(0, |id| id.as_u128()),
                    rationale: request.rationale,
                    at_us: request.at_us,
                    deadline_boot_us,
                    at_least: &at_least,
                    operation,
                };
                driver.submit(self.now(), &request);
            },
        );
        if let Some(began) = step_began {
            let ended = self.stages.step_ended(began);
            if let Some(pending) = self.pending.borrow_mut().get_mut(token) {
                pending.timed = Some(ended);
            }
        }
        if let Err(refusal) = refused {
            self.pending.borrow_mut().remove(token);
            self.pulse.own_sub(1);
            self.finish(&reply_to, is_part, request.request_id, shard, 0, Err(refusal));
        }
    }

    fn status_frame(&self) -> StatusReport {
        let archive =
            self.shared.archive.as_ref().map(|state| state.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let archive = archive.unwrap_or_default();
        let drill = self.shared.drills.last(self.shared.ledger);
        // What concerns the whole ledger every shard knows.
        let known = self.drivers.iter().flatten().next().map(|driver| driver.engine.borrow().status());
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
            incident_active: known.as_ref().is_some_and(|status| status.incident_active),
            last_pass_at_us: known.as_ref().and_then(|status| status.last_pass_at_us),
            policy_at_us: known.as_ref().map(|status| status.policy_at_us).filter(|at_us| *at_us > 0),
            frozen_reason: known.and_then(|status| status.frozen_reason),
            archive_at_us: archive.last_success_us,
            archive_error: archive.last_error,
            drill_at_us: drill.as_ref().map(|drill| drill.at_us),
            drill_rto_ms: drill.as_ref().map_or(0, |drill| drill.rto_ms),
            drill_rpo_ms: drill.as_ref().map(|drill| drill.rpo_ms),
        }
    }

    pub(crate) fn status_part(&self, driver: &Driver) -> Part {
        let core = self.shared.cores[self.executor] as u16;
        let status = {
            let mut engine = driver.engine.borrow_mut();
            let plan = engine.retention_plan(self.now());
            let status = translate::status(engine.status(), core);
            translate::retention(status, engine.shard().retention(), engine.superblock().first_segment(), plan)
        };
        let scrubbed = driver.scrubbed().borrow();
        let is_first = self.local_drivers().next().is_some_and(|first| std::ptr::eq(&**first, driver));
        let shard = wire::ShardStatus {
            scrubbed_bytes: scrubbed.bytes,
            scrub_rounds: scrubbed.rounds,
            scrub_damaged: scrubbed.damaged,
            scrub_first: scrubbed.first.clone(),
            stages: if is_first { self.stages.times() } else { Vec::new() },
            free_bytes: match status.ring_segments {
                0 => space::free_bytes(driver.path(), status.log_bytes).unwrap_or(0),
                _ => status.free_bytes,
            },
            ..status
        };
        Part::Status { shard: Box::new(shard) }
    }
}

impl translate::Names for Service {
    fn sides(&self, dispute: DisputeId) -> Vec<EventId> {
        self.sides_of(dispute)
    }

    fn corpus(&self, prefix: Option<Prefix>) -> String {
        let name = |shard: &claim_engine::shard::Shard| Some(shard.registry().of_prefix(prefix?)?.name.clone());
        self.shared_state(name).flatten().unwrap_or_default()
    }

    fn user(&self, uid: u32) -> String {
        let known = self.local_drivers().find_map(|driver| driver.engine.borrow().shard().user(uid).map(str::to_owned));
        // What shard 0 decided, the others log without the name.
        known.unwrap_or_else(|| self.users.name(uid).as_ref().to_owned())
    }
}

/// The daemon's name and version.
pub const DAEMON: &str = concat!("claimd ", env!("CARGO_PKG_VERSION"));

/// The bytes that a connection gets when there are too many.
pub fn busy_frame() -> Vec<u8> {
    let message =
        "the daemon has as many connections as it takes, or as one user may have: close some, or try again later";
    let refusal = Refusal::retry_after(Code::Overloaded, 1_000, message);
    let reply = Reply { request_id: 0, positions: Vec::new(), result: ReplyResult::Error(translate::error(refusal)) };
    let mut frame = Vec::new();
    wire::encode_reply(&mut wire::Builder::new(), &reply, &mut frame).expect("a short error fits a frame");
    frame
}

impl FrameHandler for Rc<Service> {
    fn frame(&self, conn: &Rc<Connection>, frame: &[u8]) -> Verdict {
        let decoding = self.stages.samples().then(Instant::now);
        let request = match wire::decode_request(frame) {
            Ok(request) => request,
            Err(error) => {
                self.refuse(conn, error.request_id, Refusal::new(Code::BadRequest, error.message));
                return if error.fatal { Verdict::CloseAfterReply } else { Verdict::Continue };
            }
        };
        if let Some(began) = decoding {
            self.stages.decoded(began);
        }
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
        match request.operation {
            Operation::Lookup { .. } | Operation::Find { .. } | Operation::History { .. } | Operation::Scan { .. } => {
                Verdict::ContinueAfterRead
            }
            _ => Verdict::Continue,
        }
    }

    fn frame_ahead(&self, conn: &Rc<Connection>, frame: &[u8]) {
        let shard = match conn.door() {
            Door::Shard(shard) => shard,
            Door::Main if self.drivers.len() == 1 => 0,
            // Its corpus says which, and that is not looked at yet.
            Door::Main => return,
        };
        if let (Some(driver), Some(key)) = (&self.drivers[usize::from(shard)], wire::key_at_sight(frame)) {
            driver.engine.borrow().shard().rows().prefetch_key(key.as_u128());
        }
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
