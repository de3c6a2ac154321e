//! Verification of a log whose segments are sealed: rows leave memory with their segments, and what is found is what would be found
//! if they stayed.

use super::carrying::Ledger;
use super::machine::Machine;
use crate::engine::FULL_SEGMENTS_MAX;
use crate::id::EventId;
use crate::log::batch::{self, BATCH_HEADER_BYTES, Hash};
use crate::log::entry::{Entry, Record};
use crate::log::layout::BLOCK_BYTES;
use crate::log::record;
use crate::log::recovery::BatchPlace;
use crate::log::superblock::{ClockMode, Superblock};
use crate::log::verify::{self, Content, Finding, Source, Step, Structure, WalkOptions};
use crate::mutant::Mutation;
use crate::sealed::run::page_bytes;
use crate::sealed::summary::{BatchStart, Summary};
use crate::sealed::{Checkpoint, Seal, append_bytes, seal_batch, sealed_by};
use crate::time::Now;
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use xxhash_rust::xxh3::xxh3_64;

/// Claims of the ledger: some 600 are in a segment.
const CLAIMS: usize = 12_000;
const METADATA: [u8; 1_500] = [7; 1_500];

/// A log, and its rows in the order of their claims.
struct Log {
    image: Bytes,
    superblock: Superblock,
    ids: Vec<EventId>,
    now: Now,
}

/// Of many segments; early rows changed much later, some of them again and again.
fn log() -> Log {
    let mut ledger = Ledger::new(ClockMode::Wall);
    ledger.go_to(31);
    let mut ids = ledger.claim(CLAIMS / 2, &METADATA);
    let early: Vec<_> = ids.iter().copied().step_by(7).take(200).collect();
    ledger.retract(&early);
    ids.extend(ledger.claim(CLAIMS / 4, &METADATA));
    ledger.reactivate(&early[..100]);
    ledger.go_to(120);
    ids.extend(ledger.claim(CLAIMS / 4, &METADATA));
    ledger.retract(&early[..50]);
    of_machine(&ledger.machine, ids)
}

fn of_machine(machine: &Machine, ids: Vec<EventId>) -> Log {
    let image = Bytes::from(machine.image(0));
    let superblock = verify::superblocks(&mut image.clone(), 0, None).unwrap().0.unwrap();
    Log { image, superblock, ids, now: machine.now }
}

/// The log as a restore leaves it, and once it was served: its segments are sealed a second time, behind everything else.
fn sealed_anew(log: &Log) -> Log {
    let superblock = Superblock { checkpoint: None, ..log.superblock.clone() };
    let mut machine = Machine::of_files(vec![(log.image.to_vec(), superblock)], 1, log.now);
    machine.recover(None).unwrap();
    let anew = of_machine(&machine, log.ids.clone());
    let (old, new) = (log.superblock.checkpoint.unwrap(), anew.superblock.checkpoint.unwrap());
    assert!(seal_of(&anew, 0).parts[0] > old.log_offset && new.log_offset > old.log_offset);
    anew
}

/// What verification finds, the most rows that it had in memory, and those that it has at the end. `change` may change the bytes
/// of a batch that verified, or take it away.
fn verified(
    log: &Log,
    superblock: &Superblock,
    mut change: impl FnMut(&BatchPlace, &mut Vec<u8>) -> bool,
) -> (Vec<Finding>, u64, u64) {
    let mut source = log.image.clone();
    let beside = log.image.clone();
    let read = Box::new(move |at, bytes| Ok(beside.clone().read(at, bytes)?.to_vec()));
    let mut content = Content::new(superblock, verify::state_at_start(&mut source, superblock).unwrap(), read);
    let mut each = |step: Step| match step {
        Step::Batch(place, bytes) => {
            let mut bytes = bytes.to_vec();
            if change(&place, &mut bytes) {
                content.step(Step::Batch(place, bytes.into()));
            }
        }
        other => content.step(other),
    };
    verify::walk(&mut source, superblock, WalkOptions::default(), &mut each, &mut |_| {}).unwrap();
    content.finish().unwrap();
    let left = content.shard().map_or(0, |shard| shard.rows().count_in_memory());
    (content.take_findings(), content.rows_in_memory_max(), left)
}

fn is_seal(place: &BatchPlace, bytes: &[u8]) -> bool {
    place.header.is_sealing && sealed_by(&bytes[batch::records(bytes, &place.header)]).is_some()
}

/// The same log, written with other content: each batch has a hash that is right, and the chain holds. `change` changes batches'
/// header space and content, `change_seal` what seals say.
fn rewritten(log: &Log, mut change: impl FnMut(&BatchPlace, &mut [u8]), mut change_seal: impl FnMut(&mut Seal)) -> Log {
    let Superblock { key, geometry, checkpoint, .. } = &log.superblock;
    let mut image = log.image.to_vec();
    let mut hashes: HashMap<Hash, Hash> = HashMap::new();
    let mut each = |step: Step| {
        let Step::Batch(place, bytes) = step else { panic!("the log is sound: {step:?}") };
        let new = |old: &mut Hash| *old = hashes.get(old).copied().unwrap_or(*old);
        let mut content = bytes[..place.header.content_bytes as usize].to_vec();
        if is_seal(&place, &content) {
            let mut seal: Seal = postcard::from_bytes(&content[BATCH_HEADER_BYTES..]).unwrap();
            new(&mut seal.resume.previous_hash);
            seal.previous.iter_mut().for_each(|before| new(&mut before.hash));
            change_seal(&mut seal);
            content = seal_batch(&seal).unwrap();
        } else {
            change(&place, &mut content);
        }
        let mut header = place.header;
        new(&mut header.previous_hash);
        let hash = batch::seal(&mut content, key, &header, Mutation::NONE);
        assert_eq!(content.len(), bytes.len());
        hashes.insert(place.hash, hash);
        let at = geometry.file_offset(place.log_offset) as usize;
        image[at..at + content.len()].copy_from_slice(&content);
    };
    verify::walk(&mut log.image.clone(), &log.superblock, WalkOptions::default(), &mut each, &mut |_| {}).unwrap();
    let checkpoint = checkpoint.map(|last| Checkpoint { hash: hashes[&last.hash], ..last });
    let superblock = Superblock { checkpoint, ..log.superblock.clone() };
    Log { image: image.into(), superblock, ids: log.ids.clone(), now: log.now }
}

/// What a segment's last seal says.
fn seal_of(log: &Log, segment: u64) -> Seal {
    let mut found = None;
    rewritten(
        log,
        |_, _| {},
        |seal| found = Some(seal.clone()).filter(|seal| seal.segment == segment).or(found.take()),
    );
    found.expect("it is sealed")
}

/// Flips a bit of a page's first entry; its checksum is made anew, or not.
fn flip(page: &mut [u8], is_verifying: bool) {
    let (content, checksum) = page.split_at_mut(BLOCK_BYTES as usize - 8);
    content[16] ^= 1;
    if is_verifying {
        checksum.copy_from_slice(&xxh3_64(content).to_le_bytes());
    }
}

/// Where a page of an index is: its part, and how far it is in that.
fn place_of(seal: &Seal, page: u32) -> (u64, usize) {
    let (part, page) = (seal.parts[(page / seal.pages_per_part) as usize], page % seal.pages_per_part);
    (part, ((1 + page) * BLOCK_BYTES as u32) as usize)
}

#[test]
fn rows_leave_memory_with_their_segments() {
    let log = log();
    let sealed = log.image.len() as u64 / log.superblock.geometry.segment_bytes;
    assert!(sealed > 2 * FULL_SEGMENTS_MAX as u64, "{sealed} segments");
    // A restored ledger's superblock names no seals, but they are in the log.
    let unnamed = Superblock { checkpoint: None, ..log.superblock.clone() };
    for superblock in [&log.superblock, &unnamed] {
        let (findings, most, left) = verified(&log, superblock, |_, _| true);
        assert_eq!(findings, []);
        assert!(most * 5 < CLAIMS as u64 && left <= most, "{most} rows were in memory, {left} at the end");
    }
}

#[test]
fn seals_that_lie_elsewhere_are_where_the_superblock_says() {
    let log = log();
    let (findings, most, _) = verified(&log, &log.superblock, |place, bytes| !is_seal(place, bytes));
    assert_eq!(findings, []);
    let bound = (FULL_SEGMENTS_MAX as u64 + 2) * CLAIMS as u64 / 16;
    assert!(most < bound && most < CLAIMS as u64 * 3 / 4, "{most} rows were in memory");
    // With neither all rows stay, and nothing else is different.
    let unnamed = Superblock { checkpoint: None, ..log.superblock.clone() };
    let (findings, most, left) = verified(&log, &unnamed, |place, bytes| !is_seal(place, bytes));
    assert_eq!((findings.as_slice(), most, left), ([].as_slice(), CLAIMS as u64, CLAIMS as u64));
}

/// A superblock has no secret: whoever writes to the file makes one that verifies.
#[test]
fn seals_of_segments_of_another_size_are_not_gone_by() {
    let log = log();
    for factor in [2, 3, 8, 1_000] {
        let mut superblock = log.superblock.clone();
        superblock.geometry.segment_bytes *= factor;
        let mut machine = Machine::of_files(vec![(log.image.to_vec(), superblock)], 1, log.now);
        let refused = machine.recover(None).expect_err("its batches are elsewhere");
        assert!(refused.contains("segments of another size") && refused.contains("restore"), "{refused}");
    }
}

#[test]
fn seals_that_nothing_leads_to_are_found() {
    let log = sealed_anew(&log());
    // So it is in the backup of a ledger that was resharded, and then served.
    let unnamed = Superblock { checkpoint: None, ..log.superblock.clone() };
    let mut sealed = HashSet::new();
    let (findings, most, _) = verified(&log, &unnamed, |place, bytes| {
        !place.header.is_sealing
            || sealed_by(&bytes[batch::records(bytes, &place.header)]).is_none_or(|segment| !sealed.insert(segment))
    });
    assert_eq!(findings, []);
    assert!(sealed.len() > 2 * FULL_SEGMENTS_MAX, "{} segments are sealed", sealed.len());
    let bound = (FULL_SEGMENTS_MAX as u64 + 2) * CLAIMS as u64 / 16;
    assert!(most < bound && most < CLAIMS as u64 * 3 / 4, "{most} rows were in memory");
}

#[test]
fn an_index_that_says_something_else_than_its_records_is_told_and_not_believed() {
    let log = log();
    let pages = log.superblock.geometry.batch_bytes_max / BLOCK_BYTES;
    let mut told = 0;
    // The first page is of rows, others are of changes and keys of all kinds.
    for page in 1..pages {
        let mut is_first = true;
        let (findings, most, _) = verified(&log, &log.superblock, |place, bytes| {
            let at = (page * BLOCK_BYTES) as usize;
            if place.header.is_sealing && !is_seal(place, bytes) && is_first && bytes.len() > at {
                is_first = false;
                flip(&mut bytes[at..at + BLOCK_BYTES as usize], true);
            }
            true
        });
        // What follows the index and the summary is the snapshot.
        let Some(finding) = findings.first() else { break };
        assert_eq!(findings.len(), 1, "page {page}: {findings:?}");
        assert_eq!((finding.structure, finding.segment, finding.is_damage), (Structure::Index, Some(0), false));
        // What its records make stands in for it.
        assert!(most * 5 < CLAIMS as u64, "{most} rows were in memory");
        told += 1;
    }
    assert!(told > 5, "{told} pages");
}

#[test]
fn a_page_that_does_not_verify_in_a_batch_that_does_is_told_with_its_place() {
    let log = log();
    let segment = 2;
    let seal = seal_of(&log, segment);
    // Of rows, of changes and keys, of the summary, of the snapshot.
    let (summary, snapshot) = (seal.summary.first, seal.snapshot.first);
    for page in [0, 1, summary - 1, summary, snapshot, snapshot + seal.snapshot.pages - 1] {
        let (part, within) = place_of(&seal, page);
        let change = |place: &BatchPlace, bytes: &mut [u8]| {
            if place.log_offset == part {
                flip(&mut bytes[within..within + BLOCK_BYTES as usize], false);
            }
        };
        let damaged = rewritten(&log, change, |_| {});
        let unnamed = Superblock { checkpoint: None, ..damaged.superblock.clone() };
        // Where the seal is not met, it is the superblock that leads to it.
        for (superblock, is_met) in [(&damaged.superblock, true), (&unnamed, true), (&damaged.superblock, false)] {
            let (findings, ..) = verified(&damaged, superblock, |place, bytes| is_met || !is_seal(place, bytes));
            let [finding] = findings.as_slice() else { panic!("page {page}: {findings:?}") };
            assert_eq!((finding.structure, finding.segment), (Structure::Index, Some(segment)), "{}", finding.what);
            let file_offset = damaged.superblock.geometry.file_offset(part) + within as u64;
            assert_eq!((finding.file_offset, finding.is_damage), (file_offset, false), "{}", finding.what);
        }
    }
}

#[test]
fn of_a_ledger_that_was_restored_and_served_both_seals_of_a_segment_are_compared() {
    let first = log();
    let log = sealed_anew(&first);
    let (findings, most, _) = verified(&log, &log.superblock, |_, _| true);
    assert_eq!(findings, []);
    assert!(most * 5 < CLAIMS as u64, "{most} rows were in memory");
    let segment = 2;
    for (seal, is_used) in [(seal_of(&first, segment), false), (seal_of(&log, segment), true)] {
        for page in [0, seal.summary.first - 1] {
            for is_verifying in [false, true] {
                let (part, within) = place_of(&seal, page);
                let damaged = rewritten(
                    &log,
                    |place, bytes| {
                        if place.log_offset == part {
                            flip(&mut bytes[within..within + BLOCK_BYTES as usize], is_verifying);
                        }
                    },
                    |_| {},
                );
                let (findings, ..) = verified(&damaged, &damaged.superblock, |_, _| true);
                let [finding] = findings.as_slice() else { panic!("page {page}, {is_verifying}: {findings:?}") };
                let found = (finding.structure, finding.segment, finding.is_damage);
                assert_eq!(found, (Structure::Index, Some(segment), false), "{}", finding.what);
                let geometry = log.superblock.geometry;
                let is_page = finding.file_offset == geometry.file_offset(part) + within as u64;
                assert_eq!(is_page, !is_verifying, "{}", finding.what);
                assert_eq!(finding.what.contains("does not lead to it"), !is_used, "{}", finding.what);
            }
        }
    }
}

#[test]
fn a_summary_names_the_batches_that_it_must_and_no_others() {
    let log = log();
    let segment = 2;
    let (seal, geometry) = (seal_of(&log, segment), log.superblock.geometry);
    let mut batches = Vec::new();
    let gather = |place: &BatchPlace, _: &mut [u8]| {
        let BatchPlace { header, log_offset, .. } = *place;
        if geometry.segment_of(log_offset) == segment && !header.is_sealing {
            batches.push(BatchStart { number: header.number, first_position: header.first_position, log_offset });
        }
    };
    rewritten(&log, gather, |_| {});
    let place = seal.summary;
    let page = |number| {
        let (part, within) = place_of(&seal, number);
        let page = &log.image[geometry.file_offset(part) as usize + within..][..BLOCK_BYTES as usize];
        page_bytes(page, segment, number).unwrap().to_vec()
    };
    let bytes: Vec<u8> = (place.first..place.first + place.pages).flat_map(page).collect();
    let summary: Summary = postcard::from_bytes(&bytes).unwrap();
    let named = &summary.starts;
    assert!(named.len() > 2 && batches.len() > 2 * named.len(), "{named:?} of {} batches", batches.len());
    let one_less = (0..named.len()).map(|left_out| {
        let starts = (0..named.len()).filter(|index| *index != left_out);
        starts.map(|index| named[index]).collect::<Vec<_>>()
    });
    let too_many = batches.iter().filter(|start| !named.contains(start)).step_by(4).map(|start| {
        let mut starts = named.clone();
        starts.push(*start);
        starts.sort_unstable_by_key(|start| start.number);
        starts
    });
    for starts in one_less.chain(too_many) {
        let changed = postcard::to_stdvec(&Summary { starts: starts.clone(), ..summary.clone() }).unwrap();
        let mut pages = vec![0; (u64::from(place.first) * BLOCK_BYTES) as usize];
        assert_eq!(append_bytes(&mut pages, segment, &changed).pages, place.pages);
        let put = |batch: &BatchPlace, content: &mut [u8]| {
            for number in place.first..place.first + place.pages {
                let (part, within) = place_of(&seal, number);
                if batch.log_offset == part {
                    let page = &pages[(u64::from(number) * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize];
                    content[within..within + page.len()].copy_from_slice(page);
                }
            }
        };
        let log = rewritten(&log, put, |seal| {
            if seal.segment == segment {
                seal.summary.entries = changed.len() as u64;
            }
        });
        let (findings, ..) = verified(&log, &log.superblock, |_, _| true);
        let [finding] = findings.as_slice() else { panic!("{starts:?} instead of {named:?}: {findings:?}") };
        let found = (finding.structure, finding.segment, finding.is_damage);
        assert_eq!(found, (Structure::Index, Some(segment), false), "{}", finding.what);
    }
}

#[test]
fn a_key_that_was_used_in_a_sealed_segment_is_missed_in_no_later_one() {
    let log = log();
    let (mut first, mut second) = (None, None);
    let (findings, most, _) = verified(&log, &log.superblock, |place, bytes| {
        if place.header.is_sealing {
            return true;
        }
        let range = batch::records(bytes, &place.header);
        let mut at = range.start;
        while at < range.end {
            let (raw, length) = record::read(&bytes[at..range.end]).unwrap();
            let mut decoded = Record::decode(raw.kind, raw.body).unwrap();
            if let Entry::Claim(claim) = decoded.entry {
                if claim.event_id == log.ids[10] {
                    first = Some((decoded.meta.idempotency_key, raw.position));
                } else if Some(&claim.event_id) == log.ids.last() {
                    decoded.meta.idempotency_key = first.expect("it came before").0;
                    second = Some(raw.position);
                    let (mut body, mut forged) = (Vec::new(), Vec::new());
                    decoded.encode(&mut body);
                    record::append(&mut forged, raw.position, raw.kind, |out| out.extend_from_slice(&body));
                    record::put_checksums(&mut forged);
                    assert_eq!(forged.len(), length);
                    bytes[at..at + length].copy_from_slice(&forged);
                }
            }
            at += length;
        }
        true
    });
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!(finding.positions, first.map(|(_, position)| position).zip(second));
    assert!(finding.is_damage && finding.what.contains("same idempotency key"), "{}", finding.what);
    assert!(most * 5 < CLAIMS as u64);
}
