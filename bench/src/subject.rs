//! What a load asks for, whatever it is, and its rows.

use crate::error::BenchError;
use crate::load_arguments::LoadArguments;
use crate::outcome::{Figures, Latencies, MeasuredRow, number_table, rate_cell, thousands};
use crate::random::Random;
use crate::reads::Reads;
use crate::record::Recorder;
use crate::target::Target;
use crate::workload::Workload;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// Claims, reads, or a workload.
pub enum Subject {
    Claims(Target),
    Reads { reads: Reads, seed: u64 },
    Workload { target: Target, workload: Box<Workload>, random: Random, seed: u64 },
}

impl Subject {
    /// What the arguments ask for, of the daemon that they name.
    pub fn find(load: &LoadArguments) -> Result<Self, BenchError> {
        if let Some(name) = &load.workload {
            let workload = Box::new(Workload::find(name)?);
            let target = Target::find_named(&load.socket, &workload.corpora(), load.shard_socket)?;
            let seed = load.seed();
            if workload.is_drawn() {
                eprintln!("requests are drawn with --seed {seed}");
            }
            return Ok(Subject::Workload { target, workload, random: Random::new(seed), seed });
        }
        match load.operation.reads() {
            Some(kind) => {
                let seed = load.seed();
                Ok(Subject::Reads { reads: load.reads(kind, seed)?.0, seed })
            }
            None => Ok(Subject::Claims(load.target()?)),
        }
    }

    /// What keeps the run, if it is to be kept.
    pub fn recorder(&self, load: &LoadArguments) -> Result<Option<Recorder>, BenchError> {
        let seed = match self {
            Subject::Claims(_) => None,
            Subject::Reads { seed, .. } | Subject::Workload { seed, .. } => Some(*seed),
        };
        let mut recorder = load.recorder(seed)?;
        if let (Some(recorder), Subject::Workload { workload, .. }) = (&mut recorder, self) {
            recorder.workload(&workload.text)?;
        }
        Ok(recorder)
    }

    /// One row, at a rate or in a closed loop.
    pub fn measure(
        &mut self,
        load: &LoadArguments,
        outstanding: usize,
        rate: Option<f64>,
    ) -> Result<MeasuredRow, BenchError> {
        let (timing, connections) = (load.timing(rate), load.connections);
        match self {
            Subject::Claims(target) => Ok(target.measure(outstanding, connections, load.shape(), timing)?.measured()),
            Subject::Reads { reads, .. } => Ok(reads.measure(outstanding, connections, timing)?.measured()),
            Subject::Workload { target, workload, random, .. } => {
                target.measure_workload(workload, outstanding, connections, timing, random)
            }
        }
    }
}

/// A row as JSON.
#[derive(Serialize)]
pub struct RowLine<'a> {
    system: &'static str,
    operation: &'a str,
    connections: usize,
    outstanding: usize,
    batch: usize,
    units_per_second: f64,
    #[serde(flatten)]
    figures: &'a Figures,
}

impl<'a> RowLine<'a> {
    pub fn new(row: &'a MeasuredRow) -> Self {
        let setting = &row.setting;
        RowLine {
            system: "claimd",
            operation: &setting.operation,
            connections: setting.connections,
            outstanding: setting.outstanding,
            batch: setting.batch,
            units_per_second: row.units_per_second,
            figures: &row.figures,
        }
    }
}

/// The table of some rows.
pub fn table(rows: &[MeasuredRow]) -> Table {
    let mut header = vec!["requests", "connections", "outstanding", "rate", "requests/s", "claims or rows/s"];
    header.extend(Latencies::HEADER);
    header.push("unsent");
    header.extend(Figures::HEADER);
    let mut table = number_table(&header);
    if let Some(column) = table.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    for MeasuredRow { setting, units_per_second, figures } in rows {
        let mut cells = vec![
            setting.kind(),
            setting.connections.to_string(),
            setting.outstanding.to_string(),
            rate_cell(setting.rate),
            thousands(figures.requests_per_second),
            thousands(*units_per_second),
        ];
        cells.extend(figures.latencies.cells());
        cells.push(thousands(figures.unsent as f64));
        cells.extend(figures.cells());
        table.add_row(cells);
    }
    table
}
