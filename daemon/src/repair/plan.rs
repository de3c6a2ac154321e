//! What stays of each shard, and what is given up.

use super::rebuild::state_at;
use crate::rewriting::MS_US;
use crate::verify::open;
use crate::verify::{self, ShardReport};
use claim_engine::corpus::Prefix;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{Entry, Record};
use claim_engine::log::record::RawRecord;
use claim_engine::log::superblock::ClockMode;
use claim_engine::log::verify::{Finding, GlobalCopy, Standing, Step, Structure, WalkOptions, state_at_start, walk};
use claim_engine::mutant::Mutation;
use claim_engine::time::Quarter;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What becomes of one shard's file.
#[derive(Debug)]
pub struct Plan {
    /// The file as it is.
    pub report: ShardReport,
    /// What stays: the end of what is proven.
    pub keep: LogEnd,
    /// Whether anything behind it is given up.
    pub gives_up: bool,
    /// The last position given up, as far as that is known.
    pub given_up_to: u64,
    /// How the log ended cannot be known: the file was cut short.
    pub is_end_unknown: bool,
    pub seen: Seen,
    /// Global entries that shard 0 takes over from the other shards' copies.
    pub globals: Vec<GlobalCopy>,
}

impl Plan {
    pub fn is_due(&self) -> bool {
        self.gives_up || !self.globals.is_empty() || self.report.findings.iter().any(|finding| finding.is_damage)
    }
}

/// What the entries of a log say about what was given out.
#[derive(Debug, Default)]
pub struct Seen {
    /// The greatest timestamp, and the greatest time of an id.
    last_us: i64,
    /// By corpus: quarter and number of the last slot seen, and how many positions could not be read before it.
    slots: HashMap<Prefix, (Quarter, u64, u64)>,
    corpora: BTreeSet<Prefix>,
    next_position: u64,
    pub unreadable: u64,
    /// The last position that could not be read.
    last_unreadable: u64,
    last_readable: u64,
}

impl Seen {
    /// Nothing yet of a log that begins with a position.
    pub fn from(next_position: u64) -> Seen {
        Seen { next_position, ..Seen::default() }
    }

    fn skip_to(&mut self, position: u64) {
        if position > self.next_position {
            self.unreadable += position - self.next_position;
            self.last_unreadable = position - 1;
            self.next_position = position;
        }
    }

    pub fn record(&mut self, raw: &RawRecord<'_>, standing: Standing) {
        // What lies in a hole is not counted as read: its place is not proven.
        if standing != Standing::InHole {
            self.skip_to(raw.position);
            self.next_position = raw.position + 1;
            self.last_readable = raw.position;
        }
        let Ok(record) = Record::decode(raw.kind, raw.body) else { return };
        self.last_us = self.last_us.max(record.meta.timestamp_us);
        match record.entry {
            Entry::Claim(claim) => {
                self.last_us = self.last_us.max(claim.event_id.ms() as i64 * MS_US);
                let quarter = Quarter::of(record.meta.timestamp_us);
                let slot = (quarter, claim.claim_sequence, self.unreadable);
                self.slots.insert(claim.event_id.prefix(), slot);
            }
            Entry::Onboard { prefix, .. } => {
                self.corpora.insert(prefix);
            }
            _ => {}
        }
    }

    /// The last slot of a quarter that a corpus may have been given: every position that can't be read may have been a
    /// claim of it.
    fn floor(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        match self.slots.get(&prefix) {
            Some((last, sequence, before)) if *last == quarter => sequence + (self.unreadable - before),
            Some((_, _, before)) => self.unreadable - before,
            None => self.unreadable,
        }
    }
}

pub fn plan(shards: Vec<ShardReport>, seen: Vec<Seen>) -> Result<Vec<Plan>, String> {
    let mut plans = Vec::new();
    for (report, mut seen) in shards.into_iter().zip(seen) {
        let differs =
            |finding: &&Finding| finding.structure == Structure::GlobalOrder && finding.what.contains("differs");
        if let Some(finding) = report.findings.iter().find(differs) {
            return Err(format!("shard {}: {}: these files are not of one ledger's life", report.shard, finding.what));
        }
        let Some(walked) = &report.walked else {
            let reason = report.findings.first().map_or("it could not be read", |finding| &finding.what);
            return Err(format!("{}: {reason}; restore the file", report.path.display()));
        };
        let (holes, end, proven) = (walked.holes, walked.end, walked.proven);
        seen.skip_to(end.next_position);
        let mut keep = proven;
        if let Some(at) = report.stopped_at.filter(|at| *at < keep.next_batch_at) {
            keep = end_before(&report, at)?;
        }
        let is_end_unknown = report.findings.iter().any(|f| f.is_damage && f.structure == Structure::File);
        plans.push(Plan {
            gives_up: holes > 0 || report.stopped_at.is_some() || is_end_unknown,
            given_up_to: end.next_position - 1,
            is_end_unknown,
            keep,
            seen,
            globals: Vec::new(),
            report,
        });
    }
    restore_globals(&mut plans)?;
    Ok(plans)
}

/// The end of the log before the batch at a log offset.
fn end_before(report: &ShardReport, at: u64) -> Result<LogEnd, String> {
    let superblock = report.superblock.as_ref().ok_or("a report without a superblock has no log")?;
    let mut end = LogEnd::at_start(superblock, 0, Mutation::NONE);
    let mut each = |step: Step| {
        if let Step::Batch(place, _) = step
            && place.log_offset < at
        {
            end = end.after(superblock.geometry, &place);
        }
    };
    let mut source = open(&report.path)?;
    walk(&mut source, superblock, WalkOptions::default(), &mut each, &mut |_| {})
        .map_err(|e| verify::place(&report.path, &e))?;
    Ok(end)
}

/// Lets shard 0 take over what it loses of the global order: every copy is a batch's that verifies.
fn restore_globals(plans: &mut [Plan]) -> Result<(), String> {
    let mut known: BTreeMap<u64, GlobalCopy> = BTreeMap::new();
    for plan in plans.iter() {
        for (sequence, copy) in &plan.report.globals {
            if known.insert(*sequence, copy.clone()).is_some_and(|other| other != *copy) {
                return Err(format!("entry {sequence} of the global order is not the same in all shards"));
            }
        }
    }
    let mut corpora = BTreeSet::new();
    for copy in known.values() {
        if let Ok(Record { entry: Entry::Onboard { prefix, .. }, .. }) = Record::decode(copy.kind, &copy.body) {
            corpora.insert(prefix);
        }
    }
    // What was dropped stands in no copy, and the state behind it tells of it.
    for plan in plans.iter().filter(|plan| plan.report.globals_before > 0) {
        let superblock = plan.report.superblock.as_ref().ok_or("a plan without a superblock")?;
        let shard = state_at_start(&mut open(&plan.report.path)?, superblock)?;
        corpora.extend(shard.registry().corpora().iter().map(|corpus| corpus.prefix));
    }
    // With one shard there is no other copy, and what can't be read may have been onboardings: their prefixes come next.
    let last = corpora.last().map_or(0, |prefix| prefix.get());
    let unread = if plans.len() == 1 { plans[0].seen.unreadable } else { 0 };
    let to = u16::try_from(u64::from(last) + unread).unwrap_or(u16::MAX);
    corpora.extend((last..to).filter_map(|before| Prefix::new(before + 1)));
    plans.iter_mut().for_each(|plan| plan.seen.corpora.extend(&corpora));
    let Some(first) = plans.first_mut() else { return Ok(()) };
    let (shard, _) = state_at(first)?;
    let mut next = shard.globals_applied() + 1;
    while let Some(copy) = known.get(&next) {
        first.globals.push(copy.clone());
        next += 1;
    }
    if let Some((beyond, _)) = known.range(next..).next() {
        // Only entries that no shard has durably can be missing before ones that one has: they were never acknowledged
        // anywhere but in what is given up.
        let kept_beyond = plans.iter().skip(1).any(|plan| !plan.gives_up && plan.report.globals.contains_key(beyond));
        if kept_beyond {
            return Err(format!(
                "entry {next} of the global order is in no file, but entry {beyond} is: restore shard 0 from a backup"
            ));
        }
    }
    Ok(())
}

/// A time above every one that may have been given up: ids of later milliseconds are greater than any id before.
pub fn floor_us(plan: &Plan, clock: ClockMode, now_us: i64) -> i64 {
    let seen = &plan.seen;
    // What could not be read after the last entry that could is not bounded by it; it is by the present.
    let is_bounded = seen.last_readable > seen.last_unreadable && !plan.is_end_unknown;
    let last_us = if is_bounded || clock == ClockMode::Replay { seen.last_us } else { seen.last_us.max(now_us) };
    (last_us / MS_US + 1) * MS_US
}

/// For each corpus that may have been given slots which are given up: the last of them.
pub fn floors(plan: &Plan, floor_us: i64) -> Vec<(Prefix, u64)> {
    let quarter = Quarter::of(floor_us);
    let seen = &plan.seen;
    let prefixes: BTreeSet<_> = seen.corpora.iter().chain(seen.slots.keys()).copied().collect();
    let floors = prefixes.into_iter().map(|prefix| (prefix, seen.floor(prefix, quarter)));
    floors.filter(|(_, sequence)| *sequence > 0).collect()
}
