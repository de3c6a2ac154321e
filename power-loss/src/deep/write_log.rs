//! The log of the kernel's device-mapper target `log-writes`, and what it says as a [`Trace`].
//!
//! ```text
//!  superblock: magic 8 │ version 8 │ entries 8 │ sector bytes 4          one sector
//!  entry:      sector 8 │ sectors 8 │ flags 8 │ data bytes 8 │ mark      one sector, then the data of a write
//! ```
//!
//! An entry stands where its write completed, if that was durable by itself (FUA); a plain write stands right before the
//! flush that was submitted after its completion and has completed. Marks stand where they were made. So the log has no
//! submissions, and the trace takes the earliest that are certain to be possible: a plain write may have been under way since
//! the flush before; a batch since the completion of the batch that it records as durable, since its segment had its header,
//! since its clients' requests, and since shard 0 had what it repeats.

use super::note::Note;
use crate::image::{Image, run};
use crate::trace::{BaseFile, Event, Mark, Op, Trace};
use claim_engine::log::batch::{self, BatchHeader, Found};
use claim_engine::log::entry::Record;
use claim_engine::log::record;
use claim_engine::log::superblock::{Superblock, is_segment_header};
use claim_engine::mutant::Mutation;
use serde::Serialize;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const HEADER_BYTES: usize = 32;
const FLAG_FLUSH: u64 = 1;
const FLAG_FUA: u64 = 2;
const FLAG_DISCARD: u64 = 4;
const FLAG_MARK: u64 = 8;
/// Sectors of a log are of this size at most.
const SECTOR_BYTES_MAX: u64 = 4096;
/// Entries of a log, at most: what has more is no log.
const ENTRIES_MAX: u64 = 10_000_000;

/// One entry.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A write.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// The device was told to flush before.
        flushes: bool,
        /// The device was told to make it durable.
        is_fua: bool,
    },
    /// A flush without data.
    Flush,
    /// A mark.
    Mark(String),
}

/// What a log holds.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Counts {
    /// Entries.
    pub entries: u64,
    /// Writes with FUA.
    pub fua: u64,
    /// Writes without.
    pub plain: u64,
    /// Flushes.
    pub flushes: u64,
    /// Marks.
    pub marks: u64,
}

impl Counts {
    /// Counts entries.
    pub fn of(entries: &[Entry]) -> Counts {
        let mut counts = Counts { entries: entries.len() as u64, ..Counts::default() };
        for entry in entries {
            match entry {
                Entry::Write { is_fua, flushes, .. } => {
                    counts.fua += u64::from(*is_fua);
                    counts.plain += u64::from(!is_fua);
                    counts.flushes += u64::from(*flushes);
                }
                Entry::Flush => counts.flushes += 1,
                Entry::Mark(_) => counts.marks += 1,
            }
        }
        counts
    }

    /// Adds another count.
    pub fn add(&mut self, other: Counts) {
        self.entries += other.entries;
        self.fua += other.fua;
        self.plain += other.plain;
        self.flushes += other.flushes;
        self.marks += other.marks;
    }
}

/// Reads a log.
pub fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let error = |e: String| format!("the write log {}: {e}", path.display());
    let file = File::open(path).map_err(|e| error(e.to_string()))?;
    entries(&file).map_err(error)
}

fn entries(file: &impl FileExt) -> Result<Vec<Entry>, String> {
    let mut block = vec![0; SECTOR_BYTES_MAX as usize];
    read_at(file, &mut block, 0)?;
    let (magic, version, count) = (number(&block, 0), number(&block, 8), number(&block, 16));
    let sector_bytes = number(&block, 24) & u64::from(u32::MAX);
    if magic != MAGIC || version != VERSION {
        return Err(format!("it starts with {magic:#x} version {version}: nothing was logged"));
    }
    if !(512..=SECTOR_BYTES_MAX).contains(&sector_bytes) || count > ENTRIES_MAX {
        return Err(format!("{count} entries of sectors of {sector_bytes} bytes make no sense"));
    }
    let mut at = sector_bytes;
    let mut entries = Vec::new();
    for index in 0..count {
        let header = &mut block[..sector_bytes as usize];
        read_at(file, header, at)?;
        at += sector_bytes;
        let (sector, sectors, flags) = (number(header, 0), number(header, 8), number(header, 16));
        let data_bytes = number(header, 24) as usize;
        if flags & FLAG_MARK != 0 {
            let text = header.get(HEADER_BYTES..HEADER_BYTES + data_bytes).ok_or("a mark is longer than its sector")?;
            entries.push(Entry::Mark(String::from_utf8_lossy(text).into_owned()));
            continue;
        }
        if flags & FLAG_DISCARD != 0 {
            return Err(format!("entry {index} is a discard, and claimd discards nothing"));
        }
        if sectors == 0 {
            entries.push(Entry::Flush);
            continue;
        }
        let mut data = vec![0; (sectors * sector_bytes) as usize];
        read_at(file, &mut data, at)?;
        at += sectors * sector_bytes;
        let (flushes, is_fua) = (flags & FLAG_FLUSH != 0, flags & FLAG_FUA != 0);
        entries.push(Entry::Write { offset: sector * sector_bytes, data, flushes, is_fua });
    }
    Ok(entries)
}

fn read_at(file: &impl FileExt, buffer: &mut [u8], at: u64) -> Result<(), String> {
    file.read_exact_at(buffer, at).map_err(|e: io::Error| format!("reading at {at}: {e}"))
}

fn number(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
}

/// A write that is a batch: with FUA, unless the daemon has a deliberate bug.
struct Batch {
    header: BatchHeader,
    keys: Vec<u128>,
}

/// What a write is to the log of its shard.
struct Place {
    shard: usize,
    segment: u64,
    /// `None` for what is no batch: zeroes, and the headers of segments.
    batch: Option<Batch>,
    is_segment_header: bool,
}

/// What the log and the guest's notes say, from the moment at which the ledger was formatted. `device_bytes` is the length
/// of the logged device, which the shards share evenly.
pub fn trace(entries: &[Entry], notes: &[Note], device_bytes: u64, shards: usize) -> Result<Trace, String> {
    let notes_at = notes_of(entries, notes)?;
    let formatted = notes_at.iter().find(|(_, note)| matches!(note, Note::Formatted));
    let start = *formatted.ok_or("the log has no mark of a formatted ledger")?.0;
    let shard_bytes = device_bytes / shards as u64;
    let files = base(&entries[..start], device_bytes, shards)?;
    let mut superblocks = Vec::new();
    for file in &files {
        let found = run(Superblock::read(&Image::of(&file.content)));
        superblocks.push(found.map_err(|e| format!("{} after the format: {e}", file.name))?);
    }
    let place = |offset: u64| ((offset / shard_bytes) as usize, offset % shard_bytes);
    let places = places(&entries[start..], start, &superblocks, place);
    let submitted_at = submissions(entries, start, &places, &notes_at);

    let mut due: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, at) in &submitted_at {
        due.entry(*at).or_default().push(*index);
    }
    let mut out = Events { trace: Trace { files, ..Trace::default() }, ops: 0, numbers: HashMap::new() };
    for (index, entry) in entries.iter().enumerate().skip(start) {
        for write in due.remove(&index).unwrap_or_default() {
            let Entry::Write { offset, data, is_fua, .. } = &entries[write] else { continue };
            let (file, offset) = place(*offset);
            let op = Op::Write { file: file as u32, offset, data: data.clone(), is_durable: *is_fua };
            out.submit(Some(write), op);
        }
        match entry {
            Entry::Write { flushes, .. } => {
                if *flushes {
                    out.flush(shards);
                }
                out.complete(index);
            }
            Entry::Flush => out.flush(shards),
            Entry::Mark(_) => match notes_at.get(&index) {
                Some(Note::Client(mark)) => out.trace.events.push(Event::Client(mark.clone())),
                Some(Note::Killing) => out.trace.events.push(Event::Killed),
                _ => {}
            },
        }
    }
    Ok(out.trace)
}

struct Events {
    trace: Trace,
    ops: u32,
    /// Of the writes, by their place in the log.
    numbers: HashMap<usize, u32>,
}

impl Events {
    fn submit(&mut self, write: Option<usize>, op: Op) -> u32 {
        let number = self.ops;
        self.ops += 1;
        if let Some(index) = write {
            self.numbers.insert(index, number);
        }
        self.trace.events.push(Event::Submitted(op));
        number
    }

    fn complete(&mut self, write: usize) {
        let number = self.numbers[&write];
        self.trace.events.push(Event::Completed(number));
    }

    /// A flush of the device is one of every shard.
    fn flush(&mut self, shards: usize) {
        for file in 0..shards {
            let number = self.submit(None, Op::Flush { file: file as u32 });
            self.trace.events.push(Event::Completed(number));
        }
    }
}

/// The guest's notes by the places of their marks.
fn notes_of<'a>(entries: &[Entry], notes: &'a [Note]) -> Result<HashMap<usize, &'a Note>, String> {
    let mut found = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let Entry::Mark(text) = entry else { continue };
        // The target leaves marks of its own.
        let Some(number) = text.strip_prefix(MARK).and_then(|number| number.parse::<usize>().ok()) else { continue };
        let note =
            notes.get(number).ok_or_else(|| format!("the log has mark {number}, and the guest sent no such note"))?;
        found.insert(index, note);
    }
    Ok(found)
}

/// What precedes the number of a note in its mark.
pub(super) const MARK: &str = "note-";

/// The shards' content when the ledger was formatted: all of it has been flushed by then.
fn base(entries: &[Entry], device_bytes: u64, shards: usize) -> Result<Vec<BaseFile>, String> {
    let mut device = vec![0; device_bytes as usize];
    for entry in entries {
        if let Entry::Write { offset, data, .. } = entry {
            let range = *offset as usize..*offset as usize + data.len();
            device.get_mut(range).ok_or("a write lies beyond the device")?.copy_from_slice(data);
        }
    }
    let shard_bytes = device.len() / shards;
    let file = |(shard, content): (usize, &[u8])| BaseFile {
        name: format!("shard-{shard:04}.ledger"),
        content: content.to_vec(),
    };
    Ok(device.chunks_exact(shard_bytes).enumerate().map(file).collect())
}

/// The writes of a log, by their index.
fn places(
    entries: &[Entry],
    start: usize,
    superblocks: &[Superblock],
    place: impl Fn(u64) -> (usize, u64),
) -> HashMap<usize, Place> {
    let mut places = HashMap::new();
    for (index, entry) in (start..).zip(entries) {
        let Entry::Write { offset, data, .. } = entry else { continue };
        let (shard, offset) = place(*offset);
        let superblock = &superblocks[shard];
        let Superblock { key, shard: number, geometry, .. } = superblock;
        let segment = geometry.segment_of(offset.saturating_sub(geometry.file_offset(0)));
        let batch = match batch::find(data, key, *number, geometry.batch_bytes_max, Mutation::NONE) {
            Found::Batch { header, .. } => Some(Batch { header, keys: keys(data, batch::records(data, &header)) }),
            _ => None,
        };
        let is_segment_header = is_segment_header(data, superblock, segment);
        places.insert(index, Place { shard, segment, batch, is_segment_header });
    }
    places
}

/// The idempotency keys of a batch's records.
fn keys(batch: &[u8], records: Range<usize>) -> Vec<u128> {
    let mut keys = Vec::new();
    let mut at = records.start;
    while at < records.end {
        let Ok((raw, bytes)) = record::read(&batch[at..records.end]) else { break };
        if let Ok(record) = Record::decode(raw.kind, raw.body) {
            keys.push(record.meta.idempotency_key);
        }
        at += bytes;
    }
    keys
}

/// Of each write, the place in the log before which it may have been submitted; see the module.
fn submissions(
    entries: &[Entry],
    start: usize,
    places: &HashMap<usize, Place>,
    notes_at: &HashMap<usize, &Note>,
) -> Vec<(usize, usize)> {
    let mut submissions = Vec::new();
    // All of these are places after which something may be submitted.
    let (mut last_flush, mut last_start) = (start, start);
    let mut sent: HashMap<u128, usize> = HashMap::new();
    let mut at_shard_0: HashMap<u128, usize> = HashMap::new();
    let mut completed: HashMap<(usize, u64), usize> = HashMap::new();
    let mut last_submission: HashMap<usize, usize> = HashMap::new();
    let mut headers = Vec::new();
    let mut prepared: HashMap<(usize, u64), usize> = HashMap::new();
    for (index, entry) in entries.iter().enumerate().skip(start) {
        match entry {
            Entry::Mark(_) => match notes_at.get(&index) {
                Some(Note::Client(Mark::Sent { key, .. })) => {
                    sent.entry(*key).or_insert(index);
                }
                Some(Note::Starting) => last_start = index,
                _ => {}
            },
            Entry::Flush => {
                last_flush = index;
                prepared.extend(headers.drain(..).map(|segment| (segment, index)));
            }
            Entry::Write { is_fua, flushes, .. } => {
                let flushed_before = last_flush;
                if *flushes {
                    last_flush = index;
                }
                let Place { shard, segment, batch, is_segment_header } = &places[&index];
                if *is_segment_header {
                    headers.push((*shard, *segment));
                }
                let Some(batch) = batch else {
                    submissions.push((index, if *is_fua { index } else { flushed_before + 1 }));
                    continue;
                };
                let (shard, header) = (*shard, &batch.header);
                let mut after = last_start.max(last_submission.get(&shard).copied().unwrap_or(start));
                after = after.max(completed.get(&(shard, header.durable_batch)).copied().unwrap_or(start));
                after = after.max(prepared.get(&(shard, *segment)).copied().unwrap_or(start));
                for key in &batch.keys {
                    after = after.max(sent.get(key).copied().unwrap_or(start));
                    if shard != 0 {
                        after = after.max(at_shard_0.get(key).copied().unwrap_or(start));
                    }
                }
                // A recovery batch follows the flush of what was read.
                if header.is_recovery {
                    after = after.max(flushed_before);
                }
                submissions.push((index, (after + 1).min(index)));
                last_submission.insert(shard, after);
                completed.insert((shard, header.number), index);
                if shard == 0 {
                    batch.keys.iter().for_each(|key| {
                        at_shard_0.entry(*key).or_insert(index);
                    });
                }
            }
        }
    }
    submissions
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_engine::log::layout::Geometry;
    use claim_engine::log::writer;

    fn header(sector: u64, sectors: u64, flags: u64, data: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        for number in [sector, sectors, flags, data.len() as u64] {
            block.extend_from_slice(&number.to_le_bytes());
        }
        block.extend_from_slice(data);
        block.resize(512, 0);
        block
    }

    #[test]
    fn entries_are_read_as_the_kernel_writes_them() {
        let mut log = Vec::new();
        for number in [MAGIC, VERSION, 4, 512] {
            log.extend_from_slice(&number.to_le_bytes());
        }
        log.resize(512, 0);
        log.extend(header(3, 2, FLAG_FUA, &[]));
        log.extend(vec![7; 1024]);
        log.extend(header(0, 0, FLAG_MARK, b"note-5"));
        log.extend(header(0, 0, FLAG_FLUSH, &[]));
        log.extend(header(8, 1, 0, &[]));
        log.extend(vec![9; 8192]);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &log).expect("a write");
        let entries = read(file.path()).expect("a log");
        assert!(
            matches!(&entries[0], Entry::Write { offset: 1536, data, is_fua: true, flushes: false } if data.len() == 1024)
        );
        assert!(matches!(&entries[1], Entry::Mark(text) if text == "note-5"));
        assert!(matches!(entries[2], Entry::Flush));
        assert!(matches!(&entries[3], Entry::Write { offset: 4096, data, is_fua: false, .. } if data[..] == [9; 512]));
        let counts = Counts::of(&entries);
        assert_eq!((counts.entries, counts.fua, counts.plain, counts.flushes, counts.marks), (4, 1, 1, 1, 1));
        log[0] = 0;
        std::fs::write(file.path(), &log).expect("a write");
        assert!(read(file.path()).expect_err("no magic").contains("nothing was logged"));
    }

    #[test]
    fn a_plain_write_may_be_lost_until_its_flush_and_a_durable_one_may_not() {
        let geometry = Geometry { segment_bytes: 1 << 20, batch_bytes_max: 128 << 10, ring_segments: 0 };
        let shard_bytes = 4 << 20;
        let write = |offset, data: Vec<u8>, is_fua| Entry::Write { offset, data, flushes: false, is_fua };
        let mut entries = Vec::new();
        for shard in 0..2u16 {
            let superblock = Superblock {
                shard,
                shard_count: 2,
                ..Superblock::of_new_ledger(uuid::Uuid::from_u128(5), [3; 32], geometry)
            };
            let image = Image::of(&[]);
            run(writer::format(&image, &superblock)).expect("memory");
            entries.push(write(u64::from(shard) * shard_bytes, image.to_vec(), false));
        }
        let plain_at = shard_bytes + (2 << 20);
        entries.extend([Entry::Flush, Entry::Mark("note-0".into()), Entry::Mark("note-1".into())]);
        entries.extend([write(512, vec![1; 512], true), write(plain_at, vec![2; 512], false)]);
        entries.extend([Entry::Flush, Entry::Mark("dm-log-writes-end".into())]);
        let notes = [Note::Formatted, Note::Client(Mark::Seen { event_id: 9 })];
        let trace = trace(&entries, &notes, 2 * shard_bytes, 2).expect("a trace");
        let text: Vec<_> = trace
            .events
            .iter()
            .map(|event| match event {
                Event::Submitted(Op::Write { file, offset, is_durable, .. }) => format!("{file} {offset} {is_durable}"),
                Event::Submitted(Op::Flush { file }) => format!("flush {file}"),
                Event::Completed(op) => format!("done {op}"),
                Event::Client(_) => "client".to_owned(),
                other => format!("{other:?}"),
            })
            .collect();
        let plain = "1 2097152 false";
        let expected = [plain, "client", "0 512 true", "done 1", "done 0", "flush 0", "done 2", "flush 1", "done 3"];
        assert_eq!(text, expected);
        assert_eq!(trace.files[1].content.len() as u64, shard_bytes);
    }
}
