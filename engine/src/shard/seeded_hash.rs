//! XXH3 with a seed, for many pieces of bytes with one seed.

use xxhash_rust::const_xxh3::const_custom_default_secret;
use xxhash_rust::xxh3::{xxh3_64_with_secret, xxh3_64_with_seed};

/// What is longer is hashed with a secret that is derived from the seed.
const SEED_BYTES_MAX: usize = 240;

/// The same as [`xxh3_64_with_seed`], which derives that secret anew each time: it writes it in pieces of 8 bytes and reads it in larger
/// ones at once, for which the processor waits until the pieces are in its cache.
#[derive(Debug)]
pub struct SeededHash {
    seed: u64,
    secret: [u8; 192],
}

impl SeededHash {
    /// The hash of a seed.
    pub fn new(seed: u64) -> SeededHash {
        SeededHash { seed, secret: const_custom_default_secret(seed) }
    }

    /// Of these bytes.
    #[inline]
    pub fn of(&self, bytes: &[u8]) -> u64 {
        match bytes.len() > SEED_BYTES_MAX {
            true => xxh3_64_with_secret(bytes, &self.secret),
            false => xxh3_64_with_seed(bytes, self.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_xxh3_with_a_seed_whatever_the_length() {
        let bytes: Vec<u8> = (0..3_000u32).map(|n| ((n * n) >> 3) as u8).collect();
        for seed in [0, 1, u64::MAX, 0x9e37_79b9_7f4a_7c15] {
            let hash = SeededHash::new(seed);
            for length in 0..bytes.len() {
                assert_eq!(hash.of(&bytes[..length]), xxh3_64_with_seed(&bytes[..length], seed), "{seed}, {length}");
            }
        }
    }
}
