//! Shows that writes in a ring can outlive the process that submitted them, and that a `flock` on the description they go
//! through is held until the last of them is done. See `kernel-notes/lock-outlives-process.md`.
//!
//! `cargo run -p claim-bench --example lock_outlives_process -- DIR`

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use claim_engine::device::scratch::AlignedBuffer;
use io_uring::{IoUring, opcode, types};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Writes that the child leaves behind; more than a device finishes while a process dies.
const WRITES: u64 = 256;

/// Length of each.
const WRITE_BYTES: usize = 1 << 20;

/// What the child writes, where zeros were.
const MARK: u8 = 0xA5;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => child(Path::new(&arguments[2])),
        directory => parent(Path::new(directory.unwrap_or("."))),
    }
}

fn parent(directory: &Path) -> io::Result<()> {
    let path = directory.join(format!("lock-outlives-process-{}", std::process::id()));
    let outcome = watch(&path);
    std::fs::remove_file(&path)?;
    outcome
}

fn watch(path: &PathBuf) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    for number in 0..WRITES {
        file.write_all_at(&vec![0; WRITE_BYTES], number * WRITE_BYTES as u64)?;
    }
    file.sync_all()?;

    let first = locked(open(path)?).expect("nobody else holds the lock");
    println!(
        "one process, two opens: the second is {}",
        if locked(open(path)?).is_none() { "refused" } else { "LOCKED, TOO" }
    );
    drop(first);

    let mut child = Command::new(std::env::current_exe()?).arg("child").arg(path).stdout(Stdio::piped()).spawn()?;
    // One byte says that everything is submitted; then the child is killed.
    child.stdout.take().expect("it is piped").read_exact(&mut [0])?;
    child.kill()?;
    let began = Instant::now();
    let status = child.wait()?;
    let gone = began.elapsed();
    let mut free = locked(open(path)?);
    println!(
        "the child is gone ({status}, {} µs after the kill): the lock is {}, the last of {WRITES} writes {}",
        gone.as_micros(),
        if free.is_none() { "held" } else { "free" },
        last_write(path)?
    );
    while free.is_none() {
        free = locked(open(path)?);
    }
    let unlocked = began.elapsed();
    println!("the lock is free {} µs after the kill: the last write {}", unlocked.as_micros(), last_write(path)?);
    let left_out = missing(path)?;
    std::thread::sleep(Duration::from_millis(300));
    println!("writes that did not happen: {left_out}, and 300 ms later {}", missing(path)?);
    Ok(())
}

/// Locks the file, submits every write through that description, says so, and waits to be killed.
fn child(path: &Path) -> io::Result<()> {
    let file = locked(open(path)?).expect("the parent has let go");
    let mut ring = IoUring::new(WRITES as u32)?;
    let mut buffer = AlignedBuffer::zeroed(WRITE_BYTES);
    buffer.bytes_mut().fill(MARK);
    for number in 0..WRITES {
        let write = opcode::Write::new(types::Fd(file.as_raw_fd()), buffer.bytes().as_ptr(), WRITE_BYTES as u32)
            .offset(number * WRITE_BYTES as u64)
            .build();
        // SAFETY: the buffer and the descriptor live until the process ends, and the kernel keeps their pages and the
        // description beyond that.
        unsafe { ring.submission().push(&write) }.expect("the ring has room for all");
    }
    ring.submit()?;
    io::stdout().write_all(b".")?;
    io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}

/// A new description of the file, as a ledger is opened.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)
}

fn locked(file: File) -> Option<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

/// Whether the last write has reached the file, in words. One read only: more would wait for the writes themselves.
fn last_write(path: &Path) -> io::Result<&'static str> {
    Ok(if is_marked(&open(path)?, WRITES - 1)? { "is there" } else { "is not there yet" })
}

/// How many of the writes have not reached the file.
fn missing(path: &Path) -> io::Result<usize> {
    let file = open(path)?;
    let marks = (0..WRITES).map(|number| is_marked(&file, number)).collect::<io::Result<Vec<bool>>>()?;
    Ok(marks.iter().filter(|marked| !**marked).count())
}

/// Whether the last block of a write is in the file.
fn is_marked(file: &File, number: u64) -> io::Result<bool> {
    let mut block = AlignedBuffer::zeroed(4096);
    file.read_exact_at(block.bytes_mut(), (number + 1) * WRITE_BYTES as u64 - 4096)?;
    Ok(block.bytes()[4095] == MARK)
}
