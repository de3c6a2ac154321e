//! The global order as each shard has it, compared.

use super::{Finding, Structure};
use crate::log::entry::{self, Entry, Merge, Record, encode_merges};
use std::collections::BTreeMap;

/// A global entry without what differs between the shards: the time at which each logged it, and what it means for rows of
/// its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalCopy {
    /// The record's kind.
    pub kind: u16,
    /// The record's body, its timestamp zeroed.
    pub body: Vec<u8>,
}

pub(super) fn global_copy(kind: u16, record: &Record<'_>) -> GlobalCopy {
    let mut record = *record;
    record.meta.timestamp_us = 0;
    let mut planned = Vec::new();
    match &mut record.entry {
        Entry::DisputeStep { rows, .. } => *rows = 0,
        Entry::Reconcile { merges, .. } => {
            planned.extend(entry::merges(merges).map(|merge| Merge { applied: false, ..merge }));
        }
        _ => {}
    }
    let planned = encode_merges(&planned);
    if let Entry::Reconcile { merges, .. } = &mut record.entry {
        *merges = &planned;
    }
    let mut body = Vec::new();
    record.encode(&mut body);
    GlobalCopy { kind, body }
}

/// Compares the global orders of a ledger's shards, in shard order. A shard may be behind shard 0, never ahead of it or
/// different from it. `dropped` entries stood before shard 0's log began, and others may still have them; `whole` says of each
/// shard whether it was read without a hole.
pub fn compare_globals(globals: &[&BTreeMap<u64, GlobalCopy>], dropped: u64, whole: &[bool]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some((first, others)) = globals.split_first() else { return findings };
    for (shard, other) in (1u16..).zip(others) {
        for (sequence, entry) in other.range(dropped + 1..) {
            let what = match first.get(sequence) {
                Some(same) if same == entry => continue,
                Some(_) => format!("entry {sequence} of the global order differs from that of shard 0"),
                // With a hole in shard 0 that is what the hole is about.
                None if !whole[0] => continue,
                None => format!("entry {sequence} of the global order is not in shard 0, which decides it"),
            };
            findings.push(Finding::damage(Structure::GlobalOrder, shard, 0, 0, what));
            break;
        }
    }
    findings
}
