//! Idempotency keys: which requests of the last [`WINDOW_US`] have had their effect, and what was answered.
//!
//! A key is a UUIDv7 and so carries its own time. Keys live in slices of 60 ms of it, so that those that come in now
//! lie together in little memory that stays in the cache; a slice goes as a whole when its last key has left the window. The
//! items of a batch have one key, and are kept together.
//!
//! What keeps a key is inlined as a whole: a key or what is kept of it, handed on in memory, is read there at once and was written
//! in halves, for which the processor waits until its store buffer is empty.

mod slice;

use super::decide::Keyed;
use crate::command::BATCH_ITEMS_MAX;
use crate::error::{Code, Refusal};
use crate::shard::budget::MINUTE_US;
use crate::time::{DAY_US, SECOND_US, rfc3339};
use slice::{New, Slice};
use std::collections::BTreeMap;
use uuid::Uuid;

/// `dedup.window`.
pub const WINDOW_US: i64 = DAY_US;
/// How far a key's time may be ahead of the shard's.
pub const KEY_AHEAD_MAX_US: i64 = 300 * SECOND_US;
/// How much of the keys' own time is one bucket, and one slice of it.
const MINUTE_MS: u64 = (MINUTE_US / 1_000) as u64;
const SLICE_MS: u64 = 60;
/// Of a bucket.
const SLICES: usize = (MINUTE_MS / SLICE_MS) as usize;
/// So many keys are forgotten at a time, or as many more as a table has.
const FORGET_KEYS: u64 = 1_024;

/// Where a key counts: its corpus's prefix or 0 for the ledger, the key, and the item of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId {
    high: u64,
    low: u64,
    scope: u16,
    item: u16,
}

impl KeyId {
    /// `scope` is a corpus's prefix, or 0 for operations that belong to none.
    #[inline(always)]
    pub fn new(scope: u16, key: u128, item: u16) -> KeyId {
        KeyId { high: (key >> 64) as u64, low: key as u64, scope, item }
    }

    /// The key's own time, in milliseconds.
    pub fn ms(self) -> u64 {
        self.high >> 16
    }

    /// The prefix of its corpus, or 0.
    pub fn scope(self) -> u16 {
        self.scope
    }

    fn at_us(self) -> i64 {
        (self.ms() * 1_000) as i64
    }

    /// What the index of a segment has of it. It is part of the format.
    #[inline(always)]
    pub fn hash(self, secret: u64) -> u64 {
        let scope_and_item = u64::from(self.scope) << 16 | u64::from(self.item);
        let h = (self.spread(secret) ^ scope_and_item).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^ (h >> 31)
    }

    #[inline(always)]
    fn spread(self, secret: u64) -> u64 {
        let h = (self.high ^ secret).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let h = (h ^ self.low ^ (h >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h ^ (h >> 32)
    }

    /// Where in memory it is kept, whatever its scope and item: a client picks all bits of a key, and finds no two that come to lie
    /// together, because they are multiplied by what only the ledger knows. Corpora that use one key lie together; they are few.
    #[inline(always)]
    fn slot(self, secret: u64) -> u64 {
        let wide = u128::from(self.spread(secret)) * u128::from((secret ^ 0x94d0_49bb_1331_11eb) | 1);
        (wide >> 64) as u64 ^ wide as u64
    }

    /// The key, whatever the item.
    #[inline(always)]
    fn whole(self) -> KeyId {
        KeyId { item: 0, ..self }
    }

    /// Its bucket, and its slice of that.
    #[inline(always)]
    fn place(self) -> (u64, usize) {
        (self.ms() / MINUTE_MS, (self.ms() % MINUTE_MS / SLICE_MS) as usize)
    }
}

/// What a key's operation did, enough to answer again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Of the request.
    pub fingerprint: u64,
    /// Of the entry that it made.
    pub position: u64,
    /// The row's index in its corpus and segment for a claim; else the index of an [`Effect`](super::Effect).
    pub effect: u64,
}

impl Kept {
    /// Whether the request was a claim: the fingerprint's low byte is the operation.
    pub fn is_claim(&self) -> bool {
        self.fingerprint as u8 == Keyed::Claim as u8
    }
}

/// The slices of a minute.
#[derive(Debug)]
struct Bucket {
    slices: Vec<Option<Box<Slice>>>,
    /// How many of them have left the window.
    forgotten: usize,
}

impl Bucket {
    fn new() -> Bucket {
        Bucket { slices: (0..SLICES).map(|_| None).collect(), forgotten: 0 }
    }
}

/// The keys of the window.
#[derive(Debug)]
pub struct Keys {
    secret: u64,
    /// By minute of the keys' own time.
    buckets: BTreeMap<u64, Bucket>,
    count: u64,
    /// Kept since the last slice was begun: the next one is likely to get as many, and is made for them.
    since_begun: usize,
    /// Items kept since the last new key, with its own, and from the one before it up to it: a batch is likely to have as many as the last,
    /// and gets room for them.
    items: (usize, usize),
}

/// Whether a number can be an idempotency key: a UUIDv7.
pub fn is_key(key: u128) -> bool {
    (key >> 76) & 0xf == 7 && (key >> 62) & 0b11 == 0b10
}

impl Keys {
    /// No keys yet. `secret` spreads them in a way that a client can't foresee.
    pub fn new(secret: u64) -> Keys {
        Keys { secret, buckets: BTreeMap::new(), count: 0, since_begun: 0, items: (0, 0) }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.buckets.clear();
        (self.count, self.since_begun, self.items) = (0, 0, (0, 0));
    }

    /// How many are kept.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What is kept of a key.
    #[inline]
    pub fn get(&self, id: KeyId) -> Option<Kept> {
        let (minute, slice) = id.place();
        self.buckets.get(&minute)?.slices[slice].as_ref()?.entry(id.whole(), id.slot(self.secret))?.get(id.item)
    }

    /// Whether anything is kept of a key, whatever the item.
    pub fn has(&self, id: KeyId) -> bool {
        let (minute, slice) = id.place();
        let slice = self.buckets.get(&minute).and_then(|bucket| bucket.slices[slice].as_ref());
        slice.is_some_and(|slice| slice.entry(id.whole(), id.slot(self.secret)).is_some())
    }

    /// Begins to fetch what is looked at for a key that is about to be used.
    pub fn prefetch(&self, key: u128) {
        let id = KeyId::new(0, key, 0);
        let (minute, slice) = id.place();
        if let Some(slice) = self.buckets.get(&minute).and_then(|bucket| bucket.slices[slice].as_ref()) {
            slice.prefetch(id.slot(self.secret));
        }
    }

    /// Keeps what a key's operation did.
    #[inline(always)]
    pub fn keep(&mut self, id: KeyId, kept: Kept) {
        let (minute, slice) = id.place();
        let bucket = self.buckets.entry(minute).or_insert_with(Bucket::new);
        let since_begun = &mut self.since_begun;
        let slice = bucket.slices[slice].get_or_insert_with(|| Box::new(Slice::with_room(std::mem::take(since_begun))));
        let (now, last) = &mut self.items;
        // Behind a new key alone, so that each such room has cost a batch that filled it.
        let room = if *now == 1 { (*last).min(BATCH_ITEMS_MAX) } else { 0 };
        let new = slice.keep(id, kept, room, self.secret);
        self.count += u64::from(new != New::Nothing);
        match new {
            New::Key => {
                self.since_begun += 1;
                (*now, *last) = (1, *now);
            }
            New::Item => *now += 1,
            New::Nothing => {}
        }
    }

    /// Forgets some of what has left the window: it is asked for with every entry, and each time takes little.
    pub fn forget_before(&mut self, time_us: i64) {
        let mut forgotten = 0;
        while let Some(mut first) = self.buckets.first_entry() {
            let minute_us = (first.key() * MINUTE_MS * 1_000) as i64;
            let bucket = first.get_mut();
            while let Some(slice) = bucket.slices.get_mut(bucket.forgotten) {
                let end_us = minute_us + (bucket.forgotten as i64 + 1) * SLICE_MS as i64 * 1_000;
                if end_us + WINDOW_US >= time_us || forgotten >= FORGET_KEYS {
                    return;
                }
                let gone = match slice.as_deref_mut() {
                    Some(Slice::Tables(tables)) => {
                        tables.iter_mut().find(|table| !table.entries.is_empty()).map(std::mem::take)
                    }
                    _ => None,
                };
                let gone = gone.map(Slice::Table).or_else(|| {
                    bucket.forgotten += 1;
                    slice.take().map(|slice| *slice)
                });
                let count = gone.map_or(0, |slice| slice.count());
                forgotten += count;
                self.count -= count;
            }
            first.remove();
        }
    }
}

/// Why a key can't be used at the shard's time, whatever is kept of it.
pub fn out_of_window(id: KeyId, time_us: i64) -> Option<Refusal> {
    let key_us = id.at_us();
    if key_us + WINDOW_US < time_us {
        let message = format!(
            "the idempotency key was made at {}, more than 24 hours before the shard's time {}: make a new one, after finding \
             out whether the operation took place",
            rfc3339(key_us),
            rfc3339(time_us)
        );
        return Some(Refusal::new(Code::KeyExpired, message));
    }
    if key_us > time_us + KEY_AHEAD_MAX_US {
        let message = format!(
            "the idempotency key's time {} is more than 5 minutes ahead of the shard's {}: check the client's clock",
            rfc3339(key_us),
            rfc3339(time_us)
        );
        return Some(Refusal::new(Code::KeyInFuture, message));
    }
    None
}

/// The refusal of a key that was used for another request.
pub fn reused(id: KeyId) -> Refusal {
    let key = Uuid::from_u64_pair(id.high, id.low);
    Refusal::new(
        Code::KeyReused,
        format!("the idempotency key {key} was used for another request: make a new key for a new operation"),
    )
}

#[cfg(test)]
mod tests {
    use super::slice::{Entry, Items, TABLE_KEYS_MAX, Table};
    use super::*;
    use crate::time::HOUR_US;

    fn key(ms: i64, n: u64) -> u128 {
        (ms as u128) << 80 | 7 << 76 | 0b10 << 62 | u128::from(n)
    }

    const NOON_MS: i64 = 1_700_000_000_000;
    const NOON_US: i64 = NOON_MS * 1_000;

    fn refused(id: KeyId, time_us: i64) -> Option<Code> {
        out_of_window(id, time_us).map(|refusal| refusal.code)
    }

    #[test]
    fn a_key_is_kept_for_its_window_and_then_refused() {
        let mut keys = Keys::new(1);
        let id = KeyId::new(3, key(NOON_MS, 5), 0);
        let kept = Kept { fingerprint: 9, position: 4, effect: 2 };
        assert_eq!(keys.get(id), None);
        keys.keep(id, kept);
        for time_us in [NOON_US, NOON_US + WINDOW_US] {
            keys.forget_before(time_us);
            assert_eq!((keys.get(id), refused(id, time_us)), (Some(kept), None));
        }
        assert_eq!(refused(id, NOON_US + WINDOW_US + 1), Some(Code::KeyExpired));
        keys.forget_before(NOON_US + WINDOW_US + HOUR_US + 1);
        assert_eq!(keys.count(), 0);
    }

    #[test]
    fn scope_and_item_make_it_another_key() {
        let mut keys = Keys::new(1);
        keys.keep(KeyId::new(3, key(NOON_MS, 5), 0), Kept { fingerprint: 9, position: 4, effect: 2 });
        for other in
            [KeyId::new(4, key(NOON_MS, 5), 0), KeyId::new(3, key(NOON_MS, 5), 1), KeyId::new(3, key(NOON_MS, 6), 0)]
        {
            assert_eq!(keys.get(other), None);
        }
    }

    /// Many keys of one moment, of many, and of batches whose items come in any order: against a plain map.
    #[test]
    fn a_map_says_the_same() {
        use hashbrown::{HashMap, HashSet};
        let mut keys = Keys::new(7);
        let (mut map, mut has) = (HashMap::new(), HashSet::new());
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for n in 0..200_000 {
            let ms = if n % 3 == 0 { NOON_MS } else { NOON_MS + random(4_000) as i64 };
            let (scope, key, item) = (random(2) as u16, key(ms, random(40_000)), random(9).saturating_sub(5) as u16);
            let id = KeyId::new(scope, key, item);
            let kept = Kept { fingerprint: n, position: n, effect: n };
            keys.prefetch(key);
            let known = map.get(&(scope, key, item)).copied();
            assert_eq!(keys.get(id), known);
            assert_eq!(keys.has(id), has.contains(&(scope, key)));
            has.insert((scope, key));
            keys.keep(id, kept);
            map.insert((scope, key, item), kept);
        }
        assert_eq!(keys.count(), map.len() as u64);
        let bucket = keys.buckets.values().next().unwrap();
        let slices = || bucket.slices.iter().flatten();
        assert!(slices().any(|slice| matches!(**slice, Slice::Table(_))));
        assert!(slices().any(|slice| matches!(**slice, Slice::Tables(_))));
        for ((scope, key, item), kept) in map {
            assert_eq!(keys.get(KeyId::new(scope, key, item)), Some(kept));
        }
        let mut calls = 0;
        while keys.count() > 0 {
            keys.forget_before(NOON_US + WINDOW_US + 2 * HOUR_US);
            calls += 1;
        }
        assert!(calls > 10, "each takes little: {calls}");
        // What is empty goes without a count.
        keys.forget_before(NOON_US + WINDOW_US + 2 * HOUR_US);
        assert!(keys.buckets.is_empty());
    }

    /// Places of sealed segments' indexes are found by it, and a key that is not found there claims again.
    #[test]
    fn the_hash_of_an_index_stays_as_it_is() {
        let id = KeyId::new(3, key(NOON_MS, 5), 7);
        assert_eq!(id.hash(1), 0x9d86_4b40_3338_abd0);
    }

    #[test]
    fn keys_that_differ_in_few_bits_lie_apart() {
        let patterns: [fn(u64) -> u128; 4] = [
            |n| key(NOON_MS, n << 46),
            |n| key(NOON_MS, n << 30),
            |n| key(NOON_MS, n),
            |n| key(NOON_MS, n >> 12) | u128::from(n & 0xfff) << 64,
        ];
        for (pattern, secret) in patterns.into_iter().zip([1, 0, u64::MAX, 0x1234_5678_9abc_def0]) {
            let mut table = Table::default();
            for n in 0..16_384 {
                let id = KeyId::new(3, pattern(n), 0);
                table.keep(id, id.slot(secret), Kept { fingerprint: n, position: n, effect: n }, 0, secret);
            }
            assert_eq!(table.entries.len(), 16_384);
            let taken = table.places.split(|place| *place == 0).map(<[u64]>::len).max();
            assert!(taken < Some(256), "{taken:?} places one after another");
        }
    }

    /// A slice that is made for many is many tables at once; so it is found, and forgotten a table at a time.
    #[test]
    fn a_slice_for_many_is_looked_at_while_it_is_forgotten() {
        let mut keys = Keys::new(9);
        let kept = Kept { fingerprint: 9, position: 4, effect: 2 };
        let at = |slice: i64, n: u64| KeyId::new(3, key(NOON_MS + slice * SLICE_MS as i64, n), 0);
        for n in 0..=2 * TABLE_KEYS_MAX as u64 {
            keys.keep(at(0, n), kept);
        }
        keys.keep(at(1, 0), kept);
        let bucket = keys.buckets.values().next().unwrap();
        assert_eq!(bucket.slices.iter().flatten().filter(|slice| matches!(***slice, Slice::Tables(_))).count(), 2);
        for n in 1..100_000 {
            keys.keep(at(1, n), kept);
        }
        assert!((0..100_000).all(|n| keys.get(at(1, n)) == Some(kept)));
        keys.forget_before(NOON_US + WINDOW_US + HOUR_US);
        for n in 0..1_000 {
            keys.prefetch(key(NOON_MS, n));
            assert_eq!(keys.has(at(0, n)), keys.get(at(0, n)).is_some());
            keys.keep(at(0, n), kept);
            assert_eq!(keys.get(at(0, n)), Some(kept));
        }
    }

    /// Room for items that come in order behind a large batch, and for items of keys of before that come behind it.
    #[test]
    fn room_for_items_is_paid_for_with_items() {
        let mut keys = Keys::new(3);
        let kept = Kept { fingerprint: 9, position: 4, effect: 2 };
        let mut keep = |n: u64, items: std::ops::Range<u16>| {
            items.for_each(|item| keys.keep(KeyId::new(3, key(NOON_MS, n), item), kept));
        };
        for n in 0..1_000 {
            keep(n, 0..1);
        }
        keep(1_000, 0..8_190);
        keep(1_001, 0..1);
        for n in 0..1_000 {
            keep(n, 1..2);
        }
        keep(1_002, 0..100);
        keep(1_003, 0..100);
        let bucket = keys.buckets.values().next().unwrap();
        let Some(Slice::Table(table)) = bucket.slices.iter().flatten().map(|slice| &**slice).next() else {
            panic!("a thousand keys are one table")
        };
        let room = |entry: &Entry| match &entry.items {
            Items::One(..) => 1,
            Items::Many(items) => items.capacity(),
        };
        assert_eq!(room(&table.entries[1_003]), 100, "as many as the batch before had");
        let rooms: usize = table.entries.iter().map(room).sum();
        assert!(rooms < 4 * keys.count() as usize, "room for {rooms} items, and {} are kept", keys.count());
    }

    #[test]
    fn a_key_from_the_future_is_refused() {
        let id = KeyId::new(3, key(NOON_MS, 5), 0);
        assert_eq!(refused(id, NOON_US - KEY_AHEAD_MAX_US), None);
        assert_eq!(refused(id, NOON_US - KEY_AHEAD_MAX_US - 1), Some(Code::KeyInFuture));
    }
}
