//! The real binary in a scratch directory, for the tests beside this folder.
#![allow(dead_code, reason = "each test binary uses its part of this")]

pub mod config;
pub mod loops;
pub mod plain;
pub mod replay;
pub mod stage;
pub mod user;

use claim_client::{ClaimItem, Client, ClientOptions, RequestOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a daemon may take to serve on a loaded machine.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// How long logs may take to begin behind what was dropped.
const SETTLING_PATIENCE: Duration = Duration::from_secs(120);

/// A scratch directory on the file system of the build: /tmp may be a tmpfs, which is not O_DIRECT.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

pub fn claimd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_claimd"))
}

/// Formats a small ledger: segments of 4 MiB, so that tests roll.
pub fn format(data: &Path, shards: u16, clock: &str) {
    let shards = shards.to_string();
    let output = claimd()
        .args(["format", "--segment-bytes", "4M", "--shards", &shards, "--clock", clock, "--data"])
        .arg(data)
        .output()
        .expect("claimd runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub struct Daemon {
    child: Child,
    pub data: PathBuf,
}

impl Daemon {
    /// Starts a daemon and waits until it serves.
    pub fn start(data: &Path) -> Daemon {
        Daemon::start_with(data, claimd())
    }

    /// The same with a command that has its environment.
    pub fn start_with(data: &Path, mut command: Command) -> Daemon {
        command.args(["start", "--data"]).arg(data);
        Daemon::spawn(data, command)
    }

    /// The same with further arguments.
    pub fn start_more(data: &Path, more: &[&str]) -> Daemon {
        let mut command = claimd();
        command.args(["start", "--data"]).arg(data).args(more);
        Daemon::spawn(data, command)
    }

    /// `claimd start` without arguments, in a directory that the command is told.
    pub fn start_here(dir: &Path, mut command: Command) -> Daemon {
        command.arg("start");
        Daemon::spawn(&dir.join("claimd-data"), command)
    }

    /// Starts what the command says in full and waits until it serves.
    pub fn spawn(data: &Path, mut command: Command) -> Daemon {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("claimd starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (ready, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = ready.send(line);
        });
        let daemon = Daemon { child, data: data.to_owned() };
        let line = heard.recv_timeout(READY_PATIENCE).expect("the daemon says something in time");
        assert!(line.starts_with("ready "), "the daemon does not serve: {line:?}");
        daemon
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.data.join("claimd.sock")
    }

    pub fn client(&self) -> Client {
        Client::connect(self.socket()).expect("the daemon answers")
    }

    /// A client that gives up at the first broken connection.
    pub fn client_without_retry(&self) -> Client {
        let options = ClientOptions { attempts_max: 1, deadline: Duration::from_secs(20), ..ClientOptions::default() };
        Client::connect_with(self.socket(), options).expect("the daemon answers")
    }

    pub fn kill(mut self) {
        self.child.kill().expect("the daemon is there");
        self.child.wait().expect("the daemon ends");
    }

    /// SIGTERM; the daemon must end well.
    pub fn stop(mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("the daemon is there");
        let status: ExitStatus = self.child.wait().expect("the daemon ends");
        assert!(status.success(), "{status}");
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the daemon runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says VmRSS");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB");
        kib * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A claim item that differs by its key alone.
pub fn item(event_key: &str) -> ClaimItem<'_> {
    ClaimItem {
        event_key,
        occurred_at_us: 1_700_000_000_000_000,
        owning_corpus: "",
        hosting_corpus: "",
        category: "test",
        taxonomy_version: 1,
        metadata: b"metadata of a test",
    }
}

pub fn options() -> RequestOptions {
    RequestOptions::default()
}

/// Runs `claimd` with arguments to its end.
pub fn run(args: &[&str]) -> Output {
    claimd().args(args).output().expect("claimd runs")
}

/// Runs `claimd` with `--data` and `--json`; the exit code, and each line of its output as an object.
pub fn run_json(command: &str, data: &Path, more: &[&str]) -> (i32, Vec<serde_json::Value>) {
    let output = claimd().args([command, "--json", "--data"]).arg(data).args(more).output().expect("claimd runs");
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !errors.is_empty() {
        println!("{command}: {errors}");
    }
    (output.status.code().expect("an exit code"), lines)
}

/// Serves a ledger, which nobody serves, until all of its logs begin behind what was dropped last.
pub fn settle(data: &Path, start: &dyn Fn(&Path) -> Daemon) {
    let until = Instant::now() + SETTLING_PATIENCE;
    let is_settled = || {
        let (code, found) = run_json("verify", data, &[]);
        assert_eq!(code, 0, "{found:?}");
        let shards = found.last().expect("a summary")["shards"].as_array().expect("shards").clone();
        shards.iter().all(|shard| {
            let seals = shard["seals"].as_array().expect("seals");
            seals.last().is_some_and(|last| last["segments"][1] == shard["first_segment"])
        })
    };
    while !is_settled() {
        assert!(Instant::now() < until, "the logs do not begin later");
        let daemon = start(data);
        std::thread::sleep(Duration::from_millis(100));
        daemon.stop();
    }
}

/// Flips a bit of a shard's file.
pub fn flip(data: &Path, shard: u16, byte: u64, bit: u32) {
    use std::os::unix::fs::FileExt;
    let path = claimd::ledger::shard_path(data, shard);
    let file = std::fs::File::options().read(true).write(true).open(path).expect("the file is there");
    let mut buffer = [0];
    file.read_exact_at(&mut buffer, byte).expect("a byte");
    buffer[0] ^= 1 << bit;
    file.write_all_at(&buffer, byte).expect("a byte");
    file.sync_all().expect("a flush");
}
