//! Shows how memory that rings register is accounted against the memlock limit: once for every ring, per user over all of the
//! user's processes, and not at all with CAP_IPC_LOCK. See `kernel-notes/memlock.md`.
//!
//! `cargo run --release -p claim-bench --example memlock` (as root, to see both sides)

#![allow(clippy::disallowed_methods, reason = "it waits, and says how long")]

use claim_engine::device::scratch::AlignedBuffer;
use io_uring::IoUring;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, geteuid, setuid};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The user `nobody`.
const NOBODY: u32 = 65534;

/// What an executor's rings register.
const AREA_BYTES: usize = 1 << 20;

/// As many as an executor has, and one more.
const RINGS: usize = 4;

/// How long the account of a process that is gone may be held.
const RELEASE_MAX: Duration = Duration::from_secs(10);

/// Room for the area of two rings and a half.
const LIMIT_BYTES: u64 = (AREA_BYTES * 5 / 2) as u64;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => child(arguments[2].parse().expect("a user's number"), arguments[3].parse().expect("a number")),
        _ => parent(),
    }
}

fn parent() -> io::Result<()> {
    println!("limit {} KiB, area {} KiB", LIMIT_BYTES / 1024, AREA_BYTES / 1024);
    let me = geteuid().as_raw();
    Registered::by(me, RINGS)?.end()?;
    if me == NOBODY {
        return Ok(());
    }
    if !geteuid().is_root() {
        println!("(as root this shows an unaccounted user, too)");
        return Ok(());
    }
    let first = Registered::by(NOBODY, RINGS)?;
    println!("beside it, a second process of that user:");
    Registered::by(NOBODY, 1)?.end()?;
    first.end()?;
    let began = Instant::now();
    println!("when the first is gone and waited for:");
    loop {
        let next = Registered::by(NOBODY, 1)?;
        let registered = next.all;
        next.end()?;
        if registered {
            println!("(after {} ms)", began.elapsed().as_millis());
            return Ok(());
        }
        if began.elapsed() > RELEASE_MAX {
            return Err(io::Error::other("the account of a process that is gone is not released"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that has registered what it could, and lives on.
struct Registered {
    child: Child,
    stdin: ChildStdin,
    /// Every ring took the area.
    all: bool,
}

impl Registered {
    /// Starts it as this user, with so many rings, and prints what it says.
    fn by(uid: u32, rings: usize) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["child", &uid.to_string(), &rings.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().expect("it is piped");
        let stdout: ChildStdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        print!("{line}");
        let all = line.matches("ok").count() == rings;
        Ok(Registered { child, stdin, all })
    }

    /// Closes its input, which it takes as the end.
    fn end(mut self) -> io::Result<()> {
        drop(self.stdin);
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("a child failed: {status}"))) }
    }
}

/// Registers one area with several rings as user `uid`, under the limit, and keeps it until the input ends.
fn child(uid: u32, rings: usize) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_MEMLOCK, LIMIT_BYTES, LIMIT_BYTES)?;
    if uid != geteuid().as_raw() {
        setuid(Uid::from_raw(uid))?;
    }
    let mut area = AlignedBuffer::zeroed(AREA_BYTES);
    let areas = [libc::iovec { iov_base: area.bytes_mut().as_mut_ptr().cast(), iov_len: AREA_BYTES }];
    let mut held = Vec::new();
    let mut said = format!("uid {uid}:");
    for number in 1..=rings {
        let ring = IoUring::new(2)?;
        // SAFETY: no operation is ever submitted on the area, which is freed behind the rings.
        match unsafe { ring.submitter().register_buffers(&areas) } {
            Ok(()) => said.push_str(&format!(" ring {number} ok,")),
            Err(error) => said.push_str(&format!(" ring {number} {error},")),
        }
        held.push(ring);
    }
    println!("{}", said.trim_end_matches(','));
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(held);
    drop(area);
    Ok(())
}
