//! Passes of reconciliation, which shard 0 runs: begun when asked for or due, taken step by step, reported.

use super::parked::OwnedRequest;
use super::{Asker, Engine, Held, Running, reply};
use crate::command::{Operation, Outcome, PassReport, Request};
use crate::entropy::Entropy;
use crate::error::{Code, Refusal};
use crate::log::entry::{Entry, MERGES_MAX, Merge, PassCounts, PassPhase, encode_merges};
use crate::log::superblock::ClockMode;
use crate::reconcile::{Pass, Todo};
use crate::time::Now;
use std::collections::VecDeque;

/// Passes that wait for the one under way, at most.
const PASSES_WAITING_MAX: usize = 16;
/// Advice on when to ask for a pass again.
const PASS_RETRY_MS: u32 = 5_000;

impl Engine {
    /// A pass is asked for: it begins, or waits, or has been.
    pub(super) fn want_pass(
        &mut self,
        request: &Request<'_>,
        dry_run: bool,
        done: Option<u64>,
        at_us: i64,
        position: u64,
    ) {
        if let Some(number) = done {
            if let Some(running) = self.pass.as_mut().filter(|running| running.pass.report.pass == number) {
                running.waiting.push(request.token);
                return;
            }
            let passes = self.shard.passes();
            if passes.is_under_way() && passes.begun().is_some_and(|mark| mark.pass == number) {
                if self.resumption_waiting.len() < PASSES_WAITING_MAX {
                    return self.resumption_waiting.push(request.token);
                }
                let message = "many wait for the pass of reconciliation that is under way; try again later";
                return self.refuse(request.token, Refusal::retry_after(Code::Overloaded, PASS_RETRY_MS, message));
            }
            let known = self.last_report.as_ref().filter(|report| report.pass == number).cloned();
            let report = known.unwrap_or_else(|| {
                let (at_us, counts) = passes.ended(number).unwrap_or((at_us, PassCounts::default()));
                PassReport { pass: number, at_us, counts, ..PassReport::default() }
            });
            return self.hold(Held {
                release_at: position,
                global_sequence: 0,
                deadline_boot_us: request.deadline_boot_us,
                is_mutation: true,
                debt_bytes: None,
                output: Some(reply(request.token, position, Outcome::Reconciled(Box::new(report)))),
            });
        }
        let owned = OwnedRequest::new(request);
        match (owned, &self.pass) {
            (Some(owned), None) => self.start_pass(Some(owned), dry_run, true, at_us),
            (Some(owned), Some(_)) if self.passes_waiting.len() < PASSES_WAITING_MAX => {
                self.passes_waiting.push_back(owned);
            }
            _ => {
                let message = "a pass of reconciliation is under way, and others wait for it; try again later";
                self.refuse(request.token, Refusal::retry_after(Code::Overloaded, PASS_RETRY_MS, message));
            }
        }
    }

    fn start_pass(&mut self, request: Option<OwnedRequest>, dry_run: bool, is_full: bool, at_us: i64) {
        let tolerance_us = self.shard.policy().tolerance_us();
        let waiting = request.iter().map(|request| request.token).collect();
        self.pass = Some(Running {
            pass: Pass::new(self.superblock.shard_count, dry_run, is_full, tolerance_us, at_us),
            request,
            waiting,
            missing: 0,
            merges: None,
            applied: 0,
            has_failed: false,
        });
    }

    /// At shard 0: starts what is due, and takes the pass under way as far as it goes.
    pub(super) fn run_pass(&mut self, now: Now, entropy: &mut Entropy) {
        while let Some(running) = &self.pass {
            if running.missing > 0 || !self.all_have(running.applied) || !self.takes_own_entries() {
                if running.has_failed || self.peers.iter().any(|peer| peer.has_failed) {
                    self.abandon_pass("a shard has stopped");
                }
                return;
            }
            if running.has_failed {
                return self.abandon_pass("a shard has stopped");
            }
            let Some(mut running) = self.pass.take() else { return };
            let todo = if let Some(merges) = running.merges.take() {
                Todo::Merge(merges)
            } else {
                let shard_of = |prefix| self.shard_of(prefix);
                let is_dismissed = |a, b| self.shard.disputes().is_dismissed_pair(a, b);
                running.pass.next(&shard_of, &is_dismissed)
            };
            match todo {
                Todo::Ask(asks) => {
                    running.missing = asks.len();
                    self.pass = Some(running);
                    for (shard, ask) in asks {
                        self.ask(shard, ask, Asker::Pass);
                    }
                    self.take_own_answers();
                }
                Todo::Begin(at_us) => {
                    self.begin_pass(now, entropy, &mut running, at_us);
                    self.pass = Some(running);
                }
                Todo::Merge(mut merges) => {
                    // An entry at a time: what all of them take need not be at hand at once.
                    let rest = merges.split_off(merges.len().min(MERGES_MAX));
                    if let Err(unread) = self.shard.rows_at_hand(merges.iter().map(|merge| merge.alias)) {
                        merges.extend(rest);
                        running.merges = Some(merges);
                        self.pass = Some(running);
                        self.read_for_work(unread);
                        return;
                    }
                    self.log_pass(now, &running.pass.report, PassPhase::Merge, &merges);
                    match rest.is_empty() {
                        true => running.applied = self.shard.globals_applied(),
                        false => running.merges = Some(rest),
                    }
                    self.pass = Some(running);
                }
                Todo::Done => {
                    self.log_pass(now, &running.pass.report, PassPhase::Done, &[]);
                    running.applied = self.shard.globals_applied();
                    self.pass = Some(running);
                }
                Todo::Report => self.report_pass(running),
            }
        }
    }

    /// This shard's own answers to a pass, which are there at once.
    fn take_own_answers(&mut self) {
        let own = self.shard.number();
        let mut others = VecDeque::new();
        while let Some((question, from, answer)) = self.answers.pop_front() {
            if from == own && self.questions.get(&question) == Some(&Asker::Pass) {
                self.questions.remove(&question);
                if let Some(running) = &mut self.pass {
                    running.missing -= 1;
                    running.pass.answered(from, answer);
                }
            } else {
                others.push_back((question, from, answer));
            }
        }
        self.answers = others;
    }

    pub(super) fn begin_due_pass(&mut self, now: Now) {
        if self.peers.iter().any(|peer| peer.has_failed) {
            self.refuse_resumption("a shard has stopped");
        }
        let everybody_is_there = self.peers.iter().skip(1).all(|peer| peer.is_known && !peer.has_failed);
        if !everybody_is_there || self.shard.registry().frozen().is_some() {
            return;
        }
        if self.shard.passes().is_under_way()
            && let Some(mark) = self.shard.passes().begun()
        {
            // A crash ended it before it was done.
            let tolerance_us = self.shard.policy().tolerance_us();
            let pass = Pass::resumed(self.superblock.shard_count, mark.pass, mark.at_us, tolerance_us);
            let (request, waiting) = (None, std::mem::take(&mut self.resumption_waiting));
            let applied = self.shard.globals_applied();
            self.pass = Some(Running { pass, request, waiting, missing: 0, merges: None, applied, has_failed: false });
            return;
        }
        let time_us = self.shard.time_us(now);
        if let Some(request) = self.passes_waiting.pop_front() {
            let dry_run = request.with(|r| matches!(r.operation, Operation::Reconcile { dry_run: true }));
            return self.start_pass(Some(request), dry_run, true, time_us);
        }
        let is_by_itself = self.shard.clock().mode() == ClockMode::Wall && self.shard.in_force().at_us > 0;
        let last_us = self.shard.passes().begun().map_or(self.superblock.formatted_at_us, |mark| mark.at_us);
        let is_due = time_us - last_us >= self.shard.policy().reconcile_interval_us();
        if is_by_itself && is_due && !self.is_anyone_overloaded() && self.shard.clock().suspect().is_none() {
            self.start_pass(None, false, false, time_us);
        }
    }

    fn begin_pass(&mut self, now: Now, entropy: &mut Entropy, running: &mut Running, at_us: i64) {
        match running.request.take() {
            Some(request) => {
                request.with(|request| self.shard.begin_pass(now, entropy, request, at_us, &mut self.log));
                running.pass.report.pass = self.shard.passes().begun().map_or(0, |mark| mark.pass);
            }
            None => {
                running.pass.report.pass = self.shard.passes().begun().map_or(0, |mark| mark.pass) + 1;
                self.log_pass(now, &running.pass.report, PassPhase::Begin, &[]);
            }
        }
        running.applied = self.shard.globals_applied();
    }

    fn log_pass(&mut self, now: Now, report: &PassReport, phase: PassPhase, merges: &[Merge]) {
        let counts = if phase == PassPhase::Done { report.counts } else { PassCounts::default() };
        let merges = encode_merges(merges);
        let (global_sequence, pass, at_us) = (self.shard.globals_applied() + 1, report.pass, report.at_us);
        let entry = Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges: &merges };
        self.shard.decide_alone(now, at_us, entry, &mut self.log);
    }

    fn report_pass(&mut self, running: Running) {
        let report = running.pass.report;
        let position = self.shard.last_position();
        for token in running.waiting {
            self.hold(Held {
                release_at: position,
                global_sequence: 0,
                deadline_boot_us: None,
                is_mutation: true,
                debt_bytes: None,
                output: Some(reply(token, position, Outcome::Reconciled(Box::new(report.clone())))),
            });
        }
        if !report.dry_run {
            self.last_report = Some(report);
        }
    }

    fn refuse_resumption(&mut self, reason: &str) {
        for token in std::mem::take(&mut self.resumption_waiting) {
            let message = format!("{reason} before the pass could go on: ask again with the same key");
            self.refuse(token, Refusal::unknown(Code::ShardFailed, message));
        }
    }

    pub(super) fn abandon_pass(&mut self, reason: &str) {
        self.refuse_resumption(reason);
        let Some(running) = self.pass.take() else { return };
        self.questions.retain(|_, asker| *asker != Asker::Pass);
        for token in running.waiting {
            let message =
                format!("{reason} before the pass was over; what it has merged stays: ask again with the same key");
            self.refuse(token, Refusal::unknown(Code::ShardFailed, message));
        }
    }
}
