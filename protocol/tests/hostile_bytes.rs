//! Bytes that nobody sane would send: the decoders refuse them, quickly, and never panic.

use claim_protocol::frame::split_frame;
use claim_protocol::{
    Builder, CHAIN_HASH_BYTES, ClaimItem, DisputeVerdict, FRAME_PREFIX_BYTES, LogPosition, Operation, ReasonCode,
    Reply, ReplyResult, Request, Role, Verdict, decode_any, decode_any_reply, decode_reply, decode_request,
    encode_reply, encode_request, key_at_sight,
};
use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::{collection, prop_assert};
use samples::{ID, KEY, item};
use std::sync::LazyLock;

mod samples;

/// Frames' contents that verify, to be damaged.
static REQUESTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| samples::operations().into_iter().map(content).collect());
static CLAIMS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(claims);
static REPLIES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| samples::results().into_iter().map(reply).collect());

fn content(operation: Operation<'_>) -> Vec<u8> {
    let request = Request {
        at_least: vec![LogPosition { shard: 1, position: 2 }],
        idempotency_key: Some(KEY),
        rationale: "because",
        ..Request::new(77, operation)
    };
    let mut stream = Vec::new();
    encode_request(&mut Builder::new(), &request, &mut stream).expect("fits");
    stream.split_off(FRAME_PREFIX_BYTES)
}

/// Claims as clients send them, and with fields that they seldom have.
fn claims() -> Vec<Vec<u8>> {
    let full = ClaimItem { owning_corpus: "b", hosting_corpus: "c", taxonomy_version: 9, metadata: &[7; 99], ..item() };
    let bare = ClaimItem { owning_corpus: "", hosting_corpus: "", taxonomy_version: 0, metadata: &[], ..item() };
    let claim = |item, unless_registered_within_ms| Operation::Claim { corpus: "a", item, unless_registered_within_ms };
    let operations = [
        claim(full, 0),
        claim(bare, 5_000),
        Operation::ClaimBatch { corpus: "a", items: vec![full, bare, full] },
        Operation::ClaimBatch { corpus: "a", items: vec![] },
    ];
    let requests = operations.into_iter().flat_map(|operation| {
        let plain = Request { idempotency_key: Some(KEY), ..Request::new(77, operation) };
        let more = Request {
            deadline_ms: 9,
            rationale: "because",
            correlation_id: Some(ID),
            at_us: Some(-3),
            ..plain.clone()
        };
        [plain, more]
    });
    let encode = |request: Request<'_>| {
        let mut stream = Vec::new();
        encode_request(&mut Builder::new(), &request, &mut stream).expect("fits");
        stream.split_off(FRAME_PREFIX_BYTES)
    };
    requests.map(encode).collect()
}

/// What is read in one pass is what the general way reads.
fn is_read_alike(bytes: &[u8]) -> bool {
    match (decode_request(bytes), decode_any(bytes)) {
        (Ok(request), Ok(any)) => {
            let at_sight = key_at_sight(bytes);
            request == any && (at_sight.is_none() || at_sight == request.idempotency_key)
        }
        (found, any) => {
            // Whatever it says, it says it without a panic.
            key_at_sight(bytes);
            found.is_err() && any.is_err()
        }
    }
}

#[test]
fn claims_are_read_alike_with_any_byte_changed() {
    for bytes in claims() {
        assert!(is_read_alike(&bytes) && decode_request(&bytes).is_ok());
        assert_eq!(key_at_sight(&bytes), Some(KEY));
        for at in 0..bytes.len() {
            for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
                let mut damaged = bytes.clone();
                damaged[at] ^= change;
                assert!(is_read_alike(&damaged), "byte {at} changed by {change} of {bytes:?}");
            }
        }
        for length in 0..bytes.len() {
            assert!(is_read_alike(&bytes[..length]), "the first {length} of {bytes:?}");
        }
    }
}

/// The same of replies.
fn is_reply_read_alike(bytes: &[u8]) -> bool {
    match (decode_reply(bytes), decode_any_reply(bytes)) {
        (Ok(reply), Ok(any)) => reply == any,
        (found, any) => found.is_err() && any.is_err(),
    }
}

#[test]
fn rows_are_read_alike_with_any_byte_changed() {
    let has_rows = |result: &ReplyResult| {
        matches!(result, ReplyResult::Row(_) | ReplyResult::ScanPage { .. } | ReplyResult::Found { .. })
    };
    let replies: Vec<_> = samples::results().into_iter().filter(has_rows).map(reply).collect();
    assert!(replies.len() >= 5, "a row, a page of a scan, a page of a search");
    for bytes in replies {
        assert!(is_reply_read_alike(&bytes) && decode_reply(&bytes).is_ok());
        for at in 0..bytes.len() {
            for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
                let mut damaged = bytes.clone();
                damaged[at] ^= change;
                assert!(is_reply_read_alike(&damaged), "byte {at} changed by {change} of {bytes:?}");
            }
        }
        for length in 0..bytes.len() {
            assert!(is_reply_read_alike(&bytes[..length]), "the first {length} of {bytes:?}");
        }
    }
}

fn reply(result: ReplyResult) -> Vec<u8> {
    let mut stream = Vec::new();
    let reply = Reply { request_id: 7, positions: vec![LogPosition { shard: 0, position: 1 }], result };
    encode_reply(&mut Builder::new(), &reply, &mut stream).expect("fits");
    stream.split_off(FRAME_PREFIX_BYTES)
}

/// What a decoded request holds is bounded by the frame, whatever it shares within itself.
fn held_bytes(request: &Request<'_>) -> usize {
    match &request.operation {
        Operation::ClaimBatch { items, .. } => {
            items.iter().map(|item| item.metadata.len() + item.event_key.len()).sum()
        }
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn damaged_claims_are_read_alike(
        which in any::<usize>(),
        damage in collection::vec((any::<u16>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = CLAIMS[which % CLAIMS.len()].clone();
        for (at, value) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        prop_assert!(is_read_alike(&bytes), "{bytes:?}");
    }

    #[test]
    fn random_bytes_are_refused_or_read(bytes in collection::vec(any::<u8>(), 0..2048)) {
        let _ = split_frame(&bytes);
        let _ = decode_request(&bytes);
        let _ = decode_reply(&bytes);
    }

    #[test]
    fn damaged_frames_are_refused_or_read(
        which in any::<usize>(),
        cut in any::<u16>(),
        damage in collection::vec((any::<u16>(), any::<u8>()), 0..8),
    ) {
        for corpus in [&*REQUESTS, &*REPLIES] {
            let mut bytes = corpus[which % corpus.len()].clone();
            for &(at, value) in &damage {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            if cut % 4 == 0 {
                bytes.truncate(usize::from(cut) % (bytes.len() + 1));
            }
            let _ = decode_reply(&bytes);
            if let Ok(request) = decode_request(&bytes) {
                prop_assert!(held_bytes(&request) <= 64 * bytes.len(), "{request:?}");
            }
        }
    }
}

#[test]
fn every_single_byte_may_be_wrong() {
    for content in REQUESTS.iter().chain(&*REPLIES) {
        for at in 0..content.len() {
            for value in [0, 1, 2, 3, 0x7f, 0x80, 0xfe, 0xff] {
                let mut bytes = content.clone();
                bytes[at] = value;
                let _ = decode_request(&bytes);
                let _ = decode_reply(&bytes);
            }
        }
        for length in 0..content.len() {
            let _ = decode_request(&content[..length]);
            let _ = decode_reply(&content[..length]);
        }
    }
}

/// Finds the byte that holds `value` such that changing it to `other` gives what `expect` wants.
fn with_byte(content: &[u8], value: u8, other: u8, expect: &str) -> bool {
    (0..content.len()).filter(|&at| content[at] == value).any(|at| {
        let mut bytes = content.to_vec();
        bytes[at] = other;
        decode_request(&bytes)
            .is_err_and(|error| !error.fatal && error.request_id == 77 && error.message.contains(expect))
    })
}

#[test]
fn unknown_unions_and_enums_are_definite_refusals() {
    let hello = content(Operation::Hello { min_version: 1, max_version: 1, client: "test" });
    let retract = content(Operation::Retract { corpus: "bbolt", event_id: ID, reason_code: ReasonCode::Other });
    let sign_off = content(Operation::SignOff { proposal: 0x7777, role: Role::Auditor });
    let verdicts = [DisputeVerdict::Canonical, DisputeVerdict::Tombstone];
    let verdicts = verdicts.map(|verdict| Verdict { event_id: ID, verdict }).to_vec();
    let arbitrate = content(Operation::Arbitrate { dispute_id: ID, dismissed: false, verdicts });
    let hash = [0x77; CHAIN_HASH_BYTES];
    let check = content(Operation::AuditCheck { shard: 1, batch: 2, position: 3, hash });
    // The union's type is 1 for a hello and 8 for a retraction; its reason code is 5, the role 6, the verdict 3.
    assert!(with_byte(&hello, 1, 99, "operation type 99 is unknown"));
    assert!(with_byte(&hello, 1, 0, "operation type 0 is unknown"));
    assert!(with_byte(&retract, 5, 200, "\"200\" is no ReasonCode"));
    assert!(with_byte(&retract, 5, 0, "\"0\" is no ReasonCode"));
    assert!(with_byte(&sign_off, 6, 200, "role: \"200\" is no Role"));
    assert!(with_byte(&arbitrate, 3, 200, "verdict: \"200\" is no DisputeVerdict"));
    assert!(with_byte(&check, 32, 31, "hash has 31 bytes; 32 are required"));
    assert!(with_byte(&arbitrate, 3, 4, "verdict dismissed is no decision about one id"));
}

#[test]
fn sharing_within_a_frame_does_not_multiply_it() {
    // One item's table with 64 KiB of metadata, named 8,190 times by the batch's vector: half a GiB when expanded.
    let content = shared_item_batch(8190, 65_536);
    let error = decode_request(&content).expect_err("expands past the bound");
    assert!(error.fatal, "{error}");
    // The same shape within the bound is a legitimate way to write a batch.
    assert!(decode_request(&shared_item_batch(100, 1000)).is_ok());
}

/// A claim batch whose vector repeats one offset, made by pointing every element of a real one at its last item.
fn shared_item_batch(count: usize, metadata_bytes: usize) -> Vec<u8> {
    let metadata = vec![7; metadata_bytes];
    let mut items = vec![ClaimItem { metadata: &[], ..item() }; count - 1];
    items.push(ClaimItem { metadata: &metadata, ..item() });
    let request =
        Request { idempotency_key: Some(KEY), ..Request::new(77, Operation::ClaimBatch { corpus: "bbolt", items }) };
    let mut stream = Vec::new();
    encode_request(&mut Builder::new(), &request, &mut stream).expect("fits");
    let mut content = stream.split_off(FRAME_PREFIX_BYTES);
    let vector = (0..content.len() - 4)
        .step_by(4)
        .find(|&at| read_u32(&content, at) == count && points_forward(&content, at + 4, count))
        .expect("the vector of items");
    let last = vector + 4 * count;
    let target = last + read_u32(&content, last);
    for at in (vector + 4..=last).step_by(4) {
        content[at..at + 4].copy_from_slice(&((target - at) as u32).to_le_bytes());
    }
    content
}

fn read_u32(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes.try_into().expect("four")) as usize)
}

fn points_forward(bytes: &[u8], first: usize, count: usize) -> bool {
    (0..count).all(|index| {
        let at = first + 4 * index;
        let offset = read_u32(bytes, at);
        offset >= 4 && offset < bytes.len() - at.min(bytes.len())
    })
}
