//! The place where an answer is put down by the connection's thread and picked up by a caller.

use crate::error::ClientError;
use claim_protocol::Reply;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// An answer, and when it arrived.
#[derive(Debug)]
pub(crate) struct Completion {
    pub result: Result<Reply, ClientError>,
    pub at: Instant,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a slot lives on the heap, and a box of its own would cost each claim one more"
)]
enum State {
    Waiting(Option<Waker>),
    Done(Completion),
    Taken,
}

/// A cell that is filled once, awaited by a thread or a task.
#[derive(Debug)]
pub(crate) struct Slot {
    state: Mutex<State>,
    filled: Condvar,
}

impl Slot {
    pub fn new() -> Self {
        Slot { state: Mutex::new(State::Waiting(None)), filled: Condvar::new() }
    }

    /// Fills the slot and wakes whoever waits.
    pub fn fill(&self, completion: Completion) {
        let waker = match std::mem::replace(&mut *self.lock(), State::Done(completion)) {
            State::Waiting(waker) => waker,
            State::Done(_) | State::Taken => unreachable!("a slot is filled once"),
        };
        self.filled.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Blocks until the slot is filled, and empties it.
    pub fn wait(&self) -> Completion {
        let mut state = self.lock();
        loop {
            if let Some(completion) = take(&mut state) {
                return completion;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Empties the slot if it is filled; otherwise has the task woken when it is.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<Completion> {
        let mut state = self.lock();
        match take(&mut state) {
            Some(completion) => Poll::Ready(completion),
            None => {
                *state = State::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// Nothing panics while it holds the lock, so that a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The completion, if there is one; the slot may be emptied once.
fn take(state: &mut State) -> Option<Completion> {
    match std::mem::replace(state, State::Taken) {
        State::Done(completion) => Some(completion),
        waiting @ State::Waiting(_) => {
            *state = waiting;
            None
        }
        State::Taken => panic!("an answer was asked for after it had been taken"),
    }
}
