//! A directory for the systems under test.

use crate::error::BenchError;
use std::path::{Path, PathBuf};

/// Removed at the end whatever happened, unless it is to be kept.
pub struct ScratchDirectory {
    path: PathBuf,
    keep: bool,
}

impl ScratchDirectory {
    /// A new one in `parent`.
    pub fn make(parent: &Path, keep: bool) -> Result<Self, BenchError> {
        let failed = |source| BenchError::System { operation: "make a scratch directory", source };
        let parent = parent.canonicalize().map_err(failed)?;
        let path = parent.join(format!("claim-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(failed)?;
        Ok(ScratchDirectory { path, keep })
    }

    /// Where it is, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_directory_goes_unless_it_is_kept() {
        let parent = tempfile::tempdir().expect("a scratch directory");
        let scratch = ScratchDirectory::make(parent.path(), false).expect("made");
        let path = scratch.path().to_owned();
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());
        drop(ScratchDirectory::make(parent.path(), true).expect("made"));
        assert!(path.is_dir());
    }
}
