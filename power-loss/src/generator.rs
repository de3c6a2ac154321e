//! Claims as plain frames over several connections, in one thread: at a set rate whatever the answers (open loop), or so
//! many at a time (closed loop). It neither retries nor waits, so that what a daemon does under too much load is seen as
//! it is.
//!
//! A request's time begins when it was due, not when the generator came to send it, and ends when its answer was read: the
//! generator can make a daemon look slower, never faster.

use claim_protocol::{
    Builder, ClaimItem, ErrorCode, ErrorOutcome, FrameBuffer, Operation, PROTOCOL_VERSION, ReplyResult, Request, Uuid,
    decode_reply, encode_request,
};
use hdrhistogram::Histogram;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Requests without an answer, at most; more are due and not sent, and counted.
pub const OUTSTANDING_MAX: usize = 262_144;
/// Bytes that sockets have not taken, at most.
const OUTGOING_BYTES_MAX: usize = 64 << 20;
/// The generator looks at clock and sockets this often: what comes in between is handled together.
const TICK: Duration = Duration::from_micros(200);
/// One read brings so much, at most.
const READ_BYTES: usize = 256 << 10;
/// How long answers are waited for after the last request.
const PATIENCE: Duration = Duration::from_secs(60);
/// What every event key begins with; the request's number follows.
const EVENT_KEY: &str = "overload-";
const CATEGORY: &str = "load";
const OCCURRED_AT_US: i64 = 1_700_000_000_000_000;

/// What a request was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing, or nothing certain.
    Open,
    /// The id in [`Told::acknowledged`].
    Acknowledged,
    /// That it was not applied.
    Refused,
}

/// What all requests were told.
#[derive(Debug, Default)]
pub struct Told {
    /// By the request's number.
    pub fates: Vec<Fate>,
    /// Ids, and the numbers of their requests.
    pub acknowledged: Vec<(Uuid, u64)>,
}

impl Told {
    /// The number of the request that made a row.
    pub fn number_of(event_key: &str) -> Option<u64> {
        event_key.strip_prefix(EVENT_KEY)?.parse().ok()
    }
}

/// What one stretch of load came to.
#[derive(Debug)]
pub struct Tally {
    /// From the first request to the last.
    pub lasted: Duration,
    /// When the last one was sent.
    pub ended_at: Instant,
    /// Requests that went out.
    pub sent: u64,
    /// Requests that were due, and found as many without an answer as there may be.
    pub unsent: u64,
    /// Requests that were never answered.
    pub unanswered: u64,
    /// Nanoseconds until a claim was acknowledged.
    pub accepted_ns: Histogram<u64>,
    /// Nanoseconds until a claim was refused for overload.
    pub refused_ns: Histogram<u64>,
    /// Nanoseconds from when a request was due to when the generator came to it.
    pub late_ns: Histogram<u64>,
    /// Refusals for overload that do not say when to try again.
    pub without_advice: u64,
    /// Other errors, by their code.
    pub errors: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn new() -> Tally {
        let histogram = || Histogram::new(3).expect("three digits are within what a histogram can have");
        Tally {
            lasted: Duration::ZERO,
            ended_at: Instant::now(),
            sent: 0,
            unsent: 0,
            unanswered: 0,
            accepted_ns: histogram(),
            refused_ns: histogram(),
            late_ns: histogram(),
            without_advice: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Of a count, how many a second.
    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.lasted.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.record(nanoseconds(duration)).expect("the histogram grows with its values");
}

struct Connection {
    stream: UnixStream,
    corpus: String,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the socket has taken.
    sent_bytes: usize,
    incoming: FrameBuffer,
}

impl Connection {
    /// Connects and greets; both take their time.
    fn open(socket: &Path, corpus: String) -> Result<Connection, String> {
        let failed = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", socket.display());
        let mut stream = UnixStream::connect(socket).map_err(|e| failed("connecting", &e))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| failed("connecting", &e))?;
        let hello = Operation::Hello {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            client: "power-loss overload",
        };
        let mut frame = Vec::new();
        encode_request(&mut Builder::new(), &Request::new(u64::MAX, hello), &mut frame)
            .map_err(|e| failed("greeting", &e))?;
        stream.write_all(&frame).map_err(|e| failed("greeting", &e))?;
        let mut incoming = FrameBuffer::new();
        loop {
            if let Some(frame) = incoming.next_frame().map_err(|e| failed("greeting", &e))? {
                match decode_reply(frame).map_err(|e| failed("greeting", &e.message))?.result {
                    ReplyResult::Welcome(_) => break,
                    other => return Err(failed("greeting", &format!("{other:?} is no welcome"))),
                }
            }
            if incoming.read_from(&mut stream).map_err(|e| failed("greeting", &e))? == 0 {
                return Err(failed("greeting", &"the daemon closed the connection"));
            }
        }
        stream.set_nonblocking(true).map_err(|e| failed("connecting", &e))?;
        Ok(Connection { stream, corpus, outgoing: Vec::new(), sent_bytes: 0, incoming })
    }

    fn unsent_bytes(&self) -> usize {
        self.outgoing.len() - self.sent_bytes
    }

    /// Writes what the socket takes.
    fn send(&mut self) -> Result<(), String> {
        while self.sent_bytes < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent_bytes..]) {
                Ok(bytes) => self.sent_bytes += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("sending a request: {error}")),
            }
        }
        // What is left moves to the front once it is the smaller part: each byte moves once at most, on average.
        if self.unsent_bytes() <= self.sent_bytes {
            self.outgoing.drain(..self.sent_bytes);
            self.sent_bytes = 0;
        }
        Ok(())
    }

    /// Reads what the socket has.
    fn receive(&mut self, scratch: &mut [u8]) -> Result<(), String> {
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Err("the daemon closed a connection".to_owned()),
                Ok(bytes) => {
                    self.incoming.extend(&scratch[..bytes]);
                    if bytes < scratch.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("reading answers: {error}")),
            }
        }
    }
}

/// The connections, and what was told over them.
pub struct Generator {
    connections: Vec<Connection>,
    builder: Builder,
    metadata: Vec<u8>,
    event_key: String,
    scratch: Vec<u8>,
    /// When those without an answer were due, by number.
    under_way: HashMap<u64, Instant>,
    told: Told,
    /// For how long each place that became free in this turn is to stay so.
    freed: Vec<Duration>,
}

impl Generator {
    /// Connects once for each corpus. Every claim has so many bytes of metadata.
    pub fn connect(socket: &Path, corpora: Vec<String>, metadata_bytes: usize) -> Result<Generator, String> {
        let connections = corpora.into_iter().map(|corpus| Connection::open(socket, corpus));
        Ok(Generator {
            connections: connections.collect::<Result<_, _>>()?,
            builder: Builder::new(),
            metadata: vec![b'm'; metadata_bytes],
            event_key: String::new(),
            scratch: vec![0; READ_BYTES],
            under_way: HashMap::new(),
            told: Told::default(),
            freed: Vec::new(),
        })
    }

    /// Ends the connections, and hands out what was told.
    pub fn into_told(self) -> Told {
        self.told
    }

    /// So many claims a second for so long, evenly spaced, and then until all are answered.
    pub fn open_loop(&mut self, rate_per_s: f64, time: Duration) -> Result<Tally, String> {
        let mut tally = Tally::new();
        let began = Instant::now();
        let due_in_all = (time.as_secs_f64() * rate_per_s) as u64;
        let mut done = 0;
        while done < due_in_all || self.waits_for_answers(&tally) {
            let now = Instant::now();
            let due = (((now - began).as_secs_f64() * rate_per_s) as u64 + 1).min(due_in_all);
            let outgoing: usize = self.connections.iter().map(Connection::unsent_bytes).sum();
            let has_room = outgoing < OUTGOING_BYTES_MAX;
            for number in done..due {
                if !has_room || self.under_way.len() >= OUTSTANDING_MAX {
                    tally.unsent += 1;
                    continue;
                }
                let due_at = began + Duration::from_secs_f64(number as f64 / rate_per_s);
                self.request(due_at, &mut tally)?;
            }
            if done < due {
                (tally.ended_at, tally.lasted) = (now, now - began);
            }
            done = due;
            self.turn(&mut tally)?;
        }
        tally.unanswered = self.under_way.len() as u64;
        Ok(tally)
    }

    /// So many claims at a time for so long: one more for each that is answered, after the pause that a refusal advises.
    pub fn closed_loop(&mut self, outstanding: usize, time: Duration) -> Result<Tally, String> {
        let mut tally = Tally::new();
        let began = Instant::now();
        let mut free: BinaryHeap<Reverse<Instant>> = (0..outstanding).map(|_| Reverse(began)).collect();
        while began.elapsed() < time || self.waits_for_answers(&tally) {
            let now = Instant::now();
            if now - began < time {
                while free.peek().is_some_and(|free| free.0 <= now) {
                    free.pop();
                    self.request(now, &mut tally)?;
                }
                (tally.ended_at, tally.lasted) = (now, now - began);
            }
            self.turn(&mut tally)?;
            let now = Instant::now();
            free.extend(self.freed.iter().map(|pause| Reverse(now + *pause)));
        }
        tally.unanswered = self.under_way.len() as u64;
        Ok(tally)
    }

    fn waits_for_answers(&self, tally: &Tally) -> bool {
        !self.under_way.is_empty() && tally.ended_at.elapsed() < PATIENCE
    }

    /// Makes the next claim, which was due at that time.
    fn request(&mut self, due_at: Instant, tally: &mut Tally) -> Result<(), String> {
        use std::fmt::Write as _;
        let number = self.told.fates.len() as u64;
        let place = (number % self.connections.len() as u64) as usize;
        let connection = &mut self.connections[place];
        self.event_key.clear();
        write!(self.event_key, "{EVENT_KEY}{number}").expect("text is written to memory");
        let item = ClaimItem {
            event_key: &self.event_key,
            occurred_at_us: OCCURRED_AT_US,
            owning_corpus: "",
            hosting_corpus: "",
            category: CATEGORY,
            taxonomy_version: 1,
            metadata: &self.metadata,
        };
        let operation = Operation::Claim { corpus: &connection.corpus, item, unless_registered_within_ms: 0 };
        let request = Request { idempotency_key: Some(key(number)), ..Request::new(number, operation) };
        encode_request(&mut self.builder, &request, &mut connection.outgoing).map_err(|e| e.to_string())?;
        self.told.fates.push(Fate::Open);
        self.under_way.insert(number, due_at);
        record(&mut tally.late_ns, due_at.elapsed());
        tally.sent += 1;
        Ok(())
    }

    /// Sends, reads and handles what there is, and sleeps for a moment.
    fn turn(&mut self, tally: &mut Tally) -> Result<(), String> {
        self.freed.clear();
        for place in 0..self.connections.len() {
            self.connections[place].send()?;
            self.connections[place].receive(&mut self.scratch)?;
            let now = Instant::now();
            while let Some(frame) = self.connections[place].incoming.next_frame().map_err(|e| e.to_string())? {
                let reply = decode_reply(frame).map_err(|e| e.message)?;
                let number = reply.request_id;
                let Some(due_at) = self.under_way.remove(&number) else {
                    return Err(format!("request {number} is answered, and is not under way: {:?}", reply.result));
                };
                let pause = self.told.take(number, reply.result, now - due_at, tally)?;
                self.freed.push(pause);
            }
        }
        std::thread::sleep(TICK);
        Ok(())
    }
}

impl Told {
    /// Takes an answer; returns for how long it asks for patience.
    fn take(
        &mut self,
        number: u64,
        result: ReplyResult,
        took: Duration,
        tally: &mut Tally,
    ) -> Result<Duration, String> {
        let fate = &mut self.fates[number as usize];
        match result {
            ReplyResult::Claimed(claimed) => {
                *fate = Fate::Acknowledged;
                self.acknowledged.push((claimed.event_id, number));
                record(&mut tally.accepted_ns, took);
                Ok(Duration::ZERO)
            }
            ReplyResult::Error(error) => {
                if error.outcome == ErrorOutcome::Definite {
                    *fate = Fate::Refused;
                }
                if error.code == ErrorCode::Overloaded {
                    record(&mut tally.refused_ns, took);
                    tally.without_advice += u64::from(error.retry_after_ms == 0);
                } else {
                    *tally.errors.entry(error.code.name()).or_default() += 1;
                }
                Ok(Duration::from_millis(u64::from(error.retry_after_ms)))
            }
            other => Err(format!("{other:?} answers a claim")),
        }
    }
}

/// A key that no other request has: the time, and the number.
fn key(number: u64) -> Uuid {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut bits = [0; 10];
    // The first bytes hold the version and the variant.
    bits[3..].copy_from_slice(&number.to_be_bytes()[1..]);
    uuid::Builder::from_unix_timestamp_millis(at_ms, &bits).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_protocol::{Claimed, ServerError};
    use std::collections::HashSet;

    #[test]
    fn keys_never_repeat_and_name_their_number() {
        let keys: HashSet<Uuid> = (0..10_000).chain((14..56).map(|bit| 1 << bit)).map(key).collect();
        assert!(keys.len() == 10_042 && keys.iter().all(|key| key.get_version_num() == 7));
        assert_eq!(Told::number_of(&format!("{EVENT_KEY}4711")), Some(4711));
        assert_eq!(Told::number_of("another"), None);
    }

    #[test]
    fn answers_decide_fates() {
        let refusal = |code, outcome, retry_after_ms| {
            ReplyResult::Error(ServerError {
                code,
                outcome,
                message: String::new(),
                retry_after_ms,
                registered_id: None,
            })
        };
        let claimed = Claimed { event_id: Uuid::from_u128(1), claim_timestamp_us: 1, claim_sequence: 1 };
        let answers = [
            (ReplyResult::Claimed(claimed), Fate::Acknowledged, 0),
            (refusal(ErrorCode::Overloaded, ErrorOutcome::Definite, 7), Fate::Refused, 7),
            (refusal(ErrorCode::Overloaded, ErrorOutcome::Definite, 0), Fate::Refused, 0),
            (refusal(ErrorCode::ShardFailed, ErrorOutcome::Unknown, 0), Fate::Open, 0),
        ];
        let mut tally = Tally::new();
        let mut told = Told { fates: vec![Fate::Open; answers.len()], ..Told::default() };
        for (number, (answer, fate, pause_ms)) in (0..).zip(answers) {
            let pause = told.take(number, answer, Duration::from_millis(1), &mut tally).expect("an answer");
            assert_eq!((told.fates[number as usize], pause), (fate, Duration::from_millis(pause_ms)));
        }
        assert_eq!(told.acknowledged, [(Uuid::from_u128(1), 0)]);
        assert_eq!((tally.accepted_ns.len(), tally.refused_ns.len(), tally.without_advice), (1, 2, 1));
        assert_eq!(tally.errors, BTreeMap::from([("SHARD_FAILED", 1)]));
        told.take(0, ReplyResult::Corpora(Vec::new()), Duration::ZERO, &mut tally).expect_err("no answer to a claim");
    }
}
