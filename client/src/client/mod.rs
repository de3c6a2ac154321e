//! The client: typed operations, each sent to the socket that serves it fastest.

mod audit;
mod dispute;
mod reconcile;
mod registry;
mod rows;
mod tail;

pub use audit::{AuditChecked, Configuration};
pub use registry::Decommissioned;
pub use rows::Registration;
pub use tail::{TailOptions, TailPage, TailPages};

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::job::{Job, Observer};
use crate::key::new_key;
use crate::options::{ClientOptions, DEADLINE_MAX, RequestOptions};
use crate::pending::Pending;
use crate::retry::RetryBudget;
use crate::routes::{Lane, Route, Routes};
use crate::slot::Slot;
use claim_protocol::{
    Builder, ClockMode, CorpusInfo, ErrorCode, Operation, Reply, ReplyResult, Request, StatusReport, Welcome,
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
    retry_budget: Arc<Mutex<RetryBudget>>,
}

#[derive(Debug)]
enum Shard {
    Direct(Arc<Endpoint>),
    /// Its requests go through the main socket, and keep to it while any of them is outstanding there.
    Unreachable {
        until: Instant,
        lane: Lane,
    },
}

/// What decides where a request goes.
enum Target<'a> {
    Main,
    Corpus(&'a str),
    Event(Uuid),
    Shard(u16),
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
        let retry_budget = Arc::new(Mutex::new(RetryBudget::new(Instant::now())));
        let greets = Some(Arc::clone(&greeted));
        let main = Endpoint::start(socket.clone(), None, None, greets, options.clone(), Arc::clone(&retry_budget))
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
                retry_budget,
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
            ReplyResult::Onboarded(corpus) => Some(corpus),
            _ => None,
        };
        self.call(Target::Main, Operation::Onboard { name, notes }, options, convert)
    }

    /// Lists the corpora.
    pub fn corpora(&self, options: &RequestOptions) -> Pending<Vec<CorpusInfo>> {
        let convert = |result| match result {
            ReplyResult::Corpora(corpora) => Some(corpora),
            _ => None,
        };
        self.call(Target::Main, Operation::Corpora, options, convert)
    }

    /// Accepts the daemon's present clock after `CLOCK_SUSPECT`. Answers with that time, in microseconds.
    pub fn confirm_clock(&self, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::ClockConfirmed { confirmed_at_us } => Some(confirmed_at_us),
            _ => None,
        };
        self.call(Target::Main, Operation::ConfirmClock, options, convert)
    }

    /// The state of the daemon.
    pub fn status(&self, options: &RequestOptions) -> Pending<StatusReport> {
        let convert = |result| match result {
            ReplyResult::Status(report) => Some(*report),
            _ => None,
        };
        self.call(Target::Main, Operation::Status, options, convert)
    }

    /// Makes a request of an operation and starts it on its way.
    fn call<T>(
        &self,
        target: Target<'_>,
        operation: Operation<'_>,
        options: &RequestOptions,
        convert: fn(ReplyResult) -> Option<T>,
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
            Target::Shard(shard) => (Route::Shard(shard), false),
        };
        if ask {
            inner.refresh();
        }
        match route {
            Route::Shard(shard) => inner.shard(shard),
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
        // With no room for the question it is asked by a later request that needs it.
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

    /// The endpoint of a shard, opened when it is first needed; the main one where that fails, with what keeps the shard to it:
    /// requests of one shard keep their order only on one connection.
    fn shard(&self, shard: u16) -> (Arc<Endpoint>, Option<Lane>) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        match shards.get(&shard) {
            Some(Shard::Direct(endpoint)) => return (Arc::clone(endpoint), None),
            Some(Shard::Unreachable { until, lane }) if Instant::now() < *until || lane.is_in_use() => {
                return (Arc::clone(&self.main), Some(lane.clone()));
            }
            _ => {}
        }
        match self.open_shard(shard) {
            Some(endpoint) => {
                shards.insert(shard, Shard::Direct(Arc::clone(&endpoint)));
                (endpoint, None)
            }
            None => {
                let lane = Lane::default();
                shards.insert(
                    shard,
                    Shard::Unreachable { until: Instant::now() + UNREACHABLE_PAUSE, lane: lane.clone() },
                );
                (Arc::clone(&self.main), Some(lane))
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
        let (ledger, budget) = (Some(self.welcome.ledger), Arc::clone(&self.retry_budget));
        Endpoint::start(socket, Some(connection), ledger, None, self.options.clone(), budget).ok()
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
