//! Answers that need the ledger's bytes: a row, a page of rows, a history.

use crate::driver::{Driver, StoredRecord};
use crate::rounds::{Rounds, Work};
use claim_engine::command::Outcome;
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::log::entry::{Entry, Record, encode_merges, merges};
use claim_engine::row::RowView;
use claim_protocol::reply::{ReplyResult, Row};
use claim_protocol::{self as wire, FRAME_BYTES_MAX, LogPosition, entry_frame_bytes, row_frame_bytes};
use claim_translate::{self as translate, Names, pages};
use std::rc::Rc;

/// A page of rows ends when its reply has grown to this, so that the next row still fits the frame.
const PAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - (256 << 10);
/// Rows whose records are read at once.
const ROWS_READ: usize = 256;

/// Entries whose records are read at once.
const ENTRIES_READ: usize = 64;
/// Rows that are made of their records at once; then others have their turn, if reads have used up theirs.
const ROWS_MADE: usize = 32;

/// Who reads: the shard, and the rounds that its reads take turns in.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// Where the records are.
    pub driver: &'a Driver,
    /// Of its executor.
    pub rounds: &'a Rc<Rounds>,
}

/// What an answer is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Within {
    /// Entries from this moment on.
    pub since_us: Option<i64>,
    /// Entries before this moment.
    pub until_us: Option<i64>,
    /// The row that is asked about: of what else an entry says about other rows it tells nothing.
    pub about: Option<EventId>,
    /// Where the page of a history begins.
    pub from: u64,
    /// Rows with this event key, rather than with its hash alone.
    pub event_key: Option<String>,
}

impl Within {
    fn takes(&self, at_us: i64) -> bool {
        self.since_us.is_none_or(|since| at_us >= since) && self.until_us.is_none_or(|until| at_us < until)
    }
}

/// Reads what an outcome of a shard, one of so many, needs.
///
/// A record that can't be read or does not verify is an error of this answer, never a wrong row.
pub async fn read(
    reader: Reader<'_>,
    (shard, shards): (u16, u16),
    outcome: Outcome,
    within: &Within,
    names: &impl Names,
) -> Result<ReplyResult, Refusal> {
    match outcome {
        Outcome::Row(view) => {
            let mut rows = read_rows(reader, &[*view], names).await?;
            let row = rows.pop().ok_or_else(|| unreadable("the row's record is not there".into()))?;
            Ok(ReplyResult::Row(Box::new(row)))
        }
        Outcome::Rows { rows: views, more } => page(reader, &views, more, names).await,
        Outcome::Found { rows, next } => found(reader, (shard, shards), &rows, next, within, names).await,
        Outcome::History { entries_at, more, related } => {
            let (entries, taken) = read_entries(reader, shard, &entries_at, within, names).await?;
            let next = (more || taken < entries_at.len()).then_some(within.from + taken as u64);
            let related = related.into_iter().map(|id| id.as_uuid()).collect();
            Ok(ReplyResult::History { entries, next, related })
        }
        Outcome::Correlated { entries_at, more } => {
            let (entries, taken) = read_entries(reader, shard, &entries_at, within, names).await?;
            let next = (more || taken < entries_at.len()).then_some(pages::place_of(within.from) + taken as u64);
            let next = pages::next(shard, shards, next);
            Ok(ReplyResult::History { entries, next, related: Vec::new() })
        }
        _ => Err(Refusal::new(Code::BadRequest, "this answer needs no reading")),
    }
}

/// A row whose claim is at hand, and that nothing else need be read of.
pub fn row_at_hand(driver: &Driver, view: &RowView, names: &impl Names) -> Option<Row> {
    let stored = driver.record_at_hand(view.claim_at).filter(|_| view.tombstone.is_none())?;
    let name = names.corpus(Some(view.event_id.prefix()));
    translate::row(view, &name, &decode(&stored).ok()?, None)
}

/// The entries that fit a page, and how many of the places they were looked for at are behind them.
async fn read_entries(
    reader: Reader<'_>,
    shard: u16,
    entries_at: &[u64],
    within: &Within,
    names: &impl Names,
) -> Result<(Vec<wire::reply::Entry>, usize), Refusal> {
    let (mut entries, mut taken, mut bytes) = (Vec::new(), 0, 0);
    for chunk in entries_at.chunks(ENTRIES_READ) {
        let records = reader.driver.read_records(chunk).await.map_err(unreadable)?;
        let _turn = reader.rounds.turn(Work::Reads).await;
        for stored in &records {
            let mut record = decode(stored)?;
            if within.takes(record.meta.timestamp_us) {
                let own_merges;
                if let (Some(about), Entry::Reconcile { merges: all, .. }) = (within.about, &mut record.entry) {
                    own_merges = merges_of(about, all);
                    *all = &own_merges;
                }
                let entry = translate::entry(&record, LogPosition { shard, position: stored.position }, names);
                bytes += entry_frame_bytes(&entry);
                if bytes > PAGE_BYTES_MAX && !entries.is_empty() {
                    return Ok((entries, taken));
                }
                entries.push(entry);
            }
            taken += 1;
        }
    }
    Ok((entries, taken))
}

/// A page of the rows with an event key; of those that only have its hash, nothing.
async fn found(
    reader: Reader<'_>,
    (shard, shards): (u16, u16),
    found: &[RowView],
    next: Option<u64>,
    within: &Within,
    names: &impl Names,
) -> Result<ReplyResult, Refusal> {
    let (mut rows, mut bytes): (Vec<Row>, _) = (Vec::new(), 0);
    for chunk in found.chunks(ROWS_READ) {
        // The last claimed stand behind the others in the log, and neighbours are read together in its order.
        let views: Vec<_> = chunk.iter().rev().copied().collect();
        let rows_read = read_rows(reader, &views, names).await?;
        for (view, row) in chunk.iter().zip(rows_read.into_iter().rev()) {
            if within.event_key.as_ref().is_some_and(|key| *key != row.event_key) {
                continue;
            }
            bytes += row_frame_bytes(&row);
            if bytes > PAGE_BYTES_MAX && !rows.is_empty() {
                return Ok(ReplyResult::Found { rows, next: Some(pages::at(shard, view.claim_at)) });
            }
            rows.push(row);
        }
    }
    Ok(ReplyResult::Found { rows, next: pages::next(shard, shards, next) })
}

/// A pass merges rows of all corpora at once; whoever may read one of them need not be told of the others.
fn merges_of(row: EventId, all: &[u8]) -> Vec<u8> {
    let own: Vec<_> = merges(all).filter(|merge| [merge.alias, merge.canonical].contains(&row)).collect();
    encode_merges(&own)
}

async fn page(reader: Reader<'_>, views: &[RowView], more: bool, names: &impl Names) -> Result<ReplyResult, Refusal> {
    let (mut rows, mut bytes): (Vec<Row>, _) = (Vec::new(), 0);
    for chunk in views.chunks(ROWS_READ) {
        for row in read_rows(reader, chunk, names).await? {
            bytes += row_frame_bytes(&row);
            if bytes > PAGE_BYTES_MAX && !rows.is_empty() {
                let next = rows.last().map(|row| row.event_id);
                return Ok(ReplyResult::ScanPage { rows, next });
            }
            rows.push(row);
        }
    }
    let next = rows.last().filter(|_| more).map(|row| row.event_id);
    Ok(ReplyResult::ScanPage { rows, next })
}

async fn read_rows(reader: Reader<'_>, views: &[RowView], names: &impl Names) -> Result<Vec<Row>, Refusal> {
    let claims_at: Vec<_> = views.iter().map(|view| view.claim_at).collect();
    let records = reader.driver.read_records(&claims_at).await.map_err(unreadable)?;
    let mut rows = Vec::with_capacity(views.len());
    for (views, records) in views.chunks(ROWS_MADE).zip(records.chunks(ROWS_MADE)) {
        let mut reasons = Vec::with_capacity(views.len());
        for view in views {
            reasons.push(match view.tombstone {
                Some(tombstone) => Some(reason(reader.driver, tombstone.entry_at).await?),
                None => None,
            });
        }
        let _turn = reader.rounds.turn(Work::Reads).await;
        for ((view, stored), reason) in views.iter().zip(records).zip(reasons) {
            let name = names.corpus(Some(view.event_id.prefix()));
            let row = translate::row(view, &name, &decode(stored)?, reason);
            rows.push(row.ok_or_else(|| {
                unreadable(format!("log offset {} is not the claim of {}", view.claim_at, view.event_id))
            })?);
        }
    }
    Ok(rows)
}

async fn reason(driver: &Driver, entry_at: u64) -> Result<String, Refusal> {
    let records = driver.read_records(&[entry_at]).await.map_err(unreadable)?;
    let stored = records.first().ok_or_else(|| unreadable("the tombstone's record is not there".into()))?;
    Ok(decode(stored)?.meta.rationale.to_owned())
}

/// A record as what it says.
pub fn decode(stored: &StoredRecord) -> Result<Record<'_>, Refusal> {
    Record::decode(stored.kind, &stored.body).map_err(|e| unreadable(e.to_string()))
}

/// The refusal of what the storage does not give.
pub fn unreadable(message: String) -> Refusal {
    Refusal::new(
        Code::ShardFailed,
        format!("{message}: the ledger's storage is damaged or failing; see the daemon's log"),
    )
}
