//! A ledger of one to three shards on simulated disks, its load, its crashes, and the check after each.

use super::client::{Clients, SentClaim};
use crate::command::{Claim, Claimed, Operation, Outcome, Reply, Request, Token};
use crate::engine::{Engine, OpenOptions, Output, PeerMessage};
use crate::entropy::Entropy;
use crate::error::{Certainty, Code};
use crate::id::EventId;
use crate::log::entry::{Entry, Principal, Record};
use crate::log::layout::Geometry;
use crate::log::record;
use crate::log::superblock::{ClockMode, Superblock};
use crate::log::writer::{self, IoDone, perform};
use crate::mutant::{Mutant, Mutation};
use crate::row::{Lifecycle, ReasonCode, RowView};
use crate::storage::Storage;
use crate::storage::sim::SimDisk;
use crate::time::{Now, SECOND_US};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use uuid::Uuid;

/// Small, so that runs roll segments often.
const GEOMETRY: Geometry = Geometry { segment_bytes: 96 << 10, batch_bytes_max: 16 << 10 };
const START_US: i64 = 1_767_225_599 * SECOND_US; // A second before 2026-Q1 begins.
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
    }
}

type Io = Pin<Box<dyn Future<Output = IoDone>>>;

struct Node {
    disk: SimDisk,
    superblock: Superblock,
    engine: Option<Engine>,
    ios: Vec<Io>,
}

/// What a token stands for.
enum Sent {
    Claims(Vec<SentClaim>),
    Reference { event_id: EventId, key: u128 },
    Transition { corpus: String, event_id: EventId, to: Lifecycle },
    Onboard(String),
    Lookup { corpus: String, event_id: EventId },
}

/// See the module.
pub struct Cluster {
    entropy: Entropy,
    /// The engine's own stream: a mutant that draws differently must not change the load.
    engine_entropy: Entropy,
    mutant: Option<Mutant>,
    nodes: Vec<Node>,
    mesh: BTreeMap<(usize, u16), VecDeque<PeerMessage>>,
    now: Now,
    clients: Clients,
    sent: BTreeMap<Token, Sent>,
    references: Vec<(EventId, u128)>,
    next_token: Token,
    next_name: u64,
    pub counts: Counts,
}

impl Cluster {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Cluster {
        let mut entropy = Entropy::from_seed_u64(seed);
        let shard_count = 1 + entropy.below(3) as u16;
        let nodes = (0..shard_count)
            .map(|shard| {
                let superblock = Superblock {
                    generation: 1,
                    ledger: Uuid::from_u128(u128::from(seed) << 1 | 1),
                    key: [seed as u8 ^ 0x5a; 32],
                    shard,
                    shard_count,
                    clock: ClockMode::Wall,
                    geometry: GEOMETRY,
                    formatted_at_us: START_US,
                    first_segment: 0,
                };
                let disk = SimDisk::default();
                disk.run(&mut entropy, u64::MAX, writer::format(&disk, &superblock))
                    .expect("unbounded")
                    .expect("no faults");
                Node { disk, superblock, engine: None, ios: Vec::new() }
            })
            .collect();
        let mut cluster = Cluster {
            engine_entropy: Entropy::from_seed_u64(seed ^ 0xfeed),
            entropy,
            mutant,
            nodes,
            mesh: BTreeMap::new(),
            now: Now { wall_us: START_US, boot_us: 0 },
            clients: Clients::default(),
            sent: BTreeMap::new(),
            references: Vec::new(),
            next_token: 0,
            next_name: 0,
            counts: Counts::default(),
        };
        cluster.recover(None).expect("an empty ledger opens");
        cluster
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.entropy.below(bound)
    }

    /// Load for a while, with completions, messages and time passing in random order.
    pub fn live(&mut self) -> Result<(), String> {
        let actions = 100 + self.below(300);
        for _ in 0..actions {
            match self.below(100) {
                0..45 => self.send(),
                45..85 => {
                    let node = self.below(self.nodes.len() as u64) as usize;
                    self.nodes[node].disk.complete_one(&mut self.entropy);
                }
                85..95 => self.deliver_one(),
                _ => self.pass_time(),
            }
            self.pump()?;
        }
        Ok(())
    }

    fn pass_time(&mut self) {
        let boot_us = self.entropy.below(80_000) as i64;
        // The wall clock stalls, steps back, or goes with the steady one.
        let wall_us = match self.entropy.below(10) {
            0 => 0,
            1 => -(self.entropy.below(3_000_000) as i64),
            _ => boot_us,
        };
        self.now = Now { wall_us: self.now.wall_us + wall_us, boot_us: self.now.boot_us + boot_us };
        for node in &mut self.nodes {
            if let Some(engine) = &mut node.engine {
                engine.tick(self.now);
            }
        }
    }

    fn deliver_one(&mut self) {
        let queues: Vec<_> = self.mesh.iter().filter(|(_, q)| !q.is_empty()).map(|(k, _)| *k).collect();
        if queues.is_empty() {
            return;
        }
        let (from, to) = queues[self.below(queues.len() as u64) as usize];
        let message = self.mesh.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        if let (Some(message), Some(engine)) = (message, &mut self.nodes[usize::from(to)].engine) {
            engine.deliver(self.now, &message);
        }
    }

    /// Moves what can move: I/O that completed, outputs, new I/O.
    fn pump(&mut self) -> Result<(), String> {
        let mut context = Context::from_waker(Waker::noop());
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            let Some(engine) = &mut node.engine else { continue };
            let mut i = 0;
            while i < node.ios.len() {
                if let Poll::Ready(done) = node.ios[i].as_mut().poll(&mut context) {
                    drop(node.ios.swap_remove(i));
                    engine.complete(self.now, done);
                } else {
                    i += 1;
                }
            }
            while let Some(io) = engine.next_io() {
                let disk = node.disk.clone();
                let mut future: Io = Box::pin(async move { perform(&disk, io).await });
                // The first poll submits it.
                assert!(future.as_mut().poll(&mut context).is_pending(), "simulated I/O never completes at once");
                node.ios.push(future);
            }
            for output in engine.drain().collect::<Vec<_>>() {
                match output {
                    Output::Message { to, message } => self.mesh.entry((number, to)).or_default().push_back(message),
                    Output::Reply(reply) => self.answered(number, reply)?,
                }
            }
        }
        Ok(())
    }

    fn key(&mut self) -> u128 {
        let ms = (self.now.wall_us / 1_000) as u128;
        ms << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.entropy.next_u64() >> 4 & !0x1f)
    }

    fn submit(&mut self, shard: u16, key: u128, rationale: &str, operation: Operation<'_>, sent: Sent) {
        self.counts.operations += 1;
        self.next_token += 1;
        self.sent.insert(self.next_token, sent);
        let request = Request {
            token: self.next_token,
            principal: WHO,
            idempotency_key: key,
            correlation_id: 0,
            rationale,
            at_us: None,
            deadline_boot_us: None,
            at_least: &[],
            operation,
        };
        if let Some(engine) = &mut self.nodes[usize::from(shard)].engine {
            engine.submit(self.now, &mut self.engine_entropy, &request);
        }
    }

    fn send(&mut self) {
        match self.below(100) {
            0..4 => self.send_onboard(),
            4..55 => self.send_claims(),
            55..65 => self.send_again(),
            65..75 => self.send_reference(),
            75..85 => self.send_transition(),
            _ => self.send_lookup(),
        }
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
        let name = self.clients.corpora[self.entropy.below(count) as usize].clone();
        let shard = self.nodes[0].engine.as_ref()?.shard().registry().of_name(&name)?.shard;
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
                    metadata: vec![self.next_name as u8; self.entropy.below(size) as usize],
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
        let operation = Operation::Claim { corpus: &corpus, items: &items };
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
            let claim = candidates.swap_remove(self.entropy.below(candidates.len() as u64) as usize);
            self.send_claim_request(shard, claim.key, vec![claim]);
        }
    }

    fn pick_row(&mut self) -> Option<(String, EventId, u16)> {
        let (corpus, shard) = self.pick_corpus()?;
        let rows = self.clients.rows.get(&corpus)?;
        let index = self.entropy.below(rows.len().max(1) as u64) as usize;
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
            Lifecycle::Tombstoned => Lifecycle::Registered,
        };
        let key = self.key();
        let sent = Sent::Transition { corpus: corpus.clone(), event_id, to };
        let operation = match to {
            Lifecycle::Tombstoned => {
                Operation::Retract { corpus: &corpus, event_id, reason_code: ReasonCode::FalseAlarm }
            }
            Lifecycle::Registered => Operation::Reactivate { event_id },
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
                    .nodes
                    .iter()
                    .filter_map(|n| n.engine.as_ref())
                    .all(|e| e.shard().registry().of_name(&name).is_some_and(|c| c.prefix == corpus.prefix));
                if everywhere { Ok(()) } else { Err(format!("{name} is acknowledged before every shard has it")) }
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
            (Sent::Lookup { corpus, event_id }, Outcome::Row(view)) => {
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
        let (body, kind) = self.read_record(node, view.claim_at)?;
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

    fn read_record(&self, node: usize, log_offset: u64) -> Result<(Vec<u8>, u16), String> {
        let at = GEOMETRY.file_offset(log_offset);
        let mut context = Context::from_waker(Waker::noop());
        let disk = &self.nodes[node].disk;
        let read = std::pin::pin!(disk.read_at(at, 8 << 10)).poll(&mut context);
        let Poll::Ready(Ok(bytes)) = read else { return Err("a simulated read fails or waits".into()) };
        let (raw, _) = record::read(&bytes).map_err(|e| format!("reading at {at}: {e}"))?;
        Ok((raw.body.to_vec(), raw.kind))
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
        if is_cut && self.nodes.iter().any(|n| n.disk.has_volatile()) {
            self.counts.cuts_with_volatile_writes += 1;
        }
        for node in &mut self.nodes {
            node.engine = None;
            node.ios.clear();
            if is_cut {
                node.disk.cut_power(&mut self.entropy);
            } else {
                node.disk.kill_process(&mut self.entropy);
            }
        }
        self.mesh.clear();
        self.sent.clear();
        self.now.wall_us += self.entropy.below(5_000_000) as i64 - 1_000_000;
        self.now.boot_us += 4_000_000;
    }

    /// Opens every shard; with `ops`, the recovery itself is cut short after so many operations of the disk.
    fn recover(&mut self, ops: Option<u64>) -> Result<(), String> {
        let options = OpenOptions { mutation: Mutation::new(self.mutant), ..OpenOptions::default() };
        for node in &mut self.nodes {
            let superblock = node
                .disk
                .run(&mut self.entropy, u64::MAX, Superblock::read(&node.disk))
                .expect("unbounded")
                .map_err(|e| e.to_string())?;
            if superblock != node.superblock {
                return Err("the superblock changed".into());
            }
            let open = Engine::open(&node.disk, &superblock, options);
            match node.disk.run(&mut self.entropy, ops.unwrap_or(u64::MAX), open) {
                Some(Ok((engine, _))) => node.engine = Some(engine),
                Some(Err(error)) => return Err(format!("recovery refuses: {error}")),
                None => return Ok(()),
            }
        }
        let last_us =
            self.nodes.iter().filter_map(|n| n.engine.as_ref()).map(|e| e.shard().last_us()).max().unwrap_or(0);
        for node in &mut self.nodes {
            if let Some(engine) = &mut node.engine {
                engine.start(self.now, last_us);
            }
        }
        self.settle()
    }

    /// Lets the shards tell each other what they missed, as far as it takes.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..2_000 {
            self.pump()?;
            let is_quiet = self.mesh.values().all(VecDeque::is_empty) && self.nodes.iter().all(|n| n.ios.is_empty());
            if is_quiet {
                return Ok(());
            }
            for node in &self.nodes {
                node.disk.complete_one(&mut self.entropy);
            }
            self.deliver_one();
        }
        Err("the shards don't come to rest after recovery".into())
    }

    /// Everything acknowledged or seen is there; nothing is there that nobody sent; ids and sequences are right.
    fn check(&mut self) -> Result<(), String> {
        let corpora = self.clients.corpora.clone();
        for name in &corpora {
            let registry = |e: &Engine| e.shard().registry().of_name(name).cloned();
            let places: Vec<_> = self.nodes.iter().filter_map(|n| n.engine.as_ref()).map(registry).collect();
            let Some(Some(corpus)) = places.first().cloned() else { return Err(format!("{name} is lost")) };
            if places.iter().any(|place| place.as_ref() != Some(&corpus)) {
                return Err(format!("the shards differ about {name}"));
            }
            self.check_rows(&corpus)?;
        }
        for (event_id, key) in self.references.clone() {
            self.check_reference(event_id, key)?;
        }
        let unanswered = std::mem::take(&mut self.clients.unanswered);
        self.counts.lost_unacknowledged += unanswered.len() as u64;
        self.clients.unanswered = unanswered;
        Ok(())
    }

    fn check_rows(&mut self, corpus: &crate::command::Corpus) -> Result<(), String> {
        let node = usize::from(corpus.shard);
        let Some(engine) = &self.nodes[node].engine else { return Err("a shard is down".into()) };
        let (found, _) = engine.shard().rows().scan(corpus.prefix, None, None, None, usize::MAX);
        let mut known = self.clients.rows.get(&corpus.name).cloned().unwrap_or_default();
        let mut last: Option<Claimed> = None;
        for row in found {
            self.counts.rows_checked += 1;
            let (claim, claimed) = self.read_row(node, &row.view)?;
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
                Some(k) if k.lifecycle != row.view.lifecycle && !k.in_doubt => {
                    return Err(format!(
                        "{} was {} and is {}",
                        claimed.event_id,
                        k.lifecycle.name(),
                        row.view.lifecycle.name()
                    ));
                }
                _ => {}
            }
            self.clients.learn(claim, claimed)?;
            let row_known = self.clients.rows.get_mut(&corpus.name).and_then(|rows| rows.get_mut(&claimed.event_id));
            if let Some(k) = row_known {
                (k.lifecycle, k.in_doubt) = (row.view.lifecycle, false);
            }
        }
        match known.keys().next() {
            None => Ok(()),
            Some(lost) => Err(format!("{} rows of {} are lost, {lost} first", known.len(), corpus.name)),
        }
    }

    fn check_reference(&self, event_id: EventId, key: u128) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let Some(engine) = &self.nodes[node].engine else { continue };
            let Some((entries_at, _)) = engine.shard().rows().history(event_id, 0, usize::MAX) else { continue };
            let mut times = 0;
            for at in entries_at {
                let (body, kind) = self.read_record(node, at)?;
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
