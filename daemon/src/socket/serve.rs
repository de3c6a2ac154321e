//! The loop of one connection: send what waits, take what came, hand over whole frames.
//!
//! One task does both directions, so that the socket needs no lock and a turn that takes requests and gets their
//! replies at once sends them in the same turn. A turn makes one large read into the executor's scratch buffer and
//! hands over every whole frame straight from it; only the incomplete frame at the end is copied. Nothing is awaited
//! between two frames.

use super::{
    connection::{CloseReason, Connection, End, FrameHandler, Verdict},
    large_frames::Reservation,
    limits::PREFIX_BYTES,
    readiness::Socket,
};
use crate::{rounds::Work, stages::Stage};
use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

/// Steps of one turn before the task goes to the back of the executor's queue: a peer that sends without pause must
/// not keep the others waiting.
const STEPS_PER_TURN: usize = 4;

/// Frames after which the time is looked at.
const FRAMES_AT_ONCE: u64 = 16;

/// Serves a connection until it ends, and says why it did. The caller tells the handler.
pub async fn serve<H: FrameHandler>(socket: Socket, conn: &Rc<Connection>, handler: &H) -> CloseReason {
    let mut intake = Intake { bytes: Vec::new(), large: None, blocked: false, work: Work::Requests };
    // The time of the first frame begins now: a peer that never says anything does not keep its place.
    watch_new_partial(conn);
    let reason = poll_fn(|cx| {
        socket.ready(conn.turn_begins(cx.waker()));
        let outcome = turn(&socket, conn, handler, &mut intake, cx);
        conn.turn_ends();
        if outcome == Poll::Ready(Turn::Again) {
            conn.wake();
        }
        match outcome {
            Poll::Ready(Turn::Over(reason)) => Poll::Ready(reason),
            _ => Poll::Pending,
        }
    })
    .await;
    socket.end(&mut conn.sockets().scratch().borrow_mut());
    reason
}

/// What a turn ended with, when it did not end by waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There may be more to do; others first.
    Again,
    /// The connection is over.
    Over(CloseReason),
}

fn turn<H: FrameHandler>(
    socket: &Socket,
    conn: &Rc<Connection>,
    handler: &H,
    intake: &mut Intake,
    cx: &Context<'_>,
) -> Poll<Turn> {
    for _ in 0..STEPS_PER_TURN {
        let sent = match flush(socket, conn) {
            Ok(sent) => sent,
            Err(error) => return Poll::Ready(Turn::Over(CloseReason::Io(error.kind()))),
        };
        match conn.end() {
            End::Open => {}
            End::Draining(reason) if sent && conn.outstanding() == 0 => return Poll::Ready(Turn::Over(reason)),
            End::Draining(_) => return Poll::Pending,
            End::Now(reason) => return Poll::Ready(Turn::Over(reason)),
            End::Over => unreachable!("only the end of this task makes a connection over"),
        }
        let (rounds, work) = (conn.sockets().rounds(), intake.work);
        if (intake.blocked || socket.may_read()) && rounds.poll_time(work, cx).is_pending() {
            return Poll::Pending;
        }
        let step = intake.step(socket, conn, handler);
        rounds.pass_on(work);
        match step {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Turn::Over(CloseReason::Io(error.kind()))),
        }
    }
    Poll::Ready(Turn::Again)
}

/// Sends what waits. True if nothing is left; if something is, the task is woken when the socket takes more.
fn flush(socket: &Socket, conn: &Connection) -> io::Result<bool> {
    conn.flush(|bytes| {
        let began = Instant::now();
        let written = socket.write(bytes);
        conn.sockets().stages().record(Stage::SocketWrite, began.elapsed());
        match written {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    })
}

/// Input that is read and not yet handed over.
struct Intake {
    /// The beginning of a frame that is not whole yet, or, while `blocked`, whatever a read left behind.
    bytes: Vec<u8>,
    /// A frame for which the budget was asked.
    large: Option<LargeFrame>,
    /// `bytes` has to be looked at again before anything is read.
    blocked: bool,
    /// What the last frames were; the next ones are taken to be the same.
    work: Work,
}

/// A large frame whose bytes are still coming in.
struct LargeFrame {
    /// The whole frame with its prefix; `filled` bytes of it are there.
    bytes: Vec<u8>,
    filled: usize,
    _reservation: Reservation,
}

/// Why handing over stopped.
enum Stop {
    /// What is left is less than a frame.
    Incomplete,
    /// What is left is the beginning of a frame for the budget; its length with the prefix.
    Large(usize),
    /// A bound is reached.
    NoRoom,
    /// Enough at once.
    Time,
    /// The connection reads nothing more.
    End,
}

impl Intake {
    /// Makes one step: hands over what was held back, or reads. Pending if neither is possible now; the task is then
    /// woken by the socket, by the bound that gives way, or by the sweep.
    fn step<H: FrameHandler>(&mut self, socket: &Socket, conn: &Rc<Connection>, handler: &H) -> Poll<io::Result<()>> {
        if !conn.has_room() {
            conn.pause();
            return Poll::Pending;
        }
        let resumed = conn.is_paused();
        conn.resume();
        if self.blocked {
            return self.hand_over_held(conn, handler);
        }
        if resumed && (self.large.is_some() || !self.bytes.is_empty()) {
            // The peer could not finish its frame while nobody read it: its time begins anew.
            watch_new_partial(conn);
        }
        let began = Instant::now();
        let read = match &mut self.large {
            Some(large) => socket.read(&mut large.bytes[large.filled..]),
            None => {
                let mut scratch = conn.sockets().scratch().borrow_mut();
                let front = conn.limits().small_frame_bytes_max + PREFIX_BYTES;
                socket.read(&mut scratch[front..])
            }
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Poll::Ready(Err(error)),
            Ok(0) => conn.drain_for(CloseReason::PeerClosed),
            Ok(count) => {
                conn.sockets().stages().read(began);
                self.received(count, conn, handler);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn received<H: FrameHandler>(&mut self, count: usize, conn: &Rc<Connection>, handler: &H) {
        conn.count(|counters| counters.bytes_in += count as u64);
        conn.sockets().count(|counters| {
            counters.reads += 1;
            counters.bytes_in += count as u64;
        });
        conn.sockets().pulse().beat();
        match &mut self.large {
            Some(large) => {
                large.filled += count;
                if large.filled == large.bytes.len() {
                    self.hand_over_large(conn, handler);
                }
            }
            None => self.hand_over_scratch(count, conn, handler),
        }
    }

    /// Hands over frames from the scratch buffer, where a read has just put `count` bytes.
    fn hand_over_scratch<H: FrameHandler>(&mut self, count: usize, conn: &Rc<Connection>, handler: &H) {
        let mut scratch = conn.sockets().scratch().borrow_mut();
        let front = conn.limits().small_frame_bytes_max + PREFIX_BYTES;
        let start = front.checked_sub(self.bytes.len()).expect("an incomplete small frame fits before the read");
        scratch[start..front].copy_from_slice(&self.bytes);
        let bytes = &scratch[start..front + count];
        let handed = hand_over(bytes, conn, handler);
        self.keep(bytes, handed, conn);
    }

    /// Hands over what was held back when a bound was reached.
    fn hand_over_held<H: FrameHandler>(&mut self, conn: &Rc<Connection>, handler: &H) -> Poll<io::Result<()>> {
        let bytes = std::mem::take(&mut self.bytes);
        self.blocked = false;
        conn.hold(0);
        let handed = hand_over(&bytes, conn, handler);
        let has_moved = handed.used > 0;
        self.keep(&bytes, handed, conn);
        // Still blocked without having moved means that the budget for large frames is used up: its return wakes us.
        if self.blocked && !has_moved { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn hand_over_large<H: FrameHandler>(&mut self, conn: &Rc<Connection>, handler: &H) {
        let large = self.large.take().expect("the caller has seen it");
        conn.watch.partial.set(false);
        let handed = hand_over(&large.bytes, conn, handler);
        let is_whole = handed.used == large.bytes.len() && handed.frames == 1;
        assert!(is_whole, "a large frame is read only while there is room for it");
    }

    /// Keeps what handing over has left, as the reason demands.
    fn keep(&mut self, bytes: &[u8], handed: Handed, conn: &Rc<Connection>) {
        let rest = &bytes[handed.used..];
        self.work = handed.work;
        let was_partial = !self.bytes.is_empty() && handed.frames == 0;
        match handed.stop {
            Stop::Incomplete if rest.is_empty() => {
                self.bytes = Vec::new();
                conn.watch.partial.set(false);
            }
            Stop::Incomplete => {
                self.bytes = rest.to_vec();
                if !was_partial {
                    watch_new_partial(conn);
                }
            }
            Stop::Large(whole_bytes) => match conn.sockets().large_frames().reserve(whole_bytes, conn) {
                Some(reservation) => {
                    let mut bytes = vec![0; whole_bytes];
                    bytes[..rest.len()].copy_from_slice(rest);
                    self.large = Some(LargeFrame { bytes, filled: rest.len(), _reservation: reservation });
                    self.bytes = Vec::new();
                    watch_new_partial(conn);
                }
                None => self.block(rest, conn),
            },
            Stop::NoRoom => self.block(rest, conn),
            Stop::Time => {
                self.hold(rest, conn);
                conn.watch.partial.set(false);
            }
            Stop::End => self.bytes = Vec::new(),
        }
    }

    fn block(&mut self, rest: &[u8], conn: &Connection) {
        self.hold(rest, conn);
        conn.pause();
    }

    /// Keeps what has to be looked at again.
    fn hold(&mut self, rest: &[u8], conn: &Connection) {
        self.bytes = rest.to_vec();
        self.blocked = true;
        conn.hold(rest.len());
    }
}

/// What was handed over, and why no more.
struct Handed {
    /// Bytes.
    used: usize,
    frames: u64,
    /// What the frames were.
    work: Work,
    stop: Stop,
}

/// Hands over the whole frames at the front of `bytes` while the bounds allow it.
fn hand_over<H: FrameHandler>(bytes: &[u8], conn: &Rc<Connection>, handler: &H) -> Handed {
    let limits = conn.limits();
    let rounds = conn.sockets().rounds();
    let (mut used, mut frames, mut work, mut counted) = (0, 0, Work::Requests, Instant::now());
    let stop = loop {
        let rest = &bytes[used..];
        let Some(prefix) = rest.first_chunk::<PREFIX_BYTES>() else {
            break Stop::Incomplete;
        };
        let length = u32::from_le_bytes(*prefix);
        if length == 0 || length > limits.frame_bytes_max {
            handler.bad_length(conn, length);
            conn.drain_for(CloseReason::BadLength(length));
            break Stop::End;
        }
        let whole_bytes = PREFIX_BYTES + length as usize;
        let Some(frame) = rest.get(PREFIX_BYTES..whole_bytes) else {
            let small = length as usize <= limits.small_frame_bytes_max;
            break if small { Stop::Incomplete } else { Stop::Large(whole_bytes) };
        };
        if !conn.has_room() {
            break Stop::NoRoom;
        }
        if let Some(ahead) = whole_frame(&rest[whole_bytes..]) {
            handler.frame_ahead(conn, ahead);
        }
        used += whole_bytes;
        frames += 1;
        match handler.frame(conn, frame) {
            Verdict::Continue => {}
            Verdict::ContinueAfterRead => work = Work::Reads,
            Verdict::CloseAfterReply => {
                conn.drain_for(CloseReason::Drained);
                break Stop::End;
            }
        }
        if frames % FRAMES_AT_ONCE == 0 {
            counted = rounds.spend_since(counted, work);
            if rounds.is_spent(work) && used < bytes.len() {
                break Stop::Time;
            }
        }
    };
    if frames > 0 {
        conn.count(|counters| counters.frames += frames);
        conn.sockets().count(|counters| counters.frames += frames);
        handler.end_of_read(conn);
    }
    rounds.spend_since(counted, work);
    Handed { used, frames, work, stop }
}

/// The frame at the front, if it is there as a whole.
fn whole_frame(bytes: &[u8]) -> Option<&[u8]> {
    let prefix = bytes.first_chunk::<PREFIX_BYTES>()?;
    bytes.get(PREFIX_BYTES..)?.get(..u32::from_le_bytes(*prefix) as usize)
}

fn watch_new_partial(conn: &Connection) {
    conn.watch.partial.set(true);
    conn.watch.partial_turn.set(conn.watch.partial_turn.get() + 1);
}
