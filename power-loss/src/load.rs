//! The load: several connections that claim, refer, retract, reactivate, onboard and read, and write down before each request
//! what they ask, and after each answer what they were told.

use crate::governing::{self, Governing, Possible};
use crate::trace::{Mark, Recorder, Sent, SentItem};
use claim_client::{
    ClaimItem, Client, ClientError, ClientOptions, ErrorCode, Pending, ReasonCode, RequestOptions, ScanRange, Uuid,
    new_key,
};
use claim_engine::entropy::Entropy;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Requests of one connection under way at once.
const OUTSTANDING: usize = 24;
/// The same where a connection waits between them.
const OUTSTANDING_SLOW: usize = 2;
/// Where a key has its millisecond.
const KEY_TIME_AT: u32 = 80;
/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows that connections know of each other, at most.
const KNOWN_MAX: usize = 4_096;
/// Rows of one corpus that a reader looks at, at most.
const READ_ROWS: u32 = 200;
/// Events of a run that several corpora claim.
const SHARED_EVENTS: u64 = 64;
/// Known rows among which a dispute looks for two.
const KNOWN_LOOKED_AT: usize = 256;
/// A claim's fixed properties.
const CATEGORY: &str = "load";
const OCCURRED_AT_US: i64 = 1_700_000_000_000_000;

/// How heavy the load is.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// Connections.
    pub connections: u64,
    /// Of a hundred claims, how many carry kilobytes.
    pub large_percent: u64,
    /// The largest metadata, in bytes.
    pub metadata_bytes_max: u64,
    /// A connection waits for so long between two requests, in microseconds.
    pub pause_us: u64,
}

impl Weight {
    /// Small rows, so that a log stays short and is recovered quickly.
    pub const LIGHT: Weight = Weight { connections: 4, large_percent: 1, metadata_bytes_max: 6_000, pause_us: 0 };
    /// Nothing but large rows, to fill a disk.
    pub const FILLING: Weight = Weight { connections: 4, large_percent: 100, metadata_bytes_max: 60_000, pause_us: 0 };
    /// Large rows, so that segments fill up.
    pub const HEAVY: Weight = Weight { connections: 4, large_percent: 12, metadata_bytes_max: 60_000, pause_us: 0 };
    /// Few requests, for sessions that take long.
    pub const SLOW: Weight = Weight { connections: 4, large_percent: 2, metadata_bytes_max: 6_000, pause_us: 3_000 };
}

/// What is between the runs of one ledger.
#[derive(Debug, Default)]
pub struct Memory {
    /// Operations whose outcome is unknown: they are sent again, with their key.
    unknown: Mutex<Vec<(Uuid, Sent)>>,
    /// Rows that exist.
    known: Mutex<Vec<(Uuid, RowState)>>,
    /// How often which error was the answer.
    errors: Mutex<BTreeMap<(&'static str, bool), u64>>,
    /// What requests give as their time, for a ledger that takes it from them.
    replayed_us: Option<AtomicI64>,
}

impl Memory {
    /// Of a ledger that takes its time from the requests; it begins with this.
    pub fn replayed(at_us: i64) -> Memory {
        Memory { replayed_us: Some(at_us.into()), ..Memory::default() }
    }

    /// Lets time go by, in a ledger that takes it from the requests.
    pub fn pass(&self, by_us: i64) {
        if let Some(now_us) = &self.replayed_us {
            now_us.fetch_add(by_us, Ordering::Relaxed);
        }
    }

    /// A key for a request of now.
    fn new_key(&self) -> Uuid {
        new_key(self.replayed_us.as_ref().map(|now_us| now_us.load(Ordering::Relaxed)))
    }

    /// Of a request with this key. Its time is the key's, so that it is the same when it is sent again.
    fn options(&self, key: Uuid, rationale: &str) -> RequestOptions {
        RequestOptions {
            idempotency_key: Some(key),
            rationale: rationale.to_owned(),
            retry_overload: false,
            at_us: self.replayed_us.as_ref().map(|_| (key.as_u128() >> KEY_TIME_AT) as i64 * 1_000),
            ..RequestOptions::default()
        }
    }

    /// How often which error was the answer so far, by the name of its code and whether it left the outcome open.
    pub fn errors(&self) -> BTreeMap<(&'static str, bool), u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts an answer.
    pub fn count(&self, error: &ClientError) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        *errors.entry((error.code_name(), matches!(error, ClientError::UnknownOutcome { .. }))).or_default() += 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowState {
    Registered,
    Tombstoned,
}

/// The metadata of an event: a function of its key and length.
pub fn metadata(event_key: &str, bytes: u32) -> Vec<u8> {
    let seed = xxhash_rust::xxh3::xxh3_64(event_key.as_bytes());
    (0..u64::from(bytes)).map(|i| (seed.rotate_left((i % 64) as u32) ^ i) as u8).collect()
}

/// The corpora of the load.
pub fn corpus(number: u64) -> String {
    format!("corpus-{number}")
}

/// What every run begins with: the first one onboards the ledger's corpora, the others read back what is there.
pub fn begin(socket: &Path, disk: &dyn Recorder, memory: &Memory, connections: u64, run: u64) -> Result<(), String> {
    if run == 0 { onboard(socket, disk, memory, connections) } else { read_back(socket, disk, connections) }
}

/// Onboards the corpora of a ledger: one per connection.
pub fn onboard(socket: &Path, disk: &dyn Recorder, memory: &Memory, connections: u64) -> Result<(), String> {
    let client = connect(socket)?;
    for number in 0..connections {
        onboard_one(&client, disk, memory, corpus(number))?;
    }
    Ok(())
}

fn onboard_one(client: &Client, disk: &dyn Recorder, memory: &Memory, name: String) -> Result<(), String> {
    let key = memory.new_key();
    disk.mark(Mark::Sent { key: key.as_u128(), operation: Sent::Onboard { name: name.clone() } });
    match client.onboard(&name, "", &memory.options(key, "")).wait() {
        Ok(_) => {
            disk.mark(Mark::Acknowledged { key: key.as_u128(), item: 0, event_id: 0, sequence: 0 });
            Ok(())
        }
        Err(error) => Err(format!("onboarding {name}: {error}")),
    }
}

/// Reads every row that a corpus ends with, and writes down what was seen.
pub fn read_back(socket: &Path, disk: &dyn Recorder, connections: u64) -> Result<(), String> {
    let client = connect(socket)?;
    for number in 0..connections {
        see(&client, disk, number).map_err(|e| format!("reading {}: {e}", corpus(number)))?;
    }
    Ok(())
}

fn see(client: &Client, disk: &dyn Recorder, number: u64) -> Result<(), ClientError> {
    let range = ScanRange { page_rows: 1_000, ..ScanRange::default() };
    for row in client.scan(&corpus(number), range, &RequestOptions::default()).rows() {
        disk.mark(Mark::Seen { event_id: row?.event_id.as_u128() });
    }
    Ok(())
}

/// Opens the connections of a run.
pub fn connect_all(socket: &Path, connections: u64) -> Result<Vec<Client>, String> {
    (0..connections).map(|_| connect(socket)).collect()
}

/// Runs all connections until `over`, or until the daemon is gone. `run` makes event keys differ.
pub fn run(
    clients: Vec<Client>,
    disk: &dyn Recorder,
    memory: &Memory,
    weight: Weight,
    run: u64,
    seed: u64,
    over: &AtomicBool,
) -> Result<(), String> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = clients
            .into_iter()
            .zip(0..)
            .map(|(client, number)| {
                let entropy = Entropy::from_seed_u64(seed ^ (run << 32) ^ number);
                let mut connection = Connection {
                    client,
                    disk,
                    memory,
                    weight,
                    number,
                    run,
                    entropy,
                    count: 0,
                    waiting: VecDeque::new(),
                    late: Vec::new(),
                    dispute: None,
                    proposal: None,
                };
                scope.spawn(move || connection.run(over))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a load thread does not panic"))
    })
}

fn connect(socket: &Path) -> Result<Client, String> {
    let options = ClientOptions { attempts_max: 1, deadline: PATIENCE, ..ClientOptions::default() };
    Client::connect_with(socket, options).map_err(|e| e.to_string())
}

enum Waiting {
    Claim(Pending<claim_client::Claimed>),
    Claims(Pending<Vec<Result<claim_client::Claimed, claim_client::ServerError>>>),
    Reference(Pending<Uuid>),
    Time(Pending<i64>),
}

struct Connection<'a> {
    client: Client,
    disk: &'a dyn Recorder,
    memory: &'a Memory,
    weight: Weight,
    number: u64,
    run: u64,
    entropy: Entropy,
    count: u64,
    waiting: VecDeque<(Uuid, Sent, Waiting)>,
    /// Corpora that were onboarded on the way.
    late: Vec<String>,
    /// The dispute that this connection has open, and its rows.
    dispute: Option<(u128, Vec<u128>)>,
    /// The proposal that it made last.
    proposal: Option<u64>,
}

/// The daemon is gone, or the harness has had enough.
struct Over;

impl Connection<'_> {
    fn run(&mut self, over: &AtomicBool) -> Result<(), String> {
        let outstanding = if self.weight.pause_us > 0 { OUTSTANDING_SLOW } else { OUTSTANDING };
        while !over.load(Ordering::Relaxed) {
            if self.weight.pause_us > 0 {
                std::thread::sleep(Duration::from_micros(self.weight.pause_us));
            }
            self.send();
            if self.waiting.len() >= outstanding && self.take_answer()?.is_err() {
                break;
            }
        }
        while !self.waiting.is_empty() {
            // Answers that arrived before the end count, too.
            let _ = self.take_answer()?;
        }
        Ok(())
    }

    fn send(&mut self) {
        let again = self.lock_unknown().pop();
        if let Some((key, operation)) = again {
            return self.send_as(key, operation);
        }
        let operation = match self.entropy.below(100) {
            0..62 => Sent::Claim { corpus: corpus(self.number), items: vec![self.item()] },
            62..70 => {
                let count = 2 + self.entropy.below(12);
                Sent::Claim { corpus: corpus(self.number), items: (0..count).map(|_| self.item()).collect() }
            }
            70..80 => match self.pick(RowState::Registered, false) {
                Some(event_id) => Sent::Reference { corpus: self.referrer(event_id), event_id },
                None => return,
            },
            80..90 => match self.pick(RowState::Registered, true) {
                Some(event_id) => Sent::Retract { event_id },
                None => return,
            },
            90..96 => match self.pick(RowState::Tombstoned, true) {
                Some(event_id) => Sent::Reactivate { event_id },
                None => return,
            },
            96..97 => Sent::Onboard { name: format!("late-{}-{}-{}", self.run, self.number, self.count) },
            // In replayed time nothing but rows and corpora is asked for.
            97..99 if self.memory.replayed_us.is_none() => match self.govern() {
                Some(operation) => Sent::Governing(operation),
                None => return,
            },
            _ => return self.look(),
        };
        self.send_as(self.memory.new_key(), operation);
    }

    /// Something that concerns the whole ledger. Stops, caps and closings are for corpora that claim nothing here.
    fn govern(&mut self) -> Option<Governing> {
        if let Some((dispute, event_ids)) = self.dispute.take() {
            if !governing::waits_for_verdict(&self.client, dispute) && self.entropy.below(4) > 0 {
                self.dispute = Some((dispute, event_ids));
                let corpus = corpus(self.number);
                return Some(Governing::Respond { corpus, dispute });
            }
            return Some(match self.entropy.below(8) {
                0 => {
                    self.dispute = Some((dispute, event_ids));
                    Governing::Escalate { dispute }
                }
                1..3 => Governing::Dismiss { dispute },
                _ => Governing::Arbitrate { dispute, event_ids },
            });
        }
        let late = self.late.last().cloned();
        Some(match (self.entropy.below(12), late) {
            (0..5, _) => {
                let own = corpus(self.number);
                let owner = |id: u128| self.client.corpus_of(Uuid::from_u128(id)).map(|corpus| corpus.name);
                let known = self.memory.known.lock().unwrap_or_else(PoisonError::into_inner);
                let registered = known.iter().rev().filter(|(_, state)| *state == RowState::Registered);
                let ids: Vec<_> = registered.map(|(id, _)| id.as_u128()).take(KNOWN_LOOKED_AT).collect();
                drop(known);
                let mine = *ids.iter().find(|id| owner(**id).as_deref() == Some(&own))?;
                let other = *ids.iter().find(|id| owner(**id).is_some_and(|name| name != own))?;
                Governing::Dispute { corpus: own, event_ids: vec![mine, other] }
            }
            (5..7, _) => Governing::Reconcile,
            (7, _) => Governing::Incident { active: self.entropy.below(3) == 0 },
            (8, _) => Governing::Barrier,
            (9, Some(corpus)) => match self.proposal.take() {
                Some(proposal) => Governing::SignOff { proposal },
                None => Governing::ProposeSlots { corpus, slots: 60_000 + self.count },
            },
            (10, Some(corpus)) => match self.entropy.below(3) {
                0 => Governing::Freeze { corpus },
                1 => Governing::Unfreeze { corpus },
                _ => Governing::Cap { corpus, claims_per_minute: self.entropy.below(100) as u32 },
            },
            (11, Some(_)) => Governing::Decommission { name: self.late.pop()? },
            _ => return None,
        })
    }

    fn item(&mut self) -> SentItem {
        self.count += 1;
        let is_large = self.entropy.below(100) < self.weight.large_percent;
        let most = if is_large { self.weight.metadata_bytes_max } else { 120 };
        // Some events are claimed by several corpora.
        let event_key = match self.entropy.below(8) {
            0 => format!("shared-{}-{}", self.run, self.entropy.below(SHARED_EVENTS)),
            _ => format!("event-{}-{}-{}", self.run, self.number, self.count),
        };
        SentItem { event_key, metadata_bytes: self.entropy.below(most) as u32 }
    }

    /// A row in a state; `takes` it, so that no two transitions of a row are under way at once.
    fn pick(&mut self, state: RowState, takes: bool) -> Option<u128> {
        let mut known = self.memory.known.lock().unwrap_or_else(PoisonError::into_inner);
        let start = self.entropy.below(known.len().max(1) as u64) as usize;
        let place = (start..known.len()).chain(0..start).find(|i| known[*i].1 == state)?;
        let event_id = if takes { known.swap_remove(place).0 } else { known[place].0 };
        Some(event_id.as_u128())
    }

    /// A corpus that may refer to a row: not the row's own.
    fn referrer(&self, event_id: u128) -> String {
        let own = corpus(self.number);
        let owner = self.client.corpus_of(Uuid::from_u128(event_id));
        if owner.is_some_and(|owner| owner.name != own) {
            own
        } else {
            corpus((self.number + 1) % self.weight.connections)
        }
    }

    /// Looks at another connection's newest rows.
    fn look(&mut self) {
        let other = self.entropy.below(self.weight.connections);
        let range = ScanRange { page_rows: READ_ROWS, ..ScanRange::default() };
        if let Ok(page) = self.client.scan_page(&corpus(other), range, None, &RequestOptions::default()).wait() {
            for row in &page.rows {
                self.disk.mark(Mark::Seen { event_id: row.event_id.as_u128() });
            }
        }
    }

    fn send_as(&mut self, key: Uuid, operation: Sent) {
        self.disk.mark(Mark::Sent { key: key.as_u128(), operation: operation.clone() });
        let plain = self.memory.options(key, "");
        let waiting = match &operation {
            Sent::Claim { corpus, items } => {
                let contents: Vec<_> = items.iter().map(|i| metadata(&i.event_key, i.metadata_bytes)).collect();
                let items: Vec<_> = items
                    .iter()
                    .zip(&contents)
                    .map(|(item, metadata)| ClaimItem {
                        event_key: &item.event_key,
                        occurred_at_us: OCCURRED_AT_US,
                        owning_corpus: "",
                        hosting_corpus: "",
                        category: CATEGORY,
                        taxonomy_version: 1,
                        metadata,
                    })
                    .collect();
                match &items[..] {
                    [item] => Waiting::Claim(self.client.claim(corpus, item, &plain)),
                    items => Waiting::Claims(self.client.claim_batch(corpus, items, &plain)),
                }
            }
            Sent::Reference { corpus, event_id } => {
                Waiting::Reference(self.client.reference(corpus, Uuid::from_u128(*event_id), &plain))
            }
            Sent::Retract { event_id } => {
                let event_id = Uuid::from_u128(*event_id);
                let owner = self.client.corpus_of(event_id).map_or_else(|| corpus(self.number), |corpus| corpus.name);
                let because = self.memory.options(key, "a cut may come");
                Waiting::Time(self.client.retract(&owner, event_id, ReasonCode::FalseAlarm, &because))
            }
            Sent::Reactivate { event_id } => Waiting::Time(
                self.client.reactivate(Uuid::from_u128(*event_id), &self.memory.options(key, "it was real")),
            ),
            Sent::Onboard { name } => {
                // Rare, and answered by all shards: it is waited for at once.
                match self.client.onboard(name, "", &plain).wait() {
                    Ok(_) => {
                        self.acknowledged(key, 0, 0, 0);
                        self.late.push(name.clone());
                    }
                    Err(error) => self.failed(key, operation, &error),
                }
                return;
            }
            Sent::Governing(governing) => {
                match governing.ask(&self.client, key) {
                    Ok(possible) => {
                        self.acknowledged(key, 0, 0, 0);
                        match possible {
                            Possible::Dispute(dispute, event_ids) => self.dispute = Some((dispute, event_ids)),
                            Possible::Proposal(proposal) => self.proposal = Some(proposal),
                            Possible::Nothing => {}
                        }
                    }
                    Err(error) => self.failed(key, operation, &error),
                }
                return;
            }
        };
        self.waiting.push_back((key, operation, waiting));
    }

    fn acknowledged(&self, key: Uuid, item: u16, event_id: u128, sequence: u64) {
        self.disk.mark(Mark::Acknowledged { key: key.as_u128(), item, event_id, sequence });
    }

    fn failed(&self, key: Uuid, operation: Sent, error: &ClientError) {
        self.memory.count(error);
        match error {
            ClientError::UnknownOutcome { .. } => self.lock_unknown().push((key, operation)),
            ClientError::Refused(_) => self.disk.mark(Mark::Refused { key: key.as_u128() }),
            ClientError::Connect { .. } | ClientError::Protocol(_) => {}
        }
    }

    fn lock_unknown(&self) -> std::sync::MutexGuard<'_, Vec<(Uuid, Sent)>> {
        self.memory.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, event_id: Uuid, state: RowState) {
        let mut known = self.memory.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < KNOWN_MAX {
            known.push((event_id, state));
        }
    }

    /// Waits for the oldest answer. The outer error is a sentence: something that must never be answered.
    fn take_answer(&mut self) -> Result<Result<(), Over>, String> {
        let Some((key, operation, waiting)) = self.waiting.pop_front() else { return Ok(Ok(())) };
        let error = match waiting {
            Waiting::Claim(pending) => match pending.wait() {
                Ok(claimed) => {
                    self.acknowledged(key, 0, claimed.event_id.as_u128(), claimed.claim_sequence);
                    self.learn(claimed.event_id, RowState::Registered);
                    None
                }
                Err(error) => Some(error),
            },
            Waiting::Claims(pending) => match pending.wait() {
                Ok(results) => {
                    for (item, result) in (0..).zip(&results.value) {
                        match result {
                            Ok(claimed) => {
                                self.acknowledged(key, item, claimed.event_id.as_u128(), claimed.claim_sequence);
                                self.learn(claimed.event_id, RowState::Registered);
                            }
                            // Replayed time may have gone on by days since the key was made.
                            Err(error) if error.code == ErrorCode::KeyExpired && self.memory.replayed_us.is_some() => {
                                self.disk.mark(Mark::Refused { key: key.as_u128() });
                            }
                            Err(error) => return Err(format!("a claim of a batch is refused: {error}")),
                        }
                    }
                    None
                }
                Err(error) => Some(error),
            },
            Waiting::Reference(pending) => match pending.wait() {
                Ok(_) => {
                    self.acknowledged(key, 0, 0, 0);
                    None
                }
                Err(error) => Some(error),
            },
            Waiting::Time(pending) => match pending.wait() {
                Ok(_) => {
                    self.acknowledged(key, 0, 0, 0);
                    let (event_id, state) = match operation {
                        Sent::Retract { event_id } => (event_id, RowState::Tombstoned),
                        Sent::Reactivate { event_id } => (event_id, RowState::Registered),
                        _ => unreachable!("only transitions answer with a time"),
                    };
                    self.learn(Uuid::from_u128(event_id), state);
                    None
                }
                Err(error) => Some(error),
            },
        };
        let Some(error) = error else { return Ok(Ok(())) };
        // A row may have been retracted while a reference to it was on its way; anything else is right to be asked.
        let is_legal = match &error {
            ClientError::Refused(refused) => {
                !matches!(operation, Sent::Claim { .. }) || refused.code != ErrorCode::BadRequest
            }
            _ => true,
        };
        if !is_legal {
            return Err(format!("{operation:?} is refused: {error}"));
        }
        let is_over = !matches!(error, ClientError::Refused(_));
        self.failed(key, operation, &error);
        Ok(if is_over { Err(Over) } else { Ok(()) })
    }
}
