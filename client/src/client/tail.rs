//! Entries as they become durable.

use super::{Client, Target};
use crate::error::ClientError;
use crate::options::RequestOptions;
use crate::pending::Pending;
use claim_protocol::{Entry, Operation, ReplyResult, TAIL_WAIT_MS_MAX};
use std::time::Duration;

/// The longest that the daemon waits for an entry.
const WAIT_MAX: Duration = Duration::from_millis(TAIL_WAIT_MS_MAX as u64);

/// What a tail gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailOptions {
    /// The shard whose log it is.
    pub shard: u16,
    /// The first position.
    pub from_position: u64,
    /// Entries of a page; 0, and what exceeds the daemon's bound, mean the bound.
    pub page_entries: u32,
    /// How long the daemon waits for an entry where there is none: at most a minute, and half of the request's deadline.
    /// With zero the pages end with the last entry that is there.
    pub wait: Duration,
}

/// Entries of one shard, in the order of their positions.
#[derive(Debug, Clone, PartialEq)]
pub struct TailPage {
    /// The entries; none when nothing became durable in time.
    pub entries: Vec<Entry>,
    /// The first position of the next page.
    pub next_position: u64,
    /// The last position that is durable.
    pub durable_position: u64,
}

impl Client {
    /// A page of a shard's durable entries. It comes as soon as there is one, or when the wait is over.
    pub fn tail_page(&self, tail: TailOptions, options: &RequestOptions) -> Pending<TailPage> {
        let convert = |result| match result {
            ReplyResult::TailPage { entries, next_position, durable_position } => {
                Some(TailPage { entries, next_position, durable_position })
            }
            _ => None,
        };
        let TailOptions { shard, from_position, page_entries: limit, wait } = tail;
        // What is answered at the deadline would come too late.
        let deadline = options.deadline.unwrap_or(self.inner.options.deadline);
        let wait_ms = wait.min(deadline / 2).min(WAIT_MAX).as_millis() as u32;
        let operation = Operation::Tail { shard, from_position, limit, wait_ms };
        self.call(Target::Shard(shard), operation, options, convert)
    }

    /// A shard's durable entries from a position on, page by page.
    pub fn tail(&self, tail: TailOptions, options: &RequestOptions) -> TailPages {
        TailPages { client: self.clone(), tail, options: options.clone(), ended: false }
    }
}

/// The pages of a tail. As an iterator it blocks; [`TailPages::next_page`] does not.
///
/// With a wait it goes on for ever, and pages without entries say that nothing happened. Without one it ends with the
/// last entry that was there. It ends after an error, too.
#[derive(Debug)]
pub struct TailPages {
    client: Client,
    tail: TailOptions,
    options: RequestOptions,
    ended: bool,
}

impl TailPages {
    /// The next page; `None` after the last.
    pub async fn next_page(&mut self) -> Option<Result<TailPage, ClientError>> {
        if self.ended {
            return None;
        }
        let page = self.client.tail_page(self.tail, &self.options).await;
        Some(self.turn(page.map(|answer| answer.value)))
    }

    /// The first position of the next page.
    pub fn next_position(&self) -> u64 {
        self.tail.from_position
    }

    fn turn(&mut self, page: Result<TailPage, ClientError>) -> Result<TailPage, ClientError> {
        let page = page.inspect_err(|_| self.ended = true)?;
        // What becomes durable while the pages are read is not waited for, and not left out either.
        let is_last = page.next_position > page.durable_position || page.next_position <= self.tail.from_position;
        self.ended = self.tail.wait.is_zero() && is_last;
        self.tail.from_position = page.next_position;
        Ok(page)
    }
}

impl Iterator for TailPages {
    type Item = Result<TailPage, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let page = self.client.tail_page(self.tail, &self.options).wait();
        Some(self.turn(page.map(|answer| answer.value)))
    }
}
