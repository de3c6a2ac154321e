//! Frames: how one flatbuffer follows another on a stream.
//!
//! ```text
//!  0        4                     4 + n
//!  +--------+---------------------+--------+---- ...
//!  | n (LE) | n bytes, flatbuffer | n (LE) |
//!  +--------+---------------------+--------+---- ...
//! ```
//!
//! `n` is at most [`FRAME_BYTES_MAX`]. A longer one is refused from its prefix alone, before anything is buffered for it.

use crate::bounds::{FRAME_BYTES_MAX, FRAME_PREFIX_BYTES};
use std::io::{self, Read};

/// A frame longer than the protocol allows, met while reading or about to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes exceeds the bound of {FRAME_BYTES_MAX}")]
pub struct FrameTooLarge {
    /// Length of the frame's content.
    pub bytes: usize,
}

/// The first frame of `buffer`, if it is complete: its content, and how many bytes of `buffer` it took with its prefix.
///
/// # Errors
/// The prefix names more than [`FRAME_BYTES_MAX`]; the stream cannot be followed any further.
pub fn split_frame(buffer: &[u8]) -> Result<Option<(&[u8], usize)>, FrameTooLarge> {
    let Some((prefix, rest)) = buffer.split_first_chunk::<FRAME_PREFIX_BYTES>() else {
        return Ok(None);
    };
    let bytes = u32::from_le_bytes(*prefix) as usize;
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameTooLarge { bytes });
    }
    Ok(rest.get(..bytes).map(|content| (content, FRAME_PREFIX_BYTES + bytes)))
}

/// Appends a frame around `content` to `out`.
pub(crate) fn append_frame(content: &[u8], out: &mut Vec<u8>) -> Result<(), FrameTooLarge> {
    if content.len() > FRAME_BYTES_MAX {
        return Err(FrameTooLarge { bytes: content.len() });
    }
    out.reserve(FRAME_PREFIX_BYTES + content.len());
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(content);
    Ok(())
}

/// Collects bytes of a stream and gives out its frames.
///
/// It holds at most one incomplete frame beyond what one read brought in, so its memory is bounded by
/// [`FRAME_BYTES_MAX`] and the size of a read.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Bytes before this were given out already; they go with the next read.
    consumed: usize,
}

/// Bytes that one call of [`FrameBuffer::read_from`] asks for.
const READ_BYTES: usize = 64 << 10;

impl FrameBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        FrameBuffer::default()
    }

    /// Adds bytes that were read elsewhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.forget_consumed();
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads once from `source` and returns how many bytes came; 0 is the end of the stream.
    ///
    /// # Errors
    /// Those of `source`; the buffer stays as it was.
    pub fn read_from(&mut self, source: &mut impl Read) -> io::Result<usize> {
        self.forget_consumed();
        let before = self.bytes.len();
        self.bytes.resize(before + READ_BYTES, 0);
        let outcome = source.read(&mut self.bytes[before..]);
        self.bytes.truncate(before + outcome.as_ref().copied().unwrap_or(0));
        outcome
    }

    /// The content of the next complete frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// The next frame is longer than allowed; the stream cannot be followed any further.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameTooLarge> {
        match split_frame(&self.bytes[self.consumed..])? {
            Some((_, taken)) => {
                let start = self.consumed + FRAME_PREFIX_BYTES;
                self.consumed += taken;
                Ok(Some(&self.bytes[start..self.consumed]))
            }
            None => Ok(None),
        }
    }

    fn forget_consumed(&mut self) {
        self.bytes.drain(..self.consumed);
        self.consumed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameBuffer, FrameTooLarge, append_frame, split_frame};
    use crate::bounds::FRAME_BYTES_MAX;

    /// Splits `stream`, fed in pieces of `piece` bytes.
    fn split_in_pieces(stream: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameTooLarge> {
        let mut buffer = FrameBuffer::new();
        let mut frames = Vec::new();
        for bytes in stream.chunks(piece) {
            buffer.extend(bytes);
            while let Some(frame) = buffer.next_frame()? {
                frames.push(frame.to_vec());
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_come_out_however_the_stream_is_cut() {
        let contents: Vec<Vec<u8>> = (0..20usize).map(|length| vec![length as u8; length * 7]).collect();
        let mut stream = Vec::new();
        for content in &contents {
            append_frame(content, &mut stream).expect("short enough");
        }
        for piece in [1, 2, 3, 5, 64, stream.len()] {
            assert_eq!(split_in_pieces(&stream, piece).as_ref(), Ok(&contents), "pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_past_the_bound_is_refused_from_its_prefix() {
        let prefix = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
        let refused = FrameTooLarge { bytes: FRAME_BYTES_MAX + 1 };
        assert_eq!(split_frame(&prefix), Err(refused));
        assert_eq!(split_in_pieces(&prefix, 1), Err(refused));
        assert_eq!(append_frame(&vec![0; FRAME_BYTES_MAX + 1], &mut Vec::new()), Err(refused));
        assert_eq!(split_frame(&(FRAME_BYTES_MAX as u32).to_le_bytes()), Ok(None));
    }
}
