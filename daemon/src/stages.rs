//! Where the time goes, stage by stage: histograms of one executor, since its start.
//!
//! ```text
//!  socket read ─▶ decode ─▶ queue ─▶ step ─▶ batch wait ─▶ write ─▶ reply ─▶ socket write
//! ```
//!
//! Reads and writes of sockets, and writes of the log, are timed each; the stages of a request for one request in
//! `SAMPLED`, so that they cost less than a nanosecond on average.

use claim_protocol::reply::StageTimes;
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// Of so many requests one is timed.
const SAMPLED: u32 = 64;
/// Longer times count as this.
const TIME_MAX: Duration = Duration::from_secs(60);

/// A stage of a request's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The call that reads from a socket, for all requests that it brings.
    SocketRead,
    /// From a request's bytes to the request.
    Decode,
    /// From the read to the step, less decoding: behind requests that came with it.
    Queue,
    /// The state machine's step, with the entry that it appends to the batch.
    Step,
    /// From the step to the write of the batch.
    BatchWait,
    /// The write of a batch, until this executor knows of its end.
    Write,
    /// From the end of the write to the reply in the connection's buffer.
    Reply,
    /// The call that writes to a socket, for all replies that it takes.
    SocketWrite,
}

const STAGES: [(Stage, &str); 8] = [
    (Stage::SocketRead, "socket read"),
    (Stage::Decode, "decode"),
    (Stage::Queue, "queue"),
    (Stage::Step, "step"),
    (Stage::BatchWait, "batch wait"),
    (Stage::Write, "write"),
    (Stage::Reply, "reply"),
    (Stage::SocketWrite, "socket write"),
];

/// When the last write that ended began and ended.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// It was handed to the kernel.
    pub began: Instant,
    /// This executor knew of its end.
    pub ended: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Stages {
    histograms: RefCell<Vec<Histogram<u64>>>,
    seen: Cell<u32>,
    /// When the read that is being handed over ended; known only while a request of it is timed.
    read_at: Cell<Option<Instant>>,
    decoding: Cell<Option<(Instant, Instant)>>,
}

impl Default for Stages {
    fn default() -> Stages {
        let histogram =
            || Histogram::new_with_bounds(1, TIME_MAX.as_nanos() as u64, 2).expect("the bounds are in order");
        Stages {
            histograms: RefCell::new(STAGES.iter().map(|_| histogram()).collect()),
            seen: Cell::new(0),
            read_at: Cell::new(None),
            decoding: Cell::new(None),
        }
    }
}

impl Stages {
    /// Counts a time.
    pub fn record(&self, stage: Stage, time: Duration) {
        self.histograms.borrow_mut()[stage as usize].saturating_record(time.as_nanos().max(1) as u64);
    }

    /// A read has brought something.
    pub fn read(&self, began: Instant) {
        let ended = Instant::now();
        self.record(Stage::SocketRead, ended - began);
        self.read_at.set(Some(ended));
    }

    /// Whether the request that comes now is timed.
    pub fn samples(&self) -> bool {
        // The one before may have gone to another core.
        self.decoding.set(None);
        let seen = (self.seen.get() + 1) % SAMPLED;
        self.seen.set(seen);
        seen == 0
    }

    /// A request that is timed was decoded.
    pub fn decoded(&self, began: Instant) {
        let ended = Instant::now();
        self.record(Stage::Decode, ended - began);
        self.decoding.set(Some((began, ended)));
    }

    /// The request that was just decoded, if it is timed, goes to its step now.
    pub fn step_begins(&self) -> Option<Instant> {
        let (decode_began, decoded) = self.decoding.take()?;
        let now = Instant::now();
        if let Some(read_at) = self.read_at.get() {
            self.record(Stage::Queue, (now - read_at).saturating_sub(decoded - decode_began));
        }
        Some(now)
    }

    /// Its step is done. Returns when.
    pub fn step_ended(&self, began: Instant) -> Instant {
        let now = Instant::now();
        self.record(Stage::Step, now - began);
        now
    }

    /// A request that is timed is answered: its step ended then, and this write was the last one that ended.
    pub fn replied(&self, step_ended: Instant, written: Option<Written>) {
        // Without a write in between it is answered from memory, or what it waited for is another shard's.
        if let Some(Written { began, ended }) = written.filter(|written| written.began >= step_ended) {
            self.record(Stage::BatchWait, began - step_ended);
            self.record(Stage::Reply, ended.elapsed());
        }
    }

    /// All stages, in the order of a request's way.
    pub fn times(&self) -> Vec<StageTimes> {
        let histograms = self.histograms.borrow();
        let times = STAGES.iter().map(|(stage, name)| {
            let histogram = &histograms[*stage as usize];
            StageTimes {
                name: (*name).to_owned(),
                count: histogram.len(),
                mean_ns: histogram.mean() as u64,
                p50_ns: histogram.value_at_quantile(0.5),
                p90_ns: histogram.value_at_quantile(0.9),
                p99_ns: histogram.value_at_quantile(0.99),
                p999_ns: histogram.value_at_quantile(0.999),
                max_ns: histogram.max(),
            }
        });
        times.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_so_many_is_timed_on_its_way() {
        let stages = Stages::default();
        stages.read(Instant::now());
        let (mut sampled, requests) = (0, 10 * SAMPLED);
        for _ in 0..requests {
            if stages.samples() {
                sampled += 1;
                stages.decoded(Instant::now());
            }
            if let Some(began) = stages.step_begins() {
                let ended = stages.step_ended(began);
                stages.replied(ended, None);
                let now = Instant::now();
                stages.replied(ended, Some(Written { began: now, ended: now }));
                // The write of a batch before.
                stages.replied(Instant::now() + Duration::from_secs(1), Some(Written { began: now, ended: now }));
            }
        }
        assert_eq!(sampled, requests / SAMPLED);
        let counts: Vec<_> = stages.times().into_iter().map(|times| (times.name, times.count)).collect();
        let n = u64::from(sampled);
        let expected = [
            ("socket read", 1),
            ("decode", n),
            ("queue", n),
            ("step", n),
            ("batch wait", n),
            ("write", 0),
            ("reply", n),
            ("socket write", 0),
        ];
        assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)));
        assert!(stages.times().iter().all(|t| t.p50_ns <= t.p99_ns && t.p99_ns <= t.max_ns.max(t.p99_ns)));
        stages.record(Stage::Write, 2 * TIME_MAX);
        let write = stages.times().into_iter().nth(Stage::Write as usize).expect("there are eight");
        assert!(write.count == 1 && write.max_ns >= TIME_MAX.as_nanos() as u64, "{write:?}");
    }
}
