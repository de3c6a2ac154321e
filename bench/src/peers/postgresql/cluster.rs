//! PostgreSQL's own processes and files, below a scratch directory.

use crate::error::BenchError;
use crate::server_process::{Manner, ServerProcess, run_to_end};
use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's packages install each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Ends all of its processes without writing anything back.
pub const ABORT: Signal = Signal::SIGQUIT;

/// A stop by SIGINT ends connections, writes everything back and so leaves nothing to do for the device.
const MANNER: Manner = Manner { name: "`postgres`", stop: Signal::SIGINT, abort: ABORT };

/// What differs from the defaults, all in favour of speed: memory, few checkpoints, the least log that recovery needs, and
/// neither a network nor replicas.
const SETTINGS: [(&str, &str); 10] = [
    ("listen_addresses", ""),
    ("max_connections", "300"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("min_wal_size", "1GB"),
    ("checkpoint_timeout", "30min"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("fsync", "on"),
    ("synchronous_commit", "on"),
];

/// The newest version's binaries, or those given.
pub fn binaries(given: Option<&Path>) -> Result<PathBuf, BenchError> {
    find_binaries(given, Path::new(VERSIONS))
}

fn find_binaries(given: Option<&Path>, versions: &Path) -> Result<PathBuf, BenchError> {
    let is_whole = |directory: &PathBuf| ["initdb", "postgres"].iter().all(|name| directory.join(name).is_file());
    let advice = "install them with `apt-get install postgresql`, or say where they are with --postgres-bin DIR";
    if let Some(given) = given {
        let sentence = || format!("there is no initdb and postgres in {}: {advice}", given.display());
        return Some(given.to_owned()).filter(is_whole).ok_or_else(|| BenchError::Usage(sentence()));
    }
    let entries = std::fs::read_dir(versions).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((version, entry.path().join("bin")))
    });
    let newest = numbered.filter(|(_, directory)| is_whole(directory)).max();
    let sentence = || format!("there are no binaries of PostgreSQL in {}: {advice}", versions.display());
    newest.map(|(_, directory)| directory).ok_or_else(|| BenchError::Usage(sentence()))
}

/// A cluster's files, and how to serve them.
pub struct Cluster {
    binaries: PathBuf,
    /// Its own, with the sockets; the data lie below.
    directory: PathBuf,
    log: PathBuf,
    /// Where root has to become another.
    user: Option<User>,
    settings: Vec<(String, String)>,
}

impl Cluster {
    /// Makes an empty cluster in `scratch`, which everybody may pass through from then on.
    pub fn make(
        binaries: &Path,
        scratch: &Path,
        user: &str,
        settings: &[(String, String)],
    ) -> Result<Self, BenchError> {
        let failed = |source| BenchError::System { operation: "make a directory for PostgreSQL", source };
        let directory = scratch.join("postgresql");
        std::fs::create_dir(&directory).map_err(failed)?;
        let user = if geteuid().is_root() { Some(find_user(user)?) } else { None };
        if let Some(user) = &user {
            std::fs::set_permissions(scratch, PermissionsExt::from_mode(0o711)).map_err(failed)?;
            chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(failed)?;
            check_passage(scratch, &user.name)?;
        }
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).map_err(failed)?;
        let log = scratch.join("postgresql.log");
        let given = SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = given.chain(settings.iter().cloned()).collect();
        let cluster = Cluster { binaries: binaries.to_owned(), directory, log, user, settings };
        let mut initdb = cluster.command("initdb");
        // Whoever gets into the directory may connect.
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions"]);
        run_to_end("`initdb`", initdb, &cluster.log)?;
        Ok(cluster)
    }

    /// Serves it; returns when `answers` says so.
    pub fn serve(&self, answers: impl FnMut() -> bool) -> Result<ServerProcess, BenchError> {
        let mut postgres = self.command("postgres");
        postgres.arg("-c").arg(format!("unix_socket_directories={}", self.directory.display()));
        for (name, value) in &self.settings {
            postgres.arg("-c").arg(format!("{name}={value}"));
        }
        ServerProcess::start(MANNER, postgres, &self.log, answers)
    }

    /// Where its socket is.
    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    /// One of its programs, on its data, as its user.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir("/").arg("-D").arg(self.directory.join("data"));
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}

fn find_user(name: &str) -> Result<User, BenchError> {
    match User::from_name(name) {
        Ok(Some(user)) if !user.uid.is_root() => Ok(user),
        _ => Err(BenchError::Usage(format!(
            "PostgreSQL does not run as root, and there is no user {name}: name another with --postgres-user, or run this as \
             one that is not root"
        ))),
    }
}

/// Whether other users get through to `directory`.
fn check_passage(directory: &Path, user: &str) -> Result<(), BenchError> {
    for above in directory.ancestors() {
        let failed = |source| BenchError::System { operation: "look at the scratch directory", source };
        let mode = above.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o001 == 0 {
            let above = above.display();
            let sentence = format!("{user} does not get through {above}: take another --dir, or `chmod o+x {above}`");
            return Err(BenchError::Usage(sentence));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(directory: &Path, programs: &[&str]) {
        std::fs::create_dir_all(directory).expect("a scratch directory");
        programs.iter().for_each(|name| std::fs::write(directory.join(name), "").expect("a file"));
    }

    #[test]
    fn the_newest_whole_version_is_taken() {
        let versions = tempfile::tempdir().expect("a scratch directory");
        let error = find_binaries(None, versions.path()).expect_err("there is none").to_string();
        assert!(error.contains("apt-get install postgresql"), "{error}");
        let bin = |version: &str| versions.path().join(version).join("bin");
        install(&bin("9"), &["initdb", "postgres"]);
        install(&bin("15"), &["initdb", "postgres"]);
        install(&bin("17"), &["initdb"]);
        install(&bin("common"), &["initdb", "postgres"]);
        assert_eq!(find_binaries(None, versions.path()).expect("two are whole"), bin("15"));
        assert_eq!(find_binaries(Some(&bin("9")), versions.path()).expect("it is whole"), bin("9"));
        let error = find_binaries(Some(&bin("17")), versions.path()).expect_err("half of it").to_string();
        assert!(error.contains("17/bin"), "{error}");
    }

    #[test]
    fn a_directory_that_keeps_others_out_is_named() {
        let top = tempfile::tempdir().expect("a scratch directory");
        let below = top.path().join("below");
        std::fs::create_dir(&below).expect("a scratch directory");
        std::fs::set_permissions(top.path(), PermissionsExt::from_mode(0o700)).expect("our own");
        let error = check_passage(&below, "postgres").expect_err("it is private").to_string();
        assert!(error.contains(&format!("chmod o+x {}", top.path().display())), "{error}");
    }

    #[test]
    fn a_user_that_is_root_or_nobody_knows_is_refused() {
        for name in ["root", "no-such-user"] {
            let error = find_user(name).expect_err("not for PostgreSQL").to_string();
            assert!(error.contains("--postgres-user"), "{error}");
        }
    }
}
