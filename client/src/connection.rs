//! One socket: bytes out, frames in, never blocking.

use claim_protocol::{FrameBuffer, FrameTooLarge};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Bytes that wait to be written; no request is added beyond.
const OUTGOING_BYTES_MAX: usize = 256 << 10;

/// A connected socket with its buffers.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    incoming: FrameBuffer,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the socket has taken.
    written: usize,
}

/// Why a connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the daemon closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameTooLarge),
}

impl Connection {
    /// Connects without waiting: a Unix socket accepts at once or, when its backlog is full, not now.
    pub fn open(path: &Path) -> io::Result<Self> {
        let address = UnixAddr::new(path).map_err(|errno| {
            let name = path.display();
            io::Error::new(ErrorKind::InvalidInput, format!("{name} is no socket path: {errno}"))
        })?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &address)?;
        let stream = UnixStream::from(fd);
        Ok(Connection { stream, incoming: FrameBuffer::new(), outgoing: Vec::new(), written: 0 })
    }

    /// The buffer to append frames to, while it has room.
    pub fn room(&mut self) -> Option<&mut Vec<u8>> {
        (self.outgoing.len() - self.written < OUTGOING_BYTES_MAX).then_some(&mut self.outgoing)
    }

    /// Whether there are bytes that the socket has not taken.
    pub fn wants_to_write(&self) -> bool {
        self.written < self.outgoing.len()
    }

    /// Writes as much as the socket takes.
    pub fn flush(&mut self) -> Result<(), Broken> {
        while self.wants_to_write() {
            match self.stream.write(&self.outgoing[self.written..]) {
                Ok(0) => return Err(Broken::Closed),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.written == self.outgoing.len() || self.written >= OUTGOING_BYTES_MAX {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Reads what has arrived; frames that came before the end of the stream are still given out by
    /// [`Connection::next_frame`].
    pub fn read(&mut self) -> Result<(), Broken> {
        match self.incoming.read_from(&mut self.stream) {
            Ok(0) => Err(Broken::Closed),
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The content of the next whole frame that was read.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, Broken> {
        Ok(self.incoming.next_frame()?)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
