//! Shows what direct I/O wants of a buffer's address, of an offset and of a length: what the file says itself, and what it takes.
//! See `kernel-notes/direct-io-alignment.md`.
//!
//! `cargo run --release -p claim-bench --example direct_io_alignment -- DIR…`

use claim_engine::device::directory::{AlignmentSource, DirectIo, direct_io};
use claim_engine::device::scratch::{AlignedBuffer, Caching, Extents, Scratch};
use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Nothing is aligned to more than this.
const BYTES_MAX: usize = 4096;

/// What of a write is off the mark.
#[derive(Clone, Copy)]
enum Part {
    Buffer,
    Offset,
    Length,
}

fn main() -> Result<(), Box<dyn Error>> {
    let directories: Vec<String> = std::env::args().skip(1).collect();
    let directories = if directories.is_empty() { vec![".".to_owned()] } else { directories };
    for directory in directories {
        report(Path::new(&directory))?;
    }
    Ok(())
}

fn report(directory: &Path) -> Result<(), Box<dyn Error>> {
    let told = match direct_io(directory)? {
        DirectIo::Works(alignment) => {
            let source = match alignment.source {
                AlignmentSource::Statx => "statx says",
                AlignmentSource::BlockDevice => "statx does not say, the device's blocks do",
                AlignmentSource::Assumed => "nobody says, assumed",
            };
            format!("{source}: buffer {}, offset and length {}", alignment.memory_bytes, alignment.offset_bytes)
        }
        DirectIo::Pretended => "memory, where O_DIRECT means nothing".to_owned(),
        DirectIo::Refused => "O_DIRECT is refused".to_owned(),
    };
    println!("{}: {told}", directory.display());
    let scratch = Scratch::create(directory, 1 << 20, Extents::Written, Caching::Direct)?;
    let [buffer, offset, length] = [Part::Buffer, Part::Offset, Part::Length].map(|part| least(&scratch, part));
    println!("  writes are taken at multiples of: buffer {buffer}, offset {offset}, length {length}");
    Ok(())
}

/// The smallest power of two off the mark that the file still takes; [`BYTES_MAX`] is never off it.
fn least(scratch: &Scratch, part: Part) -> usize {
    let powers = (0..=BYTES_MAX.ilog2()).map(|power| 1 << power);
    powers.into_iter().find(|off| takes(scratch, part, *off)).unwrap_or(BYTES_MAX)
}

/// Whether a write is taken of which one part is off by so many bytes, and the others are at multiples of [`BYTES_MAX`].
fn takes(scratch: &Scratch, part: Part, off: usize) -> bool {
    let buffer = AlignedBuffer::zeroed(3 * BYTES_MAX);
    let bytes = match part {
        Part::Buffer => &buffer.bytes()[off..off + BYTES_MAX],
        Part::Offset => &buffer.bytes()[..BYTES_MAX],
        Part::Length => &buffer.bytes()[..off],
    };
    let offset = if matches!(part, Part::Offset) { off } else { 0 };
    scratch.plain().write_at(bytes, offset as u64).is_ok_and(|written| written == bytes.len())
}
