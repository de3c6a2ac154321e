//! A claimd of our own, as a child process.

use crate::error::BenchError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a start may take, and a stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a start or a stop is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// Lines of the daemon's log that an error shows: the last ones say why.
const LOG_LINES_SHOWN: usize = 20;

/// A running daemon; killed when this value goes, unless it was stopped.
#[derive(Debug)]
pub struct DaemonProcess {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
}

impl DaemonProcess {
    /// Formats a ledger of one shard in `data` with the binary `claimd`, and serves it on `core`. Standard output and
    /// error go to a file beside it, so that no pipe can fill up. Returns when the socket accepts.
    pub fn start(claimd: &Path, data: &Path, core: usize, poll_us: u64) -> Result<Self, BenchError> {
        let log = data.with_extension("log");
        let socket = data.join("claimd.sock");
        let format = command(claimd, &log)?.arg("format").arg("--data").arg(data).args(["--shards", "1"]).status();
        let status = format.map_err(|error| failure(format!("cannot run {}: {error}", claimd.display()), &log))?;
        if !status.success() {
            return Err(failure(format!("`claimd format` ended with {status}"), &log));
        }
        let mut start = command(claimd, &log)?;
        start.arg("start").arg("--data").arg(data).arg("--socket").arg(&socket).args([
            "--cores",
            &core.to_string(),
            "--poll-us",
            &poll_us.to_string(),
        ]);
        let child =
            start.spawn().map_err(|error| failure(format!("cannot run {}: {error}", claimd.display()), &log))?;
        let mut daemon = DaemonProcess { child, log, socket };
        daemon.wait_until_it_accepts()?;
        Ok(daemon)
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn wait_until_it_accepts(&mut self) -> Result<(), BenchError> {
        let began = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = self.exit_status()? {
                return Err(failure(format!("`claimd start` ended with {status} before it served"), &self.log));
            }
            if began.elapsed() > PATIENCE {
                return Err(failure(format!("`claimd start` did not serve within {PATIENCE:?}"), &self.log));
            }
            sleep(GLANCE);
        }
        Ok(())
    }

    /// Asks it to end, and fails when it ends badly or not in time.
    pub fn stop(mut self) -> Result<(), BenchError> {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGTERM).map_err(BenchError::system("signal the daemon"))?;
        let began = Instant::now();
        loop {
            match self.exit_status()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(failure(format!("claimd ended with {status} after SIGTERM"), &self.log)),
                None if began.elapsed() > PATIENCE => {
                    return Err(failure(format!("claimd did not end within {PATIENCE:?} of SIGTERM"), &self.log));
                }
                None => sleep(GLANCE),
            }
        }
    }

    /// `error`, with what the daemon wrote where the cause may lie with it.
    pub fn explain(&mut self, error: BenchError) -> BenchError {
        match self.exit_status() {
            Ok(Some(status)) => failure(format!("{error}; claimd ended with {status}"), &self.log),
            _ => error,
        }
    }

    fn exit_status(&mut self) -> Result<Option<ExitStatus>, BenchError> {
        self.child.try_wait().map_err(|source| BenchError::System { operation: "look at the daemon", source })
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary with both outputs appended to the log.
fn command(claimd: &Path, log: &Path) -> Result<Command, BenchError> {
    let open = || File::options().append(true).create(true).open(log);
    let failed = |source| BenchError::System { operation: "make the daemon's log", source };
    let mut command = Command::new(claimd);
    command.stdin(Stdio::null()).stdout(open().map_err(failed)?).stderr(open().map_err(failed)?);
    Ok(command)
}

fn failure(what: String, log: &Path) -> BenchError {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    let log = if shown.is_empty() { String::new() } else { format!("\nits log ends:\n{}", shown.join("\n")) };
    BenchError::Daemon { what, log }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in for the daemon's binary: a shell script.
    fn script(directory: &Path, body: &str) -> PathBuf {
        let path = directory.join("claimd");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a file");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("our own file");
        path
    }

    fn check(body: &str, expected: &[&str]) {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let claimd = script(directory.path(), body);
        let error =
            DaemonProcess::start(&claimd, &directory.path().join("ledger"), 0, 0).expect_err("it does not serve");
        let text = error.to_string();
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    }

    /// One test for all, since a script that is being written in one thread cannot be run while another thread forks.
    #[test]
    fn a_daemon_that_does_not_serve_is_shown_with_its_last_words() {
        check("echo no space >&2; exit 3", &["`claimd format` ended with exit status: 3", "no space"]);
        check("[ $1 = format ] || { echo no rings >&2; exit 1; }", &["ended with exit status: 1 before", "no rings"]);
        let directory = tempfile::tempdir().expect("a scratch directory");
        let error = DaemonProcess::start(Path::new("/nonexistent/claimd"), &directory.path().join("ledger"), 0, 0);
        assert!(error.expect_err("there is none").to_string().contains("/nonexistent/claimd"));
    }
}
