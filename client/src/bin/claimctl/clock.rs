//! The daemon's clock.

use crate::args::ConfirmClock;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use serde::Serialize;

/// A confirmation in JSON.
#[derive(Debug, Serialize)]
struct ConfirmedJson {
    confirmed_at: String,
}

pub fn confirm(session: &Session, verb: ConfirmClock, output: &mut Output) -> Result<(), Failure> {
    let options = session.mutating(&verb.mutation, &verb.rationale.rationale);
    let confirmed_at_us = session.client.confirm_clock(&options).wait()?.value;
    let confirmed_at = rfc3339(confirmed_at_us);
    if output.is_json() {
        output.object(&ConfirmedJson { confirmed_at })
    } else {
        output.line(format_args!("the clock is confirmed at {confirmed_at}"))
    }
}
