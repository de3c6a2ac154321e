//! The registry: which corpora there are, which prefix and shard each has, and which prefixes are minted. Shard 0 decides,
//! every shard keeps all of it.

use crate::command::Corpus;
use crate::corpus::Prefix;
use crate::time::Quarter;
use hashbrown::HashMap;

/// Prefixes minted ahead.
pub const POOL_PREFIXES: u16 = 100;
/// The pool is refilled when it falls below this.
pub const POOL_LOW_PREFIXES: u16 = 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Registry {
    /// In the order of their prefixes, which is that of onboarding.
    corpora: Vec<Corpus>,
    by_name: HashMap<String, Prefix>,
    /// How many corpora each shard has; shards without any may be missing at the end.
    per_shard: Vec<u32>,
    minted_to: u16,
    minted_in: Option<Quarter>,
}

impl Registry {
    /// All corpora, in the order of onboarding.
    pub fn corpora(&self) -> &[Corpus] {
        &self.corpora
    }

    /// The corpus of a prefix.
    pub fn of_prefix(&self, prefix: Prefix) -> Option<&Corpus> {
        self.corpora.get(usize::from(prefix.get()) - 1)
    }

    /// The corpus of a name.
    pub fn of_name(&self, name: &str) -> Option<&Corpus> {
        self.of_prefix(*self.by_name.get(name)?)
    }

    /// The prefix that the next corpus gets; `None` when all 65,535 are given out.
    pub fn next_prefix(&self) -> Option<Prefix> {
        u16::try_from(self.corpora.len() + 1).ok().and_then(Prefix::new)
    }

    /// Up to which prefix to mint before the next onboarding, if the pool is low or a quarter has begun.
    pub fn mint_to(&self, quarter: Quarter) -> Option<u16> {
        let given_out = self.corpora.len() as u16;
        let is_due = self.minted_to - given_out < POOL_LOW_PREFIXES || self.minted_in != Some(quarter);
        let mint_to = given_out.saturating_add(POOL_PREFIXES);
        (is_due && mint_to > self.minted_to).then_some(mint_to)
    }

    /// Where the next corpus goes: the shard with the fewest, then the lowest.
    pub fn place(&self, shard_count: u16) -> u16 {
        (0..shard_count).min_by_key(|shard| (self.on_shard(*shard), *shard)).unwrap_or(0)
    }

    /// How many corpora live on a shard.
    pub fn on_shard(&self, shard: u16) -> u32 {
        self.per_shard.get(usize::from(shard)).copied().unwrap_or(0)
    }

    /// Records that prefixes are minted.
    pub(super) fn mint(&mut self, minted_to: u16, quarter: Quarter) -> Result<(), String> {
        if minted_to <= self.minted_to {
            return Err(format!("prefixes are minted to {} already, not to {minted_to}", self.minted_to));
        }
        (self.minted_to, self.minted_in) = (minted_to, Some(quarter));
        Ok(())
    }

    /// Takes a corpus in.
    pub(super) fn add(&mut self, corpus: Corpus) -> Result<(), String> {
        if self.next_prefix() != Some(corpus.prefix) || corpus.prefix.get() > self.minted_to {
            return Err(format!("prefix {} is not the next one of the pool", corpus.prefix));
        }
        if self.by_name.insert(corpus.name.clone(), corpus.prefix).is_some() {
            return Err(format!("corpus {} is onboarded twice", corpus.name));
        }
        let shard = usize::from(corpus.shard);
        if self.per_shard.len() <= shard {
            self.per_shard.resize(shard + 1, 0);
        }
        self.per_shard[shard] += 1;
        self.corpora.push(corpus);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarter(text: &str) -> Quarter {
        text.parse().unwrap()
    }

    fn add(registry: &mut Registry, shard_count: u16) {
        let q = quarter("2026-Q1");
        if let Some(to) = registry.mint_to(q) {
            registry.mint(to, q).unwrap();
        }
        let prefix = registry.next_prefix().unwrap();
        let corpus = Corpus {
            name: format!("c{prefix}"),
            prefix,
            shard: registry.place(shard_count),
            onboarded_at_us: 0,
            notes: String::new(),
        };
        registry.add(corpus).unwrap();
    }

    #[test]
    fn prefixes_count_up_from_one_and_the_pool_stays_ahead() {
        let mut registry = Registry::default();
        for n in 1..=300u16 {
            add(&mut registry, 3);
            assert_eq!(registry.corpora().last().unwrap().prefix.get(), n);
            assert!(registry.minted_to - n >= POOL_LOW_PREFIXES - 1);
        }
        assert_eq!(registry.mint_to(quarter("2026-Q2")), Some(400));
        assert_eq!(registry.of_name("c7").unwrap().shard, 0);
        assert_eq!(registry.of_name("c8").unwrap().shard, 1);
    }

    #[test]
    fn the_last_prefix_is_65535() {
        let mut registry = Registry::default();
        for _ in 0..u16::MAX {
            add(&mut registry, 1);
        }
        assert_eq!(registry.next_prefix(), None);
        assert_eq!(registry.mint_to(quarter("2026-Q2")), None);
    }
}
