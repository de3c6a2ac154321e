//! Verification: reads every byte of a ledger file once, from front to back, and says what in it is not as it must be.
//!
//! Two parts that may run in two threads. [`walk`] goes over the file: superblock copies, segment headers, batches with
//! their hashes and chain, and the space that no batch takes. What it meets it hands out as [`Step`]s; [`Content`] takes
//! them and looks into the records: checksums, and whether they apply to the state machine, which is what every index is
//! made of. Unlike recovery neither stops at the first damage: after a hole the walk goes on at the next batch that
//! verifies.

use super::batch::{self, BatchHeader, Found, is_zero};
use super::entry::{self, Entry, Merge, Record, encode_merges};
use super::layout::{
    BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES, RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES, SUPERBLOCK_AREA_BYTES,
};
use super::record::{self, RECORD_HEADER_BYTES};
use super::recovery::{self, BatchPlace, Beyond, Here, Verdict, verdict};
use super::superblock::{self, COPIES, Superblock, is_segment_header};
use super::writer::LogEnd;
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::mutant::Mutation;
use crate::shard::Shard;
use crate::shard::keys::KeyId;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Space that holds no batch is looked at in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
/// Rows that a finding names, at most; it counts the others.
pub const ROWS_NAMED_MAX: usize = 1_000;
/// Batches beyond a hole that are remembered until one shows which of them belong to the log.
const CANDIDATES_MAX: usize = 64;
/// Pieces of a hole in which records are looked for, each as long as the largest batch.
const HOLE_PIECES_MAX: usize = 64;
/// Beside a daemon, a place that does not verify is read again this often before it counts as damaged: what was read may
/// have been older than what was read after it.
const REREADS_MAX: usize = 5;

/// Where the bytes come from: a file, read ahead, or a slice.
pub trait Source {
    /// Length of the file in bytes, when it was opened.
    fn file_bytes(&self) -> u64;

    /// Up to `bytes` bytes from `offset`, which is a multiple of 4,096; fewer only where the file ends.
    fn read(&mut self, offset: u64, bytes: usize) -> io::Result<Bytes>;

    /// Forgets what was read ahead: it may have changed.
    fn forget(&mut self);
}

/// A file in memory.
impl Source for Bytes {
    fn file_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let start = (offset as usize).min(self.len());
        Ok(self.slice(start..(start + bytes).min(self.len())))
    }

    fn forget(&mut self) {}
}

/// Which part of a ledger a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Structure {
    /// One of the four copies.
    Superblock,
    /// The space between the copies.
    SuperblockArea,
    /// The file as a whole.
    File,
    /// The first block of a segment.
    SegmentHeader,
    /// A batch: header, records or padding.
    Batch,
    /// A record in a batch that verifies.
    Record,
    /// What the records add up to.
    Index,
    /// Space in which no batch lies.
    UnusedSpace,
    /// What stands where the log ends.
    Tail,
    /// The order that all shards share.
    GlobalOrder,
}

impl Structure {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Structure::Superblock => "superblock",
            Structure::SuperblockArea => "superblock-area",
            Structure::File => "file",
            Structure::SegmentHeader => "segment-header",
            Structure::Batch => "batch",
            Structure::Record => "record",
            Structure::Index => "index",
            Structure::UnusedSpace => "unused-space",
            Structure::Tail => "tail",
            Structure::GlobalOrder => "global-order",
        }
    }
}

/// A row that a finding concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowConcerned {
    /// Position of the entry.
    pub position: u64,
    /// The audit's name of the operation.
    pub operation: &'static str,
    /// The row, if the entry is about one.
    pub event_id: Option<EventId>,
    /// The record's own checksum matches: only its place in the chain can't be proven. Else this is how the bytes read.
    pub is_intact: bool,
}

/// Something that is not as it must be, or, if it is no damage, worth knowing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is damage; else a power cut explains it, and nothing acknowledged is concerned.
    pub is_damage: bool,
    /// What it is about.
    pub structure: Structure,
    /// The shard whose file it is.
    pub shard: u16,
    /// Where, as a segment.
    pub segment: Option<u64>,
    /// Where, in the file.
    pub file_offset: u64,
    /// How long, if that is known.
    pub bytes: u64,
    /// First and last batch concerned.
    pub batches: Option<(u64, u64)>,
    /// First and last position concerned.
    pub positions: Option<(u64, u64)>,
    /// Rows concerned, as far as they can be read: the first [`ROWS_NAMED_MAX`].
    pub rows: Vec<RowConcerned>,
    /// How many there are beyond those.
    pub rows_more: u64,
    /// A sentence.
    pub what: String,
}

impl Finding {
    /// A finding of damage with nothing but a place.
    pub fn damage(structure: Structure, shard: u16, file_offset: u64, bytes: u64, what: impl Into<String>) -> Finding {
        Finding {
            is_damage: true,
            structure,
            shard,
            segment: None,
            file_offset,
            bytes,
            batches: None,
            positions: None,
            rows: Vec::new(),
            rows_more: 0,
            what: what.into(),
        }
    }
}

/// Damage between two batches that verify, or before the first.
#[derive(Debug, Clone)]
pub struct Hole {
    /// The end of what stands before it.
    pub before: LogEnd,
    /// Where the log goes on.
    pub resume: BatchPlace,
    /// What stands at its start.
    pub here: Here,
    /// What lies in it: log offsets and bytes. Pieces overlap by the longest record.
    pub pieces: Vec<(u64, Bytes)>,
}

/// What [`walk`] meets, in the order of the file.
#[derive(Debug, Clone)]
pub enum Step {
    /// A batch that verifies and continues the chain. After a hole, the chain that starts behind it.
    Batch(BatchPlace, Bytes),
    /// Damage before the next batch.
    Hole(Box<Hole>),
    /// Anything else.
    Finding(Finding),
}

/// What [`walk`] is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct WalkOptions {
    /// Set when a daemon writes to the file: places are read again before they count as damaged, each time after a call of
    /// this, which gives the daemon a moment; and what lies beyond the log's end is not looked at.
    pub online: Option<fn()>,
    /// It is a raw block device: beyond the prepared segments lies whatever was there before.
    pub is_device: bool,
}

/// What [`walk`] went over.
#[derive(Debug, Clone)]
pub struct Walked {
    /// The log's end, counted over all holes.
    pub end: LogEnd,
    /// The end of what is chained from the first batch on: where the first hole is, if there is one.
    pub proven: LogEnd,
    /// Batches that verify.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Holes.
    pub holes: u64,
    /// The greatest incarnation seen.
    pub incarnation_max: u64,
}

/// Finds the superblock to go by, and says what of the superblocks' area is damaged. `expected` is what a sibling's
/// superblock says this one must be; it stands in where no copy is left.
pub fn superblocks(
    source: &mut impl Source,
    shard: u16,
    expected: Option<&Superblock>,
) -> io::Result<(Option<Superblock>, Vec<Finding>)> {
    let mut findings = Vec::new();
    let area = source.read(0, SUPERBLOCK_AREA_BYTES as usize)?;
    let mut copies = Vec::new();
    for copy in 0..COPIES {
        let offset = superblock::copy_offset(copy);
        let block = area.get(offset as usize..(offset + BLOCK_BYTES) as usize).unwrap_or_default();
        match Superblock::decode(block) {
            Ok(Some(found)) => copies.push((copy, found)),
            Ok(None) => {
                let what = format!("copy {copy} of the superblock does not verify");
                findings.push(Finding::damage(Structure::Superblock, shard, offset, BLOCK_BYTES, what));
            }
            Err(error) => {
                let what = format!("copy {copy} of the superblock: {error}");
                findings.push(Finding::damage(Structure::Superblock, shard, offset, BLOCK_BYTES, what));
            }
        }
        let gap = area.get((offset + BLOCK_BYTES) as usize..superblock::copy_offset(copy + 1) as usize);
        if !is_zero(gap.unwrap_or_default()) {
            let what = format!("the space behind copy {copy} of the superblock is not zeroed");
            let bytes = superblock::copy_offset(1) - BLOCK_BYTES;
            findings.push(Finding::damage(Structure::SuperblockArea, shard, offset + BLOCK_BYTES, bytes, what));
        }
    }
    let newest = copies.iter().map(|(_, found)| found).max_by_key(|found| found.generation).cloned();
    for (copy, found) in &copies {
        let newest = newest.as_ref().unwrap_or(found);
        if found != newest {
            let offset = superblock::copy_offset(*copy);
            let what = format!(
                "copy {copy} of the superblock has generation {}, the newest {}: an update was interrupted",
                found.generation, newest.generation
            );
            // Two copies of one generation never differ.
            let is_damage = found.generation == newest.generation;
            let finding = Finding::damage(Structure::Superblock, shard, offset, BLOCK_BYTES, what);
            findings.push(Finding { is_damage, ..finding });
        }
    }
    if let (Some(newest), Some(expected)) = (&newest, expected)
        && (Superblock { generation: 0, ..newest.clone() }) != (Superblock { generation: 0, ..expected.clone() })
    {
        let what = format!(
            "the superblock says shard {} of ledger {}; this file must be shard {} of ledger {}, of the same sizes and clock",
            newest.shard, newest.ledger, expected.shard, expected.ledger
        );
        findings.push(Finding::damage(Structure::Superblock, shard, 0, BLOCK_BYTES, what));
        return Ok((None, findings));
    }
    Ok((newest.or_else(|| expected.cloned()), findings))
}

/// Walks the file. `progress` hears of bytes as they are done with.
pub fn walk(
    source: &mut impl Source,
    superblock: &Superblock,
    options: WalkOptions,
    each: &mut dyn FnMut(Step),
    progress: &mut dyn FnMut(u64),
) -> io::Result<Walked> {
    let end = LogEnd::of_empty(superblock, 0, Mutation::NONE);
    let walked = Walked { end, proven: end, batches: 0, records: 0, holes: 0, incarnation_max: 0 };
    let geometry = superblock.geometry;
    let mut log_bytes = source.file_bytes().saturating_sub(geometry.file_offset(0));
    if options.is_device {
        // Beyond the segments that are prepared a device holds whatever it held before.
        let mut prepared = 0;
        for segment in 0..log_bytes / geometry.segment_bytes {
            let header = source.read(geometry.file_offset(geometry.segment_start(segment)), BLOCK_BYTES as usize)?;
            if is_segment_header(&header, superblock, segment) {
                prepared = segment + 1;
            } else if segment >= prepared + recovery::LATER_SEGMENTS_MAX {
                break;
            }
        }
        log_bytes = geometry.segment_start(prepared.max(1));
    }
    let mut walk = Walk { source, superblock, options, each, progress, walked, log_bytes, last_recovery_at: 0 };
    walk.file_length()?;
    walk.run()?;
    Ok(walk.walked)
}

struct Walk<'a, S> {
    source: &'a mut S,
    superblock: &'a Superblock,
    options: WalkOptions,
    each: &'a mut dyn FnMut(Step),
    progress: &'a mut dyn FnMut(u64),
    walked: Walked,
    /// Length of the file, as a log offset.
    log_bytes: u64,
    /// Where the last recovery batch lies: batches of the run before it may have been left beyond.
    last_recovery_at: u64,
}

/// Blocks that are not zero, one after the other, as log offsets.
#[derive(Debug, Clone)]
struct Stretch {
    from: u64,
    to: u64,
    /// A batch of this ledger that starts in it, if there is one.
    batch: Option<BatchHeader>,
}

/// What lies beyond a place where no batch continues the chain.
struct Search {
    beyond: Beyond,
    resume: Option<BatchPlace>,
    stretches: Vec<Stretch>,
    /// Segments with their headers' blocks.
    headers: Vec<(u64, Bytes)>,
}

impl<S: Source> Walk<'_, S> {
    fn file_offset(&self, log_offset: u64) -> u64 {
        self.superblock.geometry.file_offset(log_offset)
    }

    fn log_read(&mut self, log_offset: u64, bytes: u64) -> io::Result<Bytes> {
        self.source.read(self.superblock.geometry.file_offset(log_offset), bytes as usize)
    }

    fn find(&self, bytes: &[u8]) -> Found {
        let s = self.superblock;
        batch::find(bytes, &s.key, s.shard, s.geometry.batch_bytes_max, Mutation::NONE)
    }

    fn finding(&mut self, finding: Finding) {
        let geometry = self.superblock.geometry;
        let segment = finding.file_offset.checked_sub(geometry.file_offset(0)).map(|at| geometry.segment_of(at));
        (self.each)(Step::Finding(Finding { segment, ..finding }));
    }

    fn damage(&mut self, structure: Structure, from: u64, to: u64, what: String) {
        let file_offset = self.file_offset(from);
        self.finding(Finding::damage(structure, self.superblock.shard, file_offset, to - from, what));
    }

    fn note(&mut self, structure: Structure, from: u64, to: u64, what: String) {
        let file_offset = self.file_offset(from);
        let finding = Finding::damage(structure, self.superblock.shard, file_offset, to - from, what);
        self.finding(Finding { is_damage: false, ..finding });
    }

    /// A file ends with a segment: a segment gets its header when it is there as a whole.
    fn file_length(&mut self) -> io::Result<()> {
        let geometry = self.superblock.geometry;
        let last = self.log_bytes / geometry.segment_bytes;
        let over = self.log_bytes % geometry.segment_bytes;
        if over == 0 && last > 0 {
            return Ok(());
        }
        let header = self.log_read(geometry.segment_start(last), BLOCK_BYTES)?;
        self.source.forget();
        if last == 0 || is_segment_header(&header, self.superblock, last) {
            let found = self.file_offset(self.log_bytes);
            let what =
                format!("the file has {found} bytes, its segments {}: it was cut short", geometry.file_bytes(last + 1));
            self.damage(Structure::File, self.log_bytes, geometry.segment_start(last + 1), what);
        }
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        let geometry = self.superblock.geometry;
        let mut segment_checked = None;
        let mut rereads = 0;
        loop {
            let at = self.walked.end.next_batch_at;
            let segment = geometry.segment_of(at);
            let header = if segment_checked == Some(segment) {
                None
            } else {
                Some(self.log_read(geometry.segment_start(segment), BLOCK_BYTES)?)
            };
            let bytes = self.log_read(at, geometry.batch_bytes_max)?;
            let (here, place) = self.look(at, &bytes, header.as_deref());
            if matches!(here, Here::Chained | Here::ChainedWithoutSegment) {
                let place = place.expect("a chained batch was found");
                if here == Here::ChainedWithoutSegment {
                    let from = geometry.segment_start(segment);
                    let what = format!("the header of segment {segment} does not verify; the batches in it do");
                    self.damage(Structure::SegmentHeader, from, from + SEGMENT_HEADER_BYTES, what);
                }
                segment_checked = Some(segment);
                rereads = 0;
                self.take(&place, &bytes)?;
                continue;
            }
            if let Some(wait) = self.options.online.filter(|_| rereads < REREADS_MAX) {
                rereads += 1;
                wait();
                self.source.forget();
                continue;
            }
            let search = self.search(at)?;
            match verdict(here, search.beyond) {
                Verdict::Corrupt if search.resume.is_some() => {
                    rereads = 0;
                    self.hole(here, &search)?;
                    segment_checked = Some(geometry.segment_of(self.walked.end.next_batch_at));
                }
                verdict => {
                    if verdict == Verdict::Corrupt || self.options.online.is_none() {
                        self.tail(here, verdict, &search);
                    }
                    if self.walked.holes == 0 {
                        self.walked.proven = self.walked.end;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// `header` is the segment's, if `at` is the first place looked at in it.
    fn look(&self, at: u64, bytes: &[u8], header: Option<&[u8]>) -> (Here, Option<BatchPlace>) {
        let segment = self.superblock.geometry.segment_of(at);
        let has_segment = header.is_none_or(|header| is_segment_header(header, self.superblock, segment));
        match self.find(bytes) {
            Found::Batch { header, hash } => {
                let place = BatchPlace { header, hash, log_offset: at };
                let here = match (self.walked.end.is_continued_by(&header, Mutation::NONE), has_segment) {
                    (true, true) => Here::Chained,
                    (true, false) => Here::ChainedWithoutSegment,
                    (false, true) => Here::Unchained,
                    (false, false) => Here::NoSegment,
                };
                (here, Some(place))
            }
            _ if !has_segment => (Here::NoSegment, None),
            Found::Zeroes => (Here::Zeroes, None),
            Found::Invalid => (Here::Invalid, None),
        }
    }

    fn take(&mut self, place: &BatchPlace, bytes: &Bytes) -> io::Result<()> {
        let geometry = self.superblock.geometry;
        let total = u64::from(place.header.total_bytes);
        (self.each)(Step::Batch(*place, bytes.slice(..total as usize)));
        (self.progress)(total);
        if place.header.is_recovery {
            self.last_recovery_at = place.log_offset;
        }
        self.walked.batches += 1;
        self.walked.records += u64::from(place.header.record_count);
        self.walked.incarnation_max = self.walked.incarnation_max.max(place.header.incarnation);
        self.walked.end = self.walked.end.after(geometry, place);
        let (after, next) = (place.log_offset + total, self.walked.end.next_batch_at);
        if geometry.segment_of(next) != geometry.segment_of(after) || next != after {
            self.gap(after, next / geometry.segment_bytes * geometry.segment_bytes)?;
        }
        Ok(())
    }

    /// The end of a segment, in which the next batch might not have fitted.
    fn gap(&mut self, from: u64, to: u64) -> io::Result<()> {
        for stretch in self.scan(from, to)? {
            if from < self.left_overs_end(self.last_recovery_at) {
                let what = "the segment's unused end holds what a run before left there".to_owned();
                self.note(Structure::UnusedSpace, stretch.from, stretch.to, what);
            } else {
                let what = "the segment's unused end is not zeroed, and nothing was written there".to_owned();
                self.damage(Structure::UnusedSpace, stretch.from, stretch.to, what);
            }
        }
        Ok(())
    }

    /// Batches in flight when a log ended at `at` reach up to here.
    fn left_overs_end(&self, at: u64) -> u64 {
        let geometry = self.superblock.geometry;
        let window_bytes = BATCHES_IN_FLIGHT_MAX as u64 * geometry.batch_bytes_max;
        let next_start = geometry.segment_start(geometry.segment_of(at) + 1);
        if at + window_bytes + geometry.batch_bytes_max <= next_start {
            at + window_bytes
        } else {
            next_start + SEGMENT_HEADER_BYTES + window_bytes
        }
    }

    /// What is not zero between two log offsets.
    fn scan(&mut self, from: u64, to: u64) -> io::Result<Vec<Stretch>> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = from;
        while at < to {
            let piece = self.log_read(at, (to - at).min(PIECE_BYTES as u64))?;
            if piece.is_empty() {
                break;
            }
            for (block, block_at) in piece.chunks(BLOCK_BYTES as usize).zip((at..).step_by(BLOCK_BYTES as usize)) {
                if !is_zero(block) {
                    extend(&mut stretches, block_at, None);
                }
            }
            at += piece.len() as u64;
            (self.progress)(piece.len() as u64);
        }
        Ok(stretches)
    }

    /// Searches every block from `at` to the end of the file, or to the first batch that records what is missing.
    fn search(&mut self, at: u64) -> io::Result<Search> {
        let geometry = self.superblock.geometry;
        let missing = self.walked.end.next_number;
        let mut search = Search { beyond: Beyond::Nothing, resume: None, stretches: Vec::new(), headers: Vec::new() };
        let mut candidates: VecDeque<BatchPlace> = VecDeque::new();
        let (mut from, mut piece) = (at, Bytes::new());
        let mut block_at = at;
        while block_at < self.log_bytes {
            if block_at >= from + piece.len() as u64 {
                (self.progress)(piece.len() as u64);
                piece = self.log_read(block_at, PIECE_BYTES as u64)?;
                from = block_at;
                if piece.is_empty() {
                    break;
                }
            }
            let start = (block_at - from) as usize;
            let block = piece.slice(start..piece.len().min(start + BLOCK_BYTES as usize));
            let is_header = block_at.is_multiple_of(geometry.segment_bytes);
            if is_header {
                search.headers.push((geometry.segment_of(block_at), block.clone()));
            } else if !is_zero(&block) {
                let found = if batch::claimed_bytes(&block, geometry.batch_bytes_max).is_some() {
                    let bytes = self.log_read(block_at, geometry.batch_bytes_max)?;
                    self.find(&bytes)
                } else {
                    Found::Invalid
                };
                let place = match found {
                    Found::Batch { header, hash } => Some(BatchPlace { header, hash, log_offset: block_at }),
                    _ => None,
                };
                extend(&mut search.stretches, block_at, place.map(|place| place.header));
                // What stands at `at` itself is not beyond it, and a batch of another place proves nothing here.
                if let Some(place) = place.filter(|place| block_at > at && place.header.number > missing) {
                    if place.header.durable_batch >= missing {
                        search.beyond = Beyond::RecordsIt;
                        search.resume = Some(first_of_chain(geometry, &candidates, place));
                        return Ok(search);
                    }
                    search.beyond = Beyond::Siblings;
                    if candidates.len() < CANDIDATES_MAX {
                        candidates.push_back(place);
                    }
                }
            }
            block_at += BLOCK_BYTES;
        }
        (self.progress)(piece.len() as u64);
        Ok(search)
    }

    fn hole(&mut self, here: Here, search: &Search) -> io::Result<()> {
        let geometry = self.superblock.geometry;
        let before = self.walked.end;
        let resume = search.resume.expect("a hole has an end");
        let (from, to) = (before.next_batch_at, resume.log_offset);
        let segments = geometry.segment_of(from)..=geometry.segment_of(to);
        let mut headers: BTreeMap<u64, Bytes> = search.headers.iter().cloned().collect();
        if here == Here::NoSegment {
            // The header of the segment in which the hole starts stands before it.
            let segment = geometry.segment_of(from);
            headers.insert(segment, self.log_read(geometry.segment_start(segment), BLOCK_BYTES)?);
        }
        for (segment, header) in headers {
            if segments.contains(&segment) && !is_segment_header(&header, self.superblock, segment) {
                let start = geometry.segment_start(segment);
                let what = format!("the header of segment {segment} does not verify");
                self.damage(Structure::SegmentHeader, start, start + SEGMENT_HEADER_BYTES, what);
            }
        }
        let mut pieces = Vec::new();
        let mut at = from;
        while at < to && pieces.len() < HOLE_PIECES_MAX {
            let bytes = self.log_read(at, geometry.batch_bytes_max.min(to - at))?;
            let next =
                at + (geometry.batch_bytes_max - RECORD_BYTES_MAX.next_multiple_of(BLOCK_BYTES)).max(BLOCK_BYTES);
            // The walk keeps its buffers: what lies in a hole is small, and outlives them.
            pieces.push((at, Bytes::copy_from_slice(&bytes)));
            at = next;
        }
        if self.walked.holes == 0 {
            self.walked.proven = before;
        }
        self.walked.holes += 1;
        (self.each)(Step::Hole(Box::new(Hole { before, resume, here, pieces })));
        // The chain starts anew with the batch behind the hole.
        self.walked.end = LogEnd {
            next_batch_at: resume.log_offset,
            next_number: resume.header.number,
            next_position: resume.header.first_position,
            previous_hash: resume.header.previous_hash,
            incarnation: resume.header.incarnation - u64::from(resume.header.is_recovery),
            ..before
        };
        Ok(())
    }

    /// Judges what stands beyond the log's end.
    fn tail(&mut self, here: Here, verdict: Verdict, search: &Search) {
        let geometry = self.superblock.geometry;
        let end = self.walked.end;
        let at = end.next_batch_at;
        if verdict == Verdict::Corrupt {
            let what = format!(
                "segment {} has no header, and batches beyond it: they are out of place",
                geometry.segment_of(at)
            );
            self.damage(Structure::SegmentHeader, geometry.segment_start(geometry.segment_of(at)), at, what);
        }
        let last_header =
            search.headers.iter().filter(|(segment, header)| is_segment_header(header, self.superblock, *segment));
        let last_header = last_header.map(|(segment, _)| *segment).max();
        self.walked.end.segments_prepared =
            last_header.map_or(0, |last| last + 1).max(geometry.segment_of(at) + u64::from(here != Here::NoSegment));
        for (segment, header) in &search.headers {
            let start = geometry.segment_start(*segment);
            if is_zero(header) && last_header.is_some_and(|last| *segment < last) {
                let what = format!("segment {segment} has lost its header: a later one has its own");
                self.damage(Structure::SegmentHeader, start, start + SEGMENT_HEADER_BYTES, what);
            } else if !is_zero(header) && !is_segment_header(header, self.superblock, *segment) {
                let what = format!("the header of segment {segment} does not verify; no batch has been written to it");
                self.damage(Structure::SegmentHeader, start, start + SEGMENT_HEADER_BYTES, what);
            }
        }
        let left_overs_end = self.left_overs_end(at);
        for stretch in &search.stretches {
            let (from, to) = (stretch.from, stretch.to);
            if from >= left_overs_end {
                let what = "space that no batch has reached is not zeroed".to_owned();
                self.damage(Structure::UnusedSpace, from, to, what);
                continue;
            }
            let what = match &stretch.batch {
                Some(header) if from == at || header.number >= end.next_number => format!(
                    "batch {} of incarnation {} is whole but not part of the log, which ends before it with batch {}: it was \
                     in flight when its run ended, and was not acknowledged",
                    header.number,
                    header.incarnation,
                    end.next_number - 1
                ),
                Some(header) => format!("batch {} was left by incarnation {}", header.number, header.incarnation),
                None if from == at => format!(
                    "the log ends here with batch {}; what follows does not verify, and no later batch records it as durable: \
                     a write that did not get to its end, or damage to the last batches, which one copy can't tell apart",
                    end.next_number - 1
                ),
                None => "a write that did not get to its end, or was cut off with its run".to_owned(),
            };
            self.note(Structure::Tail, from, to, what);
        }
    }
}

/// The first of the batches before `witness` that lead to it without a gap.
fn first_of_chain(
    geometry: super::layout::Geometry,
    candidates: &VecDeque<BatchPlace>,
    witness: BatchPlace,
) -> BatchPlace {
    let mut first = witness;
    for candidate in candidates.iter().rev() {
        let leads_there = candidate.hash == first.header.previous_hash
            && candidate.header.number + 1 == first.header.number
            && geometry.next_batch(candidate.log_offset, candidate.header.total_bytes.into()) == first.log_offset;
        if leads_there {
            first = *candidate;
        }
    }
    first
}

fn extend(stretches: &mut Vec<Stretch>, block_at: u64, batch: Option<BatchHeader>) {
    match stretches.last_mut() {
        Some(last) if last.to == block_at && batch.is_none() => last.to += BLOCK_BYTES,
        _ => stretches.push(Stretch { from: block_at, to: block_at + BLOCK_BYTES, batch }),
    }
}

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

/// A global entry without what differs between the shards: the time at which each logged it, and what it means for rows of
/// its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalCopy {
    /// The record's kind.
    pub kind: u16,
    /// The record's body, its timestamp zeroed.
    pub body: Vec<u8>,
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
    /// Hashes of the idempotency keys with the positions that used them, by the hash's first bit.
    keys: [Vec<(u64, u64)>; 2],
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
    /// For one shard's steps.
    pub fn new(superblock: &'a Superblock) -> Content<'a> {
        Content {
            superblock,
            shard: Some(Shard::without_keys(superblock)),
            proven: None,
            each_record: None,
            globals: BTreeMap::new(),
            stopped_at: None,
            keys: [Vec::new(), Vec::new()],
            secret: u64::from_le_bytes(superblock.key[..8].try_into().expect("a key has 32 bytes")),
            findings: Vec::new(),
        }
    }

    /// Ends the look at the records, with what can only be said of all of them: that no key has had two effects.
    pub fn finish(&mut self) {
        let [low, high] = &mut self.keys;
        std::thread::scope(|scope| {
            scope.spawn(|| low.sort_unstable());
            high.sort_unstable();
        });
        for keys in std::mem::take(&mut self.keys) {
            for pair in keys.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                let (first, second) = (pair[0].1, pair[1].1);
                let what = format!("the entries at positions {first} and {second} have the same idempotency key");
                let mut finding = Finding::damage(Structure::Index, self.superblock.shard, 0, 0, what);
                finding.positions = Some((first, second));
                self.findings.push(finding);
            }
        }
        self.check_totals();
    }

    /// The control totals that are kept with the state equal a count of all rows.
    fn check_totals(&mut self) {
        let Some(shard) = &self.shard else { return };
        for corpus in shard.registry().corpora() {
            let kept = shard.rows().totals(corpus.prefix);
            let counted = shard.rows().count_totals(corpus.prefix);
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

    /// The entries that every shard keeps, as this one has them.
    pub fn globals(&self) -> &BTreeMap<u64, GlobalCopy> {
        &self.globals
    }

    /// The log offset of the first batch with a record that breaks a rule, if there is one.
    pub fn stopped_at(&self) -> Option<u64> {
        self.stopped_at
    }

    /// The state machine at the end of what is proven.
    pub fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref().or(self.proven.as_ref())
    }

    /// Takes a step of [`walk`].
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

    fn batch(&mut self, place: &BatchPlace, bytes: &[u8]) {
        let range = batch::records(bytes, &place.header);
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
        let mut result = shard.apply(raw.position, log_offset, &record);
        if let (Ok(()), Entry::Claim(claim)) = (&result, &record.entry) {
            let corpus = shard.registry().of_prefix(claim.event_id.prefix());
            if corpus.is_none_or(|corpus| corpus.shard != self.superblock.shard) {
                result =
                    Err(format!("the claim of {} is of a corpus that does not live on this shard", claim.event_id));
            }
        }
        let meta = &record.meta;
        let is_minting = matches!(record.entry, Entry::PrefixAllocation { .. });
        if meta.idempotency_key != 0 && !is_minting {
            let id = KeyId::new(meta.corpus.map_or(0, Prefix::get), meta.idempotency_key, meta.item);
            let hash = id.hash(self.secret);
            self.keys[(hash >> 63) as usize].push((hash, raw.position));
        }
        if let Err(reason) = result {
            self.broken(Structure::Index, place, raw.position, log_offset, reason);
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

/// The row that an entry is about.
pub fn event_id(entry: &Entry<'_>) -> Option<EventId> {
    match entry {
        Entry::Claim(claim) => Some(claim.event_id),
        Entry::Reference { event_id, .. } | Entry::Tombstone { event_id, .. } | Entry::Reactivate { event_id } => {
            Some(*event_id)
        }
        _ => None,
    }
}

fn global_copy(kind: u16, record: &Record<'_>) -> GlobalCopy {
    let mut record = *record;
    record.meta.timestamp_us = 0;
    let mut planned = Vec::new();
    match &mut record.entry {
        Entry::DisputeStep { rows, .. } => *rows = 0,
        Entry::Reconcile { merges, .. } => {
            planned.extend(entry::merges(merges).map(|merge| Merge { applied: false, ..merge }));
        }
        _ => {}
    }
    let planned = encode_merges(&planned);
    if let Entry::Reconcile { merges, .. } = &mut record.entry {
        *merges = &planned;
    }
    let mut body = Vec::new();
    record.encode(&mut body);
    GlobalCopy { kind, body }
}

struct Salvaged {
    position: u64,
    kind: u16,
    body: Vec<u8>,
    log_offset: u64,
    is_intact: bool,
}

/// Records in a hole that verify by themselves; and what stands between them as it reads, if it reads as a record of the
/// position that is missing there.
fn salvage(hole: &Hole, positions: &std::ops::Range<u64>) -> BTreeMap<u64, Salvaged> {
    let mut salvaged: BTreeMap<u64, Salvaged> = BTreeMap::new();
    for (piece_at, bytes) in &hole.pieces {
        let mut at = 0;
        while at + RECORD_HEADER_BYTES <= bytes.len() {
            let header = record::peek(&bytes[at..]);
            let Some((position, kind, length)) = header.filter(|(position, _, length)| {
                positions.contains(position)
                    && *length as u64 <= RECORD_BYTES_MAX
                    && salvaged.get(position).is_none_or(|found| !found.is_intact)
            }) else {
                at += 8;
                continue;
            };
            let log_offset = piece_at + at as u64;
            if let Ok((raw, total)) = record::read(&bytes[at..]) {
                let body = raw.body.to_vec();
                salvaged.insert(position, Salvaged { position, kind, body, log_offset, is_intact: true });
                at += total;
                continue;
            }
            if let Some(body) = bytes.get(at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + length)
                && Record::decode(kind, body).is_ok()
            {
                let body = body.to_vec();
                salvaged.entry(position).or_insert(Salvaged { position, kind, body, log_offset, is_intact: false });
            }
            at += 8;
        }
    }
    salvaged
}

/// Compares the global orders of a ledger's shards, in shard order. A shard may be behind shard 0, never ahead of it or
/// different from it. `whole` says of each shard whether it was read without a hole.
pub fn compare_globals(globals: &[&BTreeMap<u64, GlobalCopy>], whole: &[bool]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some((first, others)) = globals.split_first() else { return findings };
    for (shard, other) in (1u16..).zip(others) {
        for (sequence, entry) in *other {
            let what = match first.get(sequence) {
                Some(same) if same == entry => continue,
                Some(_) => format!("entry {sequence} of the global order differs from that of shard 0"),
                // With a hole in shard 0 that is what the hole is about.
                None if !whole[0] => continue,
                None => format!("entry {sequence} of the global order is not in shard 0, which decides it"),
            };
            findings.push(Finding::damage(Structure::GlobalOrder, shard, 0, 0, what));
            break;
        }
    }
    findings
}
