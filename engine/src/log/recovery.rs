//! Recovery: finds the end of the log, replays everything before it, and refuses what it can't prove.
//!
//! At each place where a batch is due there is one of six things, and beyond it one of three; [`VERDICTS`] says what
//! follows from every combination.

use super::batch::{self, BatchHeader, Found, Hash};
use super::end::LogEnd;
use super::layout::{BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES, Geometry};
use super::record::{self, RawRecord};
use super::superblock::{Superblock, is_segment_header};
use crate::mutant::{Mutant, Mutation};
use crate::sealed::SealError;
use crate::storage::Storage;
use std::io;

/// Sequential reads go in pieces of this size, or of a segment if that is less, or of the largest batch if that is more.
const READ_AHEAD_BYTES: u64 = 4 << 20;
/// Later segments whose first batch is looked for beyond the end of the log. A file ends with its last segment, of which at
/// most [`SEGMENTS_AHEAD`](super::zeroing::SEGMENTS_AHEAD) are ahead; a device goes on, and is not read to its end at every
/// start. Only damage to that many segments on end would go unseen.
pub const LATER_SEGMENTS_MAX: u64 = 1024;

/// What stands where the next batch is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// A whole batch that continues the chain.
    Chained,
    /// The same, but its segment's header is damaged.
    ChainedWithoutSegment,
    /// A whole batch of this ledger that does not continue the chain: a left-over of an earlier incarnation.
    Unchained,
    /// Something else, or half a batch.
    Invalid,
    /// Nothing was ever written here.
    Zeroes,
    /// The segment was never prepared.
    NoSegment,
}

/// What stands beyond a place where no batch continues the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// No whole batch of this ledger.
    Nothing,
    /// Whole batches, but none of them records the missing one as durable: they were in flight beside it.
    Siblings,
    /// A batch that records the missing one as durable.
    RecordsIt,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Apply the batch and go on.
    Replay,
    /// The log ends here. What was never acknowledged may go.
    Cut,
    /// Something acknowledged is damaged: do not start.
    Corrupt,
}

/// The recovery table: every combination, with its verdict. `Chained` needs no look beyond.
pub const VERDICTS: [(Here, Beyond, Verdict); 18] = {
    use Beyond::{Nothing, RecordsIt, Siblings};
    use Here::{Chained, ChainedWithoutSegment, Invalid, NoSegment, Unchained, Zeroes};
    use Verdict::{Corrupt, Cut, Replay};
    [
        (Chained, Nothing, Replay),
        (Chained, Siblings, Replay),
        (Chained, RecordsIt, Replay),
        // A segment gets batches only after its header is durable, so the header was damaged since.
        (ChainedWithoutSegment, Nothing, Corrupt),
        (ChainedWithoutSegment, Siblings, Corrupt),
        (ChainedWithoutSegment, RecordsIt, Corrupt),
        (Unchained, Nothing, Cut),
        (Unchained, Siblings, Cut),
        (Unchained, RecordsIt, Corrupt),
        // A torn tail.
        (Invalid, Nothing, Cut),
        // The write failed to land, batches that were in flight beside it did.
        (Invalid, Siblings, Cut),
        (Invalid, RecordsIt, Corrupt),
        (Zeroes, Nothing, Cut),
        (Zeroes, Siblings, Cut),
        (Zeroes, RecordsIt, Corrupt),
        (NoSegment, Nothing, Cut),
        // Batches are written to prepared segments only; one that lies beyond an unprepared one is out of place.
        (NoSegment, Siblings, Corrupt),
        (NoSegment, RecordsIt, Corrupt),
    ]
};

/// Looks the verdict up.
pub fn verdict(here: Here, beyond: Beyond) -> Verdict {
    let row = VERDICTS.iter().find(|(h, b, _)| (*h, *b) == (here, beyond));
    row.expect("the table is exhaustive; a test counts its rows").2
}

/// Damage that recovery can't explain by a power cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "segment {segment}, file offset {file_offset}: batch {batch} (positions from {first_position}) is damaged ({here:?}), but \
     batch {witness} at file offset {witness_file_offset} records it as durable; positions {first_position} to \
     {last_position} are concerned. `claimd verify` names the rows; restore the file from a backup, or see `claimd repair --help`"
)]
pub struct Damage {
    /// Where, as a segment.
    pub segment: u64,
    /// Where, in the file.
    pub file_offset: u64,
    /// What was found there.
    pub here: Here,
    /// The batch that should be there.
    pub batch: u64,
    /// Its first position.
    pub first_position: u64,
    /// The last position before the first whole batch beyond.
    pub last_position: u64,
    /// The batch that shows that it was durable.
    pub witness: u64,
    /// Where that one is.
    pub witness_file_offset: u64,
}

/// Why a log was not recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A read failed.
    #[error("reading the ledger at file offset {file_offset} failed: {source}")]
    Read {
        /// Where.
        file_offset: u64,
        /// How.
        source: io::Error,
    },
    /// The file ends before a segment that was prepared does: it was cut, since a segment gets its header last.
    #[error(
        "the file has {found_bytes} bytes, its segments {expected_bytes}: it was cut short. Restore the file from a backup, \
         or from a copy of the device"
    )]
    CutShort {
        /// Bytes of the file.
        found_bytes: u64,
        /// Bytes that it had at least.
        expected_bytes: u64,
    },
    /// The first segment, or the first that is not sealed, has no header: it got one before anything led there.
    #[error(
        "the header of the segment at which the log begins or goes on, at file offset {file_offset}, is damaged. `claimd verify` names what is concerned, \
         `claimd repair` makes it anew"
    )]
    NoFirstSegment {
        /// Where it stands.
        file_offset: u64,
    },
    /// What is sealed can't be read, and the log can't be replayed instead: the segments before it are gone, or it is divided otherwise.
    #[error("{0}; restore the file from a backup")]
    Seal(SealError),
    /// The flush or the recovery batch failed.
    #[error("writing the recovery batch failed: {0}")]
    Write(String),
    /// See [`Damage`].
    #[error("the ledger is damaged: {0}")]
    Corrupt(Box<Damage>),
    /// A batch verifies, but a record in it does not fit the format.
    #[error("record at position {position} (file offset {file_offset}) can't be applied: {reason}")]
    Record {
        /// Which.
        position: u64,
        /// Where.
        file_offset: u64,
        /// Why.
        reason: String,
    },
}

/// Deliberate bugs, for the tests that must catch them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecoveryOptions {
    /// Which.
    pub mutation: Mutation,
}

/// Where a batch lies, for those who list them.
#[derive(Debug, Clone, Copy)]
pub struct BatchPlace {
    /// Its header.
    pub header: BatchHeader,
    /// Its hash.
    pub hash: Hash,
    /// Log offset.
    pub log_offset: u64,
}

impl BatchPlace {
    /// Where the next batch goes.
    pub fn next(&self, geometry: Geometry) -> u64 {
        match self.header.is_last {
            true => geometry.next_segment(self.log_offset),
            false => geometry.next_batch(self.log_offset, self.header.total_bytes.into()),
        }
    }
}

/// Walks the log from its start to its end. Every batch and every record goes to `visit`, in order.
pub async fn walk<S: Storage>(
    storage: &S,
    superblock: &Superblock,
    options: RecoveryOptions,
    mut visit: impl FnMut(Visit<'_>) -> Result<(), String>,
) -> Result<LogEnd, RecoveryError> {
    let mut log = Log::open(storage, superblock, options, None).await?;
    while let Some(batch) = log.next().await? {
        replay(superblock.geometry, &batch.place, &batch.bytes, &mut visit)?;
    }
    Ok(log.end())
}

/// A batch that continues the chain.
#[derive(Debug)]
pub struct ChainedBatch {
    /// Where it lies.
    pub place: BatchPlace,
    /// All of it.
    pub bytes: Vec<u8>,
    /// The log's end before it.
    pub before: LogEnd,
}

/// A log that is gone over batch by batch, from its start or from behind a sealed segment.
pub struct Log<'a, S>(Walker<'a, S>);

impl<'a, S: Storage> Log<'a, S> {
    /// Begins at the log's start, or where a seal says that it goes on.
    pub async fn open(
        storage: &'a S,
        superblock: &'a Superblock,
        options: RecoveryOptions,
        from: Option<LogEnd>,
    ) -> Result<Log<'a, S>, RecoveryError> {
        Walker::new(storage, superblock, options, from).await.map(Log)
    }

    /// The end of what was gone over; once there is no next batch, the log's.
    pub fn end(&self) -> LogEnd {
        self.0.end
    }

    /// The next batch of the chain; `None` where the log ends.
    pub async fn next(&mut self) -> Result<Option<ChainedBatch>, RecoveryError> {
        let walker = &mut self.0;
        loop {
            let at = walker.end.next_batch_at;
            let (here, found) = walker.look_here().await?;
            if here == Here::Chained {
                let place = found.expect("a chained batch was found");
                let bytes = walker.reader.bytes(at, place.header.total_bytes as usize).await?.to_vec();
                let before = walker.end;
                walker.advance(&place);
                return Ok(Some(ChainedBatch { place, bytes, before }));
            }
            let (beyond, witness) = walker.look_beyond().await?;
            match verdict(here, beyond) {
                Verdict::Replay => unreachable!("only a chained batch is replayed"),
                Verdict::Cut => match witness.filter(|_| walker.options.mutation.is(Mutant::ReplayPastHole)) {
                    Some(place) => walker.skip_to(&place),
                    None => return Ok(None),
                },
                Verdict::Corrupt => return Err(walker.damage(here, witness.or(found))),
            }
        }
    }
}

/// What [`walk`] meets.
#[derive(Debug)]
pub enum Visit<'a> {
    /// A batch; its records follow.
    Batch(&'a BatchPlace),
    /// A record and its log offset.
    Record(RawRecord<'a>, u64),
}

fn replay(
    geometry: Geometry,
    place: &BatchPlace,
    bytes: &[u8],
    visit: &mut impl FnMut(Visit<'_>) -> Result<(), String>,
) -> Result<(), RecoveryError> {
    let error = |position, log_offset, reason| RecoveryError::Record {
        position,
        file_offset: geometry.file_offset(log_offset),
        reason,
    };
    visit(Visit::Batch(place)).map_err(|reason| error(place.header.first_position, place.log_offset, reason))?;
    for record in records(geometry, place, bytes) {
        let (raw, log_offset) = record?;
        visit(Visit::Record(raw, log_offset)).map_err(|reason| error(raw.position, log_offset, reason))?;
    }
    Ok(())
}

/// The records of a batch that verifies, each with its log offset.
pub fn records<'b>(
    geometry: Geometry,
    place: &BatchPlace,
    bytes: &'b [u8],
) -> impl Iterator<Item = Result<(RawRecord<'b>, u64), RecoveryError>> {
    let BatchPlace { header, log_offset: start, .. } = *place;
    let error = move |position, log_offset, reason| RecoveryError::Record {
        position,
        file_offset: geometry.file_offset(log_offset),
        reason,
    };
    // The parts of a segment's index have no records.
    let range = if header.is_sealing { 0..0 } else { batch::records(bytes, &header) };
    let mut at = range.start;
    let mut next = 0;
    std::iter::from_fn(move || {
        let log_offset = start + at as u64;
        if next == header.record_count {
            let is_over = at == range.end;
            at = range.end;
            return (!is_over).then(|| Err(error(header.next_position(), start, "bytes left over".into())));
        }
        let position = header.first_position + u64::from(next);
        next += 1;
        let read = record::read(&bytes[at..range.end]);
        Some(match read {
            Ok((raw, length)) if raw.position == position => {
                at += length;
                Ok((raw, log_offset))
            }
            Ok((raw, _)) => Err(error(position, log_offset, format!("it says that its position is {}", raw.position))),
            Err(why) => Err(error(position, log_offset, why.to_string())),
        })
    })
}

struct Walker<'a, S> {
    superblock: &'a Superblock,
    options: RecoveryOptions,
    reader: Reader<'a, S>,
    end: LogEnd,
}

impl<'a, S: Storage> Walker<'a, S> {
    async fn new(
        storage: &'a S,
        superblock: &'a Superblock,
        options: RecoveryOptions,
        from: Option<LogEnd>,
    ) -> Result<Walker<'a, S>, RecoveryError> {
        let geometry = superblock.geometry;
        let mut reader = Reader::new(storage, superblock).await?;
        let start = from.unwrap_or_else(|| LogEnd::at_start(superblock, 0, options.mutation));
        let first = geometry.segment_of(start.next_batch_at);
        // Segments are prepared one after the other; one beyond a damaged header shows how long the file was all the same.
        let (mut segments_prepared, mut segments_seen) = (first, first + 1);
        for segment in first..reader.log_bytes.div_ceil(geometry.segment_bytes) {
            let block = reader.peek(geometry.segment_start(segment), BLOCK_BYTES as usize).await?;
            if segment > segments_seen + LATER_SEGMENTS_MAX {
                break;
            }
            if is_segment_header(&block, superblock, segment) {
                segments_prepared += u64::from(segment == segments_prepared);
                segments_seen = segment + 1;
            }
        }
        let expected_bytes = geometry.file_bytes(segments_seen);
        let found_bytes = reader.file_bytes;
        if found_bytes < expected_bytes {
            return Err(RecoveryError::CutShort { found_bytes, expected_bytes });
        }
        if segments_prepared == first {
            return Err(RecoveryError::NoFirstSegment {
                file_offset: geometry.file_offset(geometry.segment_start(first)),
            });
        }
        Ok(Walker { superblock, options, reader, end: LogEnd { segments_prepared, ..start } })
    }

    async fn find(&mut self, at: u64) -> Result<Found, RecoveryError> {
        let superblock = self.superblock;
        let batch_bytes_max = superblock.geometry.batch_bytes_max;
        let mutation = self.options.mutation;
        let block = self.reader.bytes(at, BLOCK_BYTES as usize).await?;
        let Some(total) = batch::claimed_bytes(block, batch_bytes_max) else {
            return Ok(batch::find(block, &superblock.key, superblock.shard, batch_bytes_max, mutation));
        };
        let bytes = self.reader.bytes(at, total as usize).await?;
        Ok(batch::find(bytes, &superblock.key, superblock.shard, batch_bytes_max, mutation))
    }

    async fn look_here(&mut self) -> Result<(Here, Option<BatchPlace>), RecoveryError> {
        let at = self.end.next_batch_at;
        let has_segment = self.superblock.geometry.segment_of(at) < self.end.segments_prepared;
        let (here, place) = match self.find(at).await? {
            Found::Batch { header, hash } => {
                let place = BatchPlace { header, hash, log_offset: at };
                let here = match (self.end.is_continued_by(&header, self.options.mutation), has_segment) {
                    (true, true) => Here::Chained,
                    (true, false) => Here::ChainedWithoutSegment,
                    (false, _) => Here::Unchained,
                };
                (here, Some(place))
            }
            Found::Zeroes => (Here::Zeroes, None),
            Found::Invalid => (Here::Invalid, None),
        };
        Ok(if has_segment || here == Here::ChainedWithoutSegment { (here, place) } else { (Here::NoSegment, place) })
    }

    fn advance(&mut self, place: &BatchPlace) {
        self.end = self.end.after(self.superblock.geometry, place);
    }

    /// Goes on at a batch beyond a hole, as if nothing were missing: a deliberate bug.
    fn skip_to(&mut self, place: &BatchPlace) {
        self.end = LogEnd {
            next_batch_at: place.log_offset,
            next_number: place.header.number,
            next_position: place.header.first_position,
            previous_hash: place.header.previous_hash,
            incarnation: place.header.incarnation,
            segments_prepared: self.end.segments_prepared,
        };
    }

    /// Searches every block boundary of the rest of this segment, of as much of the next one as batches in flight can
    /// reach, and the first batch of each later segment. What batches in flight can reach would do for power cuts; the
    /// rest costs one more read of a segment at most, and finds damage that is longer than that.
    async fn look_beyond(&mut self) -> Result<(Beyond, Option<BatchPlace>), RecoveryError> {
        let geometry = self.superblock.geometry;
        let window_bytes = BATCHES_IN_FLIGHT_MAX as u64 * geometry.batch_bytes_max;
        let missing = self.end.next_number;
        let segment = geometry.segment_of(self.end.next_batch_at);
        let next_start = geometry.segment_start(segment + 1);
        let (mut beyond, mut witness) = (Beyond::Nothing, None);
        let limit = self.reader.log_bytes.min(geometry.segment_start(segment + 2 + LATER_SEGMENTS_MAX));
        let mut at = self.end.next_batch_at + BLOCK_BYTES;
        while at < limit {
            let is_later = at >= next_start + window_bytes;
            let found = if is_later { self.find_alone(at).await? } else { self.find(at).await? };
            if let Found::Batch { header, hash } = found {
                let place = BatchPlace { header, hash, log_offset: at };
                if header.durable_batch >= missing {
                    return Ok((Beyond::RecordsIt, Some(place)));
                }
                if header.number > missing && beyond == Beyond::Nothing {
                    (beyond, witness) = (Beyond::Siblings, Some(place));
                }
            }
            let next = at + BLOCK_BYTES;
            at = if next >= next_start + window_bytes { first_batch_after(geometry, at) } else { next };
        }
        Ok((beyond, witness))
    }

    /// The same as `find` for a place that nothing is read beyond: it takes one block where there is no batch.
    async fn find_alone(&mut self, at: u64) -> Result<Found, RecoveryError> {
        let Superblock { key, shard, geometry, .. } = self.superblock;
        let block = self.reader.peek(at, BLOCK_BYTES as usize).await?;
        let bytes = match batch::claimed_bytes(&block, geometry.batch_bytes_max) {
            Some(total) => self.reader.peek(at, total as usize).await?,
            None => block,
        };
        Ok(batch::find(&bytes, key, *shard, geometry.batch_bytes_max, self.options.mutation))
    }

    fn damage(&self, here: Here, witness: Option<BatchPlace>) -> RecoveryError {
        let geometry = self.superblock.geometry;
        let at = self.end.next_batch_at;
        let witness_at = witness.map_or(at, |w| w.log_offset);
        RecoveryError::Corrupt(Box::new(Damage {
            segment: geometry.segment_of(at),
            file_offset: geometry.file_offset(at),
            here,
            batch: self.end.next_number,
            first_position: self.end.next_position,
            last_position: witness.map_or(self.end.next_position, |w| w.header.first_position.saturating_sub(1)),
            witness: witness.map_or(self.end.next_number, |w| w.header.number),
            witness_file_offset: geometry.file_offset(witness_at),
        }))
    }
}

/// Where the segment after the one of `at` has its first batch.
fn first_batch_after(geometry: Geometry, at: u64) -> u64 {
    geometry.segment_start(geometry.segment_of(at) + 1) + geometry.first_batch()
}

/// Reads the log sequentially through one buffer.
struct Reader<'a, S> {
    storage: &'a S,
    geometry: Geometry,
    file_bytes: u64,
    /// Length of the file, as a log offset. In a ring, the log offset from which on it holds the log's beginning again.
    log_bytes: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'a, S: Storage> Reader<'a, S> {
    async fn new(storage: &'a S, superblock: &Superblock) -> Result<Reader<'a, S>, RecoveryError> {
        let geometry = superblock.geometry;
        let file_bytes = storage.file_bytes().await.map_err(|source| RecoveryError::Read { file_offset: 0, source })?;
        let log_bytes = match geometry.is_ring() {
            true => geometry.segment_start(geometry.segments_end(superblock.first_segment())),
            false => file_bytes.saturating_sub(geometry.file_offset(0)),
        };
        Ok(Reader { storage, geometry, file_bytes, log_bytes, buffer: Vec::new(), buffer_at: 0 })
    }

    /// A read that leaves the buffer alone.
    async fn peek(&mut self, at: u64, bytes: usize) -> Result<Vec<u8>, RecoveryError> {
        let file_offset = self.geometry.file_offset(at);
        self.storage.read_at(file_offset, bytes).await.map_err(|source| RecoveryError::Read { file_offset, source })
    }

    /// Up to `bytes` from log offset `at`; fewer where the file ends.
    async fn bytes(&mut self, at: u64, bytes: usize) -> Result<&[u8], RecoveryError> {
        let buffered = at >= self.buffer_at && at + bytes as u64 <= self.buffer_at + self.buffer.len() as u64;
        if !buffered {
            let wanted = READ_AHEAD_BYTES.min(self.geometry.segment_bytes).max(bytes as u64);
            let wanted = wanted.min(self.log_bytes.saturating_sub(at) / BLOCK_BYTES * BLOCK_BYTES);
            let wanted = self.geometry.together(at, wanted);
            self.buffer = if wanted == 0 { Vec::new() } else { self.peek(at, wanted as usize).await? };
            self.buffer_at = at;
        }
        let start = (at - self.buffer_at) as usize;
        let end = (start + bytes).min(self.buffer.len());
        Ok(&self.buffer[start..end])
    }
}
