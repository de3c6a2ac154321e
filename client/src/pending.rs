//! A request that was made: a future, and a thing to block on.

use crate::endpoint::{Endpoint, Ticket};
use crate::error::ClientError;
use crate::job::{Job, not_understood};
use crate::slot::{Completion, Slot};
use claim_protocol::{LogPosition, ReplyResult, ServerError};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What a request was answered with. It dereferences to the value.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    /// The answer itself.
    pub value: T,
    /// The positions that it depends on, all of them durable; none where a refusal is the answer. As [`RequestOptions::at_least`] of a later request they
    /// make that one see what this one did.
    ///
    /// [`RequestOptions::at_least`]: crate::RequestOptions::at_least
    pub positions: Vec<LogPosition>,
    /// The key that a mutating request went out with.
    pub idempotency_key: Option<Uuid>,
    /// From the call to the arrival of the answer.
    pub elapsed: Duration,
}

impl<T> Deref for Answer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A request under way, to be awaited, or blocked on with [`Pending::wait`].
///
/// The request is sent when the method that made it returns, whether or not anyone waits yet, so that many can be under
/// way at once. Only when as many are outstanding as the connection allows
/// ([`ClientOptions::outstanding_max`](crate::ClientOptions::outstanding_max)) is it held here, and sent by waiting for
/// it. Dropping it does not take the request back, unless it was held.
#[must_use = "a request's outcome is known only to who waits for it"]
pub struct Pending<T> {
    stage: Stage,
    endpoint: Arc<Endpoint>,
    convert: fn(ReplyResult) -> Option<T>,
    /// Refusals that answer what was asked.
    recover: fn(&ServerError) -> Option<T>,
    mutating: bool,
    key: Option<Uuid>,
    started: Instant,
}

enum Stage {
    /// Refused before it was sent.
    Refused(ClientError),
    Held(Box<Job>, Ticket),
    Sent(Arc<Slot>),
    Ended,
}

impl<T> Pending<T> {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        job: Result<Job, ClientError>,
        started: Instant,
        convert: fn(ReplyResult) -> Option<T>,
    ) -> Self {
        let (mutating, key) = job.as_ref().map_or((false, None), |job| (job.mutating, job.key));
        let stage = match job {
            Err(error) => Stage::Refused(error),
            Ok(job) => match endpoint.submit(Box::new(job)) {
                Ok(slot) => Stage::Sent(slot),
                Err((job, ticket)) => Stage::Held(job, ticket),
            },
        };
        Pending { stage, endpoint, convert, recover: |_| None, mutating, key, started }
    }

    /// With the refusals that are an answer, too.
    pub(crate) fn recovering(self, recover: fn(&ServerError) -> Option<T>) -> Self {
        // Not by a struct update: a pending request is dropped with care.
        let mut pending = self;
        pending.recover = recover;
        pending
    }

    /// The key of a mutating request, known before its outcome is.
    pub fn idempotency_key(&self) -> Option<Uuid> {
        self.key
    }

    /// Blocks until the answer has come or the deadline has passed.
    ///
    /// # Errors
    /// Says whether the request was applied: see [`ClientError::classification`].
    pub fn wait(mut self) -> Result<Answer<T>, ClientError> {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Refused(error) => Err(error),
            Stage::Held(job, ticket) => {
                let slot = self.endpoint.submit_blocking(job, &ticket);
                self.answer(slot.wait())
            }
            Stage::Sent(slot) => self.answer(slot.wait()),
            Stage::Ended => panic!("the answer was awaited before"),
        }
    }

    fn answer(&self, completion: Completion) -> Result<Answer<T>, ClientError> {
        let elapsed = completion.at.saturating_duration_since(self.started);
        let idempotency_key = self.key;
        let reply = match completion.result {
            Ok(reply) => reply,
            Err(error) => {
                let refusal = if let ClientError::Refused(refusal) = &error { Some(refusal) } else { None };
                let value = refusal.and_then(self.recover).ok_or(error)?;
                return Ok(Answer { value, positions: Vec::new(), idempotency_key, elapsed });
            }
        };
        match (self.convert)(reply.result) {
            Some(value) => Ok(Answer { value, positions: reply.positions, idempotency_key, elapsed }),
            None => {
                let message = "the answer belongs to another operation".to_owned();
                Err(not_understood(self.mutating, self.key, message))
            }
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<Answer<T>, ClientError>;

    /// # Panics
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let slot = match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Refused(error) => return Poll::Ready(Err(error)),
            Stage::Held(job, ticket) => match self.endpoint.poll_submit(job, &ticket, context.waker()) {
                Ok(slot) => slot,
                Err(job) => {
                    self.stage = Stage::Held(job, ticket);
                    return Poll::Pending;
                }
            },
            Stage::Sent(slot) => slot,
            Stage::Ended => panic!("the answer was awaited before"),
        };
        match slot.poll(context) {
            Poll::Ready(completion) => Poll::Ready(self.answer(completion)),
            Poll::Pending => {
                self.stage = Stage::Sent(slot);
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let Stage::Held(_, ticket) = &self.stage {
            self.endpoint.forget(ticket);
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Refused(_) => "refused",
            Stage::Held(..) => "held",
            Stage::Sent(_) => "sent",
            Stage::Ended => "ended",
        };
        formatter.debug_struct("Pending").field("stage", &stage).field("key", &self.key).finish_non_exhaustive()
    }
}
