//! The small state that a log begins with whose rows come from another ledger, which has dropped its first quarters.

use super::rows::Tallies;
use super::{Shard, quarter_of};
use crate::corpus::Prefix;
use crate::dispute::DisputeId;
use crate::log::superblock::Superblock;
use crate::retention::QuarterSeal;

/// What such a log begins with.
#[derive(Debug)]
pub struct Inherited<'a> {
    /// The other ledger's shards, each as its log begins: all of their rows are gone.
    pub from: &'a [Shard],
    /// Seals of what was dropped before.
    pub seals: Vec<QuarterSeal>,
    /// Disputes in quarantine of which a row that lives here is not flagged.
    pub unflagged: Vec<DisputeId>,
}

impl Shard {
    /// The small state of a shard of another ledger, encoded. `place` says where each corpus lives there.
    pub fn inherit(
        superblock: &Superblock,
        inherited: Inherited<'_>,
        place: impl Fn(Prefix) -> Option<u16>,
    ) -> Result<Vec<u8>, String> {
        let Inherited { from, seals, unflagged } = inherited;
        let first = from.first().ok_or("a ledger has a shard")?;
        let mut shard = Shard::new(superblock);
        shard.registry = first.registry.placed(&place)?;
        let mut tallies = Tallies::default();
        let number = shard.number;
        for corpus in first.registry.corpora().iter().filter(|corpus| place(corpus.prefix) == Some(number)) {
            let lived = from.get(usize::from(corpus.shard)).ok_or("a corpus of a shard that is not there")?;
            tallies.inherit(corpus.prefix, lived.rows.tallies());
            if let Some(budget) = lived.budget(corpus.prefix) {
                *shard.budget_mut(corpus.prefix) = budget.clone();
            }
        }
        shard.rows.inherit(tallies);
        shard.in_force = first.in_force.clone();
        shard.disputes = first.disputes.inherited(unflagged);
        shard.passes = first.passes.inherited(from.iter().map(|shard| &shard.passes));
        shard.retention.holds = first.retention.holds.clone();
        shard.retention.seals = seals;
        for (uid, name) in from.iter().flat_map(|shard| &shard.users) {
            shard.users.entry(*uid).or_insert_with(|| name.clone());
        }
        (shard.globals_before, shard.globals_applied) = (first.globals_applied, first.globals_applied);
        shard.last_us = from.iter().map(|shard| shard.last_us).max().unwrap_or(0);
        shard.quarter = quarter_of(shard.last_us);
        Ok(shard.snapshot())
    }
}
