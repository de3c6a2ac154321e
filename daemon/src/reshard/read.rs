//! A ledger as a reshard reads it: for each shard the entries of its own, in their order, and its own part of each entry
//! that every shard keeps.

use crate::verify::{self, ShardReport};
use claim_engine::corpus::Prefix;
use claim_engine::dispute::DisputeId;
use claim_engine::id::EventId;
use claim_engine::log::batch::BATCH_HEADER_BYTES;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{ClaimEntry, Entry, Record, merges};
use claim_engine::log::io::{Io, IoDone};
use claim_engine::log::record::{self, RawRecord};
use claim_engine::log::superblock::Superblock;
use claim_engine::log::verify::{Standing, state_at_start};
use claim_engine::log::writer::LogWriter;
use claim_engine::mutant::Mutation;
use claim_engine::retention::Dropped;
use claim_engine::shard::Shard;
use indicatif::ProgressBar;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// An entry that one shard alone has.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    /// Its time.
    pub at_us: i64,
    /// How much of the global order its shard had before it, as far as shard 0 still has that.
    pub globals: u64,
    /// Where its record lies.
    pub log_offset: u64,
    /// Its position.
    pub position: u64,
    /// The record's bytes there.
    pub bytes: u32,
    /// The prefix of the corpus that it goes with; 0: none.
    pub home: u16,
    /// It concerns every new shard.
    pub is_for_all: bool,
}

/// A shard's own part of an entry that every shard keeps.
#[derive(Debug)]
pub struct Copy {
    /// When the shard logged it.
    pub at_us: i64,
    /// Where.
    pub log_offset: u64,
    /// Its position.
    pub position: u64,
    /// With a dispute's step: the rows of this shard that it changed, a bit each.
    pub rows: u8,
    /// With merges: which of them the shard applied.
    pub applied: Vec<bool>,
    /// By prefix of the rows that it is about: how many of the shard's own entries have to come before it.
    pub needs: Vec<(Prefix, usize)>,
}

/// An entry that every shard keeps, as shard 0 has it.
#[derive(Debug)]
pub struct Global {
    /// The record's kind.
    pub kind: u16,
    /// The record's body.
    pub body: Vec<u8>,
}

/// A count of entries, and a sum of hashes of them: whichever shards they lie on, and in whatever order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many.
    pub entries: u64,
    sum: u128,
}

impl Digest {
    /// Takes an entry in.
    pub fn add(&mut self, kind: u16, body: &[u8]) {
        self.entries += 1;
        self.sum = self.sum.wrapping_add(Digest::hash(kind, body));
    }

    /// Takes one entry for another.
    pub fn replace(&mut self, kind: u16, old: &[u8], new: &[u8]) {
        self.sum = self.sum.wrapping_sub(Digest::hash(kind, old)).wrapping_add(Digest::hash(kind, new));
    }

    /// Takes in what others add up to.
    pub fn merge(&mut self, other: &Digest) {
        self.entries += other.entries;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    fn hash(kind: u16, body: &[u8]) -> u128 {
        xxh3_128(body) ^ u128::from(kind)
    }
}

/// One shard of a ledger.
#[derive(Debug)]
pub struct Stream {
    /// What its verification found.
    pub report: ShardReport,
    /// Its state.
    pub shard: Shard,
    /// Its own entries, in their order.
    pub locals: Vec<Local>,
    /// Its part of the global order.
    pub copies: Vec<Copy>,
    /// The global order, where it was to be kept.
    pub globals: Vec<Global>,
    /// By corpus: claims and what happened to them, alarms, refusals.
    pub digests: BTreeMap<u16, Digest>,
    /// How much of the global order stood before shard 0's log.
    pub globals_before: u64,
    /// Its state where its log begins.
    pub start: Option<Shard>,
    /// The time of its first entry.
    pub first_us: Option<i64>,
    /// An entry of the global order that shard 0 has dropped, and that is about rows which are here.
    pub without_global: Option<u64>,
    /// Rows that were logged again.
    pub carried: BTreeSet<EventId>,
    /// Disputes in quarantine of which a row here is not flagged, where shard 0's log begins.
    pub unflagged: Vec<DisputeId>,
    /// Rows with entries behind their claim, and how many of the shard's own there were up to the last of them.
    touched: HashMap<EventId, usize>,
}

/// Entries that a ledger has once, on whichever shard: claims and what happened to them, alarms, refusals.
pub fn is_single(kind: u16) -> bool {
    (1..=6).contains(&kind)
}

/// Reads a shard's file, verifies it, and keeps what a reshard goes by. `globals_before` is how much of the global order stood before
/// shard 0's log; `None` for shard 0 itself. The error is a sentence; damage is in the report.
pub fn read_shard(
    path: &Path,
    superblock: &Superblock,
    globals_before: Option<u64>,
    bar: &ProgressBar,
) -> Result<Stream, String> {
    // What is damaged there is in the report.
    let state = || -> Result<Shard, String> {
        let start = state_at_start(&mut verify::open(path)?, superblock);
        Ok(start.unwrap_or_else(|_| Shard::new(superblock)).without_keys())
    };
    let (start, shard) = (state()?, state()?);
    let keeps_globals = globals_before.is_none();
    let globals_before = globals_before.unwrap_or(start.globals_applied());
    let mut taking = Taking {
        unflagged: start.disputes().unflagged().collect(),
        first_us: None,
        without_global: None,
        carried: BTreeSet::new(),
        globals_before,
        shard,
        locals: Vec::new(),
        copies: Vec::new(),
        globals: Vec::new(),
        digests: BTreeMap::new(),
        touched: HashMap::new(),
        keeps_globals,
        failed: None,
    };
    let each = Box::new(|raw: &RawRecord<'_>, log_offset: u64, standing: Standing| {
        if standing == Standing::Proven && taking.failed.is_none() {
            let taken = taking.take(raw, log_offset);
            taking.failed = taken.err().map(|reason| format!("position {}: {reason}", raw.position));
        }
    });
    let report = verify::verify_shard(path, superblock.shard, Some(superblock), false, bar, Some(each));
    let report = report.map_err(|e| verify::place(path, &e))?;
    let is_damaged = report.findings.iter().any(|finding| finding.is_damage);
    if let Some(reason) = taking.failed.filter(|_| !is_damaged) {
        return Err(format!("{}: {reason}", path.display()));
    }
    let Taking {
        shard, locals, copies, globals, digests, touched, first_us, without_global, carried, unflagged, ..
    } = taking;
    Ok(Stream {
        report,
        shard,
        locals,
        copies,
        globals,
        digests,
        globals_before,
        start: Some(start),
        first_us,
        without_global,
        carried,
        unflagged,
        touched,
    })
}

struct Taking {
    shard: Shard,
    locals: Vec<Local>,
    copies: Vec<Copy>,
    globals: Vec<Global>,
    digests: BTreeMap<u16, Digest>,
    touched: HashMap<EventId, usize>,
    first_us: Option<i64>,
    without_global: Option<u64>,
    carried: BTreeSet<EventId>,
    unflagged: Vec<DisputeId>,
    globals_before: u64,
    keeps_globals: bool,
    failed: Option<String>,
}

impl Taking {
    fn take(&mut self, raw: &RawRecord<'_>, log_offset: u64) -> Result<(), String> {
        let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
        self.first_us.get_or_insert(record.meta.timestamp_us);
        if let Some(sequence) = record.entry.global_sequence() {
            let copy = copy_of(&record, &self.shard, &self.locals, &self.touched)?;
            if sequence > self.globals_before {
                self.copies.push(Copy { log_offset, position: raw.position, ..copy });
            } else if !copy.needs.is_empty() {
                self.without_global.get_or_insert(sequence);
            }
            if self.keeps_globals {
                self.globals.push(Global { kind: raw.kind, body: raw.body.to_vec() });
            }
        } else if let Some(home) = home(&record)? {
            if is_single(raw.kind) {
                self.digests.entry(home).or_default().add(raw.kind, raw.body);
            }
            self.locals.push(Local {
                at_us: record.meta.timestamp_us,
                globals: self.shard.globals_applied().saturating_sub(self.globals_before),
                log_offset,
                position: raw.position,
                bytes: record::padded(raw.body.len()) as u32,
                home,
                is_for_all: matches!(
                    record.entry,
                    Entry::User { .. } | Entry::Repair { .. } | Entry::Restore { .. } | Entry::RetentionDrop { .. }
                ),
            });
            if let Entry::Reference { event_id, .. }
            | Entry::Tombstone { event_id, .. }
            | Entry::Reactivate { event_id }
            | Entry::Carry { claim: ClaimEntry { event_id, .. }, .. } = record.entry
            {
                self.touched.insert(event_id, self.locals.len());
            }
            match record.entry {
                Entry::Carry { claim, .. } => drop(self.carried.insert(claim.event_id)),
                Entry::RetentionDrop { dropped } if !Dropped::decode(dropped)?.kept.is_empty() => {
                    let what = "a drop of an earlier build, which counts what is left itself: the ledger can be resharded once the \
                                quarter of this entry is dropped";
                    return Err(what.to_owned());
                }
                _ => {}
            }
        }
        self.shard.apply(raw.position, log_offset, &record)?;
        if record.entry.global_sequence() == Some(self.globals_before) {
            self.unflagged = self.shard.disputes().unflagged().collect();
        }
        Ok(())
    }
}

/// The prefix of the corpus that an entry goes with, 0 for none; `None` for what stays behind: the runs of the old ledger.
fn home(record: &Record<'_>) -> Result<Option<u16>, String> {
    Ok(Some(match &record.entry {
        Entry::Claim(claim) | Entry::Carry { claim, .. } => claim.event_id.prefix().get(),
        // References are logged, and their keys are kept, where the row lives that they name.
        Entry::Reference { event_id, .. } | Entry::Tombstone { event_id, .. } | Entry::Reactivate { event_id } => {
            event_id.prefix().get()
        }
        Entry::Alarm { .. } | Entry::Forbidden { .. } => record.meta.corpus.map_or(0, Prefix::get),
        Entry::User { .. }
        | Entry::Repair { .. }
        | Entry::Restore { .. }
        | Entry::Reshard { .. }
        | Entry::RetentionDrop { .. } => 0,
        Entry::Recovery { .. } => return Ok(None),
        other => return Err(format!("this build does not know how to reshard a {}", other.operation())),
    }))
}

fn copy_of(
    record: &Record<'_>,
    shard: &Shard,
    locals: &[Local],
    touched: &HashMap<EventId, usize>,
) -> Result<Copy, String> {
    let at_us = record.meta.timestamp_us;
    let mut copy = Copy { at_us, log_offset: 0, position: 0, rows: 0, applied: Vec::new(), needs: Vec::new() };
    let mut concerned: Vec<EventId> = Vec::new();
    match &record.entry {
        Entry::Dispute { sides, .. } => concerned.extend(sides.ids()),
        Entry::DisputeStep { dispute, rows, .. } => {
            copy.rows = *rows;
            let ids = sides(shard, *dispute)?;
            concerned.extend(ids.iter().enumerate().filter(|(bit, _)| rows & (1 << bit) != 0).map(|(_, id)| id));
        }
        Entry::Reconcile { merges: planned, .. } => {
            copy.applied = merges(planned).map(|merge| merge.applied).collect();
            concerned.extend(merges(planned).filter(|merge| merge.applied).map(|merge| merge.alias));
        }
        _ => {}
    }
    for event_id in concerned {
        let Some(found) = shard.rows().get(event_id).map_err(|unread| unread.to_string())? else { continue };
        let claimed = locals.partition_point(|local| local.at_us <= found.claim_timestamp_us);
        let needs = claimed.max(touched.get(&event_id).copied().unwrap_or(0));
        copy.needs.push((event_id.prefix(), needs));
    }
    Ok(copy)
}

/// The rows of a dispute.
pub fn sides(shard: &Shard, dispute: DisputeId) -> Result<Vec<EventId>, String> {
    let found = shard.disputes().get(dispute).ok_or_else(|| format!("there is no dispute {dispute}"))?;
    Ok(found.sides.ids().to_vec())
}

impl Stream {
    /// Lends the report out, to be compared with the other shards'.
    pub fn take_report(&mut self) -> ShardReport {
        let (shard, path) = (self.report.shard, self.report.path.clone());
        std::mem::replace(&mut self.report, ShardReport::new(&path, shard, false))
    }

    /// Has a shard that stopped before it had all of the global order follow the rest, as it would at its next start: what
    /// that means for its rows is decided by its state. Gives the number of entries that it followed.
    pub fn catch_up(&mut self, superblock: &Superblock, globals: &[Global]) -> Result<u64, String> {
        let globals_before = self.globals_before;
        if self.shard.globals_applied() < globals_before {
            return Err(format!(
                "shard {} lacks entries of the global order up to {globals_before}, which shard 0 has dropped: restore the ledger from \
                 a backup that has them",
                superblock.shard
            ));
        }
        // Told apart where the beginning is looked at.
        if self.start.as_ref().map_or(0, Shard::globals_applied) > globals_before {
            return Ok(0);
        }
        let missing = globals.get(self.copies.len()..).unwrap_or_default();
        let Some(walked) = self.report.walked.as_ref().filter(|_| !missing.is_empty()) else { return Ok(0) };
        // Nothing of this is written: the writer gives each record its place, and takes it for durable.
        let end = LogEnd { segments_prepared: u32::MAX.into(), ..walked.end };
        let mut writer = LogWriter::new(superblock, end, None, Mutation::NONE);
        for global in missing {
            let mut record = Record::decode(global.kind, &global.body).map_err(|e| e.to_string())?;
            record.meta.timestamp_us = record.meta.timestamp_us.max(self.shard.last_us());
            self.shard.append_global(record, &mut writer)?;
            while let Some(Io::Write { number, batch, .. }) = writer.next_io() {
                let records = &batch[BATCH_HEADER_BYTES..];
                // A batch without records ends its segment.
                if records.first_chunk().is_some_and(|checksum| *checksum != [0; 8]) {
                    let (raw, _) = record::read(records).map_err(|e| e.to_string())?;
                    let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
                    self.copies.push(copy_of(&record, &self.shard, &self.locals, &self.touched)?);
                }
                writer.complete(IoDone::Write { number, batch, result: Ok(()) }, 0);
            }
        }
        match self.copies.len() == globals.len() {
            true => Ok(missing.len() as u64),
            false => Err(format!("shard {} does not follow the global order to its end", superblock.shard)),
        }
    }
}
