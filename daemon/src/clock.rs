//! What engines are told of the time: the one place where the ledger's clocks are read.

use claim_engine::time::Now;
use nix::time::{ClockId, clock_gettime};

/// What the clocks show.
pub fn now() -> Now {
    Now { wall_us: read(ClockId::CLOCK_REALTIME), boot_us: read(ClockId::CLOCK_BOOTTIME) }
}

fn read(clock: ClockId) -> i64 {
    // Both clocks exist on every kernel that has io_uring, and a valid clock id is the call's only precondition.
    let time = clock_gettime(clock).expect("CLOCK_REALTIME and CLOCK_BOOTTIME can be read");
    time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000
}
