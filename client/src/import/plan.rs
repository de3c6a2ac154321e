//! What an import would send, from the file alone.

use crate::import::event::{Event, EventKind, metadata};
use crate::import::{ImportObserver, PROGRESS_EVENTS, Source, SourceError};
use crate::job::Job;
use claim_protocol::{Builder, ClaimItem, ErrorCode, Operation, ReasonCode, Request};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Instant;
use uuid::Uuid;

/// What an import would send.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ImportPlan {
    /// Corpora of the file; those that are not there yet would be onboarded.
    pub corpora: u64,
    /// Claims.
    pub claims: u64,
    /// References.
    pub references: u64,
    /// Retractions.
    pub retractions: u64,
    /// Reactivations.
    pub reactivations: u64,
    /// Events that would be refused whatever the ledger holds, by code: `NOT_VISIBLE` those that name a claim or corpus
    /// that is not there, `BAD_REQUEST` those that exceed a bound.
    pub refused: BTreeMap<&'static str, u64>,
    /// The first of them, in one sentence.
    pub first_refused: Option<String>,
}

/// Why a file cannot be planned.
#[derive(Debug, thiserror::Error)]
#[error("event {event}: {error}")]
pub struct PlanError {
    /// The number of the last event that was read, from 1.
    pub event: u64,
    /// What is wrong with the file.
    pub error: SourceError,
}

/// Reads and checks the file at `path` as an import would, and sends nothing.
///
/// # Errors
/// The file cannot be read or is not in the format.
pub fn plan(path: &Path, observer: &mut dyn ImportObserver) -> Result<ImportPlan, PlanError> {
    let mut source = Source::open(path).map_err(|error| PlanError { event: 0, error })?;
    let mut planner = Planner::default();
    loop {
        match source.next_event() {
            Ok(Some(event)) => planner.event(&event, source.events()),
            Ok(None) => break,
            Err(error) => return Err(PlanError { event: source.events(), error }),
        }
        if source.events().is_multiple_of(PROGRESS_EVENTS) {
            observer.progress(source.progress());
        }
    }
    observer.progress(source.progress());
    Ok(ImportPlan { corpora: planner.corpora.len() as u64, ..planner.plan })
}

#[derive(Default)]
struct Planner {
    plan: ImportPlan,
    corpora: HashMap<String, Corpus>,
    /// Scratch space.
    builder: Builder,
    metadata: Vec<u8>,
}

/// A corpus's claims, as the file tells.
#[derive(Default)]
struct Corpus {
    /// By `ref`: the place among the corpus's claims.
    places: HashMap<String, usize>,
    /// Places of the canonical rows.
    canonical: BTreeSet<usize>,
}

impl Planner {
    fn event(&mut self, event: &Event, number: u64) {
        if let Err((code, message)) = self.check(event) {
            *self.plan.refused.entry(code.name()).or_default() += 1;
            self.plan.first_refused.get_or_insert_with(|| format!("event {number}: {message}"));
        }
    }

    /// Counts an event, or says why it would be refused.
    fn check(&mut self, event: &Event) -> Result<(), (ErrorCode, String)> {
        if !self.corpora.contains_key(&event.corpus) {
            check(&mut self.builder, event, Operation::Onboard { name: &event.corpus, notes: "" }, "")?;
            self.corpora.insert(event.corpus.clone(), Corpus::default());
        }
        match &event.kind {
            EventKind::Claim { reference, .. } => {
                self.claim(event)?;
                let corpus = self.corpora.get_mut(&event.corpus).expect("inserted above");
                let place = corpus.places.len();
                corpus.places.insert(reference.clone(), place);
                corpus.canonical.insert(place);
                self.plan.claims += 1;
            }
            EventKind::Retract { reference, reason } => {
                let place = self.place(event, reference)?;
                let reason_code = ReasonCode::Other;
                let operation = Operation::Retract { corpus: &event.corpus, event_id: Uuid::nil(), reason_code };
                check(&mut self.builder, event, operation, reason)?;
                self.corpora.get_mut(&event.corpus).expect("inserted above").canonical.remove(&place);
                self.plan.retractions += 1;
            }
            EventKind::Reactivate { reference, reason } => {
                let place = self.place(event, reference)?;
                check(&mut self.builder, event, Operation::Reactivate { event_id: Uuid::nil() }, reason)?;
                self.corpora.get_mut(&event.corpus).expect("inserted above").canonical.insert(place);
                self.plan.reactivations += 1;
            }
            EventKind::Reference { to_latest_of } => {
                if self.corpora.get(to_latest_of).is_none_or(|corpus| corpus.canonical.is_empty()) {
                    let message = format!("corpus {to_latest_of:?} has no registered row to refer to");
                    return Err((ErrorCode::NotVisible, message));
                }
                self.plan.references += 1;
            }
        }
        Ok(())
    }

    fn place(&self, event: &Event, reference: &str) -> Result<usize, (ErrorCode, String)> {
        self.corpora[&event.corpus].places.get(reference).copied().ok_or_else(|| {
            let message = format!("corpus {:?} has no earlier claim of ref {reference:?}", event.corpus);
            (ErrorCode::NotVisible, message)
        })
    }

    fn claim(&mut self, event: &Event) -> Result<(), (ErrorCode, String)> {
        let EventKind::Claim { reference, occurred_at, event_key, category, owning_corpus, hosting_corpus, size } =
            &event.kind
        else {
            unreachable!("a claim is checked")
        };
        metadata(reference, *size, &mut self.metadata);
        let item = ClaimItem {
            event_key,
            occurred_at_us: occurred_at.saturating_mul(1_000_000),
            owning_corpus,
            hosting_corpus,
            category,
            taxonomy_version: 0,
            metadata: &self.metadata,
        };
        let operation = Operation::Claim { corpus: &event.corpus, item, unless_registered_within_ms: 0 };
        check(&mut self.builder, event, operation, "")
    }
}

/// Makes the request as it would be sent, which finds what exceeds a bound.
fn check(
    builder: &mut Builder,
    event: &Event,
    operation: Operation<'_>,
    rationale: &str,
) -> Result<(), (ErrorCode, String)> {
    let request = Request { idempotency_key: Some(event.key(0)), rationale, ..Request::new(0, operation) };
    let made = Job::new(builder, &request, Instant::now(), false);
    made.map(|_| ()).map_err(|message| (ErrorCode::BadRequest, message))
}
