//! What retention leaves behind: when a quarter's segments are dropped, its seal says what was in them, and stays.

use crate::log::batch::Hash;
use crate::log::end::Head;
use crate::sealed::{Checkpoint, Resume};
use crate::time::Quarter;
use serde::{Deserialize, Serialize};

/// Quarters that are held at once, at most.
pub const HOLDS_MAX: usize = 1_000;
/// Corpora and quarters whose rows one seal counts; the rows of the others are counted together, without a corpus.
pub const TOTALS_MAX: usize = 2_500;
/// Bytes of a seal's totals, those of others apart: a record must fit a batch.
const TOTALS_BYTES_MAX: usize = 56 << 10;

/// Rows of a corpus and quarter by lifecycle, in the order of [`Lifecycle::LOGGED`](crate::row::Lifecycle::LOGGED).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarterTotal {
    /// The corpus's prefix; 0: those that [`TOTALS_MAX`] left out.
    pub prefix: u16,
    /// The quarter of the claims.
    pub quarter: Quarter,
    /// How many.
    pub rows: [u64; 4],
}

/// The totals of a seal, bounded: those that there is no room for are summed up, with the seal's last quarter.
pub fn bounded_totals(all: impl IntoIterator<Item = QuarterTotal>, last: Quarter) -> Vec<QuarterTotal> {
    let mut totals: Vec<QuarterTotal> = Vec::new();
    let mut totals_bytes = 0;
    let mut others = [0; 4];
    for total in all {
        let bytes = postcard::to_stdvec(&total).expect("a total is encoded in memory").len();
        if total.prefix != 0 && totals.len() < TOTALS_MAX && totals_bytes + bytes <= TOTALS_BYTES_MAX {
            totals_bytes += bytes;
            totals.push(total);
        } else {
            others.iter_mut().zip(total.rows).for_each(|(sum, n)| *sum += n);
        }
    }
    if others != [0; 4] {
        totals.push(QuarterTotal { prefix: 0, quarter: last, rows: others });
    }
    totals
}

/// What was in segments that are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarterSeal {
    /// The first and the last quarter that is gone with them.
    pub quarters: (Quarter, Quarter),
    /// The first segment that is dropped, and the first that is not.
    pub segments: (u64, u64),
    /// When it was decided, by the shard's time.
    pub at_us: i64,
    /// The end of the chain in those segments: the last batch, the last position, the batch's hash.
    pub batch: u64,
    /// See `batch`.
    pub position: u64,
    /// See `batch`.
    pub head: Hash,
    /// The control totals of those quarters, as they were.
    pub totals: Vec<QuarterTotal>,
    /// Rows of those quarters that outlive them: they were logged again.
    pub carried: u64,
    /// The hash of the seal before; zeroes in the first one.
    pub previous: Hash,
    /// Keyed BLAKE3 of everything above.
    pub hash: Hash,
}

impl QuarterSeal {
    /// The hash that a seal with this content has.
    pub fn hash_of(&self, key: &Hash) -> Hash {
        let content = QuarterSeal { hash: [0; 32], ..self.clone() };
        let bytes = postcard::to_stdvec(&content).expect("a seal is encoded in memory");
        *blake3::keyed_hash(key, &bytes).as_bytes()
    }

    /// The end of the chain in what is dropped.
    pub fn chain_head(&self) -> Head {
        Head { batch: self.batch, position: self.position, hash: self.head }
    }
}

/// Whether seals follow one another, and each is what it was made as. The error names the first that is not.
pub fn verify_seals(seals: &[QuarterSeal], key: &Hash) -> Result<(), String> {
    let (mut previous, mut segment) = ([0; 32], 0);
    for seal in seals {
        let quarter = seal.quarters.1;
        if seal.hash != seal.hash_of(key) {
            return Err(format!("the seal of {quarter} is not what was sealed: its hash does not match"));
        }
        if seal.previous != previous || seal.segments.0 != segment {
            return Err(format!("the seal of {quarter} does not follow the one before it"));
        }
        (previous, segment) = (seal.hash, seal.segments.1);
    }
    Ok(())
}

/// What a dropped quarter leaves in the control totals: its rows that were logged again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The corpus's prefix.
    pub prefix: u16,
    /// The quarter of the claims.
    pub quarter: Quarter,
    /// By lifecycle.
    pub rows: [u64; 4],
    /// Those beyond the slots.
    pub over_budget: u64,
    /// Aliases among them, by the prefix of the row that they refer to.
    pub aliases: Vec<(u16, u64)>,
}

/// The decided effect of a drop, as its entry holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// What stays of it.
    pub seal: QuarterSeal,
    /// Where the log begins then.
    pub start: Resume,
    /// The seal of the last segment that is dropped.
    pub checkpoint: Checkpoint,
    /// What was claimed before this is gone.
    pub gone_before_us: i64,
    /// What is left of the dropped quarters, as earlier builds counted it; else empty, and what is left follows from the rows.
    pub kept: Vec<Kept>,
}

impl Dropped {
    /// As the entry holds it.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a drop is encoded in memory")
    }

    /// Reads what [`Dropped::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Dropped, String> {
        postcard::from_bytes(bytes).map_err(|e| format!("a retention drop that no build writes: {e}"))
    }
}

/// A quarter that is kept whatever its age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Since when.
    pub at_us: i64,
    /// Why.
    pub reason: String,
}

/// The quarter's segments, if they may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The first and the last quarter that goes with them.
    pub quarters: (Quarter, Quarter),
    /// The first segment that stays.
    pub end_segment: u64,
}

/// What the next drop would do, or what it waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// The first and last quarter that is due.
    pub quarters: Option<(Quarter, Quarter)>,
    /// Segments that would go, and their bytes.
    pub segments: u64,
    /// See `segments`.
    pub bytes: u64,
    /// Rows in them.
    pub rows: u64,
    /// Rows that outlive their quarter, at most: they are logged again before.
    pub carried: u64,
    /// What it waits for.
    pub waits_for: Option<String>,
}

/// What a shard keeps of retention.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Retention {
    /// Quarters that are kept.
    pub holds: std::collections::BTreeMap<Quarter, Hold>,
    /// Seals of what was dropped, the oldest first.
    pub seals: Vec<QuarterSeal>,
    /// Where the log begins since the last drop.
    pub origin: Option<OriginState>,
}

/// Where a log begins, as the small state holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginState {
    /// The log's end before its first segment.
    pub start: Resume,
    /// The seal of the last segment that was dropped.
    pub checkpoint: Checkpoint,
    /// What was claimed before this is gone.
    pub gone_before_us: i64,
}

impl Retention {
    /// The last quarter that is dropped.
    pub fn dropped_to(&self) -> Option<Quarter> {
        self.seals.last().map(|seal| seal.quarters.1)
    }

    /// Ends a hold or begins one.
    pub fn hold(&mut self, quarter: Quarter, hold: Option<Hold>) {
        match hold {
            Some(hold) => {
                self.holds.insert(quarter, hold);
            }
            None => {
                self.holds.remove(&quarter);
            }
        }
    }

    /// Takes a drop in.
    pub fn dropped(&mut self, dropped: &Dropped) {
        let Dropped { seal, start, checkpoint, gone_before_us, .. } = dropped;
        let (start, checkpoint, gone_before_us) = (*start, *checkpoint, *gone_before_us);
        self.begin_with(OriginState { start, checkpoint, gone_before_us });
        self.seals.push(seal.clone());
    }

    /// Has the log begin here, unless it begins later: what is before its beginning never comes back.
    pub fn begin_with(&mut self, origin: OriginState) {
        let begins_at = |origin: OriginState| origin.start.next_batch_at;
        if self.origin.is_none_or(|present| begins_at(present) < begins_at(origin)) {
            self.origin = Some(origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::layout::RECORD_BYTES_MAX;

    /// However many corpora there are, and however large their numbers, a seal fits a record, and no row is left out of it.
    #[test]
    fn totals_are_bounded_and_add_up() {
        let last = Quarter::of(1_772_529_242_000_000);
        let most = u64::from(u32::MAX);
        for (corpora, rows) in
            [(1, [0, 1, 2, 3]), (2_500, [1; 4]), (2_501, [1; 4]), (60_000, [most; 4]), (65_535, [0, 7, 0, most])]
        {
            let total = |prefix| QuarterTotal { prefix, quarter: last, rows };
            let totals = bounded_totals((1..=corpora).map(total), last);
            let sums: Vec<u64> = (0..4).map(|at| totals.iter().map(|total| total.rows[at]).sum()).collect();
            assert_eq!(sums, rows.map(|n| n * u64::from(corpora)), "{corpora} corpora");
            let kept = totals.iter().filter(|total| total.prefix != 0).count();
            let is_cut = totals.last().is_some_and(|total| total.prefix == 0);
            assert!(kept <= TOTALS_MAX && is_cut == (kept < usize::from(corpora)), "{corpora} corpora");
            let bytes = postcard::to_stdvec(&totals).expect("it is encoded in memory").len();
            assert!(bytes as u64 + 4_096 <= RECORD_BYTES_MAX, "{corpora} corpora take {bytes} bytes");
            // A seal that is made of seals keeps what they have left out apart.
            let again = bounded_totals(totals.iter().cloned(), last);
            assert_eq!(again, totals, "{corpora} corpora");
        }
    }
}
