//! Every bound of the socket layer, in one place.

/// Bytes of a frame's length prefix.
pub const PREFIX_BYTES: usize = 4;

/// The bounds. Those of one executor are multiplied by the number of executors in the daemon's whole.
///
/// With the defaults, the most that one executor's connections can hold is `large_frame_bytes + buffered_bytes_max`,
/// plus `connections_max × (small_frame_bytes_max + fair_output_bytes)`, plus replies to requests that were accepted
/// before a bound was reached; those are bounded by `outstanding_max` and, in bytes, by `output_bytes_hard_max`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections of the whole process. One more is answered with the acceptor's busy bytes and closed.
    pub connections_max: usize,
    /// Accepted connections that wait for one executor to take them. As many as there may be in all, so that a burst
    /// of connects is not turned away while there are places.
    pub accept_inbox_max: usize,
    /// Content of the largest frame. A longer one is answered by [`FrameHandler::bad_length`] and the end.
    ///
    /// [`FrameHandler::bad_length`]: super::connection::FrameHandler::bad_length
    pub frame_bytes_max: u32,
    /// One read, and so the size of the scratch buffer that an executor's connections share. It is larger than what a
    /// Unix socket holds by default (208 KiB), so that a read empties the socket and the next one waits its turn.
    pub read_bytes_max: usize,
    /// Content of the largest frame whose incomplete bytes a connection may keep without asking the budget.
    pub small_frame_bytes_max: usize,
    /// Per executor: bytes of incomplete frames larger than `small_frame_bytes_max`.
    pub large_frame_bytes: usize,
    /// A frame must be whole this long after its first byte, and the first one this long after the connection came; times
    /// of backpressure excepted.
    pub frame_timeout_ms: u64,
    /// Unsent output of one connection at which reading from it pauses.
    pub output_bytes_max: usize,
    /// Unsent output of one connection at which it is closed. Reading pauses long before; only replies to requests that
    /// were accepted earlier can get here.
    pub output_bytes_hard_max: usize,
    /// Per executor: unsent output and unprocessed input of all connections. Above it, reading pauses for every
    /// connection that holds more than `fair_output_bytes`.
    pub buffered_bytes_max: usize,
    /// What a connection may hold even when the executor's connections together hold too much, so that a peer that
    /// reads its replies is served beside those that do not.
    pub fair_output_bytes: usize,
    /// Requests of one connection that are begun and not finished, at which reading from it pauses.
    pub outstanding_max: u32,
    /// Output must move within this time, or the connection is closed.
    pub write_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            accept_inbox_max: 1_024,
            frame_bytes_max: 4 << 20,
            read_bytes_max: 256 << 10,
            small_frame_bytes_max: 16 << 10,
            large_frame_bytes: 64 << 20,
            frame_timeout_ms: 10_000,
            output_bytes_max: 1 << 20,
            output_bytes_hard_max: 64 << 20,
            buffered_bytes_max: 128 << 20,
            fair_output_bytes: 16 << 10,
            outstanding_max: 16_384,
            write_timeout_ms: 10_000,
        }
    }
}

impl Limits {
    /// Asserts that the bounds fit each other; called once per executor.
    ///
    /// # Panics
    /// If no connection could ever make progress under them.
    pub fn check(&self) {
        assert!(self.read_bytes_max >= 4096, "reads of {} bytes are too small", self.read_bytes_max);
        assert!(self.frame_bytes_max > 0, "no frame would be allowed");
        assert!(
            self.large_frame_bytes >= self.frame_bytes_max as usize + PREFIX_BYTES,
            "large_frame_bytes {} holds not even one frame of frame_bytes_max {}",
            self.large_frame_bytes,
            self.frame_bytes_max
        );
        assert!(self.outstanding_max > 0 && self.output_bytes_max > 0, "no request would ever be read");
        assert!(self.output_bytes_hard_max >= self.output_bytes_max, "a connection would be closed before it pauses");
        assert!(self.frame_timeout_ms > 0 && self.write_timeout_ms > 0, "a timeout of 0 closes every connection");
    }

    /// How often the sweep looks at the connections: often enough that a timeout is late by an eighth at most.
    pub fn sweep_ms(&self) -> u64 {
        (self.frame_timeout_ms.min(self.write_timeout_ms) / 8).clamp(1, 250)
    }
}
