//! What happens by itself: passes of reconciliation, and deferred disputes that move on.

use super::{MINUTE_US, Model, Pass, Row};
use crate::command::{Orphan, PassReport, Suspect};
use crate::corpus::Prefix;
use crate::dispute::{Dispute, DisputeState};
use crate::id::EventId;
use crate::log::entry::{Merge, PassCounts};
use crate::row::{Lifecycle, RowState};
use std::collections::BTreeSet;

impl Model {
    pub fn waiting_disputes(&self) -> usize {
        self.disputes.values().filter(|dispute| dispute.state == DisputeState::Detect).count()
    }

    /// No corpus of its rows is stopped.
    fn may_move(&self, dispute: &Dispute) -> bool {
        dispute.sides.ids().iter().all(|id| self.not_frozen(Some(id.prefix())).is_ok())
    }

    pub fn is_pass_due(&self, now_us: i64) -> bool {
        let last_us = self.last_pass.map_or(self.formatted_us, |pass| pass.at_us);
        self.configured.is_some() && self.frozen.is_none() && now_us - last_us >= self.settings.reconcile_interval_us
    }

    pub fn is_move_due(&self, now_us: i64) -> bool {
        let interval_us = MINUTE_US / self.settings.disputes_per_minute;
        let may_move = !self.incident || now_us - self.disputes_moved_us >= interval_us;
        let is_waiting = |dispute: &Dispute| dispute.state == DisputeState::Detect && self.may_move(dispute);
        self.disputes.values().any(is_waiting) && may_move
    }

    /// What the daemon does by itself when it looks at the clock.
    pub fn tick(&mut self) {
        if self.is_pass_due(self.now_us) {
            self.pass(false);
            self.events.push("a pass runs by itself");
        }
        self.move_disputes();
    }

    /// What it does by itself at any time.
    pub fn move_disputes(&mut self) {
        let waiting: Vec<_> =
            self.disputes.values().filter(|d| d.state == DisputeState::Detect).map(|d| d.id).collect();
        for id in waiting {
            if self.is_move_due(self.now_us) && self.may_move(&self.disputes[&id]) {
                if self.incident {
                    self.events.push("a deferred dispute moves on");
                }
                self.quarantine(id);
            }
        }
    }

    pub fn last_pass(&self) -> Option<(u64, i64)> {
        self.last_pass.map(|pass| (pass.number, pass.at_us))
    }

    /// A pass over all rows.
    pub fn pass(&mut self, dry_run: bool) -> PassReport {
        self.step += 1;
        let number = self.last_pass.map_or(0, |pass| pass.number) + 1;
        let mut report = PassReport { dry_run, at_us: self.now_us, ..PassReport::default() };
        report.counts.rows = self.rows.len() as u64;
        let keys: BTreeSet<String> = self.rows.iter().map(|row| row.event_key.clone()).collect();
        for event_key in keys {
            self.plan(&event_key, &mut report);
        }
        report.counts.merged = report.merges.len() as u64;
        if !dry_run {
            report.pass = number;
            for merge in &report.merges {
                self.ever_aliases.insert((merge.canonical, merge.alias));
                self.change(merge.alias, RowState::Referenced).canonical = Some(merge.canonical);
            }
            self.last_pass = Some(Pass { number, at_us: self.now_us, began_in: self.step });
        }
        if !report.merges.is_empty() {
            self.events.push("rows are merged");
        }
        self.list_orphans(&mut report);
        report
    }

    pub(super) fn plan(&self, event_key: &str, report: &mut PassReport) {
        let is_frozen = |row: &Row| self.not_frozen(Some(row.id.prefix())).is_err();
        let takes_part = |row: &&Row| {
            row.event_key == event_key
                && match row.state {
                    RowState::Disputed => true,
                    RowState::Registered => is_frozen(row) || !self.is_expired(row),
                    RowState::Referenced => !self.is_expired(row),
                    RowState::Retracted | RowState::TombstonedByArbitration => false,
                }
        };
        let group: Vec<&Row> = self.rows.iter().filter(takes_part).collect();
        let counts: &mut PassCounts = &mut report.counts;
        let is_closed = |row: &&Row| !self.is_expired(row) && self.closes_us(row) <= self.now_us;
        if group.len() > 1 && group.iter().any(is_closed) {
            counts.aliases += group.iter().filter(|row| row.state == RowState::Referenced).count() as u64;
        }
        let takes_part = |row: &&&Row| row.state == RowState::Registered && is_closed(row);
        let mut open: Vec<&Row> = group.iter().filter(takes_part).copied().collect();
        open.sort_by_key(|row| (row.claimed_us, row.sequence, row.id.prefix()));
        let corpora: BTreeSet<Prefix> = open.iter().map(|row| row.id.prefix()).collect();
        for prefix in &corpora {
            let own: Vec<EventId> = open.iter().map(|row| row.id).filter(|id| id.prefix() == *prefix).collect();
            if own.len() > 1 {
                counts.suspects += 1;
                let event_ids = own.into_iter().take(16).collect();
                report.suspects.push(Suspect { prefix: *prefix, event_ids });
            }
        }
        let counts: &mut PassCounts = &mut report.counts;
        let is_due = group.iter().any(is_closed);
        let disputed = group.iter().filter(|row| is_due && row.state == RowState::Disputed).map(|row| row.id.prefix());
        if corpora.iter().copied().chain(disputed).collect::<BTreeSet<Prefix>>().len() < 2 {
            return;
        }
        counts.groups += 1;
        let holds = |row: &&Row| row.state == RowState::Disputed || row.state == RowState::Registered && is_frozen(row);
        if group.iter().any(holds) {
            counts.left_alone += 1;
            return;
        }
        let mut merged: BTreeSet<EventId> = BTreeSet::new();
        for (place, first) in open.iter().enumerate() {
            if merged.contains(&first.id) {
                continue;
            }
            for row in &open[place + 1..] {
                let is_near = (row.occurred_us - first.occurred_us).abs() <= self.settings.tolerance_us;
                let is_other = row.id.prefix() != first.id.prefix();
                if is_near && is_other && !merged.contains(&row.id) && !self.is_dismissed_pair(first.id, row.id) {
                    merged.insert(row.id);
                    report.merges.push(Merge { alias: row.id, canonical: first.id, position: 0, applied: false });
                }
            }
        }
    }

    pub(super) fn list_orphans(&self, report: &mut PassReport) {
        for row in self.rows.iter().filter(|row| row.references > 0 || row.state == RowState::Referenced) {
            let mut end = row;
            while let (RowState::Referenced, Some(canonical)) = (end.state, end.canonical) {
                end = self.row(canonical).expect("aliases lead to rows");
            }
            let state = if self.is_expired(end) { Lifecycle::Expired } else { end.state.lifecycle() };
            if matches!(state, Lifecycle::Registered | Lifecycle::Disputed) {
                continue;
            }
            report.counts.orphans += 1;
            report.orphans.push(Orphan {
                event_id: row.id,
                canonical_id: end.id,
                state,
                references: row.references,
                is_alias: row.state == RowState::Referenced,
            });
        }
    }
}
