//! The registry: which corpora there are, which prefix and shard each has, which prefixes are minted, and what was decided
//! about each corpus: freezes, caps, slots. Shard 0 decides, every shard keeps all of it.

use crate::command::{Corpus, Proposal, Signature, Stop};
use crate::corpus::Prefix;
use crate::policy::Role;
use crate::time::Quarter;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

/// Prefixes minted ahead.
pub const POOL_PREFIXES: u16 = 100;
/// The pool is refilled when it falls below this.
pub const POOL_LOW_PREFIXES: u16 = 20;
/// The roles that sign a slot increase, each once, by different uids.
pub const SIGNING_ROLES: [Role; 3] = [Role::Platform, Role::Facilitator, Role::Manager];
/// Most slots that a quarter can have.
pub const SLOTS_MAX: u64 = 1_000_000_000_000;
/// Most proposals of slot increases that wait for signatures, of one corpus.
pub const OPEN_PROPOSALS_MAX: usize = 16;

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Registry {
    /// In the order of their prefixes, which is that of onboarding.
    corpora: Vec<Corpus>,
    #[serde(skip)]
    by_name: HashMap<String, Prefix>,
    /// How many corpora each shard has; shards without any may be missing at the end.
    per_shard: Vec<u32>,
    minted_to: u16,
    minted_in: Option<Quarter>,
    /// Why the whole ledger is stopped.
    frozen: Option<Stop>,
    incident_active: bool,
    proposals: Vec<Proposal>,
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

    /// Why the whole ledger is stopped, if it is.
    pub fn frozen(&self) -> Option<&Stop> {
        self.frozen.as_ref()
    }

    /// Why mutations of a corpus are stopped, if they are.
    pub fn stop_of(&self, prefix: Prefix) -> Option<&Stop> {
        self.frozen.as_ref().or_else(|| self.of_prefix(prefix)?.frozen.as_ref())
    }

    /// Whether anything is stopped.
    pub fn is_anything_frozen(&self) -> bool {
        self.frozen.is_some() || self.corpora.iter().any(|corpus| corpus.frozen.is_some())
    }

    /// Whether an incident is on.
    pub fn incident_active(&self) -> bool {
        self.incident_active
    }

    /// Proposals of slot increases, the oldest first.
    pub fn proposals(&self) -> &[Proposal] {
        &self.proposals
    }

    /// A proposal by its number.
    pub fn proposal(&self, number: u64) -> Option<&Proposal> {
        let index = self.proposals.binary_search_by_key(&number, |p| p.number).ok()?;
        self.proposals.get(index)
    }

    /// Slots of a corpus in the quarter that a moment lies in; `default` where no increase was ever signed.
    pub fn slots_at(&self, prefix: Prefix, at_us: i64, default: u64) -> u64 {
        let Some(corpus) = self.of_prefix(prefix) else { return default };
        match corpus.slots.iter().rev().find(|(from_us, _)| *from_us <= at_us) {
            Some((_, slots)) => *slots,
            None => default,
        }
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

    /// The same with its corpora on other shards.
    pub(super) fn placed(&self, place: impl Fn(Prefix) -> Option<u16>) -> Result<Registry, String> {
        let mut placed = Registry { per_shard: Vec::new(), ..self.clone() };
        for corpus in &mut placed.corpora {
            corpus.shard = place(corpus.prefix).ok_or_else(|| format!("prefix {} has no place", corpus.prefix))?;
            let shard = usize::from(corpus.shard);
            if placed.per_shard.len() <= shard {
                placed.per_shard.resize(shard + 1, 0);
            }
            placed.per_shard[shard] += 1;
        }
        Ok(placed)
    }

    /// Makes anew what is not part of a snapshot.
    pub(super) fn index(&mut self) {
        self.by_name = self.corpora.iter().map(|corpus| (corpus.name.clone(), corpus.prefix)).collect();
    }

    fn corpus_mut(&mut self, prefix: Prefix) -> Result<&mut Corpus, String> {
        self.corpora
            .get_mut(usize::from(prefix.get()) - 1)
            .ok_or_else(|| format!("there is no corpus of prefix {prefix}"))
    }

    /// Records that a corpus claims and refers no more.
    pub(super) fn decommission(&mut self, prefix: Prefix, at_us: i64) -> Result<(), String> {
        let corpus = self.corpus_mut(prefix)?;
        match corpus.decommissioned_at_us.replace(at_us) {
            None => Ok(()),
            Some(_) => Err(format!("corpus {} is decommissioned twice", corpus.name)),
        }
    }

    /// Records a stop, or its end.
    pub(super) fn freeze(&mut self, prefix: Option<Prefix>, stop: Option<Stop>) -> Result<(), String> {
        match prefix {
            Some(prefix) => self.corpus_mut(prefix)?.frozen = stop,
            None => self.frozen = stop,
        }
        Ok(())
    }

    /// Records a cap.
    pub(super) fn cap(&mut self, prefix: Prefix, claims_per_minute: u32) -> Result<(), String> {
        self.corpus_mut(prefix)?.cap_per_minute = claims_per_minute;
        Ok(())
    }

    /// Records whether an incident is on.
    pub(super) fn incident(&mut self, active: bool) {
        self.incident_active = active;
    }

    /// Takes a proposal in.
    pub(super) fn propose(&mut self, proposal: Proposal) -> Result<(), String> {
        self.corpus_mut(proposal.prefix)?;
        self.proposals.push(proposal);
        Ok(())
    }

    /// Takes a signature in. With the last one the slots count from `effective_from_us` on.
    pub(super) fn sign(&mut self, number: u64, signature: Signature, effective_from_us: i64) -> Result<(), String> {
        let index = self.proposals.binary_search_by_key(&number, |p| p.number);
        let Some(proposal) = index.ok().and_then(|index| self.proposals.get_mut(index)) else {
            return Err(format!("there is no proposal {number}"));
        };
        let taken = proposal.signatures.iter().any(|s| s.role == signature.role || s.uid == signature.uid);
        if taken || !SIGNING_ROLES.contains(&signature.role) || proposal.effective_from_us.is_some() {
            return Err(format!("proposal {number} can't be signed by {signature:?}"));
        }
        proposal.signatures.push(signature);
        if proposal.signatures.len() < SIGNING_ROLES.len() {
            return Ok(());
        }
        proposal.effective_from_us = Some(effective_from_us);
        let (prefix, slots) = (proposal.prefix, proposal.slots);
        let corpus = self.corpus_mut(prefix)?;
        corpus.slots.push((effective_from_us, slots));
        corpus.slots.sort_by_key(|(from_us, _)| *from_us);
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
        let corpus =
            Corpus { name: format!("c{prefix}"), prefix, shard: registry.place(shard_count), ..Corpus::default() };
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
