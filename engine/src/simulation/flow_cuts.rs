//! What spans shards, cut at every instant: a dispute with its verdict, and passes of reconciliation, on two shards, with
//! retractions racing. A run is a function of its seed, so that it can be repeated up to any of its moves, and the power fails
//! there. After recovery everything is carried to one of the legal ends, the same on both shards.

use super::asking::Asking;
use super::machine::Machine;
use crate::command::{Operation, Outcome};
use crate::dispute::{Dispute, DisputeState, Verdict};
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::mutant::Mutant;
use crate::row::{ReasonCode, RowState, RowView};
use crate::time::SECOND_US;

const START_US: i64 = 1_767_312_000 * SECOND_US;
const HOUR_US: i64 = 3_600 * SECOND_US;
/// Runs of each kind; each is cut at every one of its moves.
const SEEDS: u64 = 12;
/// Moves without anything becoming durable after which a run is over.
const QUIET_MOVES: u64 = 150;
/// Moves after which a run has come to its end, at most.
const MOVES_MAX: u64 = 3_000;

/// What the clients of a run know.
#[derive(Debug, Default)]
struct Told {
    opened: bool,
    verdict: bool,
    retracted: Vec<EventId>,
    merged: Option<u64>,
}

struct Flow {
    asking: Asking,
    /// Of alpha, on shard 0; of beta, on shard 1; of gamma, on shard 0.
    rows: Vec<EventId>,
    told: Told,
    sent: Sent,
    seed: u64,
}

#[derive(Debug, Default)]
struct Sent {
    opening: Option<u64>,
    verdict: Option<u64>,
    pass: Option<u64>,
    retractions: Vec<(u64, EventId)>,
}

const CORPORA: [(&str, u16); 3] = [("alpha", 0), ("beta", 1), ("gamma", 0)];

impl Flow {
    fn new(seed: u64, mutant: Option<Mutant>) -> Flow {
        let mut asking = Asking::new(Machine::new(seed, Entropy::from_seed_u64(seed), 2, mutant, START_US));
        for (name, _) in CORPORA {
            asking.onboard(name);
        }
        let rows = CORPORA.iter().map(|(name, shard)| asking.claim(*shard, name, "event", START_US)).collect();
        Flow { asking, rows, told: Told::default(), sent: Sent::default(), seed }
    }

    fn dispute(&self) -> Option<Dispute> {
        self.asking.machine.engine(0).and_then(|e| e.shard().disputes().all().next().cloned())
    }

    fn view(&self, event_id: EventId) -> RowView {
        self.asking.machine.row(event_id).map(|(_, view)| view).expect("the row is there")
    }

    fn open_dispute(&mut self) {
        let ids = self.rows.clone();
        let operation = Operation::Dispute { corpus: "alpha", event_ids: &ids };
        self.sent.opening = Some(self.asking.send(0, "whose is it", operation));
    }

    fn retract(&mut self, which: usize) {
        let (event_id, (corpus, shard)) = (self.rows[which], CORPORA[which]);
        let operation = Operation::Retract { corpus, event_id, reason_code: ReasonCode::Other };
        let token = self.asking.send(shard, "no", operation);
        self.sent.retractions.push((token, event_id));
    }

    /// A verdict as the seed says.
    fn arbitrate(&mut self, dispute: &Dispute) {
        let given = match self.seed % 3 {
            0 => [Verdict::Canonical, Verdict::References, Verdict::Tombstone],
            1 => [Verdict::References, Verdict::Canonical, Verdict::References],
            _ => [Verdict::Dismissed; 3],
        };
        let verdicts: Vec<_> = self.rows.iter().copied().zip(given).collect();
        let operation = Operation::Arbitrate { dispute: dispute.id, verdicts: &verdicts };
        self.sent.verdict = Some(self.asking.send(0, "decided", operation));
    }

    fn reconcile(&mut self) {
        self.sent.pass = Some(self.asking.send(0, "", Operation::Reconcile { dry_run: false }));
    }

    /// One move: of a disk, of a message, of the clock.
    fn step(&mut self) {
        let machine = &mut self.asking.machine;
        match machine.entropy.below(8) {
            0..4 => machine.complete_one(),
            4..7 => machine.deliver_one(),
            _ => {
                machine.now.boot_us += 1_000;
                machine.now.wall_us += 1_000;
                machine.tick();
            }
        }
        machine.pump();
        self.asking.listen();
        self.hear();
    }

    fn hear(&mut self) {
        let answers = &mut self.asking.answers;
        let mut take = |token: Option<u64>| token.and_then(|token| answers.remove(&token));
        if let Some(outcome) = take(self.sent.opening) {
            self.told.opened |= matches!(outcome, Outcome::Dispute(_));
        }
        if let Some(outcome) = take(self.sent.verdict) {
            self.told.verdict |= matches!(outcome, Outcome::Dispute(_));
        }
        if let Some(Outcome::Reconciled(report)) = take(self.sent.pass) {
            self.told.merged = Some(report.counts.merged);
        }
        for (token, event_id) in &self.sent.retractions {
            if let Some(Outcome::Retracted { .. }) = answers.remove(token) {
                self.told.retracted.push(*event_id);
            }
        }
    }

    /// The power fails; the machine comes back, and what it had begun is carried to its end.
    fn crash(&mut self) -> Result<(), String> {
        self.asking.machine.crash(true, 2_000_000, 2_000_000);
        self.asking.machine.recover(None)?;
        self.asking.settle();
        Ok(())
    }

    /// What both shards say, and whether it is one of the legal ends.
    fn check(&self) -> Result<String, String> {
        let engines: Vec<_> = self.asking.machine.engines().collect();
        let disputes: Vec<Vec<_>> = engines
            .iter()
            .map(|e| e.shard().disputes().all().map(|d| (d.id, d.state, d.verdicts, d.responses)).collect())
            .collect();
        if disputes.iter().any(|d| *d != disputes[0]) {
            return Err(format!("the shards differ: {disputes:?}"));
        }
        let states: Vec<_> = self.rows.iter().map(|id| self.view(*id)).collect();
        let shown: Vec<_> = states.iter().map(|view| view.state).collect();
        for (id, view) in self.rows.iter().zip(&states) {
            if self.told.retracted.contains(id) && view.state != RowState::Retracted {
                return Err(format!("{id} was retracted for certain and is {:?}", view.state));
            }
        }
        self.check_links(&states)?;
        let Some(dispute) = self.dispute() else {
            if self.told.opened {
                return Err("the dispute was opened for certain and is lost".into());
            }
            if shown.contains(&RowState::Disputed) {
                return Err(format!("no dispute, and yet {shown:?}"));
            }
            return Ok(format!("no dispute {shown:?}"));
        };
        let flagged = states.iter().filter(|view| view.dispute == Some(dispute.id)).count();
        match dispute.state {
            DisputeState::Arbitrate if flagged != states.len() => {
                return Err(format!("a dispute waits for its verdict, and its rows are {shown:?}"));
            }
            DisputeState::Arbitrate => {}
            DisputeState::Void | DisputeState::Closed if flagged > 0 => {
                return Err(format!("a dispute is {:?}, and its rows are {shown:?}", dispute.state));
            }
            DisputeState::Void => {
                if !shown.contains(&RowState::Retracted) {
                    return Err(format!("a dispute is void for no reason: {shown:?}"));
                }
            }
            DisputeState::Closed => {
                for ((id, view), verdict) in self.rows.iter().zip(&states).zip(dispute.verdicts) {
                    let expected = match verdict {
                        Some(Verdict::Canonical | Verdict::Dismissed) => RowState::Registered,
                        Some(Verdict::References) => RowState::Referenced,
                        Some(Verdict::Tombstone) => RowState::TombstonedByArbitration,
                        None => return Err(format!("a closed dispute without a verdict on {id}")),
                    };
                    // Its corpus may have taken a row back once the dispute was over.
                    let is_right = view.state == expected
                        || (expected == RowState::Registered && view.state == RowState::Retracted);
                    if !is_right {
                        return Err(format!("{id} is {:?} by a verdict of {verdict:?}", view.state));
                    }
                }
            }
            other => return Err(format!("the dispute rests in {other:?}")),
        }
        if self.told.verdict && dispute.state != DisputeState::Closed {
            return Err(format!("the verdict was given for certain, and the dispute is in {:?}", dispute.state));
        }
        Ok(format!("{:?} {shown:?}", dispute.state))
    }

    /// Aliases lead to rows that are no aliases.
    fn check_links(&self, states: &[RowView]) -> Result<(), String> {
        for view in states.iter().filter(|view| view.state == RowState::Referenced) {
            let mut at = view.event_id;
            for _ in 0..=self.rows.len() {
                match self.view(at).canonical_id {
                    Some(next) => at = next,
                    None => break,
                }
            }
            if self.view(at).canonical_id.is_some() {
                return Err(format!("the aliases from {} go round in a ring", view.event_id));
            }
        }
        Ok(())
    }
}

/// Plays a run up to a move; returns it, and whether it had come to its end before.
fn play(seed: u64, moves: u64, is_pass: bool, mutant: Option<Mutant>) -> (Flow, bool) {
    let mut flow = Flow::new(seed, mutant);
    if is_pass {
        flow.asking.machine.now.wall_us += HOUR_US / 2;
        flow.asking.machine.now.boot_us += HOUR_US / 2;
        flow.reconcile();
    } else {
        flow.open_dispute();
    }
    let retract_at = flow.asking.machine.entropy.below(60);
    let which = flow.asking.machine.entropy.below(4) as usize;
    let dispute_at = flow.asking.machine.entropy.below(80);
    let mut quiet = 0;
    for n in 0..moves {
        // Some runs have no retraction.
        if n == retract_at && which < 3 {
            flow.retract(which);
        }
        if is_pass && n == dispute_at && seed.is_multiple_of(2) {
            flow.open_dispute();
        }
        if let Some(dispute) = flow.dispute().filter(|d| d.state == DisputeState::Arbitrate)
            && flow.sent.verdict.is_none()
        {
            flow.arbitrate(&dispute);
        }
        let before = flow.asking.machine.engines().map(|e| e.durable().position).sum::<u64>();
        flow.step();
        let after = flow.asking.machine.engines().map(|e| e.durable().position).sum::<u64>();
        quiet = if before == after { quiet + 1 } else { 0 };
        if quiet > QUIET_MOVES {
            return (flow, true);
        }
    }
    (flow, false)
}

/// Cuts runs at every move; the error names seed and move.
fn cut_everywhere(
    seeds: std::ops::Range<u64>,
    is_pass: bool,
    mutant: Option<Mutant>,
) -> Result<(u64, Vec<String>), String> {
    let (mut cuts, mut ends) = (0, std::collections::BTreeSet::new());
    for seed in seeds {
        for moves in 0..MOVES_MAX {
            let (mut flow, is_over) = play(seed, moves, is_pass, mutant);
            let failed = |error: String| format!("seed {seed}, cut after move {moves}: {error}");
            flow.crash().map_err(failed)?;
            let end = flow.check().map_err(failed)?;
            // Once more, and nothing is different.
            flow.crash().map_err(failed)?;
            let again = flow.check().map_err(failed)?;
            if again != end {
                return Err(failed(format!("another crash made {again} of {end}")));
            }
            if is_pass {
                // A pass that is asked for now leaves nothing to be merged.
                flow.asking.machine.now.wall_us += HOUR_US;
                flow.asking.machine.now.boot_us += HOUR_US / 2;
                let first = flow.asking.ask(0, "", Operation::Reconcile { dry_run: false });
                let second = flow.asking.ask(0, "", Operation::Reconcile { dry_run: false });
                flow.check().map_err(failed)?;
                let Outcome::Reconciled(report) = &second else { return Err(failed(format!("{first:?} {second:?}"))) };
                if report.counts.merged > 0 {
                    return Err(failed(format!("a second pass merges: {report:?}")));
                }
            }
            cuts += 1;
            ends.insert(end);
            if is_over {
                break;
            }
        }
    }
    Ok((cuts, ends.into_iter().collect()))
}

#[test]
fn a_dispute_cut_at_any_instant_ends_as_one_on_both_shards() {
    let (cuts, ends) = cut_everywhere(0..SEEDS, false, None).unwrap();
    println!("{cuts} cuts, {} ends:\n{}", ends.len(), ends.join("\n"));
    // A race that nobody ever loses would prove nothing.
    for wanted in
        ["no dispute", "Void", "Arbitrate", "Closed [Registered, Referenced", "Closed [Referenced, Registered"]
    {
        assert!(ends.iter().any(|end| end.starts_with(wanted)), "no run ended with {wanted}");
    }
}

#[test]
fn a_pass_cut_at_any_instant_is_done_in_the_end() {
    let (cuts, ends) = cut_everywhere(0..SEEDS, true, None).unwrap();
    println!("{cuts} cuts, {} ends:\n{}", ends.len(), ends.join("\n"));
    for wanted in ["no dispute [Registered, Referenced, Referenced]", "no dispute [Retracted"] {
        assert!(ends.iter().any(|end| end.starts_with(wanted)), "no run ended with {wanted}");
    }
}

#[test]
fn a_void_dispute_that_leaves_rows_flagged_is_caught() {
    let error = cut_everywhere(0..SEEDS, false, Some(Mutant::VoidLeavesRowsFlagged)).unwrap_err();
    println!("caught: {error}");
}
