//! How much of the device reads take at once, in the order in which they come.
//!
//! A durable write waits at the device for what was asked of it before. While the log is written, a few reads at a time, or one long one,
//! bring nearly as much as many do, and keep the write waiting for a fraction of the time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What all reads take together.
const SHARES: u64 = 64;
/// What a long read takes; any other takes one share.
const LONG: u64 = 8;
/// From so many bytes on a read is a long one.
const LONG_READ_BYTES: u64 = 64 * 1024;
/// While the log is written, reads that are longer than this go to the device in pieces: a write waits for one of them at most.
pub const PIECE_BYTES: u64 = 128 * 1024;
/// While the log is written a read takes so many times as much: four small ones are under way then, or a long one.
const BESIDE_WRITES: u64 = 16;

/// Somebody who waits for a share.
#[derive(Debug)]
struct Waiting {
    share: u64,
    is_granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// See the module.
#[derive(Debug)]
pub struct ReadShares {
    left: Cell<u64>,
    waiting: RefCell<VecDeque<Rc<Waiting>>>,
}

/// A share, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct ReadShare<'a> {
    of: &'a ReadShares,
    own: Rc<Waiting>,
}

impl Default for ReadShares {
    fn default() -> Self {
        ReadShares { left: Cell::new(SHARES), waiting: RefCell::default() }
    }
}

impl ReadShares {
    /// Waits for room for a read of so many bytes. Nobody overtakes: a long read is not kept waiting by short ones that come after it.
    pub async fn take(&self, bytes: u64, is_log_written: bool) -> ReadShare<'_> {
        let share = if bytes < LONG_READ_BYTES { 1 } else { LONG };
        let share = if is_log_written { share * BESIDE_WRITES } else { share }.min(SHARES);
        let own = Rc::new(Waiting { share, is_granted: Cell::new(false), waker: RefCell::default() });
        self.waiting.borrow_mut().push_back(Rc::clone(&own));
        // Whoever stops waiting gives back what it has, or its place.
        let taken = ReadShare { of: self, own };
        self.grant();
        poll_fn(|cx| {
            if taken.own.is_granted.get() {
                return Poll::Ready(());
            }
            *taken.own.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        taken
    }

    /// Lets those begin who are next and for whom there is room.
    fn grant(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(next) = waiting.pop_front_if(|next| next.share <= self.left.get()) {
            self.left.set(self.left.get() - next.share);
            next.is_granted.set(true);
            if let Some(waker) = next.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Drop for ReadShare<'_> {
    fn drop(&mut self) {
        if self.own.is_granted.get() {
            self.of.left.set(self.of.left.get() + self.own.share);
        } else {
            self.of.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.own));
        }
        self.of.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    const LONG_BYTES: u64 = 1 << 20;

    /// A share that must be there at once.
    fn at_once(shares: &ReadShares, bytes: u64, is_log_written: bool) -> ReadShare<'_> {
        let mut taking = pin!(shares.take(bytes, is_log_written));
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(share) => share,
            Poll::Pending => panic!("{bytes} bytes have to wait"),
        }
    }

    #[test]
    fn few_reads_are_under_way_while_the_log_is_written_and_many_while_it_is_not() {
        for (bytes, is_log_written, at_a_time) in
            [(4_096, false, 64), (LONG_BYTES, false, 8), (4_096, true, 4), (LONG_BYTES, true, 1)]
        {
            let shares = ReadShares::default();
            let mut taken: Vec<_> = (0..at_a_time).map(|_| at_once(&shares, bytes, is_log_written)).collect();
            let mut next = pin!(shares.take(bytes, is_log_written));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(next.as_mut().poll(&mut cx).is_pending(), "{bytes} bytes, written: {is_log_written}");
            taken.pop();
            assert!(next.as_mut().poll(&mut cx).is_ready(), "{bytes} bytes, written: {is_log_written}");
        }
    }

    #[test]
    fn a_long_read_is_not_overtaken_and_who_stops_waiting_holds_nobody_up() {
        let shares = ReadShares::default();
        let mut cx = Context::from_waker(Waker::noop());
        let first = at_once(&shares, 4_096, true);
        let mut long = Box::pin(shares.take(LONG_BYTES, true));
        assert!(long.as_mut().poll(&mut cx).is_pending());
        let mut after = pin!(shares.take(4_096, true));
        assert!(after.as_mut().poll(&mut cx).is_pending(), "the long one was there before");
        drop(long);
        assert!(after.as_mut().poll(&mut cx).is_ready());
        drop(first);
        // What was granted and never looked at goes back as well.
        let all = at_once(&shares, 4_096, true);
        let mut long = Box::pin(shares.take(LONG_BYTES, true));
        assert!(long.as_mut().poll(&mut cx).is_pending());
        drop(all);
        drop(long);
        assert_eq!(shares.left.get(), SHARES, "nobody has anything");
    }
}
