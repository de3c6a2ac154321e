//! The small state of a shard at the end of a segment: everything that is not in the rows' index. Its size has nothing to do with
//! the number of rows.

use super::budget::Budget;
use super::disputes::Disputes;
use super::passes::Passes;
use super::registry::Registry;
use super::rows::{Carried, Rows, Standing, Tallies};
use super::{GlobalEntry, InForce, Refusals, Shard, quarter_of};
use crate::dispute::Dispute;
use crate::id::EventId;
use crate::log::superblock::{Origin, Superblock};
use crate::policy::Policy;
use crate::retention::{OriginState, Retention};
use crate::sealed::{Catalog, Fetch};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// The layout of a snapshot; what comes after this build's is not read, and the log is replayed instead.
const SNAPSHOT_VERSION: u32 = 3;
/// The last one in which nothing follows the snapshot; in this build's, what drops go by does.
const VERSION_WITHOUT_STANDINGS: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Snapshot<'a> {
    version: u32,
    registry: Cow<'a, Registry>,
    tallies: Cow<'a, Tallies>,
    budgets: Cow<'a, [Budget]>,
    in_force: Cow<'a, InForce>,
    disputes: Vec<Cow<'a, Dispute>>,
    disputes_moved_at_us: i64,
    unflagged: Vec<crate::dispute::DisputeId>,
    passes: Cow<'a, Passes>,
    retention: Cow<'a, Retention>,
    carried: Cow<'a, BTreeMap<EventId, Carried>>,
    reactivated: Cow<'a, BTreeSet<EventId>>,
    users: Cow<'a, BTreeMap<u32, String>>,
    refusals: Cow<'a, BTreeMap<u32, Refusals>>,
    globals_before: u64,
    globals: Vec<Cow<'a, GlobalEntry>>,
    globals_applied: u64,
    last_us: i64,
    last_position: u64,
}

impl Shard {
    /// The small state as it is now.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let snapshot = Snapshot {
            version: SNAPSHOT_VERSION,
            registry: Cow::Borrowed(&self.registry),
            tallies: Cow::Borrowed(self.rows.tallies()),
            budgets: Cow::Borrowed(&self.budgets),
            in_force: Cow::Borrowed(&self.in_force),
            disputes: self.disputes.all().map(Cow::Borrowed).collect(),
            disputes_moved_at_us: self.disputes.moved_at_us(),
            unflagged: self.disputes.unflagged().collect(),
            passes: Cow::Borrowed(&self.passes),
            retention: Cow::Borrowed(&self.retention),
            carried: Cow::Borrowed(self.rows.carried()),
            reactivated: Cow::Borrowed(self.rows.reactivated_set()),
            users: Cow::Borrowed(&self.users),
            refusals: Cow::Borrowed(&self.refusals),
            globals_before: self.globals_before,
            globals: self.globals.iter().map(Cow::Borrowed).collect(),
            globals_applied: self.globals_applied,
            last_us: self.last_us,
            last_position: self.last_position,
        };
        let bytes = postcard::to_stdvec(&snapshot).expect("the small state is encoded in memory");
        let standings: Vec<Option<Standing>> = self.rows.carried().values().map(|row| row.standing).collect();
        postcard::to_extend(&standings, bytes).expect("the small state is encoded in memory")
    }

    /// A shard whose first segments are sealed, with the small state behind them.
    pub fn restore(superblock: &Superblock, snapshot: &[u8], catalog: Catalog) -> Result<Shard, String> {
        let version: u32 = postcard::take_from_bytes(snapshot).map_err(|e| e.to_string())?.0;
        if ![SNAPSHOT_VERSION, VERSION_WITHOUT_STANDINGS].contains(&version) {
            return Err(format!("the snapshot has version {version}, this build reads {SNAPSHOT_VERSION}"));
        }
        let (snapshot, rest): (Snapshot<'_>, _) = postcard::take_from_bytes(snapshot).map_err(|e| e.to_string())?;
        let mut carried = snapshot.carried.into_owned();
        if version != VERSION_WITHOUT_STANDINGS {
            let standings: Vec<Option<Standing>> = postcard::from_bytes(rest).map_err(|e| e.to_string())?;
            carried.values_mut().zip(standings).for_each(|(row, standing)| row.standing = standing);
        }
        let mut shard = Shard::new(superblock);
        shard.registry = snapshot.registry.into_owned();
        shard.registry.index();
        let geometry = superblock.geometry;
        shard.rows = Rows::restored(geometry, shard.secret, snapshot.tallies.into_owned(), catalog);
        shard.budgets = snapshot.budgets.into_owned();
        shard.in_force = snapshot.in_force.into_owned();
        if !shard.in_force.toml.is_empty() {
            shard.policy = Policy::parse(&shard.in_force.toml)?;
        }
        let disputes = snapshot.disputes.into_iter().map(Cow::into_owned);
        shard.disputes = Disputes::restored(disputes, snapshot.disputes_moved_at_us, snapshot.unflagged);
        shard.passes = snapshot.passes.into_owned();
        shard.retention = snapshot.retention.into_owned();
        if let Some(Origin { start, seal, gone_before_us }) = superblock.origin {
            // The log may begin behind what the snapshot still knows of.
            shard.retention.begin_with(OriginState { start: start.into(), checkpoint: seal, gone_before_us });
        }
        let gone_before_us = shard.retention.origin.map_or(i64::MIN, |origin| origin.gone_before_us);
        shard.rows.restore_carried(carried, snapshot.reactivated.into_owned(), gone_before_us);
        shard.users = snapshot.users.into_owned();
        shard.refusals = snapshot.refusals.into_owned();
        shard.globals_before = snapshot.globals_before;
        shard.globals = snapshot.globals.into_iter().map(Cow::into_owned).collect();
        shard.globals_applied = snapshot.globals_applied;
        shard.last_us = snapshot.last_us;
        shard.last_position = snapshot.last_position;
        shard.quarter = quarter_of(snapshot.last_us);
        Ok(shard)
    }

    /// Reads what a snapshot of an earlier build does not have, row by row.
    pub fn complete(&mut self) -> Fetch<()> {
        while let Some(event_id) = self.rows.without_standing() {
            self.rows.restand(event_id)?;
        }
        Ok(())
    }
}
