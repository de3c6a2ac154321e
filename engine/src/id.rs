//! The event-id: a UUIDv7 (RFC 9562 §5.7) whose first sixteen "random" bits are the claiming corpus's shard prefix.
//!
//! ```text
//!  bit 0                                            47   51          63
//!  ┌───────────────────────────────────────────────┬─────┬───────────┐
//!  │ Unix time, milliseconds (48)                  │ 0111│ prefix 15…4│
//!  ├──┬────┬───────────────────────────────────────┴─────┴───────────┤
//!  │10│ 3…0│ tail (58)                                               │
//!  └──┴────┴─────────────────────────────────────────────────────────┘
//!  bit 64  66   70                                               127
//! ```
//!
//! Vectors for authors of other clients, as milliseconds, prefix and tail:
//!
//! | ms | prefix | tail | event-id |
//! |---|---|---|---|
//! | `017f22e279b0` | `cc36` | `0c4dc0c0c07398f` | `017f22e2-79b0-7cc3-98c4-dc0c0c07398f` (RFC 9562, appendix A.6) |
//! | 0 | 1 | 0 | `00000000-0000-7000-8400-000000000000` |
//! | `ffffffffffff` | `ffff` | `3ffffffffffffff` | `ffffffff-ffff-7fff-bfff-ffffffffffff` |
//! | `019b76daa800` | `0012` | 1 | `019b76da-a800-7001-8800-000000000001` |
//!
//! Bit 0 is the most significant. The tail follows RFC 9562 §6.2 method 2 (monotonic random): a new millisecond draws
//! 58 bits with the top one clear; another id in the same millisecond adds a random step.

use crate::corpus::Prefix;
use crate::entropy::Entropy;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Bits of the tail.
pub const TAIL_BITS: u32 = 58;
const TAIL_MASK: u64 = (1 << TAIL_BITS) - 1;
/// A new millisecond's tail has its top bit clear, so that at least 2^57 / 2^32 further ids fit into it.
const FIRST_TAIL_MASK: u64 = TAIL_MASK >> 1;
const MS_MAX: u64 = (1 << 48) - 1;

/// The id that a claim hands out. Orders as its bits do: time first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u128", try_from = "u128")]
pub struct EventId {
    // Two words and not one of 128 bits, whose alignment of 16 has compilers make tags of enums as long, and read at once what was
    // written in halves: the processor then waits until both have left its store buffer.
    high: u64,
    low: u64,
}

impl From<EventId> for u128 {
    fn from(id: EventId) -> u128 {
        id.as_u128()
    }
}

impl TryFrom<u128> for EventId {
    type Error = &'static str;

    fn try_from(bits: u128) -> Result<EventId, &'static str> {
        EventId::from_u128(bits).ok_or("not an event-id")
    }
}

impl EventId {
    /// Packs the three fields; `ms` is cut to 48 bits and `tail` to 58.
    pub fn pack(ms: u64, prefix: Prefix, tail: u64) -> EventId {
        let prefix = u64::from(prefix.get());
        EventId {
            high: (ms & MS_MAX) << 16 | 0x7 << 12 | prefix >> 4,
            low: 0b10 << 62 | (prefix & 0xf) << 58 | tail & TAIL_MASK,
        }
    }

    /// Reads an id from its bits. `None` when version, variant or prefix can't be those of an event-id.
    pub fn from_u128(bits: u128) -> Option<EventId> {
        let (high, low) = ((bits >> 64) as u64, bits as u64);
        let version_and_variant = (high >> 12) & 0xf == 0x7 && low >> 62 == 0b10;
        let id = EventId { high, low };
        (version_and_variant && id.raw_prefix() != 0).then_some(id)
    }

    /// Reads an id from a parsed UUID; `None` as in [`EventId::from_u128`].
    pub fn from_uuid(uuid: Uuid) -> Option<EventId> {
        EventId::from_u128(uuid.as_u128())
    }

    /// The id as a number; network byte order equals big-endian order of this number.
    pub const fn as_u128(self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    /// The id for printing and for the wire.
    pub const fn as_uuid(self) -> Uuid {
        Uuid::from_u64_pair(self.high, self.low)
    }

    /// Unix time in milliseconds. It may run ahead of the row's `claim_timestamp` after a tail overflow.
    pub const fn ms(self) -> u64 {
        self.high >> 16
    }

    fn raw_prefix(self) -> u16 {
        ((self.high & 0xfff) as u16) << 4 | ((self.low >> 58) & 0xf) as u16
    }

    /// The shard prefix of the corpus that claimed the id.
    pub fn prefix(self) -> Prefix {
        Prefix::new(self.raw_prefix()).expect("an EventId is only made with a prefix that is not zero")
    }

    /// The 58 bits after the prefix.
    pub const fn tail(self) -> u64 {
        self.low & TAIL_MASK
    }

    /// The id that follows `last` in one corpus at wall time `now_ms`: greater than `last`, whatever the clock does.
    pub fn next(last: Option<EventId>, now_ms: u64, prefix: Prefix, entropy: &mut Entropy) -> EventId {
        let first_of = |ms: u64, entropy: &mut Entropy| EventId::pack(ms, prefix, entropy.next_u64() & FIRST_TAIL_MASK);
        let Some(last) = last else { return first_of(now_ms, entropy) };
        if now_ms > last.ms() {
            return first_of(now_ms, entropy);
        }
        let step = (entropy.next_u64() & 0xffff_ffff) + 1;
        match last.tail().checked_add(step).filter(|tail| *tail <= TAIL_MASK) {
            Some(tail) => EventId::pack(last.ms(), prefix, tail),
            // The millisecond is used up: borrow the next one, ahead of the clock.
            None => first_of(last.ms() + 1, entropy),
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_uuid().fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(n: u16) -> Prefix {
        Prefix::new(n).unwrap()
    }

    #[test]
    fn published_vectors() {
        // The table at the head of this module.
        let vectors = [
            // The example of RFC 9562, appendix A.6.
            (0x017F_22E2_79B0, 0xCC36, 0x0C4_DC0C_0C07_398F, "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
            (0, 1, 0, "00000000-0000-7000-8400-000000000000"),
            (MS_MAX, 0xFFFF, TAIL_MASK, "ffffffff-ffff-7fff-bfff-ffffffffffff"),
            (1_767_225_600_000, 0x0012, 1, "019b76da-a800-7001-8800-000000000001"),
        ];
        for (ms, p, tail, text) in vectors {
            let id = EventId::pack(ms, prefix(p), tail);
            assert_eq!(id.to_string(), text);
            let read = EventId::from_uuid(Uuid::parse_str(text).unwrap()).unwrap();
            assert_eq!((read.ms(), read.prefix().get(), read.tail()), (ms, p, tail), "{text}");
        }
    }

    #[test]
    fn other_uuids_are_not_event_ids() {
        for text in [
            "c232ab00-9414-4ec8-8ee8-1d7a1e1d2c1d", // version 4
            "017f22e2-79b0-7cc3-18c4-dc0c0c07398f", // variant 0
            "017f22e2-79b0-7000-80c4-dc0c0c07398f", // prefix 0
        ] {
            assert_eq!(EventId::from_uuid(Uuid::parse_str(text).unwrap()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn packs_and_unpacks(ms in 0..=MS_MAX, p in 1..=u16::MAX, tail in 0..=TAIL_MASK) {
            let id = EventId::pack(ms, prefix(p), tail);
            prop_assert_eq!((id.ms(), id.prefix().get(), id.tail()), (ms, p, tail));
            let uuid = id.as_uuid();
            prop_assert_eq!(uuid.get_version_num(), 7);
            prop_assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
            prop_assert_eq!(EventId::from_uuid(Uuid::parse_str(&uuid.to_string()).unwrap()), Some(id));
        }

        #[test]
        fn increases_whatever_the_clock_does(seed: u64, steps in proptest::collection::vec(-3_000i64..3_000, 1..300)) {
            let mut entropy = Entropy::from_seed_u64(seed);
            let (mut ms, mut last) = (1_000_000_i64, None);
            for step in steps {
                // A third of the steps stall, the others jump either way.
                ms += if step % 3 == 0 { 0 } else { step };
                let id = EventId::next(last, ms as u64, prefix(7), &mut entropy);
                prop_assert!(Some(id) > last);
                last = Some(id);
            }
        }
    }

    #[test]
    fn a_used_up_millisecond_borrows_the_next() {
        let mut entropy = Entropy::from_seed_u64(1);
        let last = EventId::pack(5, prefix(9), TAIL_MASK);
        let id = EventId::next(Some(last), 5, prefix(9), &mut entropy);
        assert_eq!(id.ms(), 6);
        assert!(id > last && id.tail() <= FIRST_TAIL_MASK);
    }
}
