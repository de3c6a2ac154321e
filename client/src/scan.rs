//! Rows of a corpus, page by page.

use crate::client::Client;
use crate::error::ClientError;
use crate::options::RequestOptions;
use claim_protocol::{Entry, Row};
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
    /// Entries in the order of their positions.
    pub entries: Vec<Entry>,
    /// Whether there are more after these.
    pub more: bool,
    /// Aliases, canonical ids and the other rows of disputes: their entries are not among these.
    pub related: Vec<Uuid>,
}

/// The pages of a scan. As an iterator it blocks; [`ScanPages::next_page`] does not.
///
/// It ends after the last page, or after an error.
#[derive(Debug)]
pub struct ScanPages {
    client: Client,
    corpus: String,
    range: ScanRange,
    options: RequestOptions,
    after: Option<Uuid>,
    ended: bool,
}

impl ScanPages {
    pub(crate) fn new(client: Client, corpus: String, range: ScanRange, options: RequestOptions) -> Self {
        ScanPages { client, corpus, range, options, after: None, ended: false }
    }

    /// The rows of the next page; `None` after the last.
    pub async fn next_page(&mut self) -> Option<Result<Vec<Row>, ClientError>> {
        if self.ended {
            return None;
        }
        let page = self.client.scan_page(&self.corpus, self.range, self.after, &self.options).await;
        Some(self.turn(page.map(|answer| answer.value)))
    }

    /// The rows one by one, blocking at the end of each page.
    pub fn rows(self) -> Rows {
        Rows { pages: self, page: VecDeque::new() }
    }

    fn turn(&mut self, page: Result<ScanPage, ClientError>) -> Result<Vec<Row>, ClientError> {
        let page = page.inspect_err(|_| self.ended = true)?;
        self.ended = page.next.is_none();
        self.after = page.next;
        Ok(page.rows)
    }
}

impl Iterator for ScanPages {
    type Item = Result<Vec<Row>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let page = self.client.scan_page(&self.corpus, self.range, self.after, &self.options).wait();
        Some(self.turn(page.map(|answer| answer.value)))
    }
}

/// The rows of a scan, one by one.
#[derive(Debug)]
pub struct Rows {
    pages: ScanPages,
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
