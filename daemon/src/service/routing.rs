//! Which shard a request is for, and which executor has that shard: here, another one, or several.

use super::{OVERLOADED_RETRY_MS, ReplyTo, Service};
use crate::gather::{Gather, Part};
use crate::message::Message;
use crate::socket::connection::{Connection, Peer};
use claim_engine::corpus::Prefix;
use claim_engine::error::{Code, Refusal};
use claim_protocol::{self as wire, Operation};
use claim_translate::{self as translate, pages};
use std::rc::Rc;
use uuid::Uuid;

/// Bytes of requests that other executors have, per executor.
const ASKED_BYTES_MAX: usize = 64 << 20;

/// Who waits for what another executor, or several shards, answer.
pub(super) enum Asker {
    Connection(Rc<Connection>),
    Gather(usize),
}

/// A request that another executor has.
pub(super) struct Ticket {
    asker: Asker,
    frame_bytes: usize,
}

/// An answer that several shards have a part of.
pub(super) struct Gathering {
    conn: Rc<Connection>,
    gather: Gather,
}

impl Service {
    /// Where a corpus lives. What is not known is for shard 0 to refuse: whoever has no role learns nothing from it.
    fn shard_of_corpus(&self, name: &str) -> u16 {
        self.shared_state(|shard| shard.registry().of_name(name).map(|corpus| corpus.shard)).flatten().unwrap_or(0)
    }

    pub(super) fn shard_of_id(&self, uuid: Uuid) -> Result<u16, Refusal> {
        let id = translate::event_id(uuid)?;
        Ok(self.shard_of_prefix(Some(id.prefix())))
    }

    /// Where a prefix's corpus lives; what is not known is for shard 0 to refuse.
    fn shard_of_prefix(&self, prefix: Option<Prefix>) -> u16 {
        let found = self.shared_state(|shard| shard.registry().of_prefix(prefix?).map(|corpus| corpus.shard));
        found.flatten().unwrap_or(0)
    }

    fn expect_shard(&self, shard: u16) -> Result<u16, Refusal> {
        if usize::from(shard) < self.drivers.len() {
            return Ok(shard);
        }
        let message = format!("there is no shard {shard}: this ledger has {}", self.drivers.len());
        Err(Refusal::new(Code::BadRequest, message))
    }

    pub(super) fn request(self: &Rc<Self>, conn: &Rc<Connection>, request: &wire::Request<'_>, frame: &[u8]) {
        if self.is_stopping.get() {
            let message = "the daemon is stopping and takes no more requests; try again when it is back";
            // An earlier request with the same key may have had its effect.
            let refusal = match request.operation.is_mutating() {
                true => Refusal::unknown(Code::ShuttingDown, message),
                false => Refusal::new(Code::ShuttingDown, message),
            };
            self.refuse(conn, request.request_id, refusal);
            return;
        }
        let deadline_boot_us =
            (request.deadline_ms > 0).then(|| self.now().boot_us + i64::from(request.deadline_ms) * 1_000);
        let request_id = request.request_id;
        let to_all = |gather| self.gather(conn, request, frame, deadline_boot_us, gather, self.all_shards());
        let shard = match &request.operation {
            Operation::Corpora => return to_all(Gather::corpora(request_id)),
            Operation::Status => return to_all(Gather::status(request_id, self.status_frame())),
            Operation::Totals { .. } => return to_all(Gather::totals(request_id)),
            Operation::AuditHead => return to_all(Gather::heads(request_id)),
            Operation::Propagation => return to_all(Gather::pairs(request_id)),
            Operation::Decommission { .. } => return to_all(Gather::usage(request_id)),
            Operation::ReferenceBatch { event_ids, .. } => {
                let mut gather = Gather::references(request_id, event_ids.len());
                let mut shards = Vec::new();
                for (index, uuid) in event_ids.iter().enumerate() {
                    match self.shard_of_id(*uuid) {
                        Ok(shard) if shards.contains(&shard) => {}
                        Ok(shard) => shards.push(shard),
                        Err(refusal) => gather.refuse(index, translate::error(refusal)),
                    }
                }
                return self.gather(conn, request, frame, deadline_boot_us, gather, shards);
            }
            Operation::Hello { .. }
            | Operation::Onboard { .. }
            | Operation::ConfirmClock
            | Operation::Dispute { .. }
            | Operation::Respond { .. }
            | Operation::Arbitrate { .. }
            | Operation::Escalate { .. }
            | Operation::DisputeLookup { .. }
            | Operation::Disputes { .. }
            | Operation::Freeze { .. }
            | Operation::Cap { .. }
            | Operation::ProposeSlots { .. }
            | Operation::SignOff { .. }
            | Operation::Proposals
            | Operation::Incident { .. }
            | Operation::Barrier
            | Operation::Hold { .. }
            | Operation::Reconcile { .. }
            | Operation::Configuration => Ok(0),
            Operation::Claim { corpus, .. } | Operation::ClaimBatch { corpus, .. } | Operation::Scan { corpus, .. } => {
                Ok(self.shard_of_corpus(corpus))
            }
            Operation::Retract { corpus: "", event_id, .. } => self.shard_of_id(*event_id),
            Operation::Retract { corpus, .. } => Ok(self.shard_of_corpus(corpus)),
            Operation::Reference { event_id, .. }
            | Operation::Reactivate { event_id }
            | Operation::Lookup { event_id }
            | Operation::History { event_id: Some(event_id), .. } => self.shard_of_id(*event_id),
            Operation::Find { from, .. } | Operation::History { event_id: None, from, .. } => {
                self.expect_shard(pages::shard_of(*from))
            }
            Operation::Tail { shard, .. } | Operation::AuditCheck { shard, .. } => self.expect_shard(*shard),
        };
        let shard = match shard {
            Ok(shard) => shard,
            Err(refusal) => return self.refuse(conn, request.request_id, refusal),
        };
        conn.begin();
        if self.drivers[usize::from(shard)].is_some() {
            self.submit(shard, request, conn.peer(), deadline_boot_us, ReplyTo::Connection(Rc::clone(conn)), false);
            return;
        }
        let asker = Asker::Connection(Rc::clone(conn));
        if !self.ask(asker, shard, frame, conn.peer(), deadline_boot_us, false) {
            let message = "too many requests wait for that shard's core; try again a little later";
            self.refuse(conn, request.request_id, Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message));
            conn.finish();
        }
    }

    /// Gives a ticket back.
    pub(super) fn answered(&self, ticket: usize) -> Option<Asker> {
        let Ticket { asker, frame_bytes } = self.tickets.borrow_mut().try_remove(ticket)?;
        self.asked_bytes.set(self.asked_bytes.get() - frame_bytes);
        Some(asker)
    }

    /// Sends a request to the executor of a shard. False when too many wait there.
    fn ask(
        &self,
        asker: Asker,
        shard: u16,
        frame: &[u8],
        peer: Peer,
        deadline_boot_us: Option<i64>,
        is_part: bool,
    ) -> bool {
        let frame_bytes = frame.len();
        if self.asked_bytes.get() + frame_bytes > ASKED_BYTES_MAX {
            return false;
        }
        self.asked_bytes.set(self.asked_bytes.get() + frame_bytes);
        let ticket = self.tickets.borrow_mut().insert(Ticket { asker, frame_bytes });
        let executor = self.shared.executor_of_shard[usize::from(shard)];
        let message = Message::Ask { ticket, shard, frame: frame.to_vec(), peer, deadline_boot_us, is_part };
        let sent = self.mesh.try_send(executor, message).is_ok();
        if !sent {
            self.answered(ticket);
        }
        sent
    }

    fn all_shards(&self) -> Vec<u16> {
        (0..self.drivers.len() as u16).collect()
    }

    /// Asks several shards for their part of one answer.
    fn gather(
        self: &Rc<Self>,
        conn: &Rc<Connection>,
        request: &wire::Request<'_>,
        frame: &[u8],
        deadline_boot_us: Option<i64>,
        mut gather: Gather,
        shards: Vec<u16>,
    ) {
        conn.begin();
        // One more than there are, so that it is not complete before all have been asked.
        gather.expect(shards.len() + 1);
        let key = self.gathers.borrow_mut().insert(Gathering { conn: Rc::clone(conn), gather });
        for shard in shards {
            if self.drivers[usize::from(shard)].is_some() {
                self.submit(shard, request, conn.peer(), deadline_boot_us, ReplyTo::Gather(key), true);
            } else if !self.ask(Asker::Gather(key), shard, frame, conn.peer(), deadline_boot_us, true) {
                let message = "too many requests wait for that shard's core; try again a little later";
                let refusal = Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message);
                self.gathered(key, Part::Refused { error: translate::error(refusal) });
            }
        }
        self.gathered(key, Part::Nothing);
    }

    pub(crate) fn gathered(&self, key: usize, part: Part) {
        let mut gathers = self.gathers.borrow_mut();
        let Some(gathering) = gathers.get_mut(key) else { return };
        if gathering.gather.add(part) {
            let Gathering { conn, gather } = gathers.remove(key);
            drop(gathers);
            self.send(&conn, &gather.reply());
            conn.finish();
        }
    }
}
