//! Every operation and result survives the way through a frame and back, and what exceeds a bound does not.

use claim_protocol::frame::split_frame;
use claim_protocol::{
    AT_LEAST_MAX, BATCH_ITEMS_MAX, Builder, ClaimContent, ClaimItem, Claimed, DISPUTE_IDS_MAX,
    DISPUTE_RATIONALE_BYTES_MAX, DisputeVerdict, EVENT_KEY_BYTES_MAX, Entry, FRAME_BYTES_MAX, FrameTooLarge,
    LogPosition, METADATA_BYTES_MAX, NAME_BYTES_MAX, Operation, QUARTER_YEAR_MAX, QUARTER_YEAR_MIN,
    RATIONALE_BYTES_MAX, Reply, ReplyResult, Request, Row, RowPage, SCAN_ROWS_MAX, ServerError, TAIL_WAIT_MS_MAX,
    UNLESS_REGISTERED_MS_MAX, Uuid, Verdict, decode_any_reply, decode_reply, decode_request, encode_claim_reply,
    encode_reply, encode_request, encode_row_found, entry_frame_bytes, row_frame_bytes,
};
use samples::{ID, KEY, claimed, entry, error, item, plain, row};

mod samples;

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

fn mutating(operation: Operation<'_>) -> Request<'_> {
    Request { idempotency_key: Some(KEY), ..Request::new(9, operation) }
}

#[test]
fn every_operation() {
    for operation in samples::operations() {
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
            mutating(Operation::Claim {
                corpus: "a",
                item: ClaimItem { event_key: "", ..item() },
                unless_registered_within_ms: 0,
            }),
            "event_key is empty; at least one byte is required",
        ),
        (
            mutating(Operation::Claim {
                corpus: "a",
                item: ClaimItem { event_key: &long[..EVENT_KEY_BYTES_MAX + 1], ..item() },
                unless_registered_within_ms: 0,
            }),
            "event_key has 257 bytes; at most 256 are allowed",
        ),
        (
            mutating(Operation::Claim {
                corpus: "a",
                item: ClaimItem { category: "", ..item() },
                unless_registered_within_ms: 0,
            }),
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
fn bounds_of_disputes_are_refused_by_name() {
    let verdict = |verdict| Verdict { event_id: ID, verdict };
    let arbitrate = |dismissed, verdicts| mutating(Operation::Arbitrate { dispute_id: ID, dismissed, verdicts });
    let dispute = |count| mutating(Operation::Dispute { corpus: "a", event_ids: vec![ID; count] });
    let long = "x".repeat(DISPUTE_RATIONALE_BYTES_MAX + 1);
    let cases = [
        (dispute(0), "event_ids has 0 items; at least 2 are required"),
        (dispute(1), "event_ids has 1 items; at least 2 are required"),
        (dispute(DISPUTE_IDS_MAX + 1), "event_ids has 9 items; at most 8 are allowed"),
        (Request { rationale: &long, ..dispute(2) }, "rationale has 4097 bytes; at most 4096 are allowed"),
        (arbitrate(false, vec![]), "verdicts is missing; each id of the dispute has one, unless it is dismissed"),
        (arbitrate(false, vec![verdict(DisputeVerdict::Canonical)]), "verdicts has 1 items; at least 2 are required"),
        (
            arbitrate(false, vec![verdict(DisputeVerdict::Canonical); DISPUTE_IDS_MAX + 1]),
            "verdicts has 9 items; at most 8 are allowed",
        ),
        (arbitrate(true, vec![verdict(DisputeVerdict::Canonical)]), "a dismissal has 1 verdicts; it has none"),
        (
            arbitrate(false, vec![verdict(DisputeVerdict::None); 2]),
            "verdict none is no decision about one id; use canonical, references or tombstone",
        ),
        (
            arbitrate(false, vec![verdict(DisputeVerdict::Dismissed); 2]),
            "verdict dismissed is no decision about one id; use canonical, references or tombstone",
        ),
    ];
    for (request, expected) in cases {
        assert_eq!(refusal(&request), expected);
    }
    let at_the_bound = &long[..DISPUTE_RATIONALE_BYTES_MAX];
    for operation in samples::operations() {
        let is_long = operation.rationale_bytes_max() == DISPUTE_RATIONALE_BYTES_MAX;
        let request = Request { rationale: at_the_bound, ..mutating(operation) };
        if is_long {
            check_request(&request);
        } else {
            assert_eq!(refusal(&request), "rationale has 4096 bytes; at most 512 are allowed");
        }
    }
}

#[test]
fn bounds_of_the_other_operations_are_refused_by_name() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let history = |event_id, correlation_id| {
        Request::new(9, Operation::History { event_id, correlation_id, from: 0, since_us: None, until_us: None })
    };
    let tail = |wait_ms| Request::new(9, Operation::Tail { shard: 0, from_position: 1, limit: 0, wait_ms });
    let claim = |unless_registered_within_ms| {
        mutating(Operation::Claim { corpus: "a", item: item(), unless_registered_within_ms })
    };
    let hold = |year, quarter| mutating(Operation::Hold { year, quarter, held: true });
    let name = "corpus has 64 bytes; at most 63 are allowed";
    let cases = [
        (history(None, None), "a history names neither of event_id and correlation_id; exactly one is required"),
        (history(Some(ID), Some(ID)), "a history names both of event_id and correlation_id; exactly one is required"),
        (tail(TAIL_WAIT_MS_MAX + 1), "wait_ms has 60001 ms; at most 60000 are allowed"),
        (
            claim(UNLESS_REGISTERED_MS_MAX + 1),
            "unless_registered_within_ms has 86400001 ms; at most 86400000 are allowed",
        ),
        (
            Request::new(9, Operation::Find { event_key: "", from: 0 }),
            "event_key is empty; at least one byte is required",
        ),
        (mutating(Operation::Decommission { name: "", dry_run: true }), "name is empty; at least one byte is required"),
        (mutating(Operation::Freeze { corpus: &long, frozen: true }), name),
        (mutating(Operation::Cap { corpus: &long, claims_per_minute: 1 }), name),
        (mutating(Operation::ProposeSlots { corpus: &long, slots: 1 }), name),
        (mutating(Operation::Respond { corpus: &long, dispute_id: ID }), name),
        (Request::new(9, Operation::Disputes { corpus: &long, include_closed: false, before: None }), name),
        (Request::new(9, Operation::Totals { corpus: &long }), name),
        (hold(2021, 0), "quarter 0 of 2021 is unknown; use 1 to 4 of a year from 1970 to 9998"),
        (hold(2021, 5), "quarter 5 of 2021 is unknown; use 1 to 4 of a year from 1970 to 9998"),
        (hold(QUARTER_YEAR_MIN - 1, 4), "quarter 4 of 1969 is unknown; use 1 to 4 of a year from 1970 to 9998"),
        (hold(QUARTER_YEAR_MAX + 1, 1), "quarter 1 of 9999 is unknown; use 1 to 4 of a year from 1970 to 9998"),
    ];
    for (request, expected) in cases {
        assert_eq!(refusal(&request), expected);
    }
}

/// Of the samples each mutating operation is refused without its key, and each other one is not.
#[test]
fn mutating_operations_carry_a_key() {
    for operation in samples::operations() {
        let is_mutating = operation.is_mutating();
        let request = Request::new(9, operation);
        if is_mutating {
            assert_eq!(refusal(&request), "idempotency_key is missing; every mutating operation carries a UUIDv7");
        } else {
            check_request(&request);
        }
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

fn reply(result: ReplyResult) -> Reply {
    Reply { request_id: 5, positions: vec![LogPosition { shard: 1, position: 99 }], result }
}

#[test]
fn every_result() {
    for result in samples::results() {
        check_reply(&reply(result.clone()));
        check_reply(&Reply { request_id: 0, positions: vec![], result });
    }
}

#[test]
fn the_fast_path_of_a_claim_writes_the_same_frame() {
    let (mut fast, mut general) = (Vec::new(), Vec::new());
    let expected = reply(ReplyResult::Claimed(claimed()));
    encode_claim_reply(expected.request_id, expected.positions[0], &claimed(), &mut fast);
    encode_reply(&mut Builder::new(), &expected, &mut general).expect("fits");
    assert_eq!(fast, general);
    // Behind what is there already, and whatever the values are.
    for value in [0, 1, 5, 9, u64::MAX, 0x8000_0000_0000_0000, 0x1234] {
        let claimed = Claimed {
            event_id: Uuid::from_u128(u128::from(value) << 64 | u128::from(value)),
            claim_timestamp_us: value as i64,
            claim_sequence: value ^ 5,
        };
        let at = LogPosition { shard: value as u16, position: value ^ 9 };
        let before = fast.len();
        encode_claim_reply(value ^ 1, at, &claimed, &mut fast);
        let expected = Reply { request_id: value ^ 1, positions: vec![at], result: ReplyResult::Claimed(claimed) };
        assert_eq!(decode_reply(content(&fast[before..])).as_ref(), Ok(&expected));
    }
}

/// Items of a batch that were claimed have a layout of their own, whatever lies between them.
#[test]
fn results_of_a_batch_are_read_as_they_were() {
    // The same for one after the other.
    let mut builder = Builder::new();
    for errors_every in [1, 2, 3, 7, 1_000] {
        let result = |n: u64| match n.is_multiple_of(errors_every) {
            true => Err(ServerError { message: "e".repeat(n as usize % 9), ..error() }),
            false => Ok(Claimed {
                event_id: Uuid::from_u128(ID.as_u128() + u128::from(n)),
                claim_timestamp_us: n as i64 - 1,
                claim_sequence: n - 1,
            }),
        };
        for count in [1, 2, 3, 4, 100] {
            let results = (1..=count).map(result).collect();
            let reply = Reply { request_id: 7, positions: vec![], result: ReplyResult::ClaimedBatch(results) };
            check_reply(&reply);
            let mut stream = Vec::new();
            encode_reply(&mut builder, &reply, &mut stream).expect("fits");
            assert_eq!(decode_reply(content(&stream)).as_ref(), Ok(&reply));
        }
    }
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
        let with_text = |row: Row| Row {
            corpus: text.clone(),
            event_key: text.clone(),
            owning_corpus: text.clone(),
            hosting_corpus: text.clone(),
            category: text.clone(),
            metadata: text.clone().into_bytes(),
            effective_quarter: text.clone(),
            ..row
        };
        let plain = Row { effective_quarter: format!("{text}q"), ..with_text(plain(1)) };
        let (tombstone_reason, reactivation_quarter) = (Some(text.clone()), Some(text.clone()));
        let row = Row { tombstone_reason, reactivation_quarter, ..with_text(row()) };
        let entry = Entry {
            corpus: text.clone(),
            rationale: text.clone(),
            user_name: text.clone(),
            detail: text.clone(),
            event_ids: vec![ID; length],
            claim: Some(Box::new(ClaimContent {
                event_key: text.clone(),
                owning_corpus: text.clone(),
                hosting_corpus: text.clone(),
                category: text.clone(),
                metadata: vec![1; length],
                ..ClaimContent::default()
            })),
            configuration: text.clone(),
            ..entry()
        };
        for count in [1, 2, SCAN_ROWS_MAX] {
            for row in [&row, &plain] {
                let page = frame_bytes(ReplyResult::ScanPage { rows: vec![row.clone(); count], next: Some(ID) });
                let estimate = REST_BYTES + count * row_frame_bytes(&row.by_ref());
                assert!(page <= estimate, "{count} rows with {length}: {page}");
            }
            let history =
                frame_bytes(ReplyResult::History { entries: vec![entry.clone(); count], next: None, related: vec![] });
            assert!(
                history <= REST_BYTES + count * entry_frame_bytes(&entry),
                "{count} entries with {length}: {history}"
            );
        }
    }
}

/// A page that is made row by row is the page that is made of all rows, however often it was one before; and so is a row.
#[test]
fn a_page_made_row_by_row_is_the_same_frame() {
    let at = LogPosition { shard: 1, position: 77 };
    let whole = |result| {
        let mut stream = Vec::new();
        let reply = Reply { request_id: 7, positions: vec![at], result };
        encode_reply(&mut Builder::new(), &reply, &mut stream).expect("fits");
        stream
    };
    let other = Row { corpus: "b".to_owned(), category: "y".to_owned(), tombstone_reason: None, ..row() };
    let mut page = RowPage::default();
    let pages = [
        vec![row(), plain(1), row(), plain(2), other.clone(), row()],
        vec![],
        vec![plain(3)],
        vec![other.clone(), other, plain(4)],
    ];
    for rows in pages {
        let (mut scanned, mut found) = (Vec::new(), Vec::new());
        rows.iter().for_each(|row| assert!(page.push(&row.by_ref())));
        assert_eq!(page.last(), rows.last().map(|row| row.event_id));
        page.scan_page(7, Some(at), Some(ID), &mut scanned);
        rows.iter().for_each(|row| assert!(page.push(&row.by_ref())));
        page.found(7, Some(at), Some(9), &mut found);
        assert_eq!(scanned, whole(ReplyResult::ScanPage { rows: rows.clone(), next: Some(ID) }));
        assert_eq!(found, whole(ReplyResult::Found { rows, next: Some(9) }));
    }
    // A page that was never sent.
    assert!(page.push(&plain(5).by_ref()));
    page.clear();
    assert!(page.push(&plain(6).by_ref()));
    let mut after_it = Vec::new();
    page.scan_page(7, Some(at), None, &mut after_it);
    assert_eq!(after_it, whole(ReplyResult::ScanPage { rows: vec![plain(6)], next: None }));
    let mut empty = Vec::new();
    assert_eq!(page.last(), None);
    page.scan_page(7, Some(at), None, &mut empty);
    assert_eq!(empty, whole(ReplyResult::ScanPage { rows: vec![], next: None }));
    let mut single = Vec::new();
    encode_row_found(&mut Builder::new(), 7, Some(at), &row().by_ref(), &mut single);
    assert_eq!(single, whole(ReplyResult::Row(Box::new(row()))));
}

/// Rows of which nothing became have a layout of their own on a page, whatever lies between them.
#[test]
fn plain_rows_are_read_as_they_were() {
    // What has any one of the fields that plain rows lack is not plain.
    let others = [
        Row { canonical_id: Some(ID), ..plain(1) },
        Row { tombstoned_at_us: Some(0), ..plain(2) },
        Row { tombstone_reason_code: row().tombstone_reason_code, ..plain(3) },
        Row { tombstone_reason: Some(String::new()), ..plain(4) },
        Row { reactivated_at_us: Some(0), ..plain(5) },
        Row { dispute_id: Some(ID), ..plain(6) },
        Row { reactivation_quarter: Some("2026-Q1".to_owned()), ..plain(7) },
        Row { effective_quarter: String::new(), ..plain(8) },
    ];
    for others_every in [1, 2, 3, 40, 1_000] {
        let other = |n: usize| n.is_multiple_of(others_every).then(|| others[n % others.len()].clone());
        let rows: Vec<_> = (0..120).map(|n| other(n).unwrap_or_else(|| plain(n))).collect();
        let reply = Reply { request_id: 7, positions: vec![], result: ReplyResult::ScanPage { rows, next: Some(ID) } };
        check_reply(&reply);
        let mut stream = Vec::new();
        encode_reply(&mut Builder::new(), &reply, &mut stream).expect("fits");
        assert_eq!(decode_any_reply(content(&stream)).as_ref(), Ok(&reply));
    }
}

#[test]
fn a_page_ends_before_the_row_that_may_not_fit() {
    let full = Row { metadata: vec![7; METADATA_BYTES_MAX], ..row() };
    let mut page = RowPage::default();
    let count = (0..).take_while(|_| page.push(&full.by_ref())).count();
    let mut stream = Vec::new();
    page.scan_page(7, None, None, &mut stream);
    assert!(
        (1..=FRAME_BYTES_MAX / METADATA_BYTES_MAX).contains(&count) && stream.len() <= FRAME_BYTES_MAX,
        "{count} rows"
    );
    let read = decode_reply(content(&stream)).expect("it verifies");
    assert!(matches!(read.result, ReplyResult::ScanPage { rows, .. } if rows == vec![full; count]));
}
