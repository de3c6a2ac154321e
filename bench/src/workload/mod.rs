//! Workloads as data: what is asked for and in which shares, of which corpora, and how large claims are.

mod mixed;
mod weights;

pub use mixed::Mixed;

use crate::claims::Shape;
use crate::error::BenchError;
use serde::Deserialize;
use std::path::Path;
use weights::Weights;

/// The workloads that come with the program: names and files.
const EMBEDDED: [(&str, &str); 3] = [
    ("metadata", include_str!("../../workloads/metadata.toml")),
    ("mixed", include_str!("../../workloads/mixed.toml")),
    ("skewed", include_str!("../../workloads/skewed.toml")),
];

/// Corpora that a workload may have: a ledger has room for more, but each is onboarded one by one.
const CORPORA_MAX: usize = 1000;

/// Beyond it, nothing is left for any but the first corpus.
const ZIPF_EXPONENT_MAX: f64 = 10.0;

/// What a file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mix: Mix,
    corpora: Corpora,
    claims: Claims,
}

/// Shares of the requests; their sum is the whole.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mix {
    claims: f64,
    #[serde(default)]
    references: f64,
    #[serde(default)]
    lookups: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpora {
    count: usize,
    /// 0: all alike.
    #[serde(default)]
    zipf_exponent: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    /// Claims per request.
    #[serde(default = "one")]
    batch: usize,
    metadata: Vec<Metadata>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    bytes: usize,
    #[serde(default = "whole")]
    weight: f64,
}

fn one() -> usize {
    1
}

fn whole() -> f64 {
    1.0
}

/// One kind of request of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Claim,
    Reference,
    Lookup,
}

/// A workload that was read and checked.
#[derive(Debug)]
pub struct Workload {
    /// Its embedded name, or its file's.
    pub name: String,
    /// What it was read from.
    pub text: String,
    /// Claims per request, and the longest metadata.
    pub shape: Shape,
    kinds: Weights<Kind>,
    /// Numbers of corpora.
    corpora: Weights<usize>,
    metadata_bytes: Weights<usize>,
}

impl Workload {
    /// The embedded workload of this name, or the one in this file.
    pub fn find(name: &str) -> Result<Self, BenchError> {
        if let Some((name, text)) = EMBEDDED.iter().find(|(embedded, _)| *embedded == name) {
            return Workload::parse(name, text);
        }
        let text = std::fs::read_to_string(name).map_err(|error| {
            let names: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
            BenchError::Usage(format!("no workload {name}: {error}; name a file, or one of {}", names.join(", ")))
        })?;
        let stem = Path::new(name).file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into());
        Workload::parse(&stem, &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, BenchError> {
        let refuse = |found: String| BenchError::Usage(format!("the workload {name} is wrong: {found}"));
        let File { mix, corpora, claims } = toml::from_str(text).map_err(|error| refuse(error.to_string()))?;
        if !(1..=CORPORA_MAX).contains(&corpora.count) {
            return Err(refuse(format!("corpora.count is {}, not 1 to {CORPORA_MAX}", corpora.count)));
        }
        if !(0.0..=ZIPF_EXPONENT_MAX).contains(&corpora.zipf_exponent) {
            let found = format!("corpora.zipf_exponent is {}, not 0 to {ZIPF_EXPONENT_MAX}", corpora.zipf_exponent);
            return Err(refuse(found));
        }
        if mix.references > 0.0 && corpora.count < 2 {
            return Err(refuse(
                "references go to rows of other corpora: corpora.count has to be at least 2".to_owned(),
            ));
        }
        if mix.claims.is_nan() || mix.claims <= 0.0 {
            return Err(refuse(
                "mix.claims has to be more than 0: what is referred to and looked up was claimed".to_owned(),
            ));
        }
        let longest = claims.metadata.iter().map(|size| size.bytes).max().unwrap_or(0);
        let shape = Shape { batch: claims.batch, metadata_bytes: longest };
        shape.check().map_err(|error| refuse(error.to_string()))?;
        let kinds = [(Kind::Claim, mix.claims), (Kind::Reference, mix.references), (Kind::Lookup, mix.lookups)];
        let zipf = |number: usize| (number, ((number + 1) as f64).powf(-corpora.zipf_exponent));
        let weights = |what: &str| {
            let sentence = format!("the weights of {what} have to be numbers from 0 on, with a sum above 0");
            move || refuse(sentence)
        };
        Ok(Workload {
            name: name.to_owned(),
            text: text.to_owned(),
            shape,
            kinds: Weights::new(kinds.into_iter()).ok_or_else(weights("mix"))?,
            corpora: Weights::new((0..corpora.count).map(zipf)).ok_or_else(weights("corpora"))?,
            metadata_bytes: Weights::new(claims.metadata.iter().map(|size| (size.bytes, size.weight)))
                .ok_or_else(weights("claims.metadata"))?,
        })
    }

    /// Corpora that it needs.
    pub fn corpora(&self) -> usize {
        self.corpora.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_the_program_is_right() {
        for (name, _) in EMBEDDED {
            let workload = Workload::find(name).expect("it is embedded");
            assert_eq!(workload.name, name);
        }
        let mixed = Workload::find("mixed").expect("it is embedded");
        assert_eq!((mixed.corpora(), mixed.shape.batch), (16, 1));
        assert_eq!(Workload::find("metadata").expect("it is embedded").shape.metadata_bytes, 65_536);
    }

    #[test]
    fn files_are_read_and_what_is_wrong_is_named() {
        let check = |text: &str, expected: &str| {
            let error = Workload::parse("mine", text).expect_err("it is wrong").to_string();
            assert!(error.starts_with("the workload mine is wrong") && error.contains(expected), "{error}");
        };
        let with = |mix: &str, corpora: &str, claims: &str| {
            format!("[mix]\n{mix}\n[corpora]\n{corpora}\n[claims]\n{claims}\n")
        };
        let sizes = "metadata = [{ bytes = 16 }]";
        check(&with("claims = 1\nscans = 1", "count = 1", sizes), "scans");
        check(&with("claims = 0\nlookups = 1", "count = 1", sizes), "mix.claims");
        check(&with("claims = 1\nlookups = -1", "count = 1", sizes), "weights of mix");
        check(&with("claims = 1\nreferences = 1", "count = 1", sizes), "at least 2");
        check(&with("claims = 1", "count = 2\nzipf_exponent = nan", sizes), "zipf_exponent is NaN");
        check(&with("claims = 1", "count = 0", sizes), "corpora.count is 0");
        check(&with("claims = 1", "count = 1", "metadata = [{ bytes = 70000 }]"), "at most 65536");
        check(&with("claims = 1", "count = 1", "metadata = []"), "weights of claims.metadata");
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("mine.toml");
        std::fs::write(&path, with("claims = 1", "count = 3", sizes)).expect("our own directory");
        let workload = Workload::find(&path.display().to_string()).expect("it is right");
        assert_eq!((workload.name.as_str(), workload.corpora()), ("mine", 3));
        let error = Workload::find("nonexistent").expect_err("there is none").to_string();
        assert!(error.contains("metadata, mixed, skewed"), "{error}");
    }
}
