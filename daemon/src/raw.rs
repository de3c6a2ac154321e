//! Raw block devices as ledger files: what `claimd format --device` looks at before it writes to one, and the link by which
//! the data directory names it.

use claim_engine::log::layout::{BLOCK_BYTES, Geometry};
use claim_engine::log::superblock::{COPIES, COPY_STRIDE_BYTES, Superblock, SuperblockError};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// File systems, partition tables, volume managers and RAIDs put their signatures into the first or the last of so many
/// bytes.
const SIGNATURE_AREA_BYTES: u64 = 1 << 20;

/// Names of a device that stay with it, whatever order the devices are found in.
const STABLE_NAMES: &str = "/dev/disk/by-id";

/// A device that may become a shard.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// As the data directory shall name it.
    pub path: PathBuf,
    /// Its number, by which two names of one device are known.
    pub number: u64,
    /// The sizes of a log on it, which goes round in as many segments as the device holds.
    pub geometry: Geometry,
}

/// Why a device can't become a shard.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A file, perhaps.
    #[error("it is no block device; for a ledger in files leave out --device")]
    NoDevice,
    /// Mounted, mapped, or served.
    #[error("it is in use: mounted, below another device, or served by another claimd; `lsblk` and `fuser` say which")]
    InUse,
    /// A ledger would be lost.
    #[error(
        "it holds shard {shard} of ledger {ledger}; name another device, or pass --overwrite if that ledger is not wanted"
    )]
    Ledger {
        /// Whose.
        ledger: Uuid,
        /// Which.
        shard: u16,
    },
    /// Something else would be lost.
    #[error("it is not empty ({what}); name another device, or pass --overwrite if nothing on it is wanted")]
    NotEmpty {
        /// What was recognised.
        what: String,
    },
    /// It would be full at once.
    #[error(
        "it has {found_bytes} bytes, a shard takes {needed_bytes}; name a larger one, or smaller segments with --segment-bytes"
    )]
    TooSmall {
        /// Its size.
        found_bytes: u64,
        /// The least.
        needed_bytes: u64,
    },
}

/// Signatures that are worth a name: offset, bytes, whose.
const SIGNATURES: [(usize, &[u8], &str); 11] = [
    (0x438, &[0x53, 0xef], "an ext file system"),
    (0, b"XFSB", "an xfs file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0x218, b"LVM2 001", "an LVM physical volume"),
    (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2], "an f2fs file system"),
    (0x200, b"EFI PART", "a partition table"),
    (0x1fe, &[0x55, 0xaa], "a partition table or a FAT file system"),
];

impl Candidate {
    /// Looks at a device: it must be free, large enough, and empty unless it may be overwritten.
    pub fn look(path: &Path, geometry: Geometry, overwrite: bool) -> Result<Candidate, DeviceError> {
        let metadata = fs::metadata(path)?;
        if !metadata.file_type().is_block_device() {
            return Err(DeviceError::NoDevice);
        }
        let device = claim(path)?;
        let found_bytes = size(&device)?;
        let too_small = |needed_bytes| DeviceError::TooSmall { found_bytes, needed_bytes };
        let geometry = geometry.of_device(found_bytes).map_err(too_small)?;
        if !overwrite {
            is_empty(&device, found_bytes)?;
        }
        Ok(Candidate { path: stable_name(path)?, number: metadata.rdev(), geometry })
    }

    /// Zeroes the signature areas, so that nobody takes the device for what it was.
    pub fn clear(&self) -> Result<(), DeviceError> {
        let device = claim(&self.path)?;
        let zeroes = vec![0; SIGNATURE_AREA_BYTES as usize];
        device.write_all_at(&zeroes, 0)?;
        device.write_all_at(&zeroes, size(&device)? - SIGNATURE_AREA_BYTES)?;
        Ok(device.sync_all()?)
    }
}

/// Without O_CREAT, O_EXCL claims a block device: nobody else may have it mounted, mapped or claimed.
fn claim(path: &Path) -> Result<File, DeviceError> {
    match File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(DeviceError::InUse),
        opened => Ok(opened?),
    }
}

fn size(mut device: &File) -> io::Result<u64> {
    device.seek(SeekFrom::End(0))
}

fn is_empty(device: &File, bytes: u64) -> Result<(), DeviceError> {
    let mut area = vec![0; SIGNATURE_AREA_BYTES as usize];
    for at in [0, bytes - SIGNATURE_AREA_BYTES] {
        device.read_exact_at(&mut area, at)?;
        if at == 0 {
            is_no_ledger(&area)?;
        }
        if let Some(first) = area.iter().position(|byte| *byte != 0) {
            let known = SIGNATURES.iter().find(|(offset, bytes, _)| at == 0 && area[*offset..].starts_with(bytes));
            let unknown = || format!("there is data at byte {}", at + first as u64);
            return Err(DeviceError::NotEmpty { what: known.map_or_else(unknown, |(.., name)| (*name).to_owned()) });
        }
    }
    Ok(())
}

fn is_no_ledger(start: &[u8]) -> Result<(), DeviceError> {
    for copy in 0..COPIES {
        let at = (copy * COPY_STRIDE_BYTES) as usize;
        match Superblock::decode(&start[at..at + BLOCK_BYTES as usize]) {
            Ok(Some(found)) => return Err(DeviceError::Ledger { ledger: found.ledger, shard: found.shard }),
            Err(error @ SuperblockError::Version { .. }) => {
                return Err(DeviceError::NotEmpty { what: error.to_string() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The name below `/dev/disk/by-id`, where there is one; else as given. Names such as `/dev/nvme0n1` may belong to another
/// device after a restart.
fn stable_name(path: &Path) -> io::Result<PathBuf> {
    let device = path.canonicalize()?;
    let mut names: Vec<_> = match fs::read_dir(STABLE_NAMES) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(_) => Vec::new(),
    };
    names.retain(|name| name.canonicalize().is_ok_and(|found| found == device));
    names.sort();
    match names.into_iter().next() {
        Some(name) => Ok(name),
        None => std::path::absolute(path),
    }
}
