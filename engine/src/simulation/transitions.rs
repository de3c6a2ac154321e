//! Every pair of a state and an operation, of rows and of disputes, on a ledger of two shards: what the tables allow does just
//! what they say; everything else is refused with `BAD_TRANSITION` and changes nothing.

use super::asking::Asking;
use super::machine::Machine;
use crate::command::{Operation, Outcome};
use crate::dispute::{DISPUTE_TRANSITIONS, DisputeId, DisputeState, DisputeStep, Verdict, dispute_transition};
use crate::entropy::Entropy;
use crate::error::Code;
use crate::id::EventId;
use crate::row::{Becomes, ReasonCode, RowOperation, RowState, RowView, transition};
use crate::time::SECOND_US;

const START_US: i64 = 1_767_312_000 * SECOND_US;
const HOUR_US: i64 = 3_600 * SECOND_US;

/// Two corpora on two shards, and a row of each that claims the same event.
struct Ledger {
    asking: Asking,
    key: u32,
}

impl Ledger {
    fn new(seed: u64) -> Ledger {
        let machine = Machine::new(seed, Entropy::from_seed_u64(seed), 2, None, START_US);
        let mut asking = Asking::new(machine);
        asking.onboard("alpha");
        asking.onboard("beta");
        Ledger { asking, key: 0 }
    }

    /// The first is alpha's, on shard 0; the second beta's, on shard 1, and the one that is looked at.
    fn rows(&mut self) -> (EventId, EventId) {
        self.key += 1;
        let key = format!("key-{}", self.key);
        let first = self.asking.claim(0, "alpha", &key, START_US);
        (first, self.asking.claim(1, "beta", &key, START_US))
    }

    fn view(&self, event_id: EventId) -> RowView {
        self.asking.machine.row(event_id).map(|(_, view)| view).expect("the row is somewhere")
    }

    fn retract(&mut self, event_id: EventId) -> Outcome {
        let reason_code = ReasonCode::Duplicate;
        self.asking.ask(1, "because", Operation::Retract { corpus: "beta", event_id, reason_code })
    }

    fn dispute(&mut self, sides: (EventId, EventId)) -> Outcome {
        let event_ids = [sides.0, sides.1];
        self.asking.ask(0, "both are wrong", Operation::Dispute { corpus: "alpha", event_ids: &event_ids })
    }

    fn open(&mut self, sides: (EventId, EventId)) -> DisputeId {
        match self.dispute(sides) {
            Outcome::Dispute(dispute) => dispute.id,
            other => panic!("a dispute is answered {other:?}"),
        }
    }

    fn arbitrate(&mut self, dispute: DisputeId, sides: (EventId, EventId), first: Verdict, second: Verdict) -> Outcome {
        let verdicts = [(sides.0, first), (sides.1, second)];
        self.asking.ask(0, "decided", Operation::Arbitrate { dispute, verdicts: &verdicts })
    }

    fn reconcile(&mut self) -> Outcome {
        self.asking.machine.now.wall_us += HOUR_US;
        self.asking.machine.now.boot_us += HOUR_US / 2;
        self.asking.ask(0, "", Operation::Reconcile { dry_run: false })
    }

    /// Makes a pair whose second row is in a state; and the dispute that has it, if one has.
    fn pair_in(&mut self, state: RowState) -> ((EventId, EventId), Option<DisputeId>) {
        let pair = self.rows();
        let mut dispute = None;
        match state {
            RowState::Registered => {}
            RowState::Retracted => {
                self.retract(pair.1);
            }
            RowState::Referenced => {
                self.reconcile();
            }
            RowState::Disputed => dispute = Some(self.open(pair)),
            RowState::TombstonedByArbitration => {
                let dispute = self.open(pair);
                self.arbitrate(dispute, pair, Verdict::Canonical, Verdict::Tombstone);
            }
        }
        assert_eq!(self.view(pair.1).state, state);
        (pair, dispute)
    }

    /// Does an operation to the second row of a pair; `None` where nobody can ask for it in that state.
    fn operate(
        &mut self,
        operation: RowOperation,
        pair: (EventId, EventId),
        dispute: Option<DisputeId>,
    ) -> Option<Outcome> {
        let verdict = |ledger: &mut Ledger, first, second| Some(ledger.arbitrate(dispute?, pair, first, second));
        match operation {
            RowOperation::Retract => Some(self.retract(pair.1)),
            RowOperation::Reactivate => {
                Some(self.asking.ask(1, "it was real", Operation::Reactivate { event_id: pair.1 }))
            }
            RowOperation::Reference => {
                let items = [(0, pair.1)];
                Some(self.asking.ask(1, "", Operation::Reference { corpus: "alpha", items: &items }))
            }
            RowOperation::Dispute => Some(self.dispute(pair)),
            RowOperation::Merge => Some(self.reconcile()),
            RowOperation::ArbitrateCanonical => verdict(self, Verdict::Tombstone, Verdict::Canonical),
            RowOperation::ArbitrateReferences => verdict(self, Verdict::Canonical, Verdict::References),
            RowOperation::ArbitrateTombstone => verdict(self, Verdict::Canonical, Verdict::Tombstone),
            RowOperation::Dismiss => verdict(self, Verdict::Dismissed, Verdict::Dismissed),
            // The daemon's own: see below.
            RowOperation::Void => None,
        }
    }
}

#[test]
fn every_operation_on_a_row_in_every_state_does_what_the_table_says() {
    let (mut allowed, mut refused) = (0, 0);
    for state in RowState::ALL {
        for operation in RowOperation::ALL {
            let mut ledger = Ledger::new(7);
            let (pair, dispute) = ledger.pair_in(state);
            let before = (ledger.view(pair.0), ledger.view(pair.1));
            let Some(outcome) = ledger.operate(operation, pair, dispute) else { continue };
            let after = ledger.view(pair.1);
            let what = format!("{operation:?} of a row that is {state:?}: {outcome:?}");
            match transition(state, operation) {
                Some(Becomes::State(expected)) => {
                    allowed += 1;
                    assert_eq!(Asking::code(&outcome), None, "{what}");
                    assert_eq!(after.state, expected, "{what}");
                    check_effect(operation, pair, &before.1, &after, &what);
                }
                Some(Becomes::WhatItWas) => unreachable!("nobody can ask for it"),
                None => {
                    refused += 1;
                    // A pass passes over what it can't merge.
                    if operation != RowOperation::Merge {
                        assert_eq!(Asking::code(&outcome), Some(Code::BadTransition), "{what}");
                        assert_eq!(ledger.view(pair.0), before.0, "{what}");
                    }
                    let after = RowView { reconciliation: before.1.reconciliation, ..after };
                    assert_eq!(after, before.1, "{what}");
                }
            }
        }
    }
    println!("{allowed} pairs allowed, {refused} refused");
    assert_eq!((allowed, refused), (11, 18));
}

/// What an operation leaves on a row beside its state.
fn check_effect(operation: RowOperation, pair: (EventId, EventId), before: &RowView, after: &RowView, what: &str) {
    assert_eq!(after.tombstone.is_some(), after.lifecycle == crate::row::Lifecycle::Tombstoned, "{what}");
    assert_eq!(after.canonical_id.is_some(), after.state == RowState::Referenced, "{what}");
    assert_eq!(after.dispute.is_some(), after.state == RowState::Disputed, "{what}");
    match operation {
        RowOperation::Retract => {
            assert_eq!(after.tombstone.and_then(|t| t.reason_code), Some(ReasonCode::Duplicate), "{what}");
        }
        RowOperation::Reactivate => assert!(after.reactivated_at_us > before.reactivated_at_us, "{what}"),
        RowOperation::Reference => assert_eq!(after.references, before.references + 1, "{what}"),
        RowOperation::Merge | RowOperation::ArbitrateReferences => {
            assert_eq!(after.canonical_id, Some(pair.0), "{what}");
        }
        RowOperation::ArbitrateTombstone => {
            assert_eq!(after.tombstone.map(|t| t.reason_code), Some(None), "{what}");
        }
        _ => {}
    }
}

/// A dispute becomes void when a row is no longer disputable as the step reaches it: the other row is what it was before.
#[test]
fn a_void_dispute_gives_the_rows_back_what_they_were() {
    for before in [RowState::Registered, RowState::Referenced] {
        let mut seen = false;
        for seed in 0..200 {
            let mut ledger = Ledger::new(seed);
            // Beta's row is the first claim, so that alpha's, on shard 0, may be its alias.
            let first = ledger.asking.claim(1, "beta", "key", START_US);
            let second = ledger.asking.claim(0, "alpha", "key", START_US);
            if before == RowState::Referenced {
                ledger.reconcile();
            }
            let was = ledger.view(second);
            assert_eq!(was.state, before);
            // Beta takes its row back while the dispute about it is on its way to shard 1.
            let event_ids = [first, second];
            ledger.asking.send(0, "both", Operation::Dispute { corpus: "alpha", event_ids: &event_ids });
            while ledger.asking.machine.engine(0).is_some_and(|e| e.shard().disputes().open_count() == 0) {
                ledger.asking.machine.pump();
                ledger.asking.machine.complete_one();
                ledger.asking.machine.deliver_one();
            }
            let reason_code = ReasonCode::Other;
            ledger.asking.send(1, "mine", Operation::Retract { corpus: "beta", event_id: first, reason_code });
            ledger.asking.settle();
            let dispute = ledger.asking.machine.engine(0).and_then(|e| e.shard().disputes().all().last().cloned());
            let Some(dispute) = dispute else { continue };
            let after = ledger.view(second);
            match dispute.state {
                DisputeState::Void => {
                    seen = true;
                    assert_eq!(after.state, before);
                    assert_eq!((after.canonical_id, after.dispute), (was.canonical_id, None));
                }
                DisputeState::Arbitrate => assert_eq!(after.state, RowState::Disputed),
                other => panic!("the dispute rests in {other:?}"),
            }
        }
        assert!(seen, "no dispute became void");
    }
}

/// Brings a dispute into a state from which somebody can ask for something.
fn dispute_in(ledger: &mut Ledger, state: DisputeState) -> Option<(DisputeId, (EventId, EventId))> {
    let pair = ledger.rows();
    if state == DisputeState::Detect {
        // Disputes wait while an incident is on, but for one a minute.
        ledger.asking.ask(0, "an incident", Operation::Incident { active: true });
        let other = ledger.rows();
        ledger.open(other);
    }
    let dispute = ledger.open(pair);
    match state {
        DisputeState::Detect | DisputeState::Arbitrate => {}
        DisputeState::Escalate => {
            ledger.asking.ask(0, "above me", Operation::Escalate { dispute });
        }
        DisputeState::Closed => {
            ledger.arbitrate(dispute, pair, Verdict::Canonical, Verdict::References);
        }
        // These pass by themselves.
        DisputeState::Quarantine | DisputeState::Canonicalise | DisputeState::Void => return None,
    }
    let now = ledger.asking.machine.engine(0).and_then(|e| e.shard().disputes().get(dispute).map(|d| d.state));
    assert_eq!(now, Some(state));
    Some((dispute, pair))
}

#[test]
fn every_step_of_a_dispute_in_every_state_does_what_the_table_says() {
    let (mut allowed, mut refused) = (0, 0);
    for state in DisputeState::ALL {
        for step in [DisputeStep::Respond, DisputeStep::Escalate, DisputeStep::Arbitrate] {
            let mut ledger = Ledger::new(11);
            let Some((dispute, pair)) = dispute_in(&mut ledger, state) else { continue };
            let get = |ledger: &Ledger| {
                ledger.asking.machine.engine(0).and_then(|e| e.shard().disputes().get(dispute).cloned()).expect("known")
            };
            let before = get(&ledger);
            let outcome = match step {
                DisputeStep::Respond => {
                    ledger.asking.ask(0, "it is ours", Operation::Respond { corpus: "beta", dispute })
                }
                DisputeStep::Escalate => ledger.asking.ask(0, "above me", Operation::Escalate { dispute }),
                _ => ledger.arbitrate(dispute, pair, Verdict::Canonical, Verdict::References),
            };
            let after = get(&ledger);
            let what = format!("{step:?} of a dispute in {state:?}: {outcome:?}");
            match dispute_transition(state, step) {
                Some(expected) => {
                    allowed += 1;
                    assert_eq!(Asking::code(&outcome), None, "{what}");
                    // A verdict is carried to its end at once.
                    let rests = if expected == DisputeState::Canonicalise { DisputeState::Closed } else { expected };
                    assert_eq!(after.state, rests, "{what}");
                    assert_eq!(after.responses, before.responses + u32::from(step == DisputeStep::Respond), "{what}");
                }
                None => {
                    refused += 1;
                    assert_eq!(Asking::code(&outcome), Some(Code::BadTransition), "{what}");
                    assert_eq!(after, before, "{what}");
                }
            }
        }
    }
    println!("{allowed} steps allowed, {refused} refused");
    assert_eq!((allowed, refused), (6, 6));
}

/// The documentation page is made from the tables: `CLAIMD_WRITE_DOCS=1 cargo test -p claim-engine transitions` writes it.
#[test]
fn the_documentation_page_says_what_the_tables_say() {
    let mut page = String::from(
        "# States\n\nMade from the tables `TRANSITIONS` (`engine/src/row.rs`) and `DISPUTE_TRANSITIONS` \
         (`engine/src/dispute.rs`), from which the daemon's check and the tests are made, too.\n\n## Rows\n\n\
         A claim makes a row `registered`. Every pair that is not here is refused with `BAD_TRANSITION`, naming the state \
         found, and changes nothing.\n\n| from | operation | to |\n|---|---|---|\n",
    );
    for (from, operation, to) in crate::row::TRANSITIONS {
        let to = match to {
            Becomes::State(state) => state.name(),
            Becomes::WhatItWas => "what it was before the dispute",
        };
        page += &format!("| {} | {} | {to} |\n", from.name(), operation.name());
    }
    page += "\n## Disputes\n\nOpening one makes it `detect`. Every pair that is not here is refused with `BAD_TRANSITION`.\n\n\
             | state | step | by | to |\n|---|---|---|---|\n";
    for (from, step, to, roles) in DISPUTE_TRANSITIONS {
        let by: Vec<_> = roles.iter().map(|role| role.name()).collect();
        page += &format!("| {} | {} | {} | {} |\n", from.name(), step.name(), by.join(" or "), to.name());
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/states.md");
    if std::env::var_os("CLAIMD_WRITE_DOCS").is_some() {
        std::fs::write(path, &page).expect("the page can be written");
    }
    let written = std::fs::read_to_string(path).expect("docs/states.md is there");
    assert!(written == page, "docs/states.md differs from the tables: run with CLAIMD_WRITE_DOCS=1");
}
