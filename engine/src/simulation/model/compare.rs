//! Whether the shards are in the state that the model is in.

use super::reference::{Model, Row};
use super::words::{plain_dispute, plain_view};
use crate::engine::Engine;
use crate::simulation::machine::Machine;
use crate::time::rfc3339;
use std::fmt::Debug;

fn expect<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}:\n   found {found:?}\nexpected {expected:?}"))
}

/// The error names the first difference.
pub fn compare(machine: &Machine, model: &Model) -> Result<(), String> {
    for engine in machine.engines() {
        compare_shard(machine, engine, model).map_err(|e| format!("shard {}: {e}", engine.shard().number()))?;
    }
    Ok(())
}

/// The rows of one event, for whoever looks at a difference.
fn group(model: &Model, of: &Row) -> String {
    let same = model.rows.iter().filter(|row| row.event_key == of.event_key);
    let line = |row: &Row| {
        let times = [row.claimed_us, model.closes_us(row), row.occurred_us].map(rfc3339).join(", ");
        format!("  {} claimed, closes, occurred {times}: {:?} {:?}", row.id, row.state, row.canonical)
    };
    let lines: Vec<String> = same.map(line).collect();
    format!("the rows of {}, tolerance {} us:\n{}", of.event_key, model.settings.tolerance_us, lines.join("\n"))
}

fn compare_shard(machine: &Machine, engine: &Engine, model: &Model) -> Result<(), String> {
    let shard = engine.shard();
    let number = usize::from(shard.number());
    let registry = shard.registry();
    expect("the corpora", registry.corpora(), &model.corpora[..])?;
    expect("the ledger's stop", registry.frozen(), model.frozen.as_ref())?;
    expect("the incident", registry.incident_active(), model.incident)?;
    expect("the proposals", registry.proposals(), &model.proposals[..])?;
    expect("the settings", shard.policy().settings(), &model.settings)?;
    let in_force = model.configured.clone().unwrap_or_default();
    let found = shard.in_force();
    expect("the configuration", (found.toml.clone(), found.at_us, found.uid), in_force)?;
    let disputes: Vec<_> = shard.disputes().all().cloned().map(plain_dispute).collect();
    expect("the disputes", disputes, model.disputes.values().cloned().collect())?;
    expect("the last pass", shard.passes().done().map(|pass| (pass.pass, pass.at_us)), model.last_pass())?;
    expect("a pass under way", shard.passes().is_under_way(), false)?;
    for ((_, uid), name) in model.users.iter().filter(|((number, _), _)| *number == shard.number()) {
        expect("a user", shard.user(*uid), Some(*name))?;
    }
    let mut rows = 0;
    for corpus in model.corpora.iter().filter(|corpus| corpus.shard == shard.number()) {
        let found = machine.rows_of(number, corpus.prefix)?;
        let expected: Vec<_> = model.rows_of(corpus.prefix).collect();
        rows += found.len() as u64;
        expect("how many rows there are", found.len(), expected.len())?;
        for (found, expected) in found.iter().zip(expected) {
            let facts = (found.claim_timestamp_us, found.claim_sequence, found.occurred_at_us, found.references);
            let right = (expected.claimed_us, expected.sequence, expected.occurred_us, expected.references);
            expect("a row's claim", facts, right)?;
            expect("a row", plain_view(shard.view_at(found, model.now_us)), model.view(expected))
                .map_err(|difference| format!("{difference}\n{}", group(model, expected)))?;
        }
        let totals = model.totals(corpus.prefix);
        expect("the totals", shard.totals(corpus.prefix), totals.clone())?;
        let counted: Vec<_> = totals.iter().map(|total| (total.quarter, total.rows)).collect();
        let anew = machine.fetch(number, |engine| engine.shard().rows().count_totals(corpus.prefix))?;
        expect("the totals, counted anew", anew, counted)?;
    }
    expect("how many rows the shard has", shard.rows().count(), rows)
}
