//! What the configuration decides: who may do what, and the windows, budgets and bounds of the ledger.
//!
//! A [`Policy`] is the *resolved* configuration: users are numbers, every setting has a value. Its text is what a
//! `configuration` entry holds, so that history replays the same whatever the host's user database says later:
//!
//! ```toml
//! [reconcile]
//! interval_us = 300000000
//! tolerance_us = 300000000
//! window_us = 300000000
//! incident_window_us = 900000000
//!
//! [[reconcile.budget]]
//! from = "customer"
//! to = "compliance"
//! window_us = 1200000000
//!
//! [dispute]
//! rate_per_minute = 1
//!
//! [retention]
//! years = 4
//!
//! [slots]
//! per_quarter = 50000
//!
//! [[role]]
//! role = "client"
//! corpora = ["customer"]
//! uids = [1001]
//! gids = []
//! ```
//!
//! `corpora = ["*"]` stands for all corpora. A setting that is left out has its default.

use crate::corpus::is_corpus_name;
use crate::log::entry::Principal;
use hashbrown::HashMap;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};
use std::ops::{Range, RangeInclusive};
use toml::Spanned;

/// Longest text of a policy, in bytes.
pub const POLICY_BYTES_MAX: usize = 256 << 10;
/// Pairs of a user or group and a corpus that the roles of a policy may name in all.
pub const GRANTED_PAIRS_MAX: usize = 65_536;
/// What stands for all corpora.
pub const ALL_CORPORA: &str = "*";
/// The user and group id that nobody can have: the kernel takes it for "unchanged".
const ID_OF_NOBODY: u32 = u32::MAX;

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
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

/// What somebody is to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Claims for a corpus.
    Client,
    /// Answers for a corpus.
    Facilitator,
    /// Runs the ledger.
    Platform,
    /// Signs for budgets.
    Manager,
    /// Decides disputes.
    Arbitrator,
    /// Decides escalated disputes.
    Leadership,
    /// Reads everything.
    Auditor,
}

impl Role {
    /// All of them, by number.
    pub const ALL: [Role; 7] = [
        Role::Client,
        Role::Facilitator,
        Role::Platform,
        Role::Manager,
        Role::Arbitrator,
        Role::Leadership,
        Role::Auditor,
    ];

    /// The number under which it is logged and sent.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// `None` for a number that no role has.
    pub fn from_number(number: u8) -> Option<Role> {
        Role::ALL.get(usize::from(number)).copied()
    }

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Facilitator => "facilitator",
            Role::Platform => "platform",
            Role::Manager => "manager",
            Role::Arbitrator => "arbitrator",
            Role::Leadership => "leadership",
            Role::Auditor => "auditor",
        }
    }

    /// Which corpora somebody has it on.
    pub const fn reach(self) -> Reach {
        match self {
            Role::Client | Role::Facilitator => Reach::Corpora,
            Role::Manager => Reach::CorporaOrAll,
            Role::Platform | Role::Arbitrator | Role::Leadership | Role::Auditor => Reach::Ledger,
        }
    }
}

/// What a grant of a role says about corpora.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It names them.
    Corpora,
    /// It names them, or is for all.
    CorporaOrAll,
    /// It is for all and names none.
    Ledger,
}

/// What is asked for, as far as roles go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A claim, or a batch of them.
    Claim,
    /// A reference, or a batch of them.
    Reference,
    /// A retraction.
    Retract,
    /// A new dispute.
    Dispute,
    /// A side's answer in a dispute.
    Respond,
    /// A retracted row comes back.
    Reactivate,
    /// The decision, or escalation, of a dispute in `arbitrate`.
    Arbitrate,
    /// The decision of a dispute in `escalate`.
    ArbitrateEscalated,
    /// A dispute of a set that was dismissed before.
    DisputeDismissed,
    /// A new corpus.
    Onboard,
    /// The end of a corpus.
    Decommission,
    /// A corpus stops, or goes on.
    Freeze,
    /// The whole ledger stops, or goes on.
    FreezeLedger,
    /// Claims per minute of a corpus.
    Cap,
    /// Everything recent is pending again.
    Barrier,
    /// An incident begins or ends.
    Incident,
    /// Reconciliation on demand.
    Reconcile,
    /// The clock is right as it stands.
    ConfirmClock,
    /// Another policy: the daemon alone does that, by itself.
    Configure,
    /// More slots for a corpus, proposed.
    ProposeSlots,
    /// More slots for a corpus, signed.
    SignOff,
    /// Lookups, histories and scans of one corpus.
    ReadCorpus,
    /// The same of all corpora; tail, export, audit.
    ReadAll,
    /// How the daemon is: for whoever has a role at all.
    Status,
}

use Action as A;
use Role::{Arbitrator, Auditor, Client, Facilitator, Leadership, Manager, Platform};

/// Who may do what: one row per action. A role that somebody has on some corpora counts on these alone.
pub const PERMISSIONS: &[(Action, &[Role])] = &[
    (A::Claim, &[Client, Facilitator]),
    (A::Reference, &[Client, Facilitator]),
    (A::Retract, &[Client, Facilitator]),
    (A::Dispute, &[Client, Facilitator]),
    (A::Respond, &[Client, Facilitator]),
    (A::Reactivate, &[Facilitator]),
    (A::Arbitrate, &[Arbitrator]),
    (A::ArbitrateEscalated, &[Leadership]),
    (A::DisputeDismissed, &[Arbitrator]),
    (A::Onboard, &[Platform]),
    (A::Decommission, &[Platform]),
    (A::Freeze, &[Facilitator, Platform]),
    (A::FreezeLedger, &[Platform]),
    (A::Cap, &[Facilitator, Platform]),
    (A::Barrier, &[Platform]),
    (A::Incident, &[Platform]),
    (A::Reconcile, &[Platform]),
    (A::ConfirmClock, &[Platform]),
    (A::Configure, &[]),
    (A::ProposeSlots, &[Facilitator, Platform, Manager]),
    (A::SignOff, &[Facilitator, Platform, Manager]),
    (A::ReadCorpus, &Role::ALL),
    (A::ReadAll, &[Platform, Arbitrator, Leadership, Auditor]),
    (A::Status, &Role::ALL),
];

/// [`PERMISSIONS`] as sets, by the action's place.
const ALLOWED: [RoleSet; PERMISSIONS.len()] = {
    let mut sets = [RoleSet(0); PERMISSIONS.len()];
    let mut action = 0;
    while action < PERMISSIONS.len() {
        let (named, roles) = PERMISSIONS[action];
        assert!(named as usize == action, "PERMISSIONS has one row per action, in the actions' order");
        let mut role = 0;
        while role < roles.len() {
            sets[action].0 |= RoleSet::of(roles[role]).0;
            role += 1;
        }
        action += 1;
    }
    sets
};

/// Roles as bits by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct RoleSet(u8);

impl RoleSet {
    const fn of(role: Role) -> RoleSet {
        RoleSet(1 << role.number())
    }

    fn add(&mut self, role: Role) {
        self.0 |= RoleSet::of(role).0;
    }

    fn meets(self, other: RoleSet) -> bool {
        self.0 & other.0 != 0
    }
}

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

/// Who may do what, and the windows, budgets and bounds in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Checked, and in the one order that [`Policy::to_toml`] writes.
    settings: Settings,
    /// By the pair's first corpus, then its second.
    budgets: BTreeMap<String, BTreeMap<String, i64>>,
    by_uid: HashMap<u32, Rights>,
    by_gid: HashMap<u32, Rights>,
}

/// What one user, or one group, may.
#[derive(Debug, Clone, PartialEq, Default)]
struct Rights {
    /// Roles on every corpus.
    everywhere: RoleSet,
    /// Roles on any corpus.
    anywhere: RoleSet,
    /// Roles on these.
    corpora: HashMap<String, RoleSet>,
}

impl Rights {
    fn grant(&mut self, role: Role, corpora: &Corpora) {
        self.anywhere.add(role);
        match corpora {
            Corpora::All => self.everywhere.add(role),
            Corpora::Named(names) => {
                for name in names {
                    self.corpora.entry_ref(name.as_str()).or_default().add(role);
                }
            }
        }
    }

    fn meets(&self, wanted: RoleSet, corpus: Option<&str>) -> bool {
        if self.everywhere.meets(wanted) {
            return true;
        }
        let Some(corpus) = corpus.filter(|_| self.anywhere.meets(wanted)) else { return false };
        self.corpora.get(corpus).is_some_and(|roles| roles.meets(wanted))
    }
}

impl Policy {
    /// This user has every role on every corpus, and nobody else has any.
    pub fn of_owner(uid: u32) -> Policy {
        let grant = |role| Grant { role, corpora: Corpora::All, uids: vec![uid], gids: Vec::new() };
        let settings = Settings { grants: Role::ALL.map(grant).into(), ..Settings::default() };
        Policy::build(settings)
    }

    /// Nobody has a role: what holds before the first `configuration` entry.
    pub fn none() -> Policy {
        Policy::build(Settings::default())
    }

    /// Checks `settings` against the bounds above. The error names the key of the resolved form.
    pub fn new(settings: Settings) -> Result<Policy, String> {
        for (key, value, bounds) in [
            ("reconcile.interval_us", settings.reconcile_interval_us, INTERVAL_US),
            ("reconcile.tolerance_us", settings.tolerance_us, TOLERANCE_US),
            ("reconcile.window_us", settings.default_window_us, WINDOW_US),
            ("reconcile.incident_window_us", settings.incident_window_us, WINDOW_US),
            ("dispute.rate_per_minute", settings.disputes_per_minute, DISPUTES_PER_MINUTE),
            ("retention.years", settings.retention_years, RETENTION_YEARS),
            ("slots.per_quarter", settings.slots_per_quarter, SLOTS_PER_QUARTER),
        ] {
            check_bounds(key, value, &bounds)?;
        }
        let mut pairs = BTreeSet::new();
        for (from, to, window_us) in &settings.budgets {
            check_budget(from, to)?;
            check_bounds("reconcile.budget.window_us", *window_us, &WINDOW_US)?;
            if !pairs.insert((from, to)) {
                return Err(format!("the budget of {from} → {to} is given twice: give it once"));
            }
        }
        let mut granted = 0;
        for grant in &settings.grants {
            check_grant(grant)?;
            granted += granted_pairs(grant);
        }
        if granted > GRANTED_PAIRS_MAX {
            return Err(format!(
                "the roles name {granted} pairs of a user or group and a corpus, and {GRANTED_PAIRS_MAX} are the most: use \
                 groups, or corpora = [\"{ALL_CORPORA}\"]"
            ));
        }
        let policy = Policy::build(settings);
        let bytes = policy.to_toml().len();
        if bytes > POLICY_BYTES_MAX {
            return Err(format!(
                "resolved, the configuration has {bytes} bytes, and {POLICY_BYTES_MAX} are the most: use groups, or name \
                 fewer pairs"
            ));
        }
        Ok(policy)
    }

    /// Settings that are known to be good, put into the one order and indexed.
    fn build(mut settings: Settings) -> Policy {
        settings.grants = in_order(&settings.grants);
        settings.budgets.sort();
        let mut budgets: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
        for (from, to, window_us) in &settings.budgets {
            budgets.entry(from.clone()).or_default().insert(to.clone(), *window_us);
        }
        let (mut by_uid, mut by_gid) = (HashMap::<u32, Rights>::new(), HashMap::<u32, Rights>::new());
        for grant in &settings.grants {
            for uid in &grant.uids {
                by_uid.entry(*uid).or_default().grant(grant.role, &grant.corpora);
            }
            for gid in &grant.gids {
                by_gid.entry(*gid).or_default().grant(grant.role, &grant.corpora);
            }
        }
        Policy { settings, budgets, by_uid, by_gid }
    }

    /// Reads the resolved form. The error says line and key, and what would be right.
    pub fn parse(toml: &str) -> Result<Policy, String> {
        if toml.len() > POLICY_BYTES_MAX {
            return Err(format!("the configuration has {} bytes, and {POLICY_BYTES_MAX} are the most", toml.len()));
        }
        let raw: RawPolicy =
            toml::from_str(toml).map_err(|error| at_line(toml, error.span(), error.message().trim()))?;
        let mut settings = Settings::default();
        if let Some(reconcile) = raw.reconcile {
            settings.reconcile_interval_us = within(
                toml,
                "reconcile.interval_us",
                reconcile.interval_us,
                settings.reconcile_interval_us,
                &INTERVAL_US,
            )?;
            settings.tolerance_us =
                within(toml, "reconcile.tolerance_us", reconcile.tolerance_us, settings.tolerance_us, &TOLERANCE_US)?;
            settings.default_window_us =
                within(toml, "reconcile.window_us", reconcile.window_us, settings.default_window_us, &WINDOW_US)?;
            settings.incident_window_us = within(
                toml,
                "reconcile.incident_window_us",
                reconcile.incident_window_us,
                settings.incident_window_us,
                &WINDOW_US,
            )?;
            for budget in reconcile.budget {
                let span = budget.span();
                let RawBudget { from, to, window_us } = budget.into_inner();
                check_budget(&from, &to).map_err(|e| at_line(toml, Some(span), &e))?;
                let window_us = within(toml, "reconcile.budget.window_us", Some(window_us), 0, &WINDOW_US)?;
                settings.budgets.push((from, to, window_us));
            }
        }
        if let Some(dispute) = raw.dispute {
            settings.disputes_per_minute = within(
                toml,
                "dispute.rate_per_minute",
                dispute.rate_per_minute,
                settings.disputes_per_minute,
                &DISPUTES_PER_MINUTE,
            )?;
        }
        if let Some(retention) = raw.retention {
            settings.retention_years =
                within(toml, "retention.years", retention.years, settings.retention_years, &RETENTION_YEARS)?;
        }
        if let Some(slots) = raw.slots {
            settings.slots_per_quarter =
                within(toml, "slots.per_quarter", slots.per_quarter, settings.slots_per_quarter, &SLOTS_PER_QUARTER)?;
        }
        for role in raw.role {
            let span = role.span();
            let RawRole { role, corpora, uids, gids } = role.into_inner();
            let grant = corpora_of(role, corpora).map(|corpora| Grant { role, corpora, uids, gids });
            let checked = grant.and_then(|grant| check_grant(&grant).map(|()| grant));
            settings.grants.push(checked.map_err(|e| at_line(toml, Some(span), &e))?);
        }
        Policy::new(settings)
    }

    /// The resolved form. Equal policies have equal texts, and [`Policy::parse`] makes an equal policy of it.
    pub fn to_toml(&self) -> String {
        let s = &self.settings;
        let mut out = String::new();
        let mut section = |name: &str, keys: &[(&str, &dyn Display)]| {
            let separator = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{separator}{name}");
            for (key, value) in keys {
                let _ = writeln!(out, "{key} = {value}");
            }
        };
        section(
            "[reconcile]",
            &[
                ("interval_us", &s.reconcile_interval_us),
                ("tolerance_us", &s.tolerance_us),
                ("window_us", &s.default_window_us),
                ("incident_window_us", &s.incident_window_us),
            ],
        );
        for (from, to, window_us) in &s.budgets {
            let (from, to) = (quoted(from), quoted(to));
            section("[[reconcile.budget]]", &[("from", &from), ("to", &to), ("window_us", window_us)]);
        }
        section("[dispute]", &[("rate_per_minute", &s.disputes_per_minute)]);
        section("[retention]", &[("years", &s.retention_years)]);
        section("[slots]", &[("per_quarter", &s.slots_per_quarter)]);
        for grant in &s.grants {
            let (role, uids, gids) = (quoted(grant.role.name()), list(&grant.uids), list(&grant.gids));
            let corpora = match &grant.corpora {
                Corpora::All => list(&[quoted(ALL_CORPORA)]),
                Corpora::Named(names) => list(&names.iter().map(|name| quoted(name)).collect::<Vec<_>>()),
            };
            let mut keys: Vec<(&str, &dyn Display)> = vec![("role", &role)];
            if grant.role.reach() != Reach::Ledger {
                keys.push(("corpora", &corpora));
            }
            keys.extend([("uids", &uids as &dyn Display), ("gids", &gids)]);
            section("[[role]]", &keys);
        }
        out
    }

    /// Whether `who` may do `action`. `None` for what concerns no single corpus: a role then counts if it is held on all
    /// of them. [`Action::Status`] takes a role on any.
    pub fn allows(&self, who: Principal, action: Action, corpus: Option<&str>) -> bool {
        let wanted = ALLOWED[action as usize];
        if action == Action::Status {
            return self.rights(who).any(|rights| rights.anywhere.meets(wanted));
        }
        self.rights(who).any(|rights| rights.meets(wanted, corpus))
    }

    /// Whether `who` has `role` on `corpus`; with `None`, on all of them.
    pub fn acts_as(&self, who: Principal, role: Role, corpus: Option<&str>) -> bool {
        self.rights(who).any(|rights| rights.meets(RoleSet::of(role), corpus))
    }

    fn rights(&self, who: Principal) -> impl Iterator<Item = &Rights> {
        let by_uid = self.by_uid.get(&who.uid);
        by_uid.into_iter().chain(std::iter::once_with(move || self.by_gid.get(&who.gid)).flatten())
    }

    /// How long a row of `from` stays pending: the largest budget over its pairs with `others`, or the default where there
    /// are none.
    pub fn window_us<'a>(&self, from: &str, others: impl Iterator<Item = &'a str>, incident: bool) -> i64 {
        let default_us = self.default_us(incident);
        let Some(budgets) = self.budgets.get(from) else { return default_us };
        let pairs = others.filter(|other| *other != from);
        pairs.map(|to| budgets.get(to).copied().unwrap_or(default_us)).max().unwrap_or(default_us)
    }

    /// How soon a row of `from` is to be visible at `to`.
    pub fn budget_us(&self, from: &str, to: &str, incident: bool) -> i64 {
        let configured = self.budgets.get(from).and_then(|budgets| budgets.get(to));
        configured.copied().unwrap_or_else(|| self.default_us(incident))
    }

    fn default_us(&self, incident: bool) -> i64 {
        if incident { self.settings.incident_window_us } else { self.settings.default_window_us }
    }

    /// No window of this policy is longer.
    pub fn window_max_us(&self) -> i64 {
        let budgets = self.settings.budgets.iter().map(|(_, _, window_us)| *window_us);
        budgets.fold(self.default_us(false).max(self.default_us(true)), i64::max)
    }

    /// How far apart `occurred_at` of one event's claims may be.
    pub fn tolerance_us(&self) -> i64 {
        self.settings.tolerance_us
    }

    /// How often reconciliation runs by itself.
    pub fn reconcile_interval_us(&self) -> i64 {
        self.settings.reconcile_interval_us
    }

    /// Full years that rows and entries are kept after the end of their quarter.
    pub fn retention_years(&self) -> u16 {
        self.settings.retention_years as u16
    }

    /// Slots of a corpus in a quarter, where no increase says otherwise.
    pub fn slots_per_quarter(&self) -> u64 {
        self.settings.slots_per_quarter as u64
    }

    /// From one deferred dispute to the next.
    pub fn dispute_interval_us(&self) -> i64 {
        MINUTE_US / self.settings.disputes_per_minute
    }

    /// What it is made of, in the order of [`Policy::to_toml`].
    pub fn settings(&self) -> &Settings {
        &self.settings
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

fn check_bounds(key: &str, value: i64, bounds: &RangeInclusive<i64>) -> Result<(), String> {
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
fn in_order(grants: &[Grant]) -> Vec<Grant> {
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

/// A corpus name, a role's name or `*`: nothing that needs an escape.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn list<T: Display>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(T::to_string).collect();
    format!("[{}]", values.join(", "))
}

/// A setting, or its default where it is absent.
fn within(
    toml: &str,
    key: &str,
    value: Option<Spanned<i64>>,
    default: i64,
    bounds: &RangeInclusive<i64>,
) -> Result<i64, String> {
    let Some(value) = value else { return Ok(default) };
    check_bounds(key, *value.get_ref(), bounds).map_err(|error| at_line(toml, Some(value.span()), &error))?;
    Ok(value.into_inner())
}

/// `message` with the line that it is about, and what stands there.
pub fn at_line(text: &str, span: Option<Range<usize>>, message: &str) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else { return message.to_owned() };
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or("").trim();
    if line.is_empty() { format!("line {number}: {message}") } else { format!("line {number} (`{line}`): {message}") }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    reconcile: Option<RawReconcile>,
    dispute: Option<RawDispute>,
    retention: Option<RawRetention>,
    slots: Option<RawSlots>,
    #[serde(default)]
    role: Vec<Spanned<RawRole>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReconcile {
    interval_us: Option<Spanned<i64>>,
    tolerance_us: Option<Spanned<i64>>,
    window_us: Option<Spanned<i64>>,
    incident_window_us: Option<Spanned<i64>>,
    #[serde(default)]
    budget: Vec<Spanned<RawBudget>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBudget {
    from: String,
    to: String,
    window_us: Spanned<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDispute {
    rate_per_minute: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetention {
    years: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSlots {
    per_quarter: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRole {
    role: Role,
    corpora: Option<Vec<String>>,
    #[serde(default)]
    uids: Vec<u32>,
    #[serde(default)]
    gids: Vec<u32>,
}

#[cfg(test)]
mod tests;
