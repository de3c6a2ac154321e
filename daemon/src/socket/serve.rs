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
};
use crate::stages::Stage;
use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::UnixStream;
use std::{
    future::poll_fn,
    io,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

/// Steps of one turn before the task goes to the back of the executor's queue: a peer that sends without pause must
/// not keep the others waiting.
const STEPS_PER_TURN: usize = 4;

/// Serves a connection until it ends, and says why it did. The caller tells the handler.
pub async fn serve<H: FrameHandler>(mut stream: UnixStream, conn: &Rc<Connection>, handler: &H) -> CloseReason {
    let mut intake = Intake { bytes: Vec::new(), large: None, blocked: false };
    // The time of the first frame begins now: a peer that never says anything does not keep its place.
    watch_new_partial(conn);
    let reason = poll_fn(|cx| {
        conn.turn_begins(cx.waker());
        let outcome = turn(&mut stream, conn, handler, &mut intake, cx);
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
    // The stream's drop leaves the descriptor to the ring for a while; the peer should see the end now.
    let _ = stream.shutdown(Shutdown::Both).await;
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
    stream: &mut UnixStream,
    conn: &Rc<Connection>,
    handler: &H,
    intake: &mut Intake,
    cx: &mut Context<'_>,
) -> Poll<Turn> {
    for _ in 0..STEPS_PER_TURN {
        let sent = match flush(stream, conn, cx) {
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
        match intake.step(stream, conn, handler, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Turn::Over(CloseReason::Io(error.kind()))),
        }
    }
    Poll::Ready(Turn::Again)
}

/// Sends what waits. True if nothing is left; if something is, the task is woken when the socket takes more.
fn flush(stream: &mut UnixStream, conn: &Connection, cx: &mut Context<'_>) -> io::Result<bool> {
    conn.flush(|bytes| {
        let began = Instant::now();
        let written = Pin::new(&mut *stream).poll_write(cx, bytes);
        conn.sockets().stages().record(Stage::SocketWrite, began.elapsed());
        match written {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Poll::Ready(result) => result,
            Poll::Pending => Ok(0),
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
    /// The connection reads nothing more.
    End,
}

impl Intake {
    /// Makes one step: hands over what was held back, or reads. Pending if neither is possible now; the task is then
    /// woken by the socket, by the bound that gives way, or by the sweep.
    fn step<H: FrameHandler>(
        &mut self,
        stream: &mut UnixStream,
        conn: &Rc<Connection>,
        handler: &H,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
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
            Some(large) => Pin::new(stream).poll_read(cx, &mut large.bytes[large.filled..]),
            None => {
                let mut scratch = conn.sockets().scratch().borrow_mut();
                let front = conn.limits().small_frame_bytes_max + PREFIX_BYTES;
                Pin::new(stream).poll_read(cx, &mut scratch[front..])
            }
        };
        match read {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => return Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(0)) => conn.drain_for(CloseReason::PeerClosed),
            Poll::Ready(Ok(count)) => {
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
        let (used, frames, stop) = hand_over(bytes, conn, handler);
        self.keep(&bytes[used..], frames, stop, conn);
    }

    /// Hands over what was held back when a bound was reached.
    fn hand_over_held<H: FrameHandler>(&mut self, conn: &Rc<Connection>, handler: &H) -> Poll<io::Result<()>> {
        let bytes = std::mem::take(&mut self.bytes);
        self.blocked = false;
        conn.hold(0);
        let (used, frames, stop) = hand_over(&bytes, conn, handler);
        self.keep(&bytes[used..], frames, stop, conn);
        // Still blocked without having moved means that the budget for large frames is used up: its return wakes us.
        if self.blocked && used == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn hand_over_large<H: FrameHandler>(&mut self, conn: &Rc<Connection>, handler: &H) {
        let large = self.large.take().expect("the caller has seen it");
        conn.watch.partial.set(false);
        let (used, frames, _) = hand_over(&large.bytes, conn, handler);
        assert!(used == large.bytes.len() && frames == 1, "a large frame is read only while there is room for it");
    }

    /// Keeps what handing over has left, as the reason demands.
    fn keep(&mut self, rest: &[u8], frames: u64, stop: Stop, conn: &Rc<Connection>) {
        let was_partial = !self.bytes.is_empty() && frames == 0;
        match stop {
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
            Stop::End => self.bytes = Vec::new(),
        }
    }

    fn block(&mut self, rest: &[u8], conn: &Connection) {
        self.bytes = rest.to_vec();
        self.blocked = true;
        conn.hold(rest.len());
        conn.pause();
    }
}

/// Hands over the whole frames at the front of `bytes` while the bounds allow it. Returns the bytes and the frames that
/// were handed over, and why it stopped.
fn hand_over<H: FrameHandler>(bytes: &[u8], conn: &Rc<Connection>, handler: &H) -> (usize, u64, Stop) {
    let limits = conn.limits();
    let mut used = 0;
    let mut frames = 0;
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
        used += whole_bytes;
        frames += 1;
        if handler.frame(conn, frame) == Verdict::CloseAfterReply {
            conn.drain_for(CloseReason::Drained);
            break Stop::End;
        }
    };
    if frames > 0 {
        conn.count(|counters| counters.frames += frames);
        conn.sockets().count(|counters| counters.frames += frames);
        handler.end_of_read(conn);
    }
    (used, frames, stop)
}

fn watch_new_partial(conn: &Connection) {
    conn.watch.partial.set(true);
    conn.watch.partial_turn.set(conn.watch.partial_turn.get() + 1);
}
