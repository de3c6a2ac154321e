//! Scans: page after page of a corpus, from a place in it to its end, and on with the next corpus.

use crate::error::BenchError;
use crate::outcome::Tally;
use crate::sample::Place;
use claim_protocol::{Builder, Operation, ReplyResult, Request, SCAN_ROWS_MAX, Uuid, encode_request};
use std::sync::Arc;

/// Where a walk stands; `None`: before the first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Walk {
    corpus: usize,
    after: Option<Uuid>,
}

impl Walk {
    /// Where it goes on, of so many corpora, behind a page with this `next`.
    fn behind(self, next: Option<Uuid>, corpora: usize) -> Walk {
        match next {
            Some(_) => Walk { after: next, ..self },
            None => Walk { corpus: (self.corpus + 1) % corpora, after: None },
        }
    }
}

/// A connection's scans: one walk for each place.
pub struct Scans {
    /// Not empty.
    corpora: Arc<Vec<String>>,
    walks: Vec<Walk>,
    builder: Builder,
}

impl Scans {
    /// One walk from each of `starts`, whose corpora are numbers in `corpora`.
    pub fn new(corpora: Arc<Vec<String>>, starts: &[Place]) -> Self {
        let walks = starts.iter().map(|place| Walk { corpus: place.corpus, after: Some(place.event_id) }).collect();
        Scans { corpora, walks, builder: Builder::new() }
    }

    /// Appends the request for the next page of a place's walk.
    pub fn encode(&mut self, request_id: u64, slot: usize, out: &mut Vec<u8>) -> Result<(), BenchError> {
        let Walk { corpus, after } = self.walks[slot];
        let corpus = self.corpora[corpus].as_str();
        let operation = Operation::Scan { corpus, since_us: None, until_us: None, after, limit: SCAN_ROWS_MAX as u32 };
        encode_request(&mut self.builder, &Request::new(request_id, operation), out)
            .map_err(|error| BenchError::Usage(error.to_string()))
    }

    /// The rows of a page, and the walk goes on behind it. After a refusal, `None`, it asks for the same page again.
    pub fn take(&mut self, slot: usize, result: &ReplyResult, tally: &mut Tally) -> Result<Option<u64>, BenchError> {
        match result {
            ReplyResult::ScanPage { rows, next } => {
                self.walks[slot] = self.walks[slot].behind(*next, self.corpora.len());
                Ok(Some(rows.len() as u64))
            }
            ReplyResult::Error(error) => {
                tally.refused(error.code.name());
                Ok(None)
            }
            other => Err(BenchError::Protocol { found: format!("{other:?} answers a scan") }),
        }
    }
}

/// `count` places out of `sorted` (not empty), as far from each other as may be, so that no walk finds in a cache what another
/// has just read; `turn` moves all of them.
pub fn starts(sorted: &[Place], count: usize, turn: u64) -> Vec<Place> {
    let places = sorted.len();
    let turn = (turn % places as u64) as usize;
    (0..count).map(|number| sorted[(number * places / count + turn) % places]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_goes_through_every_corpus_to_its_end() {
        let next = Some(Uuid::from_u128(9));
        let walk = Walk { corpus: 0, after: None }.behind(next, 2);
        assert_eq!(walk, Walk { corpus: 0, after: next });
        assert_eq!(walk.behind(None, 2), Walk { corpus: 1, after: None });
        assert_eq!(walk.behind(None, 2).behind(None, 2), Walk { corpus: 0, after: None });
    }

    #[test]
    fn walks_begin_far_from_each_other() {
        let sorted: Vec<Place> = (0..100).map(|id| Place { corpus: 0, event_id: Uuid::from_u128(id) }).collect();
        let ids = |count, turn| -> Vec<u128> {
            starts(&sorted, count, turn).iter().map(|place| place.event_id.as_u128()).collect()
        };
        assert_eq!(ids(4, 0), [0, 25, 50, 75]);
        assert_eq!(ids(4, 30), [30, 55, 80, 5]);
        assert_eq!(ids(1, 250), [50]);
        assert_eq!(starts(&sorted[..2], 4, 0).len(), 4, "more walks than places share them");
    }
}
