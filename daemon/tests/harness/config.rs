//! Configuration files in which whoever runs the test has every role.

use std::path::{Path, PathBuf};

const ROLES: [&str; 7] = ["client", "facilitator", "platform", "manager", "arbitrator", "leadership", "auditor"];

/// Writes a configuration that says this besides, and gives its path.
pub fn config(dir: &Path, says: &str) -> PathBuf {
    let uid = nix::unistd::geteuid().as_raw();
    let role = |name: &str| {
        let corpora = if matches!(name, "client" | "facilitator") { "corpora = [\"*\"]\n" } else { "" };
        format!("[[role]]\nrole = \"{name}\"\n{corpora}uids = [{uid}]\n")
    };
    let roles: String = ROLES.iter().map(|name| role(name)).collect();
    let path = dir.join("claimd.toml");
    std::fs::write(&path, format!("{says}\n{roles}")).expect("our directory");
    path
}
