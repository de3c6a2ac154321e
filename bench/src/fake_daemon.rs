//! A daemon without a ledger, in threads of the test: it greets, onboards, and answers claims and reads at once.

use claim_protocol::{
    Builder, Claimed, ClockMode, CorpusInfo, ErrorCode, ErrorOutcome, FrameBuffer, Lifecycle, LogPosition, Operation,
    ReconciliationState, Reply, ReplyResult, Request, Row, ServerError, ShardEndpoint, Uuid, Welcome, decode_request,
    encode_reply,
};
use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How it behaves towards claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Every claim succeeds.
    Willing,
    /// Every claim succeeds, but so many a second at most.
    Takes { per_second: u32 },
    /// Every seventh claim or item is refused as OVERLOADED.
    RefusesEverySeventh,
    /// The connection is closed at the hundredth claim.
    HangsUp,
    /// Every claim is answered twice.
    AnswersTwice,
    /// Its ledger keeps replay time.
    Replays,
    /// Its ledger has two corpora with rows; see [`claimed_us`].
    HasRows,
    /// As before, and every lookup is refused as OVERLOADED.
    RefusesLookups,
}

impl Manner {
    fn has_rows(self) -> bool {
        matches!(self, Manner::HasRows | Manner::RefusesLookups)
    }
}

/// What it saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Claims answered, items of batches counted singly.
    pub claims: u64,
    /// Idempotency or event keys that came more than once.
    pub repeated_keys: u64,
    /// References answered.
    pub references: u64,
    /// Corpora onboarded.
    pub corpora: usize,
    /// When the claims so far will have been worked off, by a daemon that takes so many a second.
    worked_off_at: Option<Instant>,
    keys: HashSet<String>,
    names: Vec<String>,
}

/// Rows of each corpus of a ledger that has any.
const ROWS: u64 = 1000;

/// Rows of a page of its scans.
const PAGE_ROWS: usize = 100;

/// Shards that it pretends to have; corpora alternate between them.
const SHARDS: u16 = 2;

/// Listens on one socket for all and on one per shard until it is stopped.
pub struct FakeDaemon {
    directory: tempfile::TempDir,
    socket: PathBuf,
    seen: Arc<Mutex<Seen>>,
    stopping: Arc<AtomicBool>,
    listeners: Vec<thread::JoinHandle<()>>,
}

impl FakeDaemon {
    pub fn start(manner: Manner) -> Self {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stopping = Arc::new(AtomicBool::new(false));
        let sockets = sockets(directory.path());
        let shards: Vec<ShardEndpoint> = (0..SHARDS)
            .zip(&sockets[1..])
            .map(|(shard, socket)| ShardEndpoint { shard, socket: socket.display().to_string() })
            .collect();
        let listeners = sockets
            .iter()
            .map(|socket| {
                let listener = UnixListener::bind(socket).expect("a socket in a scratch directory");
                let served = Served { manner, seen: seen.clone(), shards: shards.clone() };
                let stopping = stopping.clone();
                thread::spawn(move || listen(&listener, &served, &stopping))
            })
            .collect();
        FakeDaemon { directory, socket: sockets[0].clone(), seen, stopping, listeners }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends the listeners and says what was seen. Connections end when their clients hang up.
    pub fn stop(mut self) -> Seen {
        self.stopping.store(true, Ordering::Release);
        for (listener, socket) in self.listeners.drain(..).zip(sockets(self.directory.path())) {
            drop(UnixStream::connect(socket));
            listener.join().expect("a listener does not panic");
        }
        std::mem::take(&mut *self.seen.lock().expect("nobody panicked"))
    }
}

fn sockets(directory: &Path) -> Vec<PathBuf> {
    ["claimd.sock", "shard-0.sock", "shard-1.sock"].iter().map(|name| directory.join(name)).collect()
}

#[derive(Clone)]
struct Served {
    manner: Manner,
    seen: Arc<Mutex<Seen>>,
    shards: Vec<ShardEndpoint>,
}

fn listen(listener: &UnixListener, served: &Served, stopping: &AtomicBool) {
    for stream in listener.incoming() {
        if stopping.load(Ordering::Acquire) {
            return;
        }
        let (stream, served) = (stream.expect("a connection"), served.clone());
        thread::spawn(move || served.connection(stream));
    }
}

impl Served {
    /// Answers until the client or the manner hangs up. A client that goes away while it is written to is no failure.
    fn connection(&self, mut stream: UnixStream) {
        let mut incoming = FrameBuffer::new();
        let mut builder = Builder::new();
        let mut claims: u64 = 0;
        while incoming.read_from(&mut stream).is_ok_and(|bytes| bytes > 0) {
            let mut out = Vec::new();
            while let Some(content) = incoming.next_frame().expect("frames are short") {
                let request = decode_request(content).expect("requests are valid");
                let reply = self.answer(&request, &mut claims);
                let times = if self.manner == Manner::AnswersTwice && claims > 0 { 2 } else { 1 };
                for _ in 0..times {
                    encode_reply(&mut builder, &reply, &mut out).expect("replies are short");
                }
                if self.manner == Manner::HangsUp && claims >= 100 {
                    return;
                }
            }
            if stream.write_all(&out).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request<'_>, claims: &mut u64) -> Reply {
        let mut seen = self.seen.lock().expect("nobody panicked");
        if let Some(key) = request.idempotency_key {
            note_key(&mut seen, key.to_string());
        }
        let mut claim = |seen: &mut Seen, event_key: &str| {
            self.work(seen);
            note_key(seen, event_key.to_owned());
            *claims += 1;
            seen.claims += 1;
            self.claimed(seen.claims)
        };
        let result = match &request.operation {
            Operation::Hello { .. } => ReplyResult::Welcome(self.welcome()),
            Operation::Corpora if self.manner.has_rows() => {
                let corpora = (1..=SHARDS).map(|prefix| corpus(&format!("bench-{}", prefix - 1), prefix));
                ReplyResult::Corpora(corpora.map(|corpus| CorpusInfo { claims: ROWS, ..corpus }).collect())
            }
            Operation::Corpora => ReplyResult::Corpora(Vec::new()),
            Operation::Lookup { .. } if self.manner == Manner::RefusesLookups => ReplyResult::Error(overloaded()),
            Operation::Lookup { event_id } if self.manner.has_rows() => ReplyResult::Row(Box::new(row(*event_id))),
            Operation::Lookup { event_id } => {
                let claimed = Row { event_id: *event_id, ..row(Uuid::from_u64_pair(1, 0)) };
                ReplyResult::Row(Box::new(claimed))
            }
            Operation::Reference { event_id, .. } => {
                seen.references += 1;
                ReplyResult::Referenced(*event_id)
            }
            Operation::Scan { corpus, since_us, after, limit, .. } => {
                assert!(self.manner.has_rows(), "it has no rows");
                page(corpus, *since_us, *after, (*limit as usize).min(PAGE_ROWS))
            }
            Operation::Onboard { name, .. } => {
                seen.names.push((*name).to_owned());
                seen.corpora = seen.names.len();
                ReplyResult::Onboarded(corpus(name, seen.corpora as u16))
            }
            Operation::Claim { corpus, item, .. } => {
                let is_onboarded = self.manner.has_rows() || seen.names.iter().any(|name| name == corpus);
                assert!(is_onboarded, "{corpus} is not onboarded");
                claim(&mut seen, item.event_key).map_or_else(ReplyResult::Error, ReplyResult::Claimed)
            }
            Operation::ClaimBatch { items, .. } => {
                ReplyResult::ClaimedBatch(items.iter().map(|item| claim(&mut seen, item.event_key)).collect())
            }
            other => panic!("a load has no use for {other:?}"),
        };
        let positions = vec![LogPosition { shard: 0, position: seen.claims }];
        Reply { request_id: request.request_id, positions, result }
    }

    /// Spends the time that a claim takes, while every other connection waits.
    fn work(&self, seen: &mut Seen) {
        let Manner::Takes { per_second } = self.manner else { return };
        let now = Instant::now();
        let done_at = seen.worked_off_at.unwrap_or(now).max(now) + Duration::from_secs(1) / per_second;
        seen.worked_off_at = Some(done_at);
        thread::sleep(done_at.saturating_duration_since(now));
    }

    fn claimed(&self, number: u64) -> Result<Claimed, ServerError> {
        if self.manner == Manner::RefusesEverySeventh && number.is_multiple_of(7) {
            return Err(overloaded());
        }
        Ok(Claimed { event_id: Uuid::from_u128(number.into()), claim_timestamp_us: 0, claim_sequence: number })
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: 1,
            daemon: "fake".to_owned(),
            ledger: Uuid::nil(),
            clock: if self.manner == Manner::Replays { ClockMode::Replay } else { ClockMode::Wall },
            shards: self.shards.clone(),
            frame_bytes_max: 4 << 20,
            batch_items_max: 8190,
        }
    }
}

fn overloaded() -> ServerError {
    ServerError {
        code: ErrorCode::Overloaded,
        outcome: ErrorOutcome::Definite,
        message: "the test wants it so".to_owned(),
        retry_after_ms: 0,
        registered_id: None,
    }
}

/// When a row was claimed: one each millisecond, with an hour between the first half and the second.
fn claimed_us(number: u64) -> i64 {
    let pause_us = if number < ROWS / 2 { 0 } else { 3_600_000_000 };
    1_000_000 + number as i64 * 1000 + pause_us
}

/// The row of an id, which is the corpus's prefix and the row's number.
fn row(event_id: Uuid) -> Row {
    let (prefix, number) = event_id.as_u64_pair();
    assert!((1..=SHARDS.into()).contains(&prefix) && number < ROWS, "there is no row {event_id}");
    let corpus = format!("bench-{}", prefix - 1);
    Row {
        event_id,
        corpus: corpus.clone(),
        lifecycle: Lifecycle::Registered,
        claim_timestamp_us: claimed_us(number),
        claim_sequence: number + 1,
        event_key: number.to_string(),
        occurred_at_us: 0,
        owning_corpus: corpus.clone(),
        hosting_corpus: corpus,
        category: "bench".to_owned(),
        taxonomy_version: 1,
        metadata: vec![7; 16],
        canonical_id: None,
        tombstoned_at_us: None,
        tombstone_reason_code: None,
        tombstone_reason: None,
        reactivated_at_us: None,
        dispute_id: None,
        reconciliation_state: ReconciliationState::Pending,
        over_budget: false,
        incident_active: false,
        effective_quarter: "1970-Q1".to_owned(),
        reactivation_quarter: None,
        retention_expires_at_us: 0,
        references: 0,
    }
}

/// A page of a corpus. One that begins in the pause has no rows, and is not the last.
fn page(corpus: &str, since_us: Option<i64>, after: Option<Uuid>, rows_max: usize) -> ReplyResult {
    let prefix = if corpus == "bench-0" { 1 } else { 2 };
    let id = |number| Uuid::from_u64_pair(prefix, number);
    let since_us = since_us.unwrap_or(i64::MIN);
    if after.is_none() && claimed_us(ROWS / 2 - 1) < since_us && since_us <= claimed_us(ROWS / 2) {
        return ReplyResult::ScanPage { rows: Vec::new(), next: Some(id(ROWS / 2 - 1)) };
    }
    let mut left =
        (0..ROWS).filter(|number| claimed_us(*number) >= since_us && after.is_none_or(|after| id(*number) > after));
    let rows: Vec<Row> = left.by_ref().take(rows_max).map(|number| row(id(number))).collect();
    let next = rows.last().map(|row| row.event_id).filter(|_| left.next().is_some());
    ReplyResult::ScanPage { rows, next }
}

fn note_key(seen: &mut Seen, key: String) {
    seen.repeated_keys += u64::from(!seen.keys.insert(key));
}

fn corpus(name: &str, prefix: u16) -> CorpusInfo {
    CorpusInfo { name: name.to_owned(), shard_prefix: prefix, shard: (prefix - 1) % SHARDS, ..CorpusInfo::default() }
}
