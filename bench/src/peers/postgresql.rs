//! PostgreSQL: the same rows in tables, from Debian's packages, durable and as fast as one machine's settings make it.

mod client;
mod cluster;

use super::{BATCHES, CONNECTIONS, Load, Peer, closed};
use crate::affinity;
use crate::error::BenchError;
use crate::interrupt::Interrupt;
use crate::outcome::{Row, Setting};
use crate::server_process::ServerProcess;
use clap::Args;
use client::Client;
use cluster::{ABORT, Cluster};
use nix::sched::CpuSet;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// As in the rows, and in errors.
const NAME: &str = "postgresql";

/// Connections on the climb to the most that single claims reach, above those of every system's point.
const CLIMB: [usize; 2] = [128, 256];

/// Connections that send batches.
const BATCH_CONNECTIONS: [usize; 2] = [2, 8];

/// Settings that are shown, for they decide what a figure is worth.
const SHOWN: [&str; 15] = [
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "wal_level",
    "wal_buffers",
    "commit_delay",
    "commit_siblings",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "max_connections",
    "data_checksums",
];

/// Without these an answered claim is not durable.
const DURABLE: [&str; 3] = ["fsync", "synchronous_commit", "full_page_writes"];

/// How PostgreSQL is found and run.
#[derive(Debug, Args)]
pub struct PostgreSqlArguments {
    /// PostgreSQL's binaries; those of the newest version in /usr/lib/postgresql if not given.
    #[arg(long)]
    postgres_bin: Option<PathBuf>,
    /// The user that it runs as when root runs this: it refuses root.
    #[arg(long, default_value = "postgres")]
    postgres_user: String,
    /// Leave it no more than claimd's core; otherwise it may use every core, the load's too.
    #[arg(long)]
    postgres_one_core: bool,
    /// Further settings as NAME=VALUE, several may be given: `commit_delay=50`, say. What makes claims durable stays on.
    #[arg(long = "postgres-set", value_name = "NAME=VALUE", value_parser = name_and_value)]
    postgres_settings: Vec<(String, String)>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no NAME=VALUE")),
    }
}

/// The cluster, which runs while there is a server.
pub struct PostgreSql {
    cluster: Cluster,
    client: Client,
    load: Load,
    cores: CpuSet,
    interrupt: Interrupt,
    facts: BTreeMap<String, String>,
    /// Claims that have been confirmed.
    claims: u64,
    server: Option<ServerProcess>,
}

impl PostgreSql {
    /// Makes a cluster with the tables in `scratch`, and tries the job once: see [`Client::rehearse`].
    pub fn make(
        arguments: &PostgreSqlArguments,
        load: Load,
        scratch: &Path,
        (all_cores, server_core): (CpuSet, CpuSet),
        interrupt: &Interrupt,
    ) -> Result<Self, BenchError> {
        let cores = if arguments.postgres_one_core { server_core } else { all_cores };
        let binaries = cluster::binaries(arguments.postgres_bin.as_deref())?;
        let cluster = Cluster::make(&binaries, scratch, &arguments.postgres_user, &arguments.postgres_settings)?;
        let client = Client::new(cluster.socket_directory())?;
        let (interrupt, facts) = (interrupt.clone(), BTreeMap::new());
        let mut made = PostgreSql { cluster, client, load, cores, interrupt, facts, claims: 0, server: None };
        made.start()?;
        made.client.make_tables()?;
        made.facts = made.client.show(&SHOWN)?;
        check_durable(&made.facts)?;
        made.facts.insert("cores".to_owned(), affinity::names(&made.cores));
        made.claims = made.client.rehearse()?;
        made.stop()?;
        Ok(made)
    }
}

/// The figures are of durable claims only.
fn check_durable(settings: &BTreeMap<String, String>) -> Result<(), BenchError> {
    match DURABLE.iter().find(|name| settings.get(**name).is_none_or(|value| value != "on")) {
        None => Ok(()),
        Some(name) => Err(BenchError::NotTheJob {
            system: NAME,
            what: format!("{name} is not on: leave it out of --postgres-set"),
        }),
    }
}

impl Peer for PostgreSql {
    fn name(&self) -> &'static str {
        NAME
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.facts.clone()
    }

    fn settings(&self) -> Vec<Setting> {
        let mut settings = vec![closed(1, 1, 1), closed(CONNECTIONS, CONNECTIONS, 1)];
        settings.extend(CLIMB.iter().map(|connections| closed(*connections, *connections, 1)));
        for batch in BATCHES {
            settings.extend(BATCH_CONNECTIONS.iter().map(|connections| closed(*connections, *connections, batch)));
        }
        settings
    }

    fn start(&mut self) -> Result<(), BenchError> {
        let server = affinity::on(&self.cores, || self.cluster.serve(|| self.client.answers()))?;
        self.interrupt.ends(server.pid(), ABORT)?;
        self.server = Some(server);
        Ok(())
    }

    fn measure(&mut self, setting: Setting) -> Result<Row, BenchError> {
        let server = self.server.as_mut().expect("it was started");
        let tally = self
            .client
            .load(setting.connections, self.load.shape(setting.batch), self.load.timing)
            .map_err(|error| server.explain(error))?;
        self.claims += tally.units;
        Ok(Row { system: NAME, ..Row::new(setting, tally, self.load.timing.measured) })
    }

    fn stop(&mut self) -> Result<(), BenchError> {
        self.client.check_rows(self.claims)?;
        self.interrupt.ends_nothing();
        self.server.take().expect("it was started").stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_durable_claims_are_measured() {
        let mut settings: BTreeMap<String, String> =
            DURABLE.iter().map(|name| ((*name).to_owned(), "on".to_owned())).collect();
        check_durable(&settings).expect("all are on");
        settings.insert("synchronous_commit".to_owned(), "off".to_owned());
        let error = check_durable(&settings).expect_err("one is off").to_string();
        assert!(error.contains("synchronous_commit is not on"), "{error}");
        settings.remove("synchronous_commit");
        assert!(check_durable(&settings).is_err());
    }

    #[test]
    fn settings_are_names_and_values() {
        assert_eq!(name_and_value("commit_delay=50"), Ok(("commit_delay".to_owned(), "50".to_owned())));
        assert!(["commit_delay", "=50"].iter().all(|text| name_and_value(text).is_err()));
    }
}
