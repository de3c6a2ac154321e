//! Which core the load comes from.

use crate::error::BenchError;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps the calling thread on one core, so that it never competes with the daemon on another.
pub fn pin_to(core: usize) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    set.set(core).map_err(BenchError::system("name that core"))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(BenchError::system("move to that core"))
}
