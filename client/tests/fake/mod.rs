//! A daemon for tests: real sockets, a ledger in memory, and faults on demand.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::missing_panics_doc, missing_docs, reason = "a test helper")]

use claim_protocol::{
    AuditOperation, BATCH_ITEMS_MAX, Builder, ClaimItem, Claimed, ClockMode, CorpusInfo, Entry, ErrorCode,
    ErrorOutcome, FRAME_BYTES_MAX, FrameBuffer, Lifecycle, LogPosition, Operation, PROTOCOL_VERSION, ReasonCode,
    ReconciliationState, Reply, ReplyResult, Request, Row, ServerError, ShardEndpoint, ShardStatus, StatusReport, Uuid,
    Welcome, decode_request, encode_reply,
};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the daemon does with a request.
pub enum Action {
    Answer,
    /// Closes the connection without applying the request.
    DropBefore,
    /// Applies the request and closes the connection without answering.
    DropAfter,
    /// Applies the request and never answers it.
    Ignore,
    /// Applies the request and answers it this much later, out of order.
    Delay(Duration),
    Refuse(ServerError),
    /// Answers with this.
    Reply(ReplyResult),
}

/// What a request looked like when it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The shard's socket; `None`: the main one.
    pub socket: Option<u16>,
    pub operation: String,
    pub key: Option<Uuid>,
    pub at_us: Option<i64>,
    pub deadline_ms: u32,
}

type Script = Box<dyn FnMut(&Seen, &Request<'_>) -> Action + Send>;

#[derive(Default)]
pub struct Ledger {
    pub id: Uuid,
    pub version: u16,
    pub corpora: Vec<CorpusInfo>,
    pub rows: Vec<Row>,
    places: HashMap<Uuid, usize>,
    replies: HashMap<(Option<Uuid>, String), ReplyResult>,
    pub entries: Vec<Entry>,
    pub seen: Vec<Seen>,
    /// Requests that were read and not answered, and the most that there were at once.
    pub held: usize,
    pub held_most: usize,
}

pub struct Fake {
    pub ledger: Arc<Mutex<Ledger>>,
    script: Arc<Mutex<Script>>,
    directory: PathBuf,
    shards: u16,
    clock: ClockMode,
    stop: Arc<Mutex<Vec<UnixStream>>>,
}

pub fn refusal(code: ErrorCode, retry_after_ms: u32) -> ServerError {
    let outcome = match code {
        ErrorCode::ShardFailed | ErrorCode::ShuttingDown => ErrorOutcome::Unknown,
        _ => ErrorOutcome::Definite,
    };
    ServerError { code, outcome, message: "as the test wants it".to_owned(), retry_after_ms, registered_id: None }
}

impl Fake {
    /// Starts a daemon with its sockets in `directory`.
    pub fn start(directory: &Path, shards: u16, clock: ClockMode) -> Self {
        let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
        let ledger = Ledger { id, version: PROTOCOL_VERSION, ..Ledger::default() };
        let fake = Fake {
            ledger: Arc::new(Mutex::new(ledger)),
            script: Arc::new(Mutex::new(Box::new(|_: &Seen, _: &Request<'_>| Action::Answer))),
            directory: directory.to_owned(),
            shards,
            clock,
            stop: Arc::default(),
        };
        fake.listen();
        fake
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("claimd.sock")
    }

    /// Decides about requests from now on, greetings aside.
    pub fn script(&self, script: impl FnMut(&Seen, &Request<'_>) -> Action + Send + 'static) {
        *self.script.lock().expect("script") = Box::new(script);
    }

    /// Opens the sockets; again after [`Fake::kill`].
    pub fn listen(&self) {
        self.accept(None, &self.socket());
        for shard in 0..self.shards {
            self.accept(Some(shard), &self.directory.join(format!("claimd-{shard}.sock")));
        }
    }

    /// Closes all connections and removes the sockets, so that nobody connects any more.
    pub fn kill(&self) {
        let _ = fs::remove_file(self.socket());
        for shard in 0..self.shards {
            let _ = fs::remove_file(self.directory.join(format!("claimd-{shard}.sock")));
        }
        for stream in self.stop.lock().expect("streams").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// What was asked, without the client's own questions for the registry.
    pub fn seen(&self) -> Vec<Seen> {
        let ledger = self.ledger.lock().expect("ledger");
        ledger.seen.iter().filter(|seen| seen.operation != "corpora").cloned().collect()
    }

    /// Onboards behind every client's back.
    pub fn onboard(&self, name: &str, shard: u16) {
        let mut ledger = self.ledger.lock().expect("ledger");
        let shard_prefix = ledger.corpora.len() as u16 + 0x1234;
        ledger.corpora.push(corpus(name, shard_prefix, shard, 0, ""));
    }

    fn accept(&self, socket: Option<u16>, path: &Path) {
        let listener = UnixListener::bind(path).expect("the socket can be bound");
        let (ledger, script) = (Arc::clone(&self.ledger), Arc::clone(&self.script));
        let (clock, stop, shards) = (self.clock, Arc::clone(&self.stop), self.shards);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stop.lock().expect("streams").push(stream.try_clone().expect("a descriptor"));
                let connection = Connection {
                    socket,
                    shards,
                    clock,
                    ledger: Arc::clone(&ledger),
                    script: Arc::clone(&script),
                    out: Arc::new(Mutex::new(stream.try_clone().expect("a descriptor"))),
                };
                thread::spawn(move || connection.serve(stream));
            }
        });
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Connection {
    socket: Option<u16>,
    shards: u16,
    clock: ClockMode,
    ledger: Arc<Mutex<Ledger>>,
    script: Arc<Mutex<Script>>,
    out: Arc<Mutex<UnixStream>>,
}

impl Connection {
    fn serve(&self, mut stream: UnixStream) {
        let mut buffer = FrameBuffer::new();
        while buffer.read_from(&mut stream).is_ok_and(|bytes| bytes > 0) {
            // All that was read counts as held before anything is answered.
            let mut frames = Vec::new();
            while let Some(frame) = buffer.next_frame().expect("short frames") {
                frames.push(frame.to_vec());
            }
            let mut ledger = self.ledger.lock().expect("ledger");
            ledger.held += frames.len();
            ledger.held_most = ledger.held_most.max(ledger.held);
            drop(ledger);
            for frame in frames {
                let request = decode_request(&frame).expect("a client sends valid frames");
                if !self.handle(&request) {
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                    return;
                }
            }
        }
    }

    fn handle(&self, request: &Request<'_>) -> bool {
        let mut ledger = self.ledger.lock().expect("ledger");
        if let Operation::Hello { .. } = request.operation {
            let welcome = self.welcome(&ledger);
            drop(ledger);
            self.answer(request.request_id, ReplyResult::Welcome(welcome));
            return true;
        }
        let seen = Seen {
            socket: self.socket,
            operation: verb(&request.operation).to_owned(),
            key: request.idempotency_key,
            at_us: request.at_us,
            deadline_ms: request.deadline_ms,
        };
        ledger.seen.push(seen.clone());
        let action = if seen.operation == "corpora" {
            Action::Answer
        } else {
            (self.script.lock().expect("script"))(&seen, request)
        };
        match action {
            Action::DropBefore => return false,
            Action::Refuse(error) => {
                drop(ledger);
                self.answer(request.request_id, ReplyResult::Error(error));
                return true;
            }
            Action::Reply(result) => {
                drop(ledger);
                self.answer(request.request_id, result);
                return true;
            }
            _ => {}
        }
        let result = ledger.apply(request, self.shards);
        drop(ledger);
        match action {
            Action::DropAfter => return false,
            Action::Ignore => {}
            Action::Delay(delay) => {
                let (ledger, out) = (Arc::clone(&self.ledger), Arc::clone(&self.out));
                let id = request.request_id;
                thread::spawn(move || {
                    thread::sleep(delay);
                    reply(&ledger, &out, id, result);
                });
            }
            _ => self.answer(request.request_id, result),
        }
        true
    }

    fn answer(&self, request_id: u64, result: ReplyResult) {
        reply(&self.ledger, &self.out, request_id, result);
    }

    fn welcome(&self, ledger: &Ledger) -> Welcome {
        let endpoint = |shard| ShardEndpoint { shard, socket: format!("claimd-{shard}.sock") };
        Welcome {
            version: ledger.version,
            daemon: "fake".to_owned(),
            ledger: ledger.id,
            clock: self.clock,
            shards: (0..self.shards).map(endpoint).collect(),
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            batch_items_max: BATCH_ITEMS_MAX as u32,
        }
    }
}

fn reply(ledger: &Mutex<Ledger>, out: &Mutex<UnixStream>, request_id: u64, result: ReplyResult) {
    let positions = vec![LogPosition { shard: 0, position: request_id }];
    let mut frame = Vec::new();
    encode_reply(&mut Builder::new(), &Reply { request_id, positions, result }, &mut frame).expect("fits");
    // No longer held before the client can know: it sends the next request as soon as it does.
    ledger.lock().expect("ledger").held -= 1;
    let _ = out.lock().expect("stream").write_all(&frame);
}

pub fn verb(operation: &Operation<'_>) -> &'static str {
    match operation {
        Operation::Hello { .. } => "hello",
        Operation::Onboard { .. } => "onboard",
        Operation::Corpora => "corpora",
        Operation::Claim { .. } => "claim",
        Operation::ClaimBatch { .. } => "claim_batch",
        Operation::Reference { .. } => "reference",
        Operation::ReferenceBatch { .. } => "reference_batch",
        Operation::Retract { .. } => "retract",
        Operation::Reactivate { .. } => "reactivate",
        Operation::ConfirmClock => "confirm_clock",
        Operation::Lookup { .. } => "lookup",
        Operation::History { .. } => "history",
        Operation::Scan { .. } => "scan",
        Operation::Status => "status",
        Operation::Dispute { .. } => "dispute",
        Operation::Respond { .. } => "respond",
        Operation::Arbitrate { .. } => "arbitrate",
        Operation::Escalate { .. } => "escalate",
        Operation::DisputeLookup { .. } => "dispute_lookup",
        Operation::Disputes { .. } => "disputes",
        Operation::Decommission { .. } => "decommission",
        Operation::Freeze { .. } => "freeze",
        Operation::Cap { .. } => "cap",
        Operation::ProposeSlots { .. } => "propose_slots",
        Operation::SignOff { .. } => "sign_off",
        Operation::Proposals => "proposals",
        Operation::Incident { .. } => "incident",
        Operation::Barrier => "barrier",
        Operation::Reconcile { .. } => "reconcile",
        Operation::Find { .. } => "find",
        Operation::Totals { .. } => "totals",
        Operation::Tail { .. } => "tail",
        Operation::AuditHead => "audit_head",
        Operation::AuditCheck { .. } => "audit_check",
        Operation::Configuration => "configuration",
        Operation::Propagation => "propagation",
        Operation::Hold { .. } => "hold",
    }
}

fn corpus(name: &str, shard_prefix: u16, shard: u16, onboarded_at_us: i64, notes: &str) -> CorpusInfo {
    let (name, notes) = (name.to_owned(), notes.to_owned());
    CorpusInfo { name, shard_prefix, shard, onboarded_at_us, notes, slots: 50_000, ..CorpusInfo::default() }
}

impl Ledger {
    /// Applies a request once per key, as the real one does.
    fn apply(&mut self, request: &Request<'_>, shards: u16) -> ReplyResult {
        if !request.operation.is_mutating() {
            return self.execute(request, shards).unwrap_or_else(ReplyResult::Error);
        }
        let scope = match &request.operation {
            Operation::Claim { corpus, .. } | Operation::ClaimBatch { corpus, .. } => (*corpus).to_owned(),
            other => verb(other).to_owned(),
        };
        let key = (request.idempotency_key, scope);
        if let Some(result) = self.replies.get(&key) {
            return result.clone();
        }
        match self.execute(request, shards) {
            Ok(result) => {
                self.replies.insert(key, result.clone());
                result
            }
            Err(error) => ReplyResult::Error(error),
        }
    }

    fn execute(&mut self, request: &Request<'_>, shards: u16) -> Result<ReplyResult, ServerError> {
        let at_us = request.at_us.unwrap_or(1_700_000_000_000_000);
        Ok(match &request.operation {
            Operation::Hello { .. } => unreachable!("greetings are answered before"),
            Operation::Onboard { name, notes } => {
                let shard_prefix = self.corpora.len() as u16 + 1;
                let shard = self.corpora.len() as u16 % shards.max(1);
                self.corpora.push(corpus(name, shard_prefix, shard, at_us, notes));
                ReplyResult::Onboarded(self.corpora.last().expect("pushed").clone())
            }
            Operation::Corpora => ReplyResult::Corpora(self.corpora.clone()),
            Operation::Claim { corpus, item, .. } => ReplyResult::Claimed(self.claim(corpus, item, at_us)?),
            Operation::ClaimBatch { corpus, items } => {
                ReplyResult::ClaimedBatch(items.iter().map(|item| self.claim(corpus, item, at_us)).collect())
            }
            Operation::Reference { event_id, .. } => ReplyResult::Referenced(self.row(*event_id)?.event_id),
            Operation::ReferenceBatch { event_ids, .. } => {
                let refer = |event_id: &Uuid| Ok(self.row(*event_id)?.event_id);
                ReplyResult::ReferencedBatch(event_ids.iter().map(refer).collect())
            }
            Operation::Retract { event_id, reason_code, .. } => {
                self.change(*event_id, Lifecycle::Registered, Lifecycle::Tombstoned)?;
                self.log(AuditOperation::Tombstone, *event_id, at_us, request);
                let row = self.row(*event_id)?;
                row.tombstoned_at_us = Some(at_us);
                row.tombstone_reason_code = Some(*reason_code);
                row.tombstone_reason = Some(request.rationale.to_owned());
                ReplyResult::Retracted { event_id: *event_id, tombstoned_at_us: at_us }
            }
            Operation::Reactivate { event_id } => {
                self.change(*event_id, Lifecycle::Tombstoned, Lifecycle::Registered)?;
                self.log(AuditOperation::Reactivate, *event_id, at_us, request);
                let row = self.row(*event_id)?;
                row.tombstoned_at_us = None;
                row.tombstone_reason_code = None;
                row.tombstone_reason = None;
                row.reactivated_at_us = Some(at_us);
                ReplyResult::Reactivated { event_id: *event_id, reactivated_at_us: at_us }
            }
            Operation::ConfirmClock => ReplyResult::ClockConfirmed { confirmed_at_us: at_us },
            Operation::Lookup { event_id } => ReplyResult::Row(Box::new(self.row(*event_id)?.clone())),
            Operation::History { event_id, from, .. } => {
                // One entry a page, so that whoever reads must turn it.
                let of_row = |entry: &&Entry| entry.event_id == *event_id;
                let mut rest = self.entries.iter().filter(of_row).skip(*from as usize).cloned();
                let entries = rest.next().into_iter().collect();
                ReplyResult::History { entries, next: rest.next().map(|_| from + 1), related: vec![] }
            }
            Operation::Scan { corpus, since_us, until_us, after, limit } => {
                let limit = if *limit == 0 { 3 } else { (*limit).min(3) } as usize;
                let mut rows: Vec<Row> = self.rows.iter().filter(|row| row.corpus == *corpus).cloned().collect();
                rows.retain(|row| since_us.is_none_or(|since| row.claim_timestamp_us >= since));
                rows.retain(|row| until_us.is_none_or(|until| row.claim_timestamp_us < until));
                rows.retain(|row| after.is_none_or(|after| row.event_id > after));
                let more = rows.len() > limit;
                rows.truncate(limit);
                let next = rows.last().filter(|_| more).map(|row| row.event_id);
                ReplyResult::ScanPage { rows, next }
            }
            Operation::Status => ReplyResult::Status(Box::new(StatusReport {
                daemon: "fake".to_owned(),
                ledger: self.id,
                clock: ClockMode::Replay,
                clock_synchronised: true,
                uptime_ms: 1,
                cores: 1,
                connections: 1,
                stall_wakes: 0,
                shards: vec![ShardStatus { rows: self.rows.len() as u64, ..ShardStatus::default() }],
                incident_active: false,
                frozen_reason: None,
                last_pass_at_us: None,
                policy_at_us: None,
                archive_at_us: None,
                archive_error: None,
                drill_at_us: None,
                drill_rto_ms: 0,
                drill_rpo_ms: None,
            })),
            // What the others mean is the daemon's business: a script answers them.
            _ => return Err(refusal(ErrorCode::BadRequest, 0)),
        })
    }

    fn claim(&mut self, name: &str, item: &ClaimItem<'_>, at_us: i64) -> Result<Claimed, ServerError> {
        let corpus = self.corpora.iter_mut().find(|corpus| corpus.name == name);
        let corpus = corpus.ok_or_else(|| refusal(ErrorCode::UnknownCorpus, 0))?;
        corpus.claims += 1;
        let (prefix, claim_sequence) = (u128::from(corpus.shard_prefix), corpus.claims);
        let bits = ((at_us / 1000) as u128) << 80
            | 7 << 76
            | (prefix >> 4) << 64
            | 0b10 << 62
            | (prefix & 0xf) << 58
            | u128::from(claim_sequence);
        let event_id = Uuid::from_u128(bits);
        let or_claimant = |corpus: &str| if corpus.is_empty() { name } else { corpus }.to_owned();
        self.places.insert(event_id, self.rows.len());
        self.rows.push(Row {
            event_id,
            corpus: name.to_owned(),
            lifecycle: Lifecycle::Registered,
            claim_timestamp_us: at_us,
            claim_sequence,
            event_key: item.event_key.to_owned(),
            occurred_at_us: item.occurred_at_us,
            owning_corpus: or_claimant(item.owning_corpus),
            hosting_corpus: or_claimant(item.hosting_corpus),
            category: item.category.to_owned(),
            taxonomy_version: item.taxonomy_version,
            metadata: item.metadata.to_vec(),
            canonical_id: None,
            tombstoned_at_us: None,
            tombstone_reason_code: None,
            tombstone_reason: None,
            reactivated_at_us: None,
            dispute_id: None,
            reconciliation_state: ReconciliationState::Pending,
            over_budget: false,
            incident_active: false,
            effective_quarter: "2026-Q1".to_owned(),
            reactivation_quarter: None,
            retention_expires_at_us: 0,
            references: 0,
        });
        Ok(Claimed { event_id, claim_timestamp_us: at_us, claim_sequence })
    }

    fn row(&mut self, event_id: Uuid) -> Result<&mut Row, ServerError> {
        let place = self.places.get(&event_id).ok_or_else(|| refusal(ErrorCode::NotVisible, 0))?;
        Ok(&mut self.rows[*place])
    }

    fn change(&mut self, event_id: Uuid, from: Lifecycle, to: Lifecycle) -> Result<(), ServerError> {
        let row = self.row(event_id)?;
        if row.lifecycle != from {
            return Err(refusal(ErrorCode::BadTransition, 0));
        }
        row.lifecycle = to;
        Ok(())
    }

    fn log(&mut self, operation: AuditOperation, event_id: Uuid, timestamp_us: i64, request: &Request<'_>) {
        let reason_code = (operation == AuditOperation::Tombstone).then_some(ReasonCode::Other);
        self.entries.push(Entry {
            position: LogPosition { shard: 0, position: self.entries.len() as u64 + 1 },
            operation,
            corpus: String::new(),
            event_id: Some(event_id),
            timestamp_us,
            uid: 1,
            gid: 2,
            pid: 3,
            rationale: request.rationale.to_owned(),
            correlation_id: request.correlation_id,
            idempotency_key: request.idempotency_key,
            reason_code,
            user_name: String::new(),
            dispute_id: None,
            canonical_id: None,
            detail: String::new(),
            event_ids: vec![],
            claim: None,
            configuration: String::new(),
            global_sequence: 0,
        });
    }
}
