//! Numbers that a seed repeats: where to look, and in which order.

/// SplitMix64 (Steele, Lea and Flood): one word of state, and any seed will do.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Random { state: seed }
    }

    /// A seed from the system's entropy, for a run that nobody has asked to repeat.
    pub fn fresh_seed() -> u64 {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the kernel has entropy");
        u64::from_le_bytes(bytes)
    }

    /// The next number, of all 64-bit numbers alike.
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is not 0. What a multiplication rounds off makes some numbers more likely than others by
    /// `bound` in 2⁶⁴.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Puts `items` into one of all orders alike (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_numbers_and_another_does_not() {
        let take = |seed| {
            let mut random = Random::new(seed);
            [random.next(), random.next(), random.next()]
        };
        // The reference implementation's first numbers of the seed 0.
        assert_eq!(take(0), [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
    }

    #[test]
    fn numbers_below_a_bound_reach_all_of_them() {
        let mut random = Random::new(1);
        let mut seen = [0; 10];
        (0..10_000).for_each(|_| seen[random.below(10) as usize] += 1);
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
        assert_eq!(random.below(1), 0);
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut items: Vec<u32> = (0..100).collect();
        Random::new(3).shuffle(&mut items);
        assert!(items.windows(2).any(|pair| pair[0] > pair[1]), "{items:?}");
        items.sort_unstable();
        assert!(items.iter().copied().eq(0..100));
        Random::new(3).shuffle(&mut Vec::<u32>::new());
    }
}
