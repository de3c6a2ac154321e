//! `claimd repair`: makes a damaged ledger openable again, and says what that cost.
//!
//! What is proven stays: everything up to the first damage, in a new file, block for block. What lies behind it is given
//! up, even where it reads well, because the chain to it is broken; the report names every entry of it that can be read.
//! The first records of the new end see to it that nothing that was given up is given out again: a repair entry with a
//! timestamp above all that was seen, and for each corpus the last slot that may have been given.
//!
//! The new files are made beside the old ones, verified, and moved into their places, shard 0 first; the old ones stay
//! under another name. So a repair that is interrupted can simply be run again.

use crate::ledger;
use crate::verify::{self, EXIT_DAMAGED, EXIT_UNREADABLE, ShardReport};
use claim_engine::corpus::Prefix;
use claim_engine::log::end::LogEnd;
use claim_engine::log::entry::{Entry, Meta, Principal, Record, encode_floors};
use claim_engine::log::io::perform;
use claim_engine::log::layout::BATCH_BYTES_RANGE;
use claim_engine::log::record::RawRecord;
use claim_engine::log::superblock::{ClockMode, Superblock, encode_segment_header};
use claim_engine::log::verify::{GlobalCopy, Standing, Step, Structure, WalkOptions, event_id, state_at_start, walk};
use claim_engine::log::writer::LogWriter;
use claim_engine::log::{batch, record};
use claim_engine::mutant::Mutation;
use claim_engine::shard::Shard;
use claim_engine::storage::{DirectIo, ReadAhead, RealStorage};
use claim_engine::time::{Quarter, rfc3339};
use glommio::LocalExecutor;
use indicatif::ProgressBar;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Zeroes are written in pieces of this size.
const ZEROES_BYTES: usize = 1 << 20;
/// Floors of one repair entry; a ledger with more corpora gets several.
const FLOORS_MAX: usize = 5_000;
const MS_US: i64 = 1_000;

/// What `claimd repair` is told.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Where the ledger is.
    pub data: PathBuf,
    /// Do it; else it is only said what would be done.
    pub accept_loss: bool,
    /// Print JSON.
    pub json: bool,
    /// Whether O_DIRECT is insisted on.
    pub direct: DirectIo,
}

/// What becomes of one shard's file.
#[derive(Debug)]
struct Plan {
    /// The file as it is.
    report: ShardReport,
    /// What stays: the end of what is proven.
    keep: LogEnd,
    /// Whether anything behind it is given up.
    gives_up: bool,
    /// The last position given up, as far as that is known.
    given_up_to: u64,
    /// How the log ended cannot be known: the file was cut short.
    is_end_unknown: bool,
    seen: Seen,
    /// Global entries that shard 0 takes over from the other shards' copies.
    globals: Vec<GlobalCopy>,
}

impl Plan {
    fn is_due(&self) -> bool {
        self.gives_up || !self.globals.is_empty() || self.report.findings.iter().any(|finding| finding.is_damage)
    }
}

/// What the entries of a log say about what was given out.
#[derive(Debug, Default)]
struct Seen {
    /// The greatest timestamp, and the greatest time of an id.
    last_us: i64,
    /// By corpus: quarter and number of the last slot seen, and how many positions could not be read before it.
    slots: HashMap<Prefix, (Quarter, u64, u64)>,
    corpora: BTreeSet<Prefix>,
    next_position: u64,
    unreadable: u64,
    /// The last position that could not be read.
    last_unreadable: u64,
    last_readable: u64,
}

impl Seen {
    fn skip_to(&mut self, position: u64) {
        if position > self.next_position {
            self.unreadable += position - self.next_position;
            self.last_unreadable = position - 1;
            self.next_position = position;
        }
    }

    fn record(&mut self, raw: &RawRecord<'_>, standing: Standing) {
        // What lies in a hole is not counted as read: its place is not proven.
        if standing != Standing::InHole {
            self.skip_to(raw.position);
            self.next_position = raw.position + 1;
            self.last_readable = raw.position;
        }
        let Ok(record) = Record::decode(raw.kind, raw.body) else { return };
        self.last_us = self.last_us.max(record.meta.timestamp_us);
        match record.entry {
            Entry::Claim(claim) => {
                self.last_us = self.last_us.max(claim.event_id.ms() as i64 * MS_US);
                let quarter = Quarter::of(record.meta.timestamp_us);
                let slot = (quarter, claim.claim_sequence, self.unreadable);
                self.slots.insert(claim.event_id.prefix(), slot);
            }
            Entry::Onboard { prefix, .. } => {
                self.corpora.insert(prefix);
            }
            _ => {}
        }
    }

    /// The last slot of a quarter that a corpus may have been given: every position that can't be read may have been a
    /// claim of it.
    fn floor(&self, prefix: Prefix, quarter: Quarter) -> u64 {
        match self.slots.get(&prefix) {
            Some((last, sequence, before)) if *last == quarter => sequence + (self.unreadable - before),
            Some((_, _, before)) => self.unreadable - before,
            None => self.unreadable,
        }
    }
}

/// Runs the command.
pub fn run(options: &RepairOptions) -> ExitCode {
    match repair(options) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("claimd: {message}");
            ExitCode::from(EXIT_UNREADABLE)
        }
    }
}

fn repair(options: &RepairOptions) -> Result<ExitCode, String> {
    let data = &options.data;
    let files = verify::expected(data)?;
    let mut locks = Vec::new();
    for (path, expected) in &files {
        locks.push(lock(path)?);
        if let Some(newer) = ledger::version_error(path) {
            return Err(format!("{}: {newer}; it is not for this build to repair", path.display()));
        }
        if expected.is_none() {
            return Err(format!(
                "{}: no copy of the superblock verifies, and no other shard of the ledger is there to say what it was: \
                 without the ledger's key nothing can be proven; restore the file",
                path.display()
            ));
        }
    }
    let bar = verify::bar();
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    bar.set_length(files.iter().map(|(path, _)| bytes(path)).sum());
    let mut shards = Vec::new();
    let mut seen = Vec::new();
    for ((path, expected), shard) in files.iter().zip(0..) {
        let begin = expected.as_ref().map(|superblock| LogEnd::at_start(superblock, 0, Mutation::NONE));
        let next_position = begin.map_or(1, |begin| begin.next_position);
        let mut found = Seen { next_position, ..Seen::default() };
        let each = Box::new(|raw: &RawRecord<'_>, _: u64, standing: Standing| found.record(raw, standing));
        let report = verify::verify_shard(path, shard, expected.as_ref(), false, &bar, Some(each));
        shards.push(report.map_err(|e| verify::place(path, &e))?);
        seen.push(found);
    }
    bar.finish_and_clear();
    verify::compare(&mut shards);
    let now_us = crate::clock::now().wall_us;
    let plans = plan(shards, seen)?;
    if plans.iter().all(|plan| !plan.is_due()) {
        say(options, "sound", &plans, "the ledger is sound: nothing was changed")?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.accept_loss {
        let message = "nothing was changed; `claimd repair --accept-loss` does this, and keeps the damaged files beside the \
                       new ones. Restoring the files from a backup loses less if the backup is newer than the damage";
        say(options, "planned", &plans, message)?;
        return Ok(ExitCode::from(EXIT_DAMAGED));
    }
    // To the microsecond: an interrupted repair is run again at once.
    let stamp: String = rfc3339(now_us).chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
    let mut made = Vec::new();
    for plan in plans.iter().filter(|plan| plan.is_due()) {
        made.push((plan.report.path.clone(), rebuild(plan, now_us, options.direct)?));
    }
    let report_path = data.join(format!("repair-{stamp}.ndjson"));
    write_report(&report_path, &plans, now_us)?;
    // Shard 0 is the first: the others are never ahead of it.
    for (path, new) in made {
        let aside = PathBuf::from(format!("{}.damaged-{stamp}", path.display()));
        let moved =
            fs::hard_link(&path, &aside).and_then(|()| sync_directory(data)).and_then(|()| fs::rename(&new, &path));
        moved.and_then(|()| sync_directory(data)).map_err(|e| verify::place(&path, &e))?;
    }
    drop(locks);
    let message = format!(
        "repaired; what was given up stands in {}, and the damaged files are kept as *.damaged-{stamp}",
        report_path.display()
    );
    say(options, "repaired", &plans, &message)?;
    Ok(ExitCode::SUCCESS)
}

/// The file, locked as a daemon would.
fn lock(path: &Path) -> Result<Flock<File>, String> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|e| format!("{}: {e}; a file that is gone can't be repaired: bring it back", path.display()))?;
    if !metadata.is_file() {
        return Err(format!(
            "{} is no regular file, and a repair replaces files: copy it to a regular file of that name in another \
             directory, and repair it there",
            path.display()
        ));
    }
    let file = File::options().read(true).write(true).open(path).map_err(|e| verify::place(path, &e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => {
            format!("{} is locked: a claimd serves this ledger; stop it first", path.display())
        }
        error => format!("{}: locking it failed: {error}", path.display()),
    })
}

fn plan(shards: Vec<ShardReport>, seen: Vec<Seen>) -> Result<Vec<Plan>, String> {
    let mut plans = Vec::new();
    for (report, mut seen) in shards.into_iter().zip(seen) {
        let differs = |finding: &&claim_engine::log::verify::Finding| {
            finding.structure == Structure::GlobalOrder && finding.what.contains("differs")
        };
        if let Some(finding) = report.findings.iter().find(differs) {
            return Err(format!("shard {}: {}: these files are not of one ledger's life", report.shard, finding.what));
        }
        let Some(walked) = &report.walked else {
            let reason = report.findings.first().map_or("it could not be read", |finding| &finding.what);
            return Err(format!("{}: {reason}; restore the file", report.path.display()));
        };
        let (holes, end, proven) = (walked.holes, walked.end, walked.proven);
        seen.skip_to(end.next_position);
        let mut keep = proven;
        if let Some(at) = report.stopped_at.filter(|at| *at < keep.next_batch_at) {
            keep = end_before(&report, at)?;
        }
        let is_end_unknown = report.findings.iter().any(|f| f.is_damage && f.structure == Structure::File);
        plans.push(Plan {
            gives_up: holes > 0 || report.stopped_at.is_some() || is_end_unknown,
            given_up_to: end.next_position - 1,
            is_end_unknown,
            keep,
            seen,
            globals: Vec::new(),
            report,
        });
    }
    restore_globals(&mut plans)?;
    Ok(plans)
}

/// The end of the log before the batch at a log offset.
fn end_before(report: &ShardReport, at: u64) -> Result<LogEnd, String> {
    let superblock = report.superblock.as_ref().ok_or("a report without a superblock has no log")?;
    let mut end = LogEnd::at_start(superblock, 0, Mutation::NONE);
    let mut each = |step: Step| {
        if let Step::Batch(place, _) = step
            && place.log_offset < at
        {
            end = end.after(superblock.geometry, &place);
        }
    };
    let mut source = open(&report.path)?;
    walk(&mut source, superblock, WalkOptions::default(), &mut each, &mut |_| {})
        .map_err(|e| verify::place(&report.path, &e))?;
    Ok(end)
}

fn open(path: &Path) -> Result<ReadAhead, String> {
    ReadAhead::open(path, *BATCH_BYTES_RANGE.end() as usize).map_err(|e| verify::place(path, &e))
}

/// Lets shard 0 take over what it loses of the global order: every copy is a batch's that verifies.
fn restore_globals(plans: &mut [Plan]) -> Result<(), String> {
    let mut known: BTreeMap<u64, GlobalCopy> = BTreeMap::new();
    for plan in plans.iter() {
        for (sequence, copy) in &plan.report.globals {
            if known.insert(*sequence, copy.clone()).is_some_and(|other| other != *copy) {
                return Err(format!("entry {sequence} of the global order is not the same in all shards"));
            }
        }
    }
    let mut corpora = BTreeSet::new();
    for copy in known.values() {
        if let Ok(Record { entry: Entry::Onboard { prefix, .. }, .. }) = Record::decode(copy.kind, &copy.body) {
            corpora.insert(prefix);
        }
    }
    // What was dropped stands in no copy, and the state behind it tells of it.
    for plan in plans.iter().filter(|plan| plan.report.globals_before > 0) {
        let superblock = plan.report.superblock.as_ref().ok_or("a plan without a superblock")?;
        let shard = state_at_start(&mut open(&plan.report.path)?, superblock)?;
        corpora.extend(shard.registry().corpora().iter().map(|corpus| corpus.prefix));
    }
    // With one shard there is no other copy, and what can't be read may have been onboardings: their prefixes come next.
    let last = corpora.last().map_or(0, |prefix| prefix.get());
    let unread = if plans.len() == 1 { plans[0].seen.unreadable } else { 0 };
    let to = u16::try_from(u64::from(last) + unread).unwrap_or(u16::MAX);
    corpora.extend((last..to).filter_map(|before| Prefix::new(before + 1)));
    plans.iter_mut().for_each(|plan| plan.seen.corpora.extend(&corpora));
    let Some(first) = plans.first_mut() else { return Ok(()) };
    let (shard, _) = state_at(first)?;
    let mut next = shard.globals_applied() + 1;
    while let Some(copy) = known.get(&next) {
        first.globals.push(copy.clone());
        next += 1;
    }
    if let Some((beyond, _)) = known.range(next..).next() {
        // Only entries that no shard has durably can be missing before ones that one has: they were never acknowledged
        // anywhere but in what is given up.
        let kept_beyond = plans.iter().skip(1).any(|plan| !plan.gives_up && plan.report.globals.contains_key(beyond));
        if kept_beyond {
            return Err(format!(
                "entry {next} of the global order is in no file, but entry {beyond} is: restore shard 0 from a backup"
            ));
        }
    }
    Ok(())
}

/// The state machine at the end of what is kept, and the batches up to there as they stand.
fn state_at(plan: &Plan) -> Result<(Shard, Vec<Kept>), String> {
    let superblock = plan.report.superblock.as_ref().ok_or("a plan without a superblock")?;
    let mut shard = state_at_start(&mut open(&plan.report.path)?, superblock)?;
    let mut kept = Vec::new();
    let mut failed = None;
    let until = plan.keep.next_batch_at;
    let mut each = |step: Step| {
        let Step::Batch(place, bytes) = step else { return };
        if place.log_offset >= until || failed.is_some() {
            return;
        }
        let range = if place.header.is_sealing { 0..0 } else { batch::records(&bytes, &place.header) };
        let mut at = range.start;
        while at < range.end {
            let Ok((raw, length)) = record::read(&bytes[at..range.end]) else { break };
            if let Err(reason) = shard.apply_raw(raw, place.log_offset + at as u64) {
                failed = Some(reason);
                return;
            }
            at += length;
        }
        kept.push(Kept { log_offset: place.log_offset, bytes: place.header.total_bytes.into() });
    };
    let mut source = open(&plan.report.path)?;
    walk(&mut source, superblock, WalkOptions::default(), &mut each, &mut |_| {})
        .map_err(|e| verify::place(&plan.report.path, &e))?;
    match failed {
        Some(reason) => Err(format!("{}: what was proven does not apply: {reason}", plan.report.path.display())),
        None => Ok((shard, kept)),
    }
}

/// A batch that stays.
#[derive(Debug, Clone, Copy)]
struct Kept {
    log_offset: u64,
    bytes: u64,
}

/// Writes a shard's new file beside the old one, and verifies it.
fn rebuild(plan: &Plan, now_us: i64, direct: DirectIo) -> Result<PathBuf, String> {
    let path = &plan.report.path;
    let new = path.with_extension("repairing");
    let (mut shard, kept) = state_at(plan)?;
    let found = plan.report.superblock.as_ref().ok_or("a plan without a superblock")?;
    // What is sealed is sealed anew: the seals may be among what is given up.
    let superblock = Superblock { generation: found.generation + 1, checkpoint: None, ..found.clone() };
    let geometry = superblock.geometry;
    let error = |e: io::Error| format!("{}: {e}", new.display());
    let old = File::open(path).map_err(|e| verify::place(path, &e))?;
    let mode = old.metadata().map_err(|e| verify::place(path, &e))?.permissions().mode();
    let file = File::options().write(true).create(true).truncate(true).mode(mode).open(&new).map_err(error)?;
    let last_segment = geometry.segment_of(plan.keep.next_batch_at);
    // The superblock comes last, the first block before all others: it must not be a hole.
    let zeroes = vec![0; ZEROES_BYTES];
    file.write_all_at(&zeroes[..geometry.file_offset(0) as usize], 0).map_err(error)?;
    for segment in superblock.first_segment()..=last_segment {
        let header = encode_segment_header(&superblock, segment);
        file.write_all_at(&header, geometry.file_offset(geometry.segment_start(segment))).map_err(error)?;
    }
    let mut buffer = Vec::new();
    for batch in &kept {
        let offset = geometry.file_offset(batch.log_offset);
        buffer.resize(batch.bytes as usize, 0);
        old.read_exact_at(&mut buffer, offset).map_err(|e| verify::place(path, &e))?;
        file.write_all_at(&buffer, offset).map_err(error)?;
    }
    let end = geometry.file_bytes(last_segment + 1);
    let mut at = geometry.file_offset(plan.keep.next_batch_at);
    while at < end {
        let bytes = (end - at).min(ZEROES_BYTES as u64);
        file.write_all_at(&zeroes[..bytes as usize], at).map_err(error)?;
        at += bytes;
    }
    file.sync_all().map_err(error)?;
    drop(file);
    LocalExecutor::default().run(async {
        let storage = RealStorage::open(&new, direct).await.map_err(|e| e.to_string())?;
        superblock.write(&storage).await.map_err(error)?;
        if plan.gives_up || !plan.globals.is_empty() {
            append(plan, &superblock, &mut shard, &storage, now_us, last_segment + 1).await?;
        }
        storage.close().await.map_err(error)
    })?;
    let hidden = ProgressBar::hidden();
    let verified = verify::verify_shard(&new, superblock.shard, Some(&superblock), false, &hidden, None);
    let verified = verified.map_err(|e| verify::place(&new, &e))?;
    if let Some(finding) = verified.findings.iter().find(|finding| finding.is_damage) {
        return Err(format!(
            "{} does not verify: {}; nothing was changed, and the damaged file is still in its place",
            new.display(),
            finding.what
        ));
    }
    Ok(new)
}

/// Appends what a repair has to say to the end of what is kept.
async fn append(
    plan: &Plan,
    superblock: &Superblock,
    shard: &mut Shard,
    storage: &RealStorage,
    now_us: i64,
    segments_prepared: u64,
) -> Result<(), String> {
    let walked = plan.report.walked.as_ref().ok_or("a plan without a walk")?;
    let end = LogEnd { incarnation: walked.incarnation_max, segments_prepared, ..plan.keep };
    let mut writer = LogWriter::new(superblock, end, None, Mutation::NONE);
    let floor_us = if plan.gives_up { floor_us(plan, superblock.clock, now_us) } else { shard.last_us() };
    let meta = |timestamp_us| Meta {
        timestamp_us,
        idempotency_key: 0,
        correlation_id: 0,
        fingerprint: 0,
        principal: Principal {
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            pid: std::process::id(),
        },
        item: 0,
        corpus: None,
        rationale: "",
    };
    let entry = Entry::Recovery { incarnation: writer.incarnation(), cut_at: end.next_batch_at };
    let recovery = Record { meta: meta(shard.last_us()), entry };
    let (position, log_offset) = writer.append_recovery(&recovery);
    shard.apply(position, log_offset, &recovery)?;
    let mut add = |record: &Record<'_>, writer: &mut LogWriter| {
        let (position, log_offset) = writer.append(record);
        shard.apply(position, log_offset, record)
    };
    if plan.gives_up {
        let floors = floors(plan, floor_us);
        let mut parts: Vec<_> = floors.chunks(FLOORS_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for part in parts {
            let floors = encode_floors(part);
            let entry = Entry::Repair { cut_at: end.next_batch_at, given_up_to: plan.given_up_to, floors: &floors };
            add(&Record { meta: meta(floor_us), entry }, &mut writer)?;
        }
    }
    for copy in &plan.globals {
        let mut record = Record::decode(copy.kind, &copy.body).map_err(|e| e.to_string())?;
        record.meta.timestamp_us = floor_us;
        // What it means for the rows of this shard is decided anew, from what this shard has.
        shard.append_global(record, &mut writer)?;
    }
    work_off(&mut writer, storage).await?;
    writer.mark();
    work_off(&mut writer, storage).await
}

async fn work_off(writer: &mut LogWriter, storage: &RealStorage) -> Result<(), String> {
    while let Some(io) = writer.next_io() {
        let done = perform(storage, io).await;
        writer.complete(done, 0);
    }
    match (writer.failed(), writer.is_idle() && !writer.cannot_grow()) {
        (Some(reason), _) => Err(reason.to_owned()),
        (None, false) => {
            Err("the new file can't grow: make room on its file system, and run the repair again".to_owned())
        }
        (None, true) => Ok(()),
    }
}

/// A time above every one that may have been given up: ids of later milliseconds are greater than any id before.
fn floor_us(plan: &Plan, clock: ClockMode, now_us: i64) -> i64 {
    let seen = &plan.seen;
    // What could not be read after the last entry that could is not bounded by it; it is by the present.
    let is_bounded = seen.last_readable > seen.last_unreadable && !plan.is_end_unknown;
    let last_us = if is_bounded || clock == ClockMode::Replay { seen.last_us } else { seen.last_us.max(now_us) };
    (last_us / MS_US + 1) * MS_US
}

/// For each corpus that may have been given slots which are given up: the last of them.
fn floors(plan: &Plan, floor_us: i64) -> Vec<(Prefix, u64)> {
    let quarter = Quarter::of(floor_us);
    let seen = &plan.seen;
    let prefixes: BTreeSet<_> = seen.corpora.iter().chain(seen.slots.keys()).copied().collect();
    let floors = prefixes.into_iter().map(|prefix| (prefix, seen.floor(prefix, quarter)));
    floors.filter(|(_, sequence)| *sequence > 0).collect()
}

fn sync_directory(data: &Path) -> io::Result<()> {
    File::open(data)?.sync_all()
}

/// Writes what is given up, one JSON object a line, and makes it durable.
fn write_report(path: &Path, plans: &[Plan], now_us: i64) -> Result<(), String> {
    let error = |e: io::Error| verify::place(path, &e);
    let file = File::options().write(true).create_new(true).mode(0o640).open(path).map_err(error)?;
    let mut out = BufWriter::new(&file);
    let ledger = plans.iter().find_map(|plan| plan.report.superblock.as_ref()).map(|s| s.ledger.to_string());
    let head = json!({
        "what": "repair", "ledger": ledger, "at": rfc3339(now_us),
        "shards": plans.iter().map(|plan| object(plan, now_us)).collect::<Vec<_>>(),
    });
    writeln!(out, "{head}").map_err(error)?;
    let names = names(plans);
    for plan in plans.iter().filter(|plan| plan.is_due()) {
        for finding in plan.report.findings.iter().filter(|finding| finding.is_damage) {
            writeln!(out, "{}", verify::object(finding)).map_err(error)?;
        }
        if plan.gives_up {
            given_up(plan, &names, &mut out).map_err(error)?;
        }
    }
    out.flush().map_err(error)?;
    drop(out);
    file.sync_all().map_err(error)
}

/// Corpora by prefix, of all shards.
fn names(plans: &[Plan]) -> HashMap<u16, String> {
    let mut names = HashMap::new();
    for copy in plans.iter().flat_map(|plan| plan.report.globals.values()) {
        if let Ok(Record { entry: Entry::Onboard { prefix, name, .. }, .. }) = Record::decode(copy.kind, &copy.body) {
            names.insert(prefix.get(), name.to_owned());
        }
    }
    names
}

/// Every entry behind what is kept, as far as it can be read, and the positions that can't.
fn given_up(plan: &Plan, names: &HashMap<u16, String>, out: &mut (impl Write + Send)) -> io::Result<()> {
    let report = &plan.report;
    let Some(superblock) = &report.superblock else { return Ok(()) };
    let geometry = superblock.geometry;
    let cut_at = plan.keep.next_batch_at;
    let mut result = Ok(());
    let mut next = plan.keep.next_position;
    let mut in_hole = BTreeSet::new();
    let unreadable = |from: u64, to: u64, in_hole: &BTreeSet<u64>, out: &mut dyn Write| -> io::Result<()> {
        let mut first = from;
        while first < to {
            let last = (first..to).take_while(|position| !in_hole.contains(position)).last();
            if let Some(last) = last {
                let line = json!({"what": "unreadable", "shard": report.shard, "positions": [first, last]});
                writeln!(out, "{line}")?;
            }
            first = last.unwrap_or(first) + 1;
        }
        Ok(())
    };
    let each = Box::new(|raw: &RawRecord<'_>, log_offset: u64, standing: Standing| {
        if log_offset < cut_at || result.is_err() {
            return;
        }
        if standing == Standing::InHole {
            in_hole.insert(raw.position);
        } else {
            result = unreadable(next, raw.position, &in_hole, out);
            in_hole.clear();
            next = raw.position + 1;
        }
        if result.is_ok() {
            let line = entry_object(report.shard, raw, geometry.file_offset(log_offset), standing, names);
            result = writeln!(out, "{line}");
        }
    });
    let hidden = ProgressBar::hidden();
    verify::verify_shard(&report.path, report.shard, Some(superblock), false, &hidden, Some(each))?;
    result?;
    unreadable(next, plan.given_up_to + 1, &in_hole, out)?;
    if plan.is_end_unknown {
        writeln!(out, "{}", json!({"what": "unknown-end", "shard": report.shard, "positions": [next, null]}))?;
    }
    Ok(())
}

fn entry_object(
    shard: u16,
    raw: &RawRecord<'_>,
    file_offset: u64,
    standing: Standing,
    names: &HashMap<u16, String>,
) -> Value {
    let mut object = json!({
        "what": "given-up", "shard": shard, "position": raw.position, "file_offset": file_offset,
        "verified_by": if standing == Standing::InHole { "the record's checksum" } else { "its batch's hash" },
    });
    let Ok(record) = Record::decode(raw.kind, raw.body) else {
        object["operation"] = format!("kind {}", raw.kind).into();
        return object;
    };
    object["operation"] = record.entry.operation().into();
    object["timestamp"] = rfc3339(record.meta.timestamp_us).into();
    let prefix = record.meta.corpus.map_or(0, Prefix::get);
    object["corpus_prefix"] = prefix.into();
    object["corpus"] = names.get(&prefix).cloned().into();
    object["event_id"] = event_id(&record.entry).map(|id| id.to_string()).into();
    match record.entry {
        Entry::Claim(claim) => {
            object["event_key"] = claim.event_key.into();
            object["claim_sequence"] = claim.claim_sequence.into();
        }
        Entry::Onboard { name, prefix, .. } => {
            object["corpus"] = name.into();
            object["corpus_prefix"] = prefix.get().into();
        }
        _ => {}
    }
    object
}

/// What becomes of a shard, for programs.
fn object(plan: &Plan, now_us: i64) -> Value {
    let mut object = json!({
        "shard": plan.report.shard, "file": plan.report.path.display().to_string(), "changes": plan.is_due(),
        "kept_to_position": plan.keep.next_position - 1,
        "damaged_places": plan.report.findings.iter().filter(|finding| finding.is_damage).count(),
        "global_entries_restored": plan.globals.len(),
    });
    if plan.gives_up {
        let clock = plan.report.superblock.as_ref().map_or(ClockMode::Wall, |superblock| superblock.clock);
        let floor_us = floor_us(plan, clock, now_us);
        let lost = [plan.keep.next_position, plan.given_up_to.max(plan.keep.next_position - 1)];
        object["given_up_positions"] = if plan.is_end_unknown { json!([lost[0], null]) } else { json!(lost) };
        object["unreadable"] = plan.seen.unreadable.into();
        object["times_above"] = rfc3339(floor_us).into();
        let floors = floors(plan, floor_us);
        object["slots_above"] = floors.iter().map(|(prefix, slot)| json!([prefix.get(), slot])).collect();
        object["slots_certain"] = (!plan.is_end_unknown).into();
    }
    object
}

fn say(options: &RepairOptions, what: &str, plans: &[Plan], message: &str) -> Result<(), String> {
    let out = &mut io::stdout().lock();
    let now_us = crate::clock::now().wall_us;
    let result = (|| {
        if options.json {
            let shards: Vec<_> = plans.iter().map(|plan| object(plan, now_us)).collect();
            return writeln!(out, "{}", json!({"what": what, "shards": shards, "message": message}));
        }
        for plan in plans {
            for finding in plan.report.findings.iter().filter(|finding| finding.is_damage) {
                verify::line(out, finding)?;
            }
        }
        for plan in plans {
            writeln!(out, "shard {}: {}", plan.report.shard, sentence(plan))?;
        }
        writeln!(out, "{message}")
    })();
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn sentence(plan: &Plan) -> String {
    let (first, last) = (plan.keep.next_position, plan.given_up_to);
    let mut text = if plan.is_end_unknown {
        format!(
            "what followed position {} is given up, and how far it went is not known: slots of its claims may be given again",
            first - 1
        )
    } else if plan.gives_up && last >= first {
        let count = last + 1 - first;
        format!(
            "positions {first} to {last} are given up ({count} entries, {} of them unreadable)",
            plan.seen.unreadable
        )
    } else if plan.gives_up {
        "batches without entries are given up; no entry is lost".to_owned()
    } else if plan.is_due() {
        "written anew; no entry is lost".to_owned()
    } else {
        "sound, and left as it is".to_owned()
    };
    if !plan.globals.is_empty() {
        text += &format!("; {} entries of the global order are taken over from other copies", plan.globals.len());
    }
    text
}
