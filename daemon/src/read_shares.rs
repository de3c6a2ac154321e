//! How much of the device the reads of an executor take at once, and in what order.
//!
//! A durable write waits at the device for what was asked of it before. While a log is written, only a few short reads go there at a time, or
//! one long one, a piece after the other; what is there already when a write comes is not taken back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// What reads take together.
const SHARES: i64 = 64;
/// What a long read takes; a short one takes one share.
const LONG: i64 = 8;
/// From so many bytes on a read is a long one.
const LONG_READ_BYTES: u64 = 32 * 1024;
/// While a log is written a read takes so many times as much: four short ones are under way then, or a long one.
const BESIDE_WRITES: i64 = 16;
/// While a log is written, longer reads go in pieces of this.
const PIECE_BYTES: u64 = 128 * 1024;
/// A log counts as being written for so long after a write.
const WRITTEN_LATELY: Duration = Duration::from_millis(10);
/// When no read has ended for so long, those in line go all the same, one of each line a tick: a read that the device does not answer
/// holds nobody up for good.
const PATIENCE: Duration = Duration::from_millis(100);
/// After so many reads that requests wait for, one goes that nobody does.
const REQUESTS_IN_A_ROW: u32 = 16;

/// For whom one reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A request may wait for it.
    Request,
    /// Nobody does: most requests go first.
    Background,
}

/// Somebody in line.
#[derive(Debug)]
struct Waiting {
    bytes: u64,
    since: Instant,
    /// What it got.
    share: Cell<Option<i64>>,
    waker: RefCell<Option<Waker>>,
}

/// See the module.
#[derive(Debug)]
pub struct ReadShares {
    /// Less than none while somebody who was impatient reads.
    left: Cell<i64>,
    requests: RefCell<VecDeque<Rc<Waiting>>>,
    background: RefCell<VecDeque<Rc<Waiting>>>,
    /// Requests that went since one went for whom nobody waits.
    in_a_row: Cell<u32>,
    /// The last read.
    ended_at: Cell<Option<Instant>>,
    writes_under_way: Cell<usize>,
    written_at: Cell<Option<Instant>>,
}

/// A place in line, and what it got; both are given back with it.
#[derive(Debug)]
#[must_use]
pub struct ReadShare<'a> {
    of: &'a ReadShares,
    reader: Reader,
    own: Rc<Waiting>,
}

/// A write of a log that is under way.
#[derive(Debug)]
#[must_use]
pub struct LogWrite<'a> {
    of: &'a ReadShares,
}

impl Default for ReadShares {
    fn default() -> Self {
        ReadShares {
            left: Cell::new(SHARES),
            requests: RefCell::default(),
            background: RefCell::default(),
            in_a_row: Cell::new(0),
            ended_at: Cell::new(None),
            writes_under_way: Cell::new(0),
            written_at: Cell::new(None),
        }
    }
}

impl ReadShares {
    /// A log is being written until what this returns is dropped.
    pub fn write(&self) -> LogWrite<'_> {
        self.writes_under_way.set(self.writes_under_way.get() + 1);
        LogWrite { of: self }
    }

    /// Whether a log is being written, or was a moment ago.
    pub fn is_log_written(&self) -> bool {
        let lately = |at: Instant| at.elapsed() < WRITTEN_LATELY;
        self.writes_under_way.get() > 0 || self.written_at.get().is_some_and(lately)
    }

    /// How much of so many bytes is read at once now.
    pub fn piece(&self, bytes: u64) -> u64 {
        if self.is_log_written() { bytes.min(PIECE_BYTES) } else { bytes }
    }

    /// Waits until there is room for a read of so many bytes. Nobody overtakes who is in the same line; the lines are as long as there may be
    /// reads under way.
    pub async fn take(&self, bytes: u64, reader: Reader) -> ReadShare<'_> {
        let own = Rc::new(Waiting { bytes, since: Instant::now(), share: Cell::new(None), waker: RefCell::default() });
        self.line(reader).borrow_mut().push_back(Rc::clone(&own));
        let taken = ReadShare { of: self, reader, own };
        self.grant();
        poll_fn(|cx| {
            if taken.own.share.get().is_some() {
                return Poll::Ready(());
            }
            *taken.own.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        taken
    }

    /// Lets those go who have waited long enough, one of each line. The executor calls it at each of its ticks.
    pub fn tick(&self) {
        self.grant();
        let is_long_ago = |at: Instant| at.elapsed() >= PATIENCE;
        if self.ended_at.get().is_none_or(is_long_ago) {
            for line in [&self.requests, &self.background] {
                let next = line.borrow_mut().pop_front_if(|next| is_long_ago(next.since));
                next.iter().for_each(|next| self.give(next));
            }
        }
    }

    fn line(&self, reader: Reader) -> &RefCell<VecDeque<Rc<Waiting>>> {
        match reader {
            Reader::Request => &self.requests,
            Reader::Background => &self.background,
        }
    }

    /// What such a read takes at the moment.
    fn share(&self, bytes: u64) -> i64 {
        let share = if bytes < LONG_READ_BYTES { 1 } else { LONG };
        if self.is_log_written() { (share * BESIDE_WRITES).min(SHARES) } else { share }
    }

    /// Lets those begin who are next and for whom there is room.
    fn grant(&self) {
        loop {
            let is_turn_of_requests = self.background.borrow().is_empty() || self.in_a_row.get() < REQUESTS_IN_A_ROW;
            let reader = if is_turn_of_requests && !self.requests.borrow().is_empty() {
                Reader::Request
            } else {
                Reader::Background
            };
            let next = self.line(reader).borrow_mut().pop_front_if(|next| self.share(next.bytes) <= self.left.get());
            let Some(next) = next else { return };
            self.in_a_row.set(if reader == Reader::Request { self.in_a_row.get().saturating_add(1) } else { 0 });
            self.give(&next);
        }
    }

    fn give(&self, next: &Waiting) {
        let share = self.share(next.bytes);
        self.left.set(self.left.get() - share);
        next.share.set(Some(share));
        if let Some(waker) = next.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for ReadShare<'_> {
    fn drop(&mut self) {
        match self.own.share.get() {
            Some(share) => {
                self.of.left.set(self.of.left.get() + share);
                self.of.ended_at.set(Some(Instant::now()));
            }
            None => self.of.line(self.reader).borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.own)),
        }
        self.of.grant();
    }
}

impl Drop for LogWrite<'_> {
    fn drop(&mut self) {
        self.of.writes_under_way.set(self.of.writes_under_way.get() - 1);
        self.of.written_at.set(Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    const SHORT_BYTES: u64 = 4_096;
    const LONG_BYTES: u64 = 1 << 20;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A share that must be there at once.
    fn at_once(shares: &ReadShares, bytes: u64) -> ReadShare<'_> {
        let mut taking = pin!(shares.take(bytes, Reader::Request));
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(share) => share,
            Poll::Pending => panic!("{bytes} bytes have to wait"),
        }
    }

    #[test]
    fn few_reads_are_under_way_while_the_log_is_written_and_many_while_it_is_not() {
        for (bytes, is_written, at_a_time) in
            [(SHORT_BYTES, false, 64), (LONG_BYTES, false, 8), (SHORT_BYTES, true, 4), (LONG_BYTES, true, 1)]
        {
            let shares = ReadShares::default();
            let _write = is_written.then(|| shares.write());
            assert_eq!(shares.piece(LONG_BYTES), if is_written { PIECE_BYTES } else { LONG_BYTES });
            let mut taken: Vec<_> = (0..at_a_time).map(|_| at_once(&shares, bytes)).collect();
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(Arc::clone(&wakes));
            let mut next = pin!(shares.take(bytes, Reader::Request));
            let mut cx = Context::from_waker(&waker);
            assert!(next.as_mut().poll(&mut cx).is_pending(), "{bytes} bytes, written: {is_written}");
            taken.pop();
            assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "there is room, and it is told so");
            assert!(next.as_mut().poll(&mut cx).is_ready(), "{bytes} bytes, written: {is_written}");
        }
    }

    #[test]
    fn what_a_read_takes_is_decided_when_it_begins() {
        let shares = ReadShares::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle: Vec<_> = (0..8).map(|_| at_once(&shares, LONG_BYTES)).collect();
        let mut queued: Vec<_> = (0..8).map(|_| Box::pin(shares.take(LONG_BYTES, Reader::Request))).collect();
        assert!(queued.iter_mut().all(|queued| queued.as_mut().poll(&mut cx).is_pending()));
        let _write = shares.write();
        idle.clear();
        let polled: Vec<_> = queued.iter_mut().map(|queued| queued.as_mut().poll(&mut cx)).collect();
        assert_eq!(
            polled.iter().filter(|polled| polled.is_ready()).count(),
            1,
            "they waited while the log was idle, and begin beside a write"
        );
    }

    #[test]
    fn nobody_overtakes_but_requests_go_before_what_nobody_waits_for() {
        let shares = ReadShares::default();
        let _write = shares.write();
        let mut cx = Context::from_waker(Waker::noop());
        let first = at_once(&shares, SHORT_BYTES);
        let mut background = pin!(shares.take(SHORT_BYTES, Reader::Background));
        let mut long = Box::pin(shares.take(LONG_BYTES, Reader::Request));
        let mut after = pin!(shares.take(SHORT_BYTES, Reader::Request));
        assert!(background.as_mut().poll(&mut cx).is_ready(), "there is room");
        assert!(long.as_mut().poll(&mut cx).is_pending());
        assert!(after.as_mut().poll(&mut cx).is_pending(), "the long one was there before");
        let mut background = pin!(shares.take(SHORT_BYTES, Reader::Background));
        assert!(background.as_mut().poll(&mut cx).is_pending(), "requests wait");
        // Who stops waiting holds nobody up, and keeps nothing.
        drop(long);
        assert!(after.as_mut().poll(&mut cx).is_ready());
        assert!(background.as_mut().poll(&mut cx).is_ready());
        drop(first);
        let one = at_once(&shares, SHORT_BYTES);
        let mut granted_unseen = Box::pin(shares.take(LONG_BYTES, Reader::Request));
        assert!(granted_unseen.as_mut().poll(&mut cx).is_pending());
        drop(one);
        drop(granted_unseen);
        assert_eq!(shares.left.get(), SHARES, "nobody has anything");
    }

    #[test]
    fn what_nobody_waits_for_comes_to_its_turn_among_requests_without_end() {
        let shares = ReadShares::default();
        let _write = shares.write();
        let mut cx = Context::from_waker(Waker::noop());
        let mut under_way = VecDeque::from([at_once(&shares, LONG_BYTES)]);
        let mut background = pin!(shares.take(LONG_BYTES, Reader::Background));
        assert!(background.as_mut().poll(&mut cx).is_pending());
        let mut requests: Vec<_> = (0..40).map(|_| Box::pin(shares.take(LONG_BYTES, Reader::Request))).collect();
        assert!(requests.iter_mut().all(|request| request.as_mut().poll(&mut cx).is_pending()));
        let mut gone = 0;
        loop {
            drop(under_way.pop_front());
            if background.as_mut().poll(&mut cx).is_ready() {
                break;
            }
            let Poll::Ready(share) = requests[gone].as_mut().poll(&mut cx) else { panic!("request {gone} waits") };
            under_way.push_back(share);
            gone += 1;
        }
        // One of the sixteen was the first of all.
        assert_eq!(gone as u32, REQUESTS_IN_A_ROW - 1);
    }

    #[test]
    fn a_read_that_the_device_does_not_answer_holds_nobody_up_for_long() {
        let shares = ReadShares::default();
        let _write = shares.write();
        let mut cx = Context::from_waker(Waker::noop());
        let hanging = at_once(&shares, LONG_BYTES);
        let mut request = pin!(shares.take(SHORT_BYTES, Reader::Request));
        let mut background = pin!(shares.take(LONG_BYTES, Reader::Background));
        assert!(request.as_mut().poll(&mut cx).is_pending() && background.as_mut().poll(&mut cx).is_pending());
        std::thread::sleep(PATIENCE);
        shares.tick();
        let request = request.as_mut().poll(&mut cx);
        let background = background.as_mut().poll(&mut cx);
        assert!(request.is_ready() && background.is_ready());
        drop((request, background, hanging));
        assert_eq!(shares.left.get(), SHARES);
    }
}
