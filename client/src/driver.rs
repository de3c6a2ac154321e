//! The thread behind an endpoint: one socket, one table of requests, all timers.
//!
//! Everything that can happen to a request happens here, in one thread and without locks: it is sent, answered, sent
//! again with the same key after the connection broke or the daemon asked for patience, or given up at its deadline.
//!
//! ```text
//!            connect fails, back off                  connection breaks: what was sent is sent again, in order
//!          +--------------------------+   +--------------------------------------------------------------+
//!          v                          |   v                                                              |
//!        Down --- connect, hello ---> Greeting --- welcome of the same ledger ---> Up --- requests --->--+
//! ```
//!
//! A request's id is its place in the order of submission, so that sending the table in the order of ids repeats it.

use crate::connection::Connection;
use crate::endpoint::{Intaken, Shared};
use crate::error::{ClientError, UnknownCause};
use crate::job::Job;
use crate::retry::Jitter;
use crate::slot::{Completion, Slot};
use claim_protocol::{
    Builder, ErrorCode, Operation, PROTOCOL_VERSION, Reply, ReplyResult, Request, Welcome, decode_reply, encode_request,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Request id of a connection's first request; the others follow.
const HELLO_ID: u64 = 1;
/// The first pause before reconnecting; it doubles with each failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// The longest pause before reconnecting.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The pause after a daemon said that it is going down: time to close, and for its successor to start.
const SHUTTING_DOWN_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Link {
    Down { retry_at: Instant },
    Greeting { connection: Connection, give_up_at: Instant },
    Up { connection: Connection },
}

/// What ended a sleep.
struct News {
    /// The intake was written to.
    intake: bool,
    /// The socket can be read, if only to learn that it has ended.
    socket: bool,
}

/// The state of one endpoint's thread.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    link: Link,
    ledger: Option<Uuid>,
    /// Waits for the first exchange; until then a failure is final.
    greeted: Option<Arc<Slot>>,
    /// Until then the first connection waits for room in the daemon's backlog.
    first_by: Instant,
    builder: Builder,
    /// Requests that have not ended, in the order of submission.
    jobs: BTreeMap<u64, Box<Job>>,
    next_id: u64,
    /// Of `jobs`: to be sent as soon as there is a connection with room.
    to_send: BTreeSet<u64>,
    /// Of `jobs`: to be sent again at that time.
    delayed: BTreeSet<(Instant, u64)>,
    /// All of `jobs`.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Ended, and not yet told to their callers.
    ended: Vec<(Box<Job>, Result<Reply, ClientError>)>,
    /// Failed or broken connections since the last reply.
    failures: u32,
    jitter: Jitter,
}

impl Driver {
    pub fn new(
        shared: Arc<Shared>,
        connection: Option<Connection>,
        ledger: Option<Uuid>,
        greeted: Option<Arc<Slot>>,
    ) -> Self {
        let now = Instant::now();
        let first_by = now + shared.options.connect_timeout;
        let mut driver = Driver {
            shared,
            link: Link::Down { retry_at: now },
            ledger,
            greeted,
            first_by,
            builder: Builder::new(),
            jobs: BTreeMap::new(),
            next_id: HELLO_ID + 1,
            to_send: BTreeSet::new(),
            delayed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            ended: Vec::new(),
            failures: 0,
            jitter: Jitter::new(getrandom::u64().unwrap_or(0)),
        };
        if let Some(connection) = connection {
            driver.greet(connection, now);
        }
        driver
    }

    /// Serves the endpoint until its last handle is dropped.
    pub fn run(mut self) {
        loop {
            let now = Instant::now();
            self.expire(now);
            self.reconnect(now);
            self.send(now);
            self.tell(now);
            match self.shared.intake() {
                Intaken::Closing => return,
                Intaken::Jobs(jobs) => {
                    self.shared.retry_budget().requests(jobs.len() as u64, now);
                    jobs.into_iter().for_each(|job| self.take_in(job));
                    continue;
                }
                Intaken::Sleep(held_until) => {
                    let timeout = self.next_timer(held_until).map(|at| at.saturating_duration_since(now));
                    let news = self.sleep(timeout);
                    self.shared.awake(news.intake);
                    if news.socket {
                        self.receive();
                    }
                }
            }
        }
    }

    fn take_in(&mut self, job: Box<Job>) {
        let id = self.next_id;
        self.next_id += 1;
        self.deadlines.insert((job.deadline, id));
        self.to_send.insert(id);
        self.jobs.insert(id, job);
    }

    // ---- time ----

    /// Ends what is past its deadline, and lets what has waited long enough be sent again.
    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            let error = self.jobs[&id].deadline_passed();
            self.end(id, Err(error));
        }
        while let Some(&(due, id)) = self.delayed.first()
            && due <= now
        {
            self.delayed.pop_first();
            self.jobs.get_mut(&id).expect("what is delayed has not ended").due = None;
            self.to_send.insert(id);
        }
    }

    /// The next instant at which something has to happen by itself.
    fn next_timer(&self, held_until: Option<Instant>) -> Option<Instant> {
        let link = match &self.link {
            Link::Down { retry_at } => self.wants_connection().then_some(*retry_at),
            Link::Greeting { give_up_at, .. } => Some(*give_up_at),
            Link::Up { .. } => None,
        };
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let delayed = self.delayed.first().map(|(at, _)| *at);
        [held_until, link, deadline, delayed].into_iter().flatten().min()
    }

    /// Sleeps until the socket or the intake has news, at most for `timeout`.
    fn sleep(&self, timeout: Option<Duration>) -> News {
        // One millisecond more, because poll rounds down and would return just before the time.
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let wake = PollFd::new(self.shared.wake_fd().as_fd(), PollFlags::POLLIN);
        // An interrupted call is as good as an early one: the loop looks at everything again.
        let Some(connection) = self.connection() else {
            let mut fds = [wake];
            let _ = poll(&mut fds, timeout);
            return News { intake: readable(&fds[0]), socket: false };
        };
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, connection.wants_to_write());
        let mut fds = [wake, PollFd::new(connection.as_fd(), events)];
        let _ = poll(&mut fds, timeout);
        News { intake: readable(&fds[0]), socket: readable(&fds[1]) }
    }

    fn connection(&self) -> Option<&Connection> {
        match &self.link {
            Link::Down { .. } => None,
            Link::Greeting { connection, .. } | Link::Up { connection } => Some(connection),
        }
    }

    /// A pause that doubles with each failure, between a half and the whole of it, so that clients do not come back in
    /// step.
    fn backoff(&mut self) -> Duration {
        let whole = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        whole / 2 + self.jitter.up_to(whole / 2)
    }

    // ---- the connection ----

    /// Connects when there is a reason to and the pause is over; gives up on a greeting that takes too long.
    fn reconnect(&mut self, now: Instant) {
        match &self.link {
            Link::Down { retry_at } if *retry_at <= now && self.wants_connection() => {
                match Connection::open(&self.shared.socket) {
                    Ok(connection) => self.greet(connection, now),
                    // The daemon is there and has no room for one more just now.
                    Err(error) if error.kind() == ErrorKind::WouldBlock && now < self.first_by => {
                        self.link = Link::Down { retry_at: now + BACKOFF_FIRST };
                    }
                    Err(error) => {
                        let hint = "start the daemon with `claimd start` or name its socket";
                        self.lose(format!("{error}; {hint}"), now);
                    }
                }
            }
            Link::Greeting { give_up_at, .. } if *give_up_at <= now => {
                self.lose("the daemon accepted the connection and did not answer".to_owned(), now);
            }
            _ => {}
        }
    }

    fn wants_connection(&self) -> bool {
        !self.to_send.is_empty() || self.greeted.is_some()
    }

    fn greet(&mut self, mut connection: Connection, now: Instant) {
        let hello = Operation::Hello {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            client: &self.shared.options.name,
        };
        let out = connection.room().expect("a new connection has room");
        encode_request(&mut self.builder, &Request::new(HELLO_ID, hello), out).expect("a hello is short");
        let give_up_at = now + self.shared.options.connect_timeout;
        self.link = Link::Greeting { connection, give_up_at };
    }

    /// The connection is gone, or could not be made: what was sent is to be sent again, what has been tried often enough
    /// ends.
    fn lose(&mut self, reason: String, now: Instant) {
        self.failures += 1;
        self.link = Link::Down { retry_at: now + self.backoff() };
        if self.greeted.is_some() {
            self.greeted_with(Err(self.shared.cannot_connect(reason)), now);
            return;
        }
        let mut given_up = Vec::new();
        for (&id, job) in &mut self.jobs {
            if std::mem::take(&mut job.sent) {
                job.ambiguous |= job.mutating;
                self.to_send.insert(id);
            } else if self.to_send.contains(&id) {
                job.attempts += 1;
            }
            if job.attempts >= self.shared.options.attempts_max {
                given_up.push(id);
            }
        }
        for id in given_up {
            self.give_up(id, &reason);
        }
    }

    fn give_up(&mut self, id: u64, reason: &str) {
        let job = &self.jobs[&id];
        let error = if job.ambiguous {
            job.unknown_outcome(UnknownCause::ConnectionLost, reason.to_owned(), 0)
        } else {
            self.shared.cannot_connect(reason.to_owned())
        };
        self.end(id, Err(error));
    }

    fn greeted_with(&mut self, result: Result<Reply, ClientError>, now: Instant) {
        if let Some(slot) = self.greeted.take() {
            slot.fill(Completion { result, at: now });
        }
    }

    // ---- requests out ----

    fn send(&mut self, now: Instant) {
        let connection = match &mut self.link {
            Link::Down { .. } => return,
            Link::Greeting { connection, .. } => connection,
            Link::Up { connection } => {
                while let Some(&id) = self.to_send.first()
                    && let Some(out) = connection.room()
                {
                    let job = self.jobs.get_mut(&id).expect("what is to be sent has not ended");
                    job.append(&mut self.builder, id, now, out);
                    job.attempts += 1;
                    job.sent = true;
                    self.to_send.pop_first();
                }
                connection
            }
        };
        if let Err(broken) = connection.flush() {
            // The daemon may have said why before it closed.
            self.receive();
            if self.connection().is_some() {
                self.lose(broken.to_string(), now);
            }
        }
    }

    // ---- replies in ----

    /// Reads what has come, and handles every whole frame of it, also of a connection that has ended.
    fn receive(&mut self) {
        let now = Instant::now();
        let down = Link::Down { retry_at: now };
        let (mut connection, give_up_at) = match std::mem::replace(&mut self.link, down) {
            Link::Down { .. } => return,
            Link::Greeting { connection, give_up_at } => (connection, Some(give_up_at)),
            Link::Up { connection } => (connection, None),
        };
        let read = connection.read();
        let mut greeting = give_up_at;
        let outcome = loop {
            let frame = match connection.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break read.map_err(|broken| broken.to_string()),
                Err(broken) => break Err(broken.to_string()),
            };
            let reply = match decode_reply(frame) {
                Ok(reply) => reply,
                Err(error) => break Err(error.message),
            };
            let handled = match greeting.take() {
                Some(_) => self.welcomed(reply, now),
                None => self.answered(reply, now),
            };
            if let Err(reason) = handled {
                break Err(reason);
            }
        };
        match (outcome, greeting) {
            (Ok(()), None) => self.link = Link::Up { connection },
            (Ok(()), Some(give_up_at)) => self.link = Link::Greeting { connection, give_up_at },
            (Err(reason), _) => self.lose(reason, now),
        }
    }

    /// The first reply of a connection.
    fn welcomed(&mut self, reply: Reply, now: Instant) -> Result<(), String> {
        let welcome = match &reply.result {
            ReplyResult::Welcome(welcome) => welcome,
            ReplyResult::Error(error) => return Err(error.to_string()),
            _ => return Err("the daemon did not answer the greeting with a welcome".to_owned()),
        };
        self.acceptable(welcome)?;
        self.ledger = Some(welcome.ledger);
        self.greeted_with(Ok(reply), now);
        Ok(())
    }

    fn acceptable(&self, welcome: &Welcome) -> Result<(), String> {
        if welcome.version != PROTOCOL_VERSION {
            let found = welcome.version;
            return Err(format!("the daemon chose protocol version {found}; this client speaks {PROTOCOL_VERSION}"));
        }
        match self.ledger {
            // A retry is safe only where the first attempt's key is known.
            Some(ledger) if ledger != welcome.ledger => {
                Err(format!("ledger {} answers where ledger {ledger} did before", welcome.ledger))
            }
            _ => Ok(()),
        }
    }

    fn answered(&mut self, reply: Reply, now: Instant) -> Result<(), String> {
        let id = reply.request_id;
        let Some(job) = self.jobs.get_mut(&id) else {
            return match reply.result {
                // The frame before the daemon closes, about bytes that it could not read.
                ReplyResult::Error(error) if id == 0 => Err(error.to_string()),
                // The answer to a request whose deadline has passed.
                _ if id > HELLO_ID && id < self.next_id => Ok(()),
                _ => Err(format!("the daemon answered request {id}, which was never sent")),
            };
        };
        self.failures = 0;
        let ReplyResult::Error(error) = reply.result else {
            if let Some(observer) = job.observer.take() {
                observer(&reply);
            }
            self.end(id, Ok(reply));
            return Ok(());
        };
        let pause = match error.code {
            ErrorCode::Overloaded | ErrorCode::Throttled if job.retry_overload => {
                let advised = Duration::from_millis(u64::from(error.retry_after_ms.max(1)));
                let pause = self.jitter.pause(advised, job.refusals);
                job.refusals += 1;
                // A retry that cannot come before the deadline takes nothing from the others.
                let is_granted = now + pause < job.deadline && self.shared.retry_budget().try_retry(now);
                is_granted.then_some(pause)
            }
            // The daemon is about to close; its successor knows the key.
            ErrorCode::ShuttingDown if job.attempts < self.shared.options.attempts_max => {
                job.ambiguous |= job.mutating;
                Some(SHUTTING_DOWN_PAUSE)
            }
            _ => None,
        };
        match pause {
            Some(pause) if now + pause < job.deadline => {
                job.sent = false;
                job.due = Some(now + pause);
                self.delayed.insert((now + pause, id));
            }
            _ => {
                let error = job.refusal(error);
                self.end(id, Err(error));
            }
        }
        Ok(())
    }

    // ---- the end of a request ----

    fn end(&mut self, id: u64, result: Result<Reply, ClientError>) {
        let job = self.jobs.remove(&id).expect("a request ends once");
        self.deadlines.remove(&(job.deadline, id));
        self.to_send.remove(&id);
        if let Some(due) = job.due {
            self.delayed.remove(&(due, id));
        }
        self.ended.push((job, result));
    }

    /// Tells callers what has ended. Room is made first, so that a caller finds it when it comes back.
    fn tell(&mut self, now: Instant) {
        self.shared.release(self.ended.len(), now);
        for (job, result) in self.ended.drain(..) {
            let Job { slot, lane, .. } = *job;
            drop(lane);
            slot.fill(Completion { result, at: now });
        }
    }
}

fn readable(fd: &PollFd<'_>) -> bool {
    let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    fd.revents().is_some_and(|events| events.intersects(readable))
}

impl Drop for Driver {
    /// No caller can be waiting, because each holds the endpoint; whoever was left behind by a panic still gets an end.
    fn drop(&mut self) {
        let now = Instant::now();
        let reason = || self.shared.cannot_connect("the client was closed".to_owned());
        for job in std::mem::take(&mut self.jobs).into_values() {
            job.slot.fill(Completion { result: Err(reason()), at: now });
        }
    }
}
