//! Corpora and their slots.

use super::Encoded;
use crate::Builder;
use crate::generated::claimd as wire;
use crate::values::Role;
use crate::wire_values::optional_string;

pub(super) fn decommission(builder: &mut Builder, name: &str, dry_run: bool) -> Encoded {
    let name = Some(builder.create_string(name));
    let table = wire::Decommission::create(builder, &wire::DecommissionArgs { name, dry_run });
    (wire::Operation::Decommission, table.as_union_value())
}

pub(super) fn hold(builder: &mut Builder, year: u16, quarter: u8, held: bool) -> Encoded {
    let table = wire::Hold::create(builder, &wire::HoldArgs { year, quarter, held });
    (wire::Operation::Hold, table.as_union_value())
}

pub(super) fn freeze(builder: &mut Builder, corpus: &str, frozen: bool) -> Encoded {
    let corpus = optional_string(builder, corpus);
    let table = wire::Freeze::create(builder, &wire::FreezeArgs { corpus, frozen });
    (wire::Operation::Freeze, table.as_union_value())
}

pub(super) fn cap(builder: &mut Builder, corpus: &str, claims_per_minute: u32) -> Encoded {
    let corpus = Some(builder.create_string(corpus));
    let table = wire::Cap::create(builder, &wire::CapArgs { corpus, claims_per_minute });
    (wire::Operation::Cap, table.as_union_value())
}

pub(super) fn propose_slots(builder: &mut Builder, corpus: &str, slots: u64) -> Encoded {
    let corpus = Some(builder.create_string(corpus));
    let table = wire::ProposeSlots::create(builder, &wire::ProposeSlotsArgs { corpus, slots });
    (wire::Operation::ProposeSlots, table.as_union_value())
}

pub(super) fn sign_off(builder: &mut Builder, proposal: u64, role: Role) -> Encoded {
    let args = wire::SignOffArgs { proposal, role: wire::Role(role as u8) };
    (wire::Operation::SignOff, wire::SignOff::create(builder, &args).as_union_value())
}

pub(super) fn proposals(builder: &mut Builder) -> Encoded {
    let table = wire::Proposals::create(builder, &wire::ProposalsArgs {});
    (wire::Operation::Proposals, table.as_union_value())
}

pub(super) fn totals(builder: &mut Builder, corpus: &str) -> Encoded {
    let corpus = optional_string(builder, corpus);
    (wire::Operation::Totals, wire::Totals::create(builder, &wire::TotalsArgs { corpus }).as_union_value())
}
