//! A claimd of our own, as a child process.

use crate::error::BenchError;
use crate::server_process::{Manner, ServerProcess, run_to_end};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

const MANNER: Manner = Manner { name: "`claimd start`", stop: Signal::SIGTERM, abort: Signal::SIGKILL };

/// A running daemon; killed when this value goes, unless it was stopped.
#[derive(Debug)]
pub struct DaemonProcess {
    server: ServerProcess,
    socket: PathBuf,
}

impl DaemonProcess {
    /// Formats a ledger of one shard in `data` with the binary `claimd`, and serves it on `core`.
    pub fn start(claimd: &Path, data: &Path, core: usize, poll_us: u64) -> Result<Self, BenchError> {
        DaemonProcess::format(claimd, data)?;
        DaemonProcess::serve(claimd, data, core, poll_us)
    }

    /// Formats a ledger of one shard in `data`.
    pub fn format(claimd: &Path, data: &Path) -> Result<(), BenchError> {
        let mut command = Command::new(claimd);
        command.arg("format").arg("--data").arg(data).args(["--shards", "1"]);
        run_to_end("`claimd format`", command, &log(data))
    }

    /// Serves the ledger in `data` on `core`. Returns when the socket accepts.
    pub fn serve(claimd: &Path, data: &Path, core: usize, poll_us: u64) -> Result<Self, BenchError> {
        let socket = data.join("claimd.sock");
        let mut command = Command::new(claimd);
        command.arg("start").arg("--data").arg(data).arg("--socket").arg(&socket);
        command.args(["--cores", &core.to_string(), "--poll-us", &poll_us.to_string()]);
        let server = ServerProcess::start(MANNER, command, &log(data), || UnixStream::connect(&socket).is_ok())?;
        Ok(DaemonProcess { server, socket })
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.server.pid()
    }

    /// Asks it to end, and fails when it ends badly or not in time.
    pub fn stop(self) -> Result<(), BenchError> {
        self.server.stop()
    }

    /// `error`, with what the daemon wrote where the cause may lie with it.
    pub fn explain(&mut self, error: BenchError) -> BenchError {
        self.server.explain(error)
    }
}

/// The daemon's sockets and protocol without a ledger.
#[derive(Debug)]
pub struct EchoProcess {
    server: ServerProcess,
    socket: PathBuf,
}

impl EchoProcess {
    /// Serves on `core`; its socket and its log lie beside each other, and begin with `path`.
    pub fn start(claimd: &Path, path: &Path, core: usize, poll_us: u64) -> Result<Self, BenchError> {
        let socket = path.with_extension("sock");
        let mut command = Command::new(claimd);
        command.arg("echo").arg("--socket").arg(&socket);
        command.args(["--core", &core.to_string(), "--poll-us", &poll_us.to_string()]);
        let manner = Manner { name: "`claimd echo`", ..MANNER };
        let server = ServerProcess::start(manner, command, &log(path), || UnixStream::connect(&socket).is_ok())?;
        Ok(EchoProcess { server, socket })
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks it to end, and fails when it ends badly or not in time.
    pub fn stop(self) -> Result<(), BenchError> {
        self.server.stop()
    }
}

/// Standard output and error go to a file beside the ledger.
fn log(data: &Path) -> PathBuf {
    data.with_extension("log")
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
