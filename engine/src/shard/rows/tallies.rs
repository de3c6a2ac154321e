//! What a shard counts of its rows, whatever their number: the last id and slot of each corpus, and the control totals.

use crate::corpus::Prefix;
use crate::id::EventId;
use crate::retention::Kept;
use crate::row::RowState;
use crate::time::Quarter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of a corpus.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Tally {
    last_id: Option<EventId>,
    /// The quarter of the last claim, or of a repair since.
    quarter: Option<Quarter>,
    /// The last slot of that quarter that was given, or may have been.
    sequence: u64,
    /// Claims in that quarter.
    claims: u64,
    /// Claims ever.
    count: u64,
}

/// Of a corpus in a quarter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct QuarterTally {
    /// Claims; those of the corpus's last quarter are with the corpus.
    claims: u64,
    /// Rows that are disputed, referenced, tombstoned. The others are registered.
    changed: [u64; 3],
    /// Rows beyond the slots.
    over_budget: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tallies {
    /// By prefix.
    corpora: Vec<Tally>,
    quarters: BTreeMap<(u16, Quarter), QuarterTally>,
    /// Rows of this shard that are aliases, by the corpus of the row that they refer to and their own quarter.
    aliases_to: BTreeMap<(u16, Quarter), u64>,
    count: u64,
}

impl Tallies {
    fn of(&self, prefix: Prefix) -> Option<&Tally> {
        self.corpora.get(usize::from(prefix.get()))
    }

    fn of_mut(&mut self, prefix: Prefix) -> &mut Tally {
        let index = usize::from(prefix.get());
        if self.corpora.len() <= index {
            self.corpora.resize_with(index + 1, Tally::default);
        }
        &mut self.corpora[index]
    }

    /// How many rows there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many a corpus has.
    pub fn count_of(&self, prefix: Prefix) -> u64 {
        self.of(prefix).map_or(0, |tally| tally.count)
    }

    /// The last id that a corpus was given.
    pub fn last_id(&self, prefix: Prefix) -> Option<EventId> {
        self.of(prefix)?.last_id
    }

    /// The slot number of a corpus's next claim in `quarter`.
    pub fn next_sequence(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        match self.of(prefix) {
            Some(tally) if tally.quarter == Some(quarter) => tally.sequence + 1,
            _ => 1,
        }
    }

    /// Rows of a corpus and quarter beyond its slots.
    pub fn over_budget(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        self.quarters.get(&(prefix.get(), quarter)).map_or(0, |tally| tally.over_budget)
    }

    /// What others say of a corpus whose rows are all gone: its last id and its last slot.
    pub fn inherit(&mut self, prefix: Prefix, others: &Tallies) {
        if let Some(tally) = others.of(prefix) {
            let Tally { last_id, quarter, sequence, .. } = *tally;
            *self.of_mut(prefix) = Tally { last_id, quarter, sequence, ..Tally::default() };
        }
    }

    fn enter(&mut self, prefix: Prefix, quarter: Quarter) -> &mut Tally {
        let tally = self.of_mut(prefix);
        if tally.quarter != Some(quarter) {
            let before = tally.quarter.replace(quarter);
            let claims = std::mem::take(&mut tally.claims);
            tally.sequence = 0;
            if let Some(before) = before
                && claims > 0
            {
                self.quarters.entry((prefix.get(), before)).or_default().claims += claims;
            }
        }
        self.of_mut(prefix)
    }

    /// Takes slots up to `sequence` out of what is to be given.
    pub fn raise(&mut self, prefix: Prefix, quarter: Quarter, sequence: u64) {
        self.enter(prefix, quarter).sequence = sequence;
    }

    /// A claim.
    pub fn claimed(&mut self, event_id: EventId, quarter: Quarter, sequence: u64, over_budget: bool) {
        let prefix = event_id.prefix();
        let tally = self.enter(prefix, quarter);
        tally.last_id = Some(event_id);
        tally.sequence = sequence;
        tally.claims += 1;
        tally.count += 1;
        self.count += 1;
        if over_budget {
            self.quarters.entry((prefix.get(), quarter)).or_default().over_budget += 1;
        }
    }

    /// A row is another thing than it was. A replay from where a log begins has not seen what became of rows of dropped quarters
    /// before they were logged again; their drop says what is left of them, whatever was counted until then.
    pub fn changed(&mut self, prefix: Prefix, quarter: Quarter, was: RowState, is: RowState) {
        let counts = &mut self.quarters.entry((prefix.get(), quarter)).or_default().changed;
        if was != RowState::Registered {
            let count = &mut counts[was.lifecycle() as usize - 1];
            *count = count.saturating_sub(1);
        }
        if is != RowState::Registered {
            counts[is.lifecycle() as usize - 1] += 1;
        }
    }

    /// A row refers to another one than it did.
    pub fn aliased(&mut self, quarter: Quarter, was: Option<EventId>, is: Option<EventId>) {
        if let Some(was) = was
            && let Some(count) = self.aliases_to.get_mut(&(was.prefix().get(), quarter))
        {
            *count = count.saturating_sub(1);
        }
        if let Some(is) = is {
            *self.aliases_to.entry((is.prefix().get(), quarter)).or_default() += 1;
        }
    }

    /// Quarters up to one are dropped, but for what is left of them.
    pub fn drop_through(&mut self, last: Quarter, kept: &[Kept]) {
        for (index, tally) in self.corpora.iter_mut().enumerate() {
            let mut gone = 0;
            if tally.quarter.is_some_and(|quarter| quarter <= last) {
                gone += std::mem::take(&mut tally.claims);
            }
            let of_prefix = (index as u16, Quarter::MIN)..=(index as u16, last);
            gone += self.quarters.range(of_prefix).map(|(_, tally)| tally.claims).sum::<u64>();
            tally.count = tally.count.saturating_sub(gone);
            self.count = self.count.saturating_sub(gone);
        }
        self.quarters.retain(|(_, quarter), _| *quarter > last);
        self.aliases_to.retain(|(_, quarter), _| *quarter > last);
        for Kept { prefix, quarter, rows, over_budget, aliases } in kept {
            let claims: u64 = rows.iter().sum();
            let changed = [rows[1], rows[2], rows[3]];
            self.quarters.insert((*prefix, *quarter), QuarterTally { claims, changed, over_budget: *over_budget });
            self.count += claims;
            if let Some(tally) = self.corpora.get_mut(usize::from(*prefix)) {
                tally.count += claims;
            }
            for (canonical, count) in aliases {
                *self.aliases_to.entry((*canonical, *quarter)).or_default() += count;
            }
        }
    }

    /// Rows of other corpora here that are aliases of a corpus's rows.
    pub fn aliases_of_corpus(&self, prefix: Prefix) -> u64 {
        let of_prefix = |quarter| (prefix.get(), quarter);
        self.aliases_to.range(of_prefix(Quarter::MIN)..=of_prefix(Quarter::MAX)).map(|(_, count)| count).sum()
    }

    /// Rows of a corpus by quarter and lifecycle, in the order of [`Lifecycle::LOGGED`](crate::row::Lifecycle::LOGGED).
    pub fn totals(&self, prefix: Prefix) -> Vec<(Quarter, [u64; 4])> {
        let of_prefix = |quarter| (prefix.get(), quarter);
        let mut quarters: BTreeMap<Quarter, QuarterTally> = self
            .quarters
            .range(of_prefix(Quarter::MIN)..=of_prefix(Quarter::MAX))
            .map(|((_, quarter), tally)| (*quarter, *tally))
            .collect();
        if let Some(tally) = self.of(prefix)
            && let Some(quarter) = tally.quarter
        {
            quarters.entry(quarter).or_default().claims += tally.claims;
        }
        let claimed = quarters.into_iter().filter(|(_, tally)| tally.claims > 0);
        claimed
            .map(|(quarter, QuarterTally { claims, changed: [disputed, referenced, tombstoned], .. })| {
                (quarter, [claims - disputed - referenced - tombstoned, disputed, referenced, tombstoned])
            })
            .collect()
    }
}
