//! What is refused before it is decided: a shard that has stopped, a passed deadline, too much to do, a log without room.

use super::parked::OwnedRequest;
use super::{Engine, FULL_SEGMENTS_MAX, OVERLOADED_RETRY_MS};
use crate::command::{Operation, Request};
use crate::debt::Level;
use crate::entropy::Entropy;
use crate::error::{Certainty, Code, Refusal};
use crate::time::Now;

/// Bytes that an entry takes in the log beyond its strings, rounded up: for admission.
const ENTRY_BYTES: u64 = 256;
/// Advice on when to try again when the ledger is full.
const NO_SPACE_RETRY_MS: u32 = 1_000;
/// What to do about a ring that is full.
const RING_FULL: &str = "a quarter that retention drops makes room, `claimctl retention` says what the next one waits for; reads go on, \
                         and writes as soon as there is room";

/// What a request takes of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing: it is answered from what there is.
    Nothing,
    /// Room for what it adds.
    Room,
    /// The same, and it ends what may stand against a drop: it is taken into a full ring, which only a drop makes room in, and never
    /// waits behind others.
    LastRoom,
}

impl Takes {
    pub fn of(operation: &Operation<'_>) -> Takes {
        match operation {
            Operation::Hold { held: false, .. }
            | Operation::Freeze { frozen: false, .. }
            | Operation::ConfirmClock
            | Operation::Configure { .. } => Takes::LastRoom,
            operation if operation.is_mutation() => Takes::Room,
            _ => Takes::Nothing,
        }
    }
}

/// Whether the log has room for a request.
#[derive(Debug)]
pub(super) enum Room {
    /// It has.
    Here,
    /// Not before something that is under way is done: a write, a piece of zeroing, a segment's index.
    Soon,
    /// Not before something else happens.
    None(Refusal),
}

/// Requests that wait for room in the log, at most: fewer than may be parked, so that others find a place beside them.
pub const WITHOUT_ROOM_MAX: usize = 2_048;
/// When none of them has found room for so long, all are refused.
pub const ROOM_PATIENCE_US: i64 = 10_000_000;

impl Engine {
    /// Whether the log has room for a request at once, or why the request is not even decided.
    pub(super) fn admit(&self, now: Now, request: &Request<'_>, log_bytes: u64) -> Result<bool, Refusal> {
        if let Some(reason) = self.log.failed() {
            let number = self.shard.number();
            let message = format!("shard {number} has stopped: {reason}; restart the daemon once its storage is sound");
            // An earlier request with the same key may have had its effect.
            let certainty = if request.operation.is_mutation() { Certainty::Unknown } else { Certainty::Definite };
            return Err(Refusal { certainty, ..Refusal::new(Code::ShardFailed, message) });
        }
        if request.deadline_boot_us.is_some_and(|deadline| now.boot_us >= deadline) {
            return Err(Refusal::new(Code::Deadline, "the deadline had passed before the request was looked at"));
        }
        self.shed(&request.operation)?;
        let takes = Takes::of(&request.operation);
        let has_room = match self.room_for(takes, log_bytes) {
            Room::Here => true,
            Room::Soon => false,
            Room::None(refusal) => return Err(refusal),
        };
        match self.peers_against(&request.operation, takes) {
            Some(refusal) => Err(refusal),
            None => Ok(has_room),
        }
    }

    /// What other shards have against what concerns all of them.
    pub(super) fn peers_against(&self, operation: &Operation<'_>, takes: Takes) -> Option<Refusal> {
        if !operation.is_global() {
            return None;
        }
        if let Some(failed) = self.peers.iter().position(|peer| peer.has_failed) {
            let message =
                format!("shard {failed} has stopped, and this concerns every shard: mend its storage and restart");
            return Some(Refusal::unknown(Code::ShardFailed, message));
        }
        let full = self.peers.iter().position(|peer| peer.is_full).filter(|_| takes != Takes::LastRoom);
        full.map(|full| {
            let message = format!("the device of shard {full} is full, and this concerns every shard: {RING_FULL}");
            Refusal::retry_after(Code::NoSpace, NO_SPACE_RETRY_MS, message)
        })
    }

    /// What is refused because there is too much to do: claims are served before references, these before reads.
    fn shed(&self, operation: &Operation<'_>) -> Result<(), Refusal> {
        let level = self.debt.level();
        let refused_from = match operation {
            Operation::Scan { .. }
            | Operation::Reference { .. }
            | Operation::Find { .. }
            | Operation::Correlated { .. }
            | Operation::Totals { .. } => Level::Orange,
            Operation::Claim { .. } | Operation::Lookup { .. } | Operation::History { .. } => Level::Red,
            _ if self.debt.is_full() => return Err(self.overloaded(level)),
            _ => return Ok(()),
        };
        if level >= refused_from || self.debt.is_full() { Err(self.overloaded(level)) } else { Ok(()) }
    }

    fn overloaded(&self, level: Level) -> Refusal {
        let message = format!(
            "shard {} is overloaded ({level:?}): {} requests wait for its log; try again a little later",
            self.shard.number(),
            self.debt.requests()
        );
        Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message)
    }

    /// Whether the log has room for what a request adds.
    pub(super) fn room_for(&self, takes: Takes, bytes: u64) -> Room {
        let prepared_bytes = match takes {
            Takes::Nothing => return Room::Here,
            Takes::Room => self.log.prepared_bytes_for_requests(),
            Takes::LastRoom => self.log.prepared_bytes(),
        };
        let has_place = prepared_bytes >= bytes;
        // Where nothing more is being prepared it would wait for ever.
        let will_have_place = has_place || self.log.prepares_more();
        let is_ring = self.superblock.geometry.is_ring();
        if !has_place && (self.log.cannot_grow() || (is_ring && !will_have_place)) {
            let message = match is_ring {
                true => format!("the shard's device is full: {RING_FULL}"),
                false => "the ledger cannot grow: make room on its file system; reads go on, and writes as soon as there is room"
                    .to_owned(),
            };
            return Room::None(Refusal::retry_after(Code::NoSpace, NO_SPACE_RETRY_MS, message));
        }
        // Segments may fill up faster than they are sealed.
        let is_behind = self.shard.rows().frozen().len() >= FULL_SEGMENTS_MAX;
        if has_place && self.log.room_bytes() >= bytes && !is_behind {
            return Room::Here;
        }
        let will_have_room = will_have_place && self.log.room_bytes_max() >= bytes;
        match takes != Takes::LastRoom && will_have_room && !self.sealing.is_stuck() {
            true => Room::Soon,
            false => Room::None(log_is_behind()),
        }
    }

    /// Has a request wait until the log has room.
    pub(super) fn park_for_room(&mut self, request: &Request<'_>, debt_bytes: u64) {
        if self.without_room.len() >= WITHOUT_ROOM_MAX {
            self.debt.answer(debt_bytes);
            return self.refuse(request.token, log_is_behind());
        }
        if let Some(id) = self.keep(request.token, OwnedRequest::new(request), debt_bytes) {
            self.hold_line(request, id);
            self.wait_for_room(id);
        }
    }

    /// Has a parked request wait until the log has room. It counts as debt meanwhile.
    pub(super) fn wait_for_room(&mut self, id: u64) {
        if self.without_room.is_empty() {
            self.without_room_since_us = self.boot_us;
        }
        self.without_room.push_back(id);
    }

    /// Decides what waits for room, in the order it came, as far as there is some.
    pub(super) fn let_in(&mut self, now: Now, entropy: &mut Entropy) {
        if self.log.failed().is_some() {
            return;
        }
        while let Some(id) = self.without_room.front().copied() {
            // Nobody waits any more for one that is gone.
            if let Some(parked) = self.parked.get(&id)
                && matches!(self.room_for(parked.takes, parked.debt_bytes), Room::Soon)
            {
                return;
            }
            self.without_room.pop_front();
            self.without_room_since_us = now.boot_us;
            self.decide_with_room(now, entropy, id);
        }
    }

    /// Refuses what waits for room once none of it has found some for too long.
    pub(super) fn lose_patience(&mut self, now: Now) {
        let Engine { without_room, parked, .. } = self;
        without_room.retain(|id| parked.contains_key(id));
        if !self.without_room.is_empty() && now.boot_us - self.without_room_since_us >= ROOM_PATIENCE_US {
            tracing::warn!(
                shard = self.shard.number(),
                requests = self.without_room.len(),
                "the log has had no room for 10 s: what waited for it is refused"
            );
            for id in std::mem::take(&mut self.without_room) {
                self.unpark(id, Some(log_is_behind()));
            }
        }
    }
}

/// The refusal of what the log has no room for at present.
pub(super) fn log_is_behind() -> Refusal {
    let message = "the log is behind: its buffers or its zeroed segments are used up, or its full ones are not sealed; try again a \
                   little later";
    Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message)
}

/// An upper bound of what a request adds to the log.
pub(super) fn log_bytes(request: &Request<'_>) -> u64 {
    use crate::command::Operation::{Claim, Configure, Onboard, Reference};
    let rationale = request.rationale.len() as u64;
    // Behind a claim there may be alarms, before anything the name of a user.
    let beside = 4 * ENTRY_BYTES + request.user.len() as u64;
    let strings: u64 = match request.operation {
        Claim { items, .. } => items
            .iter()
            .map(|c| {
                let texts = c.event_key.len() + c.owning_corpus.len() + c.hosting_corpus.len() + c.category.len();
                (texts + c.metadata.len()) as u64 + rationale + ENTRY_BYTES
            })
            .sum(),
        Reference { items, .. } => items.len() as u64 * (rationale + ENTRY_BYTES),
        Onboard { name, notes } => 2 * (rationale + ENTRY_BYTES) + (name.len() + notes.len()) as u64,
        Configure { toml } => rationale + ENTRY_BYTES + toml.len() as u64,
        _ => rationale + ENTRY_BYTES,
    };
    strings + beside
}
