//! What commands have in common that write a shard's log anew: the new file, and the records that end it.

use claim_engine::corpus::Prefix;
use claim_engine::log::entry::{Meta, Principal};
use claim_engine::log::io::perform;
use claim_engine::log::layout::Geometry;
use claim_engine::log::superblock::{Superblock, encode_segment_header};
use claim_engine::log::writer::LogWriter;
use claim_engine::storage::RealStorage;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Zeroes are written in pieces of this size.
const ZEROES_BYTES: usize = 1 << 20;
/// Floors of one entry; a ledger with more corpora gets several.
const FLOORS_MAX: usize = 5_000;
/// Microseconds of a millisecond: of ids, milliseconds count.
pub const MS_US: i64 = 1_000;

/// Makes a shard's file, or empties the one that an interrupted run left. The superblock comes last, the first block before all others:
/// it must not be a hole.
pub fn begin(path: &Path, mode: u32, geometry: Geometry) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all_at(&vec![0; geometry.file_offset(0) as usize], 0)?;
    Ok(file)
}

/// Writes the headers of the segments up to the one in which the log ends, and zeroes behind its end, and makes all of it durable.
/// Returns how many segments the file has.
pub fn finish(file: &File, superblock: &Superblock, ends_at: u64) -> io::Result<u64> {
    let geometry = superblock.geometry;
    let segments = geometry.segment_of(ends_at) + 1;
    for segment in superblock.first_segment()..segments {
        let header = encode_segment_header(superblock, segment);
        file.write_all_at(&header, geometry.file_offset(geometry.segment_start(segment)))?;
    }
    let zeroes = vec![0; ZEROES_BYTES];
    let end = geometry.file_bytes(segments);
    let mut at = geometry.file_offset(ends_at);
    while at < end {
        let bytes = (end - at).min(ZEROES_BYTES as u64);
        file.write_all_at(&zeroes[..bytes as usize], at)?;
        at += bytes;
    }
    file.sync_all()?;
    Ok(segments)
}

/// Who runs the command.
pub fn own_principal() -> Principal {
    Principal { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw(), pid: std::process::id() }
}

/// What stands before an entry that nobody asked for on the socket.
pub fn meta(timestamp_us: i64, principal: Principal) -> Meta<'static> {
    Meta {
        timestamp_us,
        idempotency_key: 0,
        correlation_id: 0,
        fingerprint: 0,
        principal,
        item: 0,
        corpus: None,
        rationale: "",
    }
}

/// The floors of each entry that says them: one entry at least, for its time.
pub fn floor_parts(floors: &[(Prefix, u64)]) -> Vec<&[(Prefix, u64)]> {
    if floors.is_empty() { vec![floors] } else { floors.chunks(FLOORS_MAX).collect() }
}

/// Writes what a writer has gathered.
pub async fn work_off(writer: &mut LogWriter, storage: &RealStorage) -> Result<(), String> {
    while let Some(io) = writer.next_io() {
        let done = perform(storage, io).await;
        writer.complete(done, 0);
    }
    match (writer.failed(), writer.is_idle() && !writer.cannot_grow()) {
        (Some(reason), _) => Err(reason.to_owned()),
        (None, false) => {
            Err("the new file can't grow: make room on its file system, and run the same command again".to_owned())
        }
        (None, true) => Ok(()),
    }
}
