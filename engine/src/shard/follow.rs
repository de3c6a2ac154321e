//! Following shard 0: every shard logs what shard 0 decided for all of them, each with what it means for its own rows.

use super::{GlobalEntry, Shard};
use crate::dispute::{DisputeId, DisputeStep};
use crate::log::entry::{Entry, Record, encode_merges, merges};
use crate::log::writer::LogWriter;
use crate::mutant::Mutant;
use crate::row::{RowOperation, RowState, transition};
use crate::sealed::{Fetch, Unread};
use crate::time::Now;

impl Shard {
    /// Whether everything that following a global entry takes is at hand.
    pub fn can_follow(&self, global: &GlobalEntry) -> Fetch<()> {
        if global.sequence != self.globals_applied + 1 {
            return Ok(());
        }
        let record = Record::decode(global.kind, &global.body).map_err(|e| Unread::Damaged(e.to_string()))?;
        self.at_hand(&record.entry)
    }

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
                let rows = self.rows_of_step(dispute, step, record.meta.timestamp_us)?;
                let entry = Entry::DisputeStep { global_sequence, dispute, step, at_us, rows, verdicts };
                self.try_append(&Record { meta: record.meta, entry }, log)
            }
            Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges: planned } => {
                let mut decided: Vec<_> = merges(planned).collect();
                for merge in &mut decided {
                    let row = self.rows.get(merge.alias).map_err(|unread| unread.to_string())?;
                    // A row that has changed since the merge was planned is left to the next pass.
                    merge.applied = row.is_some_and(|row| {
                        let is_as_planned =
                            row.position == merge.position || self.mutation.is(Mutant::MergeWithoutCheck);
                        is_as_planned && transition(row.state, RowOperation::Merge).is_some()
                    });
                }
                let merges = encode_merges(&decided);
                let entry = Entry::Reconcile { global_sequence, pass, phase, at_us, counts, merges: &merges };
                self.try_append(&Record { meta: record.meta, entry }, log)
            }
            _ => self.try_append(&record, log),
        }
    }

    /// Which rows of this shard a step changes, a bit each.
    fn rows_of_step(&self, dispute: DisputeId, step: DisputeStep, at_us: i64) -> Result<u8, String> {
        let Some(found) = self.disputes.get(dispute) else { return Ok(0) };
        let is_changed = |event_id| -> Result<bool, String> {
            let Some(row) = self.rows.get(event_id).map_err(|unread| unread.to_string())? else { return Ok(false) };
            let is_flagged = row.state == RowState::Disputed && row.dispute == Some(dispute);
            Ok(match step {
                DisputeStep::Quarantine => {
                    transition(row.state, RowOperation::Dispute).is_some() && !self.is_expired(&row, at_us)
                }
                DisputeStep::Void => is_flagged && !self.mutation.is(Mutant::VoidLeavesRowsFlagged),
                DisputeStep::Arbitrate => is_flagged,
                _ => false,
            })
        };
        let mut bits = 0;
        for (index, event_id) in found.sides.ids().iter().enumerate() {
            bits |= u8::from(is_changed(*event_id)?) << index;
        }
        Ok(bits)
    }

    /// Disputes in quarantine of which a row of this shard is not flagged, and never will be.
    pub fn refused_disputes(&self) -> Vec<DisputeId> {
        self.disputes.unflagged().collect()
    }
}
