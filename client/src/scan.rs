//! Rows, audit entries and disputes, page by page.

use crate::client::Client;
use crate::error::ClientError;
use crate::options::RequestOptions;
use crate::pending::{Answer, Pending};
use claim_protocol::{DisputeInfo, Entry, Row};
use std::collections::VecDeque;
use uuid::Uuid;

/// Which rows a scan gives. The default is all of them, in pages as large as the daemon makes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanRange {
    /// Rows claimed at or after this time, in microseconds since the epoch.
    pub since_us: Option<i64>,
    /// Rows claimed before this time, in microseconds since the epoch.
    pub until_us: Option<i64>,
    /// Rows of a page; 0, and what exceeds the daemon's bound, mean the bound.
    pub page_rows: u32,
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanPage {
    /// Rows in the order of their ids.
    pub rows: Vec<Row>,
    /// Set when there are more rows: where the next page starts.
    pub next: Option<Uuid>,
}

/// Whose audit entries a history gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistorySubject {
    /// Those of one row.
    Event(Uuid),
    /// Those of one correlation id, whichever rows they concern.
    Correlation(Uuid),
}

/// Which audit entries a history gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Whose they are.
    pub subject: HistorySubject,
    /// Entries at or after this time, in microseconds since the epoch.
    pub since_us: Option<i64>,
    /// Entries before this time, in microseconds since the epoch.
    pub until_us: Option<i64>,
}

/// One page of audit entries.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryPage {
    /// Entries in the order of their positions on one shard.
    pub entries: Vec<Entry>,
    /// Where there may be more. A page may be empty and not the last.
    pub next: Option<u64>,
    /// Aliases, canonical ids and the other rows of disputes: their entries are not among these.
    pub related: Vec<Uuid>,
}

/// One page of the rows of an event key.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundPage {
    /// The rows: shard by shard, the last claimed first.
    pub rows: Vec<Row>,
    /// Where there may be more. A page may be empty and not the last.
    pub next: Option<u64>,
}

/// One page of disputes.
#[derive(Debug, Clone, PartialEq)]
pub struct DisputePage {
    /// The newest first.
    pub disputes: Vec<DisputeInfo>,
    /// Set when there are more: where the next page starts.
    pub next: Option<Uuid>,
}

/// Which rows are paged through, and where the next page starts.
#[derive(Debug)]
enum Query {
    Corpus { corpus: String, range: ScanRange, after: Option<Uuid> },
    EventKey { event_key: String, from: u64 },
}

/// Rows, page by page. As an iterator it blocks; [`RowPages::next_page`] does not.
///
/// It ends after the last page, or after an error.
#[derive(Debug)]
pub struct RowPages {
    client: Client,
    query: Query,
    options: RequestOptions,
    ended: bool,
}

impl RowPages {
    pub(crate) fn of_corpus(client: Client, corpus: String, range: ScanRange, options: RequestOptions) -> Self {
        RowPages { client, query: Query::Corpus { corpus, range, after: None }, options, ended: false }
    }

    pub(crate) fn of_event_key(client: Client, event_key: String, options: RequestOptions) -> Self {
        RowPages { client, query: Query::EventKey { event_key, from: 0 }, options, ended: false }
    }

    /// The rows of the next page; `None` after the last.
    pub async fn next_page(&mut self) -> Option<Result<Vec<Row>, ClientError>> {
        if self.ended {
            return None;
        }
        let page = self.ask().await;
        Some(self.turn(page))
    }

    /// The rows one by one, blocking at the end of each page.
    pub fn rows(self) -> Rows {
        Rows { pages: self, page: VecDeque::new() }
    }

    fn ask(&self) -> Pending<Page> {
        match &self.query {
            Query::Corpus { corpus, range, after } => self.client.scan_page_as(corpus, *range, *after, &self.options),
            Query::EventKey { event_key, from } => self.client.find_page_as(event_key, *from, &self.options),
        }
    }

    fn turn(&mut self, page: Result<Answer<Page>, ClientError>) -> Result<Vec<Row>, ClientError> {
        let page = page.inspect_err(|_| self.ended = true)?.value;
        match (page.next, &mut self.query) {
            (Some(Next::After(id)), Query::Corpus { after, .. }) => *after = Some(id),
            (Some(Next::From(place)), Query::EventKey { from, .. }) => *from = place,
            _ => self.ended = true,
        }
        Ok(page.rows)
    }
}

/// A page of either.
struct Page {
    rows: Vec<Row>,
    next: Option<Next>,
}

enum Next {
    After(Uuid),
    From(u64),
}

impl From<ScanPage> for Page {
    fn from(page: ScanPage) -> Page {
        Page { rows: page.rows, next: page.next.map(Next::After) }
    }
}

impl From<FoundPage> for Page {
    fn from(page: FoundPage) -> Page {
        Page { rows: page.rows, next: page.next.map(Next::From) }
    }
}

impl Iterator for RowPages {
    type Item = Result<Vec<Row>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let page = self.ask().wait();
        Some(self.turn(page))
    }
}

/// The rows of a scan, or of an event key, one by one.
#[derive(Debug)]
pub struct Rows {
    pages: RowPages,
    page: VecDeque<Row>,
}

impl Iterator for Rows {
    type Item = Result<Row, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.page.pop_front() {
                return Some(Ok(row));
            }
            match self.pages.next()? {
                Ok(rows) => self.page = rows.into(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
