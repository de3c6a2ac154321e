//! claimctl: the ledger from a shell.
//!
//! Each verb makes its requests through the client library and prints what came back: for people by default, with
//! `--json` one object per line. Exit status: 0 done, 1 refused, 2 wrong usage, 3 unknown outcome, 4 cannot connect.

mod args;
mod clock;
mod corpus;
mod entry;
mod failure;
mod import;
mod output;
mod row;
mod session;
mod status;
mod time;

use args::{Args, Verb};
use clap::Parser;
use failure::Failure;
use output::Output;
use session::Session;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    let json = args.json;
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let mut output = Output::new(args.json);
    // What is wrong with the arguments is said before anything is connected to.
    args.verb.check()?;
    let session = Session::open(&args)?;
    match args.verb {
        Verb::Onboard(verb) => corpus::onboard(&session, verb, &mut output),
        Verb::Corpora => corpus::list(&session, &mut output),
        Verb::Claim(verb) => row::claim(&session, verb, &mut output),
        Verb::Reference(verb) => row::reference(&session, verb, &mut output),
        Verb::Retract(verb) => row::retract(&session, verb, &mut output),
        Verb::Reactivate(verb) => row::reactivate(&session, verb, &mut output),
        Verb::ConfirmClock(verb) => clock::confirm(&session, verb, &mut output),
        Verb::Lookup(verb) => row::lookup(&session, verb, &mut output),
        Verb::History(verb) => entry::history(&session, verb, &mut output),
        Verb::Scan(verb) => row::scan(&session, verb, &mut output),
        Verb::Import(verb) => import::import(&session, verb, &mut output),
        Verb::Status => status::status(&session, &mut output),
    }?;
    output.finish()
}
