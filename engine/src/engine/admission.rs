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

/// Whether the log has room for a request.
#[derive(Debug)]
pub(super) enum Room {
    /// It has.
    Here,
    /// Not before something that is under way is done: a write, a piece of zeroing, a segment's index.
    Soon,
    /// Not before somebody makes some.
    None(Refusal),
}

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
        let has_room = match self.room_for(&request.operation, log_bytes) {
            Room::Here => true,
            Room::Soon => false,
            Room::None(refusal) => return Err(refusal),
        };
        if !request.operation.is_global() {
            return Ok(has_room);
        }
        if let Some(failed) = self.peers.iter().position(|peer| peer.has_failed) {
            let message =
                format!("shard {failed} has stopped, and this concerns every shard: mend its storage and restart");
            return Err(Refusal::unknown(Code::ShardFailed, message));
        }
        match self.peers.iter().position(|peer| peer.is_full).filter(|_| !makes_room(&request.operation)) {
            Some(full) => {
                let message = format!("the device of shard {full} is full, and this concerns every shard: {RING_FULL}");
                Err(Refusal::retry_after(Code::NoSpace, NO_SPACE_RETRY_MS, message))
            }
            None => Ok(has_room),
        }
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
    pub(super) fn room_for(&self, operation: &Operation<'_>, bytes: u64) -> Room {
        if !operation.is_mutation() {
            return Room::Here;
        }
        // Segments may fill up faster than they are sealed.
        if self.shard.rows().frozen().len() >= FULL_SEGMENTS_MAX {
            return Room::Soon;
        }
        let prepared_bytes = match makes_room(operation) {
            true => self.log.prepared_bytes(),
            false => self.log.prepared_bytes_for_requests(),
        };
        let has_place = prepared_bytes >= bytes;
        if !has_place && self.log.cannot_grow() {
            let message = match self.superblock.geometry.is_ring() {
                true => format!("the shard's device is full: {RING_FULL}"),
                false => "the ledger cannot grow: make room on its file system; reads go on, and writes as soon as there is room"
                    .to_owned(),
            };
            return Room::None(Refusal::retry_after(Code::NoSpace, NO_SPACE_RETRY_MS, message));
        }
        match has_place && self.log.room_bytes() >= bytes {
            true => Room::Here,
            false => Room::Soon,
        }
    }

    /// Has a request wait until the log has room.
    pub(super) fn park_for_room(&mut self, request: &Request<'_>, debt_bytes: u64) {
        if let Some(id) = self.keep(request.token, OwnedRequest::new(request), debt_bytes) {
            self.hold_line(request, id);
            self.wait_for_room(id);
        }
    }

    /// Has a parked request wait until the log has room. It counts as debt meanwhile, which bounds how many wait.
    pub(super) fn wait_for_room(&mut self, id: u64) {
        self.without_room.push_back(id);
    }

    /// Decides what waits for room, in the order it came, as far as there is some.
    pub(super) fn let_in(&mut self, now: Now, entropy: &mut Entropy) {
        if self.log.failed().is_some() {
            return;
        }
        while let Some(id) = self.without_room.front().copied() {
            // Nobody waits any more for one that is gone.
            if let Some(parked) = self.parked.get(&id) {
                let room = parked.request.with(|request| self.room_for(&request.operation, parked.debt_bytes));
                if matches!(room, Room::Soon) {
                    return;
                }
            }
            self.without_room.pop_front();
            self.decide_with_room(now, entropy, id);
        }
    }
}

/// Whether a request ends what may stand against a drop: it is taken into a full ring, which only a drop makes room in.
fn makes_room(operation: &Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::Hold { held: false, .. }
            | Operation::Freeze { frozen: false, .. }
            | Operation::ConfirmClock
            | Operation::Configure { .. }
    )
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
