//! Bounds of what a request may say, checked before anything is decided.

use crate::command::{
    AT_LEAST_MAX, BATCH_ITEMS_MAX, Claim, EVENT_KEY_BYTES_MAX, METADATA_BYTES_MAX, NOTES_BYTES_MAX, Operation,
    RATIONALE_BYTES_MAX, Request, UNLESS_WITHIN_MAX_US,
};
use crate::corpus::{NAME_BYTES_MAX, is_corpus_name};
use crate::dispute::DISPUTE_RATIONALE_BYTES_MAX;
use crate::error::{Code, Refusal};
use crate::log::superblock::ClockMode;
use crate::shard::keys;
use crate::time::{DAY_US, TIME_US_MAX, rfc3339};

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadRequest, message)
}

/// What holds for every request.
pub fn request(request: &Request<'_>, mode: ClockMode) -> Result<(), Refusal> {
    if request.at_least.len() > AT_LEAST_MAX {
        return Err(bad(format!("at_least names {} positions; at most {AT_LEAST_MAX}", request.at_least.len())));
    }
    if !request.operation.is_mutation() {
        return Ok(());
    }
    if !keys::is_key(request.idempotency_key) {
        return Err(bad("the idempotency key is missing or no UUIDv7: make one when the operation is first meant"));
    }
    let is_about_a_dispute = matches!(
        request.operation,
        Operation::Dispute { .. }
            | Operation::Respond { .. }
            | Operation::Arbitrate { .. }
            | Operation::Escalate { .. }
    );
    let bytes_max = if is_about_a_dispute { DISPUTE_RATIONALE_BYTES_MAX } else { RATIONALE_BYTES_MAX };
    if request.rationale.len() > bytes_max {
        return Err(bad(format!("the rationale has {} bytes; at most {bytes_max}", request.rationale.len())));
    }
    let needs_reason = is_about_a_dispute
        || matches!(
            request.operation,
            Operation::Retract { .. }
                | Operation::Reactivate { .. }
                | Operation::Freeze { frozen: true, .. }
                | Operation::Hold { held: true, .. }
        );
    if needs_reason && request.rationale.trim().is_empty() {
        return Err(bad("the rationale is empty; this operation needs a reason"));
    }
    if request.rationale.contains(['\n', '\r']) {
        return Err(bad("the rationale is more than one line; write it as one"));
    }
    match (mode, request.at_us) {
        (ClockMode::Replay, None) => {
            return Err(bad("this is a replay ledger: a request of this kind carries its own time, `at`"));
        }
        (ClockMode::Wall, Some(_)) => {
            return Err(bad("this ledger runs on the wall clock: only a replay ledger takes `at`; leave it out"));
        }
        (ClockMode::Replay, Some(at)) if !(0..=TIME_US_MAX).contains(&at) => {
            return Err(bad("`at` is not between 1970 and 9998"));
        }
        _ => {}
    }
    match request.operation {
        Operation::Onboard { name, notes } => onboard(name, notes),
        Operation::Claim { items, .. } if items.is_empty() || items.len() > BATCH_ITEMS_MAX => {
            Err(bad(format!("the batch has {} items; 1 to {BATCH_ITEMS_MAX}", items.len())))
        }
        Operation::Claim { items, unless_within_us: Some(within_us), .. } => unless_within(items.len(), within_us),
        Operation::Reference { items, .. } if items.is_empty() || items.len() > BATCH_ITEMS_MAX => {
            Err(bad(format!("the batch has {} items; 1 to {BATCH_ITEMS_MAX}", items.len())))
        }
        _ => Ok(()),
    }
}

fn unless_within(items: usize, within_us: i64) -> Result<(), Refusal> {
    if items != 1 {
        return Err(bad(format!("a batch of {items} claims has no unless_registered_within: claim one by one")));
    }
    if !(0..=UNLESS_WITHIN_MAX_US).contains(&within_us) {
        return Err(bad(format!("unless_registered_within is {within_us} us; 0 to {UNLESS_WITHIN_MAX_US}")));
    }
    Ok(())
}

fn onboard(name: &str, notes: &str) -> Result<(), Refusal> {
    if !is_corpus_name(name) {
        return Err(bad(format!(
            "'{}' is no corpus name: 1 to 63 of a-z, 0-9 and -, starting with a letter or digit",
            shorten(name)
        )));
    }
    if notes.len() > NOTES_BYTES_MAX {
        return Err(bad(format!("the notes have {} bytes; at most {NOTES_BYTES_MAX}", notes.len())));
    }
    Ok(())
}

/// What holds for an item of a claim at its claim time.
pub fn claim(claim: &Claim<'_>, time_us: i64) -> Result<(), Refusal> {
    if !(1..=EVENT_KEY_BYTES_MAX).contains(&claim.event_key.len()) {
        return Err(bad(format!("event_key has {} bytes; 1 to {EVENT_KEY_BYTES_MAX}", claim.event_key.len())));
    }
    if !(1..=NAME_BYTES_MAX).contains(&claim.category.len()) {
        return Err(bad(format!("category has {} bytes; 1 to {NAME_BYTES_MAX}", claim.category.len())));
    }
    for (field, name) in [("owning_corpus", claim.owning_corpus), ("hosting_corpus", claim.hosting_corpus)] {
        if !name.is_empty() && !is_corpus_name(name) {
            return Err(bad(format!("{field} '{}' is no corpus name", shorten(name))));
        }
    }
    if claim.metadata.len() > METADATA_BYTES_MAX {
        return Err(bad(format!("metadata has {} bytes; at most {METADATA_BYTES_MAX}", claim.metadata.len())));
    }
    if claim.occurred_at_us < 0 || claim.occurred_at_us > time_us.saturating_add(DAY_US) {
        return Err(bad(format!(
            "occurred_at {} is not between 1970 and a day after the claim's time {}",
            rfc3339(claim.occurred_at_us),
            rfc3339(time_us)
        )));
    }
    Ok(())
}

/// Enough of a text to recognise it by, cut at a character.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
