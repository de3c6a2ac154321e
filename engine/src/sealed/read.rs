//! Reading sealed segments: their indexes, and the records that these lead to.

use super::run::{HashEntry, KeyEntry, Page, RunEntry, page_bytes};
use super::summary::{FencedRun, ROWS_EVERY_BYTES, RunPlace, row_key, row_of_key};
use super::{Catalog, Fetch, Sealed, Span, Summary, Unread, seal};
use crate::id::EventId;
use crate::log::batch;
use crate::log::entry::{CLAIMED_ID_BYTES, claimed_id};
use crate::log::layout::{BLOCK_BYTES, RECORD_BYTES_MAX};
use crate::log::record::{self, RawRecord};
use std::ops::Range;

/// Bytes read for a record whose length is not known yet.
const RECORD_READ_BYTES: u64 = 1_024;
/// Bytes at the start of a record that say how long it is, and of a claim its id.
const GLANCE_BYTES: usize = record::RECORD_HEADER_BYTES + CLAIMED_ID_BYTES;
/// Places of a corpus's rows that are read at once, and by which is judged how far apart the next ones are.
const ROW_PLACES: usize = if cfg!(test) { 3 } else { 64 };
/// Pages at which a hash is guessed to be before the search halves what is left.
const GUESSES_MAX: u32 = 3;

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it starts.
    pub log_offset: u64,
    /// Its position.
    pub position: u64,
    /// Its kind.
    pub kind: u16,
    /// Its body.
    pub body: Vec<u8>,
}

impl Record {
    /// As it lies in a batch.
    pub fn raw(&self) -> RawRecord<'_> {
        RawRecord { position: self.position, kind: self.kind, body: &self.body }
    }
}

/// What stands at a place of the log where a record could begin.
enum Meets {
    /// A record.
    Record,
    /// None; the next could begin here.
    Nothing(u64),
    /// Nothing was written from here on.
    End,
}

/// Looks at a place of the log, in the block that has it.
fn meets(block: &[u8], at: u64) -> Meets {
    let rest = &block[(at % BLOCK_BYTES) as usize..];
    let is_start = at.is_multiple_of(BLOCK_BYTES);
    if is_start && let Some(found) = batch::peek(rest) {
        // The parts of an index are batches without records.
        return Meets::Nothing(
            at + if found.is_sealing { found.total_bytes } else { batch::BATCH_HEADER_BYTES as u64 },
        );
    }
    // A record begins with its checksum; zeroes are the padding of a batch.
    match rest[..8] == [0; 8] {
        false => Meets::Record,
        true if is_start => Meets::End,
        true => Meets::Nothing((at / BLOCK_BYTES + 1) * BLOCK_BYTES),
    }
}

/// The records that lie in a stretch of log, each as it verifies. `bytes` start at `start`, a whole number of blocks; a record starts
/// at `from`.
pub fn records_in<'a>(
    bytes: &'a [u8],
    start: u64,
    from: u64,
    mut each: impl FnMut(u64, RawRecord<'a>) -> bool,
) -> Result<(), String> {
    let mut at = from;
    loop {
        let rest = bytes.get((at - start) as usize..).unwrap_or_default();
        let Some(block) = bytes.get(((at / BLOCK_BYTES * BLOCK_BYTES) - start) as usize..).filter(|_| rest.len() >= 8)
        else {
            return Ok(());
        };
        match meets(&block[..block.len().min(BLOCK_BYTES as usize)], at) {
            Meets::Record if record::record_bytes(rest).is_some_and(|length| length <= rest.len()) => {
                let (raw, length) = record::read(rest).map_err(|e| not_verified(at, &e.to_string()))?;
                if !each(at, raw) {
                    return Ok(());
                }
                at += length as u64;
            }
            Meets::Nothing(next) => at = next,
            Meets::Record | Meets::End => return Ok(()),
        }
    }
}

fn not_verified(log_offset: u64, why: &str) -> String {
    format!("the record at log offset {log_offset} does not verify: {why}")
}

impl Catalog {
    /// The blocks that hold this stretch of log, one after the other.
    pub fn stretch(&self, from: u64, to: u64) -> Fetch<Vec<u8>> {
        let blocks = from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES);
        let mut bytes = Vec::with_capacity(((blocks.end - blocks.start) * BLOCK_BYTES) as usize);
        let mut missing = Vec::new();
        for number in blocks {
            match self.block(number) {
                Some(block) => bytes.extend_from_slice(&block),
                None => missing.push(number),
            }
        }
        if missing.is_empty() { Ok(bytes) } else { Err(Unread::Missing(missing)) }
    }

    /// Looks at the record that starts at a log offset: its bytes, and maybe others behind. They are copied only where they lie in
    /// several blocks.
    fn look_at<T>(&self, log_offset: u64, look: impl FnOnce(&[u8]) -> T) -> Fetch<T> {
        let start = log_offset / BLOCK_BYTES * BLOCK_BYTES;
        let within = (log_offset - start) as usize;
        if let Some(block) = self.block(start / BLOCK_BYTES) {
            let rest = &block[within..];
            if record::record_bytes(rest).is_some_and(|length| length <= rest.len()) {
                return Ok(look(rest));
            }
        }
        let segment_end = self.geometry.segment_start(self.geometry.segment_of(log_offset) + 1);
        let mut end = log_offset + RECORD_READ_BYTES;
        loop {
            let bytes = self.stretch(start, end.min(segment_end))?;
            let rest = bytes.get(within..).unwrap_or_default();
            let length = record::record_bytes(rest).unwrap_or(usize::MAX) as u64;
            if rest.len() as u64 >= length || length > RECORD_BYTES_MAX + BLOCK_BYTES || end >= segment_end {
                return Ok(look(rest));
            }
            end = log_offset + length;
        }
    }

    /// The record that starts at a log offset.
    pub fn record_at(&self, log_offset: u64) -> Fetch<Record> {
        self.look_at(log_offset, |bytes| own(log_offset, bytes))?
    }

    fn page(&self, sealed: &Sealed, page: u32) -> Fetch<super::Block> {
        let at = sealed.page_at(page);
        self.block(at / BLOCK_BYTES).ok_or_else(|| Unread::Missing(vec![at / BLOCK_BYTES]))
    }

    /// Reads a page of a run. Its checksum is looked at once for as long as it is at hand.
    fn entries<E: RunEntry, T>(&self, sealed: &Sealed, number: u32, read: impl FnOnce(&Page<'_, E>) -> T) -> Fetch<T> {
        let at = sealed.page_at(number) / BLOCK_BYTES;
        let found = self.cache.borrow_mut().get_page(at);
        let (block, is_verified) = found.ok_or_else(|| Unread::Missing(vec![at]))?;
        let page = Page::read_again(&block, sealed.summary.segment, number, is_verified);
        let page = page.ok_or_else(|| damaged_page(self, sealed, number))?;
        if !is_verified {
            self.cache.borrow_mut().verified(at);
        }
        Ok(read(&page))
    }

    fn run_page<T>(&self, sealed: &Sealed, number: u32, read: impl FnOnce(&Page<'_, KeyEntry>) -> T) -> Fetch<T> {
        self.entries(sealed, number, read)
    }

    /// The last entry of a run by key that is not greater than a key.
    fn floor(&self, sealed: &Sealed, run: &FencedRun, key: u128) -> Fetch<Option<KeyEntry>> {
        let Some(number) = Summary::page_of(run, key) else { return Ok(None) };
        self.run_page(sealed, number, |page| {
            page.partition_point(|entry| entry.key <= key).checked_sub(1).map(|index| page.get(index))
        })
    }

    fn span_of(&self, event_id: EventId) -> Option<&Span> {
        let spans = self.spans.get(&event_id.prefix().get())?;
        let after = spans.partition_point(|span| span.first <= event_id);
        spans.get(after.checked_sub(1)?).filter(|span| event_id <= span.last)
    }

    /// The segment in which a row was claimed, if it is sealed and can have it.
    pub fn segment_of_row(&self, event_id: EventId) -> Option<u64> {
        self.span_of(event_id).map(|span| span.segment)
    }

    /// The record of a row's claim.
    pub fn claim(&self, event_id: EventId) -> Fetch<Option<Record>> {
        let Some(span) = self.span_of(event_id) else { return Ok(None) };
        let Some(sealed) = self.segment(span.segment) else { return Ok(None) };
        let key = row_key(event_id);
        let entry = self.floor(sealed, &sealed.summary.rows, key)?;
        let Some(entry) = entry.filter(|entry| entry.key >> 112 == key >> 112) else { return Ok(None) };
        let segment_start = self.geometry.segment_start(span.segment);
        let from = segment_start + u64::from(entry.offset);
        if entry.key == key {
            return self.record_at(from).map(Some);
        }
        let limit = (from + ROWS_EVERY_BYTES).min(segment_start + sealed.summary.bytes);
        let mut at = from;
        while at < limit {
            let number = at / BLOCK_BYTES;
            // Where one is missing the others may be, too: they are read at once.
            let block = self.block(number).ok_or_else(|| self.missing(at, limit))?;
            while at < limit && at / BLOCK_BYTES == number {
                match meets(&block, at) {
                    Meets::Record => {
                        let rest = &block[(at % BLOCK_BYTES) as usize..];
                        // The record that is looked for is read whole; of those before it a glance will do.
                        let (length, claimed) = match rest.get(..GLANCE_BYTES) {
                            Some(start) => glance(start),
                            None => {
                                let next = self
                                    .block(number + 1)
                                    .ok_or_else(|| self.missing(at, limit.max(at + BLOCK_BYTES)))?;
                                let mut start = [0; GLANCE_BYTES];
                                start[..rest.len()].copy_from_slice(rest);
                                start[rest.len()..].copy_from_slice(&next[..GLANCE_BYTES - rest.len()]);
                                glance(&start)
                            }
                        };
                        if claimed == Some(event_id) {
                            let is_whole = length.is_some_and(|length| length <= rest.len() as u64);
                            return if is_whole { own(at, rest) } else { self.record_at(at) }.map(Some);
                        }
                        let no_end = || Unread::Damaged(not_verified(at, "it does not end where it says"));
                        at += length.ok_or_else(no_end)?;
                    }
                    Meets::Nothing(next) => at = next,
                    Meets::End => at = limit,
                }
            }
        }
        // It is not there if all that was passed, or what is to be there instead, is what was written.
        self.each_record(from..limit, |_, raw| {
            match claimed_id(raw.kind, raw.body).filter(|id| id.prefix() == event_id.prefix()) {
                Some(claimed) if claimed == event_id => {
                    Err(Unread::Damaged(not_verified(from, "it was read otherwise before")))
                }
                claimed => Ok(claimed.is_none_or(|claimed| claimed < event_id)),
            }
        })?;
        Ok(None)
    }

    /// The blocks of a stretch of log that are not at hand.
    fn missing(&self, from: u64, to: u64) -> Unread {
        let cache = self.cache.borrow();
        let blocks = from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES);
        Unread::Missing(blocks.filter(|number| !cache.has(*number)).collect())
    }

    /// What is encoded of a row's changes in a segment.
    pub fn change_in(&self, segment: u64, event_id: EventId) -> Fetch<Option<Vec<u8>>> {
        let Some(sealed) = self.segment(segment) else { return Ok(None) };
        let key = row_key(event_id);
        if !sealed.summary.filter.may_have(key) {
            return Ok(None);
        }
        let entry = self.floor(sealed, &sealed.summary.changes, key)?;
        match entry.filter(|entry| entry.key == key) {
            Some(entry) => self.heap(sealed, entry.offset, entry.length).map(Some),
            None => Ok(None),
        }
    }

    fn heap(&self, sealed: &Sealed, offset: u32, length: u32) -> Fetch<Vec<u8>> {
        let room = super::run::PAGE_ROOM as u32;
        let place = sealed.summary.heap;
        let end = offset.checked_add(length).filter(|end| u64::from(*end) <= place.entries);
        let end = end.ok_or_else(|| damaged_page(self, sealed, place.first))?;
        let pages = offset / room..end.div_ceil(room).max(offset / room + 1);
        let blocks = super::all(pages.clone().map(|page| self.page(sealed, place.first + page)))?;
        let mut bytes = Vec::with_capacity(blocks.len() * room as usize);
        for (page, block) in pages.clone().zip(&blocks) {
            let number = place.first + page;
            let content = page_bytes(block, sealed.summary.segment, number);
            bytes.extend_from_slice(content.ok_or_else(|| damaged_page(self, sealed, number))?);
        }
        let start = (offset - pages.start * room) as usize;
        let found = bytes.get(start..start + length as usize).map(<[u8]>::to_vec);
        found.ok_or_else(|| damaged_page(self, sealed, place.first + pages.start))
    }

    /// What is encoded of a row's changes, segment by segment, the newest first, none before `oldest`.
    pub fn changes_of(&self, event_id: EventId, oldest: u64) -> impl Iterator<Item = Fetch<(u64, Vec<u8>)>> + '_ {
        let segments = self.changed.iter().rev().take_while(move |segment| **segment >= oldest);
        segments.filter_map(move |segment| {
            self.change_in(*segment, event_id).map(|found| found.map(|bytes| (*segment, bytes))).transpose()
        })
    }

    /// Keys of rows that changed in a segment, after one, in order, at most so many.
    pub fn changed_after(&self, segment: u64, after: Option<EventId>, limit: usize) -> Fetch<Vec<u128>> {
        let Some(sealed) = self.segment(segment) else { return Ok(Vec::new()) };
        let run = &sealed.summary.changes;
        let after = after.map(row_key);
        let mut number = after.and_then(|key| Summary::page_of(run, key)).unwrap_or(run.place.first);
        let mut keys = Vec::new();
        while keys.len() < limit && number < run.place.first + run.place.pages {
            self.run_page(sealed, number, |page| {
                let first = after.map_or(0, |after| page.partition_point(|entry| entry.key <= after));
                keys.extend((first..page.count()).take(limit - keys.len()).map(|index| page.get(index).key));
            })?;
            number += 1;
        }
        Ok(keys)
    }

    /// Segments in which anything changed, the oldest first.
    pub fn changed_segments(&self) -> impl Iterator<Item = u64> + '_ {
        self.changed.iter().copied()
    }

    pub(super) fn hash_page<T>(
        &self,
        sealed: &Sealed,
        number: u32,
        read: impl FnOnce(&Page<'_, HashEntry>) -> T,
    ) -> Fetch<T> {
        self.entries(sealed, number, read)
    }

    /// The first page of a run by hash, from one on, whose last hash is not below this one; the number of pages where there is
    /// none.
    pub(super) fn page_of_hash(&self, sealed: &Sealed, run: RunPlace, from: u32, hash: u64) -> Fetch<u32> {
        let (mut low, mut high) = (from, run.pages);
        let mut guess = ((u128::from(hash) * u128::from(run.pages)) >> 64) as u32;
        let mut guesses = 0;
        while low < high {
            let at = if guesses < GUESSES_MAX { guess.clamp(low, high - 1) } else { low + (high - low) / 2 };
            guesses += 1;
            let (first, last) = self.hash_page(sealed, run.first + at, |page| (page.first().hash, page.last().hash))?;
            if last < hash {
                low = at + 1;
                guess = low;
            } else if first < hash {
                return Ok(at);
            } else {
                high = at;
                guess = at.saturating_sub(1);
            }
        }
        Ok(low)
    }

    /// Offsets in a segment of the records with a hash, in order.
    fn offsets_of(&self, sealed: &Sealed, run: RunPlace, hash: u64) -> Fetch<Vec<u32>> {
        let mut offsets = Vec::new();
        if run.pages == 0 {
            return Ok(offsets);
        }
        let mut number = self.page_of_hash(sealed, run, 0, hash)?;
        while number < run.pages {
            let goes_on = self.hash_page(sealed, run.first + number, |page| {
                let first = page.partition_point(|entry| entry.hash < hash);
                let found = (first..page.count()).map(|index| page.get(index)).take_while(|entry| entry.hash == hash);
                offsets.extend(found.map(|entry| entry.offset));
                page.last().hash == hash
            })?;
            if !goes_on {
                break;
            }
            number += 1;
        }
        Ok(offsets)
    }

    fn places(&self, segment: u64, offsets: Vec<u32>) -> Vec<u64> {
        let start = self.geometry.segment_start(segment);
        offsets.into_iter().map(|offset| start + u64::from(offset)).collect()
    }

    /// Log offsets of the claims in a segment whose event key has a hash, in order.
    pub fn with_event_key(&self, segment: u64, hash: u64) -> Fetch<Vec<u64>> {
        let Some(sealed) = self.segment(segment) else { return Ok(Vec::new()) };
        Ok(self.places(segment, self.offsets_of(sealed, sealed.summary.event_keys, hash)?))
    }

    /// Log offsets of the records in a segment whose correlation id has a hash, in order.
    pub fn correlated(&self, segment: u64, hash: u64) -> Fetch<Vec<u64>> {
        let Some(sealed) = self.segment(segment) else { return Ok(Vec::new()) };
        Ok(self.places(segment, self.offsets_of(sealed, sealed.summary.correlations, hash)?))
    }

    /// Whether a sealed segment may have an idempotency key of this own time.
    pub fn may_have_key_of(&self, ms: u64) -> bool {
        self.key_spans.range(..=ms).next_back().is_some_and(|(_, end)| ms <= *end)
    }

    /// Records whose idempotency key has this hash and own time, the newest segment's first.
    pub fn keyed(&self, hash: u64, ms: u64) -> Fetch<Vec<Record>> {
        let segments = self.segments.iter().rev().filter(|sealed| sealed.summary.may_have_key_of(ms));
        let offsets = super::all(segments.map(|sealed| {
            let offsets = self.offsets_of(sealed, sealed.summary.keys, hash)?;
            Ok(self.places(sealed.summary.segment, offsets))
        }))?;
        super::all(offsets.into_iter().flatten().map(|at| self.record_at(at)))
    }

    /// Where in a segment's log the rows of a corpus after an id begin.
    pub fn rows_after(&self, segment: u64, prefix: u16, after: EventId) -> Fetch<Option<RowsAfter>> {
        let Some(sealed) = self.segment(segment) else { return Ok(None) };
        let Some((number, key)) = first_page(sealed, prefix, after) else { return Ok(None) };
        let (entry, bytes_apart) = self.run_page(sealed, number, |page| {
            let index = page.partition_point(|entry| entry.key <= key).saturating_sub(1);
            let end = page.partition_point(|entry| entry.key >> 112 <= u128::from(prefix));
            let (entry, last) = (page.get(index), end.saturating_sub(1).clamp(index, index + ROW_PLACES));
            let apart = page
                .get(last)
                .offset
                .checked_sub(entry.offset)
                .map(|bytes| u64::from(bytes) / (last - index).max(1) as u64);
            (entry, apart.filter(|_| last > index))
        })?;
        let start = self.geometry.segment_start(segment);
        let log = start + u64::from(entry.offset)..start + sealed.summary.bytes;
        Ok(Some(RowsAfter { log, bytes_apart }))
    }

    /// Stretches of a segment's log in which rows of a corpus start, from the one on that an id leads to: the next ones, each with
    /// its first row.
    pub fn row_places(&self, segment: u64, prefix: u16, from: EventId) -> Fetch<Vec<(EventId, Range<u64>)>> {
        let mut places = Vec::new();
        let Some(sealed) = self.segment(segment) else { return Ok(places) };
        let Some((mut number, key)) = first_page(sealed, prefix, from) else { return Ok(places) };
        let start = self.geometry.segment_start(segment);
        let run = sealed.summary.rows.place;
        let of_corpus = |entry: &KeyEntry| entry.key >> 112 == u128::from(prefix);
        while places.len() < ROW_PLACES && number < run.first + run.pages {
            let is_over = self.run_page(sealed, number, |page| {
                let first = match places.is_empty() {
                    true => page.partition_point(|entry| entry.key <= key).saturating_sub(1),
                    false => 0,
                };
                let entries = (first..page.count()).map(|index| page.get(index)).take_while(of_corpus);
                places.extend(entries.take(ROW_PLACES - places.len()).filter_map(|entry| {
                    let at = start + u64::from(entry.offset);
                    let end = (at + ROWS_EVERY_BYTES).min(start + sealed.summary.bytes);
                    Some((row_of_key(entry.key)?, at..end))
                }));
                !of_corpus(&page.last())
            })?;
            if is_over {
                break;
            }
            number += 1;
        }
        Ok(places)
    }

    /// Names the records that start in a stretch of a segment's log, as long as it is told to go on. A record starts where the
    /// stretch begins, and others are behind it in the segment.
    pub fn each_record(&self, log: Range<u64>, mut each: impl FnMut(u64, RawRecord<'_>) -> Fetch<bool>) -> Fetch<()> {
        let mut at = log.start;
        while at < log.end {
            let block = self.block(at / BLOCK_BYTES).ok_or_else(|| self.missing(at, log.end))?;
            match meets(&block, at) {
                Meets::Record => {
                    let (length, goes_on) = self.look_at(at, |bytes| match record::read(bytes) {
                        Ok((raw, length)) => Ok((length as u64, each(at, raw)?)),
                        Err(error) => Err(Unread::Damaged(not_verified(at, &error.to_string()))),
                    })??;
                    if !goes_on {
                        break;
                    }
                    at += length;
                }
                Meets::Nothing(next) => at = next,
                Meets::End => {
                    let what = format!("nothing is written at log offset {at}, where a record should be");
                    return Err(Unread::Damaged(what));
                }
            }
        }
        Ok(())
    }
}

/// Where rows of a corpus begin.
#[derive(Debug)]
pub struct RowsAfter {
    /// The log from there to the segment's end.
    pub log: Range<u64>,
    /// How far apart the places are, on an average, at which the index names the next rows; where that is known.
    pub bytes_apart: Option<u64>,
}

/// The page of the rows' run that leads to the first row of a corpus after an id, or at it; and the key to look for there.
fn first_page(sealed: &Sealed, prefix: u16, after: EventId) -> Option<(u32, u128)> {
    let span = sealed.summary.corpora.iter().find(|span| span.prefix == prefix)?;
    let key = row_key(after.max(span.first));
    Some((Summary::page_of(&sealed.summary.rows, key)?, key))
}

/// What the start of a record says, unverified: its length, if it may have that, and the id of a claim.
fn glance(start: &[u8]) -> (Option<u64>, Option<EventId>) {
    let Some((_, kind, body_bytes)) = record::peek(start) else { return (None, None) };
    let length = record::padded(body_bytes) as u64;
    let body = &start[record::RECORD_HEADER_BYTES..start.len().min(record::RECORD_HEADER_BYTES + body_bytes)];
    (Some(length).filter(|length| *length <= RECORD_BYTES_MAX + BLOCK_BYTES), claimed_id(kind, body))
}

fn own(log_offset: u64, bytes: &[u8]) -> Fetch<Record> {
    match record::read(bytes) {
        Ok((raw, _)) => Ok(Record { log_offset, position: raw.position, kind: raw.kind, body: raw.body.to_vec() }),
        Err(error) => Err(Unread::Damaged(not_verified(log_offset, &error.to_string()))),
    }
}

fn damaged_page(catalog: &Catalog, sealed: &Sealed, number: u32) -> Unread {
    let segment = sealed.summary.segment;
    let file_offset = catalog.geometry.file_offset(sealed.page_at(number));
    Unread::Damaged(format!(
        "page {number} of the index of segment {segment}, at file offset {file_offset}, does not verify; the records are \
         not concerned"
    ))
}

impl Sealed {
    /// The log offset of a page of the index.
    pub fn page_at(&self, page: u32) -> u64 {
        let per_part = self.pages_per_part;
        let part = self.parts.get((page / per_part) as usize).copied().unwrap_or(0);
        seal::page_of_part(part, page % per_part)
    }
}
