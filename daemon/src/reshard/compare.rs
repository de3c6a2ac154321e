//! The new ledger, read again, beside the old one: every row, every count, every entry.

use super::read::{Digest, Stream};
use super::write::Plan;
use claim_engine::command::Corpus;
use claim_engine::dispute::DisputeId;
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::verify::GlobalCopy;
use claim_engine::row::{ReconciliationState, RowState};
use claim_engine::shard::Shard;
use claim_engine::shard::rows::{Found, Scan};
use claim_engine::time::Quarter;
use std::collections::{BTreeMap, BTreeSet};

/// Rows that are compared at a time.
const PAGE_ROWS: usize = 10_000;

/// A corpus that is the same in both ledgers.
#[derive(Debug)]
pub struct Moved {
    /// Its name.
    pub name: String,
    /// Its prefix.
    pub prefix: u16,
    /// The shard that it lived on.
    pub from: u16,
    /// The shard that it lives on.
    pub to: u16,
    /// Its rows.
    pub rows: u64,
}

/// What was found to be the same.
#[derive(Debug, Default)]
pub struct Compared {
    /// The corpora, in the order of their prefixes.
    pub corpora: Vec<Moved>,
    /// Entries that each stand on one shard.
    pub entries: u64,
    /// Rows that were clean and that a pass will look at once more.
    pub pending_again: u64,
    /// Rows of quarters that are dropped.
    pub carried: usize,
}

/// What entries add up to, by corpus.
pub fn digests(streams: &[Stream]) -> BTreeMap<u16, Digest> {
    let mut sums: BTreeMap<u16, Digest> = BTreeMap::new();
    for (home, digest) in streams.iter().flat_map(|stream| &stream.digests) {
        sums.entry(*home).or_default().merge(digest);
    }
    sums
}

/// Compares a new ledger with the old one. The error says what differs first.
pub fn compare(plan: &Plan, new: &[Stream], due: &BTreeMap<u16, Digest>) -> Result<Compared, String> {
    for stream in new {
        if stream.copies.len() != plan.globals.len() {
            let (found, all) = (stream.copies.len(), plan.globals.len());
            return Err(format!("shard {} has {found} of {all} entries of the global order", stream.report.shard));
        }
    }
    if let (Some(old), Some(new)) = (plan.streams.first(), new.first()) {
        same_order(&old.report.globals, &new.report.globals)?;
    }
    let found = digests(new);
    if let Some((prefix, digest)) = found.iter().find(|(prefix, digest)| due.get(prefix) != Some(digest)) {
        let expected = due.get(prefix).map_or(0, |due| due.entries);
        return Err(format!("the entries of prefix {prefix} differ: {} instead of {expected}", digest.entries));
    }
    if let Some((prefix, _)) = due.iter().find(|(prefix, _)| !found.contains_key(prefix)) {
        return Err(format!("the entries of prefix {prefix} are gone"));
    }
    let mut compared = Compared { entries: due.values().map(|digest| digest.entries).sum(), ..Compared::default() };
    let Some(first) = plan.streams.first() else { return Ok(compared) };
    for stream in new {
        let (old, new) = (first.shard.disputes(), stream.shard.disputes());
        if !old.all().eq(new.all()) {
            return Err(format!("the disputes of shard {} differ", stream.report.shard));
        }
    }
    let unflagged = |streams: &[Stream]| -> BTreeSet<DisputeId> {
        streams.iter().flat_map(|stream| stream.shard.disputes().unflagged()).collect()
    };
    if unflagged(&plan.streams) != unflagged(new) {
        return Err("other disputes have rows that can't be flagged".to_owned());
    }
    same_retention(&plan.streams, new)?;
    compared.carried = new.iter().map(|stream| stream.shard.rows().only_carried().count()).sum();
    for corpus in first.shard.registry().corpora() {
        let to = plan.placement.new_of(corpus.prefix).ok_or("a corpus without a place")?;
        let old = &plan.streams[usize::from(corpus.shard)].shard;
        let new = &new[usize::from(to)].shard;
        let pending = same_corpus(corpus, to, old, new, plan.last_us)
            .map_err(|difference| format!("corpus {}: {difference}", corpus.name))?;
        compared.pending_again += pending;
        compared.corpora.push(Moved {
            name: corpus.name.clone(),
            prefix: corpus.prefix.get(),
            from: corpus.shard,
            to,
            rows: new.rows().count_of(corpus.prefix),
        });
    }
    let aliases = |streams: &[Stream], corpus: &Corpus| -> u64 {
        streams.iter().map(|stream| stream.shard.rows().aliases_of_corpus(corpus.prefix)).sum()
    };
    for corpus in first.shard.registry().corpora() {
        if aliases(&plan.streams, corpus) != aliases(new, corpus) {
            return Err(format!("the aliases of rows of corpus {} differ in number", corpus.name));
        }
    }
    Ok(compared)
}

/// Every quarter is held that was, and what was dropped adds up to the same.
fn same_retention(old: &[Stream], new: &[Stream]) -> Result<(), String> {
    let Some(first) = old.first() else { return Ok(()) };
    let dropped_to = |streams: &[Stream]| streams.iter().map(|s| s.shard.retention().dropped_to()).max().flatten();
    for stream in new {
        let (retention, shard) = (stream.shard.retention(), stream.report.shard);
        if retention.holds != first.shard.retention().holds {
            return Err(format!("the holds of shard {shard} differ"));
        }
        if retention.dropped_to() != dropped_to(old) {
            let (is, was) = (retention.dropped_to(), dropped_to(old));
            return Err(format!("shard {shard} has dropped what is up to {is:?} instead of {was:?}"));
        }
    }
    if gone(old) != gone(new) {
        return Err("the seals of dropped quarters add up to other control totals".to_owned());
    }
    Ok(())
}

/// The control totals of all that was dropped, and how many of its rows were logged again.
fn gone(streams: &[Stream]) -> ([u64; 4], u64) {
    let seals = || streams.iter().flat_map(|stream| &stream.shard.retention().seals);
    let mut sum = [0; 4];
    for total in seals().flat_map(|seal| &seal.totals) {
        sum.iter_mut().zip(total.rows).for_each(|(sum, n)| *sum += n);
    }
    (sum, seals().map(|seal| seal.carried).sum())
}

/// But for the places of corpora the global orders are the same.
fn same_order(old: &BTreeMap<u64, GlobalCopy>, new: &BTreeMap<u64, GlobalCopy>) -> Result<(), String> {
    if old.len() != new.len() {
        return Err(format!("the global order has {} entries instead of {}", new.len(), old.len()));
    }
    for (sequence, copy) in old {
        if new.get(sequence).map(without_place) != Some(without_place(copy)) {
            return Err(format!("entry {sequence} of the global order differs"));
        }
    }
    Ok(())
}

fn without_place(copy: &GlobalCopy) -> GlobalCopy {
    match Record::decode(copy.kind, &copy.body) {
        Ok(mut record) => {
            let mut body = Vec::new();
            if let Entry::Onboard { shard, .. } = &mut record.entry {
                *shard = 0;
            }
            record.encode(&mut body);
            GlobalCopy { kind: copy.kind, body }
        }
        Err(_) => copy.clone(),
    }
}

/// Compares a corpus; gives the number of rows that are pending again.
fn same_corpus(corpus: &Corpus, to: u16, old: &Shard, new: &Shard, at_us: i64) -> Result<u64, String> {
    let prefix = corpus.prefix;
    let registered = new.registry().of_prefix(prefix).ok_or("it is not onboarded")?;
    if (Corpus { shard: to, ..corpus.clone() }) != *registered {
        return Err(format!("it is registered as {registered:?}"));
    }
    let (before, after) = (old.rows().count_of(prefix), new.rows().count_of(prefix));
    if before != after {
        return Err(format!("{after} rows instead of {before}"));
    }
    let (before, after) = (old.rows().totals(prefix), new.rows().totals(prefix));
    if before != after {
        return Err(format!("control totals {after:?} instead of {before:?}"));
    }
    let quarter = Quarter::of(at_us);
    let next = |shard: &Shard| (shard.rows().next_sequence(prefix, quarter), shard.rows().last_id(prefix));
    if next(old) != next(new) {
        return Err(format!("it goes on with {:?} instead of {:?}", next(new), next(old)));
    }
    let mut after = None;
    let mut pending_again = 0;
    loop {
        let page = |shard: &Shard| {
            let scan = Scan::of(prefix, after, PAGE_ROWS);
            shard.rows().scan(&scan, Found::clone).map_err(|unread| unread.to_string())
        };
        let (before, now) = (page(old)?, page(new)?);
        if before.rows.len() != now.rows.len() || before.more != now.more {
            return Err("a scan has other rows".to_owned());
        }
        for (before, now) in before.rows.iter().zip(&now.rows) {
            if seen(before) != seen(now) {
                return Err(format!("row {}: {:?} instead of {:?}", before.event_id, seen(now), seen(before)));
            }
            let state = |shard: &Shard, row: &Found| shard.view_at(row, at_us).reconciliation;
            match (state(old, before), state(new, now)) {
                (before, now) if before == now => {}
                // What stood beside the beginning of a pass counts as not covered by it.
                (ReconciliationState::Clean, ReconciliationState::Pending) => pending_again += 1,
                (was, is) => return Err(format!("row {}: {is:?} instead of {was:?}", before.event_id)),
            }
        }
        after = now.rows.last().map(|row| row.event_id);
        if !now.more {
            return Ok(pending_again);
        }
    }
}

/// A row, but for where its entries lie. The time of a tombstone by arbitration is that of the shard's copy of the verdict,
/// and a copy's time is what its neighbours allow.
fn seen(row: &Found) -> Found {
    let mut seen = Found { claim_at: 0, position: 0, ..*row };
    if let Some(tombstone) = &mut seen.tombstone {
        tombstone.entry_at = 0;
        if row.state == RowState::TombstonedByArbitration {
            tombstone.at_us = 0;
        }
    }
    seen
}
