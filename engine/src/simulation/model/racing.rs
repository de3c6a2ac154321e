//! Requests in flight together: what comes of them is open, but it must be one of the legal outcomes, and the shards must
//! agree about it.

use super::load::OWNER;
use super::words::{Asked, Item, Op, plain_dispute};
use crate::command::{Outcome, Token};
use crate::corpus::Prefix;
use crate::dispute::{DisputeId, DisputeState, Verdict};
use crate::engine::Engine;
use crate::entropy::Entropy;
use crate::error::Code;
use crate::id::EventId;
use crate::log::entry::{self, Entry, Record};
use crate::mutant::Mutant;
use crate::policy::Policy;
use crate::policy::settings::Settings;
use crate::row::{ReasonCode, RowState};
use crate::simulation::machine::Machine;
use crate::time::{Now, SECOND_US};
use std::collections::BTreeMap;

const START_US: i64 = 1_767_225_600 * SECOND_US;
/// Corpora of a run.
const CORPORA: u16 = 5;
/// Rounds of a run.
const ROUNDS: u64 = 12;
/// Aliases that lead to a canonical row; more would be a circle.
const HOPS_MAX: usize = 64;

/// What happened in runs.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub rounds: u64,
    pub crashes: u64,
    pub happened: BTreeMap<String, u64>,
}

struct Race {
    machine: Machine,
    entropy: Entropy,
    next_token: Token,
    names: u64,
    answers: BTreeMap<Token, Outcome>,
}

/// One run. The error says what is not legal.
pub fn run(seed: u64, mutant: Option<Mutant>, tally: &mut Tally) -> Result<(), String> {
    let mut race = Race::new(seed, mutant)?;
    for round in 0..ROUNDS {
        race.round(tally).map_err(|e| format!("in round {round}: {e}"))?;
        tally.rounds += 1;
    }
    Ok(())
}

impl Race {
    fn new(seed: u64, mutant: Option<Mutant>) -> Result<Race, String> {
        let shards = 2 + (seed % 2) as u16;
        let machine = Machine::new(seed, Entropy::from_seed_u64(!seed), shards, mutant, START_US);
        let entropy = Entropy::from_seed_u64(seed);
        let mut race = Race { machine, entropy, next_token: 0, names: 0, answers: BTreeMap::new() };
        let owned = Policy::of_owner(OWNER.uid).settings().clone();
        // Passes run when they are asked for, and rows are old enough for them after a second.
        let (default_window_us, reconcile_interval_us) = (SECOND_US, 7 * 24 * 3_600 * SECOND_US);
        let toml = Policy::new(Settings { default_window_us, reconcile_interval_us, ..owned })?.to_toml();
        race.alone(Op::Configure { toml })?;
        for n in 1..=CORPORA {
            race.alone(Op::Onboard { name: format!("c-{n}"), notes: String::new() })?;
        }
        Ok(race)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.entropy.below(bound)
    }

    fn shard_of(&self, prefix: Prefix) -> u16 {
        self.machine.engine(0).and_then(|e| e.shard().registry().of_prefix(prefix)).map_or(0, |corpus| corpus.shard)
    }

    fn submit(&mut self, op: Op) -> Token {
        self.next_token += 1;
        let by_name = |name: &str| self.machine.engine(0).and_then(|e| e.shard().registry().of_name(name));
        let shard = match &op {
            Op::Claim { corpus, .. } | Op::Retract { corpus, .. } => by_name(corpus).map_or(0, |corpus| corpus.shard),
            Op::Reference { items, .. } => self.shard_of(items[0].1.prefix()),
            Op::Reactivate { id } => self.shard_of(id.prefix()),
            _ => 0,
        };
        let ms = (self.machine.now.wall_us / 1_000) as u128;
        let key = ms << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.next_token);
        let asked = Asked { op, shard, who: OWNER, user: "", key, correlation: 0, rationale: "a race".into() };
        let machine = &mut self.machine;
        asked.lend(self.next_token, |request| machine.submit(shard, request));
        self.take_answers();
        self.next_token
    }

    fn take_answers(&mut self) {
        let replies = self.machine.take_replies();
        self.answers.extend(replies.into_iter().map(|(_, reply)| (reply.token, reply.outcome)));
    }

    fn settle(&mut self) -> Result<(), String> {
        self.machine.settle()?;
        self.take_answers();
        Ok(())
    }

    fn alone(&mut self, op: Op) -> Result<Outcome, String> {
        let token = self.submit(op);
        self.settle()?;
        self.answers.remove(&token).ok_or_else(|| format!("{token} is not answered"))
    }

    fn pass_time(&mut self, us: i64) -> Result<(), String> {
        let now = self.machine.now;
        self.machine.now = Now { wall_us: now.wall_us + us, boot_us: now.boot_us + us };
        self.machine.tick();
        self.settle()
    }

    fn some_progress(&mut self) {
        let amount = [1, 8, 60][self.entropy.below(3) as usize];
        for _ in 0..self.below(amount) {
            match self.below(10) {
                0..3 => self.machine.complete_one(),
                3..6 => self.machine.deliver_one(),
                6..9 => self.machine.pump(),
                _ => self.let_clocks_go_on(),
            }
        }
        self.take_answers();
    }

    fn let_clocks_go_on(&mut self) {
        let us = self.below(3_000) as i64;
        let now = self.machine.now;
        self.machine.now = Now { wall_us: now.wall_us + us, boot_us: now.boot_us + us };
        self.machine.tick();
    }

    fn new_key(&mut self) -> String {
        self.names += 1;
        format!("event-{}", self.names)
    }

    fn claim_of(&self, corpus: u64, event_key: &str, unless_us: Option<i64>) -> Op {
        let (category, hosting) = ("raced".to_owned(), String::new());
        let item = Item { event_key: event_key.to_owned(), occurred_us: START_US, category, hosting };
        Op::Claim { corpus: format!("c-{}", 1 + corpus), items: vec![item], unless_us }
    }

    fn round(&mut self, tally: &mut Tally) -> Result<(), String> {
        self.answers.clear();
        self.pass_time(5_000)?;
        match self.below(4) {
            0 => self.race_for_a_key(tally)?,
            1 => self.race_for_a_row(tally)?,
            _ => self.race_of_all(tally)?,
        }
        self.check()
    }

    fn crashes(&mut self, tally: &mut Tally) -> Result<bool, String> {
        if self.below(8) != 0 {
            return Ok(false);
        }
        tally.crashes += 1;
        let is_cut = self.below(3) != 0;
        self.machine.crash(is_cut, 1_000, 1_000);
        self.machine.recover(None)?;
        self.machine.tick();
        self.settle()?;
        Ok(true)
    }

    /// Conditional claims of one event by several corpora: one of them succeeds.
    fn race_for_a_key(&mut self, tally: &mut Tally) -> Result<(), String> {
        let event_key = self.new_key();
        let mut tokens = Vec::new();
        for _ in 0..2 + self.below(5) {
            let corpus = self.below(CORPORA.into());
            tokens.push(self.submit(self.claim_of(corpus, &event_key, Some(SECOND_US))));
            self.some_progress();
        }
        let crashed = self.crashes(tally)?;
        self.settle()?;
        let (mut won, mut lost) = (0, 0);
        for token in &tokens {
            match self.answers.get(token) {
                Some(Outcome::Claimed(_)) => won += 1,
                Some(Outcome::Refused(refusal)) if refusal.code == Code::AlreadyRegistered => lost += 1,
                None if crashed => {}
                other => return Err(format!("a conditional claim is answered {other:?}")),
            }
        }
        if won > 1 || !crashed && won + lost != tokens.len() {
            return Err(format!("of {} conditional claims {won} won and {lost} lost", tokens.len()));
        }
        let mut rows = 0;
        for shard in 0..self.machine.shard_count() {
            let found = self.machine.fetch(shard, |engine| {
                engine.shard().rows().with_key(engine.shard().key_hash(&event_key), i64::MIN, usize::MAX)
            });
            rows += found?.len();
        }
        *tally.happened.entry(format!("conditional claims: {rows} row")).or_default() += 1;
        if rows > 1 { Err(format!("{rows} rows of one event, each claimed if there was none")) } else { Ok(()) }
    }

    /// Rows of one event, of different corpora.
    fn rows(&mut self, count: u64) -> Result<Vec<EventId>, String> {
        let event_key = self.new_key();
        let first = self.below(CORPORA.into());
        let mut ids = Vec::new();
        for n in 0..count {
            let op = self.claim_of((first + n) % u64::from(CORPORA), &event_key, None);
            match self.alone(op)? {
                Outcome::Claimed(claimed) => ids.push(claimed.event_id),
                other => return Err(format!("a claim is answered {other:?}")),
            }
        }
        Ok(ids)
    }

    fn corpus_of(&self, id: EventId) -> String {
        format!("c-{}", id.prefix().get())
    }

    fn retract(&self, id: EventId) -> Op {
        Op::Retract { corpus: self.corpus_of(id), id, reason: ReasonCode::Other }
    }

    /// A dispute of two rows, and the retraction of one: the row is disputed or tombstoned, and the other goes with it.
    fn race_for_a_row(&mut self, tally: &mut Tally) -> Result<(), String> {
        let ids = self.rows(2)?;
        let dispute = Op::Dispute { corpus: self.corpus_of(ids[0]), ids: ids.clone() };
        let of = self.below(2) as usize;
        let retract = self.retract(ids[of]);
        let (first, second) = if self.below(2) == 0 { (&dispute, &retract) } else { (&retract, &dispute) };
        let first_token = self.submit(first.clone());
        self.some_progress();
        let second_token = self.submit(second.clone());
        self.some_progress();
        let crashed = self.crashes(tally)?;
        self.settle()?;
        let states = [self.state(ids[of])?, self.state(ids[1 - of])?];
        *tally.happened.entry(format!("dispute and retraction: {states:?}")).or_default() += 1;
        let is_legal = match states {
            [RowState::Disputed, RowState::Disputed] | [RowState::Retracted, RowState::Registered] => true,
            // Neither was durable.
            [RowState::Registered, RowState::Registered] => crashed,
            _ => false,
        };
        let answers = [first_token, second_token].map(|token| self.answers.get(&token));
        let was_retracted = answers.iter().flatten().any(|answer| matches!(answer, Outcome::Retracted { .. }));
        if !is_legal || was_retracted && states[0] != RowState::Retracted {
            return Err(format!("the rows are {states:?} after {answers:?}"));
        }
        Ok(())
    }

    fn state(&self, id: EventId) -> Result<RowState, String> {
        self.found(id).map(|row| row.state)
    }

    fn an_open_dispute(&mut self) -> Option<(DisputeId, Vec<EventId>)> {
        let shard = self.machine.engine(0)?.shard();
        let all: Vec<_> = shard.disputes().open_ones().map(|d| (d.id, d.sides.ids().to_vec())).collect();
        if all.is_empty() { None } else { all.into_iter().nth(self.entropy.below(2) as usize) }
    }

    /// Merges, disputes, verdicts, retractions and reactivations of the same rows, all together.
    fn race_of_all(&mut self, tally: &mut Tally) -> Result<(), String> {
        let count = 2 + self.below(3);
        let ids = self.rows(count)?;
        self.pass_time(2 * SECOND_US)?;
        if self.below(3) == 0 {
            // Some that are disputed to begin with.
            self.alone(Op::Dispute { corpus: self.corpus_of(ids[0]), ids: ids.clone() })?;
        }
        if self.below(6) == 0 {
            let active = self.below(2) == 0;
            self.submit(Op::Incident(active));
        }
        let mut tokens = vec![self.submit(Op::Reconcile { dry_run: false })];
        for _ in 0..2 + self.below(6) {
            self.some_progress();
            let id = ids[self.entropy.below(count) as usize];
            match self.below(10) {
                0..4 => {
                    let retract = self.retract(id);
                    tokens.push(self.submit(retract));
                    tokens.push(self.submit(Op::Reactivate { id }));
                }
                4 => {
                    let retract = self.retract(id);
                    tokens.push(self.submit(retract));
                }
                5 | 6 => tokens.push(self.submit(Op::Dispute { corpus: self.corpus_of(id), ids: ids.clone() })),
                7 => {
                    let corpus = format!("c-{}", 1 + self.below(CORPORA.into()));
                    tokens.push(self.submit(Op::Reference { corpus, items: vec![(0, id)] }));
                }
                _ => {
                    let Some((dispute, sides)) = self.an_open_dispute() else { continue };
                    let canonical = self.below(sides.len() as u64) as usize;
                    let is_dismissal = self.below(2) == 0;
                    let verdict = |i| match i == canonical {
                        _ if is_dismissal => Verdict::Dismissed,
                        true => Verdict::Canonical,
                        false => Verdict::References,
                    };
                    let verdicts = sides.iter().enumerate().map(|(i, id)| (*id, verdict(i))).collect();
                    let escalates = self.below(4) == 0;
                    let op = if escalates { Op::Escalate { dispute } } else { Op::Arbitrate { dispute, verdicts } };
                    tokens.push(self.submit(op));
                }
            }
        }
        let crashed = self.crashes(tally)?;
        self.settle()?;
        if !crashed && let Some(token) = tokens.iter().find(|token| !self.answers.contains_key(token)) {
            return Err(format!("{token} is not answered"));
        }
        for id in &ids {
            *tally.happened.entry(format!("all together: {:?}", self.state(*id)?)).or_default() += 1;
        }
        Ok(())
    }

    // ---- What holds at rest, whatever happened.

    fn check(&self) -> Result<(), String> {
        let first = self.machine.engine(0).ok_or("shard 0 is down")?.shard();
        let disputes: Vec<_> = first.disputes().all().cloned().map(plain_dispute).collect();
        for engine in self.machine.engines() {
            let shard = engine.shard();
            let own: Vec<_> = shard.disputes().all().cloned().map(plain_dispute).collect();
            let agrees = own == disputes
                && shard.registry().corpora() == first.registry().corpora()
                && shard.globals_applied() == first.globals_applied()
                && shard.passes().is_under_way() == first.passes().is_under_way();
            if !agrees {
                return Err(format!("shard {} differs from shard 0", shard.number()));
            }
        }
        let incident = first.registry().incident_active();
        for dispute in &disputes {
            let is_at_rest = match dispute.state {
                DisputeState::Detect => incident,
                DisputeState::Quarantine | DisputeState::Canonicalise => false,
                _ => true,
            };
            if !is_at_rest {
                return Err(format!("a dispute stays in {}", dispute.state.name()));
            }
            for id in dispute.sides.ids() {
                let holds = matches!(dispute.state, DisputeState::Arbitrate | DisputeState::Escalate);
                let row = self.found(*id)?;
                let is_held = row.state == RowState::Disputed && row.dispute == Some(dispute.id);
                if is_held != holds {
                    let state = dispute.state.name();
                    return Err(format!("{id} is {:?} of {:?}, and its dispute {state}", row.state, row.dispute));
                }
            }
        }
        for corpus in first.registry().corpora() {
            let number = usize::from(corpus.shard);
            let shard = self.machine.engine(number).ok_or("a shard is down")?.shard();
            let counted = self.machine.fetch(number, |e| e.shard().rows().count_totals(corpus.prefix))?;
            if shard.rows().totals(corpus.prefix) != counted {
                return Err(format!("the totals of {} are not what its rows add up to", corpus.name));
            }
            for row in self.machine.rows_of(number, corpus.prefix)? {
                if row.state == RowState::Disputed && row.dispute.and_then(|id| first.disputes().get(id)).is_none() {
                    return Err(format!("{} is in a dispute that is not there", row.event_id));
                }
                self.check_alias(row.event_id)?;
                self.check_history(row.event_id)?;
            }
        }
        Ok(())
    }

    fn found(&self, id: EventId) -> Result<crate::shard::rows::Found, String> {
        let number = usize::from(self.shard_of(id.prefix()));
        let found = self.machine.fetch(number, |engine| engine.shard().rows().get(id))?;
        found.ok_or_else(|| format!("{id} is lost"))
    }

    fn check_alias(&self, id: EventId) -> Result<(), String> {
        let mut at = self.found(id)?;
        for _ in 0..HOPS_MAX {
            match (at.state, at.canonical_id) {
                (RowState::Referenced, Some(canonical)) => at = self.found(canonical)?,
                (RowState::Referenced, None) => return Err(format!("{id} is an alias of nothing")),
                _ => return Ok(()),
            }
        }
        Err(format!("the aliases from {id} on never end"))
    }

    /// A merge does nothing to a row that has changed since it was planned.
    fn check_history(&self, id: EventId) -> Result<(), String> {
        let number = usize::from(self.shard_of(id.prefix()));
        let found = self.found(id)?;
        let history = |engine: &Engine| engine.shard().rows().history(&found, 0, usize::MAX);
        let (entries_at, _) = self.machine.fetch(number, history)?;
        let mut changed_at = 0;
        for at in entries_at {
            let (position, kind, body) = self.machine.read_record(number, at)?;
            let record = Record::decode(kind, &body).map_err(|e| e.to_string())?;
            match record.entry {
                Entry::Reference { .. } | Entry::Dispute { .. } => continue,
                Entry::DisputeStep { dispute, rows: changed, .. } => {
                    let sides =
                        self.machine.engine(number).and_then(|e| Some(e.shard().disputes().get(dispute)?.sides));
                    let place = sides.and_then(|sides| sides.ids().iter().position(|side| *side == id));
                    let place = place.ok_or("a step of a dispute in the history of a row that it is not about")?;
                    if changed & (1 << place) == 0 {
                        continue;
                    }
                }
                Entry::Reconcile { merges, .. } => {
                    let merge = entry::merges(merges).find(|merge| merge.alias == id && merge.applied);
                    let planned = merge.ok_or("a merge in the history of a row that it does not name")?.position;
                    if planned != changed_at {
                        return Err(format!(
                            "{id} was merged as of position {planned}, and had changed at {changed_at}"
                        ));
                    }
                }
                _ => {}
            }
            changed_at = position;
        }
        Ok(())
    }
}
