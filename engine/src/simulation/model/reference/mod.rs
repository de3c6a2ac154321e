//! What the ledger means, as plainly as it can be written: one list of rows, every rule looked up anew each time. It knows
//! neither shards' logs nor messages; what nobody can foresee, ids above all, it takes from the answers.

mod disputes;
mod global;
mod passes;
mod reading;
mod roles;
mod rows;

use super::words::{Asked, Op, plain, repeated};
use crate::command::{Corpus, CorpusDetails, CorpusUsage, Outcome, Proposal, Stop, Total};
use crate::corpus::{Prefix, is_corpus_name};
use crate::dispute::{Dispute, DisputeId};
use crate::error::{Code, Refusal};
use crate::id::EventId;
use crate::log::entry::AlarmKind;
use crate::policy::settings::Settings;
use crate::row::{Lifecycle, ReasonCode, ReconciliationState, RowState, RowView, Tombstone};
use crate::time::{DAY_US, Quarter, SECOND_US};
use std::collections::{BTreeMap, BTreeSet};

const MINUTE_US: i64 = 60 * SECOND_US;

/// A row.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: EventId,
    pub event_key: String,
    pub occurred_us: i64,
    pub claimed_us: i64,
    pub sequence: u64,
    pub over_budget: bool,
    pub incident: bool,
    pub state: RowState,
    pub canonical: Option<EventId>,
    /// The dispute that has it, and what it was before.
    pub dispute: Option<(DisputeId, RowState)>,
    pub tombstone: Option<(i64, Option<ReasonCode>)>,
    pub reactivated_us: Option<i64>,
    pub references: u32,
    pub entries: usize,
    /// The step that made it what it is.
    changed_in: u64,
}

/// What a key was used for.
#[derive(Debug, Clone)]
struct Kept {
    request: String,
    answer: Outcome,
}

/// A pass that is over.
#[derive(Debug, Clone, Copy)]
struct Pass {
    number: u64,
    at_us: i64,
    began_in: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Model {
    pub shard_count: u16,
    pub now_us: i64,
    formatted_us: i64,
    /// Counts what happens, to tell before from after at one time.
    step: u64,
    pub settings: Settings,
    pub configured: Option<(String, i64, u32)>,
    pub corpora: Vec<Corpus>,
    minted_to: u16,
    minted_in: Option<Quarter>,
    pub alarms: BTreeSet<(u16, Quarter, AlarmKind)>,
    /// The last hour in which a corpus's rate was looked at; forgotten in a crash.
    pub looked_at_hour: BTreeMap<u16, i64>,
    pub frozen: Option<Stop>,
    pub incident: bool,
    pub rows: Vec<Row>,
    pub disputes: BTreeMap<DisputeId, Dispute>,
    pub disputes_moved_us: i64,
    pub proposals: Vec<Proposal>,
    barriers: Vec<i64>,
    /// Canonical rows and rows that were ever said to be aliases of them.
    ever_aliases: BTreeSet<(EventId, EventId)>,
    last_pass: Option<Pass>,
    keys: BTreeMap<(u16, u16, u128, u16), Kept>,
    pub users: BTreeMap<(u16, u32), &'static str>,
    refusals: BTreeMap<(u16, u32), (i64, u32)>,
    correlated: BTreeMap<(u16, u128), usize>,
    /// What happened beside answers, for counting.
    pub events: Vec<&'static str>,
}

/// What the model takes from the engine's answer, because nobody can foresee it.
#[derive(Debug, Clone, Default)]
pub struct Hint {
    pub ids: Vec<Option<EventId>>,
    pub dispute: Option<DisputeId>,
    /// Only these items of a claim happened, before a crash.
    pub only: Option<Vec<bool>>,
    /// A proposal's number is its place among all that concerns the whole ledger.
    pub proposal: Option<u64>,
}

type Answer = Result<Outcome, Refusal>;

fn no<T>(code: Code) -> Result<T, Refusal> {
    Err(Refusal::new(code, ""))
}

impl Model {
    pub fn new(shard_count: u16, now_us: i64) -> Model {
        Model {
            shard_count,
            now_us,
            formatted_us: now_us,
            step: 0,
            settings: Settings::default(),
            configured: None,
            corpora: Vec::new(),
            minted_to: 0,
            minted_in: None,
            alarms: BTreeSet::new(),
            looked_at_hour: BTreeMap::new(),
            frozen: None,
            incident: false,
            rows: Vec::new(),
            disputes: BTreeMap::new(),
            disputes_moved_us: 0,
            proposals: Vec::new(),
            barriers: Vec::new(),
            ever_aliases: BTreeSet::new(),
            last_pass: None,
            keys: BTreeMap::new(),
            users: BTreeMap::new(),
            refusals: BTreeMap::new(),
            correlated: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    pub fn corpus(&self, name: &str) -> Option<&Corpus> {
        self.corpora.iter().find(|corpus| corpus.name == name)
    }

    fn corpus_mut(&mut self, prefix: Prefix) -> &mut Corpus {
        self.corpora.iter_mut().find(|corpus| corpus.prefix == prefix).expect("a corpus that was looked up before")
    }

    pub fn of_prefix(&self, prefix: Prefix) -> Option<&Corpus> {
        self.corpora.iter().find(|corpus| corpus.prefix == prefix)
    }

    pub fn row(&self, id: EventId) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }

    fn row_mut(&mut self, id: EventId) -> &mut Row {
        self.rows.iter_mut().find(|row| row.id == id).expect("a row that was looked up before")
    }

    pub fn rows_of(&self, prefix: Prefix) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.id.prefix() == prefix)
    }

    pub fn shard_of(&self, prefix: Prefix) -> u16 {
        self.of_prefix(prefix).map_or(0, |corpus| corpus.shard)
    }

    pub fn slots_at(&self, prefix: Prefix, at_us: i64) -> u64 {
        let signed = self.of_prefix(prefix).map_or(&[][..], |corpus| &corpus.slots);
        let in_force = signed.iter().rev().find(|(from_us, _)| *from_us <= at_us);
        in_force.map_or(self.settings.slots_per_quarter as u64, |(_, slots)| *slots)
    }

    pub fn effective_quarter(&self, row: &Row) -> Quarter {
        let own = Quarter::of(row.claimed_us);
        match row.reactivated_us.map(Quarter::of) {
            Some(later) if later != own => later.next(),
            _ => own,
        }
    }

    fn expires_us(&self, row: &Row) -> i64 {
        self.effective_quarter(row).end_us_after_years(self.settings.retention_years as u16)
    }

    pub fn is_expired(&self, row: &Row) -> bool {
        self.expires_us(row) <= self.now_us
    }

    /// How long a row waits for other claims of its event.
    pub fn window_us(&self, row: &Row) -> i64 {
        let default_us = if row.incident { self.settings.incident_window_us } else { self.settings.default_window_us };
        let from = &self.of_prefix(row.id.prefix()).expect("a row has its corpus").name;
        let others = self.corpora.iter().filter(|corpus| corpus.name != *from);
        let budget = |to: &str| {
            let given = self.settings.budgets.iter().find(|(f, t, _)| f == from && t == to);
            given.map_or(default_us, |(_, _, budget_us)| *budget_us)
        };
        others.map(|to| budget(&to.name)).max().unwrap_or(default_us)
    }

    pub fn closes_us(&self, row: &Row) -> i64 {
        let window_us = self.window_us(row);
        let mut closes_us = row.claimed_us + window_us;
        for barrier_us in &self.barriers {
            if (row.claimed_us - barrier_us).abs() <= window_us {
                closes_us = closes_us.max(barrier_us + window_us);
            }
        }
        closes_us
    }

    pub fn view(&self, row: &Row) -> RowView {
        let own = Quarter::of(row.claimed_us);
        let reconciliation = match row.state {
            RowState::Disputed | RowState::TombstonedByArbitration => ReconciliationState::Disputed,
            RowState::Retracted => ReconciliationState::Tombstoned,
            RowState::Referenced => ReconciliationState::Clean,
            RowState::Registered => {
                let covers = |pass: Pass| pass.began_in > row.changed_in && self.closes_us(row) <= pass.at_us;
                if self.last_pass.is_some_and(covers) {
                    ReconciliationState::Clean
                } else {
                    ReconciliationState::Pending
                }
            }
        };
        RowView {
            event_id: row.id,
            claim_at: 0,
            state: row.state,
            lifecycle: if self.is_expired(row) { Lifecycle::Expired } else { row.state.lifecycle() },
            canonical_id: row.canonical.filter(|_| row.state == RowState::Referenced),
            dispute: row.dispute.map(|(dispute, _)| dispute),
            tombstone: row.tombstone.map(|(at_us, reason_code)| Tombstone { at_us, reason_code, entry_at: 0 }),
            reactivated_at_us: row.reactivated_us,
            effective_quarter: self.effective_quarter(row),
            reactivation_quarter: row.reactivated_us.map(Quarter::of).filter(|quarter| *quarter != own),
            retention_expires_at_us: self.expires_us(row),
            over_budget: row.over_budget,
            incident_active: row.incident,
            reconciliation,
            references: row.references,
        }
    }

    pub fn totals(&self, prefix: Prefix) -> Vec<Total> {
        let mut totals: BTreeMap<Quarter, Total> = BTreeMap::new();
        for row in self.rows_of(prefix) {
            let quarter = Quarter::of(row.claimed_us);
            let slots = self.slots_at(prefix, quarter.start_us());
            let total = totals.entry(quarter).or_insert(Total {
                prefix,
                quarter,
                rows: [0; 4],
                slots,
                over_budget: 0,
                claims_before: None,
            });
            let place = Lifecycle::LOGGED.iter().position(|lifecycle| *lifecycle == row.state.lifecycle());
            total.rows[place.expect("a logged lifecycle")] += 1;
            total.over_budget += u64::from(row.over_budget);
        }
        let claims: BTreeMap<_, u64> = totals.iter().map(|(q, total)| (*q, total.rows.iter().sum())).collect();
        let mut totals: Vec<_> = totals.into_values().collect();
        totals.iter_mut().for_each(|total| total.claims_before = claims.get(&total.quarter.previous()).copied());
        totals
    }

    fn details(&self, corpus: &Corpus) -> CorpusDetails {
        let quarter = Quarter::of(self.now_us);
        let this_quarter = |row: &&Row| Quarter::of(row.claimed_us) == quarter;
        let is_raised = |kind: &AlarmKind| self.alarms.contains(&(corpus.prefix.get(), quarter, *kind));
        CorpusDetails {
            corpus: corpus.clone(),
            claims: self.rows_of(corpus.prefix).count() as u64,
            claims_this_quarter: self.rows_of(corpus.prefix).filter(this_quarter).count() as u64,
            slots: self.slots_at(corpus.prefix, self.now_us),
            alarms: AlarmKind::ALL.into_iter().filter(is_raised).collect(),
        }
    }

    /// What a corpus is to a shard.
    fn usage(&self, prefix: Prefix, shard: u16) -> CorpusUsage {
        let here = |row: &&Row| self.shard_of(row.id.prefix()) == shard;
        let is_alias = |row: &&Row| {
            row.state == RowState::Referenced && row.canonical.is_some_and(|canonical| canonical.prefix() == prefix)
        };
        CorpusUsage {
            rows: self.rows_of(prefix).filter(here).count() as u64,
            aliases_elsewhere: self.rows.iter().filter(here).filter(is_alias).count() as u64,
        }
    }

    /// Does what is asked and returns the answer that is due.
    pub fn apply(&mut self, asked: &Asked, hint: &Hint) -> Outcome {
        self.step += 1;
        match self.decide(asked, hint) {
            Ok(outcome) => plain(outcome),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn decide(&mut self, asked: &Asked, hint: &Hint) -> Answer {
        if asked.op.is_mutation() {
            self.check_bounds(asked)?;
        }
        if !self.is_allowed(asked) {
            self.forbid(asked);
            return no(Code::Forbidden);
        }
        if asked.op.is_mutation() && !asked.user.is_empty() {
            self.users.insert((asked.shard, asked.who.uid), asked.user);
        }
        match &asked.op {
            Op::Claim { corpus, items, unless_us } => self.claim(asked, corpus, items, *unless_us, hint),
            Op::Reference { corpus, items } => self.reference(asked, corpus, items),
            Op::Retract { corpus, .. } if self.corpus(corpus).is_none() => no(Code::UnknownCorpus),
            Op::Retract { corpus, .. } => {
                let prefix = self.corpus(corpus).map(|corpus| corpus.prefix);
                self.keyed(asked, prefix, |model| model.retract(asked))
            }
            Op::Reactivate { id } => self.keyed(asked, Some(id.prefix()), |model| model.reactivate(asked, *id)),
            Op::Dispute { corpus, .. } | Op::Respond { corpus, .. } => {
                let Some(prefix) = self.corpus(corpus).map(|corpus| corpus.prefix) else {
                    return no(Code::UnknownCorpus);
                };
                self.keyed(asked, Some(prefix), |model| model.decide_global(asked, hint))
            }
            Op::Decommission { dry_run: true, .. } | Op::Reconcile { dry_run: true } => self.decide_global(asked, hint),
            op if op.is_mutation() => self.keyed(asked, None, |model| model.decide_global(asked, hint)),
            _ => self.read(asked),
        }
    }

    fn check_bounds(&self, asked: &Asked) -> Result<(), Refusal> {
        let needs_reason = matches!(
            asked.op,
            Op::Retract { .. }
                | Op::Reactivate { .. }
                | Op::Freeze { frozen: true, .. }
                | Op::Dispute { .. }
                | Op::Respond { .. }
                | Op::Arbitrate { .. }
                | Op::Escalate { .. }
        );
        let is_about_a_dispute =
            needs_reason && !matches!(asked.op, Op::Retract { .. } | Op::Reactivate { .. } | Op::Freeze { .. });
        let bytes_max = if is_about_a_dispute { 4_096 } else { 512 };
        let is_bad = asked.rationale.len() > bytes_max
            || asked.rationale.contains('\n')
            || needs_reason && asked.rationale.trim().is_empty();
        let is_bad = is_bad
            || match &asked.op {
                Op::Onboard { name, notes } => !is_corpus_name(name) || notes.len() > 512,
                Op::Claim { items, unless_us, .. } => {
                    items.is_empty() || unless_us.is_some_and(|us| items.len() != 1 || !(0..=DAY_US).contains(&us))
                }
                Op::Reference { items, .. } => items.is_empty(),
                _ => false,
            };
        if is_bad { no(Code::BadRequest) } else { Ok(()) }
    }

    /// What is known of a key: its answer, or that it is new.
    fn key(&self, asked: &Asked, scope: Option<Prefix>, item: u16, request: &str) -> Result<Option<Outcome>, Refusal> {
        let made_us = (asked.key >> 80) as i64 * 1_000;
        if made_us + DAY_US < self.now_us {
            return no(Code::KeyExpired);
        }
        if made_us > self.now_us + 5 * MINUTE_US {
            return no(Code::KeyInFuture);
        }
        match self.keys.get(&(asked.shard, scope.map_or(0, Prefix::get), asked.key, item)) {
            Some(kept) if kept.request == request => Ok(Some(kept.answer.clone())),
            Some(_) => no(Code::KeyReused),
            None => Ok(None),
        }
    }

    fn keep(&mut self, asked: &Asked, scope: Option<Prefix>, item: u16, request: String, answer: &Outcome) {
        let key = (asked.shard, scope.map_or(0, Prefix::get), asked.key, item);
        self.keys.insert(key, Kept { request, answer: answer.clone() });
    }

    /// Answers a retry, or does it and keeps the key.
    fn keyed(&mut self, asked: &Asked, scope: Option<Prefix>, act: impl FnOnce(&mut Model) -> Answer) -> Answer {
        let request = format!("{:?} {} {}", asked.op, asked.rationale, asked.correlation);
        if let Some(answer) = self.key(asked, scope, 0, &request)? {
            self.events.push("a retry is answered");
            return Ok(repeated(answer));
        }
        let outcome = plain(act(self)?);
        self.keep(asked, scope, 0, request, &outcome);
        Ok(outcome)
    }

    fn not_frozen(&self, prefix: Option<Prefix>) -> Result<(), Refusal> {
        let corpus = prefix.and_then(|prefix| self.of_prefix(prefix));
        let is_frozen = self.frozen.is_some() || corpus.is_some_and(|corpus| corpus.frozen.is_some());
        if is_frozen { no(Code::Frozen) } else { Ok(()) }
    }
}
