//! The space that is left below a shard's file.

use nix::sys::statvfs::statvfs;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Bytes that the file can still grow by: what its file system gives to everybody, or what is left of its device behind
/// `used_bytes`. A log that goes round on its device knows itself what is left there.
pub fn free_bytes(path: &Path, used_bytes: u64) -> io::Result<u64> {
    let file_type = path.metadata()?.file_type();
    if file_type.is_block_device() {
        let device_bytes = File::open(path)?.seek(SeekFrom::End(0))?;
        return Ok(device_bytes.saturating_sub(used_bytes));
    }
    let space = statvfs(path)?;
    Ok(space.blocks_available() * space.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_some_space_and_no_file_has_none() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        assert!(free_bytes(directory.path(), 0).is_ok_and(|bytes| bytes > 0));
        assert!(free_bytes(&directory.path().join("nothing"), 0).is_err());
    }
}
