//! Where a shard's bytes live: a real file through glommio, or a simulated disk that can lose power.

#[cfg(test)]
pub(crate) mod sim;

mod read_ahead;
mod real;
mod streamed_copy;
pub use read_ahead::ReadAhead;
pub use real::{DirectIo, OpenError, RealStorage};

use std::io;

/// What must be true when a write completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It survives a power cut: O_DSYNC.
    Durable,
    /// It is visible to reads, and durable only once a flush that was submitted after its completion has completed.
    Cached,
}

/// A ledger file or device. Offsets and lengths are multiples of 4,096.
///
/// Any number of operations may be under way at once, in any order. An error means that the bytes concerned hold
/// anything; it is never retried.
#[allow(async_fn_in_trait, reason = "both implementations are single-threaded by design")]
pub trait Storage {
    /// Length of the file in bytes.
    async fn file_bytes(&self) -> io::Result<u64>;

    /// Reads up to `bytes`; fewer only where the file ends.
    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>>;

    /// Writes all of `data`; a short write is an error.
    async fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()>;

    /// Writes zeroes, as [`Durability::Cached`].
    async fn write_zeroes(&self, offset: u64, bytes: usize) -> io::Result<()> {
        self.write_at(offset, &vec![0; bytes], Durability::Cached).await
    }

    /// Makes every write that completed before this call durable.
    async fn flush(&self) -> io::Result<()>;

    /// Gives the space of a stretch back, which reads as zeroes from then on. A crash may bring back what was there.
    async fn free(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Reserves space up to `bytes` of file length. `StorageFull` when there is none.
    async fn grow(&self, bytes: u64) -> io::Result<()>;
}
