//! Idempotency keys.

use std::time::{SystemTime, UNIX_EPOCH};
use uuid::{Builder, Uuid};

/// Bytes of a UUIDv7 that are not its time.
const RANDOM_BYTES: usize = 10;

/// A new key: a UUIDv7 of `at_us`, or of the wall clock, with the operating system's entropy.
///
/// A daemon judges a key's age by the time in it. In a replay ledger time is what requests say, so there a key carries
/// the time of its request.
pub fn new_key(at_us: Option<i64>) -> Uuid {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).expect("the operating system gives entropy");
    key_from(at_us.map_or_else(now_ms, ms_of), random)
}

/// The key of millisecond `at_ms` with the given bits.
pub(crate) fn key_from(at_ms: u64, bits: [u8; RANDOM_BYTES]) -> Uuid {
    Builder::from_unix_timestamp_millis(at_ms, &bits).into_uuid()
}

/// The millisecond that a key of `at_us` carries; times before 1970 count as 1970.
pub(crate) fn ms_of(at_us: i64) -> u64 {
    u64::try_from(at_us).unwrap_or(0) / 1000
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::{ms_of, new_key};

    #[test]
    fn a_key_carries_its_time_and_differs() {
        let at_us = 1_387_563_974_123_456;
        let (first, second) = (new_key(Some(at_us)), new_key(Some(at_us)));
        assert_ne!(first, second);
        for key in [first, second] {
            assert_eq!(key.get_version_num(), 7);
            assert_eq!((key.as_u128() >> 80) as u64, ms_of(at_us));
        }
    }
}
