//! Sends the events of a file in an order that each shard sees as the file's.

use crate::client::Client;
use crate::error::ClientError;
use crate::import::event::{Event, EventKind, derived_key, metadata};
use crate::import::report::{ImportFailure, ImportReport};
use crate::import::{ImportObserver, ImportOptions, Progress};
use crate::options::RequestOptions;
use crate::pending::{Answer, Pending};
use claim_protocol::{ClaimItem, Claimed, CorpusInfo, ErrorCode, ReasonCode};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The pause before an event is sent again, beside what the daemon advises; it doubles with each time.
const RESEND_PAUSE: Duration = Duration::from_millis(5);
/// That pause, at most.
const RESEND_PAUSE_MAX: Duration = Duration::from_millis(320);
/// Why the corpora of a file are there.
const ONBOARD_NOTES: &str = "onboarded by an import";

/// An import under way.
pub(crate) struct Player<'a> {
    client: &'a Client,
    options: &'a ImportOptions,
    observer: &'a mut dyn ImportObserver,
    corpora: HashMap<String, Corpus>,
    /// By shard: what is sent and not answered, in the order of sending.
    under_way: BTreeMap<u16, VecDeque<UnderWay>>,
    report: ImportReport,
    /// When the ledger last took something, or the import began.
    last_taken: Instant,
    /// How often an event occurred in the present second, by its key were it the first.
    present_second: (i64, HashMap<Uuid, u32>),
    /// Scratch space.
    metadata: Vec<u8>,
}

/// A corpus, as far as the file has told.
#[derive(Debug, Default)]
struct Corpus {
    shard: u16,
    /// By `ref`: the place among the corpus's claims, and the id once it is acknowledged.
    claims: HashMap<String, Claim>,
    /// Canonical rows by their place; the last is the latest.
    canonical: BTreeMap<usize, Uuid>,
}

#[derive(Debug, Clone, Copy)]
enum Claim {
    UnderWay,
    Acknowledged(usize, Uuid),
    Refused,
}

/// An event that was sent, with all that it takes to send it again.
struct UnderWay {
    event: Event,
    key: Uuid,
    /// The row that a retraction or reactivation is about.
    row: Option<(usize, Uuid)>,
    /// Place of a claim among its corpus's claims.
    place: usize,
    resends: u32,
    pending: Request,
}

enum Request {
    Claim(Pending<Claimed>),
    Change(Pending<i64>),
}

impl<'a> Player<'a> {
    pub fn new(client: &'a Client, options: &'a ImportOptions, observer: &'a mut dyn ImportObserver) -> Self {
        Player {
            client,
            options,
            observer,
            corpora: HashMap::new(),
            under_way: BTreeMap::new(),
            report: ImportReport::new(),
            last_taken: Instant::now(),
            present_second: (0, HashMap::new()),
            metadata: Vec::new(),
        }
    }

    pub fn into_report(self) -> ImportReport {
        self.report
    }

    pub fn progress(&mut self, progress: Progress) {
        self.observer.progress(progress);
    }

    /// Corpora that are onboarded already are not onboarded again.
    pub fn learn_registry(&mut self) -> Result<(), ImportFailure> {
        let corpora = self.client.corpora(&RequestOptions::default()).wait()?;
        corpora.value.iter().for_each(|corpus| self.learn(corpus));
        Ok(())
    }

    fn learn(&mut self, corpus: &CorpusInfo) {
        let learnt = Corpus { shard: corpus.shard, ..Corpus::default() };
        self.corpora.insert(corpus.name.clone(), learnt);
    }

    /// Sends one event, or counts it as refused where the file alone says that it will be.
    pub fn play(&mut self, event: Event) -> Result<(), ImportFailure> {
        if !self.corpora.contains_key(&event.corpus) && !self.onboard(&event)? {
            return Ok(());
        }
        let key = self.key(&event);
        match &event.kind {
            EventKind::Claim { reference, .. } => {
                let corpus = self.corpora.get_mut(&event.corpus).expect("onboarded above");
                let place = corpus.claims.len();
                corpus.claims.insert(reference.clone(), Claim::UnderWay);
                self.send(event, key, None, place, 0)
            }
            EventKind::Retract { reference, .. } | EventKind::Reactivate { reference, .. } => {
                match self.row(&event.corpus, reference)? {
                    Some(row) => self.send(event, key, Some(row), 0, 0),
                    None => {
                        let why = &"no such claim before it was acknowledged";
                        self.report.refuse(ErrorCode::NotVisible, &event, why);
                        Ok(())
                    }
                }
            }
            EventKind::Reference { to_latest_of } => {
                // It concerns two corpora, perhaps of two shards, and which row is the latest depends on all before.
                self.settle_all()?;
                self.refer(&event, key, to_latest_of)
            }
        }
    }

    /// Onboards the event's corpus; `false` when that was refused, and the event with it.
    fn onboard(&mut self, event: &Event) -> Result<bool, ImportFailure> {
        self.settle_all()?;
        let key = derived_key(event.at_us(), "onboard", &event.corpus, "", 0);
        let options = self.request_options(event, key, ONBOARD_NOTES);
        let client = self.client;
        let corpus = self.ask_alone(event, || client.onboard(&event.corpus, ONBOARD_NOTES, &options))?;
        if let Some(corpus) = &corpus {
            self.learn(&corpus.value);
        }
        Ok(corpus.is_some())
    }

    /// Sends a request that nothing else is under way beside, until it is answered; `None` when it was refused, and counted.
    fn ask_alone<T>(
        &mut self,
        event: &Event,
        ask: impl Fn() -> Pending<T>,
    ) -> Result<Option<Answer<T>>, ImportFailure> {
        let mut resends = 0;
        loop {
            match ask().wait() {
                Ok(answer) => {
                    self.last_taken = Instant::now();
                    return Ok(Some(answer));
                }
                Err(error) => match self.verdict(&error, resends) {
                    Verdict::Again(pause) => thread::sleep(pause),
                    Verdict::Refused(code) => {
                        self.report.refuse(code, event, &error);
                        return Ok(None);
                    }
                    Verdict::End => return Err(error.into()),
                },
            }
            resends += 1;
        }
    }

    /// The key of an event. Events that are alike in all but their order, as when a corpus refers to another one twice in a
    /// second, get different ones.
    fn key(&mut self, event: &Event) -> Uuid {
        if self.present_second.0 != event.at {
            self.present_second = (event.at, HashMap::new());
        }
        let occurrence = self.present_second.1.entry(event.key(0)).or_default();
        *occurrence += 1;
        event.key(*occurrence - 1)
    }

    fn refer(&mut self, event: &Event, key: Uuid, to: &str) -> Result<(), ImportFailure> {
        let latest = self.corpora.get(to).and_then(|corpus| corpus.canonical.last_key_value());
        let Some((_, &event_id)) = latest else {
            self.report.refuse(ErrorCode::NotVisible, event, &"that corpus has no canonical row then");
            return Ok(());
        };
        let options = self.request_options(event, key, "");
        let client = self.client;
        if let Some(answer) = self.ask_alone(event, || client.reference(&event.corpus, event_id, &options))? {
            self.report.referenced += 1;
            self.report.record(answer.elapsed);
        }
        Ok(())
    }

    /// The row of an earlier claim, waiting for its answer if it is under way.
    fn row(&mut self, corpus: &str, reference: &str) -> Result<Option<(usize, Uuid)>, ImportFailure> {
        loop {
            let corpus = &self.corpora[corpus];
            match corpus.claims.get(reference) {
                None | Some(Claim::Refused) => return Ok(None),
                Some(Claim::Acknowledged(place, event_id)) => return Ok(Some((*place, *event_id))),
                Some(Claim::UnderWay) => self.settle_first(corpus.shard)?,
            }
        }
    }

    /// Sends an event to its shard, after room was made in the shard's window.
    fn send(
        &mut self,
        event: Event,
        key: Uuid,
        row: Option<(usize, Uuid)>,
        place: usize,
        resends: u32,
    ) -> Result<(), ImportFailure> {
        let shard = self.corpora[&event.corpus].shard;
        while self.under_way.get(&shard).is_some_and(|events| events.len() >= self.options.window.max(1)) {
            self.settle_first(shard)?;
        }
        let pending = self.request(&event, key, row);
        self.under_way.entry(shard).or_default().push_back(UnderWay { event, key, row, place, resends, pending });
        Ok(())
    }

    fn request(&mut self, event: &Event, key: Uuid, row: Option<(usize, Uuid)>) -> Request {
        let rationale = match &event.kind {
            EventKind::Retract { reason, .. } | EventKind::Reactivate { reason, .. } => reason,
            EventKind::Claim { .. } | EventKind::Reference { .. } => "",
        };
        // A request that is sent again by itself would overtake: the player does it, in order.
        let options = RequestOptions { retry_overload: false, ..self.request_options(event, key, rationale) };
        match (&event.kind, row) {
            (EventKind::Retract { .. }, Some((_, row))) => {
                Request::Change(self.client.retract(&event.corpus, row, ReasonCode::Other, &options))
            }
            (EventKind::Reactivate { .. }, Some((_, row))) => Request::Change(self.client.reactivate(row, &options)),
            (
                EventKind::Claim { reference, occurred_at, event_key, category, owning_corpus, hosting_corpus, size },
                _,
            ) => {
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
                Request::Claim(self.client.claim(&event.corpus, &item, &options))
            }
            _ => unreachable!("only events with their rows are sent, and references one at a time"),
        }
    }

    fn request_options(&self, event: &Event, key: Uuid, rationale: &str) -> RequestOptions {
        RequestOptions {
            deadline: self.options.deadline,
            idempotency_key: Some(key),
            rationale: rationale.to_owned(),
            at_us: Some(event.at_us()),
            ..RequestOptions::default()
        }
    }

    // ---- answers ----

    /// Waits until everything that was sent is answered.
    pub fn settle_all(&mut self) -> Result<(), ImportFailure> {
        let shards: Vec<u16> = self.under_way.keys().copied().collect();
        for shard in shards {
            while self.under_way.get(&shard).is_some_and(|events| !events.is_empty()) {
                self.settle_first(shard)?;
            }
        }
        Ok(())
    }

    /// Waits for the oldest event of a shard. If it was refused for a reason that passes, everything behind it is waited
    /// for, too, and what was refused is sent again in its order.
    fn settle_first(&mut self, shard: u16) -> Result<(), ImportFailure> {
        let Some(first) = self.under_way.get_mut(&shard).and_then(VecDeque::pop_front) else {
            return Ok(());
        };
        let Some(again) = self.settle(first)? else {
            return Ok(());
        };
        let mut pause = again.pause;
        let mut refused = vec![again];
        while let Some(next) = self.under_way.get_mut(&shard).and_then(VecDeque::pop_front) {
            if let Some(again) = self.settle(next)? {
                pause = pause.max(again.pause);
                refused.push(again);
            }
        }
        thread::sleep(pause);
        for Again { event, key, row, place, resends, .. } in refused {
            // They fitted into the window before, so nothing is waited for here.
            self.send(event, key, row, place, resends)?;
        }
        Ok(())
    }

    /// Waits for one event and counts it; gives it back when it has to be sent again.
    fn settle(&mut self, under_way: UnderWay) -> Result<Option<Again>, ImportFailure> {
        let UnderWay { event, key, row, place, resends, pending } = under_way;
        let outcome = match pending {
            Request::Claim(pending) => pending.wait().map(|answer| self.claimed(&event, place, &answer)),
            Request::Change(pending) => pending.wait().map(|answer| self.changed(&event, row, &answer)),
        };
        let Err(error) = outcome else {
            return Ok(None);
        };
        match self.verdict(&error, resends) {
            Verdict::Again(pause) => return Ok(Some(Again { event, key, row, place, resends: resends + 1, pause })),
            Verdict::Refused(code) => self.report.refuse(code, &event, &error),
            Verdict::End => return Err(error.into()),
        }
        if let EventKind::Claim { reference, .. } = event.kind {
            self.corpus(&event.corpus).claims.insert(reference, Claim::Refused);
        }
        Ok(None)
    }

    /// What becomes of an event that was sent again `resends` times, and then met this.
    fn verdict(&mut self, error: &ClientError, resends: u32) -> Verdict {
        let ClientError::Refused(refusal) = error else {
            return Verdict::End;
        };
        let is_patient = self.last_taken.elapsed() < self.options.patience;
        match refusal.code {
            ErrorCode::Overloaded | ErrorCode::NoSpace if is_patient => {
                self.report.sent_again += 1;
                let advised = Duration::from_millis(u64::from(refusal.retry_after_ms));
                Verdict::Again(advised + (RESEND_PAUSE * (1 << resends.min(10))).min(RESEND_PAUSE_MAX))
            }
            // These say how the daemon is. The next events would meet the same, and be missing from the ledger.
            ErrorCode::Overloaded
            | ErrorCode::NoSpace
            | ErrorCode::Deadline
            | ErrorCode::ClockSuspect
            | ErrorCode::ShardFailed
            | ErrorCode::ShuttingDown => Verdict::End,
            // The time of a replay ledger, and with it the minute of a cap, stands still while nothing is sent.
            code => Verdict::Refused(code),
        }
    }

    fn claimed(&mut self, event: &Event, place: usize, answer: &Answer<Claimed>) {
        self.last_taken = Instant::now();
        let EventKind::Claim { reference, .. } = &event.kind else { unreachable!("a claim was sent") };
        let corpus = self.corpus(&event.corpus);
        corpus.claims.insert(reference.clone(), Claim::Acknowledged(place, answer.event_id));
        corpus.canonical.insert(place, answer.event_id);
        self.report.claimed += 1;
        self.report.record(answer.elapsed);
        self.observer.acknowledged(&event.corpus, answer.event_id, reference);
    }

    fn changed(&mut self, event: &Event, row: Option<(usize, Uuid)>, answer: &Answer<i64>) {
        self.last_taken = Instant::now();
        let (place, event_id) = row.expect("a change is sent with its row");
        let corpus = self.corpus(&event.corpus);
        if matches!(event.kind, EventKind::Retract { .. }) {
            corpus.canonical.remove(&place);
            self.report.retracted += 1;
        } else {
            corpus.canonical.insert(place, event_id);
            self.report.reactivated += 1;
        }
        self.report.record(answer.elapsed);
    }

    fn corpus(&mut self, name: &str) -> &mut Corpus {
        self.corpora.get_mut(name).expect("a corpus is onboarded before its events are sent")
    }
}

/// What becomes of an event whose request failed.
enum Verdict {
    /// It is sent again after a pause.
    Again(Duration),
    /// It counts as refused, under this code.
    Refused(ErrorCode),
    /// The import ends here.
    End,
}

/// An event to be sent again.
struct Again {
    event: Event,
    key: Uuid,
    row: Option<(usize, Uuid)>,
    place: usize,
    resends: u32,
    pause: Duration,
}
