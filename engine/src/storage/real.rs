//! The real storage: a file or block device through glommio, O_DIRECT, with O_DSYNC on the descriptor that batches go
//! through. One of the two modules of the engine that name glommio.

use super::streamed_copy::streamed_copy;
use super::{Durability, Storage};
use crate::log::layout::BLOCK_BYTES;
use glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use nix::fcntl::{FallocateFlags, fallocate};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

mod ioctl {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
}

/// What is written in pieces of at least so many bytes drives from the caches what is needed next.
const STREAMED_BYTES_MIN: usize = 256 << 10;

/// Whether to insist on O_DIRECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectIo {
    /// Refuse a file system without it.
    Required,
    /// `--unsafe-no-direct`: take what there is.
    NotRequired,
}

/// Why a ledger file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is not there, or not ours to open.
    #[error("opening {path} failed: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system does not do O_DIRECT.
    #[error(
        "{path} lies on a file system without O_DIRECT, so that a durable write can't be told from a cached one; move the \
         ledger to ext4, xfs or a block device, or pass --unsafe-no-direct for a trial"
    )]
    NoDirect {
        /// The file.
        path: PathBuf,
    },
    /// Another daemon has it.
    #[error("{path} is locked: another claimd serves this ledger; stop it first")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The block device belongs to somebody.
    #[error(
        "{path} is in use: another claimd serves it, it is mounted, or another device lies over it; `lsblk` and `fuser` say \
         which; end that, or name another device"
    )]
    InUse {
        /// The device.
        path: PathBuf,
    },
}

/// What the path of a shard leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A file, which grows.
    File,
    /// A block device, which has its size.
    Device,
}

/// See the module.
#[derive(Debug)]
pub struct RealStorage {
    /// Batches: O_DIRECT and O_DSYNC. Its file description carries the lock. Absent where nothing is written.
    durable: Option<DmaFile>,
    /// Zeroing, superblocks and reads: O_DIRECT only.
    cached: DmaFile,
    /// For space: what glommio offers takes it for the file from its start, holes included. Absent where nothing is written.
    space: Option<Arc<File>>,
    kind: Kind,
    zeroes: Zeroes,
}

/// What the last zeroing wrote. Nothing else is ever written to it, so that it is made once and stays out of the processor's caches.
#[derive(Default)]
struct Zeroes(RefCell<Option<Rc<DmaBuffer>>>);

impl Zeroes {
    /// A buffer of so many zeroes, made by `alloc` where the last one is of another length.
    fn of(&self, bytes: usize, alloc: impl FnOnce(usize) -> DmaBuffer) -> Rc<DmaBuffer> {
        let mut last = self.0.borrow_mut();
        if let Some(zeroes) = last.as_ref().filter(|zeroes| zeroes.len() == bytes) {
            return Rc::clone(zeroes);
        }
        let mut zeroes = alloc(bytes);
        zeroes.as_bytes_mut().fill(0);
        Rc::clone(last.insert(Rc::new(zeroes)))
    }
}

impl std::fmt::Debug for Zeroes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Zeroes").field(&self.0.borrow().as_ref().map(|zeroes| zeroes.len())).finish()
    }
}

impl RealStorage {
    /// Opens a ledger file on the current executor, and locks it: `Locked` at once when somebody else has.
    pub async fn open(path: &Path, direct: DirectIo) -> Result<RealStorage, OpenError> {
        let error = |source| OpenError::Open { path: path.to_owned(), source };
        let kind = kind_of(path).map_err(error)?;
        if kind == Kind::File {
            if direct == DirectIo::Required && !does_direct(path).map_err(error)? {
                return Err(OpenError::NoDirect { path: path.to_owned() });
            }
            write_first_block(path).map_err(error)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags(kind));
        let cached = options.dma_open(path).await.map_err(|e| error(e.into()))?;
        options.custom_flags(flags(kind) | libc::O_DSYNC | claim_flag(kind));
        let durable = options.dma_open(path).await.map_err(|e| {
            let source = io::Error::from(e);
            match source.kind() {
                io::ErrorKind::ResourceBusy => OpenError::InUse { path: path.to_owned() },
                _ => error(source),
            }
        })?;
        // A flock belongs to the open file description, and so stays until writes that outlive the process have ended.
        // SAFETY: the descriptor is open for as long as `durable` lives; flock reads nothing but its arguments.
        if unsafe { libc::flock(durable.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let source = io::Error::last_os_error();
            return Err(match source.kind() {
                io::ErrorKind::WouldBlock => OpenError::Locked { path: path.to_owned() },
                _ => error(source),
            });
        }
        let space = Some(Arc::new(File::options().write(true).open(path).map_err(error)?));
        Ok(RealStorage { durable: Some(durable), cached, space, kind, zeroes: Zeroes::default() })
    }

    /// Closes the file, and with it gives the lock back. A storage that is merely dropped is closed by its executor some
    /// time later, and if that has ended, not before the process does.
    pub async fn close(self) -> io::Result<()> {
        if let Some(durable) = self.durable {
            durable.close().await?;
        }
        Ok(self.cached.close().await?)
    }

    /// Opens a ledger file for reading, without the lock: what is read may change while it is read.
    pub async fn open_read_only(path: &Path) -> Result<RealStorage, OpenError> {
        let error = |source| OpenError::Open { path: path.to_owned(), source };
        let kind = kind_of(path).map_err(error)?;
        let mut options = OpenOptions::new();
        let cached = options.read(true).custom_flags(flags(kind)).dma_open(path).await.map_err(|e| error(e.into()))?;
        Ok(RealStorage { durable: None, cached, space: None, kind, zeroes: Zeroes::default() })
    }
}

impl RealStorage {
    /// fallocate(2), in another thread: it may take its time.
    async fn allocate(&self, flags: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
        let Some(space) = self.space.clone() else {
            return Err(only_for_reading());
        };
        let too_far =
            |_| io::Error::new(io::ErrorKind::FileTooLarge, "the ledger's file would be longer than any can be");
        let (offset, bytes) = (i64::try_from(offset).map_err(too_far)?, i64::try_from(bytes).map_err(too_far)?);
        let allocate = move || fallocate(&*space, flags, offset, bytes);
        Ok(glommio::executor().spawn_blocking(allocate).await?)
    }
}

fn kind_of(path: &Path) -> io::Result<Kind> {
    let is_device = std::fs::metadata(path)?.file_type().is_block_device();
    Ok(if is_device { Kind::Device } else { Kind::File })
}

/// glommio looks at the file system that a path lies on, and opens what lies on a tmpfs without O_DIRECT; device nodes lie
/// on one. The flag is therefore given outright; and there is no probe of polled I/O, so that no first block is needed.
fn flags(kind: Kind) -> i32 {
    match kind {
        Kind::File => 0,
        Kind::Device => libc::O_DIRECT,
    }
}

/// A flock belongs to the node that was opened, and a device may have several. O_EXCL claims the device itself, from every
/// node, and from mounts, mappings and partitions as well.
fn claim_flag(kind: Kind) -> i32 {
    match kind {
        Kind::File => 0,
        Kind::Device => libc::O_EXCL,
    }
}

/// The size of a block device: its file length is 0.
fn device_bytes(device: &impl AsRawFd) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open while `device` is borrowed, and `bytes` is the u64 that this request writes to.
    unsafe { ioctl::blkgetsize64(device.as_raw_fd(), &mut bytes) }?;
    Ok(bytes)
}

/// On its first open of a file on a device, glommio tries polled I/O by reading the file's first block, and keeps the result
/// for the process. A read that never reaches the device, of an empty file or a hole, succeeds on devices that can't poll,
/// and every later read and write then fails with EOPNOTSUPP. So the first block must be written before.
fn write_first_block(path: &Path) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    if file.metadata()?.len() == 0 {
        file.write_all(&[0; BLOCK_BYTES as usize])?;
        file.sync_all()?;
    }
    Ok(())
}

/// glommio falls back to buffered I/O in silence where O_DIRECT is refused, so it is tried here first.
fn does_direct(path: &Path) -> io::Result<bool> {
    match File::options().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => {
            const TMPFS_MAGIC: i64 = 0x0102_1994;
            let kind = nix::sys::statfs::fstatfs(&file)?.filesystem_type().0;
            // tmpfs takes the flag and ignores it.
            Ok(kind != TMPFS_MAGIC)
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn only_for_reading() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the ledger was opened for reading")
}

fn all(written: usize, bytes: usize) -> io::Result<()> {
    match written == bytes {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::WriteZero, format!("{written} of {bytes} bytes were written"))),
    }
}

impl Storage for RealStorage {
    async fn file_bytes(&self) -> io::Result<u64> {
        match self.kind {
            Kind::File => Ok(self.cached.file_size().await?),
            Kind::Device => device_bytes(&self.cached),
        }
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = self.cached.read_at_aligned(offset, bytes).await?.to_vec();
        // The file ends where a read brings nothing. One that brings less than it was asked for only has to be gone on with,
        // from the last whole block, since O_DIRECT reads blocks.
        while read.len() < bytes {
            read.truncate(read.len() / BLOCK_BYTES as usize * BLOCK_BYTES as usize);
            let more = self.cached.read_at_aligned(offset + read.len() as u64, bytes - read.len()).await?;
            read.extend_from_slice(&more);
            if more.len() < BLOCK_BYTES as usize {
                break;
            }
        }
        Ok(read)
    }

    async fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        let durable = self.durable.as_ref().ok_or_else(only_for_reading)?;
        let file = match durability {
            Durability::Durable => durable,
            Durability::Cached => &self.cached,
        };
        // glommio hands out registered buffers while it has some; they start uninitialised and are filled whole.
        let mut buffer = file.alloc_dma_buffer(data.len());
        match data.len() >= STREAMED_BYTES_MIN {
            true => streamed_copy(buffer.as_bytes_mut(), data),
            false => buffer.as_bytes_mut().copy_from_slice(data),
        }
        let written = file.write_at(buffer, offset).await?;
        all(written, data.len())
    }

    async fn write_zeroes(&self, offset: u64, bytes: usize) -> io::Result<()> {
        if self.durable.is_none() {
            return Err(only_for_reading());
        }
        let zeroes = self.zeroes.of(bytes, |bytes| self.cached.alloc_dma_buffer(bytes));
        let written = self.cached.write_rc_at(zeroes, offset).await?;
        all(written, bytes)
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(self.cached.fdatasync().await?)
    }

    async fn free(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match self.kind {
            Kind::File => {
                let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                self.allocate(punch, offset, bytes).await
            }
            // A device has its size, whatever of it is used.
            Kind::Device => Ok(()),
        }
    }

    async fn grow(&self, bytes: u64) -> io::Result<()> {
        let length = self.file_bytes().await?;
        match self.kind {
            _ if bytes <= length => Ok(()),
            Kind::File => self.allocate(FallocateFlags::empty(), length, bytes - length).await,
            Kind::Device => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the device has {length} bytes, and the next segment would end at {bytes}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glommio::{LocalExecutorBuilder, Placement};

    /// On an executor, with the path of an empty file.
    fn with_a_file(test: impl AsyncFnOnce(PathBuf)) {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("ledger");
        File::create(&path).expect("an empty file");
        let local = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().expect("an executor");
        local.run(test(path));
    }

    /// In pieces that are copied either way.
    #[test]
    fn what_is_written_is_read_again() {
        with_a_file(async |path| {
            let storage = RealStorage::open(&path, DirectIo::NotRequired).await.expect("it opens");
            for bytes in [
                BLOCK_BYTES as usize,
                STREAMED_BYTES_MIN - 4_096,
                STREAMED_BYTES_MIN,
                STREAMED_BYTES_MIN + 4_096,
                1 << 20,
            ] {
                let data: Vec<u8> = (0..bytes).map(|n| ((n * n) >> 5) as u8 ^ bytes as u8).collect();
                storage.write_at(8_192, &data, Durability::Durable).await.expect("written");
                assert!(storage.read_at(8_192, bytes).await.expect("read") == data, "{bytes} bytes");
            }
        });
    }

    #[test]
    fn zeroes_of_any_length_are_written_where_something_was() {
        const PAGE: usize = BLOCK_BYTES as usize;
        with_a_file(async |path| {
            let storage = RealStorage::open(&path, DirectIo::NotRequired).await.expect("it opens");
            storage.write_at(0, &[7; 8 * PAGE], Durability::Durable).await.expect("written");
            for (page, pages) in [(1, 2), (1, 2), (4, 1), (6, 2)] {
                storage.write_zeroes((page * PAGE) as u64, pages * PAGE).await.expect("zeroed");
            }
            let read = storage.read_at(0, 8 * PAGE).await.expect("read");
            let first: Vec<_> = read.iter().step_by(PAGE).copied().collect();
            assert_eq!(first, [7, 0, 0, 7, 0, 7, 0, 0]);
            assert!(read.chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])));
            let reader = RealStorage::open_read_only(&path).await.expect("it opens");
            let refused = reader.write_zeroes(0, PAGE).await.expect_err("it was opened for reading");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        });
    }
}
