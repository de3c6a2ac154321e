//! Shows how a refused io_uring looks to the refused: plainly, behind seccomp filters that answer EPERM and ENOSYS, and as another
//! user, to whom the sysctl may apply. See `kernel-notes/ring-permission.md`.
//!
//! `cargo run --release -p claim-bench --example ring_permission` (as root, to see another user's)

use claim_engine::device::ring;
use nix::unistd::{Uid, geteuid, setuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::error::Error;
use std::process::Command;

/// The user `nobody`.
const NOBODY: u32 = 65534;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("child") {
        setuid(Uid::from_raw(NOBODY))?;
        return report(&format!("uid {NOBODY}"));
    }
    match ring::sysctl()? {
        Some(value) => println!("kernel.io_uring_disabled is {value}"),
        None => println!("this kernel has no kernel.io_uring_disabled (before 6.6)"),
    }
    report(&format!("uid {}", geteuid()))?;
    if geteuid().is_root() {
        let status = Command::new(std::env::current_exe()?).arg("child").status()?;
        if !status.success() {
            return Err(format!("the child failed: {status}").into());
        }
    }
    report_filtered("a filter that answers EPERM", libc::EPERM);
    report_filtered("a filter that answers ENOSYS", libc::ENOSYS);
    Ok(())
}

fn report(who: &str) -> Result<(), Box<dyn Error>> {
    println!("{who}: {:?}", ring::access()?);
    Ok(())
}

/// The same in a thread whose io_uring_setup a filter refuses; the filter ends with its thread.
fn report_filtered(who: &'static str, errno: i32) {
    let thread = std::thread::spawn(move || {
        let rules = [(libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
        let architecture = std::env::consts::ARCH.try_into().expect("an architecture that seccomp knows");
        let refuse = SeccompAction::Errno(errno as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).expect("a filter");
        let program: BpfProgram = filter.try_into().expect("a program");
        seccompiler::apply_filter(&program).expect("filters can be set on this kernel");
        report(who).expect("/proc is readable");
    });
    thread.join().expect("the thread does not panic");
}
