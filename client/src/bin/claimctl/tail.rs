//! The log as it grows, and all of it.

use crate::args::{Export, Tail};
use crate::entry::{EntryJson, print_entry_line};
use crate::failure::{Failure, say};
use crate::output::Output;
use crate::session::Session;
use claim_client::{ClientError, ErrorCode, ErrorOutcome, RequestOptions, ServerError, ShardStatus, TailOptions};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How long one question waits for an entry; the client asks again for as long as it takes.
const WAIT: Duration = Duration::from_secs(30);

pub fn tail(session: &Session, verb: Tail, output: &mut Output) -> Result<(), Failure> {
    let shard = verb.shard;
    let from_position = match verb.from {
        Some(position) => position,
        None if verb.follow => shard_status(session, shard)?.durable_position + 1,
        None => 0,
    };
    let wait = if verb.follow { WAIT } else { Duration::ZERO };
    let tail = TailOptions { shard, from_position, page_entries: 0, wait };
    let mut pages = session.client.tail(tail, &RequestOptions::default());
    while let Some(page) = pages.next() {
        let page = page.map_err(|error| interrupted(error, shard, pages.next_position()))?;
        page.entries.iter().try_for_each(|entry| print_entry_line(entry, output))?;
        // Whoever follows sees what there is.
        output.finish()?;
    }
    let next = pages.next_position();
    say(&format!("claimctl: nothing is durable at {shard}:{next} yet; --from {next} --follow waits for it"));
    Ok(())
}

/// Says where a tail broke off, because what came before has been printed.
fn interrupted(error: ClientError, shard: u16, next: u64) -> Failure {
    say(&format!("claimctl: the tail of shard {shard} broke off before position {next}; go on with --from {next}"));
    error.into()
}

pub fn export(session: &Session, verb: Export, output: &mut Output) -> Result<(), Failure> {
    let shards = match verb.shard {
        Some(shard) => vec![shard_status(session, shard)?],
        None => session.client.status(&RequestOptions::default()).wait()?.value.shards,
    };
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {human_pos} positions  {elapsed}")
        .expect("the template is valid");
    let bar = ProgressBar::new(shards.iter().map(|shard| shard.durable_position).sum()).with_style(style);
    let exported: Result<Vec<u64>, Failure> =
        shards.iter().map(|shard| export_shard(session, shard, &bar, output)).collect();
    bar.finish_and_clear();
    let exported: u64 = exported?.iter().sum();
    output.finish()?;
    say(&format!("claimctl: {exported} entries of {} shards were exported", shards.len()));
    Ok(())
}

/// Prints the entries up to the position that was the last durable one when the export began.
fn export_shard(
    session: &Session,
    status: &ShardStatus,
    bar: &ProgressBar,
    output: &mut Output,
) -> Result<u64, Failure> {
    let shard = status.shard;
    let last = status.durable_position;
    let done = bar.position();
    let tail = TailOptions { shard, from_position: 0, page_entries: 0, wait: Duration::ZERO };
    let mut pages = session.client.tail(tail, &RequestOptions::default());
    let mut exported = 0;
    while pages.next_position() <= last
        && let Some(page) = pages.next()
    {
        let page = page.map_err(|error| interrupted(error, shard, pages.next_position()))?;
        for entry in page.entries.iter().take_while(|entry| entry.position.position <= last) {
            output.object(&EntryJson::new(entry))?;
            exported += 1;
        }
        bar.set_position(done + page.next_position.saturating_sub(1).min(last));
    }
    Ok(exported)
}

/// A shard's state.
fn shard_status(session: &Session, shard: u16) -> Result<ShardStatus, Failure> {
    let shards = session.client.status(&RequestOptions::default()).wait()?.value.shards;
    let last = shards.len().saturating_sub(1);
    shards.into_iter().find(|status| status.shard == shard).ok_or_else(|| {
        ClientError::Refused(ServerError {
            code: ErrorCode::BadRequest,
            outcome: ErrorOutcome::Definite,
            message: format!("there is no shard {shard}; the ledger has shards 0 to {last}"),
            retry_after_ms: 0,
            registered_id: None,
        })
        .into()
    })
}
