//! A client beside the load, which says exactly what it got.

use super::stage::{PATIENCE, Stage};
use crate::load;
use crate::trace::{Mark, Recorder, Sent, SentItem};
use claim_client::{
    ClaimItem, Claimed, Client, ClientError, ClientOptions, ErrorCode, RequestOptions, Row, ShardStatus, UnknownCause,
    Uuid, new_key,
};
use std::time::Duration;

/// Metadata of a claim that has to be taken.
pub const SMALL_BYTES: u32 = 100;

/// See the module.
pub struct Probe<'a> {
    client: Client,
    stage: &'a Stage<'a>,
    /// By shard: a corpus there.
    corpora: Vec<String>,
}

impl<'a> Probe<'a> {
    pub fn new(stage: &'a Stage<'a>) -> Result<Probe<'a>, String> {
        let options = ClientOptions { attempts_max: 1, deadline: PATIENCE, ..ClientOptions::default() };
        let client = Client::connect_with(&stage.socket, options).map_err(|e| e.to_string())?;
        let all = client.corpora(&RequestOptions::default()).wait().map_err(|e| format!("corpora: {e}"))?.value;
        let on = |shard: usize| {
            let corpus = all.iter().find(|corpus| usize::from(corpus.shard) == shard);
            corpus.map(|corpus| corpus.name.clone()).ok_or_else(|| format!("no corpus is on shard {shard}"))
        };
        Ok(Probe { corpora: vec![on(0)?, on(1)?], client, stage })
    }

    pub fn try_claim(&self, shard: usize, deadline: Option<Duration>, bytes: u32) -> Result<Claimed, ClientError> {
        let key = new_key(None);
        let event_key = format!("probe-{key}");
        let item = SentItem { event_key: event_key.clone(), metadata_bytes: bytes };
        let operation = Sent::Claim { corpus: self.corpora[shard].clone(), items: vec![item] };
        self.stage.shared.mark(Mark::Sent { key: key.as_u128(), operation });
        let metadata = load::metadata(&event_key, bytes);
        let item = ClaimItem {
            event_key: &event_key,
            occurred_at_us: 1,
            owning_corpus: "",
            hosting_corpus: "",
            category: "probe",
            taxonomy_version: 1,
            metadata: &metadata,
        };
        let options =
            RequestOptions { deadline, idempotency_key: Some(key), retry_overload: false, ..RequestOptions::default() };
        let answer = self.client.claim(&self.corpora[shard], &item, &options).wait();
        let mark = match &answer {
            Ok(claimed) => Some(Mark::Acknowledged {
                key: key.as_u128(),
                item: 0,
                event_id: claimed.event_id.as_u128(),
                sequence: claimed.claim_sequence,
            }),
            Err(error) => {
                self.stage.memory.count(error);
                matches!(error, ClientError::Refused(_)).then_some(Mark::Refused { key: key.as_u128() })
            }
        };
        mark.into_iter().for_each(|mark| self.stage.shared.mark(mark));
        answer.map(|claimed| claimed.value)
    }

    /// A claim that has to succeed, once the log takes it.
    pub fn claim_on(&self, shard: usize) -> Result<Uuid, String> {
        let mut event_id = None;
        self.stage.until("a claim is taken", || match self.try_claim(shard, None, SMALL_BYTES) {
            Ok(claimed) => {
                event_id = Some(claimed.event_id);
                Ok(true)
            }
            Err(ClientError::Refused(error)) if error.code == ErrorCode::Overloaded => Ok(false),
            Err(error) => Err(format!("a claim on shard {shard}: {error}")),
        })?;
        Ok(event_id.expect("a claim was taken"))
    }

    /// The answer has to leave the outcome open, with this code.
    pub fn expect_open(&self, answer: Result<Claimed, ClientError>, code: ErrorCode) -> Result<(), String> {
        match answer {
            Err(ClientError::UnknownOutcome { code: UnknownCause::Server(found), .. }) if found == code => Ok(()),
            other => Err(format!("where {} with an open outcome is due: {other:?}", code.name())),
        }
    }

    pub fn row(&self, event_id: Uuid, deadline: Option<Duration>) -> Result<Row, ClientError> {
        let answer = self.client.lookup(event_id, &RequestOptions { deadline, ..RequestOptions::default() }).wait();
        answer.inspect_err(|error| self.stage.memory.count(error)).map(|row| row.value)
    }

    /// A lookup has to find the row.
    pub fn is_row(&self, event_id: Uuid) -> Result<(), String> {
        match self.row(event_id, None) {
            Ok(row) if row.event_id == event_id => Ok(()),
            other => Err(format!("the lookup of {event_id} gives {other:?}")),
        }
    }

    pub fn status(&self, shard: usize) -> Result<ShardStatus, String> {
        let report = self.client.status(&RequestOptions::default()).wait().map_err(|e| format!("status: {e}"))?.value;
        let found = report.shards.into_iter().find(|status| usize::from(status.shard) == shard);
        found.ok_or_else(|| format!("the status has no shard {shard}"))
    }
}
