//! The closed sets of values in the protocol, as enums without an unknown variant.
//!
//! On the wire they are bytes that may hold anything; a byte that names no variant is refused while decoding, so that
//! code behind this crate can match exhaustively.

use std::fmt;
use std::str::FromStr;

/// A byte or a name that stands for none of a type's variants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no {type_name}; known are {known}")]
pub struct UnknownValue {
    /// What was found.
    pub value: String,
    /// The type that was asked for.
    pub type_name: &'static str,
    /// The names that would be right, separated by commas.
    pub known: &'static str,
}

macro_rules! wire_enum {
    (
        $(#[$meta:meta])* $name:ident, all: $all:literal {
            $( $(#[$variant_meta:meta])* $variant:ident = $byte:literal => $text:literal ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $( $(#[$variant_meta])* $variant = $byte ),+
        }

        impl $name {
            /// Every variant, in the schema's order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The name, as the schema and the command line write it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( $name::$variant => $text ),+
                }
            }

            fn unknown(value: String) -> UnknownValue {
                UnknownValue { value, type_name: stringify!($name), known: $all }
            }
        }

        impl TryFrom<u8> for $name {
            type Error = UnknownValue;

            fn try_from(byte: u8) -> Result<Self, UnknownValue> {
                match byte {
                    $( $byte => Ok($name::$variant), )+
                    _ => Err(Self::unknown(byte.to_string())),
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownValue;

            fn from_str(text: &str) -> Result<Self, UnknownValue> {
                match text {
                    $( $text => Ok($name::$variant), )+
                    _ => Err(Self::unknown(text.to_owned())),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }
    };
}

wire_enum! {
    /// Why a request was refused or failed.
    ErrorCode, all: "BAD_REQUEST, UNKNOWN_CORPUS, NOT_VISIBLE, BAD_TRANSITION, ALREADY_REGISTERED, EXPIRED, \
                     DECOMMISSIONED, FROZEN, KEY_REUSED, KEY_EXPIRED, KEY_IN_FUTURE, FORBIDDEN, OVERLOADED, THROTTLED, \
                     NO_SPACE, CLOCK_SUSPECT, DEADLINE, SHARD_FAILED, SHUTTING_DOWN" {
        /// Malformed, a bound exceeded, an unknown field value.
        BadRequest = 1 => "BAD_REQUEST",
        /// No corpus of that name.
        UnknownCorpus = 2 => "UNKNOWN_CORPUS",
        /// No such id here yet; it may still come.
        NotVisible = 3 => "NOT_VISIBLE",
        /// The row's state does not allow the operation.
        BadTransition = 4 => "BAD_TRANSITION",
        /// A conditional claim found the event registered.
        AlreadyRegistered = 5 => "ALREADY_REGISTERED",
        /// Retention is over.
        Expired = 6 => "EXPIRED",
        /// The corpus is closed.
        Decommissioned = 7 => "DECOMMISSIONED",
        /// An audited stop.
        Frozen = 8 => "FROZEN",
        /// The idempotency key belongs to another request.
        KeyReused = 9 => "KEY_REUSED",
        /// The idempotency key is older than the window.
        KeyExpired = 10 => "KEY_EXPIRED",
        /// The idempotency key lies ahead of the shard's time.
        KeyInFuture = 11 => "KEY_IN_FUTURE",
        /// The principal lacks the role.
        Forbidden = 12 => "FORBIDDEN",
        /// The shard holds as much as it may; retry later.
        Overloaded = 13 => "OVERLOADED",
        /// The corpus is capped; retry later.
        Throttled = 14 => "THROTTLED",
        /// The ledger cannot grow; retry later.
        NoSpace = 15 => "NO_SPACE",
        /// The daemon's clock leapt; an operator confirms it.
        ClockSuspect = 16 => "CLOCK_SUSPECT",
        /// The request's deadline passed.
        Deadline = 17 => "DEADLINE",
        /// The shard stopped after a failed write.
        ShardFailed = 18 => "SHARD_FAILED",
        /// The daemon is going down.
        ShuttingDown = 19 => "SHUTTING_DOWN",
    }
}

impl ErrorCode {
    /// The stable name, such as `BAD_REQUEST`.
    pub const fn name(self) -> &'static str {
        self.as_str()
    }
}

wire_enum! {
    /// What an error says about the operation.
    ErrorOutcome, all: "definite, unknown" {
        /// It was not applied.
        Definite = 0 => "definite",
        /// It may have been applied: a retry with the same key tells.
        Unknown = 1 => "unknown",
    }
}

wire_enum! {
    /// The state of a row.
    Lifecycle, all: "registered, disputed, referenced, tombstoned, expired" {
        /// Canonical.
        Registered = 0 => "registered",
        /// In a dispute that is not closed.
        Disputed = 1 => "disputed",
        /// An alias of a canonical row.
        Referenced = 2 => "referenced",
        /// Withdrawn.
        Tombstoned = 3 => "tombstoned",
        /// Past its retention.
        Expired = 4 => "expired",
    }
}

wire_enum! {
    /// Why a row was retracted.
    ReasonCode, all: "misclassified, wrong_corpus, false_alarm, duplicate, other" {
        /// It was filed under the wrong category.
        Misclassified = 1 => "misclassified",
        /// It belongs to another corpus.
        WrongCorpus = 2 => "wrong_corpus",
        /// Nothing happened.
        FalseAlarm = 3 => "false_alarm",
        /// Another row stands for the same event.
        Duplicate = 4 => "duplicate",
        /// What the rationale says.
        Other = 5 => "other",
    }
}

wire_enum! {
    /// Where a ledger takes its time from.
    ClockMode, all: "wall, replay" {
        /// The daemon's wall clock.
        Wall = 0 => "wall",
        /// The requests' own `at`.
        Replay = 1 => "replay",
    }
}

wire_enum! {
    /// What an audit entry records.
    AuditOperation, all: "claim, reference, tombstone, reactivate, onboard, shard_prefix_allocation, confirm_clock, \
                          recovery, repair, dispute, respond, arbitrate, escalate, canonicalise, void, reconcile, \
                          decommission, freeze, slot_increase, sign_off, cap, barrier, incident, alarm, configuration, \
                          forbidden, user, quarantine, unfreeze, restore, reshard, hold, release, carry, \
                          retention_drop" {
        /// A row was registered.
        Claim = 0 => "claim",
        /// A corpus referred to a row.
        Reference = 1 => "reference",
        /// A row was retracted.
        Tombstone = 2 => "tombstone",
        /// A retracted row came back.
        Reactivate = 3 => "reactivate",
        /// A corpus was registered.
        Onboard = 4 => "onboard",
        /// Prefixes were minted.
        ShardPrefixAllocation = 5 => "shard_prefix_allocation",
        /// An operator accepted the clock.
        ConfirmClock = 6 => "confirm_clock",
        /// The shard was recovered and began a new incarnation.
        Recovery = 7 => "recovery",
        /// An operator gave up what was damaged, and what stood behind it.
        Repair = 8 => "repair",
        /// A dispute was opened.
        Dispute = 9 => "dispute",
        /// A side of a dispute said its part.
        Respond = 10 => "respond",
        /// A dispute was decided.
        Arbitrate = 11 => "arbitrate",
        /// A dispute was passed on to the leadership.
        Escalate = 12 => "escalate",
        /// A dispute's decision took effect on a row.
        Canonicalise = 13 => "canonicalise",
        /// A dispute ended because a row was no longer disputable.
        Void = 14 => "void",
        /// Reconciliation made a row an alias, or a pass ended.
        Reconcile = 15 => "reconcile",
        /// A corpus was closed.
        Decommission = 16 => "decommission",
        /// Mutations of a corpus or of the ledger were stopped.
        Freeze = 17 => "freeze",
        /// A slot increase was proposed, or took effect.
        SlotIncrease = 18 => "slot_increase",
        /// A slot increase was signed.
        SignOff = 19 => "sign_off",
        /// A corpus's claims a minute were capped, or its cap was lifted.
        Cap = 20 => "cap",
        /// Rows around an instant became pending again.
        Barrier = 21 => "barrier",
        /// An incident began or ended.
        Incident = 22 => "incident",
        /// A corpus used up much of its slots.
        Alarm = 23 => "alarm",
        /// A configuration took effect.
        Configuration = 24 => "configuration",
        /// A request was refused for lack of a role.
        Forbidden = 25 => "forbidden",
        /// The name of a uid was learnt.
        User = 26 => "user",
        /// A row became disputed.
        Quarantine = 27 => "quarantine",
        /// A freeze was lifted.
        Unfreeze = 28 => "unfreeze",
        /// The log was made from a backup.
        Restore = 29 => "restore",
        /// The ledger was made from one with another number of shards.
        Reshard = 30 => "reshard",
        /// A quarter is kept whatever its age.
        Hold = 31 => "hold",
        /// A hold ended.
        Release = 32 => "release",
        /// A row that outlives its quarter was logged again.
        Carry = 33 => "carry",
        /// A quarter whose retention is over was dropped.
        RetentionDrop = 34 => "retention_drop",
    }
}

wire_enum! {
    /// How far reconciliation is with a row.
    ReconciliationState, all: "pending, clean, disputed, tombstoned, deferred" {
        /// Its window is open, or no pass has covered it since.
        Pending = 0 => "pending",
        /// A pass has covered it.
        Clean = 1 => "clean",
        /// It is disputed, or was tombstoned by arbitration.
        Disputed = 2 => "disputed",
        /// It was retracted.
        Tombstoned = 3 => "tombstoned",
        /// Its prefix is not known here yet.
        Deferred = 4 => "deferred",
    }
}

wire_enum! {
    /// How far a dispute is.
    DisputeState, all: "detect, quarantine, arbitrate, escalate, canonicalise, closed, void" {
        /// Opened; its rows are as they were.
        Detect = 0 => "detect",
        /// Its rows are being flagged.
        Quarantine = 1 => "quarantine",
        /// It waits for the arbitrator.
        Arbitrate = 2 => "arbitrate",
        /// It waits for the leadership.
        Escalate = 3 => "escalate",
        /// Its decision is taking effect.
        Canonicalise = 4 => "canonicalise",
        /// It is over.
        Closed = 5 => "closed",
        /// A row was no longer disputable; the others are what they were.
        Void = 6 => "void",
    }
}

wire_enum! {
    /// What a dispute decided about one id.
    DisputeVerdict, all: "none, canonical, references, tombstone, dismissed" {
        /// Nothing yet.
        None = 0 => "none",
        /// It stands for the event.
        Canonical = 1 => "canonical",
        /// It becomes an alias of the canonical one.
        References = 2 => "references",
        /// It is withdrawn for good.
        Tombstone = 3 => "tombstone",
        /// It is registered in its own right.
        Dismissed = 4 => "dismissed",
    }
}

wire_enum! {
    /// What a principal may do.
    Role, all: "client, facilitator, platform, manager, arbitrator, leadership, auditor" {
        /// Claims for its corpora.
        Client = 0 => "client",
        /// Answers for its corpora.
        Facilitator = 1 => "facilitator",
        /// Runs the ledger.
        Platform = 2 => "platform",
        /// Signs slot increases.
        Manager = 3 => "manager",
        /// Decides disputes.
        Arbitrator = 4 => "arbitrator",
        /// Decides disputes that were escalated.
        Leadership = 5 => "leadership",
        /// Reads everything.
        Auditor = 6 => "auditor",
    }
}

wire_enum! {
    /// What a shard refuses for the load that it has.
    #[derive(Default)]
    OverloadLevel, all: "green, yellow, orange, red" {
        /// Nothing.
        #[default]
        Green = 0 => "green",
        /// Disputes are deferred, background work pauses.
        Yellow = 1 => "yellow",
        /// Scans and references, too.
        Orange = 2 => "orange",
        /// Lookups and new claims, too.
        Red = 3 => "red",
    }
}

wire_enum! {
    /// Why a corpus's use of its slots calls for attention; each once a quarter.
    AlarmKind, all: "half, eighty, early" {
        /// Half of the slots are taken.
        Half = 0 => "half",
        /// 80 % of the slots are taken.
        Eighty = 1 => "eighty",
        /// At the present rate more than half of them will be taken.
        Early = 2 => "early",
    }
}

/// A place in one shard's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogPosition {
    /// The shard's number.
    pub shard: u16,
    /// The place in its log.
    pub position: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.shard, self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        AlarmKind, AuditOperation, ClockMode, DisputeState, DisputeVerdict, ErrorCode, ErrorOutcome, Lifecycle,
        OverloadLevel, ReasonCode, ReconciliationState, Role,
    };
    use crate::generated::claimd as wire;

    /// The typed enum and the generated one agree on every byte and name, apart from those that the typed one refuses.
    macro_rules! check {
        ($typed:ty, $wire:ty, refused: $refused:expr) => {
            for byte in 0..=u8::MAX {
                let name = <$wire>::ENUM_VALUES_FOR_TEST.iter().find(|value| value.0 == byte);
                let name = name.and_then(|value| value.variant_name()).filter(|name| !$refused.contains(name));
                assert_eq!(<$typed>::try_from(byte).ok().map(<$typed>::as_str), name, "byte {byte}");
            }
            for value in <$typed>::ALL {
                assert_eq!(value.as_str().parse::<$typed>().as_ref(), Ok(value));
            }
        };
    }

    /// Gives the generated enums one name for their lists of values.
    trait Values: Sized + 'static {
        const ENUM_VALUES_FOR_TEST: &'static [Self];
    }

    #[allow(deprecated, reason = "the generator marks its only list of values so")]
    mod values {
        use super::{Values, wire};

        macro_rules! values {
            ($($wire:ident = $list:ident),+) => {
                $(impl Values for wire::$wire {
                    const ENUM_VALUES_FOR_TEST: &'static [Self] = &wire::$list;
                })+
            };
        }
        values!(
            ErrorCode = ENUM_VALUES_ERROR_CODE,
            ErrorOutcome = ENUM_VALUES_ERROR_OUTCOME,
            Lifecycle = ENUM_VALUES_LIFECYCLE,
            ReasonCode = ENUM_VALUES_REASON_CODE,
            ClockMode = ENUM_VALUES_CLOCK_MODE,
            AuditOperation = ENUM_VALUES_AUDIT_OPERATION,
            ReconciliationState = ENUM_VALUES_RECONCILIATION_STATE,
            DisputeState = ENUM_VALUES_DISPUTE_STATE,
            DisputeVerdict = ENUM_VALUES_DISPUTE_VERDICT,
            Role = ENUM_VALUES_ROLE,
            OverloadLevel = ENUM_VALUES_OVERLOAD_LEVEL,
            AlarmKind = ENUM_VALUES_ALARM_KIND
        );
    }

    #[test]
    fn enums_match_the_schema() {
        check!(ErrorCode, wire::ErrorCode, refused: [""]);
        check!(ErrorOutcome, wire::ErrorOutcome, refused: [""]);
        check!(Lifecycle, wire::Lifecycle, refused: [""]);
        check!(ReasonCode, wire::ReasonCode, refused: ["none"]);
        check!(ClockMode, wire::ClockMode, refused: [""]);
        check!(AuditOperation, wire::AuditOperation, refused: [""]);
        check!(ReconciliationState, wire::ReconciliationState, refused: [""]);
        check!(DisputeState, wire::DisputeState, refused: [""]);
        check!(DisputeVerdict, wire::DisputeVerdict, refused: [""]);
        check!(Role, wire::Role, refused: [""]);
        check!(OverloadLevel, wire::OverloadLevel, refused: [""]);
        check!(AlarmKind, wire::AlarmKind, refused: [""]);
    }

    /// The list of known names, which stands apart from the variants, names each of them.
    #[test]
    fn the_known_names_are_all_names() {
        macro_rules! check {
            ($($typed:ty),+) => {
                $({
                    let names: Vec<_> = <$typed>::ALL.iter().map(|value| value.as_str()).collect();
                    assert_eq!("nonsense".parse::<$typed>().expect_err("no such name").known, names.join(", "));
                })+
            };
        }
        check!(ErrorCode, ErrorOutcome, Lifecycle, ReasonCode, ClockMode, AuditOperation);
        check!(ReconciliationState, DisputeState, DisputeVerdict, Role, OverloadLevel, AlarmKind);
    }

    #[test]
    fn an_unknown_value_names_the_known_ones() {
        let error = "late".parse::<ReasonCode>().expect_err("no such reason");
        assert_eq!(
            error.to_string(),
            "\"late\" is no ReasonCode; known are misclassified, wrong_corpus, false_alarm, duplicate, other"
        );
    }
}
