//! Ids that a ledger has, found by looking into its corpora at random times.
//!
//! Times rather than rows are drawn, because a scan begins at a time; so where rows lie dense, fewer of them are found than
//! their number would give. Times without rows are learnt and left out from then on. A page costs a daemon the same whether one
//! row of it is wanted or many, so several are taken, as far from each other as they are.

use crate::error::BenchError;
use crate::random::Random;
use crate::session::Session;
use claim_protocol::{CorpusInfo, Operation, ReplyResult, Row, SCAN_ROWS_MAX, Uuid};
use std::collections::HashSet;

/// Looks that are out at a time: enough to keep a device busy.
const LOOKS: usize = 8;

/// Rows that are taken from a page: some 10 KiB of log lie between two of them where claims are small.
const ROWS_OF_PAGE: usize = 32;

/// After so many looks for each id that is wanted, those that were found have to do.
const LOOKS_PER_ID_MAX: usize = 4;

/// Of a ledger with at most so many rows for each that is wanted all are read: looks would find the same ones again and again.
const ROWS_PER_ID_FEW: u64 = 8;

/// Looks besides, in which times without rows are learnt.
const LOOKS_BESIDES: usize = 1024;

/// Times without rows are left out when they are longer than this share of what is left: the others are between neighbours.
const GAP_SHARE: u64 = 1024;

/// A row's place in the order in which scans tell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// A number in the list of corpora.
    pub corpus: usize,
    pub event_id: Uuid,
}

/// At most `wanted` different rows of `corpora`, in the order found: fewer where the ledger has not many more. The same random
/// numbers find the same rows, unless something was claimed meanwhile.
pub fn sample(
    session: &mut Session,
    corpora: &[CorpusInfo],
    wanted: usize,
    random: &mut Random,
) -> Result<Vec<Place>, BenchError> {
    let claims: u64 = corpora.iter().map(|corpus| corpus.claims).sum();
    if claims <= ROWS_PER_ID_FEW * wanted as u64 {
        return sample_of_few(session, corpora, wanted, random);
    }
    let mut spans = corpora.iter().map(|corpus| span(session, &corpus.name)).collect::<Result<Vec<_>, _>>()?;
    let (mut found, mut places) = (HashSet::new(), Vec::new());
    let mut looks: Vec<Look> = Vec::new();
    let mut looks_left = wanted * LOOKS_PER_ID_MAX + LOOKS_BESIDES;
    while places.len() < wanted && looks_left > 0 {
        while looks.len() < LOOKS {
            let corpus = weighted(corpora.iter().map(|corpus| corpus.claims), random.below(claims));
            let since_us = spans[corpus].at(random.below(spans[corpus].total_us()));
            looks.push(Look { corpus, since_us, after: None });
        }
        looks_left = looks_left.saturating_sub(looks.len());
        let operations: Vec<Operation<'_>> = looks
            .iter()
            .map(|look| scan(&corpora[look.corpus].name, Some(look.since_us), look.after, SCAN_ROWS_MAX))
            .collect();
        let pages = session.ask_all("scan a page", &operations)?;
        let mut unfinished = Vec::new();
        for (look, page) in looks.into_iter().zip(pages) {
            let spans = &mut spans[look.corpus];
            let (rows, next) = rows_of(page)?;
            let first = rows.first().map(|row| row.claim_timestamp_us);
            for row in rows.iter().step_by(rows.len().div_ceil(ROWS_OF_PAGE).max(1)) {
                let place = Place { corpus: look.corpus, event_id: row.event_id };
                if places.len() < wanted && found.insert(place) {
                    places.push(place);
                }
            }
            match (first, next) {
                (Some(claimed_us), _) if (claimed_us - look.since_us) as u64 > spans.total_us() / GAP_SHARE => {
                    spans.remove(look.since_us, claimed_us);
                }
                (Some(_), _) => {}
                (None, Some(after)) => unfinished.push(Look { after: Some(after), ..look }),
                (None, None) => spans.remove(look.since_us, i64::MAX),
            }
        }
        looks = unfinished;
    }
    Ok(places)
}

/// Some of all rows.
fn sample_of_few(
    session: &mut Session,
    corpora: &[CorpusInfo],
    wanted: usize,
    random: &mut Random,
) -> Result<Vec<Place>, BenchError> {
    let mut places = Vec::new();
    for (corpus, info) in corpora.iter().enumerate() {
        let mut after = None;
        loop {
            let pages = session.ask_all("scan a page", &[scan(&info.name, None, after, SCAN_ROWS_MAX)])?;
            let (rows, next) = rows_of(pages.into_iter().next().expect("one answer for one request"))?;
            places.extend(rows.iter().map(|row| Place { corpus, event_id: row.event_id }));
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    random.shuffle(&mut places);
    places.truncate(wanted);
    Ok(places)
}

/// A look for rows claimed at or after a time.
#[derive(Debug, Clone, Copy)]
struct Look {
    corpus: usize,
    since_us: i64,
    /// Where the empty page before it ended.
    after: Option<Uuid>,
}

fn scan(corpus: &str, since_us: Option<i64>, after: Option<Uuid>, limit: usize) -> Operation<'_> {
    Operation::Scan { corpus, since_us, until_us: None, after, limit: limit as u32 }
}

/// A page's rows, and where it goes on.
fn rows_of(page: ReplyResult) -> Result<(Vec<Row>, Option<Uuid>), BenchError> {
    match page {
        ReplyResult::ScanPage { rows, next } => Ok((rows, next)),
        other => Err(BenchError::Protocol { found: format!("{other:?} answers a scan") }),
    }
}

/// When the first row at or after a time was claimed, over pages that have none.
fn find_first(session: &mut Session, corpus: &str, since_us: Option<i64>) -> Result<Option<i64>, BenchError> {
    let mut after = None;
    loop {
        let pages = session.ask_all("scan a page", &[scan(corpus, since_us, after, 1)])?;
        match rows_of(pages.into_iter().next().expect("one answer for one request"))? {
            (rows, None) if rows.is_empty() => return Ok(None),
            (rows, next) => match rows.first() {
                Some(row) => return Ok(Some(row.claim_timestamp_us)),
                None => after = next,
            },
        }
    }
}

/// From a corpus's first row to a time behind its last one, less than twice as far as need be: looks beyond the last row find
/// that out.
fn span(session: &mut Session, corpus: &str) -> Result<Spans, BenchError> {
    let Some(first_us) = find_first(session, corpus, None)? else { return Ok(Spans::new(0, 1)) };
    let mut length_us: i64 = 1_000_000;
    while find_first(session, corpus, Some(first_us + length_us))?.is_some() {
        length_us *= 2;
    }
    Ok(Spans::new(first_us, first_us + length_us))
}

/// Which of `weights` the number `below` their sum falls to.
fn weighted(weights: impl Iterator<Item = u64>, below: u64) -> usize {
    let mut end = 0;
    weights
        .take_while(|weight| {
            end += weight;
            end <= below
        })
        .count()
}

/// Microseconds in which there may be rows: spans in rising order, from the first moment to before the second. Its first
/// moment always stays.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spans {
    spans: Vec<(i64, i64)>,
}

impl Spans {
    fn new(from_us: i64, until_us: i64) -> Self {
        assert!(from_us < until_us, "a span from {from_us} to {until_us}");
        Spans { spans: vec![(from_us, until_us)] }
    }

    /// At least 1.
    fn total_us(&self) -> u64 {
        self.spans.iter().map(|(from, until)| (until - from) as u64).sum()
    }

    /// The moment before which there are so many others, which is less than the total.
    fn at(&self, mut number: u64) -> i64 {
        for (from, until) in &self.spans {
            let length = (until - from) as u64;
            if number < length {
                return from + number as i64;
            }
            number -= length;
        }
        panic!("there are not so many moments: {number} more than {self:?} has")
    }

    /// Leaves out what lies from one moment to before another.
    fn remove(&mut self, from_us: i64, until_us: i64) {
        let from_us = from_us.max(self.spans[0].0 + 1);
        let parts = self.spans.iter().flat_map(|(from, until)| {
            [(*from, (*until).min(from_us)), ((*from).max(until_us), *until)]
                .into_iter()
                .filter(|(from, until)| from < until)
        });
        if from_us < until_us {
            self.spans = parts.collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_daemon::{FakeDaemon, Manner};

    #[test]
    fn moments_are_counted_over_what_is_left() {
        let mut spans = Spans::new(100, 200);
        spans.remove(120, 180);
        assert_eq!(spans.spans, [(100, 120), (180, 200)]);
        assert_eq!(spans.total_us(), 40);
        assert_eq!([0, 19, 20, 39].map(|number| spans.at(number)), [100, 119, 180, 199]);
        // Over a gap that is known already, beyond the end, and the wrong way round.
        spans.remove(110, 185);
        assert_eq!(spans.spans, [(100, 110), (185, 200)]);
        spans.remove(190, i64::MAX);
        spans.remove(188, 186);
        assert_eq!(spans.spans, [(100, 110), (185, 190)]);
        // The first moment stays, for a row was found there.
        spans.remove(0, i64::MAX);
        assert_eq!((spans.spans.as_slice(), spans.total_us(), spans.at(0)), ([(100, 101)].as_slice(), 1, 100));
    }

    #[test]
    fn corpora_are_drawn_by_their_claims() {
        let draw = |below| weighted([2, 0, 3].into_iter(), below);
        assert_eq!([0, 1, 2, 3, 4].map(draw), [0, 0, 2, 2, 2]);
    }

    #[test]
    fn a_ledger_with_gaps_is_sampled_all_over() {
        let daemon = FakeDaemon::start(Manner::HasRows);
        let (mut session, _) = Session::open(daemon.socket()).expect("it greets");
        let corpora = session.corpora_with_rows().expect("it lists them");
        let draw = |session: &mut Session, wanted, seed| {
            sample(session, &corpora, wanted, &mut Random::new(seed)).expect("it answers")
        };
        let few = draw(&mut session, 100, 7);
        assert_eq!(few, draw(&mut session, 100, 7), "the seed repeats it");
        assert_ne!(few, draw(&mut session, 100, 8));
        assert_eq!(few.len(), 100);
        assert_eq!(few.iter().collect::<HashSet<_>>().len(), 100);
        for corpus in 0..corpora.len() {
            assert!(few.iter().any(|place| place.corpus == corpus), "{few:?}");
        }
        // More than there are, and nearly as many: each once.
        let rows: u64 = corpora.iter().map(|corpus| corpus.claims).sum();
        for wanted in [1_000_000, rows as usize - 1] {
            let many = draw(&mut session, wanted, 7);
            assert_eq!(many.len(), wanted.min(rows as usize));
            assert_eq!(many.iter().collect::<HashSet<_>>().len(), many.len());
            assert_ne!(many, draw(&mut session, wanted, 8));
        }
    }
}
