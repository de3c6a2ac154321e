//! Up to where each shard is restored.

use super::usage;
use crate::backup::Failure;
use crate::backup::check::{self, Backup};
use crate::rewriting::MS_US;
use crate::verify;
use claim_engine::corpus::Prefix;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{self, Entry, Record};
use claim_engine::log::record::RawRecord;
use claim_engine::log::superblock::{ClockMode, Origin};
use claim_engine::log::verify::Standing;
use claim_engine::retention::Dropped;
use claim_engine::time::{Quarter, rfc3339};
use indicatif::ProgressBar;
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

/// Up to where a ledger is restored, inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A moment, microseconds since the epoch.
    Time(i64),
    /// The position of a ledger with one shard.
    Position(u64),
    /// Positions of shards. The others are cut at the latest time of those.
    Positions(BTreeMap<u16, u64>),
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<To, String> {
        if let Ok(position) = text.parse() {
            return Ok(To::Position(position));
        }
        let mut positions = BTreeMap::new();
        for part in text.split(',') {
            let pair = part.split_once(':').and_then(|(shard, at)| Some((shard.parse().ok()?, at.parse().ok()?)));
            match pair {
                Some((shard, position)) if positions.insert(shard, position).is_some() => {
                    return Err(format!("shard {shard} is named twice"));
                }
                Some(_) => {}
                None if !positions.is_empty() => return Err(format!("'{part}' is no position; write it like 1:4711")),
                None => break,
            }
        }
        if !positions.is_empty() {
            return Ok(To::Positions(positions));
        }
        let at = text.parse::<jiff::Timestamp>();
        at.map(|at| To::Time(at.as_microsecond())).map_err(|error| {
            format!("{error}; write a time like 2026-01-31T09:30:00Z, or positions like 0:4711,1:815, or one like 4711")
        })
    }
}

/// Where a shard's log is to end.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Time(i64),
    Position(u64),
}

/// What a shard's part of the backup says.
#[derive(Debug, Default)]
pub struct Seen {
    /// The greatest timestamp, and the greatest time of an id: whether restored or not.
    last_us: i64,
    /// By corpus: quarter and number of the last slot.
    slots: HashMap<Prefix, (Quarter, u64)>,
    /// Positions of the entries of the global order.
    globals: BTreeMap<u64, u64>,
    /// The last position that is restored, and its time.
    pub cut: u64,
    cut_us: i64,
    pub incarnation_max: u64,
    /// Entries of the global order before the log's beginning.
    pub globals_before: u64,
    /// Where the log begins, if its first segments were dropped.
    origin: Option<Origin>,
    /// The entry that dropped them, and its time: what it says of them is a part of what is left.
    earliest: Option<(u64, i64)>,
}

impl Seen {
    fn record(&mut self, raw: &RawRecord<'_>, limit: Limit) {
        let Ok(record) = Record::decode(raw.kind, raw.body) else { return };
        let at_us = record.meta.timestamp_us;
        self.last_us = self.last_us.max(at_us);
        let is_in = match limit {
            Limit::Time(limit_us) => at_us <= limit_us,
            Limit::Position(limit) => raw.position <= limit,
        };
        if is_in {
            (self.cut, self.cut_us) = (raw.position, at_us);
        }
        if let Some(sequence) = record.entry.global_sequence() {
            self.globals.insert(sequence, raw.position);
        }
        match record.entry {
            Entry::Claim(claim) => {
                self.last_us = self.last_us.max(claim.event_id.ms() as i64 * MS_US);
                self.slots.insert(claim.event_id.prefix(), (Quarter::of(at_us), claim.claim_sequence));
            }
            // Slots go on above these.
            Entry::Repair { floors, .. } | Entry::Restore { floors, .. } => {
                let quarter = Quarter::of(at_us);
                self.slots.extend(entry::floors(floors).map(|(prefix, sequence)| (prefix, (quarter, sequence))));
            }
            Entry::RetentionDrop { dropped } => {
                let begins_with = Dropped::decode(dropped).map(|dropped| LogEnd::from(dropped.start));
                if self.origin.is_some_and(|origin| Ok(origin.start) == begins_with) {
                    self.earliest = Some((raw.position, at_us));
                }
            }
            _ => {}
        }
    }

    /// For each corpus the last slot that it was given in a quarter.
    pub fn floors(&self, quarter: Quarter) -> Vec<(Prefix, u64)> {
        let given = self.slots.iter().filter(|(_, (last, _))| *last == quarter);
        let mut floors: Vec<_> = given.map(|(prefix, (_, sequence))| (*prefix, *sequence)).collect();
        floors.sort_unstable_by_key(|(prefix, _)| prefix.get());
        floors
    }
}

/// Verifies the backup, and finds where each shard is cut.
pub fn plan(backup: &Backup, to: Option<&To>, bar: &ProgressBar) -> Result<Vec<Seen>, Failure> {
    let manifest = &backup.manifest;
    let named = named(backup, to)?;
    let mut limit = match to {
        Some(To::Time(at_us)) => {
            if let Some(last_us) = manifest.consistent_to_us.filter(|last_us| at_us > last_us) {
                return Err(usage(format!(
                    "the backup has the ledger up to {}; name an earlier time, or leave --to out for all of it",
                    rfc3339(last_us)
                )));
            }
            Limit::Time(*at_us)
        }
        _ => Limit::Time(manifest.consistent_to_us.unwrap_or(i64::MAX)),
    };
    bar.set_length(manifest.shards.iter().map(|part| backup.bytes_of(part)).sum());
    // Those with a position come first: their times are where the others are cut.
    let mut order: Vec<_> = manifest.shards.iter().map(|part| part.shard).collect();
    order.sort_by_key(|shard| !named.contains_key(shard));
    let mut all = BTreeMap::new();
    let mut named_us = None;
    for shard in order {
        let own = named.get(&shard).map(|position| Limit::Position(*position));
        if let (None, Some(at_us)) = (own, named_us) {
            limit = Limit::Time(at_us);
        }
        let limit = own.unwrap_or(limit);
        let origin = backup.superblocks[usize::from(shard)].as_ref().and_then(|superblock| superblock.origin);
        let mut seen = Seen { origin, ..Seen::default() };
        let each = Box::new(|raw: &RawRecord<'_>, _: u64, _: Standing| seen.record(raw, limit));
        let report = backup.verify_shard(shard, bar, Some(each))?;
        seen.globals_before = report.globals_before;
        seen.incarnation_max = report.walked.as_ref().map_or(0, |walked| walked.incarnation_max);
        if own.is_some() {
            named_us = named_us.max(Some(seen.cut_us));
        }
        all.insert(shard, (seen, report));
    }
    let (mut seen, mut reports): (Vec<_>, Vec<_>) = all.into_values().unzip();
    verify::compare(&mut reports);
    let damage: Vec<_> =
        reports.iter().flat_map(|report| &report.findings).filter(|finding| finding.is_damage).collect();
    if let Some(first) = damage.first() {
        let more = if damage.len() > 1 { format!(", and {} more", damage.len() - 1) } else { String::new() };
        return Err(Failure::damaged(format!(
            "the backup is damaged, and nothing was written: {}{more}; `claimd verify {}` names all of it, and another \
             backup may be whole",
            check::line(backup, first),
            backup.dir.display()
        )));
    }
    close(&mut seen);
    for (shard, seen) in seen.iter().enumerate() {
        if let Some((position, at_us)) = seen.earliest.filter(|(position, _)| seen.cut < *position) {
            return Err(usage(format!(
                "the backup has shard {shard} from position {position} on, of {}: what stood before was dropped before it was \
                 made. Name a later time or position with --to, or an older backup with --from",
                rfc3339(at_us)
            )));
        }
    }
    if seen.first().is_none_or(|first| first.cut == 0) {
        return Err(usage("nothing of shard 0 is as old as that; name a later time or position with --to".to_owned()));
    }
    Ok(seen)
}

/// The positions that were asked for, by shard.
fn named(backup: &Backup, to: Option<&To>) -> Result<BTreeMap<u16, u64>, Failure> {
    let shards = &backup.manifest.shards;
    let named = match to {
        Some(To::Position(position)) if shards.len() == 1 => BTreeMap::from([(0, *position)]),
        Some(To::Position(position)) => {
            let count = shards.len();
            return Err(usage(format!(
                "{position} is a position of which shard? The ledger has {count}: write it like 0:{position}"
            )));
        }
        Some(To::Positions(positions)) => positions.clone(),
        _ => BTreeMap::new(),
    };
    for (shard, position) in &named {
        let Some(part) = shards.get(usize::from(*shard)) else {
            return Err(usage(format!("there is no shard {shard}: the backup has {}, from 0", shards.len())));
        };
        if *position > part.end.position {
            return Err(usage(format!(
                "the backup has shard {shard} up to position {}, not {position}",
                part.end.position
            )));
        }
    }
    Ok(named)
}

/// No shard keeps an entry of the global order that shard 0 does not keep.
fn close(seen: &mut [Seen]) {
    let Some((first, others)) = seen.split_first_mut() else { return };
    let kept =
        first.globals.iter().filter(|(_, position)| **position <= first.cut).map(|(sequence, _)| *sequence).max();
    for other in others {
        let ahead =
            other.globals.range(kept.unwrap_or(first.globals_before) + 1..).next().map(|(_, position)| *position);
        if let Some(position) = ahead.filter(|position| *position <= other.cut) {
            other.cut = position - 1;
        }
    }
}

/// A time above the present, and above every time and id that the backup knows of; ids of later milliseconds are greater than
/// any id before. In a replay ledger the present is what requests say.
pub fn floor_us(seen: &[Seen], clock: ClockMode) -> i64 {
    let last_us = seen.iter().map(|seen| seen.last_us).max().unwrap_or(0);
    let last_us = if clock == ClockMode::Replay { last_us } else { last_us.max(crate::clock::now().wall_us) };
    (last_us / MS_US + 1) * MS_US
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_is_a_time_or_positions() {
        let positions = |pairs: &[(u16, u64)]| Ok(To::Positions(pairs.iter().copied().collect()));
        assert_eq!("4711".parse(), Ok(To::Position(4711)));
        assert_eq!("1:815".parse(), positions(&[(1, 815)]));
        assert_eq!("0:4711,1:815".parse(), positions(&[(0, 4711), (1, 815)]));
        assert_eq!("1970-01-01T00:00:01.5Z".parse(), Ok(To::Time(1_500_000)));
        for wrong in ["", "yesterday", "0:1,0:2", "0:1,x", "70000:1", "2026-01-31"] {
            assert!(wrong.parse::<To>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_shard_keeps_what_shard_0_does_not_keep() {
        let seen =
            |cut, globals: &[(u64, u64)]| Seen { cut, globals: globals.iter().copied().collect(), ..Seen::default() };
        let mut shards =
            [seen(10, &[(1, 3), (2, 9), (3, 11)]), seen(20, &[(1, 4), (2, 6), (3, 15)]), seen(5, &[(1, 4), (2, 6)])];
        close(&mut shards);
        assert_eq!(shards.map(|shard| shard.cut), [10, 14, 5]);
    }
}
