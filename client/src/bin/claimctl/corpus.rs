//! Corpora: onboarding, listing, closing, freezing and capping them.

use crate::args::{Cap, Decommission, Freeze, Onboard, Unfreeze};
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::{CorpusInfo, Decommissioned, RequestOptions};
use serde::Serialize;

/// A corpus in JSON.
#[derive(Debug, Serialize)]
struct CorpusJson<'a> {
    name: &'a str,
    shard_prefix: u16,
    shard: u16,
    onboarded_at: String,
    decommissioned_at: Option<String>,
    notes: &'a str,
    claims: u64,
    frozen_reason: Option<&'a str>,
    frozen_at: Option<String>,
    slots: u64,
    claims_this_quarter: u64,
    cap_per_minute: Option<u32>,
    alarms: Vec<&'a str>,
}

/// A corpus that was closed, in JSON.
#[derive(Debug, Serialize)]
struct DecommissionedJson<'a> {
    corpus: CorpusJson<'a>,
    applied: bool,
    rows: u64,
    aliases_elsewhere: u64,
}

/// A freeze, in JSON. No corpus stands for the whole ledger.
#[derive(Debug, Serialize)]
struct FrozenJson<'a> {
    corpus: Option<&'a str>,
    frozen: bool,
    at: String,
}

/// A cap, in JSON.
#[derive(Debug, Serialize)]
struct CappedJson<'a> {
    corpus: &'a str,
    claims_per_minute: Option<u32>,
    at: String,
}

impl<'a> CorpusJson<'a> {
    fn new(corpus: &'a CorpusInfo) -> Self {
        CorpusJson {
            name: &corpus.name,
            shard_prefix: corpus.shard_prefix,
            shard: corpus.shard,
            onboarded_at: rfc3339(corpus.onboarded_at_us),
            decommissioned_at: corpus.decommissioned_at_us.map(rfc3339),
            notes: &corpus.notes,
            claims: corpus.claims,
            frozen_reason: corpus.frozen_reason.as_deref(),
            frozen_at: corpus.frozen_at_us.map(rfc3339),
            slots: corpus.slots,
            claims_this_quarter: corpus.claims_this_quarter,
            cap_per_minute: Some(corpus.cap_per_minute).filter(|cap| *cap > 0),
            alarms: corpus.alarms.iter().map(|alarm| alarm.as_str()).collect(),
        }
    }
}

pub fn onboard(session: &Session, verb: Onboard, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let corpus = session.client.onboard(&verb.name, &verb.notes, &options).wait()?;
    print(&[corpus.value], output)
}

pub fn list(session: &Session, output: &mut Output) -> Result<(), Failure> {
    let corpora = session.client.corpora(&RequestOptions::default()).wait()?;
    print(&corpora.value, output)
}

fn print(corpora: &[CorpusInfo], output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return corpora.iter().try_for_each(|corpus| output.object(&CorpusJson::new(corpus)));
    }
    let row = |corpus: &CorpusInfo| {
        vec![
            corpus.name.clone(),
            corpus.shard_prefix.to_string(),
            corpus.shard.to_string(),
            state(corpus),
            corpus.claims.to_string(),
            format!("{}/{}", corpus.claims_this_quarter, corpus.slots),
            if corpus.cap_per_minute == 0 { "-".to_owned() } else { format!("{}/min", corpus.cap_per_minute) },
            if corpus.alarms.is_empty() { "-".to_owned() } else { CorpusJson::new(corpus).alarms.join(", ") },
            rfc3339(corpus.onboarded_at_us),
            corpus.notes.clone(),
        ]
    };
    let head = ["name", "prefix", "shard", "state", "claims", "slots", "cap", "alarms", "onboarded at", "notes"];
    output.table(&head, corpora.iter().map(row).collect())
}

fn state(corpus: &CorpusInfo) -> String {
    match (corpus.decommissioned_at_us, &corpus.frozen_reason) {
        (Some(at), _) => format!("decommissioned at {}", rfc3339(at)),
        (None, Some(reason)) => format!("frozen: {reason}"),
        (None, None) => "open".to_owned(),
    }
}

pub fn decommission(session: &Session, verb: Decommission, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let closed = session.client.decommission(&verb.name, verb.dry_run, &options).wait()?.value;
    let Decommissioned { corpus, applied, rows, aliases_elsewhere } = &closed;
    if output.is_json() {
        let (applied, rows, aliases_elsewhere) = (*applied, *rows, *aliases_elsewhere);
        return output.object(&DecommissionedJson {
            corpus: CorpusJson::new(corpus),
            applied,
            rows,
            aliases_elsewhere,
        });
    }
    let what = match (applied, corpus.decommissioned_at_us) {
        (true, Some(at)) => format!("closed at {}", rfc3339(at)),
        (true, None) => "closed".to_owned(),
        (false, _) => "not closed: this was a dry run".to_owned(),
    };
    output.pairs(&[
        ("corpus", corpus.name.clone()),
        ("state", what),
        ("rows that stay", rows.to_string()),
        ("aliases elsewhere", aliases_elsewhere.to_string()),
    ])
}

pub fn freeze(session: &Session, verb: Freeze, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.reason.reason);
    let at_us = session.client.freeze(verb.scope.name(), &options).wait()?.value;
    print_frozen(verb.scope.name(), true, at_us, output)
}

pub fn unfreeze(session: &Session, verb: Unfreeze, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let at_us = session.client.unfreeze(verb.scope.name(), &options).wait()?.value;
    print_frozen(verb.scope.name(), false, at_us, output)
}

fn print_frozen(corpus: &str, frozen: bool, at_us: i64, output: &mut Output) -> Result<(), Failure> {
    let (corpus, at) = (Some(corpus).filter(|name| !name.is_empty()), rfc3339(at_us));
    if output.is_json() {
        return output.object(&FrozenJson { corpus, frozen, at });
    }
    let state = if frozen { "frozen" } else { "no longer frozen" };
    output.line(format_args!("{} is {state} since {at}", corpus.unwrap_or("the whole ledger")))
}

pub fn cap(session: &Session, verb: Cap, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let claims_per_minute = verb.claims_per_minute;
    let at_us = session.client.cap(&verb.corpus, claims_per_minute.unwrap_or(0), &options).wait()?.value;
    let (corpus, at) = (verb.corpus.as_str(), rfc3339(at_us));
    if output.is_json() {
        return output.object(&CappedJson { corpus, claims_per_minute, at });
    }
    match claims_per_minute {
        Some(claims) => output.line(format_args!("{corpus} may claim {claims} a minute since {at}")),
        None => output.line(format_args!("{corpus} has no cap since {at}")),
    }
}
