//! What the kernel allows this process: rings, pinned memory, a clock.

use super::EXECUTOR_IO_MEMORY_BYTES;
use super::check::Check;
use claim_engine::device::memlock::{self, Memlock, RUNTIME_LIMIT_BYTES_MIN, Verdict};
use claim_engine::device::ring::{self, NEEDED_OPERATIONS_COUNT, RingAccess};
use claim_engine::device::{clock as kernel_clock, kernel as running_kernel};
use std::io;

/// The kernel's version.
pub(super) fn kernel() -> Check {
    let name = "kernel";
    let kernel = match running_kernel::running() {
        Ok(kernel) => kernel,
        Err(error) => return Check::warn(name, error.to_string()),
    };
    let (usable, complete) = (running_kernel::OLDEST_USABLE, running_kernel::OLDEST_COMPLETE);
    if kernel.version < usable {
        let found = format!("kernel {} is older than {usable}, the first whose io_uring suffices", kernel.release);
        return Check::fail(name, found, format!("boot kernel {complete} or later"));
    }
    if kernel.version < complete {
        let found = format!("{}; before {complete} a file system does not tell its alignment", kernel.release);
        return Check::warn(name, found);
    }
    Check::ok(name, kernel.release)
}

/// Whether a ring can be set up.
pub(super) fn rings() -> Check {
    let name = "io_uring";
    match ring::access() {
        Ok(access) => describe_access(name, access),
        Err(error) => Check::fail(name, error.to_string(), "make /proc readable for claimd".to_owned()),
    }
}

fn describe_access(name: &'static str, access: RingAccess) -> Check {
    let (found, mend) = match access {
        RingAccess::Allowed => return Check::ok(name, "allowed".to_owned()),
        RingAccess::DisabledBySysctl { value: 1 } => (
            "the sysctl kernel.io_uring_disabled is 1, which forbids io_uring to this user".to_owned(),
            "set it to 0 (`sysctl -w kernel.io_uring_disabled=0`, as root on the host) or put claimd's group into \
             kernel.io_uring_group",
        ),
        RingAccess::DisabledBySysctl { value } => (
            format!("the sysctl kernel.io_uring_disabled is {value}, which forbids io_uring to everybody"),
            "set it to 0 (`sysctl -w kernel.io_uring_disabled=0`, as root on the host)",
        ),
        RingAccess::DeniedBySeccomp => (
            "a seccomp filter forbids io_uring to this process".to_owned(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in it (SystemCallFilter= of the systemd unit, \
             or the container's seccomp profile)",
        ),
        RingAccess::DeniedBySecurityModule => (
            "a security module forbids io_uring to this process".to_owned(),
            "allow io_uring in its policy (SELinux, AppArmor, or the container's)",
        ),
        RingAccess::NotInKernel => (
            "this kernel has no io_uring".to_owned(),
            "boot a kernel of 5.8 or later that is built with CONFIG_IO_URING",
        ),
        RingAccess::Failed { errno } => (
            format!("io_uring cannot be set up: {}", io::Error::from_raw_os_error(errno)),
            "remove that cause; `strace -e io_uring_setup claimd doctor` shows the call",
        ),
    };
    Check::fail(name, found, mend.to_owned())
}

/// Whether the ring knows what the runtime asks of it.
pub(super) fn operations() -> Check {
    let name = "ring operations";
    match ring::missing_operations() {
        Ok(missing) if missing.is_empty() => Check::ok(name, format!("all {NEEDED_OPERATIONS_COUNT} needed ones")),
        Ok(missing) => Check::fail(
            name,
            format!("this kernel's io_uring lacks {}", missing.join(", ")),
            format!("boot kernel {} or later", running_kernel::OLDEST_COMPLETE),
        ),
        Err(error) => Check::warn(name, error.to_string()),
    }
}

/// Whether `executors` may pin what their rings register.
pub(super) fn memlock(executors: u64) -> Check {
    let name = "memlock";
    match memlock::check(memlock::needed_bytes(executors, EXECUTOR_IO_MEMORY_BYTES)) {
        Ok(memlock) => describe_memlock(name, executors, memlock),
        Err(error) => Check::warn(name, error.to_string()),
    }
}

fn describe_memlock(name: &'static str, executors: u64, memlock: Memlock) -> Check {
    let limit = match memlock.limit_bytes {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "unlimited".to_owned(),
    };
    let needed_kib = memlock.needed_bytes.max(RUNTIME_LIMIT_BYTES_MIN).div_ceil(1024);
    let needed = format!("{needed_kib} KiB for {executors} executor{}", if executors == 1 { "" } else { "s" });
    let raise = format!("raise it (`ulimit -l {needed_kib}`, or LimitMEMLOCK={needed_kib}K in the systemd unit)");
    match memlock.verdict {
        Verdict::Enough => Check::ok(name, format!("{needed} can be pinned; the limit is {limit}")),
        Verdict::BelowRuntimeMinimum => {
            let least_kib = RUNTIME_LIMIT_BYTES_MIN / 1024;
            let found = format!("the memlock limit is {limit}, below the {least_kib} KiB without which no ring starts");
            Check::fail(name, found, raise)
        }
        Verdict::Refused => {
            let found = format!("the kernel does not let this user pin {needed} under a memlock limit of {limit}");
            Check::fail(name, found, format!("{raise}, or serve on fewer cores (`--cores`)"))
        }
    }
}

/// Whether somebody keeps the clock right.
pub(super) fn clock() -> Check {
    let name = "clock";
    match kernel_clock::state() {
        Ok(state) if state.synchronised => {
            Check::ok(name, format!("synchronised, at most {} µs off", state.max_error_us))
        }
        Ok(_) => Check::warn(name, "not synchronised; claims carry this clock's time".to_owned())
            .with_mend("run chrony or systemd-timesyncd"),
        Err(error) => Check::warn(name, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(access: RingAccess) -> String {
        describe_access("io_uring", access).refusal().expect_err("it is refused")
    }

    #[test]
    fn a_refused_ring_says_what_to_change() {
        let cases = [
            (RingAccess::DisabledBySysctl { value: 2 }, "sysctl -w kernel.io_uring_disabled=0"),
            (RingAccess::DisabledBySysctl { value: 1 }, "kernel.io_uring_group"),
            (RingAccess::DeniedBySeccomp, "allow io_uring_setup, io_uring_enter and io_uring_register"),
            (RingAccess::DeniedBySecurityModule, "policy"),
            (RingAccess::NotInKernel, "CONFIG_IO_URING"),
            (RingAccess::Failed { errno: libc::EMFILE }, "Too many open files"),
        ];
        for (access, expected) in cases {
            let sentence = refusal(access.clone());
            assert!(sentence.contains(expected), "{access:?}: {sentence}");
        }
        assert_eq!(describe_access("io_uring", RingAccess::Allowed).refusal(), Ok(()));
    }

    #[test]
    fn a_low_memory_lock_says_how_much_is_needed() {
        let memlock = |limit_bytes, verdict| Memlock { limit_bytes, needed_bytes: 6 << 20, verdict };
        let below = describe_memlock("memlock", 2, memlock(Some(65536), Verdict::BelowRuntimeMinimum));
        let sentence = below.refusal().expect_err("it is refused");
        assert!(sentence.starts_with("the memlock limit is 64 KiB, below the 512 KiB"), "{sentence}");
        assert!(sentence.contains("LimitMEMLOCK=6144K"), "{sentence}");
        let refused = describe_memlock("memlock", 2, memlock(Some(1 << 20), Verdict::Refused));
        let sentence = refused.refusal().expect_err("it is refused");
        assert!(sentence.contains("6144 KiB for 2 executors"), "{sentence}");
        assert!(sentence.contains("--cores"), "{sentence}");
        assert_eq!(describe_memlock("memlock", 2, memlock(None, Verdict::Enough)).refusal(), Ok(()));
    }
}
