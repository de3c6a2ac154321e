//! How a client behaves, and what one request carries beside its operation.

use claim_protocol::LogPosition;
use std::time::Duration;
use uuid::Uuid;

/// Requests of one connection that are sent and not answered, unless told otherwise.
pub const OUTSTANDING_MAX: usize = 1024;
/// How long a request may take, unless told otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// The longest deadline; a longer one means this one. The protocol's own field holds 49 days.
pub const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often a request is sent or waited for through a failed reconnection, unless told otherwise. The deadline usually
/// ends the attempts first.
pub const ATTEMPTS_MAX: u32 = 40;
/// How long connecting and the first exchange may take, unless told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The name that the client gives itself in its hello.
    pub name: String,
    /// Deadline of requests that bring none of their own.
    pub deadline: Duration,
    /// Requests of one connection that are sent and not answered. More are held back by their [`Pending`]s.
    ///
    /// [`Pending`]: crate::Pending
    pub outstanding_max: usize,
    /// How often one request is sent, or waited for through a failed reconnection.
    pub attempts_max: u32,
    /// How long connecting and the first exchange may take.
    pub connect_timeout: Duration,
    /// Whether requests go to the shard's own socket, where the daemon names one, and not through the main one.
    pub direct_routing: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            name: concat!("claim-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            deadline: DEADLINE_DEFAULT,
            outstanding_max: OUTSTANDING_MAX,
            attempts_max: ATTEMPTS_MAX,
            connect_timeout: CONNECT_TIMEOUT,
            direct_routing: true,
        }
    }
}

/// What one request carries beside its operation. The default is right for most.
#[derive(Debug, Clone)]
pub struct RequestOptions {
    /// How long the request may take, retries included; `None`: [`ClientOptions::deadline`].
    pub deadline: Option<Duration>,
    /// Positions that the answer's state includes; those of an [`Answer`](crate::Answer) make a request see its effect.
    pub at_least: Vec<LogPosition>,
    /// The key of a mutating request, a UUIDv7; `None`: a new one. Give one to repeat a request whose outcome is unknown.
    pub idempotency_key: Option<Uuid>,
    /// One line saying why, at most 512 bytes, or 4,096 in a dispute; the reason of a retraction or reactivation.
    pub rationale: String,
    /// Ties the entries of one incident together.
    pub correlation_id: Option<Uuid>,
    /// The request's own time in microseconds since the epoch: replay ledgers require it, and only they go by it.
    pub at_us: Option<i64>,
    /// Whether `OVERLOADED` and `THROTTLED` are answered by waiting and sending again, as long as the deadline and the
    /// client's budget of retries ([`RETRY_PERCENT_MAX`](crate::RETRY_PERCENT_MAX)) allow. A repeated request may then take effect after ones that were sent later.
    pub retry_overload: bool,
}

impl Default for RequestOptions {
    fn default() -> Self {
        RequestOptions {
            deadline: None,
            at_least: Vec::new(),
            idempotency_key: None,
            rationale: String::new(),
            correlation_id: None,
            at_us: None,
            retry_overload: true,
        }
    }
}
