//! How a thread shares its core with others.
//!
//! A thread that wakes up takes the core at once from one whose slice is longer than its own; else that one goes on, to the end of its slice
//! and to the next tick. Among the threads that wake up are the kernel's own, which finish durable writes. Kernels before 6.12 ignore the
//! slice; threads that run under another policy than the usual ones have none, and keep what they have (`sched_setattr(2)`,
//! `Documentation/scheduler/sched-eevdf.rst`).

use nix::errno::Errno;
use std::time::Duration;

/// The shortest slice that the kernel takes.
const SHORT_SLICE: Duration = Duration::from_micros(100);
/// Longer than the usual one, of about 3 ms.
const MIDDLE_SLICE: Duration = Duration::from_millis(5);
/// Longer than that, and no longer than somebody may wait who does not get the core at once.
const LONG_SLICE: Duration = Duration::from_millis(10);

/// Has the calling thread run soon when it wakes up, for a short while each time.
pub fn answer_soon() -> nix::Result<()> {
    change(|attributes| attributes.sched_runtime = SHORT_SLICE.as_nanos() as u64)
}

/// Has others that wake up on the calling thread's core go first; with a `nice` above 0 it also gets less of the core while they want
/// it. Its children have the usual slice again.
pub fn give_way(nice: i32) -> nix::Result<()> {
    change(|attributes| {
        attributes.sched_runtime = LONG_SLICE.as_nanos() as u64;
        attributes.sched_nice += nice;
        attributes.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    })
}

/// Has the kernel's threads, and others with the usual slice, go first that wake up on the calling thread's core; those that
/// [give way](give_way) come after it.
pub fn give_way_to_the_usual() -> nix::Result<()> {
    change(|attributes| attributes.sched_runtime = MIDDLE_SLICE.as_nanos() as u64)
}

fn change(how: impl FnOnce(&mut libc::sched_attr)) -> nix::Result<()> {
    const BYTES: u32 = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size: BYTES,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let (this_thread, no_flags) = (0, 0);
    // SAFETY: the kernel writes up to `BYTES` bytes, all of the structure, which lives until the call returns and is integers only.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, this_thread, &raw mut attributes, BYTES, no_flags) };
    Errno::result(result)?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 && attributes.sched_policy != libc::SCHED_BATCH as u32 {
        return Ok(());
    }
    how(&mut attributes);
    // SAFETY: the kernel reads `size` bytes, all of the structure, which lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, this_thread, &raw const attributes, no_flags) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of the calling thread's `/proc/thread-self/stat`, counted from the one behind its name.
    fn field(number: usize) -> Option<i32> {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("proc is mounted");
        stat.rsplit(')').next()?.split_whitespace().nth(number)?.parse().ok()
    }

    fn nice() -> Option<i32> {
        field(16)
    }

    /// Whether threads under the policy that the tests run under have slices.
    fn has_slices() -> bool {
        field(38).is_some_and(|policy| policy == libc::SCHED_OTHER || policy == libc::SCHED_BATCH)
    }

    #[test]
    fn a_thread_that_gives_way_is_nicer_and_others_are_as_ever() {
        let before = nice().expect("a thread has a nice value");
        let there = std::thread::spawn(|| {
            answer_soon().expect("a thread may run soon");
            let soon = nice();
            give_way(3).expect("a thread may give way");
            (soon, nice())
        });
        let nicer = if has_slices() { (before + 3).min(19) } else { before };
        assert_eq!(there.join().expect("no panic"), (Some(before), Some(nicer)));
        assert_eq!(nice(), Some(before));
    }
}
