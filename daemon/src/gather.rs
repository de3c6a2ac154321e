//! An answer that several shards give together.

use claim_protocol::reply::{CorpusInfo, Head, Pair, ReplyResult, ServerError, ShardStatus, StatusReport, Total};
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
        shard: Box<ShardStatus>,
    },
    /// The shard's control totals.
    Totals {
        /// What they depend on.
        at: LogPosition,
        /// The totals.
        totals: Vec<Total>,
    },
    /// The end of the shard's chain.
    Head {
        /// It.
        head: Head,
    },
    /// How long claims took until the shard's corpora could see them.
    Pairs {
        /// One a pair.
        pairs: Vec<Pair>,
    },
    /// What a corpus is to the shard, and from shard 0 whether it is closed.
    Usage {
        /// What it depends on.
        at: LogPosition,
        /// From shard 0.
        closed: Option<Box<(CorpusInfo, bool)>>,
        /// The corpus's rows on the shard.
        rows: u64,
        /// Rows of others on the shard that are aliases of its rows.
        aliases_elsewhere: u64,
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
    Totals(Vec<Total>),
    Heads(Vec<Head>),
    Pairs(Vec<Pair>),
    Usage { closed: Option<Box<(CorpusInfo, bool)>>, rows: u64, aliases_elsewhere: u64 },
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

    /// For control totals.
    pub fn totals(request_id: u64) -> Gather {
        Gather::new(request_id, Kind::Totals(Vec::new()))
    }

    /// For the ends of all chains.
    pub fn heads(request_id: u64) -> Gather {
        Gather::new(request_id, Kind::Heads(Vec::new()))
    }

    /// For telemetry.
    pub fn pairs(request_id: u64) -> Gather {
        Gather::new(request_id, Kind::Pairs(Vec::new()))
    }

    /// For the closing of a corpus.
    pub fn usage(request_id: u64) -> Gather {
        Gather::new(request_id, Kind::Usage { closed: None, rows: 0, aliases_elsewhere: 0 })
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
                report.shards.push(*shard);
                None
            }
            (Part::Totals { at, totals }, Kind::Totals(all)) => {
                all.extend(totals);
                Some(at)
            }
            (Part::Head { head }, Kind::Heads(all)) => {
                all.push(head);
                None
            }
            (Part::Pairs { pairs }, Kind::Pairs(all)) => {
                all.extend(pairs);
                None
            }
            (
                Part::Usage { at, closed, rows, aliases_elsewhere },
                Kind::Usage { closed: known, rows: all_rows, aliases_elsewhere: all_aliases },
            ) => {
                if closed.is_some() {
                    *known = closed;
                }
                *all_rows += rows;
                *all_aliases += aliases_elsewhere;
                Some(at)
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
                        registered_id: None,
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
            (Kind::Totals(mut totals), None) => {
                totals.sort_by(|a, b| (&a.corpus, &a.quarter).cmp(&(&b.corpus, &b.quarter)));
                ReplyResult::TotalsFound(totals)
            }
            (Kind::Heads(mut heads), None) => {
                heads.sort_by_key(|head| head.shard);
                ReplyResult::AuditHeads(heads)
            }
            (Kind::Pairs(mut pairs), None) => {
                pairs.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
                ReplyResult::PropagationFound(pairs)
            }
            (Kind::Usage { closed: Some(closed), rows, aliases_elsewhere }, None) => {
                let (corpus, applied) = *closed;
                ReplyResult::Decommissioned { corpus, applied, rows, aliases_elsewhere }
            }
            (Kind::Usage { closed: None, .. }, None) => ReplyResult::Error(ServerError {
                code: claim_protocol::ErrorCode::ShardFailed,
                outcome: claim_protocol::ErrorOutcome::Unknown,
                message: "shard 0 did not answer; ask again with the same key".to_owned(),
                retry_after_ms: 0,
                registered_id: None,
            }),
        };
        Reply { request_id, positions, result }
    }
}
