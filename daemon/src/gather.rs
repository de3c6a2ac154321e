//! An answer that several shards give together.

use claim_protocol::reply::{CorpusInfo, ReplyResult, ServerError, ShardStatus, StatusReport};
use claim_protocol::{LogPosition, Reply};
use uuid::Uuid;

/// One shard's part.
#[derive(Debug)]
pub enum Part {
    /// Results of some items, by index.
    References {
        /// What they depend on.
        at: LogPosition,
        /// The items.
        results: Vec<(u16, Result<Uuid, ServerError>)>,
    },
    /// The shard's corpora.
    Corpora {
        /// What they depend on.
        at: LogPosition,
        /// The corpora.
        corpora: Vec<CorpusInfo>,
    },
    /// The shard's status.
    Status {
        /// It.
        shard: ShardStatus,
    },
    /// The shard refuses.
    Refused {
        /// Why.
        error: ServerError,
    },
    /// No part of the answer: it only counts.
    Nothing,
}

#[derive(Debug)]
enum Kind {
    References(Vec<Option<Result<Uuid, ServerError>>>),
    Corpora(Vec<CorpusInfo>),
    Status(Box<StatusReport>),
}

/// The parts so far.
#[derive(Debug)]
pub struct Gather {
    request_id: u64,
    missing: usize,
    positions: Vec<LogPosition>,
    refused: Option<ServerError>,
    kind: Kind,
}

impl Gather {
    fn new(request_id: u64, kind: Kind) -> Gather {
        Gather { request_id, missing: 0, positions: Vec::new(), refused: None, kind }
    }

    /// For a batch of references.
    pub fn references(request_id: u64, items: usize) -> Gather {
        Gather::new(request_id, Kind::References(vec![None; items]))
    }

    /// For the list of corpora.
    pub fn corpora(request_id: u64) -> Gather {
        Gather::new(request_id, Kind::Corpora(Vec::new()))
    }

    /// For a status report, of which all but the shards is known.
    pub fn status(request_id: u64, report: StatusReport) -> Gather {
        Gather::new(request_id, Kind::Status(Box::new(report)))
    }

    /// Refuses one item of a batch of references.
    pub fn refuse(&mut self, item: usize, error: ServerError) {
        if let Kind::References(results) = &mut self.kind {
            results[item] = Some(Err(error));
        }
    }

    /// Says how many parts there will be.
    pub fn expect(&mut self, parts: usize) {
        self.missing = parts;
    }

    /// Takes a part. True when it was the last one.
    pub fn add(&mut self, part: Part) -> bool {
        let position = match (part, &mut self.kind) {
            (Part::References { at, results }, Kind::References(all)) => {
                for (index, result) in results {
                    all[usize::from(index)] = Some(result);
                }
                Some(at)
            }
            (Part::Corpora { at, corpora }, Kind::Corpora(all)) => {
                all.extend(corpora);
                Some(at)
            }
            (Part::Status { shard }, Kind::Status(report)) => {
                report.shards.push(shard);
                None
            }
            (Part::Refused { error }, _) => {
                self.refused.get_or_insert(error);
                None
            }
            _ => None,
        };
        self.positions.extend(position.filter(|at| at.position > 0));
        self.missing -= 1;
        self.missing == 0
    }

    /// The whole answer. In a batch of references, what a shard refused as a whole stands at each of its items.
    pub fn reply(self) -> Reply {
        let Gather { request_id, mut positions, refused, kind, .. } = self;
        positions.sort_unstable();
        let result = match (kind, refused) {
            (Kind::References(results), refused) => {
                let none = || {
                    Err(refused.clone().unwrap_or_else(|| ServerError {
                        code: claim_protocol::ErrorCode::NotVisible,
                        outcome: claim_protocol::ErrorOutcome::Definite,
                        message: "no shard answered for this item".to_owned(),
                        retry_after_ms: 0,
                    }))
                };
                ReplyResult::ReferencedBatch(results.into_iter().map(|r| r.unwrap_or_else(none)).collect())
            }
            (_, Some(error)) => ReplyResult::Error(error),
            (Kind::Corpora(mut corpora), None) => {
                corpora.sort_by_key(|corpus| corpus.shard_prefix);
                ReplyResult::Corpora(corpora)
            }
            (Kind::Status(mut report), None) => {
                report.shards.sort_by_key(|shard| shard.shard);
                ReplyResult::Status(report)
            }
        };
        Reply { request_id, positions, result }
    }
}
