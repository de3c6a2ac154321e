//! What the guest tells the host, over its second serial port: frames of a length and a postcard value. A note's number is
//! the count of notes before it; in the device's log a mark with that number stands where the note was made.

use crate::trace::Mark;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};

/// The largest frame; what is longer is no frame.
const NOTE_BYTES_MAX: usize = 64 * 1024;
const LENGTH_BYTES: usize = 4;

/// A note.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Note {
    /// What the guest found, before anything is written.
    Machine {
        /// `uname -r`.
        kernel: String,
        /// Of each device: its serial number, `queue/write_cache` and `queue/fua`.
        devices: Vec<(String, String, bool)>,
    },
    /// The ledger is formatted, and all of it is durable.
    Formatted,
    /// A daemon is about to start.
    Starting,
    /// A daemon serves.
    Serving,
    /// A daemon is about to be killed.
    Killing,
    /// A client did or learnt something.
    Client(Mark),
    /// All is done.
    Done,
    /// It could not be done.
    Failed(String),
}

impl Note {
    /// Writes the note as one frame.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let body = postcard::to_allocvec(self).map_err(io::Error::other)?;
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&body);
        out.write_all(&frame)
    }

    /// Reads all whole frames; what a killed guest left half written is no note.
    pub fn read_all(mut bytes: &[u8]) -> Result<Vec<Note>, String> {
        let mut notes = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > NOTE_BYTES_MAX {
                return Err(format!("note {} from the guest has {length} bytes: the port lost some", notes.len()));
            }
            let Some((body, rest)) = rest.split_at_checked(length) else { break };
            let note = postcard::from_bytes(body);
            notes.push(note.map_err(|e| format!("note {} from the guest: {e}", notes.len()))?);
            bytes = rest;
        }
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_and_half_a_note_does_not() {
        let mut bytes = Vec::new();
        Note::Formatted.write(&mut bytes).expect("memory");
        Note::Client(Mark::Seen { event_id: 7 }).write(&mut bytes).expect("memory");
        let whole = bytes.len();
        Note::Failed("x".repeat(300)).write(&mut bytes).expect("memory");
        assert_eq!(Note::read_all(&bytes).expect("frames").len(), 3);
        for cut in whole..bytes.len() {
            assert_eq!(Note::read_all(&bytes[..cut]).expect("frames").len(), 2);
        }
        assert!(Note::read_all(&[0xff; 8]).is_err());
    }
}
