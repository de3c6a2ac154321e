//! Histories: of a row and what is related to it, of an event key, of a correlation id.

use crate::args::{History, Subject};
use crate::entry::print_entries;
use crate::failure::{Failure, say};
use crate::output::Output;
use crate::session::Session;
use claim_client::{
    AuditOperation, ClientError, DisputeInfo, Entry, HistoryQuery, HistorySubject, RequestOptions, Uuid,
};
use std::collections::{BTreeMap, HashSet, VecDeque};

/// Rows whose histories are put together.
const ROWS_MAX: usize = 1_000;

pub fn history(session: &Session, verb: History, output: &mut Output) -> Result<(), Failure> {
    let range = (verb.since, verb.until);
    let entries = match verb.subject {
        Subject { correlation_id: Some(id), .. } => read(session, HistorySubject::Correlation(id), range)?.entries,
        Subject { event_key: Some(key), .. } => {
            let rows = session.client.find(&key, &RequestOptions::default()).rows();
            let ids: Vec<_> = rows.map(|row| Ok(row?.event_id)).collect::<Result<_, ClientError>>()?;
            of_rows(session, ids, verb.alone, range)?
        }
        Subject { event_id, .. } => of_rows(session, event_id.into_iter().collect(), verb.alone, range)?,
    };
    print_entries(&in_order_of_time(entries), output)
}

/// What was read of one subject.
struct Read {
    entries: Vec<Entry>,
    related: Vec<Uuid>,
}

/// What happened in a dispute: the entries of its first row that may be read which name it.
pub fn of_dispute(session: &Session, dispute: &DisputeInfo) -> Result<Vec<Entry>, ClientError> {
    let mut refused = None;
    for side in &dispute.sides {
        match read(session, HistorySubject::Event(side.event_id), (None, None)) {
            Ok(read) => {
                let is_of_it = |entry: &Entry| entry.dispute_id == Some(dispute.dispute_id);
                return Ok(read.entries.into_iter().filter(is_of_it).collect());
            }
            Err(ClientError::Refused(error)) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    refused.map_or(Ok(Vec::new()), |error| Err(ClientError::Refused(error)))
}

/// All pages of one history.
fn read(
    session: &Session,
    subject: HistorySubject,
    (since_us, until_us): (Option<i64>, Option<i64>),
) -> Result<Read, ClientError> {
    let query = HistoryQuery { subject, since_us, until_us };
    let mut read = Read { entries: Vec::new(), related: Vec::new() };
    let mut from = 0;
    loop {
        let page = session.client.history_page(query, from, &RequestOptions::default()).wait()?.value;
        read.entries.extend(page.entries);
        read.related.extend(page.related);
        match page.next {
            Some(next) => from = next,
            None => return Ok(read),
        }
    }
}

/// The histories of rows and, unless `alone`, of what is related to them. What cannot be read of the related ones is said
/// and left out.
fn of_rows(
    session: &Session,
    event_ids: Vec<Uuid>,
    alone: bool,
    range: (Option<i64>, Option<i64>),
) -> Result<Vec<Entry>, Failure> {
    let mut seen: HashSet<Uuid> = event_ids.iter().copied().collect();
    let mut to_read: VecDeque<(Uuid, bool)> = event_ids.into_iter().map(|id| (id, true)).collect();
    let mut entries = Vec::new();
    while let Some((event_id, was_asked_for)) = to_read.pop_front() {
        let read = match read(session, HistorySubject::Event(event_id), range) {
            Ok(read) => read,
            Err(ClientError::Refused(error)) if !was_asked_for => {
                say(&format!("claimctl: the history of {event_id}, which is related, is left out: {error}"));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        entries.extend(read.entries);
        for related in read.related.into_iter().filter(|_| !alone) {
            if seen.len() >= ROWS_MAX && !seen.contains(&related) {
                say(&format!(
                    "claimctl: {related} is related, too, and left out: {ROWS_MAX} rows are followed at most"
                ));
            } else if seen.insert(related) {
                to_read.push_back((related, false));
            }
        }
    }
    Ok(entries)
}

/// Each entry once, however many rows it concerns, the oldest first. What has a place in the global order stands in the log of
/// every shard that it concerns: the first of them tells it. Of a pass of reconciliation each shard tells its own merges.
fn in_order_of_time(entries: Vec<Entry>) -> Vec<Entry> {
    let by_time = entries.into_iter().map(|entry| ((entry.timestamp_us, entry.position), entry));
    let by_time: BTreeMap<_, _> = by_time.collect();
    let mut told = HashSet::new();
    let is_new = |entry: &Entry| {
        let is_copied = entry.global_sequence > 0 && entry.operation != AuditOperation::Reconcile;
        !is_copied || told.insert(entry.global_sequence)
    };
    by_time.into_values().filter(is_new).collect()
}
