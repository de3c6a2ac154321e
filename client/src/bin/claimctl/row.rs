//! Rows: claiming, changing and finding them.

use crate::args::{Claim, Find, Lookup, Reactivate, Reference, Retract, Scan};
use crate::failure::{Failure, say};
use crate::output::Output;
use crate::row_output::{RowJson, print_already, print_claimed, print_row, print_row_line};
use crate::session::Session;
use crate::time::{key_time_us, or_hyphen, rfc3339};
use claim_client::{ClaimItem, LogPosition, Registration, RequestOptions, Row, ScanRange, Uuid};
use serde::Serialize;
use std::fs;

/// A reference in JSON.
#[derive(Debug, Serialize)]
struct ReferenceJson<'a> {
    corpus: &'a str,
    event_id: String,
    canonical_id: String,
}

pub fn claim(session: &Session, verb: Claim, output: &mut Output) -> Result<(), Failure> {
    let metadata = match (verb.metadata, &verb.metadata_file) {
        (Some(text), _) => text.into_bytes(),
        (None, Some(file)) => {
            fs::read(file).map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", file.display())))?
        }
        (None, None) => Vec::new(),
    };
    // A request is repeated with its key, so what is not given follows from the key: the repetition asks for the same.
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let key = options.idempotency_key.unwrap_or_else(|| session.new_key(options.at_us));
    let options = RequestOptions { idempotency_key: Some(key), ..options };
    let item = ClaimItem {
        event_key: &verb.event_key,
        occurred_at_us: verb.occurred_at.or(verb.mutation.at).unwrap_or_else(|| key_time_us(key)),
        owning_corpus: &verb.owning_corpus,
        hosting_corpus: &verb.hosting_corpus,
        category: &verb.category,
        taxonomy_version: verb.taxonomy_version,
        metadata: &metadata,
    };
    let Some(within) = verb.unless_registered_within else {
        let claimed = session.client.claim(&verb.corpus, &item, &options).wait()?.value;
        return print_claimed(&verb.corpus, &claimed, false, output);
    };
    match session.client.claim_unless_registered(&verb.corpus, &item, within, &options).wait()?.value {
        Registration::Registered(claimed) => print_claimed(&verb.corpus, &claimed, true, output),
        Registration::Already { event_id } => print_already(event_id, output),
    }
}

pub fn reference(session: &Session, verb: Reference, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let canonical_id = session.client.reference(&verb.corpus, verb.event_id, &options).wait()?.value;
    let (corpus, event_id) = (verb.corpus.as_str(), verb.event_id.to_string());
    if output.is_json() {
        output.object(&ReferenceJson { corpus, event_id, canonical_id: canonical_id.to_string() })
    } else {
        output.line(format_args!("{corpus} refers to {canonical_id}"))
    }
}

pub fn retract(session: &Session, verb: Retract, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.reason);
    let corpus = verb.corpus.unwrap_or_default();
    let answer = session.client.retract(&corpus, verb.event_id, verb.reason_code, &options).wait()?;
    print_changed(session, verb.event_id, &answer.positions, output)
}

pub fn reactivate(session: &Session, verb: Reactivate, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.reason);
    let answer = session.client.reactivate(verb.event_id, &options).wait()?;
    print_changed(session, verb.event_id, &answer.positions, output)
}

pub fn lookup(session: &Session, verb: Lookup, output: &mut Output) -> Result<(), Failure> {
    let row = session.client.lookup(verb.event_id, &RequestOptions::default()).wait()?;
    print_row(&row, output)
}

pub fn find(session: &Session, verb: Find, output: &mut Output) -> Result<(), Failure> {
    let found = session.client.find(&verb.event_key, &RequestOptions::default()).rows();
    let mut rows: Vec<Row> = found.collect::<Result<_, _>>()?;
    rows.sort_by_key(|row| row.event_id);
    if output.is_json() {
        return rows.iter().try_for_each(|row| output.object(&RowJson::new(row)));
    }
    let line = |row: &Row| {
        vec![
            row.event_id.to_string(),
            row.corpus.clone(),
            row.lifecycle.to_string(),
            rfc3339(row.claim_timestamp_us),
            rfc3339(row.occurred_at_us),
            or_hyphen(row.canonical_id),
        ]
    };
    let head = ["event id", "corpus", "lifecycle", "claimed at", "occurred at", "canonical id"];
    output.table(&head, rows.iter().map(line).collect())
}

pub fn scan(session: &Session, verb: Scan, output: &mut Output) -> Result<(), Failure> {
    let limit = verb.limit.unwrap_or(u64::MAX);
    let range = ScanRange {
        since_us: verb.quarter.map(|(since, _)| since).or(verb.since),
        until_us: verb.quarter.map(|(_, until)| until).or(verb.until),
        page_rows: u32::try_from(limit).unwrap_or(0),
    };
    let pages = session.client.scan(&verb.corpus, range, &RequestOptions::default());
    // Line by line rather than as one table: a corpus may have more rows than memory holds.
    for row in pages.rows().take(usize::try_from(limit).unwrap_or(usize::MAX)) {
        let row = row?;
        if output.is_json() {
            output.object(&RowJson::new(&row))?;
        } else {
            print_row_line(&row, output)?;
        }
    }
    Ok(())
}

/// The row after a change of it. The change is durable, so a failure to read the row is no failure of the verb.
fn print_changed(
    session: &Session,
    event_id: Uuid,
    positions: &[LogPosition],
    output: &mut Output,
) -> Result<(), Failure> {
    match session.client.lookup(event_id, &session.seeing(positions)).wait() {
        Ok(row) => print_row(&row, output),
        Err(error) => {
            say(&format!("claimctl: the change of {event_id} is done, but the row cannot be shown: {error}"));
            Ok(())
        }
    }
}
