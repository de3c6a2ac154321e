//! A ledger file in memory that holds only the blocks that are not zero, so that gigabytes of zeroed log cost nothing.

use claim_engine::log::layout::BLOCK_BYTES;
use claim_engine::storage::{Durability, Storage};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const BLOCK: usize = BLOCK_BYTES as usize;
static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// See the module. Everything on it is there at once, and durable.
#[derive(Debug, Clone, Default)]
pub struct Disk(RefCell<State>);

#[derive(Debug, Clone, Default)]
struct State {
    bytes: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl Disk {
    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }

    /// The numbers of the blocks that hold anything.
    pub fn used_blocks(&self) -> Vec<u64> {
        self.0.borrow().blocks.keys().copied().collect()
    }

    /// A block; zeroes where nothing is.
    pub fn block(&self, number: u64) -> Box<[u8; BLOCK]> {
        self.0.borrow().blocks.get(&number).cloned().unwrap_or_else(|| Box::new([0; BLOCK]))
    }

    /// Writes a block; the file grows to hold it.
    pub fn put_block(&self, number: u64, content: &[u8; BLOCK]) {
        let mut state = self.0.borrow_mut();
        state.bytes = state.bytes.max((number + 1) * BLOCK_BYTES);
        if content == &ZEROES {
            state.blocks.remove(&number);
        } else {
            state.blocks.insert(number, Box::new(*content));
        }
    }

    /// Writes at any offset; the file grows to hold it.
    pub fn put(&self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % BLOCK_BYTES) as usize;
            let count = rest.len().min(BLOCK - within);
            if count == BLOCK {
                let content = rest[..BLOCK].try_into().expect("a block has this length");
                self.put_block(at / BLOCK_BYTES, content);
            } else {
                let mut content = self.block(at / BLOCK_BYTES);
                content[within..within + count].copy_from_slice(&rest[..count]);
                self.put_block(at / BLOCK_BYTES, &content);
            }
            at += count as u64;
            rest = &rest[count..];
        }
    }

    /// What a range holds; shorter where the file ends.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let state = self.0.borrow();
        let end = state.bytes.min(offset.saturating_add(bytes as u64));
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        if out.is_empty() {
            return out;
        }
        for (number, content) in state.blocks.range(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)) {
            let start = number * BLOCK_BYTES;
            let (from, to) = (start.max(offset), (start + BLOCK_BYTES).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&content[(from - start) as usize..(to - start) as usize]);
        }
        out
    }

    /// Cuts the file.
    pub fn truncate(&self, bytes: u64) {
        let mut state = self.0.borrow_mut();
        if bytes >= state.bytes {
            return;
        }
        state.bytes = bytes;
        state.blocks.split_off(&bytes.div_ceil(BLOCK_BYTES));
        if let Some(last) = state.blocks.get_mut(&(bytes / BLOCK_BYTES)) {
            last[(bytes % BLOCK_BYTES) as usize..].fill(0);
        }
    }
}

impl Storage for Disk {
    async fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.bytes())
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        Ok(self.read(offset, bytes))
    }

    async fn write_at(&self, offset: u64, data: &[u8], _: Durability) -> io::Result<()> {
        self.put(offset, data);
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn free(&self, offset: u64, bytes: u64) -> io::Result<()> {
        // As holes are punched: by whole blocks, and the file stays as long as it is.
        let blocks = offset / BLOCK_BYTES..offset.saturating_add(bytes) / BLOCK_BYTES;
        self.0.borrow_mut().blocks.retain(|number, _| !blocks.contains(number));
        Ok(())
    }

    async fn grow(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.bytes = state.bytes.max(bytes);
        Ok(())
    }
}

/// Runs a future that never waits.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("everything on this disk completes at once"),
    }
}
