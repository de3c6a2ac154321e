//! Walks over the event keys of sealed segments, in the order of their hashes and over many segments side by side: each page of
//! an index is read once for all that is looked for on it. A walk goes as far as pages are at hand, says which it needs next,
//! and goes on from there.

use super::{Catalog, Fetch, Summary, Unread};
use std::ops::RangeInclusive;

/// Segments that are walked over side by side, at most: of each of them a page is read at once.
const SIDE_BY_SIDE: usize = if cfg!(test) { 2 } else { 64 };

/// How far a walk has come in one segment.
#[derive(Debug)]
pub struct Cursor {
    segment: u64,
    /// The page of the run that comes next; where it is not known, the first that it may be.
    page: u32,
    is_known: bool,
    /// The hash that is looked for next, by its number.
    next: usize,
}

/// A walk over segments, the oldest first.
#[derive(Debug, Default)]
pub struct Walk {
    /// Segments before this one are done, or under way.
    next: u64,
    under_way: Vec<Cursor>,
}

impl Walk {
    /// Takes the walk on: `step` does what is to be done in a segment, as far as it can. Segments that are sealed meanwhile
    /// are walked over as well.
    pub fn go_on(
        &mut self,
        catalog: &Catalog,
        takes: impl Fn(&Summary) -> bool,
        mut step: impl FnMut(&mut Cursor) -> Fetch<()>,
    ) -> Fetch<()> {
        loop {
            while self.under_way.len() < SIDE_BY_SIDE && self.next < catalog.end() {
                if catalog.segment(self.next).is_some_and(|sealed| takes(&sealed.summary)) {
                    self.under_way.push(Cursor { segment: self.next, page: 0, is_known: false, next: 0 });
                }
                self.next = (self.next + 1).max(catalog.first());
            }
            if self.under_way.is_empty() {
                return Ok(());
            }
            let mut unread: Option<Unread> = None;
            self.under_way.retain_mut(|cursor| match step(cursor) {
                Ok(()) => false,
                Err(error) => {
                    unread = Some(match unread.take() {
                        Some(before) => before.and(error),
                        None => error,
                    });
                    true
                }
            });
            if let Some(unread) = unread {
                return Err(unread);
            }
        }
    }
}

impl Catalog {
    /// Names the hashes of a segment's event keys in a range, in order, with repetitions.
    pub fn hashes_between(
        &self,
        cursor: &mut Cursor,
        range: RangeInclusive<u64>,
        mut each: impl FnMut(u64),
    ) -> Fetch<()> {
        let Some(sealed) = self.segment(cursor.segment) else { return Ok(()) };
        let run = sealed.summary.event_keys;
        if !cursor.is_known && run.pages > 0 {
            cursor.page = self.page_of_hash(sealed, run, cursor.page, *range.start())?;
            cursor.is_known = true;
        }
        while cursor.page < run.pages {
            let is_over = self.hash_page(sealed, run.first + cursor.page, |page| {
                let first = page.partition_point(|entry| entry.hash < *range.start());
                let hashes = (first..page.count()).map(|index| page.get(index).hash);
                hashes.take_while(|hash| hash <= range.end()).for_each(&mut each);
                page.last().hash > *range.end()
            })?;
            if is_over {
                break;
            }
            cursor.page += 1;
        }
        Ok(())
    }

    /// Names the claims of a segment whose event key has one of these hashes, which are sorted: the number of the hash, and the
    /// claim's log offset.
    pub fn matches(&self, cursor: &mut Cursor, hashes: &[u64], mut each: impl FnMut(usize, u64)) -> Fetch<()> {
        let Some(sealed) = self.segment(cursor.segment) else { return Ok(()) };
        let run = sealed.summary.event_keys;
        let start = self.geometry.segment_start(cursor.segment);
        while let Some(hash) = hashes.get(cursor.next)
            && cursor.page < run.pages
        {
            if !cursor.is_known {
                cursor.page = self.page_of_hash(sealed, run, cursor.page, *hash)?;
                cursor.is_known = true;
                continue;
            }
            let mut next = cursor.next;
            self.hash_page(sealed, run.first + cursor.page, |page| {
                // Each of the two lists leads the other one on.
                let mut index = page.partition_point(|entry| entry.hash < *hash);
                while index < page.count()
                    && let Some(hash) = hashes.get(next)
                {
                    let entry = page.get(index);
                    if entry.hash == *hash {
                        each(next, start + u64::from(entry.offset));
                        index += 1;
                    } else if entry.hash < *hash {
                        index = page.partition_point(|entry| entry.hash < *hash);
                    } else {
                        next += gallop(&hashes[next..], entry.hash);
                    }
                }
            })?;
            // The last hash of the page may go on on the next one.
            (cursor.next, cursor.page, cursor.is_known) = (next, cursor.page + 1, false);
        }
        Ok(())
    }
}

/// How many of the sorted hashes stand before one; near the beginning it is found soon.
fn gallop(hashes: &[u64], hash: u64) -> usize {
    let mut end = 1;
    while end < hashes.len() && hashes[end - 1] < hash {
        end *= 2;
    }
    let start = end / 2;
    start + hashes[start..end.min(hashes.len())].partition_point(|h| *h < hash)
}
