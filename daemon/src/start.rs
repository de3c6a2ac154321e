//! `claimd start`: from a data directory to a daemon that serves, and back down.

use crate::archive::{Archive, ArchiveOptions};
use crate::config;
use crate::doctor;
use crate::drill::Drills;
use crate::executor::{self, Control, IO_MEMORY_BYTES, Plan, Ready};
use crate::inbox::Inbox;
use crate::ledger;
use crate::mesh::{MeshBuilder, MeshLimits};
use crate::service;
use crate::shared::{Notice, Shared, Tried};
use crate::socket::limits::Limits;
use crate::socket::listener::{Acceptor, PATH_BYTES_MAX, Routes, SocketPaths, bind_all};
use crate::stall_guard::{GuardTimes, Pulse, StallGuard};
use claim_engine::engine::OpenOptions;
use claim_engine::log::superblock::ClockMode;
use claim_engine::policy::Policy;
use claim_engine::storage::DirectIo;
use glommio::{CpuSet, ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};
use nix::sched::sched_getaffinity;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a configuration may take to be in force everywhere before the daemon serves without it.
const CONFIGURE_PATIENCE: Duration = Duration::from_secs(10);
/// How soon it is tried again when the log has no room yet.
const CONFIGURE_RETRY: Duration = Duration::from_millis(50);
/// Orders that wait for an executor, at most.
const CONTROL_MAX: usize = 16;

/// What `claimd start` is told.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Where the ledger is.
    pub data: PathBuf,
    /// The socket for everything; the shards' own lie beside it.
    pub socket: PathBuf,
    /// Cores to pin executors to.
    pub cores: Vec<usize>,
    /// Whether O_DIRECT is insisted on.
    pub direct: DirectIo,
    /// How the shards' engines are opened.
    pub open: OpenOptions,
    /// Bytes a second that scrubbing may read, all executors together; 0: none.
    pub scrub_bytes_per_s: u64,
    /// How long an executor looks for work before it sleeps.
    pub poll: Duration,
    /// Roles, budgets and tolerances; without it this process's own uid has every role, and no one else any.
    pub config: Option<PathBuf>,
    /// A backup that is kept up to date meanwhile.
    pub archive: Option<ArchiveOptions>,
}

/// What the main thread waits for while the daemon serves.
enum Wanted {
    Stop,
    /// The configuration is to be read again.
    Reload,
}

/// Serves until SIGTERM or SIGINT. The error is a sentence for the operator.
pub fn start(options: &StartOptions) -> Result<(), String> {
    let started = Instant::now();
    // The signals are taken by this thread alone, so they are blocked before any other thread is made.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block().map_err(|e| format!("blocking signals failed: {e}"))?;

    let serving = Arc::new(AtomicBool::new(false));
    let (wanted_sent, wanted) = mpsc::channel();
    watch_signals(signals, Arc::clone(&serving), wanted_sent);
    allow_descriptors();
    let policy = read_policy(options.config.as_deref())?;
    // Without rings not even a superblock is read.
    doctor::preflight(&options.data, 1, true)?;
    let superblocks = ledger::superblocks(&options.data).map_err(|e| e.to_string())?;
    check_socket_path(&options.socket)?;
    let shard_count = superblocks.len();
    let executors = options.cores.len().min(shard_count);
    doctor::preflight(&options.data, executors as u64, options.direct == DirectIo::NotRequired)?;
    if superblocks[0].clock == ClockMode::Replay {
        tracing::warn!("this is a replay ledger: its time comes from the requests, never from the clock");
    }
    let executor_of_shard: Vec<_> = (0..shard_count).map(|shard| shard % executors).collect();
    let paths = SocketPaths::beside(&options.socket, shard_count as u16);
    let shared = Arc::new(Shared {
        ledger: superblocks[0].ledger,
        clock: superblocks[0].clock,
        executor_of_shard: executor_of_shard.clone(),
        cores: options.cores[..executors].to_vec(),
        shard_sockets: paths.shards.iter().map(|path| absolute(path)).collect(),
        started,
        connections: AtomicUsize::new(0),
        drained: AtomicUsize::new(0),
        configured: Notice::default(),
        guard: OnceLock::new(),
        archive: options.archive.as_ref().map(|_| Arc::default()),
        drills: Drills::new(options.data.clone()),
    });
    let limits = Limits::default();
    let pulses: Vec<_> = (0..executors).map(|_| Pulse::new()).collect();
    let mesh = Arc::new(MeshBuilder::new(&pulses, MeshLimits::default()));
    let guard = StallGuard::start(pulses.clone(), GuardTimes::default())
        .map_err(|e| format!("the stall guard's thread can't be started: {e}"))?;
    let _ = shared.guard.set(Arc::clone(guard.counters()));

    let (ready, opened) = mpsc::channel();
    let (mut handles, mut controls, mut inboxes) = (Vec::new(), Vec::new(), Vec::new());
    for (executor, pulse) in pulses.iter().enumerate() {
        let accepted = Inbox::new(limits.accept_inbox_max, Arc::clone(pulse));
        let control = Inbox::new(CONTROL_MAX, Arc::clone(pulse));
        let plan = Plan {
            executor,
            data: options.data.clone(),
            superblocks: superblocks
                .iter()
                .filter(|s| executor_of_shard[usize::from(s.shard)] == executor)
                .cloned()
                .collect(),
            direct: options.direct,
            open: options.open,
            shared: Arc::clone(&shared),
            limits: limits.clone(),
            pulse: Arc::clone(pulse),
            mesh: Arc::clone(&mesh),
            accepted: accepted.clone(),
            control: control.clone(),
            ready: ready.clone(),
            scrub_bytes_per_s: options.scrub_bytes_per_s.div_ceil(executors as u64),
            seed: seed()?,
        };
        handles.push(spawn(options.cores[executor], options.poll, plan)?);
        controls.push(control);
        inboxes.push(accepted);
    }
    drop(ready);
    let stop = |handles: Vec<ExecutorJoinHandle<()>>, controls: &[Inbox<Control>]| {
        for control in controls {
            let _ = control.try_push(Control::Stop);
        }
        for handle in handles {
            if let Err(error) = handle.join() {
                tracing::error!(%error, "an executor ended badly");
            }
        }
    };
    let ledger_last_us = match collect(&opened, executors) {
        Ok(last_us) => last_us,
        Err(message) => {
            stop(handles, &controls);
            return Err(message);
        }
    };
    for control in &controls {
        let _ = control.try_push(Control::Serve { ledger_last_us });
    }
    // Nobody is let in before it is known who may do what.
    let of_shard_0 = &controls[shared.executor_of_shard[0]];
    put_in_force(of_shard_0, &shared, &policy);
    let acceptor = bind_all(&paths).map_err(|e| e.to_string()).and_then(|listeners| {
        let routes = Routes { inboxes, executor_of_shard };
        Acceptor::start(listeners, routes, &limits, service::busy_frame())
            .map_err(|e| format!("the acceptor can't be started: {e}"))
    });
    let acceptor = match acceptor {
        Ok(acceptor) => acceptor,
        Err(message) => {
            stop(handles, &controls);
            return Err(message);
        }
    };
    let archive = options.archive.as_ref().zip(shared.archive.clone());
    let archive = archive.map(|(archive, state)| Archive::start(&options.data, archive, state));
    let archive = match archive.transpose() {
        Ok(archive) => archive,
        Err(error) => {
            acceptor.stop();
            stop(handles, &controls);
            return Err(format!("the thread of the segment archive can't be started: {error}"));
        }
    };
    tracing::info!(
        ledger = %shared.ledger,
        shards = shard_count,
        cores = ?shared.cores,
        socket = %options.socket.display(),
        took_ms = started.elapsed().as_millis() as u64,
        "serving"
    );
    // Whoever reads this may send a signal at once, and means a stop.
    serving.store(true, Ordering::SeqCst);
    // A reader that has gone is no reason to end.
    if let Err(error) = writeln!(std::io::stdout(), "ready {}", options.socket.display()) {
        tracing::warn!(%error, "`ready` could not be printed");
    }

    loop {
        match wanted.recv().map_err(|_| "the thread that waits for signals is gone".to_owned())? {
            Wanted::Stop => break,
            Wanted::Reload => {
                for control in &controls {
                    let _ = control.try_push(Control::Forget);
                }
                match read_policy(options.config.as_deref()) {
                    Ok(policy) => put_in_force(of_shard_0, &shared, &policy),
                    Err(error) => tracing::error!(error, "the configuration can't be used; the one in force stays"),
                }
            }
        }
    }
    tracing::info!("stopping: finishing what is under way; a second signal ends the process at once");
    acceptor.stop();
    stop(handles, &controls);
    if let Some(archive) = archive {
        archive.stop();
    }
    guard.stop();
    tracing::info!("stopped");
    Ok(())
}

/// The policy that a configuration file says, or the one without a file.
fn read_policy(file: Option<&Path>) -> Result<Policy, String> {
    match file {
        Some(file) => {
            let policy = config::read(file)?;
            if let Some(doubt) = config::doubt(&policy) {
                tracing::warn!(file = %file.display(), "the configuration: {doubt}");
            }
            Ok(policy)
        }
        None => Ok(Policy::of_owner(nix::unistd::geteuid().as_raw())),
    }
}

/// Has shard 0 log a policy, unless it is in force. While the ledger can't take it, the one in force stays, and the log
/// says so.
fn put_in_force(of_shard_0: &Inbox<Control>, shared: &Shared, policy: &Policy) {
    let until = Instant::now() + CONFIGURE_PATIENCE;
    loop {
        let toml = policy.to_toml();
        let is_asked = of_shard_0.try_push(Control::Configure { toml }).is_ok();
        let left = until.saturating_duration_since(Instant::now());
        match is_asked.then(|| shared.configured.wait(left)).flatten() {
            Some(Tried::Over) => return,
            Some(Tried::Again) if !left.is_zero() => std::thread::sleep(CONFIGURE_RETRY),
            _ => break,
        }
    }
    tracing::error!("the configuration was not put in force; `claimctl config show` shows the one that is");
}

/// Takes as many descriptors as the hard limit allows: the usual soft limit of 1,024 is less than the connections that
/// are served. Where it can't be raised, connections beyond it are refused, and the log says so.
fn allow_descriptors() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files can't be raised: fewer connections may be served than are allowed");
    }
}

/// What would hold an executor up goes to a thread that may be on any core of the process.
fn spawn(core: usize, poll: Duration, plan: Plan) -> Result<ExecutorJoinHandle<()>, String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|e| format!("the cores of the process: {e}"))?;
    let cores = CpuSet::online().map_err(|e| format!("the cores of the machine: {e}"))?;
    let cores = cores.filter(|core| allowed.is_set(core.cpu).unwrap_or(false));
    let beside = if cores.is_empty() { PoolPlacement::Unbound(1) } else { PoolPlacement::Fenced(1, cores) };
    LocalExecutorBuilder::new(Placement::Fixed(core))
        .name(&format!("claimd-{core}"))
        .io_memory(IO_MEMORY_BYTES)
        .spin_before_park(poll)
        .blocking_thread_pool_placement(beside)
        .spawn(move || executor::run(plan))
        .map_err(|e| format!("an executor on core {core} can't be started: {e}; name cores that exist with --cores"))
}

/// Waits for every executor's report; returns the time of the ledger's last entry.
fn collect(opened: &mpsc::Receiver<Ready>, executors: usize) -> Result<i64, String> {
    let mut last_us = 0;
    let mut globals = BTreeMap::new();
    for _ in 0..executors {
        let ready = opened.recv().map_err(|_| "an executor ended before it had opened its shards".to_owned())?;
        for shard in ready.shards? {
            last_us = last_us.max(shard.last_us);
            globals.insert(shard.shard, shard.globals);
            tracing::info!(shard = shard.shard, records = shard.records, batches = shard.batches, "recovered");
        }
    }
    check_global_order(&globals)?;
    Ok(last_us)
}

/// Shard 0 sends the others nothing that is not durable with it, so no crash leaves one ahead of it. Served like this, it would
/// give what they have to somebody else.
fn check_global_order(globals: &BTreeMap<u16, u64>) -> Result<(), String> {
    let decided = globals.get(&0).copied().unwrap_or(0);
    match globals.iter().find(|(_, applied)| **applied > decided) {
        None => Ok(()),
        Some((shard, applied)) => Err(format!(
            "shard {shard} has the global order (corpora, prefixes) up to entry {applied}, and shard 0, which decides it, only up \
             to {decided}: the file of shard 0 is older than the others, or has lost its end. Bring back files of one instant, \
             or see `claimd verify` and `claimd repair`"
        )),
    }
}

/// Waits for signals in a thread of its own. While nothing is served yet there is nothing to finish, and one signal ends
/// the process; after that the first asks for a stop, and the second ends the process.
fn watch_signals(signals: SigSet, serving: Arc<AtomicBool>, wanted: mpsc::Sender<Wanted>) {
    std::thread::spawn(move || {
        let mut is_stopping = false;
        loop {
            match signals.wait() {
                Ok(Signal::SIGHUP) => {
                    // Before it serves it reads the configuration anyway.
                    let _ = wanted.send(Wanted::Reload);
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for a signal failed");
                    return;
                }
            }
            if is_stopping || !serving.load(Ordering::SeqCst) || wanted.send(Wanted::Stop).is_err() {
                std::process::exit(1);
            }
            is_stopping = true;
        }
    });
}

/// What can be seen of a socket's path before the ledger is touched.
fn check_socket_path(socket: &Path) -> Result<(), String> {
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!("the socket {} can't be made: {} is no directory", socket.display(), folder.display()));
    }
    let bytes = socket.as_os_str().len();
    if bytes > PATH_BYTES_MAX {
        return Err(format!(
            "the socket path {} has {bytes} bytes, and Unix sockets allow {PATH_BYTES_MAX}; name a shorter one with --socket",
            socket.display()
        ));
    }
    Ok(())
}

fn seed() -> Result<[u8; 32], String> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| format!("no entropy from the kernel: {e}"))?;
    Ok(seed)
}

fn absolute(path: &std::path::Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}
