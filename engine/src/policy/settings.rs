//! What a policy is made of, and what must hold of it.

use super::{Reach, Role};
use crate::corpus::is_corpus_name;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Pairs of a user or group and a corpus that the roles of a policy may name in all.
pub const GRANTED_PAIRS_MAX: usize = 65_536;
/// What stands for all corpora.
pub const ALL_CORPORA: &str = "*";
/// The user and group id that nobody can have: the kernel takes it for "unchanged".
const ID_OF_NOBODY: u32 = u32::MAX;

const SECOND_US: i64 = 1_000_000;
pub(super) const MINUTE_US: i64 = 60 * SECOND_US;
const DAY_US: i64 = 24 * 60 * MINUTE_US;

/// How often reconciliation may run.
pub const INTERVAL_US: RangeInclusive<i64> = SECOND_US..=7 * DAY_US;
/// How far apart two claims' `occurred_at` may be said to be one event's.
pub const TOLERANCE_US: RangeInclusive<i64> = 0..=DAY_US;
/// Windows and budgets.
pub const WINDOW_US: RangeInclusive<i64> = SECOND_US..=DAY_US;
/// Deferred disputes that may move on in a minute.
pub const DISPUTES_PER_MINUTE: RangeInclusive<i64> = 1..=6_000;
/// Years that rows and entries may be kept.
pub const RETENTION_YEARS: RangeInclusive<i64> = 1..=1_000;
/// Slots that a corpus may have in a quarter.
pub const SLOTS_PER_QUARTER: RangeInclusive<i64> = 1..=1_000_000_000_000;

/// Corpora that a role is held on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Corpora {
    /// Whatever corpora there are and will be.
    All,
    /// These.
    Named(BTreeSet<String>),
}

/// Users and groups that have a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Where they have it; [`Corpora::All`] for roles of the whole ledger.
    pub corpora: Corpora,
    /// Users, ascending.
    pub uids: Vec<u32>,
    /// Groups, ascending: of these a process has the role by its own group, not by its supplementary ones.
    pub gids: Vec<u32>,
}

/// What a policy is made of, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who has which role.
    pub grants: Vec<Grant>,
    /// How often reconciliation runs.
    pub reconcile_interval_us: i64,
    /// How far apart `occurred_at` of one event's claims may be.
    pub tolerance_us: i64,
    /// The window of a pair that has no budget of its own.
    pub default_window_us: i64,
    /// The same while an incident is on.
    pub incident_window_us: i64,
    /// Pairs with a budget of their own: from, to, microseconds.
    pub budgets: Vec<(String, String, i64)>,
    /// Deferred disputes that move on in a minute.
    pub disputes_per_minute: i64,
    /// Full years that rows and entries are kept after their quarter.
    pub retention_years: i64,
    /// Slots of a corpus in a quarter.
    pub slots_per_quarter: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            grants: Vec::new(),
            reconcile_interval_us: 5 * MINUTE_US,
            tolerance_us: 5 * MINUTE_US,
            default_window_us: 5 * MINUTE_US,
            incident_window_us: 15 * MINUTE_US,
            budgets: Vec::new(),
            disputes_per_minute: 1,
            retention_years: 4,
            slots_per_quarter: 50_000,
        }
    }
}

impl Settings {
    /// What must hold of them. The error names the key of the resolved form.
    pub fn check(&self) -> Result<(), String> {
        for (key, value, bounds) in [
            ("reconcile.interval_us", self.reconcile_interval_us, INTERVAL_US),
            ("reconcile.tolerance_us", self.tolerance_us, TOLERANCE_US),
            ("reconcile.window_us", self.default_window_us, WINDOW_US),
            ("reconcile.incident_window_us", self.incident_window_us, WINDOW_US),
            ("dispute.rate_per_minute", self.disputes_per_minute, DISPUTES_PER_MINUTE),
            ("retention.years", self.retention_years, RETENTION_YEARS),
            ("slots.per_quarter", self.slots_per_quarter, SLOTS_PER_QUARTER),
        ] {
            check_bounds(key, value, &bounds)?;
        }
        let mut pairs = BTreeSet::new();
        for (from, to, window_us) in &self.budgets {
            check_budget(from, to)?;
            check_bounds("reconcile.budget.window_us", *window_us, &WINDOW_US)?;
            if !pairs.insert((from, to)) {
                return Err(format!("the budget of {from} → {to} is given twice: give it once"));
            }
        }
        let mut granted = 0;
        for grant in &self.grants {
            check_grant(grant)?;
            granted += granted_pairs(grant);
        }
        if granted > GRANTED_PAIRS_MAX {
            return Err(format!(
                "the roles name {granted} pairs of a user or group and a corpus, and {GRANTED_PAIRS_MAX} are the most: use \
                 groups, or corpora = [\"{ALL_CORPORA}\"]"
            ));
        }
        Ok(())
    }
}

/// What the key `corpora` of a grant says; `None` where it is absent.
pub fn corpora_of(role: Role, named: Option<Vec<String>>) -> Result<Corpora, String> {
    let role_name = role.name();
    match (role.reach(), named) {
        (Reach::Ledger, Some(_)) => Err(format!("the role {role_name} is for the whole ledger: leave 'corpora' out")),
        (Reach::Ledger | Reach::CorporaOrAll, None) => Ok(Corpora::All),
        (Reach::Corpora, None) => Err(format!(
            "the role {role_name} needs the key 'corpora': name them, or write [\"{ALL_CORPORA}\"] for all"
        )),
        (_, Some(names)) if names == [ALL_CORPORA] => Ok(Corpora::All),
        (_, Some(names)) if names.iter().any(|name| name == ALL_CORPORA) => {
            Err(format!("'corpora' names all and some: write [\"{ALL_CORPORA}\"] alone"))
        }
        (_, Some(names)) => Ok(Corpora::Named(names.into_iter().collect())),
    }
}

/// What must hold of a grant by itself.
pub fn check_grant(grant: &Grant) -> Result<(), String> {
    let role = grant.role.name();
    match &grant.corpora {
        Corpora::Named(_) if grant.role.reach() == Reach::Ledger => {
            return Err(format!("the role {role} is for the whole ledger: leave 'corpora' out"));
        }
        Corpora::Named(names) if names.is_empty() => {
            return Err(format!(
                "'corpora' of the role {role} is empty: name some, or write [\"{ALL_CORPORA}\"] for all"
            ));
        }
        Corpora::Named(names) => names.iter().try_for_each(|name| check_name("corpora", name))?,
        Corpora::All => {}
    }
    if grant.uids.is_empty() && grant.gids.is_empty() {
        return Err(format!("the role {role} is given to nobody: name users or groups"));
    }
    if grant.uids.contains(&ID_OF_NOBODY) || grant.gids.contains(&ID_OF_NOBODY) {
        return Err(format!("the role {role} is given to the id {ID_OF_NOBODY}, which nobody can have"));
    }
    Ok(())
}

/// What must hold of a budget's pair.
pub fn check_budget(from: &str, to: &str) -> Result<(), String> {
    check_name("from", from)?;
    check_name("to", to)?;
    if from == to {
        return Err(format!("the budget of {from} → {to} is a pair of one corpus with itself: name two"));
    }
    Ok(())
}

fn check_name(key: &str, name: &str) -> Result<(), String> {
    if is_corpus_name(name) {
        return Ok(());
    }
    Err(format!("'{key}' has {name:?}, which is no corpus name: 1 to 63 of a-z, 0-9 and '-', the first no '-'"))
}

pub(super) fn check_bounds(key: &str, value: i64, bounds: &RangeInclusive<i64>) -> Result<(), String> {
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(format!("{key} is {value}, and must be {} to {}", bounds.start(), bounds.end()))
}

fn granted_pairs(grant: &Grant) -> usize {
    let corpora = match &grant.corpora {
        Corpora::All => 1,
        Corpora::Named(names) => names.len(),
    };
    corpora.saturating_mul(grant.uids.len() + grant.gids.len())
}

/// The same roles in one order, whatever grants they were given in: what one user or group has of a role comes together,
/// and then those who have it on the same corpora.
pub(super) fn in_order(grants: &[Grant]) -> Vec<Grant> {
    let mut held: BTreeMap<(Role, bool, u32), Corpora> = BTreeMap::new();
    for grant in grants {
        let uids = grant.uids.iter().map(|uid| (grant.role, false, *uid));
        for holder in uids.chain(grant.gids.iter().map(|gid| (grant.role, true, *gid))) {
            let corpora = held.entry(holder).or_insert_with(|| Corpora::Named(BTreeSet::new()));
            match (corpora, &grant.corpora) {
                (Corpora::Named(had), Corpora::Named(more)) => had.extend(more.iter().cloned()),
                (corpora, Corpora::All) => *corpora = Corpora::All,
                (Corpora::All, Corpora::Named(_)) => {}
            }
        }
    }
    let mut together: BTreeMap<(Role, Corpora), (Vec<u32>, Vec<u32>)> = BTreeMap::new();
    for ((role, is_group, id), corpora) in held {
        let (uids, gids) = together.entry((role, corpora)).or_default();
        if is_group { gids.push(id) } else { uids.push(id) }
    }
    together.into_iter().map(|((role, corpora), (uids, gids))| Grant { role, corpora, uids, gids }).collect()
}
