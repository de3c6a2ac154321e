//! Opening a shard: recovery, the new incarnation, and the start of its clock.

use super::{Engine, Output, Peer};
use crate::debt::{Debt, DebtBounds};
use crate::log::entry::{Entry, Meta, Principal, Record};
use crate::log::recovery::{self, RecoveryError, RecoveryOptions, Visit};
use crate::log::superblock::Superblock;
use crate::log::writer::{BATCH_START_EVERY_BYTES, LogWriter, perform};
use crate::mutant::{Mutant, Mutation};
use crate::propagation::Propagation;
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
        let OpenOptions { fill_bytes, debt, mutation } = options;
        let mut shard = Shard::new(superblock);
        let (mut batches, mut records) = (0, 0);
        let mut starts = Vec::new();
        let mut last_start = None;
        let end = recovery::walk(storage, superblock, RecoveryOptions { mutation }, |visit| {
            match visit {
                Visit::Batch(place) => {
                    batches += 1;
                    let is_far = last_start.is_none_or(|at| place.log_offset >= at + BATCH_START_EVERY_BYTES);
                    if is_far {
                        last_start = Some(place.log_offset);
                        starts.push((place.header.number, place.header.first_position, place.log_offset));
                    }
                }
                Visit::Record(raw, log_offset) => {
                    records += 1;
                    shard.apply_raw(raw, log_offset)?;
                }
            }
            Ok(())
        })
        .await?;
        if !mutation.is(Mutant::NoFlushBeforeServing) {
            storage.flush().await.map_err(|e| RecoveryError::Write(format!("the flush before serving: {e}")))?;
        }
        let opened = Opened { batches, records, cut_at: end.next_batch_at };
        let mut engine = Engine {
            superblock: superblock.clone(),
            log: LogWriter::new(superblock, end, fill_bytes, mutation),
            held: VecDeque::new(),
            waiting_for_peers: Vec::new(),
            peers: vec![Peer::default(); usize::from(superblock.shard_count)],
            out: Vec::new(),
            debt: Debt::new(debt),
            refused_overload: 0,
            was_overloaded: false,
            parked: BTreeMap::new(),
            next_parked: 0,
            questions: HashMap::new(),
            next_question: 0,
            answers: VecDeque::new(),
            reservations: HashMap::new(),
            pass: None,
            passes_waiting: VecDeque::new(),
            resumption_waiting: Vec::new(),
            last_report: None,
            propagation: Propagation::default(),
            shard,
            mutation,
        };
        engine.shard.mutate(mutation);
        for (number, first_position, log_offset) in starts {
            engine.log.remember_start(number, first_position, log_offset);
        }
        engine.write_recovery_batch(storage, end.next_batch_at).await?;
        Ok((engine, opened))
    }

    async fn write_recovery_batch(&mut self, storage: &impl Storage, cut_at: u64) -> Result<(), RecoveryError> {
        let meta = Meta {
            timestamp_us: self.shard.last_us(),
            idempotency_key: 0,
            correlation_id: 0,
            fingerprint: 0,
            principal: Principal::default(),
            item: 0,
            corpus: None,
            rationale: "",
        };
        let entry = Entry::Recovery { incarnation: self.log.incarnation(), cut_at };
        let record = Record { meta, entry };
        let (position, log_offset) = self.log.append_recovery(&record);
        self.shard.apply(position, log_offset, &record).map_err(RecoveryError::Write)?;
        while self.log.durable().position < position {
            let Some(io) = self.log.next_io() else {
                let reason = self.log.failed().unwrap_or("the ledger cannot grow: make room on its file system");
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
