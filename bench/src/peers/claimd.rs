//! claimd, on a scratch ledger of one shard.

use super::{BATCHES, CONNECTIONS, Load, Peer, closed};
use crate::affinity;
use crate::daemon_process::DaemonProcess;
use crate::error::BenchError;
use crate::interrupt::Interrupt;
use crate::outcome::{Row, Setting};
use crate::target::Target;
use nix::sched::CpuSet;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Connections of the climb and of batches: one connection takes many requests.
const FEW_CONNECTIONS: usize = 4;

/// Requests outstanding on the climb to the most that single claims reach.
const CLIMB: [usize; 3] = [64, 256, 1024];

/// Batches outstanding, so that one is always on its way while another is written.
const BATCHES_OUTSTANDING: usize = 4;

/// The daemon, which runs while there is a process.
pub struct Claimd {
    binary: PathBuf,
    data: PathBuf,
    load: Load,
    core: usize,
    cores: CpuSet,
    interrupt: Interrupt,
    process: Option<DaemonProcess>,
}

impl Claimd {
    /// Formats the ledger. The whole process has one core, whose number comes with it as a set.
    pub fn make(
        binary: &Path,
        data: &Path,
        load: Load,
        (core, cores): (usize, CpuSet),
        interrupt: &Interrupt,
    ) -> Result<Self, BenchError> {
        DaemonProcess::format(binary, data)?;
        let (binary, data, interrupt) = (binary.to_owned(), data.to_owned(), interrupt.clone());
        Ok(Claimd { binary, data, load, core, cores, interrupt, process: None })
    }
}

impl Peer for Claimd {
    fn name(&self) -> &'static str {
        "claimd"
    }

    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("shards".to_owned(), "1".to_owned()), ("cores".to_owned(), affinity::names(&self.cores))])
    }

    fn settings(&self) -> Vec<Setting> {
        let mut settings = vec![closed(1, 1, 1), closed(CONNECTIONS, CONNECTIONS, 1)];
        settings.extend(CLIMB.iter().map(|outstanding| closed(FEW_CONNECTIONS, *outstanding, 1)));
        settings.extend(BATCHES.iter().map(|batch| closed(FEW_CONNECTIONS, BATCHES_OUTSTANDING, *batch)));
        settings
    }

    fn start(&mut self) -> Result<(), BenchError> {
        let process = affinity::on(&self.cores, || DaemonProcess::serve(&self.binary, &self.data, self.core, 0))?;
        self.interrupt.ends(process.pid(), Signal::SIGKILL)?;
        self.process = Some(process);
        Ok(())
    }

    fn measure(&mut self, setting: Setting) -> Result<Row, BenchError> {
        let process = self.process.as_mut().expect("it was started");
        let Setting { connections, outstanding, batch, .. } = setting;
        let measure = |socket: &Path| {
            let target = Target::find(socket, 1, false)?;
            target.measure(outstanding, connections, self.load.shape(batch), self.load.timing)
        };
        measure(process.socket()).map_err(|error| process.explain(error))
    }

    fn stop(&mut self) -> Result<(), BenchError> {
        self.interrupt.ends_nothing();
        self.process.take().expect("it was started").stop()
    }
}
