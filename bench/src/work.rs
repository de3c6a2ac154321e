//! What a connection asks for, request after request, and what it makes of the answers.

use crate::claims::Claims;
use crate::error::BenchError;
use crate::lookups::Lookups;
use crate::outcome::Tally;
use crate::scans::Scans;
use crate::workload::{Mixed, Played};
use claim_protocol::ReplyResult;

/// One kind of request for each connection.
pub enum Work {
    Claims(Claims),
    Lookups(Lookups),
    Scans(Scans),
    Mixed(Box<Mixed>),
    Played(Box<Played>),
}

impl Work {
    /// Reads the clock for the requests to come.
    pub fn set_clock(&mut self) {
        match self {
            Work::Claims(claims) => claims.set_clock(),
            Work::Mixed(mixed) => mixed.set_clock(),
            Work::Played(played) => played.set_clock(),
            Work::Lookups(_) | Work::Scans(_) => {}
        }
    }

    /// Appends the next request, whose place is `slot`, to `out`.
    pub fn encode(&mut self, request_id: u64, slot: usize, out: &mut Vec<u8>) -> Result<(), BenchError> {
        match self {
            Work::Claims(claims) => claims.encode(request_id, out),
            Work::Lookups(lookups) => lookups.encode(request_id, slot, out),
            Work::Scans(scans) => scans.encode(request_id, slot, out),
            Work::Mixed(mixed) => mixed.encode(request_id, slot, out),
            Work::Played(played) => played.encode(request_id, slot, out),
        }
    }

    /// Takes the answer to the request in place `slot`: how many claims, references or rows it has, or `None` for a refusal, which is
    /// added to the tally.
    pub fn take(&mut self, slot: usize, result: &ReplyResult, tally: &mut Tally) -> Result<Option<u64>, BenchError> {
        match self {
            Work::Claims(claims) => claims.take(result, tally),
            Work::Lookups(lookups) => lookups.take(slot, result, tally),
            Work::Scans(scans) => scans.take(slot, result, tally),
            Work::Mixed(mixed) => mixed.take(slot, result, tally),
            Work::Played(played) => played.take(slot, result, tally),
        }
    }
}
