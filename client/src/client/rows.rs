//! Rows: claiming, changing and finding them.

use super::{Client, Target};
use crate::options::RequestOptions;
use crate::pending::Pending;
use crate::scan::{FoundPage, HistoryPage, HistoryQuery, HistorySubject, RowPages, ScanPage, ScanRange};
use claim_protocol::{ClaimItem, Claimed, ErrorCode, Operation, ReasonCode, ReplyResult, Row, ServerError};
use std::time::Duration;
use uuid::Uuid;

/// What became of a claim that was made unless the event is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// It was registered now.
    Registered(Claimed),
    /// It is registered, by whichever corpus, and nothing was claimed.
    Already {
        /// The row that is there.
        event_id: Uuid,
    },
}

impl Client {
    /// Registers one event and hands out its id.
    pub fn claim(&self, corpus: &str, item: &ClaimItem<'_>, options: &RequestOptions) -> Pending<Claimed> {
        let convert = |result| match result {
            ReplyResult::Claimed(claimed) => Some(claimed),
            _ => None,
        };
        self.call(
            Target::Corpus(corpus),
            Operation::Claim { corpus, item: *item, unless_registered_within_ms: 0 },
            options,
            convert,
        )
    }

    /// Registers many events of one corpus: one result per item, in the items' order, independent of each other.
    pub fn claim_batch(
        &self,
        corpus: &str,
        items: &[ClaimItem<'_>],
        options: &RequestOptions,
    ) -> Pending<Vec<Result<Claimed, ServerError>>> {
        let convert = |result| match result {
            ReplyResult::ClaimedBatch(results) => Some(results),
            _ => None,
        };
        let operation = Operation::ClaimBatch { corpus, items: items.to_vec() };
        self.call(Target::Corpus(corpus), operation, options, convert)
    }

    /// Records that `corpus` refers to a row of another corpus; answers with the id of the canonical row.
    pub fn reference(&self, corpus: &str, event_id: Uuid, options: &RequestOptions) -> Pending<Uuid> {
        let convert = |result| match result {
            ReplyResult::Referenced(canonical_id) => Some(canonical_id),
            _ => None,
        };
        // A reference is logged on the shard of the row.
        self.call(Target::Event(event_id), Operation::Reference { corpus, event_id }, options, convert)
    }

    /// Many references of one corpus: one result per id, in the ids' order, independent of each other.
    pub fn reference_batch(
        &self,
        corpus: &str,
        event_ids: &[Uuid],
        options: &RequestOptions,
    ) -> Pending<Vec<Result<Uuid, ServerError>>> {
        let convert = |result| match result {
            ReplyResult::ReferencedBatch(results) => Some(results),
            _ => None,
        };
        let target = event_ids.first().map_or(Target::Corpus(corpus), |first| Target::Event(*first));
        let operation = Operation::ReferenceBatch { corpus, event_ids: event_ids.to_vec() };
        self.call(target, operation, options, convert)
    }

    /// Takes a registered row back; an empty corpus stands for the one that the id says. The reason is the options'
    /// rationale. Answers with the time, in microseconds.
    pub fn retract(
        &self,
        corpus: &str,
        event_id: Uuid,
        reason_code: ReasonCode,
        options: &RequestOptions,
    ) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Retracted { tombstoned_at_us, .. } => Some(tombstoned_at_us),
            _ => None,
        };
        let operation = Operation::Retract { corpus, event_id, reason_code };
        self.call(Target::Event(event_id), operation, options, convert)
    }

    /// Brings a retracted row back. The reason is the options' rationale. Answers with the time, in microseconds.
    pub fn reactivate(&self, event_id: Uuid, options: &RequestOptions) -> Pending<i64> {
        let convert = |result| match result {
            ReplyResult::Reactivated { reactivated_at_us, .. } => Some(reactivated_at_us),
            _ => None,
        };
        self.call(Target::Event(event_id), Operation::Reactivate { event_id }, options, convert)
    }

    /// One row.
    pub fn lookup(&self, event_id: Uuid, options: &RequestOptions) -> Pending<Row> {
        let convert = |result| match result {
            ReplyResult::Row(row) => Some(*row),
            _ => None,
        };
        self.call(Target::Event(event_id), Operation::Lookup { event_id }, options, convert)
    }

    /// Registers one event, unless some corpus has registered the same event key in the last 24 hours with a time of
    /// occurrence at most `within` away. Of concurrent such claims of one key at most one succeeds; a plain claim that is
    /// still under way may be missed.
    pub fn claim_unless_registered(
        &self,
        corpus: &str,
        item: &ClaimItem<'_>,
        within: Duration,
        options: &RequestOptions,
    ) -> Pending<Registration> {
        let convert = |result| match result {
            ReplyResult::Claimed(claimed) => Some(Registration::Registered(claimed)),
            _ => None,
        };
        let already = |error: &ServerError| {
            let event_id = error.registered_id.filter(|_| error.code == ErrorCode::AlreadyRegistered)?;
            Some(Registration::Already { event_id })
        };
        // Less than a millisecond counts as one, because none makes a plain claim; more than the bound is refused.
        let unless_registered_within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX).max(1);
        let operation = Operation::Claim { corpus, item: *item, unless_registered_within_ms };
        self.call(Target::Corpus(corpus), operation, options, convert).recovering(already)
    }

    /// A page of the audit entries of one row, oldest first, from where the page before ended; 0: the first page.
    pub fn history(&self, event_id: Uuid, from: u64, options: &RequestOptions) -> Pending<HistoryPage> {
        let query = HistoryQuery { subject: HistorySubject::Event(event_id), since_us: None, until_us: None };
        self.history_page(query, from, options)
    }

    /// A page of the audit entries that a query asks for, from where the page before ended; 0: the first page. Those of a
    /// correlation id come shard by shard.
    pub fn history_page(&self, query: HistoryQuery, from: u64, options: &RequestOptions) -> Pending<HistoryPage> {
        let convert = |result| match result {
            ReplyResult::History { entries, next, related } => Some(HistoryPage { entries, next, related }),
            _ => None,
        };
        let HistoryQuery { subject, since_us, until_us } = query;
        let (target, event_id, correlation_id) = match subject {
            HistorySubject::Event(id) => (Target::Event(id), Some(id), None),
            HistorySubject::Correlation(id) => (Target::Main, None, Some(id)),
        };
        let operation = Operation::History { event_id, correlation_id, from, since_us, until_us };
        self.call(target, operation, options, convert)
    }

    /// Rows of a corpus in id order, page by page.
    pub fn scan(&self, corpus: &str, range: ScanRange, options: &RequestOptions) -> RowPages {
        RowPages::of_corpus(self.clone(), corpus.to_owned(), range, options.clone())
    }

    /// The rows of every corpus that may be read, with one event key, page by page.
    pub fn find(&self, event_key: &str, options: &RequestOptions) -> RowPages {
        RowPages::of_event_key(self.clone(), event_key.to_owned(), options.clone())
    }

    /// One page of the rows with an event key, from where the page before ended; 0: the first page.
    pub fn find_page(&self, event_key: &str, from: u64, options: &RequestOptions) -> Pending<FoundPage> {
        self.find_page_as(event_key, from, options)
    }

    pub(crate) fn find_page_as<T: From<FoundPage>>(
        &self,
        event_key: &str,
        from: u64,
        options: &RequestOptions,
    ) -> Pending<T> {
        let convert = |result| match result {
            ReplyResult::Found { rows, next } => Some(FoundPage { rows, next }.into()),
            _ => None,
        };
        self.call(Target::Main, Operation::Find { event_key, from }, options, convert)
    }

    /// One page of a scan: rows behind `after`, and where the next page starts.
    pub fn scan_page(
        &self,
        corpus: &str,
        range: ScanRange,
        after: Option<Uuid>,
        options: &RequestOptions,
    ) -> Pending<ScanPage> {
        self.scan_page_as(corpus, range, after, options)
    }

    pub(crate) fn scan_page_as<T: From<ScanPage>>(
        &self,
        corpus: &str,
        range: ScanRange,
        after: Option<Uuid>,
        options: &RequestOptions,
    ) -> Pending<T> {
        let convert = |result| match result {
            ReplyResult::ScanPage { rows, next } => Some(ScanPage { rows, next }.into()),
            _ => None,
        };
        let ScanRange { since_us, until_us, page_rows } = range;
        let operation = Operation::Scan { corpus, since_us, until_us, after, limit: page_rows };
        self.call(Target::Corpus(corpus), operation, options, convert)
    }
}
