//! Claims, one by one or in batches, over some corpora.

use crate::error::BenchError;
use crate::keys::{EVENT_KEY_BYTES, Keys};
use crate::outcome::Tally;
use claim_protocol::{
    BATCH_ITEMS_MAX, Builder, ClaimItem, METADATA_BYTES_MAX, Operation, ReplyResult, Request, Uuid, encode_request,
};

/// The shape of every request of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Items per request; 1 makes single claims, not batches of one.
    pub batch: usize,
    /// Opaque bytes in each claim.
    pub metadata_bytes: usize,
}

impl Shape {
    /// Whether the protocol takes such requests.
    pub fn check(self) -> Result<(), BenchError> {
        if !(1..=BATCH_ITEMS_MAX).contains(&self.batch) {
            let sentence = format!("a batch has 1 to {BATCH_ITEMS_MAX} items, not {}", self.batch);
            return Err(BenchError::Usage(sentence));
        }
        if self.metadata_bytes > METADATA_BYTES_MAX {
            let sentence = format!("metadata has at most {METADATA_BYTES_MAX} bytes, not {}", self.metadata_bytes);
            return Err(BenchError::Usage(sentence));
        }
        Ok(())
    }

    /// Each claim's: neither zero nor repeating, so that no layer can make less of it than it is.
    pub fn metadata(self) -> Vec<u8> {
        (0..self.metadata_bytes).map(|number| (number as u8).wrapping_mul(151) ^ 0x5a).collect()
    }
}

/// Encodes claims with fresh keys, corpus after corpus.
pub struct Claims {
    shape: Shape,
    /// Not empty.
    corpora: Vec<String>,
    keys: Keys,
    metadata: Vec<u8>,
    builder: Builder,
    /// Event keys of the request being encoded, one after the other.
    event_keys: String,
    /// Requests encoded so far; picks the corpus.
    requests: usize,
}

impl Claims {
    /// Ready to encode requests of this shape for `corpora` (not empty), in turn.
    pub fn new(shape: Shape, corpora: Vec<String>) -> Self {
        Claims {
            shape,
            corpora,
            keys: Keys::new(),
            metadata: shape.metadata(),
            builder: Builder::new(),
            event_keys: String::with_capacity(shape.batch * EVENT_KEY_BYTES),
            requests: 0,
        }
    }

    /// Reads the clock for the requests to come.
    pub fn set_clock(&mut self) {
        self.keys.set_clock();
    }

    /// A key that no other request has.
    pub fn idempotency_key(&mut self) -> Uuid {
        self.keys.idempotency_key()
    }

    /// Appends one request for the next corpus to `out`.
    pub fn encode(&mut self, request_id: u64, out: &mut Vec<u8>) -> Result<(), BenchError> {
        let corpus = self.requests % self.corpora.len();
        self.requests += 1;
        self.encode_for(corpus, self.shape.metadata_bytes, request_id, out)
    }

    /// Appends one request for the corpus of this number, with so much metadata, which is no more than the shape has.
    pub fn encode_for(
        &mut self,
        corpus: usize,
        metadata_bytes: usize,
        request_id: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), BenchError> {
        let corpus = self.corpora[corpus].as_str();
        self.event_keys.clear();
        for _ in 0..self.shape.batch {
            self.keys.append_event_key(&mut self.event_keys);
        }
        let item = |number: usize| ClaimItem {
            event_key: &self.event_keys[number * EVENT_KEY_BYTES..(number + 1) * EVENT_KEY_BYTES],
            occurred_at_us: self.keys.clock_us(),
            owning_corpus: "",
            hosting_corpus: "",
            category: "bench",
            taxonomy_version: 1,
            metadata: &self.metadata[..metadata_bytes],
        };
        let operation = match self.shape.batch {
            1 => Operation::Claim { corpus, item: item(0), unless_registered_within_ms: 0 },
            batch => Operation::ClaimBatch { corpus, items: (0..batch).map(item).collect() },
        };
        let mut request = Request::new(request_id, operation);
        request.idempotency_key = Some(self.keys.idempotency_key());
        encode_request(&mut self.builder, &request, out)
            .map_err(|error| BenchError::Usage(format!("{error}: take a smaller --batch or fewer --metadata-bytes")))
    }

    /// The claims that a reply confirms; `None` when all was refused at once.
    pub fn take(&self, result: &ReplyResult, tally: &mut Tally) -> Result<Option<u64>, BenchError> {
        match result {
            ReplyResult::Claimed(_) if self.shape.batch == 1 => Ok(Some(1)),
            ReplyResult::ClaimedBatch(items) if items.len() == self.shape.batch => {
                items.iter().filter_map(|item| item.as_ref().err()).for_each(|error| tally.refused(error.code.name()));
                Ok(Some(items.iter().filter(|item| item.is_ok()).count() as u64))
            }
            ReplyResult::Error(error) => {
                tally.refused(error.code.name());
                Ok(None)
            }
            other => Err(BenchError::Protocol { found: format!("{other:?} answers a claim of {:?}", self.shape) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_protocol::{decode_request, frame::split_frame};

    fn claims(batch: usize, metadata_bytes: usize) -> Claims {
        Claims::new(Shape { batch, metadata_bytes }, vec!["bench-0".to_owned()])
    }

    #[test]
    fn requests_go_round_the_corpora_with_fresh_keys() {
        let corpora = vec!["bench-0".to_owned(), "bench-1".to_owned()];
        let mut claims = Claims::new(Shape { batch: 1, metadata_bytes: 3 }, corpora);
        let mut seen = Vec::new();
        for id in 0..4 {
            let mut out = Vec::new();
            claims.encode(id, &mut out).expect("it fits");
            let (content, taken) = split_frame(&out).expect("short").expect("whole");
            assert_eq!(taken, out.len());
            let request = decode_request(content).expect("valid");
            let Operation::Claim { corpus, item, .. } = request.operation else { panic!("{request:?}") };
            assert_eq!(item.metadata.len(), 3);
            seen.push((corpus.to_owned(), item.event_key.to_owned(), request.idempotency_key));
        }
        assert_eq!(
            seen.iter().map(|one| one.0.as_str()).collect::<Vec<_>>(),
            ["bench-0", "bench-1", "bench-0", "bench-1"]
        );
        for (index, one) in seen.iter().enumerate() {
            assert!(seen[..index].iter().all(|other| other.1 != one.1 && other.2 != one.2), "{seen:?}");
        }
    }

    #[test]
    fn a_batch_has_as_many_items_as_asked() {
        let mut claims = claims(1000, 128);
        let mut out = Vec::new();
        claims.encode(1, &mut out).expect("it fits");
        let (content, _) = split_frame(&out).expect("short").expect("whole");
        let request = decode_request(content).expect("valid");
        let Operation::ClaimBatch { items, .. } = request.operation else { panic!("no batch") };
        assert_eq!(items.len(), 1000);
        assert_ne!(items[0].event_key, items[999].event_key);
    }

    #[test]
    fn shapes_beyond_the_protocol_are_refused() {
        for (batch, metadata_bytes) in [(0, 0), (BATCH_ITEMS_MAX + 1, 0), (1, METADATA_BYTES_MAX + 1)] {
            assert!(Shape { batch, metadata_bytes }.check().is_err(), "{batch}, {metadata_bytes}");
        }
        Shape { batch: BATCH_ITEMS_MAX, metadata_bytes: 0 }.check().expect("the largest batch");
        let mut claims = claims(1000, METADATA_BYTES_MAX);
        let error = claims.encode(1, &mut Vec::new()).expect_err("beyond a frame");
        assert!(error.to_string().contains("--batch"), "{error}");
    }
}
