//! What a pass of reconciliation did.

use super::Encoded;
use crate::Builder;
use crate::generated::claimd as wire;
use crate::reply::ReconcileReport;
use crate::wire_values::{uuid_vector, wire_uuid};
use flatbuffers::{ForwardsUOffset, Vector, WIPOffset};

/// A vector of tables, while it is written.
type Tables<T> = WIPOffset<Vector<'static, ForwardsUOffset<T>>>;

pub(super) fn reconciled(builder: &mut Builder, report: &ReconcileReport) -> Encoded {
    let merges_listed = merges(builder, report);
    let suspects_listed = suspects(builder, report);
    let orphans_listed = orphans(builder, report);
    let table = wire::ReconcileReport::create(
        builder,
        &wire::ReconcileReportArgs {
            dry_run: report.dry_run,
            pass: report.pass,
            at_us: report.at_us,
            rows_examined: report.rows_examined,
            groups: report.groups,
            merged: report.merged,
            already_merged: report.already_merged,
            skipped_disputed: report.skipped_disputed,
            refused: report.refused,
            suspects: report.suspects,
            orphans: report.orphans,
            merges_listed: Some(merges_listed),
            suspects_listed: Some(suspects_listed),
            orphans_listed: Some(orphans_listed),
        },
    );
    let table = wire::Reconciled::create(builder, &wire::ReconciledArgs { report: Some(table) });
    (wire::ReplyResult::Reconciled, table.as_union_value())
}

fn merges(builder: &mut Builder, report: &ReconcileReport) -> Tables<wire::Merge<'static>> {
    let merges: Vec<_> = report
        .merges_listed
        .iter()
        .map(|merge| {
            let (event_id, canonical_id) = (wire_uuid(merge.event_id), wire_uuid(merge.canonical_id));
            let args = wire::MergeArgs { event_id: Some(&event_id), canonical_id: Some(&canonical_id) };
            wire::Merge::create(builder, &args)
        })
        .collect();
    builder.create_vector(&merges)
}

fn suspects(builder: &mut Builder, report: &ReconcileReport) -> Tables<wire::Suspect<'static>> {
    let suspects: Vec<_> = report
        .suspects_listed
        .iter()
        .map(|suspect| {
            let event_ids = Some(uuid_vector(builder, &suspect.event_ids));
            let corpus = Some(builder.create_string(&suspect.corpus));
            wire::Suspect::create(builder, &wire::SuspectArgs { corpus, event_ids })
        })
        .collect();
    builder.create_vector(&suspects)
}

fn orphans(builder: &mut Builder, report: &ReconcileReport) -> Tables<wire::Orphan<'static>> {
    let orphans: Vec<_> = report
        .orphans_listed
        .iter()
        .map(|orphan| {
            let (event_id, canonical_id) = (wire_uuid(orphan.event_id), wire_uuid(orphan.canonical_id));
            let args = wire::OrphanArgs {
                event_id: Some(&event_id),
                canonical_id: Some(&canonical_id),
                lifecycle: wire::Lifecycle(orphan.lifecycle as u8),
                references: orphan.references,
                is_alias: orphan.is_alias,
            };
            wire::Orphan::create(builder, &args)
        })
        .collect();
    builder.create_vector(&orphans)
}
