//! Between the wire's words and the engine's: codes, enums, ids, rows. No decision is taken here.

mod entries;
pub mod pages;
mod replies;
mod requests;

pub use entries::{Names, RowTexts, entry, quarters, row, subject};
pub use replies::{claimed, configuration, corpus, dispute, head, pairs, proposal, report, retention, status, totals};
pub use requests::{event_id, with_operation};

use claim_engine::debt::Level;
use claim_engine::dispute::{DisputeState, Verdict};
use claim_engine::error::{Certainty, Code, Refusal};
use claim_engine::log::entry::AlarmKind;
use claim_engine::log::superblock::ClockMode;
use claim_engine::policy::Role;
use claim_engine::row::{Lifecycle, ReasonCode, ReconciliationState};
use claim_protocol as wire;

/// Two enums of the same variants, from the engine's to the wire's.
macro_rules! outward {
    ($(#[$meta:meta])* $name:ident, $engine:ident => $wire:ident { $($variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        pub fn $name(value: $engine) -> wire::$wire {
            match value {
                $($engine::$variant => wire::$wire::$variant),+
            }
        }
    };
}

/// Two enums of the same variants, from the wire's to the engine's.
macro_rules! inward {
    ($(#[$meta:meta])* $name:ident, $wire:ident => $engine:ident { $($variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        pub fn $name(value: wire::$wire) -> $engine {
            match value {
                $(wire::$wire::$variant => $engine::$variant),+
            }
        }
    };
}

outward!(
    /// The wire's code of an engine's.
    code, Code => ErrorCode {
        BadRequest, UnknownCorpus, NotVisible, BadTransition, AlreadyRegistered, Expired, Decommissioned, Frozen, Forbidden,
        Throttled, KeyReused, KeyExpired, KeyInFuture, Overloaded, NoSpace, ClockSuspect, Deadline, ShardFailed, ShuttingDown,
    }
);
outward!(
    /// The wire's reason code of the engine's.
    reason_code_out, ReasonCode => ReasonCode { Misclassified, WrongCorpus, FalseAlarm, Duplicate, Other }
);
inward!(
    /// The engine's reason code of the wire's.
    reason_code_in, ReasonCode => ReasonCode { Misclassified, WrongCorpus, FalseAlarm, Duplicate, Other }
);
outward!(
    /// Where time comes from.
    clock_mode, ClockMode => ClockMode { Wall, Replay }
);
outward!(
    /// A row's state.
    lifecycle, Lifecycle => Lifecycle { Registered, Disputed, Referenced, Tombstoned, Expired }
);
outward!(
    /// Whether a row's last word is in.
    reconciliation_state, ReconciliationState => ReconciliationState { Pending, Clean, Disputed, Tombstoned }
);
outward!(
    /// Where a dispute is.
    dispute_state, DisputeState => DisputeState { Detect, Quarantine, Arbitrate, Escalate, Canonicalise, Closed, Void }
);
outward!(
    /// What is decided about a row.
    verdict_out, Verdict => DisputeVerdict { Canonical, References, Tombstone, Dismissed }
);
outward!(
    /// What somebody is to the ledger.
    role_out, Role => Role { Client, Facilitator, Platform, Manager, Arbitrator, Leadership, Auditor }
);
inward!(
    /// What somebody says that he is to the ledger.
    role_in, Role => Role { Client, Facilitator, Platform, Manager, Arbitrator, Leadership, Auditor }
);
outward!(
    /// How near a shard's debt is to its bound.
    level, Level => OverloadLevel { Green, Yellow, Orange, Red }
);
outward!(
    /// What an alarm says.
    alarm, AlarmKind => AlarmKind { Half, Eighty, Early }
);

/// A refusal on the wire.
pub fn error(refusal: Refusal) -> wire::ServerError {
    wire::ServerError {
        code: code(refusal.code),
        outcome: match refusal.certainty {
            Certainty::Definite => wire::ErrorOutcome::Definite,
            Certainty::Unknown => wire::ErrorOutcome::Unknown,
        },
        message: refusal.message,
        retry_after_ms: refusal.retry_after_ms,
        registered_id: refusal.registered_id.map(|id| id.as_uuid()),
    }
}
