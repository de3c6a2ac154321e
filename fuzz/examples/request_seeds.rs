//! Writes a seed for each operation and each result into the folder named.

use claim_protocol::{Builder, LogPosition, Reply, Request, encode_reply, encode_request};
use samples::KEY;
use std::path::Path;

#[path = "../../protocol/tests/samples/mod.rs"]
mod samples;

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: request_seeds FOLDER");
        std::process::exit(2);
    };
    let folder = Path::new(&folder);
    for (n, operation) in samples::operations().into_iter().enumerate() {
        let request = Request {
            at_least: vec![LogPosition { shard: 1, position: 2 }],
            idempotency_key: Some(KEY),
            correlation_id: Some(KEY),
            rationale: "because",
            at_us: Some(5),
            deadline_ms: 9,
            ..Request::new(77, operation)
        };
        let mut stream = Vec::new();
        encode_request(&mut Builder::new(), &request, &mut stream).expect("fits");
        write(folder, &format!("request-{n:02}"), &stream)?;
    }
    for (n, result) in samples::results().into_iter().enumerate() {
        let reply = Reply { request_id: 7, positions: vec![LogPosition { shard: 0, position: 1 }], result };
        let mut stream = Vec::new();
        encode_reply(&mut Builder::new(), &reply, &mut stream).expect("fits");
        write(folder, &format!("reply-{n:02}"), &stream)?;
    }
    Ok(())
}

/// Twice: as the content of a frame, and as a stream of two frames after the byte that says how it is cut.
fn write(folder: &Path, name: &str, stream: &[u8]) -> std::io::Result<()> {
    std::fs::write(folder.join(name), &stream[claim_protocol::FRAME_PREFIX_BYTES..])?;
    let mut two = vec![100];
    two.extend_from_slice(stream);
    two.extend_from_slice(stream);
    std::fs::write(folder.join(format!("{name}-stream")), two)
}
