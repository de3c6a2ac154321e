//! What a pass of reconciliation did.

use super::decode_lifecycle;
use crate::generated::claimd as wire;
use crate::reply::{Merge, Orphan, ReconcileReport, Suspect};
use crate::wire_values::{typed_uuid, typed_uuids};
use flatbuffers::{ForwardsUOffset, Vector};

/// A vector of tables as the generated code gives it; absent, it has no items.
type Tables<'a, T> = Option<Vector<'a, ForwardsUOffset<T>>>;

pub(super) fn decode_report(table: &wire::ReconcileReport<'_>) -> Result<ReconcileReport, String> {
    Ok(ReconcileReport {
        dry_run: table.dry_run(),
        pass: table.pass(),
        at_us: table.at_us(),
        rows_examined: table.rows_examined(),
        groups: table.groups(),
        merged: table.merged(),
        already_merged: table.already_merged(),
        skipped_disputed: table.skipped_disputed(),
        refused: table.refused(),
        suspects: table.suspects(),
        orphans: table.orphans(),
        merges_listed: merges(table.merges_listed()),
        suspects_listed: suspects(table.suspects_listed()),
        orphans_listed: orphans(table.orphans_listed())?,
    })
}

fn merges(merges: Tables<'_, wire::Merge<'_>>) -> Vec<Merge> {
    let merge = |merge: wire::Merge<'_>| Merge {
        event_id: typed_uuid(merge.event_id()),
        canonical_id: typed_uuid(merge.canonical_id()),
    };
    merges.map(|merges| merges.iter().map(merge).collect()).unwrap_or_default()
}

fn suspects(suspects: Tables<'_, wire::Suspect<'_>>) -> Vec<Suspect> {
    let suspect = |suspect: wire::Suspect<'_>| Suspect {
        corpus: suspect.corpus().to_owned(),
        event_ids: typed_uuids(Some(suspect.event_ids())),
    };
    suspects.map(|suspects| suspects.iter().map(suspect).collect()).unwrap_or_default()
}

fn orphans(orphans: Tables<'_, wire::Orphan<'_>>) -> Result<Vec<Orphan>, String> {
    let orphan = |orphan: wire::Orphan<'_>| {
        Ok(Orphan {
            event_id: typed_uuid(orphan.event_id()),
            canonical_id: typed_uuid(orphan.canonical_id()),
            lifecycle: decode_lifecycle(orphan.lifecycle())?,
            references: orphan.references(),
            is_alias: orphan.is_alias(),
        })
    };
    orphans.map(|orphans| orphans.iter().map(orphan).collect()).unwrap_or_else(|| Ok(Vec::new()))
}
