//! Retention of one shard: which quarter is due, which rows outlive it, and what a drop leaves.
//!
//! A quarter goes with whole segments, and only once all of it goes: the segments end where it does. Rows that came back in a later
//! quarter and outlive it are logged again before (`carry`). From the drop's entry on its rows are gone; the segments themselves are
//! freed when a seal behind that entry is named by the superblock, so that a start never needs them again.

use super::Shard;
use super::rows::{Carried, Found};
use crate::id::EventId;
use crate::log::entry::{ClaimEntry, Entry, Meta, Record};
use crate::log::layout::{BLOCK_BYTES, RECORD_BYTES_MAX};
use crate::log::record::RECORD_HEADER_BYTES;
use crate::log::superblock::{Origin, Superblock};
use crate::log::writer::LogWriter;
use crate::retention::{Dropped, Due, QuarterSeal, QuarterTotal, Retention, RetentionPlan, bounded_totals};
use crate::sealed::{self, Fetch, Unread};
use crate::time::{Now, Quarter};

/// Bytes of an entry beside what it holds, rounded up.
const ENTRY_BYTES: u64 = 256;
/// Entries of the open segment that a carry names; where there are more, the segment ends before.
const ENTRIES_CARRIED_MAX: usize = 64;
/// Rows that are looked at in one go for whether they outlive their quarter.
const LOOKED_AT_ONCE: usize = 1_024;
/// Rows that are looked at beside one of which something is to be read, to have it read at once.
const LOOKED_AHEAD: usize = 32;

/// What a carry or a drop waits for that the log has no place for yet.
const ROOM: &str = "room in the log";

/// How far the rows that came back were looked at.
#[derive(Debug, Default)]
pub struct LookedTo {
    /// For what, with the years of retention.
    of: Option<(Due, u16)>,
    /// None up to this one is to be carried.
    last: Option<EventId>,
}

/// What is to be carried next.
#[derive(Debug)]
pub enum ToCarry {
    /// This row.
    Row(Found),
    /// There are more to be looked at.
    More,
    /// Nothing.
    None,
}

impl Shard {
    /// Holds, and the seals of what was dropped.
    pub fn retention(&self) -> &Retention {
        &self.retention
    }

    /// At shard 0: holds on quarters up to this one are refused from now on.
    pub fn takes_no_hold_through(&mut self, quarter: Option<Quarter>) {
        self.no_hold_through = self.no_hold_through.max(quarter);
    }

    /// At shard 0: holds are taken from now on.
    pub fn has_heard_of_all_drops(&mut self) {
        self.knows_drops = true;
    }

    /// The oldest quarter whose rows are all expired at a moment, if its segments are sealed and end with it.
    pub fn due_quarter(&self, time_us: i64) -> Option<Due> {
        let years = self.policy.retention_years();
        let mut segments = self.rows.times_of_segments().peekable();
        let mut first = None;
        while let Some((segment, times_us, is_sealed)) = segments.next() {
            let last = Quarter::of(times_us.1);
            first = first.or(Some(Quarter::of(times_us.0)));
            if !is_sealed || last.end_us_after_years(years) > time_us {
                return None;
            }
            let is_end = segments.peek().is_some_and(|(_, next_us, _)| Quarter::of(next_us.0) > last);
            if let (Some(first), true) = (first, is_end) {
                return Some(Due { quarters: (first, last), end_segment: segment + 1 });
            }
        }
        None
    }

    /// What stands against dropping what is due, as far as this shard knows.
    pub fn stands_against(&self, due: Due) -> Option<String> {
        if let Some((quarter, hold)) = self.retention.holds.range(..=due.quarters.1).next() {
            return Some(format!("a hold on {quarter}: {}", hold.reason));
        }
        if let Some(stop) = self.registry.frozen() {
            return Some(format!("the ledger is frozen: {}", stop.reason));
        }
        if self.passes.is_under_way() {
            return Some("the pass of reconciliation that is under way".to_owned());
        }
        None
    }

    /// What the next drop would do.
    pub fn retention_plan(&self, time_us: i64) -> RetentionPlan {
        let Some(due) = self.due_quarter(time_us) else { return RetentionPlan::default() };
        let gone = self.rows.catalog().segments().iter().take_while(|s| s.summary.segment < due.end_segment);
        let (segments, rows) =
            gone.fold((0, 0), |(n, rows), s| (n + 1, rows + s.summary.quarters.iter().map(|q| q.rows).sum::<u64>()));
        let came_back = self.rows.reactivated_through(due.quarters.1, None);
        let outliving = came_back.filter(|id| Quarter::of(id.ms() as i64 * 1_000) <= due.quarters.1);
        RetentionPlan {
            quarters: Some(due.quarters),
            segments,
            bytes: segments * self.rows.geometry().segment_bytes,
            rows,
            carried: outliving.count() as u64,
            waits_for: self.stands_against(due),
        }
    }

    /// A row whose claim would go and which outlives it, if there is one that was not looked at before.
    pub fn to_carry(&mut self, due: Due, time_us: i64, looked_to: &mut LookedTo) -> Fetch<ToCarry> {
        let of = Some((due, self.policy.retention_years()));
        let came_back = self.rows.take_came_back();
        if looked_to.of != of || came_back.is_some_and(|id| Some(id) <= looked_to.last) {
            *looked_to = LookedTo { of, last: None };
        }
        let (mut missing, mut ahead) = (Vec::new(), 0);
        let ids = self.rows.reactivated_through(due.quarters.1, looked_to.last);
        for (n, event_id) in ids.enumerate() {
            match self.outlives(event_id, due, time_us) {
                Ok(found) if missing.is_empty() => match found {
                    Some(row) => return Ok(ToCarry::Row(row)),
                    None => looked_to.last = Some(event_id),
                },
                Err(Unread::Missing(blocks)) => missing.extend(blocks),
                Err(damage) if missing.is_empty() => return Err(damage),
                // They come to their turn.
                Ok(_) | Err(_) => {}
            }
            ahead += usize::from(!missing.is_empty());
            if ahead == LOOKED_AHEAD {
                break;
            }
            if missing.is_empty() && n + 1 == LOOKED_AT_ONCE {
                return Ok(ToCarry::More);
            }
        }
        if missing.is_empty() { Ok(ToCarry::None) } else { Err(Unread::Missing(missing)) }
    }

    /// The row, if its claim would go and it outlives it.
    fn outlives(&self, event_id: EventId, due: Due, time_us: i64) -> Fetch<Option<Found>> {
        let years = self.policy.retention_years();
        let is_over = |carried: &Carried| {
            carried.standing.is_some_and(|standing| standing.effective.end_us_after_years(years) <= time_us)
        };
        let segment = match self.rows.carried().get(&event_id) {
            Some(carried) if is_over(carried) => None,
            Some(carried) => Some(self.rows.segment_of(carried.claimed.claim_at)),
            None => self.rows.catalog().segment_of_row(event_id),
        };
        if segment.is_none_or(|segment| segment >= due.end_segment) {
            return Ok(None);
        }
        Ok(self.rows.get(event_id)?.filter(|row| row.expires_at_us(years) > time_us))
    }

    /// Logs a row again that outlives its quarter; else says what that waits for.
    pub fn carry(&mut self, now: Now, row: &Found, log: &mut LogWriter) -> Fetch<Result<(), String>> {
        let event_id = row.event_id;
        let claimed = self.rows.catalog().record_at(row.claim_at)?;
        let damaged = || Unread::Damaged(format!("the record at log offset {} is no claim", row.claim_at));
        let decoded = Record::decode(claimed.kind, &claimed.body).map_err(|_| damaged())?;
        let (claim, claimed_at_us, claim_at): (ClaimEntry<'_>, i64, u64) = match decoded.entry {
            Entry::Claim(claim) => (claim, decoded.meta.timestamp_us, claimed.log_offset),
            Entry::Carry { claim, claimed_at_us, claim_at, .. } => (claim, claimed_at_us, claim_at),
            _ => return Err(damaged()),
        };
        let time_us = self.clock.time_us(now, self.last_us);
        let mut change = self.rows.carried_change(row)?;
        // The carry goes to the segment of the entries that it names, or behind it.
        if let Some(entries) = self.rows.entries_in_open(event_id) {
            let bytes = (claimed.body.len() + change.len()) as u64 + ENTRY_BYTES;
            log.expect(bytes);
            let is_quarter = self.last_us == 0 || self.quarter.1.contains(&time_us);
            let stays = is_quarter && entries <= ENTRIES_CARRIED_MAX && log.goes_to(self.rows.segment(), bytes);
            if !stays {
                log.end_segment();
                self.enter_segment(log.written_bytes());
                if self.rows.entries_in_open(event_id).is_some() {
                    return Ok(Err(ROOM.to_owned()));
                }
                change = self.rows.carried_change(row)?;
            }
        }
        let reason = match self.gone_reason(row)? {
            Ok(reason) => reason,
            Err(waits_for) => return Ok(Err(waits_for)),
        };
        let reason = reason.as_ref().map(|stored| Record::decode(stored.kind, &stored.body)).transpose();
        let reason = reason.map_err(|e| Unread::Damaged(format!("the tombstone of {event_id}: {e}")))?;
        let rationale = reason.map_or("", |reason| reason.meta.rationale);
        let meta = Meta { timestamp_us: time_us, corpus: Some(event_id.prefix()), rationale, ..Meta::of_daemon() };
        let record = Record { meta, entry: Entry::Carry { claim, claimed_at_us, claim_at, change: &change } };
        let mut body = Vec::new();
        record.encode(&mut body);
        let bytes = (body.len() + RECORD_HEADER_BYTES) as u64;
        if bytes > RECORD_BYTES_MAX {
            let what = format!("{event_id} takes {bytes} bytes to be logged again, and a record {RECORD_BYTES_MAX}");
            return Err(Unread::Damaged(what));
        }
        if !log.takes_entry(bytes) {
            return Ok(Err(ROOM.to_owned()));
        }
        log.expect(bytes);
        self.append(&record, log);
        Ok(Ok(()))
    }

    /// The entry of a row's tombstone, if that goes before a carry would; else says what it waits for.
    fn gone_reason(&self, row: &Found) -> Fetch<Result<Option<sealed::Record>, String>> {
        let Some(tombstone) = row.tombstone else { return Ok(Ok(None)) };
        let segment = self.rows.segment_of(tombstone.entry_at);
        if segment == self.rows.segment() {
            return Ok(Ok(None));
        }
        if segment >= self.rows.catalog().end() {
            return Ok(Err(format!("the sealing of segment {segment}")));
        }
        self.rows.catalog().record_at(tombstone.entry_at).map(|stored| Ok(Some(stored)))
    }

    /// Drops what is due. The caller has seen that every row which outlives it was carried, and that nothing stands against it.
    pub fn drop_quarter(&mut self, now: Now, due: Due, log: &mut LogWriter) -> Result<(), String> {
        let catalog = self.rows.catalog();
        let Some(last) = catalog.segment(due.end_segment - 1) else { return Err("the sealing of its segments".into()) };
        let (start, checkpoint) = (last.resume, last.checkpoint);
        let first_segment = catalog.first();
        // What is left of quarters before them is in their own seals.
        let quarters = due.quarters.0..=due.quarters.1;
        let own = self.registry.corpora().iter().filter(|corpus| corpus.shard == self.number);
        let gone = own.flat_map(|corpus| {
            let prefix = corpus.prefix.get();
            self.rows.totals(corpus.prefix).into_iter().map(move |(quarter, rows)| QuarterTotal {
                prefix,
                quarter,
                rows,
            })
        });
        let totals = bounded_totals(gone.filter(|total| quarters.contains(&total.quarter)), due.quarters.1);
        let time_us = self.clock.time_us(now, self.last_us);
        let mut seal = QuarterSeal {
            quarters: due.quarters,
            segments: (first_segment, due.end_segment),
            at_us: time_us,
            batch: start.next_number - 1,
            position: start.next_position - 1,
            head: start.previous_hash,
            totals,
            carried: self.rows.carried_of(due),
            previous: self.retention.seals.last().map_or([0; 32], |seal| seal.hash),
            hash: [0; 32],
        };
        seal.hash = seal.hash_of(&self.key);
        let gone_before_us = due.quarters.1.end_us();
        let dropped = Dropped { seal, start, checkpoint, gone_before_us, kept: Vec::new() }.encode();
        let bytes = dropped.len() as u64 + ENTRY_BYTES;
        if !log.takes_entry(bytes) {
            return Err(ROOM.to_owned());
        }
        log.expect(bytes);
        let meta = Meta { timestamp_us: time_us, ..Meta::of_daemon() };
        self.append(&Record { meta, entry: Entry::RetentionDrop { dropped: &dropped } }, log);
        Ok(())
    }

    /// Where the superblock is to say that the log begins, as the small state has it.
    pub fn origin(&self) -> Option<Origin> {
        self.retention.origin.map(|origin| Origin {
            start: origin.start.into(),
            seal: origin.checkpoint,
            gone_before_us: origin.gone_before_us,
        })
    }

    /// Whether what was dropped last stays part of the log until the segment that is open now is sealed.
    pub fn is_drop_open(&self, superblock: &Superblock) -> bool {
        let by_full = self.snapshots.back().map_or(superblock.origin, |(_, origin)| *origin);
        let begins_at = |origin: Option<Origin>| origin.map(|origin| origin.start.next_batch_at);
        begins_at(self.origin()) > begins_at(by_full)
    }

    /// Whether a row that is not there was dropped with its quarter: which that was.
    pub fn quarter_of_gone(&self, event_id: EventId) -> Option<Quarter> {
        let at_us = event_id.ms() as i64 * 1_000;
        (at_us < self.rows.gone_before_us()).then(|| Quarter::of(at_us))
    }

    pub(super) fn apply_drop(&mut self, bytes: &[u8]) -> Result<(), String> {
        let dropped = Dropped::decode(bytes)?;
        let end = dropped.seal.segments.1;
        if end > self.rows.segment() {
            return Err(format!("a retention drop before segment {end}, which is behind its own entry"));
        }
        let begins_at = self.rows.geometry().segment_start(end) + self.rows.geometry().first_batch();
        if dropped.start.next_batch_at != begins_at || dropped.checkpoint.log_offset % BLOCK_BYTES != 0 {
            return Err(format!("a retention drop before segment {end} that says that the log goes on elsewhere"));
        }
        // No more rows are left than there are records.
        let numbers = dropped.kept.iter().flat_map(|kept| {
            let aliases = kept.aliases.iter().map(|(_, count)| *count);
            kept.rows.into_iter().chain([kept.over_budget]).chain(aliases)
        });
        let rows = numbers.fold(0u64, u64::saturating_add);
        if rows > self.last_position.saturating_mul(3) {
            return Err(format!("a retention drop that leaves {rows} rows, more than there are records"));
        }
        let last = dropped.seal.quarters.1;
        let kept = match dropped.kept.is_empty() {
            true => {
                self.rows.expire_carried(last);
                self.rows.kept_of(end, last)
            }
            // An earlier build's: every row stays that was logged again in what stays.
            false => dropped.kept.clone(),
        };
        let unsealed = self.rows.drop_before(end, last, dropped.gone_before_us, &kept);
        self.retention.dropped(&dropped);
        if self.seals && unsealed > 0 {
            // They never will be: the next seal has none before it, and holds in a log that begins with its segment.
            self.snapshots.drain(..unsealed);
            let origin = self.origin();
            self.snapshots.iter_mut().for_each(|(_, of_snapshot)| *of_snapshot = origin);
        }
        Ok(())
    }
}
