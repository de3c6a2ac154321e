//! One request of each operation and one reply of each kind, and the same with everything optional left out.
#![allow(dead_code, reason = "not every test needs all of them")]

use claim_protocol::{
    AlarmKind, AuditOperation, BATCH_ITEMS_MAX, CHAIN_HASH_BYTES, ClaimContent, ClaimItem, Claimed, ClockMode,
    CorpusInfo, DISPUTE_IDS_MAX, DisputeInfo, DisputeSide, DisputeState, DisputeVerdict, Entry, ErrorCode,
    ErrorOutcome, FRAME_BYTES_MAX, Head, Lifecycle, LogPosition, Merge, Operation, Orphan, OverloadLevel, Pair,
    Proposal, QUARTER_YEAR_MAX, QUARTER_YEAR_MIN, ReasonCode, ReconcileReport, ReconciliationState, ReplyResult, Role,
    Row, ServerError, ShardEndpoint, ShardStatus, Signature, StageTimes, StatusReport, Suspect, TAIL_WAIT_MS_MAX,
    Total, UNLESS_REGISTERED_MS_MAX, Uuid, Verdict, Welcome,
};

pub const ID: Uuid = Uuid::from_u128(0x0190_0000_0000_7abc_8def_0123_4567_89ab);
pub const KEY: Uuid = Uuid::from_u128(0x0190_0000_0001_7000_8000_0000_0000_0001);
const HASH: [u8; CHAIN_HASH_BYTES] = [0xfe; CHAIN_HASH_BYTES];

pub fn item() -> ClaimItem<'static> {
    ClaimItem {
        event_key: "key",
        occurred_at_us: -1,
        owning_corpus: "",
        hosting_corpus: "other",
        category: "root",
        taxonomy_version: 3,
        metadata: &[0, 255],
    }
}

pub fn operations() -> Vec<Operation<'static>> {
    let bare = ClaimItem { hosting_corpus: "", metadata: &[], taxonomy_version: 0, ..item() };
    vec![
        Operation::Hello { min_version: 1, max_version: 7, client: "test" },
        Operation::Hello { min_version: 0, max_version: 0, client: "" },
        Operation::Onboard { name: "bbolt", notes: "" },
        Operation::Onboard { name: "bbolt", notes: "a key-value store" },
        Operation::Corpora,
        Operation::Claim { corpus: "bbolt", item: item(), unless_registered_within_ms: 0 },
        Operation::Claim { corpus: "bbolt", item: bare, unless_registered_within_ms: UNLESS_REGISTERED_MS_MAX },
        Operation::ClaimBatch { corpus: "bbolt", items: vec![] },
        Operation::ClaimBatch { corpus: "bbolt", items: vec![item(), bare, item()] },
        Operation::Reference { corpus: "pd", event_id: ID },
        Operation::ReferenceBatch { corpus: "pd", event_ids: vec![] },
        Operation::ReferenceBatch { corpus: "pd", event_ids: vec![ID, KEY] },
        Operation::Retract { corpus: "pd", event_id: ID, reason_code: ReasonCode::Duplicate },
        Operation::Reactivate { event_id: ID },
        Operation::ConfirmClock,
        Operation::Lookup { event_id: ID },
        Operation::History { event_id: Some(ID), correlation_id: None, from: 7, since_us: None, until_us: None },
        Operation::History {
            event_id: None,
            correlation_id: Some(KEY),
            from: 0,
            since_us: Some(0),
            until_us: Some(i64::MIN),
        },
        Operation::Scan { corpus: "pd", since_us: None, until_us: None, after: None, limit: 0 },
        Operation::Scan { corpus: "pd", since_us: Some(0), until_us: Some(i64::MAX), after: Some(ID), limit: 10 },
        Operation::Status,
        Operation::Dispute { corpus: "pd", event_ids: vec![ID, KEY] },
        Operation::Dispute { corpus: "pd", event_ids: vec![ID; DISPUTE_IDS_MAX] },
        Operation::Respond { corpus: "pd", dispute_id: KEY },
        Operation::Arbitrate { dispute_id: KEY, dismissed: true, verdicts: vec![] },
        Operation::Arbitrate {
            dispute_id: KEY,
            dismissed: false,
            verdicts: vec![
                Verdict { event_id: ID, verdict: DisputeVerdict::Canonical },
                Verdict { event_id: KEY, verdict: DisputeVerdict::References },
                Verdict { event_id: KEY, verdict: DisputeVerdict::Tombstone },
            ],
        },
        Operation::Escalate { dispute_id: KEY },
        Operation::DisputeLookup { dispute_id: KEY },
        Operation::Disputes { corpus: "", include_closed: true, before: Some(KEY) },
        Operation::Disputes { corpus: "pd", include_closed: false, before: None },
        Operation::Decommission { name: "pd", dry_run: true },
        Operation::Decommission { name: "pd", dry_run: false },
        Operation::Freeze { corpus: "", frozen: true },
        Operation::Freeze { corpus: "pd", frozen: false },
        Operation::Cap { corpus: "pd", claims_per_minute: 0 },
        Operation::Cap { corpus: "pd", claims_per_minute: u32::MAX },
        Operation::ProposeSlots { corpus: "pd", slots: u64::MAX },
        Operation::SignOff { proposal: 7, role: Role::Manager },
        Operation::SignOff { proposal: u64::MAX, role: Role::Client },
        Operation::Proposals,
        Operation::Incident { active: true },
        Operation::Incident { active: false },
        Operation::Barrier,
        Operation::Reconcile { dry_run: true },
        Operation::Reconcile { dry_run: false },
        Operation::Find { event_key: "key", from: 3 << 48 | 9 },
        Operation::Totals { corpus: "" },
        Operation::Totals { corpus: "pd" },
        Operation::Tail { shard: 0, from_position: 0, limit: 0, wait_ms: 0 },
        Operation::Tail { shard: 65_535, from_position: u64::MAX, limit: u32::MAX, wait_ms: TAIL_WAIT_MS_MAX },
        Operation::AuditHead,
        Operation::AuditCheck { shard: 1, batch: 2, position: 3, hash: HASH },
        Operation::Configuration,
        Operation::Propagation,
        Operation::Hold { year: QUARTER_YEAR_MIN, quarter: 1, held: true },
        Operation::Hold { year: QUARTER_YEAR_MAX, quarter: 4, held: false },
    ]
}

pub fn claimed() -> Claimed {
    Claimed { event_id: ID, claim_timestamp_us: 1_700_000_000_000_000, claim_sequence: 42 }
}

pub fn error() -> ServerError {
    ServerError {
        code: ErrorCode::Overloaded,
        outcome: ErrorOutcome::Definite,
        message: "the shard holds 16,384 requests; retry later".to_owned(),
        retry_after_ms: 20,
        registered_id: None,
    }
}

pub fn corpus() -> CorpusInfo {
    CorpusInfo {
        name: "bbolt".to_owned(),
        shard_prefix: 7,
        shard: 1,
        onboarded_at_us: 5,
        decommissioned_at_us: Some(6),
        notes: "n".to_owned(),
        claims: 3,
        frozen_reason: Some("audit".to_owned()),
        frozen_at_us: Some(0),
        slots: 50_000,
        claims_this_quarter: 2,
        cap_per_minute: 60,
        alarms: AlarmKind::ALL.to_vec(),
    }
}

pub fn row() -> Row {
    Row {
        event_id: ID,
        corpus: "bbolt".to_owned(),
        lifecycle: Lifecycle::Tombstoned,
        claim_timestamp_us: 1,
        claim_sequence: 2,
        event_key: "key".to_owned(),
        occurred_at_us: 3,
        owning_corpus: "bbolt".to_owned(),
        hosting_corpus: "pd".to_owned(),
        category: "root".to_owned(),
        taxonomy_version: 4,
        metadata: vec![1, 2, 3],
        canonical_id: Some(KEY),
        tombstoned_at_us: Some(0),
        tombstone_reason_code: Some(ReasonCode::Other),
        tombstone_reason: Some(String::new()),
        reactivated_at_us: Some(9),
        dispute_id: Some(KEY),
        reconciliation_state: ReconciliationState::Deferred,
        over_budget: true,
        incident_active: true,
        effective_quarter: "2026-Q1".to_owned(),
        reactivation_quarter: Some("2026-Q2".to_owned()),
        retention_expires_at_us: 10,
        references: 11,
    }
}

/// A row of which nothing became, each another.
pub fn plain(n: usize) -> Row {
    Row {
        event_id: Uuid::from_u128(ID.as_u128() + n as u128),
        claim_timestamp_us: -1 - n as i64,
        claim_sequence: u64::MAX - n as u64,
        occurred_at_us: n as i64,
        event_key: "k".repeat(n % 9 + 1),
        owning_corpus: if n.is_multiple_of(3) { "b".to_owned() } else { row().corpus },
        metadata: vec![n as u8; n % 13],
        taxonomy_version: n as u32,
        references: u32::MAX * (n as u32 % 2),
        over_budget: n.is_multiple_of(2),
        incident_active: n.is_multiple_of(3),
        lifecycle: if n.is_multiple_of(5) { Lifecycle::Expired } else { Lifecycle::Registered },
        reconciliation_state: if n.is_multiple_of(7) {
            ReconciliationState::Clean
        } else {
            ReconciliationState::Pending
        },
        retention_expires_at_us: i64::MAX - n as i64,
        canonical_id: None,
        tombstoned_at_us: None,
        tombstone_reason_code: None,
        tombstone_reason: None,
        reactivated_at_us: None,
        dispute_id: None,
        reactivation_quarter: None,
        ..row()
    }
}

pub fn entry() -> Entry {
    Entry {
        position: LogPosition { shard: 1, position: 8 },
        operation: AuditOperation::Tombstone,
        corpus: "bbolt".to_owned(),
        event_id: Some(ID),
        timestamp_us: 1,
        uid: 2,
        gid: 3,
        pid: 4,
        rationale: "because".to_owned(),
        correlation_id: Some(KEY),
        idempotency_key: Some(KEY),
        reason_code: Some(ReasonCode::FalseAlarm),
        user_name: "ada".to_owned(),
        dispute_id: Some(KEY),
        canonical_id: Some(ID),
        detail: "registered".to_owned(),
        event_ids: vec![ID, KEY],
        claim: Some(Box::new(ClaimContent {
            event_key: "key".to_owned(),
            occurred_at_us: 5,
            owning_corpus: "owner".to_owned(),
            hosting_corpus: "host".to_owned(),
            category: "dunning".to_owned(),
            taxonomy_version: 6,
            metadata: vec![7, 8],
        })),
        configuration: "[slots]".to_owned(),
        global_sequence: 9,
    }
}

fn dispute() -> DisputeInfo {
    DisputeInfo {
        dispute_id: KEY,
        state: DisputeState::Escalate,
        opened_by: "pd".to_owned(),
        opened_at_us: -1,
        updated_at_us: 2,
        rationale: "two rows, one event".to_owned(),
        sides: vec![
            DisputeSide { event_id: ID, corpus: "pd".to_owned(), verdict: DisputeVerdict::Canonical },
            DisputeSide { event_id: KEY, corpus: "bbolt".to_owned(), verdict: DisputeVerdict::None },
        ],
        canonical_id: Some(ID),
        responses: 3,
        dismissed: true,
    }
}

fn proposal() -> Proposal {
    Proposal {
        proposal: 1,
        corpus: "pd".to_owned(),
        slots: 60_000,
        proposed_at_us: 2,
        signatures: vec![
            Signature { role: Role::Platform, uid: 3, at_us: 4 },
            Signature { role: Role::Client, uid: 0, at_us: 0 },
        ],
        effective_from_us: Some(0),
    }
}

fn total() -> Total {
    Total {
        corpus: "pd".to_owned(),
        quarter: "2026-Q1".to_owned(),
        registered: 1,
        disputed: 2,
        referenced: 3,
        tombstoned: 4,
        slots: 5,
        over_budget: 6,
        growth_permille: Some(0),
        tombstone_permille: Some(7),
    }
}

fn report() -> ReconcileReport {
    ReconcileReport {
        dry_run: true,
        pass: 1,
        at_us: 2,
        rows_examined: 3,
        groups: 4,
        merged: 5,
        already_merged: 6,
        skipped_disputed: 7,
        refused: 8,
        suspects: 9,
        orphans: 10,
        merges_listed: vec![Merge { event_id: ID, canonical_id: KEY }],
        suspects_listed: vec![Suspect { corpus: "pd".to_owned(), event_ids: vec![ID, KEY] }],
        orphans_listed: vec![Orphan {
            event_id: ID,
            canonical_id: KEY,
            lifecycle: Lifecycle::Tombstoned,
            references: 1,
            is_alias: true,
        }],
    }
}

pub fn results() -> Vec<ReplyResult> {
    let shard = ShardStatus {
        shard: 1,
        rows: 5,
        no_space: true,
        failed: Some("EIO".to_owned()),
        scrub_damaged: 2,
        scrub_first: Some("there".to_owned()),
        level: OverloadLevel::Red,
        debt_requests: 3,
        debt_bytes: 4,
        open_disputes: 5,
        refused_overload: 6,
        first_segment: 7,
        dropped_to: Some("2020-Q4".to_owned()),
        quarter_seals: 8,
        holds: vec!["2021-Q2".to_owned(), "2022-Q1".to_owned()],
        retention_due: Some("2021-Q1 to 2021-Q3".to_owned()),
        retention_segments: 9,
        retention_bytes: 10,
        retention_rows: 11,
        retention_carried: 12,
        retention_waits_for: Some("a hold on 2021-Q2: an audit".to_owned()),
        stages: vec![
            StageTimes {
                name: "step".to_owned(),
                count: 8,
                mean_ns: 7,
                p50_ns: 6,
                p90_ns: 5,
                p99_ns: 4,
                p999_ns: 3,
                max_ns: u64::MAX,
            },
            StageTimes::default(),
        ],
        ring_segments: 13,
        ring_free_segments: 14,
        ..Default::default()
    };
    let bare_row = Row {
        metadata: vec![],
        reconciliation_state: ReconciliationState::Pending,
        over_budget: false,
        incident_active: false,
        effective_quarter: String::new(),
        lifecycle: Lifecycle::Registered,
        ..plain(1)
    };
    let bare_entry = Entry {
        corpus: String::new(),
        event_id: None,
        rationale: String::new(),
        correlation_id: None,
        idempotency_key: None,
        reason_code: None,
        user_name: String::new(),
        dispute_id: None,
        canonical_id: None,
        detail: String::new(),
        event_ids: vec![],
        claim: None,
        configuration: String::new(),
        global_sequence: 0,
        ..entry()
    };
    vec![
        ReplyResult::Welcome(Welcome {
            version: 1,
            daemon: "claimd 0.1.0".to_owned(),
            ledger: ID,
            clock: ClockMode::Replay,
            shards: vec![ShardEndpoint { shard: 0, socket: "/run/claimd-0.sock".to_owned() }],
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            batch_items_max: BATCH_ITEMS_MAX as u32,
        }),
        ReplyResult::Onboarded(corpus()),
        ReplyResult::Corpora(vec![
            corpus(),
            CorpusInfo {
                decommissioned_at_us: None,
                notes: String::new(),
                frozen_reason: None,
                frozen_at_us: None,
                alarms: vec![],
                ..corpus()
            },
        ]),
        ReplyResult::Claimed(claimed()),
        ReplyResult::ClaimedBatch(vec![Ok(claimed()), Err(error())]),
        ReplyResult::Referenced(ID),
        ReplyResult::ReferencedBatch(vec![Err(error()), Ok(ID)]),
        ReplyResult::Retracted { event_id: ID, tombstoned_at_us: 0 },
        ReplyResult::Reactivated { event_id: ID, reactivated_at_us: -5 },
        ReplyResult::ClockConfirmed { confirmed_at_us: 1 },
        ReplyResult::Row(Box::new(row())),
        ReplyResult::Row(Box::new(bare_row.clone())),
        ReplyResult::History { entries: vec![entry(), bare_entry.clone()], next: Some(4), related: vec![KEY, ID] },
        ReplyResult::History { entries: vec![], next: None, related: vec![] },
        ReplyResult::ScanPage { rows: vec![], next: None },
        ReplyResult::ScanPage { rows: vec![row(), plain(1), bare_row.clone(), plain(2)], next: Some(ID) },
        ReplyResult::Status(Box::new(StatusReport {
            daemon: "claimd 0.1.0".to_owned(),
            ledger: ID,
            clock: ClockMode::Wall,
            clock_synchronised: true,
            uptime_ms: 1,
            cores: 2,
            connections: 3,
            stall_wakes: 4,
            shards: vec![shard, ShardStatus::default()],
            incident_active: true,
            frozen_reason: Some("audit".to_owned()),
            last_pass_at_us: Some(0),
            policy_at_us: Some(1),
            archive_at_us: Some(2),
            archive_error: Some("the backup's device is full".to_owned()),
            drill_at_us: Some(0),
            drill_rto_ms: u64::MAX,
            drill_rpo_ms: Some(-1),
        })),
        ReplyResult::Error(error()),
        ReplyResult::Error(ServerError { outcome: ErrorOutcome::Unknown, code: ErrorCode::BadRequest, ..error() }),
        ReplyResult::Error(ServerError {
            code: ErrorCode::AlreadyRegistered,
            registered_id: Some(ID),
            retry_after_ms: 0,
            ..error()
        }),
        ReplyResult::Disputed(dispute()),
        ReplyResult::DisputeList { disputes: vec![], next: None },
        ReplyResult::DisputeList { disputes: vec![], next: Some(KEY) },
        ReplyResult::DisputeList {
            next: None,
            disputes: vec![
                dispute(),
                DisputeInfo {
                    rationale: String::new(),
                    sides: vec![],
                    canonical_id: None,
                    dismissed: false,
                    ..dispute()
                },
            ],
        },
        ReplyResult::Decommissioned { corpus: corpus(), applied: true, rows: 1, aliases_elsewhere: 2 },
        ReplyResult::Frozen { corpus: String::new(), frozen: true, at_us: -1 },
        ReplyResult::Frozen { corpus: "pd".to_owned(), frozen: false, at_us: 1 },
        ReplyResult::Capped { corpus: "pd".to_owned(), claims_per_minute: 60, at_us: 1 },
        ReplyResult::Proposal(proposal()),
        ReplyResult::ProposalList(vec![
            proposal(),
            Proposal { signatures: vec![], effective_from_us: None, ..proposal() },
        ]),
        ReplyResult::TotalsFound(vec![total(), Total { growth_permille: None, tombstone_permille: None, ..total() }]),
        ReplyResult::IncidentSet { active: true, at_us: 1 },
        ReplyResult::BarrierRaised { at_us: 1 },
        ReplyResult::Reconciled(Box::new(report())),
        ReplyResult::Reconciled(Box::default()),
        ReplyResult::Found { rows: vec![plain(3), row(), bare_row], next: Some(9) },
        ReplyResult::Found { rows: vec![], next: None },
        ReplyResult::TailPage { entries: vec![entry(), bare_entry], next_position: 10, durable_position: 12 },
        ReplyResult::TailPage { entries: vec![], next_position: 10, durable_position: 9 },
        ReplyResult::AuditHeads(vec![
            Head { shard: 0, batch: 1, position: 2, hash: HASH, timestamp_us: 3 },
            Head { shard: 1, batch: 0, position: 0, hash: [0; CHAIN_HASH_BYTES], timestamp_us: 0 },
        ]),
        ReplyResult::AuditChecked { shard: 1, ok: true, message: String::new(), batches_verified: 7 },
        ReplyResult::AuditChecked { shard: 1, ok: false, message: "batch 3 differs".to_owned(), batches_verified: 2 },
        ReplyResult::ConfigurationFound {
            toml: "[dispute]".to_owned(),
            at_us: 1,
            uid: 2,
            position: LogPosition { shard: 0, position: 3 },
        },
        ReplyResult::PropagationFound(vec![Pair {
            from: "a".to_owned(),
            to: "b".to_owned(),
            samples: 1,
            p50_us: 2,
            p95_us: 3,
            budget_us: 4,
            violations: 5,
        }]),
        ReplyResult::Held { year: 2021, quarter: 2, held: true, at_us: 1 },
        ReplyResult::Held { year: 1970, quarter: 1, held: false, at_us: -1 },
    ]
}
