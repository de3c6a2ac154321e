//! The block device below a path, and what its queue promises: a volatile cache or none, FUA or flushes.

use super::{DeviceError, read_number, read_text};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Mapped devices (dm, md) may be stacked; deeper stacks than this are reported down to here.
const STACK_DEPTH_MAX: u32 = 8;

/// What the kernel believes of the device's cache, and so whether it sends flushes at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteCache {
    /// `write back`: acknowledged writes may be volatile until flushed.
    Back,
    /// `write through`: acknowledged writes are durable, and the kernel sends no flushes. An operator can write this
    /// into the file by hand, and is then believed.
    Through,
}

/// A whole disk, or a device mapped over others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its name below `/sys/block`.
    pub name: String,
    /// Its `queue/write_cache`.
    pub write_cache: WriteCache,
    /// Whether a single write can be made durable without a flush (`queue/fua`).
    pub fua: bool,
    /// Smallest unit that can be addressed (`queue/logical_block_size`).
    pub logical_block_bytes: u64,
    /// Smallest unit that is written without reading first (`queue/physical_block_size`).
    pub physical_block_bytes: u64,
    /// Whether it is a spinning disk, or says so.
    pub rotational: bool,
    /// Its hardware queues (`mq/`), each with an interrupt of its own; `None` where it has none, as a mapped device.
    pub hardware_queues: Option<u32>,
    /// Where completions are handled (`queue/rq_affinity`): 2 on the very core that submitted, 1 on a core that shares its
    /// cache, 0 on the core that took the interrupt; `None` where the device does not say.
    pub completion_affinity: Option<u64>,
    /// The devices that this one is mapped over; empty for a disk.
    pub below: Vec<BlockDevice>,
}

/// The device that holds the files at `path`, or `path` itself where it is a block device; `None` where there is none
/// (tmpfs, network file systems), or none that can be told.
pub fn behind(path: &Path) -> Result<Option<BlockDevice>, DeviceError> {
    let metadata = metadata(path)?;
    let number = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let sysfs = Path::new("/sys");
    if let Some(device) = numbered(sysfs, libc::major(number), libc::minor(number))? {
        return Ok(Some(device));
    }
    // btrfs and its like give every subvolume a number of its own, which no device has; their mount names the device.
    let Some(source) = super::directory::mount_source(path)? else { return Ok(None) };
    match std::fs::metadata(&source) {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            numbered(sysfs, libc::major(metadata.rdev()), libc::minor(metadata.rdev()))
        }
        _ => Ok(None),
    }
}

fn metadata(path: &Path) -> Result<Metadata, DeviceError> {
    std::fs::metadata(path).map_err(|source| DeviceError::Read { path: path.to_owned(), source })
}

/// The device of this number; `None` where the kernel knows none.
fn numbered(sysfs: &Path, major: u32, minor: u32) -> Result<Option<BlockDevice>, DeviceError> {
    let link = sysfs.join(format!("dev/block/{major}:{minor}"));
    match link.canonicalize() {
        Ok(directory) => described(&directory, 0).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DeviceError::Read { path: link, source }),
    }
}

/// Reads the device whose directory in /sys this is. A partition has no queue: its disk, one directory up, has.
fn described(directory: &Path, depth: u32) -> Result<BlockDevice, DeviceError> {
    let whole = match directory.parent() {
        Some(parent) if directory.join("partition").exists() => parent,
        _ => directory,
    };
    let queue = whole.join("queue");
    Ok(BlockDevice {
        name: whole.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        write_cache: write_cache(&queue.join("write_cache"))?,
        fua: read_number(&queue.join("fua"))? != 0,
        logical_block_bytes: read_number(&queue.join("logical_block_size"))?,
        physical_block_bytes: read_number(&queue.join("physical_block_size"))?,
        rotational: read_number(&queue.join("rotational"))? != 0,
        hardware_queues: hardware_queues(&whole.join("mq"))?,
        completion_affinity: where_it_exists(read_number(&queue.join("rq_affinity")))?,
        below: if depth < STACK_DEPTH_MAX { below(&whole.join("slaves"), depth)? } else { Vec::new() },
    })
}

fn write_cache(path: &Path) -> Result<WriteCache, DeviceError> {
    let text = read_text(path)?;
    match text.as_str() {
        "write back" => Ok(WriteCache::Back),
        "write through" => Ok(WriteCache::Through),
        _ => Err(DeviceError::Malformed {
            path: path.to_owned(),
            found: text,
            expected: "`write back` or `write through`",
        }),
    }
}

/// Counts the queues of a device that has any.
fn hardware_queues(mq: &Path) -> Result<Option<u32>, DeviceError> {
    let unreadable = |source| DeviceError::Read { path: mq.to_owned(), source };
    let entries = std::fs::read_dir(mq).map_err(unreadable);
    Ok(where_it_exists(entries)?.map(|entries| entries.count() as u32))
}

/// A file that some devices have and others have not.
fn where_it_exists<T>(read: Result<T, DeviceError>) -> Result<Option<T>, DeviceError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(DeviceError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The devices that a mapped one lies over, by name, so that the order is the same on every run.
fn below(slaves: &Path, depth: u32) -> Result<Vec<BlockDevice>, DeviceError> {
    let unreadable = |source| DeviceError::Read { path: slaves.to_owned(), source };
    let Some(entries) = where_it_exists(std::fs::read_dir(slaves).map_err(unreadable))? else { return Ok(Vec::new()) };
    let mut links: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(unreadable)?;
    links.sort();
    links
        .into_iter()
        .map(|link| match link.canonicalize() {
            Ok(directory) => described(&directory, depth + 1),
            Err(source) => Err(DeviceError::Read { path: link, source }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A made-up /sys in a scratch directory.
    struct Sysfs {
        root: tempfile::TempDir,
    }

    impl Sysfs {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a scratch directory");
            fs::create_dir_all(root.path().join("dev/block")).expect("directories");
            Sysfs { root }
        }

        fn disk(&self, name: &str, number: &str, cache: &str, fua: &str) -> PathBuf {
            let directory = self.root.path().join("devices").join(name);
            fs::create_dir_all(directory.join("queue")).expect("directories");
            fs::create_dir_all(directory.join("slaves")).expect("directories");
            let values = [
                ("write_cache", cache),
                ("fua", fua),
                ("logical_block_size", "512"),
                ("physical_block_size", "4096"),
                ("rotational", "0"),
            ];
            for (file, value) in values {
                fs::write(directory.join("queue").join(file), format!("{value}\n")).expect("a file");
            }
            symlink(&directory, self.root.path().join("dev/block").join(number)).expect("a link");
            directory
        }

        fn partition(&self, disk: &Path, name: &str, number: &str) -> PathBuf {
            let directory = disk.join(name);
            fs::create_dir_all(&directory).expect("directories");
            fs::write(directory.join("partition"), "1\n").expect("a file");
            symlink(&directory, self.root.path().join("dev/block").join(number)).expect("a link");
            directory
        }

        fn find(&self, major: u32, minor: u32) -> Result<Option<BlockDevice>, DeviceError> {
            numbered(self.root.path(), major, minor)
        }
    }

    #[test]
    fn a_partition_is_reported_as_its_disk() {
        let sysfs = Sysfs::new();
        let disk = sysfs.disk("sda", "8:0", "write back", "1");
        sysfs.partition(&disk, "sda1", "8:1");
        let whole = sysfs.find(8, 0).expect("readable").expect("known");
        assert_eq!(sysfs.find(8, 1).expect("readable"), Some(whole.clone()));
        assert_eq!((whole.name.as_str(), whole.write_cache, whole.fua), ("sda", WriteCache::Back, true));
        assert_eq!((whole.hardware_queues, whole.completion_affinity), (None, None));
        fs::create_dir_all(disk.join("mq/0")).expect("directories");
        fs::write(disk.join("queue/rq_affinity"), "2\n").expect("a file");
        let whole = sysfs.find(8, 0).expect("readable").expect("known");
        assert_eq!((whole.hardware_queues, whole.completion_affinity), (Some(1), Some(2)));
        assert_eq!((whole.logical_block_bytes, whole.physical_block_bytes, whole.rotational), (512, 4096, false));
    }

    #[test]
    fn a_mapped_device_names_the_disks_below_it() {
        let sysfs = Sysfs::new();
        let disk = sysfs.disk("nvme0n1", "259:0", "write back", "1");
        let part = sysfs.partition(&disk, "nvme0n1p2", "259:2");
        let mapped = sysfs.disk("dm-0", "252:0", "write back", "0");
        symlink(&part, mapped.join("slaves/nvme0n1p2")).expect("a link");
        let found = sysfs.find(252, 0).expect("readable").expect("known");
        assert_eq!(found.name, "dm-0");
        assert!(!found.fua);
        assert_eq!(found.below.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(), ["nvme0n1"]);
        assert!(found.below[0].fua);
    }

    #[test]
    fn a_stack_that_never_ends_is_cut() {
        let sysfs = Sysfs::new();
        let mapped = sysfs.disk("dm-0", "252:0", "write through", "0");
        symlink(&mapped, mapped.join("slaves/dm-0")).expect("a link");
        let mut device = &sysfs.find(252, 0).expect("readable").expect("known");
        let mut depth = 0;
        while let Some(next) = device.below.first() {
            device = next;
            depth += 1;
        }
        assert_eq!(depth, STACK_DEPTH_MAX);
    }

    #[test]
    fn an_unknown_number_is_no_device_and_an_unknown_word_an_error() {
        let sysfs = Sysfs::new();
        assert_eq!(sysfs.find(0, 42).expect("readable"), None);
        sysfs.disk("sdb", "8:16", "write sideways", "0");
        assert!(matches!(sysfs.find(8, 16), Err(DeviceError::Malformed { .. })));
    }

    #[test]
    fn this_machine_can_be_asked() {
        // Whether there is a device depends on the machine; that asking works does not.
        let directory = tempfile::tempdir().expect("a scratch directory");
        if let Some(device) = behind(directory.path()).expect("/sys is readable") {
            assert!(device.logical_block_bytes >= 512, "{device:?}");
        }
    }
}
