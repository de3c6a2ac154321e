//! What is remembered of segments that are not sealed: where batches of theirs start, and the log's end where each begins. Of
//! sealed ones it is known from their index.

use super::end::LogEnd;
use super::layout::Geometry;
use crate::sealed::summary::{BatchStart, STARTS_EVERY_BYTES};
use std::collections::VecDeque;

/// See the module.
#[derive(Debug)]
pub struct Unsealed {
    geometry: Geometry,
    /// Some batches' starts, in log order.
    starts: VecDeque<BatchStart>,
    /// For segments behind one that is full: the log's end where each begins.
    heads: VecDeque<(u64, LogEnd)>,
}

impl Unsealed {
    /// Nothing is remembered yet.
    pub fn new(geometry: Geometry) -> Unsealed {
        Unsealed { geometry, starts: VecDeque::new(), heads: VecDeque::new() }
    }

    /// The last batch whose start is remembered from which on reading finds a position; `None` where that is in a sealed
    /// segment.
    pub fn start_for(&self, position: u64) -> Option<BatchStart> {
        let after = self.starts.partition_point(|start| start.first_position <= position);
        after.checked_sub(1).and_then(|at| self.starts.get(at)).copied()
    }

    /// Remembers where a batch starts, if that is worth remembering.
    pub fn remember_start(&mut self, start: BatchStart) {
        let last = self.starts.back().map_or(0, |last| last.log_offset);
        let is_other_segment = self.geometry.segment_of(start.log_offset) > self.geometry.segment_of(last);
        if self.starts.is_empty() || is_other_segment || start.log_offset >= last + STARTS_EVERY_BYTES {
            self.starts.push_back(start);
        }
    }

    /// The starts that are remembered of a segment.
    pub fn starts_of(&self, segment: u64) -> Vec<BatchStart> {
        let geometry = self.geometry;
        self.starts.iter().filter(|start| geometry.segment_of(start.log_offset) == segment).copied().collect()
    }

    /// Remembers the log's end where a segment begins.
    pub fn remember_head(&mut self, segment: u64, head: LogEnd) {
        if self.heads.back().is_none_or(|(last, _)| *last < segment) {
            self.heads.push_back((segment, head));
        }
    }

    /// The log's end where a segment begins, once its first batch is on its way.
    pub fn head_of(&self, segment: u64) -> Option<LogEnd> {
        self.heads.iter().find(|(number, _)| *number == segment).map(|(_, head)| *head)
    }

    /// A segment is sealed, and all before it: what is remembered of them is known from there.
    pub fn forget(&mut self, segment: u64) {
        let geometry = self.geometry;
        while self.starts.front().is_some_and(|start| geometry.segment_of(start.log_offset) <= segment) {
            self.starts.pop_front();
        }
        while self.heads.front().is_some_and(|(number, _)| *number <= segment) {
            self.heads.pop_front();
        }
    }
}
