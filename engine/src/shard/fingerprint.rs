//! A number that tells a retry from another request: over everything that the request means.
//!
//! Each text is hashed where it lies, and what comes of it is folded in by a multiplication. Put together in one place first, they would be
//! read there in larger pieces than they were written in, for which the processor waits until its writes are done. All begins
//! with the ledger's secret, so that nobody can make two requests that look alike.

use super::decide::Keyed;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Odd numbers, about half of whose bits are ones: any do.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const SUMMAND: u64 = 0xbf58_476d_1ce4_e5b9;

/// What a request means, as far as it was added.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fingerprint {
    secret: u64,
    sum: u64,
}

impl Fingerprint {
    pub fn new(secret: u64) -> Fingerprint {
        Fingerprint { secret, sum: secret }
    }

    #[inline(always)]
    pub fn number(&mut self, n: u64) {
        let wide = u128::from(self.sum ^ n) * u128::from(FACTOR);
        // The two halves, so that the upper bits count in the lower ones; and a summand, so that each number changes it.
        self.sum = ((wide >> 64) as u64 ^ wide as u64).wrapping_add(SUMMAND);
    }

    #[inline(always)]
    pub fn wide(&mut self, n: u128) {
        self.number((n >> 64) as u64);
        self.number(n as u64);
    }

    /// Its length counts, so that no two texts run into one another.
    #[inline(always)]
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(xxh3_64_with_seed(bytes, self.secret));
    }

    #[inline(always)]
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// The low byte is the operation, so that what is kept for a key is never taken for another operation's.
    #[inline(always)]
    pub fn of(self, operation: Keyed) -> u64 {
        self.sum & !0xff | operation as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SECRETS: [u64; 4] = [0, 1, 0x0123_4567_89ab_cdef, u64::MAX];

    fn of(secret: u64, fields: impl FnOnce(&mut Fingerprint)) -> u64 {
        let mut sum = Fingerprint::new(secret);
        fields(&mut sum);
        sum.of(Keyed::Claim)
    }

    #[test]
    fn where_one_text_ends_and_the_next_begins_counts() {
        for secret in SECRETS {
            let all: BTreeSet<u64> = ["", "a", "ab", "abc"]
                .iter()
                .map(|first| {
                    of(secret, |sum| {
                        sum.text(first);
                        sum.text(&"abc"[first.len()..]);
                    })
                })
                .collect();
            assert_eq!(all.len(), 4, "secret {secret:#x}");
        }
    }

    #[test]
    fn every_bit_of_every_field_and_their_order_count() {
        for secret in SECRETS {
            let fields = |values: [u64; 4]| of(secret, |sum| values.into_iter().for_each(|value| sum.number(value)));
            let mut seen = BTreeSet::from([fields([0; 4])]);
            for field in 0..4 {
                for bit in 0..64 {
                    let mut values = [0; 4];
                    values[field] = 1 << bit;
                    assert!(seen.insert(fields(values)), "secret {secret:#x}, field {field}, bit {bit}");
                }
            }
            let zeroes = |count| of(secret, |sum| (0..count).for_each(|_| sum.number(0)));
            let some: BTreeSet<u64> = (0..16).map(zeroes).collect();
            assert_eq!(some.len(), 16, "secret {secret:#x}");
        }
    }

    #[test]
    fn texts_of_any_length_count_to_their_last_bit() {
        for bytes in [1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1_024, 4_096] {
            let whole = vec![0x55; bytes];
            let mut seen = BTreeSet::from([of(7, |sum| sum.bytes(&whole)), of(7, |sum| sum.bytes(&whole[1..]))]);
            assert_eq!(seen.len(), 2);
            for bit in [0, bytes * 8 / 2, bytes * 8 - 1] {
                let mut other = whole.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                seen.insert(of(7, |sum| sum.bytes(&other)));
            }
            assert!(seen.len() > 3, "{bytes} bytes");
        }
    }

    #[test]
    fn another_secret_is_another_fingerprint_and_the_low_byte_is_the_operation() {
        let all: BTreeSet<u64> = SECRETS.iter().map(|secret| of(*secret, |sum| sum.text("a"))).collect();
        assert_eq!(all.len(), SECRETS.len());
        assert!(all.iter().all(|fingerprint| *fingerprint as u8 == Keyed::Claim as u8));
        assert_eq!(Fingerprint::new(9).of(Keyed::Retract) as u8, Keyed::Retract as u8);
    }
}
