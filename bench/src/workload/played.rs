//! A connection's part of events that are played: as fast as they are answered, in their order, and from the beginning again.

use super::Part;
use super::events::{Event, Events};
use crate::claims::Shape;
use crate::error::BenchError;
use crate::keys::Keys;
use crate::outcome::Tally;
use claim_protocol::{Builder, ClaimItem, Operation, ReplyResult, Request, Uuid, encode_request};
use std::sync::Arc;

/// What a request in a place asked for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Claim { corpus: usize },
    Reference,
}

/// Plays every so-manieth event of its socket's corpora. A reference goes to the latest row that this connection has seen of the
/// other corpus, and is left out as long as there is none. From the second time on, event keys say which time it is, so that
/// only those that were equal in one are equal.
pub struct Played {
    events: Arc<Events>,
    /// Numbers of this connection's events.
    mine: Vec<usize>,
    /// How many were played; those that were left out count.
    turn: usize,
    /// By corpus.
    latest: Vec<Option<Uuid>>,
    asked: Vec<Asked>,
    keys: Keys,
    metadata: Vec<u8>,
    event_key: String,
    builder: Builder,
}

impl Played {
    /// For a connection whose socket takes claims of these corpora.
    pub fn new(events: Arc<Events>, here: &[usize], part: Part) -> Result<Played, BenchError> {
        let all = events.all().iter().enumerate().filter(|(_, event)| here.contains(&event.corpus()));
        let mine: Vec<usize> = all.map(|(number, _)| number).skip(part.number).step_by(part.of).collect();
        let claims = mine.iter().filter_map(|number| match &events.all()[*number] {
            Event::Claim(claim) => Some(claim.metadata_bytes),
            Event::Reference { .. } => None,
        });
        let Some(metadata_bytes) = claims.max() else {
            let sentence = format!("there are too few claims for {} connections: take fewer --connections", part.of);
            return Err(BenchError::Usage(sentence));
        };
        Ok(Played {
            mine,
            turn: 0,
            latest: vec![None; events.corpora().len()],
            asked: vec![Asked::Reference; part.outstanding],
            keys: Keys::new(),
            metadata: Shape { batch: 1, metadata_bytes }.metadata(),
            event_key: String::new(),
            builder: Builder::new(),
            events,
        })
    }

    /// Reads the clock for the requests to come.
    pub fn set_clock(&mut self) {
        self.keys.set_clock();
    }

    /// Appends the next request.
    pub fn encode(&mut self, request_id: u64, slot: usize, out: &mut Vec<u8>) -> Result<(), BenchError> {
        let events = Arc::clone(&self.events);
        let names = events.corpora();
        loop {
            let (lap, number) = (self.turn / self.mine.len(), self.mine[self.turn % self.mine.len()]);
            self.turn += 1;
            let operation = match &events.all()[number] {
                Event::Claim(claim) => {
                    self.asked[slot] = Asked::Claim { corpus: claim.corpus };
                    self.event_key.clear();
                    self.event_key.push_str(&claim.event_key);
                    if lap > 0 {
                        self.event_key.push_str(&format!("#{lap}"));
                    }
                    let item = ClaimItem {
                        event_key: &self.event_key,
                        occurred_at_us: claim.occurred_at_us,
                        owning_corpus: &claim.owning_corpus,
                        hosting_corpus: &claim.hosting_corpus,
                        category: &claim.category,
                        taxonomy_version: 1,
                        metadata: &self.metadata[..claim.metadata_bytes],
                    };
                    Operation::Claim { corpus: &names[claim.corpus], item, unless_registered_within_ms: 0 }
                }
                Event::Reference { corpus, of } => {
                    let Some(event_id) = self.latest[*of] else { continue };
                    self.asked[slot] = Asked::Reference;
                    Operation::Reference { corpus: &names[*corpus], event_id }
                }
            };
            let mut request = Request::new(request_id, operation);
            request.idempotency_key = Some(self.keys.idempotency_key());
            let encoded = encode_request(&mut self.builder, &request, out);
            return encoded.map_err(|error| BenchError::Usage(error.to_string()));
        }
    }

    /// What an answer confirms: a claim or a reference; `None` for a refusal.
    pub fn take(&mut self, slot: usize, result: &ReplyResult, tally: &mut Tally) -> Result<Option<u64>, BenchError> {
        match (self.asked[slot], result) {
            (Asked::Claim { corpus }, ReplyResult::Claimed(claimed)) => {
                self.latest[corpus] = Some(claimed.event_id);
                Ok(Some(1))
            }
            (Asked::Reference, ReplyResult::Referenced(_)) => Ok(Some(1)),
            (_, ReplyResult::Error(error)) => {
                tally.refused(error.code.name());
                Ok(None)
            }
            (asked, other) => Err(BenchError::Protocol { found: format!("{other:?} answers {asked:?}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_protocol::{Claimed, decode_request, frame::split_frame};
    use std::time::Duration;

    const EVENTS: &str = r#"
{"op":"claim","corpus":"a","at":1,"ref":"x","occurred_at":7,"event_key":"k1","category":"root","owning_corpus":"a","hosting_corpus":"b","size":3}
{"op":"reference","corpus":"a","at":2,"to_latest_of":"b"}
{"op":"claim","corpus":"b","at":3,"ref":"y","occurred_at":8,"event_key":"k2","category":"root","owning_corpus":"b","hosting_corpus":"b","size":0}
{"op":"retract","corpus":"b","at":4,"ref":"y","reason":"wrong"}
"#;

    #[test]
    fn events_are_played_in_their_order_and_again() {
        let events = Arc::new(Events::parse(EVENTS.trim().as_bytes()).expect("they are right"));
        let mut played = Played::new(events, &[0, 1], Part { outstanding: 1, number: 0, of: 1 }).expect("claims");
        let (mut seen, mut tally) = (Vec::new(), Tally::new(Duration::ZERO));
        for number in 1..=5_u64 {
            let mut out = Vec::new();
            played.encode(number, 0, &mut out).expect("it is short");
            let (content, _) = split_frame(&out).expect("short").expect("whole");
            let event_id = Uuid::from_u128(number.into());
            let (what, reply) = match decode_request(content).expect("valid").operation {
                Operation::Claim { corpus, item, .. } => {
                    let what = format!("{corpus} {} {}", item.event_key, item.metadata.len());
                    (what, ReplyResult::Claimed(Claimed { event_id, claim_timestamp_us: 0, claim_sequence: 1 }))
                }
                Operation::Reference { corpus, event_id } => {
                    (format!("{corpus} to {}", event_id.as_u128()), ReplyResult::Referenced(event_id))
                }
                other => panic!("{other:?}"),
            };
            seen.push(what);
            assert_eq!(played.take(0, &reply, &mut tally).expect("an answer"), Some(1));
        }
        assert_eq!(seen, ["a k1 3", "b k2 0", "a k1#1 3", "a to 2", "b k2#1 0"]);
    }

    #[test]
    fn each_connection_plays_its_part() {
        let events = Arc::new(Events::parse(EVENTS.trim().as_bytes()).expect("they are right"));
        let part = |number, of| Played::new(events.clone(), &[0, 1], Part { outstanding: 1, number, of });
        assert_eq!(part(0, 2).expect("two claims").mine, [0, 2]);
        let error = part(1, 2).err().expect("a reference alone").to_string();
        assert!(error.contains("--connections"), "{error}");
        let here = Played::new(events.clone(), &[1], Part { outstanding: 1, number: 0, of: 1 }).expect("a claim");
        assert_eq!(here.mine, [2]);
    }
}
