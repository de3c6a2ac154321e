//! Corpora, their slots and what they hold.

use super::Encoded;
use crate::Builder;
use crate::generated::claimd as wire;
use crate::reply::{CorpusInfo, Proposal, Signature, Total};
use crate::wire_values::optional_string;
use flatbuffers::WIPOffset;

pub(super) fn encode_corpus<'b>(builder: &mut Builder, corpus: &CorpusInfo) -> WIPOffset<wire::CorpusInfo<'b>> {
    let name = Some(builder.create_string(&corpus.name));
    let notes = optional_string(builder, &corpus.notes);
    let frozen_reason = corpus.frozen_reason.as_ref().map(|reason| builder.create_string(reason));
    let alarms = (!corpus.alarms.is_empty()).then(|| {
        let alarms = corpus.alarms.iter().map(|alarm| wire::AlarmKind(*alarm as u8));
        builder.create_vector_from_iter(alarms)
    });
    let table = wire::CorpusInfo::create(
        builder,
        &wire::CorpusInfoArgs {
            name,
            shard_prefix: corpus.shard_prefix,
            shard: corpus.shard,
            onboarded_at_us: corpus.onboarded_at_us,
            decommissioned_at_us: corpus.decommissioned_at_us,
            notes,
            claims: corpus.claims,
            frozen_reason,
            frozen_at_us: corpus.frozen_at_us,
            slots: corpus.slots,
            claims_this_quarter: corpus.claims_this_quarter,
            cap_per_minute: corpus.cap_per_minute,
            alarms,
        },
    );
    WIPOffset::new(table.value())
}

pub(super) fn decommissioned(
    builder: &mut Builder,
    corpus: &CorpusInfo,
    applied: bool,
    rows: u64,
    aliases_elsewhere: u64,
) -> Encoded {
    let corpus = Some(encode_corpus(builder, corpus));
    let args = wire::DecommissionedArgs { corpus, applied, rows, aliases_elsewhere };
    (wire::ReplyResult::Decommissioned, wire::Decommissioned::create(builder, &args).as_union_value())
}

pub(super) fn frozen(builder: &mut Builder, corpus: &str, frozen: bool, at_us: i64) -> Encoded {
    let corpus = optional_string(builder, corpus);
    let table = wire::Frozen::create(builder, &wire::FrozenArgs { corpus, frozen, at_us });
    (wire::ReplyResult::Frozen, table.as_union_value())
}

pub(super) fn capped(builder: &mut Builder, corpus: &str, claims_per_minute: u32, at_us: i64) -> Encoded {
    let corpus = Some(builder.create_string(corpus));
    let table = wire::Capped::create(builder, &wire::CappedArgs { corpus, claims_per_minute, at_us });
    (wire::ReplyResult::Capped, table.as_union_value())
}

pub(super) fn proposal(builder: &mut Builder, proposal: &Proposal) -> Encoded {
    (wire::ReplyResult::Proposal, encode_proposal(builder, proposal).as_union_value())
}

pub(super) fn proposals(builder: &mut Builder, proposals: &[Proposal]) -> Encoded {
    let proposals: Vec<_> = proposals.iter().map(|proposal| encode_proposal(builder, proposal)).collect();
    let proposals = Some(builder.create_vector(&proposals));
    let table = wire::ProposalList::create(builder, &wire::ProposalListArgs { proposals });
    (wire::ReplyResult::ProposalList, table.as_union_value())
}

fn encode_proposal<'b>(builder: &mut Builder, proposal: &Proposal) -> WIPOffset<wire::Proposal<'b>> {
    let signatures: Vec<_> = proposal
        .signatures
        .iter()
        .map(|&Signature { role, uid, at_us }| {
            wire::Signature::create(builder, &wire::SignatureArgs { role: wire::Role(role as u8), uid, at_us })
        })
        .collect();
    let signatures = Some(builder.create_vector(&signatures));
    let corpus = Some(builder.create_string(&proposal.corpus));
    let table = wire::Proposal::create(
        builder,
        &wire::ProposalArgs {
            proposal: proposal.proposal,
            corpus,
            slots: proposal.slots,
            proposed_at_us: proposal.proposed_at_us,
            signatures,
            effective_from_us: proposal.effective_from_us,
        },
    );
    WIPOffset::new(table.value())
}

pub(super) fn totals(builder: &mut Builder, totals: &[Total]) -> Encoded {
    let totals: Vec<_> = totals
        .iter()
        .map(|total| {
            let corpus = Some(builder.create_string(&total.corpus));
            let quarter = Some(builder.create_string(&total.quarter));
            let args = wire::TotalArgs {
                corpus,
                quarter,
                registered: total.registered,
                disputed: total.disputed,
                referenced: total.referenced,
                tombstoned: total.tombstoned,
                slots: total.slots,
                over_budget: total.over_budget,
                growth_permille: total.growth_permille,
                tombstone_permille: total.tombstone_permille,
            };
            wire::Total::create(builder, &args)
        })
        .collect();
    let totals = Some(builder.create_vector(&totals));
    let table = wire::TotalsFound::create(builder, &wire::TotalsFoundArgs { totals });
    (wire::ReplyResult::TotalsFound, table.as_union_value())
}
