//! Shows whose credentials a Unix socket reports: those of the process that connected, as it was when it did. See
//! `kernel-notes/peer-credentials.md`.
//!
//! `cargo run -p claim-bench --example peer_credentials` (as root, to see the user change)

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, geteuid, setuid};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

/// The user `nobody`.
const NOBODY: u32 = 65534;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => child(Path::new(&arguments[2])),
        _ => parent(),
    }
}

fn parent() -> io::Result<()> {
    let path = std::env::temp_dir().join(format!("peer-credentials-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path)?;
    let child = Command::new(std::env::current_exe()?).arg("child").arg(&path).spawn();
    let outcome = child.and_then(|mut child| {
        println!("listening as process {}, child is process {}", std::process::id(), child.id());
        report(&listener)?;
        child.wait()
    });
    std::fs::remove_file(&path)?;
    outcome.map(|_| ())
}

fn report(listener: &UnixListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let told = |when: &str, stream: &UnixStream| -> io::Result<()> {
        let found = getsockopt(stream, PeerCredentials)?;
        println!("{when}: pid {}, uid {}, gid {}", found.pid(), found.uid(), found.gid());
        Ok(())
    };
    told("on accept", &stream)?;
    // The child answers once it has become somebody else.
    stream.write_all(b"?")?;
    let mut uid = [0; 4];
    stream.read_exact(&mut uid)?;
    println!("the child says that it is uid {} now", u32::from_le_bytes(uid));
    told("asked again", &stream)?;
    // The end of the stream is the end of the child.
    stream.write_all(b"?")?;
    stream.read_to_end(&mut Vec::new())?;
    told("when it is gone", &stream)
}

fn child(path: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.read_exact(&mut [0])?;
    if geteuid().is_root() {
        setuid(Uid::from_raw(NOBODY))?;
    }
    stream.write_all(&geteuid().as_raw().to_le_bytes())?;
    stream.read_exact(&mut [0])
}
