//! What an import did.

use crate::error::ClientError;
use crate::import::{Event, SourceError};
use claim_protocol::ErrorCode;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The longest latency that the histogram tells apart.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Significant decimal digits of the latencies.
const LATENCY_DIGITS: u8 = 3;

/// What an import did.
#[derive(Debug, Clone, Serialize)]
pub struct ImportReport {
    /// Claims acknowledged.
    pub claimed: u64,
    /// References acknowledged.
    pub referenced: u64,
    /// Retractions acknowledged.
    pub retracted: u64,
    /// Reactivations acknowledged.
    pub reactivated: u64,
    /// Events refused, by code. `NOT_VISIBLE` includes those that name a claim or corpus that is not there, which are not
    /// sent at all.
    pub refused: BTreeMap<&'static str, u64>,
    /// Of each of these codes, the first event, and why.
    pub first_refused: BTreeMap<&'static str, String>,
    /// How often an event was sent again because the ledger was overloaded or full.
    pub sent_again: u64,
    /// How long it took.
    pub seconds: f64,
    /// From the sending of each acknowledged request to its answer, in microseconds.
    #[serde(skip)]
    pub latency_us: Histogram<u64>,
}

impl ImportReport {
    pub(crate) fn new() -> Self {
        ImportReport {
            claimed: 0,
            referenced: 0,
            retracted: 0,
            reactivated: 0,
            refused: BTreeMap::new(),
            first_refused: BTreeMap::new(),
            sent_again: 0,
            seconds: 0.0,
            latency_us: Histogram::new_with_max(LATENCY_US_MAX, LATENCY_DIGITS).expect("the bounds are valid"),
        }
    }

    /// Operations acknowledged, all kinds together.
    pub fn acknowledged(&self) -> u64 {
        self.claimed + self.referenced + self.retracted + self.reactivated
    }

    pub(crate) fn refuse(&mut self, code: ErrorCode, event: &Event, why: &dyn fmt::Display) {
        *self.refused.entry(code.name()).or_default() += 1;
        self.first_refused.entry(code.name()).or_insert_with(|| format!("{event}: {why}"));
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.latency_us.saturating_record(latency.as_micros() as u64);
    }
}

/// Why an import ended before the file did.
#[derive(Debug, thiserror::Error)]
pub enum ImportFailure {
    /// The file is not what it should be.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The daemon is gone or takes nothing, or an outcome stays unknown.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// An import that ended before its file did, and what it had done by then.
#[derive(Debug, thiserror::Error)]
#[error("event {event}: {failure}")]
pub struct ImportError {
    /// The number of the last event that was read, from 1. An answer may concern an earlier one that was under way.
    pub event: u64,
    /// What went wrong.
    pub failure: ImportFailure,
    /// What had been acknowledged and refused by then.
    pub report: Box<ImportReport>,
}

impl ImportError {
    pub(crate) fn new(event: u64, failure: ImportFailure, report: ImportReport) -> Self {
        ImportError { event, failure, report: Box::new(report) }
    }
}
