//! Draws crash images from traces and checks each of them.

use crate::check::{Expectations, check, superblocks};
use crate::history::takes_again;
use crate::image::Image;
use crate::model::Model;
use crate::trace::{Event, Trace};
use claim_engine::entropy::Entropy;
use claim_engine::log::superblock::Superblock;
use claim_engine::mutant::{Mutant, Mutation};
use serde::Serialize;
use std::collections::HashSet;

/// A disk sector: the unit between which the flaky disk tears a write.
pub const SECTOR_BYTES: u64 = 512;
/// Images that may be drawn in vain, because they were drawn before, for each one that is wanted.
const TRIES: u64 = 4;

/// What was done.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Counts {
    /// Distinct images checked.
    pub images: u64,
    /// Of them, those with a write that the cut may lose.
    pub with_volatile: u64,
    /// Of them, those with two or more writes under way.
    pub with_two_in_flight: u64,
    /// Of them, those in whose trace the daemon had been killed before.
    pub after_kill: u64,
    /// Of them, those of an instant from a drop's entry until its segments are free.
    pub around_drop: u64,
    /// Places of rings that were taken again.
    pub taken_again: u64,
}

impl Counts {
    /// Adds another count.
    pub fn add(&mut self, other: &Counts) {
        self.images += other.images;
        self.with_volatile += other.with_volatile;
        self.with_two_in_flight += other.with_two_in_flight;
        self.after_kill += other.after_kill;
        self.around_drop += other.around_drop;
        self.taken_again += other.taken_again;
    }
}

/// An image that breaks the promise, and how to see it again.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    /// The instant of the cut.
    pub instant: usize,
    /// The number of the image at that instant.
    pub draw: u64,
    /// Images checked up to and with this one.
    pub images: u64,
    /// What is violated.
    pub what: String,
}

/// The mutation of recovery that belongs to a trace: what a build with that bug would recover with.
pub fn mutation_of(trace: &Trace) -> Mutation {
    Mutation::new(trace.mutant.as_deref().and_then(Mutant::from_name))
}

/// Draws `images` distinct images from a trace, spread over its instants, and checks them until one breaks the promise.
///
/// Instants with two or more writes under way get four times the images of those with one, and those around a drop eight times
/// as many again.
pub fn cut(
    trace: &Trace,
    images: u64,
    mutation: Mutation,
    mut progress: impl FnMut(u64),
) -> Result<(Counts, Option<Violation>), String> {
    let superblocks = superblocks(trace)?;
    let expectations = Expectations::of(trace, &superblocks, mutation);
    let instants = instants(trace);
    let drops = expectations.history.drops(trace, &superblocks);
    let is_around_drop = |instant: usize| drops.iter().any(|span| span.contains(&instant));
    let weight_of = |instant: usize, in_flight: usize| {
        (if in_flight >= 2 { 4 } else { 1 }) * if is_around_drop(instant) { 8 } else { 1 }
    };
    let total: u64 = instants.iter().map(|(instant, in_flight)| weight_of(*instant, *in_flight)).sum();
    let is_taken = |event: &&Event| superblocks.iter().any(|(index, of)| takes_again(event, *index, of));
    let taken_again = trace.events.iter().filter(is_taken).count() as u64;
    let mut counts = Counts { taken_again, ..Counts::default() };
    let mut drawn = HashSet::new();
    let mut model = Model::new(trace);
    let (mut owed, mut reported) = (0.0, 0);
    let mut was_killed = false;
    // The disk as the trace found it must open, too.
    if let Err(what) = check_at(&model, 0, &superblocks, &expectations, mutation) {
        return Ok((counts, Some(Violation { instant: 0, draw: 0, images: 1, what })));
    }
    for (instant, in_flight) in instants {
        while model.instant() < instant {
            was_killed |= matches!(trace.events[model.instant()], Event::Killed);
            model.advance();
        }
        owed += images as f64 * weight_of(instant, in_flight) as f64 / total as f64;
        let wanted = owed as u64;
        for draw in 0..wanted * TRIES {
            if owed < 1.0 {
                break;
            }
            let mut entropy = entropy_of(instant, draw);
            let (files, fingerprint) = model.image(&mut entropy, SECTOR_BYTES);
            // One that was drawn before is checked against what clients know by now, and is not counted again.
            if drawn.insert(fingerprint) {
                owed -= 1.0;
                counts.images += 1;
                counts.with_volatile += 1;
                counts.with_two_in_flight += u64::from(in_flight >= 2);
                counts.after_kill += u64::from(was_killed);
                counts.around_drop += u64::from(is_around_drop(instant));
            }
            let shards: Vec<&Image<'_>> = superblocks.iter().map(|(index, _)| &files[*index]).collect();
            if let Err(what) = check(&shards, &superblocks, &expectations, instant, mutation, &mut entropy) {
                return Ok((counts, Some(Violation { instant, draw, images: counts.images, what })));
            }
        }
        // What could not be drawn here, because there are no more different ones, is left to the next instants.
        progress(counts.images - reported);
        reported = counts.images;
    }
    Ok((counts, None))
}

/// Checks one image again, as a violation names it.
pub fn replay(trace: &Trace, instant: usize, draw: u64, mutation: Mutation) -> Result<(), String> {
    let superblocks = superblocks(trace)?;
    let expectations = Expectations::of(trace, &superblocks, mutation);
    let mut model = Model::new(trace);
    while model.instant() < instant && model.advance() {}
    check_at(&model, draw, &superblocks, &expectations, mutation)
}

fn check_at(
    model: &Model<'_>,
    draw: u64,
    superblocks: &[(usize, Superblock)],
    expectations: &Expectations<'_>,
    mutation: Mutation,
) -> Result<(), String> {
    let mut entropy = entropy_of(model.instant(), draw);
    let (files, _) = model.image(&mut entropy, SECTOR_BYTES);
    let shards: Vec<&Image<'_>> = superblocks.iter().map(|(index, _)| &files[*index]).collect();
    check(&shards, superblocks, expectations, model.instant(), mutation, &mut entropy)
}

fn entropy_of(instant: usize, draw: u64) -> Entropy {
    Entropy::from_seed_u64((instant as u64) << 20 ^ draw)
}

/// The instants worth cutting at: the last ones before the disk's state changes, so that they come with every
/// acknowledgement given in that state. Only those at which a write may be lost; with the number of writes under way.
pub fn instants(trace: &Trace) -> Vec<(usize, usize)> {
    let mut model = Model::new(trace);
    let mut found = Vec::new();
    loop {
        let before = (model.instant(), model.in_flight(), model.volatile_writes(), model.version());
        let more = model.advance();
        if (!more || model.version() != before.3) && before.2 > 0 {
            found.push((before.0, before.1));
        }
        if !more {
            return found;
        }
    }
}
