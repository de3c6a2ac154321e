//! The client: typed operations, each sent to the socket that serves it fastest.

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::job::{Job, Observer};
use crate::key::new_key;
use crate::options::{ClientOptions, DEADLINE_MAX, RequestOptions};
use crate::pending::Pending;
use crate::routes::{Lane, Route, Routes};
use crate::scan::{HistoryPage, ScanPage, ScanPages, ScanRange};
use crate::slot::Slot;
use claim_protocol::{
    Builder, ClaimItem, Claimed, ClockMode, CorpusInfo, ErrorCode, Operation, ReasonCode, Reply, ReplyResult, Request,
    Row, ServerError, StatusReport, Welcome,
};
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a shard's socket is left alone after it could not be reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// A connection to a daemon. Clones share it; each may be used from any thread.
///
/// Every operation returns a [`Pending`]: a future, and a thing to block on.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    socket: PathBuf,
    options: ClientOptions,
    welcome: Welcome,
    main: Arc<Endpoint>,
    shards: Mutex<HashMap<u16, Shard>>,
    routes: Arc<Routes>,
    builder: Mutex<Builder>,
}

#[derive(Debug)]
enum Shard {
    Direct(Arc<Endpoint>),
    Unreachable { until: Instant },
}

/// What decides where a request goes.
enum Target<'a> {
    Main,
    Corpus(&'a str),
    Event(Uuid),
}

impl Client {
    /// Connects to the daemon behind `socket`, exchanges greetings and learns the registry.
    ///
    /// # Errors
    /// [`ClientError::Connect`] at once when no daemon answers: only connections that have worked are restored by
    /// themselves.
    pub fn connect(socket: impl AsRef<Path>) -> Result<Self, ClientError> {
        Self::connect_with(socket, ClientOptions::default())
    }

    /// [`Client::connect`] with options.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(socket: impl AsRef<Path>, options: ClientOptions) -> Result<Self, ClientError> {
        block_on(Self::connect_async(socket, options))
    }

    /// [`Client::connect`] as a future, for any executor.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_async(socket: impl AsRef<Path>, options: ClientOptions) -> Result<Self, ClientError> {
        let socket = socket.as_ref().to_owned();
        let cannot = |reason: String| ClientError::Connect { socket: socket.clone(), reason };
        let greeted = Arc::new(Slot::new());
        let main = Endpoint::start(socket.clone(), None, None, Some(Arc::clone(&greeted)), options.clone())
            .map_err(|error| cannot(error.to_string()))?;
        let completion = poll_fn(|context| greeted.poll(context)).await;
        let ReplyResult::Welcome(welcome) = completion.result?.result else {
            return Err(cannot("the greeting was not answered with a welcome".to_owned()));
        };
        let client = Client {
            inner: Arc::new(Inner {
                socket,
                options,
                welcome,
                main,
                shards: Mutex::default(),
                routes: Arc::default(),
                builder: Mutex::new(Builder::new()),
            }),
        };
        // Without the registry everything goes through the main socket, so a refusal is no obstacle.
        match client.corpora(&RequestOptions::default()).await {
            Ok(_) | Err(ClientError::Refused(_)) => Ok(client),
            Err(error) => Err(error),
        }
    }

    /// The daemon's half of the first exchange.
    pub fn welcome(&self) -> &Welcome {
        &self.inner.welcome
    }

    /// The corpus that claimed an event-id, as last heard; [`Client::corpora`] hears again.
    pub fn corpus_of(&self, event_id: Uuid) -> Option<CorpusInfo> {
        self.inner.routes.corpus_of(event_id)
    }

    /// A corpus by its name, as last heard; [`Client::corpora`] hears again.
    pub fn corpus(&self, name: &str) -> Option<CorpusInfo> {
        self.inner.routes.corpus(name)
    }

    /// Registers a corpus.
    pub fn onboard(&self, name: &str, notes: &str, options: &RequestOptions) -> Pending<CorpusInfo> {
        let convert = |result| match result {
            ReplyResult::Onboarded(corpus) => Ok(corpus),
            other => Err(other),
        };
        self.call(Target::Main, Operation::Onboard { name, notes }, options, convert)
    }

    /// Lists the corpora.
    pub fn corpora(&self, options: &RequestOptions) -> Pending<Vec<CorpusInfo>> {
        let convert = |result| match result {
            ReplyResult::Corpora(corpora) => Ok(corpora),
            other => Err(other),
        };
        self.call(Target::Main, Operation::Corpora, options, convert)
    }

    /// Registers one event and hands out its id.
    pub fn claim(&self, corpus: &str, item: &ClaimItem<'_>, options: &RequestOptions) -> Pending<Claimed> {
        let convert = |result| match result {
            ReplyResult::Claimed(claimed) => Ok(claimed),
            other => Err(other),
        };
        self.call(Target::Corpus(corpus), Operation::Claim { corpus, item: *item }, options, convert)
    }

    /// Registers many events of one corpus: one result per item, in the items' order, independent of each other.
    pub fn claim_batch(
        &self,
        corpus: &str,
        items: &[ClaimItem<'_>],
        options: &RequestOptions,
    ) -> Pending<Vec<Result<Claimed, ServerError>>> {
        let convert = |result| match result {
            ReplyResult::ClaimedBatch(results) => Ok(results),
            other => Err(other),
        };
        let operation = Operation::ClaimBatch { corpus, items: items.to_vec() };
        self.call(Target::Corpus(corpus), operation, options, convert)
    }

    /// Records that `corpus` refers to a row of another corpus; answers with the id of the canonical row.
    pub fn reference(&self, corpus: &str, event_id: Uuid, options: &RequestOptions) -> Pending<Uuid> {
        let convert = |result| match result {
            ReplyResult::Referenced(canonical_id) => Ok(canonical_id),
            other => Err(other),
        };
        // A reference is logged on the shard of the row.
        self.call(Target::Event(event_id), Operation::Reference { corpus, event_id }, options, convert)
    }

    /// Many references of one corpus: one result per id, in the ids' order, independent of each other.
    pub fn reference_batch(
        &self,
        corpus: &str,
        event_ids: &[Uuid],
        options: &RequestOptions,
    ) -> Pending<Vec<Result<Uuid, ServerError>>> {
        let convert = |result| match result {
            ReplyResult::ReferencedBatch(results) => Ok(results),
            other => Err(other),
        };
        let target = event_ids.first().map_or(Target::Corpus(corpus), |first| Target::Event(*first));
        let operation = Operation::ReferenceBatch { corpus, event_ids: event_ids.to_vec() };
        self.call(target, operation, options, convert)
    }

    /// Takes a registered row back. The reason is the options' rationale. Answers with the time, in microseconds.
    pub fn retract(
        &self,
        corpus: &str,
        event_id: Uuid,
        reason_code: ReasonCode,
        options: &RequestOptions,
    ) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Retracted { tombstoned_at_us, .. } => Ok(tombstoned_at_us),
            other => Err(other),
        };
        let operation = Operation::Retract { corpus, event_id, reason_code };
        self.call(Target::Event(event_id), operation, options, convert)
    }

    /// Brings a retracted row back. The reason is the options' rationale. Answers with the time, in microseconds.
    pub fn reactivate(&self, event_id: Uuid, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Reactivated { reactivated_at_us, .. } => Ok(reactivated_at_us),
            other => Err(other),
        };
        self.call(Target::Event(event_id), Operation::Reactivate { event_id }, options, convert)
    }

    /// Accepts the daemon's present clock after `CLOCK_SUSPECT`. Answers with that time, in microseconds.
    pub fn confirm_clock(&self, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::ClockConfirmed { confirmed_at_us } => Ok(confirmed_at_us),
            other => Err(other),
        };
        self.call(Target::Main, Operation::ConfirmClock, options, convert)
    }

    /// One row.
    pub fn lookup(&self, event_id: Uuid, options: &RequestOptions) -> Pending<Row> {
        let convert = |result| match result {
            ReplyResult::Row(row) => Ok(*row),
            other => Err(other),
        };
        self.call(Target::Event(event_id), Operation::Lookup { event_id }, options, convert)
    }

    /// A page of the audit entries of one row, oldest first, without the first `skip`.
    pub fn history(&self, event_id: Uuid, skip: u32, options: &RequestOptions) -> Pending<HistoryPage> {
        let convert = |result| match result {
            ReplyResult::History { entries, more } => Ok(HistoryPage { entries, more }),
            other => Err(other),
        };
        self.call(Target::Event(event_id), Operation::History { event_id, skip }, options, convert)
    }

    /// Rows of a corpus in id order, page by page.
    pub fn scan(&self, corpus: &str, range: ScanRange, options: &RequestOptions) -> ScanPages {
        ScanPages::new(self.clone(), corpus.to_owned(), range, options.clone())
    }

    /// One page of a scan: rows behind `after`, and where the next page starts.
    pub fn scan_page(
        &self,
        corpus: &str,
        range: ScanRange,
        after: Option<Uuid>,
        options: &RequestOptions,
    ) -> Pending<ScanPage> {
        let convert = |result| match result {
            ReplyResult::ScanPage { rows, next } => Ok(ScanPage { rows, next }),
            other => Err(other),
        };
        let ScanRange { since_us, until_us, page_rows } = range;
        let operation = Operation::Scan { corpus, since_us, until_us, after, limit: page_rows };
        self.call(Target::Corpus(corpus), operation, options, convert)
    }

    /// The state of the daemon.
    pub fn status(&self, options: &RequestOptions) -> Pending<StatusReport> {
        let convert = |result| match result {
            ReplyResult::Status(report) => Ok(*report),
            other => Err(other),
        };
        self.call(Target::Main, Operation::Status, options, convert)
    }

    /// Makes a request of an operation and starts it on its way.
    fn call<T>(
        &self,
        target: Target<'_>,
        operation: Operation<'_>,
        options: &RequestOptions,
        convert: fn(ReplyResult) -> Result<T, ReplyResult>,
    ) -> Pending<T> {
        let inner = &self.inner;
        let started = Instant::now();
        let idempotency_key = operation.is_mutating().then(|| {
            // A daemon judges a key's age by its ledger's own time.
            let at_us = options.at_us.filter(|_| inner.welcome.clock == ClockMode::Replay);
            options.idempotency_key.unwrap_or_else(|| new_key(at_us))
        });
        let observer = inner.observer(&operation);
        let request = Request {
            // The id and the time that is left are set when the request is sent.
            request_id: 0,
            deadline_ms: 0,
            at_least: options.at_least.clone(),
            idempotency_key,
            rationale: &options.rationale,
            correlation_id: options.correlation_id,
            at_us: options.at_us,
            operation,
        };
        let deadline = started + options.deadline.unwrap_or(inner.options.deadline).min(DEADLINE_MAX);
        let job = inner.job(&request, deadline, options.retry_overload).map(|job| job.observed(observer));
        let (endpoint, lane) = self.endpoint(target);
        Pending::new(endpoint, job.map(|job| job.in_lane(lane)), started, convert)
    }

    /// The endpoint for a target, and what keeps the target to it.
    fn endpoint(&self, target: Target<'_>) -> (Arc<Endpoint>, Option<Lane>) {
        let inner = &self.inner;
        let (route, ask) = match target {
            Target::Main => (Route::Main(None), false),
            Target::Corpus(name) => inner.routes.of_corpus(name),
            Target::Event(event_id) => inner.routes.of_event(event_id),
        };
        if ask {
            inner.refresh();
        }
        match route {
            Route::Shard(shard) => (inner.shard(shard), None),
            Route::Main(lane) => (Arc::clone(&inner.main), lane),
        }
    }
}

impl Inner {
    /// # Errors
    /// The request is too large for a frame, or exceeds a bound that the daemon would refuse, too.
    fn job(&self, request: &Request<'_>, deadline: Instant, retry_overload: bool) -> Result<Job, ClientError> {
        let mut builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        Job::new(&mut builder, request, deadline, retry_overload)
            .map_err(|message| ClientError::refused(ErrorCode::BadRequest, message))
    }

    /// Asks for the registry without waiting for it; requests meanwhile go through the main socket.
    fn refresh(&self) {
        let request = Request::new(0, Operation::Corpora);
        let deadline = Instant::now() + self.options.deadline.min(DEADLINE_MAX);
        let observer = self.observer(&request.operation);
        // With no room for the question it is asked by the next request that needs it.
        let asked = self.job(&request, deadline, true).is_ok_and(|job| {
            let submitted = self.main.submit(Box::new(job.observed(observer)));
            submitted.map_err(|(_, ticket)| self.main.forget(&ticket)).is_ok()
        });
        if !asked {
            self.routes.refreshed();
        }
    }

    /// What is learnt from a reply, whoever asked.
    fn observer(&self, operation: &Operation<'_>) -> Option<Observer> {
        match operation {
            Operation::Onboard { .. } => {
                let routes = Arc::clone(&self.routes);
                Some(Box::new(move |reply: &Reply| {
                    if let ReplyResult::Onboarded(corpus) = &reply.result {
                        routes.learn([corpus]);
                    }
                }))
            }
            Operation::Corpora => {
                let refreshed = Refreshed(Arc::clone(&self.routes));
                Some(Box::new(move |reply: &Reply| {
                    if let ReplyResult::Corpora(corpora) = &reply.result {
                        refreshed.0.learn(corpora);
                    }
                }))
            }
            _ => None,
        }
    }

    /// The endpoint of a shard, opened when it is first needed; the main one where that fails.
    fn shard(&self, shard: u16) -> Arc<Endpoint> {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        match shards.get(&shard) {
            Some(Shard::Direct(endpoint)) => return Arc::clone(endpoint),
            Some(Shard::Unreachable { until }) if Instant::now() < *until => {
                return Arc::clone(&self.main);
            }
            _ => {}
        }
        match self.open_shard(shard) {
            Some(endpoint) => {
                shards.insert(shard, Shard::Direct(Arc::clone(&endpoint)));
                endpoint
            }
            None => {
                shards.insert(shard, Shard::Unreachable { until: Instant::now() + UNREACHABLE_PAUSE });
                Arc::clone(&self.main)
            }
        }
    }

    fn open_shard(&self, shard: u16) -> Option<Arc<Endpoint>> {
        if !self.options.direct_routing {
            return None;
        }
        let named = self.welcome.shards.iter().find(|endpoint| endpoint.shard == shard)?;
        // A relative path is relative to the socket that named it.
        let socket = self.socket.parent().unwrap_or(Path::new("")).join(&named.socket);
        let connection = Connection::open(&socket).ok()?;
        Endpoint::start(socket, Some(connection), Some(self.welcome.ledger), None, self.options.clone()).ok()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { socket, welcome, .. } = &*self.inner;
        formatter.debug_struct("Client").field("socket", socket).field("welcome", welcome).finish_non_exhaustive()
    }
}

/// Allows the next question for the registry when this one has ended, however it did.
struct Refreshed(Arc<Routes>);

impl Drop for Refreshed {
    fn drop(&mut self) {
        self.0.refreshed();
    }
}

/// Wakes the thread that blocks on a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
