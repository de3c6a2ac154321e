//! Every operation that is not about a single row: what is sent where, and what comes back.

mod fake;
#[path = "../../protocol/tests/samples/mod.rs"]
mod samples;

use claim_client::{
    AuditChecked, ClaimItem, Client, ClientOptions, ClockMode, Configuration, Decommissioned, DisputePage,
    DisputeVerdict, ErrorCode, FoundPage, Head, HistoryQuery, HistorySubject, LogPosition, Registration,
    RequestOptions, Role, TailOptions, TailPage, Verdict,
};
use claim_protocol::ReplyResult;
use fake::{Action, Fake, refusal};
use samples::{ID, KEY};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// What was asked, and on which shard's socket.
type Asked = Arc<Mutex<Vec<(Option<u16>, String)>>>;

struct Stage {
    _directory: TempDir,
    fake: Fake,
    client: Client,
    options: RequestOptions,
}

fn start() -> Stage {
    let directory = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(directory.path(), 2, ClockMode::Wall);
    fake.onboard("zero", 0);
    fake.onboard("one", 1);
    let client = Client::connect_with(fake.socket(), ClientOptions::default()).expect("the daemon is there");
    let options = RequestOptions { rationale: "why".to_owned(), ..RequestOptions::default() };
    Stage { _directory: directory, fake, client, options }
}

impl Stage {
    /// From now on the daemon answers with `result`.
    fn answer(&self, result: ReplyResult) -> Asked {
        let asked = Asked::default();
        let notes = Arc::clone(&asked);
        self.fake.script(move |seen, request| {
            assert_eq!((request.rationale, request.operation.is_mutating()), ("why", seen.key.is_some()));
            notes.lock().expect("notes").push((seen.socket, format!("{:?}", request.operation)));
            Action::Reply(result.clone())
        });
        asked
    }

    /// One call: `value` comes back where the daemon answers with `result`, after `asks` on `socket`.
    fn check<T: PartialEq + Debug>(
        &self,
        result: ReplyResult,
        call: impl FnOnce(&Client, &RequestOptions) -> claim_client::Pending<T>,
        socket: Option<u16>,
        asks: &str,
        value: &T,
    ) {
        let asked = self.answer(result);
        assert_eq!(&call(&self.client, &self.options).wait().expect("answered").value, value, "{asks}");
        assert_eq!(asked.lock().expect("notes").as_slice(), [(socket, asks.to_owned())]);
    }
}

fn sample(is: fn(&ReplyResult) -> bool) -> ReplyResult {
    samples::results().into_iter().find(is).expect("a sample")
}

#[test]
fn disputes() {
    let stage = start();
    let result = sample(|result| matches!(result, ReplyResult::Disputed(_)));
    let ReplyResult::Disputed(info) = result.clone() else { unreachable!("looked for") };
    let main = |call: fn(&Client, &RequestOptions) -> claim_client::Pending<_>, asks: String| {
        stage.check(result.clone(), call, None, &asks, &info);
    };
    main(
        |client, options| client.dispute("one", &[ID, KEY], options),
        format!("Dispute {{ corpus: \"one\", event_ids: [{ID}, {KEY}] }}"),
    );
    main(
        |client, options| client.respond("one", ID, options),
        format!("Respond {{ corpus: \"one\", dispute_id: {ID} }}"),
    );
    let decided =
        format!("Verdict {{ event_id: {ID}, verdict: Canonical }}, Verdict {{ event_id: {KEY}, verdict: Tombstone }}");
    main(
        |client, options| {
            let verdicts = [(ID, DisputeVerdict::Canonical), (KEY, DisputeVerdict::Tombstone)];
            client.arbitrate(KEY, &verdicts.map(|(event_id, verdict)| Verdict { event_id, verdict }), options)
        },
        format!("Arbitrate {{ dispute_id: {KEY}, dismissed: false, verdicts: [{decided}] }}"),
    );
    main(
        |client, options| client.dismiss(KEY, options),
        format!("Arbitrate {{ dispute_id: {KEY}, dismissed: true, verdicts: [] }}"),
    );
    main(|client, options| client.escalate(KEY, options), format!("Escalate {{ dispute_id: {KEY} }}"));
    main(|client, options| client.dispute_lookup(KEY, options), format!("DisputeLookup {{ dispute_id: {KEY} }}"));
    stage.check(
        ReplyResult::DisputeList { disputes: vec![info.clone()], next: Some(KEY) },
        |client, options| client.disputes_page("one", true, Some(ID), options),
        None,
        &format!("Disputes {{ corpus: \"one\", include_closed: true, before: Some({ID}) }}"),
        &DisputePage { disputes: vec![info], next: Some(KEY) },
    );
}

#[test]
fn the_registry() {
    let stage = start();
    let corpus = samples::corpus();
    stage.check(
        ReplyResult::Decommissioned { corpus: corpus.clone(), applied: true, rows: 2, aliases_elsewhere: 3 },
        |client, options| client.decommission("one", false, options),
        None,
        "Decommission { name: \"one\", dry_run: false }",
        &Decommissioned { corpus, applied: true, rows: 2, aliases_elsewhere: 3 },
    );
    let frozen = ReplyResult::Frozen { corpus: "one".to_owned(), frozen: true, at_us: 7 };
    let asks = "Freeze { corpus: \"one\", frozen: true }";
    stage.check(frozen.clone(), |client, options| client.freeze("one", options), None, asks, &7);
    let asks = "Freeze { corpus: \"\", frozen: false }";
    stage.check(frozen, |client, options| client.unfreeze("", options), None, asks, &7);
    let held = ReplyResult::Held { year: 2021, quarter: 2, held: true, at_us: 7 };
    let asks = "Hold { year: 2021, quarter: 2, held: true }";
    stage.check(held.clone(), |client, options| client.hold(2021, 2, options), None, asks, &7);
    let asks = "Hold { year: 2021, quarter: 2, held: false }";
    stage.check(held, |client, options| client.release(2021, 2, options), None, asks, &7);
    let capped = ReplyResult::Capped { corpus: "one".to_owned(), claims_per_minute: 60, at_us: 7 };
    let asks = "Cap { corpus: \"one\", claims_per_minute: 60 }";
    stage.check(capped, |client, options| client.cap("one", 60, options), None, asks, &7);

    let result = sample(|result| matches!(result, ReplyResult::Proposal(_)));
    let ReplyResult::Proposal(proposal) = result.clone() else { unreachable!("looked for") };
    let asks = "ProposeSlots { corpus: \"one\", slots: 9 }";
    stage.check(result.clone(), |client, options| client.propose_slots("one", 9, options), None, asks, &proposal);
    let asks = "SignOff { proposal: 1, role: Facilitator }";
    stage.check(result, |client, options| client.sign_off(1, Role::Facilitator, options), None, asks, &proposal);
    let list = ReplyResult::ProposalList(vec![proposal.clone()]);
    stage.check(list, |client, options| client.proposals(options), None, "Proposals", &vec![proposal]);
    let result = sample(|result| matches!(result, ReplyResult::TotalsFound(_)));
    let ReplyResult::TotalsFound(totals) = result.clone() else { unreachable!("looked for") };
    let asks = "Totals { corpus: \"one\" }";
    stage.check(result, |client, options| client.totals("one", options), None, asks, &totals);
}

#[test]
fn reconciliation() {
    let stage = start();
    let set = ReplyResult::IncidentSet { active: true, at_us: 7 };
    stage.check(set, |client, options| client.incident(true, options), None, "Incident { active: true }", &7);
    let raised = ReplyResult::BarrierRaised { at_us: 7 };
    stage.check(raised, |client, options| client.barrier(options), None, "Barrier", &7);
    let result = sample(|result| matches!(result, ReplyResult::Reconciled(_)));
    let ReplyResult::Reconciled(report) = result.clone() else { unreachable!("looked for") };
    let asks = "Reconcile { dry_run: true }";
    stage.check(result, |client, options| client.reconcile(true, options), None, asks, &*report);
    let found = ReplyResult::Found { rows: vec![samples::row()], next: Some(9) };
    let asks = "Find { event_key: \"key\", from: 8 }";
    let page = FoundPage { rows: vec![samples::row()], next: Some(9) };
    stage.check(found, |client, options| client.find_page("key", 8, options), None, asks, &page);
    let result = sample(|result| matches!(result, ReplyResult::PropagationFound(_)));
    let ReplyResult::PropagationFound(pairs) = result.clone() else { unreachable!("looked for") };
    stage.check(result, |client, options| client.propagation(options), None, "Propagation", &pairs);
}

#[test]
fn the_log() {
    let stage = start();
    let head = Head { shard: 1, batch: 2, position: 3, hash: [4; 32], timestamp_us: 5 };
    let heads = ReplyResult::AuditHeads(vec![head]);
    stage.check(heads, |client, options| client.audit_heads(options), None, "AuditHead", &vec![head]);
    let checked = AuditChecked { shard: 1, ok: false, message: "no".to_owned(), batches_verified: 2 };
    let AuditChecked { shard, ok, message, batches_verified } = checked.clone();
    stage.check(
        ReplyResult::AuditChecked { shard, ok, message, batches_verified },
        |client, options| client.audit_check(&head, options),
        Some(1),
        &format!("AuditCheck {{ shard: 1, batch: 2, position: 3, hash: {:?} }}", [4; 32]),
        &checked,
    );
    let position = LogPosition { shard: 0, position: 9 };
    let (toml, at_us, uid) = ("[roles]".to_owned(), 7, 8);
    stage.check(
        ReplyResult::ConfigurationFound { toml: toml.clone(), at_us, uid, position },
        |client, options| client.configuration(options),
        None,
        "Configuration",
        &Configuration { toml, at_us, uid, position },
    );
    // By a correlation id entries of all shards are found; a row's stand on the shard of its corpus.
    let query = HistoryQuery { subject: HistorySubject::Correlation(ID), since_us: Some(1), until_us: None };
    let asked = stage.answer(ReplyResult::History { entries: vec![], next: None, related: vec![KEY] });
    let page = stage.client.history_page(query, 7, &stage.options).wait().expect("answered").value;
    assert_eq!((page.entries, page.next, page.related), (vec![], None, vec![KEY]));
    let asks =
        format!("History {{ event_id: None, correlation_id: Some({ID}), from: 7, since_us: Some(1), until_us: None }}");
    assert_eq!(asked.lock().expect("notes").as_slice(), [(None, asks)]);
}

#[test]
fn a_tail_waits_for_less_than_its_deadline() {
    let stage = start();
    for (wait, deadline, wait_ms) in [
        (Duration::ZERO, 30_000, 0),
        (Duration::from_secs(7), 30_000, 7_000),
        (Duration::from_secs(20), 30_000, 15_000),
        (Duration::from_secs(600), 600_000, 60_000),
    ] {
        let page = TailPage { entries: vec![samples::entry()], next_position: 9, durable_position: 8 };
        let TailPage { entries, next_position, durable_position } = page.clone();
        stage.check(
            ReplyResult::TailPage { entries, next_position, durable_position },
            |client, options| {
                let options = RequestOptions { deadline: Some(Duration::from_millis(deadline)), ..options.clone() };
                client.tail_page(TailOptions { shard: 1, from_position: 5, page_entries: 3, wait }, &options)
            },
            Some(1),
            &format!("Tail {{ shard: 1, from_position: 5, limit: 3, wait_ms: {wait_ms} }}"),
            &page,
        );
    }
}

#[test]
fn the_pages_of_a_tail_end_where_nothing_is_waited_for() {
    let stage = start();
    // Positions 1 to 5 are durable; a page ends behind each second one, and those in between are no entries.
    let log = |from: u64| {
        let next_position = (from.max(1) + 2).min(6).max(from);
        ReplyResult::TailPage { entries: vec![], next_position, durable_position: 5 }
    };
    stage.fake.script(move |_, request| {
        let claim_protocol::Operation::Tail { from_position, .. } = request.operation else { panic!("{request:?}") };
        Action::Reply(log(from_position))
    });
    let tail = |wait| TailOptions { shard: 0, from_position: 0, page_entries: 0, wait };
    let mut pages = stage.client.tail(tail(Duration::ZERO), &stage.options);
    let seen: Vec<_> = pages.by_ref().map(|page| page.expect("answered").next_position).collect();
    assert_eq!((seen, pages.next_position()), (vec![3, 5, 6], 6));
    let endless = stage.client.tail(tail(Duration::from_millis(1)), &stage.options);
    assert_eq!(endless.take(5).map(|page| page.expect("answered").next_position).collect::<Vec<_>>(), [3, 5, 6, 6, 6]);
    stage.fake.script(|_, _| Action::Refuse(refusal(ErrorCode::ShardFailed, 0)));
    let failing = stage.client.tail(tail(Duration::from_millis(1)), &stage.options);
    assert_eq!(failing.map(|page| page.is_err()).collect::<Vec<_>>(), [true]);
}

#[test]
fn a_claim_unless_registered_has_two_answers() {
    let stage = start();
    let item = ClaimItem {
        event_key: "key",
        occurred_at_us: 1,
        owning_corpus: "",
        hosting_corpus: "",
        category: "root",
        taxonomy_version: 1,
        metadata: b"",
    };
    let claim = |within: Duration| stage.client.claim_unless_registered("one", &item, within, &stage.options).wait();
    let asked = stage.answer(ReplyResult::Claimed(samples::claimed()));
    let made = claim(Duration::from_secs(60)).expect("answered");
    assert_eq!(made.value, Registration::Registered(samples::claimed()));
    // Less than a millisecond is no plain claim.
    claim(Duration::from_nanos(1)).expect("answered");
    for ((socket, operation), within_ms) in asked.lock().expect("notes").iter().zip([60_000, 1]) {
        assert_eq!(*socket, Some(1));
        assert!(operation.ends_with(&format!("unless_registered_within_ms: {within_ms} }}")), "{operation}");
    }
    for within in [Duration::from_secs(86_401), Duration::MAX] {
        let error = claim(within).expect_err("too long");
        assert!(error.to_string().contains("at most 86400000 are allowed"), "{error}");
    }
    stage.fake.script(|_, _| {
        let mut error = refusal(ErrorCode::AlreadyRegistered, 0);
        error.registered_id = Some(ID);
        Action::Refuse(error)
    });
    let found = claim(Duration::from_secs(60)).expect("an answer, too");
    assert_eq!(found.value, Registration::Already { event_id: ID });
    assert!(found.idempotency_key.is_some());
    // Any other refusal is one.
    stage.fake.script(|_, _| Action::Refuse(refusal(ErrorCode::Frozen, 0)));
    assert_eq!(claim(Duration::from_secs(60)).expect_err("refused").code(), Some(ErrorCode::Frozen));
}
