//! The log.

use super::at_most;
use crate::bounds::{CHAIN_HASH_BYTES, TAIL_WAIT_MS_MAX};
use crate::generated::claimd as wire;
use crate::request::Operation;
use crate::wire_values::typed_hash;

pub(super) fn tail<'a>(table: &wire::Tail<'a>) -> Result<Operation<'a>, String> {
    let wait_ms = table.wait_ms();
    at_most("wait_ms", wait_ms as usize, TAIL_WAIT_MS_MAX as usize, "ms")?;
    let (shard, from_position, limit) = (table.shard(), table.from_position(), table.limit());
    Ok(Operation::Tail { shard, from_position, limit, wait_ms })
}

pub(super) fn check<'a>(table: &wire::AuditCheck<'a>) -> Result<Operation<'a>, String> {
    let hash: [u8; CHAIN_HASH_BYTES] = typed_hash(table.hash())?;
    Ok(Operation::AuditCheck { shard: table.shard(), batch: table.batch(), position: table.position(), hash })
}
