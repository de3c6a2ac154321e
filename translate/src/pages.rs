//! Where the next page of an answer begins that goes over several shards, as a number that means nothing to clients: rows of
//! an event key by their place in the log, and entries of a correlation id by their number. 0 is the beginning.

/// Bits below a shard's number.
const SHARD_SHIFT: u32 = 48;

/// The shard that a page is on.
pub fn shard_of(from: u64) -> u16 {
    (from >> SHARD_SHIFT) as u16
}

/// Where on that shard; 0: at its beginning.
pub fn place_of(from: u64) -> u64 {
    from & ((1 << SHARD_SHIFT) - 1)
}

/// A place on a shard.
pub fn at(shard: u16, place: u64) -> u64 {
    u64::from(shard) << SHARD_SHIFT | place
}

/// Where the next page begins: on this shard, or at the beginning of the next one.
pub fn next(shard: u16, shards: u16, place: Option<u64>) -> Option<u64> {
    place.map(|place| at(shard, place)).or_else(|| (shard + 1 < shards).then(|| at(shard + 1, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_over_all_shards_and_end() {
        assert_eq!(next(0, 3, Some(7)).map(|from| (shard_of(from), place_of(from))), Some((0, 7)));
        assert_eq!(next(1, 3, None).map(|from| (shard_of(from), place_of(from))), Some((2, 0)));
        assert_eq!(next(2, 3, None), None);
    }
}
