//! What has to be so of a ledger with retention, whatever instant a crash came at.

use super::{CORPORA, Counts, Plain, Years};
use crate::command::{Operation, Outcome};
use crate::engine::Engine;
use crate::error::Code;
use crate::log::entry::{Entry, Record};
use crate::log::layout::BLOCK_BYTES;
use crate::log::superblock::{COPIES, Superblock, copy_offset};
use crate::log::verify::{self, Content, Source, Step, Structure, WalkOptions};
use crate::retention::{QuarterSeal, verify_seals};
use crate::row::Lifecycle;
use crate::shard::rows::Found;
use crate::simulation::machine::Machine;
use crate::time::Quarter;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Ticks in which everything that is due is dropped, at least and at most.
pub(super) const TICKS_MIN: u32 = 8;
/// See [`TICKS_MIN`].
const TICKS_MAX: u32 = 60;

impl Years {
    /// A start leaves no copy of the superblock with which the log would begin earlier.
    pub(super) fn check_copies(&self, shard: usize) -> Result<(), String> {
        let superblock = self.machine.engine(shard).ok_or("a shard is down")?.superblock();
        let image = self.machine.image(shard);
        let of_copy = |copy: u64| Superblock::decode(&image[copy_offset(copy) as usize..][..BLOCK_BYTES as usize]);
        let begins = (0..COPIES).map(|copy| of_copy(copy).ok().flatten().map(|found| found.first_segment()));
        let begins: Vec<_> = begins.collect();
        let is_stale = |begin: &Option<u64>| begin.is_none_or(|first| first < superblock.first_segment());
        match superblock.origin.is_some() && begins.iter().any(is_stale) {
            true => Err(format!("a start leaves copies of the superblock that begin the log at {begins:?}")),
            false => Ok(()),
        }
    }

    /// A shard's file verifies.
    pub(super) fn check_verifies(&self, shard: usize) -> Result<(), String> {
        let engine = self.machine.engine(shard).ok_or("a shard is down")?;
        verifies(engine.superblock(), self.machine.image(shard), engine.shard().rows().catalog().end())
    }

    /// Everything that is due has been dropped, and what is there is what the list says.
    pub(super) fn check(&mut self) -> Result<(), String> {
        for ticks in 1..=TICKS_MAX {
            self.tick();
            self.machine.settle()?;
            let is_done = |engine: &Engine| engine.superblock().first_segment() == dropped_before(engine);
            if ticks >= TICKS_MIN && self.machine.engines().all(is_done) {
                break;
            }
        }
        for shard in 0..self.machine.shard_count() {
            self.check_shard(shard)?;
            self.check_freed(shard)?;
            self.check_verifies(shard)?;
        }
        for (event_id, row) in self.rows.clone() {
            let outcome = self.ask(self.shard_of(row.corpus), "", &Operation::Lookup { event_id })?;
            let is_expired = row.expires_us() <= self.at_us;
            let is_right = match &outcome {
                Outcome::Row(found) if is_expired => found.view.lifecycle == Lifecycle::Expired,
                Outcome::Row(found) => (found.view.lifecycle == Lifecycle::Tombstoned) == row.is_retracted,
                Outcome::Refused(refusal) => is_expired && refusal.code == Code::Expired,
                _ => false,
            };
            if !is_right {
                return Err(format!("{event_id}, {row:?} at {}: looked up as {outcome:?}", self.at_us));
            }
        }
        if self.archives.is_empty() { Ok(()) } else { self.check_archive() }
    }

    /// Brings the archive up to date. What it has verifies, and makes the same ledger again: at once, and after crashes while it is
    /// sealed.
    fn check_archive(&mut self) -> Result<(), String> {
        for shard in 0..self.archives.len() {
            self.archives[shard].bring_up_to_date(&self.machine, shard);
        }
        if self.below(3) != 0 {
            return Ok(());
        }
        for archive in &self.archives {
            verifies(&archive.superblock, archive.image.clone(), 0).map_err(|what| format!("an archive: {what}"))?;
        }
        let files = self.archives.iter().map(|archive| (archive.image.clone(), archive.superblock.clone()));
        let machine = Machine::of_files(files.collect(), self.machine.entropy.next_u64(), self.machine.now);
        let mut restored = Years {
            machine,
            rows: self.rows.clone(),
            at_us: self.at_us,
            next: self.next,
            counts: Counts::default(),
            held: self.held,
            archives: Vec::new(),
            is_calm: false,
        };
        restored.live_again().map_err(|what| format!("restored from an archive: {what}"))?;
        self.counts.restored += 1;
        for shard in 0..self.archives.len() {
            if self.below(2) == 0 {
                self.archives[shard] = self.archive_of(shard);
            }
        }
        Ok(())
    }

    /// Opens the ledger, again and again while its segments are sealed, and goes on with it.
    fn live_again(&mut self) -> Result<(), String> {
        for _ in 0..1 + self.below(5) {
            self.machine.open(None)?;
            for shard in 0..self.machine.shard_count() {
                self.check_shard(shard)?;
                self.check_verifies(shard)?;
            }
            for _ in 0..self.below(400) {
                self.machine.complete_one();
                self.machine.deliver_one();
                self.machine.pump();
            }
            let is_cut = self.below(2) == 0;
            self.machine.crash(is_cut, 0, 1_000_000);
        }
        self.machine.recover(None)?;
        self.check()?;
        for _ in 0..self.below(6) {
            self.claim()?;
            self.change()?;
        }
        self.check()
    }

    pub(super) fn check_shard(&mut self, number: usize) -> Result<(), String> {
        let engine = self.machine.engine(number).ok_or("a shard is down")?;
        let (shard, superblock) = (engine.shard(), engine.superblock().clone());
        let retention = shard.retention().clone();
        verify_seals(&retention.seals, &superblock.key)?;
        let gone_to = retention.dropped_to();
        if self.held.is_some() && gone_to >= self.held {
            return Err(format!("{:?} is held, and what is up to {gone_to:?} is dropped", self.held));
        }
        let is_gone = |row: &Plain| gone_to.is_some_and(|gone| Quarter::of(row.claimed_us) <= gone);
        let last_us = shard.last_us();
        let first = shard.rows().catalog().first();
        let corpora: Vec<_> = shard.registry().corpora().iter().map(|c| (c.prefix, c.name.clone(), c.shard)).collect();
        let carried = shard.rows().carried().len() as u64;
        for (prefix, name, home) in corpora {
            if usize::from(home) != number {
                continue;
            }
            let scanned = self.machine.rows_of(number, prefix)?;
            let of_corpus = self.rows.iter().filter(|(_, row)| CORPORA[row.corpus] == name);
            let stays = |row: &Plain| !is_gone(row) || row.expires_us() > last_us;
            for (event_id, row) in of_corpus {
                let in_scan = scanned.iter().find(|found| found.event_id == *event_id);
                if stays(row) && in_scan.is_none() {
                    return Err(format!("a scan of {name} lacks {event_id}, {row:?}"));
                }
                let got = self.machine.fetch(number, |engine| engine.shard().rows().get(*event_id))?;
                // Of a row that is logged again and not gone yet they name different places.
                let what = |found: &Found| (found.state, found.claim_timestamp_us, found.reactivated_at_us);
                if got.as_ref().map(what) != in_scan.map(what) {
                    return Err(format!("{event_id}, {row:?}, is {got:?}, and in a scan of {name} {in_scan:?}"));
                }
                let is_retracted = in_scan.map(|found| found.state.lifecycle() == Lifecycle::Tombstoned);
                if stays(row) && is_retracted != Some(row.is_retracted) {
                    return Err(format!("{event_id}, {row:?}, is {in_scan:?}"));
                }
            }
            for found in &scanned {
                let row = self.rows.get(&found.event_id).ok_or("a scan finds what nobody claimed")?;
                let is_carried = gone_to.is_some_and(|gone| row.effective() > gone);
                if is_gone(row) && !is_carried {
                    return Err(format!("a scan of {name} finds {}, {row:?}, of a dropped quarter", found.event_id));
                }
                if let Some(tombstone) = found.tombstone {
                    let (_, kind, body) = self.machine.read_record(number, tombstone.entry_at)?;
                    let record = Record::decode(kind, &body).map_err(|e| e.to_string())?;
                    if record.meta.rationale != "simulated" {
                        return Err(format!("{}, {row:?}, has no reason: {record:?}", found.event_id));
                    }
                }
            }
            let mut ids: Vec<_> = scanned.iter().map(|found| found.event_id).collect();
            ids.dedup();
            if ids.len() != scanned.len() || !ids.is_sorted() {
                return Err(format!("a scan of {name} has a row twice, or out of order"));
            }
            let counted = self.machine.fetch(number, |engine| engine.shard().rows().count_totals(prefix))?;
            let shard = self.machine.engine(number).ok_or("a shard is down")?.shard();
            let kept = shard.rows().totals(prefix);
            if kept != counted || shard.rows().count_of(prefix) != scanned.len() as u64 {
                return Err(format!("the totals of {name} are {kept:?}, counted {counted:?}, {} rows", scanned.len()));
            }
        }
        self.counts.dropped = self.counts.dropped.max(retention.seals.len() as u64);
        self.counts.carried = self.counts.carried.max(carried);
        self.check_seals(number, &retention.seals)?;
        if first < superblock.first_segment() {
            return Err("the superblock has dropped what the state has not".into());
        }
        self.check_replay(number)
    }

    /// Each quarter is in one seal, with all rows that were claimed in it.
    fn check_seals(&self, number: usize, seals: &[QuarterSeal]) -> Result<(), String> {
        let registry = self.machine.engine(number).ok_or("a shard is down")?.shard().registry();
        let mut sealed: BTreeMap<(String, Quarter), u64> = BTreeMap::new();
        for total in seals.iter().flat_map(|seal| &seal.totals) {
            let corpus = registry.corpora().iter().find(|corpus| corpus.prefix.get() == total.prefix);
            let name = corpus.ok_or("a seal counts rows of no corpus")?.name.clone();
            if sealed.insert((name, total.quarter), total.rows.iter().sum()).is_some() {
                return Err(format!("two seals of shard {number} count {}", total.quarter));
            }
        }
        let gone_to = seals.last().map(|seal| seal.quarters.1);
        let mut claimed: BTreeMap<(String, Quarter), u64> = BTreeMap::new();
        for row in self.rows.values().filter(|row| gone_to.is_some_and(|gone| Quarter::of(row.claimed_us) <= gone)) {
            if self.shard_of(row.corpus) == number {
                *claimed.entry((CORPORA[row.corpus].to_owned(), Quarter::of(row.claimed_us))).or_default() += 1;
            }
        }
        match sealed == claimed {
            true => Ok(()),
            false => Err(format!("the seals of shard {number} count {sealed:?}, claimed were {claimed:?}")),
        }
    }

    /// What was dropped is no part of the log any more, and that is free.
    fn check_freed(&mut self, shard: usize) -> Result<(), String> {
        let engine = self.machine.engine(shard).ok_or("a shard is down")?;
        let (geometry, first_segment) = (engine.superblock().geometry, engine.superblock().first_segment());
        let dropped_to = dropped_before(engine);
        if first_segment != dropped_to {
            return Err(format!("segments before {dropped_to} were dropped, and the log begins with {first_segment}"));
        }
        self.counts.freed = self.counts.freed.max(first_segment);
        if geometry.is_ring() {
            let prepared = u64::from(engine.status().segments_prepared);
            self.counts.laps = self.counts.laps.max((prepared - 1) / geometry.ring_segments);
            return Ok(());
        }
        let image = self.machine.log_image(shard);
        let gone = &image[..geometry.segment_start(first_segment) as usize];
        match gone.chunks(BLOCK_BYTES as usize).position(|block| block.iter().any(|byte| *byte != 0)) {
            None => Ok(()),
            Some(block) => Err(format!("block {block} is before segment {first_segment} and not free")),
        }
    }

    /// A replay from where the log begins comes to the same small state.
    fn check_replay(&mut self, number: usize) -> Result<(), String> {
        self.counts.replays += 1;
        let replayed = self.machine.reopened_from_start(number)?;
        let shard = self.machine.engine(number).ok_or("a shard is down")?.shard();
        let (found, expected) = (replayed.shard(), shard);
        if found.retention().seals != expected.retention().seals || found.rows().carried() != expected.rows().carried()
        {
            return Err("a replay from the log's beginning has other seals or other rows that were logged again".into());
        }
        for corpus in expected.registry().corpora() {
            if found.rows().totals(corpus.prefix) != expected.rows().totals(corpus.prefix) {
                return Err(format!(
                    "a replay from the log's beginning counts {:?} of {}, the shard {:?}",
                    found.rows().totals(corpus.prefix),
                    corpus.name,
                    expected.rows().totals(corpus.prefix)
                ));
            }
            let counted = found.rows().count_totals(corpus.prefix).map_err(|unread| unread.to_string())?;
            if counted != found.rows().totals(corpus.prefix) {
                return Err(format!(
                    "a replay from the log's beginning has other rows of {}: {counted:?}",
                    corpus.name
                ));
            }
        }
        Ok(())
    }

    /// The history of a row that was logged again begins with that.
    pub(super) fn check_histories(&mut self) -> Result<(), String> {
        for shard in 0..self.machine.shard_count() {
            let carried: Vec<_> = match self.machine.engine(shard) {
                Some(engine) => engine.shard().rows().carried().keys().copied().collect(),
                None => return Err("a shard is down".into()),
            };
            for event_id in carried {
                let (entries, _) = self.machine.fetch(shard, |engine| {
                    let rows = engine.shard().rows();
                    let found = rows.get(event_id)?;
                    found.map_or(Ok((Vec::new(), false)), |found| rows.history(&found, 0, 1_000))
                })?;
                let first = entries.first().ok_or_else(|| format!("{event_id} was logged again and has no history"))?;
                entries.iter().try_for_each(|at| self.machine.read_record(shard, *at).map(|_| ()))?;
                let (_, kind, body) = self.machine.read_record(shard, *first)?;
                let record = Record::decode(kind, &body).map_err(|e| e.to_string())?;
                match record.entry {
                    Entry::Carry { claim, .. } if claim.event_id == event_id => {}
                    other => return Err(format!("the history of {event_id} begins with {other:?}")),
                }
            }
        }
        Ok(())
    }
}

/// The first segment that was not dropped.
fn dropped_before(engine: &Engine) -> u64 {
    engine.shard().retention().seals.last().map_or(0, |seal| seal.segments.1)
}

/// Whether a file with this superblock is what it must be, and its rows are in memory only from this segment on.
fn verifies(superblock: &Superblock, image: Vec<u8>, sealed_to: u64) -> Result<(), String> {
    let mut source = Bytes::from(image);
    let beside = source.clone();
    let read = Box::new(move |at, bytes| Ok(beside.clone().read(at, bytes)?.to_vec()));
    let mut content = Content::new(superblock, verify::state_at_start(&mut source, superblock)?, read);
    let mut each = |step: Step| content.step(step);
    verify::walk(&mut source, superblock, WalkOptions::default(), &mut each, &mut |_| {}).map_err(|e| e.to_string())?;
    content.finish().map_err(|e| e.to_string())?;
    // Nor is there an index that is not what its segment's records make.
    let damage = content.findings().iter().find(|finding| finding.is_damage || finding.structure == Structure::Index);
    if let Some(finding) = damage {
        return Err(format!("verification finds {finding:?}"));
    }
    let released_to = content.shard().map_or(0, |shard| shard.rows().catalog().end());
    match sealed_to <= released_to {
        true => Ok(()),
        false => {
            Err(format!("segments before {sealed_to} are sealed, and verification has the rows of {released_to} on"))
        }
    }
}
