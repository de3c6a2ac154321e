//! The data directory: which files a ledger has, and how they are made.

use claim_engine::log::layout::Geometry;
use claim_engine::log::superblock::{ClockMode, Superblock, SuperblockError};
use claim_engine::log::writer;
use claim_engine::storage::{DirectIo, OpenError, RealStorage};
use glommio::LocalExecutor;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Shards of a ledger, at most.
pub const SHARDS_MAX: u16 = 256;

/// The files hold everybody's rows and the key that batches are hashed with: they are for the daemon and its group, as the
/// sockets are.
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

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

/// Whether there is a ledger: shard 0's file is made last.
pub fn exists(data: &Path) -> bool {
    shard_path(data, 0).exists()
}

/// Reads the superblocks of a ledger's shards, in order.
pub fn superblocks(data: &Path) -> Result<Vec<Superblock>, LedgerError> {
    let first = shard_path(data, 0);
    match fs::metadata(&first) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LedgerError::Missing(data.to_owned())),
        Err(source) => return Err(LedgerError::Io { path: first, source }),
    }
    LocalExecutor::default().run(async {
        let first = read_superblock(&shard_path(data, 0)).await?;
        let mut all = vec![first.clone()];
        for shard in 1..first.shard_count {
            let path = shard_path(data, shard);
            if !path.exists() {
                return Err(LedgerError::ShardMissing { path, shards: first.shard_count });
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
        Ok(all)
    })
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
    let FormatOptions { data, shards, geometry, clock, direct } = options;
    geometry.check().map_err(LedgerError::Option)?;
    if !(1..=SHARDS_MAX).contains(shards) {
        return Err(LedgerError::Option(format!("{shards} shards; a ledger has 1 to {SHARDS_MAX}")));
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| LedgerError::Io { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(data).map_err(io(data))?;
    for shard in 0..*shards {
        if shard_path(data, shard).exists() {
            return Err(LedgerError::Exists(data.clone()));
        }
    }
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(|e| LedgerError::Option(format!("no entropy from the kernel: {e}")))?;
    let ledger = uuid::Builder::from_random_bytes(random[..16].try_into().expect("16 of 48 bytes")).into_uuid();
    let mut superblock = Superblock {
        generation: 1,
        ledger,
        key: random[16..].try_into().expect("32 of 48 bytes"),
        shard: 0,
        shard_count: *shards,
        clock: *clock,
        geometry: *geometry,
        formatted_at_us: crate::clock::now().wall_us,
        first_segment: 0,
    };
    // Shard 0 comes last: without its file there is no ledger.
    for shard in (0..*shards).rev() {
        superblock.shard = shard;
        let path = shard_path(data, shard);
        let making = path.with_extension("formatting");
        let mut new = File::options();
        new.write(true).create(true).truncate(true).mode(FILE_MODE).open(&making).map_err(io(&making))?;
        let made = LocalExecutor::default().run(async {
            let storage = RealStorage::open(&making, *direct).await?;
            writer::format(&storage, &superblock).await.map_err(io(&making))?;
            storage.close().await.map_err(io(&making))
        });
        if let Err(error) = made {
            // What is half made is of no use, and the first error is the one to tell.
            let _ = fs::remove_file(&making);
            return Err(error);
        }
        fs::rename(&making, &path).map_err(io(&path))?;
        File::open(data).and_then(|dir| dir.sync_all()).map_err(io(data))?;
        progress(shard);
    }
    Ok(ledger)
}
