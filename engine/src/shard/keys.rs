//! Idempotency keys: which requests of the last [`WINDOW_US`] have had their effect, and what was answered.
//!
//! A key is a UUIDv7 and so carries its own time; keys live in buckets of an hour of it, and a bucket goes as a whole
//! when its last key has left the window. Each bucket is many small tables, so that none takes long to grow.

use crate::error::{Code, Refusal};
use crate::time::{DAY_US, HOUR_US, SECOND_US, rfc3339};
use hashbrown::HashMap;
use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, Hasher};
use uuid::Uuid;

/// `dedup.window`.
pub const WINDOW_US: i64 = DAY_US;
/// How far a key's time may be ahead of the shard's.
pub const KEY_AHEAD_MAX_US: i64 = 300 * SECOND_US;
const TABLES: usize = 256;

/// Where a key counts: its corpus's prefix or 0 for the ledger, the key, and the item of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId {
    high: u64,
    low: u64,
    scope_and_item: u32,
}

impl KeyId {
    /// `scope` is a corpus's prefix, or 0 for operations that belong to none.
    pub fn new(scope: u16, key: u128, item: u16) -> KeyId {
        KeyId { high: (key >> 64) as u64, low: key as u64, scope_and_item: u32::from(scope) << 16 | u32::from(item) }
    }

    /// The key's own time.
    fn at_us(self) -> i64 {
        ((self.high >> 16) * 1_000) as i64
    }

    /// A spread over tables and slots. The bits are the client's choice; a client that picks colliding ones slows its
    /// own corpus's keys and is bounded by the window.
    pub fn hash(self, secret: u64) -> u64 {
        let mut h = (self.high ^ secret).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h = (h ^ self.low ^ (h >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ u64::from(self.scope_and_item) ^ (h >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^ (h >> 31)
    }
}

/// What a key's operation did, enough to answer again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Of the request.
    pub fingerprint: u64,
    /// Of the entry that it made.
    pub position: u64,
    /// The row's index in its corpus for a claim; else the index of an [`Effect`](super::Effect).
    pub effect: u64,
}

#[derive(Debug, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("slots are hashed as one u64")
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

/// A key beside its hash, so that growing a table hashes nothing again.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u64,
    id: KeyId,
}

impl PartialEq for Slot {
    fn eq(&self, other: &Slot) -> bool {
        self.id == other.id
    }
}

impl Eq for Slot {}

impl std::hash::Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

type Table = HashMap<Slot, Kept, BuildHasherDefault<Identity>>;

/// The keys of the window.
#[derive(Debug)]
pub struct Keys {
    secret: u64,
    /// By hour of the key's own time.
    buckets: BTreeMap<i64, Vec<Table>>,
    count: u64,
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It has not been used.
    New,
    /// The same request has had its effect.
    Done(Kept),
}

/// Whether a number can be an idempotency key: a UUIDv7.
pub fn is_key(key: u128) -> bool {
    (key >> 76) & 0xf == 7 && (key >> 62) & 0b11 == 0b10
}

impl Keys {
    /// No keys yet. `secret` spreads them in a way that a client can't foresee.
    pub fn new(secret: u64) -> Keys {
        Keys { secret, buckets: BTreeMap::new(), count: 0 }
    }

    /// How many are kept.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What is known of a key at the shard's time, or why it can't be used, with the position that the refusal depends on.
    pub fn check(&self, id: KeyId, fingerprint: u64, time_us: i64) -> Result<KeyState, (Refusal, u64)> {
        let key_us = id.at_us();
        if key_us + WINDOW_US < time_us {
            let refusal = Refusal::new(
                Code::KeyExpired,
                format!(
                    "the idempotency key was made at {}, more than 24 hours before the shard's time {}: make a new one, \
                     after finding out whether the operation took place",
                    rfc3339(key_us),
                    rfc3339(time_us)
                ),
            );
            return Err((refusal, 0));
        }
        if key_us > time_us + KEY_AHEAD_MAX_US {
            let refusal = Refusal::new(
                Code::KeyInFuture,
                format!(
                    "the idempotency key's time {} is more than 5 minutes ahead of the shard's {}: check the client's clock",
                    rfc3339(key_us),
                    rfc3339(time_us)
                ),
            );
            return Err((refusal, 0));
        }
        match self.get(id) {
            None => Ok(KeyState::New),
            Some(kept) if kept.fingerprint == fingerprint => Ok(KeyState::Done(kept)),
            Some(kept) => {
                let key = Uuid::from_u64_pair(id.high, id.low);
                let message = format!(
                    "the idempotency key {key} was used for another request: make a new key for a new operation"
                );
                Err((Refusal::new(Code::KeyReused, message), kept.position))
            }
        }
    }

    fn get(&self, id: KeyId) -> Option<Kept> {
        let hash = id.hash(self.secret);
        let tables = self.buckets.get(&(id.at_us() / HOUR_US))?;
        tables[table_of(hash)].get(&Slot { hash, id }).copied()
    }

    /// Keeps what a key's operation did.
    pub fn keep(&mut self, id: KeyId, kept: Kept) {
        let hash = id.hash(self.secret);
        let tables =
            self.buckets.entry(id.at_us() / HOUR_US).or_insert_with(|| (0..TABLES).map(|_| Table::default()).collect());
        if tables[table_of(hash)].insert(Slot { hash, id }, kept).is_none() {
            self.count += 1;
        }
    }

    /// Forgets what has left the window.
    pub fn forget_before(&mut self, time_us: i64) {
        while let Some(first) = self.buckets.first_entry() {
            if (first.key() + 1) * HOUR_US + WINDOW_US >= time_us {
                return;
            }
            self.count -= first.remove().iter().map(|table| table.len() as u64).sum::<u64>();
        }
    }
}

/// The high bits pick the table; hashbrown uses the low ones and the top seven for its own purposes.
fn table_of(hash: u64) -> usize {
    (hash >> 40) as usize % TABLES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ms: i64, n: u64) -> u128 {
        (ms as u128) << 80 | 7 << 76 | 0b10 << 62 | u128::from(n)
    }

    const NOON_MS: i64 = 1_700_000_000_000;
    const NOON_US: i64 = NOON_MS * 1_000;

    #[test]
    fn a_key_is_kept_for_its_window_and_then_refused() {
        let mut keys = Keys::new(1);
        let id = KeyId::new(3, key(NOON_MS, 5), 0);
        let kept = Kept { fingerprint: 9, position: 4, effect: 2 };
        assert_eq!(keys.check(id, 9, NOON_US), Ok(KeyState::New));
        keys.keep(id, kept);
        for time_us in [NOON_US, NOON_US + WINDOW_US] {
            keys.forget_before(time_us);
            assert_eq!(keys.check(id, 9, time_us), Ok(KeyState::Done(kept)));
            assert_eq!(keys.check(id, 8, time_us).unwrap_err().0.code, Code::KeyReused);
        }
        assert_eq!(keys.check(id, 9, NOON_US + WINDOW_US + 1).unwrap_err().0.code, Code::KeyExpired);
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
            assert_eq!(keys.check(other, 9, NOON_US), Ok(KeyState::New));
        }
    }

    #[test]
    fn a_key_from_the_future_is_refused() {
        let keys = Keys::new(1);
        let id = KeyId::new(3, key(NOON_MS, 5), 0);
        assert_eq!(keys.check(id, 9, NOON_US - KEY_AHEAD_MAX_US), Ok(KeyState::New));
        assert_eq!(keys.check(id, 9, NOON_US - KEY_AHEAD_MAX_US - 1).unwrap_err().0.code, Code::KeyInFuture);
    }
}
