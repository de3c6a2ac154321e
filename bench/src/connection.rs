//! One connection of a load: requests out, replies in, never waiting.

use crate::error::BenchError;
use claim_protocol::frame::split_frame;
use claim_protocol::{Reply, decode_reply};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Bytes that one read may bring; a thousand replies fit.
const READ_BYTES: usize = 256 << 10;

/// Low bits of a request id that hold the slot, so that a reply finds its request without a search.
const SLOT_BITS: u32 = 16;

/// Most requests that one connection may keep outstanding.
pub const OUTSTANDING_MAX: usize = 1 << SLOT_BITS;

/// A request's place: it is free, or waits for the reply to `request_id`.
#[derive(Debug, Clone, Copy)]
struct Slot {
    request_id: u64,
    /// When the place became free, which is when the request could first be sent; or when the request was due.
    since: Instant,
    waiting: bool,
}

/// A reply, the place of its request and when that could first be sent or was due.
#[derive(Debug)]
pub struct Answered {
    pub reply: Reply,
    pub slot: usize,
    pub since: Instant,
    /// Of the reply's frame.
    pub bytes: usize,
}

/// A non-blocking connection with a fixed number of requests outstanding.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    slots: Vec<Slot>,
    /// Slots without a request.
    free: Vec<u32>,
    requests: u64,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the socket has taken.
    sent_bytes: usize,
    incoming: Vec<u8>,
    /// End of what was read into `incoming`.
    filled_bytes: usize,
    /// Start of what was not yet taken from it.
    taken_bytes: usize,
}

impl Connection {
    /// Takes over a greeted connection for `outstanding` requests at a time.
    pub fn new(stream: UnixStream, outstanding: usize) -> Result<Self, BenchError> {
        assert!((1..=OUTSTANDING_MAX).contains(&outstanding), "{outstanding} outstanding on one connection");
        stream
            .set_nonblocking(true)
            .map_err(|source| BenchError::Connection { doing: "set up for the load", source })?;
        let slot = Slot { request_id: 0, since: Instant::now(), waiting: false };
        Ok(Connection {
            stream,
            slots: vec![slot; outstanding],
            free: (0..outstanding as u32).rev().collect(),
            requests: 0,
            outgoing: Vec::new(),
            sent_bytes: 0,
            incoming: vec![0; READ_BYTES],
            filled_bytes: 0,
            taken_bytes: 0,
        })
    }

    /// The socket, to be polled.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Requests without a reply.
    pub fn waiting(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Marks every free place as free since now; for the start of a load.
    pub fn restart_clocks(&mut self, now: Instant) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.waiting) {
            slot.since = now;
        }
    }

    /// Whether another request may be sent.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Fills every free place with a request that `encode` appends, given its id and its place.
    pub fn fill(
        &mut self,
        mut encode: impl FnMut(u64, usize, &mut Vec<u8>) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        while let Some(number) = self.free.pop() {
            self.take_place(number, &mut encode)?;
        }
        Ok(())
    }

    /// Puts one request that was due at `since` into a free place, of which there is one.
    pub fn send_since(
        &mut self,
        since: Instant,
        mut encode: impl FnMut(u64, usize, &mut Vec<u8>) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let number = self.free.pop().expect("the caller has looked for room");
        self.slots[number as usize].since = since;
        self.take_place(number, &mut encode)
    }

    fn take_place(
        &mut self,
        number: u32,
        encode: &mut impl FnMut(u64, usize, &mut Vec<u8>) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        self.requests += 1;
        let request_id = self.requests << SLOT_BITS | u64::from(number);
        let slot = &mut self.slots[number as usize];
        slot.request_id = request_id;
        slot.waiting = true;
        encode(request_id, number as usize, &mut self.outgoing)
    }

    /// Writes what the socket takes; whether something is left for later.
    pub fn send(&mut self) -> Result<bool, BenchError> {
        while self.sent_bytes < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent_bytes..]) {
                Ok(bytes) => self.sent_bytes += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BenchError::Connection { doing: "sending requests", source }),
            }
        }
        self.outgoing.clear();
        self.sent_bytes = 0;
        Ok(false)
    }

    /// Reads once, as much as there is and fits.
    pub fn receive(&mut self) -> Result<(), BenchError> {
        self.make_room();
        loop {
            match self.stream.read(&mut self.incoming[self.filled_bytes..]) {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(BenchError::Connection { doing: "waiting for replies", source });
                }
                Ok(bytes) => {
                    self.filled_bytes += bytes;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BenchError::Connection { doing: "reading replies", source }),
            }
        }
    }

    /// Moves a begun frame to the front, and grows when one is longer than the buffer; frames are bounded.
    fn make_room(&mut self) {
        self.incoming.copy_within(self.taken_bytes..self.filled_bytes, 0);
        self.filled_bytes -= self.taken_bytes;
        self.taken_bytes = 0;
        if self.filled_bytes == self.incoming.len() {
            self.incoming.resize(2 * self.filled_bytes, 0);
        }
    }

    /// The next whole reply of what was read, whose place is free again since `now`.
    pub fn next_reply(&mut self, now: Instant) -> Result<Option<Answered>, BenchError> {
        let unread = &self.incoming[self.taken_bytes..self.filled_bytes];
        let Some((content, taken)) = split_frame(unread).map_err(|error| protocol(error.to_string()))? else {
            return Ok(None);
        };
        let reply = decode_reply(content).map_err(|error| protocol(error.to_string()))?;
        self.taken_bytes += taken;
        let number = (reply.request_id & (OUTSTANDING_MAX as u64 - 1)) as usize;
        match self.slots.get_mut(number) {
            Some(slot) if slot.waiting && slot.request_id == reply.request_id => {
                let since = std::mem::replace(&mut slot.since, now);
                slot.waiting = false;
                self.free.push(number as u32);
                Ok(Some(Answered { reply, slot: number, since, bytes: taken }))
            }
            _ => Err(protocol(format!("a reply came to request {}, which is not outstanding", reply.request_id))),
        }
    }
}

fn protocol(found: String) -> BenchError {
    BenchError::Protocol { found }
}
