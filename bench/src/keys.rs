//! Idempotency keys and event keys that never repeat, at a cost of nanoseconds.

use claim_protocol::Uuid;
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of every event key.
pub const EVENT_KEY_BYTES: usize = 33;

/// Bits of a UUIDv7 below version and variant that are ours: a random base plus a counter.
const TAIL_MASK: u64 = (1 << 62) - 1;

/// Makes keys. Two generators never agree, because each draws its base from the system's entropy.
#[derive(Debug)]
pub struct Keys {
    /// Drawn once.
    base: u64,
    /// The base in hexadecimal, and a dash.
    event_key_prefix: String,
    /// Keys made so far.
    made: u64,
    /// Refreshed by [`Keys::set_clock`].
    clock_ms: u64,
}

impl Keys {
    /// A generator with a base of its own.
    pub fn new() -> Self {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the kernel has entropy");
        let base = u64::from_le_bytes(bytes);
        let mut keys = Keys { base, event_key_prefix: format!("{base:016x}-"), made: 0, clock_ms: 0 };
        keys.set_clock();
        keys
    }

    /// Reads the clock that the idempotency keys carry. Once per turn of the load loop is often enough: the daemon allows
    /// minutes.
    pub fn set_clock(&mut self) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.clock_ms = since_epoch.as_millis() as u64;
    }

    /// The clock as last read, in microseconds since the epoch.
    pub fn clock_us(&self) -> i64 {
        self.clock_ms as i64 * 1000
    }

    /// A UUIDv7 that no other call returns.
    pub fn idempotency_key(&mut self) -> Uuid {
        let number = self.next();
        let high = self.clock_ms << 16 | 0x7000 | (self.base >> 52);
        let low = 1 << 63 | (self.base.wrapping_add(number) & TAIL_MASK);
        Uuid::from_u64_pair(high, low)
    }

    /// Appends an event key that no other call appends: the base and a counter in hexadecimal.
    pub fn append_event_key(&mut self, text: &mut String) {
        let number = self.next();
        text.push_str(&self.event_key_prefix);
        text.push_str(std::str::from_utf8(&hex(number)).expect("digits are ASCII"));
    }

    fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }
}

/// Sixteen hexadecimal digits; the formatting machinery would cost as much as the rest of a request.
fn hex(value: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (place, byte) in digits.chunks_exact_mut(2).zip(value.to_be_bytes()) {
        place[0] = HEX_DIGITS[usize::from(byte >> 4)];
        place[1] = HEX_DIGITS[usize::from(byte & 15)];
    }
    digits
}

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn idempotency_keys_are_version_7_with_the_time_and_never_repeat() {
        let mut keys = Keys::new();
        let before = keys.clock_ms;
        let made: HashSet<Uuid> = (0..10_000).map(|_| keys.idempotency_key()).collect();
        assert_eq!(made.len(), 10_000);
        for key in made {
            assert_eq!(key.get_version_num(), 7);
            assert_eq!(key.as_u128() >> 62 & 3, 0b10, "the variant of RFC 9562");
            assert_eq!((key.as_u128() >> 80) as u64, before);
        }
    }

    #[test]
    fn event_keys_have_one_length_and_never_repeat() {
        let mut keys = Keys::new();
        let mut made = HashSet::new();
        for _ in 0..10_000 {
            let mut text = String::new();
            keys.append_event_key(&mut text);
            assert_eq!(text.len(), EVENT_KEY_BYTES, "{text}");
            assert!(made.insert(text));
        }
        assert_eq!(hex(0x0123_4567_89ab_cdef), *b"0123456789abcdef");
    }
}
