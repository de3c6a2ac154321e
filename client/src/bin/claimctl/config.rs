//! The configuration in effect.

use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;
use crate::time::rfc3339;
use claim_client::RequestOptions;
use serde::Serialize;

/// A configuration in JSON.
#[derive(Debug, Serialize)]
struct ConfigurationJson<'a> {
    toml: &'a str,
    at: String,
    uid: u32,
    shard: u16,
    position: u64,
}

pub fn show(session: &Session, output: &mut Output) -> Result<(), Failure> {
    let found = session.client.configuration(&RequestOptions::default()).wait()?.value;
    let at = rfc3339(found.at_us);
    if output.is_json() {
        let (shard, position) = (found.position.shard, found.position.position);
        return output.object(&ConfigurationJson { toml: &found.toml, at, uid: found.uid, shard, position });
    }
    // A comment of the format itself, so that the output is a configuration again.
    output.line(format_args!("# in effect since {at}, set by uid {}, logged at {}", found.uid, found.position))?;
    output.text(found.toml.trim_end())
}
