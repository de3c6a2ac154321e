//! What is done in each scene, and what has to be seen there.

use super::probe::{Probe, SMALL_BYTES};
use super::stage::{LOAD, SHARD_FILES, Stage, WATCHED, ends_well};
use crate::disk::{Call, Content, Failure, Fault, Pace};
use crate::load::Weight;
use crate::session::FORMAT;
use crate::trace::Event;
use claim_client::{ClientError, ErrorCode, UnknownCause, Uuid};
use claim_engine::log::zeroing::SEGMENTS_AHEAD;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// The deadline of a request that is not expected to be answered otherwise.
const DEADLINE: Duration = Duration::from_millis(200);
/// Calls of one kind of one start or format, at most.
const CALLS_MAX: u64 = 400;
/// The batch that fails, counted from the fault's order.
const NTH_BATCH: u64 = 5;
/// Metadata of a claim that fills a log quickly.
const LARGE_BYTES: u32 = 40_000;
/// What a daemon logs when it gives up waiting for what is under way.
const GIVES_UP: &str = "stopping with requests under way";

impl Stage<'_> {
    pub fn batch(&self, shard: usize, failure: Failure) -> Result<String, String> {
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let (row, other_row) = (probe.claim_on(shard)?, probe.claim_on(1 - shard)?);
        if failure == Failure::Hang {
            let answered = self.under_load(Weight::LIGHT, 1, || {
                self.order(Some(shard), Call::Write, Some(Content::Batch), NTH_BATCH, failure);
                self.until_it_happens()?;
                probe.expect_open(probe.try_claim(shard, Some(DEADLINE), SMALL_BYTES), ErrorCode::Deadline)?;
                probe.claim_on(1 - shard)?;
                let status = probe.status(shard)?;
                if status.failed.is_some() || status.requests_held == 0 {
                    return Err(format!("while a write hangs, its shard's status is {status:?}"));
                }
                self.remember();
                Ok(status.requests_held)
            })?;
            probe.claim_on(shard)?;
            probe.is_row(row)?;
            self.nothing_left_open()?;
            ends_well(&mut daemon)?;
            return Ok(format!(
                "waits, {answered} held; a deadline is answered; shard {} goes on; all is answered at the end",
                1 - shard
            ));
        }
        self.under_load(Weight::LIGHT, 1, || {
            self.order(Some(shard), Call::Write, Some(Content::Batch), NTH_BATCH, failure);
            self.until_it_happens()?;
            self.until("the shard stops", || Ok(probe.status(shard)?.failed.is_some()))
        })?;
        self.stopped(&probe, shard, row, other_row)?;
        ends_well(&mut daemon)?;
        Ok(format!("shard {shard} stops; shard {} goes on", 1 - shard))
    }

    /// A shard that has stopped says so, and the other one serves.
    fn stopped(&self, probe: &Probe<'_>, shard: usize, row: Uuid, other_row: Uuid) -> Result<(), String> {
        self.remember();
        probe.expect_open(probe.try_claim(shard, None, SMALL_BYTES), ErrorCode::ShardFailed)?;
        match probe.row(row, None) {
            Err(ClientError::Refused(error)) if error.code == ErrorCode::ShardFailed => {}
            other => return Err(format!("a lookup on the stopped shard gives {other:?}")),
        }
        probe.claim_on(1 - shard)?;
        probe.is_row(other_row)?;
        match probe.status(1 - shard)?.failed {
            Some(reason) => Err(format!("shard {} has stopped, too: {reason}", 1 - shard)),
            None => Ok(()),
        }
    }

    pub fn mark(&self, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let other_row = probe.claim_on(1 - SHARD)?;
        // The log is marked; the next claim makes one batch, and the mark after it is the second.
        self.until("the log is marked", || {
            let before = probe.status(SHARD)?.batches_written;
            thread::sleep(WATCHED);
            Ok(before == probe.status(SHARD)?.batches_written)
        })?;
        self.order(Some(SHARD), Call::Write, Some(Content::Batch), 2, failure);
        let row = probe.claim_on(SHARD)?;
        self.until_it_happens()?;
        self.until("the shard stops", || Ok(probe.status(SHARD)?.failed.is_some()))?;
        self.stopped(&probe, SHARD, row, other_row)?;
        ends_well(&mut daemon)?;
        Ok(format!("shard {SHARD} stops; shard {} goes on", 1 - SHARD))
    }

    pub fn batch_at_stop(&self) -> Result<String, String> {
        const SHARD: usize = 1;
        let mut daemon = self.serving()?;
        self.under_load(Weight::LIGHT, 1, || {
            self.order(Some(SHARD), Call::Write, Some(Content::Batch), NTH_BATCH, Failure::Hang);
            self.until_it_happens()?;
            daemon.terminate()?;
            self.until("the daemon gives up waiting", || {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                Ok(log.lines().any(|line| line.contains(GIVES_UP)))
            })?;
            self.remember();
            Ok(())
        })?;
        let status = daemon.wait()?;
        if !status.success() {
            return Err(format!("after SIGTERM claimd ended with {status}"));
        }
        Ok("finishes what it can, says that outcomes are open, and ends".into())
    }

    pub fn prepare(&self, call: Call, content: Option<Content>, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        if failure != Failure::Hang {
            // The first segment that a daemon prepares.
            self.order(Some(SHARD), call, content, 1, failure);
        }
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let row = probe.claim_on(SHARD)?;
        let mut happened = "not used; prepared again; writes go on".to_owned();
        if failure == Failure::Hang {
            // A later one: FUSE makes who writes to a file wait, even for the submission, while another call grows or flushes
            // it, so that nothing is heard of the shard meanwhile.
            self.until("the first segments are prepared", || {
                let status = probe.status(SHARD)?;
                Ok(u64::from(status.segments_prepared) == 1 + SEGMENTS_AHEAD)
            })?;
            self.order(Some(SHARD), call, content, 1, failure);
            let refused = self.until_refused(&probe, SHARD)?;
            probe.claim_on(1 - SHARD)?;
            if call == Call::Write {
                probe.is_row(row)?;
                let status = probe.status(SHARD)?;
                if status.no_space || status.failed.is_some() {
                    return Err(format!("while preparing hangs, the shard's status is {status:?}"));
                }
            }
            self.remember();
            self.disk.release();
            happened = format!("waits; {refused} meanwhile, shard {} goes on; then all goes on", 1 - SHARD);
        }
        self.until_it_happens()?;
        self.until("the segment is prepared after all, and used", || {
            match probe.try_claim(SHARD, None, LARGE_BYTES) {
                Err(ClientError::Refused(error)) if is_full(error.code) => {}
                answer => answer.map(drop).map_err(|e| format!("a claim while a segment is prepared: {e}"))?,
            }
            probe.is_row(row)?;
            let status = probe.status(SHARD)?;
            Ok(status.segments_used >= 2 && status.segments_prepared > status.segments_used && !status.no_space)
        })?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            Ok(())
        })?;
        probe.claim_on(SHARD)?;
        self.nothing_left_open()?;
        ends_well(&mut daemon)?;
        Ok(happened)
    }

    /// Claims until what hangs is felt: either the segments that are ready are used up, or the deadline passes. Says which.
    fn until_refused(&self, probe: &Probe<'_>, shard: usize) -> Result<&'static str, String> {
        let mut refused = None;
        self.until("a claim is refused", || {
            let hangs = self.disk.fault_happened();
            let code = match probe.try_claim(shard, Some(DEADLINE), LARGE_BYTES) {
                Ok(_) => return Ok(false),
                Err(ClientError::Refused(error))
                    if [ErrorCode::Overloaded, ErrorCode::Deadline].contains(&error.code) =>
                {
                    error.code
                }
                Err(ClientError::UnknownOutcome { code: UnknownCause::Server(ErrorCode::Deadline), .. }) => {
                    ErrorCode::Deadline
                }
                Err(error) => return Err(format!("a claim while preparing hangs: {error}")),
            };
            refused = Some(code.name());
            Ok(hangs)
        })?;
        Ok(refused.unwrap_or_default())
    }

    pub fn no_room(&self, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        let file = Some(SHARD_FILES[SHARD]);
        self.disk.set_fault(Some(Fault { call: Call::Grow, file, content: None, nth: 1, failure, lasts: true }));
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        let row = probe.claim_on(SHARD)?;
        self.until_it_happens()?;
        self.fill(&probe, SHARD, ErrorCode::NoSpace)?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            probe.is_row(row)?;
            probe.claim_on(1 - SHARD)?;
            let status = probe.status(SHARD)?;
            if !status.no_space || status.failed.is_some() {
                return Err(format!("while there is no room, the shard's status is {status:?}"));
            }
            self.remember();
            Ok(())
        })?;
        self.disk.set_fault(None);
        self.until("it ends by itself", || {
            Ok(!probe.status(SHARD)?.no_space && probe.try_claim(SHARD, None, LARGE_BYTES).is_ok())
        })?;
        self.under_load(Weight::LIGHT, 2, || {
            thread::sleep(LOAD);
            Ok(())
        })?;
        self.nothing_left_open()?;
        ends_well(&mut daemon)?;
        Ok("read-only with NO_SPACE; ends by itself".into())
    }

    /// Claims until the shard refuses with a code, for certain, a large row and a small one.
    fn fill(&self, probe: &Probe<'_>, shard: usize, code: ErrorCode) -> Result<(), String> {
        for bytes in [LARGE_BYTES, SMALL_BYTES] {
            self.until("the shard refuses", || match probe.try_claim(shard, None, bytes) {
                Ok(_) => Ok(false),
                Err(ClientError::Refused(error)) if error.code == code => Ok(true),
                Err(ClientError::Refused(error)) if is_full(error.code) => Ok(false),
                Err(error) => Err(format!("where {} is due: {error}", code.name())),
            })?;
        }
        Ok(())
    }

    pub fn lookup(&self, failure: Failure) -> Result<String, String> {
        const SHARD: usize = 1;
        let mut daemon = self.serving()?;
        let probe = Probe::new(self)?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            Ok(())
        })?;
        // What was looked up before may be in memory.
        let row = probe.claim_on(SHARD)?;
        self.order(Some(SHARD), Call::Read, None, 1, failure);
        let deadline = (failure == Failure::Hang).then_some(DEADLINE);
        let answer = probe.row(row, deadline);
        self.until_it_happens()?;
        let happened = match (failure, answer) {
            (Failure::Short, Ok(found)) if probe.row(row, None).as_ref() == Ok(&found) => {
                "read on to the end: the right row"
            }
            (Failure::Hang, Err(ClientError::Refused(error))) if error.code == ErrorCode::Deadline => {
                probe.is_row(row)?;
                probe.claim_on(SHARD)?;
                self.disk.release();
                "waits; its deadline is answered, others go on"
            }
            (Failure::Io, Err(ClientError::Refused(error))) if error.code == ErrorCode::ShardFailed => {
                "this lookup is refused with SHARD_FAILED, others go on"
            }
            (_, answer) => return Err(format!("the lookup gives {answer:?}")),
        };
        probe.is_row(row)?;
        probe.claim_on(SHARD)?;
        ends_well(&mut daemon)?;
        Ok(happened.into())
    }

    pub fn start_up(
        &self,
        call: Call,
        content: Option<Content>,
        count: Option<u64>,
        failure: Failure,
    ) -> Result<String, String> {
        let mut daemon = self.serving()?;
        self.under_load(Weight::LIGHT, 1, || {
            thread::sleep(LOAD);
            self.shared.event(Event::Killed);
            daemon.kill();
            Ok(())
        })?;
        drop(daemon);
        if failure == Failure::Hang {
            self.order(None, call, content, 1, failure);
            let started = self.while_it_hangs(|| self.try_start())?;
            ends_well(
                &mut started.map_err(|not| format!("after the call that hung, claimd does not serve: {}", not.said))?,
            )?;
            return Ok("waits; serves nothing before it ends, then serves".into());
        }
        let (mut refused, mut served, mut said) = (0, 0, String::new());
        for nth in 1..=count.unwrap_or(CALLS_MAX) {
            self.order(None, call, content, nth, failure);
            match self.try_start() {
                Ok(mut daemon) => {
                    let happened = self.disk.fault_happened();
                    self.disk.set_fault(None);
                    ends_well(&mut daemon)?;
                    if !happened {
                        break;
                    }
                    served += 1;
                }
                Err(not) if self.disk.fault_happened() && not.code == Some(1) => {
                    refused += 1;
                    said = not.said;
                }
                Err(not) => return Err(format!("call {nth} at start: exit {:?}, {}", not.code, not.said)),
            }
            self.remember();
        }
        // A short read is read on; everything else that fails at start is told.
        match (failure, call, refused, served) {
            (Failure::Short, Call::Read, 0, 1..) => Ok(format!("{served} calls: read on to the end, serves")),
            (Failure::Short, Call::Read, ..) | (_, _, 0, _) => {
                Err(format!("{refused} starts were refused and {served} served, at last with: {said}"))
            }
            (_, Call::Read | Call::Open, ..) | (_, _, _, 0) => {
                let well = if served > 0 { format!(", {served} calls it can do without") } else { String::new() };
                // What glommio adds to an error, the path and the descriptor, is of no use here.
                let said = said.split(", op: ").next().unwrap_or_default();
                let said = said.split(".ledger: ").last().unwrap_or_default().trim_start_matches("claimd: ");
                Ok(format!("{refused} calls: exit 1, \"{said}\"{well}; the next start serves"))
            }
            _ => Err(format!("{served} starts served though the call had failed; refused with: {said}")),
        }
    }

    pub fn format(&self, call: Call, content: Option<Content>, failure: Failure) -> Result<String, String> {
        let empty = || {
            for name in SHARD_FILES {
                let _ = std::fs::remove_file(self.disk.path().join(name));
            }
        };
        empty();
        // What the trace began with is gone: the next ledger's begins when it is there.
        let _ = self.disk.end_trace();
        let happened = if failure == Failure::Hang {
            self.order(None, call, content, 1, failure);
            self.while_it_hangs(|| self.format_now())??;
            "waits, then the ledger is there".to_owned()
        } else {
            let (mut refused, mut is_made) = (0, false);
            for nth in 1..=CALLS_MAX {
                self.order(None, call, content, nth, failure);
                let output = Command::new(&self.binary.claimd)
                    .args(["format", "--data"])
                    .arg(self.disk.path())
                    .args(FORMAT)
                    .output()
                    .map_err(|e| format!("cannot run {}: {e}", self.binary.claimd.display()))?;
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                if !self.disk.fault_happened() {
                    if !output.status.success() {
                        return Err(format!("a format without a fault, after {refused} that failed: {said}"));
                    }
                    is_made = true;
                    break;
                }
                if output.status.code() != Some(1) || said.is_empty() {
                    return Err(format!("call {nth} of format: {}, {said}", output.status));
                }
                refused += 1;
                let left = std::fs::read_dir(self.disk.path()).map_err(|e| e.to_string())?.flatten().count();
                if left > 0 {
                    return Err(format!("call {nth} of format failed, and {left} files are left over"));
                }
            }
            if !is_made || refused == 0 {
                return Err(format!("{refused} formats failed, and none succeeded"));
            }
            format!("{refused} calls: exit 1, nothing left over; the next format succeeds")
        };
        self.disk.set_fault(None);
        self.disk.set_pace(Pace::AT_ONCE);
        self.disk.begin_trace();
        let mut daemon = self.serving()?;
        Probe::new(self)?.claim_on(0)?;
        ends_well(&mut daemon)?;
        Ok(happened)
    }
}

/// Whether the log takes nothing now, and will later.
fn is_full(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NoSpace | ErrorCode::Overloaded)
}
