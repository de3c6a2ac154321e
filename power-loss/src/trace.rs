//! What happened on the flaky disk, in the order in which it happened: writes and flushes with their submission and
//! completion, sizes, kills, and what clients sent and were told. An *instant* is an index into the events.

use crate::governing::Governing;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// A file of the disk at the beginning of the trace, all of it durable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BaseFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// Something that was asked of the disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Op {
    /// A write.
    Write {
        /// Index into the trace's files.
        file: u32,
        /// Byte offset.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// It came with O_DSYNC, RWF_DSYNC or FUA: its completion promises durability.
        is_durable: bool,
    },
    /// A flush of one file, or of the whole device where the trace has one file.
    Flush {
        /// Index into the trace's files.
        file: u32,
    },
}

/// A claim as a client sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentItem {
    /// Which event.
    pub event_key: String,
    /// Bytes of its metadata, which [`crate::load::metadata`] makes from the key.
    pub metadata_bytes: u32,
}

/// A mutating operation as a client sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sent {
    /// Claims of one corpus.
    Claim {
        /// Whose.
        corpus: String,
        /// Each.
        items: Vec<SentItem>,
    },
    /// A reference.
    Reference {
        /// Whose.
        corpus: String,
        /// To which row.
        event_id: u128,
    },
    /// A retraction.
    Retract {
        /// Of which row.
        event_id: u128,
    },
    /// A reactivation.
    Reactivate {
        /// Of which row.
        event_id: u128,
    },
    /// A new corpus.
    Onboard {
        /// Its name.
        name: String,
    },
    /// What concerns the whole ledger.
    Governing(Governing),
}

/// What a client did or learnt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Mark {
    /// It is about to send an operation, for the first time or again.
    Sent {
        /// The idempotency key.
        key: u128,
        /// What.
        operation: Sent,
    },
    /// It was told that an operation, or an item of it, is done.
    Acknowledged {
        /// The idempotency key.
        key: u128,
        /// Index in the batch.
        item: u16,
        /// The id handed out; 0 for what is no claim.
        event_id: u128,
        /// The slot given; 0 for what is no claim.
        sequence: u64,
    },
    /// It was shown a row.
    Seen {
        /// Which.
        event_id: u128,
    },
    /// It was told that an operation has not been done.
    Refused {
        /// The idempotency key.
        key: u128,
    },
    /// The segment archive has a shard's log up to a position.
    Archived {
        /// Which shard's.
        shard: u16,
        /// The last position.
        position: u64,
    },
}

/// Where clients write down what they do and learn.
pub trait Recorder: Sync {
    /// Writes it down, in its place among everything else that happens.
    fn mark(&self, mark: Mark);
}

/// One thing that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// An operation was submitted; its number is the count of submissions before it.
    Submitted(Op),
    /// It completed well.
    Completed(u32),
    /// It failed: what a write was to overwrite holds anything.
    Failed(u32),
    /// A file's size changed, in the cache.
    Resized {
        /// Index into the trace's files.
        file: u32,
        /// Its size now.
        bytes: u64,
    },
    /// The daemon was killed: what it had under way promises nothing.
    Killed,
    /// A client.
    Client(Mark),
    /// A hole was punched into a file: it reads as zeroes there. Nothing makes that durable but a flush.
    Freed {
        /// Index into the trace's files.
        file: u32,
        /// Byte offset.
        offset: u64,
        /// Length.
        bytes: u64,
    },
}

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Trace {
    /// The deliberate bug of the daemon that was traced.
    pub mutant: Option<String>,
    /// The files of the ledger, shard 0 first.
    pub files: Vec<BaseFile>,
    /// In order.
    pub events: Vec<Event>,
}

impl Trace {
    /// Writes it, compressed.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let bytes = postcard::to_allocvec(self).map_err(io::Error::other)?;
        let mut out = GzEncoder::new(BufWriter::new(File::create(path)?), Compression::best());
        out.write_all(&bytes)?;
        out.finish()?.flush()
    }

    /// Reads it back.
    pub fn load(path: &Path) -> io::Result<Trace> {
        let mut bytes = Vec::new();
        GzDecoder::new(BufReader::new(File::open(path)?)).read_to_end(&mut bytes)?;
        postcard::from_bytes(&bytes).map_err(io::Error::other)
    }

    /// Writes of the trace, by whether they were durable by themselves, and flushes.
    pub fn counts(&self) -> (u64, u64, u64) {
        let mut counts = (0, 0, 0);
        for event in &self.events {
            match event {
                Event::Submitted(Op::Write { is_durable: true, .. }) => counts.0 += 1,
                Event::Submitted(Op::Write { .. }) => counts.1 += 1,
                Event::Submitted(Op::Flush { .. }) => counts.2 += 1,
                _ => {}
            }
        }
        counts
    }

    /// Acknowledgements that clients got.
    pub fn acknowledged(&self) -> u64 {
        let is_one = |event: &&Event| matches!(event, Event::Client(Mark::Acknowledged { .. }));
        self.events.iter().filter(is_one).count() as u64
    }

    /// Holes that were punched, and ledgers that were restored from the segment archive.
    pub fn freed_and_restored(&self) -> (u64, u64) {
        let count = |is_one: fn(&Event) -> bool| self.events.iter().filter(|event| is_one(event)).count() as u64;
        let is_restored = |event: &Event| matches!(event, Event::Client(Mark::Archived { shard: 0, .. }));
        (count(|event| matches!(event, Event::Freed { .. })), count(is_restored))
    }

    /// The most durable writes that were under way at once.
    pub fn most_in_flight(&self) -> usize {
        let mut durable = Vec::new();
        let (mut now, mut most) = (0usize, 0);
        for event in &self.events {
            match event {
                Event::Submitted(op) => {
                    let counts = matches!(op, Op::Write { is_durable: true, .. });
                    durable.push(counts);
                    now += usize::from(counts);
                    most = most.max(now);
                }
                Event::Completed(op) | Event::Failed(op) => now -= usize::from(durable[*op as usize]),
                _ => {}
            }
        }
        most
    }
}
