//! Tries the kernel's features that claimd needs, those it uses where they are there, and those it does without. Ends with a
//! failure when a needed one is missing. See `kernel-notes/kernel-versions.md`.
//!
//! `cargo run --release -p claim-bench --example kernel_features -- DIR`

use claim_engine::device::directory::{Alignment, AlignmentSource, DirectIo, direct_io};
use claim_engine::device::scratch::{AlignedBuffer, Caching, Extents, Scratch};
use claim_engine::device::{block, kernel, ring};
use comfy_table::{Table, presets};
use io_uring::{Builder, IoUring, opcode, squeue};
use nix::fcntl::{FallocateFlags, fallocate};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;

/// What claimd does with a feature.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It does not start without.
    Needs,
    /// It uses it where it is there.
    Takes,
    /// It was tried, and is not used.
    None,
}

struct Feature {
    name: &'static str,
    since: &'static str,
    of: Use,
    tried: Result<(), String>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let argument = std::env::args().nth(1);
    let directory = Path::new(argument.as_deref().unwrap_or("."));
    let scratch = Scratch::create(directory, 1 << 20, Extents::Written, Caching::Direct)?;
    println!("kernel {}", kernel::running()?.release);
    let features = features(directory, &scratch);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["feature", "since", "claimd", "here"]);
    for Feature { name, since, of, tried } in &features {
        let claimd = match of {
            Use::Needs => "needs it",
            Use::Takes => "uses it if there",
            Use::None => "does without",
        };
        table.add_row([name, since, claimd, tried.as_ref().map_or_else(String::as_str, |()| "yes")]);
    }
    println!("{table}");
    let missing = features.iter().any(|feature| feature.of == Use::Needs && feature.tried.is_err());
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn features(directory: &Path, scratch: &Scratch) -> Vec<Feature> {
    let feature = |name, since, of, tried| Feature { name, since, of, tried };
    let rings = |setup: fn(&mut Builder)| {
        let mut builder = IoUring::builder();
        setup(&mut builder);
        builder.build(2).map(drop).map_err(|error| error.to_string())
    };
    vec![
        feature("fallocate: reserve, punch out", "2.6.38", Use::Needs, punch(scratch.plain())),
        feature("RWF_DSYNC on one write", "4.7", Use::None, write(scratch.plain(), libc::RWF_DSYNC)),
        feature("io_uring", "5.1", Use::Needs, rings(|_| ())),
        feature("linked requests", "5.3", Use::None, link()),
        feature("the runtime's 23 operations", "5.8", Use::Needs, operations()),
        feature("rings free of memlock", "5.12", Use::Takes, native_workers()),
        feature("IORING_SETUP_COOP_TASKRUN", "5.19", Use::None, rings(|builder| _ = builder.setup_coop_taskrun())),
        feature("IORING_SETUP_SINGLE_ISSUER", "6.0", Use::None, rings(|builder| _ = builder.setup_single_issuer())),
        feature(
            "IORING_SETUP_DEFER_TASKRUN",
            "6.1",
            Use::None,
            rings(|builder| _ = builder.setup_single_issuer().setup_defer_taskrun()),
        ),
        feature("STATX_DIOALIGN", "6.1", Use::Takes, alignment(directory)),
        feature("kernel.io_uring_disabled", "6.6", Use::Takes, sysctl()),
        feature("a queue tells of atomic writes", "6.11", Use::None, atomic_limit(directory)),
        feature("RWF_ATOMIC on this file", "6.11, 6.13", Use::None, write(scratch.plain(), libc::RWF_ATOMIC)),
    ]
}

fn write(file: &File, flags: i32) -> Result<(), String> {
    let buffer = AlignedBuffer::zeroed(4096);
    let area = libc::iovec { iov_base: buffer.bytes().as_ptr().cast_mut().cast(), iov_len: 4096 };
    // SAFETY: the descriptor is open, and the one area is that of a live buffer, which the call only reads.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &area, 1, 0, flags) };
    if written == 4096 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

fn punch(file: &File) -> Result<(), String> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let reserved = fallocate(file, FallocateFlags::empty(), 0, 4096);
    reserved.and_then(|()| fallocate(file, flags, 4096, 4096)).map_err(|errno| errno.desc().to_owned())
}

fn link() -> Result<(), String> {
    let try_link = || -> io::Result<bool> {
        let mut ring = IoUring::new(2)?;
        let entries = [opcode::Nop::new().build().flags(squeue::Flags::IO_LINK), opcode::Nop::new().build()];
        // SAFETY: the operations name neither a descriptor nor memory.
        unsafe { ring.submission().push_multiple(&entries) }.expect("the ring has two entries");
        ring.submit_and_wait(2)?;
        Ok(ring.completion().all(|completion| completion.result() == 0))
    };
    match try_link() {
        Ok(true) => Ok(()),
        Ok(false) => Err("refused".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn operations() -> Result<(), String> {
    match ring::missing_operations() {
        Ok(missing) if missing.is_empty() => Ok(()),
        Ok(missing) => Err(format!("lacks {}", missing.join(", "))),
        Err(error) => Err(error.to_string()),
    }
}

/// Came with the same version as the end of accounting rings themselves, and the ring tells.
fn native_workers() -> Result<(), String> {
    let ring = IoUring::new(2).map_err(|error| error.to_string())?;
    if ring.params().is_feature_native_workers() { Ok(()) } else { Err("no".to_owned()) }
}

fn alignment(directory: &Path) -> Result<(), String> {
    match direct_io(directory) {
        Ok(DirectIo::Works(Alignment { source: AlignmentSource::Statx, .. })) => Ok(()),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

fn sysctl() -> Result<(), String> {
    match ring::sysctl() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("no".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn atomic_limit(directory: &Path) -> Result<(), String> {
    match block::behind(directory) {
        Ok(Some(device)) => {
            let path = format!("/sys/block/{}/queue/atomic_write_unit_max_bytes", device.name);
            std::fs::metadata(path).map(drop).map_err(|_| "no".to_owned())
        }
        Ok(None) => Err("no device can be told".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
