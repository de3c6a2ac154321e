//! The table of a row that was claimed and of which nothing became: on a page nearly all are so, and have one layout.

use super::piece::{self, FromEnd, put_tables, to_vtable};
use crate::Builder;
use crate::generated::claimd::Row as Wire;
use crate::reply::RowRef;
use flatbuffers::VOffsetT;

/// Bytes of the table: those of its fields, up to a multiple of eight.
const TABLE_BYTES: usize = at::END.next_multiple_of(8);
/// Bytes of the vtable: its length, that of the table, and two for each field that the schema has.
const VTABLE_BYTES: usize = Wire::VT_REFERENCES as usize + 2;

/// Where the fields lie in the table.
mod at {
    pub const CORPUS: usize = 4;
    pub const CLAIM_TIMESTAMP_US: usize = 8;
    pub const CLAIM_SEQUENCE: usize = 16;
    pub const OCCURRED_AT_US: usize = 24;
    pub const RETENTION_EXPIRES_AT_US: usize = 32;
    pub const EVENT_KEY: usize = 40;
    pub const OWNING_CORPUS: usize = 44;
    pub const HOSTING_CORPUS: usize = 48;
    pub const CATEGORY: usize = 52;
    pub const METADATA: usize = 56;
    pub const EFFECTIVE_QUARTER: usize = 60;
    pub const TAXONOMY_VERSION: usize = 64;
    pub const REFERENCES: usize = 68;
    pub const EVENT_ID: usize = 72;
    pub const LIFECYCLE: usize = 88;
    pub const RECONCILIATION_STATE: usize = 89;
    pub const OVER_BUDGET: usize = 90;
    pub const INCIDENT_ACTIVE: usize = 91;
    /// Behind the last field.
    pub const END: usize = 92;
}

const FIELDS: [(VOffsetT, usize); 18] = [
    (Wire::VT_CORPUS, at::CORPUS),
    (Wire::VT_CLAIM_TIMESTAMP_US, at::CLAIM_TIMESTAMP_US),
    (Wire::VT_CLAIM_SEQUENCE, at::CLAIM_SEQUENCE),
    (Wire::VT_OCCURRED_AT_US, at::OCCURRED_AT_US),
    (Wire::VT_RETENTION_EXPIRES_AT_US, at::RETENTION_EXPIRES_AT_US),
    (Wire::VT_EVENT_KEY, at::EVENT_KEY),
    (Wire::VT_OWNING_CORPUS, at::OWNING_CORPUS),
    (Wire::VT_HOSTING_CORPUS, at::HOSTING_CORPUS),
    (Wire::VT_CATEGORY, at::CATEGORY),
    (Wire::VT_METADATA, at::METADATA),
    (Wire::VT_EFFECTIVE_QUARTER, at::EFFECTIVE_QUARTER),
    (Wire::VT_TAXONOMY_VERSION, at::TAXONOMY_VERSION),
    (Wire::VT_REFERENCES, at::REFERENCES),
    (Wire::VT_EVENT_ID, at::EVENT_ID),
    (Wire::VT_LIFECYCLE, at::LIFECYCLE),
    (Wire::VT_RECONCILIATION_STATE, at::RECONCILIATION_STATE),
    (Wire::VT_OVER_BUDGET, at::OVER_BUDGET),
    (Wire::VT_INCIDENT_ACTIVE, at::INCIDENT_ACTIVE),
];

const VTABLE: [u8; VTABLE_BYTES] = piece::vtable(&FIELDS, at::END);

/// What a row's table refers to.
pub(super) struct Texts {
    pub corpus: FromEnd,
    pub event_key: FromEnd,
    pub owning_corpus: FromEnd,
    pub hosting_corpus: FromEnd,
    pub category: FromEnd,
    pub metadata: FromEnd,
    pub effective_quarter: FromEnd,
}

/// Whether nothing became of a row: what may be absent is, except for its effective quarter. All fields stand here, so that one that
/// is new is not forgotten in [`FIELDS`] and [`put_table`].
pub(super) fn is_plain(row: &RowRef<'_>) -> bool {
    let RowRef {
        event_id: _,
        corpus: _,
        lifecycle: _,
        claim_timestamp_us: _,
        claim_sequence: _,
        event_key: _,
        occurred_at_us: _,
        owning_corpus: _,
        hosting_corpus: _,
        category: _,
        taxonomy_version: _,
        metadata: _,
        canonical_id: None,
        tombstoned_at_us: None,
        tombstone_reason_code: None,
        tombstone_reason: None,
        reactivated_at_us: None,
        dispute_id: None,
        reconciliation_state: _,
        over_budget: _,
        incident_active: _,
        effective_quarter,
        reactivation_quarter: None,
        retention_expires_at_us: _,
        references: _,
    } = row
    else {
        return false;
    };
    !effective_quarter.is_empty()
}

/// Puts the vtable of plain rows into a buffer.
pub(super) fn put_vtable(builder: &mut Builder) -> FromEnd {
    piece::put_vtable(builder, VTABLE)
}

/// Puts the table of a plain row into a buffer that has its vtable and its texts.
pub(super) fn put_table(builder: &mut Builder, vtable: FromEnd, row: &RowRef<'_>, texts: &Texts) -> FromEnd {
    put_tables(builder, |own| {
        let mut table = [0; TABLE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| table[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &to_vtable(own, vtable));
        let texts = [
            (at::CORPUS, texts.corpus),
            (at::EVENT_KEY, texts.event_key),
            (at::OWNING_CORPUS, texts.owning_corpus),
            (at::HOSTING_CORPUS, texts.hosting_corpus),
            (at::CATEGORY, texts.category),
            (at::METADATA, texts.metadata),
            (at::EFFECTIVE_QUARTER, texts.effective_quarter),
        ];
        for (at, text) in texts {
            put(at, &(own - at as FromEnd - text).to_le_bytes());
        }
        put(at::CLAIM_TIMESTAMP_US, &row.claim_timestamp_us.to_le_bytes());
        put(at::CLAIM_SEQUENCE, &row.claim_sequence.to_le_bytes());
        put(at::OCCURRED_AT_US, &row.occurred_at_us.to_le_bytes());
        put(at::RETENTION_EXPIRES_AT_US, &row.retention_expires_at_us.to_le_bytes());
        put(at::TAXONOMY_VERSION, &row.taxonomy_version.to_le_bytes());
        put(at::REFERENCES, &row.references.to_le_bytes());
        put(at::EVENT_ID, row.event_id.as_bytes());
        put(at::LIFECYCLE, &[row.lifecycle as u8]);
        put(at::RECONCILIATION_STATE, &[row.reconciliation_state as u8]);
        put(at::OVER_BUDGET, &[row.over_budget.into()]);
        put(at::INCIDENT_ACTIVE, &[row.incident_active.into()]);
        table
    })
}
