//! What went wrong, and what the shell learns of it.

use crate::output::printable;
use claim_client::import::{ImportError, ImportFailure};
use claim_client::{Classification, ClientError};
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{error}; {}", so_far(error))]
    Import { error: Box<ImportError> },
    /// The log is not what it once was.
    #[error("{0}")]
    Mismatch(String),
    /// Nothing of what was asked for was done.
    #[error("{0}")]
    Refused(String),
    /// Something is wrong with an argument that the parser could not see.
    #[error("{0}")]
    Usage(String),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
}

/// A failure in JSON.
#[derive(Debug, Serialize)]
struct FailureJson<'a> {
    error: &'a str,
    outcome: &'a str,
    message: String,
    retry_after_ms: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
}

impl Failure {
    /// Says on standard error what went wrong, and gives the exit status for it.
    pub fn report(self, json: bool) -> ExitCode {
        if let Failure::Output(error) = &self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            // Whoever read the output has read enough.
            return ExitCode::SUCCESS;
        }
        let message = self.to_string();
        if json {
            // The code has a field of its own there.
            let message = match self.client() {
                Some(ClientError::Refused(error)) => error.message.clone(),
                _ => message,
            };
            let line = serde_json::to_string(&self.json(message)).expect("strings and numbers");
            let _ = writeln!(io::stderr(), "{line}");
        } else {
            say(&format!("claimctl: {message}"));
        }
        ExitCode::from(self.exit_status())
    }

    fn client(&self) -> Option<&ClientError> {
        match self {
            Failure::Client(error) => Some(error),
            Failure::Import { error } => match &error.failure {
                ImportFailure::Client(error) => Some(error),
                ImportFailure::Source(_) => None,
            },
            Failure::Usage(_) | Failure::Output(_) | Failure::Mismatch(_) | Failure::Refused(_) => None,
        }
    }

    fn exit_status(&self) -> u8 {
        match (self, self.client().map(ClientError::classification)) {
            (_, Some(Classification::Definite))
            | (Failure::Output(_) | Failure::Mismatch(_) | Failure::Refused(_), _) => 1,
            (_, Some(Classification::Unknown)) => 3,
            (_, Some(Classification::CannotConnect)) => 4,
            (_, None) => 2,
        }
    }

    fn json(&self, message: String) -> FailureJson<'_> {
        let client = self.client();
        let error = match self {
            Failure::Output(_) => "OUTPUT",
            Failure::Mismatch(_) => "MISMATCH",
            Failure::Refused(_) => "REFUSED",
            _ => client.map_or("USAGE", ClientError::code_name),
        };
        let unknown = client.is_some_and(|error| error.classification() == Classification::Unknown);
        let idempotency_key = match client {
            Some(ClientError::UnknownOutcome { idempotency_key, .. }) => idempotency_key.map(|key| key.to_string()),
            _ => None,
        };
        FailureJson {
            error,
            outcome: if unknown { "unknown" } else { "definite" },
            message,
            retry_after_ms: client.map_or(0, ClientError::retry_after_ms),
            idempotency_key,
        }
    }
}

fn so_far(error: &ImportError) -> String {
    let refused: u64 = error.report.refused.values().sum();
    format!("{} were acknowledged and {refused} refused before", error.report.acknowledged())
}

/// A line on standard error. Nobody can be told when that fails.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}
