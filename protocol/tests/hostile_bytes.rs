//! Bytes that nobody sane would send: the decoders refuse them, quickly, and never panic.

use claim_protocol::frame::split_frame;
use claim_protocol::{
    Builder, ClaimItem, Claimed, ErrorCode, ErrorOutcome, FRAME_PREFIX_BYTES, LogPosition, Operation, ReasonCode,
    Reply, ReplyResult, Request, ServerError, Uuid, decode_reply, decode_request, encode_reply, encode_request,
};
use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::{collection, prop_assert};

const KEY: Uuid = Uuid::from_u128(0x0190_0000_0001_7000_8000_0000_0000_0001);

fn item() -> ClaimItem<'static> {
    ClaimItem {
        event_key: "key",
        occurred_at_us: 1,
        owning_corpus: "a",
        hosting_corpus: "b",
        category: "root",
        taxonomy_version: 3,
        metadata: &[9; 40],
    }
}

/// Frames' contents that verify, to be damaged.
fn requests() -> Vec<Vec<u8>> {
    [
        Operation::Hello { min_version: 1, max_version: 1, client: "test" },
        Operation::Claim { corpus: "bbolt", item: item() },
        Operation::ClaimBatch { corpus: "bbolt", items: vec![item(); 5] },
        Operation::ReferenceBatch { corpus: "bbolt", event_ids: vec![KEY; 5] },
        Operation::Retract { corpus: "bbolt", event_id: KEY, reason_code: ReasonCode::Other },
        Operation::Scan { corpus: "bbolt", since_us: Some(1), until_us: None, after: Some(KEY), limit: 3 },
    ]
    .into_iter()
    .map(|operation| {
        let request = Request {
            at_least: vec![LogPosition { shard: 1, position: 2 }],
            idempotency_key: Some(KEY),
            rationale: "because",
            ..Request::new(77, operation)
        };
        let mut stream = Vec::new();
        encode_request(&mut Builder::new(), &request, &mut stream).expect("fits");
        stream.split_off(FRAME_PREFIX_BYTES)
    })
    .collect()
}

fn replies() -> Vec<Vec<u8>> {
    let claimed = Claimed { event_id: KEY, claim_timestamp_us: 1, claim_sequence: 2 };
    let error = ServerError {
        code: ErrorCode::NoSpace,
        outcome: ErrorOutcome::Definite,
        message: "no room".to_owned(),
        retry_after_ms: 1,
    };
    [
        ReplyResult::Claimed(claimed),
        ReplyResult::ClaimedBatch(vec![Ok(claimed), Err(error.clone())]),
        ReplyResult::Error(error),
    ]
    .into_iter()
    .map(|result| {
        let mut stream = Vec::new();
        let reply = Reply { request_id: 7, positions: vec![LogPosition { shard: 0, position: 1 }], result };
        encode_reply(&mut Builder::new(), &reply, &mut stream).expect("fits");
        stream.split_off(FRAME_PREFIX_BYTES)
    })
    .collect()
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
        for corpus in [requests(), replies()] {
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
fn every_single_byte_of_a_request_may_be_wrong() {
    for content in requests() {
        for at in 0..content.len() {
            for value in [0, 1, 2, 3, 0x7f, 0x80, 0xfe, 0xff] {
                let mut bytes = content.clone();
                bytes[at] = value;
                let _ = decode_request(&bytes);
            }
        }
        for length in 0..content.len() {
            let _ = decode_request(&content[..length]);
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
    let requests = requests();
    let (hello, retract) = (&requests[0], &requests[4]);
    // The union's type is 1 for a hello and 8 for a retraction; its reason code is 5.
    assert!(with_byte(hello, 1, 99, "operation type 99 is unknown"));
    assert!(with_byte(hello, 1, 0, "operation type 0 is unknown"));
    assert!(with_byte(retract, 5, 200, "\"200\" is no ReasonCode"));
    assert!(with_byte(retract, 5, 0, "\"0\" is no ReasonCode"));
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
