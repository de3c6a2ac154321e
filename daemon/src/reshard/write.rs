//! The new ledger, written: for each new shard the entries of its corpora, merged by time from the shards that they come
//! from, and between them all of the global order.
//!
//! Entries of one shard alone keep their times, and so their order is given. An entry that every shard keeps goes before the
//! first entry that stood behind it on any of the old shards, and behind those of its own rows that stood before it: those
//! are what its part was decided by. Its time is raised, or lowered, to between its neighbours'. Every record is applied to
//! a shard as it is written: what would not apply ends the reshard.

use super::carry::Carrying;
use super::dropped::{Beginning, FIRST_SEGMENT};
use super::placement::Placement;
use super::read::{Digest, Global, Local, Stream, is_single, sides};
use crate::rewriting::{meta, own_principal, work_off};
use claim_engine::corpus::Prefix;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{
    Entry, Merge, Meta, Principal, Record, ReshardSource, encode_floors, encode_merges, encode_sources, floors, merges,
};
use claim_engine::log::layout::{BLOCK_BYTES, Geometry};
use claim_engine::log::record;
use claim_engine::log::superblock::{Origin, Superblock};
use claim_engine::log::writer::LogWriter;
use claim_engine::mutant::Mutation;
use claim_engine::retention::Dropped;
use claim_engine::sealed::{Catalog, Checkpoint, Seal, page_batch, pages_of_none, pages_per_part, seal_batch};
use claim_engine::shard::Shard;
use claim_engine::shard::keys::KeyId;
use claim_engine::storage::RealStorage;
use claim_engine::time::Quarter;
use indicatif::ProgressBar;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of an old shard's file that are read at a time.
const WINDOW_BYTES: usize = 1 << 20;

/// The old ledger, and where everything goes.
#[derive(Debug)]
pub struct Plan {
    /// The old ledger's shards.
    pub old: Vec<Superblock>,
    /// What each of them has.
    pub streams: Vec<Stream>,
    /// The global order.
    pub globals: Vec<Global>,
    /// Where each corpus lived, and lives.
    pub placement: Placement,
    /// What is dropped, if anything is.
    pub beginning: Option<Beginning>,
    /// When this is done, by the wall clock.
    pub now_us: i64,
    /// Copies of global entries that old shards did not have yet.
    pub followed: u64,
    /// No entry of the old ledger is later.
    pub last_us: i64,
}

/// What was written for one new shard.
#[derive(Debug, Default)]
pub struct Written {
    /// Where its log begins, if the old ledger has dropped anything.
    pub origin: Option<Origin>,
    /// By old shard: entries taken.
    pub entries: Vec<u64>,
    /// Entries that lost their idempotency key to another entry of the same key, by corpus: what they add up to then.
    pub without_keys: Vec<(u16, u16, Vec<u8>, Vec<u8>)>,
}

/// Bytes of an old shard's file, read ahead.
struct Window {
    file: File,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn record(&mut self, geometry: Geometry, local: &Local) -> Result<&[u8], String> {
        let (at, bytes) = (geometry.file_offset(local.log_offset), local.bytes as usize);
        let end = at + bytes as u64;
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            self.bytes.resize(WINDOW_BYTES.max(bytes), 0);
            let mut read = 0;
            while read < self.bytes.len() {
                match self.file.read_at(&mut self.bytes[read..], at + read as u64) {
                    Ok(0) => break,
                    Ok(more) => read += more,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(format!("reading at file offset {at}: {error}")),
                }
            }
            self.bytes.truncate(read);
            self.start = at;
        }
        let from = (at - self.start) as usize;
        self.bytes.get(from..from + bytes).ok_or_else(|| format!("the file ends at file offset {end}"))
    }
}

/// Writes the log of one new shard. The file is formatted, or has a segment to begin with behind those that are dropped.
pub async fn write_shard(
    plan: &Plan,
    superblock: &Superblock,
    storage: &RealStorage,
    files: Vec<File>,
    bar: &ProgressBar,
) -> Result<Written, String> {
    let begun = match &plan.beginning {
        Some(beginning) => Begun::behind(beginning, plan, superblock, storage).await?,
        None => Begun::at_first(superblock)?,
    };
    let Begun { superblock, writer, shard } = begun;
    let carried = plan.streams.iter().flat_map(|stream| &stream.carried);
    let is_here = |prefix: Prefix| plan.placement.new_of(prefix) == Some(superblock.shard);
    let mut making = Making {
        plan,
        storage,
        number: superblock.shard,
        room_bytes_min: writer.room_bytes() / 2,
        shard,
        writer,
        next: vec![0; plan.streams.len()],
        windows: files.into_iter().map(|file| Window { file, start: 0, bytes: Vec::new() }).collect(),
        keys: HashSet::new(),
        repairs: HashSet::new(),
        carrying: Carrying::new(carried, is_here),
        dropped_to: plan.beginning.as_ref().map(Beginning::dropped_before).unwrap_or_default(),
        globals: 0,
        written: Written { origin: superblock.origin, entries: vec![0; plan.streams.len()], ..Written::default() },
        superblock,
    };
    if !making.carrying.fits(making.superblock.geometry) {
        return Err("more rows were logged again than a segment has bytes".to_owned());
    }
    making.reserve_keys()?;
    for old in 0..plan.streams.len() {
        making.seek(old);
    }
    let mut due = 0;
    while let Some((old, local)) = making.first() {
        due = due.max(local.globals);
        while making.globals < due && !making.is_held() {
            making.global(Some(local.at_us)).await?;
        }
        making.local(old, &local).await?;
        bar.inc(local.bytes.into());
    }
    while (making.globals as usize) < plan.globals.len() {
        making.global(None).await?;
    }
    if let Some(beginning) = &plan.beginning
        && making.shard.retention().seals.len() != beginning.seals()
    {
        return Err("not all that was dropped is told".to_owned());
    }
    making.reshard().await?;
    making.drain().await?;
    making.writer.mark();
    making.drain().await?;
    Ok(making.written)
}

/// A log with its first record, which is that of an incarnation.
struct Begun {
    superblock: Superblock,
    writer: LogWriter,
    shard: Shard,
}

impl Begun {
    /// Of a ledger in which nothing has happened. A format leaves one segment with a header.
    fn at_first(superblock: &Superblock) -> Result<Begun, String> {
        let end = LogEnd::at_start(superblock, 1, Mutation::NONE);
        let mut writer = LogWriter::new(superblock, end, None, Mutation::NONE);
        let mut shard = Shard::new(superblock).without_keys();
        let record = recovery(superblock, &writer, shard.last_us());
        let (position, log_offset) = writer.append_recovery(&record);
        shard.apply(position, log_offset, &record)?;
        Ok(Begun { superblock: superblock.clone(), writer, shard })
    }

    /// Behind what is dropped. The seal before it stands in it, and then the superblock says where the log begins.
    async fn behind(
        beginning: &Beginning,
        plan: &Plan,
        superblock: &Superblock,
        storage: &RealStorage,
    ) -> Result<Begun, String> {
        let snapshot = beginning.small_state(superblock, &plan.placement)?;
        let origin = beginning.origin(superblock);
        let end = LogEnd { segments_prepared: FIRST_SEGMENT + 1, ..origin.start };
        let mut writer = LogWriter::new(superblock, end, None, Mutation::NONE);
        // It is of no quarter that is gone.
        let record = recovery(superblock, &writer, beginning.first_us());
        let (position, log_offset) = writer.append_recovery(&record);
        let seal = write_seal(&mut writer, storage, superblock, origin.start, &snapshot).await?;
        let superblock = Superblock { origin: Some(Origin { seal, ..origin }), ..superblock.clone() };
        superblock.write(storage).await.map_err(|e| format!("writing the superblock failed: {e}"))?;
        let mut shard = Shard::restore(&superblock, &snapshot, Catalog::at_start(&superblock))?.without_keys();
        shard.apply(position, log_offset, &record)?;
        Ok(Begun { superblock, writer, shard })
    }
}

fn recovery(superblock: &Superblock, writer: &LogWriter, at_us: i64) -> Record<'static> {
    let entry = Entry::Recovery { incarnation: writer.incarnation(), cut_at: superblock.geometry.first_batch() };
    Record { meta: meta(at_us, Principal::default()), entry }
}

/// Writes the seal of the segment before the log's first one, in which nothing is.
async fn write_seal(
    writer: &mut LogWriter,
    storage: &RealStorage,
    superblock: &Superblock,
    start: LogEnd,
    snapshot: &[u8],
) -> Result<Checkpoint, String> {
    let segment = FIRST_SEGMENT - 1;
    let (pages, summary, snapshot) = pages_of_none(segment, snapshot);
    let pages_per_part = pages_per_part(superblock.geometry);
    let mut parts = Vec::new();
    for part in pages.chunks(pages_per_part as usize * BLOCK_BYTES as usize) {
        parts.push(writer.append_sealing(page_batch(part)));
        sealed(writer, storage).await?;
    }
    let resume = start.into();
    let seal = Seal { segment, parts, pages_per_part, summary, snapshot, resume, previous: None };
    let batch = seal_batch(&seal)?;
    if batch.len() as u64 > superblock.geometry.batch_bytes_max {
        return Err("the small state of the old ledger is larger than what a seal can name".to_owned());
    }
    writer.append_sealing(batch);
    sealed(writer, storage).await
}

async fn sealed(writer: &mut LogWriter, storage: &RealStorage) -> Result<Checkpoint, String> {
    work_off(writer, storage).await?;
    writer.take_sealing().ok_or_else(|| "a part of a seal is not durable".to_owned())
}

struct Making<'a> {
    plan: &'a Plan,
    storage: &'a RealStorage,
    superblock: Superblock,
    number: u16,
    shard: Shard,
    writer: LogWriter,
    /// What is gathered is written before there is less room than this.
    room_bytes_min: u64,
    /// By old shard: the next of its entries that goes here.
    next: Vec<usize>,
    windows: Vec<Window>,
    /// Hashes of the idempotency keys of this shard.
    keys: HashSet<u64>,
    /// The repairs that were told: time, place, last position given up.
    repairs: HashSet<(i64, u64, u64)>,
    /// What carries say by their new places.
    carrying: Carrying,
    /// By old shard: how far the drops that were told go.
    dropped_to: Vec<Option<Quarter>>,
    /// How much of the global order is written.
    globals: u64,
    written: Written,
}

impl Making<'_> {
    /// Of two entries with the same key an entry of the global order keeps it: all shards' copies are the same.
    fn reserve_keys(&mut self) -> Result<(), String> {
        if self.number != 0 {
            return Ok(());
        }
        for global in &self.plan.globals {
            let record = Record::decode(global.kind, &global.body).map_err(|e| e.to_string())?;
            if record.meta.idempotency_key != 0 && !matches!(record.entry, Entry::PrefixAllocation { .. }) {
                self.keys.insert(KeyId::of(&record.meta).hash(secret(&self.plan.old[0])));
            }
        }
        Ok(())
    }

    /// Names are wanted wherever somebody did something, and global entries are everywhere; what a repair has to say is
    /// looked at for each shard.
    fn goes_here(&self, old: usize, local: &Local) -> bool {
        local.is_for_all || self.plan.placement.home_of(local.home, old as u16) == self.number
    }

    /// Goes on to the next entry of an old shard that goes here.
    fn seek(&mut self, old: usize) {
        let locals = &self.plan.streams[old].locals;
        while locals.get(self.next[old]).is_some_and(|local| !self.goes_here(old, local)) {
            self.next[old] += 1;
        }
    }

    /// The earliest of the entries that are next; of several the one with the least of the global order before it.
    fn first(&self) -> Option<(usize, Local)> {
        let next = self.next.iter().zip(&self.plan.streams).enumerate();
        let next = next.filter_map(|(old, (index, stream))| Some((old, *stream.locals.get(*index)?)));
        next.min_by_key(|(old, local)| (local.at_us, local.globals, *old))
    }

    /// Whether an entry of rows that the next global entry changes here is still to come.
    fn is_held(&self) -> bool {
        let index = self.globals as usize;
        self.plan.streams.iter().zip(&self.next).any(|(stream, next)| {
            let is_here = |prefix: Prefix| self.plan.placement.new_of(prefix) == Some(self.number);
            stream.copies[index].needs.iter().any(|(prefix, needs)| is_here(*prefix) && next < needs)
        })
    }

    /// Writes the next entry of the global order, with this shard's part of it.
    async fn global(&mut self, next_us: Option<i64>) -> Result<(), String> {
        let index = self.globals as usize;
        let global = &self.plan.globals[index];
        let placement = &self.plan.placement;
        let encoded;
        let mut record = Record::decode(global.kind, &global.body).map_err(|e| e.to_string())?;
        // The old shard whose part counts for a row that lives here.
        let old_of =
            |prefix: Prefix| placement.old_of(prefix).filter(|_| placement.new_of(prefix) == Some(self.number));
        let mut changed: Vec<u16> = Vec::new();
        match &mut record.entry {
            Entry::Onboard { prefix, shard, .. } => {
                *shard = placement.new_of(*prefix).ok_or("an onboarding of a corpus without a place")?;
                if *shard != self.shard.registry().place(placement.shards()) {
                    return Err(format!("prefix {prefix} is to go to shard {shard}, and the registry says another"));
                }
            }
            Entry::DisputeStep { dispute, rows, .. } => {
                *rows = 0;
                for (bit, event_id) in sides(&self.shard, *dispute)?.iter().enumerate() {
                    let Some(old) = old_of(event_id.prefix()) else { continue };
                    if self.plan.streams[usize::from(old)].copies[index].rows & (1 << bit) != 0 {
                        *rows |= 1 << bit;
                        changed.push(old);
                    }
                }
            }
            Entry::Reconcile { merges: planned, .. } => {
                let mut here: Vec<Merge> = merges(planned).collect();
                for (n, merge) in here.iter_mut().enumerate() {
                    let old = old_of(merge.alias.prefix());
                    let applied = old.map(|old| self.plan.streams[usize::from(old)].copies[index].applied.get(n));
                    merge.applied = applied.flatten().copied().unwrap_or(false);
                    changed.extend(old.filter(|_| merge.applied));
                }
                encoded = encode_merges(&here);
                *planned = &encoded;
            }
            _ => {}
        }
        // The time at which the old shards whose rows it changes had it, or else those that entries come from.
        let of_old = |old: u16| self.plan.streams[usize::from(old)].copies[index].at_us;
        let mut at_us = changed.iter().map(|old| of_old(*old)).max();
        if at_us.is_none() && self.number != 0 {
            at_us = placement.sources(self.number).map(of_old).max();
        }
        let at_us = at_us.unwrap_or_else(|| of_old(0));
        record.meta.timestamp_us = at_us.min(next_us.unwrap_or(i64::MAX)).max(self.shard.last_us());
        let what = record.entry.operation();
        let (position, log_offset) = self.append(&record).await.map_err(|reason| {
            let sequence = record.entry.global_sequence().unwrap_or(0);
            format!(
                "entry {sequence} of the global order, a {what}, can't be put between the entries of new shard {}: {reason}",
                self.number
            )
        })?;
        let copies = self.plan.streams.iter().map(|stream| &stream.copies[index]);
        self.carrying.moved_global(copies, &self.shard, &record, position, log_offset);
        self.globals += 1;
        Ok(())
    }

    /// Writes an entry of an old shard.
    async fn local(&mut self, old: usize, local: &Local) -> Result<(), String> {
        let number = self.number;
        let place = |reason: String| {
            let from = format!("the entry at log offset {} of old shard {old}", local.log_offset);
            format!("{from} can't be put into new shard {number}: {reason}")
        };
        let superblock = &self.plan.old[old];
        let bytes = self.windows[old].record(superblock.geometry, local).map_err(&place)?.to_vec();
        let (raw, _) = record::read(&bytes).map_err(|e| place(e.to_string()))?;
        let mut record = Record::decode(raw.kind, raw.body).map_err(|e| place(e.to_string()))?;
        self.next[old] += 1;
        self.seek(old);
        let encoded;
        let carry = self.carrying.carry(old, &record, &self.shard).map_err(&place)?;
        if let (Entry::Carry { claim_at, change, .. }, Some(carry)) = (&mut record.entry, &carry) {
            (*claim_at, *change, record.meta.rationale) = (carry.claim_at, &carry.change, &carry.rationale);
        }
        match &mut record.entry {
            Entry::RetentionDrop { dropped } => {
                let dropped = Dropped::decode(dropped)?;
                self.written.entries[old] += 1;
                return self.dropped(old, &dropped, record.meta).await;
            }
            Entry::User { uid, name } if self.shard.user(*uid) == Some(*name) => return Ok(()),
            Entry::Repair { cut_at, given_up_to, floors } | Entry::Restore { cut_at, given_up_to, floors } => {
                encoded = self.floors_here(old as u16, floors);
                *floors = &encoded;
                let is_new = self.repairs.insert((record.meta.timestamp_us, *cut_at, *given_up_to));
                // An earlier reshard may have given every shard its own.
                if encoded.is_empty() && !(is_new && self.has_repairs_of(old as u16)) {
                    return Ok(());
                }
            }
            _ => {}
        }
        if record.meta.idempotency_key != 0 && !self.keys.insert(KeyId::of(&record.meta).hash(secret(superblock))) {
            // On the old shards these were two keys. Of a retry of this entry it is known that its key was used.
            (record.meta.idempotency_key, record.meta.fingerprint) = (0, 0);
            let mut body = Vec::new();
            record.encode(&mut body);
            if is_single(raw.kind) {
                self.written.without_keys.push((local.home, raw.kind, raw.body.to_vec(), body));
            }
        }
        self.written.entries[old] += 1;
        let what = record.entry.operation();
        let (position, log_offset) = self.append(&record).await.map_err(|reason| {
            format!(
                "the {what} at log offset {} of old shard {old} can't be put into new shard {number}: {reason}; the times of \
                 the old shards say another order than what they decided",
                local.log_offset
            )
        })?;
        self.carrying.moved(old, local, &record, position, log_offset);
        Ok(())
    }

    /// An old shard has dropped quarters. It is told once all old shards have.
    async fn dropped(&mut self, old: usize, dropped: &Dropped, meta: Meta<'_>) -> Result<(), String> {
        let plan = self.plan;
        let (Some(beginning), Some(origin)) = (&plan.beginning, self.superblock.origin) else {
            return Err("a drop in a log that nothing was dropped from".to_owned());
        };
        self.dropped_to[old] = self.dropped_to[old].max(Some(dropped.seal.quarters.1));
        for index in self.shard.retention().seals.len()..beginning.seals_to(&self.dropped_to) {
            let previous = self.shard.retention().seals.last().map_or([0; 32], |seal| seal.hash);
            let seal = beginning.seal(index, &self.superblock, &plan.placement, previous, meta.timestamp_us);
            let gone_before_us = seal.quarters.1.end_us();
            let (start, checkpoint) = (origin.start.into(), origin.seal);
            let dropped = Dropped { seal, start, checkpoint, gone_before_us, kept: Vec::new() }.encode();
            self.append(&Record { meta, entry: Entry::RetentionDrop { dropped: &dropped } }).await?;
        }
        Ok(())
    }

    /// Whether repairs of an old shard are told here, even those that say nothing of a corpus: their time counts, too.
    fn has_repairs_of(&self, old: u16) -> bool {
        let placement = &self.plan.placement;
        match placement.has_corpora(old) {
            true => placement.draws(self.number, old),
            false => placement.home_of(0, old) == self.number,
        }
    }

    /// The floors of a repair that count for corpora of this shard: those of corpora that lived where it was done. One that is
    /// not onboarded yet may come to live anywhere.
    fn floors_here(&self, old: u16, encoded: &[u8]) -> Vec<u8> {
        let placement = &self.plan.placement;
        let is_here = |prefix: Prefix| match (placement.old_of(prefix), placement.new_of(prefix)) {
            (Some(lived), Some(lives)) => lived == old && lives == self.number,
            _ => true,
        };
        encode_floors(&floors(encoded).filter(|(prefix, _)| is_here(*prefix)).collect::<Vec<_>>())
    }

    /// The last entry says where the others come from.
    async fn reshard(&mut self) -> Result<(), String> {
        let plan = self.plan;
        let mut from = Vec::new();
        for (stream, (entries, shard)) in plan.streams.iter().zip(self.written.entries.iter().zip(0..)) {
            let last_position = stream.report.walked.as_ref().map_or(0, |walked| walked.end.next_position - 1);
            if *entries > 0 {
                from.push(ReshardSource { shard, last_position, entries: *entries });
            }
        }
        let sources = encode_sources(&from);
        let first = &plan.old[0];
        let entry = Entry::Reshard {
            ledger: first.ledger,
            shards: first.shard_count,
            at_us: plan.now_us.max(0),
            sources: &sources,
        };
        // No corpus is to see a time before one that its old shard had.
        let meta = meta(plan.last_us.max(self.shard.last_us()), own_principal());
        self.append(&Record { meta, entry }).await.map(|_| ())
    }

    /// Gives the record's position and log offset.
    async fn append(&mut self, record: &Record<'_>) -> Result<(u64, u64), String> {
        let last_us = self.shard.last_us();
        // A quarter is dropped by whole segments. What is written makes room ahead.
        if last_us > 0 && Quarter::of(last_us) != Quarter::of(record.meta.timestamp_us) {
            self.drain().await?;
            self.writer.end_segment();
        } else if self.writer.room_bytes() < self.room_bytes_min {
            self.drain().await?;
        }
        let (position, log_offset) = self.writer.append(record);
        self.shard.apply(position, log_offset, record)?;
        Ok((position, log_offset))
    }

    async fn drain(&mut self) -> Result<(), String> {
        work_off(&mut self.writer, self.storage).await
    }
}

/// What keys are told apart by; see [`super::SECRET_BYTES`].
fn secret(superblock: &Superblock) -> u64 {
    u64::from_le_bytes(superblock.key[..super::SECRET_BYTES].try_into().expect("a key has 32 bytes"))
}

/// What the entries of the old ledger add up to, once those without their keys are taken for those with them.
pub fn due_digests(plan: &Plan, written: &[Written]) -> BTreeMap<u16, Digest> {
    let mut due = super::compare::digests(&plan.streams);
    for (home, kind, old, new) in written.iter().flat_map(|written| &written.without_keys) {
        due.entry(*home).or_default().replace(*kind, old, new);
    }
    due
}
