//! Ids, positions and optional fields, between the generated types and the plain ones.

use crate::bounds::CHAIN_HASH_BYTES;
use crate::generated::claimd as wire;
use crate::values::LogPosition;
use crate::{Builder, Uuid};
use flatbuffers::{Vector, WIPOffset};

/// An empty string is left out: it costs nothing and reads as empty.
pub(crate) fn optional_string(builder: &mut Builder, text: &str) -> Option<WIPOffset<&'static str>> {
    (!text.is_empty()).then(|| builder.create_string(text))
}

pub(crate) fn wire_uuid(uuid: Uuid) -> wire::Uuid {
    wire::Uuid(uuid.into_bytes())
}

pub(crate) fn typed_uuid(uuid: &wire::Uuid) -> Uuid {
    Uuid::from_bytes(uuid.0)
}

pub(crate) fn typed_position(at: &wire::LogPosition) -> LogPosition {
    LogPosition { shard: at.shard(), position: at.position() }
}

/// An empty list of ids is left out.
pub(crate) fn optional_uuids<'b>(builder: &mut Builder, uuids: &[Uuid]) -> Option<WIPOffset<Vector<'b, wire::Uuid>>> {
    (!uuids.is_empty()).then(|| uuid_vector(builder, uuids))
}

pub(crate) fn uuid_vector<'b>(builder: &mut Builder, uuids: &[Uuid]) -> WIPOffset<Vector<'b, wire::Uuid>> {
    WIPOffset::new(builder.create_vector_from_iter(uuids.iter().copied().map(wire_uuid)).value())
}

pub(crate) fn typed_uuids(uuids: Option<Vector<'_, wire::Uuid>>) -> Vec<Uuid> {
    uuids.map(|uuids| uuids.iter().map(typed_uuid).collect()).unwrap_or_default()
}

/// A chain's hash, which has one length only.
pub(crate) fn typed_hash(hash: Vector<'_, u8>) -> Result<[u8; CHAIN_HASH_BYTES], String> {
    let bytes = hash.bytes();
    bytes.try_into().map_err(|_| format!("hash has {} bytes; {CHAIN_HASH_BYTES} are required", bytes.len()))
}
