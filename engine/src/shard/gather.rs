//! Answers that take more than is at hand at once: what rows are, and what a pass of reconciliation asks about event keys, which
//! of them have something new, how many rows they have, and which. Keys come in ranges of their hashes. An answer is gathered from all sealed segments side by side, as far as their
//! blocks are at hand, and goes on from there; what memory has comes last, in one step.

use super::Shard;
use super::passes::KEY_ROWS_MAX;
use super::rows::Found;
use crate::command::Fact;
use crate::corpus::Prefix;
use crate::peer::{Answer, Ask, Candidate};
use crate::row::RowState;
use crate::sealed::{self, Fetch, Summary, Walk};
use hashbrown::HashMap;

/// Event keys that are named at once, about; few in tests, so that small ledgers take many ranges.
const DUE_KEYS: usize = if cfg!(test) { 8 } else { 16_384 };
/// Rows whose claims are read at once.
const ROWS_AT_ONCE: usize = if cfg!(test) { 4 } else { 128 };

/// What was gathered of an answer so far.
#[derive(Debug, Default)]
pub struct Gathered {
    walk: Walk,
    /// Event keys with something new, each with its rows; the last hash that is looked at.
    due: Vec<(u64, u32)>,
    through: Option<u64>,
    /// Rows of each hash that was asked for.
    counts: Vec<u32>,
    /// Log offsets of claims; those that were read; what they came to.
    claims_at: Vec<u64>,
    read: usize,
    candidates: Vec<Candidate>,
    facts: Vec<Fact>,
}

impl Gathered {
    /// Makes one of repeated keys. Of too many those with the lowest hashes are kept.
    fn settle(&mut self, through: &mut u64) {
        self.due.sort_unstable_by_key(|(hash, _)| *hash);
        self.due.dedup_by(|(hash, rows), (kept, sum)| {
            let is_same = hash == kept;
            *sum = if is_same { sum.saturating_add(*rows) } else { *sum };
            is_same
        });
        self.due.truncate(2 * DUE_KEYS);
        if let Some((last, _)) = self.due.get(2 * DUE_KEYS - 1) {
            *through = *last;
        }
    }
}

impl Shard {
    /// Answers another shard, and goes on with an answer that was begun. The last rows were [taken in](Shard::tidy) among the
    /// event keys.
    pub fn gather(&self, ask: &Ask, gathered: &mut Gathered) -> Fetch<Answer> {
        match ask {
            Ask::Due { at_us, from, to, is_full } => self.due(*at_us, (*from, *to), *is_full, gathered),
            Ask::Counts { hashes } => self.counts(hashes, gathered),
            Ask::Keys { at_us, hashes } => self.candidates(*at_us, hashes, gathered),
            Ask::Rows(ids) => {
                let Gathered { read, facts, .. } = gathered;
                while *read < ids.len() {
                    let some = &ids[*read..ids.len().min(*read + ROWS_AT_ONCE)];
                    facts.extend(sealed::all(some.iter().map(|id| self.fact(*id)))?);
                    *read += some.len();
                }
                Ok(Answer::Facts(std::mem::take(facts)))
            }
            ask => self.answer(ask),
        }
    }

    fn due(&self, at_us: i64, (from, to): (u64, u64), is_full: bool, gathered: &mut Gathered) -> Fetch<Answer> {
        let is_full = is_full || self.passes.everything_since().is_some();
        let done_us = self.passes.done().map_or(i64::MIN, |done| done.at_us);
        let barrier_us = if self.passes.has_barriers() { 2 * self.policy.window_max_us() } else { 0 };
        let since_us = match is_full || done_us == i64::MIN {
            true => i64::MIN,
            false => done_us - self.policy.window_max_us() - barrier_us,
        };
        let catalog = self.rows.catalog();
        // Of a sealed segment that may have a row that is due all keys are named: the others come to nothing.
        let takes = |summary: &Summary| summary.times_us.0 <= at_us && summary.times_us.1 >= since_us;
        let mut through = gathered.through.unwrap_or_else(|| to.min(self.range_end(from, takes)));
        let mut walk = std::mem::take(&mut gathered.walk);
        let walked = walk.go_on(catalog, takes, |cursor| {
            let due = &mut gathered.due;
            let walked = catalog.hashes_between(cursor, from..=through, |hash| match due.last_mut() {
                Some((last, rows)) if *last == hash => *rows = rows.saturating_add(1),
                _ => due.push((hash, 1)),
            });
            if due.len() > 4 * DUE_KEYS {
                gathered.settle(&mut through);
            }
            walked
        });
        (gathered.walk, gathered.through) = (walk, Some(through));
        walked?;
        let mut windows = Windows::default();
        self.rows.keys_in_memory(from..=through, |hash, rows| {
            let (mut count, mut is_due) = (0, is_full);
            for (prefix, claimed_us, incident) in rows.filter(|row| (since_us..=at_us).contains(&row.1)) {
                let window_us = windows.of(prefix, incident, |prefix| self.window_us(prefix, incident));
                let closes_us = self.closes_at_us(claimed_us, window_us);
                is_due |= closes_us <= at_us && closes_us > done_us;
                count += 1;
            }
            if is_due && count > 0 {
                gathered.due.push((hash, count));
            }
        });
        gathered.due.extend(self.passes.changed_keys(from..=through).map(|hash| (hash, 0)));
        if is_full {
            let carried = self.rows.only_carried().map(|row| row.claimed.key_hash);
            gathered.due.extend(carried.filter(|hash| (from..=through).contains(hash)).map(|hash| (hash, 0)));
        }
        gathered.settle(&mut through);
        Ok(Answer::Due { keys: std::mem::take(&mut gathered.due), through })
    }

    /// The end of a range that has about as many event keys as are named at once.
    fn range_end(&self, from: u64, takes: impl Fn(&Summary) -> bool) -> u64 {
        let sealed = self.rows.catalog().segments().iter().map(|sealed| &sealed.summary);
        let keys: u64 = sealed.filter(|summary| takes(summary)).map(|summary| summary.event_keys.entries).sum();
        let keys = keys + self.rows.count_in_memory();
        match keys > DUE_KEYS as u64 {
            true => from.saturating_add(u64::MAX / keys * DUE_KEYS as u64),
            false => u64::MAX,
        }
    }

    fn counts(&self, hashes: &[u64], gathered: &mut Gathered) -> Fetch<Answer> {
        let catalog = self.rows.catalog();
        let Gathered { walk, counts, .. } = gathered;
        counts.resize(hashes.len(), 0);
        walk.go_on(
            catalog,
            |_| true,
            |cursor| catalog.matches(cursor, hashes, |index, _| counts[index] = counts[index].saturating_add(1)),
        )?;
        self.rows.count_in_memory_by_key(hashes, KEY_ROWS_MAX + 1, counts);
        Ok(Answer::Counts(std::mem::take(counts)))
    }

    /// The rows of some event keys, as a pass sees them.
    fn candidates(&self, at_us: i64, hashes: &[u64], gathered: &mut Gathered) -> Fetch<Answer> {
        let catalog = self.rows.catalog();
        let Gathered { walk, counts, claims_at, read, candidates, .. } = gathered;
        counts.resize(hashes.len(), 0);
        loop {
            let before = claims_at.len();
            walk.go_on(
                catalog,
                |_| true,
                |cursor| {
                    catalog.matches(cursor, hashes, |index, claim_at| {
                        if (counts[index] as usize) <= KEY_ROWS_MAX {
                            counts[index] += 1;
                            claims_at.push(claim_at);
                        }
                    })
                },
            )?;
            while *read < claims_at.len() {
                let some = &claims_at[*read..claims_at.len().min(*read + ROWS_AT_ONCE)];
                let found = sealed::all(some.iter().map(|at| self.rows.claimed_at(*at)))?;
                candidates.extend(found.iter().flatten().filter_map(|row| self.candidate(at_us, row)));
                *read += some.len();
            }
            if claims_at.len() == before {
                break;
            }
        }
        for (hash, count) in hashes.iter().zip(counts) {
            let rows = self.rows.in_memory_with_key(*hash, (KEY_ROWS_MAX + 1).saturating_sub(*count as usize))?;
            candidates.extend(rows.iter().filter_map(|row| self.candidate(at_us, row)));
        }
        Ok(Answer::Candidates(std::mem::take(candidates)))
    }

    /// A row as a pass sees it, if it takes part.
    fn candidate(&self, at_us: i64, row: &Found) -> Option<Candidate> {
        let is_frozen = self.registry.stop_of(row.event_id.prefix()).is_some();
        let is_expired = self.is_expired(row, at_us);
        // Expired rows take no part. What keeps a group from being merged does so until an entry ends it: a pass that looks
        // only at what is new would not notice that it has expired.
        let takes_part = match row.state {
            RowState::Disputed => true,
            RowState::Registered => is_frozen || !is_expired,
            RowState::Referenced => !is_expired,
            RowState::Retracted | RowState::TombstonedByArbitration => false,
        };
        takes_part.then(|| Candidate {
            event_id: row.event_id,
            key_hash: row.key_hash,
            claim_timestamp_us: row.claim_timestamp_us,
            claim_sequence: row.claim_sequence,
            occurred_at_us: row.occurred_at_us,
            state: row.state,
            is_closed: self.is_closed(row, at_us) && !is_expired,
            is_frozen,
            position: row.position,
        })
    }
}

/// Windows of corpora, each looked up once.
#[derive(Default)]
struct Windows(HashMap<(Prefix, bool), i64>);

impl Windows {
    fn of(&mut self, prefix: Prefix, incident: bool, look_up: impl FnOnce(Prefix) -> i64) -> i64 {
        *self.0.entry((prefix, incident)).or_insert_with(|| look_up(prefix))
    }
}
