//! Scans: the rows of a corpus in id order, page by page.
//!
//! Where the rows of a corpus lie close together in a sealed segment, its log is read in one piece for a page; where they lie
//! far apart, the segment's index says where, and those blocks alone are read.

use super::{Claimed, Found, Rows};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::log::entry::claimed_id;
use crate::log::layout::BLOCK_BYTES;
use crate::log::record::RawRecord;
use crate::sealed::summary::CorpusSpan;
use crate::sealed::{self, Fetch, STRETCH_BYTES_MAX, Sealed, Stretch, Unread};
use crate::time::Quarter;
use std::ops::Range;

/// Bytes of a sealed segment's log that a page looks at in one piece, at least: every record fits.
const SCAN_BYTES_MIN: u64 = if cfg!(test) { 8 << 10 } else { 128 << 10 };
/// Rows that lie further apart than this, in the log and on the average of the next ones, are read one by one.
const FAR_BYTES: u64 = if cfg!(test) { 5 << 10 } else { 32 << 10 };

/// What a scan asks for: rows of a corpus.
#[derive(Debug, Clone, Copy)]
pub struct Scan {
    /// The corpus.
    pub prefix: Prefix,
    /// Claimed at this time or later.
    pub since_us: Option<i64>,
    /// Claimed before this time.
    pub until_us: Option<i64>,
    /// Behind this id.
    pub after: Option<EventId>,
    /// So many at most.
    pub limit: usize,
}

impl Scan {
    /// All rows of a corpus behind an id, at most so many.
    pub fn of(prefix: Prefix, after: Option<EventId>, limit: usize) -> Scan {
        Scan { prefix, since_us: None, until_us: None, after, limit }
    }

    /// No id before this one was claimed so late.
    fn lowest(&self) -> EventId {
        let first_ms = self.since_us.map_or(0, |since| (since.max(0) / 1_000) as u64);
        EventId::pack(first_ms, self.prefix, 0)
    }

    fn is_after(&self, id: EventId) -> bool {
        self.after.is_none_or(|after| id > after) && id >= self.lowest()
    }

    /// Whether no row that was claimed at this time or later is asked for.
    fn is_over(&self, at_us: i64) -> bool {
        self.until_us.is_some_and(|until| at_us >= until)
    }

    fn takes(&self, claim: &Claimed) -> bool {
        self.is_after(claim.event_id) && self.since_us.is_none_or(|since| claim.claim_timestamp_us >= since)
    }

    /// The id after which a segment's rows are looked for. Of an id of another corpus the time alone counts.
    fn from(&self) -> EventId {
        let own = |id: EventId| if id.prefix() == self.prefix { id } else { EventId::pack(id.ms(), self.prefix, 0) };
        self.after.map_or(self.lowest(), own).max(self.lowest())
    }
}

/// A page of a scan.
#[derive(Debug)]
pub struct Scanned<T> {
    /// What was made of the rows, in id order.
    pub rows: Vec<T>,
    /// Whether there may be more after these.
    pub more: bool,
    /// The log that they were found in, where it was read in one piece.
    pub log: Option<Stretch>,
}

/// A page under way.
struct Page<'a, T, M> {
    scan: &'a Scan,
    of: &'a Rows,
    make: M,
    rows: Vec<T>,
    /// Rows that belong to it, with those of which something is unread.
    taken: usize,
    unread: Option<Unread>,
    log: Option<Stretch>,
}

/// How far a page has come in a segment.
enum Reached {
    /// All rows that the segment has are looked at.
    End,
    /// The page ends here, and rows may follow.
    More,
    /// The next row was claimed too late, and so were all that follow.
    Past,
}

impl Rows {
    /// Rows in id order, each as what is made of it, and whether there may be more. A page may have fewer than are asked for and
    /// not be the last, but not none.
    pub fn scan<T>(&self, scan: &Scan, make: impl Fn(&Found) -> T) -> Fetch<Scanned<T>> {
        let mut page = Page { scan, of: self, make, rows: Vec::new(), taken: 0, unread: None, log: None };
        let reached = page.fill()?;
        match page.unread {
            Some(unread) => Err(unread),
            None => Ok(Scanned { rows: page.rows, more: matches!(reached, Reached::More), log: page.log }),
        }
    }
}

impl<T, M: Fn(&Found) -> T> Page<'_, T, M> {
    fn fill(&mut self) -> Fetch<Reached> {
        let (scan, of) = (self.scan, self.of);
        // They are older than everything that is sealed.
        for row in of.only_carried() {
            let claim = row.claimed;
            if claim.event_id.prefix() == scan.prefix
                && let Some(reached) = self.take((claim, Quarter::of(claim.claim_timestamp_us)))
            {
                return Ok(reached);
            }
        }
        for sealed in of.catalog.segments() {
            let span = sealed.summary.corpora.iter().find(|span| span.prefix == scan.prefix.get());
            let Some(span) = span.filter(|span| scan.is_after(span.last)) else { continue };
            if scan.is_over(span.claimed_us.0) {
                return Ok(Reached::Past);
            }
            match self.fill_sealed(sealed, span) {
                Ok(Reached::End) => {}
                // What was found so far goes out; the next page begins with what has to be read, or is damaged.
                Err(_) if self.taken > 0 => return Ok(Reached::More),
                ended => return ended,
            }
        }
        for segment in of.memory().rev() {
            let Some(rows) = segment.of_prefix(scan.prefix.get()) else { continue };
            let first = rows.slots.partition_point(|slot| !scan.is_after(slot.event_id()));
            for index in first..rows.slots.len() {
                if let Some(reached) = self.take(rows.claimed(index)) {
                    return Ok(reached);
                }
            }
        }
        Ok(Reached::End)
    }

    /// Takes a row in, if it is asked for. Says what ends the looking.
    fn take(&mut self, (claim, quarter): (Claimed, Quarter)) -> Option<Reached> {
        if self.scan.is_over(claim.claim_timestamp_us) {
            return Some(Reached::Past);
        }
        if !self.scan.takes(&claim) {
            return None;
        }
        if self.taken == self.scan.limit {
            return Some(Reached::More);
        }
        self.taken += 1;
        match self.of.found((claim, quarter)) {
            Ok(found) => self.rows.push((self.make)(&found)),
            Err(unread) => {
                self.unread = Some(match self.unread.take() {
                    Some(before) => before.and(unread),
                    None => unread,
                })
            }
        }
        None
    }

    fn fill_sealed(&mut self, sealed: &Sealed, span: &CorpusSpan) -> Fetch<Reached> {
        let (catalog, segment) = (&self.of.catalog, sealed.summary.segment);
        let mut from = self.scan.from();
        let Some(next) = catalog.rows_after(segment, span.prefix, from)? else { return Ok(Reached::End) };
        let bytes_a_row = sealed.summary.bytes / span.rows.max(1);
        if next.bytes_apart.unwrap_or(bytes_a_row) <= FAR_BYTES {
            // What is read in one piece is a page of its own.
            if self.taken > 0 {
                return Ok(Reached::More);
            }
            let reached = self.fill_from_piece(next.log, bytes_a_row, span)?;
            if reached.is_some() || self.taken > 0 {
                return Ok(reached.unwrap_or(Reached::More));
            }
        }
        loop {
            let places = catalog.row_places(segment, span.prefix, from)?;
            let parts: Vec<_> = places.iter().map(|(_, place)| self.claims_between(place.clone(), span.last)).collect();
            let readable = parts.iter().take_while(|part| part.is_ok()).count();
            for claim in parts[..readable].iter().flatten().flatten() {
                let is_last = claim.0.event_id >= span.last;
                if let Some(reached) = self.take(*claim).or(is_last.then_some(Reached::End)) {
                    return Ok(reached);
                }
            }
            if self.taken > 0 {
                return Ok(Reached::More);
            }
            let mut unread = parts.into_iter().filter_map(Result::err);
            if let Some(first) = unread.next() {
                // What is damaged behind what is missing is met when that is read.
                let missing = unread.filter(|unread| !matches!(unread, Unread::Damaged(_)));
                return Err(missing.fold(first, Unread::and));
            }
            // The first one is that of `from`, or is before it.
            match places.last() {
                Some((last, _)) if places.len() > 1 => from = *last,
                _ => {
                    let (row, prefix) = (span.last, span.prefix);
                    let what = format!("row {row} of prefix {prefix} is not where segment {segment} has it");
                    return Err(Unread::Damaged(what));
                }
            }
        }
    }

    /// Looks at as much log as a page of rows takes, or rather less: what is read beyond them is read again.
    fn fill_from_piece(&mut self, log: Range<u64>, bytes_a_row: u64, span: &CorpusSpan) -> Fetch<Option<Reached>> {
        let (of, Scan { prefix, limit, .. }) = (self.of, *self.scan);
        let window = bytes_a_row.saturating_mul(limit as u64).saturating_mul(15) / 16;
        let start = log.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = log.end.min(start + window.clamp(SCAN_BYTES_MIN, STRETCH_BYTES_MAX)).next_multiple_of(BLOCK_BYTES);
        let piece = of.catalog.in_one_piece(start..end)?;
        // Some take fewer bytes than others.
        let rows = (end - start) / bytes_a_row.max(1);
        self.rows.reserve(limit.min((rows + rows / 8) as usize));
        let (mut reached, mut verified) = (Ok(None), log.start..log.start);
        sealed::records_in(piece.bytes_from(start), start, log.start, |at, raw| {
            verified.end = at + 1;
            if !is_claim_of(prefix, raw) {
                return true;
            }
            reached = of.claimed(at, raw).map(|claim| {
                let is_last = claim.0.event_id >= span.last;
                self.take(claim).or(is_last.then_some(Reached::End))
            });
            matches!(reached, Ok(None))
        })
        .map_err(Unread::Damaged)?;
        self.log = Some(piece.verified(verified));
        reached
    }

    /// Claims of the corpus, up to one of a segment, whose records start in a stretch of its log.
    fn claims_between(&self, log: Range<u64>, last: EventId) -> Fetch<Vec<(Claimed, Quarter)>> {
        let mut claims = Vec::new();
        self.of.catalog.each_record(log, |at, raw| {
            if is_claim_of(self.scan.prefix, raw) {
                claims.push(self.of.claimed(at, raw)?);
            }
            Ok(claims.last().is_none_or(|(claim, _)| claim.event_id < last))
        })?;
        Ok(claims)
    }
}

/// All rows of a scan; `page` gives the one after an id.
pub fn all_pages<E>(mut page: impl FnMut(Option<EventId>) -> Result<Scanned<Found>, E>) -> Result<Vec<Found>, E> {
    let mut found: Vec<Found> = Vec::new();
    loop {
        let Scanned { rows, more, .. } = page(found.last().map(|row| row.event_id))?;
        assert!(!more || !rows.is_empty(), "a page that is not the last has rows");
        found.extend(rows);
        if !more {
            return Ok(found);
        }
    }
}

fn is_claim_of(prefix: Prefix, raw: RawRecord<'_>) -> bool {
    claimed_id(raw.kind, raw.body).is_some_and(|id| id.prefix() == prefix)
}
