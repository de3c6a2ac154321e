//! Slots: increases of them, and what stands in them.

use crate::args::{Propose, SignOff, Slots, Totals};
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::{Proposal, RequestOptions, Signature, Total};
use serde::Serialize;

/// A quarter's claims against the last one's that are worth a look, and those that are worth two, in thousandths.
const GROWTH_FLAGS_PERMILLE: [u32; 2] = [2_000, 5_000];
/// Tombstoned against registered rows that are worth a look, in thousandths.
const TOMBSTONE_FLAGS_PERMILLE: [u32; 1] = [1_000];

/// A proposal in JSON.
#[derive(Debug, Serialize)]
struct ProposalJson<'a> {
    proposal: u64,
    corpus: &'a str,
    slots: u64,
    proposed_at: String,
    signatures: Vec<SignatureJson<'a>>,
    effective_from: Option<String>,
}

/// A signature in JSON.
#[derive(Debug, Serialize)]
struct SignatureJson<'a> {
    role: &'a str,
    uid: u32,
    at: String,
}

/// The control totals of a corpus and quarter, in JSON.
#[derive(Debug, Serialize)]
struct TotalJson<'a> {
    corpus: &'a str,
    quarter: &'a str,
    registered: u64,
    disputed: u64,
    referenced: u64,
    tombstoned: u64,
    slots: u64,
    over_budget: u64,
    growth_permille: Option<u32>,
    tombstone_permille: Option<u32>,
}

impl<'a> ProposalJson<'a> {
    fn new(proposal: &'a Proposal) -> Self {
        let signature = |&Signature { role, uid, at_us }: &Signature| SignatureJson {
            role: role.as_str(),
            uid,
            at: rfc3339(at_us),
        };
        ProposalJson {
            proposal: proposal.proposal,
            corpus: &proposal.corpus,
            slots: proposal.slots,
            proposed_at: rfc3339(proposal.proposed_at_us),
            signatures: proposal.signatures.iter().map(signature).collect(),
            effective_from: proposal.effective_from_us.map(rfc3339),
        }
    }
}

pub fn slots(session: &Session, verb: Slots, output: &mut Output) -> Result<(), Failure> {
    match verb {
        Slots::Propose(Propose { corpus, slots, rationale, mutation }) => {
            let options = session.mutating(&mutation, &rationale.rationale);
            print(&[session.client.propose_slots(&corpus, slots, &options).wait()?.value], output)
        }
        Slots::SignOff(SignOff { proposal, role, rationale, mutation }) => {
            let options = session.mutating(&mutation, &rationale.rationale);
            print(&[session.client.sign_off(proposal, role, &options).wait()?.value], output)
        }
        Slots::List => print(&session.client.proposals(&RequestOptions::default()).wait()?.value, output),
    }
}

fn print(proposals: &[Proposal], output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return proposals.iter().try_for_each(|proposal| output.object(&ProposalJson::new(proposal)));
    }
    let row = |proposal: &Proposal| {
        let signed: Vec<_> = proposal.signatures.iter().map(|by| format!("{} (uid {})", by.role, by.uid)).collect();
        vec![
            proposal.proposal.to_string(),
            proposal.corpus.clone(),
            proposal.slots.to_string(),
            rfc3339(proposal.proposed_at_us),
            if signed.is_empty() { "nobody".to_owned() } else { signed.join(", ") },
            proposal.effective_from_us.map_or_else(|| "-".to_owned(), rfc3339),
        ]
    };
    let head = ["proposal", "corpus", "slots", "proposed at", "signed by", "effective from"];
    output.table(&head, proposals.iter().map(row).collect())
}

pub fn totals(session: &Session, verb: Totals, output: &mut Output) -> Result<(), Failure> {
    let totals = session.client.totals(&verb.corpus, &RequestOptions::default()).wait()?.value;
    if output.is_json() {
        return totals.iter().try_for_each(|total| {
            output.object(&TotalJson {
                corpus: &total.corpus,
                quarter: &total.quarter,
                registered: total.registered,
                disputed: total.disputed,
                referenced: total.referenced,
                tombstoned: total.tombstoned,
                slots: total.slots,
                over_budget: total.over_budget,
                growth_permille: total.growth_permille,
                tombstone_permille: total.tombstone_permille,
            })
        });
    }
    let row = |total: &Total| {
        vec![
            total.corpus.clone(),
            total.quarter.clone(),
            total.registered.to_string(),
            total.disputed.to_string(),
            total.referenced.to_string(),
            total.tombstoned.to_string(),
            total.slots.to_string(),
            total.over_budget.to_string(),
            ratio(total.growth_permille, &GROWTH_FLAGS_PERMILLE),
            ratio(total.tombstone_permille, &TOMBSTONE_FLAGS_PERMILLE),
        ]
    };
    let head = [
        "corpus",
        "quarter",
        "registered",
        "disputed",
        "referenced",
        "tombstoned",
        "slots",
        "over budget",
        "growth",
        "tombstone ratio",
    ];
    output.table(&head, totals.iter().map(row).collect())
}

/// A ratio, with an exclamation mark for each flag that it exceeds.
fn ratio(permille: Option<u32>, flags: &[u32]) -> String {
    let Some(permille) = permille else { return "-".to_owned() };
    let marks = flags.iter().filter(|flag| permille > **flag).count();
    format!("{}.{:03}{}", permille / 1000, permille % 1000, "!".repeat(marks))
}

#[cfg(test)]
mod tests {
    use super::{GROWTH_FLAGS_PERMILLE, ratio};

    #[test]
    fn ratios_are_flagged_beyond_their_bounds() {
        for (permille, expected) in [
            (None, "-"),
            (Some(42), "0.042"),
            (Some(2_000), "2.000"),
            (Some(2_001), "2.001!"),
            (Some(5_001), "5.001!!"),
        ] {
            assert_eq!(ratio(permille, &GROWTH_FLAGS_PERMILLE), expected);
        }
    }
}
