//! What is read.

use super::{Answer, Model, Row, no};
use crate::command::{Corpus, CorpusUsage, FoundRow, Outcome};
use crate::dispute::Dispute;
use crate::error::Code;
use crate::id::EventId;
use crate::row::RowView;
use crate::simulation::model::words::{Asked, Op};
use std::collections::BTreeSet;

impl Model {
    pub(super) fn read(&self, asked: &Asked) -> Answer {
        let who = asked.who;
        let found = |id: &EventId| self.row(*id).map_or_else(|| no(Code::NotVisible), Ok);
        let is_of = |corpus: &Corpus, shard: u16, name: &str| {
            corpus.shard == shard && (name.is_empty() || corpus.name == name) && self.may_read(who, corpus.prefix)
        };
        let may_see = |dispute: &&Dispute| dispute.sides.ids().iter().any(|id| self.may_read(who, id.prefix()));
        Ok(match &asked.op {
            Op::Lookup { id } => Outcome::Row(Box::new(FoundRow { view: self.view(found(id)?), claim: None })),
            Op::History { id, skip } => {
                let row = found(id)?;
                let entries_at = vec![0; row.entries.saturating_sub(*skip)];
                Outcome::History { entries_at, more: false, related: self.related(row) }
            }
            Op::Scan { corpus, since_us, until_us, after, limit } => {
                let Some(corpus) = self.corpus(corpus) else { return no(Code::UnknownCorpus) };
                let limit = if *limit == 0 { 1_000 } else { *limit };
                let is_in = |row: &&Row| {
                    since_us.is_none_or(|since| row.claimed_us >= since)
                        && until_us.is_none_or(|until| row.claimed_us < until)
                        && after.is_none_or(|after| row.id > after)
                };
                let all: Vec<RowView> = self.rows_of(corpus.prefix).filter(is_in).map(|row| self.view(row)).collect();
                Outcome::Rows { more: all.len() > limit, rows: all.into_iter().take(limit).collect(), log: None }
            }
            Op::Find { shard, event_key } => {
                let is_here = |row: &&Row| {
                    row.event_key == *event_key
                        && self.shard_of(row.id.prefix()) == *shard
                        && self.may_read(who, row.id.prefix())
                };
                let views = self.rows.iter().filter(is_here).map(|row| self.view(row));
                let mut rows: Vec<_> = views.collect();
                rows.sort_by_key(|row| row.event_id);
                Outcome::Found { rows, next: None }
            }
            Op::Totals { corpus, .. } if !corpus.is_empty() && self.corpus(corpus).is_none() => {
                return no(Code::UnknownCorpus);
            }
            Op::Totals { shard, corpus } => {
                let own = self.corpora.iter().filter(|c| is_of(c, *shard, corpus));
                Outcome::Totals(own.flat_map(|corpus| self.totals(corpus.prefix)).collect())
            }
            Op::Corpora { shard } => {
                let own = self.corpora.iter().filter(|corpus| is_of(corpus, *shard, ""));
                Outcome::Corpora(own.map(|corpus| self.details(corpus)).collect())
            }
            Op::DisputeLookup { dispute } => match self.disputes.get(dispute).filter(may_see) {
                Some(dispute) => Outcome::Dispute(Box::new(dispute.clone())),
                None => return no(Code::NotVisible),
            },
            Op::Disputes { corpus, closed_too } => {
                let prefix = match corpus.as_str() {
                    "" => None,
                    name => match self.corpus(name) {
                        Some(corpus) => Some(corpus.prefix),
                        None => return no(Code::UnknownCorpus),
                    },
                };
                let is_wanted = |dispute: &&Dispute| {
                    (*closed_too || dispute.state.is_open())
                        && prefix.is_none_or(|prefix| dispute.sides.ids().iter().any(|id| id.prefix() == prefix))
                };
                let newest_first = self.disputes.values().rev();
                let all: Vec<_> = newest_first.filter(is_wanted).filter(may_see).cloned().collect();
                Outcome::Disputes { more: all.len() > 500, disputes: all.into_iter().take(500).collect() }
            }
            Op::Proposals => {
                let visible = self.proposals.iter().filter(|proposal| self.may_read(who, proposal.prefix));
                Outcome::Proposals(visible.cloned().collect())
            }
            Op::Configuration => {
                let (toml, at_us, uid) = self.configured.clone().unwrap_or_default();
                Outcome::Configuration { toml, at_us, uid }
            }
            Op::Correlated { shard, correlation } => {
                let entries = self.correlated.get(&(*shard, *correlation)).copied().unwrap_or(0);
                Outcome::Correlated { entries_at: vec![0; entries.min(1_000)], more: entries > 1_000 }
            }
            Op::Usage { shard, name } => Outcome::Usage(match self.corpus(name) {
                Some(corpus) => self.usage(corpus.prefix, *shard),
                None => CorpusUsage::default(),
            }),
            Op::ReadAll | Op::Status => Outcome::Allowed,
            _ => return no(Code::BadRequest),
        })
    }

    pub(super) fn related(&self, row: &Row) -> Vec<EventId> {
        let mut related: BTreeSet<EventId> = row.canonical.into_iter().collect();
        let names = |dispute: &&Dispute| dispute.sides.ids().contains(&row.id);
        related.extend(self.disputes.values().filter(names).flat_map(|dispute| dispute.sides.ids().to_vec()));
        related.extend(self.ever_aliases.iter().filter(|(canonical, _)| *canonical == row.id).map(|(_, alias)| *alias));
        related.remove(&row.id);
        related.into_iter().collect()
    }
}
