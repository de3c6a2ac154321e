//! A ledger of one to three shards on simulated disks, its load, its crashes, and the check after each.

use super::client::{Clients, SentClaim};
use super::machine::Machine;
use crate::command::{Claim, Claimed, Operation, Outcome, Reply, Request, Token};
use crate::engine::Engine;
use crate::entropy::Entropy;
use crate::error::{Certainty, Code};
use crate::id::EventId;
use crate::log::entry::{Entry, Principal, Record};
use crate::mutant::Mutant;
use crate::policy::Policy;
use crate::row::{Lifecycle, ReasonCode, RowView};
use crate::time::{Now, SECOND_US};
use std::collections::BTreeMap;

const START_US: i64 = 1_767_225_599 * SECOND_US; // A second before 2026-Q1 begins.
/// Connections of the clients.
const STREAMS: u64 = 3;
const WHO: Principal = Principal { uid: 1000, gid: 100, pid: 42 };

/// What happened in a run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub operations: u64,
    pub crashes: u64,
    pub cuts_with_volatile_writes: u64,
    pub crashes_in_recovery: u64,
    pub kills_before_cut: u64,
    pub lost_unacknowledged: u64,
    pub rows_checked: u64,
    /// Segments that were sealed before a crash.
    pub sealed: u64,
    /// Crashes while a segment was full and not sealed.
    pub crashes_amid_sealing: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.operations += other.operations;
        self.crashes += other.crashes;
        self.cuts_with_volatile_writes += other.cuts_with_volatile_writes;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.kills_before_cut += other.kills_before_cut;
        self.lost_unacknowledged += other.lost_unacknowledged;
        self.rows_checked += other.rows_checked;
        self.sealed += other.sealed;
        self.crashes_amid_sealing += other.crashes_amid_sealing;
    }
}

/// What a token stands for.
enum Sent {
    Claims(Vec<SentClaim>),
    Reference {
        event_id: EventId,
        key: u128,
    },
    Transition {
        corpus: String,
        event_id: EventId,
        to: Lifecycle,
    },
    Onboard(String),
    Configure,
    /// What concerns the whole ledger and no row that a client knows.
    Whole,
    Lookup {
        corpus: String,
        event_id: EventId,
    },
}

/// See the module.
pub struct Cluster {
    machine: Machine,
    clients: Clients,
    sent: BTreeMap<Token, Sent>,
    /// Of mutations that are new, the stream and the shard.
    ordered: BTreeMap<Token, (u64, u16)>,
    /// By stream and shard: where mutations that were answered took effect.
    effects: BTreeMap<(u64, u16), BTreeMap<Token, u64>>,
    references: Vec<(EventId, u128)>,
    /// Proposals that were answered.
    proposals: Vec<u64>,
    next_token: Token,
    next_name: u64,
    pub counts: Counts,
}

impl Cluster {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Cluster {
        let mut entropy = Entropy::from_seed_u64(seed);
        let shard_count = 1 + entropy.below(3) as u16;
        let mut cluster = Cluster {
            machine: Machine::new(seed, entropy, shard_count, mutant, START_US),
            clients: Clients::default(),
            sent: BTreeMap::new(),
            ordered: BTreeMap::new(),
            effects: BTreeMap::new(),
            references: Vec::new(),
            proposals: Vec::new(),
            next_token: 0,
            next_name: 0,
            counts: Counts::default(),
        };
        // Before it nobody may do anything.
        let toml = Policy::of_owner(WHO.uid).to_toml();
        let key = cluster.key();
        cluster.submit(0, key, "", Operation::Configure { toml: &toml }, Sent::Configure);
        cluster.machine.settle().and_then(|()| cluster.take_answers()).expect("the first configuration is followed");
        cluster
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.machine.entropy.below(bound)
    }

    /// Load for a while, with completions, messages and time passing in random order.
    pub fn live(&mut self) -> Result<(), String> {
        let actions = 100 + self.below(300);
        for _ in 0..actions {
            match self.below(100) {
                0..45 => self.send(),
                45..85 => self.machine.complete_one(),
                85..95 => self.machine.deliver_one(),
                _ => self.pass_time(),
            }
            self.machine.pump();
            self.take_answers()?;
        }
        Ok(())
    }

    fn pass_time(&mut self) {
        let boot_us = self.machine.entropy.below(80_000) as i64;
        // The wall clock stalls, steps back, or goes with the steady one.
        let wall_us = match self.machine.entropy.below(10) {
            0 => 0,
            1 => -(self.machine.entropy.below(3_000_000) as i64),
            _ => boot_us,
        };
        let now = self.machine.now;
        self.machine.now = Now { wall_us: now.wall_us + wall_us, boot_us: now.boot_us + boot_us };
        self.machine.tick();
    }

    fn take_answers(&mut self) -> Result<(), String> {
        for (shard, reply) in self.machine.take_replies() {
            self.answered(shard, reply)?;
        }
        Ok(())
    }

    fn key(&mut self) -> u128 {
        let ms = (self.machine.now.wall_us / 1_000) as u128;
        ms << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.machine.entropy.next_u64() >> 4 & !0x1f)
    }

    fn submit(&mut self, shard: u16, key: u128, rationale: &str, operation: Operation<'_>, sent: Sent) {
        self.counts.operations += 1;
        self.next_token += 1;
        let stream = 1 + self.below(STREAMS);
        if matches!(sent, Sent::Claims(_) | Sent::Reference { .. } | Sent::Transition { .. }) {
            self.ordered.insert(self.next_token, (stream, shard));
        }
        self.sent.insert(self.next_token, sent);
        let request = Request {
            token: self.next_token,
            stream,
            principal: WHO,
            user: "",
            idempotency_key: key,
            correlation_id: 0,
            rationale,
            at_us: None,
            deadline_boot_us: None,
            at_least: &[],
            operation,
        };
        self.machine.submit(shard, &request);
    }

    fn send(&mut self) {
        match self.below(100) {
            0..4 => self.send_onboard(),
            4..55 => self.send_claims(),
            55..65 => self.send_again(),
            65..75 => self.send_reference(),
            75..85 => self.send_transition(),
            85..88 => self.send_whole(),
            _ => self.send_lookup(),
        }
    }

    fn send_whole(&mut self) {
        let Some((corpus, _)) = self.pick_corpus() else { return };
        self.next_name += 1;
        let slots = 1_000_000 + self.next_name;
        let operation = match self.below(5) {
            0 => Operation::Incident { active: self.below(2) == 0 },
            1 => Operation::Barrier,
            2 => Operation::Reconcile { dry_run: self.below(2) == 0 },
            3 => Operation::Cap { corpus: &corpus, claims_per_minute: 0 },
            _ => Operation::ProposeSlots { corpus: &corpus, slots },
        };
        let key = self.key();
        self.submit(0, key, "simulated", operation, Sent::Whole);
    }

    fn send_onboard(&mut self) {
        if self.clients.corpora.len() >= 6 {
            return;
        }
        self.next_name += 1;
        let name = format!("corpus-{}", self.next_name);
        let key = self.key();
        let operation = Operation::Onboard { name: &name, notes: "simulated" };
        self.submit(0, key, "", operation, Sent::Onboard(name.clone()));
    }

    fn pick_corpus(&mut self) -> Option<(String, u16)> {
        let count = self.clients.corpora.len() as u64;
        if count == 0 {
            return None;
        }
        let name = self.clients.corpora[self.machine.entropy.below(count) as usize].clone();
        let shard = self.machine.engine(0)?.shard().registry().of_name(&name)?.shard;
        Some((name, shard))
    }

    fn send_claims(&mut self) {
        let Some((corpus, shard)) = self.pick_corpus() else { return };
        let count = if self.below(5) == 0 { 2 + self.below(20) } else { 1 };
        let key = self.key();
        let claims: Vec<_> = (0..count)
            .map(|_| {
                self.next_name += 1;
                let size = if self.below(10) == 0 { 3_000 } else { 40 };
                SentClaim {
                    corpus: corpus.clone(),
                    // Items of a batch share the key; here the item is folded in to tell them apart.
                    key,
                    event_key: format!("event-{}", self.next_name),
                    metadata: vec![self.next_name as u8; self.machine.entropy.below(size) as usize],
                    occurred_at_us: START_US - self.next_name as i64,
                }
            })
            .collect();
        self.send_claim_request(shard, key, claims);
    }

    fn send_claim_request(&mut self, shard: u16, key: u128, mut claims: Vec<SentClaim>) {
        let corpus = claims[0].corpus.clone();
        let contents = claims.clone();
        let items: Vec<_> = contents
            .iter()
            .map(|c| Claim {
                event_key: &c.event_key,
                occurred_at_us: c.occurred_at_us,
                owning_corpus: "",
                hosting_corpus: "",
                category: "simulated",
                taxonomy_version: 1,
                metadata: &c.metadata,
            })
            .collect();
        for (i, claim) in claims.iter_mut().enumerate() {
            claim.key = key + i as u128;
            self.clients.sent.insert(claim.event_key.clone(), claim.clone());
            if !self.clients.rows.get(&corpus).is_some_and(|rows| rows.values().any(|r| r.claim.key == claim.key)) {
                self.clients.unanswered.insert(claim.key, claim.clone());
            }
        }
        let operation = Operation::Claim { corpus: &corpus, items: &items, unless_within_us: None };
        self.submit(shard, key, "", operation, Sent::Claims(claims));
    }

    /// Repeats a single claim with its own key, whether it was answered or not.
    fn send_again(&mut self) {
        let mut candidates: Vec<SentClaim> =
            self.clients.unanswered.values().filter(|c| c.key & 0x1f == 0).cloned().collect();
        candidates.sort_by_key(|c| c.key);
        let Some((corpus, shard)) = self.pick_corpus() else { return };
        candidates.retain(|c| c.corpus == corpus);
        if let Some(rows) = self.clients.rows.get(&corpus) {
            candidates.extend(rows.values().map(|r| r.claim.clone()).filter(|c| c.key & 0x1f == 0).take(5));
        }
        if !candidates.is_empty() {
            let claim = candidates.swap_remove(self.machine.entropy.below(candidates.len() as u64) as usize);
            let key = claim.key;
            self.send_claim_request(shard, key, vec![claim]);
            // Whichever of them comes first has the effect.
            let is_same = |token: &Token| matches!(self.sent.get(token), Some(Sent::Claims(c)) if c[0].key == key);
            self.ordered.retain(|token, _| !is_same(token));
        }
    }

    fn pick_row(&mut self) -> Option<(String, EventId, u16)> {
        let (corpus, shard) = self.pick_corpus()?;
        let rows = self.clients.rows.get(&corpus)?;
        let index = self.machine.entropy.below(rows.len().max(1) as u64) as usize;
        rows.keys().nth(index).map(|id| (corpus, *id, shard))
    }

    fn send_reference(&mut self) {
        let (Some((corpus, _)), Some((_, event_id, shard))) = (self.pick_corpus(), self.pick_row()) else { return };
        let key = self.key();
        let items = [(0, event_id)];
        let operation = Operation::Reference { corpus: &corpus, items: &items };
        self.submit(shard, key, "", operation, Sent::Reference { event_id, key });
    }

    fn send_transition(&mut self) {
        let Some((corpus, event_id, shard)) = self.pick_row() else { return };
        let Some(row) = self.clients.rows.get_mut(&corpus).and_then(|rows| rows.get_mut(&event_id)) else { return };
        if row.in_doubt {
            return;
        }
        row.in_doubt = true;
        let to = match row.lifecycle {
            Lifecycle::Registered => Lifecycle::Tombstoned,
            _ => Lifecycle::Registered,
        };
        let key = self.key();
        let sent = Sent::Transition { corpus: corpus.clone(), event_id, to };
        let operation = match to {
            Lifecycle::Tombstoned => {
                Operation::Retract { corpus: &corpus, event_id, reason_code: ReasonCode::FalseAlarm }
            }
            _ => Operation::Reactivate { event_id },
        };
        self.submit(shard, key, "simulated", operation, sent);
    }

    fn send_lookup(&mut self) {
        let Some((corpus, event_id, shard)) = self.pick_row() else { return };
        self.submit(shard, 0, "", Operation::Lookup { event_id }, Sent::Lookup { corpus, event_id });
    }

    fn answered(&mut self, node: usize, reply: Reply) -> Result<(), String> {
        let sent = self.sent.remove(&reply.token).ok_or_else(|| format!("token {} is answered twice", reply.token))?;
        if let Outcome::Refused(refusal) = &reply.outcome
            && refusal.certainty == Certainty::Unknown
        {
            return Err(format!("an unknown outcome without a fault: {}", refusal.message));
        }
        self.check_order(&reply)?;
        match (sent, reply.outcome) {
            (Sent::Claims(claims), Outcome::Claimed(claimed)) => self.learn(claims, vec![Ok(claimed)]),
            (Sent::Claims(claims), Outcome::ClaimedItems(results)) => self.learn(claims, results),
            (Sent::Claims(claims), Outcome::Refused(refusal)) => {
                for claim in claims {
                    self.clients.unanswered.remove(&claim.key);
                }
                expect_code(refusal.code, &[Code::Overloaded])
            }
            (Sent::Onboard(name), Outcome::Onboarded(corpus)) => {
                self.clients.corpora.push(name.clone());
                let everywhere = self
                    .machine
                    .engines()
                    .all(|e| e.shard().registry().of_name(&name).is_some_and(|c| c.prefix == corpus.prefix));
                if everywhere { Ok(()) } else { Err(format!("{name} is acknowledged before every shard has it")) }
            }
            (Sent::Configure, Outcome::Configured { .. }) => Ok(()),
            (Sent::Whole, Outcome::Proposal(proposal)) => {
                self.proposals.push(proposal.number);
                self.check_proposals()
            }
            (
                Sent::Whole,
                Outcome::IncidentSet { .. }
                | Outcome::BarrierRaised { .. }
                | Outcome::Reconciled(_)
                | Outcome::Capped { .. },
            ) => Ok(()),
            // Many proposals of one corpus wait; many passes wait for the one under way.
            (Sent::Whole, Outcome::Refused(refusal)) => {
                expect_code(refusal.code, &[Code::BadTransition, Code::Overloaded])
            }
            (Sent::Reference { event_id, key }, Outcome::ReferencedItems(results)) => match &results[..] {
                [(0, Ok(canonical))] if *canonical == event_id => {
                    self.references.push((event_id, key));
                    Ok(())
                }
                [(0, Err(refusal))] => expect_code(refusal.code, &[Code::BadTransition]),
                other => Err(format!("reference to {event_id} answered {other:?}")),
            },
            (Sent::Transition { corpus, event_id, to }, outcome) => {
                let done = matches!(outcome, Outcome::Retracted { .. } | Outcome::Reactivated { .. });
                if !done {
                    return Err(format!("a transition of {event_id} to {} answered {outcome:?}", to.name()));
                }
                let row = self.clients.rows.get_mut(&corpus).and_then(|rows| rows.get_mut(&event_id));
                let row = row.ok_or("a transition of a row that nobody knows")?;
                (row.lifecycle, row.in_doubt) = (to, false);
                Ok(())
            }
            (Sent::Lookup { corpus, event_id }, Outcome::Row(row)) => {
                let view = row.view;
                let known = &self.clients.rows[&corpus][&event_id];
                if view.lifecycle != known.lifecycle && !known.in_doubt {
                    return Err(format!(
                        "{event_id} reads as {}, was {}",
                        view.lifecycle.name(),
                        known.lifecycle.name()
                    ));
                }
                let (claim, claimed) = self.read_row(node, &view)?;
                self.clients.learn(claim, claimed)
            }
            (_, outcome) => Err(format!("an answer that does not fit: {outcome:?}")),
        }
    }

    /// What a stream sent to a shard took effect in the order of sending.
    fn check_order(&mut self, reply: &Reply) -> Result<(), String> {
        let Some(stream) = self.ordered.remove(&reply.token) else { return Ok(()) };
        match &reply.outcome {
            Outcome::Refused(_) => return Ok(()),
            Outcome::ReferencedItems(items) if items.iter().any(|(_, item)| item.is_err()) => return Ok(()),
            _ => {}
        }
        let effects = self.effects.entry(stream).or_default();
        let before = effects.range(..reply.token).next_back().is_some_and(|(_, position)| *position >= reply.position);
        let after = effects.range(reply.token..).next().is_some_and(|(_, position)| *position <= reply.position);
        if before || after {
            return Err(format!("{reply:?} took effect out of its stream's order: {effects:?}"));
        }
        effects.insert(reply.token, reply.position);
        Ok(())
    }

    fn learn(
        &mut self,
        claims: Vec<SentClaim>,
        results: Vec<Result<Claimed, crate::error::Refusal>>,
    ) -> Result<(), String> {
        for (claim, result) in claims.into_iter().zip(results) {
            match result {
                Ok(claimed) => self.clients.learn(claim, claimed)?,
                Err(refusal) => return Err(format!("an item is refused: {}", refusal.message)),
            }
        }
        Ok(())
    }

    /// Reads a row's claim from the disk, as the daemon does, and finds what was sent.
    fn read_row(&self, node: usize, view: &RowView) -> Result<(SentClaim, Claimed), String> {
        let (_, kind, body) = self.machine.read_record(node, view.claim_at)?;
        let record = Record::decode(kind, &body).map_err(|e| e.to_string())?;
        let Entry::Claim(claim) = record.entry else { return Err(format!("no claim at {}", view.claim_at)) };
        let sent = self.clients.sent.get(claim.event_key);
        let sent = sent.ok_or_else(|| format!("{} holds what nobody sent", claim.event_id))?.clone();
        let item = u128::from(record.meta.item);
        if claim.event_id != view.event_id
            || claim.metadata != sent.metadata
            || claim.occurred_at_us != sent.occurred_at_us
            || record.meta.principal != WHO
            || record.meta.idempotency_key + item != sent.key
        {
            return Err(format!("{} does not hold what was sent", claim.event_id));
        }
        let claimed = Claimed {
            event_id: claim.event_id,
            claim_timestamp_us: record.meta.timestamp_us,
            claim_sequence: claim.claim_sequence,
        };
        Ok((sent, claimed))
    }

    /// The machine or the process dies, perhaps again while it recovers.
    pub fn crash_and_recover(&mut self) -> Result<(), String> {
        if self.below(3) == 0 {
            // A killed process comes back and shows what it finds; then the power goes.
            self.counts.kills_before_cut += 1;
            self.crash(false);
            self.recover(None)?;
            self.check()?;
        }
        let is_cut = self.below(4) != 0;
        self.crash(is_cut);
        while self.below(3) == 0 {
            self.counts.crashes_in_recovery += 1;
            let ops = self.below(12);
            self.recover(Some(ops))?;
            let is_cut = self.below(4) != 0;
            self.crash(is_cut);
        }
        self.recover(None)?;
        self.check()
    }

    fn crash(&mut self, is_cut: bool) {
        self.counts.crashes += 1;
        for engine in self.machine.engines() {
            let status = engine.status();
            self.counts.sealed += u64::from(status.segments_sealed);
            self.counts.crashes_amid_sealing += u64::from(status.segments_full > 0);
        }
        if is_cut && self.machine.has_volatile() {
            self.counts.cuts_with_volatile_writes += 1;
        }
        let wall_us = self.below(5_000_000) as i64 - 1_000_000;
        self.machine.crash(is_cut, wall_us, 4_000_000);
        self.sent.clear();
        self.ordered.clear();
        self.effects.clear();
    }

    fn recover(&mut self, ops: Option<u64>) -> Result<(), String> {
        self.machine.recover(ops)?;
        self.take_answers()
    }

    /// Everything acknowledged or seen is there; nothing is there that nobody sent; ids and sequences are right.
    fn check(&mut self) -> Result<(), String> {
        let corpora = self.clients.corpora.clone();
        for name in &corpora {
            let registry = |e: &Engine| e.shard().registry().of_name(name).cloned();
            let places: Vec<_> = self.machine.engines().map(registry).collect();
            let Some(Some(corpus)) = places.first().cloned() else { return Err(format!("{name} is lost")) };
            if places.iter().any(|place| place.as_ref() != Some(&corpus)) {
                return Err(format!("the shards differ about {name}"));
            }
            self.check_rows(&corpus)?;
        }
        for (event_id, key) in self.references.clone() {
            self.check_reference(event_id, key)?;
        }
        self.check_proposals()?;
        let unanswered = std::mem::take(&mut self.clients.unanswered);
        self.counts.lost_unacknowledged += unanswered.len() as u64;
        self.clients.unanswered = unanswered;
        Ok(())
    }

    /// What was answered about the whole ledger, every shard has.
    fn check_proposals(&self) -> Result<(), String> {
        for engine in self.machine.engines() {
            let registry = engine.shard().registry();
            if let Some(lost) = self.proposals.iter().find(|number| registry.proposal(**number).is_none()) {
                return Err(format!("proposal {lost} is acknowledged, and shard {} lacks it", engine.shard().number()));
            }
        }
        Ok(())
    }

    fn check_rows(&mut self, corpus: &crate::command::Corpus) -> Result<(), String> {
        let node = usize::from(corpus.shard);
        let Some(engine) = self.machine.engine(node) else { return Err("a shard is down".into()) };
        let found = self.machine.rows_of(node, corpus.prefix)?;
        let mut known = self.clients.rows.get(&corpus.name).cloned().unwrap_or_default();
        let mut last: Option<Claimed> = None;
        let views: Vec<_> = found.iter().map(|row| engine.shard().view(row)).collect();
        for view in views {
            self.counts.rows_checked += 1;
            let (claim, claimed) = self.read_row(node, &view)?;
            if let Some(last) = last {
                let quarter = crate::time::Quarter::of;
                let expected = if quarter(last.claim_timestamp_us) == quarter(claimed.claim_timestamp_us) {
                    last.claim_sequence + 1
                } else {
                    1
                };
                if claimed.event_id <= last.event_id
                    || claimed.claim_timestamp_us < last.claim_timestamp_us
                    || claimed.claim_sequence != expected
                {
                    return Err(format!("{claimed:?} follows {last:?}"));
                }
            } else if claimed.claim_sequence != 1 {
                return Err(format!("the first row has sequence {}", claimed.claim_sequence));
            }
            last = Some(claimed);
            match known.remove(&claimed.event_id) {
                Some(k) if k.lifecycle != view.lifecycle && !k.in_doubt => {
                    return Err(format!(
                        "{} was {} and is {}",
                        claimed.event_id,
                        k.lifecycle.name(),
                        view.lifecycle.name()
                    ));
                }
                _ => {}
            }
            self.clients.learn(claim, claimed)?;
            let row_known = self.clients.rows.get_mut(&corpus.name).and_then(|rows| rows.get_mut(&claimed.event_id));
            if let Some(k) = row_known {
                (k.lifecycle, k.in_doubt) = (view.lifecycle, false);
            }
        }
        match known.keys().next() {
            None => Ok(()),
            Some(lost) => Err(format!("{} rows of {} are lost, {lost} first", known.len(), corpus.name)),
        }
    }

    fn check_reference(&self, event_id: EventId, key: u128) -> Result<(), String> {
        for node in 0..self.machine.shard_count() {
            let found = self.machine.fetch(node, |engine| engine.shard().rows().get(event_id))?;
            let Some(found) = found else { continue };
            let history = |engine: &Engine| engine.shard().rows().history(&found, 0, usize::MAX);
            let (entries_at, _) = self.machine.fetch(node, history)?;
            let mut times = 0;
            for at in entries_at {
                let (_, kind, body) = self.machine.read_record(node, at)?;
                let record = Record::decode(kind, &body).map_err(|e| e.to_string())?;
                times += usize::from(record.meta.idempotency_key == key);
            }
            return if times == 1 { Ok(()) } else { Err(format!("a reference to {event_id} is there {times} times")) };
        }
        Err(format!("{event_id} is on no shard"))
    }
}

fn expect_code(code: Code, expected: &[Code]) -> Result<(), String> {
    if expected.contains(&code) { Ok(()) } else { Err(format!("refused with {code:?}, expected {expected:?}")) }
}
