//! Corpus names and shard prefixes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU16;

/// Longest corpus or category name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// A corpus's 16-bit shard prefix: given once, for life, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prefix(NonZeroU16);

impl Prefix {
    /// `None` for 0, which is never given out.
    pub const fn new(n: u16) -> Option<Prefix> {
        match NonZeroU16::new(n) {
            Some(n) => Some(Prefix(n)),
            None => None,
        }
    }

    /// The first that is given out.
    pub const FIRST: Prefix = Prefix(NonZeroU16::MIN);

    /// The number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Whether `name` may be a corpus's: `[a-z0-9][a-z0-9-]{0,62}`.
pub fn is_corpus_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let letter = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= NAME_BYTES_MAX && bytes.first().is_some_and(letter) && bytes.iter().all(|b| letter(b) || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "0", "internal-tools", "a-", &"x".repeat(63)] {
            assert!(is_corpus_name(good), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a b", "ä", &"x".repeat(64)] {
            assert!(!is_corpus_name(bad), "{bad}");
        }
    }
}
