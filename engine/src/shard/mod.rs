//! The shard: a synchronous state machine. [`Shard::step`] decides and appends; [`Shard::apply`] is the only mutation, used
//! by the daemon, by recovery and by whoever follows the log.
//!
//! Absent here, and tested by lint: clocks, randomness, I/O, await, glommio, flatbuffers. Time and entropy come in with
//! each event.

mod check;
pub mod clock;
mod decide;
pub mod keys;
pub mod registry;
pub mod rows;

use crate::command::{Corpus, Outcome, Request};
use crate::corpus::Prefix;
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::log::entry::{self, Entry, Meta, Record};
use crate::log::record::RawRecord;
use crate::log::superblock::{ClockMode, Superblock};
use crate::log::writer::LogWriter;
use crate::time::{DAY_US, Now, Quarter, TIME_US_MAX};
use clock::ShardClock;
use keys::{Kept, KeyId, Keys};
use registry::Registry;
use rows::Rows;

/// How far an id may be ahead of its claim's time: tens of millions of ids use up one millisecond.
const ID_AHEAD_MAX_US: i64 = DAY_US;

/// What a keyed operation other than a claim did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The canonical id referred to.
    Referenced(EventId),
    /// The row and when it was tombstoned.
    Retracted(EventId, i64),
    /// The row and when it came back.
    Reactivated(EventId, i64),
    /// The corpus, and its place in the global order.
    Onboarded(Prefix, u64),
    /// When the clock was confirmed, and its place in the global order.
    ClockConfirmed(i64, u64),
}

/// An entry that every shard keeps, as shard 0 logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalEntry {
    /// 1, 2, 3 …
    pub sequence: u64,
    /// Its position at shard 0.
    pub position: u64,
    /// The record's kind.
    pub kind: u16,
    /// The record's body.
    pub body: Vec<u8>,
}

/// What a step decided.
#[derive(Debug)]
pub struct Decision {
    /// The answer.
    pub outcome: Outcome,
    /// Position of this shard that the answer depends on; 0: none.
    pub position: u64,
    /// The answer waits until every shard has applied the global order up to here; 0: for none.
    pub global_sequence: u64,
}

impl Decision {
    fn now(outcome: Outcome, position: u64) -> Decision {
        Decision { outcome, position, global_sequence: 0 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Shard {
    number: u16,
    shard_count: u16,
    clock: ShardClock,
    registry: Registry,
    rows: Rows,
    keys: Keys,
    /// False where nobody will ask for them again, and only what applies is of interest.
    keeps_keys: bool,
    effects: Vec<Effect>,
    /// Shard 0 keeps them all, for shards that missed some.
    globals: Vec<GlobalEntry>,
    globals_applied: u64,
    /// Time of the last entry.
    last_us: i64,
    last_position: u64,
    /// The quarter of `last_us`, and its bounds: looked up once a quarter.
    quarter: (Quarter, std::ops::Range<i64>),
    /// Of the ledger: what clients can't foresee depends on it.
    secret: u64,
    scratch: Vec<u8>,
}

impl Shard {
    /// A shard of a ledger in which nothing has happened.
    pub fn new(superblock: &Superblock) -> Shard {
        let last_us = match superblock.clock {
            ClockMode::Wall => superblock.formatted_at_us,
            ClockMode::Replay => 0,
        };
        let secret = u64::from_le_bytes(superblock.key[..8].try_into().expect("a key has 32 bytes"));
        Shard {
            number: superblock.shard,
            shard_count: superblock.shard_count,
            clock: ShardClock::new(superblock.clock),
            registry: Registry::default(),
            rows: Rows::default(),
            keys: Keys::new(secret),
            keeps_keys: true,
            effects: Vec::new(),
            globals: Vec::new(),
            globals_applied: 0,
            last_us,
            last_position: 0,
            quarter: quarter_of(last_us),
            secret,
            scratch: Vec::new(),
        }
    }

    /// The same without its memory of idempotency keys, which are most of its work: for verification.
    pub fn without_keys(superblock: &Superblock) -> Shard {
        Shard { keeps_keys: false, ..Shard::new(superblock) }
    }

    /// Starts the clock; `ledger_last_us` is the greatest last entry's time over all shards.
    pub fn start(&mut self, now: Now, ledger_last_us: i64) {
        self.clock.start(now, ledger_last_us.max(self.last_us));
    }

    /// Which shard this is.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// All corpora of the ledger.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The rows of this shard.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// How many idempotency keys are kept.
    pub fn key_count(&self) -> u64 {
        self.keys.count()
    }

    /// The clock.
    pub fn clock(&self) -> &ShardClock {
        &self.clock
    }

    /// Time of the last entry.
    pub fn last_us(&self) -> i64 {
        self.last_us
    }

    /// The last position applied.
    pub fn last_position(&self) -> u64 {
        self.last_position
    }

    /// How far in the global order this shard is.
    pub fn globals_applied(&self) -> u64 {
        self.globals_applied
    }

    /// The global entries after `sequence`; shard 0 has them all.
    pub fn globals_after(&self, sequence: u64) -> &[GlobalEntry] {
        self.globals.get(sequence as usize..).unwrap_or_default()
    }

    /// Decides a request, and appends and applies what follows from it. The caller has seen that the log has room.
    pub fn step(&mut self, now: Now, entropy: &mut Entropy, request: &Request<'_>, log: &mut LogWriter) -> Decision {
        decide::Step { shard: self, now, entropy, log }.request(request)
    }

    /// Applies a global entry that shard 0 sent. False when an earlier one is missing; one that is there already is left.
    pub fn follow(&mut self, now: Now, global: &GlobalEntry, log: &mut LogWriter) -> Result<bool, String> {
        if global.sequence <= self.globals_applied {
            return Ok(true);
        }
        if global.sequence != self.globals_applied + 1 {
            return Ok(false);
        }
        let mut record = Record::decode(global.kind, &global.body).map_err(|e| e.to_string())?;
        // Never before its cause, never before this shard's own last entry.
        let time_us = self.clock.time_us(now, self.last_us);
        record.meta.timestamp_us = record.meta.timestamp_us.max(time_us);
        self.append(&record, log);
        if matches!(record.entry, Entry::ConfirmClock { .. }) {
            self.clock.confirm(now);
        }
        Ok(true)
    }

    fn append(&mut self, record: &Record<'_>, log: &mut LogWriter) -> u64 {
        let (position, log_offset) = log.append(record);
        // What this shard has just decided can't be refused by its own rules: anything else is a bug, and the
        // process must not go on with a log that says one thing and a state that says another.
        self.apply(position, log_offset, record).expect("a decided record applies");
        position
    }

    /// Applies a record of the log, in order. The error says which rule the record breaks; it then did not come from
    /// this state machine.
    pub fn apply_raw(&mut self, raw: RawRecord<'_>, log_offset: u64) -> Result<(), String> {
        let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
        self.apply(raw.position, log_offset, &record)
    }

    /// See [`Shard::apply_raw`].
    pub fn apply(&mut self, position: u64, log_offset: u64, record: &Record<'_>) -> Result<(), String> {
        let meta = &record.meta;
        if position != self.last_position + 1 {
            return Err(format!("position {position} follows {}", self.last_position));
        }
        if meta.timestamp_us < self.last_us {
            return Err(format!("time goes back from {} to {}", self.last_us, meta.timestamp_us));
        }
        if meta.timestamp_us > TIME_US_MAX {
            return Err(format!("the time {} us is beyond the year 9998", meta.timestamp_us));
        }
        if meta.idempotency_key != 0 && meta.fingerprint as u8 != record.entry.keyed_as() {
            return Err(format!("the fingerprint of a {} is another operation's", record.entry.operation()));
        }
        self.last_position = position;
        self.advance_time(meta.timestamp_us);
        let effect = match record.entry {
            Entry::Claim(claim) => {
                self.check_claim(meta, claim.event_id)?;
                let row = rows::Claimed {
                    event_id: claim.event_id,
                    claim_timestamp_us: meta.timestamp_us,
                    claim_sequence: claim.claim_sequence,
                    claim_at: log_offset,
                    position,
                };
                let index = self.rows.add(row, self.quarter.0)?;
                self.keep(record, position, index);
                return Ok(());
            }
            Entry::Reference { event_id, canonical_id } => {
                self.rows.refer(event_id, log_offset)?;
                Effect::Referenced(canonical_id)
            }
            Entry::Tombstone { event_id, reason_code } => {
                self.rows.tombstone(event_id, reason_code, meta.timestamp_us, log_offset, position)?;
                Effect::Retracted(event_id, meta.timestamp_us)
            }
            Entry::Reactivate { event_id } => {
                self.rows.reactivate(event_id, meta.timestamp_us, log_offset, position)?;
                Effect::Reactivated(event_id, meta.timestamp_us)
            }
            Entry::Onboard { global_sequence, prefix, shard, name, notes, onboarded_at_us } => {
                if shard >= self.shard_count {
                    return Err(format!("corpus {name} is placed on shard {shard} of {}", self.shard_count));
                }
                let corpus = Corpus { name: name.to_owned(), prefix, shard, onboarded_at_us, notes: notes.to_owned() };
                self.registry.add(corpus)?;
                self.applied_global(global_sequence, position, record)?;
                Effect::Onboarded(prefix, global_sequence)
            }
            Entry::PrefixAllocation { global_sequence, minted_to } => {
                self.registry.mint(minted_to, self.quarter.0)?;
                return self.applied_global(global_sequence, position, record);
            }
            Entry::ConfirmClock { global_sequence } => {
                self.applied_global(global_sequence, position, record)?;
                Effect::ClockConfirmed(meta.timestamp_us, global_sequence)
            }
            Entry::Recovery { .. } => return Ok(()),
            Entry::Repair { floors, .. } => {
                for (prefix, sequence) in entry::floors(floors) {
                    self.rows.raise(prefix, self.quarter.0, sequence)?;
                }
                return Ok(());
            }
        };
        self.effects.push(effect);
        self.keep(record, position, self.effects.len() as u64 - 1);
        Ok(())
    }

    /// An id is of the corpus that claimed it, which lives here, and of its time: it runs ahead of the clock by the
    /// milliseconds that were used up, no more.
    fn check_claim(&self, meta: &Meta<'_>, event_id: EventId) -> Result<(), String> {
        let prefix = event_id.prefix();
        let lives_here = self.registry.of_prefix(prefix).is_some_and(|corpus| corpus.shard == self.number);
        if meta.corpus != Some(prefix) || !lives_here {
            return Err(format!("event-id {event_id} is not of a corpus of this shard that claims it"));
        }
        let ahead_us = (event_id.ms() as i64 + 1) * 1_000 - meta.timestamp_us;
        if !(1..=ID_AHEAD_MAX_US).contains(&ahead_us) {
            return Err(format!("event-id {event_id} is not of the time {} us", meta.timestamp_us));
        }
        Ok(())
    }

    fn applied_global(&mut self, sequence: u64, position: u64, record: &Record<'_>) -> Result<(), String> {
        if sequence != self.globals_applied + 1 {
            return Err(format!("global entry {sequence} follows {}", self.globals_applied));
        }
        self.globals_applied = sequence;
        if self.number == 0 {
            let mut body = Vec::new();
            record.encode(&mut body);
            self.globals.push(GlobalEntry { sequence, position, kind: record.entry.kind(), body });
        }
        Ok(())
    }

    fn keep(&mut self, record: &Record<'_>, position: u64, effect: u64) {
        let meta = &record.meta;
        // The key of a global entry counts at shard 0, where the request was decided.
        let is_copy = record.entry.global_sequence().is_some() && self.number != 0;
        if self.keeps_keys && meta.idempotency_key != 0 && !is_copy {
            let id = KeyId::new(meta.corpus.map_or(0, Prefix::get), meta.idempotency_key, meta.item);
            self.keys.keep(id, Kept { fingerprint: meta.fingerprint, position, effect });
        }
    }

    fn advance_time(&mut self, to_us: i64) {
        self.last_us = to_us;
        if !self.quarter.1.contains(&to_us) {
            self.quarter = quarter_of(to_us);
        }
        self.keys.forget_before(to_us);
    }
}

fn quarter_of(at_us: i64) -> (Quarter, std::ops::Range<i64>) {
    let quarter = Quarter::of(at_us);
    (quarter, quarter.start_us()..quarter.end_us())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::entry::{ClaimEntry, Principal};
    use crate::log::layout::Geometry;
    use uuid::Uuid;

    const AT_US: i64 = 1_767_225_600_000_000;

    fn prefix() -> Prefix {
        Prefix::new(1).unwrap()
    }

    fn meta(timestamp_us: i64, idempotency_key: u128, fingerprint: u64) -> Meta<'static> {
        let principal = Principal::default();
        let (correlation_id, item, corpus, rationale) = (0, 0, Some(prefix()), "");
        Meta { timestamp_us, idempotency_key, correlation_id, fingerprint, principal, item, corpus, rationale }
    }

    fn onboard(shard: u16) -> Entry<'static> {
        let (name, notes, onboarded_at_us) = ("customer", "", AT_US);
        Entry::Onboard { global_sequence: 2, prefix: prefix(), shard, name, notes, onboarded_at_us }
    }

    fn claim(event_id: EventId) -> Entry<'static> {
        Entry::Claim(ClaimEntry {
            event_id,
            claim_sequence: 1,
            occurred_at_us: 1,
            taxonomy_version: 1,
            event_key: "key",
            owning_corpus: "",
            hosting_corpus: "",
            category: "c",
            metadata: &[],
        })
    }

    /// A shard in which prefixes are minted.
    fn shard() -> Shard {
        let mut shard = Shard::new(&Superblock {
            generation: 1,
            ledger: Uuid::from_u128(1),
            key: [1; 32],
            shard: 0,
            shard_count: 2,
            clock: ClockMode::Wall,
            geometry: Geometry::DEFAULT,
            formatted_at_us: AT_US,
            first_segment: 0,
        });
        let entry = Entry::PrefixAllocation { global_sequence: 1, minted_to: 100 };
        shard.apply(1, 0, &Record { meta: meta(AT_US, 0, 0), entry }).unwrap();
        shard
    }

    #[test]
    fn records_that_no_shard_decides_are_refused() {
        let ms = AT_US as u64 / 1_000;
        let own = EventId::pack(ms, prefix(), 1);
        let onboarded = |at: u16| {
            let mut shard = shard();
            shard.apply(2, 0, &Record { meta: meta(AT_US, 0, 0), entry: onboard(at) }).unwrap();
            shard
        };
        let cases = [
            (true, onboarded(0), meta(AT_US, 0, 0), claim(own)),
            (true, onboarded(0), meta(AT_US, 7 << 76, 0xab01), claim(own)),
            // A time that no clock shows.
            (false, onboarded(0), meta(i64::MAX, 0, 0), claim(own)),
            (false, onboarded(0), meta(AT_US - 1, 0, 0), claim(own)),
            // The key of another operation.
            (false, onboarded(0), meta(AT_US, 7 << 76, 0xab03), claim(own)),
            // An id of another time, of another corpus, of a corpus that lives elsewhere or nowhere.
            (false, onboarded(0), meta(AT_US, 0, 0), claim(EventId::pack(u64::MAX, prefix(), 1))),
            (false, onboarded(0), meta(AT_US, 0, 0), claim(EventId::pack(ms - 1, prefix(), 1))),
            (false, onboarded(0), meta(AT_US, 0, 0), claim(EventId::pack(ms, Prefix::new(2).unwrap(), 1))),
            (false, onboarded(1), meta(AT_US, 0, 0), claim(own)),
        ];
        for (is_right, mut shard, meta, entry) in cases {
            let applied = shard.apply(3, 0, &Record { meta, entry });
            assert_eq!(applied.is_ok(), is_right, "{meta:?} {entry:?}: {applied:?}");
        }
        let applied = shard().apply(2, 0, &Record { meta: meta(AT_US, 0, 0), entry: onboard(2) });
        assert!(applied.is_err(), "a corpus on a shard that is not there: {applied:?}");
    }
}
