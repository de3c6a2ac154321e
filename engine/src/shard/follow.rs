//! Following shard 0: every shard logs what shard 0 decided for all of them, each with what it means for its own rows.

use super::{GlobalEntry, Shard};
use crate::dispute::{DisputeId, DisputeState, DisputeStep, Sides};
use crate::log::entry::{Entry, Record, encode_merges, merges};
use crate::log::writer::LogWriter;
use crate::mutant::Mutant;
use crate::row::{RowOperation, RowState, transition};
use crate::time::Now;

impl Shard {
    /// Applies a global entry that shard 0 sent. False when an earlier one is missing; one that is there already is left.
    pub fn follow(&mut self, now: Now, global: &GlobalEntry, log: &mut LogWriter) -> Result<bool, String> {
        if global.sequence <= self.globals_applied {
            return Ok(true);
        }
        if global.sequence != self.globals_applied + 1 {
            return Ok(false);
        }
        let mut record = Record::decode(global.kind, &global.body).map_err(|e| e.to_string())?;
        // Never before its cause, never before this shard's own last entry.
        let time_us = self.clock.time_us(now, self.last_us);
        record.meta.timestamp_us = record.meta.timestamp_us.max(time_us);
        let is_confirmation = matches!(record.entry, Entry::ConfirmClock { .. });
        self.append_here(record, log);
        if is_confirmation {
            self.clock.confirm(now);
        }
        Ok(true)
    }

    /// Appends a global entry with this shard's own part of it.
    pub(super) fn append_here(&mut self, record: Record<'_>, log: &mut LogWriter) -> u64 {
        // As in `append`.
        self.append_global(record, log).expect("a decided record applies")
    }

    /// The same for an entry that may not fit this shard's state: the error says why.
    pub fn append_global(&mut self, record: Record<'_>, log: &mut LogWriter) -> Result<u64, String> {
        match record.entry {
            Entry::DisputeStep { global_sequence, dispute, step, at_us, verdicts, .. } => {
                let rows = self.rows_of_step(dispute, step, record.meta.timestamp_us);
                let entry = Entry::DisputeStep { global_sequence, dispute, step, at_us, rows, verdicts };
                self.try_append(&Record { meta: record.meta, entry }, log)
            }
            Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges: planned } => {
                let decided: Vec<_> = merges(planned)
                    .map(|mut merge| {
                        let row = self.rows.get(merge.alias);
                        // A row that has changed since the merge was planned is left to the next pass.
                        merge.applied = row.is_some_and(|row| {
                            let is_as_planned =
                                row.position == merge.position || self.mutation.is(Mutant::MergeWithoutCheck);
                            is_as_planned && transition(row.state, RowOperation::Merge).is_some()
                        });
                        merge
                    })
                    .collect();
                let merges = encode_merges(&decided);
                let entry = Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges: &merges };
                self.try_append(&Record { meta: record.meta, entry }, log)
            }
            _ => self.try_append(&record, log),
        }
    }

    /// Which rows of this shard a step changes, a bit each.
    fn rows_of_step(&self, dispute: DisputeId, step: DisputeStep, at_us: i64) -> u8 {
        let Some(found) = self.disputes.get(dispute) else { return 0 };
        let is_changed = |event_id| {
            let Some(row) = self.rows.get(event_id) else { return false };
            let is_flagged = row.state == RowState::Disputed && row.dispute == Some(dispute);
            match step {
                DisputeStep::Quarantine => {
                    transition(row.state, RowOperation::Dispute).is_some() && !self.is_expired(&row, at_us)
                }
                DisputeStep::Void => is_flagged && !self.mutation.is(Mutant::VoidLeavesRowsFlagged),
                DisputeStep::Arbitrate => is_flagged,
                _ => false,
            }
        };
        bits(&found.sides, is_changed)
    }

    /// Disputes in quarantine of which a row of this shard is not flagged, and never will be.
    pub fn refused_disputes(&self) -> Vec<DisputeId> {
        let lives_here = |prefix| self.registry.of_prefix(prefix).is_some_and(|corpus| corpus.shard == self.number);
        let refuses = |dispute: &&crate::dispute::Dispute| {
            let mut own = dispute.sides.ids().iter().filter(|id| lives_here(id.prefix()));
            own.any(|id| self.rows.get(*id).is_none_or(|row| row.dispute != Some(dispute.id)))
        };
        let waiting = self.disputes.open_ones().filter(|dispute| dispute.state == DisputeState::Quarantine);
        waiting.filter(refuses).map(|dispute| dispute.id).collect()
    }
}

fn bits(sides: &Sides, is_set: impl Fn(crate::id::EventId) -> bool) -> u8 {
    let set = sides.ids().iter().enumerate().filter(|(_, id)| is_set(**id));
    set.fold(0, |bits, (index, _)| bits | 1 << index)
}
