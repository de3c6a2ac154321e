//! A bounded queue from any thread to one executor.
//!
//! It is a mutex around a queue and one waker, and nothing else: the acceptor thread hands connections to executors
//! through it, and the mesh is made of it. The lock is held for a push or for a swap, never across a wait, and a sender
//! wakes the executor once per batch: the waker leaves its slot with the first message after the executor went to wait.
//!
//! glommio's own channels do the same with a ring per pair and a registration with the reactor per channel. This queue
//! is used because its bounds, its closing and the moment of its wake can be read on one page, and because it measured
//! better: between two executors on two cores, 50 k round trips/s against 30 k with one message under way, 2.1 M against
//! 1.2 M with 64, 22 M against 10 M with 1,024 (`figures_of_the_mesh` measures this side).
//!
//! Neither way is free of glommio's habit of parking with runnable tasks: the wake is taken from its queue, its
//! notification arrives a moment later, raises the preemption flag before the woken task has run, and the executor
//! parks. So every message in an inbox counts as work of its executor, and the stall guard sees an executor that sleeps
//! over it.

use crate::stall_guard::Pulse;
use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

/// Why an item did not go in; the item comes back to the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum PushError<T> {
    /// The inbox holds its maximum.
    Full(T),
    /// The inbox is closed.
    Closed(T),
}

impl<T> PushError<T> {
    /// The item that was refused.
    pub fn into_inner(self) -> T {
        match self {
            PushError::Full(item) | PushError::Closed(item) => item,
        }
    }
}

/// One inbox; clones are further handles to the same queue. Any thread may push, one task may take.
pub struct Inbox<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    items_max: usize,
    /// The executor that takes from here; its open work includes every item that waits.
    pulse: Arc<Pulse>,
}

struct State<T> {
    items: VecDeque<T>,
    waiter: Option<Waker>,
    closed: bool,
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("items", &self.len()).field("items_max", &self.shared.items_max).finish()
    }
}

impl<T: Send + 'static> Inbox<T> {
    /// An inbox for the executor that `pulse` belongs to, which holds at most `items_max` items.
    pub fn new(items_max: usize, pulse: Arc<Pulse>) -> Self {
        assert!(items_max > 0, "an inbox that holds nothing would refuse everything");
        let state = State { items: VecDeque::new(), waiter: None, closed: false };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), items_max, pulse }) }
    }

    /// Appends an item unless the inbox is full or closed, and wakes its executor. Never blocks.
    pub fn try_push(&self, item: T) -> Result<(), PushError<T>> {
        self.push_up_to(item, self.shared.items_max)
    }

    /// As [`Inbox::try_push`], with a bound of the caller's own in place of the inbox's.
    pub fn push_up_to(&self, item: T, items_max: usize) -> Result<(), PushError<T>> {
        let mut state = self.lock();
        if state.closed {
            return Err(PushError::Closed(item));
        }
        if state.items.len() >= items_max {
            return Err(PushError::Full(item));
        }
        state.items.push_back(item);
        // Counted under the lock: the taker subtracts only what it found in the queue, so the count never goes below 0.
        self.shared.pulse.work_add(1);
        let waiter = state.waiter.take();
        drop(state);
        wake(waiter);
        Ok(())
    }

    /// Refuses further items; what waits can still be taken.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waiter = state.waiter.take();
        drop(state);
        wake(waiter);
    }

    /// Waits until there are items and appends all of them to `into`, in order. False once the inbox is closed and
    /// empty; nothing more will come then.
    pub async fn take(&self, into: &mut VecDeque<T>) -> bool {
        poll_fn(|cx| self.poll_take(cx, into)).await
    }

    /// [`Inbox::take`] for a task that waits for several things at once.
    pub fn poll_take(&self, cx: &Context<'_>, into: &mut VecDeque<T>) -> Poll<bool> {
        let mut state = self.lock();
        if state.items.is_empty() {
            if state.closed {
                return Poll::Ready(false);
            }
            match &state.waiter {
                Some(waiter) if waiter.will_wake(cx.waker()) => {}
                _ => state.waiter = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let taken = state.items.len();
        if into.is_empty() {
            std::mem::swap(&mut state.items, into);
        } else {
            into.append(&mut state.items);
        }
        drop(state);
        self.shared.pulse.work_sub(taken as u64);
        self.shared.pulse.beat();
        Poll::Ready(true)
    }
}

impl<T> Inbox<T> {
    /// How many items wait.
    pub fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// Whether it was closed; what it held may still wait.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing that runs under the lock panics, except for want of memory, and then the process is gone.
        self.shared.state.lock().expect("no holder of an inbox's lock panics")
    }
}

/// Wakes outside the lock: the woken task takes the lock at once.
fn wake(waiter: Option<Waker>) {
    if let Some(waiter) = waiter {
        waiter.wake();
    }
}
