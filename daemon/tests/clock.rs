//! The real binary under a clock that steps back, stands still and leaps, while it runs and at its start.

mod harness;

use claim_client::{
    AuditOperation, Claimed, Client, ClientError, ErrorCode, ReasonCode, RequestOptions, TailOptions, new_key,
};
use harness::{Daemon, claimd, format, item, options, scratch};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the log is looked at for a barrier that the daemon raises by itself.
const BARRIER_LOOKS_MAX: u32 = 3_000;
const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3_600 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;
const YEAR_US: i64 = 365 * DAY_US;

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_micros() as i64
}

/// A daemon whose wall clock the test turns.
struct Clock {
    shim: PathBuf,
    settings: PathBuf,
}

impl Clock {
    fn new(dir: &Path) -> Clock {
        let shim = dir.join("clock_shim.so");
        // The C compiler that links every Rust program.
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clock_shim.c");
        let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).status();
        assert!(status.expect("cc runs").success());
        let clock = Clock { shim, settings: dir.join("clock") };
        clock.set(0, 0);
        clock
    }

    fn set(&self, offset_us: i64, still_at_us: i64) {
        let bytes = [offset_us.to_le_bytes(), still_at_us.to_le_bytes()].concat();
        // In place: the daemon has the file mapped.
        let file = fs::File::options().write(true).create(true).truncate(false).open(&self.settings).expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("it can be written");
    }

    fn start(&self, data: &Path) -> Daemon {
        let mut command = claimd();
        command.env("LD_PRELOAD", &self.shim).env("CLAIMD_TEST_CLOCK", &self.settings);
        Daemon::start_with(data, command)
    }
}

/// Claims, with a key whose time suits the daemon's clock, and checks that ids and times go on.
struct Claims<'a> {
    client: &'a Client,
    offset_us: i64,
    last: Option<Claimed>,
    count: u32,
}

impl Claims<'_> {
    fn claim(&mut self) -> Result<Claimed, ClientError> {
        self.count += 1;
        let key = Some(new_key(Some(now_us() + self.offset_us)));
        let options = RequestOptions { idempotency_key: key, ..options() };
        let claimed = self.client.claim("customer", &item(&format!("event-{}", self.count)), &options).wait()?.value;
        if let Some(last) = self.last {
            assert!(claimed.event_id > last.event_id, "{claimed:?} after {last:?}");
            assert!(claimed.claim_timestamp_us >= last.claim_timestamp_us, "{claimed:?} after {last:?}");
        }
        self.last = Some(claimed);
        Ok(claimed)
    }

    fn expect_suspect(&mut self) {
        match self.claim() {
            Err(ClientError::Refused(error)) => {
                assert_eq!(error.code, ErrorCode::ClockSuspect);
                assert!(error.message.contains("claimctl confirm-clock"), "{error}");
            }
            other => panic!("expected CLOCK_SUSPECT, got {other:?}"),
        }
    }

    fn confirm(&self) {
        let key = Some(new_key(Some(now_us() + self.offset_us)));
        self.client
            .confirm_clock(&RequestOptions { idempotency_key: key, ..options() })
            .wait()
            .expect("a confirmation");
    }
}

#[test]
fn while_it_runs() {
    let scratch = scratch();
    let clock = Clock::new(scratch.path());
    let data = scratch.path().join("ledger");
    format(&data, 2, "wall");
    let daemon = clock.start(&data);
    let client = daemon.client();
    client.onboard("customer", "", &options()).wait().expect("an onboarding");
    let mut claims = Claims { client: &client, offset_us: 0, last: None, count: 0 };
    let key = new_key(None);
    let keyed = RequestOptions { idempotency_key: Some(key), ..options() };
    let first = client.claim("customer", &item("first"), &keyed).wait().expect("a claim").value;
    claims.claim().expect("a claim");

    // Back by a day: timestamps hold, ids increase.
    let before = claims.last.expect("claimed above").claim_timestamp_us;
    clock.set(-DAY_US, 0);
    for _ in 0..20 {
        assert_eq!(claims.claim().expect("a claim under a clock that stepped back").claim_timestamp_us, before);
    }
    // Standing still.
    clock.set(0, now_us());
    for _ in 0..20 {
        claims.claim().expect("a claim under a clock that stands still");
    }
    // Ahead by less than an hour is a clock set right; beyond it is suspect, by a little or by ten years.
    clock.set(59 * 60 * SECOND_US, 0);
    claims.claim().expect("a leap of 59 minutes is believed");
    for leap_us in [HOUR_US + 60 * SECOND_US, 10 * YEAR_US] {
        clock.set(leap_us, 0);
        claims.expect_suspect();
        let reason = RequestOptions { rationale: "no".to_owned(), ..options() };
        let retraction = client.retract("customer", first.event_id, ReasonCode::Other, &reason).wait();
        assert_eq!(retraction.expect_err("refused").code(), Some(ErrorCode::ClockSuspect), "no entry is written");
        client.lookup(first.event_id, &options()).wait().expect("reads go on");
        let again = client.claim("customer", &item("first"), &keyed).wait().expect("a retry is answered");
        assert_eq!(again.value, first);
        assert!(client.status(&options()).wait().expect("a status").shards.iter().any(|shard| shard.clock_suspect));
    }
    // Only an operator ends it.
    clock.set(0, 0);
    claims.expect_suspect();
    clock.set(10 * YEAR_US, 0);
    claims.offset_us = 10 * YEAR_US;
    claims.confirm();
    let claimed = claims.claim().expect("a confirmed clock is believed");
    assert!(claimed.claim_timestamp_us > now_us() + 9 * YEAR_US);
    daemon.stop();
}

#[test]
fn at_its_start() {
    let scratch = scratch();
    let clock = Clock::new(scratch.path());
    let data = scratch.path().join("ledger");
    format(&data, 1, "wall");
    let daemon = clock.start(&data);
    daemon.client().onboard("customer", "", &options()).wait().expect("an onboarding");
    // Under a clock of ten years later the barriers' quarter would be dropped, sooner or later.
    let reason = RequestOptions { rationale: "a test".to_owned(), ..options() };
    daemon.client().hold(1970, 1, &reason).wait().expect("a hold");
    let mut last: Option<Claimed> = None;
    let mut restart = |daemon: Daemon, offset_us: i64, suspect: bool| {
        daemon.kill();
        clock.set(offset_us, 0);
        let daemon = clock.start(&data);
        let client = daemon.client();
        let mut claims = Claims { client: &client, offset_us, last, count: 0 };
        if suspect {
            claims.expect_suspect();
            claims.confirm();
        }
        claims.offset_us = offset_us.max(last.map_or(0, |l| l.claim_timestamp_us - now_us()));
        claims.claim().unwrap_or_else(|e| panic!("a claim at {offset_us}: {e}"));
        last = claims.last;
        daemon
    };
    let daemon = restart(daemon, 0, false);
    let daemon = restart(daemon, HOUR_US, false);
    expect_barriers(&daemon, 0);
    let daemon = restart(daemon, -10 * DAY_US, false);
    expect_barriers(&daemon, 1);
    let daemon = restart(daemon, 89 * DAY_US, false);
    let daemon = restart(daemon, 190 * DAY_US, true);
    let daemon = restart(daemon, 10 * YEAR_US, true);
    expect_barriers(&daemon, 1);
    let daemon = restart(daemon, 0, false);
    expect_barriers(&daemon, 2);
    daemon.stop();
}

/// Waits until so many barriers were raised in the ledger's life; more are never there.
fn expect_barriers(daemon: &Daemon, due: usize) {
    let client = daemon.client();
    for _ in 0..BARRIER_LOOKS_MAX {
        let tail = TailOptions { shard: 0, from_position: 1, page_entries: 0, wait: Duration::ZERO };
        let entries = client.tail(tail, &options()).flat_map(|page| page.expect("a page").entries);
        let found = entries.filter(|entry| entry.operation == AuditOperation::Barrier).count();
        assert!(found <= due, "{found} barriers instead of {due}");
        if found == due {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("there are fewer than {due} barriers");
}
