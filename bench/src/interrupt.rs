//! SIGINT, SIGTERM and SIGHUP while servers of ours run: the server ends at once, whatever waits for it fails, and scratch
//! directories go as the values that own them do.

use crate::error::BenchError;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::sync::{Arc, Mutex};
use std::thread;

/// The exit status after a second signal, which is not waited for any more.
const IMPATIENT_EXIT: i32 = 130;

/// What signals do.
#[derive(Debug, Clone)]
pub struct Interrupt {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    received: Option<Signal>,
    /// The server that runs, and what ends it at once.
    server: Option<(Pid, Signal)>,
}

impl Interrupt {
    /// From here on such signals come to a thread of their own. Child processes inherit that they are blocked: they have to take
    /// them in a way of their own, as servers do.
    pub fn watch() -> Result<Self, BenchError> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block().map_err(BenchError::system("block signals"))?;
        let interrupt = Interrupt { state: Arc::default() };
        let watching = interrupt.clone();
        thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                watching.receive(signal);
            }
        });
        Ok(interrupt)
    }

    fn receive(&self, signal: Signal) {
        let mut state = self.state.lock().expect("nobody panics with it");
        if state.received.replace(signal).is_some() {
            std::process::exit(IMPATIENT_EXIT);
        }
        eprintln!("claim-bench: {signal}: ending what runs, and removing it");
        if let Some((pid, abort)) = state.server {
            // Fails only when it has ended by itself.
            let _ = kill(pid, abort);
        }
    }

    /// A server that a signal is to end; an error when one has come already.
    pub fn ends(&self, pid: Pid, abort: Signal) -> Result<(), BenchError> {
        self.state.lock().expect("nobody panics with it").server = Some((pid, abort));
        self.check()
    }

    /// The server is about to end without that.
    pub fn ends_nothing(&self) {
        self.state.lock().expect("nobody panics with it").server = None;
    }

    /// An error when a signal has come.
    pub fn check(&self) -> Result<(), BenchError> {
        match self.state.lock().expect("nobody panics with it").received {
            Some(signal) => Err(BenchError::Interrupted { signal }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_signal_ends_the_server_and_is_an_error_from_then_on() {
        let interrupt = Interrupt { state: Arc::default() };
        let mut server = Command::new("sleep").arg("1000").spawn().expect("a child");
        interrupt.ends(Pid::from_raw(server.id() as i32), Signal::SIGKILL).expect("no signal yet");
        interrupt.receive(Signal::SIGTERM);
        assert_eq!(server.wait().expect("a child").signal(), Some(Signal::SIGKILL as i32));
        let error = interrupt.check().expect_err("a signal came").to_string();
        assert!(error.contains("SIGTERM"), "{error}");
        interrupt.ends_nothing();
        assert!(interrupt.ends(Pid::this(), Signal::SIGKILL).is_err());
    }
}
