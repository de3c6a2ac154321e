//! Whether this process may have an io_uring, and whether the ring can do what the runtime asks of it.

use super::{DeviceError, kernel};
use io_uring::{IoUring, Probe, opcode};
use std::io;
use std::path::Path;

/// Where the kernel says who may set up a ring: 0 everybody, 1 a group and CAP_SYS_ADMIN, 2 nobody. Kernels before 6.6
/// have no such file, and no such restriction.
pub const SYSCTL_PATH: &str = "/proc/sys/kernel/io_uring_disabled";

/// Entries of the ring that is set up to see whether it can be.
const TRIAL_RING_ENTRIES: u32 = 2;

/// Capability bit of CAP_SYS_ADMIN, which `io_uring_disabled` = 1 lets through.
const CAP_SYS_ADMIN: u32 = 21;

/// The operations that the runtime refuses to start without (`GLOMMIO_URING_OPS` in glommio 0.9.0's `sys/uring.rs`),
/// and their names for people. The runtime ends the process when one is missing, so they are looked at beforehand.
const NEEDED_OPERATIONS: [(u8, &str); 23] = [
    (opcode::Nop::CODE, "nop"),
    (opcode::Readv::CODE, "readv"),
    (opcode::Writev::CODE, "writev"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::ReadFixed::CODE, "read_fixed"),
    (opcode::WriteFixed::CODE, "write_fixed"),
    (opcode::PollAdd::CODE, "poll_add"),
    (opcode::PollRemove::CODE, "poll_remove"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::RecvMsg::CODE, "recvmsg"),
    (opcode::Timeout::CODE, "timeout"),
    (opcode::TimeoutRemove::CODE, "timeout_remove"),
    (opcode::Accept::CODE, "accept"),
    (opcode::LinkTimeout::CODE, "link_timeout"),
    (opcode::Connect::CODE, "connect"),
    (opcode::Fallocate::CODE, "fallocate"),
    (opcode::OpenAt::CODE, "openat"),
    (opcode::Close::CODE, "close"),
    (opcode::Statx::CODE, "statx"),
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Send::CODE, "send"),
    (opcode::Recv::CODE, "recv"),
];

/// How many operations are looked for.
pub const NEEDED_OPERATIONS_COUNT: usize = NEEDED_OPERATIONS.len();

/// Whether a ring can be set up here, and if not, who stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RingAccess {
    /// A ring was set up and torn down again.
    Allowed,
    /// The sysctl `kernel.io_uring_disabled` forbids it, for everybody (2) or for this user (1).
    DisabledBySysctl {
        /// The sysctl's value.
        value: u64,
    },
    /// A seccomp filter of this process answers the call with an error.
    DeniedBySeccomp,
    /// The kernel has the call and no filter is set, yet it is refused: a security module.
    DeniedBySecurityModule,
    /// The kernel is built without io_uring, or is older than it.
    NotInKernel,
    /// Something passing or unexpected, such as no file descriptors left.
    Failed {
        /// The error number that the call returned.
        errno: i32,
    },
}

/// What decides between the causes of a refused ring, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Circumstances {
    /// Value of the sysctl; `None` where the kernel has none.
    sysctl: Option<u64>,
    /// Whether a seccomp filter is installed on this process.
    seccomp_filter: bool,
    /// Whether this process holds CAP_SYS_ADMIN.
    sys_admin: bool,
}

/// Sets up a small ring and says how that went.
pub fn access() -> Result<RingAccess, DeviceError> {
    match IoUring::new(TRIAL_RING_ENTRIES) {
        Ok(_ring) => Ok(RingAccess::Allowed),
        Err(error) => Ok(cause(error.raw_os_error().unwrap_or(0), circumstances()?)),
    }
}

/// Who refused a ring, from the error number and the circumstances.
fn cause(errno: i32, circumstances: Circumstances) -> RingAccess {
    let Circumstances { sysctl, seccomp_filter, sys_admin } = circumstances;
    match (errno, sysctl) {
        // The sysctl's own error is EPERM; at 1 it lets CAP_SYS_ADMIN pass, so then it was somebody else.
        (libc::EPERM, Some(2)) => RingAccess::DisabledBySysctl { value: 2 },
        (libc::EPERM, Some(1)) if !sys_admin => RingAccess::DisabledBySysctl { value: 1 },
        (libc::EPERM | libc::EACCES, _) if seccomp_filter => RingAccess::DeniedBySeccomp,
        (libc::EPERM | libc::EACCES, _) => RingAccess::DeniedBySecurityModule,
        // A kernel that has the sysctl has the call, so the answer "no such call" comes from a filter.
        (libc::ENOSYS, Some(_)) if seccomp_filter => RingAccess::DeniedBySeccomp,
        (libc::ENOSYS, _) if seccomp_filter && kernel_has_rings() => RingAccess::DeniedBySeccomp,
        (libc::ENOSYS, _) => RingAccess::NotInKernel,
        _ => RingAccess::Failed { errno },
    }
}

/// Whether a kernel of this version ordinarily has io_uring; one that can't be read counts as not.
fn kernel_has_rings() -> bool {
    kernel::running().is_ok_and(|kernel| kernel.version >= kernel::OLDEST_USABLE)
}

fn circumstances() -> Result<Circumstances, DeviceError> {
    let status = ProcessStatus::read()?;
    Ok(Circumstances {
        sysctl: sysctl()?,
        seccomp_filter: status.seccomp_filter,
        sys_admin: status.has_capability(CAP_SYS_ADMIN),
    })
}

/// The value of `kernel.io_uring_disabled`; `None` on kernels without it.
pub fn sysctl() -> Result<Option<u64>, DeviceError> {
    match super::read_number(Path::new(SYSCTL_PATH)) {
        Ok(value) => Ok(Some(value)),
        Err(DeviceError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The needed operations that this kernel's rings lack; empty when all are there. Asks the kernel
/// (`IORING_REGISTER_PROBE`), since distributions carry operations back and version numbers do not tell.
pub fn missing_operations() -> Result<Vec<&'static str>, DeviceError> {
    let ring = IoUring::new(TRIAL_RING_ENTRIES).map_err(|source| DeviceError::Ring { operation: "set up", source })?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|source| DeviceError::Ring { operation: "list its operations", source })?;
    Ok(NEEDED_OPERATIONS.iter().filter(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name).collect())
}

/// The parts of `/proc/self/status` that decide what this process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessStatus {
    /// Bits of the effective capability set.
    effective_capabilities: u64,
    /// Whether seccomp runs in filter mode.
    seccomp_filter: bool,
}

impl ProcessStatus {
    /// Reads this process's own.
    pub(super) fn read() -> Result<Self, DeviceError> {
        let path = Path::new("/proc/thread-self/status");
        let text = super::read_text(path)?;
        Self::parse(&text).ok_or_else(|| DeviceError::Malformed {
            path: path.to_owned(),
            found: text,
            expected: "a line `CapEff:` with a hexadecimal set",
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(ProcessStatus {
            effective_capabilities: u64::from_str_radix(field("CapEff:")?, 16).ok()?,
            // A kernel without seccomp prints no such line, and filters nothing. 2 is filter mode.
            seccomp_filter: field("Seccomp:") == Some("2"),
        })
    }

    /// Whether the capability of this number is in effect.
    pub(super) fn has_capability(&self, number: u32) -> bool {
        self.effective_capabilities & (1 << number) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(errno: i32, sysctl: Option<u64>, seccomp_filter: bool, sys_admin: bool, expected: RingAccess) {
        let circumstances = Circumstances { sysctl, seccomp_filter, sys_admin };
        assert_eq!(cause(errno, circumstances), expected, "errno {errno}, {circumstances:?}");
    }

    #[test]
    fn a_refused_ring_is_laid_to_whoever_refused_it() {
        use RingAccess::{DeniedBySeccomp, DeniedBySecurityModule, DisabledBySysctl, Failed, NotInKernel};
        check(libc::EPERM, Some(2), false, true, DisabledBySysctl { value: 2 });
        check(libc::EPERM, Some(2), true, true, DisabledBySysctl { value: 2 });
        check(libc::EPERM, Some(1), false, false, DisabledBySysctl { value: 1 });
        check(libc::EPERM, Some(1), true, true, DeniedBySeccomp);
        check(libc::EPERM, Some(0), true, false, DeniedBySeccomp);
        check(libc::EACCES, None, true, false, DeniedBySeccomp);
        check(libc::EPERM, Some(0), false, true, DeniedBySecurityModule);
        check(libc::ENOSYS, Some(0), true, true, DeniedBySeccomp);
        check(libc::ENOSYS, None, false, true, NotInKernel);
        check(libc::EMFILE, Some(0), false, true, Failed { errno: libc::EMFILE });
    }

    #[test]
    fn the_process_status_is_understood() {
        let status = ProcessStatus::parse("Name:\tx\nCapEff:\t0000000000200000\nSeccomp:\t2\nSeccomp_filters:\t1\n");
        let status = status.expect("it has CapEff");
        assert!(status.has_capability(CAP_SYS_ADMIN));
        assert!(!status.has_capability(14));
        assert!(status.seccomp_filter);
        assert_eq!(ProcessStatus::parse("Name:\tx\n"), None);
        let unfiltered = ProcessStatus::parse("CapEff:\t0\nSeccomp:\t0\n").expect("it has CapEff");
        assert!(!unfiltered.seccomp_filter);
    }

    #[test]
    fn a_machine_that_allows_rings_has_every_operation() {
        // Where rings are forbidden the access says why, which is the other half of the contract.
        match access().expect("the circumstances are readable") {
            RingAccess::Allowed => assert_eq!(missing_operations().expect("the ring answers"), Vec::<&str>::new()),
            refused => assert!(missing_operations().is_err(), "access says {refused:?}, yet a ring was set up"),
        }
    }
}
