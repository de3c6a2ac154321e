//! The data directory: which files a ledger has, and how they are made.

use crate::raw;
use claim_engine::log::layout::Geometry;
use claim_engine::log::superblock::{ClockMode, Superblock, SuperblockError, format_version};
use claim_engine::log::writer;
use claim_engine::storage::{DirectIo, OpenError, RealStorage};
use glommio::LocalExecutor;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Shards of a ledger, at most.
pub const SHARDS_MAX: u16 = 256;

/// The files hold everybody's rows and the key that batches are hashed with: they are for the daemon and its group, as the
/// sockets are.
pub(crate) const FILE_MODE: u32 = 0o640;
pub(crate) const DIRECTORY_MODE: u32 = 0o750;

/// What `claimd format` is told.
#[derive(Debug, Clone)]
pub struct FormatOptions {
    /// Where.
    pub data: PathBuf,
    /// How many.
    pub shards: u16,
    /// Sizes.
    pub geometry: Geometry,
    /// Where time comes from.
    pub clock: ClockMode,
    /// Whether O_DIRECT is insisted on.
    pub direct: DirectIo,
    /// Block devices to make the shards on, one each; empty for files in the directory.
    pub devices: Vec<PathBuf>,
    /// Whether devices may hold something.
    pub overwrite: bool,
}

/// Keeps a daemon from freeing dropped segments for as long as it is held: who reads a ledger beside it reads what was there when
/// it began.
pub fn keep_dropped(data: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(data)?, FlockArg::LockShared).map_err(|(_, error)| error.into())
}

/// Why a ledger could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// There is one already.
    #[error("{0} holds a ledger already; name another directory, or remove this one if nothing in it is wanted")]
    Exists(PathBuf),
    /// There is none.
    #[error("{0} holds no ledger; make one with `claimd format --data {0}`")]
    Missing(PathBuf),
    /// `claimd format` did not get to its end, or a file is gone.
    #[error(
        "{path} is missing: the ledger has {shards} shards; format again in an empty directory, or bring the file back"
    )]
    ShardMissing {
        /// The file.
        path: PathBuf,
        /// How many there should be.
        shards: u16,
    },
    /// A link of the data directory leads nowhere.
    #[error("{path} is a link to {target}, which is not there; attach the device, or mend the link")]
    DeviceGone {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A device can't become a shard.
    #[error("{path} can't be a shard: {source}")]
    Device {
        /// The device.
        path: PathBuf,
        /// Why.
        source: raw::DeviceError,
    },
    /// A file of another ledger.
    #[error("{path} is shard {found} of ledger {ledger}, not shard {expected} of the ledger in this directory")]
    Mixed {
        /// The file.
        path: PathBuf,
        /// Which shard it is.
        found: u16,
        /// Which it should be.
        expected: u16,
        /// Whose.
        ledger: Uuid,
    },
    /// An option that can't be.
    #[error("{0}")]
    Option(String),
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file is no ledger.
    #[error("{path}: {source}")]
    Superblock {
        /// Which.
        path: PathBuf,
        /// Why.
        source: SuperblockError,
    },
}

/// The file of a shard.
pub fn shard_path(data: &Path, shard: u16) -> PathBuf {
    data.join(format!("shard-{shard:04}.ledger"))
}

/// Whether a shard lies on a raw block device, behind a link.
pub fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// Whether there is a ledger: shard 0's file is made last. A link to a device that is gone counts.
pub fn exists(data: &Path) -> bool {
    fs::symlink_metadata(shard_path(data, 0)).is_ok()
}

/// The block devices that the ledger's shards lie on, by their links in the data directory; empty for a ledger in files.
pub fn devices(data: &Path) -> Vec<PathBuf> {
    let is_device = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    (0..SHARDS_MAX).map(|shard| shard_path(data, shard)).take_while(is_device).collect()
}

/// Reads the superblocks of a ledger's shards, in order.
pub fn superblocks(data: &Path) -> Result<Vec<Superblock>, LedgerError> {
    let first = shard_path(data, 0);
    match fs::metadata(&first) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(gone(&first).unwrap_or_else(|| LedgerError::Missing(data.to_owned())));
        }
        Err(source) => return Err(LedgerError::Io { path: first, source }),
    }
    LocalExecutor::default().run(async {
        let first = read_superblock(&shard_path(data, 0)).await?;
        let mut all = vec![first.clone()];
        for shard in 1..first.shard_count {
            let path = shard_path(data, shard);
            if !path.exists() {
                let missing = || LedgerError::ShardMissing { path: path.clone(), shards: first.shard_count };
                return Err(gone(&path).unwrap_or_else(missing));
            }
            all.push(read_superblock(&path).await?);
        }
        for (superblock, expected) in all.iter().zip(0..) {
            if superblock.ledger != first.ledger || superblock.shard != expected {
                return Err(LedgerError::Mixed {
                    path: shard_path(data, expected),
                    found: superblock.shard,
                    expected,
                    ledger: superblock.ledger,
                });
            }
        }
        for superblock in &all {
            // Each device has its own size.
            let same = |s: &Superblock| (s.key, s.shard_count, s.clock, s.geometry.of_file());
            if same(superblock) != same(&first) {
                let path = shard_path(data, superblock.shard);
                return Err(LedgerError::Option(format!(
                    "{} and the file of shard 0 disagree on key, shards, clock or sizes: one superblock is damaged or forged; \
                     `claimd verify` says more",
                    path.display()
                )));
            }
        }
        Ok(all)
    })
}

/// The error of a link that leads nowhere.
fn gone(path: &Path) -> Option<LedgerError> {
    let target = fs::read_link(path).ok()?;
    Some(LedgerError::DeviceGone { path: path.to_owned(), target })
}

/// Why a shard's file is another build's, if it is.
pub fn version_error(path: &Path) -> Option<SuperblockError> {
    let copies = LocalExecutor::default().run(async {
        let storage = RealStorage::open_read_only(path).await.ok()?;
        let copies = Superblock::read_copies(&storage).await;
        storage.close().await.ok()?;
        copies.err()
    });
    copies.filter(|error| matches!(error, SuperblockError::Version { .. }))
}

async fn read_superblock(path: &Path) -> Result<Superblock, LedgerError> {
    let storage = RealStorage::open_read_only(path).await?;
    let superblock = Superblock::read(&storage).await;
    storage.close().await.map_err(|source| LedgerError::Io { path: path.to_owned(), source })?;
    let superblock = superblock.and_then(|superblock| match superblock.geometry.check() {
        Ok(_) => Ok(superblock),
        Err(found) => Err(SuperblockError::Field { field: "geometry", found }),
    });
    superblock.map_err(|source| LedgerError::Superblock { path: path.to_owned(), source })
}

/// Makes a ledger and returns its id. `progress` hears of each shard that is done.
pub fn format(options: &FormatOptions, mut progress: impl FnMut(u16)) -> Result<Uuid, LedgerError> {
    let FormatOptions { data, shards, geometry, clock, direct, devices, overwrite } = options;
    geometry.check().map_err(LedgerError::Option)?;
    if !(1..=SHARDS_MAX).contains(shards) {
        return Err(LedgerError::Option(format!("{shards} shards; a ledger has 1 to {SHARDS_MAX}")));
    }
    if !devices.is_empty() && devices.len() != usize::from(*shards) {
        let found = devices.len();
        return Err(LedgerError::Option(format!(
            "{shards} shards and {found} devices; name one device for each shard"
        )));
    }
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(data).map_err(io_error(data))?;
    for shard in 0..*shards {
        if fs::symlink_metadata(shard_path(data, shard)).is_ok() {
            return Err(LedgerError::Exists(data.clone()));
        }
    }
    let devices = prepare_devices(devices, *geometry, *overwrite)?;
    let device_of = |shard: u16| devices.get(usize::from(shard));
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(|e| LedgerError::Option(format!("no entropy from the kernel: {e}")))?;
    let ledger = uuid::Builder::from_random_bytes(random[..16].try_into().expect("16 of 48 bytes")).into_uuid();
    let key = random[16..].try_into().expect("32 of 48 bytes");
    let mut superblock = Superblock {
        shard_count: *shards,
        clock: *clock,
        formatted_at_us: crate::clock::now().wall_us,
        ..Superblock::of_new_ledger(ledger, key, *geometry)
    };
    // Shard 0 comes last: without its file there is no ledger.
    for shard in (0..*shards).rev() {
        superblock.shard = shard;
        superblock.geometry = device_of(shard).map_or(*geometry, |device| device.geometry);
        superblock.version = format_version(superblock.geometry);
        if let Err(error) = format_shard(data, &superblock, *direct, device_of(shard).map(|device| &*device.path)) {
            // What is half made is of no use, and would be in the way of the next try. The first error is the one to tell.
            for made in shard + 1..*shards {
                let _ = fs::remove_file(shard_path(data, made));
            }
            return Err(error);
        }
        progress(shard);
    }
    Ok(ledger)
}

pub(crate) fn io_error(path: &Path) -> impl Fn(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { path: path.clone(), source }
}

/// Looks at every device before the first is written to.
fn prepare_devices(
    devices: &[PathBuf],
    geometry: Geometry,
    overwrite: bool,
) -> Result<Vec<raw::Candidate>, LedgerError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| LedgerError::Device { path, source }
    };
    let mut candidates: Vec<raw::Candidate> = Vec::new();
    for path in devices {
        let candidate = raw::Candidate::look(path, geometry, overwrite).map_err(error(path))?;
        if let Some(twin) = candidates.iter().find(|other| other.number == candidate.number) {
            let (one, other) = (path.display(), twin.path.display());
            return Err(LedgerError::Option(format!("{one} and {other} are the same device; name one for each shard")));
        }
        candidates.push(candidate);
    }
    for candidate in &candidates {
        candidate.clear().map_err(error(&candidate.path))?;
    }
    Ok(candidates)
}

/// Makes the file of a shard in which nothing has happened.
pub(crate) fn make_file(path: &Path, superblock: &Superblock, direct: DirectIo) -> Result<(), LedgerError> {
    let mut new = File::options();
    new.write(true).create(true).truncate(true).mode(FILE_MODE).open(path).map_err(io_error(path))?;
    make(path, superblock, direct)
}

fn make(path: &Path, superblock: &Superblock, direct: DirectIo) -> Result<(), LedgerError> {
    LocalExecutor::default().run(async {
        let storage = RealStorage::open(path, direct).await?;
        writer::format(&storage, superblock).await.map_err(io_error(path))?;
        storage.close().await.map_err(io_error(path))
    })
}

/// A link that a format left half made goes first.
fn link(device: &Path, path: &Path) -> Result<(), LedgerError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(path)(error)),
        _ => {}
    }
    symlink(device, path).map_err(io_error(path))
}

/// Makes the file of one shard, or the link to its device; on failure it is not there.
fn format_shard(
    data: &Path,
    superblock: &Superblock,
    direct: DirectIo,
    device: Option<&Path>,
) -> Result<(), LedgerError> {
    let path = shard_path(data, superblock.shard);
    let making = path.with_extension("formatting");
    let made = match device {
        Some(device) => make(device, superblock, direct).and_then(|()| link(device, &making)),
        None => make_file(&making, superblock, direct),
    };
    let named = made.and_then(|()| {
        fs::rename(&making, &path).map_err(io_error(&path))?;
        File::open(data).and_then(|dir| dir.sync_all()).map_err(io_error(data))
    });
    named.inspect_err(|_| {
        let _ = fs::remove_file(&making);
        let _ = fs::remove_file(&path);
    })
}
