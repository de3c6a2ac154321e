//! The guest's only program, started by the kernel: it loads the modules, finds the devices by their serial numbers, runs the
//! real daemon under load, and tells the host what clients sent and were told.
//!
//! ```text
//!  logged  shard 0 ─ linear ─┐                        live  shard 0 ─ NVMe "ledger0"
//!          shard 1 ─ linear ─┴ log-writes ─ NVMe            shard 1 ─ NVMe "ledger1"
//!                                   └ log ─ NVMe
//! ```

use super::dm::Mapper;
use super::note::Note;
use super::write_log::MARK;
use crate::daemon::Binary;
use crate::load::{self, Memory, Weight};
use crate::trace::{Mark, Recorder};
use claim_engine::entropy::Entropy;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long devices may take to appear.
const DEVICES_PATIENCE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(10);
const PORT: &str = "/dev/ttyS1";
const CLAIMD: &str = "/claimd";
/// Where the modules lie, with names in the order in which they are loaded.
pub(super) const MODULES: &str = "/modules";
const DATA: &str = "/data";
const SOCKET: &str = "/claimd.sock";
const LOG: &str = "/claimd.log";
/// Segments as small as they can be, so that logs roll and images stay small.
const SIZES: [&str; 4] = ["--segment-bytes", "1M", "--batch-bytes-max", "128K"];
/// Batches go out beside others when they hold as much.
const START: [&str; 2] = ["--batch-fill-bytes", "2K"];
/// The mapping whose writes are logged.
const LOGGED: &str = "logged";
/// Serial numbers of the devices.
pub(super) const SERIAL_LEDGER: &str = "ledger";
pub(super) const SERIAL_LOG: &str = "log";
/// Shards of the ledger.
pub(super) const SHARDS: usize = 2;

/// What the guest is told, on the kernel's command line.
#[derive(Debug, Clone)]
pub struct Orders {
    /// Log every write; else the host ends the guest at any time.
    pub is_logged: bool,
    /// Repeats the load's choices.
    pub seed: u64,
    /// Logged: runs of the daemon, of which each but the last is killed. Live: the number of this one.
    pub run: u64,
    /// How long a run is under load, at most; 0 for no load.
    pub run_ms_max: u64,
    /// The deliberate bug of the daemon, in a build that has them.
    pub mutant: Option<String>,
}

const ORDERS: &str = "claimd-guest=";

impl Orders {
    /// As a word of the kernel's command line.
    pub fn word(&self) -> String {
        let Orders { is_logged, seed, run, run_ms_max, mutant } = self;
        let mutant = mutant.as_deref().unwrap_or_default();
        format!("{ORDERS}{},{seed},{run},{run_ms_max},{mutant}", u8::from(*is_logged))
    }

    fn from_command_line(line: &str) -> Option<Orders> {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(ORDERS))?;
        let fields: Vec<_> = word.split(',').collect();
        let [is_logged, seed, run, run_ms_max, mutant] = fields[..] else { return None };
        Some(Orders {
            is_logged: is_logged == "1",
            seed: seed.parse().ok()?,
            run: run.parse().ok()?,
            run_ms_max: run_ms_max.parse().ok()?,
            mutant: (!mutant.is_empty()).then(|| mutant.to_owned()),
        })
    }
}

/// Where notes go.
struct Notes {
    out: Mutex<(File, u64)>,
    /// Where each note leaves a mark.
    mapper: Option<Mapper>,
    is_marking: AtomicBool,
}

impl Notes {
    fn note(&self, note: &Note) {
        let mut out = self.out.lock().expect("writing a note does not panic");
        // Without its notes the guest is of no use: the host sees that they end.
        note.write(&mut out.0).expect("the port takes notes");
        if let Some(mapper) = self.mapper.as_ref().filter(|_| self.is_marking.load(Ordering::Relaxed)) {
            mapper.message(LOGGED, &format!("mark {MARK}{}", out.1)).expect("the log takes marks");
        }
        out.1 += 1;
    }
}

impl Recorder for Notes {
    fn mark(&self, mark: Mark) {
        self.note(&Note::Client(mark));
    }
}

/// Does what the command line says, and switches the machine off.
pub fn main() -> ! {
    let result = mounts().and_then(|()| run());
    if let Err(message) = result {
        eprintln!("guest: {message}");
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
    panic!("the machine can't be switched off")
}

fn mounts() -> Result<(), String> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>).map_err(|e| format!("mounting {at}: {e}"))?;
    }
    Ok(())
}

fn run() -> Result<(), String> {
    let line = read("/proc/cmdline")?;
    let orders = Orders::from_command_line(&line).ok_or_else(|| format!("there are no orders in {line:?}"))?;
    let modules = load_modules();
    let port = File::options().write(true).open(PORT).map_err(|e| format!("{PORT}: {e}"))?;
    let mut settings = tcgetattr(&port).map_err(|e| format!("{PORT}: {e}"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings).map_err(|e| format!("{PORT}: {e}"))?;
    let to_drain = port.try_clone().map_err(|e| format!("{PORT}: {e}"))?;
    let mapper = if orders.is_logged { Mapper::open().ok() } else { None };
    let notes = Notes { out: Mutex::new((port, 0)), mapper, is_marking: AtomicBool::new(false) };
    let result = modules.and_then(|()| if orders.is_logged { logged(&orders, &notes) } else { live(&orders, &notes) });
    notes.note(&result.clone().map_or_else(Note::Failed, |()| Note::Done));
    tcdrain(&to_drain).map_err(|e| format!("{PORT}: {e}"))?;
    result
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|e| format!("{path}: {e}"))
}

fn load_modules() -> Result<(), String> {
    let mut paths: Vec<_> = fs::read_dir(MODULES)
        .map_err(|e| format!("{MODULES}: {e}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        let error = |e: String| format!("loading {}: {e}", path.display());
        let file = File::open(&path).map_err(|e| error(e.to_string()))?;
        finit_module(&file, c"", ModuleInitFlags::empty()).map_err(|e| error(e.to_string()))?;
    }
    Ok(())
}

/// Waits for devices with these serial numbers, and notes what they are.
fn devices(serials: &[String], notes: &Notes) -> Result<Vec<PathBuf>, String> {
    let began = Instant::now();
    let found = loop {
        let found = namespaces();
        if serials.iter().all(|serial| found.contains_key(serial)) {
            break found;
        }
        if began.elapsed() > DEVICES_PATIENCE {
            return Err(format!("of the NVMe devices {serials:?} only {:?} appeared", found.keys()));
        }
        std::thread::sleep(GLANCE);
    };
    let mut described = Vec::new();
    for serial in serials {
        let queue = format!("/sys/block/{}/queue", found[serial]);
        let cache = read(&format!("{queue}/write_cache"))?;
        described.push((serial.clone(), cache, read(&format!("{queue}/fua"))? == "1"));
    }
    notes.note(&Note::Machine { kernel: read("/proc/sys/kernel/osrelease")?, devices: described });
    Ok(serials.iter().map(|serial| Path::new("/dev").join(&found[serial])).collect())
}

/// Names of NVMe namespaces by the serial numbers of their controllers; those without a node are paths of a multipath one.
fn namespaces() -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return BTreeMap::new() };
    let serial_of = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let serial = fs::read_to_string(entry.path().join("device/serial")).ok()?;
        Path::new("/dev").join(&name).exists().then(|| (serial.trim().to_owned(), name))
    };
    entries.filter_map(|entry| serial_of(entry.ok()?)).collect()
}

fn sectors(device: &Path) -> Result<u64, String> {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    let text = read(&format!("/sys/block/{name}/size"))?;
    text.parse().map_err(|_| format!("{} has a size of {text:?}", device.display()))
}

fn binary(orders: &Orders) -> Binary {
    // The name comes from the host, which knows it; the guest's one lives as long as its program.
    let mutant = orders.mutant.clone().map(|name| &*Box::leak(name.into_boxed_str()));
    Binary { claimd: CLAIMD.into(), arguments: START.map(str::to_owned).to_vec(), mutant }
}

fn format(binary: &Binary, shards: &[PathBuf]) -> Result<(), String> {
    let mut arguments = SIZES.to_vec();
    for shard in shards {
        arguments.extend(["--device", shard.to_str().expect("a path in ASCII")]);
    }
    binary.format(Path::new(DATA), &arguments)
}

/// The ledger behind the logging device: some runs, each but the last ended by SIGKILL.
fn logged(orders: &Orders, notes: &Notes) -> Result<(), String> {
    let mapper = notes.mapper.as_ref().ok_or("the device mapper is not there: its module did not load")?;
    let devices = devices(&[SERIAL_LEDGER.to_owned(), SERIAL_LOG.to_owned()], notes)?;
    let error = |what: &str, e: std::io::Error| format!("device mapper: {what}: {e}");
    let all = sectors(&devices[0])?;
    let table = format!("{} {}", devices[0].display(), devices[1].display());
    let below = mapper.create(LOGGED, all, "log-writes", &table).map_err(|e| error(&table, e))?;
    notes.is_marking.store(true, Ordering::Relaxed);
    let each = all / SHARDS as u64;
    let mut shards = Vec::new();
    for shard in 0..SHARDS {
        let table = format!("{} {}", below.display(), shard as u64 * each);
        let name = format!("shard-{shard}");
        shards.push(mapper.create(&name, each, "linear", &table).map_err(|e| error(&table, e))?);
    }
    let binary = binary(orders);
    format(&binary, &shards)?;
    notes.note(&Note::Formatted);
    let memory = Memory::default();
    let mut entropy = Entropy::from_seed_u64(orders.seed);
    for run in 0..orders.run {
        notes.note(&Note::Starting);
        let mut daemon = binary.start(Path::new(DATA), Path::new(SOCKET), Path::new(LOG))?;
        notes.note(&Note::Serving);
        load::begin(&daemon.socket, notes, &memory, Weight::LIGHT.connections, run)?;
        let over = AtomicBool::new(false);
        let time = Duration::from_millis(orders.run_ms_max / 2 + entropy.below(orders.run_ms_max / 2 + 1));
        let is_last = run + 1 == orders.run;
        let clients = load::connect_all(&daemon.socket, Weight::LIGHT.connections)?;
        std::thread::scope(|scope| {
            let load = || load::run(clients, notes, &memory, Weight::LIGHT, run, orders.seed, &over);
            let load = scope.spawn(load);
            std::thread::sleep(time);
            if !is_last {
                notes.note(&Note::Killing);
                daemon.kill();
            }
            over.store(true, Ordering::Relaxed);
            load.join().expect("the load does not panic")
        })?;
        if is_last {
            let status = daemon.stop()?;
            if !status.success() {
                return Err(format!("claimd ended with {status}"));
            }
        }
    }
    for shard in 0..SHARDS {
        mapper.remove(&format!("shard-{shard}")).map_err(|e| error("removing a shard", e))?;
    }
    // What no flush has covered is not in the log yet, and a mapping that goes forgets it.
    File::open(&below).and_then(|device| device.sync_all()).map_err(|e| error("flush", e))?;
    notes.is_marking.store(false, Ordering::Relaxed);
    mapper.remove(LOGGED).map_err(|e| error("removing the log", e))
}

/// The ledger on the devices themselves, until the host ends the guest.
fn live(orders: &Orders, notes: &Notes) -> Result<(), String> {
    let serials: Vec<_> = (0..SHARDS).map(|shard| format!("{SERIAL_LEDGER}{shard}")).collect();
    let shards = devices(&serials, notes)?;
    let binary = binary(orders);
    if orders.run == 0 {
        format(&binary, &shards)?;
        notes.note(&Note::Formatted);
    } else {
        fs::create_dir(DATA).map_err(|e| format!("{DATA}: {e}"))?;
        for (shard, device) in shards.iter().enumerate() {
            let link = Path::new(DATA).join(format!("shard-{shard:04}.ledger"));
            symlink(device, &link).map_err(|e| format!("{}: {e}", link.display()))?;
        }
    }
    notes.note(&Note::Starting);
    let mut daemon = binary.start(Path::new(DATA), Path::new(SOCKET), Path::new(LOG))?;
    notes.note(&Note::Serving);
    let memory = Memory::default();
    load::begin(&daemon.socket, notes, &memory, Weight::LIGHT.connections, orders.run)?;
    if orders.run_ms_max > 0 {
        let over = AtomicBool::new(false);
        let clients = load::connect_all(&daemon.socket, Weight::LIGHT.connections)?;
        std::thread::scope(|scope| {
            let load = || load::run(clients, notes, &memory, Weight::LIGHT, orders.run, orders.seed, &over);
            let load = scope.spawn(load);
            std::thread::sleep(Duration::from_millis(orders.run_ms_max));
            over.store(true, Ordering::Relaxed);
            load.join().expect("the load does not panic")
        })?;
    }
    let status = daemon.stop()?;
    if status.success() { Ok(()) } else { Err(format!("claimd ended with {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let orders = Orders { is_logged: true, seed: 7, run: 3, run_ms_max: 900, mutant: Some("no-dsync".into()) };
        for orders in [Orders { mutant: None, is_logged: false, ..orders.clone() }, orders] {
            let line = format!("console=ttyS0 {} quiet\n", orders.word());
            let read = Orders::from_command_line(&line).expect("orders");
            assert_eq!(format!("{read:?}"), format!("{orders:?}"));
        }
        assert!(Orders::from_command_line("quiet").is_none());
    }
}
