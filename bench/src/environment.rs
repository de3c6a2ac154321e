//! Where a run was measured: the machine, the device, and the programs.

use crate::floor::LEDGER_MODE;
use claim_engine::device::block::{self, BlockDevice, WriteCache};
use claim_engine::device::{directory, kernel};
use claim_protocol::Welcome;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::read_to_string;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What figures depend on besides the arguments. What cannot be told is absent: no measurement fails for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// This program's version.
    pub claim_bench: String,
    /// The daemon's name and version, as it introduces itself.
    pub daemon: Option<String>,
    /// Shards of its ledger.
    pub shards: Option<usize>,
    /// How its writes are made durable.
    #[serde(default)]
    pub flush_mode: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
    pub cpu_model: Option<String>,
    /// CPUs that are online.
    pub cpus: Option<usize>,
    /// The frequency governor of the first CPU; virtual machines have none.
    pub governor: Option<String>,
    /// The cores that the load may come from.
    pub load_cores: Vec<usize>,
    /// The directory that the ledger is thought to be in.
    pub directory: String,
    pub file_system: Option<String>,
    pub mount_options: Option<String>,
    /// The block device below it, and those that this one is mapped over.
    pub devices: Vec<Device>,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    pub name: String,
    /// `write back` or `write through`.
    pub write_cache: String,
    pub fua: bool,
    pub scheduler: Option<String>,
    pub rotational: bool,
}

impl Environment {
    /// Of this process, of `directory`, and of the daemon that said this welcome.
    pub fn of(directory: &Path, welcome: Option<&Welcome>) -> Self {
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let mut devices = Vec::new();
        if let Ok(Some(device)) = block::behind(&directory) {
            add(&device, &mut devices);
        }
        let cpu_info = read_to_string("/proc/cpuinfo").unwrap_or_default();
        Environment {
            claim_bench: env!("CARGO_PKG_VERSION").to_owned(),
            daemon: welcome.map(|welcome| welcome.daemon.clone()),
            shards: welcome.map(|welcome| welcome.shards.len()),
            flush_mode: welcome.map(|_| LEDGER_MODE.name().to_owned()),
            kernel: kernel::running().ok().map(|kernel| kernel.release),
            cpu_model: cpu_model(&cpu_info),
            cpus: std::fs::read_to_string("/sys/devices/system/cpu/online").ok().as_deref().and_then(count_of_list),
            governor: first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            load_cores: load_cores(),
            file_system: directory::file_system(&directory).ok().map(|file_system| file_system.name),
            mount_options: mount_options(&directory),
            devices,
            directory: directory.display().to_string(),
        }
    }

    /// Names and values for people.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("claim-bench", self.claim_bench.clone())];
        let mut add = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
        let shards = |shards: &usize| format!("{shards} shard{}", if *shards == 1 { "" } else { "s" });
        add("daemon", self.daemon.clone());
        add("ledger", self.shards.as_ref().map(shards));
        add("flush mode", self.flush_mode.clone());
        add("kernel", self.kernel.clone());
        add("CPU", self.cpu_model.clone());
        add("CPUs online", self.cpus.map(|cpus| cpus.to_string()));
        add("governor", self.governor.clone());
        let cores: Vec<String> = self.load_cores.iter().map(usize::to_string).collect();
        add("load on cores", Some(cores.join(", ")).filter(|cores| !cores.is_empty()));
        add("directory", Some(self.directory.clone()));
        add("file system", self.file_system.clone());
        add("mount options", self.mount_options.clone());
        for device in &self.devices {
            let scheduler = device.scheduler.as_ref().map_or_else(String::new, |name| format!(", scheduler {name}"));
            let fua = if device.fua { "FUA" } else { "no FUA" };
            let kind = if device.rotational { ", rotational" } else { "" };
            add("device", Some(format!("{}: {}, {fua}{scheduler}{kind}", device.name, device.write_cache)));
        }
        lines
    }
}

/// A device and what lies below it.
fn add(device: &BlockDevice, devices: &mut Vec<Device>) {
    let write_cache = match device.write_cache {
        WriteCache::Back => "write back",
        WriteCache::Through => "write through",
    };
    let schedulers = read_to_string(format!("/sys/block/{}/queue/scheduler", device.name)).unwrap_or_default();
    devices.push(Device {
        name: device.name.clone(),
        write_cache: write_cache.to_owned(),
        fua: device.fua,
        scheduler: chosen(&schedulers),
        rotational: device.rotational,
    });
    device.below.iter().for_each(|below| add(below, devices));
}

/// The one in brackets of `none [mq-deadline] kyber`.
fn chosen(schedulers: &str) -> Option<String> {
    let (_, rest) = schedulers.split_once('[')?;
    let (name, _) = rest.split_once(']')?;
    Some(name.to_owned())
}

fn first_line(path: &str) -> Option<String> {
    read_to_string(path).ok()?.lines().next().map(str::to_owned)
}

fn cpu_model(cpu_info: &str) -> Option<String> {
    let line = cpu_info.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim().to_owned())
}

/// How many numbers a list such as `0-3,8` has.
fn count_of_list(list: &str) -> Option<usize> {
    list.trim().split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(count + (last + 1).checked_sub(first)?)
    })
}

fn load_cores() -> Vec<usize> {
    let cores = sched_getaffinity(Pid::from_raw(0));
    cores.map_or_else(|_| Vec::new(), |set| (0..CpuSet::count()).filter(|core| set.is_set(*core) == Ok(true)).collect())
}

fn mount_options(directory: &Path) -> Option<String> {
    let device = std::fs::metadata(directory).ok()?.dev();
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let mounts = read_to_string("/proc/self/mountinfo").ok()?;
    options_of(&mounts, &number, directory)
}

/// The options of the mount of this device that is nearest above `directory`: its own and the file system's.
fn options_of(mounts: &str, device: &str, directory: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (number, point, options) = (fields.nth(2)?, fields.nth(1)?, fields.next()?);
        let of_file_system = line.rsplit(' ').next()?;
        (number == device && directory.starts_with(point))
            .then(|| (point.len(), format!("{options}; {of_file_system}")))
    });
    mounts.max_by_key(|(length, _)| *length).map(|(_, options)| options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let environment = Environment::of(Path::new("."), None);
        assert!(environment.kernel.is_some() && environment.file_system.is_some(), "{environment:?}");
        assert!(!environment.load_cores.is_empty(), "{environment:?}");
        assert!(environment.lines().iter().any(|(name, _)| *name == "directory"));
        let missing = Environment::of(Path::new("/nonexistent"), None);
        assert_eq!((missing.file_system, missing.devices), (None, Vec::new()));
    }

    #[test]
    fn the_kernels_lists_are_read() {
        assert_eq!([count_of_list("0-3,8\n"), count_of_list("0"), count_of_list("3-1")], [Some(5), Some(1), None]);
        assert_eq!(chosen("none [mq-deadline] kyber"), Some("mq-deadline".to_owned()));
        assert_eq!(chosen("none"), None);
        assert_eq!(cpu_model("processor : 0\nmodel name\t: A CPU\n"), Some("A CPU".to_owned()));
    }

    #[test]
    fn the_nearest_mount_has_the_options() {
        let mounts = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
22 21 8:2 / /srv rw,noatime shared:2 - xfs /dev/sda2 rw,attr2
23 21 0:5 / /proc rw - proc proc rw";
        let find = |device, path| options_of(mounts, device, Path::new(path));
        assert_eq!(find("8:1", "/home/a"), Some("rw,relatime; rw,errors=remount-ro".to_owned()));
        assert_eq!(find("8:2", "/srv/claimd"), Some("rw,noatime; rw,attr2".to_owned()));
        assert_eq!(find("9:9", "/srv"), None);
    }
}
