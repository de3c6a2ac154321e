//! The connection that a verb works with, and the options of its requests.

use crate::args::{Args, Mutation};
use crate::failure::Failure;
use claim_client::{Client, ClientOptions, ClockMode, LogPosition, RequestOptions, Uuid, new_key};
use std::time::Duration;

/// A connected client.
pub struct Session {
    pub client: Client,
}

/// How long connecting may take at most, whatever the deadline.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

impl Session {
    /// Connects to the daemon that the arguments name.
    pub fn open(args: &Args) -> Result<Self, Failure> {
        let options = ClientOptions {
            name: concat!("claimctl ", env!("CARGO_PKG_VERSION")).to_owned(),
            deadline: args.deadline,
            connect_timeout: args.deadline.min(CONNECT_TIMEOUT_MAX),
            ..ClientOptions::default()
        };
        Ok(Session { client: Client::connect_with(&args.socket, options)? })
    }

    /// Options of a request that changes the ledger.
    pub fn mutating(&self, mutation: &Mutation, rationale: &str) -> RequestOptions {
        RequestOptions {
            idempotency_key: mutation.idempotency_key,
            rationale: rationale.to_owned(),
            correlation_id: mutation.correlation_id,
            at_us: mutation.at,
            ..RequestOptions::default()
        }
    }

    /// A new key for a request of time `at_us`, which counts in replay ledgers only.
    pub fn new_key(&self, at_us: Option<i64>) -> Uuid {
        new_key(at_us.filter(|_| self.client.welcome().clock == ClockMode::Replay))
    }

    /// Options of a request that sees what happened at `positions`.
    pub fn seeing(&self, positions: &[LogPosition]) -> RequestOptions {
        RequestOptions { at_least: positions.to_vec(), ..RequestOptions::default() }
    }
}
