//! Deliberate bugs, each of which the simulator or the power-cut checker must catch. No build has one unless it is made for
//! tests or with the feature `mutants`: otherwise [`Mutation::is`] is constantly false.

/// A deliberate bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Replies leave before their batch is durable.
    AckBeforeDurable,
    /// A batch counts as durable when it is written, whatever is missing before it.
    AckOutOfOrder,
    /// Batches are written without O_DSYNC.
    NoDsync,
    /// Every other batch goes without O_DSYNC, and the next one with it is taken to cover it.
    OneDsyncCoversEarlier,
    /// The batch hash covers the header alone.
    HashOfHeaderOnly,
    /// A batch's hash is not checked at all.
    NoHashCheck,
    /// A small batch is written again in place, with new records behind the acknowledged ones.
    ReuseOfAckedBlock,
    /// Recovery goes on behind a missing batch.
    ReplayPastHole,
    /// A restart goes on with the incarnation that it found.
    NoIncarnation,
    /// Recovery serves what it read without flushing it first.
    NoFlushBeforeServing,
    /// A segment takes batches while it is being zeroed.
    SegmentBeforeZeroed,
    /// Batches are hashed without the ledger's key.
    NoKey,
    /// A merge is applied whatever became of the row since it was planned.
    MergeWithoutCheck,
    /// A dispute that comes to nothing leaves its rows flagged.
    VoidLeavesRowsFlagged,
    /// Aliases are followed one step instead of to the end.
    AliasFollowedOnce,
    /// A conditional claim reserves nothing.
    ClaimWithoutReservation,
    /// A request that waits for the disk is overtaken by later ones of its connection.
    OvertakenWhileWaiting,
    /// A quarter is dropped with rows that outlive it.
    DropWithoutCarry,
    /// Dropped segments are freed before a seal stands behind the drop.
    FreeBeforeSealed,
    /// Shards drop quarters without asking shard 0, which may hold them.
    DropUnasked,
    /// Dropped segments are freed while the superblock that has the log begin behind them is still being written.
    FreeBeforeNamed,
    /// A log that goes round takes the place of a segment again while the superblock has the log begin with it.
    PlaceTakenEarly,
    /// A log that goes round takes a place again with what its last lap left there.
    PlaceUnzeroed,
}

impl Mutant {
    /// All of them, with their names.
    pub const ALL: [(Mutant, &'static str); 23] = [
        (Mutant::AckBeforeDurable, "ack-before-durable"),
        (Mutant::AckOutOfOrder, "ack-out-of-order"),
        (Mutant::NoDsync, "no-dsync"),
        (Mutant::OneDsyncCoversEarlier, "one-dsync-covers-earlier"),
        (Mutant::HashOfHeaderOnly, "hash-of-header-only"),
        (Mutant::NoHashCheck, "no-hash-check"),
        (Mutant::ReuseOfAckedBlock, "reuse-of-acked-block"),
        (Mutant::ReplayPastHole, "replay-past-hole"),
        (Mutant::NoIncarnation, "no-incarnation"),
        (Mutant::NoFlushBeforeServing, "no-flush-before-serving"),
        (Mutant::SegmentBeforeZeroed, "segment-before-zeroed"),
        (Mutant::NoKey, "no-key"),
        (Mutant::MergeWithoutCheck, "merge-without-check"),
        (Mutant::VoidLeavesRowsFlagged, "void-leaves-rows-flagged"),
        (Mutant::AliasFollowedOnce, "alias-followed-once"),
        (Mutant::ClaimWithoutReservation, "claim-without-reservation"),
        (Mutant::OvertakenWhileWaiting, "overtaken-while-waiting"),
        (Mutant::DropWithoutCarry, "drop-without-carry"),
        (Mutant::FreeBeforeSealed, "free-before-sealed"),
        (Mutant::DropUnasked, "drop-unasked"),
        (Mutant::FreeBeforeNamed, "free-before-named"),
        (Mutant::PlaceTakenEarly, "place-taken-early"),
        (Mutant::PlaceUnzeroed, "place-unzeroed"),
    ];

    /// The mutant of a name.
    pub fn from_name(name: &str) -> Option<Mutant> {
        Mutant::ALL.iter().find(|(_, known)| *known == name).map(|(mutant, _)| *mutant)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Mutant::ALL.iter().find(|(mutant, _)| *mutant == self).map_or("", |(_, name)| name)
    }
}

/// The bug of this build, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mutation {
    #[cfg(any(test, feature = "mutants"))]
    mutant: Option<Mutant>,
}

impl Mutation {
    /// No bug.
    pub const NONE: Mutation = Mutation {
        #[cfg(any(test, feature = "mutants"))]
        mutant: None,
    };

    /// A bug, or none.
    #[cfg(any(test, feature = "mutants"))]
    pub const fn new(mutant: Option<Mutant>) -> Mutation {
        Mutation { mutant }
    }

    /// Whether this is the bug.
    #[cfg(any(test, feature = "mutants"))]
    pub fn is(self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether this is the bug: no.
    #[cfg(not(any(test, feature = "mutants")))]
    #[allow(clippy::unused_self, reason = "the build with mutants has a field here")]
    pub const fn is(self, _: Mutant) -> bool {
        false
    }
}
