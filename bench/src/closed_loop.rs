//! The closed loop: a fixed number of requests outstanding, a new one for every reply.
//!
//! One thread serves all connections, so that the load stays on one core. A request's time begins when its place became
//! free, that is, when the reply before it was read, and ends when its own reply was read: what the generator itself
//! needs in between counts, so the generator can make a daemon look slower, never faster, and outstanding = rate × mean latency.

use crate::connection::Connection;
use crate::error::BenchError;
use crate::outcome::Tally;
use crate::workload::{Claims, Shape};
use claim_protocol::ReplyResult;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long replies are waited for after the last request.
const DRAIN_SECONDS: u64 = 10;

/// Connections that one wake-up can report; the others come with the next.
const EVENTS_MAX: usize = 64;

/// A greeted connection, how much of the load goes over it, and into which corpora.
#[derive(Debug)]
pub struct Link {
    pub stream: UnixStream,
    pub outstanding: usize,
    pub corpora: Vec<String>,
}

/// How long a row takes.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Load that is not counted.
    pub warm_up: Duration,
    /// Load that is.
    pub measured: Duration,
    /// Whether to poll without sleeping, so that waking the generator up is not part of a latency.
    pub spin: bool,
}

/// Loads the daemon over `links` and counts what was answered in the measured time.
pub fn closed_loop(links: Vec<Link>, shape: Shape, timing: Timing) -> Result<Tally, BenchError> {
    let mut load = Load::new(links, shape, timing)?;
    load.start()?;
    while load.turn()? {}
    Ok(load.tally)
}

/// A connection with its corpora, and whether the socket has to take the rest of what is to be sent.
struct Channel {
    connection: Connection,
    corpora: Vec<String>,
    blocked: bool,
}

struct Load {
    channels: Vec<Channel>,
    claims: Claims,
    shape: Shape,
    epoll: Epoll,
    spin: bool,
    measured_from: Instant,
    measured_until: Instant,
    tally: Tally,
}

impl Load {
    fn new(links: Vec<Link>, shape: Shape, timing: Timing) -> Result<Self, BenchError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(BenchError::system("create an epoll"))?;
        let mut channels = Vec::with_capacity(links.len());
        for (index, link) in links.into_iter().enumerate() {
            let connection = Connection::new(link.stream, link.outstanding)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
            epoll.add(connection.stream(), event).map_err(BenchError::system("poll a connection"))?;
            channels.push(Channel { connection, corpora: link.corpora, blocked: false });
        }
        let measured_from = Instant::now() + timing.warm_up;
        Ok(Load {
            channels,
            claims: Claims::new(shape),
            shape,
            epoll,
            spin: timing.spin,
            measured_from,
            measured_until: measured_from + timing.measured,
            tally: Tally::new(),
        })
    }

    /// Sends the first requests.
    fn start(&mut self) -> Result<(), BenchError> {
        let now = Instant::now();
        for index in 0..self.channels.len() {
            self.channels[index].connection.restart_clocks(now);
            self.refill(index)?;
            self.send(index)?;
        }
        Ok(())
    }

    /// Waits for sockets and serves those that are ready; whether there is more to come.
    fn turn(&mut self) -> Result<bool, BenchError> {
        let now = Instant::now();
        let drained_until = self.measured_until + Duration::from_secs(DRAIN_SECONDS);
        if now >= self.measured_until {
            let requests: usize = self.channels.iter().map(|channel| channel.connection.waiting()).sum();
            if requests == 0 {
                return Ok(false);
            }
            if now >= drained_until {
                return Err(BenchError::Unanswered { requests, seconds: DRAIN_SECONDS });
            }
        }
        let next_deadline = if now < self.measured_until { self.measured_until } else { drained_until };
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let ready = match self.epoll.wait(&mut events, self.timeout(next_deadline - now)) {
            Ok(ready) => ready,
            Err(nix::Error::EINTR) => 0,
            Err(errno) => return Err(BenchError::system("wait for a connection")(errno)),
        };
        self.claims.set_clock();
        for event in &events[..ready] {
            self.serve(event.data() as usize, event.events())?;
        }
        Ok(true)
    }

    fn timeout(&self, rest: Duration) -> EpollTimeout {
        if self.spin {
            return EpollTimeout::ZERO;
        }
        // Rounded up, so that the last millisecond is not spent spinning.
        EpollTimeout::try_from(rest.as_millis() as u64 + 1).unwrap_or(EpollTimeout::NONE)
    }

    fn serve(&mut self, index: usize, events: EpollFlags) -> Result<(), BenchError> {
        // Errors and hang-ups are met by reading, too.
        if events != EpollFlags::EPOLLOUT {
            let connection = &mut self.channels[index].connection;
            connection.receive()?;
            let now = Instant::now();
            while let Some(answered) = connection.next_reply(now)? {
                let counted = self.measured_from <= now && now < self.measured_until;
                count(&mut self.tally, self.shape, &answered.reply.result, counted.then(|| now - answered.since))?;
            }
            if now < self.measured_until {
                self.refill(index)?;
            }
        }
        self.send(index)
    }

    fn refill(&mut self, index: usize) -> Result<(), BenchError> {
        let Channel { connection, corpora, .. } = &mut self.channels[index];
        connection.fill(|id, out| self.claims.encode(id, corpora, out))
    }

    /// Sends, and asks to be told when a socket that is full takes more.
    fn send(&mut self, index: usize) -> Result<(), BenchError> {
        let channel = &mut self.channels[index];
        let blocked = channel.connection.send()?;
        if blocked != channel.blocked {
            channel.blocked = blocked;
            let interest = if blocked { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            self.epoll
                .modify(channel.connection.stream(), &mut EpollEvent::new(interest, index as u64))
                .map_err(BenchError::system("poll a connection"))?;
        }
        Ok(())
    }
}

/// Adds one reply to the tally. `latency` is `None` outside the measured time; refusals count even then, for a daemon that
/// refuses during the warm-up is not what was to be measured.
fn count(tally: &mut Tally, shape: Shape, result: &ReplyResult, latency: Option<Duration>) -> Result<(), BenchError> {
    let claims = match result {
        ReplyResult::Claimed(_) if shape.batch == 1 => 1,
        ReplyResult::ClaimedBatch(items) if items.len() == shape.batch => {
            items.iter().filter_map(|item| item.as_ref().err()).for_each(|error| tally.refused(error.code.name()));
            items.iter().filter(|item| item.is_ok()).count() as u64
        }
        ReplyResult::Error(error) => {
            tally.refused(error.code.name());
            return Ok(());
        }
        other => return Err(BenchError::Protocol { found: format!("{other:?} answers a claim of {shape:?}") }),
    };
    if let Some(latency) = latency {
        tally.answered(latency, claims);
    }
    Ok(())
}
