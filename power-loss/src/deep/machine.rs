//! One run of the guest in QEMU.

use super::guest::Orders;
use super::note::Note;
use super::packages::{Kernel, Qemu};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long a guest may take to do what it is told: emulated, beside other work.
const PATIENCE: Duration = Duration::from_secs(600);
const GLANCE: Duration = Duration::from_millis(20);
const MEMORY: &str = "1G";
/// Whatever the emulator can do: the daemon picks its instructions by what the processor says.
const PROCESSOR: &str = "max";
const PROCESSORS: &str = "2";
/// The processor's own clock is left alone: how fast it runs is measured at boot, and on a busy host far from the truth.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr nowatchdog cryptomgr.notests tsc=unstable";

/// A guest that runs; it is killed when this goes.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    notes: PathBuf,
    console: PathBuf,
}

impl Machine {
    /// Starts a guest. Each disk has a serial number, by which the guest finds it.
    pub fn start(
        qemu: &Qemu,
        kernel: &Kernel,
        initramfs: &Path,
        disks: &[(String, PathBuf)],
        orders: &Orders,
        folder: &Path,
    ) -> Result<Machine, String> {
        let (notes, console) = (folder.join("notes"), folder.join("console"));
        // What an earlier guest said is not this one's.
        for path in [&notes, &console] {
            let _ = fs::remove_file(path);
        }
        let complaints = folder.join("qemu");
        let open = File::create(&complaints).map_err(|e| format!("{}: {e}", complaints.display()))?;
        let mut command = qemu.command();
        // KVM is left out on purpose: it is seldom there where this runs, and the devices are emulated anyway.
        command.args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", PROCESSOR, "-smp", PROCESSORS]);
        command.args(["-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        for (id, path) in [("console", &console), ("notes", &notes)] {
            command.arg("-chardev").arg(format!("file,id={id},path={}", escaped(path)));
            command.arg("-serial").arg(format!("chardev:{id}"));
        }
        for (serial, path) in disks {
            let drive = format!("file={},format=raw,if=none,id={serial},cache=writeback", escaped(path));
            command.arg("-drive").arg(drive).arg("-device").arg(format!("nvme,drive={serial},serial={serial}"));
        }
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
        command.arg("-append").arg(format!("{COMMAND_LINE} {}", orders.word()));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(open).spawn();
        let child = child.map_err(|e| format!("QEMU does not start: {e}"))?;
        Ok(Machine { child, notes, console })
    }

    /// What the guest has said so far.
    pub fn notes(&self) -> Result<Vec<Note>, String> {
        let bytes = fs::read(&self.notes).unwrap_or_default();
        Note::read_all(&bytes)
    }

    /// Waits until the guest has switched itself off, and returns what it said.
    pub fn wait(mut self) -> Result<Vec<Note>, String> {
        let began = Instant::now();
        while self.is_running()? {
            if began.elapsed() > PATIENCE {
                return Err(format!("the guest is not done after {} s; {}", PATIENCE.as_secs(), self.last_words()));
            }
            std::thread::sleep(GLANCE);
        }
        let notes = self.notes()?;
        match notes.last() {
            Some(Note::Done) => Ok(notes),
            Some(Note::Failed(message)) => Err(format!("in the guest: {message}")),
            _ => Err(format!("the guest ended before it was done; {}", self.last_words())),
        }
    }

    /// Waits until a note is there.
    pub fn wait_for(&mut self, is_it: impl Fn(&Note) -> bool) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let notes = self.notes()?;
            if notes.iter().any(&is_it) {
                return Ok(());
            }
            if let Some(Note::Failed(message)) = notes.last() {
                return Err(format!("in the guest: {message}"));
            }
            if !self.is_running()? || began.elapsed() > PATIENCE {
                return Err(format!("the guest does not get as far as it should; {}", self.last_words()));
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// SIGKILL; returns what the guest had said by then.
    pub fn kill(mut self) -> Result<Vec<Note>, String> {
        self.end();
        self.notes()
    }

    fn is_running(&mut self) -> Result<bool, String> {
        self.child.try_wait().map(|status| status.is_none()).map_err(|e| format!("waiting for QEMU: {e}"))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn last_words(&self) -> String {
        let complaints = self.console.with_file_name("qemu");
        let text = [&complaints, &self.console].map(|path| fs::read(path).unwrap_or_default()).concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
        format!("its console, {}, ends with: {}", self.console.display(), last.trim())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// In an option of QEMU a comma stands twice.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
