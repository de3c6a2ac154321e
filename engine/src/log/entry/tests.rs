//! Every entry goes through its bytes and back.

use super::*;
use crate::dispute::Verdict;

fn id(tail: u64) -> EventId {
    EventId::pack(1_700_000_000_000, Prefix::new(3).unwrap(), tail)
}

fn claim() -> ClaimEntry<'static> {
    ClaimEntry {
        event_id: id(1),
        claim_sequence: 12,
        occurred_at_us: 99,
        taxonomy_version: 4,
        event_key: "reset-2025",
        owning_corpus: "customer",
        hosting_corpus: "",
        category: "embedder",
        over_budget: true,
        incident_active: false,
        metadata: &[1, 2, 3],
    }
}

fn entries() -> Vec<Entry<'static>> {
    vec![
        Entry::Claim(claim()),
        Entry::Carry { claim: claim(), claimed_at_us: 77, claim_at: 4_096, change: &[4, 5] },
        Entry::Alarm { kind: AlarmKind::Early, claims: 7, slots: 9 },
        Entry::Forbidden { action: Action::Claim, counted: 3 },
        Entry::User { uid: 7, name: "alice" },
        Entry::Decommission { global_sequence: 1, prefix: Prefix::new(7).unwrap(), at_us: 5 },
        Entry::Freeze { global_sequence: 1, prefix: None, frozen: true, at_us: 5 },
        Entry::Cap { global_sequence: 1, prefix: Prefix::new(7).unwrap(), claims_per_minute: 5 },
        Entry::SlotIncrease { global_sequence: 1, prefix: Prefix::new(7).unwrap(), slots: 80_000, at_us: 5 },
        Entry::SignOff { global_sequence: 1, proposal: 2, role: Role::Manager, effective_from_us: 3, at_us: 2 },
        Entry::Incident { global_sequence: 1, active: true },
        Entry::Barrier { global_sequence: 1, at_us: 5 },
        Entry::Configuration { global_sequence: 1, at_us: 5, toml: "[slots]\n" },
        Entry::Dispute {
            global_sequence: 1,
            dispute: DisputeId::pack(5, [6, 7]),
            opened_at_us: 8,
            sides: Sides::new(&[id(1), EventId::pack(5, Prefix::new(4).unwrap(), 6)]).unwrap(),
        },
        Entry::DisputeStep {
            global_sequence: 1,
            dispute: DisputeId::pack(5, [6, 7]),
            step: DisputeStep::Arbitrate,
            at_us: 9,
            rows: 3,
            verdicts: [Some(Verdict::Canonical), Some(Verdict::References), None, None, None, None, None, None],
        },
        Entry::Reconcile {
            global_sequence: 1,
            pass: 4,
            phase: PassPhase::Done,
            at_us: 9,
            counts: PassCounts {
                rows: 1,
                groups: 2,
                merged: 3,
                left_alone: 4,
                refused: 5,
                suspects: 6,
                orphans: 7,
                aliases: 8,
            },
            merges: Box::leak(
                encode_merges(&[Merge { alias: id(1), canonical: id(2), position: 3, applied: true }])
                    .into_boxed_slice(),
            ),
        },
        Entry::Reference { event_id: id(2), canonical_id: id(3) },
        Entry::Tombstone { event_id: id(4), reason_code: ReasonCode::FalseAlarm },
        Entry::Reactivate { event_id: id(5) },
        Entry::Onboard {
            global_sequence: 6,
            prefix: Prefix::new(7).unwrap(),
            shard: 1,
            name: "compliance",
            notes: "slow",
            onboarded_at_us: 55,
        },
        Entry::PrefixAllocation { global_sequence: 8, minted_to: 100 },
        Entry::ConfirmClock { global_sequence: 9 },
        Entry::Recovery { incarnation: 2, cut_at: 4096 },
        Entry::Repair { cut_at: 4096, given_up_to: 7, floors: &[1, 0, 9, 0, 0, 0, 0, 0, 0, 0] },
        Entry::Restore { cut_at: 8192, given_up_to: 8, floors: &[1, 0, 9, 0, 0, 0, 0, 0, 0, 0] },
        Entry::Reshard {
            ledger: Uuid::from_u128(7),
            shards: 2,
            at_us: 5,
            sources: Box::leak(
                encode_sources(&[ReshardSource { shard: 1, last_position: 9, entries: 3 }]).into_boxed_slice(),
            ),
        },
    ]
}

const META: Meta<'static> = Meta {
    timestamp_us: 1_700_000_000_000_001,
    idempotency_key: 1 << 100,
    correlation_id: 5,
    fingerprint: 6,
    principal: Principal { uid: 1, gid: 2, pid: 3 },
    item: 8189,
    corpus: Prefix::new(3),
    rationale: "because",
};

#[test]
fn every_entry_decodes_to_itself_and_no_cut_of_it_decodes() {
    for entry in entries() {
        let record = Record { meta: META, entry };
        let mut body = vec![];
        record.encode(&mut body);
        assert_eq!(Record::decode(entry.kind(), &body), Ok(record));
        let claim = match entry {
            Entry::Claim(claim) => Some((claim, META.timestamp_us)),
            Entry::Carry { claim, claimed_at_us, .. } => Some((claim, claimed_at_us)),
            _ => None,
        };
        assert_eq!(claim_of(entry.kind(), &body), Ok(claim));
        for cut in 0..body.len() {
            assert!(Record::decode(entry.kind(), &body[..cut]).is_err(), "{entry:?} cut at {cut}");
            assert!(claim_of(entry.kind(), &body[..cut]).is_err(), "{entry:?} cut at {cut}");
        }
        body.push(0);
        assert!(claim_of(entry.kind(), &body).is_err(), "{entry:?} with a byte behind");
    }
}

#[test]
fn what_an_index_takes_of_a_claim_is_what_it_decodes_to() {
    let claims = entries().into_iter().filter_map(|entry| match entry {
        Entry::Claim(claim) => Some(claim),
        _ => None,
    });
    for claim in claims.flat_map(|claim| [claim, ClaimEntry { over_budget: false, incident_active: true, ..claim }]) {
        let record = Record { meta: META, entry: Entry::Claim(claim) };
        let mut body = vec![];
        record.encode(&mut body);
        let facts = claim_facts(1, &body).unwrap();
        assert_eq!((facts.timestamp_us, facts.event_id), (META.timestamp_us, claim.event_id));
        assert_eq!((facts.claim_sequence, facts.occurred_at_us), (claim.claim_sequence, claim.occurred_at_us));
        assert_eq!((facts.over_budget, facts.incident_active), (claim.over_budget, claim.incident_active));
        assert_eq!(facts.event_key, claim.event_key.as_bytes());
        assert_eq!(claimed_id(1, &body), Some(claim.event_id));
        assert_eq!((claim_facts(2, &body), claimed_id(2, &body)), (None, None), "another kind");
        // They end with the event key.
        let key = claim.event_key.as_bytes();
        let end = key.len() + body.windows(key.len()).position(|window| window == key).unwrap();
        for cut in 0..=body.len() {
            assert_eq!(claim_facts(1, &body[..cut]), (cut >= end).then_some(facts), "{cut}");
        }
    }
}

/// The bytes of its texts are one after the other in the body, and their lengths before them.
#[test]
fn texts_of_a_claim_are_cut_between_characters_and_are_all_text() {
    let (event_key, owning_corpus, hosting_corpus, category) = ("é", "ö", "ü", "ß");
    let entry = ClaimEntry { event_key, owning_corpus, hosting_corpus, category, metadata: &[], ..claim() };
    let record = Record { meta: META, entry: Entry::Claim(entry) };
    let mut body = vec![];
    record.encode(&mut body);
    assert_eq!(claim_of(1, &body), Ok(Some((entry, META.timestamp_us))));
    let texts = body.windows(8).position(|window| window == "éöüß".as_bytes()).unwrap();
    let lengths = body[..texts].windows(5).rposition(|window| window == [2, 0, 2, 2, 2]).unwrap();
    let is_refused = |body: &[u8]| claim_of(1, body).is_err() && Record::decode(1, body).is_err();
    // The same bytes in all, cut within a character.
    for (longer, shorter) in [(0, 2), (2, 0), (2, 3), (3, 4), (4, 3), (0, 4)] {
        let mut moved = body.clone();
        moved[lengths + longer] += 1;
        moved[lengths + shorter] -= 1;
        assert!(is_refused(&moved), "{longer}, {shorter}");
    }
    for at in texts..texts + 8 {
        let mut broken = body.clone();
        broken[at] = 0xff;
        assert!(is_refused(&broken), "{at}");
    }
}

#[test]
fn an_unknown_kind_is_named() {
    assert_eq!(Record::decode(999, &[0; 200]), Err(EntryError::Kind(999)));
}
