//! The machine that a simulated ledger runs on: engines, their disks, the messages between them, the clocks; how it crashes
//! and comes back.

use crate::command::{Reply, Request};
use crate::corpus::Prefix;
use crate::engine::{Engine, OpenOptions, Output};
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::log::io::{self, IoDone, perform};
use crate::log::layout::{BLOCK_BYTES, Geometry};
use crate::log::record;
use crate::log::superblock::{ClockMode, Superblock, copy_offset};
use crate::log::writer;
use crate::mutant::{Mutant, Mutation};
use crate::peer::PeerMessage;
use crate::row::RowView;
use crate::sealed::{Fetch, ask_until_read};
use crate::shard::rows::{Found, Scan, all_pages};
use crate::storage::sim::SimDisk;
use crate::storage::{Durability, Storage};
use crate::time::Now;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use uuid::Uuid;

/// Small, so that runs roll segments often.
pub const GEOMETRY: Geometry = Geometry { segment_bytes: 96 << 10, batch_bytes_max: 16 << 10, ring_segments: 0 };
/// Rounds of completions and messages after which shards that have nothing to do must have come to rest.
const SETTLE_ROUNDS_MAX: u32 = 20_000;
/// Rows of a page of a scan.
const SCAN_ROWS: usize = 20;
/// Bytes that hold any record of a simulated ledger.
const RECORD_READ_BYTES: usize = 16 << 10;

type Io = Pin<Box<dyn Future<Output = IoDone>>>;

struct Node {
    disk: SimDisk,
    superblock: Superblock,
    engine: Option<Engine>,
    ios: Vec<Io>,
    /// Indexes that are to be made, while that waits.
    builds: Vec<io::Io>,
}

/// See the module.
pub struct Machine {
    pub entropy: Entropy,
    /// The engines' own stream: a mutant that draws differently must not change the load.
    engine_entropy: Entropy,
    /// No segment's index is made for the time being.
    pub builds_wait: bool,
    /// Somebody reads the files beside the shards.
    pub is_being_read: bool,
    mutant: Option<Mutant>,
    nodes: Vec<Node>,
    mesh: BTreeMap<(usize, u16), VecDeque<PeerMessage>>,
    pub now: Now,
    replies: Vec<(usize, Reply)>,
}

impl Machine {
    /// A ledger that was formatted and opened.
    pub fn new(seed: u64, entropy: Entropy, shard_count: u16, mutant: Option<Mutant>, start_us: i64) -> Machine {
        Machine::with_clock(ClockMode::Wall, seed, entropy, shard_count, mutant, start_us)
    }

    /// The same, whose time comes from the wall clock or from the requests.
    pub fn with_clock(
        clock: ClockMode,
        seed: u64,
        entropy: Entropy,
        shard_count: u16,
        mutant: Option<Mutant>,
        start_us: i64,
    ) -> Machine {
        Machine::with_geometry(GEOMETRY, clock, seed, entropy, shard_count, mutant, start_us)
    }

    /// The same, with segments of another size.
    pub fn with_geometry(
        geometry: Geometry,
        clock: ClockMode,
        seed: u64,
        mut entropy: Entropy,
        shard_count: u16,
        mutant: Option<Mutant>,
        start_us: i64,
    ) -> Machine {
        let nodes = (0..shard_count)
            .map(|shard| {
                let superblock = Superblock {
                    shard,
                    shard_count,
                    clock,
                    formatted_at_us: start_us,
                    ..Superblock::of_new_ledger(
                        Uuid::from_u128(u128::from(seed) << 1 | 1),
                        [seed as u8 ^ 0x5a; 32],
                        geometry,
                    )
                };
                let disk = SimDisk::default();
                disk.run(&mut entropy, u64::MAX, writer::format(&disk, &superblock))
                    .expect("unbounded")
                    .expect("no faults");
                Node { disk, superblock, engine: None, ios: Vec::new(), builds: Vec::new() }
            })
            .collect();
        let mut machine = Machine {
            engine_entropy: Entropy::from_seed_u64(seed ^ 0xfeed),
            entropy,
            builds_wait: false,
            is_being_read: false,
            mutant,
            nodes,
            mesh: BTreeMap::new(),
            now: Now { wall_us: start_us, boot_us: 0 },
            replies: Vec::new(),
        };
        machine.recover(None).expect("an empty ledger opens");
        machine
    }

    /// A ledger of files, each with its superblock, that is not open yet.
    pub fn of_files(files: Vec<(Vec<u8>, Superblock)>, seed: u64, now: Now) -> Machine {
        let mut entropy = Entropy::from_seed_u64(seed);
        let nodes = files.into_iter().map(|(image, superblock)| {
            let disk = SimDisk::of_image(image);
            disk.run(&mut entropy, u64::MAX, superblock.write(&disk)).expect("unbounded").expect("no faults");
            let superblock = superblock.as_formatted();
            Node { disk, superblock, engine: None, ios: Vec::new(), builds: Vec::new() }
        });
        Machine {
            nodes: nodes.collect(),
            engine_entropy: Entropy::from_seed_u64(seed ^ 0xfeed),
            entropy,
            builds_wait: false,
            is_being_read: false,
            mutant: None,
            mesh: BTreeMap::new(),
            now,
            replies: Vec::new(),
        }
    }

    pub fn shard_count(&self) -> usize {
        self.nodes.len()
    }

    /// A shard that runs.
    pub fn engine(&self, shard: usize) -> Option<&Engine> {
        self.nodes.get(shard)?.engine.as_ref()
    }

    /// All that run.
    pub fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.nodes.iter().filter_map(|node| node.engine.as_ref())
    }

    /// Nothing is kept for the archive's sake, until the next start.
    pub fn archive_is_complete(&mut self) {
        for node in &mut self.nodes {
            node.engine.iter_mut().for_each(|engine| engine.keep_segments_from(u64::MAX));
        }
    }

    pub fn submit(&mut self, shard: u16, request: &Request<'_>) {
        if let Some(engine) = &mut self.nodes[usize::from(shard)].engine {
            engine.submit(self.now, &mut self.engine_entropy, request);
        }
    }

    pub fn tick(&mut self) {
        for node in &mut self.nodes {
            if let Some(engine) = &mut node.engine {
                engine.tick(self.now, &mut self.engine_entropy);
            }
        }
    }

    /// One operation of one disk ends.
    pub fn complete_one(&mut self) {
        let node = self.entropy.below(self.nodes.len() as u64) as usize;
        self.nodes[node].disk.complete_one(&mut self.entropy);
    }

    /// One message arrives.
    pub fn deliver_one(&mut self) {
        let queues: Vec<_> = self.mesh.iter().filter(|(_, q)| !q.is_empty()).map(|(k, _)| *k).collect();
        if queues.is_empty() {
            return;
        }
        let (from, to) = queues[self.entropy.below(queues.len() as u64) as usize];
        let message = self.mesh.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        if let (Some(message), Some(engine)) = (message, &mut self.nodes[usize::from(to)].engine) {
            engine.deliver(self.now, &mut self.engine_entropy, &message);
        }
    }

    /// Moves what can move: I/O that completed, outputs, new I/O.
    pub fn pump(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            let Some(engine) = &mut node.engine else { continue };
            let mut i = 0;
            while i < node.ios.len() {
                if let Poll::Ready(done) = node.ios[i].as_mut().poll(&mut context) {
                    drop(node.ios.swap_remove(i));
                    engine.complete(self.now, &mut self.engine_entropy, done);
                } else {
                    i += 1;
                }
            }
            let builds = if self.builds_wait { Vec::new() } else { std::mem::take(&mut node.builds) };
            for io in builds.into_iter().chain(std::iter::from_fn(|| engine.next_io())) {
                if self.builds_wait && matches!(io, io::Io::Build(_)) {
                    node.builds.push(io);
                    continue;
                }
                if self.is_being_read
                    && let io::Io::Free { segments, .. } = io
                {
                    let result = Err(std::io::ErrorKind::WouldBlock.into());
                    node.ios.push(Box::pin(std::future::ready(IoDone::Freed { segments, result })));
                    continue;
                }
                let disk = node.disk.clone();
                let mut future: Io = Box::pin(async move { perform(&disk, io).await });
                // The first poll submits it. What has been read is taken later, like everything else.
                node.ios.push(match future.as_mut().poll(&mut context) {
                    Poll::Ready(done) => Box::pin(std::future::ready(done)),
                    Poll::Pending => future,
                });
            }
            for output in engine.drain() {
                match output {
                    Output::Message { to, message } => self.mesh.entry((number, to)).or_default().push_back(message),
                    Output::Reply(reply) => self.replies.push((number, reply)),
                }
            }
        }
    }

    /// What was answered since the last time, each with its shard.
    pub fn take_replies(&mut self) -> Vec<(usize, Reply)> {
        std::mem::take(&mut self.replies)
    }

    /// Lets everything that is under way come to its end, in some order.
    pub fn settle(&mut self) -> Result<(), String> {
        for _ in 0..SETTLE_ROUNDS_MAX {
            self.pump();
            let is_quiet = self.mesh.values().all(VecDeque::is_empty) && self.nodes.iter().all(|n| n.ios.is_empty());
            if is_quiet {
                return Ok(());
            }
            for node in &self.nodes {
                node.disk.complete_one(&mut self.entropy);
            }
            self.deliver_one();
        }
        Err("the shards don't come to rest".into())
    }

    /// Whether a power cut would lose anything now.
    pub fn has_volatile(&self) -> bool {
        self.nodes.iter().any(|node| node.disk.has_volatile())
    }

    /// One copy of a shard's superblock is as the format wrote it, as if a crash had come while the copies were written.
    pub fn leave_copy_behind(&mut self, shard: usize, copy: u64) {
        let Node { disk, superblock, .. } = &self.nodes[shard];
        let block = superblock.encode();
        let write = disk.write_at(copy_offset(copy), &block, Durability::Durable);
        disk.run(&mut self.entropy, u64::MAX, write).expect("unbounded").expect("no faults");
    }

    /// The machine, or the process alone, dies. The clocks go on.
    pub fn crash(&mut self, is_cut: bool, wall_us: i64, boot_us: i64) {
        for node in &mut self.nodes {
            node.engine = None;
            node.ios.clear();
            node.builds.clear();
            if is_cut {
                node.disk.cut_power(&mut self.entropy);
            } else {
                node.disk.kill_process(&mut self.entropy);
            }
        }
        self.mesh.clear();
        self.replies.clear();
        self.now = Now { wall_us: self.now.wall_us + wall_us, boot_us: self.now.boot_us + boot_us };
    }

    /// Opens every shard, and lets them tell each other what they missed; with `ops`, the recovery itself is cut short after
    /// so many operations of a disk.
    pub fn recover(&mut self, ops: Option<u64>) -> Result<(), String> {
        match self.open(ops)? {
            true => self.settle(),
            false => Ok(()),
        }
    }

    /// Opens every shard, and no more; false where `ops` ran out before.
    pub fn open(&mut self, ops: Option<u64>) -> Result<bool, String> {
        let (mutation, is_being_read) = (Mutation::new(self.mutant), self.is_being_read);
        let options = OpenOptions { mutation, is_being_read, ..OpenOptions::default() };
        for node in &mut self.nodes {
            let superblock = node
                .disk
                .run(&mut self.entropy, u64::MAX, Superblock::read(&node.disk))
                .expect("unbounded")
                .map_err(|e| e.to_string())?;
            if superblock.as_formatted() != node.superblock {
                return Err("the superblock changed".into());
            }
            let open = Engine::open(&node.disk, &superblock, options);
            match node.disk.run(&mut self.entropy, ops.unwrap_or(u64::MAX), open) {
                Some(Ok((mut engine, _))) => {
                    if superblock.clock == ClockMode::Wall {
                        // What a reference model says of rows holds as long as they are there; `retaining` drops them.
                        engine.keep_segments_from(0);
                    }
                    node.engine = Some(engine);
                }
                Some(Err(error)) => return Err(format!("recovery refuses: {error}")),
                None => return Ok(false),
            }
        }
        let last_us = self.engines().map(|e| e.shard().last_us()).max().unwrap_or(0);
        for node in &mut self.nodes {
            if let Some(engine) = &mut node.engine {
                engine.start(self.now, last_us);
            }
        }
        Ok(true)
    }

    /// What a shard's file holds now.
    pub fn image(&self, shard: usize) -> Vec<u8> {
        self.nodes[shard].disk.image()
    }

    /// The same by its log offsets.
    pub fn log_image(&self, shard: usize) -> Vec<u8> {
        self.image(shard).split_off(self.nodes[shard].superblock.geometry.file_offset(0) as usize)
    }

    /// Opens a copy of a shard's file as a superblock without a seal has it: from where the log begins.
    pub fn reopened_from_start(&mut self, shard: usize) -> Result<Engine, String> {
        let node = &self.nodes[shard];
        let copy = SimDisk::of_image(node.disk.image());
        let entropy = &mut self.entropy;
        let superblock = copy.run(entropy, u64::MAX, Superblock::read(&copy)).expect("unbounded");
        let superblock = Superblock { checkpoint: None, ..superblock.map_err(|e| e.to_string())? };
        let open = Engine::open(&copy, &superblock, OpenOptions::default());
        let opened = copy.run(entropy, u64::MAX, open).expect("unbounded");
        opened.map(|(engine, _)| engine).map_err(|e| format!("a replay from the log's beginning: {e}"))
    }

    /// What a shard knows, with the blocks that it takes read from its disk.
    pub fn fetch<T>(&self, shard: usize, ask: impl Fn(&Engine) -> Fetch<T>) -> Result<T, String> {
        let engine = self.engine(shard).ok_or("a shard is down")?;
        let read = |at| self.read(shard, at, BLOCK_BYTES as usize);
        ask_until_read(engine.shard().rows().catalog(), || ask(engine), read)
    }

    /// All rows of a corpus of a shard, scanned page by page.
    pub fn rows_of(&self, shard: usize, prefix: Prefix) -> Result<Vec<Found>, String> {
        let page =
            |after| self.fetch(shard, |e| e.shard().rows().scan(&Scan::of(prefix, after, SCAN_ROWS), Found::clone));
        all_pages(page)
    }

    /// A row, wherever it lives, and how it shows.
    pub fn row(&self, event_id: EventId) -> Option<(Found, RowView)> {
        (0..self.nodes.len()).find_map(|shard| {
            let found = self.fetch(shard, |engine| engine.shard().rows().get(event_id)).ok()??;
            Some((found, self.engine(shard)?.shard().view(&found)))
        })
    }

    fn read(&self, shard: usize, log_offset: u64, bytes: usize) -> Result<Vec<u8>, String> {
        let mut context = Context::from_waker(Waker::noop());
        let Node { disk, superblock, .. } = &self.nodes[shard];
        let read = std::pin::pin!(disk.read_at(superblock.geometry.file_offset(log_offset), bytes)).poll(&mut context);
        let Poll::Ready(Ok(bytes)) = read else { return Err("a simulated read fails or waits".into()) };
        Ok(bytes)
    }

    /// What replies of a shard name is read from now on, until that has ended.
    pub fn begin_read(&mut self, shard: usize) -> u64 {
        self.nodes[shard].engine.as_mut().expect("it runs").begin_read()
    }

    pub fn end_read(&mut self, shard: usize, began_with: u64) {
        self.nodes[shard].engine.as_mut().expect("it runs").end_read(began_with);
    }

    /// A record's position, kind and body, from the disk, as the daemon reads it.
    pub fn read_record(&self, shard: usize, log_offset: u64) -> Result<(u64, u16, Vec<u8>), String> {
        // Blocks are read as a whole.
        let start = log_offset / BLOCK_BYTES * BLOCK_BYTES;
        let bytes = self.read(shard, start, RECORD_READ_BYTES)?;
        let rest = bytes.get((log_offset - start) as usize..).unwrap_or_default();
        let (raw, _) = record::read(rest).map_err(|e| format!("reading at {log_offset}: {e}"))?;
        Ok((raw.position, raw.kind, raw.body.to_vec()))
    }
}
