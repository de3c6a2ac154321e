//! A disk with a volatile cache, as a FUSE file system of one flat directory: it keeps several requests under way, completes
//! them out of order, fails one of them if told to, and writes down everything that happens.
//!
//! Reads see what has completed. Nothing is ever lost while the disk runs: what a power cut would have lost is worked out
//! afterwards, from the trace.

mod fs;

use crate::trace::{BaseFile, Event, Mark, Op, Recorder, Trace};
use claim_engine::entropy::Entropy;
use fs::{FlakyFs, attributes};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileType, INodeNo, MountOption, ReplyEmpty, ReplyWrite, Session,
    SessionACL,
};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests under way at once; more wait in line.
pub const UNDER_WAY_MAX: usize = 8;
const BLOCK_BYTES: u32 = 4096;

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Opening or creating a file.
    Open,
    /// A read.
    Read,
    /// A write.
    Write,
    /// fdatasync or fsync.
    Flush,
    /// fallocate.
    Grow,
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// EIO; of a write, half is in the cache.
    Io,
    /// ENOSPC.
    NoSpace,
    /// A write or read of half the bytes.
    Short,
    /// It takes until [`Disk::release`], and then succeeds.
    Hang,
}

/// What a write consists of, as its first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeroes.
    Zeroes,
    /// A segment's header.
    SegmentHeader,
    /// A copy of the superblock.
    Superblock,
    /// A batch.
    Batch,
    /// Something else.
    Other,
}

impl Content {
    /// What `data` is.
    pub fn of(data: &[u8]) -> Content {
        match data.get(..8) {
            Some(b"claimSEG") => Content::SegmentHeader,
            Some(b"claimdSB") => Content::Superblock,
            Some(b"claimBAT") => Content::Batch,
            _ if data.iter().all(|byte| *byte == 0) => Content::Zeroes,
            _ => Content::Other,
        }
    }
}

/// The `nth` call of its kind from now on, counted from 1, fails.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which kind.
    pub call: Call,
    /// Of which file; `None`: of any.
    pub file: Option<&'static str>,
    /// Of writes those of this, of flushes those after a write of this to the same file, batches aside; `None`: all.
    pub content: Option<Content>,
    /// Which of them.
    pub nth: u64,
    /// How.
    pub failure: Failure,
    /// Whether every later one fails, too, until the order is taken back.
    pub lasts: bool,
}

/// How long requests take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Each takes a random time up to this; zero: they complete at once and in order.
    pub delay_max: Duration,
    /// Each flush and each write with O_DSYNC takes this long besides, several of them side by side.
    pub durable: Duration,
}

impl Pace {
    /// Nothing takes any time.
    pub const AT_ONCE: Pace = Pace { delay_max: Duration::ZERO, durable: Duration::ZERO };
}

struct Pending {
    op: u32,
    due: Instant,
    is_held: bool,
    what: What,
}

enum What {
    Write { file: usize, offset: u64, data: Vec<u8>, reply: ReplyWrite, failure: Option<Failure> },
    Flush { reply: ReplyEmpty, failure: Option<Failure> },
}

struct DiskFile {
    name: String,
    content: Vec<u8>,
    is_there: bool,
    last_written: Content,
}

impl DiskFile {
    fn new(name: String, content: Vec<u8>) -> DiskFile {
        DiskFile { name, content, is_there: true, last_written: Content::Other }
    }
}

/// A call that hangs: what is done when it no longer does.
type Held = Box<dyn FnOnce(&mut State) + Send>;

struct State {
    files: Vec<DiskFile>,
    waiting: Vec<Pending>,
    entropy: Entropy,
    pace: Pace,
    fault: Option<Fault>,
    fault_happened: bool,
    held: Vec<Held>,
    is_in_order: bool,
    last_due: Instant,
    /// Present while a trace is made.
    trace: Option<Trace>,
    submitted: u32,
    is_over: bool,
}

/// The part that file system, completer and harness share.
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that something happened.
    pub fn event(&self, event: Event) {
        if let Some(trace) = &mut self.lock().trace {
            trace.events.push(event);
        }
    }
}

impl Recorder for Arc<Shared> {
    fn mark(&self, mark: Mark) {
        self.event(Event::Client(mark));
    }
}

impl State {
    fn record(&mut self, event: Event) {
        if let Some(trace) = &mut self.trace {
            trace.events.push(event);
        }
    }

    fn find(&self, name: &OsStr) -> Option<usize> {
        self.files.iter().position(|file| file.is_there && OsStr::new(&file.name) == name)
    }

    fn attributes(&self, index: usize) -> FileAttr {
        attributes(INodeNo(index as u64 + 2), FileType::RegularFile, self.files[index].content.len() as u64)
    }

    /// Whether this call is the one that fails. `content` is what a write consists of.
    fn failure_of(&mut self, call: Call, file: Option<usize>, content: Option<Content>) -> Option<Failure> {
        let name = file.map(|file| self.files[file].name.as_str());
        let last_written = file.map(|file| self.files[file].last_written);
        let fault = self.fault.as_mut().filter(|fault| {
            fault.call == call
                && (fault.file.is_none() || fault.file == name)
                && (fault.content.is_none() || fault.content == content.or(last_written))
        })?;
        fault.nth = fault.nth.saturating_sub(1);
        if fault.nth > 0 {
            return None;
        }
        let Fault { failure, lasts, .. } = *fault;
        if !lasts {
            self.fault = None;
        }
        self.fault_happened = true;
        Some(failure)
    }

    fn resize(&mut self, index: usize, bytes: u64) {
        self.files[index].content.resize(bytes as usize, 0);
        self.record(Event::Resized { file: index as u32, bytes });
    }

    /// A hole reads as zeroes at once. When it is durable is the cuts' affair.
    fn free(&mut self, index: usize, offset: u64, bytes: u64) {
        let content = &mut self.files[index].content;
        let start = content.len().min(offset as usize);
        let end = content.len().min(offset.saturating_add(bytes) as usize);
        if start < end {
            content[start..end].fill(0);
            self.record(Event::Freed { file: index as u32, offset: start as u64, bytes: (end - start) as u64 });
        }
    }

    fn submit(&mut self, op: impl FnOnce() -> Op, what: What, is_durable: bool, failure: Option<Failure>) {
        let number = self.submitted;
        if self.trace.is_some() {
            self.submitted += 1;
            let op = op();
            self.record(Event::Submitted(op));
        }
        let most = self.pace.delay_max.as_micros() as u64;
        let delay = Duration::from_micros(if most == 0 { 0 } else { self.entropy.below(most) });
        let durable = if is_durable { self.pace.durable } else { Duration::ZERO };
        let mut due = Instant::now() + delay + durable;
        if self.is_in_order {
            due = due.max(self.last_due);
        }
        self.last_due = due;
        self.waiting.push(Pending { op: number, due, is_held: failure == Some(Failure::Hang), what });
    }

    /// Lets one request take effect.
    fn land(&mut self, pending: &mut Pending) -> Outcome {
        let (event, outcome) = match &mut pending.what {
            What::Write { file, offset, data, failure, .. } => {
                let landed = match failure {
                    Some(Failure::Io | Failure::Short) => data.len() / 2 / BLOCK_BYTES as usize * BLOCK_BYTES as usize,
                    Some(Failure::NoSpace) => 0,
                    Some(Failure::Hang) | None => data.len(),
                };
                let end = *offset as usize + landed;
                let file = &mut self.files[*file];
                if file.content.len() < end {
                    file.content.resize(end, 0);
                }
                file.content[*offset as usize..end].copy_from_slice(&data[..landed]);
                match failure {
                    Some(Failure::Io) => (Event::Failed(pending.op), Outcome::Error(Errno::EIO)),
                    Some(Failure::NoSpace) => (Event::Failed(pending.op), Outcome::Error(Errno::ENOSPC)),
                    Some(Failure::Short) => (Event::Failed(pending.op), Outcome::Done(landed)),
                    Some(Failure::Hang) | None => (Event::Completed(pending.op), Outcome::Done(landed)),
                }
            }
            What::Flush { failure: Some(Failure::Io | Failure::Short), .. } => {
                (Event::Failed(pending.op), Outcome::Error(Errno::EIO))
            }
            What::Flush { failure: Some(Failure::NoSpace), .. } => {
                (Event::Failed(pending.op), Outcome::Error(Errno::ENOSPC))
            }
            What::Flush { .. } => (Event::Completed(pending.op), Outcome::Done(0)),
        };
        self.record(event);
        outcome
    }
}

enum Outcome {
    Done(usize),
    Error(Errno),
}

/// Completes what is due, out of order. Replies go out without the lock.
fn complete(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        let now = Instant::now();
        let under_way = state.waiting.len().min(UNDER_WAY_MAX);
        let next = (0..under_way).filter(|i| !state.waiting[*i].is_held).min_by_key(|i| state.waiting[*i].due);
        match next {
            Some(i) if state.waiting[i].due <= now => {
                let mut pending = state.waiting.remove(i);
                let outcome = state.land(&mut pending);
                drop(state);
                match (pending.what, outcome) {
                    (What::Write { reply, .. }, Outcome::Done(bytes)) => reply.written(bytes as u32),
                    (What::Write { reply, .. }, Outcome::Error(errno)) => reply.error(errno),
                    (What::Flush { reply, .. }, Outcome::Done(_)) => reply.ok(),
                    (What::Flush { reply, .. }, Outcome::Error(errno)) => reply.error(errno),
                }
                state = shared.lock();
            }
            Some(i) => {
                let wait = state.waiting[i].due - now;
                state = shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
            None if state.is_over => return,
            None => state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// A mounted flaky disk; it is unmounted when this goes.
pub struct Disk {
    shared: Arc<Shared>,
    mount: PathBuf,
    session: Option<BackgroundSession>,
    completer: Option<JoinHandle<()>>,
}

impl Disk {
    /// Mounts an empty disk on the directory `mount`.
    pub fn mount(mount: &Path, seed: u64) -> io::Result<Disk> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                files: Vec::new(),
                waiting: Vec::new(),
                entropy: Entropy::from_seed_u64(seed),
                pace: Pace::AT_ONCE,
                fault: None,
                fault_happened: false,
                held: Vec::new(),
                is_in_order: false,
                last_due: Instant::now(),
                trace: None,
                submitted: 0,
                is_over: false,
            }),
            changed: Condvar::new(),
        });
        // A harness that was killed leaves a mount behind that answers nothing.
        let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        std::fs::create_dir_all(mount)?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("flaky-disk".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        let session = Session::new(FlakyFs(Arc::clone(&shared)), mount, &config)?.spawn()?;
        let completer = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("flaky-disk".into()).spawn(move || complete(&shared))?
        };
        Ok(Disk { shared, mount: mount.to_owned(), session: Some(session), completer: Some(completer) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// For marks.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Sets how long requests take from now on.
    pub fn set_pace(&self, pace: Pace) {
        self.shared.lock().pace = pace;
    }

    /// Makes requests complete in the order in which they came, however long each takes.
    pub fn set_in_order(&self) {
        self.shared.lock().is_in_order = true;
    }

    /// Makes one call fail; `None` takes the last order back.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.shared.lock();
        state.fault = fault;
        state.fault_happened = false;
    }

    /// Whether the last fault has happened.
    pub fn fault_happened(&self) -> bool {
        self.shared.lock().fault_happened
    }

    /// Lets go on what hangs.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.waiting.iter_mut().for_each(|pending| pending.is_held = false);
        for held in std::mem::take(&mut state.held) {
            held(&mut state);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Operations that have completed since the trace began.
    pub fn completed(&self) -> usize {
        let state = self.shared.lock();
        let events = state.trace.iter().flat_map(|trace| &trace.events);
        events.filter(|event| matches!(event, Event::Completed(_))).count()
    }

    /// The instant that the trace has come to.
    pub fn instant(&self) -> usize {
        self.shared.lock().trace.as_ref().map_or(0, |trace| trace.events.len())
    }

    /// Waits until nothing is under way.
    pub fn wait_until_idle(&self) {
        while !self.shared.lock().waiting.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Begins a trace: everything on the disk is taken to be durable, files are numbered in the order of their names.
    pub fn begin_trace(&self) {
        let mut state = self.shared.lock();
        assert!(state.waiting.is_empty(), "nothing is under way when a trace begins");
        // Inodes are indices, so files that are gone keep their place, with nothing in it.
        let files = state.files.iter().map(|file| BaseFile {
            name: if file.is_there { file.name.clone() } else { String::new() },
            content: if file.is_there { file.content.clone() } else { Vec::new() },
        });
        let files = files.collect();
        state.trace = Some(Trace { mutant: None, files, events: Vec::new() });
        state.submitted = 0;
    }

    /// Ends the trace and hands it out.
    pub fn end_trace(&self) -> Trace {
        self.shared.lock().trace.take().unwrap_or_default()
    }

    /// The present content of a file.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.shared.lock();
        state.find(OsStr::new(name)).map(|index| state.files[index].content.clone())
    }

    /// Looks at the present content of a file, which stands still meanwhile.
    pub fn look<T>(&self, name: &str, at: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let state = self.shared.lock();
        state.find(OsStr::new(name)).map(|index| at(&state.files[index].content))
    }

    /// Keeps room in memory for a file to grow to so many bytes, so that its growing takes no time.
    pub fn reserve(&self, name: &str, bytes: usize) {
        let mut state = self.shared.lock();
        if let Some(index) = state.find(OsStr::new(name)) {
            let content = &mut state.files[index].content;
            content.reserve_exact(bytes.saturating_sub(content.len()));
        }
    }

    /// Puts a file on the disk, as it were from outside: all of it is there at once.
    pub fn put(&self, name: &str, content: Vec<u8>) {
        let mut state = self.shared.lock();
        match state.find(OsStr::new(name)) {
            Some(index) => state.files[index].content = content,
            None => state.files.push(DiskFile::new(name.to_owned(), content)),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.set_fault(None);
        self.release();
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(completer) = self.completer.take() {
            let _ = completer.join();
        }
    }
}
