//! What asks PostgreSQL: a closed loop over connections with one request outstanding each.
//!
//! As in the load on claimd, one thread serves all connections, a request's time begins when the answer before it was read, and
//! what is counted is what was answered in the measured time.

use super::NAME;
use crate::claims::Shape;
use crate::error::BenchError;
use crate::keys::Keys;
use crate::load::Timing;
use crate::outcome::Tally;
use claim_protocol::Uuid;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Instant, SystemTime};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_local};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, Error, NoTls, Row, Statement};
use xxhash_rust::xxh3::xxh3_128;

/// The corpus that claims are made for.
pub const CORPUS: &str = "bench-0";

/// What is claimed, as in the load on claimd.
const CATEGORY: &str = "bench";
const TAXONOMY_VERSION: i32 = 1;

const SCHEMA: &str = include_str!("../../../peers/postgresql/schema.sql");
const CLAIM: &str = include_str!("../../../peers/postgresql/claim.sql");
const CLAIM_BATCH: &str = include_str!("../../../peers/postgresql/claim_batch.sql");
const RETRY: &str = include_str!("../../../peers/postgresql/retry.sql");
const COUNTS: &str = include_str!("../../../peers/postgresql/counts.sql");

/// Claims of the batch of a rehearsal.
const REHEARSED_BATCH: usize = 10;

/// Where to connect, and the thread's own runtime.
pub struct Client {
    runtime: Runtime,
    config: Config,
}

impl Client {
    /// For the server whose socket is in this directory.
    pub fn new(socket_directory: &Path) -> Result<Self, BenchError> {
        let failed = |source| BenchError::System { operation: "make a runtime for PostgreSQL's client", source };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut config = Config::new();
        config.host_path(socket_directory).user("postgres").dbname("postgres").application_name("claim-bench");
        Ok(Client { runtime, config })
    }

    /// Whether it is there.
    pub fn answers(&self) -> bool {
        self.run(async || Link::open(&self.config).await.map(drop)).is_ok()
    }

    /// The tables and functions, and the corpus.
    pub fn make_tables(&self) -> Result<(), BenchError> {
        self.run(async || {
            let link = Link::open(&self.config).await?;
            link.client.batch_execute(SCHEMA).await.map_err(failed("make the tables"))?;
            link.client.query("SELECT onboard($1)", &[&CORPUS]).await.map_err(failed("onboard a corpus"))?;
            Ok(())
        })
    }

    /// The server's settings of these names.
    pub fn show(&self, names: &[&str]) -> Result<BTreeMap<String, String>, BenchError> {
        self.run(async || {
            let link = Link::open(&self.config).await?;
            let query = "SELECT name, current_setting(name) FROM unnest($1::text[]) AS name";
            let rows = link.client.query(query, &[&names]).await.map_err(failed("show its settings"))?;
            rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
        })
    }

    /// Claims once and in a batch, and sees that a retry is told the same and changes nothing, and that another request with the
    /// same key is told nothing; how many claims were made.
    pub fn rehearse(&self) -> Result<u64, BenchError> {
        for batch in [1, REHEARSED_BATCH] {
            self.run(async || {
                let link = Link::open(&self.config).await?;
                let claim = link.prepare(claim_of(batch)).await?;
                let retry = link.prepare(RETRY).await?;
                let mut requests = Requests::new(Shape { batch, metadata_bytes: 1 });
                requests.next();
                let first = ids(&requests.send(&link, &claim).await.map_err(failed("claim"))?)?;
                let again = ids(&requests.send(&link, &claim).await.map_err(failed("claim again"))?)?;
                let told = ids(&requests.retry(&link, &retry).await.map_err(failed("tell a retry"))?)?;
                requests.hash = vec![0; requests.hash.len()];
                let other = ids(&requests.retry(&link, &retry).await.map_err(failed("tell a retry"))?)?;
                let is_right = first.len() == batch && again.is_empty() && told == first && other.is_empty();
                let what =
                    || format!("{first:?} was claimed, {again:?} again; a retry was told {told:?}, another {other:?}");
                if is_right { Ok(()) } else { Err(BenchError::NotTheJob { system: NAME, what: what() }) }
            })?;
        }
        Ok(1 + REHEARSED_BATCH as u64)
    }

    /// Sees that there are as many audit rows as claims, and not fewer claims than were confirmed.
    pub fn check_rows(&self, confirmed: u64) -> Result<(), BenchError> {
        self.run(async || {
            let link = Link::open(&self.config).await?;
            let rows = link.client.query(COUNTS, &[]).await.map_err(failed("count its rows"))?;
            let counts: Vec<(i64, i64)> =
                rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect::<Result<_, BenchError>>()?;
            match counts[..] {
                [(claims, audited)] if claims == audited && claims as u64 >= confirmed => Ok(()),
                _ => {
                    let what = format!("(claims, audit rows) are {counts:?} where {confirmed} claims were confirmed");
                    Err(BenchError::NotTheJob { system: NAME, what })
                }
            }
        })
    }

    /// Loads it over so many connections.
    pub fn load(&self, connections: usize, shape: Shape, timing: Timing) -> Result<Tally, BenchError> {
        self.run(async || {
            let mut loops = Vec::with_capacity(connections);
            for _ in 0..connections {
                let link = Link::open(&self.config).await?;
                let statement = link.prepare(claim_of(shape.batch)).await?;
                loops.push((link, statement, Requests::new(shape)));
            }
            let measured_from = Instant::now() + timing.warm_up;
            let started_at = SystemTime::now() + timing.warm_up;
            let tally = Rc::new(RefCell::new(Tally::starting_at(started_at, timing.measured)));
            let span = Span { from: measured_from, until: measured_from + timing.measured };
            let tasks: Vec<_> = loops
                .into_iter()
                .map(|(link, statement, requests)| spawn_local(ask(link, statement, requests, span, tally.clone())))
                .collect();
            for task in tasks {
                task.await.expect("a loop does not panic")?;
            }
            Ok(Rc::into_inner(tally).expect("all loops have ended").into_inner())
        })
    }

    /// Runs this and the connections that it opens.
    fn run<T>(&self, work: impl AsyncFnOnce() -> Result<T, BenchError>) -> Result<T, BenchError> {
        LocalSet::new().block_on(&self.runtime, work())
    }
}

/// The statement for requests of so many claims.
fn claim_of(batch: usize) -> &'static str {
    if batch == 1 { CLAIM } else { CLAIM_BATCH }
}

/// The measured time.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Instant,
    until: Instant,
}

/// Request after request over one connection, to the end of the measured time.
async fn ask(
    link: Link,
    statement: Statement,
    mut requests: Requests,
    span: Span,
    tally: Rc<RefCell<Tally>>,
) -> Result<(), BenchError> {
    let mut since = Instant::now();
    while since < span.until {
        requests.next();
        let answer = requests.send(&link, &statement).await;
        let now = Instant::now();
        let is_measured = (span.from..span.until).contains(&now);
        match answer {
            Ok(rows) if rows.len() == requests.shape.batch => {
                if is_measured {
                    // The bytes of answers are of no interest here.
                    let mut tally = tally.borrow_mut();
                    tally.answered(now - span.from, now - since);
                    tally.confirmed(rows.len() as u64, 0);
                }
            }
            Ok(_) => tally.borrow_mut().refused("NOT_CLAIMED"),
            Err(error) => match error.code() {
                Some(code) => tally.borrow_mut().refused(code.code()),
                None => return Err(failed("claim")(error)),
            },
        }
        since = now;
    }
    Ok(())
}

/// A connection.
struct Link {
    client: tokio_postgres::Client,
}

impl Link {
    async fn open(config: &Config) -> Result<Self, BenchError> {
        let (client, connection) = config.connect(NoTls).await.map_err(failed("take a connection"))?;
        // It ends with the client, or with an error that the client is told too.
        spawn_local(connection);
        Ok(Link { client })
    }

    async fn prepare(&self, statement: &str) -> Result<Statement, BenchError> {
        self.client.prepare(statement).await.map_err(failed("prepare a statement"))
    }
}

/// Claims with fresh keys.
struct Requests {
    shape: Shape,
    keys: Keys,
    principal: String,
    idempotency_key: Uuid,
    hash: Vec<u8>,
    occurred_at: SystemTime,
    event_keys: Vec<String>,
    metadata: Vec<u8>,
}

impl Requests {
    fn new(shape: Shape) -> Self {
        Requests {
            shape,
            keys: Keys::new(),
            principal: format!("{NAME} {}", std::process::id()),
            idempotency_key: Uuid::nil(),
            hash: Vec::new(),
            occurred_at: SystemTime::UNIX_EPOCH,
            event_keys: vec![String::new(); shape.batch],
            metadata: shape.metadata(),
        }
    }

    /// Goes on to the next request.
    fn next(&mut self) {
        self.keys.set_clock();
        self.idempotency_key = self.keys.idempotency_key();
        self.occurred_at = SystemTime::now();
        for event_key in &mut self.event_keys {
            event_key.clear();
            self.keys.append_event_key(event_key);
        }
        // The event keys are all that differs between requests.
        self.hash = xxh3_128(self.event_keys.concat().as_bytes()).to_be_bytes().to_vec();
    }

    /// One round trip.
    async fn send(&self, link: &Link, statement: &Statement) -> Result<Vec<Row>, Error> {
        let batch = self.shape.batch;
        let metadata = self.metadata.as_slice();
        if batch == 1 {
            let parameters: [&(dyn ToSql + Sync); 11] = [
                &CORPUS,
                &self.idempotency_key,
                &self.hash,
                &self.event_keys[0],
                &self.occurred_at,
                &CORPUS,
                &CORPUS,
                &CATEGORY,
                &TAXONOMY_VERSION,
                &metadata,
                &self.principal,
            ];
            return link.client.query(statement, &parameters).await;
        }
        let parameters: [&(dyn ToSql + Sync); 11] = [
            &CORPUS,
            &self.idempotency_key,
            &self.hash,
            &self.principal,
            &self.event_keys,
            &vec![self.occurred_at; batch],
            &vec![CORPUS; batch],
            &vec![CORPUS; batch],
            &vec![CATEGORY; batch],
            &vec![TAXONOMY_VERSION; batch],
            &vec![metadata; batch],
        ];
        link.client.query(statement, &parameters).await
    }

    /// What the request was told.
    async fn retry(&self, link: &Link, statement: &Statement) -> Result<Vec<Row>, Error> {
        link.client.query(statement, &[&CORPUS, &self.idempotency_key, &self.hash]).await
    }
}

fn ids(rows: &[Row]) -> Result<Vec<Uuid>, BenchError> {
    rows.iter().map(|row| get(row, 0)).collect()
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, BenchError> {
    row.try_get(column).map_err(failed("answer with what was asked for"))
}

/// For `map_err`: with what the server said about it.
fn failed(doing: &'static str) -> impl FnOnce(Error) -> BenchError {
    move |error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        BenchError::Peer { system: NAME, doing, message: format!("{error}{cause}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The highest `$1`, `$2`, … of a statement.
    fn parameters(statement: &str) -> usize {
        let numbers = statement.split('$').skip(1).filter_map(|rest| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        numbers.max().unwrap_or(0)
    }

    #[test]
    fn statements_have_the_parameters_that_are_sent() {
        assert_eq!([CLAIM, CLAIM_BATCH, RETRY, COUNTS].map(parameters), [11, 11, 3, 0]);
    }

    #[test]
    fn requests_have_fresh_keys_and_their_own_hash() {
        let mut requests = Requests::new(Shape { batch: 3, metadata_bytes: 5 });
        let mut seen = HashSet::new();
        for _ in 0..10 {
            requests.next();
            assert_eq!((requests.event_keys.len(), requests.metadata.len(), requests.hash.len()), (3, 5, 16));
            assert!(requests.event_keys.iter().all(|key| seen.insert(key.clone())));
            assert!(seen.insert(requests.idempotency_key.to_string()));
            assert!(seen.insert(format!("{:?}", requests.hash)));
        }
    }

    #[test]
    fn no_server_is_an_error_and_no_answer() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let client = Client::new(directory.path()).expect("a runtime");
        assert!(!client.answers());
        let timing = Timing { warm_up: Default::default(), measured: Default::default(), spin: false, rate: None };
        let error = client.load(2, Shape { batch: 1, metadata_bytes: 1 }, timing).expect_err("nobody is there");
        assert!(error.to_string().starts_with("postgresql failed to take a connection"), "{error}");
    }
}
