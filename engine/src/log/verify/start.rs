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
    let reading = Reading(RefCell::new(source));
    let mut read = pin!(read_origin(&reading, superblock, origin));
    let Poll::Ready(snapshot) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        unreachable!("a source is there at once")
    };
    let snapshot = snapshot.map_err(|e| e.to_string())?;
    Shard::restore(superblock, &snapshot, Catalog::at_start(superblock))
}

/// A source as a storage that is only read.
struct Reading<'a, S>(RefCell<&'a mut S>);

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the ledger is only read"))
}

impl<S: Source> Storage for Reading<'_, S> {
    async fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.0.borrow().file_bytes())
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow_mut().read(offset, bytes)?.to_vec())
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
