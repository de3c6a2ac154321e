//! Answers that need the ledger's bytes: a row, a page of rows, a history.

use crate::driver::{Driver, StoredRecord};
use crate::translate;
use claim_engine::command::Outcome;
use claim_engine::corpus::Prefix;
use claim_engine::error::{Code, Refusal};
use claim_engine::log::entry::Record;
use claim_engine::row::RowView;
use claim_protocol::reply::{ReplyResult, Row};
use claim_protocol::{FRAME_BYTES_MAX, LogPosition, row_frame_bytes};

/// A page of rows ends when its reply has grown to this, so that the next row still fits the frame.
const PAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - (256 << 10);
/// Rows whose records are read at once.
const ROWS_READ: usize = 256;

/// Reads what an outcome needs. `name_of` gives a corpus's name.
///
/// A record that can't be read or does not verify is an error of this answer, never a wrong row.
pub async fn read(
    driver: &Driver,
    shard: u16,
    outcome: Outcome,
    name_of: impl Fn(Option<Prefix>) -> String,
) -> Result<ReplyResult, Refusal> {
    match outcome {
        Outcome::Row(view) => {
            let mut rows = read_rows(driver, &[view], &name_of).await?;
            let row = rows.pop().ok_or_else(|| unreadable("the row's record is not there".into()))?;
            Ok(ReplyResult::Row(Box::new(row)))
        }
        Outcome::Rows { rows: views, more } => page(driver, &views, more, &name_of).await,
        Outcome::History { entries_at, more } => {
            let records = driver.read_records(&entries_at).await.map_err(unreadable)?;
            let entries = records.iter().map(|stored| {
                let record = decode(stored)?;
                let at = LogPosition { shard, position: stored.position };
                Ok(translate::entry(&record, at, &name_of(record.meta.corpus)))
            });
            Ok(ReplyResult::History { entries: entries.collect::<Result<_, Refusal>>()?, more })
        }
        _ => Err(Refusal::new(Code::BadRequest, "this answer needs no reading")),
    }
}

async fn page(
    driver: &Driver,
    views: &[RowView],
    more: bool,
    name_of: &impl Fn(Option<Prefix>) -> String,
) -> Result<ReplyResult, Refusal> {
    let (mut rows, mut bytes): (Vec<Row>, _) = (Vec::new(), 0);
    for chunk in views.chunks(ROWS_READ) {
        for row in read_rows(driver, chunk, name_of).await? {
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

async fn read_rows(
    driver: &Driver,
    views: &[RowView],
    name_of: &impl Fn(Option<Prefix>) -> String,
) -> Result<Vec<Row>, Refusal> {
    let claims_at: Vec<_> = views.iter().map(|view| view.claim_at).collect();
    let records = driver.read_records(&claims_at).await.map_err(unreadable)?;
    let mut rows = Vec::with_capacity(views.len());
    for (view, stored) in views.iter().zip(&records) {
        let record = decode(stored)?;
        let reason = match view.tombstone {
            Some(tombstone) => Some(reason(driver, tombstone.entry_at).await?),
            None => None,
        };
        let name = name_of(Some(view.event_id.prefix()));
        let row = translate::row(view, &name, &record, reason);
        rows.push(row.ok_or_else(|| {
            unreadable(format!("log offset {} is not the claim of {}", view.claim_at, view.event_id))
        })?);
    }
    Ok(rows)
}

async fn reason(driver: &Driver, entry_at: u64) -> Result<String, Refusal> {
    let records = driver.read_records(&[entry_at]).await.map_err(unreadable)?;
    let stored = records.first().ok_or_else(|| unreadable("the tombstone's record is not there".into()))?;
    Ok(decode(stored)?.meta.rationale.to_owned())
}

fn decode(stored: &StoredRecord) -> Result<Record<'_>, Refusal> {
    Record::decode(stored.kind, &stored.body).map_err(|e| unreadable(e.to_string()))
}

fn unreadable(message: String) -> Refusal {
    Refusal::new(
        Code::ShardFailed,
        format!("{message}: the ledger's storage is damaged or failing; see the daemon's log"),
    )
}
