//! What can still be read in a hole.

use super::Hole;
use crate::log::entry::Record;
use crate::log::layout::RECORD_BYTES_MAX;
use crate::log::record::{self, RECORD_HEADER_BYTES};
use std::collections::BTreeMap;

pub(super) struct Salvaged {
    pub position: u64,
    pub kind: u16,
    pub body: Vec<u8>,
    pub log_offset: u64,
    pub is_intact: bool,
}

/// Records in a hole that verify by themselves; and what stands between them as it reads, if it reads as a record of the
/// position that is missing there.
pub(super) fn salvage(hole: &Hole, positions: &std::ops::Range<u64>) -> BTreeMap<u64, Salvaged> {
    let mut salvaged: BTreeMap<u64, Salvaged> = BTreeMap::new();
    for (piece_at, bytes) in &hole.pieces {
        let mut at = 0;
        while at + RECORD_HEADER_BYTES <= bytes.len() {
            let header = record::peek(&bytes[at..]);
            let Some((position, kind, length)) = header.filter(|(position, _, length)| {
                positions.contains(position)
                    && *length as u64 <= RECORD_BYTES_MAX
                    && salvaged.get(position).is_none_or(|found| !found.is_intact)
            }) else {
                at += 8;
                continue;
            };
            let log_offset = piece_at + at as u64;
            if let Ok((raw, total)) = record::read(&bytes[at..]) {
                let body = raw.body.to_vec();
                salvaged.insert(position, Salvaged { position, kind, body, log_offset, is_intact: true });
                at += total;
                continue;
            }
            if let Some(body) = bytes.get(at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + length)
                && Record::decode(kind, body).is_ok()
            {
                let body = body.to_vec();
                salvaged.entry(position).or_insert(Salvaged { position, kind, body, log_offset, is_intact: false });
            }
            at += 8;
        }
    }
    salvaged
}
