//! Corpora, their slots and what they hold.

use crate::generated::claimd as wire;
use crate::reply::{CorpusInfo, Proposal, Signature, Total};
use crate::values::{AlarmKind, Role};

pub(super) fn decode_corpus(table: &wire::CorpusInfo<'_>) -> Result<CorpusInfo, String> {
    Ok(CorpusInfo {
        name: table.name().to_owned(),
        shard_prefix: table.shard_prefix(),
        shard: table.shard(),
        onboarded_at_us: table.onboarded_at_us(),
        decommissioned_at_us: table.decommissioned_at_us(),
        notes: table.notes().unwrap_or_default().to_owned(),
        claims: table.claims(),
        frozen_reason: table.frozen_reason().map(str::to_owned),
        frozen_at_us: table.frozen_at_us(),
        slots: table.slots(),
        claims_this_quarter: table.claims_this_quarter(),
        cap_per_minute: table.cap_per_minute(),
        alarms: match table.alarms() {
            None => Vec::new(),
            Some(alarms) => alarms.iter().map(decode_alarm).collect::<Result<_, String>>()?,
        },
    })
}

fn decode_alarm(alarm: wire::AlarmKind) -> Result<AlarmKind, String> {
    AlarmKind::try_from(alarm.0).map_err(|error| format!("alarms: {error}"))
}

pub(super) fn decode_proposal(table: &wire::Proposal<'_>) -> Result<Proposal, String> {
    let signature = |signature: wire::Signature<'_>| {
        let role = Role::try_from(signature.role().0).map_err(|error| format!("role: {error}"))?;
        Ok(Signature { role, uid: signature.uid(), at_us: signature.at_us() })
    };
    Ok(Proposal {
        proposal: table.proposal(),
        corpus: table.corpus().to_owned(),
        slots: table.slots(),
        proposed_at_us: table.proposed_at_us(),
        signatures: table.signatures().iter().map(signature).collect::<Result<_, String>>()?,
        effective_from_us: table.effective_from_us(),
    })
}

pub(super) fn decode_total(table: &wire::Total<'_>) -> Total {
    Total {
        corpus: table.corpus().to_owned(),
        quarter: table.quarter().to_owned(),
        registered: table.registered(),
        disputed: table.disputed(),
        referenced: table.referenced(),
        tombstoned: table.tombstoned(),
        slots: table.slots(),
        over_budget: table.over_budget(),
        growth_permille: table.growth_permille(),
        tombstone_permille: table.tombstone_permille(),
    }
}
