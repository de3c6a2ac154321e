//! One run of the model test: a ledger and the model side by side.

use super::compare::compare;
use super::load::{Load, settings};
use super::reference::{Hint, Model};
use super::words::{Asked, Op, plain, repeated};
use crate::command::Outcome;
use crate::entropy::Entropy;
use crate::error::Code;
use crate::mutant::Mutant;
use crate::policy::{Policy, Role};
use crate::simulation::machine::Machine;
use crate::time::{DAY_US, HOUR_US, Now, Quarter, SECOND_US};
use std::collections::BTreeMap;

const START_US: i64 = 1_767_225_600 * SECOND_US;
/// Days of silence after which a clock is not believed at start.
const DOWNTIME_MAX_US: i64 = 90 * DAY_US;
/// Steps that a failure tells of.
const STORY_STEPS: usize = 30;
const STORY_LINE_CHARS: usize = 500;

/// What happened in runs.
#[derive(Debug, Default)]
pub struct Tally {
    pub steps: u64,
    pub crashes: u64,
    pub happened: BTreeMap<String, u64>,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.steps += other.steps;
        self.crashes += other.crashes;
        for (what, count) in &other.happened {
            *self.happened.entry(what.clone()).or_default() += count;
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        *self.happened.entry(what.into()).or_default() += 1;
    }

    fn note_answer(&mut self, asked: &Asked, outcome: &Outcome) {
        let name = asked.op.name();
        let mut note = |code: Option<Code>| match code {
            None => self.note(format!("{name}: done")),
            Some(code) => self.note(format!("{name}: {code:?}")),
        };
        match outcome {
            Outcome::Refused(refusal) => note(Some(refusal.code)),
            Outcome::ClaimedItems(items) => {
                items.iter().for_each(|item| note(item.as_ref().err().map(|refusal| refusal.code)));
            }
            Outcome::ReferencedItems(items) => {
                items.iter().for_each(|(_, item)| note(item.as_ref().err().map(|refusal| refusal.code)));
            }
            _ => note(None),
        }
    }
}

/// See the module.
pub struct Run {
    machine: Machine,
    model: Model,
    load: Load,
    entropy: Entropy,
    next_token: u64,
    story: Vec<String>,
    pub tally: Tally,
}

impl Run {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Result<Run, String> {
        let mut entropy = Entropy::from_seed_u64(seed);
        let shard_count = 1 + entropy.below(3) as u16;
        let machine = Machine::new(seed, Entropy::from_seed_u64(!seed), shard_count, mutant, START_US);
        let mut run = Run {
            machine,
            model: Model::new(shard_count, START_US),
            load: Load::default(),
            entropy,
            next_token: 0,
            story: Vec::new(),
            tally: Tally::default(),
        };
        run.model.settings.grants.clear();
        let toml = Policy::new(settings(&mut run.entropy))?.to_toml();
        let asked = run.load.of_owner(&run.model, Op::Configure { toml });
        run.ask(&asked)?;
        Ok(run)
    }

    /// The last steps, for whoever looks at a failure.
    pub fn story(&self) -> String {
        self.story[self.story.len().saturating_sub(STORY_STEPS)..].join("\n")
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.entropy.below(bound)
    }

    fn tell(&mut self, what: impl Into<String>) {
        if self.story.len() > 4 * STORY_STEPS {
            self.story.drain(..2 * STORY_STEPS);
        }
        let what: String = what.into().chars().take(STORY_LINE_CHARS).collect();
        self.story.push(format!("  at {} {what}", crate::time::rfc3339(self.machine.now.wall_us)));
    }

    /// One step, and the comparison after it.
    pub fn step(&mut self) -> Result<(), String> {
        self.tally.steps += 1;
        match self.below(1_000) {
            0..8 => self.crash_at_rest()?,
            8..30 => self.crash_amid()?,
            30..130 => self.pass_time()?,
            130..133 => self.leap()?,
            _ => {
                let little_us = [0, 0, 1, 300, 7_000][self.entropy.below(5) as usize];
                self.advance(little_us)?;
                let asked = self.load.next(&self.model, &mut self.entropy);
                self.ask(&asked)?;
            }
        }
        for event in std::mem::take(&mut self.model.events) {
            self.tally.note(event);
        }
        compare(&self.machine, &self.model)
    }

    // ---- Asking.

    fn submit(&mut self, asked: &Asked) -> u64 {
        self.next_token += 1;
        let machine = &mut self.machine;
        asked.lend(self.next_token, |request| machine.submit(asked.shard, request));
        self.next_token
    }

    /// The one answer, once everything has come to rest.
    fn answer(&mut self, token: u64) -> Result<Outcome, String> {
        self.machine.settle()?;
        let mut replies = self.machine.take_replies();
        match (replies.pop(), replies.pop()) {
            (Some((_, reply)), None) if reply.token == token => Ok(reply.outcome),
            (last, other) => Err(format!("one answer to {token} is due, got {other:?} and {last:?}")),
        }
    }

    /// Asks, and compares the answer with the model's.
    fn ask(&mut self, asked: &Asked) -> Result<(), String> {
        self.tell(format!("{asked:?}"));
        let token = self.submit(asked);
        let found = self.answer(token)?;
        self.expect_answer(asked, found)
    }

    fn expect_answer(&mut self, asked: &Asked, found: Outcome) -> Result<(), String> {
        let known = self.model.events.len();
        let expected = as_short(self.model.apply(asked, &hint(&found, None)), &found);
        let is_again = self.model.events[known..].contains(&"a retry is answered");
        let found = if is_again { repeated(plain(found)) } else { plain(found) };
        self.model.move_disputes();
        self.tally.note_answer(asked, &expected);
        if found == expected {
            return Ok(());
        }
        Err(format!("the answer is\n         {found:?}\nexpected {expected:?}"))
    }

    // ---- Time.

    fn set_clock(&mut self, us: i64) {
        let now = self.machine.now;
        self.machine.now = Now { wall_us: now.wall_us + us, boot_us: now.boot_us + us };
    }

    /// Lets time pass, and what it makes due happen. A pass and the next deferred dispute are never due together: then which
    /// is first would be open.
    fn advance(&mut self, us: i64) -> Result<(), String> {
        let us = self.until_one_is_due(us)?;
        if us == 0 {
            return Ok(());
        }
        self.set_clock(us);
        self.model.now_us += us;
        self.machine.tick();
        self.machine.settle()?;
        self.model.tick();
        Ok(())
    }

    fn until_one_is_due(&mut self, us: i64) -> Result<i64, String> {
        let until_us = self.model.now_us + us;
        if !(self.model.is_pass_due(until_us) && self.model.is_move_due(until_us)) {
            return Ok(us);
        }
        let asked = self.load.of_owner(&self.model, Op::Reconcile { dry_run: false });
        self.ask(&asked)?;
        Ok(us.min(self.model.settings.reconcile_interval_us - 1))
    }

    fn pass_time(&mut self) -> Result<(), String> {
        let some = |entropy: &mut Entropy, us: i64| 1 + entropy.below(us as u64) as i64;
        let entropy = &mut self.entropy;
        let minute_us = 60 * SECOND_US;
        let us = match entropy.below(200) {
            0..50 => some(entropy, 2 * minute_us),
            50..90 => 5 * minute_us + some(entropy, 12 * minute_us),
            90..140 => self.us_to_an_edge(),
            140..180 => some(entropy, 3 * HOUR_US),
            180..190 => some(entropy, 3 * DAY_US),
            190..196 => some(entropy, 40 * DAY_US),
            196..199 => Quarter::of(self.model.now_us).end_us() - self.model.now_us - some(entropy, 2) + 1,
            _ => 366 * DAY_US,
        };
        self.tell(format!("{us} us pass"));
        if self.below(12) == 0 { self.crash_while_time_passes(us) } else { self.advance(us) }
    }

    /// To a moment at which something just is, or just is not: the end of a window, of a retention, of a quarter, of a minute.
    fn us_to_an_edge(&mut self) -> i64 {
        let now_us = self.model.now_us;
        let mut edges: Vec<i64> = vec![Quarter::of(now_us).end_us(), (now_us / 60_000_000 + 1) * 60_000_000];
        edges.extend(self.model.rows.iter().map(|row| self.model.closes_us(row)));
        edges.push(self.model.disputes_moved_us + 60 * SECOND_US);
        edges.retain(|edge| *edge > now_us + 1);
        if edges.is_empty() {
            return 1;
        }
        // Soon, rather than late.
        edges.sort_unstable();
        let index = self.entropy.below(edges.len().min(4) as u64) as usize;
        edges[index] - now_us - self.entropy.below(2) as i64
    }

    /// The wall clock leaps ahead of the steady one: nothing is believed until somebody confirms it.
    fn leap(&mut self) -> Result<(), String> {
        let us = HOUR_US + 2 + self.entropy.below(HOUR_US as u64) as i64;
        let until_us = self.model.now_us + us;
        if self.model.is_pass_due(until_us) && self.model.is_move_due(until_us) || self.model.waiting_disputes() > 0 {
            return Ok(());
        }
        self.tell(format!("the clock leaps by {us} us"));
        self.machine.now.wall_us += us;
        self.machine.tick();
        self.machine.settle()?;
        self.model.now_us += us;
        self.confirm_clock()
    }

    /// The clock is not believed: claims are refused, until it is confirmed.
    fn confirm_clock(&mut self) -> Result<(), String> {
        for corpus in self.model.corpora.clone() {
            let item = super::words::Item {
                event_key: "a leap".into(),
                occurred_us: self.model.now_us,
                category: "made-up".into(),
                hosting: String::new(),
            };
            let op = Op::Claim { corpus: corpus.name, items: vec![item], unless_us: None };
            let asked = self.load.of_owner(&self.model, op);
            let token = self.submit(&asked);
            let found = self.answer(token)?;
            self.tally.note_answer(&asked, &found);
            if !matches!(&found, Outcome::Refused(refusal) if refusal.code == Code::ClockSuspect) {
                return Err(format!("a claim at a time that is not believed is answered {found:?}"));
            }
            self.model.users.insert((asked.shard, asked.who.uid), asked.user);
        }
        let asked = self.load.of_owner(&self.model, Op::ConfirmClock);
        self.ask(&asked)?;
        self.machine.tick();
        self.machine.settle()?;
        self.model.tick();
        Ok(())
    }

    // ---- Crashes.

    /// The machine dies, perhaps again while it recovers, and comes back after `us`.
    fn crash(&mut self, us: i64) -> Result<(), String> {
        self.tell(format!("a crash, and {us} us"));
        let is_suspect = self.is_long_idle(us);
        let is_cut = self.below(4) != 0;
        self.machine.crash(is_cut, us, us);
        self.tally.crashes += 1;
        while self.below(4) == 0 {
            let ops = self.below(12);
            self.machine.recover(Some(ops))?;
            self.machine.crash(is_cut, 0, 0);
            self.tally.crashes += 1;
        }
        self.machine.recover(None)?;
        self.model.looked_at_hour.clear();
        if !is_suspect {
            self.machine.tick();
            self.machine.settle()?;
        }
        self.machine.take_replies();
        Ok(())
    }

    /// Nothing is under way.
    fn crash_at_rest(&mut self) -> Result<(), String> {
        let us = self.crash_us();
        if !self.stays_quiet(us) {
            return Ok(());
        }
        let is_suspect = self.is_long_idle(us);
        self.crash(us)?;
        self.model.now_us += us;
        if is_suspect {
            return self.confirm_clock();
        }
        self.model.tick();
        Ok(())
    }

    /// Whether the clock would not be believed at a start after so long.
    fn is_long_idle(&self, us: i64) -> bool {
        let last_us = self.machine.engines().map(|engine| engine.shard().last_us()).max().unwrap_or(0);
        self.machine.now.wall_us + us - last_us > DOWNTIME_MAX_US
    }

    fn crash_us(&mut self) -> i64 {
        [1, 1_000, 50_000, 2 * SECOND_US][self.entropy.below(4) as usize]
    }

    /// Whether nothing becomes due by itself within so long.
    fn stays_quiet(&self, us: i64) -> bool {
        let until_us = self.model.now_us + us;
        !self.model.is_pass_due(until_us) && !self.model.is_move_due(until_us)
    }

    /// A while in which anything may complete, and nothing need.
    fn some_progress(&mut self) {
        for _ in 0..self.below(40) {
            match self.below(3) {
                0 => self.machine.complete_one(),
                1 => self.machine.deliver_one(),
                _ => self.machine.pump(),
            }
        }
    }

    /// A request is under way; afterwards it is sent again with its key.
    fn crash_amid(&mut self) -> Result<(), String> {
        let mut asked = self.load.next(&self.model, &mut self.entropy);
        (asked.correlation, asked.who, asked.user) = (0, super::load::OWNER, "owner");
        let us = self.crash_us();
        // A key that is too old by then would tell nothing.
        if ((asked.key >> 80) as i64 * 1_000) + DAY_US < self.model.now_us + us {
            asked.key = self.load.key(self.model.now_us);
        }
        // What the daemon does by itself behind it would happen before or after the crash.
        let sets_off = {
            let mut after = self.model.clone();
            after.apply(&asked, &Hint::default());
            let later_us = after.now_us + us;
            let by_itself = after.is_pass_due(later_us) || after.is_move_due(later_us);
            by_itself && !matches!(asked.op, Op::Dispute { .. })
        };
        if !asked.op.is_mutation() || sets_off || !self.stays_quiet(us) || self.is_long_idle(us) {
            return self.ask(&asked);
        }
        self.tell(format!("with a crash amid it: {asked:?}"));
        let at_us = self.model.now_us;
        let token = self.submit(&asked);
        self.some_progress();
        let answered = self.machine.take_replies().pop();
        if let Some((_, reply)) = answered {
            if reply.token != token {
                return Err(format!("an answer to {} instead of {token}", reply.token));
            }
            self.tally.note("a crash behind the answer");
            self.expect_answer(&asked, reply.outcome)?;
            self.crash(us)?;
        } else {
            self.crash(us)?;
            self.tell("and again");
            let token = self.submit(&asked);
            let found = self.answer(token)?;
            self.resolve(&asked, found, at_us, us)?;
        }
        self.model.now_us = at_us + us;
        self.model.tick();
        self.adopt(at_us)
    }

    /// The retry's answer says whether the request had its effect before the crash.
    fn resolve(&mut self, asked: &Asked, found: Outcome, at_us: i64, us: i64) -> Result<(), String> {
        let before: Vec<bool> = times(asked, &found).into_iter().map(|time| time == Some(at_us)).collect();
        if before.contains(&true) {
            self.tally.note("an effect outlives a crash before its answer");
            self.model.apply(asked, &hint(&found, Some(before)));
            self.model.move_disputes();
            self.model.looked_at_hour.clear();
        } else {
            self.tally.note("an effect is lost in a crash before its answer");
        }
        self.model.now_us = at_us + us;
        self.model.tick();
        let expected = repeated(self.model.apply(asked, &hint(&found, None)));
        let found = repeated(plain(found));
        if found == expected {
            return Ok(());
        }
        Err(format!("the retry is answered\n         {found:?}\nexpected {expected:?}"))
    }

    fn crash_while_time_passes(&mut self, us: i64) -> Result<(), String> {
        let us = self.until_one_is_due(us)?;
        let (from_us, first_us) = (self.model.now_us, self.model.now_us + us);
        let then_us = 1 + self.crash_us();
        let second_us = first_us + then_us;
        let (pass, moves) = (self.model.is_pass_due(second_us), self.model.is_move_due(second_us));
        if us == 0 || pass && moves || self.is_long_idle(us + then_us) {
            return self.advance(us);
        }
        self.set_clock(us);
        self.machine.tick();
        self.some_progress();
        self.crash(then_us)?;
        let shard = self.machine.engine(0).ok_or("shard 0 is down")?.shard();
        // What began before the crash goes by the time before it.
        let began_us = match (pass, moves) {
            (true, _) => shard.passes().begun().map(|mark| mark.at_us),
            (_, true) => Some(shard.disputes().moved_at_us()),
            _ => None,
        };
        let began_us = began_us.filter(|at_us| *at_us == first_us);
        self.tally.note(if began_us.is_some() { "a crash amid what began by itself" } else { "a crash before that" });
        self.model.now_us = from_us;
        if let Some(began_us) = began_us {
            self.model.now_us = began_us;
            self.model.tick();
        }
        self.model.now_us = second_us;
        self.model.tick();
        self.adopt(first_us)
    }

    /// Takes over which of the two times, that before the crash and that after it, something was done at that goes by itself.
    fn adopt(&mut self, before_us: i64) -> Result<(), String> {
        let now_us = self.model.now_us;
        let either = |at_us: i64| at_us == before_us || at_us == now_us;
        let disputes = self.machine.engine(0).ok_or("shard 0 is down")?.shard().disputes();
        for found in disputes.all() {
            self.model.adopt_times(found, either);
        }
        if either(disputes.moved_at_us()) {
            self.model.disputes_moved_us = disputes.moved_at_us();
        }
        for engine in self.machine.engines() {
            let shard = engine.shard();
            // A name is known for certain once something stands behind it.
            let number = shard.number();
            self.model.users.retain(|(of, uid), _| *of != number || shard.user(*uid).is_some());
            for row in &mut self.model.rows {
                let found = self.machine.fetch(usize::from(number), |engine| engine.shard().rows().get(row.id));
                let found = found?.and_then(|found| found.tombstone);
                if let (Some(found), Some((at_us, None))) = (found, &mut row.tombstone)
                    && either(found.at_us)
                {
                    *at_us = found.at_us;
                }
            }
            // An alarm stands behind its claim: a crash between the two leaves it to the next claim.
            let own = self.model.corpora.iter().filter(|corpus| corpus.shard == shard.number());
            for corpus in own {
                let raised = |quarter, kind| shard.budget(corpus.prefix).is_some_and(|b| b.is_raised(kind, quarter));
                let quarter = Quarter::of(now_us);
                self.model
                    .alarms
                    .retain(|(prefix, q, kind)| *prefix != corpus.prefix.get() || *q != quarter || raised(*q, *kind));
            }
        }
        Ok(())
    }
}

/// A page of a scan may end before its limit, if it has rows and says that there may be more.
fn as_short(expected: Outcome, found: &Outcome) -> Outcome {
    match (expected, found) {
        (Outcome::Rows { mut rows, log, .. }, Outcome::Rows { rows: found, more: true, .. })
            if (1..=rows.len()).contains(&found.len()) =>
        {
            rows.truncate(found.len());
            Outcome::Rows { rows, more: true, log }
        }
        (expected, _) => expected,
    }
}

/// What the model takes from an answer.
fn hint(found: &Outcome, only: Option<Vec<bool>>) -> Hint {
    let mut hint = Hint { only, ..Hint::default() };
    match found {
        Outcome::Claimed(claimed) => hint.ids = vec![Some(claimed.event_id)],
        Outcome::ClaimedItems(items) => {
            hint.ids = items.iter().map(|item| item.as_ref().ok().map(|claimed| claimed.event_id)).collect();
        }
        Outcome::Dispute(dispute) => hint.dispute = Some(dispute.id),
        Outcome::Proposal(proposal) => hint.proposal = Some(proposal.number),
        _ => {}
    }
    hint
}

/// When what was answered took place, for each item; `None` where the answer does not say.
fn times(asked: &Asked, found: &Outcome) -> Vec<Option<i64>> {
    let role = if let Op::SignOff { role, .. } = asked.op { role } else { Role::Auditor };
    let time = match found {
        Outcome::ClaimedItems(items) => {
            return items.iter().map(|item| item.as_ref().ok().map(|c| c.claim_timestamp_us)).collect();
        }
        Outcome::Claimed(claimed) => Some(claimed.claim_timestamp_us),
        Outcome::Retracted { tombstoned_at_us, .. } => Some(*tombstoned_at_us),
        Outcome::Reactivated { reactivated_at_us, .. } => Some(*reactivated_at_us),
        Outcome::Onboarded(corpus) => Some(corpus.onboarded_at_us),
        Outcome::Decommissioned { corpus, .. } => corpus.decommissioned_at_us,
        Outcome::Frozen { at_us, .. }
        | Outcome::Capped { at_us, .. }
        | Outcome::IncidentSet { at_us, .. }
        | Outcome::BarrierRaised { at_us }
        | Outcome::Configured { at_us }
        | Outcome::ClockConfirmed { confirmed_at_us: at_us } => Some(*at_us),
        Outcome::Proposal(proposal) if matches!(asked.op, Op::Propose { .. }) => Some(proposal.proposed_at_us),
        Outcome::Proposal(proposal) => proposal.signatures.iter().find(|s| s.role == role).map(|s| s.at_us),
        Outcome::Dispute(dispute) => Some(dispute.updated_at_us),
        Outcome::Reconciled(report) => Some(report.at_us),
        _ => None,
    };
    vec![time]
}
