//! Histories: of a row and what is related to it, of an event key, of a correlation id.

use crate::args::{History, Subject};
use crate::entry::print_entries;
use crate::failure::{Failure, say};
use crate::output::Output;
use crate::session::Session;
use claim_client::{ClientError, Entry, HistoryQuery, HistorySubject, RequestOptions, Uuid};
use std::collections::{BTreeMap, HashSet, VecDeque};

/// Rows whose histories are put together.
const ROWS_MAX: usize = 1_000;

pub fn history(session: &Session, verb: History, output: &mut Output) -> Result<(), Failure> {
    let range = (verb.since, verb.until);
    let entries = match verb.subject {
        Subject { correlation_id: Some(id), .. } => read(session, HistorySubject::Correlation(id), range)?.entries,
        Subject { event_key: Some(key), .. } => {
            let rows = session.client.find(&key, &RequestOptions::default()).wait()?.value;
            of_rows(session, rows.iter().map(|row| row.event_id).collect(), verb.alone, range)?
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

/// All pages of one history.
fn read(
    session: &Session,
    subject: HistorySubject,
    (since_us, until_us): (Option<i64>, Option<i64>),
) -> Result<Read, ClientError> {
    let query = HistoryQuery { subject, since_us, until_us };
    let mut read = Read { entries: Vec::new(), related: Vec::new() };
    loop {
        let skip = read.entries.len() as u32;
        let page = session.client.history_page(query, skip, &RequestOptions::default()).wait()?.value;
        let is_last = !page.more || page.entries.is_empty();
        read.entries.extend(page.entries);
        read.related.extend(page.related);
        if is_last {
            return Ok(read);
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

/// Each entry once, however many rows it concerns, the oldest first.
fn in_order_of_time(entries: Vec<Entry>) -> Vec<Entry> {
    let by_time = entries.into_iter().map(|entry| ((entry.timestamp_us, entry.position), entry));
    by_time.collect::<BTreeMap<_, _>>().into_values().collect()
}
