//! What the model test asks for: every operation, with rows, keys and principals of all kinds, mostly such as may go well.

use super::reference::{Model, Row};
use super::words::{Asked, Item, Op};
use crate::dispute::{Dispute, DisputeId, DisputeState, Verdict};
use crate::entropy::Entropy;
use crate::id::EventId;
use crate::log::entry::Principal;
use crate::policy::settings::{Corpora, Grant, Settings};
use crate::policy::{Policy, Role};
use crate::row::{ReasonCode, RowState};
use crate::time::{DAY_US, HOUR_US, SECOND_US};

/// Corpora of a run, at most.
const CORPORA_MAX: u64 = 6;
/// Event keys of a run.
const EVENT_KEYS: u64 = 7;
/// Requests that may be sent again.
const RECENT_MAX: usize = 40;

/// Has every role everywhere.
pub const OWNER: Principal = who(1, 1);

const fn who(uid: u32, gid: u32) -> Principal {
    Principal { uid, gid, pid: 7 }
}

/// Who asks, with the name that the system gives him.
const PEOPLE: [(Principal, &str); 10] = [
    (OWNER, "owner"),
    (who(2, 2), "client"),
    (who(3, 3), "facilitator"),
    (who(4, 4), "platform"),
    (who(5, 5), "manager"),
    (who(6, 6), ""),
    (who(7, 7), "leadership"),
    (who(8, 8), "auditor"),
    (who(9, 9), "nobody"),
    (who(10, 50), "of a group"),
];

/// The load of one run.
#[derive(Debug, Default)]
pub struct Load {
    made: u64,
    recent: Vec<Asked>,
}

fn pick<T: Clone>(entropy: &mut Entropy, of: &[T]) -> Option<T> {
    if of.is_empty() { None } else { of.get(entropy.below(of.len() as u64) as usize).cloned() }
}

/// A configuration with small numbers.
pub fn settings(entropy: &mut Entropy) -> Settings {
    let named = |names: &[&str]| Corpora::Named(names.iter().map(|name| (*name).to_owned()).collect());
    let grant =
        |role, corpora, uids: &[u32], gids: &[u32]| Grant { role, corpora, uids: uids.to_vec(), gids: gids.to_vec() };
    let mut grants: Vec<_> = Role::ALL.map(|role| grant(role, Corpora::All, &[1], &[])).into();
    grants.push(grant(Role::Client, named(&["c-1", "c-2"]), &[2], &[]));
    grants.push(grant(Role::Facilitator, named(&["c-1", "c-3"]), &[3], &[]));
    grants.push(grant(Role::Platform, Corpora::All, &[4], &[]));
    grants.push(grant(Role::Manager, Corpora::All, &[5], &[]));
    grants.push(grant(Role::Arbitrator, Corpora::All, &[6], &[]));
    grants.push(grant(Role::Leadership, Corpora::All, &[7], &[]));
    grants.push(grant(Role::Auditor, Corpora::All, &[8], &[]));
    grants.push(grant(Role::Client, named(&["c-2", "c-4"]), &[], &[50]));
    if entropy.below(2) == 0 {
        grants.push(grant(Role::Facilitator, Corpora::All, &[3], &[]));
        grants.push(grant(Role::Manager, named(&["c-2"]), &[2], &[]));
    }
    let minutes = |n: i64| n * 60 * SECOND_US;
    let mut budgets = Vec::new();
    for (from, to, budget_us) in
        [("c-1", "c-2", minutes(20)), ("c-2", "c-3", minutes(1)), ("c-3", "c-1", minutes(7)), ("c-4", "c-5", SECOND_US)]
    {
        if entropy.below(2) == 0 {
            budgets.push((from.to_owned(), to.to_owned(), budget_us));
        }
    }
    Settings {
        grants,
        reconcile_interval_us: pick(entropy, &[minutes(5), HOUR_US, 7 * DAY_US]).unwrap_or(HOUR_US),
        tolerance_us: pick(entropy, &[minutes(5), minutes(1), 0]).unwrap_or(0),
        default_window_us: pick(entropy, &[minutes(5), minutes(5), SECOND_US]).unwrap_or(SECOND_US),
        budgets,
        disputes_per_minute: 1 + 5 * (entropy.below(2) as i64),
        retention_years: 1 + entropy.below(2) as i64,
        slots_per_quarter: 3 + entropy.below(25) as i64,
        ..Settings::default()
    }
}

impl Load {
    /// A key that was made at a moment.
    pub fn key(&mut self, made_us: i64) -> u128 {
        self.made += 1;
        ((made_us / 1_000) as u128) << 80 | 7 << 76 | 0b10 << 62 | u128::from(self.made)
    }

    /// A request of the owner.
    pub fn of_owner(&mut self, model: &Model, op: Op) -> Asked {
        let shard = shard_of(model, &op);
        let key = if op.is_mutation() { self.key(model.now_us) } else { 0 };
        Asked { op, shard, who: OWNER, user: "owner", key, correlation: 0, rationale: "a test".into() }
    }

    /// The next request.
    pub fn next(&mut self, model: &Model, entropy: &mut Entropy) -> Asked {
        let again = if entropy.below(14) == 0 { pick(entropy, &self.recent) } else { None };
        let asked = match again {
            Some(mut asked) => {
                match entropy.below(8) {
                    0 => asked.rationale = "another reason".into(),
                    1 => asked.key = self.key(model.now_us),
                    _ => {}
                }
                asked
            }
            None => self.fresh(model, entropy),
        };
        // What the daemon then does by itself, it would do in more than one order.
        let would_race = matches!(&asked.op, Op::Configure { .. })
            || matches!(&asked.op, Op::Freeze { frozen: true, .. } if model.is_move_due(model.now_us + SECOND_US))
            || matches!(&asked.op, Op::Freeze { corpus, frozen: true } if corpus.is_empty());
        let asked = if model.waiting_disputes() > 0 && would_race { self.of_owner(model, Op::Status) } else { asked };
        // The daemon asks for a configuration once.
        if asked.op.is_mutation() && !matches!(asked.op, Op::Configure { .. }) {
            if self.recent.len() == RECENT_MAX {
                let oldest = entropy.below(RECENT_MAX as u64) as usize;
                self.recent.swap_remove(oldest);
            }
            self.recent.push(asked.clone());
        }
        asked
    }

    fn fresh(&mut self, model: &Model, entropy: &mut Entropy) -> Asked {
        let op = self.op(model, entropy);
        let mut asked = self.of_owner(model, op);
        let is_signing = matches!(asked.op, Op::SignOff { .. }) && entropy.below(4) != 0;
        if is_signing || entropy.below(3) == 0 {
            let index = match &asked.op {
                Op::SignOff { role, .. } if is_signing => *role as usize + 1,
                _ => entropy.below(PEOPLE.len() as u64) as usize,
            };
            (asked.who, asked.user) = PEOPLE[index.min(PEOPLE.len() - 1)];
        }
        asked.correlation = u128::from(entropy.below(4));
        match entropy.below(60) {
            0 => asked.rationale = String::new(),
            1 => asked.rationale = "two\nlines".into(),
            2 => asked.rationale = "long ".repeat(200),
            3 => asked.rationale = "longer ".repeat(700),
            _ => {}
        }
        if asked.op.is_mutation() && !matches!(asked.op, Op::Configure { .. }) {
            let made_us = match entropy.below(40) {
                0 => model.now_us - DAY_US - 2_000,
                1 => model.now_us - DAY_US + 2_000,
                2 => model.now_us + 299 * SECOND_US,
                3 => model.now_us + 302 * SECOND_US,
                _ => model.now_us,
            };
            asked.key = self.key(made_us);
        }
        asked
    }

    fn op(&mut self, model: &Model, entropy: &mut Entropy) -> Op {
        let corpora = model.corpora.len() as u64;
        if corpora < 2 || corpora < CORPORA_MAX && entropy.below(60) == 0 {
            let name = format!("c-{}", 1 + entropy.below(corpora + 1));
            return Op::Onboard { name, notes: "made up".into() };
        }
        if model.frozen.is_some() && entropy.below(4) == 0 {
            return Op::Freeze { corpus: String::new(), frozen: false };
        }
        if model.incident && entropy.below(30) == 0 {
            return Op::Incident(false);
        }
        match entropy.below(1_000) {
            0..300 => claim(model, entropy),
            300..360 => reference(model, entropy),
            360..410 => retract(model, entropy),
            410..440 => Op::Reactivate { id: row_in(model, entropy, &[RowState::Retracted]) },
            440..510 => dispute(model, entropy),
            510..620 if rarely(model.disputes.values().all(|d| !d.state.is_open()), entropy) => dispute(model, entropy),
            510..535 => Op::Respond { corpus: corpus(model, entropy), dispute: dispute_in(model, entropy, None) },
            535..555 => Op::Escalate { dispute: dispute_in(model, entropy, Some(DisputeState::Arbitrate)) },
            555..620 => arbitrate(model, entropy),
            620..650 => Op::Reconcile { dry_run: entropy.below(3) == 0 },
            650..660 => Op::Barrier,
            660..672 => Op::Incident(entropy.below(4) != 0),
            672..680 => freeze(model, entropy),
            680..688 => Op::Cap { corpus: corpus(model, entropy), per_minute: [0, 0, 1, 3][entropy.below(4) as usize] },
            688..700 => propose(model, entropy),
            700..730 if rarely(model.proposals.iter().all(|p| p.effective_from_us.is_some()), entropy) => {
                propose(model, entropy)
            }
            700..730 => sign_off(model, entropy),
            730..732 => Op::Decommission { name: corpus(model, entropy), dry_run: false },
            732..736 => Op::Decommission { name: corpus(model, entropy), dry_run: true },
            736..740 => Op::ConfirmClock,
            740..746 => configure(entropy),
            746..749 => bad(model, entropy),
            _ => read(model, entropy),
        }
    }
}

/// The shard that a request goes to.
pub fn shard_of(model: &Model, op: &Op) -> u16 {
    match op {
        Op::Claim { corpus, .. } | Op::Retract { corpus, .. } | Op::Scan { corpus, .. } => {
            model.corpus(corpus).map_or(0, |corpus| corpus.shard)
        }
        Op::Reference { items, .. } => items.first().map_or(0, |(_, id)| model.shard_of(id.prefix())),
        Op::Reactivate { id } | Op::Lookup { id } | Op::History { id, .. } => model.shard_of(id.prefix()),
        Op::Find { shard, .. }
        | Op::Correlated { shard, .. }
        | Op::Totals { shard, .. }
        | Op::Usage { shard, .. }
        | Op::Corpora { shard } => *shard,
        _ => 0,
    }
}

fn corpus(model: &Model, entropy: &mut Entropy) -> String {
    if entropy.below(50) == 0 {
        return "unheard-of".into();
    }
    let index = entropy.below(model.corpora.len() as u64) as usize;
    model.corpora[index].name.clone()
}

/// Whether, where something can't go well, something else is to be asked for.
fn rarely(is_hopeless: bool, entropy: &mut Entropy) -> bool {
    is_hopeless && entropy.below(8) != 0
}

/// A row, mostly in one of some states.
fn row_in(model: &Model, entropy: &mut Entropy, states: &[RowState]) -> EventId {
    let fitting: Vec<&Row> = model.rows.iter().filter(|row| states.contains(&row.state)).collect();
    let all: Vec<&Row> = model.rows.iter().collect();
    let from = if entropy.below(6) == 0 { &all } else { &fitting };
    match pick(entropy, from) {
        Some(row) if entropy.below(60) != 0 => row.id,
        // A row that is not there, of a corpus that is.
        _ => EventId::pack(5, model.corpora[0].prefix, entropy.below(9)),
    }
}

fn dispute_in(model: &Model, entropy: &mut Entropy, state: Option<DisputeState>) -> DisputeId {
    let all: Vec<&Dispute> = model.disputes.values().collect();
    let fitting: Vec<&Dispute> =
        all.iter().copied().filter(|d| state.map_or(d.state.is_open(), |state| d.state == state)).collect();
    let from = if entropy.below(6) == 0 { &all } else { &fitting };
    pick(entropy, from).map_or(DisputeId::pack(5, [6, 7]), |dispute| dispute.id)
}

fn claim(model: &Model, entropy: &mut Entropy) -> Op {
    let count = if entropy.below(6) == 0 { 2 + entropy.below(4) } else { 1 };
    let unless_us = (entropy.below(4) == 0).then(|| {
        let minutes = [0, 1, 5, 60][entropy.below(4) as usize];
        if entropy.below(30) == 0 { DAY_US + 1 } else { minutes * 60 * SECOND_US }
    });
    // Mostly only single claims have a condition.
    let count = if unless_us.is_some() && entropy.below(20) != 0 { 1 } else { count };
    let items = (0..count).map(|_| item(model, entropy)).collect();
    Op::Claim { corpus: corpus(model, entropy), items, unless_us }
}

fn item(model: &Model, entropy: &mut Entropy) -> Item {
    let tolerance_us = model.settings.tolerance_us;
    let event_key = format!("event-{}", entropy.below(EVENT_KEYS));
    // Around what another row says, at the edges of the tolerance; or around now.
    let others: Vec<i64> = model.rows.iter().filter(|r| r.event_key == event_key).map(|r| r.occurred_us).collect();
    let base_us = match pick(entropy, &others) {
        Some(occurred_us) if entropy.below(4) != 0 => occurred_us,
        _ => model.now_us,
    };
    let away_us = [0, 0, 1_000, tolerance_us - 1, tolerance_us, tolerance_us + 1, 2 * tolerance_us, HOUR_US];
    let away_us = away_us[entropy.below(away_us.len() as u64) as usize];
    let occurred_us = if entropy.below(2) == 0 { base_us - away_us } else { base_us + away_us };
    let (mut category, mut hosting) = ("made-up".to_owned(), String::new());
    let mut occurred_us = occurred_us;
    match entropy.below(60) {
        0 => category = String::new(),
        1 => occurred_us = model.now_us + DAY_US + 1,
        2 => occurred_us = -1,
        3 => hosting = "No Name".into(),
        4 => hosting = "c-1".into(),
        _ => {}
    }
    Item { event_key, occurred_us, category, hosting }
}

fn reference(model: &Model, entropy: &mut Entropy) -> Op {
    let states = [RowState::Registered, RowState::Referenced, RowState::Referenced];
    let from = entropy.below(2) as usize;
    let mut first = row_in(model, entropy, &states[from..]);
    // An alias of what has become an alias itself, where there is one.
    let is_alias = |id| model.row(id).is_some_and(|row| row.state == RowState::Referenced);
    let is_chain = |row: &&Row| is_alias(row.id) && row.canonical.is_some_and(is_alias);
    let chains: Vec<&Row> = model.rows.iter().filter(is_chain).collect();
    if let (Some(row), 0) = (pick(entropy, &chains), entropy.below(3)) {
        first = row.id;
    }
    let mut items = vec![(0, first)];
    if entropy.below(3) == 0 {
        for index in 1..2 + entropy.below(3) as u16 {
            let id = row_in(model, entropy, &states);
            // A request is about rows of one shard.
            if model.shard_of(id.prefix()) == model.shard_of(first.prefix()) {
                items.push((index, id));
            }
        }
    }
    Op::Reference { corpus: corpus(model, entropy), items }
}

fn retract(model: &Model, entropy: &mut Entropy) -> Op {
    let mut id = row_in(model, entropy, &[RowState::Registered]);
    // A row of a dispute that waits is no longer disputable then.
    let waiting = model.disputes.values().filter(|dispute| dispute.state == DisputeState::Detect);
    let waiting: Vec<EventId> = waiting.flat_map(|dispute| dispute.sides.ids().to_vec()).collect();
    if let (Some(disputed), 0..2) = (pick(entropy, &waiting), entropy.below(3)) {
        id = disputed;
    }
    let own = model.of_prefix(id.prefix()).map(|corpus| corpus.name.clone()).unwrap_or_default();
    let corpus = if entropy.below(12) == 0 { corpus(model, entropy) } else { own };
    Op::Retract { corpus, id, reason: ReasonCode::ALL[entropy.below(5) as usize] }
}

fn dispute(model: &Model, entropy: &mut Entropy) -> Op {
    let closed: Vec<&Dispute> = model.disputes.values().filter(|dispute| dispute.is_dismissed()).collect();
    let mut ids = Vec::new();
    match pick(entropy, &closed) {
        Some(before) if entropy.below(5) == 0 => ids.extend_from_slice(before.sides.ids()),
        _ => {
            let count = 2 + [0, 0, 0, 1, 2, 7][entropy.below(6) as usize];
            for _ in 0..count {
                ids.push(row_in(model, entropy, &[RowState::Registered, RowState::Referenced]));
            }
            // Rows of one event, mostly.
            if entropy.below(3) != 0 {
                let key = model.row(ids[0]).map(|row| row.event_key.clone());
                let same = |row: &&Row| Some(&row.event_key) == key.as_ref() && model.is_disputable(row);
                let same: Vec<&Row> = model.rows.iter().filter(same).collect();
                for id in &mut ids[1..] {
                    *id = pick(entropy, &same).map_or(*id, |row| row.id);
                }
            }
        }
    }
    if entropy.below(10) != 0 {
        ids.sort_unstable();
        ids.dedup();
    }
    let own = pick(entropy, &ids).and_then(|id| model.of_prefix(id.prefix())).map(|corpus| corpus.name.clone());
    let corpus = match own {
        Some(own) if entropy.below(15) != 0 => own,
        _ => corpus(model, entropy),
    };
    Op::Dispute { corpus, ids }
}

fn arbitrate(model: &Model, entropy: &mut Entropy) -> Op {
    let state = if entropy.below(3) == 0 { DisputeState::Escalate } else { DisputeState::Arbitrate };
    let dispute = dispute_in(model, entropy, Some(state));
    let ids = model.disputes.get(&dispute).map_or(Vec::new(), |dispute| dispute.sides.ids().to_vec());
    let mut verdicts: Vec<_> = if entropy.below(3) == 0 {
        ids.iter().map(|id| (*id, Verdict::Dismissed)).collect()
    } else {
        let canonical = entropy.below(ids.len().max(1) as u64) as usize;
        let other = [Verdict::References, Verdict::Tombstone];
        let mut verdicts: Vec<_> = ids.iter().map(|id| (*id, other[usize::from(entropy.below(4) == 0)])).collect();
        if let Some(verdict) = verdicts.get_mut(canonical) {
            verdict.1 = Verdict::Canonical;
        }
        verdicts
    };
    if entropy.below(10) == 0 && !verdicts.is_empty() {
        let index = entropy.below(verdicts.len() as u64) as usize;
        match entropy.below(3) {
            0 => drop(verdicts.remove(index)),
            1 => verdicts[index].1 = Verdict::ALL[entropy.below(4) as usize],
            _ => verdicts.push(verdicts[index]),
        }
    }
    if entropy.below(2) == 0 {
        verdicts.reverse();
    }
    Op::Arbitrate { dispute, verdicts }
}

fn freeze(model: &Model, entropy: &mut Entropy) -> Op {
    let frozen: Vec<_> = model.corpora.iter().filter(|c| c.frozen.is_some()).map(|c| c.name.clone()).collect();
    match pick(entropy, &frozen) {
        Some(corpus) if entropy.below(4) != 0 => Op::Freeze { corpus, frozen: false },
        _ if entropy.below(3) == 0 => Op::Freeze { corpus: String::new(), frozen: entropy.below(4) != 0 },
        _ => Op::Freeze { corpus: corpus(model, entropy), frozen: entropy.below(6) != 0 },
    }
}

fn propose(model: &Model, entropy: &mut Entropy) -> Op {
    let more =
        [0, 1, 5, 2_000_000_000_000][(entropy.below(10) as usize).min(3).saturating_sub(entropy.below(4) as usize)];
    Op::Propose { corpus: corpus(model, entropy), slots: 5 + entropy.below(30) + more }
}

fn sign_off(model: &Model, entropy: &mut Entropy) -> Op {
    let open: Vec<u64> = model.proposals.iter().filter(|p| p.effective_from_us.is_none()).map(|p| p.number).collect();
    let all: Vec<u64> = model.proposals.iter().map(|p| p.number).collect();
    let from = if entropy.below(5) == 0 { &all } else { &open };
    let proposal = pick(entropy, from).unwrap_or(1);
    let roles = [Role::Platform, Role::Facilitator, Role::Manager, Role::Platform, Role::Facilitator, Role::Auditor];
    Op::SignOff { proposal, role: roles[entropy.below(6) as usize] }
}

fn configure(entropy: &mut Entropy) -> Op {
    let toml = match entropy.below(8) {
        0 => "[slots]\nper_quarter = 0\n".to_owned(),
        _ => Policy::new(settings(entropy)).expect("the settings are within their bounds").to_toml(),
    };
    Op::Configure { toml }
}

/// What no client of ours would send.
fn bad(model: &Model, entropy: &mut Entropy) -> Op {
    match entropy.below(4) {
        0 => Op::Onboard { name: "No Name".into(), notes: String::new() },
        1 => Op::Claim { corpus: corpus(model, entropy), items: Vec::new(), unless_us: None },
        2 => Op::Reference { corpus: corpus(model, entropy), items: Vec::new() },
        _ => Op::Dispute { corpus: corpus(model, entropy), ids: Vec::new() },
    }
}

fn read(model: &Model, entropy: &mut Entropy) -> Op {
    let shard = entropy.below(model.shard_count.into()) as u16;
    let any_or_all = |entropy: &mut Entropy| {
        if entropy.below(2) == 0 { String::new() } else { corpus(model, entropy) }
    };
    match entropy.below(20) {
        0..4 => Op::Lookup { id: row_in(model, entropy, &RowState::ALL) },
        4..7 => Op::History { id: row_in(model, entropy, &RowState::ALL), skip: entropy.below(3) as usize },
        7..9 => {
            let times: Vec<i64> = model.rows.iter().map(|row| row.claimed_us).collect();
            let ids: Vec<EventId> = model.rows.iter().map(|row| row.id).collect();
            let some = |entropy: &mut Entropy| entropy.below(2) == 0;
            Op::Scan {
                corpus: corpus(model, entropy),
                since_us: if some(entropy) { pick(entropy, &times) } else { None },
                until_us: if some(entropy) { pick(entropy, &times) } else { None },
                after: if some(entropy) { pick(entropy, &ids) } else { None },
                limit: entropy.below(9) as usize,
            }
        }
        9 => Op::Find { shard, event_key: format!("event-{}", entropy.below(EVENT_KEYS)) },
        10 => Op::Totals { shard, corpus: any_or_all(entropy) },
        11 => Op::Corpora { shard },
        12 => Op::Disputes { corpus: any_or_all(entropy), closed_too: entropy.below(2) == 0 },
        13 => Op::DisputeLookup { dispute: dispute_in(model, entropy, None) },
        14 => Op::Proposals,
        15 => Op::Configuration,
        16 => Op::Correlated { shard, correlation: u128::from(1 + entropy.below(3)) },
        17 => Op::Usage { shard, name: corpus(model, entropy) },
        18 => Op::ReadAll,
        _ => Op::Status,
    }
}
