//! Which cores the load comes from, and which a server under test has.

use crate::error::BenchError;
use claim_engine::scheduling;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps the calling thread on one core, so that it never competes with the daemon on another, and lets the kernel's threads go first
/// there: a load that never sleeps would hold up the durable writes that they finish.
pub fn pin_to(core: usize) -> Result<(), BenchError> {
    if let Err(error) = scheduling::give_way(0) {
        eprintln!("claim-bench: the kernel's threads wait for the load where they share its core: {error}");
    }
    move_to(&one(core)?)
}

/// This core alone.
pub fn one(core: usize) -> Result<CpuSet, BenchError> {
    let mut set = CpuSet::new();
    set.set(core).map_err(BenchError::system("name that core"))?;
    Ok(set)
}

/// The cores that the calling thread may use.
pub fn current() -> Result<CpuSet, BenchError> {
    sched_getaffinity(Pid::from_raw(0)).map_err(BenchError::system("ask for this thread's cores"))
}

/// Does something on `cores`, starts a child say, which inherits them; the calling thread then goes back to where it was.
pub fn on<T>(cores: &CpuSet, done: impl FnOnce() -> Result<T, BenchError>) -> Result<T, BenchError> {
    let before = current()?;
    move_to(cores)?;
    let result = done();
    move_to(&before)?;
    result
}

/// The numbers of `cores`, for a sentence.
pub fn names(cores: &CpuSet) -> String {
    let numbers = (0..CpuSet::count()).filter(|core| cores.is_set(*core).unwrap_or(false));
    numbers.map(|core| core.to_string()).collect::<Vec<_>>().join(",")
}

fn move_to(cores: &CpuSet) -> Result<(), BenchError> {
    sched_setaffinity(Pid::from_raw(0), cores).map_err(BenchError::system("move to that core"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_comes_back_from_other_cores() {
        let before = current().expect("a thread has cores");
        let first = names(&before).split(',').next().and_then(|core| core.parse().ok()).expect("one core at least");
        let there = on(&one(first).expect("a core"), || current().map(|cores| names(&cores))).expect("it may go there");
        assert_eq!(there, first.to_string());
        assert_eq!(current().expect("it has cores still"), before);
    }
}
