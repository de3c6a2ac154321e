//! Decisions: from a request and the present state to a refusal, or to records. Here those about rows of this shard.

use super::idempotency::{KeyState, KeyStop, Known};
use super::keys::KeyId;
use super::{Decision, Effect, Needs, Shard, Stepped, check};
use crate::command::{Claim, Claimed, Fact, Operation, Outcome, Request, RowFact};
use crate::corpus::Prefix;
use crate::entropy::Entropy;
use crate::error::{Code, Refusal};
use crate::id::EventId;
use crate::log::entry::{AlarmKind, ClaimEntry, Entry, Meta, Record};
use crate::log::superblock::ClockMode;
use crate::log::writer::LogWriter;
use crate::mutant::Mutant;
use crate::peer::Sought;
use crate::row::{ReasonCode, RowOperation, RowState, transition};
use crate::sealed::{self, Fetch, Unread};
use crate::shard::budget::MINUTE_US;
use crate::shard::rows::Found;
use crate::time::{DAY_US, Now, Quarter};

/// Advice on when to ask again for what may become visible.
const NOT_VISIBLE_RETRY_MS: u32 = 100;
/// Advice on when to ask again after an operator has looked at the clock.
const CLOCK_RETRY_MS: u32 = 10_000;
/// Advice on when to ask again after a stop.
pub(super) const FROZEN_RETRY_MS: u32 = 60_000;

/// How many aliases are followed to a canonical row, at most.
pub const ALIASES_FOLLOWED_MAX: usize = 1_024;

/// One step of a shard: the state with the inputs of the moment.
pub struct Step<'s, 'e, 'l> {
    pub shard: &'s mut Shard,
    pub now: Now,
    pub entropy: &'e mut Entropy,
    /// What other shards said; `None`: they have not been asked.
    pub facts: Option<&'e [Fact]>,
    pub log: &'l mut LogWriter,
    /// No item of the request was seen before: nobody has used its key.
    pub has_new_key: bool,
}

pub(super) type Decided<T> = Result<T, Stop>;

/// Why a decision ends early: a pointer, because it is rare, and what is handed on otherwise would have room for it.
pub(super) struct Stop(Box<Reason>);

pub(super) enum Reason {
    /// It is refused; the refusal depends on this position.
    Refused(Refusal, u64),
    /// It needs to know more.
    Needs(Needs),
}

impl Stop {
    pub fn refused(refusal: Refusal, position: u64) -> Stop {
        Stop(Box::new(Reason::Refused(refusal, position)))
    }

    pub fn needs(needs: Needs) -> Stop {
        Stop(Box::new(Reason::Needs(needs)))
    }

    pub fn reason(self) -> Reason {
        *self.0
    }
}

impl From<Unread> for Stop {
    fn from(unread: Unread) -> Stop {
        match unread {
            Unread::Missing(blocks) => Stop::needs(Needs::Blocks(blocks)),
            Unread::Stretch(range) => Stop::needs(Needs::Stretch(range)),
            Unread::Damaged(what) => {
                tracing::error!(what, "a read of the ledger failed");
                let message = format!("{what}: the ledger's storage is damaged or failing; see the daemon's log");
                Stop::refused(Refusal::new(Code::ShardFailed, message), 0)
            }
        }
    }
}

impl From<KeyStop> for Stop {
    fn from(stop: KeyStop) -> Stop {
        match stop {
            KeyStop::Refused(refusal, position) => Stop::refused(refusal, position),
            KeyStop::Unread(unread) => unread.into(),
        }
    }
}

/// A refusal that depends on nothing that a crash could undo.
pub(super) fn refuse<T>(refusal: Refusal) -> Decided<T> {
    Err(Stop::refused(refusal, 0))
}

/// What became of an item of a batch and the position that it depends on: an item that is refused ends nothing else.
fn of_item<T>(decided: Decided<(T, u64)>) -> Decided<(Result<T, Refusal>, u64)> {
    match decided.map_err(Stop::reason) {
        Ok((done, position)) => Ok((Ok(done), position)),
        Err(Reason::Refused(refusal, position)) => Ok((Err(refusal), position)),
        Err(Reason::Needs(needs)) => Err(Stop::needs(needs)),
    }
}

impl Step<'_, '_, '_> {
    pub fn request(mut self, request: &Request<'_>) -> Stepped {
        match self.decide(request) {
            Ok(stepped) => stepped,
            Err(stop) => match stop.reason() {
                Reason::Refused(refusal, position) => Decision::now(Outcome::Refused(refusal), position).into(),
                Reason::Needs(needs) => Stepped::Needs(needs),
            },
        }
    }

    #[inline(always)]
    fn decide(&mut self, request: &Request<'_>) -> Decided<Stepped> {
        let mode = self.shard.clock.mode();
        check::request(request, mode).or_else(refuse)?;
        let time_us = match (mode, request.at_us) {
            (ClockMode::Replay, Some(at_us)) => at_us.max(self.shard.last_us),
            _ => self.shard.clock.time_us(self.now, self.shard.last_us),
        };
        self.authorise(request)?;
        self.at_least(request.at_least)?;
        if request.operation.is_mutation() {
            self.know_user(request, time_us);
        }
        let decision = match request.operation {
            Operation::Claim { corpus, items, unless_within_us } => {
                self.claim(request, corpus, items, unless_within_us, time_us)?
            }
            Operation::Reference { corpus, items } => self.reference(request, corpus, items, time_us)?,
            Operation::Retract { corpus, event_id, reason_code } => {
                self.retract(request, corpus, event_id, reason_code, time_us)?
            }
            Operation::Reactivate { event_id } => self.reactivate(request, event_id, time_us)?,
            operation if operation.is_global() => return self.decide_global(request, time_us),
            _ => self.read(request, time_us)?,
        };
        Ok(decision.into())
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

    pub(super) fn corpus(&self, name: &str) -> Decided<Prefix> {
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

    pub(super) fn row(&self, event_id: EventId) -> Decided<Found> {
        self.row_with_claim(event_id).map(|(found, _)| found)
    }

    /// A row, with its claim's record if that was read for it.
    pub(super) fn row_with_claim(&self, event_id: EventId) -> Decided<(Found, Option<sealed::Record>)> {
        match self.shard.rows.get_with_claim(event_id)? {
            Some(found) => Ok(found),
            None if self.shard.quarter_of_gone(event_id).is_some() => refuse(self.gone(event_id)),
            None => refuse(Refusal::retry_after(
                Code::NotVisible,
                NOT_VISIBLE_RETRY_MS,
                format!("there is no row {event_id} here yet"),
            )),
        }
    }

    /// What is said of a row that was dropped with its quarter.
    pub(super) fn gone(&self, event_id: EventId) -> Refusal {
        let quarter = self.shard.quarter_of_gone(event_id).unwrap_or(Quarter::MIN);
        let years = self.shard.policy.retention_years();
        let message =
            format!("{event_id} is of {quarter}, whose retention of {years} years is over: its rows were dropped");
        Refusal::new(Code::Expired, message)
    }

    pub(super) fn believe_clock(&self) -> Decided<()> {
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
    pub(super) fn key(
        &self,
        request: &Request<'_>,
        scope: Option<Prefix>,
        item: u16,
        fingerprint: u64,
        time_us: i64,
    ) -> Decided<KeyState> {
        let id = KeyId::new(scope.map_or(0, Prefix::get), request.idempotency_key, item);
        let state = match self.has_new_key {
            true => self.shard.key_in_window(id, time_us).map(|()| KeyState::New),
            false => self.shard.key_state(id, fingerprint, time_us),
        };
        match state {
            Ok(KeyState::Done(known)) => Ok(KeyState::Done(known)),
            Err(KeyStop::Unread(unread)) => Err(unread.into()),
            Err(KeyStop::Refused(refusal, position)) if refusal.code == Code::KeyReused => {
                Err(Stop::refused(refusal, position))
            }
            Ok(KeyState::New) => {
                self.believe_clock()?;
                Ok(KeyState::New)
            }
            Err(KeyStop::Refused(refusal, position)) => {
                self.believe_clock()?;
                Err(Stop::refused(refusal, position))
            }
        }
    }

    /// Looks whether a request's key is new. If it may not be, what it takes to know its items has to be at hand: everything that is
    /// missing is named at once.
    fn look_for_key(&mut self, request: &Request<'_>, scope: Prefix, items: impl Iterator<Item = u16>) -> Decided<()> {
        let key = |item| KeyId::new(scope.get(), request.idempotency_key, item);
        if !self.shard.rows.catalog().may_have_key_of(key(0).ms()) {
            self.has_new_key = !self.shard.rows.has_key(key(0));
            return Ok(());
        }
        Ok(sealed::all(items.map(|item| self.shard.kept(key(item)))).map(|_| ())?)
    }

    /// The effect that a key's operation had.
    pub(super) fn effect(&self, known: Known) -> Effect {
        known.effect
    }

    pub(super) fn append(
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

    /// Refuses what an audited stop stops, or what a closed corpus no longer does.
    pub(super) fn not_stopped(&self, prefix: Prefix) -> Decided<()> {
        let Some(stop) = self.shard.registry.stop_of(prefix) else { return Ok(()) };
        let what = match (self.shard.registry.frozen(), self.shard.registry.of_prefix(prefix)) {
            (None, Some(corpus)) => format!("corpus '{}'", corpus.name),
            _ => "the ledger".to_owned(),
        };
        refuse(Refusal::retry_after(
            Code::Frozen,
            FROZEN_RETRY_MS,
            format!("{what} is frozen: {}; reads go on, and `claimctl unfreeze` ends it", stop.reason),
        ))
    }

    pub(super) fn not_closed(&self, prefix: Prefix) -> Decided<()> {
        match self.shard.registry.of_prefix(prefix) {
            Some(corpus) if corpus.decommissioned_at_us.is_some() => {
                let message = format!(
                    "corpus '{}' is decommissioned: it claims and refers no more, and has no budget",
                    corpus.name
                );
                Err(Stop::refused(Refusal::new(Code::Decommissioned, message), self.shard.last_position))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn not_expired(&self, found: &Found, time_us: i64) -> Decided<()> {
        if !self.shard.is_expired(found, time_us) {
            return Ok(());
        }
        let message = format!(
            "the row {} of {} is past its retention of {} years",
            found.event_id,
            found.effective_quarter(),
            self.shard.policy.retention_years()
        );
        Err(Stop::refused(Refusal::new(Code::Expired, message), found.position))
    }

    #[inline(always)]
    fn claim(
        &mut self,
        request: &Request<'_>,
        corpus: &str,
        items: &[Claim<'_>],
        unless_within_us: Option<i64>,
        time_us: i64,
    ) -> Decided<Decision> {
        let prefix = self.own_corpus(corpus)?;
        if let [item] = items {
            let fingerprint = self.fingerprint(request, Keyed::Claim, |out| {
                claim_fields(out, item);
                if let Some(within_us) = unless_within_us {
                    number(out, within_us as u64);
                }
            });
            let (claimed, position) =
                self.claim_item(request, prefix, (0, fingerprint), item, unless_within_us, time_us)?;
            return Ok(Decision::now(Outcome::Claimed(claimed), position));
        }
        self.look_for_key(request, prefix, 0..items.len() as u16)?;
        let mut depends_on = 0;
        let mut results = Vec::with_capacity(items.len());
        let mut index = 0;
        for some in items.chunks(HASHED_AHEAD) {
            let fingerprints = self.claim_fingerprints(request, some);
            for (item, fingerprint) in some.iter().zip(fingerprints) {
                let decided = self.claim_item(request, prefix, (index, fingerprint), item, None, time_us);
                let (result, position) = of_item(decided)?;
                depends_on = depends_on.max(position);
                results.push(result);
                index += 1;
            }
        }
        Ok(Decision::now(Outcome::ClaimedItems(results), depends_on))
    }

    /// One item, with its number in the request and its fingerprint.
    #[inline(always)]
    fn claim_item(
        &mut self,
        request: &Request<'_>,
        prefix: Prefix,
        (item, fingerprint): (u16, u64),
        claim: &Claim<'_>,
        unless_within_us: Option<i64>,
        time_us: i64,
    ) -> Decided<(Claimed, u64)> {
        if let KeyState::Done(known) = self.key(request, Some(prefix), item, fingerprint, time_us)?
            && let Effect::Claimed(claimed) = known.effect
        {
            return Ok((claimed, known.position));
        }
        self.not_closed(prefix)?;
        self.not_stopped(prefix)?;
        check::claim(claim, time_us).or_else(refuse)?;
        if let Some(within_us) = unless_within_us {
            self.not_registered(claim, within_us, time_us)?;
        }
        self.not_throttled(prefix, time_us)?;
        let last = self.shard.rows.last_id(prefix);
        let event_id = EventId::next(last, (time_us / 1_000) as u64, prefix, self.entropy);
        let quarter = if self.shard.quarter.1.contains(&time_us) { self.shard.quarter.0 } else { Quarter::of(time_us) };
        let claim_sequence = self.shard.rows.next_sequence(prefix, quarter);
        let slots = self.shard.slots_at(prefix, time_us);
        let entry = Entry::Claim(ClaimEntry {
            event_id,
            claim_sequence,
            occurred_at_us: claim.occurred_at_us,
            taxonomy_version: claim.taxonomy_version,
            event_key: claim.event_key,
            owning_corpus: claim.owning_corpus,
            hosting_corpus: claim.hosting_corpus,
            category: claim.category,
            over_budget: claim_sequence > slots,
            incident_active: self.shard.registry.incident_active(),
            metadata: claim.metadata,
        });
        let position = self.append(request, Some(prefix), item, fingerprint, time_us, entry);
        self.raise_alarms(prefix, claim_sequence, slots, time_us);
        Ok((Claimed { event_id, claim_timestamp_us: time_us, claim_sequence }, position))
    }

    /// A conditional claim needs to know what every shard has of its event key.
    fn not_registered(&self, claim: &Claim<'_>, within_us: i64, time_us: i64) -> Decided<()> {
        let sought = Sought {
            key_hash: self.shard.key_hash(claim.event_key),
            since_us: time_us - DAY_US,
            occurred_from_us: claim.occurred_at_us - within_us,
            occurred_to_us: claim.occurred_at_us + within_us,
        };
        let Some(facts) = self.facts else { return Err(Stop::needs(Needs::Key(sought))) };
        let own = self.shard.registered(&sought)?;
        let is_same = |fact: &&Fact| {
            fact.row.is_some_and(|row| {
                row.state == RowState::Registered
                    && row.claim_timestamp_us >= sought.since_us
                    && (sought.occurred_from_us..=sought.occurred_to_us).contains(&row.occurred_at_us)
            })
        };
        match own.iter().chain(facts).filter(is_same).min_by_key(|fact| fact.event_id) {
            None => Ok(()),
            Some(Fact { event_id, .. }) => {
                let message = format!("the event is registered as {event_id}: refer to that row instead");
                let refusal = Refusal {
                    registered_id: Some(Box::new(*event_id)),
                    ..Refusal::new(Code::AlreadyRegistered, message)
                };
                Err(Stop::refused(refusal, self.shard.last_position))
            }
        }
    }

    fn not_throttled(&self, prefix: Prefix, time_us: i64) -> Decided<()> {
        let cap = self.shard.registry.of_prefix(prefix).map_or(0, |corpus| corpus.cap_per_minute);
        if cap == 0 || self.shard.budget(prefix).map_or(0, |budget| budget.in_minute(time_us)) < cap {
            return Ok(());
        }
        let left_us = MINUTE_US - time_us % MINUTE_US;
        let message = format!("the corpus is capped at {cap} claims a minute; the next minute begins in {left_us} us");
        let refusal = Refusal::retry_after(Code::Throttled, (left_us / 1_000) as u32 + 1, message);
        Err(Stop::refused(refusal, self.shard.last_position))
    }

    /// Alarms stand behind the claim that raised them, and after a crash between the two behind the next one.
    fn raise_alarms(&mut self, prefix: Prefix, claims: u64, slots: u64, time_us: i64) {
        let quarter = self.shard.quarter.0;
        let quarter_end_us = self.shard.quarter.1.end;
        let Some(budget) = self.shard.budgets.get_mut(usize::from(prefix.get())) else { return };
        if claims.saturating_mul(2) < slots && !budget.is_new_hour(time_us) {
            return;
        }
        let is_early = budget.is_new_hour(time_us) && budget.is_early(time_us, claims, slots, quarter_end_us);
        let due = [
            (AlarmKind::Half, claims.saturating_mul(2) >= slots),
            (AlarmKind::Eighty, claims.saturating_mul(5) >= slots.saturating_mul(4)),
            (AlarmKind::Early, is_early),
        ];
        for (kind, is_due) in due {
            let is_raised =
                self.shard.budgets.get(usize::from(prefix.get())).is_some_and(|b| b.is_raised(kind, quarter));
            if is_due && !is_raised {
                let meta = Meta {
                    timestamp_us: time_us,
                    idempotency_key: 0,
                    correlation_id: 0,
                    fingerprint: 0,
                    principal: Default::default(),
                    item: 0,
                    corpus: Some(prefix),
                    rationale: "",
                };
                self.shard.append(&Record { meta, entry: Entry::Alarm { kind, claims, slots } }, self.log);
            }
        }
    }

    fn reference(
        &mut self,
        request: &Request<'_>,
        corpus: &str,
        items: &[(u16, EventId)],
        time_us: i64,
    ) -> Decided<Decision> {
        let prefix = self.corpus(corpus)?;
        // Before anything is logged.
        self.look_for_key(request, prefix, items.iter().map(|(item, _)| *item))?;
        let followed = sealed::all(items.iter().map(|(_, id)| self.follow_aliases(*id)))?;
        let unknown: Vec<_> = followed.into_iter().filter_map(Result::err).collect();
        if !unknown.is_empty() {
            return Err(Stop::needs(Needs::Rows(unknown)));
        }
        let mut depends_on = 0;
        let mut results = Vec::with_capacity(items.len());
        for (index, event_id) in items {
            let (result, position) = of_item(self.reference_item(request, prefix, *index, *event_id, time_us))?;
            depends_on = depends_on.max(position);
            results.push((*index, result));
        }
        Ok(Decision::now(Outcome::ReferencedItems(results), depends_on))
    }

    /// The end of the aliases that start at a row, with what is known of it; the error is a row that another shard knows.
    /// A row that is nowhere has `None`.
    fn follow_aliases(&self, event_id: EventId) -> Fetch<Result<(EventId, Option<RowFact>), EventId>> {
        let mut at = event_id;
        for _ in 0..ALIASES_FOLLOWED_MAX {
            let lives_here = self.shard.registry.of_prefix(at.prefix()).is_none_or(|c| c.shard == self.shard.number);
            let fact = match lives_here {
                true => Some(self.shard.fact(at)?),
                false => self.facts.unwrap_or_default().iter().find(|fact| fact.event_id == at).copied(),
            };
            let Some(Fact { row, .. }) = fact else { return Ok(Err(at)) };
            match row.and_then(|row| row.canonical_id) {
                Some(canonical_id) if self.shard.mutation.is(Mutant::AliasFollowedOnce) => {
                    return Ok(Ok((canonical_id, row.map(|row| RowFact { state: RowState::Registered, ..row }))));
                }
                Some(canonical_id) => at = canonical_id,
                None => return Ok(Ok((at, row))),
            }
        }
        Ok(Ok((at, None)))
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
        self.not_closed(prefix)?;
        self.not_stopped(prefix)?;
        let found = self.row(event_id)?;
        if event_id.prefix() == prefix {
            return Err(Stop::refused(
                Refusal::new(
                    Code::BadTransition,
                    format!(
                        "{event_id} is the corpus's own row ({}); a reference goes to another corpus's",
                        found.state.name()
                    ),
                ),
                found.position,
            ));
        }
        self.not_expired(&found, time_us)?;
        self.expect_allowed(&found, RowOperation::Reference)?;
        let (canonical_id, row) = self.follow_aliases(event_id)?.map_err(|id| Stop::needs(Needs::Rows(vec![id])))?;
        match row {
            Some(row) if row.expires_at_us <= time_us => {
                let message = format!("{event_id} is an alias of {canonical_id}, which is past its retention");
                return Err(Stop::refused(Refusal::new(Code::Expired, message), found.position));
            }
            Some(row) if transition(row.state, RowOperation::Reference).is_some() => {}
            row => {
                let state = row.map_or("not there, or an alias itself", |row| row.state.name());
                let message = format!("{event_id} is an alias of {canonical_id}, which is {state}");
                return Err(Stop::refused(Refusal::new(Code::BadTransition, message), found.position));
            }
        }
        let entry = Entry::Reference { event_id, canonical_id };
        let position = self.append(request, Some(prefix), item, fingerprint, time_us, entry);
        Ok((canonical_id, position))
    }

    /// Refuses what the row's state does not allow.
    fn expect_allowed(&self, found: &Found, operation: RowOperation) -> Decided<()> {
        if transition(found.state, operation).is_some() {
            return Ok(());
        }
        let message = format!(
            "the row {} is {}; a row in that state can't be {}",
            found.event_id,
            found.state.name(),
            operation.participle(),
        );
        Err(Stop::refused(Refusal::new(Code::BadTransition, message), found.position))
    }

    fn retract(
        &mut self,
        request: &Request<'_>,
        corpus: &str,
        event_id: EventId,
        reason_code: ReasonCode,
        time_us: i64,
    ) -> Decided<Decision> {
        let prefix = match corpus {
            "" => self.row(event_id)?.event_id.prefix(),
            name => self.own_corpus(name)?,
        };
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
        self.not_stopped(prefix)?;
        let found = self.row(event_id)?;
        self.not_expired(&found, time_us)?;
        self.expect_allowed(&found, RowOperation::Retract)?;
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
        self.not_stopped(prefix)?;
        let found = self.row(event_id)?;
        self.not_expired(&found, time_us)?;
        self.expect_allowed(&found, RowOperation::Reactivate)?;
        let entry = Entry::Reactivate { event_id };
        let position = self.append(request, Some(prefix), 0, fingerprint, time_us, entry);
        Ok(Decision::now(Outcome::Reactivated { event_id, reactivated_at_us: time_us }, position))
    }

    /// A number that tells a retry from another request: over everything that the request means. Its low byte is the
    /// operation, so that what is kept for a key is never taken for another operation's; the rest is a hash with the
    /// ledger's secret, so that nobody can make two requests that look alike.
    pub(super) fn fingerprint(
        &mut self,
        request: &Request<'_>,
        operation: Keyed,
        fields: impl FnOnce(&mut Vec<u8>),
    ) -> u64 {
        let out = &mut self.shard.scratch;
        out.clear();
        request_fields(out, request);
        fields(out);
        self.shard.hash.of(out) & !0xff | operation as u64
    }

    /// Those of some items of a batch, at most [`HASHED_AHEAD`].
    fn claim_fingerprints(&mut self, request: &Request<'_>, items: &[Claim<'_>]) -> [u64; HASHED_AHEAD] {
        let out = &mut self.shard.scratch;
        out.clear();
        let mut ends = [0; HASHED_AHEAD];
        for (item, end) in items.iter().zip(&mut ends) {
            request_fields(out, request);
            claim_fields(out, item);
            *end = out.len();
        }
        let mut start = 0;
        ends.map(|end| {
            let bytes = out.get(start..end).unwrap_or_default();
            start = end;
            self.shard.hash.of(bytes) & !0xff | Keyed::Claim as u64
        })
    }
}

/// Items of a batch whose fields are put down before they are hashed: what was just written in small pieces is not read in large ones
/// before the processor has it in its cache.
const HASHED_AHEAD: usize = 10;

/// What every request means.
fn request_fields(out: &mut Vec<u8>, request: &Request<'_>) {
    text(out, request.rationale);
    out.extend_from_slice(&request.correlation_id.to_le_bytes());
    number(out, request.at_us.map_or(u64::MAX, |at| at as u64));
}

#[inline(always)]
fn claim_fields(out: &mut Vec<u8>, claim: &Claim<'_>) {
    text(out, claim.event_key);
    text(out, claim.owning_corpus);
    text(out, claim.hosting_corpus);
    text(out, claim.category);
    number(out, claim.occurred_at_us as u64);
    number(out, claim.taxonomy_version.into());
    number(out, claim.metadata.len() as u64);
    out.extend_from_slice(claim.metadata);
}

/// The operations that a key can stand for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keyed {
    Claim = 1,
    Reference = 2,
    Retract = 3,
    Reactivate = 4,
    Onboard = 16,
    ConfirmClock = 18,
    Decommission = 19,
    Freeze = 20,
    Cap = 21,
    ProposeSlots = 22,
    SignOff = 23,
    Incident = 24,
    Barrier = 25,
    Configure = 26,
    Dispute = 27,
    DisputeStep = 28,
    Reconcile = 29,
    Hold = 30,
}

pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}
