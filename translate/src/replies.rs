//! The engine's answers as the wire's.

use super::{Names, alarm, dispute_state, level, lifecycle, quarters, role_out, verdict_out};
use claim_engine::command::{self, Claimed, CorpusDetails, PassReport};
use claim_engine::corpus::Prefix;
use claim_engine::dispute::Dispute;
use claim_engine::engine::EngineStatus;
use claim_engine::id::EventId;
use claim_engine::log::end::Head;
use claim_engine::propagation::Propagation;
use claim_engine::retention::{Retention, RetentionPlan};
use claim_engine::shard::Shard;
use claim_engine::time::Quarter;
use claim_protocol as wire;
use claim_protocol::LogPosition;

/// A claim's result.
pub fn claimed(claimed: &Claimed) -> wire::reply::Claimed {
    wire::reply::Claimed {
        event_id: claimed.event_id.as_uuid(),
        claim_timestamp_us: claimed.claim_timestamp_us,
        claim_sequence: claimed.claim_sequence,
    }
}

/// A corpus with what its shard knows of it.
pub fn corpus(details: &CorpusDetails) -> wire::reply::CorpusInfo {
    let corpus = &details.corpus;
    wire::reply::CorpusInfo {
        name: corpus.name.clone(),
        shard_prefix: corpus.prefix.get(),
        shard: corpus.shard,
        onboarded_at_us: corpus.onboarded_at_us,
        decommissioned_at_us: corpus.decommissioned_at_us,
        notes: corpus.notes.clone(),
        claims: details.claims,
        frozen_reason: corpus.frozen.as_ref().map(|stop| stop.reason.clone()),
        frozen_at_us: corpus.frozen.as_ref().map(|stop| stop.at_us),
        slots: details.slots,
        claims_this_quarter: details.claims_this_quarter,
        cap_per_minute: corpus.cap_per_minute,
        alarms: details.alarms.iter().map(|kind| alarm(*kind)).collect(),
    }
}

/// A dispute.
pub fn dispute(dispute: &Dispute, names: &impl Names) -> wire::reply::DisputeInfo {
    let sides = dispute.sides.ids().iter().zip(&dispute.verdicts);
    let side = |(event_id, verdict): (&EventId, &Option<claim_engine::dispute::Verdict>)| wire::reply::DisputeSide {
        event_id: event_id.as_uuid(),
        corpus: names.corpus(Some(event_id.prefix())),
        verdict: verdict.map_or(wire::DisputeVerdict::None, verdict_out),
    };
    wire::reply::DisputeInfo {
        dispute_id: dispute.id.as_uuid(),
        state: dispute_state(dispute.state),
        opened_by: names.corpus(Some(dispute.opened_by)),
        opened_at_us: dispute.opened_at_us,
        updated_at_us: dispute.updated_at_us,
        rationale: dispute.rationale.clone(),
        sides: sides.map(side).collect(),
        canonical_id: dispute.canonical().map(EventId::as_uuid),
        responses: dispute.responses,
        dismissed: dispute.is_dismissed(),
    }
}

/// A proposal of more slots.
pub fn proposal(proposal: &command::Proposal, names: &impl Names) -> wire::reply::Proposal {
    let signature =
        |s: &command::Signature| wire::reply::Signature { role: role_out(s.role), uid: s.uid, at_us: s.at_us };
    wire::reply::Proposal {
        proposal: proposal.number,
        corpus: names.corpus(Some(proposal.prefix)),
        slots: proposal.slots,
        proposed_at_us: proposal.proposed_at_us,
        signatures: proposal.signatures.iter().map(signature).collect(),
        effective_from_us: proposal.effective_from_us,
    }
}

/// What a pass of reconciliation did.
pub fn report(report: &PassReport, names: &impl Names) -> wire::reply::ReconcileReport {
    let counts = &report.counts;
    wire::reply::ReconcileReport {
        dry_run: report.dry_run,
        pass: report.pass,
        at_us: report.at_us,
        rows_examined: counts.rows,
        groups: counts.groups,
        merged: counts.merged,
        already_merged: counts.aliases,
        skipped_disputed: counts.left_alone,
        refused: counts.refused,
        suspects: counts.suspects,
        orphans: counts.orphans,
        merges_listed: report
            .merges
            .iter()
            .map(|m| wire::reply::Merge { event_id: m.alias.as_uuid(), canonical_id: m.canonical.as_uuid() })
            .collect(),
        suspects_listed: report
            .suspects
            .iter()
            .map(|s| wire::reply::Suspect {
                corpus: names.corpus(Some(s.prefix)),
                event_ids: s.event_ids.iter().map(|id| id.as_uuid()).collect(),
            })
            .collect(),
        orphans_listed: report
            .orphans
            .iter()
            .map(|o| wire::reply::Orphan {
                event_id: o.event_id.as_uuid(),
                canonical_id: o.canonical_id.as_uuid(),
                lifecycle: lifecycle(o.state),
                references: o.references,
                is_alias: o.is_alias,
            })
            .collect(),
    }
}

/// Control totals.
pub fn totals(totals: &[command::Total], names: &impl Names) -> Vec<wire::reply::Total> {
    let permille = |a: u64, b: u64| (b > 0).then(|| u32::try_from(a.saturating_mul(1_000) / b).unwrap_or(u32::MAX));
    let total = |t: &command::Total| {
        let [registered, disputed, referenced, tombstoned] = t.rows;
        wire::reply::Total {
            corpus: names.corpus(Some(t.prefix)),
            quarter: t.quarter.to_string(),
            registered,
            disputed,
            referenced,
            tombstoned,
            slots: t.slots,
            over_budget: t.over_budget,
            growth_permille: t.claims_before.and_then(|before| permille(t.rows.iter().sum(), before)),
            tombstone_permille: permille(tombstoned, registered),
        }
    };
    totals.iter().map(total).collect()
}

/// The end of a shard's chain.
pub fn head(shard: u16, head: Head, timestamp_us: i64) -> wire::reply::Head {
    wire::reply::Head { shard, batch: head.batch, position: head.position, hash: head.hash, timestamp_us }
}

/// The configuration in force.
pub fn configuration(toml: String, at_us: i64, uid: u32, at: LogPosition) -> wire::reply::ReplyResult {
    wire::reply::ReplyResult::ConfigurationFound { toml, at_us, uid, position: at }
}

/// How long claims took until the corpora of one shard could see them.
pub fn pairs(shard: &Shard, propagation: &Propagation) -> Vec<wire::reply::Pair> {
    let here: Vec<_> = shard.registry().corpora().iter().filter(|corpus| corpus.shard == shard.number()).collect();
    let name = |prefix: Prefix| shard.registry().of_prefix(prefix).map(|corpus| corpus.name.as_str());
    let mut pairs = Vec::new();
    for (from, samples) in propagation.corpora() {
        let Some(from) = name(from) else { continue };
        for to in here.iter().filter(|to| to.name != from) {
            let budget_us = shard.policy().budget_us(from, &to.name, false);
            let (violations, _) = samples.over_us(budget_us);
            pairs.push(wire::reply::Pair {
                from: from.to_owned(),
                to: to.name.clone(),
                samples: samples.count,
                p50_us: samples.percentile_us(50) as u64,
                p95_us: samples.percentile_us(95) as u64,
                budget_us: budget_us as u64,
                violations,
            });
        }
    }
    pairs
}

/// One shard's part of a status report, in which nothing of scrubbing, of retention and of what lies below the file stands yet.
pub fn status(status: EngineStatus, core: u16) -> wire::reply::ShardStatus {
    wire::reply::ShardStatus {
        shard: status.shard,
        core,
        position: status.position,
        durable_position: status.durable_position,
        rows: status.rows,
        corpora: status.corpora,
        idempotency_keys: status.idempotency_keys,
        requests_held: status.requests_held,
        batches_written: status.batches_written,
        bytes_written: status.bytes_written,
        segments_used: status.segments_used,
        segments_prepared: status.segments_prepared,
        segment_bytes: status.segment_bytes,
        incarnation: status.incarnation,
        clock_held_us: status.clock_held_us,
        clock_suspect: status.clock_suspect,
        no_space: status.no_space,
        failed: status.failed,
        scrubbed_bytes: 0,
        scrub_rounds: 0,
        scrub_damaged: 0,
        scrub_first: None,
        level: level(status.level),
        debt_requests: status.debt_requests,
        debt_bytes: status.debt_bytes,
        open_disputes: status.open_disputes,
        refused_overload: status.refused_overload,
        rows_in_memory: status.rows_in_memory,
        segments_sealed: status.segments_sealed,
        segments_full: status.segments_full,
        index_bytes: status.index_bytes,
        cache_bytes: status.cache_bytes,
        cache_bytes_max: status.cache_bytes_max,
        cache_hits: status.cache_hits,
        cache_misses: status.cache_misses,
        log_bytes: status.log_bytes,
        free_bytes: status.ring_free_segments * status.segment_bytes,
        ring_segments: status.ring_segments,
        ring_free_segments: status.ring_free_segments,
        ..wire::reply::ShardStatus::default()
    }
}

/// What a shard's part of a status report says of retention: what was dropped, what is kept, and what goes next.
pub fn retention(
    status: wire::reply::ShardStatus,
    retention: &Retention,
    first_segment: u64,
    plan: RetentionPlan,
) -> wire::reply::ShardStatus {
    wire::reply::ShardStatus {
        first_segment,
        dropped_to: retention.dropped_to().map(|quarter| quarter.to_string()),
        quarter_seals: retention.seals.len() as u32,
        holds: retention.holds.keys().map(Quarter::to_string).collect(),
        retention_due: plan.quarters.map(quarters),
        retention_segments: plan.segments as u32,
        retention_bytes: plan.bytes,
        retention_rows: plan.rows,
        retention_carried: plan.carried,
        retention_waits_for: plan.waits_for,
        ..status
    }
}
