//! Retention over the socket: holds, what is due and what it waits for, and what the audit says of a quarter that was dropped.

mod harness;

use claim_client::{
    AuditOperation, Client, ClientError, Entry, ErrorCode, Head, ReasonCode, RequestOptions, ShardStatus, TailOptions,
    new_key,
};
use harness::replay::{Ledger, at, claim, onboard};
use harness::{Daemon, format, options, scratch};
use std::time::Duration;

/// How often something is looked for, and how long in all.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
const LOOKS_MAX: usize = 3_000;
const DAY_US: i64 = 86_400_000_000;
/// 2020-02-01.
const FEBRUARY_2020_US: i64 = 1_580_515_200_000_000;
/// 2024-04-01, when the rows of the first quarter of 2020 are four full years behind that quarter's end.
const APRIL_2024_US: i64 = 1_711_929_600_000_000;

fn because(rationale: &str) -> RequestOptions {
    RequestOptions { rationale: rationale.to_owned(), ..options() }
}

fn code<T>(result: Result<T, ClientError>) -> ErrorCode {
    result.err().and_then(|error| error.code()).expect("a refusal")
}

fn shards(client: &Client) -> Vec<ShardStatus> {
    client.status(&options()).wait().expect("a status").value.shards
}

fn entries(client: &Client, shard: u16, operation: AuditOperation) -> Vec<Entry> {
    let tail = TailOptions { shard, from_position: 1, page_entries: 1_000, wait: Duration::ZERO };
    let page = client.tail_page(tail, &options()).wait().expect("a page").value;
    page.entries.into_iter().filter(|entry| entry.operation == operation).collect()
}

/// Waits for something that comes by itself.
fn look<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS_MAX {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    panic!("{what} does not come");
}

/// Waits until another segment can begin: a quarter ends with a segment where the log has one ahead.
fn prepared(client: &Client) {
    let is_ahead = |shard: &ShardStatus| shard.segments_prepared >= shard.segments_used + 2;
    look("a segment ahead", || shards(client).iter().all(is_ahead).then_some(()));
}

#[test]
fn a_hold_is_on_every_shard_and_stays_until_it_ends() {
    let scratch = scratch();
    format(scratch.path(), 2, "wall");
    let daemon = Daemon::start(scratch.path());
    let client = daemon.client();
    assert_eq!(code(client.hold(2021, 2, &options()).wait()), ErrorCode::BadRequest, "it needs a reason");
    assert_eq!(code(client.hold(2021, 5, &because("an audit")).wait()), ErrorCode::BadRequest);
    assert_eq!(code(client.release(2021, 2, &because("an audit")).wait()), ErrorCode::BadTransition);
    let keyed = RequestOptions { idempotency_key: Some(new_key(None)), ..because("an audit") };
    let at_us = client.hold(2021, 2, &keyed).wait().expect("a hold").value;
    assert_eq!(client.hold(2021, 2, &keyed).wait().expect("the same").value, at_us);
    assert_eq!(code(client.hold(2021, 3, &keyed).wait()), ErrorCode::KeyReused);
    assert_eq!(code(client.hold(2021, 2, &because("twice")).wait()), ErrorCode::BadTransition);
    client.hold(1970, 1, &because("the first")).wait().expect("a hold");
    client.hold(9998, 4, &because("the last")).wait().expect("a hold");
    let held = ["1970-Q1", "2021-Q2", "9998-Q4"];
    assert!(shards(&client).iter().all(|shard| shard.holds == held), "answered when every shard has it");
    daemon.kill();

    let daemon = Daemon::start(scratch.path());
    let client = daemon.client();
    look("the holds after a crash", || shards(&client).iter().all(|shard| shard.holds == held).then_some(()));
    client.release(2021, 2, &options()).wait().expect("a release");
    for (shard, status) in shards(&client).iter().enumerate() {
        assert_eq!(status.holds, ["1970-Q1", "9998-Q4"]);
        assert_eq!((status.dropped_to.as_ref(), status.quarter_seals, status.first_segment), (None, 0, 0));
        assert_eq!((status.retention_due.as_ref(), status.retention_waits_for.as_ref()), (None, None));
        let holds = entries(&client, shard as u16, AuditOperation::Hold);
        let told: Vec<_> = holds.iter().map(|entry| (entry.detail.as_str(), entry.rationale.as_str())).collect();
        assert_eq!(told, [("2021-Q2", "an audit"), ("1970-Q1", "the first"), ("9998-Q4", "the last")]);
        let releases = entries(&client, shard as u16, AuditOperation::Release);
        assert_eq!(releases.iter().map(|entry| entry.detail.as_str()).collect::<Vec<_>>(), ["2021-Q2"]);
        assert!(holds.iter().chain(&releases).all(|entry| entry.global_sequence > 0));
    }
    daemon.stop();
}

#[test]
fn a_quarter_waits_for_its_hold_and_is_told_of_when_it_goes() {
    let mut ledger = Ledger::new(1, None);
    let client = ledger.client();
    onboard(&client, &["customer"], FEBRUARY_2020_US);
    let claimed = |key: &str, at_us: i64| claim(&client, "customer", key, at_us - 1, at_us).event_id;
    let (gone, outliving) = (claimed("gone", FEBRUARY_2020_US + 1), claimed("outliving", FEBRUARY_2020_US + 2));
    let later = |days: i64| at(FEBRUARY_2020_US + days * DAY_US);
    client.retract("customer", outliving, ReasonCode::Other, &later(1)).wait().expect("a retraction");
    // In the third quarter of the year.
    prepared(&client);
    client.reactivate(outliving, &later(160)).wait().expect("a reactivation");
    client.hold(2020, 1, &later(161)).wait().expect("a hold");
    assert_eq!(shards(&client)[0].retention_due, None);
    // Time goes on with the requests.
    prepared(&client);
    let stays = claimed("stays", APRIL_2024_US + 1);
    let due =
        look("the quarter", || shards(&client).remove(0).retention_due.is_some().then(|| shards(&client).remove(0)));
    // The first entry of a replay ledger is before any request, at the beginning of time.
    assert_eq!(due.retention_due.as_deref(), Some("1970-Q1 to 2020-Q1"));
    assert_eq!(due.retention_waits_for.as_deref(), Some("a hold on 2020-Q1: a test"));
    assert_eq!((due.retention_segments, due.retention_bytes), (1, 4 << 20));
    assert_eq!((due.retention_rows, due.retention_carried), (2, 1));
    assert_eq!((due.dropped_to, due.quarter_seals), (None, 0));

    client.release(2020, 1, &at(APRIL_2024_US + 2)).wait().expect("a release");
    let dropped = look("the drop", || shards(&client).pop().filter(|shard| shard.dropped_to.is_some()));
    assert_eq!(dropped.dropped_to.as_deref(), Some("2020-Q1"));
    assert_eq!(dropped.quarter_seals, 1);
    // The status is ahead of the disk.
    let drops = look("its entry", || {
        Some(entries(&client, 0, AuditOperation::RetentionDrop)).filter(|found| !found.is_empty())
    });
    let tail = entries(&client, 0, AuditOperation::Carry);
    let [carry] = tail.as_slice() else { panic!("one row is carried: {tail:?}") };
    assert_eq!(
        (carry.event_id, carry.corpus.as_str(), carry.user_name.as_str()),
        (Some(outliving), "customer", "claimd")
    );
    assert_eq!(carry.claim.as_ref().map(|claim| claim.event_key.as_str()), Some("outliving"));
    assert_eq!(carry.detail, "outliving in test, slot 2; claimed at 2020-02-01T00:00:00.000002Z");
    let told: Vec<_> = drops.iter().map(|entry| entry.detail.as_str()).collect();
    assert_eq!(told, ["1970-Q1 to 2020-Q1: segment 0; 1 rows were carried"]);
    let first_segment = || Some(shards(&ledger.client()).remove(0).first_segment).filter(|first| *first > 0);
    assert_eq!(look("the log's beginning", first_segment), 1);
    for crashes in 0..2 {
        if crashes > 0 {
            ledger.crash();
        }
        let client = ledger.client();
        let row = client.lookup(outliving, &options()).wait().expect("the row that outlives").value;
        assert_eq!((row.event_key.as_str(), row.claim_timestamp_us), ("outliving", FEBRUARY_2020_US + 2));
        assert_eq!(row.effective_quarter, "2020-Q4");
        assert_eq!(row.reactivation_quarter.as_deref(), Some("2020-Q3"));
        assert_eq!(client.lookup(stays, &options()).wait().expect("a row").value.event_key, "stays");
        assert_eq!(code(client.lookup(gone, &options()).wait()), ErrorCode::Expired);
        // A tail begins where the log does, and scrubbing goes over what is left of it.
        let tail = TailOptions { shard: 0, from_position: 1, page_entries: 1, wait: Duration::ZERO };
        let first = client.tail_page(tail, &options()).wait().expect("a page").value;
        assert_eq!(first.entries[0].operation, AuditOperation::Reactivate, "{first:?}");
        assert_eq!(first.next_position, first.entries[0].position.position + 1);
        let rounds = shards(&client)[0].scrub_rounds;
        look("a round", || (shards(&client)[0].scrub_rounds > rounds + 1).then_some(()));
        assert_eq!(shards(&client)[0].scrub_first, None);
        // Heads are still on the chain; one of what is dropped only where a seal tells of it.
        let head = client.audit_heads(&options()).wait().expect("the heads").value.remove(0);
        let checked = |head: &Head| client.audit_check(head, &options()).wait().expect("a check").value;
        assert!(checked(&head).ok);
        let before = checked(&Head { batch: 1, position: 1, ..head });
        assert!(!before.ok && before.message.contains("was dropped with 2020-Q1"), "{before:?}");
    }
    ledger.stop();
}
