//! The socket layer: from a listening Unix socket to whole frames, and from reply bytes back to the peer.
//!
//! It knows that a frame is a 4-byte little-endian length and that many bytes, who the peer is, and how much of
//! everything there may be. It does not know what a frame says: no flatbuffers, no engine, no shard. What a frame means
//! is the business of a [`connection::FrameHandler`].
//!
//! ```text
//!  acceptor thread ──Accepted──▶ inbox of an executor ──▶ Sockets::run ──▶ one serve task per connection
//!                                                                            │ read: scratch ▶ frames ▶ handler.frame
//!                                                                            │ write: output buffer ▶ socket
//!                                                        Sockets::sweep ─────┘ timeouts, shrinking of buffers
//! ```
//!
//! - [`limits`]: every bound of this layer, in one struct.
//! - [`listener`]: binding, the acceptor thread, peer credentials, the connection limit.
//! - [`sockets`]: what the connections of one executor share: scratch buffer, budgets, counters, the sweep.
//! - [`connection`]: one connection's state, as handlers see it.
//! - [`serve`]: the loop that reads, calls the handler, and writes.
//! - [`readiness`]: which connections have something to read or room to write, and their sockets.
//! - [`large_frames`]: the budget for frames that do not fit the small buffers.
//! - [`echo`]: a handler that sends every frame back.

pub mod connection;
pub mod echo;
pub mod large_frames;
pub mod limits;
pub mod listener;
pub mod readiness;
pub mod serve;
pub mod sockets;

#[cfg(test)]
mod tests;
