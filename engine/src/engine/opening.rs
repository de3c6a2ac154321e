//! Opening a shard: recovery, the new incarnation, and the start of its clock.

use super::in_order::InOrder;
use super::reading::Reads;
use super::retention::Retaining;
use super::sealing::Sealing;
use super::{Engine, Output, Peer};
use crate::debt::{Debt, DebtBounds};
use crate::log::end::LogEnd;
use crate::log::entry::{Entry, Meta, Record};
use crate::log::io::perform;
use crate::log::layout::BLOCK_BYTES;
use crate::log::record::RawRecord;
use crate::log::recovery::{self, BatchPlace, ChainedBatch, Log, RecoveryError, RecoveryOptions};
use crate::log::superblock::{CopyFound, Superblock, format_version};
use crate::log::writer::LogWriter;
use crate::mutant::{Mutant, Mutation};
use crate::propagation::Propagation;
use crate::sealed::summary::BatchStart;
use crate::sealed::{self, Catalog, SealError, Unread};
use crate::shard::Shard;
use crate::storage::Storage;
use crate::time::Now;
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};

/// What opening a shard found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Batches replayed.
    pub batches: u64,
    /// Records replayed.
    pub records: u64,
    /// Log offset at which the log ended.
    pub cut_at: u64,
}

/// Settings of [`Engine::open`].
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// A batch that waits is written beside others in flight once it has this many bytes; by default the largest batch.
    pub fill_bytes: Option<u64>,
    /// What is accepted before it has been answered.
    pub debt: DebtBounds,
    /// For blocks of sealed segments; a least that any decision needs is taken anyhow.
    pub cache_bytes: u64,
    /// Somebody reads the ledger's files who began before: what was dropped stays until that ends.
    pub is_being_read: bool,
    /// A deliberate bug.
    pub mutation: Mutation,
}

impl Engine {
    /// Recovers a shard and starts a new incarnation. Nothing is served from it before this returns: what was read is
    /// flushed, because it may live only in the device's cache, and the recovery batch is durable, so that left-overs of
    /// the last run never chain again.
    pub async fn open(
        storage: &impl Storage,
        superblock: &Superblock,
        options: OpenOptions,
    ) -> Result<(Engine, Opened), RecoveryError> {
        let OpenOptions { fill_bytes, debt, cache_bytes, is_being_read, mutation } = options;
        let sealed = read_sealed(storage, superblock).await?;
        let (mut shard, from) = match sealed {
            Some((shard, end)) => (shard, Some(end)),
            None => (Shard::new(superblock), None),
        };
        shard.seal_segments(cache_bytes);
        let geometry = superblock.geometry;
        let (mut batches, mut records) = (0, 0);
        let (mut starts, mut heads) = (Vec::new(), Vec::new());
        let mut log = Log::open(storage, superblock, RecoveryOptions { mutation }, from).await?;
        while let Some(ChainedBatch { place, bytes, before }) = log.next().await? {
            batches += 1;
            if geometry.is_first(place.log_offset) && place.log_offset > geometry.first_batch() {
                heads.push((geometry.segment_of(place.log_offset), before));
            }
            let BatchPlace { header, log_offset, .. } = place;
            if !header.is_sealing {
                starts.push(BatchStart { number: header.number, first_position: header.first_position, log_offset });
            }
            for record in recovery::records(geometry, &place, &bytes) {
                let (raw, log_offset) = record?;
                records += 1;
                apply(storage, superblock, &mut shard, &raw, log_offset).await?;
            }
        }
        let end = log.end();
        if !mutation.is(Mutant::NoFlushBeforeServing) {
            storage.flush().await.map_err(|e| RecoveryError::Write(format!("the flush before serving: {e}")))?;
        }
        let mut superblock = superblock.clone();
        let unwritten = |error| RecoveryError::Write(format!("the superblock: {error}"));
        let version = format_version(superblock.geometry);
        if superblock.version < version {
            // Before the first batch that the older format does not know.
            tracing::info!(from = superblock.version, to = version, "the ledger's format is brought up to date");
            superblock.version = version;
            superblock.generation = superblock.generation.saturating_add(1);
            superblock.write(storage).await.map_err(unwritten)?;
        } else if superblock.origin.is_some() {
            // A crash may have come while they were written: before the segments are freed with which an older copy has the log begin.
            let is_this = |copy: &CopyFound| copy.superblock.as_ref() == Some(&superblock);
            if !Superblock::read_copies(storage).await.is_ok_and(|copies| copies.iter().all(is_this)) {
                superblock.write(storage).await.map_err(unwritten)?;
            }
        }
        let opened = Opened { batches, records, cut_at: end.next_batch_at };
        let mut engine = Engine {
            log: LogWriter::new(&superblock, end, fill_bytes, mutation),
            held: VecDeque::new(),
            waiting_for_peers: Vec::new(),
            peers: vec![Peer::default(); usize::from(superblock.shard_count)],
            out: Vec::new(),
            debt: Debt::new(debt),
            refused_overload: 0,
            was_overloaded: false,
            was_full: false,
            parked: BTreeMap::new(),
            next_parked: 0,
            in_order: InOrder::default(),
            without_room: VecDeque::new(),
            without_room_since_us: 0,
            questions: HashMap::new(),
            next_question: 0,
            answers: VecDeque::new(),
            reservations: HashMap::new(),
            pass: None,
            passes_waiting: VecDeque::new(),
            resumption_waiting: Vec::new(),
            last_report: None,
            propagation: Propagation::default(),
            reads: Reads::default(),
            sealing: Sealing::default(),
            retaining: Retaining::new(superblock.first_segment()),
            superblock,
            unused: None,
            following: VecDeque::new(),
            boot_us: 0,
            shard,
            mutation,
        };
        if !is_being_read {
            // The recovery batch may need a place that a run before has freed and not taken.
            engine.log.freed(engine.superblock.first_segment());
        }
        engine.shard.mutate(mutation);
        starts.into_iter().for_each(|start| engine.log.unsealed.remember_start(start));
        heads.into_iter().for_each(|(segment, head)| engine.log.unsealed.remember_head(segment, head));
        engine.write_recovery_batch(storage, end.next_batch_at, is_being_read).await?;
        Ok((engine, opened))
    }

    async fn write_recovery_batch(
        &mut self,
        storage: &impl Storage,
        cut_at: u64,
        is_being_read: bool,
    ) -> Result<(), RecoveryError> {
        let meta = Meta { timestamp_us: self.shard.last_us(), ..Meta::of_daemon() };
        let entry = Entry::Recovery { incarnation: self.log.incarnation(), cut_at };
        let record = Record { meta, entry };
        let (position, log_offset) = self.log.append_recovery(&record);
        self.shard.apply(position, log_offset, &record).map_err(RecoveryError::Write)?;
        while self.log.durable().position < position {
            let Some(io) = self.log.next_io() else {
                let full = match (self.superblock.geometry.is_ring(), is_being_read) {
                    (false, _) => "the ledger cannot grow: make room on its file system",
                    (true, true) => {
                        "the shard's device is full, and while somebody reads the ledger nothing that was dropped may be written \
                         over: wait for the `claimd backup` or `claimd verify` that has its directory locked (`lslocks` names \
                         it), or stop that, and start again"
                    }
                    (true, false) => {
                        "the shard's device is full to its last block: make a `claimd backup` of the ledger, and another ledger of \
                         that with `claimd restore`"
                    }
                };
                let reason = self.log.failed().unwrap_or(full);
                return Err(RecoveryError::Write(reason.to_owned()));
            };
            let done = perform(storage, io).await;
            self.log.complete(done, 0);
        }
        Ok(())
    }

    /// Starts the clock and tells shard 0 how far this one is; `ledger_last_us` is the greatest over all shards.
    pub fn start(&mut self, now: Now, ledger_last_us: i64) {
        self.shard.start(now, ledger_last_us);
        let sequence = self.shard.globals_applied();
        if self.shard.number() != 0 {
            let message = self.globals_applied();
            self.out.push(Output::Message { to: 0, message });
        } else {
            self.peers[0] = Peer { applied: sequence, sent: sequence, is_known: true, ..Peer::default() };
        }
    }
}

/// What is sealed, and where the log goes on behind it; else where the log begins, and `None` where that is with nothing.
async fn read_sealed(
    storage: &impl Storage,
    superblock: &Superblock,
) -> Result<Option<(Shard, LogEnd)>, RecoveryError> {
    let Some(checkpoint) = superblock.checkpoint else { return read_origin(storage, superblock).await };
    let restored = match sealed::read_chain(storage, superblock, checkpoint).await {
        Ok(chain) => {
            let mut catalog = Catalog::at_start(superblock);
            chain.segments.into_iter().for_each(|segment| catalog.add(segment));
            match Shard::restore(superblock, &chain.snapshot, catalog) {
                Ok(mut shard) => {
                    let completed = complete(storage, superblock, &mut shard).await;
                    completed.map(|()| (shard, chain.last.resume.into()))
                }
                Err(reason) => Err(reason),
            }
        }
        // Replayed in other segments, whole batches are where none belongs.
        Err(error @ SealError::Segments { .. }) => return Err(RecoveryError::Seal(error)),
        Err(error) => Err(error.to_string()),
    };
    match restored {
        Ok(restored) => Ok(Some(restored)),
        Err(reason) => {
            tracing::warn!(%reason, "what is sealed can't be used; the log is replayed from its start");
            read_origin(storage, superblock).await
        }
    }
}

/// The small state behind the segments that were dropped.
async fn read_origin(
    storage: &impl Storage,
    superblock: &Superblock,
) -> Result<Option<(Shard, LogEnd)>, RecoveryError> {
    let Some(origin) = &superblock.origin else { return Ok(None) };
    let snapshot = sealed::read_origin(storage, superblock, origin).await.map_err(RecoveryError::Seal)?;
    let damaged = |_| {
        let file_offset = superblock.geometry.file_offset(origin.seal.log_offset);
        RecoveryError::Seal(SealError::Damaged { what: "the snapshot before the log's first segment", file_offset })
    };
    let shard = Shard::restore(superblock, &snapshot, Catalog::at_start(superblock)).map_err(damaged)?;
    Ok(Some((shard, origin.start)))
}

/// Applies a record, once what that takes is read.
async fn apply(
    storage: &impl Storage,
    superblock: &Superblock,
    shard: &mut Shard,
    raw: &RawRecord<'_>,
    log_offset: u64,
) -> Result<(), RecoveryError> {
    let geometry = superblock.geometry;
    let error = |reason: String| RecoveryError::Record {
        position: raw.position,
        file_offset: geometry.file_offset(log_offset),
        reason,
    };
    let record = Record::decode(raw.kind, raw.body).map_err(|e| error(e.to_string()))?;
    loop {
        match shard.at_hand(&record.entry) {
            Ok(()) => return shard.apply(raw.position, log_offset, &record).map_err(error),
            Err(Unread::Damaged(what)) => return Err(error(what)),
            Err(Unread::Missing(blocks)) => read_blocks(storage, superblock, shard, blocks).await?,
            Err(unread @ Unread::Stretch(_)) => return Err(error(unread.to_string())),
        }
    }
}

/// Has a shard's small state read what the snapshot of an earlier build lacks.
async fn complete(storage: &impl Storage, superblock: &Superblock, shard: &mut Shard) -> Result<(), String> {
    loop {
        match shard.complete() {
            Ok(()) => return Ok(()),
            Err(unread @ (Unread::Damaged(_) | Unread::Stretch(_))) => return Err(unread.to_string()),
            Err(Unread::Missing(blocks)) => {
                read_blocks(storage, superblock, shard, blocks).await.map_err(|e| e.to_string())?;
            }
        }
    }
}

async fn read_blocks(
    storage: &impl Storage,
    superblock: &Superblock,
    shard: &Shard,
    blocks: Vec<u64>,
) -> Result<(), RecoveryError> {
    for at in blocks.into_iter().map(|block| block * BLOCK_BYTES) {
        let file_offset = superblock.geometry.file_offset(at);
        let read = storage.read_at(file_offset, BLOCK_BYTES as usize).await;
        let bytes = read.map_err(|source| RecoveryError::Read { file_offset, source })?;
        shard.rows().catalog().put(at, &bytes);
    }
    Ok(())
}
