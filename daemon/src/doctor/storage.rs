//! The file system below a ledger's directory, and the device below that.

use super::check::Check;
use claim_engine::device::block::{self, BlockDevice, WriteCache};
use claim_engine::device::directory::{self, Alignment, AlignmentSource, DirectIo, FileSystemKind};
use std::path::Path;

/// Batches and their offsets are multiples of this, so a device may not ask for more.
const BATCH_ALIGNMENT_BYTES: u32 = 4096;

/// What a ledger needs of its directory, as the cure of everything that is wrong with one.
const MOVE_LEDGER: &str = "put the ledger on ext4 or xfs on a local disk";

/// Which file system it is, and what that means for overwriting in place.
pub(super) fn file_system(path: &Path) -> Check {
    let name = "file system";
    let found = match directory::file_system(path) {
        Ok(found) => found,
        Err(error) => return Check::warn(name, error.to_string()),
    };
    let text = format!("{} at {}", found.name, path.display());
    let doubt = match found.kind {
        FileSystemKind::InPlace => return Check::ok(name, text),
        FileSystemKind::CopyOnWrite => "it writes elsewhere what is overwritten, so segments zeroed ahead gain nothing",
        FileSystemKind::Remote => "what is durable there is not for this kernel to say",
        FileSystemKind::Memory => "it is memory: nothing outlives a power cut",
        FileSystemKind::Layer => "the file system below the layer decides, and cannot be seen from here",
        FileSystemKind::Unknown => "claimd knows nothing of it",
    };
    Check::warn(name, format!("{text}: {doubt}")).with_mend(MOVE_LEDGER)
}

/// Whether O_DIRECT does what a ledger relies on.
pub(super) fn direct_io(path: &Path) -> Check {
    let name = "O_DIRECT";
    match directory::direct_io(path) {
        Ok(direct) => describe_direct_io(name, path, direct),
        Err(error) => Check::fail(name, error.to_string(), "make the directory, and let claimd write to it".to_owned()),
    }
}

fn describe_direct_io(name: &'static str, path: &Path, direct: DirectIo) -> Check {
    let otherwise = format!("{MOVE_LEDGER}, or start with --unsafe-no-direct, for trials only");
    match direct {
        DirectIo::Works(alignment) => describe_alignment(name, alignment),
        DirectIo::Pretended => {
            Check::fail(name, format!("{} is memory, where O_DIRECT means nothing", path.display()), otherwise)
        }
        DirectIo::Refused => {
            Check::fail(name, format!("the file system of {} does not do O_DIRECT", path.display()), otherwise)
        }
    }
}

fn describe_alignment(name: &'static str, alignment: Alignment) -> Check {
    let Alignment { memory_bytes, offset_bytes, source } = alignment;
    let who = match source {
        AlignmentSource::Statx => "says statx",
        AlignmentSource::BlockDevice => "from the device's logical block size",
        AlignmentSource::Assumed => "assumed, for nobody says",
    };
    let wants = format!("buffers at multiples of {memory_bytes} bytes, offsets of {offset_bytes} ({who})");
    if memory_bytes.max(offset_bytes) > BATCH_ALIGNMENT_BYTES {
        let found = format!("direct I/O wants {wants}, and batches are aligned to {BATCH_ALIGNMENT_BYTES}");
        return Check::fail(name, found, "put the ledger on a device with blocks of at most 4096 bytes".to_owned());
    }
    Check::ok(name, wants)
}

/// The device below, and what its queue says of caches and flushes.
pub(super) fn block_device(path: &Path) -> Vec<Check> {
    let name = "block device";
    match block::behind(path) {
        Ok(Some(device)) => describe_device(name, &device),
        Ok(None) => vec![Check::warn(name, "none can be told; its write cache and FUA stay unknown".to_owned())],
        Err(error) => vec![Check::warn(name, error.to_string())],
    }
}

/// A shard that is a block device: nothing lies between it and claimd.
pub(super) fn raw_device(link: &Path) -> Vec<Check> {
    let device = link.canonicalize().unwrap_or_else(|_| link.to_owned());
    let found = format!("{} is the block device {}: no file system lies between", link.display(), device.display());
    let mut checks = vec![Check::ok("shard", found)];
    checks.extend(block_device(link));
    checks.push(Check::ok("durable writes", "not measured: all of the device is the ledger's".to_owned()));
    checks
}

fn describe_device(name: &'static str, device: &BlockDevice) -> Vec<Check> {
    let kind = if device.rotational { ", rotational" } else { "" };
    let sizes = format!("{} and {} bytes", device.logical_block_bytes, device.physical_block_bytes);
    let stack = stack(device);
    let cache = match device.write_cache {
        WriteCache::Back => "write back: the kernel flushes it for every durable write",
        WriteCache::Through => "write through: the kernel takes every completed write as durable and flushes nothing",
    };
    let fua = match (device.fua, device.write_cache) {
        (true, _) => "yes: one durable write is one command",
        (false, WriteCache::Back) => "no: a durable write is a write and a flush",
        (false, WriteCache::Through) => "no, and not needed without a volatile cache",
    };
    let mut checks = vec![
        Check::ok(name, format!("{stack}: logical and physical blocks of {sizes}{kind}")),
        Check::ok("write cache", cache.to_owned()),
        Check::ok("FUA", fua.to_owned()),
    ];
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    leaves(device).into_iter().for_each(|leaf| checks.extend(completions(leaf, cores)));
    checks
}

/// The devices at the bottom of a stack, which take the interrupts.
fn leaves(device: &BlockDevice) -> Vec<&BlockDevice> {
    match device.below.as_slice() {
        [] => vec![device],
        below => below.iter().flat_map(leaves).collect(),
    }
}

/// On which core a write completes. The kernel flushes a volatile cache from a worker on that core, and the flush waits
/// while something else keeps that core busy.
fn completions(device: &BlockDevice, cores: u32) -> Option<Check> {
    let (queues, affinity) = (device.hardware_queues?, device.completion_affinity?);
    let name = "completions";
    let found = format!("{} has {queues} hardware queue{}", device.name, if queues == 1 { "" } else { "s" });
    if queues >= cores || affinity == 2 {
        return Some(Check::ok(name, format!("{found} and completes on the core that submitted")));
    }
    let path = format!("/sys/block/{}/queue/rq_affinity", device.name);
    let found = format!("{found} for {cores} cores and may complete on another core, whose load then delays flushes");
    Some(Check::warn(name, found).with_mend(&format!("`echo 2 > {path}`, as root")))
}

/// The device's name, with the names of those that it is mapped over.
fn stack(device: &BlockDevice) -> String {
    match device.below.as_slice() {
        [] => device.name.clone(),
        below => format!("{} over {}", device.name, below.iter().map(stack).collect::<Vec<_>>().join(" and ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, below: Vec<BlockDevice>) -> BlockDevice {
        BlockDevice {
            name: name.to_owned(),
            write_cache: WriteCache::Back,
            fua: false,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            rotational: false,
            hardware_queues: Some(1),
            completion_affinity: Some(1),
            below,
        }
    }

    #[test]
    fn a_stack_of_devices_is_named_from_the_top() {
        let mirror = device("md0", vec![device("sda", Vec::new()), device("sdb", Vec::new())]);
        assert_eq!(stack(&device("dm-0", vec![mirror])), "dm-0 over md0 over sda and sdb");
    }

    #[test]
    fn fewer_queues_than_cores_are_worth_a_warning_unless_completions_come_home() {
        let mut disk = device("sda", Vec::new());
        let status = |disk: &BlockDevice, cores| completions(disk, cores).map(|check| check.is_warning());
        assert_eq!(status(&disk, 2), Some(true));
        assert_eq!(status(&disk, 1), Some(false));
        disk.completion_affinity = Some(2);
        assert_eq!(status(&disk, 2), Some(false));
        disk.hardware_queues = None;
        assert_eq!(status(&disk, 2), None);
        let stack = device("dm-0", vec![disk.clone(), disk]);
        assert_eq!(leaves(&stack).len(), 2);
    }

    #[test]
    fn blocks_larger_than_a_batch_unit_are_refused() {
        let alignment = |offset_bytes| Alignment { memory_bytes: 512, offset_bytes, source: AlignmentSource::Statx };
        assert!(!describe_alignment("O_DIRECT", alignment(4096)).is_failure());
        let sentence = describe_alignment("O_DIRECT", alignment(8192)).refusal().expect_err("it is refused");
        assert!(sentence.contains("offsets of 8192"), "{sentence}");
    }

    #[test]
    fn a_file_system_without_direct_io_names_both_ways_out() {
        for direct in [DirectIo::Pretended, DirectIo::Refused] {
            let sentence = describe_direct_io("O_DIRECT", Path::new("/x"), direct).refusal().expect_err("refused");
            assert!(sentence.contains("ext4 or xfs") && sentence.contains("--unsafe-no-direct"), "{sentence}");
        }
    }
}
