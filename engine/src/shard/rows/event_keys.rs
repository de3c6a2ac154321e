//! Which rows have an event key: by a hash of it, the last row that has it; each row names the one before. Rows of equal
//! keys are a chain, so that a corpus that claims one key a million times makes a long chain, and no slow table.
//!
//! An entry is found with one access to memory (open addressing, hash and row side by side), which can be begun early. The
//! table is many small ones, so that none takes long to grow.

use std::ops::RangeInclusive;

/// Few enough for their heads to stay in the cache.
const TABLES: usize = 1_024;
/// Places of a table that holds anything.
const PLACES_MIN: usize = 16;

/// Where a row is in the index: its corpus's prefix and its number within it. 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowRef(u64);

impl RowRef {
    /// No row.
    pub const NONE: RowRef = RowRef(0);

    /// A row of a prefix.
    pub fn new(prefix: u16, index: usize) -> RowRef {
        RowRef(u64::from(prefix) << 48 | (index as u64 + 1))
    }

    /// From its number, which is 0 for none.
    pub fn from_bits(bits: u64) -> Option<RowRef> {
        Some(RowRef(bits)).filter(|row| row.get().is_some() && bits >> 48 != 0)
    }

    /// Its number.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Prefix and index.
    pub fn get(self) -> Option<(u16, usize)> {
        let index = (self.0 & ((1 << 48) - 1)).checked_sub(1)?;
        Some(((self.0 >> 48) as u16, index as usize))
    }
}

/// A place of a table; `row` is none where it is empty.
#[derive(Debug, Clone, Copy)]
struct Place {
    key_hash: u64,
    row: RowRef,
}

const EMPTY: Place = Place { key_hash: 0, row: RowRef::NONE };

/// Linear probing; a power of two of places, at most three quarters of them taken.
#[derive(Debug, Default)]
struct Table {
    places: Vec<Place>,
    taken: usize,
}

impl Table {
    /// Where a key is, or would be put. There is always an empty place.
    fn place_of(&self, key_hash: u64) -> usize {
        let mask = self.places.len() - 1;
        let mut at = key_hash as usize & mask;
        while self.places[at].row != RowRef::NONE && self.places[at].key_hash != key_hash {
            at = (at + 1) & mask;
        }
        at
    }

    fn grow(&mut self) {
        let places = (self.places.len() * 2).max(PLACES_MIN);
        let old = std::mem::replace(&mut self.places, vec![EMPTY; places]);
        for place in old.into_iter().filter(|place| place.row != RowRef::NONE) {
            let at = self.place_of(place.key_hash);
            self.places[at] = place;
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct EventKeys {
    tables: Vec<Table>,
}

impl Default for EventKeys {
    fn default() -> EventKeys {
        EventKeys { tables: (0..TABLES).map(|_| Table::default()).collect() }
    }
}

impl EventKeys {
    /// Makes a row the last one with its key; returns the one that was.
    pub fn insert(&mut self, key_hash: u64, row: RowRef) -> RowRef {
        let table = &mut self.tables[table_of(key_hash)];
        if table.taken * 4 >= table.places.len() * 3 {
            table.grow();
        }
        let at = table.place_of(key_hash);
        let before = std::mem::replace(&mut table.places[at], Place { key_hash, row });
        table.taken += usize::from(before.row == RowRef::NONE);
        before.row
    }

    /// The last row with a key.
    pub fn last(&self, key_hash: u64) -> RowRef {
        let table = &self.tables[table_of(key_hash)];
        if table.places.is_empty() { RowRef::NONE } else { table.places[table.place_of(key_hash)].row }
    }

    /// The last row with each key whose hash is in a range, in no order.
    pub fn between(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = (u64, RowRef)> + '_ {
        let tables = &self.tables[table_of(*range.start())..=table_of(*range.end())];
        let taken = tables.iter().flat_map(|table| &table.places).filter(|place| place.row != RowRef::NONE);
        taken.filter(move |place| range.contains(&place.key_hash)).map(|place| (place.key_hash, place.row))
    }

    /// About how many keys have their hash in a range: not fewer than that.
    pub fn count_between(&self, range: RangeInclusive<u64>) -> usize {
        self.tables[table_of(*range.start())..=table_of(*range.end())].iter().map(|table| table.taken).sum()
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        for table in &mut self.tables {
            table.places.fill(EMPTY);
            table.taken = 0;
        }
    }

    /// Begins to fetch the place of a key that is about to be put in.
    pub fn prefetch(&self, key_hash: u64) {
        let places = &self.tables[table_of(key_hash)].places;
        if let Some(place) = places.get(key_hash as usize & places.len().wrapping_sub(1)) {
            crate::prefetch::prefetch(place);
        }
    }
}

/// The high bits pick the table, so that a range of hashes is in few of them; the low ones pick the place.
fn table_of(hash: u64) -> usize {
    (hash >> (u64::BITS - TABLES.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashbrown::HashMap;

    #[test]
    fn the_last_row_of_a_key_is_found_and_the_one_before_returned() {
        let mut keys = EventKeys::default();
        assert_eq!(keys.last(9), RowRef::NONE);
        assert_eq!(keys.insert(9, RowRef::new(1, 0)), RowRef::NONE);
        assert_eq!(keys.insert(8, RowRef::new(1, 1)), RowRef::NONE);
        assert_eq!(keys.insert(9, RowRef::new(65_535, 7)), RowRef::new(1, 0));
        assert_eq!(keys.last(9).get(), Some((65_535, 7)));
        assert_eq!(keys.last(8).get(), Some((1, 1)));
        assert_eq!(RowRef::NONE.get(), None);
    }

    #[test]
    fn a_map_says_the_same() {
        let (mut keys, mut map) = (EventKeys::default(), HashMap::new());
        let mut state = 1u64;
        for n in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Few tables, few low bits: long probes, and equal keys.
            let hash = state >> 47 | (state & 3) << 62;
            let row = RowRef::new(3, n);
            keys.prefetch(hash);
            assert_eq!(keys.insert(hash, row), map.insert(hash, row).unwrap_or(RowRef::NONE));
        }
        assert!(map.iter().all(|(hash, row)| keys.last(*hash) == *row));
        for range in [0..=u64::MAX, 100..=70_000, 3 << 62..=u64::MAX, 90_000..=1 << 62 | 90_000] {
            let within: HashMap<_, _> = keys.between(range.clone()).collect();
            assert!(within.len() <= keys.count_between(range.clone()));
            let expected = map.iter().filter(|(hash, _)| range.contains(hash)).map(|(hash, row)| (*hash, *row));
            assert_eq!(within, expected.collect(), "{range:?}");
        }
    }
}
