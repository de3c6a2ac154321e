//! Says what this machine offers a ledger, and what stands in its way.
//!
//! `claimd doctor` prints everything, measurements included; `claimd start` asks [`preflight`] for the first thing that
//! makes serving pointless. Both use the same checks, so that a refused start and the doctor's line name the same cause
//! and the same cure.

mod check;
mod durable;
mod process;
mod storage;

use crate::ledger;
use check::{Check, Printer};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What each executor's rings register; the runtime's own default is ten times as much and more than most limits allow.
pub const EXECUTOR_IO_MEMORY_BYTES: u64 = 1 << 20;

/// Prints one line per check of the machine and of `directory` (or of its nearest parent that exists): as text, or as one
/// JSON object per line with `check`, `status` (`ok`, `warn`, `fail`), `found` and `mend`. Measuring takes some seconds.
/// Success when nothing fails, 1 otherwise.
pub fn run(directory: &Path, json: bool) -> ExitCode {
    match run_to(&mut io::stdout().lock(), directory, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("claimd doctor: cannot print: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the checks as they are made; whether none failed.
fn run_to(out: &mut impl Write, directory: &Path, json: bool) -> io::Result<bool> {
    let mut printer = Printer::new(out, json);
    let devices = ledger::devices(directory);
    let directory = existing(directory);
    let executors = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    printer.print(&process::kernel())?;
    let rings = process::rings();
    let rings_usable = !rings.is_failure();
    printer.print(&rings)?;
    if rings_usable {
        printer.print(&process::operations())?;
        printer.print(&process::memlock(executors))?;
    }
    printer.print(&process::clock())?;
    if !devices.is_empty() {
        for check in devices.iter().flat_map(|device| storage::raw_device(device)) {
            printer.print(&check)?;
        }
        return Ok(printer.nothing_failed());
    }
    printer.print(&storage::file_system(&directory))?;
    let direct = storage::direct_io(&directory);
    let direct_usable = !direct.is_failure();
    printer.print(&direct)?;
    for check in storage::block_device(&directory) {
        printer.print(&check)?;
    }
    if rings_usable {
        for check in durable::writes(&directory, direct_usable) {
            printer.print(&check)?;
        }
    } else {
        printer.print(&Check::warn("durable writes", "not measured, because io_uring is not to be had".to_owned()))?;
    }
    Ok(printer.nothing_failed())
}

/// Whether `claimd start` may serve a ledger in `directory` with that many executors: the kernel, its rings, the memory
/// lock, and direct I/O unless `unsafe_no_direct` or the shards are block devices. Measures nothing and takes milliseconds.
///
/// # Errors
/// One sentence that says what was found and what to change.
pub fn preflight(directory: &Path, executors: u64, unsafe_no_direct: bool) -> Result<(), String> {
    process::kernel().refusal()?;
    process::rings().refusal()?;
    process::operations().refusal()?;
    process::memlock(executors).refusal()?;
    if !unsafe_no_direct && ledger::devices(directory).is_empty() {
        storage::direct_io(directory).refusal()?;
    }
    Ok(())
}

/// `directory`, or its nearest parent that exists: a ledger that is yet to be made will lie on the same file system.
fn existing(directory: &Path) -> PathBuf {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let found = absolute.ancestors().find(|ancestor| ancestor.is_dir());
    found.unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use claim_engine::device::directory::{DirectIo, direct_io};
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    /// Runs `body` in a thread whose io_uring_setup is answered with `errno`.
    fn without_rings<T: Send + 'static>(errno: i32, body: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            let rules = [(libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
            let architecture = std::env::consts::ARCH.try_into().expect("an architecture that seccomp knows");
            let refuse = SeccompAction::Errno(errno as u32);
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).expect("a filter");
            let program: BpfProgram = filter.try_into().expect("a program");
            seccompiler::apply_filter(&program).expect("filters can be set on this kernel");
            body()
        });
        thread.join().expect("the thread does not panic")
    }

    fn check_refusal(errno: i32) {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let sentence =
            without_rings(errno, move || preflight(directory.path(), 1, true)).expect_err("rings are forbidden");
        let sysctl = claim_engine::device::ring::sysctl().expect("readable").unwrap_or(0);
        if sysctl == 0 {
            assert!(sentence.contains("a seccomp filter forbids io_uring"), "{sentence}");
            assert!(sentence.contains("allow io_uring_setup, io_uring_enter and io_uring_register"), "{sentence}");
        } else {
            assert!(sentence.contains("kernel.io_uring_disabled"), "{sentence}");
        }
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
    }

    #[test]
    fn a_filter_that_forbids_rings_gives_one_sentence_that_names_it() {
        check_refusal(libc::EPERM);
        check_refusal(libc::ENOSYS);
    }

    #[test]
    fn the_doctor_fails_where_rings_are_forbidden_and_goes_on() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let (fine, text) = without_rings(libc::EPERM, move || {
            let mut text = Vec::new();
            let fine = run_to(&mut text, directory.path(), false).expect("memory can be written to");
            (fine, String::from_utf8(text).expect("text"))
        });
        assert!(!fine, "{text}");
        assert!(text.contains("\nFAIL  io_uring "), "{text}");
        assert!(text.contains("\n      mend: "), "{text}");
        assert!(text.contains("not measured"), "{text}");
    }

    #[test]
    fn every_line_of_json_is_an_object_with_the_same_fields() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let mut text = Vec::new();
        let fine = run_to(&mut text, &directory.path().join("not/made/yet"), true).expect("memory can be written to");
        let text = String::from_utf8(text).expect("text");
        let mut failures = 0;
        for line in text.lines() {
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).expect(line);
            let mut fields: Vec<&String> = object.keys().collect();
            fields.sort();
            assert_eq!(fields, ["check", "found", "mend", "status"], "{line}");
            match object["status"].as_str() {
                Some("ok" | "warn") => {}
                Some("fail") => {
                    failures += 1;
                    assert!(object["mend"].is_string(), "a failing line says how to mend it: {line}");
                }
                other => panic!("status {other:?}: {line}"),
            }
        }
        assert_eq!(fine, failures == 0);
        let left: Vec<_> = std::fs::read_dir(directory.path()).expect("readable").collect();
        assert!(left.is_empty(), "scratch files were left behind: {left:?}");
    }

    #[test]
    fn memory_is_refused_unless_asked_for() {
        let directory = Path::new("/dev/shm");
        if direct_io(directory).is_ok_and(|direct| direct == DirectIo::Pretended) {
            let sentence = preflight(directory, 1, false).expect_err("tmpfs is no disk");
            assert!(sentence.contains("--unsafe-no-direct"), "{sentence}");
            assert_eq!(preflight(directory, 1, true), Ok(()));
        } else {
            println!("/dev/shm is no tmpfs here, so there is nothing to refuse");
        }
    }

    #[test]
    fn a_ledger_that_is_not_there_yet_is_looked_for_in_its_parent() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        assert_eq!(existing(&directory.path().join("a/b")), directory.path());
        assert_eq!(existing(directory.path()), directory.path());
    }
}
