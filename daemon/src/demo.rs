//! `claimd demo`: a real ledger takes real events, loses its process in the middle of a load, and has lost nothing.

use crate::ledger;
use claim_client::import::{ImportObserver, ImportOptions, ImportReport, Progress, Source, play};
use claim_client::{ClaimItem, Client, ClientOptions, Lifecycle, RequestOptions, ScanRange, Uuid};
use comfy_table::Table;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The events, as they stand in `data/`.
const EVENTS: &[u8] = include_bytes!("../../data/sixteen-corpora.ndjson.gz");
const EVENT_COUNT: u64 = 42_105;
/// The second load: how long it runs before the process is killed, and its shape.
const LOAD: Duration = Duration::from_secs(2);
const LOAD_CLIENTS: usize = 4;
const LOAD_BATCH: usize = 250;
const LOAD_BATCHES_OUTSTANDING: usize = 8;
const LOAD_METADATA_BYTES: usize = 128;
/// How long the daemon may take to serve.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// What is known of an acknowledged claim.
struct Acknowledged {
    corpus: String,
    /// Empty for imported events: their rows are checked by id and corpus.
    event_key: String,
}

type Ledger = HashMap<Uuid, Acknowledged>;

/// Runs the demonstration in `data`, which must not exist. The error is a sentence.
pub fn run(data: &Path) -> Result<(), String> {
    if data.exists() {
        return Err(format!("{} exists; name another directory with --data, or remove it", data.display()));
    }
    let binary = std::env::current_exe().map_err(|e| format!("the path of this program is not known: {e}"))?;
    println!("1. A replay ledger in {}", data.display());
    step(Command::new(&binary).args(["format", "--clock", "replay", "--data"]).arg(data))?;
    let mut daemon = Daemon::start(&binary, data)?;
    let client = connect(&daemon.socket)?;

    println!("2. {EVENT_COUNT} real events of sixteen corpora, over the socket");
    let mut acknowledged = Ledger::new();
    let report = import(&client, &mut acknowledged)?;
    print_report(&report);

    println!("3. A second load, and SIGKILL in the middle of it");
    let before = acknowledged.len();
    let load = load(&mut daemon, &client, &mut acknowledged)?;
    let count = acknowledged.len() - before;
    println!(
        "   {count} durable claims acknowledged in {:.2} s ({:.0}/s), in batches of {LOAD_BATCH}: p50 {} us, p99 {} us, p99.9 {} us a batch",
        load.seconds,
        count as f64 / load.seconds,
        load.latency_us.value_at_quantile(0.5),
        load.latency_us.value_at_quantile(0.99),
        load.latency_us.value_at_quantile(0.999),
    );
    drop(client);

    println!("4. Start again, and look for every acknowledged id");
    let started = Instant::now();
    let daemon = Daemon::start(&binary, data)?;
    let recovery = started.elapsed();
    let client = connect(&daemon.socket)?;
    let rows = check(&client, &acknowledged)?;
    println!(
        "   recovery took {:.0} ms; all {} acknowledged ids are there, each with its row ({rows} rows in all; those beyond were \
         durable when the process died, and their acknowledgement was on its way)",
        recovery.as_secs_f64() * 1e3,
        acknowledged.len()
    );
    let sample = acknowledged.keys().min().copied();
    drop(client);
    daemon.stop()?;
    print_next(&binary, data, sample);
    Ok(())
}

fn step(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?} can't be run: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

fn connect(socket: &Path) -> Result<Client, String> {
    Client::connect(socket).map_err(|e| e.to_string())
}

/// The daemon as a child process; dropping it kills it.
struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    fn start(binary: &Path, data: &Path) -> Result<Daemon, String> {
        let log = data.join("claimd.log");
        let file =
            File::options().create(true).append(true).open(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let mut child = Command::new(binary)
            .args(["start", "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .map_err(|e| format!("the daemon can't be started: {e}"))?;
        let stdout = child.stdout.take().ok_or("the daemon has no standard output")?;
        let daemon = Daemon { child, socket: data.join("claimd.sock"), log };
        let (ready, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = ready.send(line.starts_with("ready"));
        });
        match heard.recv_timeout(READY_PATIENCE) {
            Ok(true) => Ok(daemon),
            _ => Err(daemon.failure()),
        }
    }

    fn failure(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(3).collect();
        format!(
            "the daemon does not serve; its log {} ends:\n{}",
            self.log.display(),
            last.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        kill(Pid::from_raw(self.child.id() as i32), signal).map_err(|e| format!("sending {signal} failed: {e}"))
    }

    fn kill(&mut self) -> Result<(), String> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().map(drop).map_err(|e| e.to_string())
    }

    fn stop(mut self) -> Result<(), String> {
        self.signal(Signal::SIGTERM)?;
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the daemon ended with {status}; see {}", self.log.display()))
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Importing<'a> {
    acknowledged: &'a mut Ledger,
    bar: ProgressBar,
}

impl ImportObserver for Importing<'_> {
    fn acknowledged(&mut self, corpus: &str, event_id: Uuid, _reference: &str) {
        self.acknowledged.insert(event_id, Acknowledged { corpus: corpus.to_owned(), event_key: String::new() });
    }

    fn progress(&mut self, progress: Progress) {
        self.bar.set_position(progress.events);
    }
}

fn import(client: &Client, acknowledged: &mut Ledger) -> Result<ImportReport, String> {
    let source = Source::new(Cursor::new(EVENTS)).map_err(|e| e.to_string())?;
    let style = ProgressStyle::with_template("   {bar:40} {pos}/{len} events, {per_sec}").map_err(|e| e.to_string())?;
    let bar = ProgressBar::new(EVENT_COUNT).with_style(style);
    let mut importing = Importing { acknowledged, bar };
    // Years go by in it, and every id is looked for in the end.
    let rationale = "every id is looked for in the end".to_owned();
    let held = RequestOptions { at_us: Some(0), rationale, ..RequestOptions::default() };
    client.hold(1970, 1, &held).wait().map_err(|e| e.to_string())?;
    let report = play(client, source, &ImportOptions::default(), &mut importing).map_err(|e| e.to_string())?;
    importing.bar.finish_and_clear();
    Ok(report)
}

fn print_report(report: &ImportReport) {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.add_row(vec!["claimed".to_owned(), report.claimed.to_string()]);
    table.add_row(vec!["referenced".to_owned(), report.referenced.to_string()]);
    table.add_row(vec!["retracted".to_owned(), report.retracted.to_string()]);
    table.add_row(vec!["reactivated".to_owned(), report.reactivated.to_string()]);
    for (code, count) in &report.refused {
        table.add_row(vec![format!("refused {code}"), count.to_string()]);
    }
    println!("{table}");
    let quantile = |q| report.latency_us.value_at_quantile(q);
    println!(
        "   {} durable operations in {:.2} s: {:.0}/s, p50 {} us, p99 {} us, p99.9 {} us",
        report.acknowledged(),
        report.seconds,
        report.acknowledged() as f64 / report.seconds,
        quantile(0.5),
        quantile(0.99),
        quantile(0.999)
    );
}

struct Load {
    seconds: f64,
    latency_us: Histogram<u64>,
}

/// Claims as fast as the clients can until the daemon is killed; keeps what was acknowledged by then.
fn load(daemon: &mut Daemon, client: &Client, acknowledged: &mut Ledger) -> Result<Load, String> {
    let corpora = client.corpora(&RequestOptions::default()).wait().map_err(|e| e.to_string())?;
    let names: Vec<_> = corpora.iter().map(|corpus| corpus.name.clone()).collect();
    let at_us = crate::clock::now().wall_us;
    let started = Instant::now();
    let socket = daemon.socket.clone();
    let loads = std::thread::scope(|scope| {
        let socket = &socket;
        let workers: Vec<_> = (0..LOAD_CLIENTS)
            .map(|worker| {
                let corpus = &names[worker % names.len()];
                scope.spawn(move || load_one(socket, worker, corpus, at_us))
            })
            .collect();
        std::thread::sleep(LOAD);
        let killed = daemon.kill();
        let results: Vec<_> =
            workers.into_iter().map(|w| w.join().map_err(|_| "a load thread panicked".to_owned())).collect();
        killed.map(|()| results)
    })?;
    let seconds = started.elapsed().min(LOAD).as_secs_f64();
    let mut latency_us = Histogram::new_with_max(60_000_000, 3).map_err(|e| e.to_string())?;
    for load in loads {
        let (ids, latencies) = load??;
        acknowledged.extend(ids);
        latency_us.add(latencies).map_err(|e| e.to_string())?;
    }
    Ok(Load { seconds, latency_us })
}

type Loaded = (Vec<(Uuid, Acknowledged)>, Histogram<u64>);

fn load_one(socket: &Path, worker: usize, corpus: &str, at_us: i64) -> Result<Loaded, String> {
    // One attempt: what was not answered when the process died is not asked for again.
    let options = ClientOptions { attempts_max: 1, deadline: Duration::from_secs(5), ..ClientOptions::default() };
    let client = Client::connect_with(socket, options).map_err(|e| e.to_string())?;
    let request = RequestOptions { at_us: Some(at_us), ..RequestOptions::default() };
    let metadata = [worker as u8; LOAD_METADATA_BYTES];
    let mut acknowledged = Vec::new();
    let mut latency_us = Histogram::new_with_max(60_000_000, 3).map_err(|e| e.to_string())?;
    let mut outstanding = std::collections::VecDeque::new();
    for batch in 0u64.. {
        let keys: Vec<_> = (0..LOAD_BATCH).map(|i| format!("demo-{worker}-{batch}-{i}")).collect();
        let item = |key| ClaimItem {
            event_key: key,
            occurred_at_us: at_us,
            owning_corpus: "",
            hosting_corpus: "",
            category: "demo",
            taxonomy_version: 1,
            metadata: &metadata,
        };
        let items: Vec<_> = keys.iter().map(|key| item(key)).collect();
        outstanding.push_back((client.claim_batch(corpus, &items, &request), keys));
        if outstanding.len() < LOAD_BATCHES_OUTSTANDING {
            continue;
        }
        let Some((pending, keys)) = outstanding.pop_front() else { break };
        let Ok(answer) = pending.wait() else { break };
        latency_us.saturating_record(answer.elapsed.as_micros() as u64);
        for (result, event_key) in answer.value.into_iter().zip(keys) {
            let claimed = result.map_err(|e| e.to_string())?;
            acknowledged.push((claimed.event_id, Acknowledged { corpus: corpus.to_owned(), event_key }));
        }
    }
    // Answers that had arrived before the end count, too.
    for (pending, keys) in outstanding {
        if let Ok(answer) = pending.wait() {
            for (result, event_key) in answer.value.into_iter().zip(keys) {
                let claimed = result.map_err(|e| e.to_string())?;
                acknowledged.push((claimed.event_id, Acknowledged { corpus: corpus.to_owned(), event_key }));
            }
        }
    }
    Ok((acknowledged, latency_us))
}

/// Reads every row of every corpus and ticks off what was acknowledged. Returns the number of rows.
fn check(client: &Client, acknowledged: &Ledger) -> Result<u64, String> {
    let options = RequestOptions::default();
    let corpora = client.corpora(&options).wait().map_err(|e| e.to_string())?;
    let mut missing = acknowledged.len();
    let mut rows = 0;
    let style = ProgressStyle::with_template("   {bar:40} {pos} rows read").map_err(|e| e.to_string())?;
    let bar = ProgressBar::new(acknowledged.len() as u64).with_style(style);
    for corpus in &corpora.value {
        let mut last = None;
        for row in client.scan(&corpus.name, ScanRange::default(), &options).rows() {
            let row = row.map_err(|e| e.to_string())?;
            rows += 1;
            if rows % 1_000 == 0 {
                bar.set_position(rows);
            }
            if Some(row.event_id) <= last {
                return Err(format!("{} does not follow {last:?}", row.event_id));
            }
            last = Some(row.event_id);
            let Some(known) = acknowledged.get(&row.event_id) else { continue };
            let is_right = known.corpus == row.corpus
                && (known.event_key.is_empty()
                    || (known.event_key == row.event_key && row.lifecycle == Lifecycle::Registered));
            if !is_right {
                return Err(format!("{} is there with another row: {row:?}", row.event_id));
            }
            missing -= 1;
        }
    }
    bar.finish_and_clear();
    if missing == 0 { Ok(rows) } else { Err(format!("{missing} of {} acknowledged ids are lost", acknowledged.len())) }
}

fn print_next(binary: &Path, data: &Path, sample: Option<Uuid>) {
    let claimd = binary.display();
    let claimctl = binary.with_file_name("claimctl");
    let claimctl = if claimctl.exists() {
        claimctl.display().to_string()
    } else {
        "cargo run --release -q -p claim-client --".to_owned()
    };
    let socket = ledger::shard_path(data, 0).with_file_name("claimd.sock");
    let socket = socket.display();
    println!("\nTry next:");
    println!("  {claimd} start --data {} &", data.display());
    println!("  {claimctl} --socket {socket} corpora");
    if let Some(id) = sample {
        println!("  {claimctl} --socket {socket} lookup {id}");
        println!("  {claimctl} --socket {socket} history {id}");
    }
    println!("  {claimctl} --socket {socket} status");
    println!("  {claimd} inspect --data {} --depth segments", data.display());
}
