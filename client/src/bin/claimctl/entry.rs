//! Audit entries.

use crate::args::History;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::{or_hyphen, rfc3339};
use claim_client::{Entry, RequestOptions};
use serde::Serialize;

/// An audit entry in JSON.
#[derive(Debug, Serialize)]
struct EntryJson<'a> {
    shard: u16,
    position: u64,
    operation: &'a str,
    corpus: &'a str,
    event_id: Option<String>,
    timestamp: String,
    uid: u32,
    gid: u32,
    pid: u32,
    rationale: &'a str,
    correlation_id: Option<String>,
    idempotency_key: Option<String>,
    reason_code: Option<&'a str>,
}

impl<'a> EntryJson<'a> {
    fn new(entry: &'a Entry) -> Self {
        EntryJson {
            shard: entry.position.shard,
            position: entry.position.position,
            operation: entry.operation.as_str(),
            corpus: &entry.corpus,
            event_id: entry.event_id.map(|id| id.to_string()),
            timestamp: rfc3339(entry.timestamp_us),
            uid: entry.uid,
            gid: entry.gid,
            pid: entry.pid,
            rationale: &entry.rationale,
            correlation_id: entry.correlation_id.map(|id| id.to_string()),
            idempotency_key: entry.idempotency_key.map(|id| id.to_string()),
            reason_code: entry.reason_code.map(|code| code.as_str()),
        }
    }
}

pub fn history(session: &Session, verb: History, output: &mut Output) -> Result<(), Failure> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let page =
            session.client.history(verb.event_id, entries.len() as u32, &RequestOptions::default()).wait()?.value;
        entries.extend(page.entries);
        if !page.more {
            break;
        }
    }
    if output.is_json() {
        return entries.iter().try_for_each(|entry| output.object(&EntryJson::new(entry)));
    }
    let row = |entry: &Entry| {
        vec![
            entry.position.to_string(),
            rfc3339(entry.timestamp_us),
            entry.operation.to_string(),
            entry.corpus.clone(),
            format!("{}/{}/{}", entry.uid, entry.gid, entry.pid),
            entry.reason_code.map_or("-", |code| code.as_str()).to_owned(),
            or_hyphen(entry.correlation_id),
            entry.rationale.clone(),
        ]
    };
    let head =
        ["shard:position", "timestamp", "operation", "corpus", "uid/gid/pid", "reason", "correlation", "rationale"];
    output.table(&head, entries.iter().map(row).collect())
}
