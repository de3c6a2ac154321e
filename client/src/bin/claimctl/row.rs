//! Rows: claiming, changing and finding them.

use crate::args::{Claim, Lookup, Reactivate, Reference, Retract, Scan};
use crate::failure::{Failure, say};
use crate::output::Output;
use crate::session::Session;
use crate::time::{key_time_us, rfc3339};
use claim_client::{
    ClaimItem, Claimed, ClientError, ErrorCode, ErrorOutcome, LogPosition, RequestOptions, Row, ScanRange, ServerError,
    Uuid, shard_prefix,
};
use serde::Serialize;
use std::fs;

/// A claim in JSON.
#[derive(Debug, Serialize)]
struct ClaimJson<'a> {
    event_id: String,
    claim_timestamp: String,
    claim_sequence: u64,
    corpus: &'a str,
}

/// A row in JSON.
#[derive(Debug, Serialize)]
struct RowJson<'a> {
    event_id: String,
    corpus: &'a str,
    lifecycle: &'a str,
    claim_timestamp: String,
    claim_sequence: u64,
    event_key: &'a str,
    occurred_at: String,
    owning_corpus: &'a str,
    hosting_corpus: &'a str,
    category: &'a str,
    canonical_id: Option<String>,
    tombstoned_at: Option<String>,
    tombstone_reason_code: Option<&'a str>,
    tombstone_reason: Option<&'a str>,
    reactivated_at: Option<String>,
}

/// A reference in JSON.
#[derive(Debug, Serialize)]
struct ReferenceJson<'a> {
    corpus: &'a str,
    event_id: String,
    canonical_id: String,
}

impl<'a> RowJson<'a> {
    fn new(row: &'a Row) -> Self {
        RowJson {
            event_id: row.event_id.to_string(),
            corpus: &row.corpus,
            lifecycle: row.lifecycle.as_str(),
            claim_timestamp: rfc3339(row.claim_timestamp_us),
            claim_sequence: row.claim_sequence,
            event_key: &row.event_key,
            occurred_at: rfc3339(row.occurred_at_us),
            owning_corpus: &row.owning_corpus,
            hosting_corpus: &row.hosting_corpus,
            category: &row.category,
            canonical_id: row.canonical_id.map(|id| id.to_string()),
            tombstoned_at: row.tombstoned_at_us.map(rfc3339),
            tombstone_reason_code: row.tombstone_reason_code.map(|code| code.as_str()),
            tombstone_reason: row.tombstone_reason.as_deref(),
            reactivated_at: row.reactivated_at_us.map(rfc3339),
        }
    }
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
    let claimed = session.client.claim(&verb.corpus, &item, &options).wait()?.value;
    print_claimed(&verb.corpus, &claimed, output)
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
    let corpus = match verb.corpus {
        Some(corpus) => corpus,
        None => corpus_of(session, verb.event_id)?,
    };
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

pub fn scan(session: &Session, verb: Scan, output: &mut Output) -> Result<(), Failure> {
    let limit = verb.limit.unwrap_or(u64::MAX);
    let range = ScanRange {
        since_us: verb.quarter.map(|(since, _)| since),
        until_us: verb.quarter.map(|(_, until)| until),
        page_rows: u32::try_from(limit).unwrap_or(0),
    };
    let pages = session.client.scan(&verb.corpus, range, &RequestOptions::default());
    // Line by line rather than as one table: a corpus may have more rows than memory holds.
    for row in pages.rows().take(usize::try_from(limit).unwrap_or(usize::MAX)) {
        let row = row?;
        if output.is_json() {
            output.object(&RowJson::new(&row))?;
        } else {
            let (lifecycle, at) = (row.lifecycle, rfc3339(row.claim_timestamp_us));
            let (id, sequence, category, key) = (row.event_id, row.claim_sequence, &row.category, &row.event_key);
            output.line(format_args!("{id}  {lifecycle:<10}  {at}  {sequence:>6}  {category}  {key}"))?;
        }
    }
    Ok(())
}

/// The name of the corpus that claimed an id, which is in the id's bits.
fn corpus_of(session: &Session, event_id: Uuid) -> Result<String, Failure> {
    let corpus = session.client.corpus_of(event_id).ok_or_else(|| {
        let prefix = shard_prefix(event_id);
        ClientError::Refused(ServerError {
            code: ErrorCode::NotVisible,
            outcome: ErrorOutcome::Definite,
            message: format!("{event_id} is of prefix {prefix}, which no corpus has; check the id or give --corpus"),
            retry_after_ms: 0,
        })
    })?;
    Ok(corpus.name)
}

fn print_claimed(corpus: &str, claimed: &Claimed, output: &mut Output) -> Result<(), Failure> {
    let event_id = claimed.event_id.to_string();
    let claim_timestamp = rfc3339(claimed.claim_timestamp_us);
    let claim_sequence = claimed.claim_sequence;
    if output.is_json() {
        return output.object(&ClaimJson { event_id, claim_timestamp, claim_sequence, corpus });
    }
    output.pairs(&[
        ("event id", event_id),
        ("corpus", corpus.to_owned()),
        ("claimed at", claim_timestamp),
        ("sequence", claim_sequence.to_string()),
    ])
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

fn print_row(row: &Row, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.object(&RowJson::new(row));
    }
    let mut pairs = vec![
        ("event id", row.event_id.to_string()),
        ("corpus", row.corpus.clone()),
        ("lifecycle", row.lifecycle.to_string()),
        ("claimed at", rfc3339(row.claim_timestamp_us)),
        ("sequence", row.claim_sequence.to_string()),
        ("event key", row.event_key.clone()),
        ("occurred at", rfc3339(row.occurred_at_us)),
        ("owned by", row.owning_corpus.clone()),
        ("hosted by", row.hosting_corpus.clone()),
        ("category", format!("{} (taxonomy {})", row.category, row.taxonomy_version)),
        ("metadata", format!("{} bytes", row.metadata.len())),
    ];
    pairs.extend(row.canonical_id.map(|id| ("canonical id", id.to_string())));
    pairs.extend(row.tombstoned_at_us.map(|at| ("tombstoned at", rfc3339(at))));
    pairs.extend(row.tombstone_reason_code.map(|code| ("reason code", code.to_string())));
    pairs.extend(row.tombstone_reason.as_ref().map(|reason| ("reason", reason.clone())));
    pairs.extend(row.reactivated_at_us.map(|at| ("reactivated at", rfc3339(at))));
    output.pairs(&pairs)
}
