//! Loop devices, for ledgers on block devices. They take root and /dev/loop-control; CI has both.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, detached when it goes.
pub struct Loop {
    pub path: PathBuf,
}

impl Loop {
    pub fn new(dir: &Path, name: &str, bytes: u64) -> Loop {
        let is_root = nix::unistd::geteuid().is_root();
        assert!(
            is_root && Path::new("/dev/loop-control").exists(),
            "this test makes loop devices: run it as root, with the loop module"
        );
        let file = dir.join(name);
        File::create(&file).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        let output = output.expect("losetup of util-linux is installed");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Loop { path: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) }
    }

    pub fn text(&self) -> &str {
        self.path.to_str().expect("a path in ASCII")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}
