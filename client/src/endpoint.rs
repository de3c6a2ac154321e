//! One socket of the daemon as callers see it: a bounded intake in front of the thread that serves it.

use crate::connection::Connection;
use crate::driver::Driver;
use crate::error::ClientError;
use crate::job::Job;
use crate::options::ClientOptions;
use crate::retry::RetryBudget;
use crate::slot::{Completion, Slot};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Instant;
use uuid::Uuid;

/// What callers and the connection's thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub socket: PathBuf,
    pub options: ClientOptions,
    /// Of the whole client: all its sockets share it.
    retry_budget: Arc<Mutex<RetryBudget>>,
    intake: Mutex<Intake>,
    /// Notified when an outstanding request ends.
    room: Condvar,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct Intake {
    queue: VecDeque<Box<Job>>,
    /// Requests taken in and not ended; bounded by `outstanding_max`.
    outstanding: usize,
    /// Requests that found no room, by ticket. While there are any, later ones do not overtake them.
    held: BTreeMap<u64, Option<(Instant, Waker)>>,
    next_ticket: u64,
    /// The thread sleeps, or is about to: it needs waking.
    sleeping: bool,
    closing: bool,
}

/// What the thread finds when it looks at the intake.
pub(crate) enum Intaken {
    Jobs(VecDeque<Box<Job>>),
    /// Nothing came. The thread may sleep, at most until the deadline of a held request.
    Sleep(Option<Instant>),
    Closing,
}

/// A place in the line of requests that found no room.
#[derive(Debug)]
pub(crate) struct Ticket(u64);

/// One socket of the daemon. Dropping the last handle ends its thread.
#[derive(Debug)]
pub(crate) struct Endpoint {
    shared: Arc<Shared>,
}

impl Endpoint {
    /// Starts the thread that serves `connection`, or makes one, restores it when it breaks, and fills `greeted` after
    /// the first exchange. `ledger` is the one that must answer, if it is known.
    pub fn start(
        socket: PathBuf,
        connection: Option<Connection>,
        ledger: Option<Uuid>,
        greeted: Option<Arc<Slot>>,
        options: ClientOptions,
        retry_budget: Arc<Mutex<RetryBudget>>,
    ) -> io::Result<Arc<Self>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let intake = Mutex::new(Intake::default());
        let shared = Arc::new(Shared { socket, options, retry_budget, intake, room: Condvar::new(), wake });
        let driver = Driver::new(Arc::clone(&shared), connection, ledger, greeted);
        thread::Builder::new().name("claim-client".to_owned()).spawn(move || driver.run())?;
        Ok(Arc::new(Endpoint { shared }))
    }

    /// Takes the job in, or gives it back with a place in the line when as many are outstanding as may be.
    pub fn submit(&self, job: Box<Job>) -> Result<Arc<Slot>, (Box<Job>, Ticket)> {
        let mut intake = self.shared.lock();
        if intake.held.is_empty() && intake.outstanding < self.shared.options.outstanding_max {
            return Ok(self.shared.take_in(intake, job));
        }
        let ticket = intake.next_ticket;
        intake.next_ticket += 1;
        intake.held.insert(ticket, None);
        Err((job, Ticket(ticket)))
    }

    /// Takes a held job in, or gives it back and has `waker` woken when there is room or its deadline passes.
    pub fn poll_submit(&self, job: Box<Job>, ticket: &Ticket, waker: &Waker) -> Result<Arc<Slot>, Box<Job>> {
        let mut intake = self.shared.lock();
        if intake.outstanding < self.shared.options.outstanding_max {
            intake.held.remove(&ticket.0);
            return Ok(self.shared.take_in(intake, job));
        }
        let now = Instant::now();
        if job.deadline <= now {
            intake.held.remove(&ticket.0);
            return Ok(expired(&job, now));
        }
        intake.held.insert(ticket.0, Some((job.deadline, waker.clone())));
        // The thread times the deadline, so it has to hear of it.
        self.shared.wake(&mut intake);
        Err(job)
    }

    /// Takes a held job in, waiting for room until its deadline.
    pub fn submit_blocking(&self, job: Box<Job>, ticket: &Ticket) -> Arc<Slot> {
        let mut intake = self.shared.lock();
        loop {
            if intake.outstanding < self.shared.options.outstanding_max {
                intake.held.remove(&ticket.0);
                return self.shared.take_in(intake, job);
            }
            let now = Instant::now();
            let left = job.deadline.saturating_duration_since(now);
            if left.is_zero() {
                intake.held.remove(&ticket.0);
                return expired(&job, now);
            }
            (intake, _) = self.shared.room.wait_timeout(intake, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Leaves the line.
    pub fn forget(&self, ticket: &Ticket) {
        self.shared.lock().held.remove(&ticket.0);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let mut intake = self.shared.lock();
        intake.closing = true;
        self.shared.wake(&mut intake);
    }
}

fn expired(job: &Job, now: Instant) -> Arc<Slot> {
    job.slot.fill(Completion { result: Err(job.deadline_passed()), at: now });
    Arc::clone(&job.slot)
}

impl Shared {
    /// Who grants retries.
    pub fn retry_budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.retry_budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has come since the last call.
    pub fn intake(&self) -> Intaken {
        let mut intake = self.lock();
        if intake.closing {
            return Intaken::Closing;
        }
        if !intake.queue.is_empty() {
            return Intaken::Jobs(std::mem::take(&mut intake.queue));
        }
        intake.sleeping = true;
        Intaken::Sleep(intake.held.values().flatten().map(|(deadline, _)| *deadline).min())
    }

    /// The thread is awake: it looks at the intake by itself before it sleeps again. `woken` says that the counter was
    /// written to; reading resets it.
    pub fn awake(&self, woken: bool) {
        self.lock().sleeping = false;
        if woken {
            let _ = self.wake.read();
        }
    }

    /// The descriptor that becomes readable when the thread has to look at the intake.
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// Makes room for as many requests as have ended, and lets held ones whose deadline has passed find out.
    pub fn release(&self, ended: usize, now: Instant) {
        let mut intake = self.lock();
        intake.outstanding = intake.outstanding.checked_sub(ended).expect("each request ends once");
        let mut wakers = Vec::new();
        for waiting in intake.held.values_mut() {
            if ended > 0 || waiting.as_ref().is_some_and(|(deadline, _)| *deadline <= now) {
                wakers.extend(waiting.take().map(|(_, waker)| waker));
            }
        }
        drop(intake);
        if ended > 0 {
            self.room.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The error of a request that never reached a daemon.
    pub fn cannot_connect(&self, reason: String) -> ClientError {
        ClientError::Connect { socket: self.socket.clone(), reason }
    }

    fn take_in(&self, mut intake: MutexGuard<'_, Intake>, job: Box<Job>) -> Arc<Slot> {
        let slot = Arc::clone(&job.slot);
        intake.outstanding += 1;
        intake.queue.push_back(job);
        self.wake(&mut intake);
        slot
    }

    fn wake(&self, intake: &mut Intake) {
        if std::mem::take(&mut intake.sleeping) {
            // The counter cannot overflow: it is written once per sleep.
            let _ = self.wake.write(1);
        }
    }

    /// Nothing panics while it holds the lock and leaves the intake half changed.
    fn lock(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
