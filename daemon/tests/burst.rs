//! A corpus that replays more events than it has slots: alarms, rows beyond the slots, control totals, and a cap.

mod harness;

use claim_client::{
    AlarmKind, AuditOperation, ClaimItem, Claimed, Client, CorpusInfo, ErrorCode, ServerError, TailOptions,
};
use harness::replay::{Ledger, all_rows, at, check_totals, onboard};
use harness::{item, options};
use std::collections::BTreeMap;
use std::time::Duration;

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
/// 2026-01-05 00:00 UTC, a full minute early in a quarter.
const START_US: i64 = 1_767_571_200_000_000;
/// 2026-04-01 00:00 UTC.
const NEXT_QUARTER_US: i64 = 1_775_001_600_000_000;
const SLOTS: u64 = 50_000;

/// Claims so many events at once.
fn claim_many(client: &Client, corpus: &str, count: usize, at_us: i64) -> Vec<Result<Claimed, ServerError>> {
    let keys: Vec<_> = (0..count).map(|n| format!("{at_us} {n}")).collect();
    let items: Vec<_> =
        keys.iter().map(|key| ClaimItem { occurred_at_us: at_us, metadata: b"", ..item(key) }).collect();
    client.claim_batch(corpus, &items, &at(at_us)).wait().expect("a batch").value
}

fn accepted(results: &[Result<Claimed, ServerError>]) -> usize {
    results.iter().filter(|result| result.is_ok()).count()
}

fn corpus(client: &Client, name: &str) -> CorpusInfo {
    let corpora = client.corpora(&options()).wait().expect("the corpora").value;
    corpora.into_iter().find(|corpus| corpus.name == name).expect("onboarded")
}

/// A corpus's alarms in the log, each with what the entry before it says.
fn alarms(client: &Client, name: &str) -> Vec<(String, String)> {
    let shard = corpus(client, name).shard;
    let tail = TailOptions { shard, from_position: 1, page_entries: 0, wait: Duration::ZERO };
    let entries = client.tail(tail, &options()).flat_map(|page| page.expect("a page").entries);
    let mut before = String::new();
    let mut alarms = Vec::new();
    for entry in entries.filter(|entry| entry.corpus == name) {
        if entry.operation == AuditOperation::Alarm {
            alarms.push((entry.detail.clone(), before.clone()));
        }
        before = entry.detail.rsplit_once(", slot ").map_or(String::new(), |(_, slot)| format!("slot {slot}"));
    }
    alarms
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(alarm, before)| ((*alarm).to_owned(), (*before).to_owned())).collect()
}

#[test]
fn a_burst_beyond_the_slots() {
    let mut ledger = Ledger::new(2, None);
    let mut client = ledger.client();
    onboard(&client, &["replayed", "quiet"], START_US);
    let claim = |client: &Client, count, at_us| {
        assert_eq!(accepted(&claim_many(client, "replayed", count, at_us)), count);
    };
    // 40,000 in four minutes, with a crash between, far from any threshold.
    for batch in 0..40 {
        claim(&client, 1_000, START_US + batch * 6 * SECOND_US);
        let raised: &[AlarmKind] = match batch {
            0..24 => &[],
            24..39 => &[AlarmKind::Half],
            _ => &[AlarmKind::Half, AlarmKind::Eighty],
        };
        assert_eq!(corpus(&client, "replayed").alarms, raised, "after {} claims", (batch + 1) * 1_000);
        if matches!(batch, 10 | 30) {
            ledger.crash();
            client = ledger.client();
        }
    }
    let both = [("50 %: 25000 of 50000 slots used", "slot 25000"), ("80 %: 40000 of 50000 slots used", "slot 40000")];
    assert_eq!(alarms(&client, "replayed"), pairs(&both));

    // 20,000 more: a cap begins and ends, a crash comes between, and the slots come to an end.
    let mut at_us = START_US + 10 * MINUTE_US;
    claim(&client, 3_000, at_us);
    let capped = throttled_claims(&mut ledger, &mut client, at_us + SECOND_US);
    at_us += 10 * MINUTE_US;
    let mut left = 20_000 - 3_000 - capped;
    while left > 0 {
        let count = left.min(1_500);
        claim(&client, count, at_us);
        left -= count;
        at_us += 4 * SECOND_US;
        if (5_000..6_500).contains(&left) {
            ledger.crash();
            client = ledger.client();
        }
    }

    let info = corpus(&client, "replayed");
    assert_eq!((info.claims, info.claims_this_quarter, info.slots), (60_000, 60_000, SLOTS));
    assert_eq!(info.alarms, [AlarmKind::Half, AlarmKind::Eighty]);
    assert_eq!(alarms(&client, "replayed"), pairs(&both), "once each, whatever came after");
    let rows = all_rows(&client);
    assert!(rows.values().all(|row| row.over_budget == (row.claim_sequence > SLOTS)));
    let replayed = rows.values().filter(|row| row.corpus == "replayed");
    let mut slots: Vec<_> = replayed.map(|row| row.claim_sequence).collect();
    slots.sort_unstable();
    assert!(slots.iter().copied().eq(1..=60_000));
    check_totals(&client, &rows, SLOTS);
    let totals = client.totals("replayed", &options()).wait().expect("totals").value;
    let [total] = totals.as_slice() else { panic!("one quarter: {totals:?}") };
    assert_eq!((total.registered, total.over_budget, total.slots), (60_000, 10_000, SLOTS));
    println!("{total:?}");

    // Another quarter has its own slots and alarms.
    for count in [5_000, 5_000, 5_000, 5_000, 4_999] {
        claim(&client, count, NEXT_QUARTER_US);
    }
    let info = corpus(&client, "replayed");
    assert_eq!((info.claims, info.claims_this_quarter, info.alarms.len()), (84_999, 24_999, 0));
    claim(&client, 2, NEXT_QUARTER_US + MINUTE_US);
    assert_eq!(corpus(&client, "replayed").alarms, [AlarmKind::Half]);
    assert_eq!(alarms(&client, "replayed").len(), 3);
    ledger.stop();
    let (code, found) = harness::run_json("verify", &ledger.data(), &[]);
    assert_eq!(code, 0, "{found:?}");
}

/// Claims under a cap for some minutes, with a crash between; says how many were accepted, one of them without a cap.
fn throttled_claims(ledger: &mut Ledger, client: &mut Client, at_us: i64) -> usize {
    const CAP: u32 = 500;
    client.cap("replayed", CAP, &at(at_us)).wait().expect("a cap");
    assert_eq!(corpus(client, "replayed").cap_per_minute, CAP);
    let mut by_minute: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    for step in 0..20 {
        // Four batches of 300 a minute, from the minute in which far more were claimed before the cap.
        let now_us = at_us + step * 15 * SECOND_US;
        let results = claim_many(client, "replayed", 300, now_us);
        let minute = by_minute.entry(now_us / MINUTE_US - START_US / MINUTE_US).or_default();
        minute.0 += accepted(&results);
        let left_ms = (MINUTE_US - now_us % MINUTE_US) / 1_000;
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!(error.code, ErrorCode::Throttled);
            assert!((left_ms..=left_ms + 1).contains(&i64::from(error.retry_after_ms)), "{error:?}, {left_ms} ms left");
            minute.1 += 1;
        }
        if step == 9 {
            ledger.crash();
            *client = ledger.client();
        }
    }
    println!("accepted and throttled by minute: {by_minute:?}");
    let cap = CAP as usize;
    let expected = [(10, (0, 1_200)), (11, (cap, 700)), (12, (cap, 700)), (13, (cap, 700)), (14, (cap, 700))];
    assert_eq!(by_minute, BTreeMap::from(expected));
    // What a cap refuses is not taken for done: the same key claims once the minute is over.
    let later_us = at_us + 5 * MINUTE_US;
    assert_eq!(accepted(&claim_many(client, "quiet", 700, later_us)), 700, "another corpus is not capped");
    assert_eq!(accepted(&claim_many(client, "replayed", 600, later_us)), cap);
    client.cap("replayed", 0, &at(later_us)).wait().expect("no cap");
    assert_eq!(accepted(&claim_many(client, "replayed", 1, later_us + 1)), 1);
    let accepted: usize = by_minute.values().map(|(accepted, _)| accepted).sum();
    accepted + cap + 1
}

#[test]
fn a_crash_at_a_threshold_neither_repeats_nor_loses_an_alarm() {
    let mut ledger = Ledger::new(2, None);
    onboard(&ledger.client(), &["replayed"], START_US);
    let keys: Vec<_> = (0..1_000).map(|n| format!("event {n}")).collect();
    let items: Vec<_> =
        keys.iter().map(|key| ClaimItem { occurred_at_us: START_US, metadata: b"", ..item(key) }).collect();
    for (at_us, reach) in [(START_US, 24_500), (START_US + HOUR_US, 39_500), (START_US + 2 * HOUR_US, 49_500)] {
        let client = ledger.client();
        let claimed = corpus(&client, "replayed").claims as usize;
        let mut left = reach - claimed;
        while left > 0 {
            let count = left.min(5_000);
            assert_eq!(accepted(&claim_many(&client, "replayed", count, at_us + left as i64)), count);
            left -= count;
        }
        // The daemon is killed with the batches under way that cross the threshold; the client asks again.
        let batches: Vec<_> =
            items.chunks(100).map(|items| client.claim_batch("replayed", items, &at(at_us + MINUTE_US))).collect();
        ledger.crash();
        for batch in batches {
            assert_eq!(accepted(&batch.wait().expect("it is asked again").value), 100);
        }
        let client = ledger.client();
        assert_eq!(corpus(&client, "replayed").claims as usize, reach + 1_000);
    }
    let found = alarms(&ledger.client(), "replayed");
    println!("{found:?}");
    let kinds: Vec<_> = found.iter().map(|(alarm, _)| alarm.split(':').next().expect("a kind")).collect();
    assert_eq!(kinds, ["50 %", "80 %"]);
    assert_eq!(corpus(&ledger.client(), "replayed").alarms, [AlarmKind::Half, AlarmKind::Eighty]);
}

#[test]
fn three_unusual_hours_are_an_early_alarm() {
    let mut ledger = Ledger::new(1, None);
    let mut client = ledger.client();
    onboard(&client, &["usual"], START_US);
    // Eight days with two claims an hour, then thirty.
    let hour_us = |hour: i64| START_US + hour * HOUR_US;
    for hour in 0..8 * 24 {
        assert_eq!(accepted(&claim_many(&client, "usual", 2, hour_us(hour))), 2);
    }
    for hour in 8 * 24..8 * 24 + 3 {
        claim_many(&client, "usual", 30, hour_us(hour));
        assert_eq!(corpus(&client, "usual").alarms, [], "hour {hour}");
    }
    ledger.crash();
    client = ledger.client();
    for hour in 8 * 24 + 3..8 * 24 + 8 {
        claim_many(&client, "usual", 30, hour_us(hour));
        assert_eq!(corpus(&client, "usual").alarms, [AlarmKind::Early], "hour {hour}");
    }
    let expected = [("early: 475 of 50000 slots used", "slot 475")];
    assert_eq!(alarms(&client, "usual"), pairs(&expected), "behind the first claim after three hours");
}
