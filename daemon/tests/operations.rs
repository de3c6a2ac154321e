//! Every operation through the real binary: what it does, what it refuses, what it says.

mod harness;

use claim_client::{
    Claimed, Client, ClientError, ErrorCode, Lifecycle, ReasonCode, RequestOptions, ScanRange, Uuid, new_key,
};
use harness::{Daemon, format, item, options, run, scratch};

fn because(reason: &str) -> RequestOptions {
    RequestOptions { rationale: reason.to_owned(), ..options() }
}

fn keyed(key: Uuid) -> RequestOptions {
    RequestOptions { idempotency_key: Some(key), ..options() }
}

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::Refused(error)) => error.code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn two_corpora(daemon: &Daemon) -> Client {
    let client = daemon.client();
    for corpus in ["customer", "internal-tools"] {
        client.onboard(corpus, "a test", &options()).wait().expect("an onboarding");
    }
    client
}

#[test]
fn a_row_is_claimed_referred_to_retracted_and_comes_back() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = two_corpora(&daemon);
    let corpora = client.corpora(&options()).wait().unwrap().value;
    let places: Vec<_> = corpora.iter().map(|c| (c.name.as_str(), c.shard_prefix, c.shard)).collect();
    assert_eq!(places, [("customer", 1, 0), ("internal-tools", 2, 1)]);

    let claimed = client.claim("customer", &item("cache-reset"), &options()).wait().unwrap().value;
    assert_eq!(claimed.claim_sequence, 1);
    let row = client.lookup(claimed.event_id, &options()).wait().unwrap().value;
    assert_eq!(
        (row.lifecycle, row.event_key.as_str(), row.owning_corpus.as_str()),
        (Lifecycle::Registered, "cache-reset", "customer")
    );
    assert_eq!(row.claim_timestamp_us, claimed.claim_timestamp_us);

    let canonical = client.reference("internal-tools", claimed.event_id, &options()).wait().unwrap().value;
    assert_eq!(canonical, claimed.event_id);
    assert_eq!(code(client.reference("customer", claimed.event_id, &options()).wait()), ErrorCode::BadTransition);

    let retract =
        |reason: &str| client.retract("customer", claimed.event_id, ReasonCode::FalseAlarm, &because(reason)).wait();
    assert_eq!(code(retract("")), ErrorCode::BadRequest);
    retract("nothing was reset").unwrap();
    assert_eq!(code(retract("again")), ErrorCode::BadTransition);
    assert_eq!(code(client.reference("internal-tools", claimed.event_id, &options()).wait()), ErrorCode::BadTransition);
    let row = client.lookup(claimed.event_id, &options()).wait().unwrap().value;
    assert_eq!(row.lifecycle, Lifecycle::Tombstoned);
    assert_eq!(row.tombstone_reason.as_deref(), Some("nothing was reset"));
    assert_eq!(row.tombstone_reason_code, Some(ReasonCode::FalseAlarm));

    client.reactivate(claimed.event_id, &because("it was reset after all")).wait().unwrap();
    let row = client.lookup(claimed.event_id, &options()).wait().unwrap().value;
    assert_eq!(
        (row.lifecycle, row.tombstoned_at_us, row.reactivated_at_us.is_some()),
        (Lifecycle::Registered, None, true)
    );
    assert_eq!(code(client.reactivate(claimed.event_id, &because("again")).wait()), ErrorCode::BadTransition);

    let history = client.history(claimed.event_id, 0, &options()).wait().unwrap().value.entries;
    let operations: Vec<_> = history.iter().map(|e| e.operation.as_str()).collect();
    assert_eq!(operations, ["claim", "reference", "tombstone", "reactivate"]);
    let us = (nix::unistd::getuid().as_raw(), std::process::id());
    assert!(history.iter().all(|e| (e.uid, e.pid) == us), "the kernel's word on who it was stands in every entry");
    daemon.stop();
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = two_corpora(&daemon);
    let unknown = claim_engine::id::EventId::pack(1, claim_engine::corpus::Prefix::new(2).unwrap(), 5).as_uuid();
    let nobodys = claim_engine::id::EventId::pack(1, claim_engine::corpus::Prefix::new(999).unwrap(), 5).as_uuid();
    assert_eq!(code(client.claim("nobody", &item("x"), &options()).wait()), ErrorCode::UnknownCorpus);
    assert_eq!(code(client.lookup(unknown, &options()).wait()), ErrorCode::NotVisible);
    assert_eq!(code(client.lookup(nobodys, &options()).wait()), ErrorCode::NotVisible);
    assert_eq!(code(client.reference("customer", unknown, &options()).wait()), ErrorCode::NotVisible);
    assert_eq!(code(client.onboard("customer", "", &options()).wait()), ErrorCode::AlreadyRegistered);
    assert_eq!(code(client.onboard("No Name", "", &options()).wait()), ErrorCode::BadRequest);
    let mut bad = item("late");
    bad.occurred_at_us = i64::MAX / 2;
    assert_eq!(code(client.claim("customer", &bad, &options()).wait()), ErrorCode::BadRequest);
}

#[test]
fn batches_are_as_good_as_their_items() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = two_corpora(&daemon);
    let keys: Vec<_> = (0..2_500).map(|i| format!("batch-{i}")).collect();
    let mut items: Vec<_> = keys.iter().map(|key| item(key)).collect();
    items[7].occurred_at_us = -1;
    let key = keyed(new_key(None));
    let claim = |items: &[_]| client.claim_batch("internal-tools", items, &key).wait().unwrap().value;
    let results = claim(&items);
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 2_499);
    assert_eq!(results[7].as_ref().unwrap_err().code, ErrorCode::BadRequest);
    // With the same key, what was claimed is answered as it was, and what was refused is looked at again.
    let id = |results: &[Result<_, _>], i: usize| results[i].as_ref().ok().map(|claimed: &Claimed| claimed.event_id);
    let again = claim(&items);
    assert!((0..2_500).all(|i| id(&again, i) == id(&results, i)));
    items[7].occurred_at_us = items[8].occurred_at_us;
    let mended = claim(&items);
    assert!((0..2_500).all(|i| id(&mended, i).is_some() && (i == 7 || id(&mended, i) == id(&results, i))));
    assert_eq!(claim(&items), mended);
    let own = client.claim("customer", &item("own"), &options()).wait().unwrap().event_id;
    let ids: Vec<_> = results.iter().flatten().map(|c| c.event_id).take(3).chain([own]).collect();
    let references = client.reference_batch("customer", &ids, &options()).wait().unwrap().value;
    assert_eq!(references.iter().map(|r| r.is_ok()).collect::<Vec<_>>(), [true, true, true, false]);
    assert_eq!(references[3].as_ref().unwrap_err().code, ErrorCode::BadTransition);

    let rows: Vec<_> = client
        .scan("internal-tools", ScanRange { page_rows: 400, ..ScanRange::default() }, &options())
        .rows()
        .collect();
    let rows: Vec<_> = rows.into_iter().map(|r| r.expect("a row")).collect();
    assert_eq!(rows.len(), 2_500);
    assert!(rows.windows(2).all(|w| w[0].event_id < w[1].event_id && w[0].claim_sequence + 1 == w[1].claim_sequence));
    let none = ScanRange { until_us: Some(0), ..ScanRange::default() };
    assert_eq!(client.scan("internal-tools", none, &options()).rows().count(), 0);
}

#[test]
fn a_batch_of_one_is_answered_as_a_batch() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = two_corpora(&daemon);
    for corpus in ["customer", "internal-tools"] {
        let mut items = [item("alone")];
        let claimed = client.claim_batch(corpus, &items, &options()).wait().unwrap().value;
        assert!(matches!(claimed[..], [Ok(claimed)] if claimed.claim_sequence == 1), "{claimed:?}");
        items[0].occurred_at_us = -1;
        let refused = client.claim_batch(corpus, &items, &options()).wait().unwrap().value;
        assert!(matches!(&refused[..], [Err(error)] if error.code == ErrorCode::BadRequest), "{refused:?}");
    }
    assert_eq!(code(client.claim_batch("nobody", &[item("x")], &options()).wait()), ErrorCode::UnknownCorpus);
}

#[test]
fn a_key_executes_once_across_a_kill() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = two_corpora(&daemon);
    let key = new_key(None);
    let first = client.claim("customer", &item("once"), &keyed(key)).wait().unwrap().value;
    assert_eq!(client.claim("customer", &item("once"), &keyed(key)).wait().unwrap().value, first);
    assert_eq!(code(client.claim("customer", &item("twice"), &keyed(key)).wait()), ErrorCode::KeyReused);
    // Half of a batch, by its own keys: item i of a batch has the key (key, i).
    let batch_key = new_key(None);
    let names: Vec<_> = (0..10).map(|i| format!("item-{i}")).collect();
    let items: Vec<_> = names.iter().map(|name| item(name)).collect();
    let half = client.claim_batch("customer", &items[..5], &keyed(batch_key)).wait().unwrap().value;
    drop(client);
    daemon.kill();

    let daemon = Daemon::start(scratch.path());
    let client = daemon.client();
    assert_eq!(client.claim("customer", &item("once"), &keyed(key)).wait().unwrap().value, first);
    assert_eq!(code(client.claim("customer", &item("twice"), &keyed(key)).wait()), ErrorCode::KeyReused);
    let whole = client.claim_batch("customer", &items, &keyed(batch_key)).wait().unwrap().value;
    assert_eq!(whole[..5], half[..], "what was durable is answered again");
    assert!(whole.iter().all(Result::is_ok), "the rest is done now");
    let rows = client.scan("customer", ScanRange::default(), &options()).rows().count();
    assert_eq!(rows, 11);
    let old = new_key(Some(1_600_000_000_000_000));
    assert_eq!(code(client.claim("customer", &item("old"), &keyed(old)).wait()), ErrorCode::KeyExpired);
    let future = new_key(Some(4_000_000_000_000_000));
    assert_eq!(code(client.claim("customer", &item("new"), &keyed(future)).wait()), ErrorCode::KeyInFuture);
    assert_eq!(
        code(client.claim("customer", &item("v4"), &keyed(Uuid::from_u128(1 << 76 | 5))).wait()),
        ErrorCode::BadRequest
    );
}

/// What is read with a row may lie beyond what is written then.
#[test]
fn a_row_that_was_claimed_where_a_lookup_has_read_before_is_found() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = two_corpora(&daemon);
    let claim = || client.claim("customer", &item("of two"), &options()).wait().expect("a claim").value.event_id;
    let lookup = |event_id| {
        let row = client.lookup(event_id, &options()).wait().expect("a lookup").value;
        assert_eq!(row.event_id, event_id);
    };
    for _ in 0..20 {
        let pair = [claim(), claim()];
        pair.into_iter().rev().for_each(lookup);
    }
}

#[test]
fn a_replay_ledger_takes_its_time_from_requests() {
    let scratch = scratch();
    format(scratch.path(), 1, "replay");
    let daemon = Daemon::start(scratch.path());
    let client = daemon.client();
    let at = |at_us| RequestOptions { at_us: Some(at_us), ..options() };
    assert_eq!(code(client.onboard("customer", "", &options()).wait()), ErrorCode::BadRequest);
    client.onboard("customer", "", &at(1_500_000_000_000_000)).wait().unwrap();
    let mut early = item("early");
    early.occurred_at_us = 1_500_000_000_000_000;
    let first = client.claim("customer", &early, &at(1_500_000_000_000_007)).wait().unwrap().value;
    assert_eq!(first.claim_timestamp_us, 1_500_000_000_000_007);
    let held = client.claim("customer", &early, &at(1_500_000_000_000_001)).wait().unwrap().value;
    assert_eq!(held.claim_timestamp_us, 1_500_000_000_000_007, "time never goes back");
    assert!(held.event_id > first.event_id);
}

#[test]
fn a_second_daemon_and_a_second_format_are_refused() {
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    let daemon = Daemon::start(scratch.path());
    let data = scratch.path().to_str().unwrap();
    let second = run(&["start", "--data", data]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another claimd serves this ledger"));
    let again = run(&["format", "--data", data]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("holds a ledger already"));
    daemon.client().onboard("customer", "", &options()).wait().expect("the first daemon still serves");
    daemon.stop();
    let missing = run(&["start", "--data", "/nonexistent/ledger"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("claimd format --data"));
}

#[test]
fn a_format_that_fails_leaves_nothing_behind() {
    let scratch = scratch();
    let data = scratch.path().join("ledger");
    // Shard 0, which is made last, can't be.
    let obstacle = data.join("shard-0000.formatting");
    std::fs::create_dir_all(&obstacle).unwrap();
    let format = || run(&["format", "--shards", "2", "--segment-bytes", "4M", "--data", data.to_str().unwrap()]);
    assert_eq!(format().status.code(), Some(1));
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, std::slice::from_ref(&obstacle));
    std::fs::remove_dir(obstacle).unwrap();
    assert!(format().status.success(), "nothing is in the way of the next one");
}

#[test]
fn inspect_shows_what_was_written() {
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = daemon.client();
    client.onboard("customer", "", &options()).wait().unwrap();
    let id = client.claim("customer", &item("seen"), &options()).wait().unwrap().event_id;
    daemon.stop();
    let output = run(&["inspect", "--json", "--depth", "records", "--data", scratch.path().to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        text.lines().any(|line| line.contains("\"operation\":\"claim\"") && line.contains(&id.to_string())),
        "{text}"
    );
    assert!(text.lines().any(|line| line.contains("\"kind\":\"mark\"")), "a stopped daemon leaves a mark: {text}");
}

#[test]
fn start_without_arguments_formats_and_serves() {
    let scratch = scratch();
    let mut command = harness::claimd();
    command.current_dir(scratch.path());
    let daemon = Daemon::start_here(scratch.path(), command);
    daemon.client().onboard("customer", "", &options()).wait().expect("it serves");
    daemon.stop();
    assert!(scratch.path().join("claimd-data/shard-0000.ledger").exists());
}

#[test]
fn without_io_uring_every_command_says_so_in_one_sentence() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    let data = scratch.path().to_str().unwrap().to_owned();
    // The filter is inherited by the processes that this thread starts.
    let outputs = std::thread::spawn(move || {
        let rules = [(libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
        let architecture = std::env::consts::ARCH.try_into().expect("an architecture that seccomp knows");
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).expect("a filter");
        let program: BpfProgram = filter.try_into().expect("a program");
        seccompiler::apply_filter(&program).expect("filters can be set on this kernel");
        let other = format!("{data}-other");
        [run(&["start", "--data", &data]), run(&["inspect", "--data", &data]), run(&["format", "--data", &other])]
    });
    for output in outputs.join().expect("the thread does not panic") {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let sentence: Vec<_> = text.lines().filter(|line| line.starts_with("claimd: ")).collect();
        assert_eq!((output.status.code(), sentence.len()), (Some(1), 1), "{text}");
        assert!(sentence[0].contains("io_uring"), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn what_a_second_request_with_the_key_reveals_waits_for_the_first() {
    use claim_protocol as wire;
    use std::io::{Read, Write};
    let scratch = scratch();
    format(scratch.path(), 1, "wall");
    let daemon = Daemon::start(scratch.path());
    two_corpora(&daemon);
    let key = Some(new_key(None));
    let mut bytes = Vec::new();
    let mut builder = wire::Builder::new();
    let hello = wire::Operation::Hello { min_version: 1, max_version: 1, client: "a test" };
    wire::encode_request(&mut builder, &wire::Request::new(1, hello), &mut bytes).unwrap();
    for (id, name) in [(2, "first"), (3, "second")] {
        let operation = wire::Operation::Claim { corpus: "customer", item: item(name), unless_registered_within_ms: 0 };
        let request = wire::Request { idempotency_key: key, ..wire::Request::new(id, operation) };
        wire::encode_request(&mut builder, &request, &mut bytes).unwrap();
    }
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let (mut replies, mut rest) = (Vec::new(), &answer[..]);
    while let Ok(Some((content, consumed))) = wire::frame::split_frame(rest) {
        replies.push(wire::decode_reply(content).unwrap());
        rest = &rest[consumed..];
    }
    let ids: Vec<_> = replies.iter().map(|reply| reply.request_id).collect();
    assert_eq!(ids, [1, 2, 3], "the refusal does not overtake the entry that it reveals");
    assert_eq!(replies[2].positions, replies[1].positions, "and it names it");
}
