//! The chains of the log: their heads, and whether they still pass through earlier ones.

use crate::args::Verify;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::{AuditChecked, CHAIN_HASH_BYTES, Head, RequestOptions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Bytes of a line of a file of heads; a longer one is no head.
const LINE_BYTES_MAX: u64 = 4096;
/// Heads of one file.
const HEADS_MAX: usize = 1_000_000;

/// A head as it is kept in files.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HeadJson {
    ledger: String,
    shard: u16,
    batch: u64,
    position: u64,
    /// Hexadecimal.
    hash: String,
    timestamp: String,
}

/// A check in JSON.
#[derive(Debug, Serialize)]
struct CheckedJson<'a> {
    shard: u16,
    batch: u64,
    position: u64,
    timestamp: &'a str,
    ok: bool,
    message: &'a str,
    batches_verified: u64,
}

impl HeadJson {
    fn new(head: &Head, ledger: &str) -> Self {
        HeadJson {
            ledger: ledger.to_owned(),
            shard: head.shard,
            batch: head.batch,
            position: head.position,
            hash: head.hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            timestamp: rfc3339(head.timestamp_us),
        }
    }

    /// The head, whose time does not matter for a check.
    fn head(&self) -> Option<Head> {
        let digits = self.hash.as_bytes();
        if digits.len() != 2 * CHAIN_HASH_BYTES {
            return None;
        }
        let mut hash = [0; CHAIN_HASH_BYTES];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Some(Head { shard: self.shard, batch: self.batch, position: self.position, hash, timestamp_us: 0 })
    }
}

/// Prints the heads as they are kept in files: as JSON, whether that was asked for or not.
pub fn head(session: &Session, output: &mut Output) -> Result<(), Failure> {
    let ledger = session.client.welcome().ledger.to_string();
    let heads = session.client.audit_heads(&RequestOptions::default()).wait()?.value;
    heads.iter().try_for_each(|head| output.object(&HeadJson::new(head, &ledger)))
}

pub fn verify(session: &Session, verb: Verify, output: &mut Output) -> Result<(), Failure> {
    let by_shard = read_heads(&verb.against, &session.client.welcome().ledger.to_string())?;
    let mut rows = Vec::new();
    let mut mismatches = Vec::new();
    for heads in by_shard.into_values() {
        let mut last_good: Option<HeadJson> = None;
        let mut is_broken = false;
        for (kept, head) in heads {
            let checked = session.client.audit_check(&head, &RequestOptions::default()).wait()?.value;
            print_or_keep(&kept, &checked, &mut rows, output)?;
            match (checked.ok, is_broken) {
                (true, false) => last_good = Some(kept),
                (false, false) => {
                    is_broken = true;
                    mismatches.push(mismatch(last_good.as_ref(), &kept, &checked));
                }
                // What follows the first mismatch of a chain says nothing new.
                (_, true) => {}
            }
        }
    }
    if !output.is_json() {
        output.table(&["shard", "batch", "position", "taken at", "result", "batches verified"], rows)?;
    }
    output.finish()?;
    if mismatches.is_empty() { Ok(()) } else { Err(Failure::Mismatch(mismatches.join("; "))) }
}

/// In JSON the results come one by one, for people together at the end.
fn print_or_keep(
    kept: &HeadJson,
    checked: &AuditChecked,
    rows: &mut Vec<Vec<String>>,
    output: &mut Output,
) -> Result<(), Failure> {
    let AuditChecked { ok, message, batches_verified, .. } = checked;
    let HeadJson { shard, batch, position, timestamp, .. } = kept;
    if output.is_json() {
        let (shard, batch, position, ok, batches_verified) = (*shard, *batch, *position, *ok, *batches_verified);
        return output.object(&CheckedJson { shard, batch, position, timestamp, ok, message, batches_verified });
    }
    rows.push(vec![
        shard.to_string(),
        batch.to_string(),
        position.to_string(),
        timestamp.clone(),
        if *ok { "as it was".to_owned() } else { format!("MISMATCH: {message}") },
        batches_verified.to_string(),
    ]);
    Ok(())
}

/// Where the first mismatch of a chain lies.
fn mismatch(last_good: Option<&HeadJson>, bad: &HeadJson, checked: &AuditChecked) -> String {
    let after = match last_good {
        Some(HeadJson { batch, position, timestamp, .. }) => {
            format!("after batch {batch} (position {position}, {timestamp})")
        }
        None => "after the beginning of the log".to_owned(),
    };
    let HeadJson { shard, batch, position, timestamp, .. } = bad;
    format!(
        "shard {shard} was changed {after} and not after batch {batch} (position {position}, {timestamp}): {}",
        checked.message
    )
}

type Heads = Vec<(HeadJson, Head)>;

/// The heads of a file, by shard in the order of their batches.
fn read_heads(path: &Path, ledger: &str) -> Result<BTreeMap<u16, Heads>, Failure> {
    let cannot = |error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(cannot)?);
    let mut by_shard: BTreeMap<u16, Heads> = BTreeMap::new();
    for number in 1.. {
        let mut line = Vec::new();
        let bytes = file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(cannot)?;
        if bytes == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |what: &str| {
            let name = path.display();
            Failure::Usage(format!("line {number} of {name} is no head: {what}; use what `claimctl audit head` wrote"))
        };
        if number > HEADS_MAX {
            return Err(wrong(&format!("a file has at most {HEADS_MAX} lines")));
        }
        let kept: HeadJson = serde_json::from_slice(&line).map_err(|error| wrong(&error.to_string()))?;
        if kept.ledger != ledger {
            return Err(wrong(&format!("it is of ledger {}, and this is ledger {ledger}", kept.ledger)));
        }
        let digits = 2 * CHAIN_HASH_BYTES;
        let head = kept.head().ok_or_else(|| wrong(&format!("its hash is not {digits} hexadecimal digits")))?;
        by_shard.entry(kept.shard).or_default().push((kept, head));
    }
    if by_shard.is_empty() {
        return Err(Failure::Usage(format!("{} has no heads; use what `claimctl audit head` wrote", path.display())));
    }
    for heads in by_shard.values_mut() {
        heads.sort_by_key(|(kept, _)| kept.batch);
    }
    Ok(by_shard)
}
