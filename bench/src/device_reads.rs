//! What the daemon behind a socket has its devices read, as the kernel counts it: what its page cache or another process reads is not in it.

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

/// Counting from a moment on.
#[derive(Debug)]
pub struct DeviceReads {
    pid: i32,
    since: Instant,
    bytes: u64,
}

impl DeviceReads {
    /// `None` where the kernel does not tell, as of processes of other users.
    pub fn begin(socket: &Path) -> Option<DeviceReads> {
        let stream = UnixStream::connect(socket).ok()?;
        let pid = getsockopt(&stream, PeerCredentials).ok()?.pid();
        Some(DeviceReads { pid, since: Instant::now(), bytes: bytes_read(pid)? })
    }

    /// Bytes a second since then.
    pub fn per_second(&self) -> Option<f64> {
        let bytes = bytes_read(self.pid)?.checked_sub(self.bytes)?;
        Some(bytes as f64 / self.since.elapsed().as_secs_f64())
    }
}

fn bytes_read(pid: i32) -> Option<u64> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?)
}

/// From proc(5)'s `/proc/PID/io`.
fn parse(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_daemon::{FakeDaemon, Manner};

    #[test]
    fn the_kernel_counts_by_process() {
        let io = "rchar: 4292\nwchar: 0\nsyscr: 13\nsyscw: 0\nread_bytes: 8192\nwrite_bytes: 7\n";
        assert_eq!(parse(io), Some(8192));
        assert_eq!(parse("rchar: 1\n"), None);
    }

    #[test]
    fn the_process_behind_a_socket_is_found() {
        let daemon = FakeDaemon::start(Manner::HasRows);
        let own = std::process::id() as i32;
        let counted = DeviceReads::begin(daemon.socket()).map(|reads| reads.pid);
        assert_eq!(counted, bytes_read(own).map(|_| own));
        assert!(DeviceReads::begin(Path::new("/nowhere")).is_none());
    }
}
