//! The listening sockets, and the thread that accepts.
//!
//! ```text
//!  DIR/claimd.sock     serves every corpus; its connections go to the executors in turn
//!  DIR/shard-N.sock    one per shard; its connections go to the executor that runs shard N
//! ```
//!
//! One plain thread waits on all of them with `poll`. It is not an executor's task because a descriptor that is
//! accepted there would have to move to another executor half of the time anyway, and because a daemon whose executors
//! are all busy should still be able to say that it is busy.
//!
//! A socket gets its mode of 0660 before it listens, under a name of its own, and only then its real name: at no
//! moment can anybody connect whom the mode would keep out, and at no moment is the real name a socket that does not
//! listen. A socket that an earlier process left behind is replaced only after an attempt to connect has shown that
//! nobody answers.

use super::{
    connection::{Door, Peer},
    limits::Limits,
};
use crate::inbox::{Inbox, PushError};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, sockopt::PeerCredentials},
    },
};
use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

/// The longest path of a Unix socket: `sun_path` has 108 bytes, and the last one is a zero.
pub const PATH_BYTES_MAX: usize = 107;

/// Who may connect: the owner and the group.
pub const SOCKET_MODE: u32 = 0o660;

/// Connections that the kernel completes before the acceptor takes them.
const BACKLOG: i32 = 1_024;

/// Connections taken from one socket before the others are looked at.
const ACCEPTS_PER_LOOK: usize = 64;

/// How long the acceptor leaves everything alone when the system has no descriptors or memory for it.
const SHORTAGE_PAUSE_MS: u16 = 100;

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit a socket address.
    #[error(
        "the socket path {path:?} has {bytes} bytes, and Unix sockets allow {PATH_BYTES_MAX}: choose a shorter data \
         directory, or give --socket a shorter path"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The path ends in no file name.
    #[error("the socket path {0:?} does not name a file")]
    NoName(PathBuf),
    /// Another process serves there.
    #[error("another process answers on {0:?}: stop it first, or give --socket another path")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0:?} exists and is not a socket: move it away, or give --socket another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {action} the socket {path:?}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Where the sockets of a daemon are: the main one, and beside it one per shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPaths {
    /// The socket for everything.
    pub main: PathBuf,
    /// The socket of each shard; the index is the shard's number.
    pub shards: Vec<PathBuf>,
}

impl SocketPaths {
    /// The paths for a main socket at `main` and `shards` shards.
    pub fn beside(main: &Path, shards: u16) -> Self {
        let shards = (0..shards).map(|shard| main.with_file_name(format!("shard-{shard}.sock"))).collect();
        Self { main: main.to_owned(), shards }
    }
}

/// A listening socket; its file is removed when this is dropped, unless another file has taken its name.
#[derive(Debug)]
pub struct Listener {
    door: Door,
    path: PathBuf,
    socket: UnixListener,
    /// Device and inode of the socket's file.
    identity: (u64, u64),
}

/// Binds all sockets; if one fails, none remains.
pub fn bind_all(paths: &SocketPaths) -> Result<Vec<Listener>, BindError> {
    let main = [(Door::Main, &paths.main)];
    let shards = paths.shards.iter().enumerate().map(|(shard, path)| {
        let shard = u16::try_from(shard).expect("there are at most as many sockets as shards, and those have 16 bits");
        (Door::Shard(shard), path)
    });
    main.into_iter().chain(shards).map(|(door, path)| Listener::bind(door, path)).collect()
}

impl Listener {
    /// Binds one socket; see the module for how.
    pub fn bind(door: Door, path: &Path) -> Result<Self, BindError> {
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > PATH_BYTES_MAX {
            return Err(BindError::PathTooLong { path: path.to_owned(), bytes });
        }
        let early = name_while_binding(path).ok_or_else(|| BindError::NoName(path.to_owned()))?;
        refuse_if_taken(path)?;
        let failed = |action| move |error: io::Error| BindError::Io { action, path: path.to_owned(), error };

        match fs::remove_file(&early) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("make way for")(error)),
            _ => {}
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|errno| failed("make")(errno.into()))?;
        let address = UnixAddr::new(&early).map_err(|errno| failed("name")(errno.into()))?;
        socket::bind(fd.as_raw_fd(), &address).map_err(|errno| failed("bind")(errno.into()))?;
        let publish = || {
            fs::set_permissions(&early, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed("set the mode of"))?;
            let backlog = Backlog::new(BACKLOG).map_err(|errno| failed("listen on")(errno.into()))?;
            socket::listen(&fd, backlog).map_err(|errno| failed("listen on")(errno.into()))?;
            let file = fs::symlink_metadata(&early).map_err(failed("look at"))?;
            fs::rename(&early, path).map_err(failed("publish"))?;
            Ok((file.dev(), file.ino()))
        };
        match publish() {
            Ok(identity) => Ok(Self { door, path: path.to_owned(), socket: fd.into(), identity }),
            Err(error) => {
                // The error says what went wrong; a left-over file under the early name is replaced next time.
                let _ = fs::remove_file(&early);
                Err(error)
            }
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = ?self.path, %error, "cannot remove the socket");
        }
    }
}

/// The name under which a socket is bound and given its mode: hidden, and exactly as long as the real one, so that one
/// limit of length applies.
fn name_while_binding(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.as_bytes();
    let mut early = name.to_vec();
    early[0] = if name[0] == b'.' { b'_' } else { b'.' };
    Some(path.with_file_name(std::ffi::OsStr::from_bytes(&early)))
}

/// An error if somebody listens on the path or something other than a socket is there.
fn refuse_if_taken(path: &Path) -> Result<(), BindError> {
    let failed = |error| BindError::Io { action: "look at", path: path.to_owned(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|e| failed(e.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| failed(errno.into()))?;
    match socket::connect(probe.as_raw_fd(), &address) {
        // A full backlog is somebody's, too.
        Ok(()) | Err(Errno::EAGAIN) => Err(BindError::InUse(path.to_owned())),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// A connection on its way from the acceptor to its executor.
#[derive(Debug)]
pub struct Accepted {
    /// The connected socket.
    pub fd: OwnedFd,
    /// Who connected.
    pub peer: Peer,
    /// Where.
    pub door: Door,
    /// Its place among `connections_max`.
    pub permit: Permit,
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Open {
    by_uid: Mutex<HashMap<u32, usize>>,
}

impl Open {
    fn by_uid(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> usize {
        self.by_uid().values().sum()
    }
}

/// A place among the connections; free again when this is dropped.
#[derive(Debug)]
pub struct Permit {
    open: Arc<Open>,
    uid: u32,
}

impl Permit {
    /// Whoever the daemon runs as may take every place; another user half of them, so that one alone can't keep the
    /// others out.
    fn take(open: &Arc<Open>, connections_max: usize, uid: u32, own_uid: u32) -> Option<Self> {
        let uid_max = if uid == own_uid { connections_max } else { connections_max.div_ceil(2) };
        let mut by_uid = open.by_uid();
        let (all, of_uid) = (by_uid.values().sum::<usize>(), by_uid.get(&uid).copied().unwrap_or(0));
        if all >= connections_max || of_uid >= uid_max {
            return None;
        }
        by_uid.insert(uid, of_uid + 1);
        drop(by_uid);
        Some(Self { open: Arc::clone(open), uid })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_uid = self.open.by_uid();
        if let Some(of_uid) = by_uid.get_mut(&self.uid) {
            *of_uid -= 1;
            if *of_uid == 0 {
                by_uid.remove(&self.uid);
            }
        }
    }
}

/// Where accepted connections go.
#[derive(Debug, Clone)]
pub struct Routes {
    /// The inbox of each executor.
    pub inboxes: Vec<Inbox<Accepted>>,
    /// The executor that runs each shard: index is the shard, value an index into `inboxes`.
    pub executor_of_shard: Vec<usize>,
}

/// What the acceptor has done; readable at any time.
#[derive(Debug, Default)]
pub struct AcceptorCounters {
    /// Connections handed to an executor.
    pub accepted: AtomicU64,
    /// Connections closed because there were too many, or because their executor took none.
    pub turned_away: AtomicU64,
    /// Times that the system had no descriptor or memory for a connection.
    pub shortages: AtomicU64,
}

/// The acceptor's thread; stopping or dropping it closes and removes the sockets.
#[derive(Debug)]
pub struct Acceptor {
    stop: Arc<EventFd>,
    counters: Arc<AcceptorCounters>,
    open: Arc<Open>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Starts accepting. `busy` is what a connection over the limit is sent before it is closed: one error frame, or
    /// nothing.
    ///
    /// # Panics
    /// If there is no inbox, or a listener's shard has none.
    pub fn start(listeners: Vec<Listener>, routes: Routes, limits: &Limits, busy: Vec<u8>) -> io::Result<Self> {
        assert!(!routes.inboxes.is_empty(), "there is no executor to take connections");
        for listener in &listeners {
            if let Door::Shard(shard) = listener.door {
                let executor = routes.executor_of_shard.get(usize::from(shard));
                assert!(executor.is_some_and(|at| *at < routes.inboxes.len()), "shard {shard} has no executor");
            }
        }
        let stop = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let counters = Arc::new(AcceptorCounters::default());
        let open = Arc::new(Open::default());
        let accepting = Accepting {
            listeners,
            routes,
            busy,
            connections_max: limits.connections_max,
            open: Arc::clone(&open),
            own_uid: nix::unistd::geteuid().as_raw(),
            counters: Arc::clone(&counters),
            next_id: 1,
            next_executor: 0,
            spare: Spare::open(),
        };
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("acceptor".into()).spawn(move || accepting.run(&stopped))?;
        Ok(Self { stop, counters, open, thread: Some(thread) })
    }

    /// What it has done.
    pub fn counters(&self) -> &Arc<AcceptorCounters> {
        &self.counters
    }

    /// Connections that are open, those on their way to an executor included.
    pub fn open_connections(&self) -> usize {
        self.open.all()
    }

    /// Stops accepting, closes and removes the sockets, and closes the inboxes: the executors get what is already in
    /// them and then see the end.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.write(1).expect("an eventfd that was written once takes another one");
            thread.join().expect("the acceptor's thread does not panic");
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.halt();
    }
}

/// The acceptor's own state.
struct Accepting {
    listeners: Vec<Listener>,
    routes: Routes,
    busy: Vec<u8>,
    connections_max: usize,
    open: Arc<Open>,
    own_uid: u32,
    counters: Arc<AcceptorCounters>,
    next_id: u64,
    next_executor: usize,
    spare: Spare,
}

/// What a failed accept asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptFailure {
    /// Nobody waits.
    Nobody,
    /// The connection that waited is gone, or a signal came: go on.
    Again,
    /// The process or the system has no more descriptors.
    NoDescriptor,
    /// Memory is short, or an error that nobody foresaw: leave it alone for a moment.
    Pause,
}

impl AcceptFailure {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::Nobody,
            Some(libc::EINTR | libc::ECONNABORTED) => Self::Again,
            Some(libc::EMFILE | libc::ENFILE) => Self::NoDescriptor,
            _ => Self::Pause,
        }
    }
}

impl Accepting {
    fn run(mut self, stop: &EventFd) {
        let mut pause = false;
        while let Some(ready) = wait(&self.listeners, stop, pause) {
            pause = false;
            for at in ready {
                pause |= self.accept_some(at);
            }
        }
        // The sockets go first, so that a connect fails at once where nobody would ever take it.
        self.listeners.clear();
        self.routes.inboxes.iter().for_each(Inbox::close);
    }

    /// Accepts what waits at one listener. True if the system is short of something, and accepting should pause.
    fn accept_some(&mut self, at: usize) -> bool {
        for _ in 0..ACCEPTS_PER_LOOK {
            match self.listeners[at].socket.accept() {
                Ok((stream, _)) => self.route(stream, self.listeners[at].door),
                Err(error) => match AcceptFailure::of(&error) {
                    AcceptFailure::Nobody => return false,
                    AcceptFailure::Again => {}
                    failure => {
                        if self.shortage(at, failure, &error) {
                            return true;
                        }
                    }
                },
            }
        }
        false
    }

    /// Without a descriptor, the connection that waits would keep `poll` returning at once. It is taken with the spare
    /// one and closed: the peer sees an end rather than a silence. True if that is not possible, and accepting should
    /// pause.
    fn shortage(&mut self, at: usize, failure: AcceptFailure, error: &io::Error) -> bool {
        let before = self.counters.shortages.fetch_add(1, Ordering::Relaxed);
        // Once per power of two: a shortage that lasts does not fill the log.
        if (before + 1).is_power_of_two() {
            tracing::warn!(%error, times = before + 1, "cannot accept connections");
        }
        if failure != AcceptFailure::NoDescriptor || !self.spare.release() {
            self.spare = Spare::open();
            return true;
        }
        if let Ok((stream, _)) = self.listeners[at].socket.accept() {
            self.turn_away(&stream);
        }
        self.spare = Spare::open();
        !self.spare.is_there()
    }

    fn route(&mut self, stream: UnixStream, door: Door) {
        let peer = match socket::getsockopt(&stream, PeerCredentials) {
            Ok(who) => {
                Peer { connection: self.next_id, uid: who.uid(), gid: who.gid(), pid: who.pid().cast_unsigned() }
            }
            Err(errno) => {
                // Every entry names its author: a peer without credentials cannot be served.
                tracing::warn!(%errno, "a connection without peer credentials was closed");
                return;
            }
        };
        let Some(permit) = Permit::take(&self.open, self.connections_max, peer.uid, self.own_uid) else {
            return self.turn_away(&stream);
        };
        let executor = match door {
            Door::Main => {
                self.next_executor = (self.next_executor + 1) % self.routes.inboxes.len();
                self.next_executor
            }
            Door::Shard(shard) => self.routes.executor_of_shard[usize::from(shard)],
        };
        self.next_id += 1;
        let accepted = Accepted { fd: stream.into(), peer, door, permit };
        match self.routes.inboxes[executor].try_push(accepted) {
            Ok(()) => {
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Err(PushError::Full(accepted)) => self.turn_away(&UnixStream::from(accepted.fd)),
            Err(PushError::Closed(_)) => {}
        }
    }

    fn turn_away(&self, stream: &UnixStream) {
        self.counters.turned_away.fetch_add(1, Ordering::Relaxed);
        if !self.busy.is_empty() {
            // A fresh connection's buffer takes one small frame; whatever else happens, the connection ends here.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = socket::send(stream.as_raw_fd(), &self.busy, flags);
        }
    }
}

/// Waits for connections and returns the listeners that have some; `None` means stop. With `pause`, only a stop is
/// waited for, and only for a moment.
fn wait(listeners: &[Listener], stop: &EventFd, pause: bool) -> Option<Vec<usize>> {
    let mut watched = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    if !pause {
        watched.extend(listeners.iter().map(|each| PollFd::new(each.socket.as_fd(), PollFlags::POLLIN)));
    }
    let timeout = if pause { PollTimeout::from(SHORTAGE_PAUSE_MS) } else { PollTimeout::NONE };
    match poll(&mut watched, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Some(Vec::new()),
        Err(errno) => panic!("poll over {} descriptors of our own failed: {errno}", watched.len()),
    }
    let has_event = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    if has_event(&watched[0]) {
        return None;
    }
    if pause {
        return Some((0..listeners.len()).collect());
    }
    Some(watched[1..].iter().enumerate().filter(|(_, fd)| has_event(fd)).map(|(at, _)| at).collect())
}

/// A descriptor held in reserve for the moment when there are no others.
struct Spare(Option<fs::File>);

impl Spare {
    fn open() -> Self {
        Self(fs::File::open("/dev/null").ok())
    }

    fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Gives the descriptor up; false if there was none.
    fn release(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_half_of_the_places_and_the_daemons_own_all() {
        const OWN: u32 = 1;
        const OTHER: u32 = 2;
        const THIRD: u32 = 3;
        let open = Arc::new(Open::default());
        let take = |uid| Permit::take(&open, 5, uid, OWN);
        let taken: Vec<_> = (0..3).map(|_| take(OTHER).expect("half of five, rounded up")).collect();
        assert!(take(OTHER).is_none());
        let of_third = take(THIRD).expect("a place of another user");
        let last = take(OWN).expect("the last place");
        assert!(take(OWN).is_none() && take(THIRD).is_none());
        assert_eq!(open.all(), 5);

        drop(last);
        assert!(take(OTHER).is_none(), "a place is free, and not for this user");
        drop(taken);
        let own: Vec<_> = (0..4).map(|_| take(OWN).expect("all that is left")).collect();
        assert!(take(OWN).is_none());
        drop((own, of_third));
        assert!(open.by_uid().is_empty(), "what is given back leaves nothing");
    }
}
