//! Answers that need the ledger's bytes: a row, a page of rows, a history.

use crate::driver::{Driver, StoredRecord};
use crate::rounds::{Rounds, Work};
use claim_engine::command::{FoundRow, Outcome};
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::log::entry::{self, ClaimEntry, Entry, Record, encode_merges, merges};
use claim_engine::log::record::RawRecord;
use claim_engine::row::RowView;
use claim_engine::sealed::Stretch;
use claim_protocol::reply::ReplyResult;
use claim_protocol::{self as wire, LogPosition, PAGE_BYTES_MAX, RowPage, RowRef, entry_frame_bytes};
use claim_translate::{self as translate, Names, RowTexts, pages};
use std::rc::Rc;
use uuid::Uuid;

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

/// What was read for an answer.
pub enum Answer {
    /// The answer.
    Result(ReplyResult),
    /// A row's claim, and the reason of its tombstone: the answer is the row.
    Row(RowView, StoredRecord, Option<String>),
    /// Rows: the answer is a page of them.
    Rows(RowPage, Next),
}

/// Where a page of rows is gone on with.
pub enum Next {
    /// Of a scan.
    Scan(Option<Uuid>),
    /// Of a search.
    Found(Option<u64>),
}

/// Reads what an outcome of a shard, one of so many, needs. Rows are put on an empty `page`.
///
/// A record that can't be read or does not verify is an error of this answer, never a wrong row.
pub async fn read(
    reader: Reader<'_>,
    (shard, shards): (u16, u16),
    outcome: Outcome,
    within: &Within,
    page: impl FnOnce() -> RowPage,
    names: &impl Names,
) -> Result<Answer, Refusal> {
    match outcome {
        Outcome::Row(row) => {
            let FoundRow { view, claim } = *row;
            let record = match claim {
                Some(claim) => StoredRecord { position: claim.position, kind: claim.kind, body: claim.body.into() },
                None => {
                    let mut records = reader.driver.read_records(&[view.claim_at]).await.map_err(unreadable)?;
                    records.pop().ok_or_else(|| unreadable("the row's record is not there".into()))?
                }
            };
            let reason = reason(reader.driver, &view).await?;
            Ok(Answer::Row(view, record, reason))
        }
        Outcome::Rows { rows: views, more, log } => {
            let mut page = page();
            let taken = read_rows(reader, &views, Found::In(log), &mut page, |_| true, names).await?;
            let next = page.last().filter(|_| more || taken < views.len());
            Ok(Answer::Rows(page, Next::Scan(next)))
        }
        Outcome::Found { rows: views, next } => {
            let mut page = page();
            let is_sought = |row: &RowRef<'_>| within.event_key.as_ref().is_none_or(|key| key == row.event_key);
            let taken = read_rows(reader, &views, Found::LastFirst, &mut page, is_sought, names).await?;
            let next = match views.get(taken) {
                Some(view) => Some(pages::at(shard, view.claim_at)),
                None => pages::next(shard, shards, next),
            };
            Ok(Answer::Rows(page, Next::Found(next)))
        }
        Outcome::History { entries_at, more, related } => {
            let (entries, taken) = read_entries(reader, shard, &entries_at, within, names).await?;
            let next = (more || taken < entries_at.len()).then_some(within.from + taken as u64);
            let related = related.into_iter().map(|id| id.as_uuid()).collect();
            Ok(Answer::Result(ReplyResult::History { entries, next, related }))
        }
        Outcome::Correlated { entries_at, more } => {
            let (entries, taken) = read_entries(reader, shard, &entries_at, within, names).await?;
            let next = (more || taken < entries_at.len()).then_some(pages::place_of(within.from) + taken as u64);
            let next = pages::next(shard, shards, next);
            Ok(Answer::Result(ReplyResult::History { entries, next, related: Vec::new() }))
        }
        _ => Err(Refusal::new(Code::BadRequest, "this answer needs no reading")),
    }
}

/// Makes a row of its claim.
pub fn with_row<T>(
    view: &RowView,
    claim: RawRecord<'_>,
    reason: Option<&str>,
    names: &impl Names,
    take: impl FnOnce(&RowRef<'_>) -> T,
) -> Result<T, Refusal> {
    let mut texts = RowTexts::default();
    let claim = claim_of(view, claim)?;
    let row = translate::row(view, &claim, reason, &mut texts, names);
    row.map(|row| take(&row)).ok_or_else(|| not_the_claim(view))
}

#[inline(always)]
fn claim_of<'a>(view: &RowView, raw: RawRecord<'a>) -> Result<(ClaimEntry<'a>, i64), Refusal> {
    let claim = entry::claim_of(raw.kind, raw.body).map_err(|e| unreadable(e.to_string()))?;
    claim.ok_or_else(|| not_the_claim(view))
}

fn not_the_claim(view: &RowView) -> Refusal {
    unreadable(format!("log offset {} is not the claim of {}", view.claim_at, view.event_id))
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
            let mut record = decode(stored.raw())?;
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

/// A pass merges rows of all corpora at once; whoever may read one of them need not be told of the others.
fn merges_of(row: EventId, all: &[u8]) -> Vec<u8> {
    let own: Vec<_> = merges(all).filter(|merge| [merge.alias, merge.canonical].contains(&row)).collect();
    encode_merges(&own)
}

/// How rows were found.
enum Found {
    /// In the log's order, most of them in a stretch that is still at hand.
    In(Option<Stretch>),
    /// The last claimed first. They are read in the log's order all the same: neighbours are read together in it.
    LastFirst,
}

/// Puts those of the rows on a page that are sought, until it is full; how many of the rows are behind it.
async fn read_rows(
    reader: Reader<'_>,
    views: &[RowView],
    found: Found,
    page: &mut RowPage,
    is_sought: impl Fn(&RowRef<'_>) -> bool,
    names: &impl Names,
) -> Result<usize, Refusal> {
    let mut texts = RowTexts::default();
    let mut taken = 0;
    for views in views.chunks(ROWS_READ) {
        let log = match &found {
            Found::In(Some(log)) if views.iter().all(|view| log.has_verified(view.claim_at)) => Some(log),
            _ => None,
        };
        let read = match log {
            Some(_) => Vec::new(),
            None => read_claims(reader.driver, views, matches!(found, Found::LastFirst)).await?,
        };
        let mut read = read.iter();
        for views in views.chunks(ROWS_MADE) {
            let mut reasons = Vec::new();
            for view in views.iter().filter(|view| view.tombstone.is_some()) {
                reasons.push(reason(reader.driver, view).await?);
            }
            let mut reasons = reasons.iter();
            let _turn = reader.rounds.turn(Work::Reads).await;
            for view in views {
                let claim = match log {
                    Some(log) => log.record(view.claim_at),
                    None => read.next().map(StoredRecord::raw),
                };
                let claim = claim_of(view, claim.ok_or_else(|| unreadable("a row's record is not there".into()))?)?;
                let reason = view.tombstone.and_then(|_| reasons.next()?.as_deref());
                let row = translate::row(view, &claim, reason, &mut texts, names);
                let row = row.ok_or_else(|| not_the_claim(view))?;
                if is_sought(&row) && !page.push(&row) {
                    return Ok(taken);
                }
                taken += 1;
            }
        }
    }
    Ok(taken)
}

async fn read_claims(driver: &Driver, views: &[RowView], is_last_first: bool) -> Result<Vec<StoredRecord>, Refusal> {
    let mut claims_at: Vec<_> = views.iter().map(|view| view.claim_at).collect();
    if is_last_first {
        claims_at.reverse();
    }
    let mut records = driver.read_records(&claims_at).await.map_err(unreadable)?;
    if is_last_first {
        records.reverse();
    }
    Ok(records)
}

/// What a row's tombstone says, if it has one.
async fn reason(driver: &Driver, view: &RowView) -> Result<Option<String>, Refusal> {
    let Some(tombstone) = view.tombstone else { return Ok(None) };
    let records = driver.read_records(&[tombstone.entry_at]).await.map_err(unreadable)?;
    let stored = records.first().ok_or_else(|| unreadable("the tombstone's record is not there".into()))?;
    Ok(Some(decode(stored.raw())?.meta.rationale.to_owned()))
}

/// A record as what it says.
pub fn decode(raw: RawRecord<'_>) -> Result<Record<'_>, Refusal> {
    Record::decode(raw.kind, raw.body).map_err(|e| unreadable(e.to_string()))
}

/// The refusal of what the storage does not give.
pub fn unreadable(message: String) -> Refusal {
    Refusal::new(
        Code::ShardFailed,
        format!("{message}: the ledger's storage is damaged or failing; see the daemon's log"),
    )
}
