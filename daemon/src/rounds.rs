//! A round is what an executor does between two looks at its rings: it runs all tasks that are ready. Rounds are kept short, so
//! that a write begins soon after it was asked for, and what is durable is answered soon after it is.
//!
//! Requests that are at hand are ready one after the other, for milliseconds, and so are the rows of pages. Each round has time for
//! so much of them, and for less of reads; the others go on after the next look.

use glommio::timer::Timer;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What requests and reads get in a round: about as long as a write takes, and much longer than a look at the rings.
const ROUND: Duration = Duration::from_micros(300);
/// What reads get of it.
const READS: Duration = Duration::from_micros(100);
/// A timer that has run out by the next look, and seldom when it is set.
const SHORT: Duration = Duration::from_micros(3);

/// What a task has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Requests of any kind.
    Requests,
    /// Reads of the ledger.
    Reads,
}

/// Those who wait for time for one kind of work: one after the other, in the order in which they came.
#[derive(Debug, Default)]
struct Turns {
    spent: Duration,
    waiting: VecDeque<Waker>,
    /// Whose turn it is, and who has not been there yet.
    next: Option<Waker>,
}

/// The rounds of one executor.
#[derive(Debug, Default)]
pub struct Rounds {
    requests: RefCell<Turns>,
    reads: RefCell<Turns>,
    /// Somebody waits, and so goes on with the next look.
    is_looking: Cell<bool>,
}

impl Rounds {
    fn turns(&self, work: Work) -> &RefCell<Turns> {
        match work {
            Work::Requests => &self.requests,
            Work::Reads => &self.reads,
        }
    }

    /// The executor has looked at its rings.
    pub fn begin(&self) {
        self.requests.borrow_mut().spent = Duration::ZERO;
        self.reads.borrow_mut().spent = Duration::ZERO;
    }

    /// Counts what work took of the processor since then. Returns the time.
    pub fn spend_since(&self, began: Instant, work: Work) -> Instant {
        let now = Instant::now();
        self.requests.borrow_mut().spent += now - began;
        if work == Work::Reads {
            self.reads.borrow_mut().spent += now - began;
        }
        now
    }

    /// Whether such work has had its time, as far as is known: it may be another round by now.
    pub fn is_spent(&self, work: Work) -> bool {
        let is_over = self.requests.borrow().spent >= ROUND;
        is_over || (work == Work::Reads && self.reads.borrow().spent >= READS)
    }

    /// Ready when there is time for such work in this round, and nobody was there before. Who was told so does the work at once,
    /// and then [passes the turn on](Rounds::pass_on).
    pub fn poll_time(self: &Rc<Self>, work: Work, cx: &Context<'_>) -> Poll<()> {
        let is_spent = self.is_spent(work);
        let mut turns = self.turns(work).borrow_mut();
        let is_own = |waker: &Waker| waker.will_wake(cx.waker());
        if turns.next.take_if(|next| is_own(next)).is_some() {
            return Poll::Ready(());
        }
        if turns.waiting.is_empty() && turns.next.is_none() && !is_spent {
            return Poll::Ready(());
        }
        if !turns.waiting.iter().any(is_own) {
            turns.waiting.push_back(cx.waker().clone());
        }
        drop(turns);
        self.go_on_with_next_look();
        Poll::Pending
    }

    /// Waits until there is time for such work.
    pub async fn turn(self: &Rc<Self>, work: Work) -> Turn<'_> {
        poll_fn(|cx| self.poll_time(work, cx)).await;
        Turn { rounds: self, work, began: Instant::now() }
    }

    /// Lets the next one do such work, if there is time left.
    pub fn pass_on(&self, work: Work) {
        let is_spent = self.is_spent(work);
        let mut turns = self.turns(work).borrow_mut();
        if is_spent || turns.next.is_some() {
            return;
        }
        turns.next = turns.waiting.pop_front();
        let next = turns.next.clone();
        drop(turns);
        if let Some(next) = next {
            next.wake();
        }
    }

    fn go_on_with_next_look(self: &Rc<Self>) {
        if self.is_looking.replace(true) {
            return;
        }
        let this = Rc::clone(self);
        // Runs at once up to where it waits.
        glommio::spawn_local(async move {
            next_look().await;
            this.begin();
            for work in [Work::Requests, Work::Reads] {
                // Who has not come is gone.
                this.turns(work).borrow_mut().next = None;
                this.pass_on(work);
            }
            this.is_looking.set(false);
            let is_waiting = |work| !this.turns(work).borrow().waiting.is_empty();
            if is_waiting(Work::Requests) || is_waiting(Work::Reads) {
                this.go_on_with_next_look();
            }
        })
        .detach();
    }
}

/// Some work at once, without a wait in it. Its end counts it, and passes the turn on.
#[derive(Debug)]
pub struct Turn<'a> {
    rounds: &'a Rounds,
    work: Work,
    began: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.rounds.spend_since(self.began, self.work);
        self.rounds.pass_on(self.work);
    }
}

/// Waits for the executor's next look at its rings: it looks at timers then, and only then.
async fn next_look() {
    let (mut time, mut has_waited) = (SHORT, false);
    while !has_waited {
        let mut timer = Timer::new(time);
        poll_fn(|cx| {
            let polled = Pin::new(&mut timer).poll(cx);
            has_waited |= polled.is_pending();
            polled
        })
        .await;
        time *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses up what reads get.
    fn spend(rounds: &Rounds) {
        rounds.spend_since(Instant::now() - READS, Work::Reads);
    }

    #[test]
    fn work_that_has_had_its_time_goes_on_after_a_look_at_the_rings() {
        glommio::LocalExecutor::default().run(async {
            let rounds = Rc::<Rounds>::default();
            drop(rounds.turn(Work::Reads).await);
            spend(&rounds);
            assert!(rounds.is_spent(Work::Reads) && !rounds.is_spent(Work::Requests));
            let order = Rc::<RefCell<Vec<&str>>>::default();
            let tasks = ["first", "second"].map(|name| {
                let (rounds, order) = (Rc::clone(&rounds), Rc::clone(&order));
                glommio::spawn_local(async move {
                    let _turn = rounds.turn(Work::Reads).await;
                    order.borrow_mut().push(name);
                })
            });
            // A task runs at once up to where it waits.
            assert!(order.borrow().is_empty());
            for task in tasks {
                task.await;
            }
            assert_eq!(*order.borrow(), ["first", "second"]);
        });
    }

    #[test]
    fn of_those_that_wait_only_so_many_go_on_as_have_time() {
        glommio::LocalExecutor::default().run(async {
            let rounds = Rc::<Rounds>::default();
            spend(&rounds);
            let tasks: Vec<_> = (0..5)
                .map(|_| {
                    let rounds = Rc::clone(&rounds);
                    glommio::spawn_local(async move {
                        let _turn = rounds.turn(Work::Reads).await;
                        assert!(!rounds.is_spent(Work::Reads), "those before have used it up");
                        spend(&rounds);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
    }
}
