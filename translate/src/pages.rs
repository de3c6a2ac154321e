//! Where the next page of an answer begins that goes over several shards, as a number that means nothing to clients: rows of
//! an event key, and entries of a correlation id. 0 is the beginning.

use claim_engine::shard::event_keys::RowRef;

/// Bits below a shard's number.
const SHARD_SHIFT: u32 = 48;

/// The shard that a page of rows of an event key is on, when it does not go on from a row; the highest of numbers for what
/// no page ended with.
pub fn shard_of_rows(from: u64) -> u16 {
    u16::try_from(from).unwrap_or(u16::MAX)
}

/// Where the rows go on: at a row of this shard, or with those of the next one.
pub fn next_rows(shard: u16, shards: u16, next: Option<RowRef>) -> Option<u64> {
    next.map(RowRef::bits).or_else(|| (shard + 1 < shards).then_some(u64::from(shard) + 1))
}

/// The shard that a page of entries is on.
pub fn shard_of_entries(from: u64) -> u16 {
    (from >> SHARD_SHIFT) as u16
}

/// How many of the shard's entries come before the page.
pub fn entry_of(from: u64) -> usize {
    (from & ((1 << SHARD_SHIFT) - 1)) as usize
}

/// Where the entries go on: on this shard, or with those of the next one.
pub fn next_entries(shard: u16, shards: u16, next: Option<usize>) -> Option<u64> {
    let at = |shard: u16, index: usize| u64::from(shard) << SHARD_SHIFT | index as u64;
    next.map(|index| at(shard, index)).or_else(|| (shard + 1 < shards).then(|| at(shard + 1, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_over_all_shards_and_end() {
        assert_eq!(next_entries(0, 3, Some(7)).map(|from| (shard_of_entries(from), entry_of(from))), Some((0, 7)));
        assert_eq!(next_entries(1, 3, None).map(|from| (shard_of_entries(from), entry_of(from))), Some((2, 0)));
        assert_eq!(next_entries(2, 3, None), None);
        let row = RowRef::new(5, 0);
        let from = next_rows(1, 3, Some(row)).expect("there is more");
        assert_eq!(RowRef::from_bits(from), Some(row));
        let from = next_rows(1, 3, None).expect("there is another shard");
        assert_eq!((RowRef::from_bits(from), shard_of_rows(from)), (None, 2));
        assert_eq!(next_rows(2, 3, None), None);
        assert_eq!(shard_of_rows(7 << 48), u16::MAX);
    }
}
