//! Reconciliation, and what bears on it.

use super::Encoded;
use crate::Builder;
use crate::generated::claimd as wire;

pub(super) fn incident(builder: &mut Builder, active: bool) -> Encoded {
    let table = wire::Incident::create(builder, &wire::IncidentArgs { active });
    (wire::Operation::Incident, table.as_union_value())
}

pub(super) fn barrier(builder: &mut Builder) -> Encoded {
    (wire::Operation::Barrier, wire::Barrier::create(builder, &wire::BarrierArgs {}).as_union_value())
}

pub(super) fn pass(builder: &mut Builder, dry_run: bool) -> Encoded {
    let table = wire::Reconcile::create(builder, &wire::ReconcileArgs { dry_run });
    (wire::Operation::Reconcile, table.as_union_value())
}

pub(super) fn find(builder: &mut Builder, event_key: &str, from: u64) -> Encoded {
    let event_key = Some(builder.create_string(event_key));
    (wire::Operation::Find, wire::Find::create(builder, &wire::FindArgs { event_key, from }).as_union_value())
}
