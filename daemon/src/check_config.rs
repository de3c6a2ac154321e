//! `claimd check-config`: what a configuration file means, or what is wrong with it.

use crate::config::{self, spelled};
use claim_engine::policy::settings::{ALL_CORPORA, Corpora};
use claim_engine::policy::{Policy, Role};
use comfy_table::{ContentArrangement, Table};
use nix::unistd::{Gid, Group, Uid, User};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Reads the file as `claimd start` does and prints the resolved roles and settings. Success when it can be used, 1
/// otherwise.
pub fn run(path: &Path, json: bool) -> ExitCode {
    let read = config::read(path);
    if let (Some(doubt), false) = (read.as_ref().ok().and_then(config::doubt), json) {
        eprintln!("claimd: {}: careful: {doubt}", path.display());
    }
    let printed = match (&read, json) {
        (Ok(policy), false) => print_tables(policy),
        (Err(error), false) => {
            eprintln!("claimd: {error}");
            Ok(())
        }
        (Ok(policy), true) => print_line(&as_json(policy)),
        (Err(error), true) => print_line(&json!({"ok": false, "error": error})),
    };
    match printed {
        Ok(()) if read.is_ok() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("claimd check-config: cannot print: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_line(value: &Value) -> io::Result<()> {
    writeln!(io::stdout(), "{value}")
}

/// The text of the resolved form comes along: it is what the ledger will log.
fn as_json(policy: &Policy) -> Value {
    let s = policy.settings();
    let roles: Vec<_> = s
        .grants
        .iter()
        .map(|g| json!({"role": g.role.name(), "corpora": names(&g.corpora), "uids": g.uids, "gids": g.gids}))
        .collect();
    let budgets: Vec<_> =
        s.budgets.iter().map(|(from, to, us)| json!({"from": from, "to": to, "window_us": us})).collect();
    json!({
        "ok": true,
        "roles": roles,
        "settings": {
            "reconcile": {
                "interval_us": s.reconcile_interval_us,
                "tolerance_us": s.tolerance_us,
                "window_us": s.default_window_us,
                "incident_window_us": s.incident_window_us,
                "budgets": budgets,
            },
            "dispute": {"rate_per_minute": s.disputes_per_minute},
            "retention": {"years": s.retention_years},
            "slots": {"per_quarter": s.slots_per_quarter},
        },
        "warning": config::doubt(policy),
        "resolved": policy.to_toml(),
    })
}

fn names(corpora: &Corpora) -> Vec<&str> {
    match corpora {
        Corpora::All => vec![ALL_CORPORA],
        Corpora::Named(names) => names.iter().map(String::as_str).collect(),
    }
}

fn print_tables(policy: &Policy) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", roles(policy))?;
    writeln!(out, "{}", settings(policy))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table
}

/// One row per grant, and one for each role that nobody has.
fn roles(policy: &Policy) -> Table {
    let mut table = table(&["role", "corpora", "users", "groups"]);
    for role in Role::ALL {
        let mut held = false;
        for grant in policy.settings().grants.iter().filter(|grant| grant.role == role) {
            held = true;
            let corpora = match &grant.corpora {
                Corpora::All => "all".to_owned(),
                Corpora::Named(_) => names(&grant.corpora).join(", "),
            };
            let users: Vec<_> = grant.uids.iter().map(|uid| user(*uid)).collect();
            let groups: Vec<_> = grant.gids.iter().map(|gid| group(*gid)).collect();
            table.add_row([role.name(), &corpora, &users.join(", "), &groups.join(", ")]);
        }
        if !held {
            table.add_row([role.name(), "", "nobody", ""]);
        }
    }
    table
}

fn settings(policy: &Policy) -> Table {
    let s = policy.settings();
    let mut table = table(&["setting", "value"]);
    table.add_row(["reconcile.interval", &spelled(s.reconcile_interval_us)]);
    table.add_row(["reconcile.tolerance", &spelled(s.tolerance_us)]);
    table.add_row(["reconcile.window", &spelled(s.default_window_us)]);
    table.add_row(["reconcile.incident_window", &spelled(s.incident_window_us)]);
    for (from, to, window_us) in &s.budgets {
        table.add_row([&format!("budget of {from} → {to}"), &spelled(*window_us)]);
    }
    table.add_row(["dispute.rate", &format!("{} a minute", s.disputes_per_minute)]);
    table.add_row(["retention.years", &s.retention_years.to_string()]);
    table.add_row(["slots.per_quarter", &s.slots_per_quarter.to_string()]);
    table
}

/// A user by number, and by name where this machine has one for it.
fn user(uid: u32) -> String {
    let known = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| format!("{uid} ({})", user.name))
}

fn group(gid: u32) -> String {
    let known = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    known.map_or_else(|| gid.to_string(), |group| format!("{gid} ({})", group.name))
}
