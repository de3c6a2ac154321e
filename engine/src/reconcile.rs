//! A pass of reconciliation: shard 0 asks every shard which event keys have something new, gathers the rows of those keys from
//! all of them, plans the merges, and logs them for every shard to apply. A dry run goes the same way and logs nothing.
//!
//! ```text
//!  time of every shard ─▶ begin ─▶ range of hashes by range: due keys ─▶ how many rows ─▶ of those with several: the rows ─▶
//!                                      plan ─▶ merges ─▶ applied?
//!                                  for each shard, page by page: links ─▶ where they lead ─▶ orphans ─▶ done
//! ```

use crate::command::{Fact, Orphan, PassReport, REPORT_LINES_MAX, RowFact, SUSPECT_ROWS_MAX, Suspect};
use crate::corpus::Prefix;
use crate::id::EventId;
use crate::log::entry::Merge;
use crate::peer::{Answer, Ask, Candidate, Link};
use crate::row::{Lifecycle, RowState};
use crate::shard::passes::KEY_ROWS_MAX;
use hashbrown::HashMap;

/// Rows of event keys that are asked for at once, about.
const ROWS_AT_ONCE: u64 = if cfg!(test) { 16 } else { 4_096 };
/// Aliases that lead to a canonical row, at most.
const HOPS_MAX: u32 = 64;

/// What one event key's rows come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Aliases with their canonical rows.
    pub merges: Vec<Merge>,
    /// Rows of one corpus with the same key.
    pub suspects: Vec<Suspect>,
    /// Rows of two corpora have it.
    pub is_group: bool,
    /// A dispute or a stop keeps it from being merged.
    pub is_left_alone: bool,
    /// Rows that are aliases already; none while every row's window is open.
    pub aliases: u64,
}

/// Plans the merges of one event key: the first claim stands for the event, and every row of another corpus that happened
/// within the tolerance of it becomes an alias; then again with what remains.
pub fn plan(rows: &[Candidate], tolerance_us: i64, is_dismissed: impl Fn(EventId, EventId) -> bool) -> Plan {
    let mut plan = Plan::default();
    let is_due = rows.iter().any(|r| r.is_closed);
    if is_due {
        plan.aliases = rows.iter().filter(|r| r.state == RowState::Referenced).count() as u64;
    }
    let mut rest: Vec<_> = rows.iter().filter(|r| r.state == RowState::Registered && r.is_closed).collect();
    rest.sort_unstable_by_key(|r| (r.claim_timestamp_us, r.claim_sequence, r.event_id.prefix()));
    // What is disputed belongs to the group that it holds.
    let disputed = rows.iter().filter(|r| is_due && r.state == RowState::Disputed);
    let mut corpora = rest.iter().copied().chain(disputed).map(|r| r.event_id.prefix());
    let first = corpora.next();
    plan.is_group = corpora.any(|prefix| Some(prefix) != first);
    let mut by_corpus: Vec<Suspect> = Vec::new();
    for row in &rest {
        let prefix = row.event_id.prefix();
        match by_corpus.iter_mut().find(|suspect| suspect.prefix == prefix) {
            Some(suspect) => suspect.event_ids.push(row.event_id),
            None => by_corpus.push(Suspect { prefix, event_ids: vec![row.event_id] }),
        }
    }
    plan.suspects = by_corpus.into_iter().filter(|suspect| suspect.event_ids.len() > 1).collect();
    plan.suspects.iter_mut().for_each(|suspect| suspect.event_ids.truncate(SUSPECT_ROWS_MAX));
    let holds = |row: &Candidate| row.state == RowState::Disputed || row.state == RowState::Registered && row.is_frozen;
    if rows.len() > KEY_ROWS_MAX || rows.iter().any(holds) {
        plan.is_left_alone = plan.is_group;
        return plan;
    }
    while let Some((first, others)) = rest.split_first() {
        let mut remaining = Vec::new();
        for row in others {
            let is_other_corpus = row.event_id.prefix() != first.event_id.prefix();
            let is_near = (row.occurred_at_us - first.occurred_at_us).abs() <= tolerance_us;
            if is_other_corpus && is_near && !is_dismissed(first.event_id, row.event_id) {
                let (alias, canonical, position) = (row.event_id, first.event_id, row.position);
                plan.merges.push(Merge { alias, canonical, position, applied: false });
            } else {
                remaining.push(*row);
            }
        }
        rest = remaining;
    }
    plan
}

/// What a pass wants done next.
#[derive(Debug)]
pub enum Todo {
    /// Ask these shards; their answers all come before the pass is asked again.
    Ask(Vec<(u16, Ask)>),
    /// Log the beginning; the moment that it goes by.
    Begin(i64),
    /// Log these merges, and come back when every shard has applied them.
    Merge(Vec<Merge>),
    /// Log the end, and come back when every shard has it.
    Done,
    /// It is over.
    Report,
}

#[derive(Debug)]
enum Stage {
    Time,
    Begun,
    Due,
    Counts { hashes: Vec<u64> },
    Keys,
    Merged { merges: Vec<Merge> },
    Checked,
    Linked { shard: u16, after: Option<EventId> },
    Chased { shard: u16, after: Option<EventId>, open: Vec<Chase>, hops: u32 },
    Done,
    Report,
}

/// A link on its way to where it leads.
#[derive(Debug, Clone, Copy)]
struct Chase {
    link: Link,
    at: EventId,
}

/// A pass under way.
#[derive(Debug)]
pub struct Pass {
    shard_count: u16,
    is_full: bool,
    stage: Stage,
    tolerance_us: i64,
    answers: Vec<(u16, Answer)>,
    /// The range of hashes that is looked at.
    range: (u64, u64),
    /// Event keys of the range with several rows, the last first, and how many those are: what is still to be looked at.
    keys: Vec<(u64, u64)>,
    /// What it has found so far.
    pub report: PassReport,
}

impl Pass {
    /// A pass that begins, or begins to plan.
    pub fn new(shard_count: u16, dry_run: bool, is_full: bool, tolerance_us: i64, at_us: i64) -> Pass {
        Pass {
            shard_count,
            is_full,
            stage: Stage::Time,
            tolerance_us,
            answers: Vec::new(),
            range: (0, u64::MAX),
            keys: Vec::new(),
            report: PassReport { dry_run, at_us, ..PassReport::default() },
        }
    }

    /// A pass that began before a crash.
    pub fn resumed(shard_count: u16, pass: u64, at_us: i64, tolerance_us: i64) -> Pass {
        let mut resumed = Pass::new(shard_count, false, true, tolerance_us, at_us);
        resumed.report.pass = pass;
        resumed.stage = Stage::Begun;
        resumed
    }

    /// Takes an answer.
    pub fn answered(&mut self, shard: u16, answer: Answer) {
        self.answers.push((shard, answer));
    }

    /// The moment that it goes by; known once it has begun.
    fn at_us(&self) -> i64 {
        self.report.at_us
    }

    /// Goes on, once what it wanted is done.
    pub fn next(&mut self, shard_of: &dyn Fn(Prefix) -> u16, is_dismissed: &dyn Fn(EventId, EventId) -> bool) -> Todo {
        let answers = std::mem::take(&mut self.answers);
        match std::mem::replace(&mut self.stage, Stage::Report) {
            Stage::Time if answers.is_empty() => {
                self.stage = Stage::Time;
                Todo::Ask((0..self.shard_count).map(|shard| (shard, Ask::Time)).collect())
            }
            Stage::Time => {
                for (_, answer) in &answers {
                    if let Answer::Time(at_us) = answer {
                        self.report.at_us = self.report.at_us.max(*at_us);
                    }
                }
                if self.report.dry_run {
                    self.stage = Stage::Due;
                    return self.next(shard_of, is_dismissed);
                }
                self.stage = Stage::Begun;
                Todo::Begin(self.at_us())
            }
            Stage::Begun => {
                self.stage = Stage::Due;
                self.next(shard_of, is_dismissed)
            }
            Stage::Due if answers.is_empty() => {
                self.stage = Stage::Due;
                let (from, to) = self.range;
                self.ask_all(&Ask::Due { at_us: self.at_us(), from, to, is_full: self.is_full })
            }
            Stage::Due => {
                let hashes = self.take_due(answers);
                if hashes.is_empty() {
                    return self.next_keys(shard_of, is_dismissed);
                }
                self.stage = Stage::Counts { hashes: hashes.clone() };
                self.ask_all(&Ask::Counts { hashes })
            }
            Stage::Counts { hashes } => {
                let mut totals = vec![0; hashes.len()];
                for (_, answer) in &answers {
                    if let Answer::Counts(counts) = answer {
                        totals.iter_mut().zip(counts).for_each(|(total, count)| *total += u64::from(*count));
                    }
                }
                self.keys = hashes.into_iter().zip(totals).filter(|(_, rows)| *rows > 1).rev().collect();
                self.next_keys(shard_of, is_dismissed)
            }
            Stage::Keys => {
                let merges = self.plan_keys(answers, is_dismissed);
                if merges.is_empty() || self.report.dry_run {
                    self.report.counts.merged += merges.len() as u64;
                    self.list(merges);
                    return self.next_keys(shard_of, is_dismissed);
                }
                self.stage = Stage::Merged { merges: merges.clone() };
                Todo::Merge(merges)
            }
            Stage::Merged { merges } => {
                // Every shard has had its say: what became of them?
                let mut by_shard: HashMap<u16, Vec<EventId>> = HashMap::new();
                for merge in &merges {
                    by_shard.entry(shard_of(merge.alias.prefix())).or_default().push(merge.alias);
                }
                let mut asks: Vec<_> = by_shard.into_iter().map(|(shard, ids)| (shard, Ask::Rows(ids))).collect();
                asks.sort_by_key(|(shard, _)| *shard);
                self.list(merges);
                self.stage = Stage::Checked;
                Todo::Ask(asks)
            }
            Stage::Checked => {
                for fact in facts(&answers) {
                    match fact.row {
                        Some(RowFact { state: RowState::Referenced, .. }) => self.report.counts.merged += 1,
                        _ => self.report.counts.refused += 1,
                    }
                }
                self.next_keys(shard_of, is_dismissed)
            }
            Stage::Linked { shard, .. } if shard == self.shard_count => {
                if self.report.dry_run {
                    return Todo::Report;
                }
                self.stage = Stage::Done;
                Todo::Done
            }
            Stage::Linked { shard, after } => match answers.into_iter().next() {
                None => {
                    self.stage = Stage::Linked { shard, after };
                    Todo::Ask(vec![(shard, Ask::Linked { after })])
                }
                Some((_, Answer::Linked { rows, after })) => {
                    let mut open = Vec::new();
                    for link in rows {
                        self.follow(Chase { link, at: link.event_id }, link.fact, &mut open);
                    }
                    self.stage = Stage::Chased { shard, after, open, hops: 0 };
                    self.chase(shard_of)
                }
                Some(_) => Todo::Report,
            },
            Stage::Chased { shard, after, open, hops } => {
                let known: HashMap<_, _> = facts(&answers).map(|fact| (fact.event_id, *fact)).collect();
                let mut still_open = Vec::new();
                for chase in open {
                    let fact = known.get(&chase.at).copied().unwrap_or(Fact { event_id: chase.at, row: None });
                    self.follow(chase, fact, &mut still_open);
                }
                if hops + 1 >= HOPS_MAX {
                    still_open.clear();
                }
                self.stage = Stage::Chased { shard, after, open: still_open, hops: hops + 1 };
                self.chase(shard_of)
            }
            Stage::Done | Stage::Report => Todo::Report,
        }
    }

    fn ask_all(&self, ask: &Ask) -> Todo {
        Todo::Ask((0..self.shard_count).map(|shard| (shard, ask.clone())).collect())
    }

    /// The event keys to look at, sorted, as far as every shard has come.
    fn take_due(&mut self, answers: Vec<(u16, Answer)>) -> Vec<u64> {
        let mut due = Vec::new();
        for (_, answer) in answers {
            if let Answer::Due { keys, through } = answer {
                self.range.1 = self.range.1.min(through);
                due.extend(keys);
            }
        }
        due.retain(|(hash, _)| *hash <= self.range.1);
        self.report.counts.rows += due.iter().map(|(_, rows)| u64::from(*rows)).sum::<u64>();
        let mut hashes: Vec<_> = due.into_iter().map(|(hash, _)| hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        hashes
    }

    /// Goes on with keys of the range, or with the next range, or behind the last one with links.
    fn next_keys(&mut self, shard_of: &dyn Fn(Prefix) -> u16, is_dismissed: &dyn Fn(EventId, EventId) -> bool) -> Todo {
        let (mut hashes, mut rows) = (Vec::new(), 0);
        while let Some((hash, more)) = self.keys.pop_if(|_| rows < ROWS_AT_ONCE) {
            hashes.push(hash);
            rows += more.min(KEY_ROWS_MAX as u64);
        }
        if !hashes.is_empty() {
            self.stage = Stage::Keys;
            return self.ask_all(&Ask::Keys { at_us: self.at_us(), hashes });
        }
        self.stage = match self.range {
            (_, u64::MAX) => Stage::Linked { shard: 0, after: None },
            (from, through) => {
                // Shards say how wide a range may be; the next one may be wider.
                let width = (through - from).saturating_add(1).saturating_mul(2);
                self.range = (through + 1, through.saturating_add(width));
                Stage::Due
            }
        };
        self.next(shard_of, is_dismissed)
    }

    /// Goes on with what the links of a page lead to, or with the next page.
    fn chase(&mut self, shard_of: &dyn Fn(Prefix) -> u16) -> Todo {
        let Stage::Chased { shard, after, open, .. } = &self.stage else { return Todo::Report };
        if open.is_empty() {
            let next = if after.is_some() { *shard } else { shard + 1 };
            self.stage = Stage::Linked { shard: next, after: *after };
            return self.next(shard_of, &|_, _| false);
        }
        let mut by_shard: HashMap<u16, Vec<EventId>> = HashMap::new();
        for chase in open {
            by_shard.entry(shard_of(chase.at.prefix())).or_default().push(chase.at);
        }
        let mut asks: Vec<_> = by_shard.into_iter().map(|(shard, ids)| (shard, Ask::Rows(ids))).collect();
        asks.sort_by_key(|(shard, _)| *shard);
        Todo::Ask(asks)
    }

    /// Follows a link by one row: on, or to its end.
    fn follow(&mut self, chase: Chase, fact: Fact, open: &mut Vec<Chase>) {
        let link = chase.link;
        let own = link.fact.row.map(|row| row.state);
        let state = match fact.row {
            Some(row) => match row.canonical_id {
                Some(canonical_id) => {
                    open.push(Chase { at: canonical_id, ..chase });
                    return;
                }
                None if row.expires_at_us <= self.at_us() => Lifecycle::Expired,
                None => row.state.lifecycle(),
            },
            None => Lifecycle::Expired,
        };
        // A disputed row is left alone: its end is not known yet.
        if matches!(state, Lifecycle::Registered | Lifecycle::Disputed) {
            return;
        }
        self.report.counts.orphans += 1;
        if self.report.orphans.len() < REPORT_LINES_MAX {
            self.report.orphans.push(Orphan {
                event_id: link.event_id,
                canonical_id: chase.at,
                state,
                references: link.references,
                is_alias: own == Some(RowState::Referenced),
            });
        }
    }

    fn plan_keys(
        &mut self,
        answers: Vec<(u16, Answer)>,
        is_dismissed: &dyn Fn(EventId, EventId) -> bool,
    ) -> Vec<Merge> {
        let mut by_key: HashMap<u64, Vec<Candidate>> = HashMap::new();
        for (_, answer) in answers {
            if let Answer::Candidates(rows) = answer {
                for row in rows {
                    by_key.entry(row.key_hash).or_default().push(row);
                }
            }
        }
        let mut hashes: Vec<_> = by_key.iter().filter(|(_, rows)| rows.len() > 1).map(|(hash, _)| *hash).collect();
        hashes.sort_unstable();
        let mut merges = Vec::new();
        for hash in hashes {
            let plan = plan(&by_key[&hash], self.tolerance_us, is_dismissed);
            let counts = &mut self.report.counts;
            counts.groups += u64::from(plan.is_group);
            counts.left_alone += u64::from(plan.is_left_alone);
            counts.suspects += plan.suspects.len() as u64;
            counts.aliases += plan.aliases;
            let room = REPORT_LINES_MAX.saturating_sub(self.report.suspects.len());
            self.report.suspects.extend(plan.suspects.into_iter().take(room));
            merges.extend(plan.merges);
        }
        merges
    }

    fn list(&mut self, merges: Vec<Merge>) {
        let room = REPORT_LINES_MAX.saturating_sub(self.report.merges.len());
        self.report.merges.extend(merges.into_iter().take(room));
    }
}

fn facts(answers: &[(u16, Answer)]) -> impl Iterator<Item = &Fact> {
    answers.iter().flat_map(|(_, answer)| match answer {
        Answer::Facts(facts) => facts.as_slice(),
        _ => &[],
    })
}
