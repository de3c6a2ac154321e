//! What the simulator's clients know: what they sent, what was answered, and so what must be there.

use crate::command::Claimed;
use crate::id::EventId;
use crate::row::Lifecycle;
use std::collections::BTreeMap;

/// A claim that was sent.
#[derive(Debug, Clone)]
pub struct SentClaim {
    pub corpus: String,
    pub key: u128,
    pub event_key: String,
    pub metadata: Vec<u8>,
    pub occurred_at_us: i64,
}

/// What a client knows of a row.
#[derive(Debug, Clone)]
pub struct KnownRow {
    pub claim: SentClaim,
    pub claimed: Claimed,
    /// The last state that was answered or read.
    pub lifecycle: Lifecycle,
    /// A transition was sent whose answer never came: the row may be in either state.
    pub in_doubt: bool,
}

/// Everything that all clients together know.
#[derive(Debug, Default)]
pub struct Clients {
    /// By corpus: what was acknowledged or read, in the order of ids.
    pub rows: BTreeMap<String, BTreeMap<EventId, KnownRow>>,
    /// Claims sent and not answered, by key.
    pub unanswered: BTreeMap<u128, SentClaim>,
    /// Claims by event key, to recognise what is found.
    pub sent: BTreeMap<String, SentClaim>,
    /// Onboardings answered.
    pub corpora: Vec<String>,
}

impl Clients {
    /// Records that a client knows a claim: by its reply, or because it read the row.
    pub fn learn(&mut self, claim: SentClaim, claimed: Claimed) -> Result<(), String> {
        self.unanswered.remove(&claim.key);
        let rows = self.rows.entry(claim.corpus.clone()).or_default();
        if let Some(known) = rows.get(&claimed.event_id) {
            return if known.claimed == claimed && known.claim.key == claim.key {
                Ok(())
            } else {
                Err(format!("{} was handed out twice", claimed.event_id))
            };
        }
        if let Some(other) = rows.values().find(|r| r.claim.key == claim.key) {
            return Err(format!("key {:x} made both {} and {}", claim.key, other.claimed.event_id, claimed.event_id));
        }
        rows.insert(claimed.event_id, KnownRow { claim, claimed, lifecycle: Lifecycle::Registered, in_doubt: false });
        Ok(())
    }
}
