//! Where each corpus lived, and where it lives then.

use super::read::Global;
use claim_engine::command::Corpus;
use claim_engine::corpus::Prefix;
use claim_engine::log::entry::{Entry, Record};
use std::collections::BTreeSet;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    shards: u16,
    /// By prefix, from 1: the old shard, and the new one.
    corpora: Vec<(u16, u16)>,
    /// Pairs of a new shard and an old one that it has corpora from.
    drawn: BTreeSet<(u16, u16)>,
    /// Old shards with corpora.
    lived_in: BTreeSet<u16>,
}

impl Placement {
    /// Places corpora over so many shards, in the order of their onboarding, by the registry's rule: on the shard with the fewest,
    /// then the lowest. `before` are those that were onboarded before a global order begins.
    pub fn new(before: &[Corpus], globals: &[Global], shards: u16) -> Result<Placement, String> {
        let mut placement = Placement { shards, ..Placement::default() };
        let mut corpora = vec![0_u32; usize::from(shards)];
        let mut onboarded: Vec<_> = before.iter().map(|corpus| (corpus.prefix, corpus.shard)).collect();
        for global in globals {
            let record = Record::decode(global.kind, &global.body).map_err(|e| e.to_string())?;
            if let Entry::Onboard { prefix, shard, .. } = record.entry {
                onboarded.push((prefix, shard));
            }
        }
        for (prefix, old) in onboarded {
            if usize::from(prefix.get()) != placement.corpora.len() + 1 {
                return Err(format!("prefix {prefix} is onboarded out of turn"));
            }
            let new = (0..shards).min_by_key(|shard| (corpora[usize::from(*shard)], *shard)).unwrap_or(0);
            corpora[usize::from(new)] += 1;
            placement.corpora.push((old, new));
            placement.drawn.insert((new, old));
            placement.lived_in.insert(old);
        }
        Ok(placement)
    }

    /// How many new shards there are.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The old shard of a corpus.
    pub fn old_of(&self, prefix: Prefix) -> Option<u16> {
        self.of(prefix.get()).map(|(old, _)| old)
    }

    /// The new shard of a corpus.
    pub fn new_of(&self, prefix: Prefix) -> Option<u16> {
        self.of(prefix.get()).map(|(_, new)| new)
    }

    /// The new shard of an entry that goes with a corpus, or, with 0, belongs to its old shard alone.
    pub fn home_of(&self, prefix: u16, old: u16) -> u16 {
        self.of(prefix).map_or(old % self.shards.max(1), |(_, new)| new)
    }

    /// The old shards that a new one has corpora from.
    pub fn sources(&self, new: u16) -> impl Iterator<Item = u16> + '_ {
        self.drawn.range((new, 0)..=(new, u16::MAX)).map(|(_, old)| *old)
    }

    /// Whether a new shard has corpora from an old one.
    pub fn draws(&self, new: u16, old: u16) -> bool {
        self.drawn.contains(&(new, old))
    }

    /// Whether any corpus lived on an old shard.
    pub fn has_corpora(&self, old: u16) -> bool {
        self.lived_in.contains(&old)
    }

    fn of(&self, prefix: u16) -> Option<(u16, u16)> {
        self.corpora.get(usize::from(prefix).checked_sub(1)?).copied()
    }
}
