//! Hostile input at the real binary's socket: one error frame or a disconnect each, bounded memory, others served.

mod harness;

use claim_client::ScanRange;
use claim_protocol as wire;
use claim_protocol::{ErrorCode, Operation, Request, reply::ReplyResult};
use harness::{Daemon, format, item, options, scratch};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
/// What the daemon may hold after all of it: the batch pool of a shard (16 MiB, untouched until used), the sockets'
/// budgets, and what a few thousand rows take.
const RESIDENT_BYTES_MAX: u64 = 400 << 20;

fn open(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream
}

fn frame(request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    wire::encode_request(&mut wire::Builder::new(), request, &mut out).expect("it fits");
    out
}

fn hello() -> Vec<u8> {
    frame(&Request::new(1, Operation::Hello { min_version: 1, max_version: 1, client: "hostile" }))
}

/// Everything that comes until the daemon closes.
fn until_closed(mut stream: UnixStream) -> Vec<wire::Reply> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the daemon neither answers nor closes: {error}"),
    }
    let (mut replies, mut rest) = (Vec::new(), &bytes[..]);
    while let Ok(Some((content, consumed))) = wire::frame::split_frame(rest) {
        replies.push(wire::decode_reply(content).expect("the daemon's replies verify"));
        rest = &rest[consumed..];
    }
    assert!(rest.is_empty(), "half a frame is left");
    replies
}

fn expect_one_error_and_the_end(stream: UnixStream) {
    let replies = until_closed(stream);
    match &replies[..] {
        [] => {}
        [only] => match &only.result {
            ReplyResult::Error(error) => assert_eq!(error.code, ErrorCode::BadRequest, "{error}"),
            other => panic!("answered {other:?}"),
        },
        more => panic!("answered {} times", more.len()),
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Writes what the daemon takes; it may close in the middle.
fn pour(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

#[test]
fn what_does_not_verify_gets_one_error_and_the_end() {
    let seed: u64 = std::env::var("CLAIMD_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()) | 1);
    println!("CLAIMD_TEST_SEED={seed}");
    let mut random = Random(seed);
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    daemon.client().onboard("customer", "", &options()).wait().unwrap();
    daemon.stop();
    // A changed byte can make another valid request of a claim, such as a freeze: the sender has no role for those.
    let uid = nix::unistd::geteuid();
    let file = scratch.path().join("claimd.toml");
    let role = format!("[[role]]\nrole = \"client\"\ncorpora = [\"customer\"]\nuids = [{uid}]\n");
    std::fs::write(&file, role).expect("our directory");
    let daemon = Daemon::start_more(scratch.path(), &["--config", file.to_str().expect("the path is text")]);
    let client = daemon.client();
    let claim = frame(&Request {
        idempotency_key: Some(claim_client::new_key(None)),
        ..Request::new(
            2,
            Operation::Claim { corpus: "customer", item: item("hostile"), unless_registered_within_ms: 0 },
        )
    });

    // Random bytes, before and after the hello.
    for round in 0..200 {
        let mut stream = open(&daemon.socket());
        let length = 1 + random.next() as usize % 3_000;
        let garbage = random.bytes(length);
        // As a frame of that length, or as they are.
        let mut bytes = if round % 2 == 0 { (length as u32).to_le_bytes().to_vec() } else { Vec::new() };
        bytes.extend(garbage);
        pour(&mut stream, &bytes);
        expect_one_error_and_the_end(stream);
    }
    // Lengths that can't be.
    for length in [0u32, (4 << 20) + 1, u32::MAX] {
        let mut stream = open(&daemon.socket());
        pour(&mut stream, &length.to_le_bytes());
        expect_one_error_and_the_end(stream);
    }
    // A frame cut short at every length.
    for cut in (0..claim.len()).step_by(7) {
        let mut stream = open(&daemon.socket());
        stream.write_all(&hello()).unwrap();
        pour(&mut stream, &claim[..cut]);
        assert!(until_closed(stream).len() <= 1, "a cut frame is not answered");
    }
    // A request before the hello.
    let mut stream = open(&daemon.socket());
    pour(&mut stream, &claim);
    expect_one_error_and_the_end(stream);
    // Valid frames with one byte changed, wrong unions among them: at most one answer to each, and never a panic.
    for _ in 0..2_000 {
        let mut stream = open(&daemon.socket());
        let mut broken = claim.clone();
        let at = 4 + random.next() as usize % (broken.len() - 4);
        broken[at] = random.next() as u8;
        stream.write_all(&hello()).unwrap();
        pour(&mut stream, &broken);
        assert!(until_closed(stream).len() <= 2);
    }
    client.claim("customer", &item("after all of it"), &options()).wait().expect("others are served");
    println!("resident after garbage: {} MiB", daemon.resident_bytes() >> 20);
    assert!(daemon.resident_bytes() < RESIDENT_BYTES_MAX);
    daemon.stop();
}

#[test]
fn those_who_never_read_and_a_thousand_connections_harm_nobody() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = daemon.client();
    client.onboard("customer", "", &options()).wait().unwrap();
    let mut large = item("large");
    let metadata = vec![1; 60_000];
    large.metadata = &metadata;
    let id = client.claim("customer", &large, &options()).wait().unwrap().event_id;

    // Ten clients ask for 60 KB rows for ever and read nothing.
    let lookup = frame(&Request::new(2, Operation::Lookup { event_id: id }));
    let mut deaf: Vec<_> = (0..10)
        .map(|_| {
            let mut stream = open(&daemon.socket());
            stream.write_all(&hello()).unwrap();
            stream.set_nonblocking(true).unwrap();
            for _ in 0..20_000 {
                if stream.write_all(&lookup).is_err() {
                    break;
                }
            }
            stream
        })
        .collect();
    client.claim("customer", &item("beside the deaf"), &options()).wait().expect("others are served");
    // Half a large frame on many connections.
    let mut slow: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = open(&daemon.socket());
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write_all(&(4u32 << 20).to_le_bytes());
            let _ = stream.write_all(&vec![0; 3 << 20]);
            stream
        })
        .collect();
    // A thousand connections.
    let many: Vec<_> = (0..1_000).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
    let started = Instant::now();
    for n in 0..200 {
        client.claim("customer", &item(&format!("beside the many {n}")), &options()).wait().expect("others are served");
    }
    let resident = daemon.resident_bytes();
    println!(
        "10 deaf, 50 slow and {} idle connections: 200 claims took {} ms, resident {} MiB",
        many.len(),
        started.elapsed().as_millis(),
        resident >> 20
    );
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes");
    deaf.clear();
    slow.clear();
    drop(many);
    client.lookup(id, &options()).wait().expect("rows are read");
    daemon.stop();
}

#[test]
fn versions_that_do_not_meet_are_told_so() {
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    let daemon = Daemon::start(scratch.path());
    let mut stream = open(&daemon.socket());
    let request = Request::new(9, Operation::Hello { min_version: 7, max_version: 9, client: "from the future" });
    pour(&mut stream, &frame(&request));
    let replies = until_closed(stream);
    let [only] = &replies[..] else { panic!("{replies:?}") };
    let ReplyResult::Error(error) = &only.result else { panic!("{only:?}") };
    assert!(error.message.contains("version 1"), "{error}");
    assert_eq!(only.request_id, 9);
}

/// Whoever asks for rows and goes before they come leaves nothing behind for the next one who asks.
#[test]
fn rows_that_nobody_waits_for_are_told_to_nobody() {
    // Those of one corpus take a while to read.
    const ROWS: [(&str, usize); 2] = [("customer", 1_000), ("billing", 20)];
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = daemon.client();
    for (corpus, count) in ROWS {
        client.onboard(corpus, "", &options()).wait().unwrap();
        client.claim_batch(corpus, &vec![item("event"); count], &options()).wait().unwrap();
    }
    let scan = Operation::Scan { corpus: "customer", since_us: None, until_us: None, after: None, limit: 0 };
    let scans = (2..34).flat_map(|request_id| frame(&Request::new(request_id, scan.clone())));
    let asked: Vec<u8> = hello().into_iter().chain(scans).collect();
    for _ in 0..20 {
        let mut stream = open(&daemon.socket());
        let _ = stream.write_all(&asked);
        drop(stream);
        let rows = client.scan("billing", ScanRange::default(), &options()).rows();
        let corpora: Vec<String> = rows.map(|row| row.expect("a row").corpus).collect();
        assert_eq!(corpora, vec!["billing"; ROWS[1].1]);
    }
    daemon.stop();
}
