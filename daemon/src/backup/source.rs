//! A shard of a backup as the ledger file that it came from: superblock, segments one after the other, zeroes where nothing
//! was copied. What reads a ledger reads a backup through it.

use super::manifest::{SegmentPart, ShardPart, path_of};
use bytes::Bytes;
use claim_engine::log::layout::{BLOCK_BYTES, Geometry, SUPERBLOCK_AREA_BYTES};
use claim_engine::log::superblock::{COPIES, Superblock, copy_offset, encode_segment_header};
use claim_engine::log::verify::Source;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Read at once, or as much as is asked for if that is more.
const PIECE_BYTES: u64 = 8 << 20;

/// See the module.
#[derive(Debug)]
pub struct BackupSource {
    dir: PathBuf,
    superblock: Superblock,
    segments: Vec<SegmentPart>,
    /// Segments of the ledger file.
    count: u64,
    open: Option<(u64, Option<File>)>,
    window: Bytes,
    window_at: u64,
}

impl BackupSource {
    /// The shard's part of the backup in a directory.
    pub fn new(dir: &Path, superblock: &Superblock, part: &ShardPart) -> BackupSource {
        BackupSource {
            dir: dir.to_owned(),
            superblock: superblock.clone(),
            segments: part.segments.clone(),
            // Where the log goes on there is a segment, with a file or without.
            count: superblock.geometry.segment_of(part.end.next_batch_at) + 1,
            open: None,
            window: Bytes::new(),
            window_at: 0,
        }
    }

    fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    /// Fills `out` with what stands at a log offset; it does not go beyond its segment.
    fn fill(&mut self, log_offset: u64, out: &mut [u8]) -> io::Result<()> {
        let segment = self.geometry().segment_of(log_offset);
        let at = log_offset - self.geometry().segment_start(segment);
        out.fill(0);
        // What was dropped before the first backup reads as nothing.
        let Some(index) = segment.checked_sub(self.superblock.first_segment()) else { return Ok(()) };
        let Some(part) = self.segments.get(index as usize) else {
            let header = encode_segment_header(&self.superblock, segment);
            if let Some(rest) = header.get(at as usize..) {
                let bytes = rest.len().min(out.len());
                out[..bytes].copy_from_slice(&rest[..bytes]);
            }
            return Ok(());
        };
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            // A file that is missing is found by its name; here it reads as nothing.
            self.open = Some((segment, File::open(path_of(&self.dir, &part.file)).ok()));
        }
        let Some((_, Some(file))) = &self.open else { return Ok(()) };
        let mut filled = 0;
        while filled < out.len() {
            match file.read_at(&mut out[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", part.file.file))),
            }
        }
        Ok(())
    }

    /// Bytes from an offset and nothing beyond, fewer where the file would end.
    pub fn read_at(&mut self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let end = (offset + bytes as u64).min(self.file_bytes());
        let mut piece = vec![0; end.saturating_sub(offset) as usize];
        let mut at = offset;
        while at < end {
            let start = (at - offset) as usize;
            let next = if at < SUPERBLOCK_AREA_BYTES {
                SUPERBLOCK_AREA_BYTES.min(end)
            } else {
                let log_offset = at - SUPERBLOCK_AREA_BYTES;
                let segment_end = self.geometry().segment_start(self.geometry().segment_of(log_offset) + 1);
                (SUPERBLOCK_AREA_BYTES + segment_end).min(end)
            };
            let out = &mut piece[start..(next - offset) as usize];
            if at < SUPERBLOCK_AREA_BYTES {
                superblocks(&self.superblock, at, out);
            } else {
                self.fill(at - SUPERBLOCK_AREA_BYTES, out)?;
            }
            at = next;
        }
        Ok(piece)
    }
}

impl Source for BackupSource {
    fn file_bytes(&self) -> u64 {
        self.geometry().file_bytes(self.count)
    }

    fn read(&mut self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let end = (offset + bytes as u64).min(self.file_bytes());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let window_end = self.window_at + self.window.len() as u64;
        if offset < self.window_at || end > window_end {
            let wanted = (end - offset).max(PIECE_BYTES).min(self.file_bytes() - offset);
            self.window = Bytes::from(self.read_at(offset, wanted as usize)?);
            self.window_at = offset;
        }
        let start = (offset - self.window_at) as usize;
        Ok(self.window.slice(start..start + (end - offset) as usize))
    }

    fn forget(&mut self) {
        self.window = Bytes::new();
    }
}

/// The part of the superblocks' area from `at` on.
fn superblocks(superblock: &Superblock, at: u64, out: &mut [u8]) {
    let block = superblock.encode();
    for copy in 0..COPIES {
        for (from, piece) in (copy_offset(copy)..copy_offset(copy) + BLOCK_BYTES).zip(&block) {
            if let Some(byte) = from.checked_sub(at).and_then(|index| out.get_mut(index as usize)) {
                *byte = *piece;
            }
        }
    }
}
