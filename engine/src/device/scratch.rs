//! A scratch file laid out as a ledger's segment is, for measurements that touch nothing else.

use super::DeviceError;
use nix::fcntl::{FallocateFlags, fallocate};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every buffer starts at a multiple of this, which satisfies the direct I/O of every device with blocks up to 4 KiB.
pub const BUFFER_ALIGNMENT_BYTES: usize = 4096;

/// Zeros are written in pieces of this size: large enough to run at the device's full rate.
const ZEROING_BYTES: usize = 1 << 20;

/// What lies under the file before it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extents {
    /// Zeros were written and flushed: an overwrite changes no metadata. This is how a ledger prepares its segments.
    Written,
    /// Space is reserved only (`fallocate`): the first write of a block has to be recorded in the file system's journal.
    Unwritten,
}

/// Whether the page cache is bypassed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// O_DIRECT, as a ledger is written.
    Direct,
    /// Through the page cache, for directories where direct I/O is not to be had.
    PageCache,
}

/// A file without a name: it is gone when this value is, and when the process is.
#[derive(Debug)]
pub struct Scratch {
    /// Open for writes whose durability is asked for one by one.
    plain: File,
    /// The same file, opened with O_DSYNC.
    dsync: File,
    bytes: u64,
    extents: Extents,
}

impl Scratch {
    /// Makes a file of `bytes` (a multiple of 1 MiB) in `directory`, prepares its extents and flushes it.
    pub fn create(directory: &Path, bytes: u64, extents: Extents, caching: Caching) -> Result<Self, DeviceError> {
        assert!(bytes > 0 && bytes.is_multiple_of(ZEROING_BYTES as u64), "{bytes} bytes are not whole MiB");
        let path = unused_path(directory);
        let failed = |operation| {
            let path = path.clone();
            move |source| DeviceError::Scratch { operation, path, source }
        };
        let direct = if caching == Caching::Direct { libc::O_DIRECT } else { 0 };
        let plain = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(direct)
            .open(&path)
            .map_err(failed("create"))?;
        let dsync = OpenOptions::new().read(true).write(true).custom_flags(direct | libc::O_DSYNC).open(&path);
        // Without a name the file cannot outlive us, however we end.
        std::fs::remove_file(&path).map_err(failed("remove the name of"))?;
        let scratch = Scratch { plain, dsync: dsync.map_err(failed("open"))?, bytes, extents };
        scratch.reserve().map_err(failed("reserve space for"))?;
        if extents == Extents::Written {
            scratch.zero().map_err(failed("write zeros to"))?;
        }
        scratch.plain.sync_all().map_err(failed("flush"))?;
        Ok(scratch)
    }

    /// Reserves the space at once, so that a full disk shows here and the extents lie together.
    fn reserve(&self) -> io::Result<()> {
        match fallocate(&self.plain, FallocateFlags::empty(), 0, self.bytes as i64) {
            Ok(()) => Ok(()),
            // File systems without reservation still take the zeros.
            Err(nix::Error::EOPNOTSUPP) if self.extents == Extents::Written => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn zero(&self) -> io::Result<()> {
        let zeros = AlignedBuffer::zeroed(ZEROING_BYTES);
        for offset in (0..self.bytes).step_by(ZEROING_BYTES) {
            self.plain.write_all_at(zeros.bytes(), offset)?;
        }
        Ok(())
    }

    /// The descriptor whose writes are durable only when asked to be.
    pub fn plain(&self) -> &File {
        &self.plain
    }

    /// The descriptor whose every write is durable when it returns.
    pub fn dsync(&self) -> &File {
        &self.dsync
    }

    /// The file's length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What lay under it when it was made.
    pub fn extents(&self) -> Extents {
        self.extents
    }
}

/// A path in `directory` that no file has: the process and a counter make it ours.
pub(super) fn unused_path(directory: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    directory.join(format!(".claimd-probe-{}-{number}", std::process::id()))
}

/// Memory that direct I/O accepts.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned by this value alone, and reached through it under the usual borrowing rules.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// `bytes` (more than none) of zeros at a multiple of [`BUFFER_ALIGNMENT_BYTES`].
    pub fn zeroed(bytes: usize) -> Self {
        assert!(bytes > 0, "a buffer without bytes has no place in memory");
        let layout = Layout::from_size_align(bytes, BUFFER_ALIGNMENT_BYTES).expect("a buffer fits the address space");
        // SAFETY: the layout's size is not zero, as asserted above.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => AlignedBuffer { start, layout },
            None => handle_alloc_error(layout),
        }
    }

    /// The whole buffer.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: start and size are those of a live allocation that was zeroed, hence initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// The whole buffer, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `alloc_zeroed` with this very layout, and is freed nowhere else.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extents: Extents) {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let scratch = Scratch::create(directory.path(), 2 << 20, extents, Caching::PageCache).expect("space");
        assert_eq!(scratch.plain().metadata().expect("an open file").len(), 2 << 20);
        let mut last = [1; 512];
        scratch.dsync().read_exact_at(&mut last, (2 << 20) - 512).expect("readable to its end");
        assert_eq!(last, [0; 512]);
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0, "the file has no name");
    }

    #[test]
    fn a_scratch_file_is_as_long_as_asked_reads_zero_and_has_no_name() {
        check(Extents::Written);
        check(Extents::Unwritten);
    }

    #[test]
    fn a_directory_that_does_not_exist_is_named() {
        let error = Scratch::create(Path::new("/nonexistent"), 1 << 20, Extents::Written, Caching::Direct);
        let error = error.expect_err("there is no such directory").to_string();
        assert!(error.starts_with("cannot create the scratch file /nonexistent/"), "{error}");
    }

    #[test]
    fn buffers_are_aligned_and_zero() {
        let mut buffer = AlignedBuffer::zeroed(8192);
        assert_eq!(buffer.bytes().as_ptr() as usize % BUFFER_ALIGNMENT_BYTES, 0);
        assert!(buffer.bytes().iter().all(|byte| *byte == 0));
        buffer.bytes_mut()[8191] = 7;
        assert_eq!(buffer.bytes()[8191], 7);
    }
}
