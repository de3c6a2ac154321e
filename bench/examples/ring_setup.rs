//! Shows what a ring's setup flags, and files and buffers registered with it, are worth to the log: durable writes of 4 KiB over
//! written blocks, 1 and 4 in flight, through one kind of ring after the other. See `kernel-notes/ring-setup.md`.
//!
//! `cargo run --release -p claim-bench --example ring_setup -- DIR [SECONDS]`

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use claim_engine::device::scratch::{AlignedBuffer, Caching, Extents, Scratch};
use comfy_table::{CellAlignment, Table, presets};
use io_uring::{Builder, IoUring, opcode, squeue, types};
use nix::sys::resource::{UsageWho, getrusage};
use std::error::Error;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Every kind of ring is measured this often, in turn with the others, so that a drift of the machine meets all alike.
const ROUNDS: u32 = 20;

/// Length of the scratch file: a segment's.
const FILE_BYTES: u64 = 64 << 20;

/// Length of each write: the smallest batch.
const WRITE_BYTES: u32 = 4096;

/// Depths of the log: one batch alone, and as many as it keeps in flight.
const IN_FLIGHT: [usize; 2] = [1, 4];

/// More than are ever in flight: the kernel's polling thread frees a submission's entry after its completion.
const RING_ENTRIES: u32 = 16;

/// Milliseconds for which the kernel's polling thread looks for submissions before it sleeps.
const SQPOLL_IDLE_MS: u32 = 10;

/// A kind of ring.
struct Kind {
    name: &'static str,
    /// Sets the flags.
    setup: fn(&mut Builder),
    /// The file is registered, and named by its index.
    file: bool,
    /// The buffers are registered.
    buffers: bool,
}

const fn kind(name: &'static str, setup: fn(&mut Builder)) -> Kind {
    Kind { name, setup, file: false, buffers: false }
}

fn plain(_: &mut Builder) {}

fn cooperative(builder: &mut Builder) {
    builder.setup_coop_taskrun();
}

fn single(builder: &mut Builder) {
    builder.setup_single_issuer();
}

fn deferred(builder: &mut Builder) {
    builder.setup_single_issuer().setup_defer_taskrun();
}

fn polled_submissions(builder: &mut Builder) {
    builder.setup_sqpoll(SQPOLL_IDLE_MS);
}

fn polled_completions(builder: &mut Builder) {
    builder.setup_iopoll();
}

/// The first is what the others are compared with, and what the runtime uses.
const KINDS: [Kind; 9] = [
    kind("no flags", plain),
    kind("COOP_TASKRUN", cooperative),
    kind("SINGLE_ISSUER", single),
    kind("… and DEFER_TASKRUN", deferred),
    Kind { file: true, ..kind("registered file", plain) },
    Kind { buffers: true, ..kind("registered buffers", plain) },
    Kind { file: true, buffers: true, ..kind("deferred, both registered", deferred) },
    kind("SQPOLL", polled_submissions),
    kind("IOPOLL", polled_completions),
];

/// What one round gave, or several together.
#[derive(Default)]
struct Sample {
    latencies_ns: Vec<u64>,
    elapsed: Duration,
    /// Of the whole process, the kernel's threads for its rings included.
    cpu: Duration,
}

impl Sample {
    fn rate(&self) -> f64 {
        self.latencies_ns.len() as f64 / self.elapsed.as_secs_f64()
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies_ns.len() as f64
    }

    /// The latency that a share of the writes did not exceed; 0 when there were none.
    fn quantile_us(&self, quantile: f64) -> f64 {
        let mut latencies_ns = self.latencies_ns.clone();
        latencies_ns.sort_unstable();
        let last = latencies_ns.len().saturating_sub(1);
        latencies_ns.get((last as f64 * quantile) as usize).map_or(0.0, |latency| *latency as f64 / 1e3)
    }

    fn add(&mut self, other: Sample) {
        self.latencies_ns.extend(other.latencies_ns);
        self.elapsed += other.elapsed;
        self.cpu += other.cpu;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let directory = Path::new(arguments.get(1).map_or(".", String::as_str));
    let seconds: f64 = arguments.get(2).map_or(Ok(1.0), |text| text.parse())?;
    let time = Duration::from_secs_f64(seconds) / ROUNDS;
    let scratch = Scratch::create(directory, FILE_BYTES, Extents::Written, Caching::Direct)?;

    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    let header = ["ring", "in flight", "writes/s", "p50 µs", "to no flags", "p99 µs", "CPU µs a write", "to no flags"];
    table.set_header(header);
    for in_flight in IN_FLIGHT {
        let mut sums: Vec<io::Result<Sample>> = KINDS.iter().map(|_| Ok(Sample::default())).collect();
        // Of each round, since rounds differ more than rings do.
        let mut ratios: Vec<(Vec<f64>, Vec<f64>)> = KINDS.iter().map(|_| Default::default()).collect();
        for first in 0..ROUNDS as usize {
            let mut round: Vec<Option<Sample>> = KINDS.iter().map(|_| None).collect();
            // Each begins a round in turn, since what runs before leaves something behind.
            for number in (0..KINDS.len()).map(|number| (first + number) % KINDS.len()) {
                if sums[number].is_ok() {
                    match measure(&scratch, &KINDS[number], in_flight, time) {
                        Ok(sample) => round[number] = Some(sample),
                        Err(error) => sums[number] = Err(error),
                    }
                }
            }
            let Some(plain) = round[0].as_ref().map(|plain| (plain.quantile_us(0.5), plain.cpu_us())) else { break };
            for (number, sample) in round.into_iter().enumerate() {
                if let (Some(sample), Ok(sum)) = (sample, &mut sums[number]) {
                    ratios[number].0.push(sample.quantile_us(0.5) / plain.0);
                    ratios[number].1.push(sample.cpu_us() / plain.1);
                    sum.add(sample);
                }
            }
        }
        for ((kind, sum), (p50, cpu)) in KINDS.iter().zip(&sums).zip(&mut ratios) {
            table.add_row(row(kind, in_flight, sum, median(p50), median(cpu)));
        }
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    // Without the plain ring there is nothing to compare with, and nothing that a ledger could use.
    measure(&scratch, &KINDS[0], 1, Duration::from_millis(1))?;
    Ok(())
}

fn row(kind: &Kind, in_flight: usize, sample: &io::Result<Sample>, p50: f64, cpu: f64) -> Vec<String> {
    let mut cells = vec![kind.name.to_owned(), in_flight.to_string()];
    match sample {
        Ok(sample) => {
            let [half, most] = [0.5, 0.99].map(|quantile| format!("{:.0}", sample.quantile_us(quantile)));
            cells.extend([format!("{:.0}", sample.rate()), half, format!("{p50:.2}"), most]);
            cells.extend([format!("{:.1}", sample.cpu_us()), format!("{cpu:.2}")]);
        }
        Err(error) => cells.push(format!("not here: {error}")),
    }
    cells
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Writes round the file for `time` through a ring of this kind.
fn measure(scratch: &Scratch, kind: &Kind, in_flight: usize, time: Duration) -> io::Result<Sample> {
    let mut flight = Flight::new(scratch, kind, in_flight)?;
    let cpu_before = cpu_time()?;
    let began = Instant::now();
    let mut sample = Sample::default();
    (0..in_flight).for_each(|slot| flight.push(slot));
    let mut failure = None;
    while flight.out > 0 {
        flight.wait()?;
        let now = Instant::now();
        while let Some((slot, result)) = flight.completed() {
            match result {
                written if written == WRITE_BYTES as i32 => {
                    sample.latencies_ns.push((now - flight.submitted[slot]).as_nanos() as u64);
                }
                error if error < 0 => failure = Some(io::Error::from_raw_os_error(-error)),
                short => failure = Some(io::Error::other(format!("a write of {short} bytes"))),
            }
            if failure.is_none() && now - began < time {
                flight.push(slot);
            }
        }
    }
    sample.elapsed = began.elapsed();
    flight.land();
    sample.cpu = cpu_time()? - cpu_before;
    failure.map_or(Ok(sample), Err)
}

/// Writes under way through one ring.
struct Flight<'a> {
    ring: IoUring,
    kind: &'a Kind,
    scratch: &'a Scratch,
    /// One for each slot. Freed only when no write is out: the kernel reads them until then, whatever goes wrong here.
    buffers: ManuallyDrop<Vec<AlignedBuffer>>,
    submitted: Vec<Instant>,
    out: usize,
    offset: u64,
}

impl<'a> Flight<'a> {
    fn new(scratch: &'a Scratch, kind: &'a Kind, in_flight: usize) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        (kind.setup)(&mut builder);
        let ring = builder.build(RING_ENTRIES)?;
        let mut buffers: Vec<_> = (0..in_flight).map(|_| AlignedBuffer::zeroed(WRITE_BYTES as usize)).collect();
        buffers.iter_mut().for_each(|buffer| buffer.bytes_mut().fill(0xA5));
        if kind.file {
            ring.submitter().register_files(&[scratch.dsync().as_raw_fd()])?;
        }
        if kind.buffers {
            let areas: Vec<libc::iovec> = buffers.iter_mut().map(area).collect();
            // SAFETY: the areas are those of `buffers`, which are freed in `land` alone, when no write is out.
            unsafe { ring.submitter().register_buffers(&areas) }?;
        }
        let submitted = vec![Instant::now(); in_flight];
        Ok(Flight { ring, kind, scratch, buffers: ManuallyDrop::new(buffers), submitted, out: 0, offset: 0 })
    }

    fn push(&mut self, slot: usize) {
        let entry = self.entry(slot).user_data(slot as u64);
        // SAFETY: the descriptor lives as long as `scratch`, and the slot's buffer until `land`, when no write is out.
        unsafe { self.ring.submission().push(&entry) }.expect("the ring has an entry for every slot");
        self.submitted[slot] = Instant::now();
        self.offset = (self.offset + u64::from(WRITE_BYTES)) % FILE_BYTES;
        self.out += 1;
    }

    fn entry(&self, slot: usize) -> squeue::Entry {
        let start = self.buffers[slot].bytes().as_ptr();
        let named = types::Fd(self.scratch.dsync().as_raw_fd());
        let registered = types::Fixed(0);
        let index = slot as u16;
        match (self.kind.file, self.kind.buffers) {
            (false, false) => opcode::Write::new(named, start, WRITE_BYTES).offset(self.offset).build(),
            (true, false) => opcode::Write::new(registered, start, WRITE_BYTES).offset(self.offset).build(),
            (false, true) => opcode::WriteFixed::new(named, start, WRITE_BYTES, index).offset(self.offset).build(),
            (true, true) => opcode::WriteFixed::new(registered, start, WRITE_BYTES, index).offset(self.offset).build(),
        }
    }

    /// Submits what was pushed and waits for a completion.
    fn wait(&self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next completion's slot and result.
    fn completed(&mut self) -> Option<(usize, i32)> {
        let completion = self.ring.completion().next()?;
        self.out -= 1;
        Some((completion.user_data() as usize, completion.result()))
    }

    /// Ends the ring, and the kernel's thread of it, and then frees the buffers.
    fn land(self) {
        assert_eq!(self.out, 0, "writes are still out");
        let Flight { ring, buffers, .. } = self;
        drop(ring);
        drop(ManuallyDrop::into_inner(buffers));
    }
}

fn area(buffer: &mut AlignedBuffer) -> libc::iovec {
    libc::iovec { iov_base: buffer.bytes_mut().as_mut_ptr().cast(), iov_len: WRITE_BYTES as usize }
}

/// User and system time of this process so far.
fn cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}
