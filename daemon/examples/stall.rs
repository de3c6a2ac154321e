//! Provokes the endless sleep that the stall guard is for, and shows that it ends with the guard.
//!
//! The executor arms its preemption timer, and then looks whether the timer has fired before it runs its first task. If
//! the core was taken away in between for longer than the timer, nothing runs, and the executor takes "nothing ran" for
//! "nothing to run" and sleeps. So: a short timer (`Latency::Matters`), a core that busy loops share with it, tasks that
//! only ever wake each other, and nothing else that could end the sleep.
//!
//! ```text
//!  stall show ─┬─ stall burn × competitors   on the same core
//!              └─ stall run [--guard]        one executor on that core, one watcher thread anywhere
//! ```

use claimd::stall_guard::{GuardTimes, Pulse, StallGuard};
use clap::Parser;
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::prctl,
    unistd::Pid,
};
use std::{
    cell::{Cell, RefCell},
    env,
    future::poll_fn,
    hint,
    process::{Child, Command, ExitCode, Stdio},
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

/// An executor without progress for this long sleeps. Competitors cost it some tens of milliseconds at most.
const HUNG_AFTER: Duration = Duration::from_millis(500);

/// After this a competitor ends by itself, whatever became of its parent.
const BURN_SECONDS_MAX: u64 = 120;

/// The chore as a whole ends within this time.
const STALL_SECONDS_MAX: u64 = 90;

#[derive(clap::Parser)]
#[command(name = "stall", about = "How an executor sleeps over its work, and that the stall guard wakes it")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Run the executor without the guard and with it, and say what happened
    Show(ShowArguments),
    /// One executor that always has something to do; a part of `show`
    Run(RunArguments),
    /// A loop that keeps a core busy; a part of `show`
    Burn(BurnArguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().part {
        Part::Show(arguments) => show(&arguments),
        Part::Run(arguments) => run_executor(&arguments),
        Part::Burn(arguments) => burn(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("stall: {sentence}");
            ExitCode::FAILURE
        }
    }
}

#[derive(clap::Args)]
struct ShowArguments {
    /// Runs without the guard, and as many with it
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=20))]
    runs: u64,
    /// Length of a run
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=20))]
    seconds: u64,
    /// Busy loops on the executor's core
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(0..=64))]
    competitors: u64,
    /// The preemption timer of the executor's queue, in microseconds
    #[arg(long, default_value_t = 20)]
    latency_us: u64,
}

#[derive(clap::Args)]
struct RunArguments {
    #[arg(long)]
    guard: bool,
    #[arg(long)]
    core: usize,
    #[arg(long)]
    seconds: u64,
    #[arg(long)]
    latency_us: u64,
}

#[derive(clap::Args)]
struct BurnArguments {
    #[arg(long)]
    core: usize,
}

/// Runs the executor again and again, first without the guard, then with it, and prints what happened. An error if a
/// run with the guard hung, or if none without it did and the chore so has shown nothing.
fn show(arguments: &ShowArguments) -> Result<(), String> {
    if 2 * arguments.runs * (arguments.seconds + 1) > STALL_SECONDS_MAX {
        return Err(format!("{} runs of {} s twice take too long", arguments.runs, arguments.seconds));
    }
    let core = first_core()?;
    let _competitors: Vec<_> = (0..arguments.competitors).map(|_| burner(core)).collect::<Result<_, _>>()?;
    println!(
        "one executor on core {core}, queue latency {} µs, {} busy loops beside it, runs of {} s",
        arguments.latency_us, arguments.competitors, arguments.seconds
    );
    println!("{:<14} {:>5} {:>5} {:>18} {:>14}", "", "runs", "hung", "longest standstill", "guard's wakes");
    let without = series(arguments, core, false)?;
    let with = series(arguments, core, true)?;
    match (without.hung, with.hung) {
        (_, 1..) => Err("an executor hung in spite of the guard".into()),
        (0, 0) => Err("no executor hung without the guard: try more --competitors or a smaller --latency-us".into()),
        (_, 0) => Ok(()),
    }
}

/// What a number of runs came to.
#[derive(Default)]
struct Series {
    hung: u64,
    longest_standstill_ms: u64,
    wakes: u64,
}

fn series(arguments: &ShowArguments, core: usize, guard: bool) -> Result<Series, String> {
    let mut series = Series::default();
    for _ in 0..arguments.runs {
        let report = child_run(arguments, core, guard)?;
        series.hung += u64::from(report.longest_standstill >= HUNG_AFTER);
        series.longest_standstill_ms = series.longest_standstill_ms.max(report.longest_standstill.as_millis() as u64);
        series.wakes += report.wakes;
    }
    let name = if guard { "with guard" } else { "without guard" };
    let Series { hung, longest_standstill_ms, wakes } = &series;
    println!("{name:<14} {:>5} {hung:>5} {longest_standstill_ms:>15} ms {wakes:>14}", arguments.runs);
    Ok(series)
}

/// What one run tells on its standard output.
struct Report {
    longest_standstill: Duration,
    wakes: u64,
}

fn child_run(arguments: &ShowArguments, core: usize, guard: bool) -> Result<Report, String> {
    let mut command = myself("run")?;
    command.args(["--core", &core.to_string()]);
    command.args(["--seconds", &arguments.seconds.to_string()]);
    command.args(["--latency-us", &arguments.latency_us.to_string()]);
    if guard {
        command.arg("--guard");
    }
    let output = command.output().map_err(|error| format!("cannot start a run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = || format!("a run ended with {} and said {text:?}", output.status);
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(standstill_ms)), Some(Ok(wakes))) if output.status.success() => {
            Ok(Report { longest_standstill: Duration::from_millis(standstill_ms), wakes })
        }
        _ => Err(complaint()),
    }
}

/// The executor of one run, and a thread that watches it. The process ends when the time is up: a hung executor cannot
/// be stopped from inside.
fn run_executor(arguments: &RunArguments) -> Result<(), String> {
    let pulse = Pulse::new();
    // The executor owes work for as long as it lives: there is always a task that can run.
    pulse.work_add(1);
    let guard = match arguments.guard {
        true => Some(
            StallGuard::start(vec![Arc::clone(&pulse)], GuardTimes::default())
                .map_err(|error| format!("cannot start the guard: {error}"))?,
        ),
        false => None,
    };
    let (its, core, latency) = (Arc::clone(&pulse), arguments.core, Duration::from_micros(arguments.latency_us));
    thread::spawn(move || busy_executor(&its, core, latency));
    while pulse.beats() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let longest = watch(&pulse, Duration::from_secs(arguments.seconds));
    println!("{} {}", longest.as_millis(), guard.map_or(0, |guard| guard.wakes()));
    Ok(())
}

/// The longest time without a beat.
fn watch(pulse: &Pulse, length: Duration) -> Duration {
    let start = Instant::now();
    let mut last = (pulse.beats(), start);
    let mut longest = Duration::ZERO;
    while start.elapsed() < length {
        thread::sleep(Duration::from_millis(1));
        let beats = pulse.beats();
        if beats == last.0 {
            longest = longest.max(last.1.elapsed());
        } else {
            last = (beats, Instant::now());
        }
    }
    longest
}

fn busy_executor(pulse: &Arc<Pulse>, core: usize, latency: Duration) {
    let executor = LocalExecutorBuilder::new(Placement::Fixed(core)).io_memory(64 << 10).make();
    let executor = executor.expect("an executor can be made on a core that this process may use");
    executor.run(async {
        let queue = glommio::executor().create_task_queue(Shares::default(), Latency::Matters(latency), "busy");
        let heartbeat = Arc::clone(pulse).heartbeat();
        glommio::spawn_local_into(heartbeat, queue).expect("the queue exists").detach();
        let court = Rc::new(Court::default());
        for side in 0..2 {
            let (court, pulse) = (Rc::clone(&court), Arc::clone(pulse));
            let player = async move {
                loop {
                    court.turn_of(side).await;
                    pulse.beat();
                    court.pass(1 - side);
                }
            };
            glommio::spawn_local_into(player, queue).expect("the queue exists").detach();
        }
        std::future::pending::<()>().await;
    });
}

/// Two tasks that wake each other for ever: one of them can always run.
#[derive(Default)]
struct Court {
    turn: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

impl Court {
    async fn turn_of(&self, side: usize) {
        poll_fn(|cx| {
            if self.turn.get() == side {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn pass(&self, side: usize) {
        self.turn.set(side);
        if let Some(waiting) = self.waiting.borrow_mut().take() {
            waiting.wake();
        }
    }
}

/// Keeps a core busy until it is killed, its parent ends, or it has lived too long.
fn burn(arguments: &BurnArguments) -> Result<(), String> {
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(|errno| format!("prctl failed: {errno}"))?;
    pin_to(arguments.core)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(BURN_SECONDS_MAX) {
        for _ in 0..1_000_000 {
            hint::spin_loop();
        }
    }
    Ok(())
}

/// A competitor; it dies with this value.
struct Burner(Child);

impl Drop for Burner {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn burner(core: usize) -> Result<Burner, String> {
    let mut command = myself("burn")?;
    command.args(["--core", &core.to_string()]).stdout(Stdio::null());
    command.spawn().map(Burner).map_err(|error| format!("cannot start a busy loop: {error}"))
}

fn myself(chore: &str) -> Result<Command, String> {
    let path = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(path);
    command.arg(chore);
    Ok(command)
}

fn first_core() -> Result<usize, String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|errno| format!("cannot ask for cores: {errno}"))?;
    let mut cores = (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false));
    cores.next().ok_or_else(|| "this process may use no core".into())
}

fn pin_to(core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|errno| format!("cannot pin: {errno}"))
}
