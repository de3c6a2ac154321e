//! A ledger of one to three shards, driven as the daemon drives it, with everything else the fuzzer's choice: requests,
//! keys used again, clocks, the order of completions and messages, writes that fail, deadlines, crashes.

use crate::disk::{Disk, run as now_or_never};
use crate::{Input, START_US, WHO, pick};
use claim_engine::command::{Claim, Claimed, Corpus, Operation, Outcome, Reply, Request, Token};
use claim_engine::engine::{Engine, OpenOptions, Output};
use claim_engine::entropy::Entropy;
use claim_engine::error::Certainty;
use claim_engine::id::EventId;
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::io::{Io, IoDone, perform};
use claim_engine::log::layout::{BLOCK_BYTES, Geometry, RECORD_BYTES_MAX};
use claim_engine::log::record;
use claim_engine::log::superblock::{ClockMode, Superblock};
use claim_engine::log::writer;
use claim_engine::peer::PeerMessage;
use claim_engine::policy::Policy;
use claim_engine::row::{ReasonCode, RowView};
use claim_engine::sealed::{Fetch, ask_until_read};
use claim_engine::shard::rows::{Found, Scan, all_pages};
use claim_engine::time::{DAY_US, HOUR_US, Now, SECOND_US};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use uuid::Uuid;

/// The smallest batches that a ledger is formatted with, and segments of two of them, which fill soon.
const GEOMETRY: Geometry = Geometry { segment_bytes: 320 << 10, batch_bytes_max: 128 << 10, ring_segments: 0 };
const ACTIONS_MAX: usize = 400;
const CRASHES_MAX: usize = 8;
/// Rounds of I/O and messages after which a ledger is at rest.
const ROUNDS_MAX: usize = 10_000;
/// The last moment that a Linux clock can show, in 2262, and a day to spare.
const WALL_US_MAX: i64 = i64::MAX / 1_000 - DAY_US;
const SHARDS_MAX: usize = 3;
/// Rows of a page of a scan.
const SCAN_ROWS: usize = 20;
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "Not A Name"];
static METADATA: [u8; 70_000] = [7; 70_000];

/// See the module.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut cluster = Cluster::new(&mut input);
    for _ in 0..ACTIONS_MAX {
        if input.is_empty() {
            break;
        }
        cluster.act(&mut input);
        cluster.pump();
    }
    cluster.settle();
    cluster.check_answers();
    cluster.check_recovered();
}

struct Node {
    disk: Disk,
    superblock: Superblock,
    engine: Engine,
    ios: Vec<Io>,
}

impl Node {
    fn fetch<T>(&self, ask: impl Fn(&Engine) -> Fetch<T>) -> T {
        fetch(&self.engine, &self.disk, ask)
    }
}

/// A request as it can be sent again.
#[derive(Debug, Clone)]
struct Sent {
    shard: usize,
    key: u128,
    rationale: &'static str,
    at_us: Option<i64>,
    deadline_boot_us: Option<i64>,
    at_least: Vec<(u16, u64)>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Onboard(&'static str),
    Claims { corpus: &'static str, items: Vec<(i64, usize)> },
    References { corpus: &'static str, ids: Vec<EventId> },
    Retract { corpus: &'static str, id: EventId },
    Reactivate(EventId),
    ConfirmClock,
    Corpora,
    Lookup(EventId),
    History { id: EventId, skip: usize },
    Scan { corpus: &'static str, since_us: Option<i64>, until_us: Option<i64>, after: Option<EventId>, limit: usize },
}

/// What an answered operation left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Reference,
    Tombstone,
    Reactivate,
}

struct Cluster {
    nodes: Vec<Node>,
    mesh: BTreeMap<(usize, usize), VecDeque<PeerMessage>>,
    now: Now,
    clock: ClockMode,
    entropy: Entropy,
    fill_bytes: Option<u64>,
    crashes: usize,
    next_key: u64,
    sent: Vec<Sent>,
    /// Tokens without an answer: the index of the request, and whether the daemon that has it lives.
    open: HashMap<Token, usize>,
    next_token: Token,
    /// Messages were delivered out of order, so that some wait for ever.
    is_disordered: bool,
    /// What was acknowledged, by shard and id.
    claimed: BTreeMap<(usize, EventId), (Claimed, u128)>,
    /// By request and item: what a retry must say.
    answers: HashMap<(usize, usize), Claimed>,
    entries: Vec<(usize, EventId, Kind, u128)>,
    onboarded: BTreeMap<String, u16>,
    ids: Vec<EventId>,
}

impl Cluster {
    fn new(input: &mut Input<'_>) -> Cluster {
        let choices = input.byte();
        let shard_count = 1 + usize::from(choices & 0xf) % SHARDS_MAX;
        let clock = if choices & 0x10 == 0 { ClockMode::Wall } else { ClockMode::Replay };
        let fill_bytes = (choices & 0x20 != 0).then_some(BLOCK_BYTES);
        let nodes = (0..shard_count)
            .map(|shard| {
                let superblock = Superblock {
                    shard: shard as u16,
                    shard_count: shard_count as u16,
                    clock,
                    formatted_at_us: START_US,
                    ..Superblock::of_new_ledger(Uuid::from_u128(9), [choices; 32], GEOMETRY)
                };
                let disk = Disk::default();
                now_or_never(writer::format(&disk, &superblock)).expect("the disk takes everything");
                let engine = open(&disk, &superblock, fill_bytes);
                Node { disk, superblock, engine, ios: Vec::new() }
            })
            .collect();
        let mut cluster = Cluster {
            nodes,
            mesh: BTreeMap::new(),
            now: Now { wall_us: START_US, boot_us: 0 },
            clock,
            entropy: Entropy::from_seed_u64(choices.into()),
            fill_bytes,
            crashes: 0,
            next_key: 0,
            sent: Vec::new(),
            open: HashMap::new(),
            next_token: 0,
            is_disordered: false,
            claimed: BTreeMap::new(),
            answers: HashMap::new(),
            entries: Vec::new(),
            onboarded: BTreeMap::new(),
            ids: Vec::new(),
        };
        cluster.start();
        // The log has prepared its segments before it takes anything.
        cluster.settle();
        cluster.configure();
        // Most inputs want corpora; those that don't can have a clock that is not believed first.
        if choices & 0x40 == 0 {
            for name in &NAMES[..shard_count + 1] {
                cluster.send_new(What::Onboard(name), 0, None);
            }
            cluster.settle();
        }
        cluster
    }

    /// Gives whoever asks here every role.
    fn configure(&mut self) {
        let toml = Policy::of_owner(WHO.uid).to_toml();
        let request = Request {
            token: 0,
            stream: 0,
            principal: WHO,
            user: "fuzz",
            idempotency_key: self.key(START_US),
            correlation_id: 0,
            rationale: "",
            at_us: (self.clock == ClockMode::Replay).then_some(START_US),
            deadline_boot_us: None,
            at_least: &[],
            operation: Operation::Configure { toml: &toml },
        };
        self.nodes[0].engine.submit(self.now, &mut self.entropy, &request);
        self.settle();
    }

    fn start(&mut self) {
        let last_us = self.nodes.iter().map(|node| node.engine.shard().last_us()).max().unwrap_or(0);
        for node in &mut self.nodes {
            node.engine.start(self.now, last_us);
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            0..100 => self.send(input),
            100..120 => self.send_again(input),
            120..180 => self.complete(input),
            180..205 => self.deliver(input),
            205..240 => self.pass_time(input),
            240..244 => self.nodes.iter_mut().for_each(|node| node.engine.mark()),
            244..248 => self.settle(),
            248..252 => {
                self.settle();
                self.check_recovered();
            }
            _ => self.crash(input),
        }
    }

    // ---- requests ----

    fn send(&mut self, input: &mut Input<'_>) {
        let corpus = NAMES[input.below(NAMES.len())];
        let what = match input.below(32) {
            0 | 1 => What::Onboard(corpus),
            2..14 => {
                let count = if input.one_in(4) { input.below(6) } else { 1 };
                What::Claims { corpus, items: (0..count).map(|_| self.item(input)).collect() }
            }
            14..18 => {
                let count = if input.one_in(4) { input.below(4) } else { 1 };
                What::References { corpus, ids: (0..count).map(|_| self.id(input)).collect() }
            }
            18..21 => What::Retract { corpus, id: self.id(input) },
            21..24 => What::Reactivate(self.id(input)),
            24 => What::ConfirmClock,
            25 => What::Corpora,
            26..28 => What::Lookup(self.id(input)),
            28..30 => What::History { id: self.id(input), skip: input.below(4) },
            _ => {
                let mut time = || input.one_in(2).then(|| time_of(input.number()));
                let (since_us, until_us) = (time(), time());
                let after = input.one_in(2).then(|| self.id(input));
                What::Scan { corpus, since_us, until_us, after, limit: input.below(5) }
            }
        };
        let shard = self.home(&what, input);
        self.send_new(what, shard, Some(input));
    }

    fn item(&self, input: &mut Input<'_>) -> (i64, usize) {
        let occurred_at_us = if input.one_in(8) { input.number() as i64 } else { 1 };
        let bytes = match input.below(8) {
            0..6 => input.below(100),
            6 => 65_536,
            _ => input.below(METADATA.len()),
        };
        (occurred_at_us, bytes)
    }

    /// An id that was handed out, or one that was not.
    fn id(&self, input: &mut Input<'_>) -> EventId {
        let known = pick(input, &self.ids).copied();
        let Some(known) = known.filter(|_| !input.one_in(8)) else {
            let prefix = claim_engine::corpus::Prefix::new(1 + u16::from(input.byte() % 4)).expect("not 0");
            return EventId::pack(input.number(), prefix, input.number());
        };
        known
    }

    /// The shard that the daemon sends it to; what concerns a corpus may also come to a wrong one.
    fn home(&self, what: &What, input: &mut Input<'_>) -> usize {
        let registry = self.nodes[0].engine.shard().registry();
        let of_id = |id: &EventId| registry.of_prefix(id.prefix()).map(|corpus| corpus.shard);
        let shard = match what {
            What::Onboard(_) | What::ConfirmClock => return 0,
            What::Claims { corpus, .. } | What::Retract { corpus, .. } | What::Scan { corpus, .. } => {
                registry.of_name(corpus).map(|corpus| corpus.shard)
            }
            What::References { ids, .. } => ids.first().and_then(of_id),
            What::Reactivate(id) | What::Lookup(id) | What::History { id, .. } => of_id(id),
            What::Corpora => None,
        };
        match shard {
            Some(shard) if !input.one_in(16) => usize::from(shard),
            _ => input.below(self.nodes.len()),
        }
    }

    /// A key of the present, from the clock that the shard goes by.
    fn key(&mut self, at_us: i64) -> u128 {
        self.next_key += 1;
        u128::from(at_us as u64 / 1_000) << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.next_key)
    }

    fn send_new(&mut self, what: What, shard: usize, input: Option<&mut Input<'_>>) {
        let at_us = self.now.wall_us.max(self.nodes[shard].engine.shard().last_us());
        let is_mutation = !matches!(what, What::Corpora | What::Lookup(_) | What::History { .. } | What::Scan { .. });
        let key = self.key(at_us);
        let mut sent = Sent {
            shard,
            key,
            rationale: "because",
            at_us: (self.clock == ClockMode::Replay && is_mutation).then_some(at_us),
            deadline_boot_us: None,
            at_least: Vec::new(),
            what,
        };
        if let Some(input) = input
            && input.one_in(4)
        {
            self.change(input, &mut sent);
        }
        self.sent.push(sent);
        self.submit(self.sent.len() - 1);
    }

    fn change(&mut self, input: &mut Input<'_>, sent: &mut Sent) {
        match input.below(8) {
            0 => sent.key = pick(input, &self.sent).map_or(0, |earlier| earlier.key),
            1 => sent.key = u128::from(input.u64()) << 64 | u128::from(input.u64()),
            2 => sent.key = self.key(time_of(input.number())),
            3 => sent.key = 0,
            4 => sent.rationale = ["", " ", "two\nlines"][input.below(3)],
            5 => sent.at_us = input.one_in(2).then(|| input.number() as i64),
            6 => sent.deadline_boot_us = Some(self.now.boot_us.saturating_add(input.number() as i64)),
            _ => sent.at_least = vec![(input.below(3) as u16, input.number())],
        }
    }

    fn send_again(&mut self, input: &mut Input<'_>) {
        if !self.sent.is_empty() {
            self.submit(input.below(self.sent.len()));
        }
    }

    fn submit(&mut self, index: usize) {
        self.next_token += 1;
        self.open.insert(self.next_token, index);
        let sent = self.sent[index].clone();
        let claims: Vec<_>;
        let references: Vec<_>;
        let operation = match &sent.what {
            What::Onboard(name) => Operation::Onboard { name, notes: "notes" },
            What::Claims { corpus, items } => {
                claims = items.iter().map(|(at_us, bytes)| claim(*at_us, *bytes)).collect();
                Operation::Claim { corpus, items: &claims, unless_within_us: None }
            }
            What::References { corpus, ids } => {
                references = (0..).zip(ids.iter().copied()).collect();
                Operation::Reference { corpus, items: &references }
            }
            What::Retract { corpus, id } => {
                Operation::Retract { corpus, event_id: *id, reason_code: ReasonCode::Duplicate }
            }
            What::Reactivate(id) => Operation::Reactivate { event_id: *id },
            What::ConfirmClock => Operation::ConfirmClock,
            What::Corpora => Operation::Corpora,
            What::Lookup(id) => Operation::Lookup { event_id: *id },
            What::History { id, skip } => Operation::History { event_id: *id, skip: *skip },
            What::Scan { corpus, since_us, until_us, after, limit } => {
                Operation::Scan { corpus, since_us: *since_us, until_us: *until_us, after: *after, limit: *limit }
            }
        };
        let request = Request {
            token: self.next_token,
            stream: 0,
            principal: WHO,
            user: "fuzz",
            idempotency_key: sent.key,
            correlation_id: 0,
            rationale: sent.rationale,
            at_us: sent.at_us,
            deadline_boot_us: sent.deadline_boot_us,
            at_least: &sent.at_least,
            operation,
        };
        self.nodes[sent.shard].engine.submit(self.now, &mut self.entropy, &request);
    }

    // ---- the world ----

    fn pass_time(&mut self, input: &mut Input<'_>) {
        let boot_us = match input.below(8) {
            0..6 => input.below(80_000) as i64,
            6 => input.below(100) as i64 * SECOND_US,
            _ => input.below(48) as i64 * HOUR_US,
        };
        let wall_us = match input.below(16) {
            0 => 0,
            1 => -(input.below(10_000_000) as i64),
            2 => -(input.number() as i64 / 1_000).abs(),
            3 => (input.number() as i64 / 1_000).abs(),
            4 => boot_us + HOUR_US + 1,
            _ => boot_us,
        };
        let wall_us = self.now.wall_us.saturating_add(wall_us).clamp(0, WALL_US_MAX);
        self.now = Now { wall_us, boot_us: self.now.boot_us + boot_us };
        self.nodes.iter_mut().for_each(|node| node.engine.tick(self.now, &mut self.entropy));
    }

    /// One piece of I/O ends, well or not.
    fn complete(&mut self, input: &mut Input<'_>) {
        let busy: Vec<_> = (0..self.nodes.len()).filter(|n| !self.nodes[*n].ios.is_empty()).collect();
        let Some(number) = pick(input, &busy) else { return };
        let node = &mut self.nodes[*number];
        let io = node.ios.swap_remove(input.below(node.ios.len()));
        let fate = input.below(32);
        if fate < 30 {
            let done = now_or_never(perform(&node.disk, io));
            return node.engine.complete(self.now, &mut self.entropy, done);
        }
        // It fails; a write may have landed all the same, or in part.
        let error = if fate == 30 { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
        let result = Err(io::Error::from(error));
        let done = match io {
            Io::Write { number, file_offset, batch, .. } => {
                let landed = input.below(3) * batch.len() / 2 / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
                node.disk.put(file_offset, &batch[..landed]);
                IoDone::Write { number, batch, result }
            }
            Io::Prepare { segment, piece, .. } => IoDone::Prepare { segment, to: piece.end, result },
            Io::Read { id, log_offset, .. } => {
                IoDone::Read { id, log_offset, result: Err(io::Error::from(io::ErrorKind::Other)) }
            }
            Io::Checkpoint(superblock) => IoDone::Checkpoint { superblock, result },
            Io::Free { segments, .. } => IoDone::Freed { segments, result },
            Io::Pause { id } => IoDone::Paused { id },
            job @ (Io::Build(_) | Io::Clear(_)) => now_or_never(perform(&node.disk, job)),
        };
        node.engine.complete(self.now, &mut self.entropy, done);
    }

    fn deliver(&mut self, input: &mut Input<'_>) {
        let queues: Vec<_> = self.mesh.iter().filter(|(_, queue)| !queue.is_empty()).map(|(key, _)| *key).collect();
        let Some((from, to)) = pick(input, &queues).copied() else { return };
        let queue = self.mesh.get_mut(&(from, to)).expect("picked from the mesh");
        let at = if queue.len() > 1 && input.one_in(16) { input.below(queue.len()) } else { 0 };
        self.is_disordered |= at > 0;
        let message = queue.remove(at).expect("the index is below the length");
        self.nodes[to].engine.deliver(self.now, &mut self.entropy, &message);
    }

    /// Takes out what leaves, and what is to be done.
    fn pump(&mut self) {
        for number in 0..self.nodes.len() {
            while let Some(io) = self.nodes[number].engine.next_io() {
                self.nodes[number].ios.push(io);
            }
            let outputs: Vec<_> = self.nodes[number].engine.drain().collect();
            for output in outputs {
                match output {
                    Output::Message { to, message } => {
                        self.mesh.entry((number, usize::from(to))).or_default().push_back(message);
                    }
                    Output::Reply(reply) => self.answered(number, &reply),
                }
            }
        }
    }

    /// Lets everything come to rest.
    fn settle(&mut self) {
        for round in 0..ROUNDS_MAX {
            self.pump();
            let mut is_quiet = true;
            for node in &mut self.nodes {
                for io in std::mem::take(&mut node.ios) {
                    is_quiet = false;
                    let done = now_or_never(perform(&node.disk, io));
                    node.engine.complete(self.now, &mut self.entropy, done);
                }
            }
            for (_, to) in self.mesh.keys().copied().collect::<Vec<_>>() {
                let queues = self.mesh.iter_mut().filter(|((_, at), _)| *at == to);
                let messages: Vec<_> = queues.flat_map(|(_, queue)| queue.drain(..)).collect();
                is_quiet &= messages.is_empty();
                for message in &messages {
                    self.nodes[to].engine.deliver(self.now, &mut self.entropy, message);
                }
            }
            if is_quiet && self.nodes.iter().all(|node| !node.engine.status().no_space) {
                return;
            }
            if is_quiet {
                // What could not grow tries again.
                self.now.boot_us += SECOND_US;
                self.now.wall_us = (self.now.wall_us + SECOND_US).min(WALL_US_MAX);
                self.nodes.iter_mut().for_each(|node| node.engine.tick(self.now, &mut self.entropy));
                if self.nodes.iter().all(|node| node.engine.failed().is_some() || node.engine.is_idle()) && round > 16 {
                    return;
                }
            }
        }
        panic!("the shards don't come to rest");
    }

    /// The process dies; what is in flight lands or does not. Then it starts again.
    fn crash(&mut self, input: &mut Input<'_>) {
        if self.crashes == CRASHES_MAX {
            return;
        }
        self.crashes += 1;
        self.mesh.clear();
        self.open.clear();
        self.is_disordered = false;
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            for io in std::mem::take(&mut node.ios) {
                match (io, input.below(3)) {
                    (_, 0) => {}
                    (Io::Write { file_offset, batch, .. }, 1) => {
                        let landed = batch.len() / 2 / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
                        node.disk.put(file_offset, &batch[..landed]);
                    }
                    (io, _) => drop(now_or_never(perform(&node.disk, io))),
                }
            }
            let before = node.engine.status();
            node.engine = open(&node.disk, &node.superblock, self.fill_bytes);
            let recovered = node.engine.shard().last_position() - 1;
            assert!(
                (before.durable_position..=before.position).contains(&recovered),
                "shard {number} recovers {recovered}, after {before:?}"
            );
        }
        self.now.boot_us += SECOND_US;
        self.start();
        self.check_acknowledged();
    }

    // ---- what must hold ----

    fn answered(&mut self, node: usize, reply: &Reply) {
        // The configuration, which no input asked for.
        if reply.token == 0 {
            return assert!(matches!(reply.outcome, Outcome::Configured { .. }), "{reply:?}");
        }
        let index = self.open.remove(&reply.token).expect("a request is answered once");
        let status = self.nodes[node].engine.status();
        assert!(reply.position <= status.durable_position, "{reply:?} is shown before it is durable: {status:?}");
        let sent = self.sent[index].clone();
        match (&sent.what, &reply.outcome) {
            (_, Outcome::Refused(refusal)) => {
                assert!(!refusal.message.is_empty());
                let is_mutation =
                    !matches!(sent.what, What::Corpora | What::Lookup(_) | What::History { .. } | What::Scan { .. });
                assert!(is_mutation || refusal.certainty == Certainty::Definite, "{sent:?}: {refusal:?}");
            }
            (What::Onboard(name), Outcome::Onboarded(corpus)) => {
                assert_eq!(*name, corpus.name);
                let first = *self.onboarded.entry(corpus.name.clone()).or_insert(corpus.prefix.get());
                assert_eq!(first, corpus.prefix.get(), "{name} was onboarded with another prefix");
                self.check_onboarded(name, first);
            }
            (What::Claims { .. }, Outcome::Claimed(claimed)) => self.claimed(node, index, 0, &sent, claimed),
            (What::Claims { items, .. }, Outcome::ClaimedItems(results)) => {
                assert_eq!(items.len(), results.len());
                for (item, result) in results.iter().enumerate() {
                    if let Ok(claimed) = result {
                        self.claimed(node, index, item, &sent, claimed);
                    }
                }
            }
            (What::References { ids, .. }, Outcome::ReferencedItems(results)) => {
                assert_eq!(ids.len(), results.len());
                for (id, (_, result)) in ids.iter().zip(results) {
                    if let Ok(canonical) = result {
                        // A pass may have made the row an alias of another one of the same event.
                        assert!(canonical == id || self.ids.contains(canonical), "{id} stands for {canonical}");
                        self.entries.push((node, *id, Kind::Reference, sent.key));
                    }
                }
            }
            (What::Retract { id, .. }, Outcome::Retracted { event_id, .. }) => {
                assert_eq!(id, event_id);
                self.entries.push((node, *id, Kind::Tombstone, sent.key));
            }
            (What::Reactivate(id), Outcome::Reactivated { event_id, .. }) => {
                assert_eq!(id, event_id);
                self.entries.push((node, *id, Kind::Reactivate, sent.key));
            }
            (What::Lookup(id), Outcome::Row(row)) => {
                assert_eq!(*id, row.view.event_id);
                self.read(node, row.view.claim_at);
            }
            (What::History { .. }, Outcome::History { entries_at, .. }) => {
                entries_at.iter().for_each(|at| drop(self.read(node, *at)));
            }
            (What::Scan { .. }, Outcome::Rows { rows, .. }) => {
                rows.iter().for_each(|row| drop(self.read(node, row.claim_at)));
            }
            (What::ConfirmClock, Outcome::ClockConfirmed { .. }) | (What::Corpora, Outcome::Corpora(_)) => {}
            (what, outcome) => panic!("{what:?} is answered with {outcome:?}"),
        }
    }

    fn claimed(&mut self, node: usize, index: usize, item: usize, sent: &Sent, claimed: &Claimed) {
        let id = claimed.event_id;
        let first = *self.answers.entry((index, item)).or_insert(*claimed);
        assert_eq!(first, *claimed, "a retry of {sent:?} is answered with another claim");
        let known = self.claimed.insert((node, id), (*claimed, sent.key));
        assert!(known.is_none_or(|known| known == (*claimed, sent.key)), "{id} is handed out twice");
        if known.is_none() {
            self.ids.push(id);
        }
        // Ids of a corpus increase with time and, within a quarter, with the sequence.
        let of_corpus = |(at, (other, _)): (&(usize, EventId), &(Claimed, u128))| {
            (at.0 == node && at.1.prefix() == id.prefix()).then_some(*other)
        };
        let before = self.claimed.range(..(node, id)).next_back().and_then(of_corpus);
        let after = self.claimed.range((node, id)..).nth(1).and_then(of_corpus);
        for (low, high) in [(before, Some(*claimed)), (Some(*claimed), after)] {
            if let (Some(low), Some(high)) = (low, high) {
                assert!(low.claim_timestamp_us <= high.claim_timestamp_us, "{low:?} stands before {high:?}");
                assert!(low.claim_sequence < high.claim_sequence || high.claim_timestamp_us > low.claim_timestamp_us);
            }
        }
    }

    /// An answered onboarding is known to every shard.
    fn check_onboarded(&self, name: &str, prefix: u16) {
        for node in &self.nodes {
            let found = node.engine.shard().registry().of_name(name).map(|corpus| corpus.prefix.get());
            assert_eq!(found, Some(prefix), "{name} is not onboarded at shard {}", node.superblock.shard);
        }
    }

    /// Every request is answered, unless messages were delivered as no mesh does it.
    fn check_answers(&self) {
        if !self.is_disordered {
            let forgotten: Vec<_> = self.open.values().map(|index| &self.sent[*index]).collect();
            assert!(forgotten.is_empty(), "never answered: {forgotten:?}");
        }
    }

    fn read(&self, node: usize, log_offset: u64) -> (u16, Vec<u8>) {
        let at = GEOMETRY.file_offset(log_offset);
        let bytes = self.nodes[node].disk.read(at, RECORD_BYTES_MAX as usize);
        let (raw, _) = record::read(&bytes).expect("what is shown can be read");
        (raw.kind, raw.body.to_vec())
    }

    /// What was acknowledged is there, once.
    fn check_acknowledged(&self) {
        for ((node, id), (claimed, key)) in &self.claimed {
            let row = self.nodes[*node].fetch(|engine| engine.shard().rows().get(*id));
            let row = row.unwrap_or_else(|| panic!("the acknowledged {claimed:?} is lost"));
            let (kind, body) = self.read(*node, row.claim_at);
            let record = Record::decode(kind, &body).expect("a claim");
            let Entry::Claim(claim) = record.entry else { panic!("no claim at {}", row.claim_at) };
            let found = Claimed {
                event_id: claim.event_id,
                claim_timestamp_us: record.meta.timestamp_us,
                claim_sequence: claim.claim_sequence,
            };
            assert_eq!((found, record.meta.idempotency_key), (*claimed, *key));
        }
        for (node, id, kind, key) in &self.entries {
            let row = self.nodes[*node].fetch(|engine| engine.shard().rows().get(*id));
            let row = row.unwrap_or_else(|| panic!("{id} is lost"));
            let (entries_at, _) = self.nodes[*node].fetch(|engine| engine.shard().rows().history(&row, 0, usize::MAX));
            let matches = |at: &&u64| {
                let (number, body) = self.read(*node, **at);
                let record = Record::decode(number, &body).expect("an entry");
                let found = match record.entry {
                    Entry::Reference { .. } => Kind::Reference,
                    Entry::Tombstone { .. } => Kind::Tombstone,
                    Entry::Reactivate { .. } => Kind::Reactivate,
                    _ => return false,
                };
                found == *kind && record.meta.idempotency_key == *key
            };
            assert!(entries_at.iter().any(|at| matches(&at)), "{kind:?} of {id} with key {key:032x} is lost");
        }
        for name in self.onboarded.keys() {
            let known = self.nodes[0].engine.shard().registry().of_name(name);
            assert!(known.is_some(), "{name} is lost");
        }
    }

    /// At rest: a recovery of the files finds what the engines have.
    fn check_recovered(&self) {
        for node in &self.nodes {
            let live = node.engine.status();
            let disk = node.disk.clone();
            let recovered = open(&disk, &node.superblock, self.fill_bytes);
            if live.failed.is_some() {
                let last = recovered.shard().last_position() - 1;
                assert!((live.durable_position..=live.position).contains(&last), "{last} is recovered of {live:?}");
                continue;
            }
            let (expected, found) = (State::of(&node.engine, &node.disk), State::of(&recovered, &node.disk));
            let expected = State { last_position: expected.last_position + 1, ..expected };
            assert_eq!(found, expected, "recovery finds another state");
        }
        self.check_acknowledged();
    }
}

/// What an engine knows, with the blocks that it takes read from its disk.
fn fetch<T>(engine: &Engine, disk: &Disk, ask: impl Fn(&Engine) -> Fetch<T>) -> T {
    let read = |at| Ok(disk.read(GEOMETRY.file_offset(at), BLOCK_BYTES as usize));
    ask_until_read(engine.shard().rows().catalog(), || ask(engine), read).expect("what is sealed is read")
}

/// What recovery must find again.
#[derive(Debug, PartialEq, Eq)]
struct State {
    last_position: u64,
    last_us: i64,
    globals: u64,
    keys: u64,
    count: u64,
    corpora: Vec<Corpus>,
    rows: Vec<RowView>,
}

impl State {
    fn of(engine: &Engine, disk: &Disk) -> State {
        let shard = engine.shard();
        let corpora = shard.registry().corpora().to_vec();
        let scan = |prefix, after| {
            let page = |engine: &Engine| engine.shard().rows().scan(&Scan::of(prefix, after, SCAN_ROWS), Found::clone);
            Ok::<_, Infallible>(fetch(engine, disk, page))
        };
        let rows_of = |corpus: &Corpus| all_pages(|after| scan(corpus.prefix, after)).expect("it cannot fail");
        let rows = corpora.iter().flat_map(rows_of).map(|found| shard.view(&found)).collect();
        State {
            last_position: shard.last_position(),
            last_us: shard.last_us(),
            globals: shard.globals_applied(),
            keys: shard.key_count(),
            count: shard.rows().count(),
            corpora,
            rows,
        }
    }
}

fn open(disk: &Disk, superblock: &Superblock, fill_bytes: Option<u64>) -> Engine {
    let found = now_or_never(Superblock::read(disk)).expect("the superblock is whole");
    let of_old = Superblock { generation: superblock.generation, checkpoint: None, ..found.clone() };
    assert_eq!(of_old, *superblock);
    let options = OpenOptions { fill_bytes, ..OpenOptions::default() };
    now_or_never(Engine::open(disk, &found, options)).expect("what engines wrote opens").0
}

fn claim(occurred_at_us: i64, bytes: usize) -> Claim<'static> {
    Claim {
        event_key: "event",
        occurred_at_us,
        owning_corpus: "",
        hosting_corpus: "",
        category: "fuzzed",
        taxonomy_version: 1,
        metadata: &METADATA[..bytes],
    }
}

/// A moment near the start, or far from it.
fn time_of(number: u64) -> i64 {
    if number < 1 << 40 { START_US + number as i64 - (1 << 39) } else { (number >> 10) as i64 }
}
