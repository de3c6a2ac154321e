//! A ledger file in memory as a power cut left it: what was durable, with patches over it. Recovery runs on it as on a file;
//! its writes become patches, too, and it can be cut in the middle of them.

use claim_engine::entropy::Entropy;
use claim_engine::storage::{Durability, Storage};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Sectors are the unit between which a write may be torn.
const SECTOR_BYTES: usize = 512;

/// A write that recovery made.
#[derive(Debug, Clone)]
struct Written {
    offset: u64,
    data: Vec<u8>,
    is_durable: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Image<'a> {
    base: &'a [u8],
    bytes: Cell<u64>,
    patches: Vec<(u64, &'a [u8])>,
    written: RefCell<Vec<Written>>,
    /// Operations until the power goes again.
    budget: Cell<Option<u64>>,
}

impl<'a> Image<'a> {
    /// `base` with patches over it, in their order; a file of `bytes`.
    pub fn new(base: &'a [u8], bytes: u64, patches: Vec<(u64, &'a [u8])>) -> Image<'a> {
        Image { base, bytes: Cell::new(bytes), patches, written: RefCell::default(), budget: Cell::new(None) }
    }

    /// A file without patches.
    pub fn of(base: &'a [u8]) -> Image<'a> {
        Image::new(base, base.len() as u64, Vec::new())
    }

    /// Lets the power go after `operations` more writes and flushes.
    pub fn cut_after(&self, operations: u64) {
        self.budget.set(Some(operations));
    }

    /// The power has gone during recovery: what recovery had not made durable is there in part. The image can be recovered again.
    pub fn after_cut(&self, entropy: &mut Entropy) {
        self.budget.set(None);
        let mut kept = Vec::new();
        for write in self.written.take() {
            match entropy.below(3) {
                _ if write.is_durable => kept.push(write),
                0 => {}
                1 => kept.push(write),
                _ => {
                    for (i, sector) in write.data.chunks(SECTOR_BYTES).enumerate() {
                        if entropy.below(2) == 0 {
                            let offset = write.offset + (i * SECTOR_BYTES) as u64;
                            kept.push(Written { offset, data: sector.to_vec(), is_durable: false });
                        }
                    }
                }
            }
        }
        kept.iter_mut().for_each(|write| write.is_durable = true);
        *self.written.borrow_mut() = kept;
    }

    /// The offsets that recovery has written to.
    pub fn written(&self) -> Vec<u64> {
        self.written.borrow().iter().map(|write| write.offset).collect()
    }

    /// The bytes of a range, as reads see them.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = (offset + length as u64).min(self.bytes.get());
        let length = end.saturating_sub(offset) as usize;
        // Most of it is the base's: copied, not zeroed first.
        let start = (offset as usize).min(self.base.len());
        let stop = (offset as usize + length).min(self.base.len());
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&self.base[start..stop.max(start)]);
        out.resize(length, 0);
        let overlay = |out: &mut [u8], at: u64, data: &[u8]| {
            let start = at.max(offset);
            let stop = (at + data.len() as u64).min(end);
            if start < stop {
                let source = &data[(start - at) as usize..(stop - at) as usize];
                out[(start - offset) as usize..(stop - offset) as usize].copy_from_slice(source);
            }
        };
        self.patches.iter().for_each(|(at, data)| overlay(&mut out, *at, data));
        self.written.borrow().iter().for_each(|write| overlay(&mut out, write.offset, &write.data));
        out
    }

    /// The whole file.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes(0, self.bytes.get() as usize)
    }

    fn spend(&self) -> io::Result<()> {
        match self.budget.get() {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                self.budget.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Storage for Image<'_> {
    async fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.bytes.get())
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        Ok(self.bytes(offset, bytes))
    }

    async fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        let spent = self.spend();
        // The write that the power interrupts may land, too.
        let is_durable = spent.is_ok() && durability == Durability::Durable;
        self.written.borrow_mut().push(Written { offset, data: data.to_vec(), is_durable });
        self.bytes.set(self.bytes.get().max(offset + data.len() as u64));
        spent
    }

    async fn flush(&self) -> io::Result<()> {
        self.spend()?;
        self.written.borrow_mut().iter_mut().for_each(|write| write.is_durable = true);
        Ok(())
    }

    async fn free(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; bytes as usize], Durability::Cached).await
    }

    async fn grow(&self, bytes: u64) -> io::Result<()> {
        self.bytes.set(self.bytes.get().max(bytes));
        Ok(())
    }
}

/// Runs a future that never waits: everything on an image is there at once.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("an image's operations complete at once"),
    }
}
