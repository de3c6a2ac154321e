//! What the connections of one executor share, and the tasks that look after them.

use super::{
    connection::{CloseReason, Connection, End, FrameHandler, Seen},
    large_frames::LargeFrames,
    limits::{Limits, PREFIX_BYTES},
    listener::Accepted,
    readiness::{Readiness, Socket},
    serve::serve,
};
use crate::{inbox::Inbox, rounds::Rounds, stages::Stages, stall_guard::Pulse};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// What the sockets of one executor have done; sums over all its connections, past and present.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SocketCounters {
    /// Connections taken over from the acceptor.
    pub connections: u64,
    /// Whole frames handed to the handler.
    pub frames: u64,
    /// Reads that brought bytes.
    pub reads: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written by connections that have ended.
    pub bytes_out: u64,
    /// Connections closed because a frame or their output stood still.
    pub timeouts: u64,
    /// Connections closed for a frame length of 0 or above the limit.
    pub bad_lengths: u64,
}

/// The socket side of one executor.
pub struct Sockets {
    limits: Limits,
    readiness: Rc<Readiness>,
    rounds: Rc<Rounds>,
    /// One buffer for the reads of all connections: a read is handed over before the next one begins, so a connection
    /// that waits needs no buffer at all. The front holds the beginning of a frame that an earlier read left behind.
    scratch: RefCell<Box<[u8]>>,
    large_frames: Rc<LargeFrames>,
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    buffered_bytes: Cell<usize>,
    counters: Cell<SocketCounters>,
    /// A connection that is taken over from now on ends like all the others.
    draining: Cell<bool>,
    /// The task in [`Sockets::run`], while it waits for the last connection to end.
    last_one: RefCell<Option<Waker>>,
    pulse: Arc<Pulse>,
    stages: Rc<Stages>,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets")
            .field("connections", &self.connection_count())
            .field("buffered_bytes", &self.buffered_bytes())
            .field("counters", &self.counters.get())
            .finish_non_exhaustive()
    }
}

impl Sockets {
    /// The socket side of the executor that `pulse` belongs to.
    ///
    /// # Panics
    /// If the limits contradict each other.
    pub fn new(
        limits: Limits,
        readiness: Readiness,
        rounds: Rc<Rounds>,
        (pulse, stages): (Arc<Pulse>, Rc<Stages>),
    ) -> Rc<Self> {
        limits.check();
        let scratch_bytes = limits.small_frame_bytes_max + PREFIX_BYTES + limits.read_bytes_max;
        Rc::new(Self {
            scratch: RefCell::new(vec![0; scratch_bytes].into_boxed_slice()),
            large_frames: Rc::new(LargeFrames::new(limits.large_frame_bytes)),
            limits,
            readiness: Rc::new(readiness),
            rounds,
            connections: RefCell::default(),
            buffered_bytes: Cell::new(0),
            counters: Cell::default(),
            draining: Cell::new(false),
            last_one: RefCell::new(None),
            pulse,
            stages,
        })
    }

    /// Takes connections from the inbox and serves them until the inbox is closed and the last connection has ended.
    /// Must run on the executor; each connection becomes a task in the caller's task queue.
    pub async fn run<H: FrameHandler>(self: Rc<Self>, inbox: Inbox<Accepted>, handler: Rc<H>) {
        // Dropping the task at the end of this function cancels it.
        let _sweep = glommio::spawn_local(Rc::clone(&self).sweep_for_ever());
        let _wake = glommio::spawn_local(Rc::clone(&self).wake_for_ever());
        let mut accepted = VecDeque::new();
        while inbox.take(&mut accepted).await {
            for connection in accepted.drain(..) {
                self.adopt(connection, &handler);
            }
        }
        self.last_connection_ended().await;
    }

    /// Reads nothing more from any connection, those that are still in the inbox included; each ends when what it is
    /// owed has been sent.
    pub fn drain_all(&self) {
        self.draining.set(true);
        self.each(Connection::drain);
    }

    /// Ends all connections at once.
    pub fn close_all(&self) {
        self.draining.set(true);
        self.each(Connection::close);
    }

    /// Connections that are open now.
    pub fn connection_count(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Unsent output and held input of all connections.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes.get()
    }

    /// Bytes reserved for large frames.
    pub fn large_frame_bytes(&self) -> usize {
        self.large_frames.used_bytes()
    }

    /// What was done so far.
    pub fn counters(&self) -> SocketCounters {
        self.counters.get()
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn scratch(&self) -> &RefCell<Box<[u8]>> {
        &self.scratch
    }

    pub(super) fn large_frames(&self) -> &Rc<LargeFrames> {
        &self.large_frames
    }

    pub(super) fn rounds(&self) -> &Rc<Rounds> {
        &self.rounds
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    pub(super) fn stages(&self) -> &Stages {
        &self.stages
    }

    pub(super) fn buffered_add(&self, bytes: usize) {
        self.buffered_bytes.set(self.buffered_bytes.get() + bytes);
    }

    pub(super) fn buffered_sub(&self, bytes: usize) {
        let before = self.buffered_bytes.get();
        assert!(before >= bytes, "{bytes} buffered bytes given back, only {before} were counted");
        self.buffered_bytes.set(before - bytes);
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut SocketCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Makes a task of an accepted connection.
    fn adopt<H: FrameHandler>(self: &Rc<Self>, accepted: Accepted, handler: &Rc<H>) {
        let Accepted { fd, peer, door, permit } = accepted;
        let socket = match Socket::new(fd, peer.connection, &self.readiness) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(?peer, %error, "a connection can't be watched and is closed"),
        };
        let conn = Connection::new(peer, door, Rc::clone(self));
        let before = self.connections.borrow_mut().insert(conn.id(), Rc::clone(&conn));
        assert!(before.is_none(), "connection {} was given twice", conn.id());
        self.count(|counters| counters.connections += 1);
        if self.draining.get() {
            conn.drain();
        }
        let handler = Rc::clone(handler);
        let sockets = Rc::clone(self);
        glommio::spawn_local(async move {
            let reason = serve(socket, &conn, &*handler).await;
            sockets.forget(&conn, reason);
            handler.closed(&conn, &reason);
            // The place is free only now: the limit counts connections that hold something.
            drop(permit);
        })
        .detach();
    }

    fn forget(&self, conn: &Rc<Connection>, reason: CloseReason) {
        conn.over();
        self.large_frames.nudge();
        self.count(|counters| {
            counters.bytes_out += conn.counters().bytes_out;
            counters.timeouts += u64::from(matches!(reason, CloseReason::FrameTimeout | CloseReason::WriteTimeout));
            counters.bad_lengths += u64::from(matches!(reason, CloseReason::BadLength(_)));
        });
        tracing::debug!(connection = conn.id(), peer = ?conn.peer(), ?reason, "connection ended");
        self.connections.borrow_mut().remove(&conn.id());
        if self.connection_count() == 0
            && let Some(waiter) = self.last_one.borrow_mut().take()
        {
            waiter.wake();
        }
    }

    async fn last_connection_ended(&self) {
        poll_fn(|cx| {
            if self.connection_count() == 0 {
                return Poll::Ready(());
            }
            *self.last_one.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn each(&self, act: impl Fn(&Connection)) {
        // The list is copied, because what is done to a connection may reach the map.
        let connections: Vec<_> = self.connections.borrow().values().cloned().collect();
        connections.iter().for_each(|conn| act(conn));
    }

    /// Wakes the connections that are ready, again and again.
    async fn wake_for_ever(self: Rc<Self>) {
        let mut ready = Vec::new();
        loop {
            if let Err(error) = self.readiness.next(&mut ready).await {
                // Without it no connection of this executor is heard any more.
                tracing::error!(%error, "connections can't be watched; all are closed");
                return self.close_all();
            }
            self.rounds.begin();
            let connections = self.connections.borrow();
            for (connection, ready) in ready.drain(..) {
                if let Some(conn) = connections.get(&connection) {
                    conn.ready(ready);
                }
            }
        }
    }

    /// Looks at all connections again and again. Its clock is its own: it advances by at most two periods per look, so
    /// that an executor that stood still does not take its own pause for its peers' silence.
    async fn sweep_for_ever(self: Rc<Self>) {
        let period = Duration::from_millis(self.limits.sweep_ms());
        let mut clock = Duration::ZERO;
        let mut last_look = Instant::now();
        loop {
            glommio::timer::sleep(period).await;
            clock += last_look.elapsed().min(2 * period);
            last_look = Instant::now();
            let now_ms = clock.as_millis() as u64;
            for conn in self.connections.borrow().values() {
                self.look_at(conn, now_ms);
            }
        }
    }

    fn look_at(&self, conn: &Connection, now_ms: u64) {
        if !matches!(conn.end(), End::Open | End::Draining(_)) {
            return;
        }
        let watch = &conn.watch;
        let partial = watch.partial.get().then(|| watch.partial_turn.get());
        if stands_still(&watch.partial_seen, partial, now_ms, self.limits.frame_timeout_ms) {
            conn.end_now(CloseReason::FrameTimeout);
        }
        let unsent = (conn.unsent_bytes() > 0).then(|| watch.write_turn.get());
        if stands_still(&watch.write_seen, unsent, now_ms, self.limits.write_timeout_ms) {
            conn.end_now(CloseReason::WriteTimeout);
        }
        conn.trim();
        if conn.is_paused() && conn.has_room() {
            conn.wake();
        }
    }
}

/// Whether `turn` has been the same for `timeout_ms`; `None` means that there is nothing to wait for.
fn stands_still(seen: &Cell<Option<Seen>>, turn: Option<u64>, now_ms: u64, timeout_ms: u64) -> bool {
    match (turn, seen.get()) {
        (Some(turn), Some(before)) if before.turn == turn => now_ms - before.since_ms >= timeout_ms,
        (turn, _) => {
            seen.set(turn.map(|turn| Seen { turn, since_ms: now_ms }));
            false
        }
    }
}
