//! A server under test, as a child process.

use crate::error::BenchError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a start may take.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long a stop may take; PostgreSQL writes its whole buffer then.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// How long an end by force may take before SIGKILL.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);

/// How often a start or a stop is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// Lines of a server's log that an error shows: the last ones say why.
const LOG_LINES_SHOWN: usize = 20;

/// What a server is called, and which signals end it.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// As in a sentence.
    pub name: &'static str,
    /// Finishes what is under way.
    pub stop: Signal,
    /// Ends it and its own children at once.
    pub abort: Signal,
}

/// A running server; ended at once when this value goes, unless it was stopped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    manner: Manner,
    log: PathBuf,
}

impl ServerProcess {
    /// Runs `command` with both outputs appended to `log`, so that no pipe can fill up. Returns when `serves` says so.
    pub fn start(
        manner: Manner,
        mut command: Command,
        log: &Path,
        mut serves: impl FnMut() -> bool,
    ) -> Result<Self, BenchError> {
        let child = with_log(&mut command, log)?.spawn().map_err(|error| not_run(&command, error, log))?;
        let mut server = ServerProcess { child, manner, log: log.to_owned() };
        let began = Instant::now();
        while !serves() {
            if let Some(status) = server.exit_status()? {
                return Err(failure(format!("{} ended with {status} before it served", manner.name), log));
            }
            if began.elapsed() > START_PATIENCE {
                return Err(failure(format!("{} did not serve within {START_PATIENCE:?}", manner.name), log));
            }
            sleep(GLANCE);
        }
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Asks it to end, and fails when it ends badly or not in time.
    pub fn stop(mut self) -> Result<(), BenchError> {
        let Manner { name, stop, .. } = self.manner;
        kill(self.pid(), stop).map_err(BenchError::system("signal the server"))?;
        match self.wait(STOP_PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(failure(format!("{name} ended with {status} after {stop}"), &self.log)),
            None => Err(failure(format!("{name} did not end within {STOP_PATIENCE:?} of {stop}"), &self.log)),
        }
    }

    /// `error`, with what the server wrote where the cause may lie with it.
    pub fn explain(&mut self, error: BenchError) -> BenchError {
        match self.exit_status() {
            Ok(Some(status)) => failure(format!("{error}; {} ended with {status}", self.manner.name), &self.log),
            _ => error,
        }
    }

    /// The exit status, if it came within `patience`.
    fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, BenchError> {
        let began = Instant::now();
        loop {
            match self.exit_status()? {
                None if began.elapsed() <= patience => sleep(GLANCE),
                status => return Ok(status),
            }
        }
    }

    fn exit_status(&mut self) -> Result<Option<ExitStatus>, BenchError> {
        self.child.try_wait().map_err(|source| BenchError::System { operation: "look at the server", source })
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Each fails only when it has ended and was waited for, which is what is wanted.
        if matches!(self.exit_status(), Ok(None)) {
            let _ = kill(self.pid(), self.manner.abort);
            let _ = self.wait(ABORT_PATIENCE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command called `name` to its end, with both outputs appended to `log`; fails when it does.
pub fn run_to_end(name: &str, mut command: Command, log: &Path) -> Result<(), BenchError> {
    let status = with_log(&mut command, log)?.status().map_err(|error| not_run(&command, error, log))?;
    match status.success() {
        true => Ok(()),
        false => Err(failure(format!("{name} ended with {status}"), log)),
    }
}

fn with_log<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command, BenchError> {
    let open = || File::options().append(true).create(true).open(log);
    let failed = |source| BenchError::System { operation: "make the server's log", source };
    Ok(command.stdin(Stdio::null()).stdout(open().map_err(failed)?).stderr(open().map_err(failed)?))
}

fn not_run(command: &Command, error: std::io::Error, log: &Path) -> BenchError {
    failure(format!("cannot run {}: {error}", Path::new(command.get_program()).display()), log)
}

/// What happened, and how the log ends.
fn failure(what: String, log: &Path) -> BenchError {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    let log = if shown.is_empty() { String::new() } else { format!("\nits log ends:\n{}", shown.join("\n")) };
    BenchError::Server { what, log }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A shell that was begun in the background ignores SIGQUIT, whatever it traps.
    const MANNER: Manner = Manner { name: "the shell", stop: Signal::SIGTERM, abort: Signal::SIGUSR1 };

    /// A shell that says `ready` with its traps set.
    fn start(directory: &Path, body: &str) -> Result<ServerProcess, BenchError> {
        let ready = directory.join("ready");
        let mut command = Command::new("/bin/sh");
        command.current_dir(directory).args(["-c", &format!("{body}\necho > ready\nwhile :; do sleep 0.01; done")]);
        ServerProcess::start(MANNER, command, &directory.join("log"), || ready.exists())
    }

    #[test]
    fn a_stop_is_good_or_bad() {
        for (body, expected) in
            [("trap 'exit 0' TERM", None), ("trap 'echo sick >&2; exit 4' TERM", Some("exit status: 4 after SIGTERM"))]
        {
            let directory = tempfile::tempdir().expect("a scratch directory");
            let server = start(directory.path(), body).expect("it serves");
            let error = server.stop().err().map(|error| error.to_string());
            assert_eq!(error.is_some(), expected.is_some(), "{error:?}");
            assert!(error.is_none_or(|error| error.contains(expected.unwrap_or_default()) && error.contains("sick")));
        }
    }

    #[test]
    fn a_server_that_went_away_explains_errors() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let mut server = start(directory.path(), "trap 'echo shot >&2; exit 5' TERM").expect("it serves");
        let error = || BenchError::Usage("the connection broke".to_owned());
        assert_eq!(server.explain(error()).to_string(), "the connection broke");
        kill(server.pid(), Signal::SIGTERM).expect("it runs");
        server.wait(STOP_PATIENCE).expect("a child");
        let text = server.explain(error()).to_string();
        assert!(["the connection broke", "exit status: 5", "shot"].iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn a_server_goes_with_its_value() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let server = start(directory.path(), "trap 'echo aborted; exit 0' USR1").expect("it serves");
        let pid = server.pid();
        drop(server);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
        let log = std::fs::read_to_string(directory.path().join("log")).expect("a log");
        assert_eq!(log, "aborted\n");
    }
}
