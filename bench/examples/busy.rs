//! Keeps the core that it is put on busy, until it is killed: as any program does, or giving way to threads that wake up. See
//! `kernel-notes/flush-worker.md`.
//!
//! `taskset --cpu-list 1 cargo run --release -p claim-bench --example busy -- [give-way]`

use claim_engine::scheduling;

fn main() {
    let ready = match std::env::args().nth(1).as_deref() {
        None => Ok(()),
        Some("give-way") => scheduling::give_way(0).map_err(|error| format!("this thread can't give way: {error}")),
        Some(other) => Err(format!("'{other}' is not known; say give-way, or nothing")),
    };
    if let Err(message) = ready {
        eprintln!("busy: {message}");
        std::process::exit(2);
    }
    loop {
        std::hint::spin_loop();
    }
}
