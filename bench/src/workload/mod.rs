//! Workloads as data: a description of what is drawn, or events that are played.

mod drawn;
mod events;
mod mixed;
mod played;
mod weights;

use crate::error::BenchError;
use crate::random::Random;
use crate::session::bench_corpus;
use crate::work::Work;
use drawn::Drawn;
use events::Events;
pub use mixed::Mixed;
pub use played::Played;
use std::path::Path;
use std::sync::Arc;

/// The workloads that come with the program: names and files.
const EMBEDDED: [(&str, &[u8]); 4] = [
    ("metadata", include_bytes!("../../workloads/metadata.toml")),
    ("mixed", include_bytes!("../../workloads/mixed.toml")),
    ("sixteen-corpora", include_bytes!("../../../data/sixteen-corpora.ndjson.gz")),
    ("skewed", include_bytes!("../../workloads/skewed.toml")),
];

/// A workload that was read and checked.
#[derive(Debug)]
pub struct Workload {
    /// Its embedded name, or its file's.
    pub name: String,
    /// What it was read from, or, where that would be long, what is in it.
    pub text: String,
    asks: Asks,
}

#[derive(Debug)]
enum Asks {
    Drawn(Arc<Drawn>),
    Played(Arc<Events>),
}

/// The part of one connection in a row.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Requests outstanding.
    pub outstanding: usize,
    /// Which connection of its socket it is, …
    pub number: usize,
    /// … and of how many.
    pub of: usize,
}

impl Workload {
    /// The embedded workload of this name, or the one in this file: a description, or events.
    pub fn find(name: &str) -> Result<Self, BenchError> {
        if let Some((name, bytes)) = EMBEDDED.iter().find(|(embedded, _)| *embedded == name) {
            return Workload::parse(name, bytes);
        }
        let bytes = std::fs::read(name).map_err(|error| {
            let names: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
            BenchError::Usage(format!("no workload {name}: {error}; name a file, or one of {}", names.join(", ")))
        })?;
        let file = Path::new(name).file_name().map_or_else(|| name.to_owned(), |file| file.to_string_lossy().into());
        Workload::parse(file.split('.').next().unwrap_or(&file), &bytes)
    }

    /// A description is TOML, and begins neither as gzip nor as JSON does.
    fn parse(name: &str, bytes: &[u8]) -> Result<Self, BenchError> {
        let refuse = |found: String| BenchError::Usage(format!("the workload {name} is wrong: {found}"));
        let (text, asks) = if events::are_events(bytes) {
            let events = Events::parse(bytes).map_err(refuse)?;
            (events.describe(), Asks::Played(Arc::new(events)))
        } else {
            let text = std::str::from_utf8(bytes).map_err(|error| refuse(error.to_string()))?;
            (text.to_owned(), Asks::Drawn(Arc::new(Drawn::parse(text).map_err(refuse)?)))
        };
        Ok(Workload { name: name.to_owned(), text, asks })
    }

    /// The names of the corpora that it needs.
    pub fn corpora(&self) -> Vec<String> {
        match &self.asks {
            Asks::Drawn(drawn) => (0..drawn.corpora.len()).map(bench_corpus).collect(),
            Asks::Played(events) => events.corpora().to_vec(),
        }
    }

    /// Whether chance has a part in it.
    pub fn is_drawn(&self) -> bool {
        matches!(self.asks, Asks::Drawn(_))
    }

    /// Claims of each request.
    pub fn batch(&self) -> usize {
        match &self.asks {
            Asks::Drawn(drawn) => drawn.shape.batch,
            Asks::Played(_) => 1,
        }
    }

    /// What a connection asks for whose socket takes claims of the corpora of these numbers (not empty).
    pub fn work(&self, here: Vec<usize>, part: Part, random: Random) -> Result<Work, BenchError> {
        Ok(match &self.asks {
            Asks::Drawn(drawn) => {
                let names = Arc::new(self.corpora());
                Work::Mixed(Box::new(Mixed::new(drawn.clone(), names, here, part.outstanding, random)))
            }
            Asks::Played(events) => Work::Played(Box::new(Played::new(events.clone(), &here, part)?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_the_program_is_right() {
        for (name, _) in EMBEDDED {
            let workload = Workload::find(name).expect("it is embedded");
            assert_eq!((workload.name.as_str(), workload.batch()), (name, 1));
        }
        assert_eq!(Workload::find("mixed").expect("it is embedded").corpora().len(), 16);
        let played = Workload::find("sixteen-corpora").expect("it is embedded");
        assert_eq!(played.corpora().len(), 16);
        assert!(played.text.contains("41853 claims and 162 references of 16 corpora"), "{}", played.text);
    }

    #[test]
    fn files_are_read_and_what_is_wrong_is_named() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let find = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("our own directory");
            Workload::find(&path.display().to_string())
        };
        let description = "[mix]\nclaims = 1\n[corpora]\ncount = 3\n[claims]\nmetadata = [{ bytes = 16 }]\n";
        let workload = find("mine.toml", description).expect("it is right");
        assert_eq!((workload.name.as_str(), workload.corpora().len()), ("mine", 3));
        let claim = r#"{"op":"claim","corpus":"a","at":1,"ref":"x","occurred_at":1,"event_key":"k","category":"c",
            "owning_corpus":"a","hosting_corpus":"a","size":3}"#;
        let workload = find("events.ndjson", &claim.replace('\n', "")).expect("it is right");
        assert_eq!((workload.name.as_str(), workload.corpora()), ("events", vec!["a".to_owned()]));
        for (name, text, expected) in [
            ("a.toml", "[mix]\nclaims = 0", "the workload a is wrong"),
            ("b.ndjson", "{\"op\":1}", "line 1"),
            ("c.ndjson", r#"{"op":"reference","corpus":"a","at":1,"to_latest_of":"b"}"#, "no claim"),
        ] {
            let error = find(name, text).expect_err("it is wrong").to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = Workload::find("nonexistent").expect_err("there is none").to_string();
        assert!(error.contains("metadata, mixed, sixteen-corpora, skewed"), "{error}");
    }
}
