//! `claimd`: the daemon and its operator's commands.

use claim_engine::debt::DebtBounds;
use claim_engine::engine::OpenOptions;
use claim_engine::log::layout::Geometry;
use claim_engine::log::superblock::ClockMode;
use claim_engine::mutant::Mutation;
use claim_engine::storage::DirectIo;
use claimd::archive::ArchiveOptions;
use claimd::backup::{self, BackupOptions};
use claimd::echo::{self, EchoOptions};
use claimd::inspect::{Depth, InspectOptions};
use claimd::ledger::{self, FormatOptions};
use claimd::repair::{self, RepairOptions};
use claimd::reshard::{self, ReshardOptions};
use claimd::restore::{self, RestoreOptions, To};
use claimd::start::{self, StartOptions};
use claimd::verify::{self, VerifyOptions};
use claimd::{check_config, demo, doctor, inspect};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Where the ledger is unless told otherwise.
const DATA: &str = "./claimd-data";

#[derive(Debug, Parser)]
#[command(name = "claimd", version, about = "Hands out event-ids and keeps the ledger of what happened to them", long_about = None)]
#[command(
    after_help = "Examples:\n  claimd start                      format ./claimd-data if need be, and serve it\n  claimd doctor                     is this machine fit for a ledger?\n  claimd demo                       see it work"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an empty ledger.
    #[command(
        after_help = "Examples:\n  claimd format --data /var/lib/claimd --shards 2\n  claimd format --data /var/lib/claimd --device /dev/nvme1n1 --device /dev/nvme2n1\n\nOn a device claimd keeps no file system: the shard's file in the data directory is a link to it."
    )]
    Format(FormatArgs),
    /// Serve a ledger until SIGTERM; without --data it makes ./claimd-data first if there is none.
    #[command(
        after_help = "Example:\n  claimd start --data /var/lib/claimd --cores 0,1\n\nIt prints `ready SOCKET` when it serves. CLAIMD_LOG sets what it logs (error, warn, info, debug)."
    )]
    Start(StartArgs),
    /// Say whether this machine is fit for a ledger, and how to mend what is not.
    #[command(after_help = "Example:\n  claimd doctor --data /var/lib/claimd")]
    Doctor(DoctorArgs),
    /// Print what is on disk: superblocks, segments, batches, records.
    #[command(after_help = "Example:\n  claimd inspect --data /var/lib/claimd --depth records | tail")]
    Inspect(InspectArgs),
    /// Read a whole ledger or a backup, and name what is damaged: hashes, chain, records, indexes, unused space.
    #[command(
        after_help = "Examples:\n  claimd verify --data /var/lib/claimd\n  claimd verify /backup/claimd\n  claimd verify --data /var/lib/claimd --json | jq 'select(.what == \"damage\")'\n\nIt works beside a daemon too. It takes about 200 MB of memory for a shard at a time, however many rows there are: each segment's index is\ncompared with what its records make, and stands for its rows from then on. Rows without an index in the log stay in\nmemory, about 80 bytes each: those of a ledger that was resharded and never served.\nExit status: 0 sound, 1 damaged, 2 usage, 3 it could not be read."
    )]
    Verify(VerifyArgs),
    /// Make a damaged ledger openable again: keeps what is proven, gives up the rest, and writes down what that was.
    #[command(
        after_help = "Examples:\n  claimd repair --data /var/lib/claimd                  say what would be given up\n  claimd repair --data /var/lib/claimd --accept-loss    do it\n\nThe damaged files stay beside the new ones; repair-<time>.ndjson in the data directory names what was given up.\nExit status: 0 sound or repaired, 1 damaged and left as it is, 2 usage, 3 it could not be read or written."
    )]
    Repair(RepairArgs),
    /// Copy a ledger, beside its daemon or without one; a backup that is there already gets what is new.
    #[command(
        after_help = "Examples:\n  claimd backup --data /var/lib/claimd --to /backup/claimd\n  claimd verify /backup/claimd\n\nEvery batch is verified as it is copied. A backup holds the ledger's key and everybody's rows: keep it as you keep the\nledger. Exit status: 0 done, 1 the ledger or the backup is damaged, 2 usage, 3 something could not be read or written;\nthen the backup is as it was."
    )]
    Backup(BackupArgs),
    /// Make a ledger from a backup, as it was at the end or at an earlier moment.
    #[command(
        after_help = "Examples:\n  claimd restore --from /backup/claimd --data /var/lib/claimd\n  claimd restore --from /backup/claimd --data ./then --to 2026-01-31T09:30:00Z\n  claimd restore --from /backup/claimd --data ./then --to 0:4711,1:815\n\nThe backup is verified before anything is written. Ids that were given out are never given out again, whether they are\nrestored or not, as far as the backup knows. It takes about as much memory as `claimd verify`, however many rows there are; the\nledger's first start goes through its log from the last seal that was kept, or through all of it where there is none to go by.\nExit status: 0 restored, 1 the backup is damaged, 2 usage, 3 something could not be read or written."
    )]
    Restore(RestoreArgs),
    /// Make a ledger of another number of shards from a stopped one, whole corpora at a time; the old one stays as it is.
    #[command(
        after_help = "Example:\n  claimd reshard --data /var/lib/claimd --to /var/lib/claimd-8 --shards 8\n\nNothing is lost and no id changes; positions are new, and so is the ledger's id. Quarters that were dropped stay so, with their seals; all shards must have dropped the same ones, which `claimctl retention` shows. The new directory appears once it is verified and compared with the old ledger, row by row; killed before that, the same command starts over. It takes memory for all rows, about 800 bytes each, and room for a second ledger.\nExit status: 0 done, 1 the ledger is damaged or the new one differs, 2 usage, 3 it could not be read or written."
    )]
    Reshard(ReshardArgs),
    /// Say what a configuration file means, or what is wrong with it.
    #[command(
        after_help = "Examples:\n  claimd check-config /etc/claimd.toml\n  claimd check-config /etc/claimd.toml --json | jq -r .resolved\n\nUsers are looked up on this machine, as `claimd start` does. Exit status: 0 it can be used, 1 it can't, 2 usage."
    )]
    CheckConfig(CheckConfigArgs),
    /// Answer claims without a ledger, to see what the sockets and the protocol cost by themselves. Nothing is kept.
    #[command(
        after_help = "Example:\n  claimd echo --socket ./echo.sock --core 0\n  claim-bench run --socket ./echo.sock --outstanding 1\n\nIt prints `ready SOCKET` when it serves, and ends on SIGTERM or SIGINT."
    )]
    Echo(EchoArgs),
    /// See a ledger take real events, be killed, and lose nothing; takes less than a minute.
    #[command(after_help = "Example:\n  claimd demo --data ./demo")]
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
struct FormatArgs {
    /// Directory of the ledger; it is made if it is not there.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// Number of shards; by default one per core. `claimd reshard` makes a ledger of another number.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(ledger::SHARDS_MAX)))]
    shards: Option<u16>,
    /// A block device to make a shard on, once for each shard. It must be free and empty, and has to hold six segments at
    /// least. It can't grow: its log goes round, and takes the place of quarters again that retention has dropped. One that is
    /// full before refuses mutations with NO_SPACE.
    #[arg(long = "device", value_name = "DEVICE", conflicts_with = "shards")]
    devices: Vec<PathBuf>,
    /// Take devices that hold something, such as a file system or another ledger: it is lost.
    #[arg(long, requires = "devices")]
    overwrite: bool,
    /// Bytes of a segment: a multiple of 4096, 1 MiB to 4 GiB; K, M and G are understood.
    #[arg(long, default_value = "64M", value_parser = bytes)]
    segment_bytes: u64,
    /// Bytes of the largest batch: a multiple of 4096, 128 KiB to 4 MiB.
    #[arg(long, default_value = "1M", value_parser = bytes)]
    batch_bytes_max: u64,
    /// Where time comes from: the daemon's clock, or the requests themselves (for replaying history).
    #[arg(long, value_enum, default_value_t = ClockArg::Wall)]
    clock: ClockArg,
    /// Take a file system without O_DIRECT, such as tmpfs: for trials only, a power cut may lose everything.
    #[arg(long)]
    unsafe_no_direct: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ClockArg {
    Wall,
    Replay,
}

#[derive(Debug, Args)]
struct StartArgs {
    /// Directory of the ledger.
    #[arg(long)]
    data: Option<PathBuf>,
    /// The socket for everything; by default claimd.sock in the data directory. The shards' own lie beside it.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Cores to serve from, such as 0,1 or 0-3; by default all that this process may use.
    #[arg(long, value_parser = cores)]
    cores: Option<Cores>,
    /// Serve from a file system without O_DIRECT, such as tmpfs: for trials only, a power cut may lose everything.
    #[arg(long)]
    unsafe_no_direct: bool,
    /// Microseconds for which a core looks for work before it sleeps: lower latency when quiet, for cores that nothing else
    /// uses, the disk's completions included (`claimd doctor` says where those run).
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    poll_us: u64,
    /// Bytes from which a batch that waits is written beside others in flight, and not only after them; by default, the
    /// ledger's largest batch. K, M and G are understood.
    #[arg(long, value_parser = bytes)]
    batch_fill_bytes: Option<u64>,
    /// MiB a second that are read again in the background, to find damage before it is needed; 0: none.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(..=100_000))]
    scrub_mib_per_s: u64,
    /// Roles, budgets and tolerances; read again on SIGHUP. Without it the user that claimd runs as has every role, and no
    /// one else any. `claimd check-config` says what a file means.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Requests that a shard accepts before it has answered them. From a quarter of that disputes are deferred; from a half
    /// references, scans, searches and control totals are refused, too; from three quarters claims, lookups and histories of rows.
    #[arg(long, default_value_t = DebtBounds::default().requests, value_parser = clap::value_parser!(u64).range(8..=1_000_000))]
    debt_requests: u64,
    /// MiB of log that the requests which a shard has accepted may take, likewise.
    #[arg(long, default_value_t = DebtBounds::default().bytes >> 20, value_parser = clap::value_parser!(u64).range(1..=4_096))]
    debt_mib: u64,
    /// MiB of memory for blocks of sealed segments, for each shard.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    cache_mib: u64,
    /// Keep a backup in this directory up to date: full segments, and what is open every so often. `claimd restore` takes it.
    #[arg(long, value_name = "DIR")]
    segment_archive: Option<PathBuf>,
    /// Seconds from one round of the segment archive to the next.
    #[arg(long, value_name = "SECONDS", requires = "segment_archive", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    segment_archive_every: u64,
    /// MiB a second that the segment archive may read.
    #[arg(long, value_name = "MIB", requires = "segment_archive", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    segment_archive_mib_per_s: u64,
}

#[derive(Debug, Args)]
struct EchoArgs {
    /// The socket.
    #[arg(long)]
    socket: PathBuf,
    /// The core to serve from.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Microseconds for which the core looks for work before it sleeps, as `claimd start` has it.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    poll_us: u64,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// The directory that holds, or is to hold, the ledger.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Directory of the ledger.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// How much to print.
    #[arg(long, value_enum, default_value_t = Depth::Segments)]
    depth: Depth,
    /// Only this shard.
    #[arg(long)]
    shard: Option<u16>,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Directory of the ledger, or of a backup.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// The same without --data.
    #[arg(value_name = "DIR", conflicts_with = "data")]
    dir: Option<PathBuf>,
    /// Only this shard; what the shards share is then not compared.
    #[arg(long)]
    shard: Option<u16>,
    /// Print one JSON object per finding, and one for the whole.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RepairArgs {
    /// Directory of the ledger.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// Do it: entries behind the first damage are given up.
    #[arg(long)]
    accept_loss: bool,
    /// Take a file system without O_DIRECT, such as tmpfs: for trials only, a power cut may lose everything.
    #[arg(long)]
    unsafe_no_direct: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BackupArgs {
    /// Directory of the ledger.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// Directory of the backup: an empty one, which is made if it is not there, or an earlier backup of the same ledger.
    #[arg(long, value_name = "BACKUP")]
    to: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// Directory of the backup.
    #[arg(long, value_name = "BACKUP")]
    from: PathBuf,
    /// Directory for the ledger: an empty one, which is made if it is not there.
    #[arg(long)]
    data: PathBuf,
    /// The last moment to restore, as a time like 2026-01-31T09:30:00Z; or positions by shard, like 0:4711,1:815; or the
    /// position of a ledger with one shard. Shards that are not named are cut at the time of those that are.
    #[arg(long, value_name = "TIME|POSITIONS")]
    to: Option<To>,
    /// Keep when this was, how long it took and how old the backup was in this directory, where the ledger is that the backup is
    /// of: `claimctl status` shows it as the last drill. A daemon may be serving that ledger.
    #[arg(long, value_name = "LEDGER_DIR")]
    remember: Option<PathBuf>,
    /// Take a file system without O_DIRECT, such as tmpfs: for trials only, a power cut may lose everything.
    #[arg(long)]
    unsafe_no_direct: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ReshardArgs {
    /// Directory of the ledger.
    #[arg(long, default_value = DATA)]
    data: PathBuf,
    /// Directory of the new ledger; it must not be there yet, or be empty.
    #[arg(long, value_name = "NEW_DIR")]
    to: PathBuf,
    /// Number of shards that the new ledger gets.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(ledger::SHARDS_MAX)))]
    shards: u16,
    /// Take a file system without O_DIRECT, such as tmpfs: for trials only, a power cut may lose everything.
    #[arg(long)]
    unsafe_no_direct: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CheckConfigArgs {
    /// The configuration file.
    file: PathBuf,
    /// Print one JSON object: `ok`, and `roles`, `settings` and `resolved`, or `error`.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// A directory for the demonstration's ledger; by default a new one beside the present directory's files.
    #[arg(long)]
    data: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Cores(Vec<usize>);

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        other => return Err(format!("'{other}' is no unit; write K, M or G")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is no number of bytes; write it like 64M"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text} is too large"))
}

fn cores(text: &str) -> Result<Cores, String> {
    let error = || format!("'{text}' is no list of cores; write it like 0,1 or 0-3");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().map_err(|_| error())?, last.parse().map_err(|_| error())?);
        if first > last || last >= 4_096 {
            return Err(error());
        }
        cores.extend((first..=last).filter(|core| !cores.contains(core)).collect::<Vec<_>>());
    }
    Ok(Cores(cores))
}

/// The cores that this process may run on.
fn allowed_cores() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let allowed = |set: nix::sched::CpuSet| {
        (0..nix::sched::CpuSet::count()).filter(|c| set.is_set(*c).unwrap_or(false)).collect()
    };
    set.map(allowed).unwrap_or_else(|_| vec![0])
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Format(args) => report(format(&args)),
        Command::Start(args) => {
            log_to_stderr();
            abort_on_panic();
            report(serve(&args))
        }
        Command::Echo(args) => {
            log_to_stderr();
            abort_on_panic();
            let poll = Duration::from_micros(args.poll_us);
            report(echo::echo(&EchoOptions { socket: args.socket, core: args.core, poll }))
        }
        Command::Doctor(args) => doctor::run(&args.data, args.json),
        Command::Inspect(args) => {
            let options = InspectOptions { depth: args.depth, json: args.json, shard: args.shard };
            report(inspect::inspect(&args.data, &options))
        }
        Command::Verify(args) => {
            let data = args.dir.unwrap_or(args.data);
            verify::run(&VerifyOptions { data, shard: args.shard, json: args.json })
        }
        Command::Repair(args) => {
            let direct = direct(args.unsafe_no_direct);
            repair::run(&RepairOptions { data: args.data, accept_loss: args.accept_loss, json: args.json, direct })
        }
        Command::Backup(args) => {
            log_to_stderr();
            backup::run(&BackupOptions { data: args.data, to: args.to, json: args.json })
        }
        Command::Restore(args) => {
            let direct = direct(args.unsafe_no_direct);
            let RestoreArgs { from, data, to, remember, json, .. } = args;
            restore::run(&RestoreOptions { from, data, to, remember, json, direct })
        }
        Command::Reshard(args) => {
            let ReshardArgs { data, to, shards, unsafe_no_direct, json } = args;
            reshard::run(&ReshardOptions { data, to, shards, json, direct: direct(unsafe_no_direct) })
        }
        Command::CheckConfig(args) => check_config::run(&args.file, args.json),
        Command::Demo(args) => {
            let data = args.data.unwrap_or_else(|| PathBuf::from(format!("./claimd-demo-{}", std::process::id())));
            report(demo::run(&data))
        }
    }
}

fn report(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            if !message.is_empty() {
                eprintln!("claimd: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLAIMD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,claimd=info,claim_engine=info"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}

/// A panic in a shard leaves its state in doubt: the process ends, and a restart is recovery.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

fn direct(unsafe_no_direct: bool) -> DirectIo {
    if unsafe_no_direct { DirectIo::NotRequired } else { DirectIo::Required }
}

fn format(args: &FormatArgs) -> Result<(), String> {
    // Whether the directory does O_DIRECT is seen when it is there.
    doctor::preflight(&args.data, 1, true)?;
    let options = FormatOptions {
        data: args.data.clone(),
        shards: if args.devices.is_empty() {
            args.shards.unwrap_or_else(|| allowed_cores().len().min(usize::from(ledger::SHARDS_MAX)) as u16)
        } else {
            u16::try_from(args.devices.len()).unwrap_or(u16::MAX)
        },
        geometry: Geometry {
            segment_bytes: args.segment_bytes,
            batch_bytes_max: args.batch_bytes_max,
            ring_segments: 0,
        },
        clock: match args.clock {
            ClockArg::Wall => ClockMode::Wall,
            ClockArg::Replay => ClockMode::Replay,
        },
        direct: direct(args.unsafe_no_direct),
        devices: args.devices.clone(),
        overwrite: args.overwrite,
    };
    let ledger = ledger::format(&options, |_| {}).map_err(|e| e.to_string())?;
    let data = args.data.display();
    if args.json {
        let clock = format!("{:?}", args.clock).to_lowercase();
        println!(
            "{}",
            serde_json::json!({"ledger": ledger.to_string(), "data": args.data, "shards": options.shards, "clock": clock})
        );
    } else {
        println!("formatted ledger {ledger}: {} shards in {data}", options.shards);
        println!("serve it with: claimd start --data {data}");
    }
    Ok(())
}

#[cfg(not(feature = "mutants"))]
#[allow(clippy::unnecessary_wraps, reason = "the build with mutants can fail here")]
fn mutation() -> Result<Mutation, String> {
    Ok(Mutation::NONE)
}

/// The deliberate bug that `CLAIMD_MUTANT` names, in a build that has them.
#[cfg(feature = "mutants")]
fn mutation() -> Result<Mutation, String> {
    use claim_engine::mutant::Mutant;
    let Ok(name) = std::env::var("CLAIMD_MUTANT") else { return Ok(Mutation::NONE) };
    let mutant = Mutant::from_name(&name).ok_or_else(|| format!("CLAIMD_MUTANT: there is no mutant {name}"))?;
    tracing::warn!(mutant = name, "this daemon has a deliberate bug and loses data");
    Ok(Mutation::new(Some(mutant)))
}

fn serve(args: &StartArgs) -> Result<(), String> {
    let data = args.data.clone().unwrap_or_else(|| PathBuf::from(DATA));
    let cores = args.cores.clone().map_or_else(allowed_cores, |cores| cores.0);
    let allowed = allowed_cores();
    if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
        return Err(format!(
            "core {core} is not there for this process, which may use {allowed:?}; name others with --cores"
        ));
    }
    let direct = direct(args.unsafe_no_direct);
    if args.data.is_none() && !ledger::exists(&data) {
        doctor::preflight(Path::new("."), cores.len() as u64, args.unsafe_no_direct)?;
        let options = FormatOptions {
            data: data.clone(),
            shards: cores.len().min(usize::from(ledger::SHARDS_MAX)) as u16,
            geometry: Geometry::DEFAULT,
            clock: ClockMode::Wall,
            direct,
            devices: Vec::new(),
            overwrite: false,
        };
        let ledger = ledger::format(&options, |_| {}).map_err(|e| e.to_string())?;
        tracing::info!(%ledger, data = %data.display(), "formatted");
    }
    let socket = args.socket.clone().unwrap_or_else(|| data.join("claimd.sock"));
    let poll = Duration::from_micros(args.poll_us);
    let scrub_bytes_per_s = args.scrub_mib_per_s << 20;
    let debt = DebtBounds { requests: args.debt_requests, bytes: args.debt_mib << 20 };
    let cache_bytes = args.cache_mib << 20;
    let open = OpenOptions {
        fill_bytes: args.batch_fill_bytes,
        debt,
        cache_bytes,
        is_being_read: false,
        mutation: mutation()?,
    };
    let config = args.config.clone();
    let archive = args.segment_archive.clone().map(|to| ArchiveOptions {
        to,
        every: Duration::from_secs(args.segment_archive_every),
        bytes_per_s: args.segment_archive_mib_per_s << 20,
    });
    start::start(&StartOptions { data, socket, cores, direct, open, scrub_bytes_per_s, poll, config, archive })
}
