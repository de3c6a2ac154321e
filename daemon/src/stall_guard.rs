//! The stall guard: a plain thread that wakes executors which sleep over their work.
//!
//! glommio 0.9.0 can park for ever with runnable tasks. Its `run_task_queues` reports "nothing ran" when the preemption
//! flag is already up before the first task, and the executor takes that for "nothing to run" and goes to sleep in the
//! kernel. The flag goes up with the preemption timer, so a core that is taken away for longer than the timer is enough
//! (`cargo xtask stall` shows it), and with a foreign wake whose notification arrives late. Any wake from another
//! thread ends such a sleep, so that is the cure: each executor has a [`Pulse`] that says whether it owes anything and
//! whether it moves, and the guard wakes the heartbeat task of an executor that owes and does not move.
//!
//! A wake that was not needed costs the executor one turn of its loop. A disk that is slower than the period makes the
//! guard wake once per period for nothing; that is the price of not having to know what the executor waits for.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Wakes without an answer after which the guard gives an executor up. glommio counts a task's wakers in 16 bits and
/// panics at 32,767; every wake that is not yet taken is one. With the pauses of [`Watch::pause`], an executor has been
/// blocked outright for more than an hour when this is reached.
const UNANSWERED_WAKES_MAX: u64 = 16_384;

/// How often the guard looks, and how long it waits; the defaults are what the daemon uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardTimes {
    /// Between two looks while some executor owes work: the longest that a stall lasts, but for scheduling.
    pub period_ms: u64,
    /// Between two looks while no executor has owed anything for a while, so that an idle daemon stays idle.
    pub idle_period_ms: u64,
    /// How long no executor may have owed anything before `idle_period_ms` applies.
    pub idle_after_ms: u64,
    /// Between two wakes of an executor that owes nothing: work that nobody counted waits at most this long.
    pub slow_wake_ms: u64,
}

impl Default for GuardTimes {
    fn default() -> Self {
        Self { period_ms: 5, idle_period_ms: 25, idle_after_ms: 250, slow_wake_ms: 250 }
    }
}

/// What the guard and one executor share.
///
/// `work` and `own` are what the executor has accepted and not finished, from others and by itself; they must return to 0 when the
/// executor has nothing to do, or the guard wakes it once per period for ever. `beat` changes whenever the executor makes progress.
#[derive(Debug, Default)]
pub struct Pulse {
    beat: AtomicU64,
    work: AtomicU64,
    /// Written by the executor alone, and so without a locked instruction, which waits for all writes before it: there is one of
    /// these for each request and each reply.
    own: AtomicU64,
    heartbeat: Mutex<Option<Waker>>,
    stopped: AtomicBool,
}

impl Pulse {
    /// A pulse that owes nothing and has not moved.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Says that the executor makes progress.
    pub fn beat(&self) {
        self.beat.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds accepted work; any thread may.
    pub fn work_add(&self, count: u64) {
        self.work.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes finished work away.
    ///
    /// # Panics
    /// If more is finished than was accepted.
    pub fn work_sub(&self, count: u64) {
        let before = self.work.fetch_sub(count, Ordering::Relaxed);
        assert!(before >= count, "{count} pieces of work finished, only {before} were open");
    }

    /// Adds work that the executor accepts by itself; it alone may.
    pub fn own_add(&self, count: u64) {
        self.own.store(self.own.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// Takes finished work away that was [added](Pulse::own_add) by the executor; it alone may.
    ///
    /// # Panics
    /// If more is finished than was accepted.
    pub fn own_sub(&self, count: u64) {
        let before = self.own.load(Ordering::Relaxed);
        assert!(before >= count, "{count} pieces of own work finished, only {before} were open");
        self.own.store(before - count, Ordering::Relaxed);
    }

    /// Work accepted and not finished.
    pub fn work(&self) -> u64 {
        self.work.load(Ordering::Relaxed) + self.own.load(Ordering::Relaxed)
    }

    /// How often progress was made.
    pub fn beats(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// The heartbeat task: spawn it on the executor that the pulse belongs to. It beats once per wake, and ends after
    /// [`Pulse::stop`].
    pub async fn heartbeat(self: Arc<Self>) {
        let mut sleep = Sleep { pulse: &self, armed: false };
        loop {
            Pin::new(&mut sleep).await;
            self.beat();
            if self.stopped.load(Ordering::Acquire) {
                break;
            }
        }
        // The guard must not hold a waker of a task that is gone.
        self.slot().take();
    }

    /// Ends the heartbeat task.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the heartbeat task, if there is one, from whatever thread. The waker stays: it is needed again should the
    /// executor fall asleep before it runs the task.
    fn wake(&self) -> bool {
        let waker = self.slot().clone();
        match waker {
            Some(waker) => {
                waker.wake();
                true
            }
            None => false,
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.heartbeat.lock().expect("no holder of the heartbeat's lock panics")
    }
}

/// Pending once per wake.
struct Sleep<'a> {
    pulse: &'a Pulse,
    armed: bool,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.armed) || self.pulse.stopped.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut slot = self.pulse.slot();
        if slot.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *slot = Some(cx.waker().clone());
        }
        drop(slot);
        self.armed = true;
        Poll::Pending
    }
}

/// Counts of the guard, readable at any time.
#[derive(Debug, Default)]
pub struct GuardCounters {
    /// Wakes of executors that owed work and stood still.
    pub wakes: AtomicU64,
    /// Looks at all executors.
    pub looks: AtomicU64,
}

/// The running guard; dropping it stops the thread.
#[derive(Debug)]
pub struct StallGuard {
    stop: Arc<AtomicBool>,
    counters: Arc<GuardCounters>,
    thread: Option<JoinHandle<()>>,
}

impl StallGuard {
    /// Starts the guard's thread over one pulse per executor. Fails only if no thread can be made.
    pub fn start(pulses: Vec<Arc<Pulse>>, times: GuardTimes) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(GuardCounters::default());
        let round = Round {
            watches: pulses.into_iter().map(Watch::new).collect(),
            times,
            counters: Arc::clone(&counters),
            last_work: Instant::now(),
        };
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("stall-guard".into()).spawn(move || round.run(&stopped))?;
        Ok(Self { stop, counters, thread: Some(thread) })
    }

    /// What the guard has done so far.
    pub fn counters(&self) -> &Arc<GuardCounters> {
        &self.counters
    }

    /// How often an executor owed work, stood still and was woken.
    pub fn wakes(&self) -> u64 {
        self.counters.wakes.load(Ordering::Relaxed)
    }

    /// Stops the thread and waits for its end: less than one period.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::Release);
            thread.thread().unpark();
            thread.join().expect("the stall guard's thread does not panic");
        }
    }
}

impl Drop for StallGuard {
    fn drop(&mut self) {
        self.halt();
    }
}

/// The guard's own state: all executors, and when it last saw work.
struct Round {
    watches: Vec<Watch>,
    times: GuardTimes,
    counters: Arc<GuardCounters>,
    last_work: Instant,
}

impl Round {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let now = Instant::now();
            self.look(now);
            thread::park_timeout(self.period(now));
        }
    }

    fn look(&mut self, now: Instant) {
        self.counters.looks.fetch_add(1, Ordering::Relaxed);
        for watch in &mut self.watches {
            let sight = watch.look(now, &self.times);
            if sight != Sight::Idle {
                self.last_work = now;
            }
            if sight == Sight::Woken {
                self.counters.wakes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn period(&self, now: Instant) -> Duration {
        let quiet = now.duration_since(self.last_work) >= Duration::from_millis(self.times.idle_after_ms);
        Duration::from_millis(if quiet { self.times.idle_period_ms } else { self.times.period_ms })
    }
}

/// What one look at one executor found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// It owes nothing.
    Idle,
    /// It owes work, and either moves or was woken too recently to be woken again.
    Working,
    /// It owes work, did not move, and was woken.
    Woken,
}

/// What the guard remembers of one executor.
struct Watch {
    pulse: Arc<Pulse>,
    beats_seen: u64,
    worked_before: bool,
    /// Wakes since the beat last changed.
    unanswered: u64,
    last_wake: Instant,
}

impl Watch {
    fn new(pulse: Arc<Pulse>) -> Self {
        let beats_seen = pulse.beats();
        Self { pulse, beats_seen, worked_before: false, unanswered: 0, last_wake: Instant::now() }
    }

    fn look(&mut self, now: Instant, times: &GuardTimes) -> Sight {
        let beats = self.pulse.beats();
        let works = self.pulse.work() > 0;
        if beats != self.beats_seen {
            self.beats_seen = beats;
            self.unanswered = 0;
        } else if works && self.worked_before {
            // Only the second look can tell a stall from work that has just arrived.
            return if now.duration_since(self.last_wake) >= self.pause(times) && self.wake(now) {
                Sight::Woken
            } else {
                Sight::Working
            };
        } else if now.duration_since(self.last_wake) >= Duration::from_millis(times.slow_wake_ms) {
            self.wake(now);
        }
        self.worked_before = works;
        if works { Sight::Working } else { Sight::Idle }
    }

    /// How long to leave an executor alone after a wake: one period, doubling after every eight wakes without an
    /// answer up to the slow wake's time, so that a thread that is blocked in the kernel is not drowned in wakes.
    fn pause(&self, times: &GuardTimes) -> Duration {
        let doublings = (self.unanswered / 8).min(16) as u32;
        let pause_ms = times.period_ms.saturating_mul(1 << doublings).min(times.slow_wake_ms.max(times.period_ms));
        // The look itself comes once per period; asking for a full period again would skip every other look.
        if doublings == 0 { Duration::ZERO } else { Duration::from_millis(pause_ms) }
    }

    fn wake(&mut self, now: Instant) -> bool {
        if self.unanswered >= UNANSWERED_WAKES_MAX {
            return false;
        }
        if self.unanswered + 1 == UNANSWERED_WAKES_MAX {
            tracing::error!(
                wakes = UNANSWERED_WAKES_MAX,
                "an executor answers no wakes; the stall guard leaves it alone until it moves"
            );
        }
        self.unanswered += 1;
        self.last_wake = now;
        self.pulse.wake()
    }
}

#[cfg(test)]
mod tests {
    use super::{GuardTimes, Pulse, Sight, StallGuard, UNANSWERED_WAKES_MAX, Watch};
    use glommio::{LocalExecutorBuilder, Placement};
    use std::{
        sync::{Arc, mpsc},
        task::{Wake, Waker},
        thread,
        time::{Duration, Instant},
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    /// An executor that sleeps in the kernel with nothing but a heartbeat, which is what a stalled one looks like from
    /// outside: it owes work, and nothing that it waits for will come.
    struct Frozen {
        pulse: Arc<Pulse>,
        thread: thread::JoinHandle<()>,
    }

    impl Frozen {
        fn start() -> Self {
            let pulse = Pulse::new();
            let (tell, told) = mpsc::channel();
            let its = Arc::clone(&pulse);
            let thread = thread::spawn(move || {
                let local = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().unwrap();
                local.run(async move {
                    tell.send(()).unwrap();
                    its.heartbeat().await;
                });
            });
            told.recv_timeout(PATIENCE).unwrap();
            let start = Instant::now();
            while pulse.slot().is_none() {
                assert!(start.elapsed() < PATIENCE);
                thread::yield_now();
            }
            Self { pulse, thread }
        }

        fn end(self) {
            self.pulse.stop();
            self.thread.join().unwrap();
        }
    }

    fn await_beats(pulse: &Pulse, beats: u64) {
        let start = Instant::now();
        while pulse.beats() < beats {
            assert!(start.elapsed() < PATIENCE, "{} beats, want {beats}", pulse.beats());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// No slow wakes, so that every beat in a test has the guard's own reason.
    fn only_stalls() -> GuardTimes {
        GuardTimes { slow_wake_ms: 3_600_000, ..GuardTimes::default() }
    }

    #[test]
    fn work_of_its_own_and_of_others_is_owed_alike() {
        let pulse = Pulse::new();
        pulse.work_add(2);
        pulse.own_add(3);
        assert_eq!(pulse.work(), 5);
        pulse.own_sub(3);
        pulse.work_sub(1);
        assert_eq!(pulse.work(), 1);
        let too_much = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pulse.own_sub(1)));
        assert!(too_much.is_err(), "others' work is not its own");
    }

    #[test]
    fn a_frozen_executor_that_owes_work_is_woken() {
        let frozen = Frozen::start();
        let guard = StallGuard::start(vec![Arc::clone(&frozen.pulse)], only_stalls()).unwrap();
        thread::sleep(Duration::from_millis(100));
        assert_eq!((frozen.pulse.beats(), guard.wakes()), (0, 0), "who owes nothing is left alone");

        frozen.pulse.work_add(1);
        await_beats(&frozen.pulse, 3);
        assert!(guard.wakes() >= 3);

        frozen.pulse.work_sub(1);
        thread::sleep(Duration::from_millis(50));
        let (beats, wakes) = (frozen.pulse.beats(), guard.wakes());
        thread::sleep(Duration::from_millis(100));
        assert_eq!((frozen.pulse.beats(), guard.wakes()), (beats, wakes), "who owes nothing any more is left alone");
        guard.stop();
        frozen.end();
    }

    #[test]
    fn without_a_guard_it_stays_frozen() {
        let frozen = Frozen::start();
        frozen.pulse.work_add(1);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(frozen.pulse.beats(), 0);
        frozen.pulse.work_sub(1);
        frozen.end();
    }

    #[test]
    fn work_that_nobody_counted_is_found_by_the_slow_wake() {
        let frozen = Frozen::start();
        let times = GuardTimes { slow_wake_ms: 50, ..GuardTimes::default() };
        let guard = StallGuard::start(vec![Arc::clone(&frozen.pulse)], times).unwrap();
        await_beats(&frozen.pulse, 2);
        assert_eq!(guard.wakes(), 0, "a slow wake is not a stall");
        guard.stop();
        frozen.end();
    }

    #[test]
    fn an_idle_guard_looks_rarely_and_stops_at_once() {
        let guard = StallGuard::start(vec![Pulse::new()], only_stalls()).unwrap();
        thread::sleep(Duration::from_millis(1_250));
        let looks = guard.counters().looks.load(std::sync::atomic::Ordering::Relaxed);
        // 250 ms at 5 ms each and a second at 25 ms each are 90.
        assert!(looks <= 95, "{looks} looks");
        let start = Instant::now();
        guard.stop();
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    struct Deaf;

    impl Wake for Deaf {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn who_never_answers_is_woken_ever_more_rarely_and_in_the_end_not_at_all() {
        let pulse = Pulse::new();
        *pulse.slot() = Some(Waker::from(Arc::new(Deaf)));
        pulse.work_add(1);
        let times = GuardTimes::default();
        let mut watch = Watch::new(Arc::clone(&pulse));
        let mut now = Instant::now();
        let mut wakes_after = |seconds: u64| {
            let end = now + Duration::from_secs(seconds);
            let mut wakes = 0;
            while now < end {
                wakes += u64::from(watch.look(now, &times) == Sight::Woken);
                now += Duration::from_millis(times.period_ms);
            }
            wakes
        };
        assert!((30..45).contains(&wakes_after(1)), "eight at each pause, ever longer");
        assert!((390..=410).contains(&wakes_after(100)), "once per slow wake");
        wakes_after(3 * 3_600);
        assert_eq!(watch.unanswered, UNANSWERED_WAKES_MAX);
        assert_eq!(watch.look(now, &times), Sight::Working);
        pulse.beat();
        assert_eq!(watch.look(now, &times), Sight::Working);
        assert_eq!(watch.look(now, &times), Sight::Woken, "one sign of life, and it is looked after again");
    }
}
