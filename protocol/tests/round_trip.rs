//! Every operation and result survives the way through a frame and back, and what exceeds a bound does not.

use claim_protocol::frame::split_frame;
use claim_protocol::{
    AT_LEAST_MAX, AuditOperation, BATCH_ITEMS_MAX, Builder, ClaimItem, Claimed, ClockMode, CorpusInfo,
    EVENT_KEY_BYTES_MAX, Entry, ErrorCode, ErrorOutcome, FRAME_BYTES_MAX, FrameTooLarge, Lifecycle, LogPosition,
    METADATA_BYTES_MAX, NAME_BYTES_MAX, Operation, RATIONALE_BYTES_MAX, ReasonCode, Reply, ReplyResult, Request, Row,
    SCAN_ROWS_MAX, ServerError, ShardEndpoint, ShardStatus, StatusReport, Uuid, Welcome, decode_reply, decode_request,
    encode_claimed, encode_reply, encode_request, entry_frame_bytes, row_frame_bytes,
};

const ID: Uuid = Uuid::from_u128(0x0190_0000_0000_7abc_8def_0123_4567_89ab);
const KEY: Uuid = Uuid::from_u128(0x0190_0000_0001_7000_8000_0000_0000_0001);

/// What a reply takes beside its rows or entries.
const REST_BYTES: usize = 256;

fn content(stream: &[u8]) -> &[u8] {
    let (content, taken) = split_frame(stream).expect("short enough").expect("whole");
    assert_eq!(taken, stream.len());
    content
}

/// One function for requests and replies: `encode` appends behind bytes that must stay, `decode` gives it back.
fn check_request(request: &Request<'_>) {
    let mut stream = b"earlier".to_vec();
    encode_request(&mut Builder::new(), request, &mut stream).expect("fits");
    assert_eq!(&stream[..7], b"earlier");
    assert_eq!(decode_request(content(&stream[7..])).as_ref(), Ok(request));
}

fn check_reply(reply: &Reply) {
    let mut stream = b"earlier".to_vec();
    encode_reply(&mut Builder::new(), reply, &mut stream).expect("fits");
    assert_eq!(&stream[..7], b"earlier");
    assert_eq!(decode_reply(content(&stream[7..])).as_ref(), Ok(reply));
}

/// The daemon's refusal of `request`, whose bytes verify.
fn refusal(request: &Request<'_>) -> String {
    let mut stream = Vec::new();
    encode_request(&mut Builder::new(), request, &mut stream).expect("fits");
    let error = decode_request(content(&stream)).expect_err("out of bounds");
    assert!(!error.fatal, "{error}");
    assert_eq!(error.request_id, request.request_id);
    error.message
}

fn item() -> ClaimItem<'static> {
    ClaimItem {
        event_key: "key",
        occurred_at_us: -1,
        owning_corpus: "",
        hosting_corpus: "other",
        category: "root",
        taxonomy_version: 3,
        metadata: &[0, 255],
    }
}

fn mutating(operation: Operation<'_>) -> Request<'_> {
    Request { idempotency_key: Some(KEY), ..Request::new(9, operation) }
}

#[test]
fn every_operation() {
    let bare = ClaimItem { hosting_corpus: "", metadata: &[], taxonomy_version: 0, ..item() };
    let operations = [
        Operation::Hello { min_version: 1, max_version: 7, client: "test" },
        Operation::Hello { min_version: 0, max_version: 0, client: "" },
        Operation::Onboard { name: "bbolt", notes: "" },
        Operation::Onboard { name: "bbolt", notes: "a key-value store" },
        Operation::Corpora,
        Operation::Claim { corpus: "bbolt", item: item() },
        Operation::Claim { corpus: "bbolt", item: bare },
        Operation::ClaimBatch { corpus: "bbolt", items: vec![] },
        Operation::ClaimBatch { corpus: "bbolt", items: vec![item(), bare, item()] },
        Operation::Reference { corpus: "pd", event_id: ID },
        Operation::ReferenceBatch { corpus: "pd", event_ids: vec![] },
        Operation::ReferenceBatch { corpus: "pd", event_ids: vec![ID, KEY] },
        Operation::Retract { corpus: "pd", event_id: ID, reason_code: ReasonCode::Duplicate },
        Operation::Reactivate { event_id: ID },
        Operation::ConfirmClock,
        Operation::Lookup { event_id: ID },
        Operation::History { event_id: ID, skip: 7 },
        Operation::Scan { corpus: "pd", since_us: None, until_us: None, after: None, limit: 0 },
        Operation::Scan { corpus: "pd", since_us: Some(0), until_us: Some(i64::MAX), after: Some(ID), limit: 10 },
        Operation::Status,
    ];
    for operation in operations {
        check_request(&mutating(operation.clone()));
        check_request(&Request {
            request_id: u64::MAX,
            deadline_ms: u32::MAX,
            at_least: vec![LogPosition { shard: 65_535, position: u64::MAX }, LogPosition { shard: 0, position: 0 }],
            idempotency_key: Some(KEY),
            rationale: "because — naïvely",
            correlation_id: Some(ID),
            at_us: Some(0),
            operation,
        });
    }
}

#[test]
fn the_largest_batches_pass() {
    let items = vec![item(); BATCH_ITEMS_MAX];
    check_request(&mutating(Operation::ClaimBatch { corpus: "bbolt", items }));
    check_request(&mutating(Operation::ReferenceBatch { corpus: "bbolt", event_ids: vec![ID; BATCH_ITEMS_MAX] }));
    let full = ClaimItem { metadata: &[7; METADATA_BYTES_MAX], ..item() };
    check_request(&mutating(Operation::ClaimBatch { corpus: "bbolt", items: vec![full; 63] }));
    let results = (0..BATCH_ITEMS_MAX).map(|index| if index % 2 == 0 { Ok(claimed()) } else { Err(error()) });
    check_reply(&reply(ReplyResult::ClaimedBatch(results.collect())));
}

#[test]
fn bounds_are_refused_by_name() {
    let long = "x".repeat(RATIONALE_BYTES_MAX + 1);
    let cases = [
        (
            Request {
                at_least: vec![LogPosition { shard: 0, position: 0 }; AT_LEAST_MAX + 1],
                ..mutating(Operation::Status)
            },
            "at_least has 65 positions; at most 64 are allowed",
        ),
        (
            Request { rationale: &long, ..mutating(Operation::Status) },
            "rationale has 513 bytes; at most 512 are allowed",
        ),
        (mutating(Operation::Onboard { name: "", notes: "" }), "name is empty; at least one byte is required"),
        (
            mutating(Operation::Onboard { name: &long[..NAME_BYTES_MAX + 1], notes: "" }),
            "name has 64 bytes; at most 63 are allowed",
        ),
        (mutating(Operation::Onboard { name: "a", notes: &long }), "notes has 513 bytes; at most 512 are allowed"),
        (
            mutating(Operation::Claim { corpus: "a", item: ClaimItem { event_key: "", ..item() } }),
            "event_key is empty; at least one byte is required",
        ),
        (
            mutating(Operation::Claim {
                corpus: "a",
                item: ClaimItem { event_key: &long[..EVENT_KEY_BYTES_MAX + 1], ..item() },
            }),
            "event_key has 257 bytes; at most 256 are allowed",
        ),
        (
            mutating(Operation::Claim { corpus: "a", item: ClaimItem { category: "", ..item() } }),
            "category is empty; at least one byte is required",
        ),
        (
            mutating(Operation::ClaimBatch {
                corpus: "a",
                items: vec![item(), ClaimItem { metadata: &[0; METADATA_BYTES_MAX + 1], ..item() }],
            }),
            "item 1: metadata has 65537 bytes; at most 65536 are allowed",
        ),
        (
            mutating(Operation::ReferenceBatch { corpus: "a", event_ids: vec![ID; BATCH_ITEMS_MAX + 1] }),
            "event_ids has 8191 items; at most 8190 are allowed",
        ),
        (
            Request::new(9, Operation::Reactivate { event_id: ID }),
            "idempotency_key is missing; every mutating operation carries a UUIDv7",
        ),
        (
            Request { idempotency_key: Some(Uuid::nil()), ..mutating(Operation::ConfirmClock) },
            "idempotency_key 00000000-0000-0000-0000-000000000000 is of version 0; use 7",
        ),
    ];
    for (request, expected) in cases {
        assert_eq!(refusal(&request), expected);
    }
}

#[test]
fn a_batch_past_the_table_bound_does_not_verify() {
    let items = vec![item(); BATCH_ITEMS_MAX + 1];
    let mut stream = Vec::new();
    encode_request(&mut Builder::new(), &mutating(Operation::ClaimBatch { corpus: "a", items }), &mut stream)
        .expect("fits");
    assert!(decode_request(content(&stream)).expect_err("too many tables").fatal);
}

#[test]
fn what_does_not_fit_is_not_appended() {
    let full = ClaimItem { metadata: &[7; METADATA_BYTES_MAX], ..item() };
    let request = mutating(Operation::ClaimBatch { corpus: "a", items: vec![full; 64] });
    let mut stream = b"earlier".to_vec();
    let refused = encode_request(&mut Builder::new(), &request, &mut stream);
    assert!(matches!(refused, Err(FrameTooLarge { bytes }) if bytes > FRAME_BYTES_MAX), "{refused:?}");
    let rows = vec![Row { metadata: vec![7; METADATA_BYTES_MAX], ..row() }; 64];
    let refused = encode_reply(&mut Builder::new(), &reply(ReplyResult::ScanPage { rows, next: None }), &mut stream);
    assert!(matches!(refused, Err(FrameTooLarge { bytes }) if bytes > FRAME_BYTES_MAX), "{refused:?}");
    assert_eq!(stream, b"earlier");
}

fn claimed() -> Claimed {
    Claimed { event_id: ID, claim_timestamp_us: 1_700_000_000_000_000, claim_sequence: 42 }
}

fn error() -> ServerError {
    ServerError {
        code: ErrorCode::Overloaded,
        outcome: ErrorOutcome::Definite,
        message: "the shard holds 16,384 requests; retry later".to_owned(),
        retry_after_ms: 20,
    }
}

fn reply(result: ReplyResult) -> Reply {
    Reply { request_id: 5, positions: vec![LogPosition { shard: 1, position: 99 }], result }
}

fn corpus() -> CorpusInfo {
    CorpusInfo {
        name: "bbolt".to_owned(),
        shard_prefix: 7,
        shard: 1,
        onboarded_at_us: 5,
        decommissioned_at_us: Some(6),
        notes: "n".to_owned(),
        claims: 3,
    }
}

fn row() -> Row {
    Row {
        event_id: ID,
        corpus: "bbolt".to_owned(),
        lifecycle: Lifecycle::Tombstoned,
        claim_timestamp_us: 1,
        claim_sequence: 2,
        event_key: "key".to_owned(),
        occurred_at_us: 3,
        owning_corpus: "bbolt".to_owned(),
        hosting_corpus: "pd".to_owned(),
        category: "root".to_owned(),
        taxonomy_version: 4,
        metadata: vec![1, 2, 3],
        canonical_id: Some(KEY),
        tombstoned_at_us: Some(0),
        tombstone_reason_code: Some(ReasonCode::Other),
        tombstone_reason: Some(String::new()),
        reactivated_at_us: Some(9),
    }
}

fn entry() -> Entry {
    Entry {
        position: LogPosition { shard: 1, position: 8 },
        operation: AuditOperation::Tombstone,
        corpus: "bbolt".to_owned(),
        event_id: Some(ID),
        timestamp_us: 1,
        uid: 2,
        gid: 3,
        pid: 4,
        rationale: "because".to_owned(),
        correlation_id: Some(KEY),
        idempotency_key: Some(KEY),
        reason_code: Some(ReasonCode::FalseAlarm),
    }
}

#[test]
fn every_result() {
    let shard = ShardStatus {
        shard: 1,
        rows: 5,
        no_space: true,
        failed: Some("EIO".to_owned()),
        scrub_damaged: 2,
        scrub_first: Some("there".to_owned()),
        ..Default::default()
    };
    let bare_row = Row {
        metadata: vec![],
        canonical_id: None,
        tombstoned_at_us: None,
        tombstone_reason_code: None,
        tombstone_reason: None,
        reactivated_at_us: None,
        lifecycle: Lifecycle::Registered,
        ..row()
    };
    let bare_entry = Entry {
        corpus: String::new(),
        event_id: None,
        rationale: String::new(),
        correlation_id: None,
        idempotency_key: None,
        reason_code: None,
        ..entry()
    };
    let results = [
        ReplyResult::Welcome(Welcome {
            version: 1,
            daemon: "claimd 0.1.0".to_owned(),
            ledger: ID,
            clock: ClockMode::Replay,
            shards: vec![ShardEndpoint { shard: 0, socket: "/run/claimd-0.sock".to_owned() }],
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            batch_items_max: BATCH_ITEMS_MAX as u32,
        }),
        ReplyResult::Onboarded(corpus()),
        ReplyResult::Corpora(vec![
            corpus(),
            CorpusInfo { decommissioned_at_us: None, notes: String::new(), ..corpus() },
        ]),
        ReplyResult::Claimed(claimed()),
        ReplyResult::ClaimedBatch(vec![Ok(claimed()), Err(error())]),
        ReplyResult::Referenced(ID),
        ReplyResult::ReferencedBatch(vec![Err(error()), Ok(ID)]),
        ReplyResult::Retracted { event_id: ID, tombstoned_at_us: 0 },
        ReplyResult::Reactivated { event_id: ID, reactivated_at_us: -5 },
        ReplyResult::ClockConfirmed { confirmed_at_us: 1 },
        ReplyResult::Row(Box::new(row())),
        ReplyResult::Row(Box::new(bare_row.clone())),
        ReplyResult::History { entries: vec![entry(), bare_entry], more: true },
        ReplyResult::ScanPage { rows: vec![], next: None },
        ReplyResult::ScanPage { rows: vec![row(), bare_row], next: Some(ID) },
        ReplyResult::Status(Box::new(StatusReport {
            daemon: "claimd 0.1.0".to_owned(),
            ledger: ID,
            clock: ClockMode::Wall,
            clock_synchronised: true,
            uptime_ms: 1,
            cores: 2,
            connections: 3,
            stall_wakes: 4,
            shards: vec![shard, ShardStatus::default()],
        })),
        ReplyResult::Error(error()),
        ReplyResult::Error(ServerError { outcome: ErrorOutcome::Unknown, code: ErrorCode::BadRequest, ..error() }),
    ];
    for result in results {
        check_reply(&reply(result.clone()));
        check_reply(&Reply { request_id: 0, positions: vec![], result });
    }
}

#[test]
fn the_fast_path_of_a_claim_writes_the_same_frame() {
    let (mut fast, mut general) = (Vec::new(), Vec::new());
    let expected = reply(ReplyResult::Claimed(claimed()));
    encode_claimed(&mut Builder::new(), expected.request_id, expected.positions[0], &claimed(), &mut fast);
    encode_reply(&mut Builder::new(), &expected, &mut general).expect("fits");
    assert_eq!(fast, general);
}

#[test]
fn the_estimates_of_rows_and_entries_hold() {
    let frame_bytes = |result| {
        let mut stream = Vec::new();
        encode_reply(&mut Builder::new(), &reply(result), &mut stream).expect("fits");
        stream.len()
    };
    for length in 0..40 {
        let text = "x".repeat(length);
        let row = Row {
            corpus: text.clone(),
            event_key: text.clone(),
            owning_corpus: text.clone(),
            hosting_corpus: text.clone(),
            category: text.clone(),
            metadata: text.clone().into_bytes(),
            tombstone_reason: Some(text.clone()),
            ..row()
        };
        let entry = Entry { corpus: text.clone(), rationale: text, ..entry() };
        for count in [1, 2, SCAN_ROWS_MAX] {
            let page = frame_bytes(ReplyResult::ScanPage { rows: vec![row.clone(); count], next: Some(ID) });
            assert!(page <= REST_BYTES + count * row_frame_bytes(&row), "{count} rows with {length}: {page}");
            let history = frame_bytes(ReplyResult::History { entries: vec![entry.clone(); count], more: false });
            assert!(
                history <= REST_BYTES + count * entry_frame_bytes(&entry),
                "{count} entries with {length}: {history}"
            );
        }
    }
}
