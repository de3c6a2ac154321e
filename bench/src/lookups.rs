//! Lookups of ids that the ledger has.

use crate::error::BenchError;
use crate::outcome::Tally;
use claim_protocol::{Builder, Operation, ReplyResult, Request, Uuid, encode_request};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ids in the order in which they are asked for: all of them before any again, over all connections and rows of a run, so
/// that the time between two lookups of one id is as long as it can be.
#[derive(Debug)]
pub struct Ids {
    /// Not empty.
    ids: Vec<Uuid>,
    asked: AtomicUsize,
}

impl Ids {
    /// In this order, from the first on.
    pub fn new(ids: Vec<Uuid>) -> Self {
        assert!(!ids.is_empty(), "there is nothing to look up");
        Ids { ids, asked: AtomicUsize::new(0) }
    }

    fn next(&self) -> Uuid {
        self.ids[self.asked.fetch_add(1, Ordering::Relaxed) % self.ids.len()]
    }
}

/// A connection's lookups.
pub struct Lookups {
    ids: Arc<Ids>,
    /// What is asked for in each place.
    asked: Vec<Uuid>,
    builder: Builder,
}

impl Lookups {
    /// For so many places.
    pub fn new(ids: Arc<Ids>, outstanding: usize) -> Self {
        Lookups { ids, asked: vec![Uuid::nil(); outstanding], builder: Builder::new() }
    }

    /// Appends the next lookup.
    pub fn encode(&mut self, request_id: u64, slot: usize, out: &mut Vec<u8>) -> Result<(), BenchError> {
        let event_id = self.ids.next();
        self.asked[slot] = event_id;
        let request = Request::new(request_id, Operation::Lookup { event_id });
        encode_request(&mut self.builder, &request, out).map_err(|error| BenchError::Usage(error.to_string()))
    }

    /// The rows of an answer, one; `None` for a refusal.
    pub fn take(&self, slot: usize, result: &ReplyResult, tally: &mut Tally) -> Result<Option<u64>, BenchError> {
        let asked = self.asked[slot];
        match result {
            ReplyResult::Row(row) if row.event_id == asked => Ok(Some(1)),
            ReplyResult::Error(error) => {
                tally.refused(error.code.name());
                Ok(None)
            }
            other => Err(BenchError::Protocol { found: format!("{other:?} answers a lookup of {asked}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_id_is_asked_for_before_any_again() {
        let ids = Arc::new(Ids::new((1..=5).map(Uuid::from_u128).collect()));
        let mut connections = [Lookups::new(ids.clone(), 4), Lookups::new(ids, 4)];
        for _ in 0..2 {
            let mut asked = Vec::new();
            for turn in 0..5 {
                let lookups = &mut connections[turn % 2];
                lookups.encode(1, turn / 2, &mut Vec::new()).expect("it is short");
                asked.push(lookups.asked[turn / 2].as_u128());
            }
            asked.sort_unstable();
            assert_eq!(asked, [1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn another_answer_than_the_row_breaks_the_protocol() {
        let mut lookups = Lookups::new(Arc::new(Ids::new(vec![Uuid::from_u128(7)])), 1);
        lookups.encode(1, 0, &mut Vec::new()).expect("it is short");
        let mut tally = Tally::new(Duration::ZERO);
        let error = lookups.take(0, &ReplyResult::Corpora(Vec::new()), &mut tally).expect_err("no row");
        assert!(error.to_string().contains("answers a lookup of 00000000"), "{error}");
    }
}
