//! Answers to what one asks about the rows and corpora of this shard.

use super::decide::{Decided, Step};
use super::{Decision, Shard};
use crate::command::{
    CorpusDetails, CorpusUsage, FIND_ROWS_MAX, FoundRow, HISTORY_ENTRIES_MAX, Operation, Outcome, Request,
    SCAN_ROWS_MAX, Total,
};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::log::entry::AlarmKind;
use crate::policy::Action;
use crate::sealed::Fetch;
use crate::shard::rows::{Found, Scan, Scanned};
use crate::time::Quarter;

impl Step<'_, '_, '_> {
    /// What one may read.
    pub(super) fn read(&mut self, request: &Request<'_>, time_us: i64) -> Decided<Decision> {
        if matches!(request.operation, Operation::Find { .. }) {
            self.shard.tidy();
        }
        let shard = &*self.shard;
        let who = request.principal;
        let may_read = |prefix| {
            let name = shard.registry.of_prefix(prefix).map(|corpus| corpus.name.as_str());
            shard.policy.allows(who, Action::ReadCorpus, name)
        };
        match request.operation {
            Operation::Corpora => {
                let own = shard.registry.corpora().iter().filter(|corpus| corpus.shard == shard.number);
                let own = own.filter(|corpus| may_read(corpus.prefix));
                let corpora = own.map(|corpus| shard.details_at(corpus, time_us)).collect();
                Ok(Decision::now(Outcome::Corpora(corpora), shard.last_position))
            }
            Operation::Lookup { event_id } => {
                let (found, claim) = self.row_with_claim(event_id)?;
                let row = FoundRow { view: shard.view_at(&found, time_us), claim };
                Ok(Decision::now(Outcome::Row(Box::new(row)), found.position))
            }
            Operation::History { event_id, skip } => {
                let found = self.row(event_id)?;
                let (entries_at, more) = shard.rows.history(&found, skip, HISTORY_ENTRIES_MAX)?;
                let related = shard.related(&found)?;
                // References and steps of disputes don't all move the row's own position, but they are entries of its
                // history; nor do the disputes and aliases that are named beside it.
                Ok(Decision::now(Outcome::History { entries_at, more, related }, shard.last_position))
            }
            Operation::Scan { corpus, since_us, until_us, after, limit } => {
                let prefix = self.corpus(corpus)?;
                let limit = if limit == 0 { SCAN_ROWS_MAX } else { limit.min(SCAN_ROWS_MAX) };
                let scan = Scan { prefix, since_us, until_us, after, limit };
                // A pass changes what a row says about itself, and a policy when it expires.
                let Scanned { rows, more, log } = shard.rows.scan(&scan, |row| shard.view_at(row, time_us))?;
                Ok(Decision::now(Outcome::Rows { rows, more, log }, shard.last_position))
            }
            Operation::Find { event_key, from } => {
                let (found, next) = shard.rows.find(shard.key_hash(event_key), from, FIND_ROWS_MAX)?;
                let readable = found.iter().filter(|row| may_read(row.event_id.prefix()));
                let rows = readable.map(|row| shard.view_at(row, time_us)).collect();
                Ok(Decision::now(Outcome::Found { rows, next }, shard.last_position))
            }
            Operation::Correlated { correlation_id, skip } => {
                let (entries_at, more) = shard.rows.correlated(correlation_id, skip, HISTORY_ENTRIES_MAX)?;
                Ok(Decision::now(Outcome::Correlated { entries_at, more }, shard.last_position))
            }
            Operation::Totals { corpus } => {
                if !corpus.is_empty() {
                    self.corpus(corpus)?;
                }
                let own = shard.registry.corpora().iter().filter(|c| c.shard == shard.number);
                let own = own.filter(|c| (corpus.is_empty() || c.name == corpus) && may_read(c.prefix));
                let totals = own.flat_map(|c| shard.totals(c.prefix)).collect();
                Ok(Decision::now(Outcome::Totals(totals), shard.last_position))
            }
            Operation::Usage { name } => {
                let usage = shard.registry.of_name(name).map(|c| shard.usage(c.prefix)).unwrap_or_default();
                Ok(Decision::now(Outcome::Usage(usage), shard.last_position))
            }
            Operation::ReadAll | Operation::Status => Ok(Decision::now(Outcome::Allowed, 0)),
            _ => self.read_global(request),
        }
    }
}

impl Shard {
    /// A corpus with what this shard knows of it.
    pub fn details(&self, corpus: &crate::command::Corpus) -> CorpusDetails {
        self.details_at(corpus, self.last_us)
    }

    fn details_at(&self, corpus: &crate::command::Corpus, at_us: i64) -> CorpusDetails {
        let quarter = Quarter::of(at_us);
        let budget = self.budget(corpus.prefix);
        let is_raised = |kind: &AlarmKind| budget.is_some_and(|budget| budget.is_raised(*kind, quarter));
        CorpusDetails {
            corpus: corpus.clone(),
            claims: self.rows.count_of(corpus.prefix),
            claims_this_quarter: self.rows.next_sequence(corpus.prefix, quarter) - 1,
            slots: self.slots_at(corpus.prefix, at_us),
            alarms: AlarmKind::ALL.into_iter().filter(is_raised).collect(),
        }
    }

    /// What a corpus is to this shard.
    pub(super) fn usage(&self, prefix: Prefix) -> CorpusUsage {
        CorpusUsage { rows: self.rows.count_of(prefix), aliases_elsewhere: self.rows.aliases_of_corpus(prefix) }
    }

    /// Rows whose entries belong to a row's story: its canonical row, its aliases, the other rows of its disputes.
    fn related(&self, found: &Found) -> Fetch<Vec<EventId>> {
        let mut related: Vec<_> = found.canonical_id.into_iter().collect();
        related.extend(self.rows.aliases_of(found.event_id)?);
        let disputes = self.disputes.ever_of_row(found.event_id);
        related.extend(disputes.flat_map(|dispute| dispute.sides.ids()));
        related.sort_unstable();
        related.dedup();
        related.retain(|id| *id != found.event_id);
        Ok(related)
    }

    /// Control totals of a corpus of this shard.
    pub fn totals(&self, prefix: Prefix) -> Vec<Total> {
        let mut before: Option<(Quarter, u64)> = None;
        let total = |(quarter, rows): (Quarter, [u64; 4])| {
            let claims: u64 = rows.iter().sum();
            let slots = self.slots_at(prefix, quarter.start_us());
            let claims_before = before.filter(|(q, _)| *q == quarter.previous()).map(|(_, claims)| claims);
            before = Some((quarter, claims));
            let over_budget = self.rows.over_budget(prefix, quarter);
            Total { prefix, quarter, rows, slots, over_budget, claims_before }
        };
        self.rows.totals(prefix).into_iter().map(total).collect()
    }
}
