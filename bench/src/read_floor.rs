//! Reads of an existing file with direct I/O, which no daemon that keeps its rows there can beat.

use crate::error::BenchError;
use crate::outcome::{Latencies, number_table, per_second, rate_cell, rounded, thousands};
use crate::pace::{Pace, last_before};
use crate::random::Random;
use crate::record::{FloorRecord, curve};
use crate::series::empty_histogram;
use claim_engine::device::scratch::AlignedBuffer;
use comfy_table::Table;
use hdrhistogram::Histogram;
use io_uring::{IoUring, opcode, types};
use nix::libc;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Reads at the start of a closed loop that are not counted: they fill the device's queues.
const WARM_UP_READS: u64 = 16;

/// What the ring says of the timer, where it says the number of a slot.
const TIMER: u64 = u64::MAX;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Blocks of 4 KiB anywhere in the file.
    Random,
    /// 1 MiB after the other from a random one on, and from the file's start behind its end.
    Sequential,
}

impl Pattern {
    fn block_bytes(self) -> u32 {
        match self {
            Pattern::Random => 4 << 10,
            Pattern::Sequential => 1 << 20,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Pattern::Random => "random",
            Pattern::Sequential => "sequential",
        }
    }
}

/// How it is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadTrial {
    pub pattern: Pattern,
    /// Most reads in flight.
    pub in_flight: u32,
    /// Reads a second, timed from when they were due; `None` for a closed loop.
    pub rate: Option<f64>,
}

/// A file to be read, as long as it was when it was opened.
#[derive(Debug)]
pub struct ReadFile {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl ReadFile {
    /// Opens a file or a device, by itself or through a link, for reading past the page cache.
    pub fn open(path: &Path) -> Result<Self, BenchError> {
        ReadFile::open_with(path, libc::O_DIRECT)
    }

    fn open_with(path: &Path, flags: i32) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Open { path: path.to_owned(), source };
        let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        // Unlike the metadata, this knows how long a device is.
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let least = u64::from(Pattern::Sequential.block_bytes());
        if bytes < least {
            let sentence = format!(
                "{} has {bytes} bytes, and reads of 1 MiB need one of them at least: name a ledger's shard file",
                path.display()
            );
            return Err(BenchError::Usage(sentence));
        }
        Ok(ReadFile { file, path: path.to_owned(), bytes })
    }
}

/// What trials of one kind gave.
#[derive(Debug, Clone)]
pub struct ReadMeasured {
    pub trial: ReadTrial,
    elapsed: Duration,
    unsent: u64,
    latencies_ns: Histogram<u64>,
}

impl ReadMeasured {
    /// Counts the reads of `other` as if both had been one trial.
    pub fn merge(&mut self, other: ReadMeasured) {
        assert_eq!(self.trial, other.trial, "rounds of different trials");
        self.elapsed += other.elapsed;
        self.unsent += other.unsent;
        self.latencies_ns.add(other.latencies_ns).expect("the histogram grows with its values");
    }

    /// As a line for people and programs.
    pub fn row(&self) -> ReadFloorRow {
        let (reads, block_bytes) = (self.latencies_ns.len(), self.trial.pattern.block_bytes());
        ReadFloorRow {
            system: "floor",
            reads_of: self.trial.pattern,
            block_bytes,
            in_flight: self.trial.in_flight,
            rate: self.trial.rate,
            reads_per_second: per_second(reads, self.elapsed),
            bytes_per_second: per_second(reads * u64::from(block_bytes), self.elapsed),
            latencies: Latencies::of(&self.latencies_ns),
            reads,
            unsent: self.unsent,
            seconds: rounded(self.elapsed.as_secs_f64()),
        }
    }

    /// To be kept.
    pub fn record(&self) -> FloorRecord {
        let row = self.row();
        FloorRecord {
            name: format!("{} reads of {} KiB", row.reads_of.name(), row.block_bytes / 1024),
            in_flight: row.in_flight,
            rate: row.rate,
            per_second: row.reads_per_second,
            p50_us: row.latencies.p50_us,
            p90_us: row.latencies.p90_us,
            p99_us: row.latencies.p99_us,
            p999_us: row.latencies.p999_us,
            max_us: row.latencies.max_us,
            curve: curve(row.reads, |share| self.latencies_ns.value_at_quantile(share)),
        }
    }
}

/// One line of the floor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReadFloorRow {
    pub system: &'static str,
    pub reads_of: Pattern,
    pub block_bytes: u32,
    pub in_flight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    pub reads_per_second: f64,
    pub bytes_per_second: f64,
    #[serde(flatten)]
    pub latencies: Latencies,
    pub reads: u64,
    /// Reads that were due and not begun, because as many were in flight as may be.
    pub unsent: u64,
    pub seconds: f64,
}

/// The rows as a table.
pub fn table(rows: &[ReadFloorRow]) -> Table {
    let mut header = vec!["reads", "KiB", "in flight", "rate", "reads/s", "MB/s"];
    header.extend(Latencies::HEADER);
    let mut table = number_table(&header);
    for row in rows {
        let mut cells = vec![
            row.reads_of.name().to_owned(),
            (row.block_bytes / 1024).to_string(),
            row.in_flight.to_string(),
            rate_cell(row.rate),
            thousands(row.reads_per_second),
            thousands(row.bytes_per_second / 1e6),
        ];
        cells.extend(row.latencies.cells());
        table.add_row(cells);
    }
    table
}

/// Runs one trial for about `time`.
pub fn measure(
    file: &ReadFile,
    trial: ReadTrial,
    time: Duration,
    random: &mut Random,
) -> Result<ReadMeasured, BenchError> {
    Flight::new(file, trial)?.run(time, random)
}

/// Where reads go, one after the other.
#[derive(Debug)]
struct Offsets {
    pattern: Pattern,
    blocks: u64,
    next: u64,
}

impl Offsets {
    fn new(pattern: Pattern, file_bytes: u64, random: &mut Random) -> Self {
        let blocks = file_bytes / u64::from(pattern.block_bytes());
        Offsets { pattern, blocks, next: random.below(blocks) }
    }

    fn next(&mut self, random: &mut Random) -> u64 {
        let number = self.next;
        self.next = match self.pattern {
            Pattern::Random => random.below(self.blocks),
            Pattern::Sequential => (number + 1) % self.blocks,
        };
        number * u64::from(self.pattern.block_bytes())
    }
}

/// One place for a read in flight.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// When the read was pushed, or was due.
    since: Instant,
    offset: u64,
    busy: bool,
}

/// A trial under way.
struct Flight<'a> {
    ring: IoUring,
    file: &'a ReadFile,
    trial: ReadTrial,
    slots: Vec<Slot>,
    /// One per slot. Freed in `drop` once the kernel has let go of them all, and else never.
    buffers: ManuallyDrop<Vec<AlignedBuffer>>,
    /// What the ring's timer is set to, of which there is one at a time.
    timespec: types::Timespec,
    timer_is_set: bool,
}

impl<'a> Flight<'a> {
    fn new(file: &'a ReadFile, trial: ReadTrial) -> Result<Self, BenchError> {
        // One more for the timer.
        let entries = (trial.in_flight + 1).next_power_of_two();
        let ring =
            IoUring::new(entries).map_err(|source| BenchError::System { operation: "set up an io_uring", source })?;
        let slot = Slot { since: Instant::now(), offset: 0, busy: false };
        let block_bytes = trial.pattern.block_bytes() as usize;
        let buffers = (0..trial.in_flight).map(|_| AlignedBuffer::zeroed(block_bytes)).collect();
        Ok(Flight {
            ring,
            file,
            trial,
            slots: vec![slot; trial.in_flight as usize],
            buffers: ManuallyDrop::new(buffers),
            timespec: types::Timespec::new(),
            timer_is_set: false,
        })
    }

    fn run(mut self, time: Duration, random: &mut Random) -> Result<ReadMeasured, BenchError> {
        let mut offsets = Offsets::new(self.trial.pattern, self.file.bytes, random);
        let mut latencies_ns = empty_histogram();
        let begun = Instant::now();
        let mut pace = self.trial.rate.map(|rate| Pace::new(rate, begun));
        let (mut completed, mut counted_from, mut last) = (0, begun, begun);
        let mut is_over = false;
        loop {
            let now = Instant::now();
            if !is_over {
                let warm_up = pace.is_none() && completed < WARM_UP_READS;
                is_over = !warm_up && now - counted_from >= time;
                match &mut pace {
                    // What was due by the end is still read.
                    Some(pace) => self.fill(now.min(last_before(begun + time)), Some(pace), &mut offsets, random),
                    None if !is_over => self.fill(now, None, &mut offsets, random),
                    None => {}
                }
            }
            if is_over && self.slots.iter().all(|slot| !slot.busy) {
                break;
            }
            self.wait()?;
            last = Instant::now();
            while let Some(since) = self.reap()? {
                completed += 1;
                // The warm-up ends with its last completion, so what was pushed before then is not counted.
                if pace.is_none() && completed == WARM_UP_READS {
                    counted_from = last;
                } else if pace.is_some() || completed > WARM_UP_READS {
                    let latency_ns = (last - since).as_nanos() as u64;
                    latencies_ns.record(latency_ns).expect("the histogram grows with its values");
                }
            }
        }
        let unsent = pace.map_or(0, |pace| pace.untaken_before(begun + time));
        // An open loop has its rate by the clock; its last reads may end later, as a daemon's do.
        let elapsed = if self.trial.rate.is_some() { time } else { last - counted_from };
        Ok(ReadMeasured { trial: self.trial, elapsed, unsent, latencies_ns })
    }

    /// Puts a read into every free slot, at a rate only as many as are due; and sets the timer to when the next one is.
    fn fill(&mut self, now: Instant, mut pace: Option<&mut Pace>, offsets: &mut Offsets, random: &mut Random) {
        for number in 0..self.slots.len() {
            if self.slots[number].busy {
                continue;
            }
            let since = match &mut pace {
                None => now,
                Some(pace) => match pace.take(now) {
                    Some(due) => due,
                    None => break,
                },
            };
            self.push_read(number, since, offsets.next(random));
        }
        if let Some(pace) = pace
            && pace.next_due() > now
            && !self.timer_is_set
        {
            self.push_timer(pace.next_due() - now);
        }
    }

    fn push_read(&mut self, number: usize, since: Instant, offset: u64) {
        let buffer = self.buffers[number].bytes_mut().as_mut_ptr();
        let read = opcode::Read::new(types::Fd(self.file.file.as_raw_fd()), buffer, self.trial.pattern.block_bytes())
            .offset(offset)
            .build()
            .user_data(number as u64);
        // SAFETY: the entry names the descriptor of `file`, which this flight borrows, and the buffer of a free slot, which is
        // neither touched nor freed until the slot's completion has come (`drop` waits for it).
        unsafe { self.ring.submission().push(&read) }.expect("the ring has an entry for every slot and the timer");
        self.slots[number] = Slot { since, offset, busy: true };
    }

    fn push_timer(&mut self, rest: Duration) {
        self.timespec = types::Timespec::from(rest);
        let timer = opcode::Timeout::new(&self.timespec).build().user_data(TIMER);
        // SAFETY: the kernel reads the time as the entry is submitted, which `wait` does before this flight is moved, and
        // before the next timer is set.
        unsafe { self.ring.submission().push(&timer) }.expect("the ring has an entry for every slot and the timer");
        self.timer_is_set = true;
    }

    /// Submits what was pushed and waits for at least one completion.
    fn wait(&mut self) -> Result<(), BenchError> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BenchError::System { operation: "wait for reads", source }),
            }
        }
    }

    /// Takes completions up to one of a read and says since when that was out; `None` when there is none for now.
    fn reap(&mut self) -> Result<Option<Instant>, BenchError> {
        loop {
            // The queue is bound to a name of its own, so that its borrow ends before the slot is looked at.
            let next = self.ring.completion().next();
            let Some(completion) = next else { return Ok(None) };
            if completion.user_data() == TIMER {
                self.timer_is_set = false;
                continue;
            }
            let slot = &mut self.slots[completion.user_data() as usize];
            slot.busy = false;
            check(completion.result(), self.trial.pattern.block_bytes()).map_err(|source| BenchError::Read {
                path: self.file.path.clone(),
                offset: slot.offset,
                source,
            })?;
            return Ok(Some(slot.since));
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        while self.slots.iter().any(|slot| slot.busy) {
            if self.wait().is_err() {
                // The kernel may still write to the buffers, so they stay where they are.
                return;
            }
            for completion in self.ring.completion().filter(|completion| completion.user_data() != TIMER) {
                self.slots[completion.user_data() as usize].busy = false;
            }
        }
        // SAFETY: no read is outstanding, so the kernel holds no reference; `drop` runs once and nothing uses the field
        // afterwards.
        unsafe { ManuallyDrop::drop(&mut self.buffers) }
    }
}

/// Whether a completion's result is what was asked for.
fn check(result: i32, block_bytes: u32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    if result as u32 != block_bytes {
        let sentence = format!("{result} of {block_bytes} bytes came: does the file shrink?");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, sentence));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_engine::device::ring::{RingAccess, access};

    /// Through the page cache, so that it runs on every file system.
    fn file_of(directory: &Path, bytes: u64) -> Result<ReadFile, BenchError> {
        let path = directory.join("shard");
        File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file");
        ReadFile::open_with(&path, 0)
    }

    #[test]
    fn every_trial_counts_its_reads() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let file = file_of(directory.path(), (3 << 20) + 5000).expect("it is long enough");
        let mut random = Random::new(1);
        let time = Duration::from_millis(40);
        let mut rows = Vec::new();
        for pattern in [Pattern::Random, Pattern::Sequential] {
            for (in_flight, rate) in [(1, None), (4, None), (4, Some(1000.0))] {
                let trial = ReadTrial { pattern, in_flight, rate };
                let mut measured = match measure(&file, trial, time, &mut random) {
                    Ok(measured) => measured,
                    Err(error) => {
                        let access = access().expect("the circumstances are readable");
                        assert_ne!(access, RingAccess::Allowed, "{trial:?}: {error}");
                        return;
                    }
                };
                let row = measured.row();
                assert!(row.reads > 0 && row.reads_per_second > 0.0, "{row:?}");
                assert!(row.latencies.p50_us <= row.latencies.p99_us, "{row:?}");
                if rate.is_some() {
                    assert_eq!(row.reads + row.unsent, 40, "{row:?}");
                }
                measured.merge(measured.clone());
                assert_eq!(measured.row().reads, 2 * row.reads);
                rows.push(row);
            }
        }
        let json = serde_json::to_value(&rows[0]).expect("it serialises");
        assert_eq!((json["reads_of"].as_str(), json.get("rate")), (Some("random"), None));
        assert!(table(&rows).to_string().contains("sequential"));
    }

    #[test]
    fn reads_stay_within_the_file() {
        let mut random = Random::new(1);
        let mut offsets = Offsets::new(Pattern::Sequential, (3 << 20) + 5000, &mut random);
        let first = offsets.next(&mut random);
        let rest: Vec<u64> = (0..3).map(|_| offsets.next(&mut random)).collect();
        assert_eq!(rest, [1, 2, 3].map(|step| (first + (step << 20)) % (3 << 20)));
        let mut offsets = Offsets::new(Pattern::Random, 3 * 4096 + 5, &mut random);
        let mut seen: Vec<u64> = (0..100).map(|_| offsets.next(&mut random)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 4096, 8192]);
    }

    #[test]
    fn a_file_that_is_short_or_not_there_is_refused() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let error = file_of(directory.path(), 4096).expect_err("it is short").to_string();
        assert!(error.contains("4096 bytes") && error.contains("shard file"), "{error}");
        let error = ReadFile::open(&directory.path().join("none")).expect_err("it is not there").to_string();
        assert!(error.starts_with("cannot open") && error.contains("none"), "{error}");
    }

    #[test]
    fn reads_that_fail_or_fall_short_are_errors() {
        check(4096, 4096).expect("all of it");
        assert!(check(512, 4096).expect_err("short").to_string().contains("512 of 4096"));
        assert_eq!(check(-libc::EIO, 4096).expect_err("failed").raw_os_error(), Some(libc::EIO));
    }
}
