//! Decisions: from a request and the present state to a refusal, or to records.

use super::keys::{Kept, KeyId, KeyState};
use super::{Decision, Effect, Shard, check};
use crate::command::{Claim, Claimed, Corpus, HISTORY_ENTRIES_MAX, Operation, Outcome, Request, SCAN_ROWS_MAX};
use crate::corpus::Prefix;
use crate::entropy::Entropy;
use crate::error::{Code, Refusal};
use crate::id::EventId;
use crate::log::entry::{ClaimEntry, Entry, Meta, Record};
use crate::log::superblock::ClockMode;
use crate::log::writer::LogWriter;
use crate::row::{Lifecycle, ReasonCode};
use crate::shard::rows::Found;
use crate::time::{Now, Quarter};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Advice on when to ask again for what may become visible.
const NOT_VISIBLE_RETRY_MS: u32 = 100;
/// Advice on when to ask again after an operator has looked at the clock.
const CLOCK_RETRY_MS: u32 = 10_000;

/// One step of a shard: the state with the inputs of the moment.
pub struct Step<'s, 'e, 'l> {
    pub shard: &'s mut Shard,
    pub now: Now,
    pub entropy: &'e mut Entropy,
    pub log: &'l mut LogWriter,
}

type Decided<T> = Result<T, (Refusal, u64)>;

/// A refusal that depends on nothing that a crash could undo.
fn refuse<T>(refusal: Refusal) -> Decided<T> {
    Err((refusal, 0))
}

impl Step<'_, '_, '_> {
    pub fn request(mut self, request: &Request<'_>) -> Decision {
        self.decide(request).unwrap_or_else(|(refusal, position)| Decision::now(Outcome::Refused(refusal), position))
    }

    fn decide(&mut self, request: &Request<'_>) -> Decided<Decision> {
        let mode = self.shard.clock.mode();
        check::request(request, mode).or_else(refuse)?;
        self.at_least(request.at_least)?;
        let time_us = match (mode, request.at_us) {
            (ClockMode::Replay, Some(at_us)) => at_us.max(self.shard.last_us),
            _ => self.shard.clock.time_us(self.now, self.shard.last_us),
        };
        match request.operation {
            Operation::Claim { corpus, items } => self.claim(request, corpus, items, time_us),
            Operation::Reference { corpus, items } => self.reference(request, corpus, items, time_us),
            Operation::Retract { corpus, event_id, reason_code } => {
                self.retract(request, corpus, event_id, reason_code, time_us)
            }
            Operation::Reactivate { event_id } => self.reactivate(request, event_id, time_us),
            Operation::Onboard { name, notes } => self.onboard(request, name, notes, time_us),
            Operation::ConfirmClock => self.confirm_clock(request),
            Operation::Corpora => {
                let shard = &*self.shard;
                let own = shard.registry.corpora().iter().filter(|corpus| corpus.shard == shard.number);
                let corpora = own.map(|corpus| (corpus.clone(), shard.rows.count_of(corpus.prefix))).collect();
                Ok(Decision::now(Outcome::Corpora(corpora), shard.last_position))
            }
            Operation::Lookup { event_id } => {
                let found = self.row(event_id)?;
                Ok(Decision::now(Outcome::Row(found.view), found.position))
            }
            Operation::History { event_id, skip } => {
                let found = self.row(event_id)?;
                let (entries_at, more) =
                    self.shard.rows.history(event_id, skip, HISTORY_ENTRIES_MAX).unwrap_or_default();
                // References don't move the row's own position, but they are entries of its history.
                let position = if entries_at.len() > 1 { self.shard.last_position } else { found.position };
                Ok(Decision::now(Outcome::History { entries_at, more }, position))
            }
            Operation::Scan { corpus, since_us, until_us, after, limit } => {
                let prefix = self.corpus(corpus)?;
                let limit = if limit == 0 { SCAN_ROWS_MAX } else { limit.min(SCAN_ROWS_MAX) };
                let (found, more) = self.shard.rows.scan(prefix, since_us, until_us, after, limit);
                let position = found.iter().map(|f| f.position).max().unwrap_or(0);
                let rows = found.into_iter().map(|f| f.view).collect();
                Ok(Decision::now(Outcome::Rows { rows, more }, position))
            }
        }
    }

    fn at_least(&self, positions: &[(u16, u64)]) -> Decided<()> {
        let shard = self.shard.number;
        for (_, position) in positions.iter().filter(|(s, _)| *s == shard) {
            if *position > self.shard.last_position {
                let message = format!(
                    "at_least asks for position {position} of shard {shard}, which is at {}: the position comes from \
                     another ledger, or from one that lost its end",
                    self.shard.last_position
                );
                return refuse(Refusal::retry_after(Code::NotVisible, NOT_VISIBLE_RETRY_MS, message));
            }
        }
        Ok(())
    }

    fn corpus(&self, name: &str) -> Decided<Prefix> {
        match self.shard.registry.of_name(name) {
            Some(corpus) => Ok(corpus.prefix),
            None => refuse(Refusal::new(
                Code::UnknownCorpus,
                format!("there is no corpus '{}'; onboard it first", name.chars().take(80).collect::<String>()),
            )),
        }
    }

    /// A corpus that lives on this shard.
    fn own_corpus(&self, name: &str) -> Decided<Prefix> {
        let prefix = self.corpus(name)?;
        match self.shard.registry.of_prefix(prefix) {
            Some(corpus) if corpus.shard == self.shard.number => Ok(prefix),
            _ => refuse(Refusal::new(Code::BadRequest, format!("corpus '{name}' lives on another shard"))),
        }
    }

    fn row(&self, event_id: EventId) -> Decided<Found> {
        match self.shard.rows.get(event_id) {
            Some(found) => Ok(found),
            None => refuse(Refusal::retry_after(
                Code::NotVisible,
                NOT_VISIBLE_RETRY_MS,
                format!("there is no row {event_id} here yet"),
            )),
        }
    }

    fn believe_clock(&self) -> Decided<()> {
        match self.shard.clock.suspect() {
            None => Ok(()),
            Some(reason) => refuse(Refusal::retry_after(
                Code::ClockSuspect,
                CLOCK_RETRY_MS,
                format!("{reason}: set the clock right, or accept it with `claimctl confirm-clock`"),
            )),
        }
    }

    /// What is known of the request's key. A new operation needs a clock that is believed; a retry does not, and a key
    /// made by a client whose clock leapt with ours is not blamed for it.
    fn key(
        &self,
        request: &Request<'_>,
        scope: Option<Prefix>,
        item: u16,
        fingerprint: u64,
        time_us: i64,
    ) -> Decided<KeyState> {
        let id = KeyId::new(scope.map_or(0, Prefix::get), request.idempotency_key, item);
        match self.shard.keys.check(id, fingerprint, time_us) {
            Ok(KeyState::Done(kept)) => Ok(KeyState::Done(kept)),
            Err((refusal, position)) if refusal.code == Code::KeyReused => Err((refusal, position)),
            other => {
                self.believe_clock()?;
                other
            }
        }
    }

    /// The effect that a key's operation had, other than a claim's.
    fn effect(&self, kept: Kept) -> Effect {
        self.shard.effects[kept.effect as usize]
    }

    fn append(
        &mut self,
        request: &Request<'_>,
        scope: Option<Prefix>,
        item: u16,
        fingerprint: u64,
        time_us: i64,
        entry: Entry<'_>,
    ) -> u64 {
        let meta = Meta {
            timestamp_us: time_us,
            idempotency_key: request.idempotency_key,
            correlation_id: request.correlation_id,
            fingerprint,
            principal: request.principal,
            item,
            corpus: scope,
            rationale: request.rationale,
        };
        self.shard.append(&Record { meta, entry }, self.log)
    }

    fn claim(&mut self, request: &Request<'_>, corpus: &str, items: &[Claim<'_>], time_us: i64) -> Decided<Decision> {
        let prefix = self.own_corpus(corpus)?;
        if let [item] = items {
            let (claimed, position) = self.claim_item(request, prefix, 0, item, time_us)?;
            return Ok(Decision::now(Outcome::Claimed(claimed), position));
        }
        let mut depends_on = 0;
        let mut results = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            results.push(match self.claim_item(request, prefix, index as u16, item, time_us) {
                Ok((claimed, position)) => {
                    depends_on = depends_on.max(position);
                    Ok(claimed)
                }
                Err((refusal, position)) => {
                    depends_on = depends_on.max(position);
                    Err(refusal)
                }
            });
        }
        Ok(Decision::now(Outcome::ClaimedItems(results), depends_on))
    }

    fn claim_item(
        &mut self,
        request: &Request<'_>,
        prefix: Prefix,
        item: u16,
        claim: &Claim<'_>,
        time_us: i64,
    ) -> Decided<(Claimed, u64)> {
        let fingerprint = self.fingerprint(request, Keyed::Claim, |out| {
            text(out, claim.event_key);
            text(out, claim.owning_corpus);
            text(out, claim.hosting_corpus);
            text(out, claim.category);
            number(out, claim.occurred_at_us as u64);
            number(out, claim.taxonomy_version.into());
            number(out, claim.metadata.len() as u64);
            out.extend_from_slice(claim.metadata);
        });
        if let KeyState::Done(kept) = self.key(request, Some(prefix), item, fingerprint, time_us)? {
            let row = self.shard.rows.claim(prefix, kept.effect).expect("a kept claim has its row");
            let claimed = Claimed {
                event_id: row.event_id,
                claim_timestamp_us: row.claim_timestamp_us,
                claim_sequence: row.claim_sequence,
            };
            return Ok((claimed, kept.position));
        }
        check::claim(claim, time_us).or_else(refuse)?;
        let last = self.shard.rows.last_id(prefix);
        let event_id = EventId::next(last, (time_us / 1_000) as u64, prefix, self.entropy);
        let quarter = if self.shard.quarter.1.contains(&time_us) { self.shard.quarter.0 } else { Quarter::of(time_us) };
        let claim_sequence = self.shard.rows.next_sequence(prefix, quarter);
        let entry = Entry::Claim(ClaimEntry {
            event_id,
            claim_sequence,
            occurred_at_us: claim.occurred_at_us,
            taxonomy_version: claim.taxonomy_version,
            event_key: claim.event_key,
            owning_corpus: claim.owning_corpus,
            hosting_corpus: claim.hosting_corpus,
            category: claim.category,
            metadata: claim.metadata,
        });
        let position = self.append(request, Some(prefix), item, fingerprint, time_us, entry);
        Ok((Claimed { event_id, claim_timestamp_us: time_us, claim_sequence }, position))
    }

    fn reference(
        &mut self,
        request: &Request<'_>,
        corpus: &str,
        items: &[(u16, EventId)],
        time_us: i64,
    ) -> Decided<Decision> {
        let prefix = self.corpus(corpus)?;
        let mut depends_on = 0;
        let results = items.iter().map(|(index, event_id)| {
            let result = self.reference_item(request, prefix, *index, *event_id, time_us);
            let (result, position) = match result {
                Ok((canonical_id, position)) => (Ok(canonical_id), position),
                Err((refusal, position)) => (Err(refusal), position),
            };
            depends_on = depends_on.max(position);
            (*index, result)
        });
        let results = results.collect();
        Ok(Decision::now(Outcome::ReferencedItems(results), depends_on))
    }

    fn reference_item(
        &mut self,
        request: &Request<'_>,
        prefix: Prefix,
        item: u16,
        event_id: EventId,
        time_us: i64,
    ) -> Decided<(EventId, u64)> {
        let fingerprint = self.fingerprint(request, Keyed::Reference, |out| {
            out.extend_from_slice(&event_id.as_u128().to_be_bytes());
        });
        if let KeyState::Done(kept) = self.key(request, Some(prefix), item, fingerprint, time_us)?
            && let Effect::Referenced(canonical_id) = self.effect(kept)
        {
            return Ok((canonical_id, kept.position));
        }
        let found = self.row(event_id)?;
        if event_id.prefix() == prefix {
            return Err((
                Refusal::new(
                    Code::BadTransition,
                    format!(
                        "{event_id} is the corpus's own row ({}); a reference goes to another corpus's",
                        found.view.lifecycle.name()
                    ),
                ),
                found.position,
            ));
        }
        self.expect_lifecycle(&found, Lifecycle::Registered, "referred to")?;
        // Aliases come with reconciliation; until then every registered row is its own canonical row.
        let entry = Entry::Reference { event_id, canonical_id: event_id };
        let position = self.append(request, Some(prefix), item, fingerprint, time_us, entry);
        Ok((event_id, position))
    }

    fn expect_lifecycle(&self, found: &Found, expected: Lifecycle, verb: &str) -> Decided<()> {
        if found.view.lifecycle == expected {
            return Ok(());
        }
        let message = format!(
            "the row {} is {}; only a {} row can be {verb}",
            found.view.event_id,
            found.view.lifecycle.name(),
            expected.name()
        );
        Err((Refusal::new(Code::BadTransition, message), found.position))
    }

    fn retract(
        &mut self,
        request: &Request<'_>,
        corpus: &str,
        event_id: EventId,
        reason_code: ReasonCode,
        time_us: i64,
    ) -> Decided<Decision> {
        let prefix = self.own_corpus(corpus)?;
        let fingerprint = self.fingerprint(request, Keyed::Retract, |out| {
            out.push(reason_code.number());
            out.extend_from_slice(&event_id.as_u128().to_be_bytes());
        });
        if let KeyState::Done(kept) = self.key(request, Some(prefix), 0, fingerprint, time_us)?
            && let Effect::Retracted(event_id, tombstoned_at_us) = self.effect(kept)
        {
            return Ok(Decision::now(Outcome::Retracted { event_id, tombstoned_at_us }, kept.position));
        }
        if event_id.prefix() != prefix {
            let message = format!("{event_id} is not a row of corpus '{corpus}'; its own corpus retracts it");
            return refuse(Refusal::new(Code::BadRequest, message));
        }
        let found = self.row(event_id)?;
        self.expect_lifecycle(&found, Lifecycle::Registered, "retracted")?;
        let entry = Entry::Tombstone { event_id, reason_code };
        let position = self.append(request, Some(prefix), 0, fingerprint, time_us, entry);
        Ok(Decision::now(Outcome::Retracted { event_id, tombstoned_at_us: time_us }, position))
    }

    fn reactivate(&mut self, request: &Request<'_>, event_id: EventId, time_us: i64) -> Decided<Decision> {
        let prefix = event_id.prefix();
        let fingerprint = self.fingerprint(request, Keyed::Reactivate, |out| {
            out.extend_from_slice(&event_id.as_u128().to_be_bytes());
        });
        if let KeyState::Done(kept) = self.key(request, Some(prefix), 0, fingerprint, time_us)?
            && let Effect::Reactivated(event_id, reactivated_at_us) = self.effect(kept)
        {
            return Ok(Decision::now(Outcome::Reactivated { event_id, reactivated_at_us }, kept.position));
        }
        let found = self.row(event_id)?;
        self.expect_lifecycle(&found, Lifecycle::Tombstoned, "reactivated")?;
        let entry = Entry::Reactivate { event_id };
        let position = self.append(request, Some(prefix), 0, fingerprint, time_us, entry);
        Ok(Decision::now(Outcome::Reactivated { event_id, reactivated_at_us: time_us }, position))
    }

    fn onboard(&mut self, request: &Request<'_>, name: &str, notes: &str, time_us: i64) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::Onboard, |out| {
            text(out, name);
            text(out, notes);
        });
        if let KeyState::Done(kept) = self.key(request, None, 0, fingerprint, time_us)?
            && let Effect::Onboarded(prefix, global_sequence) = self.effect(kept)
            && let Some(corpus) = self.shard.registry.of_prefix(prefix)
        {
            let outcome = Outcome::Onboarded(Box::new(corpus.clone()));
            return Ok(Decision { outcome, position: kept.position, global_sequence });
        }
        if let Some(corpus) = self.shard.registry.of_name(name) {
            let message = format!("corpus '{name}' is onboarded: prefix {}, shard {}", corpus.prefix, corpus.shard);
            return Err((Refusal::new(Code::AlreadyRegistered, message), self.shard.last_position));
        }
        let Some(prefix) = self.shard.registry.next_prefix() else {
            return refuse(Refusal::new(
                Code::BadRequest,
                "all 65,535 shard prefixes are given out; none is ever reused",
            ));
        };
        if let Some(minted_to) = self.shard.registry.mint_to(Quarter::of(time_us)) {
            let global_sequence = self.shard.globals_applied + 1;
            self.append(request, None, 0, fingerprint, time_us, Entry::PrefixAllocation { global_sequence, minted_to });
        }
        let shard = self.shard.registry.place(self.shard.shard_count);
        let global_sequence = self.shard.globals_applied + 1;
        let entry = Entry::Onboard { global_sequence, prefix, shard, name, notes, onboarded_at_us: time_us };
        let position = self.append(request, None, 0, fingerprint, time_us, entry);
        let corpus = Corpus { name: name.to_owned(), prefix, shard, onboarded_at_us: time_us, notes: notes.to_owned() };
        Ok(Decision { outcome: Outcome::Onboarded(Box::new(corpus)), position, global_sequence })
    }

    fn confirm_clock(&mut self, request: &Request<'_>) -> Decided<Decision> {
        let fingerprint = self.fingerprint(request, Keyed::ConfirmClock, |_| {});
        let time_us = match request.at_us {
            Some(at_us) => at_us.max(self.shard.last_us),
            None => self.now.wall_us.max(self.shard.last_us),
        };
        // Not through `key`: this is what one does about a clock that is not believed.
        let id = KeyId::new(0, request.idempotency_key, 0);
        if let KeyState::Done(kept) = self.shard.keys.check(id, fingerprint, time_us)?
            && let Effect::ClockConfirmed(confirmed_at_us, global_sequence) = self.effect(kept)
        {
            let outcome = Outcome::ClockConfirmed { confirmed_at_us };
            return Ok(Decision { outcome, position: kept.position, global_sequence });
        }
        let global_sequence = self.shard.globals_applied + 1;
        let position = self.append(request, None, 0, fingerprint, time_us, Entry::ConfirmClock { global_sequence });
        self.shard.clock.confirm(self.now);
        let outcome = Outcome::ClockConfirmed { confirmed_at_us: time_us };
        Ok(Decision { outcome, position, global_sequence })
    }

    /// A number that tells a retry from another request: over everything that the request means. Its low byte is the
    /// operation, so that what is kept for a key is never taken for another operation's; the rest is a hash with the
    /// ledger's secret, so that nobody can make two requests that look alike.
    fn fingerprint(&mut self, request: &Request<'_>, operation: Keyed, fields: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let secret = self.shard.secret;
        let out = &mut self.shard.scratch;
        out.clear();
        text(out, request.rationale);
        out.extend_from_slice(&request.correlation_id.to_le_bytes());
        number(out, request.at_us.map_or(u64::MAX, |at| at as u64));
        fields(out);
        xxh3_64_with_seed(out, secret) & !0xff | operation as u64
    }
}

/// The operations that a key can stand for.
#[derive(Debug, Clone, Copy)]
enum Keyed {
    Claim = 1,
    Reference = 2,
    Retract = 3,
    Reactivate = 4,
    Onboard = 16,
    ConfirmClock = 18,
}

fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}
