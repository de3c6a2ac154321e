//! The text of a policy: the resolved configuration, as a `configuration` entry holds it.
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

use super::settings::{
    ALL_CORPORA, Corpora, DISPUTES_PER_MINUTE, Grant, INTERVAL_US, RETENTION_YEARS, SLOTS_PER_QUARTER, Settings,
    TOLERANCE_US, WINDOW_US, check_bounds, check_budget, check_grant, corpora_of,
};
use super::{Policy, Reach, Role};
use serde::Deserialize;
use std::fmt::{Display, Write};
use std::ops::{Range, RangeInclusive};
use toml::Spanned;

/// Longest text of a policy, in bytes.
pub const POLICY_BYTES_MAX: usize = 256 << 10;

impl Policy {
    /// Reads the resolved form. The error says line and key, and what would be right.
    pub fn parse(toml: &str) -> Result<Policy, String> {
        if toml.len() > POLICY_BYTES_MAX {
            return Err(format!("the configuration has {} bytes, and {POLICY_BYTES_MAX} are the most", toml.len()));
        }
        let raw: RawPolicy = toml::from_str(toml).map_err(|error| unreadable(toml, &error))?;
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
}

/// A corpus name, a role's name or `*`: nothing that needs an escape.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn list<T: Display>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(T::to_string).collect();
    format!("[{}]", values.join(", "))
}

/// A setting within `bounds`, or its default where it is absent.
pub fn within(
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

/// What the parser says of `text`, with the line.
pub fn unreadable(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim();
    let single = message == "invalid type: map, expected a sequence";
    let hint = if single { ": there may be several of these, write double brackets as in [[role]]" } else { "" };
    at_line(text, error.span(), &format!("{message}{hint}"))
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
