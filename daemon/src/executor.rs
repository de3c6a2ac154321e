//! One executor: a pinned thread with its shards, its connections, and its end of the mesh.

use crate::clock;
use crate::driver::{Driver, is_being_read};
use crate::inbox::Inbox;
use crate::ledger;
use crate::mesh::{Mesh, MeshBuilder};
use crate::message::Message;
use crate::read_shares::ReadShares;
use crate::rounds::Rounds;
use crate::scrub;
use crate::service::Service;
use crate::shared::Shared;
use crate::socket::limits::Limits;
use crate::socket::listener::Accepted;
use crate::socket::readiness::Readiness;
use crate::socket::sockets::Sockets;
use crate::stages::Stages;
use crate::stall_guard::Pulse;
use claim_engine::engine::{Engine, OpenOptions};
use claim_engine::entropy::Entropy;
use claim_engine::log::superblock::Superblock;
use claim_engine::scheduling;
use claim_engine::storage::{DirectIo, OpenError, RealStorage};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Memory that each executor pins for its rings, three times over; the default of 10 MiB does not fit 8 MiB of memlock.
pub const IO_MEMORY_BYTES: usize = 1 << 20;
/// How long a start waits for another daemon's lock: writes that outlive a killed process hold it a little longer.
const LOCK_PATIENCE_MS: u64 = 5_000;
const LOCK_RETRY_MS: u64 = 50;
/// How often engines look at the time.
const TICK_MS: u64 = 10;
/// How long a shutdown waits for what is under way, in all.
const DRAIN_MS: u64 = 10_000;

/// What the main thread tells an executor.
#[derive(Debug, Clone)]
pub enum Control {
    /// All shards are open: serve. The greatest last entry's time of all of them.
    Serve {
        /// Microseconds since the epoch.
        ledger_last_us: i64,
    },
    /// To the executor of shard 0: put a policy in force, unless it is.
    Configure {
        /// Its text.
        toml: String,
    },
    /// Look users' names up again.
    Forget,
    /// Finish what is under way and end.
    Stop,
}

/// What an executor tells the main thread once.
#[derive(Debug)]
pub struct Ready {
    /// One per shard of this executor, or why it could not be opened.
    pub shards: Result<Vec<ShardOpened>, String>,
}

/// What opening a shard found.
#[derive(Debug, Clone, Copy)]
pub struct ShardOpened {
    /// Which.
    pub shard: u16,
    /// Time of its last entry.
    pub last_us: i64,
    /// Records replayed.
    pub records: u64,
    /// Batches replayed.
    pub batches: u64,
    /// How far it is in the global order.
    pub globals: u64,
}

/// What an executor is given.
pub struct Plan {
    /// Its number.
    pub executor: usize,
    /// Where the ledger is.
    pub data: PathBuf,
    /// Its shards.
    pub superblocks: Vec<Superblock>,
    /// Whether O_DIRECT is insisted on.
    pub direct: DirectIo,
    /// How the shards' engines are opened.
    pub open: OpenOptions,
    /// What every executor knows.
    pub shared: Arc<Shared>,
    /// Bounds of the sockets.
    pub limits: Limits,
    /// Its heartbeat.
    pub pulse: Arc<Pulse>,
    /// The mesh to join.
    pub mesh: Arc<MeshBuilder<Message>>,
    /// Accepted connections.
    pub accepted: Inbox<Accepted>,
    /// Orders.
    pub control: Inbox<Control>,
    /// Where to report.
    pub ready: Sender<Ready>,
    /// Bytes a second that scrubbing may read on this executor; 0: none.
    pub scrub_bytes_per_s: u64,
    /// Seeds the ids.
    pub seed: [u8; 32],
}

impl Plan {
    /// The stream of one shard.
    fn entropy(&self, shard: u16) -> Entropy {
        let mut seed = self.seed;
        for (byte, own) in seed.iter_mut().zip(shard.to_le_bytes()) {
            *byte ^= own;
        }
        Entropy::from_seed(seed)
    }
}

/// Runs on the executor until it is told to stop.
pub async fn run(plan: Plan) {
    if let Err(error) = scheduling::answer_soon() {
        tracing::debug!(%error, "an executor has the usual slice of its core");
    }
    let stages = Rc::new(Stages::default());
    let heartbeat = glommio::spawn_local(Arc::clone(&plan.pulse).heartbeat()).detach();
    let mesh = plan.mesh.join(plan.executor);
    let readiness = Readiness::new().map_err(|e| format!("connections can't be watched: {e}"));
    let opened = match readiness {
        Ok(readiness) => open_shards(&plan, &stages).await.map(|opened| (opened, readiness)),
        Err(message) => Err(message),
    };
    match opened {
        Ok(((drivers, opened), readiness)) => {
            let _ = plan.ready.send(Ready { shards: Ok(opened) });
            serve(&plan, drivers, mesh, (readiness, stages)).await;
        }
        Err(message) => {
            let _ = plan.ready.send(Ready { shards: Err(message) });
        }
    }
    plan.pulse.stop();
    heartbeat.await;
}

type Drivers = Vec<Option<Rc<Driver>>>;

async fn open_shards(plan: &Plan, stages: &Rc<Stages>) -> Result<(Drivers, Vec<ShardOpened>), String> {
    let mut drivers: Drivers = vec![None; plan.shared.executor_of_shard.len()];
    let mut opened = Vec::new();
    let reads = Rc::<ReadShares>::default();
    for superblock in &plan.superblocks {
        let path = ledger::shard_path(&plan.data, superblock.shard);
        let storage = open_storage(&path, plan.direct).await.map_err(|e| e.to_string())?;
        let error = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        // Whoever had the ledger before may have named a later seal since.
        let superblock = Superblock::read(&storage).await.map_err(|e| error(&e))?;
        let options = OpenOptions { is_being_read: is_being_read(&path), ..plan.open };
        let (engine, found) = Engine::open(&storage, &superblock, options).await.map_err(|e| error(&e))?;
        opened.push(ShardOpened {
            shard: superblock.shard,
            last_us: engine.shard().last_us(),
            records: found.records,
            batches: found.batches,
            globals: engine.shard().globals_applied(),
        });
        let watched = (Arc::clone(&plan.pulse), Rc::clone(stages));
        let driver = Driver::new(engine, storage, path, watched, Rc::clone(&reads), plan.entropy(superblock.shard));
        drivers[usize::from(superblock.shard)] = Some(driver);
    }
    Ok((drivers, opened))
}

async fn open_storage(path: &Path, direct: DirectIo) -> Result<RealStorage, OpenError> {
    for _ in 0..LOCK_PATIENCE_MS / LOCK_RETRY_MS {
        match RealStorage::open(path, direct).await {
            Err(OpenError::Locked { .. } | OpenError::InUse { .. }) => {
                glommio::timer::sleep(Duration::from_millis(LOCK_RETRY_MS)).await
            }
            other => return other,
        }
    }
    RealStorage::open(path, direct).await
}

/// The next order; those that came with it stay in `orders`.
async fn next_order(control: &Inbox<Control>, orders: &mut VecDeque<Control>) -> Control {
    while orders.is_empty() {
        if !control.take(orders).await {
            break;
        }
    }
    // Without any, the main thread is gone.
    orders.pop_front().unwrap_or(Control::Stop)
}

async fn serve(plan: &Plan, drivers: Drivers, mesh: Mesh<Message>, (readiness, stages): (Readiness, Rc<Stages>)) {
    let mut orders = VecDeque::new();
    let Control::Serve { ledger_last_us } = next_order(&plan.control, &mut orders).await else { return };
    let watched = (Arc::clone(&plan.pulse), stages);
    let rounds = Rc::<Rounds>::default();
    let service =
        Service::new(Arc::clone(&plan.shared), plan.executor, drivers, mesh, watched.clone(), Rc::clone(&rounds));
    for driver in service.local_drivers() {
        driver.engine.borrow_mut().start(clock::now(), ledger_last_us);
        driver.pump();
    }
    let receiving = glommio::spawn_local(Rc::clone(&service).receive()).detach();
    let sockets = Sockets::new(plan.limits.clone(), readiness, rounds, watched);
    let handler = Rc::new(Rc::clone(&service));
    let serving = glommio::spawn_local(Rc::clone(&sockets).run(plan.accepted.clone(), handler)).detach();
    let ticking = glommio::spawn_local(tick(Rc::clone(&service)));
    let drivers = service.local_drivers().cloned().collect();
    let scrubbing = glommio::spawn_local(scrub::run(drivers, plan.scrub_bytes_per_s));

    loop {
        match next_order(&plan.control, &mut orders).await {
            Control::Stop => break,
            Control::Configure { toml } => service.configure(&toml),
            Control::Forget => service.users.forget(),
            Control::Serve { .. } => {}
        }
    }
    scrubbing.cancel().await;
    service.stop();
    sockets.drain_all();
    let deadline = Instant::now() + Duration::from_millis(DRAIN_MS);
    let is_clean = until(deadline, || service.is_idle()).await;
    for driver in service.local_drivers() {
        driver.engine.borrow_mut().mark();
        driver.pump();
    }
    let is_clean = until(deadline, || service.is_idle()).await && is_clean;
    // Another executor may still have sent a request here: this one answers until all have finished.
    plan.shared.drained.fetch_add(1, Ordering::SeqCst);
    let all_drained = || plan.shared.drained.load(Ordering::SeqCst) >= plan.shared.cores.len();
    let is_clean = until(deadline, all_drained).await && until(deadline, || service.is_idle()).await && is_clean;
    service.local_drivers().for_each(|driver| driver.end());
    until(deadline, || service.local_drivers().all(|driver| driver.is_at_rest())).await;
    if !is_clean {
        tracing::warn!(
            executor = plan.executor,
            "stopping with requests under way: their outcome is unknown to their clients"
        );
    }
    ticking.cancel().await;
    sockets.close_all();
    serving.await;
    service.close_mesh();
    receiving.await;
}

async fn tick(service: Rc<Service>) {
    loop {
        glommio::timer::sleep(Duration::from_millis(TICK_MS)).await;
        service.tick();
    }
}

/// Whether it comes to be so before the deadline.
async fn until(deadline: Instant, is_so: impl Fn() -> bool) -> bool {
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        glommio::timer::sleep(Duration::from_millis(TICK_MS)).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_come_together_are_all_taken() {
        let control = Inbox::new(2, Pulse::new());
        control.try_push(Control::Serve { ledger_last_us: 7 }).expect("there is room");
        control.try_push(Control::Stop).expect("there is room");
        glommio::LocalExecutor::default().run(async {
            let mut orders = VecDeque::new();
            assert!(matches!(next_order(&control, &mut orders).await, Control::Serve { ledger_last_us: 7 }));
            assert!(matches!(next_order(&control, &mut orders).await, Control::Stop));
        });
    }
}
