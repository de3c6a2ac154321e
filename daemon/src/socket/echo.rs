//! A handler that sends every frame back as it came: what the socket layer does by itself, without an engine.

use super::connection::{CloseReason, Connection, FrameHandler, Verdict};
use std::rc::Rc;

/// Echoes frames. A frame of a forbidden length is answered with a frame that holds the text `bad length`.
#[derive(Debug, Default)]
pub struct Echo;

impl FrameHandler for Echo {
    fn frame(&self, conn: &Rc<Connection>, frame: &[u8]) -> Verdict {
        conn.send(|out| append_frame(out, frame));
        Verdict::Continue
    }

    fn end_of_read(&self, _conn: &Rc<Connection>) {}

    fn bad_length(&self, conn: &Rc<Connection>, _length: u32) {
        conn.send(|out| append_frame(out, b"bad length"));
    }

    fn closed(&self, _conn: &Rc<Connection>, _reason: &CloseReason) {}
}

/// Appends `content` with its length prefix.
pub fn append_frame(out: &mut Vec<u8>, content: &[u8]) {
    let length = u32::try_from(content.len()).expect("a frame's length fits its prefix");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(content);
}
