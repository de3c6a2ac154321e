//! When a request that the daemon refused for a while is sent again, and whether at all.
//!
//! Retries are load, too: a client that repeats whatever is refused keeps an overloaded daemon overloaded. So they come
//! after a pause that grows, spread by chance, and no more of them than a share of the client's requests. Plain code: time
//! comes in as an argument, chance from a seed.

use std::time::{Duration, Instant};

/// The time over which requests and retries are counted.
pub const RETRY_WINDOW: Duration = Duration::from_secs(10);
/// Retries of a hundred requests in that time, at most.
pub const RETRY_PERCENT_MAX: u64 = 10;
/// As long as there were fewer requests than this in that time, retries are not counted against them.
pub const RETRY_REQUESTS_MIN: u64 = 200;
/// What a first refusal may add to the daemon's advice; it doubles with each further one of the same request.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
/// What a refusal may add to the daemon's advice, at most.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Times are counted in steps of this, so that a window of any load has a fixed size.
const STEP: Duration = Duration::from_millis(100);
/// The steps of a window: those that it covers, and the one that is partly in it.
const STEPS: usize = (RETRY_WINDOW.as_millis() / STEP.as_millis()) as usize + 1;

/// How many requests and retries there were in one step.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    requests: u64,
    retries: u64,
}

/// Grants retries, as many as a share of the requests of the last [`RETRY_WINDOW`].
#[derive(Debug)]
pub(crate) struct RetryBudget {
    began: Instant,
    /// Number of the newest step, counted from `began`; the others are those before it.
    newest: u64,
    steps: [Count; STEPS],
    /// The sum of `steps`.
    sum: Count,
}

impl RetryBudget {
    pub fn new(now: Instant) -> Self {
        RetryBudget { began: now, newest: 0, steps: [Count::default(); STEPS], sum: Count::default() }
    }

    /// Counts requests that callers made.
    pub fn requests(&mut self, count: u64, now: Instant) {
        self.step(now).requests += count;
        self.sum.requests += count;
    }

    /// Counts one retry, if there is room for it; otherwise the refusal is the caller's.
    pub fn try_retry(&mut self, now: Instant) -> bool {
        self.step(now);
        let is_free = self.sum.requests < RETRY_REQUESTS_MIN;
        let is_granted = is_free || 100 * (self.sum.retries + 1) <= RETRY_PERCENT_MAX * self.sum.requests;
        if is_granted {
            self.step(now).retries += 1;
            self.sum.retries += 1;
        }
        is_granted
    }

    /// The step of `now`; what has left the window since the last call is forgotten. A time before the newest step counts
    /// as that one.
    fn step(&mut self, now: Instant) -> &mut Count {
        let number = (now.saturating_duration_since(self.began).as_millis() / STEP.as_millis()) as u64;
        for _ in 0..number.saturating_sub(self.newest).min(STEPS as u64) {
            self.newest += 1;
            let left = std::mem::take(&mut self.steps[(self.newest % STEPS as u64) as usize]);
            self.sum.requests -= left.requests;
            self.sum.retries -= left.retries;
        }
        // After a pause longer than a window all steps are empty, whatever their numbers were.
        self.newest = self.newest.max(number);
        &mut self.steps[(self.newest % STEPS as u64) as usize]
    }
}

/// Spreads what would otherwise happen at the same time.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub fn new(seed: u64) -> Self {
        Jitter(seed)
    }

    /// Some duration up to `longest`, by a linear congruential step with Knuth's constants: spread is all that is asked of
    /// it.
    pub fn up_to(&mut self, longest: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        longest.mul_f64((self.0 >> 33) as f64 / (1u64 << 31) as f64)
    }

    /// The pause before a request is sent again that was refused `refusals` times before this one: never shorter than what
    /// the daemon advised, and longer by up to half of that, or by up to a time that doubles with each refusal.
    pub fn pause(&mut self, advised: Duration, refusals: u32) -> Duration {
        let growing = PAUSE_FIRST.saturating_mul(1 << refusals.min(16)).min(PAUSE_MAX);
        advised + self.up_to(growing.max(advised / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn budget() -> (RetryBudget, Instant) {
        let began = Instant::now();
        (RetryBudget::new(began), began)
    }

    fn granted(budget: &mut RetryBudget, asked: u64, now: Instant) -> u64 {
        (0..asked).filter(|_| budget.try_retry(now)).count() as u64
    }

    #[test]
    fn retries_are_free_until_there_are_many_requests() {
        let (mut budget, now) = budget();
        budget.requests(RETRY_REQUESTS_MIN - 1, now);
        assert_eq!(granted(&mut budget, 1_000, now), 1_000);
        // With one more request those count, and are far beyond the share.
        budget.requests(1, now);
        assert_eq!(granted(&mut budget, 10, now), 0);
    }

    #[test]
    fn a_tenth_of_many_requests_is_repeated() {
        for requests in [200, 201, 209, 210, 1_000, 99_999] {
            let (mut budget, now) = budget();
            budget.requests(requests, now);
            assert_eq!(granted(&mut budget, requests, now), requests / 10, "of {requests}");
        }
    }

    #[test]
    fn what_has_left_the_window_is_forgotten() {
        let (mut budget, now) = budget();
        budget.requests(1_000, now);
        assert_eq!(granted(&mut budget, 200, now), 100);
        assert_eq!(granted(&mut budget, 200, now + RETRY_WINDOW), 0, "still in the window");
        let later = now + RETRY_WINDOW + STEP;
        budget.requests(400, later);
        assert_eq!(granted(&mut budget, 200, later), 40);
        // A pause of many windows, and a time that goes back.
        let much_later = later + 1_000 * RETRY_WINDOW;
        budget.requests(300, much_later);
        assert_eq!(granted(&mut budget, 200, later), 30);
    }

    /// Random times, requests and refusals, against a list of all that was ever counted.
    #[test]
    fn never_more_than_the_share_in_any_window() {
        for seed in 0..200 {
            let mut chance = Jitter::new(seed);
            let mut below = |most: u64| chance.up_to(Duration::from_nanos(most << 20)).as_nanos() as u64 >> 20;
            let (mut budget, began) = budget();
            let mut now = began;
            let mut counted: VecDeque<(u128, u64, u64)> = VecDeque::new();
            let (mut grants, mut refusals) = (0, 0);
            for _ in 0..2_000 {
                let pause_ms = if below(200) == 0 { below(25_000) } else { below(60) };
                now += Duration::from_millis(pause_ms);
                let step = now.duration_since(began).as_millis() / STEP.as_millis();
                counted.retain(|(at, ..)| at + STEPS as u128 > step);
                let requests = below(12);
                budget.requests(requests, now);
                counted.push_back((step, requests, 0));
                for _ in 0..below(4) {
                    let (all, again) =
                        counted.iter().fold((0, 0), |(all, again), count| (all + count.1, again + count.2));
                    let is_due = all < RETRY_REQUESTS_MIN || 100 * (again + 1) <= RETRY_PERCENT_MAX * all;
                    assert_eq!(budget.try_retry(now), is_due, "seed {seed}: {again} retries of {all} requests");
                    if is_due {
                        counted.push_back((step, 0, 1));
                        grants += 1;
                    } else {
                        refusals += 1;
                    }
                }
            }
            assert!(grants > 0 && refusals > 0, "seed {seed}: {grants} grants, {refusals} refusals");
        }
    }

    #[test]
    fn a_pause_grows_is_spread_and_never_shorter_than_advised() {
        for seed in 0..50 {
            let mut jitter = Jitter::new(seed);
            for advised in [Duration::from_millis(1), Duration::from_millis(250), Duration::from_secs(60)] {
                for refusals in 0..40 {
                    let pauses: Vec<_> = (0..100).map(|_| jitter.pause(advised, refusals)).collect();
                    let growing = PAUSE_FIRST.saturating_mul(1 << refusals.min(16)).min(PAUSE_MAX);
                    let most = advised + growing.max(advised / 2);
                    let all_within = pauses.iter().all(|pause| (advised..=most).contains(pause));
                    assert!(all_within, "seed {seed}, {advised:?} after {refusals}: {pauses:?}");
                    let spread = pauses.iter().max().expect("some").saturating_sub(*pauses.iter().min().expect("some"));
                    assert!(spread > (most - advised) / 2, "seed {seed}, {advised:?} after {refusals}: {pauses:?}");
                }
            }
        }
    }
}
