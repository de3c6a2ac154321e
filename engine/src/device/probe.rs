//! How long a write takes to become durable, by the way in which durability is asked for.
//!
//! A trial keeps a number of writes in flight through a ring of its own, one after the other through a scratch file as a
//! log would, and times each from its submission to the completion that makes it durable. The calling thread waits
//! meanwhile. Nothing is warmed up by the caller: the first writes of a trial are left out.

#![allow(clippy::disallowed_methods, reason = "measuring time is what this module is for")]

use super::DeviceError;
use super::scratch::{AlignedBuffer, Extents, Scratch};
use io_uring::{IoUring, opcode, squeue, types};
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Writes at the start of a trial that are not counted: they fill the device's queues and the kernel's caches.
const WARM_UP_OPS: u64 = 16;

/// Most writes that a trial may keep in flight.
pub const IN_FLIGHT_MAX: u32 = 256;

/// How durability is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlushMode {
    /// A flag on each write (`RWF_DSYNC`).
    WriteDsync,
    /// A flag on the file (`O_DSYNC`), as a ledger is opened.
    FileDsync,
    /// A plain write with an fdatasync linked behind it (`IOSQE_IO_LINK`).
    LinkedFdatasync,
}

impl FlushMode {
    /// All of them, in the order in which they are reported.
    pub const ALL: [FlushMode; 3] = [FlushMode::WriteDsync, FlushMode::FileDsync, FlushMode::LinkedFdatasync];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            FlushMode::WriteDsync => "RWF_DSYNC",
            FlushMode::FileDsync => "O_DSYNC",
            FlushMode::LinkedFdatasync => "write+fdatasync",
        }
    }

    /// Ring entries that one durable write takes.
    fn entries(self) -> u32 {
        match self {
            FlushMode::WriteDsync | FlushMode::FileDsync => 1,
            FlushMode::LinkedFdatasync => 2,
        }
    }
}

impl fmt::Display for FlushMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// How durability is asked for.
    pub mode: FlushMode,
    /// Size of each write; a multiple of 4 KiB.
    pub block_bytes: u32,
    /// Writes kept in flight, at most [`IN_FLIGHT_MAX`]; where they are due, those that may be.
    pub in_flight: u32,
    /// A write is due each time this has passed, and timed from then on; `None`: there is another one for each that ends.
    pub every: Option<Duration>,
}

/// When a trial ends, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Writes that are counted.
    pub ops_max: u64,
    /// Time in which they are counted.
    pub time_max: Duration,
}

/// What a trial gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What was measured.
    pub trial: Trial,
    /// From the end of the warm-up to the last completion.
    pub elapsed: Duration,
    /// One per counted write, in rising order.
    latencies_ns: Vec<u64>,
}

impl Measured {
    fn new(trial: Trial, elapsed: Duration, mut latencies_ns: Vec<u64>) -> Self {
        latencies_ns.sort_unstable();
        Measured { trial, elapsed, latencies_ns }
    }

    /// Counted writes.
    pub fn ops(&self) -> u64 {
        self.latencies_ns.len() as u64
    }

    /// Durable writes per second; 0 when nothing was counted.
    pub fn ops_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.ops() as f64 / seconds } else { 0.0 }
    }

    /// The latency that a share `quantile` (0 to 1) of the writes did not exceed; 0 when nothing was counted.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        assert!((0.0..=1.0).contains(&quantile), "{quantile} is not a share");
        let rank = (quantile * self.latencies_ns.len() as f64).ceil() as usize;
        match self.latencies_ns.get(rank.max(1) - 1) {
            Some(latency) => *latency,
            None => 0,
        }
    }

    /// The mean latency; 0 when nothing was counted.
    pub fn mean_ns(&self) -> u64 {
        self.latencies_ns.iter().sum::<u64>().checked_div(self.ops()).unwrap_or(0)
    }

    /// Median latency in microseconds.
    pub fn p50_us(&self) -> f64 {
        self.quantile_ns(0.5) as f64 / 1e3
    }

    /// 99th percentile in microseconds.
    pub fn p99_us(&self) -> f64 {
        self.quantile_ns(0.99) as f64 / 1e3
    }

    /// The slowest write in microseconds.
    pub fn max_us(&self) -> f64 {
        self.quantile_ns(1.0) as f64 / 1e3
    }

    /// Counts the writes of `other` as if both had been one trial; for trials measured in alternating rounds.
    pub fn merge(&mut self, other: Measured) {
        assert_eq!(self.trial, other.trial, "rounds of different trials");
        self.elapsed += other.elapsed;
        self.latencies_ns.extend(other.latencies_ns);
        self.latencies_ns.sort_unstable();
    }
}

/// Runs one trial on `scratch`. Over written extents the writes go round the file; over unwritten ones the trial ends with
/// the file, since a block can be written for the first time only once.
pub fn measure(scratch: &Scratch, trial: Trial, bounds: Bounds) -> Result<Measured, DeviceError> {
    assert!((1..=IN_FLIGHT_MAX).contains(&trial.in_flight), "{} writes in flight", trial.in_flight);
    assert!(trial.block_bytes.is_multiple_of(4096) && trial.block_bytes > 0, "{} bytes a write", trial.block_bytes);
    assert!(u64::from(trial.block_bytes) <= scratch.bytes(), "a block is longer than the scratch file");
    let goes_round = scratch.extents() == Extents::Written;
    assert!(trial.every.is_none() || goes_round, "writes that are due need a file that does not end");
    Flight::new(scratch, trial)?.run(bounds)
}

/// One place for a write in flight.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// When the write was submitted, or was due.
    since: Instant,
    offset: u64,
    /// Ring entries of this write whose completions are still to come; 0: the slot is free.
    entries_out: u32,
}

/// A trial under way.
struct Flight<'a> {
    /// Declared before the buffers only for reading; the order of destruction is settled in `drop`.
    ring: IoUring,
    scratch: &'a Scratch,
    trial: Trial,
    slots: Vec<Slot>,
    /// One buffer per slot. Freed in `drop` once the kernel has let go of them all, and else never.
    buffers: ManuallyDrop<Vec<AlignedBuffer>>,
    next_offset: u64,
    due: Option<Due>,
}

/// When writes are due, reckoned from the start, so that nothing adds up.
#[derive(Debug, Clone, Copy)]
struct Due {
    begun: Instant,
    every: Duration,
    taken: u64,
}

impl Due {
    fn next(&self) -> Instant {
        self.begun + self.every.mul_f64(self.taken as f64)
    }

    fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next();
        (due <= now).then(|| {
            self.taken += 1;
            due
        })
    }
}

impl<'a> Flight<'a> {
    fn new(scratch: &'a Scratch, trial: Trial) -> Result<Self, DeviceError> {
        let entries = (trial.in_flight * trial.mode.entries()).next_power_of_two();
        let ring = IoUring::new(entries).map_err(|source| DeviceError::Ring { operation: "set up", source })?;
        let now = Instant::now();
        let buffers = (0..trial.in_flight).map(|number| pattern(trial.block_bytes as usize, number)).collect();
        Ok(Flight {
            ring,
            scratch,
            trial,
            slots: vec![Slot { since: now, offset: 0, entries_out: 0 }; trial.in_flight as usize],
            buffers: ManuallyDrop::new(buffers),
            next_offset: 0,
            due: trial.every.map(|every| Due { begun: now, every, taken: 0 }),
        })
    }

    fn run(mut self, bounds: Bounds) -> Result<Measured, DeviceError> {
        let mut latencies_ns = Vec::new();
        let mut completed: u64 = 0;
        let mut began = Instant::now();
        let mut last = began;
        loop {
            let counted = completed.saturating_sub(WARM_UP_OPS);
            // What is due by the end is still written, however long it takes.
            let moment = self.due.map_or(last, |due| due.next());
            let in_time = completed < WARM_UP_OPS || moment.saturating_duration_since(began) < bounds.time_max;
            let goes_on = counted < bounds.ops_max && in_time;
            if goes_on {
                self.fill();
            }
            let is_free = |slot: &Slot| slot.entries_out == 0;
            if self.slots.iter().all(is_free) && (!goes_on || self.due.is_none()) {
                break;
            }
            let until = self.due.filter(|_| goes_on && self.slots.iter().any(is_free)).map(|due| due.next());
            self.wait(until)?;
            last = Instant::now();
            while let Some(since) = self.reap()? {
                completed += 1;
                // The warm-up ends with its last completion, so what was submitted before then is not counted.
                if completed == WARM_UP_OPS {
                    began = last;
                } else if completed > WARM_UP_OPS {
                    latencies_ns.push((last - since).as_nanos() as u64);
                }
            }
        }
        Ok(Measured::new(self.trial, last - began, latencies_ns))
    }

    /// Puts a write into every free slot, as long as the file has room and writes are due.
    fn fill(&mut self) {
        for number in 0..self.slots.len() {
            if self.slots[number].entries_out > 0 {
                continue;
            }
            let now = Instant::now();
            let since = match &mut self.due {
                None => now,
                Some(due) => match due.take(now) {
                    Some(since) => since,
                    None => return,
                },
            };
            let Some(offset) = self.take_offset() else { return };
            self.push(number, offset, since);
        }
    }

    /// Where the next write goes; `None` when an unwritten file is used up.
    fn take_offset(&mut self) -> Option<u64> {
        let block_bytes = u64::from(self.trial.block_bytes);
        if self.next_offset + block_bytes > self.scratch.bytes() {
            if self.scratch.extents() == Extents::Unwritten {
                return None;
            }
            self.next_offset = 0;
        }
        let offset = self.next_offset;
        self.next_offset += block_bytes;
        Some(offset)
    }

    fn push(&mut self, number: usize, offset: u64, since: Instant) {
        let entries = self.entries(number, offset);
        let used = self.trial.mode.entries() as usize;
        // SAFETY: each entry names the descriptor of `scratch`, which this flight borrows, and the buffer of a free slot,
        // which is neither touched nor freed until the slot's completions have come (`drop` waits for them).
        unsafe { self.ring.submission().push_multiple(&entries[..used]) }
            .expect("the ring has an entry for everything that may be in flight");
        self.slots[number] = Slot { since, offset, entries_out: used as u32 };
    }

    /// The ring entries of one durable write; the second is used only by the mode that needs it.
    fn entries(&self, number: usize, offset: u64) -> [squeue::Entry; 2] {
        let (file, rw_flags, link) = match self.trial.mode {
            FlushMode::WriteDsync => (self.scratch.plain(), libc::RWF_DSYNC, squeue::Flags::empty()),
            FlushMode::FileDsync => (self.scratch.dsync(), 0, squeue::Flags::empty()),
            FlushMode::LinkedFdatasync => (self.scratch.plain(), 0, squeue::Flags::IO_LINK),
        };
        let target = types::Fd(file.as_raw_fd());
        let start = self.buffers[number].bytes().as_ptr();
        let write = opcode::Write::new(target, start, self.trial.block_bytes)
            .offset(offset)
            .rw_flags(rw_flags)
            .build()
            .flags(link)
            .user_data(user_data(number, Part::Write));
        let flush = opcode::Fsync::new(target)
            .flags(types::FsyncFlags::DATASYNC)
            .build()
            .user_data(user_data(number, Part::Flush));
        [write, flush]
    }

    /// Submits what was pushed and waits for at least one completion, or until this moment.
    fn wait(&mut self, until: Option<Instant>) -> Result<(), DeviceError> {
        loop {
            let waited = match until {
                None => self.ring.submit_and_wait(1),
                Some(until) => {
                    let rest = types::Timespec::from(until.saturating_duration_since(Instant::now()));
                    self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&rest))
                }
            };
            match waited {
                Ok(_) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(DeviceError::Ring { operation: "wait", source }),
            }
        }
    }

    /// Takes completions up to one that makes a write durable and says since when that is timed; `None` when there is no
    /// further completion for now.
    fn reap(&mut self) -> Result<Option<Instant>, DeviceError> {
        loop {
            // The queue is bound to a name of its own, so that its borrow ends before the slot is looked at.
            let next = self.ring.completion().next();
            let Some(completion) = next else { return Ok(None) };
            let (number, part) = of_user_data(completion.user_data());
            let slot = &mut self.slots[number];
            assert!(slot.entries_out > 0, "slot {number} completed more than was submitted");
            slot.entries_out -= 1;
            part.check(completion.result(), slot.offset, self.trial.block_bytes)?;
            if slot.entries_out == 0 {
                return Ok(Some(slot.since));
            }
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        while self.slots.iter().any(|slot| slot.entries_out > 0) {
            if self.wait(None).is_err() {
                // The kernel may still read the buffers, so they stay where they are.
                return;
            }
            for completion in self.ring.completion() {
                let (number, _) = of_user_data(completion.user_data());
                self.slots[number].entries_out -= 1;
            }
        }
        // SAFETY: no completion is outstanding, so the kernel holds no reference; `drop` runs once and nothing uses the
        // field afterwards.
        unsafe { ManuallyDrop::drop(&mut self.buffers) }
    }
}

/// Which half of a durable write a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Write,
    Flush,
}

impl Part {
    /// Whether a completion's result is what was asked for.
    fn check(self, result: i32, offset: u64, block_bytes: u32) -> Result<(), DeviceError> {
        let operation = match self {
            Part::Write => "write",
            Part::Flush => "fdatasync",
        };
        if result < 0 {
            return Err(DeviceError::Operation { operation, offset, source: io::Error::from_raw_os_error(-result) });
        }
        let written_bytes = result as u32;
        if self == Part::Write && written_bytes != block_bytes {
            return Err(DeviceError::ShortWrite { offset, written_bytes, asked_bytes: block_bytes });
        }
        Ok(())
    }
}

fn user_data(number: usize, part: Part) -> u64 {
    (number as u64) << 1 | u64::from(part == Part::Flush)
}

fn of_user_data(user_data: u64) -> (usize, Part) {
    ((user_data >> 1) as usize, if user_data & 1 == 1 { Part::Flush } else { Part::Write })
}

/// A buffer of bytes that neither repeat nor compress, so that no device can take a short cut.
fn pattern(bytes: usize, seed: u32) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(bytes);
    // Marsaglia's xorshift64; any state but zero will do.
    let mut state = 0x9E37_79B9_7F4A_7C15 ^ u64::from(seed);
    for word in buffer.bytes_mut().chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ring::{RingAccess, access};
    use crate::device::scratch::Caching;
    use std::os::unix::fs::FileExt;

    const BOUNDS: Bounds = Bounds { ops_max: 40, time_max: Duration::from_secs(20) };

    fn scratch(extents: Extents) -> (tempfile::TempDir, Scratch) {
        let directory = tempfile::tempdir().expect("a scratch directory");
        // Through the page cache, so that the tests run on every file system.
        let scratch = Scratch::create(directory.path(), 1 << 20, extents, Caching::PageCache).expect("space");
        (directory, scratch)
    }

    fn check(mode: FlushMode, block_bytes: u32, in_flight: u32, extents: Extents) {
        let (_directory, scratch) = scratch(extents);
        let trial = Trial { mode, block_bytes, in_flight, every: None };
        let measured = match measure(&scratch, trial, BOUNDS) {
            Ok(measured) => measured,
            Err(error) => {
                let access = access().expect("the circumstances are readable");
                assert_ne!(access, RingAccess::Allowed, "{trial:?}: {error}");
                return;
            }
        };
        assert_eq!(measured.trial, trial);
        let blocks = (1 << 20) / u64::from(block_bytes);
        let expected = match extents {
            // What was in flight when the bound was reached is completed and counted.
            Extents::Written => BOUNDS.ops_max..BOUNDS.ops_max + u64::from(in_flight),
            Extents::Unwritten => blocks.saturating_sub(WARM_UP_OPS).min(BOUNDS.ops_max)..blocks,
        };
        assert!(expected.contains(&measured.ops()), "{trial:?}: {} of {expected:?}", measured.ops());
        assert!(measured.quantile_ns(0.5) <= measured.quantile_ns(0.99));
        assert!(measured.quantile_ns(0.99) <= measured.quantile_ns(1.0));
        assert!(measured.ops() == 0 || measured.ops_per_second() > 0.0);
        let mut written = vec![0; block_bytes as usize];
        scratch.plain().read_exact_at(&mut written, 0).expect("readable");
        assert!((0..in_flight).any(|seed| pattern(written.len(), seed).bytes() == written));
    }

    #[test]
    fn every_mode_writes_what_it_counts() {
        for mode in FlushMode::ALL {
            for (block_bytes, in_flight) in [(4096, 1), (4096, 4), (65536, 1), (65536, 4)] {
                check(mode, block_bytes, in_flight, Extents::Written);
                check(mode, block_bytes, in_flight, Extents::Unwritten);
            }
        }
    }

    #[test]
    fn writes_that_are_due_are_all_written_and_timed_from_then() {
        let (_directory, scratch) = scratch(Extents::Written);
        let every = Some(Duration::from_millis(2));
        let trial = Trial { mode: FlushMode::WriteDsync, block_bytes: 4096, in_flight: 2, every };
        let bounds = Bounds { ops_max: 1_000, time_max: Duration::from_millis(200) };
        let Ok(measured) = measure(&scratch, trial, bounds) else { return };
        // As many as are due in the time, however slow the machine is; the warm-up may end between two of them.
        assert!((90..=101).contains(&measured.ops()) || measured.quantile_ns(1.0) > 2_000_000, "{}", measured.ops());
        let mut due = Due { begun: Instant::now(), every: Duration::from_millis(250), taken: 0 };
        let later = due.begun + Duration::from_secs(1);
        assert_eq!(std::iter::from_fn(|| due.take(later)).count(), 5);
        assert_eq!(due.take(later), None);
    }

    #[test]
    fn a_write_that_fails_or_falls_short_is_an_error() {
        let failed = Part::Write.check(-libc::EIO, 4096, 4096).expect_err("it failed");
        assert!(failed.to_string().starts_with("a probe's write at byte 4096 failed"), "{failed}");
        let failed = Part::Flush.check(-libc::EIO, 0, 4096).expect_err("it failed");
        assert!(failed.to_string().contains("fdatasync"), "{failed}");
        let short = Part::Write.check(512, 8192, 4096).expect_err("it is short");
        assert_eq!(short.to_string(), "a probe's write at byte 8192 wrote 512 of 4096 bytes");
        Part::Flush.check(0, 0, 4096).expect("a flush returns 0");
    }

    #[test]
    fn a_failing_device_ends_the_trial_and_frees_nothing_early() {
        let (_directory, scratch) = scratch(Extents::Written);
        // A file opened for reading only refuses every write, through the ring as elsewhere.
        let trial = Trial { mode: FlushMode::LinkedFdatasync, block_bytes: 4096, in_flight: 4, every: None };
        let readable = std::fs::File::open("/proc/self/exe").expect("the test's own binary");
        let Ok(mut flight) = Flight::new(&scratch, trial) else { return };
        let entry = opcode::Write::new(types::Fd(readable.as_raw_fd()), flight.buffers[0].bytes().as_ptr(), 4096);
        // SAFETY: the descriptor and the buffer outlive the flight, which `run` ends before this function returns.
        unsafe { flight.ring.submission().push(&entry.build().user_data(user_data(0, Part::Write))) }.expect("room");
        flight.slots[0].entries_out = 1;
        let error = flight.run(BOUNDS).expect_err("the descriptor is not writable");
        assert!(matches!(error, DeviceError::Operation { operation: "write", .. }), "{error}");
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_samples() {
        let trial = Trial { mode: FlushMode::FileDsync, block_bytes: 4096, in_flight: 1, every: None };
        let mut measured = Measured::new(trial, Duration::from_secs(2), (1..=100).rev().collect());
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|q| measured.quantile_ns(q)), [1, 50, 99, 100]);
        assert_eq!((measured.ops_per_second(), measured.mean_ns()), (50.0, 50));
        measured.merge(Measured::new(trial, Duration::from_secs(2), vec![1000; 100]));
        assert_eq!([0.5, 1.0].map(|q| measured.quantile_ns(q)), [100, 1000]);
        assert_eq!(Measured::new(trial, Duration::ZERO, Vec::new()).quantile_ns(0.5), 0);
    }
}
