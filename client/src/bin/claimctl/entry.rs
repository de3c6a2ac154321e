//! How audit entries are printed.

use crate::failure::Failure;
use crate::output::Output;
use crate::row_output::ContentJson;
use crate::time::{or_hyphen, rfc3339};
use claim_client::{Entry, Uuid};
use serde::Serialize;

/// An audit entry in JSON.
#[derive(Debug, Serialize)]
pub struct EntryJson<'a> {
    shard: u16,
    position: u64,
    operation: &'a str,
    corpus: &'a str,
    event_id: Option<String>,
    timestamp: String,
    uid: u32,
    gid: u32,
    pid: u32,
    user_name: &'a str,
    rationale: &'a str,
    correlation_id: Option<String>,
    idempotency_key: Option<String>,
    reason_code: Option<&'a str>,
    dispute_id: Option<String>,
    canonical_id: Option<String>,
    detail: &'a str,
    event_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    global_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<ContentJson<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    configuration: &'a str,
}

impl<'a> EntryJson<'a> {
    pub fn new(entry: &'a Entry) -> Self {
        let text = |id: Uuid| id.to_string();
        EntryJson {
            shard: entry.position.shard,
            position: entry.position.position,
            operation: entry.operation.as_str(),
            corpus: &entry.corpus,
            event_id: entry.event_id.map(text),
            timestamp: rfc3339(entry.timestamp_us),
            uid: entry.uid,
            gid: entry.gid,
            pid: entry.pid,
            user_name: &entry.user_name,
            rationale: &entry.rationale,
            correlation_id: entry.correlation_id.map(text),
            idempotency_key: entry.idempotency_key.map(text),
            reason_code: entry.reason_code.map(|code| code.as_str()),
            dispute_id: entry.dispute_id.map(text),
            canonical_id: entry.canonical_id.map(text),
            detail: &entry.detail,
            event_ids: entry.event_ids.iter().copied().map(text).collect(),
            global_sequence: Some(entry.global_sequence).filter(|place| *place > 0),
            claim: entry.claim.as_deref().map(|claim| ContentJson::of_claim(claim, &entry.corpus)),
            configuration: &entry.configuration,
        }
    }
}

/// Entries as a table, without the columns in which nothing stands.
pub fn print_entries(entries: &[Entry], output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return entries.iter().try_for_each(|entry| output.object(&EntryJson::new(entry)));
    }
    let head = [
        "shard:position",
        "timestamp",
        "operation",
        "corpus",
        "event id",
        "by",
        "reason",
        "dispute",
        "correlation",
        "detail",
        "rationale",
    ];
    let row = |entry: &Entry| {
        [
            entry.position.to_string(),
            rfc3339(entry.timestamp_us),
            entry.operation.to_string(),
            entry.corpus.clone(),
            concerned(entry),
            by(entry),
            entry.reason_code.map_or("-", |code| code.as_str()).to_owned(),
            or_hyphen(entry.dispute_id),
            or_hyphen(entry.correlation_id),
            entry.detail.clone(),
            entry.rationale.clone(),
        ]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    let is_used = |column: usize| rows.iter().any(|row| !matches!(row[column].as_str(), "" | "-"));
    let used: Vec<usize> = (0..head.len()).filter(|&column| rows.is_empty() || is_used(column)).collect();
    let head: Vec<_> = used.iter().map(|&column| head[column]).collect();
    let rows = rows.iter().map(|row| used.iter().map(|&column| row[column].clone()).collect());
    output.table(&head, rows.collect())
}

/// An entry on one line.
pub fn print_entry_line(entry: &Entry, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.object(&EntryJson::new(entry));
    }
    let (at, operation, concerned, by) = (rfc3339(entry.timestamp_us), entry.operation, concerned(entry), by(entry));
    let corpus = if entry.corpus.is_empty() { "-" } else { &entry.corpus };
    let place = entry.position.to_string();
    let mut line = format!("{place:<10}  {at}  {operation:<12}  {corpus}  {concerned}  {by}");
    for text in [&entry.detail, &entry.rationale].into_iter().filter(|text| !text.is_empty()) {
        line.push_str("  ");
        line.push_str(text);
    }
    output.line(line)
}

/// The row that an entry is about, or how many.
fn concerned(entry: &Entry) -> String {
    match (entry.event_id, entry.event_ids.len()) {
        (Some(id), _) => id.to_string(),
        (None, 0) => "-".to_owned(),
        (None, count) => format!("{count} rows"),
    }
}

fn by(entry: &Entry) -> String {
    let Entry { uid, gid, pid, .. } = entry;
    match entry.user_name.as_str() {
        "" => format!("{uid}/{gid}/{pid}"),
        name => format!("{name} {uid}/{gid}/{pid}"),
    }
}
