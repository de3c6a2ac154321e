//! The records of one shard: their checksums, whether they apply, and what they add up to.

use super::globals::{GlobalCopy, global_copy};
use super::indexes::{Compared, Gathered, Indexes, ReadAt};
use super::keys::Keys;
use super::salvage::salvage;
use super::{Finding, Hole, ROWS_NAMED_MAX, RowConcerned, Step, Structure, event_id};
use crate::corpus::Prefix;
use crate::log::batch;
use crate::log::entry::{Entry, Record};
use crate::log::record;
use crate::log::recovery::BatchPlace;
use crate::log::superblock::Superblock;
use crate::retention::verify_seals;
use crate::sealed::run::HashEntry;
use crate::sealed::summary::BatchStart;
use crate::sealed::{Checkpoint, SealError};
use crate::shard::Shard;
use crate::shard::keys::KeyId;
use crate::shard::rows::{Recount, SegmentRows};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Chained from the first batch on.
    Proven,
    /// In a batch that verifies, beyond a hole.
    BeyondHole,
    /// In a hole: its own checksum matches, its batch's hash does not.
    InHole,
}

/// Looks into the batches of one shard.
pub struct Content<'a> {
    superblock: &'a Superblock,
    /// Absent once something is missing or does not apply: nothing later could be judged by it.
    shard: Option<Shard>,
    proven: Option<Shard>,
    each_record: Option<EachRecord<'a>>,
    /// By their place in the global order.
    globals: BTreeMap<u64, GlobalCopy>,
    /// Where the state machine stopped: log end before the batch that it could not take.
    stopped_at: Option<u64>,
    indexes: Indexes<'a>,
    /// Of segments whose rows are in memory.
    gathered: BTreeMap<u64, Gathered>,
    keys: Keys,
    /// Absent once something of it could not be read.
    recount: Option<Recount>,
    /// What is wrong with indexes further on: damage to their batches is found by the walk, and only else told of them.
    wrong_ahead: Vec<(Checkpoint, Finding)>,
    /// The most rows that were in memory at once.
    rows_in_memory_max: u64,
    /// The last batch that was taken.
    walked_to: u64,
    secret: u64,
    findings: Vec<Finding>,
}

/// Hears of every record: its place, log offset and standing. What lies in a hole may be heard of twice.
pub type EachRecord<'a> = Box<dyn FnMut(&record::RawRecord<'_>, u64, Standing) + Send + 'a>;

impl std::fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("findings", &self.findings).finish_non_exhaustive()
    }
}

impl<'a> Content<'a> {
    /// For one shard's steps; see [`state_at_start`](super::state_at_start). `read` reads the same file.
    pub fn new(superblock: &'a Superblock, start: Shard, read: ReadAt<'a>) -> Content<'a> {
        Content {
            superblock,
            shard: Some(start.without_keys()),
            proven: None,
            each_record: None,
            globals: BTreeMap::new(),
            stopped_at: None,
            indexes: Indexes::new(superblock, read),
            gathered: BTreeMap::new(),
            keys: Keys::new(superblock.geometry),
            recount: Some(Recount::default()),
            wrong_ahead: Vec::new(),
            rows_in_memory_max: 0,
            walked_to: 0,
            secret: u64::from_le_bytes(superblock.key[..8].try_into().expect("a key has 32 bytes")),
            findings: Vec::new(),
        }
    }

    /// Ends the look at the records, with what can only be said of all of them: that no key has had two effects. Fails where the
    /// file could not be read.
    pub fn finish(&mut self) -> io::Result<()> {
        self.count_rows();
        for (segment, gathered) in std::mem::take(&mut self.gathered) {
            self.keys.in_memory(segment, gathered.keys);
        }
        let Content { keys, indexes, findings, superblock, .. } = self;
        keys.repeated(&|at, bytes| indexes.read(at, bytes), |first, second| {
            let what = format!("the entries at positions {first} and {second} have the same idempotency key");
            let mut finding = Finding::damage(Structure::Index, superblock.shard, 0, 0, what);
            finding.positions = Some((first, second));
            findings.push(finding);
        })?;
        self.check_totals();
        self.check_seals();
        self.indexes.take_failure().map_or(Ok(()), Err)
    }

    /// The seals of dropped quarters are what they were made as, and the log begins where the last drop says.
    fn check_seals(&mut self) {
        let Some(shard) = &self.shard else { return };
        let checked = verify_seals(&shard.retention().seals, &self.superblock.key).and_then(|()| {
            let begins_at = self.superblock.first_segment();
            let dropped_to = shard.rows().catalog().first();
            match begins_at <= dropped_to {
                true => Ok(()),
                false => Err(format!(
                    "the log begins with segment {begins_at}, and only what is before segment {dropped_to} was dropped"
                )),
            }
        });
        if let Err(what) = checked {
            self.findings.push(Finding::damage(Structure::Seal, self.superblock.shard, 0, 0, what));
        }
    }

    /// The control totals that are kept with the state equal a count of all rows.
    fn check_totals(&mut self) {
        let Some(shard) = &self.shard else { return };
        let Some(mut recount) = self.recount.take() else { return };
        let is_counted =
            shard.rows().segments_in_memory().try_for_each(|rows| count(&mut recount, &self.indexes, shard, rows));
        if let Err(what) = is_counted {
            return self.findings.push(uncounted(self.superblock, &what));
        }
        for corpus in shard.registry().corpora() {
            let carried = shard.rows().only_carried().map(|row| row.claimed.event_id);
            let carried = carried.filter(|event_id| event_id.prefix() == corpus.prefix);
            let found: Result<Vec<_>, _> =
                carried.map(|event_id| self.indexes.ask(shard, || shard.rows().get(event_id))).collect();
            let found = match found {
                Ok(found) => found.into_iter(),
                Err(what) => return self.findings.push(uncounted(self.superblock, &what)),
            };
            let carried: Vec<_> = found.flatten().map(|row| (row.quarter, row.state)).collect();
            let counted = shard.rows().counted_anew(&recount, corpus.prefix, &carried);
            let kept = shard.rows().totals(corpus.prefix);
            if kept != counted {
                let what =
                    format!("the control totals of corpus {} are {kept:?}, and its rows {counted:?}", corpus.name);
                self.findings.push(Finding::damage(Structure::Index, self.superblock.shard, 0, 0, what));
            }
        }
    }

    /// Lets somebody hear of every record.
    pub fn on_record(mut self, each: EachRecord<'a>) -> Content<'a> {
        self.each_record = Some(each);
        self
    }

    /// What was found so far, in order.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Takes the findings out.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Takes out the entries that every shard keeps, as this one has them.
    pub fn take_globals(&mut self) -> BTreeMap<u64, GlobalCopy> {
        std::mem::take(&mut self.globals)
    }

    /// The log offset of the first batch with a record that breaks a rule, if there is one.
    pub fn stopped_at(&self) -> Option<u64> {
        self.stopped_at
    }

    /// The state machine at the end of what is proven.
    pub fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref().or(self.proven.as_ref())
    }

    /// Takes a step of [`walk`](super::walk).
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Batch(place, bytes) => self.batch(&place, &bytes),
            Step::Hole(hole) => self.hole(&hole),
            Step::Finding(finding) => self.findings.push(finding),
        }
    }

    fn stop(&mut self) {
        if let Some(shard) = self.shard.take() {
            self.proven = Some(shard);
        }
    }

    /// The most rows that were in memory at once.
    pub fn rows_in_memory_max(&self) -> u64 {
        self.rows_in_memory_max
    }

    fn count_rows(&mut self) {
        let now = self.shard.as_ref().map_or(0, |shard| shard.rows().count_in_memory());
        self.rows_in_memory_max = self.rows_in_memory_max.max(now);
    }

    /// Has the rows of full segments leave memory, the oldest first, as far as it is known where their indexes lie.
    fn release(&mut self) {
        self.count_rows();
        while let Some(shard) = &mut self.shard
            && let Some(rows) = shard.rows().frozen().front().map(Arc::clone)
        {
            let seals = self.indexes.take_seals(rows.number, shard.rows().frozen().len());
            if seals.is_empty() {
                return;
            }
            let gathered = &*self.gathered.entry(rows.number).or_default();
            let compare = |seal| (seal, self.indexes.compare(shard, &rows, gathered, seal));
            let compared: Vec<_> = seals.into_iter().map(compare).collect();
            let (mut same, mut later) = (None, compared.len());
            for (seal, compared) in compared {
                later -= 1;
                // The superblock leads to the last one, if to any.
                let is_used = later == 0 && self.superblock.checkpoint.is_some();
                match compared {
                    Compared::Same(sealed) => same = same.or(Some(sealed)),
                    Compared::Unreadable(error) => self.wrong(rows.number, seal, is_used, Some(&error)),
                    Compared::Different => self.wrong(rows.number, seal, is_used, None),
                }
            }
            let Some(shard) = &mut self.shard else { return };
            if let Some(mut recount) = self.recount.take() {
                match count(&mut recount, &self.indexes, shard, &rows) {
                    Ok(()) => self.recount = Some(recount),
                    Err(what) => self.findings.push(uncounted(self.superblock, &what)),
                }
            }
            let sealed = match same {
                Some(sealed) => {
                    self.keys.sealed(&sealed);
                    self.gathered.remove(&rows.number);
                    *sealed
                }
                None => {
                    let gathered = self.gathered.entry(rows.number).or_default();
                    let made = self.indexes.make(shard, &rows, gathered);
                    // Its keys are compared from here.
                    *gathered = Gathered { keys: std::mem::take(&mut gathered.keys), ..Gathered::default() };
                    made
                }
            };
            drop(rows);
            if let Some(mut rows) = shard.sealed(sealed) {
                rows.clear();
                shard.reuse(rows);
            }
        }
    }

    /// The index of a segment is not what its records make, or can't be read. It is no evidence about them.
    fn wrong(&mut self, segment: u64, seal: Checkpoint, is_used: bool, unreadable: Option<&SealError>) {
        let (file_offset, what) = match unreadable {
            // The whole look at the file fails.
            Some(SealError::Read { .. }) => return,
            Some(error @ SealError::Damaged { file_offset, .. }) => {
                (*file_offset, format!("can't be read: {error}, in a batch that does"))
            }
            Some(error @ SealError::Segments { file_offset, .. }) => {
                (*file_offset, format!("is of another log: {error}"))
            }
            None => {
                let file_offset = self.superblock.geometry.file_offset(seal.log_offset);
                (file_offset, "is not what the segment's records make".to_owned())
            }
        };
        let harm = match is_used {
            true => {
                "what is looked up by it may be wrong, or fail. A ledger that is restored from a backup of this one makes it anew"
            }
            false => "nothing is looked up by it: the superblock does not lead to it",
        };
        let number = seal.number;
        let what = format!(
            "the index of segment {segment}, which batch {number} seals, {what}: the records are not concerned, and {harm}"
        );
        let finding = Finding::damage(Structure::Index, self.superblock.shard, file_offset, 0, what);
        let finding = Finding { is_damage: false, segment: Some(segment), batches: Some((number, number)), ..finding };
        match number <= self.walked_to {
            true => self.findings.push(finding),
            false => self.wrong_ahead.push((seal, finding)),
        }
    }

    fn batch(&mut self, place: &BatchPlace, bytes: &[u8]) {
        let range = batch::records(bytes, &place.header);
        let BatchPlace { header, log_offset, .. } = *place;
        self.walked_to = header.number;
        let is_reached = |(seal, _): &mut (Checkpoint, Finding)| seal.number <= header.number;
        self.findings.extend(self.wrong_ahead.extract_if(.., is_reached).map(|(_, finding)| finding));
        if header.is_sealing {
            if let Some(shard) = &mut self.shard
                && self.indexes.met(place, bytes)
            {
                // No record may have come yet in this segment.
                shard.enter_segment(log_offset);
                self.release();
                self.indexes.forget_recent();
            }
            return;
        }
        if self.shard.is_some() {
            let gathered = self.gathered.entry(self.superblock.geometry.segment_of(log_offset)).or_default();
            let (number, first_position) = (header.number, header.first_position);
            gathered.starts.push(BatchStart { number, first_position, log_offset });
        }
        let mut at = range.start;
        for i in 0..place.header.record_count {
            let position = place.header.first_position + u64::from(i);
            let log_offset = place.log_offset + at as u64;
            match record::read(&bytes[at..range.end]) {
                Ok((raw, length)) if raw.position == position => {
                    self.record(place, &raw, log_offset);
                    at += length;
                }
                Ok((raw, _)) => {
                    let what =
                        format!("the record says that its position is {}, its place says {position}", raw.position);
                    return self.broken(Structure::Record, place, position, log_offset, what);
                }
                Err(error) => return self.broken(Structure::Record, place, position, log_offset, error.to_string()),
            }
        }
        if at != range.end {
            let log_offset = place.log_offset + at as u64;
            let what = "the batch has bytes behind its last record".to_owned();
            self.broken(Structure::Record, place, place.header.next_position(), log_offset, what);
        }
    }

    fn record(&mut self, place: &BatchPlace, raw: &record::RawRecord<'_>, log_offset: u64) {
        let standing = if self.shard.is_some() { Standing::Proven } else { Standing::BeyondHole };
        if let Some(each) = &mut self.each_record {
            each(raw, log_offset, standing);
        }
        let record = match Record::decode(raw.kind, raw.body) {
            Ok(record) => record,
            Err(error) => {
                return self.broken(Structure::Record, place, raw.position, log_offset, error.to_string());
            }
        };
        if let Some(sequence) = record.entry.global_sequence() {
            self.globals.insert(sequence, global_copy(raw.kind, &record));
        }
        let Some(shard) = &mut self.shard else { return };
        let segment = shard.rows().segment();
        let at_hand = self.indexes.ask(shard, || shard.at_hand(&record.entry));
        let mut result = at_hand.and_then(|()| shard.apply(raw.position, log_offset, &record));
        if let (Ok(()), Entry::Claim(claim)) = (&result, &record.entry) {
            let corpus = shard.registry().of_prefix(claim.event_id.prefix());
            if corpus.is_none_or(|corpus| corpus.shard != self.superblock.shard) {
                result =
                    Err(format!("the claim of {} is of a corpus that does not live on this shard", claim.event_id));
            }
        }
        let meta = &record.meta;
        let is_minting = matches!(record.entry, Entry::PrefixAllocation { .. });
        // The key of a global entry counts at shard 0, where the request was decided.
        let is_copy = record.entry.global_sequence().is_some() && self.superblock.shard != 0;
        if meta.idempotency_key != 0 && !is_minting && !is_copy {
            let id = KeyId::new(meta.corpus.map_or(0, Prefix::get), meta.idempotency_key, meta.item);
            let geometry = self.superblock.geometry;
            let number = geometry.segment_of(log_offset);
            let gathered = self.gathered.entry(number).or_default();
            let offset = (log_offset - geometry.segment_start(number)) as u32;
            gathered.keys.push(HashEntry { hash: id.hash(self.secret), offset });
            if gathered.key_times_ms.last() != Some(&id.ms()) {
                gathered.key_times_ms.push(id.ms());
            }
        }
        // Nobody asks this shard for them: they are with the others' to be compared.
        shard.forget_globals(shard.globals_applied());
        let is_other_segment = shard.rows().segment() != segment;
        match result {
            Ok(()) if is_other_segment => self.release(),
            Ok(()) => {}
            Err(reason) => self.broken(Structure::Index, place, raw.position, log_offset, reason),
        }
    }

    /// A record in a batch that verifies: written by something else than this state machine.
    fn broken(&mut self, structure: Structure, place: &BatchPlace, position: u64, log_offset: u64, what: String) {
        let geometry = self.superblock.geometry;
        if self.stopped_at.is_none() && self.shard.is_some() {
            self.stopped_at = Some(place.log_offset);
        }
        self.stop();
        let mut finding = Finding::damage(structure, self.superblock.shard, geometry.file_offset(log_offset), 0, what);
        finding.segment = Some(geometry.segment_of(log_offset));
        finding.batches = Some((place.header.number, place.header.number));
        finding.positions = Some((position, position));
        self.findings.push(finding);
    }

    fn hole(&mut self, hole: &Hole) {
        let geometry = self.superblock.geometry;
        let positions = hole.before.next_position..hole.resume.header.first_position;
        let salvaged = salvage(hole, &positions);
        let mut finding = Finding::damage(
            Structure::Batch,
            self.superblock.shard,
            geometry.file_offset(hole.before.next_batch_at),
            hole.resume.log_offset - hole.before.next_batch_at,
            String::new(),
        );
        finding.segment = Some(geometry.segment_of(hole.before.next_batch_at));
        finding.batches = Some((hole.before.next_number, hole.resume.header.number - 1));
        if !positions.is_empty() {
            finding.positions = Some((positions.start, positions.end - 1));
        }
        let mut intact = 0;
        for found in salvaged.values() {
            let raw = record::RawRecord { position: found.position, kind: found.kind, body: &found.body };
            let Ok(record) = Record::decode(raw.kind, raw.body) else { continue };
            if found.is_intact {
                intact += 1;
                if let Some(each) = &mut self.each_record {
                    each(&raw, found.log_offset, Standing::InHole);
                }
            }
            if finding.rows.len() < ROWS_NAMED_MAX {
                finding.rows.push(RowConcerned {
                    position: found.position,
                    operation: record.entry.operation(),
                    event_id: event_id(&record.entry),
                    is_intact: found.is_intact,
                });
            } else {
                finding.rows_more += 1;
            }
        }
        let (first, last) = (hole.before.next_number, hole.resume.header.number - 1);
        let batches = if first == last { format!("batch {first}") } else { format!("batches {first} to {last}") };
        let records = positions.end.saturating_sub(positions.start);
        finding.what = format!(
            "{batches} can't be proven ({:?}), and batch {} at file offset {} goes on behind: {}",
            hole.here,
            hole.resume.header.number,
            geometry.file_offset(hole.resume.log_offset),
            match records {
                0 => "no positions are concerned".to_owned(),
                _ => format!(
                    "positions {} to {}; {intact} of {records} records verify by their own checksums",
                    positions.start,
                    positions.end - 1
                ),
            }
        );
        self.findings.push(finding);
        self.stop();
    }
}

/// Takes what became of rows in a segment in memory into a count. The error says what of it can't be read.
fn count(recount: &mut Recount, indexes: &Indexes<'_>, shard: &Shard, rows: &SegmentRows) -> Result<(), String> {
    for event_id in shard.rows().changed_in(rows) {
        if let Some((quarter, was, is)) = indexes.ask(shard, || shard.rows().change_of(rows, event_id))? {
            recount.changed(event_id.prefix(), quarter, was, is);
        }
    }
    Ok(())
}

fn uncounted(superblock: &Superblock, what: &str) -> Finding {
    let what = format!("the control totals can't be counted anew: {what}");
    Finding::damage(Structure::Index, superblock.shard, 0, 0, what)
}
