//! What of an image's ledger may be gone because its retention is over, and what may not.
//!
//! Of a shard: its seals verify, none was made before its quarters were due, every drop that was durable is among them, and the
//! log begins where one of them says. What lies before that beginning is of quarters that were dropped. Of the rows of those
//! quarters exactly those are there that came back in a later quarter and outlive their own.

use crate::history::{History, What};
use crate::image::{Image, run};
use claim_engine::engine::Engine;
use claim_engine::id::EventId;
use claim_engine::log::layout::BLOCK_BYTES;
use claim_engine::log::superblock::Superblock;
use claim_engine::retention::verify_seals;
use claim_engine::sealed::ask_until_read;
use claim_engine::storage::Storage;
use claim_engine::time::Quarter;
use std::collections::HashMap;

/// A shard of an image, as recovery has it.
pub struct Shard<'a, 'i> {
    /// Which.
    pub number: usize,
    /// Its file.
    pub image: &'a Image<'i>,
    /// Its superblock.
    pub superblock: &'a Superblock,
    /// It.
    pub engine: &'a Engine,
    /// Rows that came back, as the log has it from its beginning on: ids and times, in their order.
    pub reactivated: &'a [(u128, i64)],
    /// The last position that is known to be durable, because something in it was acknowledged.
    pub durable_position: u64,
}

/// The first position that is part of a log.
pub fn first_position(superblock: &Superblock) -> u64 {
    superblock.origin.map_or(0, |origin| origin.start.next_position)
}

impl Shard<'_, '_> {
    /// Checks it. The error is a sentence: what is violated.
    pub fn check(&self, history: &History, instant: usize) -> Result<(), String> {
        let shard = self.engine.shard();
        let (seals, years) = (&shard.retention().seals, shard.policy().retention_years());
        verify_seals(seals, &self.superblock.key)?;
        if let Some(early) = seals.iter().find(|seal| seal.quarters.1.end_us_after_years(years) > seal.at_us) {
            return Err(format!(
                "{} was dropped at {} us, before its retention was over",
                early.quarters.1, early.at_us
            ));
        }
        let first_segment = self.superblock.first_segment();
        if first_segment > 0 && !seals.iter().any(|seal| seal.segments.1 == first_segment) {
            return Err(format!("the log begins with segment {first_segment}, where no seal has it begin"));
        }
        let logged = || history.of_shard(self.number, instant);
        let is_durable_drop = |what, position| what == What::Drop && position <= self.durable_position;
        let drops = logged().filter(|logged| is_durable_drop(logged.what, logged.position)).count();
        if seals.len() < drops {
            return Err(format!("{drops} quarters were dropped, and {} seals are there", seals.len()));
        }
        let Some(last) = seals.last() else { return Ok(()) };
        let beginning = first_position(self.superblock);
        let gone = || logged().filter(|logged| logged.position < beginning);
        if let Some(early) = gone().find(|logged| Quarter::of(logged.at_us) > last.quarters.1) {
            let (position, quarter) = (early.position, Quarter::of(early.at_us));
            return Err(format!("position {position} is of {quarter} and gone, dropped is up to {}", last.quarters.1));
        }
        // When a row came back last counts; what lies before the beginning comes first.
        let mut back: HashMap<u128, i64> = HashMap::new();
        for logged in gone() {
            if let What::Reactivate(event_id) = logged.what {
                back.insert(event_id, logged.at_us);
            }
        }
        back.extend(self.reactivated.iter().copied());
        for logged in logged() {
            let What::Claim(event_id) = logged.what else { continue };
            let own = Quarter::of(logged.at_us);
            if own > last.quarters.1 {
                continue;
            }
            let came_back = back.get(&event_id).map(|at_us| Quarter::of(*at_us)).filter(|quarter| *quarter != own);
            let effective = came_back.map_or(own, Quarter::next);
            let is_there = self.has(event_id)?;
            if is_there && effective <= last.quarters.1 {
                return Err(format!("row {event_id:032x} counts in {effective}, which was dropped, and is there"));
            }
            let outlives = effective > last.quarters.1 && effective.end_us_after_years(years) > last.at_us;
            if !is_there && outlives {
                return Err(format!(
                    "row {event_id:032x} of {own} counts in {effective}, outlives its quarter, and is lost"
                ));
            }
        }
        Ok(())
    }

    /// Whether a row is there; what that takes is read.
    fn has(&self, event_id: u128) -> Result<bool, String> {
        let event_id = EventId::from_u128(event_id).ok_or_else(|| format!("{event_id:032x} is no id"))?;
        let rows = self.engine.shard().rows();
        let found = ask_until_read(
            rows.catalog(),
            || rows.get(event_id),
            |at| {
                let file_offset = self.superblock.geometry.file_offset(at);
                let read = run(self.image.read_at(file_offset, BLOCK_BYTES as usize));
                read.map_err(|e| format!("reading at {file_offset}: {e}"))
            },
        )?;
        Ok(found.is_some())
    }
}
