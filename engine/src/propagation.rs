//! How long it takes until a claim can be seen from another shard: from its timestamp to the message that it is durable.

use crate::corpus::Prefix;
use std::collections::BTreeMap;

/// Samples of a corpus that are kept.
const SAMPLES_MAX: usize = 1_024;
/// Corpora of which samples are kept.
const CORPORA_MAX: usize = 4_096;

/// A claim that can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visibility {
    /// The corpus that claimed.
    pub corpus: Prefix,
    /// When.
    pub claim_timestamp_us: i64,
}

/// The last samples of one corpus, as this shard saw them.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// How many there were since start.
    pub count: u64,
    recent_us: Vec<i64>,
}

impl Samples {
    /// A percentile of the last samples, in microseconds.
    pub fn percentile_us(&self, percent: usize) -> i64 {
        let mut sorted = self.recent_us.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).copied().unwrap_or(0)
    }

    /// How many of the last samples took longer than a budget, and of how many.
    pub fn over_us(&self, budget_us: i64) -> (u64, u64) {
        let over = self.recent_us.iter().filter(|took_us| **took_us > budget_us).count();
        (over as u64, self.recent_us.len() as u64)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Propagation {
    corpora: BTreeMap<Prefix, Samples>,
    /// One sample a tick: the claims of a moment are all as fast.
    has_sampled: bool,
    now_us: i64,
}

impl Propagation {
    /// Time passes.
    pub fn tick(&mut self, now_us: i64) {
        self.has_sampled = false;
        self.now_us = now_us;
    }

    /// A claim of this shard is durable; returns what the other shards are to be told.
    pub fn sample(&mut self, corpus: Prefix, claim_timestamp_us: i64) -> Option<Visibility> {
        let is_wanted = !self.has_sampled && self.now_us > 0;
        self.has_sampled = true;
        is_wanted.then_some(Visibility { corpus, claim_timestamp_us })
    }

    /// A claim of another shard can be seen here.
    pub fn seen(&mut self, corpus: Prefix, took_us: i64) {
        if self.corpora.len() >= CORPORA_MAX && !self.corpora.contains_key(&corpus) {
            return;
        }
        let samples = self.corpora.entry(corpus).or_default();
        let next = (samples.count % SAMPLES_MAX as u64) as usize;
        let took_us = took_us.max(0);
        match samples.recent_us.get_mut(next) {
            Some(oldest) => *oldest = took_us,
            None => samples.recent_us.push(took_us),
        }
        samples.count += 1;
    }

    /// What was seen of each corpus.
    pub fn corpora(&self) -> impl Iterator<Item = (Prefix, &Samples)> {
        self.corpora.iter().map(|(prefix, samples)| (*prefix, samples))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_samples() {
        let mut propagation = Propagation::default();
        for took_us in 1..=2_000 {
            propagation.seen(Prefix::FIRST, took_us);
        }
        let (_, samples) = propagation.corpora().next().unwrap();
        assert_eq!(samples.count, 2_000);
        assert_eq!(samples.percentile_us(100), 2_000);
        assert_eq!(samples.percentile_us(50), 977 + 511);
        assert_eq!(samples.over_us(1_990), (10, 1_024));
    }

    #[test]
    fn one_claim_a_tick_is_sampled() {
        let mut propagation = Propagation::default();
        propagation.tick(5);
        assert!(propagation.sample(Prefix::FIRST, 1).is_some());
        assert!(propagation.sample(Prefix::FIRST, 2).is_none());
        propagation.tick(6);
        assert!(propagation.sample(Prefix::FIRST, 3).is_some());
    }
}
