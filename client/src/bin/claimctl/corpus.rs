//! Corpora: onboarding and listing them.

use crate::args::Onboard;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::{CorpusInfo, RequestOptions};
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
            corpus.claims.to_string(),
            rfc3339(corpus.onboarded_at_us),
            corpus.decommissioned_at_us.map_or_else(|| "-".to_owned(), rfc3339),
            corpus.notes.clone(),
        ]
    };
    let head = ["name", "prefix", "shard", "claims", "onboarded at", "decommissioned at", "notes"];
    output.table(&head, corpora.iter().map(row).collect())
}
