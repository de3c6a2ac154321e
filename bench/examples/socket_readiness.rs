//! Shows what it costs to learn which of many sockets have something to read: a poll in an io_uring for each of them, armed again
//! after each message, or one epoll for all of them with one poll in the ring. See `kernel-notes/socket-readiness.md`.
//!
//! `cargo run --release -p claim-bench --example socket_readiness -- [SECONDS [RECEIVING-CORE SENDING-CORE]]`

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use comfy_table::{CellAlignment, Table, presets};
use io_uring::{IoUring, opcode, types};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::Pid;
use std::error::Error;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Both ways are measured this often, in turn.
const ROUNDS: u32 = 10;
const SOCKETS: usize = 64;
/// About a claim.
const MESSAGE_BYTES: usize = 300;
/// What the receiver does with each message.
const WORK: Duration = Duration::from_micros(2);
/// Time between the last message of a burst being received and the next burst: about a durable write.
const PAUSE: Duration = Duration::from_micros(200);
/// The epoll, where the ring says an index of sockets.
const EPOLL: u64 = u64::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    PollEach,
    Epoll,
}

/// What one round gave, or several together.
#[derive(Default)]
struct Sample {
    messages: u64,
    elapsed: Duration,
    receiver_cpu: Duration,
    sender_cpu: Duration,
    interrupts: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize, or: f64| arguments.get(index).map_or(Ok(or), |text| text.parse::<f64>());
    let time = Duration::from_secs_f64(number(1, 2.0)?) / ROUNDS;
    let (receiving, sending) = (number(2, 0.0)? as usize, number(3, 1.0)? as usize);
    let mut samples = [(Way::PollEach, Sample::default()), (Way::Epoll, Sample::default())];
    for _ in 0..ROUNDS {
        for (way, sum) in &mut samples {
            let sample = measure(*way, time, receiving, sending)?;
            sum.messages += sample.messages;
            sum.elapsed += sample.elapsed;
            sum.receiver_cpu += sample.receiver_cpu;
            sum.sender_cpu += sample.sender_cpu;
            sum.interrupts += sample.interrupts;
        }
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["readiness", "messages/s", "receiver's CPU µs each", "sender's", "reschedule interrupts each"]);
    for (way, sample) in &samples {
        let each = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e6 / sample.messages as f64);
        table.add_row([
            match way {
                Way::PollEach => "a poll in the ring for each socket".to_owned(),
                Way::Epoll => "one epoll, and one poll in the ring".to_owned(),
            },
            format!("{:.0}", sample.messages as f64 / sample.elapsed.as_secs_f64()),
            each(sample.receiver_cpu),
            each(sample.sender_cpu),
            format!("{:.2}", sample.interrupts as f64 / sample.messages as f64),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{SOCKETS} sockets, {} µs of work for each message:\n{table}", WORK.as_micros());
    Ok(())
}

fn measure(way: Way, time: Duration, receiving: usize, sending: usize) -> io::Result<Sample> {
    let pairs: Vec<_> = (0..SOCKETS).map(|_| UnixStream::pair()).collect::<io::Result<_>>()?;
    let (senders, receivers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let received = AtomicU64::new(0);
    let until = Instant::now() + time;
    let interrupts_before = reschedule_interrupts()?;
    let (received_by, sent_by) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_all(&senders, &received, until, sending));
        let receiver = scope.spawn(|| receive_all(way, &receivers, &received, until, receiving));
        (receiver.join().expect("the receiver ended"), sender.join().expect("the sender ended"))
    });
    Ok(Sample {
        messages: received.load(Ordering::Relaxed),
        elapsed: time,
        receiver_cpu: received_by?,
        sender_cpu: sent_by?,
        interrupts: reschedule_interrupts()? - interrupts_before,
    })
}

/// Sends a message to each socket, as clients do whose claims were in one batch, again and again. Returns the processor time that
/// the sending took.
fn send_all(sockets: &[UnixStream], received: &AtomicU64, until: Instant, core: usize) -> io::Result<Duration> {
    pin_to(core)?;
    let message = [7; MESSAGE_BYTES];
    let mut sending = Duration::ZERO;
    for burst in 1.. {
        let began = Instant::now();
        if began >= until {
            break;
        }
        for socket in sockets {
            send(socket.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL)?;
        }
        sending += began.elapsed();
        while received.load(Ordering::Acquire) < burst * SOCKETS as u64 && Instant::now() < until {
            std::hint::spin_loop();
        }
        let next = Instant::now() + PAUSE;
        while Instant::now() < next {
            std::hint::spin_loop();
        }
    }
    Ok(sending)
}

fn receive_all(
    way: Way,
    sockets: &[UnixStream],
    received: &AtomicU64,
    until: Instant,
    core: usize,
) -> io::Result<Duration> {
    pin_to(core)?;
    let mut ring = IoUring::new(2 * SOCKETS as u32)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    match way {
        Way::PollEach => {
            for (index, socket) in sockets.iter().enumerate() {
                arm(&mut ring, socket, index as u64)?;
            }
        }
        Way::Epoll => {
            for (index, socket) in sockets.iter().enumerate() {
                epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, index as u64))?;
            }
            arm(&mut ring, &epoll.0, EPOLL)?;
        }
    }
    let mut events = [EpollEvent::empty(); SOCKETS];
    let mut ready = Vec::new();
    while Instant::now() < until {
        let wait = types::SubmitArgs::new();
        let timeout = types::Timespec::from(Duration::from_millis(1));
        match ring.submitter().submit_with_args(1, &wait.timespec(&timeout)) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
        ready.extend(ring.completion().map(|completion| completion.user_data()));
        for index in std::mem::take(&mut ready) {
            if index == EPOLL {
                let count = epoll.wait(&mut events, EpollTimeout::ZERO)?;
                events[..count].iter().try_for_each(|event| take(&sockets[event.data() as usize], received))?;
                arm(&mut ring, &epoll.0, EPOLL)?;
            } else {
                take(&sockets[index as usize], received)?;
                arm(&mut ring, &sockets[index as usize], index)?;
            }
        }
    }
    thread_cpu()
}

/// Takes what a socket has, and works on each message.
fn take(socket: &UnixStream, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = [0; 64 * MESSAGE_BYTES];
    match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(bytes) => {
            let messages = (bytes / MESSAGE_BYTES) as u32;
            let until = Instant::now() + messages * WORK;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            received.fetch_add(messages.into(), Ordering::Release);
            Ok(())
        }
        Err(nix::Error::EAGAIN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn arm(ring: &mut IoUring, of: &impl AsRawFd, named: u64) -> io::Result<()> {
    let entry = opcode::PollAdd::new(types::Fd(of.as_raw_fd()), libc::POLLIN as u32).build().user_data(named);
    // SAFETY: the entry refers to no memory, and the descriptor outlives the ring.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)
}

fn pin_to(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)
}

fn thread_cpu() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

/// Of all cores since the machine started.
fn reschedule_interrupts() -> io::Result<u64> {
    let interrupts = std::fs::read_to_string("/proc/interrupts")?;
    let line = interrupts.lines().find(|line| line.trim_start().starts_with("RES:"));
    Ok(line.map_or(0, |line| line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum()))
}
