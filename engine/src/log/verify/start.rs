//! The state that a log begins with: nothing, or what stood behind the segments that were dropped.

use super::Source;
use crate::log::superblock::Superblock;
use crate::sealed::{Catalog, read_origin};
use crate::shard::Shard;
use crate::storage::{Durability, Storage};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// The state machine at the beginning of a log. The error says what of the small state before it does not verify.
pub fn state_at_start(source: &mut impl Source, superblock: &Superblock) -> Result<Shard, String> {
    let Some(origin) = &superblock.origin else { return Ok(Shard::new(superblock)) };
    let source = RefCell::new(source);
    let reading = Reading(|at, bytes| Ok(source.borrow_mut().read(at, bytes)?.to_vec()));
    let snapshot = at_once(read_origin(&reading, superblock, origin)).map_err(|e| e.to_string())?;
    Shard::restore(superblock, &snapshot, Catalog::at_start(superblock))
}

/// What comes of a future that waits for nothing, because what it reads is there at once.
pub(super) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("a source is there at once"),
    }
}

/// What reads at a file offset, as a storage that is only read.
pub(super) struct Reading<F>(pub F);

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the ledger is only read"))
}

impl<F: Fn(u64, usize) -> io::Result<Vec<u8>>> Storage for Reading<F> {
    async fn file_bytes(&self) -> io::Result<u64> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the length is not known here"))
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        (self.0)(offset, bytes)
    }

    async fn write_at(&self, _: u64, _: &[u8], _: Durability) -> io::Result<()> {
        read_only()
    }

    async fn flush(&self) -> io::Result<()> {
        read_only()
    }

    async fn free(&self, _: u64, _: u64) -> io::Result<()> {
        read_only()
    }

    async fn grow(&self, _: u64) -> io::Result<()> {
        read_only()
    }
}
