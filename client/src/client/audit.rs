//! The chains of the log, and the configuration that it holds.

use super::{Client, Target};
use crate::options::RequestOptions;
use crate::pending::Pending;
use claim_protocol::{Head, LogPosition, Operation, ReplyResult};

/// Whether a chain passes through a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditChecked {
    /// The shard whose chain it is.
    pub shard: u16,
    /// Whether everything up to the head is what it was.
    pub ok: bool,
    /// One sentence where it is not.
    pub message: String,
    /// Batches that were hashed again.
    pub batches_verified: u64,
}

/// The configuration in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// What it says.
    pub toml: String,
    /// When it took effect, in microseconds since the epoch.
    pub at_us: i64,
    /// Whose it was.
    pub uid: u32,
    /// Where it stands in the log.
    pub position: LogPosition,
}

impl Client {
    /// The head of each shard's chain, to be kept elsewhere and checked with [`Client::audit_check`] later.
    pub fn audit_heads(&self, options: &RequestOptions) -> Pending<Vec<Head>> {
        let convert = |result| match result {
            ReplyResult::AuditHeads(heads) => Some(heads),
            _ => None,
        };
        self.call(Target::Main, Operation::AuditHead, options, convert)
    }

    /// Whether a shard's chain still passes through a head that it had: nothing before it was changed, dropped or reordered.
    pub fn audit_check(&self, head: &Head, options: &RequestOptions) -> Pending<AuditChecked> {
        let convert = |result| match result {
            ReplyResult::AuditChecked { shard, ok, message, batches_verified } => {
                Some(AuditChecked { shard, ok, message, batches_verified })
            }
            _ => None,
        };
        let Head { shard, batch, position, hash, .. } = *head;
        let operation = Operation::AuditCheck { shard, batch, position, hash };
        self.call(Target::Shard(shard), operation, options, convert)
    }

    /// The configuration in effect.
    pub fn configuration(&self, options: &RequestOptions) -> Pending<Configuration> {
        let convert = |result| match result {
            ReplyResult::ConfigurationFound { toml, at_us, uid, position } => {
                Some(Configuration { toml, at_us, uid, position })
            }
            _ => None,
        };
        self.call(Target::Main, Operation::Configuration, options, convert)
    }
}
