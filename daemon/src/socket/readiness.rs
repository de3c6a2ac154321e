//! Which connections have something to read, or room to write: one epoll for all connections of an executor, and one wait for
//! it in the executor's ring.
//!
//! A poll in the ring for each connection says the same, at a higher price: it is armed again for every message, and its completion
//! is work that the kernel has the executor's thread do (`kernel-notes/socket-readiness.md`). Here a message to a busy executor
//! is put in a list, and the executor looks at the list when it gets there.

use glommio::net::UnixStream;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use std::{
    cell::Cell,
    fmt,
    future::poll_fn,
    io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

/// Connections that are asked for at once; the others come with the next look.
const EVENTS_MAX: usize = 256;
/// How often it is looked when there is no descriptor to wait with.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(1);

/// The epoll of one executor.
pub struct Readiness {
    epoll: Epoll,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.epoll.0.as_raw_fd()).finish()
    }
}

/// What is new of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// There are bytes, or the end, or an error to be read.
    pub read: bool,
    /// Behind the bytes that are there is the end, or an error.
    pub end: bool,
}

impl Ready {
    /// Nothing to read; what was not taken may be written now.
    pub const NOTHING: Ready = Ready { read: false, end: false };

    fn of(events: EpollFlags) -> Ready {
        let end = events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        Ready { read: end || events.contains(EpollFlags::EPOLLIN), end }
    }

    /// Both.
    pub fn and(self, other: Ready) -> Ready {
        Ready { read: self.read || other.read, end: self.end || other.end }
    }
}

impl Readiness {
    /// Without connections.
    pub fn new() -> io::Result<Readiness> {
        Ok(Readiness { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Waits until something is ready, and says of which connection what. It is told again only when there is something new: more
    /// bytes, the end, or room after there was none.
    pub async fn next(&self, ready: &mut Vec<(u64, Ready)>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            self.until_ready().await;
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Err(nix::Error::EINTR) => continue,
                result => result?,
            };
            ready.extend(events[..count].iter().map(|event| (event.data(), Ready::of(event.events()))));
            if count > 0 {
                return Ok(());
            }
        }
    }

    /// glommio waits for sockets, and takes every descriptor that can be polled for one. It polls first, and then receives, which
    /// an epoll answers with ENOTSOCK: that is the end of the wait. Where no descriptor is left for that, it looks again soon.
    async fn until_ready(&self) {
        let Ok(epoll) = self.epoll.0.try_clone() else {
            glommio::timer::sleep(WITHOUT_DESCRIPTOR).await;
            return;
        };
        // SAFETY: the descriptor is open and nobody else's; the stream takes it over.
        let mut waiting = unsafe { UnixStream::from_raw_fd(epoll.into_raw_fd()) };
        poll_fn(|cx| futures_lite::io::AsyncRead::poll_read(Pin::new(&mut waiting), cx, &mut [0]).map(drop)).await;
    }

    fn interest(connection: u64, also: EpollFlags) -> EpollEvent {
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET | also, connection)
    }
}

/// The socket of one connection. Nothing here waits: what is not possible now is [`io::ErrorKind::WouldBlock`], and the connection
/// is told when it has become possible.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    readiness: Rc<Readiness>,
    connection: u64,
    may_read: Cell<bool>,
    has_ended: Cell<bool>,
    /// The epoll tells when the socket takes more.
    waits_to_write: Cell<bool>,
}

impl Socket {
    /// Takes over a connected stream socket.
    pub fn new(fd: OwnedFd, connection: u64, readiness: &Rc<Readiness>) -> io::Result<Socket> {
        readiness.epoll.add(&fd, Readiness::interest(connection, EpollFlags::empty()))?;
        let (may_read, has_ended, waits_to_write) = (Cell::new(true), Cell::new(false), Cell::new(false));
        Ok(Socket { fd, readiness: Rc::clone(readiness), connection, may_read, has_ended, waits_to_write })
    }

    /// Takes what is new.
    pub fn ready(&self, ready: Ready) {
        self.may_read.set(self.may_read.get() || ready.read);
        self.has_ended.set(self.has_ended.get() || ready.end);
    }

    /// Whether there may be something to read.
    pub fn may_read(&self) -> bool {
        self.may_read.get()
    }

    /// Reads what there is and fits; 0 is the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.may_read.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT);
        // A stream that gives less than was asked for has no more (epoll(7)), but for its end, which is not told again.
        let is_empty = match result {
            Ok(count) => count < buffer.len() && !self.has_ended.get(),
            Err(errno) => errno == nix::Error::EAGAIN,
        };
        self.may_read.set(!is_empty);
        Ok(result?)
    }

    /// Writes what the socket takes.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let result = send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        self.wait_to_write(result == Err(nix::Error::EAGAIN))?;
        Ok(result?)
    }

    /// Room is asked for only when there is none: a socket has more of it each time that the peer reads.
    fn wait_to_write(&self, waits: bool) -> io::Result<()> {
        if self.waits_to_write.replace(waits) != waits {
            let also = if waits { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            self.readiness.epoll.modify(&self.fd, &mut Readiness::interest(self.connection, also))?;
        }
        Ok(())
    }

    /// Ends both directions. What the peer has sent meanwhile is thrown away, for a socket that is closed with something unread
    /// tells the peer of a broken connection, where it was ended.
    pub fn end(self, scratch: &mut [u8]) {
        // A peer that is gone already makes this fail, and needs it no more.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        while matches!(recv(self.fd.as_raw_fd(), scratch, MsgFlags::MSG_DONTWAIT), Ok(1..)) {}
    }
}
