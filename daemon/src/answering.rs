//! What leaves the engines: to connections, to other executors, to gatherings; and what is read for it from the ledger.

use crate::driver::Driver;
use crate::gather::Part;
use crate::log_reader;
use crate::message::Message;
use crate::reading::{self, Answer, Next};
use crate::rounds::Work;
use crate::service::{OVERLOADED_RETRY_MS, PAGE_READ_WEIGHT, Pending, READS_MAX, ReplyTo, Service, Then};
use crate::shared::Tried;
use claim_engine::command::Outcome;
use claim_engine::engine::Output;
use claim_engine::error::{Code, Refusal};
use claim_engine::id::EventId;
use claim_engine::log::end::Head;
use claim_engine::log::record::RawRecord;
use claim_engine::row::RowView;
use claim_protocol::reply::ReplyResult;
use claim_protocol::{self as wire, LogPosition, Reply};
use claim_translate as translate;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a reader of the tail looks whether there is something new.
const TAIL_LOOK_MS: u64 = 5;

/// Pages of rows that are kept for the next ones, with their memory, per executor.
const PAGES_KEPT: usize = 8;

/// An answer on its way.
#[derive(Clone)]
pub(crate) struct Asked {
    reply_to: ReplyTo,
    request_id: u64,
    shard: u16,
    is_part: bool,
    position: u64,
}

impl Asked {
    /// Where the log was, if it says so.
    fn at(&self) -> Option<LogPosition> {
        (self.position > 0).then_some(LogPosition { shard: self.shard, position: self.position })
    }
}

/// What a shard says about the claim of a batch of one, as it says it about a batch.
fn as_batch(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Claimed(claimed) => Outcome::ClaimedItems(vec![Ok(claimed)]),
        Outcome::Refused(refusal) if is_of_item(refusal.code) => Outcome::ClaimedItems(vec![Err(refusal)]),
        whole => whole,
    }
}

/// Whether a refusal concerns an item of a batch, or the batch as a whole.
fn is_of_item(code: Code) -> bool {
    matches!(
        code,
        Code::BadRequest
            | Code::Decommissioned
            | Code::Frozen
            | Code::KeyReused
            | Code::KeyExpired
            | Code::KeyInFuture
            | Code::Throttled
            | Code::ClockSuspect
    )
}

impl Service {
    pub(crate) fn output(self: &Rc<Self>, output: Output) {
        match output {
            Output::Message { to, message } => {
                let executor = self.shared.executor_of_shard[usize::from(to)];
                if executor == self.executor {
                    self.deliver(to, &message);
                } else {
                    // Shards' messages answer each other; the mesh is closed only when all is over.
                    let _ = self.mesh.answer(executor, Message::Peer { shard: to, message });
                }
            }
            Output::Reply(reply) => {
                let Some(pending) = self.pending.borrow_mut().try_remove(reply.token as usize) else { return };
                self.pulse.own_sub(1);
                let Pending { reply_to, request_id, shard, is_part, then, timed } = pending;
                if let Some(step_ended) = timed {
                    let driver = self.drivers[usize::from(shard)].as_ref();
                    self.stages.replied(step_ended, driver.and_then(|driver| driver.written()));
                }
                let outcome = if matches!(then, Then::BatchOfOne) { as_batch(reply.outcome) } else { reply.outcome };
                match (outcome, &reply_to) {
                    (Outcome::Claimed(claimed), ReplyTo::Connection(conn)) => {
                        let at = LogPosition { shard, position: reply.position };
                        let claimed = translate::claimed(&claimed);
                        conn.send(|out| wire::encode_claim_reply(request_id, at, &claimed, out));
                        conn.finish();
                    }
                    (outcome, _) => {
                        let asked = Asked { reply_to, request_id, shard, is_part, position: reply.position };
                        self.answer(asked, outcome, then);
                    }
                }
            }
        }
    }

    fn answer(self: &Rc<Self>, asked: Asked, outcome: Outcome, then: Then) {
        let at = LogPosition { shard: asked.shard, position: asked.position };
        let names = &**self;
        let result = match outcome {
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Claimed(claimed) => Ok(ReplyResult::Claimed(translate::claimed(&claimed))),
            Outcome::ClaimedItems(results) => {
                let results =
                    results.iter().map(|r| r.as_ref().map(translate::claimed).map_err(|e| translate::error(e.clone())));
                Ok(ReplyResult::ClaimedBatch(results.collect()))
            }
            Outcome::ReferencedItems(results) => {
                let mut results =
                    results.into_iter().map(|(index, r)| (index, r.map(EventId::as_uuid).map_err(translate::error)));
                if asked.is_part {
                    return self.finish_part(&asked.reply_to, Part::References { at, results: results.collect() });
                }
                let (_, single) = results.next().expect("a reference that is no part has one item");
                Ok(single.map_or_else(ReplyResult::Error, ReplyResult::Referenced))
            }
            Outcome::Retracted { event_id, tombstoned_at_us } => {
                Ok(ReplyResult::Retracted { event_id: event_id.as_uuid(), tombstoned_at_us })
            }
            Outcome::Reactivated { event_id, reactivated_at_us } => {
                Ok(ReplyResult::Reactivated { event_id: event_id.as_uuid(), reactivated_at_us })
            }
            Outcome::Onboarded(corpus) => {
                let details = self.shared_state(|shard| shard.details(&corpus));
                match details {
                    Some(details) => Ok(ReplyResult::Onboarded(translate::corpus(&details))),
                    None => Err(Refusal::unknown(Code::ShardFailed, "this executor has no shard to ask")),
                }
            }
            Outcome::ClockConfirmed { confirmed_at_us } => Ok(ReplyResult::ClockConfirmed { confirmed_at_us }),
            Outcome::Corpora(corpora) => {
                let corpora = corpora.iter().map(translate::corpus).collect();
                return self.finish_part(&asked.reply_to, Part::Corpora { at, corpora });
            }
            Outcome::Decommissioned { corpus, applied, usage } => {
                let Some(details) = self.shared_state(|shard| shard.details(&corpus)) else { return };
                let closed = Some(Box::new((translate::corpus(&details), applied)));
                let (rows, aliases_elsewhere) = (usage.rows, usage.aliases_elsewhere);
                return self.finish_part(&asked.reply_to, Part::Usage { at, closed, rows, aliases_elsewhere });
            }
            Outcome::Usage(usage) => {
                let (rows, aliases_elsewhere) = (usage.rows, usage.aliases_elsewhere);
                return self.finish_part(&asked.reply_to, Part::Usage { at, closed: None, rows, aliases_elsewhere });
            }
            Outcome::Frozen { corpus, frozen, at_us } => Ok(ReplyResult::Frozen { corpus, frozen, at_us }),
            Outcome::Capped { corpus, claims_per_minute, at_us } => {
                Ok(ReplyResult::Capped { corpus, claims_per_minute, at_us })
            }
            Outcome::Proposal(proposal) => Ok(ReplyResult::Proposal(translate::proposal(&proposal, names))),
            Outcome::Proposals(all) => {
                Ok(ReplyResult::ProposalList(all.iter().map(|p| translate::proposal(p, names)).collect()))
            }
            Outcome::IncidentSet { active, at_us } => Ok(ReplyResult::IncidentSet { active, at_us }),
            Outcome::BarrierRaised { at_us } => Ok(ReplyResult::BarrierRaised { at_us }),
            Outcome::Held { quarter, held, at_us } => {
                Ok(ReplyResult::Held { year: quarter.year(), quarter: quarter.number(), held, at_us })
            }
            Outcome::Configured { .. } => return self.configured(),
            Outcome::Configuration { toml, at_us, uid } => Ok(translate::configuration(toml, at_us, uid, at)),
            Outcome::Dispute(dispute) => Ok(ReplyResult::Disputed(translate::dispute(&dispute, names))),
            Outcome::Disputes { disputes, more } => {
                let next = disputes.last().filter(|_| more).map(|dispute| dispute.id.as_uuid());
                let disputes = disputes.iter().map(|dispute| translate::dispute(dispute, names)).collect();
                Ok(ReplyResult::DisputeList { disputes, next })
            }
            Outcome::Reconciled(report) => Ok(ReplyResult::Reconciled(Box::new(translate::report(&report, names)))),
            Outcome::Totals(totals) => {
                let totals = translate::totals(&totals, names);
                return self.finish_part(&asked.reply_to, Part::Totals { at, totals });
            }
            Outcome::Allowed => return self.allowed(asked, then),
            outcome @ (Outcome::Row(_)
            | Outcome::Rows { .. }
            | Outcome::Found { .. }
            | Outcome::History { .. }
            | Outcome::Correlated { .. }) => return self.read(asked, outcome, then),
        };
        self.finish_asked(&asked, result);
    }

    fn configured(&self) {
        tracing::info!("the configuration is in force on every shard");
        self.shared.configured.notify(Tried::Over);
    }

    fn finish_asked(&self, asked: &Asked, result: Result<ReplyResult, Refusal>) {
        self.finish(&asked.reply_to, asked.is_part, asked.request_id, asked.shard, asked.position, result);
    }

    /// Does something that takes a while, if not too much of it is under way.
    fn spawn_read<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        asked: &Asked,
        weight: usize,
        work: impl FnOnce(Rc<Service>, Rc<Driver>) -> F,
    ) {
        if self.reads.get() + weight > READS_MAX {
            let message = "too many reads are under way; try again a little later";
            let refusal = Refusal::retry_after(Code::Overloaded, OVERLOADED_RETRY_MS, message);
            return self.finish(&asked.reply_to, asked.is_part, asked.request_id, asked.shard, 0, Err(refusal));
        }
        let Some(driver) = self.drivers[usize::from(asked.shard)].clone() else { return };
        self.reads.set(self.reads.get() + weight);
        self.pulse.own_add(1);
        let this = Rc::clone(self);
        let work = work(Rc::clone(self), driver);
        glommio::spawn_local(async move {
            work.await;
            this.pulse.own_sub(1);
            this.pulse.beat();
            this.reads.set(this.reads.get() - weight);
        })
        .detach();
    }

    /// Answers with a row, of its claim's record.
    fn finish_row(
        &self,
        asked: &Asked,
        view: &RowView,
        claim: RawRecord<'_>,
        reason: Option<&str>,
    ) -> Result<(), Refusal> {
        reading::with_row(view, claim, reason, self, |row| {
            let builder = &mut *self.builder.borrow_mut();
            self.reply(&asked.reply_to, |out| wire::encode_row_found(builder, asked.request_id, asked.at(), row, out));
        })
    }

    /// Reads from the ledger what an answer needs, and then answers.
    fn read(self: &Rc<Self>, asked: Asked, outcome: Outcome, then: Then) {
        if let Outcome::Row(row) = &outcome
            && row.view.tombstone.is_none()
            && let Some(claim) = &row.claim
            && self.finish_row(&asked, &row.view, claim.raw(), None).is_ok()
        {
            return;
        }
        let weight = if matches!(outcome, Outcome::Row(_)) { 1 } else { PAGE_READ_WEIGHT };
        let within = match then {
            Then::Narrow(within) => *within,
            _ => reading::Within::default(),
        };
        let also = asked.clone();
        self.spawn_read(&also, weight, |this, driver| {
            // A quarter may be dropped before what the outcome names is read.
            let began_with = driver.engine.borrow_mut().begin_read();
            async move {
                let of = (asked.shard, this.drivers.len() as u16);
                let reader = reading::Reader { driver: &driver, rounds: &this.rounds };
                let page = || this.pages.borrow_mut().pop().unwrap_or_default();
                let answer = reading::read(reader, of, outcome, &within, page, &*this).await;
                driver.engine.borrow_mut().end_read(began_with);
                let began = Instant::now();
                let finished = match answer {
                    Ok(Answer::Row(view, stored, reason)) => {
                        this.finish_row(&asked, &view, stored.raw(), reason.as_deref())
                    }
                    Ok(Answer::Rows(mut page, next)) => {
                        let at = asked.at();
                        this.reply(&asked.reply_to, |out| match next {
                            Next::Scan(next) => page.scan_page(asked.request_id, at, next, out),
                            Next::Found(next) => page.found(asked.request_id, at, next, out),
                        });
                        // Nothing is written to a connection that has ended: what is on the page is nobody else's.
                        page.clear();
                        let mut pages = this.pages.borrow_mut();
                        if pages.len() < PAGES_KEPT {
                            pages.push(page);
                        }
                        Ok(())
                    }
                    Ok(Answer::Result(result)) => {
                        this.finish_asked(&asked, Ok(result));
                        Ok(())
                    }
                    Err(refusal) => Err(refusal),
                };
                if let Err(refusal) = finished {
                    tracing::error!(shard = asked.shard, message = refusal.message, "a read of the ledger failed");
                    this.finish_asked(&asked, Err(refusal));
                }
                this.rounds.spend_since(began, Work::Reads);
            }
        });
    }

    /// One may: does what was asked for beside the state machine.
    fn allowed(self: &Rc<Self>, asked: Asked, then: Then) {
        let Some(driver) = self.drivers[usize::from(asked.shard)].clone() else { return };
        match then {
            Then::Status => self.finish_part(&asked.reply_to, self.status_part(&driver)),
            Then::Pairs => {
                let engine = driver.engine.borrow();
                let pairs = translate::pairs(engine.shard(), engine.propagation());
                drop(engine);
                self.finish_part(&asked.reply_to, Part::Pairs { pairs });
            }
            Then::Head => {
                let engine = driver.engine.borrow();
                let head = translate::head(asked.shard, engine.head(), engine.shard().last_us());
                drop(engine);
                self.finish_part(&asked.reply_to, Part::Head { head });
            }
            Then::Check(head) => self.check(asked, *head),
            Then::Tail { from_position, limit, wait_ms } => self.tail(asked, from_position, limit, wait_ms),
            Then::Answer | Then::BatchOfOne | Then::Narrow(_) => {
                self.finish_asked(&asked, Err(Refusal::new(Code::BadRequest, "there is nothing to answer")));
            }
        }
    }

    fn check(self: &Rc<Self>, asked: Asked, head: Head) {
        let also = asked.clone();
        self.spawn_read(&also, PAGE_READ_WEIGHT, |this, driver| async move {
            let checked = log_reader::check(&driver, head).await;
            let result = ReplyResult::AuditChecked {
                shard: asked.shard,
                ok: checked.is_well,
                message: checked.message,
                batches_verified: checked.batches,
            };
            this.finish_asked(&asked, Ok(result));
        });
    }

    fn tail(self: &Rc<Self>, asked: Asked, from_position: u64, limit: usize, wait_ms: u32) {
        let also = asked.clone();
        self.spawn_read(&also, PAGE_READ_WEIGHT, |this, driver| async move {
            let until = Instant::now() + Duration::from_millis(wait_ms.min(wire::TAIL_WAIT_MS_MAX).into());
            let is_over = || Instant::now() >= until || this.is_stopping() || driver.engine.borrow().failed().is_some();
            while driver.engine.borrow().durable().position < from_position && !is_over() {
                this.pulse.beat();
                glommio::timer::sleep(Duration::from_millis(TAIL_LOOK_MS)).await;
            }
            // From the beginning: from what is left of it.
            let first_position = driver.engine.borrow().first_position();
            let from_position = if from_position <= 1 { first_position } else { from_position };
            if from_position < first_position {
                let message = format!(
                    "shard {} has dropped the positions before {first_position} with their quarters: go on there, or read a \
                     backup",
                    asked.shard
                );
                return this.finish_asked(&asked, Err(Refusal::new(Code::Expired, message)));
            }
            let page = log_reader::page(&driver, from_position, limit).await.map_err(reading::unreadable);
            let result = page.and_then(|page| {
                let mut entries = Vec::with_capacity(page.records.len());
                for stored in &page.records {
                    let at = LogPosition { shard: asked.shard, position: stored.position };
                    entries.push(translate::entry(&reading::decode(stored.raw())?, at, &*this));
                }
                let durable_position = driver.engine.borrow().durable().position;
                Ok(ReplyResult::TailPage { entries, next_position: page.next_position, durable_position })
            });
            this.finish_asked(&asked, result);
        });
    }

    pub(crate) fn finish(
        &self,
        reply_to: &ReplyTo,
        is_part: bool,
        request_id: u64,
        shard: u16,
        position: u64,
        result: Result<ReplyResult, Refusal>,
    ) {
        let result = result.map_err(translate::error);
        if is_part {
            let part = Part::Refused {
                error: result.err().unwrap_or_else(|| translate::error(Refusal::new(Code::BadRequest, "no part"))),
            };
            return self.finish_part(reply_to, part);
        }
        // The place of a refusal for lack of a role would tell whether there is such a corpus, and where.
        let is_told = position > 0 && !matches!(&result, Err(error) if error.code == wire::ErrorCode::Forbidden);
        let positions = if is_told { vec![LogPosition { shard, position }] } else { Vec::new() };
        let reply = Reply { request_id, positions, result: result.unwrap_or_else(ReplyResult::Error) };
        match reply_to {
            ReplyTo::Daemon => {
                let tried = match reply.result {
                    ReplyResult::Error(error) if error.retry_after_ms > 0 => {
                        tracing::info!(%error, "the configuration waits");
                        Tried::Again
                    }
                    ReplyResult::Error(error) => {
                        tracing::error!(%error, "the configuration is not in force");
                        Tried::Over
                    }
                    _ => Tried::Over,
                };
                self.shared.configured.notify(tried);
            }
            _ => self.reply(reply_to, |out| self.encode(&reply, out)),
        }
    }

    /// Sends whoever waits what `write` appends: one whole frame.
    fn reply(&self, reply_to: &ReplyTo, write: impl FnOnce(&mut Vec<u8>)) {
        match reply_to {
            ReplyTo::Connection(conn) => {
                conn.send(write);
                conn.finish();
            }
            ReplyTo::Executor { executor, ticket } => {
                let mut frame = Vec::new();
                write(&mut frame);
                // The mesh is closed only when nobody waits any more.
                let _ = self.mesh.answer(*executor, Message::Answer { ticket: *ticket, frame });
            }
            ReplyTo::Gather(_) => unreachable!("a gathering takes parts"),
            ReplyTo::Daemon => unreachable!("the daemon itself reads no rows"),
        }
    }

    pub(crate) fn finish_part(&self, reply_to: &ReplyTo, part: Part) {
        match reply_to {
            ReplyTo::Gather(key) => self.gathered(*key, part),
            ReplyTo::Executor { executor, ticket } => {
                // As in `finish`.
                let _ = self.mesh.answer(*executor, Message::AnswerPart { ticket: *ticket, part });
            }
            ReplyTo::Connection(_) | ReplyTo::Daemon => unreachable!("a connection takes whole replies"),
        }
    }
}
