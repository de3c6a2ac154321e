//! What frames mean: decodes, routes, submits, and answers. One per executor; other executors are reached by the mesh.

use crate::clock;
use crate::driver::Driver;
use crate::gather::{Gather, Part};
use crate::mesh::Mesh;
use crate::message::Message;
use crate::reading;
use crate::socket::connection::{CloseReason, Connection, FrameHandler, Peer, Verdict};
use crate::stall_guard::{GuardCounters, Pulse};
use claim_engine::command::Request;
use claim_engine::corpus::Prefix;
use claim_engine::dispute::DisputeId;
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::log::entry::Principal;
use claim_engine::log::superblock::ClockMode;
use claim_engine::log::writer::Head;
use claim_engine::peer::PeerMessage;
use claim_engine::policy::Action;
use claim_engine::shard::event_keys::RowRef;
use claim_engine::time::Now;
use claim_protocol::reply::{ReplyResult, ShardEndpoint, StatusReport, Welcome};
use claim_protocol::{self as wire, Operation, Reply};
use claim_translate::{self as translate, pages};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Replies that wait for reads of the ledger, per executor.
pub const READS_MAX: usize = 1_024;
/// Bytes of requests that other executors have, per executor.
pub const ASKED_BYTES_MAX: usize = 64 << 20;
/// What a scan or a history counts for against [`READS_MAX`].
pub const PAGE_READ_WEIGHT: usize = 16;
/// Advice on when to try again when an executor has too much to do.
pub(crate) const OVERLOADED_RETRY_MS: u32 = 5;
/// Users whose names an executor remembers.
const USERS_MAX: usize = 65_536;

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
    /// A configuration has come in force, or was refused.
    pub configured: Notice,
    /// What the stall guard did.
    pub guard: std::sync::OnceLock<Arc<GuardCounters>>,
}

/// Tells a thread that something has happened.
#[derive(Debug, Default)]
pub struct Notice {
    happened: Mutex<Option<Tried>>,
    changed: Condvar,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It is over, well or not.
    Over,
    /// It is to be tried again a little later.
    Again,
}

impl Notice {
    /// It has happened.
    pub fn notify(&self, tried: Tried) {
        *self.happened.lock().unwrap_or_else(PoisonError::into_inner) = Some(tried);
        self.changed.notify_all();
    }

    /// Waits until it happens, and forgets it; nothing when it takes longer than this.
    pub fn wait(&self, patience: Duration) -> Option<Tried> {
        let happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut happened, _) = self
            .changed
            .wait_timeout_while(happened, patience, |happened| happened.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        happened.take()
    }
}

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
    pub(crate) executor: usize,
    /// By shard number; `None` for those of other executors.
    pub(crate) drivers: Vec<Option<Rc<Driver>>>,
    pub(crate) mesh: Mesh<Message>,
    pub(crate) pulse: Arc<Pulse>,
    /// Names of uids, as the system had them when they were first asked for.
    users: RefCell<HashMap<u32, Rc<str>>>,
    /// The one that asked last, who mostly is the one that asks next.
    last_user: RefCell<Option<(u32, Rc<str>)>>,
    pub(crate) pending: RefCell<Slab<Pending>>,
    tickets: RefCell<Slab<Ticket>>,
    gathers: RefCell<Slab<Gathering>>,
    greeted: RefCell<HashSet<u64>>,
    pub(crate) builder: RefCell<wire::Builder>,
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
        pulse: Arc<Pulse>,
    ) -> Rc<Service> {
        let service = Rc::new(Service {
            shared,
            executor,
            drivers,
            mesh,
            pulse,
            users: RefCell::default(),
            last_user: RefCell::default(),
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

    /// Where a corpus lives. What is not known is for shard 0 to refuse: whoever has no role learns nothing from it.
    fn shard_of_corpus(&self, name: &str) -> u16 {
        self.shared_state(|shard| shard.registry().of_name(name).map(|corpus| corpus.shard)).flatten().unwrap_or(0)
    }

    fn shard_of_id(&self, uuid: Uuid) -> Result<u16, Refusal> {
        let id = translate::event_id(uuid)?;
        Ok(self.shard_of_prefix(Some(id.prefix())))
    }

    /// Where a prefix's corpus lives; what is not known is for shard 0 to refuse.
    fn shard_of_prefix(&self, prefix: Option<Prefix>) -> u16 {
        let found = self.shared_state(|shard| shard.registry().of_prefix(prefix?).map(|corpus| corpus.shard));
        found.flatten().unwrap_or(0)
    }

    fn expect_shard(&self, shard: u16) -> Result<u16, Refusal> {
        if usize::from(shard) < self.drivers.len() {
            return Ok(shard);
        }
        let message = format!("there is no shard {shard}: this ledger has {}", self.drivers.len());
        Err(Refusal::new(Code::BadRequest, message))
    }

    fn sides_of(&self, dispute: DisputeId) -> Vec<EventId> {
        let sides = self.shared_state(|shard| shard.disputes().get(dispute).map(|d| d.sides.ids().to_vec()));
        sides.flatten().unwrap_or_default()
    }

    /// The name that the system gives a uid; empty where it has none.
    fn user(&self, uid: u32) -> Rc<str> {
        if let Some((last, name)) = &*self.last_user.borrow()
            && *last == uid
        {
            return Rc::clone(name);
        }
        let name = self.look_up_user(uid);
        *self.last_user.borrow_mut() = Some((uid, Rc::clone(&name)));
        name
    }

    fn look_up_user(&self, uid: u32) -> Rc<str> {
        if let Some(name) = self.users.borrow().get(&uid) {
            return Rc::clone(name);
        }
        let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
        let name: Rc<str> = found.map_or_else(String::new, |user| user.name).into();
        let mut users = self.users.borrow_mut();
        if users.len() < USERS_MAX {
            users.insert(uid, Rc::clone(&name));
        }
        name
    }

    /// Forgets the names of users: the system may have others by now.
    pub fn forget_users(&self) {
        self.users.borrow_mut().clear();
        *self.last_user.borrow_mut() = None;
    }

    /// Puts a configuration in force; a shard 0 that is not of this executor gets it from its own.
    pub fn configure(self: &Rc<Self>, toml: &str) {
        let Some(driver) = self.drivers.first().and_then(Option::as_ref) else { return };
        let is_in_force = claim_engine::policy::Policy::parse(toml)
            .is_ok_and(|policy| driver.engine.borrow().shard().policy() == &policy);
        if is_in_force {
            return self.shared.configured.notify(Tried::Over);
        }
        let pending =
            Pending { reply_to: ReplyTo::Daemon, request_id: 0, shard: 0, is_part: false, then: Then::Answer };
        let token = self.pending.borrow_mut().insert(pending);
        self.pulse.work_add(1);
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
                principal: Principal { uid, gid, pid: std::process::id() },
                user: &self.user(uid),
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
        let request_id = request.request_id;
        let to_all = |gather| self.gather(conn, request, frame, deadline_boot_us, gather, self.all_shards());
        let shard = match &request.operation {
            Operation::Corpora => return to_all(Gather::corpora(request_id)),
            Operation::Status => return to_all(Gather::status(request_id, self.status_frame())),
            Operation::Totals { .. } => return to_all(Gather::totals(request_id)),
            Operation::AuditHead => return to_all(Gather::heads(request_id)),
            Operation::Propagation => return to_all(Gather::pairs(request_id)),
            Operation::Decommission { .. } => return to_all(Gather::usage(request_id)),
            Operation::ReferenceBatch { event_ids, .. } => {
                let mut gather = Gather::references(request_id, event_ids.len());
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
            Operation::Hello { .. }
            | Operation::Onboard { .. }
            | Operation::ConfirmClock
            | Operation::Dispute { .. }
            | Operation::Respond { .. }
            | Operation::Arbitrate { .. }
            | Operation::Escalate { .. }
            | Operation::DisputeLookup { .. }
            | Operation::Disputes { .. }
            | Operation::Freeze { .. }
            | Operation::Cap { .. }
            | Operation::ProposeSlots { .. }
            | Operation::SignOff { .. }
            | Operation::Proposals
            | Operation::Incident { .. }
            | Operation::Barrier
            | Operation::Reconcile { .. }
            | Operation::Configuration => Ok(0),
            Operation::Claim { corpus, .. } | Operation::ClaimBatch { corpus, .. } | Operation::Scan { corpus, .. } => {
                Ok(self.shard_of_corpus(corpus))
            }
            Operation::Retract { corpus: "", event_id, .. } => self.shard_of_id(*event_id),
            Operation::Retract { corpus, .. } => Ok(self.shard_of_corpus(corpus)),
            Operation::Reference { event_id, .. }
            | Operation::Reactivate { event_id }
            | Operation::Lookup { event_id }
            | Operation::History { event_id: Some(event_id), .. } => self.shard_of_id(*event_id),
            Operation::Find { from, .. } => match RowRef::from_bits(*from).and_then(RowRef::get) {
                Some((prefix, _)) => Ok(self.shard_of_prefix(Prefix::new(prefix))),
                None => self.expect_shard(pages::shard_of_rows(*from)),
            },
            Operation::History { event_id: None, from, .. } => self.expect_shard(pages::shard_of_entries(*from)),
            Operation::Tail { shard, .. } | Operation::AuditCheck { shard, .. } => self.expect_shard(*shard),
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

    pub(crate) fn gathered(&self, key: usize, part: Part) {
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
        let pending = Pending { reply_to: reply_to.clone(), request_id: request.request_id, shard, is_part, then };
        let token = self.pending.borrow_mut().insert(pending);
        self.pulse.work_add(1);
        let user = self.user(peer.uid);
        let refused = translate::with_operation(
            request,
            shard,
            |id| self.shard_of_id(id) == Ok(shard),
            |dispute| self.sides_of(dispute),
            |operation| {
                let at_least: Vec<_> = request.at_least.iter().map(|at| (at.shard, at.position)).collect();
                let request = Request {
                    token: token as u64,
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
        if let Err(refusal) = refused {
            self.pending.borrow_mut().remove(token);
            self.pulse.work_sub(1);
            self.finish(&reply_to, is_part, request.request_id, shard, 0, Err(refusal));
        }
    }

    pub(crate) fn status_part(&self, driver: &Driver) -> Part {
        let core = self.shared.cores[self.executor] as u16;
        let status = translate::status(driver.engine.borrow().status(), core);
        let scrubbed = driver.scrubbed().borrow();
        let shard = wire::ShardStatus {
            scrubbed_bytes: scrubbed.bytes,
            scrub_rounds: scrubbed.rounds,
            scrub_damaged: scrubbed.damaged,
            scrub_first: scrubbed.first.clone(),
            ..status
        };
        Part::Status { shard }
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
        known.unwrap_or_else(|| Service::user(self, uid).as_ref().to_owned())
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
