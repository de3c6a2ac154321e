//! One finding, and how it is printed.

use serde::Serialize;
use std::io::{self, Write};

/// Width of the column that holds the check's name.
const NAME_WIDTH: usize = 16;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As a ledger wants it.
    Ok,
    /// A ledger works, with a reservation.
    Warn,
    /// A ledger does not work.
    Fail,
}

/// What was looked at and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    check: &'static str,
    status: Status,
    found: String,
    /// What to change; every failure has it.
    mend: Option<String>,
}

impl Check {
    pub(super) fn ok(check: &'static str, found: String) -> Self {
        Check { check, status: Status::Ok, found, mend: None }
    }

    pub(super) fn warn(check: &'static str, found: String) -> Self {
        Check { check, status: Status::Warn, found, mend: None }
    }

    /// A failure: without a cure it would only be a complaint.
    pub(super) fn fail(check: &'static str, found: String, mend: String) -> Self {
        Check { check, status: Status::Fail, found, mend: Some(mend) }
    }

    /// The same with advice.
    pub(super) fn with_mend(mut self, mend: &str) -> Self {
        self.mend = Some(mend.to_owned());
        self
    }

    pub(super) fn is_failure(&self) -> bool {
        self.status == Status::Fail
    }

    #[cfg(test)]
    pub(super) fn is_warning(&self) -> bool {
        self.status == Status::Warn
    }

    /// A failure as one sentence; everything else passes.
    pub(super) fn refusal(self) -> Result<(), String> {
        match self {
            Check { status: Status::Fail, found, mend: Some(mend), .. } => Err(format!("{found}; {mend}")),
            _ => Ok(()),
        }
    }

    fn text(&self) -> String {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        let line = format!("{status:<4}  {:<NAME_WIDTH$}  {}", self.check, self.found);
        match &self.mend {
            Some(mend) => format!("{line}\n      mend: {mend}"),
            None => line,
        }
    }
}

/// Prints checks one by one and remembers whether any failed.
pub(super) struct Printer<'a, W: Write> {
    out: &'a mut W,
    json: bool,
    failures: u32,
}

impl<'a, W: Write> Printer<'a, W> {
    pub(super) fn new(out: &'a mut W, json: bool) -> Self {
        Printer { out, json, failures: 0 }
    }

    /// Prints at once, since the next check may take a second.
    pub(super) fn print(&mut self, check: &Check) -> io::Result<()> {
        self.failures += u32::from(check.is_failure());
        if self.json {
            serde_json::to_writer(&mut *self.out, check)?;
            writeln!(self.out)?;
        } else {
            writeln!(self.out, "{}", check.text())?;
        }
        self.out.flush()
    }

    pub(super) fn nothing_failed(&self) -> bool {
        self.failures == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_prints_as_text_and_as_json() {
        let check = Check::fail("memlock", "64 KiB".to_owned(), "raise it".to_owned());
        assert_eq!(check.text(), "FAIL  memlock           64 KiB\n      mend: raise it");
        let json = serde_json::to_string(&check).expect("strings serialise");
        assert_eq!(json, r#"{"check":"memlock","status":"fail","found":"64 KiB","mend":"raise it"}"#);
        assert_eq!(check.refusal(), Err("64 KiB; raise it".to_owned()));
        assert_eq!(Check::warn("clock", "free".to_owned()).with_mend("run chrony").refusal(), Ok(()));
    }

    #[test]
    fn one_failure_among_many_is_remembered() {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, false);
        printer.print(&Check::ok("a", "fine".to_owned())).expect("memory");
        assert!(printer.nothing_failed());
        printer.print(&Check::fail("b", "bad".to_owned(), "mend it".to_owned())).expect("memory");
        printer.print(&Check::ok("c", "fine".to_owned())).expect("memory");
        assert!(!printer.nothing_failed());
    }
}
