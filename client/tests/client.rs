//! The client against a daemon that fails in every way that a daemon can.

mod fake;

use claim_client::{
    ClaimItem, Classification, Client, ClientError, ClientOptions, ClockMode, ErrorCode, Lifecycle, ReasonCode,
    RequestOptions, ScanRange, UnknownCause, Uuid,
};
use fake::{Action, Fake, refusal};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const ITEM: ClaimItem<'static> = ClaimItem {
    event_key: "key",
    occurred_at_us: 1,
    owning_corpus: "",
    hosting_corpus: "",
    category: "root",
    taxonomy_version: 1,
    metadata: b"",
};

/// A daemon with the corpora `zero` and `one` on shards of these numbers, and a client.
fn start(options: ClientOptions) -> (TempDir, Fake, Client) {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 2, ClockMode::Wall);
    fake.onboard("zero", 0);
    fake.onboard("one", 1);
    let client = Client::connect_with(fake.socket(), options).expect("the daemon is there");
    (directory, fake, client)
}

fn within(deadline: Duration) -> RequestOptions {
    RequestOptions { deadline: Some(deadline), ..RequestOptions::default() }
}

/// The smallest executor: one future, one thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// A claim whose first attempts meet `faults` is applied once, and every attempt carries the same key.
fn check_retry(faults: Vec<Action>) {
    let (_directory, fake, client) = start(ClientOptions::default());
    let attempts = faults.len() + 1;
    let mut faults = faults.into_iter();
    fake.script(move |_, _| faults.next().unwrap_or(Action::Answer));
    let claimed = client.claim("one", &ITEM, &RequestOptions::default()).wait().expect("it works in the end");
    let seen = fake.seen();
    assert_eq!(seen.len(), attempts);
    let key = claimed.idempotency_key.expect("a claim has a key");
    assert_eq!(key.get_version_num(), 7);
    assert!(seen.iter().all(|seen| seen.key == Some(key)), "{seen:?}");
    let ledger = fake.ledger.lock().expect("ledger");
    assert_eq!(ledger.rows.len(), 1);
    assert_eq!(ledger.rows[0].event_id, claimed.event_id);
    // Each attempt leaves the daemon the time that is left.
    assert!(seen.windows(2).all(|pair| pair[1].deadline_ms <= pair[0].deadline_ms));
}

#[test]
fn a_claim_is_retried_with_the_same_key() {
    check_retry(vec![]);
    check_retry(vec![Action::DropBefore]);
    check_retry(vec![Action::DropAfter]);
    check_retry(vec![Action::DropAfter, Action::DropBefore, Action::DropAfter]);
    check_retry(vec![Action::Refuse(refusal(ErrorCode::Overloaded, 5))]);
    check_retry(vec![
        Action::Refuse(refusal(ErrorCode::Throttled, 0)),
        Action::DropAfter,
        Action::Refuse(refusal(ErrorCode::Overloaded, 1)),
    ]);
    check_retry(vec![Action::Refuse(refusal(ErrorCode::ShuttingDown, 0)), Action::DropBefore]);
}

#[test]
fn what_was_outstanding_is_sent_again_in_its_order() {
    let (_directory, fake, client) = start(ClientOptions::default());
    let mut requests = 0;
    fake.script(move |_, _| {
        requests += 1;
        if requests == 10 { Action::DropAfter } else { Action::Answer }
    });
    let pending: Vec<_> = (0..50).map(|_| client.claim("one", &ITEM, &RequestOptions::default())).collect();
    let keys: Vec<_> = pending.iter().map(|pending| pending.idempotency_key()).collect();
    let ids: Vec<Uuid> = pending.into_iter().map(|pending| pending.wait().expect("answered").event_id).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(fake.ledger.lock().expect("ledger").rows.len(), 50);
    let again: Vec<_> = fake.seen().iter().skip(10).map(|seen| seen.key).collect();
    assert!(keys.ends_with(&again), "{again:?}");
}

#[test]
fn a_daemon_that_comes_back_is_found() {
    let (_directory, fake, client) = start(ClientOptions::default());
    fake.kill();
    let pending = client.claim("one", &ITEM, &RequestOptions::default());
    thread::sleep(Duration::from_millis(100));
    fake.listen();
    pending.wait().expect("the daemon is back");
    client.status(&RequestOptions::default()).wait().expect("the main socket, too");
}

#[test]
fn a_deadline_ends_what_is_not_answered() {
    let (_directory, fake, client) = start(ClientOptions::default());
    fake.script(|_, _| Action::Delay(Duration::from_millis(900)));
    let started = Instant::now();
    let options = within(Duration::from_millis(100));
    let claim = client.claim("one", &ITEM, &options);
    let key = claim.idempotency_key();
    let lookup = client.lookup(Uuid::nil(), &options);
    match claim.wait() {
        Err(ClientError::UnknownOutcome { code, idempotency_key, .. }) => {
            assert_eq!((code, idempotency_key), (UnknownCause::Server(ErrorCode::Deadline), key));
        }
        other => panic!("{other:?}"),
    }
    let error = lookup.wait().expect_err("too late");
    assert_eq!((error.classification(), error.code()), (Classification::Definite, Some(ErrorCode::Deadline)));
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(100) && elapsed < Duration::from_millis(800), "{elapsed:?}");
    // The late answers do no harm, and the same key tells what became of the claim.
    thread::sleep(Duration::from_millis(900));
    fake.script(|_, _| Action::Answer);
    let again = RequestOptions { idempotency_key: key, ..RequestOptions::default() };
    client.claim("one", &ITEM, &again).wait().expect("it was applied");
    assert_eq!(fake.ledger.lock().expect("ledger").rows.len(), 1);
}

#[test]
fn without_a_daemon_outcomes_are_told_apart() {
    let (_directory, fake, client) = start(ClientOptions { attempts_max: 3, ..ClientOptions::default() });
    fake.script(|_, _| Action::Ignore);
    let sent = client.claim("one", &ITEM, &RequestOptions::default());
    let read = client.history(Uuid::nil(), 0, &RequestOptions::default());
    while fake.seen().len() < 2 {
        thread::sleep(Duration::from_millis(1));
    }
    fake.kill();
    let error = sent.wait().expect_err("nobody answers");
    assert_eq!((error.classification(), error.code_name()), (Classification::Unknown, "CONNECTION_LOST"));
    let error = read.wait().expect_err("nobody answers");
    assert_eq!(error.classification(), Classification::CannotConnect);
    let error = client.claim("one", &ITEM, &RequestOptions::default()).wait().expect_err("nobody is there");
    assert_eq!((error.classification(), error.code_name()), (Classification::CannotConnect, "CANNOT_CONNECT"));
    // With more attempts allowed than the deadline has room for, the deadline decides, and nothing was sent.
    let (_directory, fake, client) = start(ClientOptions::default());
    fake.kill();
    // The first request may still be written to the dying connection; after it the client knows.
    client.status(&within(Duration::from_millis(50))).wait().expect_err("nobody");
    let error = client.claim("one", &ITEM, &within(Duration::from_millis(50))).wait().expect_err("nobody");
    assert_eq!((error.classification(), error.code()), (Classification::Definite, Some(ErrorCode::Deadline)));
}

#[test]
fn a_refusal_after_a_lost_attempt_leaves_the_outcome_open() {
    for (code, expected) in [
        (ErrorCode::NoSpace, Classification::Unknown),
        (ErrorCode::KeyExpired, Classification::Unknown),
        (ErrorCode::BadTransition, Classification::Definite),
    ] {
        let (_directory, fake, client) = start(ClientOptions::default());
        let mut actions = vec![Action::DropBefore, Action::Refuse(refusal(code, 0))].into_iter();
        fake.script(move |_, _| actions.next().expect("two attempts"));
        let error = client.claim("one", &ITEM, &RequestOptions::default()).wait().expect_err("refused");
        assert_eq!(error.classification(), expected, "{error}");
    }
}

#[test]
fn overload_is_the_callers_business_if_he_says_so() {
    let (_directory, fake, client) = start(ClientOptions::default());
    fake.script(|_, _| Action::Refuse(refusal(ErrorCode::Overloaded, 10)));
    let options = RequestOptions { retry_overload: false, ..RequestOptions::default() };
    let error = client.claim("one", &ITEM, &options).wait().expect_err("refused");
    assert_eq!((error.code(), error.retry_after_ms()), (Some(ErrorCode::Overloaded), 10));
    assert_eq!(fake.seen().len(), 1);
    // An advice that the deadline has no room for is not waited for.
    fake.script(|_, _| Action::Refuse(refusal(ErrorCode::Overloaded, 60_000)));
    let started = Instant::now();
    let error = client.claim("one", &ITEM, &within(Duration::from_secs(5))).wait().expect_err("refused");
    assert_eq!((error.classification(), error.code()), (Classification::Definite, Some(ErrorCode::Overloaded)));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn retries_are_a_tenth_of_many_requests() {
    let (_directory, fake, client) = start(ClientOptions::default());
    let options = RequestOptions::default();
    // Answered requests count, so that the budget is in force from the first refusal on.
    const REQUESTS: usize = 1_000;
    for _ in 0..REQUESTS {
        client.claim("one", &ITEM, &options).wait().expect("claimed");
    }
    fake.script(|_, _| Action::Refuse(refusal(ErrorCode::Overloaded, 1)));
    let pending: Vec<_> = (0..REQUESTS).map(|i| client.claim(["zero", "one"][i % 2], &ITEM, &options)).collect();
    for pending in pending {
        let error = pending.wait().expect_err("refused");
        assert_eq!((error.code(), error.retry_after_ms()), (Some(ErrorCode::Overloaded), 1));
    }
    let retries = fake.seen().len() - 2 * REQUESTS;
    // The client's own questions for the registry are requests as well.
    assert!((1..=2 * REQUESTS / 10 + 1).contains(&retries), "{retries} retries");
}

#[test]
fn outstanding_requests_are_bounded() {
    let (_directory, fake, client) = start(ClientOptions { outstanding_max: 4, ..ClientOptions::default() });
    fake.script(|_, _| Action::Delay(Duration::from_millis(5)));
    let claim = || client.claim("one", &ITEM, &RequestOptions::default());
    let pending: Vec<_> = (0..40).map(|_| claim()).collect();
    let ids: Vec<Uuid> = pending.into_iter().map(|pending| pending.wait().expect("answered").event_id).collect();
    assert!(ids.is_sorted(), "held requests keep their order: {ids:?}");
    let pending: Vec<_> = (0..40).map(|_| claim()).collect();
    drop(claim());
    block_on(async {
        for pending in pending {
            pending.await.expect("answered");
        }
    });
    let ledger = fake.ledger.lock().expect("ledger");
    assert_eq!((ledger.rows.len(), ledger.held_most), (80, 4));
}

#[test]
fn a_held_request_ends_at_its_deadline() {
    let (_directory, fake, client) = start(ClientOptions { outstanding_max: 1, ..ClientOptions::default() });
    fake.script(|_, _| Action::Ignore);
    let _first = client.claim("one", &ITEM, &RequestOptions::default());
    let second = client.claim("one", &ITEM, &within(Duration::from_millis(30)));
    let third = client.claim("one", &ITEM, &within(Duration::from_millis(30)));
    for error in [second.wait().expect_err("no room"), block_on(third).expect_err("no room")] {
        assert_eq!((error.classification(), error.code()), (Classification::Definite, Some(ErrorCode::Deadline)));
    }
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn requests_go_to_the_shard_of_their_corpus() {
    let (_directory, fake, client) = start(ClientOptions::default());
    let options = RequestOptions::default();
    let zero = client.claim("zero", &ITEM, &options).wait().expect("claimed").event_id;
    let one = client.claim("one", &ITEM, &options).wait().expect("claimed").event_id;
    client.lookup(one, &options).wait().expect("found");
    client.reference("zero", one, &options).wait().expect("referred");
    client.retract("zero", zero, ReasonCode::Other, &options).wait().expect("retracted");
    client.status(&options).wait().expect("status");
    let sockets: Vec<_> = fake.seen().iter().map(|seen| seen.socket).collect();
    assert_eq!(sockets, [Some(0), Some(1), Some(1), Some(1), Some(0), None]);
    assert_eq!(client.corpus_of(one).map(|corpus| corpus.name).as_deref(), Some("one"));

    // A corpus that somebody else onboards is served through the main socket until the client has heard of it.
    fake.onboard("late", 1);
    client.claim("late", &ITEM, &options).wait().expect("claimed");
    client.corpora(&options).wait().expect("heard");
    client.claim("late", &ITEM, &options).wait().expect("claimed");
    let onboarded = client.onboard("own", "", &options).wait().expect("onboarded").shard;
    client.claim("own", &ITEM, &options).wait().expect("claimed");
    let sockets: Vec<_> = fake.seen().iter().skip(6).map(|seen| seen.socket).collect();
    assert_eq!(sockets, [None, Some(1), None, Some(onboarded)]);
    let error = client.claim("nobody", &ITEM, &options).wait().expect_err("no such corpus");
    assert_eq!(error.code(), Some(ErrorCode::UnknownCorpus));
}

#[test]
fn the_main_socket_serves_where_a_shards_own_does_not() {
    let (directory, fake, client) = start(ClientOptions::default());
    std::fs::remove_file(directory.path().join("claimd-1.sock")).expect("it was there");
    client.claim("one", &ITEM, &RequestOptions::default()).wait().expect("claimed");
    let options = ClientOptions { direct_routing: false, ..ClientOptions::default() };
    let indirect = Client::connect_with(fake.socket(), options).expect("the daemon is there");
    indirect.claim("zero", &ITEM, &RequestOptions::default()).wait().expect("claimed");
    assert!(fake.seen().iter().all(|seen| seen.socket.is_none()));
}

#[test]
fn a_shard_changes_its_connection_only_when_nothing_is_outstanding() {
    let (directory, fake, client) = start(ClientOptions::default());
    let (socket, hidden) = (directory.path().join("claimd-1.sock"), directory.path().join("hidden"));
    std::fs::rename(&socket, &hidden).expect("it was there");
    let mut first = true;
    fake.script(move |_, _| if std::mem::take(&mut first) { Action::Ignore } else { Action::Answer });
    // The first claim stays outstanding on the main socket. The shard's own is there again when it is looked for the next time.
    let unanswered = client.claim("one", &ITEM, &within(Duration::from_secs(4)));
    std::fs::rename(&hidden, &socket).expect("it can go back");
    thread::sleep(Duration::from_millis(1_100));
    client.claim("one", &ITEM, &RequestOptions::default()).wait().expect("claimed");
    unanswered.wait().expect_err("nobody answers");
    client.claim("one", &ITEM, &RequestOptions::default()).wait().expect("claimed");
    let sockets: Vec<_> = fake.seen().iter().map(|seen| seen.socket).collect();
    assert_eq!(sockets, [None, None, Some(1)]);
}

#[test]
fn connecting_fails_at_once_and_says_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let started = Instant::now();
    let error = Client::connect(directory.path().join("claimd.sock")).expect_err("nobody is there");
    assert_eq!(error.classification(), Classification::CannotConnect);
    assert!(error.to_string().contains("start the daemon with `claimd start`"), "{error}");
    let fake = Fake::start(directory.path(), 1, ClockMode::Wall);
    fake.ledger.lock().expect("ledger").version = 2;
    let error = Client::connect(fake.socket()).expect_err("another version");
    assert!(error.to_string().contains("chose protocol version 2; this client speaks 1"), "{error}");
    let error = Client::connect(directory.path().join("long".repeat(40))).expect_err("no such path");
    assert!(error.to_string().contains("is no socket path"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn another_ledger_is_not_given_the_first_ones_requests() {
    let (_directory, fake, client) = start(ClientOptions { attempts_max: 3, ..ClientOptions::default() });
    fake.script(|_, _| Action::Ignore);
    let pending = client.claim("one", &ITEM, &RequestOptions::default());
    while fake.seen().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    fake.ledger.lock().expect("ledger").id = Uuid::from_u128(2);
    fake.kill();
    fake.listen();
    let error = pending.wait().expect_err("another ledger");
    assert_eq!(error.classification(), Classification::Unknown);
    assert!(error.to_string().contains("ledger 00000000-0000-0000-0000-000000000002 answers"), "{error}");
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn what_exceeds_a_bound_is_refused_before_it_is_sent() {
    let (_directory, fake, client) = start(ClientOptions::default());
    let options = RequestOptions::default();
    let long = RequestOptions { rationale: "x".repeat(513), ..RequestOptions::default() };
    for (error, expected) in [
        (
            client.claim("one", &ClaimItem { event_key: "", ..ITEM }, &options).wait().expect_err("empty"),
            "BAD_REQUEST: event_key is empty; at least one byte is required",
        ),
        (
            client.claim("one", &ITEM, &long).wait().expect_err("long"),
            "BAD_REQUEST: rationale has 513 bytes; at most 512 are allowed",
        ),
        (
            client.claim_batch("one", &vec![ITEM; 8191], &options).wait().expect_err("many"),
            "BAD_REQUEST: items has 8191 items; at most 8190 are allowed",
        ),
    ] {
        assert_eq!((error.to_string().as_str(), error.classification()), (expected, Classification::Definite));
    }
    assert_eq!(fake.seen(), []);
}

#[test]
fn every_operation_in_both_forms() {
    let (_directory, fake, client) = start(ClientOptions::default());
    let options = RequestOptions::default();
    block_on(async {
        let connected = Client::connect_async(fake.socket(), ClientOptions::default()).await.expect("connected");
        assert_eq!(connected.welcome().clock, ClockMode::Wall);
        let corpus = client.onboard("new", "notes", &options).await.expect("onboarded");
        assert_eq!((corpus.name.as_str(), corpus.notes.as_str()), ("new", "notes"));
        assert_eq!(client.corpora(&options).await.expect("corpora").len(), 3);
        let batch = client.claim_batch("one", &[ITEM; 7], &options).await.expect("batch");
        let ids: Vec<Uuid> = batch.iter().map(|item| item.as_ref().expect("claimed").event_id).collect();
        let referenced = client.reference_batch("zero", &[ids[0], Uuid::nil()], &options).await.expect("batch");
        assert_eq!(referenced[0], Ok(ids[0]));
        assert_eq!(referenced[1].as_ref().map_err(|error| error.code), Err(ErrorCode::NotVisible));
        client.confirm_clock(&options).await.expect("confirmed");
        client.status(&options).await.expect("status");

        let because = RequestOptions { rationale: "because".to_owned(), ..RequestOptions::default() };
        let retracted = client.retract("one", ids[1], ReasonCode::Duplicate, &because).await.expect("retracted");
        let after = RequestOptions { at_least: retracted.positions.clone(), ..RequestOptions::default() };
        let row = client.lookup(ids[1], &after).await.expect("found");
        assert_eq!((row.lifecycle, row.tombstone_reason.as_deref()), (Lifecycle::Tombstoned, Some("because")));
        client.reactivate(ids[1], &because).await.expect("reactivated");
        let first = client.history(ids[1], 0, &options).await.expect("history").value;
        assert_eq!((first.entries.len(), first.next), (1, Some(1)));
        let second = client.history(ids[1], 1, &options).await.expect("history").value;
        assert_eq!((second.entries.len(), second.next), (1, None));

        let mut pages = client.scan("one", ScanRange::default(), &options);
        let mut found = Vec::new();
        while let Some(page) = pages.next_page().await {
            found.extend(page.expect("a page").into_iter().map(|row| row.event_id));
        }
        assert_eq!(found, ids);
    });
    let pages: Vec<usize> =
        client.scan("one", ScanRange::default(), &options).map(|page| page.expect("a page").len()).collect();
    assert_eq!(pages, [3, 3, 1]);
    assert_eq!(client.scan("one", ScanRange::default(), &options).rows().count(), 7);
    fake.script(|_, _| Action::Refuse(refusal(ErrorCode::Forbidden, 0)));
    let mut rows = client.scan("one", ScanRange::default(), &options).rows();
    assert!(rows.next().is_some_and(|row| row.is_err()));
    assert!(rows.next().is_none());
}

#[test]
fn a_daemon_that_talks_nonsense_is_left() {
    let (_directory, fake, client) = start(ClientOptions { attempts_max: 2, ..ClientOptions::default() });
    drop(fake);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("claimd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = std::io::Write::write_all(&mut stream, &[8, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]);
            thread::sleep(Duration::from_millis(50));
        }
    });
    let error = Client::connect(&path).expect_err("nonsense");
    assert!(error.to_string().contains("the frame is no reply of this protocol"), "{error}");
    drop(client);
}
