//! The unmodified `claimd` binary as a child process.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a daemon may take to serve, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(2);

/// How a daemon is run.
#[derive(Debug, Clone)]
pub struct Binary {
    /// The program.
    pub claimd: PathBuf,
    /// More arguments of `claimd start`.
    pub arguments: Vec<String>,
    /// The deliberate bug, for a build that has them.
    pub mutant: Option<&'static str>,
}

impl Binary {
    /// Formats a ledger.
    pub fn format(&self, data: &Path, arguments: &[&str]) -> Result<(), String> {
        let output = Command::new(&self.claimd)
            .args(["format", "--data"])
            .arg(data)
            .args(arguments)
            .output()
            .map_err(|e| format!("cannot run {}: {e}", self.claimd.display()))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("claimd format: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }

    /// Starts it on a ledger and waits until it serves; its log is appended to `log`.
    pub fn start(&self, data: &Path, socket: &Path, log: &Path) -> Result<Daemon, String> {
        self.try_start(data, socket, log).map_err(|not| format!("claimd does not serve: {}", not.said))
    }

    /// The same, for those who look at why it does not serve.
    pub fn try_start(&self, data: &Path, socket: &Path, log: &Path) -> Result<Daemon, NotServing> {
        let harness = |said: String| NotServing { code: None, said };
        let open = || File::options().create(true).append(true).open(log);
        let stderr = open().map_err(|e| harness(format!("{}: {e}", log.display())))?;
        let mut command = Command::new(&self.claimd);
        command.args(["start", "--data"]).arg(data).arg("--socket").arg(socket).args(&self.arguments);
        command.envs(self.mutant.map(|name| ("CLAIMD_MUTANT", name)));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|e| harness(format!("cannot run {}: {e}", self.claimd.display())))?;
        let stdout = child.stdout.take().expect("the pipe was asked for");
        let (said, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = said.send(line);
        });
        let mut daemon = Daemon { child, socket: socket.to_owned() };
        match heard.recv_timeout(PATIENCE) {
            Ok(line) if line.starts_with("ready ") => Ok(daemon),
            heard => {
                // Its end of the pipe is closed, so it is ending; or it takes too long, and is killed.
                let code = heard.ok().and_then(|_| daemon.wait().ok()).and_then(|status| status.code());
                let log = std::fs::read_to_string(log).unwrap_or_default();
                Err(NotServing { code, said: log.lines().last().unwrap_or("it said nothing").to_owned() })
            }
        }
    }
}

/// A daemon that did not come to serve.
#[derive(Debug)]
pub struct NotServing {
    /// Its exit status, if it ended by itself.
    pub code: Option<i32>,
    /// The last line of its log.
    pub said: String,
}

/// A running daemon; it is killed when this goes.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Where it serves.
    pub socket: PathBuf,
}

impl Daemon {
    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its resident memory, now and at most so far, in bytes.
    pub fn memory(&self) -> Result<(u64, u64), String> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.map(|kib| kib << 10).ok_or_else(|| format!("{path} does not say {name}"))
        };
        Ok((of("VmRSS:")?, of("VmHWM:")?))
    }

    /// SIGTERM, and its exit status.
    pub fn stop(&mut self) -> Result<ExitStatus, String> {
        self.terminate()?;
        self.wait()
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Result<(), String> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).map_err(|e| format!("SIGTERM: {e}"))
    }

    /// Its exit status, once it ends.
    pub fn wait(&mut self) -> Result<ExitStatus, String> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().map_err(|e| format!("waiting for claimd: {e}"))? {
                return Ok(status);
            }
            std::thread::sleep(GLANCE);
        }
        Err(format!("claimd does not end within {} s", PATIENCE.as_secs()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
