//! Copies one shard's log, segment by segment: every batch is verified, and none is taken that might not be durable. Works
//! beside a daemon, whose acknowledged batches never change.

use super::manifest::{End, FilePart, SegmentPart, make_file, shard_dir, sync_directory};
use super::{Failure, Pace};
use crate::clock;
use crate::verify;
use claim_engine::log::batch::{self, Found};
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::Record;
use claim_engine::log::layout::{BATCH_BYTES_RANGE, BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES};
use claim_engine::log::record;
use claim_engine::log::recovery::BatchPlace;
use claim_engine::log::superblock::{Superblock, is_segment_header};
use claim_engine::log::verify::{Source, state_at_start};
use claim_engine::log::zeroing::SEGMENTS_AHEAD;
use claim_engine::mutant::Mutation;
use claim_engine::storage::ReadAhead;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Beside a daemon, before a place is read again.
const REREAD_AFTER_MS: u64 = 20;
/// So often are places read again before the log counts as ended.
const REREADS_MAX: usize = 3;
/// So often is it read again for the mark that records the last batches as durable, which an idle log writes within 50 ms.
/// After that they are left out: the shard may have failed.
const PROOF_REREADS_MAX: usize = 250;
/// Entries of the global order have kinds in this range.
const GLOBAL_KINDS: std::ops::Range<u16> = 16..32;

/// How far to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Segments that are full; what else was read is read again later.
    Full,
    /// All that is durable now; or up to the first entry of a later time than this, where there is one.
    All {
        /// Microseconds since the epoch.
        until_us: Option<i64>,
    },
}

/// See the module.
pub struct ShardCopy<'a> {
    superblock: &'a Superblock,
    /// The ledger's file.
    path: &'a Path,
    /// The backup.
    backup: &'a Path,
    is_online: bool,
    /// What has been copied, and what was there.
    segments: Vec<SegmentPart>,
    /// Bytes written by this copy.
    pub bytes_copied: u64,
}

/// How far behind the log's end every block is looked at for a batch that should not be there; after that the first of each segment is,
/// as far as a log is ever written.
#[derive(Debug, Clone, Copy)]
enum Reach {
    /// As far as the batches that record one damaged batch as durable: those that were under way beside it, and the next.
    InFlight,
    /// To the end of the segment.
    Log,
}

/// A file that grows.
struct Growing {
    file: File,
    new: PathBuf,
    segment: u64,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Growing {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|e| Failure::io(&self.new, &e))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Where a walk over a log is.
#[derive(Debug, Clone)]
struct Walk {
    /// Behind the last batch that continues the chain.
    chain: LogEnd,
    /// The last batch that a later one records as durable.
    proven: u64,
    /// Batches that are not written yet.
    waiting: VecDeque<(BatchPlace, bytes::Bytes)>,
    /// How far it is written.
    end: End,
}

impl<'a> ShardCopy<'a> {
    /// Goes on behind the full segments of the backup that was there, or begins. The log must be the one that they are of.
    pub fn new(
        superblock: &'a Superblock,
        path: &'a Path,
        backup: &'a Path,
        before: Vec<SegmentPart>,
        is_online: bool,
    ) -> Result<ShardCopy<'a>, Failure> {
        let copy = ShardCopy { superblock, path, backup, is_online, segments: before, bytes_copied: 0 };
        copy.check_reaches_log()?;
        let begins_at = superblock.geometry.segment_start(superblock.first_segment());
        let known = copy.segments.iter().rev().find(|part| part.end.batch > 0);
        // What was dropped is where the log begins.
        if let Some(last) = known.filter(|last| last.end.last_batch_at >= begins_at) {
            let hash = copy.batch_at(&mut copy.open()?, last.end.last_batch_at)?.map(|place| place.hash);
            if hash != Some(copy.log_end(&last.end)?.previous_hash) {
                return Err(Failure::unreadable(format!(
                    "{}: batch {} is not the one that {} has: the ledger was repaired or restored since, or is damaged \
                     there; see `claimd verify`, or name another directory with --to",
                    path.display(),
                    last.end.batch,
                    backup.display()
                )));
            }
        }
        Ok(copy)
    }

    /// The ledger has not dropped what the backup lacks.
    fn check_reaches_log(&self) -> Result<(), Failure> {
        let full = self.segments.iter().take_while(|part| part.is_full).last();
        let (Some(last), Some(origin)) = (full.or(self.segments.first()), self.superblock.origin) else {
            return Ok(());
        };
        let (geometry, first) = (self.superblock.geometry, self.superblock.first_segment());
        let end = self.log_end(&last.end)?;
        let goes_on = if last.is_full { geometry.segment_of(end.next_batch_at) } else { last.segment };
        if goes_on < first {
            return Err(Failure::unreadable(format!(
                "{}: segments {goes_on} to {} were dropped since the backup in {} was made, which lacks them: keep it, and \
                 name another directory with --to",
                self.path.display(),
                first - 1,
                self.backup.display()
            )));
        }
        if last.is_full && goes_on == first && end != origin.start {
            return Err(Failure::unreadable(format!(
                "{}: its log does not begin behind batch {} as {} has it: name another directory with --to",
                self.path.display(),
                last.end.batch,
                self.backup.display()
            )));
        }
        Ok(())
    }

    fn open(&self) -> Result<ReadAhead, Failure> {
        ReadAhead::open(self.path, *BATCH_BYTES_RANGE.end() as usize).map_err(|e| Failure::io(self.path, &e))
    }

    fn log_end(&self, end: &End) -> Result<LogEnd, Failure> {
        end.log_end().map_err(|field| Failure::damaged(format!("the manifest's {field} of {}", self.path.display())))
    }

    /// How far what was copied goes.
    pub fn end(&self) -> Result<End, Failure> {
        self.segments.last().map_or_else(|| self.log_begin(), |part| Ok(part.end.clone()))
    }

    /// What the log begins behind: of what was dropped, the small state says what the records said.
    fn log_begin(&self) -> Result<End, Failure> {
        let (at_us, globals) = match self.superblock.origin {
            None => (0, 0),
            Some(_) => {
                let start = state_at_start(&mut self.open()?, self.superblock);
                let start = start.map_err(|what| Failure::damaged(format!("{}: {what}", self.path.display())))?;
                (start.last_us(), start.globals_applied())
            }
        };
        Ok(End::of(&LogEnd::at_start(self.superblock, 0, Mutation::NONE), 0, at_us, globals))
    }

    /// The parts, full and open.
    pub fn into_segments(self) -> Vec<SegmentPart> {
        self.segments
    }

    /// Copies up to a goal. What is open is copied anew if it has grown.
    pub fn run(&mut self, goal: Goal, pace: &mut Pace<'_>) -> Result<(), Failure> {
        let reach = if self.is_online { Reach::InFlight } else { Reach::Log };
        // Made anew: what was read ahead before may be older than the goal.
        let mut source = self.open()?;
        if let Some(open) = self.segments.last().filter(|part| !part.is_full && part.end.batch > 0) {
            let mut end = self.log_end(&open.end)?;
            loop {
                match self.look(&mut source, &end)? {
                    // The run that takes what is not full looks at it.
                    None if goal == Goal::Full => return Ok(()),
                    // Nothing new, or something that is damaged.
                    None if self.look_beyond(&mut source, &end, reach, pace)?.is_none() => return Ok(()),
                    Some((place, _)) if is_mark(&place) => end = end.after(self.superblock.geometry, &place),
                    None | Some(_) => break,
                }
            }
            source = self.open()?;
        }
        let kept = self.segments.iter().take_while(|part| part.is_full).count();
        let open = self.segments.split_off(kept);
        let result = self.copy(&mut source, goal, pace);
        if self.segments.len() == kept {
            // Nothing came of it: what was there of the open segment is still true.
            self.segments.extend(open);
        }
        result
    }

    fn copy(&mut self, source: &mut ReadAhead, goal: Goal, pace: &mut Pace<'_>) -> Result<(), Failure> {
        let end = self.end()?;
        let chain = self.log_end(&end)?;
        let mut walk = Walk { chain, proven: end.batch, waiting: VecDeque::new(), end };
        let mut growing = None;
        let mut rereads = 0;
        // The batch at which the log ended when that was first looked at.
        let mut target = None;
        loop {
            if let Some((place, bytes)) = self.look(source, &walk.chain)? {
                pace.read(bytes.len() as u64)?;
                walk.chain = walk.chain.after(self.superblock.geometry, &place);
                walk.proven = walk.proven.max(place.header.durable_batch);
                walk.waiting.push_back((place, bytes));
                self.write_proven(&mut walk, &mut growing)?;
                // A time ahead of the clock is held: entries of before and of after the goal have it.
                let is_after = |until_us| (until_us + 1..=clock::now().wall_us).contains(&walk.end.at_us);
                if let Goal::All { until_us: Some(until_us) } = goal
                    && self.is_online
                    && is_after(until_us)
                {
                    break;
                }
                if target.is_some_and(|target| walk.end.batch >= target) {
                    break;
                }
                continue;
            }
            if goal == Goal::Full && self.is_online {
                break;
            }
            let patience = if target.is_some() { PROOF_REREADS_MAX } else { REREADS_MAX };
            if self.is_online && rereads < patience {
                rereads += 1;
                std::thread::sleep(Duration::from_millis(REREAD_AFTER_MS));
                pace.read(0)?;
                source.forget();
                continue;
            }
            if target.is_some() {
                tracing::warn!(file = %self.path.display(), "the last batches are left out: no later one records them as durable");
                break;
            }
            if let Some(witness) = self.look_beyond(source, &walk.chain, Reach::Log, pace)? {
                source.forget();
                // Beside a daemon it may have come while the search went on.
                if !self.is_online || self.look(source, &walk.chain)?.is_none() {
                    return Err(self.damage(&walk.chain, &witness));
                }
            }
            if !self.is_online {
                // Whole batches at the end of a stopped ledger are replayed, whether a later one records them or not.
                walk.proven = walk.chain.next_number - 1;
            }
            self.write_proven(&mut walk, &mut growing)?;
            // A mark says that what stands before it is durable; nothing says so of it, and nothing is lost with it.
            target = walk.waiting.iter().rev().find(|(place, _)| !is_mark(place)).map(|(place, _)| place.header.number);
            if target.is_none() {
                break;
            }
            rereads = 0;
        }
        match growing {
            Some(growing) if goal == Goal::Full && self.is_online => {
                let Growing { file, new, .. } = growing;
                drop(file);
                fs::remove_file(&new).map_err(|e| Failure::io(&new, &e))
            }
            Some(growing) => {
                let is_full = self.superblock.geometry.segment_of(walk.end.next_batch_at) > growing.segment;
                self.finish(growing, &walk.end, is_full)
            }
            // A ledger in which nothing was ever written has its first segment's header.
            None if self.segments.is_empty() && goal != Goal::Full => {
                let growing = self.begin(self.superblock.first_segment())?;
                self.finish(growing, &walk.end, false)
            }
            None => Ok(()),
        }
    }

    /// The batch that goes on from here, if it is there.
    fn look(&self, source: &mut ReadAhead, end: &LogEnd) -> Result<Option<(BatchPlace, bytes::Bytes)>, Failure> {
        let geometry = self.superblock.geometry;
        let at = geometry.file_offset(end.next_batch_at);
        let bytes = source.read(at, geometry.batch_bytes_max as usize).map_err(|e| Failure::io(self.path, &e))?;
        let Some(place) = self.find(&bytes, end.next_batch_at) else { return Ok(None) };
        let is_next = end.is_continued_by(&place.header, Mutation::NONE);
        Ok(is_next.then(|| (place, bytes.slice(..place.header.total_bytes as usize))))
    }

    fn find(&self, bytes: &[u8], log_offset: u64) -> Option<BatchPlace> {
        let Superblock { key, shard, geometry, .. } = self.superblock;
        match batch::find(bytes, key, *shard, geometry.batch_bytes_max, Mutation::NONE) {
            Found::Batch { header, hash } => Some(BatchPlace { header, hash, log_offset }),
            _ => None,
        }
    }

    fn batch_at(&self, source: &mut ReadAhead, log_offset: u64) -> Result<Option<BatchPlace>, Failure> {
        let geometry = self.superblock.geometry;
        let bytes = source.read(geometry.file_offset(log_offset), geometry.batch_bytes_max as usize);
        Ok(self.find(&bytes.map_err(|e| Failure::io(self.path, &e))?, log_offset))
    }

    /// Writes what is known to be durable.
    fn write_proven(&mut self, walk: &mut Walk, growing: &mut Option<Growing>) -> Result<(), Failure> {
        let geometry = self.superblock.geometry;
        while let Some((place, bytes)) = walk.waiting.pop_front_if(|(place, _)| place.header.number <= walk.proven) {
            let segment = geometry.segment_of(place.log_offset);
            if let Some(full) = growing.take_if(|growing| growing.segment != segment) {
                self.finish(full, &walk.end, true)?;
            }
            let growing = match growing {
                Some(growing) => growing,
                None => growing.insert(self.begin(segment)?),
            };
            growing.write(&bytes)?;
            let (at_us, global) = self.says(&place, &bytes)?;
            let before = self.log_end(&walk.end)?;
            walk.end = End::of(
                &before.after(geometry, &place),
                place.log_offset,
                at_us.unwrap_or(walk.end.at_us),
                global.unwrap_or(walk.end.global_sequence),
            );
        }
        Ok(())
    }

    /// The time of a batch's last record, and its last entry of the global order.
    fn says(&self, place: &BatchPlace, bytes: &[u8]) -> Result<(Option<i64>, Option<u64>), Failure> {
        let (mut at_us, mut global) = (None, None);
        if place.header.is_sealing {
            return Ok((at_us, global));
        }
        let range = batch::records(bytes, &place.header);
        let mut at = range.start;
        while at < range.end {
            let Some((position, kind, body_bytes)) = record::peek(&bytes[at..range.end]) else { break };
            let next = at + record::padded(body_bytes);
            if GLOBAL_KINDS.contains(&kind) || next >= range.end {
                let whole = record::read(&bytes[at..range.end]).map_err(|e| e.to_string());
                let decoded = whole.and_then(|(raw, _)| {
                    let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
                    Ok((record.meta.timestamp_us, record.entry.global_sequence()))
                });
                let (time_us, sequence) = decoded.map_err(|reason| {
                    let place = self.path.display();
                    Failure::damaged(format!(
                        "{place}: the record at position {position}: {reason}; see `claimd verify`"
                    ))
                })?;
                (at_us, global) = (Some(time_us), sequence.or(global));
            }
            at = next;
        }
        Ok((at_us, global))
    }

    /// A new file for a segment, with its header.
    fn begin(&self, segment: u64) -> Result<Growing, Failure> {
        let geometry = self.superblock.geometry;
        let start = geometry.file_offset(geometry.segment_start(segment));
        // The walk is further on, and reads ahead from there.
        let mut header = vec![0; BLOCK_BYTES as usize];
        let read = File::open(self.path).and_then(|file| file.read_exact_at(&mut header, start));
        read.map_err(|e| Failure::io(self.path, &e))?;
        if !is_segment_header(&header, self.superblock, segment) {
            return Err(Failure::damaged(format!(
                "{}: the header of segment {segment} at file offset {start} does not verify; see `claimd verify` and \
                 `claimd repair`",
                self.path.display()
            )));
        }
        let dir = self.backup.join(shard_dir(self.superblock.shard));
        let new = dir.join(format!("segment-{segment:08}.tmp"));
        let file = make_file(&new).map_err(|e| Failure::io(&new, &e))?;
        let mut growing = Growing { file, new, segment, hasher: blake3::Hasher::new(), bytes: 0 };
        growing.write(&header)?;
        Ok(growing)
    }

    /// Gives a segment's file its name, durably.
    fn finish(&mut self, growing: Growing, end: &End, is_full: bool) -> Result<(), Failure> {
        let Growing { file, new, segment, hasher, bytes } = growing;
        file.sync_all().map_err(|e| Failure::io(&new, &e))?;
        let dir = shard_dir(self.superblock.shard);
        let name = if is_full {
            format!("{dir}/segment-{segment:08}.log")
        } else {
            format!("{dir}/segment-{segment:08}.to-{}.log", end.batch)
        };
        let named = fs::rename(&new, self.backup.join(&name)).and_then(|()| sync_directory(&self.backup.join(&dir)));
        named.map_err(|e| Failure::io(&new, &e))?;
        self.bytes_copied += bytes;
        let file = FilePart { file: name, bytes, blake3: hasher.finalize().to_hex().to_string() };
        self.segments.push(SegmentPart { segment, file, is_full, end: end.clone() });
        Ok(())
    }

    /// A batch behind the log's end that records as durable what is missing there.
    fn look_beyond(
        &self,
        source: &mut ReadAhead,
        end: &LogEnd,
        reach: Reach,
        pace: &mut Pace<'_>,
    ) -> Result<Option<BatchPlace>, Failure> {
        let geometry = self.superblock.geometry;
        let segment = geometry.segment_of(end.next_batch_at);
        let window_bytes = BATCHES_IN_FLIGHT_MAX as u64 * geometry.batch_bytes_max;
        let whole_to = match reach {
            Reach::InFlight => end.next_batch_at + geometry.batch_bytes_max + window_bytes,
            Reach::Log => geometry.segment_start(segment + 1) + window_bytes,
        };
        let ahead = segment + 2 + SEGMENTS_AHEAD;
        let last = geometry.segment_start(ahead.min(geometry.segments_end(self.superblock.first_segment())));
        let mut at = end.next_batch_at;
        while at < last {
            let bytes = source.read(geometry.file_offset(at), geometry.batch_bytes_max as usize);
            let bytes = bytes.map_err(|e| Failure::io(self.path, &e))?;
            if bytes.is_empty() {
                break;
            }
            let looks_so = batch::claimed_bytes(&bytes, geometry.batch_bytes_max).is_some();
            if let Some(place) = looks_so.then(|| self.find(&bytes, at)).flatten()
                && place.header.number > end.next_number
                && place.header.durable_batch >= end.next_number
            {
                return Ok(Some(place));
            }
            if at.is_multiple_of(1 << 20) {
                pace.read(1 << 20)?;
            }
            at += BLOCK_BYTES;
            if at >= whole_to && !geometry.is_first(at) {
                at = geometry.segment_start(geometry.segment_of(at) + 1) + geometry.first_batch();
            }
        }
        Ok(None)
    }

    fn damage(&self, end: &LogEnd, witness: &BatchPlace) -> Failure {
        let geometry = self.superblock.geometry;
        Failure::damaged(format!(
            "{}: segment {}, file offset {}: batch {} (positions from {}) does not verify, and batch {} records it as \
             durable. The backup is left as it was; `claimd verify` says what is concerned",
            self.path.display(),
            geometry.segment_of(end.next_batch_at),
            geometry.file_offset(end.next_batch_at),
            end.next_number,
            end.next_position,
            witness.header.number
        ))
    }
}

/// An empty batch that an idle log ends with.
fn is_mark(place: &BatchPlace) -> bool {
    place.header.record_count == 0 && !place.header.is_sealing
}

/// The superblock of a shard's file, and whether a daemon serves it.
pub fn superblock(path: &Path, shard: u16) -> Result<(Superblock, bool), Failure> {
    let io = |e| Failure::io(path, &e);
    let mut source = ReadAhead::open(path, *BATCH_BYTES_RANGE.end() as usize).map_err(io)?;
    let (found, _) = claim_engine::log::verify::superblocks(&mut source, shard, None).map_err(io)?;
    let place = path.display();
    let found = found.ok_or_else(|| {
        Failure::damaged(format!(
            "{place}: no copy of the superblock verifies; see `claimd verify` and `claimd repair`"
        ))
    })?;
    if found.shard != shard {
        return Err(Failure::damaged(format!(
            "{place} is shard {}, not shard {shard}; bring the files back",
            found.shard
        )));
    }
    Ok((found, verify::is_locked(path).map_err(io)?))
}
