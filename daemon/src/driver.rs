//! The shard's driver: gives the engine its storage, and carries I/O between the two.

use crate::clock;
use crate::read_shares::{ReadShares, Reader};
use crate::scrub::Scrubbed;
use crate::stages::{Stage, Stages, Written};
use crate::stall_guard::Pulse;
use bytes::Bytes;
use claim_engine::command::Request;
use claim_engine::engine::{Engine, Output};
use claim_engine::entropy::Entropy;
use claim_engine::log::io::{Io, IoDone, perform};
use claim_engine::log::layout::BLOCK_BYTES;
use claim_engine::log::record::{self, RECORD_HEADER_BYTES, RawRecord};
use claim_engine::peer::PeerMessage;
use claim_engine::scheduling;
use claim_engine::storage::{RealStorage, Storage};
use claim_engine::time::Now;
use nix::fcntl::{Flock, FlockArg};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes read for a record whose length is not known yet: most records lie in two blocks.
const RECORD_READ_BYTES: u64 = 2 * BLOCK_BYTES;
/// Records that lie within this many bytes of each other are read at once.
const RUN_BYTES: u64 = 256 * 1024;

/// What longer reads bring is of pages that nobody asks for soon again: it is not kept.
const CACHED_READ_BYTES_MAX: u64 = 16 * 1024;

/// How long what nobody waits for leaves the processor to others, after each of its steps, which take about as long.
const PAUSE: Duration = Duration::from_millis(1);
/// While a log is written it leaves it for so many times as long as it had it since, and at most for this long.
const PAUSE_BESIDE_WRITES: u32 = 19;
const PAUSE_MAX: Duration = Duration::from_millis(12);

/// How much less of a core indexes get than what is served, while both want it: about a tenth.
const INDEX_NICE: i32 = 10;

/// What is done with what leaves an engine.
pub type Outlet = Box<dyn Fn(Output)>;

/// See the module.
pub struct Driver {
    /// The shard with its log.
    pub engine: RefCell<Engine>,
    entropy: RefCell<Entropy>,
    storage: Rc<RealStorage>,
    path: PathBuf,
    pulse: Arc<Pulse>,
    stages: Rc<Stages>,
    /// The last write of the log that ended.
    written: Cell<Option<Written>>,
    outlet: RefCell<Option<Outlet>>,
    outputs: RefCell<Vec<Output>>,
    is_delivering: Cell<bool>,
    /// Of the device: all shards of an executor have the same.
    reads: Rc<ReadShares>,
    /// How long what nobody waits for has had the processor since its last pause.
    stepped: Cell<Duration>,
    /// I/O that was begun and has not ended.
    under_way: Cell<usize>,
    /// Nothing more is begun.
    has_ended: Cell<bool>,
    scrubbed: RefCell<Scrubbed>,
}

/// Whether somebody holds the lock of the ledger's directory, or it can't be told.
pub fn is_being_read(path: &Path) -> bool {
    let directory = path.parent().map(File::open);
    let Some(Ok(directory)) = directory else { return true };
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).is_err()
}

/// A record as read from disk.
#[derive(Debug)]
pub struct StoredRecord {
    /// Its position.
    pub position: u64,
    /// Its kind.
    pub kind: u16,
    /// Its body, within what was read.
    pub body: Bytes,
}

impl StoredRecord {
    /// As it lies in a batch.
    pub fn raw(&self) -> RawRecord<'_> {
        RawRecord { position: self.position, kind: self.kind, body: &self.body }
    }
}

impl Driver {
    /// A driver whose outputs have nowhere to go yet.
    pub fn new(
        engine: Engine,
        storage: RealStorage,
        path: PathBuf,
        (pulse, stages): (Arc<Pulse>, Rc<Stages>),
        reads: Rc<ReadShares>,
        entropy: Entropy,
    ) -> Rc<Driver> {
        Rc::new(Driver {
            engine: RefCell::new(engine),
            entropy: RefCell::new(entropy),
            storage: Rc::new(storage),
            path,
            pulse,
            stages,
            written: Cell::new(None),
            outlet: RefCell::new(None),
            outputs: RefCell::new(Vec::new()),
            is_delivering: Cell::new(false),
            reads,
            stepped: Cell::new(Duration::ZERO),
            under_way: Cell::new(0),
            has_ended: Cell::new(false),
            scrubbed: RefCell::new(Scrubbed::default()),
        })
    }

    /// What reads of the executor's shards take of the device.
    pub fn reads(&self) -> &ReadShares {
        &self.reads
    }

    /// Where the shard's file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the scrubbing in the background has seen.
    pub fn scrubbed(&self) -> &RefCell<Scrubbed> {
        &self.scrubbed
    }

    /// When the last write of the log that ended began and ended.
    pub fn written(&self) -> Option<Written> {
        self.written.get()
    }

    /// Says where outputs go.
    pub fn set_outlet(&self, outlet: Outlet) {
        *self.outlet.borrow_mut() = Some(outlet);
    }

    /// Starts what the engine wants done, and delivers what it lets out.
    pub fn pump(self: &Rc<Self>) {
        while !self.has_ended.get() {
            let io = self.engine.borrow_mut().next_io();
            let Some(io) = io else { break };
            let is_background = matches!(io, Io::Pause { .. } | Io::Read { is_urgent: false, .. });
            let this = Rc::clone(self);
            self.under_way.set(self.under_way.get() + 1);
            glommio::spawn_local(async move {
                let done = match io {
                    // In another thread: it takes milliseconds.
                    Io::Build(job) => {
                        let build = move || in_background(|| job.run());
                        IoDone::Built(Box::new(glommio::executor().spawn_blocking(build).await))
                    }
                    Io::Clear(mut rows) => {
                        let clear = move || {
                            rows.clear();
                            rows
                        };
                        IoDone::Cleared(glommio::executor().spawn_blocking(clear).await)
                    }
                    Io::Pause { id } => {
                        let is_written = this.reads.is_log_written();
                        let beside = (this.stepped.take() * PAUSE_BESIDE_WRITES).min(PAUSE_MAX);
                        glommio::timer::sleep(if is_written { beside.max(PAUSE) } else { PAUSE }).await;
                        IoDone::Paused { id }
                    }
                    // A backup under way reads what was dropped since it began.
                    Io::Free { segments, .. } if is_being_read(&this.path) => {
                        let result = Err(io::Error::new(io::ErrorKind::WouldBlock, "a backup is under way"));
                        IoDone::Freed { segments, result }
                    }
                    io @ Io::Write { .. } => {
                        let began = Instant::now();
                        let write = this.reads.write();
                        let done = perform(&*this.storage, io).await;
                        drop(write);
                        let ended = Instant::now();
                        this.stages.record(Stage::Write, ended - began);
                        this.written.set(Some(Written { began, ended }));
                        done
                    }
                    Io::Read { id, log_offset, file_offset, bytes, is_urgent } => {
                        let reader = if is_urgent { Reader::Request } else { Reader::Background };
                        IoDone::Read { id, log_offset, result: this.read_device(file_offset, bytes, reader).await }
                    }
                    io => perform(&*this.storage, io).await,
                };
                this.pulse.beat();
                let step = is_background.then(Instant::now);
                this.engine.borrow_mut().complete(clock::now(), &mut this.entropy.borrow_mut(), done);
                if let Some(began) = step {
                    this.stepped.set(this.stepped.get() + began.elapsed());
                }
                this.under_way.set(this.under_way.get() - 1);
                this.pump();
            })
            .detach();
        }
        self.deliver();
    }

    /// Begins nothing more.
    pub fn end(&self) {
        self.has_ended.set(true);
    }

    /// Whether everything that was begun has ended: what other threads do for an executor must not outlive it.
    pub fn is_at_rest(&self) -> bool {
        self.under_way.get() == 0
    }

    /// Hands outputs to the outlet. What the outlet itself causes is delivered by the call that is under way.
    fn deliver(&self) {
        if self.is_delivering.replace(true) {
            return;
        }
        while self.engine.borrow().has_output() {
            let mut outputs = self.outputs.take();
            outputs.extend(self.engine.borrow_mut().drain());
            if let Some(outlet) = &*self.outlet.borrow() {
                outputs.drain(..).for_each(outlet);
            }
            outputs.clear();
            *self.outputs.borrow_mut() = outputs;
        }
        self.is_delivering.set(false);
    }

    /// Segments from this one on are not archived yet.
    pub fn archived_to(&self, segment: u64) {
        self.engine.borrow_mut().keep_segments_from(segment);
    }

    /// Lets the engine look at the time.
    pub fn tick(self: &Rc<Self>) {
        self.engine.borrow_mut().tick(clock::now(), &mut self.entropy.borrow_mut());
        self.pump();
    }

    /// Gives a request to the engine.
    pub fn submit(&self, now: Now, request: &Request<'_>) {
        self.engine.borrow_mut().submit(now, &mut self.entropy.borrow_mut(), request);
    }

    /// Gives the engine what another shard says.
    pub fn take(self: &Rc<Self>, now: Now, message: &PeerMessage) {
        self.engine.borrow_mut().deliver(now, &mut self.entropy.borrow_mut(), message);
        self.pump();
    }

    /// Reads the records at these log offsets, between [`Engine::begin_read`] and [`Engine::end_read`]; neighbours are read together
    /// where the offsets increase.
    ///
    /// The error is a sentence: the read failed, or what was read does not verify.
    pub async fn read_records(&self, offsets: &[u64]) -> Result<Vec<StoredRecord>, String> {
        let mut records = Vec::with_capacity(offsets.len());
        let mut rest = offsets;
        while let Some(first) = rest.first() {
            let geometry = self.engine.borrow().superblock().geometry;
            let is_together = |pair: &[u64]| geometry.segment_of(pair[0]) == geometry.segment_of(pair[1]);
            let is_near = |pair: &&[u64]| pair[0] < pair[1] && pair[1] - first < RUN_BYTES && is_together(pair);
            let (run, later) = rest.split_at(1 + rest.windows(2).take_while(is_near).count());
            self.read_run(run, &mut records).await?;
            rest = later;
        }
        Ok(records)
    }

    async fn read_run(&self, run: &[u64], records: &mut Vec<StoredRecord>) -> Result<(), String> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let start = first / BLOCK_BYTES * BLOCK_BYTES;
        let end = (last / BLOCK_BYTES * BLOCK_BYTES) + RECORD_READ_BYTES;
        let bytes = Bytes::from(self.read(start, end - start).await?);
        for at in run {
            let found = bytes.slice(bytes.len().min((at - start) as usize)..);
            let whole = record::record_bytes(&found).is_some_and(|length| length <= found.len());
            records.push(if whole { parse(&found, *at)? } else { self.read_long(*at, &found).await? });
        }
        Ok(())
    }

    /// A record that is longer than what was read with its neighbours.
    async fn read_long(&self, at: u64, found: &[u8]) -> Result<StoredRecord, String> {
        let length = record::record_bytes(found).unwrap_or(RECORD_HEADER_BYTES) as u64;
        if length > claim_engine::log::layout::RECORD_BYTES_MAX {
            return Err(format!("the record at log offset {at} says it has {length} bytes"));
        }
        let start = at / BLOCK_BYTES * BLOCK_BYTES;
        let bytes = Bytes::from(self.read(start, (at + length - start).next_multiple_of(BLOCK_BYTES)).await?);
        parse(&bytes.slice(bytes.len().min((at - start) as usize)..), at)
    }

    /// Blocks of sealed segments never change: what was read once and is still at hand need not be read again. In others, what
    /// is read with a record may lie beyond what is written, and be written later.
    async fn read(&self, log_offset: u64, bytes: u64) -> Result<Vec<u8>, String> {
        let is_sealed = self.is_sealed(log_offset + bytes - 1);
        if is_sealed {
            let at_hand = self.engine.borrow().shard().rows().catalog().stretch(log_offset, log_offset + bytes);
            if let Ok(at_hand) = at_hand {
                return Ok(at_hand);
            }
        }
        let read = self.read_storage(log_offset, bytes).await?;
        if is_sealed && bytes <= CACHED_READ_BYTES_MAX {
            self.engine.borrow().shard().rows().catalog().put(log_offset, &read);
        }
        Ok(read)
    }

    fn is_sealed(&self, log_offset: u64) -> bool {
        let engine = self.engine.borrow();
        engine.superblock().geometry.segment_of(log_offset) < engine.shard().rows().catalog().end()
    }

    async fn read_storage(&self, log_offset: u64, bytes: u64) -> Result<Vec<u8>, String> {
        let geometry = self.engine.borrow().superblock().geometry;
        let (file_offset, bytes) = (geometry.file_offset(log_offset), geometry.together(log_offset, bytes));
        let result = self.read_device(file_offset, bytes, Reader::Request).await;
        result.map_err(|e| format!("reading {bytes} bytes at file offset {file_offset} failed: {e}"))
    }

    /// Reads from the shard's file when there is room for it beside other reads, and while a log is written a piece at a time.
    pub async fn read_device(&self, file_offset: u64, bytes: u64, reader: Reader) -> io::Result<Vec<u8>> {
        let _share = self.reads.take(bytes, reader).await;
        let mut read = Vec::new();
        loop {
            let done = read.len() as u64;
            let piece = self.reads.piece(bytes - done);
            let part = self.storage.read_at(file_offset + done, piece as usize).await?;
            let is_last = (part.len() as u64) < piece || done + piece == bytes;
            if done == 0 {
                read = part;
                read.reserve_exact((bytes - piece) as usize);
            } else {
                read.extend_from_slice(&part);
            }
            if is_last {
                return Ok(read);
            }
        }
    }

    /// Whether a log offset lies before where the log begins.
    pub fn is_dropped(&self, log_offset: u64) -> bool {
        let engine = self.engine.borrow();
        let superblock = engine.superblock();
        superblock.geometry.segment_of(log_offset) < superblock.first_segment()
    }
}

fn parse(bytes: &Bytes, at: u64) -> Result<StoredRecord, String> {
    let (raw, _) = record::read(bytes).map_err(|e| format!("the record at log offset {at} does not verify: {e}"))?;
    Ok(StoredRecord { position: raw.position, kind: raw.kind, body: bytes.slice_ref(raw.body) })
}

/// Does what nobody waits for in a thread of its own, which stays as it is: what else is done beside the executor takes locks of files, and
/// must not be slow about it.
fn in_background<T: Send>(work: impl Fn() -> T + Sync) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("claimd-index".to_owned());
        let spawned = thread.spawn_scoped(scope, || {
            if let Err(error) = scheduling::give_way(INDEX_NICE) {
                tracing::debug!(%error, "indexes are built beside what is served");
            }
            work()
        });
        match spawned.map(|thread| thread.join()) {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => work(),
        }
    })
}
