//! The socket layer over real sockets: an executor of its own, an acceptor of its own, and blocking clients.

use super::{
    connection::{CloseReason, Connection, Door, FrameHandler, Peer, Verdict},
    echo::{Echo, append_frame},
    limits::Limits,
    listener::{Acceptor, BindError, Listener, PATH_BYTES_MAX, Routes, SocketPaths, bind_all},
    readiness::Readiness,
    sockets::{SocketCounters, Sockets},
};
use crate::{
    inbox::Inbox,
    stall_guard::{GuardTimes, Pulse, StallGuard},
};
use glommio::{LocalExecutorBuilder, Placement};
use std::{
    cell::RefCell,
    fs,
    io::{self, BufRead, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a test's executor tells at its end.
struct Outcome {
    counters: SocketCounters,
    reasons: Vec<CloseReason>,
    peers: Vec<(Peer, Door)>,
}

/// A daemon that has only its sockets: one executor, one acceptor, one handler.
struct Server {
    dir: TempDir,
    acceptor: Option<Acceptor>,
    guard: Option<StallGuard>,
    outcome: Mutex<mpsc::Receiver<Outcome>>,
    /// The most that connections had buffered at any end of a read.
    buffered_peak: Arc<AtomicUsize>,
}

/// Passes everything to a handler and writes down what a test wants to see.
struct Recorder<H> {
    inner: H,
    sockets: Rc<Sockets>,
    buffered_peak: Arc<AtomicUsize>,
    reasons: RefCell<Vec<CloseReason>>,
    peers: RefCell<Vec<(Peer, Door)>>,
}

impl<H: FrameHandler> FrameHandler for Recorder<H> {
    fn frame(&self, conn: &Rc<Connection>, frame: &[u8]) -> Verdict {
        self.inner.frame(conn, frame)
    }

    fn end_of_read(&self, conn: &Rc<Connection>) {
        self.buffered_peak.fetch_max(self.sockets.buffered_bytes(), Ordering::Relaxed);
        self.inner.end_of_read(conn);
    }

    fn bad_length(&self, conn: &Rc<Connection>, length: u32) {
        self.inner.bad_length(conn, length);
    }

    fn closed(&self, conn: &Rc<Connection>, reason: &CloseReason) {
        self.reasons.borrow_mut().push(*reason);
        self.peers.borrow_mut().push((conn.peer(), conn.door()));
        self.inner.closed(conn, reason);
    }
}

impl Server {
    fn echo(limits: Limits) -> Self {
        Self::start(limits, |_| Echo)
    }

    fn start<H: FrameHandler>(limits: Limits, handler: impl FnOnce(&Rc<Sockets>) -> H + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pulse = Pulse::new();
        let inbox = Inbox::new(limits.accept_inbox_max, Arc::clone(&pulse));
        let listeners = bind_all(&SocketPaths::beside(&dir.path().join("claimd.sock"), 2)).unwrap();
        let routes = Routes { inboxes: vec![inbox.clone()], executor_of_shard: vec![0, 0] };
        let acceptor = Acceptor::start(listeners, routes, &limits, frame(b"busy")).unwrap();
        let guard = StallGuard::start(vec![Arc::clone(&pulse)], GuardTimes::default()).unwrap();
        let buffered_peak = Arc::new(AtomicUsize::new(0));
        let (tell, outcome) = mpsc::channel();
        let peak = Arc::clone(&buffered_peak);
        thread::spawn(move || {
            let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20).make().unwrap();
            executor.run(async move {
                let heartbeat = glommio::spawn_local(Arc::clone(&pulse).heartbeat());
                let sockets =
                    Sockets::new(limits, Readiness::new().unwrap(), Rc::default(), (Arc::clone(&pulse), Rc::default()));
                let recorder = Rc::new(Recorder {
                    inner: handler(&sockets),
                    sockets: Rc::clone(&sockets),
                    buffered_peak: peak,
                    reasons: RefCell::default(),
                    peers: RefCell::default(),
                });
                let draining = Rc::clone(&sockets);
                let end_of_inbox = inbox.clone();
                // A test ends by closing the inbox; connections that are open then are closed, not waited for.
                glommio::spawn_local(async move {
                    while !end_of_inbox.is_closed() {
                        glommio::timer::sleep(Duration::from_millis(2)).await;
                    }
                    draining.drain_all();
                })
                .detach();
                Rc::clone(&sockets).run(inbox, Rc::clone(&recorder)).await;
                assert_eq!(sockets.buffered_bytes(), 0, "all buffers are given back");
                assert_eq!(sockets.large_frame_bytes(), 0, "the budget is given back");
                heartbeat.cancel().await;
                let outcome = Outcome {
                    counters: sockets.counters(),
                    reasons: recorder.reasons.borrow().clone(),
                    peers: recorder.peers.borrow().clone(),
                };
                tell.send(outcome).unwrap();
            });
        });
        Self { dir, acceptor: Some(acceptor), guard: Some(guard), outcome: Mutex::new(outcome), buffered_peak }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("claimd.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Waits until this many connections are open.
    fn await_connections(&self, count: usize) {
        let acceptor = self.acceptor.as_ref().unwrap();
        let start = Instant::now();
        while acceptor.open_connections() != count {
            assert!(start.elapsed() < PATIENCE, "{} connections, want {count}", acceptor.open_connections());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops accepting, drains, and returns what the executor has seen.
    fn finish(mut self) -> Outcome {
        self.acceptor.take().unwrap().stop();
        let outcome =
            self.outcome.lock().unwrap().recv_timeout(PATIENCE).expect("the executor ends when it is drained");
        self.guard.take().unwrap().stop();
        assert!(!self.path().exists(), "a stopped acceptor leaves no socket behind");
        outcome
    }
}

fn frame(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_frame(&mut out, content);
    out
}

fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix)?;
    let mut content = vec![0; u32::from_le_bytes(prefix) as usize];
    stream.read_exact(&mut content)?;
    Ok(content)
}

/// Reads to the end; a reset is an end, too.
fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server did not end the connection: {error}"),
    }
    bytes
}

/// Content that no other length or seed has, so that mixed-up bytes are seen.
fn content(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ bytes as u64;
    let mut out = vec![0; bytes];
    for chunk in out.chunks_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    out
}

fn small_limits() -> Limits {
    Limits { frame_timeout_ms: 200, write_timeout_ms: 200, ..Limits::default() }
}

/// Sends `requests` from one thread and compares the echoes in another, so that neither side has to buffer for both.
fn echo_all(stream: &UnixStream, requests: &[Vec<u8>]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sender = stream;
            for chunk in requests.chunks(64) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|request| frame(request)).collect();
                sender.write_all(&bytes).unwrap();
            }
        });
        let mut receiver = stream.try_clone().unwrap();
        for (at, request) in requests.iter().enumerate() {
            let echoed = read_frame(&mut receiver).unwrap();
            assert!(echoed == *request, "frame {at} of {} bytes came back as {} bytes", request.len(), echoed.len());
        }
    });
}

#[test]
fn many_small_frames_come_back_in_order() {
    let server = Server::echo(Limits::default());
    let requests: Vec<_> = (0..20_000).map(|at| content(1 + (at % 300) as usize, at)).collect();
    echo_all(&server.connect(), &requests);
    let outcome = server.finish();
    assert_eq!(outcome.counters.frames, 20_000);
    assert!(outcome.counters.reads < 20_000, "{} reads: frames are taken in batches", outcome.counters.reads);
}

#[test]
fn a_stream_may_be_cut_at_any_byte() {
    let server = Server::echo(Limits::default());
    let requests = [content(1, 1), content(7, 2), content(64, 3)];
    let bytes: Vec<u8> = requests.iter().flat_map(|request| frame(request)).collect();
    let mut stream = server.connect();
    for cut in 1..bytes.len() {
        stream.write_all(&bytes[..cut]).unwrap();
        // Long enough that the server usually sees the cut; if it does not, the test only shows less.
        thread::sleep(Duration::from_micros(300));
        stream.write_all(&bytes[cut..]).unwrap();
        for request in &requests {
            assert_eq!(read_frame(&mut stream).unwrap(), *request, "cut at {cut}");
        }
    }
    server.finish();
}

#[test]
fn frames_of_every_size_class_pass() {
    let server = Server::echo(Limits::default());
    let limits = Limits::default();
    let sizes = [
        1,
        limits.small_frame_bytes_max - 1,
        limits.small_frame_bytes_max,
        limits.small_frame_bytes_max + 1,
        limits.read_bytes_max - 4,
        limits.read_bytes_max,
        limits.read_bytes_max + 1,
        1 << 20,
        limits.frame_bytes_max as usize,
    ];
    let requests: Vec<_> = sizes.iter().flat_map(|&bytes| [content(bytes, 1), content(3, 2)]).collect();
    echo_all(&server.connect(), &requests);
    server.finish();
}

#[test]
fn a_forbidden_length_gets_one_error_frame_and_the_end() {
    for length in [0, (4 << 20) + 1, u32::MAX] {
        let server = Server::echo(Limits::default());
        let mut stream = server.connect();
        stream.write_all(&frame(b"before")).unwrap();
        stream.write_all(&length.to_le_bytes()).unwrap();
        stream.write_all(b"whatever follows").unwrap();
        let mut expected = frame(b"before");
        expected.extend(frame(b"bad length"));
        assert_eq!(read_to_end(&mut stream), expected, "length {length}");
        assert_eq!(server.finish().reasons, [CloseReason::BadLength(length)]);
    }
}

#[test]
fn a_silent_half_frame_ends_the_connection_and_so_does_silence_from_the_beginning_and_an_idle_one_lives() {
    for half in [vec![9], vec![9, 0, 0, 0], vec![9, 0, 0, 0, 1, 2], frame(&content(1 << 20, 1))[..70_000].to_vec()] {
        let server = Server::echo(small_limits());
        let mut idle = server.connect();
        idle.write_all(&frame(b"here")).unwrap();
        assert_eq!(read_frame(&mut idle).unwrap(), b"here");
        let mut mute = server.connect();
        let mut silent = server.connect();
        let start = Instant::now();
        silent.write_all(&half).unwrap();
        assert_eq!(read_to_end(&mut silent), b"");
        assert!(start.elapsed() >= Duration::from_millis(190), "closed after {:?}", start.elapsed());
        assert_eq!(read_to_end(&mut mute), b"");
        idle.write_all(&frame(b"still here")).unwrap();
        assert_eq!(read_frame(&mut idle).unwrap(), b"still here");
        drop(idle);
        let outcome = server.finish();
        assert!(outcome.reasons.contains(&CloseReason::FrameTimeout), "{:?}", outcome.reasons);
        assert_eq!(outcome.counters.timeouts, 2);
    }
}

#[test]
fn a_client_that_never_reads_is_bounded_then_closed_while_others_are_served() {
    let limits = Limits { write_timeout_ms: 500, ..Limits::default() };
    let server = Server::echo(limits.clone());
    let greedy = server.connect();
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            let request = frame(&content(1_000, 1));
            while (&greedy).write_all(&request).is_ok() {
                sent += request.len();
            }
            sent
        });
        let polite = server.connect();
        let requests: Vec<_> = (0..2_000).map(|at| content(200, at)).collect();
        echo_all(&polite, &requests);
        sender.join().unwrap()
    });
    let peak = server.buffered_peak.load(Ordering::Relaxed);
    assert!(sent < 4 << 20, "the server took {sent} bytes from a client that never reads");
    let most = limits.output_bytes_max + 2 * limits.read_bytes_max;
    assert!(peak < most, "{peak} bytes were buffered, at most {most} may be");
    assert!(server.finish().reasons.contains(&CloseReason::WriteTimeout));
}

#[test]
fn too_much_output_in_all_stops_those_that_do_not_read() {
    let limits = Limits { buffered_bytes_max: 2 << 20, write_timeout_ms: 1_000, ..Limits::default() };
    let server = Server::echo(limits);
    let greedy: Vec<_> = (0..16).map(|_| server.connect()).collect();
    thread::scope(|scope| {
        for stream in &greedy {
            scope.spawn(move || {
                let request = frame(&content(4_000, 1));
                let mut stream = stream;
                while stream.write_all(&request).is_ok() {}
            });
        }
        thread::sleep(Duration::from_millis(200));
        echo_all(&server.connect(), &(0..2_000).map(|at| content(200, at)).collect::<Vec<_>>());
    });
    let peak = server.buffered_peak.load(Ordering::Relaxed);
    // Each of the sixteen may be in the middle of one read when the bound is reached, and holds what that read brought.
    assert!(peak < (2 << 20) + 16 * (512 << 10), "{peak} bytes were buffered");
    server.finish();
}

#[test]
fn large_frames_wait_for_their_budget_and_all_pass() {
    let limits = Limits { large_frame_bytes: 5 << 20, ..Limits::default() };
    let server = Server::echo(limits);
    thread::scope(|scope| {
        for client in 0..6 {
            let server = &server;
            scope.spawn(move || {
                let requests: Vec<_> = (0..4).map(|at| content((3 << 20) + at, client)).collect();
                echo_all(&server.connect(), &requests);
            });
        }
    });
    assert_eq!(server.finish().counters.frames, 24);
}

#[test]
fn a_connection_that_waits_for_budget_goes_on_when_the_holder_times_out() {
    let limits = Limits { large_frame_bytes: 5 << 20, frame_timeout_ms: 300, ..Limits::default() };
    let server = Server::echo(limits);
    let mut holder = server.connect();
    holder.write_all(&frame(&content(3 << 20, 1))[..100_000]).unwrap();
    thread::sleep(Duration::from_millis(50));
    echo_all(&server.connect(), &[content(3 << 20, 2), content(10, 3)]);
    assert_eq!(read_to_end(&mut holder), b"");
    assert!(server.finish().reasons.contains(&CloseReason::FrameTimeout));
}

#[test]
fn a_thousand_connections_are_served_and_one_more_is_told_that_it_is_busy() {
    let server = Server::echo(Limits { connections_max: 1_000, ..Limits::default() });
    let mut streams: Vec<_> = (0..1_000).map(|_| server.connect()).collect();
    server.await_connections(1_000);
    let mut refused = server.connect();
    assert_eq!(read_to_end(&mut refused), frame(b"busy"));
    for (at, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&frame(&content(100, at as u64))).unwrap();
    }
    for (at, stream) in streams.iter_mut().enumerate() {
        assert_eq!(read_frame(stream).unwrap(), content(100, at as u64));
    }
    // A place that is given up can be taken again.
    drop(streams.pop());
    server.await_connections(999);
    let mut next = server.connect();
    next.write_all(&frame(b"next")).unwrap();
    assert_eq!(read_frame(&mut next).unwrap(), b"next");
    drop((streams, next));
    server.await_connections(0);
    assert_eq!(server.finish().counters.connections, 1_001);
}

#[test]
fn peers_are_who_the_kernel_says_and_doors_are_told_apart() {
    let server = Server::echo(Limits::default());
    for name in ["claimd.sock", "shard-0.sock", "shard-1.sock"] {
        let mut stream = UnixStream::connect(server.dir.path().join(name)).unwrap();
        stream.write_all(&frame(b"hello")).unwrap();
        assert_eq!(read_frame(&mut stream).unwrap(), b"hello");
        drop(stream);
        server.await_connections(0);
    }
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let peer = |connection| Peer { connection, uid, gid, pid: std::process::id() };
    let doors = [(peer(1), Door::Main), (peer(2), Door::Shard(0)), (peer(3), Door::Shard(1))];
    assert_eq!(server.finish().peers, doors);
}

#[test]
fn abrupt_ends_leave_nothing_behind() {
    let server = Server::echo(Limits::default());
    for at in 0..200_usize {
        let mut stream = server.connect();
        let bytes = frame(&content(5_000, at as u64));
        let _ = stream.write_all(&bytes[..(at * 25).min(bytes.len())]);
        if at % 3 == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Read);
        }
    }
    server.await_connections(0);
    echo_all(&server.connect(), &[content(10, 1)]);
    server.finish();
}

#[test]
fn a_half_closed_peer_still_gets_its_replies() {
    let server = Server::echo(Limits::default());
    let mut stream = server.connect();
    let requests: Vec<_> = (0..100).map(|at| content(500, at)).collect();
    let bytes: Vec<u8> = requests.iter().flat_map(|request| frame(request)).collect();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stream), bytes);
    assert_eq!(server.finish().reasons, [CloseReason::PeerClosed]);
}

/// The end may come with the last bytes, behind them, or long after.
#[test]
fn an_end_right_behind_a_request_is_seen() {
    let server = Server::echo(Limits::default());
    for round in 0..300 {
        let mut stream = server.connect();
        let request = content(200, round);
        stream.write_all(&frame(&request)).unwrap();
        assert_eq!(read_frame(&mut stream).unwrap(), request);
        stream.write_all(&frame(&request)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut stream), frame(&request));
    }
    let reasons = server.finish().reasons;
    assert!(reasons.len() == 300 && reasons.iter().all(|reason| *reason == CloseReason::PeerClosed), "{reasons:?}");
}

/// Requests that wait for their answers.
type Held = Rc<RefCell<Vec<(Rc<Connection>, Vec<u8>)>>>;

/// Answers later, from another task, as the daemon does when a batch is durable.
struct Later {
    held: Held,
    outstanding_peak: Arc<Mutex<u32>>,
}

impl Later {
    fn new(delay: Duration, outstanding_peak: Arc<Mutex<u32>>) -> Self {
        let held: Held = Rc::default();
        let replies = Rc::clone(&held);
        glommio::spawn_local(async move {
            loop {
                glommio::timer::sleep(delay).await;
                for (conn, request) in replies.take() {
                    conn.send(|out| append_frame(out, &request));
                    conn.finish();
                }
            }
        })
        .detach();
        Self { held, outstanding_peak }
    }
}

impl FrameHandler for Later {
    fn frame(&self, conn: &Rc<Connection>, frame: &[u8]) -> Verdict {
        conn.begin();
        let mut peak = self.outstanding_peak.lock().unwrap();
        *peak = conn.outstanding().max(*peak);
        self.held.borrow_mut().push((Rc::clone(conn), frame.to_vec()));
        if frame == b"last" { Verdict::CloseAfterReply } else { Verdict::Continue }
    }

    fn end_of_read(&self, _conn: &Rc<Connection>) {}

    fn bad_length(&self, _conn: &Rc<Connection>, _length: u32) {}

    fn closed(&self, _conn: &Rc<Connection>, _reason: &CloseReason) {}
}

#[test]
fn reading_pauses_at_the_bound_of_open_requests_and_resumes_by_itself() {
    let peak = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&peak);
    let limits = Limits { outstanding_max: 50, ..Limits::default() };
    let server = Server::start(limits, move |_| Later::new(Duration::from_millis(1), seen));
    let requests: Vec<_> = (0..5_000).map(|at| content(40, at)).collect();
    echo_all(&server.connect(), &requests);
    assert_eq!(*peak.lock().unwrap(), 50);
    server.finish();
}

#[test]
fn a_drain_waits_for_open_requests() {
    let peak = Arc::new(Mutex::new(0));
    let server = Server::start(Limits::default(), move |_| Later::new(Duration::from_millis(50), peak));
    let mut stream = server.connect();
    stream.write_all(&frame(b"one")).unwrap();
    thread::sleep(Duration::from_millis(10));
    let outcome = server.finish();
    assert_eq!(read_to_end(&mut stream), frame(b"one"));
    assert_eq!(outcome.reasons, [CloseReason::Drained]);
}

#[test]
fn close_after_reply_sends_what_is_owed_and_reads_no_more() {
    let peak = Arc::new(Mutex::new(0));
    let server = Server::start(Limits::default(), move |_| Later::new(Duration::from_millis(5), peak));
    let mut stream = server.connect();
    let bytes: Vec<u8> = [&b"one"[..], b"last", b"never"].iter().flat_map(|request| frame(request)).collect();
    stream.write_all(&bytes).unwrap();
    let expected: Vec<u8> = [&b"one"[..], b"last"].iter().flat_map(|request| frame(request)).collect();
    assert_eq!(read_to_end(&mut stream), expected);
    assert_eq!(server.finish().reasons, [CloseReason::Drained]);
}

/// Set in the process in which [`serve_with_few_descriptors`] serves.
const FEW_DESCRIPTORS: &str = "CLAIMD_TEST_FEW_DESCRIPTORS";

/// The other half of the test below, which starts it in a process of its own: a server with few descriptors, until its
/// standard input ends.
#[test]
fn serve_with_few_descriptors() {
    if std::env::var_os(FEW_DESCRIPTORS).is_none() {
        return;
    }
    let server = Server::echo(Limits::default());
    // The executor is up, and has all the descriptors that it needs, when it serves.
    echo_all(&server.connect(), &[content(10, 1)]);
    server.await_connections(0);
    let in_use = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, in_use + 20, in_use + 20).unwrap();
    println!("socket {}", server.path().display());
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let cpu = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let cpu_ms = (cpu.user_time() + cpu.system_time()).tv_sec() * 1_000;
    assert!(cpu_ms < 1_000, "the acceptor spun: {cpu_ms} ms of CPU time");
    server.finish();
}

#[test]
fn connections_beyond_the_descriptors_are_ended_and_the_others_are_served() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "socket::tests::serve_with_few_descriptors", "--nocapture"])
        .env(FEW_DESCRIPTORS, "1")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Kept to the end: the child must not find its output closed.
    let mut lines = io::BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let path = lines.find_map(|line| line.split_once("socket ").map(|(_, path)| path.to_owned())).unwrap();
    let connect = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let is_served = |stream: &mut UnixStream| {
        // A connection that was turned away may be gone before the request is written.
        let _ = stream.write_all(&frame(b"hello"));
        read_frame(stream).is_ok_and(|reply| reply == b"hello")
    };
    let mut streams: Vec<_> = (0..100).map(|_| connect()).collect();
    let served = streams.iter_mut().map(is_served).filter(|served| *served).count();
    // About twenty: the count of descriptors in use includes some that are just being closed.
    assert!((10..=30).contains(&served), "{served} of 100 connections were served with 20 descriptors");
    drop(streams);
    let start = Instant::now();
    while !is_served(&mut connect()) {
        assert!(start.elapsed() < PATIENCE, "nobody is served after the shortage");
        thread::sleep(Duration::from_millis(5));
    }
    drop(child.stdin.take());
    assert!(lines.any(|line| line.contains("1 passed")));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("claimd.sock");
    // A listener of the standard library leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(Door::Main, &path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(Listener::bind(Door::Main, &path), Err(BindError::InUse(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no early name stays behind");
    drop(listener);
    assert!(!path.exists());
    fs::write(&path, b"somebody's notes").unwrap();
    assert!(matches!(Listener::bind(Door::Main, &path), Err(BindError::NotASocket(_))));
}

#[test]
fn a_path_that_does_not_fit_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let room = PATH_BYTES_MAX - dir.path().as_os_str().len() - 1;
    Listener::bind(Door::Main, &dir.path().join("s".repeat(room))).unwrap();
    let error = Listener::bind(Door::Main, &dir.path().join("s".repeat(room + 1))).unwrap_err();
    assert!(error.to_string().contains("has 108 bytes, and Unix sockets allow 107"), "{error}");
}
