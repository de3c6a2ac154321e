//! A connection's requests of a workload.

use super::drawn::{Drawn, Kind};
use super::weights::Weights;
use crate::claims::Claims;
use crate::error::BenchError;
use crate::outcome::Tally;
use crate::random::Random;
use claim_protocol::{Builder, Operation, ReplyResult, Request, Uuid, encode_request};
use std::sync::Arc;

/// Rows that a connection remembers to refer to and to look up: the last ones that it claimed.
const ROWS_KNOWN_MAX: usize = 1 << 16;

/// A row that was claimed.
#[derive(Debug, Clone, Copy)]
struct Known {
    corpus: usize,
    event_id: Uuid,
}

/// What a request in a place asked for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Claim { corpus: usize },
    Reference,
    Lookup(Uuid),
}

/// Draws requests. As long as no row is known, all of them are claims, which is so at the start of a warm-up.
pub struct Mixed {
    drawn: Arc<Drawn>,
    claims: Claims,
    /// Numbers in the workload of the corpora of `claims`, to which alone this connection sends claims.
    corpora: Vec<usize>,
    /// Places in `corpora`, by the corpora's weights.
    here: Weights<usize>,
    /// Names by their numbers in the workload.
    names: Arc<Vec<String>>,
    known: Vec<Known>,
    /// Which of them is forgotten next, once there are as many as may be.
    oldest: usize,
    asked: Vec<Asked>,
    random: Random,
    builder: Builder,
}

impl Mixed {
    /// For so many places. Claims go to `corpora` (not empty) among the workload's, which are called `names`.
    pub fn new(
        drawn: Arc<Drawn>,
        names: Arc<Vec<String>>,
        corpora: Vec<usize>,
        outstanding: usize,
        random: Random,
    ) -> Self {
        let claims = Claims::new(drawn.shape, corpora.iter().map(|number| names[*number].clone()).collect());
        let place = |corpus| corpora.iter().position(|here| *here == corpus);
        let here = drawn.corpora.filtered(place).expect("every corpus has a weight");
        Mixed {
            drawn,
            claims,
            here,
            names,
            known: Vec::new(),
            oldest: 0,
            asked: vec![Asked::Claim { corpus: 0 }; outstanding],
            corpora,
            random,
            builder: Builder::new(),
        }
    }

    /// Reads the clock for the requests to come.
    pub fn set_clock(&mut self) {
        self.claims.set_clock();
    }

    /// Appends the next request.
    pub fn encode(&mut self, request_id: u64, slot: usize, out: &mut Vec<u8>) -> Result<(), BenchError> {
        let kind = self.drawn.kinds.draw(&mut self.random);
        if kind == Kind::Claim || self.known.is_empty() {
            return self.encode_claim(request_id, slot, out);
        }
        let Known { corpus, event_id } = self.known[self.random.below(self.known.len() as u64) as usize];
        let names = self.names.clone();
        let mut request = match kind {
            Kind::Reference => {
                self.asked[slot] = Asked::Reference;
                let corpus = names[self.other_than(corpus)].as_str();
                Request::new(request_id, Operation::Reference { corpus, event_id })
            }
            _ => {
                self.asked[slot] = Asked::Lookup(event_id);
                Request::new(request_id, Operation::Lookup { event_id })
            }
        };
        if kind == Kind::Reference {
            request.idempotency_key = Some(self.claims.idempotency_key());
        }
        encode_request(&mut self.builder, &request, out).map_err(|error| BenchError::Usage(error.to_string()))
    }

    fn encode_claim(&mut self, request_id: u64, slot: usize, out: &mut Vec<u8>) -> Result<(), BenchError> {
        let metadata_bytes = self.drawn.metadata_bytes.draw(&mut self.random);
        let number = self.here.draw(&mut self.random);
        self.asked[slot] = Asked::Claim { corpus: self.corpora[number] };
        self.claims.encode_for(number, metadata_bytes, request_id, out)
    }

    /// A corpus that refers to a row of another one. There are two at least.
    fn other_than(&mut self, corpus: usize) -> usize {
        let drawn = self.drawn.corpora.draw(&mut self.random);
        if drawn == corpus { (drawn + 1) % self.drawn.corpora.len() } else { drawn }
    }

    /// What an answer confirms: claims, or one reference or row; `None` for a refusal.
    pub fn take(&mut self, slot: usize, result: &ReplyResult, tally: &mut Tally) -> Result<Option<u64>, BenchError> {
        match (self.asked[slot], result) {
            (Asked::Claim { corpus }, result) => {
                match result {
                    ReplyResult::Claimed(claimed) => self.learn(corpus, claimed.event_id),
                    ReplyResult::ClaimedBatch(items) => {
                        items.iter().flatten().for_each(|claimed| self.learn(corpus, claimed.event_id));
                    }
                    _ => {}
                }
                self.claims.take(result, tally)
            }
            (Asked::Reference, ReplyResult::Referenced(_)) => Ok(Some(1)),
            (Asked::Lookup(asked), ReplyResult::Row(row)) if row.event_id == asked => Ok(Some(1)),
            (_, ReplyResult::Error(error)) => {
                tally.refused(error.code.name());
                Ok(None)
            }
            (asked, other) => Err(BenchError::Protocol { found: format!("{other:?} answers {asked:?}") }),
        }
    }

    fn learn(&mut self, corpus: usize, event_id: Uuid) {
        let known = Known { corpus, event_id };
        if self.known.len() < ROWS_KNOWN_MAX {
            self.known.push(known);
        } else {
            self.known[self.oldest] = known;
            self.oldest = (self.oldest + 1) % ROWS_KNOWN_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_protocol::{Claimed, decode_request, frame::split_frame};
    use std::time::Duration;

    #[test]
    fn requests_come_in_the_shares_of_the_workload() {
        let text = include_str!("../../workloads/mixed.toml");
        let drawn = Arc::new(Drawn::parse(text).expect("it is right"));
        let names: Vec<String> = (0..16).map(|number| format!("bench-{number}")).collect();
        let mut mixed = Mixed::new(drawn, Arc::new(names), (0..16).collect(), 1, Random::new(3));
        let mut tally = Tally::new(Duration::ZERO);
        let mut claimed_in = Vec::new();
        let (mut counts, mut seen) = ([0; 3], std::collections::HashSet::new());
        for number in 0..10_000_u64 {
            let mut out = Vec::new();
            mixed.encode(number, 0, &mut out).expect("it is short");
            let (content, _) = split_frame(&out).expect("short").expect("whole");
            let request = decode_request(content).expect("valid");
            let row = |event_id: &Uuid| claimed_in[event_id.as_u128() as usize - 1];
            let reply = match &request.operation {
                Operation::Claim { corpus, .. } => {
                    counts[0] += 1;
                    seen.insert((*corpus).to_owned());
                    let corpus: usize = corpus.trim_start_matches("bench-").parse().expect("a number");
                    claimed_in.push(corpus);
                    let event_id = Uuid::from_u128(claimed_in.len() as u128);
                    ReplyResult::Claimed(Claimed { event_id, claim_timestamp_us: 0, claim_sequence: 1 })
                }
                Operation::Reference { corpus, event_id } => {
                    counts[1] += 1;
                    assert_ne!(*corpus, format!("bench-{}", row(event_id)), "a corpus refers to others' rows");
                    ReplyResult::Referenced(*event_id)
                }
                Operation::Lookup { event_id } => {
                    counts[2] += 1;
                    row(event_id);
                    // The row itself is not needed to count the request.
                    continue;
                }
                other => panic!("the workload has no {other:?}"),
            };
            assert_eq!(mixed.take(0, &reply, &mut tally).expect("an answer"), Some(1));
        }
        assert_eq!(seen.len(), 16);
        assert!((7800..8200).contains(&counts[0]) && (1300..1700).contains(&counts[1]), "{counts:?}");
        let error = mixed.take(0, &ReplyResult::Corpora(Vec::new()), &mut tally).expect_err("no answer to that");
        assert!(error.to_string().contains("answers"), "{error}");
    }
}
