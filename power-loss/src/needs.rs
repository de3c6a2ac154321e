//! What a layer needs of the machine. It is looked at first, and what is missing is named, with what to do.

use std::path::Path;
use std::process::{Command, Stdio};

/// One thing that is needed.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    is_there: fn() -> bool,
    /// What is missing, and what to do.
    missing: &'static str,
}

/// Mounting.
pub const ROOT: Need =
    Need { is_there: || nix::unistd::geteuid().is_root(), missing: "it mounts file systems: run it as root" };

/// FUSE.
pub const FUSE: Need = Need {
    is_there: || Path::new("/dev/fuse").exists(),
    missing: "/dev/fuse is not there: load the module with `modprobe fuse`, or give the container the device",
};

/// Loop devices.
pub const LOOP: Need = Need {
    is_there: || Path::new("/dev/loop-control").exists() && runs("losetup"),
    missing: "loop devices are not there: `modprobe loop`, and install util-linux",
};

/// mkfs.ext4.
pub const MKFS: Need = Need { is_there: || runs("mkfs.ext4"), missing: "mkfs.ext4 is not there: install e2fsprogs" };

fn runs(program: &str) -> bool {
    let status = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok()
}

/// Looks at all of them. The error names everything that is missing.
pub fn check(needs: &[Need]) -> Result<(), String> {
    let missing: Vec<_> = needs.iter().filter(|need| !(need.is_there)()).map(|need| need.missing).collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}
