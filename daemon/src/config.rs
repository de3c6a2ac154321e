//! The configuration file: TOML for people, resolved to the [`Policy`] that the ledger logs.
//!
//! `docs/claimd.toml` shows every key. Users are looked up here and only here: what is logged has numbers.

use claim_engine::policy::settings::{
    Corpora, DISPUTES_PER_MINUTE, Grant, INTERVAL_US, RETENTION_YEARS, SLOTS_PER_QUARTER, Settings, TOLERANCE_US,
    WINDOW_US, check_budget, check_grant, corpora_of,
};
use claim_engine::policy::text::{at_line, unreadable, within};
use claim_engine::policy::{Policy, Role};
use jiff::SignedDuration;
use nix::unistd::User;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;
use toml::Spanned;

/// Longest configuration file, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Reads the file and looks its users up on this machine. The error names the file, and line and key where it can.
pub fn read(path: &Path) -> Result<Policy, String> {
    let in_file = |error: String| format!("{}: {error}", path.display());
    let text = text(path).map_err(in_file)?;
    resolve(&text, &uid_of).map_err(in_file)
}

fn text(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|e| format!("the configuration can't be opened: {e}"))?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| format!("the configuration can't be read: {e}"))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("the configuration has more than {FILE_BYTES_MAX} bytes, which is the most"));
    }
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        format!("the byte at offset {offset} is not UTF-8; write the file as UTF-8 text")
    })
}

/// The user's number, `None` where this machine knows no such user.
fn uid_of(name: &str) -> Result<Option<u32>, String> {
    let found = User::from_name(name).map_err(|e| format!("the user {name:?} can't be looked up: {e}"))?;
    Ok(found.map(|user| user.uid.as_raw()))
}

/// What a policy that can be used is likely not meant to say.
pub fn doubt(policy: &Policy) -> Option<&'static str> {
    let grants = &policy.settings().grants;
    if grants.is_empty() {
        return Some(
            "nobody has any role: every request will be refused as FORBIDDEN; name users in [[role]] sections",
        );
    }
    let is_led = grants.iter().any(|grant| grant.role == Role::Platform);
    (!is_led).then_some("nobody has the role platform: corpora can't be onboarded, and the clock can't be confirmed")
}

/// Makes a policy of the file's text; `uid_of` knows the users.
pub fn resolve(text: &str, uid_of: &dyn Fn(&str) -> Result<Option<u32>, String>) -> Result<Policy, String> {
    let file: ConfigFile = toml::from_str(text).map_err(|error| unreadable(text, &error))?;
    let mut settings = Settings::default();
    if let Some(reconcile) = file.reconcile {
        let us = |key, value, default, bounds| duration_within(text, key, value, default, bounds);
        let s = &mut settings;
        s.reconcile_interval_us = us("reconcile.interval", reconcile.interval, s.reconcile_interval_us, &INTERVAL_US)?;
        s.tolerance_us = us("reconcile.tolerance", reconcile.tolerance, s.tolerance_us, &TOLERANCE_US)?;
        s.default_window_us = us("reconcile.window", reconcile.window, s.default_window_us, &WINDOW_US)?;
        s.incident_window_us =
            us("reconcile.incident_window", reconcile.incident_window, s.incident_window_us, &WINDOW_US)?;
        s.budgets = budgets(text, reconcile.budget)?;
    }
    if let Some(dispute) = file.dispute {
        let default = settings.disputes_per_minute;
        settings.disputes_per_minute = within(text, "dispute.rate", dispute.rate, default, &DISPUTES_PER_MINUTE)?;
    }
    if let Some(retention) = file.retention {
        let default = settings.retention_years;
        settings.retention_years = within(text, "retention.years", retention.years, default, &RETENTION_YEARS)?;
    }
    if let Some(slots) = file.slots {
        let default = settings.slots_per_quarter;
        settings.slots_per_quarter = within(text, "slots.per_quarter", slots.per_quarter, default, &SLOTS_PER_QUARTER)?;
    }
    settings.grants = file.role.into_iter().map(|role| grant(text, role, uid_of)).collect::<Result<_, _>>()?;
    Policy::new(settings)
}

fn budgets(text: &str, sections: Vec<Spanned<BudgetSection>>) -> Result<Vec<(String, String, i64)>, String> {
    let mut pairs = BTreeSet::new();
    let mut budgets = Vec::new();
    for section in sections {
        let span = section.span();
        let BudgetSection { from, to, window } = section.into_inner();
        check_budget(&from, &to).map_err(|e| at_line(text, Some(span.clone()), &e))?;
        if !pairs.insert((from.clone(), to.clone())) {
            let error = format!("the budget of {from} → {to} stands above already: give it once");
            return Err(at_line(text, Some(span), &error));
        }
        let window_us = duration_within(text, "reconcile.budget.window", Some(window), 0, &WINDOW_US)?;
        budgets.push((from, to, window_us));
    }
    Ok(budgets)
}

fn grant(
    text: &str,
    section: Spanned<RoleSection>,
    uid_of: &dyn Fn(&str) -> Result<Option<u32>, String>,
) -> Result<Grant, String> {
    let span = section.span();
    let RoleSection { role, corpora, users, mut uids, gids } = section.into_inner();
    let corpora: Corpora = corpora_of(role, corpora).map_err(|e| at_line(text, Some(span.clone()), &e))?;
    for user in users {
        let span = user.span();
        let name = user.into_inner();
        let found = uid_of(&name).and_then(|uid| {
            uid.ok_or_else(|| {
                format!("there is no user {name:?} on this machine; name one that `getent passwd` shows, or give a number in 'uids'")
            })
        });
        uids.push(found.map_err(|e| at_line(text, Some(span), &e))?);
    }
    let grant = Grant { role, corpora, uids, gids };
    check_grant(&grant).map_err(|e| at_line(text, Some(span), &e))?;
    Ok(grant)
}

/// A duration in microseconds, or its default where it is absent.
fn duration_within(
    text: &str,
    key: &str,
    value: Option<Spanned<Duration>>,
    default_us: i64,
    bounds_us: &RangeInclusive<i64>,
) -> Result<i64, String> {
    let Some(value) = value else { return Ok(default_us) };
    let duration = value.get_ref().0;
    match i64::try_from(duration.as_micros()) {
        Ok(us) if bounds_us.contains(&us) => Ok(us),
        _ => {
            let (least, most) = (spelled(*bounds_us.start()), spelled(*bounds_us.end()));
            let error = format!("{key} is {duration:#}, and must be {least} to {most}");
            Err(at_line(text, Some(value.span()), &error))
        }
    }
}

/// Microseconds as people write them: `15m`.
pub fn spelled(us: i64) -> String {
    format!("{:#}", SignedDuration::from_micros(us))
}

/// A duration as people write it.
#[derive(Debug, Clone, Copy)]
struct Duration(SignedDuration);

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"5m\" or \"1h 30m\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
                let parsed = text.parse().map(Duration);
                parsed.map_err(|_| {
                    E::custom(format!("{text:?} is no duration; write it like \"90s\", \"5m\" or \"1h 30m\""))
                })
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a configuration")]
struct ConfigFile {
    reconcile: Option<ReconcileSection>,
    dispute: Option<DisputeSection>,
    retention: Option<RetentionSection>,
    slots: Option<SlotsSection>,
    #[serde(default)]
    role: Vec<Spanned<RoleSection>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [reconcile]")]
struct ReconcileSection {
    interval: Option<Spanned<Duration>>,
    tolerance: Option<Spanned<Duration>>,
    window: Option<Spanned<Duration>>,
    incident_window: Option<Spanned<Duration>>,
    #[serde(default)]
    budget: Vec<Spanned<BudgetSection>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a section [[reconcile.budget]]")]
struct BudgetSection {
    from: String,
    to: String,
    window: Spanned<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [dispute]")]
struct DisputeSection {
    rate: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [retention]")]
struct RetentionSection {
    years: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the section [slots]")]
struct SlotsSection {
    per_quarter: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a section [[role]]")]
struct RoleSection {
    role: Role,
    corpora: Option<Vec<String>>,
    #[serde(default)]
    users: Vec<Spanned<String>>,
    #[serde(default)]
    uids: Vec<u32>,
    #[serde(default)]
    gids: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_engine::log::entry::Principal;
    use claim_engine::policy::Action;

    const EXAMPLE: &str = include_str!("../../docs/claimd.toml");

    /// A machine with two users.
    fn known(name: &str) -> Result<Option<u32>, String> {
        Ok([("root", 0), ("svc-customer", 2001)].iter().find(|(known, _)| *known == name).map(|(_, uid)| *uid))
    }

    fn user(uid: u32) -> Principal {
        Principal { uid, gid: 900_000, pid: 1 }
    }

    #[test]
    fn the_example_means_what_it_says() {
        let policy = resolve(EXAMPLE, &known).unwrap();
        let defaults = Policy::none();
        assert_eq!(policy.reconcile_interval_us(), defaults.reconcile_interval_us());
        assert_eq!(policy.tolerance_us(), defaults.tolerance_us());
        assert_eq!(policy.budget_us("a", "b", false), defaults.budget_us("a", "b", false));
        assert_eq!(policy.budget_us("a", "b", true), defaults.budget_us("a", "b", true));
        assert_eq!(policy.budget_us("customer", "compliance", false), 20 * 60 * 1_000_000);
        assert_eq!(policy.dispute_interval_us(), defaults.dispute_interval_us());
        assert_eq!(policy.retention_years(), defaults.retention_years());
        assert_eq!(policy.slots_per_quarter(), defaults.slots_per_quarter());
        for role in Role::ALL {
            assert!(policy.settings().grants.iter().any(|grant| grant.role == role), "the example has no {role:?}");
        }
        assert!(policy.allows(user(0), Action::Onboard, None));
        assert!(policy.allows(user(2002), Action::Claim, Some("customer")));
        assert!(!policy.allows(user(2002), Action::Claim, Some("compliance")));
        assert!(policy.allows(Principal { uid: 1, gid: 2100, pid: 1 }, Action::Claim, Some("compliance")));
        assert!(!policy.allows(user(3000), Action::Status, None));
    }

    #[test]
    fn an_empty_file_gives_nobody_a_role() {
        let empty = resolve("", &known).unwrap();
        assert_eq!(empty, Policy::none());
        assert!(doubt(&empty).unwrap().starts_with("nobody has any role"));
        let unled = resolve("[[role]]\nrole = \"auditor\"\nuids = [7]", &known).unwrap();
        assert!(doubt(&unled).unwrap().starts_with("nobody has the role platform"));
        assert_eq!(doubt(&resolve(EXAMPLE, &known).unwrap()), None);
    }

    #[test]
    fn users_become_numbers() {
        let named = resolve("[[role]]\nrole = \"auditor\"\nusers = [\"svc-customer\"]\nuids = [7]", &known).unwrap();
        let numbered = resolve("[[role]]\nrole = \"auditor\"\nuids = [7, 2001]", &known).unwrap();
        assert_eq!(named, numbered);
        assert_eq!(Policy::parse(&named.to_toml()).unwrap(), named);
    }

    #[test]
    fn durations() {
        let window = |text: &str| {
            let policy = resolve(&format!("[reconcile]\nwindow = {text}"), &known)?;
            Ok::<_, String>(policy.budget_us("a", "b", false) / 1_000_000)
        };
        assert_eq!(window("\"90s\""), Ok(90));
        assert_eq!(window("\"5m\""), Ok(300));
        assert_eq!(window("\"1h 30m\""), Ok(5_400));
        assert_eq!(window("\"24h\""), Ok(86_400));
        assert_eq!(
            window("\"25h\""),
            Err("line 2 (`window = \"25h\"`): reconcile.window is 25h, and must be 1s to 24h".to_owned())
        );
        for wrong in ["\"5\"", "\"\"", "\"five minutes\""] {
            let error = window(wrong).unwrap_err();
            assert!(error.contains("is no duration; write it like \"90s\""), "{error}");
        }
        for wrong in ["\"-5m\"", "\"0s\"", "\"999ms\"", "\"9999999999h\""] {
            assert!(window(wrong).unwrap_err().contains("and must be 1s to 24h"), "{wrong}");
        }
        assert!(window("300").unwrap_err().contains("expected a duration such as \"5m\""));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, says) in [
            ("[reconcile]\nwindw = \"5m\"", "line 2 (`windw = \"5m\"`): unknown field `windw`, expected one of"),
            ("[[role]]\nrole = \"client\"\nuids = [1]", "line 1 (`[[role]]`): the role client needs the key 'corpora'"),
            (
                "[[role]]\nrole = \"platform\"\nusers = [\n  \"root\",\n  \"nobdy\",\n]",
                "line 5 (`\"nobdy\",`): there is no user \"nobdy\" on this machine",
            ),
            ("[[role]]\nrole = \"platform\"", "line 1 (`[[role]]`): the role platform is given to nobody"),
            (
                "[[role]]\nrole = \"root\"\nuids = [0]",
                "line 2 (`role = \"root\"`): unknown variant `root`, expected one of",
            ),
            ("[[role]]\nrole = \"auditor\"\nuids = [\"root\"]", "line 3"),
            ("[dispute]\nrate = 0", "line 2 (`rate = 0`): dispute.rate is 0, and must be 1 to 6000"),
            ("[retention]\nyears = 1001", "retention.years is 1001, and must be 1 to 1000"),
            ("[slots]\nper_quarter = 0", "slots.per_quarter is 0, and must be 1 to"),
            ("[reconcile]\ninterval = \"200h\"", "reconcile.interval is 200h, and must be 1s to 168h"),
            ("[reconcile]\ntolerance = \"25h\"", "reconcile.tolerance is 25h, and must be 0s to 24h"),
            ("[[reconcile.budget]]\nfrom = \"a\"\nto = \"b\"", "missing field `window`"),
            (
                "[[reconcile.budget]]\nfrom = \"a\"\nto = \"B\"\nwindow = \"5m\"",
                "'to' has \"B\", which is no corpus name",
            ),
            (
                "[[reconcile.budget]]\nfrom = \"a\"\nto = \"b\"\nwindow = \"5m\"\n[[reconcile.budget]]\nfrom = \"a\"\nto = \"b\"\nwindow = \"6m\"",
                "line 5 (`[[reconcile.budget]]`): the budget of a → b stands above already",
            ),
            ("[reconcile", "line 1 (`[reconcile`)"),
            ("reconcile = 5", "expected the section [reconcile]"),
        ] {
            let error = resolve(text, &known).unwrap_err();
            assert!(error.contains(says), "{text}\n  says: {error}\n  not:  {says}");
        }
    }

    #[test]
    fn files_that_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("claimd.toml");
        assert!(read(&path).unwrap_err().contains("claimd.toml: the configuration can't be opened"));
        std::fs::write(&path, b"[slots]\n# \xff").unwrap();
        assert!(read(&path).unwrap_err().contains("the byte at offset 10 is not UTF-8"));
        std::fs::write(&path, vec![b' '; FILE_BYTES_MAX + 1]).unwrap();
        assert!(read(&path).unwrap_err().contains("more than"));
        std::fs::write(&path, "[[role]]\nrole = \"platform\"\nusers = [\"root\"]").unwrap();
        assert!(read(&path).unwrap().allows(user(0), Action::Onboard, None));
    }
}
