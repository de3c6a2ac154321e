//! Writes a seed for each operation and each result into the folder named.

use claim_protocol::{
    AuditOperation, Builder, ClaimItem, Claimed, ClockMode, CorpusInfo, Entry, ErrorCode, ErrorOutcome, Lifecycle,
    LogPosition, Operation, ReasonCode, Reply, ReplyResult, Request, Row, ServerError, ShardEndpoint, ShardStatus,
    StatusReport, Uuid, Welcome, encode_reply, encode_request,
};
use std::path::Path;

const KEY: Uuid = Uuid::from_u128(0x0190_0000_0001_7000_8000_0000_0000_0001);
const ID: Uuid = Uuid::from_u128(0x019b_76da_a800_7001_8800_0000_0000_0001);

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: request_seeds FOLDER");
        std::process::exit(2);
    };
    let folder = Path::new(&folder);
    for (n, operation) in operations().into_iter().enumerate() {
        let request = Request {
            at_least: vec![LogPosition { shard: 1, position: 2 }],
            idempotency_key: Some(KEY),
            correlation_id: Some(KEY),
            rationale: "because",
            at_us: Some(5),
            deadline_ms: 9,
            ..Request::new(77, operation)
        };
        let mut stream = Vec::new();
        encode_request(&mut Builder::new(), &request, &mut stream).expect("fits");
        write(folder, &format!("request-{n:02}"), &stream)?;
    }
    for (n, result) in results().into_iter().enumerate() {
        let reply = Reply { request_id: 7, positions: vec![LogPosition { shard: 0, position: 1 }], result };
        let mut stream = Vec::new();
        encode_reply(&mut Builder::new(), &reply, &mut stream).expect("fits");
        write(folder, &format!("reply-{n:02}"), &stream)?;
    }
    Ok(())
}

/// Twice: as the content of a frame, and as a stream of two frames after the byte that says how it is cut.
fn write(folder: &Path, name: &str, stream: &[u8]) -> std::io::Result<()> {
    std::fs::write(folder.join(name), &stream[claim_protocol::FRAME_PREFIX_BYTES..])?;
    let mut two = vec![100];
    two.extend_from_slice(stream);
    two.extend_from_slice(stream);
    std::fs::write(folder.join(format!("{name}-stream")), two)
}

fn operations() -> Vec<Operation<'static>> {
    let item = ClaimItem {
        event_key: "key",
        occurred_at_us: 1,
        owning_corpus: "a",
        hosting_corpus: "b",
        category: "root",
        taxonomy_version: 3,
        metadata: &[9; 20],
    };
    let corpus = "bbolt";
    vec![
        Operation::Hello { min_version: 1, max_version: 1, client: "test" },
        Operation::Onboard { name: corpus, notes: "notes" },
        Operation::Corpora,
        Operation::Claim { corpus, item },
        Operation::ClaimBatch { corpus, items: vec![item; 3] },
        Operation::Reference { corpus, event_id: ID },
        Operation::ReferenceBatch { corpus, event_ids: vec![ID; 3] },
        Operation::Retract { corpus, event_id: ID, reason_code: ReasonCode::Other },
        Operation::Reactivate { event_id: ID },
        Operation::ConfirmClock,
        Operation::Lookup { event_id: ID },
        Operation::History { event_id: ID, skip: 3 },
        Operation::Scan { corpus, since_us: Some(1), until_us: Some(2), after: Some(ID), limit: 3 },
        Operation::Status,
    ]
}

fn results() -> Vec<ReplyResult> {
    let text = |text: &str| text.to_owned();
    let claimed = Claimed { event_id: ID, claim_timestamp_us: 1, claim_sequence: 2 };
    let error = ServerError {
        code: ErrorCode::NoSpace,
        outcome: ErrorOutcome::Unknown,
        message: text("no room"),
        retry_after_ms: 1,
    };
    let corpus = CorpusInfo {
        name: text("bbolt"),
        shard_prefix: 7,
        shard: 1,
        onboarded_at_us: 5,
        decommissioned_at_us: Some(6),
        notes: text("n"),
        claims: 3,
    };
    let row = Row {
        event_id: ID,
        corpus: text("bbolt"),
        lifecycle: Lifecycle::Tombstoned,
        claim_timestamp_us: 1,
        claim_sequence: 2,
        event_key: text("key"),
        occurred_at_us: 3,
        owning_corpus: text("bbolt"),
        hosting_corpus: text("pd"),
        category: text("root"),
        taxonomy_version: 4,
        metadata: vec![1, 2, 3],
        canonical_id: Some(KEY),
        tombstoned_at_us: Some(0),
        tombstone_reason_code: Some(ReasonCode::Other),
        tombstone_reason: Some(text("why")),
        reactivated_at_us: Some(9),
    };
    let entry = Entry {
        position: LogPosition { shard: 1, position: 8 },
        operation: AuditOperation::Tombstone,
        corpus: text("bbolt"),
        event_id: Some(ID),
        timestamp_us: 1,
        uid: 2,
        gid: 3,
        pid: 4,
        rationale: text("because"),
        correlation_id: Some(KEY),
        idempotency_key: Some(KEY),
        reason_code: Some(ReasonCode::FalseAlarm),
    };
    let status = StatusReport {
        daemon: text("claimd"),
        ledger: ID,
        clock: ClockMode::Wall,
        clock_synchronised: true,
        uptime_ms: 1,
        cores: 2,
        connections: 3,
        stall_wakes: 4,
        shards: vec![ShardStatus { failed: Some(text("EIO")), ..ShardStatus::default() }],
    };
    let welcome = Welcome {
        version: 1,
        daemon: text("claimd"),
        ledger: ID,
        clock: ClockMode::Replay,
        shards: vec![ShardEndpoint { shard: 0, socket: text("claimd-0.sock") }],
        frame_bytes_max: 4 << 20,
        batch_items_max: 8190,
    };
    vec![
        ReplyResult::Welcome(welcome),
        ReplyResult::Onboarded(corpus.clone()),
        ReplyResult::Corpora(vec![corpus]),
        ReplyResult::Claimed(claimed),
        ReplyResult::ClaimedBatch(vec![Ok(claimed), Err(error.clone())]),
        ReplyResult::Referenced(ID),
        ReplyResult::ReferencedBatch(vec![Err(error.clone()), Ok(ID)]),
        ReplyResult::Retracted { event_id: ID, tombstoned_at_us: 1 },
        ReplyResult::Reactivated { event_id: ID, reactivated_at_us: 1 },
        ReplyResult::ClockConfirmed { confirmed_at_us: 1 },
        ReplyResult::Row(Box::new(row.clone())),
        ReplyResult::History { entries: vec![entry], more: true },
        ReplyResult::ScanPage { rows: vec![row], next: Some(ID) },
        ReplyResult::Status(Box::new(status)),
        ReplyResult::Error(error),
    ]
}
