//! One engine on a simulated disk whose I/O the test ends as it likes: failures, full disks, deadlines, late completions.

use super::asking::Asking;
use crate::command::{Claim, Operation, Outcome, Reply, Request};
use crate::engine::{Engine, OpenOptions, Output, ROOM_PATIENCE_US, WITHOUT_ROOM_MAX};
use crate::entropy::Entropy;
use crate::error::{Certainty, Code};
use crate::log::entry::Principal;
use crate::log::io::{Io, IoDone, perform};
use crate::log::layout::Geometry;
use crate::log::superblock::Superblock;
use crate::log::writer;
use crate::log::zeroing::GROW_RETRY_US;
use crate::policy::Policy;
use crate::storage::sim::SimDisk;
use crate::time::Now;
use std::io;
use uuid::Uuid;

pub const GEOMETRY: Geometry = Geometry { segment_bytes: 96 << 10, batch_bytes_max: 16 << 10, ring_segments: 0 };

/// A claim of an event, with this metadata.
pub fn claim_of(metadata: &[u8]) -> Claim<'_> {
    Claim {
        event_key: "key",
        occurred_at_us: 0,
        owning_corpus: "",
        hosting_corpus: "",
        category: "c",
        taxonomy_version: 1,
        metadata,
    }
}

pub struct Bench {
    pub disk: SimDisk,
    entropy: Entropy,
    pub engine: Engine,
    pub now: Now,
    keys: u64,
    /// Log offsets that were read from, and how many bytes, since somebody took them.
    pub reads: Vec<(u64, u64)>,
}

impl Bench {
    pub fn new() -> Bench {
        let (disk, mut entropy) = (SimDisk::default(), Entropy::from_seed_u64(1));
        let now = Now { wall_us: 1_767_225_600_000_000, boot_us: 0 };
        let superblock = Superblock {
            formatted_at_us: now.wall_us,
            ..Superblock::of_new_ledger(Uuid::from_u128(5), [3; 32], GEOMETRY)
        };
        disk.run(&mut entropy, u64::MAX, writer::format(&disk, &superblock)).unwrap().unwrap();
        let open = Engine::open(&disk, &superblock, OpenOptions::default());
        let (mut engine, _) = disk.run(&mut entropy, u64::MAX, open).unwrap().unwrap();
        engine.start(now, 0);
        let mut bench = Bench { disk, entropy, engine, now, keys: 0, reads: Vec::new() };
        let toml = Policy::of_owner(Principal::default().uid).to_toml();
        bench.submit(0, Operation::Configure { toml: &toml }, None);
        bench.submit(1, Operation::Onboard { name: "customer", notes: "" }, None);
        bench.settle();
        assert!(matches!(bench.replies()[..], [_, Reply { token: 1, outcome: Outcome::Onboarded(_), .. }]));
        bench
    }

    pub fn submit(&mut self, token: u64, operation: Operation<'_>, deadline_boot_us: Option<i64>) {
        self.keys += 1;
        let ms = (self.now.wall_us / 1_000) as u128;
        let request = Request {
            token,
            stream: 0,
            principal: Principal::default(),
            user: "",
            idempotency_key: ms << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.keys),
            correlation_id: 0,
            rationale: "",
            at_us: None,
            deadline_boot_us,
            at_least: &[],
            operation,
        };
        self.engine.submit(self.now, &mut self.entropy, &request);
    }

    fn claim(&mut self, token: u64, deadline_boot_us: Option<i64>) {
        let items = [claim_of(&[9; 4_000])];
        self.submit(
            token,
            Operation::Claim { corpus: "customer", items: &items, unless_within_us: None },
            deadline_boot_us,
        );
    }

    pub fn replies(&mut self) -> Vec<Reply> {
        let outputs = self.engine.drain();
        outputs.filter_map(|output| if let Output::Reply(reply) = output { Some(reply) } else { None }).collect()
    }

    /// The one refusal that was let out for a token.
    fn refusal(&mut self, token: u64) -> (Code, Certainty) {
        let replies = self.replies();
        match &replies[..] {
            [Reply { token: t, outcome: Outcome::Refused(refusal), .. }] if *t == token => {
                (refusal.code, refusal.certainty)
            }
            other => panic!("expected one refusal of {token}, got {other:?}"),
        }
    }

    /// The write that is due; segments are prepared on the way.
    fn next_write(&mut self) -> (u64, Vec<u8>) {
        loop {
            match self.engine.next_io() {
                Some(Io::Write { number, batch, .. }) => return (number, batch),
                Some(io) => self.perform(io),
                None => panic!("no write is due"),
            }
        }
    }

    fn perform(&mut self, io: Io) {
        if let Io::Read { log_offset, bytes, .. } = io {
            self.reads.push((log_offset, bytes));
        }
        let done = self.disk.run(&mut self.entropy, u64::MAX, perform(&self.disk, io)).unwrap();
        self.complete(done);
    }

    fn complete(&mut self, done: IoDone) {
        self.engine.complete(self.now, &mut self.entropy, done);
    }

    pub fn tick(&mut self) {
        self.engine.tick(self.now, &mut self.entropy);
    }

    pub fn settle(&mut self) {
        while let Some(io) = self.engine.next_io() {
            self.perform(io);
        }
    }
}

#[test]
fn a_failed_write_stops_the_shard_and_nothing_is_acknowledged() {
    let mut bench = Bench::new();
    bench.claim(2, None);
    let (number, batch) = bench.next_write();
    // Gathers behind the write that is out.
    bench.claim(3, None);
    let result = Err(io::Error::from(io::ErrorKind::Other));
    bench.complete(IoDone::Write { number, batch, result });
    let replies = bench.replies();
    assert_eq!(replies.iter().map(|r| r.token).collect::<Vec<_>>(), [2, 3]);
    for reply in replies {
        let Outcome::Refused(refusal) = reply.outcome else { panic!("acknowledged after a failed write") };
        assert_eq!((refusal.code, refusal.certainty), (Code::ShardFailed, Certainty::Unknown));
    }
    assert!(bench.engine.next_io().is_none(), "nothing is written any more");
    bench.claim(4, None);
    assert_eq!(bench.refusal(4), (Code::ShardFailed, Certainty::Unknown), "an earlier try with its key may be applied");
    assert!(bench.engine.is_idle(), "a stopped shard does not hold up a shutdown");
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let mut bench = Bench::new();
    let full = |segment| IoDone::Prepare { segment, to: 0, result: Err(io::Error::from(io::ErrorKind::StorageFull)) };
    let mut accepted = 0;
    loop {
        bench.claim(2, None);
        while let Some(io) = bench.engine.next_io() {
            match io {
                Io::Prepare { segment, .. } => bench.complete(full(segment)),
                io => bench.perform(io),
            }
        }
        let replies = bench.replies();
        let [Reply { outcome, .. }] = &replies[..] else { panic!("{replies:?}") };
        match outcome {
            Outcome::Claimed(_) => accepted += 1,
            Outcome::Refused(refusal) => {
                assert_eq!((refusal.code, refusal.certainty), (Code::NoSpace, Certainty::Definite));
                assert!(refusal.retry_after_ms > 0);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(accepted > 10, "what is prepared is used: {accepted}");
    // Still refused while it is tried again, and after it failed again.
    bench.now.boot_us += GROW_RETRY_US;
    bench.tick();
    let segment = loop {
        match bench.engine.next_io() {
            Some(Io::Prepare { segment, .. }) => break segment,
            // The mark of a log that has been idle.
            Some(io) => bench.perform(io),
            None => panic!("growing is tried again"),
        }
    };
    bench.claim(3, None);
    assert_eq!(bench.refusal(3).0, Code::NoSpace);
    bench.complete(full(segment));
    bench.now.boot_us += GROW_RETRY_US;
    bench.tick();
    bench.settle();
    bench.claim(4, None);
    bench.settle();
    let replies = bench.replies();
    assert!(matches!(replies[..], [Reply { token: 4, outcome: Outcome::Claimed(_), .. }]), "{replies:?}");
}

#[test]
fn a_deadline_is_answered_once_and_says_what_is_known() {
    let mut bench = Bench::new();
    bench.now.boot_us = 1_000;
    bench.claim(2, Some(1_000));
    assert_eq!(bench.refusal(2), (Code::Deadline, Certainty::Definite), "it never reached the log");
    bench.claim(3, Some(2_000));
    let (number, batch) = bench.next_write();
    bench.tick();
    assert!(bench.replies().is_empty());
    bench.now.boot_us = 2_000;
    bench.tick();
    assert_eq!(bench.refusal(3), (Code::Deadline, Certainty::Unknown), "it may be applied");
    bench.complete(IoDone::Write { number, batch, result: Ok(()) });
    assert!(bench.replies().is_empty(), "one answer is enough");
    assert!(bench.engine.is_idle());
}

#[test]
fn acknowledgements_keep_the_order_of_the_log() {
    let mut bench = Bench::new();
    // Four claims of 4 KB fill a batch: several batches, out together.
    (2..22).for_each(|token| bench.claim(token, None));
    let mut writes: Vec<_> = std::iter::from_fn(|| match bench.engine.next_io() {
        Some(Io::Write { number, batch, .. }) => Some((number, batch)),
        _ => None,
    })
    .collect();
    assert_eq!(writes.len(), 4, "as many batches are out as may be");
    let (first, rest) = (writes.remove(0), writes);
    for (number, batch) in rest.into_iter().rev() {
        bench.complete(IoDone::Write { number, batch, result: Ok(()) });
        assert!(bench.replies().is_empty(), "nothing overtakes the first batch");
    }
    bench.complete(IoDone::Write { number: first.0, batch: first.1, result: Ok(()) });
    let tokens: Vec<_> = bench.replies().iter().map(|r| r.token).collect();
    assert!(tokens.len() >= 10, "{tokens:?}");
    assert!(tokens.windows(2).all(|w| w[0] + 1 == w[1]), "{tokens:?}");
}

#[test]
fn a_retry_of_an_onboarding_is_answered_by_an_idle_log() {
    let mut bench = Bench::new();
    bench.engine.mark();
    bench.settle();
    bench.keys = 1;
    bench.submit(2, Operation::Onboard { name: "customer", notes: "" }, None);
    let replies = bench.replies();
    assert!(matches!(replies[..], [Reply { token: 2, outcome: Outcome::Onboarded(_), .. }]), "{replies:?}");
    assert!(bench.engine.is_idle());
}

#[test]
fn a_read_that_a_failed_write_stops_has_had_no_effect_for_certain() {
    let mut bench = Bench::new();
    bench.claim(2, None);
    let (number, batch) = bench.next_write();
    // It waits, because it would show what is not durable.
    bench.submit(3, Operation::Corpora, None);
    assert!(bench.replies().is_empty());
    let result = Err(io::Error::from(io::ErrorKind::Other));
    bench.complete(IoDone::Write { number, batch, result });
    let certainties: Vec<_> = bench
        .replies()
        .into_iter()
        .map(|reply| match reply.outcome {
            Outcome::Refused(refusal) => (reply.token, refusal.certainty),
            other => panic!("acknowledged after a failed write: {other:?}"),
        })
        .collect();
    assert_eq!(certainties, [(2, Certainty::Unknown), (3, Certainty::Definite)]);
}

impl Bench {
    /// Claims, from a token on, until one finds no room, while segments are not prepared any more; gives that one's token and the pieces
    /// of zeroing that were left undone.
    fn claim_until_no_room(&mut self, first_token: u64) -> (u64, Vec<Io>) {
        let mut undone = Vec::new();
        for token in first_token.. {
            self.claim(token, None);
            while let Some(io) = self.engine.next_io() {
                if matches!(io, Io::Prepare { .. }) { undone.push(io) } else { self.perform(io) }
            }
            match &self.replies()[..] {
                [] => return (token, undone),
                [Reply { outcome: Outcome::Claimed(_), .. }] => {}
                other => panic!("{other:?}"),
            }
        }
        unreachable!("the prepared segments are used up before")
    }
}

#[test]
fn what_finds_no_room_waits_for_it_and_takes_effect_in_its_order() {
    let mut bench = Bench::new();
    let (first, undone) = bench.claim_until_no_room(2);
    bench.claim(first + 1, Some(1_000));
    // Nothing small gets by.
    bench.submit(first + 2, Operation::Onboard { name: "billing", notes: "" }, None);
    bench.claim(first + 3, None);
    // Reads find what is there meanwhile.
    bench.submit(first + 4, Operation::Corpora, None);
    let replies = bench.replies();
    assert!(
        matches!(&replies[..], [Reply { outcome: Outcome::Corpora(corpora), .. }] if corpora.len() == 1),
        "{replies:?}"
    );
    assert!(!bench.engine.is_idle(), "somebody waits");
    bench.now.boot_us = 1_000;
    bench.tick();
    assert_eq!(bench.refusal(first + 1), (Code::Deadline, Certainty::Definite), "it never reached the log");

    undone.into_iter().for_each(|io| bench.perform(io));
    bench.settle();
    let mut replies = bench.replies();
    replies.sort_by_key(|reply| reply.position);
    let [a, b, c] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!([a.token, b.token, c.token], [first, first + 2, first + 3], "in the order they came");
    let (Outcome::Claimed(before), Outcome::Onboarded(_), Outcome::Claimed(after)) =
        (&a.outcome, &b.outcome, &c.outcome)
    else {
        panic!("{replies:?}")
    };
    assert_eq!(before.claim_sequence + 1, after.claim_sequence);
    assert!(bench.engine.is_idle());
}

#[test]
fn what_waits_for_room_is_refused_where_there_will_be_none() {
    let mut bench = Bench::new();
    let (first, undone) = bench.claim_until_no_room(2);
    bench.claim(first + 1, None);
    for io in undone {
        let Io::Prepare { segment, .. } = io else { unreachable!("nothing else was left undone") };
        let result = Err(io::Error::from(io::ErrorKind::StorageFull));
        bench.complete(IoDone::Prepare { segment, to: 0, result });
    }
    let replies = bench.replies();
    let codes = replies.iter().map(|reply| match &reply.outcome {
        Outcome::Refused(refusal) => (reply.token, refusal.code, refusal.certainty),
        other => panic!("there is no room: {other:?}"),
    });
    let codes: Vec<_> = codes.collect();
    assert_eq!(codes, [(first, Code::NoSpace, Certainty::Definite), (first + 1, Code::NoSpace, Certainty::Definite)]);
    assert!(bench.engine.is_idle());
}

#[test]
fn no_more_than_a_bound_waits_for_room() {
    let mut bench = Bench::new();
    let (first, _undone) = bench.claim_until_no_room(2);
    let mut waiting = 1;
    let refused = loop {
        bench.claim(first + waiting, None);
        match &bench.replies()[..] {
            [] => waiting += 1,
            [Reply { outcome: Outcome::Refused(refusal), .. }] => break refusal.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((refused.code, refused.certainty), (Code::Overloaded, Certainty::Definite));
    assert!(refused.retry_after_ms > 0);
    assert_eq!(waiting, WITHOUT_ROOM_MAX as u64);
    // There will be none: everybody is told.
    let result = Err(io::Error::from(io::ErrorKind::Other));
    bench.complete(IoDone::Prepare { segment: 1, to: 0, result });
    assert_eq!(bench.replies().len(), waiting as usize);
    assert_eq!(bench.engine.held(), 0);
}

#[test]
fn what_waits_for_room_for_too_long_is_refused_and_what_never_fits_is_at_once() {
    let mut bench = Bench::new();
    let (first, undone) = bench.claim_until_no_room(2);
    bench.claim(first + 1, None);
    bench.now.boot_us = ROOM_PATIENCE_US - 1;
    bench.tick();
    // A log that is idle is marked.
    while let Some(io) = bench.engine.next_io() {
        bench.perform(io);
    }
    assert!(bench.replies().is_empty());
    bench.now.boot_us = ROOM_PATIENCE_US;
    bench.tick();
    let refused: Vec<_> = bench.replies().iter().map(|reply| (reply.token, Asking::code(&reply.outcome))).collect();
    assert_eq!(refused, [(first, Some(Code::Overloaded)), (first + 1, Some(Code::Overloaded))]);
    assert_eq!(bench.engine.status().refused_overload, 2);

    // A request of more than the segments ahead and the buffers take.
    undone.into_iter().for_each(|io| bench.perform(io));
    bench.settle();
    let items = vec![claim_of(&[9; 4_000]); 200];
    bench.submit(first + 3, Operation::Claim { corpus: "customer", items: &items, unless_within_us: None }, None);
    assert_eq!(bench.refusal(first + 3), (Code::Overloaded, Certainty::Definite));
    bench.claim(first + 4, None);
    bench.settle();
    let replies = bench.replies();
    assert!(matches!(replies[..], [Reply { outcome: Outcome::Claimed(_), .. }]), "{replies:?}");
}
