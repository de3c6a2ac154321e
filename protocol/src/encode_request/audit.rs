//! The log, what is in effect, and what was measured.

use super::Encoded;
use crate::Builder;
use crate::bounds::CHAIN_HASH_BYTES;
use crate::generated::claimd as wire;

pub(super) fn tail(builder: &mut Builder, shard: u16, from_position: u64, limit: u32, wait_ms: u32) -> Encoded {
    let table = wire::Tail::create(builder, &wire::TailArgs { shard, from_position, limit, wait_ms });
    (wire::Operation::Tail, table.as_union_value())
}

pub(super) fn head(builder: &mut Builder) -> Encoded {
    let table = wire::AuditHead::create(builder, &wire::AuditHeadArgs {});
    (wire::Operation::AuditHead, table.as_union_value())
}

pub(super) fn check(
    builder: &mut Builder,
    shard: u16,
    batch: u64,
    position: u64,
    hash: &[u8; CHAIN_HASH_BYTES],
) -> Encoded {
    let hash = Some(builder.create_vector(hash));
    let table = wire::AuditCheck::create(builder, &wire::AuditCheckArgs { shard, batch, position, hash });
    (wire::Operation::AuditCheck, table.as_union_value())
}

pub(super) fn configuration(builder: &mut Builder) -> Encoded {
    let table = wire::Configuration::create(builder, &wire::ConfigurationArgs {});
    (wire::Operation::Configuration, table.as_union_value())
}

pub(super) fn propagation(builder: &mut Builder) -> Encoded {
    let table = wire::Propagation::create(builder, &wire::PropagationArgs {});
    (wire::Operation::Propagation, table.as_union_value())
}
