//! Stretches of a sealed segment's log, each read in one piece for a page of a scan. Their blocks are nobody else's soon again, so that they
//! don't go through the block cache: what is read is looked through, and then answered from, where it is.

use crate::log::record::{self, RawRecord};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a stretch, at most: it is one read.
pub const STRETCH_BYTES_MAX: u64 = 1 << 20;
/// Stretches at hand, at most.
pub const STRETCHES_MAX: usize = 16;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    start: u64,
    bytes: Arc<Vec<u8>>,
    /// Log offsets, where records that start there were verified.
    verified: Range<u64>,
}

impl Stretch {
    /// Of bytes that were read from a log offset on.
    pub fn new(start: u64, bytes: Vec<u8>) -> Stretch {
        Stretch { start, bytes: Arc::new(bytes), verified: start..start }
    }

    /// The same, whose records that start between two log offsets were verified.
    pub fn verified(self, between: Range<u64>) -> Stretch {
        Stretch { verified: between, ..self }
    }

    /// Where it begins and ends, in log offsets.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }

    /// What was read from a log offset in it on.
    pub fn bytes_from(&self, log_offset: u64) -> &[u8] {
        &self.bytes[(log_offset - self.start) as usize..]
    }

    /// Whether a record that starts at a log offset was verified.
    pub fn has_verified(&self, log_offset: u64) -> bool {
        self.verified.contains(&log_offset)
    }

    /// The record at a log offset, if it was verified.
    pub fn record(&self, log_offset: u64) -> Option<RawRecord<'_>> {
        if !self.has_verified(log_offset) {
            return None;
        }
        let rest = self.bytes.get(usize::try_from(log_offset.checked_sub(self.start)?).ok()?..)?;
        record::verified_before(rest)
    }
}

/// The last stretches that were read.
#[derive(Debug, Default)]
pub(super) struct Stretches(VecDeque<Stretch>);

impl Stretches {
    pub fn put(&mut self, stretch: Stretch) {
        self.0.truncate(STRETCHES_MAX - 1);
        self.0.push_front(stretch);
    }

    /// One that has all of a range.
    pub fn with(&self, range: &Range<u64>) -> Option<Stretch> {
        let has = |stretch: &&Stretch| stretch.range().start <= range.start && range.end <= stretch.range().end;
        self.0.iter().find(has).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_at_hand() {
        let mut stretches = Stretches::default();
        for n in 0..100 {
            stretches.put(Stretch::new(n * 4_096, vec![n as u8; 8_192]));
            assert!(stretches.0.len() <= STRETCHES_MAX);
        }
        for n in 0..100 {
            let found = stretches.with(&(n * 4_096..n * 4_096 + 8_192));
            assert_eq!(found.is_some(), n >= 100 - STRETCHES_MAX as u64, "{n}");
            assert!(found.is_none_or(|found| found.bytes[0] == n as u8));
        }
        assert!(stretches.with(&(99 * 4_096..99 * 4_096 + 8_193)).is_none(), "it ends before");
    }

    #[test]
    fn only_what_was_verified_is_a_record() {
        let mut bytes = vec![0; 64];
        record::append(&mut bytes, 7, 9, |out| out.extend_from_slice(b"body"));
        record::put_checksums(&mut bytes[64..]);
        let at = 4_096 + 64;
        let stretch = Stretch::new(4_096, bytes);
        assert_eq!(stretch.record(at), None);
        assert_eq!(stretch.clone().verified(4_096..at).record(at), None);
        assert_eq!(stretch.clone().verified(at + 1..u64::MAX).record(at), None);
        let stretch = stretch.verified(4_096..u64::MAX);
        assert_eq!(stretch.record(at), Some(RawRecord { position: 7, kind: 9, body: b"body" }));
        assert_eq!([stretch.record(4_095), stretch.record(at + 40), stretch.record(u64::MAX - 1)], [None; 3]);
    }
}
