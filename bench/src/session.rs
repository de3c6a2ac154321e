//! The exchanges before a run, one at a time: greeting, and corpora to claim in.

use crate::error::BenchError;
use crate::keys::Keys;
use claim_protocol::{
    Builder, ClockMode, CorpusInfo, FrameBuffer, Operation, PROTOCOL_VERSION, Reply, ReplyResult, Request, ShardStatus,
    Welcome, decode_reply, encode_request,
};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a single answer is waited for.
const ANSWER_SECONDS: u64 = 10;

/// A blocking connection that has been welcomed.
pub struct Session {
    stream: UnixStream,
    incoming: FrameBuffer,
    builder: Builder,
    next_id: u64,
}

impl Session {
    /// Connects and greets.
    pub fn open(socket: &Path) -> Result<(Self, Welcome), BenchError> {
        let failed = |source| BenchError::Connect { socket: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS))).map_err(failed)?;
        let mut session = Session { stream, incoming: FrameBuffer::new(), builder: Builder::new(), next_id: 1 };
        let hello = Operation::Hello {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            client: concat!("claim-bench/", env!("CARGO_PKG_VERSION")),
        };
        match session.ask("greet", hello, None)?.result {
            ReplyResult::Welcome(welcome) => Ok((session, welcome)),
            other => Err(unexpected("a welcome", &other)),
        }
    }

    /// The corpora of these names, onboarded where they are not yet.
    pub fn corpora(&mut self, names: &[String]) -> Result<Vec<CorpusInfo>, BenchError> {
        let mut known = match self.ask("list corpora", Operation::Corpora, None)?.result {
            ReplyResult::Corpora(corpora) => corpora,
            other => return Err(unexpected("the corpora", &other)),
        };
        let mut keys = Keys::new();
        let mut wanted = Vec::with_capacity(names.len());
        for name in names {
            let at = known.iter().position(|corpus| corpus.name == *name && corpus.decommissioned_at_us.is_none());
            wanted.push(match at {
                Some(at) => known.swap_remove(at),
                None => self.onboard(name, &mut keys)?,
            });
        }
        Ok(wanted)
    }

    fn onboard(&mut self, name: &str, keys: &mut Keys) -> Result<CorpusInfo, BenchError> {
        let operation = Operation::Onboard { name, notes: "load of claim-bench" };
        match self.ask("onboard a corpus", operation, Some(keys))?.result {
            ReplyResult::Onboarded(corpus) => Ok(corpus),
            other => Err(unexpected("an onboarded corpus", &other)),
        }
    }

    /// Every corpus that this user may read and that has rows, in the daemon's order.
    pub fn corpora_with_rows(&mut self) -> Result<Vec<CorpusInfo>, BenchError> {
        match self.ask("list corpora", Operation::Corpora, None)?.result {
            ReplyResult::Corpora(corpora) => Ok(corpora.into_iter().filter(|corpus| corpus.claims > 0).collect()),
            other => Err(unexpected("the corpora", &other)),
        }
    }

    /// Batches that all shards have written since the daemon started, and their bytes.
    pub fn written(&mut self) -> Result<(u64, u64), BenchError> {
        match self.ask("ask for the status", Operation::Status, None)?.result {
            ReplyResult::Status(status) => {
                let sum = |of: fn(&ShardStatus) -> u64| status.shards.iter().map(of).sum();
                Ok((sum(|shard| shard.batches_written), sum(|shard| shard.bytes_written)))
            }
            other => Err(unexpected("a status", &other)),
        }
    }

    /// One request and its answer; a refusal is an error. Mutating operations bring the keys to take one from.
    fn ask(
        &mut self,
        doing: &'static str,
        operation: Operation<'_>,
        keys: Option<&mut Keys>,
    ) -> Result<Reply, BenchError> {
        let mut request = Request::new(self.next_id, operation);
        self.next_id += 1;
        request.idempotency_key = keys.map(Keys::idempotency_key);
        let mut bytes = Vec::new();
        self.encode(&request, &mut bytes)?;
        self.send(doing, &bytes)?;
        self.receive(doing)
    }

    /// Requests that change nothing, all outstanding at once, and their answers in the order of the requests; a refusal is an
    /// error. They have to be so few that the socket takes them all.
    pub fn ask_all(
        &mut self,
        doing: &'static str,
        operations: &[Operation<'_>],
    ) -> Result<Vec<ReplyResult>, BenchError> {
        let first_id = self.next_id;
        let mut bytes = Vec::new();
        for operation in operations {
            self.encode(&Request::new(self.next_id, operation.clone()), &mut bytes)?;
            self.next_id += 1;
        }
        self.send(doing, &bytes)?;
        let mut answers: Vec<Option<ReplyResult>> = operations.iter().map(|_| None).collect();
        for _ in operations {
            let reply = self.receive(doing)?;
            let number = reply.request_id.wrapping_sub(first_id) as usize;
            match answers.get_mut(number) {
                Some(answer @ None) => *answer = Some(reply.result),
                _ => {
                    return Err(BenchError::Protocol {
                        found: format!("a second reply to request {}", reply.request_id),
                    });
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    fn encode(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Result<(), BenchError> {
        encode_request(&mut self.builder, request, out).map_err(|error| BenchError::Usage(error.to_string()))
    }

    fn send(&mut self, doing: &'static str, bytes: &[u8]) -> Result<(), BenchError> {
        self.stream.write_all(bytes).map_err(|source| BenchError::Connection { doing, source })
    }

    fn receive(&mut self, doing: &'static str) -> Result<Reply, BenchError> {
        let failed = |source| BenchError::Connection { doing, source };
        let reply = loop {
            if let Some(content) = self.incoming.next_frame().map_err(|error| protocol(&error))? {
                break decode_reply(content).map_err(|error| protocol(&error))?;
            }
            match self.incoming.read_from(&mut self.stream) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                // A read with a time limit is interrupted even where the process was only stopped for a moment.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        };
        match reply.result {
            ReplyResult::Error(error) => Err(BenchError::Refused { operation: doing, message: error.to_string() }),
            _ => Ok(reply),
        }
    }

    /// The connection itself, for a load to go over.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}

/// The name of the corpus of this number.
pub fn bench_corpus(number: usize) -> String {
    format!("bench-{number}")
}

/// Whether claims can be made without saying when: a replay ledger takes its time from the requests.
pub fn check_clock(welcome: &Welcome) -> Result<(), BenchError> {
    match welcome.clock {
        ClockMode::Wall => Ok(()),
        ClockMode::Replay => {
            let sentence = "the ledger keeps replay time; a load needs one that is formatted with `--clock wall`";
            Err(BenchError::Usage(sentence.to_owned()))
        }
    }
}

fn protocol(error: &dyn std::error::Error) -> BenchError {
    BenchError::Protocol { found: error.to_string() }
}

fn unexpected(wanted: &str, found: &ReplyResult) -> BenchError {
    BenchError::Protocol { found: format!("{found:?} came where {wanted} was due") }
}
