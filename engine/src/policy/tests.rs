//! The table of roles row by row, budgets, and the text of a policy.

use super::settings::{DISPUTES_PER_MINUTE, INTERVAL_US, RETENTION_YEARS, SLOTS_PER_QUARTER, TOLERANCE_US, WINDOW_US};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const OWN: &str = "customer";
const OTHER: &str = "compliance";

fn user(uid: u32) -> Principal {
    Principal { uid, gid: 900_000, pid: 1 }
}

fn policy(toml: &str) -> Policy {
    Policy::parse(toml).unwrap()
}

/// One user per role, whose uid is the role's number; roles of corpora are held on `OWN`.
fn one_user_per_role() -> Policy {
    let grants = Role::ALL.map(|role| {
        let corpora = match role.reach() {
            Reach::Ledger => Corpora::All,
            Reach::Corpora | Reach::CorporaOrAll => Corpora::Named([OWN.to_owned()].into()),
        };
        Grant { role, corpora, uids: vec![u32::from(role.number())], gids: vec![] }
    });
    Policy::new(Settings { grants: grants.into(), ..Settings::default() }).unwrap()
}

/// Each role by its letter where the action is allowed on the own corpus: client, facilitator, platform, manager,
/// arbitrator, leadership, auditor.
fn letters(policy: &Policy, action: Action, corpus: Option<&str>) -> String {
    let letter = |role: &Role| {
        let allowed = policy.allows(user(u32::from(role.number())), action, corpus);
        if allowed { "cfpmalu".as_bytes()[usize::from(role.number())] as char } else { '-' }
    };
    Role::ALL.iter().map(letter).collect()
}

#[test]
fn each_role_may_what_the_table_says() {
    let policy = one_user_per_role();
    // On the role's own corpus, on another one, on none.
    let rows = [
        (A::Claim, "cf-----", "-------", "-------"),
        (A::Reference, "cf-----", "-------", "-------"),
        (A::Retract, "cf-----", "-------", "-------"),
        (A::Dispute, "cf-----", "-------", "-------"),
        (A::Respond, "cf-----", "-------", "-------"),
        (A::Reactivate, "-f-----", "-------", "-------"),
        (A::Arbitrate, "----a--", "----a--", "----a--"),
        (A::ArbitrateEscalated, "-----l-", "-----l-", "-----l-"),
        (A::DisputeDismissed, "----a--", "----a--", "----a--"),
        (A::Onboard, "--p----", "--p----", "--p----"),
        (A::Decommission, "--p----", "--p----", "--p----"),
        (A::Freeze, "-fp----", "--p----", "--p----"),
        (A::FreezeLedger, "--p----", "--p----", "--p----"),
        (A::Cap, "-fp----", "--p----", "--p----"),
        (A::Barrier, "--p----", "--p----", "--p----"),
        (A::Incident, "--p----", "--p----", "--p----"),
        (A::Reconcile, "--p----", "--p----", "--p----"),
        (A::ConfirmClock, "--p----", "--p----", "--p----"),
        (A::Configure, "-------", "-------", "-------"),
        (A::ProposeSlots, "-fpm---", "--p----", "--p----"),
        (A::SignOff, "-fpm---", "--p----", "--p----"),
        (A::ReadCorpus, "cfpmalu", "--p-alu", "--p-alu"),
        (A::ReadAll, "--p-alu", "--p-alu", "--p-alu"),
        (A::Status, "cfpmalu", "cfpmalu", "cfpmalu"),
        (A::Hold, "--p----", "--p----", "--p----"),
    ];
    assert_eq!(rows.len(), PERMISSIONS.len());
    for (action, own, other, none) in rows {
        assert_eq!(letters(&policy, action, Some(OWN)), own, "{action:?} on the own corpus");
        assert_eq!(letters(&policy, action, Some(OTHER)), other, "{action:?} on another corpus");
        assert_eq!(letters(&policy, action, None), none, "{action:?} on no corpus");
        assert!(!policy.allows(user(77), action, Some(OWN)), "{action:?} by nobody");
    }
}

#[test]
fn nobody_may_anything_before_the_first_configuration() {
    for (action, _) in PERMISSIONS {
        assert!(!Policy::none().allows(user(0), *action, Some(OWN)), "{action:?}");
    }
}

#[test]
fn the_owner_may_all_but_configure_and_nobody_else_anything() {
    let policy = Policy::of_owner(1000);
    for (action, _) in PERMISSIONS {
        for corpus in [Some(OWN), None] {
            assert_eq!(policy.allows(user(1000), *action, corpus), *action != A::Configure, "{action:?}");
            assert!(!policy.allows(user(0), *action, corpus), "{action:?}");
        }
    }
    for role in Role::ALL {
        assert!(policy.acts_as(user(1000), role, Some(OWN)));
        assert!(!policy.acts_as(user(1001), role, Some(OWN)));
    }
}

#[test]
fn roles_are_held_by_group_too_and_add_up() {
    let policy = policy(
        r#"
        [[role]]
        role = "client"
        corpora = ["customer"]
        uids = [5]
        [[role]]
        role = "facilitator"
        corpora = ["compliance"]
        gids = [7]
        "#,
    );
    let both = Principal { uid: 5, gid: 7, pid: 1 };
    assert!(policy.allows(both, A::Claim, Some(OWN)) && policy.allows(both, A::Claim, Some(OTHER)));
    assert!(policy.allows(both, A::Reactivate, Some(OTHER)) && !policy.allows(both, A::Reactivate, Some(OWN)));
    assert!(policy.acts_as(both, Role::Client, Some(OWN)) && !policy.acts_as(both, Role::Client, Some(OTHER)));
    assert!(!policy.acts_as(both, Role::Client, None));
    let stranger = Principal { uid: 7, gid: 5, pid: 1 };
    assert!(!policy.allows(stranger, A::Status, None));
}

#[test]
fn numbers_and_names_of_roles() {
    for (number, role) in Role::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(role.number()), number);
        assert_eq!(Role::from_number(role.number()), Some(role));
    }
    assert_eq!(Role::from_number(7), None);
}

#[test]
fn the_window_is_the_largest_budget_of_the_pairs_that_start_at_the_corpus() {
    let policy = policy(
        r#"
        [[reconcile.budget]]
        from = "customer"
        to = "compliance"
        window_us = 1200000000
        [[reconcile.budget]]
        from = "compliance"
        to = "customer"
        window_us = 60000000
        "#,
    );
    let minutes = |us: i64| us / MINUTE_US;
    let window =
        |from: &str, others: &[&str], incident| minutes(policy.window_us(from, others.iter().copied(), incident));
    assert_eq!(window("customer", &["compliance", "legal"], false), 20);
    assert_eq!(window("customer", &["compliance", "legal"], true), 20);
    assert_eq!(window("customer", &["legal"], false), 5, "a pair that nobody forms has no say");
    assert_eq!(window("compliance", &["customer"], false), 1);
    assert_eq!(window("compliance", &["customer"], true), 1, "what is configured for the pair holds in an incident");
    assert_eq!(window("compliance", &["customer", "legal"], true), 15);
    assert_eq!(window("compliance", &["compliance"], false), 5, "a corpus is no pair with itself");
    assert_eq!(window("legal", &[], false), 5);
    assert_eq!(window("legal", &["customer"], true), 15);
    assert_eq!(minutes(policy.budget_us("customer", "compliance", true)), 20);
    assert_eq!(minutes(policy.budget_us("customer", "legal", true)), 15);
    assert_eq!(minutes(policy.window_max_us()), 20);
}

#[test]
fn defaults() {
    let policy = policy("");
    assert_eq!(policy, Policy::none());
    assert_eq!(policy.window_max_us(), 15 * MINUTE_US);
    assert_eq!((policy.tolerance_us(), policy.reconcile_interval_us()), (5 * MINUTE_US, 5 * MINUTE_US));
    assert_eq!((policy.retention_years(), policy.slots_per_quarter()), (4, 50_000));
    assert_eq!(policy.dispute_interval_us(), MINUTE_US);
}

#[test]
fn the_same_roles_have_one_text_however_they_were_given() {
    let apart = policy(
        r#"
        [[role]]
        role = "client"
        corpora = ["b"]
        uids = [2, 1]
        [[role]]
        role = "client"
        corpora = ["a"]
        uids = [1, 2, 2]
        [[role]]
        role = "manager"
        corpora = ["a"]
        gids = [3]
        [[role]]
        role = "manager"
        gids = [3]
        "#,
    );
    let together = policy(
        r#"
        [[role]]
        role = "manager"
        corpora = ["*"]
        gids = [3]
        [[role]]
        role = "client"
        corpora = ["a", "b"]
        uids = [1, 2]
        "#,
    );
    assert_eq!(apart, together);
    assert_eq!(apart.to_toml(), together.to_toml());
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let client = |rest: &str| format!("[[role]]\nrole = \"client\"\n{rest}\n");
    for (toml, says) in [
        ("[reconcile]\nwindow = 5".to_owned(), "line 2 (`window = 5`): unknown field `window`, expected one of"),
        ("[retention]\nyears = 0".to_owned(), "line 2 (`years = 0`): retention.years is 0, and must be 1 to 1000"),
        ("[retention]\nyears = \"4\"".to_owned(), "line 2 (`years = \"4\"`): invalid type"),
        ("[slots]\n\nper_quarter = 0".to_owned(), "line 3 (`per_quarter = 0`): slots.per_quarter is 0"),
        ("[dispute]\nrate_per_minute = -1".to_owned(), "dispute.rate_per_minute is -1, and must be 1 to"),
        ("[reconcile]\ntolerance_us = -1".to_owned(), "reconcile.tolerance_us is -1, and must be 0 to"),
        ("retention = 4 4".to_owned(), "line 1 (`retention = 4 4`)"),
        ("[[role]]\nrole = \"boss\"\nuids = [1]".to_owned(), "line 2 (`role = \"boss\"`): unknown variant `boss`"),
        (
            "[role]\nrole = \"client\"".to_owned(),
            "line 1 (`[role]`): invalid type: map, expected a sequence: there may be",
        ),
        ("[[role]]\nuids = [1]".to_owned(), "missing field `role`"),
        (client("uids = [1]"), "line 1 (`[[role]]`): the role client needs the key 'corpora'"),
        (client("corpora = []\nuids = [1]"), "'corpora' of the role client is empty"),
        (client("corpora = [\"A\"]\nuids = [1]"), "\"A\", which is no corpus name"),
        (client("corpora = [\"*\", \"a\"]\nuids = [1]"), "names all and some"),
        (client("corpora = [\"a\"]"), "given to nobody"),
        (client("corpora = [\"a\"]\nuids = [4294967295]"), "which nobody can have"),
        (client("corpora = [\"a\"]\nuids = [-1]"), "line 4 (`uids = [-1]`)"),
        (client("corpora = [\"a\"]\nusers = [\"x\"]\nuids = [1]"), "unknown field `users`"),
        ("[[role]]\nrole = \"auditor\"\ncorpora = [\"a\"]\nuids = [1]".to_owned(), "is for the whole ledger"),
        ("[[reconcile.budget]]\nfrom = \"a\"\nto = \"a\"\nwindow_us = 5000000".to_owned(), "name two"),
        ("[[reconcile.budget]]\nfrom = \"a\"\nto = \"b\"\nwindow_us = 5".to_owned(), "line 4 (`window_us = 5`)"),
        ("[[reconcile.budget]]\nfrom = \"a\"\nto = \"b\"\nwindow_us = 5000000\n".repeat(2), "given twice"),
        (" ".repeat(POLICY_BYTES_MAX + 1), "are the most"),
    ] {
        let error = Policy::parse(&toml).unwrap_err();
        assert!(error.contains(says), "{toml}\n  says: {error}\n  not:  {says}");
    }
}

#[test]
fn roles_of_many_on_many_are_bounded() {
    let names: BTreeSet<String> = (0..300).map(|n| format!("corpus-{n}")).collect();
    let settings = |users: u32| Settings {
        grants: vec![Grant {
            role: Role::Client,
            corpora: Corpora::Named(names.clone()),
            uids: (0..users).collect(),
            gids: vec![],
        }],
        ..Settings::default()
    };
    assert!(Policy::new(settings(200)).is_ok());
    assert!(Policy::new(settings(300)).unwrap_err().contains("pairs of a user or group and a corpus"));
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    let ids = || proptest::collection::vec(0u32..6, 0..4);
    let names = proptest::collection::btree_set("[a-c]{1,2}", 1..3);
    let grant = (0u8..7, names, any::<bool>(), ids(), ids()).prop_map(|(role, names, all, uids, mut gids)| {
        let role = Role::from_number(role).unwrap();
        let all = all || role.reach() == Reach::Ledger;
        if uids.is_empty() && gids.is_empty() {
            gids.push(1);
        }
        Grant { role, corpora: if all { Corpora::All } else { Corpora::Named(names) }, uids, gids }
    });
    proptest::collection::vec(grant, 0..8)
}

fn settings() -> impl Strategy<Value = Settings> {
    let budgets = proptest::collection::btree_map(("[a-c]{1,2}", "[d-f]{1,2}"), WINDOW_US, 0..5);
    let numbers =
        (INTERVAL_US, TOLERANCE_US, WINDOW_US, WINDOW_US, DISPUTES_PER_MINUTE, RETENTION_YEARS, SLOTS_PER_QUARTER);
    (grants(), budgets, numbers).prop_map(|(grants, budgets, numbers)| Settings {
        grants,
        reconcile_interval_us: numbers.0,
        tolerance_us: numbers.1,
        default_window_us: numbers.2,
        incident_window_us: numbers.3,
        budgets: budgets.into_iter().map(|((from, to), us)| (from, to, us)).collect(),
        disputes_per_minute: numbers.4,
        retention_years: numbers.5,
        slots_per_quarter: numbers.6,
    })
}

proptest! {
    #[test]
    fn a_policy_survives_its_text(settings in settings()) {
        let policy = Policy::new(settings).unwrap();
        let text = policy.to_toml();
        let again = Policy::parse(&text).unwrap();
        prop_assert_eq!(&again, &policy);
        prop_assert_eq!(again.to_toml(), text);
    }

    /// Whatever order and grouping the grants have, each holder has exactly the roles that some grant gives.
    #[test]
    fn roles_are_what_the_grants_say(grants in grants(), uid in 0u32..7, gid in 0u32..7, corpus in "[a-c]{1,2}") {
        let policy = Policy::new(Settings { grants: grants.clone(), ..Settings::default() }).unwrap();
        let who = Principal { uid, gid, pid: 1 };
        for role in Role::ALL {
            let expected = grants.iter().any(|grant| {
                let here = match &grant.corpora {
                    Corpora::All => true,
                    Corpora::Named(names) => names.contains(&corpus),
                };
                grant.role == role && here && (grant.uids.contains(&uid) || grant.gids.contains(&gid))
            });
            prop_assert_eq!(policy.acts_as(who, role, Some(&corpus)), expected);
        }
    }
}
