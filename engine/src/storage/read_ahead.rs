//! A file read from front to back as fast as the device gives it: O_DIRECT, several reads under way, and one copy at most.
//! For commands that read a whole ledger; it takes threads, and so has no place in the daemon's executors.

use crate::log::layout::BLOCK_BYTES;
use crate::log::verify::Source;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// One read.
const CHUNK_BYTES: usize = 4 << 20;
/// Reads under way or waiting to be looked at.
const CHUNKS_AHEAD: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct ReadAhead {
    file_bytes: u64,
    /// Bytes that one call may ask for: so much of a chunk's end is carried over to the next one's front.
    carry_bytes_max: usize,
    /// What can be handed out without reading, and where it starts.
    window: Bytes,
    window_at: u64,
    /// Where the next chunk to ask for starts; chunks of an older generation are dropped as they come.
    next_at: u64,
    generation: u64,
    under_way: usize,
    arrived: BTreeMap<u64, io::Result<Buffer>>,
    orders: Option<Sender<Order>>,
    done: Receiver<Done>,
    pool: Receiver<Vec<u8>>,
    give_back: Sender<Vec<u8>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Order {
    generation: u64,
    offset: u64,
    buffer: Buffer,
}

#[derive(Debug)]
struct Done {
    generation: u64,
    offset: u64,
    result: io::Result<Buffer>,
}

/// A buffer whose chunk starts at a multiple of the block size in memory, as O_DIRECT wants it, with room before it.
#[derive(Debug)]
struct Buffer {
    memory: Vec<u8>,
    /// Of the chunk in `memory`.
    chunk_at: usize,
    /// Valid bytes: from here to there in `memory`.
    from: usize,
    to: usize,
    give_back: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.from..self.to]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Nobody takes it back once the reading is over.
        let _ = self.give_back.send(std::mem::take(&mut self.memory));
    }
}

impl ReadAhead {
    /// Opens a file for reading; `bytes_max` is the most that is asked for at once.
    pub fn open(path: &Path, bytes_max: usize) -> io::Result<ReadAhead> {
        let file = match File::options().read(true).custom_flags(libc::O_DIRECT).open(path) {
            // A file system without O_DIRECT: the daemon serves it on demand only, but it can be read.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => File::open(path)?,
            other => other?,
        };
        let file_bytes = length(&file)?;
        let file = Arc::new(file);
        let (orders, taken) = channel::<Order>();
        let taken = Arc::new(Mutex::new(taken));
        let (report, done) = channel();
        let (give_back, pool) = channel();
        let mut readers = Vec::new();
        for _ in 0..CHUNKS_AHEAD {
            let (file, taken, report) = (Arc::clone(&file), Arc::clone(&taken), report.clone());
            let read = move || {
                loop {
                    let order = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Order { generation, offset, buffer }) = order else { return };
                    if report.send(Done { generation, offset, result: fill(&file, offset, buffer) }).is_err() {
                        return;
                    }
                }
            };
            readers.push(std::thread::Builder::new().name("claimd-read".to_owned()).spawn(read)?);
        }
        Ok(ReadAhead {
            file_bytes,
            carry_bytes_max: bytes_max.next_multiple_of(BLOCK_BYTES as usize),
            window: Bytes::new(),
            window_at: 0,
            next_at: 0,
            generation: 0,
            under_way: 0,
            arrived: BTreeMap::new(),
            orders: Some(orders),
            done,
            pool,
            give_back,
            readers,
        })
    }

    fn buffer(&self) -> Buffer {
        let memory =
            self.pool.try_recv().unwrap_or_else(|_| vec![0; self.carry_bytes_max + CHUNK_BYTES + BLOCK_BYTES as usize]);
        let start = memory.as_ptr() as usize;
        let chunk_at = (start + self.carry_bytes_max).next_multiple_of(BLOCK_BYTES as usize) - start;
        Buffer { memory, chunk_at, from: chunk_at, to: chunk_at, give_back: self.give_back.clone() }
    }

    /// Starts anew at an offset.
    fn seek(&mut self, offset: u64) {
        self.generation += 1;
        self.next_at = offset;
        self.window = Bytes::new();
        self.window_at = offset;
        self.arrived.clear();
        self.under_way = 0;
    }

    fn order_ahead(&mut self) {
        while self.under_way < CHUNKS_AHEAD && self.next_at < self.file_bytes {
            let order = Order { generation: self.generation, offset: self.next_at, buffer: self.buffer() };
            if let Some(orders) = &self.orders {
                let _ = orders.send(order);
            }
            self.under_way += 1;
            self.next_at += CHUNK_BYTES as u64;
        }
    }

    /// The chunk at an offset, which has been ordered.
    fn chunk(&mut self, offset: u64) -> io::Result<Buffer> {
        loop {
            if let Some(result) = self.arrived.remove(&offset) {
                self.under_way -= 1;
                return result;
            }
            let done = self.done.recv().map_err(|_| io::Error::other("the reading threads are gone"))?;
            if done.generation == self.generation {
                self.arrived.insert(done.offset, done.result);
            }
        }
    }
}

impl Source for ReadAhead {
    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    fn read(&mut self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        debug_assert!(bytes <= self.carry_bytes_max && offset.is_multiple_of(BLOCK_BYTES));
        let end = (offset + bytes as u64).min(self.file_bytes);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let window_end = self.window_at + self.window.len() as u64;
        if !(self.window_at..=window_end).contains(&offset) {
            self.seek(offset);
        }
        let window_end = self.window_at + self.window.len() as u64;
        if end > window_end {
            self.order_ahead();
            let mut chunk = self.chunk(window_end)?;
            let carried = self.window.slice((offset - self.window_at) as usize..);
            chunk.from = chunk.chunk_at - carried.len();
            let from = chunk.from;
            chunk.memory[from..from + carried.len()].copy_from_slice(&carried);
            self.window_at = offset;
            self.window = Bytes::from_owner(chunk);
            self.order_ahead();
        }
        let start = (offset - self.window_at) as usize;
        let end = ((end - self.window_at) as usize).min(self.window.len());
        Ok(self.window.slice(start..end))
    }

    fn forget(&mut self) {
        // Any place is outside a window that starts beyond the file's end.
        self.seek(u64::MAX / BLOCK_BYTES * BLOCK_BYTES);
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.orders = None;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// A block device has no length of its own: it is where its end is.
fn length(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

fn fill(file: &File, offset: u64, mut buffer: Buffer) -> io::Result<Buffer> {
    let mut filled = 0;
    while filled < CHUNK_BYTES {
        let into = buffer.chunk_at + filled..buffer.chunk_at + CHUNK_BYTES;
        match file.read_at(&mut buffer.memory[into], offset + filled as u64) {
            Ok(0) => break,
            // Direct reads end on a block; anything else is the file's end.
            Ok(read) if !read.is_multiple_of(BLOCK_BYTES as usize) => {
                filled += read;
                break;
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let place = format!("reading at file offset {}: {error}", offset + filled as u64);
                return Err(io::Error::new(error.kind(), place));
            }
        }
    }
    buffer.to = buffer.chunk_at + filled;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_file_holds_wherever_it_is_asked() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        let content: Vec<u8> = (0..(11u32 << 20) / 4).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        std::fs::write(&path, &content).unwrap();
        let mut source = ReadAhead::open(&path, 1 << 20).unwrap();
        assert_eq!(source.file_bytes(), content.len() as u64);
        let mut random = 1u64;
        let mut at = 0;
        for _ in 0..500 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bytes = 4096 * (1 + (random >> 33) as usize % 256);
            let read = source.read(at, bytes).unwrap();
            let expected = &content[(at as usize).min(content.len())..(at as usize + bytes).min(content.len())];
            assert!(read == expected, "{bytes} bytes at {at}");
            // Mostly forward, at times back to the start or far away.
            at = match random >> 60 {
                0 => 0,
                1 => (random >> 40) % (12 << 20) / 4096 * 4096,
                _ => at + bytes as u64,
            };
            if random >> 59 == 31 {
                source.forget();
            }
        }
    }
}
