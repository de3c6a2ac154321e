//! Retention of one shard: which quarter is due, which rows outlive it, and what a drop leaves.
//!
//! A quarter goes with whole segments, and only once all of it goes: the segments end where it does. Rows that came back in a later
//! quarter and outlive it are logged again before (`carry`). From the drop's entry on its rows are gone; the segments themselves are
//! freed when a seal behind that entry is named by the superblock, so that a start never needs them again.

use super::Shard;
use super::rows::Found;
use crate::id::EventId;
use crate::log::entry::{ClaimEntry, Entry, Meta, Record};
use crate::log::layout::BLOCK_BYTES;
use crate::log::superblock::{Origin, Superblock};
use crate::log::writer::LogWriter;
use crate::retention::{Dropped, Due, Kept, QuarterSeal, QuarterTotal, Retention, RetentionPlan, TOTALS_MAX};
use crate::sealed::{Fetch, Unread};
use crate::time::{Now, Quarter};

/// A drop whose entry would be longer than this waits: a record must fit a batch.
const DROPPED_BYTES_MAX: usize = 60 << 10;
/// Bytes of an entry beside what it holds, rounded up.
const ENTRY_BYTES: u64 = 256;

impl Shard {
    /// Holds, and the seals of what was dropped.
    pub fn retention(&self) -> &Retention {
        &self.retention
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
        let outliving = self.rows.reactivated().filter(|id| Quarter::of(id.ms() as i64 * 1_000) <= due.quarters.1);
        RetentionPlan {
            quarters: Some(due.quarters),
            segments,
            bytes: segments * self.rows.geometry().segment_bytes,
            rows,
            carried: outliving.count() as u64,
            waits_for: self.stands_against(due),
        }
    }

    /// A row whose claim would go and which outlives it, if there is one.
    pub fn to_carry(&self, due: Due, time_us: i64) -> Fetch<Option<Found>> {
        for event_id in self.rows.reactivated() {
            let Some(row) = self.rows.get(event_id)? else { continue };
            let goes = self.rows.segment_of(row.claim_at) < due.end_segment;
            if goes && row.expires_at_us(self.policy.retention_years()) > time_us {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Logs a row again that outlives its quarter; false where the log has no room for it.
    pub fn carry(&mut self, now: Now, row: &Found, log: &mut LogWriter) -> Fetch<bool> {
        let record = self.rows.catalog().record_at(row.claim_at)?;
        let damaged = || Unread::Damaged(format!("the record at log offset {} is no claim", row.claim_at));
        let decoded = Record::decode(record.kind, &record.body).map_err(|_| damaged())?;
        let (claim, claimed_at_us, claim_at): (ClaimEntry<'_>, i64, u64) = match decoded.entry {
            Entry::Claim(claim) => (claim, decoded.meta.timestamp_us, record.log_offset),
            Entry::Carry { claim, claimed_at_us, claim_at, .. } => (claim, claimed_at_us, claim_at),
            _ => return Err(damaged()),
        };
        let change = self.rows.carried_change(row)?;
        let time_us = self.clock.time_us(now, self.last_us);
        let bytes = (record.body.len() + change.len()) as u64 + ENTRY_BYTES;
        if !log.takes_entry(bytes) {
            return Ok(false);
        }
        log.expect(bytes);
        let corpus = Some(row.event_id.prefix());
        let meta = Meta { timestamp_us: time_us, corpus, ..Meta::of_daemon() };
        let entry = Entry::Carry { claim, claimed_at_us, claim_at, change: &change };
        self.append(&Record { meta, entry }, log);
        Ok(true)
    }

    /// Drops what is due. The caller has seen that every row which outlives it was carried, and that nothing stands against it.
    pub fn drop_quarter(&mut self, now: Now, due: Due, log: &mut LogWriter) -> Result<(), String> {
        let catalog = self.rows.catalog();
        let Some(last) = catalog.segment(due.end_segment - 1) else { return Err("its segments are not sealed".into()) };
        let (start, checkpoint) = (last.resume, last.checkpoint);
        let first_segment = catalog.first();
        let mut totals: Vec<QuarterTotal> = Vec::new();
        let mut others = [0; 4];
        for corpus in self.registry.corpora().iter().filter(|corpus| corpus.shard == self.number) {
            let gone = self.rows.totals(corpus.prefix).into_iter().filter(|(quarter, _)| *quarter <= due.quarters.1);
            for (quarter, rows) in gone {
                if totals.len() < TOTALS_MAX {
                    totals.push(QuarterTotal { prefix: corpus.prefix.get(), quarter, rows });
                } else {
                    others.iter_mut().zip(rows).for_each(|(sum, n)| *sum += n);
                }
            }
        }
        if others != [0; 4] {
            totals.push(QuarterTotal { prefix: 0, quarter: due.quarters.1, rows: others });
        }
        let kept = self.rows.kept_of(due).map_err(|unread| unread.to_string())?;
        let time_us = self.clock.time_us(now, self.last_us);
        let mut seal = QuarterSeal {
            quarters: due.quarters,
            segments: (first_segment, due.end_segment),
            at_us: time_us,
            batch: start.next_number - 1,
            position: start.next_position - 1,
            head: start.previous_hash,
            totals,
            carried: kept.iter().flat_map(|kept: &Kept| kept.rows).sum(),
            previous: self.retention.seals.last().map_or([0; 32], |seal| seal.hash),
            hash: [0; 32],
        };
        seal.hash = seal.hash_of(&self.key);
        let gone_before_us = due.quarters.1.end_us();
        let dropped = Dropped { seal, start, checkpoint, gone_before_us, kept }.encode();
        if dropped.len() > DROPPED_BYTES_MAX {
            return Err(format!("what stays of it takes {} bytes, and an entry {DROPPED_BYTES_MAX}", dropped.len()));
        }
        let bytes = dropped.len() as u64 + ENTRY_BYTES;
        if !log.takes_entry(bytes) {
            return Err("the log has no room for the entry yet".into());
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
        let unsealed = self.rows.drop_before(end, dropped.seal.quarters.1, dropped.gone_before_us, &dropped.kept);
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
