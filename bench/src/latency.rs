//! `claim-bench latency`: one claim at a time on each connection, beside what the device and the sockets take for it by themselves.
//!
//! A daemon can't answer sooner than a durable write and a way there and back over a socket take; and with one claim outstanding on
//! each connection it can't take more of them in a second than there are if each waits for a write alone, nor more than the echo
//! has. Each round measures the bare write, an echo of the same daemon without a ledger, and the daemon, one after the other, so that
//! a drift of the machine meets all alike.

use crate::affinity;
use crate::daemon_process::{DaemonProcess, EchoProcess};
use crate::error::BenchError;
use crate::floor::{self, Floor, LEDGER_MODE};
use crate::load_arguments::{positive, seconds};
use crate::outcome::{Latencies, Row, hundredths, latencies_table, median, rounded, thousands};
use crate::own_daemon::OwnDaemonArguments;
use crate::scratch_directory::ScratchDirectory;
use crate::target::Target;
use claim_engine::device::scratch::{Caching, Extents};
use clap::Args;
use comfy_table::Table;
use serde::Serialize;
use std::time::Duration;

/// Which daemon, where, and for how long.
#[derive(Debug, Args)]
pub struct LatencyArguments {
    #[command(flatten)]
    own: OwnDaemonArguments,
    /// Rounds whose medians are shown.
    #[arg(long, default_value = "5", value_parser = positive)]
    rounds: usize,
    /// Connections of the echo and of the daemon, each with one claim outstanding.
    #[arg(long, default_value = "1", value_parser = positive)]
    connections: usize,
    /// Measured time of each of the three in each round, in seconds.
    #[arg(long, default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// One JSON object for each of the three, and one for the ratios.
    #[arg(long)]
    json: bool,
}

/// Measures and prints; an error when anything was refused.
pub fn latency(arguments: &LatencyArguments) -> Result<(), BenchError> {
    let OwnDaemonArguments { claimd, dir, daemon_core, poll_us, core, .. } = &arguments.own;
    let scratch = ScratchDirectory::make(dir, false)?;
    let mut daemon = DaemonProcess::start(claimd, &scratch.path().join("ledger"), *daemon_core, *poll_us)?;
    let echo = EchoProcess::start(claimd, &scratch.path().join("echo"), *daemon_core, *poll_us)?;
    let (mut floors, mut echoes, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        floors.push(measure_floor(arguments)?);
        affinity::pin_to(*core)?;
        echoes.push(measure(arguments, echo.socket())?);
        rows.push(measure(arguments, daemon.socket()).map_err(|error| daemon.explain(error))?);
    }
    echo.stop()?;
    daemon.stop()?;
    let errors = echoes.iter().chain(&rows).map(|row| row.figures.errors).sum();
    let latencies = |rows: &[Row]| -> Vec<Latencies> { rows.iter().map(|row| row.figures.latencies).collect() };
    let claims = |rows: &[Row]| median(rows.iter().map(|row| row.claims_per_second));
    let compared = Compared::new(&floors, &latencies(&echoes), &latencies(&rows));
    let rates = Rates::new(arguments.connections, compared.floor, claims(&echoes), claims(&rows));
    compared.print(rates, arguments.json);
    if errors == 0 { Ok(()) } else { Err(BenchError::Errors { errors }) }
}

/// Measures from the daemon's core: a device does not answer every core alike.
fn measure_floor(arguments: &LatencyArguments) -> Result<Latencies, BenchError> {
    affinity::pin_to(arguments.own.daemon_core)?;
    let trials = floor::trials(&[LEDGER_MODE], &[4], &[1]);
    let floor = Floor::measure(&arguments.own.dir, &trials, Extents::Written, Caching::Direct, arguments.seconds)?;
    Ok(floor.latencies(LEDGER_MODE, 4096, 1).expect("it was measured"))
}

fn measure(arguments: &LatencyArguments, socket: &std::path::Path) -> Result<Row, BenchError> {
    let target = Target::find(socket, 1, false)?;
    let (connections, timing) = (arguments.connections, arguments.own.timing(arguments.seconds));
    target.measure(connections, connections, arguments.own.shape(1), timing)
}

/// The medians, and what the daemon takes for each microsecond of the other two together.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Compared {
    floor: Latencies,
    echo: Latencies,
    claimd: Latencies,
    p50_to_sum: f64,
    p99_to_sum: f64,
    p999_to_sum: f64,
}

/// Claims a second with one outstanding on each connection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Rates {
    connections: usize,
    claims_per_second: f64,
    echoes_per_second: f64,
    /// If each waited for the mean write and for nothing else, by Little's law.
    claims_per_second_of_writes: f64,
}

/// Both as JSON.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    compared: &'a Compared,
    #[serde(flatten)]
    rates: Rates,
}

impl Rates {
    fn new(connections: usize, floor: Latencies, echoes_per_second: f64, claims_per_second: f64) -> Self {
        let claims_per_second_of_writes = rounded(connections as f64 * 1e6 / floor.mean_us);
        Rates { connections, claims_per_second, echoes_per_second, claims_per_second_of_writes }
    }
}

impl Compared {
    fn new(floors: &[Latencies], echoes: &[Latencies], rows: &[Latencies]) -> Self {
        let (floor, echo, claimd) = (Latencies::median(floors), Latencies::median(echoes), Latencies::median(rows));
        let ratio = |figure: fn(&Latencies) -> f64| hundredths(figure(&claimd) / (figure(&floor) + figure(&echo)));
        Compared {
            floor,
            echo,
            claimd,
            p50_to_sum: ratio(|l| l.p50_us),
            p99_to_sum: ratio(|l| l.p99_us),
            p999_to_sum: ratio(|l| l.p999_us),
        }
    }

    fn print(&self, rates: Rates, json: bool) {
        if json {
            let line = Line { compared: self, rates };
            return println!("{}", serde_json::to_string(&line).expect("numbers and names serialise"));
        }
        println!("{}", self.table(rates.connections));
        println!(
            "claimd ÷ (floor + echo): p50 {:.2}, p99 {:.2}, p99.9 {:.2}",
            self.p50_to_sum, self.p99_to_sum, self.p999_to_sum
        );
        println!(
            "claims a second: {}; the echo has {}, and if each waited for a write alone, there were {}",
            thousands(rates.claims_per_second),
            thousands(rates.echoes_per_second),
            thousands(rates.claims_per_second_of_writes)
        );
    }

    fn table(&self, connections: usize) -> Table {
        let floor = format!("floor: {LEDGER_MODE}, 4 KiB");
        let rows = [(floor.as_str(), &self.floor), ("echo", &self.echo), ("claimd", &self.claimd)];
        let title = match connections {
            1 => "one at a time".to_owned(),
            connections => format!("one on each of {connections}"),
        };
        latencies_table(&title, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_stands_beside_the_sum_of_the_other_two() {
        let of = |us: f64| Latencies {
            mean_us: us,
            p50_us: us,
            p90_us: 2.0 * us,
            p99_us: 3.0 * us,
            p999_us: 4.0 * us,
            p9999_us: 5.0 * us,
            max_us: 6.0 * us,
        };
        let floors = [of(60.0), of(900.0), of(50.0)];
        let compared = Compared::new(&floors, &[of(40.0)], &[of(110.0), of(120.0), of(500.0)]);
        assert_eq!((compared.p50_to_sum, compared.p99_to_sum, compared.p999_to_sum), (1.2, 1.2, 1.2));
        assert_eq!(Rates::new(64, compared.floor, 5.0, 3.0).claims_per_second_of_writes, 1_066_666.7);
        let table = compared.table(64).to_string();
        assert!(
            ["60", "40", "120", "echo", "claimd", "one on each of 64"].iter().all(|part| table.contains(part)),
            "{table}"
        );
    }
}
