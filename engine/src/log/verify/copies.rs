//! The copies of the superblock, and the space between them.

use super::{Finding, Source, Structure};
use crate::log::batch::is_zero;
use crate::log::layout::{BLOCK_BYTES, SUPERBLOCK_AREA_BYTES};
use crate::log::superblock::{self, COPIES, Superblock};
use std::io;

/// Finds the superblock to go by, and says what of the superblocks' area is damaged. `expected` is what a sibling's
/// superblock says this one must be; it stands in where no copy is left.
pub fn superblocks(
    source: &mut impl Source,
    shard: u16,
    expected: Option<&Superblock>,
) -> io::Result<(Option<Superblock>, Vec<Finding>)> {
    let mut findings = Vec::new();
    let area = source.read(0, SUPERBLOCK_AREA_BYTES as usize)?;
    let mut copies = Vec::new();
    for copy in 0..COPIES {
        let offset = superblock::copy_offset(copy);
        let block = area.get(offset as usize..(offset + BLOCK_BYTES) as usize).unwrap_or_default();
        match Superblock::decode(block) {
            Ok(Some(found)) => copies.push((copy, found)),
            Ok(None) => {
                let what = format!("copy {copy} of the superblock does not verify");
                findings.push(Finding::damage(Structure::Superblock, shard, offset, BLOCK_BYTES, what));
            }
            Err(error) => {
                let what = format!("copy {copy} of the superblock: {error}");
                findings.push(Finding::damage(Structure::Superblock, shard, offset, BLOCK_BYTES, what));
            }
        }
        let gap = area.get((offset + BLOCK_BYTES) as usize..superblock::copy_offset(copy + 1) as usize);
        if !is_zero(gap.unwrap_or_default()) {
            let what = format!("the space behind copy {copy} of the superblock is not zeroed");
            let bytes = superblock::copy_offset(1) - BLOCK_BYTES;
            findings.push(Finding::damage(Structure::SuperblockArea, shard, offset + BLOCK_BYTES, bytes, what));
        }
    }
    let newest = copies.iter().map(|(_, found)| found).max_by_key(|found| found.generation).cloned();
    for (copy, found) in &copies {
        let newest = newest.as_ref().unwrap_or(found);
        if found != newest {
            let offset = superblock::copy_offset(*copy);
            let what = format!(
                "copy {copy} of the superblock has generation {}, the newest {}: an update was interrupted",
                found.generation, newest.generation
            );
            // Two copies of one generation never differ.
            let is_damage = found.generation == newest.generation;
            let finding = Finding::damage(Structure::Superblock, shard, offset, BLOCK_BYTES, what);
            findings.push(Finding { is_damage, ..finding });
        }
    }
    if let (Some(newest), Some(expected)) = (&newest, expected)
        // Devices may have different sizes, and a shard may lie in a file beside them.
        && newest.of_file().as_formatted() != expected.of_file().as_formatted()
    {
        let what = format!(
            "the superblock says shard {} of ledger {}; this file must be shard {} of ledger {}, of the same sizes and clock",
            newest.shard, newest.ledger, expected.shard, expected.ledger
        );
        findings.push(Finding::damage(Structure::Superblock, shard, 0, BLOCK_BYTES, what));
        return Ok((None, findings));
    }
    Ok((newest.or_else(|| expected.map(|sibling| sibling.of_file().as_formatted())), findings))
}
