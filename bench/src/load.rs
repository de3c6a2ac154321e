//! The load: a closed loop, a fixed number of requests outstanding and a new one for every reply, or an open one, which sends
//! at a rate.
//!
//! One thread serves all connections, so that the load stays on one core. In a closed loop a request's time begins when its
//! place became free, that is, when the reply before it was read, and ends when its own reply was read: what the generator
//! itself needs in between counts, so the generator can make a daemon look slower, never faster, and outstanding = rate ×
//! mean latency. In an open loop it begins when the request was due, so that a daemon that answers late is not spared the
//! requests that it kept waiting.

use crate::connection::Connection;
use crate::error::BenchError;
use crate::outcome::Tally;
use crate::pace::{Pace, last_before};
use crate::work::Work;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

/// How long replies are waited for after the last request.
const DRAIN_SECONDS: u64 = 10;

/// Connections that one wake-up can report; the others come with the next.
const EVENTS_MAX: usize = 64;

/// What epoll says of the timer, where it says an index of connections.
const TIMER: u64 = u64::MAX;

/// A greeted connection, how much of the load goes over it, and what that is.
pub struct Link {
    pub stream: UnixStream,
    pub outstanding: usize,
    pub work: Work,
}

/// How long a row takes, and what sets its pace.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Load that is not counted.
    pub warm_up: Duration,
    /// Load that is.
    pub measured: Duration,
    /// Whether to poll without sleeping, so that waking the generator up is not part of a latency.
    pub spin: bool,
    /// Requests a second over all connections; `None` for a closed loop.
    pub rate: Option<f64>,
}

/// Loads the daemon over `links` and counts what was confirmed in the measured time, and the latencies of it: in a closed loop
/// of what was answered in that time, in an open one of what was due in it.
pub fn load(links: Vec<Link>, timing: Timing) -> Result<Tally, BenchError> {
    let mut load = Load::new(links, timing)?;
    load.start()?;
    while load.turn()? {}
    if let Some(open) = &load.open {
        load.tally.unsent = open.pace.untaken_before(load.measured_until);
    }
    Ok(load.tally)
}

/// A connection with its work, and whether the socket has to take the rest of what is to be sent.
struct Channel {
    connection: Connection,
    work: Work,
    blocked: bool,
}

/// What an open loop has and a closed one has not.
struct Open {
    pace: Pace,
    timer: TimerFd,
    /// The channel whose turn it is.
    turn: usize,
}

struct Load {
    channels: Vec<Channel>,
    epoll: Epoll,
    spin: bool,
    open: Option<Open>,
    measured_from: Instant,
    measured_until: Instant,
    /// Nothing more is sent.
    is_over: bool,
    tally: Tally,
}

impl Load {
    fn new(links: Vec<Link>, timing: Timing) -> Result<Self, BenchError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(BenchError::system("create an epoll"))?;
        let mut channels = Vec::with_capacity(links.len());
        for (index, link) in links.into_iter().enumerate() {
            let connection = Connection::new(link.stream, link.outstanding)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
            epoll.add(connection.stream(), event).map_err(BenchError::system("poll a connection"))?;
            channels.push(Channel { connection, work: link.work, blocked: false });
        }
        let begun = Instant::now();
        let open = match timing.rate {
            Some(rate) => Some(Open { pace: Pace::new(rate, begun), timer: timer(&epoll)?, turn: 0 }),
            None => None,
        };
        let measured_from = begun + timing.warm_up;
        Ok(Load {
            channels,
            epoll,
            spin: timing.spin,
            open,
            measured_from,
            measured_until: measured_from + timing.measured,
            is_over: false,
            tally: Tally::starting_at(SystemTime::now() + timing.warm_up, timing.measured),
        })
    }

    /// Sends the first requests.
    fn start(&mut self) -> Result<(), BenchError> {
        let now = Instant::now();
        for index in 0..self.channels.len() {
            self.channels[index].connection.restart_clocks(now);
            if self.open.is_none() {
                self.refill(index)?;
                self.send(index)?;
            }
        }
        Ok(())
    }

    /// Waits for sockets and the timer, and serves those that are ready; whether there is more to come.
    fn turn(&mut self) -> Result<bool, BenchError> {
        let now = Instant::now();
        let drained_until = self.measured_until + Duration::from_secs(DRAIN_SECONDS);
        if !self.is_over {
            self.is_over = now >= self.measured_until;
            self.send_due(now.min(last_before(self.measured_until)))?;
        }
        if self.is_over {
            let requests: usize = self.channels.iter().map(|channel| channel.connection.waiting()).sum();
            if requests == 0 {
                return Ok(false);
            }
            if now >= drained_until {
                return Err(BenchError::Unanswered { requests, seconds: DRAIN_SECONDS });
            }
        }
        let next_deadline = if self.is_over { drained_until } else { self.measured_until };
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let ready = match self.epoll.wait(&mut events, self.timeout(next_deadline - now)) {
            Ok(ready) => ready,
            Err(nix::Error::EINTR) => 0,
            Err(errno) => return Err(BenchError::system("wait for a connection")(errno)),
        };
        for event in events[..ready].iter().filter(|event| event.data() != TIMER) {
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
            let window = self.measured_from..self.measured_until;
            let Channel { connection, work, .. } = &mut self.channels[index];
            connection.receive()?;
            let now = Instant::now();
            while let Some(answered) = connection.next_reply(now)? {
                let moment = if self.open.is_some() { answered.since } else { now };
                // Refusals count even outside the window, for a daemon that refuses during the warm-up is not what was to
                // be measured.
                let units = work.take(answered.slot, &answered.reply.result, &mut self.tally)?;
                let Some(units) = units else { continue };
                if window.contains(&now) {
                    self.tally.confirmed(units, answered.bytes);
                }
                if window.contains(&moment) {
                    self.tally.answered(moment - self.measured_from, now - answered.since);
                }
            }
            if now < self.measured_until && self.open.is_none() {
                self.refill(index)?;
            }
        }
        self.send(index)
    }

    fn refill(&mut self, index: usize) -> Result<(), BenchError> {
        let Channel { connection, work, .. } = &mut self.channels[index];
        work.set_clock();
        connection.fill(|id, slot, out| work.encode(id, slot, out))
    }

    /// Sends what is due, channel after channel, as far as there are free places, and sets the timer to what is due next. What
    /// finds no place is sent as soon as a reply frees one, and was due when it was due.
    fn send_due(&mut self, now: Instant) -> Result<(), BenchError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let channels = self.channels.len();
        let mut touched = vec![false; channels];
        while open.pace.next_due() <= now {
            let free = |index: &usize| self.channels[*index].connection.has_room();
            let Some(index) = (0..channels).map(|step| (open.turn + step) % channels).find(free) else { break };
            open.turn = index + 1;
            let due = open.pace.take(now).expect("it is due");
            let Channel { connection, work, .. } = &mut self.channels[index];
            if !touched[index] {
                work.set_clock();
            }
            connection.send_since(due, |id, slot, out| work.encode(id, slot, out))?;
            touched[index] = true;
        }
        let next_due = open.pace.next_due();
        if next_due > now && !self.spin {
            let rest = TimeSpec::from_duration(next_due - now);
            open.timer
                .set(Expiration::OneShot(rest), TimerSetTimeFlags::empty())
                .map_err(BenchError::system("set a timer"))?;
        }
        for index in (0..channels).filter(|index| touched[*index]) {
            self.send(index)?;
        }
        Ok(())
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

/// A timer that wakes `epoll` up, once each time it runs out: epoll's own timeout knows whole milliseconds only.
fn timer(epoll: &Epoll) -> Result<TimerFd, BenchError> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
        .map_err(BenchError::system("make a timer"))?;
    let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    epoll.add(&timer, EpollEvent::new(once, TIMER)).map_err(BenchError::system("poll a timer"))?;
    Ok(timer)
}
