//! A workload that is drawn: what is asked for in which shares, of which corpora, and how large claims are.

use super::weights::Weights;
use crate::claims::Shape;
use serde::Deserialize;

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
pub enum Kind {
    Claim,
    Reference,
    Lookup,
}

/// See the module; read and checked.
#[derive(Debug)]
pub struct Drawn {
    /// Claims per request, and the longest metadata.
    pub shape: Shape,
    pub kinds: Weights<Kind>,
    /// Numbers of corpora.
    pub corpora: Weights<usize>,
    pub metadata_bytes: Weights<usize>,
}

impl Drawn {
    /// From the text of a file; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let File { mix, corpora, claims } = toml::from_str(text).map_err(|error| error.to_string())?;
        if !(1..=CORPORA_MAX).contains(&corpora.count) {
            return Err(format!("corpora.count is {}, not 1 to {CORPORA_MAX}", corpora.count));
        }
        if !(0.0..=ZIPF_EXPONENT_MAX).contains(&corpora.zipf_exponent) {
            return Err(format!("corpora.zipf_exponent is {}, not 0 to {ZIPF_EXPONENT_MAX}", corpora.zipf_exponent));
        }
        if mix.references > 0.0 && corpora.count < 2 {
            return Err("references go to rows of other corpora: corpora.count has to be at least 2".to_owned());
        }
        if mix.claims.is_nan() || mix.claims <= 0.0 {
            return Err("mix.claims has to be more than 0: what is referred to and looked up was claimed".to_owned());
        }
        let longest = claims.metadata.iter().map(|size| size.bytes).max().unwrap_or(0);
        let shape = Shape { batch: claims.batch, metadata_bytes: longest };
        shape.check().map_err(|error| error.to_string())?;
        let kinds = [(Kind::Claim, mix.claims), (Kind::Reference, mix.references), (Kind::Lookup, mix.lookups)];
        let zipf = |number: usize| (number, ((number + 1) as f64).powf(-corpora.zipf_exponent));
        let weights = |what: &str| {
            let sentence = format!("the weights of {what} have to be numbers from 0 on, with a sum above 0");
            move || sentence
        };
        Ok(Drawn {
            shape,
            kinds: Weights::new(kinds.into_iter()).ok_or_else(weights("mix"))?,
            corpora: Weights::new((0..corpora.count).map(zipf)).ok_or_else(weights("corpora"))?,
            metadata_bytes: Weights::new(claims.metadata.iter().map(|size| (size.bytes, size.weight)))
                .ok_or_else(weights("claims.metadata"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expected: &str| {
            let error = Drawn::parse(text).expect_err("it is wrong");
            assert!(error.contains(expected), "{error}");
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
        let drawn = Drawn::parse(&with("claims = 1", "count = 3", sizes)).expect("it is right");
        assert_eq!(drawn.corpora.len(), 3);
    }
}
