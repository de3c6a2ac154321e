//! What the configuration decides: who may do what, and the windows, budgets and bounds of the ledger.
//!
//! A [`Policy`] is the *resolved* configuration: users are numbers, every setting has a value. Its text is what a
//! `configuration` entry holds, so that history replays the same whatever the host's user database says later.

pub mod settings;
pub mod text;

use crate::log::entry::Principal;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use settings::{Corpora, Grant, MINUTE_US, Settings, in_order};
use std::collections::BTreeMap;
pub use text::POLICY_BYTES_MAX;

/// What somebody is to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    /// A quarter is kept whatever its age.
    Hold,
}

impl Action {
    /// The number under which it is logged: its place in [`PERMISSIONS`].
    pub fn number(self) -> u8 {
        self as u8
    }

    /// `None` for a number that no action has.
    pub fn from_number(number: u8) -> Option<Action> {
        PERMISSIONS.iter().map(|(action, _)| *action).find(|action| action.number() == number)
    }
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
    (A::Hold, &[Platform]),
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

    /// Checks `settings` against the bounds of [`settings`]. The error names the key of the resolved form.
    pub fn new(settings: Settings) -> Result<Policy, String> {
        settings.check()?;
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

#[cfg(test)]
mod tests;
