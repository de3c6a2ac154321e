//! A round is what an executor does between two looks at its rings: it runs all tasks that are ready. Rounds are kept short, so
//! that a write begins soon after it was asked for, and what is durable is answered soon after it is.
//!
//! Requests that are at hand are ready one after the other, for milliseconds, and so are the rows of pages. Each round has time for
//! so much of them, and for less of reads; the others go on after the next look.

use glommio::timer::Timer;
use std::cell::{Cell, RefCell};
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

/// The rounds of one executor.
#[derive(Debug, Default)]
pub struct Rounds {
    spent: Cell<Duration>,
    spent_on_reads: Cell<Duration>,
    /// Those that go on in the next round.
    waiting: RefCell<Vec<Waker>>,
}

impl Rounds {
    /// The executor has looked at its rings.
    pub fn begin(&self) {
        self.spent.set(Duration::ZERO);
        self.spent_on_reads.set(Duration::ZERO);
    }

    /// Counts what work took of the processor since then. Returns the time.
    pub fn spend_since(&self, began: Instant, work: Work) -> Instant {
        let now = Instant::now();
        let time = now - began;
        self.spent.set(self.spent.get() + time);
        if work == Work::Reads {
            self.spent_on_reads.set(self.spent_on_reads.get() + time);
        }
        now
    }

    /// Whether such work has had its time, as far as is known: it may be another round by now.
    pub fn is_spent(&self, work: Work) -> bool {
        self.spent.get() >= ROUND || (work == Work::Reads && self.spent_on_reads.get() >= READS)
    }

    /// Ready while there is time for such work in this round.
    pub fn poll_time(self: &Rc<Self>, work: Work, cx: &Context<'_>) -> Poll<()> {
        if !self.is_spent(work) {
            return Poll::Ready(());
        }
        self.waiting.borrow_mut().push(cx.waker().clone());
        if self.waiting.borrow().len() == 1 {
            let this = Rc::clone(self);
            // Runs at once up to where it waits.
            glommio::spawn_local(async move {
                next_look().await;
                this.begin();
                let waiting = this.waiting.take();
                waiting.into_iter().for_each(Waker::wake);
            })
            .detach();
        }
        Poll::Pending
    }

    /// Waits until there is time for such work.
    pub async fn time_for(self: &Rc<Self>, work: Work) {
        poll_fn(|cx| self.poll_time(work, cx)).await;
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
            rounds.time_for(Work::Reads).await;
            spend(&rounds);
            assert!(rounds.is_spent(Work::Reads) && !rounds.is_spent(Work::Requests));
            let order = Rc::<RefCell<Vec<&str>>>::default();
            let tasks = ["first", "second"].map(|name| {
                let (rounds, order) = (Rc::clone(&rounds), Rc::clone(&order));
                glommio::spawn_local(async move {
                    rounds.time_for(Work::Reads).await;
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
                        rounds.time_for(Work::Reads).await;
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
