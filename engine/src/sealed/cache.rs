//! Blocks of the log at hand: a bounded cache with the clock algorithm (second chance), which costs a bit per block where
//! least-recently-used costs a list.

use crate::log::layout::BLOCK_BYTES;
use hashbrown::HashMap;
use std::sync::Arc;

/// A block of the log.
pub type Block = Arc<[u8]>;

/// Least blocks that a cache holds: what any one decision needs at once fits several times.
pub const CACHE_BLOCKS_MIN: usize = 4_096;

#[derive(Debug)]
struct Slot {
    number: u64,
    block: Block,
    was_used: bool,
    /// It is a page of an index whose checksum matches.
    is_verified: bool,
}

/// See the module.
#[derive(Debug)]
pub struct BlockCache {
    capacity: usize,
    slots: Vec<Slot>,
    by_number: HashMap<u64, usize>,
    hand: usize,
    hits: u64,
    misses: u64,
}

impl BlockCache {
    /// A cache of so many bytes, rounded down to whole blocks, and up to the least.
    pub fn new(bytes: u64) -> BlockCache {
        let capacity = ((bytes / BLOCK_BYTES) as usize).max(CACHE_BLOCKS_MIN);
        BlockCache { capacity, slots: Vec::new(), by_number: HashMap::new(), hand: 0, hits: 0, misses: 0 }
    }

    /// A block, by its number in the log.
    pub fn get(&mut self, number: u64) -> Option<Block> {
        self.get_page(number).map(|(block, _)| block)
    }

    /// Whether a block is there.
    pub fn has(&self, number: u64) -> bool {
        self.by_number.contains_key(&number)
    }

    /// The same as [`BlockCache::get`] of an index's page, and whether it was verified since it was read.
    pub fn get_page(&mut self, number: u64) -> Option<(Block, bool)> {
        match self.by_number.get(&number) {
            Some(index) => {
                self.hits += 1;
                let slot = &mut self.slots[*index];
                slot.was_used = true;
                Some((Arc::clone(&slot.block), slot.is_verified))
            }
            None => {
                self.misses += 1;
                None
            }
        }
    }

    /// The page verifies: it need not be verified again while it is here.
    pub fn verified(&mut self, number: u64) {
        if let Some(index) = self.by_number.get(&number) {
            self.slots[*index].is_verified = true;
        }
    }

    /// Takes a block in, and with it another one out once it is full.
    pub fn put(&mut self, number: u64, block: Block) {
        if let Some(index) = self.by_number.get(&number) {
            (self.slots[*index].block, self.slots[*index].is_verified) = (block, false);
            return;
        }
        let slot = Slot { number, block, was_used: false, is_verified: false };
        if self.slots.len() < self.capacity {
            self.by_number.insert(number, self.slots.len());
            self.slots.push(slot);
            return;
        }
        while std::mem::take(&mut self.slots[self.hand].was_used) {
            self.hand = (self.hand + 1) % self.capacity;
        }
        self.by_number.remove(&self.slots[self.hand].number);
        self.by_number.insert(number, self.hand);
        self.slots[self.hand] = slot;
        self.hand = (self.hand + 1) % self.capacity;
    }

    /// Blocks that it holds, and that it may.
    pub fn blocks(&self) -> (u64, u64) {
        (self.slots.len() as u64, self.capacity as u64)
    }

    /// How often what was asked for was there, and how often not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u64) -> Block {
        Arc::from(n.to_le_bytes().as_slice())
    }

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let mut cache = BlockCache::new(0);
        let capacity = CACHE_BLOCKS_MIN as u64;
        for n in 0..10 * capacity {
            cache.put(n, block(n));
            assert_eq!(cache.get(0), Some(block(0)), "used each time");
        }
        assert_eq!(cache.blocks(), (capacity, capacity));
        let kept = (0..10 * capacity).filter(|n| cache.get(*n).is_some_and(|found| found == block(*n))).count();
        assert_eq!(kept as u64, capacity);
    }
}
