//! The walk over a file: segment headers, batches and their chain, holes, and what stands where no batch does.

use super::{Finding, Hole, Source, Step, Structure};
use crate::log::batch::{self, BatchHeader, Found, is_zero};
use crate::log::end::LogEnd;
use crate::log::layout::{BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES, Geometry, RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES};
use crate::log::recovery::{self, BatchPlace, Beyond, Here, Verdict, verdict};
use crate::log::superblock::{Superblock, is_segment_header};
use crate::mutant::Mutation;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Space that holds no batch is looked at in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
/// Batches beyond a hole that are remembered until one shows which of them belong to the log.
const CANDIDATES_MAX: usize = 64;
/// Pieces of a hole in which records are looked for, each as long as the largest batch.
const HOLE_PIECES_MAX: usize = 64;
/// Beside a daemon, a place that does not verify is read again this often before it counts as damaged: what was read may
/// have been older than what was read after it.
const REREADS_MAX: usize = 5;

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

/// Walks the file. `progress` hears of bytes as they are done with.
pub fn walk(
    source: &mut impl Source,
    superblock: &Superblock,
    options: WalkOptions,
    each: &mut dyn FnMut(Step),
    progress: &mut dyn FnMut(u64),
) -> io::Result<Walked> {
    let end = LogEnd::at_start(superblock, 0, Mutation::NONE);
    let walked = Walked { end, proven: end, batches: 0, records: 0, holes: 0, incarnation_max: 0 };
    let geometry = superblock.geometry;
    let mut log_bytes = source.file_bytes().saturating_sub(geometry.file_offset(0));
    if options.is_device || geometry.is_ring() {
        // Beyond the segments that are prepared a device holds whatever it held before, and a ring what its last lap left.
        let first = superblock.first_segment();
        let mut prepared = first;
        let end = if geometry.is_ring() { geometry.segments_end(first) } else { log_bytes / geometry.segment_bytes };
        for segment in first..end {
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
    // What was dropped is no part of the log, and in a ring nowhere.
    if !geometry.is_ring() {
        (walk.progress)(geometry.segment_start(superblock.first_segment()));
    }
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

    /// Up to `bytes` from a log offset: fewer where the file ends, or where a ring goes on elsewhere.
    fn log_read(&mut self, log_offset: u64, bytes: u64) -> io::Result<Bytes> {
        let geometry = self.superblock.geometry;
        self.source.read(geometry.file_offset(log_offset), geometry.together(log_offset, bytes) as usize)
    }

    fn find(&self, bytes: &[u8]) -> Found {
        let s = self.superblock;
        batch::find(bytes, &s.key, s.shard, s.geometry.batch_bytes_max, Mutation::NONE)
    }

    fn damage(&mut self, structure: Structure, from: u64, to: u64, what: String) {
        self.finding(true, structure, from, to, what);
    }

    fn note(&mut self, structure: Structure, from: u64, to: u64, what: String) {
        self.finding(false, structure, from, to, what);
    }

    fn finding(&mut self, is_damage: bool, structure: Structure, from: u64, to: u64, what: String) {
        let finding = Finding::damage(structure, self.superblock.shard, self.file_offset(from), to - from, what);
        let segment = Some(self.superblock.geometry.segment_of(from));
        (self.each)(Step::Finding(Finding { is_damage, segment, ..finding }));
    }

    /// A file ends with a segment: a segment gets its header when it is there as a whole. A ring is there as a whole from the start.
    fn file_length(&mut self) -> io::Result<()> {
        let geometry = self.superblock.geometry;
        if geometry.is_ring() {
            let (found, whole) = (self.source.file_bytes(), geometry.file_bytes(0));
            if found < whole {
                let what =
                    format!("the device has {found} bytes, the ring of segments on it {whole}: it was cut short");
                let first = geometry.segment_start(self.superblock.first_segment());
                self.damage(Structure::File, first, first, what);
            }
            return Ok(());
        }
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
fn first_of_chain(geometry: Geometry, candidates: &VecDeque<BatchPlace>, witness: BatchPlace) -> BatchPlace {
    let mut first = witness;
    for candidate in candidates.iter().rev() {
        let leads_there = candidate.hash == first.header.previous_hash
            && candidate.header.number + 1 == first.header.number
            && candidate.next(geometry) == first.log_offset;
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
