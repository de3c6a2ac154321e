//! Disputes.

use super::{Answer, Hint, Model, Row, no};
use crate::command::Outcome;
use crate::dispute::{Dispute, DisputeId, DisputeState, Moved, Sides, Verdict};
use crate::error::Code;
use crate::id::EventId;
use crate::row::RowState;
use crate::simulation::model::words::Asked;
use std::collections::BTreeSet;

impl Model {
    pub(super) fn was_dismissed(&self, ids: &[EventId]) -> bool {
        let set: BTreeSet<_> = ids.iter().collect();
        self.disputes.values().any(|dispute| {
            dispute.is_dismissed()
                && set.len() == ids.len()
                && dispute.sides.ids().iter().collect::<BTreeSet<_>>() == set
        })
    }

    pub(super) fn is_dismissed_pair(&self, a: EventId, b: EventId) -> bool {
        let names = |dispute: &Dispute, id| dispute.sides.ids().contains(&id);
        self.disputes.values().any(|dispute| dispute.is_dismissed() && names(dispute, a) && names(dispute, b))
    }

    pub fn is_disputable(&self, row: &Row) -> bool {
        matches!(row.state, RowState::Registered | RowState::Referenced) && !self.is_expired(row)
    }

    pub(super) fn open_dispute(&mut self, asked: &Asked, corpus: &str, ids: &[EventId], hint: &Hint) -> Answer {
        let prefix = self.corpus(corpus).expect("the corpus was looked up").prefix;
        let different: BTreeSet<_> = ids.iter().collect();
        let corpora: BTreeSet<_> = ids.iter().map(|id| id.prefix()).collect();
        if !(2..=8).contains(&ids.len()) || different.len() != ids.len() || corpora.len() < 2 {
            return no(Code::BadRequest);
        }
        if !corpora.contains(&prefix) {
            return no(Code::BadRequest);
        }
        ids.iter().try_for_each(|id| self.not_frozen(Some(id.prefix())))?;
        for id in ids {
            let Some(row) = self.row(*id) else { return no(Code::NotVisible) };
            if self.is_expired(row) {
                return no(Code::Expired);
            }
            let is_open = |dispute: &Dispute| dispute.state.is_open() && dispute.sides.ids().contains(id);
            if self.disputes.values().any(is_open) || !self.is_disputable(row) {
                return no(Code::BadTransition);
            }
        }
        let is_open = |dispute: &&Dispute| dispute.state.is_open() && dispute.opened_by == prefix;
        if self.disputes.values().filter(is_open).count() >= 16 {
            return no(Code::Throttled);
        }
        let dispute = Dispute {
            id: hint.dispute.unwrap_or(DisputeId::pack(0, [0, 0])),
            state: DisputeState::Detect,
            sides: Sides::new(ids).expect("checked above"),
            opened_by: prefix,
            opened_at_us: self.now_us,
            updated_at_us: self.now_us,
            rationale: asked.rationale.clone(),
            verdicts: Default::default(),
            responses: 0,
            global_sequence: 0,
            steps: Vec::new(),
        };
        ids.iter().for_each(|id| self.row_mut(*id).entries += 1);
        self.disputes.insert(dispute.id, dispute.clone());
        Ok(Outcome::Dispute(Box::new(dispute)))
    }

    /// Takes over when the steps of a dispute were taken, where that may be; answers that are kept say the same.
    pub fn adopt_times(&mut self, found: &Dispute, may_be: impl Fn(i64) -> bool) {
        let adopt = |dispute: &mut Dispute| {
            for (own, found) in dispute.steps.iter_mut().zip(&found.steps) {
                if may_be(own.at_us) && may_be(found.at_us) {
                    own.at_us = found.at_us;
                }
            }
            dispute.updated_at_us = dispute.steps.last().map_or(dispute.opened_at_us, |moved| moved.at_us);
        };
        self.disputes.get_mut(&found.id).into_iter().for_each(adopt);
        for kept in self.keys.values_mut() {
            match &mut kept.answer {
                Outcome::Dispute(dispute) if dispute.id == found.id => adopt(dispute),
                _ => {}
            }
        }
    }

    /// A dispute takes a step; returns it as it is then.
    pub(super) fn step_dispute(&mut self, id: DisputeId, to: DisputeState) -> &mut Dispute {
        let dispute = self.disputes.get_mut(&id).expect("a dispute that was looked up before");
        (dispute.state, dispute.updated_at_us) = (to, self.now_us);
        dispute.steps.push(Moved { state: to, responses: dispute.responses, at_us: self.now_us, global_sequence: 0 });
        for row in dispute.sides.ids() {
            self.rows.iter_mut().find(|known| known.id == *row).expect("a dispute is about rows").entries += 1;
        }
        dispute
    }

    /// What a step of its dispute does to a row: the step is an entry of the row already.
    fn settle(&mut self, id: EventId, state: RowState) -> &mut Row {
        let row = self.change(id, state);
        row.entries -= 1;
        row
    }

    pub(super) fn respond(&mut self, corpus: &str, id: DisputeId) -> Answer {
        let prefix = self.corpus(corpus).expect("the corpus was looked up").prefix;
        let Some(dispute) = self.disputes.get(&id) else { return no(Code::NotVisible) };
        if !dispute.sides.ids().iter().any(|id| id.prefix() == prefix) {
            return no(Code::BadRequest);
        }
        let state = dispute.state;
        if matches!(state, DisputeState::Canonicalise | DisputeState::Closed | DisputeState::Void) {
            return no(Code::BadTransition);
        }
        self.not_frozen(Some(prefix))?;
        let dispute = self.step_dispute(id, state);
        dispute.responses += 1;
        dispute.steps.last_mut().expect("the step just taken").responses += 1;
        Ok(Outcome::Dispute(Box::new(dispute.clone())))
    }

    pub(super) fn escalate(&mut self, id: DisputeId) -> Answer {
        match self.disputes.get(&id).map(|dispute| dispute.state) {
            None => no(Code::NotVisible),
            Some(DisputeState::Arbitrate) => {
                Ok(Outcome::Dispute(Box::new(self.step_dispute(id, DisputeState::Escalate).clone())))
            }
            Some(_) => no(Code::BadTransition),
        }
    }

    pub(super) fn arbitrate(&mut self, id: DisputeId, given: &[(EventId, Verdict)]) -> Answer {
        let Some(dispute) = self.disputes.get(&id) else { return no(Code::NotVisible) };
        if !matches!(dispute.state, DisputeState::Arbitrate | DisputeState::Escalate) {
            return no(Code::BadTransition);
        }
        let ids = dispute.sides.ids().to_vec();
        let named: BTreeSet<_> = given.iter().map(|(id, _)| *id).collect();
        let all: BTreeSet<_> = ids.iter().copied().collect();
        let count = |verdict| given.iter().filter(|(_, v)| *v == verdict).count();
        let is_dismissal = count(Verdict::Dismissed) == ids.len();
        let is_decision = count(Verdict::Dismissed) == 0 && count(Verdict::Canonical) == 1;
        if named != all || given.len() != ids.len() || !(is_dismissal || is_decision) {
            return no(Code::BadRequest);
        }
        ids.iter().try_for_each(|id| self.not_frozen(Some(id.prefix())))?;
        let canonical = given.iter().find(|(_, verdict)| *verdict == Verdict::Canonical).map(|(id, _)| *id);
        let now_us = self.now_us;
        let dispute = self.step_dispute(id, DisputeState::Canonicalise);
        for (place, row) in ids.iter().enumerate() {
            dispute.verdicts[place] = given.iter().find(|(id, _)| id == row).map(|(_, verdict)| *verdict);
        }
        let answer = Outcome::Dispute(Box::new(dispute.clone()));
        for (row, verdict) in given {
            if let (Verdict::References, Some(canonical)) = (verdict, canonical) {
                self.ever_aliases.insert((canonical, *row));
            }
            let row = match verdict {
                Verdict::Canonical | Verdict::Dismissed => self.settle(*row, RowState::Registered),
                Verdict::References => self.settle(*row, RowState::Referenced),
                Verdict::Tombstone => self.settle(*row, RowState::TombstonedByArbitration),
            };
            row.dispute = None;
            row.canonical = if *verdict == Verdict::References { canonical } else { None };
            row.tombstone = (*verdict == Verdict::Tombstone).then_some((now_us, None));
        }
        self.step_dispute(id, DisputeState::Closed);
        self.events.push(if is_dismissal { "a dispute is dismissed" } else { "a dispute is decided" });
        Ok(answer)
    }

    /// Every row is flagged; or one no longer can be, and all are again what they were.
    pub(super) fn quarantine(&mut self, id: DisputeId) {
        self.step += 1;
        self.disputes_moved_us = self.now_us;
        let ids = self.step_dispute(id, DisputeState::Quarantine).sides.ids().to_vec();
        let (mut flagged, mut is_void) = (Vec::new(), false);
        for row in ids {
            let found = self.row(row).expect("a dispute is about rows");
            if self.is_disputable(found) {
                let before = found.state;
                self.settle(row, RowState::Disputed).dispute = Some((id, before));
                flagged.push((row, before));
            } else {
                is_void = true;
            }
        }
        if !is_void {
            self.step_dispute(id, DisputeState::Arbitrate);
            return;
        }
        self.events.push("a dispute is void");
        for (row, before) in flagged {
            self.settle(row, before).dispute = None;
        }
        self.step_dispute(id, DisputeState::Void);
    }
}
