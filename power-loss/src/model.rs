//! What a power cut leaves: the part of the trace before an instant that is durable for certain, and the writes of which any
//! part may be there.
//!
//! Durable at an instant is every write with O_DSYNC that completed before it, and every write that completed before the
//! *submission* of a flush that completed before it. Of everything else any subset is there, each write whole or torn
//! between sectors. A hole that was punched is a write of zeroes: it is there in any part until a flush. A size is durable once a flush, or a durable write beyond the old size, made it so. What a killed process
//! had under way promises nothing.

use crate::image::Image;
use crate::trace::{Event, Op, Trace};
use claim_engine::entropy::Entropy;

/// What a hole reads as, a piece at a time.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// A write that a power cut may lose.
#[derive(Debug, Clone, Copy)]
struct Volatile<'a> {
    op: u32,
    offset: u64,
    data: &'a [u8],
    is_completed: bool,
    promises: bool,
}

#[derive(Debug)]
struct FileState<'a> {
    durable: Vec<u8>,
    /// The size that is durable.
    durable_bytes: u64,
    /// The size that the running system sees.
    bytes: u64,
    /// Completed ones in the order of their completion, then those under way.
    volatile: Vec<Volatile<'a>>,
}

#[derive(Debug, Clone, Default)]
struct Flush {
    file: usize,
    covers: Vec<u32>,
    bytes: u64,
    promises: bool,
}

/// The state of the disk at an instant, moved forward through a trace.
#[derive(Debug)]
pub struct Model<'a> {
    trace: &'a Trace,
    instant: usize,
    next_op: u32,
    /// Pieces of holes that were punched.
    holes: u32,
    files: Vec<FileState<'a>>,
    /// By operation: the file of a write.
    writes: Vec<Option<usize>>,
    flushes: Vec<(u32, Flush)>,
    /// Goes up whenever what is durable, or what may be there, changes.
    version: u64,
    /// Goes up whenever what is durable changes.
    durable_version: u64,
}

impl<'a> Model<'a> {
    /// The disk at the beginning of a trace.
    pub fn new(trace: &'a Trace) -> Model<'a> {
        let state = |content: &Vec<u8>| FileState {
            durable: content.clone(),
            durable_bytes: content.len() as u64,
            bytes: content.len() as u64,
            volatile: Vec::new(),
        };
        let files = trace.files.iter().map(|file| state(&file.content)).collect();
        Model {
            trace,
            instant: 0,
            next_op: 0,
            holes: 0,
            files,
            writes: Vec::new(),
            flushes: Vec::new(),
            version: 0,
            durable_version: 0,
        }
    }

    /// Events passed.
    pub fn instant(&self) -> usize {
        self.instant
    }

    /// Changes with every event after which images differ from those before.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Writes that a cut now may lose.
    pub fn volatile_writes(&self) -> usize {
        self.files.iter().map(|file| file.volatile.len()).sum()
    }

    /// Writes under way.
    pub fn in_flight(&self) -> usize {
        self.files.iter().flat_map(|file| &file.volatile).filter(|write| !write.is_completed).count()
    }

    /// Passes one event; false at the end of the trace.
    pub fn advance(&mut self) -> bool {
        let Some(event) = self.trace.events.get(self.instant) else { return false };
        self.instant += 1;
        match event {
            Event::Submitted(op) => self.submitted(op),
            Event::Completed(op) => self.completed(*op),
            Event::Failed(op) => {
                if let Some(file) = self.writes[*op as usize] {
                    self.files[file].settle(*op);
                }
                self.flushes.retain(|(number, _)| number != op);
            }
            Event::Resized { file, bytes } => {
                let file = &mut self.files[*file as usize];
                file.bytes = *bytes;
                if *bytes < file.durable_bytes {
                    // Shrinking is taken to be durable at once: nobody here relies on more.
                    file.durable.truncate(*bytes as usize);
                    file.durable_bytes = *bytes;
                    self.durable_version += 1;
                }
                self.version += 1;
            }
            Event::Killed => {
                self.files.iter_mut().flat_map(|file| &mut file.volatile).for_each(|write| write.promises = false);
                self.flushes.iter_mut().for_each(|(_, flush)| flush.promises = false);
            }
            Event::Client(_) => {}
            Event::Freed { file, offset, bytes } => {
                let mut at = *offset;
                while at < offset + bytes {
                    let length = (offset + bytes - at).min(ZEROES.len() as u64) as usize;
                    self.holes += 1;
                    // Numbers from the other end, so that they are no operation's.
                    let piece = Volatile {
                        op: u32::MAX - self.holes,
                        offset: at,
                        data: &ZEROES[..length],
                        is_completed: true,
                        promises: false,
                    };
                    self.files[*file as usize].complete(piece);
                    at += length as u64;
                }
                self.version += 1;
            }
        }
        true
    }

    fn submitted(&mut self, op: &'a Op) {
        let number = self.next_op;
        self.next_op += 1;
        match op {
            Op::Write { file, offset, data, is_durable } => {
                let index = *file as usize;
                self.writes.push(Some(index));
                self.files[index].volatile.push(Volatile {
                    op: number,
                    offset: *offset,
                    data,
                    is_completed: false,
                    promises: *is_durable,
                });
                self.version += 1;
            }
            Op::Flush { file } => {
                self.writes.push(None);
                let index = *file as usize;
                let file = &self.files[index];
                let covers = file.volatile.iter().filter(|write| write.is_completed).map(|write| write.op).collect();
                self.flushes.push((number, Flush { file: index, covers, bytes: file.bytes, promises: true }));
            }
        }
    }

    fn completed(&mut self, op: u32) {
        if let Some(index) = self.writes[op as usize] {
            let file = &mut self.files[index];
            let write = file.settle(op);
            file.bytes = file.bytes.max(write.offset + write.data.len() as u64);
            if write.promises {
                file.volatile.pop();
                file.supersede(write.offset, write.data.len() as u64);
                file.put_durable(write.offset, write.data);
                self.version += 1;
                self.durable_version += 1;
            }
            return;
        }
        let place = self.flushes.iter().position(|(number, _)| *number == op).expect("a flush that was submitted");
        let (_, flush) = self.flushes.remove(place);
        if !flush.promises {
            return;
        }
        let file = &mut self.files[flush.file];
        let (covered, rest) = file.volatile.iter().partition(|write| flush.covers.contains(&write.op));
        file.volatile = rest;
        for write in Vec::<Volatile<'_>>::into_iter(covered) {
            file.put_durable(write.offset, write.data);
        }
        file.durable_bytes = file.durable_bytes.max(flush.bytes.min(file.bytes));
        let bytes = file.durable_bytes as usize;
        if file.durable.len() < bytes {
            file.durable.resize(bytes, 0);
        }
        self.version += 1;
        self.durable_version += 1;
    }

    /// Draws one image of each file. `tear_bytes` is the unit between which a write may be torn. The number tells images of a
    /// trace apart: what is durable in them, and which parts of which other writes they have.
    pub fn image(&self, entropy: &mut Entropy, tear_bytes: u64) -> (Vec<Image<'_>>, u128) {
        let temper = entropy.below(6);
        let mut fingerprint = xxhash_rust::xxh3::Xxh3::new();
        fingerprint.update(&self.durable_version.to_le_bytes());
        let images = self.files.iter().map(|file| file.image(entropy, temper, tear_bytes, &mut fingerprint)).collect();
        (images, fingerprint.digest128())
    }

    /// What is durable for certain, and the size of each file, without anything else: for layers above this one.
    pub fn durable(&self, file: usize) -> &[u8] {
        &self.files[file].durable
    }
}

impl<'a> FileState<'a> {
    /// Moves a write from those under way to those completed, and returns it.
    fn settle(&mut self, op: u32) -> Volatile<'a> {
        let place = self.volatile.iter().position(|write| write.op == op).expect("a write that was submitted");
        let mut write = self.volatile.remove(place);
        write.is_completed = true;
        if write.promises {
            // The caller takes it from the end again.
            self.volatile.push(write);
        } else {
            self.complete(write);
        }
        write
    }

    /// Puts a write behind those that completed before it.
    fn complete(&mut self, write: Volatile<'a>) {
        let under_way = self.volatile.iter().position(|write| !write.is_completed).unwrap_or(self.volatile.len());
        self.volatile.insert(under_way, write);
    }

    /// A durable write replaces what older, completed writes to the same place would have left.
    fn supersede(&mut self, offset: u64, bytes: u64) {
        let end = offset + bytes;
        let pieces = |write: Volatile<'a>| {
            let write_end = write.offset + write.data.len() as u64;
            if !write.is_completed || write_end <= offset || write.offset >= end {
                return [Some(write), None];
            }
            let before = (write.offset < offset)
                .then(|| Volatile { data: &write.data[..(offset - write.offset) as usize], ..write });
            let after = (write_end > end).then(|| Volatile {
                offset: end,
                data: &write.data[(end - write.offset) as usize..],
                ..write
            });
            [before, after]
        };
        self.volatile = std::mem::take(&mut self.volatile).into_iter().flat_map(pieces).flatten().collect();
    }

    fn put_durable(&mut self, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[offset as usize..end].copy_from_slice(data);
        self.durable_bytes = self.durable_bytes.max(end as u64);
    }

    fn image(
        &self,
        entropy: &mut Entropy,
        temper: u64,
        tear_bytes: u64,
        fingerprint: &mut xxhash_rust::xxh3::Xxh3,
    ) -> Image<'_> {
        let keeps_size = entropy.below(2) == 0;
        let mut bytes = if keeps_size { self.bytes } else { self.durable_bytes };
        let mut patches = Vec::new();
        for write in &self.volatile {
            // Lose all, keep all, or decide write by write, and of some sector by sector.
            let fate = match temper {
                0 => 0,
                1 => 1,
                2 | 3 => entropy.below(2),
                _ => entropy.below(4),
            };
            let start = patches.len();
            match fate {
                0 => {}
                1 => patches.push((write.offset, write.data)),
                _ => tear(write, entropy, tear_bytes, &mut patches),
            }
            for (offset, data) in &patches[start..] {
                fingerprint.update(&write.op.to_le_bytes());
                fingerprint.update(&offset.to_le_bytes());
                fingerprint.update(&(data.len() as u64).to_le_bytes());
                bytes = bytes.max(offset + data.len() as u64);
            }
        }
        fingerprint.update(&bytes.to_le_bytes());
        Image::new(&self.durable, bytes, patches)
    }
}

/// A part of a write: its beginning, its end, or any of its sectors.
fn tear<'a>(write: &Volatile<'a>, entropy: &mut Entropy, tear_bytes: u64, patches: &mut Vec<(u64, &'a [u8])>) {
    let unit = tear_bytes as usize;
    let count = write.data.len().div_ceil(unit);
    let at = entropy.below(count as u64 + 1) as usize;
    match entropy.below(3) {
        0 => patches.push((write.offset, &write.data[..(at * unit).min(write.data.len())])),
        1 => {
            let start = (at * unit).min(write.data.len());
            patches.push((write.offset + start as u64, &write.data[start..]));
        }
        _ => {
            // Long writes are torn into pieces of many sectors, so that an image has a bounded number of patches.
            let piece = unit * count.div_ceil(64).max(1);
            for (i, data) in write.data.chunks(piece).enumerate() {
                if entropy.below(2) == 0 {
                    patches.push((write.offset + (i * piece) as u64, data));
                }
            }
        }
    }
    patches.retain(|(_, data)| !data.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::BaseFile;

    const BYTES: u64 = 3 << 20;

    /// A file of ones in which a hole is punched, and then what else happens.
    fn trace(then: Vec<Event>) -> Trace {
        let file = BaseFile { name: "a".into(), content: vec![1; BYTES as usize] };
        let freed = Event::Freed { file: 0, offset: 4096, bytes: BYTES - 8192 };
        Trace { mutant: None, files: vec![file], events: [vec![freed], then].concat() }
    }

    fn at_end(trace: &Trace) -> Model<'_> {
        let mut model = Model::new(trace);
        while model.advance() {}
        model
    }

    /// Of so many images, how many have the whole hole, none of it, and a part of it.
    fn holes(model: &Model<'_>) -> (usize, usize, usize) {
        let mut found = (0, 0, 0);
        for seed in 0..60 {
            let image = model.image(&mut Entropy::from_seed_u64(seed), 512).0[0].to_vec();
            let hole = &image[4096..BYTES as usize - 4096];
            match hole.iter().filter(|byte| **byte == 0).count() {
                0 => found.1 += 1,
                zeroes if zeroes == hole.len() => found.0 += 1,
                _ => found.2 += 1,
            }
            assert!(image[..4096].iter().chain(&image[BYTES as usize - 4096..]).all(|byte| *byte == 1));
        }
        found
    }

    #[test]
    fn a_hole_is_there_in_any_part_until_a_flush() {
        let only_punched = trace(Vec::new());
        let (whole, nothing, part) = holes(&at_end(&only_punched));
        assert!(whole > 0 && nothing > 0 && part > 0, "{whole} {nothing} {part}");
        let flush = [Event::Submitted(Op::Flush { file: 0 }), Event::Completed(0)];
        let flushed = trace(flush.to_vec());
        assert_eq!(holes(&at_end(&flushed)), (60, 0, 0));
        // A flush that had begun before does not cover it.
        let [submitted, completed] = flush;
        let mut late = trace(vec![completed]);
        late.events.insert(0, submitted);
        assert!(holes(&at_end(&late)).1 > 0);
    }

    #[test]
    fn what_is_written_into_a_hole_is_there() {
        let data = vec![2; 4096];
        let write = Op::Write { file: 0, offset: 8192, data, is_durable: true };
        let written = trace(vec![Event::Submitted(write), Event::Completed(0)]);
        let model = at_end(&written);
        for seed in 0..60 {
            let image = model.image(&mut Entropy::from_seed_u64(seed), 512).0[0].to_vec();
            assert!(image[8192..12_288].iter().all(|byte| *byte == 2));
        }
    }
}
