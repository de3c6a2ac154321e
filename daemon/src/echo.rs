//! `claimd echo`: the sockets and the protocol without a ledger, to see what they cost by themselves.
//!
//! It greets, lists and onboards corpora, and answers claims at once with made-up ids. Nothing is kept; everything else is
//! refused.

use crate::inbox::Inbox;
use crate::service::{DAEMON, busy_frame};
use crate::socket::connection::{CloseReason, Connection, FrameHandler, Verdict};
use crate::socket::limits::Limits;
use crate::socket::listener::{Acceptor, Routes, SocketPaths, bind_all};
use crate::socket::readiness::Readiness;
use crate::socket::sockets::Sockets;
use crate::stall_guard::{GuardTimes, Pulse, StallGuard};
use claim_engine::corpus::Prefix;
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_protocol::reply::{Claimed, CorpusInfo, ReplyResult, ShardEndpoint, Welcome};
use claim_protocol::{self as wire, ClockMode, LogPosition, Operation, Reply};
use claim_translate as translate;
use glommio::{LocalExecutorBuilder, Placement};
use nix::sys::signal::{SigSet, Signal};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What `claimd echo` is told.
#[derive(Debug, Clone)]
pub struct EchoOptions {
    /// Where it serves.
    pub socket: PathBuf,
    /// The core that it is pinned to.
    pub core: usize,
    /// How long it looks for work before it sleeps.
    pub poll: Duration,
}

/// Serves until SIGTERM or SIGINT. The error is a sentence for the operator.
pub fn echo(options: &EchoOptions) -> Result<(), String> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|e| format!("blocking signals failed: {e}"))?;
    let limits = Limits::default();
    let pulse = Pulse::new();
    let guard = StallGuard::start(vec![Arc::clone(&pulse)], GuardTimes::default())
        .map_err(|e| format!("the stall guard's thread can't be started: {e}"))?;
    let accepted = Inbox::new(limits.accept_inbox_max, Arc::clone(&pulse));
    let paths = SocketPaths::beside(&options.socket, 0);
    let listeners = bind_all(&paths).map_err(|e| e.to_string())?;
    let routes = Routes { inboxes: vec![accepted.clone()], executor_of_shard: Vec::new() };
    let readiness = Readiness::new().map_err(|e| format!("connections can't be watched: {e}"))?;
    let (socket, acceptor_limits) = (options.socket.clone(), limits.clone());
    let executor = LocalExecutorBuilder::new(Placement::Fixed(options.core))
        .name("claimd-echo")
        .spin_before_park(options.poll)
        .spawn(move || async move {
            let heartbeat = glommio::spawn_local(Arc::clone(&pulse).heartbeat());
            let sockets = Sockets::new(limits, readiness, Rc::default(), (Arc::clone(&pulse), Rc::default()));
            let handler = Rc::new(NoLedger::new(&socket.display().to_string()));
            let watched = Rc::clone(&sockets);
            let inbox = accepted.clone();
            let ending = glommio::spawn_local(async move {
                while !inbox.is_closed() {
                    glommio::timer::sleep(Duration::from_millis(10)).await;
                }
                watched.drain_all();
            });
            sockets.run(accepted, handler).await;
            ending.cancel().await;
            heartbeat.cancel().await;
        })
        .map_err(|e| format!("an executor on core {} can't be started: {e}", options.core))?;
    let acceptor = Acceptor::start(listeners, routes, &acceptor_limits, busy_frame())
        .map_err(|e| format!("the acceptor can't be started: {e}"))?;
    if let Err(error) = writeln!(std::io::stdout(), "ready {}", options.socket.display()) {
        tracing::warn!(%error, "`ready` could not be printed");
    }
    signals.wait().map_err(|e| format!("waiting for signals failed: {e}"))?;
    acceptor.stop();
    executor.join().map_err(|e| format!("the executor ended badly: {e}"))?;
    guard.stop();
    Ok(())
}

/// Answers without a ledger.
struct NoLedger {
    socket: String,
    corpora: RefCell<Vec<CorpusInfo>>,
    claims: Cell<u64>,
    builder: RefCell<wire::Builder>,
}

impl NoLedger {
    fn new(socket: &str) -> NoLedger {
        NoLedger {
            socket: socket.to_owned(),
            corpora: RefCell::default(),
            claims: Cell::new(0),
            builder: RefCell::new(wire::Builder::new()),
        }
    }

    fn send(&self, conn: &Connection, request_id: u64, result: ReplyResult) {
        let reply = Reply { request_id, positions: Vec::new(), result };
        let builder = &mut *self.builder.borrow_mut();
        // A reply here is a few words for each item of a request, and those fit a frame.
        conn.send(|out| wire::encode_reply(builder, &reply, out).expect("the reply fits a frame"));
    }

    fn refuse(&self, conn: &Connection, request_id: u64, message: &str) {
        let error = translate::error(Refusal::new(Code::BadRequest, message));
        self.send(conn, request_id, ReplyResult::Error(error));
    }

    fn claimed(&self) -> Claimed {
        let claim_sequence = self.claims.get() + 1;
        self.claims.set(claim_sequence);
        let prefix = Prefix::new(1).expect("1 is a prefix");
        let event_id = EventId::pack(claim_sequence, prefix, claim_sequence).as_uuid();
        Claimed { event_id, claim_timestamp_us: claim_sequence as i64, claim_sequence }
    }

    fn onboard(&self, name: &str) -> CorpusInfo {
        let mut corpora = self.corpora.borrow_mut();
        let corpus = CorpusInfo {
            name: name.to_owned(),
            shard_prefix: corpora.len() as u16 + 1,
            slots: u64::MAX,
            ..CorpusInfo::default()
        };
        // More than a ledger may have would only take memory.
        if corpora.len() < usize::from(u16::MAX) {
            corpora.push(corpus.clone());
        }
        corpus
    }
}

impl FrameHandler for NoLedger {
    fn frame(&self, conn: &Rc<Connection>, frame: &[u8]) -> Verdict {
        let request = match wire::decode_request(frame) {
            Ok(request) => request,
            Err(error) => {
                self.refuse(conn, error.request_id, &error.message);
                return if error.fatal { Verdict::CloseAfterReply } else { Verdict::Continue };
            }
        };
        let request_id = request.request_id;
        match &request.operation {
            Operation::Hello { .. } => {
                let welcome = Welcome {
                    version: wire::PROTOCOL_VERSION,
                    daemon: DAEMON.to_owned(),
                    ledger: Uuid::nil(),
                    clock: ClockMode::Wall,
                    shards: vec![ShardEndpoint { shard: 0, socket: self.socket.clone() }],
                    frame_bytes_max: wire::FRAME_BYTES_MAX as u32,
                    batch_items_max: wire::BATCH_ITEMS_MAX as u32,
                };
                self.send(conn, request_id, ReplyResult::Welcome(welcome));
            }
            Operation::Corpora => {
                let corpora = self.corpora.borrow().clone();
                self.send(conn, request_id, ReplyResult::Corpora(corpora));
            }
            Operation::Onboard { name, .. } => {
                let corpus = self.onboard(name);
                self.send(conn, request_id, ReplyResult::Onboarded(corpus));
            }
            Operation::Claim { .. } => {
                let claimed = self.claimed();
                let at = LogPosition { shard: 0, position: claimed.claim_sequence };
                conn.send(|out| wire::encode_claim_reply(request_id, at, &claimed, out));
            }
            Operation::ClaimBatch { items, .. } => {
                let claimed = items.iter().map(|_| Ok(self.claimed())).collect();
                self.send(conn, request_id, ReplyResult::ClaimedBatch(claimed));
            }
            _ => {
                self.refuse(conn, request_id, "this is an echo without a ledger: it answers claims, and keeps nothing")
            }
        }
        Verdict::Continue
    }

    fn end_of_read(&self, _conn: &Rc<Connection>) {}

    fn bad_length(&self, conn: &Rc<Connection>, length: u32) {
        let message =
            format!("a frame of {length} bytes is announced; a frame has 1 to {} bytes", wire::FRAME_BYTES_MAX);
        self.refuse(conn, 0, &message);
    }

    fn closed(&self, _conn: &Rc<Connection>, _reason: &CloseReason) {}
}
