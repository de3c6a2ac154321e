//! Shows whether a write can be had here that a power cut leaves whole or undone (`RWF_ATOMIC`), and up to which length. See
//! `kernel-notes/atomic-writes.md`.
//!
//! `cargo run --release -p claim-bench --example atomic_writes -- DIR`

use claim_engine::device::block;
use claim_engine::device::scratch::{AlignedBuffer, Caching, Extents, Scratch};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `STATX_WRITE_ATOMIC` of linux/stat.h, which the C library's headers may lack.
const STATX_WRITE_ATOMIC: u32 = 0x1_0000;

/// Lengths of a batch, from the smallest to the largest.
const LENGTHS_KIB: [usize; 4] = [4, 16, 64, 1024];

fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args().nth(1);
    let directory = Path::new(argument.as_deref().unwrap_or("."));
    match block::behind(directory)? {
        Some(device) => {
            let path = format!("/sys/block/{}/queue/atomic_write_unit_max_bytes", device.name);
            match std::fs::read_to_string(&path) {
                Ok(text) => println!("device {}: largest atomic write {} bytes", device.name, text.trim()),
                Err(_) => println!("device {}: this kernel does not say (before 6.11)", device.name),
            }
        }
        None => println!("no device can be told below {}", directory.display()),
    }
    let scratch = Scratch::create(directory, 1 << 20, Extents::Written, Caching::Direct)?;
    println!("statx of a file: {}", told(scratch.plain())?);
    for kib in LENGTHS_KIB {
        let plain = outcome(write(scratch.plain(), kib * 1024, libc::RWF_DSYNC));
        let atomic = outcome(write(scratch.plain(), kib * 1024, libc::RWF_DSYNC | libc::RWF_ATOMIC));
        println!("{kib:>5} KiB, RWF_DSYNC: {plain}; with RWF_ATOMIC: {atomic}");
    }
    Ok(())
}

/// What statx says of atomic writes to the file.
fn told(file: &File) -> io::Result<String> {
    // SAFETY: statx is plain integers, for which all-zero bytes are a valid value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for the whole call, the empty path is a C string that selects the descriptor itself, and
    // `found` is live and exclusively borrowed.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_WRITE_ATOMIC, &mut found) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if found.stx_mask & STATX_WRITE_ATOMIC == 0 {
        return Ok("nothing about atomic writes".to_owned());
    }
    let (least, most) = (found.stx_atomic_write_unit_min, found.stx_atomic_write_unit_max);
    Ok(format!("from {least} to {most} bytes, in at most {} pieces", found.stx_atomic_write_segments_max))
}

/// Writes `bytes` zeros at the file's beginning.
fn write(file: &File, bytes: usize, flags: i32) -> io::Result<()> {
    let buffer = AlignedBuffer::zeroed(bytes);
    let area = libc::iovec { iov_base: buffer.bytes().as_ptr().cast_mut().cast(), iov_len: bytes };
    // SAFETY: the descriptor is open, and the one area is that of a live buffer, which the call only reads.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &area, 1, 0, flags) };
    match written {
        written if written == bytes as isize => Ok(()),
        error if error < 0 => Err(io::Error::last_os_error()),
        short => Err(io::Error::other(format!("{short} bytes only"))),
    }
}

fn outcome(result: io::Result<()>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "written".to_owned())
}
