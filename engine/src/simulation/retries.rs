//! Retries: what is sent again with its key is answered as it was, and nothing else is taken for it.

use super::machine::Machine;
use crate::command::{Claim, Claimed, Operation, Outcome, Request};
use crate::entropy::Entropy;
use crate::error::Code;
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::log::layout::Geometry;
use crate::log::superblock::ClockMode;
use crate::policy::Policy;
use crate::row::ReasonCode;

const OWNER: Principal = Principal { uid: 1000, gid: 100, pid: 42 };
const START_US: i64 = 1_577_836_800_000_000;
/// More than are hashed ahead, and no multiple of it.
const ITEMS: usize = 23;

/// What a request means, beside its operation.
#[derive(Clone, Copy)]
struct Meant {
    key: u64,
    rationale: &'static str,
    correlation_id: u128,
}

struct Ledger(Machine);

impl Ledger {
    fn new() -> Ledger {
        let geometry = Geometry { segment_bytes: 1 << 20, batch_bytes_max: 128 << 10, ring_segments: 0 };
        let machine =
            Machine::with_geometry(geometry, ClockMode::Wall, 1, Entropy::from_seed_u64(1), 1, None, START_US);
        let mut ledger = Ledger(machine);
        let toml = Policy::of_owner(OWNER.uid).to_toml();
        ledger.ask(meant(1), &Operation::Configure { toml: &toml });
        for (key, name) in [(2, "alpha"), (3, "beta")] {
            ledger.ask(meant(key), &Operation::Onboard { name, notes: "" });
        }
        ledger
    }

    fn ask(&mut self, meant: Meant, operation: &Operation<'_>) -> Outcome {
        let key = ((START_US / 1_000) as u128) << 80 | 7 << 76 | 0b10 << 62 | u128::from(meant.key);
        let request = Request {
            token: meant.key,
            stream: 0,
            principal: OWNER,
            user: "owner",
            idempotency_key: key,
            correlation_id: meant.correlation_id,
            rationale: meant.rationale,
            at_us: None,
            deadline_boot_us: None,
            at_least: &[],
            operation: *operation,
        };
        self.0.submit(0, &request);
        self.0.settle().expect("it comes to rest");
        self.0.take_replies().pop().expect("an answer").1.outcome
    }

    /// The first is asked twice, then each of the others with its key.
    fn retry(&mut self, key: u64, operation: &Operation<'_>, others: &[Operation<'_>]) -> Outcome {
        let meant = meant(key);
        let first = self.ask(meant, operation);
        assert!(!matches!(first, Outcome::Refused(_)), "{operation:?}: {first:?}");
        assert_eq!(self.ask(meant, operation), first, "{operation:?} again");
        let other_words = Meant { rationale: "becaus", ..meant };
        let other_correlation = Meant { correlation_id: 1 << 100, ..meant };
        let asked =
            others.iter().map(|other| (meant, other)).chain([(other_words, operation), (other_correlation, operation)]);
        for (meant, other) in asked {
            let outcome = self.ask(meant, other);
            assert!(is_reused(&outcome), "{operation:?}, then {other:?}: {outcome:?}");
        }
        first
    }
}

fn meant(key: u64) -> Meant {
    Meant { key, rationale: "because", correlation_id: 0 }
}

fn is_reused(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Refused(refusal) => refusal.code == Code::KeyReused,
        Outcome::ReferencedItems(items) => {
            !items.is_empty()
                && items.iter().all(|(_, result)| result.as_ref().is_err_and(|refusal| refusal.code == Code::KeyReused))
        }
        _ => false,
    }
}

fn claim(metadata: &[u8]) -> Claim<'_> {
    Claim {
        event_key: "event",
        occurred_at_us: START_US,
        owning_corpus: "alpha",
        hosting_corpus: "beta",
        category: "c",
        taxonomy_version: 1,
        metadata,
    }
}

fn with_window(operation: Operation<'_>, unless_within_us: Option<i64>) -> Operation<'_> {
    match operation {
        Operation::Claim { corpus, items, .. } => Operation::Claim { corpus, items, unless_within_us },
        other => other,
    }
}

fn claims<'a>(items: &'a [Claim<'a>]) -> Operation<'a> {
    Operation::Claim { corpus: "alpha", items, unless_within_us: None }
}

/// Each differs from the claim in one field, or in where one ends and the next begins.
fn others_of<'a>(claim: Claim<'a>, metadata: &'a [u8]) -> [Claim<'a>; 8] {
    [
        Claim { event_key: "evenu", ..claim },
        Claim { event_key: "even", owning_corpus: "talpha", ..claim },
        Claim { occurred_at_us: claim.occurred_at_us + 1, ..claim },
        Claim { owning_corpus: "", ..claim },
        Claim { hosting_corpus: "alpha", ..claim },
        Claim { category: "d", ..claim },
        Claim { taxonomy_version: 2, ..claim },
        Claim { metadata, ..claim },
    ]
}

/// With little metadata and with as much as has another way of hashing.
#[test]
fn a_claim_that_means_something_else_is_not_answered_as_the_first() {
    for bytes in [1, 100, 300, 2_000] {
        let (mut ledger, metadata) = (Ledger::new(), vec![7; bytes]);
        let mut other = metadata.clone();
        other[bytes / 2] ^= 1;
        let first = claim(&metadata);
        let others = others_of(first, &other);
        let first = std::slice::from_ref(&first);
        let mut asked: Vec<_> = others.iter().map(|other| claims(std::slice::from_ref(other))).collect();
        let unless = |within_us| Operation::Claim { corpus: "alpha", items: first, unless_within_us: Some(within_us) };
        asked.push(unless(60_000_000));
        ledger.retry(10, &claims(first), &asked);
        let later = Claim { event_key: "later", ..first[0] };
        let later = Operation::Claim { corpus: "alpha", items: &[later], unless_within_us: Some(60_000_000) };
        ledger.retry(11, &later, &[unless(60_000_000), with_window(later, Some(60_000_001)), with_window(later, None)]);
    }
}

#[test]
fn an_item_that_means_something_else_is_refused_and_the_others_are_answered_as_they_were() {
    for bytes in [1, 300] {
        let (mut ledger, metadata) = (Ledger::new(), vec![7; bytes]);
        let other = vec![8; bytes];
        let keys: Vec<_> = (0..ITEMS).map(|n| format!("event-{n}")).collect();
        let items: Vec<_> = keys.iter().map(|event_key| Claim { event_key, ..claim(&metadata) }).collect();
        let Outcome::ClaimedItems(first) = ledger.ask(meant(10), &claims(&items)) else {
            panic!("a batch is answered")
        };
        // The first alone is the same request, as far as it goes.
        assert_eq!(ledger.ask(meant(10), &claims(&items[..1])), Outcome::Claimed(*first[0].as_ref().unwrap()));
        for other in [Meant { rationale: "becaus", ..meant(10) }, Meant { correlation_id: 1 << 100, ..meant(10) }] {
            let Outcome::ClaimedItems(again) = ledger.ask(other, &claims(&items)) else { panic!("so is this") };
            assert!(again.iter().all(|item| item.as_ref().is_err_and(|refusal| refusal.code == Code::KeyReused)));
        }
        for changed in 0..ITEMS {
            for other in others_of(items[changed], &other) {
                let mut items = items.clone();
                items[changed] = other;
                let Outcome::ClaimedItems(again) = ledger.ask(meant(10), &claims(&items)) else { panic!("so is this") };
                assert_eq!(again.len(), ITEMS);
                for (n, (first, again)) in first.iter().zip(&again).enumerate() {
                    let is_as_it_was = again == first && first.is_ok();
                    let is_reused = again.as_ref().is_err_and(|refusal| refusal.code == Code::KeyReused);
                    assert!(if n == changed { is_reused } else { is_as_it_was }, "item {n} of {other:?}: {again:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_done_to_a_row_is_told_from_what_is_done_to_another() {
    let mut ledger = Ledger::new();
    let items = [claim(b"{}")];
    let mut claimed = |key| match ledger.ask(meant(key), &claims(&items)) {
        Outcome::Claimed(Claimed { event_id, .. }) => event_id,
        other => panic!("a claim is answered {other:?}"),
    };
    let (a, b): (EventId, EventId) = (claimed(10), claimed(11));
    let (to_a, to_b) = ([(1, a)], [(1, b)]);
    let refer = |items| Operation::Reference { corpus: "beta", items };
    ledger.retry(12, &refer(&to_a), &[refer(&to_b)]);
    let retract = |event_id, reason_code| Operation::Retract { corpus: "alpha", event_id, reason_code };
    let first = retract(a, ReasonCode::FalseAlarm);
    ledger.retry(
        13,
        &first,
        &[retract(b, ReasonCode::FalseAlarm), retract(a, ReasonCode::Other), Operation::Reactivate { event_id: a }],
    );
    let reactivate = |event_id| Operation::Reactivate { event_id };
    ledger.retry(14, &reactivate(a), &[reactivate(b), first]);
}
