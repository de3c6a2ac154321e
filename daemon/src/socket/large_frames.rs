//! The budget for frames that do not fit the small buffers.
//!
//! A frame that is larger than a connection may keep by itself reserves its whole length before its bytes are read. The
//! whole at once: connections that each held a part and waited for the rest would wait for each other. When there is
//! no budget, the connection queues, and is not read until it is granted; the budget always comes back, because a
//! frame that has its bytes is either whole within the frame timeout or its connection is closed.

use super::connection::Connection;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

/// The budget of one executor.
#[derive(Debug)]
pub struct LargeFrames {
    free_bytes: Cell<usize>,
    total_bytes: usize,
    /// Connections that wait, first come first served. A connection that closed while it waited is skipped.
    waiters: RefCell<VecDeque<Weak<Connection>>>,
}

impl LargeFrames {
    /// A budget of `total_bytes`.
    pub fn new(total_bytes: usize) -> Self {
        Self { free_bytes: Cell::new(total_bytes), total_bytes, waiters: RefCell::new(VecDeque::new()) }
    }

    /// Bytes that are reserved.
    pub fn used_bytes(&self) -> usize {
        self.total_bytes - self.free_bytes.get()
    }

    /// Reserves `bytes` if they are free and nobody has waited longer.
    pub fn reserve(self: &Rc<Self>, bytes: usize, conn: &Rc<Connection>) -> Option<Reservation> {
        assert!(bytes <= self.total_bytes, "a frame of {bytes} bytes can never fit {} bytes", self.total_bytes);
        let mut waiters = self.waiters.borrow_mut();
        while waiters.front().is_some_and(|first| first.upgrade().is_none_or(|first| first.is_closed())) {
            waiters.pop_front();
        }
        let first = waiters.front().is_none_or(|first| std::ptr::eq(first.as_ptr(), Rc::as_ptr(conn)));
        if first && bytes <= self.free_bytes.get() {
            waiters.pop_front();
            self.free_bytes.set(self.free_bytes.get() - bytes);
            // What is left may be enough for the next one.
            Self::wake_first(&waiters);
            return Some(Reservation { budget: Rc::clone(self), bytes });
        }
        if !waiters.iter().any(|waiter| std::ptr::eq(waiter.as_ptr(), Rc::as_ptr(conn))) {
            waiters.push_back(Rc::downgrade(conn));
        }
        None
    }

    /// Lets the first waiter try again after a waiting connection went away.
    pub fn nudge(&self) {
        let mut waiters = self.waiters.borrow_mut();
        waiters.retain(|waiter| waiter.upgrade().is_some_and(|waiter| !waiter.is_closed()));
        Self::wake_first(&waiters);
    }

    fn wake_first(waiters: &VecDeque<Weak<Connection>>) {
        if let Some(first) = waiters.front().and_then(Weak::upgrade) {
            first.wake();
        }
    }
}

/// A part of the budget; it goes back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Rc<LargeFrames>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.free_bytes.set(self.budget.free_bytes.get() + self.bytes);
        LargeFrames::wake_first(&self.budget.waiters.borrow());
    }
}
