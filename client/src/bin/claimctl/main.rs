//! claimctl: the ledger from a shell.
//!
//! Each verb makes its requests through the client library and prints what came back: for people by default, with
//! `--json` one object per line. Exit status: 0 done, 1 refused, 2 wrong usage, 3 unknown outcome, 4 cannot connect.

mod args;
mod audit;
mod clock;
mod config;
mod corpus;
mod dispute;
mod entry;
mod failure;
mod history;
mod import;
mod output;
mod reconcile;
mod retention;
mod row;
mod row_output;
mod session;
mod slots;
mod status;
mod tail;
mod time;

use args::{Args, Audit, Config, Import, Verb};
use clap::Parser;
use failure::Failure;
use output::Output;
use session::Session;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        // Help and version are asked for, and no error.
        Err(error) if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") => {
            return Failure::Usage(error.render().to_string().trim_end().to_owned()).report(true);
        }
        Err(error) => error.exit(),
    };
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
    if let Verb::Import(Import { file, dry_run: true }) = &args.verb {
        import::dry_run(file, &mut output)?;
        return output.finish();
    }
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
        Verb::Find(verb) => row::find(&session, verb, &mut output),
        Verb::History(verb) => history::history(&session, verb, &mut output),
        Verb::Scan(verb) => row::scan(&session, verb, &mut output),
        Verb::Dispute(verb) => dispute::dispute(&session, verb, &mut output),
        Verb::Decommission(verb) => corpus::decommission(&session, verb, &mut output),
        Verb::Freeze(verb) => corpus::freeze(&session, verb, &mut output),
        Verb::Unfreeze(verb) => corpus::unfreeze(&session, verb, &mut output),
        Verb::Cap(verb) => corpus::cap(&session, verb, &mut output),
        Verb::Slots(verb) => slots::slots(&session, verb, &mut output),
        Verb::Totals(verb) => slots::totals(&session, verb, &mut output),
        Verb::Incident(verb) => reconcile::incident(&session, verb, &mut output),
        Verb::Barrier(verb) => reconcile::barrier(&session, verb, &mut output),
        Verb::Hold(verb) => retention::hold(&session, verb, &mut output),
        Verb::Release(verb) => retention::release(&session, verb, &mut output),
        Verb::Retention => retention::retention(&session, &mut output),
        Verb::Reconcile(verb) => reconcile::reconcile(&session, verb, &mut output),
        Verb::Propagation => reconcile::propagation(&session, &mut output),
        Verb::Tail(verb) => tail::tail(&session, verb, &mut output),
        Verb::Audit(Audit::Head) => audit::head(&session, &mut output),
        Verb::Audit(Audit::Verify(verb)) => audit::verify(&session, verb, &mut output),
        Verb::Audit(Audit::Export(verb)) => tail::export(&session, verb, &mut output),
        Verb::Config(Config::Show) => config::show(&session, &mut output),
        Verb::Import(verb) => import::import(&session, verb, &mut output),
        Verb::Status { stages } => status::status(&session, stages, &mut output),
    }?;
    output.finish()
}
