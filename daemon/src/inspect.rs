//! `claimd inspect`: prints what is on disk: superblocks, segments, batches, records. Reads without the lock, so that it
//! works beside a daemon; what it shows then may be a moment old.

use crate::doctor;
use crate::ledger;
use crate::verify;
use claim_engine::corpus::Prefix;
use claim_engine::dispute::DisputeId;
use claim_engine::id::EventId;
use claim_engine::log::batch::BatchHeader;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::Record;
use claim_engine::log::layout::RING_RESERVED_SEGMENTS;
use claim_engine::log::record::RawRecord;
use claim_engine::log::recovery::{self, BatchPlace, RecoveryOptions, Visit};
use claim_engine::log::superblock::{ClockMode, Superblock};
use claim_engine::retention::QuarterSeal;
use claim_engine::sealed::{Catalog, Checkpoint, Summary, read_chain};
use claim_engine::shard::Shard;
use claim_engine::storage::RealStorage;
use claim_engine::time::rfc3339;
use claim_translate::{self as translate, Names};
use glommio::LocalExecutor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// How much to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Depth {
    /// The superblock and the totals.
    Superblock,
    /// And a line per segment.
    Segments,
    /// And a line per batch.
    Batches,
    /// And a line per record.
    Records,
}

/// What `claimd inspect` is told.
#[derive(Debug, Clone)]
pub struct InspectOptions {
    /// How much.
    pub depth: Depth,
    /// One JSON object per line.
    pub json: bool,
    /// Only this shard.
    pub shard: Option<u16>,
}

/// Prints a ledger. The error is a sentence; damage is one.
pub fn inspect(data: &Path, options: &InspectOptions) -> Result<(), String> {
    doctor::preflight(data, 1, true)?;
    // Beside a daemon, what is there stays there until it is printed.
    let _reading = ledger::keep_dropped(data).map_err(|e| format!("{}: {e}", data.display()))?;
    let superblocks = ledger::superblocks(data).map_err(|e| e.to_string())?;
    if let Some(shard) = options.shard.filter(|shard| usize::from(*shard) >= superblocks.len()) {
        return Err(format!("there is no shard {shard}: the ledger has {}, from 0", superblocks.len()));
    }
    let out = &mut Printer { out: BufWriter::new(io::stdout().lock()), json: options.json, failed: None };
    for superblock in superblocks.iter().filter(|s| options.shard.is_none_or(|shard| s.shard == shard)) {
        let path = ledger::shard_path(data, superblock.shard);
        let shown = LocalExecutor::default().run(async {
            let storage = RealStorage::open_read_only(&path).await.map_err(|e| e.to_string())?;
            shard(&path, &storage, superblock, options.depth, out).await
        });
        if let Some(error) = out.failed.take() {
            return quiet(error);
        }
        shown?;
    }
    out.out.flush().or_else(quiet)
}

/// A reader who has seen enough closes the pipe; that is no error.
fn quiet(error: io::Error) -> Result<(), String> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error.to_string()) }
}

struct Printer<W> {
    out: W,
    json: bool,
    failed: Option<io::Error>,
}

impl<W: Write> Printer<W> {
    /// Prints an object: as JSON, or as its values behind their names.
    fn line(&mut self, what: &str, indent: usize, fields: Value) -> Result<(), String> {
        let Value::Object(fields) = fields else { return Ok(()) };
        let text = if self.json {
            let mut object = serde_json::Map::new();
            object.insert("what".to_owned(), what.into());
            object.extend(fields);
            Value::Object(object).to_string()
        } else {
            let mut text = format!("{:indent$}{what}", "");
            for (name, value) in &fields {
                let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let _ = write!(text, "  {name} {shown}");
            }
            text
        };
        if self.failed.is_none() {
            self.failed = writeln!(self.out, "{text}").err();
        }
        // The walk is ended by an error; what kind it is stands in `failed`.
        if self.failed.is_none() { Ok(()) } else { Err(String::new()) }
    }
}

async fn shard(
    path: &Path,
    storage: &RealStorage,
    superblock: &Superblock,
    depth: Depth,
    out: &mut Printer<impl Write>,
) -> Result<(), String> {
    let geometry = superblock.geometry;
    let copies = Superblock::read_copies(storage).await.map_err(|e| e.to_string())?;
    let valid = copies.iter().filter(|copy| copy.superblock.is_some()).count();
    out.line(
        "shard",
        0,
        json!({
            "shard": superblock.shard, "of": superblock.shard_count, "file": path.display().to_string(),
            "ledger": superblock.ledger.to_string(), "superblock_generation": superblock.generation,
            "superblock_copies_valid": valid,
            "clock": match superblock.clock { ClockMode::Wall => "wall", ClockMode::Replay => "replay" },
            "formatted_at": rfc3339(superblock.formatted_at_us),
            "segment_bytes": geometry.segment_bytes, "batch_bytes_max": geometry.batch_bytes_max,
            "format_version": superblock.version, "first_segment": superblock.first_segment(),
            "ring_segments": geometry.ring_segments,
            "last_seal_at": superblock.checkpoint.map(|seal| geometry.file_offset(seal.log_offset)),
        }),
    )?;
    let (sealed, seals) = match superblock.checkpoint.filter(|_| depth >= Depth::Segments) {
        Some(checkpoint) => sealed(storage, superblock, checkpoint).await?,
        None => (BTreeMap::new(), Vec::new()),
    };
    seals.iter().try_for_each(|seal| out.line("quarter-seal", 1, verify::seal(seal)))?;
    let mut segment = Segment::default();
    let mut totals = (0u64, 0u64);
    let walked = recovery::walk(storage, superblock, RecoveryOptions::default(), |visit| match visit {
        Visit::Batch(place) => {
            totals.0 += 1;
            totals.1 += u64::from(place.header.record_count);
            let number = geometry.segment_of(place.log_offset);
            if segment.number != Some(number) {
                segment.print(depth, segment.number.and_then(|number| sealed.get(&number)), out)?;
                segment = Segment { number: Some(number), ..Segment::default() };
            }
            segment.add(place);
            if depth >= Depth::Batches { batch(place, geometry.file_offset(place.log_offset), out) } else { Ok(()) }
        }
        Visit::Record(raw, log_offset) if depth >= Depth::Records => record(raw, geometry.file_offset(log_offset), out),
        Visit::Record(..) => Ok(()),
    })
    .await;
    let end = match walked {
        Ok(end) => end,
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let last = segment.number.and_then(|number| sealed.get(&number));
    segment.print(depth, last, out)?;
    out.line(
        "end",
        0,
        json!({
            "batches": totals.0, "records": totals.1, "next_position": end.next_position,
            "next_batch_at": geometry.file_offset(end.next_batch_at), "incarnation": end.incarnation,
            "segments_prepared": end.segments_prepared, "ring_free_segments": ring_free_segments(superblock, &end),
            "last_hash": hex(&end.previous_hash),
        }),
    )
}

/// Segments of a ring that requests may fill behind the one that is written, once nobody reads what was dropped.
fn ring_free_segments(superblock: &Superblock, end: &LogEnd) -> u64 {
    let geometry = superblock.geometry;
    let requests_end = geometry.segments_end(superblock.first_segment()) - RING_RESERVED_SEGMENTS;
    match geometry.is_ring() {
        true => requests_end.saturating_sub(geometry.segment_of(end.next_batch_at) + 1),
        false => 0,
    }
}

/// Summaries of sealed segments, and the seals of dropped quarters, as the last seal leads to them.
async fn sealed(
    storage: &RealStorage,
    superblock: &Superblock,
    checkpoint: Checkpoint,
) -> Result<(BTreeMap<u64, Summary>, Vec<QuarterSeal>), String> {
    let chain = read_chain(storage, superblock, checkpoint).await.map_err(|e| e.to_string())?;
    let small = Shard::restore(superblock, &chain.snapshot, Catalog::at_start(superblock))?;
    let summaries = chain.segments.into_iter().map(|sealed| (sealed.summary.segment, sealed.summary));
    Ok((summaries.collect(), small.retention().seals.clone()))
}

#[derive(Default)]
struct Segment {
    number: Option<u64>,
    batches: u64,
    records: u64,
    bytes: u64,
}

impl Segment {
    fn add(&mut self, place: &BatchPlace) {
        self.batches += 1;
        self.records += u64::from(place.header.record_count);
        self.bytes += u64::from(place.header.total_bytes);
    }

    fn print(&self, depth: Depth, sealed: Option<&Summary>, out: &mut Printer<impl Write>) -> Result<(), String> {
        match self.number {
            Some(number) if depth >= Depth::Segments => {
                let mut fields = json!({
                    "segment": number, "batches": self.batches, "records": self.records, "bytes": self.bytes,
                    "sealed": sealed.is_some(),
                });
                if let Some(summary) = sealed {
                    fields["rows"] = summary.corpora.iter().map(|corpus| corpus.rows).sum::<u64>().into();
                    fields["corpora"] = summary.corpora.len().into();
                    fields["changed_rows"] = summary.changes.place.entries.into();
                    fields["idempotency_keys"] = summary.keys.entries.into();
                    fields["index_bytes"] = summary.index_bytes().into();
                    fields["positions"] = json!([summary.positions.0, summary.positions.1]);
                    fields["from"] = rfc3339(summary.times_us.0).into();
                    fields["to"] = rfc3339(summary.times_us.1).into();
                }
                out.line("segment", 1, fields)
            }
            _ => Ok(()),
        }
    }
}

fn batch(place: &BatchPlace, file_offset: u64, out: &mut Printer<impl Write>) -> Result<(), String> {
    let header = &place.header;
    let fields = json!({
        "batch": header.number, "file_offset": file_offset, "incarnation": header.incarnation,
        "kind": match header {
            BatchHeader { is_recovery: true, .. } => "recovery",
            BatchHeader { is_sealing: true, .. } => "index",
            BatchHeader { record_count: 0, .. } => "mark",
            _ => "records",
        },
        "ends_segment": header.is_last,
        "first_position": header.first_position, "records": header.record_count, "bytes": header.total_bytes,
        "durable_position": header.durable_position, "hash": hex(&place.hash),
    });
    out.line("batch", 2, fields)
}

fn record(raw: RawRecord<'_>, file_offset: u64, out: &mut Printer<impl Write>) -> Result<(), String> {
    let record = Record::decode(raw.kind, raw.body).map_err(|e| e.to_string())?;
    let meta = &record.meta;
    let subject = translate::subject(&record.entry, &Numbers);
    let fields = json!({
        "position": raw.position, "file_offset": file_offset, "operation": record.entry.operation(),
        "timestamp": rfc3339(meta.timestamp_us), "subject": subject,
        "corpus_prefix": meta.corpus.map_or(0, |prefix| prefix.get()),
        "uid": meta.principal.uid, "gid": meta.principal.gid, "pid": meta.principal.pid, "bytes": raw.body.len(),
        "rationale": meta.rationale,
    });
    out.line("record", 3, fields)
}

/// What is known without the registry: numbers.
struct Numbers;

impl Names for Numbers {
    fn corpus(&self, prefix: Option<Prefix>) -> String {
        prefix.map_or_else(String::new, |prefix| format!("prefix {prefix}"))
    }

    fn user(&self, uid: u32) -> String {
        uid.to_string()
    }

    fn sides(&self, _dispute: DisputeId) -> Vec<EventId> {
        Vec::new()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
