//! One connection, as its handler and the rest of the executor see it.
//!
//! A [`Connection`] is the part of a connection that outlives a single read: who the peer is, what waits to be sent,
//! how many requests are open, and whether it is coming to its end. The serve task ([`super::serve`]) owns the socket
//! itself. Everything here is synchronous, and no borrow leaves a method.

use super::{limits::Limits, readiness::Ready, sockets::Sockets};
use std::{
    cell::{Cell, RefCell},
    fmt, io,
    rc::Rc,
    task::Waker,
};

/// Who is at the other end: the credentials that the kernel took when the peer connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Number of the connection: no other one of this process has it, nor is it 0.
    pub connection: u64,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id; another process may have it by the time it is looked at.
    pub pid: u32,
}

/// Which listening socket a connection came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// The socket for everything.
    Main,
    /// The socket of one shard.
    Shard(u16),
}

/// What becomes of the connection after a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Read on.
    Continue,
    /// Read on when reads of the ledger have a share of the executor's time again.
    ContinueAfterRead,
    /// Read nothing more; send what was written, wait for the requests that are open, then close.
    CloseAfterReply,
}

/// What frames mean. Methods run on the connection's executor, in the serve task, and must not block.
pub trait FrameHandler: 'static {
    /// One whole frame, without its length prefix; never empty and never longer than the limit.
    fn frame(&self, conn: &Rc<Connection>, frame: &[u8]) -> Verdict;

    /// This is behind the frame that is handed over next: the moment to begin to fetch what it takes. Nobody has looked at it; it may be
    /// empty, or too long.
    fn frame_ahead(&self, _conn: &Rc<Connection>, _frame: &[u8]) {}

    /// All frames of one read have been handed over: the moment to submit them together.
    fn end_of_read(&self, conn: &Rc<Connection>);

    /// The peer announced a frame of `length` bytes, which is 0 or above the limit. The handler may send one error
    /// frame; the connection ends after it.
    fn bad_length(&self, conn: &Rc<Connection>, length: u32);

    /// The connection is over; called once. Later replies to it go nowhere.
    fn closed(&self, conn: &Rc<Connection>, reason: &CloseReason);
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer ended its side, and everything that it was owed has been sent.
    PeerClosed,
    /// The handler or a draining executor ended it, and everything owed has been sent.
    Drained,
    /// The peer announced a frame of this length.
    BadLength(u32),
    /// A frame was begun and not finished within the frame timeout.
    FrameTimeout,
    /// Output did not move within the write timeout.
    WriteTimeout,
    /// Unsent output reached the hard bound.
    OutputOverrun,
    /// [`Connection::close`] was called.
    Requested,
    /// The socket failed.
    Io(io::ErrorKind),
}

/// What a connection has done; plain counters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionCounters {
    /// Whole frames handed to the handler.
    pub frames: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Times that reading paused.
    pub pauses: u64,
}

/// One connection. Shared within its executor by `Rc`; everything that handlers may do to it is here.
pub struct Connection {
    peer: Peer,
    door: Door,
    sockets: Rc<Sockets>,
    output: RefCell<Output>,
    outstanding: Cell<u32>,
    end: Cell<End>,
    /// The serve task.
    task: RefCell<Option<Waker>>,
    /// Whether the serve task was woken and has not run since.
    woken: Cell<bool>,
    /// What is new of the socket since the serve task ran.
    ready: Cell<Ready>,
    pub(super) counters: Cell<ConnectionCounters>,
    pub(super) watch: Watch,
    /// Input that was read and not yet handed over, because reading paused in the middle of it.
    held_bytes: Cell<usize>,
    paused: Cell<bool>,
}

/// How far the connection is on its way to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It reads and writes.
    Open,
    /// It reads nothing more, and ends for this reason when nothing is open or unsent.
    Draining(CloseReason),
    /// It ends now.
    Now(CloseReason),
    /// It has ended.
    Over,
}

/// Facts for the sweep, which alone knows the time: each is a number that changes whenever there was progress, and
/// whether there is something to wait for. The data path so reads no clock.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// An incomplete frame waits for bytes that the peer may send now.
    pub(super) partial: Cell<bool>,
    /// Changes when another frame becomes the incomplete one.
    pub(super) partial_turn: Cell<u64>,
    /// Changes when bytes were written.
    pub(super) write_turn: Cell<u64>,
    /// What the sweep saw last, and when.
    pub(super) partial_seen: Cell<Option<Seen>>,
    pub(super) write_seen: Cell<Option<Seen>>,
}

/// A turn that the sweep saw, and the time of the first sweep that saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) turn: u64,
    pub(super) since_ms: u64,
}

/// Bytes that wait to be sent: `buffer[sent..]`.
#[derive(Debug, Default)]
struct Output {
    buffer: Vec<u8>,
    sent: usize,
    /// The most that waited since the last sweep; the buffer shrinks to it.
    peak_bytes: usize,
}

impl Output {
    fn unsent(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Drops the bytes that are sent once they are at least half of the buffer: each byte moves at most once on
    /// average, and the buffer is never more than twice what is unsent.
    fn compact(&mut self) {
        if self.sent >= self.unsent() {
            self.drop_sent();
        }
    }

    fn drop_sent(&mut self) {
        if self.sent > 0 {
            self.buffer.drain(..std::mem::take(&mut self.sent));
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id())
            .field("peer", &self.peer)
            .field("door", &self.door)
            .field("unsent_bytes", &self.unsent_bytes())
            .field("outstanding", &self.outstanding.get())
            .field("end", &self.end.get())
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(peer: Peer, door: Door, sockets: Rc<Sockets>) -> Rc<Self> {
        Rc::new(Self {
            peer,
            door,
            sockets,
            output: RefCell::default(),
            outstanding: Cell::new(0),
            end: Cell::new(End::Open),
            task: RefCell::new(None),
            woken: Cell::new(false),
            ready: Cell::new(Ready::NOTHING),
            counters: Cell::default(),
            watch: Watch::default(),
            held_bytes: Cell::new(0),
            paused: Cell::new(false),
        })
    }

    /// A number that no other connection of this process has.
    pub fn id(&self) -> u64 {
        self.peer.connection
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Which socket it came in by.
    pub fn door(&self) -> Door {
        self.door
    }

    /// What it has done so far.
    pub fn counters(&self) -> ConnectionCounters {
        self.counters.get()
    }

    /// Requests begun and not finished.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    /// Bytes that wait to be sent. A handler that is about to produce a large reply can look here first.
    pub fn unsent_bytes(&self) -> usize {
        self.output.borrow().unsent()
    }

    /// Whether it has ended; what is sent to it then goes nowhere.
    pub fn is_closed(&self) -> bool {
        self.end.get() == End::Over
    }

    /// Says that a request was accepted and will be answered. At `outstanding_max` of them, reading pauses.
    pub fn begin(&self) {
        self.outstanding.set(self.outstanding.get() + 1);
    }

    /// Says that a request was answered.
    ///
    /// # Panics
    /// If more requests are finished than were begun.
    pub fn finish(&self) {
        let open = self.outstanding.get();
        assert!(open > 0, "connection {} finished a request that it never began", self.id());
        self.outstanding.set(open - 1);
        let resumes = open == self.limits().outstanding_max;
        let ends = open == 1 && matches!(self.end.get(), End::Draining(_));
        if resumes || ends {
            self.wake();
        }
    }

    /// Appends a reply: `write` puts whole frames at the end of the buffer, length prefix included, and does nothing
    /// else with this connection. The serve task sends everything that one turn of the executor appended in one write.
    /// On a connection that has ended, `write` is not called.
    pub fn send(&self, write: impl FnOnce(&mut Vec<u8>)) {
        if matches!(self.end.get(), End::Now(_) | End::Over) {
            return;
        }
        let mut output = self.output.borrow_mut();
        let before = output.unsent();
        write(&mut output.buffer);
        let after = output.unsent();
        output.peak_bytes = output.peak_bytes.max(after);
        drop(output);
        self.sockets.buffered_add(after - before);
        if after >= self.limits().output_bytes_hard_max {
            self.end_now(CloseReason::OutputOverrun);
        }
        self.wake();
    }

    /// Ends the connection at once; what is unsent is dropped.
    pub fn close(&self) {
        self.end_now(CloseReason::Requested);
    }

    /// Reads nothing more, and ends the connection when every open request is answered and everything is sent.
    pub fn drain(&self) {
        self.drain_for(CloseReason::Drained);
    }

    pub(super) fn drain_for(&self, reason: CloseReason) {
        if self.end.get() == End::Open {
            self.end.set(End::Draining(reason));
            self.watch.partial.set(false);
            self.wake();
        }
    }

    pub(super) fn end_now(&self, reason: CloseReason) {
        if matches!(self.end.get(), End::Open | End::Draining(_)) {
            self.end.set(End::Now(reason));
            self.wake();
        }
    }

    pub(super) fn end(&self) -> End {
        self.end.get()
    }

    /// Whether the bounds allow another frame to be taken from this connection. Input that is held back does not count
    /// against itself: handing it over is what makes it less.
    pub(super) fn has_room(&self) -> bool {
        let limits = self.limits();
        let unsent = self.unsent_bytes();
        self.end.get() == End::Open
            && self.outstanding.get() < limits.outstanding_max
            && unsent < limits.output_bytes_max
            && (unsent <= limits.fair_output_bytes || self.sockets.buffered_bytes() <= limits.buffered_bytes_max)
    }

    /// Says that reading has paused; the sweep looks whether it may go on, besides whatever else wakes the task.
    pub(super) fn pause(&self) {
        if !self.paused.replace(true) {
            self.count(|counters| counters.pauses += 1);
        }
        self.watch.partial.set(false);
    }

    pub(super) fn resume(&self) {
        self.paused.set(false);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Wakes the serve task once, however often it is called before the task runs.
    pub(super) fn wake(&self) {
        let first = !self.woken.replace(true);
        if first && let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    /// Something is new of the socket.
    pub(super) fn ready(&self, ready: Ready) {
        self.ready.set(self.ready.get().and(ready));
        self.wake();
    }

    /// Called at the start of each turn of the serve task; what is new of the socket. What happens during a turn needs no wake:
    /// the turn looks at everything again before it ends.
    pub(super) fn turn_begins(&self, task: &Waker) -> Ready {
        self.woken.set(true);
        let mut slot = self.task.borrow_mut();
        if slot.as_ref().is_none_or(|waker| !waker.will_wake(task)) {
            *slot = Some(task.clone());
        }
        self.ready.replace(Ready::NOTHING)
    }

    /// Called before the serve task waits: from here on, changes must wake it.
    pub(super) fn turn_ends(&self) {
        self.woken.set(false);
    }

    /// Hands the unsent bytes to `write`, which says how many of them are gone. True if nothing is left.
    pub(super) fn flush<E>(&self, mut write: impl FnMut(&[u8]) -> Result<usize, E>) -> Result<bool, E> {
        let mut output = self.output.borrow_mut();
        while output.unsent() > 0 {
            let written = write(&output.buffer[output.sent..])?;
            if written == 0 {
                return Ok(false);
            }
            output.sent += written;
            self.sockets.buffered_sub(written);
            self.watch.write_turn.set(self.watch.write_turn.get() + 1);
            self.count(|counters| counters.bytes_out += written as u64);
            output.compact();
        }
        output.compact();
        Ok(true)
    }

    /// Gives back memory that a burst has left behind. Called by the sweep.
    pub(super) fn trim(&self) {
        let mut output = self.output.borrow_mut();
        let unsent = output.unsent();
        let wanted = output.peak_bytes.max(unsent);
        output.peak_bytes = unsent;
        output.drop_sent();
        if output.buffer.capacity() > wanted.saturating_mul(2) {
            output.buffer.shrink_to(wanted);
        }
    }

    /// Counts input that is kept because reading paused.
    pub(super) fn hold(&self, bytes: usize) {
        let before = self.held_bytes.replace(bytes);
        self.sockets.buffered_add(bytes);
        self.sockets.buffered_sub(before);
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut ConnectionCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(super) fn limits(&self) -> &Limits {
        self.sockets.limits()
    }

    pub(super) fn sockets(&self) -> &Rc<Sockets> {
        &self.sockets
    }

    /// The end: buffers go, the waker goes.
    pub(super) fn over(&self) {
        self.end.set(End::Over);
        self.hold(0);
        let output = std::mem::take(&mut *self.output.borrow_mut());
        self.sockets.buffered_sub(output.unsent());
        self.task.borrow_mut().take();
        self.watch.partial.set(false);
    }
}
