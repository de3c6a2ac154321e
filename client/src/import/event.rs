//! One line of an import file, and what follows from it.

use crate::key::{key_from, ms_of};
use claim_protocol::METADATA_BYTES_MAX;
use serde::Deserialize;
use std::fmt;
use uuid::Uuid;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Event {
    /// The corpus that acts.
    pub corpus: String,
    /// When, in seconds since the epoch.
    pub at: i64,
    /// What it does.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What an event does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum EventKind {
    /// A claim.
    Claim {
        /// Names the claim within its corpus, for later lines.
        #[serde(rename = "ref")]
        reference: String,
        /// When the event happened, in seconds since the epoch.
        occurred_at: i64,
        /// Equal keys are the same event, in whichever corpus.
        event_key: String,
        /// What kind of event it is.
        category: String,
        /// The corpus that owns it.
        owning_corpus: String,
        /// The corpus that hosts it.
        hosting_corpus: String,
        /// Bytes of metadata.
        size: u64,
    },
    /// A retraction of an earlier claim of the same corpus.
    Retract {
        /// The claim's `ref`.
        #[serde(rename = "ref")]
        reference: String,
        /// Why.
        reason: String,
    },
    /// A retracted claim comes back.
    Reactivate {
        /// The claim's `ref`.
        #[serde(rename = "ref")]
        reference: String,
        /// Why.
        reason: String,
    },
    /// The corpus refers to another one's latest canonical row.
    Reference {
        /// The other corpus.
        to_latest_of: String,
    },
}

impl Event {
    /// The event's time in microseconds.
    pub fn at_us(&self) -> i64 {
        self.at.saturating_mul(1_000_000)
    }

    /// What it is called, and what it is about: a `ref`, or another corpus.
    fn operation(&self) -> (&'static str, &str) {
        match &self.kind {
            EventKind::Claim { reference, .. } => ("claim", reference),
            EventKind::Retract { reference, .. } => ("retract", reference),
            EventKind::Reactivate { reference, .. } => ("reactivate", reference),
            EventKind::Reference { to_latest_of } => ("reference", to_latest_of),
        }
    }

    /// The idempotency key of the event; `occurrence` counts those before it that are alike in all but their order.
    pub fn key(&self, occurrence: u32) -> Uuid {
        let (operation, object) = self.operation();
        derived_key(self.at_us(), operation, &self.corpus, object, occurrence)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, object) = self.operation();
        write!(f, "{operation} {object} of {} (at {})", self.corpus, self.at)
    }
}

/// The key of an operation at a time: a UUIDv7 whose other bits are a hash of what is done.
///
/// XXH3 is fixed by its specification, so that a file gives the same keys wherever and whenever it is played. It need not
/// resist an attacker: whoever writes the file may as well write the requests. Among the thousands of events that share a
/// millisecond, two collide in 74 bits about never.
pub(crate) fn derived_key(at_us: i64, operation: &str, corpus: &str, object: &str, occurrence: u32) -> Uuid {
    let mut hash = Xxh3::new();
    for field in [operation, corpus, object] {
        // With their lengths, so that the fields cannot be cut differently.
        hash.update(&(field.len() as u64).to_le_bytes());
        hash.update(field.as_bytes());
    }
    hash.update(&at_us.to_le_bytes());
    hash.update(&occurrence.to_le_bytes());
    let mut bits = [0; 10];
    bits.copy_from_slice(&hash.digest128().to_be_bytes()[..10]);
    key_from(ms_of(at_us), bits)
}

/// Metadata for a claim: as many bytes as it says, up to the protocol's bound, the same ones each time.
pub(crate) fn metadata(reference: &str, size: u64, out: &mut Vec<u8>) {
    let bytes = usize::try_from(size).unwrap_or(usize::MAX).min(METADATA_BYTES_MAX);
    let mut state = xxh3_64(reference.as_bytes());
    out.clear();
    while out.len() < bytes {
        // SplitMix64: one step per eight bytes.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(bytes);
}

#[cfg(test)]
mod tests {
    use super::{Event, EventKind, derived_key, metadata};
    use claim_protocol::METADATA_BYTES_MAX;

    #[test]
    fn the_key_of_an_event_is_fixed_for_ever() {
        let line = r#"{"op":"claim","corpus":"bbolt","at":1387563974,"ref":"7b38858d98c2bf73",
            "occurred_at":1387563974,"event_key":"2e6aa0e90fd0bec42d9c0e04","category":"root",
            "owning_corpus":"bbolt","hosting_corpus":"bbolt","size":14}"#;
        let event: Event = serde_json::from_str(line).expect("a claim");
        assert!(matches!(&event.kind, EventKind::Claim { size: 14, .. }));
        assert_eq!(event.key(0).to_string(), "01431141-fd70-7b40-861c-59372f5c3ab8");
    }

    #[test]
    fn keys_differ_where_events_do() {
        let keys = [
            derived_key(1, "claim", "ab", "c", 0),
            derived_key(1, "claim", "a", "bc", 0),
            derived_key(1, "retract", "ab", "c", 0),
            derived_key(1_000_000, "claim", "ab", "c", 0),
            derived_key(1, "claim", "ab", "c", 1),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(key.get_version_num(), 7);
            assert!(!keys[..index].contains(key));
        }
    }

    #[test]
    fn metadata_has_the_length_asked_for_and_repeats() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (size, expected) in [(0, 0), (1, 1), (8, 8), (13, 13), (u64::MAX, METADATA_BYTES_MAX)] {
            metadata("7b38858d98c2bf73", size, &mut first);
            metadata("7b38858d98c2bf73", size, &mut second);
            assert_eq!((first.len(), &first), (expected, &second));
        }
        metadata("another", 13, &mut second);
        assert_ne!(first[..13], second);
    }
}
