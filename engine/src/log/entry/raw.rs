//! The fixed parts of the bodies, as the table of the module has them.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawMeta {
    pub timestamp_us: I64,
    pub idempotency_key: [u8; 16],
    pub correlation_id: [u8; 16],
    pub fingerprint: U64,
    pub uid: U32,
    pub gid: U32,
    pub pid: U32,
    pub item: U16,
    pub corpus: U16,
    pub rationale_bytes: U16,
    pub reserved: [u8; 6],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawClaim {
    pub event_id: [u8; 16],
    pub claim_sequence: U64,
    pub occurred_at_us: I64,
    pub metadata_bytes: U32,
    pub taxonomy_version: U32,
    pub event_key_bytes: U16,
    pub owning_bytes: u8,
    pub hosting_bytes: u8,
    pub category_bytes: u8,
    pub flags: u8,
    pub reserved: [u8; 2],
}

pub const FLAG_OVER_BUDGET: u8 = 1;
pub const FLAG_INCIDENT_ACTIVE: u8 = 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawReference {
    pub event_id: [u8; 16],
    pub canonical_id: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawTombstone {
    pub event_id: [u8; 16],
    pub reason_code: u8,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawOnboard {
    pub global_sequence: U64,
    pub onboarded_at_us: I64,
    pub prefix: U16,
    pub shard: U16,
    pub name_bytes: u8,
    pub reserved: u8,
    pub notes_bytes: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawPrefixAllocation {
    pub global_sequence: U64,
    pub minted_to: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawRecovery {
    pub incarnation: U64,
    pub cut_at: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawRepair {
    pub cut_at: U64,
    pub given_up_to: U64,
    pub floors: U32,
    pub reserved: [u8; 4],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawReshard {
    pub ledger: [u8; 16],
    pub at_us: I64,
    pub shards: U16,
    pub sources: U16,
    pub reserved: [u8; 4],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawReshardSource {
    pub shard: U16,
    pub last_position: U64,
    pub entries: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawFloor {
    pub prefix: U16,
    pub claim_sequence: U64,
}
