//! What the fuzz targets do with the fuzzer's bytes.
//!
//! | module | bytes are | it must hold that |
//! |---|---|---|
//! | [`request`] | frames | nothing panics; what decodes is encoded and decoded to the same again |
//! | [`recovery`] | a load, and damage done to the ledger file that it left | nothing panics or grows without bound; what opens was written, and opens again to the same |
//! | [`commands`] | requests, clocks, completions, failures, crashes | nothing panics; what was answered is there after recovery, and is there once |
//!
//! Structured input is drawn byte by byte with [`Input`], so that a change of one byte changes one decision, and the
//! seeds stay readable for the fuzzer.

pub mod commands;
pub mod disk;
pub mod recovery;
pub mod request;

use claim_engine::log::entry::Principal;
use claim_engine::time::SECOND_US;

/// Who asks.
pub(crate) const WHO: Principal = Principal { uid: 1000, gid: 100, pid: 42 };
/// A second before 2026-Q1 begins.
pub(crate) const START_US: i64 = 1_767_225_599 * SECOND_US;

/// Decisions, drawn from the fuzzer's bytes; once they are used up, every decision is 0.
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of the fuzzer's bytes.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { rest: bytes }
    }

    /// Whether the bytes are used up.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number in `0..bound`; `bound` is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound <= 256 { usize::from(self.byte()) % bound } else { self.u64() as usize % bound }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        // Used-up bytes say no.
        self.below(n) == n - 1
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number that is often small, or near a power of two, or near the largest one.
    pub fn number(&mut self) -> u64 {
        let near = u64::from(self.byte() % 4);
        match self.byte() {
            shift @ 0..64 => (1u64 << shift).wrapping_add(near).wrapping_sub(2),
            64..96 => near,
            96..128 => u64::MAX - near,
            128..160 => i64::MAX as u64 - near,
            160..192 => u64::from(self.byte()),
            192..224 => u64::from(self.byte()) * 4096,
            _ => self.u64(),
        }
    }

    /// Up to `most` of the next bytes.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let count = self.below(most + 1).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(count);
        self.rest = rest;
        bytes
    }
}

/// Picks one of several.
pub(crate) fn pick<'s, T>(input: &mut Input<'_>, from: &'s [T]) -> Option<&'s T> {
    if from.is_empty() { None } else { from.get(input.below(from.len())) }
}
