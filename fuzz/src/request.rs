//! Bytes as a peer may send them: a stream of frames, and the content of a frame.

use claim_protocol::frame::{FrameBuffer, split_frame};
use claim_protocol::{
    Builder, DecodeError, FRAME_BYTES_MAX, Reply, Request, decode_any, decode_any_reply, decode_reply, decode_request,
    encode_reply, encode_request,
};
use claim_translate as translate;
use uuid::Uuid;

/// No message of the decoder is longer: a peer can't make the daemon echo what it sent.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The input as a frame's content, and as a stream of frames that comes in pieces.
pub fn run(data: &[u8]) {
    content(data);
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = split(stream);
    let pieces = split_in_pieces(stream, usize::from(*piece) + 1);
    assert_eq!(whole, pieces, "a stream's frames depend on how it is cut");
    whole.0.iter().for_each(|frame| content(frame));
}

/// The frames of a stream, and whether it ends with one that is too long.
fn split(mut stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut frames = Vec::new();
    loop {
        match split_frame(stream) {
            Ok(Some((content, taken))) => {
                frames.push(content.to_vec());
                stream = &stream[taken..];
            }
            Ok(None) => return (frames, false),
            Err(error) => {
                assert!(error.bytes > FRAME_BYTES_MAX);
                return (frames, true);
            }
        }
    }
}

fn split_in_pieces(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let mut buffer = FrameBuffer::new();
    let mut frames = Vec::new();
    for bytes in stream.chunks(piece) {
        buffer.extend(bytes);
        loop {
            match buffer.next_frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

fn content(bytes: &[u8]) {
    // What is read in one pass is what the general way reads.
    assert_eq!(decode_request(bytes).ok(), decode_any(bytes).ok());
    assert_eq!(decode_reply(bytes).ok(), decode_any_reply(bytes).ok());
    match decode_request(bytes) {
        Ok(request) => {
            same_request(&request);
            translated(&request);
        }
        Err(error) => refused(&error),
    }
    match decode_reply(bytes) {
        Ok(reply) => same_reply(&reply),
        Err(error) => refused(&error),
    }
}

fn refused(error: &DecodeError) {
    assert!(error.message.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", error.message.len());
    assert!(!error.fatal || error.request_id == 0);
}

/// What fits a frame again means the same. What shares strings may be too long without the sharing.
fn same_request(request: &Request<'_>) {
    let mut stream = Vec::new();
    if encode_request(&mut Builder::new(), request, &mut stream).is_err() {
        return;
    }
    let (content, taken) = split_frame(&stream).expect("not too long").expect("whole");
    assert_eq!(taken, stream.len());
    assert_eq!(decode_request(content).as_ref(), Ok(request));
}

fn same_reply(reply: &Reply) {
    let mut stream = Vec::new();
    if encode_reply(&mut Builder::new(), reply, &mut stream).is_err() {
        return;
    }
    let (content, taken) = split_frame(&stream).expect("not too long").expect("whole");
    assert_eq!(taken, stream.len());
    assert_eq!(decode_reply(content).as_ref(), Ok(reply));
}

/// The daemon's translation to the engine's words: one operation, or a refusal.
fn translated(request: &Request<'_>) {
    let mut operations = 0;
    let is_here = |uuid: Uuid| uuid.as_u128() & 1 == 0;
    let refused = translate::with_operation(
        request,
        0,
        is_here,
        |_| Vec::new(),
        |operation| {
            operations += 1;
            assert_eq!(operation.is_mutation(), request.operation.is_mutating());
        },
    );
    assert_eq!(operations == 0, refused.is_err());
}
