//! The file system of a directory, and whether direct I/O on it is what it says.

use super::{DeviceError, block, scratch};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What overwriting in place and direct I/O mean on a file system, which decides whether it can carry a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystemKind {
    /// Overwrites stay where they are, and O_DIRECT reaches the device: ext4, xfs and the like.
    InPlace,
    /// Overwrites go elsewhere (btrfs, zfs, f2fs, bcachefs), so zeroing a segment ahead of need gains nothing.
    CopyOnWrite,
    /// Another machine or process does the writing; what is durable is theirs to say.
    Remote,
    /// There is nothing below but memory; O_DIRECT is accepted and means nothing.
    Memory,
    /// A layer over another file system, which decides (overlayfs).
    Layer,
    /// Not in our list.
    Unknown,
}

/// A file system as it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// `ext4`, `xfs`, …, as the mount table has it; else the magic number.
    pub name: String,
    /// What it does with overwrites.
    pub kind: FileSystemKind,
}

/// What O_DIRECT does in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectIo {
    /// Reads and writes bypass the page cache.
    Works(Alignment),
    /// The flag is accepted, but nothing lies below the page cache.
    Pretended,
    /// The flag, or the file's kind (encrypted, inline, journalled data), rules direct I/O out.
    Refused,
}

/// What direct I/O wants of addresses, offsets and lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of the buffer's address.
    pub memory_bytes: u32,
    /// Of the offset and the length.
    pub offset_bytes: u32,
    /// Who says so.
    pub source: AlignmentSource,
}

/// Where an alignment was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlignmentSource {
    /// The file system itself, by statx's `STATX_DIOALIGN` (Linux 6.1 and later).
    Statx,
    /// The logical block size of the device below.
    BlockDevice,
    /// Nobody: one page, which every device takes.
    Assumed,
}

/// Alignment where nobody names one.
const ASSUMED_ALIGNMENT_BYTES: u32 = 4096;

/// Kinds by the magic number that statfs reports, from linux/magic.h and the file systems' own headers. The mount table's
/// name can be anything (`fuse.…`); the number can't.
const KINDS: [(u64, FileSystemKind); 18] = [
    (0xEF53, FileSystemKind::InPlace),          // ext2, ext3, ext4
    (0x5846_5342, FileSystemKind::InPlace),     // xfs
    (0x3153_464A, FileSystemKind::InPlace),     // jfs
    (0x9123_683E, FileSystemKind::CopyOnWrite), // btrfs
    (0x2FC1_2FC1, FileSystemKind::CopyOnWrite), // zfs
    (0xF2F5_2010, FileSystemKind::CopyOnWrite), // f2fs
    (0xCA45_1A4E, FileSystemKind::CopyOnWrite), // bcachefs
    (0x0102_1994, FileSystemKind::Memory),      // tmpfs
    (0x8584_58F6, FileSystemKind::Memory),      // ramfs
    (0x794C_7630, FileSystemKind::Layer),       // overlayfs
    (0x6969, FileSystemKind::Remote),           // nfs
    (0xFF53_4D42, FileSystemKind::Remote),      // cifs
    (0xFE53_4D42, FileSystemKind::Remote),      // smb2
    (0x6573_5546, FileSystemKind::Remote),      // fuse, virtiofs
    (0x0102_1997, FileSystemKind::Remote),      // 9p
    (0x00C3_6400, FileSystemKind::Remote),      // ceph
    (0x0116_1970, FileSystemKind::Remote),      // gfs2
    (0x7461_636F, FileSystemKind::Remote),      // ocfs2
];

/// The file system that holds `directory`.
pub fn file_system(directory: &Path) -> Result<FileSystem, DeviceError> {
    let magic = magic(directory)?;
    let kind = KINDS.iter().find(|(number, _)| *number == magic).map_or(FileSystemKind::Unknown, |(_, kind)| *kind);
    let name = mount(directory)?.map_or_else(|| format!("magic {magic:#x}"), |mount| mount.file_system);
    Ok(FileSystem { name, kind })
}

fn magic(directory: &Path) -> Result<u64, DeviceError> {
    let unreadable = |source| DeviceError::Read { path: directory.to_owned(), source };
    let path = CString::new(directory.as_os_str().as_bytes()).map_err(|error| unreadable(error.into()))?;
    // SAFETY: statfs is plain integers, for which all-zero bytes are a valid value.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a live C string and `found` a live, exclusively borrowed statfs for the whole call.
    if unsafe { libc::statfs(path.as_ptr(), &mut found) } != 0 {
        return Err(unreadable(io::Error::last_os_error()));
    }
    // The field's type differs between targets; magic numbers are 32 bits wide on all of them.
    Ok(u64::from(found.f_type as u32))
}

/// What direct I/O does with a new file of `directory`: opens one, asks it, and removes it.
pub fn direct_io(directory: &Path) -> Result<DirectIo, DeviceError> {
    if file_system(directory)?.kind == FileSystemKind::Memory {
        return Ok(DirectIo::Pretended);
    }
    let path = scratch::unused_path(directory);
    let open = |flags: i32, create: bool| {
        OpenOptions::new().read(true).write(true).create_new(create).mode(0o600).custom_flags(flags).open(&path)
    };
    let made =
        open(0, true).map_err(|source| DeviceError::Scratch { operation: "create", path: path.clone(), source })?;
    let opened = open(libc::O_DIRECT, false);
    // The name is not needed any more, whatever the open gave.
    let removed = std::fs::remove_file(&path);
    let answer = match opened {
        Ok(direct) => answer_of(&direct, directory)?,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => DirectIo::Refused,
        Err(source) => return Err(DeviceError::Scratch { operation: "open with O_DIRECT", path, source }),
    };
    drop(made);
    removed.map_err(|source| DeviceError::Scratch { operation: "remove", path, source })?;
    Ok(answer)
}

/// Asks the open file, then the device below, for the alignment.
fn answer_of(file: &File, directory: &Path) -> Result<DirectIo, DeviceError> {
    if let Some((memory_bytes, offset_bytes)) = statx_alignment(file)? {
        // Both zero: the file system knows direct I/O, but not on this file.
        let refused = memory_bytes == 0 || offset_bytes == 0;
        let alignment = Alignment { memory_bytes, offset_bytes, source: AlignmentSource::Statx };
        return Ok(if refused { DirectIo::Refused } else { DirectIo::Works(alignment) });
    }
    let (bytes, source) = match block::behind(directory)? {
        Some(device) => (device.logical_block_bytes as u32, AlignmentSource::BlockDevice),
        None => (ASSUMED_ALIGNMENT_BYTES, AlignmentSource::Assumed),
    };
    Ok(DirectIo::Works(Alignment { memory_bytes: bytes, offset_bytes: bytes, source }))
}

/// Memory and offset alignment as statx reports them; `None` where kernel or file system do not.
fn statx_alignment(file: &File) -> Result<Option<(u32, u32)>, DeviceError> {
    // SAFETY: statx is plain integers, for which all-zero bytes are a valid value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for the whole call, the empty path is a C string that selects the descriptor itself,
    // and `found` is live and exclusively borrowed.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut found) };
    if result != 0 {
        return Err(DeviceError::Call { call: "statx", source: io::Error::last_os_error() });
    }
    let told = found.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(told.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align)))
}

/// What the mount of `path` is mounted from, such as `/dev/sda1`.
pub(super) fn mount_source(path: &Path) -> Result<Option<PathBuf>, DeviceError> {
    Ok(mount(path)?.map(|mount| PathBuf::from(mount.source)))
}

/// One line of the mount table, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    mount_point: PathBuf,
    file_system: String,
    source: String,
}

/// The mount that `path` lies on; `None` where the table does not say.
fn mount(path: &Path) -> Result<Option<Mount>, DeviceError> {
    let table = super::read_text(Path::new("/proc/self/mountinfo"))?;
    let path = path.canonicalize().map_err(|source| DeviceError::Read { path: path.to_owned(), source })?;
    Ok(mount_of(&table, &path))
}

/// The deepest mount point above `path`, and of equal ones the last, which covers the others.
fn mount_of(table: &str, path: &Path) -> Option<Mount> {
    table
        .lines()
        .filter_map(mount_line)
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

/// A line of /proc/self/mountinfo: the mount point is field 5; behind a lone `-` stand file system and source.
fn mount_line(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut tail = tail.split(' ');
    Some(Mount {
        mount_point: PathBuf::from(unescaped(head.split(' ').nth(4)?)),
        file_system: tail.next()?.to_owned(),
        source: unescaped(tail.next()?),
    })
}

/// The mount table writes blanks, tabs, newlines and backslashes as `\` and three octal digits.
fn unescaped(field: &str) -> String {
    let mut pieces = field.split('\\');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&piece[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(piece);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /dev/shm rw shared:2 - tmpfs tmpfs rw
31 22 8:17 / /srv rw - xfs /dev/sdb1 rw
32 31 0:44 /sub /srv/with\\040blank rw - btrfs /dev/mapper/data rw
33 31 0:45 / /srv/with\\040blank rw master:1 - overlay overlay rw";

    fn check(path: &str, expected: Option<(&str, &str)>) {
        let found = mount_of(TABLE, Path::new(path));
        let found = found.as_ref().map(|mount| (mount.file_system.as_str(), mount.source.as_str()));
        assert_eq!(found, expected, "path {path}");
    }

    #[test]
    fn the_deepest_and_last_mount_wins() {
        check("/", Some(("ext4", "/dev/root")));
        check("/home/x", Some(("ext4", "/dev/root")));
        check("/dev/shm/x", Some(("tmpfs", "tmpfs")));
        check("/srv", Some(("xfs", "/dev/sdb1")));
        check("/srvx", Some(("ext4", "/dev/root")));
        check("/srv/with blank/x", Some(("overlay", "overlay")));
        assert_eq!(mount_of("", Path::new("/")), None);
    }

    #[test]
    fn escapes_of_the_mount_table_are_undone() {
        assert_eq!(unescaped("a\\040b\\134c"), "a b\\c");
        assert_eq!(unescaped("tail\\"), "tail\\");
        assert_eq!(unescaped("odd\\9é"), "odd\\9é");
    }

    #[test]
    fn memory_is_not_a_device_however_willing() {
        let directory = Path::new("/dev/shm");
        let shm = file_system(directory).expect("every Linux has /dev/shm");
        // Some containers put something else there; then this machine has no tmpfs to show it on, and says so.
        if shm.kind == FileSystemKind::Memory {
            assert_eq!(direct_io(directory).expect("readable"), DirectIo::Pretended);
        } else {
            println!("/dev/shm is {shm:?} here, so the tmpfs case has nothing to run on");
        }
    }

    #[test]
    fn a_directory_that_does_direct_io_names_an_alignment() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        if let DirectIo::Works(alignment) = direct_io(directory.path()).expect("readable") {
            assert!(alignment.memory_bytes.is_power_of_two(), "{alignment:?}");
            assert!(alignment.offset_bytes.is_power_of_two(), "{alignment:?}");
        }
        let left: Vec<_> = std::fs::read_dir(directory.path()).expect("readable").collect();
        assert!(left.is_empty(), "the scratch file was left behind: {left:?}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = file_system(Path::new("/nonexistent/ledger")).expect_err("it does not exist");
        assert!(error.to_string().contains("/nonexistent/ledger"), "{error}");
    }
}
