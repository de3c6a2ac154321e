//! Events that were recorded, in the form that `claimctl import` plays.

use claim_protocol::{EVENT_KEY_BYTES_MAX, METADATA_BYTES_MAX};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What is left of an event key's bytes for saying which time it is played.
const LAP_BYTES: usize = 8;

/// A line of a file.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Line {
    Claim {
        corpus: String,
        occurred_at: i64,
        event_key: String,
        category: String,
        owning_corpus: String,
        hosting_corpus: String,
        size: usize,
    },
    Reference {
        corpus: String,
        to_latest_of: String,
    },
    /// What changes the state of a row.
    #[serde(other)]
    Other,
}

/// Corpora are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Claim(Claim),
    /// To the latest row of another corpus.
    Reference {
        corpus: usize,
        of: usize,
    },
}

/// A claim as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub corpus: usize,
    pub occurred_at_us: i64,
    pub event_key: String,
    pub category: String,
    pub owning_corpus: String,
    pub hosting_corpus: String,
    pub metadata_bytes: usize,
}

impl Event {
    /// Whose it is.
    pub fn corpus(&self) -> usize {
        match self {
            Event::Claim(claim) => claim.corpus,
            Event::Reference { corpus, .. } => *corpus,
        }
    }
}

/// Whether bytes are events, and no description of a workload.
pub fn are_events(bytes: &[u8]) -> bool {
    bytes.starts_with(&GZIP) || bytes.first() == Some(&b'{')
}

/// Events in their order; at least one is a claim. Retractions and reactivations are left out, and metadata beyond the protocol's
/// bound is cut, as an import does.
#[derive(Debug)]
pub struct Events {
    events: Vec<Event>,
    corpora: Vec<String>,
}

impl Events {
    /// From a file; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Events, String> {
        let reader: Box<dyn Read + '_> =
            if bytes.starts_with(&GZIP) { Box::new(MultiGzDecoder::new(bytes)) } else { Box::new(bytes) };
        let (mut events, mut corpora, mut numbers) = (Vec::new(), Vec::new(), HashMap::new());
        let mut number_of = |name: String| {
            *numbers.entry(name).or_insert_with_key(|name| {
                corpora.push(name.clone());
                corpora.len() - 1
            })
        };
        for (number, line) in BufReader::new(reader).lines().enumerate() {
            let at = |error: &dyn std::fmt::Display| format!("line {}: {error}", number + 1);
            let line = line.map_err(|error| at(&error))?;
            if line.trim().is_empty() {
                continue;
            }
            match serde_json::from_str(&line).map_err(|error| at(&error))? {
                Line::Claim { event_key, .. } if event_key.len() > EVENT_KEY_BYTES_MAX - LAP_BYTES => {
                    let most = EVENT_KEY_BYTES_MAX - LAP_BYTES;
                    return Err(at(&format_args!("an event key to be played has at most {most} bytes")));
                }
                Line::Claim { corpus, occurred_at, event_key, category, owning_corpus, hosting_corpus, size } => {
                    events.push(Event::Claim(Claim {
                        corpus: number_of(corpus),
                        occurred_at_us: occurred_at.saturating_mul(1_000_000),
                        event_key,
                        category,
                        owning_corpus,
                        hosting_corpus,
                        metadata_bytes: size.min(METADATA_BYTES_MAX),
                    }));
                }
                Line::Reference { corpus, to_latest_of } => {
                    events.push(Event::Reference { corpus: number_of(corpus), of: number_of(to_latest_of) });
                }
                Line::Other => {}
            }
        }
        if !events.iter().any(|event| matches!(event, Event::Claim(_))) {
            return Err("there is no claim in it".to_owned());
        }
        Ok(Events { events, corpora })
    }

    /// Names, by number.
    pub fn corpora(&self) -> &[String] {
        &self.corpora
    }

    /// All of them, in their order.
    pub fn all(&self) -> &[Event] {
        &self.events
    }

    /// What is in it.
    pub fn describe(&self) -> String {
        let claims = self.events.iter().filter(|event| matches!(event, Event::Claim(_))).count();
        format!("{claims} claims and {} references of {} corpora\n", self.events.len() - claims, self.corpora.len())
    }
}
