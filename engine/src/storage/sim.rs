//! A simulated disk with a volatile cache. Operations complete when the simulator says so, in any order; power cuts lose,
//! keep or tear whatever was not durable, sector by sector; a killed process leaves its writes to land or not.

use super::{Durability, Storage};
use crate::entropy::Entropy;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

const SECTOR_BYTES: u64 = 512;
type Sector = [u8; SECTOR_BYTES as usize];

#[derive(Debug)]
enum Op {
    Write {
        offset: u64,
        data: Vec<u8>,
        durability: Durability,
    },
    /// Covers the writes that had completed when it was submitted.
    Flush {
        covers: u64,
    },
}

#[derive(Debug, Default)]
struct State {
    /// What survives a power cut for certain.
    durable: Vec<u8>,
    durable_bytes: u64,
    /// What reads see.
    visible: Vec<u8>,
    /// Per sector, the contents since the durable one, each with the number of the write that made it.
    volatile: BTreeMap<u64, Vec<(u64, Box<Sector>)>>,
    pending: BTreeMap<u64, Op>,
    completed: BTreeMap<u64, ()>,
    next_op: u64,
    writes_completed: u64,
}

/// A disk; clones are handles of the same one.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Rc<RefCell<State>>);

impl SimDisk {
    fn pending(&self) -> usize {
        self.0.borrow().pending.len()
    }

    /// Whether anything would be lost in a power cut now.
    pub fn has_volatile(&self) -> bool {
        !self.0.borrow().volatile.is_empty() || self.pending() > 0
    }

    /// Completes one pending operation, picked at random.
    pub fn complete_one(&self, entropy: &mut Entropy) {
        let mut state = self.0.borrow_mut();
        if state.pending.is_empty() {
            return;
        }
        let index = entropy.below(state.pending.len() as u64) as usize;
        let id = *state.pending.keys().nth(index).expect("the index is below the length");
        let op = state.pending.remove(&id).expect("the key was just read");
        state.land(op);
        state.completed.insert(id, ());
    }

    /// The process dies; the kernel goes on. What was in flight lands whole, in part, or not at all, and none of it is
    /// durable yet.
    pub fn kill_process(&self, entropy: &mut Entropy) {
        let mut state = self.0.borrow_mut();
        for op in std::mem::take(&mut state.pending).into_values() {
            if let Op::Write { offset, data, .. } = op {
                let fate = entropy.below(4);
                for (i, sector) in data.chunks(SECTOR_BYTES as usize).enumerate() {
                    if fate == 0 || (fate == 1 && entropy.below(2) == 0) {
                        continue;
                    }
                    state.land_volatile(offset + i as u64 * SECTOR_BYTES, sector);
                }
            }
        }
        state.completed.clear();
    }

    /// The power goes. Every sector has its durable content, or any that was written since.
    pub fn cut_power(&self, entropy: &mut Entropy) {
        let mut state = self.0.borrow_mut();
        // In-flight writes are candidates like completed ones.
        for op in std::mem::take(&mut state.pending).into_values() {
            if let Op::Write { offset, data, .. } = op {
                for (i, sector) in data.chunks(SECTOR_BYTES as usize).enumerate() {
                    state.land_volatile(offset + i as u64 * SECTOR_BYTES, sector);
                }
            }
        }
        // Three tempers: lose everything, keep most, or toss a coin per write and sector.
        let temper = entropy.below(4);
        let keeps_size = entropy.below(2) == 0;
        let lost_write =
            |write: u64, salt: u64| (write.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt).count_ones().is_multiple_of(2);
        let salt = entropy.next_u64();
        for (sector, contents) in std::mem::take(&mut state.volatile) {
            let survivors: Vec<_> = match temper {
                0 => Vec::new(),
                1 => contents.iter().collect(),
                2 => contents.iter().filter(|(write, _)| !lost_write(*write, salt)).collect(),
                _ => contents.iter().filter(|_| entropy.below(2) == 0).collect(),
            };
            if let Some((_, content)) = survivors.last() {
                state.put_durable(sector * SECTOR_BYTES, &content[..]);
            }
        }
        if !keeps_size {
            let bytes = state.durable_bytes as usize;
            state.durable.truncate(bytes);
        }
        state.durable_bytes = state.durable.len() as u64;
        state.visible = state.durable.clone();
        state.completed.clear();
    }

    /// Flips one bit of what is stored.
    pub fn flip_bit(&self, byte: u64, bit: u32) {
        let mut state = self.0.borrow_mut();
        state.durable[byte as usize] ^= 1 << bit;
        state.visible[byte as usize] ^= 1 << bit;
    }

    /// Cuts the stored file.
    pub fn truncate(&self, bytes: u64) {
        let mut state = self.0.borrow_mut();
        state.durable.truncate(bytes as usize);
        state.visible.truncate(bytes as usize);
    }

    /// Overwrites stored bytes, durably.
    pub fn overwrite(&self, offset: u64, data: &[u8]) {
        let mut state = self.0.borrow_mut();
        state.put_durable(offset, data);
        let end = offset as usize + data.len();
        if state.visible.len() < end {
            state.visible.resize(end, 0);
        }
        state.visible[offset as usize..end].copy_from_slice(data);
    }

    /// A disk that holds an image, durably.
    pub fn of_image(image: Vec<u8>) -> SimDisk {
        let durable_bytes = image.len() as u64;
        let state = State { durable: image.clone(), durable_bytes, visible: image, ..State::default() };
        SimDisk(Rc::new(RefCell::new(state)))
    }

    /// What reads see.
    pub fn image(&self) -> Vec<u8> {
        self.0.borrow().visible.clone()
    }

    fn submit(&self, op: Op) -> Completion {
        let mut state = self.0.borrow_mut();
        let id = state.next_op;
        state.next_op += 1;
        state.pending.insert(id, op);
        Completion { disk: self.clone(), id }
    }

    /// Runs a future to its end, completing operations at random; `None` when `ops` ran out before: a crash.
    pub fn run<T>(&self, entropy: &mut Entropy, mut ops: u64, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return Some(value);
            }
            if ops == 0 {
                return None;
            }
            ops -= 1;
            self.complete_one(entropy);
        }
    }
}

impl State {
    fn land(&mut self, op: Op) {
        match op {
            Op::Write { offset, data, durability } => {
                self.writes_completed += 1;
                for (i, sector) in data.chunks(SECTOR_BYTES as usize).enumerate() {
                    let at = offset + i as u64 * SECTOR_BYTES;
                    match durability {
                        Durability::Cached => self.land_volatile(at, sector),
                        Durability::Durable => {
                            self.put_visible(at, sector);
                            self.put_durable(at, sector);
                            // O_DSYNC covers the size that reading the data back needs.
                            self.durable_bytes = self.durable_bytes.max(at + sector.len() as u64);
                            self.volatile.remove(&(at / SECTOR_BYTES));
                        }
                    }
                }
            }
            Op::Flush { covers } => {
                let volatile = std::mem::take(&mut self.volatile);
                for (sector, mut contents) in volatile {
                    let later = contents.iter().position(|(write, _)| *write > covers).unwrap_or(contents.len());
                    if let Some((_, content)) = contents[..later].last() {
                        self.put_durable(sector * SECTOR_BYTES, &content[..]);
                    }
                    contents.drain(..later);
                    if !contents.is_empty() {
                        self.volatile.insert(sector, contents);
                    }
                }
                self.durable_bytes = self.visible.len() as u64;
                let bytes = self.visible.len();
                self.durable.resize(bytes, 0);
            }
        }
    }

    fn land_volatile(&mut self, at: u64, sector: &[u8]) {
        self.put_visible(at, sector);
        let mut content = Box::new([0; SECTOR_BYTES as usize]);
        content[..sector.len()].copy_from_slice(sector);
        self.volatile.entry(at / SECTOR_BYTES).or_default().push((self.writes_completed, content));
    }

    fn put_visible(&mut self, at: u64, sector: &[u8]) {
        let end = at as usize + sector.len();
        if self.visible.len() < end {
            self.visible.resize(end, 0);
        }
        self.visible[at as usize..end].copy_from_slice(sector);
    }

    fn put_durable(&mut self, at: u64, bytes: &[u8]) {
        let end = at as usize + bytes.len();
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[at as usize..end].copy_from_slice(bytes);
    }
}

#[derive(Debug)]
struct Completion {
    disk: SimDisk,
    id: u64,
}

impl Future for Completion {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match self.disk.0.borrow_mut().completed.remove(&self.id) {
            Some(()) => Poll::Ready(()),
            None => Poll::Pending,
        }
    }
}

impl Storage for SimDisk {
    async fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.0.borrow().visible.len() as u64)
    }

    async fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let state = self.0.borrow();
        let start = (offset as usize).min(state.visible.len());
        let end = (start + bytes).min(state.visible.len());
        Ok(state.visible[start..end].to_vec())
    }

    async fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        self.submit(Op::Write { offset, data: data.to_vec(), durability }).await;
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        let covers = self.0.borrow().writes_completed;
        self.submit(Op::Flush { covers }).await;
        Ok(())
    }

    async fn free(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; bytes as usize], Durability::Cached).await
    }

    async fn grow(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if (state.visible.len() as u64) < bytes {
            state.visible.resize(bytes as usize, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &SimDisk, entropy: &mut Entropy, byte: u8, durability: Durability) {
        disk.run(entropy, 1, disk.write_at(0, &[byte; 4096], durability)).unwrap().unwrap();
    }

    #[test]
    fn cached_writes_may_go_and_durable_and_flushed_ones_stay() {
        let mut lost = 0;
        for seed in 0..200 {
            let mut entropy = Entropy::from_seed_u64(seed);
            let disk = SimDisk::default();
            write(&disk, &mut entropy, 1, Durability::Durable);
            write(&disk, &mut entropy, 2, Durability::Cached);
            disk.cut_power(&mut entropy);
            let image = disk.image();
            assert!(image.iter().all(|b| *b == 1 || *b == 2));
            lost += usize::from(image[0] == 1);
            write(&disk, &mut entropy, 3, Durability::Cached);
            disk.run(&mut entropy, 1, disk.flush()).unwrap().unwrap();
            disk.cut_power(&mut entropy);
            assert!(disk.image().iter().all(|b| *b == 3));
        }
        assert!((50..150).contains(&lost), "{lost} of 200 were lost");
    }
}
