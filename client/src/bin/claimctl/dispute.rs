//! Disputes.

use crate::args::{Arbitrate, Dispute, Escalate, Open, Respond};
use crate::entry::{EntryJson, print_entries};
use crate::failure::Failure;
use crate::history::of_dispute;
use crate::output::Output;
use crate::session::Session;
use crate::time::{or_hyphen, rfc3339};
use claim_client::{DisputeInfo, DisputeVerdict, RequestOptions, Uuid, Verdict};
use serde::Serialize;

/// A dispute in JSON.
#[derive(Debug, Serialize)]
struct DisputeJson<'a> {
    dispute_id: String,
    state: &'a str,
    opened_by: &'a str,
    opened_at: String,
    updated_at: String,
    rationale: &'a str,
    sides: Vec<SideJson<'a>>,
    canonical_id: Option<String>,
    responses: u32,
    dismissed: bool,
}

/// A dispute in JSON, with what happened in it.
#[derive(Debug, Serialize)]
struct DisputeShownJson<'a> {
    #[serde(flatten)]
    dispute: DisputeJson<'a>,
    entries: Vec<EntryJson<'a>>,
}

/// One side of a dispute in JSON.
#[derive(Debug, Serialize)]
struct SideJson<'a> {
    event_id: String,
    corpus: &'a str,
    verdict: &'a str,
}

impl<'a> DisputeJson<'a> {
    fn new(dispute: &'a DisputeInfo) -> Self {
        let sides = dispute.sides.iter().map(|side| SideJson {
            event_id: side.event_id.to_string(),
            corpus: &side.corpus,
            verdict: side.verdict.as_str(),
        });
        DisputeJson {
            dispute_id: dispute.dispute_id.to_string(),
            state: dispute.state.as_str(),
            opened_by: &dispute.opened_by,
            opened_at: rfc3339(dispute.opened_at_us),
            updated_at: rfc3339(dispute.updated_at_us),
            rationale: &dispute.rationale,
            sides: sides.collect(),
            canonical_id: dispute.canonical_id.map(|id| id.to_string()),
            responses: dispute.responses,
            dismissed: dispute.dismissed,
        }
    }
}

pub fn dispute(session: &Session, verb: Dispute, output: &mut Output) -> Result<(), Failure> {
    let client = &session.client;
    let pending = match verb {
        Dispute::Open(Open { corpus, event_ids, argument, mutation }) => {
            let options = session.mutating(&mutation, &argument.rationale);
            client.dispute(&corpus, &event_ids, &options)
        }
        Dispute::Respond(Respond { dispute_id, corpus, argument, mutation }) => {
            let options = session.mutating(&mutation, &argument.rationale);
            client.respond(&corpus, dispute_id, &options)
        }
        Dispute::Arbitrate(verb) => {
            let options = session.mutating(&verb.mutation, &verb.argument.rationale);
            match verb.dismissed {
                true => client.dismiss(verb.dispute_id, &options),
                false => client.arbitrate(verb.dispute_id, &verdicts(&verb), &options),
            }
        }
        Dispute::Escalate(Escalate { dispute_id, argument, mutation }) => {
            let options = session.mutating(&mutation, &argument.rationale);
            client.escalate(dispute_id, &options)
        }
        Dispute::Show(verb) => {
            let dispute = client.dispute_lookup(verb.dispute_id, &RequestOptions::default()).wait()?.value;
            let entries = of_dispute(session, &dispute)?;
            if output.is_json() {
                let entries = entries.iter().map(EntryJson::new).collect();
                return output.object(&DisputeShownJson { dispute: DisputeJson::new(&dispute), entries });
            }
            print(&dispute, output)?;
            output.line("")?;
            return print_entries(&entries, output);
        }
        Dispute::List(verb) => {
            let (mut disputes, mut before) = (Vec::new(), None);
            loop {
                let page = client.disputes_page(&verb.corpus, verb.closed, before, &RequestOptions::default());
                let page = page.wait()?.value;
                disputes.extend(page.disputes);
                match page.next {
                    Some(next) => before = Some(next),
                    None => return print_list(&disputes, output),
                }
            }
        }
    };
    print(&pending.wait()?.value, output)
}

fn verdicts(verb: &Arbitrate) -> Vec<Verdict> {
    let verdict = |verdict| move |&event_id: &Uuid| Verdict { event_id, verdict };
    let canonical = verb.canonical.iter().map(verdict(DisputeVerdict::Canonical));
    let references = verb.references.iter().map(verdict(DisputeVerdict::References));
    let tombstone = verb.tombstone.iter().map(verdict(DisputeVerdict::Tombstone));
    canonical.chain(references).chain(tombstone).collect()
}

fn print(dispute: &DisputeInfo, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.object(&DisputeJson::new(dispute));
    }
    let mut pairs = vec![
        ("dispute", dispute.dispute_id.to_string()),
        ("state", state(dispute)),
        ("opened by", dispute.opened_by.clone()),
        ("opened at", rfc3339(dispute.opened_at_us)),
        ("updated at", rfc3339(dispute.updated_at_us)),
        ("rationale", dispute.rationale.clone()),
        ("responses", dispute.responses.to_string()),
    ];
    pairs.extend(dispute.canonical_id.map(|id| ("canonical id", id.to_string())));
    output.pairs(&pairs)?;
    output.line("")?;
    let sides = dispute.sides.iter();
    let sides = sides.map(|side| vec![side.event_id.to_string(), side.corpus.clone(), side.verdict.to_string()]);
    output.table(&["event id", "corpus", "verdict"], sides.collect())
}

fn print_list(disputes: &[DisputeInfo], output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return disputes.iter().try_for_each(|dispute| output.object(&DisputeJson::new(dispute)));
    }
    let row = |dispute: &DisputeInfo| {
        vec![
            dispute.dispute_id.to_string(),
            state(dispute),
            dispute.opened_by.clone(),
            rfc3339(dispute.opened_at_us),
            rfc3339(dispute.updated_at_us),
            dispute.sides.len().to_string(),
            dispute.responses.to_string(),
            or_hyphen(dispute.canonical_id),
        ]
    };
    let head = ["dispute", "state", "opened by", "opened at", "updated at", "rows", "responses", "canonical id"];
    output.table(&head, disputes.iter().map(row).collect())
}

fn state(dispute: &DisputeInfo) -> String {
    let dismissed = if dispute.dismissed { " (dismissed)" } else { "" };
    format!("{}{dismissed}", dispute.state)
}
