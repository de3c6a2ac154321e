//! Reconciliation of made-up rows: tolerance, order, three corpora, disputes, windows and barriers. Every pass is held
//! against a plain reimplementation, by its report and by every row.

mod harness;

use claim_client::{ClaimItem, Client, DisputeVerdict, Lifecycle, ReasonCode, ReconciliationState, Uuid, Verdict};
use harness::plain::{PlainRow, Rules};
use harness::replay::{Ledger, Ran, all_rows, at, check_totals, claim, dismiss, dispute, onboard, pass_as_said, until};
use harness::{item, options};
use std::collections::BTreeMap;

const MINUTE_US: i64 = 60_000_000;
/// 2026-02-03 04:05:06.000007 UTC.
const START_US: i64 = 1_770_091_506_000_007;
const SLOTS: u64 = 50_000;
const CONFIGURATION: &str = "[[reconcile.budget]]\nfrom = \"customer\"\nto = \"compliance\"\nwindow = \"20m\"\n";
/// In the order of their prefixes; their shards are 0, 1, 0, 1.
const CORPORA: [&str; 4] = ["customer", "compliance", "tools", "research"];

struct World {
    ledger: Ledger,
    client: Client,
    rules: Rules,
}

impl World {
    fn new() -> World {
        let ledger = Ledger::new(2, Some(CONFIGURATION));
        let client = ledger.client();
        onboard(&client, &CORPORA, START_US);
        let budgets = vec![("customer".to_owned(), "compliance".to_owned(), 20 * MINUTE_US)];
        let corpora = CORPORA.map(str::to_owned).to_vec();
        World { ledger, client, rules: Rules { budgets, corpora, ..Rules::default() } }
    }

    fn crash(&mut self) {
        self.ledger.crash();
        self.client = self.ledger.client();
    }

    /// A pass that is held against the reimplementation.
    fn pass(&self, at_us: i64) -> Ran {
        let client = &self.client;
        let prefix = |name: &str| 1 + CORPORA.iter().position(|corpus| *corpus == name).expect("ours") as u16;
        let mut rows: Vec<_> = all_rows(client).values().map(|row| PlainRow::of(row, prefix(&row.corpus))).collect();
        let (ran, after) = pass_as_said(client, &mut rows, &self.rules, at_us);
        check_totals(client, &after, SLOTS);
        ran
    }

    /// What a row is, as it stands.
    fn state(&self, event_id: Uuid) -> (Lifecycle, Option<Uuid>, ReconciliationState) {
        let row = self.client.lookup(event_id, &options()).wait().expect("the row").value;
        (row.lifecycle, row.canonical_id, row.reconciliation_state)
    }
}

/// Alias to canonical row, among some rows.
fn aliases(world: &World, ids: &[Uuid]) -> Vec<(usize, usize)> {
    let place = |id: Uuid| ids.iter().position(|other| *other == id).expect("one of these");
    let canonical = |id: &Uuid| world.state(*id).1.map(|canonical_id| (place(*id), place(canonical_id)));
    ids.iter().filter_map(canonical).collect()
}

#[test]
fn tolerance_and_order_in_time() {
    const M5: i64 = 5 * MINUTE_US;
    let world = World::new();
    let client = world.client.clone();
    // Each row: corpus, slot in its corpus's partition that it is to have at least, claimed and occurred after the start. Then
    // which become aliases of which.
    type Case = (&'static str, &'static [(usize, i64, i64)], &'static [(usize, usize)]);
    let cases: &[Case] = &[
        ("as far apart as may be", &[(0, 0, 0), (1, 1, M5)], &[(1, 0)]),
        ("a microsecond further", &[(0, 2, 0), (1, 3, M5 + 1)], &[]),
        ("as far the other way", &[(0, 4, 0), (1, 5, -M5)], &[(1, 0)]),
        ("further the other way", &[(0, 6, 0), (1, 7, -M5 - 1)], &[]),
        ("the first claim stands, not the first occurrence", &[(1, 8, 9), (0, 9, 0)], &[(1, 0)]),
        ("one shard, two corpora", &[(2, 10, 0), (0, 11, 0)], &[(1, 0)]),
        ("one corpus is never merged", &[(0, 12, 0), (0, 13, 0)], &[]),
        ("equals of one corpus go to one of another", &[(1, 14, 0), (0, 15, 0), (0, 16, 0)], &[(1, 0), (2, 0)]),
        ("the first of equals takes it", &[(0, 17, 0), (0, 18, 0), (1, 19, 0)], &[(2, 0)]),
        ("A~B, B~C, not A~C: A is first", &[(0, 20, 0), (1, 21, M5), (2, 22, 2 * M5)], &[(1, 0)]),
        ("A~B, B~C, not A~C: B is first", &[(1, 23, M5), (0, 24, 0), (2, 25, 2 * M5)], &[(1, 0), (2, 0)]),
        ("A~B, B~C, not A~C: C, A, B", &[(2, 26, 2 * M5), (0, 27, 0), (1, 28, M5)], &[(2, 0)]),
        (
            "and again with what remains",
            &[(0, 29, 0), (1, 30, M5), (2, 31, 2 * M5), (3, 32, 3 * M5)],
            &[(1, 0), (3, 2)],
        ),
        ("the second of one corpus takes it", &[(0, 33, 0), (0, 34, 8 * MINUTE_US), (1, 35, 7 * MINUTE_US)], &[(2, 1)]),
    ];
    let mut made = Vec::new();
    for (name, rows, expected) in cases {
        let ids = rows.iter().map(|(corpus, claimed, occurred)| {
            claim(&client, CORPORA[*corpus], name, START_US + occurred, START_US + claimed).event_id
        });
        made.push((*name, ids.collect::<Vec<_>>(), *expected));
    }
    world.pass(START_US + 35 + 20 * MINUTE_US);
    for (name, ids, expected) in &made {
        assert_eq!(&aliases(&world, ids), expected, "{name}");
    }
    assert_eq!(world.pass(START_US + 35 + 20 * MINUTE_US).report.merged, 0);
}

#[test]
fn equal_timestamps_go_by_slot_and_then_by_prefix() {
    let world = World::new();
    let client = world.client.clone();
    let now_us = START_US + MINUTE_US;
    let made = |corpus: usize, key: &str| claim(&client, CORPORA[corpus], key, START_US, now_us);
    // All at one moment: slots 1 and 1, 2 and 2, then 3 and 4.
    let by_prefix = [made(1, "by prefix"), made(0, "by prefix")];
    let on_one_shard = [made(3, "on one shard"), made(1, "on one shard")];
    made(0, "fills slot 2");
    let by_slot = [made(0, "by slot"), made(3, "by slot")];
    assert!([by_prefix, on_one_shard, by_slot].as_flattened().iter().all(|row| row.claim_timestamp_us == now_us));
    let slots = |rows: [claim_client::Claimed; 2]| rows.map(|row| row.claim_sequence);
    assert_eq!([slots(by_prefix), slots(on_one_shard), slots(by_slot)], [[1, 1], [1, 2], [3, 2]]);
    world.pass(now_us + 20 * MINUTE_US);
    let ids = |rows: [claim_client::Claimed; 2]| rows.map(|row| row.event_id);
    assert_eq!(aliases(&world, &ids(by_prefix)), [(0, 1)], "prefix 1 before prefix 2");
    assert_eq!(aliases(&world, &ids(on_one_shard)), [(1, 0)], "slot 1 of prefix 4 before slot 2 of prefix 2");
    assert_eq!(aliases(&world, &ids(by_slot)), [(0, 1)], "slot 2 of prefix 4 before slot 3 of prefix 1");
}

#[test]
fn disputes_hold_groups_and_what_was_dismissed_stays_apart() {
    let mut world = World::new();
    let client = world.client.clone();
    let made = |corpus: usize, key: &str, occurred_us: i64, at_us: i64| {
        claim(&client, CORPORA[corpus], key, START_US + occurred_us, at_us).event_id
    };
    let ids = [0, 1].map(|corpus| made(corpus, "apart", 4 * MINUTE_US * corpus as i64, START_US + corpus as i64));
    let held = [0, 1, 2].map(|corpus| made(corpus, "held", 0, START_US + 2 + corpus as i64));
    let open = dispute(&client, "customer", &held[..2], START_US + 5);
    let mut now_us = START_US + 5 + 20 * MINUTE_US;
    let report = world.pass(now_us).report;
    assert_eq!((report.groups, report.merged, report.skipped_disputed), (2, 1, 1));
    assert_eq!(aliases(&world, &ids), [(1, 0)]);
    assert_eq!(aliases(&world, &held), [], "a group with a disputed row is left alone");

    // The wrong merge is disputed, found to be wrong, and not made again.
    let wrong = dispute(&client, "compliance", &ids, now_us + 1);
    dismiss(&client, wrong, now_us + 2);
    world.rules.dismissed.push((ids[0], ids[1]));
    now_us += 3;
    assert_eq!(world.pass(now_us).report.merged, 0);
    assert_eq!(aliases(&world, &ids), []);
    // A third claim goes to the row that it is near, although that one was dismissed with another.
    let third = made(2, "apart", 8 * MINUTE_US, now_us);
    // The other group is decided, and its third row follows.
    let verdict = |event_id, verdict| Verdict { event_id, verdict };
    let verdicts = [verdict(held[0], DisputeVerdict::References), verdict(held[1], DisputeVerdict::Canonical)];
    client.arbitrate(open, &verdicts, &at(now_us + 1)).wait().expect("a decision");
    until(&client, open, claim_client::DisputeState::Closed);
    assert_eq!(aliases(&world, &held), [(0, 1)]);
    now_us += 20 * MINUTE_US;
    assert_eq!(world.pass(now_us).report.merged, 2);
    assert_eq!(aliases(&world, &held), [(0, 1), (2, 1)]);
    assert_eq!(aliases(&world, &[ids[0], ids[1], third]), [(2, 1)]);

    // What refers to a row that is retracted is an orphan from then on.
    client.retract("compliance", held[1], ReasonCode::FalseAlarm, &at(now_us + 1)).wait().expect("a retraction");
    let report = world.pass(now_us + 2).report;
    assert_eq!(report.orphans, 2);
    assert!(report.orphans_listed.iter().all(|orphan| orphan.canonical_id == held[1] && orphan.is_alias));
}

#[test]
fn windows_hold_rows_back() {
    let mut world = World::new();
    let client = world.client.clone();
    let pair = |first: usize, second: usize, key: &str, at_us: i64| {
        [first, second].map(|corpus| claim(&client, CORPORA[corpus], key, START_US, at_us).event_id)
    };
    let with_budget = pair(0, 1, "customer to compliance", START_US);
    // Tools has fewer slots behind it than compliance, and comes first.
    let without = pair(2, 1, "five minutes", START_US);
    world.pass(START_US + 5 * MINUTE_US - 1);
    assert_eq!((aliases(&world, &without), aliases(&world, &with_budget)), (vec![], vec![]));
    world.pass(START_US + 5 * MINUTE_US);
    assert_eq!(aliases(&world, &without), [(1, 0)]);
    assert_eq!(world.state(with_budget[0]).2, ReconciliationState::Pending);
    assert_eq!(world.state(with_budget[1]).2, ReconciliationState::Clean);
    world.pass(START_US + 20 * MINUTE_US - 1);
    assert_eq!(aliases(&world, &with_budget), []);
    world.pass(START_US + 20 * MINUTE_US);
    assert_eq!(aliases(&world, &with_budget), [(1, 0)]);

    // An incident widens the windows of what is claimed while it is on, for as long as the rows are there.
    let mut now_us = START_US + 30 * MINUTE_US;
    let status = || client.status(&options()).wait().expect("a status").value;
    client.incident(true, &at(now_us)).wait().expect("an incident");
    let shown = status();
    assert!(shown.incident_active && shown.last_pass_at_us.is_some(), "{shown:?}");
    let during = pair(2, 1, "during an incident", now_us);
    client.incident(false, &at(now_us + 1)).wait().expect("its end");
    assert!(!status().incident_active);
    let behind = pair(2, 1, "behind it", now_us + 1);
    world.pass(now_us + 15 * MINUTE_US - 1);
    assert_eq!((aliases(&world, &during), aliases(&world, &behind)), (vec![], vec![(1, 0)]));
    world.pass(now_us + 15 * MINUTE_US);
    assert_eq!(aliases(&world, &during), [(1, 0)]);

    // A barrier holds what was claimed within the window before it, and nothing older.
    now_us += 30 * MINUTE_US;
    let old = claim(&client, "tools", "too old", START_US, now_us).event_id;
    let held = pair(2, 3, "held again", now_us + 1);
    now_us += 1 + 5 * MINUTE_US;
    world.pass(now_us - 1);
    assert_eq!(world.state(old).2, ReconciliationState::Clean);
    client.barrier(&at(now_us)).wait().expect("a barrier");
    world.rules.barriers.push(now_us);
    world.pass(now_us);
    assert_eq!(aliases(&world, &held), [], "closed but for the barrier");
    assert_eq!(world.state(held[0]).2, ReconciliationState::Pending);
    assert_eq!(world.state(old).2, ReconciliationState::Clean);
    let clean = claim(&client, "research", "clean before", START_US, now_us + 1).event_id;
    world.pass(now_us + 5 * MINUTE_US - 1);
    assert_eq!(aliases(&world, &held), []);
    world.crash();
    world.pass(now_us + 5 * MINUTE_US);
    assert_eq!(aliases(&world, &held), [(0, 1)]);
    let client = world.client.clone();
    // And what was clean is pending again.
    now_us += 5 * MINUTE_US + 1;
    world.pass(now_us);
    assert_eq!(world.state(clean).2, ReconciliationState::Clean);
    client.barrier(&at(now_us)).wait().expect("another barrier");
    world.rules.barriers.push(now_us);
    assert_eq!(world.state(clean).2, ReconciliationState::Pending);
    world.pass(now_us + 5 * MINUTE_US - 1);
    assert_eq!(world.state(clean).2, ReconciliationState::Pending);
    world.pass(now_us + 5 * MINUTE_US);
    assert_eq!(world.state(clean).2, ReconciliationState::Clean);
}

/// A linear congruential generator with Knuth's constants.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

#[test]
fn random_rows_come_out_as_the_reimplementation_says() {
    const STEPS: usize = 500;
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 1..=3 {
        println!("seed {seed}");
        random_run(seed, STEPS, &mut tally);
    }
    println!("{tally:?}");
    assert!(["merged", "suspects", "left alone", "orphans", "dismissed"].iter().all(|what| tally[what] > 0));
}

fn random_run(seed: u64, steps: usize, tally: &mut BTreeMap<&'static str, u64>) {
    let mut chance = Chance(seed);
    let mut world = World::new();
    let mut now_us = START_US;
    let (mut incident, mut open) = (false, Vec::new());
    for _ in 0..steps {
        let client = world.client.clone();
        now_us += chance.of(&[0, 0, 0, 1, 1_000_000, MINUTE_US]);
        match chance.below(100) {
            0..70 => {
                let key = format!("key {}", chance.below(12));
                let offset_us = chance.of(&[0, 1, 5, 5, 10]) * MINUTE_US + chance.of(&[-1, 0, 0, 0, 1]);
                claim(&client, chance.of(&CORPORA), &key, START_US + offset_us, now_us);
            }
            70..78 => {
                let report = world.pass(now_us).report;
                *tally.entry("merged").or_default() += report.merged;
                *tally.entry("suspects").or_default() += report.suspects;
                *tally.entry("left alone").or_default() += report.skipped_disputed;
                *tally.entry("orphans").or_default() += report.orphans;
            }
            78..80 => {
                incident = !incident;
                client.incident(incident, &at(now_us)).wait().expect("an incident, or its end");
            }
            80..82 => {
                client.barrier(&at(now_us)).wait().expect("a barrier");
                world.rules.barriers.push(now_us);
            }
            82..86 => {
                let rows = all_rows(&client);
                let registered: Vec<_> = rows.values().filter(|row| row.lifecycle == Lifecycle::Registered).collect();
                if let Some(row) = registered.get(chance.below(registered.len().max(1))) {
                    let retracted = client.retract(&row.corpus, row.event_id, ReasonCode::Other, &at(now_us)).wait();
                    retracted.expect("a retraction");
                }
            }
            86..88 => {
                let rows = all_rows(&client);
                let retracted: Vec<_> = rows.values().filter(|row| row.tombstone_reason_code.is_some()).collect();
                if let Some(row) = retracted.get(chance.below(retracted.len().max(1))) {
                    client.reactivate(row.event_id, &at(now_us)).wait().expect("a reactivation");
                }
            }
            88..94 => {
                let rows = all_rows(&client);
                let can_be =
                    |row: &&claim_client::Row| matches!(row.lifecycle, Lifecycle::Registered | Lifecycle::Referenced);
                let disputable: Vec<_> = rows.values().filter(can_be).collect();
                if incident || open.len() == 4 || disputable.is_empty() {
                    continue;
                }
                let first = chance.of(&disputable);
                let of_others: Vec<_> = disputable.iter().filter(|row| row.corpus != first.corpus).collect();
                let near: Vec<_> = of_others.iter().filter(|row| row.event_key == first.event_key).collect();
                let Some(second) = near.get(chance.below(near.len().max(1))) else { continue };
                let ids = [first.event_id, second.event_id];
                open.push((dispute(&client, &first.corpus, &ids, now_us), ids));
            }
            94..99 if !open.is_empty() => {
                let (dispute, ids) = open.remove(chance.below(open.len()));
                if chance.below(2) == 0 {
                    dismiss(&client, dispute, now_us);
                    world.rules.dismissed.push((ids[0], ids[1]));
                    *tally.entry("dismissed").or_default() += 1;
                } else {
                    let other = chance.of(&[DisputeVerdict::References, DisputeVerdict::Tombstone]);
                    let verdicts = [(ids[0], other), (ids[1], DisputeVerdict::Canonical)];
                    let verdicts = verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict });
                    client.arbitrate(dispute, &verdicts, &at(now_us)).wait().expect("a decision");
                    until(&client, dispute, claim_client::DisputeState::Closed);
                }
            }
            99 => world.crash(),
            _ => {}
        }
    }
    world.pass(now_us + 20 * MINUTE_US);
}

/// Event keys that two corpora have each.
const PAIRS: usize = 12_000;
/// With these the rows of a shard take more than the 16 MiB of blocks that it may have at hand.
const METADATA_BYTES: usize = 2_000;

#[test]
fn more_pairs_than_the_blocks_at_hand_are_merged() {
    let dir = harness::scratch();
    let data = dir.path().join("ledger");
    // Segments of 1 MiB, so that nearly all rows are sealed, and as few blocks at hand as there may be.
    let path = data.to_str().expect("our own path");
    let small = ["--segment-bytes", "1M", "--batch-bytes-max", "256K"];
    let format = [&["format", "--data", path, "--shards", "2", "--clock", "replay"][..], &small].concat();
    let formatted = harness::run(&format);
    assert!(formatted.status.success(), "{formatted:?}");
    let daemon = harness::Daemon::start_more(&data, &["--cache-mib", "16"]);
    let client = daemon.client();
    let corpora = ["customer", "compliance"];
    onboard(&client, &corpora, START_US);
    let metadata = [7; METADATA_BYTES];
    let keys: Vec<_> = (0..PAIRS).map(|n| format!("event-{n}")).collect();
    for (corpus, at_us) in corpora.into_iter().zip([START_US, START_US + 1_000]) {
        for some in keys.chunks(100) {
            let pair = |key| ClaimItem { occurred_at_us: START_US, metadata: &metadata, ..item(key) };
            let items: Vec<_> = some.iter().map(|key| pair(key)).collect();
            let claimed = client.claim_batch(corpus, &items, &at(at_us)).wait().expect("a batch").value;
            assert!(claimed.iter().all(Result::is_ok));
        }
    }
    let report = client.reconcile(false, &at(START_US + 24 * 60 * MINUTE_US)).wait().expect("a pass").value;
    let expected = [PAIRS as u64, PAIRS as u64, 0, 0];
    assert_eq!([report.groups, report.merged, report.refused, report.skipped_disputed], expected, "{report:?}");
    assert_eq!(report.rows_examined, 2 * PAIRS as u64);
    let rows = all_rows(&client);
    let aliases = rows.values().filter(|row| row.canonical_id.is_some());
    assert!(aliases.clone().all(|row| row.corpus == "compliance"), "the first claim stands for the event");
    assert_eq!((rows.len(), aliases.count()), (2 * PAIRS, PAIRS));
    daemon.stop();
}
