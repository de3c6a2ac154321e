//! What executors send each other.

use crate::gather::Part;
use crate::socket::connection::Peer;
use claim_engine::peer::PeerMessage;

/// What executors send each other.
#[derive(Debug)]
pub enum Message {
    /// A request for a shard of the receiver.
    Ask {
        /// Names the request at the sender.
        ticket: usize,
        /// Which shard is to answer.
        shard: u16,
        /// The frame, as the client sent it and the sender verified it.
        frame: Vec<u8>,
        /// Who asks.
        peer: Peer,
        /// CLOCK_BOOTTIME in microseconds after which nobody waits.
        deadline_boot_us: Option<i64>,
        /// Answer with a [`Part`] instead of a frame.
        is_part: bool,
    },
    /// The answer to an ask: a whole frame.
    Answer {
        /// As in the ask.
        ticket: usize,
        /// The reply, length prefix included.
        frame: Vec<u8>,
    },
    /// The answer to an ask for a part.
    AnswerPart {
        /// As in the ask.
        ticket: usize,
        /// The part.
        part: Part,
    },
    /// From one shard to another.
    Peer {
        /// To which.
        shard: u16,
        /// What.
        message: PeerMessage,
    },
}
